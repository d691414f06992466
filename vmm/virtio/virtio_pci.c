/*
 * The PCI transport of virtio; see virtio_pci.h. Touches the device's queues through virtio.h, its PCI function, and
 * the VM's KVM descriptor for ioeventfds.
 * The common configuration is virtio_common.c's.
 */
#include "vmm/virtio/virtio_pci_internal.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/pci/port.h"

#include <errno.h>
#include <linux/kvm.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define ISR_QUEUE  1u
#define ISR_CONFIG 2u

/* --- interrupts --- */

static void raise_isr(struct virtio_pci *vp, uint8_t bit)
{
	pthread_mutex_lock(&vp->isr_lock);
	vp->isr |= bit;
	pci_intx(&vp->pci, true);
	pthread_mutex_unlock(&vp->isr_lock);
}

uint8_t virtio_pci_take_isr(struct virtio_pci *vp)
{
	pthread_mutex_lock(&vp->isr_lock);
	uint8_t isr = vp->isr;
	vp->isr = 0;
	pci_intx(&vp->pci, false);
	pthread_mutex_unlock(&vp->isr_lock);
	return isr;
}

static void interrupt(struct virtio_pci *vp, uint16_t vector, uint8_t isr_bit)
{
	if (!pci_msix_enabled(&vp->pci))
		raise_isr(vp, isr_bit);
	else if (vector != VIRTIO_NO_VECTOR)
		pci_msix_signal(&vp->pci, vector);
}

void virtio_pci_queue_interrupt(struct virtio_queue *queue)
{
	interrupt(queue->device->transport, atomic_load_explicit(&queue->vector, memory_order_relaxed), ISR_QUEUE);
}

void virtio_pci_needs_reset(struct virtio_pci *vp, const struct virtio_queue *queue)
{
	unsigned before = atomic_fetch_or_explicit(&vp->status, VIRTIO_CONFIG_S_NEEDS_RESET, memory_order_acq_rel);

	if (!atomic_flag_test_and_set(&vp->complained))
		log_warn("%s: the guest broke queue %u: %s", vp->device->name, queue->index, queue->ring.broken);
	/* 2.1.2: a configuration change tells it, to a driver that is up. */
	if (before & VIRTIO_CONFIG_S_DRIVER_OK && !(before & VIRTIO_CONFIG_S_NEEDS_RESET))
		interrupt(vp, atomic_load_explicit(&vp->config_vector, memory_order_relaxed), ISR_CONFIG);
}

/* --- the device's configuration --- */

void virtio_pci_config_changed(struct virtio_pci *vp)
{
	if (virtio_pci_status(vp) & VIRTIO_CONFIG_S_DRIVER_OK)
		interrupt(vp, atomic_load_explicit(&vp->config_vector, memory_order_relaxed), ISR_CONFIG);
}

void virtio_pci_look(struct virtio_pci *vp)
{
	uint8_t now[VIRTIO_CONFIG_MAX] = {0};

	if (!vp->device->ops->config_size)
		return;
	vp->device->ops->config_read(vp->device, now);
	if (memcmp(now, vp->config, sizeof(now)) == 0)
		return;
	memcpy(vp->config, now, sizeof(now));
	vp->generation++;
}

static uint64_t config_read(struct virtio_pci *vp, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	if (offset >= vp->device->ops->config_size)
		return 0;
	virtio_pci_look(vp);
	memcpy(&value, vp->config + offset, MIN((uint64_t)size, VIRTIO_CONFIG_MAX - offset));
	return value;
}

static void config_write(struct virtio_pci *vp, uint64_t offset, uint64_t value, unsigned size)
{
	const struct virtio_ops *ops = vp->device->ops;
	uint8_t config[VIRTIO_CONFIG_MAX];

	if (!ops->config_write || offset >= ops->config_size)
		return;
	size_t len = MIN((size_t)size, ops->config_size - offset);
	virtio_pci_look(vp);
	memcpy(config, vp->config, sizeof(config));
	memcpy(config + offset, &value, len);
	ops->config_write(vp->device, config, offset, len);
}

/* --- BAR 0 --- */

static uint64_t bar_read(void *self, uint64_t offset, unsigned size)
{
	struct virtio_pci *vp = self;
	uint64_t value = 0;

	pthread_mutex_lock(&vp->lock);
	switch (align_down(offset, 0x1000)) {
	case VIRTIO_BAR_COMMON:
		value = virtio_pci_common_read(vp, offset - VIRTIO_BAR_COMMON, size);
		break;
	case VIRTIO_BAR_ISR:
		/* Reading the byte acknowledges it (4.1.4.5). */
		if (offset == VIRTIO_BAR_ISR)
			value = virtio_pci_take_isr(vp);
		break;
	case VIRTIO_BAR_DEVICE:
		value = config_read(vp, offset - VIRTIO_BAR_DEVICE, size);
		break;
	}
	pthread_mutex_unlock(&vp->lock);
	return value;
}

/* A doorbell that no ioeventfd took: without KVM, through the window in configuration space, or at an odd address. */
static void ring_doorbell(struct virtio_pci *vp, uint64_t offset)
{
	uint64_t queue = offset / VIRTIO_BAR_NOTIFY_STEP;

	if (queue < vp->device->queue_count)
		virtio_again(&vp->device->queue[queue]);
}

static void bar_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct virtio_pci *vp = self;

	if (offset >= VIRTIO_BAR_NOTIFY) {
		ring_doorbell(vp, offset - VIRTIO_BAR_NOTIFY);
		return;
	}
	pthread_mutex_lock(&vp->lock);
	if (offset < VIRTIO_BAR_ISR)
		virtio_pci_common_write(vp, offset - VIRTIO_BAR_COMMON, value, size);
	else if (offset >= VIRTIO_BAR_DEVICE)
		config_write(vp, offset - VIRTIO_BAR_DEVICE, value, size);
	pthread_mutex_unlock(&vp->lock);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

/* --- ioeventfds --- */

static bool set_ioeventfd(struct virtio_pci *vp, const struct virtio_queue *queue, uint64_t base, bool on)
{
	struct kvm_ioeventfd io = {
		.addr = base + VIRTIO_BAR_NOTIFY + (uint64_t)queue->index * VIRTIO_BAR_NOTIFY_STEP,
		.len = 0, /* any width, which is also the fast path */
		.fd = queue->doorbell,
		.flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
	};

	return ioctl(vp->pci.bus->irqs->vm_fd, KVM_IOEVENTFD, &io) == 0;
}

/* Binds the doorbells at @base; 0 unbinds them. One that cannot be bound still works, through bar_write(). */
static void bind_doorbells(struct virtio_pci *vp, uint64_t base)
{
	if (vp->pci.bus->irqs->vm_fd < 0 || vp->doorbells == base)
		return;
	for (unsigned i = 0; i < vp->device->queue_count; i++) {
		const struct virtio_queue *queue = &vp->device->queue[i];
		if (vp->doorbells)
			(void)set_ioeventfd(vp, queue, vp->doorbells, false);
		if (base && !set_ioeventfd(vp, queue, base, true))
			log_warn("%s: bind the doorbell of queue %u: %s; it will be slow", vp->device->name, i,
				 strerror(errno));
	}
	vp->doorbells = base;
}

static void bar_mapped(void *self, unsigned bar, uint64_t address, bool mapped)
{
	if (bar == VIRTIO_PCI_BAR)
		bind_doorbells(self, mapped ? address : 0);
}

/* --- capabilities (4.1.4) --- */

/* The window: a capability through which firmware reaches BAR 0 without mapping it (4.1.4.9). */
#define WINDOW_DATA sizeof(struct virtio_pci_cap)

/* Where the window looks at, if the guest set it up right. */
static bool window(const struct virtio_pci *vp, uint32_t *offset, uint32_t *len)
{
	struct virtio_pci_cap cap;

	memcpy(&cap, vp->pci.config + vp->config_capability, sizeof(cap));
	*offset = cap.offset;
	*len = cap.length;
	return cap.bar == VIRTIO_PCI_BAR && (cap.length == 1 || cap.length == 2 || cap.length == 4) &&
	       is_aligned(cap.offset, cap.length) && range_inside(cap.offset, cap.length, VIRTIO_BAR_BYTES);
}

static bool window_access(const struct virtio_pci *vp, unsigned offset)
{
	unsigned data = vp->config_capability + WINDOW_DATA;
	return offset >= data && offset < data + 4;
}

static bool pci_config_read(void *self, unsigned offset, unsigned size, uint32_t *value)
{
	struct virtio_pci *vp = self;
	uint32_t at, len;

	if (!window_access(vp, offset))
		return false;
	unsigned skip = offset - vp->config_capability - WINDOW_DATA;
	*value = window(vp, &at, &len) ? (uint32_t)bar_read(vp, at, len) >> 8 * skip : UINT32_MAX;
	*value &= (uint32_t)bus_all_ones(size);
	return true;
}

static bool pci_config_write(void *self, unsigned offset, unsigned, uint32_t value)
{
	struct virtio_pci *vp = self;
	uint32_t at, len;

	if (!window_access(vp, offset))
		return false;
	if (offset == vp->config_capability + WINDOW_DATA && window(vp, &at, &len))
		bar_write(vp, at, value & bus_all_ones(len), len);
	return true;
}

/* The guest changed who may reach memory, or how interrupts go: those who serve the queues look again. */
static void function_changed(void *self)
{
	struct virtio_pci *vp = self;

	for (unsigned i = 0; i < vp->device->queue_count; i++)
		virtio_function_changed(&vp->device->queue[i]);
}

static const struct pci_ops pci_ops = {
	.function_changed = function_changed,
	.bar_mapped = bar_mapped,
	.config_read = pci_config_read,
	.config_write = pci_config_write,
};

/* Adds the capability of one structure; @extra is the word that follows in two of the kinds. Returns its offset. */
static unsigned add_capability(struct virtio_pci *vp, uint8_t kind, uint32_t offset, uint32_t len,
			       const uint32_t *extra)
{
	struct {
		struct virtio_pci_cap cap;
		uint32_t extra;
	} all = {.cap = {.cap_len = extra ? 20 : 16,
			 .cfg_type = kind,
			 .bar = VIRTIO_PCI_BAR,
			 .offset = offset,
			 .length = len},
		 .extra = extra ? *extra : 0};

	/* 9: vendor specific (PCI 3.0, appendix H). The first two bytes of a capability are PCI's. */
	return pci_device_capability(&vp->pci, 9, (const uint8_t *)&all + 2, all.cap.cap_len);
}

static struct error *add_capabilities(struct virtio_pci *vp)
{
	const struct virtio_device *dev = vp->device;
	const uint32_t step = VIRTIO_BAR_NOTIFY_STEP, none = 0;
	unsigned good = 0, count = 4;

	good += add_capability(vp, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_BAR_COMMON,
			       VIRTIO_PCI_COMMON_Q_RESET + sizeof(uint16_t), NULL) != 0;
	good += add_capability(vp, VIRTIO_PCI_CAP_ISR_CFG, VIRTIO_BAR_ISR, 1, NULL) != 0;
	good += add_capability(vp, VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_BAR_NOTIFY, dev->queue_count * step, &step) != 0;
	if (dev->ops->config_size) {
		count++;
		good += add_capability(vp, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_BAR_DEVICE,
				       (uint32_t)dev->ops->config_size, NULL) != 0;
	}
	vp->config_capability = add_capability(vp, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, &none);
	good += vp->config_capability != 0;
	if (good != count)
		return error_new(ENOSPC, "%s: no room for virtio's PCI capabilities", dev->name);
	uint8_t *writable = vp->pci.writable + vp->config_capability;
	memset(writable + offsetof(struct virtio_pci_cap, bar), 0xff, 1);
	memset(writable + offsetof(struct virtio_pci_cap, offset), 0xff, 8);
	return NULL;
}

/* --- making it --- */

static struct error *add_function(struct virtio_pci *vp, struct pci_bus *bus, unsigned slot, struct pci_port *port)
{
	struct virtio_device *dev = vp->device;

	TRY(pci_device_bar(&vp->pci, VIRTIO_PCI_BAR, PCI_BAR_MEM64, VIRTIO_BAR_BYTES, &bar_ops, vp));
	TRY(pci_device_msix(&vp->pci, VIRTIO_PCI_MSIX_BAR, dev->queue_count + 1, bus->irqs));
	TRY(add_capabilities(vp));
	return port ? pci_add_behind(port, &vp->pci) : pci_add(bus, slot, &vp->pci);
}

static struct error *make(struct virtio_pci **out, struct virtio_device *device, struct pci_bus *bus, unsigned slot,
			  struct pci_port *port)
{
	struct virtio_pci *vp = calloc(1, sizeof(*vp));
	/* 4.1.2: vendor, device id, revision, and a subsystem id that tells modern from transitional (at least 0x40).
	 */
	const struct pci_id id = {
		.vendor = 0x1af4,
		.device = (uint16_t)(0x1040 + device->ops->type),
		.subsystem_vendor = 0x1af4,
		.subsystem = (uint16_t)(0x40 + device->ops->type),
		.class_code = device->ops->class_code,
		.revision = 1,
	};

	if (!vp)
		return error_new(ENOMEM, "make the PCI function of %s", device->name);
	vp->device = device;
	device->transport = vp;
	pthread_mutex_init(&vp->lock, NULL);
	pthread_mutex_init(&vp->isr_lock, NULL);
	atomic_init(&vp->config_vector, VIRTIO_NO_VECTOR);
	pci_device_init(&vp->pci, device->name, &id, &pci_ops, vp);
	struct error *err = add_function(vp, bus, slot, port);
	if (err) {
		virtio_pci_free(vp);
		return error_wrap(err, "make the PCI function of %s", device->name);
	}
	*out = vp;
	return NULL;
}

struct error *virtio_pci_new(struct virtio_pci **out, struct virtio_device *device, struct pci_bus *bus, unsigned slot)
{
	return make(out, device, bus, slot, NULL);
}

struct error *virtio_pci_new_behind(struct virtio_pci **out, struct virtio_device *device, struct pci_port *port)
{
	return make(out, device, port->pci.bus, 0, port);
}

void virtio_pci_free(struct virtio_pci *vp)
{
	if (!vp)
		return;
	for (unsigned i = 0; i < vp->device->queue_count; i++)
		virtio_stop(&vp->device->queue[i]);
	pci_device_destroy(&vp->pci);
	pthread_mutex_destroy(&vp->isr_lock);
	pthread_mutex_destroy(&vp->lock);
	free(vp);
}

/* --- the unit --- */

static void queue_state(void *self, struct saved *s)
{
	struct virtio_queue *queue = self;
	uint16_t vector = atomic_load_explicit(&queue->vector, memory_order_relaxed);

	virtqueue_state(&queue->ring, s);
	saved_require(s);
	saved_u16(s, "vector", &vector);
	if (!saved_loading(s))
		return;
	atomic_store_explicit(&queue->vector, virtio_pci_valid_vector(queue->device->transport, vector),
			      memory_order_relaxed);
}

static void check_loaded(struct virtio_pci *vp, struct saved *s)
{
	unsigned status = virtio_pci_status(vp);

	if (status & ~(VIRTIO_PCI_STATUS_BITS | VIRTIO_CONFIG_S_NEEDS_RESET))
		saved_fail(s, "device status %#x has bits that no driver can set", status);
	else if (status & VIRTIO_CONFIG_S_DRIVER_OK && !(status & VIRTIO_CONFIG_S_FEATURES_OK))
		saved_fail(s, "device status %#x: a driver runs that negotiated nothing", status);
	else if (status & VIRTIO_CONFIG_S_FEATURES_OK && !virtio_pci_features_good(vp))
		saved_fail(s, "features %#llx were negotiated, %#llx are offered here",
			   (unsigned long long)vp->driver_features, (unsigned long long)vp->device->offered);
}

static void state(void *self, struct saved *s)
{
	struct virtio_pci *vp = self;
	struct virtio_device *dev = vp->device;
	uint8_t status = (uint8_t)virtio_pci_status(vp);
	uint16_t config_vector = atomic_load_explicit(&vp->config_vector, memory_order_relaxed);

	saved_require(s);
	saved_subsection(s, "pci", true, (saved_body_fn *)pci_device_state, &vp->pci);
	saved_require(s);
	saved_u8(s, "status", &status);
	saved_u32(s, "device-feature-select", &vp->device_feature_select);
	saved_u32(s, "driver-feature-select", &vp->driver_feature_select);
	saved_require(s);
	saved_u64(s, "driver-features", &vp->driver_features);
	saved_u16(s, "queue-select", &vp->queue_select);
	saved_u8(s, "generation", &vp->generation);
	saved_u8(s, "isr", &vp->isr);
	saved_u16(s, "config-vector", &config_vector);
	if (saved_loading(s)) {
		atomic_store_explicit(&vp->status, status, memory_order_release);
		atomic_store_explicit(&vp->config_vector, virtio_pci_valid_vector(vp, config_vector),
				      memory_order_relaxed);
		check_loaded(vp, s);
		dev->features = status & VIRTIO_CONFIG_S_FEATURES_OK ? vp->driver_features : 0;
	}
	saved_require(s);
	saved_array(s, "queues", dev->queue, dev->queue_count, sizeof(*dev->queue), queue_state);
	if (dev->ops->state) {
		saved_require(s);
		saved_subsection(s, "device", true, dev->ops->state, dev);
	}
}

/* The rings are translated anew and the PCI function comes back; queues start at resume, which looks at all of them. */
static struct error *restored(void *self)
{
	struct virtio_pci *vp = self;
	struct virtio_device *dev = vp->device;

	vp->paused = true;
	/* The configuration may be another here than the one that the driver was shown. */
	vp->generation++;
	for (unsigned i = 0; i < dev->queue_count; i++) {
		struct virtqueue *ring = &dev->queue[i].ring;
		ring->event_idx = virtio_has(dev, VIRTIO_RING_F_EVENT_IDX);
		ring->indirect = virtio_has(dev, VIRTIO_RING_F_INDIRECT_DESC);
		if (ring->enabled && !ring->broken && !virtqueue_enable(ring))
			return error_new(EINVAL, "%s: queue %u: %s", dev->name, i, ring->broken);
	}
	return pci_device_restored(&vp->pci);
}

static void pause_queues(void *self)
{
	struct virtio_pci *vp = self;

	pthread_mutex_lock(&vp->lock);
	vp->paused = true;
	for (unsigned i = 0; i < vp->device->queue_count; i++)
		virtio_stop(&vp->device->queue[i]);
	pthread_mutex_unlock(&vp->lock);
}

static void resume_queues(void *self)
{
	struct virtio_pci *vp = self;

	pthread_mutex_lock(&vp->lock);
	vp->paused = false;
	virtio_pci_start_queues(vp);
	pthread_mutex_unlock(&vp->lock);
}

static void power_on(void *self)
{
	struct virtio_pci *vp = self;

	pthread_mutex_lock(&vp->lock);
	virtio_pci_reset_device(vp);
	vp->generation = 0;
	pthread_mutex_unlock(&vp->lock);
	pci_device_reset(&vp->pci);
}

static const struct unit_ops unit_ops = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_queues,
	.resume = resume_queues,
	.reset = power_on,
};

struct unit virtio_pci_unit(struct virtio_pci *vp, const char *name)
{
	struct unit unit = {.ops = &unit_ops, .self = vp};

	snprintf(unit.name, sizeof(unit.name), "%s", name);
	return unit;
}
