/*
 * ACPI tables for firmware: the block that acpi_make() made, as the files etc/acpi/tables and etc/acpi/rsdp, and
 * etc/table-loader: commands with which firmware puts the files into memory and links them (QEMU's
 * hw/acpi/bios-linker-loader.c describes them; each is 128 bytes). Pointers in the files hold offsets, checksum bytes
 * zero, as the block does.
 *
 * Firmware asks for them after it has placed ECAM and the BARs, so that is when they are made: fw_cfg calls back at the
 * first look after each reset. Touches fw_cfg's items; asks the PCI bus where things are.
 */
#include "vmm/firmware/internal.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/boot/acpi.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FILE_LOADER "etc/table-loader"
#define FILE_RSDP   "etc/acpi/rsdp"
#define FILE_TABLES "etc/acpi/tables"
#define RSDP_BYTES  36

#define FILE_NAME_BYTES 56

struct [[gnu::packed]] command {
	uint32_t kind;
	union {
		struct [[gnu::packed]] {
			char file[FILE_NAME_BYTES];
			uint32_t align;
			uint8_t zone;
		} allocate;
		struct [[gnu::packed]] {
			char file[FILE_NAME_BYTES], target[FILE_NAME_BYTES];
			uint32_t offset;
			uint8_t size;
		} pointer;
		struct [[gnu::packed]] {
			char file[FILE_NAME_BYTES];
			uint32_t offset, start, length;
		} checksum;
		uint8_t bytes[124];
	};
};
static_assert(sizeof(struct command) == 128);
enum { ALLOCATE = 1, ADD_POINTER = 2, ADD_CHECKSUM = 3 };
enum { ZONE_HIGH = 1, ZONE_FSEG = 2 };

struct script {
	unsigned count;
	struct command command[2 + ACPI_POINTERS_MAX + ACPI_CHECKSUMS_MAX];
};

/* The file in which an offset of the block lies; *at becomes the offset there. */
static const char *file_of(const struct acpi_block *b, uint32_t *at)
{
	if (*at < b->rsdp)
		return FILE_TABLES;
	*at -= b->rsdp;
	return FILE_RSDP;
}

static struct command *add(struct script *script, uint32_t kind)
{
	struct command *c = &script->command[script->count++];

	*c = (struct command){.kind = kind};
	return c;
}

static void add_allocate(struct script *script, const char *file, uint32_t align, uint8_t zone)
{
	struct command *c = add(script, ALLOCATE);

	strcpy(c->allocate.file, file); /* one of the three */
	c->allocate.align = align;
	c->allocate.zone = zone;
}

static void make_script(const struct acpi_block *b, struct script *script)
{
	add_allocate(script, FILE_RSDP, 16, ZONE_FSEG);
	add_allocate(script, FILE_TABLES, 64, ZONE_HIGH);
	/* The RSDP's pointer is the block's last; all point into the tables. */
	for (unsigned i = 0; i < b->pointers; i++) {
		uint32_t at = b->pointer[i].at;
		struct command *c = add(script, ADD_POINTER);
		strcpy(c->pointer.file, file_of(b, &at));
		strcpy(c->pointer.target, FILE_TABLES);
		c->pointer.offset = at;
		c->pointer.size = b->pointer[i].size;
	}
	for (unsigned i = 0; i < b->checksums; i++) {
		uint32_t at = b->checksum[i].at, start = b->checksum[i].start;
		struct command *c = add(script, ADD_CHECKSUM);
		strcpy(c->checksum.file, file_of(b, &at));
		(void)file_of(b, &start);
		c->checksum.offset = at;
		c->checksum.start = start;
		c->checksum.length = b->checksum[i].len;
	}
}

/*
 * Firmware has its BARs below 4 GiB on one side of ECAM: below it, from the end of RAM's part on (OVMF with ECAM at
 * 0xE0000000), or above it (0xB0000000). That is the side where there is more room.
 */
static void choose_window(uint64_t ecam, struct acpi_config *config)
{
	const uint64_t end = 0xFC000000;
	uint64_t above = ecam + PCI_ECAM_BYTES;

	config->mmio32_base = MEMORY_LOW_TOP;
	config->mmio32_bytes = MAX(ecam, MEMORY_LOW_TOP) - MEMORY_LOW_TOP;
	if (ecam < end && above < end && end - above > config->mmio32_bytes) {
		config->mmio32_base = above;
		config->mmio32_bytes = end - above;
	}
}

/* The 64-bit window is where pci_add() would have put BARs, and grows to hold those that firmware put elsewhere. */
static void describe(struct firmware *fw, struct acpi_config *config)
{
	struct pci_layout layout;
	uint64_t end = fw->mmio64_base + PCI_MMIO64_BYTES;

	pci_bus_layout(fw->pci, &layout);
	*config = (struct acpi_config){.vcpus = fw->vcpus,
				       .topology = fw->topology,
				       .numa = fw->numa,
				       .memory = fw->memory,
				       .ecam_base = layout.ecam_base,
				       .keyboard = fw->keyboard};
	choose_window(layout.ecam_base, config);
	config->mmio64_base = fw->mmio64_base;
	if (layout.mmio64_end > end || (layout.mmio64_end > 0 && layout.mmio64_base < config->mmio64_base)) {
		config->mmio64_base = MAX(align_down(layout.mmio64_base, GIB), fw->mmio64_base);
		end = align_up(layout.mmio64_end, GIB);
	}
	config->mmio64_bytes = end - config->mmio64_base;
}

static struct error *make(struct firmware *fw, struct acpi_block **block, struct script *script)
{
	struct acpi_config config;
	cleanup_free struct acpi_block *b = malloc(sizeof(*b));

	if (!b)
		return error_new(ENOMEM, "make ACPI tables");
	describe(fw, &config);
	TRY(acpi_make(&config, b));
	*script = (struct script){};
	make_script(b, script);
	*block = steal_ptr(&b);
	return NULL;
}

static void refresh(void *arg)
{
	struct firmware *fw = arg;
	cleanup_free struct acpi_block *b = NULL;
	struct script script;

	struct error *err = make(fw, &b, &script);
	if (err) { /* the ones made before stay */
		log_error(err);
		return;
	}
	fw_cfg_replace(&fw->fw_cfg, FILE_TABLES, b->bytes, b->rsdp);
	fw_cfg_replace(&fw->fw_cfg, FILE_RSDP, b->bytes + b->rsdp, RSDP_BYTES);
	fw_cfg_replace(&fw->fw_cfg, FILE_LOADER, script.command, script.count * sizeof(script.command[0]));
	/* By now firmware has unpacked itself into RAM: the image need not stay mapped here. It comes back if it is
	 * read. */
	if (fw->code_is_file)
		madvise(fw->code, fw->code_size, MADV_DONTNEED);
}

struct error *firmware_add_acpi(struct firmware *fw)
{
	cleanup_free struct acpi_block *b = NULL;
	struct script script;

	TRY(make(fw, &b, &script));
	TRY(fw_cfg_add_file(&fw->fw_cfg, FILE_TABLES, b->bytes, b->rsdp));
	TRY(fw_cfg_add_file(&fw->fw_cfg, FILE_RSDP, b->bytes + b->rsdp, RSDP_BYTES));
	TRY(fw_cfg_add_file(&fw->fw_cfg, FILE_LOADER, script.command, script.count * sizeof(script.command[0])));
	fw_cfg_refresh(&fw->fw_cfg, FILE_LOADER, refresh, fw);
	fw_cfg_refresh(&fw->fw_cfg, FILE_TABLES, refresh, fw);
	fw_cfg_refresh(&fw->fw_cfg, FILE_RSDP, refresh, fw);
	return NULL;
}
