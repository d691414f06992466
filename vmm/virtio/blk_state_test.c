/*
 * Tests of virtio-blk over time: many queues under load with every byte checked, saving and restoring in the middle of
 * it, a full disk under both policies, and who owns a disk.
 */
#include "vmm/virtio/blk_internal.h"
#include "vmm/virtio/blk_load.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void test_queues(void **state)
{
	struct test_disk config = default_config(file_disk(0));
	struct load load[LOAD_QUEUES];

	(void)state;
	config.queues = LOAD_QUEUES;
	start_disk(config, ALL_FEATURES);
	load_start(load);
	usleep(500000);
	load_end(load);
	end_disk();
}

static void test_pause_under_load(void **state)
{
	struct test_disk config = default_config(memory_disk());
	struct load load[LOAD_QUEUES];
	uint16_t before[LOAD_QUEUES];

	(void)state;
	config.queues = LOAD_QUEUES;
	start_disk(config, ALL_FEATURES);
	load_start(load);
	for (unsigned n = 0; n < 50; n++) {
		usleep(n * 100);
		stop_world();
		/* Paused: memory stands still. */
		for (unsigned i = 0; i < LOAD_QUEUES; i++)
			before[i] = f.ring[i].used->idx;
		usleep(500);
		for (unsigned i = 0; i < LOAD_QUEUES; i++)
			assert_int_equal(f.ring[i].used->idx, before[i]);
		start_world();
	}
	load_end(load);
	end_disk();
}

static void test_move_under_load(void **state)
{
	struct test_disk config = default_config(file_disk(0));
	struct load load[LOAD_QUEUES];

	(void)state;
	config.queues = LOAD_QUEUES;
	start_disk(config, ALL_FEATURES);
	load_start(load);
	for (unsigned n = 0; n < 10; n++) {
		int fd = memfd_create("saved", MFD_CLOEXEC);
		usleep(2000 + n * 700);
		/* Every other time guests run on while the disk stands: what they offer then waits in the rings. */
		if (n % 2) {
			pause_disk();
			usleep(1000);
		}
		stop_world();
		test_no_error(move(fd));
		start_world();
		close(fd);
	}
	load_end(load);
	end_disk();
}

/* The stream belongs to this disk: another size is refused before anything is touched, and so is a spoiled stream. */
static void test_other_disk(void **state)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);

	(void)state;
	start_disk(default_config(memory_disk()), ALL_FEATURES);
	pause_disk();
	assert_int_equal(ftruncate(f.config.drive.fd, DISK_BYTES * 2), 0);
	struct error *err = move(fd);
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "not the disk the guest knows"));
	error_free(err);
	end_disk();
	close(fd);
}

/* --- a full disk --- */

static void test_full_report(void **state)
{
	int dir, fd = full_disk(&dir, MIB, 65536);
	unsigned ok = 0, failed = 0;
	uint16_t head;
	uint32_t used;

	(void)state;
	start_disk(default_config(fd), ALL_FEATURES);
	for (unsigned i = 0; i < 32; i++)
		test_blk_add(&f.ring[0], i, VIRTIO_BLK_T_OUT, i * 64ull, TEST_DATA, 32768, true);
	test_ring_send(&f.ring[0]);
	for (unsigned i = 0; i < 32; i++) {
		test_ring_wait(&f.ring[0], &head, &used);
		assert_int_equal(used, 1);
	}
	for (unsigned i = 0; i < 32; i++) {
		uint8_t status = *test_blk_status(&f.ring[0], i);
		ok += status == VIRTIO_BLK_S_OK;
		failed += status == VIRTIO_BLK_S_IOERR;
	}
	/* 64 KiB fit, less what the file system itself took. */
	assert_true(ok <= 2);
	assert_int_equal(ok + failed, 32);
	assert_int_equal(f.paused, 0);
	/* Reads, and what is allocated already, go on. */
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 0, TEST_DATA, 4096, NULL), VIRTIO_BLK_S_OK);
	end_disk();
	close(dir);
}

/* Fills the disk under the pausing policy, with the machine's part played: it pauses when told to. */
static void fill(int *dir)
{
	struct test_disk config = default_config(full_disk(dir, MIB, 65536));

	config.drive.on_full = DRIVE_PAUSE;
	start_disk(config, ALL_FEATURES);
	for (unsigned i = 0; i < 16; i++) {
		pattern(data_at(i * 32768ull), 32768, i);
		test_blk_add(&f.ring[0], i, VIRTIO_BLK_T_OUT, i * 64ull, TEST_DATA + i * 32768ull, 32768, true);
	}
	test_ring_send(&f.ring[0]);
	assert_true(test_until(atomic_load(&f.paused) > 0));
	assert_int_equal(atomic_load(&f.paused), 1);
	assert_int_equal(atomic_load(&f.paused_errno), ENOSPC);
	pause_disk();
	assert_true(f.ring[0].used->idx <= 2);
	/* None of the others was answered. */
	unsigned open = 0;
	for (unsigned i = 0; i < 16; i++)
		open += *test_blk_status(&f.ring[0], i) == 0xee;
	assert_int_equal(open, 16 - f.ring[0].used->idx);
}

static void expect_all_written(void)
{
	static uint8_t disk[32768];
	uint16_t head;
	uint32_t used;

	for (unsigned i = 0; i < 16; i++) {
		test_ring_wait(&f.ring[0], &head, &used);
		assert_int_equal(used, 1);
	}
	for (unsigned i = 0; i < 16; i++) {
		assert_int_equal(*test_blk_status(&f.ring[0], i), VIRTIO_BLK_S_OK);
		assert_int_equal(pread(f.config.drive.fd, disk, sizeof(disk), i * 32768ull), sizeof(disk));
		assert_memory_equal(disk, data_at(i * 32768ull), sizeof(disk));
	}
	assert_int_equal(f.ring[0].used->idx, 16);
}

static void test_full_pause(void **state)
{
	int dir;

	(void)state;
	fill(&dir);
	/* Resumed while it is still full: told again, still nothing lost. */
	resume_disk();
	assert_true(test_until(atomic_load(&f.paused) == 2));
	pause_disk();
	assert_int_equal(unlinkat(dir, "ballast", 0), 0);
	resume_disk();
	expect_all_written();
	end_disk();
	close(dir);
}

/* Held requests are part of the state: another process tries them again. */
static void test_full_move(void **state)
{
	int dir, fd = memfd_create("saved", MFD_CLOEXEC);

	(void)state;
	fill(&dir);
	assert_int_equal(unlinkat(dir, "ballast", 0), 0);
	test_no_error(move(fd));
	resume_disk();
	expect_all_written();
	end_disk();
	close(dir);
	close(fd);
}

/* A guest that resets the device gives its held requests up. */
static void test_full_reset(void **state)
{
	int dir;

	(void)state;
	fill(&dir);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	assert_int_equal(unlinkat(dir, "ballast", 0), 0);
	resume_disk();
	drive(ALL_FEATURES, 64);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 0, TEST_DATA, 512, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(f.ring[0].used->idx, 1);
	end_disk();
	close(dir);
}

/*
 * A hostile guest offers the same failing request again and again, while the machine resumes and each queue's start
 * lets the others go on: what is held stays within its list.
 */
static void test_hostile_hold(void **state)
{
	int dir;
	struct test_disk config = default_config(full_disk(&dir, MIB, 65536));

	(void)state;
	config.drive.on_full = DRIVE_PAUSE;
	config.queues = 4;
	start_disk(config, ALL_FEATURES);
	struct test_ring *r = &f.ring[0];
	assert_true(pwrite(config.drive.fd, data_at(0), MIB, 4 * MIB) < (ssize_t)MIB); /* the last free block is gone */
	test_blk_add(r, 0, VIRTIO_BLK_T_OUT, 0, TEST_DATA, 4096, true);
	for (unsigned i = 1; i < r->size; i++)
		r->avail->ring[i] = r->avail->ring[0];
	for (unsigned round = 0; round < 20; round++) {
		r->avail_idx = (uint16_t)(r->avail_idx + r->size - (round == 0));
		test_ring_publish(r);
		test_ring_kick(r);
		usleep(2000);
		pause_disk();
		for (unsigned i = 0; i < 4; i++)
			assert_true(f.blk->queue[i].held_count <= BLK_QUEUE_SIZE);
		/* Not further ahead than a ring: else it is broken, which is another test. */
		r->avail_idx = blk_device(f.blk)->queue[0].ring.next_avail;
		resume_disk();
		usleep(2000);
	}
	pause_disk();
	assert_true(f.blk->queue[0].held_count > 0);
	end_disk();
	close(dir);
}

/* Other errors have their own policy. A file that was cut off: reads beyond its end fail. */
static void test_error_policies(void **state)
{
	struct test_disk config = default_config(memory_disk());

	(void)state;
	config.drive.on_full = DRIVE_PAUSE;
	start_disk(config, ALL_FEATURES);
	assert_int_equal(ftruncate(config.drive.fd, MIB), 0);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 4096, TEST_DATA, 512, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(f.paused, 0);
	end_disk();

	config = default_config(memory_disk());
	config.drive.on_error = DRIVE_PAUSE;
	start_disk(config, ALL_FEATURES);
	assert_int_equal(ftruncate(config.drive.fd, MIB), 0);
	test_blk_add(&f.ring[0], 0, VIRTIO_BLK_T_IN, 4096, TEST_DATA, 512, true);
	test_ring_send(&f.ring[0]);
	assert_true(test_until(atomic_load(&f.paused) == 1));
	assert_int_equal(atomic_load(&f.paused_errno), EIO);
	pause_disk();
	assert_int_equal(ftruncate(config.drive.fd, DISK_BYTES), 0);
	resume_disk();
	uint16_t head;
	uint32_t used;
	test_ring_wait(&f.ring[0], &head, &used);
	assert_int_equal(*test_blk_status(&f.ring[0], 0), VIRTIO_BLK_S_OK);
	end_disk();
}

/* A transfer that stops short goes on: half of it lies before the end of a file that grows meanwhile, half behind. */
static void test_short_read(void **state)
{
	struct test_disk config = default_config(memory_disk());
	uint32_t used;

	(void)state;
	start_disk(config, ALL_FEATURES);
	pattern(data_at(0), 65536, 5);
	assert_int_equal(pwrite(config.drive.fd, data_at(0), 65536, 0), 65536);
	assert_int_equal(ftruncate(config.drive.fd, 40960), 0);
	memset(data_at(MIB), 0, 65536);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 0, TEST_DATA + MIB, 65536, &used), VIRTIO_BLK_S_IOERR);
	/* What was read before the error counts, and is there. */
	assert_int_equal(used, 40960);
	assert_memory_equal(data_at(0), data_at(MIB), 40960);
	end_disk();
}

/* --- owners --- */

static struct error *try_disk(struct test_machine *m, int fd, bool readonly, struct drive **drive)
{
	struct test_disk config = default_config(fd);

	config.drive.readonly = readonly;
	config.drive.threads = m->threads;
	config.drive.thread_count = TEST_THREADS;
	test_no_error(drive_new(drive, &config.drive));
	return drive_activate(*drive);
}

static void expect_in_use(struct error *err)
{
	assert_non_null(err);
	assert_int_equal(error_errno(err), EBUSY);
	assert_non_null(strstr(error_text(err), "another process uses it"));
	assert_non_null(error_hint_text(err));
	error_free(err);
}

static void test_owners(void **state)
{
	struct test_machine m;
	struct drive *a, *b, *c, *d;
	int fd = file_disk(0);

	(void)state;
	test_machine_init(&m, NULL);
	test_no_error(try_disk(&m, open_again(fd, O_RDWR), false, &a));
	expect_in_use(try_disk(&m, open_again(fd, O_RDWR), false, &b));
	expect_in_use(try_disk(&m, open_again(fd, O_RDONLY), true, &c));
	/* Open is not active: it is free as soon as its owner gives it up. */
	test_no_error(drive_deactivate(a));
	test_no_error(drive_activate(c));
	expect_in_use(drive_activate(b));
	test_no_error(try_disk(&m, open_again(fd, O_RDONLY), true, &d)); /* readers share */
	drive_free(c);
	drive_free(d);
	test_no_error(drive_activate(b));
	drive_free(b); /* without a word: closing frees it */
	test_no_error(drive_activate(a));
	drive_free(a);
	test_machine_destroy(&m, false);
	close(fd);
}

/* Requests of a disk that is not active wait. */
static void test_not_active(void **state)
{
	uint16_t head;
	uint32_t used;

	(void)state;
	start_disk(default_config(memory_disk()), ALL_FEATURES);
	pause_disk();
	test_no_error(drive_deactivate(f.drive));
	resume_disk();
	test_blk_add(&f.ring[0], 0, VIRTIO_BLK_T_OUT, 0, TEST_DATA, 512, true);
	test_ring_publish(&f.ring[0]);
	test_ring_kick(&f.ring[0]);
	usleep(10000);
	assert_int_equal(f.ring[0].used->idx, 0);
	pause_disk();
	test_no_error(drive_activate(f.drive));
	resume_disk();
	test_ring_wait(&f.ring[0], &head, &used);
	assert_int_equal(*test_blk_status(&f.ring[0], 0), VIRTIO_BLK_S_OK);
	end_disk();
}

/*
 * A VM is killed under full load, and its successor starts at once. The successor must get the disk although the
 * kernel takes a moment to clear up after the dead one's ring.
 */
static void test_killed_owner(void **state)
{
	int fd = file_disk(0), ready[2];

	(void)state;
	for (unsigned round = 0; round < 5; round++) {
		assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
		pid_t pid = fork();
		if (pid == 0) {
			struct test_disk config = default_config(open_again(fd, O_RDWR));
			struct load load[LOAD_QUEUES];
			config.queues = LOAD_QUEUES;
			start_disk(config, ALL_FEATURES);
			load_start(load);
			usleep(20000);
			if (write(ready[1], "", 1) != 1)
				_exit(1);
			for (;;)
				pause();
		}
		char byte;
		assert_int_equal(read(ready[0], &byte, 1), 1);
		struct test_machine m;
		struct drive *drive;
		test_machine_init(&m, NULL);
		expect_in_use(try_disk(&m, open_again(fd, O_RDWR), false, &drive));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		uint64_t start = test_now_ms();
		test_no_error(drive_activate(drive));
		print_message("the lock of a killed VM was free after %llu ms\n",
			      (unsigned long long)(test_now_ms() - start));
		drive_free(drive);
		test_machine_destroy(&m, false);
		close(ready[0]);
		close(ready[1]);
	}
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_queues),          cmocka_unit_test(test_pause_under_load),
		cmocka_unit_test(test_move_under_load), cmocka_unit_test(test_other_disk),
		cmocka_unit_test(test_full_report),     cmocka_unit_test(test_full_pause),
		cmocka_unit_test(test_full_move),       cmocka_unit_test(test_hostile_hold),
		cmocka_unit_test(test_full_reset),      cmocka_unit_test(test_error_policies),
		cmocka_unit_test(test_short_read),      cmocka_unit_test(test_owners),
		cmocka_unit_test(test_not_active),      cmocka_unit_test(test_killed_owner),
	};

	/* For the small file system that a test fills: not seen, and not left behind, outside. */
	if (unshare(CLONE_NEWNS) == 0)
		(void)mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
