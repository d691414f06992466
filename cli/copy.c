/*
 * Copying disks; see copy.h. Touches the disks' files, through a ring of its own.
 *
 *     disk_map() -> ranges -> pieces -> slots: read -> look for zeroes -> write, one run of data after the other
 *
 * Maps may only be asked while no request is under way, so they are asked for many ranges at once, between which all
 * slots become idle. What a slot has read is written without its zeroes: runs of ZERO_UNIT bytes of them are holes.
 * Every so often a flush is made, at whose end all that was written when it began is durable.
 */
#include "cli/copy.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "disk/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS       16u
#define SLOT_BYTES  ((size_t)MIB)
#define ZERO_UNIT   ((size_t)64 << 10)
#define RANGES      1024u
#define ZERO_BYTES  GIB /* of one request */
#define FLUSH_BYTES (128 * MIB)

struct piece {
	uint64_t at, len;
	bool zero;
};

enum slot_state { IDLE, READING, WRITING, COMPARING };

struct slot {
	struct disk_request r; /* first */
	struct work *work;
	enum slot_state state;
	struct piece piece;
	struct iovec iov;
	uint8_t *data, *other; /* SLOT_BYTES each */
	size_t written;        /* of the piece: behind the run under way */
};

struct work {
	const struct copy *copy;
	struct disk_ring *ring;
	struct disk_queue from, to;
	struct slot slots[SLOTS];
	unsigned busy;
	struct error *err; /* the first */
	bool comparing;

	/* What is to be done next: ranges, the one under way, how far in it. */
	struct piece ranges[RANGES];
	unsigned count, next;
	uint64_t mapped; /* up to here */

	/* The flush under way. */
	struct disk_request flush;
	bool flushing;
	uint64_t flush_covers; /* all before is durable when it is done */
	uint64_t since_flush;
};

/* --- zeroes --- */

static bool is_zero(const uint8_t *p, size_t len)
{
	/* The first word, then each byte against the one before it: the fastest memcmp does the work. */
	return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* The run that begins at @at of @len bytes: its end, and whether it is of zeroes. */
static size_t run_end(const uint8_t *data, size_t at, size_t len, bool *zero)
{
	size_t end = MIN(at + ZERO_UNIT, len);

	*zero = is_zero(data + at, end - at);
	while (end < len) {
		size_t next = MIN(end + ZERO_UNIT, len);
		if (is_zero(data + end, next - end) != *zero)
			break;
		end = next;
	}
	return end;
}

/* --- slots --- */

/* The first error is the one to be told. */
static void stop(struct work *w, struct error *err)
{
	if (w->err)
		error_free(err);
	else
		w->err = err;
}

static void fail(struct work *w, int res, const char *verb, const struct opened *o, uint64_t at)
{
	struct error *err = error_new(-res, "%s %s at offset %llu", verb, o->info.name, (unsigned long long)at);

	stop(w, res == -ENOSPC ? error_hint(err, "make room there, and try again") : err);
}

static void idle(struct slot *s)
{
	s->state = IDLE;
	s->work->busy--;
}

static void submit(struct slot *s, struct disk_queue *queue, enum disk_request_type type, uint8_t *data, uint64_t at,
		   uint64_t len)
{
	s->iov = (struct iovec){data, len};
	s->r.type = type;
	s->r.unmap = true;
	s->r.offset = at;
	s->r.len = len;
	s->r.iov = &s->iov;
	s->r.iov_count = data ? 1 : 0;
	disk_submit(queue, &s->r);
}

static void write_next(struct slot *s)
{
	struct work *w = s->work;
	bool over = w->copy->over, zero = false;

	while (s->written < s->piece.len && !w->err) {
		size_t at = s->written;
		s->written = run_end(s->data, at, s->piece.len, &zero);
		if (zero && !over)
			continue;
		w->since_flush += s->written - at;
		submit(s, &w->to, zero ? DISK_WRITE_ZEROES : DISK_WRITE, zero ? NULL : s->data + at, s->piece.at + at,
		       s->written - at);
		return;
	}
	idle(s);
}

static void compare(struct slot *s)
{
	struct work *w = s->work;
	size_t at = 0, len = s->piece.len;

	if (memcmp(s->data, s->other, len) != 0) {
		while (s->data[at] == s->other[at])
			at++;
		stop(w, error_new(0, "%s and %s differ at offset %llu", w->copy->from->info.name,
				  w->copy->to->info.name, (unsigned long long)s->piece.at + at));
	}
	idle(s);
}

static void slot_done(struct disk_request *r, int res)
{
	struct slot *s = (struct slot *)r;
	struct work *w = s->work;

	if (res < 0) {
		bool source = s->state == READING;
		fail(w, res, s->state == WRITING ? "write to" : "read", source ? w->copy->from : w->copy->to,
		     s->piece.at);
		idle(s);
		return;
	}
	if (s->state == COMPARING) {
		compare(s);
	} else if (s->state == READING && w->comparing) {
		s->state = COMPARING;
		submit(s, &w->to, DISK_READ, s->other, s->piece.at, s->piece.len);
	} else {
		s->state = WRITING;
		write_next(s);
	}
}

static void start(struct slot *s, const struct piece *piece)
{
	struct work *w = s->work;

	s->piece = *piece;
	s->written = 0;
	w->busy++;
	if (piece->zero) {
		s->state = WRITING;
		s->written = piece->len;
		submit(s, &w->to, DISK_WRITE_ZEROES, NULL, piece->at, piece->len);
		return;
	}
	s->state = READING;
	submit(s, &w->from, DISK_READ, s->data, piece->at, piece->len);
}

static struct slot *free_slot(struct work *w)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (w->slots[i].state == IDLE)
			return &w->slots[i];
	return NULL;
}

static void wait_idle(struct work *w)
{
	while (w->busy > 0 || w->flushing)
		disk_ring_serve(w->ring);
}

/* --- flushes --- */

static void flushed(struct disk_request *r, int res)
{
	struct work *w = (struct work *)((char *)r - offsetof(struct work, flush));

	w->flushing = false;
	if (res < 0)
		fail(w, res, "make durable", w->copy->to, w->flush_covers);
	else if (w->copy->durable && !w->err)
		w->err = w->copy->durable(w->copy->arg, w->flush_covers);
}

/* @next: where the next piece begins; what is before it and in no slot is written. */
static void flush(struct work *w, uint64_t next)
{
	w->flush_covers = next;
	for (unsigned i = 0; i < SLOTS; i++)
		if (w->slots[i].state != IDLE)
			w->flush_covers = MIN(w->flush_covers, w->slots[i].piece.at);
	w->since_flush = 0;
	w->flushing = true;
	w->flush = (struct disk_request){.type = DISK_FLUSH, .done = flushed};
	disk_submit(&w->to, &w->flush);
}

/* --- ranges --- */

/*
 * Direct I/O may ask for whole pages, and a disk's ranges end at any sector: what has data in a page has all of it. The
 * piece begins at a page.
 */
static void whole_pages(struct piece *piece, uint64_t size, bool *wanted)
{
	uint64_t end = piece->at + piece->len, page = align_down(end, PAGE_BYTES);

	if (end == size || page == end)
		return;
	if (page == piece->at) {
		*wanted = true;
		piece->zero = false;
	}
	piece->len = (*wanted ? MIN(page + PAGE_BYTES, size) : page) - piece->at;
}

static struct error *map_copy(struct work *w, struct piece *piece, bool *wanted)
{
	const struct copy *copy = w->copy;
	struct disk_range range;

	TRY(disk_map(copy->from->disk, w->mapped, &range));
	*piece = (struct piece){w->mapped, range.len, range.kind == DISK_ZERO};
	*wanted = range.kind == DISK_DATA || (range.kind == DISK_ZERO && copy->over);
	if (!copy->over)
		whole_pages(piece, copy->from->info.size, wanted);
	return NULL;
}

/* Both have to be read where one of them has data. */
static struct error *map_compare(struct work *w, struct piece *piece, bool *wanted)
{
	struct disk_range a, b;

	TRY(disk_map(w->copy->from->disk, w->mapped, &a));
	TRY(disk_map(w->copy->to->disk, w->mapped, &b));
	*piece = (struct piece){w->mapped, MIN(a.len, b.len), false};
	*wanted = a.kind == DISK_DATA || b.kind == DISK_DATA;
	return NULL;
}

/* Fills the list. Nothing may be under way. */
static struct error *map_more(struct work *w)
{
	uint64_t size = w->copy->from->info.size;
	struct piece piece;
	bool wanted;

	w->count = w->next = 0;
	while (w->mapped < size && w->count < RANGES) {
		TRY(w->comparing ? map_compare(w, &piece, &wanted) : map_copy(w, &piece, &wanted));
		w->mapped = piece.at + piece.len;
		struct piece *last = w->count > 0 ? &w->ranges[w->count - 1] : NULL;
		if (wanted && last && last->at + last->len == piece.at && last->zero == piece.zero)
			last->len += piece.len;
		else if (wanted)
			w->ranges[w->count++] = piece;
	}
	return NULL;
}

/* Takes a piece off the list. False: it is empty. */
static bool next_piece(struct work *w, struct piece *piece)
{
	if (w->next == w->count)
		return false;
	struct piece *range = &w->ranges[w->next];
	uint64_t most = range->zero ? ZERO_BYTES : SLOT_BYTES - range->at % SLOT_BYTES;
	*piece = (struct piece){range->at, MIN(range->len, most), range->zero};
	range->at += piece->len;
	range->len -= piece->len;
	if (range->len == 0)
		w->next++;
	return true;
}

static void do_piece(struct work *w, const struct piece *piece)
{
	struct slot *s;

	while (!(s = free_slot(w)))
		disk_ring_serve(w->ring);
	if (w->err)
		return;
	if (w->since_flush >= FLUSH_BYTES && !w->flushing && w->copy->durable && !w->comparing)
		flush(w, piece->at);
	start(s, piece);
	if (w->copy->progress)
		progress_at(w->copy->progress, piece->at);
}

static struct error *work(struct work *w)
{
	struct piece piece;

	while (!w->err) {
		wait_idle(w);
		if (w->mapped == w->copy->from->info.size)
			break;
		w->err = map_more(w);
		while (!w->err && next_piece(w, &piece))
			do_piece(w, &piece);
	}
	wait_idle(w);
	return w->err;
}

/* --- making it ready --- */

static struct error *prepare(struct work *w)
{
	TRY(disk_ring_new(&w->ring));
	w->from = (struct disk_queue){w->copy->from->disk, disk_ring_io(w->ring), w->copy->from->files};
	w->to = (struct disk_queue){w->copy->to->disk, disk_ring_io(w->ring), w->copy->to->files};
	w->mapped = w->copy->start;
	for (unsigned i = 0; i < SLOTS; i++) {
		struct slot *s = &w->slots[i];
		s->work = w;
		s->r.done = slot_done;
		s->data = aligned_alloc(4096, SLOT_BYTES);
		s->other = w->comparing ? aligned_alloc(4096, SLOT_BYTES) : NULL;
		if (!s->data || (w->comparing && !s->other))
			return error_new(ENOMEM, "make buffers");
	}
	return NULL;
}

static struct error *run(const struct copy *copy, bool comparing)
{
	struct work *w = calloc(1, sizeof(*w));

	if (!w)
		return error_new(ENOMEM, "copy");
	w->copy = copy;
	w->comparing = comparing;
	struct error *err = prepare(w);
	if (!err)
		err = work(w);
	for (unsigned i = 0; i < SLOTS; i++) {
		free(w->slots[i].data);
		free(w->slots[i].other);
	}
	disk_ring_free(w->ring);
	free(w);
	return err;
}

struct error *copy_disk(const struct copy *copy)
{
	return run(copy, false);
}

struct error *copy_compare(const struct copy *copy)
{
	return run(copy, true);
}
