/*
 * Tests of virtio-rng through its PCI function and rings in plain memory.
 */
#include "vmm/virtio/rng.h"
#include "vmm/virtio/test_driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct fixture {
	struct test_machine machine;
	struct rng *rng;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring ring;
};

static struct fixture f;

static int setup(void **state)
{
	(void)state;
	test_machine_init(&f.machine, NULL);
	test_no_error(rng_new(&f.rng, &f.machine.memory, f.machine.threads[0]));
	test_no_error(virtio_pci_new(&f.vp, rng_device(f.rng), &f.machine.pci, TEST_SLOT));
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.ring, &f.driver, 0, 64);
	test_driver_ok(&f.driver);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	virtio_pci_free(f.vp);
	rng_free(f.rng);
	test_machine_destroy(&f.machine, false);
	return 0;
}

static unsigned zeros(const uint8_t *p, size_t len)
{
	unsigned n = 0;
	for (size_t i = 0; i < len; i++)
		n += p[i] == 0;
	return n;
}

static void test_identity(void **state)
{
	(void)state;
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10441af4);
}

static void test_bytes(void **state)
{
	struct test_buffer b[2] = {{TEST_DATA, 1000, true}, {TEST_DATA + 1000, 500, true}};
	uint8_t *data = test_at(&f.machine, TEST_DATA);
	uint16_t head;
	uint32_t len;

	(void)state;
	test_ring_add(&f.ring, b, 2, false);
	test_ring_send(&f.ring);
	test_ring_wait(&f.ring, &head, &len);
	assert_int_equal(len, 1500);
	/* About 6 of 1500 random bytes are 0; 60 are as good as impossible; nothing behind them was touched. */
	assert_true(zeros(data, 1500) < 60);
	assert_int_equal(zeros(data + 1500, 500), 500);

	/* Other bytes each time. */
	uint8_t first[1500];
	memcpy(first, data, sizeof(first));
	test_ring_add(&f.ring, b, 2, false);
	test_ring_send(&f.ring);
	test_ring_wait(&f.ring, &head, &len);
	assert_int_equal(len, 1500);
	assert_memory_not_equal(first, data, sizeof(first));
}

/* One chain gets a bounded number; one without a writable part gets none and is not an offence. */
static void test_bounds(void **state)
{
	struct test_buffer big = {TEST_DATA, 1 * MIB, true}, wrong = {TEST_DATA, 64, false};
	uint16_t head;
	uint32_t len;

	(void)state;
	test_ring_add(&f.ring, &big, 1, false);
	test_ring_send(&f.ring);
	test_ring_wait(&f.ring, &head, &len);
	assert_int_equal(len, 4096);
	assert_int_equal(zeros((uint8_t *)test_at(&f.machine, TEST_DATA) + 4096, 4096), 4096);
	test_ring_add(&f.ring, &wrong, 1, false);
	test_ring_send(&f.ring);
	test_ring_wait(&f.ring, &head, &len);
	assert_int_equal(len, 0);
	assert_int_equal(test_status(&f.driver), 15);
}

/* More chains at once than one go takes, with one doorbell. */
static void test_many(void **state)
{
	uint16_t head;
	uint32_t len;

	(void)state;
	for (unsigned i = 0; i < 60; i++)
		test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA + i * 64ull, 64, true}, 1, false);
	test_ring_send(&f.ring);
	for (unsigned i = 0; i < 60; i++) {
		test_ring_wait(&f.ring, &head, &len);
		assert_int_equal(len, 64);
	}
	assert_true(zeros(test_at(&f.machine, TEST_DATA), 60 * 64ull) < 200);
}

static void test_broken(void **state)
{
	uint16_t head;
	uint32_t len;

	(void)state;
	test_ring_add(&f.ring, &(struct test_buffer){~0ull, 64, true}, 1, false);
	test_ring_send(&f.ring);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.ring, &f.driver, 0, 64);
	test_driver_ok(&f.driver);
	test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA, 64, true}, 1, false);
	test_ring_send(&f.ring);
	test_ring_wait(&f.ring, &head, &len);
	assert_int_equal(len, 64);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity), TEST(test_bytes), TEST(test_bounds), TEST(test_many), TEST(test_broken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
