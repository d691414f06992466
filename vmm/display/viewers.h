/*
 * The monitor's side of those who look at the display: their links (link.h), what each has not seen yet, and the input
 * that comes back. Belongs to the main thread.
 */
#ifndef GLINT_VMM_DISPLAY_VIEWERS_H
#define GLINT_VMM_DISPLAY_VIEWERS_H

#include "base/loop.h"
#include "vmm/display/input.h"

#define VIEWERS_MAX 4

struct viewers;

/* @display and @input are borrowed and outlive it. */
[[nodiscard]] struct error *viewers_new(struct viewers **out, struct loop *loop, struct display *display,
					struct input *input);
/* Ends all links. NULL is allowed. */
void viewers_free(struct viewers *viewers);

/*
 * A viewer has come, by a connected AF_UNIX SOCK_SEQPACKET socket, which becomes the viewers' own when it succeeds: the
 * monitor may not make one in its sandbox, so the viewer brings it.
 */
[[nodiscard]] struct error *viewers_attach(struct viewers *viewers, int fd);

unsigned viewers_count(const struct viewers *viewers);

#endif
