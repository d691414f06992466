/*
 * The PCI bus and the guest's two ways to configuration space; see pci.h.
 *
 * Ports: a double word at 0xCF8 chooses device and register, 0xCFC..0xCFF is its window (PCI 3.0, section 3.2.2.3.2).
 * ECAM: the address itself is bus, device, function and register (PCI Express 3.0, section 7.2.2), on a base that the
 * host bridge's PCIEXBAR holds. Both end in one pair of functions that see naturally aligned accesses of 1, 2 or 4
 * bytes: what is wider or crooked is halved until it is. Configuration space beyond 256 bytes is absent: no device here
 * has extended capabilities.
 *
 * Touches: its device tree, and the two buses it is on.
 */
#include "vmm/pci/internal.h"
#include "vmm/pci/port.h"

#include "base/util.h"

#include <errno.h>
#include <string.h>

#define PORT_ADDRESS    0xcf8
#define PORT_DATA       0xcfc
#define ADDRESS_ENABLE  0x80000000u
#define ADDRESS_BITS    0x80fffffcu /* the others read as zero */
#define FUNCTION_CONFIG 0x1000u     /* and a function */

static bool touches(unsigned offset, unsigned size, unsigned start, unsigned len)
{
	return offset < start + len && start < offset + size;
}

static uint32_t device_read(struct pci_device *dev, unsigned offset, unsigned size)
{
	uint32_t value;

	if (dev->ops && dev->ops->config_read && dev->ops->config_read(dev->self, offset, size, &value))
		return value;
	value = (uint32_t)pci_get(dev->config + offset, size);
	if (touches(offset, size, PCI_STATUS, 1)) {
		pthread_mutex_lock(&dev->lock);
		if (dev->intx)
			value |= PCI_STATUS_INTX << (8 * (PCI_STATUS - offset));
		pthread_mutex_unlock(&dev->lock);
	}
	return value;
}

static void device_write(struct pci_device *dev, unsigned offset, unsigned size, uint32_t value)
{
	if (dev->ops && dev->ops->config_write && dev->ops->config_write(dev->self, offset, size, value))
		return;
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = dev->writable[offset + i];
		uint8_t byte = (uint8_t)(value >> (8 * i));
		dev->config[offset + i] = (uint8_t)((dev->config[offset + i] & ~mask) | (byte & mask));
	}
	bool command = touches(offset, size, PCI_COMMAND, 2);
	bool bars = touches(offset, size, PCI_BAR0, PCI_BARS * 4);
	bool windows = dev->bridge && touches(offset, size, PCI_BRIDGE_WINDOWS, PCI_BRIDGE_WINDOWS_BYTES);
	bool ecam = dev == &dev->bus->host_bridge && touches(offset, size, PCIEXBAR, 8);
	if (command)
		pci_command_changed(dev);
	if (command || bars || ecam || windows)
		pci_update_mappings(dev->bus);
	bool msix = dev->msix.vectors && touches(offset, size, dev->msix.capability + 2, 2);
	if (msix)
		pci_msix_control_changed(dev);
	bool msi = dev->msi.capability && touches(offset, size, dev->msi.capability, PCI_MSI_CAP_BYTES);
	if (msi)
		pci_msi_changed(dev);
	if ((command || msi || msix) && dev->ops && dev->ops->function_changed)
		dev->ops->function_changed(dev->self);
}

/* The device that an ECAM offset names, and the register's offset in *reg. NULL when nobody is there. The bus's lock is
 * held. */
static struct pci_device *target(const struct pci_bus *bus, uint64_t where, unsigned *reg)
{
	unsigned number = (unsigned)(where >> 20), slot = where >> 15 & (PCI_SLOTS - 1), function = where >> 12 & 7;
	struct pci_device *dev = NULL;

	*reg = where & (FUNCTION_CONFIG - 1);
	if (*reg >= PCI_CONFIG_BYTES)
		return NULL;
	if (number == 0)
		return bus->device[slot][function];
	for (unsigned i = 0; i < PCI_FUNCTIONS && !dev; i++)
		dev = bus->port[i] ? pci_port_target(bus->port[i], number, slot, function) : NULL;
	return dev;
}

static uint64_t config_read(struct pci_bus *bus, uint64_t where, unsigned size)
{
	if (size > 4 || where % size != 0) {
		unsigned half = size / 2;
		uint64_t low = config_read(bus, where, half);
		return low | config_read(bus, where + half, half) << (8 * half);
	}
	unsigned reg;
	pthread_mutex_lock(&bus->lock);
	struct pci_device *dev = target(bus, where, &reg);
	uint64_t value = dev ? device_read(dev, reg, size) : bus_all_ones(size);
	pthread_mutex_unlock(&bus->lock);
	return value;
}

static void config_write(struct pci_bus *bus, uint64_t where, uint64_t value, unsigned size)
{
	if (size > 4 || where % size != 0) {
		unsigned half = size / 2;
		config_write(bus, where, value & bus_all_ones(half), half);
		config_write(bus, where + half, value >> (8 * half) & bus_all_ones(half), half);
		return;
	}
	unsigned reg;
	pthread_mutex_lock(&bus->lock);
	struct pci_device *dev = target(bus, where, &reg);
	if (dev)
		device_write(dev, reg, size, (uint32_t)value);
	pthread_mutex_unlock(&bus->lock);
}

static uint64_t ecam_read(void *self, uint64_t offset, unsigned size)
{
	return config_read(self, offset, size);
}

static void ecam_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	config_write(self, offset, value, size);
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* 0xCF8 is a register to double words only; byte accesses around it are other devices', of which there is one. */
static uint64_t address_read(void *self, uint64_t offset, unsigned size)
{
	struct pci_bus *bus = self;

	if (size == 4) {
		pthread_mutex_lock(&bus->lock);
		uint32_t value = bus->address;
		pthread_mutex_unlock(&bus->lock);
		return value;
	}
	if (size == 1 && offset == 1 && bus->reset_port)
		return bus->reset_port->read(bus->reset_port_self, 0, 1);
	return bus_all_ones(size);
}

static void address_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct pci_bus *bus = self;

	if (size == 4) {
		pthread_mutex_lock(&bus->lock);
		bus->address = (uint32_t)value & ADDRESS_BITS;
		pthread_mutex_unlock(&bus->lock);
	} else if (size == 1 && offset == 1 && bus->reset_port) {
		bus->reset_port->write(bus->reset_port_self, 0, value, 1);
	}
}

static const struct bus_ops address_ops = {.read = address_read, .write = address_write};

/* Where the window at 0xCFC points, as an ECAM offset. Returns false when it is closed. */
static bool window(struct pci_bus *bus, uint64_t offset, uint64_t *where)
{
	pthread_mutex_lock(&bus->lock);
	uint32_t address = bus->address;
	pthread_mutex_unlock(&bus->lock);
	/* Bits 23:16 bus, 15:11 device, 10:8 function, 7:2 register. */
	*where = (uint64_t)(address >> 8 & 0xffff) << 12 | (address & 0xfc) | offset;
	return address & ADDRESS_ENABLE;
}

static uint64_t data_read(void *self, uint64_t offset, unsigned size)
{
	uint64_t where;

	return window(self, offset, &where) ? config_read(self, where, size) : bus_all_ones(size);
}

static void data_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	uint64_t where;

	if (window(self, offset, &where))
		config_write(self, where, value, size);
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write};

/* What PCIEXBAR says: enable in bit 0, length in 2:1 (256, 128, 64 MiB), base in 35:26 as far as the length allows. */
static bool ecam_wanted(const struct pci_bus *bus, uint64_t *base, uint64_t *bytes)
{
	uint64_t reg = pci_get(bus->host_bridge.config + PCIEXBAR, 8);
	unsigned length = reg >> 1 & 3;

	*bytes = PCI_ECAM_BYTES >> length;
	*base = align_down(reg, *bytes);
	return (reg & 1) && length != 3 && *base != 0;
}

void pci_ecam_leave(struct pci_bus *bus)
{
	uint64_t base, bytes;

	if (!bus->ecam_mapped)
		return;
	if (ecam_wanted(bus, &base, &bytes) && base == bus->ecam_base && bytes == bus->ecam_bytes)
		return;
	bus_remove(bus->mmio, bus->ecam_base);
	bus->ecam_mapped = false;
}

bool pci_ecam_map(struct pci_bus *bus)
{
	uint64_t base, bytes;

	if (bus->ecam_mapped || !ecam_wanted(bus, &base, &bytes))
		return true;
	cleanup_error struct error *err = bus_add(bus->mmio, base, bytes, &ecam_ops, bus);
	if (err)
		return false;
	bus->ecam_base = base;
	bus->ecam_bytes = bytes;
	bus->ecam_mapped = true;
	return true;
}

static void host_bridge_init(struct pci_bus *bus)
{
	static const struct pci_id q35 = {.vendor = 0x8086, .device = 0x29c0, .class_code = 0x060000};
	struct pci_device *dev = &bus->host_bridge;

	pci_device_init(dev, "host bridge", &q35, NULL, NULL);
	pci_put(dev->config + PCIEXBAR, PCI_ECAM_BASE | 1, 8);
	pci_put(dev->writable + PCIEXBAR, 0x0ffc000007ull, 8);
}

struct error *pci_bus_init(struct pci_bus *bus, struct bus *pio, struct bus *mmio, struct irqs *irqs,
			   uint64_t mmio64_base)
{
	memset(bus, 0, sizeof(*bus));
	pthread_mutex_init(&bus->lock, NULL);
	bus->pio = pio;
	bus->mmio = mmio;
	bus->irqs = irqs;
	bus->next_io = PCI_IO_BASE;
	bus->next_mmio32 = PCI_MMIO32_BASE;
	bus->next_mmio64 = mmio64_base;
	bus->mmio64_end = mmio64_base + PCI_MMIO64_BYTES;
	host_bridge_init(bus);
	TRY(bus_add(pio, PORT_ADDRESS, 4, &address_ops, bus));
	TRY(bus_add(pio, PORT_DATA, 4, &data_ops, bus));
	TRY(pci_add(bus, 0, &bus->host_bridge));
	if (!pci_ecam_map(bus))
		return error_new(EBUSY, "put PCI configuration space at MMIO 0x%llx", PCI_ECAM_BASE);
	return NULL;
}

void pci_bus_destroy(struct pci_bus *bus)
{
	bus_remove(bus->pio, PORT_ADDRESS);
	bus_remove(bus->pio, PORT_DATA);
	if (bus->ecam_mapped)
		bus_remove(bus->mmio, bus->ecam_base);
	bus->ecam_mapped = false;
	pci_device_destroy(&bus->host_bridge);
	pthread_mutex_destroy(&bus->lock);
}

void pci_bus_reset_port(struct pci_bus *bus, const struct bus_ops *ops, void *self)
{
	bus->reset_port = ops;
	bus->reset_port_self = self;
}

static void include(struct pci_layout *layout, uint64_t base, uint64_t end)
{
	bool first = layout->mmio64_end == 0;

	layout->mmio64_base = first ? base : MIN(layout->mmio64_base, base);
	layout->mmio64_end = MAX(layout->mmio64_end, end);
}

static void include_bars(struct pci_device *dev, void *arg)
{
	for (unsigned i = 0; i < PCI_BARS; i++) {
		const struct pci_bar *bar = &dev->bar[i];
		if (bar->mapped && bar->kind == PCI_BAR_MEM64 && bar->address >= 4 * GIB)
			include(arg, bar->address, bar->address + bar->size);
	}
}

void pci_bus_layout(struct pci_bus *bus, struct pci_layout *layout)
{
	uint64_t bytes, base, end;

	*layout = (struct pci_layout){};
	pthread_mutex_lock(&bus->lock);
	if (!ecam_wanted(bus, &layout->ecam_base, &bytes))
		layout->ecam_base = PCI_ECAM_BASE;
	pci_each(bus, include_bars, layout);
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (bus->port[i] && pci_port_window64(bus->port[i], &base, &end))
			include(layout, base, end);
	pthread_mutex_unlock(&bus->lock);
}

void pci_bus_state(void *self, struct saved *s)
{
	struct pci_bus *bus = self;

	if (saved_loading(s) && bus->ecam_mapped) {
		bus_remove(bus->mmio, bus->ecam_base);
		bus->ecam_mapped = false;
	}
	bus->restore_ecam = bus->ecam_mapped;
	saved_u32(s, "address", &bus->address);
	bus->address &= ADDRESS_BITS;
	saved_bool(s, "ecam-mapped", &bus->restore_ecam);
	saved_require(s);
	saved_subsection(s, "host-bridge", true, pci_device_state, &bus->host_bridge);
}

struct error *pci_bus_restored(void *self)
{
	struct pci_bus *bus = self;

	TRY(pci_device_restored(&bus->host_bridge));
	pthread_mutex_lock(&bus->lock);
	bool mapped = !bus->restore_ecam || (pci_ecam_map(bus) && bus->ecam_mapped);
	pthread_mutex_unlock(&bus->lock);
	if (!mapped)
		return error_new(EINVAL, "put PCI configuration space where PCIEXBAR 0x%llx says",
				 (unsigned long long)pci_get(bus->host_bridge.config + PCIEXBAR, 8));
	return NULL;
}

static void stop_decoding(struct pci_device *dev, void *)
{
	dev->config[PCI_COMMAND] &= (uint8_t)~(PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
}

/*
 * The devices are reset one by one after this; until then their BARs must not stand where ECAM belongs.
 */
void pci_bus_reset(void *self)
{
	struct pci_bus *bus = self;

	pthread_mutex_lock(&bus->lock);
	bus->address = 0;
	pci_each(bus, stop_decoding, NULL);
	pthread_mutex_unlock(&bus->lock);
	pci_device_reset(&bus->host_bridge);
}
