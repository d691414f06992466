/*
 * Tests of drives of each format, through virtio-blk as a guest uses them: load on many queues that makes new blocks
 * all the time, moved in the middle of it; a full file system; direct I/O; growing; chains that are not what they
 * should be.
 */
#include "vmm/virtio/blk_internal.h"
#include "vmm/virtio/blk_load.h"

#include <signal.h>
#include <sys/wait.h>

#define IMAGE_BYTES (48 * MIB)

struct kind {
	const char *format, *subformat;
	unsigned depth;
};

static struct error *refuse_all(struct opener *opener, const char *locator, int flags, int *fd)
{
	(void)opener;
	(void)flags;
	(void)fd;
	return error_new(EPERM, "open '%s'", locator);
}

/* Hands out the parents that the test holds, without a look at their names. */
static int chain_fd[DISK_CHAIN_MAX];

static struct disk *open_image(int fd, const char *format, const int *parents, unsigned parent_count)
{
	struct disk *disk;
	int again = open_again(fd, O_RDONLY), parent[DISK_CHAIN_MAX];

	for (unsigned i = 0; i < parent_count; i++)
		parent[i] = open_again(parents[i], O_RDONLY);
	const struct disk_options options = {
		.name = "parent", .format = format, .readonly = true, .parents = parent, .parent_count = parent_count};
	test_no_error(disk_open(&disk, again, &options));
	return disk;
}

/* A new image; with @parent_count images of chain_fd below it, the nearest first. */
static int make_image(const struct kind *kind, int fd, uint64_t size, unsigned parent_count)
{
	struct disk *parent = NULL;

	if (parent_count)
		parent = open_image(chain_fd[0], kind->format, chain_fd + 1, parent_count - 1);
	const struct disk_create create = {
		.name = "image",
		.format = kind->format,
		.subformat = parent ? "differencing" : kind->subformat,
		.size = size,
		.block = strcmp(kind->format, "vhdx") == 0 ? MIB : 0,
		.parent = parent,
		.parent_locator = parent ? "parent" : NULL,
		.parent_path = parent ? "/parent" : NULL,
	};
	test_no_error(disk_create(fd, &create));
	disk_close(parent);
	return fd;
}

/* The whole chain; the child's descriptor is returned with its parents' in @config. */
static struct test_disk image_config(const struct kind *kind, int flags)
{
	int fd = -1;

	for (unsigned depth = 0; depth < kind->depth; depth++) {
		if (depth > 0) {
			memmove(chain_fd + 1, chain_fd, (depth - 1) * sizeof(*chain_fd));
			chain_fd[0] = fd;
		}
		fd = file_disk(0);
		assert_int_equal(ftruncate(fd, 0), 0);
		make_image(kind, fd, IMAGE_BYTES, depth);
	}
	struct test_disk config = default_config(flags ? open_again(fd, O_RDWR | flags) : fd);
	if (flags)
		close(fd);
	config.drive.format = kind->format;
	config.drive.parent_count = kind->depth - 1;
	memcpy(config.parent, chain_fd, sizeof(chain_fd));
	return config;
}

static const struct kind kinds[] = {
	{"vhdx", "dynamic", 1}, {"vhd", "dynamic", 1}, {"vhdx", "dynamic", 3},
	{"vhd", "dynamic", 3},  {"vhdx", "fixed", 1},
};

/* --- load --- */

static void load_and_move(const struct kind *kind)
{
	struct test_disk config = image_config(kind, 0);
	struct load load[LOAD_QUEUES];

	config.queues = LOAD_QUEUES;
	start_disk(config, ALL_FEATURES);
	load_start(load);
	for (unsigned n = 0; n < 6; n++) {
		int fd = memfd_create("saved", MFD_CLOEXEC);
		usleep(3000 + n * 2700);
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
	assert_int_equal(disk_depth(drive_disk(f.drive)), kind->depth);
	pause_disk();
	test_no_error(drive_deactivate(f.drive));
	end_disk();
}

static void test_move_under_load(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		load_and_move(&kinds[i]);
}

/* Flushes, one after the other, while queues write: commits go on all the time. */
static void *flusher(void *arg)
{
	struct test_ring *r = arg;
	uint16_t head;
	uint32_t used;

	while (!atomic_load(&load_stop)) {
		test_blk_add(r, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
		test_ring_send(r);
		if (!test_until(test_ring_take(r, &head, &used)) || *test_blk_status(r, 0) != VIRTIO_BLK_S_OK)
			return arg;
	}
	return NULL;
}

/* A monitor that is killed in the middle of writes and commits leaves a disk that the next one takes, and reads. */
static void test_killed(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct test_disk config = image_config(&kinds[i], 0);
		pid_t pid = fork();
		if (pid == 0) {
			struct load load[LOAD_QUEUES];
			pthread_t thread;
			config.queues = LOAD_QUEUES + 1;
			start_disk(config, ALL_FEATURES);
			load_start(load);
			pthread_create(&thread, NULL, flusher, &f.ring[LOAD_QUEUES]);
			for (;;)
				pause();
		}
		usleep(100000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		start_disk(config, ALL_FEATURES);
		for (uint64_t at = 0; at < IMAGE_BYTES; at += MIB)
			assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, at / 512, TEST_DATA, MIB, NULL),
					 VIRTIO_BLK_S_OK);
		end_disk();
	}
}

static void test_flush_under_load(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct test_disk config = image_config(&kinds[i], 0);
		struct load load[LOAD_QUEUES];
		pthread_t thread;
		void *failed;
		config.queues = LOAD_QUEUES + 1;
		start_disk(config, ALL_FEATURES);
		load_start(load);
		assert_int_equal(pthread_create(&thread, NULL, flusher, &f.ring[LOAD_QUEUES]), 0);
		load_wait(load);
		atomic_store(&load_stop, true);
		pthread_join(thread, &failed);
		assert_null(failed);
		load_end(load);
		end_disk();
	}
}

/* --- a full file system --- */

/* New blocks need space: who has none waits, and is done when there is, by this monitor or by another. */
static void test_full(void **state)
{
	const struct kind kind = {"vhdx", "dynamic", 1};
	uint16_t head;
	uint32_t used;

	(void)state;
	for (unsigned moved = 0; moved < 2; moved++) {
		int dir, saved = memfd_create("saved", MFD_CLOEXEC), raw = full_disk(&dir, 8 * MIB, MIB);
		close(raw);
		int fd = openat(dir, "image", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		struct test_disk config = default_config(make_image(&kind, fd, IMAGE_BYTES, 0));
		config.drive.format = "vhdx";
		config.drive.on_full = DRIVE_PAUSE;
		start_disk(config, ALL_FEATURES);
		for (unsigned i = 0; i < 16; i++) {
			pattern(data_at(i * 65536ull), 65536, i);
			test_blk_add(&f.ring[0], i, VIRTIO_BLK_T_OUT, i * 2048ull, TEST_DATA + i * 65536ull, 65536,
				     true);
		}
		test_ring_send(&f.ring[0]);
		assert_true(test_until(atomic_load(&f.paused) > 0));
		assert_int_equal(atomic_load(&f.paused_errno), ENOSPC);
		pause_disk();
		assert_true(f.ring[0].used->idx < 16);
		assert_int_equal(unlinkat(dir, "ballast", 0), 0);
		if (moved)
			test_no_error(move(saved));
		resume_disk();
		for (unsigned i = 0; i < 16; i++) {
			test_ring_wait(&f.ring[0], &head, &used);
			assert_int_equal(used, 1);
		}
		for (unsigned i = 0; i < 16; i++) {
			assert_int_equal(*test_blk_status(&f.ring[0], i), VIRTIO_BLK_S_OK);
			assert_int_equal(
				test_blk(&f.ring[0], VIRTIO_BLK_T_IN, i * 2048ull, TEST_DATA + 2 * MIB, 65536, NULL),
				VIRTIO_BLK_S_OK);
			assert_memory_equal(data_at(2 * MIB), data_at(i * 65536ull), 65536);
		}
		end_disk();
		close(dir);
		close(saved);
	}
}

/* --- direct I/O --- */

/* Buffers that the host refuses, on blocks that are there, and on such as are not, which are read at once. */
static void test_direct(void **state)
{
	static uint8_t want[MIB];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (strcmp(kinds[i].format, "vhdx") != 0)
			continue; /* a VHD cannot be used with direct I/O, and says so */
		start_disk(image_config(&kinds[i], O_DIRECT), ALL_FEATURES);
		memset(data_at(1), 0xaa, 2 * MIB);
		assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 0, TEST_DATA + 1, 2 * MIB, NULL),
				 VIRTIO_BLK_S_OK);
		assert_int_equal(*data_at(1) | *data_at(2 * MIB), 0);
		pattern(data_at(511), MIB, 7);
		memcpy(want, data_at(511), MIB);
		assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 1000, TEST_DATA + 511, MIB, NULL),
				 VIRTIO_BLK_S_OK);
		assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_FLUSH, 0, 0, 0, NULL), VIRTIO_BLK_S_OK);
		memset(data_at(0), 0, 2 * MIB);
		assert_int_equal(test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 1000, TEST_DATA + 3, MIB, NULL),
				 VIRTIO_BLK_S_OK);
		assert_memory_equal(data_at(3), want, MIB);
		end_disk();
	}
}

/* --- growing --- */

static void test_grow(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		start_disk(image_config(&kinds[i], 0), ALL_FEATURES);
		unsigned before = test_interrupts(&f.driver, 0);
		uint8_t generation = (uint8_t)test_read(&f.driver, VIRTIO_PCI_COMMON_CFGGENERATION, 1);
		pause_disk();
		test_no_error(drive_resize(f.drive, 2 * IMAGE_BYTES));
		resume_disk();
		assert_true(test_until(test_interrupts(&f.driver, 0) > before));
		assert_int_not_equal(generation, test_read(&f.driver, VIRTIO_PCI_COMMON_CFGGENERATION, 1));
		assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE, 8), 2 * IMAGE_BYTES / 512);
		pattern(data_at(0), 4096, 3);
		assert_int_equal(
			test_blk(&f.ring[0], VIRTIO_BLK_T_OUT, 2 * IMAGE_BYTES / 512 - 8, TEST_DATA, 4096, NULL),
			VIRTIO_BLK_S_OK);
		assert_int_equal(
			test_blk(&f.ring[0], VIRTIO_BLK_T_IN, 2 * IMAGE_BYTES / 512 - 8, TEST_DATA + 4096, 4096, NULL),
			VIRTIO_BLK_S_OK);
		assert_memory_equal(data_at(0), data_at(4096), 4096);
		/* What it is now is what a saved state is compared with. */
		int fd = memfd_create("saved", MFD_CLOEXEC);
		pause_disk();
		test_no_error(move(fd));
		close(fd);
		pause_disk();
		struct error *err = drive_resize(f.drive, IMAGE_BYTES);
		assert_non_null(err);
		assert_non_null(strstr(error_text(err), "smaller"));
		error_free(err);
		end_disk();
	}
}

/* --- chains that are wrong --- */

static void refuse(struct test_disk config, const char *words)
{
	test_machine_init(&f.machine, NULL);
	struct error *err = make_disk(&f.machine, &config, &f.drive, &f.blk);
	assert_non_null(err);
	if (!strstr(error_text(err), words))
		fail_msg("\"%s\" is not in: %s", words, error_text(err));
	error_free(err);
	assert_int_equal(fcntl(config.drive.fd, F_GETFD), -1);
	test_machine_destroy(&f.machine, false);
}

static void test_wrong_chains(void **state)
{
	const struct kind three = {"vhdx", "dynamic", 3}, one = {"vhdx", "dynamic", 1};
	struct opener opener = {.open = refuse_all};

	(void)state;
	memset(&f, 0, sizeof(f));
	struct test_disk config = image_config(&three, 0);
	config.drive.parent_count = 1;
	refuse(config, "it has a parent, for which no descriptor came");
	config = image_config(&three, 0);
	config.drive.parent_count = 0;
	refuse(config, "parents are not allowed here");
	config = image_config(&three, 0);
	config.drive.parent_count = 0;
	config.drive.opener = &opener;
	refuse(config, "open 'parent'");
	config = image_config(&three, 0);
	config.parent[2] = open_again(config.parent[1], O_RDONLY);
	config.drive.parent_count = 3;
	refuse(config, "3 descriptors of parents came: its chain has 2");
	/* The other way round: the ids tell. */
	config = image_config(&three, 0);
	int first = config.parent[0];
	config.parent[0] = config.parent[1];
	config.parent[1] = first;
	refuse(config, "has changed since it was made");
	config = image_config(&one, 0);
	config.drive.format = "vhd";
	refuse(config, "test.raw");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_move_under_load), cmocka_unit_test(test_flush_under_load),
		cmocka_unit_test(test_killed),          cmocka_unit_test(test_full),
		cmocka_unit_test(test_direct),          cmocka_unit_test(test_grow),
		cmocka_unit_test(test_wrong_chains),
	};

	/* For the small file system that a test fills: not seen, and not left behind, outside. */
	if (unshare(CLONE_NEWNS) == 0)
		(void)mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
