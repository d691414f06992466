/*
 * Tests of virtio-blk over time: many queues under load with every byte checked, saving and restoring in the middle of
 * it, a full disk under both policies, and who owns a disk.
 */
#include "vmm/virtio/blk_internal.h"
#include "vmm/virtio/blk_test.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define ALL_FEATURES (~0ull)

/* --- saving --- */

static struct error *save(int fd, struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	return saved_finish(s);
}

static struct error *load(int fd, struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	lseek(fd, 0, SEEK_SET);
	TRY(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	TRY(saved_finish(s));
	return unit->ops->restored(unit->self);
}

static struct unit disk_unit(void)
{
	return virtio_pci_unit(f.vp, "disk:test");
}

static void pause_disk(void)
{
	struct unit unit = disk_unit();
	unit.ops->pause(unit.self);
}

static void resume_disk(void)
{
	struct unit unit = disk_unit();
	unit.ops->resume(unit.self);
}

/* Moves the paused disk into a new device of a new machine on the same memory and the same disk, opened anew. */
static struct error *move(int saved_fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", f.config.fd);
	int again = open(path, O_RDWR | O_CLOEXEC);
	assert_true(again >= 0);
	struct unit unit = disk_unit();
	TRY(save(saved_fd, &unit));
	TRY(blk_deactivate(f.blk));
	virtio_pci_free(f.vp);
	blk_free(f.blk);
	struct memory memory = f.machine.memory;
	test_machine_destroy(&f.machine, true);
	test_machine_init(&f.machine, &memory);
	f.config.fd = again;
	add_disk();
	f.driver.vp = f.vp;
	unit = disk_unit();
	TRY(load(saved_fd, &unit));
	return blk_activate(f.blk);
}

/* --- load on all queues --- */

#define LOAD_QUEUES 4
#define LOAD_SLOTS  24
#define LOAD_BYTES  8192u

/*
 * A guest's load on one queue: each slot writes its own part of the disk, over and over, with bytes that follow from
 * slot and round; every fourth time it reads it back instead and checks. A request that is lost leaves its slot waiting
 * for ever; one that is done twice or wrongly is seen in the bytes.
 */
struct load {
	pthread_t thread;
	struct test_ring *ring;
	unsigned slot_of[VIRTQUEUE_SIZE_MAX]; /* by head */
	uint32_t type[LOAD_SLOTS], round[LOAD_SLOTS];
	unsigned in_flight;
	uint64_t done;
	bool failed;
};

static atomic_bool load_stop, load_rest;
static pthread_rwlock_t world = PTHREAD_RWLOCK_INITIALIZER; /* held for reading by guests that run */

static uint64_t load_data(const struct load *l, unsigned slot)
{
	return TEST_DATA + ((uint64_t)l->ring->index * LOAD_SLOTS + slot) * LOAD_BYTES;
}

static uint64_t load_seed(const struct load *l, unsigned slot)
{
	return (uint64_t)l->ring->index << 48 | (uint64_t)slot << 32 | l->round[slot];
}

static void load_send(struct load *l, unsigned slot)
{
	uint8_t *data = test_at(l->ring->driver->machine, load_data(l, slot));
	uint64_t sector = ((uint64_t)l->ring->index * LOAD_SLOTS + slot) * LOAD_BYTES / 512;
	bool check = l->round[slot] % 4 == 3;

	l->type[slot] = check ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
	if (check)
		memset(data, 0, LOAD_BYTES);
	else
		pattern(data, LOAD_BYTES, load_seed(l, slot));
	uint16_t head = test_blk_add(l->ring, slot, l->type[slot], sector, load_data(l, slot), LOAD_BYTES, true);
	l->slot_of[head] = slot;
	l->in_flight++;
}

static void load_finished(struct load *l, uint16_t head, uint32_t used)
{
	unsigned slot = l->slot_of[head];
	uint8_t *data = test_at(l->ring->driver->machine, load_data(l, slot));
	uint8_t want[LOAD_BYTES];

	l->in_flight--;
	l->done++;
	if (*test_blk_status(l->ring, slot) != VIRTIO_BLK_S_OK)
		l->failed = true;
	if (l->type[slot] == VIRTIO_BLK_T_IN) {
		l->round[slot]--; /* what was written last */
		pattern(want, sizeof(want), load_seed(l, slot));
		l->round[slot]++;
		if (used != LOAD_BYTES + 1 || memcmp(want, data, sizeof(want)) != 0)
			l->failed = true;
	}
	l->round[slot]++;
}

/* As a guest's vCPU: works while the machine runs; stands still wherever it is while it does not. */
static void *load_thread(void *arg)
{
	struct load *l = arg;
	uint16_t head;
	uint32_t used;

	pthread_rwlock_rdlock(&world);
	for (unsigned slot = 0; slot < LOAD_SLOTS; slot++)
		load_send(l, slot);
	test_ring_send(l->ring);
	while (l->in_flight && !l->failed) {
		bool any = false;
		while (test_ring_take(l->ring, &head, &used)) {
			load_finished(l, head, used);
			if (!atomic_load(&load_stop))
				load_send(l, l->slot_of[head]);
			any = true;
		}
		if (any)
			test_ring_send(l->ring);
		pthread_rwlock_unlock(&world);
		if (!any || atomic_load(&load_rest))
			usleep(50);
		pthread_rwlock_rdlock(&world);
	}
	pthread_rwlock_unlock(&world);
	return NULL;
}

/* The machine stops: no guest runs, then its units pause. */
static void stop_world(void)
{
	atomic_store(&load_rest, true);
	pthread_rwlock_wrlock(&world);
	pause_disk();
}

static void start_world(void)
{
	resume_disk();
	pthread_rwlock_unlock(&world);
	atomic_store(&load_rest, false);
}

static void load_start(struct load *l)
{
	memset(l, 0, LOAD_QUEUES * sizeof(*l));
	atomic_store(&load_stop, false);
	for (unsigned i = 0; i < LOAD_QUEUES; i++) {
		l[i].ring = &f.ring[i];
		assert_int_equal(pthread_create(&l[i].thread, NULL, load_thread, &l[i]), 0);
	}
}

static void load_end(struct load *l)
{
	uint8_t disk[LOAD_BYTES], want[LOAD_BYTES];

	atomic_store(&load_stop, true);
	for (unsigned i = 0; i < LOAD_QUEUES; i++) {
		pthread_join(l[i].thread, NULL);
		assert_false(l[i].failed);
		assert_int_equal(l[i].in_flight, 0);
		assert_true(l[i].done > 2ull * LOAD_SLOTS);
		for (unsigned slot = 0; slot < LOAD_SLOTS; slot++) {
			/* The last round that wrote. */
			l[i].round[slot] -= l[i].round[slot] % 4 ? 1 : 2;
			pattern(want, sizeof(want), load_seed(&l[i], slot));
			off_t at = (off_t)(i * LOAD_SLOTS + slot) * LOAD_BYTES;
			assert_int_equal(pread(f.config.fd, disk, sizeof(disk), at), sizeof(disk));
			assert_memory_equal(want, disk, sizeof(disk));
		}
	}
}

static void test_queues(void **state)
{
	struct blk_config config = default_config(file_disk(0));
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
	struct blk_config config = default_config(memory_disk());
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
	struct blk_config config = default_config(file_disk(0));
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
	assert_int_equal(ftruncate(f.config.fd, DISK_BYTES * 2), 0);
	struct error *err = move(fd);
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "not the disk the guest knows"));
	error_free(err);
	end_disk();
	close(fd);
}

/* --- a full disk --- */

#define FULL_DIR "glint-blk-test-full"

/* A disk whose file system holds an eighth of it, and in it a ballast that holds all of that. */
static int full_disk(int *dir)
{
	assert_int_equal(mkdir(FULL_DIR, 0700), 0);
	int ret = mount("full", FULL_DIR, "tmpfs", 0, "size=1m");
	*dir = open(FULL_DIR, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	if (ret == 0)
		umount2(FULL_DIR, MNT_DETACH);
	rmdir(FULL_DIR);
	if (ret != 0) {
		close(*dir);
		print_message("no file system to fill: mount: %s\n", strerror(errno));
		skip();
	}
	if (*dir < 0)
		abort();
	int disk = openat(*dir, "disk", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int ballast = openat(*dir, "ballast", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (disk < 0 || ballast < 0)
		fail_msg("openat: %s", strerror(errno));
	assert_int_equal(ftruncate(disk, DISK_BYTES), 0);
	assert_int_equal(fallocate(ballast, 0, 0, MIB - 65536), 0);
	close(ballast);
	return disk;
}

static void test_full_report(void **state)
{
	int dir, fd = full_disk(&dir);
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
	struct blk_config config = default_config(full_disk(dir));

	config.on_full = BLK_PAUSE;
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
		assert_int_equal(pread(f.config.fd, disk, sizeof(disk), i * 32768ull), sizeof(disk));
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
	struct blk_config config = default_config(full_disk(&dir));

	(void)state;
	config.on_full = BLK_PAUSE;
	config.queues = 4;
	start_disk(config, ALL_FEATURES);
	struct test_ring *r = &f.ring[0];
	assert_true(pwrite(config.fd, data_at(0), MIB, 4 * MIB) < (ssize_t)MIB); /* the last free block is gone */
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
	struct blk_config config = default_config(memory_disk());

	(void)state;
	config.on_full = BLK_PAUSE;
	start_disk(config, ALL_FEATURES);
	assert_int_equal(ftruncate(config.fd, MIB), 0);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 4096, TEST_DATA, 512, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(f.paused, 0);
	end_disk();

	config = default_config(memory_disk());
	config.on_error = BLK_PAUSE;
	start_disk(config, ALL_FEATURES);
	assert_int_equal(ftruncate(config.fd, MIB), 0);
	test_blk_add(&f.ring[0], 0, VIRTIO_BLK_T_IN, 4096, TEST_DATA, 512, true);
	test_ring_send(&f.ring[0]);
	assert_true(test_until(atomic_load(&f.paused) == 1));
	assert_int_equal(atomic_load(&f.paused_errno), EIO);
	pause_disk();
	assert_int_equal(ftruncate(config.fd, DISK_BYTES), 0);
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
	struct blk_config config = default_config(memory_disk());
	uint32_t used;

	(void)state;
	start_disk(config, ALL_FEATURES);
	pattern(data_at(0), 65536, 5);
	assert_int_equal(pwrite(config.fd, data_at(0), 65536, 0), 65536);
	assert_int_equal(ftruncate(config.fd, 40960), 0);
	memset(data_at(MIB), 0, 65536);
	assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 0, TEST_DATA + MIB, 65536, &used), VIRTIO_BLK_S_IOERR);
	/* What was read before the error counts, and is there. */
	assert_int_equal(used, 40960);
	assert_memory_equal(data_at(0), data_at(MIB), 40960);
	end_disk();
}

/* --- owners --- */

static struct error *try_disk(struct test_machine *m, int fd, bool readonly, struct blk **blk)
{
	struct blk_config config = default_config(fd);

	config.readonly = readonly;
	config.threads = m->threads;
	config.thread_count = TEST_THREADS;
	test_no_error(blk_new(blk, &m->memory, &config));
	return blk_activate(*blk);
}

static int open_again(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, flags | O_CLOEXEC);
	assert_true(again >= 0);
	return again;
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
	struct blk *a, *b, *c, *d;
	int fd = file_disk(0);

	(void)state;
	test_machine_init(&m, NULL);
	test_no_error(try_disk(&m, open_again(fd, O_RDWR), false, &a));
	expect_in_use(try_disk(&m, open_again(fd, O_RDWR), false, &b));
	expect_in_use(try_disk(&m, open_again(fd, O_RDONLY), true, &c));
	/* Open is not active: it is free as soon as its owner gives it up. */
	test_no_error(blk_deactivate(a));
	test_no_error(blk_activate(c));
	expect_in_use(blk_activate(b));
	test_no_error(try_disk(&m, open_again(fd, O_RDONLY), true, &d)); /* readers share */
	blk_free(c);
	blk_free(d);
	test_no_error(blk_activate(b));
	blk_free(b); /* without a word: closing frees it */
	test_no_error(blk_activate(a));
	blk_free(a);
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
	test_no_error(blk_deactivate(f.blk));
	resume_disk();
	test_blk_add(&f.ring[0], 0, VIRTIO_BLK_T_OUT, 0, TEST_DATA, 512, true);
	test_ring_publish(&f.ring[0]);
	test_ring_kick(&f.ring[0]);
	usleep(10000);
	assert_int_equal(f.ring[0].used->idx, 0);
	pause_disk();
	test_no_error(blk_activate(f.blk));
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
			struct blk_config config = default_config(open_again(fd, O_RDWR));
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
		struct blk *blk;
		test_machine_init(&m, NULL);
		expect_in_use(try_disk(&m, open_again(fd, O_RDWR), false, &blk));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		uint64_t start = test_now_ms();
		test_no_error(blk_activate(blk));
		print_message("the lock of a killed VM was free after %llu ms\n",
			      (unsigned long long)(test_now_ms() - start));
		blk_free(blk);
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
