/* The engine, on raw disks: requests, their pieces and their ends; opening, locking, tracking. */
#include "disk/test_disk.h"

#include "disk/ring.h"

#include <pthread.h>

#define SIZE (4 * MIB)

struct bench {
	struct test_io io;
	struct disk *disk;
	struct test_queue q;
	uint8_t buf[256 * 1024], seen[256 * 1024], model[SIZE];
};

static struct bench *begin(void)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct disk_options options = {.name = "test", .format = "raw"};

	b->io = test_io();
	assert_no_error(disk_open(&b->disk, test_file(SIZE), &options));
	assert_no_error(disk_activate(b->disk));
	test_queue_init(&b->q, b->disk, &b->io.io);
	return b;
}

static void end(struct bench *b)
{
	assert_no_error(disk_deactivate(b->disk));
	disk_close(b->disk);
	free(b);
}

static void random_bytes(void *buf, size_t len)
{
	uint8_t *p = buf;

	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)rand();
}

/* Random requests beside a model in memory. */
static void random_requests(struct bench *b, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t len = (uint64_t)(1 + rand() % 300) * 512, offset = (uint64_t)(rand() % 7000) * 512;
		unsigned parts = 1 + (unsigned)rand() % 5;
		switch (rand() % 5) {
		case 0:
		case 1:
			random_bytes(b->buf, len);
			memcpy(b->model + offset, b->buf, len);
			assert_int_equal(test_do(&b->q, DISK_WRITE, offset, b->buf, len, parts), 0);
			break;
		case 2:
			memset(b->model + offset, 0, len);
			assert_int_equal(test_do(&b->q, DISK_WRITE_ZEROES, offset, NULL, len, parts & 1), 0);
			break;
		default:
			memset(b->seen, 0xaa, len);
			assert_int_equal(test_do(&b->q, DISK_READ, offset, b->seen, len, parts), 0);
			assert_memory_equal(b->seen, b->model + offset, len);
			break;
		}
	}
}

static void requests(void **state)
{
	struct bench *b = begin();

	random_requests(b, 300);
	assert_int_equal(test_do(&b->q, DISK_FLUSH, 0, NULL, 0, 0), 0);
	assert_int_equal(b->io.syncs, 1);
	assert_int_equal(test_do(&b->q, DISK_DISCARD, 0, NULL, SIZE, 0), 0);
	assert_int_equal(test_do(&b->q, DISK_READ, 8192, b->seen, 512, 1), 0);
	assert_int_equal(b->seen[5], 0);
	end(b);
}

static void short_transfers(void **state)
{
	struct bench *b = begin();

	b->io.short_bytes = 1536;
	b->io.again = 7;
	b->io.no_ranges = true;
	random_requests(b, 100);
	assert_int_equal(b->io.again, 0);
	assert_int_equal(test_do(&b->q, DISK_DISCARD, 0, NULL, SIZE, 0), 0); /* a hint */
	end(b);
}

static void failures(void **state)
{
	struct bench *b = begin();

	random_bytes(b->buf, 8192);
	b->io.fail_after = 0;
	b->io.error = -ENOSPC;
	assert_int_equal(test_do(&b->q, DISK_WRITE, 0, b->buf, 8192, 3), -ENOSPC);
	assert_int_equal(test_do(&b->q, DISK_FLUSH, 0, NULL, 0, 0), -ENOSPC);
	assert_int_equal(test_do(&b->q, DISK_WRITE_ZEROES, 0, NULL, 8192, 0), -ENOSPC);
	b->io.fail_after = -1;
	b->io.again = 1000;
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->seen, 8192, 1), -EAGAIN);
	b->io.again = 0;
	assert_int_equal(test_do(&b->q, DISK_WRITE, 0, b->buf, 8192, 3), 0);
	/* The file was cut off below. */
	assert_int_equal(ftruncate(disk_fd(b->disk, 0), 4096), 0);
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->seen, 8192, 1), -EIO);
	end(b);
}

static void bounds(void **state)
{
	struct bench *b = begin();

	assert_int_equal(test_do(&b->q, DISK_READ, SIZE, b->buf, 512, 1), -EINVAL);
	assert_int_equal(test_do(&b->q, DISK_READ, SIZE - 512, b->buf, 1024, 1), -EINVAL);
	assert_int_equal(test_do(&b->q, DISK_WRITE_ZEROES, UINT64_MAX - 511, NULL, 1024, 1), -EINVAL);
	assert_int_equal(test_do(&b->q, DISK_READ, 100, b->buf, 512, 1), -EINVAL);
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->buf, 100, 1), -EINVAL);
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->buf, 0, 1), 0);
	assert_no_error(disk_deactivate(b->disk));
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->buf, 512, 1), -ESHUTDOWN);
	assert_no_error(disk_activate(b->disk));
	end(b);
}

/* One writer, or many readers. */
static void locks(void **state)
{
	char path[] = "disk-test.XXXXXX";
	struct disk_options writer = {.name = "test"}, reader = {.name = "test", .readonly = true};
	struct disk *a, *b, *c;
	struct test_queue q;
	uint8_t sector[512];
	int fd = mkstemp(path);

	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	assert_no_error(disk_open(&a, open(path, O_RDWR | O_CLOEXEC), &writer));
	assert_no_error(disk_open(&b, open(path, O_RDWR | O_CLOEXEC), &writer));
	assert_no_error(disk_open(&c, open(path, O_RDONLY | O_CLOEXEC), &reader));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	struct disk *d;
	assert_error(disk_open(&d, fd, &writer), "not open for reading and writing");
	close(fd);
	unlink(path);

	assert_no_error(disk_activate(a));
	assert_error(disk_activate(b), "another process uses it");
	assert_error(disk_activate(c), "another process uses it");
	assert_no_error(disk_deactivate(a));
	assert_no_error(disk_activate(c));
	assert_error(disk_activate(b), "another process uses it");
	test_queue_init(&q, c, disk_blocking_io());
	assert_int_equal(test_do(&q, DISK_WRITE, 0, sector, 512, 1), -EROFS);
	assert_int_equal(test_do(&q, DISK_READ, 0, sector, 512, 1), 0);
	assert_int_equal(test_do(&q, DISK_FLUSH, 0, NULL, 0, 0), 0);
	assert_no_error(disk_deactivate(c));
	disk_close(a);
	disk_close(b);
	disk_close(c);
}

struct track {
	struct disk_tracker tracker;
	uint64_t bytes;
};

static void changing(struct disk_tracker *tracker, uint64_t offset, uint64_t len)
{
	((struct track *)tracker)->bytes += len;
}

static void tracking(void **state)
{
	struct bench *b = begin();
	struct track track = {.tracker.changing = changing};

	disk_track(b->disk, &track.tracker);
	assert_int_equal(test_do(&b->q, DISK_WRITE, 0, b->buf, 8192, 1), 0);
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->buf, 8192, 1), 0);
	assert_int_equal(test_do(&b->q, DISK_WRITE_ZEROES, 4096, NULL, 512, 1), 0);
	assert_int_equal(test_do(&b->q, DISK_FLUSH, 0, NULL, 0, 0), 0);
	assert_int_equal(track.bytes, 8192 + 512);
	disk_track(b->disk, NULL);
	assert_int_equal(test_do(&b->q, DISK_WRITE, 0, b->buf, 8192, 1), 0);
	assert_int_equal(track.bytes, 8192 + 512);
	end(b);
}

static void making(void **state)
{
	struct disk_create create = {.name = "new", .format = "raw", .size = 3 * MIB + 512};
	struct disk_options options = {.name = "new", .format = "raw"};
	struct disk_info info;
	struct disk *disk;
	int fd = test_file(0);

	assert_no_error(disk_create(fd, &create));
	assert_error(disk_create(fd, &create), "not empty");
	assert_no_error(disk_open(&disk, fd, &options));
	assert_error(disk_resize(disk, 8 * MIB), "not active");
	assert_no_error(disk_activate(disk));
	disk_info(disk, 0, &info);
	assert_int_equal(info.size, 3 * MIB + 512);
	assert_string_equal(info.format, "raw");
	assert_error(disk_resize(disk, MIB), "smaller");
	assert_error(disk_resize(disk, 8 * MIB + 100), "no size for");
	assert_no_error(disk_resize(disk, 8 * MIB));
	disk_info(disk, 0, &info);
	assert_int_equal(info.size, 8 * MIB);
	disk_close(disk);

	fd = test_file(0);
	create.size = 100;
	assert_error(disk_create(fd, &create), "no size for");
	create.format = "zip";
	assert_error(disk_create(fd, &create), "unknown disk format");
	close(fd);
}

/* Several threads, each with a ring and a queue of its own, many requests at a time. */
struct worker {
	pthread_t thread;
	struct disk *disk;
	unsigned index, left, busy;
	struct test_queue q;
};

struct flight {
	struct disk_request r;
	struct worker *worker;
	struct iovec iov;
	uint64_t data[512];
	bool reading;
};

static void flight_next(struct flight *f)
{
	struct worker *w = f->worker;

	if (w->left == 0) {
		w->busy--;
		return;
	}
	w->left--;
	f->reading = false;
	f->r.type = DISK_WRITE;
	f->r.offset = (uint64_t)(w->index * 256 + (unsigned)w->left % 256) * 4096;
	for (unsigned i = 0; i < 512; i++)
		f->data[i] = f->r.offset + w->left;
	disk_submit(&w->q.queue, &f->r);
}

static void flight_done(struct disk_request *r, int res)
{
	struct flight *f = (struct flight *)r;

	assert_int_equal(res, 0);
	if (f->reading) {
		flight_next(f);
		return;
	}
	f->reading = true;
	r->type = DISK_READ;
	disk_submit(&f->worker->q.queue, r);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct disk_ring *ring;
	struct flight *flights = calloc(32, sizeof(*flights));

	assert_no_error(disk_ring_new(&ring));
	test_queue_init(&w->q, w->disk, disk_ring_io(ring));
	w->busy = 32;
	for (unsigned i = 0; i < 32; i++) {
		flights[i] = (struct flight){.r.done = flight_done, .r.len = 4096, .r.iov_count = 1, .worker = w};
		flights[i].r.iov = &flights[i].iov;
		flights[i].iov = (struct iovec){flights[i].data, 4096};
		flight_next(&flights[i]);
	}
	while (w->busy > 0)
		disk_ring_serve(ring);
	disk_ring_free(ring);
	free(flights);
	return NULL;
}

static void queues(void **state)
{
	struct bench *b = begin();
	struct worker workers[3] = {0};

	for (unsigned i = 0; i < 3; i++) {
		workers[i] = (struct worker){.disk = b->disk, .index = i, .left = 1000};
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	for (unsigned i = 0; i < 3; i++)
		pthread_join(workers[i].thread, NULL);
	for (uint64_t offset = 0; offset < 3 * MIB; offset += 4096) {
		assert_int_equal(test_do(&b->q, DISK_READ, offset, b->seen, 4096, 1), 0);
		uint64_t value;
		memcpy(&value, b->seen, sizeof(value));
		assert_in_range(value, offset, offset + 999);
	}
	end(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests), cmocka_unit_test(short_transfers), cmocka_unit_test(failures),
		cmocka_unit_test(bounds),   cmocka_unit_test(locks),           cmocka_unit_test(tracking),
		cmocka_unit_test(making),   cmocka_unit_test(queues),
	};

	return cmocka_run_group_tests_name("disk", tests, NULL, NULL);
}
