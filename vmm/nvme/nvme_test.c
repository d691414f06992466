/*
 * Tests of the NVMe controller: registers, each admin command and each of its errors, queues in every order and size,
 * events, interrupts, doorbells in memory. Through the function and queues in plain memory. nvme_io_test.c has the
 * data, nvme_state_test.c pausing, moving, policies.
 */
#include "vmm/nvme/fixture.h"

/* --- registers --- */

static void test_registers(void **state)
{
	(void)state;
	begin(memory_disk(), 1);
	assert_int_equal(test_config_read(&t.machine, 8, 4) >> 8, 0x010802);
	uint64_t cap = test_get(&t, NVME_CAP, 8);
	assert_int_equal(cap & 0xffff, 1023);
	assert_int_equal(cap >> 16 & 1, 1);
	assert_int_equal(cap >> 32 & 0xf, 0);  /* doorbells are 4 bytes apart */
	assert_int_equal(cap >> 37 & 0xff, 1); /* the NVM command set */
	assert_int_equal(cap >> 48 & 0xff, 0); /* pages of 4 KiB */
	assert_int_equal(test_get(&t, 4, 4), cap >> 32);
	assert_int_equal(test_get(&t, NVME_VS, 4), 0x10400);
	test_disable(&t);
	/* Addresses are of pages; halves and wholes are the same; narrow writes write nothing. */
	test_set(&t, NVME_ASQ, 0x12345fff, 4);
	test_set(&t, NVME_ASQ + 4, 7, 4);
	assert_int_equal(test_get(&t, NVME_ASQ, 8), 0x712345000);
	test_set(&t, NVME_ACQ, 0xffffffffffffffff, 8);
	assert_int_equal(test_get(&t, NVME_ACQ, 8), 0xfffffffffffff000);
	test_set(&t, NVME_ASQ, 0, 2);
	test_set(&t, NVME_ASQ + 2, 0, 4);
	assert_int_equal(test_get(&t, NVME_ASQ, 8), 0x712345000);
	test_set(&t, NVME_AQA, 0xffffffff, 4);
	assert_int_equal(test_get(&t, NVME_AQA, 4), 0x0fff0fff);
	assert_int_equal(test_get(&t, 0xf00, 8), 0);
	assert_int_equal(test_get(&t, NVME_DOORBELLS, 4), 0);
	end();
}

/* What cannot work is a fatal error, until the controller is disabled. */
static void test_enabling(void **state)
{
	static const struct {
		uint32_t cc, aqa;
		uint64_t asq, acq;
	} bad[] = {
		{0x10, 0x001f001f, TEST_QUEUES, TEST_QUEUES},  /* another command set */
		{0x80, 0x001f001f, TEST_QUEUES, TEST_QUEUES},  /* pages of 8 KiB */
		{0x800, 0x001f001f, TEST_QUEUES, TEST_QUEUES}, /* another arbitration */
		{0, 0x001f0000, TEST_QUEUES, TEST_QUEUES},     /* queues of one entry */
		{0, 0x0000001f, TEST_QUEUES, TEST_QUEUES},
		{0, 0x001f001f, TEST_MEMORY, TEST_QUEUES}, /* queues that are not in memory */
		{0, 0x001f001f, TEST_QUEUES, 0xfffffffffffff000},
		{0, 0x0fff0fff, TEST_MEMORY - 0x1000, TEST_QUEUES},
		{0, 0x001f001f, 0xfee00000, TEST_QUEUES},
	};

	(void)state;
	begin(memory_disk(), 1);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		test_disable(&t);
		test_set(&t, NVME_AQA, bad[i].aqa, 4);
		test_set(&t, NVME_ASQ, bad[i].asq, 8);
		test_set(&t, NVME_ACQ, bad[i].acq, 8);
		test_set(&t, NVME_CC, bad[i].cc | NVME_CC_ENABLE, 4);
		assert_int_equal(test_csts(&t), NVME_CSTS_FATAL);
		test_doorbell(&t, 0, false, 1);
	}
	test_disable(&t);
	test_enable(&t);
	assert_int_equal(test_csts(&t), NVME_CSTS_READY);
	/* The registers of the admin queue outlive a reset, its place does not. */
	assert_int_equal(test_admin(&t, identify(1, 0)), NVME_SUCCESS);
	test_disable(&t);
	assert_int_equal(test_get(&t, NVME_ASQ, 8), test_sq_address(0));
	test_enable(&t);
	assert_int_equal(test_admin(&t, identify(1, 0)), NVME_SUCCESS);
	end();
}

/* A shutdown ends when what was written is durable. */
static void test_shutdown(void **state)
{
	(void)state;
	begin(file_disk(0), 1);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_WRITE, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_true(dirty_pages() > 0);
	for (unsigned how = 1; how <= 2; how++) {
		test_set(&t, NVME_CC, NVME_CC_ENABLE | NVME_CC_ENTRIES_64_16 | how << 14, 4);
		assert_true(test_until((test_csts(&t) & NVME_CSTS_SHUTDOWN) == NVME_CSTS_SHUT_DOWN));
		assert_int_equal(dirty_pages(), 0);
		test_disable(&t);
		test_enable(&t);
	}
	end();
}

/* --- identify --- */

static void test_identify(void **state)
{
	uint8_t *p, nguid[16], uuid[16];

	(void)state;
	begin(memory_disk(), 3);
	p = data_at(0);
	assert_int_equal(test_admin(&t, identify(1, 0)), NVME_SUCCESS);
	assert_memory_equal(p + 4, "serial-0123456789   ", 20);
	assert_int_equal(p[77], 7);
	assert_int_equal(number(p + 80, 4), 0x10400);
	assert_int_equal(p[111], 1);
	assert_int_equal(p[512], 0x66);
	assert_int_equal(p[513], 0x44);
	assert_int_equal(number(p + 516, 4), 1);
	assert_int_equal(number(p + 520, 2) & 0x0c, 0x0c);
	assert_int_equal(p[525] & 1, 1);
	assert_memory_equal(p + 768, "nqn.2014-08.org.nvmexpress:uuid:", 32);
	assert_int_equal(number(p + 536, 4), 0); /* SGLs */
	assert_int_equal(test_admin(&t, identify(0, 1)), NVME_SUCCESS);
	assert_int_equal(number(p, 8), DISK_BYTES / 512);
	assert_int_equal(number(p + 8, 8), DISK_BYTES / 512);
	assert_int_equal(p[130], 9);
	assert_int_equal(p[25], 0);
	assert_int_equal(p[99], 0);
	assert_int_equal(number(p + 120, 8), 0); /* no EUI-64 */
	memcpy(nguid, p + 104, 16);
	assert_int_equal(nguid[8] & 3, 2);
	assert_int_equal(test_admin(&t, identify(2, 0)), NVME_SUCCESS);
	assert_int_equal(number(p, 8), 1);
	assert_int_equal(test_admin(&t, identify(2, 1)), NVME_SUCCESS);
	assert_int_equal(number(p, 8), 0);
	assert_int_equal(test_admin(&t, identify(3, 1)), NVME_SUCCESS);
	nvme_make_uuid(uuid, (const uint8_t[16]){1, 2, 3}, "serial-0123456789");
	assert_memory_equal(p, ((uint8_t[]){2, 16, 0, 0}), 4);
	assert_memory_equal(p + 4, nguid, 16);
	assert_memory_equal(p + 20, ((uint8_t[]){3, 16, 0, 0}), 4);
	assert_memory_equal(p + 24, uuid, 16);
	assert_int_equal(p[40], 0);
	assert_int_equal(uuid[6] >> 4, 8);
	/* What is not there, and buffers that are not. */
	assert_int_equal(test_admin(&t, identify(0, 2)), NVME_INVALID_NAMESPACE);
	assert_int_equal(test_admin(&t, identify(0, 0)), NVME_INVALID_NAMESPACE);
	assert_int_equal(test_admin(&t, identify(0, NVME_NSID_ALL)), NVME_INVALID_NAMESPACE);
	assert_int_equal(test_admin(&t, identify(3, 2)), NVME_INVALID_NAMESPACE);
	assert_int_equal(test_admin(&t, identify(2, 0xfffffffe)), NVME_INVALID_NAMESPACE);
	assert_int_equal(test_admin(&t, identify(0x10, 0)), NVME_INVALID_FIELD);
	struct nvme_command c = identify(1, 0);
	c.prp1 = TEST_MEMORY;
	assert_int_equal(test_admin(&t, c), NVME_TRANSFER_ERROR);
	c.prp1 = TEST_DATA + 2;
	assert_int_equal(test_admin(&t, c), NVME_INVALID_PRP_OFFSET);
	c.prp1 = TEST_DATA + 0x800; /* two pages */
	c.prp2 = TEST_DATA + 0x2000;
	assert_int_equal(test_admin(&t, c), NVME_SUCCESS);
	assert_memory_equal(data_at(0x804), "serial-0123456789   ", 20);
	assert_int_equal(data_at(0x2000)[2048 - 0x800], 0xc4); /* power state 0 */
	c.prp2 = TEST_DATA + 0x2004;
	assert_int_equal(test_admin(&t, c), NVME_INVALID_PRP_OFFSET);
	c.flags = 0x40; /* an SGL */
	assert_int_equal(test_admin(&t, c), NVME_INVALID_FIELD);
	assert_int_equal(test_admin(&t, (struct nvme_command){.opcode = 0x10}), NVME_INVALID_OPCODE);
	end();
}

/* Ids are the same for the same disk of the same machine, and no others'. */
static void test_ids(void **state)
{
	uint8_t a[16], b[16];
	const uint8_t m[16] = {9}, other[16] = {8};

	(void)state;
	nvme_make_uuid(a, m, "disk0");
	nvme_make_uuid(b, m, "disk0");
	assert_memory_equal(a, b, 16);
	nvme_make_uuid(b, m, "disk1");
	assert_memory_not_equal(a, b, 8);
	assert_memory_not_equal(a + 9, b + 9, 7);
	nvme_make_uuid(b, other, "disk0");
	assert_memory_not_equal(a, b, 8);
	assert_memory_not_equal(a + 9, b + 9, 7);
}

/* --- features --- */

static void test_features(void **state)
{
	static const struct {
		uint32_t id, value, back;
		uint16_t status;
	} set[] = {
		{NVME_FEATURE_ARBITRATION, 0x01020303, 0x01020303, NVME_SUCCESS},
		{NVME_FEATURE_POWER, 0, 0, NVME_SUCCESS},
		{NVME_FEATURE_POWER, 1, 0, NVME_INVALID_FIELD},
		{NVME_FEATURE_TEMPERATURE, 350, 350, NVME_SUCCESS},
		{NVME_FEATURE_TEMPERATURE, 1u << 20 | 250, 250, NVME_SUCCESS},
		{NVME_FEATURE_TEMPERATURE, 1u << 16 | 250, 0, NVME_INVALID_FIELD}, /* a sensor that is not there */
		{NVME_FEATURE_TEMPERATURE, 2u << 20 | 250, 0, NVME_INVALID_FIELD},
		{NVME_FEATURE_ERROR_RECOVERY, 5, 5, NVME_SUCCESS},
		{NVME_FEATURE_ERROR_RECOVERY, 0x10005, 5, NVME_INVALID_FIELD},
		{NVME_FEATURE_WRITE_CACHE, 0, 0, NVME_SUCCESS},
		{NVME_FEATURE_WRITE_CACHE, 1, 1, NVME_SUCCESS},
		{NVME_FEATURE_QUEUES, 0x003f003f, 0x00020002, NVME_SUCCESS},
		{NVME_FEATURE_QUEUES, 0xffff0001, 0x00020002, NVME_INVALID_FIELD},
		{NVME_FEATURE_COALESCING, 0x0a0b, 0x0a0b, NVME_SUCCESS},
		{NVME_FEATURE_VECTOR, 0x10003, 0x10003, NVME_SUCCESS},
		{NVME_FEATURE_VECTOR, 0x10004, 0, NVME_INVALID_FIELD},
		{NVME_FEATURE_ATOMICITY, 1, 1, NVME_SUCCESS},
		{NVME_FEATURE_EVENTS, 0x101, 0x101, NVME_SUCCESS},
		{0x03, 0, 0, NVME_INVALID_FIELD},
		{0x00, 0, 0, NVME_INVALID_FIELD},
		{0xc0, 0, 0, NVME_INVALID_FIELD},
	};
	struct nvme_completion c;

	(void)state;
	begin(memory_disk(), 3);
	for (unsigned i = 0; i < ARRAY_SIZE(set); i++) {
		c = feature(NVME_SET_FEATURES, set[i].id, set[i].value);
		assert_int_equal(c.status, set[i].status);
		if (set[i].id == NVME_FEATURE_QUEUES && c.status == NVME_SUCCESS)
			assert_int_equal(c.result, 0x00020002);
		c = feature(NVME_GET_FEATURES, set[i].id, set[i].value);
		if (set[i].status == NVME_SUCCESS || set[i].back) {
			assert_int_equal(c.status, NVME_SUCCESS);
			assert_int_equal(c.result, set[i].back);
		}
	}
	/* Defaults, capabilities; nothing can be saved. */
	assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_COALESCING | 1 << 8, 0).result, 0);
	assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_COALESCING, 0).result, 0x0a0b);
	assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_COALESCING | 3 << 8, 0).result, 4);
	assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_COALESCING | 4 << 8, 0).status, NVME_INVALID_FIELD);
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_COALESCING | 1u << 31, 0).status, NVME_NOT_SAVEABLE);
	/* Once there are queues, their number stands. */
	test_create(&t, 1, 4, 4);
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_QUEUES, 0).status, NVME_SEQUENCE_ERROR);
	/* A reset takes all back. */
	test_disable(&t);
	test_enable(&t);
	assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_COALESCING, 0).result, 0);
	assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_TEMPERATURE, 0).result, 343);
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_QUEUES, 0).status, NVME_SUCCESS);
	end();
}

/* --- queues --- */

static void test_bad_queues(void **state)
{
	struct nvme_command c;

	(void)state;
	begin(memory_disk(), 3);
#define REFUSED(command, change, expected)                                                                             \
	do {                                                                                                           \
		c = (command);                                                                                         \
		change;                                                                                                \
		assert_int_equal(test_admin(&t, c), expected);                                                         \
	} while (0)
	for (unsigned cq = 0; cq <= 1; cq++) {
		/* The second round is about submission queues, for which there is a completion queue. */
		struct nvme_command good = cq == 0 ? test_create_cq(1, 8, 1) : test_create_sq(1, 8, 1);
		REFUSED(good, c.cdw10 = 7 << 16, NVME_INVALID_QUEUE_ID);
		REFUSED(good, c.cdw10 = 7 << 16 | 4, NVME_INVALID_QUEUE_ID);
		REFUSED(good, c.cdw10 = 7 << 16 | 0xffff, NVME_INVALID_QUEUE_ID);
		REFUSED(good, c.cdw10 = 1, NVME_INVALID_QUEUE_SIZE);
		REFUSED(good, c.cdw10 = 1024 << 16 | 1, NVME_INVALID_QUEUE_SIZE);
		REFUSED(good, c.cdw10 = 0xffff0001, NVME_INVALID_QUEUE_SIZE);
		REFUSED(good, c.cdw11 &= ~1u, NVME_INVALID_FIELD); /* not in one piece */
		REFUSED(good, c.prp1 += 64, NVME_INVALID_PRP_OFFSET);
		REFUSED(good, c.prp1 = TEST_MEMORY, NVME_TRANSFER_ERROR);
		REFUSED(good, (c.prp1 = TEST_MEMORY - 0x1000, c.cdw10 = 1023 << 16 | 1), NVME_TRANSFER_ERROR);
		REFUSED(good, c.prp1 = 0xfffffffffffff000, NVME_TRANSFER_ERROR);
		REFUSED(good, c.prp1 = t.bar, NVME_TRANSFER_ERROR);
		assert_int_equal(test_admin(&t, good), NVME_SUCCESS);
		assert_int_equal(test_admin(&t, good), NVME_INVALID_QUEUE_ID); /* it is there */
	}
	REFUSED(test_create_cq(2, 8, 2), c.cdw11 = 4 << 16 | 3, NVME_INVALID_VECTOR);
	REFUSED(test_create_sq(2, 8, 0), , NVME_INVALID_CQ);
	REFUSED(test_create_sq(2, 8, 2), , NVME_INVALID_CQ);
	REFUSED(test_create_sq(2, 8, 0xffff), , NVME_INVALID_CQ);
	assert_int_equal(test_delete(&t, true, 1), NVME_INVALID_QUEUE_DELETION);
	assert_int_equal(test_delete(&t, true, 2), NVME_INVALID_QUEUE_ID);
	assert_int_equal(test_delete(&t, false, 2), NVME_INVALID_QUEUE_ID);
	assert_int_equal(test_delete(&t, false, 0), NVME_INVALID_QUEUE_ID);
	assert_int_equal(test_delete(&t, true, 0), NVME_INVALID_QUEUE_ID);
	assert_int_equal(test_delete(&t, true, 0xffff), NVME_INVALID_QUEUE_ID);
	assert_int_equal(test_delete(&t, false, 1), NVME_SUCCESS);
	assert_int_equal(test_delete(&t, false, 1), NVME_INVALID_QUEUE_ID);
	assert_int_equal(test_delete(&t, true, 1), NVME_SUCCESS);
	/* With entries of another size there are no queues. */
	test_disable(&t);
	test_enable(&t);
	test_set(&t, NVME_CC, NVME_CC_ENABLE, 4);
	assert_int_equal(test_admin(&t, test_create_cq(1, 8, 1)), NVME_INVALID_FIELD);
	end();
}

/* Every size, and every queue of the controller, also with another's completion queue, made and unmade again. */
static void test_sizes(void **state)
{
	static const uint32_t sizes[] = {2, 3, 16, 255, 1024};

	(void)state;
	begin(memory_disk(), 3);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (unsigned id = 3; id > 0; id--)
			test_create(&t, id, sizes[i], sizes[(i + id) % ARRAY_SIZE(sizes)]);
		for (unsigned n = 0; n < 40; n++)
			for (unsigned id = 1; id <= 3; id++)
				assert_int_equal(test_command(&t, id, test_io(NVME_READ, n, 1, TEST_DATA, 0)).status,
						 NVME_SUCCESS);
		for (unsigned id = 1; id <= 3; id++) {
			assert_int_equal(test_delete(&t, false, id), NVME_SUCCESS);
			assert_int_equal(test_delete(&t, true, id), NVME_SUCCESS);
		}
	}
	/* Three submission queues, one completion queue. */
	for (unsigned id = 1; id <= 3; id++)
		test_pair_init(&t, id, 16, 8, 2);
	assert_int_equal(test_admin(&t, test_create_cq(2, 8, 1)), NVME_SUCCESS);
	for (unsigned id = 1; id <= 3; id++)
		assert_int_equal(test_admin(&t, test_create_sq(id, 16, 2)), NVME_SUCCESS);
	for (unsigned n = 0; n < 50; n++)
		assert_int_equal(test_command(&t, 1 + n % 3, test_io(NVME_READ, n, 1, TEST_DATA, 0)).status,
				 NVME_SUCCESS);
	assert_int_equal(test_delete(&t, false, 2), NVME_SUCCESS);
	assert_int_equal(test_delete(&t, true, 2), NVME_INVALID_QUEUE_DELETION);
	assert_int_equal(test_command(&t, 3, test_io(NVME_READ, 0, 1, TEST_DATA, 0)).status, NVME_SUCCESS);
	end();
}

/* A guest that does not read completions gets no more than there is room for, and loses none. */
static void test_full_cq(void **state)
{
	struct nvme_completion c;
	bool seen[60] = {};

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 64, 4);
	struct test_pair *p = &t.pair[1];
	for (unsigned n = 0; n < 60; n++)
		test_add(p, test_io(NVME_READ, n, 1, TEST_DATA, 0));
	test_ring_sq(&t, p);
	for (unsigned n = 0; n < 60;) {
		usleep(1000);
		unsigned some = 0;
		for (; test_take(p, &c); some++, n++) {
			assert_int_equal(c.status, NVME_SUCCESS);
			assert_false(seen[c.cid]);
			seen[c.cid] = true;
		}
		assert_true(some <= 3);
		test_ring_cq(&t, p);
	}
	end();
}

/* Deleting a queue amid its work: what it took is completed before, and the next of its name is a new one. */
static void test_delete_busy(void **state)
{
	struct nvme_completion c;

	(void)state;
	begin(file_disk(0), 2);
	for (unsigned round = 0; round < 30; round++) {
		unsigned n = 0;
		test_create(&t, 1, 128, 256);
		for (unsigned i = 0; i < 100; i++)
			test_add(&t.pair[1], test_io(NVME_WRITE, i * 8, 8, TEST_DATA, 0));
		test_ring_sq(&t, &t.pair[1]);
		usleep(round * 20);
		assert_int_equal(test_delete(&t, false, 1), NVME_SUCCESS);
		while (test_take(&t.pair[1], &c))
			n++;
		assert_true(n <= 100);
		usleep(100);
		assert_false(test_take(&t.pair[1], &c));
		assert_int_equal(test_delete(&t, true, 1), NVME_SUCCESS);
	}
	end();
}

/* --- log pages, events --- */

static void test_logs(void **state)
{
	uint8_t *p;

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	p = data_at(0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_MEMORY, 0)), NVME_TRANSFER_ERROR);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_HEALTH, 512, 0)), NVME_SUCCESS);
	assert_int_equal(p[0], 0);
	assert_int_equal(number(p + 1, 2), 300);
	assert_int_equal(number(p + 32, 8), 1);
	assert_int_equal(number(p + 64, 8), 1);
	memset(p, 0x55, 64);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_HEALTH, 4, 64)), NVME_SUCCESS); /* a part */
	assert_int_equal(number(p, 8), 0x5555555500000001);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_FIRMWARE, 512, 0)), NVME_SUCCESS);
	assert_int_equal(p[0], 1);
	assert_memory_equal(p + 8, "1       ", 8);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, 0)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, 4096)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, 4100)), NVME_INVALID_FIELD);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, ~3ull)), NVME_INVALID_FIELD);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, 2)), NVME_INVALID_FIELD);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 1u << 20, 0)), NVME_INVALID_FIELD);
	assert_int_equal(test_admin(&t, get_log(0x70, 64, 0)), NVME_INVALID_LOG);
	end();
}

/* Requests wait until something happens; each kind is told once until its log page was read. */
static void test_events(void **state)
{
	struct test_pair *p = &t.pair[0];
	struct nvme_completion c;
	uint16_t cid[5];

	(void)state;
	begin(memory_disk(), 1);
	for (unsigned i = 0; i < 5; i++)
		cid[i] = test_add(p, (struct nvme_command){.opcode = NVME_ASYNC_EVENT});
	test_ring_sq(&t, p);
	c = test_wait(&t, p);
	assert_int_equal(c.cid, cid[4]);
	assert_int_equal(c.status, NVME_TOO_MANY_EVENTS);
	test_doorbell(&t, 1, false, 1); /* of no queue */
	c = test_wait(&t, p);
	assert_int_equal(c.cid, cid[0]);
	assert_int_equal(c.result, NVME_EVENT_BAD_REGISTER);
	test_doorbell(&t, 500, true, 1);
	assert_false(test_take(p, &c));
	/* Kept when it is asked to be, told when it was read. */
	struct nvme_command log = get_log(NVME_LOG_ERRORS, 64, 0);
	log.cdw10 |= 0x8000;
	assert_int_equal(test_admin(&t, log), NVME_SUCCESS);
	test_doorbell(&t, 500, true, 1);
	assert_false(test_take(p, &c));
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, 0)), NVME_SUCCESS);
	test_create(&t, 1, 8, 8);
	test_doorbell(&t, 1, false, 8);
	c = test_wait(&t, p);
	assert_int_equal(c.result, NVME_EVENT_BAD_VALUE);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_ERRORS, 64, 0)), NVME_SUCCESS);
	/* A disk that grew, told to who wants to know. */
	test_no_error(grow(DISK_BYTES * 2));
	assert_false(test_take(p, &c));
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_EVENTS, NVME_EVENTS_NAMESPACE).status, NVME_SUCCESS);
	test_no_error(grow(DISK_BYTES * 3));
	c = test_wait(&t, p);
	assert_int_equal(c.result, NVME_EVENT_NAMESPACE);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_NAMESPACES, 4096, 0)), NVME_SUCCESS);
	assert_int_equal(number(data_at(0), 8), 1);
	assert_int_equal(test_admin(&t, get_log(NVME_LOG_NAMESPACES, 4096, 0)), NVME_SUCCESS);
	assert_int_equal(number(data_at(0), 8), 0);
	assert_int_equal(test_admin(&t, identify(0, 1)), NVME_SUCCESS);
	assert_int_equal(number(data_at(0), 8), DISK_BYTES * 3 / 512);
	assert_int_equal(io(test_io(NVME_READ, DISK_BYTES * 3 / 512 - 1, 1, TEST_DATA, 0)), NVME_SUCCESS);
	/* One is left: it is taken back. What is not there cannot be. */
	assert_int_equal(test_command(&t, 0, (struct nvme_command){.opcode = NVME_ABORT, .cdw10 = 77 << 16}).result, 1);
	uint16_t abort = test_add(p, (struct nvme_command){.opcode = NVME_ABORT, .cdw10 = (uint32_t)cid[3] << 16});
	test_ring_sq(&t, p);
	c = test_wait(&t, p);
	assert_int_equal(c.cid, cid[3]);
	assert_int_equal(c.status, NVME_ABORT_REQUESTED);
	c = test_wait(&t, p);
	assert_int_equal(c.cid, abort);
	assert_int_equal(c.result, 0);
	/* What happens while nobody asks is told who asks later: too hot. */
	feature(NVME_SET_FEATURES, NVME_FEATURE_EVENTS, NVME_EVENTS_HEALTH_TEMPERATURE);
	assert_int_equal(feature(NVME_SET_FEATURES, NVME_FEATURE_TEMPERATURE, 290).status, NVME_SUCCESS);
	c = test_command(&t, 0, (struct nvme_command){.opcode = NVME_ASYNC_EVENT});
	assert_int_equal(c.result, NVME_EVENT_TEMPERATURE);
	end();
}

/* --- interrupts --- */

static bool pin(void)
{
	return t.machine.irqs.sources[16 + TEST_SLOT % 8] != 0;
}

static void test_pin(void **state)
{
	struct test_pair *p = &t.pair[1];
	struct nvme_completion c;

	(void)state;
	begin_without_msix();
	test_create(&t, 1, 16, 16);
	assert_false(pin());
	test_add(p, test_io(NVME_READ, 0, 8, TEST_DATA, 0));
	test_ring_sq(&t, p);
	assert_true(test_until(pin()));
	test_set(&t, NVME_INTMS, 2, 4);
	assert_int_equal(test_get(&t, NVME_INTMC, 4), 2);
	assert_false(pin());
	test_set(&t, NVME_INTMC, 2, 4);
	assert_true(pin());
	assert_true(test_take(p, &c));
	test_ring_cq(&t, p);
	assert_false(pin());
	/* What nobody read goes with the queues. */
	test_add(p, test_io(NVME_READ, 0, 8, TEST_DATA, 0));
	test_ring_sq(&t, p);
	assert_true(test_until(pin()));
	test_disable(&t);
	assert_false(pin());
	end();
}

/* With MSI-X: each queue by its vector; none where the queue wants none; none of the pin's. */
static void test_vectors(void **state)
{
	struct nvme_completion c;

	(void)state;
	begin(memory_disk(), 2);
	test_create(&t, 1, 16, 16);
	test_pair_init(&t, 2, 16, 16, 2);
	struct nvme_command silent = test_create_cq(2, 16, 2);
	silent.cdw11 &= ~2u;
	assert_int_equal(test_admin(&t, silent), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, test_create_sq(2, 16, 2)), NVME_SUCCESS);
	assert_true(interrupts(0) > 0);
	for (unsigned id = 1; id <= 2; id++) {
		test_add(&t.pair[id], test_io(NVME_READ, 0, 8, TEST_DATA, 0));
		test_ring_sq(&t, &t.pair[id]);
		assert_true(test_until(test_take(&t.pair[id], &c)));
	}
	assert_true(test_until(interrupts(1) > 0));
	usleep(1000);
	assert_int_equal(interrupts(2), 0);
	assert_int_equal(interrupts(0), 0);
	assert_false(pin());
	end();
}

/* Without bus mastering nothing is read; with it, what was rung meanwhile. */
static void test_bus_master(void **state)
{
	struct nvme_completion c;

	(void)state;
	begin(memory_disk(), 1);
	test_create(&t, 1, 16, 16);
	test_config_write(&t.machine, 0x04, 2, 2);
	test_add(&t.pair[1], test_io(NVME_READ, 0, 8, TEST_DATA, 0));
	test_ring_sq(&t, &t.pair[1]);
	test_add(&t.pair[0], identify(1, 0));
	test_ring_sq(&t, &t.pair[0]);
	usleep(3000);
	assert_false(test_take(&t.pair[1], &c));
	assert_false(test_take(&t.pair[0], &c));
	test_config_write(&t.machine, 0x04, 6, 2);
	assert_true(test_until(test_take(&t.pair[1], &c)));
	assert_true(test_take(&t.pair[0], &c));
	end();
}

/* --- doorbells in memory --- */

static bool needs_ring(unsigned index, uint16_t value, uint16_t old)
{
	const _Atomic uint32_t *event = test_at(&t.machine, SHADOW + 0x1000);
	uint16_t at = (uint16_t)atomic_load(&event[index]);

	return (uint16_t)(value - at - 1) < (uint16_t)(value - old);
}

static void test_shadow(void **state)
{
	struct test_pair *p = &t.pair[1];
	struct nvme_completion c;
	unsigned rung = 0, done = 0;

	(void)state;
	begin(memory_disk(), 2);
	assert_int_equal(set_shadow(SHADOW + 8, SHADOW + 0x1000), NVME_INVALID_FIELD);
	assert_int_equal(set_shadow(SHADOW, TEST_MEMORY), NVME_INVALID_FIELD);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_int_equal(set_shadow(SHADOW, SHADOW + 0x1000), NVME_SUCCESS);
	t.shadow = test_at(&t.machine, SHADOW);
	assert_int_equal(atomic_load(&t.shadow[2]), p->sq_tail);
	assert_int_equal(atomic_load(&t.shadow[3]), p->cq_head);
	/* As a driver does: it writes memory, and rings when it is asked to. */
	for (unsigned sent = 0; done < 2000;) {
		for (unsigned burst = 1 + sent % 7; burst > 0 && sent - done < 12 && sent < 2000; burst--, sent++) {
			uint16_t old = p->sq_tail;
			test_add(p, test_io(NVME_READ, sent % 1000, 8, TEST_DATA, 0));
			atomic_store(&t.shadow[2], p->sq_tail);
			if (needs_ring(2, p->sq_tail, old)) {
				test_set(&t, NVME_DOORBELLS + 8, p->sq_tail, 4);
				rung++;
			}
		}
		assert_true(test_until(test_take(p, &c)));
		assert_int_equal(c.status, NVME_SUCCESS);
		done++;
		uint16_t old = (uint16_t)atomic_load(&t.shadow[3]);
		atomic_store(&t.shadow[3], p->cq_head);
		if (needs_ring(3, (uint16_t)p->cq_head, old))
			test_set(&t, NVME_DOORBELLS + 12, p->cq_head, 4);
	}
	assert_true(rung < 2000);
	/* Values beyond the queue are none. */
	atomic_store(&t.shadow[2], 16);
	test_set(&t, NVME_DOORBELLS + 8, 0, 4);
	atomic_store(&t.shadow[3], 0xffffffff);
	usleep(2000);
	assert_false(test_take(p, &c));
	atomic_store(&t.shadow[3], p->cq_head);
	t.shadowed = true;
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	/* A queue that is made now has its doorbells there too. */
	atomic_store(&t.shadow[4], 0);
	atomic_store(&t.shadow[5], 0);
	test_create(&t, 2, 8, 8);
	assert_int_equal(test_command(&t, 2, test_io(NVME_READ, 0, 8, TEST_DATA, 0)).status, NVME_SUCCESS);
	/* A reset ends it. */
	test_disable(&t);
	test_enable(&t);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registers),   cmocka_unit_test(test_enabling), cmocka_unit_test(test_shutdown),
		cmocka_unit_test(test_identify),    cmocka_unit_test(test_ids),      cmocka_unit_test(test_features),
		cmocka_unit_test(test_bad_queues),  cmocka_unit_test(test_sizes),    cmocka_unit_test(test_full_cq),
		cmocka_unit_test(test_delete_busy), cmocka_unit_test(test_logs),     cmocka_unit_test(test_events),
		cmocka_unit_test(test_pin),         cmocka_unit_test(test_vectors),  cmocka_unit_test(test_bus_master),
		cmocka_unit_test(test_shadow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
