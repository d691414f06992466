/*
 * Tests of virtio-blk: each request, each of its errors, on real files, driven through the PCI function and rings in
 * plain memory. blk_state_test.c has pausing, saving, policies and locks.
 */
#include "vmm/virtio/blk_test.h"

#include <linux/falloc.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

/* Whole features, without indirect descriptors, and as a driver that knows nothing but VERSION_1. */
#define ALL_FEATURES (~0ull)
#define NO_INDIRECT  (~(1ull << VIRTIO_RING_F_INDIRECT_DESC))
#define BARE         (1ull << VIRTIO_F_VERSION_1)

static uint32_t config32(unsigned offset)
{
	return (uint32_t)test_read(&f.driver, VIRTIO_BAR_DEVICE + offset, 4);
}

static void test_config(void **state)
{
	struct test_disk config = default_config(memory_disk());

	(void)state;
	config.queues = 3;
	start_disk(config, ALL_FEATURES);
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10421af4);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE, 8), DISK_SECTORS);
	assert_int_equal(config32(0), DISK_SECTORS);
	assert_int_equal(config32(4), 0);
	assert_int_equal(config32(offsetof(struct virtio_blk_config, seg_max)), BLK_SEG_MAX);
	assert_int_equal(config32(offsetof(struct virtio_blk_config, blk_size)), 512);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + offsetof(struct virtio_blk_config, num_queues), 2),
			 3);
	assert_int_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_NUMQ, 2), 3);
	assert_int_equal(config32(offsetof(struct virtio_blk_config, max_discard_sectors)), BLK_RANGE_SECTORS);
	/* What lies behind the configuration reads as zero, and all of it at any width. */
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 0xff9, 4), 0);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 1, 2), DISK_SECTORS >> 8 & 0xffff);
	const uint64_t wanted = 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_MQ |
				1ull << VIRTIO_BLK_F_WRITE_ZEROES | 1ull << VIRTIO_RING_F_EVENT_IDX;
	assert_int_equal(f.driver.features & wanted, wanted);
	assert_int_equal(f.driver.features >> VIRTIO_BLK_F_RO & 1, 0);
	end_disk();
}

static void read_and_write(uint64_t features)
{
	int fd = memory_disk();
	uint8_t file[64 * 512ull];
	uint32_t used;

	start_disk(default_config(fd), features);
	pattern(data_at(0), sizeof(file), 1);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 100, TEST_DATA, sizeof(file), &used), VIRTIO_BLK_S_OK);
	assert_int_equal(used, 1);
	assert_int_equal(pread(fd, file, sizeof(file), 100 * 512ull), sizeof(file));
	assert_memory_equal(file, data_at(0), sizeof(file));
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 100, TEST_DATA + MIB, sizeof(file), &used),
			 VIRTIO_BLK_S_OK);
	assert_int_equal(used, sizeof(file) + 1);
	assert_memory_equal(file, data_at(MIB), sizeof(file));
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_FLUSH, 0, 0, 0, &used), VIRTIO_BLK_S_OK);
	assert_int_equal(used, 1);
	/* The last sector. */
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, DISK_SECTORS - 1, TEST_DATA, 512, NULL),
			 VIRTIO_BLK_S_OK);
	end_disk();
}

static void test_read_write(void **state)
{
	(void)state;
	read_and_write(ALL_FEATURES);
	read_and_write(NO_INDIRECT);
	read_and_write(BARE);
}

/* 2.7.4.1: the framing of a message is the driver's own affair. */
static void test_any_layout(void **state)
{
	int fd = memory_disk();
	uint64_t at = TEST_DATA;
	uint16_t head;
	uint32_t used;
	struct test_buffer write[] = {
		{at, 5, false}, {at + 5, 11 + 100, false}, {at + 116, 412, false}, {at + 600, 1, true}};
	struct test_buffer read[] = {{at, 16, false}, {at + 2048, 500, true}, {at + 4000, 13, true}};
	struct virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_OUT, .sector = 7};

	(void)state;
	start_disk(default_config(fd), NO_INDIRECT);
	memcpy(data_at(0), &header, sizeof(header));
	pattern(data_at(16), 512, 3);
	test_ring_add(&f.ring[0], write, 4, false);
	test_ring_send(&f.ring[0]);
	test_ring_wait(&f.ring[0], &head, &used);
	assert_int_equal(*data_at(600), VIRTIO_BLK_S_OK);
	uint8_t file[512];
	assert_int_equal(pread(fd, file, 512, 7 * 512ull), 512);
	assert_memory_equal(file, data_at(16), 512);
	header.type = VIRTIO_BLK_T_IN;
	memcpy(data_at(0), &header, sizeof(header));
	test_ring_add(&f.ring[0], read, 3, false);
	test_ring_send(&f.ring[0]);
	test_ring_wait(&f.ring[0], &head, &used);
	assert_int_equal(used, 513);
	assert_memory_equal(file, data_at(2048), 500);
	assert_memory_equal(file + 500, data_at(4000), 12);
	assert_int_equal(*data_at(4012), VIRTIO_BLK_S_OK);
	end_disk();
}

static void test_id(void **state)
{
	uint32_t used;

	(void)state;
	start_disk(default_config(memory_disk()), ALL_FEATURES);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_GET_ID, 0, TEST_DATA, 20, &used), VIRTIO_BLK_S_OK);
	assert_int_equal(used, 21);
	assert_memory_equal(data_at(0), "serial-0123456789\0\0\0", 20);
	/* Less room gets less, and more stays as it was: the status byte beyond is then not part of what counts as
	 * written. */
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_GET_ID, 0, TEST_DATA + 64, 6, &used), VIRTIO_BLK_S_OK);
	assert_int_equal(used, 7);
	assert_memory_equal(data_at(64), "serial\0", 7);
	memset(data_at(128), 0x55, 64);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_GET_ID, 0, TEST_DATA + 128, 64, &used), VIRTIO_BLK_S_OK);
	assert_int_equal(used, 20);
	assert_int_equal(*data_at(128 + 20), 0x55);
	end_disk();
}

static void test_bad_requests(void **state)
{
	static const struct {
		uint32_t type;
		uint64_t sector;
		uint32_t len;
		uint8_t status;
	} bad[] = {
		{VIRTIO_BLK_T_IN, DISK_SECTORS, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, DISK_SECTORS, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, DISK_SECTORS - 1, 1024, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, ~0ull, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, ~0ull / 512, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, ~0ull / 512 + 1, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, 0, 511, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, 0, 1, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, 0, 513, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, 0, 0, VIRTIO_BLK_S_OK}, /* nothing to do */
		{VIRTIO_BLK_T_SCSI_CMD, 0, 512, VIRTIO_BLK_S_UNSUPP},
		{VIRTIO_BLK_T_SECURE_ERASE, 0, 16, VIRTIO_BLK_S_UNSUPP},
		{0xffffffff, 0, 512, VIRTIO_BLK_S_UNSUPP},
	};
	uint32_t used;

	(void)state;
	start_disk(default_config(memory_disk()), ALL_FEATURES);
	memset(data_at(0), 0x77, 4096);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		uint8_t status = test_blk(&f.ring[0], bad[i].type, bad[i].sector, TEST_DATA, bad[i].len, &used);
		if (status != bad[i].status)
			fail_msg("case %zu: status %u", i, status);
		/* Nothing but the status was written, so nothing is claimed where data precedes it. */
		assert_int_equal(used, bad[i].type == VIRTIO_BLK_T_IN && bad[i].len ? 0 : 1);
	}
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(*data_at(i), 0x77);
	assert_int_equal(test_status(&f.driver), 15);
	end_disk();
}

static void test_readonly(void **state)
{
	int fd = memory_disk(), again;
	char path[64];
	struct virtio_blk_discard_write_zeroes range = {.num_sectors = 8};

	(void)state;
	assert_int_equal(pwrite(fd, "here", 4, 512), 4);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	struct test_disk config = default_config(again);
	config.drive.readonly = true;
	start_disk(config, ALL_FEATURES);
	assert_int_equal(f.driver.features >> VIRTIO_BLK_F_RO & 1, 1);
	assert_int_equal(f.driver.features >> VIRTIO_BLK_F_DISCARD & 1, 0);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 1, TEST_DATA, 512, NULL), VIRTIO_BLK_S_OK);
	assert_memory_equal(data_at(0), "here", 4);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 1, TEST_DATA + 4096, 512, NULL), VIRTIO_BLK_S_IOERR);
	memcpy(data_at(0), &range, sizeof(range));
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_DISCARD, 0, TEST_DATA, 16, NULL), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_WRITE_ZEROES, 0, TEST_DATA, 16, NULL), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_FLUSH, 0, 0, 0, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 1, TEST_DATA, 512, NULL), VIRTIO_BLK_S_OK);
	assert_memory_equal(data_at(0), "here", 4);
	end_disk();
	close(fd);
}

/* --- discard and write zeroes --- */

static uint8_t range_request(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags, uint32_t len)
{
	struct virtio_blk_discard_write_zeroes range = {.sector = sector, .num_sectors = sectors, .flags = flags};

	memset(data_at(0), 0, 64);
	memcpy(data_at(0), &range, sizeof(range));
	return test_blk(&f.ring[0], type, 0, TEST_DATA, len, NULL);
}

static uint64_t allocated(int fd)
{
	struct stat st;

	assert_int_equal(fsync(fd), 0); /* delayed allocation */
	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512ull;
}

static void expect_bytes(int fd, uint64_t offset, uint64_t len, uint8_t value)
{
	static uint8_t buf[MIB];

	while (len > 0) {
		uint64_t n = MIN(len, sizeof(buf));
		assert_int_equal(pread(fd, buf, n, (off_t)offset), n);
		for (uint64_t i = 0; i < n; i++)
			if (buf[i] != value)
				fail_msg("byte %llu is %u, not %u", (unsigned long long)(offset + i), buf[i], value);
		offset += n;
		len -= n;
	}
}

static void fill_disk(int fd, uint8_t value)
{
	static uint8_t buf[MIB];

	memset(buf, value, sizeof(buf));
	for (uint64_t at = 0; at < DISK_BYTES; at += sizeof(buf))
		assert_int_equal(pwrite(fd, buf, sizeof(buf), (off_t)at), sizeof(buf));
}

static void ranges(int fd)
{
	start_disk(default_config(fd), ALL_FEATURES);
	fill_disk(fd, 0xaa);
	uint64_t full = allocated(fd);
	assert_true(full >= DISK_BYTES);

	/* Zeroes that stay allocated, at odd sectors, over more than one step where they are written plainly. */
	assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, 3, 5001, 0, 16), VIRTIO_BLK_S_OK);
	expect_bytes(fd, 0, 3 * 512ull, 0xaa);
	expect_bytes(fd, 3 * 512ull, 5001 * 512ull, 0);
	expect_bytes(fd, 5004 * 512ull, DISK_BYTES - 5004 * 512ull, 0xaa);
	assert_true(allocated(fd) >= DISK_BYTES);

	/* Zeroes that may be deallocated are; what is discarded, too. */
	fill_disk(fd, 0xbb);
	assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, 2048, 2048, 1, 16), VIRTIO_BLK_S_OK);
	expect_bytes(fd, 2048 * 512ull, 2048 * 512ull, 0);
	assert_true(allocated(fd) <= full - 2048 * 512ull);
	assert_int_equal(range_request(VIRTIO_BLK_T_DISCARD, 8192, 2048, 0, 16), VIRTIO_BLK_S_OK);
	assert_true(allocated(fd) <= full - 4096 * 512ull);
	expect_bytes(fd, 0, 2048 * 512ull, 0xbb);
	expect_bytes(fd, 4096 * 512ull, 4096 * 512ull, 0xbb);
	expect_bytes(fd, 10240 * 512ull, DISK_BYTES - 10240 * 512ull, 0xbb);
	/* The file kept its size to the end. */
	assert_int_equal(range_request(VIRTIO_BLK_T_DISCARD, 0, DISK_SECTORS, 0, 16), VIRTIO_BLK_S_OK);
	assert_int_equal(lseek(fd, 0, SEEK_END), DISK_BYTES);
	end_disk();
}

static void test_ranges(void **state)
{
	(void)state;
	ranges(memory_disk()); /* tmpfs knows no FALLOC_FL_ZERO_RANGE: zeroes are written */
	ranges(file_disk(0));
}

static void test_bad_ranges(void **state)
{
	static const struct {
		uint64_t sector;
		uint32_t sectors, flags, len;
		uint8_t discard, zeroes;
	} bad[] = {
		{0, 8, 1, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_OK}, /* unmap means something for zeroes only */
		{0, 8, 2, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_UNSUPP},
		{0, 8, 0x80000000, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_UNSUPP},
		{DISK_SECTORS, 1, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{1, DISK_SECTORS, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{~0ull, 2, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, BLK_RANGE_SECTORS + 1, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 0xffffffff, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 8, 0, 32, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR}, /* two ranges: one is advertised */
		{0, 8, 0, 15, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 8, 0, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 0, 0, 16, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK},
	};

	(void)state;
	start_disk(default_config(memory_disk()), ALL_FEATURES);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		uint8_t discard =
			range_request(VIRTIO_BLK_T_DISCARD, bad[i].sector, bad[i].sectors, bad[i].flags, bad[i].len);
		uint8_t zeroes = range_request(VIRTIO_BLK_T_WRITE_ZEROES, bad[i].sector, bad[i].sectors, bad[i].flags,
					       bad[i].len);
		if (discard != bad[i].discard || zeroes != bad[i].zeroes)
			fail_msg("case %zu: discard %u, zeroes %u", i, discard, zeroes);
	}
	/* A driver that did not negotiate them. */
	drive(BARE, 128);
	assert_int_equal(range_request(VIRTIO_BLK_T_DISCARD, 0, 8, 0, 16), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0, 16), VIRTIO_BLK_S_UNSUPP);
	end_disk();
}

/* --- durability --- */

struct cache_range {
	uint64_t offset, len;
};

struct cache_counts {
	uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

/* Pages of the file that are not on disk yet (cachestat(2), Linux 6.5). */
static uint64_t dirty_pages(int fd)
{
	struct cache_range range = {0, DISK_BYTES};
	struct cache_counts counts;
	struct statfs fs;

	/* tmpfs calls no page dirty: nowhere to write it. */
	if (fstatfs(fd, &fs) != 0 || fs.f_type == TMPFS_MAGIC || syscall(451, fd, &range, &counts, 0) != 0) {
		print_message("no way to see what is not durable here\n");
		skip();
	}
	return counts.dirty + counts.writeback;
}

/* A write without a way to flush is durable when acknowledged; with one, when flushed (5.2.6.2). */
static void test_durable(void **state)
{
	int fd = file_disk(0);
	const unsigned wce = VIRTIO_BAR_DEVICE + offsetof(struct virtio_blk_config, wce);

	(void)state;
	start_disk(default_config(fd), ALL_FEATURES);
	pattern(data_at(0), 65536, 9);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 0, TEST_DATA, 65536, NULL), VIRTIO_BLK_S_OK);
	assert_int_not_equal(dirty_pages(fd), 0);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_FLUSH, 0, 0, 0, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(dirty_pages(fd), 0);
	/* The cache turned off by the driver (5.2.5.1). */
	assert_int_equal(test_read(&f.driver, wce, 1), 1);
	uint64_t generation = test_read(&f.driver, VIRTIO_PCI_COMMON_CFGGENERATION, 1);
	test_write(&f.driver, wce, 0, 1);
	assert_int_equal(test_read(&f.driver, wce, 1), 0);
	assert_int_not_equal(test_read(&f.driver, VIRTIO_PCI_COMMON_CFGGENERATION, 1), generation);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 0, TEST_DATA, 65536, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(dirty_pages(fd), 0);
	test_write(&f.driver, wce, 1, 1);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 0, TEST_DATA, 65536, NULL), VIRTIO_BLK_S_OK);
	assert_int_not_equal(dirty_pages(fd), 0);
	/* A driver that cannot flush. */
	drive(BARE, 128);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 0, TEST_DATA, 65536, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(dirty_pages(fd), 0);
	/* It cannot write the configuration either. */
	test_write(&f.driver, wce, 0, 1);
	test_write(&f.driver, VIRTIO_BAR_DEVICE, 0, 8);
	assert_int_equal(test_read(&f.driver, wce, 1), 1);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE, 8), DISK_SECTORS);
	end_disk();
}

/* --- direct I/O --- */

static void direct(uint64_t misalign)
{
	struct test_ring *r = &f.ring[0];
	enum { COUNT = 24, BYTES = 3 * 65536 / 2 };
	uint16_t head;
	uint32_t used;

	/* Many at once, so that those that need the bounce buffer wait for each other; each larger than it. */
	for (unsigned i = 0; i < COUNT; i++) {
		pattern(data_at(misalign + i * 0x20000ull), BYTES, 100 + i);
		test_blk_add(r, i, VIRTIO_BLK_T_OUT, i * 512ull, TEST_DATA + misalign + i * 0x20000ull, BYTES, true);
	}
	test_ring_send(r);
	for (unsigned i = 0; i < COUNT; i++)
		test_ring_wait(r, &head, &used);
	for (unsigned i = 0; i < COUNT; i++) {
		assert_int_equal(*test_blk_status(r, i), VIRTIO_BLK_S_OK);
		memset(data_at(misalign + i * 0x20000ull), 0, BYTES);
		test_blk_add(r, i, VIRTIO_BLK_T_IN, i * 512ull, TEST_DATA + misalign + i * 0x20000ull, BYTES, true);
	}
	test_ring_send(r);
	for (unsigned i = 0; i < COUNT; i++) {
		test_ring_wait(r, &head, &used);
		assert_int_equal(used, BYTES + 1);
	}
	for (unsigned i = 0; i < COUNT; i++) {
		static uint8_t want[BYTES];
		pattern(want, BYTES, 100 + i);
		assert_int_equal(*test_blk_status(r, i), VIRTIO_BLK_S_OK);
		assert_memory_equal(want, data_at(misalign + i * 0x20000ull), BYTES);
	}
}

static void test_direct(void **state)
{
	int fd = file_disk(O_DIRECT);

	(void)state;
	start_disk(default_config(fd), ALL_FEATURES);
	direct(0);
	direct(1);
	direct(511);
	/* Buffers cut at odd places, of which none alone is aligned. */
	struct virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_IN, .sector = 0};
	struct test_buffer b[] = {{TEST_DATA, 16, false},
				  {TEST_DATA + 4096, 100, true},
				  {TEST_DATA + 8192, 412, true},
				  {TEST_DATA + 12288, 1, true}};
	uint8_t want[512];
	uint16_t head;
	uint32_t used;
	pattern(want, 512, 100);
	memcpy(data_at(0), &header, sizeof(header));
	test_ring_add(&f.ring[0], b, 4, true);
	test_ring_send(&f.ring[0]);
	test_ring_wait(&f.ring[0], &head, &used);
	assert_int_equal(used, 513);
	assert_memory_equal(data_at(4096), want, 100);
	assert_memory_equal(data_at(8192), want + 100, 412);
	end_disk();
}

/* --- malformed requests --- */

static void expect_needs_reset(void)
{
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	assert_true(test_until(test_interrupts(&f.driver, 0) == 1));
	/* Nothing more: after a reset the device works. */
	drive(NO_INDIRECT, 128);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 0, TEST_DATA, 512, NULL), VIRTIO_BLK_S_OK);
}

static void test_malformed(void **state)
{
	static const struct {
		unsigned count;
		struct test_buffer b[3];
	} bad[] = {
		{1, {{TEST_DATA, 16, false}}},                                                 /* no status */
		{2, {{TEST_DATA, 16, false}, {TEST_DATA, 512, false}}},                        /* no status */
		{1, {{TEST_DATA, 512, true}}},                                                 /* no header */
		{2, {{TEST_DATA, 15, false}, {TEST_DATA, 512, true}}},                         /* short header */
		{3, {{TEST_DATA, 16, false}, {TEST_MEMORY, 512, true}, {TEST_DATA, 1, true}}}, /* not in memory */
		{3, {{TEST_DATA, 16, false}, {TEST_DATA, 512, true}, {TEST_DATA, 1, false}}},  /* wrong order */
		{3, {{TEST_DATA, 16, false}, {TEST_DATA, 0, true}, {TEST_DATA, 1, true}}},     /* empty */
	};

	(void)state;
	start_disk(default_config(memory_disk()), NO_INDIRECT);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		memset(data_at(0), 0, 16);
		test_ring_add(&f.ring[0], bad[i].b, bad[i].count, false);
		test_ring_send(&f.ring[0]);
		expect_needs_reset();
	}
	f.ring[0].avail_idx += 300; /* more than the ring holds */
	test_ring_publish(&f.ring[0]);
	test_ring_kick(&f.ring[0]);
	expect_needs_reset();
	end_disk();
}

/* What was in flight when its queue broke ends, and does no harm. */
static void test_break_under_load(void **state)
{
	(void)state;
	start_disk(default_config(memory_disk()), NO_INDIRECT);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 30; i++)
			test_blk_add(&f.ring[0], i, VIRTIO_BLK_T_OUT, i * 64ull, TEST_DATA + i * 32768ull, 32768,
				     false);
		test_ring_add(&f.ring[0], &(struct test_buffer){~0ull, 1, true}, 1, false);
		test_ring_send(&f.ring[0]);
		expect_needs_reset();
	}
	end_disk();
}

/* Resets in the middle of requests: none of them touches memory afterwards. */
static void test_reset_under_load(void **state)
{
	(void)state;
	start_disk(default_config(memory_disk()), NO_INDIRECT);
	for (unsigned round = 0; round < 30; round++) {
		for (unsigned i = 0; i < 40; i++)
			test_blk_add(&f.ring[0], i, VIRTIO_BLK_T_IN, i * 64ull, TEST_DATA + i * 32768ull, 32768, false);
		test_ring_publish(&f.ring[0]);
		test_ring_kick(&f.ring[0]);
		usleep(round * 20);
		test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
		memset(data_at(0), 0x5a, 40 * 32768ull);
		uint16_t idx = f.ring[0].used->idx;
		usleep(1000);
		assert_int_equal(f.ring[0].used->idx, idx);
		for (unsigned i = 0; i < 40 * 32768ull; i++)
			assert_int_equal(*data_at(i), 0x5a);
		drive(NO_INDIRECT, 128);
	}
	end_disk();
}

/* --- notifications --- */

static void test_event_idx(void **state)
{
	struct test_ring *r;
	uint16_t head;
	uint32_t used;

	(void)state;
	start_disk(default_config(memory_disk()), ALL_FEATURES);
	r = &f.ring[0];
	/* No interrupt before the fifth completion, however they are batched. */
	r->avail->ring[r->size] = 4;
	for (unsigned i = 0; i < 4; i++) {
		test_blk_add(r, i, VIRTIO_BLK_T_IN, i, TEST_DATA + i * 512ull, 512, true);
		test_ring_send(r);
		assert_true(test_until(__atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) == i + 1));
	}
	usleep(2000);
	assert_int_equal(test_interrupts(&f.driver, 1), 0);
	test_blk_add(r, 4, VIRTIO_BLK_T_IN, 4, TEST_DATA, 512, true);
	test_ring_send(r);
	assert_true(test_until(test_interrupts(&f.driver, 1) == 1));
	for (unsigned i = 0; i < 5; i++)
		test_ring_wait(r, &head, &used);
	/* Idle, the device asks for a doorbell with the very next entry. */
	assert_true(test_until(__atomic_load_n((uint16_t *)&r->used->ring[r->size], __ATOMIC_RELAXED) == r->avail_idx));
	/* One interrupt, not a hundred, for a hundred requests that the driver looks at only at the end. */
	r->avail->ring[r->size] = (uint16_t)(r->used_seen + 99);
	for (unsigned i = 0; i < 100; i++)
		test_blk_add(r, i, VIRTIO_BLK_T_IN, i, TEST_DATA + i * 512ull, 512, true);
	test_ring_send(r);
	assert_true(test_until(test_interrupts(&f.driver, 1) == 1));
	assert_int_equal(r->used->idx, (uint16_t)(r->used_seen + 100));
	end_disk();
}

static void test_no_interrupt_flag(void **state)
{
	struct test_ring *r = &f.ring[0];

	(void)state;
	start_disk(default_config(memory_disk()), BARE);
	r->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	test_blk_add(r, 0, VIRTIO_BLK_T_IN, 0, TEST_DATA, 512, false);
	test_ring_send(r);
	assert_true(test_until(__atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) == 1));
	usleep(2000);
	assert_int_equal(test_interrupts(&f.driver, 1), 0);
	end_disk();
}

/* --- descriptors that are no disk --- */

static void refuse(int fd, bool readonly, const char *words)
{
	struct test_machine *m = &f.machine;
	struct test_disk config = default_config(fd);

	test_machine_init(m, NULL);
	config.drive.readonly = readonly;
	struct error *err = make_disk(m, &config, &f.drive, &f.blk);
	assert_non_null(err);
	if (!strstr(error_text(err), words))
		fail_msg("%s", error_text(err));
	error_free(err);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* the drive's, which is not */
	test_machine_destroy(m, false);
}

static int disk_of(off_t bytes)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, bytes), 0);
	return fd;
}

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, flags | O_CLOEXEC);
	close(fd);
	assert_true(again >= 0);
	return again;
}

static void test_no_disk(void **state)
{
	int pipes[2];

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	close(pipes[1]);
	refuse(pipes[0], true, "neither a regular file nor a block device");
	refuse(open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), true, "neither a regular file nor a block device");
	refuse(disk_of(0), false, "not a number of 512-byte blocks");
	refuse(disk_of(512 * 3 + 1), false, "not a number of 512-byte blocks");
	refuse(reopen(disk_of(4096), O_RDONLY), false, "not open for reading and writing");
	refuse(reopen(disk_of(4096), O_WRONLY), false, "not open for reading");
	refuse(reopen(disk_of(4096), O_RDWR | O_APPEND), false, "appends");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_read_write),
		cmocka_unit_test(test_any_layout),
		cmocka_unit_test(test_id),
		cmocka_unit_test(test_bad_requests),
		cmocka_unit_test(test_readonly),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_bad_ranges),
		cmocka_unit_test(test_durable),
		cmocka_unit_test(test_direct),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_break_under_load),
		cmocka_unit_test(test_reset_under_load),
		cmocka_unit_test(test_event_idx),
		cmocka_unit_test(test_no_interrupt_flag),
		cmocka_unit_test(test_no_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
