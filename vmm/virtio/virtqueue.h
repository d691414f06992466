/*
 * A split virtqueue (virtio 1.2, section 2.7): three rings in guest memory, written by a guest that may be hostile.
 *
 * The rings are translated to host addresses once, when the queue is enabled; a descriptor's buffers each time. What
 * the guest can change is read once into a copy, bounded, then used. Whatever breaks a rule breaks the queue: from then
 * on it yields nothing, until it is enabled anew after a reset. Nothing here allocates, copies data, or locks: a queue
 * belongs to one thread at a time, and the guest is met with acquire and release (2.7.13, 2.7.14).
 */
#ifndef GLINT_VMM_VIRTIO_VIRTQUEUE_H
#define GLINT_VMM_VIRTIO_VIRTQUEUE_H

#include "vmm/memory/memory.h"

#include <stdint.h>
#include <sys/uio.h>

/* Descriptors in a ring at most, and buffers in a chain at most, an indirect table included (2.7.5.3.1). */
#define VIRTQUEUE_SIZE_MAX 256

struct saved;
struct vring_desc;
struct vring_avail;
struct vring_used;

struct virtqueue {
	const struct memory *memory;
	uint16_t size_max; /* what the device offers: a power of two */

	/* As the guest set it up. */
	uint16_t size;
	uint64_t desc_address, avail_address, used_address;
	bool enabled;

	/* What it negotiated. */
	bool event_idx, indirect;

	/* Where the device is: free-running, modulo 2^16. */
	uint16_t next_avail; /* the next entry to take */
	uint16_t next_used;  /* the next entry to fill */
	uint16_t published;  /* used entries that the guest can see */

	/* Why the queue is broken, or NULL. */
	const char *broken;

	/* Of this process: valid while enabled. */
	uint16_t seen_avail; /* the guest's index when last read */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
};

/* A descriptor chain: the buffers the device reads, then those it writes. All of them lie in guest RAM; none is empty.
 */
struct virtqueue_chain {
	uint16_t head;
	unsigned readable, writable; /* how many of iov */
	uint32_t readable_bytes, writable_bytes;
	struct iovec iov[VIRTQUEUE_SIZE_MAX];
};

enum virtqueue_result { VIRTQUEUE_EMPTY, VIRTQUEUE_CHAIN, VIRTQUEUE_BROKEN };

/* Back to the state after reset (4.1.4.3): @size_max entries, no addresses, not enabled. */
void virtqueue_reset(struct virtqueue *vq, const struct memory *memory, uint16_t size_max);

/*
 * Translates the rings that the guest set up and enables the queue; also after loading a saved one, whose indices stay.
 * False when a ring is malformed or not wholly in RAM: the queue is broken, and says why in @broken.
 */
[[nodiscard]] bool virtqueue_enable(struct virtqueue *vq);

/* Takes the next available chain. */
enum virtqueue_result virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain);

/* Gives back the chain that was popped last, and nothing was done with since: the next pop takes it again. */
void virtqueue_unpop(struct virtqueue *vq);

/*
 * Walks the chain that starts at descriptor @head, again or for the first time; the guest may have changed it since.
 * VIRTQUEUE_CHAIN or VIRTQUEUE_BROKEN.
 */
enum virtqueue_result virtqueue_walk(struct virtqueue *vq, uint16_t head, struct virtqueue_chain *chain);

/*
 * Returns the chain of @head as used. @written: how many bytes of the writable part, counted from its start, were
 * written (2.7.8.2). The guest sees it after virtqueue_publish().
 */
void virtqueue_push(struct virtqueue *vq, uint16_t head, uint32_t written);

/* Shows the guest what was pushed. True when it wants an interrupt for it (2.7.7). */
[[nodiscard]] bool virtqueue_publish(struct virtqueue *vq);

/* Asks the guest not to ring while the device looks by itself (2.7.10). A hint: it may still ring. */
void virtqueue_quiet(struct virtqueue *vq);

/*
 * Asks the guest to ring for what it makes available from now on. True when something came before it could know:
 * the caller looks again.
 */
[[nodiscard]] bool virtqueue_listen(struct virtqueue *vq);

/*
 * Asks the guest to ring for what it makes available behind what was seen already, which the device could not use yet
 * by itself. True when something came before it could know.
 */
[[nodiscard]] bool virtqueue_listen_beyond(struct virtqueue *vq);

/* Takes the last @count chains back: as if they had not been popped, nor pushed. None of them was published. */
void virtqueue_rewind(struct virtqueue *vq, uint16_t count);

/*
 * Somebody else (vhost) served the ring and took the chains before @next_avail; all of these are used, and the guest
 * knows.
 */
void virtqueue_move(struct virtqueue *vq, uint16_t next_avail);

/* Breaks the queue; @why is a constant. Returns VIRTQUEUE_BROKEN. The first reason stays. */
enum virtqueue_result virtqueue_break(struct virtqueue *vq, const char *why);

/* The body of a queue in a saved state. */
void virtqueue_state(void *self, struct saved *s);

#endif
