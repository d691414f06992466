/*
 * Firmware and what it is told; see firmware.h. Touches the image's file, KVM's memory slots through vmm/memory, and
 * fw_cfg's items.
 */
#include "vmm/firmware/firmware.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/firmware/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define FOUR_GIB (4 * GIB)

static struct error *map_code(struct firmware *fw, const struct firmware_config *config)
{
	TRY(pflash_file_size(config->code_fd, config->code_name, &fw->code_size));
	void *code = mmap(NULL, fw->code_size, PROT_READ, MAP_PRIVATE, config->code_fd, 0);
	if (code == MAP_FAILED)
		return error_new(errno, "%s: map it", config->code_name);
	fw->code = code;
	fw->code_is_file = true;
	return NULL;
}

/* The flash ends where the image begins. @fd becomes its own. */
static struct error *add_vars(struct firmware *fw, struct memory *mem, int vm_fd, struct bus *mmio, uint64_t end,
			      const char *name, int fd)
{
	cleanup_fd int own = fd;
	uint64_t size = 0;

	TRY(pflash_file_size(fd, name, &size));
	fw->has_vars = true;
	TRY(pflash_init(&fw->vars, mmio, end - size, steal_fd(&own), name));
	return vm_fd >= 0 ? memory_add_rom(mem, vm_fd, end - size, size, fw->vars.view) : NULL;
}

static struct error *add_flash(struct firmware *fw, struct memory *mem, int vm_fd, struct bus *mmio,
			       const struct firmware_config *config)
{
	cleanup_fd int vars_fd = config->vars_fd;

	TRY(map_code(fw, config));
	uint64_t base = FOUR_GIB - fw->code_size;
	if (vm_fd >= 0)
		TRY(memory_add_rom(mem, vm_fd, base, fw->code_size, fw->code));
	if (vars_fd < 0)
		return NULL;
	TRY(add_vars(fw, mem, vm_fd, mmio, base, config->vars_name, steal_fd(&vars_fd)));
	fw->vars.failed = config->failed;
	fw->vars.failed_arg = config->failed_arg;
	return NULL;
}

/* etc/e820: what is RAM. Entries as BIOS INT 15h, E820h had them. */
static struct error *add_memory_map(struct firmware *fw, const struct memory *mem)
{
	struct [[gnu::packed]] {
		uint64_t base, size;
		uint32_t type;
	} map[MEMORY_REGIONS] = {};

	for (unsigned i = 0; i < mem->regions; i++) {
		map[i].base = mem->region[i].gpa;
		map[i].size = mem->region[i].size;
		map[i].type = 1;
	}
	return fw_cfg_add_file(&fw->fw_cfg, "etc/e820", map, mem->regions * sizeof(map[0]));
}

/*
 * bootorder: a line a device, in Open Firmware's words, which OVMF matches with its boot options. Only when someone
 * asked: it has firmware put the guest's own order aside at every start.
 */
static struct error *add_boot_order(struct firmware *fw, const struct firmware_config *config)
{
	char text[FIRMWARE_BOOT_MAX * 64];
	size_t len = 0;

	if (config->boots == 0)
		return NULL;
	/* OVMF takes nodes of these names alone for NVMe (with the namespace and its EUI-64, which is none) and AHCI.
	 */
	static const char *const forms[] = {
		[FIRMWARE_BOOT_VIRTIO] = "%s/pci@i0cf8/scsi@%x/disk@0,0",
		[FIRMWARE_BOOT_NVME] = "%s/pci@i0cf8/pci8086,5845@%x/namespace@1,0",
		[FIRMWARE_BOOT_AHCI] = "%s/pci@i0cf8/pci8086,2922@%x,%x/drive@%x/disk@0",
	};
	for (unsigned i = 0; i < config->boots; i++) {
		const struct firmware_boot *boot = &config->boot[i];
		len += (size_t)snprintf(text + len, sizeof(text) - len, forms[boot->kind], i ? "\n" : "", boot->slot,
					boot->function, boot->port);
	}
	return fw_cfg_add_file(&fw->fw_cfg, "bootorder", text, len + 1);
}

/*
 * A kernel: firmware wants the parts of a bzImage apart, real-mode setup and the rest (Linux boot protocol: setup_sects
 * at 0x1f1, 0 meaning 4), and puts them together again to load it as an EFI program.
 */
static struct error *add_kernel(struct firmware *fw, const struct firmware_config *config)
{
	struct fw_cfg *cfg = &fw->fw_cfg;
	uint8_t head[0x206];
	struct stat st;

	TRY(pread_all(config->kernel_fd, head, sizeof(head), 0, config->kernel_name));
	if (memcmp(head + 0x202, "HdrS", 4) != 0)
		return error_hint(
			error_new(ENOEXEC, "%s is no bzImage", config->kernel_name),
			"firmware starts kernels with an EFI stub; without --firmware other kinds can be booted");
	uint64_t setup = ((head[0x1f1] ? head[0x1f1] : 4u) + 1u) * 512u;
	if (fstat(config->kernel_fd, &st) < 0)
		return error_new(errno, "%s: look at it", config->kernel_name);
	if ((uint64_t)st.st_size <= setup || (uint64_t)st.st_size > UINT32_MAX)
		return error_new(ENOEXEC, "%s: %lld bytes are no kernel", config->kernel_name, (long long)st.st_size);
	uint64_t rest = (uint64_t)st.st_size - setup;
	TRY(fw_cfg_add_number(cfg, FW_CFG_SETUP_SIZE, setup, 4));
	TRY(fw_cfg_add_part(cfg, FW_CFG_SETUP_DATA, config->kernel_fd, 0, setup));
	TRY(fw_cfg_add_number(cfg, FW_CFG_KERNEL_SIZE, rest, 4));
	TRY(fw_cfg_add_part(cfg, FW_CFG_KERNEL_DATA, config->kernel_fd, setup, rest));
	size_t len = strlen(config->cmdline) + 1;
	TRY(fw_cfg_add_number(cfg, FW_CFG_CMDLINE_SIZE, len, 4));
	TRY(fw_cfg_add(cfg, FW_CFG_CMDLINE_DATA, config->cmdline, len));
	if (config->initrd_fd < 0)
		return fw_cfg_add_number(cfg, FW_CFG_INITRD_SIZE, 0, 4);
	if (fstat(config->initrd_fd, &st) < 0)
		return error_new(errno, "%s: look at it", config->initrd_name);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > UINT32_MAX)
		return error_new(EINVAL, "%s is no initrd", config->initrd_name);
	TRY(fw_cfg_add_number(cfg, FW_CFG_INITRD_SIZE, (uint64_t)st.st_size, 4));
	return fw_cfg_add_part(cfg, FW_CFG_INITRD_DATA, config->initrd_fd, 0, (uint64_t)st.st_size);
}

static struct error *add_items(struct firmware *fw, const struct memory *mem, const struct firmware_config *config)
{
	/* A byte for each of S0 to S5: bit 7, there is one. Soft off has SLP_TYP 0, as _S5 says. */
	static const uint8_t states[6] = {0x80, 0, 0, 0, 0, 0x80};
	struct fw_cfg *cfg = &fw->fw_cfg;

	TRY(fw_cfg_add(cfg, FW_CFG_UUID, config->uuid, sizeof(config->uuid)));
	TRY(fw_cfg_add_number(cfg, FW_CFG_CPUS, config->vcpus, 2));
	TRY(fw_cfg_add_number(cfg, FW_CFG_MAX_CPUS, config->vcpus, 2));
	TRY(fw_cfg_add_number(cfg, FW_CFG_BOOT_MENU, 0, 2));
	TRY(add_memory_map(fw, mem));
	TRY(fw_cfg_add_file(cfg, "etc/system-states", states, sizeof(states)));
	TRY(firmware_add_acpi(fw));
	TRY(firmware_add_smbios(fw, mem, config));
	TRY(add_boot_order(fw, config));
	if (config->kernel_fd >= 0)
		TRY(add_kernel(fw, config));
	return fw_cfg_finish(cfg);
}

struct error *firmware_init(struct firmware *fw, struct memory *mem, int vm_fd, struct bus *pio, struct bus *mmio,
			    struct pci_bus *pci, const struct firmware_config *config)
{
	*fw = (struct firmware){.pci = pci,
				.vcpus = config->vcpus,
				.topology = config->topology,
				.numa = config->numa,
				.memory = mem,
				.mmio64_base = config->mmio64_base,
				.keyboard = config->keyboard};
	TRY(error_wrap(add_flash(fw, mem, vm_fd, mmio, config), "load the firmware"));
	TRY(fw_cfg_init(&fw->fw_cfg, pio, mem));
	return add_items(fw, mem, config);
}

void firmware_destroy(struct firmware *fw)
{
	if (fw->has_vars)
		pflash_destroy(&fw->vars);
	if (fw->fw_cfg.mem)
		fw_cfg_destroy(&fw->fw_cfg);
	if (fw->code)
		munmap(fw->code, fw->code_size);
	*fw = (struct firmware){};
}

struct error *firmware_activate(struct firmware *fw)
{
	return fw->has_vars ? error_wrap(pflash_activate(&fw->vars), "UEFI variables") : NULL;
}

struct error *firmware_deactivate(struct firmware *fw)
{
	return fw->has_vars ? error_wrap(pflash_deactivate(&fw->vars), "UEFI variables") : NULL;
}

static void state(void *self, struct saved *s)
{
	struct firmware *fw = self;
	uint64_t size = fw->code_size;

	saved_require(s);
	saved_u64(s, "size", &size);
	if (saved_loading(s) && size != fw->code_size)
		saved_fail(s, "the saved machine's firmware has %llu KiB, this one's %llu (--firmware)",
			   (unsigned long long)(size / KIB), (unsigned long long)(fw->code_size / KIB));
}

const struct unit_ops firmware_unit = {.version = 1, .state = state};

struct error *firmware_bulk(struct firmware *fw, struct saved *s, bool loading)
{
	if (!fw->code)
		return NULL;
	if (!loading)
		return saved_bulk(s, "firmware", fw->code, fw->code_size);
	void *copy = mmap(NULL, fw->code_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		return error_new(errno, "make room for the firmware");
	struct error *err = saved_bulk(s, "firmware", copy, fw->code_size);
	bool same = !err && memcmp(copy, fw->code, fw->code_size) == 0;
	/* Another image: the guest goes on with its own. mremap() puts it where KVM's slot looks. */
	const int move = MREMAP_MAYMOVE | MREMAP_FIXED;
	if (!err && !same && mremap(copy, fw->code_size, fw->code_size, move, fw->code) == MAP_FAILED)
		err = error_new(errno, "put the machine's own firmware in place");
	if (err || same)
		munmap(copy, fw->code_size);
	else
		fw->code_is_file = false;
	return err;
}
