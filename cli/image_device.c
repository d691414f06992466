/*
 * Devices that are written to; see image.h. Touches the device, and looks for words about it in /sys, /proc and udev's
 * database.
 *
 * Whether something uses a device or one of its partitions (a mount, swap, LVM, RAID) the kernel knows: it lets only
 * one at a time have it exclusively. That is asked for first, and kept until the end, so that nothing takes it
 * meanwhile.
 */
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LOOK_BYTES MIB /* at each end: where tables and file systems have their marks */

bool is_device(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

/* --- words --- */

struct words {
	char text[2048];
	size_t len;
};

[[gnu::format(printf, 2, 3)]] static void add(struct words *w, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	int n = vsnprintf(w->text + w->len, sizeof(w->text) - w->len, fmt, args);
	va_end(args);
	w->len = MIN(w->len + (size_t)MAX(n, 0), sizeof(w->text) - 1);
}

/* A short text of /sys, without blanks at its end; "" when there is none. */
static const char *attribute(const char *folder, const char *name, char text[128])
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, 127);
	n = MAX(n, (ssize_t)0);
	while (n > 0 && isspace((unsigned char)text[n - 1]))
		n--;
	text[n] = '\0';
	for (ssize_t i = 0; i < n; i++)
		if ((unsigned char)text[i] < 0x20)
			text[i] = ' ';
	return text;
}

/* What udev found on the device "8:1": the value of @key. */
static const char *udev_word(const char *number, const char *key, char text[128])
{
	cleanup_free char *all = NULL;
	char path[64];
	size_t len, key_len = strlen(key);

	text[0] = '\0';
	snprintf(path, sizeof(path), "/run/udev/data/b%.40s", number);
	cleanup_error struct error *err = read_file(path, 64 << 10, &all, &len);
	if (err)
		return text;
	for (char *line = all, *save; (line = strtok_r(line, "\n", &save)); line = NULL)
		if (strncmp(line, "E:", 2) == 0 && strncmp(line + 2, key, key_len) == 0 && line[2 + key_len] == '=')
			snprintf(text, 128, "%.127s", line + 3 + key_len);
	return text;
}

static void add_contents(struct words *w, const char *number)
{
	char type[128], label[128];

	if (!*udev_word(number, "ID_FS_TYPE", type))
		return;
	add(w, " with %s", type);
	if (*udev_word(number, "ID_FS_LABEL", label))
		add(w, " \"%s\"", label);
}

/* Calls @each with "8:1" and the name of each partition. */
static void each_partition(const char *sys,
			   void (*each)(struct words *w, const char *folder, const char *number, const char *name),
			   struct words *w)
{
	cleanup_dir DIR *dir = opendir(sys);
	char folder[PATH_MAX], number[128];

	for (struct dirent *d; dir && (d = readdir(dir));) {
		snprintf(folder, sizeof(folder), "%.2000s/%.255s", sys, d->d_name);
		if (d->d_name[0] != '.' && *attribute(folder, "partition", number))
			each(w, folder, attribute(folder, "dev", number), d->d_name);
	}
}

static void describe_partition(struct words *w, const char *folder, const char *number, const char *name)
{
	char text[128], size[32], called[128];

	add(w, "; %s, %s", name, bytes_text(strtoull(attribute(folder, "size", text), NULL, 10) * 512, size));
	if (*udev_word(number, "ID_PART_ENTRY_NAME", called))
		add(w, " \"%s\"", called);
	add_contents(w, number);
}

static void describe(struct words *w, const char *path, const char *sys, const char *number, uint64_t size)
{
	char vendor[128], model[128], text[32];
	struct words partitions = {};

	attribute(sys, "device/vendor", vendor);
	attribute(sys, "device/model", model);
	add(w, "%s (%s%s%s%s%s)", path, vendor, *vendor ? " " : "", model, *vendor || *model ? ", " : "",
	    bytes_text(size, text));
	add_contents(w, number);
	each_partition(sys, describe_partition, &partitions);
	add(w, "%s", partitions.text);
}

/* --- who uses it --- */

static void add_mounts(struct words *w, const char *number, const char *name)
{
	cleanup_file FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096], dev[32], where[1024];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%*d %*d %31s %*s %1023s", dev, where) == 2 && strcmp(dev, number) == 0)
			add(w, "%s%s is mounted at %s", w->len ? ", " : "", name, where);
}

static void add_swap(struct words *w, const char *name)
{
	cleanup_file FILE *f = fopen("/proc/swaps", "re");
	char line[4096], path[1024];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%1023s", path) != 1 || path[0] != '/')
			continue;
		const char *slash = strrchr(path, '/');
		if (strcmp(slash + 1, name) == 0)
			add(w, "%s%s is swap", w->len ? ", " : "", name);
	}
}

static void add_users(struct words *w, const char *folder, const char *number, const char *name)
{
	char path[PATH_MAX];

	add_mounts(w, number, name);
	add_swap(w, name);
	snprintf(path, sizeof(path), "%.2000s/holders", folder);
	cleanup_dir DIR *dir = opendir(path);
	for (struct dirent *d; dir && (d = readdir(dir));)
		if (d->d_name[0] != '.')
			add(w, "%s%s is part of %s", w->len ? ", " : "", name, d->d_name);
}

static struct error *in_use(const char *path, const char *sys, const char *number)
{
	struct words w = {};
	char real[PATH_MAX];
	const char *name = realpath(sys, real) ? strrchr(real, '/') + 1 : path;

	add_users(&w, sys, number, name);
	each_partition(sys, add_users, &w);
	return error_hint(error_new(EBUSY, "%s is in use: %s", path, w.len ? w.text : "by another program"),
			  "unmount it, or end what uses it, if it is meant");
}

/* --- taking it --- */

/* On a bus that things are plugged into, or said to be removable. */
static bool is_removable(const char *sys)
{
	char real[PATH_MAX], text[128];

	return strcmp(attribute(sys, "removable", text), "1") == 0 ||
	       (realpath(sys, real) && (strstr(real, "/usb") || strstr(real, "/mmc_host/")));
}

static struct error *look_for_data(int fd, const char *path, uint64_t size, bool *found)
{
	cleanup_free uint8_t *buf = malloc(LOOK_BYTES);
	uint64_t n = MIN(size, LOOK_BYTES);

	if (!buf)
		return error_new(ENOMEM, "look at %s", path);
	*found = false;
	for (unsigned end = 0; end < 2 && n > 0; end++) {
		TRY(pread_all(fd, buf, n, end ? (off_t)(size - n) : 0, path));
		*found = *found || buf[0] != 0 || memcmp(buf, buf + 1, n - 1) != 0;
	}
	return NULL;
}

/* What is said of the contents, which are to be lost. */
static struct error *agree_to_lose(int fd, const char *path, const char *sys, const char *number, uint64_t size,
				   const struct device_how *how)
{
	struct words w = {};
	bool data = false;

	describe(&w, path, sys, number, size);
	if (!is_removable(sys) && !how->fixed)
		return error_hint(error_new(EPERM, "%s is not a removable device: %s", path, w.text),
				  "if it is meant nevertheless, say --not-removable");
	TRY(look_for_data(fd, path, size, &data));
	if (data && !how->force)
		return error_hint(error_new(EEXIST, "there is data on %s, which would be lost", w.text),
				  "if that may go, say --force");
	log_info("everything on it will be lost: %s", w.text);
	return NULL;
}

struct error *device_take(const char *path, const struct device_how *how, int *out, uint64_t *size)
{
	char sys[64], text[128], number[32];
	unsigned sector = 0;
	int readonly = 0;
	struct stat st;

	if (stat(path, &st) < 0)
		return error_new(errno, "look at %s", path);
	snprintf(number, sizeof(number), "%u:%u", major(st.st_rdev), minor(st.st_rdev));
	snprintf(sys, sizeof(sys), "/sys/dev/block/%s", number);
	if (*attribute(sys, "partition", text))
		return error_hint(error_new(EINVAL, "%s is a partition", path), "name the whole device");
	cleanup_fd int fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return errno == EBUSY ? in_use(path, sys, number) : error_new(errno, "open %s", path);
	if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode) || ioctl(fd, BLKGETSIZE64, size) < 0 ||
	    ioctl(fd, BLKSSZGET, &sector) < 0 || ioctl(fd, BLKROGET, &readonly) < 0)
		return error_new(errno, "look at %s", path);
	if (*size == 0)
		return error_hint(error_new(ENOMEDIUM, "look at %s", path), "is something in it?");
	if (readonly)
		return error_hint(error_new(EROFS, "write to %s", path), "some cards have a switch at their side");
	if (sector != SECTOR)
		return error_new(ENOTSUP, "%s: its sectors have %u bytes, and a stick's %u", path, sector, SECTOR);
	if (!how->edit)
		TRY(agree_to_lose(fd, path, sys, number, *size, how));
	*out = steal_fd(&fd);
	return NULL;
}

struct error *device_blank(int fd, const char *path, uint64_t size)
{
	cleanup_free uint8_t *zeroes = calloc(1, LOOK_BYTES);
	uint64_t n = MIN(size, LOOK_BYTES);

	if (!zeroes)
		return error_new(ENOMEM, "write %s", path);
	TRY(pwrite_all(fd, zeroes, n, 0, path));
	TRY(pwrite_all(fd, zeroes, n, (off_t)(size - n), path));
	return fsync(fd) < 0 ? error_new(errno, "write %s", path) : NULL;
}

void device_reread(int fd)
{
	(void)ioctl(fd, BLKRRPART);
}
