/*
 * PCI from the guest's side: configuration by ports or ECAM, BARs, capabilities, MSI-X. Slot s of bus b has the number
 * b * 32 + s.
 */
#ifndef GUEST_PCI_H
#define GUEST_PCI_H

#include "guest.h"

#define PCI_BUSES       4 /* behind ports */
#define PCI_COMMAND     0x04
#define PCI_COMMAND_IO  1
#define PCI_COMMAND_MEM 2
#define PCI_COMMAND_BM  4
#define PCI_INTX_OFF    (1 << 10)

uint32_t pci_read(unsigned slot, unsigned offset, unsigned size);
void pci_write(unsigned slot, unsigned offset, unsigned size, uint32_t value);
/* Where ECAM is, by the host bridge's PCIEXBAR. */
uint64_t pci_ecam(void);

/* The slot of the @nth function with this id, or -1. */
int pci_find(uint16_t vendor, uint16_t device, unsigned nth);
/* The offset of a capability behind @after (0: the first), or 0. */
unsigned pci_capability(unsigned slot, uint8_t id, unsigned after);
/* A memory BAR's address and size; mapped. */
uint64_t pci_bar(unsigned slot, unsigned bar);
uint64_t pci_bar_size(unsigned slot, unsigned bar);
void pci_set_bar(unsigned slot, unsigned bar, uint64_t address);
/* Turns on memory decoding and bus mastering. */
void pci_enable(unsigned slot);

struct msix {
	unsigned slot, capability, vectors;
	uint64_t table, pending;
};
/* False when the function has no MSI-X. */
bool msix_find(unsigned slot, struct msix *m);
void msix_enable(const struct msix *m, bool enable, bool function_mask);
/* Leads entry @i to @vector of @cpu, unmasked. */
void msix_route(const struct msix *m, unsigned i, uint8_t vector, unsigned cpu);
void msix_mask(const struct msix *m, unsigned i, bool mask);
bool msix_pending(const struct msix *m, unsigned i);

#endif
