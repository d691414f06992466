/*
 * Loads a 64-bit ELF kernel by PVH (Xen's docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h):
 * segments go to their physical addresses, the note XEN_ELFNOTE_PHYS32_ENTRY says where 32-bit execution begins, and
 * ebx points to struct hvm_start_info. Touches guest memory and the kernel's descriptor.
 */
#include "vmm/boot/internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <elf.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define START_MAGIC       0x336EC578 /* "xEn3", bit 31 set */
#define START_VERSION     1
#define NOTE_PHYS32_ENTRY 18
#define SEGMENTS_MAX      64
#define NOTES_BYTES_MAX   (64 * KIB)
/* PVH says nothing on the length of a command line: Linux takes 2047 bytes and cuts the rest off without a word. */
#define CMDLINE_MAX 2047

struct start_info {
	uint32_t magic, version, flags, modules;
	uint64_t modlist, cmdline, rsdp, memmap;
	uint32_t memmap_entries, reserved;
};

struct start_module {
	uint64_t base, size, cmdline, reserved;
};

struct start_memmap {
	uint64_t base, size;
	uint32_t type, reserved;
};

/* How it all lies in the page at LOW_PARAMS. */
struct start_page {
	struct start_info info;
	struct start_module module;
	struct start_memmap memmap[BOOT_MAP_MAX];
};
static_assert(sizeof(struct start_info) == 56 && sizeof(struct start_module) == 32 &&
	      sizeof(struct start_memmap) == 24);

struct elf {
	const struct boot_file *file;
	Elf64_Ehdr header;
	Elf64_Phdr segment[SEGMENTS_MAX];
};

static struct error *read_headers(struct elf *elf, const struct boot_file *file)
{
	Elf64_Ehdr *h = &elf->header;

	elf->file = file;
	memcpy(h, file->head, sizeof(*h)); /* head[] has zeros behind the end of a short file */
	if (file->size < sizeof(*h))
		return error_new(ENOEXEC, "%s: the ELF header is cut short", file->name);
	if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_ident[EI_DATA] != ELFDATA2LSB || h->e_machine != EM_X86_64)
		return error_new(ENOEXEC, "%s: not a 64-bit ELF file for x86-64", file->name);
	if (h->e_type != ET_EXEC && h->e_type != ET_DYN)
		return error_new(ENOEXEC, "%s: the ELF file is not an executable (e_type %u)", file->name, h->e_type);
	if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_phnum == 0 || h->e_phnum > SEGMENTS_MAX)
		return error_new(ENOEXEC,
				 "%s: its ELF header has %u program headers of %u bytes; 1 to %u of %zu can be read",
				 file->name, h->e_phnum, h->e_phentsize, SEGMENTS_MAX, sizeof(Elf64_Phdr));
	uint64_t bytes = h->e_phnum * sizeof(Elf64_Phdr);
	if (!range_inside(h->e_phoff, bytes, file->size))
		return error_new(ENOEXEC, "%s: the ELF program headers go past the end of the file", file->name);
	return pread_all(file->fd, elf->segment, bytes, (off_t)h->e_phoff, file->name);
}

/* Looks for the entry in @len bytes of notes; true when it was there. Descriptions and notes begin at multiples of
 * @align. */
static bool find_entry(const uint8_t *notes, uint64_t len, uint64_t align, uint64_t *entry)
{
	Elf64_Nhdr note;

	/* Sizes in a note have 32 bits and sums here 64: none overflows. */
	for (uint64_t at = 0; range_inside(at, sizeof(note), len);) {
		memcpy(&note, notes + at, sizeof(note));
		uint64_t name = at + sizeof(note);
		uint64_t desc = at + align_up(sizeof(note) + note.n_namesz, align);
		if (!range_inside(name, note.n_namesz, len) || !range_inside(desc, note.n_descsz, len))
			return false;
		bool is_entry = note.n_type == NOTE_PHYS32_ENTRY && note.n_namesz == sizeof("Xen") &&
				memcmp(notes + name, "Xen", sizeof("Xen")) == 0;
		if (is_entry && (note.n_descsz == 4 || note.n_descsz == 8)) {
			*entry = 0;
			memcpy(entry, notes + desc, note.n_descsz);
			return true;
		}
		at = align_up(desc + note.n_descsz, align);
	}
	return false;
}

static struct error *read_entry(const struct elf *elf, uint64_t *entry)
{
	const char *name = elf->file->name;

	for (unsigned i = 0; i < elf->header.e_phnum; i++) {
		const Elf64_Phdr *p = &elf->segment[i];
		if (p->p_type != PT_NOTE || p->p_filesz == 0)
			continue;
		if (p->p_filesz > NOTES_BYTES_MAX || !range_inside(p->p_offset, p->p_filesz, elf->file->size))
			return error_new(ENOEXEC,
					 "%s: the notes of program header %u are absurdly long or go past the end "
					 "of the file",
					 name, i);
		cleanup_free uint8_t *notes = malloc(p->p_filesz);
		if (!notes)
			return error_new(ENOMEM, "%s: read notes", name);
		TRY(pread_all(elf->file->fd, notes, p->p_filesz, (off_t)p->p_offset, name));
		if (find_entry(notes, p->p_filesz, p->p_align == 8 ? 8 : 4, entry))
			return NULL;
	}
	return error_hint(error_new(ENOEXEC, "%s: the ELF file has no PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)", name),
			  "a Linux kernel needs CONFIG_PVH; or give its bzImage");
}

/* Loads one segment; *end grows to where it ends in memory. */
static struct error *load_segment(const struct elf *elf, unsigned i, struct memory *mem, uint64_t *end)
{
	const Elf64_Phdr *p = &elf->segment[i];
	const char *name = elf->file->name;

	if (p->p_filesz > p->p_memsz)
		return error_new(ENOEXEC, "%s: program header %u has more bytes in the file than in memory", name, i);
	if (p->p_paddr < LOW_END)
		return error_new(ENOEXEC, "%s: program header %u loads to %#llx, below 1 MiB", name, i,
				 (unsigned long long)p->p_paddr);
	if (!range_inside(p->p_paddr, p->p_memsz, boot_low_end(mem)))
		return error_hint(error_new(ENOMEM,
					    "%s: program header %u (%#llx bytes to guest address %#llx) does not "
					    "fit into the %llu MiB of memory below 4 GiB",
					    name, i, (unsigned long long)p->p_memsz, (unsigned long long)p->p_paddr,
					    (unsigned long long)(boot_low_end(mem) / MIB)),
				  "give the machine more memory");
	if (p->p_filesz > 0)
		TRY(boot_read(elf->file, mem, p->p_offset, p->p_filesz, p->p_paddr, "an ELF segment"));
	uint64_t bss = p->p_memsz - p->p_filesz;
	if (bss > 0)
		memset(memory_at(mem, p->p_paddr + p->p_filesz, bss), 0, bss);
	*end = MAX(*end, p->p_paddr + p->p_memsz);
	return NULL;
}

/* Loads every segment; true in *holds when one of them holds the entry. */
static struct error *load_segments(const struct elf *elf, struct memory *mem, uint64_t entry, uint64_t *end)
{
	bool holds_entry = false;

	*end = LOW_END;
	for (unsigned i = 0; i < elf->header.e_phnum; i++) {
		const Elf64_Phdr *p = &elf->segment[i];
		if (p->p_type != PT_LOAD || p->p_memsz == 0)
			continue;
		TRY(load_segment(elf, i, mem, end));
		holds_entry |= entry - p->p_paddr < p->p_filesz;
	}
	if (!holds_entry)
		return error_new(ENOEXEC, "%s: the PVH entry %#llx lies in no segment", elf->file->name,
				 (unsigned long long)entry);
	return NULL;
}

static void put_start_info(struct memory *mem, const struct boot_initrd *initrd, uint64_t rsdp)
{
	struct start_page *page = memory_at(mem, LOW_PARAMS, sizeof(*page));
	struct boot_map_entry map[BOOT_MAP_MAX];
	unsigned n = boot_memory_map(mem, map);

	*page = (struct start_page){
		.info =
			{
				.magic = START_MAGIC,
				.version = START_VERSION,
				.modules = initrd->size > 0,
				.modlist = LOW_PARAMS + offsetof(struct start_page, module),
				.cmdline = LOW_CMDLINE,
				.rsdp = rsdp,
				.memmap = LOW_PARAMS + offsetof(struct start_page, memmap),
				.memmap_entries = n,
			},
		.module = {.base = initrd->base, .size = initrd->size},
	};
	for (unsigned i = 0; i < n; i++)
		page->memmap[i] = (struct start_memmap){map[i].base, map[i].size, map[i].type, 0};
}

struct error *pvh_load(struct memory *mem, const struct boot_config *config, const struct boot_file *kernel,
		       uint64_t rsdp, struct boot_entry *entry)
{
	struct elf elf = {0};
	struct boot_initrd initrd;
	uint64_t rip = 0, end = 0;

	TRY(read_headers(&elf, kernel));
	TRY(read_entry(&elf, &rip));
	TRY(load_segments(&elf, mem, rip, &end));
	TRY(boot_put_cmdline(mem, config, CMDLINE_MAX));
	TRY(boot_load_initrd(mem, config, align_up(end, PAGE_BYTES), MEMORY_HIGH_BASE, false, &initrd));
	put_start_info(mem, &initrd, rsdp);
	*entry = (struct boot_entry){.rip = rip, .rbx = LOW_PARAMS};
	return NULL;
}
