/*
 * Inside the PCI transport: what its registers (virtio_common.c) and the rest of it (virtio_pci.c) share.
 */
#ifndef GLINT_VMM_VIRTIO_VIRTIO_PCI_INTERNAL_H
#define GLINT_VMM_VIRTIO_VIRTIO_PCI_INTERNAL_H

#include "vmm/virtio/virtio_pci.h"

#include <linux/virtio_config.h>

/* What a driver may set (2.1). */
#define VIRTIO_PCI_STATUS_BITS                                                                                         \
	(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |                            \
	 VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED)

static inline unsigned virtio_pci_status(const struct virtio_pci *vp)
{
	return atomic_load_explicit(&vp->status, memory_order_acquire);
}

/* Reads the ISR status and acknowledges it: the line goes low. */
uint8_t virtio_pci_take_isr(struct virtio_pci *vp);

/* A vector that the device has, or none: what the driver reads back tells it (4.1.5.1.2). */
uint16_t virtio_pci_valid_vector(const struct virtio_pci *vp, uint64_t value);

/* True when the driver asked for nothing but what is offered, and for a modern device. */
bool virtio_pci_features_good(const struct virtio_pci *vp);

/* Starts the enabled queues of a device whose driver is up, unless the machine is paused. */
void virtio_pci_start_queues(struct virtio_pci *vp);

/* As status 0 does (2.1.2): afterwards no queue touches guest memory. */
void virtio_pci_reset_device(struct virtio_pci *vp);

/*
 * Looks at the device's configuration as it is now, into vp->config. The generation moves here and nowhere else: when
 * the driver is about to be shown another one than last time. So a driver that read parts of two sees it move,
 * whichever thread changed the configuration and whenever it tells; no I/O thread needs the lock for it.
 */
void virtio_pci_look(struct virtio_pci *vp);

uint64_t virtio_pci_common_read(struct virtio_pci *vp, uint64_t offset, unsigned size);
void virtio_pci_common_write(struct virtio_pci *vp, uint64_t offset, uint64_t value, unsigned size);

#endif
