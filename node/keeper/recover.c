/*
 * Reading the journal; see journal.h. What is on the medium is hostile: it may be torn, damaged, foreign or made up.
 *
 * First the headers say which area is meant, then the area is read: its snapshot must be whole, then its log counts as
 * far as each record is valid and follows the one before. Records are told from what earlier lives of the area left by
 * the epoch. Behind the end of the log no valid record of this life may stand: one write was under way at most, so it
 * would mean that what was acknowledged is broken in the middle.
 *
 * A snapshot one generation newer than the newest header is one whose header was not reached by the cut, or has been
 * damaged since. Both ways it holds all that was acknowledged, and counts.
 */
#include "node/keeper/internal.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW (2 * MIB)

/* An area, read through a window. */
struct reader {
	const struct journal_io *io;
	uint64_t base, size;
	uint8_t *window;
	uint64_t from, len; /* what of the area is in it */
};

/* What examine() found out about an area. */
struct area {
	bool whole; /* its snapshot */
	uint64_t generation, epoch, first_sequence, last_sequence;
	uint64_t snapshot; /* where it ends */
};

enum slot { SLOT_BLANK, SLOT_BAD, SLOT_NEWER, SLOT_VALID };

static bool is_blank(const uint8_t *data, size_t len)
{
	return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static struct error *reader_init(struct reader *r, const struct journal_io *io, uint64_t base, uint64_t size)
{
	*r = (struct reader){.io = io, .base = base, .size = size, .window = aligned_alloc(JOURNAL_BLOCK, WINDOW)};
	return r->window ? NULL : error_new(ENOMEM, "read %s", io->name);
}

static void reader_free(struct reader *r)
{
	free(r->window);
}
#define cleanup_reader __attribute__((cleanup(reader_free)))

/* @len bytes of the area from @offset, both whole blocks; NULL where that is beyond its end or cannot be read. */
static const uint8_t *reader_at(struct reader *r, uint64_t offset, uint64_t len)
{
	if (!range_inside(offset, len, r->size) || len > WINDOW)
		return NULL;
	if (offset < r->from || offset + len > r->from + r->len) {
		uint64_t ahead = MIN((uint64_t)WINDOW, r->size - offset);
		r->from = offset;
		r->len = 0;
		/* Where a block cannot be read those before it still can. */
		if (r->io->read(r->io, r->window, ahead, r->base + offset) == 0)
			r->len = ahead;
		else if (r->io->read(r->io, r->window, len, r->base + offset) == 0)
			r->len = len;
		else
			return NULL;
	}
	return r->window + (offset - r->from);
}

/* The valid record at @offset, or NULL. */
static const struct journal_record *record_at(struct reader *r, uint64_t offset)
{
	const uint8_t *block = reader_at(r, offset, JOURNAL_BLOCK);

	if (!block || memcmp(block, JOURNAL_RECORD_MAGIC, 8) != 0)
		return NULL;
	uint32_t length = ((const struct journal_record *)block)->length;
	if (length > JOURNAL_PAYLOAD_MAX)
		return NULL;
	block = reader_at(r, offset, align_up(sizeof(struct journal_record) + length, JOURNAL_BLOCK));
	if (!block)
		return NULL;
	const struct journal_record *record = (const struct journal_record *)block;
	return journal_record_sum(record) == record->checksum ? record : NULL;
}

static uint64_t size_of(const struct journal_record *record)
{
	return align_up(sizeof(*record) + record->length, JOURNAL_BLOCK);
}

/* Hands on what a record carries. */
static struct error *take_items(const struct journal_record *record, journal_take_fn *take, void *arg)
{
	const uint8_t *payload = (const uint8_t *)(record + 1);
	struct journal_item_head head;

	for (uint64_t at = 0; at < record->length; at += align_up(head.length, 8)) {
		if (record->length - at < sizeof(head))
			return error_new(EBADMSG, "record %llu ends in an item", (unsigned long long)record->sequence);
		memcpy(&head, payload + at, sizeof(head));
		at += sizeof(head);
		if (align_up(head.length, 8) > record->length - at)
			return error_new(EBADMSG, "record %llu ends in an item", (unsigned long long)record->sequence);
		if (head.kind != JOURNAL_DATABASE && head.kind != JOURNAL_IDENTITY)
			return error_hint(error_new(EPROTONOSUPPORT, "record %llu has an item of kind %u",
						    (unsigned long long)record->sequence, head.kind),
					  "a newer Glint wrote it: use that one");
		TRY(take(arg, &(struct journal_item){(enum journal_kind)head.kind, payload + at, head.length}));
	}
	return NULL;
}

/* Whether @r is the next record of the snapshot, or of the log, that @a describes so far. */
static bool follows(const struct area *a, const struct journal_record *r, bool snapshot)
{
	return r->sequence == a->last_sequence + 1 && r->generation == a->generation && r->epoch == a->epoch &&
	       ((r->flags & JOURNAL_SNAPSHOT) != 0) == snapshot;
}

/* Reads an area's snapshot without taking it. */
static void examine(struct reader *reader, struct area *a)
{
	const struct journal_record *r = record_at(reader, 0);
	uint64_t at = 0;

	*a = (struct area){};
	if (!r || !(r->flags & JOURNAL_SNAPSHOT))
		return;
	*a = (struct area){.generation = r->generation,
			   .epoch = r->epoch,
			   .first_sequence = r->sequence,
			   .last_sequence = r->sequence - 1};
	for (; r && follows(a, r, true); r = record_at(reader, at)) {
		a->last_sequence = r->sequence;
		at += size_of(r);
		if (r->flags & JOURNAL_SNAPSHOT_END) {
			a->whole = true;
			a->snapshot = at;
			return;
		}
	}
}

[[gnu::format(printf, 2, 3)]] static void damaged(struct journal *j, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	/* The first words stay. */
	if (j->info.state != JOURNAL_DAMAGED)
		vsnprintf(j->info.damage, sizeof(j->info.damage), fmt, args);
	va_end(args);
	j->info.state = JOURNAL_DAMAGED;
}

/* Whether a record of this life, newer than what was read, stands behind @at; and how far what is no zero goes. */
static void look_behind(struct journal *j, struct reader *reader, const struct area *a)
{
	for (uint64_t at = j->end; at < j->log_end; at += JOURNAL_BLOCK) {
		const uint8_t *block = reader_at(reader, at, JOURNAL_BLOCK);
		if (at == j->end && block && memcmp(block, JOURNAL_RECORD_MAGIC, 8) == 0 &&
		    ((const struct journal_record *)block)->epoch == a->epoch)
			j->info.torn = JOURNAL_BLOCK;
		const struct journal_record *r = record_at(reader, at);
		if (!r || r->epoch != a->epoch || r->sequence <= j->info.sequence)
			continue;
		unsigned long long broken = j->info.sequence + 1, place = reader->base + j->end, good = r->sequence;
		damaged(j, "record %llu, at %llu, is broken, and record %llu behind it is not", broken, place, good);
		return;
	}
}

/* Takes the snapshot of an area and the log behind it. */
static struct error *take_area(struct journal *j, struct reader *reader, struct area *a, journal_take_fn *take,
			       void *arg)
{
	const struct journal_record *r;
	uint64_t at = 0;

	j->epoch = a->epoch;
	j->first_sequence = a->first_sequence;
	j->log_end = journal_log_end(j->area_size, a->snapshot);
	a->last_sequence = a->first_sequence - 1;
	while (at < j->log_end && (r = record_at(reader, at)) && follows(a, r, at < a->snapshot)) {
		TRY(take_items(r, take, arg));
		a->last_sequence = r->sequence;
		j->info.changes += r->changes;
		memcpy(j->info.writer, r->writer, sizeof(j->info.writer));
		at += size_of(r);
	}
	if (at < a->snapshot)
		return error_new(EIO, "the snapshot at %llu reads differently each time",
				 (unsigned long long)reader->base);
	j->info.sequence = a->last_sequence;
	j->end = at;
	look_behind(j, reader, a);
	return NULL;
}

static enum slot read_slot(const struct journal *j, unsigned slot, struct journal_header *header)
{
	cleanup_free uint8_t *block = aligned_alloc(JOURNAL_BLOCK, JOURNAL_BLOCK);

	if (!block || j->io->read(j->io, block, JOURNAL_BLOCK, JOURNAL_SLOT(slot)) < 0)
		return SLOT_BAD;
	memcpy(header, block, sizeof(*header));
	if (is_blank(block, JOURNAL_BLOCK))
		return SLOT_BLANK;
	if (memcmp(header->magic, JOURNAL_HEADER_MAGIC, sizeof(header->magic)) != 0 ||
	    journal_header_sum(header) != header->checksum)
		return SLOT_BAD;
	if (header->version != JOURNAL_VERSION || header->sealing != 0)
		return SLOT_NEWER;
	/* Where the areas are follows from the size: a header of another size belongs to another medium. */
	return header->medium_size == j->io->size && header->area_size == j->area_size &&
			       header->active < JOURNAL_AREAS && header->generation > 0
		       ? SLOT_VALID
		       : SLOT_BAD;
}

/* The area that is to be taken, or -1 for none; sets state, damage, and what else does not come from the area. */
static int choose(struct journal *j, const enum slot slots[2], const struct journal_header headers[2],
		  const struct area areas[2])
{
	int best = areas[1].whole && (!areas[0].whole || areas[1].generation > areas[0].generation) ? 1
		   : areas[0].whole                                                                 ? 0
												    : -1;
	int valid = slots[0] == SLOT_VALID ? 0 : -1;

	if (slots[1] == SLOT_VALID && (valid < 0 || headers[1].generation > headers[0].generation))
		valid = 1;
	j->info.state = JOURNAL_WHOLE;
	if (valid < 0) {
		/* Formatting was cut short after its snapshot, or the headers are gone. */
		j->header_due = true;
		if (slots[0] != SLOT_BLANK || slots[1] != SLOT_BLANK || best != 0 || areas[0].generation != 1)
			damaged(j, "neither header can be read");
		return best;
	}
	const struct journal_header *h = &headers[valid];
	const struct area *active = &areas[h->active], *other = &areas[1 - h->active];
	memcpy(j->info.stick, h->stick, sizeof(j->info.stick));
	j->info.generation = h->generation;
	j->area = h->active;
	if (other->whole && other->generation == h->generation + 1) {
		j->header_due = true;
		return (int)(1 - h->active);
	}
	if (active->whole && active->generation == h->generation && active->epoch == h->epoch)
		return (int)h->active;
	damaged(j, "the snapshot of generation %llu, at %llu, is broken", (unsigned long long)h->generation,
		(unsigned long long)journal_area(j->io->size, h->active));
	return best;
}

/* Whether nothing was ever finished on the medium: both headers blank, and in the areas at most a first snapshot. */
static struct error *is_empty(struct reader readers[2], const enum slot slots[2], const struct area areas[2],
			      bool *empty)
{
	*empty = false;
	if (slots[0] != SLOT_BLANK || slots[1] != SLOT_BLANK || areas[0].whole || areas[1].whole)
		return NULL;
	const uint8_t *first = reader_at(&readers[0], 0, JOURNAL_BLOCK);
	const uint8_t *second = reader_at(&readers[1], 0, JOURNAL_BLOCK);
	if (!first || !second)
		return error_new(EIO, "read it");
	*empty = is_blank(second, JOURNAL_BLOCK) &&
		 (is_blank(first, 512) || memcmp(first, JOURNAL_RECORD_MAGIC, 8) == 0);
	return NULL;
}

/* A damaged journal that is written anew: the next header must be the newest, and not overwrite that of what was taken.
 */
static void set_generation(struct journal *j, const struct area areas[2], int chosen)
{
	if (j->info.state == JOURNAL_WHOLE) {
		j->info.generation = areas[chosen].generation;
		return;
	}
	for (unsigned i = 0; i < 2; i++)
		if (areas[i].whole)
			j->info.generation = MAX(j->info.generation, areas[i].generation);
	if (chosen >= 0 && (j->info.generation + 1) % JOURNAL_SLOTS == areas[chosen].generation % JOURNAL_SLOTS)
		j->info.generation++;
}

static struct error *recover(struct journal *j, struct reader readers[2], journal_take_fn *take, void *arg)
{
	cleanup_free struct journal_header *headers = calloc(JOURNAL_SLOTS, sizeof(*headers));
	enum slot slots[JOURNAL_SLOTS];
	struct area areas[JOURNAL_AREAS];
	bool empty;

	if (!headers)
		return error_new(ENOMEM, "read it");
	for (unsigned i = 0; i < JOURNAL_SLOTS; i++) {
		slots[i] = read_slot(j, i, &headers[i]);
		if (slots[i] == SLOT_NEWER)
			return error_hint(error_new(EPROTONOSUPPORT, "its format is version %u, sealing %u",
						    headers[i].version, headers[i].sealing),
					  "a newer Glint wrote it: use that one");
		examine(&readers[i], &areas[i]);
	}
	TRY(is_empty(readers, slots, areas, &empty));
	if (empty) {
		j->info.state = JOURNAL_EMPTY;
		return NULL;
	}
	int chosen = choose(j, slots, headers, areas);
	if (chosen < 0 && slots[0] != SLOT_VALID && slots[1] != SLOT_VALID)
		return error_hint(error_new(EMEDIUMTYPE, "there is no journal of Glint on it"),
				  "nothing was written to it; empty it to have it used");
	set_generation(j, areas, chosen);
	if (chosen < 0)
		return NULL;
	j->area = (unsigned)chosen;
	j->header_due = j->header_due && j->info.state == JOURNAL_WHOLE;
	return take_area(j, &readers[chosen], &areas[chosen], take, arg);
}

struct error *journal_recover(struct journal *j, journal_take_fn *take, void *arg)
{
	cleanup_reader struct reader first = {}, second = {};
	TRY(reader_init(&first, j->io, journal_area(j->io->size, 0), j->area_size));
	TRY(reader_init(&second, j->io, journal_area(j->io->size, 1), j->area_size));
	struct reader readers[] = {first, second};

	return recover(j, readers, take, arg);
}

bool journal_stick(const struct journal_io *io, uint8_t stick[16])
{
	struct journal j = {.io = io, .area_size = journal_area_size(io->size)};
	struct journal_header header;

	for (unsigned slot = 0; slot < JOURNAL_SLOTS && io->size >= JOURNAL_MIN; slot++) {
		enum slot found = read_slot(&j, slot, &header);
		if (found != SLOT_VALID && found != SLOT_NEWER)
			continue;
		memcpy(stick, header.stick, sizeof(header.stick));
		return true;
	}
	return false;
}
