/*
 * Making and growing VHDX files. A new file is laid out so:
 *
 *     0      file identifier, headers, region tables
 *     1 MiB  log
 *     2 MiB  metadata
 *     3 MiB  block allocation table, then (fixed) the blocks
 *
 * Growing first makes room in the table, then changes the size. Where the table's region is too short, a longer copy is
 * made at the end of the file; it counts from the moment the first region table names it, and that is whole or not.
 */
#include "disk/vhdx.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define LOG_AT         MIB
#define LOG_BYTES      MIB
#define METADATA_AT    (2 * MIB)
#define METADATA_BYTES MIB
#define TABLE_AT       (3 * MIB)
#define CHUNK_BYTES    (256 * KIB)

struct layout {
	int fd;
	const struct disk_create *create;
	struct image image; /* for geometry */
	struct vhdx v;
	bool fixed;
};

static void encode_regions(uint8_t *table, uint64_t table_at, uint64_t table_bytes, uint64_t metadata_at,
			   uint64_t metadata_bytes)
{
	memset(table, 0, VHDX_REGIONS_BYTES);
	put_letters(table, "regi");
	put32(table + 8, 2);
	memcpy(table + 16, vhdx_region_table, 16);
	put64(table + 32, table_at);
	put32(table + 40, (uint32_t)table_bytes);
	put32(table + 44, 1);
	memcpy(table + 48, vhdx_region_metadata, 16);
	put64(table + 64, metadata_at);
	put32(table + 72, (uint32_t)metadata_bytes);
	put32(table + 76, 1);
	put32(table + 4, vhdx_checksum(table, VHDX_REGIONS_BYTES));
}

/* The first MiB. */
static struct error *write_front(const struct layout *l)
{
	cleanup_free uint8_t *front = aligned_alloc(4096, 320 * KIB);
	static const char creator[] = "Glint " GLINT_VERSION;
	struct vhdx_header header = {.log_bytes = LOG_BYTES, .log_at = LOG_AT};

	if (!front)
		return error_new(ENOMEM, "write the headers");
	memset(front, 0, 320 * KIB);
	put_letters(front, "vhdx");
	put_letters(front + 4, "file");
	for (size_t i = 0; i < sizeof(creator) - 1; i++)
		put16(front + 8 + 2 * i, (uint8_t)creator[i]);
	vhdx_new_id(header.file_id);
	vhdx_new_id(header.data_id);
	if (l->create->data_id)
		memcpy(header.data_id, l->create->data_id, sizeof(header.data_id));
	for (unsigned n = 0; n < 2; n++) {
		header.sequence = n;
		vhdx_header_encode(&header, front + VHDX_HEADER_AT(n));
		encode_regions(front + VHDX_REGIONS_AT(n), TABLE_AT, l->v.table_bytes, METADATA_AT, METADATA_BYTES);
	}
	return io_write(l->create->io, l->fd, front, 320 * KIB, 0, "the headers");
}

struct metadata {
	uint8_t *bytes;
	size_t used;
	unsigned count;
};

static void add_item(struct metadata *m, enum vhdx_item item, const void *value, size_t len)
{
	uint8_t *entry = m->bytes + 32 + (size_t)m->count++ * 32;
	/* [2.6.1.2]: 2 - of the virtual disk, 4 - required. */
	uint32_t flags = item == ITEM_PARAMETERS || item == ITEM_LOCATOR ? 4 : 6;

	memcpy(entry, vhdx_items[item], 16);
	put32(entry + 16, (uint32_t)m->used);
	put32(entry + 20, (uint32_t)len);
	put32(entry + 24, flags);
	memcpy(m->bytes + m->used, value, len);
	m->used += len;
	put16(m->bytes + 10, (uint16_t)m->count);
}

static struct error *add_locator(const struct layout *l, struct metadata *m)
{
	const struct image *parent = l->create->parent->image[0];
	char linkage[39];
	const char *pairs[][2] = {{"parent_linkage", linkage},
				  {"relative_path", l->create->parent_locator},
				  {"absolute_win32_path", l->create->parent_path}};
	size_t len;

	vhdx_id_text(parent->data_id, linkage);
	cleanup_free uint8_t *locator = vhdx_locator_encode(pairs, l->create->parent_path ? 3 : 2, &len);
	if (!locator)
		return error_new(ENOMEM, "write the parent locator");
	if (len > 16 * KIB)
		return error_new(ENAMETOOLONG, "the path of the parent");
	add_item(m, ITEM_LOCATOR, locator, len);
	return NULL;
}

static struct error *write_metadata(const struct layout *l)
{
	cleanup_free uint8_t *bytes = aligned_alloc(4096, 128 * KIB);
	struct metadata m = {.bytes = bytes, .used = VHDX_METADATA_TABLE};
	uint8_t parameters[8], size[8], id[16], sector[4], physical[4];

	if (!bytes)
		return error_new(ENOMEM, "write the metadata");
	memset(bytes, 0, 128 * KIB);
	put_letters(bytes, "meta");
	put_letters(bytes + 4, "data");
	put32(parameters, l->image.block);
	put32(parameters + 4, (l->fixed ? 1u : 0u) | (l->v.differencing ? 2u : 0u));
	put64(size, l->image.size);
	vhdx_new_id(id);
	if (l->create->id)
		memcpy(id, l->create->id, sizeof(id));
	put32(sector, l->image.sector);
	put32(physical, l->image.physical);
	add_item(&m, ITEM_PARAMETERS, parameters, sizeof(parameters));
	add_item(&m, ITEM_SIZE, size, sizeof(size));
	add_item(&m, ITEM_ID, id, sizeof(id));
	add_item(&m, ITEM_SECTOR, sector, sizeof(sector));
	add_item(&m, ITEM_PHYSICAL, physical, sizeof(physical));
	if (l->v.differencing)
		TRY(add_locator(l, &m));
	return io_write(l->create->io, l->fd, bytes, 128 * KIB, METADATA_AT, "the metadata");
}

/* Of a fixed disk: all blocks, one behind the other. */
static struct error *write_table(const struct layout *l)
{
	cleanup_free uint8_t *bytes = aligned_alloc(4096, CHUNK_BYTES);
	uint64_t at = TABLE_AT + l->v.table_bytes;

	if (!bytes)
		return error_new(ENOMEM, "write the block allocation table");
	for (uint64_t first = 0; first < l->v.entries; first += CHUNK_BYTES / 8) {
		memset(bytes, 0, CHUNK_BYTES);
		for (uint64_t n = first; n < MIN(first + CHUNK_BYTES / 8, l->v.entries); n++) {
			if (n % (l->v.ratio + 1) == l->v.ratio)
				continue;
			put64(bytes + (n - first) * 8, at | VHDX_PRESENT);
			at += l->image.block;
		}
		uint64_t len = MIN(CHUNK_BYTES, align_up((l->v.entries - first) * 8, 4096));
		TRY(io_write(l->create->io, l->fd, bytes, len, TABLE_AT + first * 8, "the block allocation table"));
	}
	return NULL;
}

static struct error *check(struct layout *l)
{
	const struct disk_create *c = l->create;
	static const uint8_t no_id[16];

	if (l->image.block < MIB || l->image.block > 256 * MIB || (l->image.block & (l->image.block - 1)))
		return error_hint(error_new(EINVAL, "blocks of %u bytes", l->image.block),
				  "give a power of two from 1M to 256M");
	if ((c->sector != 512 && c->sector != 4096) || (c->physical != 512 && c->physical != 4096))
		return error_new(EINVAL, "sectors of %u bytes, physical ones of %u: they can have 512 or 4096",
				 c->sector, c->physical);
	if (l->v.differencing != (c->parent != NULL) || (c->parent && !c->parent_locator))
		return error_hint(error_new(EINVAL, "a differencing disk, and no other, has a parent"),
				  "give a parent, or another subformat");
	if (c->parent && memcmp(c->parent->image[0]->data_id, no_id, 16) == 0)
		return error_hint(error_new(ENOTSUP, "its parent's format, %s, does not tell when its contents change",
					    c->parent->image[0]->format->name),
				  "convert the parent to vhdx");
	if (c->parent && (c->sector != c->parent->image[0]->sector || c->size < c->parent->image[0]->size))
		return error_new(EINVAL, "its sectors must be those of its parent, and its size not less");
	return NULL;
}

static struct error *make(struct layout *l)
{
	const struct disk_create *c = l->create;
	const char *sub = c->subformat ? c->subformat : c->parent ? "differencing" : "dynamic";

	l->fixed = strcmp(sub, "fixed") == 0;
	l->v.differencing = strcmp(sub, "differencing") == 0;
	if (!l->fixed && !l->v.differencing && strcmp(sub, "dynamic") != 0)
		return error_hint(error_new(EINVAL, "unknown subformat \"%s\"", sub),
				  "use fixed, dynamic or differencing");
	l->v.image = &l->image;
	l->image.size = c->size;
	l->image.sector = c->sector;
	l->image.physical = c->physical;
	l->image.block = c->block ? c->block : (uint32_t)((l->v.differencing ? 2 : 32) * MIB);
	TRY(check(l));
	vhdx_geometry(&l->v);
	l->v.table_bytes = align_up(l->v.entries * 8, MIB);
	uint64_t end = TABLE_AT + l->v.table_bytes;
	TRY(io_extend(c->io, l->fd, end + (l->fixed ? l->v.blocks << l->v.shift : 0), "the file"));
	if (l->fixed)
		TRY(write_table(l));
	TRY(write_metadata(l));
	TRY(write_front(l));
	return io_sync(c->io, l->fd, "the new disk");
}

struct error *vhdx_create(int fd, const struct disk_create *create)
{
	cleanup_free struct layout *l = calloc(1, sizeof(*l));

	if (!l)
		return error_new(ENOMEM, "lay it out");
	l->fd = fd;
	l->create = create;
	return make(l);
}

/* --- growing --- */

static struct error *copy_table(struct vhdx *v, uint64_t at, uint64_t bytes)
{
	struct disk_io *io = v->image->disk->io;
	cleanup_free uint8_t *chunk = aligned_alloc(4096, CHUNK_BYTES);

	if (!chunk)
		return error_new(ENOMEM, "move the block allocation table");
	TRY(io_extend(io, v->image->file.fd, at + bytes, "the file"));
	for (uint64_t done = 0; done < v->table_bytes; done += CHUNK_BYTES) {
		TRY(io_read(io, v->image->file.fd, chunk, CHUNK_BYTES, v->table_at + done,
			    "the block allocation table"));
		TRY(io_write(io, v->image->file.fd, chunk, CHUNK_BYTES, at + done, "the block allocation table"));
	}
	return io_sync(io, v->image->file.fd, "the block allocation table");
}

/* The region tables name the copy. */
static struct error *take_table(struct vhdx *v, uint64_t at, uint64_t bytes)
{
	struct disk_io *io = v->image->disk->io;
	cleanup_free uint8_t *regions = aligned_alloc(4096, VHDX_REGIONS_BYTES);

	if (!regions)
		return error_new(ENOMEM, "move the block allocation table");
	encode_regions(regions, at, bytes, v->metadata_at, v->metadata_bytes);
	for (unsigned n = 0; n < 2; n++) {
		TRY(io_write(io, v->image->file.fd, regions, VHDX_REGIONS_BYTES, VHDX_REGIONS_AT(n), "a region table"));
		TRY(io_sync(io, v->image->file.fd, "a region table"));
	}
	return NULL;
}

static struct error *write_size(struct vhdx *v, uint64_t size)
{
	struct disk_io *io = v->image->disk->io;
	cleanup_free uint8_t *page = aligned_alloc(4096, 8192);
	uint64_t from = align_down(v->size_at, 4096);

	if (!page)
		return error_new(ENOMEM, "write the size");
	TRY(io_read(io, v->image->file.fd, page, 8192, from, "the size"));
	put64(page + (v->size_at - from), size);
	TRY(io_write(io, v->image->file.fd, page, 8192, from, "the size"));
	return io_sync(io, v->image->file.fd, "the size");
}

struct error *vhdx_renew(struct image *image)
{
	struct vhdx *v = image->state;

	TRY(vhdx_settle(v));
	vhdx_new_id(v->header.file_id);
	vhdx_new_id(v->header.data_id);
	TRY(vhdx_write_headers(v));
	memcpy(image->data_id, v->header.data_id, sizeof(image->data_id));
	return NULL;
}

/* Headers with new ids, as nothing else has begun the file. */
static struct error *new_ids(struct vhdx *v)
{
	vhdx_new_id(v->header.file_id);
	vhdx_new_data_id(v);
	return vhdx_write_headers(v);
}

struct error *vhdx_resize(struct image *image, uint64_t size)
{
	struct vhdx *v = image->state;
	struct image larger = *image;
	struct vhdx geometry = {.image = &larger, .differencing = v->differencing};

	larger.size = size;
	vhdx_geometry(&geometry);
	TRY(half_way(image, new_ids(v)));
	if (geometry.entries * 8 > v->table_bytes) {
		uint64_t at = align_up(v->file_end, VHDX_UNIT), bytes = align_up(geometry.entries * 8, MIB);
		TRY(copy_table(v, at, bytes));
		TRY(half_way(image, take_table(v, at, bytes)));
	}
	return half_way(image, write_size(v, size));
}
