/*
 * Sizes, numbers, whole reads and writes; see util.h. Touches only the descriptors and paths it is given.
 */
#include "base/util.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdckdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

struct error *parse_number(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *value)
{
	char *end;

	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end != '\0')
		return error_hint(error_new(EINVAL, "%s: '%s' is not a whole number", what, text),
				  "give a number from %llu to %llu", (unsigned long long)min, (unsigned long long)max);
	if (errno == ERANGE || n < min || n > max)
		return error_hint(error_new(ERANGE, "%s: %s is out of range", what, text),
				  "give a number from %llu to %llu", (unsigned long long)min, (unsigned long long)max);
	*value = n;
	return NULL;
}

struct error *parse_size(const char *text, const char *what, uint64_t *bytes)
{
	static const struct {
		const char *suffix;
		unsigned shift;
	} units[] = {{"", 0},     {"B", 0},  {"K", 10},  {"KB", 10},  {"KiB", 10}, {"M", 20},  {"MB", 20},
		     {"MiB", 20}, {"G", 30}, {"GB", 30}, {"GiB", 30}, {"T", 40},   {"TB", 40}, {"TiB", 40}};
	char *end;

	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]))
		goto bad;
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (strcasecmp(end, units[i].suffix) != 0)
			continue;
		uint64_t result;
		if (errno == ERANGE || ckd_mul(&result, (uint64_t)n, (uint64_t)1 << units[i].shift))
			return error_new(ERANGE, "%s: '%s' is more than can be counted", what, text);
		*bytes = result;
		return NULL;
	}
bad:
	return error_hint(error_new(EINVAL, "%s: '%s' is not a size", what, text), "write sizes like 512M, 4G or 4096");
}

struct error *read_all(int fd, void *buf, size_t len, const char *what)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(fd, (char *)buf + done, len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "read %s", what);
		if (n == 0)
			return error_new(EIO, "read %s: it ends after %zu of %zu bytes", what, done, len);
		done += (size_t)n;
	}
	return NULL;
}

struct error *pread_all(int fd, void *buf, size_t len, off_t offset, const char *what)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (char *)buf + done, len - done, offset + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "read %s at %lld", what, (long long)offset);
		if (n == 0)
			return error_new(EIO, "read %s at %lld: it ends after %zu of %zu bytes", what,
					 (long long)offset, done, len);
		done += (size_t)n;
	}
	return NULL;
}

struct error *write_all(int fd, const void *buf, size_t len, const char *what)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(fd, (const char *)buf + done, len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "write %s", what);
		done += (size_t)n;
	}
	return NULL;
}

struct error *pwrite_all(int fd, const void *buf, size_t len, off_t offset, const char *what)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done, offset + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "write %s at %lld", what, (long long)offset);
		done += (size_t)n;
	}
	return NULL;
}

struct error *read_file(const char *path, size_t max, char **buf, size_t *len)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return error_new(errno, "open %s", path);
	if (fstat(fd, &st) < 0)
		return error_new(errno, "stat %s", path);
	if (!S_ISREG(st.st_mode))
		return error_new(EINVAL, "read %s: it is not a regular file", path);
	if ((uint64_t)st.st_size > max)
		return error_new(EFBIG, "read %s: it has %lld bytes, the limit is %zu", path, (long long)st.st_size,
				 max);
	cleanup_free char *data = malloc((size_t)st.st_size + 1);
	if (!data)
		return error_new(ENOMEM, "read %s", path);
	TRY(read_all(fd, data, (size_t)st.st_size, path));
	data[st.st_size] = '\0';
	*len = (size_t)st.st_size;
	*buf = steal_ptr(&data);
	return NULL;
}

struct error *put_file(int folder, const char *name, const void *data, size_t len, mode_t mode)
{
	char temporary[PATH_MAX];

	if (snprintf(temporary, sizeof(temporary), "%s.new", name) >= (int)sizeof(temporary))
		return error_new(ENAMETOOLONG, "write %s", name);
	unlinkat(folder, temporary, 0);
	cleanup_fd int fd = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0 || fchmod(fd, mode) < 0)
		return error_new(errno, "make %s", temporary);
	TRY(write_all(fd, data, len, temporary));
	return renameat(folder, temporary, folder, name) < 0 ? error_new(errno, "rename %s", temporary) : NULL;
}

unsigned json_nesting(const char *text, size_t len)
{
	unsigned depth = 0, deepest = 0;
	bool in_string = false;

	for (size_t i = 0; i < len; i++) {
		if (in_string && text[i] == '\\') {
			i++;
		} else if (text[i] == '"') {
			in_string = !in_string;
		} else if (!in_string && (text[i] == '[' || text[i] == '{')) {
			depth++;
			deepest = MAX(deepest, depth);
		} else if (!in_string && (text[i] == ']' || text[i] == '}') && depth > 0) {
			depth--;
		}
	}
	return deepest;
}
