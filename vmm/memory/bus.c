/*
 * Address dispatch; see bus.h for the rules.
 *
 * The table is a sorted array. Writers hold the mutex and make the generation odd while they move entries; a reader
 * copies the entry it found and believes it only if the generation was even and the same before and after. The copied
 * words may be torn while a writer is at work, but are then thrown away unused. Touches nothing but its table.
 */
#include "vmm/memory/bus.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

void bus_init(struct bus *bus, const char *name)
{
	memset(bus, 0, sizeof(*bus));
	bus->name = name;
	pthread_mutex_init(&bus->lock, NULL);
}

/* The index of the first region whose end lies above @addr; bounded even when the table changes under it. */
static unsigned position(const struct bus *bus, uint64_t addr)
{
	unsigned low = 0, high = __atomic_load_n(&bus->count, __ATOMIC_RELAXED);

	while (low < high) {
		unsigned mid = (low + high) / 2;
		const struct bus_region *r = &bus->region[mid];
		uint64_t base = __atomic_load_n(&r->base, __ATOMIC_RELAXED);
		uint64_t last = base + (__atomic_load_n(&r->size, __ATOMIC_RELAXED) - 1);
		if (last < addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void copy_region(struct bus_region *to, const struct bus_region *from)
{
	to->base = __atomic_load_n(&from->base, __ATOMIC_RELAXED);
	to->size = __atomic_load_n(&from->size, __ATOMIC_RELAXED);
	to->ops = __atomic_load_n(&from->ops, __ATOMIC_RELAXED);
	to->self = __atomic_load_n(&from->self, __ATOMIC_RELAXED);
}

static void store_region(struct bus_region *to, const struct bus_region *from)
{
	__atomic_store_n(&to->base, from->base, __ATOMIC_RELAXED);
	__atomic_store_n(&to->size, from->size, __ATOMIC_RELAXED);
	__atomic_store_n(&to->ops, from->ops, __ATOMIC_RELAXED);
	__atomic_store_n(&to->self, from->self, __ATOMIC_RELAXED);
}

/* Finds who answers @addr. Returns false when nobody does. */
static bool find(struct bus *bus, uint64_t addr, struct bus_region *found)
{
	for (;;) {
		unsigned before = atomic_load_explicit(&bus->generation, memory_order_acquire);
		if (before & 1) {
			sched_yield();
			continue;
		}
		unsigned i = position(bus, addr);
		bool hit = false;
		if (i < __atomic_load_n(&bus->count, __ATOMIC_RELAXED)) {
			copy_region(found, &bus->region[i]);
			hit = addr - found->base < found->size;
		}
		atomic_thread_fence(memory_order_acquire);
		if (atomic_load_explicit(&bus->generation, memory_order_relaxed) == before)
			return hit;
	}
}

static void begin_change(struct bus *bus)
{
	atomic_fetch_add_explicit(&bus->generation, 1, memory_order_acq_rel);
	atomic_thread_fence(memory_order_release);
}

static void end_change(struct bus *bus)
{
	atomic_fetch_add_explicit(&bus->generation, 1, memory_order_release);
}

static struct error *insert(struct bus *bus, const struct bus_region *new)
{
	unsigned i = position(bus, new->base);

	if (i < bus->count && bus->region[i].base <= new->base + (new->size - 1))
		return error_new(EBUSY, "put a device at %s 0x%llx: 0x%llx is taken", bus->name,
				 (unsigned long long)new->base, (unsigned long long)bus->region[i].base);
	if (bus->count == BUS_REGIONS_MAX)
		return error_new(ENOSPC, "put a device at %s 0x%llx: %d devices are there already", bus->name,
				 (unsigned long long)new->base, BUS_REGIONS_MAX);
	begin_change(bus);
	for (unsigned j = bus->count; j > i; j--)
		store_region(&bus->region[j], &bus->region[j - 1]);
	store_region(&bus->region[i], new);
	__atomic_store_n(&bus->count, bus->count + 1, __ATOMIC_RELAXED);
	end_change(bus);
	return NULL;
}

struct error *bus_add(struct bus *bus, uint64_t base, uint64_t size, const struct bus_ops *ops, void *self)
{
	if (size == 0 || base + (size - 1) < base)
		return error_new(EINVAL, "put a device at %s 0x%llx: %llu bytes do not fit there", bus->name,
				 (unsigned long long)base, (unsigned long long)size);
	struct bus_region new = {.base = base, .size = size, .ops = ops, .self = self};
	pthread_mutex_lock(&bus->lock);
	struct error *err = insert(bus, &new);
	pthread_mutex_unlock(&bus->lock);
	return err;
}

void bus_remove(struct bus *bus, uint64_t base)
{
	pthread_mutex_lock(&bus->lock);
	unsigned i = position(bus, base);
	if (i < bus->count && bus->region[i].base == base) {
		begin_change(bus);
		for (unsigned j = i; j + 1 < bus->count; j++)
			store_region(&bus->region[j], &bus->region[j + 1]);
		__atomic_store_n(&bus->count, bus->count - 1, __ATOMIC_RELAXED);
		end_change(bus);
	}
	pthread_mutex_unlock(&bus->lock);
}

static bool whole(const struct bus_region *r, uint64_t addr, unsigned size)
{
	bool natural = size == 1 || size == 2 || size == 4 || size == 8;

	return natural && r->size - (addr - r->base) >= size;
}

uint64_t bus_read(struct bus *bus, uint64_t addr, unsigned size)
{
	struct bus_region r;

	if (find(bus, addr, &r) && whole(&r, addr, size))
		return r.ops->read(r.self, addr - r.base, size) & bus_all_ones(size);
	if (size == 1)
		return 0xff;
	uint64_t value = 0;
	for (unsigned i = 0; i < size; i++)
		value |= bus_read(bus, addr + i, 1) << (8 * i);
	return value;
}

void bus_write(struct bus *bus, uint64_t addr, uint64_t value, unsigned size)
{
	struct bus_region r;

	if (find(bus, addr, &r) && whole(&r, addr, size)) {
		r.ops->write(r.self, addr - r.base, value & bus_all_ones(size), size);
		return;
	}
	if (size == 1)
		return;
	for (unsigned i = 0; i < size; i++)
		bus_write(bus, addr + i, value >> (8 * i) & 0xff, 1);
}
