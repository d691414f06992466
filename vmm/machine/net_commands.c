/*
 * What the control socket offers for network interfaces; see commands.c. Runs on the main thread.
 */
#include "vmm/machine/machine.h"

#include "base/cleanup.h"

#include <errno.h>
#include <string.h>

static json_t *frames(uint64_t count, uint64_t bytes, uint64_t dropped)
{
	return json_pack("{s:I, s:I, s:I}", "frames", (json_int_t)count, "bytes", (json_int_t)bytes, "dropped",
			 (json_int_t)dropped);
}

json_t *machine_net_stats(const struct machine *m)
{
	json_t *nets = json_array();

	for (unsigned i = 0; i < m->config->nets; i++) {
		struct net_stats s;
		net_stats(m->net[i], &s);
		json_array_append_new(nets, json_pack("{s:s, s:b, s:b, s:o, s:o}", "net", m->config->net[i].id, "link",
						      net_link(m->net[i]), "vhost", s.vhost, "rx",
						      frames(s.rx_frames, s.rx_bytes, s.rx_dropped), "tx",
						      frames(s.tx_frames, s.tx_bytes, s.tx_dropped)));
	}
	return nets;
}

/* A descriptor that comes along is a new connection to passt. */
struct error *machine_link(struct machine *m, struct control_call *call)
{
	const char *id = NULL;
	int up = -1;

	TRY(control_params(call, "{s:s, s?:b}", "id", &id, "up", &up));
	for (unsigned i = 0; i < m->config->nets; i++) {
		if (strcmp(m->config->net[i].id, id) != 0)
			continue;
		if (call->fd_count > 1 || (call->fd_count == 0 && up < 0))
			return error_hint(error_new(EINVAL, "link: nothing to do for %s", id),
					  "say up, or pass one descriptor, or both");
		if (call->fd_count == 1)
			TRY(net_attach(m->net[i], steal_fd(&call->fds[0])));
		if (up >= 0)
			net_set_link(m->net[i], up);
		return NULL;
	}
	return error_new(EINVAL, "link: there is no interface '%s'", id);
}

static void tell_links(void *arg)
{
	struct machine *m = arg;

	for (unsigned i = 0; m->control && i < m->config->nets; i++)
		if (!net_link(m->net[i]))
			control_notify(m->control, "link",
				       json_pack("{s:s, s:b}", "id", m->config->net[i].id, "up", 0));
}

void machine_post_link(void *arg)
{
	struct machine *m = arg;

	loop_post(m->loop, tell_links, m);
}
