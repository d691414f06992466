/* Tests of what is kept in the firmware: load options and their order. */
#include "node/health/health.h"

#include "base/cleanup.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#define GLOBAL "8be4df61-93ca-11d2-aa0d-00e098032b8c"

static const struct efi_file file = {.partition = 1,
				     .start = 2048,
				     .count = 0x100000,
				     .uuid = "00112233-4455-6677-8899-aabbccddeeff",
				     .path = "\\A.EFI"};

/* Byte for byte what the UEFI specification asks for. */
static void test_load_option(void **state)
{
	static const uint8_t wanted[] = {
		1,    0,    0,    0,    42 + 18 + 4, 0,    'G',  0,    0,    0, /* active, length of the path,
										   description */
		4,    1,    42,   0,    1,           0,    0,    0,    0,    8,    0,    0,    0,
		0,    0,    0,    0,    0,           16,   0,    0,    0,    0,    0, /* hard drive, start, size */
		0x33, 0x22, 0x11, 0x00, 0x55,        0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc,
		0xdd, 0xee, 0xff, 2,    2,           4,    4,    18,   0,    '\\', 0,    'A',  0,
		'.',  0,    'E',  0,    'F',         0,    'I',  0,    0,    0, /* file */
		0x7f, 0xff, 4,    0};
	uint8_t option[EFI_ENTRY_MAX];
	struct efi_file bad = file;

	assert_int_equal(efi_load_option(option, "G", &file), sizeof(wanted));
	assert_memory_equal(option, wanted, sizeof(wanted));
	bad.path = "A.EFI";
	assert_int_equal(efi_load_option(option, "G", &bad), 0);
	bad = file;
	strcpy(bad.uuid, "no");
	assert_int_equal(efi_load_option(option, "G", &bad), 0);
}

static void test_boot_order(void **state)
{
	static const uint16_t first[] = {0x20, 0x21}, wanted[] = {0x20, 0x21, 3, 0, 7};
	uint16_t order[EFI_ORDER_MAX] = {3, 0x21, 0, 0x20, 7};

	assert_int_equal(efi_boot_order(order, 5, first, 2), 5);
	assert_memory_equal(order, wanted, sizeof(wanted));
	assert_int_equal(efi_boot_order(order, 0, first, 2), 2);
	memset(order, 0, sizeof(order));
	assert_int_equal(efi_boot_order(order, EFI_ORDER_MAX, first, 2), EFI_ORDER_MAX);
}

static void put_variable(const char *folder, const char *name, const void *data, size_t len)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s-%s", folder, name, GLOBAL);
	cleanup_file FILE *f = fopen(path, "w");
	assert_non_null(f);
	fwrite("\7\0\0\0", 1, 4, f);
	fwrite(data, 1, len, f);
}

static size_t variable_bytes(const char *folder, const char *name, uint8_t *data, size_t max)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s-%s", folder, name, GLOBAL);
	cleanup_file FILE *f = fopen(path, "r");
	return f ? fread(data, 1, max, f) : 0;
}

static void test_keep_entries(void **state)
{
	char folder[] = "/tmp/health_test.XXXXXX", path[256];
	uint8_t data[512], again[512];
	struct stat before, after;

	assert_non_null(mkdtemp(folder));
	put_variable(folder, "BootOrder", "\1\0\2\0", 4);
	assert_null(efi_keep_entries(folder, &file, &file));
	assert_int_equal(variable_bytes(folder, "BootOrder", data, sizeof(data)), 12);
	assert_memory_equal(data, "\7\0\0\0\x20\0\x21\0\1\0\2\0", 12);
	assert_true(variable_bytes(folder, "Boot0020", data, sizeof(data)) > 60);

	/* Kept once, nothing is written again: the firmware's memory wears, too. */
	snprintf(path, sizeof(path), "%s/Boot0020-" GLOBAL, folder);
	assert_int_equal(stat(path, &before), 0);
	assert_null(efi_keep_entries(folder, &file, &file));
	assert_int_equal(stat(path, &after), 0);
	assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim));

	/* Somebody else's entry of that number stays as it is. */
	put_variable(folder, "Boot0021", "\1\0\0\0\0\0W\0i\0n\0\0\0", 14);
	struct error *err = efi_keep_entries(folder, &file, &file);
	assert_non_null(err);
	assert_int_equal(error_errno(err), EEXIST);
	error_free(err);
	assert_int_equal(variable_bytes(folder, "Boot0021", again, sizeof(again)), 18);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_load_option),
		cmocka_unit_test(test_boot_order),
		cmocka_unit_test(test_keep_entries),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
