/*
 * The keyboard controller of a PC, an 8042, at ports 0x60 and 0x64, with a PS/2 keyboard (IRQ 1) and mouse (IRQ 12)
 * behind it; names and bits are those of IBM's PS/2 technical reference. It is the one owner of port 0x64, where the
 * command 0xFE resets the machine.
 *
 * The output buffer holds one byte: an answer of the controller's own first, then the keyboard's, then the mouse's.
 * Reading it loads the next, with the edge on its line that a byte is.
 *
 * A machine without display has no keyboard: then only the reset remains. Reads of port 0x64 are all-ones, the sign of
 * absence. Linux sees "output buffer full" that sixteen reads do not empty and gives up in a millisecond, where a
 * silent zero would have it wait out several half-second timeouts of a self test.
 */
#ifndef GLINT_VMM_DEVICES_I8042_H
#define GLINT_VMM_DEVICES_I8042_H

#include "vmm/cpu/irq.h"
#include "vmm/devices/events.h"
#include "vmm/devices/ps2.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"

#define I8042_DATA         0x60
#define I8042_COMMAND      0x64
#define I8042_KEYBOARD_GSI 1
#define I8042_MOUSE_GSI    12
#define I8042_OWN_BYTES    8

struct i8042 {
	pthread_mutex_t lock;
	struct irqs *irqs;
	struct machine_events events;
	bool present;
	uint8_t mode;        /* the command byte */
	uint8_t output_port; /* bit 1 is the gate of address line 20, which gates nothing */
	uint8_t command;     /* whose parameter comes next at 0x60; 0: it is for the keyboard */
	bool last_was_command;
	bool full;     /* the output buffer holds a byte */
	uint8_t data;  /* it, or the last one */
	bool from_aux; /* whose it is */
	bool breaking; /* the translation saw the break prefix */
	size_t own_count;
	struct {
		uint8_t byte;
		bool aux;
	} own[I8042_OWN_BYTES]; /* answers of the controller */
	struct ps2_keyboard keyboard;
	struct ps2_mouse mouse;
};

/* @present: with keyboard and mouse; else only the reset at port 0x64, and no unit. */
[[nodiscard]] struct error *i8042_init(struct i8042 *c, struct bus *pio, struct irqs *irqs,
				       const struct machine_events *events, bool present);
void i8042_destroy(struct i8042 *c);

/* What a person does, while the machine runs; any thread. See ps2.h for arguments and result. */
bool i8042_key(struct i8042 *c, unsigned code, bool down);
void i8042_mouse(struct i8042 *c, int dx, int dy, int dz, unsigned buttons);
/* PS2_LED_*. */
unsigned i8042_leds(struct i8042 *c);

extern const struct unit_ops i8042_unit;

#endif
