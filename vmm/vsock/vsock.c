/*
 * The vsock device: its three queues (5.10.2), configuration and state; see vsock.h. Runs on its I/O thread. Touches
 * guest memory through its queues, and the sockets of its connections.
 *
 * The receive queue is pulled: connections that have something for the guest stand in a ring (vsock->active), and each
 * buffer of the guest is filled by the first of them, straight from its socket. Nothing is buffered in that direction:
 * without a buffer or credit of the guest, bytes stay in the socket and the host waits. In the other direction what a
 * socket does not take goes to the connection's buffer, for which the guest has credit; who overdraws is cut off.
 *
 * The transmit queue is served at once, for a packet of one connection must not hold up the others. The one thing that
 * can stop it is the answers it breeds: when RESETS of them wait for buffers of the guest, it rests until some went.
 */
#include "vmm/vsock/internal.h"

#include "base/cleanup.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#define QUEUE_SIZE 128
#define RX         0
#define TX         1
#define EVENTS     2
#define QUEUES     3

/* Packets that one go handles, so that other devices of the thread have their turn. */
#define PACKETS_A_GO 64

#define HEADER_BYTES sizeof(struct virtio_vsock_hdr)

void vsock_wake(struct vsock *v)
{
	iothread_at_end(v->thread, &v->batch);
}

void vsock_refuse(struct vsock *v, const struct virtio_vsock_hdr *hdr)
{
	/* A reset is not answered (or two sides would do so for ever). */
	if (le16toh(hdr->op) == VIRTIO_VSOCK_OP_RST || v->reset_count == RESETS)
		return;
	v->reset[(v->reset_first + v->reset_count++) % RESETS] = (struct reset){
		.host_port = le32toh(hdr->dst_port), .guest_port = le32toh(hdr->src_port), .type = le16toh(hdr->type)};
	vsock_wake(v);
}

/* --- to the guest --- */

static void take_reset(struct vsock *v, struct virtio_vsock_hdr *hdr)
{
	const struct reset *reset = &v->reset[v->reset_first];

	hdr->op = htole16(VIRTIO_VSOCK_OP_RST);
	hdr->type = htole16(reset->type);
	hdr->src_port = htole32(reset->host_port);
	hdr->dst_port = htole32(reset->guest_port);
	v->reset_first = (v->reset_first + 1) % RESETS;
	v->reset_count--;
}

/* Fills a buffer of the guest. False when there was nothing to fill it with: it is given back. */
static bool fill(struct vsock *v, struct virtqueue *ring, struct virtqueue_chain *chain)
{
	struct virtio_vsock_hdr hdr = {.src_cid = htole64(HOST_CID), .dst_cid = htole64(v->cid)};
	struct iov all = {chain->iov + chain->readable, chain->writable}, room = all;
	struct iovec kept[VIRTQUEUE_SIZE_MAX];

	if (v->reset_count) {
		take_reset(v, &hdr);
	} else {
		struct connection *c;
		/* A cursor changes the list it walks over. */
		memcpy(kept, room.v, room.count * sizeof(kept[0]));
		room.v = kept;
		iov_skip(&room, HEADER_BYTES);
		do
			c = connections_next(v);
		while (c && !connection_packet(c, &hdr, &room));
		if (!c) {
			virtqueue_unpop(ring);
			return false;
		}
	}
	iov_copy(&all, &hdr, HEADER_BYTES, IOV_TO_GUEST);
	virtqueue_push(ring, chain->head, (uint32_t)HEADER_BYTES + le32toh(hdr.len));
	return true;
}

static bool has_packet(struct vsock *v)
{
	return v->reset_count || connections_next(v);
}

static void serve_rx(struct vsock *v)
{
	struct virtio_queue *queue = &v->device.queue[RX];
	enum virtqueue_result result = VIRTQUEUE_CHAIN;
	struct virtqueue_chain chain;
	unsigned n = 0;

	if (!virtio_may_take(queue))
		return;
	virtqueue_quiet(&queue->ring);
	while (n < PACKETS_A_GO && has_packet(v)) {
		result = virtqueue_pop(&queue->ring, &chain);
		if (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring))
			continue;
		/* Room for a header and a byte behind it: or a connection could wait for ever. */
		if (result == VIRTQUEUE_CHAIN && chain.writable_bytes <= HEADER_BYTES)
			result = virtqueue_break(&queue->ring, "a receive buffer has no room for a packet");
		if (result != VIRTQUEUE_CHAIN)
			break;
		n += fill(v, &queue->ring, &chain);
	}
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (n == PACKETS_A_GO)
		vsock_wake(v);
	if (v->tx_held && v->reset_count < RESETS / 2) {
		v->tx_held = false;
		virtio_again(&v->device.queue[TX]);
	}
}

static void batch_ends(struct io_batch *batch)
{
	struct vsock *v = (struct vsock *)((char *)batch - offsetof(struct vsock, batch));

	if (v->waiting)
		connections_accept(v);
	serve_rx(v);
}

/* --- from the guest --- */

static void receive(struct vsock *v, struct virtqueue *ring, const struct virtqueue_chain *chain)
{
	struct virtqueue_chain copy = *chain;
	struct iov payload = {copy.iov, copy.readable};
	struct virtio_vsock_hdr hdr;

	if (!iov_take(&payload, &hdr, HEADER_BYTES)) {
		virtqueue_break(ring, "a packet is shorter than its header");
		return;
	}
	/* 5.10.6.2.1: nobody else is there to be spoken to, or for. */
	if (le64toh(hdr.src_cid) != v->cid || le64toh(hdr.dst_cid) != HOST_CID)
		return;
	if (le16toh(hdr.type) != VIRTIO_VSOCK_TYPE_STREAM || le32toh(hdr.len) > chain->readable_bytes - HEADER_BYTES) {
		vsock_refuse(v, &hdr);
		return;
	}
	iov_limit(&payload, le32toh(hdr.len));
	connections_receive(v, &hdr, &payload);
}

static void serve_tx(struct vsock *v)
{
	struct virtio_queue *queue = &v->device.queue[TX];
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtqueue_chain chain;
	unsigned n = 0;

	if (!virtio_may_take(queue) || v->tx_held)
		return;
	do {
		virtqueue_quiet(&queue->ring);
		while (n < PACKETS_A_GO && v->reset_count < RESETS &&
		       (result = virtqueue_pop(&queue->ring, &chain)) == VIRTQUEUE_CHAIN) {
			receive(v, &queue->ring, &chain);
			virtqueue_push(&queue->ring, chain.head, 0);
			n++;
		}
	} while (n < PACKETS_A_GO && v->reset_count < RESETS && result == VIRTQUEUE_EMPTY &&
		 virtqueue_listen(&queue->ring));
	virtio_publish(queue);
	v->tx_held = v->reset_count == RESETS;
	if (queue->ring.broken)
		virtio_broken(queue);
	else if (n == PACKETS_A_GO && !v->tx_held)
		virtio_again(queue);
}

/* --- events (5.10.6.7) --- */

static void serve_events(struct vsock *v)
{
	struct virtio_queue *queue = &v->device.queue[EVENTS];
	const struct virtio_vsock_event event = {.id = htole32(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET)};
	struct virtqueue_chain chain;

	if (!v->transport_reset || !virtio_may_take(queue))
		return;
	enum virtqueue_result result;
	do
		result = virtqueue_pop(&queue->ring, &chain);
	while (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring));
	if (result == VIRTQUEUE_CHAIN) {
		struct iov room = {chain.iov + chain.readable, chain.writable};
		size_t n = iov_copy(&room, (void *)(uintptr_t)&event, sizeof(event), IOV_TO_GUEST);
		virtqueue_push(&queue->ring, chain.head, (uint32_t)n);
		v->transport_reset = false;
		virtio_publish(queue);
	} else if (result == VIRTQUEUE_BROKEN) {
		virtio_broken(queue);
	}
}

/* --- the device --- */

static struct vsock *of(const struct virtio_device *dev)
{
	return (struct vsock *)((char *)(uintptr_t)dev - offsetof(struct vsock, device));
}

static void kick(struct virtio_queue *queue)
{
	struct vsock *v = of(queue->device);

	switch (queue->index) {
	case RX:
		serve_rx(v);
		break;
	case TX:
		serve_tx(v);
		break;
	default:
		serve_events(v);
	}
}

/* Sockets may have become ready, and clients come, while the queue stood still. */
static void start(struct virtio_queue *queue)
{
	struct vsock *v = of(queue->device);

	if (queue->index == RX)
		connections_accept(v);
	kick(queue);
}

static void forget_all(void *arg)
{
	struct vsock *v = arg;

	connections_drop(v);
	v->reset_count = 0;
	v->tx_held = v->transport_reset = false;
}

static void reset(struct virtio_device *dev)
{
	struct vsock *v = of(dev);

	iothread_call(v->thread, forget_all, v);
}

static void config_read(struct virtio_device *dev, uint8_t *config)
{
	const struct virtio_vsock_config all = {.guest_cid = htole64(of(dev)->cid)};

	memcpy(config, &all, sizeof(all));
}

/* Connections are not part of it: a machine that was loaded has none, and tells its guest. */
static void state(void *self, struct saved *s)
{
	struct vsock *v = of(self);
	uint64_t cid = v->cid;

	saved_require(s);
	saved_u64(s, "cid", &cid);
	if (!saved_loading(s))
		return;
	if (cid != v->cid)
		saved_fail(s, "the saved machine has the CID %llu, this one %llu (--vsock)", (unsigned long long)cid,
			   (unsigned long long)v->cid);
	iothread_call(v->thread, forget_all, v);
	v->transport_reset = true;
}

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_VSOCK,
	.class_code = 0x078000, /* a communication controller */
	.config_size = sizeof(struct virtio_vsock_config),
	.config_read = config_read,
	.start = start,
	.kick = kick,
	.reset = reset,
	.state = state,
};

static void listener_ready(struct socket_watch *watch, uint32_t events)
{
	struct vsock *v = (struct vsock *)((char *)watch - offsetof(struct vsock, listener));

	(void)events;
	v->waiting = true;
	vsock_wake(v);
}

static struct error *start_sockets(struct vsock *v)
{
	TRY(sockets_init(&v->sockets, v->thread));
	/* No thread runs yet, so these are ours to call. */
	if (v->listener.fd >= 0 && !sockets_add(&v->sockets, &v->listener))
		return error_new(errno, "listen on %s", v->name);
	if (v->connector.fd >= 0 && !sockets_add(&v->sockets, &v->connector))
		return error_new(errno, "listen to the connector");
	return NULL;
}

struct error *vsock_new(struct vsock **out, const struct memory *memory, const struct vsock_config *config)
{
	struct vsock *v = calloc(1, sizeof(*v));
	cleanup_fd int listen_fd = config->listen_fd, connector_fd = config->connector_fd;

	if (!v)
		return error_new(ENOMEM, "make the vsock device");
	v->thread = config->thread;
	v->cid = config->cid;
	v->name = config->name;
	v->batch.end = batch_ends;
	v->listener = (struct socket_watch){listener_ready, steal_fd(&listen_fd), false};
	v->connector = (struct socket_watch){connections_connected, steal_fd(&connector_fd), false};
	v->next_port = 1u << 30; /* above those that people choose */
	for (unsigned i = 0; i < BUCKETS; i++)
		v->bucket[i] = NONE;
	for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
		v->connection[i].vsock = v;
		v->connection[i].socket.fd = -1;
	}
	/* Costs memory where it is touched only, and a connection that ends gives it back. */
	v->buffers = mmap(NULL, (size_t)VSOCK_CONNECTIONS_MAX * VSOCK_BUFFER_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct error *err = v->buffers == MAP_FAILED ? error_new(errno, "make the buffers") : start_sockets(v);
	if (!err)
		err = virtio_init(&v->device, &ops, "vsock", memory, 0, QUEUES, QUEUE_SIZE, &v->thread, 1);
	if (err) {
		vsock_free(v);
		return error_wrap(err, "make the vsock device");
	}
	*out = v;
	return NULL;
}

static void close_all(void *arg)
{
	struct vsock *v = arg;
	const unsigned nothing = 0;

	connections_drop(v);
	sockets_close(&v->sockets, &v->listener);
	sockets_close(&v->sockets, &v->connector);
	/* What was put off to the end of a batch lies in what is freed next. */
	iothread_drain(v->thread, &nothing);
}

void vsock_free(struct vsock *v)
{
	if (!v)
		return;
	if (v->sockets.thread)
		iothread_call(v->thread, close_all, v);
	sockets_destroy(&v->sockets);
	close_fd(&v->listener.fd);
	close_fd(&v->connector.fd);
	if (v->device.ops)
		virtio_destroy(&v->device);
	if (v->buffers && v->buffers != MAP_FAILED)
		munmap(v->buffers, (size_t)VSOCK_CONNECTIONS_MAX * VSOCK_BUFFER_BYTES);
	free(v);
}

struct virtio_device *vsock_device(struct vsock *v)
{
	return &v->device;
}
