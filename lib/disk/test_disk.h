/*
 * For the unit tests of lib/disk: files to try things on, a disk_io that goes wrong on command, requests one at a time.
 */
#ifndef GLINT_DISK_TEST_DISK_H
#define GLINT_DISK_TEST_DISK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* After the four that it needs. */
#include <cmocka.h>

#include "base/util.h"
#include "disk/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Passes on to blocking I/O, unless told to fail. Counts what passes. */
struct test_io {
	struct disk_io io;
	unsigned reads, writes, syncs, ranges;
	unsigned short_bytes; /* the most a transfer moves; 0 is all */
	unsigned again;       /* so many operations get EAGAIN first */
	int fail_after;       /* operations that still pass; < 0 never fails */
	int error;            /* -errno they then get */
	bool once;            /* only one fails */
	bool no_ranges;       /* fallocate is not supported */
};

static inline bool test_io_fails(struct test_io *t, struct disk_op *op)
{
	if (t->again > 0) {
		t->again--;
		op->done(op, -EAGAIN);
		return true;
	}
	if (t->fail_after == 0) {
		t->fail_after -= t->once;
		op->done(op, t->error);
		return true;
	}
	if (t->fail_after > 0)
		t->fail_after--;
	return false;
}

static inline void test_io_readv(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov,
				 unsigned count, uint64_t offset)
{
	struct test_io *t = (struct test_io *)io;
	struct iovec one = {iov->iov_base, MIN(iov->iov_len, (size_t)t->short_bytes)};

	if (test_io_fails(t, op))
		return;
	t->reads++;
	if (t->short_bytes)
		disk_blocking_io()->readv(io, op, file, &one, 1, offset);
	else
		disk_blocking_io()->readv(io, op, file, iov, count, offset);
}

static inline void test_io_writev(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov,
				  unsigned count, uint64_t offset)
{
	struct test_io *t = (struct test_io *)io;
	struct iovec one = {iov->iov_base, MIN(iov->iov_len, (size_t)t->short_bytes)};

	if (test_io_fails(t, op))
		return;
	t->writes++;
	if (t->short_bytes)
		disk_blocking_io()->writev(io, op, file, &one, 1, offset);
	else
		disk_blocking_io()->writev(io, op, file, iov, count, offset);
}

static inline void test_io_fdatasync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	struct test_io *t = (struct test_io *)io;

	if (test_io_fails(t, op))
		return;
	t->syncs++;
	disk_blocking_io()->fdatasync(io, op, file);
}

static inline void test_io_fallocate(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset,
				     uint64_t len)
{
	struct test_io *t = (struct test_io *)io;

	if (t->no_ranges) {
		op->done(op, -EOPNOTSUPP);
		return;
	}
	if (test_io_fails(t, op))
		return;
	t->ranges++;
	disk_blocking_io()->fallocate(io, op, file, mode, offset, len);
}

static inline void test_io_post(struct disk_io *io, struct disk_op *op)
{
	op->done(op, 0);
}

static inline struct test_io test_io(void)
{
	return (struct test_io){
		.io = {test_io_readv, test_io_writev, test_io_fdatasync, test_io_fallocate, test_io_post},
		.fail_after = -1,
		.error = -EIO};
}

/* A new file without a name, in the working folder's file system. */
static inline int test_file(uint64_t size)
{
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

#define assert_no_error(expr)                                                                                          \
	do {                                                                                                           \
		struct error *assert_err_ = (expr);                                                                    \
		if (assert_err_)                                                                                       \
			fail_msg("%s", error_text(assert_err_));                                                       \
	} while (0)

/* @words must be in the message. Frees the error. */
#define assert_error(expr, words)                                                                                      \
	do {                                                                                                           \
		struct error *assert_err_ = (expr);                                                                    \
		assert_non_null(assert_err_);                                                                          \
		if (!strstr(error_text(assert_err_), words))                                                           \
			fail_msg("\"%s\" is not in: %s", words, error_text(assert_err_));                              \
		error_free(assert_err_);                                                                               \
	} while (0)

/* Requests of one queue of blocking I/O. */
struct test_queue {
	struct disk_queue queue;
	unsigned files[DISK_CHAIN_MAX];
};

static inline void test_queue_init(struct test_queue *q, struct disk *disk, struct disk_io *io)
{
	for (unsigned i = 0; i < disk_depth(disk); i++)
		q->files[i] = (unsigned)disk_fd(disk, i);
	q->queue = (struct disk_queue){.disk = disk, .io = io, .files = q->files};
}

struct test_request {
	struct disk_request r;
	bool done;
	int res;
};

static inline void test_request_done(struct disk_request *r, int res)
{
	struct test_request *t = (struct test_request *)r;

	assert_false(t->done);
	t->done = true;
	t->res = res;
}

/* Buffers are cut into @parts, so that requests have several. */
static inline int test_do(struct test_queue *q, enum disk_request_type type, uint64_t offset, void *buf, uint64_t len,
			  unsigned parts)
{
	struct iovec iov[16];
	struct test_request t = {.r = {.type = type,
				       .offset = offset,
				       .len = len,
				       .iov = iov,
				       .done = test_request_done,
				       .unmap = parts}};
	char *p = buf;

	if (type == DISK_READ || type == DISK_WRITE) {
		for (unsigned i = 0; i < parts; i++) {
			size_t piece = i + 1 < parts ? len / parts : len - (size_t)(p - (char *)buf);
			iov[i] = (struct iovec){p, piece};
			p += piece;
		}
		t.r.iov_count = parts;
	}
	disk_submit(&q->queue, &t.r);
	assert_true(t.done);
	return t.res;
}

#endif
