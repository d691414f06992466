/*
 * The block map of an active VHDX file in memory: pages of its block allocation table and of its sector bitmaps, as
 * many as there are frames for; see vhdx.h. Touches memory only, but for loading at the beginning.
 *
 * Looking up takes no lock: where[] names a frame, the frame's tag is read, the value, and the tag again; a frame that
 * was given to another page meanwhile has another tag. Values are changed under the lock, 64 bits at a time, in the
 * file's byte order. A page that is dirty, or logged and not yet in its place, keeps its frame.
 *
 * At activation the whole table is read once: each block must lie in the file, clear of all other things in it; so no
 * table, however made, can have two blocks, or a block and the table itself, written over one another.
 */
#include "disk/vhdx.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* 16 MiB of pages: the whole table of 64 TiB in blocks of 32 MiB, or of 2 TiB in blocks of 1 MiB. */
#define FRAMES_MAX 4096u
#define SCAN_BYTES (256 * KIB)

static void *map_zeroes(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void unmap(void *p, uint64_t bytes)
{
	if (p)
		munmap(p, bytes);
}

/* --- look-up --- */

static const uint64_t *frame_of(const struct vhdx *v, uint64_t page, uint64_t *tag, struct vhdx_frame **frame)
{
	uint32_t where = atomic_load_explicit(&v->where[page], memory_order_acquire);

	if (where == 0)
		return NULL;
	*frame = &v->frame[where - 1];
	*tag = atomic_load_explicit(&(*frame)->tag, memory_order_acquire);
	return VHDX_TAG_PAGE(*tag) == page ? vhdx_frame_words(v, *frame) : NULL;
}

static bool still(const struct vhdx_frame *frame, uint64_t tag)
{
	atomic_thread_fence(memory_order_acquire);
	return atomic_load_explicit(&frame->tag, memory_order_relaxed) == tag;
}

static bool word_of(struct vhdx *v, uint64_t page, unsigned word, uint64_t *value)
{
	struct vhdx_frame *frame;
	uint64_t tag;
	const uint64_t *words = frame_of(v, page, &tag, &frame);

	if (!words)
		return false;
	*value = le64toh(__atomic_load_n(&words[word], __ATOMIC_ACQUIRE));
	return still(frame, tag);
}

bool vhdx_map_entry(struct vhdx *v, uint64_t entry, uint64_t *value)
{
	return word_of(v, entry / VHDX_PAGE_ENTRIES, entry % VHDX_PAGE_ENTRIES, value);
}

/* How many sectors from @sector on, at most @most and in one page, are present, or not. False: not in memory. */
static bool run_of(struct vhdx *v, uint64_t sector, uint64_t most, bool *present, uint64_t *run)
{
	uint64_t page = vhdx_bitmap_page(v, sector), word = 0;
	unsigned bit = sector % VHDX_PAGE_SECTORS;

	most = MIN(most, VHDX_PAGE_SECTORS - bit);
	if (!word_of(v, page, bit / 64, &word))
		return false;
	*present = word >> bit % 64 & 1;
	for (*run = 0; *run < most;) {
		unsigned at = bit + (unsigned)*run;
		if (at % 64 == 0 && !word_of(v, page, at / 64, &word))
			return false;
		uint64_t other = (*present ? ~word : word) >> at % 64;
		unsigned left = 64 - at % 64, same = other ? (unsigned)__builtin_ctzll(other) : left;
		*run += MIN(same, left);
		if (same < left)
			break;
	}
	*run = MIN(*run, most);
	return true;
}

/* A block that is there in parts. */
static void map_partial(struct vhdx *v, enum disk_request_type type, uint64_t place, uint64_t offset, struct extent *e)
{
	uint32_t sector = v->image->sector;
	uint64_t run = 0;
	bool present = false;

	e->kind = EXTENT_SLOW;
	if (!run_of(v, offset / sector, e->len / sector, &present, &run)) {
		e->len = MIN(e->len,
			     VHDX_PAGE_SECTORS * (uint64_t)sector - offset % (VHDX_PAGE_SECTORS * (uint64_t)sector));
		return;
	}
	e->len = run * sector;
	if (present) {
		e->kind = EXTENT_FILE;
		e->offset = place + (offset & (v->image->block - 1));
	} else if (type == DISK_READ || type == DISK_DISCARD) {
		e->kind = EXTENT_PARENT;
	}
}

/* What nobody wrote, by the entry's state [2.5.1.1]. */
static enum extent_kind kind_absent(const struct vhdx *v, enum disk_request_type type, unsigned state)
{
	bool parents = v->differencing && state == VHDX_NOT_PRESENT;

	if (type == DISK_WRITE || (type == DISK_WRITE_ZEROES && parents))
		return EXTENT_SLOW;
	return parents ? EXTENT_PARENT : EXTENT_ZERO;
}

/* Makes the extent longer by blocks that lie behind one another in the file too. */
static void stretch(struct vhdx *v, uint64_t block, uint64_t want, struct extent *e)
{
	uint64_t entry;

	while (e->len < want && vhdx_map_entry(v, vhdx_block_entry(v, ++block), &entry) &&
	       VHDX_STATE(entry) == VHDX_PRESENT && VHDX_PLACE(entry) == e->offset + e->len)
		e->len = MIN(want, e->len + v->image->block);
}

void vhdx_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e)
{
	struct vhdx *v = image->state;
	uint64_t block = offset >> v->shift, within = offset & (image->block - 1), want = e->len, entry;

	e->kind = EXTENT_SLOW;
	e->len = MIN(want, image->block - within);
	if (type != DISK_READ && !atomic_load_explicit(&v->begun, memory_order_acquire))
		return;
	if (!vhdx_map_entry(v, vhdx_block_entry(v, block), &entry))
		return;
	unsigned state = VHDX_STATE(entry);
	if (state == VHDX_PRESENT) {
		e->kind = EXTENT_FILE;
		e->offset = VHDX_PLACE(entry) + within;
		stretch(v, block, want, e);
	} else if (state == VHDX_PARTIAL) {
		map_partial(v, type, VHDX_PLACE(entry), offset, e);
	} else {
		e->kind = kind_absent(v, type, state);
	}
}

/* --- frames; under the lock --- */

struct vhdx_frame *vhdx_map_frame(struct vhdx *v, uint64_t page)
{
	uint32_t where = atomic_load_explicit(&v->where[page], memory_order_relaxed);

	return where && !v->frame[where - 1].loading ? &v->frame[where - 1] : NULL;
}

static void set_tag(struct vhdx_frame *f, uint64_t page)
{
	uint64_t old = atomic_load_explicit(&f->tag, memory_order_relaxed);

	/* The page's number goes first when a frame is emptied: nobody may take what comes for what was. */
	atomic_store_explicit(&f->tag, ((old >> 40) + 1) << 40 | VHDX_TAG_PAGE(page), memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
}

/* Where a page is in the file; 0 for the page of a bitmap that does not exist. */
static uint64_t place_of(struct vhdx *v, uint64_t page)
{
	uint64_t entry = 0;

	if (page < v->table_pages)
		return v->table_at + page * VHDX_PAGE;
	page -= v->table_pages;
	if (!vhdx_map_entry(v, vhdx_chunk_entry(v, page / VHDX_CHUNK_PAGES), &entry) ||
	    VHDX_STATE(entry) != VHDX_PRESENT)
		return 0;
	return VHDX_PLACE(entry) + page % VHDX_CHUNK_PAGES * VHDX_PAGE;
}

struct vhdx_frame *vhdx_map_claim(struct vhdx *v, uint64_t page)
{
	/* Before a frame is freed: it might be the one that says so. */
	uint64_t at = place_of(v, page);
	struct vhdx_frame *f = NULL;

	if (v->frames_used < v->frame_count) {
		f = &v->frame[v->frames_used++];
	} else {
		for (uint32_t tries = 0; tries < v->frame_count && !f; tries++) {
			struct vhdx_frame *g = &v->frame[v->hand++ % v->frame_count];
			if (!g->loading && !g->dirty && !g->taken && !g->logged)
				f = g;
		}
		if (!f)
			return NULL;
		if (f->page != VHDX_NO_PAGE)
			atomic_store_explicit(&v->where[f->page], 0, memory_order_release);
	}
	set_tag(f, VHDX_NO_PAGE);
	f->loading = true;
	f->page = page;
	f->at = at;
	atomic_store_explicit(&v->where[page], (uint32_t)(f - v->frame) + 1, memory_order_release);
	return f;
}

void vhdx_map_loaded(struct vhdx *v, struct vhdx_frame *f, bool good)
{
	f->loading = false;
	if (good) {
		set_tag(f, f->page);
		return;
	}
	atomic_store_explicit(&v->where[f->page], 0, memory_order_release);
	f->page = VHDX_NO_PAGE;
}

void vhdx_map_bitmap_made(struct vhdx *v, uint64_t chunk)
{
	uint64_t page = v->table_pages + chunk * VHDX_CHUNK_PAGES;

	for (unsigned i = 0; i < VHDX_CHUNK_PAGES; i++) {
		uint32_t where = atomic_load_explicit(&v->where[page + i], memory_order_relaxed);
		if (where)
			v->frame[where - 1].at = place_of(v, page + i);
	}
}

/* --- changes; under the lock --- */

static void soil(struct vhdx *v, struct vhdx_frame *f)
{
	if (!f->dirty) {
		f->dirty = true;
		v->dirty++;
	}
	atomic_store_explicit(&v->changed, true, memory_order_release);
}

static uint64_t *word_at(struct vhdx *v, struct vhdx_frame *f, unsigned word)
{
	return &vhdx_frame_words(v, f)[word];
}

void vhdx_map_set(struct vhdx *v, uint64_t entry, uint64_t value)
{
	struct vhdx_frame *f = vhdx_map_frame(v, entry / VHDX_PAGE_ENTRIES);

	__atomic_store_n(word_at(v, f, entry % VHDX_PAGE_ENTRIES), htole64(value), __ATOMIC_RELEASE);
	soil(v, f);
}

void vhdx_map_mark(struct vhdx *v, uint64_t from, uint64_t to, bool present)
{
	struct vhdx_frame *f = vhdx_map_frame(v, vhdx_bitmap_page(v, from));

	while (from < to) {
		unsigned bit = from % VHDX_PAGE_SECTORS;
		uint64_t count = MIN(to - from, 64 - bit % 64);
		uint64_t mask = (count == 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1) << bit % 64;
		uint64_t *word = word_at(v, f, bit / 64), old = le64toh(*word);
		__atomic_store_n(word, htole64(present ? old | mask : old & ~mask), __ATOMIC_RELEASE);
		from += count;
	}
	soil(v, f);
}

/* --- loading --- */

/* Which units of the file are in use. */
struct plan {
	struct vhdx *v;
	uint64_t *used;
	uint64_t units, end;
};

static bool use(struct plan *plan, uint64_t at, uint64_t len)
{
	for (uint64_t unit = at / VHDX_UNIT; unit < (at + len + VHDX_UNIT - 1) / VHDX_UNIT; unit++) {
		uint64_t bit = (uint64_t)1 << unit % 64;
		if (plan->used[unit / 64] & bit)
			return false;
		plan->used[unit / 64] |= bit;
	}
	plan->end = MAX(plan->end, at + len);
	return true;
}

static struct error *bad_entry(const struct vhdx *v, const char *what, uint64_t number)
{
	uint64_t at = v->table_at + number * 8;

	return error_hint(error_new(EINVAL, "%s: entry %llu of the block allocation table, at offset %llu, %s",
				    v->image->name, (unsigned long long)number, (unsigned long long)at, what),
			  "restore the disk from a backup, or copy what can be read of it with other tools");
}

static struct error *check_entry(struct plan *plan, uint64_t number, uint64_t entry)
{
	struct vhdx *v = plan->v;
	bool chunk = number % (v->ratio + 1) == v->ratio;
	unsigned state = VHDX_STATE(entry);
	uint64_t len = chunk ? MIB : v->image->block;

	/* The last chunk of a table goes on behind the disk's last block. */
	if (!chunk && number - number / (v->ratio + 1) >= v->blocks)
		return NULL;
	if (state == 4 || state == 5 || (chunk && state != VHDX_NOT_PRESENT && state != VHDX_PRESENT) ||
	    (state == VHDX_PARTIAL && !v->differencing))
		return bad_entry(v, "has a state that it cannot have", number);
	if (state != VHDX_PRESENT && state != VHDX_PARTIAL)
		return NULL;
	if (chunk && !v->differencing)
		return NULL;
	if (VHDX_PLACE(entry) < VHDX_UNIT || !range_inside(VHDX_PLACE(entry), len, v->file_end))
		return bad_entry(v, "places a block outside the file", number);
	if (!use(plan, VHDX_PLACE(entry), len))
		return bad_entry(v, "places a block where something else is", number);
	return NULL;
}

/* Takes @count pages of the table that were read. */
static struct error *take_pages(struct plan *plan, uint64_t page, const uint8_t *bytes, uint64_t count)
{
	struct vhdx *v = plan->v;

	for (uint64_t i = 0; i < count * VHDX_PAGE_ENTRIES; i++) {
		uint64_t number = page * VHDX_PAGE_ENTRIES + i;
		if (number < v->entries)
			TRY(check_entry(plan, number, get64(bytes + i * 8)));
	}
	/* Of a table that is larger than the frames, half of them get its beginning, and the rest what is asked for. */
	uint32_t most = v->frame_count == v->pages ? v->frame_count : v->frame_count / 2;
	for (uint64_t i = 0; i < count && v->frames_used < most; i++) {
		struct vhdx_frame *f = vhdx_map_claim(v, page + i);
		memcpy(vhdx_frame_bytes(v, f), bytes + i * VHDX_PAGE, VHDX_PAGE);
		vhdx_map_loaded(v, f, true);
	}
	return NULL;
}

static struct error *scan(struct plan *plan)
{
	struct vhdx *v = plan->v;
	cleanup_free uint8_t *bytes = aligned_alloc(4096, SCAN_BYTES);

	if (!bytes)
		return error_new(ENOMEM, "%s: read its block allocation table", v->image->name);
	for (uint64_t page = 0; page < v->table_pages; page += SCAN_BYTES / VHDX_PAGE) {
		uint64_t count = MIN(SCAN_BYTES / VHDX_PAGE, v->table_pages - page);
		TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, bytes, count * VHDX_PAGE,
				       v->table_at + page * VHDX_PAGE, "the block allocation table"),
			       "%s", v->image->name));
		TRY(take_pages(plan, page, bytes, count));
	}
	return NULL;
}

/* What lies behind all blocks is what a crash left: it must read as zeroes when new blocks come there. */
static void clear_tail(struct vhdx *v, uint64_t end)
{
	v->end = align_up(end, VHDX_UNIT);
	if (v->image->readonly || v->end >= v->file_end)
		return;
	if (io_fallocate(v->image->disk->io, v->image->file.fd, FALLOC_FL_PUNCH_HOLE, v->end, v->file_end - v->end) < 0)
		v->end = align_up(v->file_end, VHDX_UNIT);
}

static struct error *make_memory(struct vhdx *v)
{
	v->table_pages = (v->entries + VHDX_PAGE_ENTRIES - 1) / VHDX_PAGE_ENTRIES;
	v->pages = v->table_pages;
	if (v->differencing)
		v->pages += (v->blocks + v->ratio - 1) / v->ratio * VHDX_CHUNK_PAGES;
	v->frame_count = (uint32_t)MIN(v->pages, FRAMES_MAX);
	v->frames_used = v->hand = 0;
	v->where = map_zeroes(v->pages * sizeof(*v->where));
	v->frame = calloc(v->frame_count, sizeof(*v->frame));
	v->memory = map_zeroes((uint64_t)v->frame_count * VHDX_PAGE);
	v->shadows = map_zeroes((uint64_t)v->frame_count * VHDX_PAGE);
	v->entry = map_zeroes((1 + VHDX_BATCH_MAX) * (uint64_t)VHDX_LOG_SECTOR);
	v->commit.pages = calloc(v->frame_count, sizeof(*v->commit.pages));
	if (!v->where || !v->frame || !v->memory || !v->shadows || !v->entry || !v->commit.pages)
		return error_new(ENOMEM, "%s: make room for its block map", v->image->name);
	return NULL;
}

struct error *vhdx_map_load(struct vhdx *v)
{
	struct plan plan = {.v = v};

	TRY(make_memory(v));
	v->file_end = v->image->file.size;
	if (v->file_end > VHDX_FILE_MAX)
		return error_new(EFBIG, "%s: its file is larger than any disk needs", v->image->name);
	plan.units = v->file_end / VHDX_UNIT + 1;
	uint64_t bytes = align_up(plan.units / 8 + 8, PAGE_BYTES);
	plan.used = map_zeroes(bytes);
	if (!plan.used)
		return error_new(ENOMEM, "%s: read its block allocation table", v->image->name);
	use(&plan, 0, VHDX_UNIT);
	use(&plan, v->header.log_at, v->header.log_bytes);
	use(&plan, v->table_at, v->table_bytes);
	use(&plan, v->metadata_at, v->metadata_bytes);
	struct error *err = scan(&plan);
	unmap(plan.used, bytes);
	if (!err)
		clear_tail(v, plan.end);
	return err;
}

void vhdx_map_free(struct vhdx *v)
{
	unmap(v->where, v->pages * sizeof(*v->where));
	unmap(v->memory, (uint64_t)v->frame_count * VHDX_PAGE);
	unmap(v->shadows, (uint64_t)v->frame_count * VHDX_PAGE);
	unmap(v->entry, (1 + VHDX_BATCH_MAX) * (uint64_t)VHDX_LOG_SECTOR);
	free(v->frame);
	free(v->commit.pages);
	v->where = NULL;
	v->memory = NULL;
	v->shadows = v->entry = NULL;
	v->frame = NULL;
	v->commit.pages = NULL;
}
