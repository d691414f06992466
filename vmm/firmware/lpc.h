/*
 * The LPC bridge of a Q35, 00:1f.0 (Intel ICH9 datasheet, chapter 13; 8086:2918): to this machine a place for registers
 * that firmware and operating systems look at. It says where the power management block is (vmm/devices/pm.h), which
 * does not move and always decodes, so those bits are not writable. What firmware routes here for the PIC and where it
 * wants the root complex's registers is remembered; interrupts go to the IOAPIC by PCI slot, and nothing answers at
 * RCBA.
 */
#ifndef GLINT_VMM_FIRMWARE_LPC_H
#define GLINT_VMM_FIRMWARE_LPC_H

#include "vmm/machine/unit.h"
#include "vmm/pci/pci.h"

#define LPC_SLOT 31

struct lpc {
	struct pci_device pci;
};

/* @others: its slot has more functions. */
[[nodiscard]] struct error *lpc_init(struct lpc *lpc, struct pci_bus *bus, bool others);
void lpc_destroy(struct lpc *lpc);

extern const struct unit_ops lpc_unit;

#endif
