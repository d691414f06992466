/*
 * Guest RAM: one memfd, mapped once, seen by the guest in at most two pieces around the hole below 4 GiB.
 *
 *     guest physical            memfd offset
 *     [0, low)                  [0, low)               low = min(size, MEMORY_LOW_TOP)
 *     [4 GiB, 4 GiB + rest)     [low, size)
 *
 * The hole holds PCI windows, ECAM, IOAPIC, LAPIC and firmware. RAM is a memfd so that later another process can map
 * the same pages (migration, live replacement, vhost-user). Nothing here is locked: the layout is fixed once created.
 */
#ifndef GLINT_VMM_MEMORY_MEMORY_H
#define GLINT_VMM_MEMORY_MEMORY_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Top of RAM below 4 GiB: leaves room for an ECAM at 0xB0000000 (OVMF 2022.11) or 0xE0000000 (newer). */
#define MEMORY_LOW_TOP   0x80000000ull
#define MEMORY_HIGH_BASE 0x100000000ull
#define MEMORY_MIN       (1ull << 20)
#define MEMORY_MAX       (4ull << 40) /* DESIGN 8 */
#define MEMORY_REGIONS   2

/* Address spaces: a memory slot and a bus belong to one. 1 is kept for system management mode. */
enum memory_space { MEMORY_SPACE_NORMAL, MEMORY_SPACES };

struct memory_region {
	uint64_t gpa;
	uint64_t size;
	uint8_t *host;
};

/* Of which pages RAM is made. */
enum memory_pages {
	MEMORY_PAGES_AUTO, /* huge ones where the host has them to give (transparent) */
	MEMORY_PAGES_SMALL,
	MEMORY_PAGES_2M, /* of the host's pool, taken when the machine starts */
	MEMORY_PAGES_1G,
};

struct memory {
	int fd;
	uint64_t size;
	uint8_t *host;
	unsigned regions;
	unsigned extra_slots; /* of KVM, besides the regions': ROMs and windows (window.h) */
	struct memory_region region[MEMORY_REGIONS];
};

/* Makes @size bytes of zeroed RAM (whole MiB, MEMORY_MIN..MEMORY_MAX). Pages are only taken when touched. */
[[nodiscard]] struct error *memory_create(struct memory *mem, uint64_t size);
/*
 * The same of pages of a kind. Those of the host's pool are reserved at once: when there are too few, the error says
 * how many are free and how to make more.
 */
[[nodiscard]] struct error *memory_create_of(struct memory *mem, uint64_t size, enum memory_pages pages);
void memory_destroy(struct memory *mem);

/* Hands the regions to KVM as memory slots of the normal address space. */
[[nodiscard]] struct error *memory_attach(struct memory *mem, int vm_fd);

/*
 * Shows @size bytes at @host to the guest at @gpa, read-only: its writes there are MMIO exits. What lies behind @host
 * may be mapped anew. It is no RAM: memory_at() does not know it. All of it whole pages, before the guest runs.
 */
[[nodiscard]] struct error *memory_add_rom(struct memory *mem, int vm_fd, uint64_t gpa, uint64_t size, void *host);

/* The number of a KVM memory slot that nobody else has. Before the guest runs. */
uint32_t memory_new_slot(struct memory *mem);

/*
 * The host address of the guest-physical range [gpa, gpa + len), or NULL when any byte of it is not RAM or it spans
 * two regions. The one way from a guest's number to a pointer: hot, so inline. len 0 needs gpa itself to be in RAM.
 */
static inline void *memory_at(const struct memory *mem, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < mem->regions; i++) {
		const struct memory_region *r = &mem->region[i];
		uint64_t offset = gpa - r->gpa; /* wraps to a huge number below the region */
		if (offset < r->size && len <= r->size - offset)
			return r->host + offset;
	}
	return NULL;
}

#endif
