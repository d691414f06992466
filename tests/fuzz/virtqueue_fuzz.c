/*
 * Fuzzes a virtio-blk device through its rings: the input is a program of a hostile guest, which writes descriptors,
 * tables, headers and raw bytes into memory and makes entries available, over and over, on a real (memory) disk through
 * a real ring. Whatever it did, after a reset the device must serve a decent request.
 *
 * The machine stands paused; a kick is a resume, which looks at all queues, and a pause, which waits for all requests:
 * so a run does the same each time.
 */
#include "tests/fuzz/program.h"
#include "vmm/virtio/blk.h"
#include "vmm/virtio/test_driver.h"

#include <linux/virtio_blk.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define DISK_BYTES 0x10000
#define RING_SIZE  16
#define PAGES      16ull /* of guest memory that programs use, from TEST_RINGS on */

static struct test_machine machine;
static struct drive *drive;
static struct blk *blk;
static struct virtio_pci *vp;
static struct unit unit;
static int image_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	test_machine_adopt(&machine);
	image_fd = memfd_create("disk", MFD_CLOEXEC);
	assert(ftruncate(image_fd, DISK_BYTES) == 0);
	const struct drive_config drive_config = {.name = "fuzz",
						  .format = "raw",
						  .fd = image_fd,
						  .on_full = DRIVE_REPORT,
						  .on_error = DRIVE_PAUSE,
						  .threads = machine.threads,
						  .thread_count = 1};
	test_no_error(drive_new(&drive, &drive_config));
	const struct blk_config config = {
		.drive = drive, .queues = 1, .serial = "fuzz", .threads = machine.threads, .thread_count = 1};
	test_no_error(blk_new(&blk, &machine.memory, &config));
	test_no_error(virtio_pci_new(&vp, blk_device(blk), &machine.pci, TEST_SLOT));
	test_no_error(drive_activate(drive));
	unit = virtio_pci_unit(vp, "fuzz");
	unit.ops->pause(unit.self);
	/* A guest that breaks its queues is not news here. */
	atomic_flag_test_and_set(&vp->complained);
	return 0;
}

/* An address: most lie in the pages in use, some at the ends of memory, some anywhere. */
static uint64_t take_address(struct program *p)
{
	uint64_t kind = take(p, 1);

	switch (kind) {
	case 0xff:
		return take(p, 8);
	case 0xfe:
		return TEST_MEMORY - take(p, 1);
	default:
		return TEST_RINGS + (kind % PAGES << 12 | take(p, 1) << 4);
	}
}

static uint32_t take_len(struct program *p)
{
	uint64_t kind = take(p, 1);

	return (uint32_t)(kind == 0xff ? take(p, 4) : kind < 0x80 ? kind : (kind & 0x7f) * 512);
}

static struct vring_desc take_descriptor(struct program *p)
{
	uint64_t address = take_address(p);
	uint32_t len = take_len(p);

	return (struct vring_desc){address, len, (uint16_t)take(p, 1), (uint16_t)take(p, 1)};
}

static void kick(void)
{
	unit.ops->resume(unit.self);
	unit.ops->pause(unit.self);
}

/* One instruction of the program. */
static void step(struct program *p, struct test_ring *r)
{
	uint8_t *page = test_at(&machine, TEST_RINGS);

	switch (take(p, 1) % 8) {
	case 0:
		r->desc[take(p, 1) % RING_SIZE] = take_descriptor(p);
		break;
	case 1: { /* a descriptor of a table */
		uint64_t at = take(p, 2) % (PAGES * 4096 - sizeof(struct vring_desc));
		struct vring_desc d = take_descriptor(p);
		memcpy(page + at, &d, sizeof(d));
		break;
	}
	case 2: { /* a header */
		uint64_t at = take(p, 2) % (PAGES * 4096 - sizeof(struct virtio_blk_outhdr));
		struct virtio_blk_outhdr h = {.type = (uint32_t)take(p, 1), .sector = take(p, 1)};
		memcpy(page + at, &h, sizeof(h));
		break;
	}
	case 3: { /* any bytes */
		uint64_t at = take(p, 2), n = take(p, 1);
		for (uint64_t i = 0; i < n && p->left; i++)
			page[(at + i) % (PAGES * 4096)] = (uint8_t)take(p, 1);
		break;
	}
	case 4:
		r->avail->ring[r->avail->idx++ % RING_SIZE] = (uint16_t)take(p, 1);
		break;
	case 5:
		r->avail->idx = (uint16_t)(r->avail->idx + take(p, 2));
		break;
	case 6:
		r->avail->ring[RING_SIZE] = (uint16_t)take(p, 2);
		break;
	default:
		kick();
	}
}

/* The device lives: it answers a decent request after a reset. */
static void check(struct test_driver *d)
{
	struct test_ring r;
	struct stat st;

	test_driver_negotiate(d, ~0ull);
	test_ring_init(&r, d, 0, RING_SIZE);
	test_driver_ok(d);
	test_blk_add(&r, 0, VIRTIO_BLK_T_IN, 1, TEST_DATA, 512, true);
	test_ring_publish(&r);
	kick();
	assert(r.used->idx == 1 && r.used->ring[0].len == 513 && *test_blk_status(&r, 0) == VIRTIO_BLK_S_OK);
	assert(fstat(image_fd, &st) == 0 && st.st_size == DISK_BYTES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};
	struct test_driver d;
	struct test_ring r;

	memset(test_at(&machine, TEST_RINGS), 0, PAGES * 4096);
	test_driver_find(&d, &machine, vp);
	uint64_t flags = take(&p, 1);
	test_driver_negotiate(
		&d, ~((flags & 1) << VIRTIO_RING_F_INDIRECT_DESC | (flags >> 1 & 1) << VIRTIO_RING_F_EVENT_IDX |
		      (flags >> 2 & 1) << VIRTIO_BLK_F_FLUSH | (flags >> 3 & 1) << VIRTIO_BLK_F_CONFIG_WCE));
	test_ring_init(&r, &d, 0, RING_SIZE);
	test_driver_ok(&d);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p, &r);
	kick();
	check(&d);
	return 0;
}
