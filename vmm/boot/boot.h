/*
 * Direct boot: puts a kernel, its initrd, its command line and the machine's description into guest memory, and says
 * in which state the first vCPU begins.
 *
 * Two protocols. bzImage: the 64-bit entry of the Linux x86 boot protocol (Documentation/arch/x86/boot.rst), in long
 * mode on identity page tables. PVH: an ELF kernel with a XEN_ELFNOTE_PHYS32_ENTRY note, entered in 32-bit protected
 * mode (Xen's docs/misc/pvh.pandoc). Which one is read off the file.
 *
 * Kernel and initrd are untrusted input: every header field is bounded by the file and by guest RAM before use.
 */
#ifndef GLINT_VMM_BOOT_BOOT_H
#define GLINT_VMM_BOOT_BOOT_H

#include "base/error.h"
#include "vmm/cpu/topology.h"
#include "vmm/memory/memory.h"
#include "vmm/memory/numa.h"

#include <stdint.h>

/* The longest command line there is room for; a kernel may take less. */
#define BOOT_CMDLINE_MAX 0xFFFF

/* Code and data of the GDT that lies at boot_entry.gdt_base. */
#define BOOT_SELECTOR_CODE 0x10
#define BOOT_SELECTOR_DATA 0x18

struct boot_config {
	int kernel_fd;
	int initrd_fd;                         /* -1: none */
	const char *cmdline;                   /* "" for none */
	const char *kernel_name, *initrd_name; /* for errors */
	/* What ACPI describes. */
	unsigned vcpus;               /* 1..256 */
	struct cpu_topology topology; /* all 0: APIC ids are 0..vcpus - 1 */
	const struct numa *numa;      /* NULL: no nodes */
	uint64_t mmio64_base;         /* PCI's 64-bit window: see vmm/pci/pci.h */
	bool keyboard;                /* there is a keyboard controller */
};

/* The state in which vCPU 0 begins; the others wait for INIT and SIPI. All else is zero or as after reset. */
struct boot_entry {
	bool long_mode; /* true: 64-bit with paging on; false: 32-bit protected mode, flat, paging off */
	uint64_t rip, rsp, rsi, rbx;
	uint64_t cr3;      /* long mode: identity tables */
	uint64_t gdt_base; /* a GDT lies here: 0, 0, code, data at selectors 0x10, 0x18 */
	uint16_t gdt_limit;
};

/*
 * Loads everything, ACPI tables too, and fills *entry. The descriptors stay the caller's; their offsets are neither
 * used nor moved. Errors name the file and the structure that is wrong. It may be called again after a reset: what a
 * kernel expects to be zero is made so, but other RAM keeps what the guest left in it.
 */
[[nodiscard]] struct error *boot_load(struct memory *mem, const struct boot_config *config, struct boot_entry *entry);

/*
 * Writes RSDP, XSDT, FADT, FACS, DSDT, SSDT, MADT and MCFG into guest memory; *rsdp is where the RSDP lies. The same
 * config gives the same bytes. RAM must reach to 1 MiB.
 */
[[nodiscard]] struct error *acpi_build(struct memory *mem, const struct boot_config *config, uint64_t *rsdp);

#endif
