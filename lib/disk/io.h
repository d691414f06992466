/*
 * How the disk engine does I/O: by operations that it asks of whoever runs it, and by nothing else.
 *
 * An implementation belongs to one thread: an I/O thread of glint-vmm with its restricted io_uring, the ring of
 * lib/disk/ring.h, the system calls of disk_blocking_io(), a recorder of power cuts, a fuzzer. It never fails by
 * itself: what goes wrong is the result of an operation.
 */
#ifndef GLINT_DISK_IO_H
#define GLINT_DISK_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/* One operation under way; embedded in its owner. @res is what the system call would have returned, or -errno. */
struct disk_op {
	void (*done)(struct disk_op *op, int res);
	struct disk_op *next; /* the implementation's */
	bool bulk; /* set before readv(): a large copy; of several, another processor may as well make all but one */
};

/*
 * Operations on the file that this implementation knows as @file. Each calls op->done once, on the thread of the
 * implementation: later, or before it returns. The array @iov is the caller's again on return; the buffers are in use
 * until the operation is done. @count is at most 1024 (UIO_MAXIOV). Transfers may be short; writing past the end makes
 * the file longer, as with pwritev(2).
 */
struct disk_io {
	void (*readv)(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		      uint64_t offset);
	void (*writev)(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		       uint64_t offset);
	void (*fdatasync)(struct disk_io *io, struct disk_op *op, unsigned file);
	/* @mode: as fallocate(2). */
	void (*fallocate)(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset,
			  uint64_t len);
	/* Any thread: has op->done(op, 0) called on the implementation's thread. */
	void (*post)(struct disk_io *io, struct disk_op *op);
};

/*
 * System calls that block, for the calling thread: files are descriptors, and every operation is done when it returns.
 * post() calls at once, so only one thread may use a disk through this.
 */
struct disk_io *disk_blocking_io(void);

#endif
