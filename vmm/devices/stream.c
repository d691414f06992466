/*
 * Non-blocking transfers on blocking descriptors; see stream.h.
 *
 * - Pipes and sockets take RWF_NOWAIT, which is O_NONBLOCK for one call.
 * - Terminals do not (nor did pipes and sockets before Linux 6.4). poll(2) goes first, then no more than it promises:
 *   PIPE_BUF bytes into a pipe, one byte elsewhere. What stays is another process taking the room or the input
 *   in between, and a newline that a terminal turns into two bytes when it has room for exactly one: then the call
 *   waits until whoever holds the other end moves.
 * - Regular files neither have a notion of waiting nor block for longer than the disk takes.
 *
 * Touches: the descriptors it is given.
 */
#include "vmm/devices/stream.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static bool ready(int fd, short events)
{
	struct pollfd p = {.fd = fd, .events = events};

	return poll(&p, 1, 0) == 1;
}

static bool unsupported(ssize_t n)
{
	return n < 0 && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS);
}

struct stream stream_on(int fd)
{
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		st.st_mode = 0;
	return (struct stream){
		.fd = fd, .is_file = S_ISREG(st.st_mode), .promised = S_ISFIFO(st.st_mode) ? PIPE_BUF : 1};
}

ssize_t stream_read(const struct stream *stream, void *buf, size_t len)
{
	struct iovec iov = {.iov_base = buf, .iov_len = len};

	if (stream->is_file)
		return read(stream->fd, buf, len);
	ssize_t n = preadv2(stream->fd, &iov, 1, -1, RWF_NOWAIT);
	if (!unsupported(n))
		return n;
	if (!ready(stream->fd, POLLIN)) {
		errno = EAGAIN;
		return -1;
	}
	return read(stream->fd, buf, len);
}

ssize_t stream_write(const struct stream *stream, const void *buf, size_t len)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = len};

	if (stream->is_file)
		return write(stream->fd, buf, len);
	ssize_t n = pwritev2(stream->fd, &iov, 1, -1, RWF_NOWAIT);
	if (!unsupported(n))
		return n;
	if (!ready(stream->fd, POLLOUT)) {
		errno = EAGAIN;
		return -1;
	}
	return write(stream->fd, buf, len < stream->promised ? len : stream->promised);
}
