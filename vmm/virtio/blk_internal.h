/*
 * Inside virtio-blk: what the device (blk.c) and the path of its requests (blk_request.c) share.
 */
#ifndef GLINT_VMM_VIRTIO_BLK_INTERNAL_H
#define GLINT_VMM_VIRTIO_BLK_INTERNAL_H

#include "vmm/virtio/blk.h"
#include "vmm/virtio/iov.h"

#include <stdatomic.h>

#define SECTOR_BYTES 512u

/* Buffers of a request that are kept in its slot. More, which few requests have, are kept aside. */
#define BLK_FEW 16

struct blk_queue;

/* A request between ring and completion. */
struct blk_request {
	struct drive_request io;
	struct blk_queue *queue;
	uint8_t *status;   /* in guest memory */
	uint32_t writable; /* bytes of the chain's writable part, status included */
	uint32_t written;  /* of them */
	uint32_t type;
	uint16_t head;
	struct iovec few[BLK_FEW];
};

/* The thread's own, but for its place in the device. */
struct blk_queue {
	struct blk *blk;
	struct virtio_queue *queue;
	struct drive_port *port;
	struct io_batch batch;

	/* Requests in use; the numbers of the others are free[0] up to free[BLK_QUEUE_SIZE - busy - 1]. The one used
	 * last is used next: pages of the others, and of @many, are not touched without need. */
	unsigned busy;
	uint16_t free[BLK_QUEUE_SIZE];
	struct blk_request request[BLK_QUEUE_SIZE];
	struct iovec (*many)[VIRTQUEUE_SIZE_MAX]; /* of each request, its buffers when they are more than a few */

	/* Heads of requests that wait for the machine to resume. */
	size_t held_count;
	uint16_t held[BLK_QUEUE_SIZE];
};

struct blk {
	struct virtio_device device;
	struct blk_config config;
	struct drive *drive;
	atomic_bool writeback; /* what the guest asked for, where it can (5.2.6.2) */
	struct blk_queue *queue;
};

static inline struct blk *blk_of(struct virtio_device *dev)
{
	return (struct blk *)((char *)dev - offsetof(struct blk, device));
}

void blk_queue_init(struct blk_queue *q);

/* Of virtio_ops. */
void blk_start(struct virtio_queue *queue);
void blk_kick(struct virtio_queue *queue);
void blk_drain(struct virtio_queue *queue);
void blk_forget(struct virtio_queue *queue);

#endif
