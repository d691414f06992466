/*
 * glint disk check: what is wrong with an image, and its repair. Touches the image, and with --repair a new file beside
 * it that holds what the repair changed, as it was:
 *
 *     16 bytes  "glint repair 1\n" and a zero
 *      8 bytes  the size of the image's file
 *     then, as often as something was changed: 8 bytes offset, 8 bytes length, the bytes
 *
 * Numbers are little-endian. A piece is durable before what it is of is changed; --undo writes them back, the last one
 * first. What a cut left half of is not a piece: nothing was changed after it.
 */
#include "cli/cli.h"
#include "cli/disk.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEPT_MAGIC  "glint repair 1\n"
#define KEPT_HEADER 24
#define PIECE_MAX   ((uint64_t)1 << 20)
#define TOLD_MAX    1000 /* findings that are told one by one */

enum { FOUND_ERRORS = 2, FOUND_LEAKS = 3 }; /* as qemu-img check has it */

struct check_args {
	const char *file, *format, *undo;
	bool repair, json;
};

struct found {
	struct disk_finding finding; /* its text is its own */
	unsigned round;
};

struct check {
	struct disk_check disk; /* first */
	const struct check_args *args;
	struct found *found;
	size_t count;
	bool cut; /* there were more */
	uint64_t size;
	char *kept;
	int kept_fd;
};

/* --- what a repair changed --- */

/* FILE.repair-1, or the next number that is free. */
static int begin_kept(struct check *c)
{
	uint8_t header[KEPT_HEADER] = KEPT_MAGIC;
	const uint64_t size = htole64(c->size);

	for (unsigned n = 1; c->kept_fd < 0; n++) {
		free(c->kept);
		if (asprintf(&c->kept, "%s.repair-%u", c->args->file, n) < 0) {
			c->kept = NULL;
			return -ENOMEM;
		}
		c->kept_fd = open(c->kept, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (c->kept_fd < 0 && errno != EEXIST)
			return -errno;
	}
	memcpy(header + 16, &size, sizeof(size));
	cleanup_error struct error *err = write_all(c->kept_fd, header, sizeof(header), c->kept);
	if (!err)
		err = sync_folder(c->kept);
	return err ? -(error_errno(err) ? error_errno(err) : EIO) : 0;
}

/* disk_check.keep */
static int keep(struct disk_check *check, uint64_t offset, const void *before, size_t len)
{
	struct check *c = (struct check *)check;
	const uint64_t piece[2] = {htole64(offset), htole64(len)};

	if (c->kept_fd < 0) {
		int res = begin_kept(c);
		if (res < 0)
			return res;
	}
	if (len == 0)
		return 0;
	cleanup_error struct error *err = write_all(c->kept_fd, piece, sizeof(piece), c->kept);
	if (!err)
		err = write_all(c->kept_fd, before, len, c->kept);
	if (err)
		return -(error_errno(err) ? error_errno(err) : EIO);
	return c->kept_fd < 0 || fdatasync(c->kept_fd) < 0 ? -errno : 0;
}

static struct error *bad_kept(const char *path)
{
	return error_hint(error_new(EINVAL, "%s: it does not hold what a repair changed", path),
			  "name the FILE.repair-N that the repair made");
}

/* Reads the piece at @at; false at the end. */
static bool read_piece(int fd, uint64_t at, uint64_t end, uint64_t size, uint64_t piece[2])
{
	if (end - at < 16 || pread(fd, piece, 16, (off_t)at) != 16)
		return false;
	piece[0] = le64toh(piece[0]);
	piece[1] = le64toh(piece[1]);
	return piece[1] > 0 && piece[1] <= PIECE_MAX && range_inside(piece[0], piece[1], size) &&
	       piece[1] <= end - at - 16;
}

static struct error *write_back(int from, uint64_t at, int to, const uint64_t piece[2], uint8_t *bytes,
				const char *path)
{
	if (pread(from, bytes, piece[1], (off_t)at + 16) != (ssize_t)piece[1] ||
	    pwrite(to, bytes, piece[1], (off_t)piece[0]) != (ssize_t)piece[1])
		return error_new(errno, "write %llu bytes at offset %llu of %s back", (unsigned long long)piece[1],
				 (unsigned long long)piece[0], path);
	return NULL;
}

static struct error *undo_from(const char *path, int from, const char *file, int to)
{
	uint8_t header[KEPT_HEADER];
	uint64_t size, piece[2], room = 0, count = 0;
	cleanup_free uint64_t *places = NULL;
	cleanup_free uint8_t *bytes = malloc(PIECE_MAX);
	struct stat st;

	if (fstat(from, &st) < 0 || !bytes)
		return error_new(bytes ? errno : ENOMEM, "read %s", path);
	if (pread(from, header, sizeof(header), 0) != sizeof(header) ||
	    memcmp(header, KEPT_MAGIC, sizeof(KEPT_MAGIC)) != 0)
		return bad_kept(path);
	memcpy(&size, header + 16, sizeof(size));
	size = le64toh(size);
	for (uint64_t at = KEPT_HEADER; read_piece(from, at, (uint64_t)st.st_size, size, piece); at += 16 + piece[1]) {
		if (count == room) {
			room = room ? room * 2 : 64;
			uint64_t *more = reallocarray(places, room, sizeof(*places));
			if (!more)
				return error_new(ENOMEM, "read %s", path);
			places = more;
		}
		places[count++] = at;
	}
	if (fstat(to, &st) < 0 || (uint64_t)st.st_size < size)
		return error_hint(error_new(EINVAL, "%s is shorter than the image that %s is of", file, path),
				  "name the image that was repaired, as the repair left it");
	while (count-- > 0) {
		if (!read_piece(from, places[count], UINT64_MAX, size, piece))
			return bad_kept(path);
		TRY(write_back(from, places[count], to, piece, bytes, file));
	}
	if (ftruncate(to, (off_t)size) < 0 || fsync(to) < 0)
		return error_new(errno, "make %s as it was", file);
	return NULL;
}

static struct error *undo(const struct check_args *a)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	cleanup_fd int from = open(a->undo, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (from < 0)
		return error_new(errno, "open %s", a->undo);
	cleanup_fd int to = open(a->file, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (to < 0)
		return error_new(errno, "open %s", a->file);
	if (fcntl(to, F_OFD_SETLK, &lock) < 0)
		return error_hint(error_new(errno, "%s: another process uses it", a->file), "stop what uses it");
	TRY(undo_from(a->undo, from, a->file, to));
	printf("%s is as it was before the repair.\n", a->file);
	return NULL;
}

/* --- telling --- */

/* disk_check.report */
static void report(struct disk_check *check, const struct disk_finding *finding)
{
	struct check *c = (struct check *)check;
	size_t first = c->count;

	while (first > 0 && c->found[first - 1].round == check->round)
		first--;
	char *text = c->count - first < TOLD_MAX ? strdup(finding->text) : NULL;
	struct found *more = text ? reallocarray(c->found, c->count + 1, sizeof(*more)) : NULL;
	if (!more) {
		c->cut = true;
		free(text);
		return;
	}
	c->found = more;
	more[c->count] = (struct found){*finding, check->round};
	more[c->count++].finding.text = text;
}

static const char *kind_name(enum disk_finding_kind kind)
{
	return kind == DISK_ERROR ? "error" : kind == DISK_LEAK ? "leak" : "note";
}

/* What an earlier round found and could repair. */
static bool was_repaired(const struct check *c, const struct found *f)
{
	return f->round < c->disk.round && f->finding.mendable;
}

static json_t *list_json(const struct check *c, bool repaired)
{
	json_t *list = json_array();

	for (size_t i = 0; i < c->count; i++) {
		const struct found *f = &c->found[i];
		if (repaired ? !was_repaired(c, f) : f->round != c->disk.round)
			continue;
		json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:s, s:b}", "kind", kind_name(f->finding.kind),
						      "structure", f->finding.structure, "offset",
						      (json_int_t)f->finding.offset, "text", f->finding.text,
						      "repairable", (int)f->finding.mendable));
	}
	return list;
}

static struct error *show_json(const struct check *c)
{
	return print_json(json_pack("{s:s, s:I, s:I, s:o, s:o, s:s?}", "file", c->args->file, "errors",
				    (json_int_t)c->disk.errors, "leaks", (json_int_t)c->disk.leaks, "findings",
				    list_json(c, false), "repaired", list_json(c, true), "kept", c->kept));
}

static void show(const struct check *c)
{
	for (size_t i = 0; i < c->count; i++) {
		const struct found *f = &c->found[i];
		if (was_repaired(c, f))
			printf("repaired: %s\n", f->finding.text);
		else if (f->round == c->disk.round)
			printf("%s: %s%s\n", kind_name(f->finding.kind), f->finding.text,
			       f->finding.mendable ? " (--repair puts it right)" : "");
	}
	if (c->cut)
		puts("... and more.");
	if (c->kept)
		printf("What the repair changed is in %s as it was; --undo %s takes it back.\n", c->kept, c->kept);
	if (c->disk.errors + c->disk.leaks == 0)
		printf("%s: nothing is wrong with it.\n", c->args->file);
	else
		printf("%s: errors: %llu, leaks: %llu.\n", c->args->file, (unsigned long long)c->disk.errors,
		       (unsigned long long)c->disk.leaks);
}

/* --- the command --- */

/* A file whose beginning is destroyed looks raw: then its name says what it is to be. */
static const char *format_of(const struct check_args *a)
{
	const char *named = NULL;
	cleanup_opened struct opened o = {};

	if (a->format)
		return a->format;
	cleanup_error struct error *err =
		opened_open(&o, a->file, &(struct open_how){.readonly = true, .alone = true, .idle = true});
	if (err || strcmp(o.info.format, "raw") != 0)
		return NULL;
	cleanup_error struct error *unknown = format_name(FORMAT_GUESS, a->file, &named);
	return named;
}

static struct error *check(struct check *c)
{
	const struct check_args *a = c->args;
	cleanup_fd int fd = open(a->file, (a->repair ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_new(errno, "open %s", a->file);
	c->size = (uint64_t)st.st_size;
	c->disk = (struct disk_check){
		.name = a->file, .format = format_of(a), .repair = a->repair, .report = report, .keep = keep};
	struct error *err = disk_check(fd, &c->disk);
	if (err && c->kept)
		return error_hint(err, "what was changed before is in %s as it was: --undo takes it back", c->kept);
	return err;
}

static struct error *run(void *args, int *status)
{
	const struct check_args *a = args;
	struct check c = {.args = a, .kept_fd = -1};

	if (a->undo)
		return a->repair ? error_new(EINVAL, "--repair and --undo: one of them") : undo(a);
	struct error *err = check(&c);
	if (!err && a->json)
		err = show_json(&c);
	else if (!err)
		show(&c);
	*status = c.disk.errors ? FOUND_ERRORS : c.disk.leaks ? FOUND_LEAKS : 0;
	for (size_t i = 0; i < c.count; i++)
		free((void *)(uintptr_t)c.found[i].finding.text);
	free(c.found);
	free(c.kept);
	close_fd(&c.kept_fd);
	return err;
}

static const struct option check_options[] = {
	{"file", OPTION_TEXT, offsetof(struct check_args, file), .value = "FILE", .min = 1, .help = "the image"},
	{"repair", OPTION_FLAG, offsetof(struct check_args, repair),
	 .help = "puts right what needs no guess; what it changes is kept in FILE.repair-N as it was"},
	{"undo", OPTION_TEXT, offsetof(struct check_args, undo), .value = "FILE.repair-N", .min = 1,
	 .help = "takes a repair back; the image must be as that left it"},
	{"json", OPTION_FLAG, offsetof(struct check_args, json), .help = "for programs"},
	{"format", OPTION_TEXT, offsetof(struct check_args, format), .value = "FORMAT", .min = 1,
	 .help = "what it is (default: what its contents say, or else the end of its name)"},
	{NULL},
};

const struct command disk_check_command = {
	.group = "disk",
	.name = "check",
	.summary = "Checks every structure of an image, not of its parents, and repairs it",
	.more = "It ends with 0 when nothing is wrong, 1 when the image could not be checked, 2 when it has errors, 3 "
		"when it only takes space that it does not need. After a repair that is about what is left.",
	.options = check_options,
	.words = 1,
	.bytes = sizeof(struct check_args),
	.run = run,
};
