/*
 * What a person does to the machine, whoever tells: keys go to the PS/2 keyboard; the pointer to the tablet when the
 * guest has a driver for it, else to the PS/2 mouse as movements.
 *
 * Belongs to the main thread.
 */
#ifndef GLINT_VMM_DISPLAY_INPUT_H
#define GLINT_VMM_DISPLAY_INPUT_H

#include "vmm/devices/i8042.h"
#include "vmm/display/display.h"
#include "vmm/virtio/tablet.h"

struct input {
	struct i8042 *i8042;
	struct tablet *tablet; /* NULL: none */
	struct display *display;
	bool (*running)(void *arg); /* a machine that does not run feels nothing */
	void *arg;
	/* Where the pointer was, in pixels: for the mouse. */
	bool known;
	int x, y;
};

/* @code: Linux's input-event-codes.h. False when the guest does not take it. */
bool input_key(struct input *input, unsigned code, bool down);
void input_pointer(struct input *input, const struct tablet_point *point);

#endif
