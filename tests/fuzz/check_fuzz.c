/*
 * Fuzzing of disk_check(): hostile VHD, VHDX and qcow2 files are checked, repaired, and the repair is taken back.
 * Inputs are files as in image_fuzz.h, tried as they are and resealed.
 *
 * What must not happen, besides what sanitizers see: that a file in which nothing is found wrong cannot be activated;
 * that a repaired file is found to be worse when it is checked again; that a repair which is taken back is not what it
 * was, to the byte.
 */
#include "image_fuzz.h"
#include "image_seal.h"

/* What a repair keeps of one input; it may take space back, and zeroes are kept too where data comes. */
#define KEPT_MAX (512 * MIB)

struct kept {
	uint64_t offset, len;
	struct kept *before;
	uint8_t bytes[];
};

struct check {
	struct disk_check disk; /* first */
	struct kept *kept;
	uint64_t bytes;
	bool changed;
};

static const struct image_fuzz made[] = {
	{.format = "vhd",
	 .seeds = {{"vhd-fixed", "fixed", 0, false},
		   {"vhd-dynamic", "dynamic", 512 * KIB, false},
		   {"vhd-child", "differencing", 512 * KIB, false}}},
	{.format = "vhdx",
	 .seeds = {{"vhdx-fixed", "fixed", 0, false},
		   {"vhdx-dynamic", "dynamic", MIB, false},
		   {"vhdx-log", "dynamic", MIB, true},
		   {"vhdx-child", "differencing", MIB, false}}},
};

static void wrong(const char *what, struct error *err)
{
	log_err("%s%s%s", what, err ? ": " : "", err ? error_text(err) : "");
	abort();
}

static void report(struct disk_check *check, const struct disk_finding *finding)
{
	if (check->errors + check->leaks == 0 && finding->kind != DISK_NOTE)
		wrong("a finding is not counted", NULL);
}

static int keep(struct disk_check *disk, uint64_t offset, const void *before, size_t len)
{
	struct check *c = (struct check *)disk;

	c->changed = true;
	if (len == 0)
		return 0;
	struct kept *kept = c->bytes + len <= KEPT_MAX ? malloc(sizeof(*kept) + len) : NULL;
	if (!kept)
		return -ENOMEM;
	*kept = (struct kept){offset, len, c->kept};
	memcpy(kept->bytes, before, len);
	c->kept = kept;
	c->bytes += len;
	return 0;
}

static struct error *run(struct check *c, int fd, bool repair)
{
	*c = (struct check){.disk = {.name = "image", .repair = repair, .report = report, .keep = keep}};
	return disk_check(fd, &c->disk);
}

/* The file by an open file of its own: locks are its. */
static int again(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int own = open(path, flags | O_CLOEXEC);
	if (own < 0)
		abort();
	return own;
}

/* Nothing was found wrong with it: it is a disk. */
static void activate(int fd)
{
	struct disk_options options = {.name = "image", .readonly = true, .alone = true};
	struct disk *disk = NULL;
	struct error *err = disk_open(&disk, again(fd, O_RDONLY), &options);

	if (!err)
		err = disk_activate(disk);
	if (err)
		wrong("nothing is wrong with it, but it cannot be activated", err);
	disk_close(disk);
}

static void take_back(struct check *c, int fd, const uint8_t *image, size_t size)
{
	static uint8_t now[MIB];

	for (struct kept *kept; (kept = c->kept);) {
		if (pwrite(fd, kept->bytes, kept->len, (off_t)kept->offset) != (ssize_t)kept->len)
			abort();
		c->kept = kept->before;
		free(kept);
	}
	if (!c->changed)
		return;
	if (ftruncate(fd, (off_t)size) < 0)
		abort();
	for (size_t at = 0, len; at < size; at += len) {
		len = MIN(size - at, sizeof(now));
		if (pread(fd, now, len, (off_t)at) != (ssize_t)len || memcmp(now, image + at, len) != 0)
			wrong("a repair that was taken back is not what it was", NULL);
	}
}

static void repair(int fd, const uint8_t *image, size_t size)
{
	struct check first, second;
	int file = again(fd, O_RDWR);
	struct error *err = run(&first, file, true);

	if (!err) {
		err = run(&second, file, false);
		if (err)
			wrong("it cannot be checked after it was repaired", err);
		if (second.disk.errors > first.disk.errors)
			wrong("it is worse than its repair said", NULL);
	}
	close(file);
	if (!err && first.disk.errors == 0)
		activate(fd);
	error_free(err);
	take_back(&first, fd, image, size);
}

static void check(const uint8_t *image, size_t size)
{
	int fd = fuzz_file(image, size), file = again(fd, O_RDONLY);
	struct check c;
	struct error *err = run(&c, file, false);

	close(file);
	if (!err && c.disk.errors == 0)
		activate(fd);
	if (!err)
		repair(fd, image, size);
	error_free(err);
	close(fd);
}

/* False: it has no checksums. */
static bool reseal(uint8_t *image, size_t size)
{
	if (size < 2048 || memcmp(image, "QFI\xfb", 4) == 0)
		return false;
	if (memcmp(image, "vhdxfile", 8) == 0)
		seal_vhdx(image, size);
	else
		seal_vhd(image, size);
	return true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *folder = fuzz_folder(*argc, *argv);

	for (size_t i = 0; i < ARRAY_SIZE(made); i++)
		fuzz_begin(&made[i], folder);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *image = fuzz_room();
	size_t len = fuzz_expand(data, size, image);

	if (len > 0) {
		check(image, len);
		if (reseal(image, len))
			check(image, len);
	}
	munmap(image, FUZZ_FILE_MAX);
	return 0;
}
