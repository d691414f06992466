/*
 * An I/O thread: one thread around one io_uring, which is its only way to wait and to do I/O.
 *
 * Everything a virtqueue needs happens on the one thread it was given: its doorbell (an eventfd polled through the
 * ring), its block requests, their completions. So a queue has one owner, and the path of a request takes no lock,
 * allocates nothing, and costs one io_uring_enter for as many requests as were found.
 *
 * The ring is locked down before the guest runs (DESIGN 2): registered files only, and only the operations that devices
 * need; see iothread.c. Other threads talk to it by iothread_call(), and by what says "any thread".
 *
 * Where nothing is said, a function belongs to the I/O thread itself.
 */
#ifndef GLINT_VMM_MACHINE_IOTHREAD_H
#define GLINT_VMM_MACHINE_IOTHREAD_H

#include "base/error.h"
#include "disk/io.h"

#include <stdint.h>

#define IOTHREAD_FILES_MAX 256 /* registered files of one ring */

struct iothread;

/*
 * A watched eventfd or socket; embedded in its owner, who sets @ready, @slot and @events (as poll(2); 0 means POLLIN).
 * The rest belongs to the thread.
 */
struct io_watch {
	void (*ready)(struct io_watch *watch);
	unsigned slot;
	short events;
	bool armed, wanted, stale;
	struct io_watch *next;
};

/* Work put off to the end of a batch of completions; embedded in its owner, who sets @end. */
struct io_batch {
	void (*end)(struct io_batch *batch);
	bool queued;
	struct io_batch *next;
};

/* Makes the ring (disabled), not yet the thread. @index numbers threads for their names ("io0"). */
[[nodiscard]] struct error *iothread_new(struct iothread **out, unsigned index);

/*
 * Registers @fd with the ring (which takes a reference of its own); *slot is what operations name it by. Any thread,
 * before or after start.
 */
[[nodiscard]] struct error *iothread_add_file(struct iothread *thread, int fd, unsigned *slot);

/* Any thread. Nothing that uses @slot may be in flight. */
void iothread_remove_file(struct iothread *thread, unsigned slot);

/*
 * Starts the thread, which enables the ring under its restrictions, then runs @enter (the sandbox locks the thread in;
 * may be NULL), then serves. An error of either is returned here, and the thread is gone.
 */
[[nodiscard]] struct error *iothread_start(struct iothread *thread, struct error *(*enter)(void *arg), void *arg);

/*
 * Makes the calling thread the I/O thread, instead of starting one: for fuzz targets, which want no other. Calls then
 * run at once, and completions are served by iothread_drain() alone.
 */
[[nodiscard]] struct error *iothread_adopt(struct iothread *thread);

/* Stops and joins the thread and frees the ring. Nothing may be in flight or watched. NULL is allowed. */
void iothread_free(struct iothread *thread);

/*
 * Any thread: runs @fn on the I/O thread between two batches and waits for its end. At once when this is the I/O
 * thread, or when it was not started yet.
 */
void iothread_call(struct iothread *thread, void (*fn)(void *arg), void *arg);

/* Inside iothread_call(): serves completions until *@busy, which they count down, is 0, and ends their batch. */
void iothread_drain(struct iothread *thread, const unsigned *busy);

/*
 * What starts operations on registered files, by their slots; see disk/io.h. Valid as long as the thread. They are done
 * when the thread serves completions, never before they return.
 */
struct disk_io *iothread_io(struct iothread *thread);

/*
 * Has @watch->ready called after the file registered as @watch->slot was signalled or became ready (several times may
 * be one call), until iothread_unwatch() has returned. An eventfd's counter is not consumed; of other files all must be
 * taken that is there, for only what comes then is told again. Any thread.
 */
void iothread_watch(struct iothread *thread, struct io_watch *watch);
void iothread_unwatch(struct iothread *thread, struct io_watch *watch);

/*
 * Has @batch->end called once the completions at hand are handled, before the thread waits: for one interrupt per
 * batch. Asked for again inside end(), it comes after the next look for completions, so nobody starves.
 */
void iothread_at_end(struct iothread *thread, struct io_batch *batch);

#endif
