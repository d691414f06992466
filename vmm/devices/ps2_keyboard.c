/*
 * The PS/2 keyboard; see ps2.h. Touches its own state only.
 *
 * Key codes of Linux are scan codes of set 1 with other names, up to F12; so the scan code of set 2 is found by looking
 * for the one that the controller would translate to it. The table below has the keys with a prefix.
 */
#include "vmm/devices/ps2.h"

#include "base/util.h"

#include <linux/input-event-codes.h>
#include <string.h>

enum {
	SET_LEDS = 0xed,
	ECHO = 0xee,
	SCAN_CODE_SET = 0xf0,
	IDENTIFY = 0xf2,
	SET_RATE = 0xf3,
	ENABLE = 0xf4,
	DISABLE = 0xf5,
	DEFAULTS = 0xf6,
	ALL_TYPEMATIC = 0xf7, /* to 0xfa: of set 3, acknowledged and without effect */
	ALL_MAKE_BREAK = 0xfa,
	RESEND = 0xfe,
	RESET = 0xff,
};
enum { ACK = 0xfa, TEST_PASSED = 0xaa, NAK = 0xfe };

#define PREFIX       0xe0
#define BREAK        0xf0
#define RATE_DEFAULT 0x2b
#define SEQUENCE_MAX 8u
#define KEPT_FREE    (PS2_QUEUE_BYTES / 2) /* for answers and releases */

/* Index: set 2; value: set 1. */
const uint8_t ps2_translation[128] = {
	0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, /* 00 */
	0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, /* 10 */
	0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, /* 20 */
	0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, /* 30 */
	0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, /* 40 */
	0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, /* 50 */
	0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, /* 60 */
	0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, /* 70 */
};
#define SET2_F7 0x83 /* above the table: it translates to 0x41 as 0x02 does */

static const struct {
	uint8_t code, set1;
	bool prefixed;
} others[] = {
	{KEY_ZENKAKUHANKAKU, 0x76, false},
	{KEY_RO, 0x73, false},
	{KEY_KATAKANAHIRAGANA, 0x70, false},
	{KEY_HENKAN, 0x79, false},
	{KEY_MUHENKAN, 0x7b, false},
	{KEY_YEN, 0x7d, false},
	{KEY_KPENTER, 0x1c, true},
	{KEY_RIGHTCTRL, 0x1d, true},
	{KEY_KPSLASH, 0x35, true},
	{KEY_SYSRQ, 0x37, true},
	{KEY_RIGHTALT, 0x38, true},
	{KEY_HOME, 0x47, true},
	{KEY_UP, 0x48, true},
	{KEY_PAGEUP, 0x49, true},
	{KEY_LEFT, 0x4b, true},
	{KEY_RIGHT, 0x4d, true},
	{KEY_END, 0x4f, true},
	{KEY_DOWN, 0x50, true},
	{KEY_PAGEDOWN, 0x51, true},
	{KEY_INSERT, 0x52, true},
	{KEY_DELETE, 0x53, true},
	{KEY_LEFTMETA, 0x5b, true},
	{KEY_RIGHTMETA, 0x5c, true},
	{KEY_COMPOSE, 0x5d, true},
};

/* --- queues --- */

bool ps2_put(struct ps2_queue *q, const uint8_t *bytes, size_t len)
{
	if (len > PS2_QUEUE_BYTES - q->count)
		return false;
	memcpy(q->byte + q->count, bytes, len);
	q->count += len;
	return true;
}

uint8_t ps2_take(struct ps2_queue *q)
{
	uint8_t byte = q->byte[0];

	q->count--;
	memmove(q->byte, q->byte + 1, q->count);
	return byte;
}

void ps2_queue_state(struct ps2_queue *q, struct saved *s)
{
	saved_blob(s, "unread", q->byte, &q->count, sizeof(q->byte));
}

/* --- keys --- */

/* 0: there is none. */
static uint8_t to_set2(uint8_t set1)
{
	if (set1 == 0x41)
		return SET2_F7;
	for (unsigned i = 0; i < ARRAY_SIZE(ps2_translation); i++)
		if (ps2_translation[i] == set1)
			return (uint8_t)i;
	return 0;
}

static bool find_key(unsigned code, uint8_t *set2, bool *prefixed)
{
	*prefixed = false;
	*set2 = 0;
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		if (others[i].code == code) {
			*prefixed = others[i].prefixed;
			*set2 = to_set2(others[i].set1);
		}
	}
	if (!*set2 && code >= KEY_ESC && code <= KEY_F12 && code != 84)
		*set2 = to_set2((uint8_t)code);
	return *set2 != 0;
}

/* Pause is pressed and released at once, and has a sequence of its own. */
static size_t make_sequence(unsigned code, bool down, uint8_t to[SEQUENCE_MAX])
{
	static const uint8_t pause[SEQUENCE_MAX] = {0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77};
	uint8_t set2;
	bool prefixed;
	size_t len = 0;

	if (code == KEY_PAUSE) {
		memcpy(to, pause, sizeof(pause));
		return down ? sizeof(pause) : 0;
	}
	if (!find_key(code, &set2, &prefixed))
		return 0;
	if (prefixed)
		to[len++] = PREFIX;
	if (!down)
		to[len++] = BREAK;
	to[len++] = set2;
	return len;
}

bool ps2_keyboard_key(struct ps2_keyboard *k, unsigned code, bool down)
{
	uint8_t bytes[SEQUENCE_MAX];
	size_t len = make_sequence(code, down, bytes);

	if (!k->enabled || len == 0 || (down && k->out.count > PS2_QUEUE_BYTES - KEPT_FREE))
		return false;
	return ps2_put(&k->out, bytes, len);
}

/* --- commands --- */

static void answer(struct ps2_keyboard *k, const uint8_t *bytes, size_t len)
{
	(void)ps2_put(&k->out, bytes, len); /* a guest that reads nothing is told nothing */
}
#define ANSWER(k, ...) answer(k, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void set_defaults(struct ps2_keyboard *k, bool enabled)
{
	k->rate = RATE_DEFAULT;
	k->enabled = enabled;
	k->out.count = 0;
}

void ps2_keyboard_reset(struct ps2_keyboard *k)
{
	*k = (struct ps2_keyboard){};
	set_defaults(k, true);
}

static void take_parameter(struct ps2_keyboard *k, uint8_t command, uint8_t value)
{
	switch (command) {
	case SET_LEDS:
		k->leds = value & (PS2_LED_SCROLL | PS2_LED_NUM | PS2_LED_CAPS);
		break;
	case SET_RATE:
		k->rate = value & 0x7f;
		break;
	default: /* SCAN_CODE_SET: 0 asks for it */
		if (value == 0)
			ANSWER(k, ACK, 2);
		else
			ANSWER(k, value == 2 ? ACK : NAK);
		return;
	}
	ANSWER(k, ACK);
}

static void take_command(struct ps2_keyboard *k, uint8_t byte)
{
	switch (byte) {
	case SET_LEDS:
	case SET_RATE:
	case SCAN_CODE_SET:
		k->command = byte;
		ANSWER(k, ACK);
		break;
	case ECHO:
		ANSWER(k, ECHO);
		break;
	case IDENTIFY:
		ANSWER(k, ACK, 0xab, 0x83);
		break;
	case ENABLE:
		k->out.count = 0;
		k->enabled = true;
		ANSWER(k, ACK);
		break;
	case DISABLE:
	case DEFAULTS:
		set_defaults(k, byte == DEFAULTS);
		ANSWER(k, ACK);
		break;
	case RESEND:
		ANSWER(k, k->last);
		break;
	case RESET:
		ps2_keyboard_reset(k);
		ANSWER(k, ACK, TEST_PASSED);
		break;
	default:
		ANSWER(k, byte >= ALL_TYPEMATIC && byte <= ALL_MAKE_BREAK ? ACK : NAK);
	}
}

void ps2_keyboard_write(struct ps2_keyboard *k, uint8_t byte)
{
	uint8_t command = k->command;

	k->command = 0;
	if (command && byte < SET_LEDS) /* a parameter; anything else is a new command */
		take_parameter(k, command, byte);
	else
		take_command(k, byte);
}

void ps2_keyboard_state(void *self, struct saved *s)
{
	struct ps2_keyboard *k = self;

	ps2_queue_state(&k->out, s);
	saved_u8(s, "command", &k->command);
	saved_u8(s, "leds", &k->leds);
	saved_u8(s, "rate", &k->rate);
	saved_u8(s, "last", &k->last);
	saved_bool(s, "enabled", &k->enabled);
	k->leds &= PS2_LED_SCROLL | PS2_LED_NUM | PS2_LED_CAPS;
}
