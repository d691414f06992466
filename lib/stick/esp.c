/*
 * The host's ESP; see esp.h. Touches the names in the folder and that partition.
 */
#include "stick/esp.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <time.h>

#define BUFFER ((size_t)MIB)

/* How many disks have it; the name of one of them. */
static unsigned look(const char *folder, const char *uuid, char path[ESP_PATH_MAX])
{
	char own[ESP_PATH_MAX];
	unsigned count = 0;

	if (snprintf(own, sizeof(own), "%s/%s", folder, uuid) >= (int)sizeof(own))
		return 0;
	cleanup_dir DIR *dir = opendir(own);
	for (const struct dirent *d; dir && (d = readdir(dir));)
		if (d->d_name[0] != '.' && snprintf(path, ESP_PATH_MAX, "%s/%s", own, d->d_name) < (int)ESP_PATH_MAX)
			count++;
	return count;
}

struct error *esp_find(const char *folder, const char *uuid, unsigned wait_s, char path[ESP_PATH_MAX])
{
	const struct timespec pause = {.tv_nsec = 100 * 1000000};
	unsigned count = look(folder, uuid, path);

	for (unsigned i = 0; count == 0 && i < wait_s * 10; i++) {
		nanosleep(&pause, NULL);
		count = look(folder, uuid, path);
	}
	if (count == 0)
		return error_hint(error_new(ENODEV, "find the stick that this host was booted from"), "put it back");
	if (count > 1)
		return error_hint(error_new(0, "copies of the stick that this host was booted from are there"),
				  "pull all but one");
	return NULL;
}

/* Through the buffer, for what goes past the page cache must be aligned in memory. */
static int esp_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	const struct esp *esp = (const struct esp *)m;

	for (size_t at = 0, n; at < len; at += n) {
		n = MIN(len - at, BUFFER);
		ssize_t got = pread(esp->fd, esp->buffer, n, (off_t)(offset + at));
		if (got != (ssize_t)n)
			return got < 0 ? -errno : -EIO;
		memcpy((uint8_t *)data + at, esp->buffer, n);
	}
	return 0;
}

static int esp_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	const struct esp *esp = (const struct esp *)m;

	for (size_t at = 0, n; at < len; at += n) {
		n = MIN(len - at, BUFFER);
		memcpy(esp->buffer, (const uint8_t *)data + at, n);
		ssize_t put = pwrite(esp->fd, esp->buffer, n, (off_t)(offset + at));
		if (put != (ssize_t)n)
			return put < 0 ? -errno : -EIO;
	}
	return 0;
}

static int esp_flush(const struct blocks *m)
{
	return fdatasync(((const struct esp *)m)->fd) < 0 ? -errno : 0;
}

struct error *esp_open(struct esp *esp, const char *path, bool write)
{
	int flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC;

	*esp = (struct esp){.medium = {esp_read, esp_write, esp_flush, 0, esp->path}, .fd = -1};
	snprintf(esp->path, sizeof(esp->path), "%s", path);
	cleanup_fd int fd = open(path, flags | O_DIRECT);
	if (fd < 0 && errno == EINVAL)
		fd = open(path, flags);
	if (fd < 0)
		return error_new(errno, "open the stick's ESP (%s)", path);
	if (flock(fd, write ? LOCK_EX : LOCK_SH) < 0)
		return error_new(errno, "wait for the stick's ESP (%s)", path);
	int readonly = 0;
	if (write && ioctl(fd, BLKROGET, &readonly) == 0 && readonly)
		return error_hint(error_new(EROFS, "write to the stick's ESP (%s)", path),
				  "some sticks have a switch at their side");
	off_t size = lseek(fd, 0, SEEK_END);
	if (size < 0)
		return error_new(errno, "look at the stick's ESP (%s)", path);
	if (posix_memalign(&esp->buffer, PAGE_BYTES, BUFFER) != 0)
		return error_new(ENOMEM, "open the stick's ESP");
	esp->medium.size = align_down((uint64_t)size, SECTOR);
	esp->fd = steal_fd(&fd);
	return NULL;
}

void esp_close(struct esp *esp)
{
	if (!esp->buffer)
		return;
	close_fd(&esp->fd);
	free(esp->buffer);
	esp->buffer = NULL;
}
