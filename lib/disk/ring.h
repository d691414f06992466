/*
 * A disk_io for programs that have no event loop of their own: one io_uring, served by the thread that made it. `glint
 * disk` and tests work through it; glint-vmm has its I/O threads. Files are descriptors.
 */
#ifndef GLINT_DISK_RING_H
#define GLINT_DISK_RING_H

#include "base/error.h"
#include "disk/io.h"

struct disk_ring;

/* The calling thread is the one that serves it. */
[[nodiscard]] struct error *disk_ring_new(struct disk_ring **out);
/* Nothing may be under way; the same thread. NULL is allowed. */
void disk_ring_free(struct disk_ring *ring);

struct disk_io *disk_ring_io(struct disk_ring *ring);

/* Submits what was started, waits until something is done (or posted), and calls the done() of all that is. */
void disk_ring_serve(struct disk_ring *ring);

#endif
