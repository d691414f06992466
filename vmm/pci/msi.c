/*
 * MSI: one message of a device; PCI 3.0, section 6.8.1. It has no mask, so while it is on, its eventfd (struct msi) is
 * bound to KVM; while it is off nothing is owed to anybody. For devices whose drivers do not look for MSI-X (AHCI).
 *
 * Touches: an eventfd and a KVM route by cpu/irq.h.
 */
#include "vmm/pci/internal.h"

#include "base/log.h"

#include <errno.h>

enum { CONTROL = 2, ADDRESS = 4, DATA = 12 }; /* in the capability */

struct error *pci_device_msi(struct pci_device *dev, struct irqs *irqs)
{
	static const uint8_t body[PCI_MSI_CAP_BYTES - 2] = {0x80 /* 64-bit addresses */};
	struct pci_msi *msi = &dev->msi;

	msi->capability = pci_device_capability(dev, PCI_CAP_MSI, body, PCI_MSI_CAP_BYTES);
	if (msi->capability == 0)
		return error_new(ENOSPC, "%s: no room for the MSI capability", dev->name);
	uint8_t *writable = dev->writable + msi->capability;
	pci_put(writable + CONTROL, PCI_MSI_ENABLE, 2);
	pci_put(writable + ADDRESS, ~3ull, 8);
	pci_put(writable + DATA, 0xffff, 2);
	return error_wrap(msi_init(&msi->msi, irqs), "%s: its MSI", dev->name);
}

/* Follows the registers. The device's lock is held. */
static void update(struct pci_device *dev)
{
	const uint8_t *at = dev->config + dev->msi.capability;
	bool enabled = pci_get(at + CONTROL, 2) & PCI_MSI_ENABLE;
	cleanup_error struct error *err = NULL;

	atomic_store(&dev->msi.enabled, enabled);
	if (enabled) {
		err = msi_bind(&dev->msi.msi, pci_get(at + ADDRESS, 8), (uint32_t)pci_get(at + DATA, 2));
	} else {
		msi_unbind(&dev->msi.msi);
		msi_clear(&dev->msi.msi);
	}
	/* The guest can cause this at will, so it is told once. */
	if (err && dev->msi.failures++ == 0)
		log_warn("%s: MSI: %s", dev->name, error_text(err));
	pci_update_intx(dev);
}

void pci_msi_changed(struct pci_device *dev)
{
	if (!dev->msi.capability)
		return;
	pthread_mutex_lock(&dev->lock);
	update(dev);
	pthread_mutex_unlock(&dev->lock);
}

void pci_msi_restored(struct pci_device *dev)
{
	pci_msi_changed(dev);
	pci_msi_signal(dev); /* see pci.h */
}

void pci_msi_destroy(struct pci_device *dev)
{
	if (dev->msi.msi.irqs)
		msi_destroy(&dev->msi.msi);
	dev->msi = (struct pci_msi){};
}

void pci_msi_signal(struct pci_device *dev)
{
	if (atomic_load_explicit(&dev->msi.enabled, memory_order_acquire))
		msi_signal(&dev->msi.msi);
}
