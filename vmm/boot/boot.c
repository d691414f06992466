/*
 * Direct boot: what the two protocols share; see boot.h. Touches guest memory and the two descriptors it is handed.
 *
 * Files are read straight to where they belong in guest RAM. Nothing in a file is believed before it has been held
 * against the file's size and the guest's RAM; what a file changes into while it is being read can only hurt the guest.
 */
#include "vmm/boot/boot.h"

#include "base/util.h"
#include "vmm/boot/internal.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

uint64_t boot_low_end(const struct memory *mem)
{
	return mem->region[0].size;
}

unsigned boot_memory_map(const struct memory *mem, struct boot_map_entry map[BOOT_MAP_MAX])
{
	unsigned n = 0;

	map[n++] = (struct boot_map_entry){0, LOW_RAM_END, BOOT_MAP_RAM};
	map[n++] = (struct boot_map_entry){LOW_ACPI, LOW_END - LOW_ACPI, BOOT_MAP_ACPI};
	if (boot_low_end(mem) > LOW_END)
		map[n++] = (struct boot_map_entry){LOW_END, boot_low_end(mem) - LOW_END, BOOT_MAP_RAM};
	if (mem->regions > 1)
		map[n++] = (struct boot_map_entry){mem->region[1].gpa, mem->region[1].size, BOOT_MAP_RAM};
	return n;
}

/* Finds out what is behind @fd and reads its head. */
static struct error *open_file(struct boot_file *file, int fd, const char *name)
{
	struct stat st;

	*file = (struct boot_file){.fd = fd, .name = name};
	if (fstat(fd, &st) < 0)
		return error_new(errno, "%s", name);
	if (S_ISDIR(st.st_mode))
		return error_new(EISDIR, "%s", name);
	if (!S_ISREG(st.st_mode))
		return error_new(EINVAL, "%s is not a regular file", name);
	if (st.st_size == 0)
		return error_new(EINVAL, "%s is empty", name);
	file->size = (uint64_t)st.st_size;
	return pread_all(fd, file->head, MIN(file->size, (uint64_t)sizeof(file->head)), 0, name);
}

struct error *boot_read(const struct boot_file *file, struct memory *mem, uint64_t offset, uint64_t len, uint64_t gpa,
			const char *what)
{
	void *to = memory_at(mem, gpa, len);

	if (!range_inside(offset, len, file->size))
		return error_new(EINVAL, "%s: %s (%#llx bytes at %#llx) goes past the end of the file", file->name,
				 what, (unsigned long long)len, (unsigned long long)offset);
	if (!to)
		return error_hint(error_new(ENOMEM,
					    "%s: %s (%#llx bytes at guest address %#llx) does not fit into memory",
					    file->name, what, (unsigned long long)len, (unsigned long long)gpa),
				  "give the machine more memory");
	return error_wrap(pread_all(file->fd, to, len, (off_t)offset, file->name), "%s", what);
}

struct error *boot_load_initrd(struct memory *mem, const struct boot_config *config, uint64_t floor, uint64_t limit,
			       bool high, struct boot_initrd *initrd)
{
	struct boot_file file;

	*initrd = (struct boot_initrd){};
	if (config->initrd_fd < 0)
		return NULL;
	TRY(open_file(&file, config->initrd_fd, config->initrd_name));
	uint64_t top = align_down(MIN(limit, boot_low_end(mem)), PAGE_BYTES);
	uint64_t room = top > floor ? top - floor : 0;
	if (high && file.size > room && mem->regions > 1) {
		top = mem->region[1].gpa + mem->region[1].size;
		room = mem->region[1].size;
	}
	if (file.size > room)
		return error_hint(error_new(ENOMEM,
					    "%s: the initrd of %llu KiB does not fit into memory: %llu KiB are "
					    "free between the kernel and the highest address that the kernel allows",
					    file.name, (unsigned long long)((file.size + KIB - 1) / KIB),
					    (unsigned long long)(room / KIB)),
				  "give the machine more memory, or a smaller initrd");
	/* @floor and @top are whole pages, so rounding down stays between them. */
	initrd->base = align_down(top - file.size, PAGE_BYTES);
	initrd->size = file.size;
	return boot_read(&file, mem, 0, file.size, initrd->base, "initrd");
}

struct error *boot_put_cmdline(struct memory *mem, const struct boot_config *config, uint64_t max)
{
	size_t len = strlen(config->cmdline);

	max = MIN(max, (uint64_t)BOOT_CMDLINE_MAX);
	if (len > max)
		return error_hint(error_new(E2BIG, "the command line of %zu bytes is longer than %s takes (%llu)", len,
					    config->kernel_name, (unsigned long long)max),
				  "shorten the command line");
	memcpy(memory_at(mem, LOW_CMDLINE, len + 1), config->cmdline, len + 1);
	return NULL;
}

/* Flat segments, as both protocols want them: code execute/read, data read/write, base 0, limit 4 GiB. */
static void put_gdt(struct memory *mem, struct boot_entry *entry)
{
	const uint64_t code64 = 0x00AF9B000000FFFFull; /* L */
	const uint64_t code32 = 0x00CF9B000000FFFFull; /* D */
	const uint64_t data = 0x00CF93000000FFFFull;
	const uint64_t gdt[4] = {
		[BOOT_SELECTOR_CODE / 8] = entry->long_mode ? code64 : code32,
		[BOOT_SELECTOR_DATA / 8] = data,
	};

	memcpy(memory_at(mem, LOW_GDT, sizeof(gdt)), gdt, sizeof(gdt));
	entry->gdt_base = LOW_GDT;
	entry->gdt_limit = sizeof(gdt) - 1;
}

struct error *boot_load(struct memory *mem, const struct boot_config *config, struct boot_entry *entry)
{
	struct boot_file kernel;
	uint64_t rsdp = 0;

	*entry = (struct boot_entry){};
	TRY(error_wrap(open_file(&kernel, config->kernel_fd, config->kernel_name), "load the kernel"));
	TRY(acpi_build(mem, config, &rsdp));
	if (memcmp(kernel.head, ELFMAG, SELFMAG) == 0)
		TRY(error_wrap(pvh_load(mem, config, &kernel, rsdp, entry), "load the kernel by PVH"));
	else
		TRY(error_wrap(bzimage_load(mem, config, &kernel, rsdp, entry), "load the kernel"));
	put_gdt(mem, entry);
	return NULL;
}
