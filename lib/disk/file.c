/*
 * Files under disks; see disk_file.h. Touches the one descriptor it is given; reads and writes no data.
 */
#include "disk/file.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>

#define SECTOR 512u
/* Larger ones are refused by Linux guests (a page). */
#define BLOCK_MAX 4096u

/*
 * A killed process's io_uring gives its files back a moment after the process is gone, and their locks with them; so a
 * VM that is started anew at once is not to be told that its own ghost has the disk.
 */
#define LOCK_PATIENCE_MS 1000
#define LOCK_STEP_MS     10

static struct error *check_access(const char *name, int fd, bool readonly, bool *direct)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return error_new(errno, "%s: look at descriptor %d", name, fd);
	int mode = flags & O_ACCMODE;
	if (flags & O_PATH || mode == O_WRONLY || (mode == O_RDONLY && !readonly))
		return error_hint(error_new(EACCES, "%s: its descriptor is not open for reading%s", name,
					    readonly ? "" : " and writing"),
				  "open it %s",
				  readonly ? "read-only" : "for reading and writing, or make it read-only");
	if (flags & O_APPEND)
		return error_hint(error_new(EINVAL, "%s: its descriptor appends", name), "open it without O_APPEND");
	*direct = flags & O_DIRECT;
	return NULL;
}

/* What direct I/O asks for. Kernels say so for files since 6.1, for block devices since 6.11; before, the device's
 * sector. */
static struct error *probe_direct(struct disk_file *file, const char *name)
{
	struct statx stx;
	int sector;

	file->block_size = SECTOR;
	file->memory_align = BLOCK_MAX;
	if (statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && stx.stx_mask & STATX_DIOALIGN &&
	    stx.stx_dio_offset_align) {
		file->block_size = MAX(SECTOR, stx.stx_dio_offset_align);
		file->memory_align = MAX(1u, stx.stx_dio_mem_align);
	} else if (ioctl(file->fd, BLKSSZGET, &sector) == 0) {
		file->block_size = MAX(SECTOR, (uint32_t)sector);
	}
	if (file->block_size > BLOCK_MAX)
		return error_hint(error_new(ENOTSUP, "%s: direct I/O needs blocks of %u bytes, at most %u can be used",
					    name, file->block_size, BLOCK_MAX),
				  "open it without O_DIRECT");
	return NULL;
}

struct error *disk_file_probe(struct disk_file *file, const char *name, int fd, bool readonly)
{
	bool direct = false;

	*file = (struct disk_file){.fd = fd, .readonly = readonly, .block_size = SECTOR, .memory_align = 1};
	TRY(check_access(name, fd, readonly, &direct));
	if (direct)
		TRY(probe_direct(file, name));
	return disk_file_bytes(file, name);
}

struct error *disk_file_bytes(struct disk_file *file, const char *name)
{
	struct stat st;

	if (fstat(file->fd, &st) < 0)
		return error_new(errno, "%s: look at it", name);
	if (S_ISREG(st.st_mode))
		file->size = (uint64_t)st.st_size;
	else if (!S_ISBLK(st.st_mode))
		return error_new(EINVAL, "%s: it is neither a regular file nor a block device", name);
	else if (ioctl(file->fd, BLKGETSIZE64, &file->size) < 0)
		return error_new(errno, "%s: get the size of the block device", name);
	return NULL;
}

struct error *disk_file_size(struct disk_file *file, const char *name)
{
	TRY(disk_file_bytes(file, name));
	if (file->size == 0 || file->size % file->block_size)
		return error_hint(error_new(EINVAL, "%s: its size, %llu bytes, is not a number of %u-byte blocks", name,
					    (unsigned long long)file->size, file->block_size),
				  "grow the file to a whole number of blocks (truncate -s %%%u FILE)",
				  file->block_size);
	return NULL;
}

struct error *disk_file_lock(const struct disk_file *file, const char *name)
{
	struct flock lock = {.l_type = file->readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

	for (unsigned waited = 0;; waited += LOCK_STEP_MS) {
		if (fcntl(file->fd, F_OFD_SETLK, &lock) == 0)
			return NULL;
		if (errno != EAGAIN && errno != EACCES)
			return error_new(errno, "%s: lock it", name);
		if (waited >= LOCK_PATIENCE_MS)
			break;
		nanosleep(&(struct timespec){.tv_nsec = LOCK_STEP_MS * 1000000l}, NULL);
	}
	return error_hint(error_new(EBUSY, "%s: another process uses it", name),
			  "stop the VM that has this disk, or give this one a disk of its own");
}

void disk_file_unlock(const struct disk_file *file)
{
	struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	/* Cannot fail for a lock this descriptor holds; for another it changes nothing. */
	(void)fcntl(file->fd, F_OFD_SETLK, &lock);
}
