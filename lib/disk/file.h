/*
 * The file under a disk: what it is, how it wants to be accessed, and its lock.
 */
#ifndef GLINT_DISK_FILE_H
#define GLINT_DISK_FILE_H

#include "base/error.h"

#include <stdint.h>

struct disk_file {
	int fd;
	bool readonly;
	uint64_t size;         /* bytes */
	uint32_t block_size;   /* the unit of requests: 512, or what direct I/O asks of offsets */
	uint32_t memory_align; /* what direct I/O asks of buffers; 1 when it is not used */
};

/*
 * Looks at @fd: it must be a regular file or block device, open for reading, and for writing unless @readonly, without
 * O_APPEND. Takes its size. @name is for errors. Keeps @fd, which stays the caller's.
 */
[[nodiscard]] struct error *disk_file_probe(struct disk_file *file, const char *name, int fd, bool readonly);

/* Takes the size anew. */
[[nodiscard]] struct error *disk_file_bytes(struct disk_file *file, const char *name);

/* The same, for a file that is a disk by itself: it must be of at least one block, and of whole blocks. */
[[nodiscard]] struct error *disk_file_size(struct disk_file *file, const char *name);

/* Locks it: exclusive, or shared when readonly. EBUSY when another open file has a lock in conflict. */
[[nodiscard]] struct error *disk_file_lock(const struct disk_file *file, const char *name);
void disk_file_unlock(const struct disk_file *file);

#endif
