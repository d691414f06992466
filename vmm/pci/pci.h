/*
 * PCI: a root bus of 32 slots and what stands behind its hot-plug ports (port.h), reached by ports 0xCF8/0xCFC and by
 * ECAM, with BARs that the guest may move, and MSI-X.
 *
 * A device is a set of registers in a 256-byte configuration space with a mask of what the guest may write, up to six
 * BARs, and, if it has one, an MSI-X table in one of them. Decoding follows the command register and the BARs: a BAR
 * is on its bus exactly while decoding is on and its address is usable. A BAR moved onto something else is off the bus
 * until one of the two moves away (the guest did it to itself, or is swapping two BARs that both decode).
 *
 * Locking: one mutex per PCI bus for configuration accesses, and below it one per device for its INTx level and MSI-X
 * table. BAR handlers run without either, so pci_intx() may be called from anywhere, also from a configuration
 * handler. pci_msix_signal() is hot and takes no lock.
 *
 * The numbers come from PCI Local Bus 3.0 chapter 6 and PCI Express 3.0 chapter 7.
 */
#ifndef GLINT_VMM_PCI_PCI_H
#define GLINT_VMM_PCI_PCI_H

#include "base/error.h"
#include "vmm/cpu/irq.h"
#include "vmm/memory/bus.h"

#include <pthread.h>
#include <stdint.h>

#define PCI_SLOTS        32
#define PCI_FUNCTIONS    8
#define PCI_CONFIG_BYTES 256
#define PCI_BARS         6
#define PCI_MSIX_MAX     2048

/* Where BARs are put before the guest runs (machine contract glint-q35-1). */
#define PCI_ECAM_BASE  0xE0000000ull
#define PCI_ECAM_BYTES 0x10000000ull /* 256 buses of 1 MiB */
/*
 * Buses that ACPI tells the guest of: the root and room for hot-plug ports. Not 256: Linux asks for a device at every
 * slot of every bus it is told of (pcibios_fixup_peer_bridges), two exits each, 16,000 of them at each boot.
 */
#define PCI_BUSES       16
#define PCI_MMIO32_BASE 0xC0000000ull
#define PCI_MMIO32_END  0xE0000000ull
#define PCI_IO_BASE     0xC000ull
#define PCI_IO_END      0x10000ull
/* The 64-bit window's base follows the top of RAM; its size is fixed. */
#define PCI_MMIO64_BYTES (64ull << 30)

struct pci_device;
struct pci_port;
struct pci_bus;

struct pci_ops {
	/*
	 * BAR @bar came to @address on its bus, or left it (mapped false). For ioeventfds. May be NULL. Called with
	 * the bus's configuration lock held.
	 */
	void (*bar_mapped)(void *self, unsigned bar, uint64_t address, bool mapped);
	/*
	 * Looks at an access to the device's own part of the configuration space before the plain bytes do (for
	 * capabilities that act). Returns true when it answered. May be NULL.
	 */
	bool (*config_read)(void *self, unsigned offset, unsigned size, uint32_t *value);
	bool (*config_write)(void *self, unsigned offset, unsigned size, uint32_t value);
	/*
	 * The guest wrote the command register, MSI's registers or MSI-X's control word, and what pci_bus_master() or
	 * pci_msix_enabled() say may be new. May be NULL. Called with the bus's configuration lock held.
	 */
	void (*function_changed)(void *self);
};

enum pci_bar_kind {
	PCI_BAR_NONE,
	PCI_BAR_IO,
	PCI_BAR_MEM32,
	PCI_BAR_MEM64,
	PCI_BAR_UPPER, /* the upper half of the 64-bit BAR before it */
};

struct pci_bar {
	enum pci_bar_kind kind;
	uint64_t size;     /* a power of two; at least 16 (memory: 4096) */
	uint64_t power_on; /* the address pci_add() gave */
	uint64_t address;  /* where it is on the bus, while mapped */
	bool mapped;
	bool restore_mapped; /* between load and restored: it was mapped when saved */
	const struct bus_ops *ops;
	void *self;
};

struct pci_id {
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint32_t class_code; /* 24 bits: class, subclass, interface */
	uint8_t revision;
};

struct pci_msix {
	unsigned vectors;    /* 0: the device has no MSI-X */
	unsigned capability; /* offset of the capability */
	unsigned bar;
	atomic_bool enabled;
	bool function_masked;
	unsigned failures; /* bindings that KVM refused; the first was logged */
	struct pci_msix_entry {
		uint32_t address_lo, address_hi, data, control; /* as the guest wrote them; control bit 0 masks */
		bool restore_pending; /* between load and restored: it was pending when saved */
		struct msi msi;
	} *entry;
};

struct pci_msi {
	unsigned capability; /* offset of the capability; 0: the device has no MSI */
	atomic_bool enabled;
	unsigned failures; /* bindings that KVM refused; the first was logged */
	struct msi msi;
};

struct pci_device {
	char name[32];
	struct pci_bus *bus;
	unsigned slot, function; /* 0, 0 behind a port */
	struct pci_port *port;   /* that it is behind; NULL: on the root bus */
	bool bridge;             /* its header is a bridge's */
	const struct pci_ops *ops;
	void *self;
	uint8_t config[PCI_CONFIG_BYTES];
	uint8_t writable[PCI_CONFIG_BYTES]; /* bits the guest may change */
	uint8_t power_on[PCI_CONFIG_BYTES];
	atomic_bool bus_master;
	unsigned capabilities_end;
	struct pci_bar bar[PCI_BARS];
	pthread_mutex_t lock; /* of what follows */
	bool intx;            /* the device asserts its pin */
	bool intx_disabled;   /* by the command register */
	struct pci_msix msix;
	struct pci_msi msi;
};

struct pci_bus {
	pthread_mutex_t lock;
	struct bus *pio;
	struct bus *mmio;
	struct irqs *irqs;
	uint32_t address;   /* the register at 0xCF8 */
	uint64_t ecam_base; /* where ECAM is on the bus, while mapped */
	uint64_t ecam_bytes;
	bool ecam_mapped;
	bool restore_ecam; /* between load and restored: it was mapped when saved */
	uint64_t next_mmio32, next_mmio64, mmio64_end, next_io;
	struct pci_device *device[PCI_SLOTS][PCI_FUNCTIONS]; /* on the root bus */
	struct pci_port *port[PCI_FUNCTIONS];
	struct pci_device host_bridge;
	const struct bus_ops *reset_port; /* 0xCF9, see pci_bus_reset_port() */
	void *reset_port_self;
};

/*
 * Makes the bus with the Q35 host bridge (8086:29c0, slot 0) and ECAM at PCI_ECAM_BASE, and puts 0xCF8/0xCFC on @pio.
 * The host bridge's PCIEXBAR register moves ECAM (firmware does). @mmio64_base: first address above RAM, 1 GiB aligned.
 */
[[nodiscard]] struct error *pci_bus_init(struct pci_bus *bus, struct bus *pio, struct bus *mmio, struct irqs *irqs,
					 uint64_t mmio64_base);
void pci_bus_destroy(struct pci_bus *bus);

/*
 * Byte accesses at 0xCF9 go to @ops (offset 0, size 1): the chipset's reset register stands in the middle of the
 * double word 0xCF8, which is one register to accesses of four bytes.
 */
void pci_bus_reset_port(struct pci_bus *bus, const struct bus_ops *ops, void *self);

/*
 * Prepares @dev; then BARs and capabilities are added; then pci_add() puts it into @slot and assigns addresses. A
 * device has the interrupt pin INTA unless it is a bridge (class 06). Bytes of its configuration space that the guest
 * may write beyond the standard ones: set bits in dev->writable before pci_add().
 */
void pci_device_init(struct pci_device *dev, const char *name, const struct pci_id *id, const struct pci_ops *ops,
		     void *self);
[[nodiscard]] struct error *pci_device_bar(struct pci_device *dev, unsigned bar, enum pci_bar_kind kind, uint64_t size,
					   const struct bus_ops *ops, void *self);
/*
 * Adds a capability of @size bytes (header included) whose body is @data (size - 2 bytes). Returns its offset or 0 when
 * full.
 */
unsigned pci_device_capability(struct pci_device *dev, uint8_t id, const void *data, unsigned size);
/*
 * Gives the device @vectors MSI-X vectors with table and pending bits in a 32-bit memory BAR of its own (@bar), which
 * this module serves. Accesses of the table are right for every width and alignment.
 */
[[nodiscard]] struct error *pci_device_msix(struct pci_device *dev, unsigned bar, unsigned vectors, struct irqs *irqs);

/* Gives the device MSI, of one message. */
[[nodiscard]] struct error *pci_device_msi(struct pci_device *dev, struct irqs *irqs);

/* BARs are given addresses from the windows in the order of these calls: the machine contract fixes that order. */
[[nodiscard]] struct error *pci_add(struct pci_bus *bus, unsigned slot, struct pci_device *dev);
/* The same for a function other than 0. */
[[nodiscard]] struct error *pci_add_function(struct pci_bus *bus, unsigned slot, unsigned function,
					     struct pci_device *dev);

/* Takes the device off its bus, and frees what it holds. */
void pci_device_destroy(struct pci_device *dev);

/* The line (GSI 16..23) that pin INTA of a slot is wired to; ACPI's _PRT says the same. The slot is the source. */
static inline unsigned pci_slot_gsi(unsigned slot)
{
	return 16 + slot % 8;
}

/* Sets the level of the device's INTA pin. Any thread. The interrupt-disable bit of the command register is obeyed. */
void pci_intx(struct pci_device *dev, bool high);

/* Raises MSI-X vector @vector if MSI-X is enabled; masked ones become pending. Any thread, no lock. */
void pci_msix_signal(struct pci_device *dev, unsigned vector);
bool pci_msix_enabled(const struct pci_device *dev);

/* Sends the MSI if it is on. Any thread, no lock. */
void pci_msi_signal(struct pci_device *dev);

/* True when the guest lets the device master the bus (reach memory). */
bool pci_bus_master(const struct pci_device *dev);

/*
 * Where the guest has put ECAM, and the range that holds every decoded BAR and every window of a bridge above 4 GiB
 * (both 0: there is none).
 */
struct pci_layout {
	uint64_t ecam_base;
	uint64_t mmio64_base, mmio64_end;
};
void pci_bus_layout(struct pci_bus *bus, struct pci_layout *layout);

/* Unit bodies: the bus's own registers, and the PCI part of a device (called by the device's own body as a group). */
struct saved;
void pci_bus_state(void *self, struct saved *s);
void pci_device_state(void *self, struct saved *s);
/*
 * After load: puts BARs on their buses and binds MSI-X vectors. Every vector that can fire is then signalled once: an
 * interrupt that was on its way from eventfd to LAPIC when the source stopped is in neither's saved state, and a
 * driver takes one too many for nothing but one too few for a hang. So the LAPICs must have their state before this.
 */
[[nodiscard]] struct error *pci_bus_restored(void *self);
[[nodiscard]] struct error *pci_device_restored(struct pci_device *dev);
/* Power-on state; BARs get the addresses that pci_add() gave. */
void pci_bus_reset(void *self);
void pci_device_reset(struct pci_device *dev);

#endif
