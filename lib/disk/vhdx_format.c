/*
 * The structures of a VHDX file: see vhdx.h. Reads what the file says about itself and believes none of it: each offset
 * and length is held against the file's size, the limits of the format, and the other structures.
 */
#include "disk/vhdx.h"

#include "base/cleanup.h"
#include "saved/crc32c.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#define GUID(a, b, c, ...)                                                                                             \
	{(uint8_t)(a),        (uint8_t)((a) >> 8), (uint8_t)((a) >> 16), (uint8_t)((a) >> 24), (uint8_t)(b),           \
	 (uint8_t)((b) >> 8), (uint8_t)(c),        (uint8_t)((c) >> 8),  __VA_ARGS__}

/* [2.2.3.2] */
const uint8_t vhdx_region_table[16] = GUID(0x2dc27766, 0xf623, 0x4200, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08);
const uint8_t vhdx_region_metadata[16] =
	GUID(0x8b7ca206, 0x4790, 0x4b9a, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e);

/* [2.6.2] */
const uint8_t vhdx_items[ITEM_COUNT][16] = {
	[ITEM_PARAMETERS] = GUID(0xcaa16737, 0xfa36, 0x4d43, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b),
	[ITEM_SIZE] = GUID(0x2fa54224, 0xcd1b, 0x4876, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8),
	[ITEM_ID] = GUID(0xbeca12ab, 0xb2e6, 0x4523, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46),
	[ITEM_SECTOR] = GUID(0x8141bf1d, 0xa96f, 0x4709, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f),
	[ITEM_PHYSICAL] = GUID(0xcda348c7, 0x445d, 0x4471, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56),
	[ITEM_LOCATOR] = GUID(0xa8d35f2d, 0xb30b, 0x454d, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c),
};

/* [2.6.2.6.1] */
const uint8_t vhdx_locator_type[16] = GUID(0xb04aefb7, 0xd19e, 0x4a81, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13);

#define LOCATOR_MAX  (64u << 10)
#define LOCATOR_KEYS 64u

void vhdx_new_id(uint8_t id[16])
{
	/* Cannot fail once the kernel has booted, for so few bytes. */
	while (getrandom(id, 16, 0) != 16)
		;
	id[7] = (uint8_t)(0x40 | (id[7] & 0x0f)); /* RFC 4122: version 4 */
	id[8] = (uint8_t)(0x80 | (id[8] & 0x3f));
}

void vhdx_id_text(const uint8_t id[16], char text[39])
{
	snprintf(text, 39, "{%08X-%04X-%04X-%02X%02X-%02X%02X%02X%02X%02X%02X}", get32(id), get16(id + 4),
		 get16(id + 6), id[8], id[9], id[10], id[11], id[12], id[13], id[14], id[15]);
}

bool vhdx_id_parse(const char *text, uint8_t id[16])
{
	static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	unsigned n = 0;

	for (const char *p = text; *p && n < 32; p++) {
		int digit = *p >= '0' && *p <= '9'   ? *p - '0'
			    : *p >= 'a' && *p <= 'f' ? *p - 'a' + 10
			    : *p >= 'A' && *p <= 'F' ? *p - 'A' + 10
						     : -1;
		if (digit < 0) {
			if (*p != '{' && *p != '-')
				return false;
			continue;
		}
		uint8_t *byte = &id[order[n / 2]];
		*byte = (uint8_t)(n % 2 ? *byte | digit : digit << 4);
		n++;
	}
	return n == 32;
}

uint32_t vhdx_checksum(const uint8_t *p, size_t len)
{
	static const uint8_t zero[4];
	uint32_t crc = crc32c(0, p, 4);

	crc = crc32c(crc, zero, sizeof(zero));
	return crc32c(crc, p + 8, len - 8);
}

/* --- headers [2.2.2] --- */

void vhdx_header_encode(const struct vhdx_header *header, uint8_t *page)
{
	memset(page, 0, VHDX_HEADER_BYTES);
	put_letters(page, "head");
	put64(page + 8, header->sequence);
	memcpy(page + 16, header->file_id, 16);
	memcpy(page + 32, header->data_id, 16);
	memcpy(page + 48, header->log_id, 16);
	put16(page + 66, 1);
	put32(page + 68, header->log_bytes);
	put64(page + 72, header->log_at);
	put32(page + 4, vhdx_checksum(page, VHDX_HEADER_BYTES));
}

bool vhdx_header_decode(const uint8_t *page, struct vhdx_header *header)
{
	if (memcmp(page, "head", 4) != 0 || get32(page + 4) != vhdx_checksum(page, VHDX_HEADER_BYTES))
		return false;
	header->sequence = get64(page + 8);
	memcpy(header->file_id, page + 16, 16);
	memcpy(header->data_id, page + 32, 16);
	memcpy(header->log_id, page + 48, 16);
	header->log_bytes = get32(page + 68);
	header->log_at = get64(page + 72);
	return get16(page + 66) == 1 && get16(page + 64) == 0;
}

static struct error *damaged(const struct vhdx *v, const char *what, uint64_t at)
{
	return error_new(EINVAL, "%s: %s at offset %llu", v->image->name, what, (unsigned long long)at);
}

/* Something that lies in the file, in whole units, clear of its first. */
static bool placed(const struct vhdx *v, uint64_t at, uint64_t len)
{
	return at >= VHDX_UNIT && is_aligned(at | len, VHDX_UNIT) && len > 0 &&
	       range_inside(at, len, v->image->file.size);
}

static struct error *read_headers(struct vhdx *v)
{
	cleanup_free uint8_t *page = aligned_alloc(4096, VHDX_HEADER_BYTES);
	struct vhdx_header header;
	bool found = false;

	if (!page)
		return error_new(ENOMEM, "%s: read its headers", v->image->name);
	if (v->image->file.size < VHDX_UNIT)
		return damaged(v, "the file ends within its headers", v->image->file.size);
	for (unsigned n = 0; n < 2; n++) {
		TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, page, VHDX_HEADER_BYTES,
				       VHDX_HEADER_AT(n), "a header"),
			       "%s", v->image->name));
		if (!vhdx_header_decode(page, &header) || (found && header.sequence <= v->header.sequence))
			continue;
		found = true;
		v->header = header;
		v->current = n;
	}
	if (!found)
		return error_hint(damaged(v, "neither header is whole; they are", VHDX_HEADER_AT(0)),
				  "restore the disk from a backup");
	if (!placed(v, v->header.log_at, v->header.log_bytes))
		return damaged(v, "the header places the log outside the file,", v->header.log_at);
	if (v->header.log_bytes > VHDX_LOG_MAX)
		return damaged(v, "the log is larger than 64 MiB,", v->header.log_at);
	return NULL;
}

/* --- regions [2.2.3] --- */

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

static struct error *take_region(struct vhdx *v, const uint8_t *entry)
{
	uint64_t at = get64(entry + 16);
	uint32_t len = get32(entry + 24);
	uint64_t *known_at, *known_len;

	if (memcmp(entry, vhdx_region_table, 16) == 0) {
		known_at = &v->table_at;
		known_len = &v->table_bytes;
	} else if (memcmp(entry, vhdx_region_metadata, 16) == 0) {
		known_at = &v->metadata_at;
		known_len = &v->metadata_bytes;
	} else if (get32(entry + 28) & 1) {
		return error_new(ENOTSUP, "%s: it needs a kind of region that this version does not know",
				 v->image->name);
	} else {
		return NULL;
	}
	if (*known_len)
		return damaged(v, "a region is named twice, last", at);
	if (!placed(v, at, len))
		return damaged(v, "a region lies outside the file,", at);
	if (overlap(at, len, v->header.log_at, v->header.log_bytes))
		return damaged(v, "a region overlaps the log,", at);
	*known_at = at;
	*known_len = len;
	return NULL;
}

static struct error *take_regions(struct vhdx *v, const uint8_t *table)
{
	uint32_t count = get32(table + 8);

	for (uint32_t i = 0; i < count; i++)
		TRY(take_region(v, table + 16 + (size_t)i * 32));
	if (!v->table_bytes || !v->metadata_bytes)
		return damaged(v, "the region table names no block allocation table or no metadata,",
			       VHDX_REGIONS_AT(0));
	if (overlap(v->table_at, v->table_bytes, v->metadata_at, v->metadata_bytes))
		return damaged(v, "the block allocation table overlaps the metadata,", v->table_at);
	return NULL;
}

bool vhdx_regions_whole(const uint8_t *table)
{
	return memcmp(table, "regi", 4) == 0 && get32(table + 4) == vhdx_checksum(table, VHDX_REGIONS_BYTES) &&
	       get32(table + 8) <= 2047;
}

static struct error *read_regions(struct vhdx *v)
{
	cleanup_free uint8_t *table = aligned_alloc(4096, VHDX_REGIONS_BYTES);

	if (!table)
		return error_new(ENOMEM, "%s: read its regions", v->image->name);
	for (unsigned n = 0; n < 2; n++) {
		TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, table, VHDX_REGIONS_BYTES,
				       VHDX_REGIONS_AT(n), "a region table"),
			       "%s", v->image->name));
		if (vhdx_regions_whole(table))
			return take_regions(v, table);
	}
	return damaged(v, "neither region table is whole; they are", VHDX_REGIONS_AT(0));
}

struct error *vhdx_mend_regions(struct vhdx *v)
{
	struct disk_io *io = v->image->disk->io;
	cleanup_free uint8_t *both = aligned_alloc(4096, 2 * (size_t)VHDX_REGIONS_BYTES);
	int fd = v->image->file.fd;

	if (!both)
		return error_new(ENOMEM, "%s: read its regions", v->image->name);
	TRY(error_wrap(io_read(io, fd, both, 2 * (size_t)VHDX_REGIONS_BYTES, VHDX_REGIONS_AT(0), "the region tables"),
		       "%s", v->image->name));
	unsigned counts = vhdx_regions_whole(both) ? 0 : 1;
	if (memcmp(both, both + VHDX_REGIONS_BYTES, VHDX_REGIONS_BYTES) == 0)
		return NULL;
	vhdx_new_id(v->header.file_id);
	TRY(vhdx_write_headers(v));
	TRY(error_wrap(io_write(io, fd, both + counts * (size_t)VHDX_REGIONS_BYTES, VHDX_REGIONS_BYTES,
				VHDX_REGIONS_AT(counts ^ 1), "a region table"),
		       "%s", v->image->name));
	return error_wrap(io_sync(io, fd, "a region table"), "%s", v->image->name);
}

/* --- metadata [2.6] --- */

struct item {
	uint64_t at; /* in the file */
	uint32_t len;
};

static int item_known(const uint8_t *id)
{
	for (int i = 0; i < ITEM_COUNT; i++)
		if (memcmp(id, vhdx_items[i], 16) == 0)
			return i;
	return -1;
}

static struct error *find_items(struct vhdx *v, struct item items[ITEM_COUNT])
{
	cleanup_free uint8_t *table = aligned_alloc(4096, VHDX_METADATA_TABLE);

	if (!table)
		return error_new(ENOMEM, "%s: read its metadata", v->image->name);
	TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, table, VHDX_METADATA_TABLE, v->metadata_at,
			       "the metadata table"),
		       "%s", v->image->name));
	if (memcmp(table, "metadata", 8) != 0 || get16(table + 10) > 2047)
		return damaged(v, "there is no metadata table", v->metadata_at);
	for (unsigned i = 0; i < get16(table + 10); i++) {
		const uint8_t *entry = table + 32 + (size_t)i * 32;
		uint32_t at = get32(entry + 16), len = get32(entry + 20), flags = get32(entry + 24);
		int item = flags & 1 ? -1 : item_known(entry); /* bit 0: a user's */
		if (item < 0 && flags & 4)
			return error_new(ENOTSUP, "%s: it needs a kind of metadata that this version does not know",
					 v->image->name);
		if (item < 0)
			continue;
		if (at < VHDX_METADATA_TABLE || len == 0 || !range_inside(at, len, v->metadata_bytes) ||
		    items[item].len)
			return damaged(v, "a metadata item lies outside its region, or is there twice,",
				       v->metadata_at + at);
		items[item] = (struct item){v->metadata_at + at, len};
	}
	return NULL;
}

/* Reads one of fixed length. Aligned, for direct I/O: an item may lie across two pages. */
static struct error *read_item(struct vhdx *v, const struct item *item, const char *what, void *to, uint32_t len)
{
	cleanup_free uint8_t *pages = aligned_alloc(4096, 8192);
	uint64_t from = align_down(item->at, 4096);

	if (!pages)
		return error_new(ENOMEM, "%s: read %s", v->image->name, what);
	if (item->len != len)
		return error_new(EINVAL, "%s: %s is missing, or of a wrong length", v->image->name, what);
	TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, pages, item->at + len > from + 4096 ? 8192 : 4096,
			       from, what),
		       "%s", v->image->name));
	memcpy(to, pages + (item->at - from), len);
	return NULL;
}

static bool power_of_two(uint64_t n, uint64_t min, uint64_t max)
{
	return n >= min && n <= max && (n & (n - 1)) == 0;
}

static struct error *read_locator(struct vhdx *v, const struct item *item)
{
	uint8_t id[16];

	if (item->len < 20 || item->len > LOCATOR_MAX)
		return error_new(EINVAL, "%s: its parent locator is missing, or of a wrong length", v->image->name);
	cleanup_free uint8_t *pages = aligned_alloc(4096, LOCATOR_MAX + 8192);
	free(v->locator);
	v->locator = malloc(item->len);
	if (!pages || !v->locator)
		return error_new(ENOMEM, "%s: read its parent locator", v->image->name);
	uint64_t from = align_down(item->at, 4096);
	TRY(error_wrap(io_read(v->image->disk->io, v->image->file.fd, pages,
			       align_up(item->at + item->len, 4096) - from, from, "the parent locator"),
		       "%s", v->image->name));
	memcpy(v->locator, pages + (item->at - from), item->len);
	v->locator_len = item->len;
	if (memcmp(v->locator, vhdx_locator_type, 16) != 0)
		return error_new(ENOTSUP, "%s: its parent locator is of a kind that this version does not know",
				 v->image->name);
	cleanup_free char *linkage = vhdx_locator_value(v, "parent_linkage");
	if (!linkage || !vhdx_id_parse(linkage, id))
		return damaged(v, "the parent locator does not say which contents the parent has,", item->at);
	memcpy(v->image->parent_id, id, 16);
	return NULL;
}

void vhdx_geometry(struct vhdx *v)
{
	const struct image *image = v->image;

	v->shift = (unsigned)__builtin_ctz(image->block);
	v->ratio = (uint32_t)(((uint64_t)1 << 23) * image->sector / image->block); /* [2.5] */
	v->blocks = (image->size + image->block - 1) >> v->shift;
	uint64_t chunks = (v->blocks + v->ratio - 1) / v->ratio;
	v->entries = v->differencing ? chunks * (v->ratio + 1) : v->blocks + (v->blocks - 1) / v->ratio;
}

static struct error *take_numbers(struct vhdx *v, const struct item items[ITEM_COUNT])
{
	struct image *image = v->image;
	uint8_t parameters[8], size[8], sector[4], physical[4];

	TRY(read_item(v, &items[ITEM_PARAMETERS], "the file parameters", parameters, 8));
	TRY(read_item(v, &items[ITEM_SIZE], "the size", size, 8));
	TRY(read_item(v, &items[ITEM_ID], "the disk's id", image->id, 16));
	TRY(read_item(v, &items[ITEM_SECTOR], "the sector size", sector, 4));
	TRY(read_item(v, &items[ITEM_PHYSICAL], "the physical sector size", physical, 4));
	image->block = get32(parameters);
	v->leave_allocated = get32(parameters + 4) & 1;
	v->differencing = get32(parameters + 4) & 2;
	image->size = get64(size);
	image->sector = get32(sector);
	image->physical = get32(physical);
	v->size_at = items[ITEM_SIZE].at;
	if (!power_of_two(image->block, MIB, 256 * MIB))
		return damaged(v, "the block size is not a power of two of 1 to 256 MiB,", items[ITEM_PARAMETERS].at);
	if ((image->sector != 512 && image->sector != 4096) || (image->physical != 512 && image->physical != 4096))
		return damaged(v, "a sector size is neither 512 nor 4096,", items[ITEM_SECTOR].at);
	if (image->size == 0 || image->size > DISK_BYTES_MAX || image->size % image->sector)
		return damaged(v, "the size is zero, over 64 TiB, or not whole sectors,", items[ITEM_SIZE].at);
	return NULL;
}

struct error *vhdx_read(struct vhdx *v)
{
	struct image *image = v->image;
	struct item items[ITEM_COUNT] = {0};

	v->table_bytes = v->metadata_bytes = 0;
	TRY(read_headers(v));
	TRY(read_regions(v));
	TRY(find_items(v, items));
	TRY(take_numbers(v, items));
	vhdx_geometry(v);
	if (v->entries * 8 > v->table_bytes)
		return damaged(v, "the block allocation table is too short for the disk,", v->table_at);
	if (image->file.block_size > image->sector)
		return error_hint(error_new(ENOTSUP,
					    "%s: direct I/O here needs blocks of %u bytes, its sectors have %u",
					    image->name, image->file.block_size, image->sector),
				  "open it without O_DIRECT");
	if (v->differencing)
		TRY(read_locator(v, &items[ITEM_LOCATOR]));
	image->has_parent = v->differencing;
	memcpy(image->data_id, v->header.data_id, 16);
	image->subformat = v->differencing ? "differencing" : v->leave_allocated ? "fixed" : "dynamic";
	return NULL;
}

/* --- parent locators [2.6.2.6] --- */

/* UTF-16 to UTF-8: no more than people need for names of files; NULL for what is not whole. */
static char *utf8_of(const uint8_t *p, unsigned bytes)
{
	char *text = malloc((size_t)bytes * 2 + 1), *to = text;

	for (unsigned i = 0; text && i + 1 < bytes; i += 2) {
		uint32_t c = get16(p + i);
		if (c >= 0xd800 && c < 0xdc00 && i + 3 < bytes && get16(p + i + 2) >> 10 == 0x37) {
			c = 0x10000 + ((c - 0xd800) << 10) + (get16(p + i + 2) - 0xdc00u);
			i += 2;
		}
		if (c == 0 || (c >= 0xd800 && c < 0xe000)) {
			free(text);
			return NULL;
		}
		if (c < 0x80) {
			*to++ = (char)c;
		} else if (c < 0x800) {
			*to++ = (char)(0xc0 | c >> 6);
			*to++ = (char)(0x80 | (c & 0x3f));
		} else {
			if (c < 0x10000) {
				*to++ = (char)(0xe0 | c >> 12);
			} else {
				*to++ = (char)(0xf0 | c >> 18);
				*to++ = (char)(0x80 | (c >> 12 & 0x3f));
			}
			*to++ = (char)(0x80 | (c >> 6 & 0x3f));
			*to++ = (char)(0x80 | (c & 0x3f));
		}
	}
	if (text)
		*to = 0;
	return text;
}

/* Appends UTF-8 as UTF-16; stops at what is not UTF-8. Returns the bytes appended. */
static size_t utf16_of(const char *text, uint8_t *to)
{
	const uint8_t *p = (const uint8_t *)text;
	size_t n = 0;

	while (*p) {
		unsigned more = *p < 0x80 ? 0 : *p >> 5 == 6 ? 1 : *p >> 4 == 14 ? 2 : *p >> 3 == 30 ? 3 : 9;
		if (more == 9)
			break;
		uint32_t c = more == 0 ? *p : *p & (0x3fu >> more);
		for (p++; more > 0 && (*p & 0xc0) == 0x80; more--)
			c = c << 6 | (*p++ & 0x3f);
		if (more > 0)
			break;
		if (c >= 0x10000) {
			put16(to + n, (uint16_t)(0xd800 + ((c - 0x10000) >> 10)));
			n += 2;
			c = 0xdc00 + (c & 0x3ff);
		}
		put16(to + n, (uint16_t)c);
		n += 2;
	}
	return n;
}

char *vhdx_locator_value(const struct vhdx *v, const char *key)
{
	const uint8_t *l = v->locator;
	unsigned count = MIN(get16(l + 18), LOCATOR_KEYS);

	for (unsigned i = 0; i < count && 20 + (size_t)i * 12 + 12 <= v->locator_len; i++) {
		const uint8_t *entry = l + 20 + (size_t)i * 12;
		uint32_t key_at = get32(entry), value_at = get32(entry + 4);
		uint16_t key_len = get16(entry + 8), value_len = get16(entry + 10);
		if (!range_inside(key_at, key_len, v->locator_len) ||
		    !range_inside(value_at, value_len, v->locator_len))
			continue;
		cleanup_free char *name = utf8_of(l + key_at, key_len);
		if (name && strcmp(name, key) == 0)
			return utf8_of(l + value_at, value_len);
	}
	return NULL;
}

uint8_t *vhdx_locator_encode(const char *const pairs[][2], unsigned count, size_t *len)
{
	size_t room = 20 + (size_t)count * 12;

	for (unsigned i = 0; i < count; i++)
		room += 2 * (strlen(pairs[i][0]) + strlen(pairs[i][1]));
	uint8_t *l = calloc(1, room);
	if (!l)
		return NULL;
	memcpy(l, vhdx_locator_type, 16);
	put16(l + 18, (uint16_t)count);
	*len = 20 + (size_t)count * 12;
	for (unsigned i = 0; i < count; i++) {
		uint8_t *entry = l + 20 + (size_t)i * 12;
		size_t key_len = utf16_of(pairs[i][0], l + *len);
		size_t value_len = utf16_of(pairs[i][1], l + *len + key_len);
		put32(entry, (uint32_t)*len);
		put32(entry + 4, (uint32_t)(*len + key_len));
		put16(entry + 8, (uint16_t)key_len);
		put16(entry + 10, (uint16_t)value_len);
		*len += key_len + value_len;
	}
	return l;
}
