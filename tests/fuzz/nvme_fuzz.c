/*
 * Fuzzes the NVMe controller: registers and doorbells at every width, the admin queue with commands made of the input,
 * I/O queues with commands, lists of pages and ranges made of it, doorbells in memory, resizes, pauses with saved
 * states, in any order. Memory holds decent queues and lists that a program may stumble upon. Whatever it did, after
 * power-on reset the controller must serve a decent driver, and a state that was saved must load.
 */
#include "tests/fuzz/program.h"
#include "vmm/nvme/internal.h"
#include "vmm/nvme/test_nvme.h"

#include <sys/mman.h>

#define DISK_BYTES 0x100000
#define SHADOW     0x80000ull

static struct test_nvme t;
static struct unit unit;
static int saved_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	test_machine_adopt(&t.machine);
	assert(ftruncate(fd, DISK_BYTES) == 0);
	t.drive_config = (struct drive_config){.name = "fuzz", .format = "raw", .fd = fd};
	t.queues = TEST_PAIRS;
	test_no_error(test_nvme_make(&t));
	test_no_error(drive_activate(t.drive));
	unit = nvme_unit(t.nvme, "fuzz");
	atomic_flag_test_and_set(&t.nvme->complained);
	return 0;
}

/* Saves the paused controller and loads it back: what it can be in can be saved. */
static void save_and_load(void)
{
	test_no_error(test_save(&unit, saved_fd));
	test_no_error(test_load(&unit, saved_fd));
}

/* An address that may lead somewhere: data, a queue, a list, the end of memory, anywhere. */
static uint64_t address(struct program *p)
{
	uint64_t what = take(p, 1);
	uint64_t low = what & 0x80 ? take(p, 2) : 0;

	switch (what & 7) {
	case 0:
		return TEST_DATA + low;
	case 1:
		return TEST_DATA + MIB + (low & 0xff8);
	case 2:
		return test_sq_address((unsigned)(what >> 3 & 7)) + low;
	case 3:
		return test_cq_address((unsigned)(what >> 3 & 7)) + low;
	case 4:
		return TEST_MEMORY - 0x1000 + (low & 0xff8);
	case 5:
		return SHADOW + (low & 0xf000);
	case 6:
		return t.bar + low;
	default:
		return take(p, 8);
	}
}

static struct nvme_command command(struct program *p, bool admin)
{
	static const uint8_t admins[] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c, 0x18, 0x10, 1, 5, 0};
	static const uint8_t ios[] = {0, 1, 2, 2, 1, 8, 9, 4};
	uint64_t what = take(p, 1);
	struct nvme_command c = {.opcode = admin ? admins[what & 15] : ios[what & 7], .cid = (uint16_t)take(p, 1)};

	c.nsid = what & 0x10 ? 0xffffffff : admin && c.opcode != 6 ? 0 : 1;
	if (what & 0x20)
		c.flags = (uint8_t)take(p, 1);
	if (what & 0x40)
		c.opcode = (uint8_t)take(p, 1);
	c.prp1 = address(p);
	c.prp2 = address(p);
	/* Small numbers mostly. */
	c.cdw10 = (uint32_t)take(p, 1) | (uint32_t)take(p, 1) << 16;
	c.cdw11 = (uint32_t)take(p, 1) | (admin ? (uint32_t)take(p, 1) << 16 : 0);
	c.cdw12 = (uint32_t)take(p, 2);
	if (!admin)
		c.cdw11 = c.opcode == NVME_DATASET ? 4 : c.cdw11 & 1;
	if (what & 0x80) {
		c.cdw10 = (uint32_t)take(p, 4);
		c.cdw11 = (uint32_t)take(p, 4);
		c.cdw12 = (uint32_t)take(p, 4);
	}
	return c;
}

/* Puts commands behind each other into a submission queue, wherever its tail was, and rings. */
static void send(struct program *p, unsigned queue, unsigned count)
{
	struct nvme_sq *sq = &t.nvme->sq[queue];
	uint32_t size = atomic_load(&sq->size), tail = atomic_load(&sq->tail);

	if (!size || size > 4096 || tail >= size)
		return;
	for (unsigned i = 0; i < count; i++) {
		struct nvme_command c = command(p, queue == 0);
		uint8_t *to = memory_at(&t.machine.memory, sq->base + tail * sizeof(c), sizeof(c));
		if (to)
			memcpy(to, &c, sizeof(c));
		tail = (tail + 1) % size;
	}
	test_doorbell(&t, queue, false, tail);
}

/* A list of pages or ranges at the place where address() may lead. */
static void put_list(struct program *p)
{
	uint64_t *entry = test_at(&t.machine, TEST_DATA + MIB);

	for (unsigned i = (unsigned)take(p, 1) * 2, end = i + 8; i < end; i++)
		entry[i] = address(p);
	entry[511] = TEST_DATA + MIB;
}

static void access_bar(struct program *p, unsigned bar, uint64_t offset, unsigned size, bool write)
{
	uint64_t at = test_bar(&t.machine, bar) + offset;

	if (write)
		bus_write(&t.machine.mmio, at, take(p, size), size);
	else
		(void)bus_read(&t.machine.mmio, at, size);
}

static void step(struct program *p)
{
	uint64_t what = take(p, 1);
	unsigned size = 1u << (what >> 4 & 3);
	bool flag = what & 0x80;

	switch (what & 15) {
	case 0:
		test_config_write(&t.machine, (unsigned)take(p, 1), (uint32_t)take(p, size), size > 4 ? 4 : size);
		break;
	case 1:
		access_bar(p, NVME_BAR, take(p, 1) & 0x3f, size, flag);
		break;
	case 2:
		access_bar(p, flag ? NVME_MSIX_BAR : NVME_BAR, take(p, 2), size, true);
		break;
	case 3: /* a doorbell, decent or not */
		test_doorbell(&t, (unsigned)take(p, 1) % 8, flag, (uint32_t)take(p, size > 2 ? 2 : 1));
		break;
	case 4:
		unit.ops->pause(unit.self);
		if (flag)
			save_and_load();
		else if (size == 8)
			test_no_error(drive_resize(t.drive, drive_size(t.drive))); /* tells the guest */
		unit.ops->resume(unit.self);
		break;
	case 5:
		t.bar = test_bar(&t.machine, NVME_BAR);
		test_enable(&t);
		break;
	case 6:
		t.bar = test_bar(&t.machine, NVME_BAR);
		test_set(&t, NVME_CC, flag ? 0 : NVME_CC_ENABLE | NVME_CC_ENTRIES_64_16 | 1 << 14, 4);
		break;
	case 7: { /* a pair of decent queues */
		unsigned id = 1 + (unsigned)take(p, 1) % TEST_PAIRS;
		struct nvme_command c[2] = {test_create_cq(id, 2 + (uint32_t)take(p, 1) % 16, id),
					    test_create_sq(id, 2 + (uint32_t)take(p, 1) % 16, id)};
		struct nvme_sq *sq = &t.nvme->sq[0];
		for (unsigned i = 0; i < 2 && atomic_load(&sq->live) && sq->base == test_sq_address(0); i++) {
			uint32_t tail = atomic_load(&sq->tail) % TEST_ADMIN_SIZE;
			((struct nvme_command *)test_at(&t.machine, sq->base))[tail] = c[i];
			test_doorbell(&t, 0, false, (tail + 1) % TEST_ADMIN_SIZE);
		}
		break;
	}
	case 8:
		put_list(p);
		break;
	case 9: /* doorbells in memory */
		((uint32_t *)test_at(&t.machine, SHADOW))[take(p, 1) % 16] = (uint32_t)take(p, size);
		break;
	case 10: /* everything that was completed is read */
		for (unsigned i = 0; i <= TEST_PAIRS; i++)
			test_doorbell(&t, i, true, atomic_load(&t.nvme->cq[i].tail));
		break;
	case 11:
	case 12:
		send(p, 0, 1 + (what >> 4 & 3));
		break;
	default:
		send(p, 1 + (unsigned)(what >> 6 & 3), 1 + (what >> 4 & 3));
	}
}

/* Reads whatever the threads of this process have to do. */
static void settle(void)
{
	unit.ops->pause(unit.self);
	unit.ops->resume(unit.self);
}

/* One command of queue @id; the threads are this one, so pausing serves it. */
static uint16_t done(unsigned id, struct nvme_command c)
{
	struct nvme_completion end;

	test_add(&t.pair[id], c);
	test_ring_sq(&t, &t.pair[id]);
	settle(); /* sees that it waits */
	settle(); /* sees it through */
	assert(test_take(&t.pair[id], &end));
	test_ring_cq(&t, &t.pair[id]);
	return end.status;
}

static void check(void)
{
	unit.ops->pause(unit.self);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
	test_nvme_find(&t, true);
	test_enable(&t);
	assert(test_csts(&t) == NVME_CSTS_READY);
	for (unsigned id = 1; id <= TEST_PAIRS; id++) {
		test_pair_init(&t, id, 8, 8, id);
		assert(done(0, test_create_cq(id, 8, id)) == NVME_SUCCESS);
		assert(done(0, test_create_sq(id, 8, id)) == NVME_SUCCESS);
		assert(done(id, test_io(NVME_READ, 1, 1, TEST_DATA, 0)) == NVME_SUCCESS);
	}
	unit.ops->pause(unit.self);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};

	memset(test_at(&t.machine, SHADOW), 0, 0x2000);
	test_nvme_find(&t, size & 1);
	test_enable(&t);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p);
	check();
	return 0;
}
