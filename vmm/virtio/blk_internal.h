/*
 * Inside virtio-blk: what the device (blk.c) and the path of its requests (blk_request.c) share.
 */
#ifndef GLINT_VMM_VIRTIO_BLK_INTERNAL_H
#define GLINT_VMM_VIRTIO_BLK_INTERNAL_H

#include "disk/file.h"
#include "vmm/virtio/blk.h"
#include "vmm/virtio/iov.h"

#include <stdatomic.h>

#define SECTOR_BYTES 512u
#define NO_REQUEST   0xffff

/* The detour of requests that direct I/O refuses: one a queue. */
#define BOUNCE_BYTES (64u << 10)

struct blk_queue;

/* A request between ring and completion. Its buffers stay in the guest's descriptors and are looked up when needed. */
struct blk_request {
	struct io_op op;
	struct blk_queue *queue;
	uint8_t *status;   /* in guest memory */
	uint64_t offset;   /* bytes from the start of the disk */
	uint32_t len;      /* bytes to transfer, discard or zero */
	uint32_t done;     /* of them */
	uint32_t writable; /* bytes of the chain's writable part, status included */
	uint32_t type;
	uint16_t head;
	uint16_t next; /* in the list it is on: free, or waiting for the bounce buffer */
	uint8_t retries;
	bool unmap;   /* write zeroes: may deallocate */
	bool plain;   /* write zeroes: the file system cannot, so write them */
	bool bounced; /* holds the bounce buffer */
	bool syncing; /* the transfer is done, fdatasync is not */
};

/* The thread's own, but for its place in the device. */
struct blk_queue {
	struct blk *blk;
	struct virtio_queue *queue;
	unsigned file; /* the disk's slot in the thread's ring */
	struct io_batch batch;

	unsigned busy; /* requests in use */
	uint16_t free; /* the first unused request */
	struct blk_request request[BLK_QUEUE_SIZE];

	/* Heads of requests that wait for the machine to resume. */
	size_t held_count;
	uint16_t held[BLK_QUEUE_SIZE];

	struct blk_stats stats; /* written by the thread, read by any */

	uint8_t *bounce; /* NULL without direct I/O */
	uint16_t bounce_user, bounce_first, bounce_last;
};

struct blk {
	struct virtio_device device;
	struct blk_config config;
	struct disk_file file;
	uint64_t known_bytes; /* the disk as the guest knows it; 0 when no guest saw it yet */
	uint32_t known_block;
	atomic_bool active;
	atomic_bool halted;    /* a request is held: nothing new is taken until the machine resumes */
	atomic_bool writeback; /* what the guest asked for, where it can (5.2.6.2) */
	atomic_flag complained;
	unsigned *files; /* the disk's slot in each thread's ring */
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
