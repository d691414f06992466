/*
 * Tests of the flash: commands as OVMF's driver gives them, its file, a file that fails, saved state; and power cuts.
 *
 * The recorder for power cuts stands below: this program has pwrite64() and fdatasync() of its own, which keep what is
 * written until it is synced. A cut leaves any part of it on the medium, in sectors of 512 bytes. The firmware here
 * keeps variables as EDK II does (header, then "header valid", then data, then "added"; the old one marked on the way).
 */
#include "base/util.h"
#include "vmm/devices/test_bench.h"
#include "vmm/firmware/pflash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>

#define GPA    0xffc00000ull
#define BYTES  0x8000u
#define SECTOR 512u

static struct bus mmio;
static struct pflash flash;
static char path[] = "/tmp/pflash-test-XXXXXX";
static int other_fd; /* the same file, for the test to look */
static unsigned failures;

/* --- the recorder --- */

static struct {
	bool on;
	bool sync_is_a_lie;
	int error; /* of the next calls, 0: none */
	uint8_t durable[BYTES], latest[BYTES];
	bool pending[BYTES / SECTOR];
	void (*cut)(void); /* called at every point where power may fail */
	unsigned syncs;
} recorder;

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset);
int fdatasync(int fd);

static bool recorded(int fd)
{
	return recorder.on && fd == flash.fd;
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset)
{
	if (recorded(fd) && recorder.error) {
		errno = recorder.error;
		return -1;
	}
	if (recorded(fd)) {
		assert_true(range_inside((uint64_t)offset, len, BYTES));
		memcpy(recorder.latest + offset, data, len);
		for (uint64_t at = (uint64_t)offset / SECTOR; at * SECTOR < (uint64_t)offset + len; at++)
			recorder.pending[at] = true;
		recorder.cut();
	}
	return syscall(SYS_pwrite64, fd, data, len, offset);
}

int fdatasync(int fd)
{
	if (!recorded(fd))
		return (int)syscall(SYS_fdatasync, fd);
	recorder.syncs++;
	if (recorder.error) {
		errno = recorder.error;
		return -1;
	}
	if (!recorder.sync_is_a_lie) {
		memcpy(recorder.durable, recorder.latest, BYTES);
		memset(recorder.pending, 0, sizeof(recorder.pending));
	}
	recorder.cut();
	return 0;
}

static void no_cut(void)
{
}

/* --- the chip --- */

static void failed(void *arg, int errnum)
{
	(void)arg;
	assert_int_equal(errnum, recorder.error);
	failures++;
}

static void insert(void)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	bus_init(&mmio, "MMIO");
	assert_ok(pflash_init(&flash, &mmio, GPA, fd, path));
	flash.failed = failed;
}

static int setup(void **state)
{
	uint8_t erased[BYTES];

	(void)state;
	strcpy(path, "/tmp/pflash-test-XXXXXX");
	other_fd = mkstemp(path);
	assert_true(other_fd >= 0);
	memset(erased, 0xff, sizeof(erased));
	assert_int_equal(pwrite(other_fd, erased, sizeof(erased), 0), sizeof(erased));
	insert();
	assert_ok(pflash_activate(&flash));
	failures = 0;
	memset(&recorder, 0, sizeof(recorder));
	memset(recorder.durable, 0xff, BYTES);
	memset(recorder.latest, 0xff, BYTES);
	recorder.cut = no_cut;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	recorder.on = false;
	pflash_destroy(&flash);
	close(other_fd);
	unlink(path);
	return 0;
}

static uint8_t get(uint64_t offset)
{
	return (uint8_t)bus_read(&mmio, GPA + offset, 1);
}

static void put(uint64_t offset, uint8_t value)
{
	bus_write(&mmio, GPA + offset, value, 1);
}

static void program(uint64_t offset, const void *data, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		put(offset + i, 0x10);
		put(offset + i, ((const uint8_t *)data)[i]);
	}
	put(offset + len - 1, 0xff);
}

static void erase(uint64_t offset)
{
	put(offset, 0x20);
	put(offset, 0xd0);
	put(offset, 0xff);
}

static uint8_t in_file(uint64_t offset)
{
	uint8_t byte;

	assert_int_equal(pread(other_fd, &byte, 1, (off_t)offset), 1);
	return byte;
}

/* --- commands --- */

/* How OVMF finds out that this is flash, not RAM or ROM, and may be written. */
static void test_probe(void **state)
{
	(void)state;
	put(0x10, 0x50);
	assert_int_equal(get(0x10), 0xff); /* array */
	put(0x10, 0x70);
	assert_int_equal(get(0x10), 0x00);
	put(0x10, 0x10);
	put(0x10, 0xff); /* data, not a command */
	put(0x10, 0x70);
	assert_int_equal(get(0x10), 0x80);
	assert_int_equal(get(BYTES - 1), 0x80);
	put(0x10, 0xff);
	assert_int_equal(get(0x10), 0xff);
}

static void test_program_and_erase(void **state)
{
	(void)state;
	program(0x1ffe, "four", 4); /* over a block's end */
	assert_int_equal(get(0x1ffe), 'f');
	assert_int_equal(get(0x2001), 'r');
	assert_int_equal(in_file(0x2001), 'r');
	program(0x1ffe, "\xf0", 1); /* bits only fall */
	assert_int_equal(get(0x1ffe), 'f' & 0xf0);
	put(0x1000, 0x40);
	bus_write(&mmio, GPA + 0x1000, 0x04030201, 4);
	assert_int_equal(bus_read(&mmio, GPA + 0x1000, 4), 0x80808080); /* the status, until told otherwise */
	put(0x1000, 0xff);
	assert_int_equal(bus_read(&mmio, GPA + 0x1000, 4), 0x04030201);

	erase(0x1abc); /* any address in the block */
	assert_int_equal(get(0x1ffe), 0xff);
	assert_int_equal(get(0x1000), 0xff);
	assert_int_equal(in_file(0x1000), 0xff);
	assert_int_equal(get(0x2001), 'r');
	put(0x2000, 0x20); /* not confirmed: nothing is erased, and the status says so */
	put(0x2000, 0x00);
	assert_int_equal(get(0x2000), 0xb0);
	put(0x2000, 0x50);
	assert_int_equal(get(0x2001), 'r');
}

static void test_identity(void **state)
{
	(void)state;
	put(0, 0x90);
	assert_int_equal(get(0), 0x89);
	assert_int_equal(get(1), 0x18);
	put(0, 0x98);
	assert_int_equal(get(0x10), 'Q');
	assert_int_equal(get(0x11), 'R');
	assert_int_equal(get(0x12), 'Y');
	assert_int_equal(get(0x13), 1);
	assert_int_equal(get(0x27), 15); /* 2^15 bytes */
	assert_int_equal(get(0x2c), 1);
	assert_int_equal(get(0x2d), BYTES / 4096 - 1);
	assert_int_equal(get(0x2f), 4096 / 256);
	assert_int_equal(get(0x31), 'P');
	put(0, 0xff);
	assert_int_equal(get(0x10), 0xff);
}

/* Durable when the guest goes on; one sync a run, whatever its length. */
static void test_syncs(void **state)
{
	(void)state;
	recorder.on = true;
	program(0x100, "0123456789", 10);
	assert_int_equal(recorder.syncs, 1);
	assert_memory_equal(recorder.durable + 0x100, "0123456789", 10);
	erase(0x100);
	assert_int_equal(recorder.syncs, 2);
	put(0, 0x70); /* nothing to write, nothing to sync */
	put(0, 0xff);
	assert_int_equal(recorder.syncs, 2);
}

/* --- the file --- */

static void test_locked(void **state)
{
	struct pflash second;
	struct bus bus;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	(void)state;
	bus_init(&bus, "MMIO");
	assert_ok(pflash_init(&second, &bus, GPA, fd, "second"));
	assert_error(pflash_activate(&second), "another process uses it");
	program(0, "x", 1);
	assert_ok(pflash_deactivate(&flash));
	assert_ok(pflash_activate(&second));
	assert_int_equal(second.array[0], 'x'); /* read when it is taken, not when it was opened */
	assert_error(pflash_activate(&flash), "another process uses it");
	pflash_destroy(&second);
}

static void test_bad_files(void **state)
{
	static const off_t sizes[] = {0, 1, 4095, 4097, PFLASH_BYTES_MAX + 4096};
	uint64_t size;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		assert_int_equal(ftruncate(other_fd, sizes[i]), 0);
		assert_error(pflash_file_size(other_fd, path, &size), "are no flash image");
	}
	assert_ok(pflash_deactivate(&flash));
	assert_int_equal(ftruncate(other_fd, 4096), 0);
	assert_error(pflash_activate(&flash), "has changed its size");
}

/* A full or failing file system: told once, nothing lost, all written when the machine resumes. */
static void test_failing_file(void **state)
{
	(void)state;
	recorder.on = true;
	recorder.error = ENOSPC;
	program(0x10, "abc", 3);
	program(0x3010, "def", 3);
	assert_int_equal(failures, 1);
	assert_int_equal(get(0x10), 'a'); /* the guest sees what it wrote */
	pflash_unit.resume(&flash);
	assert_int_equal(failures, 2);
	assert_error(pflash_deactivate(&flash), path);
	recorder.error = 0;
	pflash_unit.resume(&flash);
	assert_int_equal(failures, 2);
	assert_memory_equal(recorder.durable + 0x10, "abc", 3);
	assert_memory_equal(recorder.durable + 0x3010, "def", 3);
}

/* --- saved state --- */

static void test_moved_between_cycles(void **state)
{
	(void)state;
	put(0x20, 0x10);
	put(0x20, 'a');
	put(0x21, 0x10); /* its data comes after the move */
	pflash_unit.pause(&flash);
	assert_int_equal(in_file(0x20), 'a');
	int stream = bench_save(&pflash_unit, &flash);
	assert_ok(pflash_deactivate(&flash));
	pflash_destroy(&flash);
	insert();
	assert_ok(bench_load(&pflash_unit, &flash, stream));
	assert_ok(pflash_activate(&flash));
	assert_int_equal(get(0x21), 0x80);
	put(0x21, 'b');
	put(0x21, 0xff);
	assert_int_equal(get(0x20), 'a');
	assert_int_equal(get(0x21), 'b');
	close(stream);
}

/* --- power cuts --- */

enum {
	VARIABLES = 40,
	VARIABLE_MAX = 1400,
	STATE_HEADER = 0x7f,
	STATE_ADDED = 0x3f,
	STATE_LEAVING = 0xfe,
	STATE_GONE = 0xfd,
};

struct variable {
	uint16_t magic;
	uint8_t state, pad;
	uint32_t number, len;
};

static struct {
	uint32_t acknowledged; /* the newest number that the guest was told is kept */
	uint32_t cuts, wrong;
	unsigned seed;
} power;

static uint8_t content(uint32_t number, uint32_t at)
{
	return (uint8_t)(number * 31 + at * 7);
}

/* What firmware finds on @medium: the newest variable that is valid, or 0; UINT32_MAX when its data is not. */
static uint32_t newest(const uint8_t *medium)
{
	uint32_t found = 0;

	for (uint32_t at = 0; at + sizeof(struct variable) <= BYTES;) {
		struct variable v;
		memcpy(&v, medium + at, sizeof(v));
		if (v.magic != 0x55aa || v.state == 0xff || v.len > VARIABLE_MAX || at + sizeof(v) + v.len > BYTES)
			break;
		at += (uint32_t)sizeof(v);
		bool valid = v.state == STATE_ADDED || v.state == (STATE_ADDED & STATE_LEAVING);
		for (uint32_t i = 0; valid && i < v.len; i++)
			if (medium[at + i] != content(v.number, i))
				return UINT32_MAX;
		if (valid)
			found = MAX(found, v.number);
		at += v.len;
	}
	return found;
}

/* Power fails here: any of the sectors that were not synced are on the medium. */
static void cut(void)
{
	uint8_t medium[BYTES];

	for (unsigned try = 0; try < 8; try++) {
		memcpy(medium, recorder.durable, BYTES);
		for (unsigned i = 0; i < BYTES / SECTOR; i++)
			if (recorder.pending[i] && rand_r(&power.seed) % 2)
				memcpy(medium + i * SECTOR, recorder.latest + i * SECTOR, SECTOR);
		uint32_t found = newest(medium);
		power.cuts++;
		power.wrong += found < power.acknowledged || found > power.acknowledged + 1;
	}
}

static void put_state(uint32_t at, uint8_t state)
{
	program(at + offsetof(struct variable, state), &state, 1);
}

static void set_variables(void)
{
	uint32_t at = 0, before = 0;

	power.acknowledged = 0;
	power.cuts = power.wrong = 0;
	recorder.cut = cut;
	recorder.on = true;
	for (uint32_t number = 1; number <= VARIABLES; number++) {
		struct variable v = {0x55aa, 0xff, 0xff, number, (uint32_t)rand_r(&power.seed) % VARIABLE_MAX + 1};
		uint8_t data[VARIABLE_MAX];
		if (at + sizeof(v) + v.len > BYTES)
			break;
		for (uint32_t i = 0; i < v.len; i++)
			data[i] = content(number, i);
		if (number > 1)
			put_state(before, STATE_ADDED & STATE_LEAVING);
		program(at, &v, sizeof(v));
		put_state(at, STATE_HEADER);
		program(at + sizeof(v), data, v.len);
		put_state(at, STATE_ADDED);
		if (number > 1)
			put_state(before, STATE_ADDED & STATE_LEAVING & STATE_GONE);
		power.acknowledged = number;
		cut();
		before = at;
		at += (uint32_t)sizeof(v) + v.len;
	}
}

static void test_power_cuts(void **state)
{
	(void)state;
	const char *seed = getenv("GLINT_SEED");
	power.seed = seed ? (unsigned)strtoul(seed, NULL, 10) : 1;
	set_variables();
	print_message("%u power cuts, %u variables\n", power.cuts, power.acknowledged);
	assert_true(power.acknowledged > 20 && power.cuts > 1000);
	assert_int_equal(power.wrong, 0);
}

/* The recorder proves itself: a file system whose sync does nothing loses or spoils variables, and it is seen. */
static void test_recorder_sees(void **state)
{
	(void)state;
	power.seed = 1;
	recorder.sync_is_a_lie = true;
	set_variables();
	assert_true(power.wrong > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_probe, setup, teardown),
		cmocka_unit_test_setup_teardown(test_program_and_erase, setup, teardown),
		cmocka_unit_test_setup_teardown(test_identity, setup, teardown),
		cmocka_unit_test_setup_teardown(test_syncs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_locked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failing_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_moved_between_cycles, setup, teardown),
		cmocka_unit_test_setup_teardown(test_power_cuts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_recorder_sees, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
