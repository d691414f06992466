/*
 * virtio-net (virtio 1.2, section 5.1): a network interface of the guest, and what carries its frames on the host.
 *
 *  - A tap: a layer 2 interface of the host, bridged or routed there. Frames travel with virtio's own header, so that
 *    checksums and segmentation are left to whoever can do them. Where vhost-net is given, the kernel serves the rings
 *    by itself and this process sees no frame; without it an I/O thread does, and always while the link is down.
 *  - passt: user-mode networking without privileges. Frames go over passt's stream socket, each behind its length; it
 *    knows no partial checksums and no segmentation, so the guest is not offered them. vhost-user, passt's other
 *    language, would spare copies, but gives a second process the guest's memory and moves badly: not used.
 *
 * Queues are in pairs, 2i receives and 2i + 1 transmits; the last is the control queue. A pair belongs to one I/O
 * thread, the control queue to that of pair 0.
 *
 * The dirty log of vhost is not used yet. Live migration can do without: the rings' indexes come back whenever vhost is
 * stopped, so frames may go through the I/O thread while memory is sent.
 */
#ifndef GLINT_VMM_NET_NET_H
#define GLINT_VMM_NET_NET_H

#include "vmm/virtio/virtio.h"

#define NET_PAIRS_MAX 8
#define NET_MAC_BYTES 6
#define NET_MTU_MIN   68 /* 5.1.4.1 */
#define NET_MTU_MAX   65535

struct net;

enum net_kind { NET_TAP, NET_PASST };

struct net_config {
	const char *name; /* for errors and the log */
	enum net_kind kind;
	unsigned pairs; /* of queues; passt has 1 */
	/* The tap's queues, one for each pair (IFF_VNET_HDR, see net_tap_check()), or passt's connected socket. They
	 * become the device's. */
	int fd[NET_PAIRS_MAX];
	/* /dev/vhost-net, opened once for each pair; -1: none. They become the device's. */
	int vhost_fd[NET_PAIRS_MAX];
	uint8_t mac[NET_MAC_BYTES];
	uint16_t mtu; /* what the guest is told; 0: nothing */
	bool link_down;
	struct iothread *const *threads;
	unsigned thread_count;
	/* passt went away: called once for each time, on an I/O thread. May be NULL. */
	void (*lost)(void *arg);
	void *lost_arg;
};

/* After an error nothing was taken. */
[[nodiscard]] struct error *net_new(struct net **out, const struct memory *memory, const struct net_config *config);
/* Its queues are stopped (virtio_pci_free()). NULL is allowed. */
void net_free(struct net *net);

/* For the transport. Borrowed. */
struct virtio_device *net_device(struct net *net);

/* --- what the control socket asks for; each on the main thread --- */

/* Plugs the cable in or pulls it; the guest is told. */
void net_set_link(struct net *net, bool up);
/* Whether frames can flow: the cable is in, and passt is there. Any thread. */
bool net_link(const struct net *net);
/* Gives an interface on passt a new connected socket. @fd becomes the device's, also after an error. */
[[nodiscard]] struct error *net_attach(struct net *net, int fd);

struct net_stats {
	uint64_t rx_frames, rx_bytes, rx_dropped; /* to the guest */
	uint64_t tx_frames, tx_bytes, tx_dropped; /* from it */
	bool vhost; /* the kernel carries the frames now: what it does is not counted here */
};
void net_stats(const struct net *net, struct net_stats *stats);

/* --- before the sandbox: descriptors for a config --- */

/* Makes or opens the tap @name with @pairs queues (IFF_MULTI_QUEUE when more than one). */
[[nodiscard]] struct error *net_tap_open(const char *name, unsigned pairs, int *fds);
/* Checks that @fd is a queue of a tap as this device needs it, and sets it up. */
[[nodiscard]] struct error *net_tap_check(int fd);
/* Opens /dev/vhost-net @pairs times. */
[[nodiscard]] struct error *net_vhost_open(unsigned pairs, int *fds);
/* Checks that @fd is a stream socket, and has it never wait. */
[[nodiscard]] struct error *net_passt_check(int fd);
/* Connects to passt's socket at @path. */
[[nodiscard]] struct error *net_passt_connect(const char *path, int *fd);

#endif
