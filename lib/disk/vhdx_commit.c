/*
 * Commits of a VHDX file: what makes the changes of its block map durable. docs/disks.md says why a power cut at any
 * point of it is safe. Touches the file through the disk_io of the queue whose thread began the commit.
 *
 *     vhdx_flush() -> commit_*()
 *
 * A commit, one at a time, copies the dirty pages, makes the data durable, then puts the copies in the log and makes
 * that durable: then the flushes it began with are done. What is logged goes to its place when half of the log is full,
 * or at the end. The first one writes headers that name the log, one that closes (vhdx_settle) headers that name none.
 */
#include "disk/vhdx.h"

#include <errno.h>
#include <stdlib.h>

static bool commit_step(struct disk_task *task, int res);

bool vhdx_commit_wanted(struct vhdx *v, const struct disk_queue *queue)
{
	struct vhdx_commit *c = &v->commit;

	if (c->running)
		return false;
	c->running = true;
	c->closing = false;
	c->io = queue->io;
	c->file = queue->files[0];
	c->step = COMMIT_START;
	c->task = (struct disk_task){.op.done = task_done, .step = commit_step};
	return true;
}

/* --- flushes --- */

static bool flush_step(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);

	if (r->stage == STAGE_FAILED)
		return request_end(r, -(int)r->at);
	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX) {
		r->queue->io->fdatasync(r->queue->io, &task->op, r->queue->files[0]);
		return true;
	}
	return request_end(r, MIN(res, 0));
}

bool vhdx_flush(struct image *image, struct disk_request *r)
{
	struct vhdx *v = image->state;

	r->task.step = flush_step;
	r->stage = STAGE_WAIT_COMMIT;
	if (!atomic_load_explicit(&v->changed, memory_order_acquire)) {
		r->queue->io->fdatasync(r->queue->io, &r->task.op, r->queue->files[0]);
		return true;
	}
	pthread_mutex_lock(&v->lock);
	task_park(&r->task);
	bool begin = vhdx_commit_wanted(v, r->queue);
	r->next = v->flushes;
	v->flushes = r;
	pthread_mutex_unlock(&v->lock);
	if (begin)
		task_run(&v->commit.task, 0);
	return false;
}

/* --- commits --- */

static struct vhdx *vhdx_of_commit(struct disk_task *task)
{
	return (struct vhdx *)((char *)task - offsetof(struct vhdx, commit.task));
}

/* Does the step's write, or its fdatasync. */
static bool commit_issue(struct vhdx_commit *c)
{
	struct iovec iov = {c->buf, c->len};

	if (c->len > 0)
		c->io->writev(c->io, &c->task.op, c->file, &iov, 1, c->at);
	else
		c->io->fdatasync(c->io, &c->task.op, c->file);
	return true;
}

static bool commit_write(struct vhdx_commit *c, enum vhdx_commit_step step, uint8_t *buf, size_t len, uint64_t at)
{
	c->step = step;
	c->buf = buf;
	c->len = len;
	c->at = at;
	return commit_issue(c);
}

static bool commit_sync(struct vhdx_commit *c, enum vhdx_commit_step step)
{
	c->step = step;
	c->len = 0;
	return commit_issue(c);
}

static bool commit_start(struct vhdx *v);

static bool commit_end(struct vhdx *v, int res)
{
	struct vhdx_commit *c = &v->commit;

	pthread_mutex_lock(&v->lock);
	for (unsigned i = c->logged; i < c->count; i++) {
		struct vhdx_frame *f = &v->frame[c->pages[i]];
		f->taken = false;
		v->dirty += !f->dirty;
		f->dirty = true;
	}
	c->count = c->logged = 0;
	c->result = res;
	struct disk_request *done = c->flushes, *waiting = v->waiting, *later = NULL;
	c->flushes = v->waiting = NULL;
	if (c->beginner) {
		c->beginner->next = waiting;
		waiting = c->beginner;
		c->beginner = NULL;
	}
	if (res < 0) {
		later = v->flushes;
		v->flushes = NULL;
	}
	bool again = v->flushes != NULL;
	atomic_store_explicit(&v->changed, v->dirty > 0 || again, memory_order_release);
	c->running = again;
	pthread_mutex_unlock(&v->lock);
	vhdx_resume_all(done, res);
	vhdx_resume_all(later, res);
	vhdx_resume_all(waiting, res);
	return again && commit_start(v);
}

/* Both headers are written, one after the other, each made durable: one is whole at any time [2.2.2.1]. */
static bool commit_header(struct vhdx *v, enum vhdx_commit_step step)
{
	v->header.sequence++;
	vhdx_header_encode(&v->header, v->entry);
	return commit_write(&v->commit, step, v->entry, VHDX_HEADER_BYTES, VHDX_HEADER_AT(v->current ^ 1));
}

/* The file is about to change: new ids, and an id for the log entries to come. */
static bool commit_begin(struct vhdx *v)
{
	vhdx_new_id(v->header.file_id);
	vhdx_new_data_id(v);
	vhdx_new_id(v->header.log_id);
	v->log_sequence = 1;
	v->log_half = 0;
	v->log_head = 0;
	v->commit.headers = 0;
	v->unclosed = true;
	return commit_header(v, COMMIT_BEGIN_HEADER);
}

/* From here on no entry would be replayed: a change that comes after a failure begins the file anew. */
static bool commit_finish(struct vhdx *v)
{
	atomic_store_explicit(&v->begun, false, memory_order_release);
	memset(v->header.log_id, 0, sizeof(v->header.log_id));
	v->commit.headers = 0;
	return commit_header(v, COMMIT_END_HEADER);
}

/* Copies what is dirty, then makes the data durable that it speaks of. The table's pages go first: see docs/disks.md.
 */
static bool commit_take(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;

	pthread_mutex_lock(&v->lock);
	c->flushes = v->flushes;
	v->flushes = NULL;
	c->count = c->logged = 0;
	for (unsigned table = 1; table <= 1; table--) {
		for (uint32_t i = 0; i < v->frames_used && v->dirty > 0; i++) {
			struct vhdx_frame *f = &v->frame[i];
			if (!f->dirty || (f->page < v->table_pages) != table)
				continue;
			memcpy(vhdx_frame_shadow(v, f), vhdx_frame_bytes(v, f), VHDX_PAGE);
			f->dirty = false;
			f->taken = true;
			v->dirty--;
			c->pages[c->count++] = i;
		}
	}
	c->flushed = v->file_end;
	bool nothing = c->count == 0 && !c->flushes && !c->closing && !v->crowded;
	pthread_mutex_unlock(&v->lock);
	return nothing ? commit_end(v, 0) : commit_sync(c, COMMIT_DATA_SYNC);
}

static bool commit_start(struct vhdx *v)
{
	if (atomic_load(&v->begun))
		return commit_take(v);
	/* Nothing has changed since the headers that close it failed, or those that begin it. */
	return v->commit.closing ? commit_finish(v) : commit_begin(v);
}

static uint64_t half_bytes(const struct vhdx *v)
{
	return v->header.log_bytes / 2;
}

static bool commit_entry(struct vhdx *v, bool fresh)
{
	struct vhdx_commit *c = &v->commit;
	uint64_t half = (fresh ? !v->log_half : v->log_half) * half_bytes(v), head = half + (fresh ? 0 : v->log_head);

	c->fresh = fresh;
	c->batch = MIN(c->count - c->logged, VHDX_BATCH_MAX);
	vhdx_entry_begin(v, v->entry, c->batch, (uint32_t)half, align_down(c->flushed, VHDX_UNIT),
			 align_up(c->flushed, VHDX_UNIT));
	for (unsigned i = 0; i < c->batch; i++) {
		struct vhdx_frame *f = &v->frame[c->pages[c->logged + i]];
		vhdx_entry_page(v, v->entry, i, f->at, vhdx_frame_shadow(v, f));
	}
	vhdx_entry_end(v->entry, c->batch);
	return commit_write(c, COMMIT_LOG, v->entry, (1 + c->batch) * (size_t)VHDX_LOG_SECTOR, v->header.log_at + head);
}

/* Takes the next page that is in the log to its place; after the last, makes that durable. */
static bool commit_place(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;

	for (; c->place < v->frames_used; c->place++) {
		struct vhdx_frame *f = &v->frame[c->place];
		if (!f->logged)
			continue;
		c->place++;
		return commit_write(c, COMMIT_PLACE, vhdx_frame_shadow(v, f), VHDX_PAGE, f->at);
	}
	return commit_sync(c, COMMIT_PLACE_SYNC);
}

/* What comes next, when the data is durable. */
static bool commit_batch(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;
	uint64_t bytes = (1 + MIN(c->count - c->logged, VHDX_BATCH_MAX)) * (uint64_t)VHDX_LOG_SECTOR;

	c->place = 0;
	if (c->logged == c->count)
		return c->closing || v->crowded ? commit_place(v) : commit_end(v, 0);
	return v->log_head + bytes > half_bytes(v) ? commit_place(v) : commit_entry(v, false);
}

static void commit_logged(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;

	v->log_half ^= c->fresh;
	v->log_head = (c->fresh ? 0 : v->log_head) + (1 + c->batch) * (uint64_t)VHDX_LOG_SECTOR;
	v->log_sequence++;
	pthread_mutex_lock(&v->lock);
	for (unsigned i = 0; i < c->batch; i++) {
		struct vhdx_frame *f = &v->frame[c->pages[c->logged + i]];
		f->taken = false;
		f->logged = true;
	}
	pthread_mutex_unlock(&v->lock);
	c->logged += c->batch;
}

/* Everything of the log is in its place. The log itself stays as it is until another sequence begins. */
static bool commit_placed(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;

	pthread_mutex_lock(&v->lock);
	for (uint32_t i = 0; i < v->frames_used; i++)
		v->frame[i].logged = false;
	v->crowded = false;
	/* The next entry begins a sequence, in the other half. */
	v->log_head = half_bytes(v);
	pthread_mutex_unlock(&v->lock);
	if (c->logged < c->count)
		return commit_entry(v, true);
	return c->closing ? commit_finish(v) : commit_end(v, 0);
}

static bool commit_header_done(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;
	bool begin = c->step == COMMIT_BEGIN_SYNC;

	v->current ^= 1;
	if (++c->headers < 2)
		return commit_header(v, begin ? COMMIT_BEGIN_HEADER : COMMIT_END_HEADER);
	if (!begin) {
		v->unclosed = false;
		return commit_end(v, 0);
	}
	memcpy(v->image->data_id, v->header.data_id, sizeof(v->image->data_id));
	atomic_store_explicit(&v->begun, true, memory_order_release);
	return commit_take(v);
}

static bool commit_next(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;

	switch (c->step) {
	case COMMIT_START:
		return commit_start(v);
	case COMMIT_BEGIN_HEADER:
		return commit_sync(c, COMMIT_BEGIN_SYNC);
	case COMMIT_END_HEADER:
		return commit_sync(c, COMMIT_END_SYNC);
	case COMMIT_BEGIN_SYNC:
	case COMMIT_END_SYNC:
		return commit_header_done(v);
	case COMMIT_DATA_SYNC:
		return commit_batch(v);
	case COMMIT_PLACE:
		return commit_place(v);
	case COMMIT_PLACE_SYNC:
		return commit_placed(v);
	case COMMIT_LOG:
		return commit_sync(c, COMMIT_LOG_SYNC);
	default:
		commit_logged(v);
		return commit_batch(v);
	}
}

static bool commit_step(struct disk_task *task, int res)
{
	struct vhdx *v = vhdx_of_commit(task);
	struct vhdx_commit *c = &v->commit;

	if (c->step != COMMIT_START) {
		if ((res == -EAGAIN || res == -EINTR) && c->retries++ < RETRIES_MAX)
			return commit_issue(c);
		if (res < 0 || (c->len > 0 && res == 0))
			return commit_end(v, res < 0 ? res : -ENOSPC);
		c->buf += c->len > 0 ? res : 0;
		c->at += (uint64_t)res;
		c->len -= MIN((size_t)res, c->len);
		if (c->len > 0)
			return commit_issue(c);
	}
	c->retries = 0;
	return commit_next(v);
}

struct error *vhdx_settle(struct vhdx *v)
{
	struct vhdx_commit *c = &v->commit;
	struct disk_queue queue = {
		.disk = v->image->disk, .io = v->image->disk->io, .files = (unsigned[]){(unsigned)v->image->file.fd}};

	if (!v->unclosed)
		return NULL;
	c->result = 0;
	if (!vhdx_commit_wanted(v, &queue))
		return error_new(EBUSY, "%s: requests are under way", v->image->name);
	c->closing = true;
	task_run(&c->task, 0);
	/* disk->io does everything before it returns. */
	if (c->running)
		abort();
	return c->result < 0 ? error_new(-c->result, "%s: make its block map durable", v->image->name) : NULL;
}
