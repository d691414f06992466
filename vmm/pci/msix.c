/*
 * MSI-X: a table of messages and the bits of those that wait, both in one BAR; PCI 3.0, section 6.8.2.
 *
 *     [0, size / 2)     the table, 16 bytes a vector
 *     [size / 2, size)  the pending bits
 *
 * A vector is an eventfd (struct msi). While MSI-X is on and neither the function nor the vector is masked, the eventfd
 * is bound to KVM and a signal goes straight into the guest; otherwise it just counts, and that is the pending bit. So
 * the hot path is one write() by whoever raises it, this process or vhost, and masking needs no hand-shake with it.
 *
 * The table is bytes to the guest: accesses of any width are taken apart and each entry they touched is looked at once,
 * when all its bytes are there. Bus mastering is not asked for: a driver that turned it off and still wants no message
 * has masked, and the eventfd does not know.
 *
 * Touches: eventfds and KVM routes by cpu/irq.h.
 */
#include "vmm/pci/internal.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <stdlib.h>

#define VECTOR_MASKED 1u
#define WORDS         4

static uint32_t *entry_word(struct pci_msix_entry *e, unsigned word)
{
	uint32_t *const words[WORDS] = {&e->address_lo, &e->address_hi, &e->data, &e->control};

	return words[word];
}

/* Follows a change of one entry or of the masks above it. The device's lock is held, as for all that follows. */
static void update_vector(struct pci_device *dev, unsigned i)
{
	struct pci_msix *msix = &dev->msix;
	struct pci_msix_entry *e = &msix->entry[i];

	if (!atomic_load(&msix->enabled) || msix->function_masked || (e->control & VECTOR_MASKED)) {
		msi_unbind(&e->msi);
		return;
	}
	cleanup_error struct error *err = msi_bind(&e->msi, (uint64_t)e->address_hi << 32 | e->address_lo, e->data);
	/* The guest can cause this at will, so it is told once. The vector stays pending until bound by a later write.
	 */
	if (err && msix->failures++ == 0)
		log_warn("%s: MSI-X vector %u: %s", dev->name, i, error_text(err));
}

static void update_vectors(struct pci_device *dev)
{
	for (unsigned i = 0; i < dev->msix.vectors; i++)
		update_vector(dev, i);
}

static unsigned control_register(const struct pci_device *dev)
{
	return (unsigned)pci_get(dev->config + dev->msix.capability + 2, 2);
}

void pci_msix_control_changed(struct pci_device *dev)
{
	struct pci_msix *msix = &dev->msix;
	unsigned control = control_register(dev);
	bool enable = control & PCI_MSIX_ENABLE;

	pthread_mutex_lock(&dev->lock);
	/* What was signalled before MSI-X was on is owed to nobody. */
	for (unsigned i = 0; enable && !atomic_load(&msix->enabled) && i < msix->vectors; i++)
		msi_clear(&msix->entry[i].msi);
	atomic_store(&msix->enabled, enable);
	msix->function_masked = control & PCI_MSIX_FUNCTION_MASK;
	update_vectors(dev);
	pci_update_intx(dev);
	pthread_mutex_unlock(&dev->lock);
}

static uint8_t pending_byte(const struct pci_msix *msix, uint64_t byte)
{
	uint8_t bits = 0;

	for (unsigned i = 0; i < 8 && byte * 8 + i < msix->vectors; i++) {
		if (atomic_load(&msix->enabled) && msi_pending(&msix->entry[byte * 8 + i].msi))
			bits |= (uint8_t)(1u << i);
	}
	return bits;
}

static uint8_t table_byte(const struct pci_device *dev, uint64_t offset)
{
	const struct pci_msix *msix = &dev->msix;
	uint64_t half = dev->bar[msix->bar].size / 2;

	if (offset >= half)
		return pending_byte(msix, offset - half);
	if (offset / PCI_MSIX_ENTRY_BYTES >= msix->vectors)
		return 0;
	const uint32_t *word = entry_word(&msix->entry[offset / PCI_MSIX_ENTRY_BYTES], offset / 4 % WORDS);
	return (uint8_t)(*word >> (8 * (offset % 4)));
}

static uint64_t table_read(void *self, uint64_t offset, unsigned size)
{
	struct pci_device *dev = self;
	uint64_t value = 0;

	pthread_mutex_lock(&dev->lock);
	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)table_byte(dev, offset + i) << (8 * i);
	pthread_mutex_unlock(&dev->lock);
	return value;
}

static void table_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	/* Address bits 1:0 and all of the control word but the mask are read-only zeros. */
	static const uint32_t writable[WORDS] = {~3u, ~0u, ~0u, VECTOR_MASKED};
	struct pci_device *dev = self;

	pthread_mutex_lock(&dev->lock);
	for (unsigned i = 0; i < size; i++) {
		uint64_t at = offset + i, n = at / PCI_MSIX_ENTRY_BYTES;
		if (n >= dev->msix.vectors)
			break;
		unsigned which = at / 4 % WORDS, shift = 8 * (at % 4);
		uint32_t *word = entry_word(&dev->msix.entry[n], which);
		uint32_t byte = (uint32_t)(value >> (8 * i) & 0xff) << shift;
		*word = ((*word & ~(0xffu << shift)) | byte) & writable[which];
		if (i + 1 == size || (at + 1) % PCI_MSIX_ENTRY_BYTES == 0)
			update_vector(dev, (unsigned)n);
	}
	pthread_mutex_unlock(&dev->lock);
}

static const struct bus_ops table_ops = {.read = table_read, .write = table_write};

static uint64_t bar_bytes(unsigned vectors)
{
	uint64_t size = PAGE_BYTES;

	while (size / 2 < (uint64_t)vectors * PCI_MSIX_ENTRY_BYTES)
		size *= 2;
	return size;
}

struct error *pci_device_msix(struct pci_device *dev, unsigned bar, unsigned vectors, struct irqs *irqs)
{
	struct pci_msix *msix = &dev->msix;
	uint8_t body[PCI_MSIX_CAP_BYTES - 2];

	if (vectors == 0 || vectors > PCI_MSIX_MAX || msix->vectors)
		return error_new(EINVAL, "%s: %u MSI-X vectors cannot be", dev->name, vectors);
	uint64_t size = bar_bytes(vectors);
	TRY(pci_device_bar(dev, bar, PCI_BAR_MEM32, size, &table_ops, dev));
	pci_put(body, vectors - 1, 2);
	pci_put(body + 2, bar, 4);              /* offset 0 of that BAR */
	pci_put(body + 6, (size / 2) | bar, 4); /* and its second half */
	msix->capability = pci_device_capability(dev, PCI_CAP_MSIX, body, PCI_MSIX_CAP_BYTES);
	if (msix->capability == 0)
		return error_new(ENOSPC, "%s: no room for the MSI-X capability", dev->name);
	pci_put(dev->writable + msix->capability + 2, PCI_MSIX_ENABLE | PCI_MSIX_FUNCTION_MASK, 2);
	msix->bar = bar;
	msix->entry = calloc(vectors, sizeof(*msix->entry));
	if (!msix->entry)
		return error_new(ENOMEM, "%s: %u MSI-X vectors", dev->name, vectors);
	for (; msix->vectors < vectors; msix->vectors++) {
		struct pci_msix_entry *e = &msix->entry[msix->vectors];
		e->control = VECTOR_MASKED;
		TRY(error_wrap(msi_init(&e->msi, irqs), "%s: MSI-X vector %u", dev->name, msix->vectors));
	}
	return NULL;
}

void pci_msix_signal(struct pci_device *dev, unsigned vector)
{
	if (vector < dev->msix.vectors && atomic_load_explicit(&dev->msix.enabled, memory_order_acquire))
		msi_signal(&dev->msix.entry[vector].msi);
}

bool pci_msix_enabled(const struct pci_device *dev)
{
	return atomic_load_explicit(&dev->msix.enabled, memory_order_acquire);
}

/* Off, unbound, and nothing pending. */
static void quiesce(struct pci_msix *msix)
{
	atomic_store(&msix->enabled, false);
	msix->function_masked = false;
	for (unsigned i = 0; i < msix->vectors; i++) {
		msi_unbind(&msix->entry[i].msi);
		msi_clear(&msix->entry[i].msi);
	}
}

void pci_msix_reset(struct pci_device *dev)
{
	struct pci_msix *msix = &dev->msix;

	pthread_mutex_lock(&dev->lock);
	quiesce(msix);
	for (unsigned i = 0; i < msix->vectors; i++) {
		struct pci_msix_entry *e = &msix->entry[i];
		e->address_lo = e->address_hi = e->data = 0;
		e->control = VECTOR_MASKED;
	}
	pthread_mutex_unlock(&dev->lock);
}

static void entry_state(void *self, struct saved *s)
{
	struct pci_msix_entry *e = self;

	saved_u32(s, "address-lo", &e->address_lo);
	saved_u32(s, "address-hi", &e->address_hi);
	saved_u32(s, "data", &e->data);
	saved_u32(s, "control", &e->control);
	saved_bool(s, "pending", &e->restore_pending);
	e->address_lo &= ~3u;
	e->control &= VECTOR_MASKED;
}

void pci_msix_state(struct pci_device *dev, struct saved *s)
{
	struct pci_msix *msix = &dev->msix;

	if (saved_loading(s))
		quiesce(msix);
	for (unsigned i = 0; i < msix->vectors; i++)
		msix->entry[i].restore_pending = atomic_load(&msix->enabled) && msi_pending(&msix->entry[i].msi);
	saved_require(s);
	saved_array(s, "vectors", msix->entry, msix->vectors, sizeof(*msix->entry), entry_state);
}

void pci_msix_restored(struct pci_device *dev)
{
	struct pci_msix *msix = &dev->msix;

	if (!msix->vectors)
		return;
	unsigned control = control_register(dev);
	pthread_mutex_lock(&dev->lock);
	atomic_store(&msix->enabled, (control & PCI_MSIX_ENABLE) != 0);
	msix->function_masked = control & PCI_MSIX_FUNCTION_MASK;
	update_vectors(dev);
	/* Pending ones wait again; those that can fire do once, for one that was between eventfd and LAPIC (pci.h). */
	for (unsigned i = 0; i < msix->vectors; i++) {
		if (msix->entry[i].restore_pending || msix->entry[i].msi.bound)
			msi_signal(&msix->entry[i].msi);
		msix->entry[i].restore_pending = false;
	}
	pthread_mutex_unlock(&dev->lock);
}

void pci_msix_destroy(struct pci_device *dev)
{
	struct pci_msix *msix = &dev->msix;

	for (unsigned i = 0; i < msix->vectors; i++)
		msi_destroy(&msix->entry[i].msi);
	free(msix->entry);
	msix->entry = NULL;
	msix->vectors = 0;
}
