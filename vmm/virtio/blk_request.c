/*
 * The path of a block request; see blk.h. Runs on the queue's I/O thread. Touches guest memory through the queue's
 * chains, and the disk through the thread's ring.
 *
 *     take() -> begin() -> step_*() -> [io_uring] -> completed() -> step_*() again, or succeed() -> finish()
 *                                                              \--> fail() -> finish(), or hold()
 *
 * A request that needs another step (a short transfer, a bounce buffer smaller than it) walks its chain again. The
 * guest may have changed it since; it is then as well bounded as the first time, and what no longer fits breaks the
 * queue. That is why a slot needs no list of buffers, and a held request no more than its head.
 */
#include "vmm/virtio/blk_internal.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <string.h>

/* EAGAIN and EINTR of one request: io_uring answers both itself nearly always; a file system that insists is failing.
 */
#define RETRIES_MAX 16

/* Zeroes for file systems that cannot make them: up to 1 MiB a step. */
#define ZERO_BYTES 4096u
#define ZERO_COUNT 256u

static const uint8_t zeroes[ZERO_BYTES] __attribute__((aligned(4096)));

static void completed(struct io_op *op, int res);
static void step(struct blk_request *r);

/* --- slots --- */

static uint16_t number_of(const struct blk_request *r)
{
	return (uint16_t)(r - r->queue->request);
}

static struct blk_request *get_request(struct blk_queue *q)
{
	struct blk_request *r = &q->request[q->free];

	q->free = r->next;
	q->busy++;
	*r = (struct blk_request){.op.done = completed, .queue = q, .next = NO_REQUEST};
	return r;
}

/* Lets the next request have the bounce buffer. */
static void leave_bounce(struct blk_request *r)
{
	struct blk_queue *q = r->queue;

	if (!r->bounced)
		return;
	r->bounced = false;
	q->bounce_user = NO_REQUEST;
	/* One that waited may turn out not to need it, because the guest changed its chain. */
	while (q->bounce_user == NO_REQUEST && q->bounce_first != NO_REQUEST) {
		struct blk_request *next = &q->request[q->bounce_first];
		q->bounce_first = next->next;
		step(next);
	}
}

static void put_request(struct blk_request *r)
{
	struct blk_queue *q = r->queue;

	leave_bounce(r);
	r->next = q->free;
	q->free = number_of(r);
	q->busy--;
	iothread_at_end(q->queue->thread, &q->batch);
}

/* --- ends --- */

/* One writer, so no atomic addition is needed: only that a reader sees whole numbers. */
static void add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static void count(const struct blk_request *r, uint8_t status)
{
	struct blk_stats *stats = &r->queue->stats;

	if (status != VIRTIO_BLK_S_OK) {
		add(&stats->errors, 1);
		return;
	}
	switch (r->type) {
	case VIRTIO_BLK_T_IN:
		add(&stats->reads, 1);
		add(&stats->read_bytes, r->done);
		break;
	case VIRTIO_BLK_T_OUT:
		add(&stats->writes, 1);
		add(&stats->written_bytes, r->done);
		break;
	case VIRTIO_BLK_T_FLUSH:
		add(&stats->flushes, 1);
		break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		add(&stats->discards, 1);
		break;
	default:
		break;
	}
}

/* used.len counts what was written from the start of the writable part on (2.7.8.2): the status byte is at its end. */
static void finish(struct blk_request *r, uint8_t status)
{
	uint32_t data = r->writable - 1;
	uint32_t written = r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_GET_ID ? r->done : 0;

	*r->status = status;
	count(r, status);
	virtqueue_push(&r->queue->queue->ring, r->head, written == data ? data + 1 : written);
	put_request(r);
}

static void broken(struct blk_queue *q)
{
	virtio_broken(q->queue);
}

static void hold(struct blk_request *r, int errnum)
{
	struct blk_queue *q = r->queue;
	struct blk *blk = q->blk;

	q->held[q->held_count++] = r->head;
	put_request(r);
	if (!atomic_exchange(&blk->halted, true) && blk->config.paused)
		blk->config.paused(blk->config.paused_arg, errnum);
}

static void fail(struct blk_request *r, int errnum)
{
	struct blk *blk = r->queue->blk;
	bool full = errnum == ENOSPC || errnum == EDQUOT;
	bool pause = (full ? blk->config.on_full : blk->config.on_error) == BLK_PAUSE;

	/* Once: the guest, or the pause, tells the rest. */
	if (!atomic_flag_test_and_set(&blk->complained))
		log_warn("%s: a request of type %u at byte %llu: %s; %s", blk->config.name, r->type,
			 (unsigned long long)(r->offset + r->done), strerror(errnum),
			 pause ? "held until the VM resumes" : "the guest is told");
	if (pause)
		hold(r, errnum);
	else
		finish(r, VIRTIO_BLK_S_IOERR);
}

static bool modifies(uint32_t type)
{
	return type == VIRTIO_BLK_T_OUT || type == VIRTIO_BLK_T_DISCARD || type == VIRTIO_BLK_T_WRITE_ZEROES;
}

/* 5.2.6.2: without a way to flush, or with the cache turned off, what is acknowledged is durable. */
static bool write_through(struct blk *blk)
{
	if (virtio_has(&blk->device, VIRTIO_BLK_F_CONFIG_WCE))
		return !atomic_load_explicit(&blk->writeback, memory_order_relaxed);
	return !virtio_has(&blk->device, VIRTIO_BLK_F_FLUSH);
}

static void sync_disk(struct blk_request *r)
{
	r->syncing = true;
	iothread_fdatasync(r->queue->queue->thread, &r->op, r->queue->file);
}

static void succeed(struct blk_request *r)
{
	if (!r->syncing && modifies(r->type) && write_through(r->queue->blk))
		sync_disk(r);
	else
		finish(r, VIRTIO_BLK_S_OK);
}

/* --- steps --- */

/* The data of @r's chain that is not yet transferred. False when the chain is no longer what it was. */
static bool rest_of(struct blk_request *r, struct virtqueue_chain *chain, struct iov *data)
{
	if (virtqueue_walk(&r->queue->queue->ring, r->head, chain) != VIRTQUEUE_CHAIN)
		return false;
	bool in = r->type == VIRTIO_BLK_T_IN;
	uint32_t edge = in ? 1 : sizeof(struct virtio_blk_outhdr);
	uint32_t bytes = in ? chain->writable_bytes : chain->readable_bytes;
	if (bytes < edge || bytes - edge != r->len) {
		virtqueue_break(&r->queue->queue->ring, "a chain changed while it was in use");
		return false;
	}
	*data = in ? (struct iov){chain->iov + chain->readable, chain->writable}
		   : (struct iov){chain->iov, chain->readable};
	if (!in)
		iov_skip(data, edge);
	iov_limit(data, r->len);
	iov_skip(data, r->done);
	return true;
}

/* True when direct I/O takes the buffers as they are. */
static bool aligned(const struct disk_file *file, const struct iov *data)
{
	if (file->memory_align == 1)
		return true;
	for (unsigned i = 0; i < data->count; i++)
		if (!is_aligned((uintptr_t)data->v[i].iov_base, file->memory_align) ||
		    !is_aligned(data->v[i].iov_len, file->block_size))
			return false;
	return true;
}

static void transfer(struct blk_request *r, const struct iov *data)
{
	struct iothread *thread = r->queue->queue->thread;
	uint64_t offset = r->offset + r->done;

	if (r->type == VIRTIO_BLK_T_IN)
		iothread_readv(thread, &r->op, r->queue->file, data->v, data->count, offset);
	else
		iothread_writev(thread, &r->op, r->queue->file, data->v, data->count, offset);
}

/* Takes the bounce buffer, or queues for it. */
static bool enter_bounce(struct blk_request *r)
{
	struct blk_queue *q = r->queue;

	if (r->bounced)
		return true;
	if (q->bounce_user == NO_REQUEST) {
		q->bounce_user = number_of(r);
		r->bounced = true;
		return true;
	}
	r->next = NO_REQUEST;
	if (q->bounce_first == NO_REQUEST)
		q->bounce_first = number_of(r);
	else
		q->request[q->bounce_last].next = number_of(r);
	q->bounce_last = number_of(r);
	return false;
}

static void transfer_bounced(struct blk_request *r, const struct iov *data)
{
	struct iovec piece = {r->queue->bounce, MIN(r->len - r->done, BOUNCE_BYTES)};

	if (!enter_bounce(r))
		return;
	if (r->type == VIRTIO_BLK_T_OUT)
		iov_copy(data, piece.iov_base, piece.iov_len, IOV_FROM_GUEST);
	transfer(r, &(struct iov){&piece, 1});
}

static void step_data(struct blk_request *r, const struct iov *data)
{
	if (!r->bounced && aligned(&r->queue->blk->file, data))
		transfer(r, data);
	else
		transfer_bounced(r, data);
}

static void step_range(struct blk_request *r)
{
	struct blk_queue *q = r->queue;
	int mode = FALLOC_FL_KEEP_SIZE;

	if (r->type == VIRTIO_BLK_T_DISCARD || r->unmap)
		mode |= FALLOC_FL_PUNCH_HOLE;
	else
		mode |= FALLOC_FL_ZERO_RANGE;
	iothread_fallocate(q->queue->thread, &r->op, q->file, mode, r->offset, r->len);
}

static void step_zeroes(struct blk_request *r)
{
	struct iovec v[ZERO_COUNT];
	uint32_t left = MIN(r->len - r->done, ZERO_BYTES * ZERO_COUNT);
	unsigned n = 0;

	for (; left > 0; n++) {
		v[n] = (struct iovec){(void *)(uintptr_t)zeroes, MIN(left, ZERO_BYTES)};
		left -= (uint32_t)v[n].iov_len;
	}
	iothread_writev(r->queue->queue->thread, &r->op, r->queue->file, v, n, r->offset + r->done);
}

/* The next step of a request that has begun. */
static void step(struct blk_request *r)
{
	struct virtqueue_chain chain;
	struct iov data;

	if (r->syncing) {
		sync_disk(r);
	} else if (r->plain) {
		step_zeroes(r);
	} else if (r->type == VIRTIO_BLK_T_DISCARD || r->type == VIRTIO_BLK_T_WRITE_ZEROES) {
		step_range(r);
	} else if (rest_of(r, &chain, &data)) {
		step_data(r, &data);
	} else {
		broken(r->queue);
		put_request(r);
	}
}

/* --- completions --- */

static void range_completed(struct blk_request *r, int res)
{
	if (res == -EOPNOTSUPP && r->type == VIRTIO_BLK_T_WRITE_ZEROES) {
		r->plain = true;
		step(r);
	} else if (res == 0 || res == -EOPNOTSUPP) {
		/* A discard is a hint: a host that cannot need not (5.2.6.2). */
		r->done = r->len;
		succeed(r);
	} else {
		fail(r, -res);
	}
}

/* The bounce buffer holds @len bytes that were read: to the guest with them. */
static bool unload_bounce(struct blk_request *r, uint32_t len)
{
	struct virtqueue_chain chain;
	struct iov data;

	if (!r->bounced || r->type != VIRTIO_BLK_T_IN)
		return true;
	if (!rest_of(r, &chain, &data)) {
		broken(r->queue);
		put_request(r);
		return false;
	}
	iov_copy(&data, r->queue->bounce, len, IOV_TO_GUEST);
	return true;
}

static void data_completed(struct blk_request *r, int res)
{
	const struct disk_file *file = &r->queue->blk->file;
	uint32_t len = res < 0 ? 0 : (uint32_t)res;

	/* Direct I/O goes on at a block: what lies beyond is transferred again. */
	if (len < r->len - r->done && file->memory_align > 1)
		len = (uint32_t)align_down(len, file->block_size);
	if (len == 0) {
		/* Nothing more to read: the file was cut off below us. Nothing more is taken: as when it is full. */
		fail(r, res < 0 ? -res : r->type == VIRTIO_BLK_T_IN ? EIO : ENOSPC);
		return;
	}
	if (!unload_bounce(r, len))
		return;
	r->done += len;
	if (r->done < r->len)
		step(r);
	else
		succeed(r);
}

static void completed(struct io_op *op, int res)
{
	struct blk_request *r = (struct blk_request *)((char *)op - offsetof(struct blk_request, op));

	if ((res == -EAGAIN || res == -EINTR) && r->retries++ < RETRIES_MAX) {
		step(r);
		return;
	}
	if (r->syncing || r->type == VIRTIO_BLK_T_FLUSH) {
		if (res < 0)
			fail(r, -res);
		else
			finish(r, VIRTIO_BLK_S_OK);
	} else if ((r->type == VIRTIO_BLK_T_DISCARD || r->type == VIRTIO_BLK_T_WRITE_ZEROES) && !r->plain) {
		range_completed(r, res);
	} else {
		data_completed(r, res);
	}
}

/* --- beginnings --- */

/* Sets the range of @r, if it is one of whole blocks on the disk. */
static bool set_range(struct blk_request *r, uint64_t sector, uint64_t len)
{
	const struct disk_file *file = &r->queue->blk->file;

	if (!range_inside(sector, len / SECTOR_BYTES, file->size / SECTOR_BYTES))
		return false;
	r->offset = sector * SECTOR_BYTES;
	r->len = (uint32_t)len;
	return is_aligned(r->offset, file->block_size) && is_aligned(len, file->block_size);
}

static void begin_data(struct blk_request *r, uint64_t sector, struct iov *data, uint32_t len)
{
	bool write = r->type == VIRTIO_BLK_T_OUT;

	if (!set_range(r, sector, len) || (write && r->queue->blk->file.readonly))
		finish(r, VIRTIO_BLK_S_IOERR);
	else if (len == 0)
		succeed(r);
	else
		step_data(r, data);
}

/* One range, as is advertised (5.2.6: the arguments of discard and write zeroes). */
static void begin_range(struct blk_request *r, struct iov *in, uint32_t len)
{
	struct blk *blk = r->queue->blk;
	struct virtio_blk_discard_write_zeroes range;
	bool discard = r->type == VIRTIO_BLK_T_DISCARD;
	unsigned flags = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

	if (!virtio_has(&blk->device, discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES)) {
		finish(r, VIRTIO_BLK_S_UNSUPP);
		return;
	}
	if (len != sizeof(range) || !iov_take(in, &range, sizeof(range))) {
		finish(r, VIRTIO_BLK_S_IOERR);
		return;
	}
	if (range.flags & ~flags)
		finish(r, VIRTIO_BLK_S_UNSUPP);
	else if (blk->file.readonly || range.num_sectors > BLK_RANGE_SECTORS ||
		 !set_range(r, range.sector, (uint64_t)range.num_sectors * SECTOR_BYTES))
		finish(r, VIRTIO_BLK_S_IOERR);
	else if (r->len == 0)
		finish(r, VIRTIO_BLK_S_OK);
	else {
		r->unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
		step_range(r);
	}
}

static void begin_id(struct blk_request *r, const struct iov *out)
{
	char id[BLK_SERIAL_BYTES] = {0};

	memcpy(id, r->queue->blk->config.serial, strnlen(r->queue->blk->config.serial, sizeof(id)));
	r->done = (uint32_t)iov_copy(out, id, sizeof(id), IOV_TO_GUEST);
	finish(r, VIRTIO_BLK_S_OK);
}

/* Reads the header (5.2.6) and sets the request off. A chain without room for header and status cannot be answered. */
static void begin(struct blk_queue *q, struct virtqueue_chain *chain)
{
	struct iov in = {chain->iov, chain->readable}, out = {chain->iov + chain->readable, chain->writable};
	struct blk_request *r = get_request(q);
	struct virtio_blk_outhdr header;

	r->head = chain->head;
	r->writable = chain->writable_bytes;
	if (!iov_take(&in, &header, sizeof(header)) || !(r->status = iov_take_last(&out))) {
		virtqueue_break(&q->queue->ring, "a block request has no header or no status");
		broken(q);
		put_request(r);
		return;
	}
	r->type = header.type;
	switch (r->type) {
	case VIRTIO_BLK_T_IN:
		begin_data(r, header.sector, &out, chain->writable_bytes - 1);
		break;
	case VIRTIO_BLK_T_OUT:
		begin_data(r, header.sector, &in, chain->readable_bytes - (uint32_t)sizeof(header));
		break;
	case VIRTIO_BLK_T_FLUSH:
		if (q->blk->file.readonly)
			finish(r, VIRTIO_BLK_S_OK);
		else
			sync_disk(r);
		break;
	case VIRTIO_BLK_T_GET_ID:
		begin_id(r, &out);
		break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		begin_range(r, &in, chain->readable_bytes - (uint32_t)sizeof(header));
		break;
	default:
		finish(r, VIRTIO_BLK_S_UNSUPP);
	}
}

/* --- the queue --- */

/* A queue that holds requests takes no others: so what it holds fits its list. */
static bool may_take(const struct blk_queue *q)
{
	return virtio_may_take(q->queue) && q->held_count == 0 &&
	       atomic_load_explicit(&q->blk->active, memory_order_relaxed) &&
	       !atomic_load_explicit(&q->blk->halted, memory_order_relaxed);
}

/*
 * Begins all requests the guest made available, as far as there are slots. The bound on one go is for requests that
 * end at once: they free their slots, and a guest could keep the thread from its other queues.
 */
static void take(struct blk_queue *q)
{
	struct virtqueue *ring = &q->queue->ring;
	struct virtqueue_chain chain;
	unsigned taken = 0;

	do {
		virtqueue_quiet(ring);
		while (q->free != NO_REQUEST && may_take(q)) {
			if (taken++ == BLK_QUEUE_SIZE) {
				iothread_at_end(q->queue->thread, &q->batch);
				return;
			}
			enum virtqueue_result result = virtqueue_pop(ring, &chain);
			if (result == VIRTQUEUE_EMPTY)
				break;
			if (result == VIRTQUEUE_BROKEN) {
				broken(q);
				return;
			}
			begin(q, &chain);
		}
		/* Without a free slot the next completion looks again. */
	} while (q->free != NO_REQUEST && virtqueue_listen(ring) && may_take(q));
}

static void batch_ended(struct io_batch *batch)
{
	struct blk_queue *q = (struct blk_queue *)((char *)batch - offsetof(struct blk_queue, batch));

	virtio_publish(q->queue);
	take(q);
}

void blk_queue_init(struct blk_queue *q)
{
	q->batch.end = batch_ended;
	q->bounce_user = q->bounce_first = q->bounce_last = NO_REQUEST;
	for (uint16_t i = 0; i < BLK_QUEUE_SIZE; i++)
		q->request[i].next = i + 1 < BLK_QUEUE_SIZE ? (uint16_t)(i + 1) : NO_REQUEST;
	q->free = 0;
}

static struct blk_queue *queue_of(struct virtio_queue *queue)
{
	return &blk_of(queue->device)->queue[queue->index];
}

void blk_kick(struct virtio_queue *queue)
{
	take(queue_of(queue));
}

/* What was held is tried again before anything new: it is older. */
void blk_start(struct virtio_queue *queue)
{
	struct blk_queue *q = queue_of(queue);
	struct virtqueue_chain chain;
	uint16_t head[BLK_QUEUE_SIZE];
	size_t count = q->held_count;

	if (!atomic_load_explicit(&q->blk->active, memory_order_relaxed))
		return;
	atomic_store(&q->blk->halted, false);
	memcpy(head, q->held, count * sizeof(*head));
	q->held_count = 0;
	for (size_t i = 0; i < count; i++) {
		if (virtqueue_walk(&queue->ring, head[i], &chain) != VIRTQUEUE_CHAIN) {
			broken(q);
			return;
		}
		begin(q, &chain);
	}
	take(q);
}

void blk_drain(struct virtio_queue *queue)
{
	iothread_drain(queue->thread, &queue_of(queue)->busy);
}

void blk_forget(struct virtio_queue *queue)
{
	queue_of(queue)->held_count = 0;
}
