/*
 * Tests of the tablet through its PCI function and rings in plain memory: what it says it is, events, the line of
 * points, and moving it.
 */
#include "vmm/virtio/tablet.h"
#include "vmm/virtio/test_driver.h"

#include <linux/input-event-codes.h>
#include <linux/virtio_input.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

#define EVENT_BYTES sizeof(struct virtio_input_event)

struct fixture {
	struct test_machine machine;
	struct tablet *tablet;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring events, status;
	unsigned given; /* buffers */
};

static struct fixture f;

static int setup(void **state)
{
	(void)state;
	memset(&f, 0, sizeof(f));
	test_machine_init(&f.machine, NULL);
	test_no_error(tablet_new(&f.tablet, &f.machine.memory, f.machine.threads[0]));
	test_no_error(virtio_pci_new(&f.vp, tablet_device(f.tablet), &f.machine.pci, TEST_SLOT));
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	assert_false(tablet_in_use(f.tablet));
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.events, &f.driver, 0, 64);
	test_ring_init(&f.status, &f.driver, 1, 64);
	test_driver_ok(&f.driver);
	assert_true(tablet_in_use(f.tablet));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	virtio_pci_free(f.vp);
	tablet_free(f.tablet);
	test_machine_destroy(&f.machine, false);
	return 0;
}

static void ask(uint8_t select, uint8_t subsel)
{
	test_write(&f.driver, VIRTIO_BAR_DEVICE, select, 1);
	test_write(&f.driver, VIRTIO_BAR_DEVICE + 1, subsel, 1);
}

static uint8_t answer(unsigned offset)
{
	return (uint8_t)test_read(&f.driver, VIRTIO_BAR_DEVICE + offset, 1);
}

static void what_it_is(void **state)
{
	(void)state;
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10521af4);
	ask(VIRTIO_INPUT_CFG_ID_NAME, 0);
	assert_int_equal(answer(2), 12);
	assert_int_equal(answer(8), 'G');
	ask(VIRTIO_INPUT_CFG_EV_BITS, EV_KEY);
	assert_int_equal(answer(2), BTN_MIDDLE / 8 + 1);
	assert_int_equal(answer(8 + BTN_LEFT / 8), 7);
	ask(VIRTIO_INPUT_CFG_EV_BITS, EV_ABS);
	assert_int_equal(answer(2), 1);
	assert_int_equal(answer(8), 3);
	ask(VIRTIO_INPUT_CFG_ABS_INFO, ABS_Y);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 8 + 4, 4), TABLET_MAX);
	ask(VIRTIO_INPUT_CFG_ABS_INFO, ABS_Z);
	assert_int_equal(answer(2), 0);
	for (unsigned select = 0; select < 256; select++) {
		ask((uint8_t)select, 0xff);
		assert_int_equal(answer(0), select);
		assert_int_equal(answer(2), 0);
	}
}

/* Makes @count buffers available, each for one event. */
static void give(unsigned count)
{
	for (unsigned i = 0; i < count; i++, f.given++) {
		uint64_t at = TEST_DATA + f.given % 64 * EVENT_BYTES;
		test_ring_add(&f.events, &(struct test_buffer){at, EVENT_BYTES, true}, 1, false);
	}
	test_ring_send(&f.events);
}

static void move(uint16_t x, uint16_t y, uint8_t buttons, int8_t wheel)
{
	tablet_move(f.tablet, &(struct tablet_point){x, y, buttons, wheel});
}

/* The next event; the buffers come back in the order in which they were given. */
static void expect(uint16_t type, uint16_t code, uint32_t value)
{
	struct virtio_input_event e;
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.events, &head, &len);
	assert_int_equal(len, EVENT_BYTES);
	memcpy(&e, test_at(&f.machine, f.events.desc[head].addr), sizeof(e));
	assert_int_equal(e.type, type);
	assert_int_equal(e.code, code);
	assert_int_equal(e.value, value);
}

static void expect_none(void)
{
	uint16_t head;
	uint32_t len;

	usleep(20000);
	assert_false(test_ring_take(&f.events, &head, &len));
}

static void events(void **state)
{
	(void)state;
	give(32);
	move(100, 200, 0, 0);
	expect(EV_ABS, ABS_X, 100);
	expect(EV_ABS, ABS_Y, 200);
	expect(EV_SYN, SYN_REPORT, 0);
	move(100, 300, 1, 0);
	expect(EV_ABS, ABS_Y, 300);
	expect(EV_KEY, BTN_LEFT, 1);
	expect(EV_SYN, SYN_REPORT, 0);
	move(100, 300, 6, -1);
	expect(EV_KEY, BTN_LEFT, 0);
	expect(EV_KEY, BTN_RIGHT, 1);
	expect(EV_KEY, BTN_MIDDLE, 1);
	expect(EV_REL, REL_WHEEL, (uint32_t)-1);
	expect(EV_SYN, SYN_REPORT, 0);
	expect_none();
}

/* A driver that gives no buffers gets the last position and every button in the end, and nothing without end. */
static void slow_driver(void **state)
{
	(void)state;
	move(1, 1, 0, 0);
	for (uint16_t i = 0; i < 1000; i++)
		move(i, 1, 0, 0);
	move(1000, 1, 1, 0);
	move(1000, 1, 0, 0);
	for (uint16_t i = 0; i < 1000; i++)
		move(2000, i, 0, 0);
	expect_none();
	give(2); /* the first point in two goes */
	expect(EV_ABS, ABS_X, 1);
	expect(EV_ABS, ABS_Y, 1);
	give(1);
	expect(EV_SYN, SYN_REPORT, 0);
	give(8);
	expect(EV_ABS, ABS_X, 999);
	expect(EV_SYN, SYN_REPORT, 0);
	expect(EV_ABS, ABS_X, 1000);
	expect(EV_KEY, BTN_LEFT, 1);
	expect(EV_SYN, SYN_REPORT, 0);
	give(4);
	expect(EV_KEY, BTN_LEFT, 0); /* the release and the movements after it are one point */
	give(20);
	expect(EV_SYN, SYN_REPORT, 0);
	expect(EV_ABS, ABS_X, 2000);
	expect(EV_ABS, ABS_Y, 999);
	expect(EV_SYN, SYN_REPORT, 0);
	/* More clicks than the line is long: the last state is what counts. */
	expect_none();
}

static void full_line(void **state)
{
	uint16_t head;
	uint32_t len;
	struct virtio_input_event e = {};

	(void)state;
	for (unsigned i = 0; i <= 100; i++)
		move(5, 5, i % 2, 0);
	move(6, 7, 4, 0);
	give(60);
	while (test_until(test_ring_take(&f.events, &head, &len))) {
		memcpy(&e, test_at(&f.machine, f.events.desc[head].addr), sizeof(e));
		if (e.type == EV_KEY && e.code == BTN_MIDDLE)
			break;
	}
	assert_int_equal(e.code, BTN_MIDDLE);
	assert_int_equal(e.value, 1);
}

static void status_queue(void **state)
{
	uint16_t head;
	uint32_t len;

	(void)state;
	test_ring_add(&f.status, &(struct test_buffer){TEST_DATA, 8, false}, 1, false);
	test_ring_send(&f.status);
	test_ring_wait(&f.status, &head, &len);
	assert_int_equal(len, 0);
}

static void broken(void **state)
{
	(void)state;
	test_ring_add(&f.events, &(struct test_buffer){~0ull, 8, true}, 1, false);
	test_ring_send(&f.events);
	move(1, 1, 0, 0);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	assert_false(tablet_in_use(f.tablet));
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.events, &f.driver, 0, 64);
	test_driver_ok(&f.driver);
	expect_none(); /* what was waiting was for the driver before */
	give(8);
	move(2, 0, 0, 0);
	expect(EV_ABS, ABS_X, 2);
	expect(EV_SYN, SYN_REPORT, 0);
}

/* What waits comes along, a button held down too; and what the guest knows is not told again. */
static void moves(void **state)
{
	struct unit unit = virtio_pci_unit(f.vp, "tablet");
	struct saved *s;
	int fd = memfd_create("saved", MFD_CLOEXEC);

	(void)state;
	give(3);
	move(10, 20, 0, 0);
	expect(EV_ABS, ABS_X, 10);
	expect(EV_ABS, ABS_Y, 20);
	expect(EV_SYN, SYN_REPORT, 0);
	move(30, 20, 1, 0);
	move(30, 20, 0, 0);
	ask(VIRTIO_INPUT_CFG_ABS_INFO, ABS_X);
	unit.ops->pause(unit.self);
	test_no_error(saved_create(fd, "test", &s));
	test_no_error(saved_unit(s, unit.name, unit.ops->version, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	unit.ops->reset(unit.self);
	assert_true(lseek(fd, 0, SEEK_SET) == 0);
	test_no_error(saved_open(fd, "test", &s));
	test_no_error(saved_unit(s, unit.name, unit.ops->version, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	close(fd);
	test_no_error(unit.ops->restored(unit.self));
	unit.ops->resume(unit.self);
	assert_int_equal(answer(0), VIRTIO_INPUT_CFG_ABS_INFO);
	give(5);
	expect(EV_ABS, ABS_X, 30);
	expect(EV_KEY, BTN_LEFT, 1);
	expect(EV_SYN, SYN_REPORT, 0);
	expect(EV_KEY, BTN_LEFT, 0);
	expect(EV_SYN, SYN_REPORT, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_it_is, setup, teardown),
		cmocka_unit_test_setup_teardown(events, setup, teardown),
		cmocka_unit_test_setup_teardown(slow_driver, setup, teardown),
		cmocka_unit_test_setup_teardown(full_line, setup, teardown),
		cmocka_unit_test_setup_teardown(status_queue, setup, teardown),
		cmocka_unit_test_setup_teardown(broken, setup, teardown),
		cmocka_unit_test_setup_teardown(moves, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
