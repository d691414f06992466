/*
 * The PCI transport of virtio devices (virtio 1.2, section 4.1), modern only.
 *
 * BAR 0 (memory, 64 bit, 16 KiB) holds four structures of 4 KiB each: common configuration, ISR status, the device's
 * configuration, doorbells (one of 4 bytes for each queue). BAR 2 holds the MSI-X table: vector 0..queues, the guest
 * chooses who gets which. A doorbell is an ioeventfd, so that ringing it does not leave the kernel.
 *
 * Locks: `lock` serialises the guest's register accesses and with them the device's status. It is never taken on an I/O
 * thread: register accesses call I/O threads and wait for them. What I/O threads change is atomic (status, ISR).
 */
#ifndef GLINT_VMM_VIRTIO_VIRTIO_PCI_H
#define GLINT_VMM_VIRTIO_VIRTIO_PCI_H

#include "vmm/machine/unit.h"
#include "vmm/pci/pci.h"
#include "vmm/virtio/virtio.h"

#include <pthread.h>

#define VIRTIO_PCI_BAR      0
#define VIRTIO_PCI_MSIX_BAR 2

/* The structures in BAR 0. */
#define VIRTIO_BAR_COMMON 0x0000u
#define VIRTIO_BAR_ISR    0x1000u
#define VIRTIO_BAR_DEVICE 0x2000u
#define VIRTIO_BAR_NOTIFY 0x3000u
#define VIRTIO_BAR_BYTES  0x4000u

#define VIRTIO_BAR_NOTIFY_STEP 4u

#define VIRTIO_CONFIG_MAX 256 /* bytes of the largest device's configuration, with room */

struct virtio_pci {
	struct pci_device pci;
	struct virtio_device *device;
	unsigned config_capability; /* offset of the window into BARs (4.1.4.9) */

	pthread_mutex_t lock;
	uint32_t device_feature_select, driver_feature_select;
	uint64_t driver_features;
	uint16_t queue_select;
	bool paused;
	uint8_t generation;                /* of `config` (4.1.4.3.1) */
	uint8_t config[VIRTIO_CONFIG_MAX]; /* the device's, as the driver was last shown it */
	_Atomic uint16_t config_vector;
	atomic_uint status;

	pthread_mutex_t isr_lock; /* ISR and line together; only taken where there is no MSI-X */
	uint8_t isr;

	atomic_flag complained; /* a broken queue was logged: once a device, for guests can do it at will */

	uint64_t doorbells; /* address that ioeventfds are bound at, or 0; guarded by the PCI bus's lock */
};

/* Makes the PCI function of @device and puts it into @slot of @bus. @device is borrowed and outlives it. */
[[nodiscard]] struct error *virtio_pci_new(struct virtio_pci **out, struct virtio_device *device, struct pci_bus *bus,
					   unsigned slot);
/* The same behind a hot-plug port. */
[[nodiscard]] struct error *virtio_pci_new_behind(struct virtio_pci **out, struct virtio_device *device,
						  struct pci_port *port);
/* Drains all queues, then takes the function off its bus. NULL is allowed. */
void virtio_pci_free(struct virtio_pci *vp);

/* The unit (device, queues, transport, PCI function) under @name. */
struct unit virtio_pci_unit(struct virtio_pci *vp, const char *name);

/* Interrupts the guest for @queue. Hot: with MSI-X no lock is taken. Any thread. */
void virtio_pci_queue_interrupt(struct virtio_queue *queue);

/* The device's configuration changed by itself. Any thread. */
void virtio_pci_config_changed(struct virtio_pci *vp);

/* Sets DEVICE_NEEDS_RESET and tells the driver, because @queue is broken. Any thread. */
void virtio_pci_needs_reset(struct virtio_pci *vp, const struct virtio_queue *queue);

#endif
