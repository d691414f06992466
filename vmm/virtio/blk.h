/*
 * virtio-blk (virtio 1.2, section 5.2): shows a drive (vmm/block/drive.h) to the guest.
 *
 * Queue i is served by I/O thread i modulo their number; a request lives in a slot of its queue from the ring to its
 * completion. All requests found at once are submitted at once, and all completions found at once cost at most one
 * interrupt a queue.
 *
 * What the guest may rely on: a write is acknowledged when the host has taken it; a flush when everything acknowledged
 * before it is durable. Without a negotiated flush, or when the guest turned its cache off, each write is durable when
 * acknowledged (5.2.6.2).
 *
 * Requests that come while the drive is not active wait in the ring. One that fails is reported to the guest as an I/O
 * error, or held, by the drive's policy: tried again when the machine resumes, or after it was saved and restored
 * elsewhere.
 */
#ifndef GLINT_VMM_VIRTIO_BLK_H
#define GLINT_VMM_VIRTIO_BLK_H

#include "vmm/block/drive.h"
#include "vmm/virtio/virtio.h"

#define BLK_QUEUE_SIZE   256
#define BLK_SEG_MAX      (BLK_QUEUE_SIZE - 2) /* a chain holds header and status too */
#define BLK_SERIAL_BYTES 20                   /* 5.2.6: VIRTIO_BLK_T_GET_ID */

/* Discard and write zeroes: one range a request, of at most 2 GiB. */
#define BLK_RANGE_SECTORS (1u << 22)

struct blk_config {
	struct drive *drive; /* borrowed until blk_free(); its one controller */
	unsigned queues;
	char serial[BLK_SERIAL_BYTES + 1]; /* what the guest sees as its serial number; may be empty */

	struct iothread *const *threads; /* the drive's */
	unsigned thread_count;
};

struct blk;

[[nodiscard]] struct error *blk_new(struct blk **out, const struct memory *memory, const struct blk_config *config);
/* Its queues are stopped (virtio_pci_free()). NULL is allowed. */
void blk_free(struct blk *blk);

/* For the transport. Borrowed. */
struct virtio_device *blk_device(struct blk *blk);

#endif
