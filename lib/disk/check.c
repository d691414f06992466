/*
 * Checking images; see disk_check() in disk.h. A format's check() looks at the file and reports; its mend() repairs
 * what needs no guess; then everything is checked anew. Touches the one descriptor it is given.
 *
 * A repair does its I/O through a keeper, a disk_io that hands the bytes that are there to the caller before any
 * operation changes them. So also what the engine does by itself - the replay of a log - can be taken back.
 */
#include "disk/internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A repair may bring to light what was hidden: a header before a log, a log before a table. */
#define ROUNDS_MAX 5
#define KEEP_BYTES (64 * KIB)

/* --- the keeper --- */

struct keeper {
	struct disk_io io; /* first */
	struct disk_io *real;
	struct disk_check *check;
	uint64_t size; /* of the file as it was: what lies behind needs no keeping */
	uint8_t bytes[KEEP_BYTES];
};

static bool all_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* @zeroed: zeroes come there, so zeroes that are there do not change. */
static int keep(struct keeper *k, unsigned file, uint64_t offset, uint64_t len, bool zeroed)
{
	uint64_t end = MIN(offset + len, k->size);

	/* The file may only become longer: that too is a change. */
	if (offset >= end && len > 0)
		return k->check->keep(k->check, offset, NULL, 0);
	while (offset < end) {
		ssize_t n = pread((int)file, k->bytes, MIN(end - offset, sizeof(k->bytes)), (off_t)offset);
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		int res = zeroed && all_zero(k->bytes, (size_t)n)
				  ? 0
				  : k->check->keep(k->check, offset, k->bytes, (size_t)n);
		if (res < 0)
			return res;
		offset += (uint64_t)n;
	}
	return 0;
}

static void keeping_readv(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov,
			  unsigned count, uint64_t offset)
{
	struct keeper *k = (struct keeper *)io;

	k->real->readv(k->real, op, file, iov, count, offset);
}

static void keeping_writev(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov,
			   unsigned count, uint64_t offset)
{
	struct keeper *k = (struct keeper *)io;
	uint64_t len = 0;

	for (unsigned i = 0; i < count; i++)
		len += iov[i].iov_len;
	int res = keep(k, file, offset, len, false);
	if (res < 0)
		op->done(op, res);
	else
		k->real->writev(k->real, op, file, iov, count, offset);
}

static void keeping_fdatasync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	struct keeper *k = (struct keeper *)io;

	k->real->fdatasync(k->real, op, file);
}

static void keeping_fallocate(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset,
			      uint64_t len)
{
	struct keeper *k = (struct keeper *)io;
	int res = keep(k, file, offset, len, true);

	if (res < 0)
		op->done(op, res);
	else
		k->real->fallocate(k->real, op, file, mode, offset, len);
}

static void keeping_post(struct disk_io *io, struct disk_op *op)
{
	(void)io;
	op->done(op, 0);
}

/* --- for formats --- */

void check_found(struct disk_check *check, enum disk_finding_kind kind, bool mendable, const char *structure,
		 uint64_t offset, const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	check->errors += kind == DISK_ERROR;
	check->leaks += kind == DISK_LEAK;
	check->mendable += mendable;
	check->report(check, &(struct disk_finding){kind, mendable, structure, offset, text});
}

struct error *check_damage(struct disk_check *check, const char *structure, uint64_t offset, struct error *err)
{
	int errnum = err ? error_errno(err) : 0;

	/* These are the machine's troubles, or this version's limits. */
	if (!err || errnum == EIO || errnum == ENOMEM || errnum == ENOTSUP || errnum == EBADF || errnum == ENOSPC)
		return err;
	check_found(check, DISK_ERROR, false, structure, offset, "%s", error_text(err));
	error_free(err);
	return NULL;
}

bool check_open(struct image *image, struct disk_check *check, struct error **err)
{
	*err = image->format->open(image);
	if (!*err)
		return true;
	*err = check_damage(check, "image", 0, *err);
	return false;
}

void check_unused(struct image *image, struct disk_check *check, uint64_t from, uint64_t to, bool give_back)
{
	struct stat st;

	/* Holes are made of whole blocks of the file system. */
	uint64_t unit = fstat(image->file.fd, &st) == 0 && st.st_blksize > 0 ? (uint64_t)st.st_blksize : 4096;
	off_t data = lseek(image->file.fd, (off_t)((from + unit - 1) / unit * unit), SEEK_DATA);
	if (data < 0 || (uint64_t)data >= to / unit * unit)
		return;
	/* Where no hole can be made, the leak is found again. */
	if (give_back)
		(void)io_fallocate(image->disk->io, image->file.fd, FALLOC_FL_PUNCH_HOLE, from, to - from);
	else
		check_found(check, DISK_LEAK, true, "space", from,
			    "%llu bytes at offset %llu belong to nothing, and take space",
			    (unsigned long long)(to - from), (unsigned long long)from);
}

/* --- rounds --- */

static void forget(struct image *image)
{
	if (image->format->close)
		image->format->close(image);
	free(image->remark);
	image->remark = NULL;
}

static struct error *rounds(struct image *image, struct disk_check *check)
{
	const struct disk_format *format = image->format;
	bool repair = check->repair && format->mend;

	for (check->round = 0;; check->round++) {
		check->errors = check->leaks = check->mendable = 0;
		TRY(disk_file_bytes(&image->file, image->name));
		struct error *err = format->check(image, check);
		bool again = !err && repair && check->mendable > 0 && check->round + 1 < ROUNDS_MAX;
		if (again)
			err = error_wrap(format->mend(image, check), "repair %s", check->name);
		forget(image);
		if (err || !again)
			return err;
	}
}

static struct error *check_format(struct image *image, const struct disk_check *check)
{
	if (!check->format)
		return error_wrap(disk_find_format(image), "%s", check->name);
	image->format = disk_format_named(check->format);
	return image->format
		       ? NULL
		       : error_hint(error_new(ENOTSUP, "%s: unknown disk format \"%s\"", check->name, check->format),
				    "use raw, vhd, vhdx or qcow2");
}

struct error *disk_check(int fd, struct disk_check *check)
{
	static const struct disk_io keeping = {.readv = keeping_readv,
					       .writev = keeping_writev,
					       .fdatasync = keeping_fdatasync,
					       .fallocate = keeping_fallocate,
					       .post = keeping_post};
	cleanup_free struct keeper *keeper = calloc(1, sizeof(*keeper));
	cleanup_free struct disk *disk = calloc(1, sizeof(*disk));
	cleanup_free char *name = strdup(check->name);
	struct image image = {.disk = disk, .format = &disk_raw, .name = name, .readonly = !check->repair};

	if (!keeper || !disk || !name)
		return error_new(ENOMEM, "%s: check it", check->name);
	TRY(disk_file_probe(&image.file, name, fd, image.readonly));
	*keeper = (struct keeper){.io = keeping, .real = disk_blocking_io(), .check = check, .size = image.file.size};
	*disk = (struct disk){.name = name,
			      .readonly = image.readonly,
			      .alone = true,
			      .keep_data_id = true, /* children of it, whose parent is repaired, stay so */
			      .io = check->repair ? &keeper->io : disk_blocking_io(),
			      .depth = 1,
			      .image = {&image}};
	TRY(disk_file_lock(&image.file, name));
	struct error *err = check_format(&image, check);
	/* What cannot be written is checked as it is. */
	if (!err && !image.format->mend)
		image.readonly = disk->readonly = true;
	if (!err)
		err = rounds(&image, check);
	disk_file_unlock(&image.file);
	return err;
}
