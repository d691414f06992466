/*
 * glint disk create, snapshot, resize: new images, children of images, larger images. A new file has its name when it
 * is whole.
 */
#include "cli/cli.h"
#include "cli/disk.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- where a parent is --- */

/*
 * The way from the folder of @child to the file @parent, both of which exist; @absolute is the whole path of it. Both
 * are PATH_MAX long.
 */
static struct error *way_to_parent(const char *child, const char *parent, char *way, char *absolute)
{
	cleanup_free char *copy = strdup(child), *folder = copy ? realpath(dirname(copy), NULL) : NULL;
	size_t common = 0, at = 0;

	if (!folder || !realpath(parent, absolute))
		return error_new(errno, "find the way from %s to %s", child, parent);
	/* The last slash up to which both are the same, each with one at its end. */
	for (size_t i = 0;; i++) {
		char a = folder[i] ? folder[i] : '/', b = absolute[i];
		if (a != b)
			break;
		if (a == '/')
			common = i + 1;
		if (!folder[i])
			break;
	}
	way[0] = '\0';
	for (const char *p = folder + MIN(common, strlen(folder)); *p && at < PATH_MAX - 4;
	     p += strcspn(p, "/"), p += *p == '/')
		at += (size_t)snprintf(way + at, PATH_MAX - at, "../");
	if (snprintf(way + at, PATH_MAX - at, "%s", absolute + common) >= (int)(PATH_MAX - at))
		return error_new(ENAMETOOLONG, "find the way from %s to %s", child, parent);
	return NULL;
}

/* Makes the image @path as @create says, on the parent in the file @parent, if that is not NULL. */
static struct error *make(const char *path, const char *parent, const char *pool, struct disk_create *create)
{
	cleanup_opened struct opened o = {};
	cleanup_new_file struct new_file file = {.fd = -1};
	char way[PATH_MAX], absolute[PATH_MAX];

	create->name = path;
	if (parent) {
		TRY(must_be_new(path));
		/* Locked, so that nobody writes to it in this moment. */
		TRY(opened_open(&o, parent, &(struct open_how){.pool = pool, .readonly = true}));
		TRY(way_to_parent(path, parent, way, absolute));
		if (!pool && strncmp(way, "../", 3) == 0)
			return error_hint(
				error_new(EXDEV, "%s: its parent %s does not lie in its folder", path, parent),
				"name with --pool a folder that both lie in");
		create->parent = o.disk;
		create->parent_locator = way;
		create->parent_path = absolute;
	}
	TRY(new_file_begin(&file, path));
	TRY(disk_create(file.fd, create));
	return new_file_commit(&file);
}

/* --- create --- */

struct create_args {
	const char *file, *parent, *pool;
	uint64_t size, block;
	unsigned sector;
	int format, subformat;
};

static struct error *create(void *args, int *status)
{
	const struct create_args *a = args;
	struct disk_create c = {.size = a->size, .block = (uint32_t)a->block, .sector = a->sector};

	(void)status;
	TRY(format_name(a->format, a->file, &c.format));
	c.subformat = subformat_name(a->subformat);
	if (!a->size && !a->parent)
		return error_hint(error_new(EINVAL, "%s: how large it is to be is not said", a->file), "give --size");
	if (a->parent && a->subformat)
		return error_new(EINVAL, "%s: a disk with a parent is neither fixed nor dynamic", a->file);
	return make(a->file, a->parent, a->pool, &c);
}

static const struct option create_options[] = {
	{"file", OPTION_TEXT, offsetof(struct create_args, file), .value = "FILE", .min = 1, .help = "the new image"},
	{"size", OPTION_SIZE, offsetof(struct create_args, size), .min = 512, .max = DISK_BYTES_MAX,
	 .help = "what a guest will see (default: the parent's)"},
	{"format", OPTION_CHOICE, offsetof(struct create_args, format), .choices = format_choices,
	 .help = "of the image (default: by the end of its name)"},
	{"subformat", OPTION_CHOICE, offsetof(struct create_args, subformat), .choices = subformat_choices,
	 .help = "of vhd and vhdx: all its space at once, or as it is written (default: dynamic)"},
	{"block", OPTION_SIZE, offsetof(struct create_args, block), .min = 512 << 10, .max = 256 << 20,
	 .help = "the unit in which it grows (default: vhd 2M, vhdx 32M, with a parent 2M)"},
	{"sector", OPTION_NUMBER, offsetof(struct create_args, sector), .value = "512|4096", .min = 512, .max = 4096,
	 .help = "bytes of a logical sector; 4096 with vhdx only (default: 512, or the parent's)"},
	{"parent", OPTION_TEXT, offsetof(struct create_args, parent), .value = "FILE", .min = 1,
	 .help = "makes a differencing disk, which holds what differs from this one; that must not change any more"},
	{"pool", OPTION_TEXT, offsetof(struct create_args, pool), .value = "DIR", .min = 1,
	 .help = "the folder that the parents may lie in (default: the image's)"},
	{NULL},
};

const struct command disk_create_command = {
	.group = "disk",
	.name = "create",
	.summary = "Makes a new, empty disk image",
	.more = "A file that exists is never overwritten, and what is not whole does not get the name.",
	.options = create_options,
	.words = 1,
	.bytes = sizeof(struct create_args),
	.run = create,
};

/* --- snapshot --- */

struct snapshot_args {
	const char *file, *child, *pool;
	uint64_t block;
};

static struct error *snapshot(void *args, int *status)
{
	const struct snapshot_args *a = args;
	struct disk_create c = {.block = (uint32_t)a->block};
	struct disk_info info;

	(void)status;
	{
		cleanup_opened struct opened o = {};
		TRY(opened_open(&o, a->file, &(struct open_how){.pool = a->pool, .readonly = true, .idle = true}));
		info = o.info;
	}
	if (strcmp(info.format, "vhd") != 0 && strcmp(info.format, "vhdx") != 0)
		return error_hint(error_new(ENOTSUP, "%s: a disk of format %s has no children", a->file, info.format),
				  "convert it to vhdx");
	/* The names in it were the disk's; formats' are for ever. */
	c.format = info.format;
	TRY(make(a->child, a->file, a->pool, &c));
	printf("%s is the disk from now on. %s holds what it was: it must not be written to as long as %s is there.\n",
	       a->child, a->file, a->child);
	return NULL;
}

static const struct option snapshot_options[] = {
	{"file", OPTION_TEXT, offsetof(struct snapshot_args, file), .value = "FILE", .min = 1,
	 .help = "the image, vhd or vhdx, which becomes the parent"},
	{"child", OPTION_TEXT, offsetof(struct snapshot_args, child), .value = "CHILD", .min = 1,
	 .help = "the new image, which holds what differs from it"},
	{"block", OPTION_SIZE, offsetof(struct snapshot_args, block), .min = 512 << 10, .max = 256 << 20,
	 .help = "the unit in which it grows (default: 2M)"},
	{"pool", OPTION_TEXT, offsetof(struct snapshot_args, pool), .value = "DIR", .min = 1,
	 .help = "the folder that both lie in (default: the child's)"},
	{NULL},
};

const struct command disk_snapshot_command = {
	.group = "disk",
	.name = "snapshot",
	.summary = "Makes a differencing child of an image, which is left as it is from then on",
	.more = "The machine is then to be given the child. A parent that is changed nevertheless is noticed and "
		"refused "
		"(vhdx), or its child shows a mixture (vhd, whose parents do not tell).",
	.options = snapshot_options,
	.words = 2,
	.bytes = sizeof(struct snapshot_args),
	.run = snapshot,
};

/* --- resize --- */

struct resize_args {
	const char *file, *format, *pool;
	uint64_t size;
	bool shrink;
};

/* A raw disk loses its end, of which nobody but the person can know that it is not needed. */
static struct error *shrink(const struct resize_args *a, struct opened *o)
{
	struct disk_info info = o->info;

	if (!a->shrink)
		return error_hint(error_new(EINVAL, "%s: from %llu to %llu bytes it would lose what lies behind",
					    a->file, (unsigned long long)info.size, (unsigned long long)a->size),
				  "make the guest's file systems smaller first; then say --shrink");
	if (strcmp(info.format, "raw") != 0)
		return error_hint(
			error_new(ENOTSUP, "%s: disks of format %s cannot be made smaller", a->file, info.format),
			"convert it to raw, make that smaller, and convert it back");
	if (a->size % info.sector)
		return error_new(EINVAL, "%s: %llu bytes are not whole sectors", a->file, (unsigned long long)a->size);
	if (ftruncate(disk_fd(o->disk, 0), (off_t)a->size) < 0 || fsync(disk_fd(o->disk, 0)) < 0)
		return error_new(errno, "%s: make it smaller", a->file);
	return NULL;
}

static struct error *resize(void *args, int *status)
{
	const struct resize_args *a = args;
	cleanup_opened struct opened o = {};

	(void)status;
	TRY(opened_open(&o, a->file, &(struct open_how){.format = a->format, .pool = a->pool}));
	TRY(a->size < o.info.size ? shrink(a, &o) : disk_resize(o.disk, a->size));
	return opened_finish(&o);
}

static const struct option resize_options[] = {
	{"file", OPTION_TEXT, offsetof(struct resize_args, file), .value = "FILE", .min = 1, .help = "the image"},
	{"size", OPTION_SIZE, offsetof(struct resize_args, size), .min = 512, .max = DISK_BYTES_MAX,
	 .help = "what a guest will see"},
	{"shrink", OPTION_FLAG, offsetof(struct resize_args, shrink),
	 .help = "a raw disk may become smaller, and lose what lies behind"},
	{"format", OPTION_TEXT, offsetof(struct resize_args, format), .value = "FORMAT", .min = 1,
	 .help = "what it is (default: what its contents say)"},
	{"pool", OPTION_TEXT, offsetof(struct resize_args, pool), .value = "DIR", .min = 1,
	 .help = "the folder that the image and its parents lie in (default: the image's)"},
	{NULL},
};

const struct command disk_resize_command = {
	.group = "disk",
	.name = "resize",
	.summary = "Makes a disk larger: it reads as zeroes there",
	.more = "A child may be made larger than its parent; a parent must not be made anything.",
	.options = resize_options,
	.words = 2,
	.bytes = sizeof(struct resize_args),
	.run = resize,
};
