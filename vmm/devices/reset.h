/*
 * The ways a PC's chipset is reset by software, each a request to the machine (the keyboard controller has another, see
 * i8042.h):
 *
 * - Port 0xCF9, the chipset's reset control (Intel ICH9 datasheet, section 13.7.5): a write with bit 2 set. ACPI's
 *   reset register and firmware use it. It lies inside PCI's double word 0xCF8, so that bus hands it on.
 * - Port 0x92, system control port A: bit 0 resets as it goes from 0 to 1; bit 1 is the gate of address line 20, which
 *   is remembered for its reader and gates nothing, as on every processor since that pin went away.
 */
#ifndef GLINT_VMM_DEVICES_RESET_H
#define GLINT_VMM_DEVICES_RESET_H

#include "vmm/devices/events.h"
#include "vmm/machine/unit.h"
#include "vmm/pci/pci.h"

#include <stdatomic.h>

struct reset {
	struct machine_events events;
	atomic_uchar control; /* 0xCF9: what kind of reset, bits 1 and 3 */
	atomic_uchar port_a;  /* 0x92 */
};

[[nodiscard]] struct error *reset_init(struct reset *reset, struct bus *pio, struct pci_bus *pci,
				       const struct machine_events *events);

extern const struct unit_ops reset_unit;

#endif
