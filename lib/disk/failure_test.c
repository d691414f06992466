/*
 * Operations that fail while a disk is grown, closed, or begun to be written: whichever it is, what was made durable
 * stays, and a disk that goes on does not forget what it is given afterwards. A crash is a close without deactivating.
 */
#include "disk/test_disk.h"
#include "disk/vhdx.h"

#include <sys/mman.h>
#include <sys/stat.h>

#define SIZE   (4 * MIB)
#define LARGER (6 * MIB)
#define NEW_AT (2 * MIB) /* in a block that is not there yet */

struct layout {
	const char *format, *subformat;
	uint32_t block;
	uint64_t larger;
	bool moves; /* a larger table elsewhere */
};

static const struct layout layouts[] = {
	{"raw", NULL, 0, LARGER, false},
	{"vhd", "fixed", 0, LARGER, false},
	{"vhd", "dynamic", VHDX_UNIT / 2, LARGER, false},
	{"vhd", "dynamic", VHDX_UNIT / 2, GIB, true},
	{"vhdx", "fixed", VHDX_UNIT, LARGER, false},
	{"vhdx", "dynamic", VHDX_UNIT, LARGER, false},
	{"vhdx", "dynamic", VHDX_UNIT, 130 * GIB, true},
};

/* One disk, opened and crashed over and over, and what it is to hold. */
struct bench {
	const struct layout *layout;
	int fd;
	struct test_io io;
	struct disk *disk;
	struct test_queue q;
	uint8_t *model, *buf; /* LARGER each */
};

static struct error *try_open(struct bench *b, bool readonly)
{
	struct disk_options options = {
		.name = "disk", .format = b->layout->format, .readonly = readonly, .alone = true, .io = &b->io.io};
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", b->fd);
	int own = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	assert_true(own >= 0);
	struct error *err = disk_open(&b->disk, own, &options);
	if (err) {
		close(own);
		return err;
	}
	test_queue_init(&b->q, b->disk, &b->io.io);
	return disk_activate(b->disk);
}

static void take(struct bench *b)
{
	assert_no_error(try_open(b, false));
}

static void crash(struct bench *b)
{
	disk_close(b->disk);
	b->disk = NULL;
}

static void leave(struct bench *b)
{
	assert_no_error(disk_deactivate(b->disk));
	crash(b);
}

static void setup(struct bench *b, const struct layout *layout)
{
	struct disk_create create = {.name = "disk",
				     .format = layout->format,
				     .subformat = layout->subformat,
				     .size = SIZE,
				     .block = layout->block};

	*b = (struct bench){.layout = layout, .fd = memfd_create("disk", MFD_CLOEXEC), .io = test_io()};
	b->io.once = true;
	b->model = calloc(1, LARGER);
	b->buf = malloc(LARGER);
	assert_no_error(disk_create(b->fd, &create));
	take(b);
}

static void teardown(struct bench *b)
{
	disk_close(b->disk);
	close(b->fd);
	free(b->model);
	free(b->buf);
}

static int try_put(struct bench *b, uint64_t offset, uint64_t len, uint8_t byte)
{
	memset(b->buf, byte, len);
	return test_do(&b->q, DISK_WRITE, offset, b->buf, len, 1);
}

static void put(struct bench *b, uint64_t offset, uint64_t len, uint8_t byte)
{
	assert_int_equal(try_put(b, offset, len, byte), 0);
	memset(b->model + offset, byte, len);
}

static int flush(struct bench *b)
{
	return test_do(&b->q, DISK_FLUSH, 0, NULL, 0, 0);
}

static uint64_t size_of(const struct bench *b)
{
	struct disk_info info;

	disk_info(b->disk, 0, &info);
	return info.size;
}

static void same(struct bench *b)
{
	uint64_t len = MIN(size_of(b), LARGER);

	memset(b->buf, 0xa5, len);
	assert_int_equal(test_do(&b->q, DISK_READ, 0, b->buf, len, 1), 0);
	assert_memory_equal(b->buf, b->model, len);
}

static void found(struct disk_check *check, const struct disk_finding *finding)
{
	if (finding->kind == DISK_ERROR)
		fail_msg("%s", finding->text);
}

/* Nothing is wrong with the file, which is closed. */
static void expect_whole(struct bench *b)
{
	struct disk_check check = {.name = "disk", .format = b->layout->format, .report = found};

	assert_no_error(disk_check(b->fd, &check));
}

/* --- growing --- */

/* Nothing may be done with it any more, and nothing is. */
static void expect_broken(struct bench *b)
{
	struct disk_range range;
	unsigned writes = b->io.writes;

	assert_int_equal(try_put(b, NEW_AT, 512, 9), -EIO);
	assert_int_equal(flush(b), -EIO);
	assert_error(disk_map(b->disk, 0, &range), "");
	assert_error(disk_resize(b->disk, b->layout->larger), "half-way");
	assert_error(disk_renew(b->disk), "half-way");
	assert_error(disk_deactivate(b->disk), "half-way");
	assert_int_equal(b->io.writes, writes);
}

/* Grows a disk whose operation @after fails, and the next ones too unless @once. False: nothing failed. */
static bool grow_failing(const struct layout *layout, int after, bool once, unsigned *went_on, unsigned *broke)
{
	struct bench b;
	uint8_t sector[512];

	setup(&b, layout);
	put(&b, 0, MIB, 1);
	assert_int_equal(flush(&b), 0);
	put(&b, MIB / 2, 512, 2);
	put(&b, MIB, 512, 3);
	b.io.fail_after = after;
	b.io.once = once;
	struct error *err = disk_resize(b.disk, layout->larger);
	bool failed = b.io.fail_after < 0 || b.io.fail_after == 0;
	b.io.fail_after = -1;
	if (err && test_do(&b.q, DISK_READ, 0, sector, 512, 1) == -EIO) {
		++*broke;
		expect_broken(&b);
	} else {
		*went_on += err != NULL;
		bool raw = strcmp(layout->format, "raw") == 0;
		assert_true(size_of(&b) == (err ? SIZE : layout->larger) || (raw && size_of(&b) == layout->larger));
		same(&b);
		put(&b, NEW_AT, 512, 4);
		assert_int_equal(flush(&b), 0);
		same(&b);
	}
	error_free(err);
	crash(&b);
	take(&b);
	assert_true(size_of(&b) == SIZE || size_of(&b) == layout->larger);
	same(&b);
	put(&b, 3 * MIB, 512, 5);
	assert_no_error(disk_resize(b.disk, layout->larger));
	assert_int_equal(size_of(&b), layout->larger);
	same(&b);
	put(&b, LARGER - 512, 512, 6);
	leave(&b);
	expect_whole(&b);
	take(&b);
	same(&b);
	teardown(&b);
	return failed;
}

static void growing(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
		for (int once = 0; once < 2; once++) {
			unsigned went_on = 0, broke = 0;
			int after = 0;
			while (grow_failing(&layouts[i], after, once, &went_on, &broke))
				after++;
			print_message("%s %s to %llu MiB: of %d operations %u broke it\n", layouts[i].format,
				      layouts[i].subformat ? layouts[i].subformat : "",
				      (unsigned long long)(layouts[i].larger / MIB), after, broke);
			assert_true(after >= 2 && (broke > 0 || i == 0) && went_on > 0);
		}
	}
}

static uint64_t room;

static void write_in_room(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov,
			  unsigned count, uint64_t offset)
{
	for (unsigned i = 0; i < count; i++)
		if (offset + iov[i].iov_len > room) {
			op->done(op, -ENOSPC);
			return;
		}
	test_io_writev(io, op, file, iov, count, offset);
}

/* The file system is full, at once or after a part of a new table: nothing has happened. */
static void no_room(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
		unsigned refused = 0;
		struct error *err;
		struct stat st;
		struct bench b;
		setup(&b, &layouts[i]);
		put(&b, 0, MIB, 1);
		assert_int_equal(flush(&b), 0);
		assert_int_equal(fstat(b.fd, &st), 0);
		b.io.io.writev = write_in_room;
		for (room = (uint64_t)st.st_size; (err = disk_resize(b.disk, layouts[i].larger)); room += 300 * KIB) {
			assert_int_equal(error_errno(err), ENOSPC);
			error_free(err);
			refused++;
			assert_int_equal(size_of(&b), SIZE);
			same(&b);
			put(&b, MIB / 4, 512, 2);
			assert_int_equal(flush(&b), 0);
		}
		assert_true(refused > 0 || !layouts[i].moves);
		room = UINT64_MAX;
		put(&b, NEW_AT, 512, 4);
		assert_int_equal(flush(&b), 0);
		crash(&b);
		take(&b);
		same(&b);
		leave(&b);
		expect_whole(&b);
		teardown(&b);
	}
}

/* --- headers of VHDX --- */

static const struct layout *const vhdx = &layouts[5];

/* Operation after operation of a close fails; then the guest goes on, and crashes. */
static void closing(void **state)
{
	for (int after = 0;; after++) {
		struct bench b;
		setup(&b, vhdx);
		put(&b, 0, MIB, 1);
		assert_int_equal(flush(&b), 0);
		put(&b, 4096, 4096, 2);
		put(&b, MIB, 4096, 2);
		b.io.fail_after = after;
		struct error *err = disk_deactivate(b.disk);
		b.io.fail_after = -1;
		if (!err) {
			assert_true(after > 8);
			teardown(&b);
			return;
		}
		error_free(err);
		if (after % 2)
			assert_no_error(disk_activate(b.disk)); /* no effect: it still is */
		put(&b, NEW_AT, 4096, 3);
		assert_int_equal(flush(&b), 0);
		crash(&b);
		take(&b);
		same(&b);
		leave(&b);
		teardown(&b);
	}
}

/* After a close that failed, the next one leaves a log that is empty: somebody who only reads can take the disk. */
static void closing_again(void **state)
{
	for (int after = 0, failed = 1; failed; after++) {
		struct bench b;
		setup(&b, vhdx);
		put(&b, 0, MIB, 1);
		b.io.fail_after = after;
		struct error *err = disk_deactivate(b.disk);
		b.io.fail_after = -1;
		failed = err != NULL;
		error_free(err);
		leave(&b);
		assert_no_error(try_open(&b, true));
		same(&b);
		teardown(&b);
	}
}

/* The same after a write that could not even begin. */
static void beginning(void **state)
{
	for (int after = 0, failed = 1; failed; after++) {
		struct bench b;
		setup(&b, vhdx);
		b.io.fail_after = after;
		failed = try_put(&b, 0, MIB, 1) < 0;
		b.io.fail_after = -1;
		if (!failed)
			memset(b.model, 1, MIB);
		leave(&b);
		assert_no_error(try_open(&b, true));
		same(&b);
		teardown(&b);
	}
}

static void no_sync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	op->done(op, -EIO);
}

static unsigned headers_changed(struct bench *b, const uint8_t old[2][VHDX_HEADER_BYTES])
{
	uint8_t page[VHDX_HEADER_BYTES];
	unsigned changed = 0;

	for (unsigned n = 0; n < 2; n++) {
		assert_int_equal(pread(b->fd, page, sizeof(page), (off_t)VHDX_HEADER_AT(n)), sizeof(page));
		changed += memcmp(page, old[n], sizeof(page)) != 0;
	}
	return changed;
}

/* A header that could not be made durable may be torn: the other one is left alone until it has been. */
static void header_turns(void **state)
{
	for (int renew = 0; renew < 2; renew++) {
		struct bench b;
		uint8_t old[2][VHDX_HEADER_BYTES];
		setup(&b, vhdx);
		struct disk_io io = b.io.io;
		for (unsigned n = 0; n < 2; n++)
			assert_int_equal(pread(b.fd, old[n], sizeof(old[n]), (off_t)VHDX_HEADER_AT(n)), sizeof(old[n]));
		b.io.io.fdatasync = no_sync;
		for (unsigned i = 0; i < 5; i++) {
			if (renew)
				assert_error(disk_renew(b.disk), "a header");
			else
				assert_int_equal(try_put(&b, 0, 512, 1), -EIO);
			assert_int_equal(headers_changed(&b, old), 1);
		}
		b.io.io = io;
		put(&b, 0, 512, 1);
		assert_int_equal(headers_changed(&b, old), 2);
		leave(&b);
		take(&b);
		same(&b);
		teardown(&b);
	}
}

/* --- waiting --- */

static struct later {
	struct disk_op *op;
	int res;
} later[4];
static unsigned later_count;

static void read_later(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		       uint64_t offset)
{
	assert_true(later_count < ARRAY_SIZE(later));
	later[later_count++] = (struct later){op, (int)preadv((int)file, iov, (int)count, (off_t)offset)};
}

/* A child of an empty parent, by itself. */
static void setup_child(struct bench *b)
{
	struct disk_options options = {.name = "parent", .readonly = true};
	struct disk_create create = {.name = "child", .format = "vhdx", .block = VHDX_UNIT, .parent_locator = "parent"};
	struct bench parent;

	setup(&parent, vhdx);
	leave(&parent);
	assert_no_error(disk_open(&create.parent, dup(parent.fd), &options));
	*b = (struct bench){.layout = vhdx, .fd = memfd_create("disk", MFD_CLOEXEC), .io = test_io()};
	assert_no_error(disk_create(b->fd, &create));
	disk_close(create.parent);
	b->model = calloc(1, LARGER);
	b->buf = malloc(LARGER);
	teardown(&parent);
	take(b);
}

/* Two read what a page of the map must be loaded for; meanwhile a commit fails, which is no business of theirs. */
static void waiting_for_a_page(void **state)
{
	struct disk_io io = *disk_blocking_io();
	struct test_request t[2] = {0};
	struct iovec iov[2];
	uint8_t data[2][512];
	struct test_queue q;
	struct bench b;

	setup_child(&b);
	put(&b, 0, 4096, 1); /* part of a block: there is a bitmap */
	leave(&b);
	take(&b);
	io.readv = read_later;
	test_queue_init(&q, b.disk, &io);
	for (unsigned i = 0; i < 2; i++) {
		iov[i] = (struct iovec){data[i], sizeof(data[i])};
		t[i].r = (struct disk_request){.type = DISK_READ,
					       .offset = i * 512,
					       .len = 512,
					       .iov = &iov[i],
					       .iov_count = 1,
					       .done = test_request_done};
		disk_submit(&q.queue, &t[i].r);
		assert_false(t[i].done);
	}
	put(&b, NEW_AT, MIB, 2); /* a whole block, which needs no bitmap */
	b.io.fail_after = 1;
	assert_int_equal(flush(&b), -EIO);
	b.io.fail_after = -1;
	/* The page comes, then the sectors themselves. */
	while (later_count > 0) {
		struct later now = later[0];
		memmove(later, later + 1, --later_count * sizeof(*later));
		now.op->done(now.op, now.res);
	}
	for (unsigned i = 0; i < 2; i++) {
		assert_true(t[i].done);
		assert_int_equal(t[i].res, 0);
		assert_memory_equal(data[i], b.model, 512);
	}
	assert_int_equal(flush(&b), 0);
	leave(&b);
	teardown(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(growing),
		cmocka_unit_test(no_room),
		cmocka_unit_test(closing),
		cmocka_unit_test(closing_again),
		cmocka_unit_test(beginning),
		cmocka_unit_test(header_turns),
		cmocka_unit_test(waiting_for_a_page),
	};

	return cmocka_run_group_tests_name("failure", tests, NULL, NULL);
}
