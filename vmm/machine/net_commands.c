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

/* The @index-th interface there is, its id in *id: those in slots, then those in ports. NULL after the last. */
static struct net *net_at(const struct machine *m, unsigned index, const char **id)
{
	if (index < m->config->nets) {
		*id = m->config->net[index].id;
		return m->net[index];
	}
	index -= m->config->nets;
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		*id = m->plug[i].card.net.id;
		if (m->plug[i].net && index-- == 0)
			return m->plug[i].net;
	}
	return NULL;
}

json_t *machine_net_stats(const struct machine *m)
{
	json_t *nets = json_array();
	const struct net *net;
	const char *id;

	for (unsigned i = 0; (net = net_at(m, i, &id)); i++) {
		struct net_stats s;
		net_stats(net, &s);
		json_array_append_new(nets,
				      json_pack("{s:s, s:b, s:b, s:o, s:o}", "net", id, "link", net_link(net), "vhost",
						s.vhost, "rx", frames(s.rx_frames, s.rx_bytes, s.rx_dropped), "tx",
						frames(s.tx_frames, s.tx_bytes, s.tx_dropped)));
	}
	return nets;
}

/* A descriptor that comes along is a new connection to passt. */
struct error *machine_link(struct machine *m, struct control_call *call)
{
	const char *id = NULL, *other;
	struct net *net;
	int up = -1;

	TRY(control_params(call, "{s:s, s?:b}", "id", &id, "up", &up));
	for (unsigned i = 0; (net = net_at(m, i, &other)); i++) {
		if (strcmp(other, id) != 0)
			continue;
		if (call->fd_count > 1 || (call->fd_count == 0 && up < 0))
			return error_hint(error_new(EINVAL, "link: nothing to do for %s", id),
					  "say up, or pass one descriptor, or both");
		if (call->fd_count == 1)
			TRY(net_attach(net, steal_fd(&call->fds[0])));
		if (up >= 0)
			net_set_link(net, up);
		return NULL;
	}
	return error_new(EINVAL, "link: there is no interface '%s'", id);
}

static void tell_links(void *arg)
{
	struct machine *m = arg;
	const struct net *net;
	const char *id;

	for (unsigned i = 0; m->control && (net = net_at(m, i, &id)); i++)
		if (!net_link(net))
			control_notify(m->control, "link", json_pack("{s:s, s:b}", "id", id, "up", 0));
}

void machine_post_link(void *arg)
{
	struct machine *m = arg;

	loop_post(m->loop, tell_links, m);
}
