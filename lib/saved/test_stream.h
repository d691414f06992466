/*
 * What the tests of saved state share: streams in memory, and errors that must come and say something.
 */
#ifndef GLINT_SAVED_TEST_STREAM_H
#define GLINT_SAVED_TEST_STREAM_H

#include "base/cleanup.h"
#include "saved/saved.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define MACHINE "test-machine-1"

#define assert_ok(expr)                                                                                                \
	do {                                                                                                           \
		struct error *err_ = (expr);                                                                           \
		if (err_)                                                                                              \
			fail_msg("%s", error_text(err_));                                                              \
	} while (0)

/* There is an error, and its message has @words in it. */
#define assert_error(expr, words)                                                                                      \
	do {                                                                                                           \
		struct error *err_ = (expr);                                                                           \
		if (!err_)                                                                                             \
			fail_msg("no error, expected: %s", words);                                                     \
		if (!strstr(error_text(err_), words))                                                                  \
			fail_msg("error '%s' does not have '%s' in it", error_text(err_), words);                      \
		error_free(err_);                                                                                      \
	} while (0)

/* A stream in memory, empty or with @len bytes in it, to be written or read from its beginning. */
static inline int memory_stream(const void *bytes, size_t len)
{
	int fd = memfd_create("stream", MFD_CLOEXEC);

	if (fd < 0)
		fail();
	assert_int_equal(pwrite(fd, bytes, len, 0), len);
	return fd;
}

static inline void rewind_stream(int fd)
{
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
}

/* All bytes of a stream; the caller frees them. */
static inline uint8_t *stream_bytes(int fd, size_t *len)
{
	off_t size = lseek(fd, 0, SEEK_END);

	if (size <= 0)
		fail();
	uint8_t *bytes = malloc((size_t)size);
	assert_non_null(bytes);
	assert_int_equal(pread(fd, bytes, (size_t)size, 0), size);
	*len = (size_t)size;
	return bytes;
}

#endif
