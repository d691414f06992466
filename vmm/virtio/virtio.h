/*
 * What a virtio device is, apart from how the guest reaches it (virtio_pci.h).
 *
 * A device has queues, each served by one I/O thread, and a small configuration space. Its functions run in two places:
 * those that take a queue on that queue's thread; the others on whatever thread the transport calls from, one at a
 * time.
 */
#ifndef GLINT_VMM_VIRTIO_VIRTIO_H
#define GLINT_VMM_VIRTIO_VIRTIO_H

#include "saved/saved.h"
#include "vmm/machine/iothread.h"
#include "vmm/virtio/virtqueue.h"

#include <stdatomic.h>
#include <stdint.h>

#define VIRTIO_QUEUES_MAX 64
#define VIRTIO_NO_VECTOR  0xffff /* 4.1.4.3.1 */

struct virtio_device;
struct virtio_pci;

struct virtio_queue {
	struct virtqueue ring;
	struct virtio_device *device;
	struct iothread *thread;
	unsigned index;
	bool running;            /* the thread's: chains may be taken */
	_Atomic uint16_t vector; /* of its interrupt, or VIRTIO_NO_VECTOR */
	int doorbell;            /* eventfd */
	struct io_watch watch;
};

struct virtio_ops {
	uint16_t type;       /* 5: device types */
	uint32_t class_code; /* of its PCI function */
	size_t config_size;  /* bytes of its configuration */

	/* The whole configuration, as it is now. What other threads change of it is atomic, field by field. */
	void (*config_read)(struct virtio_device *dev, uint8_t *config);
	/* The guest wrote bytes [offset, offset + len) of it, merged into @config. NULL: read only. */
	void (*config_write)(struct virtio_device *dev, const uint8_t *config, size_t offset, size_t len);

	/* The queue goes, for the first time or again after drain(): tries what was held anew, and looks for chains. */
	void (*start)(struct virtio_queue *queue);
	/* The guest rang. Only between start() and drain(). */
	void (*kick)(struct virtio_queue *queue);
	/* Takes nothing more, and returns when nothing is in flight and all that is done was published. NULL: nothing
	 * ever is. */
	void (*drain)(struct virtio_queue *queue);
	/* The guest reset the drained queue: what was held is void. May be NULL. */
	void (*forget)(struct virtio_queue *queue);

	/*
	 * Something changed for a running queue that who serves it may have to know: its vector, whether the function
	 * uses MSI-X, whether it may reach memory. On its thread. NULL: looked at each time.
	 */
	void (*function_changed)(struct virtio_queue *queue);

	/* The guest reset the device; all queues were drained and forgotten. May be NULL. */
	void (*reset)(struct virtio_device *dev);
	/* The device's own state, without queues and transport. May be NULL. */
	saved_body_fn *state;
};

/* Embedded in the device's own structure. */
struct virtio_device {
	const struct virtio_ops *ops;
	const char *name; /* for the log */
	const struct memory *memory;
	struct virtio_pci *transport;
	uint64_t offered;  /* features, those of the rings included */
	uint64_t features; /* what was negotiated; 0 until then */
	unsigned queue_count;
	struct virtio_queue *queue;
};

/*
 * Prepares @dev with @queues queues of @queue_size entries, queue i on @threads[i % @thread_count]. @features: the
 * device's own; those of the rings are added.
 */
[[nodiscard]] struct error *virtio_init(struct virtio_device *dev, const struct virtio_ops *ops, const char *name,
					const struct memory *memory, uint64_t features, unsigned queues,
					uint16_t queue_size, struct iothread *const *threads, unsigned thread_count);
/* The queues are drained. Allowed after a failed virtio_init(). */
void virtio_destroy(struct virtio_device *dev);

static inline bool virtio_has(const struct virtio_device *dev, unsigned feature)
{
	return dev->features >> feature & 1;
}

/* True when the queue may reach guest memory: it runs, and the guest lets its device master the bus. */
bool virtio_may_take(const struct virtio_queue *queue);

/* Shows the guest what was pushed, and interrupts it if it wants. On the queue's thread. */
void virtio_publish(struct virtio_queue *queue);

/* The queue is broken (virtqueue_break()): tells the guest that the device needs a reset (2.1.1), nothing more. Any
 * thread. */
void virtio_broken(struct virtio_queue *queue);

/* The device's configuration changed by itself: tells a driver that is up (2.4.1). Any thread. */
void virtio_config_changed(struct virtio_device *dev);

/* Runs the queue's kick() soon, after others had their turn. On the queue's thread. */
void virtio_again(struct virtio_queue *queue);

/* For the transport: each from any thread but an I/O thread. Starting twice or stopping twice is the same as once. */
void virtio_start(struct virtio_queue *queue);
void virtio_stop(struct virtio_queue *queue);
/* Runs the device's function_changed() for the queue, if it runs. */
void virtio_function_changed(struct virtio_queue *queue);
/* Stops the queue and takes its ring back to the state at reset. */
void virtio_reset_queue(struct virtio_queue *queue);

#endif
