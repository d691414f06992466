/* Tests of the firmware's table: one as iPXE writes it, and each way in which it can lead astray. */
#include "node/iscsi/ibft.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define INITIATOR_AT 72
#define NIC_AT       152
#define TARGET_AT    256
#define TEXT_AT      320
#define TABLE_LEN    601

static uint8_t table[TABLE_LEN];
static size_t text_at;

static void put_16(size_t at, size_t value)
{
	table[at] = (uint8_t)value;
	table[at + 1] = (uint8_t)(value >> 8);
}

static void put_text(size_t field, const char *text)
{
	size_t len = strlen(text);

	put_16(field, len);
	put_16(field + 2, text_at);
	memcpy(table + text_at, text, len + 1);
	text_at += len + 1;
}

static void put_part(size_t at, uint8_t id, size_t len)
{
	table[at] = id;
	table[at + 1] = 1;
	put_16(at + 2, len);
	table[at + 5] = 3;
}

static void put_address(size_t at, uint8_t last)
{
	static const uint8_t address[15] = {[10] = 0xff, 0xff, 192, 0, 2};

	memcpy(table + at, address, sizeof(address));
	table[at + 15] = last;
}

static void seal(void)
{
	uint8_t sum = 0;

	table[9] = 0;
	for (size_t i = 0; i < TABLE_LEN; i++)
		sum = (uint8_t)(sum + table[i]);
	table[9] = (uint8_t)-sum;
}

static int make(void **state)
{
	static const uint8_t mac[] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

	memset(table, 0, sizeof(table));
	memcpy(table, "iBFT", 4);
	put_16(4, TABLE_LEN);
	table[8] = 1;
	put_part(48, 1, 18);
	table[53] = 0;
	put_16(56, INITIATOR_AT);
	put_16(58, NIC_AT);
	put_16(60, TARGET_AT);
	text_at = TEXT_AT;
	put_part(INITIATOR_AT, 2, 74);
	put_text(INITIATOR_AT + 70, "iqn.2010-04.org.ipxe:host");
	put_part(NIC_AT, 3, 102);
	put_address(NIC_AT + 6, 100);
	memcpy(table + NIC_AT + 90, mac, sizeof(mac));
	put_text(NIC_AT + 98, "host");
	put_part(TARGET_AT, 4, 54);
	put_address(TARGET_AT + 6, 1);
	put_16(TARGET_AT + 22, 3260);
	put_text(TARGET_AT + 34, "iqn.2026-01.example:glint");
	put_text(TARGET_AT + 38, "user");
	put_text(TARGET_AT + 42, "secret with spaces");
	seal();
	return 0;
}

/* In memory of its own, so that a sanitizer sees what lies behind it. */
static struct error *read_it(size_t len, struct ibft *ibft)
{
	uint8_t *copy = malloc(len ? len : 1);

	assert_non_null(copy);
	memcpy(copy, table, len);
	struct error *err = ibft_read(copy, len, ibft);
	free(copy);
	return err;
}

static void refused(const char *words)
{
	struct ibft ibft;

	seal();
	struct error *err = read_it(TABLE_LEN, &ibft);
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), words));
	error_free(err);
	make(NULL);
}

static void test_good(void **state)
{
	struct ibft ibft;

	assert_null(read_it(TABLE_LEN, &ibft));
	assert_string_equal(ibft.initiator, "iqn.2010-04.org.ipxe:host");
	assert_string_equal(ibft.target, "iqn.2026-01.example:glint");
	assert_string_equal(ibft.address, "192.0.2.1");
	assert_int_equal(ibft.port, 3260);
	assert_string_equal(ibft.mac, "52:54:00:12:34:56");
	/* The second of two was booted from, over IPv6. */
	put_16(60, 0);
	put_16(64, TARGET_AT);
	memset(table + TARGET_AT + 6, 0, 16);
	table[TARGET_AT + 6] = 0x20;
	table[TARGET_AT + 7] = 0x01;
	table[TARGET_AT + 21] = 1;
	seal();
	assert_null(read_it(TABLE_LEN, &ibft));
	assert_string_equal(ibft.address, "2001::1");
}

static void test_form(void **state)
{
	struct ibft ibft;

	for (size_t len = 0; len < TABLE_LEN; len++) {
		struct error *err = read_it(len, &ibft);
		assert_non_null(err);
		error_free(err);
	}
	for (size_t i = 0; i < TABLE_LEN; i++) {
		table[i] ^= 0x10;
		struct error *err = read_it(TABLE_LEN, &ibft);
		assert_non_null(err);
		error_free(err);
		table[i] ^= 0x10;
	}
}

static void test_parts(void **state)
{
	put_16(50, 20);
	refused("control part");
	put_16(56, 0);
	refused("no initiator");
	put_16(56, TABLE_LEN - 73);
	refused("part 2 lies outside");
	put_16(58, 40);
	refused("part 3 lies outside");
	put_16(60, 0xffff);
	refused("part 4 lies outside");
	put_16(62, TARGET_AT);
	refused("part 3 is none");
	put_16(TARGET_AT + 2, 53);
	refused("part 4 is none");
	put_16(60, 0);
	refused("no target was booted from");
	table[TARGET_AT + 5] = 1;
	refused("no target was booted from");
	table[TARGET_AT + 33] = 1;
	refused("network device 1 is not there");
	table[NIC_AT + 90] |= 1;
	refused("network device 0 is not there");
}

static void test_values(void **state)
{
	put_16(INITIATOR_AT + 70, 224);
	refused("the initiator is too long");
	put_16(TARGET_AT + 36, TABLE_LEN - 24);
	refused("the target is too long or lies outside");
	put_16(TARGET_AT + 44, 0xfff0);
	refused("the CHAP secret is too long or lies outside");
	put_16(NIC_AT + 98, 256);
	refused("the host's name is too long");
	table[TEXT_AT + 3] = '\n';
	refused("the initiator is no text");
	table[TEXT_AT + 4] = ' ';
	refused("is no iSCSI name");
	table[TEXT_AT] = 'x';
	refused("is no iSCSI name");
	put_16(TARGET_AT + 34, 0);
	refused("is no iSCSI name");
	put_16(TARGET_AT + 22, 0);
	refused("no port");
	table[TARGET_AT + 6 + 12] = 127;
	refused("no host's");
	table[TARGET_AT + 6 + 12] = 239;
	refused("no host's");
	memset(table + TARGET_AT + 6, 0, 16);
	refused("no host's");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_good, make),
		cmocka_unit_test_setup(test_form, make),
		cmocka_unit_test_setup(test_parts, make),
		cmocka_unit_test_setup(test_values, make),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
