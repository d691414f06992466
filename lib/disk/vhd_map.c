/*
 * VHD, requests: where a range is, new blocks, bitmaps, commits; see vhd.h. Touches the image's file through the
 * request's disk_io, and the state in struct vhd, which all queues share.
 *
 * A block whose bitmap is known to be all ones needs no look at it: there requests go straight to the file. Other
 * blocks have their bitmap in a frame. What a request must wait for (a frame that is in use, another's growth of the
 * file, a commit) is short, so all that wait do so in one list and look again when anything has ended.
 */
#include "disk/vhd.h"

#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static const uint8_t all_ones[VHD_BLOCK_MAX / VHD_SECTOR / 8] = {[0 ... VHD_BLOCK_MAX / VHD_SECTOR / 8 - 1] = 0xff};

static struct image *image_of(const struct disk_request *r)
{
	return r->queue->disk->image[r->level];
}

static struct vhd *vhd_of(const struct disk_request *r)
{
	return image_of(r)->state;
}

/* --- bits --- */

static bool get_bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

static void set_bit(uint64_t *bits, uint64_t i, bool value)
{
	uint64_t mask = 1ull << (i % 64);

	bits[i / 64] = value ? bits[i / 64] | mask : bits[i / 64] & ~mask;
}

static bool is_full(const struct vhd *v, uint32_t block)
{
	return atomic_load_explicit(&v->full[block / 64], memory_order_acquire) >> (block % 64) & 1;
}

static void set_full(struct vhd *v, uint32_t block)
{
	atomic_fetch_or_explicit(&v->full[block / 64], 1ull << (block % 64), memory_order_release);
}

/* --- frames --- */

static uint32_t frame_index(const struct vhd *v, uint32_t block)
{
	return block & (v->frame_count - 1);
}

static bool frame_holds(const struct vhd_frame *frame, uint32_t block)
{
	uint64_t tag = atomic_load_explicit(&frame->tag, memory_order_acquire);

	return tag != VHD_FRAME_EMPTY && (uint32_t)tag == block;
}

/* The lock. What @bits hold becomes visible with it. */
static void frame_tag(struct vhd *v, struct vhd_frame *frame, uint32_t block)
{
	v->generation = (v->generation + 1) & 0x7fffffff;
	atomic_store_explicit(&frame->tag, v->generation << 32 | block, memory_order_release);
}

static _Atomic uint8_t *frame_bits(const struct vhd *v, uint32_t block)
{
	return v->bits + (size_t)frame_index(v, block) * v->bitmap_bytes;
}

static bool present(const _Atomic uint8_t *bits, uint32_t sector)
{
	return atomic_load_explicit(&bits[sector / 8], memory_order_relaxed) & 0x80u >> (sector % 8);
}

/* How many sectors from @sector on, at most @max, have the bit @value. */
static uint32_t run(const _Atomic uint8_t *bits, uint32_t sector, uint32_t max, bool value)
{
	const uint8_t same = value ? 0xff : 0;
	uint32_t n = 0;

	while (n < max) {
		uint32_t at = sector + n;
		if (at % 8 == 0 && atomic_load_explicit(&bits[at / 8], memory_order_relaxed) == same)
			n += 8;
		else if (present(bits, at) == value)
			n++;
		else
			break;
	}
	return MIN(n, max);
}

static bool all_set(const struct vhd *v, uint32_t block)
{
	uint32_t sectors = v->head.block_bytes / VHD_SECTOR;

	return run(frame_bits(v, block), 0, sectors, true) == sectors;
}

/* --- map --- */

static enum extent_kind absent_kind(const struct vhd *v, enum disk_request_type type)
{
	bool child = v->foot.type == VHD_DIFFERENCING;

	switch (type) {
	case DISK_READ:
		return child ? EXTENT_PARENT : EXTENT_ZERO;
	case DISK_WRITE:
		return EXTENT_SLOW;
	case DISK_WRITE_ZEROES:
		return child ? EXTENT_SLOW : EXTENT_ZERO;
	default:
		return EXTENT_ZERO; /* nothing to discard */
	}
}

void vhd_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e)
{
	struct vhd *v = image->state;

	e->kind = EXTENT_FILE;
	e->offset = offset;
	if (!vhd_has_blocks(v))
		return;
	uint32_t block = (uint32_t)(offset >> v->shift), within = (uint32_t)offset & (v->head.block_bytes - 1);
	e->len = MIN(e->len, (uint64_t)v->head.block_bytes - within);
	uint32_t sector = atomic_load_explicit(&v->table[block], memory_order_acquire);
	if (sector == VHD_UNUSED) {
		e->kind = absent_kind(v, type);
		return;
	}
	e->offset = (uint64_t)sector * VHD_SECTOR + v->bitmap_bytes + within;
	if (is_full(v, block))
		return;

	struct vhd_frame *frame = &v->frames[frame_index(v, block)];
	uint64_t tag = atomic_load_explicit(&frame->tag, memory_order_acquire);
	e->kind = EXTENT_SLOW;
	if (tag == VHD_FRAME_EMPTY || (uint32_t)tag != block)
		return;
	const _Atomic uint8_t *bits = frame_bits(v, block);
	bool here = present(bits, within / VHD_SECTOR);
	uint32_t sectors = run(bits, within / VHD_SECTOR, (uint32_t)(e->len / VHD_SECTOR), here);
	atomic_thread_fence(memory_order_acquire);
	if (sectors == 0 || atomic_load_explicit(&frame->tag, memory_order_relaxed) != tag)
		return;
	e->len = (uint64_t)sectors * VHD_SECTOR;
	e->kind = here ? EXTENT_FILE : absent_kind(v, type);
}

/* --- waiting --- */

/* The lock, which it drops. As a step returns. */
static bool wait(struct vhd *v, struct disk_request *r)
{
	task_park(&r->task);
	r->next = v->waiting;
	v->waiting = r;
	pthread_mutex_unlock(&v->lock);
	return false;
}

/* Drops the lock, and has everybody look again. */
static void unlock_and_wake(struct vhd *v)
{
	struct disk_request *list = v->waiting, *r;

	v->waiting = NULL;
	pthread_mutex_unlock(&v->lock);
	while ((r = list)) {
		list = r->next;
		request_resume(r);
	}
}

/* --- commits --- */

static bool commit_step(struct disk_task *task, int res);

/* The lock. */
static void add_change(struct vhd *v, uint32_t block)
{
	struct vhd_frame *frame = &v->frames[frame_index(v, block)];

	if (get_bit(v->changed, block))
		return;
	set_bit(v->changed, block, true);
	v->changes[v->change_count++] = block;
	if (!is_full(v, block) && frame_holds(frame, block))
		frame->dirty = true;
}

enum stage { COMMIT_DATA, COMMIT_BITMAPS, COMMIT_TABLE, COMMIT_END };

/* The lock, which it drops: takes what has changed until now. As a step returns. */
static bool commit(struct vhd *v, struct disk_request *r)
{
	v->committing = true;
	v->taken = v->change_count;
	v->next_change = 0;
	for (uint32_t i = 0; i < v->taken; i++) {
		uint32_t block = v->changes[i];
		set_bit(v->changed, block, false);
		/* Bits that are set from now on are of data that the fdatasync below need not cover. */
		const _Atomic uint8_t *bits = frame_bits(v, block);
		uint8_t *to = v->captured + (size_t)frame_index(v, block) * v->bitmap_bytes;
		for (uint32_t b = 0; b < v->bitmap_bytes && !is_full(v, block); b++)
			to[b] = atomic_load_explicit(&bits[b], memory_order_relaxed);
	}
	pthread_mutex_unlock(&v->lock);
	r->stage = COMMIT_DATA;
	r->task.step = commit_step;
	r->queue->io->fdatasync(r->queue->io, &r->task.op, r->queue->files[0]);
	return true;
}

static void write_metadata(struct disk_request *r, const void *data, uint32_t len, uint64_t offset)
{
	struct iovec v = {(void *)(uintptr_t)data, len};

	r->piece = len;
	r->queue->io->writev(r->queue->io, &r->task.op, r->queue->files[0], &v, 1, offset);
}

/*
 * The bitmap of the next change. A full block's may never have been written: it is all ones.
 */
static void write_bitmap(struct vhd *v, struct disk_request *r)
{
	uint32_t block = v->changes[v->next_change];
	uint64_t at = (uint64_t)atomic_load_explicit(&v->table[block], memory_order_relaxed) * VHD_SECTOR;
	const uint8_t *bits = v->captured + (size_t)frame_index(v, block) * v->bitmap_bytes;

	if (is_full(v, block))
		write_metadata(r, all_ones, v->bitmap_bytes, at);
	else
		write_metadata(r, bits, v->bitmap_bytes, at);
}

/* Puts what was taken into the table as it is to be on the medium. */
static void prepare_table(struct vhd *v)
{
	for (uint32_t i = 0; i < v->taken; i++) {
		uint32_t block = v->changes[i];
		v->stored[block] = htobe32(atomic_load_explicit(&v->table[block], memory_order_relaxed));
		set_bit(v->stored_dirty, block * sizeof(uint32_t) / VHD_SECTOR, true);
	}
}

/* The sector of the table of the next change that is not written yet. False when there is none. */
static bool write_table(struct vhd *v, struct disk_request *r)
{
	for (; v->next_change < v->taken; v->next_change++) {
		uint64_t sector = v->changes[v->next_change] * sizeof(uint32_t) / VHD_SECTOR;
		if (get_bit(v->stored_dirty, sector)) {
			set_bit(v->stored_dirty, sector, false);
			write_metadata(r, (uint8_t *)v->stored + sector * VHD_SECTOR, VHD_SECTOR,
				       v->head.table_offset + sector * VHD_SECTOR);
			return true;
		}
	}
	return false;
}

/* The lock: what was taken is on the medium. */
static void committed(struct vhd *v)
{
	for (uint32_t i = 0; i < v->taken; i++) {
		uint32_t block = v->changes[i];
		struct vhd_frame *frame = &v->frames[frame_index(v, block)];
		if (is_full(v, block) || !frame_holds(frame, block) || get_bit(v->changed, block))
			continue;
		frame->dirty = false;
		if (all_set(v, block) && frame->writers == 0) {
			set_full(v, block);
			atomic_store_explicit(&frame->tag, VHD_FRAME_EMPTY, memory_order_release);
		}
	}
	v->change_count -= v->taken;
	memmove(v->changes, v->changes + v->taken, v->change_count * sizeof(*v->changes));
}

/* The lock: it all has to be written once more. What changed again meanwhile is in the list twice, so make it once. */
static void not_committed(struct vhd *v)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < v->taken; i++)
		if (!get_bit(v->changed, v->changes[i]))
			v->changes[count++] = v->changes[i];
	for (uint32_t i = 0; i < count; i++)
		set_bit(v->changed, v->changes[i], true);
	memmove(v->changes + count, v->changes + v->taken, (v->change_count - v->taken) * sizeof(*v->changes));
	v->change_count -= v->taken - count;
}

static bool commit_end(struct disk_request *r, int res)
{
	struct vhd *v = vhd_of(r);

	pthread_mutex_lock(&v->lock);
	if (res < 0)
		not_committed(v);
	else
		committed(v);
	v->taken = 0;
	v->committing = false;
	unlock_and_wake(v);
	if (res < 0 || r->type == DISK_FLUSH)
		return request_end(r, res);
	return request_again(r);
}

/* Starts what comes next in a commit; true, or what commit_end() returns. */
static bool commit_go_on(struct vhd *v, struct disk_request *r)
{
	if (r->stage == COMMIT_BITMAPS) {
		if (v->next_change < v->taken) {
			write_bitmap(v, r);
			return true;
		}
		r->stage = COMMIT_TABLE;
		v->next_change = 0;
		prepare_table(v);
	}
	if (r->stage == COMMIT_TABLE) {
		if (write_table(v, r))
			return true;
		r->stage = COMMIT_END;
		r->queue->io->fdatasync(r->queue->io, &r->task.op, r->queue->files[0]);
		return true;
	}
	return commit_end(r, 0);
}

/* After an EAGAIN or an EINTR: the same operation. */
static bool commit_retry(struct vhd *v, struct disk_request *r)
{
	if (r->stage == COMMIT_DATA || r->stage == COMMIT_END)
		r->queue->io->fdatasync(r->queue->io, &r->task.op, r->queue->files[0]);
	else if (r->stage == COMMIT_BITMAPS)
		write_bitmap(v, r);
	else {
		set_bit(v->stored_dirty, v->changes[v->next_change] * sizeof(uint32_t) / VHD_SECTOR, true);
		write_table(v, r);
	}
	return true;
}

static bool commit_step(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhd *v = vhd_of(r);

	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX)
		return commit_retry(v, r);
	if (res < 0)
		return commit_end(r, res);
	r->retries = 0;
	switch (r->stage) {
	case COMMIT_DATA:
		r->stage = COMMIT_BITMAPS;
		break;
	case COMMIT_BITMAPS:
	case COMMIT_TABLE:
		/* Less than a sector or two: there was no room. */
		if ((uint64_t)res < r->piece)
			return commit_end(r, -ENOSPC);
		v->next_change++;
		break;
	default:
		return commit_end(r, 0);
	}
	return commit_go_on(v, r);
}

static bool flush_step(struct disk_task *task, int res);

static bool synced(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);

	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX)
		return flush_step(task, 0);
	return request_end(r, MIN(res, 0));
}

static bool flush_step(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhd *v = vhd_of(r);

	(void)res;
	task->step = flush_step; /* after a wait */
	if (vhd_has_blocks(v)) {
		pthread_mutex_lock(&v->lock);
		/* The commit under way may hold what this flush is to make durable. */
		if (v->committing)
			return wait(v, r);
		if (v->change_count > 0)
			return commit(v, r);
		pthread_mutex_unlock(&v->lock);
	}
	task->step = synced;
	r->queue->io->fdatasync(r->queue->io, &task->op, r->queue->files[0]);
	return true;
}

bool vhd_flush(struct image *image, struct disk_request *r)
{
	r->level = (uint8_t)image->level;
	return flush_step(&r->task, 0);
}

/* --- growth --- */

static bool prepare(struct disk_task *task, int res);

static bool grown(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhd *v = vhd_of(r);
	bool again = (res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX;

	pthread_mutex_lock(&v->lock);
	if (res == (int)VHD_FOOTER_BYTES)
		v->footer_at = r->at;
	v->growing = false;
	unlock_and_wake(v);
	if (res < (int)VHD_FOOTER_BYTES && !again)
		return request_end(r, res < 0 ? res : -ENOSPC);
	if (!again)
		r->retries = 0;
	return prepare(task, 0);
}

/*
 * The lock: where a new block begins, or 0 when the file must grow first; then @r->at is where its footer goes.
 */
static uint64_t new_block(struct vhd *v, struct disk_request *r)
{
	uint64_t at = vhd_place(v, v->end), room = vhd_block_room(v);

	/* The block must not begin in the old footer, nor have it among its data. */
	if (at + room > v->footer_at && at < v->footer_at + VHD_FOOTER_BYTES)
		at = vhd_place(v, v->footer_at + VHD_FOOTER_BYTES);
	r->at = at + room;
	return at + room <= v->footer_at ? at : 0;
}

/* The lock, which it drops. As a step returns. */
static bool grow(struct vhd *v, struct disk_request *r)
{
	struct iovec footer = {v->footer, VHD_FOOTER_BYTES};

	/* Sector numbers have 32 bits, and the last one means something else. */
	if (r->at / VHD_SECTOR >= VHD_UNUSED) {
		pthread_mutex_unlock(&v->lock);
		return request_end(r, -ENOSPC);
	}
	if (v->growing)
		return wait(v, r);
	v->growing = true;
	v->end = r->at - vhd_block_room(v);
	pthread_mutex_unlock(&v->lock);
	r->task.step = grown;
	r->queue->io->writev(r->queue->io, &r->task.op, r->queue->files[0], &footer, 1, r->at);
	return true;
}

/* --- the slow path --- */

static bool loaded(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhd *v = vhd_of(r);
	uint32_t block = (uint32_t)((r->offset + r->finished) >> v->shift);
	struct vhd_frame *frame = &v->frames[frame_index(v, block)];
	bool good = res == (int)v->bitmap_bytes;
	bool again = good || res == -EAGAIN || res == -EINTR;

	pthread_mutex_lock(&v->lock);
	frame->loading = false;
	if (good && all_set(v, block))
		set_full(v, block);
	else if (good)
		frame_tag(v, frame, block);
	unlock_and_wake(v);
	if (good)
		r->retries = 0;
	if (again && r->retries++ < RETRIES_MAX)
		return request_again(r);
	return request_end(r, res < 0 ? res : -EIO);
}

/* The lock, which it drops. As a step returns. */
static bool load(struct vhd *v, struct disk_request *r, uint32_t block, struct vhd_frame *frame)
{
	uint64_t at = (uint64_t)atomic_load_explicit(&v->table[block], memory_order_relaxed) * VHD_SECTOR;
	struct iovec bits = {(void *)(uintptr_t)frame_bits(v, block), v->bitmap_bytes};

	frame->loading = true;
	atomic_store_explicit(&frame->tag, VHD_FRAME_EMPTY, memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
	pthread_mutex_unlock(&v->lock);
	r->task.step = loaded;
	r->queue->io->readv(r->queue->io, &r->task.op, r->queue->files[r->level], &bits, 1, at);
	return true;
}

/* The lock: sets the bits of what was written. */
static void set_present(struct vhd *v, uint32_t block, uint64_t from, uint64_t to)
{
	_Atomic uint8_t *bits = frame_bits(v, block);
	uint32_t mask = v->head.block_bytes - 1;
	uint32_t first = ((uint32_t)from & mask) / VHD_SECTOR, last = ((uint32_t)(to - 1) & mask) / VHD_SECTOR;

	for (uint32_t i = first; i <= last; i++)
		atomic_fetch_or_explicit(&bits[i / 8], (uint8_t)(0x80u >> (i % 8)), memory_order_relaxed);
}

/* Data was written into a block with a bitmap. */
static bool written(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhd *v = vhd_of(r);
	uint32_t block = (uint32_t)((r->offset + r->block) >> v->shift);
	enum transferred what = request_transferred(r, &res);

	if (what == TRANSFERRING)
		return true;
	pthread_mutex_lock(&v->lock);
	if (what == TRANSFERRED)
		set_present(v, block, r->offset + r->block, r->offset + r->finished);
	v->frames[frame_index(v, block)].writers--;
	v->reserved--;
	add_change(v, block);
	unlock_and_wake(v);
	return what == TRANSFERRED ? request_again(r) : request_end(r, res);
}

/* The lock, which it drops: writes what the request has for this block, and will set its bits then. */
static bool write_here(struct vhd *v, struct disk_request *r, uint32_t block)
{
	uint64_t offset = r->offset + r->finished, within = offset & (v->head.block_bytes - 1);
	uint64_t at = (uint64_t)atomic_load_explicit(&v->table[block], memory_order_relaxed) * VHD_SECTOR;

	v->frames[frame_index(v, block)].writers++;
	v->reserved++;
	pthread_mutex_unlock(&v->lock);
	r->block = r->finished;
	r->task.step = written;
	request_transfer(r, 0, at + v->bitmap_bytes + within, MIN(r->len - r->finished, v->head.block_bytes - within));
	return true;
}

/* The lock: the block begins to exist, for readers too. */
static void begin_block(struct vhd *v, uint32_t block, uint64_t at)
{
	struct vhd_frame *frame = &v->frames[frame_index(v, block)];

	v->end = at + vhd_block_room(v);
	if (v->foot.type == VHD_DIFFERENCING) {
		atomic_store_explicit(&frame->tag, VHD_FRAME_EMPTY, memory_order_release);
		atomic_thread_fence(memory_order_seq_cst);
		memset((void *)(uintptr_t)frame_bits(v, block), 0, v->bitmap_bytes);
		frame_tag(v, frame, block);
	} else {
		set_full(v, block);
	}
	add_change(v, block);
	atomic_store_explicit(&v->table[block], (uint32_t)(at / VHD_SECTOR), memory_order_release);
}

/* Begins anew after every wait: looks what is missing, and does it. */
static bool prepare(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct vhd *v = vhd_of(r);
	uint32_t block = (uint32_t)((r->offset + r->finished) >> v->shift);
	struct vhd_frame *frame = &v->frames[frame_index(v, block)];
	bool writes = r->type == DISK_WRITE || r->type == DISK_WRITE_ZEROES;

	(void)res;
	task->step = prepare; /* after a wait; what led here may have been another */
	pthread_mutex_lock(&v->lock);
	bool exists = atomic_load_explicit(&v->table[block], memory_order_relaxed) != VHD_UNUSED;
	if (exists ? is_full(v, block) : !writes) {
		pthread_mutex_unlock(&v->lock);
		return request_again(r);
	}
	bool held = exists && frame_holds(frame, block);
	bool busy = frame->loading || frame->writers > 0;
	/* Two changes at most: the block's beginning, and its bits. */
	bool crowded = writes && v->change_count + v->reserved + 2 > VHD_CHANGES_MAX;
	bool needs_frame = !held && (exists || v->foot.type == VHD_DIFFERENCING);
	if (crowded || (needs_frame && frame->dirty && !busy))
		return v->committing || v->change_count == 0 ? wait(v, r) : commit(v, r);
	if (needs_frame && busy)
		return wait(v, r);
	if (!exists) {
		uint64_t at = new_block(v, r);
		if (at == 0)
			return grow(v, r);
		begin_block(v, block, at);
		if (v->foot.type == VHD_DIFFERENCING)
			return write_here(v, r, block);
		pthread_mutex_unlock(&v->lock);
		return request_again(r);
	}
	if (!held)
		return load(v, r, block, frame);
	/* What was missing may have come while this waited. */
	if (writes)
		return write_here(v, r, block);
	pthread_mutex_unlock(&v->lock);
	return request_again(r);
}

bool vhd_slow(struct image *image, struct disk_request *r, const struct extent *e)
{
	(void)e;
	r->level = (uint8_t)image->level;
	return prepare(&r->task, 0);
}
