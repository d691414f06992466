/*
 * Devices that come and go while the guest runs: what stands behind the hot-plug ports (vmm/pci/port.h).
 *
 * A port is a unit ("port1"), its device a part of that: so the units of a machine are the same whatever is plugged in,
 * and a restoring process is told by name which port lacks what. Everything here runs on the main thread.
 */
#ifndef GLINT_VMM_MACHINE_HOTPLUG_H
#define GLINT_VMM_MACHINE_HOTPLUG_H

#include "vmm/control/control.h"
#include "vmm/machine/config.h"
#include "vmm/machine/unit.h"
#include "vmm/pci/port.h"
#include "vmm/virtio/virtio_pci.h"

struct machine;

/* A port and the card behind it, if any: a disk or a network interface. */
struct plug {
	struct machine *machine;
	struct pci_port port;
	struct card_config card; /* CARD_NONE: the port is empty */
	struct drive *drive;     /* a disk's; then one of these */
	struct blk *disk;
	struct nvme *nvme;
	struct net *net;
	struct virtio_pci *vp;
	struct unit unit; /* the card's */
	struct loop_source *patience;
};

/* Makes the ports, with the disks that the config puts there. */
[[nodiscard]] struct error *hotplug_create(struct machine *machine);
void hotplug_destroy(struct machine *machine);

/* As machine_activate() and machine_deactivate(), of the disks behind the ports. */
[[nodiscard]] struct error *hotplug_activate(struct machine *machine);
[[nodiscard]] struct error *hotplug_deactivate(struct machine *machine);

/* The control methods device-add and device-remove, and what status says of the ports. */
[[nodiscard]] struct error *hotplug_add(void *machine, struct control_call *call, json_t **result);
[[nodiscard]] struct error *hotplug_remove(void *machine, struct control_call *call, json_t **result);
json_t *hotplug_status(const struct machine *machine);

#endif
