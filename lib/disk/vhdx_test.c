/* VHDX: random requests beside a model, through reopening, crashes and failures; chains; damaged files. */
#include "disk/test_disk.h"

#include "disk/ring.h"
#include "disk/vhdx.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/stat.h>

#define SIZE (24 * MIB + 4096)

/* Images lie in a folder of their own, for chains need names. */
struct bench {
	char folder[32];
	int dir_fd;
	struct opener_dir opener;
	struct test_io io;
	struct disk *disk;
	struct test_queue q;
	uint8_t *model, *buf;
};

static int open_file(struct bench *b, const char *name, int flags)
{
	int fd = openat(b->dir_fd, name, flags | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

static void setup(struct bench *b)
{
	*b = (struct bench){.folder = "vhdx-test.XXXXXX"};
	assert_non_null(mkdtemp(b->folder));
	b->dir_fd = open(b->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	opener_dir_init(&b->opener, b->dir_fd);
	b->io = test_io();
	b->model = calloc(1, SIZE * 2);
	b->buf = malloc(SIZE * 2);
}

static void teardown(struct bench *b)
{
	DIR *dir = fdopendir(b->dir_fd);

	disk_close(b->disk);
	for (struct dirent *e; (e = readdir(dir));)
		unlinkat(dirfd(dir), e->d_name, 0);
	closedir(dir);
	rmdir(b->folder);
	free(b->model);
	free(b->buf);
}

static struct error *try_open(struct bench *b, const char *name, bool readonly)
{
	struct disk_options options = {
		.name = name, .format = "vhdx", .readonly = readonly, .opener = &b->opener.opener, .io = &b->io.io};
	int fd = open_file(b, name, readonly ? O_RDONLY : O_RDWR);
	struct error *err = disk_open(&b->disk, fd, &options);

	if (err) {
		close(fd);
		b->disk = NULL;
		return err;
	}
	err = disk_activate(b->disk);
	if (err) {
		disk_close(b->disk);
		b->disk = NULL;
		return err;
	}
	test_queue_init(&b->q, b->disk, &b->io.io);
	return NULL;
}

static void take(struct bench *b, const char *name)
{
	assert_no_error(try_open(b, name, false));
}

static void leave(struct bench *b)
{
	assert_no_error(disk_deactivate(b->disk));
	disk_close(b->disk);
	b->disk = NULL;
}

static void crash(struct bench *b)
{
	disk_close(b->disk);
	b->disk = NULL;
}

static void make(struct bench *b, const char *name, struct disk_create create)
{
	int fd = open_file(b, name, O_RDWR | O_CREAT | O_EXCL);

	create.name = name;
	create.format = "vhdx";
	assert_no_error(disk_create(fd, &create));
	close(fd);
}

/* A child of @parent, which is not open. */
static void make_child(struct bench *b, const char *name, const char *parent, struct disk_create create)
{
	struct disk_options options = {.name = parent, .readonly = true, .opener = &b->opener.opener};

	assert_no_error(disk_open(&create.parent, open_file(b, parent, O_RDONLY), &options));
	create.parent_locator = parent;
	make(b, name, create);
	disk_close(create.parent);
}

static void same(struct bench *b)
{
	memset(b->buf, 0xa5, b->disk->image[0]->size);
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->buf, b->disk->image[0]->size, 3), 0);
	assert_memory_equal(b->buf, b->model, b->disk->image[0]->size);
}

static void put(struct bench *b, uint64_t offset, uint64_t len, unsigned char byte)
{
	memset(b->buf, byte, len);
	memset(b->model + offset, byte, len);
	assert_int_equal(test_do(&b->q, DISK_WRITE, offset, b->buf, len, 2), 0);
}

static void flush(struct bench *b)
{
	assert_int_equal(test_do(&b->q, DISK_FLUSH, 0, NULL, 0, 0), 0);
}

/* Some are of whole blocks, most are small and lie anywhere. */
static void change(struct bench *b, uint64_t size, uint32_t sector)
{
	uint64_t len = (uint64_t)(1 + rand() % (rand() % 8 ? 40 : 6000)) * sector;
	uint64_t offset = (uint64_t)rand() % (size / sector) * sector;

	len = MIN(len, size - offset);
	if (rand() % 10 == 0) {
		offset = align_down(offset, 2 * MIB);
		len = MIN(2 * MIB, size - offset);
	}
	switch (rand() % 6) {
	case 0:
		memset(b->model + offset, 0, len);
		assert_int_equal(test_do(&b->q, DISK_WRITE_ZEROES, offset, NULL, len, rand() & 1), 0);
		break;
	case 1:
		assert_int_equal(test_do(&b->q, DISK_READ, offset, b->buf, len, 3), 0);
		assert_memory_equal(b->buf, b->model + offset, len);
		break;
	default:
		for (uint64_t i = 0; i < len; i += 8)
			memcpy(b->buf + i, &(uint64_t){(uint64_t)rand()}, 8);
		memcpy(b->model + offset, b->buf, len);
		assert_int_equal(test_do(&b->q, DISK_WRITE, offset, b->buf, len, 1 + (unsigned)rand() % 4), 0);
		break;
	}
}

/* What a crash keeps is what was flushed: so it comes after a flush. */
static void rounds(struct bench *b, const char *name, unsigned count, uint32_t sector)
{
	for (unsigned round = 0; round < count; round++) {
		take(b, name);
		same(b);
		for (unsigned i = 0; i < 40; i++) {
			change(b, SIZE, sector);
			if (rand() % 5 == 0)
				flush(b);
		}
		if (round % 3 == 2) {
			flush(b);
			crash(b);
		} else {
			leave(b);
		}
	}
	take(b, name);
	same(b);
	leave(b);
}

static void dynamic(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	rounds(&b, "a", 6, 512);
	teardown(&b);
}

static void dynamic_4k(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .sector = 4096});
	b.io.short_bytes = 40960; /* of every transfer */
	rounds(&b, "a", 3, 4096);
	teardown(&b);
}

static void fixed(void **state)
{
	struct bench b;
	struct disk_info info;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = 2 * MIB, .subformat = "fixed"});
	rounds(&b, "a", 2, 512);
	take(&b, "a");
	disk_info(b.disk, 0, &info);
	assert_string_equal(info.subformat, "fixed");
	assert_int_equal(info.block, 2 * MIB);
	leave(&b);
	teardown(&b);
}

static void chain(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	rounds(&b, "a", 2, 512);
	make_child(&b, "b", "a", (struct disk_create){0});
	rounds(&b, "b", 4, 512);
	make_child(&b, "c", "b", (struct disk_create){.block = 32 * MIB});
	rounds(&b, "c", 4, 512);
	take(&b, "c");
	assert_int_equal(disk_depth(b.disk), 3);
	leave(&b);
	teardown(&b);
}

/* Neither looking nor starting and stopping changes a file. */
static void untouched(void **state)
{
	struct bench b;
	struct stat before, after;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE});
	take(&b, "a");
	put(&b, 5 * MIB, 8192, 1);
	leave(&b);
	unsigned writes = b.io.writes, syncs = b.io.syncs;
	int fd = open_file(&b, "a", O_RDONLY);
	assert_int_equal(fstat(fd, &before), 0);
	take(&b, "a");
	same(&b);
	leave(&b);
	assert_int_equal(fstat(fd, &after), 0);
	assert_int_equal(b.io.writes, writes);
	assert_int_equal(b.io.syncs, syncs);
	assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim));
	close(fd);
	teardown(&b);
}

/* A flush of what is in its place is one operation, and so is a write to a block that is there. */
static void frugal(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE});
	take(&b, "a");
	put(&b, 0, 4096, 1);
	flush(&b);
	struct test_io before = b.io;
	put(&b, 4096, 4096, 2);
	assert_int_equal(b.io.writes, before.writes + 1);
	flush(&b);
	assert_int_equal(b.io.syncs, before.syncs + 1);
	assert_int_equal(b.io.writes, before.writes + 1);
	/* A hole in the file is all that a discard makes. */
	assert_int_equal(test_do(&b.q, DISK_DISCARD, 0, NULL, MIB, 0), 0);
	memset(b.model, 0, MIB);
	assert_int_equal(b.io.ranges, before.ranges + 1);
	same(&b);
	leave(&b);
	teardown(&b);
}

/* The log fills up many times over, and is cut off at any point of it. */
static void log_turns(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	make_child(&b, "b", "a", (struct disk_create){.block = MIB});
	for (unsigned round = 0; round < 6; round++) {
		take(&b, "b");
		for (unsigned i = 0; i < 30 + 13 * round; i++) {
			put(&b, (uint64_t)rand() % (SIZE / 512) * 512, 512, (unsigned char)rand());
			flush(&b);
		}
		crash(&b);
		take(&b, "b");
		same(&b);
		leave(&b);
	}
	teardown(&b);
}

/* Each operation in turn fails, for a while; nothing that was there may suffer, and things go on. */
static void failures(void **state)
{
	struct bench b;
	uint8_t before[4096], after[4096];

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	take(&b, "a");
	put(&b, 0, 8 * MIB, 7);
	leave(&b);
	make_child(&b, "b", "a", (struct disk_create){.block = MIB});
	for (int n = 0; n < 40; n++) {
		uint64_t offset = (uint64_t)(n % 24) * MIB + (uint64_t)n * 4096;
		take(&b, "b");
		memcpy(before, b.model + offset, 4096);
		memset(after, n + 1, 4096);
		b.io.fail_after = n % 14;
		b.io.error = n & 1 ? -ENOSPC : -EIO;
		int wrote = test_do(&b.q, DISK_WRITE, offset, after, 4096, 1);
		int flushed = test_do(&b.q, DISK_FLUSH, 0, NULL, 0, 0);
		if (b.io.fail_after == 0)
			assert_true(wrote < 0 || flushed < 0 || n % 14 > 8);
		b.io.fail_after = -1;
		if (wrote == 0)
			memcpy(b.model + offset, after, 4096);
		else if (test_do(&b.q, DISK_READ, offset, b.buf, 4096, 1) == 0 && memcmp(b.buf, after, 4096) == 0)
			memcpy(b.model + offset, after, 4096);
		same(&b);
		put(&b, offset, 512, (unsigned char)(n + 100));
		flush(&b);
		if (n % 2)
			crash(&b);
		else
			leave(&b);
		take(&b, "b");
		same(&b);
		leave(&b);
	}
	teardown(&b);
}

static void growing(void **state)
{
	struct bench b;
	struct disk_info info;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = 8 * MIB, .block = MIB});
	take(&b, "a");
	put(&b, 0, 8 * MIB, 3);
	assert_no_error(disk_resize(b.disk, SIZE));
	same(&b);
	put(&b, 9 * MIB, 10000 * 512, 4);
	same(&b);
	/* More blocks than the table's region has room for. */
	assert_no_error(disk_resize(b.disk, 400 * GIB));
	put(&b, 20 * MIB, 4096, 5);
	crash(&b);
	take(&b, "a");
	disk_info(b.disk, 0, &info);
	assert_int_equal(info.size, 400 * GIB);
	memset(b.model + 20 * MIB, 0, 4096); /* not flushed, and lost */
	assert_int_equal(test_do(&b.q, DISK_READ, 0, b.buf, SIZE, 1), 0);
	assert_memory_equal(b.buf, b.model, 9 * MIB);
	assert_int_equal(test_do(&b.q, DISK_READ, 400 * GIB - 512, b.buf, 512, 1), 0);
	leave(&b);
	teardown(&b);
}

static void largest(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = 64 * TIB});
	take(&b, "a");
	memset(b.buf, 9, 8192);
	assert_int_equal(test_do(&b.q, DISK_WRITE, 64 * TIB - 8192, b.buf, 8192, 1), 0);
	flush(&b);
	crash(&b);
	take(&b, "a");
	assert_int_equal(test_do(&b.q, DISK_READ, 64 * TIB - 8192, b.buf + 8192, 8192, 1), 0);
	assert_memory_equal(b.buf, b.buf + 8192, 8192);
	leave(&b);
	teardown(&b);
}

/* More pages of the map than there are frames: 2 TiB in parts has 128 thousand. */
static void crowded(void **state)
{
	struct bench b;
	uint64_t step = 16 * MIB;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = 2 * TIB, .block = MIB});
	make_child(&b, "b", "a", (struct disk_create){.block = MIB});
	take(&b, "b");
	memset(b.buf, 0, 4096);
	for (uint64_t i = 0; i < 5000; i++) {
		memcpy(b.buf, &i, sizeof(i));
		assert_int_equal(test_do(&b.q, DISK_WRITE, i * step, b.buf, 512, 1), 0);
	}
	flush(&b);
	crash(&b);
	take(&b, "b");
	for (uint64_t i = 0; i < 5000; i++) {
		uint64_t seen;
		assert_int_equal(test_do(&b.q, DISK_READ, i * step, b.buf, 1024, 1), 0);
		memcpy(&seen, b.buf, sizeof(seen));
		assert_int_equal(seen, i);
	}
	leave(&b);
	teardown(&b);
}

/* --- damage --- */

static void damage(struct bench *b, const char *name, uint64_t at, const void *bytes, size_t len)
{
	int fd = open_file(b, name, O_RDWR);

	assert_int_equal(pwrite(fd, bytes, len, (off_t)at), len);
	close(fd);
}

static void damaged(void **state)
{
	struct bench b;
	uint8_t entry[8];
	static const uint8_t junk[64] = {1, 2, 3};

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	take(&b, "a");
	put(&b, 0, 4 * MIB, 3);
	leave(&b);
	/* One header, or one region table: the other serves. */
	damage(&b, "a", VHDX_HEADER_AT(0) + 100, junk, sizeof(junk));
	damage(&b, "a", VHDX_REGIONS_AT(0) + 100, junk, sizeof(junk));
	take(&b, "a");
	same(&b);
	leave(&b);

	/* Entries of the table. */
	static const struct {
		uint64_t entry;
		const char *words;
	} entries[] = {
		{0x600006, "where something else is"}, /* block 1 over block 2 */
		{0x100006, "where something else is"}, /* the log */
		{0x300006, "where something else is"}, /* the table */
		{0x6, "outside the file"},
		{0xffffffffff00006, "outside the file"},
		{5, "a state that it cannot have"},
		{0x900007, "a state that it cannot have"},
	};
	int fd = open_file(&b, "a", O_RDWR);
	uint8_t good[8];
	assert_int_equal(pread(fd, good, 8, 3 * MIB + 8), 8);
	for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
		put64(entry, entries[i].entry);
		assert_int_equal(pwrite(fd, entry, 8, 3 * MIB + 8), 8);
		assert_error(try_open(&b, "a", false), entries[i].words);
	}
	assert_int_equal(pwrite(fd, good, 8, 3 * MIB + 8), 8);
	take(&b, "a");
	same(&b);
	leave(&b);

	assert_int_equal(ftruncate(fd, 5 * MIB), 0);
	assert_error(try_open(&b, "a", false), "outside the file");
	assert_int_equal(ftruncate(fd, 700 * KIB), 0);
	assert_error(try_open(&b, "a", false), "ends within its headers");
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	damage(&b, "a", VHDX_REGIONS_AT(1) + 100, junk, sizeof(junk));
	damage(&b, "a", VHDX_REGIONS_AT(0) + 100, junk, sizeof(junk));
	assert_error(try_open(&b, "a", false), "neither region table");
	damage(&b, "a", VHDX_HEADER_AT(1) + 100, junk, sizeof(junk));
	damage(&b, "a", VHDX_HEADER_AT(0) + 100, junk, sizeof(junk));
	assert_error(try_open(&b, "a", false), "neither header");
	damage(&b, "a", 0, junk, sizeof(junk));
	assert_error(try_open(&b, "a", false), "no VHDX file");
	close(fd);
	teardown(&b);
}

/* The last entry of the log is torn: what was flushed before is there. */
static void torn_log(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	take(&b, "a");
	put(&b, 0, 4096, 1);
	flush(&b);
	put(&b, 5 * MIB, 4096, 2);
	flush(&b);
	/* Read-only, there is nobody to replay it. */
	crash(&b);
	assert_error(try_open(&b, "a", true), "its log cannot be replayed");
	damage(&b, "a", MIB + 3 * 4096 + 1000, "torn", 4);
	memset(b.model + 5 * MIB, 0, 4096);
	take(&b, "a");
	same(&b);
	leave(&b);
	assert_no_error(try_open(&b, "a", true));
	same(&b);
	leave(&b);
	teardown(&b);
}

static void put_zeroes(uint8_t *entry, unsigned n, uint64_t at, uint64_t len)
{
	uint8_t *descriptor = entry + 64 + (size_t)n * 32;

	memset(descriptor, 0, 32);
	put_letters(descriptor, "zero");
	put64(descriptor + 8, len);
	put64(descriptor + 16, at);
	memcpy(descriptor + 24, entry + 16, 8);
}

/* A log, of others, that wants ranges to be zeroes [2.3.1.2]: long ones cost nothing. */
static void zeroes_of_log(void **state)
{
	uint8_t entry[4096];
	struct stat st;
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	take(&b, "a");
	put(&b, 0, MIB, 1);
	leave(&b);
	take(&b, "a");
	put(&b, MIB, 4096, 2);
	flush(&b);
	crash(&b);
	int fd = open_file(&b, "a", O_RDWR);
	assert_int_equal(pread(fd, entry, sizeof(entry), MIB), sizeof(entry));
	put32(entry + 8, sizeof(entry));
	put32(entry + 24, 2);
	put64(entry + 56, GIB);
	put_zeroes(entry, 0, 4 * MIB + 64 * KIB, 64 * KIB);
	put_zeroes(entry, 1, 16 * MIB, GIB - 16 * MIB);
	put32(entry + 4, vhdx_checksum(entry, sizeof(entry)));
	assert_int_equal(pwrite(fd, entry, sizeof(entry), MIB), sizeof(entry));
	memset(b.model + 64 * KIB, 0, 64 * KIB);
	memset(b.model + MIB, 0, 4096);
	take(&b, "a");
	same(&b);
	leave(&b);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, GIB);
	assert_true((uint64_t)st.st_blocks * 512 < 16 * MIB);
	close(fd);
	teardown(&b);
}

static void parents(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	take(&b, "a");
	put(&b, 0, 4 * MIB, 3);
	leave(&b);
	make_child(&b, "b", "a", (struct disk_create){0});
	take(&b, "b");
	/* While a child is used nobody writes to the parent. */
	struct disk *other = b.disk;
	b.disk = NULL;
	assert_error(try_open(&b, "a", false), "another process uses it");
	b.disk = other;
	same(&b);
	leave(&b);
	/* Gone. */
	assert_int_equal(renameat(b.dir_fd, "a", b.dir_fd, "x"), 0);
	assert_error(try_open(&b, "b", false), "No such file");
	/* A chain that bites its tail. */
	assert_int_equal(linkat(b.dir_fd, "b", b.dir_fd, "a", 0), 0);
	assert_error(try_open(&b, "b", false), "comes back");
	assert_int_equal(unlinkat(b.dir_fd, "a", 0), 0);
	/* A link that leads out. */
	assert_int_equal(symlinkat("/etc/passwd", b.dir_fd, "a"), 0);
	assert_error(try_open(&b, "b", false), "open its parent");
	assert_int_equal(unlinkat(b.dir_fd, "a", 0), 0);
	/* Changed. */
	assert_int_equal(renameat(b.dir_fd, "x", b.dir_fd, "a"), 0);
	take(&b, "a");
	put(&b, 0, 4096, 4);
	leave(&b);
	assert_error(try_open(&b, "b", false), "has changed");
	teardown(&b);
}

/* Locators as others write them. */
static void locators(void **state)
{
	const char *pairs[][2] = {{"parent_linkage", "{01020304-0506-0708-090A-0B0C0D0E0F10}"},
				  {"relative_path", ".\\h\xc3\xa4 \xf0\x9f\x98\x80\\a.vhdx"}};
	struct vhdx v = {0};
	uint8_t id[16];
	char text[39];

	v.locator = vhdx_locator_encode(pairs, 2, &v.locator_len);
	char *value = vhdx_locator_value(&v, "relative_path");
	assert_string_equal(value, pairs[1][1]);
	free(value);
	value = vhdx_locator_value(&v, "parent_linkage");
	assert_true(vhdx_id_parse(value, id));
	assert_int_equal(id[0], 4);
	assert_int_equal(id[15], 0x10);
	vhdx_id_text(id, text);
	assert_string_equal(text, pairs[0][1]);
	free(value);
	assert_null(vhdx_locator_value(&v, "volume_path"));
	assert_false(vhdx_id_parse("{0102}", id));
	put32(v.locator + 20, 1000000);
	assert_null(vhdx_locator_value(&v, "parent_linkage"));
	free(v.locator);
}

/* --- several queues --- */

struct worker {
	pthread_t thread;
	struct bench *b;
	unsigned index, left, busy;
	struct test_queue q;
	struct disk_ring *ring;
	struct disk_op wake;
	struct worker *all;
};

static pthread_barrier_t rings_made;
static atomic_uint workers_busy;

static void woken(struct disk_op *op, int res)
{
}

struct flight {
	struct disk_request r;
	struct worker *worker;
	struct iovec iov;
	uint64_t data[512];
};

#define WORKERS 3
#define FLIGHTS 16
#define ROUNDS  600

/* Workers share blocks: each writes its own sectors of all of them, once. */
static void next(struct disk_request *r, int res)
{
	struct flight *f = (struct flight *)r;
	struct worker *w = f->worker;

	assert_int_equal(res, 0);
	if (w->left == 0) {
		w->busy--;
		return;
	}
	unsigned n = --w->left;
	r->type = n % 10 == 3 ? DISK_FLUSH : DISK_WRITE;
	r->offset = (uint64_t)n * 40960 + w->index * 4096;
	for (unsigned i = 0; i < 512; i++)
		f->data[i] = r->offset + i;
	if (r->type == DISK_WRITE)
		memcpy(w->b->model + r->offset, f->data, 4096);
	disk_submit(&w->q.queue, r);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct flight *flights = calloc(FLIGHTS, sizeof(*flights));

	assert_no_error(disk_ring_new(&w->ring));
	test_queue_init(&w->q, w->b->disk, disk_ring_io(w->ring));
	pthread_barrier_wait(&rings_made);
	w->busy = FLIGHTS;
	for (unsigned i = 0; i < FLIGHTS; i++) {
		flights[i] = (struct flight){.r.done = next, .r.len = 4096, .r.iov_count = 1, .worker = w};
		flights[i].r.iov = &flights[i].iov;
		flights[i].iov = (struct iovec){flights[i].data, 4096};
		next(&flights[i].r, 0);
	}
	while (w->busy > 0)
		disk_ring_serve(w->ring);
	/* Others may need what goes on in this one's ring: the last one wakes all. */
	if (atomic_fetch_sub(&workers_busy, 1) == 1)
		for (unsigned i = 0; i < WORKERS; i++)
			disk_ring_io(w->all[i].ring)->post(disk_ring_io(w->all[i].ring), &w->all[i].wake);
	while (atomic_load(&workers_busy) > 0)
		disk_ring_serve(w->ring);
	pthread_barrier_wait(&rings_made);
	disk_ring_free(w->ring);
	free(flights);
	return NULL;
}

static void run_workers(struct bench *b, const char *name)
{
	struct worker workers[WORKERS];

	take(b, name);
	pthread_barrier_init(&rings_made, NULL, WORKERS);
	atomic_store(&workers_busy, WORKERS);
	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){.b = b, .index = i, .left = ROUNDS, .all = workers, .wake.done = woken};
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&rings_made);
	same(b);
	flush(b);
	crash(b);
	take(b, name);
	same(b);
	leave(b);
}

static void queues(void **state)
{
	struct bench b;

	setup(&b);
	make(&b, "a", (struct disk_create){.size = SIZE, .block = MIB});
	run_workers(&b, "a");
	make_child(&b, "b", "a", (struct disk_create){0});
	run_workers(&b, "b");
	make(&b, "c", (struct disk_create){.size = SIZE, .block = MIB});
	memset(b.model, 0, SIZE);
	make_child(&b, "d", "c", (struct disk_create){.block = MIB});
	run_workers(&b, "d");
	teardown(&b);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dynamic),   cmocka_unit_test(dynamic_4k),    cmocka_unit_test(fixed),
		cmocka_unit_test(chain),     cmocka_unit_test(untouched),     cmocka_unit_test(frugal),
		cmocka_unit_test(log_turns), cmocka_unit_test(failures),      cmocka_unit_test(growing),
		cmocka_unit_test(largest),   cmocka_unit_test(crowded),       cmocka_unit_test(damaged),
		cmocka_unit_test(torn_log),  cmocka_unit_test(zeroes_of_log), cmocka_unit_test(parents),
		cmocka_unit_test(locators),  cmocka_unit_test(queues),
	};
	const char *seed = getenv("GLINT_SEED");

	srand(seed ? (unsigned)atoi(seed) : 1);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("vhdx", tests, NULL, NULL);
}
