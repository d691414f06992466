/*
 * Tests of the AHCI controller and its CD drives: what every command answers and refuses, reads into buffers of every
 * form, errors and the ways out, resets of every kind, trays, interrupts; paused and moved amid reading; a stream that
 * lies.
 */
#include "base/cleanup.h"
#include "vmm/ahci/test_ahci.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

#define BLOCKS 1200u
#define BYTES  (BLOCKS * AHCI_BLOCK)

static struct test_ahci t;
static atomic_int held, changed;
static uint8_t image[BYTES];

static void on_held(void *, int)
{
	atomic_fetch_add(&held, 1);
}

static void on_changed(void *)
{
	atomic_fetch_add(&changed, 1);
}

/* --- a machine with a medium --- */

static int make_image(uint32_t blocks, uint64_t seed)
{
	int fd = memfd_create("medium", MFD_CLOEXEC);
	uint64_t x = seed;

	for (size_t i = 0; i < BYTES; i += 8) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		memcpy(image + i, &x, 8);
	}
	assert_int_equal(write(fd, image, (size_t)blocks * AHCI_BLOCK), (ssize_t)blocks * AHCI_BLOCK);
	return fd;
}

static struct drive_config drive_of(int fd)
{
	return (struct drive_config){.name = "test.iso",
				     .format = "raw",
				     .fd = fd,
				     .readonly = true,
				     .on_error = DRIVE_REPORT,
				     .paused = on_held,
				     .threads = t.machine.threads,
				     .thread_count = TEST_THREADS};
}

static void begin(int fd)
{
	memset(&t, 0, sizeof(t));
	atomic_store(&held, 0);
	atomic_store(&changed, 0);
	test_machine_init(&t.machine, NULL);
	t.drive_config = drive_of(fd);
	test_no_error(test_ahci_make(&t));
	t.ahci->config.changed = on_changed;
	if (t.medium)
		test_no_error(drive_activate(t.medium));
	test_ahci_find(&t);
	for (unsigned i = 0; i < TEST_PORTS; i++)
		test_start_port(&t, i);
}

static void end(void)
{
	test_ahci_free(&t);
	test_machine_destroy(&t.machine, false);
}

static uint8_t *data_at(uint64_t offset)
{
	return test_ram(&t, TEST_DATA + offset);
}

static struct unit unit_of(void)
{
	return ahci_unit(t.ahci, "ahci");
}

/* --- commands, and waiting for them --- */

static bool ended(unsigned port, unsigned slot)
{
	return !(test_px(&t, port, AHCI_PX_CI) >> slot & 1) || test_px(&t, port, AHCI_PX_IS) >> 26;
}

static void wait_for(unsigned port, unsigned slot)
{
	for (unsigned ms = 0; !ended(port, slot); ms++) {
		assert_true(ms < TEST_PATIENCE_MS);
		usleep(1000);
	}
}

static unsigned status(unsigned port)
{
	return test_px(&t, port, AHCI_PX_TFD) & 0xff;
}

static void issue(unsigned port, unsigned slot)
{
	test_set_px(&t, port, AHCI_PX_IS, ~0u);
	test_set_px(&t, port, AHCI_PX_CI, 1u << slot);
}

/* A packet to port 0 from start to end, into @prds buffers. True when it went well; else the port is started again. */
static bool packet_into(const uint8_t *cdb, bool dma, const struct test_prd *prd, unsigned prds)
{
	test_prepare(&t, 0, 0, 0xa0, cdb, dma, prd, prds);
	issue(0, 0);
	wait_for(0, 0);
	if (!(status(0) & 1))
		return test_px(&t, 0, AHCI_PX_CI) == 0 && status(0) == 0x50;
	assert_true(test_px(&t, 0, AHCI_PX_IS) & AHCI_IS_TASK_FILE);
	assert_int_equal(test_px(&t, 0, AHCI_PX_CI), 1);
	test_start_port(&t, 0);
	return false;
}

static bool packet(const uint8_t *cdb)
{
	struct test_prd prd = test_buffer(TEST_DATA, 4096);

	memset(data_at(0), 0xee, 4096);
	return packet_into(cdb, false, &prd, 1);
}

#define CDB(...) ((const uint8_t[12]){__VA_ARGS__})

/* Key, code and qualifier as one number. */
static unsigned sense(void)
{
	assert_true(packet(CDB(0x03, 0, 0, 0, 18)));
	assert_int_equal(data_at(0)[0], 0x70);
	return (unsigned)data_at(0)[2] << 16 | (unsigned)data_at(0)[12] << 8 | data_at(0)[13];
}

static unsigned be(unsigned at, unsigned bytes)
{
	return ahci_get_be(data_at(at), bytes);
}

/* What is owed after power-on is taken. */
static void settle(void)
{
	assert_false(packet(CDB(0x00)));
	assert_int_equal(sense(), 0x062900);
}

/* --- what it is --- */

static void test_signature(void **)
{
	begin(make_image(BLOCKS, 1));
	assert_int_equal(test_hba(&t, AHCI_PI), 3);
	assert_int_equal(test_hba(&t, AHCI_CAP) & 0x1fff, 0x1f01);
	assert_int_equal(test_hba(&t, AHCI_GHC), AHCI_GHC_ENABLE);
	for (unsigned i = 0; i < TEST_PORTS; i++) {
		const uint8_t *fis = test_ram(&t, test_frames(i) + 0x40);
		assert_int_equal(test_px(&t, i, AHCI_PX_SIG), 0xeb140101);
		assert_int_equal(test_px(&t, i, AHCI_PX_SSTS), 0x113);
		assert_int_equal(test_px(&t, i, AHCI_PX_TFD), 0x0100);
		assert_int_equal(test_px(&t, i, AHCI_PX_CMD) & 0xc011, 0xc011);
		assert_memory_equal(fis, CDB(0x34, 0, 0, 1, 1, 0x14, 0xeb), 7);
	}
	end();
}

static void test_identify(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, 512);

	begin(make_image(BLOCKS, 1));
	test_prepare(&t, 0, 5, 0xa1, NULL, false, &prd, 1);
	issue(0, 5);
	wait_for(0, 5);
	assert_int_equal(test_px(&t, 0, AHCI_PX_TFD), 0x50);
	assert_int_equal(test_moved(&t, 0, 5), 512);
	assert_int_equal(data_at(0)[1], 0x85);
	assert_memory_equal(data_at(20), "esirlao-en", 10);
	assert_memory_equal(data_at(54), "lGni tVD-DOR", 12);
	const uint8_t *pio = test_ram(&t, test_frames(0) + 0x20);
	assert_memory_equal(pio, CDB(0x5f, 0x60, 0x58), 3);
	assert_int_equal(pio[15], 0x50);
	assert_int_equal(pio[17], 2);
	assert_int_equal(test_px(&t, 0, AHCI_PX_IS), AHCI_IS_D2H | AHCI_IS_PIO);
	/* IDENTIFY DEVICE says that it is no disk; what is no command is aborted. */
	for (unsigned i = 0; i < 2; i++) {
		test_prepare(&t, 0, 0, i ? 0x77 : 0xec, NULL, false, &prd, 1);
		issue(0, 0);
		wait_for(0, 0);
		assert_int_equal(test_px(&t, 0, AHCI_PX_TFD), 0x0451);
		assert_int_equal(((uint8_t *)test_ram(&t, test_frames(0) + 0x40))[5], i ? 0 : 0x14);
		test_start_port(&t, 0);
	}
	test_prepare(&t, 0, 0, 0xef, NULL, false, &prd, 0);
	issue(0, 0);
	wait_for(0, 0);
	assert_int_equal(test_px(&t, 0, AHCI_PX_TFD), 0x50);
	end();
}

static void test_answers(void **)
{
	begin(make_image(BLOCKS, 1));
	assert_true(packet(CDB(0x12, 0, 0, 0, 36))); /* also while something is owed */
	assert_memory_equal(data_at(0), CDB(5, 0x80, 0, 0x21, 31), 5);
	assert_memory_equal(data_at(8), "Glint   DVD-ROM         1   ", 28);
	assert_int_equal(test_moved(&t, 0, 0), 36);
	assert_int_equal(data_at(0)[36], 0xee);
	settle();
	assert_true(packet(CDB(0x00)));
	assert_true(packet(CDB(0x12, 0, 0, 0, 5)));
	assert_int_equal(test_moved(&t, 0, 0), 5);
	assert_true(packet(CDB(0x12, 1, 0x80, 0, 255)));
	assert_memory_equal(data_at(4), "serial-one", 10);
	assert_false(packet(CDB(0x12, 1, 0x99, 0, 255)));
	assert_int_equal(sense(), 0x052400);
	assert_int_equal(sense(), 0); /* once */
	assert_true(packet(CDB(0x25)));
	assert_int_equal(be(0, 4), BLOCKS - 1);
	assert_int_equal(be(4, 4), 2048);
	assert_true(packet(CDB(0x43, 0, 0, 0, 0, 0, 0, 0, 255)));
	assert_int_equal(be(0, 2), 18);
	assert_int_equal(be(16, 4), BLOCKS);
	assert_true(packet(CDB(0x43, 2, 0, 0, 0, 0, 0xaa, 0, 255)));
	assert_int_equal(be(0, 2), 10);
	assert_int_equal(be(8, 4), (BLOCKS + 150) / 75 / 60 << 16 | (BLOCKS + 150) / 75 % 60 << 8 | BLOCKS % 75);
	assert_true(packet(CDB(0x43, 0, 1, 0, 0, 0, 0, 0, 255)));
	assert_int_equal(be(0, 2), 10);
	assert_false(packet(CDB(0x43, 0, 5, 0, 0, 0, 0, 0, 255)));
	assert_true(packet(CDB(0x46, 0, 0, 0, 0, 0, 0, 1, 0)));
	assert_int_equal(be(0, 4), test_moved(&t, 0, 0) - 4);
	assert_int_equal(be(6, 2), 8); /* small enough for a CD */
	assert_true(packet(CDB(0x46, 2, 0, 0x10, 0, 0, 0, 1, 0)));
	assert_int_equal(test_moved(&t, 0, 0), 20);
	assert_int_equal(be(12, 4), 2048);
	assert_true(packet(CDB(0x51, 0, 0, 0, 0, 0, 0, 0, 255)));
	assert_int_equal(data_at(0)[2], 0x0e);
	assert_true(packet(CDB(0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255)));
	assert_int_equal(be(0, 2), 26);
	assert_int_equal(data_at(8)[0], 0x2a);
	assert_true(packet(CDB(0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255)));
	assert_int_equal(be(0, 2), 38);
	assert_false(packet(CDB(0x5a, 0, 0x0d, 0, 0, 0, 0, 0, 255)));
	assert_true(packet(CDB(0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8)));
	assert_true(packet(CDB(0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8)));
	assert_int_equal(data_at(0)[2], 0x80);
	assert_false(packet(CDB(0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8)));
	assert_false(packet(CDB(0x2a, 0, 0, 0, 0, 0, 0, 0, 1))); /* WRITE(10) */
	assert_int_equal(sense(), 0x052000);
	end();
}

/* --- reading --- */

static const uint8_t *read_10(uint32_t block, uint32_t count)
{
	static uint8_t cdb[12];

	memset(cdb, 0, sizeof(cdb));
	cdb[0] = 0x28;
	ahci_put_be(cdb + 2, block, 4);
	ahci_put_be(cdb + 7, count, 2);
	return cdb;
}

static bool is(uint64_t at, uint32_t block, uint64_t len)
{
	return memcmp(data_at(at), image + (size_t)block * AHCI_BLOCK, len) == 0;
}

static void test_reads(void **)
{
	struct test_prd prd[TEST_PRDS];
	uint32_t at = 0;

	begin(make_image(BLOCKS, 2));
	settle();
	/* All of it at once, by DMA and PIO: many turns of the buffer. */
	prd[0] = test_buffer(TEST_DATA, 2 * MIB);
	prd[1] = test_buffer(TEST_DATA + 2 * MIB, BYTES - 2 * MIB);
	for (unsigned pio = 0; pio < 2; pio++) {
		memset(data_at(0), 0, BYTES);
		assert_true(packet_into(read_10(0, BLOCKS), !pio, prd, 2));
		assert_true(is(0, 0, BYTES));
		assert_int_equal(test_moved(&t, 0, 0), BYTES);
		assert_int_equal(test_px(&t, 0, AHCI_PX_IS), AHCI_IS_D2H | (pio ? AHCI_IS_PIO : 0));
	}
	/* Into pieces of all sizes, crooked. */
	for (unsigned i = 0; i < TEST_PRDS; i++) {
		uint32_t len = 2 + i * i * 2;
		prd[i] = test_buffer(TEST_DATA + 2ull * at + 2, len);
		at += len;
	}
	memset(data_at(0), 0, 4 * MIB);
	assert_true(packet_into(read_10(7, 50), true, prd, TEST_PRDS));
	assert_int_equal(test_moved(&t, 0, 0), 50 * AHCI_BLOCK);
	for (unsigned i = 0, from = 0; from < 50 * AHCI_BLOCK; i++) {
		uint32_t len = MIN(2 + i * i * 2, 50 * AHCI_BLOCK - from);
		assert_memory_equal(data_at(2ull * from + 2), image + 7 * AHCI_BLOCK + from, len);
		from += len;
	}
	/* Less room than data. */
	prd[0] = test_buffer(TEST_DATA, 3000);
	memset(data_at(0), 0xee, 8192);
	assert_true(packet_into(read_10(3, 4), true, prd, 1));
	assert_int_equal(test_moved(&t, 0, 0), 3000);
	assert_true(is(0, 3, 3000) && data_at(0)[3000] == 0xee);
	end();
}

static void test_ranges(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, 64 * KIB);

	begin(make_image(BLOCKS, 3));
	settle();
	assert_true(packet_into(read_10(BLOCKS - 1, 1), true, &prd, 1));
	assert_true(is(0, BLOCKS - 1, AHCI_BLOCK));
	assert_true(packet_into(read_10(5, 0), true, &prd, 1));
	assert_int_equal(test_moved(&t, 0, 0), 0);
	assert_false(packet_into(read_10(BLOCKS - 1, 2), true, &prd, 1));
	assert_int_equal(sense(), 0x052100);
	assert_false(packet_into(read_10(0xffffffff, 2), true, &prd, 1));
	assert_false(packet(CDB(0xa8, 0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff)));
	assert_true(packet_into(CDB(0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 2), true, &prd, 1));
	assert_true(is(0, 9, 2 * AHCI_BLOCK));
	assert_true(packet_into(CDB(0xbe, 0, 0, 0, 0, 11, 0, 0, 2, 0x10), false, &prd, 1));
	assert_true(is(0, 11, 2 * AHCI_BLOCK));
	assert_false(packet(CDB(0xbe, 0, 0, 0, 0, 11, 0, 0, 2, 0xf8)));
	assert_true(packet(CDB(0x2b, 0, 0, 0, 0, 11)));
	assert_false(packet(CDB(0x2b, 0, 0xff, 0, 0, 11)));
	/* What is more than a block's part is not there. */
	struct drive_stats stats;
	drive_stats(t.medium, &stats);
	assert_int_equal(stats.reads, 3);
	assert_int_equal(stats.read_bytes, 5 * AHCI_BLOCK);
	end();
}

/* --- what cannot be served --- */

static void expect_halt(unsigned slot, uint32_t why)
{
	issue(0, slot);
	wait_for(0, slot);
	assert_int_equal(test_px(&t, 0, AHCI_PX_IS) & 0x7c000000, why);
	assert_int_equal(test_px(&t, 0, AHCI_PX_CI), 1u << slot);
	/* It does nothing more until it is started again. */
	test_set_px(&t, 0, AHCI_PX_CI, 1u << 31);
	usleep(20000);
	assert_int_equal(test_px(&t, 0, AHCI_PX_CI), 1u << 31 | 1u << slot);
	test_start_port(&t, 0);
	assert_int_equal(test_px(&t, 0, AHCI_PX_CI), 0);
}

static void test_not_memory(void **)
{
	struct test_prd prd[2] = {test_buffer(TEST_DATA, 2048), test_buffer(TEST_MEMORY - 100, 4096)};
	uint32_t *header = NULL;

	begin(make_image(BLOCKS, 4));
	settle();
	test_prepare(&t, 0, 0, 0xa0, read_10(0, 2), true, prd, 2);
	expect_halt(0, AHCI_IS_MEMORY);
	test_prepare(&t, 0, 3, 0xa1, NULL, false, prd + 1, 1);
	expect_halt(3, AHCI_IS_MEMORY);
	prd[1].address = ~0ull - 100;
	test_prepare(&t, 0, 3, 0xa1, NULL, false, prd + 1, 1);
	expect_halt(3, AHCI_IS_MEMORY);
	header = test_ram(&t, test_list(0));
	header[2] = (uint32_t)(TEST_MEMORY + MIB);
	expect_halt(0, AHCI_IS_MEMORY);
	header[2] = (uint32_t)(TEST_MEMORY - 0x80); /* the list of buffers begins where memory ends */
	memset(test_ram(&t, TEST_MEMORY - 0x80), 0, 0x80);
	expect_halt(0, AHCI_IS_INTERFACE);
	test_set_px(&t, 0, AHCI_PX_CLBU, 0x1000);
	issue(0, 0);
	wait_for(0, 0);
	assert_true(test_px(&t, 0, AHCI_PX_IS) & AHCI_IS_MEMORY);
	test_start_port(&t, 0);
	assert_true(packet(CDB(0x00)));
	end();
}

/* A medium that is cut short while it is in use: told, or held until it is whole again. */
static void test_medium_errors(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, 4 * AHCI_BLOCK);

	for (unsigned pause = 0; pause < 2; pause++) {
		int fd = make_image(BLOCKS, 5);
		cleanup_fd int other = dup(fd);
		begin(-1);
		t.drive_config = drive_of(fd);
		t.drive_config.on_error = pause ? DRIVE_PAUSE : DRIVE_REPORT;
		test_no_error(drive_new(&t.medium, &t.drive_config));
		test_no_error(drive_activate(t.medium));
		test_no_error(ahci_change(t.ahci, 0, t.medium, false));
		assert_false(packet(CDB(0x00)));
		assert_int_equal(sense(), 0x062800);
		assert_int_equal(ftruncate(other, 10 * AHCI_BLOCK), 0);
		if (!pause) {
			assert_false(packet_into(read_10(20, 4), true, &prd, 1));
			assert_int_equal(sense(), 0x031100);
		} else {
			test_prepare(&t, 0, 0, 0xa0, read_10(20, 4), true, &prd, 1);
			issue(0, 0);
			for (unsigned ms = 0; !atomic_load(&held); ms++) {
				assert_true(ms < TEST_PATIENCE_MS);
				usleep(1000);
			}
			unit_of().ops->pause(t.ahci);
			assert_int_equal(test_px(&t, 0, AHCI_PX_CI), 1);
			assert_int_equal(pwrite(other, image, BYTES, 0), BYTES);
			unit_of().ops->resume(t.ahci);
			wait_for(0, 0);
			assert_int_equal(status(0), 0x50);
			assert_true(is(0, 20, 4 * AHCI_BLOCK));
		}
		end();
	}
}

static void test_bus_master(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, 512);

	begin(make_image(BLOCKS, 1));
	test_config_write(&t.machine, 0x04, 2, 2);
	test_prepare(&t, 0, 0, 0xa1, NULL, false, &prd, 1);
	issue(0, 0);
	usleep(20000);
	assert_int_equal(test_px(&t, 0, AHCI_PX_CI), 1);
	test_config_write(&t.machine, 0x04, 6, 2);
	wait_for(0, 0);
	end();
}

/* --- resets --- */

static void control_frame(uint8_t control)
{
	struct test_prd none = {0};

	test_prepare(&t, 0, 0, 0, NULL, false, &none, 0);
	uint8_t *table = test_ram(&t, test_table(0, 0));
	table[1] = 0;
	table[15] = control;
	issue(0, 0);
	wait_for(0, 0);
}

static void expect_greeting(void)
{
	assert_int_equal(test_px(&t, 0, AHCI_PX_TFD), 0x0100);
	assert_int_equal(test_px(&t, 0, AHCI_PX_SIG), AHCI_SIGNATURE);
	settle();
}

static void test_resets(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, BYTES);

	begin(make_image(BLOCKS, 6));
	settle();
	assert_true(packet(CDB(0x1e, 0, 0, 0, 1)));
	for (unsigned round = 0; round < 20; round++) {
		/* Amid a read: none of it arrives any more once the register is written. */
		test_prepare(&t, 0, 1, 0xa0, read_10(0, BLOCKS), true, &prd, 1);
		issue(0, 1);
		usleep(round * 50);
		if (round % 2) {
			test_set_px(&t, 0, AHCI_PX_CMD, AHCI_CMD_RECEIVE);
			test_set_px(&t, 0, AHCI_PX_SCTL, 0x301);
			assert_int_equal(test_px(&t, 0, AHCI_PX_SSTS), 0);
			assert_int_equal(test_px(&t, 0, AHCI_PX_TFD) & 0x80, 0);
		} else {
			test_set_hba(&t, AHCI_GHC, AHCI_GHC_RESET | AHCI_GHC_INTERRUPTS);
			assert_int_equal(test_hba(&t, AHCI_GHC), AHCI_GHC_ENABLE);
		}
		memset(data_at(0), 0x11, BYTES);
		usleep(2000);
		for (size_t i = 0; i < BYTES; i += 1021)
			assert_int_equal(data_at(0)[i], 0x11);
		test_set_px(&t, 0, AHCI_PX_SCTL, 0x300);
		test_start_port(&t, 0);
		expect_greeting();
		struct ahci_tray tray;
		ahci_tray(t.ahci, 0, &tray);
		assert_false(tray.locked);
	}
	control_frame(4);
	control_frame(0);
	expect_greeting();
	test_prepare(&t, 0, 0, 0x08, NULL, false, &prd, 0); /* DEVICE RESET */
	issue(0, 0);
	wait_for(0, 0);
	expect_greeting();
	unit_of().ops->pause(t.ahci);
	unit_of().ops->reset(t.ahci);
	unit_of().ops->resume(t.ahci);
	test_ahci_find(&t);
	assert_int_equal(test_px(&t, 0, AHCI_PX_CLB), 0);
	assert_int_equal(test_px(&t, 0, AHCI_PX_TFD), 0x7f);
	test_start_port(&t, 0);
	expect_greeting();
	end();
}

/* --- trays --- */

static unsigned event(void)
{
	assert_true(packet(CDB(0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8)));
	return data_at(0)[4];
}

static void test_trays(void **)
{
	struct ahci_tray tray;

	begin(make_image(BLOCKS, 7));
	settle();
	struct drive *first = t.medium;
	/* Taken out. */
	test_no_error(ahci_change(t.ahci, 0, NULL, false));
	assert_int_equal(event(), 3);
	assert_int_equal(event(), 0);
	assert_int_equal(data_at(0)[5], 1); /* open, and nothing in it */
	assert_false(packet(CDB(0x00)));
	assert_int_equal(sense(), 0x023a02);
	assert_false(packet(read_10(0, 1)));
	assert_true(packet(CDB(0x46, 0, 0, 0, 0, 0, 0, 1, 0)));
	assert_int_equal(be(6, 2), 0);
	/* Put in, and locked. */
	test_no_error(ahci_change(t.ahci, 0, first, false));
	assert_int_equal(event(), 2);
	assert_int_equal(data_at(0)[5], 2);
	assert_false(packet(CDB(0x00)));
	assert_int_equal(sense(), 0x062800);
	assert_true(packet(CDB(0x00)));
	assert_true(packet(CDB(0x1e, 0, 0, 0, 1)));
	ahci_tray(t.ahci, 0, &tray);
	assert_true(tray.medium && tray.locked && !tray.open);
	assert_false(packet(CDB(0x1b, 0, 0, 0, 2)));
	assert_int_equal(sense(), 0x055302);
	struct error *err = ahci_change(t.ahci, 0, NULL, false);
	assert_int_equal(error_errno(err), EBUSY);
	error_free(err);
	assert_int_equal(event(), 1); /* it was asked */
	assert_true(packet(CDB(0x00)));
	/* The guest opens and closes it. */
	assert_true(packet(CDB(0x1e)));
	assert_true(packet(CDB(0x1b, 0, 0, 0, 2)));
	assert_int_equal(event(), 3);
	assert_false(packet(CDB(0x00)));
	assert_int_equal(sense(), 0x023a02);
	assert_true(packet(CDB(0x1b, 0, 0, 0, 3)));
	assert_int_equal(event(), 2);
	assert_false(packet(CDB(0x00)));
	assert_int_equal(atomic_load(&changed), 4);
	/* By force. */
	assert_true(packet(CDB(0x1e, 0, 0, 0, 1)));
	test_no_error(ahci_change(t.ahci, 0, NULL, true));
	assert_false(packet(CDB(0x00)));
	end();
	drive_free(NULL);
}

/* The new medium's bytes are read from then on, also when one was being read. */
static void test_change_amid_reading(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, BYTES);

	begin(make_image(BLOCKS, 8));
	settle();
	for (unsigned round = 0; round < 20; round++) {
		struct drive *old = t.medium;
		struct drive_config config = drive_of(make_image(BLOCKS, 100 + round));
		test_no_error(drive_new(&t.medium, &config));
		test_no_error(drive_activate(t.medium));
		test_prepare(&t, 0, 0, 0xa0, read_10(0, BLOCKS), true, &prd, 1);
		issue(0, 0);
		usleep(round * 50);
		test_no_error(ahci_change(t.ahci, 0, t.medium, false));
		drive_free(old);
		wait_for(0, 0);
		if (status(0) & 1) {
			test_start_port(&t, 0);
			assert_int_equal(sense(), 0x062800);
		} else {
			assert_false(packet(CDB(0x00)));
		}
		assert_true(packet_into(read_10(0, BLOCKS), true, &prd, 1));
		assert_true(is(0, 0, BYTES));
	}
	end();
}

/* --- interrupts --- */

static uint64_t messages(void)
{
	uint64_t count = 0;

	if (read(t.ahci->pci.msi.msi.event_fd, &count, sizeof(count)) < 0)
		return 0;
	return count;
}

static void test_the_interrupt(void **)
{
	begin(make_image(BLOCKS, 9));
	settle();
	test_set_px(&t, 0, AHCI_PX_IS, ~0u);
	test_set_hba(&t, AHCI_IS, ~0u);
	assert_false(t.ahci->pci.intx);
	assert_true(packet(CDB(0x00)));
	assert_int_equal(test_hba(&t, AHCI_IS), 1);
	assert_false(t.ahci->pci.intx); /* not until they are on */
	test_set_hba(&t, AHCI_GHC, AHCI_GHC_INTERRUPTS);
	assert_true(t.ahci->pci.intx);
	test_set_hba(&t, AHCI_IS, ~0u); /* the port still has it */
	assert_true(t.ahci->pci.intx);
	test_set_px(&t, 0, AHCI_PX_IS, ~0u);
	assert_true(t.ahci->pci.intx); /* and so has the controller */
	test_set_hba(&t, AHCI_IS, ~0u);
	assert_false(t.ahci->pci.intx);
	assert_int_equal(messages(), 0);

	unsigned msi = test_capability(&t.machine, 0x05, 0);
	assert_true(msi > 0);
	test_config_write(&t.machine, msi + 4, 0xfee00000, 4);
	test_config_write(&t.machine, msi + 12, 0x41, 2);
	test_config_write(&t.machine, msi + 2, 1, 2);
	assert_int_equal(t.ahci->pci.msi.msi.data, 0x41);
	messages();
	assert_true(packet(CDB(0x00)));
	assert_int_equal(messages(), 1);
	test_set_hba(&t, AHCI_IS, ~0u); /* not settled: told again */
	assert_int_equal(messages(), 1);
	test_set_px(&t, 0, AHCI_PX_IE, 0);
	test_set_hba(&t, AHCI_IS, ~0u);
	messages();
	assert_true(packet(CDB(0x00)));
	assert_int_equal(messages(), 0);
	end();
}

/* --- moving --- */

static struct error *save(int fd)
{
	struct unit unit = unit_of();

	return test_save(&unit, fd);
}

static struct error *load(int fd)
{
	struct unit unit = unit_of();

	return test_load(&unit, fd);
}

/* Into a new controller of a new machine on the same memory, with a medium of @blocks (0: none). */
static struct error *move(uint32_t blocks)
{
	cleanup_fd int fd = memfd_create("saved", MFD_CLOEXEC);
	struct memory memory = t.machine.memory;

	unit_of().ops->pause(t.ahci);
	TRY(save(fd));
	test_ahci_free(&t);
	test_machine_destroy(&t.machine, true);
	test_machine_init(&t.machine, &memory);
	t.drive_config = drive_of(blocks ? make_image(blocks, 10) : -1);
	test_no_error(test_ahci_make(&t));
	TRY(load(fd));
	TRY(t.medium ? drive_activate(t.medium) : NULL);
	unit_of().ops->resume(t.ahci);
	return NULL;
}

static void test_moves(void **)
{
	struct test_prd prd = test_buffer(TEST_DATA, BYTES);

	begin(make_image(BLOCKS, 10));
	settle();
	assert_true(packet(CDB(0x1e, 0, 0, 0, 1)));
	for (unsigned round = 0; round < 20; round++) {
		memset(data_at(0), 0, BYTES);
		test_prepare(&t, 0, 1, 0xa0, read_10(0, BLOCKS), true, &prd, 1);
		test_prepare(&t, 0, 9, 0xa0, CDB(0x12, 0, 0, 0, 36), true,
			     &(struct test_prd){TEST_DATA + 8 * MIB, 0, 4095}, 1);
		test_set_px(&t, 0, AHCI_PX_IS, ~0u);
		test_set_px(&t, 0, AHCI_PX_CI, 1u << 1 | 1u << 9);
		usleep(round * 50);
		test_no_error(move(BLOCKS));
		wait_for(0, 1);
		wait_for(0, 9);
		assert_true(is(0, 0, BYTES));
		assert_memory_equal(data_at(8 * MIB + 8), "Glint", 5);
		assert_int_equal(test_moved(&t, 0, 1), BYTES);
	}
	struct ahci_tray tray;
	ahci_tray(t.ahci, 0, &tray);
	assert_true(tray.locked);
	/* What is owed moves along. */
	assert_false(packet_into(read_10(BLOCKS, 1), true, &prd, 1));
	test_no_error(move(BLOCKS));
	assert_int_equal(sense(), 0x052100);
	end();
}

static void expect_refused(uint32_t blocks, const char *words)
{
	struct error *err = move(blocks);

	assert_non_null(err);
	assert_non_null(strstr(error_text(err), words));
	error_free(err);
	end();
}

static void test_lies(void **)
{
	begin(make_image(BLOCKS, 10));
	expect_refused(0, "this one none");
	begin(make_image(BLOCKS, 10));
	expect_refused(BLOCKS - 1, "not the disk the guest knows");
	begin(-1);
	expect_refused(BLOCKS, "no medium in serial-one");
	begin(make_image(BLOCKS, 10));
	t.ahci->port[1].current = 77;
	expect_refused(BLOCKS, "cannot be");
	begin(make_image(BLOCKS, 10));
	t.ahci->port[0].event = 4;
	expect_refused(BLOCKS, "cannot be");
}

static void test_no_medium(void **)
{
	struct drive *drive = NULL;
	struct drive_config config;

	begin(-1);
	config = drive_of(make_image(1, 1));
	assert_int_equal(ftruncate(config.fd, 1536), 0);
	test_no_error(drive_new(&drive, &config));
	struct error *err = ahci_change(t.ahci, 1, drive, false);
	assert_non_null(err);
	error_free(err);
	drive_free(drive);
	settle();
	assert_false(packet(CDB(0x00)));
	assert_int_equal(sense(), 0x023a01);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_signature),
		cmocka_unit_test(test_identify),
		cmocka_unit_test(test_answers),
		cmocka_unit_test(test_reads),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_not_memory),
		cmocka_unit_test(test_medium_errors),
		cmocka_unit_test(test_bus_master),
		cmocka_unit_test(test_resets),
		cmocka_unit_test(test_trays),
		cmocka_unit_test(test_change_amid_reading),
		cmocka_unit_test(test_the_interrupt),
		cmocka_unit_test(test_moves),
		cmocka_unit_test(test_lies),
		cmocka_unit_test(test_no_medium),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
