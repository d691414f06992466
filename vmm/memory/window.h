/*
 * A memory window: memory of a device that the guest sees where a BAR is, at full speed, through a KVM memory slot of
 * its own; and which pages of it the guest wrote since somebody last looked.
 *
 * Looking costs: KVM write-protects the window's pages and takes a fault for each that is written. So tracking is off
 * until somebody asks for it. It is no RAM: memory_at() does not know it, and devices cannot reach it.
 *
 * Every function may be called by any thread.
 */
#ifndef GLINT_VMM_MEMORY_WINDOW_H
#define GLINT_VMM_MEMORY_WINDOW_H

#include "vmm/memory/memory.h"

#include <pthread.h>

#define MEMORY_WINDOW_PAGES 4096 /* 16 MiB at most */
#define MEMORY_WINDOW_WORDS (MEMORY_WINDOW_PAGES / 64)

struct memory_window {
	pthread_mutex_t lock;
	int vm_fd; /* -1: no slot is made, and all accesses come to the device by its BAR's handlers */
	uint32_t slot;
	void *host;
	uint64_t size;
	uint64_t gpa;
	bool shown, tracked;
	uint64_t dirty[MEMORY_WINDOW_WORDS]; /* besides what KVM knows */
};

/* @host: @size bytes, whole pages, at most MEMORY_WINDOW_PAGES; borrowed. Takes a number for a slot from @mem. */
void memory_window_init(struct memory_window *w, struct memory *mem, int vm_fd, void *host, uint64_t size);
void memory_window_destroy(struct memory_window *w);

/*
 * Shows the window to the guest at @gpa. False when KVM refuses, as it does where memory is already: accesses are MMIO
 * then.
 */
bool memory_window_show(struct memory_window *w, uint64_t gpa);
void memory_window_hide(struct memory_window *w);

/* Begins (with all of it dirty) or ends to notice what is written. */
void memory_window_track(struct memory_window *w, bool on);

/* The device itself wrote [offset, offset + len). */
void memory_window_touched(struct memory_window *w, uint64_t offset, uint64_t len);

/* Adds to @bitmap (MEMORY_WINDOW_WORDS words, a bit a page) what was written since the last call. */
void memory_window_collect(struct memory_window *w, uint64_t *bitmap);

#endif
