/*
 * Tests of split virtqueues alone: rings in plain memory, no device. Each way of being malformed has its own case.
 */
#include "vmm/virtio/virtqueue.h"

#include "base/util.h"

#include <linux/virtio_ring.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BYTES (1u << 20)
#define SIZE  8
#define DESC  0x1000u
#define AVAIL 0x2000u
#define USED  0x3000u
#define TABLE 0x4000u
#define DATA  0x10000u

struct fixture {
	struct memory memory;
	struct virtqueue vq;
	struct vring_desc *desc, *table;
	struct vring_avail *avail;
	struct vring_used *used;
	struct virtqueue_chain chain;
};

static struct fixture *f;

static int setup(void **state)
{
	f = calloc(1, sizeof(*f));
	*state = f;
	/* Two regions, as above 3 GiB: what lies between is not memory. */
	f->memory = (struct memory){.host = calloc(1, BYTES), .size = BYTES, .regions = 2};
	f->memory.region[0] = (struct memory_region){0, BYTES / 2, f->memory.host};
	f->memory.region[1] = (struct memory_region){MEMORY_HIGH_BASE, BYTES / 2, f->memory.host + BYTES / 2};
	f->desc = (void *)(f->memory.host + DESC);
	f->table = (void *)(f->memory.host + TABLE);
	f->avail = (void *)(f->memory.host + AVAIL);
	f->used = (void *)(f->memory.host + USED);
	virtqueue_reset(&f->vq, &f->memory, 256);
	f->vq.size = SIZE;
	f->vq.desc_address = DESC;
	f->vq.avail_address = AVAIL;
	f->vq.used_address = USED;
	f->vq.indirect = true;
	assert_true(virtqueue_enable(&f->vq));
	return 0;
}

static int teardown(void **state)
{
	free(f->memory.host);
	free(*state);
	return 0;
}

static void set(struct vring_desc *d, uint64_t address, uint32_t len, uint16_t flags, uint16_t next)
{
	*d = (struct vring_desc){address, len, flags, next};
}

static void offer(uint16_t head)
{
	f->avail->ring[f->avail->idx % SIZE] = head;
	f->avail->idx++;
}

static enum virtqueue_result pop(void)
{
	return virtqueue_pop(&f->vq, &f->chain);
}

static void expect_broken(const char *words)
{
	assert_int_equal(pop(), VIRTQUEUE_BROKEN);
	assert_non_null(f->vq.broken);
	assert_non_null(strstr(f->vq.broken, words));
	/* For good: nothing is taken and nothing written any more. */
	uint16_t idx = f->used->idx;
	set(&f->desc[0], DATA, 16, 0, 0);
	offer(0);
	assert_int_equal(pop(), VIRTQUEUE_BROKEN);
	virtqueue_push(&f->vq, 0, 1);
	assert_false(virtqueue_publish(&f->vq));
	assert_int_equal(f->used->idx, idx);
}

static void test_chain(void **state)
{
	(void)state;
	set(&f->desc[3], DATA, 16, VRING_DESC_F_NEXT, 5);
	set(&f->desc[5], MEMORY_HIGH_BASE, 100, VRING_DESC_F_NEXT, 1);
	set(&f->desc[1], DATA + 4096, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 0);
	set(&f->desc[0], BYTES / 2 - 1, 1, VRING_DESC_F_WRITE, 77);
	assert_int_equal(pop(), VIRTQUEUE_EMPTY);
	offer(3);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	assert_int_equal(f->chain.head, 3);
	assert_int_equal(f->chain.readable, 2);
	assert_int_equal(f->chain.writable, 2);
	assert_int_equal(f->chain.readable_bytes, 116);
	assert_int_equal(f->chain.writable_bytes, 513);
	assert_ptr_equal(f->chain.iov[1].iov_base, f->memory.region[1].host);
	assert_ptr_equal(f->chain.iov[3].iov_base, f->memory.host + BYTES / 2 - 1);
	assert_int_equal(pop(), VIRTQUEUE_EMPTY);
	virtqueue_push(&f->vq, 3, 513);
	assert_int_equal(f->used->idx, 0);
	assert_true(virtqueue_publish(&f->vq));
	assert_int_equal(f->used->idx, 1);
	assert_int_equal(f->used->ring[0].id, 3);
	assert_int_equal(f->used->ring[0].len, 513);
	assert_false(virtqueue_publish(&f->vq));
}

/* 2.7.5.3.2: direct descriptors before the table are allowed, and the table's own WRITE flag means nothing. */
static void test_indirect(void **state)
{
	(void)state;
	set(&f->desc[0], DATA, 16, VRING_DESC_F_NEXT, 1);
	set(&f->desc[1], TABLE, 3 * 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 9999);
	set(&f->table[0], DATA + 16, 16, VRING_DESC_F_NEXT, 2);
	set(&f->table[2], DATA + 32, 8, VRING_DESC_F_WRITE, 1);
	offer(0);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	assert_int_equal(f->chain.readable, 2);
	assert_int_equal(f->chain.writable, 1);
	assert_int_equal(f->chain.writable_bytes, 8);

	/* A table at an odd address is a table. */
	memmove(f->memory.host + TABLE + 5, f->table, 48);
	f->desc[1].addr = TABLE + 5;
	offer(0);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	assert_int_equal(f->chain.readable, 2);
}

static void test_longest_chain(void **state)
{
	(void)state;
	set(&f->desc[0], TABLE, VIRTQUEUE_SIZE_MAX * 16, VRING_DESC_F_INDIRECT, 0);
	for (uint16_t i = 0; i < VIRTQUEUE_SIZE_MAX; i++)
		set(&f->table[i], DATA, 1, VRING_DESC_F_NEXT, i + 1);
	f->table[VIRTQUEUE_SIZE_MAX - 1].flags = 0;
	offer(0);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	assert_int_equal(f->chain.readable, VIRTQUEUE_SIZE_MAX);

	/* One more is one too many. */
	set(&f->desc[1], TABLE, (VIRTQUEUE_SIZE_MAX + 1) * 16, VRING_DESC_F_INDIRECT, 0);
	f->table[VIRTQUEUE_SIZE_MAX - 1].flags = VRING_DESC_F_NEXT;
	set(&f->table[VIRTQUEUE_SIZE_MAX], DATA, 1, 0, 0);
	offer(1);
	expect_broken("too long");
}

/* --- malformed chains --- */

struct bad_chain {
	const char *words; /* of the reason */
	struct vring_desc desc[3], table[3];
};

#define N VRING_DESC_F_NEXT
#define W VRING_DESC_F_WRITE
#define I VRING_DESC_F_INDIRECT

static const struct bad_chain bad_chains[] = {
	{"loop", {{DATA, 4, N, 1}, {DATA, 4, N, 0}}, {}},
	{"loop", {{DATA, 4, N, 0}}, {}},
	{"empty", {{DATA, 0, 0, 0}}, {}},
	{"empty", {{DATA, 4, N, 1}, {DATA, 0, W, 0}}, {}},
	{"comes after", {{DATA, 4, N | W, 1}, {DATA, 4, 0, 0}}, {}},
	{"past the end", {{DATA, 4, N, SIZE}}, {}},
	{"past the end", {{DATA, 4, N, 0xffff}}, {}},
	{"not in memory", {{BYTES, 4, 0, 0}}, {}},
	{"not in memory", {{BYTES / 2 - 2, 4, 0, 0}}, {}},                    /* leaves the first region */
	{"not in memory", {{MEMORY_HIGH_BASE + BYTES / 2 - 1, 2, 0, 0}}, {}}, /* and the last */
	{"not in memory", {{~0ull, 4, 0, 0}}, {}},                            /* wraps */
	{"not in memory", {{0, 0xffffffff, 0, 0}}, {}},
	{"not in memory", {{0xfee00000, 4, W, 0}}, {}}, /* the LAPIC */
	{"not the last", {{TABLE, 16, I | N, 1}}, {{DATA, 4, 0, 0}}},
	{"not a number", {{TABLE, 0, I, 0}}, {}},
	{"not a number", {{TABLE, 17, I, 0}}, {}},
	{"not in memory", {{BYTES / 2 - 16, 32, I, 0}}, {}},
	{"not in memory", {{0, 0xfffffff0, I, 0}}, {}},
	{"none is allowed", {{TABLE, 32, I, 0}}, {{TABLE, 32, I, 0}}},
	{"none is allowed", {{TABLE, 32, I, 0}}, {{DATA, 4, N, 1}, {TABLE, 32, I, 0}}},
	{"past the end", {{TABLE, 32, I, 0}}, {{DATA, 4, N, 2}, {}, {DATA, 4, 0, 0}}},
	{"loop", {{TABLE, 32, I, 0}}, {{DATA, 4, N, 1}, {DATA, 4, N, 1}}},
	{"comes after", {{DATA, 4, N | W, 1}, {TABLE, 16, I, 0}}, {{DATA, 4, 0, 0}}},
};

static void test_bad_chains(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(bad_chains); i++) {
		memcpy(f->desc, bad_chains[i].desc, sizeof(bad_chains[i].desc));
		memcpy(f->table, bad_chains[i].table, sizeof(bad_chains[i].table));
		offer(0);
		expect_broken(bad_chains[i].words);
		teardown(state);
		setup(state);
	}
}

static void test_bad_ring_entries(void **state)
{
	offer(SIZE); /* a head that is no descriptor */
	expect_broken("past the end");
	teardown(state);
	setup(state);

	f->avail->idx = SIZE + 1; /* more than the ring holds */
	expect_broken("jumped");
	teardown(state);
	setup(state);

	f->avail->idx = 0xffff; /* backwards */
	expect_broken("jumped");
}

/* More than 4 GiB in all, though each buffer is in memory (2.7.4.1): with memory that large, faked. */
static void test_too_many_bytes(void **state)
{
	(void)state;
	f->memory.region[1].size = 8ull << 30;
	for (uint16_t i = 0; i < 3; i++)
		set(&f->desc[i], MEMORY_HIGH_BASE, 0x80000000u, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, i + 1);
	offer(0);
	expect_broken("4 GiB");
}

static void test_indirect_not_negotiated(void **state)
{
	(void)state;
	f->vq.indirect = false;
	set(&f->desc[0], TABLE, 16, VRING_DESC_F_INDIRECT, 0);
	set(&f->table[0], DATA, 4, 0, 0);
	offer(0);
	expect_broken("none is allowed");
}

/* A chain is walked a second time as carefully as the first. */
static void test_walk_again(void **state)
{
	(void)state;
	set(&f->desc[2], DATA, 4, 0, 0);
	offer(2);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	assert_int_equal(virtqueue_walk(&f->vq, 2, &f->chain), VIRTQUEUE_CHAIN);
	f->desc[2].addr = BYTES;
	assert_int_equal(virtqueue_walk(&f->vq, 2, &f->chain), VIRTQUEUE_BROKEN);
	assert_int_equal(virtqueue_walk(&f->vq, 0xffff, &f->chain), VIRTQUEUE_BROKEN);
}

/* --- rings --- */

static void expect_bad_ring(uint16_t size, uint64_t desc, uint64_t avail, uint64_t used)
{
	virtqueue_reset(&f->vq, &f->memory, 256);
	f->vq.size = size;
	f->vq.desc_address = desc;
	f->vq.avail_address = avail;
	f->vq.used_address = used;
	assert_false(virtqueue_enable(&f->vq));
	assert_int_equal(pop(), VIRTQUEUE_BROKEN);
	assert_false(virtqueue_listen(&f->vq));
	virtqueue_quiet(&f->vq);
}

static void test_bad_rings(void **state)
{
	const uint64_t end = BYTES / 2;

	(void)state;
	expect_bad_ring(0, DESC, AVAIL, USED);
	expect_bad_ring(7, DESC, AVAIL, USED);
	expect_bad_ring(512, DESC, AVAIL, USED);
	expect_bad_ring(0x8000, DESC, AVAIL, USED);
	expect_bad_ring(8, DESC + 8, AVAIL, USED);
	expect_bad_ring(8, DESC, AVAIL + 1, USED);
	expect_bad_ring(8, DESC, AVAIL, USED + 2);
	expect_bad_ring(8, BYTES, AVAIL, USED);
	expect_bad_ring(8, end - 7 * 16ull, AVAIL, USED);
	expect_bad_ring(8, DESC, end - 4 - 8 * 2ull, USED); /* the event field is outside */
	expect_bad_ring(8, DESC, AVAIL, end - 4 - 8 * 8ull);
	expect_bad_ring(8, ~0ull & ~15ull, AVAIL, USED);
	expect_bad_ring(8, DESC, ~0ull & ~1ull, USED);
}

static void test_indices_wrap(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 70000; i++) {
		uint16_t head = i % SIZE;
		set(&f->desc[head], DATA + i % 1000, 1 + i % 7, 0, 0);
		offer(head);
		assert_int_equal(pop(), VIRTQUEUE_CHAIN);
		assert_int_equal(f->chain.head, head);
		assert_int_equal(f->chain.readable_bytes, 1 + i % 7);
		virtqueue_push(&f->vq, head, i);
		assert_true(virtqueue_publish(&f->vq));
		assert_int_equal(f->used->idx, (uint16_t)(i + 1));
		assert_int_equal(f->used->ring[i % SIZE].len, i);
	}
}

/* --- notifications --- */

static void test_flags(void **state)
{
	(void)state;
	f->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	virtqueue_push(&f->vq, 0, 0);
	assert_false(virtqueue_publish(&f->vq));
	f->avail->flags = 0;
	virtqueue_push(&f->vq, 0, 0);
	assert_true(virtqueue_publish(&f->vq));

	virtqueue_quiet(&f->vq);
	assert_int_equal(f->used->flags, VRING_USED_F_NO_NOTIFY);
	assert_false(virtqueue_listen(&f->vq));
	assert_int_equal(f->used->flags, 0);
	set(&f->desc[0], DATA, 4, 0, 0);
	offer(0);
	assert_true(virtqueue_listen(&f->vq));
}

static void test_event_idx(void **state)
{
	uint16_t *used_event = &f->avail->ring[SIZE];
	uint16_t *avail_event = (uint16_t *)&f->used->ring[SIZE];

	(void)state;
	f->vq.event_idx = true;
	f->avail->flags = VRING_AVAIL_F_NO_INTERRUPT; /* to be ignored now (2.7.7.1) */
	*used_event = 2;
	for (unsigned i = 0; i < 5; i++) {
		virtqueue_push(&f->vq, 0, 0);
		assert_int_equal(virtqueue_publish(&f->vq), i == 2);
	}
	/* A batch that passes the event. */
	*used_event = 6;
	for (unsigned i = 0; i < 4; i++)
		virtqueue_push(&f->vq, 0, 0);
	assert_true(virtqueue_publish(&f->vq));

	set(&f->desc[0], DATA, 4, 0, 0);
	offer(0);
	offer(0);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	virtqueue_quiet(&f->vq);
	assert_int_equal(f->used->flags, 0);
	assert_true(virtqueue_listen(&f->vq));
	assert_int_equal(*avail_event, 1);
	assert_int_equal(pop(), VIRTQUEUE_CHAIN);
	assert_false(virtqueue_listen(&f->vq));
	assert_int_equal(*avail_event, 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_chain),
		TEST(test_indirect),
		TEST(test_longest_chain),
		TEST(test_bad_chains),
		TEST(test_bad_ring_entries),
		TEST(test_too_many_bytes),
		TEST(test_indirect_not_negotiated),
		TEST(test_walk_again),
		TEST(test_bad_rings),
		TEST(test_indices_wrap),
		TEST(test_flags),
		TEST(test_event_idx),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
