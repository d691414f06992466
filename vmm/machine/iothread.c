/*
 * I/O threads; see iothread.h. Touches its ring, the files registered with it, and one eventfd that wakes it for calls.
 *
 * Set-up was measured (round trip of a doorbell, CPU time of the thread per doorbell, Linux 6.18):
 *
 *     DEFER_TASKRUN, multishot poll, counter left alone   16.8 us   7.6 us
 *     DEFER_TASKRUN, multishot poll and read(2)           18.7 us   9.1 us
 *     DEFER_TASKRUN, read through the ring, resubmitted   19.4 us  10.4 us
 *     COOP_TASKRUN, the same three                        22 - 24 us 10.7 - 12.1 us
 *
 * So completions run only when this thread asks for them, and doorbells are multishot polls: each write to an eventfd
 * wakes a multishot poll whatever its counter is (a poll that is level-triggered by name posts one completion a wake),
 * so the counter is never read. It would take 2^64 - 2 signals to fill.
 *
 * The restrictions hold from before the first submission and cannot be lifted: an attacker who has taken over the
 * process can make the ring do to registered files what a disk needs, and nothing else: not open, connect, send,
 * splice, or take another file but through IORING_REGISTER_FILES_UPDATE.
 */
#include "vmm/machine/iothread.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

#define SUBMISSIONS 128
/* More than fits only costs time: the kernel keeps what overflows. */
#define COMPLETIONS 1024
/* The deepest path, a malformed chain and its log line, needs under 16 KiB. */
#define STACK_BYTES (128 * KIB)
/* Buffers of one readv or writev: what the kernel takes (UIO_MAXIOV). */
#define BUFFERS_MAX 1024

/* user_data is the address of a disk_op, or of an io_watch with this bit set, or 0 for completions nobody awaits. */
#define TAG_WATCH 1u

struct call {
	void (*fn)(void *arg);
	void *arg;
	bool finished;
	struct call *next;
};

struct iothread {
	struct disk_io io; /* the first: see thread_of() */
	struct io_uring ring;
	unsigned index;
	pthread_t thread;
	bool started; /* the thread serves: set and cleared by its owner while nobody else calls */
	bool adopted; /* it is the thread of whoever called iothread_adopt() */
	bool quit;    /* I/O thread only */
	uint64_t files[IOTHREAD_FILES_MAX / 64]; /* slots in use, a bit each; guarded by iothread_call */

	int wake_fd;
	struct io_watch wake;
	pthread_mutex_t lock; /* guards calls */
	pthread_cond_t finished;
	struct call *calls;

	struct io_watch *watches;
	struct io_batch *batches;
	_Atomic(struct disk_op *) posted; /* the newest first */

	/* Buffer lists of what is not submitted yet: the kernel copies them when it is. */
	struct iovec iov[BUFFERS_MAX];
	unsigned iov_used;
	struct io_uring_sqe *bulk; /* the last large copy of what is not submitted yet */

	struct error *(*enter)(void *arg);
	void *enter_arg;
	struct error *enter_error;
	bool entered;
};

static void init_io(struct iothread *t);

static void wake_ready(struct io_watch *watch)
{
	/* Calls are taken by the outer loop only, so that they never run inside another; what was posted by serve(). */
	(void)watch;
}

static struct error *ring_error(int errnum, const char *what)
{
	struct error *err = error_new(errnum, "%s of an I/O thread", what);

	if (errnum == EPERM || errnum == ENOSYS)
		return error_hint(err, "io_uring is switched off here: set the sysctl kernel.io_uring_disabled to 0");
	if (errnum == EINVAL)
		return error_hint(err, "this kernel's io_uring is too old: Linux 6.1 or later is needed");
	return err;
}

static struct error *make_ring(struct iothread *t)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
		.cq_entries = COMPLETIONS,
	};
	int ret = io_uring_queue_init_params(SUBMISSIONS, &t->ring, &params);

	if (ret < 0) {
		t->ring.ring_fd = -1;
		return ring_error(-ret, "make the io_uring");
	}
	ret = io_uring_register_files_sparse(&t->ring, IOTHREAD_FILES_MAX);
	return ret < 0 ? ring_error(-ret, "make the file table") : NULL;
}

struct error *iothread_new(struct iothread **out, unsigned index)
{
	struct iothread *t = calloc(1, sizeof(*t));

	if (!t)
		return error_new(ENOMEM, "make I/O thread %u", index);
	t->index = index;
	t->ring.ring_fd = -1;
	init_io(t);
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->finished, NULL);
	t->wake.ready = wake_ready;
	t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct error *err = t->wake_fd < 0 ? error_new(errno, "make the eventfd of an I/O thread") : make_ring(t);
	if (!err)
		err = iothread_add_file(t, t->wake_fd, &t->wake.slot);
	if (err) {
		iothread_free(t);
		return err;
	}
	iothread_watch(t, &t->wake);
	*out = t;
	return NULL;
}

/* --- the thread --- */

/* Hands what is prepared to the kernel. */
static void submit(struct iothread *t)
{
	for (;;) {
		int ret = io_uring_submit(&t->ring);
		if (ret >= 0 && io_uring_sq_ready(&t->ring) == 0)
			break;
		/* Short of memory (EAGAIN) or interrupted: what was not taken is still in the queue. */
		if (ret < 0 && ret != -EINTR)
			sched_yield();
	}
	t->iov_used = 0;
	t->bulk = NULL;
}

/* The next free entry, with room for a list of @buffers. */
static struct io_uring_sqe *next_sqe(struct iothread *t, unsigned buffers)
{
	if (io_uring_sq_space_left(&t->ring) == 0 || buffers > BUFFERS_MAX - t->iov_used)
		submit(t);
	return io_uring_get_sqe(&t->ring);
}

/* The last touch of every submission. */
static void finish_sqe(struct io_uring_sqe *sqe, uint64_t user_data)
{
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data64(sqe, user_data);
}

static void arm(struct iothread *t, struct io_watch *watch)
{
	struct io_uring_sqe *sqe = next_sqe(t, 0);

	io_uring_prep_poll_multishot(sqe, (int)watch->slot, watch->events ? (unsigned)watch->events : POLLIN);
	finish_sqe(sqe, (uintptr_t)watch | TAG_WATCH);
	watch->armed = true;
	watch->stale = false;
}

/* Ends a poll, unless it is just being woken (EALREADY). */
static void disarm(struct iothread *t, struct io_watch *watch)
{
	struct io_uring_sqe *sqe = next_sqe(t, 0);

	io_uring_prep_poll_remove(sqe, (uintptr_t)watch | TAG_WATCH);
	finish_sqe(sqe, 0);
}

static void watch_completed(struct iothread *t, struct io_watch *watch, int res, bool more)
{
	if (!more)
		watch->armed = false;
	if (!watch->wanted)
		return;
	/* The kernel ends a multishot poll when its completion queue overflows, and we when it is stale. */
	if (!more && (res >= 0 || res == -ECANCELED))
		arm(t, watch);
	else if (watch->stale)
		disarm(t, watch);
	watch->ready(watch);
}

static void complete(struct iothread *t, const struct io_uring_cqe *cqe)
{
	uint64_t data = cqe->user_data;
	int res = cqe->res;
	bool more = cqe->flags & IORING_CQE_F_MORE;

	/* Given back first: done() may serve completions itself (iothread_drain). */
	io_uring_cq_advance(&t->ring, 1);
	if (data & TAG_WATCH) {
		watch_completed(t, (struct io_watch *)(uintptr_t)(data & ~(uint64_t)TAG_WATCH), res, more);
	} else if (data) {
		struct disk_op *op = (struct disk_op *)(uintptr_t)data;
		op->done(op, res);
	}
}

static void end_batch(struct iothread *t)
{
	struct io_batch *list = t->batches;

	t->batches = NULL;
	while (list) {
		struct io_batch *batch = list;
		list = batch->next;
		batch->queued = false;
		batch->end(batch);
	}
}

/* In the order in which they were posted; what is posted meanwhile has its turn in the next round. */
static void run_posted(struct iothread *t)
{
	struct disk_op *newest = atomic_exchange_explicit(&t->posted, NULL, memory_order_acquire), *list = NULL;

	while (newest) {
		struct disk_op *op = newest;
		newest = op->next;
		op->next = list;
		list = op;
	}
	while (list) {
		struct disk_op *op = list;
		list = op->next;
		op->done(op, 0);
	}
}

/* Submits what is prepared, waits for completions if there is nothing better to do, and handles them. */
static void serve(struct iothread *t)
{
	bool busy = t->batches || atomic_load_explicit(&t->posted, memory_order_relaxed);
	struct io_uring_cqe *cqe;
	int ret = io_uring_submit_and_wait(&t->ring, busy ? 0 : 1);

	if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY) {
		log_err("I/O thread %u: io_uring_enter: %s; requests are lost, so the process ends", t->index,
			strerror(-ret));
		abort();
	}
	t->bulk = NULL;
	if (io_uring_sq_ready(&t->ring) == 0)
		t->iov_used = 0;
	/* A bound, so that completions that breed completions do not put off the end of the batch for ever. */
	for (unsigned n = 0; n < COMPLETIONS && io_uring_peek_cqe(&t->ring, &cqe) == 0; n++)
		complete(t, cqe);
	run_posted(t);
	end_batch(t);
}

static void run_calls(struct iothread *t)
{
	pthread_mutex_lock(&t->lock);
	while (t->calls) {
		struct call *call = t->calls;
		t->calls = call->next;
		pthread_mutex_unlock(&t->lock);
		call->fn(call->arg);
		pthread_mutex_lock(&t->lock);
		call->finished = true;
		pthread_cond_broadcast(&t->finished);
	}
	pthread_mutex_unlock(&t->lock);
}

static struct error *restrict_ring(struct iothread *t)
{
	static const uint8_t operations[] = {IORING_OP_READ,     IORING_OP_READV,      IORING_OP_WRITE,
					     IORING_OP_WRITEV,   IORING_OP_FSYNC,      IORING_OP_FALLOCATE,
					     IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE};
	struct io_uring_restriction r[ARRAY_SIZE(operations) + 3] = {0};
	unsigned n = 0;

	for (; n < ARRAY_SIZE(operations); n++) {
		r[n].opcode = IORING_RESTRICTION_SQE_OP;
		r[n].sqe_op = operations[n];
	}
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE | IOSQE_ASYNC;
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE;
	r[n].opcode = IORING_RESTRICTION_REGISTER_OP;
	r[n++].register_op = IORING_REGISTER_FILES_UPDATE;

	int ret = io_uring_register_restrictions(&t->ring, r, n);
	return ret < 0 ? ring_error(-ret, "restrict the io_uring") : NULL;
}

/* The ring belongs to the thread that enables it (SINGLE_ISSUER). */
static struct error *enter(struct iothread *t)
{
	TRY(restrict_ring(t));
	/* Spares each io_uring_enter the look-up of the descriptor. Must come before the restrictions bite. */
	int ret = io_uring_register_ring_fd(&t->ring);
	if (ret < 0)
		return ring_error(-ret, "register the io_uring");
	ret = io_uring_enable_rings(&t->ring);
	if (ret < 0)
		return ring_error(-ret, "enable the io_uring");
	return t->enter ? t->enter(t->enter_arg) : NULL;
}

/* Enables the ring for this thread and sets off what waited for it. */
static struct error *begin(struct iothread *t)
{
	TRY(enter(t));
	for (struct io_watch *w = t->watches; w; w = w->next)
		arm(t, w);
	return NULL;
}

static void *run(void *arg)
{
	struct iothread *t = arg;
	char name[16];

	snprintf(name, sizeof(name), "io%u", t->index % 1000);
	prctl(PR_SET_NAME, name); /* by itself: others have no /proc to do it in */
	struct error *err = begin(t);

	pthread_mutex_lock(&t->lock);
	t->enter_error = err;
	t->entered = true;
	pthread_cond_broadcast(&t->finished);
	pthread_mutex_unlock(&t->lock);
	while (!err && !t->quit) {
		serve(t);
		run_calls(t);
	}
	return NULL;
}

struct error *iothread_start(struct iothread *t, struct error *(*enter_fn)(void *arg), void *arg)
{
	pthread_attr_t attr;

	t->enter = enter_fn;
	t->enter_arg = arg;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	int ret = pthread_create(&t->thread, &attr, run, t);
	pthread_attr_destroy(&attr);
	if (ret)
		return error_new(ret, "start I/O thread %u", t->index);

	pthread_mutex_lock(&t->lock);
	while (!t->entered)
		pthread_cond_wait(&t->finished, &t->lock);
	pthread_mutex_unlock(&t->lock);
	if (t->enter_error) {
		pthread_join(t->thread, NULL);
		return error_wrap(steal_ptr(&t->enter_error), "start I/O thread %u", t->index);
	}
	t->started = true;
	return NULL;
}

struct error *iothread_adopt(struct iothread *t)
{
	TRY(begin(t));
	t->thread = pthread_self();
	t->started = t->adopted = true;
	return NULL;
}

static void do_quit(void *arg)
{
	struct iothread *t = arg;
	t->quit = true;
}

void iothread_free(struct iothread *t)
{
	if (!t)
		return;
	if (t->started && !t->adopted) {
		iothread_call(t, do_quit, t);
		pthread_join(t->thread, NULL);
	}
	if (t->ring.ring_fd >= 0)
		io_uring_queue_exit(&t->ring);
	close_fd(&t->wake_fd);
	pthread_cond_destroy(&t->finished);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/* Any thread. */
static void wake(struct iothread *t)
{
	uint64_t one = 1;

	/* Cannot fail: the counter would have to be full. */
	if (write(t->wake_fd, &one, sizeof(one)) < 0)
		log_warn("I/O thread %u: wake: %s", t->index, strerror(errno));
}

void iothread_call(struct iothread *t, void (*fn)(void *arg), void *arg)
{
	struct call call = {.fn = fn, .arg = arg};

	if (!t->started || pthread_equal(pthread_self(), t->thread)) {
		fn(arg);
		return;
	}
	pthread_mutex_lock(&t->lock);
	struct call **end = &t->calls;
	while (*end)
		end = &(*end)->next;
	*end = &call;
	wake(t);
	while (!call.finished)
		pthread_cond_wait(&t->finished, &t->lock);
	pthread_mutex_unlock(&t->lock);
}

void iothread_drain(struct iothread *t, const unsigned *busy)
{
	while (*busy)
		serve(t);
	end_batch(t);
}

/* --- files --- */

struct file_call {
	struct iothread *thread;
	int fd;
	unsigned slot;
	int ret;
};

static unsigned free_slot(const struct iothread *t)
{
	unsigned slot = 0;

	while (slot < IOTHREAD_FILES_MAX && (t->files[slot / 64] >> slot % 64 & 1))
		slot++;
	return slot;
}

static void add_file(void *arg)
{
	struct file_call *call = arg;
	struct iothread *t = call->thread;

	call->slot = free_slot(t);
	if (call->slot == IOTHREAD_FILES_MAX) {
		call->ret = -ENFILE;
		return;
	}
	call->ret = io_uring_register_files_update(&t->ring, call->slot, &call->fd, 1);
	if (call->ret >= 0)
		t->files[call->slot / 64] |= 1ull << call->slot % 64;
}

struct error *iothread_add_file(struct iothread *t, int fd, unsigned *slot)
{
	struct file_call call = {.thread = t, .fd = fd};

	iothread_call(t, add_file, &call);
	if (call.ret == -ENFILE)
		return error_hint(ring_error(ENFILE, "register a file"),
				  "it knows at most %d: a disk takes one for each image of its chain and each queue; "
				  "give the machine fewer, or more --io-threads",
				  IOTHREAD_FILES_MAX);
	if (call.ret < 0)
		return ring_error(-call.ret, "register a file");
	*slot = call.slot;
	return NULL;
}

/*
 * Before Linux 6.13 a ring lets go of a removed file when every request has ended that began before it was removed,
 * whatever file that is on: so all polls are begun anew. Else a tap would stay taken until the thread ends.
 */
static void remove_file(void *arg)
{
	struct file_call *call = arg;
	struct iothread *t = call->thread;

	(void)io_uring_register_files_update(&t->ring, call->slot, &call->fd, 1);
	t->files[call->slot / 64] &= ~(1ull << call->slot % 64);
	for (struct io_watch *watch = t->watches; watch; watch = watch->next) {
		if (!watch->armed)
			continue;
		watch->stale = true;
		disarm(t, watch);
	}
}

void iothread_remove_file(struct iothread *t, unsigned slot)
{
	struct file_call call = {.thread = t, .fd = -1, .slot = slot};

	iothread_call(t, remove_file, &call);
}

/* --- operations --- */

static struct iothread *thread_of(struct disk_io *io)
{
	return (struct iothread *)io;
}

/* A copy of the list that lives until it is submitted. next_sqe() has made room. */
static const struct iovec *keep_iov(struct iothread *t, const struct iovec *iov, unsigned count)
{
	struct iovec *copy = &t->iov[t->iov_used];
	memcpy(copy, iov, count * sizeof(*iov));
	t->iov_used += count;
	return copy;
}

static void do_readv(struct disk_io *io, struct disk_op *op, unsigned slot, const struct iovec *iov, unsigned count,
		     uint64_t offset)
{
	struct iothread *t = thread_of(io);
	struct io_uring_sqe *sqe = next_sqe(t, count);

	if (count > 1)
		io_uring_prep_readv(sqe, (int)slot, keep_iov(t, iov, count), count, offset);
	else
		io_uring_prep_read(sqe, (int)slot, iov->iov_base, (unsigned)iov->iov_len, offset);
	finish_sqe(sqe, (uintptr_t)op);
	if (!op->bulk)
		return;
	/* The last is copied by this thread, which would only wait: alone it costs no waking. */
	if (t->bulk)
		io_uring_sqe_set_flags(t->bulk, IOSQE_FIXED_FILE | IOSQE_ASYNC);
	t->bulk = sqe;
}

static void do_writev(struct disk_io *io, struct disk_op *op, unsigned slot, const struct iovec *iov, unsigned count,
		      uint64_t offset)
{
	struct iothread *t = thread_of(io);
	struct io_uring_sqe *sqe = next_sqe(t, count);

	if (count > 1)
		io_uring_prep_writev(sqe, (int)slot, keep_iov(t, iov, count), count, offset);
	else
		io_uring_prep_write(sqe, (int)slot, iov->iov_base, (unsigned)iov->iov_len, offset);
	finish_sqe(sqe, (uintptr_t)op);
}

static void do_fdatasync(struct disk_io *io, struct disk_op *op, unsigned slot)
{
	struct io_uring_sqe *sqe = next_sqe(thread_of(io), 0);

	io_uring_prep_fsync(sqe, (int)slot, IORING_FSYNC_DATASYNC);
	finish_sqe(sqe, (uintptr_t)op);
}

static void do_fallocate(struct disk_io *io, struct disk_op *op, unsigned slot, int mode, uint64_t offset, uint64_t len)
{
	struct io_uring_sqe *sqe = next_sqe(thread_of(io), 0);

	io_uring_prep_fallocate(sqe, (int)slot, mode, offset, len);
	finish_sqe(sqe, (uintptr_t)op);
}

/* Before it sleeps, the thread looks for what it posted itself; others wake it. */
static void do_post(struct disk_io *io, struct disk_op *op)
{
	struct iothread *t = thread_of(io);

	struct disk_op *newest = atomic_load_explicit(&t->posted, memory_order_relaxed);
	do
		op->next = newest;
	while (!atomic_compare_exchange_weak_explicit(&t->posted, &newest, op, memory_order_release,
						      memory_order_relaxed));
	/* Now it may be done already, and be somebody else's. */
	if (!pthread_equal(pthread_self(), t->thread))
		wake(t);
}

static void init_io(struct iothread *t)
{
	t->io = (struct disk_io){do_readv, do_writev, do_fdatasync, do_fallocate, do_post};
}

struct disk_io *iothread_io(struct iothread *t)
{
	return &t->io;
}

/* --- watches and batches --- */

struct watch_call {
	struct iothread *thread;
	struct io_watch *watch;
};

static void watch(void *arg)
{
	struct watch_call *call = arg;

	call->watch->armed = false;
	call->watch->wanted = true;
	call->watch->next = call->thread->watches;
	call->thread->watches = call->watch;
	/* Before the start there is no ring to submit to: run() arms what it finds. */
	if (call->thread->started)
		arm(call->thread, call->watch);
}

void iothread_watch(struct iothread *t, struct io_watch *w)
{
	iothread_call(t, watch, &(struct watch_call){t, w});
}

static void unwatch(void *arg)
{
	struct watch_call *call = arg;
	struct io_watch **link = &call->thread->watches;

	while (*link && *link != call->watch)
		link = &(*link)->next;
	if (!*link)
		return;
	*link = call->watch->next;
	call->watch->wanted = false;
	/* Again and again: a poll that is just being woken is not removed (EALREADY), and comes back armed. */
	while (call->watch->armed) {
		disarm(call->thread, call->watch);
		serve(call->thread);
	}
}

void iothread_unwatch(struct iothread *t, struct io_watch *w)
{
	iothread_call(t, unwatch, &(struct watch_call){t, w});
}

void iothread_at_end(struct iothread *t, struct io_batch *batch)
{
	if (batch->queued)
		return;
	batch->queued = true;
	batch->next = t->batches;
	t->batches = batch;
}
