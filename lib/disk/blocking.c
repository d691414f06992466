/*
 * I/O by system calls that block, and whole transfers by any disk_io that is done when it returns: for opening,
 * activating, making disks. Touches the descriptors it is given.
 */
#include "disk/internal.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int result(ssize_t ret)
{
	return ret < 0 ? -errno : (int)ret;
}

static void do_readv(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		     uint64_t offset)
{
	(void)io;
	op->done(op, result(preadv((int)file, iov, (int)count, (off_t)offset)));
}

static void do_writev(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		      uint64_t offset)
{
	(void)io;
	op->done(op, result(pwritev((int)file, iov, (int)count, (off_t)offset)));
}

static void do_fdatasync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	(void)io;
	op->done(op, result(fdatasync((int)file)));
}

static void do_fallocate(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset, uint64_t len)
{
	(void)io;
	op->done(op, result(fallocate((int)file, mode, (off_t)offset, (off_t)len)));
}

static void do_post(struct disk_io *io, struct disk_op *op)
{
	(void)io;
	op->done(op, 0);
}

struct disk_io *disk_blocking_io(void)
{
	static struct disk_io io = {
		.readv = do_readv,
		.writev = do_writev,
		.fdatasync = do_fdatasync,
		.fallocate = do_fallocate,
		.post = do_post,
	};

	return &io;
}

/* --- whole transfers --- */

struct at_once {
	struct disk_op op;
	bool done;
	int res;
};

static void at_once_done(struct disk_op *op, int res)
{
	struct at_once *a = (struct at_once *)op;

	a->done = true;
	a->res = res;
}

/* An implementation that is not done yet would leave a pointer to our stack behind: better none of it. */
static int wait_for(const struct at_once *a)
{
	if (!a->done)
		abort();
	return a->res;
}

static struct error *transfer(struct disk_io *io, int fd, bool in, uint8_t *p, size_t len, uint64_t offset,
			      const char *what)
{
	const char *verb = in ? "read" : "write";

	for (unsigned retries = 0; len > 0;) {
		struct at_once a = {.op.done = at_once_done};
		struct iovec v = {p, MIN(len, (size_t)GIB)};
		(in ? io->readv : io->writev)(io, &a.op, (unsigned)fd, &v, 1, offset);
		int res = wait_for(&a);
		if ((res == -EINTR || res == -EAGAIN) && retries++ < RETRIES_MAX)
			continue;
		if (res < 0)
			return error_new(-res, "%s %s at offset %llu", verb, what, (unsigned long long)offset);
		if (res == 0)
			return error_new(EIO, "%s %s at offset %llu: the file ends there", verb, what,
					 (unsigned long long)offset);
		p += res;
		len -= (size_t)res;
		offset += (uint64_t)res;
	}
	return NULL;
}

struct error *io_read(struct disk_io *io, int fd, void *buf, size_t len, uint64_t offset, const char *what)
{
	return transfer(io, fd, true, buf, len, offset, what);
}

struct error *io_write(struct disk_io *io, int fd, const void *buf, size_t len, uint64_t offset, const char *what)
{
	return transfer(io, fd, false, (uint8_t *)(uintptr_t)buf, len, offset, what);
}

struct error *io_sync(struct disk_io *io, int fd, const char *what)
{
	for (unsigned retries = 0;; retries++) {
		struct at_once a = {.op.done = at_once_done};
		io->fdatasync(io, &a.op, (unsigned)fd);
		int res = wait_for(&a);
		if (res >= 0)
			return NULL;
		if ((res != -EINTR && res != -EAGAIN) || retries == RETRIES_MAX)
			return error_new(-res, "make %s durable", what);
	}
}

struct error *io_extend(struct disk_io *io, int fd, uint64_t size, const char *what)
{
	static const uint8_t zeroes[4096] __attribute__((aligned(4096)));
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_new(errno, "look at %s", what);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size >= size)
		return NULL;
	uint64_t from = MAX((uint64_t)st.st_size, size > sizeof(zeroes) ? align_down(size - 1, sizeof(zeroes)) : 0);
	TRY(io_write(io, fd, zeroes, size - from, from, what));
	return io_sync(io, fd, what);
}

int io_fallocate(struct disk_io *io, int fd, int mode, uint64_t offset, uint64_t len)
{
	struct at_once a = {.op.done = at_once_done};

	io->fallocate(io, &a.op, (unsigned)fd, mode | FALLOC_FL_KEEP_SIZE, offset, len);
	return wait_for(&a);
}

struct error *io_zero(struct disk_io *io, int fd, uint64_t offset, uint64_t len, const char *what)
{
	static const uint8_t zeroes[64 * KIB] __attribute__((aligned(4096)));

	if (len == 0 || io_fallocate(io, fd, FALLOC_FL_ZERO_RANGE, offset, len) >= 0)
		return NULL;
	for (uint64_t end = offset + len; offset < end; offset += sizeof(zeroes))
		TRY(io_write(io, fd, zeroes, (size_t)MIN(end - offset, sizeof(zeroes)), offset, what));
	return NULL;
}
