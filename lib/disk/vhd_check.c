/*
 * Checking and repairing VHD files: both footers, dynamic header, table, blocks, space that nothing speaks of. Reads
 * and writes the image's file by the disk's I/O at once.
 *
 * A footer is put right from its copy, and the other way round. The header and the table are there once: what is wrong
 * with them is reported only.
 */
#include "disk/vhd.h"

#include "base/cleanup.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>

#define NO_BLOCK UINT32_MAX

/* Something in the file. */
struct part {
	uint64_t from, to;
	uint32_t block; /* or NO_BLOCK: a header or the like */
};

struct parts {
	struct part *all;
	size_t count;
	uint64_t errors;
};

static int by_place(const void *a, const void *b)
{
	uint64_t x = ((const struct part *)a)->from, y = ((const struct part *)b)->from;

	return (x > y) - (x < y);
}

static void add(struct parts *p, uint64_t from, uint64_t len, uint32_t block)
{
	p->all[p->count++] = (struct part){from, from + len, block};
}

static void bad_block(struct parts *p, struct disk_check *check, const struct vhd *v, const struct part *part,
		      const char *what)
{
	uint64_t entry = v->head.table_offset + part->block * sizeof(uint32_t);

	p->errors++;
	if (check)
		check_found(check, DISK_ERROR, false, "block table", entry,
			    "block %u at offset %llu, said by the table's entry at offset %llu, %s", part->block,
			    (unsigned long long)part->from, (unsigned long long)entry, what);
}

/* Headers, table, names of the parent. */
static void add_structures(const struct image *image, const struct vhd *v, struct parts *p)
{
	const struct vhd_locator *names[] = {&v->head.relative, &v->head.absolute};

	add(p, 0, VHD_FOOTER_BYTES, NO_BLOCK);
	add(p, v->foot.header_offset, VHD_HEADER_BYTES, NO_BLOCK);
	add(p, v->head.table_offset, align_up(v->head.entries * sizeof(uint32_t), VHD_SECTOR), NO_BLOCK);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i]->length > 0 && range_inside(names[i]->offset, names[i]->length, image->file.size))
			add(p, names[i]->offset, names[i]->length, NO_BLOCK);
}

static struct error *add_blocks(const struct image *image, const struct vhd *v, struct parts *p,
				struct disk_check *check)
{
	size_t bytes = v->head.entries * sizeof(uint32_t);
	cleanup_free uint32_t *table = malloc(bytes);
	uint64_t room = vhd_bitmap_bytes(v->head.block_bytes) + (uint64_t)v->head.block_bytes;
	uint64_t limit = image->file.size - (v->end_good ? VHD_FOOTER_BYTES : 0);

	if (!table)
		return error_new(ENOMEM, "%s: check its table", image->name);
	TRY(error_wrap(io_read(image->disk->io, image->file.fd, table, bytes, v->head.table_offset, "the table"), "%s",
		       image->name));
	for (uint32_t i = 0; i < v->head.entries; i++) {
		uint64_t at = (uint64_t)be32toh(table[i]) * VHD_SECTOR;
		if (be32toh(table[i]) == VHD_UNUSED)
			continue;
		if (range_inside(at, room, limit))
			add(p, at, room, i);
		else
			bad_block(p, check, v, &(struct part){at, at + room, i}, "is not in the file");
	}
	return NULL;
}

/* Goes through what is in the file, in its order. @check: where to report; NULL: to give unused space back. */
static void walk(struct image *image, const struct vhd *v, struct parts *p, struct disk_check *check)
{
	uint64_t end = 0, room = vhd_bitmap_bytes(v->head.block_bytes) + (uint64_t)v->head.block_bytes;
	uint64_t limit = image->file.size - (v->end_good ? VHD_FOOTER_BYTES : 0);
	const struct part *last = NULL;

	qsort(p->all, p->count, sizeof(*p->all), by_place);
	for (size_t i = 0; i < p->count; i++) {
		const struct part *part = &p->all[i];
		const struct part *block = part->block != NO_BLOCK ? part : last;
		if (part->from < end && block && block->block != NO_BLOCK)
			bad_block(p, check, v, block, "lies over another block or a header");
		if (!last || part->to > end) {
			end = part->to;
			last = part;
		}
	}
	/* With a wrong table nobody knows what is not in use. What is less than a block is there for alignment, or an
	 * old footer or table. */
	end = 0;
	for (size_t i = 0; i <= p->count && p->errors == 0; i++) {
		uint64_t next = i < p->count ? p->all[i].from : limit;
		if (next > end && next - end >= room)
			check_unused(image, check, end, next, !check);
		if (i < p->count)
			end = MAX(end, p->all[i].to);
	}
}

static struct error *check_blocks(struct image *image, struct disk_check *check, uint64_t *errors)
{
	const struct vhd *v = image->state;
	cleanup_free struct part *all = calloc(v->head.entries + 5ull, sizeof(*all));
	struct parts p = {.all = all};

	if (!all)
		return error_new(ENOMEM, "%s: check its table", image->name);
	add_structures(image, v, &p);
	TRY(add_blocks(image, v, &p, check));
	walk(image, v, &p, check);
	*errors = p.errors;
	return NULL;
}

struct error *vhd_check(struct image *image, struct disk_check *check)
{
	struct error *err;
	uint64_t errors;

	if (!check_open(image, check, &err))
		return err;
	const struct vhd *v = image->state;
	if (!vhd_has_blocks(v))
		return NULL;
	TRY(check_blocks(image, check, &errors));
	if (!v->copy_good)
		check_found(check, DISK_ERROR, true, "footer's copy", 0,
			    "the footer's copy at offset 0 is not whole, the footer is");
	if (!v->end_good)
		check_found(check, DISK_ERROR, errors == 0, "footer", image->file.size - VHD_FOOTER_BYTES,
			    "there is no footer at the end, at offset %llu, that is as its copy",
			    (unsigned long long)image->file.size - VHD_FOOTER_BYTES);
	return NULL;
}

struct error *vhd_mend(struct image *image, struct disk_check *check)
{
	struct vhd *v = image->state;
	uint64_t errors;

	(void)check;
	TRY(check_blocks(image, NULL, &errors));
	/* Activating writes what is missing at both ends. */
	if (errors == 0)
		return image->format->activate(image);
	if (!v->copy_good)
		TRY(io_write(image->disk->io, image->file.fd, v->footer, VHD_FOOTER_BYTES, 0, "the footer's copy"));
	return io_sync(image->disk->io, image->file.fd, "the footer's copy");
}
