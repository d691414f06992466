/*
 * Reads and writes partition tables; see gpt.h. Touches the first and the last 33 sectors of the medium, and the
 * sectors from OTHER_LIST on.
 */
#include "stick/gpt.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define ENTRY_BYTES  128u
#define LIST_BYTES   (GPT_PARTITIONS_MAX * ENTRY_BYTES)
#define LIST_SECTORS (LIST_BYTES / SECTOR)
#define FIRST_LIST   2u
#define OTHER_LIST   64u

struct header {
	char signature[8];
	uint32_t revision, bytes, crc, zero;
	uint64_t self, other, first_usable, last_usable;
	struct guid disk;
	uint64_t list;
	uint32_t count, entry_bytes, list_crc;
} __attribute__((packed));
static_assert(sizeof(struct header) == 92);

struct entry {
	struct guid type, id;
	uint64_t first, last, attributes;
	uint16_t name[36];
};
static_assert(sizeof(struct entry) == ENTRY_BYTES);

const struct guid gpt_esp = {
	{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}};
/* Types of our own: no other system takes such a partition for one of its own, formats or mounts it. */
const struct guid gpt_state = {
	{0x1e, 0x0c, 0x2f, 0x6d, 0x7a, 0x5b, 0x39, 0x4c, 0x9f, 0x0e, 0x67, 0x6c, 0x69, 0x6e, 0x74, 0x01}};
const struct guid gpt_guest = {
	{0x1e, 0x0c, 0x2f, 0x6d, 0x7a, 0x5b, 0x39, 0x4c, 0x9f, 0x0e, 0x67, 0x6c, 0x69, 0x6e, 0x74, 0x02}};

bool guid_equal(const struct guid *a, const struct guid *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

const char *guid_text(const struct guid *guid, char text[37])
{
	static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	size_t at = 0;

	for (unsigned i = 0; i < 16; i++)
		at += (size_t)snprintf(text + at, 37 - at, "%02x%s", guid->bytes[order[i]],
				       i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
	return text;
}

static uint32_t crc(const void *data, size_t len)
{
	return (uint32_t)crc32(0, data, (uInt)len);
}

/* --- reading --- */

/* Names are for people: what is not ASCII is shown as a question mark. */
static void read_name(const uint16_t name[36], char *text)
{
	unsigned i = 0;

	for (; i < 36 && name[i]; i++) {
		uint16_t c = le16toh(name[i]);
		text[i] = c < 0x20 || c > 0x7e ? '?' : (char)c;
	}
	text[i] = '\0';
}

static bool header_good(const struct header *h, uint64_t at)
{
	struct header copy = *h;

	copy.crc = 0;
	return memcmp(h->signature, "EFI PART", 8) == 0 && le32toh(h->bytes) == sizeof(*h) &&
	       le32toh(h->crc) == crc(&copy, sizeof(copy)) && le64toh(h->self) == at;
}

/* Whether the table whose header is in sector @at is good; its list is in @list then. */
static bool read_table(const struct blocks *m, uint64_t at, struct header *h, uint8_t *list)
{
	uint8_t sector[SECTOR];
	uint64_t sectors = m->size / SECTOR;

	if (at >= sectors || m->read(m, sector, SECTOR, at * SECTOR) < 0)
		return false;
	memcpy(h, sector, sizeof(*h));
	if (!header_good(h, at) || le32toh(h->entry_bytes) != ENTRY_BYTES || le32toh(h->count) != GPT_PARTITIONS_MAX ||
	    !range_inside(le64toh(h->list), LIST_SECTORS, sectors) ||
	    m->read(m, list, LIST_BYTES, le64toh(h->list) * SECTOR) < 0)
		return false;
	return crc(list, LIST_BYTES) == le32toh(h->list_crc);
}

static struct error *add_partition(const struct blocks *m, struct gpt *gpt, const struct entry *e, unsigned number)
{
	struct gpt_partition *p = &gpt->partitions[gpt->count];
	uint64_t first = le64toh(e->first), last = le64toh(e->last), sectors = m->size / SECTOR;

	if (first > last || last >= sectors)
		return error_new(0, "%s: partition %u does not lie on it", m->name, number);
	*p = (struct gpt_partition){
		.type = e->type, .id = e->id, .start = first * SECTOR, .len = (last - first + 1) * SECTOR};
	read_name(e->name, p->name);
	for (unsigned i = 0; i < gpt->count; i++) {
		const struct gpt_partition *other = &gpt->partitions[i];
		if (p->start < other->start + other->len && other->start < p->start + p->len)
			return error_new(0, "%s: partition %u lies over another", m->name, number);
	}
	gpt->count++;
	return NULL;
}

struct error *gpt_read(const struct blocks *m, struct gpt *gpt)
{
	static const struct guid none;
	cleanup_free uint8_t *list = malloc(LIST_BYTES);
	uint8_t mbr[SECTOR];
	struct header h;
	struct entry e;

	*gpt = (struct gpt){};
	if (!list)
		return error_new(ENOMEM, "read %s", m->name);
	if (m->size < 2 * GPT_ALIGN)
		return error_new(0, "%s: %llu bytes have no room for a partition table", m->name,
				 (unsigned long long)m->size);
	TRY(blocks_read(m, mbr, SECTOR, 0));
	if (mbr[510] != 0x55 || mbr[511] != 0xaa || mbr[450] != 0xee)
		return error_new(0, "%s: there is no partition table of type GPT", m->name);
	if (!read_table(m, 1, &h, list)) {
		if (!read_table(m, m->size / SECTOR - 1, &h, list))
			return error_new(0, "%s: its partition table is damaged, and so is the copy at the end",
					 m->name);
		gpt->from_backup = true;
	}
	gpt->disk = h.disk;
	gpt->entries_at = gpt->from_backup ? OTHER_LIST : le64toh(h.list);
	for (unsigned i = 0; i < GPT_PARTITIONS_MAX; i++) {
		memcpy(&e, list + (size_t)i * ENTRY_BYTES, sizeof(e));
		if (!guid_equal(&e.type, &none))
			TRY(add_partition(m, gpt, &e, i + 1));
	}
	return NULL;
}

const struct gpt_partition *gpt_find(const struct gpt *gpt, const struct guid *type)
{
	for (unsigned i = 0; i < gpt->count; i++)
		if (guid_equal(&gpt->partitions[i].type, type))
			return &gpt->partitions[i];
	return NULL;
}

bool gpt_same(const struct gpt *a, const struct gpt *b)
{
	bool same = a->count == b->count && guid_equal(&a->disk, &b->disk);

	for (unsigned i = 0; same && i < a->count; i++) {
		const struct gpt_partition *p = &a->partitions[i], *q = &b->partitions[i];
		same = guid_equal(&p->type, &q->type) && guid_equal(&p->id, &q->id) && p->start == q->start &&
		       p->len == q->len && strcmp(p->name, q->name) == 0;
	}
	return same;
}

/* --- room --- */

uint64_t gpt_room(const struct gpt *gpt, uint64_t size, uint64_t len)
{
	uint64_t at = GPT_ALIGN;

	/* Each partition that is in the way moves the place behind it: at most as often as there are partitions. */
	for (unsigned round = 0; round <= gpt->count; round++) {
		uint64_t next = at;
		for (unsigned i = 0; i < gpt->count; i++) {
			const struct gpt_partition *p = &gpt->partitions[i];
			if (next < p->start + p->len && p->start < next + len)
				next = align_up(p->start + p->len, GPT_ALIGN);
		}
		if (next == at)
			break;
		at = next;
	}
	return size >= GPT_END_BYTES && range_inside(at, len, size - GPT_END_BYTES) ? at : 0;
}

uint64_t gpt_size_for(const struct gpt *gpt, uint64_t len)
{
	uint64_t end = GPT_ALIGN;

	for (unsigned i = 0; i < gpt->count; i++)
		end = MAX(end, align_up(gpt->partitions[i].start + gpt->partitions[i].len, GPT_ALIGN));
	return end + len + GPT_ALIGN;
}

/* --- writing --- */

static void fill_list(const struct gpt *gpt, uint8_t *list)
{
	memset(list, 0, LIST_BYTES);
	for (unsigned i = 0; i < gpt->count; i++) {
		const struct gpt_partition *p = &gpt->partitions[i];
		struct entry e = {
			.type = p->type,
			.id = p->id,
			.first = htole64(p->start / SECTOR),
			.last = htole64((p->start + p->len) / SECTOR - 1),
		};
		for (unsigned c = 0; c < 36 && p->name[c]; c++)
			e.name[c] = htole16((uint16_t)p->name[c]);
		memcpy(list + (size_t)i * ENTRY_BYTES, &e, sizeof(e));
	}
}

static struct error *write_header(const struct blocks *m, const struct gpt *gpt, uint64_t self, uint64_t other,
				  uint64_t list_at, const uint8_t *list)
{
	uint8_t sector[SECTOR] = {};
	uint64_t sectors = m->size / SECTOR;
	struct header h = {
		.signature = "EFI PART",
		.revision = htole32(0x10000),
		.bytes = htole32(sizeof(h)),
		.self = htole64(self),
		.other = htole64(other),
		.first_usable = htole64(GPT_ALIGN / SECTOR),
		.last_usable = htole64(sectors - 1 - GPT_END_BYTES / SECTOR),
		.disk = gpt->disk,
		.list = htole64(list_at),
		.count = htole32(GPT_PARTITIONS_MAX),
		.entry_bytes = htole32(ENTRY_BYTES),
		.list_crc = htole32(crc(list, LIST_BYTES)),
	};

	h.crc = htole32(crc(&h, sizeof(h)));
	memcpy(sector, &h, sizeof(h));
	TRY(blocks_write(m, sector, SECTOR, self * SECTOR));
	return blocks_flush(m);
}

/* The sector by which older systems see that the whole is taken. */
static struct error *write_mbr(const struct blocks *m)
{
	uint32_t sectors = htole32((uint32_t)MIN(m->size / SECTOR - 1, (uint64_t)UINT32_MAX));
	uint8_t mbr[SECTOR] = {[446] = 0,    [447] = 0,    [448] = 2, [449] = 0,    [450] = 0xee, [451] = 0xff,
			       [452] = 0xff, [453] = 0xff, [454] = 1, [510] = 0x55, [511] = 0xaa};

	memcpy(mbr + 458, &sectors, sizeof(sectors));
	TRY(blocks_write(m, mbr, SECTOR, 0));
	return blocks_flush(m);
}

struct error *gpt_write(const struct blocks *m, struct gpt *gpt)
{
	cleanup_free uint8_t *list = malloc(LIST_BYTES);
	uint64_t last = m->size / SECTOR - 1, list_at = gpt->entries_at == FIRST_LIST ? OTHER_LIST : FIRST_LIST;

	if (!list)
		return error_new(ENOMEM, "write %s", m->name);
	fill_list(gpt, list);
	TRY(blocks_write(m, list, LIST_BYTES, list_at * SECTOR));
	TRY(blocks_flush(m));
	TRY(write_header(m, gpt, 1, last, list_at, list));
	TRY(blocks_write(m, list, LIST_BYTES, (last - LIST_SECTORS) * SECTOR));
	TRY(blocks_flush(m));
	TRY(write_header(m, gpt, last, 1, last - LIST_SECTORS, list));
	TRY(write_mbr(m));
	gpt->entries_at = list_at;
	return NULL;
}
