/*
 * The PS/2 mouse; see ps2.h. Touches its own state only.
 */
#include "vmm/devices/ps2.h"

#include "base/util.h"

enum {
	SCALING_1 = 0xe6,
	SCALING_2 = 0xe7,
	SET_RESOLUTION = 0xe8,
	STATUS = 0xe9,
	STREAM_MODE = 0xea,
	READ_DATA = 0xeb,
	WRAP_OFF = 0xec,
	WRAP_ON = 0xee,
	REMOTE_MODE = 0xf0,
	IDENTIFY = 0xf2,
	SET_RATE = 0xf3,
	ENABLE = 0xf4,
	DISABLE = 0xf5,
	DEFAULTS = 0xf6,
	RESEND = 0xfe,
	RESET = 0xff,
};
enum { ACK = 0xfa, TEST_PASSED = 0xaa, NAK = 0xfe };
enum { ID_PLAIN = 0, ID_WHEEL = 3 };

#define RATE_DEFAULT       100
#define RESOLUTION_DEFAULT 2
#define FAR                (1 << 16) /* how far movements add up */

static void answer(struct ps2_mouse *m, const uint8_t *bytes, size_t len)
{
	(void)ps2_put(&m->out, bytes, len);
}
#define ANSWER(m, ...) answer(m, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static int bounded(int value, int low, int high)
{
	return value < low ? low : value > high ? high : value;
}

/* --- movements --- */

void ps2_mouse_move(struct ps2_mouse *m, int dx, int dy, int dz, unsigned buttons)
{
	m->buttons = buttons & PS2_BUTTONS;
	if (!m->enabled)
		return;
	m->dx = bounded(m->dx + bounded(dx, -FAR, FAR), -FAR, FAR);
	m->dy = bounded(m->dy - bounded(dy, -FAR, FAR), -FAR, FAR);
	m->dz = bounded(m->dz + bounded(dz, -FAR, FAR), -FAR, FAR);
}

/* One packet, with as much of the movement as it can hold. */
static void put_packet(struct ps2_mouse *m)
{
	int dx = bounded(m->dx, -255, 255), dy = bounded(m->dy, -255, 255), dz = bounded(m->dz, -8, 7);
	uint8_t packet[4] = {
		(uint8_t)(0x08 | m->buttons | (dx < 0 ? 0x10 : 0) | (dy < 0 ? 0x20 : 0)),
		(uint8_t)dx,
		(uint8_t)dy,
		(uint8_t)dz,
	};

	if (!ps2_put(&m->out, packet, m->wheel ? 4 : 3))
		return;
	m->dx -= dx;
	m->dy -= dy;
	m->dz = m->wheel ? m->dz - dz : 0;
	m->sent_buttons = m->buttons;
}

void ps2_mouse_report(struct ps2_mouse *m)
{
	bool moved = m->dx || m->dy || (m->wheel && m->dz) || m->buttons != m->sent_buttons;

	if (m->enabled && !m->remote && !m->wrap && m->out.count == 0 && moved)
		put_packet(m);
}

/* --- commands --- */

static void set_defaults(struct ps2_mouse *m)
{
	m->rate = RATE_DEFAULT;
	m->resolution = RESOLUTION_DEFAULT;
	m->enabled = m->remote = m->wrap = m->scaling = false;
	m->dx = m->dy = m->dz = 0;
	m->knock = 0;
	m->out.count = 0;
}

void ps2_mouse_reset(struct ps2_mouse *m)
{
	*m = (struct ps2_mouse){};
	set_defaults(m);
}

/* Sample rates 200, 100 and 80 one behind the other: the driver knows of wheels. */
static void listen_for_knock(struct ps2_mouse *m, uint8_t rate)
{
	static const uint8_t rates[] = {200, 100, 80};

	m->knock = rate == rates[m->knock] ? m->knock + 1 : rate == rates[0];
	if (m->knock == ARRAY_SIZE(rates)) {
		m->wheel = true;
		m->knock = 0;
	}
}

static void take_parameter(struct ps2_mouse *m, uint8_t command, uint8_t value)
{
	if (command == SET_RATE) {
		m->rate = value;
		listen_for_knock(m, value);
	} else {
		m->resolution = value & 3;
	}
	ANSWER(m, ACK);
}

static void put_status(struct ps2_mouse *m)
{
	uint8_t left = m->buttons & PS2_BUTTON_LEFT ? 4 : 0, right = m->buttons & PS2_BUTTON_RIGHT ? 1 : 0;
	uint8_t middle = m->buttons & PS2_BUTTON_MIDDLE ? 2 : 0;
	uint8_t mode = (m->remote ? 0x40 : 0) | (m->enabled ? 0x20 : 0) | (m->scaling ? 0x10 : 0);

	ANSWER(m, ACK, (uint8_t)(mode | left | middle | right), m->resolution, m->rate);
}

static void take_command(struct ps2_mouse *m, uint8_t byte)
{
	switch (byte) {
	case SCALING_1:
	case SCALING_2:
		m->scaling = byte == SCALING_2;
		ANSWER(m, ACK);
		break;
	case SET_RESOLUTION:
	case SET_RATE:
		m->command = byte;
		ANSWER(m, ACK);
		break;
	case STATUS:
		put_status(m);
		break;
	case STREAM_MODE:
	case REMOTE_MODE:
		m->remote = byte == REMOTE_MODE;
		ANSWER(m, ACK);
		break;
	case READ_DATA:
		ANSWER(m, ACK);
		put_packet(m);
		break;
	case WRAP_OFF:
	case WRAP_ON:
		m->wrap = byte == WRAP_ON;
		ANSWER(m, ACK);
		break;
	case IDENTIFY:
		ANSWER(m, ACK, m->wheel ? ID_WHEEL : ID_PLAIN);
		break;
	case ENABLE:
	case DISABLE:
		m->enabled = byte == ENABLE;
		m->dx = m->dy = m->dz = 0;
		ANSWER(m, ACK);
		break;
	case DEFAULTS:
		set_defaults(m);
		ANSWER(m, ACK);
		break;
	case RESEND:
		ANSWER(m, m->last);
		break;
	case RESET:
		ps2_mouse_reset(m);
		ANSWER(m, ACK, TEST_PASSED, ID_PLAIN);
		break;
	default:
		ANSWER(m, NAK);
	}
}

void ps2_mouse_write(struct ps2_mouse *m, uint8_t byte)
{
	uint8_t command = m->command;

	m->command = 0;
	if (m->wrap && byte != RESET && byte != WRAP_OFF)
		ANSWER(m, byte);
	else if (command)
		take_parameter(m, command, byte);
	else
		take_command(m, byte);
}

void ps2_mouse_state(void *self, struct saved *s)
{
	struct ps2_mouse *m = self;
	uint32_t dx = (uint32_t)m->dx, dy = (uint32_t)m->dy, dz = (uint32_t)m->dz;

	ps2_queue_state(&m->out, s);
	saved_u8(s, "command", &m->command);
	saved_u8(s, "resolution", &m->resolution);
	saved_u8(s, "rate", &m->rate);
	saved_u8(s, "knock", &m->knock);
	saved_u8(s, "last", &m->last);
	saved_bool(s, "wheel", &m->wheel);
	saved_bool(s, "enabled", &m->enabled);
	saved_bool(s, "remote", &m->remote);
	saved_bool(s, "wrap", &m->wrap);
	saved_bool(s, "scaling", &m->scaling);
	saved_u8(s, "buttons", &m->buttons);
	saved_u8(s, "sent-buttons", &m->sent_buttons);
	saved_u32(s, "dx", &dx);
	saved_u32(s, "dy", &dy);
	saved_u32(s, "dz", &dz);
	if (saved_loading(s) && (m->knock > 2 || m->resolution > 3 || m->buttons > PS2_BUTTONS))
		saved_fail(s, "the mouse has knock %u, resolution %u, buttons %u", m->knock, m->resolution, m->buttons);
	m->dx = bounded((int32_t)dx, -FAR, FAR);
	m->dy = bounded((int32_t)dy, -FAR, FAR);
	m->dz = bounded((int32_t)dz, -FAR, FAR);
}
