/*
 * A PCI device: its registers, its BARs on the buses, its INTx pin, its saved form; see pci.h.
 *
 * Registers are bytes plus a mask of writable bits, so sizing a BAR needs no code: the low bits just stay. What does
 * need code is where BARs are. It is derived anew after every write that could matter: first whatever is no longer
 * where its registers say leaves the bus, then whatever should be there and is not tries to come. With 32 devices that
 * is a walk of a few hundred words, in an access that guests make when they set up a machine; and a BAR that lost a
 * conflict gets its place by itself once the other has gone.
 *
 * Touches: the buses, the INTx line of its slot.
 */
#include "vmm/pci/internal.h"

#include "base/util.h"
#include "vmm/pci/port.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEMORY_BAR_64 0x4u
#define IO_BAR        0x1u
#define IO_TOP        0x10000ull
#define MEMORY_TOP    (1ull << 52) /* the widest guest-physical address there is */
#define BRIDGE_CLASS  0x06u
#define LINE_UNKNOWN  0xff /* PCI 3.0, section 6.2.4: nobody has said yet; ACPI does */
#define COMMAND_BITS  (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_SERR | PCI_COMMAND_NO_INTX)

void pci_device_init(struct pci_device *dev, const char *name, const struct pci_id *id, const struct pci_ops *ops,
		     void *self)
{
	memset(dev, 0, sizeof(*dev));
	snprintf(dev->name, sizeof(dev->name), "%s", name);
	pthread_mutex_init(&dev->lock, NULL);
	dev->ops = ops;
	dev->self = self;
	dev->capabilities_end = PCI_HEADER_BYTES;
	pci_put(dev->config + PCI_VENDOR, id->vendor, 2);
	pci_put(dev->config + PCI_DEVICE, id->device, 2);
	dev->config[PCI_REVISION] = id->revision;
	pci_put(dev->config + PCI_CLASS, id->class_code, 3);
	pci_put(dev->config + PCI_SUBSYSTEM_VENDOR, id->subsystem_vendor, 2);
	pci_put(dev->config + PCI_SUBSYSTEM, id->subsystem, 2);
	pci_put(dev->writable + PCI_COMMAND, COMMAND_BITS, 2);
	dev->writable[PCI_CACHE_LINE] = 0xff;
	if (id->class_code >> 16 != BRIDGE_CLASS) {
		dev->config[PCI_INTERRUPT_LINE] = LINE_UNKNOWN;
		dev->writable[PCI_INTERRUPT_LINE] = 0xff;
		dev->config[PCI_INTERRUPT_PIN] = 1;
	}
}

struct error *pci_device_bar(struct pci_device *dev, unsigned bar, enum pci_bar_kind kind, uint64_t size,
			     const struct bus_ops *ops, void *self)
{
	bool wide = kind == PCI_BAR_MEM64;
	uint64_t least = kind == PCI_BAR_IO ? 16 : PAGE_BYTES;
	uint64_t most = kind == PCI_BAR_IO ? 256 : wide ? PCI_MMIO64_BYTES : GIB;

	if (bar + wide >= PCI_BARS || dev->bar[bar].kind != PCI_BAR_NONE ||
	    (wide && dev->bar[bar + 1].kind != PCI_BAR_NONE))
		return error_new(EINVAL, "%s: BAR %u is not free", dev->name, bar);
	if (size < least || size > most || (size & (size - 1)) != 0)
		return error_new(EINVAL, "%s: BAR %u cannot have %llu bytes", dev->name, bar, (unsigned long long)size);
	dev->bar[bar] = (struct pci_bar){.kind = kind, .size = size, .ops = ops, .self = self};
	unsigned reg = PCI_BAR0 + 4 * bar;
	pci_put(dev->writable + reg, ~(size - 1), wide ? 8 : 4);
	dev->config[reg] = kind == PCI_BAR_IO ? IO_BAR : wide ? MEMORY_BAR_64 : 0;
	if (wide)
		dev->bar[bar + 1].kind = PCI_BAR_UPPER;
	return NULL;
}

unsigned pci_device_capability(struct pci_device *dev, uint8_t id, const void *data, unsigned size)
{
	unsigned offset = (unsigned)align_up(dev->capabilities_end, 4);

	if (size < 2 || size > PCI_CONFIG_BYTES - offset)
		return 0;
	/* The newest stands first in the list: nothing needs to look for its end. */
	dev->config[offset] = id;
	dev->config[offset + 1] = dev->config[PCI_CAPABILITIES];
	memcpy(dev->config + offset + 2, data, size - 2);
	dev->config[PCI_CAPABILITIES] = (uint8_t)offset;
	dev->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
	dev->capabilities_end = offset + size;
	return offset;
}

static struct error *give_address(struct pci_bus *bus, const struct pci_device *dev, struct pci_bar *bar)
{
	uint64_t *next = bar->kind == PCI_BAR_IO      ? &bus->next_io
			 : bar->kind == PCI_BAR_MEM32 ? &bus->next_mmio32
						      : &bus->next_mmio64;
	uint64_t end = bar->kind == PCI_BAR_IO      ? PCI_IO_END
		       : bar->kind == PCI_BAR_MEM32 ? PCI_MMIO32_END
						    : bus->mmio64_end;
	uint64_t address = align_up(*next, bar->size);

	if (address > end || bar->size > end - address)
		return error_hint(error_new(ENOSPC, "%s: no room for %llu bytes of PCI addresses", dev->name,
					    (unsigned long long)bar->size),
				  "give the machine fewer devices");
	bar->power_on = address;
	*next = address + bar->size;
	return NULL;
}

static uint64_t bar_register(const struct pci_device *dev, unsigned i)
{
	const struct pci_bar *bar = &dev->bar[i];
	uint64_t value = pci_get(dev->config + PCI_BAR0 + 4 * i, bar->kind == PCI_BAR_MEM64 ? 8 : 4);

	return value & ~(bar->size - 1);
}

static void set_bar_register(struct pci_device *dev, unsigned i, uint64_t address)
{
	const struct pci_bar *bar = &dev->bar[i];
	unsigned reg = PCI_BAR0 + 4 * i, bytes = bar->kind == PCI_BAR_MEM64 ? 8 : 4;
	uint64_t type = bar->kind == PCI_BAR_IO ? IO_BAR : bar->kind == PCI_BAR_MEM64 ? MEMORY_BAR_64 : 0;

	pci_put(dev->config + reg, (address & ~(bar->size - 1)) | type, bytes);
}

static bool is_bar(const struct pci_bar *bar)
{
	return bar->kind != PCI_BAR_NONE && bar->kind != PCI_BAR_UPPER;
}

static struct error *add_locked(struct pci_bus *bus, unsigned slot, unsigned function, struct pci_device *dev)
{
	if (slot >= PCI_SLOTS || function >= PCI_FUNCTIONS || bus->device[slot][function])
		return error_new(EBUSY, "%s: PCI slot %u is not free", dev->name, slot);
	for (unsigned i = 0; i < PCI_BARS; i++) {
		if (!is_bar(&dev->bar[i]))
			continue;
		TRY(give_address(bus, dev, &dev->bar[i]));
		set_bar_register(dev, i, dev->bar[i].power_on);
	}
	memcpy(dev->power_on, dev->config, sizeof(dev->power_on));
	dev->bus = bus;
	dev->slot = slot;
	dev->function = function;
	bus->device[slot][function] = dev;
	return NULL;
}

struct error *pci_add_function(struct pci_bus *bus, unsigned slot, unsigned function, struct pci_device *dev)
{
	pthread_mutex_lock(&bus->lock);
	struct error *err = add_locked(bus, slot, function, dev);
	pthread_mutex_unlock(&bus->lock);
	return err;
}

struct error *pci_add(struct pci_bus *bus, unsigned slot, struct pci_device *dev)
{
	return pci_add_function(bus, slot, 0, dev);
}

void pci_each(struct pci_bus *bus, void (*fn)(struct pci_device *dev, void *arg), void *arg)
{
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		for (unsigned function = 0; function < PCI_FUNCTIONS; function++)
			if (bus->device[slot][function])
				fn(bus->device[slot][function], arg);
	for (unsigned i = 0; i < PCI_FUNCTIONS; i++)
		if (bus->port[i] && bus->port[i]->card)
			fn(bus->port[i]->card, arg);
}

/*
 * Whether the registers put BAR @i on its bus, and where. Zero means "not placed", and all-ones is a BAR being sized,
 * which must not answer for the top of the address space meanwhile.
 */
static bool bar_wanted(const struct pci_device *dev, unsigned i, uint64_t *address)
{
	const struct pci_bar *bar = &dev->bar[i];
	unsigned command = dev->config[PCI_COMMAND];

	if (!is_bar(bar))
		return false;
	*address = bar_register(dev, i);
	if (*address == 0 || (dev->port && !pci_port_passes(dev->port, *address, bar->size)))
		return false;
	if (bar->kind == PCI_BAR_IO)
		return (command & PCI_COMMAND_IO) && *address <= IO_TOP - bar->size;
	if (bar->kind == PCI_BAR_MEM32)
		return (command & PCI_COMMAND_MEMORY) && *address < 4 * GIB - bar->size;
	return (command & PCI_COMMAND_MEMORY) && *address < MEMORY_TOP;
}

static struct bus *bar_bus(const struct pci_device *dev, unsigned i)
{
	return dev->bar[i].kind == PCI_BAR_IO ? dev->bus->pio : dev->bus->mmio;
}

static void unmap_bar(struct pci_device *dev, unsigned i)
{
	struct pci_bar *bar = &dev->bar[i];

	if (!bar->mapped)
		return;
	bus_remove(bar_bus(dev, i), bar->address);
	bar->mapped = false;
	if (dev->ops && dev->ops->bar_mapped)
		dev->ops->bar_mapped(dev->self, i, bar->address, false);
}

static struct error *map_bar(struct pci_device *dev, unsigned i, uint64_t address)
{
	struct pci_bar *bar = &dev->bar[i];

	TRY(bus_add(bar_bus(dev, i), address, bar->size, bar->ops, bar->self));
	bar->address = address;
	bar->mapped = true;
	if (dev->ops && dev->ops->bar_mapped)
		dev->ops->bar_mapped(dev->self, i, address, true);
	return NULL;
}

void pci_unmap_device(struct pci_device *dev)
{
	for (unsigned i = 0; i < PCI_BARS; i++)
		unmap_bar(dev, i);
}

static void leave(struct pci_device *dev, void *)
{
	uint64_t address;

	for (unsigned i = 0; i < PCI_BARS; i++) {
		if (dev->bar[i].mapped && (!bar_wanted(dev, i, &address) || address != dev->bar[i].address))
			unmap_bar(dev, i);
	}
}

static void come(struct pci_device *dev, void *)
{
	uint64_t address;

	for (unsigned i = 0; i < PCI_BARS; i++) {
		if (!dev->bar[i].mapped && bar_wanted(dev, i, &address))
			error_free(map_bar(dev, i, address)); /* taken: it stays off until the other has gone */
	}
}

void pci_update_mappings(struct pci_bus *bus)
{
	pci_ecam_leave(bus);
	pci_each(bus, leave, NULL);
	(void)pci_ecam_map(bus);
	pci_each(bus, come, NULL);
}

/*
 * Who holds the line: the slot, where it is a function 0. Four slots share a line, 8 apart, so that other numbers are
 * free for the functions of the ports' slot and the LPC bridge's, and from 16 for what is behind ports.
 */
static unsigned intx_source(const struct pci_device *dev)
{
	static_assert(PCI_PORTS <= 6);
	if (dev->port)
		return 16 + dev->port->pci.function;
	return dev->function ? dev->function : dev->slot;
}

void pci_update_intx(struct pci_device *dev)
{
	bool messages = atomic_load(&dev->msi.enabled) || atomic_load(&dev->msix.enabled);
	bool high = dev->intx && !dev->intx_disabled && !messages;

	if (dev->bus)
		irq_line(dev->bus->irqs, pci_slot_gsi(dev->port ? dev->port->pci.slot : dev->slot), intx_source(dev),
			 high);
}

void pci_intx(struct pci_device *dev, bool high)
{
	pthread_mutex_lock(&dev->lock);
	dev->intx = high;
	pci_update_intx(dev);
	pthread_mutex_unlock(&dev->lock);
}

void pci_command_changed(struct pci_device *dev)
{
	unsigned command = (unsigned)pci_get(dev->config + PCI_COMMAND, 2);

	atomic_store(&dev->bus_master, (command & PCI_COMMAND_MASTER) != 0);
	pthread_mutex_lock(&dev->lock);
	dev->intx_disabled = command & PCI_COMMAND_NO_INTX;
	pci_update_intx(dev);
	pthread_mutex_unlock(&dev->lock);
}

bool pci_bus_master(const struct pci_device *dev)
{
	return atomic_load(&dev->bus_master);
}

void pci_device_reset(struct pci_device *dev)
{
	struct pci_bus *bus = dev->bus;

	pthread_mutex_lock(&bus->lock);
	memcpy(dev->config, dev->power_on, sizeof(dev->config));
	for (unsigned i = 0; i < PCI_BARS; i++) {
		if (is_bar(&dev->bar[i]))
			set_bar_register(dev, i, dev->bar[i].power_on);
	}
	pci_msi_changed(dev);
	pci_msix_reset(dev);
	pthread_mutex_lock(&dev->lock);
	dev->intx = false;
	pthread_mutex_unlock(&dev->lock);
	pci_command_changed(dev);
	pci_update_mappings(bus);
	pthread_mutex_unlock(&bus->lock);
}

void pci_device_destroy(struct pci_device *dev)
{
	if (dev->bus) {
		pthread_mutex_lock(&dev->bus->lock);
		pci_unmap_device(dev);
		if (dev->port)
			dev->port->card = NULL;
		else
			dev->bus->device[dev->slot][dev->function] = NULL;
		pthread_mutex_unlock(&dev->bus->lock);
		pci_intx(dev, false);
		dev->bus = NULL;
	}
	pci_msi_destroy(dev);
	pci_msix_destroy(dev);
	pthread_mutex_destroy(&dev->lock);
}

static void bar_state(void *self, struct saved *s)
{
	struct pci_bar *bar = self;

	saved_u64(s, "power-on", &bar->power_on);
	saved_bool(s, "mapped", &bar->restore_mapped);
}

/*
 * The configuration space travels whole. What the guest cannot write belongs to the machine contract: a difference
 * there means that the stream is of another device, and the guest would see it change under its feet.
 */
static void config_state(struct pci_device *dev, struct saved *s)
{
	uint8_t config[PCI_CONFIG_BYTES];

	memcpy(config, dev->config, sizeof(config));
	saved_require(s);
	saved_bytes(s, "config", config, sizeof(config));
	for (unsigned i = 0; i < sizeof(config); i++) {
		if ((config[i] ^ dev->config[i]) & ~dev->writable[i]) {
			saved_fail(s, "this machine's %s differs at byte 0x%02x: 0x%02x, not 0x%02x", dev->name, i,
				   dev->config[i], config[i]);
			return;
		}
	}
	memcpy(dev->config, config, sizeof(config));
}

void pci_device_state(void *self, struct saved *s)
{
	struct pci_device *dev = self;

	if (saved_loading(s)) {
		pthread_mutex_lock(&dev->bus->lock);
		pci_unmap_device(dev);
		pthread_mutex_unlock(&dev->bus->lock);
	}
	for (unsigned i = 0; i < PCI_BARS; i++)
		dev->bar[i].restore_mapped = dev->bar[i].mapped;
	config_state(dev, s);
	saved_array(s, "bars", dev->bar, PCI_BARS, sizeof(dev->bar[0]), bar_state);
	saved_bool(s, "intx", &dev->intx);
	if (dev->msix.vectors)
		pci_msix_state(dev, s);
}

/*
 * Only BARs that were mapped are: they coexisted, so they fit again whatever the order, while one that had lost a
 * conflict would now, tried first, win it.
 */
static struct error *map_restored(struct pci_device *dev)
{
	for (unsigned i = 0; i < PCI_BARS; i++) {
		uint64_t address;
		if (!dev->bar[i].restore_mapped)
			continue;
		if (!bar_wanted(dev, i, &address))
			return error_new(EINVAL, "%s: BAR %u was mapped, but its registers do not say where", dev->name,
					 i);
		if (!dev->bar[i].mapped)
			TRY(error_wrap(map_bar(dev, i, address), "%s: BAR %u", dev->name, i));
	}
	return NULL;
}

struct error *pci_device_restored(struct pci_device *dev)
{
	pthread_mutex_lock(&dev->bus->lock);
	struct error *err = map_restored(dev);
	if (!err) {
		pci_msi_restored(dev);
		pci_msix_restored(dev);
		pci_command_changed(dev);
	}
	pthread_mutex_unlock(&dev->bus->lock);
	return err;
}
