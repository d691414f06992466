/*
 * Tests of the ACPI tables: their bytes are walked as an operating system does, then handed to the reference
 * implementation: iasl disassembles every one, and acpiexec runs the DSDT, whose answers are held against the headers
 * of the devices they describe.
 */
#include "vmm/boot/internal.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/pci/pci.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define WINDOW_BASE (24 * GIB)

static struct memory mem = {.fd = -1};

static int setup(void **state)
{
	assert_null(memory_create(&mem, 2 * MIB));
	return 0;
}

static int teardown(void **state)
{
	memory_destroy(&mem);
	return 0;
}

static uint64_t build(unsigned vcpus)
{
	const struct boot_config config = {.vcpus = vcpus, .mmio64_base = WINDOW_BASE};
	uint64_t rsdp = 0;

	assert_null(acpi_build(&mem, &config, &rsdp));
	return rsdp;
}

static uint64_t get(const uint8_t *p, size_t offset, size_t len)
{
	uint64_t value = 0;

	memcpy(&value, p + offset, len);
	return value;
}

static uint8_t sum(const uint8_t *p, size_t len)
{
	uint8_t s = 0;

	while (len--)
		s += *p++;
	return s;
}

/* The table at @gpa, whose checksum and place are right. */
static const uint8_t *table_at(uint64_t gpa)
{
	const uint8_t *t = memory_at(&mem, gpa, 36);

	assert_non_null(t);
	assert_in_range(gpa, LOW_ACPI, LOW_END - get(t, 4, 4));
	if (memcmp(t, "FACS", 4) != 0)
		assert_int_equal(sum(t, get(t, 4, 4)), 0);
	return t;
}

/* Finds a table from the RSDP on, as an operating system does. */
static const uint8_t *find(uint64_t rsdp, const char *signature)
{
	const uint8_t *r = memory_at(&mem, rsdp, 36);

	if (!r)
		abort();
	assert_memory_equal(r, "RSD PTR ", 8);
	assert_int_equal(sum(r, 20), 0);
	assert_int_equal(sum(r, 36), 0);
	const uint8_t *xsdt = table_at(get(r, 24, 8));
	assert_memory_equal(xsdt, "XSDT", 4);
	for (size_t at = 36; at < get(xsdt, 4, 4); at += 8) {
		const uint8_t *t = table_at(get(xsdt, at, 8));
		if (memcmp(t, signature, 4) == 0)
			return t;
	}
	const uint8_t *fadt = strcmp(signature, "FACP") == 0 ? NULL : find(rsdp, "FACP");
	if (fadt && strcmp(signature, "DSDT") == 0)
		return table_at(get(fadt, 140, 8));
	if (fadt && strcmp(signature, "FACS") == 0)
		return table_at(get(fadt, 36, 4));
	print_error("there is no %s\n", signature);
	abort();
}

static void test_fadt(void **state)
{
	const uint8_t *t = find(build(1), "FACP");

	assert_int_equal(get(t, 40, 4), get(t, 140, 8)); /* DSDT, twice */
	assert_int_equal(get(t, 36, 4) % 64, 0);         /* FACS */
	assert_int_equal(get(t, 46, 2), 9);              /* SCI */
	assert_int_equal(get(t, 48, 4), 0);              /* no SMI command */
	assert_int_equal(get(t, 56, 4), 0x600);
	assert_int_equal(get(t, 64, 4), 0x604);
	assert_int_equal(get(t, 76, 4), 0x608);
	assert_int_equal(get(t, 80, 4), 0x620);
	assert_int_equal(get(t, 88, 8), 0x0000001004000204ull);
	assert_int_equal(get(t, 109, 2), 0x5);
	assert_true(get(t, 112, 4) & 1 << 10); /* the reset register is there */
	assert_int_equal(get(t, 120, 8), 0xCF9);
	assert_int_equal(get(t, 128, 1), 6);
	assert_int_equal(get(t, 152, 8), 0x600);
	assert_int_equal(get(t, 176, 8), 0x604);
	assert_int_equal(get(t, 212, 8), 0x608);
	assert_int_equal(get(t, 224, 8), 0x620);
}

/* All four numbers: with fewer, some systems do not switch off (ACPI 6.4, section 7.4.2). */
static void test_sleep(void **state)
{
	static const uint8_t s5[] = {0x08, '_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x00, 0x00, 0x00, 0x00};
	const uint8_t *t = find(build(1), "DSDT");

	assert_non_null(memmem(t, get(t, 4, 4), s5, sizeof(s5)));
}

static void check_madt(unsigned vcpus)
{
	const uint8_t *t = find(build(vcpus), "APIC");
	unsigned cpus = 0, ioapics = 0, overrides = 0, nmis = 0;

	assert_int_equal(get(t, 36, 4), 0xFEE00000);
	for (size_t at = 44; at < get(t, 4, 4); at += t[at + 1]) {
		assert_true(t[at + 1] >= 6);
		switch (t[at]) {
		case 0:
			assert_int_equal(t[at + 2], cpus);
			assert_int_equal(t[at + 3], cpus);
			assert_int_equal(get(t, at + 4, 4), 1);
			assert_true(cpus < 255);
			cpus++;
			break;
		case 9:
			assert_int_equal(get(t, at + 4, 4), cpus);
			assert_int_equal(get(t, at + 8, 4), 1);
			assert_int_equal(get(t, at + 12, 4), cpus);
			assert_true(cpus >= 255);
			cpus++;
			break;
		case 1:
			assert_int_equal(get(t, at + 4, 4), 0xFEC00000);
			ioapics++;
			break;
		case 2:
			overrides++;
			break;
		case 4:
			nmis++;
			break;
		case 10:
			assert_true(vcpus > 255);
			break;
		default:
			fail_msg("MADT entry of type %u", t[at]);
		}
	}
	assert_int_equal(cpus, vcpus);
	assert_int_equal(ioapics, 1);
	assert_int_equal(overrides, 2);
	assert_int_equal(nmis, 1);
}

static void test_madt(void **state)
{
	check_madt(1);
	check_madt(4);
	check_madt(255);
	check_madt(256);
}

static void test_mcfg(void **state)
{
	const uint8_t *t = find(build(1), "MCFG");

	assert_int_equal(get(t, 4, 4), 60);
	assert_int_equal(get(t, 44, 8), PCI_ECAM_BASE);
	assert_int_equal(get(t, 54, 1), 0);
	assert_int_equal(get(t, 55, 1) + 1, PCI_BUSES);
}

/* The machine contract: the same description gives the same bytes, whatever was in memory before. */
static void test_deterministic(void **state)
{
	cleanup_free uint8_t *first = malloc(LOW_END - LOW_ACPI);
	uint8_t *area = memory_at(&mem, LOW_ACPI, LOW_END - LOW_ACPI);

	uint64_t rsdp = build(256);
	uint64_t used = rsdp + 36 - LOW_ACPI;
	memcpy(first, area, used);
	memset(area, 0xA5, LOW_END - LOW_ACPI);
	assert_int_equal(build(256), rsdp);
	assert_memory_equal(area, first, used);
	assert_int_equal(area[used], 0xA5);
}

static void test_refused(void **state)
{
	struct boot_config config = {.vcpus = 0};
	uint64_t rsdp;

	for (unsigned i = 0; i < 2; i++) {
		struct error *e = acpi_build(&mem, &config, &rsdp);
		assert_non_null(e);
		error_free(e);
		config.vcpus = 257;
	}
}

/* Runs a shell command in @dir; its exit status must be 0. Returns what it wrote (malloc'ed). */
static char *run(const char *dir, const char *command)
{
	cleanup_free char *line = NULL;
	char *out = NULL;
	size_t len = 0;

	assert_true(asprintf(&line, "cd '%s' && { %s; } 2>&1", dir, command) > 0);
	FILE *pipe = popen(line, "r"); // NOLINT(cert-env33-c): a test, with a fixed command
	FILE *to = open_memstream(&out, &len);
	if (!pipe || !to)
		abort();
	for (int c; (c = fgetc(pipe)) != EOF;)
		fputc(c, to);
	fclose(to);
	bool good = pclose(pipe) == 0;
	if (!good || !out) {
		print_error("%s: %s\n", command, out);
		abort();
	}
	return out;
}

static void write_tables(const char *dir, uint64_t rsdp)
{
	static const char *const signatures[] = {"FACP", "APIC", "MCFG", "SSDT", "DSDT", "FACS"};

	for (unsigned i = 0; i < ARRAY_SIZE(signatures); i++) {
		const uint8_t *t = find(rsdp, signatures[i]);
		cleanup_free char *path = NULL;
		assert_true(asprintf(&path, "%s/%s.aml", dir, signatures[i]) > 0);
		cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		assert_true(fd >= 0);
		assert_null(write_all(fd, t, get(t, 4, 4), path));
	}
}

/* The next integer that acpiexec printed from *at on, which moves on. */
static uint64_t next_integer(const char **at)
{
	*at = strstr(*at, "[Integer] = ");
	assert_non_null(*at);
	*at += strlen("[Integer] = ");
	return strtoull(*at, NULL, 16);
}

static void check_routing(const char *dir)
{
	cleanup_free char *out = run(dir, "acpiexec -b 'execute \\_SB.PCI0._PRT' DSDT.aml SSDT.aml </dev/null");
	const char *at = strstr(out, "Contains 128 Elements");

	assert_non_null(at);
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			assert_int_equal(next_integer(&at), slot << 16 | 0xFFFF);
			assert_int_equal(next_integer(&at), pin);
			assert_int_equal(next_integer(&at), 0);
			assert_int_equal(next_integer(&at), pci_slot_gsi(slot + pin));
		}
	}
	assert_null(strstr(at, "[Integer]"));
}

/* Minimum and maximum of the windows, out of acpiexec's words on _CRS. */
static void check_windows(const char *dir)
{
	cleanup_free char *out = run(dir, "acpiexec -b 'resources \\_SB.PCI0' DSDT.aml SSDT.aml </dev/null");
	static const uint64_t expected[][2] = {
		{0, PCI_BUSES - 1},
		{0, 0xCF7}, /* the LPC bridge and what is behind it, too */
		{0xD00, PCI_IO_END - 1},
		{PCI_MMIO32_BASE, PCI_MMIO32_END - 1},
		{WINDOW_BASE, WINDOW_BASE + PCI_MMIO64_BYTES - 1},
	};
	const char *at = out;

	for (unsigned i = 0; i < ARRAY_SIZE(expected); i++) {
		unsigned long long min = 0, max = 0;
		at = strstr(at, "Address Minimum : ");
		/* The ports of the configuration mechanism are not a window. */
		while (at && strncmp(at + strlen("Address Minimum : "), "0CF8", 4) == 0)
			at = strstr(at + 1, "Address Minimum : ");
		if (!at) {
			print_error("there is no window %u\n", i);
			abort();
		}
		assert_int_equal(sscanf(at, "Address Minimum : %llx Address Maximum : %llx", &min, &max), 2);
		assert_int_equal(min, expected[i][0]);
		assert_int_equal(max, expected[i][1]);
		at++;
	}
}

static void test_reference(void **state)
{
	char dir[] = "/tmp/acpi-test-XXXXXX";

	assert_non_null(mkdtemp(dir));
	write_tables(dir, build(256));
	/* iasl says what it does not understand by "****" or "Error", and still ends well. */
	cleanup_free char *words = run(dir, "for t in FACP APIC MCFG FACS SSDT; do iasl -d $t.aml || exit 1; done;"
					    "iasl -e SSDT.aml -d DSDT.aml; cat *.dsl");
	if (strstr(words, "****") || strcasestr(words, "invalid") || strstr(words, "Error"))
		fail_msg("iasl: %s", words);
	/* What was disassembled compiles to the same again, but for the creator in the header: all was understood. */
	free(run(dir, "for t in FACP APIC MCFG SSDT DSDT; do iasl -vs -p again-$t $t.dsl || exit 1; done;"
		      "cmp -i 36 FACP.aml again-FACP.aml && cmp -i 36 APIC.aml again-APIC.aml &&"
		      "cmp -i 36 MCFG.aml again-MCFG.aml"));
	check_routing(dir);
	check_windows(dir);
	cleanup_free char *remove = NULL;
	assert_true(asprintf(&remove, "rm -r '%s'", dir) > 0);
	free(run("/", remove));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_fadt, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sleep, setup, teardown),
		cmocka_unit_test_setup_teardown(test_madt, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mcfg, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deterministic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reference, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
