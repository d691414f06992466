/*
 * glint-screen: shows a machine's display to VNC viewers (RFB, RFC 6143), and brings keys and pointer back.
 *
 *     VNC viewers <--RFB over a UNIX socket--> glint-screen <--link (vmm/display/link.h)--> glint-vmm
 *
 * It is a program of its own, in a folder of its own beside vmm/, because of what it links: libvncserver is under the
 * GPL and parses what people send from afar. Neither belongs into the process that is the machine. The monitor gives it
 * the frame buffer to read and a socket; it takes everything else from itself (namespaces, Landlock, seccomp).
 *
 * Viewers are served from a copy of the picture: the guest may draw at any moment, and an encoder that reads a pixel
 * twice must read the same. Only pages that the guest wrote are copied, and only rows that really changed are sent.
 * When no viewer is there the monitor is told that nobody looks.
 */
#ifndef GLINT_SCREEN_SCREEN_H
#define GLINT_SCREEN_SCREEN_H

#include "base/error.h"

#include <stdint.h>

#define SCREEN_VIEWERS_MAX 8u

/*
 * server.c: serves whoever connects to @listen_fd until the link ends. @link_fd: connected to the monitor, which has
 * not been heard yet. @enter locks the process in once everything is at hand; may be NULL.
 */
[[nodiscard]] struct error *screen_serve(const char *name, int listen_fd, int link_fd, struct error *(*enter)(void));

/*
 * keysyms.c: the key of a US keyboard that makes X11 keysym @keysym, with or without shift, as a code of Linux's
 * input-event-codes.h; 0: there is none.
 */
unsigned screen_key(uint32_t keysym);

#endif
