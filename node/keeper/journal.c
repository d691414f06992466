/*
 * Writing the journal; see journal.h. Each write is built whole in aligned memory, written, flushed and read back.
 *
 * The order of a snapshot is what its safety rests on: the records into the area that is not active, flush; the header
 * that makes it the active one, flush. A cut before the second flush leaves the old state valid, or the new one; both
 * hold all that was acknowledged, for nothing is appended meanwhile.
 */
#include "node/keeper/internal.h"

#include "base/cleanup.h"
#include "saved/crc32c.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>

static int file_read(const struct journal_io *io, void *data, size_t len, uint64_t offset)
{
	const struct journal_file *f = (const struct journal_file *)io;

	for (size_t done = 0; done < len;) {
		ssize_t n = pread(f->fd, (uint8_t *)data + done, len - done, (off_t)(offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int file_write(const struct journal_io *io, const void *data, size_t len, uint64_t offset)
{
	const struct journal_file *f = (const struct journal_file *)io;

	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(f->fd, (const uint8_t *)data + done, len - done, (off_t)(offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int file_flush(const struct journal_io *io)
{
	return fdatasync(((const struct journal_file *)io)->fd) < 0 ? -errno : 0;
}

struct error *journal_file_init(struct journal_file *file, int fd, const char *name)
{
	struct stat st;
	uint64_t size;

	if (fstat(fd, &st) < 0)
		return error_new(errno, "find out the size of %s", name);
	size = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0)
		return error_new(errno, "find out the size of %s", name);
	if (!S_ISBLK(st.st_mode) && !S_ISREG(st.st_mode))
		return error_new(EINVAL, "%s is neither a block device nor a file", name);
	*file = (struct journal_file){
		.io = {.read = file_read, .write = file_write, .flush = file_flush, .size = size, .name = name},
		.fd = fd,
	};
	return NULL;
}

uint32_t journal_header_sum(const struct journal_header *header)
{
	struct journal_header h = *header;

	h.checksum = 0;
	return crc32c(0, &h, sizeof(h));
}

uint32_t journal_record_sum(const struct journal_record *record)
{
	struct journal_record r = *record;

	r.checksum = 0;
	return crc32c(crc32c(0, &r, sizeof(r)), record + 1, record->length);
}

/* --- payloads --- */

static size_t item_bytes(size_t len)
{
	return sizeof(struct journal_item_head) + align_up(len, 8);
}

static size_t items_bytes(const struct journal_item *items, size_t count)
{
	size_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += item_bytes(items[i].len);
	return sum;
}

static uint64_t record_bytes(size_t payload)
{
	return align_up(sizeof(struct journal_record) + payload, JOURNAL_BLOCK);
}

static uint8_t *put_item(uint8_t *at, enum journal_kind kind, const void *data, size_t len)
{
	struct journal_item_head head = {kind, (uint32_t)len};

	memcpy(at, &head, sizeof(head));
	memcpy(at + sizeof(head), data, len);
	return at + item_bytes(len);
}

static void seal(const struct journal *j, struct journal_record *r, size_t payload, uint32_t flags, unsigned changes)
{
	memcpy(r->magic, JOURNAL_RECORD_MAGIC, sizeof(r->magic));
	r->length = (uint32_t)payload;
	r->sequence = j->info.sequence + 1;
	r->generation = j->info.generation;
	r->epoch = j->epoch;
	memcpy(r->writer, j->writer, sizeof(r->writer));
	r->flags = flags;
	r->changes = changes;
	r->checksum = journal_record_sum(r);
}

/* --- the medium --- */

/* Zeroes that can be written as they are; NULL when memory is out. */
static uint8_t *new_image(size_t len)
{
	uint8_t *image = aligned_alloc(JOURNAL_BLOCK, len);

	if (image)
		memset(image, 0, len);
	return image;
}

static struct error *no_memory(const struct journal *j)
{
	return error_new(ENOMEM, "write to the journal on %s", j->io->name);
}

/* Some sticks acknowledge what they lost: what was flushed must read back. */
static struct error *read_back(const struct journal *j, const uint8_t *image, size_t len, uint64_t offset)
{
	size_t step = MIN(len, (size_t)MIB);
	cleanup_free uint8_t *back = aligned_alloc(JOURNAL_BLOCK, step);

	if (!back)
		return error_new(ENOMEM, "read back from %s", j->io->name);
	for (size_t at = 0; at < len; at += step) {
		size_t n = MIN(step, len - at);
		unsigned long long place = offset + at;
		int res = j->io->read(j->io, back, n, place);
		if (res < 0)
			return error_new(-res, "read back from %s at %llu", j->io->name, place);
		if (memcmp(back, image + at, n) != 0)
			return error_hint(error_new(EIO, "%s loses what is written to it, at %llu", j->io->name, place),
					  "replace the stick");
	}
	return NULL;
}

/* Writes in one go, flushes, reads back. */
static struct error *put(struct journal *j, const uint8_t *image, size_t len, uint64_t offset)
{
	int res = j->io->write(j->io, image, len, offset);

	if (res < 0)
		return error_new(-res, "write to %s at %llu", j->io->name, (unsigned long long)offset);
	j->info.written += len;
	res = j->io->flush(j->io);
	if (res < 0)
		return error_new(-res, "flush %s", j->io->name);
	j->info.flushes++;
	return read_back(j, image, len, offset);
}

static struct error *refusal(const struct journal *j)
{
	if (j->failed)
		return error_new(EIO, "write to %s: it failed before", j->io->name);
	if (j->info.state == JOURNAL_DAMAGED && !j->accepted_loss)
		return error_hint(
			error_new(EROFS, "write to %s: its journal is damaged (%s)", j->io->name, j->info.damage),
			"nothing is overwritten until a person accepts the loss");
	return NULL;
}

static struct error *random_bytes(void *data, size_t len)
{
	return getrandom(data, len, 0) == (ssize_t)len ? NULL : error_new(errno, "draw random numbers");
}

/* Makes what @j speaks of the truth. Of an unfinished format nobody has seen the stick's id: it gets one. */
static struct error *put_header(struct journal *j)
{
	static const uint8_t none[sizeof(j->info.stick)];
	cleanup_free uint8_t *image = NULL;

	if (memcmp(j->info.stick, none, sizeof(none)) == 0)
		TRY(random_bytes(j->info.stick, sizeof(j->info.stick)));
	image = new_image(JOURNAL_BLOCK);
	if (!image)
		return no_memory(j);
	struct journal_header *h = (struct journal_header *)image;
	memcpy(h->magic, JOURNAL_HEADER_MAGIC, sizeof(h->magic));
	h->version = JOURNAL_VERSION;
	h->generation = j->info.generation;
	memcpy(h->stick, j->info.stick, sizeof(h->stick));
	memcpy(h->writer, j->writer, sizeof(h->writer));
	h->medium_size = j->io->size;
	h->area_size = j->area_size;
	h->active = j->area;
	h->epoch = j->epoch;
	h->first_sequence = j->first_sequence;
	h->checksum = journal_header_sum(h);
	return put(j, image, JOURNAL_BLOCK, JOURNAL_SLOT(h->generation % JOURNAL_SLOTS));
}

static struct error *finish_flip(struct journal *j)
{
	if (!j->header_due)
		return NULL;
	j->failed = true;
	TRY(error_wrap(put_header(j), "finish a snapshot"));
	j->header_due = j->failed = false;
	return NULL;
}

/* --- what others call --- */

struct error *journal_open(struct journal **out, const struct journal_io *io, const uint8_t writer[16],
			   journal_take_fn *take, void *arg)
{
	cleanup_free struct journal *j = calloc(1, sizeof(*j));

	if (!j)
		return error_new(ENOMEM, "open the journal on %s", io->name);
	if (io->size < JOURNAL_MIN)
		return error_new(EINVAL, "open the journal on %s: it has %llu bytes, too few for one", io->name,
				 (unsigned long long)io->size);
	j->io = io;
	memcpy(j->writer, writer, sizeof(j->writer));
	j->area_size = journal_area_size(io->size);
	TRY(error_wrap(journal_recover(j, take, arg), "open the journal on %s", io->name));
	*out = steal_ptr(&j);
	return NULL;
}

void journal_close(struct journal *j)
{
	free(j);
}

void journal_info(const struct journal *j, struct journal_info *info)
{
	*info = j->info;
}

void journal_accept_loss(struct journal *j)
{
	j->accepted_loss = true;
}

bool journal_fits(const struct journal *j, size_t len, size_t count)
{
	/* Each item may be padded. */
	size_t payload = len + count * item_bytes(7);

	return j->info.state == JOURNAL_WHOLE && len <= JOURNAL_PAYLOAD_MAX && payload <= JOURNAL_PAYLOAD_MAX &&
	       record_bytes(payload) <= j->log_end - j->end;
}

struct error *journal_append(struct journal *j, const struct journal_item *items, size_t count, unsigned changes)
{
	size_t payload = items_bytes(items, count), len = record_bytes(payload);
	cleanup_free uint8_t *image = NULL;

	TRY(refusal(j));
	if (j->info.state != JOURNAL_WHOLE || payload > JOURNAL_PAYLOAD_MAX || len > j->log_end - j->end)
		return error_new(ENOSPC, "append to the journal on %s: a snapshot is due", j->io->name);
	TRY(finish_flip(j));
	image = new_image(len);
	if (!image)
		return no_memory(j);
	uint8_t *at = image + sizeof(struct journal_record);
	for (size_t i = 0; i < count; i++)
		at = put_item(at, items[i].kind, items[i].data, items[i].len);
	seal(j, (struct journal_record *)image, payload, 0, changes);
	struct error *err = put(j, image, len, journal_area(j->io->size, j->area) + j->end);
	if (err) {
		j->failed = true;
		return err;
	}
	j->info.sequence++;
	j->info.changes += changes;
	j->info.torn = 0;
	memcpy(j->info.writer, j->writer, sizeof(j->writer));
	j->end += len;
	return NULL;
}

/* Puts the items into records, split where one is full; returns where they end. @image has room for them. */
static size_t build_snapshot(struct journal *j, uint8_t *image, const struct journal_item *items, size_t count)
{
	size_t end = 0, item = 0, done = 0;

	do {
		struct journal_record *r = (struct journal_record *)(image + end);
		uint8_t *from = (uint8_t *)(r + 1), *at = from;
		while (item < count) {
			size_t room = JOURNAL_PAYLOAD_MAX - (size_t)(at - from), left = items[item].len - done;
			if (room < item_bytes(1))
				break;
			size_t piece = MIN(left, room - sizeof(struct journal_item_head));
			/* Only the database comes in pieces. */
			if (piece < left && items[item].kind != JOURNAL_DATABASE)
				break;
			at = put_item(at, items[item].kind, (const uint8_t *)items[item].data + done, piece);
			done += piece;
			if (done == items[item].len) {
				item++;
				done = 0;
			}
		}
		size_t payload = (size_t)(at - from);
		seal(j, r, payload, JOURNAL_SNAPSHOT | (item == count ? JOURNAL_SNAPSHOT_END : 0), 0);
		j->info.sequence++;
		end += record_bytes(payload);
	} while (item < count);
	return end;
}

static struct error *write_snapshot(struct journal *j, const struct journal_item *items, size_t count, uint8_t *image)
{
	/* From here on @j speaks of the new area: a failure makes it useless anyhow. */
	j->failed = true;
	TRY(random_bytes(&j->epoch, sizeof(j->epoch)));
	j->area = j->info.state == JOURNAL_EMPTY ? 0 : 1 - j->area;
	j->first_sequence = j->info.sequence + 1;
	j->info.generation++;
	j->end = build_snapshot(j, image, items, count);
	TRY(put(j, image, j->end, journal_area(j->io->size, j->area)));
	TRY(put_header(j));
	j->log_end = journal_log_end(j->area_size, j->end);
	j->info.state = JOURNAL_WHOLE;
	j->info.changes = j->info.torn = 0;
	j->info.damage[0] = '\0';
	memcpy(j->info.writer, j->writer, sizeof(j->writer));
	j->failed = false;
	return NULL;
}

struct error *journal_snapshot(struct journal *j, const struct journal_item *items, size_t count)
{
	cleanup_free uint8_t *image = NULL;
	/* Every record beyond the first costs its header, padding, and the rest of an item that did not fit. */
	size_t bytes = items_bytes(items, count);
	size_t len = align_up(bytes, JOURNAL_BLOCK) + (bytes / (MIB / 2) + 1) * 2 * JOURNAL_BLOCK;

	TRY(refusal(j));
	for (size_t i = 0; i < count; i++)
		if (items[i].kind != JOURNAL_DATABASE && items[i].len > JOURNAL_PAYLOAD_MAX / 2)
			return error_new(EFBIG, "write a snapshot to %s: an item of %zu bytes", j->io->name,
					 items[i].len);
	if (len > j->area_size / 2)
		return error_hint(error_new(EFBIG, "write a snapshot of %zu bytes to %s, which takes %llu", bytes,
					    j->io->name, (unsigned long long)(j->area_size / 2)),
				  "the state is too large for this stick");
	TRY(finish_flip(j));
	image = new_image(len);
	if (!image)
		return no_memory(j);
	return error_wrap(write_snapshot(j, items, count, image), "write a snapshot");
}
