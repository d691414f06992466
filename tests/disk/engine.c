/*
 * The disk engine from the command line, for tests beside other tools.
 *
 *     engine create FILE FORMAT SUBFORMAT SIZE BLOCK [PARENT]   BLOCK 0: the default; PARENT: a path in the same folder
 *     engine info FILE                                          JSON, one object an image
 *     engine do FILE FORMAT MODEL < COMMANDS                    changes the disk; see below
 *     engine dump FILE FORMAT RAW                               writes its contents as a sparse raw file
 *
 * FORMAT may be "any". Commands, one a line: "write OFFSET LENGTH" takes what the file MODEL has there, "zero OFFSET
 * LENGTH", "discard OFFSET LENGTH", "flush", "grow SIZE", "reopen", "crash". Parents are reached in FILE's folder only.
 */
#include "disk/disk.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct opener_dir opener;

static void must_be(struct error *err)
{
	if (!err)
		return;
	log_error(err);
	exit(1);
}

static void must(bool good, const char *what)
{
	if (!good)
		must_be(error_new(errno, "%s", what));
}

static struct disk *open_disk(const char *path, const char *format, bool readonly)
{
	struct disk_options options = {.name = path,
				       .format = strcmp(format, "any") == 0 ? NULL : format,
				       .readonly = readonly,
				       .opener = &opener.opener};
	int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	struct disk *disk;

	must(fd >= 0, path);
	must_be(disk_open(&disk, fd, &options));
	must_be(disk_activate(disk));
	return disk;
}

static void close_disk(struct disk *disk)
{
	must_be(disk_deactivate(disk));
	disk_close(disk);
}

struct at_once {
	struct disk_request r;
	int res;
};

static void at_once_done(struct disk_request *r, int res)
{
	((struct at_once *)r)->res = res;
}

static void request(struct disk *disk, enum disk_request_type type, uint64_t offset, void *data, uint64_t len)
{
	unsigned files[DISK_CHAIN_MAX];
	struct disk_queue queue = {.disk = disk, .io = disk_blocking_io(), .files = files};
	struct iovec iov = {data, len};
	struct at_once a = {
		.r = {.type = type, .offset = offset, .len = len, .iov = &iov, .iov_count = 1, .done = at_once_done}};

	for (unsigned i = 0; i < disk_depth(disk); i++)
		files[i] = (unsigned)disk_fd(disk, i);
	disk_submit(&queue, &a.r);
	if (a.res < 0)
		must_be(error_new(-a.res, "request %d at offset %llu of %llu bytes", type, (unsigned long long)offset,
				  (unsigned long long)len));
}

static void create(char **args, int count)
{
	struct disk_create c = {.name = args[0], .format = args[1], .subformat = strcmp(args[2], "-") ? args[2] : NULL};
	uint64_t block;

	must_be(parse_size(args[3], "size", &c.size));
	must_be(parse_size(args[4], "block", &block));
	c.block = (uint32_t)block;
	c.parent = count > 5 ? open_disk(args[5], args[1], true) : NULL;
	c.parent_locator = count > 5 ? basename(args[5]) : NULL;
	int fd = open(args[0], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	must(fd >= 0, args[0]);
	must_be(disk_create(fd, &c));
	if (c.parent)
		close_disk(c.parent);
}

static void info(char **args)
{
	struct disk *disk = open_disk(args[0], "any", true);
	struct disk_info i;

	printf("[");
	for (unsigned level = 0; level < disk_depth(disk); level++) {
		disk_info(disk, level, &i);
		printf("%s{\"format\": \"%s\", \"subformat\": \"%s\", \"size\": %llu, \"block\": %u, \"remark\": "
		       "\"%s\"}",
		       level ? ", " : "", i.format, i.subformat ? i.subformat : "", (unsigned long long)i.size, i.block,
		       i.remark ? i.remark : "");
	}
	printf("]\n");
	close_disk(disk);
}

static void write_from(struct disk *disk, int model, uint64_t offset, uint64_t len)
{
	cleanup_free uint8_t *data = malloc(len);

	must(data != NULL, "memory");
	must_be(pread_all(model, data, len, (off_t)offset, "the model"));
	request(disk, DISK_WRITE, offset, data, len);
}

static void run(char **args)
{
	struct disk *disk = open_disk(args[0], args[1], false);
	int model = open(args[2], O_RDONLY | O_CLOEXEC);
	unsigned long long offset, len;
	char line[128];

	must(model >= 0, args[2]);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "write %llu %llu", &offset, &len) == 2) {
			write_from(disk, model, offset, len);
		} else if (sscanf(line, "zero %llu %llu", &offset, &len) == 2) {
			request(disk, DISK_WRITE_ZEROES, offset, NULL, len);
		} else if (sscanf(line, "discard %llu %llu", &offset, &len) == 2) {
			request(disk, DISK_DISCARD, offset, NULL, len);
		} else if (sscanf(line, "grow %llu", &len) == 1) {
			must_be(disk_resize(disk, len));
		} else if (strcmp(line, "reopen\n") == 0) {
			close_disk(disk);
			disk = open_disk(args[0], args[1], false);
		} else if (strcmp(line, "crash\n") == 0) {
			_exit(0);
		} else {
			request(disk, DISK_FLUSH, 0, NULL, 0);
		}
	}
	close_disk(disk);
}

static void dump(char **args)
{
	struct disk *disk = open_disk(args[0], args[1], true);
	int raw = open(args[2], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	static uint8_t data[MIB];
	struct disk_info i;

	disk_info(disk, 0, &i);
	must(raw >= 0 && ftruncate(raw, (off_t)i.size) == 0, args[2]);
	for (uint64_t at = 0; at < i.size; at += sizeof(data)) {
		uint64_t len = MIN(i.size - at, sizeof(data));
		request(disk, DISK_READ, at, data, len);
		if (data[0] || memcmp(data, data + 1, len - 1) != 0)
			must_be(pwrite_all(raw, data, len, (off_t)at, args[2]));
	}
	close_disk(disk);
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	char folder[4096];

	if (argc > 2) {
		snprintf(folder, sizeof(folder), "%s", argv[2]);
		opener_dir_init(&opener, open(dirname(folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	}
	if (strcmp(what, "create") == 0 && argc >= 7)
		create(argv + 2, argc - 2);
	else if (strcmp(what, "info") == 0 && argc == 3)
		info(argv + 2);
	else if (strcmp(what, "do") == 0 && argc == 5)
		run(argv + 2);
	else if (strcmp(what, "dump") == 0 && argc == 5)
		dump(argv + 2);
	else
		return 2;
	return 0;
}
