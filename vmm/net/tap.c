/*
 * The tap: opening one before the sandbox, and its frames when this process carries them. Every read and write is one
 * frame behind a header of NET_HEADER_BYTES, the same that the guest uses (Documentation/networking/tuntap in Linux).
 *
 * Touches: /dev/net/tun before the guest runs; afterwards the tap's descriptors.
 */
#include "vmm/net/internal.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

/* --- before the guest runs --- */

struct error *net_tap_check(int fd)
{
	struct ifreq ifr = {0};
	int header = NET_HEADER_BYTES, flags = fcntl(fd, F_GETFL);

	if (ioctl(fd, TUNGETIFF, &ifr) < 0)
		return error_hint(error_new(errno, "descriptor %d is no queue of a tap", fd),
				  "open /dev/net/tun and make an interface with TUNSETIFF first");
	if (!(ifr.ifr_flags & IFF_TAP) || !(ifr.ifr_flags & IFF_VNET_HDR) || !(ifr.ifr_flags & IFF_NO_PI))
		return error_hint(error_new(EINVAL, "the interface %s has other flags than it must", ifr.ifr_name),
				  "make it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR");
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0)
		return error_new(errno, "set the header size of %s", ifr.ifr_name);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_new(errno, "make %s not block", ifr.ifr_name);
	return NULL;
}

static struct error *open_queue(const char *name, short flags, int *out)
{
	struct ifreq ifr = {.ifr_flags = flags};

	cleanup_fd int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_new(errno, "open /dev/net/tun");
	memcpy(ifr.ifr_name, name, strlen(name) + 1); /* bounded by net_tap_open() */
	if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
		struct error *err = error_new(errno, "attach to the interface %s", name);
		switch (errno) {
		case EPERM:
			return error_hint(err,
					  "it takes root, or a tap made for this user: ip tuntap add dev %s mode "
					  "tap vnet_hdr user NAME",
					  name);
		case EINVAL:
			return error_hint(err, "one made before must be of one kind with this: several queues need "
					       "multi_queue, one queue needs a tap without it");
		case EBUSY:
			return error_hint(err, "another machine may be using it, or it is no tap");
		default:
			return err;
		}
	}
	TRY(net_tap_check(fd));
	*out = steal_fd(&fd);
	return NULL;
}

struct error *net_tap_open(const char *name, unsigned pairs, int *fds)
{
	short flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

	if (name[0] == '\0' || strlen(name) >= IFNAMSIZ)
		return error_new(EINVAL, "'%s' is no name of an interface: 1 to %d bytes", name, IFNAMSIZ - 1);
	if (pairs > 1)
		flags |= IFF_MULTI_QUEUE;
	for (unsigned i = 0; i < pairs; i++) {
		struct error *err = open_queue(name, flags, &fds[i]);
		if (!err)
			continue;
		while (i-- > 0)
			close_fd(&fds[i]);
		return err;
	}
	return NULL;
}

/* --- frames --- */

bool net_tap_receive(struct net_pair *pair)
{
	for (;;) {
		ssize_t n = read(pair->fd, pair->buffer, NET_BUFFER_BYTES);
		if (n < 0) /* nothing there, or an interface that is down or gone: the next wake tells */
			return false;
		if (n <= (ssize_t)NET_HEADER_BYTES)
			continue;
		memcpy(&pair->frame.header, pair->buffer, NET_HEADER_BYTES);
		pair->frame.data = pair->buffer + NET_HEADER_BYTES;
		pair->frame.len = (size_t)n - NET_HEADER_BYTES;
		return true;
	}
}

enum net_sent net_tap_send(struct net_pair *pair, const struct iovec *iov, unsigned count)
{
	/* An interface that is down, a header that makes no sense, a full queue: the frame is lost. */
	return writev(pair->fd, iov, (int)count) < 0 ? NET_DROPPED : NET_SENT;
}

/* --- what the guest asks for --- */

void net_tap_set_offloads(const struct net_pair *pair, uint64_t features)
{
	static const struct {
		unsigned feature, flag;
	} map[] = {{VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4},
		   {VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6},
		   {VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN}};
	unsigned long flags = 0;

	/* Segmentation without checksums is no feature set that a driver may choose (5.1.3.1), and the tap has none. */
	if (features >> VIRTIO_NET_F_GUEST_CSUM & 1) {
		flags = TUN_F_CSUM;
		for (size_t i = 0; i < sizeof(map) / sizeof(map[0]); i++)
			if (features >> map[i].feature & 1)
				flags |= map[i].flag;
	}
	/* ECN alone is refused. */
	if (!(flags & (TUN_F_TSO4 | TUN_F_TSO6)))
		flags &= ~(unsigned long)TUN_F_TSO_ECN;
	if (ioctl(pair->fd, TUNSETOFFLOAD, flags) < 0)
		log_warn("%s: set the tap's offloads to %#lx: %s", pair->net->name, flags, strerror(errno));
}

void net_tap_set_active(const struct net_pair *pair, bool active)
{
	struct ifreq ifr = {.ifr_flags = active ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

	/* EINVAL: it is so already. */
	if (ioctl(pair->fd, TUNSETQUEUE, &ifr) < 0 && errno != EINVAL)
		log_warn("%s: %s queue %u of the tap: %s", pair->net->name, active ? "attach" : "detach", pair->index,
			 strerror(errno));
}
