/*
 * A cursor over the buffers of a chain: a device takes from its front and its end what is not data, whichever way the
 * guest cut it into descriptors (virtio 1.2, 2.7.4: framing is not to be relied on).
 */
#ifndef GLINT_VMM_VIRTIO_IOV_H
#define GLINT_VMM_VIRTIO_IOV_H

#include "base/util.h"

#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

struct iov {
	struct iovec *v;
	unsigned count;
};

/* Drops @len bytes from the front; all, when there are fewer. */
static inline void iov_skip(struct iov *iov, size_t len)
{
	while (iov->count && len >= iov->v->iov_len) {
		len -= iov->v->iov_len;
		iov->v++;
		iov->count--;
	}
	if (iov->count) {
		iov->v->iov_base = (uint8_t *)iov->v->iov_base + len;
		iov->v->iov_len -= len;
	}
}

/* Drops what lies behind the first @len bytes. */
static inline void iov_limit(struct iov *iov, size_t len)
{
	unsigned i = 0;

	while (i < iov->count && len > 0) {
		if (iov->v[i].iov_len > len)
			iov->v[i].iov_len = len;
		len -= iov->v[i++].iov_len;
	}
	iov->count = i;
}

enum iov_direction { IOV_TO_GUEST, IOV_FROM_GUEST };

/* Copies @len bytes, or as many as there are, between @buf and the front of @iov, which keeps them. Returns how many.
 */
static inline size_t iov_copy(const struct iov *iov, void *buf, size_t len, enum iov_direction direction)
{
	size_t done = 0;

	for (unsigned i = 0; i < iov->count && done < len; i++) {
		size_t n = MIN(iov->v[i].iov_len, len - done);
		if (direction == IOV_TO_GUEST)
			memcpy(iov->v[i].iov_base, (uint8_t *)buf + done, n);
		else
			memcpy((uint8_t *)buf + done, iov->v[i].iov_base, n);
		done += n;
	}
	return done;
}

/* Takes @len bytes off the front of @iov into @buf. False when there are fewer. */
static inline bool iov_take(struct iov *iov, void *buf, size_t len)
{
	if (iov_copy(iov, buf, len, IOV_FROM_GUEST) < len)
		return false;
	iov_skip(iov, len);
	return true;
}

/* Takes the last byte off @iov and returns where it lies; NULL when there is none. */
static inline uint8_t *iov_take_last(struct iov *iov)
{
	if (iov->count == 0)
		return NULL;
	struct iovec *last = &iov->v[iov->count - 1];
	uint8_t *byte = (uint8_t *)last->iov_base + --last->iov_len;
	if (last->iov_len == 0)
		iov->count--;
	return byte;
}

#endif
