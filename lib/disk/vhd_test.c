/*
 * VHD on the engine: images made here and images made up, errors at every operation. Power cuts are tests/faults'.
 */
#include "disk/test_disk.h"
#include "disk/vhd.h"

#include "base/cleanup.h"

#include <endian.h>
#include <sys/stat.h>

#define SIZE (24 * MIB)

static struct disk_create create_options(const char *subformat, uint64_t size, uint32_t block)
{
	return (struct disk_create){
		.name = "a.vhd", .format = "vhd", .subformat = subformat, .size = size, .block = block};
}

static int make(const char *subformat, uint64_t size, uint32_t block)
{
	struct disk_create c = create_options(subformat, size, block);
	int fd = test_file(0);

	assert_no_error(disk_create(fd, &c));
	return fd;
}

static struct disk *open_disk(int fd, struct opener *opener, struct disk_io *io)
{
	struct disk_options options = {.name = "a.vhd", .opener = opener, .io = io};
	struct disk *disk;

	/* The engine wants an open file of its own, for the lock. */
	cleanup_fd int own = -1;
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDWR | O_CLOEXEC);
	assert_true(own >= 0);
	assert_no_error(disk_open(&disk, own, &options));
	steal_fd(&own);
	assert_no_error(disk_activate(disk));
	return disk;
}

static void close_disk(struct disk *disk)
{
	assert_no_error(disk_deactivate(disk));
	disk_close(disk);
}

/* The words of the error that opening or activating gives; nothing of the file may change. */
static void expect_refused(int fd, const char *words)
{
	struct disk_options options = {.name = "a.vhd", .format = "vhd"};
	struct stat before, after;
	struct disk *disk = NULL;

	assert_int_equal(fstat(fd, &before), 0);
	struct error *err = disk_open(&disk, fd, &options);
	if (!err) {
		err = disk_activate(disk);
		disk->image[0]->file.fd = -1; /* stays ours */
		disk_close(disk);
	}
	assert_error(err, words);
	assert_int_equal(fstat(fd, &after), 0);
	assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim));
	assert_int_equal(before.st_size, after.st_size);
}

static void fill(uint8_t *data, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)(1 + (seed * 2654435761u + i * 40503u) % 255);
}

/* --- what is written is read --- */

/* Random requests beside a copy in memory, over closing and opening. */
static void random_requests(int fd, struct opener *opener, uint8_t *copy, uint64_t size, unsigned seed)
{
	struct disk *disk = open_disk(fd, opener, NULL);
	struct test_queue q;
	cleanup_free uint8_t *buf = malloc(256 * KIB);

	test_queue_init(&q, disk, disk_blocking_io());
	srandom(seed);
	for (unsigned i = 0; i < 400; i++) {
		uint64_t offset = (uint64_t)random() % (size / 512) * 512;
		uint64_t len = MIN((1 + (uint64_t)random() % (i % 4 ? 16 : 512)) * 512, size - offset);
		switch (random() % 8) {
		case 0:
			assert_int_equal(test_do(&q, DISK_WRITE_ZEROES, offset, NULL, len, i % 2), 0);
			memset(copy + offset, 0, len);
			break;
		case 1:
			assert_int_equal(test_do(&q, DISK_FLUSH, 0, NULL, 0, 0), 0);
			break;
		case 2:
		case 3:
			assert_int_equal(test_do(&q, DISK_READ, offset, buf, len, 1 + i % 3), 0);
			assert_memory_equal(buf, copy + offset, len);
			break;
		default:
			fill(copy + offset, len, i);
			memcpy(buf, copy + offset, len);
			assert_int_equal(test_do(&q, DISK_WRITE, offset, buf, len, 1 + i % 3), 0);
		}
		if (i % 100 == 99) {
			close_disk(disk);
			disk = open_disk(fd, opener, NULL);
			test_queue_init(&q, disk, disk_blocking_io());
		}
	}
	for (uint64_t at = 0; at < size; at += 256 * KIB) {
		uint64_t len = MIN(256 * KIB, size - at);
		assert_int_equal(test_do(&q, DISK_READ, at, buf, len, 1), 0);
		assert_memory_equal(buf, copy + at, len);
	}
	close_disk(disk);
}

static void test_round_trips(void **state)
{
	static const struct {
		const char *subformat;
		uint64_t size;
		uint32_t block;
	} rows[] = {{"fixed", SIZE + 512, 0},
		    {"dynamic", SIZE + 3 * 512, 0},
		    {"dynamic", SIZE, VHD_BLOCK_MIN},
		    {"dynamic", SIZE, VHD_BLOCK_MAX}};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		cleanup_fd int fd = make(rows[i].subformat, rows[i].size, rows[i].block);
		cleanup_free uint8_t *copy = calloc(1, rows[i].size);
		random_requests(fd, NULL, copy, rows[i].size, (unsigned)i);
	}
}

static void test_info(void **state)
{
	cleanup_fd int fd = make("dynamic", 2040 * GIB, 0);
	struct disk *disk = open_disk(fd, NULL, NULL);
	struct disk_info info;
	struct test_queue q;
	uint8_t sector[512], back[512];

	disk_info(disk, 0, &info);
	assert_string_equal(info.format, "vhd");
	assert_string_equal(info.subformat, "dynamic");
	assert_int_equal(info.size, 2040 * GIB);
	assert_int_equal(info.block, 2 * MIB);
	assert_int_equal(info.sector, 512);
	assert_memory_equal(info.id, info.data_id, 16);

	/* The disk's last sector, which is in the file's first block. */
	test_queue_init(&q, disk, disk_blocking_io());
	fill(sector, sizeof(sector), 1);
	assert_int_equal(test_do(&q, DISK_WRITE, 2040 * GIB - 512, sector, 512, 1), 0);
	close_disk(disk);
	disk = open_disk(fd, NULL, NULL);
	test_queue_init(&q, disk, disk_blocking_io());
	assert_int_equal(test_do(&q, DISK_READ, 2040 * GIB - 512, back, 512, 1), 0);
	assert_memory_equal(sector, back, 512);
	close_disk(disk);
}

static void test_refused_makings(void **state)
{
	static const struct {
		struct disk_create c;
		const char *words;
	} rows[] = {
		{{.subformat = "dynamic", .size = 2040 * GIB + 512}, "too many for a VHD"},
		{{.subformat = "thick", .size = MIB}, "no subformat"},
		{{.subformat = "differencing", .size = MIB}, "needs a parent"},
		{{.subformat = "dynamic", .size = MIB, .block = 3 * MIB}, "cannot have blocks of 3145728"},
		{{.subformat = "fixed", .size = MIB, .block = 2 * MIB}, "cannot have blocks"},
		{{.subformat = "dynamic", .size = MIB, .sector = 4096}, "sectors of 512"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		cleanup_fd int fd = test_file(0);
		struct disk_create c = rows[i].c;
		c.name = "a.vhd";
		c.format = "vhd";
		assert_error(disk_create(fd, &c), rows[i].words);
	}
}

/* --- chains --- */

/* Opens a parent by its number: "0" is files[0]. */
struct test_opener {
	struct opener opener;
	int files[4];
	unsigned opened;
};

static struct error *open_number(struct opener *self, const char *locator, int flags, int *fd)
{
	struct test_opener *o = (struct test_opener *)self;
	char path[64];

	if (locator[0] < '0' || locator[0] > '3' || locator[1])
		return error_new(ENOENT, "open %s", locator);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", o->files[locator[0] - '0']);
	*fd = open(path, flags | O_CLOEXEC);
	assert_true(*fd >= 0);
	o->opened++;
	return NULL;
}

static int make_child(struct test_opener *o, int parent_fd, const char *locator, uint64_t size)
{
	struct disk *parent = open_disk(parent_fd, &o->opener, NULL);
	struct disk_create c = create_options("differencing", size, VHD_BLOCK_MIN);
	int fd = test_file(0);

	c.parent = parent;
	c.parent_locator = locator;
	c.parent_path = "C:\\nowhere\\parent.vhd";
	assert_no_error(disk_create(fd, &c));
	close_disk(parent);
	return fd;
}

static void test_chain(void **state)
{
	struct test_opener o = {.opener = {open_number}};
	cleanup_free uint8_t *copy = calloc(1, SIZE), *base = malloc(SIZE), *all = malloc(SIZE);

	o.files[0] = make("dynamic", SIZE - 5 * 512, 0); /* smaller than its children */
	random_requests(o.files[0], NULL, copy, SIZE - 5 * 512, 1);
	o.files[1] = make_child(&o, o.files[0], "0", SIZE);
	memcpy(base, copy, SIZE);
	random_requests(o.files[1], &o.opener, copy, SIZE, 2);
	o.files[2] = make_child(&o, o.files[1], "1", 0);
	random_requests(o.files[2], &o.opener, copy, SIZE, 3);

	struct disk *disk = open_disk(o.files[2], &o.opener, NULL);
	assert_int_equal(disk_depth(disk), 3);
	close_disk(disk);
	/* The parent is as it was. */
	struct test_queue q;
	disk = open_disk(o.files[0], NULL, NULL);
	test_queue_init(&q, disk, disk_blocking_io());
	assert_int_equal(test_do(&q, DISK_READ, 0, all, SIZE - 5 * 512, 1), 0);
	assert_memory_equal(all, base, SIZE - 5 * 512);
	close_disk(disk);
	for (int i = 0; i < 3; i++)
		close(o.files[i]);
}

static void test_wrong_parents(void **state)
{
	struct test_opener o = {.opener = {open_number}};
	struct disk_options options = {.name = "a.vhd", .opener = &o.opener};
	struct disk *disk;

	o.files[0] = make("dynamic", SIZE, 0);
	o.files[1] = make_child(&o, o.files[0], "0", 0);
	options.opener = NULL;
	assert_error(disk_open(&disk, o.files[1], &options), "parents are not allowed");
	options.opener = &o.opener;
	close(o.files[0]);
	o.files[0] = make("dynamic", SIZE, 0);
	assert_error(disk_open(&disk, o.files[1], &options), "open C:/nowhere/parent.vhd");
	o.files[0] = dup(o.files[1]);
	assert_error(disk_open(&disk, o.files[1], &options), "a.vhd");
	/* Whatever it says, it is not opened with a name that leads elsewhere, and no more than three times. */
	assert_true(o.opened < 8);
	close(o.files[0]);
	close(o.files[1]);
}

/* --- many blocks --- */

/* More blocks than bitmaps are held in memory, and than wait for a commit. */
static void test_crowds(void **state)
{
	struct test_opener o = {.opener = {open_number}};
	const uint64_t block = VHD_BLOCK_MIN, far = VHD_FRAMES_BYTES / 512 * block;
	uint8_t sector[512], back[512];
	struct test_queue q;

	o.files[0] = make("dynamic", 2 * far, 0);
	cleanup_fd int fd = make_child(&o, o.files[0], "0", 0);
	struct disk *disk = open_disk(fd, &o.opener, NULL);
	test_queue_init(&q, disk, disk_blocking_io());
	for (unsigned i = 0; i < 40; i++) {
		fill(sector, 512, i);
		assert_int_equal(test_do(&q, DISK_WRITE, i % 2 * far + i * 512, sector, 512, 1), 0);
	}
	for (unsigned i = 0; i < VHD_CHANGES_MAX + 100; i++) {
		fill(sector, 512, i);
		assert_int_equal(test_do(&q, DISK_WRITE, (i + 4) * block, sector, 512, 1), 0);
	}
	close_disk(disk);
	disk = open_disk(fd, &o.opener, NULL);
	test_queue_init(&q, disk, disk_blocking_io());
	for (unsigned i = 0; i < 40; i++) {
		fill(sector, 512, i);
		assert_int_equal(test_do(&q, DISK_READ, i % 2 * far + i * 512, back, 512, 1), 0);
		assert_memory_equal(sector, back, 512);
	}
	for (unsigned i = 0; i < VHD_CHANGES_MAX + 100; i++) {
		fill(sector, 512, i);
		assert_int_equal(test_do(&q, DISK_READ, (i + 4) * block, back, 512, 1), 0);
		assert_memory_equal(sector, back, 512);
	}
	close_disk(disk);
	close(o.files[0]);
}

/* --- others' images --- */

static uint64_t table_at(int fd, uint32_t block, uint32_t value)
{
	uint32_t entry = htobe32(value), old;
	off_t at = 4096 + block * 4; /* where create() has the table */

	assert_int_equal(pread(fd, &old, 4, at), 4);
	assert_int_equal(pwrite(fd, &entry, 4, at), 4);
	return be32toh(old);
}

static int make_written(unsigned blocks)
{
	int fd = make("dynamic", SIZE, 0);
	struct disk *disk = open_disk(fd, NULL, NULL);
	uint8_t sector[512];
	struct test_queue q;

	test_queue_init(&q, disk, disk_blocking_io());
	for (unsigned i = 0; i < blocks; i++) {
		fill(sector, 512, i);
		assert_int_equal(test_do(&q, DISK_WRITE, i * 2 * MIB, sector, 512, 1), 0);
	}
	close_disk(disk);
	return fd;
}

static void test_hostile_tables(void **state)
{
	cleanup_fd int fd = make_written(2);
	uint64_t first = table_at(fd, 0, 0);
	uint64_t second = table_at(fd, 1, VHD_UNUSED);

	expect_refused(fd, "lies over headers");
	table_at(fd, 0, 8); /* the table itself */
	expect_refused(fd, "lies over headers");
	table_at(fd, 0, 0xfffffffe);
	expect_refused(fd, "is not in the file");
	table_at(fd, 0, (uint32_t)second + 1);
	expect_refused(fd, "is not in the file");
	table_at(fd, 0, (uint32_t)first);
	table_at(fd, 1, (uint32_t)first);
	expect_refused(fd, "overlap at offset");
	table_at(fd, 1, (uint32_t)first + 4096);
	expect_refused(fd, "overlap at offset");
	table_at(fd, 1, (uint32_t)second);
	close_disk(open_disk(fd, NULL, NULL));
}

static void test_footers(void **state)
{
	cleanup_fd int fd = make_written(1), other = make("fixed", MIB, 0);
	uint8_t footer[512], foreign[512], zero[512] = {};
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(pread(fd, footer, 512, 0), 512);
	assert_int_equal(pread(other, foreign, 512, MIB), 512);
	/* Each end serves for the other, and is made whole. */
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pwrite(fd, zero, 512, i ? 0 : st.st_size - 512), 512);
		close_disk(open_disk(fd, NULL, NULL));
		assert_int_equal(fstat(fd, &st), 0);
		uint8_t ends[2][512];
		assert_int_equal(pread(fd, ends[0], 512, 0), 512);
		assert_int_equal(pread(fd, ends[1], 512, st.st_size - 512), 512);
		assert_memory_equal(ends[0], footer, 512);
		assert_memory_equal(ends[1], footer, 512);
	}
	/* A guest's sector at either end does not pass for a footer. */
	assert_int_equal(pwrite(fd, foreign, 512, st.st_size - 512), 512);
	expect_refused(fd, "are of different disks");
	assert_int_equal(pwrite(other, footer, 512, 0), 512);
	expect_refused(other, "are of different disks");
	assert_int_equal(pwrite(fd, zero, 512, st.st_size - 512), 512);
	assert_int_equal(pwrite(fd, zero, 512, 0), 512);
	expect_refused(fd, "no VHD footer at offset 0");
	assert_int_equal(ftruncate(fd, 100), 0);
	expect_refused(fd, "less than a VHD footer");
}

/* The guest of a fixed disk may write what begins a VHDX file, whose parents it would choose: nobody guesses then. */
static void test_two_formats(void **state)
{
	struct disk_options options = {.name = "a.vhd"};
	cleanup_fd int fd = make("fixed", MIB, 0);
	struct disk *disk = NULL;

	assert_int_equal(pwrite(fd, "vhdxfile", 8, 0), 8);
	assert_error(disk_open(&disk, fd, &options), "its ends are of two formats, vhdx and vhd");
	options.format = "vhd";
	assert_no_error(disk_open(&disk, fd, &options));
	steal_fd(&fd);
	disk_close(disk);
}

static void test_truncated(void **state)
{
	cleanup_fd int fd = make_written(3);
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	/* Without its end there is the copy; without a block it is no disk. */
	assert_int_equal(ftruncate(fd, st.st_size - 1000), 0);
	expect_refused(fd, "is not in the file");
	assert_int_equal(ftruncate(fd, 4096 + 20), 0);
	expect_refused(fd, "says that the table is at offset 4096");
	assert_int_equal(ftruncate(fd, 1000), 0);
	expect_refused(fd, "says that the dynamic header is at offset 512");
}

/* A dynamic disk that keeps account of its sectors: those without a bit are zeroes, whatever the block holds. */
static void test_sparse_bitmap(void **state)
{
	cleanup_fd int fd = make_written(1);
	uint64_t at = table_at(fd, 0, 0) * 512;
	uint8_t bitmap[512] = {0x80}, block[8 * 512], want[8 * 512] = {}, got[8 * 512];
	struct test_queue q;

	table_at(fd, 0, (uint32_t)(at / 512));
	fill(block, sizeof(block), 7);
	assert_int_equal(pwrite(fd, bitmap, 512, (off_t)at), 512);
	assert_int_equal(pwrite(fd, block, sizeof(block), (off_t)at + 512), sizeof(block));
	memcpy(want, block, 512);
	struct disk *disk = open_disk(fd, NULL, NULL);
	test_queue_init(&q, disk, disk_blocking_io());
	assert_int_equal(test_do(&q, DISK_READ, 0, got, sizeof(got), 1), 0);
	assert_memory_equal(got, want, sizeof(got));
	/* A write sets its bits alone. */
	fill(want + 4 * 512, 512, 9);
	memcpy(got, want + 4 * 512, 512);
	assert_int_equal(test_do(&q, DISK_WRITE, 4 * 512, got, 512, 1), 0);
	close_disk(disk);
	assert_int_equal(pread(fd, bitmap, 512, (off_t)at), 512);
	assert_int_equal(bitmap[0], 0x88);
	disk = open_disk(fd, NULL, NULL);
	test_queue_init(&q, disk, disk_blocking_io());
	assert_int_equal(test_do(&q, DISK_READ, 0, got, sizeof(got), 1), 0);
	assert_memory_equal(got, want, sizeof(got));
	close_disk(disk);
}

/* --- errors and growth --- */

/* Every operation fails once; what was acknowledged holds, and the disk goes on. */
static void test_errors(void **state)
{
	uint8_t data[3 * 4096], back[3 * 4096];
	struct test_queue q;

	for (int after = 0; after < 24; after++) {
		struct test_opener o = {.opener = {open_number}};
		o.files[0] = make("dynamic", SIZE, 0);
		cleanup_fd int fd = make_child(&o, o.files[0], "0", 0);
		struct disk *disk = open_disk(fd, &o.opener, NULL);
		struct test_io io = test_io();
		uint64_t at = VHD_BLOCK_MIN - 4096; /* two blocks */
		test_queue_init(&q, disk, &io.io);
		io.again = (unsigned)after % 3;
		io.short_bytes = after % 2 ? 512 : 0;
		io.fail_after = after;
		io.error = -ENOSPC;
		fill(data, sizeof(data), 1);
		int wrote = test_do(&q, DISK_WRITE, at, data, sizeof(data), 2);
		int flushed = test_do(&q, DISK_FLUSH, 0, NULL, 0, 0);
		assert_true(wrote == 0 || wrote == -ENOSPC);
		assert_true(flushed == 0 || flushed == -ENOSPC);
		assert_true(after >= 9 || wrote < 0 || flushed < 0);
		io.fail_after = -1;
		assert_int_equal(test_do(&q, DISK_WRITE, at, data, sizeof(data), 3), 0);
		assert_int_equal(test_do(&q, DISK_READ, at, back, sizeof(back), 1), 0);
		assert_memory_equal(data, back, sizeof(data));
		assert_int_equal(test_do(&q, DISK_FLUSH, 0, NULL, 0, 0), 0);
		disk_close(disk); /* as by a crash */
		disk = open_disk(fd, &o.opener, NULL);
		test_queue_init(&q, disk, disk_blocking_io());
		assert_int_equal(test_do(&q, DISK_READ, at, back, sizeof(back), 1), 0);
		assert_memory_equal(data, back, sizeof(data));
		close_disk(disk);
		close(o.files[0]);
	}
}

static void test_growth(void **state)
{
	static const char *const subformats[] = {"fixed", "dynamic"};

	for (size_t i = 0; i < ARRAY_SIZE(subformats); i++) {
		cleanup_fd int fd = make(subformats[i], SIZE, i ? VHD_BLOCK_MIN : 0);
		cleanup_free uint8_t *copy = calloc(1, 3 * SIZE);
		random_requests(fd, NULL, copy, SIZE, 1);
		struct disk *disk = open_disk(fd, NULL, NULL);
		assert_error(disk_resize(disk, VHD_SIZE_MAX + 512), "too many for a VHD");
		assert_error(disk_resize(disk, SIZE - 512), "smaller");
		assert_no_error(disk_resize(disk, SIZE + 512));
		assert_no_error(disk_resize(disk, 3 * SIZE));
		close_disk(disk);
		random_requests(fd, NULL, copy, 3 * SIZE, 2);
	}
}

/* Writes are done at once, and said to be done later, in their order. */
static struct {
	struct disk_op *op;
	int res;
} later[16];
static unsigned later_count;

static void write_later(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
			uint64_t offset)
{
	(void)io;
	assert_true(later_count < ARRAY_SIZE(later));
	later[later_count].op = op;
	later[later_count++].res = (int)pwritev((int)file, iov, (int)count, (off_t)offset);
}

/*
 * Three new blocks at once: the file grows for the first, whose place another takes meanwhile, for which a third one
 * makes it grow again: then the first waits for that.
 */
static void test_three_new_blocks(void **state)
{
	cleanup_fd int fd = make("dynamic", SIZE, VHD_BLOCK_MIN);
	struct disk_io io = *disk_blocking_io();
	struct test_request t[3] = {0};
	struct iovec iov[3];
	uint8_t data[512] = {1};
	struct test_queue q;

	(void)state;
	io.writev = write_later;
	struct disk *disk = open_disk(fd, NULL, NULL);
	test_queue_init(&q, disk, &io);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		iov[i] = (struct iovec){data, sizeof(data)};
		t[i].r = (struct disk_request){.type = DISK_WRITE,
					       .offset = i * (uint64_t)VHD_BLOCK_MIN,
					       .len = sizeof(data),
					       .iov = &iov[i],
					       .iov_count = 1,
					       .done = test_request_done};
		disk_submit(&q.queue, &t[i].r);
	}
	while (later_count > 0) {
		struct disk_op *op = later[0].op;
		int res = later[0].res;
		memmove(later, later + 1, --later_count * sizeof(*later));
		op->done(op, res);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		assert_true(t[i].done);
		assert_int_equal(t[i].res, 0);
	}
	close_disk(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trips),     cmocka_unit_test(test_info),
		cmocka_unit_test(test_refused_makings), cmocka_unit_test(test_chain),
		cmocka_unit_test(test_wrong_parents),   cmocka_unit_test(test_crowds),
		cmocka_unit_test(test_hostile_tables),  cmocka_unit_test(test_footers),
		cmocka_unit_test(test_two_formats),     cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_sparse_bitmap),   cmocka_unit_test(test_errors),
		cmocka_unit_test(test_growth),          cmocka_unit_test(test_three_new_blocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
