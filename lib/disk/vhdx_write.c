/*
 * Requests that need more of a VHDX file than data in a block that is there, and the commits that make what they
 * changed durable. docs/disks.md says why a power cut at any point of it is safe. Touches the file through the disk_io
 * of the queue whose thread it is on.
 *
 *     vhdx_slow() -> decide() -> load()                                     a page of the map from the file
 *                           \--> allocate() -> extend -> data -> publish()  a new block
 *                           \--> data -> mark()                             more of a block that is there in parts
 *                           \--> wait()                                     for another's load, block, or commit
 *     vhdx_flush() -> commit_*()
 *
 * A page of the map is changed in memory when the data it speaks of is written, and is dirty from then on. A commit,
 * one at a time, copies the dirty pages, makes the data durable, then puts the copies in the log and makes that
 * durable: then the flushes it began with are done. What is logged goes to its place when half of the log is full, or
 * at the end.
 *
 * The lock is held for moments, never while an operation is under way; nothing here runs for requests of blocks that
 * are there.
 */
#include "disk/vhdx.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

/* disk_request.stage: what the operation under way, or the wait, was for; .then: what comes after a load or a wait. */
enum stage { STAGE_WAIT, STAGE_FAILED, STAGE_LOAD, STAGE_EXTEND, STAGE_DATA, STAGE_UNDO };
enum then { THEN_AGAIN, THEN_PUBLISH, THEN_MARK };

/* disk_request.place of a new block is in whole units, which leaves room for: */
#define PLACE_BITMAP  1u /* a new sector bitmap comes before the block */
#define PLACE_PARTIAL 2u /* the parent has the rest of the block */

static const uint8_t zeroes[4096] __attribute__((aligned(4096)));

static bool slow_step(struct disk_task *task, int res);
static bool commit_step(struct disk_task *task, int res);
static bool publish(struct vhdx *v, struct disk_request *r);
static bool mark(struct vhdx *v, struct disk_request *r);

static struct vhdx *vhdx_of(const struct disk_request *r)
{
	return r->queue->disk->image[r->level]->state;
}

static uint64_t place_begin(const struct disk_request *r)
{
	return align_down(r->place, VHDX_UNIT);
}

static uint64_t place_block(const struct disk_request *r)
{
	return place_begin(r) + (r->place & PLACE_BITMAP ? MIB : 0);
}

static uint64_t place_end(const struct disk_request *r)
{
	return place_block(r) + vhdx_of(r)->image->block;
}

/* --- waiting --- */

/* Resumes all of a list, each on its own thread. @res < 0: to fail. */
static void resume_all(struct disk_request *list, int res)
{
	while (list) {
		struct disk_request *r = list;
		list = r->next;
		if (res < 0) {
			r->stage = STAGE_FAILED;
			r->at = (uint64_t)-res;
		}
		request_resume(r);
	}
}

/* Under the lock: has the caller begin a commit, if it gets true, once it has released the lock. */
static bool commit_wanted(struct vhdx *v, const struct disk_queue *queue)
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

/* Under the lock, which it releases: @r waits for the next load or the end of a commit. */
static bool wait(struct vhdx *v, struct disk_request *r, bool commit)
{
	r->stage = STAGE_WAIT;
	task_park(&r->task);
	bool begin = commit && commit_wanted(v, r->queue);
	if (begin) {
		v->commit.beginner = r;
	} else {
		r->next = v->waiting;
		v->waiting = r;
	}
	pthread_mutex_unlock(&v->lock);
	if (begin)
		task_run(&v->commit.task, 0);
	return false;
}

static bool proceed(struct disk_request *r)
{
	switch (r->then) {
	case THEN_PUBLISH:
		return publish(vhdx_of(r), r);
	case THEN_MARK:
		return mark(vhdx_of(r), r);
	default:
		return request_again(r);
	}
}

/* --- pages --- */

static void start_load(struct vhdx *v, struct disk_request *r)
{
	struct vhdx_frame *f = &v->frame[r->frame];
	struct iovec iov = {vhdx_frame_bytes(v, f), VHDX_PAGE};

	r->queue->io->readv(r->queue->io, &r->task.op, r->queue->files[r->level], &iov, 1, f->at);
}

/* Under the lock, which it releases. */
static void end_load(struct vhdx *v, struct vhdx_frame *f, bool good)
{
	vhdx_map_loaded(v, f, good);
	struct disk_request *list = v->waiting;
	v->waiting = NULL;
	pthread_mutex_unlock(&v->lock);
	resume_all(list, 0);
}

/* Under the lock, which it releases: has @page in memory, then does @then. */
static bool load(struct vhdx *v, struct disk_request *r, uint64_t page, enum then then)
{
	uint64_t entry;

	r->then = then;
	if (page >= v->table_pages) {
		uint64_t chunk = vhdx_chunk_entry(v, (page - v->table_pages) / VHDX_CHUNK_PAGES);
		if (!vhdx_map_entry(v, chunk, &entry))
			page = chunk / VHDX_PAGE_ENTRIES;
	}
	if (vhdx_map_frame(v, page)) {
		pthread_mutex_unlock(&v->lock);
		return proceed(r);
	}
	if (vhdx_map_loading(v, page))
		return wait(v, r, false);
	struct vhdx_frame *f = vhdx_map_claim(v, page);
	if (!f) {
		/* Without changes in memory only loads can have them all: these end. */
		v->crowded = atomic_load(&v->begun);
		return wait(v, r, v->crowded);
	}
	r->frame = (uint32_t)(f - v->frame);
	if (f->at == 0) {
		memset(vhdx_frame_bytes(v, f), 0, VHDX_PAGE);
		end_load(v, f, true);
		return proceed(r);
	}
	pthread_mutex_unlock(&v->lock);
	r->stage = STAGE_LOAD;
	r->retries = 0;
	start_load(v, r);
	return true;
}

/* --- the end of an allocation --- */

/* Under the lock: nobody needs to wait for @r's block any more. Returns who did. */
static struct disk_request *allocated(struct vhdx *v, struct disk_request *r)
{
	struct disk_request **p = &v->allocating, *list = r->waiters;

	while (*p != r)
		p = &(*p)->next_block;
	*p = r->next_block;
	r->waiters = NULL;
	return list;
}

/* The new block could not be written. What was is to be zeroes again, if the place is to be given to another. */
static bool undo(struct disk_request *r, int res)
{
	r->stage = STAGE_UNDO;
	r->at = (uint64_t)-res;
	r->queue->io->fallocate(r->queue->io, &r->task.op, r->queue->files[0],
				FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, place_begin(r),
				place_end(r) - place_begin(r));
	return true;
}

static bool undone(struct vhdx *v, struct disk_request *r, int res)
{
	pthread_mutex_lock(&v->lock);
	if (res == 0 && v->end == place_end(r))
		v->end = place_begin(r);
	struct disk_request *list = allocated(v, r);
	pthread_mutex_unlock(&v->lock);
	resume_all(list, 0);
	return request_end(r, -(int)r->at);
}

/* Under the lock: the bits of @r's block, of which [r->from, @to) is written. All pages are in memory. */
static void publish_bits(struct vhdx *v, const struct disk_request *r, uint64_t to)
{
	uint64_t chunk = r->block / v->ratio, sector = v->image->sector, begin = (r->block << v->shift) / sector;
	uint64_t end = begin + v->image->block / sector, entry = 0;

	if (vhdx_map_entry(v, vhdx_chunk_entry(v, chunk), &entry) && VHDX_STATE(entry) != VHDX_PRESENT) {
		vhdx_map_set(v, vhdx_chunk_entry(v, chunk), place_begin(r) | VHDX_PRESENT);
		vhdx_map_bitmap_made(v, chunk);
	}
	/* What an earlier block in this place of the disk left there must not be believed. */
	for (uint64_t s = begin; s < end;) {
		uint64_t piece = MIN(end, align_down(s, VHDX_PAGE_SECTORS) + VHDX_PAGE_SECTORS);
		vhdx_map_mark(v, s, piece, false);
		s = piece;
	}
	for (uint64_t s = r->from / sector; s < to / sector;) {
		uint64_t piece = MIN(to / sector, align_down(s, VHDX_PAGE_SECTORS) + VHDX_PAGE_SECTORS);
		vhdx_map_mark(v, s, piece, true);
		s = piece;
	}
}

/* The first page that publishing needs and that is not in memory; or UINT64_MAX. Under the lock. */
static uint64_t publish_needs(struct vhdx *v, const struct disk_request *r)
{
	uint64_t sector = (r->block << v->shift) / v->image->sector, end = sector + v->image->block / v->image->sector;
	uint64_t page = vhdx_block_entry(v, r->block) / VHDX_PAGE_ENTRIES;

	if (!vhdx_map_frame(v, page))
		return page;
	if (!(r->place & PLACE_PARTIAL))
		return UINT64_MAX;
	page = vhdx_chunk_entry(v, r->block / v->ratio) / VHDX_PAGE_ENTRIES;
	if (!vhdx_map_frame(v, page))
		return page;
	for (page = vhdx_bitmap_page(v, sector); page <= vhdx_bitmap_page(v, end - 1); page++)
		if (!vhdx_map_frame(v, page))
			return page;
	return UINT64_MAX;
}

/* The data of a new block is written: now it may be seen. */
static bool publish(struct vhdx *v, struct disk_request *r)
{
	pthread_mutex_lock(&v->lock);
	uint64_t missing = publish_needs(v, r);
	if (missing != UINT64_MAX)
		return load(v, r, missing, THEN_PUBLISH);
	if (r->place & PLACE_PARTIAL)
		publish_bits(v, r, r->offset + r->finished);
	vhdx_map_set(v, vhdx_block_entry(v, r->block),
		     place_block(r) | (r->place & PLACE_PARTIAL ? VHDX_PARTIAL : VHDX_PRESENT));
	v->file_end = MAX(v->file_end, place_end(r));
	struct disk_request *list = allocated(v, r);
	pthread_mutex_unlock(&v->lock);
	resume_all(list, 0);
	r->plain = false;
	return request_again(r);
}

/* More of a block that is there in parts is written. */
static bool mark(struct vhdx *v, struct disk_request *r)
{
	uint64_t sector = v->image->sector;

	pthread_mutex_lock(&v->lock);
	if (!vhdx_map_frame(v, vhdx_bitmap_page(v, r->from / sector)))
		return load(v, r, vhdx_bitmap_page(v, r->from / sector), THEN_MARK);
	vhdx_map_mark(v, r->from / sector, (r->offset + r->finished) / sector, true);
	pthread_mutex_unlock(&v->lock);
	r->plain = false;
	return request_again(r);
}

/* --- the beginning of an allocation --- */

static bool start_data(struct vhdx *v, struct disk_request *r)
{
	r->stage = STAGE_DATA;
	r->retries = 0;
	r->plain = r->type == DISK_WRITE_ZEROES;
	request_transfer(r, r->level, place_block(r) + (r->from & (v->image->block - 1)), r->piece);
	return true;
}

/* Makes the file as long as the block needs. */
static bool start_extend(struct disk_request *r)
{
	struct iovec iov = {(void *)(uintptr_t)zeroes, sizeof(zeroes)};

	r->stage = STAGE_EXTEND;
	r->queue->io->writev(r->queue->io, &r->task.op, r->queue->files[0], &iov, 1, place_end(r) - sizeof(zeroes));
	return true;
}

/* Under the lock, which it releases. */
static bool allocate(struct vhdx *v, struct disk_request *r, uint64_t block, bool partial)
{
	uint64_t entry = 0;

	if (partial && !vhdx_map_entry(v, vhdx_chunk_entry(v, block / v->ratio), &entry))
		return load(v, r, vhdx_chunk_entry(v, block / v->ratio) / VHDX_PAGE_ENTRIES, THEN_AGAIN);
	if (v->end + v->image->block + MIB > VHDX_FILE_MAX) {
		pthread_mutex_unlock(&v->lock);
		return request_end(r, -ENOSPC);
	}
	r->block = block;
	r->place = v->end | (partial ? PLACE_PARTIAL : 0) |
		   (partial && VHDX_STATE(entry) != VHDX_PRESENT ? PLACE_BITMAP : 0);
	v->end = place_end(r);
	bool longer = v->end > v->file_end;
	r->waiters = NULL;
	r->next_block = v->allocating;
	v->allocating = r;
	pthread_mutex_unlock(&v->lock);
	r->retries = 0;
	return longer ? start_extend(r) : start_data(v, r);
}

/* Under the lock, which it releases: a write to a block that is there in parts. */
static bool decide_partial(struct vhdx *v, struct disk_request *r, uint64_t entry)
{
	uint64_t page_bytes = (uint64_t)VHDX_PAGE_SECTORS * v->image->sector;

	r->piece = MIN(r->piece, page_bytes - r->from % page_bytes);
	uint64_t page = vhdx_bitmap_page(v, r->from / v->image->sector);
	if (!vhdx_map_frame(v, page))
		return load(v, r, page, THEN_AGAIN);
	bool no_bitmap = v->frame[atomic_load(&v->where[page]) - 1].at == 0;
	pthread_mutex_unlock(&v->lock);
	if (r->type == DISK_READ || r->type == DISK_DISCARD)
		return request_again(r);
	if (no_bitmap)
		return request_end(r, -EIO); /* the table says "in parts", and not which */
	r->place = VHDX_PLACE(entry);
	r->then = THEN_MARK;
	return start_data(v, r);
}

static bool waits_for_block(struct vhdx *v, struct disk_request *r, uint64_t block)
{
	for (struct disk_request *o = v->allocating; o; o = o->next_block) {
		if (o->block != block)
			continue;
		r->stage = STAGE_WAIT;
		r->then = THEN_AGAIN;
		task_park(&r->task);
		r->next = o->waiters;
		o->waiters = r;
		return true;
	}
	return false;
}

static bool decide(struct vhdx *v, struct disk_request *r)
{
	uint64_t block = r->from >> v->shift, entry;

	pthread_mutex_lock(&v->lock);
	r->then = THEN_AGAIN;
	if (r->type != DISK_READ && !atomic_load(&v->begun))
		return wait(v, r, true);
	if (!vhdx_map_entry(v, vhdx_block_entry(v, block), &entry))
		return load(v, r, vhdx_block_entry(v, block) / VHDX_PAGE_ENTRIES, THEN_AGAIN);
	unsigned state = VHDX_STATE(entry);
	if (state == VHDX_PARTIAL)
		return decide_partial(v, r, entry);
	if (state == VHDX_PRESENT || r->type == DISK_READ || r->type == DISK_DISCARD) {
		pthread_mutex_unlock(&v->lock);
		return request_again(r);
	}
	if (waits_for_block(v, r, block)) {
		pthread_mutex_unlock(&v->lock);
		return false;
	}
	bool parents = v->differencing && state == VHDX_NOT_PRESENT;
	bool whole = r->from == block << v->shift && r->piece == MIN(v->image->block, v->image->size - r->from);
	if (r->type == DISK_WRITE_ZEROES && (whole || !parents)) {
		if (parents)
			vhdx_map_set(v, vhdx_block_entry(v, block), VHDX_ZERO);
		pthread_mutex_unlock(&v->lock);
		r->finished += r->piece;
		return request_again(r);
	}
	return allocate(v, r, block, parents && !whole);
}

bool vhdx_slow(struct image *image, struct disk_request *r, const struct extent *e)
{
	struct vhdx *v = image->state;

	r->task.step = slow_step;
	r->level = (uint8_t)image->level;
	r->from = r->offset + r->finished;
	r->piece = MIN(e->len, image->block - (r->from & (image->block - 1)));
	r->block = UINT64_MAX;
	return decide(v, r);
}

/* --- what operations brought --- */

static bool data_moved(struct vhdx *v, struct disk_request *r, int res)
{
	bool fresh = r->block != UINT64_MAX;

	switch (request_transferred(r, &res)) {
	case TRANSFERRING:
		return true;
	case TRANSFERRED:
		return fresh ? publish(v, r) : mark(v, r);
	default:
		return fresh ? undo(r, res) : request_end(r, res);
	}
}

static bool extended(struct vhdx *v, struct disk_request *r, int res)
{
	if (res == sizeof(zeroes))
		return start_data(v, r);
	/* Where only a part was written it is as well written again. */
	if ((res >= 0 || res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX)
		return start_extend(r);
	return undo(r, res < 0 ? res : -ENOSPC);
}

static bool page_read(struct vhdx *v, struct disk_request *r, int res)
{
	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX) {
		start_load(v, r);
		return true;
	}
	pthread_mutex_lock(&v->lock);
	end_load(v, &v->frame[r->frame], res == (int)VHDX_PAGE);
	if (res == (int)VHDX_PAGE)
		return proceed(r);
	res = res < 0 ? res : -EIO;
	return r->then == THEN_PUBLISH ? undo(r, res) : request_end(r, res);
}

static bool slow_step(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhdx *v = vhdx_of(r);

	switch (r->stage) {
	case STAGE_LOAD:
		return page_read(v, r, res);
	case STAGE_EXTEND:
		return extended(v, r, res);
	case STAGE_DATA:
		return data_moved(v, r, res);
	case STAGE_UNDO:
		return undone(v, r, res);
	case STAGE_FAILED:
		return r->then == THEN_PUBLISH ? undo(r, -(int)r->at) : request_end(r, -(int)r->at);
	default:
		return proceed(r);
	}
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
	r->stage = STAGE_WAIT;
	if (!atomic_load_explicit(&v->changed, memory_order_acquire)) {
		r->queue->io->fdatasync(r->queue->io, &r->task.op, r->queue->files[0]);
		return true;
	}
	pthread_mutex_lock(&v->lock);
	task_park(&r->task);
	bool begin = commit_wanted(v, r->queue);
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
	resume_all(done, res);
	resume_all(later, res);
	resume_all(waiting, res);
	return again && commit_start(v);
}

/* Both headers are written, one after the other, each made durable: one is whole at any time [2.2.2.1]. */
static bool commit_header(struct vhdx *v, enum vhdx_commit_step step)
{
	v->current ^= 1;
	v->header.sequence++;
	vhdx_header_encode(&v->header, v->entry);
	return commit_write(&v->commit, step, v->entry, VHDX_HEADER_BYTES, VHDX_HEADER_AT(v->current));
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
	return commit_header(v, COMMIT_BEGIN_HEADER);
}

static bool commit_finish(struct vhdx *v)
{
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
	return atomic_load(&v->begun) ? commit_take(v) : commit_begin(v);
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

	if (++c->headers < 2)
		return commit_header(v, begin ? COMMIT_BEGIN_HEADER : COMMIT_END_HEADER);
	if (begin)
		memcpy(v->image->data_id, v->header.data_id, sizeof(v->image->data_id));
	atomic_store_explicit(&v->begun, begin, memory_order_release);
	return begin ? commit_take(v) : commit_end(v, 0);
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

	if (!atomic_load(&v->begun))
		return NULL;
	c->result = 0;
	if (!commit_wanted(v, &queue))
		return error_new(EBUSY, "%s: requests are under way", v->image->name);
	c->closing = true;
	task_run(&c->task, 0);
	/* disk->io does everything before it returns. */
	if (c->running)
		abort();
	return c->result < 0 ? error_new(-c->result, "%s: make its block map durable", v->image->name) : NULL;
}
