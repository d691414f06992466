/*
 * Records of ovsdb-server's file, and following one that grows, is cut, and is replaced. The server itself takes part
 * in tests/faults/test_keeper.py.
 */
#include "node/keeper/database.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

/* As ovsdb-tool of Open vSwitch 3.5 wrote it. */
static const char real[] = "OVSDB JSON 92 c8f5ceae0d58e976bc5f21243459a5b74e65bf98\n"
			   "{\"name\":\"Glint\",\"version\":\"0.1.0\",\"tables\":{\"Host\":{\"columns\":{\"name\":"
			   "{\"type\":\"string\"}}}}}\n";

static void ok(struct error *err)
{
	if (err)
		fail_msg("%s", error_text(err));
}

static void records_are_those_of_the_server(void **state)
{
	cleanup_buffer struct buffer b = {};
	char json[sizeof(real)] = "";

	assert_int_equal(database_record_len((const uint8_t *)real, sizeof(real) - 1), sizeof(real) - 1);
	memcpy(json, strchr(real, '\n') + 1, strlen(strchr(real, '\n')) - 2);
	ok(database_record(&b, json));
	assert_int_equal(b.len, sizeof(real) - 1);
	assert_memory_equal(b.data, real, b.len);
}

static void what_is_no_record(void **state)
{
	uint8_t bad[sizeof(real)];
	static const char *const lines[] = {
		"",
		"\n",
		"OVSDB JSON \n",
		"OVSDB JSON 92\n",
		"OVSDB JSON -1 c8\n",
		"OVSDB JSON 99999999999999999999 c8f5ceae0d58e976bc5f21243459a5b74e65bf98\n",
		"OVSDB JSON 18446744073709551615 c8f5ceae0d58e976bc5f21243459a5b74e65bf98\n",
		"OVSDB CLUSTER 2 c8f5ceae0d58e976bc5f21243459a5b74e65bf98\n{}"};

	/* Every cut, and every changed byte. */
	for (size_t len = 0; len < sizeof(real) - 1; len++)
		assert_int_equal(database_record_len((const uint8_t *)real, len), 0);
	for (size_t at = 0; at < sizeof(real) - 1; at++) {
		memcpy(bad, real, sizeof(real));
		bad[at] ^= 2;
		assert_int_equal(database_record_len(bad, sizeof(real) - 1), 0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		assert_int_equal(database_record_len((const uint8_t *)lines[i], strlen(lines[i])), 0);
}

/* --- following --- */

static char folder[64], path[128];

static void put(const char *where, const struct buffer *b, size_t len, int flags)
{
	cleanup_fd int fd = open(where, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);

	assert_true(fd >= 0);
	ok(write_all(fd, b->data, len, where));
}

static struct buffer records(const char *const *json, unsigned count)
{
	struct buffer b = {};

	for (unsigned i = 0; i < count; i++)
		ok(database_record(&b, json[i]));
	return b;
}

static void replace(const char *const *json, unsigned count)
{
	cleanup_buffer struct buffer b = records(json, count);
	char temporary[140];

	snprintf(temporary, sizeof(temporary), "%s.tmp", path);
	put(temporary, &b, b.len, O_TRUNC);
	assert_int_equal(rename(temporary, path), 0);
}

static void expect(struct database *d, const char *const *json, unsigned count, bool lost_too)
{
	cleanup_buffer struct buffer got = {}, wanted = records(json, count);
	unsigned changes = 0;
	bool lost;

	ok(database_follow(d, &got, &changes, &lost));
	assert_int_equal(lost, lost_too);
	if (lost)
		return;
	assert_int_equal(changes, count);
	assert_int_equal(got.len, wanted.len);
	if (count)
		assert_memory_equal(got.data, wanted.data, got.len);
}

static void a_file_is_followed(void **state)
{
	const char *const first[] = {"{\"schema\":1}", "{\"a\":1}"}, *const more[] = {"{\"b\":2}", "{\"c\":3}"};
	struct buffer b = records(first, 2), rest = records(more, 2);
	struct database *d;

	put(path, &b, b.len, O_TRUNC);
	ok(database_open(&d, path, b.len));
	expect(d, NULL, 0, false);
	/* One record, and a half: the server is killed, and cuts it off when it is back. */
	size_t one = database_record_len(rest.data, rest.len);
	put(path, &rest, one + 10, O_APPEND);
	expect(d, more, 1, false);
	expect(d, NULL, 0, false);
	assert_int_equal(truncate(path, (off_t)(b.len + one)), 0);
	expect(d, NULL, 0, false);
	struct buffer last = records(more + 1, 1);
	put(path, &last, last.len, O_APPEND);
	expect(d, more + 1, 1, false);
	/* Replaced by the same state: what is behind it follows. */
	const char *const compact[] = {"{\"schema\":1}", "{\"all\":1}", "{\"d\":4}"};
	replace(compact, 2);
	expect(d, NULL, 0, false);
	replace(compact, 3);
	expect(d, compact + 2, 1, false);
	/* One that was missed, and a new schema. */
	replace(compact, 2);
	replace(compact, 2);
	expect(d, NULL, 0, true);
	const char *const other[] = {"{\"schema\":2}", "{\"all\":1}"};
	replace(other, 2);
	expect(d, NULL, 0, true);
	expect(d, NULL, 0, false);
	cleanup_buffer struct buffer whole = {};
	ok(database_whole(d, &whole));
	struct buffer wanted = records(other, 2);
	assert_int_equal(whole.len, wanted.len);
	assert_memory_equal(whole.data, wanted.data, whole.len);
	buffer_free(&wanted);
	buffer_free(&last);
	buffer_free(&rest);
	buffer_free(&b);
	database_free(d);
}

static int make_folder(void **state)
{
	snprintf(folder, sizeof(folder), "/tmp/database.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/glint.db", folder);
	return 0;
}

static int remove_folder(void **state)
{
	unlink(path);
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(records_are_those_of_the_server),
		cmocka_unit_test(what_is_no_record),
		cmocka_unit_test_setup_teardown(a_file_is_followed, make_folder, remove_folder),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
