/*
 * Tests of pvpanic and of the watchdog by a clock of their own, as Linux's i6300esb driver drives it.
 */
#include "base/util.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/test_bench.h"
#include "vmm/devices/watchdog.h"

#define SLOT   7
#define MS     1000000ull
#define UNIT   (NS * 32768 / 33000000)
#define NS     1000000000ull
#define RELOAD 0x0c
#define STATUS 0x08
#define LOCK   0x68
#define CONFIG 0x60

struct board {
	struct bench bench;
	struct bus mmio;
	struct pci_bus pci;
	struct watchdog dog;
	struct pvpanic pvpanic;
	unsigned barks, panics, crashes;
};

static uint64_t host;

static uint64_t fake_now(void)
{
	return host;
}

static void on_watchdog(void *arg)
{
	((struct board *)arg)->barks++;
}

static void on_panicked(void *arg)
{
	((struct board *)arg)->panics++;
}

static void on_crash_loaded(void *arg)
{
	((struct board *)arg)->crashes++;
}

static void config_write(struct board *b, unsigned reg, uint32_t value, unsigned size)
{
	bus_write(&b->bench.pio, 0xcf8, 0x80000000u | SLOT << 11 | (reg & ~3u), 4);
	bus_write(&b->bench.pio, 0xcfc + (reg & 3), value, size);
}

static uint32_t config_read(struct board *b, unsigned reg, unsigned size)
{
	bus_write(&b->bench.pio, 0xcf8, 0x80000000u | SLOT << 11 | (reg & ~3u), 4);
	return (uint32_t)bus_read(&b->bench.pio, 0xcfc + (reg & 3), size);
}

static void start(struct board *b)
{
	const struct machine_events events = {
		.watchdog = on_watchdog, .panicked = on_panicked, .crash_loaded = on_crash_loaded, .arg = b};

	memset(b, 0, sizeof(*b));
	bench_init(&b->bench);
	bus_init(&b->mmio, "MMIO");
	assert_ok(pci_bus_init(&b->pci, &b->bench.pio, &b->mmio, &b->bench.irqs, 4 * GIB));
	assert_ok(watchdog_init(&b->dog, &b->pci, SLOT, b->bench.loop, &events));
	assert_ok(pvpanic_init(&b->pvpanic, &b->bench.pio, &events));
	b->dog.now = fake_now;
	watchdog_unit.resume(&b->dog);
	config_write(b, 4, 2, 2);
}

static void stop(struct board *b)
{
	watchdog_destroy(&b->dog);
	pci_bus_destroy(&b->pci);
	bench_destroy(&b->bench);
}

static int setup(void **state)
{
	struct board *b = malloc(sizeof(*b));

	assert_non_null(b);
	start(b);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	stop(*state);
	free(*state);
	return 0;
}

static uint64_t reg(const struct board *b, unsigned offset)
{
	(void)b;
	return PCI_MMIO32_BASE + offset;
}

static uint32_t get(struct board *b, unsigned offset, unsigned size)
{
	return (uint32_t)bus_read(&b->mmio, reg(b, offset), size);
}

/* Without the sequence before it. */
static void put_locked(struct board *b, unsigned offset, uint32_t value, unsigned size)
{
	bus_write(&b->mmio, reg(b, offset), value, size);
}

static void put(struct board *b, unsigned offset, uint32_t value, unsigned size)
{
	put_locked(b, RELOAD, 0x80, 2);
	put_locked(b, RELOAD, 0x86, 2);
	put_locked(b, offset, value, size);
}

/* Lets @ns go by, and the watchdog see it. */
static void pass(struct board *b, uint64_t ns)
{
	host += ns;
	loop_timer_set(b->dog.timer, 1);
	bench_run(&b->bench, 3);
}

static void enable(struct board *b, uint32_t preload, uint16_t config)
{
	config_write(b, CONFIG, config, 2);
	put(b, 0, preload, 4);
	put(b, 4, preload, 4);
	put(b, RELOAD, 0x100, 2);
	config_write(b, LOCK, 2, 1);
}

static void test_identity(void **state)
{
	struct board *b = *state;

	assert_int_equal(config_read(b, 0, 4), 0x25ab8086);
	assert_int_equal(get(b, 0, 4), 0xfffff);
	assert_int_equal(get(b, 4, 4), 0xfffff);
	assert_int_equal(get(b, 0x20, 4), 0);
}

static void test_unlock(void **state)
{
	struct board *b = *state;

	put_locked(b, 0, 5, 4);
	assert_int_equal(get(b, 0, 4), 0xfffff);
	put(b, 0, 0xfff00005, 4);
	assert_int_equal(get(b, 0, 4), 5);
	assert_int_equal(get(b, 1, 2), 0);
	put_locked(b, 0, 6, 4); /* it holds for one write */
	assert_int_equal(get(b, 0, 4), 5);
	put_locked(b, RELOAD, 0x86, 2); /* the wrong order */
	put_locked(b, RELOAD, 0x80, 2);
	put_locked(b, 0, 7, 4);
	assert_int_equal(get(b, 0, 4), 5);
	put_locked(b, RELOAD, 0x80, 2); /* something between */
	put_locked(b, 4, 1, 4);
	put_locked(b, RELOAD, 0x86, 2);
	put_locked(b, 0, 8, 4);
	assert_int_equal(get(b, 0, 4), 5);
	assert_int_equal(get(b, 4, 4), 0xfffff);
}

static void test_two_stages(void **state)
{
	struct board *b = *state;

	enable(b, 1000, 3);
	pass(b, 999 * UNIT);
	assert_int_equal(get(b, STATUS, 2), 0);
	pass(b, 2 * UNIT);
	assert_int_equal(get(b, STATUS, 2), 1);
	assert_int_equal(b->barks, 0);
	pass(b, 997 * UNIT);
	assert_int_equal(b->barks, 0);
	pass(b, 4 * UNIT);
	assert_int_equal(b->barks, 1);
	assert_int_equal(get(b, RELOAD, 2), 0x200);
	pass(b, 5000 * UNIT); /* once */
	assert_int_equal(b->barks, 1);
	watchdog_unit.reset(&b->dog);
	config_write(b, 4, 2, 2);
	assert_int_equal(get(b, RELOAD, 2), 0x200); /* the next kernel finds out */
	assert_int_equal(get(b, 0, 4), 0xfffff);
	assert_int_equal(config_read(b, LOCK, 1), 0);
	put(b, RELOAD, 0x200, 2);
	assert_int_equal(get(b, RELOAD, 2), 0);
}

static void test_feeding(void **state)
{
	struct board *b = *state;

	enable(b, 1000, 3);
	for (unsigned i = 0; i < 5; i++) {
		pass(b, 1500 * UNIT); /* into the second stage */
		put(b, RELOAD, 0x100, 2);
	}
	assert_int_equal(b->barks, 0);
	config_write(b, LOCK, 0, 1); /* off */
	pass(b, 5000 * UNIT);
	assert_int_equal(b->barks, 0);
	assert_int_equal(get(b, RELOAD, 2), 0);
	put(b, RELOAD, 0x100, 2); /* a reload of what is off starts nothing */
	pass(b, 5000 * UNIT);
	assert_int_equal(b->barks, 0);
}

static void test_lock(void **state)
{
	struct board *b = *state;

	enable(b, 1000, 3);
	config_write(b, LOCK, 3, 1);
	config_write(b, LOCK, 0, 1);
	assert_int_equal(config_read(b, LOCK, 1), 3);
	config_write(b, LOCK, 0, 4);
	assert_int_equal(config_read(b, LOCK, 1), 3);
	pass(b, 1001 * UNIT);
	pass(b, 1001 * UNIT);
	assert_int_equal(b->barks, 1);
}

static void test_pin(void **state)
{
	struct board *b = *state;
	unsigned gsi = pci_slot_gsi(SLOT);

	enable(b, 10, 0); /* IRQ */
	pass(b, 11 * UNIT);
	assert_int_equal(b->bench.irqs.sources[gsi], 1u << SLOT);
	put_locked(b, STATUS, 1, 2);
	assert_int_equal(b->bench.irqs.sources[gsi], 0);
	config_write(b, LOCK, 0, 1);
	enable(b, 10, 3); /* none */
	pass(b, 11 * UNIT);
	assert_int_equal(b->bench.irqs.sources[gsi], 0);
	assert_int_equal(get(b, STATUS, 2), 1);
}

static void test_output_off(void **state)
{
	struct board *b = *state;

	enable(b, 10, 0x23);
	pass(b, 11 * UNIT);
	pass(b, 11 * UNIT);
	assert_int_equal(b->barks, 0);
	assert_int_equal(get(b, RELOAD, 2), 0x200);
}

/* The shortest stage that can be asked for, over and over. */
static void test_free_run(void **state)
{
	struct board *b = *state;

	config_write(b, CONFIG, 7, 2);
	put(b, 0, 0, 4);
	config_write(b, LOCK, 6, 1);
	for (unsigned i = 0; i < 10; i++) {
		pass(b, 2 * MS);
		assert_int_equal(get(b, STATUS, 2), 1);
		put_locked(b, STATUS, 1, 2);
	}
	assert_int_equal(b->barks, 0);
	pass(b, MS / 2);
	assert_int_equal(get(b, STATUS, 2), 0);
}

/* The longest: nothing overflows. */
static void test_longest(void **state)
{
	struct board *b = *state;

	enable(b, 0xfffff, 3);
	pass(b, 1000 * NS);
	assert_int_equal(get(b, STATUS, 2), 0);
	pass(b, 100 * NS);
	assert_int_equal(get(b, STATUS, 2), 1);
	pass(b, 1000 * NS);
	assert_int_equal(b->barks, 0);
}

/* A pause and a move take no time off it. */
static void test_moves(void **state)
{
	struct board *b = *state, *other = malloc(sizeof(*other));

	assert_non_null(other);
	enable(b, 1000, 3);
	pass(b, 1400 * UNIT);
	put(b, RELOAD, 0x100, 2);
	pass(b, 700 * UNIT);
	watchdog_unit.pause(&b->dog);
	pass(b, 9000 * UNIT);
	assert_int_equal(get(b, STATUS, 2), 1);
	assert_int_equal(b->barks, 0);
	int fd = bench_save(&watchdog_unit, &b->dog);
	start(other);
	watchdog_unit.pause(&other->dog);
	assert_ok(bench_load(&watchdog_unit, &other->dog, fd));
	close(fd);
	host += 5000 * UNIT;
	watchdog_unit.resume(&other->dog);
	pass(other, 290 * UNIT);
	assert_int_equal(other->dog.stage, 1);
	pass(other, 20 * UNIT);
	assert_int_equal(other->dog.stage, 2);
	pass(other, 1001 * UNIT);
	assert_int_equal(other->barks, 1);
	assert_int_equal(config_read(other, LOCK, 1), 2);
	stop(other);
	free(other);
}

static void test_pvpanic(void **state)
{
	struct board *b = *state;

	assert_int_equal(in8(&b->bench, PVPANIC_PORT), 3);
	out8(&b->bench, PVPANIC_PORT, 0);
	out8(&b->bench, PVPANIC_PORT, 0xfc);
	assert_int_equal(b->panics + b->crashes, 0);
	out8(&b->bench, PVPANIC_PORT, 1);
	assert_int_equal(b->panics, 1);
	out8(&b->bench, PVPANIC_PORT, 2);
	out8(&b->bench, PVPANIC_PORT, 3);
	assert_int_equal(b->panics, 1);
	assert_int_equal(b->crashes, 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity), TEST(test_unlock), TEST(test_two_stages), TEST(test_feeding),
		TEST(test_lock),     TEST(test_pin),    TEST(test_output_off), TEST(test_free_run),
		TEST(test_longest),  TEST(test_moves),  TEST(test_pvpanic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
