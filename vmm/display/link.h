/*
 * The link between a monitor and a viewer of its display (glint-screen): a connected AF_UNIX SOCK_SEQPACKET socket,
 * one of these structures a packet. Both ends run on one machine and are of one release: numbers are in its own order.
 *
 * The viewer asks (LINK_LOOK) and the monitor answers each question once (struct link_view): how the picture lies in
 * the frame buffer, and which pages of that were written since the viewer's last question. So a slow viewer is told
 * less often and nothing queues. The first answer, which nobody asked for, brings the frame buffer's descriptor along
 * (SCM_RIGHTS): a memfd of DISPLAY_BYTES that can be mapped to read and not to write. LINK_REST says that the viewer
 * will not ask for a while: while nobody looks, noticing what is written costs nothing.
 *
 * A packet that is none of these, or a viewer that does not read, ends the link.
 */
#ifndef GLINT_VMM_DISPLAY_LINK_H
#define GLINT_VMM_DISPLAY_LINK_H

#include "vmm/display/display.h"

#define LINK_KEYS 768u /* codes are below: KEY_CNT of input-event-codes.h */

enum link_kind { LINK_LOOK = 1, LINK_REST, LINK_KEY, LINK_POINTER };

/* From the viewer. */
struct link_event {
	uint32_t kind;
	union {
		struct {
			uint32_t code, down; /* input-event-codes.h; 0 or 1 */
		} key;
		struct {
			uint32_t x, y, buttons; /* 0..TABLET_MAX; PS2_BUTTON_* */
			int32_t wheel;          /* notches, away from the person */
		} pointer;
	};
};

/* From the monitor. */
struct link_view {
	struct display_mode mode;
	uint32_t leds; /* PS2_LED_* */
	uint32_t reserved;
	uint64_t dirty[MEMORY_WINDOW_WORDS];
};

#endif
