/*
 * glint disk compact: an image is made anew without what is zero or was trimmed. Touches the image and, beside it,
 * FILE.compact, the new one, which takes the image's name when it is whole and durable. A cut leaves the image as it
 * was and perhaps that file, which the next run begins anew.
 */
#include "cli/cli.h"
#include "cli/copy.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Headers, tables, a log. */
#define META_BYTES ((uint64_t)4 << 20)

struct compact_args {
	const char *file, *format, *pool;
	bool json, quiet;
};

struct compact {
	const struct compact_args *args;
	struct opened image;
	char *path; /* of the image itself: a link stays one */
	char *part;
	struct stat st; /* of the image, as it was */
	char locator[PATH_MAX], absolute[PATH_MAX];
	struct disk_create create;
};

/* The parent as the image knows it. */
static struct error *find_parent(struct compact *c, struct opened *chain)
{
	struct disk_info parent;
	char self[64];

	TRY(opened_open(
		chain, c->path,
		&(struct open_how){.format = c->args->format, .pool = c->args->pool, .readonly = true, .idle = true}));
	disk_info(chain->disk, 1, &parent);
	snprintf(c->locator, sizeof(c->locator), "%s", parent.name);
	snprintf(self, sizeof(self), "/proc/self/fd/%d", disk_fd(chain->disk, 1));
	ssize_t len = readlink(self, c->absolute, sizeof(c->absolute) - 1);
	if (len < 0)
		return error_new(errno, "find the parent of %s", c->path);
	c->absolute[len] = '\0';
	c->create.parent_locator = c->locator;
	c->create.parent_path = c->absolute;
	return NULL;
}

/* What is data now must have room once more: that some of it is zeroes shows only when it is read. */
static struct error *check_room(struct compact *c)
{
	uint64_t need = META_BYTES;
	struct disk_range range;
	struct statvfs fs;
	char needs[32], has[32];

	for (uint64_t at = 0; at < c->image.info.size; at += range.len) {
		TRY(disk_map(c->image.disk, at, &range));
		need += range.kind == DISK_DATA ? range.len : 0;
	}
	if (fstatvfs(disk_fd(c->image.disk, 0), &fs) < 0)
		return error_new(errno, "look at the file system of %s", c->path);
	uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (need <= room)
		return NULL;
	return error_hint(error_new(ENOSPC, "compact %s: up to %s are needed beside it, there are %s", c->path,
				    bytes_text(need, needs), bytes_text(room, has)),
			  "make room there, or convert it to another file system");
}

static struct error *open_image(struct compact *c)
{
	TRY(opened_open(&c->image, c->path,
			&(struct open_how){.format = c->args->format, .alone = true, .keep_data_id = true}));
	if (fstat(disk_fd(c->image.disk, 0), &c->st) < 0)
		return error_new(errno, "look at %s", c->path);
	if (!S_ISREG(c->st.st_mode) || c->st.st_nlink > 1)
		return error_hint(error_new(EINVAL,
					    "%s: it is no file, or has other names, which would stay the old one",
					    c->path),
				  "convert it to a new image");
	const struct disk_info *info = &c->image.info;
	c->create = (struct disk_create){
		.name = c->part,
		.format = info->format,
		.subformat = info->subformat,
		.size = info->size,
		.block = info->subformat && strcmp(info->subformat, "fixed") == 0 && strcmp(info->format, "vhd") == 0
				 ? 0
				 : info->block,
		.sector = info->sector,
		.physical = info->physical,
		.id = info->id,
		.data_id = info->data_id,
	};
	return check_room(c);
}

static struct error *make_part(struct compact *c)
{
	cleanup_opened struct opened chain = {}, parent = {};

	if (c->image.info.parent) {
		TRY(find_parent(c, &chain));
		TRY(opened_open(&parent, c->absolute,
				&(struct open_how){.readonly = true, .alone = true, .idle = true}));
		c->create.parent = parent.disk;
	}
	/* The image is locked: what is there was left by a cut. */
	if (unlink(c->part) < 0 && errno != ENOENT)
		return error_new(errno, "remove %s", c->part);
	cleanup_fd int fd = open(c->part, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_new(errno, "make %s", c->part);
	if (fchown(fd, c->st.st_uid, c->st.st_gid) < 0 || fchmod(fd, c->st.st_mode & 0777) < 0)
		return error_new(errno, "give %s the owner of %s", c->part, c->path);
	return disk_create(fd, &c->create);
}

static struct error *fill_part(const struct compact *c)
{
	cleanup_opened struct opened to = {};
	struct progress progress;

	TRY(opened_open(
		&to, c->part,
		&(struct open_how){.format = c->create.format, .alone = true, .keep_data_id = true, .direct = true}));
	progress_begin(&progress, "compact", c->image.info.size);
	/* In a child zeroes hide what its parents have. */
	struct error *err = copy_disk(&(struct copy){.from = &c->image,
						     .to = &to,
						     .over = c->image.info.parent,
						     .progress = c->args->quiet ? NULL : &progress});
	progress_end(&progress);
	TRY(err);
	return opened_finish(&to);
}

static struct error *replace(const struct compact *c)
{
	struct stat now;

	if (stat(c->path, &now) < 0 || now.st_dev != c->st.st_dev || now.st_ino != c->st.st_ino)
		return error_new(ESTALE, "%s: it was replaced meanwhile", c->path);
	if (rename(c->part, c->path) < 0)
		return error_new(errno, "give %s the name %s", c->part, c->path);
	return sync_folder(c->path);
}

static struct error *tell(const struct compact *c)
{
	char before[32], after[32];
	struct stat now;

	if (stat(c->path, &now) < 0)
		return error_new(errno, "look at %s", c->path);
	uint64_t was = (uint64_t)c->st.st_blocks * 512, is = (uint64_t)now.st_blocks * 512;
	if (c->args->json)
		return print_json(json_pack("{s:s, s:I, s:I, s:I, s:I}", "file", c->args->file, "allocated-before",
					    (json_int_t)was, "allocated", (json_int_t)is, "file-size-before",
					    (json_int_t)c->st.st_size, "file-size", (json_int_t)now.st_size));
	printf("%s took %s, and takes %s.\n", c->args->file, bytes_text(was, before), bytes_text(is, after));
	return NULL;
}

static struct error *compact(struct compact *c)
{
	c->path = realpath(c->args->file, NULL);
	if (!c->path)
		return error_new(errno, "open %s", c->args->file);
	c->part = path_with(c->path, ".compact");
	if (!c->part)
		return error_new(ENOMEM, "compact %s", c->path);
	TRY(open_image(c));
	struct error *err = make_part(c);
	if (!err)
		err = fill_part(c);
	if (!err)
		err = replace(c);
	if (!err)
		return tell(c);
	unlink(c->part);
	return error_hint(err, "%s is as it was", c->path);
}

static struct error *run(void *args, int *status)
{
	cleanup_free struct compact *c = calloc(1, sizeof(*c));

	(void)status;
	if (!c)
		return error_new(ENOMEM, "compact");
	c->args = args;
	struct error *err = compact(c);
	opened_close(&c->image);
	free(c->path);
	free(c->part);
	return err;
}

static const struct option compact_options[] = {
	{"file", OPTION_TEXT, offsetof(struct compact_args, file), .value = "FILE", .min = 1, .help = "the image"},
	{"json", OPTION_FLAG, offsetof(struct compact_args, json), .help = "for programs"},
	{"quiet", OPTION_FLAG, offsetof(struct compact_args, quiet), .help = "no progress on a terminal"},
	{"format", OPTION_TEXT, offsetof(struct compact_args, format), .value = "FORMAT", .min = 1,
	 .help = "what it is (default: what its contents say)"},
	{"pool", OPTION_TEXT, offsetof(struct compact_args, pool), .value = "DIR", .min = 1,
	 .help = "the folder that the image and its parents lie in (default: the image's)"},
	{NULL},
};

const struct command disk_compact_command = {
	.group = "disk",
	.name = "compact",
	.summary = "Gives back the space of blocks that are zero or were trimmed",
	.more = "A new image is made beside it, FILE.compact, with its ids and its parent, and takes its name when it "
		"is "
		"whole and durable. After a cut the same command begins anew.",
	.options = compact_options,
	.words = 1,
	.bytes = sizeof(struct compact_args),
	.run = run,
};
