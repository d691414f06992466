/*
 * Devices and their queues on I/O threads; see virtio.h. Touches the queues' eventfds.
 */
#include "vmm/virtio/virtio.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/virtio/virtio_pci.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#define RING_FEATURES                                                                                                  \
	(1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX |          \
	 1ull << VIRTIO_F_RING_RESET)

static void doorbell(struct io_watch *watch)
{
	struct virtio_queue *queue = (struct virtio_queue *)((char *)watch - offsetof(struct virtio_queue, watch));

	if (queue->running)
		queue->device->ops->kick(queue);
}

static struct error *init_queue(struct virtio_queue *queue, uint16_t size)
{
	virtqueue_reset(&queue->ring, queue->device->memory, size);
	atomic_init(&queue->vector, VIRTIO_NO_VECTOR);
	queue->watch.ready = doorbell;
	queue->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (queue->doorbell < 0)
		return error_new(errno, "make the doorbell of queue %u", queue->index);
	struct error *err = iothread_add_file(queue->thread, queue->doorbell, &queue->watch.slot);
	if (err) {
		close_fd(&queue->doorbell);
		return err;
	}
	iothread_watch(queue->thread, &queue->watch);
	return NULL;
}

struct error *virtio_init(struct virtio_device *dev, const struct virtio_ops *ops, const char *name,
			  const struct memory *memory, uint64_t features, unsigned queues, uint16_t queue_size,
			  struct iothread *const *threads, unsigned thread_count)
{
	*dev = (struct virtio_device){
		.ops = ops, .name = name, .memory = memory, .offered = features | RING_FEATURES, .queue_count = queues};
	if (queues == 0 || queues > VIRTIO_QUEUES_MAX || thread_count == 0) {
		dev->queue_count = 0;
		return error_new(EINVAL, "%s: %u queues on %u I/O threads: 1 to %d queues are possible", name, queues,
				 thread_count, VIRTIO_QUEUES_MAX);
	}
	dev->queue = calloc(queues, sizeof(*dev->queue));
	if (!dev->queue) {
		dev->queue_count = 0;
		return error_new(ENOMEM, "%s: make %u queues", name, queues);
	}
	for (unsigned i = 0; i < queues; i++) {
		dev->queue[i].device = dev;
		dev->queue[i].index = i;
		dev->queue[i].thread = threads[i % thread_count];
		dev->queue[i].doorbell = -1;
	}
	for (unsigned i = 0; i < queues; i++) {
		struct error *err = init_queue(&dev->queue[i], queue_size);
		if (err)
			return error_wrap(err, "%s", name);
	}
	return NULL;
}

void virtio_destroy(struct virtio_device *dev)
{
	for (unsigned i = 0; i < dev->queue_count; i++) {
		struct virtio_queue *queue = &dev->queue[i];
		if (queue->doorbell < 0)
			continue;
		iothread_unwatch(queue->thread, &queue->watch);
		iothread_remove_file(queue->thread, queue->watch.slot);
		close_fd(&queue->doorbell);
	}
	free(steal_ptr(&dev->queue));
	dev->queue_count = 0;
}

bool virtio_may_take(const struct virtio_queue *queue)
{
	return queue->running && pci_bus_master(&queue->device->transport->pci);
}

void virtio_publish(struct virtio_queue *queue)
{
	if (virtqueue_publish(&queue->ring))
		virtio_pci_queue_interrupt(queue);
}

void virtio_broken(struct virtio_queue *queue)
{
	virtio_pci_needs_reset(queue->device->transport, queue);
}

void virtio_config_changed(struct virtio_device *dev)
{
	virtio_pci_config_changed(dev->transport);
}

void virtio_again(struct virtio_queue *queue)
{
	uint64_t one = 1;

	if (write(queue->doorbell, &one, sizeof(one)) < 0)
		log_warn("%s: ring queue %u: it will wait for the guest", queue->device->name, queue->index);
}

static void start(void *arg)
{
	struct virtio_queue *queue = arg;

	if (queue->running || !queue->ring.enabled || queue->ring.broken)
		return;
	queue->running = true;
	queue->device->ops->start(queue);
}

static void stop(void *arg)
{
	struct virtio_queue *queue = arg;

	queue->running = false;
	if (queue->device->ops->drain)
		queue->device->ops->drain(queue);
}

static void reset_queue(void *arg)
{
	struct virtio_queue *queue = arg;

	stop(queue);
	if (queue->device->ops->forget)
		queue->device->ops->forget(queue);
	virtqueue_reset(&queue->ring, queue->device->memory, queue->ring.size_max);
	atomic_store_explicit(&queue->vector, VIRTIO_NO_VECTOR, memory_order_relaxed);
}

static void function_changed(void *arg)
{
	struct virtio_queue *queue = arg;

	if (queue->running)
		queue->device->ops->function_changed(queue);
}

void virtio_function_changed(struct virtio_queue *queue)
{
	if (queue->device->ops->function_changed)
		iothread_call(queue->thread, function_changed, queue);
}

void virtio_start(struct virtio_queue *queue)
{
	iothread_call(queue->thread, start, queue);
}

void virtio_stop(struct virtio_queue *queue)
{
	iothread_call(queue->thread, stop, queue);
}

void virtio_reset_queue(struct virtio_queue *queue)
{
	iothread_call(queue->thread, reset_queue, queue);
}
