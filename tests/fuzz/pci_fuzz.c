/*
 * Fuzzing of PCI: a guest that reads and writes configuration space by both ways, BARs and MSI-X tables at will, on a
 * bus with three devices and a fourth one behind a hot-plug port, while vectors and pins are raised and the port's
 * button is pressed beside it; with a reset and a round trip through saved state now and then.
 *
 * The input is a list of 12-byte operations. After each, the buses must be sound: regions sorted, not overlapping, and
 * every mapped BAR among them. Reads of configuration space must agree byte by byte.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "saved/saved.h"
#include "vmm/pci/port.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define DEVICES   4
#define BEHIND    3 /* the one behind the port */
#define PORT_SLOT 30u
#define OP_BYTES  12
#define OPS_MAX   256
#define HIGH_BASE (4 * GIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct card {
	struct pci_device pci;
	uint64_t mapped_at[PCI_BARS];
	uint64_t bytes;
};

static struct bus pio, mmio;
static struct irqs irqs;
static struct pci_bus pci;
static struct card card[DEVICES];
static struct pci_port port;

static void need(bool what)
{
	if (!what)
		abort();
}

static void need_ok(struct error *err)
{
	need(err == NULL);
}

static uint64_t card_read(void *self, uint64_t offset, unsigned size)
{
	const struct card *c = self;

	need(offset + size <= c->bytes);
	return offset;
}

static void card_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	const struct card *c = self;

	need(offset + size <= c->bytes);
}

static const struct bus_ops card_ops = {.read = card_read, .write = card_write};

static void bar_mapped(void *self, unsigned bar, uint64_t address, bool mapped)
{
	struct card *c = self;

	need(c->mapped_at[bar] == (mapped ? 0 : address));
	c->mapped_at[bar] = mapped ? address : 0;
}

static const struct pci_ops pci_ops = {.bar_mapped = bar_mapped};

static void changed(void *arg)
{
}

static void make(void)
{
	bus_init(&pio, "port");
	bus_init(&mmio, "MMIO");
	need_ok(irqs_init(&irqs, -1));
	need_ok(pci_bus_init(&pci, &pio, &mmio, &irqs, HIGH_BASE));
	need_ok(pci_port_init(&port, &pci, PORT_SLOT, 0, changed, NULL));
	for (unsigned i = 0; i < DEVICES; i++) {
		struct card *c = &card[i];
		const struct pci_id id = {.vendor = 0x1af4, .device = (uint16_t)(0x1040 + i), .class_code = 0x018000};
		memset(c, 0, sizeof(*c));
		c->bytes = 0x4000;
		pci_device_init(&c->pci, "card", &id, &pci_ops, c);
		need_ok(pci_device_bar(&c->pci, 0, PCI_BAR_MEM64, c->bytes, &card_ops, c));
		if (i < 2 || i == BEHIND)
			need_ok(pci_device_msix(&c->pci, 3, i ? 70 : 3, &irqs));
		if (i > 0 && i != BEHIND)
			need_ok(pci_device_bar(&c->pci, 2, i > 1 ? PCI_BAR_MEM32 : PCI_BAR_IO, i > 1 ? 4096 : 16,
					       &card_ops, c));
		need_ok(i == BEHIND ? pci_add_behind(&port, &c->pci) : pci_add(&pci, 1 + 2 * i, &c->pci));
	}
	pci_port_reset(&port);
}

static void unmake(void)
{
	for (unsigned i = 0; i < DEVICES; i++)
		pci_device_destroy(&card[i].pci);
	pci_port_destroy(&port);
	pci_bus_destroy(&pci);
	need(pio.count == 0 && mmio.count == 0);
	irqs_destroy(&irqs);
}

static void check_bus(const struct bus *bus)
{
	need(bus->count <= BUS_REGIONS_MAX && bus->generation % 2 == 0);
	for (unsigned i = 0; i + 1 < bus->count; i++)
		need(bus->region[i].base + (bus->region[i].size - 1) < bus->region[i + 1].base);
}

static void check(void)
{
	unsigned mapped[2] = {2, pci.ecam_mapped}; /* ports: the two of the bus itself */

	check_bus(&pio);
	check_bus(&mmio);
	for (unsigned i = 0; i < DEVICES; i++) {
		for (unsigned b = 0; b < PCI_BARS; b++) {
			const struct pci_bar *bar = &card[i].pci.bar[b];
			need(bar->mapped == (card[i].mapped_at[b] != 0));
			mapped[bar->kind != PCI_BAR_IO] += bar->mapped;
		}
	}
	need(pio.count == mapped[0] && mmio.count == mapped[1]);
}

/* Wide reads of the table or of configuration space give what bytes give. */
static void read_both_ways(uint64_t addr, unsigned size)
{
	uint64_t wide = bus_read(&mmio, addr, size), bytes = 0;

	for (unsigned i = 0; i < size; i++)
		bytes |= bus_read(&mmio, addr + i, 1) << (8 * i);
	/* The card's own registers answer with the offset: no claim there. */
	for (unsigned i = 0; i < DEVICES; i++) {
		for (unsigned b = 0; b < 3; b++) {
			uint64_t at = card[i].mapped_at[b];
			if (at && addr + size > at && addr < at + card[i].pci.bar[b].size)
				return;
		}
	}
	need(wide == bytes);
}

static struct error *transfer(struct saved *s)
{
	TRY(saved_unit(s, "pci", 1, pci_bus_state, &pci));
	TRY(saved_unit(s, "port", 1, pci_port_state, &port));
	for (unsigned i = 0; i < DEVICES; i++)
		TRY(saved_unit(s, "card", 1, pci_device_state, &card[i].pci));
	return NULL;
}

/* What was saved must load, into a fresh machine, with the same regions on the buses. */
static void move(void)
{
	cleanup_fd int fd = memfd_create("state", MFD_CLOEXEC);
	cleanup_saved struct saved *out = NULL, *in = NULL;
	unsigned ports = pio.count, regions = mmio.count;

	need(fd >= 0);
	need_ok(saved_create(fd, "fuzz-1", &out));
	need_ok(transfer(out));
	need_ok(saved_finish(out));
	unmake();
	make();
	need(lseek(fd, 0, SEEK_SET) == 0);
	need_ok(saved_open(fd, "fuzz-1", &in));
	need_ok(transfer(in));
	need_ok(saved_finish(in));
	need_ok(pci_bus_restored(&pci));
	need_ok(pci_port_restored(&port));
	for (unsigned i = 0; i < DEVICES; i++)
		need_ok(pci_device_restored(&card[i].pci));
	need(pio.count == ports && mmio.count == regions);
}

/* An address worth trying: in ECAM as it is, or in one of the BARs. */
static uint64_t address(uint8_t where, uint16_t offset)
{
	const struct card *c = &card[where / 8 % DEVICES];
	uint64_t bar = c->mapped_at[where % 4];

	if ((where & 0xe0) == 0x60) /* the port, or what is on its bus */
		return pci.ecam_base + offset % 0x110 +
		       (where & 1 ? PORT_SLOT << 15 : (uint64_t)port.pci.config[0x19] << 20);
	if (where & 0x80)
		return bar ? bar + offset : 0xfee00000;
	return pci.ecam_base + ((where & 0x1f) << 15) + offset % 0x110;
}

/* Of a card, with its bus number in front. */
static uint32_t slot_number(unsigned i)
{
	return i == BEHIND ? (uint32_t)port.pci.config[0x19] << 5 : 1 + 2 * i;
}

/* The port's owner does his part. */
static void settle(uint64_t how)
{
	if (how & 1)
		pci_port_insert(&port);
	if (how & 2)
		pci_port_press(&port);
	switch (pci_port_settle(&port)) {
	case PCI_PORT_SETTLED:
		break;
	case PCI_PORT_RESET_CARD:
		pci_device_reset(&card[BEHIND].pci);
		pci_port_card_reset(&port);
		break;
	case PCI_PORT_EJECT:
		pci_port_give_up(&port);
		break;
	}
}

static void step(const uint8_t *op)
{
	unsigned size = 1u << (op[1] % 4);
	uint64_t value;
	uint16_t offset;

	memcpy(&value, op + 4, sizeof(value));
	memcpy(&offset, op + 2, sizeof(offset));
	switch (op[0] % 16) {
	case 0:
	case 1:
		bus_write(&pio, 0xcf8, value, op[0] & 16 ? size : 4);
		break;
	case 2:
	case 3:
		bus_write(&pio, 0xcfc + (offset & 3), value, size);
		break;
	case 4:
		bus_read(&pio, 0xcf8 + (offset & 7), size);
		break;
	case 5: /* a BAR or the command register of a card, straight */
	case 6:
		bus_write(&pio, 0xcf8, 0x80000000u | slot_number(op[1] / 4 % DEVICES) << 11 | (4 + 4 * (offset % 8)),
			  4);
		bus_write(&pio, 0xcfc, value, 4);
		break;
	case 7: /* PCIEXBAR */
		bus_write(&pio, 0xcf8, 0x80000060u | (offset & 4), 4);
		bus_write(&pio, 0xcfc, value, 4);
		break;
	case 8: /* MSI-X control */
		bus_write(&pio, 0xcf8, 0x80000040u | (1 + 2 * (op[1] / 4 % 2)) << 11, 4);
		bus_write(&pio, 0xcfe, value, 2);
		break;
	case 9:
		pci_msix_signal(&card[op[1] % DEVICES].pci, offset);
		break;
	case 10:
		pci_intx(&card[op[1] % DEVICES].pci, value & 1);
		break;
	case 11:
		if (offset % 16 == 0)
			move();
		else if (offset % 16 == 1)
			pci_bus_reset(&pci);
		else if (offset % 16 == 2)
			pci_port_reset(&port);
		else
			pci_device_reset(&card[op[1] % DEVICES].pci);
		break;
	case 14:
		settle(value);
		break;
	case 12:
	case 13:
		read_both_ways(address(op[1], offset), size);
		break;
	default:
		bus_write(&mmio, address(op[1] / 4 * 4 + (op[0] & 16 ? 3 : 0), offset), value, size);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	make();
	for (size_t i = 0; i < size / OP_BYTES && i < OPS_MAX; i++) {
		step(data + i * OP_BYTES);
		check();
	}
	unmake();
	return 0;
}
