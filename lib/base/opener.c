/*
 * The directory opener; see opener.h. Touches only what lies below its directory.
 *
 * The kernel keeps the way to the file inside (openat2(2): RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, which covers magic
 * links); what is no file of that kind is refused here. Opening is what a device or a FIFO may act on or block at, so
 * the type is looked at first through an O_PATH descriptor, which opens nothing, and what was then opened must be the
 * same file. This needs no /proc, which a confined program does not have.
 */
#include "base/opener.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HINT "a disk is named by its path inside the pool, like 'vm1/disk.vhdx'"

static int open_beneath(int dir_fd, const char *locator, int flags)
{
	struct open_how how = {
		.flags = (uint64_t)flags | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};

	return (int)syscall(SYS_openat2, dir_fd, locator, &how, sizeof(how));
}

/* Refuses what cannot name a file, and what must not be shown to a person or resolved at all. */
static struct error *check_locator(const char *locator)
{
	size_t len = strnlen(locator, PATH_MAX);

	if (len == 0)
		return error_hint(error_new(ENOENT, "the locator is empty"), HINT);
	if (len == PATH_MAX)
		return error_hint(error_new(ENAMETOOLONG, "the locator has more than %d bytes", PATH_MAX - 1), HINT);
	for (size_t i = 0; i < len; i++) {
		if ((unsigned char)locator[i] < 0x20 || locator[i] == 0x7f)
			return error_hint(error_new(EINVAL, "the locator has a control character"), HINT);
	}
	for (const char *part = locator; part; part = strchr(part, '/')) {
		part += strspn(part, "/");
		size_t part_len = strcspn(part, "/");
		if (part_len == 2 && part[0] == '.' && part[1] == '.')
			return error_hint(error_new(EXDEV, "open '%s': '..' is not allowed", locator), HINT);
	}
	return NULL;
}

static struct error *check_type(int fd, const char *locator, struct stat *st)
{
	if (fstat(fd, st) < 0)
		return error_new(errno, "look at '%s'", locator);
	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
		return error_hint(
			error_new(EINVAL, "open '%s': it is neither a regular file nor a block device", locator), HINT);
	return NULL;
}

static struct error *opener_dir_open(struct opener *opener, const char *locator, int flags, int *out)
{
	struct opener_dir *self = (struct opener_dir *)opener;
	struct stat seen, opened;

	if ((flags & ~(O_ACCMODE | O_DIRECT)) != 0 || (flags & O_ACCMODE) == O_WRONLY)
		return error_new(EINVAL, "open a locator: flags %#x are not allowed", (unsigned)flags);
	TRY(check_locator(locator));

	cleanup_fd int path_fd = open_beneath(self->dir_fd, locator, O_PATH);
	if (path_fd < 0)
		return error_hint(error_new(errno, "open '%s'", locator),
				  "links and absolute paths are not followed; " HINT);
	TRY(check_type(path_fd, locator, &seen));

	/* O_NONBLOCK: should the file have been replaced by a FIFO since. It means nothing to files and disks. */
	cleanup_fd int fd = open_beneath(self->dir_fd, locator, flags | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return error_new(errno, "open '%s' to %s", locator, (flags & O_ACCMODE) == O_RDWR ? "write" : "read");
	TRY(check_type(fd, locator, &opened));
	if (seen.st_dev != opened.st_dev || seen.st_ino != opened.st_ino)
		return error_new(EAGAIN, "open '%s': it was replaced meanwhile", locator);
	if (fcntl(fd, F_SETFL, flags & O_DIRECT) < 0)
		return error_new(errno, "open '%s'", locator);
	*out = steal_fd(&fd);
	return NULL;
}

void opener_dir_init(struct opener_dir *self, int dir_fd)
{
	*self = (struct opener_dir){.opener.open = opener_dir_open, .dir_fd = dir_fd};
}
