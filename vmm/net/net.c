/*
 * The network device: features, configuration, link, state, and who serves the rings; see net.h.
 *
 * A ring of a tap is vhost's while it runs, the guest lets the device reach memory, and the link is up; else this
 * process serves it (and with the link down throws frames away). The choice is made anew whenever one of these changes,
 * always on the pair's thread. With vhost the doorbell is the kernel's alone: the thread stops looking at it.
 *
 * Touches: the descriptors of the config, guest memory through its queues.
 */
#include "vmm/net/internal.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/virtio/virtio_pci.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE VIRTQUEUE_SIZE_MAX
#define BIT(f)     (1ull << (f))

/* What the device does by itself. VLAN and MAC filters are accepted and let everything pass: the host's bridge sorts.
 */
#define FEATURES_ALWAYS                                                                                                \
	(BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_CTRL_VQ) |  \
	 BIT(VIRTIO_NET_F_CTRL_RX) | BIT(VIRTIO_NET_F_CTRL_VLAN) | BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) |                   \
	 BIT(VIRTIO_NET_F_GUEST_ANNOUNCE))
#define FEATURES_TAP                                                                                                   \
	(NET_OFFLOADS | BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) |           \
	 BIT(VIRTIO_NET_F_HOST_ECN) | BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS))

static struct net *net_of(struct virtio_device *dev)
{
	return (struct net *)((char *)dev - offsetof(struct net, device));
}

/* NULL for the control queue. */
static struct net_pair *pair_of(const struct virtio_queue *queue)
{
	struct net *net = net_of(queue->device);

	return queue->index / 2 < net->pair_count ? &net->pair[queue->index / 2] : NULL;
}

/* --- configuration (5.1.4) --- */

static uint64_t pack_mac(const uint8_t *mac)
{
	uint64_t packed = 0;

	memcpy(&packed, mac, NET_MAC_BYTES);
	return packed;
}

static void config_read(struct virtio_device *dev, uint8_t *config)
{
	struct net *net = net_of(dev);
	uint64_t mac = atomic_load(&net->mac);
	struct virtio_net_config c = {
		.status = atomic_load(&net->status), .max_virtqueue_pairs = (uint16_t)net->pair_count, .mtu = net->mtu};

	memcpy(c.mac, &mac, NET_MAC_BYTES);
	memcpy(config, &c, offsetof(struct virtio_net_config, speed));
}

/* --- the link --- */

bool net_link(const struct net *net)
{
	return atomic_load(&net->cable) && atomic_load(&net->peer);
}

void net_update_link(struct net *net)
{
	bool up = net_link(net);
	uint16_t before = up ? atomic_fetch_or(&net->status, VIRTIO_NET_S_LINK_UP)
			     : atomic_fetch_and(&net->status, (uint16_t)~VIRTIO_NET_S_LINK_UP);

	if (((before & VIRTIO_NET_S_LINK_UP) != 0) != up)
		virtio_config_changed(&net->device);
}

static void update_link(void *arg)
{
	net_update_link(arg);
}

static void update_pairs(struct net *net)
{
	for (unsigned i = 0; i < net->pair_count; i++)
		iothread_call(net->pair[i].thread, net_pair_update, &net->pair[i]);
}

void net_set_link(struct net *net, bool up)
{
	/* What came while the cable was out is thrown away before it is in. */
	update_pairs(net);
	atomic_store(&net->cable, up);
	iothread_call(net->pair[0].thread, update_link, net);
	update_pairs(net);
}

void net_watch(struct net_pair *pair, bool on)
{
	if (pair->fd < 0 || pair->watched == on)
		return;
	pair->watched = on;
	if (on)
		iothread_watch(pair->thread, &pair->watch);
	else
		iothread_unwatch(pair->thread, &pair->watch);
}

static void drop_peer(struct net_pair *pair)
{
	if (pair->fd < 0)
		return;
	net_watch(pair, false);
	iothread_remove_file(pair->thread, pair->watch.slot);
	close_fd(&pair->fd);
	pair->held = false;
	pair->start = pair->end = 0;
	pair->rest_start = pair->rest_end = 0;
}

void net_lost(struct net_pair *pair)
{
	struct net *net = pair->net;

	drop_peer(pair);
	log_warn("%s: the other side closed; the link is down until it gets a new one", net->name);
	atomic_store(&net->peer, false);
	net_update_link(net);
	if (net->lost)
		net->lost(net->lost_arg);
}

static void host_ready(struct io_watch *watch)
{
	struct net_pair *pair = (struct net_pair *)((char *)watch - offsetof(struct net_pair, watch));

	net_receive(pair);
	if (pair->rest_end && net_passt_flush(pair))
		net_transmit(pair);
}

static struct error *add_peer(struct net_pair *pair, int fd)
{
	TRY(iothread_add_file(pair->thread, fd, &pair->watch.slot));
	pair->fd = fd;
	pair->watch.ready = host_ready;
	/* A stream also says when there is room again. */
	pair->watch.events = pair->net->kind == NET_PASST ? POLLIN | POLLOUT : POLLIN;
	return NULL;
}

struct attach_call {
	struct net *net;
	int fd;
	struct error *err;
};

static void attach(void *arg)
{
	struct attach_call *call = arg;
	struct net_pair *pair = &call->net->pair[0];

	drop_peer(pair);
	call->err = add_peer(pair, call->fd);
	if (!call->err)
		call->fd = -1;
	atomic_store(&call->net->peer, !call->err);
	net_update_link(call->net);
	net_pair_update(pair);
}

struct error *net_attach(struct net *net, int fd)
{
	struct attach_call call = {.net = net, .fd = fd};

	if (net->kind == NET_PASST) {
		call.err = net_passt_check(fd);
		if (!call.err)
			iothread_call(net->pair[0].thread, attach, &call);
	} else {
		call.err = error_new(ENOTSUP, "%s: only an interface on passt takes a new socket", net->name);
	}
	close_fd(&call.fd);
	return call.err;
}

/* --- who serves the rings --- */

/* A tap's queue that is not in use is detached: it can neither be polled nor be vhost's. */
static bool in_use(const struct net_pair *pair)
{
	return pair->index < atomic_load(&pair->net->active);
}

static bool wants_vhost(const struct net_pair *pair, const struct virtio_queue *queue)
{
	return in_use(pair) && pair->vhost_fd >= 0 && !pair->vhost_failed && virtio_may_take(queue) &&
	       !queue->ring.broken && net_link(pair->net);
}

static void choose(struct net_pair *pair, struct virtio_queue *queue)
{
	struct net_ring *ring = net_ring(pair, queue);
	bool has = atomic_load_explicit(&ring->vhost, memory_order_relaxed), wants = wants_vhost(pair, queue);

	if (wants && !has) {
		iothread_unwatch(pair->thread, &queue->watch);
		if (net_vhost_start(pair, queue)) {
			atomic_store_explicit(&ring->vhost, true, memory_order_relaxed);
		} else {
			pair->vhost_failed = true;
			iothread_watch(pair->thread, &queue->watch);
		}
	} else if (has && !wants) {
		net_vhost_stop(pair, queue);
		atomic_store_explicit(&ring->vhost, false, memory_order_relaxed);
		iothread_watch(pair->thread, &queue->watch);
	}
	/* The host's end is looked at by whoever receives. */
	if (net_is_rx(queue))
		net_watch(pair,
			  queue->running && in_use(pair) && !atomic_load_explicit(&ring->vhost, memory_order_relaxed));
}

void net_pair_update(void *arg)
{
	struct net_pair *pair = arg;

	choose(pair, pair->rx);
	choose(pair, pair->tx);
	net_receive(pair);
	net_transmit(pair);
}

uint64_t net_offloads(const struct net *net)
{
	return (net->offloads_set ? net->offloads : net->device.features) & NET_OFFLOADS;
}

void net_apply_offloads(struct net *net)
{
	if (net->kind == NET_TAP)
		net_tap_set_offloads(&net->pair[0], net_offloads(net));
}

void net_use_pairs(struct net *net, uint16_t pairs)
{
	if (net->pair_count == 1)
		return;
	for (unsigned i = 0; i < pairs; i++)
		net_tap_set_active(&net->pair[i], true);
	atomic_store(&net->active, pairs);
	/* From this thread to the others only, so nobody waits in a circle. */
	for (unsigned i = 1; i < net->pair_count; i++)
		iothread_call(net->pair[i].thread, net_pair_update, &net->pair[i]);
	for (unsigned i = pairs; i < net->pair_count; i++)
		net_tap_set_active(&net->pair[i], false);
}

static void kick(struct virtio_queue *queue)
{
	struct net_pair *pair = pair_of(queue);

	if (!pair)
		net_control(queue);
	else if (net_is_rx(queue))
		net_receive(pair);
	else
		net_transmit(pair);
}

static void start(struct virtio_queue *queue)
{
	struct net *net = net_of(queue->device);
	struct net_pair *pair = pair_of(queue);

	if (queue->index == 0) {
		net_apply_offloads(net);
		net_use_pairs(net, atomic_load(&net->active));
		if (net->tell)
			virtio_config_changed(&net->device);
		net->tell = false;
	}
	if (pair)
		choose(pair, queue);
	kick(queue);
}

/* Nothing is ever in flight here: frames are copied by the kernel or by us before a chain is used. */
static void drain(struct virtio_queue *queue)
{
	struct net_pair *pair = pair_of(queue);

	if (pair)
		choose(pair, queue);
}

static void forget(struct virtio_queue *queue)
{
	struct net_pair *pair = pair_of(queue);

	if (pair && net_is_rx(queue))
		pair->held = false;
}

static void function_changed(struct virtio_queue *queue)
{
	struct net_pair *pair = pair_of(queue);

	if (!pair) {
		net_control(queue);
		return;
	}
	choose(pair, queue);
	if (atomic_load_explicit(&net_ring(pair, queue)->vhost, memory_order_relaxed))
		net_vhost_route(pair, queue);
	kick(queue);
}

/* --- reset and state --- */

static void reset(struct virtio_device *dev)
{
	struct net *net = net_of(dev);

	atomic_store(&net->mac, pack_mac(net->power_on_mac));
	atomic_fetch_and(&net->status, (uint16_t)~VIRTIO_NET_S_ANNOUNCE);
	atomic_store(&net->active, 1);
	net->offloads_set = net->tell = false;
	net->offloads = 0;
	net->receive_mode = 0;
}

static bool any_held(const struct net *net)
{
	for (unsigned i = 0; i < net->pair_count; i++)
		if (net->pair[i].held)
			return true;
	return false;
}

static void held_state(void *self, struct saved *s)
{
	struct net *net = self;

	saved_array(s, "pairs", net->pair, net->pair_count, sizeof(net->pair[0]), net_held_state);
}

static void state(void *self, struct saved *s)
{
	struct net *net = net_of(self);
	uint64_t packed = atomic_load(&net->mac);
	uint8_t mac[NET_MAC_BYTES];
	uint16_t active = atomic_load(&net->active);

	memcpy(mac, &packed, sizeof(mac));
	saved_require(s);
	saved_bytes(s, "mac", mac, sizeof(mac));
	saved_require(s);
	saved_u16(s, "active-pairs", &active);
	saved_bool(s, "offloads-set", &net->offloads_set);
	saved_u64(s, "offloads", &net->offloads);
	saved_u8(s, "receive-mode", &net->receive_mode);
	saved_subsection(s, "held", any_held(net), held_state, net);
	if (!saved_loading(s))
		return;
	if (active < 1 || active > net->pair_count)
		saved_fail(s, "%u pairs of queues are in use, of %u", active, net->pair_count);
	else
		atomic_store(&net->active, active);
	if (net->offloads & ~(net->device.features & NET_OFFLOADS))
		saved_fail(s, "offloads %#llx were not negotiated", (unsigned long long)net->offloads);
	atomic_store(&net->mac, pack_mac(mac));
	/* Bridges and switches must learn where the guest is now; it knows the addresses it uses (5.1.6.5.4). */
	if (virtio_has(&net->device, VIRTIO_NET_F_GUEST_ANNOUNCE))
		atomic_fetch_or(&net->status, VIRTIO_NET_S_ANNOUNCE);
	/* The link may be another than it was. */
	net->tell = true;
}

/* --- making it --- */

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_NET,
	.class_code = 0x020000, /* Ethernet controller */
	.config_size = offsetof(struct virtio_net_config, speed),
	.config_read = config_read,
	.start = start,
	.kick = kick,
	.drain = drain,
	.forget = forget,
	.function_changed = function_changed,
	.reset = reset,
	.state = state,
};

static uint64_t features_of(const struct net_config *config)
{
	uint64_t features = FEATURES_ALWAYS;

	if (config->kind == NET_TAP)
		features |= FEATURES_TAP;
	if (config->pairs > 1)
		features |= BIT(VIRTIO_NET_F_MQ);
	if (config->mtu)
		features |= BIT(VIRTIO_NET_F_MTU);
	return features;
}

static struct error *init_pair(struct net *net, unsigned index, const struct net_config *config)
{
	struct net_pair *pair = &net->pair[index];

	pair->buffer = malloc(NET_BUFFER_BYTES);
	pair->rest = net->kind == NET_PASST ? malloc(NET_BUFFER_BYTES) : NULL;
	if (!pair->buffer || (net->kind == NET_PASST && !pair->rest))
		return error_new(ENOMEM, "make the buffers of queue pair %u", index);
	if (config->vhost_fd[index] >= 0) {
		TRY(net_vhost_check(config->vhost_fd[index]));
		TRY(net_vhost_prepare(pair));
	}
	return add_peer(pair, config->fd[index]);
}

static struct error *init(struct net *net, const struct memory *memory, const struct net_config *config)
{
	struct iothread *threads[2 * NET_PAIRS_MAX + 1] = {0};
	unsigned queues = 2 * config->pairs + 1;

	for (unsigned i = 0; i < queues; i++)
		threads[i] = config->threads[i / 2 % config->thread_count];
	threads[queues - 1] = threads[0];
	TRY(virtio_init(&net->device, &ops, config->name, memory, features_of(config), queues, QUEUE_SIZE, threads,
			queues));
	for (unsigned i = 0; i < config->pairs; i++) {
		struct net_pair *pair = &net->pair[i];
		pair->rx = &net->device.queue[2 * i];
		pair->tx = &net->device.queue[2 * i + 1];
		pair->thread = pair->rx->thread;
		net->pair_count++;
		TRY(error_wrap(init_pair(net, i, config), "%s", config->name));
	}
	return NULL;
}

struct error *net_new(struct net **out, const struct memory *memory, const struct net_config *config)
{
	if (config->pairs < 1 || config->pairs > (config->kind == NET_TAP ? NET_PAIRS_MAX : 1))
		return error_new(EINVAL, "%s: %u pairs of queues: a tap has 1 to %d, passt has 1", config->name,
				 config->pairs, NET_PAIRS_MAX);
	struct net *net = calloc(1, sizeof(*net));
	if (!net)
		return error_new(ENOMEM, "make the network device %s", config->name);
	net->name = config->name;
	net->kind = config->kind;
	net->mtu = config->mtu;
	net->lost = config->lost;
	net->lost_arg = config->lost_arg;
	memcpy(net->power_on_mac, config->mac, NET_MAC_BYTES);
	atomic_init(&net->cable, !config->link_down);
	atomic_init(&net->peer, true);
	atomic_init(&net->status, config->link_down ? 0 : VIRTIO_NET_S_LINK_UP);
	for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
		struct net_pair *pair = &net->pair[i];
		pair->net = net;
		pair->index = i;
		pair->fd = pair->vhost_fd = pair->relay_fd = pair->error_fd = -1;
	}
	reset(&net->device);
	struct error *err = init(net, memory, config);
	if (err) {
		/* Nothing was taken: the descriptors stay the caller's. */
		for (unsigned i = 0; i < net->pair_count; i++) {
			if (net->pair[i].fd >= 0)
				iothread_remove_file(net->pair[i].thread, net->pair[i].watch.slot);
			net->pair[i].fd = -1;
		}
		net_free(net);
		return err;
	}
	for (unsigned i = 0; i < net->pair_count; i++)
		net->pair[i].vhost_fd = config->vhost_fd[i];
	*out = net;
	return NULL;
}

static void release(void *arg)
{
	drop_peer(arg);
}

void net_free(struct net *net)
{
	if (!net)
		return;
	for (unsigned i = 0; i < net->pair_count; i++) {
		struct net_pair *pair = &net->pair[i];
		iothread_call(pair->thread, release, pair);
		net_vhost_release(pair);
		close_fd(&pair->vhost_fd);
		free(pair->buffer);
		free(pair->rest);
	}
	virtio_destroy(&net->device);
	free(net);
}

struct virtio_device *net_device(struct net *net)
{
	return &net->device;
}

void net_stats(const struct net *net, struct net_stats *stats)
{
	*stats = (struct net_stats){.vhost = true};
	for (unsigned i = 0; i < net->pair_count; i++) {
		const struct net_pair *pair = &net->pair[i];
		const uint64_t *from = &pair->stats.rx_frames;
		uint64_t *to = &stats->rx_frames;
		for (unsigned n = 0; n < offsetof(struct net_stats, vhost) / sizeof(*to); n++)
			to[n] += __atomic_load_n(&from[n], __ATOMIC_RELAXED);
		if (in_use(pair))
			stats->vhost &= pair->ring[0].vhost && pair->ring[1].vhost;
	}
}
