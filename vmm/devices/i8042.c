/*
 * The keyboard controller; see i8042.h. Touches its ports and two interrupt lines.
 */
#include "vmm/devices/i8042.h"

#include <string.h>

/* Status, read at 0x64. */
enum {
	OUTPUT_FULL = 0x01,
	SYSTEM_FLAG = 0x04,
	WAS_COMMAND = 0x08,
	UNLOCKED = 0x10,
	AUX_FULL = 0x20,
};

/* The command byte. */
enum {
	KEYBOARD_IRQ = 0x01,
	MOUSE_IRQ = 0x02,
	MODE_SYSTEM = 0x04,
	KEYBOARD_OFF = 0x10,
	MOUSE_OFF = 0x20,
	TRANSLATE = 0x40,
};

enum {
	READ_MODE = 0x20,
	WRITE_MODE = 0x60,
	AUX_DISABLE = 0xa7,
	AUX_ENABLE = 0xa8,
	AUX_TEST = 0xa9,
	SELF_TEST = 0xaa,
	KEYBOARD_TEST = 0xab,
	KEYBOARD_DISABLE = 0xad,
	KEYBOARD_ENABLE = 0xae,
	READ_INPUT_PORT = 0xc0,
	READ_OUTPUT_PORT = 0xd0,
	WRITE_OUTPUT_PORT = 0xd1,
	WRITE_KEYBOARD_BUFFER = 0xd2,
	WRITE_AUX_BUFFER = 0xd3,
	WRITE_AUX = 0xd4,
	READ_TEST_INPUTS = 0xe0,
	PULSE_FIRST = 0xf0, /* pulses the output lines whose bit is 0 */
};

#define SELF_TEST_PASSED 0x55
#define TEST_PASSED      0x00
#define INPUT_UNLOCKED   0x80
#define NOT_RESET        0x01 /* bit 0 of the output port: low resets the machine */
#define GATE_A20         0x02
#define BREAK_PREFIX     0xf0

/* As a PC's firmware leaves it: translating, both ports and interrupts on. */
#define MODE_AT_POWER_ON (TRANSLATE | MODE_SYSTEM | MOUSE_IRQ | KEYBOARD_IRQ)

/* --- the output buffer --- */

static void update_lines(struct i8042 *c)
{
	irq_line(c->irqs, I8042_KEYBOARD_GSI, 0, c->full && !c->from_aux && (c->mode & KEYBOARD_IRQ));
	irq_line(c->irqs, I8042_MOUSE_GSI, 0, c->full && c->from_aux && (c->mode & MOUSE_IRQ));
}

/* Set 2 to set 1, byte by byte. False when a byte yields none. */
static bool translate(struct i8042 *c, uint8_t *byte)
{
	if (!(c->mode & TRANSLATE))
		return true;
	if (*byte == BREAK_PREFIX) {
		c->breaking = true;
		return false;
	}
	if (*byte < 0x80)
		*byte = ps2_translation[*byte];
	else if (*byte == 0x83)
		*byte = 0x41;
	else if (*byte == 0x84)
		*byte = 0x54;
	else
		return true; /* a prefix between break and key, or an answer */
	*byte |= c->breaking ? 0x80 : 0;
	c->breaking = false;
	return true;
}

static bool from_keyboard(struct i8042 *c, uint8_t *byte)
{
	while (!(c->mode & KEYBOARD_OFF) && c->keyboard.out.count) {
		*byte = c->keyboard.last = ps2_take(&c->keyboard.out);
		if (translate(c, byte))
			return true;
	}
	return false;
}

static bool from_mouse(struct i8042 *c, uint8_t *byte)
{
	if (c->mode & MOUSE_OFF)
		return false;
	ps2_mouse_report(&c->mouse);
	if (!c->mouse.out.count)
		return false;
	*byte = c->mouse.last = ps2_take(&c->mouse.out);
	return true;
}

/* Moves the next byte into the output buffer, if it is empty and there is one. */
static void load(struct i8042 *c)
{
	if (c->full)
		return;
	if (c->own_count) {
		c->data = c->own[0].byte;
		c->from_aux = c->own[0].aux;
		memmove(c->own, c->own + 1, --c->own_count * sizeof(c->own[0]));
		c->full = true;
	} else if (from_keyboard(c, &c->data)) {
		c->from_aux = false;
		c->full = true;
	} else if (from_mouse(c, &c->data)) {
		c->from_aux = true;
		c->full = true;
	}
	update_lines(c);
}

static void own_answer(struct i8042 *c, uint8_t byte, bool aux)
{
	if (c->own_count == I8042_OWN_BYTES)
		return;
	c->own[c->own_count].byte = byte;
	c->own[c->own_count++].aux = aux;
}

/* --- commands; true: the machine is to be reset --- */

static bool set_output_port(struct i8042 *c, uint8_t value)
{
	c->output_port = value;
	return !(value & NOT_RESET);
}

static uint8_t output_port(const struct i8042 *c)
{
	return (uint8_t)((c->output_port & GATE_A20) | NOT_RESET | (c->full && !c->from_aux ? 0x10 : 0) |
			 (c->full && c->from_aux ? 0x20 : 0));
}

static bool take_command(struct i8042 *c, uint8_t command)
{
	c->command = 0;
	switch (command) {
	case READ_MODE:
		own_answer(c, c->mode, false);
		break;
	case WRITE_MODE:
	case WRITE_OUTPUT_PORT:
	case WRITE_KEYBOARD_BUFFER:
	case WRITE_AUX_BUFFER:
	case WRITE_AUX:
		c->command = command;
		break;
	case AUX_DISABLE:
		c->mode |= MOUSE_OFF;
		break;
	case AUX_ENABLE:
		c->mode &= (uint8_t)~MOUSE_OFF;
		break;
	case SELF_TEST:
		c->mode |= MODE_SYSTEM;
		own_answer(c, SELF_TEST_PASSED, false);
		break;
	case AUX_TEST:
	case KEYBOARD_TEST:
		own_answer(c, TEST_PASSED, false);
		break;
	case KEYBOARD_DISABLE:
		c->mode |= KEYBOARD_OFF;
		break;
	case KEYBOARD_ENABLE:
		c->mode &= (uint8_t)~KEYBOARD_OFF;
		break;
	case READ_INPUT_PORT:
		own_answer(c, INPUT_UNLOCKED, false);
		break;
	case READ_OUTPUT_PORT:
		own_answer(c, output_port(c), false);
		break;
	case READ_TEST_INPUTS:
		own_answer(c, 0, false);
		break;
	default:
		return command >= PULSE_FIRST && !(command & NOT_RESET);
	}
	return false;
}

/* A byte for the device also turns its port on. */
static bool take_data(struct i8042 *c, uint8_t value)
{
	uint8_t command = c->command;

	c->command = 0;
	switch (command) {
	case WRITE_MODE:
		c->mode = value;
		break;
	case WRITE_OUTPUT_PORT:
		return set_output_port(c, value);
	case WRITE_KEYBOARD_BUFFER:
	case WRITE_AUX_BUFFER:
		own_answer(c, value, command == WRITE_AUX_BUFFER);
		break;
	case WRITE_AUX:
		c->mode &= (uint8_t)~MOUSE_OFF;
		ps2_mouse_write(&c->mouse, value);
		break;
	default:
		c->mode &= (uint8_t)~KEYBOARD_OFF;
		ps2_keyboard_write(&c->keyboard, value);
	}
	return false;
}

/* --- ports --- */

static uint64_t data_read(void *self, uint64_t offset, unsigned size)
{
	struct i8042 *c = self;

	pthread_mutex_lock(&c->lock);
	uint8_t value = c->data;
	c->full = false;
	update_lines(c); /* down, so that the next byte is an edge */
	load(c);
	pthread_mutex_unlock(&c->lock);
	return value;
}

static void data_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct i8042 *c = self;

	pthread_mutex_lock(&c->lock);
	c->last_was_command = false;
	bool reset = take_data(c, (uint8_t)value);
	load(c);
	update_lines(c);
	pthread_mutex_unlock(&c->lock);
	if (reset)
		c->events.reset(c->events.arg);
}

static uint64_t status_read(void *self, uint64_t offset, unsigned size)
{
	struct i8042 *c = self;

	if (!c->present)
		return bus_all_ones(size);
	pthread_mutex_lock(&c->lock);
	uint8_t status = (uint8_t)(UNLOCKED | (c->mode & MODE_SYSTEM ? SYSTEM_FLAG : 0) |
				   (c->last_was_command ? WAS_COMMAND : 0) | (c->full ? OUTPUT_FULL : 0) |
				   (c->full && c->from_aux ? AUX_FULL : 0));
	pthread_mutex_unlock(&c->lock);
	return status;
}

static void command_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct i8042 *c = self;
	bool reset;

	pthread_mutex_lock(&c->lock);
	if (c->present) {
		c->last_was_command = true;
		reset = take_command(c, (uint8_t)value);
		load(c);
		update_lines(c);
	} else {
		reset = (value & PULSE_FIRST) == PULSE_FIRST && !(value & NOT_RESET);
	}
	pthread_mutex_unlock(&c->lock);
	if (reset)
		c->events.reset(c->events.arg);
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write};
static const struct bus_ops command_ops = {.read = status_read, .write = command_write};

/* --- what a person does --- */

bool i8042_key(struct i8042 *c, unsigned code, bool down)
{
	pthread_mutex_lock(&c->lock);
	bool taken = ps2_keyboard_key(&c->keyboard, code, down);
	load(c);
	pthread_mutex_unlock(&c->lock);
	return taken;
}

void i8042_mouse(struct i8042 *c, int dx, int dy, int dz, unsigned buttons)
{
	pthread_mutex_lock(&c->lock);
	ps2_mouse_move(&c->mouse, dx, dy, dz, buttons);
	load(c);
	pthread_mutex_unlock(&c->lock);
}

unsigned i8042_leds(struct i8042 *c)
{
	pthread_mutex_lock(&c->lock);
	unsigned leds = c->keyboard.leds;
	pthread_mutex_unlock(&c->lock);
	return leds;
}

/* --- unit --- */

static void power_on(void *self)
{
	struct i8042 *c = self;

	pthread_mutex_lock(&c->lock);
	c->mode = MODE_AT_POWER_ON;
	c->output_port = NOT_RESET | GATE_A20;
	c->command = 0;
	c->last_was_command = c->full = c->from_aux = c->breaking = false;
	c->data = 0;
	c->own_count = 0;
	ps2_keyboard_reset(&c->keyboard);
	ps2_mouse_reset(&c->mouse);
	update_lines(c);
	pthread_mutex_unlock(&c->lock);
}

struct error *i8042_init(struct i8042 *c, struct bus *pio, struct irqs *irqs, const struct machine_events *events,
			 bool present)
{
	*c = (struct i8042){.irqs = irqs, .events = *events, .present = present};
	pthread_mutex_init(&c->lock, NULL);
	TRY(bus_add(pio, I8042_COMMAND, 1, &command_ops, c));
	if (!present)
		return NULL;
	power_on(c);
	return bus_add(pio, I8042_DATA, 1, &data_ops, c);
}

void i8042_destroy(struct i8042 *c)
{
	pthread_mutex_destroy(&c->lock);
}

static void own_state(struct i8042 *c, struct saved *s)
{
	uint8_t bytes[I8042_OWN_BYTES] = {}, aux[I8042_OWN_BYTES] = {};
	size_t bytes_len = c->own_count, aux_len = c->own_count;

	for (size_t i = 0; i < c->own_count; i++) {
		bytes[i] = c->own[i].byte;
		aux[i] = c->own[i].aux;
	}
	saved_blob(s, "answers", bytes, &bytes_len, sizeof(bytes));
	saved_blob(s, "answers-aux", aux, &aux_len, sizeof(aux));
	if (bytes_len != aux_len) {
		saved_fail(s, "%zu answers of %zu", bytes_len, aux_len);
		return;
	}
	c->own_count = bytes_len;
	for (size_t i = 0; i < bytes_len; i++) {
		c->own[i].byte = bytes[i];
		c->own[i].aux = aux[i];
	}
}

static void state(void *self, struct saved *s)
{
	struct i8042 *c = self;

	saved_u8(s, "mode", &c->mode);
	saved_u8(s, "output-port", &c->output_port);
	saved_u8(s, "command", &c->command);
	saved_bool(s, "last-was-command", &c->last_was_command);
	saved_bool(s, "full", &c->full);
	saved_u8(s, "data", &c->data);
	saved_bool(s, "from-aux", &c->from_aux);
	saved_bool(s, "breaking", &c->breaking);
	own_state(c, s);
	saved_subsection(s, "keyboard", true, ps2_keyboard_state, &c->keyboard);
	saved_subsection(s, "mouse", true, ps2_mouse_state, &c->mouse);
}

static struct error *restored(void *self)
{
	struct i8042 *c = self;

	pthread_mutex_lock(&c->lock);
	update_lines(c);
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

const struct unit_ops i8042_unit = {.version = 1, .state = state, .restored = restored, .reset = power_on};
