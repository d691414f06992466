/*
 * What a stick's table, file system and guests are made of: they come back as they were written, a cut at any write
 * leaves the old or the new, and what is hostile is refused. The tools of others look at the same in tests/image.
 */
#include "stick/fat.h"
#include "stick/gpt.h"
#include "stick/guest.h"
#include "stick/loader.h"
#include "stick/slots.h"
#include "stick/uki.h"
#include "stick/version.h"

#include "base/util.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define BYTES (80 * MIB)
#define ESP   (64 * MIB)

/* Memory that power fails of: from the write number @cut on nothing arrives, and half of that one. */
struct memory {
	struct blocks blocks; /* first */
	uint8_t *bytes;
	unsigned writes, cut;
};

static int memory_read(const struct blocks *b, void *data, size_t len, uint64_t offset)
{
	assert_true(range_inside(offset, len, b->size) && len % SECTOR == 0 && offset % SECTOR == 0);
	memcpy(data, ((const struct memory *)b)->bytes + offset, len);
	return 0;
}

static int memory_write(const struct blocks *b, const void *data, size_t len, uint64_t offset)
{
	struct memory *m = (struct memory *)(uintptr_t)b;

	assert_true(range_inside(offset, len, b->size) && len % SECTOR == 0 && offset % SECTOR == 0);
	m->writes++;
	if (m->cut && m->writes > m->cut)
		return -EIO;
	memcpy(m->bytes + offset, data, m->writes == m->cut ? align_down(len / 2, SECTOR) : len);
	return m->writes == m->cut ? -EIO : 0;
}

static int memory_flush(const struct blocks *b)
{
	return 0;
}

static struct memory new_memory(uint64_t size)
{
	uint8_t *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_true(bytes != MAP_FAILED);
	return (struct memory){{memory_read, memory_write, memory_flush, size, "memory"}, bytes, 0, 0};
}

static void free_memory(struct memory *m)
{
	munmap(m->bytes, m->blocks.size);
}

static void good(struct error *err)
{
	if (err)
		print_error("%s\n", error_text(err));
	assert_null(err);
}

static void bad(struct error *err)
{
	assert_non_null(err);
	error_free(err);
}

/* --- the table --- */

static struct gpt two_partitions(void)
{
	return (struct gpt){
		.disk = {{1, 2, 3}},
		.count = 2,
		.partitions = {{.type = gpt_esp, .id = {{4}}, .start = MIB, .len = ESP, .name = "ESP"},
			       {.type = gpt_state, .id = {{5}}, .start = MIB + ESP, .len = MIB, .name = "STATE"}}};
}

static void table_comes_back(void **state)
{
	struct memory m = new_memory(BYTES);
	struct gpt gpt = two_partitions(), back;

	bad(gpt_read(&m.blocks, &back));
	good(gpt_write(&m.blocks, &gpt));
	good(gpt_read(&m.blocks, &back));
	assert_true(gpt_same(&gpt, &back) && !back.from_backup && guid_equal(&back.disk, &gpt.disk));
	assert_int_equal(gpt_room(&back, BYTES, MIB), 2 * MIB + ESP);
	assert_int_equal(gpt_room(&back, BYTES, 100 * MIB), 0);
	assert_int_equal(gpt_size_for(&back, 100 * MIB), 103 * MIB + ESP);
	/* The first header is lost: the last one has all. */
	memset(m.bytes + SECTOR, 0, SECTOR);
	good(gpt_read(&m.blocks, &back));
	assert_true(gpt_same(&gpt, &back) && back.from_backup);
	memset(m.bytes + BYTES - SECTOR, 0, SECTOR);
	bad(gpt_read(&m.blocks, &back));
	free_memory(&m);
}

/* At every write of a change there is the old table or the new one, by the first header: Linux does not use the other
 * one unasked. */
static void table_changes_at_once(void **state)
{
	for (unsigned first = 0; first < 2; first++) {
		bool old_seen = false, new_seen = false;
		for (unsigned cut = 1;; cut++) {
			struct memory m = new_memory(BYTES);
			struct gpt old = two_partitions(), changed, back;
			good(gpt_write(&m.blocks, &old));
			/* Also when the list is at its other place. */
			if (first)
				good(gpt_write(&m.blocks, &old));
			changed = old;
			changed.partitions[changed.count++] =
				(struct gpt_partition){.type = gpt_guest, .start = 70 * MIB, .len = MIB, .name = "web"};
			struct gpt wanted = changed;
			m.writes = 0;
			m.cut = cut;
			struct error *err = gpt_write(&m.blocks, &changed);
			unsigned writes = m.writes;
			error_free(err);
			good(gpt_read(&m.blocks, &back));
			assert_false(back.from_backup);
			assert_true(gpt_same(&back, &old) || gpt_same(&back, &wanted));
			old_seen = old_seen || gpt_same(&back, &old);
			new_seen = new_seen || gpt_same(&back, &wanted);
			free_memory(&m);
			if (writes < cut)
				break;
		}
		assert_true(old_seen && new_seen);
	}
}

/* A device is no stick until its last sector is written. */
static void half_a_table_is_none(void **state)
{
	for (unsigned cut = 1; cut <= 5; cut++) {
		struct memory m = new_memory(BYTES);
		struct gpt gpt = two_partitions(), back;
		m.cut = cut;
		bad(gpt_write(&m.blocks, &gpt));
		bad(gpt_read(&m.blocks, &back));
		free_memory(&m);
	}
}

static void hostile_tables_are_refused(void **state)
{
	static const struct {
		uint64_t start, len;
	} wrong[] = {{MIB, ESP}, {MIB + ESP / 2, MIB}, {BYTES - MIB, 2 * MIB}, {BYTES, MIB}, {(uint64_t)1 << 62, MIB}};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		struct memory m = new_memory(BYTES);
		struct gpt gpt = two_partitions(), back;
		gpt.partitions[1].start = wrong[i].start;
		gpt.partitions[1].len = wrong[i].len;
		good(gpt_write(&m.blocks, &gpt));
		bad(gpt_read(&m.blocks, &back));
		free_memory(&m);
	}
}

/* --- the file system --- */

static struct error *count_entry(void *arg, const struct fat_entry *e)
{
	++*(unsigned *)arg;
	return NULL;
}

static void expect_file(struct fat *fat, const char *path, const void *data, size_t len)
{
	char *back;
	size_t n;

	good(fat_read(fat, path, 8 * MIB, &back, &n));
	assert_int_equal(n, len);
	assert_memory_equal(back, data, len);
	assert_int_equal(back[n], 0);
	free(back);
}

static struct fat *new_fat(struct memory *m)
{
	struct fat *fat;

	good(fat_format(&fat, &m->blocks, MIB, ESP, 1, 1000000000));
	good(fat_make_folder(fat, "EFI"));
	good(fat_make_folder(fat, "EFI/Linux"));
	return fat;
}

static void files_come_back(void **state)
{
	struct memory m = new_memory(BYTES);
	struct fat *fat = new_fat(&m);
	uint8_t *large = malloc(3 * MIB + 7);
	char path[300], *back;
	unsigned count = 0;
	size_t n;

	for (size_t i = 0; i < 3 * MIB + 7; i++)
		large[i] = (uint8_t)(i * 7 + i / 512);
	uint64_t free_before = fat_free(fat);
	good(fat_put(fat, "EFI/Linux/glint_0.1.0+3-0.efi", large, 3 * MIB + 7));
	good(fat_put(fat, "EFI/empty", "", 0));
	/* More names than one cluster of the folder has room for, and aliases that are alike. */
	for (unsigned i = 0; i < 100; i++) {
		snprintf(path, sizeof(path), "EFI/Linux/a long name of a file %u.text", i);
		good(fat_put(fat, path, path, strlen(path)));
	}
	fat_close(fat);
	good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
	expect_file(fat, "efi/LINUX/Glint_0.1.0+3-0.EFI", large, 3 * MIB + 7);
	expect_file(fat, "EFI/empty", "", 0);
	for (unsigned i = 0; i < 100; i++) {
		snprintf(path, sizeof(path), "EFI/Linux/a long name of a file %u.text", i);
		expect_file(fat, path, path, strlen(path));
	}
	good(fat_list(fat, "EFI/Linux", count_entry, &count));
	assert_int_equal(count, 101);
	bad(fat_read(fat, "EFI/none", 10, &back, &n));
	bad(fat_read(fat, "EFI/Linux", 10, &back, &n));
	bad(fat_read(fat, "EFI/Linux/glint_0.1.0+3-0.efi", 3 * MIB, &back, &n));
	/* In the place of another; what is given back is free again. */
	good(fat_put(fat, "EFI/Linux/glint_0.1.0+3-0.efi", "short", 5));
	expect_file(fat, "EFI/Linux/glint_0.1.0+3-0.efi", "short", 5);
	assert_true(fat_free(fat) > free_before - MIB);
	bad(fat_put(fat, "EFI/huge", m.bytes, ESP));
	fat_close(fat);
	free(large);
	free_memory(&m);
}

/* At every write of a replacement the file is the old one or the new one. */
static void a_file_changes_at_once(void **state)
{
	char old[5000], new[9000], *back;
	bool old_seen = false, new_seen = false;
	size_t n;

	memset(old, 'o', sizeof(old));
	memset(new, 'n', sizeof(new));
	for (unsigned cut = 1;; cut++) {
		struct memory m = new_memory(BYTES);
		struct fat *fat = new_fat(&m);
		good(fat_put(fat, "EFI/host.toml", old, sizeof(old)));
		m.writes = 0;
		m.cut = cut;
		error_free(fat_put(fat, "EFI/host.toml", new, sizeof(new)));
		unsigned writes = m.writes;
		fat_close(fat);
		good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
		good(fat_read(fat, "EFI/host.toml", MIB, &back, &n));
		bool is_old = n == sizeof(old) && memcmp(back, old, n) == 0;
		bool is_new = n == sizeof(new) && memcmp(back, new, n) == 0;
		assert_true(is_old || is_new);
		old_seen = old_seen || is_old;
		new_seen = new_seen || is_new;
		free(back);
		fat_close(fat);
		free_memory(&m);
		if (writes < cut)
			break;
	}
	assert_true(old_seen && new_seen);
}

/* Every field of the first sector, and every entry of the table and of the first folder, as another may have it. */
static void hostile_file_systems_end(void **state)
{
	static const uint32_t values[] = {0, 1, 2, 3, 0x0ffffff7, 0x0fffffff, 0xffffffff};
	struct memory m = new_memory(BYTES);
	struct fat *fat = new_fat(&m);
	uint64_t root = 0;

	good(fat_put(fat, "EFI/Linux/glint_0.1.0+3-0.efi", "contents", 8));
	fat_close(fat);
	for (uint64_t at = MIB; at < MIB + ESP && !root; at += SECTOR)
		if (memcmp(m.bytes + at, "GLINT      \x08", 12) == 0)
			root = at;
	assert_true(root);
	for (unsigned part = 0; part < 3; part++) {
		uint8_t *from = m.bytes + (part == 0 ? MIB : part == 1 ? MIB + 32 * (uint64_t)SECTOR : root);
		for (unsigned i = 0; i < (part == 0 ? 90u : 96u); i++) {
			for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
				uint8_t kept[4];
				char *back = NULL;
				unsigned count = 0;
				size_t n;
				memcpy(kept, from + i, 4);
				memcpy(from + i, &values[v], 4);
				struct error *err = fat_open(&fat, &m.blocks, MIB, ESP, 0);
				if (!err) {
					error_free(fat_list(fat, "EFI/Linux", count_entry, &count));
					error_free(fat_read(fat, "EFI/Linux/glint_0.1.0+3-0.efi", MIB, &back, &n));
					fat_close(fat);
				}
				error_free(err);
				free(back);
				memcpy(from + i, kept, 4);
			}
		}
	}
	free_memory(&m);
}

/* --- slots --- */

#define SLOT "glint_0.1.0+3-0.efi"

static uint8_t *find_entry(struct memory *m, const char name[11])
{
	for (uint64_t at = MIB; at < MIB + ESP; at += 32)
		if (memcmp(m->bytes + at, name, 11) == 0)
			return m->bytes + at;
	fail();
	return NULL;
}

/*
 * EFI/Linux with @files files before the slot. Where another system wrote it, the slot's two parts of a long name and
 * its short one lie right behind them: with 13 the second part is in another sector, with 14 the short one.
 */
static struct memory with_slot(unsigned files)
{
	struct memory m = new_memory(BYTES);
	struct fat *fat = new_fat(&m);
	char path[32];

	for (unsigned i = 0; i < files; i++) {
		snprintf(path, sizeof(path), "EFI/Linux/F%u", i);
		good(fat_put(fat, path, path, strlen(path)));
	}
	good(fat_put(fat, "EFI/Linux/" SLOT, "kernel", 6));
	fat_close(fat);
	if (files < 12)
		return m;
	uint8_t *old = find_entry(&m, "F0         ") - 2 * (size_t)32,
		*new = find_entry(&m, "GLINT_~1EFI") - 2 * (size_t)32;
	uint8_t parts[3 * 32];
	assert_true((new - m.bytes) % SECTOR == 0);
	memcpy(parts, new, sizeof(parts));
	memset(new, 0, sizeof(parts));
	for (unsigned i = 0; i < 3; i++) {
		unsigned at = files + 2 + i;
		memcpy(at < 16 ? old + (size_t)at * 32 : new + (size_t)(at - 16) * 32, parts + (size_t)i * 32, 32);
	}
	return m;
}

static void count_slots(struct memory *m, struct slots *slots, unsigned files)
{
	struct fat *fat;
	unsigned count = 0;

	good(fat_open(&fat, &m->blocks, MIB, ESP, 0));
	good(fat_list(fat, "EFI/Linux", count_entry, &count));
	good(slots_list(fat, slots));
	assert_int_equal(count, files + slots->count);
	for (unsigned i = 0; i < slots->count; i++) {
		char path[300];
		snprintf(path, sizeof(path), "EFI/Linux/%s", slots->list[i].file);
		expect_file(fat, path, "kernel", 6);
	}
	fat_close(fat);
}

/* At every write there is the slot, once, by one of its names; the short one only where it cannot be otherwise. */
static void a_slot_is_blessed_at_once(void **state)
{
	static const unsigned before[] = {0, 5, 13, 14};

	for (size_t i = 0; i < ARRAY_SIZE(before); i++) {
		bool old_seen = false, new_seen = false, short_seen = false;
		for (unsigned cut = 1;; cut++) {
			struct memory m = with_slot(before[i]);
			struct slots slots;
			struct fat *fat;
			count_slots(&m, &slots, before[i]);
			assert_int_equal(slots.count, 1);
			assert_true(slots.list[0].trial && slots.list[0].left == 3 && slots.list[0].size == 6);
			good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
			m.writes = 0;
			m.cut = cut;
			struct error *err = slots_bless(fat, &slots.list[0]);
			unsigned writes = m.writes;
			fat_close(fat);
			count_slots(&m, &slots, before[i]);
			assert_int_equal(slots.count, 1);
			old_seen = old_seen || strcmp(slots.list[0].file, SLOT) == 0;
			new_seen = new_seen || strcmp(slots.list[0].file, "glint_0.1.0.efi") == 0;
			short_seen = short_seen || strcmp(slots.list[0].file, "GLINT_~1.EFI") == 0;
			assert_true(err ? writes >= cut
					: !slots.list[0].trial && strcmp(slots.list[0].version, "0.1.0") == 0);
			error_free(err);
			free_memory(&m);
			if (writes < cut) {
				assert_int_equal(writes, before[i] == 13 ? 3 : 1);
				break;
			}
		}
		assert_true(old_seen && new_seen && short_seen == (before[i] == 13));
	}
}

static void a_file_goes_at_once(void **state)
{
	static const unsigned before[] = {0, 13, 14};

	for (size_t i = 0; i < ARRAY_SIZE(before); i++) {
		for (unsigned cut = 1;; cut++) {
			struct memory m = with_slot(before[i]);
			struct slots slots;
			struct fat *fat;
			count_slots(&m, &slots, before[i]);
			good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
			uint64_t room = fat_free(fat);
			m.writes = 0;
			m.cut = cut;
			struct error *err = slots_remove(fat, &slots.list[0]);
			unsigned writes = m.writes;
			assert_true(err || fat_free(fat) == room + SECTOR);
			fat_close(fat);
			count_slots(&m, &slots, before[i]);
			assert_true(err || slots.count == 0);
			error_free(err);
			free_memory(&m);
			if (writes < cut)
				break;
		}
	}
}

/* What lies behind a folder's end is nobody's, and stays unseen. */
static void what_is_behind_the_end_stays_there(void **state)
{
	for (unsigned files = 0; files < 15; files += 2) {
		for (unsigned cut = 1;; cut++) {
			struct memory m = with_slot(0);
			struct slots slots;
			struct fat *fat;
			char path[32];
			bool over = true;
			good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
			for (unsigned i = 0; i < files; i++) {
				snprintf(path, sizeof(path), "EFI/Linux/F%u", i);
				good(fat_put(fat, path, path, strlen(path)));
			}
			uint8_t *end = find_entry(&m, "GLINT_~1EFI") + 32;
			while ((end - m.bytes) % SECTOR && *end)
				end += 32;
			if ((end - m.bytes) % SECTOR)
				end += 32;
			for (; (end - m.bytes) % SECTOR; end += 32)
				memcpy(end, "GARBAGE ABC ", 12);
			m.writes = 0;
			m.cut = cut;
			struct error *err = fat_put(fat, "EFI/Linux/glint_0.2+3-0.efi", "kernel", 6);
			over = m.writes < cut;
			fat_close(fat);
			count_slots(&m, &slots, files);
			assert_true(slots.count == 2 || (err && slots.count == 1));
			error_free(err);
			free_memory(&m);
			if (over)
				break;
		}
	}
}

static void what_reads_otherwise_gets_no_name(void **state)
{
	struct memory m = with_slot(0);
	uint8_t *large = calloc(1, 2 * MIB + 100);
	struct fat_chain chain;
	struct slots slots;
	struct fat *fat;

	memset(large, 0x5a, 2 * MIB + 100);
	good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
	uint64_t room = fat_free(fat);
	good(fat_write(fat, large, 2 * MIB + 100, &chain));
	good(fat_compare(fat, &chain));
	uint8_t *last = m.bytes + BYTES;
	while (*--last != 0x5a)
		;
	*last ^= 1;
	bad(fat_compare(fat, &chain));
	*last ^= 1;
	fat_close(fat);
	/* Nobody knows of it. */
	count_slots(&m, &slots, 0);
	good(fat_open(&fat, &m.blocks, MIB, ESP, 0));
	assert_int_equal(fat_free(fat), room);
	good(fat_write(fat, large, 2 * MIB + 100, &chain));
	bad(fat_name(fat, "EFI/Nothing/here", &chain));
	assert_int_equal(fat_free(fat), room);
	fat_close(fat);
	free(large);
	free_memory(&m);
}

static void names_say_what_slots_are(void **state)
{
	struct slots slots = {.count = 4};
	struct slot s = {};
	static const char *const others[] = {"glint_.efi",
					     "glint_1.2+.efi",
					     "glint_1+1-.efi",
					     "glint_1+1-2-3.efi",
					     "glint_a b.efi",
					     "glint_1+1234-0.efi",
					     "linux.efi",
					     "glint_1.2",
					     "glint_1_2.efi",
					     "glint_+1-0.efi",
					     "glint_123456789012345678901234567890123.efi"};

	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		assert_false(slot_parse(others[i], &s));
	assert_true(slot_parse("GLINT_1.2~rc1+12.EFI", &s) && s.trial && s.left == 12 &&
		    strcmp(s.version, "1.2~rc1") == 0);
	assert_true(slot_parse("glint_1.efi", &slots.list[0]) && slot_parse("glint_2+2-1.efi", &slots.list[1]));
	assert_true(slot_parse("glint_3+0-3.efi", &slots.list[2]) && slot_parse("glint_1~1.efi", &slots.list[3]));
	assert_ptr_equal(slots_best(&slots), &slots.list[0]);
	assert_ptr_equal(slots_named(&slots, "\\EFI\\Linux\\glint_2+3-0.efi"), &slots.list[1]);
	assert_null(slots_named(&slots, "\\EFI\\Linux\\glint_22+3-0.efi"));
	assert_null(slots_named(&slots, ""));
	slots.list[0].trial = slots.list[3].trial = true;
	assert_ptr_equal(slots_best(&slots), &slots.list[1]);
	slots.list[1].left = 0;
	assert_ptr_equal(slots_best(&slots), &slots.list[2]);
	slots.count = 0;
	assert_null(slots_best(&slots));
}

static void versions_have_an_order(void **state)
{
	/* From the specification's own examples, and ours: each older than the next. */
	static const char *const order[] = {"~1",      "",         "0.1~rc1", "0.1~rc2", "0.1",    "0.1-1",
					    "0.1-2",   "0.1^git1", "0.1.1",   "0.1.2",   "0.1.10", "0.1.10a",
					    "0.1.10b", "0.2",      "0.10",    "1",       "1.0"};

	for (int i = 0; i < (int)ARRAY_SIZE(order); i++)
		for (int k = 0; k < (int)ARRAY_SIZE(order); k++) {
			int c = version_compare(order[i], order[k]);
			if ((c > 0) - (c < 0) != (i > k) - (i < k))
				print_error("%s, %s: %d\n", order[i], order[k], c);
			assert_int_equal((c > 0) - (c < 0), (i > k) - (i < k));
		}
	assert_int_equal(version_compare("1.02", "1.2"), 0);
	assert_true(version_compare("~", "~~") > 0);
}

static void the_loader_is_read(void **state)
{
	char path[] = "/tmp/loader.XXXXXX", text[16];
	static const uint8_t bytes[] = {6, 0, 0, 0, 'a', 0, 0xe4, 0, 'b', 0x20, '\\', 0, 0, 0};
	int fd = mkstemp(path);

	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	assert_true(loader_text(path, text, sizeof(text)));
	assert_string_equal(text, "a??\\");
	assert_false(loader_text(path, text, 4));
	assert_false(loader_partition(path, (char[LOADER_UUID + 1]){}));
	assert_int_equal(ftruncate(fd, 5), 0);
	assert_false(loader_text(path, text, sizeof(text)));
	close(fd);
	unlink(path);
	assert_false(loader_text(path, text, sizeof(text)));
}

static void the_loaders_list_is_counted(void **state)
{
	static const char list[] = "glint_1.efi\0glint_\0glint\0other\0\0GLINT_2+0-1.efi\0aglint_3\0gglint_\0glint_4";
	char path[] = "/tmp/loader.XXXXXX";
	uint8_t bytes[4 + 2 * sizeof(list)] = {6};
	int fd = mkstemp(path);

	for (size_t i = 0; i < sizeof(list); i++)
		bytes[4 + 2 * i] = (uint8_t)list[i];
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	assert_int_equal(loader_entries(path, "glint_"), 4);
	assert_int_equal(loader_entries(path, "none"), 0);
	assert_int_equal(ftruncate(fd, 4 + 2 * 6 + 1), 0);
	assert_int_equal(loader_entries(path, "glint_"), 1);
	assert_int_equal(ftruncate(fd, 4 + 2 * 6 - 1), 0);
	assert_int_equal(loader_entries(path, "glint_"), 0);
	close(fd);
	unlink(path);
	assert_int_equal(loader_entries(path, "glint_"), 0);
}

/* --- guests, UKIs --- */

static void guests_come_back(void **state)
{
	struct guest guest = {.name = "web-1", .memory = GIB, .cpus = 2, .autostart = true, .image = 4 * MIB}, back;
	uint8_t tail[GUEST_TAIL];

	guest_write(&guest, tail);
	good(guest_read(&back, tail, 5 * MIB, "it"));
	assert_string_equal(back.name, "web-1");
	assert_true(back.memory == GIB && back.cpus == 2 && back.autostart && !back.persist && back.image == 4 * MIB);
	bad(guest_read(&back, tail, 4 * MIB, "it"));
	bad(guest_read(&back, tail, 100, "it"));
	for (unsigned i = 0; i < 128; i++) {
		tail[i] ^= 0x10;
		bad(guest_read(&back, tail, 5 * MIB, "it"));
		tail[i] ^= 0x10;
	}
	/* With a right checksum, too. */
	struct guest wrong[] = {guest, guest, guest, guest};
	wrong[0].cpus = 0;
	wrong[1].memory = 12345;
	wrong[2].image = UINT64_MAX;
	strcpy(wrong[3].name, "../x");
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		guest_write(&wrong[i], tail);
		bad(guest_read(&back, tail, 5 * MIB, "it"));
	}
	assert_false(guest_name_good("") || guest_name_good("-a") || guest_name_good("a/b") || guest_name_good("a.b") ||
		     guest_name_good("a2345678901234567890123456789012345"));
}

static void not_a_uki(void **state)
{
	char version[UKI_VERSION_MAX + 1];
	uint8_t pe[512] = {'M', 'Z', [0x3c] = 0x40, [0x40] = 'P', 'E', [0x46] = 2};
	static const char osrel[] = "ID=glint\nVERSION_ID=\"1.2\"\n";

	bad(uki_version("", 0, "it", version));
	bad(uki_version(pe, sizeof(pe), "it", version));
	memcpy(pe + 0x58, ".osrel", 6);
	pe[0x58 + 8] = sizeof(osrel) - 1;
	pe[0x58 + 17] = pe[0x58 + 21] = 1; /* 256 bytes at 256 */
	memcpy(pe + 256, osrel, sizeof(osrel) - 1);
	bad(uki_version(pe, sizeof(pe), "it", version));
	memcpy(pe + 0x80, ".linux", 6);
	good(uki_version(pe, sizeof(pe), "it", version));
	assert_string_equal(version, "1.2");
	for (size_t len = 0; len < 0x80 + 40; len++)
		bad(uki_version(pe, len, "it", version));
	/* A section that lies elsewhere; a version that leads out of the folder. */
	pe[0x58 + 23] = 0x7f;
	bad(uki_version(pe, sizeof(pe), "it", version));
	pe[0x58 + 23] = 0;
	memcpy(pe + 256 + 21, "../", 3);
	bad(uki_version(pe, sizeof(pe), "it", version));
	struct release release;
	static const char level[] = "VERSION_ID=1\nGLINT_SECURITY=12\nX=",
			  wrong[] = "VERSION_ID=1\nGLINT_SECURITY=-1\n";
	good(release_read(level, sizeof(level) - 1, "it", &release));
	assert_int_equal(release.security, 12);
	good(release_read("VERSION_ID=1", 12, "it", &release));
	assert_int_equal(release.security, 0);
	bad(release_read(wrong, sizeof(wrong) - 1, "it", &release));
	bad(release_read("VERSION_ID=", 11, "it", &release));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_comes_back),
		cmocka_unit_test(table_changes_at_once),
		cmocka_unit_test(half_a_table_is_none),
		cmocka_unit_test(hostile_tables_are_refused),
		cmocka_unit_test(files_come_back),
		cmocka_unit_test(a_file_changes_at_once),
		cmocka_unit_test(hostile_file_systems_end),
		cmocka_unit_test(a_slot_is_blessed_at_once),
		cmocka_unit_test(a_file_goes_at_once),
		cmocka_unit_test(what_is_behind_the_end_stays_there),
		cmocka_unit_test(what_reads_otherwise_gets_no_name),
		cmocka_unit_test(names_say_what_slots_are),
		cmocka_unit_test(versions_have_an_order),
		cmocka_unit_test(the_loader_is_read),
		cmocka_unit_test(the_loaders_list_is_counted),
		cmocka_unit_test(guests_come_back),
		cmocka_unit_test(not_a_uki),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
