/*
 * Unit tests of power management and reset, as firmware and ACPI drive them.
 */
#include "base/util.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/pm.h"
#include "vmm/devices/reset.h"
#include "vmm/devices/test_bench.h"

#define NS 1000000000ull

struct board {
	struct bench bench;
	struct bus mmio;
	struct pci_bus pci;
	struct pm pm;
	struct reset reset;
	struct i8042 i8042;
	unsigned resets, power_offs;
};

static uint64_t host; /* nanoseconds */

static uint64_t fake_now(void)
{
	return host;
}

static void on_reset(void *arg)
{
	((struct board *)arg)->resets++;
}

static void on_power_off(void *arg)
{
	((struct board *)arg)->power_offs++;
}

static void start(struct board *b)
{
	struct machine_events events = {.reset = on_reset, .power_off = on_power_off, .arg = b};

	memset(b, 0, sizeof(*b));
	bench_init(&b->bench);
	bus_init(&b->mmio, "MMIO");
	assert_ok(pci_bus_init(&b->pci, &b->bench.pio, &b->mmio, &b->bench.irqs, 4 * GIB));
	assert_ok(pm_init(&b->pm, &b->bench.pio, &b->bench.irqs, b->bench.loop, &events));
	assert_ok(reset_init(&b->reset, &b->bench.pio, &b->pci, &events));
	assert_ok(i8042_init(&b->i8042, &b->bench.pio, &b->bench.irqs, &events, false));
	b->pm.now = fake_now;
	b->pm.epoch = host;
	pm_unit.resume(&b->pm);
}

static void stop(struct board *b)
{
	pm_destroy(&b->pm);
	pci_bus_destroy(&b->pci);
	bench_destroy(&b->bench);
}

static int setup(void **state)
{
	static struct board board;

	host = 1000 * NS;
	start(&board);
	*state = &board;
	return 0;
}

static int teardown(void **state)
{
	stop(*state);
	return 0;
}

static uint64_t get(struct board *b, unsigned reg, unsigned size)
{
	return bus_read(&b->bench.pio, PM_BASE + reg, size);
}

static void set(struct board *b, unsigned reg, unsigned size, uint64_t value)
{
	bus_write(&b->bench.pio, PM_BASE + reg, value, size);
}

static bool sci(const struct board *b)
{
	return b->bench.irqs.sources[PM_SCI_GSI] != 0;
}

static void soft_off_is_sleep_type_s5(void **state)
{
	struct board *b = *state;

	assert_int_equal(get(b, PM_CONTROL, 2), 1); /* SCI_EN from the start */
	set(b, PM_CONTROL, 2, 0x3401);              /* some other sleep */
	assert_int_equal(b->power_offs, 0);
	assert_int_equal(get(b, PM_CONTROL, 2), 0x1401);
	set(b, PM_CONTROL, 2, PM_SLEEP_S5 << 10);
	assert_int_equal(b->power_offs, 0);
	set(b, PM_CONTROL, 2, 0x2000 | PM_SLEEP_S5 << 10);
	assert_int_equal(b->power_offs, 1);
	assert_int_equal(get(b, PM_CONTROL, 4), 1);
	set(b, PM_CONTROL + 1, 1, 0x20);
	assert_int_equal(b->power_offs, 2);
}

static void timer_counts_at_its_rate(void **state)
{
	struct board *b = *state;

	assert_int_equal(get(b, PM_TIMER, 4), 0);
	host += NS;
	assert_int_equal(get(b, PM_TIMER, 4), 3579545);
	host += 4 * NS;
	assert_int_equal(get(b, PM_TIMER, 4), 5 * 3579545 - (1 << 24));
	host += 1000000 * NS;
	assert_int_equal(get(b, PM_TIMER, 4), 1000005ull * 3579545 & 0xffffff);
	set(b, PM_TIMER, 4, 0);
	assert_int_equal(get(b, PM_TIMER, 4), 1000005ull * 3579545 & 0xffffff);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(get(b, PM_TIMER + i, 1), (1000005ull * 3579545 & 0xffffff) >> (8 * i) & 0xff);
}

static void power_button_reaches_a_guest_that_listens(void **state)
{
	struct board *b = *state;

	pm_power_button(&b->pm);
	assert_int_equal(get(b, PM_EVENT, 2), 0x100);
	assert_false(sci(b));
	set(b, PM_EVENT + 2, 2, 0xffff);
	assert_int_equal(get(b, PM_EVENT, 4), 0x07210100);
	assert_true(sci(b));
	set(b, PM_EVENT, 2, 0x0020);
	assert_true(sci(b));
	set(b, PM_EVENT + 1, 1, 0x01); /* writing one clears */
	assert_false(sci(b));
	assert_int_equal(get(b, PM_EVENT, 4), 0x07210000);
	pm_unit.pause(&b->pm);
	pm_power_button(&b->pm);
	assert_false(sci(b));
	pm_unit.resume(&b->pm);
	assert_true(sci(b));
}

static void timer_carry_interrupts(void **state)
{
	struct board *b = *state;

	host += 2 * NS;
	assert_int_equal(get(b, PM_EVENT, 2), 0);
	host += NS;
	assert_int_equal(get(b, PM_EVENT, 2), 1); /* bit 23 went up */
	set(b, PM_EVENT, 2, 1);
	assert_int_equal(get(b, PM_EVENT, 2), 0);
	host += 2 * NS - NS / 10;
	assert_int_equal(get(b, PM_EVENT, 2), 1); /* and down */
	set(b, PM_EVENT, 4, 0x00010001);
	assert_false(sci(b));
	uint64_t left = (1 << 23) - get(b, PM_TIMER, 4) % (1 << 23);
	host += left * NS / PM_TIMER_HZ - 2000000;
	set(b, PM_EVENT, 4, 0x00010001); /* looks again: 2 ms to go */
	bench_run(&b->bench, 1);
	assert_false(sci(b));
	host += 3000000;
	bench_run(&b->bench, 30);
	assert_true(sci(b));
	set(b, PM_EVENT, 2, 1);
	assert_false(sci(b));
}

static void general_purpose_events(void **state)
{
	struct board *b = *state;

	set(b, PM_GPE0 + 8, 8, 0x1122334455667788);
	assert_int_equal(get(b, PM_GPE0 + 8, 8), 0x1122334455667788);
	assert_int_equal(get(b, PM_GPE0 + 9, 2), 0x6677);
	assert_int_equal(get(b, PM_GPE0, 8), 0);
	set(b, PM_GPE0, 8, UINT64_MAX); /* the guest cannot raise one */
	assert_int_equal(get(b, PM_GPE0, 8), 0);
	assert_false(sci(b));
	assert_int_equal(get(b, 0x30, 4), 0xffffffff); /* no SMI registers */
	assert_int_equal(get(b, 0x0c, 4), 0xffffffff);
}

static void every_width_gives_the_same_bytes(void **state)
{
	struct board *b = *state;
	uint8_t byte[12];

	pm_power_button(&b->pm);
	set(b, PM_EVENT + 2, 2, 0x0521);
	set(b, PM_CONTROL, 2, 0x1402);
	host += NS / 3;
	for (unsigned i = 0; i < sizeof(byte); i++)
		byte[i] = (uint8_t)get(b, i, 1);
	for (unsigned size = 1; size <= 8; size *= 2) {
		for (unsigned at = 0; at + size <= sizeof(byte); at++) {
			uint64_t expected = 0;
			memcpy(&expected, byte + at, size);
			assert_int_equal(get(b, at, size), expected);
		}
	}
}

static void pm_state_moves(void **state)
{
	struct board *b = *state;
	static struct board other;

	set(b, PM_EVENT + 2, 2, 0x0100);
	set(b, PM_CONTROL, 2, 0x1002);
	set(b, PM_GPE0 + 8, 1, 0x42);
	pm_power_button(&b->pm);
	host += 3 * NS;
	pm_unit.pause(&b->pm);
	cleanup_fd int fd = bench_save(&pm_unit, &b->pm);
	host += 77 * NS;
	start(&other);
	pm_unit.pause(&other.pm);
	host += NS;
	assert_ok(bench_load(&pm_unit, &other.pm, fd));
	assert_int_equal(get(&other, PM_TIMER, 4), 3 * 3579545); /* goes on from there, as the TSC does */
	host += NS;
	assert_int_equal(get(&other, PM_TIMER, 4), 4 * 3579545);
	assert_int_equal(get(&other, PM_EVENT, 4), 0x01000101);
	assert_int_equal(get(&other, PM_CONTROL, 2), 0x1003);
	assert_int_equal(get(&other, PM_GPE0 + 8, 1), 0x42);
	pm_unit.resume(&other.pm);
	assert_true(sci(&other));
	pm_unit.reset(&other.pm);
	assert_false(sci(&other));
	assert_int_equal(get(&other, PM_EVENT, 4), 0);
	assert_int_equal(get(&other, PM_GPE0 + 8, 1), 0);
	stop(&other);
}

static void each_way_of_reset_works(void **state)
{
	struct board *b = *state;

	out8(&b->bench, 0xcf9, 0x02);
	assert_int_equal(b->resets, 0);
	out8(&b->bench, 0xcf9, 0x06);
	assert_int_equal(b->resets, 1);
	assert_int_equal(in8(&b->bench, 0xcf9), 0x02);
	out8(&b->bench, 0xcf9, 0x0e);
	assert_int_equal(b->resets, 2);
	assert_int_equal(in8(&b->bench, 0xcf9), 0x0a);
	bus_write(&b->bench.pio, 0xcf8, 0x06060606, 4); /* that is PCI's */
	assert_int_equal(b->resets, 2);
	out8(&b->bench, 0x64, 0xd1);
	assert_int_equal(b->resets, 2);
	out8(&b->bench, 0x64, 0xfe);
	assert_int_equal(b->resets, 3);
	assert_int_equal(in8(&b->bench, 0x64), 0xff);
	assert_int_equal(in8(&b->bench, 0x60), 0xff);
	out8(&b->bench, 0x92, 0x03);
	assert_int_equal(b->resets, 4);
	out8(&b->bench, 0x92, 0x01); /* it takes an edge */
	assert_int_equal(b->resets, 4);
	out8(&b->bench, 0x92, 0x02);
	assert_int_equal(in8(&b->bench, 0x92), 0x02);
	assert_int_equal(b->power_offs, 0);
}

static void reset_state_moves(void **state)
{
	struct board *b = *state;
	static struct board other;

	out8(&b->bench, 0xcf9, 0x08);
	out8(&b->bench, 0x92, 0x00);
	cleanup_fd int fd = bench_save(&reset_unit, &b->reset);
	start(&other);
	assert_int_equal(in8(&other.bench, 0x92), 0x02);
	assert_ok(bench_load(&reset_unit, &other.reset, fd));
	assert_int_equal(in8(&other.bench, 0xcf9), 0x08);
	assert_int_equal(in8(&other.bench, 0x92), 0x00);
	reset_unit.reset(&other.reset);
	assert_int_equal(in8(&other.bench, 0xcf9), 0x00);
	assert_int_equal(in8(&other.bench, 0x92), 0x02);
	assert_int_equal(other.resets, 0);
	stop(&other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(soft_off_is_sleep_type_s5),
		TEST(timer_counts_at_its_rate),
		TEST(power_button_reaches_a_guest_that_listens),
		TEST(timer_carry_interrupts),
		TEST(general_purpose_events),
		TEST(every_width_gives_the_same_bytes),
		TEST(pm_state_moves),
		TEST(each_way_of_reset_works),
		TEST(reset_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
