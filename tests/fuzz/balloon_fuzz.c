/*
 * Fuzzes the balloon: chains of page numbers, statistics and free pages as the program has them, in any of its queues,
 * with configuration writes, questions for statistics, pauses and saved states between. Memory the guest did not name
 * must stay as it is, and after a reset the device must serve a decent chain.
 */
#include "base/cleanup.h"
#include "tests/fuzz/program.h"
#include "vmm/machine/unit.h"
#include "vmm/virtio/balloon.h"
#include "vmm/virtio/test_driver.h"

#include <sys/mman.h>

#define QUEUES 5
#define AREA   (8 * MIB) /* what a program may give away lies above; rings and data below */
#define WORDS  64

static struct test_machine machine;
static struct balloon *balloon;
static struct virtio_pci *vp;
static struct unit unit;
static struct test_driver driver;
static struct test_ring ring[QUEUES];
static int saved_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	const struct balloon_config config = {.deflate_on_oom = true, .reporting = true};

	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	test_machine_adopt(&machine);
	test_no_error(balloon_new(&balloon, &machine.memory, machine.threads[0], &config));
	test_no_error(virtio_pci_new(&vp, balloon_device(balloon), &machine.pci, TEST_SLOT));
	unit = virtio_pci_unit(vp, "fuzz");
	atomic_flag_test_and_set(&vp->complained);
	return 0;
}

static void start(uint64_t features)
{
	test_driver_find(&driver, &machine, vp);
	driver.quiet = true;
	test_driver_negotiate(&driver, features);
	for (unsigned i = 0; i < QUEUES; i++)
		test_ring_init(&ring[i], &driver, i, 16);
	test_driver_ok(&driver);
}

/* Page numbers of the area, mostly; sometimes of anywhere outside of RAM. */
static uint32_t page_number(struct program *p)
{
	uint32_t n = (uint32_t)take(p, 2);

	return n & 0x8000 ? n << 16 | 0x80000000u : (uint32_t)((AREA + n % 4096 * 4096) / BALLOON_PAGE);
}

/* What was made available is begun at resume, and finished at pause: nobody else serves this thread's ring. */
static void work(void)
{
	unit.ops->pause(unit.self);
	unit.ops->resume(unit.self);
	unit.ops->pause(unit.self);
	unit.ops->resume(unit.self);
}

static void send_chain(struct program *p, unsigned index, bool write)
{
	uint32_t *words = test_at(&machine, TEST_DATA);
	unsigned count = (unsigned)take(p, 1) % WORDS + 1;
	struct test_buffer b = {TEST_DATA, count * 4, false};

	if (ring[index].free_count == 0)
		return;
	for (unsigned i = 0; i < count && !write; i++)
		words[i] = page_number(p);
	if (write)
		b = (struct test_buffer){AREA + take(p, 3) % (TEST_MEMORY - AREA - 0x20000), (uint32_t)take(p, 2) + 1,
					 true};
	test_ring_add(&ring[index], &b, 1, false);
	(void)test_ring_publish(&ring[index]);
	work();
	uint16_t head;
	uint32_t len;
	while (test_ring_take(&ring[index], &head, &len))
		assert(len == 0);
}

static void save_and_load(void)
{
	struct saved *s;

	unit.ops->pause(unit.self);
	assert(ftruncate(saved_fd, 0) == 0 && lseek(saved_fd, 0, SEEK_SET) == 0);
	test_no_error(saved_create(saved_fd, "fuzz", &s));
	test_no_error(saved_unit(s, "fuzz", 1, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	assert(lseek(saved_fd, 0, SEEK_SET) == 0);
	test_no_error(saved_open(saved_fd, "fuzz", &s));
	test_no_error(saved_unit(s, "fuzz", 1, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	test_no_error(unit.ops->restored(unit.self));
	unit.ops->resume(unit.self);
}

static void step(struct program *p)
{
	unsigned what = (unsigned)take(p, 1), index = (what >> 4) % QUEUES;

	switch (what & 7) {
	case 0:
	case 1:
		send_chain(p, index, false);
		break;
	case 2:
		send_chain(p, index, true);
		break;
	case 3:
		test_write(&driver, VIRTIO_BAR_DEVICE + (unsigned)take(p, 1) % 24, take(p, 4), 1u << (what >> 4 & 3));
		break;
	case 4:
		(void)balloon_ask_stats(balloon);
		break;
	case 5:
		error_free(balloon_set_target(balloon, take(p, 4)));
		break;
	case 6:
		save_and_load();
		break;
	case 7:
		start(take(p, 5) | 1ull << VIRTIO_F_VERSION_1);
		break;
	}
	assert(balloon_actual(balloon) <= TEST_MEMORY && balloon_target(balloon) <= TEST_MEMORY);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program program = {data, MIN(size, (size_t)1024)};
	uint64_t *mark = test_at(&machine, AREA - 8);

	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
	start(~0ull);
	*mark = 0x1234567890abcdef;
	while (program.left)
		step(&program);
	assert(*mark == 0x1234567890abcdef);
	start(~0ull);
	*(uint64_t *)test_at(&machine, AREA) = 1;
	*(uint32_t *)test_at(&machine, TEST_DATA) = (uint32_t)(AREA / BALLOON_PAGE);
	test_ring_add(&ring[0], &(struct test_buffer){TEST_DATA, 4, false}, 1, false);
	(void)test_ring_publish(&ring[0]);
	work();
	assert(*(uint64_t *)test_at(&machine, AREA) == 0);
	return 0;
}
