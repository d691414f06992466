/*
 * Unit tests of the keyboard controller with keyboard and mouse, as drivers use them, with what moves and what is
 * hostile.
 */
#include "vmm/devices/i8042.h"
#include "vmm/devices/test_bench.h"

#include <linux/input-event-codes.h>

struct board {
	struct bench bench;
	struct i8042 i8042;
	unsigned resets;
};

static void on_reset(void *arg)
{
	((struct board *)arg)->resets++;
}

static void start(struct board *b)
{
	struct machine_events events = {.reset = on_reset, .arg = b};

	memset(b, 0, sizeof(*b));
	bench_init(&b->bench);
	assert_ok(i8042_init(&b->i8042, &b->bench.pio, &b->bench.irqs, &events, true));
}

static void stop(struct board *b)
{
	i8042_destroy(&b->i8042);
	bench_destroy(&b->bench);
}

static int setup(void **state)
{
	static struct board board;

	start(&board);
	*state = &board;
	return 0;
}

static int teardown(void **state)
{
	stop(*state);
	return 0;
}

static bool keyboard_irq(const struct board *b)
{
	return b->bench.irqs.sources[I8042_KEYBOARD_GSI] != 0;
}

static bool mouse_irq(const struct board *b)
{
	return b->bench.irqs.sources[I8042_MOUSE_GSI] != 0;
}

static uint8_t status(struct board *b)
{
	return in8(&b->bench, I8042_COMMAND);
}

static void command(struct board *b, uint8_t value)
{
	out8(&b->bench, I8042_COMMAND, value);
}

static void data(struct board *b, uint8_t value)
{
	out8(&b->bench, I8042_DATA, value);
}

/* What is in the output buffer now, and whose it is. */
static void expect(struct board *b, bool aux, const char *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		assert_int_equal(status(b) & 0x21, aux ? 0x21 : 0x01);
		assert_int_equal(in8(&b->bench, I8042_DATA), (uint8_t)bytes[i]);
	}
}
#define EXPECT(b, aux, bytes) expect(b, aux, bytes, sizeof(bytes) - 1)

static void expect_nothing(struct board *b)
{
	assert_int_equal(status(b) & 0x21, 0);
	assert_false(keyboard_irq(b) || mouse_irq(b));
}

static void set_mode(struct board *b, uint8_t mode)
{
	command(b, 0x60);
	data(b, mode);
}

static void mouse_command(struct board *b, uint8_t value)
{
	command(b, 0xd4);
	data(b, value);
}

static void controller(void **state)
{
	struct board *b = *state;

	expect_nothing(b);
	command(b, 0xaa);
	assert_true(status(b) & 0x08);
	EXPECT(b, false, "\x55");
	command(b, 0x20);
	EXPECT(b, false, "\x47");
	set_mode(b, 0x65);
	command(b, 0x20);
	EXPECT(b, false, "\x65");
	command(b, 0xa8);
	command(b, 0xad);
	command(b, 0x20);
	EXPECT(b, false, "\x55");
	command(b, 0xa9);
	command(b, 0xab);
	EXPECT(b, false, "\x00\x00");
	command(b, 0xd2);
	data(b, 0x5a);
	EXPECT(b, false, "\x5a");
	set_mode(b, 0x03);
	command(b, 0xd3);
	data(b, 0xa5);
	assert_true(mouse_irq(b) && !keyboard_irq(b));
	EXPECT(b, true, "\xa5");
	expect_nothing(b);
	/* Answers that nobody takes are not piled up without end. */
	for (unsigned i = 0; i < 100; i++)
		command(b, 0x20);
	for (unsigned i = 0; i < 9; i++)
		EXPECT(b, false, "\x03");
	expect_nothing(b);
}

static void resets(void **state)
{
	struct board *b = *state;

	command(b, 0xff);
	assert_int_equal(b->resets, 0);
	command(b, 0xfe);
	assert_int_equal(b->resets, 1);
	command(b, 0xd1);
	data(b, 0x03);
	assert_int_equal(b->resets, 1);
	command(b, 0xd0);
	EXPECT(b, false, "\x03");
	command(b, 0xd1);
	data(b, 0x02);
	assert_int_equal(b->resets, 2);
}

static void keys(void **state)
{
	struct board *b = *state;

	assert_true(i8042_key(&b->i8042, KEY_A, true));
	assert_true(keyboard_irq(b));
	EXPECT(b, false, "\x1e");
	i8042_key(&b->i8042, KEY_A, false);
	EXPECT(b, false, "\x9e");
	i8042_key(&b->i8042, KEY_DELETE, true);
	i8042_key(&b->i8042, KEY_DELETE, false);
	EXPECT(b, false, "\xe0\x53\xe0\xd3");
	i8042_key(&b->i8042, KEY_F7, true);
	i8042_key(&b->i8042, KEY_F11, true);
	i8042_key(&b->i8042, KEY_102ND, true);
	EXPECT(b, false, "\x41\x57\x56");
	i8042_key(&b->i8042, KEY_PAUSE, true);
	assert_false(i8042_key(&b->i8042, KEY_PAUSE, false));
	EXPECT(b, false, "\xe1\x1d\x45\xe1\x9d\xc5");
	assert_false(i8042_key(&b->i8042, KEY_BRIGHTNESSUP, true));
	assert_false(i8042_key(&b->i8042, 0, true));
	assert_false(i8042_key(&b->i8042, ~0u, true));
	expect_nothing(b);
	/* Without translation: set 2. */
	set_mode(b, 0x01);
	i8042_key(&b->i8042, KEY_A, true);
	i8042_key(&b->i8042, KEY_A, false);
	i8042_key(&b->i8042, KEY_RIGHTCTRL, false);
	i8042_key(&b->i8042, KEY_F7, true);
	EXPECT(b, false, "\x1c\xf0\x1c\xe0\xf0\x14\x83");
}

/* Every key of the main block arrives as its set 1 code: that is what its code is. */
static void all_keys(void **state)
{
	struct board *b = *state;

	for (unsigned code = KEY_ESC; code <= KEY_F12; code++) {
		if (code == 84 || code == KEY_ZENKAKUHANKAKU)
			continue;
		assert_true(i8042_key(&b->i8042, code, true));
		assert_int_equal(in8(&b->bench, I8042_DATA), code);
		assert_true(i8042_key(&b->i8042, code, false));
		assert_int_equal(in8(&b->bench, I8042_DATA), code | 0x80);
	}
	expect_nothing(b);
}

static void keyboard_commands(void **state)
{
	struct board *b = *state;

	data(b, 0xff);
	EXPECT(b, false, "\xfa\xaa");
	data(b, 0xf2);
	EXPECT(b, false, "\xfa\xab\x41"); /* translated, as on every PC */
	data(b, 0xed);
	EXPECT(b, false, "\xfa");
	data(b, 0x05);
	EXPECT(b, false, "\xfa");
	assert_int_equal(i8042_leds(&b->i8042), PS2_LED_SCROLL | PS2_LED_CAPS);
	data(b, 0xf0);
	data(b, 0x00);
	EXPECT(b, false, "\xfa\xfa\x41");
	data(b, 0xf0);
	data(b, 0x03);
	EXPECT(b, false, "\xfa\xfe");
	data(b, 0xee);
	EXPECT(b, false, "\xee");
	data(b, 0xed);
	data(b, 0xf4); /* a command where a parameter should be */
	EXPECT(b, false, "\xfa\xfa");
	data(b, 0xf5);
	EXPECT(b, false, "\xfa");
	assert_false(i8042_key(&b->i8042, KEY_A, true));
	data(b, 0xf4);
	EXPECT(b, false, "\xfa");
	i8042_key(&b->i8042, KEY_A, true);
	EXPECT(b, false, "\x1e");
	data(b, 0xfe);
	EXPECT(b, false, "\x1e");
	/* Turned off at the controller, keys wait. */
	command(b, 0xad);
	i8042_key(&b->i8042, KEY_B, true);
	expect_nothing(b);
	command(b, 0xae);
	assert_true(keyboard_irq(b));
	EXPECT(b, false, "\x30");
}

/* A guest that does not read loses presses, but no release of what it got. */
static void full(void **state)
{
	struct board *b = *state;
	unsigned pressed = 0, seen = 0;

	while (i8042_key(&b->i8042, KEY_DELETE, true))
		assert_true(++pressed < 100);
	assert_true(i8042_key(&b->i8042, KEY_DELETE, false));
	assert_in_range(pressed, 10, 20);
	while (status(b) & 1)
		seen += in8(&b->bench, I8042_DATA) == 0x53;
	assert_int_equal(seen, pressed);
	assert_true(i8042_key(&b->i8042, KEY_DELETE, true));
}

static void knock(struct board *b)
{
	for (unsigned i = 0; i < 3; i++) {
		mouse_command(b, 0xf3);
		mouse_command(b, (const uint8_t[]){200, 100, 80}[i]);
		EXPECT(b, true, "\xfa\xfa");
	}
}

static void mouse(void **state)
{
	struct board *b = *state;

	mouse_command(b, 0xff);
	assert_true(mouse_irq(b));
	EXPECT(b, true, "\xfa\xaa\x00");
	i8042_mouse(&b->i8042, 5, 5, 0, 0); /* not enabled */
	expect_nothing(b);
	mouse_command(b, 0xf4);
	EXPECT(b, true, "\xfa");
	i8042_mouse(&b->i8042, 5, 3, 0, PS2_BUTTON_LEFT);
	EXPECT(b, true, "\x29\x05\xfd");
	i8042_mouse(&b->i8042, 0, 0, 0, 0);
	EXPECT(b, true, "\x08\x00\x00");
	i8042_mouse(&b->i8042, 0, 0, 0, 0);
	expect_nothing(b);
	/* What does not fit into a packet comes with the next one; what happens meanwhile is added up. */
	i8042_mouse(&b->i8042, -300, 0, 0, 0);
	i8042_mouse(&b->i8042, 0, -2, 0, PS2_BUTTON_RIGHT);
	EXPECT(b, true, "\x18\x01\x00\x1a\xd3\x02");
	mouse_command(b, 0xe9);
	EXPECT(b, true, "\xfa\x21\x02\x64");
	mouse_command(b, 0xf2);
	EXPECT(b, true, "\xfa\x00");
	knock(b);
	mouse_command(b, 0xf2);
	EXPECT(b, true, "\xfa\x03");
	i8042_mouse(&b->i8042, 1, 0, -1, 0);
	EXPECT(b, true, "\x08\x01\x00\xff");
	mouse_command(b, 0xee);
	EXPECT(b, true, "\xfa");
	mouse_command(b, 0x42);
	EXPECT(b, true, "\x42");
	mouse_command(b, 0xec);
	mouse_command(b, 0xf0);
	mouse_command(b, 0xeb);
	EXPECT(b, true, "\xfa\xfa\xfa\x08\x00\x00\x00");
	mouse_command(b, 0x33);
	EXPECT(b, true, "\xfe");
	for (unsigned i = 0; i < 100; i++)
		i8042_mouse(&b->i8042, 1 << 30, -(1 << 30), 1 << 30, 7);
	expect_nothing(b); /* remote mode: it speaks when asked */
}

/* Keyboard before mouse, each byte on its own line. */
static void both(void **state)
{
	struct board *b = *state;

	mouse_command(b, 0xf4);
	EXPECT(b, true, "\xfa");
	i8042_mouse(&b->i8042, 1, 0, 0, 0);
	i8042_key(&b->i8042, KEY_A, true);
	assert_true(mouse_irq(b) && !keyboard_irq(b));
	EXPECT(b, true, "\x08");
	assert_true(!mouse_irq(b) && keyboard_irq(b));
	EXPECT(b, false, "\x1e");
	EXPECT(b, true, "\x01\x00");
	set_mode(b, 0x70);
	i8042_key(&b->i8042, KEY_A, true);
	i8042_mouse(&b->i8042, 1, 0, 0, 0);
	expect_nothing(b);
}

static void moves(void **state)
{
	struct board *b = *state;
	static struct board other;

	mouse_command(b, 0xf4);
	knock(b);
	EXPECT(b, true, "\xfa");
	data(b, 0xed);
	i8042_key(&b->i8042, KEY_UP, true);
	i8042_mouse(&b->i8042, 600, 1, 2, PS2_BUTTON_MIDDLE);
	command(b, 0xd3);
	data(b, 0x77);
	command(b, 0xd4); /* and its parameter comes after the move */
	int fd = bench_save(&i8042_unit, &b->i8042);
	start(&other);
	assert_ok(bench_load(&i8042_unit, &other.i8042, fd));
	close(fd);
	assert_true(keyboard_irq(&other));
	data(&other, 0xe9);
	EXPECT(&other, false, "\xfa");
	EXPECT(&other, true, "\x77");
	EXPECT(&other, false, "\xe0\x48");
	EXPECT(&other, true, "\xfa\x22\x02\x50\x2c\xff\xff\x02");
	data(&other, 0x02); /* the LEDs' parameter */
	assert_int_equal(i8042_leds(&other.i8042), PS2_LED_NUM);
	i8042_unit.reset(&other.i8042);
	expect_nothing(&other);
	assert_int_equal(i8042_leds(&other.i8042), 0);
	stop(&other);
}

static void bad_mouse(void *self, struct saved *s)
{
	uint8_t knock_count = 3;

	saved_u8(s, "knock", &knock_count);
}

static void bad_state(void *self, struct saved *s)
{
	saved_subsection(s, "mouse", true, bad_mouse, self);
}

static void hostile_state(void **state)
{
	struct board *b = *state;
	const struct unit_ops wrong = {.version = 1, .state = bad_state};

	int fd = bench_save(&wrong, b);
	assert_error(bench_load(&i8042_unit, &b->i8042, fd), "knock 3");
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(controller, setup, teardown),
		cmocka_unit_test_setup_teardown(resets, setup, teardown),
		cmocka_unit_test_setup_teardown(keys, setup, teardown),
		cmocka_unit_test_setup_teardown(all_keys, setup, teardown),
		cmocka_unit_test_setup_teardown(keyboard_commands, setup, teardown),
		cmocka_unit_test_setup_teardown(full, setup, teardown),
		cmocka_unit_test_setup_teardown(mouse, setup, teardown),
		cmocka_unit_test_setup_teardown(both, setup, teardown),
		cmocka_unit_test_setup_teardown(moves, setup, teardown),
		cmocka_unit_test_setup_teardown(hostile_state, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
