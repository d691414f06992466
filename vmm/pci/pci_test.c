/*
 * Unit tests of PCI: configuration accesses of every width by both ways in, BARs that are sized, moved and in
 * conflict, ECAM that moves, MSI-X masks and pending bits, INTx, and saved state.
 */
#include "base/util.h"
#include "saved/test_stream.h"
#include "vmm/pci/internal.h"

#include <fcntl.h>

#define DEVICES    2
#define BAR_WIDE   0
#define BAR_IO     2
#define BAR_MSIX   3
#define WIDE_BYTES 0x4000
#define IO_BYTES   32
#define VECTORS    40
#define HIGH_BASE  (8 * GIB)

struct card {
	struct pci_device pci;
	uint64_t last_offset;
	uint64_t mapped_at[PCI_BARS]; /* 0: not */
};

struct machine {
	struct bus pio, mmio;
	struct irqs irqs;
	struct pci_bus pci;
	struct card card[DEVICES]; /* in slots 1 and 2 */
};

static uint64_t card_read(void *self, uint64_t offset, unsigned size)
{
	struct card *card = self;

	card->last_offset = offset;
	return 0xa5a5a5a5a5a5a5a5;
}

static void card_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct card *card = self;

	card->last_offset = offset;
}

static const struct bus_ops card_ops = {.read = card_read, .write = card_write};

static void bar_mapped(void *self, unsigned bar, uint64_t address, bool mapped)
{
	struct card *card = self;

	assert_int_equal(card->mapped_at[bar], mapped ? 0 : address);
	card->mapped_at[bar] = mapped ? address : 0;
}

static const struct pci_ops pci_ops = {.bar_mapped = bar_mapped};

static void add_card(struct machine *m, unsigned i)
{
	const struct pci_id id = {
		.vendor = 0x1af4, .device = (uint16_t)(0x1040 + i), .class_code = 0x018000, .revision = 1};
	struct card *card = &m->card[i];
	const uint8_t body[] = {6, 7, 8};

	memset(card, 0, sizeof(*card));
	pci_device_init(&card->pci, i ? "card 1" : "card 0", &id, &pci_ops, card);
	assert_ok(pci_device_bar(&card->pci, BAR_WIDE, PCI_BAR_MEM64, WIDE_BYTES, &card_ops, card));
	assert_ok(pci_device_bar(&card->pci, BAR_IO, PCI_BAR_IO, IO_BYTES, &card_ops, card));
	assert_int_equal(pci_device_capability(&card->pci, 9, body, 5), 0x40);
	assert_ok(pci_device_msix(&card->pci, BAR_MSIX, VECTORS, &m->irqs));
	assert_ok(pci_add(&m->pci, i + 1, &card->pci));
}

static void make(struct machine *m)
{
	bus_init(&m->pio, "port");
	bus_init(&m->mmio, "MMIO");
	assert_ok(irqs_init(&m->irqs, -1));
	assert_ok(pci_bus_init(&m->pci, &m->pio, &m->mmio, &m->irqs, HIGH_BASE));
	for (unsigned i = 0; i < DEVICES; i++)
		add_card(m, i);
}

static void unmake(struct machine *m)
{
	for (unsigned i = 0; i < DEVICES; i++)
		pci_device_destroy(&m->card[i].pci);
	pci_bus_destroy(&m->pci);
	assert_int_equal(m->pio.count, 0);
	assert_int_equal(m->mmio.count, 0);
	irqs_destroy(&m->irqs);
}

static int setup(void **state)
{
	static struct machine machine;

	make(&machine);
	*state = &machine;
	return 0;
}

static int teardown(void **state)
{
	unmake(*state);
	return 0;
}

static uint64_t ecam(unsigned slot, unsigned reg)
{
	return PCI_ECAM_BASE + (slot << 15) + reg;
}

static uint64_t get(struct machine *m, unsigned slot, unsigned reg, unsigned size)
{
	return bus_read(&m->mmio, ecam(slot, reg), size);
}

static void set(struct machine *m, unsigned slot, unsigned reg, unsigned size, uint64_t value)
{
	bus_write(&m->mmio, ecam(slot, reg), value, size);
}

static uint64_t port_get(struct machine *m, unsigned slot, unsigned reg, unsigned size)
{
	bus_write(&m->pio, 0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc), 4);
	return bus_read(&m->pio, 0xcfc + (reg & 3), size);
}

static void port_set(struct machine *m, unsigned slot, unsigned reg, unsigned size, uint64_t value)
{
	bus_write(&m->pio, 0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc), 4);
	bus_write(&m->pio, 0xcfc + (reg & 3), value, size);
}

#define DECODE (PCI_COMMAND_IO | PCI_COMMAND_MEMORY)

static void host_bridge_is_q35(void **state)
{
	struct machine *m = *state;

	assert_int_equal(port_get(m, 0, 0, 4), 0x29c08086);
	assert_int_equal(get(m, 0, 0, 4), 0x29c08086);
	assert_int_equal(get(m, 0, PCIEXBAR, 8), PCI_ECAM_BASE | 1);
	assert_int_equal(get(m, 1, PCI_VENDOR, 4), 0x10401af4);
	assert_int_equal(get(m, 1, PCI_INTERRUPT_PIN, 1), 1);
	assert_int_equal(get(m, 0, PCI_INTERRUPT_PIN, 1), 0);
}

static void absent_reads_all_ones(void **state)
{
	struct machine *m = *state;

	assert_int_equal(port_get(m, 5, 0, 4), 0xffffffff);
	assert_int_equal(port_get(m, 5, 2, 2), 0xffff);
	assert_int_equal(get(m, 5, 0, 8), UINT64_MAX);
	assert_int_equal(get(m, 1, 0x1000, 4), 0xffffffff); /* function 1 */
	assert_int_equal(get(m, 1, 0x100, 4), 0xffffffff);  /* extended space */
	assert_int_equal(get(m, 32, 0, 4), 0xffffffff);     /* bus 1 */
	assert_int_equal(bus_read(&m->mmio, PCI_ECAM_BASE + PCI_ECAM_BYTES - 4, 4), 0xffffffff);
	set(m, 5, 0, 8, 0);
	bus_write(&m->pio, 0xcf8, 1u << 11, 4); /* without the enable bit the window is closed */
	assert_int_equal(bus_read(&m->pio, 0xcfc, 4), 0xffffffff);
	bus_write(&m->pio, 0xcf8, 0xffffffff, 4);
	assert_int_equal(bus_read(&m->pio, 0xcf8, 4), 0x80fffffc);
	assert_int_equal(bus_read(&m->pio, 0xcf8, 2), 0xffff);
	bus_write(&m->pio, 0xcf8, 0, 1);
	assert_int_equal(bus_read(&m->pio, 0xcf8, 4), 0x80fffffc);
}

static void every_width_and_alignment_gives_the_same_bytes(void **state)
{
	static const unsigned sizes[] = {1, 2, 4, 8};
	struct machine *m = *state;
	uint8_t byte[PCI_CONFIG_BYTES + 8];

	memset(byte, 0xff, sizeof(byte)); /* beyond the end is absent */
	for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++)
		byte[i] = (uint8_t)get(m, 1, i, 1);
	for (unsigned k = 0; k < ARRAY_SIZE(sizes); k++) {
		for (unsigned at = 0; at < PCI_CONFIG_BYTES; at++) {
			uint64_t expected = pci_get(byte + at, sizes[k]);
			assert_int_equal(get(m, 1, at, sizes[k]), expected);
			if (sizes[k] <= 4 && at % 4 + sizes[k] <= 4)
				assert_int_equal(port_get(m, 1, at, sizes[k]), expected);
		}
	}
}

static void crooked_writes_land_byte_by_byte(void **state)
{
	struct machine *m = *state;

	set(m, 1, PCI_BAR0 + 1, 4, 0x12345678); /* across BAR 0's lower and upper half */
	assert_int_equal(get(m, 1, PCI_BAR0, 8), 0x1234564000 | 4 | (get(m, 1, PCI_BAR0 + 5, 4) << 40));
	set(m, 1, PCI_BAR0, 8, 0x0000000fedcb8000);
	assert_int_equal(get(m, 1, PCI_BAR0, 8), 0x0000000fedcb8004);
	port_set(m, 1, PCI_BAR0 + 3, 1, 0x77);
	assert_int_equal(get(m, 1, PCI_BAR0, 8), 0x0000000f77cb8004);
	port_set(m, 1, PCI_VENDOR, 4, 0);
	assert_int_equal(get(m, 1, PCI_VENDOR, 4), 0x10401af4);
	port_set(m, 1, PCI_COMMAND, 4, 0xffffffff); /* status is read-only */
	assert_int_equal(get(m, 1, PCI_COMMAND, 2), 0x0507);
	assert_int_equal(get(m, 1, PCI_STATUS, 2), PCI_STATUS_CAP_LIST);
}

static void capabilities_are_a_list(void **state)
{
	struct machine *m = *state;
	unsigned at = (unsigned)get(m, 1, PCI_CAPABILITIES, 1);

	assert_int_equal(get(m, 1, at, 1), PCI_CAP_MSIX);
	assert_int_equal(get(m, 1, at + 2, 2), VECTORS - 1);
	assert_int_equal(get(m, 1, at + 4, 4), BAR_MSIX);
	assert_int_equal(get(m, 1, at + 8, 4), 0x800 | BAR_MSIX);
	at = (unsigned)get(m, 1, at + 1, 1);
	assert_int_equal(get(m, 1, at, 4), 0x07060009);
	assert_int_equal(get(m, 1, at + 4, 1), 8);
	struct pci_device full;
	pci_device_init(&full, "full", &(struct pci_id){0}, NULL, NULL);
	uint8_t big[0x80] = {0};
	assert_int_equal(pci_device_capability(&full, 9, big, 0x80), 0x40);
	assert_int_equal(pci_device_capability(&full, 9, big, 0x44), 0);
	assert_int_equal(pci_device_capability(&full, 9, big, 0x40), 0xc0);
	pci_device_destroy(&full);
}

static void bars_can_be_sized(void **state)
{
	struct machine *m = *state;

	set(m, 1, PCI_COMMAND, 2, DECODE);
	set(m, 1, PCI_BAR0, 4, 0xffffffff);
	set(m, 1, PCI_BAR0 + 4, 4, 0xffffffff);
	assert_int_equal(get(m, 1, PCI_BAR0, 8), ~(uint64_t)(WIDE_BYTES - 1) | 4);
	assert_int_equal(m->card[0].mapped_at[BAR_WIDE], 0);
	set(m, 1, PCI_BAR0 + 8, 4, 0xffffffff);
	assert_int_equal(get(m, 1, PCI_BAR0 + 8, 4), (uint32_t)~(IO_BYTES - 1) | 1);
	assert_int_equal(m->card[0].mapped_at[BAR_IO], 0);
	set(m, 1, PCI_BAR0 + 12, 4, 0xffffffff);
	assert_int_equal(get(m, 1, PCI_BAR0 + 12, 4), 0xfffff000);
	assert_int_equal(bus_read(&m->mmio, 0xfffff000, 4), 0xffffffff);
	set(m, 1, PCI_BAR0 + 16, 4, 0xffffffff); /* there is none */
	assert_int_equal(get(m, 1, PCI_BAR0 + 16, 4), 0);
}

static void decoding_follows_the_command_register(void **state)
{
	struct machine *m = *state;
	struct card *card = &m->card[0];

	assert_int_equal(bus_read(&m->mmio, HIGH_BASE, 4), 0xffffffff);
	set(m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	assert_int_equal(card->mapped_at[BAR_WIDE], HIGH_BASE);
	assert_int_equal(card->mapped_at[BAR_IO], 0);
	assert_int_equal(bus_read(&m->mmio, HIGH_BASE + 0x123, 4), 0xa5a5a5a5);
	assert_int_equal(card->last_offset, 0x123);
	set(m, 1, PCI_COMMAND, 2, PCI_COMMAND_IO);
	assert_int_equal(card->mapped_at[BAR_WIDE], 0);
	assert_int_equal(card->mapped_at[BAR_IO], PCI_IO_BASE);
	assert_int_equal(bus_read(&m->pio, PCI_IO_BASE + 3, 1), 0xa5);
	assert_int_equal(bus_read(&m->mmio, HIGH_BASE, 4), 0xffffffff);
	set(m, 1, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
	assert_int_equal(card->mapped_at[BAR_IO], 0);
	assert_true(pci_bus_master(&card->pci));
	assert_false(pci_bus_master(&m->card[1].pci));
}

static void bars_move_while_mapped(void **state)
{
	struct machine *m = *state;
	struct card *card = &m->card[0];

	set(m, 1, PCI_COMMAND, 2, DECODE);
	set(m, 1, PCI_BAR0, 8, 16 * GIB);
	assert_int_equal(card->mapped_at[BAR_WIDE], 16 * GIB);
	assert_int_equal(bus_read(&m->mmio, HIGH_BASE, 2), 0xffff);
	assert_int_equal(bus_read(&m->mmio, 16 * GIB + 8, 2), 0xa5a5);
	set(m, 1, PCI_BAR0, 8, 0); /* not placed */
	assert_int_equal(card->mapped_at[BAR_WIDE], 0);
	set(m, 1, PCI_BAR0 + 8, 4, 0xfff0); /* the last that ends inside the port space */
	assert_int_equal(card->mapped_at[BAR_IO], 0xffe0);
	set(m, 1, PCI_BAR0 + 8, 4, 0x10000);
	assert_int_equal(card->mapped_at[BAR_IO], 0);
}

static void overlapping_bars_wait_for_each_other(void **state)
{
	struct machine *m = *state;
	struct card *a = &m->card[0], *b = &m->card[1];

	set(m, 1, PCI_COMMAND, 2, DECODE);
	set(m, 2, PCI_COMMAND, 2, DECODE);
	uint64_t at_a = a->mapped_at[BAR_WIDE], at_b = b->mapped_at[BAR_WIDE];
	assert_int_equal(at_b, at_a + WIDE_BYTES);
	set(m, 1, PCI_BAR0, 8, at_b); /* swapped with decoding on, as a guest that rebalances may */
	assert_int_equal(a->mapped_at[BAR_WIDE], 0);
	assert_int_equal(b->mapped_at[BAR_WIDE], at_b);
	set(m, 2, PCI_BAR0, 8, at_a);
	assert_int_equal(a->mapped_at[BAR_WIDE], at_b);
	assert_int_equal(b->mapped_at[BAR_WIDE], at_a);
	set(m, 2, PCI_BAR0, 8, at_b);
	assert_int_equal(b->mapped_at[BAR_WIDE], 0);
	set(m, 1, PCI_COMMAND, 2, 0);
	assert_int_equal(b->mapped_at[BAR_WIDE], at_b);
	set(m, 1, PCI_COMMAND, 2, DECODE);
	set(m, 1, PCI_BAR0 + 8, 4, 0xcf8 & ~(IO_BYTES - 1)); /* on top of the configuration ports */
	assert_int_equal(a->mapped_at[BAR_IO], 0);
	assert_int_equal(port_get(m, 0, 0, 4), 0x29c08086);
}

static void ecam_moves_with_pciexbar(void **state)
{
	struct machine *m = *state;

	port_set(m, 0, PCIEXBAR + 4, 4, 0);
	port_set(m, 0, PCIEXBAR, 4, 0xb0000001);
	assert_int_equal(bus_read(&m->mmio, 0xb0000000 + (1 << 15), 4), 0x10401af4);
	assert_int_equal(bus_read(&m->mmio, PCI_ECAM_BASE, 4), 0xffffffff);
	port_set(m, 0, PCIEXBAR, 4, 0xb4000005); /* 64 MiB */
	assert_int_equal(bus_read(&m->mmio, 0xb4000000, 4), 0x29c08086);
	assert_int_equal(bus_read(&m->mmio, 0xb0000000, 4), 0xffffffff);
	assert_int_equal(bus_read(&m->mmio, 0xb8000000, 4), 0xffffffff);
	port_set(m, 0, PCIEXBAR, 4, 0xb4000007); /* a reserved length */
	assert_int_equal(m->mmio.count, 0);
	port_set(m, 0, PCIEXBAR, 4, 0xb4000000);
	assert_int_equal(m->mmio.count, 0);
	port_set(m, 0, PCIEXBAR, 4, 0xffffffff);
	port_set(m, 0, PCIEXBAR + 4, 4, 0xffffffff);
	assert_int_equal(port_get(m, 0, PCIEXBAR, 4), 0xfc000007);
	assert_int_equal(port_get(m, 0, PCIEXBAR + 4, 4), 0xf);
	port_set(m, 0, PCIEXBAR, 4, 0xe0000001);
	assert_int_equal(bus_read(&m->mmio, 0xfe0000000, 4), 0x29c08086);
}

static void enable_msix(struct machine *m, unsigned slot, unsigned control)
{
	set(m, slot, m->card[slot - 1].pci.msix.capability + 2, 2, control);
}

/* The first address of card 0's table once decoding is on. */
static uint64_t table_of(struct machine *m)
{
	set(m, 1, PCI_COMMAND, 2, DECODE);
	return m->card[0].mapped_at[BAR_MSIX];
}

static uint64_t signals(struct machine *m, unsigned vector)
{
	uint64_t count = 0;
	ssize_t n = read(m->card[0].pci.msix.entry[vector].msi.event_fd, &count, sizeof(count));

	return n == sizeof(count) ? count : 0;
}

static void table_is_right_for_every_width(void **state)
{
	static const unsigned sizes[] = {1, 2, 4, 8};
	struct machine *m = *state;
	uint64_t table = table_of(m);
	uint8_t byte[VECTORS * 16 + 16];

	memset(byte, 0, sizeof(byte));
	for (unsigned i = 0; i < VECTORS * 16; i++) {
		bus_write(&m->mmio, table + i, i * 7 + 3, 1);
		byte[i] = (uint8_t)(i * 7 + 3);
		if (i % 16 == 0)
			byte[i] &= 0xfc;
		if (i % 16 >= 12)
			byte[i] = i % 16 == 12 ? byte[i] & 1 : 0;
	}
	for (unsigned k = 0; k < ARRAY_SIZE(sizes); k++) {
		for (unsigned at = 0; at < VECTORS * 16; at++)
			assert_int_equal(bus_read(&m->mmio, table + at, sizes[k]), pci_get(byte + at, sizes[k]));
	}
	for (unsigned k = 0; k < ARRAY_SIZE(sizes); k++) {
		for (unsigned at = 16; at < 32; at++) {
			bus_write(&m->mmio, table + 16, 0, 8);
			bus_write(&m->mmio, table + 24, 0, 8);
			bus_write(&m->mmio, table + 32, 0, 8);
			bus_write(&m->mmio, table + at, UINT64_MAX, sizes[k]);
			for (unsigned i = 16; i < 40; i++) {
				unsigned in = i >= at && i < at + sizes[k] ? 0xff : 0, r = i % 16;
				unsigned mask = r == 0 ? 0xfc : r == 12 ? 1 : r > 12 ? 0 : 0xff;
				assert_int_equal(bus_read(&m->mmio, table + i, 1), in & mask);
			}
		}
	}
	assert_int_equal(bus_read(&m->mmio, table + VECTORS * 16, 8), 0);
}

static void vectors_are_bound_while_unmasked(void **state)
{
	struct machine *m = *state;
	uint64_t table = table_of(m);
	struct pci_device *dev = &m->card[0].pci;
	const struct msi *msi = &dev->msix.entry[5].msi;

	bus_write(&m->mmio, table + 5 * 16, 0xfee01000, 8);
	bus_write(&m->mmio, table + 5 * 16 + 8, 0x41, 8); /* data, and unmasked, in one */
	assert_false(msi->bound);
	pci_msix_signal(dev, 5);
	assert_int_equal(signals(m, 5), 0); /* MSI-X is off */
	enable_msix(m, 1, 0xc000);
	assert_true(pci_msix_enabled(dev));
	assert_false(msi->bound);
	enable_msix(m, 1, 0x8000);
	assert_true(msi->bound);
	assert_int_equal(msi->address, 0xfee01000);
	assert_int_equal(msi->data, 0x41);
	assert_false(dev->msix.entry[4].msi.bound);
	pci_msix_signal(dev, 5);
	assert_int_equal(signals(m, 5), 1);
	bus_write(&m->mmio, table + 5 * 16 + 8, 0x42, 4);
	assert_int_equal(msi->data, 0x42);
	pci_msix_signal(dev, VECTORS); /* no such vector */
	enable_msix(m, 1, 0);
	assert_false(msi->bound);
}

static void masked_vectors_are_pending(void **state)
{
	struct machine *m = *state;
	uint64_t table = table_of(m), pending = table + 0x800;
	struct pci_device *dev = &m->card[0].pci;

	enable_msix(m, 1, 0x8000);
	pci_msix_signal(dev, 33);
	assert_int_equal(bus_read(&m->mmio, pending, 8), 1ull << 33);
	assert_int_equal(bus_read(&m->mmio, pending + 4, 4), 2);
	assert_int_equal(bus_read(&m->mmio, pending + 4, 1), 2);
	assert_int_equal(bus_read(&m->mmio, pending + 3, 2), 0x200);
	bus_write(&m->mmio, pending, 0, 8); /* read-only */
	assert_int_equal(bus_read(&m->mmio, pending, 8), 1ull << 33);
	bus_write(&m->mmio, table + 33 * 16 + 12, 0, 4);
	assert_int_equal(bus_read(&m->mmio, pending, 8), 0);
	assert_int_equal(signals(m, 33), 1); /* KVM takes it here: the eventfd was bound with a signal in it */
	enable_msix(m, 1, 0xc000);           /* the function's mask works on all */
	pci_msix_signal(dev, 33);
	assert_int_equal(bus_read(&m->mmio, pending, 8), 1ull << 33);
	enable_msix(m, 1, 0);
	assert_int_equal(bus_read(&m->mmio, pending, 8), 0);
	enable_msix(m, 1, 0x8000); /* what waited before it was on is owed to nobody */
	assert_int_equal(signals(m, 33), 0);
}

static void refused_bindings_are_counted(void **state)
{
	struct machine *m = *state;
	uint64_t table = table_of(m);

	enable_msix(m, 1, 0x8000);
	m->irqs.vm_fd = open("/dev/null", O_RDWR | O_CLOEXEC); /* no KVM ioctl works on it */
	assert_true(m->irqs.vm_fd >= 0);
	bus_write(&m->mmio, table + 12, 0, 4);
	bus_write(&m->mmio, table + 16 + 12, 0, 4);
	assert_int_equal(m->card[0].pci.msix.failures, 2);
	assert_false(m->card[0].pci.msix.entry[0].msi.bound);
	pci_msix_signal(&m->card[0].pci, 0);
	assert_int_equal(bus_read(&m->mmio, table + 0x800, 1), 1);
	close(m->irqs.vm_fd);
	m->irqs.vm_fd = -1;
	bus_write(&m->mmio, table + 12, 0, 4);
	assert_true(m->card[0].pci.msix.entry[0].msi.bound);
}

static void intx_obeys_the_command_register(void **state)
{
	struct machine *m = *state;
	struct pci_device *dev = &m->card[1].pci;

	pci_intx(dev, true);
	assert_int_equal(m->irqs.sources[18], 1u << 2);
	assert_int_equal(get(m, 2, PCI_STATUS, 2), PCI_STATUS_INTX | PCI_STATUS_CAP_LIST);
	assert_int_equal(get(m, 2, PCI_COMMAND, 4) >> 16, PCI_STATUS_INTX | PCI_STATUS_CAP_LIST);
	set(m, 2, PCI_COMMAND, 2, PCI_COMMAND_NO_INTX);
	assert_int_equal(m->irqs.sources[18], 0);
	assert_int_equal(get(m, 2, PCI_STATUS, 1), PCI_STATUS_INTX | PCI_STATUS_CAP_LIST);
	set(m, 2, PCI_COMMAND, 2, 0);
	assert_int_equal(m->irqs.sources[18], 1u << 2);
	enable_msix(m, 2, 0x8000); /* MSI-X takes the pin's place */
	assert_int_equal(m->irqs.sources[18], 0);
	enable_msix(m, 2, 0);
	assert_int_equal(m->irqs.sources[18], 1u << 2);
	pci_intx(dev, false);
	assert_int_equal(m->irqs.sources[18], 0);
	assert_int_equal(get(m, 2, PCI_STATUS, 1), PCI_STATUS_CAP_LIST);
}

static void a_bus_that_is_full_says_so(void **state)
{
	struct machine *m = *state;
	struct pci_device dev;

	pci_device_init(&dev, "big", &(struct pci_id){0}, NULL, NULL);
	assert_error(pci_device_bar(&dev, 5, PCI_BAR_MEM64, 4096, NULL, NULL), "BAR 5 is not free");
	assert_error(pci_device_bar(&dev, 0, PCI_BAR_MEM32, 4097, NULL, NULL), "cannot have 4097 bytes");
	assert_error(pci_device_bar(&dev, 0, PCI_BAR_IO, 8, NULL, NULL), "cannot have 8 bytes");
	assert_ok(pci_device_bar(&dev, 0, PCI_BAR_MEM64, PCI_MMIO64_BYTES, &card_ops, NULL));
	assert_error(pci_device_bar(&dev, 1, PCI_BAR_MEM32, 4096, NULL, NULL), "BAR 1 is not free");
	assert_error(pci_add(&m->pci, 3, &dev), "no room for");
	assert_error(pci_add(&m->pci, 1, &dev), "slot 1 is not free");
	assert_error(pci_add(&m->pci, 32, &dev), "slot 32 is not free");
	assert_error(pci_device_msix(&dev, 2, 0, &m->irqs), "0 MSI-X vectors");
	assert_error(pci_device_msix(&dev, 2, PCI_MSIX_MAX + 1, &m->irqs), "2049 MSI-X vectors");
	pci_device_destroy(&dev);
}

static void reset_brings_back_power_on(void **state)
{
	struct machine *m = *state;
	uint64_t table = table_of(m);

	bus_write(&m->mmio, table + 12, 0, 4);
	enable_msix(m, 1, 0x8000);
	set(m, 1, PCI_BAR0, 8, PCI_ECAM_BASE - WIDE_BYTES);
	port_set(m, 0, PCIEXBAR, 4, 0xb0000001);
	port_set(m, 1, PCI_BAR0, 4, PCI_ECAM_BASE); /* where ECAM belongs */
	port_set(m, 1, PCI_BAR0 + 4, 4, 0);
	assert_int_equal(m->card[0].mapped_at[BAR_WIDE], PCI_ECAM_BASE);
	pci_intx(&m->card[0].pci, true);
	pci_bus_reset(&m->pci);
	for (unsigned i = 0; i < DEVICES; i++)
		pci_device_reset(&m->card[i].pci);
	assert_int_equal(get(m, 0, 0, 4), 0x29c08086);
	assert_int_equal(get(m, 1, PCI_COMMAND, 2), 0);
	assert_int_equal(get(m, 1, PCI_BAR0, 8), HIGH_BASE | 4);
	assert_false(pci_msix_enabled(&m->card[0].pci));
	assert_false(m->card[0].pci.msix.entry[0].msi.bound);
	assert_int_equal(m->irqs.sources[17], 0);
	assert_int_equal(bus_read(&m->pio, 0xcf8, 4), 0);
	table_of(m);
	assert_int_equal(bus_read(&m->mmio, table + 12, 4), 1);
}

static struct error *transfer(struct machine *m, struct saved *s)
{
	TRY(saved_unit(s, "pci", 1, pci_bus_state, &m->pci));
	for (unsigned i = 0; i < DEVICES; i++)
		TRY(saved_unit(s, m->card[i].pci.name, 1, pci_device_state, &m->card[i].pci));
	return NULL;
}

static int save(struct machine *m)
{
	cleanup_saved struct saved *s = NULL;
	int fd = memory_stream("", 0);

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(transfer(m, s));
	assert_ok(saved_finish(s));
	rewind_stream(fd);
	return fd;
}

static struct error *load(struct machine *m, int fd)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_open(fd, MACHINE, &s));
	TRY(transfer(m, s));
	TRY(saved_finish(s));
	TRY(pci_bus_restored(&m->pci));
	for (unsigned i = 0; i < DEVICES; i++)
		TRY(pci_device_restored(&m->card[i].pci));
	return NULL;
}

static void state_moves_to_another_machine(void **state)
{
	static struct machine other;
	struct machine *m = *state;
	uint64_t table = table_of(m);

	set(m, 2, PCI_COMMAND, 2, DECODE | PCI_COMMAND_MASTER);
	uint64_t at_a = m->card[0].mapped_at[BAR_WIDE];
	set(m, 2, PCI_BAR0, 8, at_a); /* loses the conflict, and must lose it there */
	bus_write(&m->mmio, table, 0xfee00000, 8);
	bus_write(&m->mmio, table + 8, 0x51, 8);
	enable_msix(m, 1, 0x8000);
	pci_msix_signal(&m->card[0].pci, 7);
	pci_intx(&m->card[1].pci, true);
	port_set(m, 0, PCIEXBAR, 4, 0xb0000001);
	bus_write(&m->pio, 0xcf8, 0x80001004, 4);

	cleanup_fd int fd = save(m);
	make(&other);
	assert_ok(load(&other, fd));
	assert_int_equal(bus_read(&other.pio, 0xcf8, 4), 0x80001004);
	assert_int_equal(bus_read(&other.mmio, 0xb0000000, 4), 0x29c08086);
	assert_int_equal(bus_read(&other.mmio, PCI_ECAM_BASE, 4), 0xffffffff);
	assert_int_equal(other.card[0].mapped_at[BAR_WIDE], at_a);
	assert_int_equal(other.card[1].mapped_at[BAR_WIDE], 0);
	assert_true(pci_bus_master(&other.card[1].pci));
	assert_int_equal(other.irqs.sources[18], 1u << 2);
	assert_int_equal(other.card[0].pci.msix.entry[0].msi.data, 0x51);
	assert_int_equal(bus_read(&other.mmio, table + 0x800, 8), 1 << 7);
	assert_int_equal(signals(&other, 0), 1); /* the one that may have been on its way */
	assert_int_equal(signals(&other, 7), 1);
	assert_int_equal(signals(&other, 1), 0);

	cleanup_fd int again = save(m);
	size_t len, len_again;
	cleanup_free uint8_t *bytes = stream_bytes(fd, &len), *bytes_again = stream_bytes(again, &len_again);
	assert_int_equal(len, len_again);
	assert_memory_equal(bytes, bytes_again, len); /* saving leaves no mark */
	unmake(&other);
}

static void another_device_is_refused(void **state)
{
	static struct machine other;
	struct machine *m = *state;
	cleanup_fd int fd = save(m);

	make(&other);
	other.card[1].pci.config[PCI_REVISION] = 9;
	assert_error(load(&other, fd), "card 1 differs at byte 0x08: 0x09, not 0x01");
	unmake(&other);
}

static uint64_t reset_read(void *self, uint64_t offset, unsigned size)
{
	return *(uint8_t *)self;
}

static void reset_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	*(uint8_t *)self = (uint8_t)value;
}

static void reset_port_stands_inside_the_address_register(void **state)
{
	static const struct bus_ops ops = {.read = reset_read, .write = reset_write};
	struct machine *m = *state;
	uint8_t byte = 0;

	assert_int_equal(bus_read(&m->pio, 0xcf9, 1), 0xff);
	pci_bus_reset_port(&m->pci, &ops, &byte);
	bus_write(&m->pio, 0xcf8, 0x80000000, 4);
	bus_write(&m->pio, 0xcf9, 6, 1);
	assert_int_equal(byte, 6);
	assert_int_equal(bus_read(&m->pio, 0xcf9, 1), 6);
	assert_int_equal(bus_read(&m->pio, 0xcf8, 4), 0x80000000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(host_bridge_is_q35),
		TEST(absent_reads_all_ones),
		TEST(every_width_and_alignment_gives_the_same_bytes),
		TEST(crooked_writes_land_byte_by_byte),
		TEST(capabilities_are_a_list),
		TEST(bars_can_be_sized),
		TEST(decoding_follows_the_command_register),
		TEST(bars_move_while_mapped),
		TEST(overlapping_bars_wait_for_each_other),
		TEST(ecam_moves_with_pciexbar),
		TEST(table_is_right_for_every_width),
		TEST(vectors_are_bound_while_unmasked),
		TEST(masked_vectors_are_pending),
		TEST(refused_bindings_are_counted),
		TEST(intx_obeys_the_command_register),
		TEST(a_bus_that_is_full_says_so),
		TEST(reset_brings_back_power_on),
		TEST(state_moves_to_another_machine),
		TEST(another_device_is_refused),
		TEST(reset_port_stands_inside_the_address_register),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
