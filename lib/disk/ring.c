/*
 * One io_uring for one thread; see ring.h. Touches its ring, the descriptors that operations name, and an eventfd by
 * which other threads wake it when they post.
 */
#include "disk/ring.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SUBMISSIONS 128
#define COMPLETIONS 1024
#define IOV_MAX_    1024 /* UIO_MAXIOV */
#define ONE_MAX     ((size_t)1 << 30)

struct disk_ring {
	struct disk_io io;
	struct io_uring ring;
	int wake_fd;
	uint64_t wake_count;
	pthread_mutex_t lock; /* guards posted */
	struct disk_op *posted;
	struct iovec iov[IOV_MAX_]; /* of what is not submitted yet */
	unsigned iov_used;
	struct io_uring_sqe *bulk; /* the last large copy of what is not submitted yet */
};

static struct disk_ring *ring_of(struct disk_io *io)
{
	return (struct disk_ring *)io;
}

static void submit(struct disk_ring *r)
{
	while (io_uring_sq_ready(&r->ring) > 0) {
		int ret = io_uring_submit(&r->ring);
		if (ret < 0 && ret != -EINTR)
			sched_yield();
	}
	r->iov_used = 0;
	r->bulk = NULL;
}

static struct io_uring_sqe *next_sqe(struct disk_ring *r, unsigned buffers)
{
	if (io_uring_sq_space_left(&r->ring) == 0 || buffers > IOV_MAX_ - r->iov_used)
		submit(r);
	return io_uring_get_sqe(&r->ring);
}

static const struct iovec *keep(struct disk_ring *r, const struct iovec *iov, unsigned count)
{
	struct iovec *kept = r->iov + r->iov_used;

	memcpy(kept, iov, count * sizeof(*iov));
	r->iov_used += count;
	return kept;
}

static void do_readv(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		     uint64_t offset)
{
	struct disk_ring *r = ring_of(io);
	struct io_uring_sqe *sqe = next_sqe(r, count);

	if (count > 1)
		io_uring_prep_readv(sqe, (int)file, keep(r, iov, count), count, offset);
	else
		io_uring_prep_read(sqe, (int)file, iov->iov_base, (unsigned)MIN(iov->iov_len, ONE_MAX), offset);
	io_uring_sqe_set_data(sqe, op);
	if (!op->bulk)
		return;
	/* The last is copied by this thread, which would only wait: alone it costs no waking. */
	if (r->bulk)
		io_uring_sqe_set_flags(r->bulk, IOSQE_ASYNC);
	r->bulk = sqe;
}

static void do_writev(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		      uint64_t offset)
{
	struct disk_ring *r = ring_of(io);
	struct io_uring_sqe *sqe = next_sqe(r, count);

	if (count > 1)
		io_uring_prep_writev(sqe, (int)file, keep(r, iov, count), count, offset);
	else
		io_uring_prep_write(sqe, (int)file, iov->iov_base, (unsigned)MIN(iov->iov_len, ONE_MAX), offset);
	io_uring_sqe_set_data(sqe, op);
}

static void do_fdatasync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	struct io_uring_sqe *sqe = next_sqe(ring_of(io), 0);

	io_uring_prep_fsync(sqe, (int)file, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, op);
}

static void do_fallocate(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset, uint64_t len)
{
	struct io_uring_sqe *sqe = next_sqe(ring_of(io), 0);

	io_uring_prep_fallocate(sqe, (int)file, mode, offset, len);
	io_uring_sqe_set_data(sqe, op);
}

static void do_post(struct disk_io *io, struct disk_op *op)
{
	struct disk_ring *r = ring_of(io);
	uint64_t one = 1;

	pthread_mutex_lock(&r->lock);
	op->next = r->posted;
	r->posted = op;
	pthread_mutex_unlock(&r->lock);
	/* Cannot fail: the counter would have to be full. */
	if (write(r->wake_fd, &one, sizeof(one)) < 0)
		log_warn("wake the thread of a ring: %s", strerror(errno));
}

static void await_wake(struct disk_ring *r)
{
	struct io_uring_sqe *sqe = next_sqe(r, 0);

	io_uring_prep_read(sqe, r->wake_fd, &r->wake_count, sizeof(r->wake_count), 0);
	io_uring_sqe_set_data(sqe, NULL);
}

struct error *disk_ring_new(struct disk_ring **out)
{
	struct disk_ring *r = calloc(1, sizeof(*r));
	struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
						  IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
					 .cq_entries = COMPLETIONS};

	if (!r)
		return error_new(ENOMEM, "make an io_uring");
	int ret = io_uring_queue_init_params(SUBMISSIONS, &r->ring, &params);
	if (ret < 0) {
		free(r);
		return error_new(-ret, "make an io_uring");
	}
	/* Spares each io_uring_enter the look-up of the descriptor; where it cannot be had, it works without. */
	(void)io_uring_register_ring_fd(&r->ring);
	pthread_mutex_init(&r->lock, NULL);
	r->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (r->wake_fd < 0) {
		struct error *err = error_new(errno, "make the eventfd of a ring");
		disk_ring_free(r);
		return err;
	}
	r->io = (struct disk_io){do_readv, do_writev, do_fdatasync, do_fallocate, do_post};
	await_wake(r);
	*out = r;
	return NULL;
}

void disk_ring_free(struct disk_ring *r)
{
	if (!r)
		return;
	io_uring_queue_exit(&r->ring);
	close_fd(&r->wake_fd);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

struct disk_io *disk_ring_io(struct disk_ring *r)
{
	return &r->io;
}

/* One at a time: what is called may post again. */
static void run_posted(struct disk_ring *r)
{
	await_wake(r);
	for (;;) {
		pthread_mutex_lock(&r->lock);
		struct disk_op *op = r->posted;
		if (op)
			r->posted = op->next;
		pthread_mutex_unlock(&r->lock);
		if (!op)
			return;
		op->done(op, 0);
	}
}

void disk_ring_serve(struct disk_ring *r)
{
	struct io_uring_cqe *cqe;
	int ret = io_uring_submit_and_wait(&r->ring, 1);

	if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY) {
		log_err("io_uring_enter: %s; requests are lost, so the process ends", strerror(-ret));
		abort();
	}
	r->bulk = NULL;
	if (io_uring_sq_ready(&r->ring) == 0)
		r->iov_used = 0;
	while (io_uring_peek_cqe(&r->ring, &cqe) == 0) {
		struct disk_op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;
		io_uring_cqe_seen(&r->ring, cqe);
		if (op)
			op->done(op, res);
		else
			run_posted(r);
	}
}
