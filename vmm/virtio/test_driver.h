/*
 * The guest's side of virtio, for unit tests and fuzz targets: a machine without KVM (memory, buses, PCI, I/O threads)
 * and a small driver that sets up a function through its registers and drives its rings in plain memory. Interrupts are
 * read from the MSIs' eventfds. What goes wrong in here is a failed test, so it asserts.
 */
#ifndef GLINT_VMM_VIRTIO_TEST_DRIVER_H
#define GLINT_VMM_VIRTIO_TEST_DRIVER_H

#include "base/util.h"
#include "vmm/virtio/virtio_pci.h"

#include <assert.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TEST_MEMORY      (32 * MIB)
#define TEST_SLOT        3
#define TEST_THREADS     2
#define TEST_RINGS       0x10000ull /* a ring of queue i lies at TEST_RINGS + i * TEST_RING_STEP */
#define TEST_RING_STEP   0x10000ull
#define TEST_DATA        (4 * MIB)
#define TEST_PATIENCE_MS 20000

static inline void test_no_error(struct error *err)
{
	if (!err)
		return;
	fprintf(stderr, "unexpected error: %s\n", error_text(err));
	abort();
}

/* Writes the paused @unit's saved state to @fd, from its beginning. */
static inline struct error *test_save(const struct unit *unit, int fd)
{
	cleanup_saved struct saved *s = NULL;

	assert(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
	TRY(saved_create(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	return saved_finish(s);
}

/* Restores the paused @unit from what test_save() wrote to @fd. */
static inline struct error *test_load(const struct unit *unit, int fd)
{
	cleanup_saved struct saved *s = NULL;

	assert(lseek(fd, 0, SEEK_SET) == 0);
	TRY(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	TRY(saved_finish(s));
	return unit->ops->restored(unit->self);
}

struct test_machine {
	struct memory memory;
	struct bus pio, mmio;
	struct irqs irqs;
	struct pci_bus pci;
	struct iothread *threads[TEST_THREADS];
};

/* All but the threads. @memory: of an earlier machine, to go on with, or NULL. */
static inline void test_machine_prepare(struct test_machine *m, const struct memory *memory)
{
	memset(m, 0, sizeof(*m));
	if (memory)
		m->memory = *memory;
	else
		test_no_error(memory_create(&m->memory, TEST_MEMORY));
	bus_init(&m->pio, "port");
	bus_init(&m->mmio, "MMIO");
	test_no_error(irqs_init(&m->irqs, -1));
	test_no_error(pci_bus_init(&m->pci, &m->pio, &m->mmio, &m->irqs, 4ull << 30));
	for (unsigned i = 0; i < TEST_THREADS; i++)
		test_no_error(iothread_new(&m->threads[i], i));
}

static inline void test_machine_init(struct test_machine *m, const struct memory *memory)
{
	test_machine_prepare(m, memory);
	for (unsigned i = 0; i < TEST_THREADS; i++)
		test_no_error(iothread_start(m->threads[i], NULL, NULL));
}

/* With this thread as its I/O thread, for fuzz targets. */
static inline void test_machine_adopt(struct test_machine *m)
{
	test_machine_prepare(m, NULL);
	for (unsigned i = 0; i < TEST_THREADS; i++)
		test_no_error(iothread_adopt(m->threads[i]));
}

/* Memory is kept when the next machine goes on with it. */
static inline void test_machine_destroy(struct test_machine *m, bool keep_memory)
{
	for (unsigned i = 0; i < TEST_THREADS; i++)
		iothread_free(m->threads[i]);
	pci_bus_destroy(&m->pci);
	irqs_destroy(&m->irqs);
	if (!keep_memory)
		memory_destroy(&m->memory);
}

/* --- registers --- */

static inline uint32_t test_config_read(struct test_machine *m, unsigned offset, unsigned size)
{
	bus_write(&m->pio, 0xcf8, 0x80000000u | TEST_SLOT << 11 | (offset & ~3u), 4);
	return (uint32_t)bus_read(&m->pio, 0xcfc + (offset & 3), size);
}

static inline void test_config_write(struct test_machine *m, unsigned offset, uint32_t value, unsigned size)
{
	bus_write(&m->pio, 0xcf8, 0x80000000u | TEST_SLOT << 11 | (offset & ~3u), 4);
	bus_write(&m->pio, 0xcfc + (offset & 3), value, size);
}

/* The offset of the first capability with @id, and of a vendor capability of virtio's kind @kind (else 0). */
static inline unsigned test_capability(struct test_machine *m, uint8_t id, uint8_t kind)
{
	unsigned at = test_config_read(m, 0x34, 1);

	for (unsigned n = 0; at && n < 64; n++, at = test_config_read(m, at + 1, 1))
		if (test_config_read(m, at, 1) == id && (id != 9 || test_config_read(m, at + 3, 1) == kind))
			return at;
	return 0;
}

static inline uint64_t test_bar(struct test_machine *m, unsigned bar)
{
	uint64_t low = test_config_read(m, 0x10 + 4 * bar, 4);

	if ((low & 6) == 4)
		low |= (uint64_t)test_config_read(m, 0x14 + 4 * bar, 4) << 32;
	return low & ~15ull;
}

struct test_driver {
	struct test_machine *machine;
	struct virtio_pci *vp;
	uint64_t bar;
	uint64_t features;
	bool quiet; /* the wait for interrupts is by polling the ring: for a driver that does not get any */
};

static inline uint64_t test_read(struct test_driver *d, unsigned offset, unsigned size)
{
	return bus_read(&d->machine->mmio, d->bar + offset, size);
}

static inline void test_write(struct test_driver *d, unsigned offset, uint64_t value, unsigned size)
{
	bus_write(&d->machine->mmio, d->bar + offset, value, size);
}

static inline unsigned test_status(struct test_driver *d)
{
	return (unsigned)test_read(d, VIRTIO_PCI_COMMON_STATUS, 1);
}

/* How often vector @v was signalled since last asked. */
static inline uint64_t test_interrupts(struct test_driver *d, unsigned v)
{
	uint64_t count = 0;
	if (read(d->vp->pci.msix.entry[v].msi.event_fd, &count, sizeof(count)) < 0)
		return 0;
	return count;
}

static inline void test_msix_enable(struct test_machine *m)
{
	unsigned cap = test_capability(m, 0x11, 0);
	uint64_t table = test_bar(m, VIRTIO_PCI_MSIX_BAR);
	unsigned vectors = (test_config_read(m, cap + 2, 2) & 0x7ff) + 1;

	for (unsigned v = 0; v < vectors; v++) {
		bus_write(&m->mmio, table + 16ull * v, 0xfee00000, 4);
		bus_write(&m->mmio, table + 16ull * v + 8, 0x40 + v, 4);
		bus_write(&m->mmio, table + 16ull * v + 12, 0, 4);
	}
	test_config_write(m, cap + 2, 0x8000, 2);
}

/* Finds the function and turns on decoding and bus mastering. */
static inline void test_driver_find(struct test_driver *d, struct test_machine *m, struct virtio_pci *vp)
{
	*d = (struct test_driver){.machine = m, .vp = vp};
	test_config_write(m, 0x04, 6, 2);
	d->bar = test_bar(m, VIRTIO_PCI_BAR);
}

/* Reset to FEATURES_OK with the offered ones of @want. */
static inline void test_driver_negotiate(struct test_driver *d, uint64_t want)
{
	test_write(d, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	assert(test_status(d) == 0);
	test_write(d, VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, 1);
	d->features = 0;
	for (unsigned i = 0; i < 2; i++) {
		test_write(d, VIRTIO_PCI_COMMON_DFSELECT, i, 4);
		uint64_t word = test_read(d, VIRTIO_PCI_COMMON_DF, 4) & (uint32_t)(want >> 32 * i);
		d->features |= word << 32 * i;
		test_write(d, VIRTIO_PCI_COMMON_GFSELECT, i, 4);
		test_write(d, VIRTIO_PCI_COMMON_GF, word, 4);
	}
	test_write(d, VIRTIO_PCI_COMMON_STATUS, 11, 1);
	assert(test_status(d) == 11);
	test_write(d, VIRTIO_PCI_COMMON_MSIX, 0, 2);
}

static inline void test_driver_ok(struct test_driver *d)
{
	test_write(d, VIRTIO_PCI_COMMON_STATUS, 15, 1);
	assert(test_status(d) == 15);
}

/* --- rings --- */

struct test_ring {
	struct test_driver *driver;
	unsigned index;
	uint16_t size;
	uint16_t avail_idx, used_seen;
	uint64_t desc_address, avail_address, used_address, indirect_address;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint16_t free[VIRTQUEUE_SIZE_MAX]; /* a stack of free descriptors */
	unsigned free_count;
	uint16_t chain_length[VIRTQUEUE_SIZE_MAX]; /* of the chain at head i */
};

/* A buffer of a chain. */
struct test_buffer {
	uint64_t address;
	uint32_t len;
	bool writable;
};

static inline void *test_at(struct test_machine *m, uint64_t address)
{
	return m->memory.host + address;
}

/* Sets queue @index up with @size entries, vector index + 1, and enables it. */
static inline void test_ring_init(struct test_ring *r, struct test_driver *d, unsigned index, uint16_t size)
{
	uint64_t base = TEST_RINGS + index * TEST_RING_STEP;

	memset(r, 0, sizeof(*r));
	r->driver = d;
	r->index = index;
	r->size = size;
	r->desc_address = base;
	r->avail_address = base + 0x2000;
	r->used_address = base + 0x3000;
	r->indirect_address = base + 0x4000;
	memset(test_at(d->machine, base), 0, TEST_RING_STEP);
	r->desc = test_at(d->machine, r->desc_address);
	r->avail = test_at(d->machine, r->avail_address);
	r->used = test_at(d->machine, r->used_address);
	for (uint16_t i = 0; i < size; i++)
		r->free[r->free_count++] = (uint16_t)(size - 1 - i);
	test_write(d, VIRTIO_PCI_COMMON_Q_SELECT, index, 2);
	test_write(d, VIRTIO_PCI_COMMON_Q_SIZE, size, 2);
	test_write(d, VIRTIO_PCI_COMMON_Q_MSIX, index + 1, 2);
	test_write(d, VIRTIO_PCI_COMMON_Q_DESCLO, r->desc_address, 8);
	test_write(d, VIRTIO_PCI_COMMON_Q_AVAILLO, (uint32_t)r->avail_address, 4);
	test_write(d, VIRTIO_PCI_COMMON_Q_AVAILHI, r->avail_address >> 32, 4);
	test_write(d, VIRTIO_PCI_COMMON_Q_USEDLO, r->used_address, 8);
	test_write(d, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

static inline bool test_has(const struct test_ring *r, unsigned feature)
{
	return r->driver->features >> feature & 1;
}

/* Makes a chain available at the ring's next entry; the index moves with test_ring_publish(). */
static inline uint16_t test_ring_add(struct test_ring *r, const struct test_buffer *b, unsigned count, bool indirect)
{
	unsigned need = indirect ? 1 : count;

	assert(need && need <= r->free_count);
	uint16_t head = r->free[r->free_count - 1];
	struct vring_desc *table = r->desc;
	uint64_t table_address = r->indirect_address + head * 16ull * 16;
	r->chain_length[head] = (uint16_t)need;
	if (indirect) {
		assert(count <= 16);
		table = test_at(r->driver->machine, table_address);
		r->desc[head] = (struct vring_desc){table_address, count * 16, VRING_DESC_F_INDIRECT, 0};
	}
	for (unsigned i = 0; i < count; i++) {
		unsigned at = indirect ? i : r->free[r->free_count - 1 - i];
		unsigned next = i + 1 == count ? 0 : indirect ? i + 1 : r->free[r->free_count - 2 - i];
		table[at] = (struct vring_desc){
			b[i].address, b[i].len,
			(uint16_t)((i + 1 < count ? VRING_DESC_F_NEXT : 0) | (b[i].writable ? VRING_DESC_F_WRITE : 0)),
			(uint16_t)next};
	}
	r->free_count -= need;
	r->avail->ring[r->avail_idx++ % r->size] = head;
	return head;
}

/* Shows the device what was added. True when it asked to be told. */
static inline bool test_ring_publish(struct test_ring *r)
{
	uint16_t old = r->avail->idx;

	__atomic_store_n(&r->avail->idx, r->avail_idx, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (test_has(r, VIRTIO_RING_F_EVENT_IDX)) {
		uint16_t event = __atomic_load_n((uint16_t *)&r->used->ring[r->size], __ATOMIC_RELAXED);
		return vring_need_event(event, r->avail_idx, old);
	}
	return !(__atomic_load_n(&r->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY);
}

static inline void test_ring_kick(struct test_ring *r)
{
	test_write(r->driver, VIRTIO_BAR_NOTIFY + r->index * VIRTIO_BAR_NOTIFY_STEP, r->index, 2);
}

static inline void test_ring_send(struct test_ring *r)
{
	if (test_ring_publish(r))
		test_ring_kick(r);
}

/* Takes one used chain. False when there is none. */
static inline bool test_ring_take(struct test_ring *r, uint16_t *head, uint32_t *len)
{
	if (__atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) == r->used_seen)
		return false;
	struct vring_used_elem e = r->used->ring[r->used_seen++ % r->size];
	assert(e.id < r->size && r->chain_length[e.id]);
	*head = (uint16_t)e.id;
	*len = e.len;
	/* Gives the descriptors back in an order that makes the next chain of this length the same one. */
	uint16_t ids[VIRTQUEUE_SIZE_MAX], at = *head;
	for (unsigned i = 0; i < r->chain_length[e.id]; i++, at = r->desc[at].next)
		ids[i] = at;
	for (unsigned i = r->chain_length[e.id]; i-- > 0;)
		r->free[r->free_count++] = ids[i];
	r->chain_length[e.id] = 0;
	return true;
}

static inline uint64_t test_now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Tells the device to interrupt for the next used entry. True when there is one already. */
static inline bool test_ring_arm(struct test_ring *r)
{
	if (test_has(r, VIRTIO_RING_F_EVENT_IDX))
		__atomic_store_n(&r->avail->ring[r->size], r->used_seen, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&r->avail->flags, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&r->used->idx, __ATOMIC_RELAXED) != r->used_seen;
}

/* Waits for the queue's interrupt, as a driver does, and takes one used chain. */
static inline void test_ring_wait(struct test_ring *r, uint16_t *head, uint32_t *len)
{
	uint64_t end = test_now_ms() + TEST_PATIENCE_MS;
	struct pollfd p = {.fd = r->driver->vp->pci.msix.entry[r->index + 1].msi.event_fd, .events = POLLIN};

	while (!test_ring_take(r, head, len)) {
		if (test_ring_arm(r))
			continue;
		if (poll(&p, 1, r->driver->quiet ? 1 : TEST_PATIENCE_MS) == 1)
			(void)test_interrupts(r->driver, r->index + 1);
		assert(test_now_ms() < end);
	}
}

/* Waits for @condition; false after the patience has run out. */
#define test_until(condition)                                                                                          \
	({                                                                                                             \
		uint64_t end_ = test_now_ms() + TEST_PATIENCE_MS;                                                      \
		bool true_ = (condition);                                                                              \
		while (!true_ && test_now_ms() < end_) {                                                               \
			usleep(200);                                                                                   \
			true_ = (condition);                                                                           \
		}                                                                                                      \
		true_;                                                                                                 \
	})

/* --- block requests --- */

#define TEST_HEADER_BYTES 16

/* Where the header and status of the chain in flight with tag @tag lie, per queue; tags are below 256. */
static inline uint64_t test_blk_header(const struct test_ring *r, unsigned tag)
{
	return TEST_DATA / 2 + r->index * 0x10000ull + tag * 32ull;
}

static inline uint8_t *test_blk_status(struct test_ring *r, unsigned tag)
{
	return test_at(r->driver->machine, test_blk_header(r, tag) + TEST_HEADER_BYTES);
}

/* Adds a request of @len bytes of data at @data (to the device when @out). Returns its head. */
static inline uint16_t test_blk_add(struct test_ring *r, unsigned tag, uint32_t type, uint64_t sector, uint64_t data,
				    uint32_t len, bool indirect)
{
	uint64_t header = test_blk_header(r, tag);
	uint32_t words[4] = {type, 0, (uint32_t)sector, (uint32_t)(sector >> 32)};
	bool in = type == 0 || type == 8;
	struct test_buffer b[3] = {{header, TEST_HEADER_BYTES, false}};
	unsigned n = 1;

	memcpy(test_at(r->driver->machine, header), words, sizeof(words));
	*test_blk_status(r, tag) = 0xee;
	if (len)
		b[n++] = (struct test_buffer){data, len, in};
	b[n++] = (struct test_buffer){header + TEST_HEADER_BYTES, 1, true};
	return test_ring_add(r, b, n, indirect);
}

/* One request from start to end: its status; *used: used.len. */
static inline uint8_t test_blk(struct test_ring *r, uint32_t type, uint64_t sector, uint64_t data, uint32_t len,
			       uint32_t *used)
{
	uint16_t head, mine = test_blk_add(r, 0, type, sector, data, len, test_has(r, VIRTIO_RING_F_INDIRECT_DESC));
	uint32_t n;

	test_ring_send(r);
	test_ring_wait(r, &head, &n);
	assert(head == mine);
	if (used)
		*used = n;
	return *test_blk_status(r, 0);
}

#endif
