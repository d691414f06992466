/*
 * qcow2: clusters that are read whole into memory, of which a request then takes its part: compressed ones, and the one
 * that the file's end cuts (what lies behind it is zeroes); see qcow2.h. Touches the image's file through the request's
 * disk_io, and the slots.
 *
 * A slot is filled by one request, on its thread, decompression included; others that want the same cluster wait. It is
 * given to another cluster when nobody reads it. All memory is made when the image is activated, and zlib's window of
 * 32 KiB when a stream first needs one.
 */
#include "disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define SECTOR 512u

/* --- decompression --- */

/* Raw deflate [Compressed Clusters Descriptor]. Whatever follows a whole cluster is no matter: lengths are rounded. */
static bool unpack_zlib(const struct qcow2_slot *slot, size_t size)
{
	z_stream *z = slot->unpacker;

	if (inflateReset(z) != Z_OK)
		return false;
	z->next_in = slot->packed;
	z->avail_in = (uInt)slot->length;
	z->next_out = slot->bytes;
	z->avail_out = (uInt)size;
	int ret = inflate(z, Z_FINISH);
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && z->avail_out == 0;
}

/* One frame or several; whole ones only, so that nothing but the cluster is ever needed to go back in. */
static bool unpack_zstd(const struct qcow2_slot *slot, size_t size)
{
	static const uint8_t magic[] = {0x28, 0xb5, 0x2f, 0xfd};
	size_t in = 0, out = 0;

	/* Formats older than zstd's own, which the library knows too, are none of qcow2. */
	while (out < size && slot->length - in >= sizeof(magic) &&
	       memcmp(slot->packed + in, magic, sizeof(magic)) == 0) {
		size_t frame = ZSTD_findFrameCompressedSize(slot->packed + in, slot->length - in);
		if (ZSTD_isError(frame) || frame == 0)
			return false;
		size_t got =
			ZSTD_decompressDCtx(slot->unpacker, slot->bytes + out, size - out, slot->packed + in, frame);
		if (ZSTD_isError(got))
			return false;
		in += frame;
		out += got;
	}
	return out == size;
}

static bool unpack(const struct qcow2 *q, const struct qcow2_slot *slot)
{
	size_t size = (size_t)1 << q->bits;

	return q->compression == QCOW2_ZSTD ? unpack_zstd(slot, size) : unpack_zlib(slot, size);
}

/* --- slots --- */

/* The lock: the cluster's, or one that can be given to it, or NULL. */
static struct qcow2_slot *slot_for(struct qcow2 *q, uint64_t cluster)
{
	struct qcow2_slot *oldest = NULL;

	for (unsigned i = 0; i < QCOW2_SLOTS; i++) {
		struct qcow2_slot *slot = &q->slots[i];
		if (slot->cluster == cluster)
			return slot;
		if (!slot->filling && slot->readers == 0 && (!oldest || slot->used < oldest->used))
			oldest = slot;
	}
	return oldest;
}

/* Takes what the request wants out of a slot that it reads. */
static bool answer(struct disk_request *r, struct qcow2_slot *slot)
{
	struct qcow2 *q = qcow2_of(r);
	uint64_t within = (r->offset + r->finished) & ((1ull << q->bits) - 1);

	request_copy(r, slot->bytes + within, r->from);
	pthread_mutex_lock(&q->lock);
	slot->readers--;
	qcow2_unlock_and_wake(q);
	return request_again(r);
}

static void give_back(struct qcow2 *q, struct qcow2_slot *slot)
{
	pthread_mutex_lock(&q->lock);
	slot->cluster = QCOW2_NO_CLUSTER;
	slot->filling = false;
	slot->readers--;
	qcow2_unlock_and_wake(q);
}

static bool filled(struct disk_request *r, struct qcow2_slot *slot)
{
	struct qcow2 *q = qcow2_of(r);

	pthread_mutex_lock(&q->lock);
	slot->filling = false;
	qcow2_unlock_and_wake(q);
	return answer(r, slot);
}

static bool fetched_packed(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct qcow2 *q = qcow2_of(r);
	struct qcow2_slot *slot = &q->slots[r->frame];
	enum transferred what = qcow2_fetched(r, &res);

	if (what == TRANSFERRING)
		return true;
	if (what == TRANSFERRED && unpack(q, slot))
		return filled(r, slot);
	give_back(q, slot);
	if (what != TRANSFERRED)
		return request_end(r, res);
	return qcow2_damaged(r, "a compressed cluster does not become a whole one", r->at - slot->length);
}

static bool fetched_cut(struct disk_task *task, int res)
{
	struct disk_request *r = request_of(task);
	struct qcow2_slot *slot = &qcow2_of(r)->slots[r->frame];
	enum transferred what = qcow2_fetched(r, &res);

	if (what == TRANSFERRING)
		return true;
	if (what == TRANSFERRED)
		return filled(r, slot);
	give_back(qcow2_of(r), slot);
	return request_end(r, res);
}

/* The slot is being filled, and the request's. */
static bool fill(struct disk_request *r, struct qcow2_slot *slot, uint64_t entry)
{
	struct qcow2 *q = qcow2_of(r);
	uint64_t size = 1ull << q->bits, end = qcow2_image(r)->file.size, at = entry & QCOW2_OFFSET;
	/* The descriptor's offset is a byte's; above it is the number of sectors behind the one that this is in. */
	unsigned split = 62 - (q->bits - 8);

	r->frame = (uint32_t)(slot - q->slots);
	if (!(entry & QCOW2_COMPRESSED)) {
		memset(slot->bytes + (end - at), 0, size - (end - at));
		return qcow2_fetch(r, slot->bytes, at, end - at, fetched_cut);
	}
	at = entry & ((1ull << split) - 1);
	if (at >= end) {
		give_back(q, slot);
		return qcow2_damaged(r, "a compressed cluster is placed behind the file's end,", at);
	}
	uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> split;
	slot->length = (size_t)MIN((sectors + 1) * SECTOR - at % SECTOR, end - at);
	return qcow2_fetch(r, slot->packed, at, slot->length, fetched_packed);
}

bool qcow2_cluster(struct disk_request *r, uint64_t entry)
{
	struct qcow2 *q = qcow2_of(r);
	uint64_t cluster = (r->offset + r->finished) >> q->bits;
	struct qcow2_slot *slot = slot_for(q, cluster);

	if (!slot || slot->filling)
		return qcow2_wait(q, r);
	slot->readers++;
	slot->used = ++q->clock;
	bool here = slot->cluster == cluster;
	slot->filling = !here;
	slot->cluster = cluster;
	pthread_mutex_unlock(&q->lock);
	return here ? answer(r, slot) : fill(r, slot, entry);
}

/* --- life --- */

static void *make_unpacker(const struct qcow2 *q)
{
	if (q->compression == QCOW2_ZSTD)
		return ZSTD_createDCtx();
	z_stream *z = calloc(1, sizeof(*z));
	if (z && inflateInit2(z, -MAX_WBITS) != Z_OK) {
		free(z);
		return NULL;
	}
	return z;
}

static void free_unpacker(const struct qcow2 *q, void *unpacker)
{
	if (q->compression == QCOW2_ZSTD) {
		ZSTD_freeDCtx(unpacker);
	} else if (unpacker) {
		inflateEnd(unpacker);
		free(unpacker);
	}
}

struct error *qcow2_slots_make(struct image *image, struct qcow2 *q)
{
	size_t size = (size_t)1 << q->bits;

	for (unsigned i = 0; i < QCOW2_SLOTS; i++) {
		struct qcow2_slot *slot = &q->slots[i];
		slot->cluster = QCOW2_NO_CLUSTER;
		/* Its length's bits can say twice the cluster. */
		slot->packed = malloc(2 * size);
		slot->bytes = malloc(size);
		slot->unpacker = make_unpacker(q);
		if (!slot->packed || !slot->bytes || !slot->unpacker)
			return error_new(ENOMEM, "%s: make room for its compressed clusters", image->name);
	}
	return NULL;
}

void qcow2_slots_free(struct qcow2 *q)
{
	for (unsigned i = 0; i < QCOW2_SLOTS; i++) {
		free(q->slots[i].packed);
		free(q->slots[i].bytes);
		free_unpacker(q, q->slots[i].unpacker);
		q->slots[i] = (struct qcow2_slot){};
	}
}
