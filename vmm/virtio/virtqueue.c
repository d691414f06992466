/*
 * Split virtqueues; see virtqueue.h. Touches guest memory through memory_at() and nothing else.
 *
 * Section numbers are those of virtio 1.2. The guest runs while this does: its memory is read through __atomic loads,
 * each field once.
 */
#include "vmm/virtio/virtqueue.h"

#include "base/util.h"
#include "saved/saved.h"

#include <linux/virtio_ring.h>
#include <string.h>

static inline uint16_t load16(const uint16_t *p, int order)
{
	return __atomic_load_n(p, order);
}

void virtqueue_reset(struct virtqueue *vq, const struct memory *memory, uint16_t size_max)
{
	*vq = (struct virtqueue){.memory = memory, .size_max = size_max, .size = size_max};
}

enum virtqueue_result virtqueue_break(struct virtqueue *vq, const char *why)
{
	if (!vq->broken)
		vq->broken = why;
	return VIRTQUEUE_BROKEN;
}

/* The three rings (2.7, 2.7.2): alignment, and where they must lie. The event fields are part of them in any case. */
bool virtqueue_enable(struct virtqueue *vq)
{
	uint64_t size = vq->size;
	const struct memory *mem = vq->memory;

	vq->broken = NULL;
	vq->enabled = true;
	if (size == 0 || size > vq->size_max || (size & (size - 1)))
		return virtqueue_break(vq, "its size is not a power of two that was offered") != VIRTQUEUE_BROKEN;
	if (!is_aligned(vq->desc_address, 16) || !is_aligned(vq->avail_address, 2) || !is_aligned(vq->used_address, 4))
		return virtqueue_break(vq, "a ring is not aligned") != VIRTQUEUE_BROKEN;
	vq->desc = memory_at(mem, vq->desc_address, size * sizeof(struct vring_desc));
	vq->avail = memory_at(mem, vq->avail_address, sizeof(struct vring_avail) + (size + 1) * sizeof(uint16_t));
	vq->used = memory_at(mem, vq->used_address,
			     sizeof(struct vring_used) + size * sizeof(struct vring_used_elem) + sizeof(uint16_t));
	if (!vq->desc || !vq->avail || !vq->used)
		return virtqueue_break(vq, "a ring is not in memory") != VIRTQUEUE_BROKEN;
	vq->seen_avail = vq->next_avail;
	vq->published = vq->next_used;
	return true;
}

/* --- notifications --- */

static uint16_t *used_event(struct virtqueue *vq)
{
	return &vq->avail->ring[vq->size];
}

static uint16_t *avail_event(struct virtqueue *vq)
{
	return (uint16_t *)&vq->used->ring[vq->size];
}

bool virtqueue_publish(struct virtqueue *vq)
{
	uint16_t old = vq->published, new = vq->next_used;

	if (vq->broken || old == new)
		return false;
	vq->published = new;
	__atomic_store_n(&vq->used->idx, new, __ATOMIC_RELEASE);
	/* The guest writes used_event, then looks at idx; so idx must be visible before used_event is read. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!vq->event_idx)
		return !(load16(&vq->avail->flags, __ATOMIC_RELAXED) & VRING_AVAIL_F_NO_INTERRUPT);
	return vring_need_event(load16(used_event(vq), __ATOMIC_RELAXED), new, old);
}

void virtqueue_quiet(struct virtqueue *vq)
{
	/* With event indices the one last written is passed already: the guest is quiet by itself (2.7.10.1). */
	if (!vq->broken && !vq->event_idx)
		__atomic_store_n(&vq->used->flags, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}

static bool listen_behind(struct virtqueue *vq, uint16_t index)
{
	if (vq->broken)
		return false;
	if (vq->event_idx)
		__atomic_store_n(avail_event(vq), index, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&vq->used->flags, 0, __ATOMIC_RELAXED);
	/* The guest writes idx, then looks at what was just stored. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load16(&vq->avail->idx, __ATOMIC_RELAXED) != index;
}

bool virtqueue_listen(struct virtqueue *vq)
{
	return listen_behind(vq, vq->next_avail);
}

bool virtqueue_listen_beyond(struct virtqueue *vq)
{
	return listen_behind(vq, vq->seen_avail);
}

/* --- chains --- */

/* A copy that the guest cannot change any more. An indirect table may lie at any address (2.7.5.3 asks for none). */
static struct vring_desc read_descriptor(const void *table, uint32_t i)
{
	struct vring_desc d;

	memcpy(&d, (const uint8_t *)table + (size_t)i * sizeof(d), sizeof(d));
	/* Keeps the compiler from reading it again where the copy is used. */
	__asm__ volatile("" ::: "memory");
	return d;
}

/* Adds a buffer to the chain. Returns why it cannot be, or NULL. */
static const char *add_buffer(const struct virtqueue *vq, struct virtqueue_chain *chain, const struct vring_desc *d)
{
	unsigned count = chain->readable + chain->writable;
	bool writable = d->flags & VRING_DESC_F_WRITE;
	uint32_t *bytes = writable ? &chain->writable_bytes : &chain->readable_bytes;

	if (count == VIRTQUEUE_SIZE_MAX)
		return "a chain is too long, or a loop";
	if (d->len == 0)
		return "a buffer is empty";
	if (!writable && chain->writable)
		return "a buffer to read comes after one to write"; /* 2.7.4.2 */
	if (__builtin_add_overflow(*bytes, d->len, bytes))
		return "a chain holds more than 4 GiB"; /* 2.7.4.1 */
	void *host = memory_at(vq->memory, d->addr, d->len);
	if (!host)
		return "a buffer is not in memory";
	chain->iov[count] = (struct iovec){host, d->len};
	if (writable)
		chain->writable++;
	else
		chain->readable++;
	return NULL;
}

/* Follows a table of @entries from entry @i. *indirect: the descriptor of the indirect table that ended it, if one did.
 */
static const char *walk_table(const struct virtqueue *vq, struct virtqueue_chain *chain, const void *table,
			      uint32_t entries, uint32_t i, struct vring_desc *indirect)
{
	for (;;) {
		if (i >= entries)
			return "a descriptor is past the end of its table";
		struct vring_desc d = read_descriptor(table, i);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			if (!indirect || !vq->indirect)
				return "an indirect table where none is allowed"; /* 2.7.5.3.1 */
			if (d.flags & VRING_DESC_F_NEXT)
				return "an indirect table is not the last of its chain"; /* 2.7.5.3.1 */
			*indirect = d;
			return NULL;
		}
		const char *why = add_buffer(vq, chain, &d);
		if (why || !(d.flags & VRING_DESC_F_NEXT))
			return why;
		i = d.next;
	}
}

/* The guest's table of descriptors: 2.7.5.3. Its WRITE flag is to be ignored (2.7.5.3.2). */
static const char *walk_indirect(const struct virtqueue *vq, struct virtqueue_chain *chain, const struct vring_desc *d)
{
	if (d->len == 0 || d->len % sizeof(struct vring_desc))
		return "the length of an indirect table is not a number of descriptors";
	const void *table = memory_at(vq->memory, d->addr, d->len);
	if (!table)
		return "an indirect table is not in memory";
	return walk_table(vq, chain, table, d->len / sizeof(struct vring_desc), 0, NULL);
}

enum virtqueue_result virtqueue_walk(struct virtqueue *vq, uint16_t head, struct virtqueue_chain *chain)
{
	struct vring_desc indirect = {0};

	chain->head = head;
	chain->readable = chain->writable = 0;
	chain->readable_bytes = chain->writable_bytes = 0;
	if (vq->broken || !vq->enabled)
		return VIRTQUEUE_BROKEN;
	const char *why = walk_table(vq, chain, vq->desc, vq->size, head, &indirect);
	if (!why && indirect.flags)
		why = walk_indirect(vq, chain, &indirect);
	return why ? virtqueue_break(vq, why) : VIRTQUEUE_CHAIN;
}

enum virtqueue_result virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain)
{
	if (vq->broken || !vq->enabled)
		return VIRTQUEUE_BROKEN;
	if (vq->seen_avail == vq->next_avail) {
		/* What the guest wrote before it moved the index is visible after this. */
		vq->seen_avail = load16(&vq->avail->idx, __ATOMIC_ACQUIRE);
		if (vq->seen_avail == vq->next_avail)
			return VIRTQUEUE_EMPTY;
		if ((uint16_t)(vq->seen_avail - vq->next_avail) > vq->size)
			return virtqueue_break(vq, "the available index jumped");
	}
	uint16_t head = load16(&vq->avail->ring[vq->next_avail & (vq->size - 1)], __ATOMIC_RELAXED);
	vq->next_avail++;
	return virtqueue_walk(vq, head, chain);
}

void virtqueue_unpop(struct virtqueue *vq)
{
	vq->next_avail--;
}

void virtqueue_push(struct virtqueue *vq, uint16_t head, uint32_t written)
{
	if (vq->broken || !vq->enabled)
		return;
	struct vring_used_elem *e = &vq->used->ring[vq->next_used++ & (vq->size - 1)];
	__atomic_store_n(&e->id, head, __ATOMIC_RELAXED);
	__atomic_store_n(&e->len, written, __ATOMIC_RELAXED);
}

void virtqueue_rewind(struct virtqueue *vq, uint16_t count)
{
	if (vq->broken)
		return;
	vq->next_avail -= count;
	vq->next_used -= count;
}

void virtqueue_move(struct virtqueue *vq, uint16_t next_avail)
{
	if (vq->broken || !vq->enabled)
		return;
	vq->next_avail = vq->seen_avail = next_avail;
	vq->next_used = vq->published = load16(&vq->used->idx, __ATOMIC_ACQUIRE);
}

void virtqueue_state(void *self, struct saved *s)
{
	struct virtqueue *vq = self;
	bool broken = vq->broken;

	saved_require(s);
	saved_u16(s, "size", &vq->size);
	saved_require(s);
	saved_u64(s, "descriptors", &vq->desc_address);
	saved_require(s);
	saved_u64(s, "available", &vq->avail_address);
	saved_require(s);
	saved_u64(s, "used", &vq->used_address);
	saved_require(s);
	saved_bool(s, "enabled", &vq->enabled);
	saved_require(s);
	saved_bool(s, "broken", &broken);
	saved_require(s);
	saved_u16(s, "next-available", &vq->next_avail);
	saved_require(s);
	saved_u16(s, "next-used", &vq->next_used);
	if (saved_loading(s))
		vq->broken = broken ? "it was broken when it was saved" : NULL;
}
