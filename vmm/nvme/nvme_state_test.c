/*
 * Tests of the NVMe controller over time: queues under load with every byte checked, paused and moved in the middle of
 * it with doorbells in registers and in memory, event requests that move along, a full disk under both policies, a
 * stream that lies.
 */
#include "vmm/nvme/fixture.h"

#include <pthread.h>
#include <sys/mount.h>
#include <sys/stat.h>

/* --- saving --- */

static struct unit unit_of(void)
{
	return nvme_unit(t.nvme, "nvme:test");
}

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

/* Moves the paused controller into a new one of a new machine on the same memory and the same disk, opened anew. */
static struct error *move(void)
{
	cleanup_fd int fd = memfd_create("saved", MFD_CLOEXEC);
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", t.drive_config.fd);
	int again = open(path, O_RDWR | O_CLOEXEC);
	assert_true(again >= 0);
	TRY(save(fd));
	TRY(drive_deactivate(t.drive));
	test_nvme_free(&t);
	struct memory memory = t.machine.memory;
	test_machine_destroy(&t.machine, true);
	test_machine_init(&t.machine, &memory);
	t.drive_config.fd = again;
	test_no_error(test_nvme_make(&t));
	TRY(load(fd));
	return drive_activate(t.drive);
}

/* --- load on all queues --- */

#define LOAD_QUEUES 4
#define LOAD_SLOTS  24
#define LOAD_BYTES  8192u

/*
 * A guest's load on one queue: each slot writes its own part of the disk, over and over, with bytes that follow from
 * slot and round; every fourth time it reads it back instead and checks. A command that is lost leaves its slot waiting
 * for ever; one that is done twice or wrongly is seen in the bytes.
 */
struct load {
	pthread_t thread;
	struct test_pair *pair;
	unsigned slot_of[0x8000]; /* by command */
	uint32_t round[LOAD_SLOTS];
	unsigned in_flight;
	uint64_t done;
	bool failed;
};

static atomic_bool load_stop, load_rest;
static pthread_rwlock_t world = PTHREAD_RWLOCK_INITIALIZER; /* held for reading by guests that run */

static uint64_t part(const struct load *l, unsigned slot)
{
	return ((uint64_t)(l->pair->id - 1) * LOAD_SLOTS + slot) * LOAD_BYTES;
}

static uint64_t seed(const struct load *l, unsigned slot, uint32_t round)
{
	return (uint64_t)l->pair->id << 48 | (uint64_t)slot << 32 | round;
}

static void load_send(struct load *l, unsigned slot)
{
	uint64_t at = part(l, slot);
	bool check = l->round[slot] % 4 == 3;

	if (check)
		memset(data_at(at), 0, LOAD_BYTES);
	else
		pattern(data_at(at), LOAD_BYTES, seed(l, slot, l->round[slot]));
	uint16_t cid = test_add(l->pair, test_io(check ? NVME_READ : NVME_WRITE, at / 512, LOAD_BYTES / 512,
						 TEST_DATA + at, TEST_DATA + at + PAGE_BYTES));
	l->slot_of[cid] = slot;
	l->in_flight++;
}

static void load_finished(struct load *l, const struct nvme_completion *c)
{
	unsigned slot = l->slot_of[c->cid];
	uint8_t want[LOAD_BYTES];

	l->in_flight--;
	l->done++;
	if (c->status != NVME_SUCCESS || c->sq_id != l->pair->id)
		l->failed = true;
	if (l->round[slot] % 4 == 3) {
		pattern(want, sizeof(want), seed(l, slot, l->round[slot] - 1));
		if (memcmp(want, data_at(part(l, slot)), sizeof(want)) != 0)
			l->failed = true;
	}
	l->round[slot]++;
}

/* As a guest's vCPU: works while the machine runs; stands still wherever it is while it does not. */
static void *load_thread(void *arg)
{
	struct load *l = arg;
	struct nvme_completion c;

	pthread_rwlock_rdlock(&world);
	for (unsigned slot = 0; slot < LOAD_SLOTS; slot++)
		load_send(l, slot);
	test_ring_sq(&t, l->pair);
	while (l->in_flight && !l->failed) {
		bool any = false;
		while (test_take(l->pair, &c)) {
			load_finished(l, &c);
			if (!atomic_load(&load_stop))
				load_send(l, l->slot_of[c.cid]);
			any = true;
		}
		if (any) {
			test_ring_cq(&t, l->pair);
			test_ring_sq(&t, l->pair);
		}
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
	pause_nvme();
}

static void start_world(void)
{
	resume_nvme();
	pthread_rwlock_unlock(&world);
	atomic_store(&load_rest, false);
}

static struct load loads[LOAD_QUEUES];

static void load_start(void)
{
	memset(loads, 0, sizeof(loads));
	atomic_store(&load_stop, false);
	for (unsigned i = 0; i < LOAD_QUEUES; i++) {
		loads[i].pair = &t.pair[i + 1];
		assert_int_equal(pthread_create(&loads[i].thread, NULL, load_thread, &loads[i]), 0);
	}
}

static void load_end(void)
{
	uint8_t disk[LOAD_BYTES], want[LOAD_BYTES];

	atomic_store(&load_stop, true);
	for (unsigned i = 0; i < LOAD_QUEUES; i++) {
		struct load *l = &loads[i];
		pthread_join(l->thread, NULL);
		assert_false(l->failed);
		assert_int_equal(l->in_flight, 0);
		assert_true(l->done > 2ull * LOAD_SLOTS);
		for (unsigned slot = 0; slot < LOAD_SLOTS; slot++) {
			/* The last round that wrote. */
			uint32_t round = l->round[slot] - (l->round[slot] % 4 ? 1 : 2);
			pattern(want, sizeof(want), seed(l, slot, round));
			assert_int_equal(pread(t.drive_config.fd, disk, sizeof(disk), (off_t)part(l, slot)),
					 sizeof(disk));
			assert_memory_equal(want, disk, sizeof(disk));
		}
	}
}

/* Queues 1 to 4: small ones and large ones, one that is smaller than what is sent at once. */
static void begin_load(bool shadowed)
{
	begin(file_disk(0), LOAD_QUEUES);
	for (unsigned i = 1; i <= LOAD_QUEUES; i++)
		test_create(&t, i, i == 4 ? 256 : 32, i % 2 ? 16 : 64);
	if (!shadowed)
		return;
	assert_int_equal(set_shadow(SHADOW, SHADOW + 0x1000), NVME_SUCCESS);
	t.shadow = test_at(&t.machine, SHADOW);
	t.shadowed = true;
}

static void test_pause_under_load(void **state)
{
	uint8_t before[LOAD_QUEUES][1024];

	(void)state;
	begin_load(false);
	load_start();
	for (unsigned n = 0; n < 50; n++) {
		usleep(n * 100);
		stop_world();
		/* Paused: memory stands still. */
		for (unsigned i = 0; i < LOAD_QUEUES; i++)
			memcpy(before[i], test_at(&t.machine, test_cq_address(i + 1)), t.pair[i + 1].cq_size * 16);
		usleep(500);
		for (unsigned i = 0; i < LOAD_QUEUES; i++)
			assert_memory_equal(before[i], test_at(&t.machine, test_cq_address(i + 1)),
					    t.pair[i + 1].cq_size * 16);
		start_world();
	}
	load_end();
	end();
}

static void move_under_load(bool shadowed)
{
	begin_load(shadowed);
	load_start();
	for (unsigned n = 0; n < 10; n++) {
		usleep(2000 + n * 700);
		/* Every other time guests run on while the controller stands: what they send then waits. */
		if (n % 2) {
			pause_nvme();
			usleep(1000);
		}
		stop_world();
		test_no_error(move());
		start_world();
	}
	load_end();
	end();
}

static void test_move_under_load(void **state)
{
	(void)state;
	move_under_load(false);
}

static void test_move_shadowed(void **state)
{
	(void)state;
	move_under_load(true);
}

/* --- what moves besides --- */

static void test_move_settings(void **state)
{
	struct test_pair *p = &t.pair[0];
	struct nvme_completion c;
	uint16_t cid;

	(void)state;
	begin(memory_disk(), 3);
	feature(NVME_SET_FEATURES, NVME_FEATURE_WRITE_CACHE, 0);
	feature(NVME_SET_FEATURES, NVME_FEATURE_VECTOR, 0x10002);
	feature(NVME_SET_FEATURES, NVME_FEATURE_EVENTS, NVME_EVENTS_NAMESPACE);
	test_set(&t, NVME_INTMS, 0x30, 4);
	for (unsigned i = 1; i <= 3; i++)
		test_pair_init(&t, i, 8, 16, 2);
	assert_int_equal(test_admin(&t, test_create_cq(2, 16, 3)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, test_create_sq(1, 8, 2)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, test_create_sq(3, 8, 2)), NVME_SUCCESS);
	cid = test_add(p, (struct nvme_command){.opcode = NVME_ASYNC_EVENT});
	test_ring_sq(&t, p);
	for (unsigned n = 0; n < 3; n++) {
		pause_nvme();
		test_no_error(move());
		resume_nvme();
		assert_int_equal(test_csts(&t), NVME_CSTS_READY);
		assert_int_equal(test_get(&t, NVME_INTMS, 4), 0x30);
		assert_int_equal(test_get(&t, NVME_ASQ, 8), test_sq_address(0));
		assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_WRITE_CACHE, 0).result, 0);
		assert_int_equal(feature(NVME_GET_FEATURES, NVME_FEATURE_VECTOR, 2).result, 0x10002);
		for (unsigned i = 0; i < 10; i++)
			assert_int_equal(
				test_command(&t, i % 2 ? 1 : 3, test_io(NVME_WRITE, i, 1, TEST_DATA, 0)).status,
				NVME_SUCCESS);
		assert_true(test_until(interrupts(3) > 0));
	}
	/* The request that waited all the while. */
	pause_nvme();
	test_no_error(drive_resize(t.drive, DISK_BYTES * 2));
	assert_false(test_take(p, &c));
	resume_nvme();
	c = test_wait(&t, p);
	assert_int_equal(c.cid, cid);
	assert_int_equal(c.result, NVME_EVENT_NAMESPACE);
	/* A controller that broke down stays so; one that was shut down, too. */
	test_set(&t, NVME_CC, NVME_CC_ENABLE | NVME_CC_ENTRIES_64_16 | 1 << 14, 4);
	assert_true(test_until((test_csts(&t) & NVME_CSTS_SHUTDOWN) == NVME_CSTS_SHUT_DOWN));
	pause_nvme();
	test_no_error(move());
	resume_nvme();
	assert_int_equal(test_csts(&t), NVME_CSTS_READY | NVME_CSTS_SHUT_DOWN);
	test_disable(&t);
	test_set(&t, NVME_AQA, 0, 4);
	test_set(&t, NVME_CC, NVME_CC_ENABLE, 4);
	pause_nvme();
	test_no_error(move());
	resume_nvme();
	assert_int_equal(test_csts(&t), NVME_CSTS_FATAL);
	end();
}

static void test_other_disk(void **state)
{
	(void)state;
	begin(memory_disk(), 1);
	pause_nvme();
	assert_int_equal(ftruncate(t.drive_config.fd, DISK_BYTES * 2), 0);
	struct error *err = move();
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "not the disk the guest knows"));
	error_free(err);
	end();
}

/* What a stream says is believed only within bounds: each lie is refused, and none is acted on. */
static void test_lies(void **state)
{
	(void)state;
	begin(memory_disk(), 2);
	test_create(&t, 1, 16, 16);
	pause_nvme();
	struct nvme *n = t.nvme;
	const struct nvme_sq sq = n->sq[1];
	cleanup_fd int truth = memfd_create("saved", MFD_CLOEXEC);
	test_no_error(save(truth));
#define LIE(change, undo, words)                                                                                       \
	do {                                                                                                           \
		cleanup_fd int fd = memfd_create("saved", MFD_CLOEXEC);                                                \
		change;                                                                                                \
		test_no_error(save(fd));                                                                               \
		undo;                                                                                                  \
		struct error *err = load(fd);                                                                          \
		assert_non_null(err);                                                                                  \
		assert_non_null(strstr(error_text(err), words));                                                       \
		error_free(err);                                                                                       \
		undo;                                                                                                  \
	} while (0)
	LIE(atomic_store(&n->cq[1].tail, 16), atomic_store(&n->cq[1].tail, 0), "beyond its bounds");
	LIE(atomic_store(&n->cq[1].size, 5000), atomic_store(&n->cq[1].size, 16), "beyond its bounds");
	LIE(atomic_store(&n->cq[1].size, 0), atomic_store(&n->cq[1].size, 16), "beyond its bounds");
	LIE(n->cq[1].vector = 3, n->cq[1].vector = 1, "vector");
	LIE(n->cq[1].base = 1ull << 60, n->cq[1].base = test_cq_address(1), "not lie in memory");
	LIE(n->sq[1].head = 16, n->sq[1].head = sq.head, "beyond its bounds");
	LIE(n->sq[1].cq_id = 2, n->sq[1].cq_id = 1, "without a completion queue");
	LIE(n->sq[1].cq_id = 0, n->sq[1].cq_id = 1, "without a completion queue");
	LIE(n->sq[1].cq_id = 0xffff, n->sq[1].cq_id = 1, "without a completion queue");
	LIE(n->sq[2].cq_id = 0xffff, n->sq[2].cq_id = 0, "without a completion queue");
	LIE(n->sq[1].base = TEST_MEMORY - 64, n->sq[1].base = sq.base, "not lie in memory");
	LIE((n->cq[1].held_count = 1, n->cq[1].held[0].sq_id = 2), n->cq[1].held_count = 0, "held");
	LIE((n->cq[2].held_count = 1, n->cq[2].held[0].sq_id = 1), n->cq[2].held_count = 0, "held");
	LIE(atomic_store(&n->csts, 0), atomic_store(&n->csts, NVME_CSTS_READY), "not ready");
	LIE(atomic_store(&n->csts, 0x21), atomic_store(&n->csts, NVME_CSTS_READY), "belong together");
	LIE(n->shadow_base = 1ull << 60, n->shadow_base = 0, "not lie in memory");
	LIE((n->shadow_base = SHADOW + 4, n->shadow_event_base = SHADOW + 0x1000),
	    (n->shadow_base = n->shadow_event_base = 0), "not lie in memory");
	nvme_shadow_forget(n);
	/* And the truth is taken. */
	test_no_error(load(truth));
	resume_nvme();
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	end();
}

/* --- a full disk --- */

#define FULL_DIR "glint-nvme-test-full"

/* A disk whose file system holds an eighth of it, and in it a ballast that holds all of that. */
static int full_disk(int *dir)
{
	static const uint8_t block[65536];

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
	int disk = openat(*dir, "disk", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int ballast = openat(*dir, "ballast", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (disk < 0 || ballast < 0)
		abort();
	assert_int_equal(ftruncate(disk, DISK_BYTES), 0);
	while (write(ballast, block, sizeof(block)) > 0)
		;
	close(ballast);
	return disk;
}

static void test_full_reported(void **state)
{
	int dir;

	(void)state;
	begin(full_disk(&dir), 1);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_WRITE, 0, 8, TEST_DATA, 0)), NVME_CAPACITY_EXCEEDED);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	assert_int_equal(unlinkat(dir, "ballast", 0), 0);
	assert_int_equal(io(test_io(NVME_WRITE, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	end();
	close(dir);
}

/* Held over pauses and moves, until there is room; then done, each once, and what waited behind them. */
static void full_held(bool moves)
{
	struct nvme_completion c;
	int dir;
	struct drive_config drive = default_drive(full_disk(&dir));
	bool seen[60] = {};

	drive.on_full = DRIVE_PAUSE;
	begin_with(drive, 2, true);
	test_create(&t, 1, 128, 128);
	test_create(&t, 2, 128, 128);
	for (unsigned i = 0; i < 60; i++) {
		pattern(data_at(i * PAGE_BYTES), PAGE_BYTES, i + 1);
		test_add(&t.pair[1], test_io(NVME_WRITE, i * 8, 8, TEST_DATA + i * PAGE_BYTES, 0));
	}
	test_ring_sq(&t, &t.pair[1]);
	assert_true(test_until(atomic_load(&paused_count) > 0));
	assert_int_equal(atomic_load(&paused_errno), ENOSPC);
	for (unsigned n = 0; n < 3; n++) {
		pause_nvme();
		assert_false(test_take(&t.pair[1], &c));
		/* The commands' places in their queue are the guest's again. */
		memset(t.pair[1].sq, 0xff, 8 * sizeof(struct nvme_command));
		if (moves)
			test_no_error(move());
		atomic_store(&paused_count, 0);
		if (n == 2)
			assert_int_equal(unlinkat(dir, "ballast", 0), 0);
		resume_nvme();
		if (n < 2)
			assert_true(test_until(atomic_load(&paused_count) > 0));
	}
	for (unsigned i = 0; i < 60; i++) {
		c = test_wait(&t, &t.pair[1]);
		assert_int_equal(c.status, NVME_SUCCESS);
		assert_false(seen[c.cid]);
		seen[c.cid] = true;
	}
	for (unsigned i = 0; i < 60; i++) {
		uint8_t disk[PAGE_BYTES], want[PAGE_BYTES];
		pattern(want, sizeof(want), i + 1);
		assert_int_equal(pread(t.drive_config.fd, disk, sizeof(disk), (off_t)(i * PAGE_BYTES)), sizeof(disk));
		assert_memory_equal(want, disk, sizeof(disk));
	}
	end();
	close(dir);
}

static void test_full_held(void **state)
{
	(void)state;
	full_held(false);
}

static void test_full_held_moved(void **state)
{
	(void)state;
	full_held(true);
}

/* The guest gives a queue up, and then all, while the machine has not paused yet. */
static void test_held_deleted(void **state)
{
	struct nvme_completion c;
	int dir;
	struct drive_config drive = default_drive(full_disk(&dir));

	(void)state;
	drive.on_full = DRIVE_PAUSE;
	begin_with(drive, 2, true);
	test_pair_init(&t, 1, 16, 16, 1);
	test_pair_init(&t, 2, 16, 16, 1);
	assert_int_equal(test_admin(&t, test_create_cq(1, 16, 1)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, test_create_sq(1, 16, 1)), NVME_SUCCESS);
	assert_int_equal(test_admin(&t, test_create_sq(2, 16, 1)), NVME_SUCCESS);
	for (unsigned i = 1; i <= 2; i++) {
		test_add(&t.pair[i], test_io(NVME_WRITE, 0, 8, TEST_DATA, 0));
		test_ring_sq(&t, &t.pair[i]);
	}
	assert_true(test_until(atomic_load(&paused_count) > 0));
	assert_int_equal(test_delete(&t, false, 1), NVME_SUCCESS);
	assert_true(test_take(&t.pair[1], &c));
	assert_int_equal(c.sq_id, 1);
	assert_int_equal(c.status, NVME_ABORTED_BY_DELETION);
	test_disable(&t);
	pause_nvme();
	resume_nvme();
	test_enable(&t);
	test_create(&t, 1, 16, 16);
	assert_int_equal(io(test_io(NVME_READ, 0, 8, TEST_DATA, 0)), NVME_SUCCESS);
	end();
	close(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pause_under_load), cmocka_unit_test(test_move_under_load),
		cmocka_unit_test(test_move_shadowed),    cmocka_unit_test(test_move_settings),
		cmocka_unit_test(test_other_disk),       cmocka_unit_test(test_lies),
		cmocka_unit_test(test_full_reported),    cmocka_unit_test(test_full_held),
		cmocka_unit_test(test_full_held_moved),  cmocka_unit_test(test_held_deleted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
