/*
 * See pvpanic.h. Touches the machine's events.
 */
#include "vmm/devices/pvpanic.h"

static uint64_t port_read(void *self, uint64_t offset, unsigned size)
{
	return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void port_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct pvpanic *pvpanic = self;

	if (value & PVPANIC_CRASH_LOADED)
		pvpanic->events.crash_loaded(pvpanic->events.arg);
	else if (value & PVPANIC_PANICKED)
		pvpanic->events.panicked(pvpanic->events.arg);
}

static const struct bus_ops port_ops = {.read = port_read, .write = port_write};

struct error *pvpanic_init(struct pvpanic *pvpanic, struct bus *pio, const struct machine_events *events)
{
	*pvpanic = (struct pvpanic){.events = *events};
	return bus_add(pio, PVPANIC_PORT, 1, &port_ops, pvpanic);
}
