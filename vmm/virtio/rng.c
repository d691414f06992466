/*
 * virtio-rng; see rng.h. Runs on its I/O thread; touches guest memory through its queue, and getrandom(2).
 *
 * A guest could keep the thread busy with random bytes for ever, and disks share that thread. So one chain gets a
 * bounded number of bytes (fewer than asked is allowed, 5.4.6.2), and one go a bounded number of chains.
 */
#include "vmm/virtio/rng.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE  64
#define CHAIN_BYTES 4096u
#define CHAINS_A_GO 16

struct rng {
	struct virtio_device device;
};

/* Fills the writable part of the chain; returns how many bytes. */
static uint32_t fill(const struct virtqueue_chain *chain)
{
	uint32_t filled = 0;

	for (unsigned i = 0; i < chain->writable && filled < CHAIN_BYTES; i++) {
		const struct iovec *v = &chain->iov[chain->readable + i];
		size_t want = MIN(v->iov_len, (size_t)(CHAIN_BYTES - filled));
		/* Fails only before the host's pool is seeded; short only when interrupted. */
		ssize_t got = getrandom(v->iov_base, want, 0);
		if (got > 0)
			filled += (uint32_t)got;
		if (got < (ssize_t)want)
			break;
	}
	return filled;
}

static void kick(struct virtio_queue *queue)
{
	struct virtqueue_chain chain;
	unsigned taken = 0;
	enum virtqueue_result result = VIRTQUEUE_EMPTY;

	if (!virtio_may_take(queue))
		return;
	do {
		virtqueue_quiet(&queue->ring);
		while (taken < CHAINS_A_GO && (result = virtqueue_pop(&queue->ring, &chain)) == VIRTQUEUE_CHAIN) {
			virtqueue_push(&queue->ring, chain.head, fill(&chain));
			taken++;
		}
	} while (taken < CHAINS_A_GO && result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring));
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (taken == CHAINS_A_GO)
		virtio_again(queue);
}

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_RNG,
	.class_code = 0x00ff00, /* unclassified */
	.start = kick,
	.kick = kick,
};

struct error *rng_new(struct rng **out, const struct memory *memory, struct iothread *thread)
{
	cleanup_free struct rng *rng = calloc(1, sizeof(*rng));

	if (!rng)
		return error_new(ENOMEM, "make the random number device");
	struct error *err = virtio_init(&rng->device, &ops, "rng", memory, 0, 1, QUEUE_SIZE, &thread, 1);
	if (err) {
		virtio_destroy(&rng->device);
		return err;
	}
	*out = steal_ptr(&rng);
	return NULL;
}

void rng_free(struct rng *rng)
{
	if (!rng)
		return;
	virtio_destroy(&rng->device);
	free(rng);
}

struct virtio_device *rng_device(struct rng *rng)
{
	return &rng->device;
}
