/*
 * Cleanup attributes: an owned resource is declared with the attribute that releases it, so an error path is one
 * `return`. Ownership leaves a function only through steal_ptr() or steal_fd(), which leave the empty value behind.
 */
#ifndef GLINT_BASE_CLEANUP_H
#define GLINT_BASE_CLEANUP_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static inline void cleanup_free_fn(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_fd_fn(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_file_fn(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void cleanup_dir_fn(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define cleanup_free __attribute__((cleanup(cleanup_free_fn)))
#define cleanup_fd   __attribute__((cleanup(cleanup_fd_fn)))
#define cleanup_file __attribute__((cleanup(cleanup_file_fn)))
#define cleanup_dir  __attribute__((cleanup(cleanup_dir_fn)))

/* Hands an owned pointer on: yields its value and leaves NULL, so that its cleanup does nothing. */
#define steal_ptr(p)                                                                                                   \
	({                                                                                                             \
		__auto_type stolen_ = *(p);                                                                            \
		*(p) = NULL;                                                                                           \
		stolen_;                                                                                               \
	})

/* The same for a file descriptor, which leaves -1. */
static inline int steal_fd(int *fd)
{
	int stolen = *fd;
	*fd = -1;
	return stolen;
}

/* Closes *fd if it is open and leaves -1: for descriptors held in a structure. */
static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

#endif
