/*
 * The rings of a pair when this process serves them: frames one by one, by read and write calls that never wait. So
 * nothing is in flight between two goes, pausing needs no patience, and a guest's memory is not touched behind its
 * back.
 *
 * Frames for the guest are read into a buffer of the pair first, because how many of the guest's buffers one needs is
 * known only when it is there (5.1.6.4). One that finds too few waits in that buffer; the host's queue holds the
 * others. Frames from the guest go to the host straight from its memory.
 *
 * A go has a bound, for disks share the thread.
 *
 * Touches: guest memory through the pair's queues; the host's end through tap.c and passt.c.
 */
#include "vmm/net/internal.h"

#include "base/util.h"
#include "vmm/virtio/iov.h"

#include <string.h>

#define FRAMES_A_GO 64
/* Thrown away in one go: more than a tap's queue holds (TUN_READQ_SIZE is 500, tools set 1000). */
#define DISCARDS_A_GO 1024

/* True when the ring is this process's to serve now. */
static bool ours(struct net_pair *pair, const struct virtio_queue *queue)
{
	return virtio_may_take(queue) && !atomic_load_explicit(&net_ring(pair, queue)->vhost, memory_order_relaxed);
}

static void end_go(struct virtio_queue *queue, enum virtqueue_result result, bool more)
{
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (more)
		virtio_again(queue);
}

/* --- to the guest --- */

static bool next_frame(struct net_pair *pair)
{
	if (pair->fd < 0)
		return false;
	return pair->net->kind == NET_TAP ? net_tap_receive(pair) : net_passt_receive(pair);
}

/* Nobody listens: what comes is lost, so that nothing stale waits for whoever listens later. */
static void discard(struct net_pair *pair)
{
	unsigned n = 0;

	for (pair->held = false; n < DISCARDS_A_GO && next_frame(pair); n++)
		net_count(&pair->stats.rx_dropped, 1);
	if (n == DISCARDS_A_GO)
		virtio_again(pair->rx);
}

/* The places of a header in the first chain of a frame, kept because it is written last; the guest may cut it up. */
struct header_place {
	struct iovec iov[NET_HEADER_BYTES];
	unsigned count;
};

static void keep_header(struct header_place *place, const struct virtqueue_chain *chain)
{
	place->count = MIN(chain->writable, (unsigned)NET_HEADER_BYTES);
	memcpy(place->iov, chain->iov + chain->readable, place->count * sizeof(place->iov[0]));
}

enum delivery { DELIVERED, DROPPED, NO_ROOM, BROKEN };

/* Puts pair->frame into the guest's next buffers: one, or as many as it takes where the guest said it merges them. */
static enum delivery deliver(struct net_pair *pair)
{
	struct virtqueue *ring = &pair->rx->ring;
	struct net_frame *frame = &pair->frame;
	bool mergeable = virtio_has(&pair->net->device, VIRTIO_NET_F_MRG_RXBUF);
	struct virtqueue_chain chain;
	struct header_place place;
	size_t done = 0;
	uint16_t taken = 0;

	do {
		enum virtqueue_result result = virtqueue_pop(ring, &chain);
		uint32_t written = 0;
		if (result == VIRTQUEUE_BROKEN)
			return BROKEN;
		if (result == VIRTQUEUE_EMPTY) {
			virtqueue_rewind(ring, taken);
			return taken == ring->size ? DROPPED : NO_ROOM;
		}
		struct iov iov = {chain.iov + chain.readable, chain.writable};
		if (taken == 0) {
			if (chain.writable_bytes < NET_HEADER_BYTES) {
				virtqueue_break(ring, "a buffer for frames has no room for the header");
				return BROKEN;
			}
			keep_header(&place, &chain);
			iov_skip(&iov, NET_HEADER_BYTES);
			written = NET_HEADER_BYTES;
		}
		size_t n = iov_copy(&iov, (void *)(uintptr_t)(frame->data + done), frame->len - done, IOV_TO_GUEST);
		done += n;
		virtqueue_push(ring, chain.head, written + (uint32_t)n);
		taken++;
	} while (done < frame->len && mergeable);
	if (done < frame->len) {
		virtqueue_rewind(ring, taken);
		return DROPPED;
	}
	frame->header.num_buffers = taken;
	iov_copy(&(struct iov){place.iov, place.count}, &frame->header, NET_HEADER_BYTES, IOV_TO_GUEST);
	net_count(&pair->stats.rx_frames, 1);
	net_count(&pair->stats.rx_bytes, frame->len);
	return DELIVERED;
}

void net_receive(struct net_pair *pair)
{
	struct virtio_queue *queue = pair->rx;
	enum delivery result = DELIVERED;
	unsigned taken = 0;

	if (!ours(pair, queue))
		return;
	if (!net_link(pair->net)) {
		discard(pair);
		return;
	}
	do {
		/* The guest is to ring for new buffers only when there are too few. */
		virtqueue_quiet(&queue->ring);
		while (taken < FRAMES_A_GO) {
			if (!pair->held && !next_frame(pair)) {
				end_go(queue, VIRTQUEUE_EMPTY, false);
				return;
			}
			result = deliver(pair);
			pair->held = result == NO_ROOM;
			if (result == DROPPED)
				net_count(&pair->stats.rx_dropped, 1);
			if (result == NO_ROOM || result == BROKEN)
				break;
			taken++;
		}
	} while (result == NO_ROOM && virtqueue_listen_beyond(&queue->ring));
	end_go(queue, result == BROKEN ? VIRTQUEUE_BROKEN : VIRTQUEUE_EMPTY, taken == FRAMES_A_GO);
}

/* On loading it lies at the start of the buffer, where nothing is before the first read. */
void net_held_state(void *self, struct saved *s)
{
	struct net_pair *pair = self;
	struct net_frame *frame = &pair->frame;
	struct virtio_net_hdr_v1 *h = &frame->header;
	void *data = saved_loading(s) ? pair->buffer : (void *)(uintptr_t)frame->data;

	saved_bool(s, "held", &pair->held);
	if (!pair->held)
		return;
	saved_u8(s, "flags", &h->flags);
	saved_u8(s, "segmentation", &h->gso_type);
	saved_u16(s, "header-bytes", &h->hdr_len);
	saved_u16(s, "segment-bytes", &h->gso_size);
	saved_u16(s, "checksum-start", &h->csum_start);
	saved_u16(s, "checksum-offset", &h->csum_offset);
	saved_require(s);
	saved_blob(s, "frame", data, &frame->len, NET_FRAME_MAX);
	if (saved_loading(s))
		frame->data = data;
}

/* --- from the guest --- */

static enum net_sent send_chain(struct net_pair *pair, const struct virtqueue_chain *chain)
{
	uint32_t bytes = chain->readable_bytes;

	if (bytes < NET_HEADER_BYTES + ETH_HLEN || bytes > NET_HEADER_BYTES + NET_FRAME_MAX || !net_link(pair->net) ||
	    pair->fd < 0)
		return NET_DROPPED;
	return pair->net->kind == NET_TAP ? net_tap_send(pair, chain->iov, chain->readable)
					  : net_passt_send(pair, chain->iov, chain->readable);
}

void net_transmit(struct net_pair *pair)
{
	struct virtio_queue *queue = pair->tx;
	struct virtqueue_chain chain;
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	unsigned taken = 0;

	if (!ours(pair, queue))
		return;
	do {
		virtqueue_quiet(&queue->ring);
		while (taken < FRAMES_A_GO && !pair->rest_end &&
		       (result = virtqueue_pop(&queue->ring, &chain)) == VIRTQUEUE_CHAIN) {
			if (send_chain(pair, &chain) == NET_DROPPED) {
				net_count(&pair->stats.tx_dropped, 1);
			} else {
				net_count(&pair->stats.tx_frames, 1);
				net_count(&pair->stats.tx_bytes, chain.readable_bytes - NET_HEADER_BYTES);
			}
			virtqueue_push(&queue->ring, chain.head, 0);
			taken++;
		}
	} while (taken < FRAMES_A_GO && !pair->rest_end && result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring));
	end_go(queue, result, taken == FRAMES_A_GO && !pair->rest_end);
}
