/*
 * The path of a request; see disk.h. Touches the caller's buffers, and files through the queue's disk_io.
 *
 *     disk_submit() -> advance() -> [an operation] -> moved() -> advance() ... -> request_end()
 *                          \-> format->slow(), format->flush() -> request_again() or request_end()
 *
 * A request is done piece after piece: each the longest range that lies together in one file, which is nearly always
 * all of it. One operation of a request is under way at a time.
 */
#include "disk/internal.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* Zeroes written as data: up to 1 MiB an operation. */
#define ZERO_BYTES 4096u
#define ZERO_COUNT 256u

/*
 * A read through the page cache is a copy. From this size on it takes long beside waking a processor for it. Not so a
 * write, which waits for others in the file's lock.
 */
#define BULK_BYTES (256u * 1024)

static const uint8_t zeroes[ZERO_BYTES] __attribute__((aligned(4096)));

static bool modifies(const struct disk_request *r)
{
	return r->type == DISK_WRITE || r->type == DISK_DISCARD || r->type == DISK_WRITE_ZEROES;
}

static bool moves_data(const struct disk_request *r)
{
	return r->type == DISK_READ || r->type == DISK_WRITE;
}

static struct image *top(const struct disk_request *r)
{
	return r->queue->disk->image[0];
}

bool request_end(struct disk_request *r, int res)
{
	r->done(r, res);
	return false;
}

void request_resume(struct disk_request *r)
{
	r->queue->io->post(r->queue->io, &r->task.op);
}

/* --- transfers --- */

static void transfer_zeroes(struct disk_request *r)
{
	struct iovec v[ZERO_COUNT];
	uint64_t left = MIN(r->piece, (uint64_t)ZERO_BYTES * ZERO_COUNT);
	unsigned n = 0;

	for (; left > 0; n++) {
		v[n] = (struct iovec){(void *)(uintptr_t)zeroes, MIN(left, ZERO_BYTES)};
		left -= v[n].iov_len;
	}
	r->queue->io->writev(r->queue->io, &r->task.op, r->queue->files[r->level], v, n, r->at);
}

/* A part of the request's buffers, cut out by shortening the first and the last of it until slice_end(). */
struct slice {
	struct iovec *v;
	unsigned count;
	struct iovec first, last;
};

static struct slice slice(struct disk_request *r, uint64_t skip, uint64_t len)
{
	struct slice s = {.v = r->iov};

	while (skip >= s.v->iov_len)
		skip -= s.v++->iov_len;
	struct iovec *last = s.v;
	for (len += skip; len > last->iov_len; last++)
		len -= last->iov_len;
	s.count = (unsigned)(last - s.v) + 1;
	s.first = *s.v;
	s.last = *last;
	last->iov_len = len;
	s.v->iov_base = (char *)s.v->iov_base + skip;
	s.v->iov_len -= skip;
	return s;
}

static void slice_end(struct slice *s)
{
	s->v[s->count - 1] = s->last;
	s->v[0] = s->first;
}

static void transfer(struct disk_request *r)
{
	struct disk_io *io = r->queue->io;
	unsigned file = r->queue->files[r->level];

	if (!moves_data(r)) {
		transfer_zeroes(r);
		return;
	}
	struct slice s = slice(r, r->finished, r->piece);
	r->task.op.bulk = r->piece >= BULK_BYTES && r->queue->disk->image[r->level]->file.memory_align == 1;
	if (r->type == DISK_READ)
		io->readv(io, &r->task.op, file, s.v, s.count, r->at);
	else
		io->writev(io, &r->task.op, file, s.v, s.count, r->at);
	slice_end(&s);
}

void request_transfer(struct disk_request *r, unsigned level, uint64_t offset, uint64_t len)
{
	r->level = (uint8_t)level;
	r->at = offset;
	r->piece = len;
	transfer(r);
}

enum transferred request_transferred(struct disk_request *r, int *res)
{
	const struct disk_file *file = &r->queue->disk->image[r->level]->file;
	uint64_t len = *res < 0 ? 0 : MIN((uint64_t)*res, r->piece);

	if ((*res == -EAGAIN || *res == -EINTR) && r->retries++ < RETRIES_MAX) {
		transfer(r);
		return TRANSFERRING;
	}
	/* Direct I/O goes on at a block: what lies beyond is transferred again. */
	if (len < r->piece && file->memory_align > 1)
		len = align_down(len, file->block_size);
	if (len == 0) {
		/* Nothing more to read: the file was cut off below us. Nothing more is taken: as when it is full. */
		if (*res >= 0)
			*res = r->type == DISK_READ ? -EIO : -ENOSPC;
		return TRANSFER_FAILED;
	}
	r->retries = 0;
	r->finished += len;
	r->at += len;
	r->piece -= len;
	if (r->piece == 0)
		return TRANSFERRED;
	transfer(r);
	return TRANSFERRING;
}

/* --- pieces --- */

/* Where the rest of the request, or its beginning, is: in which image of the chain. */
static struct extent find(struct disk_request *r, unsigned *level)
{
	const struct disk *disk = r->queue->disk;
	uint64_t offset = r->offset + r->finished;
	struct extent e = {.len = r->len - r->finished};

	for (*level = 0; *level < disk->depth; ++*level) {
		struct image *image = disk->image[*level];
		/* A parent may be smaller than its child. */
		if (offset >= image->size)
			break;
		e.len = MIN(e.len, image->size - offset);
		image->format->map(image, r->type, offset, &e);
		if (e.kind != EXTENT_PARENT || r->type != DISK_READ)
			return e;
	}
	*level = 0;
	e.kind = EXTENT_ZERO;
	return e;
}

static void read_zeroes(struct disk_request *r, uint64_t len)
{
	struct slice s = slice(r, r->finished, len);

	for (unsigned i = 0; i < s.count; i++)
		memset(s.v[i].iov_base, 0, s.v[i].iov_len);
	slice_end(&s);
}

void request_copy(struct disk_request *r, const uint8_t *data, uint64_t len)
{
	struct slice s = slice(r, r->finished, len);

	for (unsigned i = 0; i < s.count; i++) {
		memcpy(s.v[i].iov_base, data, s.v[i].iov_len);
		data += s.v[i].iov_len;
	}
	slice_end(&s);
	r->finished += len;
}

static void start_range(struct disk_request *r, const struct extent *e)
{
	struct disk_io *io = r->queue->io;
	bool punch = r->type == DISK_DISCARD || r->unmap;

	r->level = 0;
	r->at = e->offset;
	r->piece = e->len;
	io->fallocate(io, &r->task.op, r->queue->files[0],
		      FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE), e->offset, e->len);
}

/* Starts what comes next. As a step returns. */
static bool advance(struct disk_request *r)
{
	while (r->finished < r->len) {
		unsigned level;
		struct extent e = find(r, &level);
		if (e.kind == EXTENT_SLOW)
			return top(r)->disk->image[level]->format->slow(top(r)->disk->image[level], r, &e);
		if (e.kind == EXTENT_FILE) {
			if (moves_data(r) || r->plain)
				request_transfer(r, level, e.offset, e.len);
			else
				start_range(r, &e);
			return true;
		}
		/* There is nothing to discard, and nothing to make zero. */
		if (r->type == DISK_READ)
			read_zeroes(r, e.len);
		r->finished += e.len;
	}
	return request_end(r, 0);
}

/* A range was discarded or zeroed, or could not be. As a step returns. */
static bool range_done(struct disk_request *r, int res)
{
	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX)
		return advance(r);
	if (res == -EOPNOTSUPP && r->type == DISK_WRITE_ZEROES) {
		r->plain = true;
		return advance(r);
	}
	/* A discard is a hint: a file system that cannot need not. */
	if (res < 0 && res != -EOPNOTSUPP)
		return request_end(r, res);
	r->retries = 0;
	r->finished += r->piece;
	return advance(r);
}

static bool step(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);

	if (!moves_data(r) && !r->plain)
		return range_done(r, res);
	switch (request_transferred(r, &res)) {
	case TRANSFERRED:
		return advance(r);
	case TRANSFERRING:
		return true;
	default:
		return request_end(r, res);
	}
}

static bool begin(struct disk_task *task, int res)
{
	(void)res;
	task->step = step;
	return advance(request_of(task));
}

bool request_again(struct disk_request *r)
{
	return begin(&r->task, 0);
}

/* --- flushes --- */

static bool flushed(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);

	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX) {
		r->queue->io->fdatasync(r->queue->io, &task->op, r->queue->files[0]);
		return true;
	}
	return request_end(r, MIN(res, 0));
}

static bool flush(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);

	(void)res;
	if (top(r)->readonly)
		return request_end(r, 0);
	if (top(r)->format->flush)
		return top(r)->format->flush(top(r), r);
	task->step = flushed;
	r->queue->io->fdatasync(r->queue->io, &task->op, r->queue->files[0]);
	return true;
}

/* --- the door --- */

/* Returns 0, or what is wrong with a request. */
static int check(const struct disk_request *r)
{
	const struct image *image = top(r);
	uint64_t buffers = 0;

	if (!r->queue->disk->active)
		return -ESHUTDOWN;
	if (r->queue->disk->broken)
		return -EIO;
	if (r->type == DISK_FLUSH)
		return 0;
	if (modifies(r) && image->readonly)
		return -EROFS;
	if (!range_inside(r->offset, r->len, image->size) || (r->offset | r->len) & (image->sector - 1))
		return -EINVAL;
	if (!moves_data(r))
		return 0;
	if (r->iov_count > DISK_IOV_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < r->iov_count; i++)
		buffers += r->iov[i].iov_len;
	return buffers == r->len ? 0 : -EINVAL;
}

void disk_submit(struct disk_queue *queue, struct disk_request *r)
{
	r->queue = queue;
	r->task = (struct disk_task){.op.done = task_done, .step = r->type == DISK_FLUSH ? flush : begin};
	r->finished = r->piece = 0;
	r->next = r->waiters = NULL;
	r->stage = r->retries = r->level = 0;
	r->plain = false;
	int res = check(r);
	if (res < 0) {
		r->done(r, res);
		return;
	}
	struct disk_tracker *tracker = atomic_load_explicit(&queue->disk->tracker, memory_order_acquire);
	if (tracker && modifies(r))
		tracker->changing(tracker, r->offset, r->len);
	task_run(&r->task, 0);
}
