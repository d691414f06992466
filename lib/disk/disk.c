/*
 * Disks: opening chains, taking and leaving them; see disk.h. Touches the descriptors it is given and those its opener
 * opens.
 */
#include "disk/internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* In the order in which they are looked for; raw is what is left. */
static const struct disk_format *const formats[] = {&disk_vhdx, &disk_vhd, &disk_qcow2, &disk_raw};

const struct disk_format *disk_format_named(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (strcmp(formats[i]->name, name) == 0)
			return formats[i];
	return NULL;
}

static struct error *unknown_format(const char *disk, const char *format)
{
	return error_hint(error_new(ENOTSUP, "%s: unknown disk format \"%s\"", disk, format),
			  "use raw, vhd, vhdx or qcow2");
}

/* --- images --- */

static void image_free(struct image *image)
{
	if (!image)
		return;
	if (image->format->close)
		image->format->close(image);
	close_fd(&image->file.fd);
	free(image->remark);
	free(image->name);
	free(image);
}

/* Finds the format out. Read-only: reads the first 4096 and the last 512 bytes. */
struct error *disk_find_format(struct image *image)
{
	struct disk_io *io = image->disk->io;
	uint8_t head[4096] __attribute__((aligned(4096))) = {0}, tail[4096] __attribute__((aligned(4096)));
	size_t len = (size_t)MIN(image->file.size, sizeof(head));
	bool has_tail = image->file.size >= 512;
	uint64_t end = has_tail ? align_down(image->file.size - 512, 512) : 0;

	/* Direct I/O takes whole blocks. */
	if (image->file.block_size > 512) {
		len = align_down(len, image->file.block_size);
		has_tail = false;
	}
	TRY(io_read(io, image->file.fd, head, len, 0, "the first block"));
	if (has_tail)
		TRY(io_read(io, image->file.fd, tail, 512, end, "the last block"));
	const struct disk_format *found = NULL;
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (!formats[i]->probe || !formats[i]->probe(head, len, has_tail ? tail : NULL))
			continue;
		if (found)
			return error_hint(error_new(EINVAL, "its ends are of two formats, %s and %s", found->name,
						    formats[i]->name),
					  "say which it is");
		found = formats[i];
	}
	if (found)
		image->format = found;
	return NULL;
}

/* Adds the image in @fd to the end of the chain. @fd becomes the image's, on success. */
static struct error *add_image(struct disk *disk, const char *name, int fd, const char *format)
{
	struct image *image = calloc(1, sizeof(*image));

	if (!image)
		return error_new(ENOMEM, "%s: open it", name);
	image->disk = disk;
	image->format = &disk_raw; /* until known better */
	image->level = disk->depth;
	image->readonly = disk->readonly || disk->depth > 0;
	image->file.fd = -1;
	image->name = strdup(name);
	struct error *err = image->name ? disk_file_probe(&image->file, name, fd, image->readonly)
					: error_new(ENOMEM, "%s: open it", name);
	if (!err && format) {
		const struct disk_format *named = disk_format_named(format);
		if (named)
			image->format = named;
		else
			err = unknown_format(name, format);
	} else if (!err) {
		err = error_wrap(disk_find_format(image), "%s", name);
	}
	if (!err)
		err = image->format->open(image);
	if (err) {
		image->file.fd = -1;
		image_free(image);
		return err;
	}
	disk->image[disk->depth++] = image;
	return NULL;
}

/* --- chains --- */

static struct error *same_file(const struct disk *disk, int fd, const char *name)
{
	struct stat a, b;

	if (fstat(fd, &a) < 0)
		return error_new(errno, "%s: look at it", name);
	for (unsigned i = 0; i < disk->depth; i++)
		if (fstat(disk->image[i]->file.fd, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
			return error_new(ELOOP, "%s: the chain of parents comes back to it", name);
	return NULL;
}

/*
 * The parent must hold what it held when its child was made. Its sectors are the child's: requests go back and forth
 * between the two, and neither may be asked for less than a sector.
 */
static struct error *check_parent(const struct image *child, const struct image *parent)
{
	if (child->sector != parent->sector)
		return error_hint(error_new(EINVAL, "%s: it has sectors of %u bytes, its parent, %s, of %u",
					    child->name, child->sector, parent->name, parent->sector),
				  "convert one of them");
	if (child->parent_unknown || memcmp(child->parent_id, parent->data_id, sizeof(child->parent_id)) == 0)
		return NULL;
	return error_hint(
		error_new(ESTALE, "%s: its parent, %s, has changed since it was made", child->name, parent->name),
		"restore the parent as it was: with this one, the disk would hold a mixture of two");
}

/* Adds the parent of the chain's last image, if it is it. @fd becomes the image's, on success. */
static struct error *add_parent(struct disk *disk, const char *name, int fd, const char *format)
{
	struct image *child = disk->image[disk->depth - 1];

	TRY(same_file(disk, fd, name));
	TRY(add_image(disk, name, fd, format));
	struct image *parent = disk->image[disk->depth - 1];
	struct error *err = check_parent(child, parent);
	if (err) {
		parent->file.fd = -1;
		image_free(parent);
		disk->depth--;
	}
	return err;
}

struct opening {
	struct disk *disk;
	const struct disk_options *options;
};

/* disk_format.parent's @try: what came as a descriptor is the parent by whatever name. */
static struct error *try_parent(void *arg, const char *locator, const char *format)
{
	struct opening *opening = arg;
	struct disk *disk = opening->disk;
	struct opener *opener = opening->options->opener;
	cleanup_fd int fd = -1;

	if (opening->options->parent_count > 0)
		return add_parent(disk, locator, opening->options->parents[disk->depth - 1], format);
	TRY(opener->open(opener, locator, O_RDONLY, &fd));
	TRY(add_parent(disk, locator, fd, format));
	steal_fd(&fd);
	return NULL;
}

static struct error *open_parent(struct disk *disk, struct image *last, const struct disk_options *options)
{
	struct opening opening = {disk, options};

	if (!options->parent_count && !options->opener)
		return error_new(ENOTSUP, "%s: it has a parent, and parents are not allowed here", last->name);
	if (options->parent_count && disk->depth > options->parent_count)
		return error_hint(error_new(ENOENT, "%s: it has a parent, for which no descriptor came", last->name),
				  "pass one for each parent of the chain, the nearest first");
	return error_wrap(last->format->parent(last, try_parent, &opening), "%s: open its parent", last->name);
}

static struct error *open_parents(struct disk *disk, const struct disk_options *options)
{
	for (;;) {
		struct image *last = disk->image[disk->depth - 1];
		if (!last || !last->has_parent || disk->alone)
			break;
		if (disk->depth == DISK_CHAIN_MAX)
			return error_hint(
				error_new(ELOOP, "%s: more than %d images in its chain", disk->name, DISK_CHAIN_MAX),
				"merge some of them");
		TRY(open_parent(disk, last, options));
	}
	if (options->parent_count > disk->depth - 1)
		return error_new(EINVAL, "%s: %u descriptors of parents came: its chain has %u", disk->name,
				 options->parent_count, disk->depth - 1);
	return NULL;
}

struct error *disk_open(struct disk **out, int fd, const struct disk_options *options)
{
	struct disk *disk = calloc(1, sizeof(*disk));

	if (!disk)
		return error_new(ENOMEM, "%s: open it", options->name);
	disk->name = strdup(options->name);
	disk->readonly = options->readonly;
	disk->alone = options->alone;
	disk->keep_data_id = options->keep_data_id;
	disk->io = options->io ? options->io : disk_blocking_io();
	struct error *err = disk->name ? add_image(disk, options->name, fd, options->format)
				       : error_new(ENOMEM, "%s: open it", options->name);
	if (!err)
		err = open_parents(disk, options);
	if (err) {
		/* What came as a descriptor stays the caller's. */
		for (unsigned i = 0; i < disk->depth && i <= options->parent_count; i++)
			disk->image[i]->file.fd = -1;
		disk_close(disk);
		return err;
	}
	*out = disk;
	return NULL;
}

void disk_close(struct disk *disk)
{
	if (!disk)
		return;
	for (unsigned i = 0; i < disk->depth; i++)
		image_free(disk->image[i]);
	free(disk->name);
	free(disk);
}

/* --- taking and leaving --- */

/* Frees what taking the image has made. */
static void release(struct image *image)
{
	if (image->format->deactivate)
		image->format->deactivate(image);
}

static void leave(struct disk *disk, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		release(disk->image[i]);
		disk_file_unlock(&disk->image[i]->file);
	}
}

static struct error *lock(struct disk *disk)
{
	for (unsigned i = 0; i < disk->depth; i++) {
		struct error *err = disk_file_lock(&disk->image[i]->file, disk->image[i]->name);
		if (err) {
			leave(disk, i);
			return err;
		}
	}
	return NULL;
}

/* Reads an image anew: another owner may have written since. Parents first, as children ask for them. */
static struct error *activate_image(struct disk *disk, unsigned level)
{
	struct image *image = disk->image[level];
	bool had_parent = image->has_parent;

	TRY(disk_file_bytes(&image->file, image->name));
	TRY(image->format->open(image));
	if (image->has_parent != had_parent)
		return error_new(ESTALE, "%s: it was replaced since it was opened", image->name);
	if (image->has_parent && !disk->alone)
		TRY(check_parent(image, disk->image[level + 1]));
	return image->format->activate ? image->format->activate(image) : NULL;
}

struct error *disk_activate(struct disk *disk)
{
	if (disk->active)
		return NULL;
	TRY(lock(disk));
	for (unsigned i = disk->depth; i-- > 0;) {
		struct error *err = activate_image(disk, i);
		if (err) {
			leave(disk, disk->depth);
			return err;
		}
	}
	disk->active = true;
	return NULL;
}

static struct error *settle(struct disk *disk)
{
	struct image *top = disk->image[0];

	if (top->readonly)
		return NULL;
	if (top->format->settle)
		return top->format->settle(top);
	return error_wrap(io_sync(disk->io, top->file.fd, "it"), "%s", disk->name);
}

struct error *disk_usable(const struct disk *disk, const char *what)
{
	if (!disk->broken)
		return NULL;
	return error_hint(error_new(EIO, "%s: %s: making it larger failed half-way", disk->name, what),
			  "close it and open it anew: what was flushed is there");
}

struct error *disk_deactivate(struct disk *disk)
{
	if (!disk->active)
		return NULL;
	TRY(disk_usable(disk, "make it durable"));
	TRY(settle(disk));
	disk->active = false;
	leave(disk, disk->depth);
	return NULL;
}

/* --- questions --- */

void disk_info(const struct disk *disk, unsigned level, struct disk_info *info)
{
	const struct image *image = disk->image[level];

	*info = (struct disk_info){
		.format = image->format->name,
		.subformat = image->subformat,
		.name = image->name,
		.remark = image->remark,
		.size = image->size,
		.file_size = image->file.size,
		.sector = image->sector,
		.physical = image->physical,
		.block = image->block,
		.memory_align = image->file.memory_align,
		.parent = image->has_parent,
	};
	memcpy(info->id, image->id, sizeof(info->id));
	memcpy(info->data_id, image->data_id, sizeof(info->data_id));
}

unsigned disk_depth(const struct disk *disk)
{
	return disk->depth;
}

int disk_fd(const struct disk *disk, unsigned level)
{
	return disk->image[level]->file.fd;
}

void disk_track(struct disk *disk, struct disk_tracker *tracker)
{
	atomic_store_explicit(&disk->tracker, tracker, memory_order_release);
}

/* --- making and changing --- */

struct error *disk_create(int fd, const struct disk_create *create)
{
	const struct disk_format *format = disk_format_named(create->format);
	struct disk_create c = *create;
	struct disk_file file;

	if (!format)
		return unknown_format(c.name, c.format);
	if (!format->create)
		return error_new(ENOTSUP, "%s: disks of format %s can only be read", c.name, c.format);
	if (!c.io)
		c.io = disk_blocking_io();
	if (c.parent && c.size == 0)
		c.size = c.parent->image[0]->size;
	if (c.sector == 0)
		c.sector = c.parent ? c.parent->image[0]->sector : 512;
	if (c.physical == 0)
		c.physical = 4096;
	if (c.size == 0 || c.size % c.sector || c.size > DISK_BYTES_MAX)
		return error_hint(error_new(EINVAL, "%s: %llu bytes are no size for a disk of %u-byte sectors", c.name,
					    (unsigned long long)c.size, c.sector),
				  "give a number of whole sectors, at most 64 TiB");
	TRY(disk_file_probe(&file, c.name, fd, false));
	if (file.size > 0)
		return error_hint(error_new(EEXIST, "%s: it is not empty", c.name),
				  "make the disk in a new file: nothing is overwritten");
	return error_wrap(format->create(fd, &c), "make %s", c.name);
}

struct error *disk_resize(struct disk *disk, uint64_t size)
{
	struct image *image = disk->image[0];

	if (!disk->active || disk->readonly)
		return error_new(EROFS, "%s: resize it: it is not active for writing", disk->name);
	if (!image->format->resize)
		return error_new(ENOTSUP, "%s: disks of format %s cannot be resized", disk->name, image->format->name);
	if (size < image->size)
		return error_new(ENOTSUP,
				 "%s: make it smaller: from %llu to %llu bytes: what lies behind would be lost",
				 disk->name, (unsigned long long)image->size, (unsigned long long)size);
	if (size % image->sector || size > DISK_BYTES_MAX)
		return error_hint(error_new(EINVAL,
					    "%s: resize it: %llu bytes are no size for a disk of %u-byte sectors",
					    disk->name, (unsigned long long)size, image->sector),
				  "give a number of whole sectors, at most 64 TiB");
	TRY(disk_usable(disk, "resize it"));
	TRY(error_wrap(settle(disk), "resize %s", disk->name));
	if (size == image->size)
		return NULL;
	struct error *err = error_wrap(image->format->resize(image, size), "resize %s", disk->name);
	if (disk->broken)
		return err;
	/* As after any other owner's change. Where it failed, this clears what the attempt has left behind the disk. */
	release(image);
	struct error *again = half_way(image, activate_image(disk, 0));
	if (!err)
		return error_wrap(again, "resize %s", disk->name);
	error_free(again);
	return err;
}

struct error *disk_renew(struct disk *disk)
{
	struct image *image = disk->image[0];

	if (!disk->active || disk->readonly)
		return error_new(EROFS, "%s: give it a new id: it is not active for writing", disk->name);
	TRY(disk_usable(disk, "give it a new id"));
	return image->format->renew ? image->format->renew(image) : NULL;
}
