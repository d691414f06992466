/*
 * What tests of virtio-blk over time share: moving a device to a new machine, and a guest's load on many queues with
 * every byte checked.
 */
#ifndef GLINT_VMM_VIRTIO_BLK_LOAD_H
#define GLINT_VMM_VIRTIO_BLK_LOAD_H

#include "vmm/virtio/blk_test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define ALL_FEATURES (~0ull)

/* --- saving --- */

static inline struct error *save(int fd, struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	return saved_finish(s);
}

static inline struct error *load(int fd, struct unit *unit)
{
	cleanup_saved struct saved *s = NULL;

	lseek(fd, 0, SEEK_SET);
	TRY(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	TRY(saved_finish(s));
	return unit->ops->restored(unit->self);
}

static inline int open_again(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, flags | O_CLOEXEC);
	assert_true(again >= 0);
	return again;
}

static inline struct unit disk_unit(void)
{
	return virtio_pci_unit(f.vp, "disk:test");
}

static inline void pause_disk(void)
{
	struct unit unit = disk_unit();
	unit.ops->pause(unit.self);
}

static inline void resume_disk(void)
{
	struct unit unit = disk_unit();
	unit.ops->resume(unit.self);
}

/* Moves the paused disk into a new device of a new machine on the same memory and the same disk, opened anew. */
static inline struct error *move(int saved_fd)
{
	struct test_disk again = f.config;

	again.drive.fd = open_again(f.config.drive.fd, O_RDWR);
	for (unsigned i = 0; i < again.drive.parent_count; i++)
		again.parent[i] = open_again(f.config.parent[i], O_RDONLY);
	struct unit unit = disk_unit();
	TRY(save(saved_fd, &unit));
	TRY(drive_deactivate(f.drive));
	virtio_pci_free(f.vp);
	blk_free(f.blk);
	drive_free(f.drive);
	struct memory memory = f.machine.memory;
	test_machine_destroy(&f.machine, true);
	test_machine_init(&f.machine, &memory);
	f.config = again;
	add_disk();
	f.driver.vp = f.vp;
	unit = disk_unit();
	TRY(load(saved_fd, &unit));
	return drive_activate(f.drive);
}

/* --- load on all queues --- */

#define LOAD_QUEUES 4
#define LOAD_SLOTS  24
#define LOAD_BYTES  8192u
#define LOAD_SET    (LOAD_QUEUES * LOAD_SLOTS * (uint64_t)LOAD_BYTES)

/*
 * A guest's load on one queue: each slot writes its own part of the disk, over and over, with bytes that follow from
 * slot and round; every fourth time it reads it back instead and checks, and goes on in the next part of the disk. A
 * request that is lost leaves its slot waiting for ever; one that is done twice or wrongly is seen in the bytes.
 */
struct load {
	pthread_t thread;
	struct test_ring *ring;
	unsigned slot_of[VIRTQUEUE_SIZE_MAX]; /* by head */
	uint32_t type[LOAD_SLOTS], round[LOAD_SLOTS];
	unsigned in_flight;
	_Atomic uint64_t done;
	bool failed;
};

static atomic_bool load_stop, load_rest;
static pthread_rwlock_t world = PTHREAD_RWLOCK_INITIALIZER; /* held for reading by guests that run */

static inline uint64_t load_data(const struct load *l, unsigned slot)
{
	return TEST_DATA + ((uint64_t)l->ring->index * LOAD_SLOTS + slot) * LOAD_BYTES;
}

/* Where on the disk. */
static inline uint64_t load_place(const struct load *l, unsigned slot)
{
	uint64_t set = l->round[slot] / 4 % (drive_size(f.drive) / LOAD_SET);

	return set * LOAD_SET + ((uint64_t)l->ring->index * LOAD_SLOTS + slot) * LOAD_BYTES;
}

static inline uint64_t load_seed(const struct load *l, unsigned slot)
{
	return (uint64_t)l->ring->index << 48 | (uint64_t)slot << 32 | l->round[slot];
}

static inline void load_send(struct load *l, unsigned slot)
{
	uint8_t *data = test_at(l->ring->driver->machine, load_data(l, slot));
	uint64_t sector = load_place(l, slot) / 512;
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

static inline void load_finished(struct load *l, uint16_t head, uint32_t used)
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
static inline void *load_thread(void *arg)
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
static inline void stop_world(void)
{
	atomic_store(&load_rest, true);
	pthread_rwlock_wrlock(&world);
	pause_disk();
}

static inline void start_world(void)
{
	resume_disk();
	pthread_rwlock_unlock(&world);
	atomic_store(&load_rest, false);
}

static inline void load_start(struct load *l)
{
	memset(l, 0, LOAD_QUEUES * sizeof(*l));
	atomic_store(&load_stop, false);
	for (unsigned i = 0; i < LOAD_QUEUES; i++) {
		l[i].ring = &f.ring[i];
		assert_int_equal(pthread_create(&l[i].thread, NULL, load_thread, &l[i]), 0);
	}
}

/* Until every queue did something worth looking at, however slow the machine is. */
static inline void load_wait(struct load *l)
{
	for (unsigned i = 0; i < LOAD_QUEUES; i++)
		while (atomic_load(&l[i].done) <= 2ull * LOAD_SLOTS && !l[i].failed)
			usleep(1000);
}

/* A raw disk by its file, another as the guest reads it. */
static inline void read_back(uint64_t gpa, uint64_t at, uint32_t len)
{
	if (strcmp(f.config.drive.format, "raw") == 0)
		assert_int_equal(pread(f.config.drive.fd, test_at(&f.machine, gpa), len, (off_t)at), len);
	else
		assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, at / 512, gpa, len, NULL), VIRTIO_BLK_S_OK);
}

static inline void load_end(struct load *l)
{
	uint8_t want[LOAD_BYTES];

	if (!atomic_load(&load_stop))
		load_wait(l);
	atomic_store(&load_stop, true);
	for (unsigned i = 0; i < LOAD_QUEUES; i++) {
		pthread_join(l[i].thread, NULL);
		assert_false(l[i].failed);
		assert_int_equal(l[i].in_flight, 0);
		for (unsigned slot = 0; slot < LOAD_SLOTS; slot++) {
			/* The last round that wrote. */
			l[i].round[slot] -= l[i].round[slot] % 4 ? 1 : 2;
			pattern(want, sizeof(want), load_seed(&l[i], slot));
			uint8_t *disk = test_at(&f.machine, load_data(&l[i], slot));
			read_back(load_data(&l[i], slot), load_place(&l[i], slot), LOAD_BYTES);
			assert_memory_equal(want, disk, LOAD_BYTES);
		}
	}
}

/* --- a full disk --- */

#define FULL_DIR "glint-blk-test-full"

/* A disk on a file system of @bytes, in which a ballast holds all but @room. */
static inline int full_disk(int *dir, unsigned bytes, unsigned room)
{
	char size[32];

	snprintf(size, sizeof(size), "size=%u", bytes);
	assert_int_equal(mkdir(FULL_DIR, 0700), 0);
	int ret = mount("full", FULL_DIR, "tmpfs", 0, size);
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
	assert_int_equal(fallocate(ballast, 0, 0, bytes - room), 0);
	close(ballast);
	return disk;
}

#endif
