/*
 * What support needs to know of a host, in one file: a tar archive, compressed by zstd (RFC 8878). What is taken is the
 * table in support.c; keys and what people stored are never in it.
 */
#ifndef GLINT_SUPPORT_SUPPORT_H
#define GLINT_SUPPORT_SUPPORT_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define BUNDLE_NAME       "glint-support" /* the folder that all of it is in */
#define BUNDLE_BYTES_MAX  (16u << 20)     /* of the archive, compressed: with so much no part is added any more */
#define BUNDLE_PART_MAX   (16u << 20)     /* of one file in it; of a longer one the end */
#define BUNDLE_PARTS_MAX  8192u
#define BUNDLE_PROGRAM_MS 20000 /* how long a program may take to tell */

/* The archive under way. */
struct bundle;

/* Begins one in memory. @fd: gets the descriptor of a memfd that has it when it is finished; the caller's. */
[[nodiscard]] struct error *bundle_new(struct bundle **out, int *fd);
/* Adds a file. @name: without a slash in front. */
[[nodiscard]] struct error *bundle_add(struct bundle *b, const char *name, const void *data, size_t len);
bool bundle_is_full(const struct bundle *b);
[[nodiscard]] struct error *bundle_finish(struct bundle *b);
void bundle_free(struct bundle *b);

struct support {
	const char *root; /* below which files are looked for: "", but for tests */
	/* What came of it. */
	unsigned parts;
	uint64_t bytes; /* of the archive */
};

/* Gathers all of it into a memfd, *fd, the caller's. What cannot be had is told in the archive: bundle.json. */
[[nodiscard]] struct error *support_gather(struct support *s, int *fd);

#endif
