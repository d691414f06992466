/*
 * qcow2: opening and activating images, versions 2 and 3; see qcow2.h. Touches the image's file, by the disk's I/O at
 * once, and only reads it.
 *
 * Refused by name: what is encrypted, or has its data in another file, or needs a feature that nobody here knows; and
 * a backing file whose format the image does not tell. It could be a raw disk that a guest wrote a header into; looking
 * for the format, as is done for formats that remember their parent's id, would believe it.
 *
 * Reference counts matter to who writes. So an image that was not closed (dirty), or in which they were found wrong
 * (corrupt), can be read as any other. Internal snapshots are not looked at.
 */
#include "disk/qcow2.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* [Header] */
#define MAGIC               "QFI\xfb"
#define HEADER_V2           72u
#define HEADER_V3           104u
#define HEADER_BYTES        112u /* as far as it means something to us */
#define NAME_MAX_           1023u
#define FEATURE_DIRTY       (1ull << 0)
#define FEATURE_CORRUPT     (1ull << 1)
#define FEATURE_DATA_FILE   (1ull << 2)
#define FEATURE_COMPRESSION (1ull << 3)
#define FEATURE_EXTENDED    (1ull << 4)
#define FEATURES_KNOWN      0x1full

/* [Header extensions] */
#define EXTENSION_BACKING_FORMAT 0xe2792acau

/* Reads answer with sectors, whatever the clusters are. */
#define SECTOR 512u

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static bool probe(const uint8_t *head, size_t len, const uint8_t *tail)
{
	(void)tail;
	return len >= 4 && memcmp(head, MAGIC, 4) == 0;
}

/* --- the header --- */

struct header {
	uint8_t bytes[HEADER_BYTES]; /* zeroes behind its end */
	uint32_t length;             /* of it: extensions begin there */
	uint32_t snapshots;
	uint64_t features;
	uint64_t backing_at;
	uint32_t backing_len;
};

static struct error *bad(const struct image *image, const char *what, uint64_t value, unsigned offset)
{
	return error_new(EINVAL, "%s: the qcow2 header says at offset %u that %s %llu", image->name, offset, what,
			 (unsigned long long)value);
}

static struct error *check_features(const struct image *image, const struct header *h)
{
	uint64_t unknown = h->features & ~FEATURES_KNOWN;
	uint32_t encryption = get32(h->bytes + 32);

	if (encryption != 0)
		return error_hint(
			error_new(ENOTSUP, "%s: it is encrypted (%s)", image->name, encryption == 2 ? "LUKS" : "AES"),
			"make a plain copy of it with qemu-img convert");
	if (h->features & FEATURE_DATA_FILE)
		return error_hint(error_new(ENOTSUP, "%s: its data are in another file", image->name),
				  "make one file of both with qemu-img convert");
	if (unknown)
		return error_hint(error_new(ENOTSUP,
					    "%s: reading it needs feature %d of qcow2, which is not known here",
					    image->name, __builtin_ctzll(unknown)),
				  "make a copy without it with qemu-img convert");
	return NULL;
}

/* The parts that tables are made of. */
static struct error *check_shape(struct image *image, struct qcow2 *q, const struct header *h)
{
	uint32_t bits = get32(h->bytes + 20);
	uint64_t size = get64(h->bytes + 24), l1_at = get64(h->bytes + 40);
	uint32_t bits_min = h->features & FEATURE_EXTENDED ? QCOW2_BITS_MIN_EXTENDED : QCOW2_BITS_MIN;

	if (bits < bits_min || bits > QCOW2_BITS_MAX)
		return bad(image, "the number of bits of a cluster's size is", bits, 20);
	if (size == 0 || size % SECTOR || size > DISK_BYTES_MAX)
		return bad(image, "the disk's size is", size, 24);
	q->bits = bits;
	q->extended = h->features & FEATURE_EXTENDED;
	q->l2_bits = bits - (q->extended ? 4 : 3);
	q->unit = (1ull << bits) / (q->extended ? QCOW2_SUBCLUSTERS : 1);
	q->page_bytes = (uint32_t)MIN(1ull << bits, QCOW2_PAGE);
	q->page_entries = q->page_bytes / (q->extended ? 16 : 8);
	uint64_t table = 1ull << (bits + q->l2_bits), entries = (size + table - 1) / table;
	if (entries > get32(h->bytes + 36) || entries * sizeof(uint64_t) > QCOW2_L1_BYTES_MAX)
		return bad(image, "the number of entries of the L1 table is", get32(h->bytes + 36), 36);
	if (!is_aligned(l1_at, 1ull << bits) || l1_at == 0 || l1_at >= image->file.size)
		return bad(image, "the L1 table is at offset", l1_at, 40);
	q->l1_entries = (uint32_t)entries;
	q->l1_at = l1_at;
	image->size = size;
	return NULL;
}

static struct error *read_header(struct image *image, struct qcow2 *q, struct header *h)
{
	size_t len = (size_t)MIN(image->file.size, HEADER_BYTES);

	if (len < HEADER_V2)
		return error_new(EINVAL, "%s: its %zu bytes are less than a qcow2 header", image->name, len);
	TRY(error_wrap(io_read(image->disk->io, image->file.fd, h->bytes, len, 0, "the header"), "%s", image->name));
	if (!probe(h->bytes, len, NULL))
		return error_new(EINVAL, "%s: it is no qcow2 file: there is no header at offset 0", image->name);
	q->version = get32(h->bytes + 4);
	if (q->version != 2 && q->version != 3)
		return error_hint(error_new(ENOTSUP, "%s: version %u of qcow2 is not known", image->name, q->version),
				  "make a copy of it with qemu-img convert");
	h->length = q->version == 3 && len >= HEADER_V3 ? get32(h->bytes + 100) : HEADER_V2;
	if (h->length < (q->version == 3 ? HEADER_V3 : HEADER_V2))
		return bad(image, "its length is", h->length, 100);
	/* What is behind its end is not it. */
	if (h->length < HEADER_BYTES)
		memset(h->bytes + h->length, 0, HEADER_BYTES - h->length);
	h->features = get64(h->bytes + 72);
	h->snapshots = get32(h->bytes + 60);
	h->backing_at = get64(h->bytes + 8);
	h->backing_len = get32(h->bytes + 16);
	TRY(check_features(image, h));
	TRY(check_shape(image, q, h));
	q->compression = h->bytes[104];
	if (q->compression > QCOW2_ZSTD || (q->compression != 0) != !!(h->features & FEATURE_COMPRESSION))
		return bad(image, "the way of compression is", q->compression, 104);
	q->dirty = h->features & FEATURE_DIRTY;
	q->corrupt = h->features & FEATURE_CORRUPT;
	return NULL;
}

/* --- the backing file --- */

/* Finds the backing file's format among the extensions, which lie in @head from @at to @end. */
static struct error *read_extensions(const struct image *image, struct qcow2 *q, const uint8_t *head, uint64_t at,
				     uint64_t end)
{
	while (at + 8 <= end && get32(head + at) != 0) {
		uint32_t type = get32(head + at), len = get32(head + at + 4);
		if (len > end - at - 8)
			return error_new(EINVAL,
					 "%s: the qcow2 header extension at offset %llu is longer than there is room",
					 image->name, (unsigned long long)at);
		if (type == EXTENSION_BACKING_FORMAT && len < sizeof(q->backing_format)) {
			memcpy(q->backing_format, head + at + 8, len);
			q->backing_format[len] = '\0';
		}
		at = MIN(end, at + 8 + align_up(len, 8));
	}
	return NULL;
}

/* Takes the name and the format; all of that is in the first cluster. */
static struct error *read_backing(struct image *image, struct qcow2 *q, const struct header *h)
{
	uint64_t len = MIN(1ull << q->bits, image->file.size), end = h->backing_at ? h->backing_at : len;
	cleanup_free uint8_t *head = malloc(len);
	cleanup_free char *name = NULL;

	if (!head)
		return error_new(ENOMEM, "%s: read its header", image->name);
	if (h->backing_at && (h->backing_at < h->length || h->backing_len == 0 || h->backing_len > NAME_MAX_ ||
			      !range_inside(h->backing_at, h->backing_len, len)))
		return bad(image, "the name of the backing file is at offset", h->backing_at, 8);
	if (h->length > end)
		return bad(image, "its length is", h->length, 100);
	TRY(error_wrap(io_read(image->disk->io, image->file.fd, head, len, 0, "the header"), "%s", image->name));
	q->backing_format[0] = '\0';
	TRY(read_extensions(image, q, head, h->length, end));
	if (h->backing_at) {
		name = strndup((const char *)head + h->backing_at, h->backing_len);
		if (!name)
			return error_new(ENOMEM, "%s: read its header", image->name);
	}
	/* Its parent is open, by that name: it cannot get another, or its owner wrote meanwhile. */
	if (image->has_parent && (!name || strcmp(name, q->backing) != 0))
		return error_new(ESTALE, "%s: its backing file was changed since it was opened", image->name);
	free(q->backing);
	q->backing = steal_ptr(&name);
	return NULL;
}

/* Tries the parent, which has to be of the format that the image says. */
static struct error *parent(struct image *image, disk_try_fn *try, void *arg)
{
	static const char *const ours[][2] = {{"raw", "raw"}, {"qcow2", "qcow2"}, {"vhdx", "vhdx"}, {"vpc", "vhd"}};
	const struct qcow2 *q = image->state;

	if (!q->backing_format[0])
		return error_hint(
			error_new(ENOTSUP, "%s: it does not say what format its backing file, \"%s\", has", image->name,
				  q->backing),
			"put it there: qemu-img rebase -u -b %s -F FORMAT %s; a format that is looked for could "
			"be one that a guest wrote",
			q->backing, image->name);
	if (strcspn(q->backing, ":") < strcspn(q->backing, "/"))
		return error_hint(error_new(ENOTSUP, "%s: its backing file, \"%s\", is not a file's name", image->name,
					    q->backing),
				  "make one image of both with qemu-img convert");
	for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
		if (strcmp(ours[i][0], q->backing_format) == 0)
			return try(arg, q->backing, ours[i][1]);
	return error_hint(
		error_new(ENOTSUP, "%s: unknown format \"%s\" of its backing file", image->name, q->backing_format),
		"make one image of both with qemu-img convert");
}

/* --- life --- */

static void add_words(char *text, size_t size, const char *words)
{
	size_t len = strlen(text);

	snprintf(text + len, size - len, "%s%s", len ? "; " : "", words);
}

static struct error *make_remark(struct image *image, const struct qcow2 *q, uint32_t snapshots)
{
	char text[128] = "", count[64];

	snprintf(count, sizeof(count), "%u internal snapshots, which are not read", snapshots);
	if (q->corrupt)
		add_words(text, sizeof(text), "marked as corrupt");
	if (q->dirty)
		add_words(text, sizeof(text), "was not closed");
	if (snapshots > 0)
		add_words(text, sizeof(text), count);
	free(image->remark);
	image->remark = text[0] ? strdup(text) : NULL;
	return text[0] && !image->remark ? error_new(ENOMEM, "%s: open it", image->name) : NULL;
}

static struct error *check_use(const struct image *image)
{
	if (!image->readonly)
		return error_hint(error_new(EROFS, "%s: a qcow2 image can only be read", image->name),
				  "open it read-only, or make a disk of it that can be written: glint disk convert");
	if (image->file.memory_align > 1)
		return error_hint(error_new(ENOTSUP, "%s: a qcow2 image cannot be used with direct I/O", image->name),
				  "its compressed clusters are not aligned: open it without direct I/O");
	return NULL;
}

static struct error *open_image(struct image *image)
{
	struct qcow2 *q = image->state;
	struct header h = {};

	TRY(check_use(image));
	if (!q) {
		q = calloc(1, sizeof(*q));
		if (!q)
			return error_new(ENOMEM, "%s: open it", image->name);
		pthread_mutex_init(&q->lock, NULL);
		image->state = q;
	}
	TRY(read_header(image, q, &h));
	TRY(read_backing(image, q, &h));
	image->sector = SECTOR;
	image->physical = 4096;
	image->block = 1u << q->bits;
	image->has_parent = image->parent_unknown = q->backing != NULL;
	image->subformat = q->backing ? "differencing" : "dynamic";
	return make_remark(image, q, h.snapshots);
}

static void drop(struct qcow2 *q)
{
	qcow2_map_free(q);
	qcow2_slots_free(q);
}

static void close_image(struct image *image)
{
	struct qcow2 *q = image->state;

	if (!q)
		return;
	drop(q);
	pthread_mutex_destroy(&q->lock);
	free(q->backing);
	free(q);
	image->state = NULL;
}

static struct error *activate(struct image *image)
{
	struct qcow2 *q = image->state;

	q->waiting = NULL;
	atomic_flag_clear(&q->told);
	if (q->dirty || q->corrupt)
		log_warn("%s: %s: it is read as it is; qemu-img check -r all may mend it", image->name, image->remark);
	struct error *err = qcow2_map_load(image, q);
	if (!err)
		err = qcow2_slots_make(image, q);
	if (err)
		drop(q);
	return err;
}

static void deactivate(struct image *image)
{
	drop(image->state);
}

const struct disk_format disk_qcow2 = {
	.name = "qcow2",
	.probe = probe,
	.open = open_image,
	.activate = activate,
	.deactivate = deactivate,
	.close = close_image,
	.parent = parent,
	.map = qcow2_map,
	.slow = qcow2_slow,
	.check = qcow2_check,
};
