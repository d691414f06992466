/*
 * Fuzzes the variable store's flash: the input is a program of writes of every width and alignment, reads, pauses,
 * resets, moves to another machine, and a file that fails at times. After it, the chip shows its array again, the file
 * has what the array has, and a block can be erased and programmed.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "tests/fuzz/program.h"
#include "vmm/firmware/pflash.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BYTES     0x14000u /* more than one image, and a part of another */
#define GPA       0xffc00000ull
#define STEPS_MAX 400

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct bus mmio;
static struct pflash flash;

static void failed(void *arg, int errnum)
{
	(void)arg;
	assert(errnum != 0);
}

static void insert(int fd)
{
	bus_init(&mmio, "MMIO");
	struct error *err = pflash_init(&flash, &mmio, GPA, fd, "fuzz");
	assert(!err);
	flash.failed = failed;
}

static void activate(void)
{
	struct error *err = pflash_activate(&flash);
	assert(!err);
}

/* To a new machine, by a stream; the file changes hands. */
static void move(void)
{
	cleanup_fd int fd = memfd_create("stream", MFD_CLOEXEC);
	int file = dup(flash.fd);

	pflash_unit.pause(&flash);
	for (unsigned loading = 0; loading < 2; loading++) {
		cleanup_saved struct saved *s = NULL;
		assert(lseek(fd, 0, SEEK_SET) == 0);
		struct error *err = loading ? saved_open(fd, "fuzz", &s) : saved_create(fd, "fuzz", &s);
		err = err ? err : saved_unit(s, "vars", pflash_unit.version, pflash_unit.state, &flash);
		err = err ? err : saved_finish(s);
		assert(!err);
		if (loading)
			break;
		err = pflash_deactivate(&flash);
		assert(!err);
		pflash_destroy(&flash);
		insert(file);
	}
	struct error *err = pflash_unit.restored(&flash);
	assert(!err);
	activate();
}

static void step(struct program *p)
{
	uint64_t kind = take(p, 1), offset;

	switch (kind % 16) {
	case 0:
		pflash_unit.pause(&flash);
		pflash_unit.resume(&flash);
		break;
	case 1:
		pflash_unit.reset(&flash);
		break;
	case 2:
		move();
		break;
	case 3:
		(void)bus_read(&mmio, GPA + take(p, 3) % BYTES, 1 + (unsigned)take(p, 1) % 8);
		break;
	default:
		offset = take(p, 1) << 8 | take(p, 1);
		bus_write(&mmio, GPA + (offset + (kind & 0x80 ? 0x4000 : 0)) % BYTES, take(p, 1 + kind % 3),
			  kind % 16 < 12 ? 1 : 1 + (unsigned)kind % 8);
		break;
	}
}

static void must_work(void)
{
	static uint8_t file[BYTES];

	pflash_unit.reset(&flash);
	pflash_unit.pause(&flash);
	assert(memcmp(flash.view, flash.array, BYTES) == 0);
	assert(pread(flash.fd, file, BYTES, 0) == BYTES && memcmp(file, flash.array, BYTES) == 0);
	bus_write(&mmio, GPA + 0x1000, 0x20, 1);
	bus_write(&mmio, GPA + 0x1000, 0xd0, 1);
	bus_write(&mmio, GPA + 0x1007, 0x10, 1);
	bus_write(&mmio, GPA + 0x1007, 0x5a, 1);
	assert(bus_read(&mmio, GPA, 1) == 0x80);
	bus_write(&mmio, GPA + 0x1007, 0xff, 1);
	assert(bus_read(&mmio, GPA + 0x1007, 1) == 0x5a && bus_read(&mmio, GPA + 0x1008, 1) == 0xff);
	assert(pread(flash.fd, file, 1, 0x1007) == 1 && file[0] == 0x5a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {.data = data, .left = size};
	int fd = memfd_create("store", MFD_CLOEXEC);

	assert(fd >= 0 && ftruncate(fd, BYTES) == 0);
	insert(fd);
	activate();
	for (unsigned i = 0; i < STEPS_MAX && p.left; i++)
		step(&p);
	must_work();
	pflash_destroy(&flash);
	return 0;
}
