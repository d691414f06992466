/*
 * vhost-net: the kernel serves the rings between the guest's memory and the tap (linux/vhost.h). One /dev/vhost-net a
 * pair; ring 0 receives, 1 transmits.
 *
 * Doorbells go to the kernel, and what it signals is the MSI-X vector's own eventfd: while the vector can fire KVM
 * takes it from there, while it is masked its counter is the pending bit (pci/msix.c), and nobody here runs. Only a
 * guest that uses pins instead of messages needs this process for an interrupt: then the kernel signals `relay`.
 *
 * The kernel's worker is a thread of the process that makes it its own (VHOST_SET_OWNER); the sandbox wants none before
 * it is closed, so that is done when the first ring starts. Stopping a ring gives its indexes back: how far the kernel
 * took (VHOST_GET_VRING_BASE), and how far it gave back, which is in the ring; for every chain is done then.
 *
 * A ring that breaks the kernel's rules is signalled on `error`, which does not say which of the two it is.
 *
 * Touches: the vhost descriptors, the tap's, two eventfds.
 */
#include "vmm/net/internal.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/virtio/virtio_pci.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

/* What rings and headers look like; checksums and segmentation are between the guest and the tap. */
#define VHOST_FEATURES                                                                                                 \
	(1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX |          \
	 1ull << VIRTIO_NET_F_MRG_RXBUF)

struct error *net_vhost_open(unsigned pairs, int *fds)
{
	for (unsigned i = 0; i < pairs; i++) {
		fds[i] = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
		if (fds[i] >= 0)
			continue;
		struct error *err = error_hint(error_new(errno, "open /dev/vhost-net"),
					       "load the module vhost_net, or say vhost=off");
		while (i-- > 0)
			close_fd(&fds[i]);
		return err;
	}
	return NULL;
}

struct error *net_vhost_check(int fd)
{
	uint64_t features;

	if (ioctl(fd, VHOST_GET_FEATURES, &features) < 0)
		return error_new(errno, "descriptor %d is no /dev/vhost-net (VHOST_GET_FEATURES)", fd);
	if (VHOST_FEATURES & ~features)
		return error_hint(error_new(ENOTSUP, "this kernel's vhost-net lacks features %#llx",
					    VHOST_FEATURES & ~(unsigned long long)features),
				  "say vhost=off");
	return NULL;
}

/* --- signals --- */

static void relay(struct io_watch *watch)
{
	struct net_pair *pair = (struct net_pair *)((char *)watch - offsetof(struct net_pair, relay));

	for (unsigned i = 0; i < 2; i++)
		if (pair->ring[i].vhost && pair->ring[i].call_fd == pair->relay_fd)
			virtio_pci_queue_interrupt(i ? pair->tx : pair->rx);
}

static void broken(struct io_watch *watch)
{
	struct net_pair *pair = (struct net_pair *)((char *)watch - offsetof(struct net_pair, error));
	struct virtio_queue *const queue[] = {pair->rx, pair->tx};
	bool any = false;

	for (unsigned i = 0; i < 2; i++) {
		if (!pair->ring[i].vhost)
			continue;
		virtqueue_break(&queue[i]->ring, "vhost found it malformed");
		any = true;
	}
	if (!any)
		return;
	net_pair_update(pair);
	virtio_broken(pair->rx->ring.broken ? pair->rx : pair->tx);
}

static struct error *add_signal(struct net_pair *pair, struct io_watch *watch, int *fd,
				void (*ready)(struct io_watch *))
{
	*fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (*fd < 0)
		return error_new(errno, "make an eventfd for vhost");
	watch->ready = ready;
	struct error *err = iothread_add_file(pair->thread, *fd, &watch->slot);
	if (err)
		close_fd(fd);
	else
		iothread_watch(pair->thread, watch);
	return err;
}

struct error *net_vhost_prepare(struct net_pair *pair)
{
	TRY(add_signal(pair, &pair->relay, &pair->relay_fd, relay));
	return add_signal(pair, &pair->error, &pair->error_fd, broken);
}

static void remove_signal(struct net_pair *pair, struct io_watch *watch, int *fd)
{
	if (*fd < 0)
		return;
	iothread_unwatch(pair->thread, watch);
	iothread_remove_file(pair->thread, watch->slot);
	close_fd(fd);
}

void net_vhost_release(struct net_pair *pair)
{
	remove_signal(pair, &pair->relay, &pair->relay_fd);
	remove_signal(pair, &pair->error, &pair->error_fd);
}

/* --- rings --- */

/* Whom the kernel signals for @queue: -1 nobody. */
static int call_fd(const struct net_pair *pair, const struct virtio_queue *queue)
{
	const struct pci_device *pci = &queue->device->transport->pci;
	uint16_t vector = atomic_load_explicit(&queue->vector, memory_order_relaxed);

	if (!pci_msix_enabled(pci))
		return pair->relay_fd;
	return vector < pci->msix.vectors ? pci->msix.entry[vector].msi.event_fd : -1;
}

static bool own(struct net_pair *pair)
{
	const struct memory *mem = pair->net->device.memory;
	struct {
		struct vhost_memory head;
		struct vhost_memory_region region[MEMORY_REGIONS];
	} table = {.head = {.nregions = mem->regions}};

	if (pair->vhost_owned)
		return true;
	for (unsigned i = 0; i < mem->regions; i++)
		table.region[i] = (struct vhost_memory_region){.guest_phys_addr = mem->region[i].gpa,
							       .memory_size = mem->region[i].size,
							       .userspace_addr = (uintptr_t)mem->region[i].host};
	if (ioctl(pair->vhost_fd, VHOST_SET_OWNER) < 0 || ioctl(pair->vhost_fd, VHOST_SET_MEM_TABLE, &table) < 0)
		return false;
	pair->vhost_owned = true;
	return true;
}

static bool set_file(const struct net_pair *pair, unsigned long request, unsigned index, int fd)
{
	struct vhost_vring_file file = {.index = index, .fd = fd};

	return ioctl(pair->vhost_fd, request, &file) == 0;
}

static bool set_ring(struct net_pair *pair, const struct virtio_queue *queue, unsigned index)
{
	const struct virtqueue *vq = &queue->ring;
	uint64_t features = queue->device->features & VHOST_FEATURES;
	struct vhost_vring_state num = {.index = index, .num = vq->size},
				 base = {.index = index, .num = vq->next_avail};
	struct vhost_vring_addr addr = {.index = index,
					.desc_user_addr = (uintptr_t)vq->desc,
					.avail_user_addr = (uintptr_t)vq->avail,
					.used_user_addr = (uintptr_t)vq->used};
	int fd = pair->vhost_fd;

	return own(pair) && ioctl(fd, VHOST_SET_FEATURES, &features) == 0 &&
	       ioctl(fd, VHOST_SET_VRING_NUM, &num) == 0 && ioctl(fd, VHOST_SET_VRING_BASE, &base) == 0 &&
	       ioctl(fd, VHOST_SET_VRING_ADDR, &addr) == 0 &&
	       set_file(pair, VHOST_SET_VRING_KICK, index, queue->doorbell) &&
	       set_file(pair, VHOST_SET_VRING_ERR, index, pair->error_fd) &&
	       set_file(pair, VHOST_SET_VRING_CALL, index, net_ring(pair, queue)->call_fd) &&
	       set_file(pair, VHOST_NET_SET_BACKEND, index, pair->fd);
}

/* The kernel lets go of the ring: nothing of it is in flight when this returns. */
static void let_go(const struct net_pair *pair, unsigned index)
{
	set_file(pair, VHOST_NET_SET_BACKEND, index, -1);
	set_file(pair, VHOST_SET_VRING_KICK, index, -1);
	set_file(pair, VHOST_SET_VRING_CALL, index, -1);
	set_file(pair, VHOST_SET_VRING_ERR, index, -1);
}

bool net_vhost_start(struct net_pair *pair, struct virtio_queue *queue)
{
	unsigned index = queue->index % 2;

	/* What this process has done must be in the ring: the kernel goes on from there. */
	virtio_publish(queue);
	net_ring(pair, queue)->call_fd = call_fd(pair, queue);
	if (set_ring(pair, queue, index))
		return true;
	log_warn("%s: give queue %u to vhost-net: %s; it goes on without", pair->net->name, queue->index,
		 strerror(errno));
	let_go(pair, index);
	return false;
}

void net_vhost_stop(struct net_pair *pair, struct virtio_queue *queue)
{
	struct virtqueue *vq = &queue->ring;
	struct vhost_vring_state base = {.index = queue->index % 2};

	let_go(pair, base.index);
	if (ioctl(pair->vhost_fd, VHOST_GET_VRING_BASE, &base) < 0) {
		virtqueue_break(vq, "vhost does not tell where it is");
		virtio_broken(queue);
		return;
	}
	virtqueue_move(vq, (uint16_t)base.num);
	/* A signal to the relay may not have been looked at. */
	if (net_ring(pair, queue)->call_fd == pair->relay_fd)
		virtio_pci_queue_interrupt(queue);
}

void net_vhost_route(struct net_pair *pair, struct virtio_queue *queue)
{
	struct net_ring *ring = net_ring(pair, queue);
	int fd = call_fd(pair, queue);

	if (fd == ring->call_fd)
		return;
	ring->call_fd = fd;
	if (!set_file(pair, VHOST_SET_VRING_CALL, queue->index % 2, fd))
		log_warn("%s: route the interrupt of queue %u: %s", pair->net->name, queue->index, strerror(errno));
	/* What went to the old one is seen by nobody: one too many hurts less than one too few. */
	virtio_pci_queue_interrupt(queue);
}
