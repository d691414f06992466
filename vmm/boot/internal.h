/*
 * Inside vmm/boot: where things lie in low memory, and what both boot protocols share.
 */
#ifndef GLINT_VMM_BOOT_INTERNAL_H
#define GLINT_VMM_BOOT_INTERNAL_H

#include "vmm/boot/boot.h"

/*
 * The first MiB. All of it but the ACPI tables is the guest's to reuse as soon as it has read it. Kernels load at or
 * above 1 MiB.
 */
#define LOW_GDT        0x1000ull
#define LOW_PARAMS     0x2000ull /* struct boot_params, or struct hvm_start_info and its lists: one page */
#define LOW_PAGETABLES 0x3000ull /* PML4, PDPT, and a page directory for each of the first 4 GiB */
#define LOW_STACK_TOP  0x10000ull
#define LOW_CMDLINE    0x10000ull
#define LOW_RAM_END    0xA0000ull
#define LOW_ACPI       0xE0000ull
#define LOW_END        0x100000ull

/* A file to load from, found to be a regular file that is not empty. */
struct boot_file {
	int fd;
	const char *name;
	uint64_t size;
	uint8_t head[4096]; /* its first bytes; zero behind the end of a shorter file */
};

/* What of guest RAM is taken: a kernel loads below, an initrd goes above. Where the initrd went. */
struct boot_initrd {
	uint64_t base, size; /* size 0: none */
};

/* One line of the memory map; types as E820 and PVH number them alike. */
enum { BOOT_MAP_RAM = 1, BOOT_MAP_ACPI = 3 };
struct boot_map_entry {
	uint64_t base, size;
	uint32_t type;
};
#define BOOT_MAP_MAX 4

/* Fills @map, sorted by address, and returns the number of its entries. */
unsigned boot_memory_map(const struct memory *mem, struct boot_map_entry map[BOOT_MAP_MAX]);

/* End of RAM below 4 GiB. */
uint64_t boot_low_end(const struct memory *mem);

/* Reads [offset, offset + len) of @file straight to guest address @gpa. Fails when either range does not exist. */
[[nodiscard]] struct error *boot_read(const struct boot_file *file, struct memory *mem, uint64_t offset, uint64_t len,
				      uint64_t gpa, const char *what);

/*
 * Loads the initrd, if there is one, to the highest whole pages below min(@limit, end of low RAM) and not below @floor;
 * when it does not fit and @high, to the highest above 4 GiB.
 */
[[nodiscard]] struct error *boot_load_initrd(struct memory *mem, const struct boot_config *config, uint64_t floor,
					     uint64_t limit, bool high, struct boot_initrd *initrd);

/* Puts the command line to LOW_CMDLINE; at most @max bytes without the NUL, which is what the kernel takes. */
[[nodiscard]] struct error *boot_put_cmdline(struct memory *mem, const struct boot_config *config, uint64_t max);

/* The two protocols. *entry has its GDT fields still to be filled. */
[[nodiscard]] struct error *bzimage_load(struct memory *mem, const struct boot_config *config,
					 const struct boot_file *kernel, uint64_t rsdp, struct boot_entry *entry);
[[nodiscard]] struct error *pvh_load(struct memory *mem, const struct boot_config *config,
				     const struct boot_file *kernel, uint64_t rsdp, struct boot_entry *entry);

#endif
