/*
 * The path of a block request; see blk.h. Runs on the queue's I/O thread. Touches guest memory through the queue's
 * chains, and the drive.
 *
 *     take() -> begin() -> submit() -> [drive] -> completed() -> finish(), or the request is held
 *
 * A chain is read once: its buffers are kept, translated and bounded, until the request is done. A held request is no
 * more than its head, and begins anew.
 */
#include "vmm/virtio/blk_internal.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <string.h>

static void completed(struct drive_request *io, int res);

/* --- slots --- */

static bool has_free(const struct blk_queue *q)
{
	return q->busy < BLK_QUEUE_SIZE;
}

static struct blk_request *get_request(struct blk_queue *q, const struct virtqueue_chain *chain)
{
	struct blk_request *r = &q->request[q->free[BLK_QUEUE_SIZE - ++q->busy]];

	r->io.done = completed;
	r->queue = q;
	r->head = chain->head;
	r->writable = chain->writable_bytes;
	r->written = 0;
	return r;
}

static void put_request(struct blk_request *r)
{
	struct blk_queue *q = r->queue;

	q->free[BLK_QUEUE_SIZE - q->busy--] = (uint16_t)(r - q->request);
	iothread_at_end(q->queue->thread, &q->batch);
}

/* --- ends --- */

static void count(const struct blk_request *r, uint8_t status)
{
	if (status != VIRTIO_BLK_S_OK)
		drive_count_error(r->queue->port);
	else if (r->type != VIRTIO_BLK_T_GET_ID)
		drive_count(r->queue->port, r->io.type, r->io.len);
}

/* used.len counts what was written from the start of the writable part on (2.7.8.2): the status byte is at its end. */
static void finish(struct blk_request *r, uint8_t status)
{
	uint32_t data = r->writable - 1;

	*r->status = status;
	count(r, status);
	virtqueue_push(&r->queue->queue->ring, r->head, r->written == data ? data + 1 : r->written);
	put_request(r);
}

static void broken(struct blk_queue *q)
{
	virtio_broken(q->queue);
}

static void completed(struct drive_request *io, int res)
{
	struct blk_request *r = (struct blk_request *)((char *)io - offsetof(struct blk_request, io));
	struct blk_queue *q = r->queue;

	if (res == 0) {
		if (io->type == DISK_READ)
			r->written = (uint32_t)io->len;
		finish(r, VIRTIO_BLK_S_OK);
	} else if (drive_holds(io, -res)) {
		q->held[q->held_count++] = r->head;
		put_request(r);
	} else {
		if (io->type == DISK_READ)
			r->written = (uint32_t)drive_read(io);
		finish(r, VIRTIO_BLK_S_IOERR);
	}
}

/* --- beginnings --- */

/* 5.2.6.2: without a way to flush, or with the cache turned off, what is acknowledged is durable. */
static bool write_through(struct blk *blk)
{
	if (virtio_has(&blk->device, VIRTIO_BLK_F_CONFIG_WCE))
		return !atomic_load_explicit(&blk->writeback, memory_order_relaxed);
	return !virtio_has(&blk->device, VIRTIO_BLK_F_FLUSH);
}

static void submit(struct blk_request *r, enum disk_request_type type)
{
	r->io.type = type;
	r->io.durable = write_through(r->queue->blk);
	drive_submit(r->queue->port, &r->io);
}

/* Sets the range of @r, if it is one of whole blocks on the disk. */
static bool set_range(struct blk_request *r, uint64_t sector, uint64_t len)
{
	const struct drive *drive = r->queue->blk->drive;

	r->io.offset = sector * SECTOR_BYTES;
	r->io.len = len;
	return sector <= drive_size(drive) / SECTOR_BYTES && drive_has(drive, r->io.offset, len);
}

/* Keeps the list of @r's buffers. */
static void keep(struct blk_request *r, const struct iov *data)
{
	struct blk_queue *q = r->queue;

	r->io.iov = data->count <= BLK_FEW ? r->few : q->many[r - q->request];
	r->io.iov_count = data->count;
	memcpy(r->io.iov, data->v, data->count * sizeof(*data->v));
}

static void begin_data(struct blk_request *r, uint64_t sector, const struct iov *data, uint32_t len)
{
	enum disk_request_type type = r->type == VIRTIO_BLK_T_OUT ? DISK_WRITE : DISK_READ;

	r->io.type = type;
	if (!set_range(r, sector, len) || (type == DISK_WRITE && drive_readonly(r->queue->blk->drive))) {
		finish(r, VIRTIO_BLK_S_IOERR);
	} else if (len == 0) {
		finish(r, VIRTIO_BLK_S_OK);
	} else {
		keep(r, data);
		submit(r, type);
	}
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
	r->io.type = discard ? DISK_DISCARD : DISK_WRITE_ZEROES;
	if (range.flags & ~flags)
		finish(r, VIRTIO_BLK_S_UNSUPP);
	else if (drive_readonly(blk->drive) || range.num_sectors > BLK_RANGE_SECTORS ||
		 !set_range(r, range.sector, (uint64_t)range.num_sectors * SECTOR_BYTES))
		finish(r, VIRTIO_BLK_S_IOERR);
	else if (range.num_sectors == 0)
		finish(r, VIRTIO_BLK_S_OK);
	else {
		r->io.unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
		submit(r, r->io.type);
	}
}

static void begin_id(struct blk_request *r, const struct iov *out)
{
	char id[BLK_SERIAL_BYTES] = {0};

	memcpy(id, r->queue->blk->config.serial, strnlen(r->queue->blk->config.serial, sizeof(id)));
	r->written = (uint32_t)iov_copy(out, id, sizeof(id), IOV_TO_GUEST);
	finish(r, VIRTIO_BLK_S_OK);
}

/* Reads the header (5.2.6) and sets the request off. A chain without room for header and status cannot be answered. */
static void begin(struct blk_queue *q, struct virtqueue_chain *chain)
{
	struct iov in = {chain->iov, chain->readable}, out = {chain->iov + chain->readable, chain->writable};
	struct blk_request *r = get_request(q, chain);
	struct virtio_blk_outhdr header;

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
		submit(r, DISK_FLUSH);
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
	return virtio_may_take(q->queue) && q->held_count == 0 && drive_may_take(q->blk->drive);
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
		while (has_free(q) && may_take(q)) {
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
	} while (has_free(q) && virtqueue_listen(ring) && may_take(q));
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
	for (uint16_t i = 0; i < BLK_QUEUE_SIZE; i++)
		q->free[i] = (uint16_t)(BLK_QUEUE_SIZE - 1 - i);
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

	if (!drive_go_on(q->blk->drive))
		return;
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
