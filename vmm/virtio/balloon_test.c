/*
 * Tests of the balloon through its PCI function and rings: what the guest gives back is gone from the memfd (its blocks
 * are counted), and nothing else is.
 */
#include "vmm/virtio/balloon.h"

#include "base/cleanup.h"
#include "vmm/machine/unit.h"
#include "vmm/virtio/test_driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <linux/virtio_balloon.h>

#define INFLATE 0
#define DEFLATE 1
#define STATS   2
#define REPORT  3
#define RINGS   4
#define PAGE    BALLOON_PAGE
#define AREA    (16 * MIB) /* pages that are given back */

struct fixture {
	struct test_machine machine;
	struct balloon *balloon;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring ring[RINGS];
};

static struct fixture f;

static void plug(const struct balloon_config *config)
{
	test_no_error(balloon_new(&f.balloon, &f.machine.memory, f.machine.threads[0], config));
	test_no_error(virtio_pci_new(&f.vp, balloon_device(f.balloon), &f.machine.pci, TEST_SLOT));
}

static void start(uint64_t features)
{
	test_driver_negotiate(&f.driver, features);
	for (unsigned i = 0; i < RINGS; i++)
		test_ring_init(&f.ring[i], &f.driver, i, 64);
	test_driver_ok(&f.driver);
}

static int setup(void **state)
{
	(void)state;
	test_machine_init(&f.machine, NULL);
	plug(&(struct balloon_config){.deflate_on_oom = true, .reporting = true});
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	start(~0ull);
	memset(test_at(&f.machine, AREA), 0xa5, 8 * MIB);
	memset(test_at(&f.machine, TEST_DATA), 0, PAGE); /* taken from the start */
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	virtio_pci_free(f.vp);
	balloon_free(f.balloon);
	test_machine_destroy(&f.machine, false);
	return 0;
}

/* Bytes that guest RAM takes of the host. */
static uint64_t taken(void)
{
	struct stat st;

	assert_int_equal(fstat(f.machine.memory.fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static bool is_filled(uint64_t address, uint64_t len, uint8_t with)
{
	const uint8_t *p = test_at(&f.machine, address);

	for (uint64_t i = 0; i < len; i++)
		if (p[i] != with)
			return false;
	return true;
}

static void send(unsigned ring, const struct test_buffer *b, unsigned count)
{
	uint16_t head;
	uint32_t len;

	test_ring_add(&f.ring[ring], b, count, false);
	test_ring_send(&f.ring[ring]);
	test_ring_wait(&f.ring[ring], &head, &len);
	assert_int_equal(len, 0);
}

/* Sends @count page numbers in a chain of two buffers that cut a number in the middle. */
static void send_pfns(unsigned ring, const uint32_t *pfns, unsigned count)
{
	struct test_buffer b[2] = {{TEST_DATA, 6, false}, {TEST_DATA + 6, count * 4 - 6, false}};

	memcpy(test_at(&f.machine, TEST_DATA), pfns, count * 4ull);
	send(ring, b, 2);
}

static void test_identity(void **state)
{
	(void)state;
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10451af4);
	assert_true(f.driver.features >> VIRTIO_BALLOON_F_DEFLATE_ON_OOM & 1);
	assert_true(f.driver.features >> VIRTIO_BALLOON_F_REPORTING & 1);
	assert_false(f.driver.features >> VIRTIO_BALLOON_F_FREE_PAGE_HINT & 1);
}

/* 1000 pages in the order that nobody likes: all of them go, their neighbours stay, and each can be used again. */
static void test_inflate(void **state)
{
	uint32_t pfns[1000];
	uint64_t before = taken();

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		pfns[i] = (uint32_t)(AREA / PAGE) + 4 + i * 7 % 1000;
	send_pfns(INFLATE, pfns, 1000);
	assert_int_equal(before - taken(), 1000 * PAGE);
	assert_true(is_filled(AREA, 4ull * PAGE, 0xa5));
	assert_true(is_filled(AREA + 1004ull * PAGE, 4ull * PAGE, 0xa5));
	send_pfns(DEFLATE, pfns, 1000);
	assert_int_equal(before - taken(), 1000 * PAGE); /* taken again when touched only */
	assert_true(is_filled(AREA + 4ull * PAGE, 1000ull * PAGE, 0));
	memset(test_at(&f.machine, AREA + 4ull * PAGE), 1, 1000ull * PAGE);
	assert_int_equal(taken(), before);
}

/* Numbers of no page, twice the same, the last page, and a page number that would wrap. */
static void test_hostile_pfns(void **state)
{
	const uint32_t last = (uint32_t)(TEST_MEMORY / PAGE) - 1, one = (uint32_t)(AREA / PAGE);
	const uint32_t pfns[] = {~0u, one, last + 1, 0x80000000u, one, last, 0x100000, one, 0xfee00, one + 2};
	uint64_t before;

	(void)state;
	memset(test_at(&f.machine, (uint64_t)last * PAGE), 1, PAGE);
	before = taken();
	send_pfns(INFLATE, pfns, ARRAY_SIZE(pfns));
	assert_int_equal(before - taken(), 3 * PAGE);
	assert_true(is_filled(AREA + PAGE, PAGE, 0xa5));
	assert_int_equal(test_status(&f.driver), 15);
}

/* A chain that names a page more often than there are pages is cut off, not worked through. */
static void test_endless_chain(void **state)
{
	struct test_buffer b[8];
	uint64_t before = taken();
	uint32_t *pfns = test_at(&f.machine, AREA);

	(void)state;
	for (unsigned i = 0; i < MIB / 4; i++)
		pfns[i] = (uint32_t)((AREA + 4 * MIB) / PAGE);
	for (unsigned i = 0; i < 8; i++)
		b[i] = (struct test_buffer){AREA, MIB, false};
	send(INFLATE, b, 8);
	assert_int_equal(before - taken(), PAGE);
}

/* An odd length, a chain the device is to write, and one with nothing in it. */
static void test_odd_chains(void **state)
{
	uint64_t before = taken();

	(void)state;
	*(uint32_t *)test_at(&f.machine, TEST_DATA) = (uint32_t)(AREA / PAGE);
	before = taken();
	send(INFLATE, &(struct test_buffer){TEST_DATA, 3, false}, 1);
	send(INFLATE, &(struct test_buffer){AREA, PAGE, true}, 1);
	send(DEFLATE, &(struct test_buffer){AREA, PAGE, true}, 1);
	assert_int_equal(taken(), before);
	send(INFLATE, &(struct test_buffer){TEST_DATA, 7, false}, 1);
	assert_int_equal(before - taken(), PAGE);
}

/* Whole pages of each buffer go; what is not whole stays. */
static void test_reporting(void **state)
{
	struct test_buffer b[] = {
		{AREA, 4 * PAGE, true}, {AREA + MIB - 100, 2 * PAGE, true}, {AREA + 2 * MIB, 100, true}};
	uint64_t before = taken();

	(void)state;
	send(REPORT, b, 3);
	assert_int_equal(before - taken(), 5 * PAGE);
	assert_true(is_filled(AREA, 4ull * PAGE, 0));
	assert_true(is_filled(AREA + MIB - 100, 100, 0xa5));
	assert_true(is_filled(AREA + MIB + PAGE, 2ull * PAGE, 0xa5));
	assert_true(is_filled(AREA + 2 * MIB, PAGE, 0xa5));
}

/* Pages that the guest wants to find poisoned are left alone. */
static void test_poison(void **state)
{
	uint64_t before = taken();

	(void)state;
	test_write(&f.driver, VIRTIO_BAR_DEVICE + 12, 0xaaaaaaaa, 4);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 12, 4), 0xaaaaaaaa);
	send(REPORT, &(struct test_buffer){AREA, 4 * PAGE, true}, 1);
	assert_int_equal(taken(), before);
	assert_true(is_filled(AREA, 4ull * PAGE, 0xa5));
	test_write(&f.driver, VIRTIO_BAR_DEVICE + 12, 0, 4);
	send(REPORT, &(struct test_buffer){AREA, 4 * PAGE, true}, 1);
	assert_int_equal(before - taken(), 4 * PAGE);
}

/* A driver that did not take the feature reports nothing. */
static void test_not_negotiated(void **state)
{
	uint64_t before;

	(void)state;
	start(~(1ull << VIRTIO_BALLOON_F_REPORTING));
	before = taken();
	send(REPORT, &(struct test_buffer){AREA, 4 * PAGE, true}, 1);
	assert_int_equal(taken(), before);
}

static void test_target(void **state)
{
	struct error *err = balloon_set_target(f.balloon, TEST_MEMORY + 1);

	(void)state;
	assert_non_null(err);
	error_free(err);
	(void)test_interrupts(&f.driver, 0);
	test_no_error(balloon_set_target(f.balloon, TEST_MEMORY / 2));
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE, 4), TEST_MEMORY / 2 / PAGE);
	assert_int_equal(test_interrupts(&f.driver, 0), 1);
	assert_int_equal(balloon_actual(f.balloon), TEST_MEMORY);
	test_write(&f.driver, VIRTIO_BAR_DEVICE, 5, 4); /* not the guest's to write */
	test_write(&f.driver, VIRTIO_BAR_DEVICE + 4, 16, 4);
	assert_int_equal(balloon_actual(f.balloon), TEST_MEMORY - 16 * PAGE);
	assert_int_equal(balloon_target(f.balloon), TEST_MEMORY / 2);
	test_write(&f.driver, VIRTIO_BAR_DEVICE + 4, ~0u, 4);
	assert_int_equal(balloon_actual(f.balloon), 0);
	/* A reset empties it; what the host wants stays. */
	start(~0ull);
	assert_int_equal(balloon_actual(f.balloon), TEST_MEMORY);
	assert_int_equal(balloon_target(f.balloon), TEST_MEMORY / 2);
}

static void give_stats(uint16_t tag, uint64_t value)
{
	uint8_t *p = test_at(&f.machine, TEST_DATA);

	memcpy(p, &tag, 2);
	memcpy(p + 2, &value, 8);
	memcpy(p + 10, &(uint16_t){0xffff}, 2); /* a kind that nobody knows, and half a record */
	test_ring_add(&f.ring[STATS], &(struct test_buffer){TEST_DATA, 25, false}, 1, false);
	test_ring_send(&f.ring[STATS]);
}

static uint64_t stat_value(unsigned tag)
{
	struct balloon_stats stats;

	balloon_get_stats(f.balloon, &stats);
	return stats.known >> tag & 1 ? stats.value[tag] : 0;
}

/* The buffer comes back when somebody asks, and is filled anew. */
static void test_stats(void **state)
{
	struct balloon_stats stats;
	uint16_t head;
	uint32_t len;

	(void)state;
	balloon_get_stats(f.balloon, &stats);
	assert_int_equal(stats.when, 0);
	assert_false(balloon_ask_stats(f.balloon));
	give_stats(VIRTIO_BALLOON_S_MEMFREE, 12345);
	assert_true(test_until(stat_value(VIRTIO_BALLOON_S_MEMFREE) == 12345));
	balloon_get_stats(f.balloon, &stats);
	assert_int_equal(stats.known, 1 << VIRTIO_BALLOON_S_MEMFREE);
	assert_string_equal(balloon_stat_name(VIRTIO_BALLOON_S_MEMFREE), "free-memory");
	assert_false(test_ring_take(&f.ring[STATS], &head, &len));
	assert_true(balloon_ask_stats(f.balloon));
	test_ring_wait(&f.ring[STATS], &head, &len);
	assert_false(balloon_ask_stats(f.balloon));
	give_stats(VIRTIO_BALLOON_S_MEMFREE, 54321);
	assert_true(test_until(stat_value(VIRTIO_BALLOON_S_MEMFREE) == 54321));
	/* A second one while the first is held: the older one goes back. */
	give_stats(VIRTIO_BALLOON_S_MEMTOT, 1);
	test_ring_wait(&f.ring[STATS], &head, &len);
	assert_true(test_until(stat_value(VIRTIO_BALLOON_S_MEMTOT) == 1));
}

static struct error *save(int fd, const struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	return saved_finish(s);
}

static struct error *load(int fd, const struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	TRY(saved_finish(s));
	return unit->ops->restored(unit->self);
}

/* Moves the device to a new machine on the same memory: the statistics' buffer is still held there. */
static void test_move(void **state)
{
	cleanup_fd int fd = memfd_create("saved", MFD_CLOEXEC);
	struct memory memory;
	struct unit unit = virtio_pci_unit(f.vp, "balloon");
	uint32_t pfns[8];
	uint16_t head;
	uint32_t len;

	(void)state;
	give_stats(VIRTIO_BALLOON_S_MEMFREE, 7);
	assert_true(test_until(stat_value(VIRTIO_BALLOON_S_MEMFREE) == 7));
	test_no_error(balloon_set_target(f.balloon, TEST_MEMORY / 4));
	test_write(&f.driver, VIRTIO_BAR_DEVICE + 4, 3, 4);
	unit.ops->pause(unit.self);
	test_no_error(save(fd, &unit));
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	virtio_pci_free(f.vp);
	balloon_free(f.balloon);
	memory = f.machine.memory;
	test_machine_destroy(&f.machine, true);
	test_machine_init(&f.machine, &memory);
	plug(&(struct balloon_config){.deflate_on_oom = true, .reporting = true});
	f.driver.vp = f.vp;
	unit = virtio_pci_unit(f.vp, "balloon");
	test_no_error(load(fd, &unit));
	assert_false(balloon_ask_stats(f.balloon)); /* still paused */
	unit.ops->resume(unit.self);
	assert_int_equal(balloon_target(f.balloon), TEST_MEMORY / 4);
	assert_int_equal(balloon_actual(f.balloon), TEST_MEMORY - 3 * PAGE);
	assert_true(balloon_ask_stats(f.balloon));
	test_ring_wait(&f.ring[STATS], &head, &len);
	uint64_t before = taken();
	for (unsigned i = 0; i < 8; i++)
		pfns[i] = (uint32_t)(AREA / PAGE) + i;
	send_pfns(INFLATE, pfns, 8);
	assert_int_equal(before - taken(), 8 * PAGE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity),   TEST(test_inflate),   TEST(test_hostile_pfns), TEST(test_endless_chain),
		TEST(test_odd_chains), TEST(test_reporting), TEST(test_poison),       TEST(test_not_negotiated),
		TEST(test_target),     TEST(test_stats),     TEST(test_move),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
