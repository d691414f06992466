/*
 * virtio-balloon (virtio 1.2, section 5.5): the guest gives memory back and takes it again.
 *
 * Pages that the guest puts into the balloon, or reports as free, become holes in the memfd that is its RAM; the host
 * has them back at once, they are no part of a saved state, and the guest's next touch finds zeros. Taking a page out
 * of the balloon needs nothing of the host, so a guest short of memory may do it by itself (DEFLATE_ON_OOM).
 *
 *     queue 0    inflate       page numbers             queue 1     deflate      page numbers
 *     queue 2    statistics    held until asked for     queue 3, 4  reporting    the free pages as buffers
 *
 * Drivers differ in where they look for reporting when a feature between is missing (Linux numbers the queues that are
 * there, the specification those that could be), so queues 2 to 4 tell by the buffer: statistics are what the device
 * reads, free pages what it writes.
 *
 * Free page hinting (FREE_PAGE_HINT) is not offered: what it tells a migration, reporting has told before, as holes.
 */
#ifndef GLINT_VMM_VIRTIO_BALLOON_H
#define GLINT_VMM_VIRTIO_BALLOON_H

#include "vmm/virtio/virtio.h"

#define BALLOON_PAGE 4096u
/* Kinds of statistics that have a name here: those of Linux 6.12. */
#define BALLOON_STATS 16

struct balloon_config {
	bool deflate_on_oom; /* offer it */
	bool reporting;      /* offer it */
	/* Statistics that were asked for came in. On the I/O thread. May be NULL. */
	void (*stats_changed)(void *arg);
	void *arg;
};

struct balloon_stats {
	uint64_t when;  /* CLOCK_MONOTONIC, ns; 0: there were none yet */
	uint32_t known; /* a bit for each value that the guest gave */
	uint64_t value[BALLOON_STATS];
};

struct balloon;

/* Makes the device on @thread for a guest with @memory, which outlives it. */
[[nodiscard]] struct error *balloon_new(struct balloon **out, const struct memory *memory, struct iothread *thread,
					const struct balloon_config *config);
/* After virtio_pci_free(). NULL is allowed. */
void balloon_free(struct balloon *balloon);
struct virtio_device *balloon_device(struct balloon *balloon);

/*
 * Main thread, once there is a transport: asks the guest to do with @bytes of its memory, a whole number of pages or
 * rounded up to it. EINVAL when it has not got as much.
 */
[[nodiscard]] struct error *balloon_set_target(struct balloon *balloon, uint64_t bytes);
uint64_t balloon_target(const struct balloon *balloon);
/* What the guest has, by its own account: bytes outside the balloon. Any thread. */
uint64_t balloon_actual(const struct balloon *balloon);

/* Asks the guest for new statistics. False when its driver is not ready to be asked. Main thread. */
bool balloon_ask_stats(struct balloon *balloon);
/* The newest ones. Any thread. */
void balloon_get_stats(struct balloon *balloon, struct balloon_stats *stats);
/* What value @i is called, "free-memory". */
const char *balloon_stat_name(unsigned i);

#endif
