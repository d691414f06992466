/*
 * qcow2 on the engine: images made up here, right and wrong in every part; errors of the file below. What QEMU makes is
 * read by tests/disk/test_qcow2.py.
 */
#include "disk/qcow2.h"
#include "disk/test_disk.h"

#include "base/cleanup.h"

#include <endian.h>
#include <zlib.h>

/* An image of 4 KiB clusters; see make(). */
#define CLUSTER   4096u
#define L1_AT     (1u * CLUSTER)
#define L2_AT     (2u * CLUSTER)
#define DATA_AT   (3u * CLUSTER) /* three clusters of it */
#define PACKED_AT (6u * CLUSTER + 300)
#define FILE_SIZE (8u * CLUSTER)
#define DISK_SIZE (64 * MIB) /* of which one L2 table speaks of 2 MiB */

/* Clusters of the disk. */
enum { DATA_0, DATA_1, APART, ZEROES, NOTHING, PACKED, PACKED_ALSO };

/* L2 entries: zeroes over data, and the sectors behind the first that compressed data are in. */
#define ZERO_OVER(at)         ((at) | QCOW2_ZERO)
#define PACKED_ENTRY(at, len) (QCOW2_COMPRESSED | (uint64_t)((((at) % 512 + (len) - 1) / 512)) << 58 | (at))

struct image_file {
	uint8_t bytes[FILE_SIZE];
	size_t size, packed_len;
};

static void set32(struct image_file *f, size_t at, uint32_t v)
{
	v = htobe32(v);
	memcpy(f->bytes + at, &v, sizeof(v));
}

static void set64(struct image_file *f, size_t at, uint64_t v)
{
	v = htobe64(v);
	memcpy(f->bytes + at, &v, sizeof(v));
}

static void set_entry(struct image_file *f, unsigned cluster, uint64_t entry)
{
	set64(f, L2_AT + cluster * 8, entry);
}

static void fill(uint8_t *p, unsigned cluster)
{
	for (unsigned i = 0; i < CLUSTER; i++)
		p[i] = (uint8_t)(i * (cluster + 3) + i / 256 + cluster);
}

static size_t pack(uint8_t *to, size_t room, const uint8_t *from, size_t len)
{
	z_stream z = {
		.next_in = (uint8_t *)(uintptr_t)from, .avail_in = (uInt)len, .next_out = to, .avail_out = (uInt)room};

	assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	assert_int_equal(deflateEnd(&z), Z_OK);
	return z.total_out;
}

static struct image_file *make(void)
{
	struct image_file *f = calloc(1, sizeof(*f));
	uint8_t data[CLUSTER];

	memcpy(f->bytes, "QFI\xfb", 4);
	set32(f, 4, 3);
	set32(f, 20, 12);
	set64(f, 24, DISK_SIZE);
	set32(f, 36, DISK_SIZE / (2 * MIB));
	set64(f, 40, L1_AT);
	set32(f, 100, 104);
	set64(f, L1_AT, L2_AT | 1ull << 63);
	set_entry(f, DATA_0, DATA_AT | 1ull << 63);
	set_entry(f, DATA_1, DATA_AT + CLUSTER);
	set_entry(f, APART, DATA_AT + 2 * CLUSTER);
	set_entry(f, ZEROES, ZERO_OVER(DATA_AT));
	for (unsigned i = DATA_0; i <= APART; i++)
		fill(f->bytes + DATA_AT + i * CLUSTER, i);
	fill(data, PACKED);
	f->packed_len = pack(f->bytes + PACKED_AT, CLUSTER, data, CLUSTER);
	set_entry(f, PACKED, PACKED_ENTRY(PACKED_AT, f->packed_len));
	set_entry(f, PACKED_ALSO, PACKED_ENTRY(PACKED_AT, f->packed_len));
	f->size = FILE_SIZE;
	return f;
}

static void want(unsigned cluster, uint8_t *p)
{
	if (cluster == ZEROES || cluster == NOTHING)
		memset(p, 0, CLUSTER);
	else
		fill(p, cluster == PACKED_ALSO ? PACKED : cluster);
}

/* --- opening --- */

static int write_file(const struct image_file *f)
{
	int fd = test_file(f->size);

	assert_int_equal(pwrite(fd, f->bytes, f->size, 0), f->size);
	return fd;
}

static struct error *try_open(const struct image_file *f, struct disk_io *io, struct disk **disk)
{
	struct disk_options options = {.name = "a.qcow2", .readonly = true, .io = io};
	int fd = write_file(f);
	struct error *err = disk_open(disk, fd, &options);

	if (err) {
		close(fd);
		return err;
	}
	err = disk_activate(*disk);
	if (err)
		disk_close(*disk);
	return err;
}

static struct disk *open_file(const struct image_file *f, struct disk_io *io)
{
	struct disk *disk;

	assert_no_error(try_open(f, io, &disk));
	return disk;
}

static int read_cluster(struct disk *disk, struct disk_io *io, unsigned cluster, uint8_t *data)
{
	struct test_queue q;

	test_queue_init(&q, disk, io ? io : disk_blocking_io());
	memset(data, 0xee, CLUSTER);
	return test_do(&q, DISK_READ, (uint64_t)cluster * CLUSTER, data, CLUSTER, 3);
}

static void expect(struct disk *disk, struct disk_io *io, unsigned cluster)
{
	uint8_t data[CLUSTER], right[CLUSTER];

	want(cluster, right);
	assert_int_equal(read_cluster(disk, io, cluster, data), 0);
	assert_memory_equal(data, right, CLUSTER);
}

static void close_disk(struct disk *disk)
{
	assert_no_error(disk_deactivate(disk));
	disk_close(disk);
}

/* --- what is right --- */

static void test_reads(void **state)
{
	cleanup_free struct image_file *f = make();
	struct test_io io = test_io();
	struct disk *disk = open_file(f, NULL);
	struct test_queue q;
	uint8_t all[7 * CLUSTER], right[7 * CLUSTER];

	(void)state;
	for (unsigned i = 0; i < 7; i++)
		want(i, right + i * CLUSTER);
	test_queue_init(&q, disk, &io.io);
	assert_int_equal(test_do(&q, DISK_READ, 0, all, sizeof(all), 5), 0);
	assert_memory_equal(all, right, sizeof(all));
	/* A page, three clusters that lie together, and two that are compressed. */
	assert_int_equal(io.reads, 4);
	/* Again: the page and the clusters are in memory. */
	assert_int_equal(test_do(&q, DISK_READ, 512, all, sizeof(all) - 512, 5), 0);
	assert_memory_equal(all, right + 512, sizeof(all) - 512);
	assert_int_equal(io.reads, 5);
	/* Where there is no L2 table nothing is read. */
	assert_int_equal(test_do(&q, DISK_READ, DISK_SIZE - CLUSTER, all, CLUSTER, 2), 0);
	assert_true(all[0] == 0 && memcmp(all, all + 1, CLUSTER - 1) == 0);
	assert_int_equal(io.reads, 5);
	close_disk(disk);
}

static void test_info(void **state)
{
	cleanup_free struct image_file *f = make();
	struct disk_info info;

	(void)state;
	set32(f, 60, 7);   /* snapshots */
	set64(f, 72, 3);   /* dirty and corrupt */
	set64(f, 80, ~0u); /* compatible features are no matter, */
	set64(f, 88, ~0u); /* nor others for who only reads */
	struct disk *disk = open_file(f, NULL);
	disk_info(disk, 0, &info);
	assert_string_equal(info.format, "qcow2");
	assert_int_equal(info.size, DISK_SIZE);
	assert_int_equal(info.block, CLUSTER);
	assert_string_equal(info.remark, "marked as corrupt; was not closed; 7 internal snapshots, which are not read");
	expect(disk, NULL, PACKED);
	close_disk(disk);
}

/* Sizes of files are no whole clusters, and need be no whole sectors. */
static void test_cut(void **state)
{
	cleanup_free struct image_file *f = make();
	static const size_t cuts[] = {1, 511, 512, 700, CLUSTER - 1};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
		uint8_t data[CLUSTER], right[CLUSTER];
		f->size = DATA_AT + 2 * CLUSTER + cuts[i];
		struct disk *disk = open_file(f, NULL);
		want(APART, right);
		memset(right + cuts[i], 0, CLUSTER - cuts[i]);
		assert_int_equal(read_cluster(disk, NULL, APART, data), 0);
		assert_memory_equal(data, right, CLUSTER);
		expect(disk, NULL, DATA_1);
		assert_int_equal(read_cluster(disk, NULL, PACKED, data), -EIO);
		close_disk(disk);
	}
	/* The last compressed cluster's last sector is not there as a whole. */
	f->size = PACKED_AT + f->packed_len;
	struct disk *disk = open_file(f, NULL);
	expect(disk, NULL, PACKED);
	close_disk(disk);
}

/* More compressed clusters than slots, again and again. */
static void test_slots(void **state)
{
	cleanup_free struct image_file *f = make();

	(void)state;
	for (unsigned i = PACKED; i < 40; i++)
		set_entry(f, i, PACKED_ENTRY(PACKED_AT, f->packed_len));
	struct disk *disk = open_file(f, NULL);
	uint8_t data[CLUSTER], right[CLUSTER];
	want(PACKED, right);
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(read_cluster(disk, NULL, PACKED + i * 7 % 35, data), 0);
		assert_memory_equal(data, right, CLUSTER);
	}
	close_disk(disk);
}

/* --- what is wrong --- */

static void test_headers(void **state)
{
	static const struct {
		unsigned at, bytes;
		uint64_t value;
		const char *words;
	} cases[] = {
		{4, 4, 1, "version 1 of qcow2"},
		{4, 4, 4, "version 4 of qcow2"},
		{8, 8, 8, "the name of the backing file is at offset 8"},
		{8, 8, CLUSTER, "the name of the backing file is at offset"},
		{8, 8, ~0ull, "the name of the backing file is at offset"},
		{8, 8, 200, "the name of the backing file is at offset"}, /* without a length */
		{20, 4, 8, "bits of a cluster's size is 8"},
		{20, 4, 22, "bits of a cluster's size is 22"},
		{20, 4, ~0u, "bits of a cluster's size"},
		{24, 8, 0, "size is 0"},
		{24, 8, 1000, "size is 1000"},
		{24, 8, ~0ull << 9, "size is"},
		{24, 8, 65 * TIB, "size is"},
		{24, 8, TIB, "entries of the L1 table is 32"},
		{32, 4, 1, "encrypted (AES)"},
		{32, 4, 2, "encrypted (LUKS)"},
		{36, 4, 31, "entries of the L1 table is 31"},
		{40, 8, 0, "L1 table is at offset 0"},
		{40, 8, L1_AT + 512, "L1 table is at offset 4608"},
		{40, 8, FILE_SIZE, "L1 table is at offset"},
		{40, 8, ~0ull << 12, "L1 table is at offset"},
		{72, 8, 1 << 2, "its data are in another file"},
		{72, 8, 1 << 3, "the way of compression is 0"},
		{72, 8, 1 << 4, "bits of a cluster's size is 12"}, /* too small for subclusters */
		{72, 8, 1 << 5, "feature 5"},
		{72, 8, 1ull << 63, "feature 63"},
		{100, 4, 72, "its length is 72"},
		{100, 4, CLUSTER + 8, "its length is 4104"},
		{100, 4, ~0u, "its length is"},
		{104, 4, 77, "the qcow2 header extension at offset 104"}, /* and its length, below */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cleanup_free struct image_file *f = make();
		struct disk *disk;
		if (cases[i].bytes == 4)
			set32(f, cases[i].at, (uint32_t)cases[i].value);
		else
			set64(f, cases[i].at, cases[i].value);
		if (cases[i].at == 104)
			set32(f, 108, CLUSTER - 104 - 8 + 1);
		assert_error(try_open(f, NULL, &disk), cases[i].words);
	}
	for (size_t size = 4; size < L1_AT; size += size < 120 ? 1 : 512) {
		cleanup_free struct image_file *f = make();
		struct disk *disk;
		f->size = size;
		struct error *err = try_open(f, NULL, &disk);
		assert_non_null(err);
		error_free(err);
	}
}

static void test_l1_too_large(void **state)
{
	cleanup_free struct image_file *f = make();
	struct disk *disk;

	(void)state;
	set32(f, 20, 9);
	set64(f, 24, 32 * TIB);
	set32(f, 36, ~0u);
	assert_error(try_open(f, NULL, &disk), "entries of the L1 table is 4294967295");
}

/* Runs what is logged into @text. */
static void read_logged(struct disk *disk, unsigned cluster, char *text, size_t size)
{
	int log = test_file(0), old = dup(STDERR_FILENO);
	uint8_t data[CLUSTER];

	assert_true(old >= 0 && dup2(log, STDERR_FILENO) >= 0);
	int first = read_cluster(disk, NULL, cluster, data), again = read_cluster(disk, NULL, cluster, data);
	assert_true(dup2(old, STDERR_FILENO) >= 0);
	assert_int_equal(first, -EIO);
	assert_int_equal(again, -EIO);
	ssize_t got = pread(log, text, size - 1, 0);
	text[MAX(got, 0)] = '\0';
	close(old);
	close(log);
}

/* One entry is wrong: reads of it fail, which is logged once, and others do not. */
static void test_tables(void **state)
{
	static const struct {
		unsigned at;
		uint64_t entry;
		const char *words;
	} cases[] = {
		{L2_AT, DATA_AT + 512, "an entry of an L2 table that is not valid at offset 8192"},
		{L2_AT, FILE_SIZE, "an entry of an L2 table"},
		{L2_AT, QCOW2_OFFSET & ~0xfffull, "an entry of an L2 table"},
		{L2_AT, PACKED_ENTRY(FILE_SIZE, 10),
		 "a compressed cluster is placed behind the file's end, at offset 32768"},
		{L2_AT, QCOW2_COMPRESSED | (QCOW2_COMPRESSED - 1),
		 "a compressed cluster is placed behind the file's end"},
		{L2_AT, PACKED_ENTRY(DATA_AT, 600), "a compressed cluster does not become a whole one at offset 12288"},
		{L2_AT, QCOW2_COMPRESSED | PACKED_AT, "a compressed cluster does not become a whole one"},
		{L1_AT, L2_AT + 512, "the L1 table places an L2 table where none can be: its entry at offset 4096"},
		{L1_AT, FILE_SIZE, "the L1 table places an L2 table"},
		{L1_AT, QCOW2_OFFSET & ~0xfffull, "the L1 table places an L2 table"},
	};
	char text[1024];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cleanup_free struct image_file *f = make();
		/* The second L2 table is the first's copy. */
		set64(f, L1_AT + 8, L2_AT);
		if (cases[i].at == L2_AT)
			set_entry(f, 1, DATA_AT + CLUSTER);
		set64(f, cases[i].at, cases[i].entry);
		struct disk *disk = open_file(f, NULL);
		read_logged(disk, DATA_0, text, sizeof(text));
		if (!strstr(text, cases[i].words) || !strstr(text, "a.qcow2"))
			fail_msg("\"%s\" is not in: %s", cases[i].words, text);
		assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
		uint8_t data[CLUSTER], right[CLUSTER];
		want(DATA_1, right);
		assert_int_equal(read_cluster(disk, NULL, 512 + DATA_1, data), 0);
		assert_memory_equal(data, right, CLUSTER);
		close_disk(disk);
	}
}

/* Version 2 knows no zero flag. */
static void test_version_2(void **state)
{
	cleanup_free struct image_file *f = make();
	uint8_t data[CLUSTER];

	(void)state;
	set32(f, 4, 2);
	memset(f->bytes + 72, 0, 40);
	struct disk *disk = open_file(f, NULL);
	expect(disk, NULL, DATA_0);
	expect(disk, NULL, PACKED);
	expect(disk, NULL, NOTHING);
	assert_int_equal(read_cluster(disk, NULL, ZEROES, data), -EIO);
	close_disk(disk);
}

/* What is compressed is less than a cluster, and more. */
static void test_lengths(void **state)
{
	cleanup_free struct image_file *f = make();
	uint8_t data[CLUSTER + 1], got[CLUSTER];

	(void)state;
	fill(data, PACKED);
	data[CLUSTER] = 1;
	memset(f->bytes + PACKED_AT, 0, 2 * CLUSTER - PACKED_AT % CLUSTER);
	size_t len = pack(f->bytes + PACKED_AT, CLUSTER, data, CLUSTER - 1);
	set_entry(f, PACKED, PACKED_ENTRY(PACKED_AT, len));
	struct disk *disk = open_file(f, NULL);
	assert_int_equal(read_cluster(disk, NULL, PACKED, got), -EIO);
	close_disk(disk);
	len = pack(f->bytes + PACKED_AT, CLUSTER, data, CLUSTER + 1);
	set_entry(f, PACKED, PACKED_ENTRY(PACKED_AT, len));
	disk = open_file(f, NULL);
	expect(disk, NULL, PACKED);
	close_disk(disk);
}

/* Extended entries: of 16 KiB clusters, whose subclusters are sectors. */
static void test_subclusters(void **state)
{
	static const struct {
		uint64_t entry, bits;
		int res;
		uint8_t first; /* of each kind of sector that is read: data, zeroes */
	} cases[] = {
		{16 * KIB, 1, 0, 1},                 /* the first is there */
		{16 * KIB, 2, 0, 0},                 /* another is */
		{16 * KIB, 1ull << 32, 0, 0},        /* zeroes over what is there */
		{16 * KIB, 1ull << 32 | 1, -EIO, 0}, /* both */
		{0, 1ull << 32, 0, 0},               /* zeroes without a cluster */
		{0, 1, -EIO, 0},                     /* there, without a cluster */
		{1, 1, -EIO, 0},                     /* the other flag of zeroes */
		{16 * KIB | 1, 0, 0, 0},
	};
	uint8_t data[512];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		/* The file is two clusters: the L1 table and the L2 table are both in the second, which data are too.
		 */
		cleanup_free struct image_file *f = make();
		memset(f->bytes + 16 * KIB, 0, 16 * KIB);
		set64(f, 72, 1 << 4);
		set32(f, 20, 14);
		set64(f, 40, 16 * KIB);
		set64(f, 16 * KIB, 16 * KIB);
		/* The first entry of both: what the L1 table says is the L2 table's first entry, so the second is
		 * tried. */
		set64(f, 16 * KIB + 16, cases[i].entry);
		set64(f, 16 * KIB + 24, cases[i].bits);
		struct disk *disk = open_file(f, NULL);
		struct test_queue q;
		test_queue_init(&q, disk, disk_blocking_io());
		memset(data, 0xee, sizeof(data));
		assert_int_equal(test_do(&q, DISK_READ, 16 * KIB, data, 512, 1), cases[i].res);
		if (cases[i].res == 0)
			assert_memory_equal(data, cases[i].first ? f->bytes + 16 * KIB : f->bytes + 20 * KIB, 512);
		close_disk(disk);
	}
}

/* --- the file below --- */

static void test_errors(void **state)
{
	cleanup_free struct image_file *f = make();
	static const unsigned clusters[] = {DATA_0, PACKED};
	uint8_t data[CLUSTER];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(clusters); i++) {
		struct test_io io = test_io();
		struct disk *disk = open_file(f, NULL);
		/* The page, then the cluster; after a failure it goes on. */
		for (int after = 0; after < 2; after++) {
			io.fail_after = after;
			io.error = -ENOMEM;
			assert_int_equal(read_cluster(disk, &io.io, clusters[i], data), -ENOMEM);
		}
		io.fail_after = -1;
		io.again = 5;
		io.short_bytes = 100;
		expect(disk, &io.io, clusters[i]);
		close_disk(disk);
	}
}

static void test_use(void **state)
{
	cleanup_free struct image_file *f = make();
	struct disk_options options = {.name = "a.qcow2"};
	struct disk_create create = {.name = "b.qcow2", .format = "qcow2", .size = MIB};
	struct disk *disk;
	cleanup_fd int fd = write_file(f), empty = test_file(0);

	(void)state;
	assert_error(disk_open(&disk, fd, &options), "a qcow2 image can only be read");
	assert_error(disk_create(empty, &create), "can only be read");
	/* Read-only is for writes too. */
	disk = open_file(f, NULL);
	struct test_queue q;
	uint8_t data[512] = {0};
	test_queue_init(&q, disk, disk_blocking_io());
	assert_int_equal(test_do(&q, DISK_WRITE, 0, data, 512, 1), -EROFS);
	assert_int_equal(test_do(&q, DISK_FLUSH, 0, NULL, 0, 1), 0);
	close_disk(disk);
	/* What ends like a VHD is either. */
	memcpy(f->bytes + FILE_SIZE - 512, "conectix", 8);
	assert_error(try_open(f, NULL, &disk), "its ends are of two formats, vhd and qcow2");
}

static struct opener vhdx_opener;

static struct error *open_base(struct opener *self, const char *locator, int flags, int *fd)
{
	struct disk_create vhdx = {.name = "base", .format = "vhdx", .size = MIB, .sector = 4096};

	assert_string_equal(locator, "base");
	*fd = test_file(0);
	if (self == &vhdx_opener)
		assert_no_error(disk_create(*fd, &vhdx));
	else
		assert_int_equal(ftruncate(*fd, MIB), 0);
	return flags == O_RDONLY ? NULL : error_new(EINVAL, "opened for writing");
}

static void test_backing(void **state)
{
	cleanup_free struct image_file *f = make();
	struct opener opener = {open_base};
	struct disk_options options = {.name = "a.qcow2", .readonly = true, .opener = &opener};
	struct disk *disk;

	(void)state;
	set64(f, 8, 200);
	set32(f, 16, 4);
	memcpy(f->bytes + 200, "base", 4);
	cleanup_fd int fd = write_file(f);
	assert_error(disk_open(&disk, fd, &options), "does not say what format its backing file, \"base\", has");
	set32(f, 104, 0xe2792aca);
	set32(f, 108, 3);
	memcpy(f->bytes + 112, "bad", 3);
	assert_int_equal(pwrite(fd, f->bytes, f->size, 0), f->size);
	assert_error(disk_open(&disk, fd, &options), "unknown format \"bad\" of its backing file");
	memcpy(f->bytes + 112, "raw", 3);
	assert_int_equal(pwrite(fd, f->bytes, f->size, 0), f->size);
	int own = dup(fd);
	assert_no_error(disk_open(&disk, own, &options));
	assert_int_equal(disk_depth(disk), 2);
	/* It names another when it is taken. */
	assert_int_equal(pwrite(fd, "case", 4, 200), 4);
	assert_error(disk_activate(disk), "its backing file was changed since it was opened");
	assert_int_equal(pwrite(fd, "base", 4, 200), 4);
	assert_no_error(disk_activate(disk));
	expect(disk, NULL, PACKED);
	close_disk(disk);
	/* A parent is not asked for less than its sectors. */
	memcpy(f->bytes + 112, "vhdx", 4);
	set32(f, 108, 4);
	assert_int_equal(pwrite(fd, f->bytes, f->size, 0), f->size);
	vhdx_opener.open = open_base;
	options.opener = &vhdx_opener;
	assert_error(disk_open(&disk, fd, &options), "it has sectors of 512 bytes, its parent, base, of 4096");
}

static struct error *open_own(struct opener *self, const char *locator, int flags, int *fd)
{
	cleanup_free struct image_file *f = make();

	*fd = write_file(f);
	return flags == O_RDONLY ? NULL : error_new(EINVAL, "%s: opened for writing", locator);
}

/* A parent that is left is read anew with its child; what it had in memory is not kept beside. */
static void test_taken_again(void **state)
{
	cleanup_free struct image_file *f = make();
	struct opener opener = {open_own};
	struct disk_options options = {.name = "a.qcow2", .readonly = true, .opener = &opener};
	struct disk *disk;

	(void)state;
	set64(f, 8, 200);
	set32(f, 16, 4);
	memcpy(f->bytes + 200, "base", 4);
	set32(f, 104, 0xe2792aca);
	set32(f, 108, 5);
	memcpy(f->bytes + 112, "qcow2", 5);
	assert_no_error(disk_open(&disk, write_file(f), &options));
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(pwrite(disk_fd(disk, 0), "case", 4, 200), 4);
		assert_error(disk_activate(disk), "its backing file was changed since it was opened");
		assert_int_equal(pwrite(disk_fd(disk, 0), "base", 4, 200), 4);
		assert_no_error(disk_activate(disk));
		expect(disk, NULL, PACKED);
		assert_no_error(disk_deactivate(disk));
	}
	disk_close(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads),   cmocka_unit_test(test_info),
		cmocka_unit_test(test_cut),     cmocka_unit_test(test_slots),
		cmocka_unit_test(test_headers), cmocka_unit_test(test_l1_too_large),
		cmocka_unit_test(test_tables),  cmocka_unit_test(test_version_2),
		cmocka_unit_test(test_lengths), cmocka_unit_test(test_subclusters),
		cmocka_unit_test(test_errors),  cmocka_unit_test(test_use),
		cmocka_unit_test(test_backing), cmocka_unit_test(test_taken_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
