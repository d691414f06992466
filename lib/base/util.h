/*
 * Small things every program needs: bounded arithmetic, sizes as people write them, whole reads and writes.
 */
#ifndef GLINT_BASE_UTIL_H
#define GLINT_BASE_UTIL_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define KIB           ((uint64_t)1 << 10)
#define MIB           ((uint64_t)1 << 20)
#define GIB           ((uint64_t)1 << 30)
#define TIB           ((uint64_t)1 << 40)
#define PAGE_BYTES    ((uint64_t)4096)

#define MIN(a, b)                                                                                                      \
	({                                                                                                             \
		__auto_type min_a_ = (a);                                                                              \
		__auto_type min_b_ = (b);                                                                              \
		min_a_ < min_b_ ? min_a_ : min_b_;                                                                     \
	})
#define MAX(a, b)                                                                                                      \
	({                                                                                                             \
		__auto_type max_a_ = (a);                                                                              \
		__auto_type max_b_ = (b);                                                                              \
		max_a_ > max_b_ ? max_a_ : max_b_;                                                                     \
	})

/* @align must be a power of two. The caller has made sure that rounding up cannot overflow. */
static inline uint64_t align_up(uint64_t value, uint64_t align)
{
	return (value + align - 1) & ~(align - 1);
}

static inline uint64_t align_down(uint64_t value, uint64_t align)
{
	return value & ~(align - 1);
}

static inline bool is_aligned(uint64_t value, uint64_t align)
{
	return (value & (align - 1)) == 0;
}

/* True when [offset, offset + len) lies inside [0, size): without overflow, whatever the three are. */
static inline bool range_inside(uint64_t offset, uint64_t len, uint64_t size)
{
	return len <= size && offset <= size - len;
}

/* Parses "4096", "64K", "512M", "4G", "1T" (also KiB, MB...: all powers of 1024) into bytes. @what names the value in
 * errors. */
[[nodiscard]] struct error *parse_size(const char *text, const char *what, uint64_t *bytes);

/* Parses a whole decimal number in [min, max]. @what names the value in errors. */
[[nodiscard]] struct error *parse_number(const char *text, const char *what, uint64_t min, uint64_t max,
					 uint64_t *value);

/* Reads or writes exactly @len bytes, going on after short transfers and EINTR. End of file is an error (EIO words). */
[[nodiscard]] struct error *read_all(int fd, void *buf, size_t len, const char *what);
[[nodiscard]] struct error *pread_all(int fd, void *buf, size_t len, off_t offset, const char *what);
[[nodiscard]] struct error *write_all(int fd, const void *buf, size_t len, const char *what);
[[nodiscard]] struct error *pwrite_all(int fd, const void *buf, size_t len, off_t offset, const char *what);

/*
 * Reads a whole regular file of at most @max bytes. *buf is malloc'ed, owned by the caller, and has a NUL byte behind
 * its *len bytes.
 */
[[nodiscard]] struct error *read_file(const char *path, size_t max, char **buf, size_t *len);

/*
 * Writes a file that appears as a whole or not at all (until a power cut: nothing is flushed). @name is below the
 * folder @folder (AT_FDCWD: the working one); NAME.new is used beside it.
 */
[[nodiscard]] struct error *put_file(int folder, const char *name, const void *data, size_t len, mode_t mode);

/*
 * How deep brackets are nested outside strings in @len bytes of JSON: to be bounded before a parser recurses. Text that
 * is no JSON gets some number.
 */
unsigned json_nesting(const char *text, size_t len);

#endif
