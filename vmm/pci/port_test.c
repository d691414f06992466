/*
 * Tests of hot-plug ports by their registers: what is behind one, when it answers, what interrupts, and that all of it
 * moves.
 */
#include "base/util.h"
#include "saved/test_stream.h"
#include "vmm/pci/port.h"

#define SLOT    30u
#define GSI     (16 + SLOT % 8)
#define WINDOW  0xd0000000ull
#define EXPRESS 0x40u /* the capability, which is the only one */
#define CONTROL (EXPRESS + 0x18)
#define STATUS  (EXPRESS + 0x1a)
#define LINK    (EXPRESS + 0x12)
#define ENABLES 0x1029u /* link, hot-plug interrupt, presence, button */
#define OFF     0x400u

struct board {
	struct bus pio, mmio;
	struct irqs irqs;
	struct pci_bus pci;
	struct pci_port port[PCI_PORTS];
	struct pci_device card;
	unsigned changes;
	bool has_card;
};

static struct board b;

static uint64_t card_read(void *self, uint64_t offset, unsigned size)
{
	return 0x5a;
}

static void card_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
}

static const struct bus_ops card_ops = {.read = card_read, .write = card_write};

static void on_changed(void *arg)
{
	((struct board *)arg)->changes++;
}

static void make_card(struct board *board, unsigned port)
{
	static const struct pci_id id = {.vendor = 0x1234, .device = 0x5678, .class_code = 0x010000};

	pci_device_init(&board->card, "card", &id, NULL, NULL);
	assert_ok(pci_device_bar(&board->card, 0, PCI_BAR_MEM64, 0x4000, &card_ops, NULL));
	assert_ok(pci_device_bar(&board->card, 2, PCI_BAR_MEM32, 0x1000, &card_ops, NULL));
	assert_ok(pci_add_behind(&board->port[port], &board->card));
	board->has_card = true;
}

static void start(struct board *board)
{
	memset(board, 0, sizeof(*board));
	bus_init(&board->pio, "port");
	bus_init(&board->mmio, "MMIO");
	assert_ok(irqs_init(&board->irqs, -1));
	assert_ok(pci_bus_init(&board->pci, &board->pio, &board->mmio, &board->irqs, 4 * GIB));
	for (unsigned i = 0; i < PCI_PORTS; i++)
		assert_ok(pci_port_init(&board->port[i], &board->pci, SLOT, i, on_changed, board));
}

static void take_out(struct board *board)
{
	if (board->has_card)
		pci_device_destroy(&board->card);
	board->has_card = false;
}

static void stop(struct board *board)
{
	take_out(board);
	for (unsigned i = 0; i < PCI_PORTS; i++)
		pci_port_destroy(&board->port[i]);
	pci_bus_destroy(&board->pci);
	irqs_destroy(&board->irqs);
}

static int setup(void **state)
{
	start(&b);
	return 0;
}

static int teardown(void **state)
{
	stop(&b);
	return 0;
}

static uint64_t at(unsigned bus, unsigned slot, unsigned function, unsigned reg)
{
	return PCI_ECAM_BASE + bus * 0x100000ull + slot * 0x8000 + function * 0x1000 + reg;
}

static uint32_t port_get(unsigned port, unsigned reg, unsigned size)
{
	return (uint32_t)bus_read(&b.mmio, at(0, SLOT, port, reg), size);
}

static void port_put(unsigned port, unsigned reg, uint32_t value, unsigned size)
{
	bus_write(&b.mmio, at(0, SLOT, port, reg), value, size);
}

static uint32_t card_get(unsigned bus, unsigned reg, unsigned size)
{
	return (uint32_t)bus_read(&b.mmio, at(bus, 0, 0, reg), size);
}

static void card_put(unsigned bus, unsigned reg, uint32_t value, unsigned size)
{
	bus_write(&b.mmio, at(bus, 0, 0, reg), value, size);
}

static void open_bridge(unsigned port, unsigned bus)
{
	port_put(port, 0x18, bus << 8 | bus << 16, 4);
	port_put(port, 0x20, (uint32_t)(WINDOW >> 16) | (uint32_t)(WINDOW >> 16) << 16, 4);
	port_put(port, 4, 6, 2);
}

static void test_header(void **state)
{
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		assert_int_equal(port_get(i, 0, 4), 0x000c1b36);
		assert_int_equal(port_get(i, 8, 4) >> 8, 0x060400);
		assert_int_equal(port_get(i, 0x0e, 1), 0x81);
		assert_int_equal(port_get(i, 0x34, 1), EXPRESS);
		assert_int_equal(port_get(i, EXPRESS, 1), 0x10);
		assert_int_equal(port_get(i, EXPRESS + 0x14, 4) >> 19, i + 1);
		assert_int_equal(port_get(i, STATUS, 2), 0);
		assert_int_equal(port_get(i, CONTROL, 2) & OFF, OFF);
		/* Closed: base above limit. */
		assert_true((port_get(i, 0x20, 2) & 0xfff0) > (port_get(i, 0x22, 2) & 0xfff0));
		assert_int_equal(port_get(i, 0x1c, 2), 0);
	}
	assert_int_equal(port_get(PCI_PORTS, 0, 4), ~0u);
	port_put(0, 0x18, ~0u, 4);
	port_put(0, 0x1c, ~0u, 4);
	port_put(0, 0x24, ~0u, 4);
	assert_int_equal(port_get(0, 0x18, 4), 0x00ffffff);
	assert_int_equal(port_get(0, 0x1c, 2), 0);
	assert_int_equal(port_get(0, 0x24, 4), 0xfff1fff1);
}

static void test_routing(void **state)
{
	make_card(&b, 1);
	pci_port_reset(&b.port[1]); /* there from power-on */
	assert_int_equal(port_get(1, LINK, 2) & 0x2000, 0x2000);
	assert_int_equal(card_get(1, 0, 4), ~0u);
	open_bridge(1, 1);
	assert_int_equal(card_get(1, 0, 4), 0x56781234);
	assert_int_equal(bus_read(&b.mmio, at(1, 1, 0, 0), 4), ~0u);
	assert_int_equal(bus_read(&b.mmio, at(1, 0, 1, 0), 4), ~0u);
	port_put(1, 0x18, 9 << 8 | 9 << 16, 4);
	assert_int_equal(card_get(1, 0, 4), ~0u);
	assert_int_equal(card_get(9, 0, 4), 0x56781234);
	port_put(1, 0x18, 0, 4); /* nobody is on bus 0 but who always was */
	assert_int_equal(card_get(0, 0, 4), 0x29c08086);
}

static void test_windows(void **state)
{
	make_card(&b, 0);
	pci_port_reset(&b.port[0]);
	open_bridge(0, 1);
	card_put(1, 0x10, (uint32_t)WINDOW + 0xfc000, 4);
	card_put(1, 0x18, (uint32_t)WINDOW + 0xff000, 4);
	assert_int_equal(bus_read(&b.mmio, WINDOW + 0xff000, 1), 0xff);
	card_put(1, 4, 6, 2);
	card_put(1, 0x18, (uint32_t)WINDOW, 4);
	assert_int_equal(bus_read(&b.mmio, WINDOW + 0xff000, 1), 0x5a);
	assert_int_equal(bus_read(&b.mmio, WINDOW, 1), 0x5a);
	card_put(1, 0x18, (uint32_t)WINDOW + 0x100000, 4);
	assert_int_equal(bus_read(&b.mmio, WINDOW + 0x100000, 1), 0xff);
	port_put(0, 0x22, (uint32_t)(WINDOW >> 16) + 0x10, 2); /* the limit goes up */
	assert_int_equal(bus_read(&b.mmio, WINDOW + 0x100000, 1), 0x5a);
	/* The 64-bit BAR in the prefetchable window, above 4 GiB. */
	port_put(0, 0x24, 0x00001000, 4);
	port_put(0, 0x26, 0x1000, 2);
	port_put(0, 0x28, 2, 4);
	port_put(0, 0x2c, 2, 4);
	card_put(1, 0x14, 2, 4);
	card_put(1, 0x10, 0x10000000, 4);
	port_put(0, 0x24, 0x10001000, 4);
	assert_int_equal(bus_read(&b.mmio, 0x210000000ull, 1), 0x5a);
	port_put(0, 0x2c, 1, 4);
	assert_int_equal(bus_read(&b.mmio, 0x210000000ull, 1), 0xff);
	port_put(0, 4, 0, 2);
	assert_int_equal(bus_read(&b.mmio, WINDOW + 0x100000, 1), 0xff);
}

static void test_insert_and_remove(void **state)
{
	open_bridge(2, 1);
	port_put(2, CONTROL, ENABLES | OFF, 2);
	make_card(&b, 2);
	pci_port_insert(&b.port[2]);
	assert_int_equal(port_get(2, STATUS, 2), 0x49);
	assert_int_equal(b.irqs.sources[GSI], 1u << 2);
	port_put(2, STATUS, 0x9, 2);
	assert_int_equal(port_get(2, STATUS, 2), 0x40);
	assert_int_equal(b.irqs.sources[GSI], 0);
	assert_int_equal(pci_port_settle(&b.port[2]), PCI_PORT_SETTLED);
	assert_int_equal(card_get(1, 0, 4), ~0u);
	port_put(2, CONTROL, ENABLES, 2);
	assert_int_equal(b.changes, 1);
	assert_int_equal(card_get(1, 0, 4), ~0u); /* the link takes a while: until it is settled */
	assert_int_equal(pci_port_settle(&b.port[2]), PCI_PORT_SETTLED);
	assert_int_equal(card_get(1, 0, 4), 0x56781234);
	assert_int_equal(port_get(2, CONTROL, 4), ENABLES | 0x01400000);
	assert_int_equal(b.irqs.sources[GSI], 1u << 2);
	port_put(2, CONTROL, ENABLES | 0x01000000, 4);
	assert_int_equal(b.irqs.sources[GSI], 0);
	/* Power off and on again: the card is reset in between. */
	port_put(2, CONTROL, ENABLES | OFF, 2);
	assert_int_equal(card_get(1, 0, 4), ~0u);
	port_put(2, CONTROL, ENABLES, 2);
	assert_int_equal(pci_port_settle(&b.port[2]), PCI_PORT_RESET_CARD);
	assert_int_equal(card_get(1, 0, 4), ~0u);
	pci_port_card_reset(&b.port[2]);
	assert_int_equal(pci_port_settle(&b.port[2]), PCI_PORT_SETTLED);
	assert_int_equal(card_get(1, 0, 4), 0x56781234);
	/* The button; the guest agrees. */
	port_put(2, STATUS, 0x100, 2);
	pci_port_press(&b.port[2]);
	assert_int_equal(port_get(2, STATUS, 2), 0x41);
	assert_int_equal(pci_port_settle(&b.port[2]), PCI_PORT_SETTLED);
	port_put(2, CONTROL, ENABLES | OFF, 2);
	assert_int_equal(pci_port_settle(&b.port[2]), PCI_PORT_EJECT);
	take_out(&b);
	pci_port_emptied(&b.port[2]);
	assert_int_equal(port_get(2, STATUS, 2), 0x109);
}

/* Pins of ports and of what is behind them share a line, and each holds it by itself. */
static void test_pins(void **state)
{
	make_card(&b, 3);
	pci_port_reset(&b.port[3]);
	for (unsigned i = 0; i < PCI_PORTS; i++) {
		port_put(i, CONTROL, ENABLES, 2);
		pci_port_press(&b.port[i]);
	}
	pci_intx(&b.card, true);
	assert_int_equal(b.irqs.sources[GSI], 1u << SLOT | 1u << 1 | 1u << 2 | 1u << 3 | 1u << 19);
	port_put(0, STATUS, 1, 2);
	pci_intx(&b.card, false);
	assert_int_equal(b.irqs.sources[GSI], 1u << 1 | 1u << 2 | 1u << 3);
}

static int save(struct board *board)
{
	cleanup_saved struct saved *s = NULL;
	int fd = memory_stream("", 0);

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "port", 1, pci_port_state, &board->port[1]));
	assert_ok(saved_unit(s, "card", 1, pci_device_state, &board->card));
	assert_ok(saved_finish(s));
	rewind_stream(fd);
	return fd;
}

static void load(struct board *board, int fd)
{
	cleanup_saved struct saved *s = NULL;

	assert_ok(saved_open(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "port", 1, pci_port_state, &board->port[1]));
	assert_ok(saved_unit(s, "card", 1, pci_device_state, &board->card));
	assert_ok(saved_finish(s));
	assert_ok(pci_port_restored(&board->port[1]));
	assert_ok(pci_device_restored(&board->card));
}

static void test_moves(void **state)
{
	make_card(&b, 1);
	pci_port_reset(&b.port[1]);
	open_bridge(1, 5);
	card_put(5, 0x10, (uint32_t)WINDOW, 4);
	card_put(5, 4, 6, 2);
	port_put(1, CONTROL, ENABLES, 2);
	pci_port_press(&b.port[1]);
	int fd = save(&b);
	stop(&b);
	start(&b);
	make_card(&b, 1);
	pci_port_reset(&b.port[1]);
	load(&b, fd);
	close(fd);
	assert_int_equal(bus_read(&b.mmio, WINDOW, 1), 0x5a);
	assert_int_equal(card_get(5, 0, 4), 0x56781234);
	assert_int_equal(port_get(1, STATUS, 2), 0x41);
	assert_int_equal(b.irqs.sources[GSI], 1u << 1);
	port_put(1, CONTROL, ENABLES | OFF, 2);
	assert_int_equal(pci_port_settle(&b.port[1]), PCI_PORT_EJECT);
}

/* The windows that firmware gave bridges far up are in what ACPI tells of. */
static void test_layout(void **state)
{
	struct pci_layout layout;

	pci_bus_layout(&b.pci, &layout);
	assert_int_equal(layout.mmio64_end, 0);
	port_put(1, 0x24, 0x20012001, 4);
	port_put(1, 0x28, 0xe0, 4);
	port_put(1, 0x2c, 0xe0, 4);
	port_put(3, 0x24, 0x7ff16001, 4);
	port_put(3, 0x28, 0xe0, 4);
	port_put(3, 0x2c, 0xe1, 4);
	pci_bus_layout(&b.pci, &layout);
	assert_int_equal(layout.mmio64_base, 0xe020000000);
	assert_int_equal(layout.mmio64_end, 0xe180000000);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_header), TEST(test_routing), TEST(test_windows), TEST(test_insert_and_remove),
		TEST(test_pins),   TEST(test_moves),   TEST(test_layout),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
