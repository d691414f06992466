/*
 * Tests of the NVMe controller's data: each command of the disk, by every kind of PRP, with each of its errors, and
 * what is durable when. On real files, through queues in plain memory.
 */
#include "vmm/nvme/fixture.h"

/* A list of @count pages at @list that go downwards in memory, so that none follows the other; two for two lists. */
static void put_list(uint64_t list, unsigned count, uint64_t top)
{
	uint64_t *entry = test_at(&t.machine, list);

	for (unsigned i = 0; i < count; i++, entry++) {
		if (is_aligned((uint64_t)(entry + 1) - (uint64_t)t.machine.memory.host, PAGE_BYTES) && i + 1 < count) {
			uint64_t next = align_down(list, PAGE_BYTES) + 0x3000;
			*entry = next;
			entry = test_at(&t.machine, next);
		}
		*entry = top - i * 0x2000;
	}
}

static void test_prps(void **state)
{
	/* Bytes, the first page's offset, where the list begins in its page. */
	static const struct {
		uint64_t bytes, offset, list;
	} cases[] = {{512, 0, 0},          {512, 0xe00, 0}, {512, 0xf00, 0},        {4096, 0, 0},
		     {4096, 4, 0},         {8192, 0, 0},    {8192, 0x800, 0},       {65536, 0, 0xff8},
		     {65536, 0x10, 0xfe0}, {524288, 0, 0},  {524288, 0xffc, 0xf00}, {524288, 0, 0xff0}};
	const uint64_t first = TEST_DATA, top = TEST_DATA + 8 * MIB, list = TEST_DATA + 10 * MIB;

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t bytes = cases[i].bytes, head = MIN(bytes, PAGE_BYTES - cases[i].offset), prp2 = 0;
		unsigned pages = (unsigned)((bytes - head + PAGE_BYTES - 1) / PAGE_BYTES);
		cleanup_free uint8_t *want = malloc(bytes), *got = malloc(bytes);
		if (pages == 1)
			prp2 = top;
		else if (pages > 1)
			prp2 = list + cases[i].list;
		if (pages > 1)
			put_list(prp2, pages, top);
		pattern(want, bytes, i + 1);
		memcpy(test_at(&t.machine, first + cases[i].offset), want, head);
		for (unsigned p = 0; p < pages; p++)
			memcpy(test_at(&t.machine, top - p * 0x2000), want + head + p * PAGE_BYTES,
			       MIN(PAGE_BYTES, bytes - head - p * PAGE_BYTES));
		assert_int_equal(io(test_io(NVME_WRITE, 7, (uint32_t)(bytes / 512), first + cases[i].offset, prp2)),
				 NVME_SUCCESS);
		assert_int_equal(pread(t.drive_config.fd, got, bytes, 7 * 512), bytes);
		assert_memory_equal(want, got, bytes);
		/* And back: every page is spoilt first, what lies around must stay. */
		memset(test_at(&t.machine, first), 0x55, PAGE_BYTES);
		for (unsigned p = 0; p < pages; p++)
			memset(test_at(&t.machine, top - p * 0x2000), 0x55, 0x2000);
		assert_int_equal(io(test_io(NVME_READ, 7, (uint32_t)(bytes / 512), first + cases[i].offset, prp2)),
				 NVME_SUCCESS);
		assert_memory_equal(test_at(&t.machine, first + cases[i].offset), want, head);
		for (unsigned p = 0; p < pages; p++) {
			uint64_t len = MIN(PAGE_BYTES, bytes - head - p * PAGE_BYTES);
			uint8_t *page = test_at(&t.machine, top - p * 0x2000);
			assert_memory_equal(page, want + head + p * PAGE_BYTES, len);
			assert_int_equal(page[len], 0x55);
		}
	}
	end();
}

static void test_bad_prps(void **state)
{
	const uint64_t list = TEST_DATA + MIB;
	uint64_t *entry;

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	entry = test_at(&t.machine, list);
	for (unsigned i = 0; i < 512; i++)
		entry[i] = TEST_DATA;
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA + 1, 0)), NVME_INVALID_PRP_OFFSET);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_MEMORY, 0)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, ~0xfffull, 0)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, t.bar, 0)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(test_io(NVME_READ, 0, 16, TEST_DATA, TEST_DATA + 8)), NVME_INVALID_PRP_OFFSET);
	assert_int_equal(io(test_io(NVME_READ, 0, 16, TEST_DATA, TEST_MEMORY)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(test_io(NVME_READ, 0, 64, TEST_DATA, list + 4)), NVME_INVALID_PRP_OFFSET);
	assert_int_equal(io(test_io(NVME_READ, 0, 64, TEST_DATA, TEST_MEMORY)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(test_io(NVME_READ, 0, 64, TEST_DATA, list)), NVME_SUCCESS);
	entry[3] += 512;
	assert_int_equal(io(test_io(NVME_READ, 0, 64, TEST_DATA, list)), NVME_INVALID_PRP_OFFSET);
	entry[3] = 1ull << 50;
	assert_int_equal(io(test_io(NVME_READ, 0, 64, TEST_DATA, list)), NVME_TRANSFER_ERROR);
	/* A list that leads to itself ends with the transfer; one that goes on in the middle of a page is refused. */
	entry[3] = TEST_DATA;
	entry[511] = list;
	assert_int_equal(io(test_io(NVME_READ, 0, 1024, TEST_DATA, list + 4088)), NVME_SUCCESS);
	entry[511] = list + 8;
	assert_int_equal(io(test_io(NVME_READ, 0, 1024, TEST_DATA, list + 4088)), NVME_INVALID_PRP_OFFSET);
	assert_int_equal(io(test_io(NVME_READ, 0, 1025, TEST_DATA, list)), NVME_INVALID_FIELD); /* MDTS */
	end();
}

static void test_bad_commands(void **state)
{
	const uint64_t blocks = DISK_BYTES / 512;
	struct nvme_command c;

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_READ, blocks - 1, 1, TEST_DATA, 0)), NVME_SUCCESS);
	assert_int_equal(io(test_io(NVME_READ, blocks, 1, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	assert_int_equal(io(test_io(NVME_READ, blocks - 1, 2, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	assert_int_equal(io(test_io(NVME_WRITE, ~0ull, 1, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	assert_int_equal(io(test_io(NVME_WRITE, ~0ull, 2, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	assert_int_equal(io(test_io(NVME_WRITE, 1ull << 55, 8, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	assert_int_equal(io(test_io(NVME_WRITE_ZEROES, blocks - 1, 0x10000, 0, 0)), NVME_LBA_OUT_OF_RANGE);
	for (unsigned nsid = 0; nsid < 3; nsid++) {
		c = test_io(NVME_READ, 0, 1, TEST_DATA, 0);
		c.nsid = nsid;
		assert_int_equal(io(c), nsid == 1 ? NVME_SUCCESS : NVME_INVALID_NAMESPACE);
	}
	c = test_io(NVME_FLUSH, 0, 1, 0, 0);
	c.nsid = NVME_NSID_ALL;
	assert_int_equal(io(c), NVME_SUCCESS);
	c.opcode = NVME_WRITE;
	assert_int_equal(io(c), NVME_INVALID_NAMESPACE);
	for (unsigned flag = 0; flag < 8; flag++) {
		c = test_io(NVME_READ, 0, 1, TEST_DATA, 0);
		c.flags = (uint8_t)(1u << flag); /* fused, SGL */
		assert_int_equal(io(c), NVME_INVALID_FIELD);
	}
	for (unsigned opcode = 0; opcode < 256; opcode++) {
		if (opcode <= 2 || opcode == NVME_WRITE_ZEROES || opcode == NVME_DATASET)
			continue;
		assert_int_equal(io(test_io((uint8_t)opcode, 0, 1, TEST_DATA, 0)), NVME_INVALID_OPCODE);
	}
	end();
}

/* Flush, FUA both ways, the cache turned off, write zeroes and discards with FUA: what is durable when. */
static void test_durable(void **state)
{
	struct nvme_command c;

	(void)state;
	begin(file_disk(0), 1);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_WRITE, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_true(dirty_pages() > 0);
	assert_int_equal(io(test_io(NVME_FLUSH, 0, 1, 0, 0)), NVME_SUCCESS);
	assert_int_equal(dirty_pages(), 0);
	c = test_io(NVME_WRITE, 8, 8, TEST_DATA, 0);
	c.cdw12 |= NVME_FUA;
	assert_int_equal(io(c), NVME_SUCCESS);
	assert_int_equal(dirty_pages(), 0);
	/* Read with FUA what was not durable. */
	assert_int_equal(io(test_io(NVME_WRITE, 16, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_true(dirty_pages() > 0);
	c = test_io(NVME_READ, 16, 8, TEST_DATA + MIB, 0);
	c.cdw12 |= NVME_FUA;
	assert_int_equal(io(c), NVME_SUCCESS);
	assert_int_equal(dirty_pages(), 0);
	assert_memory_equal(data_at(0), data_at(MIB), 4096);
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_WRITE_CACHE, 0).status, NVME_SUCCESS);
	assert_int_equal(io(test_io(NVME_WRITE, 24, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_int_equal(dirty_pages(), 0);
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_WRITE_CACHE, 1).status, NVME_SUCCESS);
	assert_int_equal(io(test_io(NVME_WRITE, 24, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_true(dirty_pages() > 0);
	end();
}

static void test_zeroes(void **state)
{
	static uint8_t file[64 * 512], want[64 * 512];
	struct nvme_command c;

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	pattern(want, sizeof(want), 5);
	assert_int_equal(pwrite(t.drive_config.fd, want, sizeof(want), 0), sizeof(want));
	assert_int_equal(io(test_io(NVME_WRITE_ZEROES, 3, 2, 0, 0)), NVME_SUCCESS);
	memset(want + 3 * 512, 0, 1024);
	c = test_io(NVME_WRITE_ZEROES, 16, 24, 0, 0);
	c.cdw12 |= NVME_DEALLOCATE | NVME_FUA;
	assert_int_equal(io(c), NVME_SUCCESS);
	memset(want + 16 * 512, 0, 24 * 512);
	assert_int_equal(pread(t.drive_config.fd, file, sizeof(file), 0), sizeof(file));
	assert_memory_equal(file, want, sizeof(file));
	/* More than a transfer may be. */
	assert_int_equal(io(test_io(NVME_WRITE_ZEROES, 0, DISK_BYTES / 512, 0, 0)), NVME_SUCCESS);
	memset(want, 0, sizeof(want));
	assert_int_equal(pread(t.drive_config.fd, file, sizeof(file), 0), sizeof(file));
	assert_memory_equal(file, want, sizeof(file));
	end();
}

static struct nvme_command discard(unsigned ranges, uint64_t prp1, uint64_t prp2)
{
	return (struct nvme_command){
		.opcode = NVME_DATASET, .nsid = 1, .prp1 = prp1, .prp2 = prp2, .cdw10 = ranges - 1, .cdw11 = 4};
}

/* Ranges of a list in two pages, some empty, up to as many as there may be; what is around them stays. */
static void test_discard(void **state)
{
	static uint8_t file[DISK_BYTES];
	const uint64_t at = TEST_DATA + 0xff8, next = TEST_DATA + 0x5000;
	struct nvme_range range[256];

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	memset(file, 0xaa, sizeof(file));
	assert_int_equal(pwrite(t.drive_config.fd, file, sizeof(file), 0), sizeof(file));
	for (unsigned i = 0; i < 256; i++)
		range[i] = (struct nvme_range){.blocks = i % 3 == 2 ? 0 : 8, .block = 16ull * i};
	memcpy(test_at(&t.machine, at), range, 8);
	memcpy(test_at(&t.machine, next), (uint8_t *)range + 8, sizeof(range) - 8);
	assert_int_equal(io(discard(256, at, next)), NVME_SUCCESS);
	assert_int_equal(pread(t.drive_config.fd, file, sizeof(file), 0), sizeof(file));
	for (unsigned block = 0; block < 4096 + 100; block++) {
		bool gone = block / 16 < 256 && block % 16 < 8 && block / 16 % 3 != 2;
		assert_int_equal(file[block * 512], gone ? 0 : 0xaa);
		assert_int_equal(file[block * 512 + 511], gone ? 0 : 0xaa);
	}
	/* One that is not on the disk, the list itself elsewhere, nothing to discard. */
	struct nvme_range *first = test_at(&t.machine, TEST_DATA);
	*first = (struct nvme_range){.blocks = 0xffffffff, .block = 1};
	assert_int_equal(io(discard(1, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	*first = (struct nvme_range){.blocks = 2, .block = ~0ull};
	assert_int_equal(io(discard(1, TEST_DATA, 0)), NVME_LBA_OUT_OF_RANGE);
	assert_int_equal(io(discard(1, TEST_MEMORY, 0)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(discard(256, TEST_DATA + 0x1ff8, TEST_MEMORY)), NVME_TRANSFER_ERROR);
	struct nvme_command c = discard(1, TEST_MEMORY, 0);
	c.cdw11 = 3;
	assert_int_equal(io(c), NVME_SUCCESS);
	end();
}

static void test_readonly(void **state)
{
	(void)state;
	begin_readonly();
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_int_equal(io(test_io(NVME_FLUSH, 0, 1, 0, 0)), NVME_SUCCESS);
	assert_int_equal(io(test_io(NVME_WRITE, 0, 8, TEST_DATA, 0)), NVME_WRITE_PROTECTED);
	assert_int_equal(io(test_io(NVME_WRITE_ZEROES, 0, 8, 0, 0)), NVME_WRITE_PROTECTED);
	assert_int_equal(io(discard(1, TEST_DATA, 0)), NVME_WRITE_PROTECTED);
	assert_int_equal(test_admin(&t, identify(0, 1)), NVME_SUCCESS);
	assert_int_equal(data_at(0)[99], 1);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_prps),     cmocka_unit_test(test_bad_prps), cmocka_unit_test(test_bad_commands),
		cmocka_unit_test(test_durable),  cmocka_unit_test(test_zeroes),   cmocka_unit_test(test_discard),
		cmocka_unit_test(test_readonly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
