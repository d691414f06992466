/*
 * PS/2 keyboard and mouse, as the keyboard controller (i8042.h) has them on its two ports: each takes command bytes and
 * has bytes to send. Both belong to the controller, which holds its lock around every call here.
 *
 * The keyboard is an AT keyboard with scan code set 2 (the only one); the controller translates. Keys are named by the
 * codes of Linux's input-event-codes.h. Typematic repeat is the person's own keyboard's: a key that is reported down
 * again is sent again.
 *
 * The mouse is a three-button mouse that can become one with a wheel (the "IntelliMouse" knock: sample rates 200, 100,
 * 80). Movements add up until there is room to send them, so nothing queues.
 *
 * Commands and answers are those of IBM's PS/2 technical reference ("Keyboard and auxiliary device controller").
 */
#ifndef GLINT_VMM_DEVICES_PS2_H
#define GLINT_VMM_DEVICES_PS2_H

#include "saved/saved.h"

#include <stddef.h>
#include <stdint.h>

#define PS2_QUEUE_BYTES 64u

struct ps2_queue {
	uint8_t byte[PS2_QUEUE_BYTES]; /* the next one first */
	size_t count;
};

/* False, and nothing is put, when @len bytes do not fit. */
bool ps2_put(struct ps2_queue *q, const uint8_t *bytes, size_t len);
/* The queue is not empty. */
uint8_t ps2_take(struct ps2_queue *q);

/* LEDs, as command 0xED sets them. */
#define PS2_LED_SCROLL 1u
#define PS2_LED_NUM    2u
#define PS2_LED_CAPS   4u

struct ps2_keyboard {
	struct ps2_queue out;
	uint8_t command; /* whose parameter comes next; 0: none */
	uint8_t leds, rate;
	uint8_t last; /* what was sent last, for "resend" */
	bool enabled;
};

void ps2_keyboard_reset(struct ps2_keyboard *k);
void ps2_keyboard_write(struct ps2_keyboard *k, uint8_t byte);
/*
 * A key goes down or up. False when it was dropped: there is no scan code for it, the guest has turned the keyboard
 * off, or has long stopped reading (a release has room kept for it).
 */
bool ps2_keyboard_key(struct ps2_keyboard *k, unsigned code, bool down);
void ps2_keyboard_state(void *self, struct saved *s);

/* The controller's translation of set 2 to set 1, for bytes below 0x80. */
extern const uint8_t ps2_translation[128];

#define PS2_BUTTON_LEFT   1u
#define PS2_BUTTON_RIGHT  2u
#define PS2_BUTTON_MIDDLE 4u
#define PS2_BUTTONS       7u

struct ps2_mouse {
	struct ps2_queue out;
	uint8_t command;
	uint8_t resolution, rate;
	uint8_t knock; /* how many of the three rates came */
	uint8_t last;
	bool wheel; /* packets have a fourth byte */
	bool enabled, remote, wrap, scaling;
	uint8_t buttons; /* PS2_BUTTON_* */
	uint8_t sent_buttons;
	int32_t dx, dy, dz; /* not sent yet; y grows upwards, z towards the person */
};

void ps2_mouse_reset(struct ps2_mouse *m);
void ps2_mouse_write(struct ps2_mouse *m, uint8_t byte);
/* @dy grows downwards, as on a screen; @dz: notches of the wheel, towards the person. */
void ps2_mouse_move(struct ps2_mouse *m, int dx, int dy, int dz, unsigned buttons);
/* Puts a packet if the queue is empty and there is something to tell. Before looking whether there are bytes. */
void ps2_mouse_report(struct ps2_mouse *m);
void ps2_mouse_state(void *self, struct saved *s);

/* What both share in a saved state. */
void ps2_queue_state(struct ps2_queue *q, struct saved *s);

#endif
