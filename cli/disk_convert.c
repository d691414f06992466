/*
 * glint disk convert: a disk of one format, with its parents, becomes one of another, without any. Touches both files,
 * and beside the new one two more while it is made:
 *
 *     DST.part    the new image; it becomes DST when it is whole and durable
 *     DST.resume  how much of it is durable, of which source; what --resume goes on from
 *
 * So at no moment is there a DST that is not whole.
 */
#include "cli/cli.h"
#include "cli/copy.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATE_MAX ((size_t)64 << 10)

struct convert_args {
	const char *from, *to, *from_format, *pool;
	int format, subformat;
	uint64_t block;
	unsigned sector;
	bool resume, verify, quiet;
};

struct convert {
	const struct convert_args *args;
	struct disk_create create;
	char *part, *state, *state_new;
	json_t *what; /* what is copied to what: the state without how far */
	uint64_t start;
	struct progress progress;
};

/* --- state --- */

/* The sources' files as they are, and the image to be made. */
static json_t *describe(const struct opened *from, const struct disk_create *c)
{
	json_t *files = json_array();
	struct stat st;

	for (unsigned level = 0; level < disk_depth(from->disk); level++) {
		if (fstat(disk_fd(from->disk, level), &st) < 0)
			continue;
		json_array_append_new(files, json_pack("[I, I, I, I, I]", (json_int_t)st.st_dev, (json_int_t)st.st_ino,
						       (json_int_t)st.st_size, (json_int_t)st.st_mtim.tv_sec,
						       (json_int_t)st.st_mtim.tv_nsec));
	}
	return json_pack("{s:o, s:s, s:s, s:I, s:i, s:i}", "source", files, "format", c->format, "subformat",
			 c->subformat ? c->subformat : "", "size", (json_int_t)c->size, "block", (int)c->block,
			 "sector", (int)c->sector);
}

/* copy.durable: writes the state down. */
static struct error *write_state(void *arg, uint64_t offset)
{
	struct convert *c = arg;
	cleanup_fd int fd = open(c->state_new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	json_t *json = json_pack("{s:O, s:I}", "what", c->what, "done", (json_int_t)offset);
	cleanup_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

	json_decref(json);
	if (fd < 0 || !text)
		return error_new(fd < 0 ? errno : ENOMEM, "write %s", c->state_new);
	TRY(write_all(fd, text, strlen(text), c->state_new));
	if (fsync(fd) < 0 || rename(c->state_new, c->state) < 0)
		return error_new(errno, "write %s", c->state);
	return NULL;
}

/* Where to go on: 0 where nothing is known to be durable. */
static struct error *read_state(struct convert *c)
{
	cleanup_free char *text = NULL;
	json_int_t done = 0;
	size_t len;
	json_t *what = NULL;

	if (access(c->state, F_OK) < 0)
		return NULL;
	TRY(read_file(c->state, STATE_MAX, &text, &len));
	json_t *json = json_nesting(text, len) < 8 ? json_loadb(text, len, 0, NULL) : NULL;
	bool good = json && json_unpack(json, "{s:o, s:I}", "what", &what, "done", &done) == 0 && done >= 0 &&
		    (uint64_t)done <= c->create.size;
	bool same = good && json_equal(what, c->what);
	json_decref(json);
	if (!same)
		return error_hint(error_new(ESTALE,
					    "%s: it was begun from another source, or the source has changed since",
					    c->part),
				  "remove %s and %s, and begin anew without --resume", c->part, c->state);
	c->start = (uint64_t)done;
	return NULL;
}

/* --- the new image --- */

static struct error *make_part(const struct convert *c)
{
	struct stat st;

	if (lstat(c->part, &st) == 0)
		return error_hint(error_new(EEXIST, "make %s", c->part),
				  "a conversion was cut: go on with --resume, or remove that file and %s", c->state);
	/* A state that was left by itself speaks of another file. */
	if (unlink(c->state) == 0)
		TRY(sync_folder(c->state));
	cleanup_fd int fd = open(c->part, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_new(errno, "make %s", c->part);
	struct error *err = disk_create(fd, &c->create);
	if (err)
		unlink(c->part);
	return err;
}

/* Removes what was begun and is of no use, unless it is just being made. */
static struct error *remove_part(const struct convert *c, const struct open_how *how)
{
	cleanup_opened struct opened other = {};
	struct error *err = opened_open(&other, c->part, how);

	if (err && error_errno(err) == EBUSY)
		return err;
	error_free(err);
	return unlink(c->part) < 0 ? error_new(errno, "remove %s", c->part) : NULL;
}

/* Opens what is to be gone on with, or makes it. What a cut left before anything was durable is not gone on with. */
static struct error *open_part(struct convert *c, struct opened *to)
{
	/* A raw disk's contents may look like anything. */
	struct open_how how = {.format = c->create.format, .direct = true};
	struct stat st;

	if (c->args->resume && lstat(c->part, &st) == 0) {
		TRY(read_state(c));
		if (c->start > 0)
			return opened_open(to, c->part, &how);
		TRY(remove_part(c, &how));
	}
	TRY(make_part(c));
	struct error *err = opened_open(to, c->part, &how);
	if (err)
		unlink(c->part);
	return err;
}

static struct error *plan(struct convert *c, const struct opened *from)
{
	const struct convert_args *a = c->args;

	c->create = (struct disk_create){.name = a->to, .block = (uint32_t)a->block, .sector = a->sector};
	TRY(format_name(a->format, a->to, &c->create.format));
	c->create.subformat = subformat_name(a->subformat);
	if (!c->create.sector)
		c->create.sector = strcmp(c->create.format, "vhdx") == 0 ? from->info.sector : 512;
	if (c->create.sector > from->info.sector && from->info.size % c->create.sector)
		return error_new(EINVAL, "%s: its %llu bytes are not whole sectors of %u", a->from,
				 (unsigned long long)from->info.size, c->create.sector);
	c->create.size = from->info.size;
	c->part = path_with(a->to, ".part");
	c->state = path_with(a->to, ".resume");
	c->state_new = path_with(a->to, ".resume.new");
	c->what = describe(from, &c->create);
	return c->part && c->state && c->state_new && c->what ? NULL : error_new(ENOMEM, "convert %s", a->from);
}

/* The copy is durable under its other name: compares it, if that is wished, and gives it its own. */
static struct error *finish(struct convert *c, const struct opened *from)
{
	const struct convert_args *a = c->args;

	if (a->verify) {
		cleanup_opened struct opened to = {};
		TRY(opened_open(&to, c->part, &(struct open_how){.format = c->create.format, .readonly = true}));
		progress_begin(&c->progress, "verify", from->info.size);
		struct error *err = copy_compare(
			&(struct copy){.from = from, .to = &to, .progress = a->quiet ? NULL : &c->progress});
		progress_end(&c->progress);
		TRY(error_hint(err, "the copy stays in %s; look for failing hardware", c->part));
	}
	if (renameat2(AT_FDCWD, c->part, AT_FDCWD, a->to, RENAME_NOREPLACE) < 0)
		return error_hint(error_new(errno, "name the new image %s", a->to), "the copy is whole, in %s",
				  c->part);
	TRY(sync_folder(a->to));
	unlink(c->state);
	return NULL;
}

static struct error *convert(struct convert *c, struct opened *from)
{
	struct opened to;

	TRY(plan(c, from));
	TRY(open_part(c, &to));
	struct copy copy = {
		.from = from,
		.to = &to,
		.start = c->start,
		.durable = write_state,
		.arg = c,
		.progress = c->args->quiet ? NULL : &c->progress,
	};
	progress_begin(&c->progress, "convert", from->info.size);
	struct error *err = copy_disk(&copy);
	progress_end(&c->progress);
	if (err)
		opened_close(&to);
	else
		err = opened_finish(&to);
	if (!err)
		return finish(c, from);
	/* Where nothing is known to be durable there is nothing to go on from. */
	if (access(c->state, F_OK) < 0)
		unlink(c->part);
	else
		err = error_hint(err, "--resume goes on from where it was");
	return err;
}

static struct error *run(void *args, int *status)
{
	const struct convert_args *a = args;
	struct convert c = {.args = a};
	cleanup_opened struct opened from = {};

	(void)status;
	TRY(must_be_new(a->to));
	TRY(opened_open(&from, a->from,
			&(struct open_how){.format = a->from_format, .pool = a->pool, .readonly = true}));
	struct error *err = convert(&c, &from);
	if (c.state_new)
		unlink(c.state_new);
	json_decref(c.what);
	free(c.part);
	free(c.state);
	free(c.state_new);
	return err;
}

static const struct option convert_options[] = {
	{"source", OPTION_TEXT, offsetof(struct convert_args, from), .value = "SRC", .min = 1,
	 .help = "any image that can be read, with its parents"},
	{"target", OPTION_TEXT, offsetof(struct convert_args, to), .value = "DST", .min = 1, .help = "the new image"},
	{"format", OPTION_CHOICE, offsetof(struct convert_args, format), .choices = format_choices,
	 .help = "of the new image (default: by the end of its name)"},
	{"subformat", OPTION_CHOICE, offsetof(struct convert_args, subformat), .choices = subformat_choices,
	 .help = "of vhd and vhdx: all its space at once, or what is needed (default: dynamic)"},
	{"block", OPTION_SIZE, offsetof(struct convert_args, block), .min = 512 << 10, .max = 256 << 20,
	 .help = "the unit in which it grows (default: vhd 2M, vhdx 32M)"},
	{"sector", OPTION_NUMBER, offsetof(struct convert_args, sector), .value = "512|4096", .min = 512, .max = 4096,
	 .help = "bytes of a logical sector of the new image; 4096 with vhdx only (default: 512; vhdx: the source's)"},
	{"resume", OPTION_FLAG, offsetof(struct convert_args, resume), .help = "goes on where a cut one was"},
	{"verify", OPTION_FLAG, offsetof(struct convert_args, verify),
	 .help = "reads both once more and compares them before the new image gets its name"},
	{"quiet", OPTION_FLAG, offsetof(struct convert_args, quiet), .help = "no progress on a terminal"},
	{"source-format", OPTION_TEXT, offsetof(struct convert_args, from_format), .value = "FORMAT", .min = 1,
	 .help = "what the source is (default: what its contents say)"},
	{"pool", OPTION_TEXT, offsetof(struct convert_args, pool), .value = "DIR", .min = 1,
	 .help = "the folder that the source and its parents lie in (default: the source's)"},
	{NULL},
};

const struct command disk_convert_command = {
	.group = "disk",
	.name = "convert",
	.summary = "Copies a disk into a new image of any format, holes and zeroes left out",
	.more = "While it is made the new image is DST.part, with DST.resume beside it: a cut leaves these, and never "
		"a "
		"DST that is not whole. When it has its name it is durable.",
	.options = convert_options,
	.words = 2,
	.bytes = sizeof(struct convert_args),
	.run = run,
};
