/*
 * VHD as bytes. That what is written here is what others read is tested beside their tools (tests/disk).
 */
#include "disk/vhd_format.h"

#include "base/util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void expect_error(struct error *err, const char *words)
{
	assert_non_null(err);
	if (!strstr(error_text(err), words))
		fail_msg("\"%s\" does not say \"%s\"", error_text(err), words);
	error_free(err);
}

static const struct vhd_footer example = {
	.header_offset = 512,
	.size = 5 * GIB,
	.type = VHD_DYNAMIC,
	.id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
	.timestamp = 0x01020304,
};

static void test_footer(void **state)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	struct vhd_footer got;

	vhd_make_footer(&example, raw);
	assert_null(vhd_parse_footer(raw, "a.vhd", 0, &got));
	assert_int_equal(got.header_offset, 512);
	assert_int_equal(got.size, example.size);
	assert_int_equal(got.type, VHD_DYNAMIC);
	assert_int_equal(got.timestamp, example.timestamp);
	assert_memory_equal(got.id, example.id, VHD_ID_BYTES);

	/* What is not ours stays through a change of size. */
	raw[85] = 7;
	vhd_resize_footer(raw, 6 * GIB);
	assert_null(vhd_parse_footer(raw, "a.vhd", 0, &got));
	assert_int_equal(got.size, 6 * GIB);
	assert_int_equal(raw[85], 7);
	assert_memory_equal(got.id, example.id, VHD_ID_BYTES);
}

/* Makes the checksum of a footer right again after a change. */
static void seal(uint8_t raw[VHD_FOOTER_BYTES])
{
	uint32_t sum = 0;

	memset(raw + 64, 0, 4);
	for (size_t i = 0; i < VHD_FOOTER_BYTES; i++)
		sum += raw[i];
	for (int i = 0; i < 4; i++)
		raw[64 + i] = (uint8_t)(~sum >> (24 - 8 * i));
}

static void test_footer_refused(void **state)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	struct vhd_footer got;

	for (size_t i = 0; i < VHD_FOOTER_BYTES; i++) {
		vhd_make_footer(&example, raw);
		raw[i] ^= 0x10;
		expect_error(vhd_parse_footer(raw, "a.vhd", 512, &got), "a.vhd: ");
	}
	vhd_make_footer(&example, raw);
	raw[63] = 5; /* the type */
	seal(raw);
	expect_error(vhd_parse_footer(raw, "a.vhd", 512, &got), "at offset 512 is of disk type 5");
	vhd_make_footer(&example, raw);
	vhd_resize_footer(raw, VHD_SIZE_MAX + VHD_SECTOR);
	expect_error(vhd_parse_footer(raw, "a.vhd", 512, &got), "says the disk has 2190433321472 bytes");
	vhd_resize_footer(raw, 511);
	expect_error(vhd_parse_footer(raw, "a.vhd", 512, &got), "says the disk has 0 bytes");
}

static void test_whose_size(void **state)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	struct vhd_footer got;
	struct vhd_footer odd = example;

	odd.size = 100 * MIB + 512;
	vhd_make_footer(&odd, raw);
	memcpy(raw + 28, "vpc ", 4);
	seal(raw);
	assert_null(vhd_parse_footer(raw, "a.vhd", 0, &got));
	struct vhd_geometry g = vhd_geometry(odd.size);
	assert_int_equal(got.size, (uint64_t)g.cylinders * g.heads * g.sectors * 512);
	assert_true(got.size < odd.size);
	memcpy(raw + 28, "vbox", 4);
	seal(raw);
	assert_null(vhd_parse_footer(raw, "a.vhd", 0, &got));
	assert_int_equal(got.size, odd.size);
	/* The largest geometry says nothing about the size. */
	odd.size = 300 * GIB;
	vhd_make_footer(&odd, raw);
	memcpy(raw + 28, "vpc ", 4);
	seal(raw);
	assert_null(vhd_parse_footer(raw, "a.vhd", 0, &got));
	assert_int_equal(got.size, odd.size);
}

static void test_geometry(void **state)
{
	/* Worked by hand from the specification's appendix. */
	static const struct {
		uint64_t size;
		struct vhd_geometry is;
	} rows[] = {
		{40 * MIB, {963, 5, 17}},         /* 81920 sectors: the first row of the appendix */
		{1 * GIB, {2080, 16, 63}},        /* 2097152 sectors */
		{136899993600, {65535, 16, 255}}, /* as much as a geometry can say */
		{VHD_SIZE_MAX, {65535, 16, 255}}, {512, {0, 4, 17}},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct vhd_geometry g = vhd_geometry(rows[i].size);
		assert_int_equal(g.cylinders, rows[i].is.cylinders);
		assert_int_equal(g.heads, rows[i].is.heads);
		assert_int_equal(g.sectors, rows[i].is.sectors);
	}
}

static void test_header(void **state)
{
	struct vhd_header header = {
		.table_offset = 1536,
		.entries = 2560,
		.block_bytes = VHD_BLOCK_DEFAULT,
		.parent_id = {9, 8, 7},
		.parent_timestamp = 77,
		.parent_name = "base.vhd",
		.relative = {.offset = 4096, .length = 20},
		.absolute = {.offset = 8192, .length = 40},
	};
	uint8_t raw[VHD_HEADER_BYTES];
	struct vhd_header got;

	assert_null(vhd_make_header(&header, raw));
	assert_null(vhd_parse_header(raw, "a.vhd", 512, 5 * GIB, &got));
	assert_int_equal(got.table_offset, 1536);
	assert_int_equal(got.entries, 2560);
	assert_int_equal(got.block_bytes, VHD_BLOCK_DEFAULT);
	assert_memory_equal(got.parent_id, header.parent_id, VHD_ID_BYTES);
	assert_int_equal(got.parent_timestamp, 77);
	assert_string_equal(got.parent_name, "base.vhd");
	assert_int_equal(got.relative.offset, 4096);
	assert_int_equal(got.relative.length, 20);
	assert_int_equal(got.absolute.offset, 8192);
	assert_int_equal(got.absolute.length, 40);

	/* A table for more than the disk is well, one for less is not. */
	assert_null(vhd_parse_header(raw, "a.vhd", 512, 5 * GIB - 512 * KIB, &got));
	assert_int_equal(got.entries, 2560);
	assert_null(vhd_parse_header(raw, "a.vhd", 512, 3 * MIB, &got));
	assert_int_equal(got.entries, 2);
	expect_error(vhd_parse_header(raw, "a.vhd", 512, 5 * GIB + 512, &got), "has 2560 entries");

	/* Only the first sector changes when the table moves. */
	uint8_t moved[VHD_HEADER_BYTES];
	memcpy(moved, raw, sizeof(raw));
	vhd_move_table(moved, 10 * MIB, 5000);
	assert_memory_equal(moved + 512, raw + 512, 512);
	assert_null(vhd_parse_header(moved, "a.vhd", 512, 5 * GIB, &got));
	assert_int_equal(got.table_offset, 10 * MIB);
}

static void test_header_refused(void **state)
{
	struct vhd_header header = {.table_offset = 1536, .entries = 10, .block_bytes = VHD_BLOCK_DEFAULT};
	static const uint32_t blocks[] = {0, 512, 3 * 512 * 1024, VHD_BLOCK_MIN / 2, VHD_BLOCK_MAX * 2, 0x80000000};
	uint8_t raw[VHD_HEADER_BYTES];
	struct vhd_header got;

	for (size_t i = 0; i < VHD_HEADER_BYTES; i++) {
		assert_null(vhd_make_header(&header, raw));
		raw[i] ^= 0x10;
		expect_error(vhd_parse_header(raw, "a.vhd", 512, MIB, &got), "a.vhd: ");
	}
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		header.block_bytes = blocks[i];
		assert_null(vhd_make_header(&header, raw));
		expect_error(vhd_parse_header(raw, "a.vhd", 512, 512, &got), "at offset 512 says blocks have");
	}
}

static void test_names(void **state)
{
	static const char *const names[] = {"base.vhd", "sub/base.vhd", "../out.vhd", "grün €.vhd", "\U0001f4be.vhd"};
	uint8_t utf16[512];
	char back[VHD_NAME_BYTES];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		for (int big = 0; big < 2; big++) {
			memset(utf16, 0, sizeof(utf16));
			size_t n = vhd_put_name(names[i], big, utf16, sizeof(utf16));
			assert_true(n > 0);
			assert_true(vhd_get_name(utf16, n, big, back));
			assert_string_equal(back, names[i]);
			assert_true(vhd_get_name(utf16, sizeof(utf16), big, back));
			assert_string_equal(back, names[i]);
		}
	}
	static const uint8_t windows[] = {'.', 0, '\\', 0, 'a', 0, '\\', 0, 'b', 0};
	assert_true(vhd_get_name(windows, sizeof(windows), false, back));
	assert_string_equal(back, "a/b");
	/* Half a pair, the wrong half, and nothing. */
	assert_false(vhd_get_name((const uint8_t[]){'a', 0, 0x3d, 0xd8}, 4, false, back));
	assert_false(vhd_get_name((const uint8_t[]){'a', 0, 0x3d, 0xdc, 'b', 0}, 6, false, back));
	assert_false(vhd_get_name((const uint8_t[]){'a', 0, 0x3d, 0xd8, 'b', 0}, 6, false, back));
	assert_false(vhd_get_name((const uint8_t[]){0, 0}, 2, false, back));
	assert_false(vhd_get_name(utf16, 0, false, back));
	assert_int_equal(vhd_put_name("four", false, utf16, 7), 0);
	assert_int_equal(vhd_put_name("\xc0\x80", false, utf16, 64), 0);
	assert_int_equal(vhd_put_name("\xed\xa0\x80", false, utf16, 64), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_footer),     cmocka_unit_test(test_footer_refused),
		cmocka_unit_test(test_whose_size), cmocka_unit_test(test_geometry),
		cmocka_unit_test(test_header),     cmocka_unit_test(test_header_refused),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
