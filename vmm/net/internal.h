/*
 * Inside virtio-net: the device (net.c), its rings when served by this process (queue.c) or by vhost (vhost.c), its
 * control queue (ctrl.c), and the two ways to the host (tap.c, passt.c). For this folder only.
 */
#ifndef GLINT_VMM_NET_INTERNAL_H
#define GLINT_VMM_NET_INTERNAL_H

#include "vmm/net/net.h"

#include <linux/if_ether.h>
#include <linux/virtio_net.h>

/* The header of every frame: num_buffers is always there in a modern device (5.1.6.1). */
#define NET_HEADER_BYTES sizeof(struct virtio_net_hdr_v1)
/* The largest frame: a 64 KiB IP packet, its Ethernet header, a VLAN tag or two. */
#define NET_FRAME_MAX (65535u + ETH_HLEN + 8u)
/* Room for some frames of a stream at once. */
#define NET_BUFFER_BYTES (2u * (NET_HEADER_BYTES + NET_FRAME_MAX))

/* A frame on its way to the guest. */
struct net_frame {
	struct virtio_net_hdr_v1 header;
	const uint8_t *data;
	size_t len;
};

/* One ring of a pair as vhost has it. Belongs to the pair's thread, but for stats. */
struct net_ring {
	atomic_bool vhost; /* the kernel serves it */
	int call_fd;       /* what it signals then */
};

struct net_pair {
	struct net *net;
	unsigned index;
	struct iothread *thread;
	struct virtio_queue *rx, *tx;

	/* The host's end: a tap's queue or passt's socket; -1: it went away. */
	int fd;
	struct io_watch watch;
	bool watched;

	/* Frames from the host. A tap gives one at a time; a stream is what came, [start, end) of it not yet taken. */
	uint8_t *buffer;
	size_t start, end;
	bool held; /* @frame was taken, but the guest has no room for it yet */
	struct net_frame frame;

	/* passt: the rest of a frame that the socket did not take whole; while there is one nothing else is sent. */
	uint8_t *rest;
	size_t rest_start, rest_end;

	/* vhost: -1 when there is none. */
	int vhost_fd;
	bool vhost_owned, vhost_failed;
	struct net_ring ring[2];
	int relay_fd, error_fd; /* eventfds: interrupts for pins; a malformed ring */
	struct io_watch relay, error;

	struct net_stats stats; /* written by the thread, read by any */
};

struct net {
	struct virtio_device device;
	const char *name;
	enum net_kind kind;
	unsigned pair_count;
	uint16_t mtu;
	uint8_t power_on_mac[NET_MAC_BYTES];
	void (*lost)(void *arg);
	void *lost_arg;

	/* Read by configuration accesses, changed on pair 0's thread. */
	_Atomic uint64_t mac;    /* its bytes, the first one lowest */
	_Atomic uint16_t status; /* VIRTIO_NET_S_* */
	atomic_bool cable;       /* as config and control socket want it */
	atomic_bool peer;        /* the host's end is there */

	/* What the guest set by the control queue, on pair 0's thread. */
	_Atomic uint16_t active; /* pairs in use; read by all threads */
	bool offloads_set;       /* by CTRL_GUEST_OFFLOADS; before that they follow the features */
	uint64_t offloads;       /* feature bits */
	uint8_t receive_mode;    /* bits by VIRTIO_NET_CTRL_RX command */
	bool tell;               /* restored: the guest is to look at its configuration */

	struct net_pair pair[NET_PAIRS_MAX];
};

static inline void net_count(uint64_t *counter, uint64_t n)
{
	/* One writer; readers want no torn value. */
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline bool net_is_rx(const struct virtio_queue *queue)
{
	return queue->index % 2 == 0;
}

static inline struct net_ring *net_ring(struct net_pair *pair, const struct virtio_queue *queue)
{
	return &pair->ring[queue->index % 2];
}

/* What the guest takes of checksums and segmentation, as VIRTIO_NET_F_GUEST_* bits. */
uint64_t net_offloads(const struct net *net);
#define NET_OFFLOADS                                                                                                   \
	(1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6 |         \
	 1ull << VIRTIO_NET_F_GUEST_ECN)

/* --- net.c --- */

/* Sets what the guest sees of the link from cable and peer. On pair 0's thread. */
void net_update_link(struct net *net);
/* Chooses anew who serves the pair's rings, and looks at them. On its thread; @pair: a struct net_pair. */
void net_pair_update(void *pair);
/* The host's end of @pair went away, on its thread. */
void net_lost(struct net_pair *pair);
/* Brings the tap to what the guest negotiated and asked for. On pair 0's thread. */
void net_apply_offloads(struct net *net);
/* Uses the first @pairs pairs. */
void net_use_pairs(struct net *net, uint16_t pairs);
/* Starts and ends looking at the host's end. On the pair's thread. */
void net_watch(struct net_pair *pair, bool on);

/* --- queue.c: on the pair's thread --- */

void net_receive(struct net_pair *pair);
/* The frame that waits for the guest's buffers; @self: a struct net_pair. For the device's state. */
void net_held_state(void *self, struct saved *s);
void net_transmit(struct net_pair *pair);

/* --- ctrl.c --- */

void net_control(struct virtio_queue *queue);

/* --- tap.c, passt.c: on the pair's thread --- */

enum net_sent {
	NET_SENT,
	NET_DROPPED, /* the host does not take it: it is lost, as on any wire */
	NET_LATER,   /* taken, but now the host must make room before anything else is sent */
};

/* The next frame from the host into pair->frame; it stays there until the next call. False when there is none now. */
bool net_tap_receive(struct net_pair *pair);
bool net_passt_receive(struct net_pair *pair);
/* Sends the header and frame in @iov, @bytes in all. */
enum net_sent net_tap_send(struct net_pair *pair, const struct iovec *iov, unsigned count);
enum net_sent net_passt_send(struct net_pair *pair, const struct iovec *iov, unsigned count);
/* Sends what was left. True when all of it went. */
bool net_passt_flush(struct net_pair *pair);
void net_tap_set_offloads(const struct net_pair *pair, uint64_t features);
void net_tap_set_active(const struct net_pair *pair, bool active);

/* --- vhost.c: on the pair's thread, where nothing else is said --- */

/* Before the sandbox: checks what the kernel can do. */
[[nodiscard]] struct error *net_vhost_check(int fd);
/* Gives the ring of @queue to vhost. False when the kernel refuses: this process goes on serving it. */
bool net_vhost_start(struct net_pair *pair, struct virtio_queue *queue);
/* Takes the ring back; its indexes are the queue's again. */
void net_vhost_stop(struct net_pair *pair, struct virtio_queue *queue);
/* The vector or MSI-X itself changed: signals whom it must now. */
void net_vhost_route(struct net_pair *pair, struct virtio_queue *queue);
/* Eventfds and watches of the pair. Before anything is started, and after all was stopped; any thread. */
[[nodiscard]] struct error *net_vhost_prepare(struct net_pair *pair);
void net_vhost_release(struct net_pair *pair);

#endif
