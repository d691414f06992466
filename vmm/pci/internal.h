/*
 * What the files of vmm/pci share: config.c carries the guest's configuration accesses to a device, device.c holds what
 * a device is and puts its BARs on the buses, msi.c and msix.c have the message-signalled interrupts.
 */
#ifndef GLINT_VMM_PCI_INTERNAL_H
#define GLINT_VMM_PCI_INTERNAL_H

#include "vmm/pci/pci.h"

#include "saved/saved.h"

/* Configuration space: PCI 3.0, figure 6-1 and sections 6.2.2 to 6.2.5. */
#define PCI_VENDOR           0x00
#define PCI_DEVICE           0x02
#define PCI_COMMAND          0x04
#define PCI_COMMAND_IO       0x0001u
#define PCI_COMMAND_MEMORY   0x0002u
#define PCI_COMMAND_MASTER   0x0004u
#define PCI_COMMAND_SERR     0x0100u
#define PCI_COMMAND_NO_INTX  0x0400u
#define PCI_STATUS           0x06
#define PCI_STATUS_INTX      0x08u
#define PCI_STATUS_CAP_LIST  0x10u
#define PCI_REVISION         0x08
#define PCI_CLASS            0x09
#define PCI_CACHE_LINE       0x0c
#define PCI_BAR0             0x10
#define PCI_SUBSYSTEM_VENDOR 0x2c
#define PCI_SUBSYSTEM        0x2e
#define PCI_CAPABILITIES     0x34
#define PCI_INTERRUPT_LINE   0x3c
#define PCI_INTERRUPT_PIN    0x3d
#define PCI_HEADER_BYTES     0x40
/* Of a bridge, what decides on decoding beyond the place of BARs. */
#define PCI_BRIDGE_WINDOWS       0x18
#define PCI_BRIDGE_WINDOWS_BYTES 0x18

/* The host bridge's register for ECAM: Intel 3 Series MCH datasheet, PCIEXBAR (D0:F0, 60h). */
#define PCIEXBAR 0x60

/* MSI: PCI 3.0, section 6.8.1, with 64-bit addresses. */
#define PCI_CAP_MSI       0x05
#define PCI_MSI_CAP_BYTES 14
#define PCI_MSI_ENABLE    0x0001u

/* MSI-X: PCI 3.0, section 6.8.2. */
#define PCI_CAP_MSIX           0x11
#define PCI_MSIX_CAP_BYTES     12
#define PCI_MSIX_ENTRY_BYTES   16
#define PCI_MSIX_ENABLE        0x8000u
#define PCI_MSIX_FUNCTION_MASK 0x4000u

/* Little-endian numbers of @size bytes in the configuration space. */
static inline uint64_t pci_get(const uint8_t *bytes, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)bytes[i] << (8 * i);
	return value;
}

static inline void pci_put(uint8_t *bytes, uint64_t value, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		bytes[i] = (uint8_t)(value >> (8 * i));
}

/* --- device.c; the bus's lock is held --- */

/* Follows a change of the registers that decide where BARs and ECAM are: first what has to go goes, then what can come
 * does. */
void pci_update_mappings(struct pci_bus *bus);

/* Takes all BARs of a device off the buses. */
void pci_unmap_device(struct pci_device *dev);

/* Follows the command register: bus mastering and the INTx gate. */
void pci_command_changed(struct pci_device *dev);

/* Drives the INTx line as level, gate, MSI and MSI-X say. The device's lock is held, too. */
void pci_update_intx(struct pci_device *dev);

/* --- config.c; the bus's lock is held --- */

/* Puts ECAM where PCIEXBAR says, or takes it off. Returns false when something else is there. */
bool pci_ecam_map(struct pci_bus *bus);
/* Takes it off the bus if it is not where PCIEXBAR says. */
void pci_ecam_leave(struct pci_bus *bus);

/* Calls @fn for every device there is, those behind ports last. */
void pci_each(struct pci_bus *bus, void (*fn)(struct pci_device *dev, void *arg), void *arg);

/* --- port.c; the bus's lock is held --- */

/* The device behind the port that bus number, slot and function lead to, if any. */
struct pci_device *pci_port_target(const struct pci_port *port, unsigned bus, unsigned slot, unsigned function);

/* Whether the port passes accesses of these addresses on. */
bool pci_port_passes(const struct pci_port *port, uint64_t address, uint64_t size);

/* The range above 4 GiB that the bridge is told to pass, whether it does so now or not. False: there is none. */
bool pci_port_window64(const struct pci_port *port, uint64_t *base, uint64_t *end);

/* --- msi.c: no effect on devices without MSI --- */

/* Follows the capability's registers. */
void pci_msi_changed(struct pci_device *dev);
void pci_msi_restored(struct pci_device *dev);
void pci_msi_destroy(struct pci_device *dev);

/* --- msix.c --- */

/* Follows the capability's control register. */
void pci_msix_control_changed(struct pci_device *dev);
void pci_msix_reset(struct pci_device *dev);
void pci_msix_state(struct pci_device *dev, struct saved *s);
void pci_msix_restored(struct pci_device *dev);
void pci_msix_destroy(struct pci_device *dev);

#endif
