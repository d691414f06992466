/*
 * Requests that need more of a VHDX file than data in a block that is there. docs/disks.md says why a power cut at any
 * point of it is safe. Touches the file through the disk_io of the queue whose thread it is on.
 *
 *     vhdx_slow() -> decide() -> load()                                     a page of the map from the file
 *                           \--> allocate() -> extend -> data -> publish()  a new block
 *                           \--> data -> mark()                             more of a block that is there in parts
 *                           \--> wait()                                     for another's load, block, or commit
 *
 * A page of the map is changed in memory when the data it speaks of is written, and is dirty from then on; commits
 * (vhdx_commit.c) make it durable.
 *
 * The lock is held for moments, never while an operation is under way; nothing here runs for requests of blocks that
 * are there.
 */
#include "disk/vhdx.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

/* disk_request.then: what comes after a load or a wait. */
enum then { THEN_AGAIN, THEN_PUBLISH, THEN_MARK };

/* disk_request.place of a new block is in whole units, which leaves room for: */
#define PLACE_BITMAP  1u /* a new sector bitmap comes before the block */
#define PLACE_PARTIAL 2u /* the parent has the rest of the block */

static const uint8_t zeroes[4096] __attribute__((aligned(4096)));

static bool slow_step(struct disk_task *task, int res);
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

void vhdx_resume_all(struct disk_request *list, int res)
{
	while (list) {
		struct disk_request *r = list;
		list = r->next;
		if (res < 0 && r->stage == STAGE_WAIT_COMMIT) {
			r->stage = STAGE_FAILED;
			r->at = (uint64_t)-res;
		}
		request_resume(r);
	}
}

/* Under the lock, which it releases: @r waits for the next load or the end of a commit. */
static bool wait(struct vhdx *v, struct disk_request *r, bool commit)
{
	r->stage = commit ? STAGE_WAIT_COMMIT : STAGE_WAIT;
	task_park(&r->task);
	bool begin = commit && vhdx_commit_wanted(v, r->queue);
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
	vhdx_resume_all(list, 0);
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
	vhdx_resume_all(list, 0);
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
	vhdx_resume_all(list, 0);
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
