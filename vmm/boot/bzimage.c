/*
 * Loads a bzImage by the 64-bit boot protocol, version 2.12 or newer; section names are those of
 * Documentation/arch/x86/boot.rst in Linux. Touches guest memory and the kernel's descriptor.
 *
 * The image is a real-mode part of setup_sects + 1 sectors, of which only the header is used, and the kernel proper,
 * which goes to its preferred address and is entered 0x200 bytes behind its start, in long mode on identity tables.
 */
#include "vmm/boot/internal.h"

#include "base/util.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define SECTOR            512
#define HEADER_MAGIC      0x53726448 /* "HdrS" */
#define BOOT_FLAG         0xAA55
#define VERSION_MIN       0x020C /* xloadflags and the 64-bit entry */
#define ENTRY_64          0x200
#define LOADER_UNDEFINED  0xFF
#define VIDEO_MODE_NORMAL 0xFFFF
#define LARGE_PAGE        (2 * MIB)

#define PTE_TABLE (0x1 | 0x2)        /* present, writable */
#define PTE_LARGE (0x1 | 0x2 | 0x80) /* and it is a 2 MiB page */

/* Copies the header out of the image: as long as the image says it is, and as this protocol version knows it. */
static struct error *read_header(const struct boot_file *kernel, struct setup_header *hdr)
{
	const size_t at = offsetof(struct boot_params, hdr);

	*hdr = (struct setup_header){};
	/* The byte at 0x201, target of the short jump at 0x200, says where the header ends: always inside head[]. */
	size_t end = MIN((size_t)0x202 + kernel->head[0x201], at + sizeof(*hdr));
	memcpy(hdr, kernel->head + at, end - at);

	if (hdr->boot_flag != BOOT_FLAG || hdr->header != HEADER_MAGIC)
		return error_hint(error_new(ENOEXEC, "%s is neither a bzImage nor an ELF kernel", kernel->name),
				  "give a Linux kernel for x86-64 (vmlinuz) or an ELF file with a PVH entry");
	if (hdr->version < VERSION_MIN)
		return error_new(ENOEXEC, "%s: its boot protocol is %u.%02u, older than 2.12", kernel->name,
				 hdr->version >> 8, hdr->version & 0xFF);
	if (!(hdr->loadflags & LOADED_HIGH))
		return error_new(ENOEXEC, "%s: it is a zImage, made to load below 1 MiB", kernel->name);
	if (!(hdr->xloadflags & XLF_KERNEL_64))
		return error_new(ENOEXEC, "%s: the kernel has no 64-bit entry (it is a 32-bit kernel)", kernel->name);
	return NULL;
}

/*
 * Where the kernel proper is loaded (*load) and where its memory ends (*end), as the sections "pref_address" and
 * "init_size" have it: a relocatable kernel runs where it is loaded, any other moves itself to pref_address.
 */
static struct error *place(const struct boot_file *kernel, const struct setup_header *hdr, uint64_t size,
			   uint64_t ram_end, uint64_t *load, uint64_t *end)
{
	uint64_t align = hdr->kernel_alignment;
	uint64_t run = hdr->pref_address;

	if (hdr->relocatable_kernel && (align < PAGE_BYTES || (align & (align - 1)) != 0))
		return error_new(ENOEXEC, "%s: kernel_alignment is %#llx, not a power of two of at least a page",
				 kernel->name, (unsigned long long)align);
	if (run < LOW_END || run >= MEMORY_HIGH_BASE)
		return error_new(ENOEXEC, "%s: pref_address is %#llx, not between 1 MiB and 4 GiB", kernel->name,
				 (unsigned long long)run);
	if (hdr->relocatable_kernel)
		run = align_up(run, align);
	*load = hdr->relocatable_kernel ? run : LOW_END;
	/* init_size has 32 bits and run 33: no overflow. A file may have 63, and a load address 33. */
	*end = align_up(MAX(run + hdr->init_size, *load + size), PAGE_BYTES);
	if (*end > ram_end)
		return error_hint(error_new(ENOMEM,
					    "%s: the kernel needs memory up to %llu MiB to start; there are %llu MiB "
					    "below 4 GiB",
					    kernel->name, (unsigned long long)((*end + MIB - 1) / MIB),
					    (unsigned long long)(ram_end / MIB)),
				  "give the machine more memory");
	return NULL;
}

/* Identity tables for the first 4 GiB; returns what CR3 becomes. */
static uint64_t put_page_tables(struct memory *mem)
{
	uint64_t *pml4 = memory_at(mem, LOW_PAGETABLES, 6 * PAGE_BYTES);
	uint64_t *pdpt = pml4 + 512;
	uint64_t *pd = pml4 + 1024;

	memset(pml4, 0, 2 * PAGE_BYTES);
	pml4[0] = (LOW_PAGETABLES + PAGE_BYTES) | PTE_TABLE;
	for (unsigned i = 0; i < 4; i++)
		pdpt[i] = (LOW_PAGETABLES + (2 + i) * PAGE_BYTES) | PTE_TABLE;
	for (unsigned i = 0; i < 4 * 512; i++)
		pd[i] = i * LARGE_PAGE | PTE_LARGE;
	return LOW_PAGETABLES;
}

/* Fills the "zero page". */
static void put_params(struct memory *mem, struct setup_header *hdr, const struct boot_initrd *initrd, uint64_t rsdp)
{
	struct boot_params *params = memory_at(mem, LOW_PARAMS, sizeof(*params));
	struct boot_map_entry map[BOOT_MAP_MAX];

	hdr->type_of_loader = LOADER_UNDEFINED;
	hdr->vid_mode = VIDEO_MODE_NORMAL;
	hdr->cmd_line_ptr = (uint32_t)LOW_CMDLINE;
	hdr->ramdisk_image = (uint32_t)initrd->base;
	hdr->ramdisk_size = (uint32_t)initrd->size;
	hdr->setup_data = 0;
	memset(params, 0, sizeof(*params));
	params->hdr = *hdr;
	params->ext_ramdisk_image = (uint32_t)(initrd->base >> 32);
	params->ext_ramdisk_size = (uint32_t)(initrd->size >> 32);
	params->acpi_rsdp_addr = rsdp;
	params->e820_entries = (uint8_t)boot_memory_map(mem, map);
	for (unsigned i = 0; i < params->e820_entries; i++)
		params->e820_table[i] = (struct boot_e820_entry){map[i].base, map[i].size, map[i].type};
}

struct error *bzimage_load(struct memory *mem, const struct boot_config *config, const struct boot_file *kernel,
			   uint64_t rsdp, struct boot_entry *entry)
{
	struct setup_header hdr;
	struct boot_initrd initrd;
	uint64_t load = 0, end = 0;

	TRY(read_header(kernel, &hdr));
	/* 0 stands for 4, from the days of boot sectors. */
	uint64_t setup = ((hdr.setup_sects ? hdr.setup_sects : 4u) + 1u) * SECTOR;
	if (kernel->size <= setup + ENTRY_64)
		return error_hint(error_new(ENOEXEC,
					    "%s: the file ends at %llu bytes, before the kernel proper, which its "
					    "setup_sects puts at %llu",
					    kernel->name, (unsigned long long)kernel->size, (unsigned long long)setup),
				  "the file is damaged or cut short: fetch it again");
	uint64_t size = kernel->size - setup;
	TRY(place(kernel, &hdr, size, boot_low_end(mem), &load, &end));
	TRY(boot_put_cmdline(mem, config, hdr.cmdline_size));
	TRY(boot_read(kernel, mem, setup, size, load, "the kernel proper"));
	TRY(boot_load_initrd(mem, config, end, (uint64_t)hdr.initrd_addr_max + 1,
			     hdr.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G, &initrd));
	put_params(mem, &hdr, &initrd, rsdp);
	*entry = (struct boot_entry){
		.long_mode = true,
		.rip = load + ENTRY_64,
		.rsp = LOW_STACK_TOP,
		.rsi = LOW_PARAMS,
		.cr3 = put_page_tables(mem),
	};
	return NULL;
}
