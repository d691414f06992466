/*
 * Checking and repairing VHDX files [MS-VHDX]: identifier, headers, region tables, metadata, log, block allocation
 * table, space that nothing speaks of. Reads and writes the image's file by the disk's I/O at once.
 *
 * Each structure that is there twice is put right from the other one; the log is replayed; space is given back. An
 * entry of the table that is wrong is reported only: what it should say stands nowhere.
 */
#include "disk/vhdx.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>

#define SCAN_BYTES ((uint64_t)256 * KIB)

static const char identifier[] = "vhdxfile";
#define IDENTIFIER_BYTES (sizeof(identifier) - 1)

static struct error *read_at(const struct image *image, void *to, size_t len, uint64_t at, const char *what)
{
	return error_wrap(io_read(image->disk->io, image->file.fd, to, len, at, what), "%s", image->name);
}

static struct error *write_at(const struct image *image, const void *from, size_t len, uint64_t at, const char *what)
{
	TRY(error_wrap(io_write(image->disk->io, image->file.fd, from, len, at, what), "%s", image->name));
	return error_wrap(io_sync(image->disk->io, image->file.fd, what), "%s", image->name);
}

/* --- what is there twice --- */

/* What of the file's first MiB is whole; @pages has all of it. */
struct front {
	bool identifier, header[2], regions[2], same_regions;
	uint8_t *pages;
};

static struct error *read_front(const struct image *image, struct front *f)
{
	struct vhdx_header header;

	f->pages = aligned_alloc(4096, VHDX_UNIT);
	if (!f->pages)
		return error_new(ENOMEM, "%s: check it", image->name);
	TRY(read_at(image, f->pages, VHDX_UNIT, 0, "the headers"));
	f->identifier = memcmp(f->pages, identifier, IDENTIFIER_BYTES) == 0;
	for (unsigned n = 0; n < 2; n++) {
		f->header[n] = vhdx_header_decode(f->pages + VHDX_HEADER_AT(n), &header);
		f->regions[n] = vhdx_regions_whole(f->pages + VHDX_REGIONS_AT(n));
	}
	f->same_regions = memcmp(f->pages + VHDX_REGIONS_AT(0), f->pages + VHDX_REGIONS_AT(1), VHDX_REGIONS_BYTES) == 0;
	return NULL;
}

static void check_front(const struct front *f, struct disk_check *check)
{
	if (!f->identifier)
		check_found(check, DISK_ERROR, f->header[0] || f->header[1], "file identifier", 0,
			    "there is no file identifier at offset 0");
	/* Of two that are damaged opening tells. */
	for (unsigned n = 0; n < 2; n++) {
		if (!f->header[n] && f->header[n ^ 1])
			check_found(check, DISK_ERROR, true, "header", VHDX_HEADER_AT(n),
				    "header %u at offset %llu is not whole, the other one is", n + 1,
				    (unsigned long long)VHDX_HEADER_AT(n));
		if (!f->regions[n] && f->regions[n ^ 1])
			check_found(check, DISK_ERROR, true, "region table", VHDX_REGIONS_AT(n),
				    "region table %u at offset %llu is not whole, the other one is", n + 1,
				    (unsigned long long)VHDX_REGIONS_AT(n));
	}
	if (f->regions[0] && f->regions[1] && !f->same_regions)
		check_found(check, DISK_ERROR, true, "region table", VHDX_REGIONS_AT(1),
			    "region table 2 at offset %llu is not that of offset %llu, which counts",
			    (unsigned long long)VHDX_REGIONS_AT(1), (unsigned long long)VHDX_REGIONS_AT(0));
}

/* --- the table --- */

struct scan {
	struct image *image;
	struct vhdx *v;
	struct disk_check *check; /* NULL: give back what nothing speaks of */
	uint64_t *used;           /* a bit for each MiB of the file */
	uint64_t units;
	uint64_t errors;
	bool partial; /* a block of this chunk is there in parts */
};

/* False when some of it is in use. */
static bool use(struct scan *s, uint64_t at, uint64_t len)
{
	bool free = true;

	for (uint64_t unit = at / VHDX_UNIT; unit < MIN((at + len + VHDX_UNIT - 1) / VHDX_UNIT, s->units); unit++) {
		uint64_t bit = (uint64_t)1 << unit % 64;
		free = free && !(s->used[unit / 64] & bit);
		s->used[unit / 64] |= bit;
	}
	return free;
}

static void bad_entry(struct scan *s, uint64_t number, uint64_t entry, const char *what)
{
	uint64_t at = s->v->table_at + number * 8;

	s->errors++;
	if (s->check)
		check_found(s->check, DISK_ERROR, false, "block allocation table", at,
			    "entry %llu of the block allocation table, at offset %llu, %s (state %u, offset %llu)",
			    (unsigned long long)number, (unsigned long long)at, what, (unsigned)VHDX_STATE(entry),
			    (unsigned long long)VHDX_PLACE(entry));
}

/* [2.5.1] */
static void check_entry(struct scan *s, uint64_t number, uint64_t entry)
{
	const struct vhdx *v = s->v;
	bool chunk = number % (v->ratio + 1) == v->ratio;
	unsigned state = VHDX_STATE(entry);

	/* The last chunk of a table goes on behind the disk's last block. */
	if (!chunk && number - number / (v->ratio + 1) >= v->blocks)
		return;
	if (chunk && !v->differencing)
		return;
	if (state == 4 || state == 5 || (chunk && state != VHDX_NOT_PRESENT && state != VHDX_PRESENT) ||
	    (state == VHDX_PARTIAL && !v->differencing)) {
		bad_entry(s, number, entry, "has a state that it cannot have");
		return;
	}
	if (chunk && s->partial && state != VHDX_PRESENT)
		bad_entry(s, number, entry, "has no sector bitmap, and blocks before it are there in parts");
	s->partial = !chunk && (s->partial || state == VHDX_PARTIAL);
	if (state != VHDX_PRESENT && state != VHDX_PARTIAL)
		return;
	uint64_t len = chunk ? MIB : s->image->block;
	if (VHDX_PLACE(entry) < VHDX_UNIT || !range_inside(VHDX_PLACE(entry), len, s->image->file.size))
		bad_entry(s, number, entry, "places a block outside the file");
	else if (!use(s, VHDX_PLACE(entry), len))
		bad_entry(s, number, entry, "places a block where something else is");
}

static struct error *scan_table(struct scan *s)
{
	cleanup_free uint8_t *bytes = aligned_alloc(4096, SCAN_BYTES);

	if (!bytes)
		return error_new(ENOMEM, "%s: check its table", s->image->name);
	for (uint64_t first = 0; first < s->v->entries; first += SCAN_BYTES / 8) {
		TRY(read_at(s->image, bytes, SCAN_BYTES, s->v->table_at + first * 8, "the block allocation table"));
		for (uint64_t n = first; n < MIN(first + SCAN_BYTES / 8, s->v->entries); n++)
			check_entry(s, n, get64(bytes + (n - first) * 8));
	}
	return NULL;
}

/* All regions, also those of kinds that are not known here. */
static void use_regions(struct scan *s, const struct front *f)
{
	const uint8_t *table = f->pages + VHDX_REGIONS_AT(f->regions[0] ? 0 : 1);

	use(s, 0, VHDX_UNIT);
	use(s, s->v->header.log_at, s->v->header.log_bytes);
	for (uint32_t i = 0; i < get32(table + 8); i++) {
		const uint8_t *entry = table + 16 + (size_t)i * 32;
		if (range_inside(get64(entry + 16), get32(entry + 24), s->image->file.size))
			use(s, get64(entry + 16), get32(entry + 24));
	}
}

static void find_unused(struct scan *s)
{
	uint64_t size = s->image->file.size;

	for (uint64_t unit = 1, from; unit < s->units; unit++) {
		for (from = unit; unit < s->units && !(s->used[unit / 64] >> unit % 64 & 1); unit++)
			;
		if (unit > from)
			check_unused(s->image, s->check, from * VHDX_UNIT, MIN(unit * VHDX_UNIT, size), !s->check);
	}
}

/* @check: where to report; NULL: to give unused space back. */
static struct error *scan(struct image *image, const struct front *f, struct disk_check *check)
{
	uint64_t units = (image->file.size + VHDX_UNIT - 1) / VHDX_UNIT;

	if (image->file.size > VHDX_FILE_MAX)
		return error_new(ENOTSUP, "%s: a file of %llu bytes", image->name,
				 (unsigned long long)image->file.size);
	cleanup_free uint64_t *used = calloc(units / 64 + 1, 8);
	struct scan s = {.image = image, .v = image->state, .check = check, .used = used, .units = units};
	if (!used)
		return error_new(ENOMEM, "%s: check its table", image->name);
	use_regions(&s, f);
	TRY(scan_table(&s));
	/* With a wrong table nobody knows what is not in use. */
	if (s.errors == 0)
		find_unused(&s);
	return NULL;
}

/* --- all of it --- */

static bool has_log(const struct vhdx *v)
{
	static const uint8_t none[16];

	return memcmp(v->header.log_id, none, sizeof(none)) != 0;
}

static struct error *check_with(struct image *image, struct disk_check *check, struct front *f)
{
	struct error *err;

	if (image->file.size < VHDX_UNIT) {
		check_found(check, DISK_ERROR, false, "header", image->file.size,
			    "the file ends within its headers, at offset %llu", (unsigned long long)image->file.size);
		return NULL;
	}
	TRY(read_front(image, f));
	check_front(f, check);
	if (!f->identifier || !check_open(image, check, &err))
		return f->identifier ? err : NULL;
	const struct vhdx *v = image->state;
	if (!has_log(v))
		return scan(image, f, check);
	check_found(check, DISK_ERROR, true, "log", v->header.log_at,
		    "it was not closed: the log at offset %llu is to be replayed, and may change what was not checked: "
		    "the block allocation table",
		    (unsigned long long)v->header.log_at);
	return NULL;
}

struct error *vhdx_check(struct image *image, struct disk_check *check)
{
	struct front f = {};
	struct error *err = check_with(image, check, &f);

	free(f.pages);
	return err;
}

static struct error *mend_with(struct image *image, struct front *f)
{
	TRY(read_front(image, f));
	if (!f->identifier) {
		memcpy(f->pages, identifier, IDENTIFIER_BYTES);
		return write_at(image, f->pages, 4096, 0, "the file identifier");
	}
	/* What else is wrong was reported. */
	cleanup_error struct error *err = image->format->open(image);
	if (err)
		return NULL;
	struct vhdx *v = image->state;
	if (f->header[0] != f->header[1])
		TRY(vhdx_write_headers(v));
	TRY(vhdx_mend_regions(v));
	return has_log(v) ? vhdx_replay(v) : scan(image, f, NULL);
}

struct error *vhdx_mend(struct image *image, struct disk_check *check)
{
	struct front f = {};

	(void)check;
	struct error *err = mend_with(image, &f);
	free(f.pages);
	return err;
}
