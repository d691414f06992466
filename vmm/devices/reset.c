/*
 * Software reset; see reset.h. Two bytes of state, each atomic, so there is no lock. Touches the machine's events.
 */
#include "vmm/devices/reset.h"

#define CONTROL_KIND  0x0a /* SYS_RST and FULL_RST read back, RST_CPU does not */
#define CONTROL_RESET 0x04
#define PORT_A        0x92
#define PORT_A_INIT   0x01
#define PORT_A_A20    0x02

static void request(struct reset *reset)
{
	reset->events.reset(reset->events.arg);
}

static uint64_t control_read(void *self, uint64_t offset, unsigned size)
{
	struct reset *reset = self;

	return atomic_load(&reset->control);
}

static void control_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct reset *reset = self;

	atomic_store(&reset->control, (uint8_t)(value & CONTROL_KIND));
	if (value & CONTROL_RESET)
		request(reset);
}

static uint64_t port_a_read(void *self, uint64_t offset, unsigned size)
{
	struct reset *reset = self;

	return atomic_load(&reset->port_a);
}

static void port_a_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct reset *reset = self;
	uint8_t before = atomic_exchange(&reset->port_a, (uint8_t)(value & (PORT_A_INIT | PORT_A_A20)));

	if ((value & PORT_A_INIT) && !(before & PORT_A_INIT))
		request(reset);
}

static const struct bus_ops control_ops = {.read = control_read, .write = control_write};
static const struct bus_ops port_a_ops = {.read = port_a_read, .write = port_a_write};

static void power_on(void *self)
{
	struct reset *reset = self;

	atomic_store(&reset->control, 0);
	atomic_store(&reset->port_a, PORT_A_A20);
}

struct error *reset_init(struct reset *reset, struct bus *pio, struct pci_bus *pci, const struct machine_events *events)
{
	*reset = (struct reset){.events = *events};
	power_on(reset);
	pci_bus_reset_port(pci, &control_ops, reset);
	return bus_add(pio, PORT_A, 1, &port_a_ops, reset);
}

static void state(void *self, struct saved *s)
{
	struct reset *reset = self;
	uint8_t control = atomic_load(&reset->control), port_a = atomic_load(&reset->port_a);

	saved_u8(s, "control", &control);
	saved_u8(s, "port-a", &port_a);
	atomic_store(&reset->control, control & CONTROL_KIND);
	atomic_store(&reset->port_a, port_a & (PORT_A_INIT | PORT_A_A20));
}

const struct unit_ops reset_unit = {.version = 1, .state = state, .reset = power_on};
