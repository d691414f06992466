/*
 * Tests of the PCI transport on a virtio-rng: registers at every width and alignment, the device's life, interrupts of
 * both kinds, the configuration window, saving and loading.
 */
#include "vmm/virtio/rng.h"
#include "vmm/virtio/test_driver.h"

#include <linux/memfd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

struct fixture {
	struct test_machine machine;
	struct rng *rng;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring ring;
};

static struct fixture f;

static void add_device(void)
{
	test_no_error(rng_new(&f.rng, &f.machine.memory, f.machine.threads[0]));
	test_no_error(virtio_pci_new(&f.vp, rng_device(f.rng), &f.machine.pci, TEST_SLOT));
}

static int setup(void **state)
{
	(void)state;
	test_machine_init(&f.machine, NULL);
	add_device();
	test_driver_find(&f.driver, &f.machine, f.vp);
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

static void drive(void)
{
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.ring, &f.driver, 0, 64);
	test_driver_ok(&f.driver);
}

static bool serves(void)
{
	uint16_t head;
	uint32_t len;

	test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA, 64, true}, 1, false);
	test_ring_send(&f.ring);
	test_ring_wait(&f.ring, &head, &len);
	return len == 64;
}

static void test_capabilities(void **state)
{
	static const struct {
		uint8_t kind;
		uint32_t offset;
	} wanted[] = {{VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_BAR_COMMON},
		      {VIRTIO_PCI_CAP_ISR_CFG, VIRTIO_BAR_ISR},
		      {VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_BAR_NOTIFY}};
	struct test_machine *m = &f.machine;

	(void)state;
	assert_int_equal(test_config_read(m, 0x08, 1), 1); /* revision */
	assert_true(test_config_read(m, 0x2e, 2) >= 0x40); /* subsystem: modern */
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
		unsigned cap = test_capability(m, 9, wanted[i].kind);
		assert_int_not_equal(cap, 0);
		assert_int_equal(test_config_read(m, cap + 4, 1), VIRTIO_PCI_BAR);
		assert_int_equal(test_config_read(m, cap + 8, 4), wanted[i].offset);
		assert_int_not_equal(test_config_read(m, cap + 12, 4), 0);
	}
	assert_int_equal(test_config_read(m, test_capability(m, 9, VIRTIO_PCI_CAP_NOTIFY_CFG) + 16, 4), 4);
	/* This device has no configuration. */
	assert_int_equal(test_capability(m, 9, VIRTIO_PCI_CAP_DEVICE_CFG), 0);
	assert_int_not_equal(test_capability(m, 9, VIRTIO_PCI_CAP_PCI_CFG), 0);
}

/* A 64-bit address written as one, two, four or eight pieces, and at odd places, reads back the same way. */
static void test_widths(void **state)
{
	const uint64_t value = 0x1122334455667788ull;

	(void)state;
	for (unsigned width = 1; width <= 8; width *= 2) {
		test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 0, 8);
		for (unsigned i = 0; i < 8; i += width)
			test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO + i, value >> 8 * i, width);
		for (unsigned read = 1; read <= 8; read *= 2)
			for (unsigned i = 0; i + read <= 8; i++)
				assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO + i, read),
						 value >> 8 * i & bus_all_ones(read));
	}
	/* One access over two fields: the end of one ring's address, the start of the next. */
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 0, 8);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_AVAILLO, 0, 8);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO + 5, value, 8);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 8), (value & 0xffffff) << 40);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_AVAILLO, 8), value >> 24);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO + 5, 8), value);
}

static void test_features(void **state)
{
	(void)state;
	test_write(&f.driver, VIRTIO_PCI_COMMON_DFSELECT, 1, 4);
	assert_true(test_read(&f.driver, VIRTIO_PCI_COMMON_DF, 4) & 1u << (VIRTIO_F_VERSION_1 - 32));
	test_write(&f.driver, VIRTIO_PCI_COMMON_DFSELECT, 2, 4);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_DF, 4), 0);

	/* Without VERSION_1, and with a feature that is not offered, FEATURES_OK stays clear, and so does DRIVER_OK. */
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 3, 1);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 11, 1);
	assert_int_equal(test_status(&f.driver), 3);
	test_write(&f.driver, VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
	test_write(&f.driver, VIRTIO_PCI_COMMON_GF, 3, 4);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 15, 1);
	assert_int_equal(test_status(&f.driver), 3);
	test_write(&f.driver, VIRTIO_PCI_COMMON_GF, 1, 4);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 11, 1);
	assert_int_equal(test_status(&f.driver), 11);
	/* Settled: no change after that. A status never loses bits but by a reset. */
	test_write(&f.driver, VIRTIO_PCI_COMMON_GF, 0, 4);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_GF, 4), 1);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 1, 1);
	assert_int_equal(test_status(&f.driver), 11);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0xff & ~4, 1);
	assert_int_equal(test_status(&f.driver), 11 | 128);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	assert_int_equal(test_status(&f.driver), 0);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_GF, 4), 0);
}

static void test_queue_registers(void **state)
{
	(void)state;
	test_driver_negotiate(&f.driver, ~0ull);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_NUMQ, 2), 1);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), 64);
	/* A queue that is not there. */
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 8, 2);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 4096, 8);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_MSIX, 2), VIRTIO_NO_VECTOR);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_SELECT, 0xffff, 2);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
	/* A vector that is not there. */
	test_write(&f.driver, VIRTIO_PCI_COMMON_MSIX, 2, 2);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_MSIX, 2), VIRTIO_NO_VECTOR);
	test_write(&f.driver, VIRTIO_PCI_COMMON_MSIX, 1, 2);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_MSIX, 2), 1);
	/* Enabled, a queue cannot be changed any more. */
	test_ring_init(&f.ring, &f.driver, 0, 32);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 8, 2);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 0, 8);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), 32);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 8), TEST_RINGS);
}

static void test_bad_ring(void **state)
{
	(void)state;
	test_msix_enable(&f.machine);
	drive();
	assert_true(serves());
	/* After DRIVER_OK the driver learns of it by a configuration interrupt. */
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, ~0xfull, 8);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
	assert_int_equal(test_status(&f.driver), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
	assert_int_equal(test_interrupts(&f.driver, 0), 1);
	drive();
	assert_true(serves());
}

static void test_queue_reset(void **state)
{
	(void)state;
	test_msix_enable(&f.machine);
	drive();
	assert_true(serves());
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_RESET, 2), 0);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), 64);
	test_ring_init(&f.ring, &f.driver, 0, 16);
	assert_true(serves());
	assert_int_equal(test_status(&f.driver), 15);
}

static bool line_is_high(void)
{
	struct irqs *irqs = &f.machine.irqs;

	pthread_mutex_lock(&irqs->lock);
	bool high = irqs->sources[pci_slot_gsi(TEST_SLOT)] != 0;
	pthread_mutex_unlock(&irqs->lock);
	return high;
}

/* Without MSI-X: the line goes up with a used buffer, and down when the ISR status is read (4.1.4.5). */
static void test_intx(void **state)
{
	uint16_t head;
	uint32_t len;

	(void)state;
	drive();
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_ISR, 1), 0);
	test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA, 64, true}, 1, false);
	test_ring_send(&f.ring);
	assert_true(test_until(line_is_high()));
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_ISR, 1), 1);
	assert_false(line_is_high());
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_ISR, 1), 0);
	assert_true(test_ring_take(&f.ring, &head, &len));
	/* A broken queue: the configuration bit. */
	test_ring_add(&f.ring, &(struct test_buffer){~0ull, 64, true}, 1, false);
	test_ring_send(&f.ring);
	assert_true(test_until(line_is_high()));
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_ISR, 1) & 2, 2);
	/* A reset takes the line down. */
	test_ring_init(&f.ring, &f.driver, 0, 64);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	assert_false(line_is_high());
}

/* With MSI-X but no vector: no interrupt of any kind. */
static void test_no_vector(void **state)
{
	(void)state;
	test_msix_enable(&f.machine);
	drive();
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_MSIX, VIRTIO_NO_VECTOR, 2);
	f.driver.quiet = true;
	assert_true(serves());
	assert_int_equal(test_interrupts(&f.driver, 0) + test_interrupts(&f.driver, 1), 0);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_ISR, 1), 0);
}

/* A device that may not master the bus touches no memory. */
static void test_bus_master(void **state)
{
	uint16_t head;
	uint32_t len;

	(void)state;
	drive();
	test_config_write(&f.machine, 0x04, 2, 2);
	test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA, 64, true}, 1, false);
	test_ring_send(&f.ring);
	usleep(20000);
	assert_int_equal(f.ring.used->idx, 0);
	test_config_write(&f.machine, 0x04, 6, 2);
	test_ring_kick(&f.ring);
	f.driver.quiet = true;
	test_ring_wait(&f.ring, &head, &len);
}

/* The registers and doorbells follow the BAR. */
static void test_move(void **state)
{
	uint64_t old = f.driver.bar, new = old + (1ull << 30);

	(void)state;
	test_msix_enable(&f.machine);
	drive();
	test_config_write(&f.machine, 0x10, (uint32_t)new, 4);
	test_config_write(&f.machine, 0x14, (uint32_t)(new >> 32), 4);
	assert_int_equal(bus_read(&f.machine.mmio, old + VIRTIO_PCI_COMMON_STATUS, 1), 0xff);
	f.driver.bar = new;
	assert_int_equal(test_status(&f.driver), 15);
	assert_true(serves());
}

/* The whole of a driver's work through the window in configuration space (4.1.4.9). */
static void test_window(void **state)
{
	unsigned cap = test_capability(&f.machine, 9, VIRTIO_PCI_CAP_PCI_CFG);
	struct test_machine *m = &f.machine;

	(void)state;
	test_config_write(m, cap + 4, VIRTIO_PCI_BAR, 1);
	test_config_write(m, cap + 8, VIRTIO_PCI_COMMON_STATUS, 4);
	test_config_write(m, cap + 12, 1, 4);
	test_config_write(m, cap + 16, 3, 4);
	assert_int_equal(test_config_read(m, cap + 16, 1), 3);
	assert_int_equal(test_status(&f.driver), 3);
	test_config_write(m, cap + 8, VIRTIO_PCI_COMMON_NUMQ, 4);
	test_config_write(m, cap + 12, 2, 4);
	assert_int_equal(test_config_read(m, cap + 16, 4), 1);
	/* Windows that look at nothing: all-ones, and writes go nowhere. */
	const uint32_t bad[][3] = {{1, 0, 4},          {0, 0, 0},   {0, 0, 3},
				   {0, 0, 8},          {0, 2, 4},   {0, VIRTIO_BAR_BYTES, 4},
				   {0, 0xfffffffc, 4}, {0xff, 0, 1}};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		test_config_write(m, cap + 4, bad[i][0], 1);
		test_config_write(m, cap + 8, bad[i][1], 4);
		test_config_write(m, cap + 12, bad[i][2], 4);
		test_config_write(m, cap + 16, 0, 4);
		assert_int_equal(test_config_read(m, cap + 16, 4), 0xffffffff);
	}
	assert_int_equal(test_status(&f.driver), 3);
}

/* --- saving --- */

static struct error *save(int fd, struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	return saved_finish(s);
}

static struct error *load(int fd, struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	lseek(fd, 0, SEEK_SET);
	TRY(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	TRY(saved_finish(s));
	return unit->ops->restored(unit->self);
}

/* Saves the device, frees it, and loads it into a new one in a new machine on the same memory. */
static struct error *move(int fd)
{
	struct unit unit = virtio_pci_unit(f.vp, "rng");

	unit.ops->pause(unit.self);
	test_no_error(save(fd, &unit));
	virtio_pci_free(f.vp);
	rng_free(f.rng);
	struct memory memory = f.machine.memory;
	test_machine_destroy(&f.machine, true);
	test_machine_init(&f.machine, &memory);
	add_device();
	unit = virtio_pci_unit(f.vp, "rng");
	TRY(load(fd, &unit));
	f.driver.vp = f.vp;
	unit.ops->resume(unit.self);
	return NULL;
}

static void test_saved(void **state)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);

	(void)state;
	test_msix_enable(&f.machine);
	drive();
	assert_true(serves());
	struct unit unit = virtio_pci_unit(f.vp, "rng");
	unit.ops->pause(unit.self);
	/* A doorbell while paused is not lost, even though the eventfd it rang stays behind. */
	test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA, 64, true}, 1, false);
	test_ring_send(&f.ring);
	usleep(5000);
	assert_int_equal(f.ring.used->idx, 1);
	test_no_error(move(fd));
	uint16_t head;
	uint32_t len;
	test_ring_wait(&f.ring, &head, &len);
	assert_int_equal(len, 64);
	assert_true(serves());
	assert_int_equal(test_status(&f.driver), 15);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_DESCLO, 8), TEST_RINGS);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_Q_MSIX, 2), 1);
	close(fd);
}

/* The level of the line, and the reason for it, travel. */
static void test_saved_intx(void **state)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);

	(void)state;
	drive();
	test_ring_add(&f.ring, &(struct test_buffer){TEST_DATA, 64, true}, 1, false);
	test_ring_send(&f.ring);
	assert_true(test_until(line_is_high()));
	test_no_error(move(fd));
	assert_true(line_is_high());
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_ISR, 1), 1);
	assert_false(line_is_high());
	close(fd);
}

/* A broken device stays one, and is no reason to refuse the stream. */
static void test_saved_broken(void **state)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);

	(void)state;
	test_msix_enable(&f.machine);
	drive();
	test_ring_add(&f.ring, &(struct test_buffer){~0ull, 64, true}, 1, false);
	test_ring_send(&f.ring);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	test_no_error(move(fd));
	assert_int_equal(test_status(&f.driver), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
	drive();
	assert_true(serves());
	close(fd);
}

/* A stream that says what no machine can be in is refused. */
static void refuse(void (*spoil)(void), const char *words)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);

	test_msix_enable(&f.machine);
	drive();
	spoil();
	struct error *err = move(fd);
	assert_non_null(err);
	if (!strstr(error_text(err), words))
		fail_msg("%s", error_text(err));
	error_free(err);
	close(fd);
}

static void spoil_ring(void)
{
	rng_device(f.rng)->queue[0].ring.used_address = TEST_MEMORY;
}

static void spoil_features(void)
{
	f.vp->driver_features |= 1ull << 50;
}

static void spoil_status(void)
{
	atomic_store(&f.vp->status, VIRTIO_CONFIG_S_DRIVER_OK);
}

static void spoil_size(void)
{
	rng_device(f.rng)->queue[0].ring.size = 65;
}

static void test_spoiled_ring(void **state)
{
	(void)state;
	refuse(spoil_ring, "a ring is not in memory");
}

static void test_spoiled_features(void **state)
{
	(void)state;
	refuse(spoil_features, "were negotiated");
}

static void test_spoiled_status(void **state)
{
	(void)state;
	refuse(spoil_status, "negotiated nothing");
}

static void test_spoiled_size(void **state)
{
	(void)state;
	refuse(spoil_size, "power of two");
}

static void test_power_on(void **state)
{
	struct unit unit = virtio_pci_unit(f.vp, "rng");

	(void)state;
	test_msix_enable(&f.machine);
	drive();
	assert_true(serves());
	unit.ops->pause(unit.self);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
	assert_int_equal(test_config_read(&f.machine, 0x04, 2) & 7, 0);
	test_driver_find(&f.driver, &f.machine, f.vp);
	assert_int_equal(test_status(&f.driver), 0);
	test_msix_enable(&f.machine);
	drive();
	assert_true(serves());
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_capabilities),   TEST(test_widths),
		TEST(test_features),       TEST(test_queue_registers),
		TEST(test_bad_ring),       TEST(test_queue_reset),
		TEST(test_intx),           TEST(test_no_vector),
		TEST(test_bus_master),     TEST(test_move),
		TEST(test_window),         TEST(test_saved),
		TEST(test_saved_intx),     TEST(test_saved_broken),
		TEST(test_spoiled_ring),   TEST(test_spoiled_features),
		TEST(test_spoiled_status), TEST(test_spoiled_size),
		TEST(test_power_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
