/* A virtio driver; see virtio.h. */
#include "virtio.h"

/* 4.1.4.3: the common configuration structure */
enum {
	DEVICE_FEATURE_SELECT = 0,
	DEVICE_FEATURE = 4,
	DRIVER_FEATURE_SELECT = 8,
	DRIVER_FEATURE = 12,
	CONFIG_VECTOR = 16,
	NUM_QUEUES = 18,
	STATUS = 20,
	QUEUE_SELECT = 22,
	QUEUE_SIZE = 24,
	QUEUE_VECTOR = 26,
	QUEUE_ENABLE = 28,
	QUEUE_NOTIFY = 30,
	QUEUE_DESC = 32,
	QUEUE_DRIVER = 40,
	QUEUE_DEVICE = 48,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4 };
#define INDIRECT_MAX 16

bool virtio_find(struct virtio *v, unsigned type, unsigned nth)
{
	int slot = pci_find(VIRTIO_VENDOR, (uint16_t)(0x1040 + type), nth);

	if (slot < 0)
		return false;
	memset(v, 0, sizeof(*v));
	v->slot = (unsigned)slot;
	for (unsigned cap = 0; (cap = pci_capability(v->slot, 9, cap));) {
		unsigned kind = pci_read(v->slot, cap + 3, 1), bar = pci_read(v->slot, cap + 4, 1);
		if (kind < CAP_COMMON || kind > CAP_DEVICE)
			continue;
		uint64_t at = pci_bar(v->slot, bar) + pci_read(v->slot, cap + 8, 4);
		if (kind == CAP_COMMON)
			v->common = at;
		else if (kind == CAP_ISR)
			v->isr = at;
		else if (kind == CAP_DEVICE)
			v->config = at;
		else {
			v->notify = at;
			v->notify_step = pci_read(v->slot, cap + 16, 4);
		}
	}
	CHECK(v->common && v->notify && v->isr, "virtio device in slot %d lacks a structure", slot);
	pci_enable(v->slot);
	msix_find(v->slot, &v->msix);
	return true;
}

uint8_t virtio_status(const struct virtio *v)
{
	return mmio_read8(v->common + STATUS);
}

void virtio_reset(struct virtio *v)
{
	mmio_write8(v->common + STATUS, 0);
	CHECK(WAIT_FOR(5000000, virtio_status(v) == 0), "virtio device in slot %u does not reset", v->slot);
}

unsigned virtio_queue_count(const struct virtio *v)
{
	return mmio_read16(v->common + NUM_QUEUES);
}

static void negotiate(struct virtio *v, uint64_t wanted)
{
	v->offered = 0;
	for (unsigned i = 0; i < 2; i++) {
		mmio_write32(v->common + DEVICE_FEATURE_SELECT, i);
		v->offered |= (uint64_t)mmio_read32(v->common + DEVICE_FEATURE) << (i * 32);
	}
	CHECK(v->offered >> VIRTIO_F_VERSION_1 & 1, "VERSION_1 is not offered: %lx", v->offered);
	v->features = v->offered & (wanted | 1ull << VIRTIO_F_VERSION_1);
	for (unsigned i = 0; i < 2; i++) {
		mmio_write32(v->common + DRIVER_FEATURE_SELECT, i);
		mmio_write32(v->common + DRIVER_FEATURE, (uint32_t)(v->features >> (i * 32)));
	}
	mmio_write8(v->common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	CHECK(virtio_status(v) & FEATURES_OK, "features %lx are refused", v->features);
}

static void setup_queue(struct virtio *v, unsigned i)
{
	struct virtq *q = &v->queue[i];

	mmio_write16(v->common + QUEUE_SELECT, (uint16_t)i);
	uint16_t size = mmio_read16(v->common + QUEUE_SIZE);
	CHECK(size >= 2, "queue %u has %u entries", i, size);
	if (size > VIRTIO_QUEUE_MAX)
		size = VIRTIO_QUEUE_MAX;
	mmio_write16(v->common + QUEUE_SIZE, size);
	/* Set up again, a queue keeps its memory. */
	if (!q->desc || q->size != size) {
		q->desc = alloc(size * 16u, PAGE);
		q->avail = alloc(6 + size * 2u, PAGE);
		q->used = alloc(6 + size * 8u, PAGE);
		q->indirect = alloc(size * 16u * INDIRECT_MAX, PAGE);
	}
	memset((void *)(uintptr_t)q->avail, 0, 6 + size * 2u);
	memset((void *)(uintptr_t)q->used, 0, 6 + size * 8u);
	q->index = i;
	q->size = q->free = size;
	q->free_head = q->used_seen = 0;
	q->event_idx = virtio_has(v, VIRTIO_F_EVENT_IDX);
	for (uint16_t d = 0; d < size; d++)
		q->desc[d] = (struct virtq_desc){.next = (uint16_t)(d + 1)};
	mmio_write64(v->common + QUEUE_DESC, (uint64_t)q->desc);
	mmio_write64(v->common + QUEUE_DRIVER, (uint64_t)q->avail);
	mmio_write64(v->common + QUEUE_DEVICE, (uint64_t)q->used);
	if (v->use_msix) {
		mmio_write16(v->common + QUEUE_VECTOR, (uint16_t)i);
		CHECK(mmio_read16(v->common + QUEUE_VECTOR) == i, "queue %u takes no vector", i);
	}
	q->doorbell = v->notify + mmio_read16(v->common + QUEUE_NOTIFY) * v->notify_step;
	mmio_write16(v->common + QUEUE_ENABLE, 1);
}

void virtio_setup(struct virtio *v, uint64_t wanted, unsigned queues, bool use_msix, unsigned cpu)
{
	virtio_reset(v);
	mmio_write8(v->common + STATUS, ACKNOWLEDGE);
	mmio_write8(v->common + STATUS, ACKNOWLEDGE | DRIVER);
	negotiate(v, wanted);
	v->queues = queues < virtio_queue_count(v) ? queues : virtio_queue_count(v);
	v->use_msix = use_msix;
	CHECK(v->queues >= 1 && v->queues <= VIRTIO_QUEUES, "%u queues: this driver has 1 to %d", v->queues,
	      VIRTIO_QUEUES);
	if (use_msix) {
		CHECK(v->msix.vectors > v->queues, "%u vectors for %u queues", v->msix.vectors, v->queues);
		msix_enable(&v->msix, true, false);
		for (unsigned i = 0; i <= v->queues; i++)
			msix_route(&v->msix, i, (uint8_t)(VECTOR_MSI + i), cpu);
		mmio_write16(v->common + CONFIG_VECTOR, (uint16_t)v->queues);
	} else if (v->msix.vectors) {
		msix_enable(&v->msix, false, false);
	}
	for (unsigned i = 0; i < v->queues; i++)
		setup_queue(v, i);
	mmio_write8(v->common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

static void fill(struct virtq_desc *d, const struct segment *seg)
{
	d->addr = (uint64_t)seg->addr;
	d->len = seg->len;
	d->flags = seg->write ? VIRTIO_DESC_WRITE : 0;
}

bool virtq_add(struct virtq *q, const struct segment *segs, unsigned n, void *token, bool indirect)
{
	uint16_t head = q->free_head;

	if (q->free < (indirect ? 1 : n))
		return false;
	if (indirect) {
		struct virtq_desc *table = &q->indirect[head * INDIRECT_MAX];
		for (unsigned i = 0; i < n; i++) {
			fill(&table[i], &segs[i]);
			table[i].next = (uint16_t)(i + 1);
			table[i].flags |= i + 1 < n ? VIRTIO_DESC_NEXT : 0;
		}
		struct virtq_desc *d = &q->desc[head];
		d->addr = (uint64_t)table;
		d->len = n * 16;
		d->flags = VIRTIO_DESC_INDIRECT;
		q->free_head = d->next;
		q->free--;
	} else {
		for (unsigned i = 0; i < n; i++) {
			struct virtq_desc *d = &q->desc[q->free_head];
			fill(d, &segs[i]);
			d->flags |= i + 1 < n ? VIRTIO_DESC_NEXT : 0;
			q->free_head = d->next;
		}
		q->free -= (uint16_t)n;
	}
	q->token[head] = token;
	q->avail[2 + q->avail[1] % q->size] = head;
	barrier();
	q->avail[1]++;
	return true;
}

void virtq_ring(struct virtq *q)
{
	barrier();
	mmio_write16(q->doorbell, (uint16_t)q->index);
}

void virtq_kick(struct virtq *q)
{
	/* Ringing too often is allowed; what the device asks is looked at where it is asked without event indices. */
	barrier();
	if (q->event_idx || !(q->used[0] & 1))
		mmio_write16(q->doorbell, (uint16_t)q->index);
}

void *virtq_get(struct virtq *q, uint32_t *written)
{
	if (q->used[1] == q->used_seen)
		return NULL;
	barrier();
	const volatile uint32_t *e = (const volatile uint32_t *)(q->used + 2) + q->used_seen % q->size * 2;
	uint32_t id = e[0];
	CHECK(id < q->size && q->token[id], "queue %u: used entry %u names no chain", q->index, id);
	if (written)
		*written = e[1];
	q->used_seen++;
	/* With event indices: an interrupt for the next one. */
	q->avail[2 + q->size] = q->used_seen;
	void *token = q->token[id];
	q->token[id] = NULL;
	/* The chain goes back in front of the free ones. */
	uint16_t last = (uint16_t)id, n = 1;
	for (; q->desc[last].flags & VIRTIO_DESC_NEXT; n++)
		last = q->desc[last].next;
	q->desc[last].next = q->free_head;
	q->free_head = (uint16_t)id;
	q->free += n;
	return token;
}

void *virtq_wait(struct virtq *q, uint32_t *written, uint64_t us)
{
	void *token = NULL;

	WAIT_FOR(us, token || (token = virtq_get(q, written)));
	return token;
}
