/*
 * What the tests of virtio-blk share: a machine with one disk, and a driver that has set it up.
 */
#ifndef GLINT_VMM_VIRTIO_BLK_TEST_H
#define GLINT_VMM_VIRTIO_BLK_TEST_H

#include "vmm/virtio/blk.h"
#include "vmm/virtio/test_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

#define DISK_BYTES   (8 * MIB)
#define DISK_SECTORS (DISK_BYTES / 512)

struct test_disk {
	struct drive_config drive;
	int parent[DISK_CHAIN_MAX];
	unsigned queues;
};

struct blk_fixture {
	struct test_machine machine;
	struct test_disk config;
	struct drive *drive;
	struct blk *blk;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring ring[8];
	atomic_int paused; /* calls of paused() */
	atomic_int paused_errno;
};

static struct blk_fixture f;

static void on_paused(void *arg, int errnum)
{
	(void)arg;
	atomic_store(&f.paused_errno, errnum);
	atomic_fetch_add(&f.paused, 1);
}

static inline int memory_disk(void)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	if (fd < 0)
		abort();
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	return fd;
}

/* A file on the file system of the working directory: where tests of locks, direct I/O and caches mean something. */
static inline int file_disk(int flags)
{
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);

	if (fd < 0) {
		print_message("no such file here (%s)\n", strerror(errno));
		skip();
		abort(); /* not reached */
	}
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	return fd;
}

static inline struct test_disk default_config(int fd)
{
	return (struct test_disk){.queues = 1,
				  .drive = {.name = "test.raw",
					    .format = "raw",
					    .fd = fd,
					    .on_full = DRIVE_REPORT,
					    .on_error = DRIVE_REPORT,
					    .paused = on_paused}};
}

static inline struct error *make_disk(struct test_machine *m, struct test_disk *config, struct drive **drive,
				      struct blk **blk)
{
	struct blk_config device = {.queues = config->queues,
				    .serial = "serial-0123456789",
				    .threads = m->threads,
				    .thread_count = TEST_THREADS};

	config->drive.parents = config->parent;
	config->drive.threads = m->threads;
	config->drive.thread_count = TEST_THREADS;
	TRY(drive_new(drive, &config->drive));
	device.drive = *drive;
	return blk_new(blk, &m->memory, &device);
}

/* The device in a machine that is there. */
static inline void add_disk(void)
{
	test_no_error(make_disk(&f.machine, &f.config, &f.drive, &f.blk));
	test_no_error(virtio_pci_new(&f.vp, blk_device(f.blk), &f.machine.pci, TEST_SLOT));
}

static inline void drive(uint64_t features, uint16_t size)
{
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	test_driver_negotiate(&f.driver, features);
	for (unsigned i = 0; i < f.config.queues; i++)
		test_ring_init(&f.ring[i], &f.driver, i, size);
	test_driver_ok(&f.driver);
}

static inline void start_disk(struct test_disk config, uint64_t features)
{
	memset(&f, 0, sizeof(f));
	f.config = config;
	test_machine_init(&f.machine, NULL);
	add_disk();
	test_no_error(drive_activate(f.drive));
	drive(features, 128);
}

static inline void end_disk(void)
{
	virtio_pci_free(f.vp);
	blk_free(f.blk);
	drive_free(f.drive);
	test_machine_destroy(&f.machine, false);
}

/* Writes with a generator whose sequence follows from @seed. */
static inline void pattern(void *data, size_t len, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;

	for (size_t i = 0; i < len; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy((uint8_t *)data + i, &x, MIN(len - i, (size_t)8));
	}
}

static inline uint8_t *data_at(uint64_t offset)
{
	return test_at(&f.machine, TEST_DATA + offset);
}

#endif
