/*
 * What the control socket offers: one function a method, and the table of them. docs/control.md lists parameters and
 * results. Runs on the main thread.
 */
#include "vmm/machine/machine.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/display/keys.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static struct error *no_params(const struct control_call *call)
{
	return control_params(call, "{}");
}

static json_t *balloon_status(const struct machine *m)
{
	return json_pack("{s:I, s:I}", "target", (json_int_t)balloon_target(m->balloon), "actual",
			 (json_int_t)balloon_actual(m->balloon));
}

static struct error *get_status(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;

	TRY(no_params(call));
	*result = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:i, s:i, s:s, s:b}", "name", m->config->name, "type",
			    MACHINE_TYPE, "version", GLINT_VERSION, "state", machine_state_name(m), "why", m->why,
			    "memory", (json_int_t)m->memory.size, "vcpus", (int)m->config->cpus, "disks",
			    (int)m->config->disks, "serial", m->config->serial, "sandbox", m->config->sandbox);
	json_object_set_new(*result, "ports", hotplug_status(m));
	if (m->ahci)
		json_object_set_new(*result, "cds", machine_cd_status(m));
	if (m->balloon)
		json_object_set_new(*result, "balloon", balloon_status(m));
	if (m->agent)
		json_object_set_new(*result, "agent", machine_agent_status(m));
	return NULL;
}

static json_t *exits_of(const struct vcpu *vcpu)
{
	json_t *exits = json_object();

	for (unsigned kind = 0; kind < VCPU_EXIT_KINDS; kind++) {
		uint64_t n = __atomic_load_n(&vcpu->exits[kind], __ATOMIC_RELAXED);
		if (n && vcpu_exit_name(kind))
			json_object_set_new(exits, vcpu_exit_name(kind), json_integer((json_int_t)n));
	}
	return exits;
}

static json_t *disk_stats(const char *id, const struct drive *drive)
{
	struct drive_stats s;
	struct disk_info info;

	drive_stats(drive, &s);
	disk_info(drive_disk(drive), 0, &info);
	return json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "disk", id, "format", info.format,
			 "images", (int)disk_depth(drive_disk(drive)), "size", (json_int_t)drive_size(drive), "reads",
			 (json_int_t)s.reads, "read-bytes", (json_int_t)s.read_bytes, "writes", (json_int_t)s.writes,
			 "written-bytes", (json_int_t)s.written_bytes, "flushes", (json_int_t)s.flushes, "discards",
			 (json_int_t)s.discards, "errors", (json_int_t)s.errors);
}

static struct error *get_stats(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;

	TRY(no_params(call));
	json_t *vcpus = json_array();
	for (unsigned i = 0; i < m->vcpus.count; i++)
		json_array_append_new(vcpus,
				      json_pack("{s:i, s:o}", "vcpu", (int)i, "exits", exits_of(&m->vcpus.vcpu[i])));
	json_t *disks = json_array();
	for (unsigned i = 0; i < m->config->disks; i++)
		json_array_append_new(disks, disk_stats(m->config->disk[i].id, m->drive[i]));
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (m->plug[i].drive)
			json_array_append_new(disks, disk_stats(m->plug[i].card.disk.id, m->plug[i].drive));
	for (unsigned i = 0; i < m->config->cds; i++)
		if (m->cd[i])
			json_array_append_new(disks, disk_stats(m->config->cd[i].id, m->cd[i]));
	*result = json_pack("{s:o, s:o, s:o}", "vcpus", vcpus, "disks", disks, "nets", machine_net_stats(m));
	return NULL;
}

static struct drive *find_drive(const struct machine *m, const char *id)
{
	for (unsigned i = 0; i < m->config->disks; i++)
		if (strcmp(m->config->disk[i].id, id) == 0)
			return m->drive[i];
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (m->plug[i].drive && strcmp(m->plug[i].card.disk.id, id) == 0)
			return m->plug[i].drive;
	return NULL;
}

/* {"disk": ID, "size": BYTES}: nothing may be under way meanwhile, so the guest stands still for a moment. */
static struct error *do_disk_resize(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	const char *id;
	json_int_t size;

	(void)result;
	TRY(control_params(call, "{s:s, s:I}", "disk", &id, "size", &size));
	struct drive *drive = find_drive(m, id);
	if (!drive)
		return error_new(ENOENT, "there is no disk '%s'", id);
	bool was_running = m->state == MACHINE_RUNNING;
	if (was_running)
		TRY(machine_pause(m, "a disk is resized"));
	struct error *err = size < 0 ? error_new(EINVAL, "%lld bytes are no size for a disk", (long long)size)
				     : drive_resize(drive, (uint64_t)size);
	if (was_running)
		log_error(machine_resume(m));
	return err;
}

static struct error *need_display(const struct machine *m)
{
	if (!m->display)
		return error_hint(error_new(ENODEV, "%s has no display", m->config->name),
				  "start it with --display on");
	return NULL;
}

static struct error *do_pause(void *self, struct control_call *call, json_t **result)
{
	(void)result;
	TRY(no_params(call));
	return machine_pause(self, "asked to");
}

static struct error *do_resume(void *self, struct control_call *call, json_t **result)
{
	(void)result;
	TRY(no_params(call));
	return machine_resume(self);
}

static struct error *do_reset(void *self, struct control_call *call, json_t **result)
{
	(void)result;
	TRY(no_params(call));
	return machine_reset(self);
}

static struct error *do_power_button(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;

	(void)result;
	TRY(no_params(call));
	if (m->state != MACHINE_RUNNING)
		return error_new(EBUSY, "press the power button of %s: it is %s", m->config->name,
				 machine_state_name(m));
	pm_power_button(&m->pm);
	return NULL;
}

/* The stream goes to the descriptor that came with the call: a file, a pipe or a socket. */
static struct error *do_save(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;

	(void)result;
	TRY(no_params(call));
	if (call->fd_count != 1)
		return error_hint(error_new(EINVAL, "save: %u descriptors came along", call->fd_count),
				  "pass one, open for writing");
	bool was_running = m->state == MACHINE_RUNNING;
	TRY(machine_pause(m, "being saved"));
	struct error *err = machine_save(m, call->fds[0]);
	if (err && was_running) {
		/* Not saved: nothing is lost, the guest goes on. */
		log_error(machine_resume(m));
	}
	return err;
}

/* The picture goes to the descriptor that came with the call: a file or a memfd. */
static struct error *do_screenshot(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;

	(void)result;
	TRY(no_params(call));
	TRY(need_display(m));
	if (call->fd_count != 1)
		return error_hint(error_new(EINVAL, "%u descriptors came along", call->fd_count),
				  "pass one, a regular file or memfd open for writing");
	return display_screenshot(m->display, call->fds[0]);
}

/* A viewer brings the monitor's end of its link along: see vmm/display/link.h. */
static struct error *do_display_attach(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;

	(void)result;
	TRY(no_params(call));
	TRY(need_display(m));
	if (call->fd_count != 1)
		return error_new(EINVAL, "%u descriptors came along, not one", call->fd_count);
	TRY(viewers_attach(m->viewers, call->fds[0]));
	call->fds[0] = -1; /* the viewers' now */
	return NULL;
}

/* {"keys": "ctrl-alt-delete"}: pressed in that order, released in the other. */
static struct error *do_send_keys(void *self, struct control_call *call, json_t **result)
{
	unsigned code[KEYS_AT_ONCE], count = 0;
	struct machine *m = self;
	const char *keys;

	(void)result;
	TRY(control_params(call, "{s:s}", "keys", &keys));
	TRY(need_display(m));
	TRY(keys_parse(keys, code, &count));
	if (m->state != MACHINE_RUNNING)
		return error_new(EBUSY, "%s is %s", m->config->name, machine_state_name(m));
	bool taken = true;
	for (unsigned i = 0; i < count; i++)
		taken &= input_key(&m->input, code[i], true);
	for (unsigned i = count; i-- > 0;)
		input_key(&m->input, code[i], false);
	return taken ? NULL : error_new(EAGAIN, "the guest does not read its keyboard");
}

static struct error *do_link(void *self, struct control_call *call, json_t **result)
{
	(void)result;
	return machine_link(self, call);
}

static struct error *need_balloon(const struct machine *m)
{
	if (m->balloon)
		return NULL;
	return error_hint(error_new(ENODEV, "%s has no balloon", m->config->name), "start it with --balloon");
}

static struct error *do_balloon(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	json_int_t target;

	TRY(control_params(call, "{s:I}", "target", &target));
	TRY(need_balloon(m));
	if (target < 0)
		return error_new(EINVAL, "balloon: a target of %lld bytes", (long long)target);
	TRY(error_wrap(balloon_set_target(m->balloon, (uint64_t)target), "balloon"));
	*result = balloon_status(m);
	return NULL;
}

static json_t *balloon_stats_json(const struct balloon_stats *stats)
{
	json_t *values = json_object();

	for (unsigned i = 0; i < BALLOON_STATS; i++)
		if (stats->known >> i & 1)
			json_object_set_new(values, balloon_stat_name(i), json_integer((json_int_t)stats->value[i]));
	return values;
}

void machine_notify_balloon_stats(struct machine *m)
{
	struct balloon_stats stats;

	balloon_get_stats(m->balloon, &stats);
	if (m->control)
		control_notify(m->control, "balloon-stats", json_pack("{s:o}", "stats", balloon_stats_json(&stats)));
}

/* What is known now; newer ones come as a notification if the guest could be asked. */
static struct error *get_balloon_stats(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	struct balloon_stats stats;
	struct timespec now;

	TRY(no_params(call));
	TRY(need_balloon(m));
	balloon_get_stats(m->balloon, &stats);
	clock_gettime(CLOCK_MONOTONIC, &now);
	int64_t age = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 - (int64_t)(stats.when / 1000000);
	bool asked = balloon_ask_stats(m->balloon);
	*result = json_pack("{s:o, s:b}", "stats", balloon_stats_json(&stats), "asked", asked);
	if (stats.when)
		json_object_set_new(*result, "age-ms", json_integer(age));
	return NULL;
}

static struct error *do_quit(void *self, struct control_call *call, json_t **result)
{
	(void)result;
	TRY(no_params(call));
	machine_quit(self);
	return NULL;
}

static const struct control_method methods[] = {
	{"status", get_status},
	{"stats", get_stats},
	{"pause", do_pause},
	{"resume", do_resume},
	{"reset", do_reset},
	{"power-button", do_power_button},
	{"save", do_save},
	{"quit", do_quit},
	{"screenshot", do_screenshot},
	{"send-keys", do_send_keys},
	{"display-attach", do_display_attach},
	{"link", do_link},
	{"balloon", do_balloon},
	{"balloon-stats", get_balloon_stats},
	{"disk-resize", do_disk_resize},
	{"cd-change", machine_cd_change},
	{"device-add", hotplug_add},
	{"device-remove", hotplug_remove},
	{"agent-ping", machine_agent_ping},
	{"agent-info", machine_agent_info},
	{"agent-set-time", machine_agent_set_time},
	{"agent-freeze", machine_agent_freeze},
	{"agent-thaw", machine_agent_thaw},
	{NULL, NULL},
};

struct error *machine_serve(struct machine *machine)
{
	struct vm_config *config = machine->config;

	if (config->control_listen < 0 && config->control_peer < 0)
		return NULL;
	int listen_fd = steal_fd(&config->control_listen), peer_fd = steal_fd(&config->control_peer);
	return control_new(&machine->control, machine->loop, listen_fd, peer_fd, methods, machine);
}
