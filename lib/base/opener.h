/*
 * Openers: how code that may open nothing gets a file.
 *
 * A disk format that names a parent disk, or a monitor that locked itself in, holds an opener instead of a path. The
 * opener decides what may be reached: the directory opener reaches regular files and block devices below one directory
 * (a VM's pool) and nothing else, whatever the locator says.
 */
#ifndef GLINT_BASE_OPENER_H
#define GLINT_BASE_OPENER_H

#include "base/error.h"

#include <sys/types.h>

struct opener {
	/*
	 * Opens what @locator names, with open(2) access @flags (O_RDONLY or O_RDWR, O_DIRECT). *fd becomes the
	 * caller's, close-on-exec. The locator is untrusted: it may come from a disk image.
	 */
	struct error *(*open)(struct opener *self, const char *locator, int flags, int *fd);
};

struct opener_dir {
	struct opener opener;
	int dir_fd;
};

/*
 * Makes an opener confined to the directory @dir_fd (which stays the caller's and must outlive it): locators are
 * relative paths; "..", absolute paths, symbolic and magic links are refused by openat2(2), and so is what is neither
 * a regular file nor a block device (a FIFO or a device could block or act when opened).
 */
void opener_dir_init(struct opener_dir *self, int dir_fd);

#endif
