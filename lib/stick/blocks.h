/*
 * What a stick's contents are on, or are to be: a file, a device, a disk image, a test's memory. All of it may be
 * hostile: whoever reads goes through blocks_read(), which keeps to its size.
 */
#ifndef GLINT_STICK_BLOCKS_H
#define GLINT_STICK_BLOCKS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define SECTOR 512u

/* Offsets and lengths are whole sectors. Each call does all, or returns a negative errno. */
struct blocks {
	int (*read)(const struct blocks *m, void *data, size_t len, uint64_t offset);
	int (*write)(const struct blocks *m, const void *data, size_t len, uint64_t offset);
	int (*flush)(const struct blocks *m); /* what was written before is durable before what is written after */
	uint64_t size;                        /* bytes */
	const char *name;                     /* in errors */
};

[[nodiscard]] struct error *blocks_read(const struct blocks *m, void *data, size_t len, uint64_t offset);
[[nodiscard]] struct error *blocks_write(const struct blocks *m, const void *data, size_t len, uint64_t offset);
[[nodiscard]] struct error *blocks_flush(const struct blocks *m);

#endif
