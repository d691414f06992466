/*
 * Unit tests of the display: its registers as drivers use them, modes that do not fit, pictures, and moving it.
 */
#include "base/util.h"
#include "vmm/devices/test_bench.h"
#include "vmm/display/display.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#define SLOT 1u

struct board {
	struct bench bench;
	struct bus mmio;
	struct pci_bus pci;
	struct memory memory;
	struct display *display;
};

static const struct display_config config = {.width = 1024, .height = 768};

static uint64_t config_read(struct board *b, unsigned reg, unsigned size)
{
	bus_write(&b->bench.pio, 0xcf8, 0x80000000u | SLOT << 11 | reg, 4);
	return bus_read(&b->bench.pio, 0xcfc, size);
}

static void config_write(struct board *b, unsigned reg, uint64_t value, unsigned size)
{
	bus_write(&b->bench.pio, 0xcf8, 0x80000000u | SLOT << 11 | reg, 4);
	bus_write(&b->bench.pio, 0xcfc, value, size);
}

static uint64_t bar(struct board *b, unsigned i)
{
	return config_read(b, 0x10 + 4 * i, 4);
}

static uint16_t get(struct board *b, enum display_register reg)
{
	return (uint16_t)bus_read(&b->mmio, bar(b, DISPLAY_REGISTER_BAR) + DISPLAY_VBE + 2 * reg, 2);
}

static void set(struct board *b, enum display_register reg, uint16_t value)
{
	bus_write(&b->mmio, bar(b, DISPLAY_REGISTER_BAR) + DISPLAY_VBE + 2 * reg, value, 2);
}

static void set_mode(struct board *b, uint16_t width, uint16_t height, uint16_t virtual)
{
	set(b, VBE_ENABLE, 0);
	set(b, VBE_BPP, 32);
	set(b, VBE_XRES, width);
	set(b, VBE_YRES, height);
	set(b, VBE_VIRT_WIDTH, virtual);
	set(b, VBE_X_OFFSET, 0);
	set(b, VBE_Y_OFFSET, 0);
	set(b, VBE_ENABLE, 0x41);
}

static void start(struct board *b, const struct display_config *with)
{
	memset(b, 0, sizeof(*b));
	bench_init(&b->bench);
	bus_init(&b->mmio, "MMIO");
	assert_ok(pci_bus_init(&b->pci, &b->bench.pio, &b->mmio, &b->bench.irqs, 4 * GIB));
	assert_ok(display_new(&b->display, &b->memory, -1, &b->pci, SLOT, with));
	config_write(b, 0x04, 2, 2);
}

static void stop(struct board *b)
{
	display_free(b->display);
	pci_bus_destroy(&b->pci);
	bench_destroy(&b->bench);
}

static int setup(void **state)
{
	static struct board board;

	start(&board, &config);
	*state = &board;
	return 0;
}

static int teardown(void **state)
{
	stop(*state);
	return 0;
}

static void identity(void **state)
{
	struct board *b = *state;

	assert_int_equal(config_read(b, 0, 4), 0x11111234);
	assert_int_equal(config_read(b, 8, 4), 0x03800002);
	assert_int_equal(get(b, VBE_ID), 0xb0c5);
	assert_int_equal(get(b, VBE_MEMORY), 256);
	set(b, VBE_ID, 0xb0c0); /* a driver asks whether the old interface is there, too */
	assert_int_equal(get(b, VBE_ID), 0xb0c0);
	set(b, VBE_ID, 0xb0c6);
	assert_int_equal(get(b, VBE_ID), 0xb0c0);
	set(b, VBE_MEMORY, 1);
	assert_int_equal(get(b, VBE_MEMORY), 256);
	set(b, VBE_ENABLE, VBE_GET_CAPS);
	assert_int_equal(get(b, VBE_BPP), 32);
	assert_int_equal(get(b, VBE_XRES), DISPLAY_SIDE_MAX);
	uint64_t registers = bar(b, DISPLAY_REGISTER_BAR);
	assert_int_equal(bus_read(&b->mmio, registers + 0x600, 4), 8);
	assert_int_equal(bus_read(&b->mmio, registers + 0x604, 4), 0x1e1e1e1e);
	assert_int_equal(bus_read(&b->mmio, registers + 0x400, 4), 0xffffffff);
}

/* The sum of an EDID is 0, and the first detailed timing says the size that was asked for. */
static void edid_names_the_mode(void **state)
{
	struct board *b = *state;
	uint8_t edid[DISPLAY_EDID_BYTES], sum = 0;

	for (unsigned i = 0; i < sizeof(edid); i++) {
		edid[i] = (uint8_t)bus_read(&b->mmio, bar(b, DISPLAY_REGISTER_BAR) + i, 1);
		sum = (uint8_t)(sum + edid[i]);
	}
	assert_int_equal(sum, 0);
	assert_memory_equal(edid, "\x00\xff\xff\xff\xff\xff\xff\x00", 8);
	assert_int_equal(edid[0x36 + 2] | edid[0x36 + 4] >> 4 << 8, 1024);
	assert_int_equal(edid[0x36 + 5] | edid[0x36 + 7] >> 4 << 8, 768);
	unsigned clock = (edid[0x36] | edid[0x37] << 8) * 10; /* kHz */
	unsigned hertz = clock * 1000 / ((1024 + 160) * (768 + 40));
	assert_in_range(hertz, 59, 60);
}

static void sizes(void **state)
{
	(void)state;
	assert_true(display_size_fits(640, 480));
	assert_true(display_size_fits(1920, 1080));
	assert_true(display_size_fits(2560, 1600));
	assert_false(display_size_fits(2560, 1640)); /* more than 16 MiB */
	assert_false(display_size_fits(1025, 768));
	assert_false(display_size_fits(4096, 480));
	assert_false(display_size_fits(632, 480));
	assert_false(display_size_fits(1ull << 40, 1ull << 40));
}

static void modes_are_bounded(void **state)
{
	struct board *b = *state;

	assert_int_equal(display_mode(b->display).width, 0);
	set_mode(b, 800, 600, 1024);
	struct display_mode mode = display_mode(b->display);
	assert_int_equal(mode.width, 800);
	assert_int_equal(mode.height, 600);
	assert_int_equal(mode.stride, 4096);
	assert_int_equal(mode.offset, 0);
	set(b, VBE_X_OFFSET, 5);
	set(b, VBE_Y_OFFSET, 3);
	assert_int_equal(display_mode(b->display).offset, 3 * 4096 + 20);
	/* The last byte of the picture is the last of the memory, and not one more. */
	set_mode(b, 1024, 4096, 1024);
	assert_int_equal(display_mode(b->display).height, 4096);
	set(b, VBE_X_OFFSET, 1);
	assert_int_equal(display_mode(b->display).height, 0);
	set_mode(b, 0xffff, 0xffff, 0xffff);
	assert_int_equal(display_mode(b->display).height, 0);
	set(b, VBE_X_OFFSET, 0xffff);
	set(b, VBE_Y_OFFSET, 0xffff);
	assert_int_equal(display_mode(b->display).height, 0);
	set_mode(b, 0, 600, 0);
	assert_int_equal(display_mode(b->display).height, 0);
	set_mode(b, 800, 600, 0); /* a width that is less than the picture's does not count */
	assert_int_equal(display_mode(b->display).stride, 3200);
	set(b, VBE_BPP, 16);
	assert_int_equal(display_mode(b->display).height, 0);
}

static void mode_set_clears(void **state)
{
	struct board *b = *state;
	uint64_t frame = bar(b, DISPLAY_FRAME_BAR);

	set_mode(b, 640, 480, 640);
	bus_write(&b->mmio, frame + 640 * 480 * 4 - 4, 0x123456, 4);
	bus_write(&b->mmio, frame + 640 * 480 * 4, 0x654321, 4);
	set(b, VBE_ENABLE, 0);
	set(b, VBE_ENABLE, 0xc1);
	assert_int_equal(bus_read(&b->mmio, frame + 640 * 480 * 4 - 4, 4), 0x123456);
	set(b, VBE_ENABLE, 0x41); /* it is on already */
	assert_int_equal(bus_read(&b->mmio, frame + 640 * 480 * 4 - 4, 4), 0x123456);
	set_mode(b, 640, 480, 640);
	assert_int_equal(bus_read(&b->mmio, frame + 640 * 480 * 4 - 4, 4), 0);
	assert_int_equal(bus_read(&b->mmio, frame + 640 * 480 * 4, 4), 0x654321);
}

/* A picture of 640x480 with a pixel of its own everywhere, from the second row of a wider frame buffer. */
static void screenshot(void **state)
{
	struct board *b = *state;
	int fd = memory_stream("", 0), pipes[2];
	static uint8_t bytes[640 * 480 * 3 + 100];

	assert_error(display_screenshot(b->display, fd), "no picture");
	set_mode(b, 640, 480, 1000);
	set(b, VBE_Y_OFFSET, 1);
	set(b, VBE_X_OFFSET, 2);
	for (unsigned y = 0; y < 480; y++) {
		uint32_t *row = (uint32_t *)b->display->frame + (y + 1) * 1000 + 2;
		for (unsigned x = 0; x < 640; x++)
			row[x] = 0xff000000 | y << 12 | x;
	}
	assert_ok(display_screenshot(b->display, fd));
	assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), 640 * 480 * 3 + 15);
	assert_memory_equal(bytes, "P6\n640 480\n255\n", 15);
	for (unsigned i = 0; i < 640 * 480; i++) {
		const uint8_t *p = bytes + 15 + 3 * (size_t)i;
		assert_int_equal(p[0] << 16 | p[1] << 8 | p[2], (i / 640) << 12 | i % 640);
	}
	close(fd);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_error(display_screenshot(b->display, pipes[1]), "not a regular file");
	close(pipes[0]);
	close(pipes[1]);
}

static unsigned count(const uint64_t *bitmap)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MEMORY_WINDOW_WORDS; i++)
		n += (unsigned)__builtin_popcountll(bitmap[i]);
	return n;
}

static void what_was_drawn(void **state)
{
	struct board *b = *state;
	uint64_t frame = bar(b, DISPLAY_FRAME_BAR), bitmap[MEMORY_WINDOW_WORDS] = {};

	memory_window_track(&b->display->window, true);
	memory_window_collect(&b->display->window, bitmap);
	assert_int_equal(count(bitmap), 4096);
	memset(bitmap, 0, sizeof(bitmap));
	bus_write(&b->mmio, frame + 70 * 4096 + 4092, ~0ull, 8); /* the end of one page and the start of another */
	memory_window_collect(&b->display->window, bitmap);
	assert_int_equal(count(bitmap), 2);
	assert_int_equal(bitmap[1], 0xc0);
	memset(bitmap, 0, sizeof(bitmap));
	memory_window_collect(&b->display->window, bitmap);
	assert_int_equal(count(bitmap), 0);
	config_write(b, 0x10, 0xd0000000, 4);
	memory_window_collect(&b->display->window, bitmap);
	assert_int_equal(count(bitmap), 4096);
}

/* Nobody who gets the descriptor can write to the picture or change its size. */
static void frame_is_sealed(void **state)
{
	struct board *b = *state;
	int fd = b->display->fd;

	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(ftruncate(fd, 4096), -1);
	assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	void *look = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(look, MAP_FAILED);
	assert_int_equal(mprotect(look, 4096, PROT_READ | PROT_WRITE), -1);
	bus_write(&b->mmio, bar(b, DISPLAY_FRAME_BAR), 0x77, 1);
	assert_int_equal(*(uint8_t *)look, 0x77);
	munmap(look, 4096);
}

static void move(struct board *from, struct board *to)
{
	cleanup_saved struct saved *out = NULL, *in = NULL;
	int fd = memory_stream("", 0);

	assert_ok(saved_create(fd, MACHINE, &out));
	assert_ok(saved_unit(out, "display", 1, display_unit.state, from->display));
	assert_ok(display_bulk(from->display, out));
	assert_ok(saved_finish(out));
	rewind_stream(fd);
	assert_ok(saved_open(fd, MACHINE, &in));
	assert_ok(saved_unit(in, "display", 1, display_unit.state, to->display));
	assert_ok(display_bulk(to->display, in));
	assert_ok(saved_finish(in));
	assert_ok(display_unit.restored(to->display));
	close(fd);
}

/* The picture comes along, and so does the monitor that the guest knows. */
static void moves(void **state)
{
	struct board *b = *state;
	static struct board other;

	set_mode(b, 1000, 700, 1200);
	set(b, VBE_Y_OFFSET, 7);
	config_write(b, 0x10, 0xd0000000, 4);
	for (unsigned i = 0; i < 50; i++)
		bus_write(&b->mmio, 0xd0000000 + i * 0x12345ull, i | 1, 4);
	start(&other, &(struct display_config){.width = 640, .height = 480});
	move(b, &other);
	for (unsigned i = 0; i < 50; i++)
		assert_int_equal(bus_read(&other.mmio, 0xd0000000 + i * 0x12345ull, 4), i | 1);
	struct display_mode was = display_mode(b->display), is = display_mode(other.display);
	assert_memory_equal(&is, &was, sizeof(is));
	assert_memory_equal(other.display->edid, b->display->edid, DISPLAY_EDID_BYTES);
	display_unit.reset(other.display);
	assert_int_equal(display_mode(other.display).width, 0);
	assert_int_equal(bar(&other, DISPLAY_FRAME_BAR), 0xc0000000);
	stop(&other);
}

static void wrong_state(void *self, struct saved *s)
{
	struct board *b = self;

	pci_device_state(&b->display->pci, s);
	uint16_t id = 0xb0c6;
	saved_u16(s, "id", &id);
}

static void hostile_state(void **state)
{
	struct board *b = *state;
	const struct unit_ops wrong = {.version = 1, .state = wrong_state};

	int fd = bench_save(&wrong, b);
	assert_error(bench_load(&display_unit, b->display, fd), "0xb0c6");
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(identity, setup, teardown),
		cmocka_unit_test_setup_teardown(edid_names_the_mode, setup, teardown),
		cmocka_unit_test(sizes),
		cmocka_unit_test_setup_teardown(modes_are_bounded, setup, teardown),
		cmocka_unit_test_setup_teardown(mode_set_clears, setup, teardown),
		cmocka_unit_test_setup_teardown(screenshot, setup, teardown),
		cmocka_unit_test_setup_teardown(what_was_drawn, setup, teardown),
		cmocka_unit_test_setup_teardown(frame_is_sealed, setup, teardown),
		cmocka_unit_test_setup_teardown(moves, setup, teardown),
		cmocka_unit_test_setup_teardown(hostile_state, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
