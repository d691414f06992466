/*
 * Stock UEFI firmware (OVMF): what a Q35 with flash and fw_cfg is to it. docs/firmware.md tells the whole story.
 *
 *     4 GiB - code - vars   the variable store: flash that can be programmed (pflash.h), kept in a file of the VM
 *     4 GiB - code          the firmware: read-only; the first instruction is fetched 16 bytes below 4 GiB
 *     0x510..0x51b          fw_cfg (fw_cfg.h): memory, CPUs, ACPI tables, SMBIOS, boot order, a kernel if one was given
 *
 * The firmware image is mapped from its file, so that all machines of a host share its pages. It travels with a saved
 * machine nevertheless: one that is restored beside another image goes on with its own.
 */
#ifndef GLINT_VMM_FIRMWARE_FIRMWARE_H
#define GLINT_VMM_FIRMWARE_FIRMWARE_H

#include "vmm/cpu/topology.h"
#include "vmm/firmware/fw_cfg.h"
#include "vmm/firmware/pflash.h"
#include "vmm/memory/numa.h"
#include "vmm/pci/pci.h"

#define FIRMWARE_UUID_BYTES 16
#define FIRMWARE_BOOT_MAX   20

struct firmware_config {
	int code_fd, vars_fd;              /* vars -1: firmware keeps its variables in RAM, until it is reset */
	const char *code_name, *vars_name; /* for errors */
	const char *name;                  /* the VM's */
	uint8_t uuid[FIRMWARE_UUID_BYTES]; /* as people write it; zeros: none */
	unsigned vcpus;
	struct cpu_topology topology;
	const struct numa *numa; /* NULL: no nodes; borrowed for as long as the machine lives */
	uint64_t mmio64_base;
	bool keyboard;         /* there is a keyboard controller */
	struct firmware_boot { /* a disk to boot from */
		unsigned slot; /* its PCI slot */
		enum { FIRMWARE_BOOT_VIRTIO, FIRMWARE_BOOT_NVME, FIRMWARE_BOOT_AHCI } kind;
		unsigned function, port; /* of AHCI */
	} boot[FIRMWARE_BOOT_MAX];       /* best first */
	unsigned boots;
	/* A kernel for the firmware to start, a bzImage with an EFI stub; -1: none. */
	int kernel_fd, initrd_fd;
	const char *kernel_name, *initrd_name, *cmdline;
	/* The variable store's file failed. Any thread. */
	void (*failed)(void *arg, int errnum);
	void *failed_arg;
};

struct firmware {
	uint8_t *code; /* what the guest sees */
	uint64_t code_size;
	bool code_is_file; /* its pages are the file's */
	bool has_vars;
	struct pflash vars;
	struct fw_cfg fw_cfg;
	struct pci_bus *pci;
	unsigned vcpus;
	struct cpu_topology topology;
	const struct numa *numa;
	const struct memory *memory;
	uint64_t mmio64_base;
	bool keyboard; /* there is a keyboard controller */
};

/*
 * Puts firmware into a machine whose other devices are there. vars_fd becomes its own, also when it fails; the other
 * descriptors stay the caller's, and code_fd is not needed afterwards. vm_fd -1 (unit tests): no memory slots.
 */
[[nodiscard]] struct error *firmware_init(struct firmware *fw, struct memory *mem, int vm_fd, struct bus *pio,
					  struct bus *mmio, struct pci_bus *pci, const struct firmware_config *config);
/* For one that is all zeros, too. */
void firmware_destroy(struct firmware *fw);

/* The variable store, like a disk: see pflash.h. No-ops without one. */
[[nodiscard]] struct error *firmware_activate(struct firmware *fw);
[[nodiscard]] struct error *firmware_deactivate(struct firmware *fw);

/* Unit of the image's identity, and the bulk section with its bytes, which follows the machine's RAM in the stream. */
extern const struct unit_ops firmware_unit;
[[nodiscard]] struct error *firmware_bulk(struct firmware *fw, struct saved *s, bool loading);

#endif
