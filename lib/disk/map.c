/*
 * Where the contents of a disk are, for those who copy, show or check it; see disk_map() in disk.h. Reads, by the
 * disk's I/O at once, the pages of maps that are not in memory, and asks the file system for holes.
 */
#include "disk/internal.h"

#include "base/util.h"

#include <errno.h>
#include <unistd.h>

/* A page that was read may have gone before it is looked at. What stays slow is not in the file as it is: compressed.
 */
#define TRIES_MAX 3

/* The image that answers for @offset, and what it answers; the last one's answer where nobody has anything. */
static unsigned look(const struct disk *disk, uint64_t offset, struct extent *e)
{
	unsigned last = disk->depth - 1;

	e->len = disk->image[0]->size - offset;
	for (unsigned level = 0; level <= last; level++) {
		struct image *image = disk->image[level];
		/* A parent may be smaller than its child. */
		if (offset >= image->size)
			break;
		e->len = MIN(e->len, image->size - offset);
		image->format->map(image, DISK_READ, offset, e);
		if (e->kind != EXTENT_PARENT)
			return level;
	}
	e->kind = disk->image[last]->has_parent ? EXTENT_PARENT : EXTENT_ZERO;
	return last;
}

struct load {
	struct disk_request r;
	int res;
};

static void load_done(struct disk_request *r, int res)
{
	((struct load *)r)->res = res;
}

/* Has a sector read, which brings the map's page into memory. */
static struct error *load(struct disk *disk, uint64_t offset)
{
	uint8_t sector[4096] __attribute__((aligned(4096)));
	unsigned files[DISK_CHAIN_MAX];
	struct disk_queue queue = {.disk = disk, .io = disk->io, .files = files};
	uint32_t len = disk->image[0]->sector;
	struct iovec iov = {sector, len};
	struct load l = {.r = {.type = DISK_READ,
			       .offset = align_down(offset, len),
			       .len = len,
			       .iov = &iov,
			       .iov_count = 1,
			       .done = load_done},
			 .res = -EINPROGRESS};

	for (unsigned i = 0; i < disk->depth; i++)
		files[i] = (unsigned)disk->image[i]->file.fd;
	disk_submit(&queue, &l.r);
	return l.res < 0 ? error_new(-l.res, "%s: read its map for offset %llu", disk->name, (unsigned long long)offset)
			 : NULL;
}

/* Cuts the range to what is either a hole of the file or none of it. A file system that cannot tell has no holes. */
static void look_for_holes(const struct image *image, struct disk_range *range)
{
	uint64_t sector = image->sector;
	off_t at = (off_t)range->at, data = lseek(image->file.fd, at, SEEK_DATA);

	if (data < 0 && errno != ENXIO)
		return;
	uint64_t empty = data < 0 ? range->len : align_down((uint64_t)(data - at), sector);
	if (empty > 0) {
		range->kind = DISK_ZERO;
		range->len = MIN(range->len, empty);
		return;
	}
	off_t hole = lseek(image->file.fd, data, SEEK_HOLE);
	if (hole > data)
		range->len = MIN(range->len, align_up((uint64_t)(hole - at), sector));
}

struct error *disk_map(struct disk *disk, uint64_t offset, struct disk_range *range)
{
	struct extent e = {.kind = EXTENT_SLOW};
	unsigned level = 0;

	if (!disk->active || offset >= disk->image[0]->size)
		return error_new(EINVAL, "%s: look where offset %llu is", disk->name, (unsigned long long)offset);
	TRY(disk_usable(disk, "look where its contents are"));
	for (unsigned tries = 0; e.kind == EXTENT_SLOW && tries < TRIES_MAX; tries++) {
		if (tries > 0)
			TRY(load(disk, offset));
		level = look(disk, offset, &e);
	}
	*range = (struct disk_range){
		.kind = e.kind == EXTENT_ZERO     ? DISK_ZERO
			: e.kind == EXTENT_PARENT ? DISK_ABSENT
						  : DISK_DATA,
		.level = level,
		.len = e.len,
		.at = e.kind == EXTENT_FILE ? e.offset : DISK_NO_PLACE,
	};
	if (e.kind == EXTENT_FILE)
		look_for_holes(disk->image[level], range);
	return NULL;
}
