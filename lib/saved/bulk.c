/*
 * Bulk sections: guest memory, between the units.
 *
 * Memory is written as runs (where, how long, then the bytes), each at most SAVED_RUN_MAX bytes, zero pages left out;
 * a run of no bytes at the end of the section closes it. The check field of a run's head proves that head and all the
 * data before it, so that a run is known to be good, and is bounded, before anything of the machine is touched.
 *
 * Data goes from guest memory to the descriptor and back without a copy of ours: heads and data of several runs are
 * handed to the kernel together. The memory must not change meanwhile: the checksum is over what was there before.
 */
#include "saved/internal.h"

#include "base/util.h"

#include <errno.h>
#include <unistd.h>

/* Runs written by one writev(2), and after how many bytes it is called: while they are still in the CPU's cache. */
#define BATCH_RUNS  64
#define BATCH_BYTES ((uint64_t)256 << 10)
static_assert(BATCH_BYTES <= SAVED_RUN_MAX);

struct batch {
	struct saved *s;
	const char *name;
	uint8_t *data;
	unsigned runs;
	uint64_t bytes;
	struct iovec iov[2 * BATCH_RUNS];
	uint8_t heads[BATCH_RUNS][SAVED_RUN_BYTES];
};

static bool page_is_zero(const uint8_t *page, uint64_t len)
{
	static const uint8_t zero[PAGE_BYTES];

	return memcmp(page, zero, (size_t)len) == 0;
}

static struct error *flush(struct batch *b)
{
	TRY(saved_write(b->s, b->iov, 2 * b->runs, b->name));
	b->runs = 0;
	b->bytes = 0;
	return NULL;
}

static struct error *add_run(struct batch *b, uint64_t offset, uint64_t len)
{
	uint8_t *head = b->heads[b->runs];
	struct iovec *iov = &b->iov[2 * (size_t)b->runs];

	put_le64(head + SAVED_RUN_OFFSET, offset);
	put_le64(head + SAVED_RUN_LENGTH, len);
	saved_sum(b->s, head, SAVED_RUN_CHECK);
	put_le32(head + SAVED_RUN_CHECK, b->s->sum);
	saved_sum(b->s, b->data + offset, (size_t)len);
	iov[0] = (struct iovec){head, SAVED_RUN_BYTES};
	iov[1] = (struct iovec){b->data + offset, (size_t)len};
	b->runs++;
	b->bytes += len;
	return b->runs == BATCH_RUNS || b->bytes >= BATCH_BYTES ? flush(b) : NULL;
}

/*
 * The file behind the memory: its holes are skipped unread, for reading a hole of a memfd fills it with a page. No file
 * (fd -1), or one that cannot tell, is all data.
 */
struct backing {
	int fd;
	off_t start;       /* where the section begins in the file */
	uint64_t data_end; /* up to here, counted from `start`, it is known to be data */
};

/* From where on there may be data: @at, or the end of the hole that @at lies in. */
static uint64_t next_data(struct backing *file, uint64_t at, uint64_t len)
{
	if (file->fd < 0 || at < file->data_end)
		return at;
	off_t data = lseek(file->fd, file->start + (off_t)at, SEEK_DATA);
	if (data < 0 && errno == ENXIO)
		return len;
	off_t hole = data < 0 ? -1 : lseek(file->fd, data, SEEK_HOLE);
	if (hole < 0) {
		file->fd = -1;
		return at;
	}
	file->data_end = (uint64_t)(hole - file->start);
	return MIN(MAX(at, align_down((uint64_t)(data - file->start), PAGE_BYTES)), len);
}

static struct error *save_bulk(struct saved *s, const char *name, void *data, uint64_t len, struct backing file)
{
	struct batch b = {.s = s, .name = name, .data = data};
	uint8_t bytes[SAVED_HEAD_BYTES];
	struct iovec iov = {bytes, sizeof(bytes)};

	saved_head_make(s, SAVED_TAG_BULK, name, len, 0, bytes);
	TRY(saved_write(s, &iov, 1, name));
	for (uint64_t at = 0; at < len;) {
		uint64_t run = 0;
		at = next_data(&file, at, len);
		/* A run ends where a hole begins, which is not looked at to find that out. */
		uint64_t limit = file.fd < 0 ? len : MIN(len, align_up(file.data_end, PAGE_BYTES));
		while (at + run < limit && b.bytes + run < BATCH_BYTES) {
			uint64_t page = MIN(PAGE_BYTES, len - at - run);
			if (page_is_zero(b.data + at + run, page))
				break;
			run += page;
		}
		if (run > 0)
			TRY(add_run(&b, at, run));
		else
			run = MIN(PAGE_BYTES, len - at); /* a zero page, or the end */
		at += run;
	}
	TRY(add_run(&b, len, 0));
	return flush(&b);
}

/* A run starts on a page behind the one before it, and ends on a page or with the section. */
static bool run_ok(uint64_t offset, uint64_t len, uint64_t end_of_last, uint64_t total)
{
	if (len == 0)
		return offset == total;
	return len <= SAVED_RUN_MAX && offset >= end_of_last && range_inside(offset, len, total) &&
	       is_aligned(offset, PAGE_BYTES) && (is_aligned(len, PAGE_BYTES) || offset + len == total);
}

static struct error *load_bulk(struct saved *s, const char *name, uint8_t *data, uint64_t total)
{
	uint8_t bytes[SAVED_RUN_BYTES];
	struct saved_head head;
	uint64_t end = 0;

	TRY(saved_head_expect(s, SAVED_TAG_BULK, name, &head));
	if (head.length != total || head.value != 0)
		return error_hint(error_new(0, "the stream has %llu bytes of it, this machine %llu",
					    (unsigned long long)head.length, (unsigned long long)total),
				  "load it into a machine with as much memory as the one that was saved");
	struct iovec first = {bytes, sizeof(bytes)};
	TRY(saved_read(s, &first, 1, "it"));
	for (;;) {
		saved_sum(s, bytes, SAVED_RUN_CHECK);
		if (!saved_check(s, bytes + SAVED_RUN_CHECK))
			return saved_damaged(s, "it");
		uint64_t offset = get_le64(bytes + SAVED_RUN_OFFSET), len = get_le64(bytes + SAVED_RUN_LENGTH);
		if (!run_ok(offset, len, end, total))
			return error_new(0, "a run of %llu bytes at %llu is outside of it, or out of order",
					 (unsigned long long)len, (unsigned long long)offset);
		if (len == 0)
			return NULL;
		/* Behind every run there is another head, if only the closing one: both come in one read. */
		struct iovec iov[] = {{data + offset, (size_t)len}, {bytes, sizeof(bytes)}};
		TRY(saved_read(s, iov, ARRAY_SIZE(iov), "it"));
		saved_sum(s, data + offset, (size_t)len);
		end = offset + len;
	}
}

static struct error *bulk(struct saved *s, const char *name, void *data, uint64_t len, struct backing file)
{
	TRY(saved_begin(s, name));
	return s->loading ? load_bulk(s, name, data, len) : save_bulk(s, name, data, len, file);
}

struct error *saved_bulk_file(struct saved *s, const char *name, void *data, uint64_t len, int fd, uint64_t offset)
{
	struct backing file = {.fd = fd, .start = (off_t)offset};

	return error_wrap(saved_end(s, bulk(s, name, data, len, file)), "%s bulk section '%s'",
			  s->loading ? "load" : "save", name);
}

struct error *saved_bulk(struct saved *s, const char *name, void *data, uint64_t len)
{
	return saved_bulk_file(s, name, data, len, -1, 0);
}
