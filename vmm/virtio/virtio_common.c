/*
 * The common configuration of a virtio function (virtio 1.2, 4.1.4.3) and with it the device's life: status, features,
 * set-up of queues. Runs with the transport's lock held. Touches the device's queues through virtio.h.
 *
 * The structure is a table of fields with functions to get and set each. A guest may access it at any width and
 * alignment, so a write is merged into every field it touches, byte by byte, and each of these is set once.
 */
#include "vmm/virtio/virtio_pci_internal.h"

#include "base/util.h"

#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

/* --- the device's life --- */

void virtio_pci_reset_device(struct virtio_pci *vp)
{
	struct virtio_device *dev = vp->device;

	for (unsigned i = 0; i < dev->queue_count; i++)
		virtio_reset_queue(&dev->queue[i]);
	if (dev->ops->reset)
		dev->ops->reset(dev);
	dev->features = 0;
	vp->driver_features = 0;
	vp->device_feature_select = vp->driver_feature_select = 0;
	vp->queue_select = 0;
	atomic_store_explicit(&vp->config_vector, VIRTIO_NO_VECTOR, memory_order_relaxed);
	(void)virtio_pci_take_isr(vp);
	atomic_store_explicit(&vp->status, 0, memory_order_release);
}

bool virtio_pci_features_good(const struct virtio_pci *vp)
{
	return !(vp->driver_features & ~vp->device->offered) && vp->driver_features >> VIRTIO_F_VERSION_1 & 1;
}

void virtio_pci_start_queues(struct virtio_pci *vp)
{
	if (vp->paused || !(virtio_pci_status(vp) & VIRTIO_CONFIG_S_DRIVER_OK))
		return;
	for (unsigned i = 0; i < vp->device->queue_count; i++)
		if (vp->device->queue[i].ring.enabled)
			virtio_start(&vp->device->queue[i]);
}

/* Bits are only ever added until a reset (2.1.1). One that is refused stays clear, and the driver reads it back
 * (3.1.1). */
static void set_status(struct virtio_pci *vp, uint64_t value)
{
	unsigned before = virtio_pci_status(vp);
	unsigned more = (unsigned)value & VIRTIO_PCI_STATUS_BITS & ~before;

	if (value == 0) {
		virtio_pci_reset_device(vp);
		return;
	}
	if (more & VIRTIO_CONFIG_S_FEATURES_OK) {
		if (virtio_pci_features_good(vp))
			vp->device->features = vp->driver_features;
		else
			more &= ~(unsigned)VIRTIO_CONFIG_S_FEATURES_OK;
	}
	if (!((before | more) & VIRTIO_CONFIG_S_FEATURES_OK))
		more &= ~(unsigned)VIRTIO_CONFIG_S_DRIVER_OK;
	atomic_fetch_or_explicit(&vp->status, more, memory_order_acq_rel);
	if (more & VIRTIO_CONFIG_S_DRIVER_OK)
		virtio_pci_start_queues(vp);
}

/* --- the common configuration (4.1.4.3) --- */

static struct virtio_queue *selected(const struct virtio_pci *vp)
{
	return vp->queue_select < vp->device->queue_count ? &vp->device->queue[vp->queue_select] : NULL;
}

/* The selected queue while it may still be set up. */
static struct virtio_queue *selected_idle(const struct virtio_pci *vp)
{
	struct virtio_queue *queue = selected(vp);
	return queue && !queue->ring.enabled ? queue : NULL;
}

uint16_t virtio_pci_valid_vector(const struct virtio_pci *vp, uint64_t value)
{
	return value < vp->pci.msix.vectors ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void enable_queue(struct virtio_pci *vp, struct virtio_queue *queue)
{
	struct virtqueue *ring = &queue->ring;

	/* Set-up of queues comes after the features are settled (3.1.1): they say how rings work. */
	if (!(virtio_pci_status(vp) & VIRTIO_CONFIG_S_FEATURES_OK))
		return;
	ring->event_idx = virtio_has(vp->device, VIRTIO_RING_F_EVENT_IDX);
	ring->indirect = virtio_has(vp->device, VIRTIO_RING_F_INDIRECT_DESC);
	if (!virtqueue_enable(ring))
		virtio_pci_needs_reset(vp, queue);
	else if (virtio_pci_status(vp) & VIRTIO_CONFIG_S_DRIVER_OK)
		virtio_start(queue);
}

static uint64_t get_device_feature(const struct virtio_pci *vp)
{
	return vp->device_feature_select < 2 ? (uint32_t)(vp->device->offered >> 32 * vp->device_feature_select) : 0;
}

static uint64_t get_driver_feature(const struct virtio_pci *vp)
{
	return vp->driver_feature_select < 2 ? (uint32_t)(vp->driver_features >> 32 * vp->driver_feature_select) : 0;
}

static void set_driver_feature(struct virtio_pci *vp, uint64_t value)
{
	unsigned shift = 32 * vp->driver_feature_select;

	if (vp->driver_feature_select >= 2 || virtio_pci_status(vp) & VIRTIO_CONFIG_S_FEATURES_OK)
		return;
	vp->driver_features = (vp->driver_features & ~(0xffffffffull << shift)) | value << shift;
}

static uint64_t get_config_vector(const struct virtio_pci *vp)
{
	return atomic_load_explicit(&vp->config_vector, memory_order_relaxed);
}

static void set_config_vector(struct virtio_pci *vp, uint64_t value)
{
	atomic_store_explicit(&vp->config_vector, virtio_pci_valid_vector(vp, value), memory_order_relaxed);
}

static uint64_t get_num_queues(const struct virtio_pci *vp)
{
	return vp->device->queue_count;
}

static uint64_t get_status(const struct virtio_pci *vp)
{
	return virtio_pci_status(vp);
}

static uint64_t get_generation(const struct virtio_pci *vp)
{
	return vp->generation;
}

static uint64_t get_size(const struct virtio_pci *vp)
{
	const struct virtio_queue *queue = selected(vp);
	return queue ? queue->ring.size : 0;
}

static void set_size(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected_idle(vp);
	if (queue)
		queue->ring.size = (uint16_t)value;
}

static uint64_t get_queue_vector(const struct virtio_pci *vp)
{
	const struct virtio_queue *queue = selected(vp);
	return queue ? atomic_load_explicit(&queue->vector, memory_order_relaxed) : VIRTIO_NO_VECTOR;
}

static void set_queue_vector(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected(vp);
	if (!queue)
		return;
	atomic_store_explicit(&queue->vector, virtio_pci_valid_vector(vp, value), memory_order_relaxed);
	virtio_function_changed(queue);
}

static uint64_t get_enable(const struct virtio_pci *vp)
{
	const struct virtio_queue *queue = selected(vp);
	return queue && queue->ring.enabled;
}

static void set_enable(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected_idle(vp);
	if (queue && value == 1)
		enable_queue(vp, queue);
}

static uint64_t get_notify_off(const struct virtio_pci *vp)
{
	return selected(vp) ? vp->queue_select : 0;
}

static uint64_t get_desc(const struct virtio_pci *vp)
{
	const struct virtio_queue *queue = selected(vp);
	return queue ? queue->ring.desc_address : 0;
}

static void set_desc(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected_idle(vp);
	if (queue)
		queue->ring.desc_address = value;
}

static uint64_t get_avail(const struct virtio_pci *vp)
{
	const struct virtio_queue *queue = selected(vp);
	return queue ? queue->ring.avail_address : 0;
}

static void set_avail(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected_idle(vp);
	if (queue)
		queue->ring.avail_address = value;
}

static uint64_t get_used(const struct virtio_pci *vp)
{
	const struct virtio_queue *queue = selected(vp);
	return queue ? queue->ring.used_address : 0;
}

static void set_used(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected_idle(vp);
	if (queue)
		queue->ring.used_address = value;
}

/* The reset is over before the write returns, so this always reads 0 (4.1.4.3.1). */
static uint64_t get_reset(const struct virtio_pci *)
{
	return 0;
}

static void set_reset(struct virtio_pci *vp, uint64_t value)
{
	struct virtio_queue *queue = selected(vp);
	if (queue && value == 1 && virtio_has(vp->device, VIRTIO_F_RING_RESET))
		virtio_reset_queue(queue);
}

static uint64_t get_device_feature_select(const struct virtio_pci *vp)
{
	return vp->device_feature_select;
}

static void set_device_feature_select(struct virtio_pci *vp, uint64_t value)
{
	vp->device_feature_select = (uint32_t)value;
}

static uint64_t get_driver_feature_select(const struct virtio_pci *vp)
{
	return vp->driver_feature_select;
}

static void set_driver_feature_select(struct virtio_pci *vp, uint64_t value)
{
	vp->driver_feature_select = (uint32_t)value;
}

static uint64_t get_queue_select(const struct virtio_pci *vp)
{
	return vp->queue_select;
}

static void set_queue_select(struct virtio_pci *vp, uint64_t value)
{
	vp->queue_select = (uint16_t)value;
}

struct field {
	uint8_t offset, size;
	uint64_t (*get)(const struct virtio_pci *vp);
	void (*set)(struct virtio_pci *vp, uint64_t value); /* NULL: read only */
};

static const struct field common_fields[] = {
	{VIRTIO_PCI_COMMON_DFSELECT, 4, get_device_feature_select, set_device_feature_select},
	{VIRTIO_PCI_COMMON_DF, 4, get_device_feature, NULL},
	{VIRTIO_PCI_COMMON_GFSELECT, 4, get_driver_feature_select, set_driver_feature_select},
	{VIRTIO_PCI_COMMON_GF, 4, get_driver_feature, set_driver_feature},
	{VIRTIO_PCI_COMMON_MSIX, 2, get_config_vector, set_config_vector},
	{VIRTIO_PCI_COMMON_NUMQ, 2, get_num_queues, NULL},
	{VIRTIO_PCI_COMMON_STATUS, 1, get_status, set_status},
	{VIRTIO_PCI_COMMON_CFGGENERATION, 1, get_generation, NULL},
	{VIRTIO_PCI_COMMON_Q_SELECT, 2, get_queue_select, set_queue_select},
	{VIRTIO_PCI_COMMON_Q_SIZE, 2, get_size, set_size},
	{VIRTIO_PCI_COMMON_Q_MSIX, 2, get_queue_vector, set_queue_vector},
	{VIRTIO_PCI_COMMON_Q_ENABLE, 2, get_enable, set_enable},
	{VIRTIO_PCI_COMMON_Q_NOFF, 2, get_notify_off, NULL},
	{VIRTIO_PCI_COMMON_Q_DESCLO, 8, get_desc, set_desc},
	{VIRTIO_PCI_COMMON_Q_AVAILLO, 8, get_avail, set_avail},
	{VIRTIO_PCI_COMMON_Q_USEDLO, 8, get_used, set_used},
	{VIRTIO_PCI_COMMON_Q_NDATA, 2, get_notify_off, NULL},
	{VIRTIO_PCI_COMMON_Q_RESET, 2, get_reset, set_reset},
};

/* The bytes of @field that the access [offset, offset + size) touches: *at in the access, *in in the field; how many.
 */
static unsigned overlap(const struct field *field, uint64_t offset, unsigned size, unsigned *at, unsigned *in)
{
	uint64_t from = MAX(offset, (uint64_t)field->offset);
	uint64_t to = MIN(offset + size, (uint64_t)field->offset + field->size);

	if (from >= to)
		return 0;
	*at = (unsigned)(from - offset);
	*in = (unsigned)(from - field->offset);
	return (unsigned)(to - from);
}

uint64_t virtio_pci_common_read(struct virtio_pci *vp, uint64_t offset, unsigned size)
{
	uint64_t value = 0;
	unsigned at, in;

	if (offset <= VIRTIO_PCI_COMMON_CFGGENERATION && VIRTIO_PCI_COMMON_CFGGENERATION < offset + size)
		virtio_pci_look(vp);
	for (size_t i = 0; i < ARRAY_SIZE(common_fields); i++) {
		const struct field *field = &common_fields[i];
		unsigned n = overlap(field, offset, size, &at, &in);
		if (n)
			value |= (field->get(vp) >> 8 * in & bus_all_ones(n)) << 8 * at;
	}
	return value;
}

void virtio_pci_common_write(struct virtio_pci *vp, uint64_t offset, uint64_t value, unsigned size)
{
	unsigned at, in;

	for (size_t i = 0; i < ARRAY_SIZE(common_fields); i++) {
		const struct field *field = &common_fields[i];
		unsigned n = overlap(field, offset, size, &at, &in);
		if (!n || !field->set)
			continue;
		uint64_t mask = bus_all_ones(n) << 8 * in;
		field->set(vp, (field->get(vp) & ~mask) | ((value >> 8 * at) << 8 * in & mask));
	}
}
