/*
 * Hot-plug ports; see port.h. The slot's and the link's registers live in struct pci_port and are put together when
 * read; everything else is bytes of the configuration space. Touches its pin.
 */
#include "vmm/pci/port.h"

#include "base/util.h"
#include "vmm/pci/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A bridge's header: PCI-to-PCI Bridge 1.2, section 3.2. */
#define HEADER_TYPE         0x0e
#define HEADER_BRIDGE       0x01
#define HEADER_MULTI        0x80
#define BUS_NUMBERS         0x18
#define SECONDARY_BUS       0x19
#define MEMORY_BASE         0x20
#define MEMORY_LIMIT        0x22
#define PREFETCH_BASE       0x24
#define PREFETCH_LIMIT      0x26
#define PREFETCH_BASE_HIGH  0x28
#define PREFETCH_LIMIT_HIGH 0x2c
#define WINDOW_BITS         0xfff0u
#define WINDOW_64           0x0001u
#define BRIDGE_CONTROL      0x3e

/* The PCI Express capability: PCI Express 3.0, section 7.8. */
#define CAP_EXPRESS     0x10
#define EXPRESS_BYTES   60
#define FLAGS           0x02
#define FLAGS_ROOT_PORT 0x0142 /* version 2, root port, slot implemented */
#define FLAGS_ENDPOINT  0x0002
#define DEVICE_CAP      0x04
#define ROLE_BASED      0x8000
#define DEVICE_CONTROL  0x08
#define LINK_CAP        0x0c
#define LINK_X1         0x0011 /* one lane of 2.5 GT/s */
#define LINK_REPORTS    0x00100000
#define LINK_CONTROL    0x10
#define LINK_ACTIVE     0x2000 /* in the status */
#define SLOT_CAP        0x14
#define SLOT_CAPS       0x0004005bu /* button, power, both indicators, hot-plug, no command completed */
#define SLOT_CONTROL    0x18
#define SLOT_BITS       0x17ffu
#define POWER_OFF       0x0400u
#define HOT_PLUG_INT    0x0020u
#define INDICATORS      0x03c0u
#define INDICATORS_OFF  0x03c0u
#define INDICATORS_ON   0x01c0u /* power on, attention off */
#define PRESSED         0x0001u /* in the status */
#define PRESENCE_CHANGE 0x0008u
#define PRESENT         0x0040u
#define LINK_CHANGE     0x0100u
#define STATUS_BITS     (PRESSED | PRESENCE_CHANGE | LINK_CHANGE)
#define LINK_CHANGE_ON  0x1000u /* its enable in the control */
#define ROOT_CONTROL    0x1c

/* What follows runs with the bus's lock held, unless it says otherwise. */

static void update_pin(struct pci_port *port)
{
	/* Events 0 and 3 are enabled by the bits of the same place. */
	bool wanted = (port->status & port->control & (PRESSED | PRESENCE_CHANGE)) ||
		      ((port->status & LINK_CHANGE) && (port->control & LINK_CHANGE_ON));

	pci_intx(&port->pci, wanted && (port->control & HOT_PLUG_INT));
}

static void set_control(struct pci_port *port, uint16_t control)
{
	uint16_t before = port->control;

	port->control = control & SLOT_BITS;
	if (!((before ^ port->control) & POWER_OFF))
		return;
	if ((port->control & POWER_OFF) && port->link) {
		port->link = false;
		port->stale = true;
		port->status |= LINK_CHANGE;
		pci_update_mappings(port->pci.bus);
	}
	port->changed(port->arg);
}

static bool config_read(void *self, unsigned offset, unsigned size, uint32_t *value)
{
	struct pci_port *port = self;
	unsigned reg = (offset & ~3u) - port->capability;
	uint32_t word;

	if (reg == LINK_CONTROL)
		word = (uint32_t)pci_get(port->pci.config + (offset & ~3u), 4) | (port->link ? LINK_ACTIVE << 16 : 0u);
	else if (reg == SLOT_CONTROL)
		word = port->control | (uint32_t)(port->status | (port->card ? PRESENT : 0u)) << 16;
	else
		return false;
	*value = word >> (8 * (offset & 3)) & (uint32_t)bus_all_ones(size);
	return true;
}

static bool config_write(void *self, unsigned offset, unsigned size, uint32_t value)
{
	struct pci_port *port = self;
	uint32_t mask = (uint32_t)bus_all_ones(size) << (8 * (offset & 3));

	if ((offset & ~3u) != port->capability + SLOT_CONTROL)
		return false;
	value = value << (8 * (offset & 3)) & mask;
	port->status &= (uint16_t)~(value >> 16);
	if (mask & 0xffff)
		set_control(port, (uint16_t)((port->control & ~mask) | value));
	update_pin(port);
	return true;
}

static const struct pci_ops ops = {.config_read = config_read, .config_write = config_write};

/* --- for the bus --- */

struct pci_device *pci_port_target(const struct pci_port *port, unsigned bus, unsigned slot, unsigned function)
{
	bool here = bus != 0 && port->pci.config[SECONDARY_BUS] == bus;

	return here && slot == 0 && function == 0 && port->link ? port->card : NULL;
}

static uint64_t window(const struct pci_device *dev, unsigned low, unsigned high)
{
	uint64_t value = (pci_get(dev->config + low, 2) & WINDOW_BITS) << 16;

	return high ? value | pci_get(dev->config + high, 4) << 32 : value;
}

bool pci_port_passes(const struct pci_port *port, uint64_t address, uint64_t size)
{
	const struct pci_device *dev = &port->pci;
	uint64_t last = address + size - 1;

	if (!port->link || !(dev->config[PCI_COMMAND] & PCI_COMMAND_MEMORY))
		return false;
	if (address >= window(dev, MEMORY_BASE, 0) && last <= (window(dev, MEMORY_LIMIT, 0) | 0xfffff))
		return true;
	return address >= window(dev, PREFETCH_BASE, PREFETCH_BASE_HIGH) &&
	       last <= (window(dev, PREFETCH_LIMIT, PREFETCH_LIMIT_HIGH) | 0xfffff);
}

bool pci_port_window64(const struct pci_port *port, uint64_t *base, uint64_t *end)
{
	*base = window(&port->pci, PREFETCH_BASE, PREFETCH_BASE_HIGH);
	*end = (window(&port->pci, PREFETCH_LIMIT, PREFETCH_LIMIT_HIGH) | 0xfffff) + 1;
	return *base >= 4 * GIB && *base < *end;
}

/* --- making it --- */

static void close_windows(struct pci_device *dev)
{
	pci_put(dev->config + MEMORY_BASE, WINDOW_BITS, 2);
	pci_put(dev->config + MEMORY_LIMIT, 0, 2);
	pci_put(dev->config + PREFETCH_BASE, WINDOW_BITS | WINDOW_64, 2);
	pci_put(dev->config + PREFETCH_LIMIT, WINDOW_64, 2);
}

static void init_header(struct pci_device *dev, unsigned number)
{
	dev->bridge = true;
	dev->config[HEADER_TYPE] = HEADER_BRIDGE | HEADER_MULTI;
	dev->config[PCI_INTERRUPT_PIN] = 1;
	dev->writable[PCI_INTERRUPT_LINE] = 0xff;
	pci_put(dev->writable + BUS_NUMBERS, 0xffffff, 3);
	pci_put(dev->writable + MEMORY_BASE, WINDOW_BITS | WINDOW_BITS << 16, 4);
	pci_put(dev->writable + PREFETCH_BASE, WINDOW_BITS | WINDOW_BITS << 16, 4);
	pci_put(dev->writable + PREFETCH_BASE_HIGH, ~0ull, 8);
	pci_put(dev->writable + BRIDGE_CONTROL, 0x0003, 2);
	close_windows(dev);
}

/* Returns its offset; 0 when there is no room. */
static unsigned add_express(struct pci_device *dev, uint16_t flags, uint32_t link_cap, uint32_t slot_cap)
{
	uint8_t all[EXPRESS_BYTES] = {0};

	pci_put(all + FLAGS, flags, 2);
	pci_put(all + DEVICE_CAP, ROLE_BASED, 4);
	pci_put(all + LINK_CAP, LINK_X1 | link_cap, 4);
	pci_put(all + LINK_CONTROL + 2, LINK_X1, 2);
	pci_put(all + SLOT_CAP, slot_cap, 4);
	unsigned at = pci_device_capability(dev, CAP_EXPRESS, all + 2, sizeof(all));
	if (at == 0)
		return 0;
	pci_put(dev->writable + at + DEVICE_CONTROL, 0x7fff, 2);
	pci_put(dev->writable + at + LINK_CONTROL, 0x00c3, 2);
	if (slot_cap)
		pci_put(dev->writable + at + ROOT_CONTROL, 0x000f, 2);
	return at;
}

static void power_on(struct pci_port *port)
{
	port->control = port->card ? INDICATORS_ON : INDICATORS_OFF | POWER_OFF;
	port->status = 0;
	port->link = port->card;
	port->stale = port->removing = false;
}

struct error *pci_port_init(struct pci_port *port, struct pci_bus *bus, unsigned slot, unsigned number,
			    void (*changed)(void *arg), void *arg)
{
	static const struct pci_id id = {.vendor = 0x1b36, .device = 0x000c, .class_code = 0x060400};
	char name[16];

	*port = (struct pci_port){.changed = changed, .arg = arg};
	snprintf(name, sizeof(name), "port %u", number + 1);
	pci_device_init(&port->pci, name, &id, &ops, port);
	init_header(&port->pci, number);
	port->capability = add_express(&port->pci, FLAGS_ROOT_PORT, LINK_REPORTS | (number + 1) << 24,
				       SLOT_CAPS | (number + 1) << 19);
	power_on(port);
	TRY(pci_add_function(bus, slot, number, &port->pci));
	bus->port[number] = port;
	return NULL;
}

void pci_port_destroy(struct pci_port *port)
{
	if (!port->changed)
		return;
	if (port->pci.bus)
		port->pci.bus->port[port->pci.function] = NULL;
	pci_device_destroy(&port->pci);
}

struct error *pci_add_behind(struct pci_port *port, struct pci_device *dev)
{
	struct pci_bus *bus = port->pci.bus;

	if (add_express(dev, FLAGS_ENDPOINT, 0, 0) == 0)
		return error_new(ENOSPC, "%s: no room for the PCI Express capability", dev->name);
	memcpy(dev->power_on, dev->config, sizeof(dev->power_on));
	pthread_mutex_lock(&bus->lock);
	bool free = !port->card;
	if (free) {
		dev->bus = bus;
		dev->port = port;
		port->card = dev;
	}
	pthread_mutex_unlock(&bus->lock);
	return free ? NULL : error_new(EBUSY, "%s is not free", port->pci.name);
}

/* --- for its owner; these take the lock --- */

static void tell(struct pci_port *port, uint16_t events)
{
	pthread_mutex_lock(&port->pci.bus->lock);
	port->status |= events;
	update_pin(port);
	pthread_mutex_unlock(&port->pci.bus->lock);
}

void pci_port_insert(struct pci_port *port)
{
	tell(port, PRESENCE_CHANGE | PRESSED);
}

void pci_port_press(struct pci_port *port)
{
	port->removing = true;
	tell(port, PRESSED);
}

void pci_port_give_up(struct pci_port *port)
{
	port->removing = false;
}

void pci_port_emptied(struct pci_port *port)
{
	port->removing = port->stale = false;
	tell(port, PRESENCE_CHANGE);
}

enum pci_port_next pci_port_settle(struct pci_port *port)
{
	enum pci_port_next next = PCI_PORT_SETTLED;

	pthread_mutex_lock(&port->pci.bus->lock);
	bool off = port->control & POWER_OFF;
	if (port->card && off && port->removing) {
		next = PCI_PORT_EJECT;
	} else if (port->card && port->stale) {
		next = PCI_PORT_RESET_CARD;
	} else if (port->card && !off && !port->link) {
		port->link = true;
		port->status |= LINK_CHANGE;
		pci_update_mappings(port->pci.bus);
		update_pin(port);
	}
	pthread_mutex_unlock(&port->pci.bus->lock);
	return next;
}

void pci_port_card_reset(struct pci_port *port)
{
	pthread_mutex_lock(&port->pci.bus->lock);
	port->stale = false;
	pthread_mutex_unlock(&port->pci.bus->lock);
}

/* --- the unit --- */

void pci_port_state(void *self, struct saved *s)
{
	struct pci_port *port = self;

	saved_require(s);
	saved_subsection(s, "pci", true, pci_device_state, &port->pci);
	saved_require(s);
	saved_u16(s, "control", &port->control);
	saved_u16(s, "status", &port->status);
	saved_bool(s, "link", &port->link);
	saved_bool(s, "removing", &port->removing);
	saved_bool(s, "stale", &port->stale);
	if (!saved_loading(s))
		return;
	port->control &= SLOT_BITS;
	port->status &= STATUS_BITS;
	port->link = port->link && port->card && !(port->control & POWER_OFF);
}

struct error *pci_port_restored(struct pci_port *port)
{
	return pci_device_restored(&port->pci);
}

void pci_port_reset(struct pci_port *port)
{
	pthread_mutex_lock(&port->pci.bus->lock);
	power_on(port);
	pthread_mutex_unlock(&port->pci.bus->lock);
	pci_device_reset(&port->pci);
}
