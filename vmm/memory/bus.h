/*
 * A bus: which device answers an address. One for ports, one for each MMIO address space.
 *
 * Look-ups come from every vCPU at once and take no lock: the table is guarded by a generation counter (odd while it
 * changes), and a reader that saw it change looks again. Changes (a guest moving a BAR) are rare and serialised by a
 * mutex. A device does its own locking: its handlers may be called by several vCPUs at once, and, for a moment, after
 * bus_remove() by a vCPU that looked it up before.
 *
 * What nobody answers reads as all-ones and swallows writes, as on a PC.
 */
#ifndef GLINT_VMM_MEMORY_BUS_H
#define GLINT_VMM_MEMORY_BUS_H

#include "base/error.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define BUS_REGIONS_MAX 512

struct bus_ops {
	/*
	 * @offset: from the start of the region; the access lies wholly inside it. @size: 1, 2, 4 or 8. A value
	 * narrower than 8 bytes stands in the low bits. Alignment is whatever the guest chose.
	 */
	uint64_t (*read)(void *self, uint64_t offset, unsigned size);
	void (*write)(void *self, uint64_t offset, uint64_t value, unsigned size);
};

struct bus_region {
	uint64_t base;
	uint64_t size;
	const struct bus_ops *ops;
	void *self;
};

struct bus {
	const char *name; /* "port" or "MMIO", for errors */
	pthread_mutex_t lock;
	atomic_uint generation;
	unsigned count;
	struct bus_region region[BUS_REGIONS_MAX]; /* sorted by base, never overlapping */
};

void bus_init(struct bus *bus, const char *name);

/* Puts a device on the bus. Fails when the range is empty, wraps, overlaps another (EBUSY), or the table is full. */
[[nodiscard]] struct error *bus_add(struct bus *bus, uint64_t base, uint64_t size, const struct bus_ops *ops,
				    void *self);

/* Takes the region that starts at @base off the bus; no-op when there is none. */
void bus_remove(struct bus *bus, uint64_t base);

/*
 * A guest's access of @size bytes (1..8, any). An access that is not 1, 2, 4 or 8 bytes, or that leaves its region, is
 * split into bytes. The return value of bus_read() has its unused upper bits zero.
 */
uint64_t bus_read(struct bus *bus, uint64_t addr, unsigned size);
void bus_write(struct bus *bus, uint64_t addr, uint64_t value, unsigned size);

/* All-ones of @size bytes: what an absent device reads as. */
static inline uint64_t bus_all_ones(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

#endif
