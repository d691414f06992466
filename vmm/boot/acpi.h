/*
 * ACPI tables as a block that can lie anywhere: what direct boot and firmware share; see acpi.c.
 */
#ifndef GLINT_VMM_BOOT_ACPI_H
#define GLINT_VMM_BOOT_ACPI_H

#include "base/error.h"

#include "vmm/cpu/topology.h"
#include "vmm/memory/numa.h"

#include <stdint.h>

#define ACPI_BYTES         0x20000u
#define ACPI_POINTERS_MAX  16
#define ACPI_CHECKSUMS_MAX 16

/* What the tables depend on. */
struct acpi_config {
	unsigned vcpus;               /* 1..256 */
	struct cpu_topology topology; /* all 0: APIC ids are 0..vcpus - 1 */
	const struct numa *numa;      /* NULL: no nodes */
	const struct memory *memory;  /* with @numa: whose memory it is */
	uint64_t ecam_base;           /* where PCI's configuration space is */
	uint64_t mmio32_base;         /* PCI's windows */
	uint64_t mmio32_bytes;
	uint64_t mmio64_base;
	uint64_t mmio64_bytes;
	bool keyboard; /* there is a keyboard controller, with a mouse */
};

/* A pointer of @size bytes at offset @at. */
struct acpi_pointer {
	uint32_t at;
	uint8_t size;
};

/* The byte at @at, zero in the block, is to make the sum of the bytes [start, start + len) zero. In this order. */
struct acpi_checksum {
	uint32_t at, start, len;
};

struct acpi_block {
	uint32_t used; /* bytes */
	uint32_t rsdp; /* its offset: the last thing in the block */
	unsigned pointers, checksums;
	struct acpi_pointer pointer[ACPI_POINTERS_MAX];
	struct acpi_checksum checksum[ACPI_CHECKSUMS_MAX];
	uint8_t bytes[ACPI_BYTES];
};

/* Fills @block: the same config gives the same bytes, and every config with the same vCPUs and nodes the same layout.
 */
[[nodiscard]] struct error *acpi_make(const struct acpi_config *config, struct acpi_block *block);

#endif
