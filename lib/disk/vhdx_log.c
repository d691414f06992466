/*
 * The log of a VHDX file [2.3]: a ring of entries, each of them pages of metadata with their places in the file. After
 * a crash the last unbroken sequence of entries is written to these places; see docs/disks.md for what that needs.
 *
 * We write entries so that they never wrap: a sequence stays in one half of the log, and the next one begins in the
 * other half after everything of the first has reached its place. Replay takes any log, of others too. The log is
 * checked wholly before the file is touched.
 */
#include "disk/vhdx.h"

#include "base/cleanup.h"
#include "saved/crc32c.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#define ENTRY_HEADER 64u
#define DESCRIPTOR   32u

/* --- writing --- */

void vhdx_entry_begin(struct vhdx *v, uint8_t *entry, unsigned count, uint32_t tail, uint64_t flushed, uint64_t last)
{
	memset(entry, 0, VHDX_LOG_SECTOR);
	put_letters(entry, "loge");
	put32(entry + 8, VHDX_LOG_SECTOR * (1 + count));
	put32(entry + 12, tail);
	put64(entry + 16, v->log_sequence);
	put32(entry + 24, count);
	memcpy(entry + 32, v->header.log_id, 16);
	put64(entry + 48, flushed);
	put64(entry + 56, last);
}

void vhdx_entry_page(struct vhdx *v, uint8_t *entry, unsigned n, uint64_t at, const uint8_t *page)
{
	uint8_t *descriptor = entry + ENTRY_HEADER + (size_t)n * DESCRIPTOR;
	uint8_t *data = entry + VHDX_LOG_SECTOR * (size_t)(1 + n);

	put_letters(descriptor, "desc");
	memcpy(descriptor + 4, page + 4092, 4);
	memcpy(descriptor + 8, page, 8);
	put64(descriptor + 16, at);
	put64(descriptor + 24, v->log_sequence);
	memcpy(data, page, VHDX_LOG_SECTOR);
	put_letters(data, "data");
	put32(data + 4, (uint32_t)(v->log_sequence >> 32));
	put32(data + 4092, (uint32_t)v->log_sequence);
}

void vhdx_entry_end(uint8_t *entry, unsigned count)
{
	put32(entry + 4, vhdx_checksum(entry, VHDX_LOG_SECTOR * (size_t)(1 + count)));
}

struct error *vhdx_write_headers(struct vhdx *v)
{
	cleanup_free uint8_t *page = aligned_alloc(4096, VHDX_HEADER_BYTES);

	if (!page)
		return error_new(ENOMEM, "%s: write its headers", v->image->name);
	/* The one that is not current first: one of them is always whole. */
	for (unsigned i = 0; i < 2; i++) {
		v->header.sequence++;
		vhdx_header_encode(&v->header, page);
		TRY(error_wrap(io_write(v->image->disk->io, v->image->file.fd, page, VHDX_HEADER_BYTES,
					VHDX_HEADER_AT(v->current ^ 1), "a header"),
			       "%s", v->image->name));
		TRY(error_wrap(io_sync(v->image->disk->io, v->image->file.fd, "a header"), "%s", v->image->name));
		v->current ^= 1;
	}
	return NULL;
}

/* --- replay --- */

/* A whole entry found in the log. */
struct found {
	uint32_t sector, sectors, tail; /* in sectors; where it begins, its length, the sequence's first */
	uint64_t sequence;
};

struct replay {
	struct vhdx *v;
	uint8_t *log; /* twice, so that no entry wraps */
	uint32_t sectors;
	struct found *found;
	uint32_t count;
	uint32_t *at;    /* by sector: 1 + which was found there */
	uint64_t budget; /* bytes to be checksummed: false lengths must not make it take for ever */
};

static uint32_t descriptor_sectors(uint32_t count)
{
	return (uint32_t)((ENTRY_HEADER + (uint64_t)count * DESCRIPTOR + VHDX_LOG_SECTOR - 1) / VHDX_LOG_SECTOR);
}

/* [2.3.1]: every part of an entry carries its sequence number. */
static bool parts_whole(const uint8_t *entry, uint32_t sectors)
{
	uint32_t count = get32(entry + 24), data = 0;
	uint64_t sequence = get64(entry + 16);

	if (count > sectors * (VHDX_LOG_SECTOR / DESCRIPTOR) || descriptor_sectors(count) > sectors)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		const uint8_t *d = entry + ENTRY_HEADER + (size_t)i * DESCRIPTOR;
		if (get64(d + 24) != sequence || !is_aligned(get64(d + 16), VHDX_LOG_SECTOR))
			return false;
		if (memcmp(d, "zero", 4) == 0) {
			if (!is_aligned(get64(d + 8), VHDX_LOG_SECTOR))
				return false;
			continue;
		}
		if (memcmp(d, "desc", 4) != 0 || descriptor_sectors(count) + ++data > sectors)
			return false;
		const uint8_t *s = entry + (size_t)(descriptor_sectors(count) + data - 1) * VHDX_LOG_SECTOR;
		if (memcmp(s, "data", 4) != 0 || get32(s + 4) != (uint32_t)(sequence >> 32) ||
		    get32(s + 4092) != (uint32_t)sequence)
			return false;
	}
	return true;
}

static bool find_entry(struct replay *r, uint32_t sector, struct found *found)
{
	const uint8_t *entry = r->log + (size_t)sector * VHDX_LOG_SECTOR;
	uint32_t bytes = get32(entry + 8), tail = get32(entry + 12);

	if (memcmp(entry, "loge", 4) != 0 || memcmp(entry + 32, r->v->header.log_id, 16) != 0 ||
	    get64(entry + 16) == 0 || bytes == 0 || !is_aligned(bytes | tail, VHDX_LOG_SECTOR) ||
	    bytes / VHDX_LOG_SECTOR > r->sectors || tail / VHDX_LOG_SECTOR >= r->sectors || bytes > r->budget)
		return false;
	r->budget -= bytes;
	*found = (struct found){sector, bytes / VHDX_LOG_SECTOR, tail / VHDX_LOG_SECTOR, get64(entry + 16)};
	return get32(entry + 4) == vhdx_checksum(entry, bytes) && parts_whole(entry, found->sectors);
}

/* Walks from the tail of @head to it. Returns the entries on the way, or 0 when it does not come there. */
static uint32_t sequence_length(const struct replay *r, const struct found *head)
{
	uint32_t sector = head->tail, sectors = 0;
	uint64_t sequence = 0;

	for (uint32_t length = 1; length <= r->count; length++) {
		if (r->at[sector] == 0)
			return 0;
		const struct found *f = &r->found[r->at[sector] - 1];
		sectors += f->sectors;
		if ((sequence && f->sequence != sequence + 1) || sectors > r->sectors)
			return 0;
		if (f == head)
			return length;
		sequence = f->sequence;
		sector = (sector + f->sectors) % r->sectors;
	}
	return 0;
}

/* The head of the active sequence: the newest that is unbroken [2.3.2]. NULL: the log holds nothing. */
static const struct found *active_head(const struct replay *r, uint32_t *length)
{
	const struct found *best = NULL;

	for (uint32_t i = 0; i < r->count; i++) {
		if (best && r->found[i].sequence <= best->sequence)
			continue;
		uint32_t l = sequence_length(r, &r->found[i]);
		if (l > 0) {
			best = &r->found[i];
			*length = l;
		}
	}
	return best;
}

static struct error *check_target(const struct replay *r, uint64_t at, uint64_t len, uint64_t last)
{
	const struct vhdx *v = r->v;

	if (at < VHDX_REGIONS_AT(0) || !range_inside(at, len, last) ||
	    (at < v->header.log_at + v->header.log_bytes && v->header.log_at < at + len))
		return error_new(EINVAL, "%s: the log wants to write %llu bytes at offset %llu, which it must not",
				 v->image->name, (unsigned long long)len, (unsigned long long)at);
	return NULL;
}

/* A hole takes no room, whatever length the log says. */
static struct error *write_zeroes(const struct vhdx *v, uint64_t at, uint64_t len)
{
	struct disk_io *io = v->image->disk->io;

	if (io_fallocate(io, v->image->file.fd, FALLOC_FL_PUNCH_HOLE, at, len) >= 0)
		return NULL;
	return io_zero(io, v->image->file.fd, at, len, "zeroes of the log");
}

/* Checks an entry, or (@write) carries it out. */
static struct error *apply(const struct replay *r, const struct found *f, bool write)
{
	const struct vhdx *v = r->v;
	const uint8_t *entry = r->log + (size_t)f->sector * VHDX_LOG_SECTOR;
	uint32_t count = get32(entry + 24), data = descriptor_sectors(count);
	uint64_t flushed = get64(entry + 48), last = get64(entry + 56);
	cleanup_free uint8_t *page = aligned_alloc(4096, VHDX_LOG_SECTOR);

	if (!page)
		return error_new(ENOMEM, "%s: replay its log", v->image->name);
	if (flushed > v->image->file.size)
		return error_new(EINVAL, "%s: it was %llu bytes long when its log was written, now it is %llu",
				 v->image->name, (unsigned long long)flushed, (unsigned long long)v->image->file.size);
	if (last > VHDX_FILE_MAX)
		return error_new(EINVAL, "%s: its log speaks of a file of %llu bytes", v->image->name,
				 (unsigned long long)last);
	if (write)
		TRY(io_extend(v->image->disk->io, v->image->file.fd, last, "the file"));
	for (uint32_t i = 0; i < count; i++) {
		const uint8_t *d = entry + ENTRY_HEADER + (size_t)i * DESCRIPTOR;
		uint64_t at = get64(d + 16);
		bool zero = memcmp(d, "zero", 4) == 0;
		uint64_t len = zero ? get64(d + 8) : VHDX_LOG_SECTOR;
		if (!write) {
			TRY(check_target(r, at, len, MAX(last, v->image->file.size)));
		} else if (zero) {
			TRY(write_zeroes(v, at, len));
		} else {
			memcpy(page, entry + (size_t)data++ * VHDX_LOG_SECTOR, VHDX_LOG_SECTOR);
			memcpy(page, d + 8, 8);
			memcpy(page + 4092, d + 4, 4);
			TRY(io_write(v->image->disk->io, v->image->file.fd, page, VHDX_LOG_SECTOR, at,
				     "a page of the log"));
		}
	}
	return NULL;
}

static struct error *run(const struct replay *r, const struct found *head, uint32_t length, bool write)
{
	uint32_t sector = head->tail;

	for (uint32_t i = 0; i < length; i++) {
		const struct found *f = &r->found[r->at[sector] - 1];
		TRY(apply(r, f, write));
		sector = (sector + f->sectors) % r->sectors;
	}
	return NULL;
}

static struct error *read_log(struct replay *r)
{
	const struct vhdx *v = r->v;
	size_t bytes = v->header.log_bytes;

	r->sectors = (uint32_t)(bytes / VHDX_LOG_SECTOR);
	r->budget = 16 * bytes + 64 * MIB;
	r->log = aligned_alloc(4096, bytes * 2);
	r->found = calloc(r->sectors, sizeof(*r->found));
	r->at = calloc(r->sectors, sizeof(*r->at));
	if (!r->log || !r->found || !r->at)
		return error_new(ENOMEM, "%s: read its log", v->image->name);
	TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, r->log, bytes, v->header.log_at, "the log"), "%s",
		       v->image->name));
	memcpy(r->log + bytes, r->log, bytes);
	for (uint32_t sector = 0; sector < r->sectors; sector++)
		if (find_entry(r, sector, &r->found[r->count]))
			r->at[sector] = ++r->count;
	return NULL;
}

static struct error *replay(struct replay *r)
{
	struct vhdx *v = r->v;
	uint32_t length = 0;

	TRY(read_log(r));
	const struct found *head = active_head(r, &length);
	if (head) {
		TRY(run(r, head, length, false));
		TRY(error_wrap(run(r, head, length, true), "%s: replay its log", v->image->name));
		TRY(error_wrap(io_sync(v->image->disk->io, v->image->file.fd, "what its log said"), "%s",
			       v->image->name));
	}
	memset(v->header.log_id, 0, sizeof(v->header.log_id));
	vhdx_new_id(v->header.file_id);
	return vhdx_write_headers(v);
}

struct error *vhdx_replay(struct vhdx *v)
{
	struct replay r = {.v = v};
	struct error *err = replay(&r);

	free(r.log);
	free(r.found);
	free(r.at);
	return err;
}
