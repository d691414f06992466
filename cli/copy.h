/*
 * Copying and comparing disks: many requests at a time on one io_uring, and only what is there.
 */
#ifndef GLINT_CLI_COPY_H
#define GLINT_CLI_COPY_H

#include "cli/disk.h"

struct copy {
	const struct opened *from, *to; /* active; @to is not smaller, and of sectors not larger */
	uint64_t start;                 /* where to begin, bytes */
	/*
	 * @to hides the contents of another disk, its parents' or what it held before: zeroes are written too, and what
	 * @from does not hold (disk_options.alone) is left as it is. Else @to is new, and zeroes need not be written.
	 */
	bool over;
	/*
	 * Called now and then, may be NULL: everything before @offset is copied and durable. An error ends the copy.
	 */
	struct error *(*durable)(void *arg, uint64_t offset);
	void *arg;
	struct progress *progress; /* may be NULL */
};

/* Copies all. Nothing is promised to be durable but what @durable was told. */
[[nodiscard]] struct error *copy_disk(const struct copy *copy);

/* Compares both, wherever one of them has data; @durable, @over and @start do not matter. */
[[nodiscard]] struct error *copy_compare(const struct copy *copy);

#endif
