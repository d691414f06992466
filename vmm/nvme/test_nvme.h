/*
 * The guest's side of NVMe, for unit tests and the fuzz target: a controller in a machine without KVM
 * (vmm/virtio/test_driver.h) and a small driver: it enables the controller, makes queues, sends commands and reads
 * their completions in plain memory. What goes wrong in here is a failed test, so it asserts.
 */
#ifndef GLINT_VMM_NVME_TEST_NVME_H
#define GLINT_VMM_NVME_TEST_NVME_H

#include "vmm/nvme/nvme.h"
#include "vmm/nvme/spec.h"
#include "vmm/virtio/test_driver.h"

/* Queue i's submission entries lie at TEST_QUEUES + i * TEST_QUEUE_STEP, its completions 64 KiB above. */
#define TEST_QUEUES     (1 * MIB)
#define TEST_QUEUE_STEP 0x20000ull
#define TEST_PAIRS      4
#define TEST_ADMIN_SIZE 32

struct test_pair {
	unsigned id, cq; /* of the completion queue */
	uint32_t sq_size, cq_size;
	struct nvme_command *sq;
	uint16_t sq_tail, cid;
	/* Of the completion queue with this pair's id. */
	volatile struct nvme_completion *completions;
	uint32_t cq_head;
	uint16_t phase;
};

struct test_nvme {
	struct test_machine machine;
	struct drive_config drive_config;
	struct drive *drive;
	struct nvme *nvme;
	unsigned queues;
	uint64_t bar;
	struct test_pair pair[NVME_QUEUES_MAX + 1]; /* 0: admin */
	bool shadowed;
	_Atomic uint32_t *shadow;
};

/* What @drive_config says, in a machine that is there. */
static inline struct error *test_nvme_make(struct test_nvme *t)
{
	struct nvme_config config = {.name = "nvme-test",
				     .serial = "serial-0123456789",
				     .queues = t->queues,
				     .threads = t->machine.threads,
				     .thread_count = TEST_THREADS};

	t->drive_config.threads = t->machine.threads;
	t->drive_config.thread_count = TEST_THREADS;
	TRY(drive_new(&t->drive, &t->drive_config));
	config.drive = t->drive;
	nvme_make_uuid(config.uuid, (const uint8_t[16]){1, 2, 3}, config.serial);
	return nvme_new(&t->nvme, &config, &t->machine.memory, &t->machine.pci, TEST_SLOT, NULL);
}

static inline void test_nvme_free(struct test_nvme *t)
{
	nvme_free(t->nvme);
	drive_free(t->drive);
}

/* --- registers --- */

static inline uint64_t test_get(struct test_nvme *t, unsigned offset, unsigned size)
{
	return bus_read(&t->machine.mmio, t->bar + offset, size);
}

static inline void test_set(struct test_nvme *t, unsigned offset, uint64_t value, unsigned size)
{
	bus_write(&t->machine.mmio, t->bar + offset, value, size);
}

static inline unsigned test_csts(struct test_nvme *t)
{
	return (unsigned)test_get(t, NVME_CSTS, 4);
}

static inline void test_doorbell(struct test_nvme *t, unsigned queue, bool completion, uint32_t value)
{
	if (queue && t->shadowed)
		atomic_store(&t->shadow[2 * queue + completion], value);
	test_set(t, NVME_DOORBELLS + 8 * queue + 4 * completion, value, 4);
}

/* Finds the function, turns on decoding, bus mastering and, if wanted, MSI-X. */
static inline void test_nvme_find(struct test_nvme *t, bool msix)
{
	struct test_machine *m = &t->machine;

	test_config_write(m, 0x04, 6, 2);
	t->bar = test_bar(m, NVME_BAR);
	if (!msix)
		return;
	uint64_t table = test_bar(m, NVME_MSIX_BAR);
	for (unsigned v = 0; v <= t->queues; v++) {
		bus_write(&m->mmio, table + 16ull * v, 0xfee00000, 4);
		bus_write(&m->mmio, table + 16ull * v + 8, 0x40 + v, 4);
		bus_write(&m->mmio, table + 16ull * v + 12, 0, 4);
	}
	test_config_write(m, test_capability(m, 0x11, 0) + 2, 0x8000, 2);
}

/* --- queues --- */

static inline uint64_t test_sq_address(unsigned id)
{
	return TEST_QUEUES + id * TEST_QUEUE_STEP;
}

static inline uint64_t test_cq_address(unsigned id)
{
	return test_sq_address(id) + 0x10000;
}

static inline struct test_pair *test_pair_init(struct test_nvme *t, unsigned id, uint32_t sq_size, uint32_t cq_size,
					       unsigned cq)
{
	struct test_pair *p = &t->pair[id];

	*p = (struct test_pair){.id = id, .cq = cq, .sq_size = sq_size, .cq_size = cq_size, .phase = 1};
	p->sq = test_at(&t->machine, test_sq_address(id));
	p->completions = test_at(&t->machine, test_cq_address(id));
	memset((void *)p->sq, 0, sq_size * sizeof(*p->sq));
	memset(test_at(&t->machine, test_cq_address(id)), 0, cq_size * sizeof(*p->completions));
	return p;
}

/* Adds a command and gives it the next number; the doorbell is rung apart. */
static inline uint16_t test_add(struct test_pair *p, struct nvme_command c)
{
	c.cid = p->cid++ % 0x8000;
	p->sq[p->sq_tail] = c;
	p->sq_tail = (uint16_t)((p->sq_tail + 1) % p->sq_size);
	return c.cid;
}

static inline void test_ring_sq(struct test_nvme *t, struct test_pair *p)
{
	test_doorbell(t, p->id, false, p->sq_tail);
}

/* Takes a completion off queue @p; its doorbell is rung apart. False when there is none. */
static inline bool test_take(struct test_pair *p, struct nvme_completion *c)
{
	volatile struct nvme_completion *from = &p->completions[p->cq_head];

	if ((__atomic_load_n(&from->status, __ATOMIC_ACQUIRE) & 1) != p->phase)
		return false;
	*c = (struct nvme_completion){from->result, from->reserved, from->sq_head,
				      from->sq_id,  from->cid,      (uint16_t)(from->status >> 1)};
	if (++p->cq_head == p->cq_size) {
		p->cq_head = 0;
		p->phase ^= 1;
	}
	return true;
}

static inline void test_ring_cq(struct test_nvme *t, struct test_pair *p)
{
	test_doorbell(t, p->id, true, p->cq_head);
}

/* Waits for the next completion of the queue that @p's commands complete in. */
static inline struct nvme_completion test_wait(struct test_nvme *t, struct test_pair *p)
{
	struct test_pair *to = &t->pair[p->cq];
	struct nvme_completion c;
	bool came = test_until(test_take(to, &c));

	assert(came);
	test_ring_cq(t, to);
	return c;
}

/* One command from start to end. */
static inline struct nvme_completion test_command(struct test_nvme *t, unsigned queue, struct nvme_command command)
{
	struct test_pair *p = &t->pair[queue];
	uint16_t cid = test_add(p, command);

	test_ring_sq(t, p);
	struct nvme_completion c = test_wait(t, p);
	assert(c.cid == cid && c.sq_id == queue);
	return c;
}

static inline uint16_t test_admin(struct test_nvme *t, struct nvme_command command)
{
	return test_command(t, 0, command).status;
}

/* Sets the admin queues up and enables the controller. */
static inline void test_enable(struct test_nvme *t)
{
	test_pair_init(t, 0, TEST_ADMIN_SIZE, TEST_ADMIN_SIZE, 0);
	t->shadowed = false;
	test_set(t, NVME_AQA, (TEST_ADMIN_SIZE - 1) << 16 | (TEST_ADMIN_SIZE - 1), 4);
	test_set(t, NVME_ASQ, test_sq_address(0), 8);
	test_set(t, NVME_ACQ, test_cq_address(0), 8);
	test_set(t, NVME_CC, NVME_CC_ENABLE | NVME_CC_ENTRIES_64_16, 4);
}

static inline void test_disable(struct test_nvme *t)
{
	test_set(t, NVME_CC, 0, 4);
	assert(test_csts(t) == 0);
}

static inline struct nvme_command test_create_cq(unsigned id, uint32_t size, unsigned vector)
{
	return (struct nvme_command){.opcode = NVME_CREATE_CQ,
				     .prp1 = test_cq_address(id),
				     .cdw10 = (size - 1) << 16 | id,
				     .cdw11 = vector << 16 | 3};
}

static inline struct nvme_command test_create_sq(unsigned id, uint32_t size, unsigned cq)
{
	return (struct nvme_command){.opcode = NVME_CREATE_SQ,
				     .prp1 = test_sq_address(id),
				     .cdw10 = (size - 1) << 16 | id,
				     .cdw11 = cq << 16 | 1};
}

static inline uint16_t test_delete(struct test_nvme *t, bool cq, unsigned id)
{
	return test_admin(t, (struct nvme_command){.opcode = cq ? NVME_DELETE_CQ : NVME_DELETE_SQ, .cdw10 = id});
}

/* Pair @id with a completion queue of its own and vector @id. */
static inline void test_create(struct test_nvme *t, unsigned id, uint32_t sq_size, uint32_t cq_size)
{
	test_pair_init(t, id, sq_size, cq_size, id);
	assert(test_admin(t, test_create_cq(id, cq_size, id)) == NVME_SUCCESS);
	assert(test_admin(t, test_create_sq(id, sq_size, id)) == NVME_SUCCESS);
}

/* --- commands of the disk --- */

static inline struct nvme_command test_io(uint8_t opcode, uint64_t block, uint32_t blocks, uint64_t prp1, uint64_t prp2)
{
	return (struct nvme_command){.opcode = opcode,
				     .nsid = 1,
				     .prp1 = prp1,
				     .prp2 = prp2,
				     .cdw10 = (uint32_t)block,
				     .cdw11 = (uint32_t)(block >> 32),
				     .cdw12 = (blocks - 1) & 0xffff};
}

#endif
