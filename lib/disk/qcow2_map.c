/*
 * qcow2, requests: where a range is, by pages of L2 tables that are loaded when they are asked for; see qcow2.h.
 * Touches the image's file through the request's disk_io, and the state in struct qcow2, which all queues share.
 *
 * A page has one frame in which it can be; looking up takes no lock. What a request must wait for (a page that another
 * loads, a slot) is short, so all that wait do so in one list. Nothing here ever changes on the medium, so a look-up
 * that was right stays right.
 */
#include "disk/qcow2.h"

#include "base/log.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>

/* --- what an entry says --- */

static uint64_t cluster_bytes(const struct qcow2 *q)
{
	return 1ull << q->bits;
}

/*
 * Where unit @sub of the cluster of @entry is. EXTENT_SLOW: compressed, cut by the file's end, or not valid.
 * @bits: of an extended entry, one for each subcluster that is allocated and, above them, one for each of zeroes.
 */
static enum extent_kind unit_kind(const struct image *image, uint64_t entry, uint64_t bits, uint64_t sub, uint64_t *at)
{
	const struct qcow2 *q = image->state;
	uint64_t cluster = entry & QCOW2_OFFSET;
	bool here = q->extended ? bits >> sub & 1 : cluster != 0;
	bool zero = q->extended ? bits >> (QCOW2_SUBCLUSTERS + sub) & 1 : entry & QCOW2_ZERO;

	if (entry & QCOW2_COMPRESSED || !is_aligned(cluster, cluster_bytes(q)))
		return EXTENT_SLOW;
	if (zero)
		return q->version < 3 || (q->extended && here) ? EXTENT_SLOW : EXTENT_ZERO;
	if (!here)
		return EXTENT_PARENT;
	*at = cluster + sub * q->unit;
	return cluster != 0 && range_inside(*at, q->unit, image->file.size) ? EXTENT_FILE : EXTENT_SLOW;
}

/* --- look-up --- */

static bool holds(const struct qcow2_frame *frame, uint64_t page, uint64_t *tag)
{
	*tag = atomic_load_explicit(&frame->tag, memory_order_acquire);
	return *tag != QCOW2_NO_PAGE && (*tag & ((1ull << 40) - 1)) == page;
}

static struct qcow2_frame *frame_of(const struct qcow2 *q, uint64_t page)
{
	return &q->frames[page & (q->frame_count - 1)];
}

static uint64_t *frame_words(const struct qcow2 *q, const struct qcow2_frame *frame)
{
	return q->pages + (size_t)(frame - q->frames) * (q->page_bytes / sizeof(uint64_t));
}

/* The entry of the @n-th cluster of a page; @bits is set when entries have some. */
static uint64_t entry_of(const struct qcow2 *q, const uint64_t *words, uint64_t n, uint64_t *bits)
{
	if (q->extended) {
		*bits = be64toh(__atomic_load_n(&words[n * 2 + 1], __ATOMIC_RELAXED));
		n *= 2;
	}
	return be64toh(__atomic_load_n(&words[n], __ATOMIC_RELAXED));
}

/* The extent that begins at @offset in a page's words, @e->len at most. */
static void map_page(const struct image *image, const uint64_t *words, uint64_t offset, struct extent *e)
{
	const struct qcow2 *q = image->state;
	uint64_t subs = q->extended ? QCOW2_SUBCLUSTERS : 1, most = q->page_entries * subs, bits = 0, at = 0;
	uint64_t n = offset / q->unit & (most - 1), within = offset & (q->unit - 1);
	uint64_t entry = entry_of(q, words, n / subs, &bits), len = q->unit - within;

	e->kind = unit_kind(image, entry, bits, n & (subs - 1), &e->offset);
	if (entry & QCOW2_COMPRESSED)
		len = cluster_bytes(q) - (offset & (cluster_bytes(q) - 1));
	for (uint64_t end = e->offset + q->unit; len < e->len && ++n < most && e->kind != EXTENT_SLOW; end += q->unit) {
		entry = entry_of(q, words, n / subs, &bits);
		if (unit_kind(image, entry, bits, n & (subs - 1), &at) != e->kind ||
		    (e->kind == EXTENT_FILE && at != end))
			break;
		len += q->unit;
	}
	e->len = MIN(e->len, len);
	e->offset += within;
}

void qcow2_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e)
{
	const struct qcow2 *q = image->state;
	uint64_t cluster = offset >> q->bits, page = cluster / q->page_entries, tag;
	uint64_t table = cluster_bytes(q) << q->l2_bits; /* bytes that one speaks of */
	struct qcow2_frame *frame = frame_of(q, page);

	(void)type; /* nothing else than reads come here */
	if ((q->l1[cluster >> q->l2_bits] & QCOW2_OFFSET) == 0) {
		e->kind = EXTENT_PARENT;
		e->len = MIN(e->len, table - (offset & (table - 1)));
		return;
	}
	if (holds(frame, page, &tag)) {
		struct extent found = {.len = e->len};
		map_page(image, frame_words(q, frame), offset, &found);
		atomic_thread_fence(memory_order_acquire);
		if (atomic_load_explicit(&frame->tag, memory_order_relaxed) == tag) {
			*e = found;
			return;
		}
	}
	e->kind = EXTENT_SLOW;
}

/* --- waiting, reading, failing --- */

bool qcow2_wait(struct qcow2 *q, struct disk_request *r)
{
	task_park(&r->task);
	r->next = q->waiting;
	q->waiting = r;
	pthread_mutex_unlock(&q->lock);
	return false;
}

void qcow2_unlock_and_wake(struct qcow2 *q)
{
	struct disk_request *list = q->waiting, *r;

	q->waiting = NULL;
	pthread_mutex_unlock(&q->lock);
	while ((r = list)) {
		list = r->next;
		request_resume(r);
	}
}

static void fetch_rest(struct disk_request *r)
{
	struct iovec v = {(void *)(uintptr_t)r->place, r->piece};

	r->queue->io->readv(r->queue->io, &r->task.op, r->queue->files[r->level], &v, 1, r->at);
}

bool qcow2_fetch(struct disk_request *r, void *to, uint64_t offset, size_t len, bool (*step)(struct disk_task *, int))
{
	r->place = (uintptr_t)to;
	r->at = offset;
	r->piece = len;
	r->task.step = step;
	fetch_rest(r);
	return true;
}

enum transferred qcow2_fetched(struct disk_request *r, int *res)
{
	if ((*res == -EAGAIN || *res == -EINTR) && r->retries++ < RETRIES_MAX) {
		fetch_rest(r);
		return TRANSFERRING;
	}
	if (*res <= 0) {
		/* What is asked for was inside the file: it was cut off below us. */
		*res = *res < 0 ? *res : -EIO;
		return TRANSFER_FAILED;
	}
	uint64_t len = MIN((uint64_t)*res, r->piece);
	r->retries = 0;
	r->place += len;
	r->at += len;
	r->piece -= len;
	if (r->piece == 0)
		return TRANSFERRED;
	fetch_rest(r);
	return TRANSFERRING;
}

bool qcow2_damaged(struct disk_request *r, const char *what, uint64_t offset)
{
	if (!atomic_flag_test_and_set(&qcow2_of(r)->told))
		log_err("%s: %s at offset %llu: what it holds cannot be read (other damage of this image is not told)",
			qcow2_image(r)->name, what, (unsigned long long)offset);
	return request_end(r, -EIO);
}

/* --- pages --- */

static bool loaded(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct qcow2 *q = qcow2_of(r);
	uint64_t page = ((r->offset + r->finished) >> q->bits) / q->page_entries;
	struct qcow2_frame *frame = frame_of(q, page);
	enum transferred what = qcow2_fetched(r, &res);

	if (what == TRANSFERRING)
		return true;
	pthread_mutex_lock(&q->lock);
	frame->loading = false;
	if (what == TRANSFERRED) {
		q->generation = (q->generation + 1) & 0x7fffff;
		atomic_store_explicit(&frame->tag, q->generation << 40 | page, memory_order_release);
	}
	qcow2_unlock_and_wake(q);
	return what == TRANSFERRED ? request_again(r) : request_end(r, res);
}

/* The lock, which it drops. */
static bool load(struct qcow2 *q, struct disk_request *r, uint64_t page, struct qcow2_frame *frame)
{
	uint64_t cluster = page * q->page_entries, index = cluster >> q->l2_bits;
	uint64_t table = q->l1[index] & QCOW2_OFFSET;
	uint64_t at = table + (page & ((1ull << q->l2_bits) / q->page_entries - 1)) * q->page_bytes;

	if (!is_aligned(table, cluster_bytes(q)) || !range_inside(at, q->page_bytes, qcow2_image(r)->file.size)) {
		pthread_mutex_unlock(&q->lock);
		return qcow2_damaged(r, "the L1 table places an L2 table where none can be: its entry",
				     q->l1_at + index * sizeof(uint64_t));
	}
	frame->loading = true;
	atomic_store_explicit(&frame->tag, QCOW2_NO_PAGE, memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
	pthread_mutex_unlock(&q->lock);
	return qcow2_fetch(r, frame_words(q, frame), at, q->page_bytes, loaded);
}

/* Where the entry of a cluster is in the file. */
static uint64_t entry_at(const struct qcow2 *q, uint64_t cluster)
{
	uint64_t n = cluster & ((1ull << q->l2_bits) - 1);

	return (q->l1[cluster >> q->l2_bits] & QCOW2_OFFSET) + n * (q->extended ? 16 : 8);
}

/* Begins anew after every wait: looks what is missing, and does it. */
static bool look(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct qcow2 *q = qcow2_of(r);
	uint64_t offset = r->offset + r->finished, cluster = offset >> q->bits, page = cluster / q->page_entries;
	uint64_t sub = (offset & (cluster_bytes(q) - 1)) / q->unit, bits = 0, at = 0, tag;
	struct qcow2_frame *frame = frame_of(q, page);

	(void)res;
	pthread_mutex_lock(&q->lock);
	if (!holds(frame, page, &tag))
		return frame->loading ? qcow2_wait(q, r) : load(q, r, page, frame);
	uint64_t entry = entry_of(q, frame_words(q, frame), cluster % q->page_entries, &bits);
	uint64_t begin = entry & QCOW2_OFFSET, whole = entry & QCOW2_COMPRESSED ? cluster_bytes(q) : q->unit;
	if (unit_kind(qcow2_image(r), entry, bits, sub, &at) != EXTENT_SLOW) {
		/* The page came while this waited. */
		pthread_mutex_unlock(&q->lock);
		return request_again(r);
	}
	r->from = MIN(r->from, whole - (offset & (whole - 1)));
	/* A valid one that is not compressed is one that the file's end cuts. */
	if (entry & QCOW2_COMPRESSED || (at != 0 && begin != 0 && begin < qcow2_image(r)->file.size))
		return qcow2_cluster(r, entry);
	pthread_mutex_unlock(&q->lock);
	return qcow2_damaged(r, "an entry of an L2 table that is not valid", entry_at(q, cluster));
}

bool qcow2_slow(struct image *image, struct disk_request *r, const struct extent *e)
{
	r->level = (uint8_t)image->level;
	r->from = e->len;
	r->task.step = look;
	return look(&r->task, 0);
}

/* --- life --- */

struct error *qcow2_map_load(struct image *image, struct qcow2 *q)
{
	uint64_t cluster = cluster_bytes(q), pages = (image->size + cluster - 1) / cluster / q->page_entries + 1;

	q->frame_count = 1;
	while (q->frame_count < QCOW2_FRAMES_MAX && q->frame_count < pages)
		q->frame_count *= 2;
	q->l1 = calloc(q->l1_entries, sizeof(*q->l1));
	q->frames = calloc(q->frame_count, sizeof(*q->frames));
	q->pages = calloc(q->frame_count, q->page_bytes);
	if (!q->l1 || !q->frames || !q->pages)
		return error_new(ENOMEM, "%s: make room for its tables", image->name);
	for (uint32_t i = 0; i < q->frame_count; i++)
		atomic_init(&q->frames[i].tag, QCOW2_NO_PAGE);
	/* A table without its end, which was never written, is zeroes there. */
	size_t len = (size_t)MIN(q->l1_entries * sizeof(*q->l1), image->file.size - q->l1_at);
	TRY(error_wrap(io_read(image->disk->io, image->file.fd, q->l1, len, q->l1_at, "the L1 table"), "%s",
		       image->name));
	for (uint32_t i = 0; i < q->l1_entries; i++)
		q->l1[i] = be64toh(q->l1[i]);
	return NULL;
}

void qcow2_map_free(struct qcow2 *q)
{
	free(q->l1);
	free(q->frames);
	free(q->pages);
	q->l1 = q->pages = NULL;
	q->frames = NULL;
}
