/*
 * Frames over passt's stream socket: each behind its length, 32 bits, big-endian (passt(1), "-s"; QEMU's -netdev stream
 * speaks the same). No headers: passt wants whole checksums and gives them.
 *
 * The stream is read into the pair's buffer and taken from there frame by frame. A frame that the socket does not take
 * whole is copied to `rest`, which goes first when there is room again: so the guest's buffers are never kept. A length
 * that no frame has means that the stream is lost for good: the connection ends.
 *
 * Touches: the socket.
 */
#include "vmm/net/internal.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/virtio/iov.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#define PREFIX_BYTES sizeof(uint32_t)

struct error *net_passt_connect(const char *path, int *out)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_new(ENAMETOOLONG, "connect to passt at %s", path);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_new(errno, "make a socket");
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_hint(error_new(errno, "connect to passt at %s", path), "start it first: passt --socket %s",
				  path);
	*out = steal_fd(&fd);
	return NULL;
}

struct error *net_passt_check(int fd)
{
	socklen_t len = sizeof(int);
	int type = 0, flags = fcntl(fd, F_GETFL);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		return error_new(type ? EPROTOTYPE : errno, "descriptor %d is no stream socket", fd);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_new(errno, "make descriptor %d not block", fd);
	return NULL;
}

/* --- to the guest --- */

/* Takes the next whole frame off the buffer. False when there is none; *bad when there can be none any more. */
static bool take(struct net_pair *pair, bool *bad)
{
	uint32_t len;

	if (pair->end - pair->start < PREFIX_BYTES)
		return false;
	memcpy(&len, pair->buffer + pair->start, PREFIX_BYTES);
	len = ntohl(len);
	*bad = len < ETH_HLEN || len > NET_FRAME_MAX;
	if (*bad || pair->end - pair->start < PREFIX_BYTES + len)
		return false;
	pair->frame = (struct net_frame){.data = pair->buffer + pair->start + PREFIX_BYTES, .len = len};
	pair->start += PREFIX_BYTES + len;
	return true;
}

bool net_passt_receive(struct net_pair *pair)
{
	bool bad = false;

	while (!take(pair, &bad)) {
		if (!bad) {
			memmove(pair->buffer, pair->buffer + pair->start, pair->end - pair->start);
			pair->end -= pair->start;
			pair->start = 0;
			/* There is room, for one whole frame leaves some. */
			ssize_t n = read(pair->fd, pair->buffer + pair->end, NET_BUFFER_BYTES - pair->end);
			if (n < 0 && (errno == EAGAIN || errno == EINTR))
				return false;
			bad = n <= 0;
			pair->end += n > 0 ? (size_t)n : 0;
		}
		if (bad) {
			net_lost(pair);
			return false;
		}
	}
	return true;
}

/* --- from the guest --- */

static enum net_sent keep_rest(struct net_pair *pair, const struct iov *left, size_t len)
{
	pair->rest_start = 0;
	pair->rest_end = iov_copy(left, pair->rest, len, IOV_FROM_GUEST);
	return NET_LATER;
}

enum net_sent net_passt_send(struct net_pair *pair, const struct iovec *iov, unsigned count)
{
	struct iovec v[VIRTQUEUE_SIZE_MAX + 1];
	struct iov frame = {v + 1, count};
	size_t len = 0;

	memcpy(v + 1, iov, count * sizeof(v[0]));
	iov_skip(&frame, NET_HEADER_BYTES);
	for (unsigned i = 0; i < frame.count; i++)
		len += frame.v[i].iov_len;
	uint32_t prefix = htonl((uint32_t)len);
	len += PREFIX_BYTES;
	struct iov all = {frame.v - 1, frame.count + 1};
	all.v[0] = (struct iovec){&prefix, PREFIX_BYTES};
	ssize_t n = writev(pair->fd, all.v, (int)all.count);
	/* An error that stays is also what reading will find. */
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return NET_DROPPED;
	if (n == (ssize_t)len)
		return NET_SENT;
	iov_skip(&all, n > 0 ? (size_t)n : 0);
	return keep_rest(pair, &all, len - (n > 0 ? (size_t)n : 0));
}

bool net_passt_flush(struct net_pair *pair)
{
	if (pair->fd < 0)
		return true;
	ssize_t n = write(pair->fd, pair->rest + pair->rest_start, pair->rest_end - pair->rest_start);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	pair->rest_start += n > 0 ? (size_t)n : pair->rest_end - pair->rest_start;
	if (pair->rest_start < pair->rest_end)
		return false;
	pair->rest_start = pair->rest_end = 0;
	return true;
}
