/*
 * Tests of direct boot: a stock kernel and small synthetic ones are loaded, and guest memory is looked at as the kernel
 * will; then everything that can be wrong with a file. Kernels are made in memfds; memory is real (vmm/memory).
 *
 * The stock kernel is GLINT_TEST_KERNEL, or the one in the build root.
 */
#include "vmm/boot/internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define STOCK_KERNEL "/opt/kernel-cloud-amd64/vmlinuz"
#define HDR          offsetof(struct boot_params, hdr)
#define SETUP_BYTES  (2 * 512) /* of the synthetic bzImage: setup_sects 1 */
#define IMAGE_BYTES  (SETUP_BYTES + 0x1000)

static struct memory mem = {.fd = -1};

static void make_memory(uint64_t size)
{
	memory_destroy(&mem);
	assert_null(memory_create(&mem, size));
}

static int setup(void **state)
{
	make_memory(64 * MIB);
	return 0;
}

static int teardown(void **state)
{
	memory_destroy(&mem);
	return 0;
}

/* A descriptor of a file in memory with these bytes. */
static int file_of(const void *data, size_t len)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_null(pwrite_all(fd, data, len, 0, "memfd"));
	return fd;
}

static struct error *load_fd(int kernel, int initrd, const char *cmdline, struct boot_entry *entry)
{
	const struct boot_config config = {
		.kernel_fd = kernel,
		.kernel_name = "KERNEL",
		.initrd_fd = initrd,
		.initrd_name = "INITRD",
		.cmdline = cmdline,
		.vcpus = 2,
		.mmio64_base = 8 * GIB,
	};

	return boot_load(&mem, &config, entry);
}

static struct error *load(const void *image, size_t len, struct boot_entry *entry)
{
	cleanup_fd int fd = file_of(image, len);

	return load_fd(fd, -1, "", entry);
}

/* Loading @image must fail with words that hold @words, and name the file. */
static void expect_error(const void *image, size_t len, const char *words)
{
	struct boot_entry entry;
	cleanup_error struct error *e = load(image, len, &entry);

	assert_non_null(e);
	if (!strstr(error_text(e), words) || !strstr(error_text(e), "KERNEL"))
		fail_msg("expected '%s' in: %s", words, error_text(e));
}

/* A small relocatable bzImage that wants to lie at 1 MiB. */
static struct setup_header *make_bzimage(uint8_t image[IMAGE_BYTES])
{
	struct setup_header *hdr = (struct setup_header *)(image + HDR);

	for (unsigned i = 0; i < IMAGE_BYTES; i++)
		image[i] = (uint8_t)(i * 7 + i / 256);
	*hdr = (struct setup_header){
		.setup_sects = 1,
		.boot_flag = 0xAA55,
		.jump = 0x66EB, /* the header ends at 0x202 + 0x66 */
		.header = 0x53726448,
		.version = 0x020F,
		.loadflags = LOADED_HIGH,
		.initrd_addr_max = 0x7FFFFFFF,
		.kernel_alignment = 0x1000,
		.relocatable_kernel = 1,
		.xloadflags = XLF_KERNEL_64,
		.cmdline_size = 100,
		.pref_address = 0x100000,
		.init_size = 0x10000,
	};
	return hdr;
}

static const struct boot_params *params_at(const struct boot_entry *entry)
{
	const struct boot_params *params = memory_at(&mem, entry->rsi, sizeof(*params));

	assert_non_null(params);
	return params;
}

/* Follows the page tables as the processor does. */
static uint64_t translate(uint64_t cr3, uint64_t va)
{
	uint64_t table = cr3;

	for (int shift = 39; shift >= 21; shift -= 9) {
		const uint64_t *entries = memory_at(&mem, table, PAGE_BYTES);
		assert_non_null(entries);
		uint64_t entry = entries[(va >> shift) & 511];
		if ((entry & 3) != 3)
			return UINT64_MAX;
		if (entry & 0x80)
			return (entry & ~((1ull << shift) - 1)) | (va & ((1ull << shift) - 1));
		table = entry & ~0xFFFull;
	}
	return UINT64_MAX;
}

static void check_long_mode(const struct boot_entry *entry)
{
	const uint64_t *gdt = memory_at(&mem, entry->gdt_base, entry->gdt_limit + 1ull);

	assert_true(entry->long_mode);
	assert_non_null(gdt);
	assert_int_equal(entry->gdt_limit, 31);
	assert_int_equal(gdt[2], 0x00AF9B000000FFFFull);
	assert_int_equal(gdt[3], 0x00CF93000000FFFFull);
	for (uint64_t va = 0; va < 4 * GIB; va += 37 * MIB + 4097)
		assert_int_equal(translate(entry->cr3, va), va);
	assert_int_equal(translate(entry->cr3, 4 * GIB), UINT64_MAX);
}

static void test_stock_kernel(void **state)
{
	const char *path = getenv("GLINT_TEST_KERNEL") ?: STOCK_KERNEL;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	cleanup_free uint8_t *initrd = malloc(5 * MIB + 123);
	struct boot_entry entry;

	if (fd < 0) {
		print_message("%s: %s\n", path, strerror(errno));
		skip();
	}
	for (size_t i = 0; i < 5 * MIB + 123; i++)
		initrd[i] = (uint8_t)(i * 31 >> 8);
	cleanup_fd int initrd_fd = file_of(initrd, 5 * MIB + 123);
	make_memory(3 * GIB);
	cleanup_error struct error *e = load_fd(fd, initrd_fd, "console=ttyS0 quiet", &entry);
	if (e)
		fail_msg("%s", error_text(e));

	uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
	uint8_t *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(file, MAP_FAILED);
	const struct setup_header *hdr = (const struct setup_header *)(file + HDR);
	uint64_t at = (hdr->setup_sects + 1) * 512;
	check_long_mode(&entry);
	assert_int_equal(entry.rip, hdr->pref_address + 0x200);
	assert_memory_equal(memory_at(&mem, hdr->pref_address, size - at), file + at, size - at);

	const struct boot_params *p = params_at(&entry);
	assert_int_equal(p->hdr.header, hdr->header);
	assert_int_equal(p->hdr.init_size, hdr->init_size);
	assert_int_equal(p->hdr.kernel_info_offset, hdr->kernel_info_offset);
	assert_int_equal(p->hdr.type_of_loader, 0xFF);
	assert_string_equal(memory_at(&mem, p->hdr.cmd_line_ptr, 20), "console=ttyS0 quiet");
	assert_memory_equal(memory_at(&mem, p->acpi_rsdp_addr, 8), "RSD PTR ", 8);
	assert_int_equal(p->hdr.ramdisk_size, 5 * MIB + 123);
	assert_int_equal(p->hdr.ramdisk_image % PAGE_BYTES, 0);
	assert_in_range(p->hdr.ramdisk_image, hdr->pref_address + hdr->init_size, 0x7FFFFFFF - p->hdr.ramdisk_size);
	assert_memory_equal(memory_at(&mem, p->hdr.ramdisk_image, p->hdr.ramdisk_size), initrd, p->hdr.ramdisk_size);

	const struct boot_e820_entry expected[] = {
		{0, 0xA0000, 1}, {0xE0000, 0x20000, 3}, {MIB, 2 * GIB - MIB, 1}, {4 * GIB, GIB, 1}};
	assert_int_equal(p->e820_entries, ARRAY_SIZE(expected));
	assert_memory_equal(p->e820_table, expected, sizeof(expected));
	munmap(file, size);
}

static void test_bzimage_placement(void **state)
{
	uint8_t image[IMAGE_BYTES];
	struct setup_header *hdr = make_bzimage(image);
	struct boot_entry entry;

	assert_null(load(image, sizeof(image), &entry));
	assert_int_equal(entry.rip, 0x100200);
	assert_memory_equal(memory_at(&mem, 0x100000, 0x1000), image + SETUP_BYTES, 0x1000);
	check_long_mode(&entry);

	/* A second load, after a reset: the zero page must be as new. */
	struct boot_params first = *params_at(&entry);
	memset(memory_at(&mem, 0, 0xA0000), 0xA5, 0xA0000);
	assert_null(load(image, sizeof(image), &entry));
	assert_memory_equal(params_at(&entry), &first, sizeof(first));
	check_long_mode(&entry);

	/* Relocatable: pref_address rounded up to kernel_alignment. */
	hdr->kernel_alignment = 0x200000;
	assert_null(load(image, sizeof(image), &entry));
	assert_int_equal(entry.rip, 0x200200);
	/* Not relocatable: to 1 MiB; it moves itself. */
	hdr->relocatable_kernel = 0;
	hdr->pref_address = 0x1000000;
	assert_null(load(image, sizeof(image), &entry));
	assert_int_equal(entry.rip, 0x100200);
	/* A header that ends early: what is behind its end is not header. */
	image[0x201] = (uint8_t)(HDR + offsetof(struct setup_header, kernel_info_offset) - 0x202);
	hdr->kernel_info_offset = 0x12345678;
	assert_null(load(image, sizeof(image), &entry));
	assert_int_equal(params_at(&entry)->hdr.kernel_info_offset, 0);
	assert_int_equal(params_at(&entry)->hdr.init_size, 0x10000);
}

static void test_bzimage_hostile(void **state)
{
	uint8_t good[IMAGE_BYTES], image[IMAGE_BYTES];
	struct setup_header *hdr = (struct setup_header *)(image + HDR);

#define HOSTILE(words, ...)                                                                                            \
	do {                                                                                                           \
		memcpy(image, good, sizeof(image));                                                                    \
		__VA_ARGS__;                                                                                           \
		expect_error(image, sizeof(image), words);                                                             \
	} while (0)

	make_bzimage(good);
	HOSTILE("neither a bzImage nor an ELF", hdr->header = 0);
	HOSTILE("neither a bzImage nor an ELF", hdr->boot_flag = 0);
	HOSTILE("boot protocol is 2.11", hdr->version = 0x020B);
	HOSTILE("zImage", hdr->loadflags = 0);
	HOSTILE("no 64-bit entry", hdr->xloadflags = 0);
	HOSTILE("before the kernel proper", hdr->setup_sects = 255);
	HOSTILE("needs memory up to 4097 MiB", hdr->init_size = UINT32_MAX);
	HOSTILE("kernel_alignment", hdr->kernel_alignment = 0);
	HOSTILE("kernel_alignment", hdr->kernel_alignment = 0x3000);
	HOSTILE("kernel_alignment", hdr->kernel_alignment = 16);
	HOSTILE("needs memory", hdr->kernel_alignment = 0x80000000);
	HOSTILE("needs memory", hdr->pref_address = 64 * MIB - 0x1000);
	HOSTILE("pref_address", hdr->pref_address = 0);
	HOSTILE("pref_address", hdr->pref_address = 0xFFFFF);
	HOSTILE("pref_address", hdr->pref_address = UINT64_MAX);
	HOSTILE("no 64-bit entry", image[0x201] = 0x2C); /* the header ends before xloadflags */
	HOSTILE("zImage", image[0x201] = 0);

#undef HOSTILE

	/* setup_sects 0 stands for 4. */
	((struct setup_header *)(good + HDR))->setup_sects = 0;
	expect_error(good, 5 * 512 + 0x200, "before the kernel proper, which its setup_sects puts at 2560");
	make_bzimage(good);

	/* Cut off anywhere. */
	for (size_t len = 1; len <= SETUP_BYTES + 0x200; len++)
		expect_error(good, len, "");
}

static void test_initrd(void **state)
{
	uint8_t image[IMAGE_BYTES];
	struct setup_header *hdr = make_bzimage(image);
	cleanup_fd int initrd = memfd_create("initrd", MFD_CLOEXEC);
	struct boot_entry entry;

	assert_null(pwrite_all(initrd, "begin", 5, 0, "memfd"));
	assert_int_equal(ftruncate(initrd, (off_t)(10 * MIB + 1)), 0);

	/* Highest pages below what the kernel allows. */
	hdr->initrd_addr_max = 32 * MIB - 1;
	cleanup_fd int kernel = file_of(image, sizeof(image));
	assert_null(load_fd(kernel, initrd, "", &entry));
	assert_int_equal(params_at(&entry)->hdr.ramdisk_image, 22 * MIB - PAGE_BYTES);
	assert_memory_equal(memory_at(&mem, 22 * MIB - PAGE_BYTES, 5), "begin", 5);

	/* No room below the limit, and not allowed above 4 GiB. */
	hdr->initrd_addr_max = 0x100000 + 0x10000 + 10 * MIB; /* a byte less than is needed, in whole pages */
	assert_null(pwrite_all(kernel, image, sizeof(image), 0, "memfd"));
	struct error *e = load_fd(kernel, initrd, "", &entry);
	assert_non_null(e);
	assert_non_null(strstr(error_text(e), "INITRD: the initrd of 10241 KiB does not fit"));
	error_free(e);
	hdr->initrd_addr_max = 0;
	assert_null(pwrite_all(kernel, image, sizeof(image), 0, "memfd"));
	e = load_fd(kernel, initrd, "", &entry);
	assert_non_null(e);
	error_free(e);

	/* Allowed above: goes to the end of high RAM. */
	make_memory(3 * GIB);
	hdr->xloadflags |= XLF_CAN_BE_LOADED_ABOVE_4G;
	assert_null(pwrite_all(kernel, image, sizeof(image), 0, "memfd"));
	assert_null(load_fd(kernel, initrd, "", &entry));
	const struct boot_params *p = params_at(&entry);
	uint64_t base = p->hdr.ramdisk_image | (uint64_t)p->ext_ramdisk_image << 32;
	assert_int_equal(base, 5 * GIB - 10 * MIB - PAGE_BYTES);
	assert_memory_equal(memory_at(&mem, base, 5), "begin", 5);

	/* Larger than all RAM; sparse, so it costs nothing. Then what is no file. */
	assert_int_equal(ftruncate(initrd, INT64_MAX - 4096), 0);
	e = load_fd(kernel, initrd, "", &entry);
	assert_non_null(e);
	error_free(e);
	cleanup_fd int dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	e = load_fd(kernel, dir, "", &entry);
	assert_non_null(e);
	assert_string_equal(error_text(e), "load the kernel: INITRD: Is a directory");
	error_free(e);
}

static void test_not_a_kernel(void **state)
{
	cleanup_fd int dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	cleanup_fd int empty = memfd_create("empty", MFD_CLOEXEC);
	cleanup_fd int unreadable = file_of("x", 1);
	cleanup_fd int huge = memfd_create("huge", MFD_CLOEXEC);
	uint8_t image[IMAGE_BYTES];
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", unreadable);
	cleanup_fd int write_only = open(path, O_WRONLY | O_CLOEXEC);
	make_bzimage(image);
	assert_null(pwrite_all(huge, image, sizeof(image), 0, "memfd"));
	assert_int_equal(ftruncate(huge, INT64_MAX - 4096), 0);
	const struct {
		int fd;
		const char *words;
	} cases[] = {
		{dir, "load the kernel: KERNEL: Is a directory"},
		{null, "load the kernel: KERNEL is not a regular file: Invalid argument"},
		{empty, "load the kernel: KERNEL is empty: Invalid argument"},
		{write_only, "load the kernel: read KERNEL at 0: Bad file descriptor"},
		{-1, "load the kernel: KERNEL: Bad file descriptor"},
		{huge,
		 "load the kernel: KERNEL: the kernel needs memory up to 8796093022209 MiB to start; there are 64 MiB "
		 "below 4 GiB: Cannot allocate memory"},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct boot_entry entry;
		cleanup_error struct error *e = load_fd(cases[i].fd, -1, "", &entry);
		assert_non_null(e);
		assert_string_equal(error_text(e), cases[i].words);
	}
	expect_error("#!/bin/sh\n", 10, "neither a bzImage nor an ELF kernel");
}

static void test_cmdline(void **state)
{
	uint8_t image[IMAGE_BYTES];
	char longest[BOOT_CMDLINE_MAX + 2];
	struct setup_header *hdr = make_bzimage(image);
	struct boot_entry entry;

	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	cleanup_fd int kernel = file_of(image, sizeof(image));
	longest[100] = '\0';
	assert_null(load_fd(kernel, -1, longest, &entry));
	longest[100] = 'x';
	longest[101] = '\0';
	struct error *e = load_fd(kernel, -1, longest, &entry);
	assert_non_null(e);
	assert_non_null(strstr(error_text(e), "command line of 101 bytes is longer than KERNEL takes (100)"));
	error_free(e);
	longest[101] = 'x';
	hdr->cmdline_size = UINT32_MAX;
	assert_null(pwrite_all(kernel, image, sizeof(image), 0, "memfd"));
	e = load_fd(kernel, -1, longest, &entry);
	assert_non_null(e);
	error_free(e);
	longest[BOOT_CMDLINE_MAX] = '\0';
	assert_null(load_fd(kernel, -1, longest, &entry));
	assert_string_equal(memory_at(&mem, params_at(&entry)->hdr.cmd_line_ptr, 0), longest);
}

/* A kernel must say what it lacks when the machine is as small as machines get. */
static void test_small_machine(void **state)
{
	uint8_t image[IMAGE_BYTES];
	struct boot_entry entry;

	make_bzimage(image);
	make_memory(MIB);
	expect_error(image, sizeof(image), "needs memory up to 2 MiB");
	make_memory(2 * MIB);
	assert_null(load(image, sizeof(image), &entry));
	assert_int_equal(params_at(&entry)->e820_entries, 3);
}

/* An ELF file: header, three program headers (load, load, note), 0x100 bytes of notes, 0x1000 of contents. */
struct elf_image {
	Elf64_Ehdr header;
	Elf64_Phdr segment[3];
	struct {
		Elf64_Nhdr other;
		char other_name[4];
		uint8_t other_desc[8]; /* 5, padded to 4 */
		Elf64_Nhdr entry;
		char entry_name[4];
		uint64_t entry_desc;
	} note;
	uint8_t contents[0x1000];
};

static void make_elf(struct elf_image *image)
{
	*image = (struct elf_image){
		.header = {.e_ident = {0x7F, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
			   .e_type = ET_EXEC,
			   .e_machine = EM_X86_64,
			   .e_phoff = offsetof(struct elf_image, segment),
			   .e_phentsize = sizeof(Elf64_Phdr),
			   .e_phnum = 3},
		.segment = {{.p_type = PT_LOAD,
			     .p_paddr = 0x200000,
			     .p_vaddr = 0xFFFFFFFF80200000,
			     .p_offset = offsetof(struct elf_image, contents),
			     .p_filesz = 0x800,
			     .p_memsz = 0x2000},
			    {.p_type = PT_LOAD, .p_paddr = 0x300000, .p_offset = UINT64_MAX, .p_memsz = 0x1000},
			    {.p_type = PT_NOTE,
			     .p_offset = offsetof(struct elf_image, note),
			     .p_filesz = sizeof(image->note),
			     .p_align = 4}},
		.note = {.other = {4, 5, 18},
			 .other_name = "GNU",
			 .entry = {4, 8, 18},
			 .entry_name = "Xen",
			 .entry_desc = 0x200010},
	};
	for (unsigned i = 0; i < sizeof(image->contents); i++)
		image->contents[i] = (uint8_t)(i * 13 + 1);
}

static void test_pvh(void **state)
{
	struct elf_image image;
	struct boot_entry entry;

	make_elf(&image);
	cleanup_fd int kernel = file_of(&image, sizeof(image));
	cleanup_fd int initrd = file_of("INITRD", 6);
	/* What a guest before the reset left behind must not be taken for zeroes. */
	memset(memory_at(&mem, 0x100000, 0x400000), 0xA5, 0x400000);
	assert_null(load_fd(kernel, initrd, "hello world", &entry));
	assert_false(entry.long_mode);
	assert_int_equal(entry.rip, 0x200010);
	const uint64_t *gdt = memory_at(&mem, entry.gdt_base, 32);
	assert_int_equal(gdt[2], 0x00CF9B000000FFFFull);
	const uint8_t *at = memory_at(&mem, 0x200000, 0x2000);
	assert_memory_equal(at, image.contents, 0x800);
	for (unsigned i = 0x800; i < 0x2000; i++)
		assert_int_equal(at[i], 0);
	assert_int_equal(at[0x2000], 0xA5);
	assert_int_equal(*(uint64_t *)memory_at(&mem, 0x300000, 8), 0);

	const uint32_t *info = memory_at(&mem, entry.rbx, 56);
	const uint64_t *info64 = (const uint64_t *)info;
	assert_int_equal(info[0], 0x336EC578);
	assert_int_equal(info[1], 1);
	assert_int_equal(info[3], 1);
	const uint64_t *module = memory_at(&mem, info64[2], 32);
	assert_memory_equal(memory_at(&mem, module[0], 6), "INITRD", 6);
	assert_int_equal(module[1], 6);
	assert_string_equal(memory_at(&mem, info64[3], 12), "hello world");
	assert_memory_equal(memory_at(&mem, info64[4], 8), "RSD PTR ", 8);
	const uint64_t *map = memory_at(&mem, info64[5], 3 * 24);
	assert_int_equal(info[12], 3);
	assert_int_equal(map[0], 0);
	assert_int_equal(map[1], 0xA0000);
	assert_int_equal(map[2], 1);
	assert_int_equal(map[6], MIB);
	assert_int_equal(map[7], 63 * MIB);

	/* A four-byte entry, and notes aligned to 8. */
	image.note.entry.n_descsz = 4;
	image.note.entry_desc |= 0xDEAD00000000;
	assert_null(load(&image, sizeof(image), &entry));
	assert_int_equal(entry.rip, 0x200010);
	image.note.entry.n_descsz = 8;
	image.note.entry_desc = 0x200020;
	image.note.other.n_descsz = 8;
	image.segment[2].p_align = 8;
	assert_null(load(&image, sizeof(image), &entry));
	assert_int_equal(entry.rip, 0x200020);
}

static void test_pvh_hostile(void **state)
{
	struct elf_image good, image;

#define HOSTILE(words, ...)                                                                                            \
	do {                                                                                                           \
		image = good;                                                                                          \
		__VA_ARGS__;                                                                                           \
		expect_error(&image, sizeof(image), words);                                                            \
	} while (0)

	make_elf(&good);
	HOSTILE("not a 64-bit ELF", image.header.e_ident[EI_CLASS] = ELFCLASS32);
	HOSTILE("not a 64-bit ELF", image.header.e_machine = EM_AARCH64);
	HOSTILE("e_type 1", image.header.e_type = ET_REL);
	HOSTILE("program headers of", image.header.e_phnum = 0);
	HOSTILE("program headers of", image.header.e_phnum = 0xFFFF);
	HOSTILE("program headers of", image.header.e_phentsize = 1);
	HOSTILE("past the end of the file", image.header.e_phoff = UINT64_MAX);
	HOSTILE("past the end of the file", image.header.e_phoff = sizeof(image) - 100);
	HOSTILE("past the end of the file", image.segment[0].p_offset = UINT64_MAX);
	HOSTILE("past the end of the file", image.segment[0].p_offset = sizeof(image) - 0x7FF);
	HOSTILE("more bytes in the file", image.segment[0].p_filesz = 0x2001);
	HOSTILE("more bytes in the file", image.segment[0].p_filesz = UINT64_MAX);
	HOSTILE("does not fit", image.segment[0].p_memsz = UINT64_MAX);
	HOSTILE("does not fit", image.segment[0].p_paddr = UINT64_MAX - 0xFFF);
	HOSTILE("does not fit", image.segment[0].p_paddr = 64 * MIB - 0x1FFF);
	HOSTILE("does not fit", image.segment[0].p_paddr = 4 * GIB);
	HOSTILE("below 1 MiB", image.segment[0].p_paddr = 0x2000);
	HOSTILE("lies in no segment", image.note.entry_desc = 0);
	HOSTILE("lies in no segment", image.note.entry_desc = 0x200800);
	HOSTILE("lies in no segment", image.note.entry_desc = UINT64_MAX);
	HOSTILE("lies in no segment", image.segment[0].p_type = PT_NULL);
	HOSTILE("no PVH entry", image.segment[2].p_type = PT_NULL);
	HOSTILE("no PVH entry", image.segment[2].p_filesz = 0);
	HOSTILE("no PVH entry", image.segment[2].p_filesz -= 1);
	HOSTILE("no PVH entry", image.note.entry_name[3] = '!');
	HOSTILE("no PVH entry", image.note.entry.n_descsz = 6);
	HOSTILE("no PVH entry", image.note.other.n_namesz = UINT32_MAX);
	HOSTILE("no PVH entry", image.note.other.n_descsz = UINT32_MAX);
	HOSTILE("no PVH entry", image.note.entry.n_descsz = UINT32_MAX);
	HOSTILE("absurdly long or go past", image.segment[2].p_filesz = 1 << 20);
	HOSTILE("absurdly long or go past", image.segment[2].p_offset = UINT64_MAX);
#undef HOSTILE

	for (size_t len = 1; len < offsetof(struct elf_image, contents) + 0x800; len++)
		expect_error(&good, len, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_stock_kernel, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage_placement, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_initrd, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_a_kernel, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cmdline, setup, teardown),
		cmocka_unit_test_setup_teardown(test_small_machine, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pvh, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pvh_hostile, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
