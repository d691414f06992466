/*
 * Unit tests of guest RAM and of the bus: bounds, overlap, all-ones, splitting, and look-ups beside a moving BAR.
 */
#include "base/util.h"
#include "vmm/memory/bus.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void ram_is_found_only_where_it_is(void **state)
{
	struct memory mem;

	(void)state;
	assert_null(memory_create(&mem, 3 * GIB));
	assert_ptr_equal(memory_at(&mem, 0, 1), mem.host);
	assert_non_null(memory_at(&mem, MEMORY_LOW_TOP - 1, 1));
	assert_null(memory_at(&mem, MEMORY_LOW_TOP - 1, 2));
	assert_null(memory_at(&mem, MEMORY_LOW_TOP, 1));
	assert_null(memory_at(&mem, MEMORY_HIGH_BASE - 1, 1));
	assert_ptr_equal(memory_at(&mem, MEMORY_HIGH_BASE, GIB), mem.host + MEMORY_LOW_TOP);
	assert_null(memory_at(&mem, MEMORY_HIGH_BASE, GIB + 1));
	assert_null(memory_at(&mem, MEMORY_HIGH_BASE + GIB, 0));
	assert_null(memory_at(&mem, 16, UINT64_MAX));
	assert_null(memory_at(&mem, UINT64_MAX, 16));
	memory_destroy(&mem);
}

static void absurd_sizes_are_refused(void **state)
{
	static const uint64_t bad[] = {0, 1, MIB - 1, MIB + 1, MEMORY_MAX + MIB, UINT64_MAX};
	struct memory mem;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cleanup_error struct error *err = memory_create(&mem, bad[i]);
		assert_non_null(err);
		assert_int_equal(error_errno(err), EINVAL);
		memory_destroy(&mem);
	}
}

struct regs {
	uint8_t byte[16];
	unsigned accesses;
};

static uint64_t regs_read(void *self, uint64_t offset, unsigned size)
{
	struct regs *r = self;
	uint64_t value = 0;

	assert_true(offset + size <= sizeof(r->byte));
	__atomic_add_fetch(&r->accesses, 1, __ATOMIC_RELAXED);
	memcpy(&value, r->byte + offset, size);
	return value;
}

static void regs_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct regs *r = self;

	assert_true(offset + size <= sizeof(r->byte));
	memcpy(r->byte + offset, &value, size);
}

static const struct bus_ops regs_ops = {.read = regs_read, .write = regs_write};

static void absent_devices_read_all_ones(void **state)
{
	struct bus bus;
	struct regs regs = {0};

	(void)state;
	bus_init(&bus, "MMIO");
	assert_int_equal(bus_read(&bus, 0xfed40000, 1), 0xff);
	assert_int_equal(bus_read(&bus, 0xfed40000, 4), 0xffffffff);
	assert_true(bus_read(&bus, UINT64_MAX, 8) == UINT64_MAX);
	bus_write(&bus, UINT64_MAX, 1, 8);
	assert_null(bus_add(&bus, 0x1000, 16, &regs_ops, &regs));
	/* An access that leaves the region: its own bytes answer, the rest is all-ones. */
	assert_int_equal(bus_read(&bus, 0x100e, 4), 0xffff0000);
	assert_int_equal(bus_read(&bus, 0xffe, 4), 0x0000ffff);
	bus_write(&bus, 0x100e, 0x44332211, 4);
	assert_int_equal(regs.byte[14], 0x11);
	assert_int_equal(regs.byte[15], 0x22);
	/* Widths no bus has are split. */
	assert_int_equal(bus_read(&bus, 0x100d, 3), 0x221100);
}

static void overlap_is_refused(void **state)
{
	static const struct {
		uint64_t base, size;
		bool fits;
	} cases[] = {{0x1000, 16, true},     {0x1000, 16, false},  {0x0ff1, 16, false},    {0x0ff0, 16, true},
		     {0x100f, 1, false},     {0x1010, 1, true},    {0, UINT64_MAX, false}, {0x2000, 0, false},
		     {UINT64_MAX, 2, false}, {UINT64_MAX, 1, true}};
	struct bus bus;
	struct regs regs = {0};

	(void)state;
	bus_init(&bus, "MMIO");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cleanup_error struct error *err = bus_add(&bus, cases[i].base, cases[i].size, &regs_ops, &regs);
		assert_int_equal(err == NULL, cases[i].fits);
	}
	for (unsigned i = bus.count; i < BUS_REGIONS_MAX; i++)
		assert_null(bus_add(&bus, 0x100000 + i * 16ull, 16, &regs_ops, &regs));
	cleanup_error struct error *full = bus_add(&bus, 0x90000000, 16, &regs_ops, &regs);
	assert_non_null(full);
	assert_int_equal(error_errno(full), ENOSPC);
}

struct race {
	struct bus bus;
	struct regs fixed, moving;
	atomic_bool stop;
	atomic_uint wrong;
	atomic_ulong reads;
};

static void *reader(void *arg)
{
	struct race *race = arg;

	while (!race->stop) {
		if (bus_read(&race->bus, 0x2000, 1) != 0x55)
			race->wrong++;
		race->reads++;
	}
	return NULL;
}

/* A device that stays is found at every moment while others come and go around it. */
static void lookups_survive_a_moving_bar(void **state)
{
	static struct race race;
	pthread_t threads[2];

	(void)state;
	bus_init(&race.bus, "MMIO");
	race.fixed.byte[0] = 0x55;
	assert_null(bus_add(&race.bus, 0x2000, 16, &regs_ops, &race.fixed));
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, reader, &race);
	for (unsigned i = 0; i < 20000; i++) {
		uint64_t base = i & 1 ? 0x1000 : 0x3000;
		assert_null(bus_add(&race.bus, base, 16, &regs_ops, &race.moving));
		bus_remove(&race.bus, base);
	}
	while (race.reads < 1000)
		;
	race.stop = true;
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(race.wrong, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ram_is_found_only_where_it_is), cmocka_unit_test(absurd_sizes_are_refused),
		cmocka_unit_test(absent_devices_read_all_ones),  cmocka_unit_test(overlap_is_refused),
		cmocka_unit_test(lookups_survive_a_moving_bar),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
