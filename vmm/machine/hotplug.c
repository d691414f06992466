/*
 * See hotplug.h. Touches the descriptors that come with device-add, which become the devices'.
 */
#include "vmm/machine/hotplug.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/machine/machine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* How long a guest may take to let a device go, before its owner is told that it has not. */
#define PATIENCE_NS 60000000000ull

/* --- a disk behind a port --- */

/* Takes the disk apart, as far as it was made. */
static void free_disk(struct plug *plug)
{
	virtio_pci_free(steal_ptr(&plug->vp));
	blk_free(steal_ptr(&plug->disk));
	plug->config = (struct disk_config){};
}

static struct error *make_disk(struct plug *plug)
{
	TRY(machine_make_disk(plug->machine, &plug->config, &plug->disk));
	TRY(virtio_pci_new_behind(&plug->vp, blk_device(plug->disk), &plug->port));
	plug->unit = virtio_pci_unit(plug->vp, "disk");
	return NULL;
}

static void notify(const struct plug *plug, const char *method, json_t *params)
{
	struct control *control = plug->machine->control;

	if (control)
		control_notify(control, method, params);
	else
		json_decref(params);
}

/* The guest let the disk go, or was reset while it was asked to. */
static void eject(struct plug *plug)
{
	struct machine *m = plug->machine;
	bool running = m->state == MACHINE_RUNNING;
	json_t *params = json_pack("{s:s, s:i}", "id", plug->config.id, "port", (int)plug->port.pci.function + 1);

	log_info("%s: disk %s is out of port %u", m->config->name, plug->config.id, plug->port.pci.function + 1);
	loop_timer_set(plug->patience, 0);
	/* So that no vCPU is in the middle of an access to what is freed. */
	if (running)
		vcpus_pause(&m->vcpus);
	plug->unit.ops->pause(plug->unit.self);
	log_error(blk_deactivate(plug->disk));
	free_disk(plug);
	pci_port_emptied(&plug->port);
	if (running)
		vcpus_resume(&m->vcpus);
	notify(plug, "device-removed", params);
}

static void settle(void *arg)
{
	struct plug *plug = arg;

	if (plug->machine->state != MACHINE_RUNNING)
		return; /* resume looks again */
	for (;;) {
		switch (pci_port_settle(&plug->port)) {
		case PCI_PORT_SETTLED:
			return;
		case PCI_PORT_RESET_CARD:
			plug->unit.ops->reset(plug->unit.self);
			pci_port_card_reset(&plug->port);
			break;
		case PCI_PORT_EJECT:
			eject(plug);
			return;
		}
	}
}

static void changed(void *arg)
{
	struct plug *plug = arg;

	loop_post(plug->machine->loop, settle, plug);
}

static void out_of_patience(void *arg)
{
	struct plug *plug = arg;

	if (!plug->disk || !plug->port.removing)
		return;
	pci_port_give_up(&plug->port);
	log_warn("%s: the guest does not let disk %s go", plug->machine->config->name, plug->config.id);
	notify(plug, "device-remove-failed",
	       json_pack("{s:s, s:s}", "id", plug->config.id, "why", "the guest did not let it go"));
}

/* --- the unit --- */

static void state(void *self, struct saved *s)
{
	struct plug *plug = self;
	char id[DISK_ID_BYTES + 1];

	memcpy(id, plug->config.id, sizeof(id));
	saved_require(s);
	saved_string(s, "disk", id, sizeof(id));
	if (saved_loading(s) && strcmp(id, plug->config.id) != 0) {
		saved_fail(s, "the saved machine has disk '%s' there, this one '%s' (--disk ...,id=%s,port=%u)", id,
			   plug->config.id, id, plug->port.pci.function + 1);
		return;
	}
	pci_port_state(&plug->port, s);
	if (!plug->disk)
		return;
	saved_require(s);
	saved_subsection(s, "device", true, plug->unit.ops->state, plug->unit.self);
}

static struct error *restored(void *self)
{
	struct plug *plug = self;

	TRY(pci_port_restored(&plug->port));
	return plug->disk ? plug->unit.ops->restored(plug->unit.self) : NULL;
}

static void pause_unit(void *self)
{
	struct plug *plug = self;

	if (plug->disk)
		plug->unit.ops->pause(plug->unit.self);
}

static void resume(void *self)
{
	struct plug *plug = self;

	if (plug->disk)
		plug->unit.ops->resume(plug->unit.self);
	changed(plug);
}

static void power_on(void *self)
{
	struct plug *plug = self;

	if (plug->disk && plug->port.removing)
		eject(plug);
	if (plug->disk)
		plug->unit.ops->reset(plug->unit.self);
	pci_port_reset(&plug->port);
}

static const struct unit_ops unit_ops = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};

static struct error *create_plug(struct machine *m, unsigned number)
{
	struct plug *plug = &m->plug[number];
	char name[16];

	plug->machine = m;
	TRY(loop_add_timer(m->loop, out_of_patience, plug, &plug->patience));
	TRY(pci_port_init(&plug->port, &m->pci, MACHINE_SLOT_PORTS, number, changed, plug));
	snprintf(name, sizeof(name), "port%u", number + 1);
	machine_add_unit(m, name, &unit_ops, plug);
	if (!m->config->plugged[number].file.name)
		return NULL;
	plug->config = m->config->plugged[number];
	m->config->plugged[number].blk.fd = -1; /* the device's */
	TRY(error_wrap(make_disk(plug), "disk %s", plug->config.id));
	pci_port_reset(&plug->port); /* it is there from power-on */
	return NULL;
}

struct error *hotplug_create(struct machine *m)
{
	for (unsigned i = 0; i < PCI_PORTS && m->config->hotplug; i++)
		TRY(create_plug(m, i));
	return NULL;
}

void hotplug_destroy(struct machine *m)
{
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		struct plug *plug = &m->plug[i];
		free_disk(plug);
		pci_port_destroy(&plug->port);
		loop_remove(plug->patience);
	}
}

/* --- control --- */

static struct plug *find(struct machine *m, const char *id)
{
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (m->plug[i].disk && strcmp(m->plug[i].config.id, id) == 0)
			return &m->plug[i];
	return NULL;
}

static struct error *need_running(const struct machine *m)
{
	if (m->state == MACHINE_RUNNING)
		return NULL;
	return error_new(EBUSY, "%s is %s: only a running guest takes part in it", m->config->name,
			 machine_state_name(m));
}

/* The port for a new disk: the one it asks for, or the first that is empty. */
static struct error *choose_port(struct machine *m, const struct disk_config *disk, struct plug **out)
{
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		if (m->plug[i].disk || (disk->port && disk->port != i + 1))
			continue;
		*out = &m->plug[i];
		return NULL;
	}
	return error_hint(error_new(EBUSY, disk->port ? "port %u is not empty" : "no port is empty", disk->port),
			  "remove a device first; a machine has %d ports", PCI_PORTS);
}

static struct error *check_id(struct machine *m, const struct disk_config *disk)
{
	bool taken = find(m, disk->id);

	for (unsigned i = 0; i < m->config->disks; i++)
		taken = taken || strcmp(m->config->disk[i].id, disk->id) == 0;
	return taken ? error_new(EEXIST, "there is a disk with the id '%s'", disk->id) : NULL;
}

static struct error *plug_in(struct plug *plug, int fd)
{
	plug->config.blk.fd = fd;
	plug->config.blk.name = plug->config.id;
	struct error *err = make_disk(plug);
	if (!err)
		err = blk_activate(plug->disk);
	if (!err)
		return NULL;
	close_fd(&plug->config.blk.fd);
	free_disk(plug);
	return err;
}

struct error *hotplug_add(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	const char *kind = json_string_value(json_object_get(call->params, "kind"));
	struct disk_config disk;
	struct plug *plug = NULL;

	if (!kind || strcmp(kind, "disk") != 0)
		return error_hint(error_new(EINVAL, "'%s' is not a kind of device", kind ? kind : ""),
				  "only disks can be added: kind disk");
	if (call->fd_count != 1)
		return error_hint(error_new(EINVAL, "%u descriptors came along", call->fd_count),
				  "pass one: the disk, open for reading and writing");
	json_object_del(call->params, "kind");
	if (!m->config->hotplug)
		return error_hint(error_new(ENODEV, "%s has no hot-plug ports", m->config->name),
				  "start it with --hotplug");
	TRY(config_disk(call->params, m->config, &disk));
	TRY(need_running(m));
	TRY(check_id(m, &disk));
	TRY(choose_port(m, &disk, &plug));
	plug->config = disk;
	TRY(error_wrap(plug_in(plug, steal_fd(&call->fds[0])), "add disk %s", disk.id));
	pci_port_insert(&plug->port);
	*result = json_pack("{s:s, s:i}", "id", plug->config.id, "port", (int)plug->port.pci.function + 1);
	return NULL;
}

struct error *hotplug_remove(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	const char *id;

	(void)result;
	TRY(control_params(call, "{s:s}", "id", &id));
	TRY(need_running(m));
	struct plug *plug = find(m, id);
	if (!plug)
		return error_hint(error_new(ENOENT, "no port has a device '%s'", id),
				  "only what was added, or put there by port=N, can be removed");
	if (plug->port.removing) /* a second press would take the first one back */
		return error_new(EALREADY, "the guest was asked for '%s' already", id);
	pci_port_press(&plug->port);
	loop_timer_set(plug->patience, PATIENCE_NS);
	changed(plug); /* one that the guest never switched on may go at once */
	return NULL;
}

json_t *hotplug_status(const struct machine *m)
{
	json_t *ports = json_array();

	for (unsigned i = 0; i < PCI_PORTS; i++) {
		const struct plug *plug = &m->plug[i];
		if (plug->disk)
			json_array_append_new(ports, json_pack("{s:i, s:s, s:b}", "port", (int)i + 1, "id",
							       plug->config.id, "removing", plug->port.removing));
	}
	return ports;
}
