/*
 * A pointer with absolute coordinates: virtio-input (virtio 1.2, section 5.8) that is a tablet with three buttons and a
 * wheel, as a remote screen needs one: where the viewer's pointer is, the guest's is.
 *
 * Why not a USB tablet: stock Linux drives virtio-input out of the box, Debian's graphical installer included (its
 * initrd has virtio_input beside evdev; looked at in debian-installer-13-netboot-amd64), and this is one file without a
 * USB host controller behind it. Windows has no driver for it in the box; there the PS/2 mouse is the pointer
 * (vmm/display/input.h) until Windows guests are taken care of.
 *
 * What the pointer does comes from the main thread and waits in a short line; the queue's thread turns it into events.
 * A line that is full loses movements, never the last position or a button.
 */
#ifndef GLINT_VMM_VIRTIO_TABLET_H
#define GLINT_VMM_VIRTIO_TABLET_H

#include "vmm/virtio/virtio.h"

#define TABLET_MAX 32767u /* coordinates are 0..TABLET_MAX */

struct tablet;

/* What the pointer is at. Buttons: PS2_BUTTON_*. Wheel: notches, positive away from the person, since the last one. */
struct tablet_point {
	uint16_t x, y;
	uint8_t buttons;
	int8_t wheel;
};

/* @thread serves its queues. */
[[nodiscard]] struct error *tablet_new(struct tablet **out, const struct memory *memory, struct iothread *thread);
/* Its queues are stopped (virtio_pci_free()). NULL is allowed. */
void tablet_free(struct tablet *tablet);

/* For the transport. Borrowed. */
struct virtio_device *tablet_device(struct tablet *tablet);

/* Whether a driver is there to listen. Any thread. */
bool tablet_in_use(const struct tablet *tablet);

/* Any thread. */
void tablet_move(struct tablet *tablet, const struct tablet_point *point);

#endif
