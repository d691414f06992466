/*
 * What the tests of the NVMe controller share: one controller with a disk, and its driver's everyday commands.
 */
#ifndef GLINT_VMM_NVME_FIXTURE_H
#define GLINT_VMM_NVME_FIXTURE_H

#include "base/cleanup.h"
#include "vmm/nvme/internal.h"
#include "vmm/nvme/test_nvme.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include <cmocka.h>

#define DISK_BYTES (8 * MIB)
#define SHADOW     0x80000ull /* the page of doorbells, the other behind it */

static struct test_nvme t;
static atomic_int paused_count, paused_errno;

static void on_paused(void *arg, int errnum)
{
	(void)arg;
	atomic_store(&paused_errno, errnum);
	atomic_fetch_add(&paused_count, 1);
}

static inline int memory_disk(void)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	if (fd < 0)
		abort();
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	return fd;
}

/* A file on the file system of the working directory: where caches mean something. */
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

static inline struct drive_config default_drive(int fd)
{
	return (struct drive_config){.name = "test.raw",
				     .format = "raw",
				     .fd = fd,
				     .on_full = DRIVE_REPORT,
				     .on_error = DRIVE_REPORT,
				     .paused = on_paused};
}

static inline void begin_with(struct drive_config drive, unsigned queues, bool msix)
{
	memset(&t, 0, sizeof(t));
	atomic_store(&paused_count, 0);
	t.drive_config = drive;
	t.queues = queues;
	test_machine_init(&t.machine, NULL);
	test_no_error(test_nvme_make(&t));
	test_no_error(drive_activate(t.drive));
	test_nvme_find(&t, msix);
	test_enable(&t);
}

static inline void begin(int fd, unsigned queues)
{
	begin_with(default_drive(fd), queues, true);
}

static inline void begin_without_msix(void)
{
	begin_with(default_drive(memory_disk()), 1, false);
}

static inline void begin_readonly(void)
{
	struct drive_config drive = default_drive(memory_disk());

	drive.readonly = true;
	begin_with(drive, 1, true);
}

static inline void end(void)
{
	test_nvme_free(&t);
	test_machine_destroy(&t.machine, false);
}

static inline uint8_t *data_at(uint64_t offset)
{
	return test_at(&t.machine, TEST_DATA + offset);
}

static inline uint64_t number(const uint8_t *p, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint64_t)p[i] << (8 * i);
	return value;
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

/* A command of the disk on queue 1. */
static inline uint16_t io(struct nvme_command c)
{
	return test_command(&t, 1, c).status;
}

static inline struct nvme_command identify(unsigned cns, uint32_t nsid)
{
	return (struct nvme_command){.opcode = NVME_IDENTIFY, .nsid = nsid, .prp1 = TEST_DATA, .cdw10 = cns};
}

static inline struct nvme_completion feature(uint8_t opcode, uint32_t cdw10, uint32_t cdw11)
{
	return test_command(&t, 0, (struct nvme_command){.opcode = opcode, .cdw10 = cdw10, .cdw11 = cdw11});
}

static inline struct nvme_command get_log(uint8_t id, uint32_t bytes, uint64_t offset)
{
	uint32_t words = bytes / 4 - 1;

	return (struct nvme_command){.opcode = NVME_GET_LOG,
				     .nsid = NVME_NSID_ALL,
				     .prp1 = TEST_DATA,
				     .prp2 = TEST_DATA + PAGE_BYTES,
				     .cdw10 = id | words << 16,
				     .cdw11 = words >> 16,
				     .cdw12 = (uint32_t)offset,
				     .cdw13 = (uint32_t)(offset >> 32)};
}

static inline uint16_t set_shadow(uint64_t doorbells, uint64_t events)
{
	return test_admin(&t, (struct nvme_command){.opcode = NVME_DOORBELL_BUFFER, .prp1 = doorbells, .prp2 = events});
}

/* How often vector @v was signalled since last asked. */
static inline uint64_t interrupts(unsigned v)
{
	uint64_t count = 0;

	if (read(t.nvme->pci.msix.entry[v].msi.event_fd, &count, sizeof(count)) < 0)
		return 0;
	return count;
}

static inline void pause_nvme(void)
{
	struct unit unit = nvme_unit(t.nvme, "disk:test");
	unit.ops->pause(unit.self);
}

static inline void resume_nvme(void)
{
	struct unit unit = nvme_unit(t.nvme, "disk:test");
	unit.ops->resume(unit.self);
}

static inline struct error *grow(uint64_t size)
{
	pause_nvme();
	struct error *err = drive_resize(t.drive, size);
	resume_nvme();
	return err;
}

struct cache_range {
	uint64_t offset, len;
};

struct cache_counts {
	uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

/* Pages of the file that are not on disk yet (cachestat(2), Linux 6.5). */
static inline uint64_t dirty_pages(void)
{
	struct cache_range range = {0, DISK_BYTES};
	struct cache_counts counts;
	struct statfs fs;

	/* tmpfs calls no page dirty: nowhere to write it. */
	if (fstatfs(t.drive_config.fd, &fs) != 0 || fs.f_type == TMPFS_MAGIC ||
	    syscall(451, t.drive_config.fd, &range, &counts, 0) != 0) {
		print_message("no way to see what is not durable here\n");
		skip();
	}
	return counts.dirty + counts.writeback;
}

#endif
