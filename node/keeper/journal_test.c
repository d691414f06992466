/*
 * The journal on a medium in memory: what comes back, from whole, torn, damaged, foreign and failing media. Power cuts
 * are tests/faults/journal_cuts.c.
 */
#include "node/keeper/format.h"
#include "node/keeper/journal.h"

#include "base/cleanup.h"
#include "saved/crc32c.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MEDIUM (8 * MIB)
#define AREA   (3 * MIB)

static const uint8_t us[16] = "writer one", them[16] = "writer two";

static void ok(struct error *err)
{
	if (err)
		fail_msg("%s", error_text(err));
}

static void fails(struct error *err, int errnum, const char *words)
{
	if (!err)
		fail_msg("no error, expected: %s", words);
	if (!strstr(error_text(err), words) || error_errno(err) != errnum)
		fail_msg("error '%s' (%d) is not '%s' (%d)", error_text(err), error_errno(err), words, errnum);
	error_free(err);
}

/* --- a medium --- */

struct medium {
	struct journal_io io;
	uint8_t *bytes;
	unsigned writes, flushes;
	unsigned fail_write, fail_flush, lose_write; /* the nth, from 1 */
	uint64_t bad_block;                          /* cannot be read; 0: none */
};

static int medium_read(const struct journal_io *io, void *data, size_t len, uint64_t offset)
{
	const struct medium *m = (const struct medium *)io;

	assert_true(range_inside(offset, len, io->size) && is_aligned(offset | len | (uintptr_t)data, JOURNAL_BLOCK));
	if (m->bad_block >= offset && m->bad_block < offset + len && m->bad_block)
		return -EIO;
	memcpy(data, m->bytes + offset, len);
	return 0;
}

static int medium_write(const struct journal_io *io, const void *data, size_t len, uint64_t offset)
{
	struct medium *m = (struct medium *)(uintptr_t)io;

	assert_true(range_inside(offset, len, io->size) && is_aligned(offset | len | (uintptr_t)data, JOURNAL_BLOCK));
	if (++m->writes == m->fail_write)
		return -EIO;
	if (m->writes != m->lose_write)
		memcpy(m->bytes + offset, data, len);
	return 0;
}

static int medium_flush(const struct journal_io *io)
{
	struct medium *m = (struct medium *)(uintptr_t)io;

	return ++m->flushes == m->fail_flush ? -EIO : 0;
}

static struct medium *medium_new(void)
{
	struct medium *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	m->io = (struct journal_io){medium_read, medium_write, medium_flush, MEDIUM, "the stick"};
	m->bytes = calloc(1, MEDIUM);
	assert_non_null(m->bytes);
	return m;
}

static void medium_free(struct medium *m)
{
	free(m->bytes);
	free(m);
}

/* --- a state: the database's bytes one after another, and the last identity --- */

struct state {
	uint8_t *database;
	size_t len;
	char identity[64];
};

static struct error *take(void *arg, const struct journal_item *item)
{
	struct state *s = arg;

	if (item->kind == JOURNAL_IDENTITY) {
		snprintf(s->identity, sizeof(s->identity), "%.*s", (int)item->len, (const char *)item->data);
		return NULL;
	}
	s->database = realloc(s->database, s->len + item->len + 1);
	assert_non_null(s->database);
	memcpy(s->database + s->len, item->data, item->len);
	s->len += item->len;
	s->database[s->len] = '\0';
	return NULL;
}

static struct journal *open_journal(const struct medium *m, struct state *s)
{
	struct journal *j;

	*s = (struct state){};
	ok(journal_open(&j, &m->io, us, take, s));
	return j;
}

static struct journal_info info_of(const struct journal *j)
{
	struct journal_info info;

	journal_info(j, &info);
	return info;
}

static struct journal_item text(const char *words)
{
	return (struct journal_item){JOURNAL_DATABASE, words, strlen(words)};
}

static void append(struct journal *j, const char *words)
{
	struct journal_item item = text(words);

	ok(journal_append(j, &item, 1, 1));
}

static void snapshot(struct journal *j, const char *words)
{
	struct journal_item items[] = {{JOURNAL_IDENTITY, "me", 2}, text(words)};

	ok(journal_snapshot(j, items, 2));
}

/* A medium with the snapshot "base", in area 1, and the changes 1 to 5, a block each. */
static struct medium *medium_filled(void)
{
	struct medium *m = medium_new();
	struct state s;
	struct journal *j = open_journal(m, &s);

	snapshot(j, "old");
	append(j, "older");
	snapshot(j, "base");
	for (char name[2] = "1"; name[0] <= '5'; name[0]++)
		append(j, name);
	journal_close(j);
	return m;
}
#define LOG_AT(i) (JOURNAL_AREA_0 + AREA + (1 + (uint64_t)(i)) * JOURNAL_BLOCK)

static enum journal_state reads(const struct medium *m, const char *words)
{
	struct state s;
	struct journal *j = open_journal(m, &s);
	struct journal_info info = info_of(j);

	if (!s.database || strcmp((char *)s.database, words) != 0)
		fail_msg("reads '%s' instead of '%s'", (char *)s.database, words);
	free(s.database);
	journal_close(j);
	return info.state;
}

/* --- tests --- */

static void what_was_written_comes_back(void **state)
{
	struct medium *m = medium_new();
	struct state s;
	struct journal *j = open_journal(m, &s);

	assert_int_equal(info_of(j).state, JOURNAL_EMPTY);
	assert_int_equal(m->writes, 0);
	assert_false(journal_fits(j, 1, 1));
	fails(journal_append(j, &(struct journal_item){JOURNAL_DATABASE, "x", 1}, 1, 1), ENOSPC, "a snapshot is due");
	snapshot(j, "schema ");
	append(j, "one ");
	append(j, "two ");
	struct journal_info before = info_of(j);
	journal_close(j);

	unsigned writes = m->writes;
	j = open_journal(m, &s);
	struct journal_info after = info_of(j);
	assert_int_equal(after.state, JOURNAL_WHOLE);
	assert_string_equal((char *)s.database, "schema one two ");
	assert_string_equal(s.identity, "me");
	assert_memory_equal(after.stick, before.stick, 16);
	assert_memory_equal(after.writer, us, 16);
	assert_int_equal(after.sequence, 3);
	assert_int_equal(after.generation, 1);
	assert_int_equal(after.changes, 2);
	assert_int_equal(m->writes, writes);
	/* Two items of one record. */
	ok(journal_append(j, (struct journal_item[]){{JOURNAL_IDENTITY, "you", 3}, text("three")}, 2, 1));
	free(s.database);
	journal_close(j);
	j = open_journal(m, &s);
	assert_string_equal((char *)s.database, "schema one two three");
	assert_string_equal(s.identity, "you");
	free(s.database);
	journal_close(j);
	medium_free(m);
}

static void each_write_is_one_block_and_one_flush(void **state)
{
	struct medium *m = medium_filled();
	struct state s;
	struct journal *j = open_journal(m, &s);
	unsigned writes = m->writes, flushes = m->flushes;

	append(j, "6");
	assert_int_equal(m->writes, writes + 1);
	assert_int_equal(m->flushes, flushes + 1);
	assert_int_equal(info_of(j).written, JOURNAL_BLOCK);
	free(s.database);
	journal_close(j);
	medium_free(m);
}

static void a_torn_end_is_dropped(void **state)
{
	for (size_t sector = 0; sector < 8; sector++) {
		struct medium *m = medium_filled();
		/* The last record, and a longer one behind it of which some sectors are missing. */
		struct state s;
		struct journal *j = open_journal(m, &s);
		static const uint8_t old[JOURNAL_BLOCK];
		char longer[3 * JOURNAL_BLOCK] = "";
		memset(longer, 'x', sizeof(longer) - 1);
		append(j, longer);
		free(s.database);
		journal_close(j);
		memcpy(m->bytes + LOG_AT(5) + sector * 512, old, 512);
		assert_int_equal(reads(m, "base12345"), JOURNAL_WHOLE);
		j = open_journal(m, &s);
		assert_int_equal(info_of(j).torn, sector ? JOURNAL_BLOCK : 0);
		append(j, "6");
		free(s.database);
		journal_close(j);
		assert_int_equal(reads(m, "base123456"), JOURNAL_WHOLE);
		medium_free(m);
	}
}

static void damage_in_the_middle_is_told_and_left_alone(void **state)
{
	static const char *const proven[] = {"base", "base1", "base12", "base123"};

	for (unsigned i = 0; i < ARRAY_SIZE(proven); i++) {
		struct medium *m = medium_filled();
		m->bytes[LOG_AT(i) + 70] ^= 1;
		assert_int_equal(reads(m, proven[i]), JOURNAL_DAMAGED);
		struct state s;
		struct journal *j = open_journal(m, &s);
		struct journal_info info = info_of(j);
		char words[64];
		snprintf(words, sizeof(words), "record %u, at %llu, is broken, and record", 4 + i,
			 (unsigned long long)LOG_AT(i));
		assert_non_null(strstr(info.damage, words));
		unsigned writes = m->writes;
		fails(journal_append(j, &(struct journal_item){JOURNAL_DATABASE, "x", 1}, 1, 1), EROFS, "damaged");
		fails(journal_snapshot(j, NULL, 0), EROFS, info.damage);
		assert_int_equal(m->writes, writes);
		/* A person says that the loss is accepted. */
		journal_accept_loss(j);
		snapshot(j, "mended");
		append(j, ".");
		assert_int_equal(info_of(j).state, JOURNAL_WHOLE);
		free(s.database);
		journal_close(j);
		assert_int_equal(reads(m, "mended."), JOURNAL_WHOLE);
		medium_free(m);
	}
}

static void an_unreadable_block_is_damage(void **state)
{
	struct medium *m = medium_filled();

	m->bad_block = LOG_AT(2);
	assert_int_equal(reads(m, "base12"), JOURNAL_DAMAGED);
	m->bad_block = LOG_AT(6);
	assert_int_equal(reads(m, "base12345"), JOURNAL_WHOLE);
	medium_free(m);
}

static void one_broken_header_loses_nothing(void **state)
{
	for (unsigned slot = 0; slot < 2; slot++) {
		struct medium *m = medium_filled();
		struct state s;
		m->bytes[JOURNAL_SLOT(slot) + 100] ^= 0x40;
		assert_int_equal(reads(m, "base12345"), JOURNAL_WHOLE);
		struct journal *j = open_journal(m, &s);
		append(j, "6");
		free(s.database);
		journal_close(j);
		assert_int_equal(reads(m, "base123456"), JOURNAL_WHOLE);
		m->bytes[JOURNAL_SLOT(1 - slot) + 100] ^= 0x40;
		/* The header of the newer state was put right by the append; if it was the other, both are broken now.
		 */
		assert_int_equal(reads(m, "base123456"), slot ? JOURNAL_DAMAGED : JOURNAL_WHOLE);
		medium_free(m);
	}
}

static void a_broken_snapshot_leaves_the_older_state(void **state)
{
	struct medium *m = medium_filled();
	struct state s;

	m->bytes[JOURNAL_AREA_0 + AREA + 80] ^= 1;
	assert_int_equal(reads(m, "oldolder"), JOURNAL_DAMAGED);
	struct journal *j = open_journal(m, &s);
	assert_non_null(strstr(info_of(j).damage, "the snapshot of generation 2, at"));
	journal_accept_loss(j);
	snapshot(j, "mended");
	free(s.database);
	journal_close(j);
	assert_int_equal(reads(m, "mended"), JOURNAL_WHOLE);
	medium_free(m);
}

/* One bit of what matters: never anything else than a proven beginning of what was written. */
static void any_flipped_bit(void **state)
{
	struct medium *m = medium_filled();
	const uint64_t blocks[] = {JOURNAL_SLOT(0), JOURNAL_SLOT(1), JOURNAL_AREA_0, JOURNAL_AREA_0 + AREA,
				   LOG_AT(0),       LOG_AT(3),       LOG_AT(4)};
	unsigned told = 0;

	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		for (unsigned byte = 0; byte < 104; byte++) {
			uint8_t *at = m->bytes + blocks[i] + byte;
			struct state s = {};
			struct journal *j = NULL;
			*at ^= (uint8_t)(1u << byte % 8);
			ok(journal_open(&j, &m->io, us, take, &s));
			bool last = i == ARRAY_SIZE(blocks) - 1, whole = info_of(j).state == JOURNAL_WHOLE;
			const char *words = s.database ? (char *)s.database : "";
			if (whole && !last)
				assert_string_equal(words, "base12345");
			if (whole && last)
				assert_true(strcmp(words, "base1234") == 0 || strcmp(words, "base12345") == 0);
			if (!whole)
				assert_true(strncmp("base12345", words, strlen(words)) == 0 ||
					    strcmp(words, "oldolder") == 0);
			told += !whole;
			free(s.database);
			journal_close(j);
			*at ^= (uint8_t)(1u << byte % 8);
		}
	}
	assert_true(told > 100);
	assert_int_equal(reads(m, "base12345"), JOURNAL_WHOLE);
	medium_free(m);
}

static void what_is_foreign_is_not_touched(void **state)
{
	struct medium *m = medium_new();
	struct state s = {};
	struct journal *j;

	memcpy(m->bytes + JOURNAL_SLOT(0) + 1080, "\x53\xef", 2);
	fails(journal_open(&j, &m->io, us, take, &s), EMEDIUMTYPE, "there is no journal of Glint on it");
	memset(m->bytes, 0, 4096);
	memset(m->bytes + JOURNAL_AREA_0, 7, 4096);
	fails(journal_open(&j, &m->io, us, take, &s), EMEDIUMTYPE, "no journal");
	m->io.size = MIB;
	fails(journal_open(&j, &m->io, us, take, &s), EINVAL, "too few");
	assert_int_equal(m->writes, 0);
	medium_free(m);
}

static void what_is_newer_is_refused(void **state)
{
	struct medium *m = medium_filled();
	struct state s = {};
	struct journal *j;
	struct journal_header *h = (struct journal_header *)(m->bytes + JOURNAL_SLOT(0));

	h->version = 2;
	h->checksum = 0;
	h->checksum = crc32c(0, h, sizeof(*h));
	fails(journal_open(&j, &m->io, us, take, &s), EPROTONOSUPPORT, "version 2");
	medium_free(m);

	m = medium_filled();
	struct journal_record *r = (struct journal_record *)(m->bytes + LOG_AT(1));
	((struct journal_item_head *)(r + 1))->kind = 99;
	r->checksum = 0;
	r->checksum = crc32c(crc32c(0, r, sizeof(*r)), r + 1, r->length);
	fails(journal_open(&j, &m->io, us, take, &s), EPROTONOSUPPORT, "item of kind 99");
	((struct journal_item_head *)(r + 1))->length = 0xfffffff9;
	r->checksum = 0;
	r->checksum = crc32c(crc32c(0, r, sizeof(*r)), r + 1, r->length);
	fails(journal_open(&j, &m->io, us, take, &s), EBADMSG, "ends in an item");
	free(s.database);
	medium_free(m);
}

static void a_header_of_another_size_is_another_mediums(void **state)
{
	struct medium *m = medium_filled();

	m->io.size -= MIB;
	/* Its areas would lie elsewhere: what is found there is not taken for whole. */
	struct state s = {};
	struct journal *j = NULL;
	struct error *err = journal_open(&j, &m->io, us, take, &s);
	if (!err)
		assert_int_equal(info_of(j).state, JOURNAL_DAMAGED);
	error_free(err);
	free(s.database);
	journal_close(j);
	medium_free(m);
}

/* What it costs, snapshots included, with a small state and with the largest (F14: 16 KiB a change). */
static void a_change_costs_little(void **state)
{
	for (unsigned large = 0; large < 2; large++) {
		struct medium *m = medium_new();
		struct state s;
		struct journal *j = open_journal(m, &s);
		struct journal_item base = {JOURNAL_DATABASE, calloc(1, AREA),
					    large ? AREA / 2 - 8 * JOURNAL_BLOCK : 8000};
		char change[1500] = "";
		unsigned snapshots = 0, changes = 5000;
		memset(change, 'c', sizeof(change) - 1);
		ok(journal_snapshot(j, &base, 1));
		uint64_t before = info_of(j).written;
		for (unsigned i = 0; i < changes; i++) {
			if (!journal_fits(j, sizeof(change) - 1, 1)) {
				ok(journal_snapshot(j, &base, 1));
				snapshots++;
			} else {
				append(j, change);
			}
		}
		uint64_t each = (info_of(j).written - before) / changes;
		printf("state of %zu bytes: %llu bytes written per change, %u snapshots in %u changes\n", base.len,
		       (unsigned long long)each, snapshots, changes);
		assert_true(snapshots > 3 && each <= 16384);
		free((void *)(uintptr_t)base.data);
		journal_close(j);
		medium_free(m);
	}
}

static void large_states_come_in_pieces(void **state)
{
	struct medium *m = medium_new();
	struct state s;
	struct journal *j = open_journal(m, &s);
	size_t len = AREA / 2 - 10 * JOURNAL_BLOCK;
	uint8_t *data = malloc(AREA);

	assert_non_null(data);
	for (size_t i = 0; i < AREA; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	struct journal_item items[] = {{JOURNAL_DATABASE, data, len}, {JOURNAL_IDENTITY, "last", 4}};
	ok(journal_snapshot(j, items, 2));
	/* Too much for a stick: refused, and the journal goes on. */
	items[0].len = AREA / 2 + 1;
	fails(journal_snapshot(j, items, 2), EFBIG, "too");
	/* Too much for a record. */
	assert_false(journal_fits(j, MIB + 1, 1));
	append(j, "tail");
	journal_close(j);
	j = open_journal(m, &s);
	assert_int_equal(s.len, len + 4);
	assert_memory_equal(s.database, data, len);
	assert_string_equal(s.identity, "last");
	free(s.database);
	free(data);
	journal_close(j);
	medium_free(m);
}

static void failures_are_told_and_end_it(void **state)
{
	for (unsigned kind = 0; kind < 3; kind++) {
		struct medium *m = medium_filled();
		struct state s;
		struct journal *j = open_journal(m, &s);
		struct journal_item item = text("6");
		free(s.database);
		m->fail_write = kind == 0 ? m->writes + 1 : 0;
		m->fail_flush = kind == 1 ? m->flushes + 1 : 0;
		m->lose_write = kind == 2 ? m->writes + 1 : 0;
		fails(journal_append(j, &item, 1, 1), EIO,
		      (const char *[]){"write to the stick at", "flush the stick", "loses what is written"}[kind]);
		fails(journal_append(j, &item, 1, 1), EIO, "it failed before");
		fails(journal_snapshot(j, &item, 1), EIO, "it failed before");
		journal_close(j);
		assert_int_equal(reads(m, kind == 1 ? "base123456" : "base12345"), JOURNAL_WHOLE);
		medium_free(m);
	}
}

/* A snapshot that fails at any of its steps leaves the old state, or the new one. */
static void a_snapshot_that_fails(void **state)
{
	for (unsigned step = 1; step <= 4; step++) {
		struct medium *m = medium_filled();
		struct state s;
		struct journal *j = open_journal(m, &s);
		struct journal_item item = text("new");
		free(s.database);
		m->fail_write = step <= 2 ? m->writes + step : 0;
		m->fail_flush = step > 2 ? m->flushes + step - 2 : 0;
		fails(journal_snapshot(j, &item, 1), EIO, "write a snapshot");
		journal_close(j);
		assert_int_equal(reads(m, step == 1 ? "base12345" : "new"), JOURNAL_WHOLE);
		medium_free(m);
	}
}

static void the_writers_mark_is_seen(void **state)
{
	struct medium *m = medium_filled();
	struct state s = {};
	struct journal *j;

	ok(journal_open(&j, &m->io, them, take, &s));
	assert_memory_equal(info_of(j).writer, us, 16);
	append(j, "6");
	assert_memory_equal(info_of(j).writer, them, 16);
	journal_close(j);
	free(s.database);
	j = open_journal(m, &s);
	assert_memory_equal(info_of(j).writer, them, 16);
	free(s.database);
	journal_close(j);
	medium_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_written_comes_back),
		cmocka_unit_test(each_write_is_one_block_and_one_flush),
		cmocka_unit_test(a_torn_end_is_dropped),
		cmocka_unit_test(damage_in_the_middle_is_told_and_left_alone),
		cmocka_unit_test(an_unreadable_block_is_damage),
		cmocka_unit_test(one_broken_header_loses_nothing),
		cmocka_unit_test(a_broken_snapshot_leaves_the_older_state),
		cmocka_unit_test(any_flipped_bit),
		cmocka_unit_test(what_is_foreign_is_not_touched),
		cmocka_unit_test(what_is_newer_is_refused),
		cmocka_unit_test(a_header_of_another_size_is_another_mediums),
		cmocka_unit_test(a_change_costs_little),
		cmocka_unit_test(large_states_come_in_pieces),
		cmocka_unit_test(failures_are_told_and_end_it),
		cmocka_unit_test(a_snapshot_that_fails),
		cmocka_unit_test(the_writers_mark_is_seen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
