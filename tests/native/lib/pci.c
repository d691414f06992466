/* PCI; see pci.h. */
#include "pci.h"

#define ADDRESS 0xcf8
#define DATA    0xcfc

static uint16_t select(unsigned slot, unsigned offset)
{
	outl(ADDRESS, 0x80000000u | slot << 11 | (offset & 0xfc));
	return DATA + (offset & 3);
}

uint32_t pci_read(unsigned slot, unsigned offset, unsigned size)
{
	uint16_t port = select(slot, offset);

	return size == 1 ? inb(port) : size == 2 ? inw(port) : inl(port);
}

void pci_write(unsigned slot, unsigned offset, unsigned size, uint32_t value)
{
	uint16_t port = select(slot, offset);

	if (size == 1)
		outb(port, (uint8_t)value);
	else if (size == 2)
		outw(port, (uint16_t)value);
	else
		outl(port, value);
}

uint64_t pci_ecam(void)
{
	uint64_t bar = pci_read(0, 0x60, 4) | (uint64_t)pci_read(0, 0x64, 4) << 32;

	CHECK(bar & 1, "PCIEXBAR %lx is off", bar);
	return bar & 0xffffffc000000ull;
}

int pci_find(uint16_t vendor, uint16_t device, unsigned nth)
{
	for (unsigned slot = 0; slot <= PCI_BUSES * 32;
	     slot += slot < 32 ? 1 : 32) /* buses behind ports have one device */
		if (pci_read(slot, 0, 4) == ((uint32_t)device << 16 | vendor) && nth-- == 0)
			return (int)slot;
	return -1;
}

unsigned pci_capability(unsigned slot, uint8_t id, unsigned after)
{
	unsigned at = after ? pci_read(slot, after + 1, 1) : pci_read(slot, 0x34, 1);

	for (unsigned n = 0; at && n < 48; n++) {
		if (pci_read(slot, at, 1) == id)
			return at;
		at = pci_read(slot, at + 1, 1);
	}
	return 0;
}

static bool is_64(unsigned slot, unsigned bar)
{
	return (pci_read(slot, 0x10 + bar * 4, 4) & 7) == 4;
}

uint64_t pci_bar_size(unsigned slot, unsigned bar)
{
	unsigned at = 0x10 + bar * 4;
	bool wide = is_64(slot, bar);
	uint32_t command = pci_read(slot, PCI_COMMAND, 2);
	uint32_t low = pci_read(slot, at, 4), high = wide ? pci_read(slot, at + 4, 4) : 0;

	pci_write(slot, PCI_COMMAND, 2, command & ~3u);
	pci_write(slot, at, 4, ALL_ONES32);
	uint64_t mask = pci_read(slot, at, 4) & (low & 1 ? ~3u : ~15u);
	pci_write(slot, at, 4, low);
	if (wide) {
		pci_write(slot, at + 4, 4, ALL_ONES32);
		mask |= (uint64_t)pci_read(slot, at + 4, 4) << 32;
		pci_write(slot, at + 4, 4, high);
	} else if (mask) {
		mask |= 0xffffffff00000000ull;
	}
	pci_write(slot, PCI_COMMAND, 2, command);
	return mask ? ~mask + 1 : 0;
}

void pci_set_bar(unsigned slot, unsigned bar, uint64_t address)
{
	bool wide = is_64(slot, bar);

	pci_write(slot, 0x10 + bar * 4, 4, (uint32_t)address);
	if (wide)
		pci_write(slot, 0x14 + bar * 4, 4, (uint32_t)(address >> 32));
}

uint64_t pci_bar(unsigned slot, unsigned bar)
{
	uint64_t address = pci_read(slot, 0x10 + bar * 4, 4) & ~15u;

	if (is_64(slot, bar))
		address |= (uint64_t)pci_read(slot, 0x14 + bar * 4, 4) << 32;
	return map(address, pci_bar_size(slot, bar));
}

void pci_enable(unsigned slot)
{
	pci_write(slot, PCI_COMMAND, 2, pci_read(slot, PCI_COMMAND, 2) | PCI_COMMAND_MEM | PCI_COMMAND_BM);
}

bool msix_find(unsigned slot, struct msix *m)
{
	unsigned cap = pci_capability(slot, 0x11, 0);

	if (!cap)
		return false;
	uint32_t table = pci_read(slot, cap + 4, 4), pending = pci_read(slot, cap + 8, 4);
	*m = (struct msix){
		.slot = slot,
		.capability = cap,
		.vectors = (pci_read(slot, cap + 2, 2) & 0x7ff) + 1,
		.table = pci_bar(slot, table & 7) + (table & ~7u),
		.pending = pci_bar(slot, pending & 7) + (pending & ~7u),
	};
	return true;
}

void msix_enable(const struct msix *m, bool enable, bool function_mask)
{
	uint32_t control = pci_read(m->slot, m->capability + 2, 2) & 0x3fff;

	pci_write(m->slot, m->capability + 2, 2, control | (enable ? 0x8000 : 0) | (function_mask ? 0x4000 : 0));
}

void msix_route(const struct msix *m, unsigned i, uint8_t vector, unsigned cpu)
{
	uint64_t entry = m->table + i * 16;

	mmio_write32(entry, (uint32_t)msi_address(cpu));
	mmio_write32(entry + 4, 0);
	mmio_write32(entry + 8, vector);
	mmio_write32(entry + 12, 0);
}

void msix_mask(const struct msix *m, unsigned i, bool mask)
{
	mmio_write32(m->table + i * 16 + 12, mask);
}

bool msix_pending(const struct msix *m, unsigned i)
{
	return mmio_read32(m->pending + i / 32 * 4) >> i % 32 & 1;
}
