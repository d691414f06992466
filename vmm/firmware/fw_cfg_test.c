/*
 * Tests of fw_cfg as firmware uses it: ports, DMA, the directory; the contents of a whole machine's items, among them
 * the ACPI tables linked by a loader written here from the specification; hostile descriptors; saved state.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/devices/test_bench.h"
#include "vmm/firmware/firmware.h"

#include <endian.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define RAM        (4 * MIB)
#define DESCRIPTOR 0x1000u
#define BUFFER     0x2000u
#define CODE_BYTES 0x10000
#define KERNEL_MIB 3

static struct bus pio, mmio;
static struct memory mem;
static struct irqs irqs;
static struct pci_bus pci;
static struct firmware fw;
static int kernel_fd, code_fd;

static int file_of(const void *head, size_t len, uint64_t bytes)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(pwrite(fd, head, len, 0), len);
	return fd;
}

/* A kernel of nothing but its header; its bytes tell where they are. */
static int make_kernel(void)
{
	static uint8_t kernel[KERNEL_MIB * MIB];

	for (size_t i = 0; i < sizeof(kernel); i++)
		kernel[i] = (uint8_t)(i >> 9);
	kernel[0x1f1] = 3;
	memcpy(kernel + 0x202, "HdrS", 4);
	return file_of(kernel, sizeof(kernel), sizeof(kernel));
}

static int setup(void **state)
{
	(void)state;
	bus_init(&pio, "port");
	bus_init(&mmio, "MMIO");
	assert_null(memory_create(&mem, RAM));
	assert_null(irqs_init(&irqs, -1));
	assert_null(pci_bus_init(&pci, &pio, &mmio, &irqs, 8 * GIB));
	kernel_fd = make_kernel();
	code_fd = file_of("code", 4, CODE_BYTES);
	const struct firmware_config config = {
		.code_fd = code_fd,
		.vars_fd = -1,
		.code_name = "code",
		.name = "a machine",
		.uuid = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5, 6, 7, 8},
		.vcpus = 3,
		.mmio64_base = 8 * GIB,
		.boot = {{3}, {2, FIRMWARE_BOOT_NVME}, {0x1f, FIRMWARE_BOOT_AHCI, 2, 1}, {0x11}},
		.boots = 4,
		.kernel_fd = kernel_fd,
		.initrd_fd = -1,
		.kernel_name = "kernel",
		.cmdline = "quiet",
	};
	assert_null(firmware_init(&fw, &mem, -1, &pio, &mmio, &pci, &config));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	firmware_destroy(&fw);
	pci_bus_destroy(&pci);
	irqs_destroy(&irqs);
	memory_destroy(&mem);
	close(kernel_fd);
	close(code_fd);
	return 0;
}

/* --- the guest's side --- */

static void *ram(uint64_t gpa)
{
	return memory_at(&mem, gpa, 1);
}

static uint32_t dma(uint32_t control, uint32_t length, uint64_t address)
{
	struct {
		uint32_t control, length;
		uint64_t address;
	} d = {htobe32(control), htobe32(length), htobe64(address)};

	memcpy(ram(DESCRIPTOR), &d, sizeof(d));
	bus_write(&pio, 0x514, 0, 4);
	bus_write(&pio, 0x518, htobe32(DESCRIPTOR), 4);
	memcpy(&d, ram(DESCRIPTOR), sizeof(d));
	return be32toh(d.control);
}

enum { READ = 2, SKIP = 4, SELECT = 8, WRITE = 16 };

static void select_port(uint16_t key)
{
	bus_write(&pio, 0x510, key, 2);
}

static uint64_t number(uint16_t key, unsigned size)
{
	uint64_t value = 0;

	select_port(key);
	for (unsigned i = 0; i < size; i++)
		value |= bus_read(&pio, 0x511, 1) << (8 * i);
	return value;
}

/* Finds a file by the directory, read over the data port; returns its key and its size, or 0. */
static uint16_t find_file(const char *name, uint32_t *size)
{
	struct [[gnu::packed]] {
		uint32_t size;
		uint16_t key, reserved;
		char name[56];
	} entry;

	select_port(0x19);
	unsigned count = be32toh((uint32_t)bus_read(&pio, 0x511, 1) | (uint32_t)bus_read(&pio, 0x511, 1) << 8 |
				 (uint32_t)bus_read(&pio, 0x511, 1) << 16 | (uint32_t)bus_read(&pio, 0x511, 1) << 24);
	for (unsigned i = 0; i < count; i++) {
		for (size_t j = 0; j < sizeof(entry); j++)
			((uint8_t *)&entry)[j] = (uint8_t)bus_read(&pio, 0x511, 1);
		if (strcmp(entry.name, name) == 0) {
			*size = be32toh(entry.size);
			return be16toh(entry.key);
		}
	}
	return 0;
}

/* The whole file, by DMA to BUFFER. */
static uint8_t *file(const char *name, uint32_t *size)
{
	uint16_t key = find_file(name, size);

	assert_true(key >= 0x20);
	assert_int_equal(dma((uint32_t)key << 16 | SELECT | READ, *size, BUFFER), 0);
	return ram(BUFFER);
}

/* --- tests --- */

static void test_ports(void **state)
{
	(void)state;
	assert_int_equal(number(0, 4), 0x554d4551);    /* "QEMU" */
	assert_int_equal(bus_read(&pio, 0x511, 1), 0); /* behind the end */
	assert_int_equal(number(1, 4), 3);
	assert_int_equal(number(5, 2), 3);
	assert_int_equal(number(0x0f, 2), 3);
	assert_int_equal(number(0x1234, 4), 0); /* no such item */
	assert_int_equal(number(0x08, 4), KERNEL_MIB * MIB - 2048);
	assert_int_equal(number(0x17, 4), 2048);
	assert_int_equal(number(0x14, 4), 6);
	assert_int_equal(number(0x0b, 4), 0);
	assert_int_equal(bus_read(&pio, 0x514, 8), 0x47464320554d4551ull); /* "QEMU CFG" */
	assert_int_equal(bus_read(&pio, 0x518, 4), 0x47464320);
	assert_int_equal(bus_read(&pio, 0x510, 1), 0xff);
	select_port(0);
	assert_int_equal(bus_read(&pio, 0x511, 2), 0xff51); /* one byte each: nothing is at 0x512 */
}

static void test_dma(void **state)
{
	uint8_t *buffer = ram(BUFFER);

	(void)state;
	memset(buffer, 0xee, 16);
	assert_int_equal(dma(0 << 16 | SELECT | READ, 2, BUFFER), 0);
	assert_memory_equal(buffer, "QE\xee", 3);
	assert_int_equal(dma(READ, 10, BUFFER), 0); /* goes on, zeros behind the end */
	assert_memory_equal(buffer, "MU\0\0\0\0\0\0\0\0\xee", 11);
	assert_int_equal(dma(0 << 16 | SELECT | SKIP, 3, 0), 0);
	assert_int_equal(dma(READ, 1, BUFFER), 0);
	assert_int_equal(buffer[0], 'U');
	assert_int_equal(dma(0 << 16 | SELECT | WRITE, 1, BUFFER), 1); /* nothing can be written */
	/* 8 bytes at once, as 64-bit firmware may. */
	uint64_t where = htobe64(DESCRIPTOR);
	uint32_t words[4] = {htobe32(SELECT | READ), htobe32(4), 0, htobe32(BUFFER)};
	memcpy(ram(DESCRIPTOR), words, sizeof(words));
	bus_write(&pio, 0x514, where, 8);
	assert_memory_equal(buffer, "QEMU", 4);
}

static void test_kernel_parts(void **state)
{
	const uint8_t *buffer = ram(BUFFER);

	(void)state;
	assert_int_equal(dma(0x18u << 16 | SELECT | READ, 2048, BUFFER), 0);
	assert_memory_equal(buffer + 0x202, "HdrS", 4);
	assert_int_equal(dma(0x11u << 16 | SELECT | READ, KERNEL_MIB * MIB - 2048, BUFFER), 0);
	for (unsigned at = 0; at < KERNEL_MIB * MIB - 2048; at += 511)
		assert_int_equal(buffer[at], (uint8_t)((at + 2048) >> 9));
	assert_int_equal(dma(0x15u << 16 | SELECT | READ, 6, BUFFER), 0);
	assert_memory_equal(buffer, "quiet", 6);
}

/* Lengths and addresses no item and no memory has: an error, at once, and nothing outside memory or items is touched.
 */
static void test_hostile(void **state)
{
	static const uint64_t bad[] = {RAM, RAM - 1, UINT64_MAX, UINT64_MAX - 3, 1ull << 63, 3 * GIB};
	const uint8_t *buffer = ram(BUFFER);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(dma(SELECT | READ, 4, bad[i]), 1);
		bus_write(&pio, 0x514, htobe64(bad[i]), 8); /* the descriptor itself */
	}
	assert_int_equal(dma(SELECT | READ, UINT32_MAX, BUFFER), 1);
	assert_int_equal(dma(SELECT | READ, 1 * MIB, BUFFER), 1); /* of four bytes */
	assert_int_equal(dma(SELECT | READ, 0, UINT64_MAX), 0);
	assert_int_equal(dma(SELECT | SKIP, UINT32_MAX, 0), 0);
	assert_int_equal(dma(READ, 4, BUFFER), 0);
	assert_memory_equal(buffer, "\0\0\0\0", 4);
	/* The kernel's file is cut short beneath us. */
	assert_int_equal(ftruncate(kernel_fd, 4096), 0);
	assert_int_equal(dma(0x11u << 16 | SELECT | READ, MIB, BUFFER), 1);
	assert_int_equal(number(0x11, 1), 4);
}

static void test_files(void **state)
{
	uint32_t size;

	(void)state;
	const uint8_t *e820 = file("etc/e820", &size);
	assert_int_equal(size, 20);
	uint64_t words[2];
	memcpy(words, e820, sizeof(words));
	assert_int_equal(words[0], 0);
	assert_int_equal(words[1], RAM);
	assert_int_equal(e820[16], 1);
	const char *order = (const char *)file("bootorder", &size);
	assert_string_equal(order, "/pci@i0cf8/scsi@3/disk@0,0\n/pci@i0cf8/pci8086,5845@2/namespace@1,0\n"
				   "/pci@i0cf8/pci8086,2922@1f,2/drive@1/disk@0\n/pci@i0cf8/scsi@11/disk@0,0");
	assert_int_equal(size, strlen(order) + 1);
	assert_int_equal(file("etc/system-states", &size)[3], 0); /* no sleep */
	assert_int_equal(find_file("no/such/file", &size), 0);
}

/* --- ACPI: the loader's script obeyed --- */

struct loaded {
	char name[56];
	uint64_t gpa;
	uint32_t size;
};

static struct loaded *lookup(struct loaded *files, const char *name)
{
	for (unsigned i = 0; i < 2; i++)
		if (strcmp(files[i].name, name) == 0)
			return &files[i];
	fail_msg("%s was not allocated", name);
	return NULL;
}

static uint8_t sum(const uint8_t *p, uint32_t len)
{
	uint8_t s = 0;

	while (len--)
		s += *p++;
	return s;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t value;

	memcpy(&value, p, sizeof(value));
	return value;
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t value;

	memcpy(&value, p, sizeof(value));
	return value;
}

static void obey(const uint8_t *command, struct loaded files[2], unsigned *count)
{
	const char *name = (const char *)command + 4;

	if (get32(command) == 1) {
		struct loaded *f = &files[*count];
		f->gpa = 0x200000 + *count * 0x40000ull;
		strcpy(f->name, name);
		uint16_t key = find_file(name, &f->size);
		assert_true(key != 0 && *count < 2);
		assert_int_equal(dma((uint32_t)key << 16 | SELECT | READ, f->size, f->gpa), 0);
		assert_int_equal(f->gpa % get32(command + 60), 0);
		(*count)++;
	} else if (get32(command) == 2) {
		const struct loaded *f = lookup(files, name), *target = lookup(files, (const char *)command + 60);
		uint32_t offset = get32(command + 116);
		uint8_t size = command[120];
		uint64_t value = 0;
		assert_true(range_inside(offset, size, f->size));
		memcpy(&value, (uint8_t *)ram(f->gpa) + offset, size);
		assert_true(value < target->size);
		value += target->gpa;
		memcpy((uint8_t *)ram(f->gpa) + offset, &value, size);
	} else {
		assert_int_equal(get32(command), 3);
		const struct loaded *f = lookup(files, name);
		uint32_t offset = get32(command + 60), start = get32(command + 64), len = get32(command + 68);
		assert_true(range_inside(start, len, f->size) && offset - start < len);
		uint8_t *base = ram(f->gpa);
		assert_int_equal(base[offset], 0);
		base[offset] = (uint8_t)-sum(base + start, len);
	}
}

/* Loads the tables as firmware does. Returns where the RSDP is. */
static const uint8_t *load_acpi(void)
{
	struct loaded files[2] = {};
	unsigned count = 0;
	uint32_t size;
	cleanup_free uint8_t *script = malloc(8192);

	const uint8_t *read = file("etc/table-loader", &size);
	assert_true(size <= 8192 && size % 128 == 0);
	memcpy(script, read, MIN(size, 8192u));
	for (uint32_t at = 0; at < size; at += 128)
		obey(script + at, files, &count);
	return ram(lookup(files, "etc/acpi/rsdp")->gpa);
}

static const uint8_t *table(const uint8_t *rsdp, const char *signature)
{
	const uint8_t *xsdt = ram(get64(rsdp + 24));

	assert_memory_equal(xsdt, "XSDT", 4);
	assert_int_equal(sum(xsdt, get32(xsdt + 4)), 0);
	for (uint32_t at = 36; at < get32(xsdt + 4); at += 8) {
		const uint8_t *t = ram(get64(xsdt + at));
		assert_int_equal(sum(t, get32(t + 4)), 0);
		if (memcmp(t, signature, 4) == 0)
			return t;
	}
	fail_msg("there is no %s", signature);
	return NULL;
}

static void move_ecam(uint64_t base)
{
	bus_write(&pio, 0xcf8, 0x80000060, 4);
	bus_write(&pio, 0xcfc, base | 1, 4);
}

/* The value that the SSDT gives a name. */
static uint64_t named(const uint8_t *ssdt, const char *name)
{
	const uint8_t *at = memmem(ssdt, get32(ssdt + 4), name, 4);

	assert_non_null(at);
	return get64(at + 5);
}

static void check_acpi(uint64_t ecam, uint64_t base, uint64_t end)
{
	const uint8_t *rsdp = load_acpi();

	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, 36), 0);
	assert_int_equal(get64(table(rsdp, "MCFG") + 44), ecam);
	const uint8_t *fadt = table(rsdp, "FACP");
	assert_int_equal(get32(fadt + 40), get64(fadt + 140));
	const uint8_t *dsdt = ram(get32(fadt + 40));
	assert_memory_equal(dsdt, "DSDT", 4);
	assert_int_equal(sum(dsdt, get32(dsdt + 4)), 0);
	assert_memory_equal(ram(get32(fadt + 36)), "FACS", 4);
	assert_int_equal(get32(fadt + 36) % 64, 0);
	const uint8_t *ssdt = table(rsdp, "SSDT");
	assert_int_equal(named(ssdt, "M32B"), base);
	assert_int_equal(named(ssdt, "M32L"), end - base);
	assert_int_equal(named(ssdt, "M64B"), 8 * GIB);
	assert_int_equal(named(ssdt, "ECAM"), ecam);
}

/* The tables tell where firmware put ECAM, at its first look after each reset. */
static void test_acpi(void **state)
{
	(void)state;
	check_acpi(0xe0000000, 0x80000000, 0xe0000000);
	move_ecam(0xb0000000);
	check_acpi(0xe0000000, 0x80000000, 0xe0000000); /* no second look before a reset */
	fw_cfg_unit.reset(&fw.fw_cfg);
	check_acpi(0xb0000000, 0xc0000000, 0xfc000000);
}

static uint64_t nothing_read(void *self, uint64_t offset, unsigned size)
{
	(void)self, (void)offset;
	return bus_all_ones(size);
}

static void nothing_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	(void)self, (void)offset, (void)value, (void)size;
}

/* A BAR that firmware put far up: the window reaches it. */
static void test_high_bar(void **state)
{
	static const struct bus_ops ops = {.read = nothing_read, .write = nothing_write};
	const struct pci_id id = {.vendor = 0x1af4, .device = 0x1042, .class_code = 0x010000};
	struct pci_device dev;

	(void)state;
	pci_device_init(&dev, "test", &id, NULL, NULL);
	assert_null(pci_device_bar(&dev, 0, PCI_BAR_MEM64, 16384, &ops, NULL));
	assert_null(pci_add(&pci, 4, &dev));
	bus_write(&pio, 0xcf8, 0x80002010, 4);
	bus_write(&pio, 0xcfc, 0x00004000, 4);
	bus_write(&pio, 0xcf8, 0x80002014, 4);
	bus_write(&pio, 0xcfc, 0xe0, 4); /* 896 GiB */
	bus_write(&pio, 0xcf8, 0x80002004, 4);
	bus_write(&pio, 0xcfc, 2, 2);
	const uint8_t *ssdt = table(load_acpi(), "SSDT");
	assert_int_equal(named(ssdt, "M64B"), 0xe000000000);
	assert_int_equal(named(ssdt, "M64L"), GIB);
	pci_device_destroy(&dev);
}

static void test_smbios(void **state)
{
	uint32_t size;
	bool has_system = false, has_end = false;

	(void)state;
	const uint8_t *anchor = file("etc/smbios/smbios-anchor", &size);
	assert_int_equal(size, 24);
	assert_memory_equal(anchor, "_SM3_", 5);
	assert_int_equal(sum(anchor, 24), 0);
	uint32_t bytes = get32(anchor + 12);
	const uint8_t *t = file("etc/smbios/smbios-tables", &size);
	assert_int_equal(size, bytes);
	for (uint32_t at = 0; at < size;) {
		const uint8_t *s = t + at;
		assert_false(has_end);
		has_end = s[0] == 127;
		if (s[0] == 1) {
			static const uint8_t uuid[] = {0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 1, 2, 3, 4};
			has_system = true;
			assert_memory_equal(s + 8, uuid, sizeof(uuid));
			assert_non_null(memmem(s, 100, "a machine", 10));
		}
		/* The strings, to the empty one. */
		for (at += s[1]; t[at] || t[at + 1]; at++)
			assert_true(at + 2 < size);
		at += 2;
	}
	assert_true(has_system && has_end);
}

/* Contents travel: the machine that goes on tells what it told before. */
static void test_saved(void **state)
{
	uint32_t size;

	(void)state;
	dma(SELECT | READ, 2, BUFFER);
	int stream = bench_save(&fw_cfg_unit, &fw.fw_cfg);
	teardown(NULL);
	setup(NULL);
	memset(fw.fw_cfg.item[0].data, 'x', fw.fw_cfg.item[0].size);
	assert_ok(bench_load(&fw_cfg_unit, &fw.fw_cfg, stream));
	assert_int_equal(bus_read(&pio, 0x511, 1), 'M');
	assert_int_equal(number(0, 4), 0x554d4551);
	assert_int_equal(file("etc/e820", &size)[16], 1);
	assert_int_equal(number(0x11, 4), 0); /* the kernel stayed behind */
	move_ecam(0xb0000000);
	check_acpi(0xb0000000, 0xc0000000, 0xfc000000);
	close(stream);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_ports, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dma, setup, teardown),
		cmocka_unit_test_setup_teardown(test_kernel_parts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_acpi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_high_bar, setup, teardown),
		cmocka_unit_test_setup_teardown(test_smbios, setup, teardown),
		cmocka_unit_test_setup_teardown(test_saved, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
