/*
 * virtio-blk (virtio 1.2, section 5.2) on a raw disk: a regular file or a block device.
 *
 * Queue i is served by I/O thread i modulo their number; a request lives in a slot of its queue from the ring to its
 * completion. All requests found at once are submitted at once, and all completions found at once cost at most one
 * interrupt a queue.
 *
 * What the guest may rely on: a write is acknowledged when the host has taken it; a flush when everything acknowledged
 * before it is durable (fdatasync). Without a negotiated flush, or when the guest turned its cache off, each write is
 * durable when acknowledged (5.2.6.2).
 *
 * A disk has one owner (DESIGN 2): it is opened by blk_new(), but only between blk_activate() and blk_deactivate() is
 * it locked and touched. The lock is an open file description lock on the whole file, shared for read-only disks;
 * QEMU's locks conflict with it in both directions. It belongs to the descriptor's open file: whoever hands a disk to a
 * VM opens it anew for that VM and closes its own copy, or the lock outlives the VM. Requests that come while the disk
 * is not active wait in the ring.
 *
 * O_DIRECT: followed when the descriptor has it. The disk's block size is then what the host's direct I/O asks of
 * offsets; guest buffers whose address or length is not aligned as the host asks go through one small buffer per queue,
 * one request at a time: right, not fast (drivers of operating systems align, firmware sometimes does not).
 *
 * When the host fails a request, the policy decides: report it to the guest as an I/O error, or hold it and ask for the
 * VM to be paused, and try it again when the machine resumes, or after it was saved and restored elsewhere.
 */
#ifndef GLINT_VMM_VIRTIO_BLK_H
#define GLINT_VMM_VIRTIO_BLK_H

#include "vmm/virtio/virtio.h"

#define BLK_QUEUE_SIZE   256
#define BLK_SEG_MAX      (BLK_QUEUE_SIZE - 2) /* a chain holds header and status too */
#define BLK_SERIAL_BYTES 20                   /* 5.2.6: VIRTIO_BLK_T_GET_ID */

/* Discard and write zeroes: one range a request, of at most 2 GiB. */
#define BLK_RANGE_SECTORS (1u << 22)

enum blk_policy { BLK_REPORT, BLK_PAUSE };

struct blk_config {
	const char *name; /* what messages call the disk, as its path; borrowed until blk_free() */
	int fd; /* the disk, with the access mode that @readonly asks for; becomes the device's when blk_new succeeds */
	bool readonly;
	unsigned queues;
	char serial[BLK_SERIAL_BYTES + 1]; /* what the guest sees as its serial number; may be empty */

	/* What to do when the host's storage is full (ENOSPC, EDQUOT), and on other errors. QEMU's usual: BLK_PAUSE,
	 * BLK_REPORT. */
	enum blk_policy on_full, on_error;
	/* A request is held for @errnum: pause the VM, soon. Any I/O thread, possibly more than once; must not block.
	 */
	void (*paused)(void *arg, int errnum);
	void *paused_arg;

	struct iothread *const *threads;
	unsigned thread_count;
};

struct blk;

/* Makes the device; the disk is looked at, not yet locked. */
[[nodiscard]] struct error *blk_new(struct blk **out, const struct memory *memory, const struct blk_config *config);
/* Its queues are stopped (virtio_pci_free()). Does not flush: see blk_deactivate(). Closes the disk. NULL is allowed.
 */
void blk_free(struct blk *blk);

/* For the transport. Borrowed. */
struct virtio_device *blk_device(struct blk *blk);

/*
 * Locks the disk and takes its size. EBUSY when another process has it. Before the machine resumes.
 * A loaded state must fit the disk: the size and block size the guest knows.
 */
[[nodiscard]] struct error *blk_activate(struct blk *blk);

/*
 * The machine is paused: makes everything written durable and gives the disk up. After an error it is still locked.
 * Held requests are part of the saved state, and are no hindrance.
 */
[[nodiscard]] struct error *blk_deactivate(struct blk *blk);

/* What was done for the guest since the device was made: requests that it was told the end of. */
struct blk_stats {
	uint64_t reads, read_bytes;
	uint64_t writes, written_bytes;
	uint64_t flushes;
	uint64_t discards; /* and zeroed ranges */
	uint64_t errors;   /* told to the guest; in none of the others */
};
/* Any thread. */
void blk_stats(const struct blk *blk, struct blk_stats *stats);

#endif
