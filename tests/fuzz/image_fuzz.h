/*
 * Fuzzing of disk images: a hostile file is opened, activated, read, written to, flushed, grown and closed.
 *
 * An input is the file with its zeroes left out: pieces, each of a little-endian 32-bit offset in sectors, a 16-bit
 * count of sectors, and the sectors; so a few KiB make an image of megabytes. What stands behind the last piece, less
 * than a sector, is the file's odd tail. Each input is tried as it is and resealed: with its checksums made right,
 * which no mutation gets past by itself. Parents are another disk that is always there.
 *
 * Requests may fail. What must not happen is what sanitizers see, and that something written does not read back.
 *
 * Without inputs in its corpus a target begins with seeds that the engine makes itself, which are written to the first
 * corpus folder of the command line.
 */
#ifndef GLINT_TESTS_FUZZ_IMAGE_FUZZ_H
#define GLINT_TESTS_FUZZ_IMAGE_FUZZ_H

#include "disk/disk.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FUZZ_FILE_MAX  (64 * MIB)
#define FUZZ_DISK_SIZE (3 * MIB)
#define FUZZ_PIECE     6u

struct image_fuzz {
	const char *format;
	/* The engine only reads it: seeds lie in the clone, and the parent is raw. */
	bool readonly;
	void (*reseal)(uint8_t *image, size_t size);
	struct {
		const char *name, *subformat;
		uint32_t block;
		bool crashed; /* flushed, and not closed: it has a log */
	} seeds[4];
};

struct fuzz_opener {
	struct opener opener;
	int fd;
};

static struct error *fuzz_open(struct opener *self, const char *locator, int flags, int *fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", ((struct fuzz_opener *)self)->fd);
	*fd = open(path, flags | O_CLOEXEC);
	return *fd < 0 ? error_new(errno, "open %s", locator) : NULL;
}

static struct fuzz_opener fuzz_parent = {.opener = {fuzz_open}, .fd = -1};

struct fuzz_request {
	struct disk_request r;
	int res;
};

static void fuzz_done(struct disk_request *r, int res)
{
	((struct fuzz_request *)r)->res = res;
}

static int fuzz_do(struct disk *disk, enum disk_request_type type, uint64_t offset, void *data, uint64_t len)
{
	unsigned files[DISK_CHAIN_MAX];
	struct disk_queue queue = {.disk = disk, .io = disk_blocking_io(), .files = files};
	struct iovec iov = {data, len};
	struct fuzz_request f = {
		.r = {.type = type, .offset = offset, .len = len, .iov = &iov, .iov_count = 1, .done = fuzz_done},
		.res = -EINPROGRESS};

	for (unsigned i = 0; i < disk_depth(disk); i++)
		files[i] = (unsigned)disk_fd(disk, i);
	disk_submit(&queue, &f.r);
	if (f.res == -EINPROGRESS)
		abort();
	return f.res;
}

/* Writes, and reads back what was written. */
static void fuzz_use(struct disk *disk, uint64_t offset, uint8_t value)
{
	static uint8_t data[8192], back[8192];

	memset(data, value, sizeof(data));
	fuzz_do(disk, DISK_READ, offset, back, sizeof(back));
	if (fuzz_do(disk, DISK_WRITE, offset, data, sizeof(data)) == 0 &&
	    (fuzz_do(disk, DISK_READ, offset, back, sizeof(back)) != 0 || memcmp(data, back, sizeof(back)) != 0)) {
		log_err("what was written does not read back");
		abort();
	}
	fuzz_do(disk, DISK_WRITE_ZEROES, offset, NULL, 4096);
	fuzz_do(disk, DISK_DISCARD, offset, NULL, sizeof(data));
}

static void fuzz_disk(int fd, const char *format, bool readonly)
{
	struct disk_options options = {
		.name = "image", .format = format, .readonly = readonly, .opener = &fuzz_parent.opener};
	struct disk *disk;
	struct disk_info info;

	struct error *err = disk_open(&disk, fd, &options);
	if (err) {
		error_free(err);
		close(fd);
		return;
	}
	err = disk_activate(disk);
	disk_info(disk, 0, &info);
	if (!err && info.size >= 16384) {
		uint64_t end = align_down(info.size, info.sector) - 8192, middle = align_down(end / 2, 4096);
		const uint64_t at[] = {0, middle, align_down(end, info.sector)};
		for (size_t i = 0; i < ARRAY_SIZE(at); i++)
			fuzz_use(disk, at[i], (uint8_t)(i + 1));
		fuzz_do(disk, DISK_FLUSH, 0, NULL, 0);
		if (info.size < FUZZ_FILE_MAX)
			error_free(disk_resize(disk, align_down(info.size, 4096) + MIB));
	}
	error_free(err);
	error_free(disk_deactivate(disk));
	disk_close(disk);
}

/* Makes the file that the input describes; its size, or 0 when it describes none. */
static size_t fuzz_expand(const uint8_t *data, size_t size, uint8_t *image)
{
	size_t end = 0, at = 0;

	while (size - at >= FUZZ_PIECE + 512) {
		uint32_t sector, count = (uint32_t)(data[at + 4] | data[at + 5] << 8);
		memcpy(&sector, data + at, 4);
		uint64_t len = MIN((uint64_t)count * 512, (size - at - FUZZ_PIECE) / 512 * 512);
		if (!range_inside((uint64_t)sector * 512, len, FUZZ_FILE_MAX))
			return 0;
		memcpy(image + (size_t)sector * 512, data + at + FUZZ_PIECE, len);
		end = MAX(end, (size_t)sector * 512 + len);
		at += FUZZ_PIECE + len;
	}
	return end + (size - at) <= FUZZ_FILE_MAX ? end + (size - at) : 0;
}

/* The other way. Returns the bytes of the input. */
static size_t fuzz_shrink(int fd, size_t size, FILE *to)
{
	uint8_t sector[512];
	static const uint8_t zero[512];

	for (size_t at = 0; at < size; at += 512) {
		uint32_t number = (uint32_t)(at / 512);
		if (pread(fd, sector, 512, (off_t)at) != 512)
			abort();
		if (memcmp(sector, zero, 512) == 0 && at + 512 < size)
			continue;
		fwrite(&number, 4, 1, to);
		fwrite((const uint8_t[]){1, 0}, 2, 1, to);
		fwrite(sector, 512, 1, to);
	}
	return (size_t)ftell(to);
}

static int fuzz_file(const uint8_t *image, size_t size)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		abort();
	for (size_t at = 0, len; at < size; at += len) {
		len = MIN(size - at, (size_t)4096);
		bool zero = image[at] == 0 && memcmp(image + at, image + at + 1, len - 1) == 0;
		if (!zero && pwrite(fd, image + at, len, (off_t)at) != (ssize_t)len)
			abort();
	}
	return fd;
}

/* FUZZ_FILE_MAX bytes of zeroes for fuzz_expand(), to be unmapped. */
static uint8_t *fuzz_room(void)
{
	uint8_t *image = mmap(NULL, FUZZ_FILE_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (image == MAP_FAILED)
		abort();
	return image;
}

static inline int fuzz_one(const struct image_fuzz *fuzz, const uint8_t *data, size_t size)
{
	uint8_t *image = fuzz_room();
	size_t len = fuzz_expand(data, size, image);
	if (len > 0) {
		fuzz_disk(fuzz_file(image, len), fuzz->format, fuzz->readonly || size % 2);
		if (fuzz->reseal) {
			fuzz->reseal(image, len);
			fuzz_disk(fuzz_file(image, len), fuzz->format, false);
		}
	}
	munmap(image, FUZZ_FILE_MAX);
	return 0;
}

static int fuzz_make(const struct image_fuzz *fuzz, size_t seed, struct disk *parent)
{
	int fd = memfd_create("seed", MFD_CLOEXEC);
	struct disk_create create = {.name = "seed",
				     .format = fuzz->readonly ? "raw" : fuzz->format,
				     .subformat = fuzz->seeds[seed].subformat,
				     .size = FUZZ_DISK_SIZE,
				     .block = fuzz->seeds[seed].block};
	bool child = create.subformat && strcmp(create.subformat, "differencing") == 0;

	if (child) {
		create.parent = parent;
		create.parent_locator = "parent";
	}
	struct error *err = disk_create(fd, &create);
	if (err) {
		log_error(err);
		abort();
	}
	return fd;
}

static struct disk *fuzz_open_parent(const struct image_fuzz *fuzz)
{
	struct disk_options options = {.name = "parent", .format = fuzz->format};
	struct disk *disk;
	struct error *err = disk_open(&disk, dup(fuzz_parent.fd), &options);

	if (err) {
		log_error(err);
		abort();
	}
	return disk;
}

/* Writes a seed, with a block in it, into the corpus. */
static void fuzz_seed(const struct image_fuzz *fuzz, size_t seed, const char *folder)
{
	struct disk *parent = fuzz_open_parent(fuzz), *disk;
	struct disk_options options = {.name = "seed", .format = fuzz->format, .opener = &fuzz_parent.opener};
	cleanup_fd int fd = fuzz_make(fuzz, seed, parent);
	uint8_t data[512] = "seed";
	struct stat st;
	char path[4096];

	disk_close(parent);
	struct error *err = disk_open(&disk, dup(fd), &options);
	if (!err)
		err = disk_activate(disk);
	if (err || fuzz_do(disk, DISK_WRITE, MIB, data, sizeof(data)) < 0)
		abort();
	if (fuzz->seeds[seed].crashed && fuzz_do(disk, DISK_FLUSH, 0, NULL, 0) < 0)
		abort();
	if (!fuzz->seeds[seed].crashed)
		error_free(disk_deactivate(disk));
	disk_close(disk);
	snprintf(path, sizeof(path), "%s/%s", folder, fuzz->seeds[seed].name);
	cleanup_file FILE *to = fopen(path, "w");
	if (!to || fstat(fd, &st) < 0)
		abort();
	fuzz_shrink(fd, (size_t)st.st_size, to);
}

static bool is_empty(const char *folder)
{
	cleanup_dir DIR *dir = opendir(folder);
	unsigned count = 0;

	while (dir && readdir(dir))
		count++;
	return dir && count == 2;
}

/* The first corpus folder of the command line that has no inputs, or NULL. */
static const char *fuzz_folder(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (argv[i][0] != '-' && is_empty(argv[i]))
			return argv[i];
	return NULL;
}

/* The parent that is always there; and seeds, where there is a folder for them. */
static int fuzz_begin(const struct image_fuzz *fuzz, const char *folder)
{
	close_fd(&fuzz_parent.fd);
	fuzz_parent.fd = fuzz_make(fuzz, 0, NULL);
	for (size_t i = 0; folder && i < ARRAY_SIZE(fuzz->seeds) && fuzz->seeds[i].name; i++)
		fuzz_seed(fuzz, i, folder);
	return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define IMAGE_FUZZ(fuzz)                                                                                               \
	int LLVMFuzzerInitialize(int *argc, char ***argv)                                                              \
	{                                                                                                              \
		return fuzz_begin(&(fuzz), fuzz_folder(*argc, *argv));                                                 \
	}                                                                                                              \
	int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)                                                   \
	{                                                                                                              \
		return fuzz_one(&(fuzz), data, size);                                                                  \
	}

#endif
