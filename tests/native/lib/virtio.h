/*
 * A virtio driver: modern PCI transport (virtio 1.2, section 4.1), split rings (2.7), by MSI-X or polling. Descriptors
 * are taken from the ring in order and given back as chains complete.
 */
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include "pci.h"

#define VIRTIO_VENDOR        0x1af4
#define VIRTIO_NEEDS_RESET   0x40
#define VIRTIO_QUEUE_MAX     64 /* fewer than devices offer: a driver may */
#define VIRTIO_QUEUES        16
#define VIRTIO_F_INDIRECT    28
#define VIRTIO_F_EVENT_IDX   29
#define VIRTIO_F_VERSION_1   32
#define VIRTIO_DESC_NEXT     1
#define VIRTIO_DESC_WRITE    2
#define VIRTIO_DESC_INDIRECT 4

struct virtq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct virtq {
	unsigned index;
	uint16_t size, free, free_head, used_seen;
	struct virtq_desc *desc;
	volatile uint16_t *avail; /* flags, idx, ring[size], used_event */
	volatile uint16_t *used;  /* flags, idx, then pairs of 32 bits, avail_event */
	uint64_t doorbell;
	bool event_idx;
	void *token[VIRTIO_QUEUE_MAX];
	struct virtq_desc *indirect; /* a table of 16 for each descriptor, when indirect descriptors are used */
};

struct virtio {
	unsigned slot;
	uint64_t common, notify, isr, config;
	uint32_t notify_step;
	uint64_t offered, features;
	unsigned queues; /* set up */
	struct msix msix;
	bool use_msix;
	struct virtq queue[VIRTIO_QUEUES];
};

struct segment {
	void *addr;
	uint32_t len;
	bool write; /* the device writes it */
};

/* Finds the @nth device of this type (2: block, 4: entropy), mapped and enabled, not yet reset. */
bool virtio_find(struct virtio *v, unsigned type, unsigned nth);
void virtio_reset(struct virtio *v);
/*
 * From reset to DRIVER_OK with those of @wanted features that are offered and @queues queues (no more than there are).
 * @use_msix: queue i interrupts vector VECTOR_MSI + i of processor @cpu, changes of configuration VECTOR_MSI + queues.
 */
void virtio_setup(struct virtio *v, uint64_t wanted, unsigned queues, bool use_msix, unsigned cpu);
uint8_t virtio_status(const struct virtio *v);
unsigned virtio_queue_count(const struct virtio *v);
static inline bool virtio_has(const struct virtio *v, unsigned feature)
{
	return v->features >> feature & 1;
}

/* Puts a chain into the ring; false when there is no room. @indirect: by a table of its own (at most 16 segments). */
bool virtq_add(struct virtq *q, const struct segment *segs, unsigned n, void *token, bool indirect);
/* Shows what was added to the device. */
void virtq_kick(struct virtq *q);
/* Rings, whatever the device asked for. */
void virtq_ring(struct virtq *q);
/* The next completed chain's token, or NULL; *written as the device said. */
void *virtq_get(struct virtq *q, uint32_t *written);
/* The same, waiting at most @us for it. */
void *virtq_wait(struct virtq *q, uint32_t *written, uint64_t us);

#endif
