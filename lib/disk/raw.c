/*
 * Raw: the file is the disk, byte for byte. Holes read as zeroes, a flush is fdatasync, and there is nothing that a
 * crash could leave half done.
 */
#include "disk/internal.h"

#include "base/util.h"

#include <errno.h>

static struct error *raw_open(struct image *image)
{
	TRY(disk_file_size(&image->file, image->name));
	if (image->file.size > DISK_BYTES_MAX)
		return error_new(EFBIG, "%s: %llu bytes are more than the largest disk", image->name,
				 (unsigned long long)image->file.size);
	image->size = image->file.size;
	image->sector = image->file.block_size;
	image->physical = 4096;
	return NULL;
}

static void raw_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e)
{
	(void)image;
	(void)type;
	e->kind = EXTENT_FILE;
	e->offset = offset;
}

static struct error *raw_create(int fd, const struct disk_create *create)
{
	if (create->subformat || create->parent || create->block)
		return error_new(EINVAL, "%s: a raw disk has no subformat, no blocks and no parent", create->name);
	return io_extend(create->io, fd, create->size, create->name);
}

static struct error *raw_resize(struct image *image, uint64_t size)
{
	return io_extend(image->disk->io, image->file.fd, size, image->name);
}

static struct error *raw_check(struct image *image, struct disk_check *check)
{
	struct error *err = NULL;

	check_open(image, check, &err);
	return err;
}

const struct disk_format disk_raw = {
	.name = "raw",
	.open = raw_open,
	.map = raw_map,
	.create = raw_create,
	.resize = raw_resize,
	.check = raw_check,
};
