/*
 * The control queue (virtio 1.2, 5.1.6.5): what the guest asks of its interface. A chain is a class, a command and its
 * data, then a byte for the answer. Filters of addresses and VLANs are checked for form and accepted: more frames than
 * asked for may always come (5.1.6.5.1), and the host's bridge sorts them.
 *
 * Touches: guest memory through the control queue, the device's state; runs on pair 0's thread.
 */
#include "vmm/net/internal.h"

#include "base/util.h"
#include "vmm/virtio/iov.h"

#include <string.h>

#define COMMANDS_A_GO 16

/* Takes @len bytes of data that must be all there are. */
static bool take_all(struct iov *data, uint32_t bytes, void *value, size_t len)
{
	return bytes == len && iov_take(data, value, len);
}

/* 5.1.6.5.2: two tables of addresses, each behind its number of entries. */
static bool good_table(struct iov *data, uint32_t bytes)
{
	for (unsigned table = 0; table < 2; table++) {
		uint32_t entries;
		if (!iov_take(data, &entries, sizeof(entries)))
			return false;
		bytes -= sizeof(entries);
		if (entries > bytes / NET_MAC_BYTES)
			return false;
		iov_skip(data, (size_t)entries * NET_MAC_BYTES);
		bytes -= entries * NET_MAC_BYTES;
	}
	return bytes == 0;
}

static bool receive_mode(struct net *net, uint8_t command, struct iov *data, uint32_t bytes)
{
	uint8_t on;

	if (command > VIRTIO_NET_CTRL_RX_NOBCAST || !take_all(data, bytes, &on, sizeof(on)) || on > 1)
		return false;
	/* Those behind the first two are of another feature, which is not offered (5.1.6.5.1). */
	if (command > VIRTIO_NET_CTRL_RX_ALLMULTI)
		return false;
	net->receive_mode = (uint8_t)((net->receive_mode & ~(1u << command)) | (unsigned)on << command);
	return true;
}

static bool set_mac(struct net *net, uint8_t command, struct iov *data, uint32_t bytes)
{
	uint64_t mac = 0;

	if (command == VIRTIO_NET_CTRL_MAC_TABLE_SET)
		return good_table(data, bytes);
	if (command != VIRTIO_NET_CTRL_MAC_ADDR_SET || !virtio_has(&net->device, VIRTIO_NET_F_CTRL_MAC_ADDR) ||
	    !take_all(data, bytes, &mac, NET_MAC_BYTES))
		return false;
	atomic_store(&net->mac, mac);
	return true;
}

static bool filter_vlan(uint8_t command, struct iov *data, uint32_t bytes)
{
	uint16_t vlan;

	return (command == VIRTIO_NET_CTRL_VLAN_ADD || command == VIRTIO_NET_CTRL_VLAN_DEL) &&
	       take_all(data, bytes, &vlan, sizeof(vlan)) && vlan < 4096;
}

static bool use_pairs(struct net *net, uint8_t command, struct iov *data, uint32_t bytes)
{
	uint16_t pairs;

	if (command != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !take_all(data, bytes, &pairs, sizeof(pairs)) || pairs < 1 ||
	    pairs > net->pair_count)
		return false;
	net_use_pairs(net, pairs);
	return true;
}

static bool set_offloads(struct net *net, uint8_t command, struct iov *data, uint32_t bytes)
{
	uint64_t offloads;

	if (command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET || !take_all(data, bytes, &offloads, sizeof(offloads)) ||
	    offloads & ~(net->device.features & NET_OFFLOADS))
		return false;
	net->offloads = offloads;
	net->offloads_set = true;
	net_apply_offloads(net);
	return true;
}

static bool announced(struct net *net, uint8_t command, uint32_t bytes)
{
	if (command != VIRTIO_NET_CTRL_ANNOUNCE_ACK || bytes)
		return false;
	atomic_fetch_and(&net->status, (uint16_t)~VIRTIO_NET_S_ANNOUNCE);
	return true;
}

/* A class belongs to a feature: without it the command is unknown. */
static bool command(struct net *net, const struct virtqueue_chain *chain)
{
	struct iovec v[VIRTQUEUE_SIZE_MAX];
	struct iov data = {v, chain->readable};
	struct virtio_net_ctrl_hdr header;
	const struct virtio_device *dev = &net->device;

	memcpy(v, chain->iov, chain->readable * sizeof(v[0]));
	if (!iov_take(&data, &header, sizeof(header)))
		return false;
	uint32_t bytes = chain->readable_bytes - (uint32_t)sizeof(header);
	switch (header.class) {
	case VIRTIO_NET_CTRL_RX:
		return virtio_has(dev, VIRTIO_NET_F_CTRL_RX) && receive_mode(net, header.cmd, &data, bytes);
	case VIRTIO_NET_CTRL_MAC:
		return set_mac(net, header.cmd, &data, bytes);
	case VIRTIO_NET_CTRL_VLAN:
		return virtio_has(dev, VIRTIO_NET_F_CTRL_VLAN) && filter_vlan(header.cmd, &data, bytes);
	case VIRTIO_NET_CTRL_ANNOUNCE:
		return virtio_has(dev, VIRTIO_NET_F_GUEST_ANNOUNCE) && announced(net, header.cmd, bytes);
	case VIRTIO_NET_CTRL_MQ:
		return virtio_has(dev, VIRTIO_NET_F_MQ) && use_pairs(net, header.cmd, &data, bytes);
	case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
		return virtio_has(dev, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) && set_offloads(net, header.cmd, &data, bytes);
	default:
		return false;
	}
}

void net_control(struct virtio_queue *queue)
{
	struct net *net = (struct net *)((char *)queue->device - offsetof(struct net, device));
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtqueue_chain chain;
	unsigned taken = 0;

	if (!virtio_may_take(queue))
		return;
	do {
		virtqueue_quiet(&queue->ring);
		while (taken < COMMANDS_A_GO && (result = virtqueue_pop(&queue->ring, &chain)) == VIRTQUEUE_CHAIN) {
			uint8_t ack = command(net, &chain) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
			struct iov answer = {chain.iov + chain.readable, chain.writable};
			size_t n = iov_copy(&answer, &ack, sizeof(ack), IOV_TO_GUEST);
			virtqueue_push(&queue->ring, chain.head, (uint32_t)n);
			taken++;
		}
	} while (taken < COMMANDS_A_GO && result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring));
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (taken == COMMANDS_A_GO)
		virtio_again(queue);
}
