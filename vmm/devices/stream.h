/*
 * Byte streams that must not stall a vCPU: the descriptor behind a serial port may be a terminal, pipe, socket, file or
 * /dev/null, and is often shared with other processes. O_NONBLOCK belongs to the open file, not to the descriptor, so
 * setting it would change the shell's terminal under it; these calls get the effect without it, see stream.c.
 *
 * SIGPIPE must be ignored by the process: a reader that has gone is EPIPE.
 */
#ifndef GLINT_VMM_DEVICES_STREAM_H
#define GLINT_VMM_DEVICES_STREAM_H

#include <stddef.h>
#include <sys/types.h>

struct stream {
	int fd; /* the caller's; -1: none */
	bool is_file;
	size_t promised; /* bytes that POLLOUT promises to take */
};

/* Looks what @fd is. -1 is allowed: nobody may read from or write to it then. */
struct stream stream_on(int fd);

/* Reads what is there, at most @len bytes. Returns 0 at the end; -1 with EAGAIN when there is nothing now. */
ssize_t stream_read(const struct stream *stream, void *buf, size_t len);

/* Writes what fits, at most @len bytes. Returns -1 with EAGAIN when nothing does now. */
ssize_t stream_write(const struct stream *stream, const void *buf, size_t len);

#endif
