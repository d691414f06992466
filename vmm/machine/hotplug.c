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

static const char *const kinds[] = {[CARD_DISK] = "disk", [CARD_NET] = "net"};

/* --- the card behind a port --- */

static const char *id_of(const struct card_config *card)
{
	return card->kind == CARD_NET ? card->net.id : card->disk.id;
}

static bool is_nvme(const struct card_config *card)
{
	return card->kind == CARD_DISK && card->disk.bus == DISK_NVME;
}

/* Takes the card apart, as far as it was made. */
static void free_card(struct plug *plug)
{
	virtio_pci_free(steal_ptr(&plug->vp));
	blk_free(steal_ptr(&plug->disk));
	nvme_free(steal_ptr(&plug->nvme));
	drive_free(steal_ptr(&plug->drive));
	net_free(steal_ptr(&plug->net));
	plug->card.kind = CARD_NONE;
}

static struct error *make_device(struct plug *plug, struct virtio_device **device)
{
	if (plug->card.kind == CARD_DISK) {
		TRY(machine_make_disk(plug->machine, &plug->card.disk, &plug->drive, &plug->disk));
		*device = blk_device(plug->disk);
	} else {
		plug->card.net.device.name = plug->card.net.id;
		TRY(machine_make_net(plug->machine, &plug->card.net, &plug->net));
		*device = net_device(plug->net);
	}
	return NULL;
}

static struct error *make_card(struct plug *plug)
{
	struct virtio_device *device = NULL;
	struct disk_config *disk = &plug->card.disk;

	if (plug->card.kind == CARD_DISK)
		disk->drive.name = disk->file.name ?: disk->id;
	if (is_nvme(&plug->card)) {
		TRY(machine_make_nvme(plug->machine, disk, &plug->drive, &plug->nvme, 0, &plug->port));
		plug->unit = nvme_unit(plug->nvme, "nvme");
		return NULL;
	}
	TRY(make_device(plug, &device));
	TRY(virtio_pci_new_behind(&plug->vp, device, &plug->port));
	plug->unit = virtio_pci_unit(plug->vp, kinds[plug->card.kind]);
	return NULL;
}

static struct error *activate(struct plug *plug)
{
	return plug->drive ? drive_activate(plug->drive) : NULL;
}

static struct error *deactivate(struct plug *plug)
{
	return plug->drive ? drive_deactivate(plug->drive) : NULL;
}

struct error *hotplug_activate(struct machine *m)
{
	for (unsigned i = 0; i < PCI_PORTS; i++)
		TRY(activate(&m->plug[i]));
	return NULL;
}

struct error *hotplug_deactivate(struct machine *m)
{
	struct error *first = NULL;

	for (unsigned i = 0; i < PCI_PORTS; i++)
		first = error_first(first, deactivate(&m->plug[i]));
	return first;
}

static unsigned port_number(const struct plug *plug)
{
	return plug->port.pci.function + 1;
}

static json_t *describe(const struct plug *plug)
{
	return json_pack("{s:i, s:s, s:s}", "port", (int)port_number(plug), "kind", kinds[plug->card.kind], "id",
			 id_of(&plug->card));
}

static void notify(const struct plug *plug, const char *method, json_t *params)
{
	struct control *control = plug->machine->control;

	if (control)
		control_notify(control, method, params);
	else
		json_decref(params);
}

/* The guest let the card go, or was reset while it was asked to. */
static void eject(struct plug *plug)
{
	struct machine *m = plug->machine;
	bool running = m->state == MACHINE_RUNNING;
	json_t *params = describe(plug);

	log_info("%s: %s is out of port %u", m->config->name, id_of(&plug->card), port_number(plug));
	loop_timer_set(plug->patience, 0);
	/* So that no vCPU is in the middle of an access to what is freed. */
	if (running)
		vcpus_pause(&m->vcpus);
	plug->unit.ops->pause(plug->unit.self);
	log_error(deactivate(plug));
	free_card(plug);
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

	if (!plug->card.kind || !plug->port.removing)
		return;
	pci_port_give_up(&plug->port);
	log_warn("%s: the guest does not let %s go", plug->machine->config->name, id_of(&plug->card));
	notify(plug, "device-remove-failed",
	       json_pack("{s:s, s:s}", "id", id_of(&plug->card), "why", "the guest did not let it go"));
}

/* --- the unit --- */

/* What a saved machine has in a port and this one must have: "disk:ID", "nvme:ID"; empty: nothing. */
static void card_name(const struct plug *plug, char name[SAVED_NAME_MAX + 1])
{
	name[0] = '\0';
	if (plug->card.kind)
		snprintf(name, SAVED_NAME_MAX + 1, "%s:%s", is_nvme(&plug->card) ? "nvme" : kinds[plug->card.kind],
			 id_of(&plug->card));
}

static void state(void *self, struct saved *s)
{
	struct plug *plug = self;
	char here[SAVED_NAME_MAX + 1], saved[SAVED_NAME_MAX + 1];

	card_name(plug, here);
	memcpy(saved, here, sizeof(saved));
	saved_require(s);
	saved_string(s, "card", saved, sizeof(saved));
	if (saved_loading(s) && strcmp(saved, here) != 0) {
		saved_fail(s,
			   "the saved machine has '%s' in port %u, this one '%s' (--disk or --net ...,id=ID,port=%u)",
			   saved, port_number(plug), here, port_number(plug));
		return;
	}
	pci_port_state(&plug->port, s);
	if (!plug->card.kind)
		return;
	saved_require(s);
	saved_subsection(s, "device", true, plug->unit.ops->state, plug->unit.self);
}

static struct error *restored(void *self)
{
	struct plug *plug = self;

	TRY(pci_port_restored(&plug->port));
	return plug->card.kind ? plug->unit.ops->restored(plug->unit.self) : NULL;
}

static void pause_unit(void *self)
{
	struct plug *plug = self;

	if (plug->card.kind)
		plug->unit.ops->pause(plug->unit.self);
}

static void resume(void *self)
{
	struct plug *plug = self;

	if (plug->card.kind)
		plug->unit.ops->resume(plug->unit.self);
	changed(plug);
}

static void power_on(void *self)
{
	struct plug *plug = self;

	if (plug->card.kind && plug->port.removing)
		eject(plug);
	if (plug->card.kind)
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

/* A card that could not be made, or used: what it holds is closed. */
static struct error *refuse(struct plug *plug, struct error *err)
{
	if (plug->card.kind == CARD_DISK)
		config_close_disk(&plug->card.disk);
	if (plug->card.kind == CARD_NET)
		config_close_net(&plug->card.net);
	err = error_wrap(err, "%s %s", kinds[plug->card.kind], id_of(&plug->card));
	free_card(plug);
	return err;
}

static struct error *create_plug(struct machine *m, unsigned number)
{
	struct plug *plug = &m->plug[number];
	char name[16];

	plug->machine = m;
	TRY(loop_add_timer(m->loop, out_of_patience, plug, &plug->patience));
	TRY(pci_port_init(&plug->port, &m->pci, MACHINE_SLOT_PORTS, number, changed, plug));
	snprintf(name, sizeof(name), "port%u", number + 1);
	machine_add_unit(m, name, &unit_ops, plug);
	if (!m->config->plugged[number].kind)
		return NULL;
	plug->card = m->config->plugged[number];
	m->config->plugged[number].kind = CARD_NONE; /* its descriptors are the device's */
	struct error *err = make_card(plug);
	if (err)
		return error_wrap(refuse(plug, err), "port %u", number + 1);
	pci_port_reset(&plug->port); /* it is there from power-on */
	return NULL;
}

struct error *hotplug_create(struct machine *m)
{
	for (unsigned i = 0; i < PCI_PORTS; i++)
		TRY(create_plug(m, i));
	return NULL;
}

void hotplug_destroy(struct machine *m)
{
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		struct plug *plug = &m->plug[i];
		free_card(plug);
		pci_port_destroy(&plug->port);
		loop_remove(plug->patience);
	}
}

/* --- control --- */

static struct plug *find(struct machine *m, const char *id)
{
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (m->plug[i].card.kind && strcmp(id_of(&m->plug[i].card), id) == 0)
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

/* The port for a new card: the one it asks for, or the first that is empty. */
static struct error *choose_port(struct machine *m, unsigned port, struct plug **out)
{
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		if (m->plug[i].card.kind || (port && port != i + 1))
			continue;
		*out = &m->plug[i];
		return NULL;
	}
	return error_hint(error_new(EBUSY, port ? "port %u is not empty" : "no port is empty", port),
			  "remove a device first; a machine has %d ports", PCI_PORTS);
}

static struct error *check_id(struct machine *m, const char *id)
{
	bool taken = find(m, id);

	for (unsigned i = 0; i < m->config->disks; i++)
		taken = taken || strcmp(m->config->disk[i].id, id) == 0;
	for (unsigned i = 0; i < m->config->cds; i++)
		taken = taken || strcmp(m->config->cd[i].id, id) == 0;
	for (unsigned i = 0; i < m->config->nets; i++)
		taken = taken || strcmp(m->config->net[i].id, id) == 0;
	return taken ? error_new(EEXIST, "there is a device with the id '%s'", id) : NULL;
}

/* The rest of the call's parameters is the card; its descriptors are not taken yet. */
static struct error *read_disk(struct machine *m, struct control_call *call, struct card_config *card)
{
	if (call->fd_count == 0)
		return error_hint(error_new(EINVAL, "no descriptor came along"),
				  "pass the disk, open for reading and writing, then its parents, the nearest first");
	card->kind = CARD_DISK;
	return config_disk(call->params, m->config, &card->disk);
}

static struct error *read_card(struct machine *m, struct control_call *call, struct card_config *card)
{
	const char *kind = json_string_value(json_object_get(call->params, "kind"));
	bool is_disk = kind && strcmp(kind, kinds[CARD_DISK]) == 0;

	if (!is_disk && (!kind || strcmp(kind, kinds[CARD_NET]) != 0))
		return error_hint(error_new(EINVAL, "'%s' is not a kind of device", kind ? kind : ""),
				  "kind is disk or net");
	json_object_del(call->params, "kind");
	if (is_disk)
		return read_disk(m, call, card);
	card->kind = CARD_NET;
	return config_net(call->params, call->fds, call->fd_count, &card->net);
}

static void take_descriptors(struct control_call *call, struct card_config *card)
{
	if (card->kind == CARD_DISK) {
		static_assert(CONTROL_FDS_MAX <= DISK_CHAIN_MAX);
		card->disk.drive.fd = steal_fd(&call->fds[0]);
		card->disk.drive.parent_count = call->fd_count - 1;
		for (unsigned i = 1; i < call->fd_count; i++)
			card->disk.parent_fd[i - 1] = steal_fd(&call->fds[i]);
		return;
	}
	unsigned pairs = card->net.device.pairs;
	for (unsigned i = 0; i < call->fd_count; i++) {
		int *to = i < pairs ? &card->net.device.fd[i] : &card->net.device.vhost_fd[i - pairs];
		*to = steal_fd(&call->fds[i]);
	}
}

struct error *hotplug_add(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	struct card_config card = {};
	struct plug *plug = NULL;

	TRY(read_card(m, call, &card));
	TRY(need_running(m));
	TRY(check_id(m, id_of(&card)));
	TRY(choose_port(m, card.kind == CARD_DISK ? card.disk.port : card.net.port, &plug));
	take_descriptors(call, &card);
	plug->card = card;
	struct error *err = make_card(plug);
	if (!err)
		err = activate(plug);
	if (err)
		return error_wrap(refuse(plug, err), "add a device");
	pci_port_insert(&plug->port);
	*result = describe(plug);
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
		if (!plug->card.kind)
			continue;
		json_t *port = describe(plug);
		json_object_set_new(port, "removing", json_boolean(plug->port.removing));
		json_array_append_new(ports, port);
	}
	return ports;
}
