/*
 * pvpanic: a guest's kernel tells that it panicked. One port, as on other monitors (docs/specs/pvpanic of QEMU), found
 * by its ACPI id QEMU0001, which Linux and Windows have drivers for: a read gives the events there are, a write tells
 * one. It has no state.
 */
#ifndef GLINT_VMM_DEVICES_PVPANIC_H
#define GLINT_VMM_DEVICES_PVPANIC_H

#include "vmm/devices/events.h"
#include "vmm/memory/bus.h"

#define PVPANIC_PORT         0x505
#define PVPANIC_PANICKED     0x01
#define PVPANIC_CRASH_LOADED 0x02 /* it panicked, and a crash kernel will look at it: let it */

struct pvpanic {
	struct machine_events events;
};

[[nodiscard]] struct error *pvpanic_init(struct pvpanic *pvpanic, struct bus *pio, const struct machine_events *events);

#endif
