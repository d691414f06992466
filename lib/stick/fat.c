/*
 * FAT32; see fat.h. Touches its part of the medium.
 *
 * The table of clusters is in memory while it is open. What is changed goes to the medium in an order that has the old
 * file or the new one at any moment: contents into free clusters; their chain into both tables; one sector of the
 * folder, in which the file's entry changes its chain and size; then the old chain is given back.
 */
#include "stick/fat_internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTERS_LEAST 65525u /* fewer would be FAT16 */
#define CLUSTERS_MOST  (16u << 20)
#define RESERVED       32u
#define INFO_SECTOR    1u
#define COPY_SECTOR    6u
#define VALUE          0x0fffffffu

struct boot {
	uint8_t jump[3];
	char oem[8];
	uint16_t sector;
	uint8_t cluster_sectors;
	uint16_t reserved;
	uint8_t tables;
	uint16_t root_entries, sectors16;
	uint8_t media;
	uint16_t table_sectors16, track, heads;
	uint32_t hidden, sectors, table_sectors;
	uint16_t flags, version;
	uint32_t root;
	uint16_t info, copy;
	uint8_t zero[12], drive, zero2, mark;
	uint32_t id;
	char label[11], type[8];
} __attribute__((packed));
static_assert(sizeof(struct boot) == 90);

struct error *fat_damaged(const struct fat *fat, const char *why)
{
	return error_new(0, "%s: the file system of its ESP is damaged: %s", fat->m->name, why);
}

struct error *fat_no_memory(const struct fat *fat)
{
	return error_new(ENOMEM, "work on %s", fat->m->name);
}

/* --- clusters --- */

uint64_t fat_place(const struct fat *fat, uint32_t cluster)
{
	return fat->data + (uint64_t)(cluster - 2) * fat->cluster;
}

bool fat_is_cluster(const struct fat *fat, uint32_t cluster)
{
	return cluster >= 2 && cluster < fat->end;
}

uint32_t fat_get(const struct fat *fat, uint32_t cluster)
{
	return le32toh(fat->table[cluster]) & VALUE;
}

void fat_set(struct fat *fat, uint32_t cluster, uint32_t value)
{
	uint32_t kept = le32toh(fat->table[cluster]) & ~VALUE;

	fat->table[cluster] = htole32(kept | value);
	fat->changed[cluster / (SECTOR / 4)] = 1;
}

static uint32_t count_free(const struct fat *fat)
{
	uint32_t n = 0;

	for (uint32_t c = 2; c < fat->end; c++)
		n += fat_get(fat, c) == 0;
	return n;
}

uint64_t fat_free(const struct fat *fat)
{
	return (uint64_t)count_free(fat) * fat->cluster;
}

uint64_t fat_room(const struct fat *fat, uint64_t len)
{
	return (len + fat->cluster - 1) / fat->cluster * fat->cluster;
}

/* Takes @count clusters as one chain, its first in *first; 0 for none. */
struct error *fat_allocate(struct fat *fat, uint32_t count, uint32_t *first)
{
	uint32_t last = 0;

	*first = 0;
	if (count > count_free(fat))
		return error_hint(error_new(ENOSPC, "%s: its ESP has room for %llu bytes more, and %llu are needed",
					    fat->m->name, (unsigned long long)fat_free(fat),
					    (unsigned long long)count * fat->cluster),
				  "a larger ESP has it (--esp)");
	for (uint32_t c = fat->next; count > 0; c = c + 1 < fat->end ? c + 1 : 2) {
		if (fat_get(fat, c) != 0)
			continue;
		fat_set(fat, c, END);
		if (last)
			fat_set(fat, last, c);
		else
			*first = c;
		last = c;
		count--;
	}
	fat->next = last + 1 < fat->end ? last + 1 : 2;
	return NULL;
}

void fat_give_back(struct fat *fat, uint32_t cluster)
{
	/* What is given back reads as free: a loop ends where it closes. */
	while (fat_is_cluster(fat, cluster) && fat_get(fat, cluster) != 0) {
		uint32_t next = fat_get(fat, cluster);
		fat_set(fat, cluster, 0);
		cluster = next;
	}
}

/* Writes what has changed of the table, to all copies, the first one last: a reader takes the first. */
struct error *fat_write_table(struct fat *fat)
{
	TRY(blocks_flush(fat->m));
	for (uint32_t copy = fat->tables; copy-- > 0;) {
		uint64_t at = fat->start + ((uint64_t)fat->reserved + (uint64_t)copy * fat->table_sectors) * SECTOR;
		for (uint32_t from = 0, to; from < fat->table_sectors; from = to) {
			for (to = from; to < fat->table_sectors && fat->changed[to]; to++)
				;
			if (to > from)
				TRY(blocks_write(fat->m, (uint8_t *)fat->table + (size_t)from * SECTOR,
						 (size_t)(to - from) * SECTOR, at + (uint64_t)from * SECTOR));
			else
				to++;
		}
	}
	memset(fat->changed, 0, fat->table_sectors);
	return blocks_flush(fat->m);
}

/* What other systems take as a hint: how much is free. */
struct error *fat_write_info(struct fat *fat)
{
	uint8_t info[SECTOR] = {'R', 'R', 'a', 'A', [484] = 'r', 'r', 'A', 'a', [510] = 0x55, [511] = 0xaa};
	uint32_t words[2] = {htole32(count_free(fat)), htole32(fat->next)};

	memcpy(info + 488, words, sizeof(words));
	TRY(blocks_write(fat->m, info, SECTOR, fat->start + (uint64_t)INFO_SECTOR * SECTOR));
	return blocks_flush(fat->m);
}

/* --- life --- */

static struct fat *new_fat(const struct blocks *m, uint64_t start, const struct boot *b, uint32_t sectors, time_t when)
{
	struct fat *fat = calloc(1, sizeof(*fat));
	struct tm t = {.tm_year = 80, .tm_mday = 1};

	if (!fat)
		return NULL;
	gmtime_r(&when, &t);
	if (t.tm_year < 80 || t.tm_year > 207)
		t = (struct tm){.tm_year = 80, .tm_mday = 1};
	fat->m = m;
	fat->start = start;
	fat->cluster = b->cluster_sectors * SECTOR;
	fat->table_sectors = le32toh(b->table_sectors);
	fat->tables = b->tables;
	fat->reserved = le16toh(b->reserved);
	fat->root = le32toh(b->root);
	uint64_t before = fat->reserved + (uint64_t)fat->tables * fat->table_sectors;
	fat->data = start + before * SECTOR;
	fat->end = (uint32_t)((sectors - before) / b->cluster_sectors) + 2;
	fat->next = 2;
	fat->time = (uint16_t)(t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec / 2);
	fat->date = (uint16_t)((t.tm_year - 80) << 9 | (t.tm_mon + 1) << 5 | t.tm_mday);
	fat->table = calloc(MAX(fat->table_sectors, 1u), SECTOR);
	fat->changed = calloc(MAX(fat->table_sectors, 1u), 1);
	if (fat->table && fat->changed)
		return fat;
	fat_close(fat);
	return NULL;
}

void fat_close(struct fat *fat)
{
	if (!fat)
		return;
	free(fat->table);
	free(fat->changed);
	free(fat);
}

static void release(struct fat **fat)
{
	fat_close(*fat);
}
#define cleanup_fat __attribute__((cleanup(release)))

/* What can be meant, within bounds: everything else leans on this. */
static struct error *check_boot(const struct blocks *m, const uint8_t *sector, const struct boot *b, uint64_t len,
				uint32_t *sectors)
{
	uint32_t table = le32toh(b->table_sectors), per = b->cluster_sectors;

	*sectors = le32toh(b->sectors);
	if (sector[510] != 0x55 || sector[511] != 0xaa || le16toh(b->sector) != SECTOR || per == 0 ||
	    (per & (per - 1)) || b->tables < 1 || b->tables > 2 || le16toh(b->reserved) < 2 || b->root_entries ||
	    b->table_sectors16 || !table)
		return error_new(0, "%s: its ESP is not a FAT32 file system", m->name);
	uint64_t before = le16toh(b->reserved) + (uint64_t)b->tables * table;
	uint64_t clusters = *sectors > before ? (*sectors - before) / per : 0;
	if ((uint64_t)*sectors * SECTOR > len || clusters < CLUSTERS_LEAST || clusters > CLUSTERS_MOST ||
	    (uint64_t)table * (SECTOR / 4) < clusters + 2 || table > CLUSTERS_MOST / 64 || le32toh(b->root) < 2 ||
	    le32toh(b->root) >= clusters + 2)
		return error_new(0, "%s: the file system of its ESP is damaged: its sizes make no sense", m->name);
	return NULL;
}

struct error *fat_open(struct fat **out, const struct blocks *m, uint64_t start, uint64_t len, time_t when)
{
	uint8_t sector[SECTOR];
	uint32_t sectors;
	struct boot b;

	TRY(blocks_read(m, sector, SECTOR, start));
	memcpy(&b, sector, sizeof(b));
	TRY(check_boot(m, sector, &b, len, &sectors));
	cleanup_fat struct fat *fat = new_fat(m, start, &b, sectors, when);
	if (!fat)
		return error_new(ENOMEM, "open %s", m->name);
	TRY(blocks_read(m, fat->table, (size_t)fat->table_sectors * SECTOR, start + (uint64_t)fat->reserved * SECTOR));
	*out = steal_ptr(&fat);
	return NULL;
}

/* Sectors of a table for what is left of @sectors for data. */
static uint32_t table_size(uint32_t sectors, uint32_t per)
{
	uint32_t table = 1;

	while ((uint64_t)table * (SECTOR / 4) < (sectors - RESERVED - 2 * table) / per + 2)
		table++;
	return table;
}

void fat_fill_entry(const struct fat *fat, struct entry *e, const char name[11], uint8_t attributes, uint32_t cluster,
		    uint32_t size)
{
	*e = (struct entry){
		.attributes = attributes,
		.made_time = htole16(fat->time),
		.made_date = htole16(fat->date),
		.read_date = htole16(fat->date),
		.time = htole16(fat->time),
		.date = htole16(fat->date),
		.cluster_high = htole16((uint16_t)(cluster >> 16)),
		.cluster_low = htole16((uint16_t)cluster),
		.size = htole32(size),
	};
	memcpy(e->name, name, 11);
}

static struct error *write_boot(struct fat *fat, const struct boot *b)
{
	uint8_t sector[SECTOR] = {[510] = 0x55, [511] = 0xaa};

	memcpy(sector, b, sizeof(*b));
	TRY(blocks_write(fat->m, sector, SECTOR, fat->start + COPY_SECTOR * SECTOR));
	return blocks_write(fat->m, sector, SECTOR, fat->start);
}

struct error *fat_format(struct fat **out, const struct blocks *m, uint64_t start, uint64_t len, uint32_t id,
			 time_t when)
{
	uint32_t sectors = (uint32_t)MIN(len / SECTOR, (uint64_t)UINT32_MAX);
	/* Below 260 MiB clusters of 4 KiB would be too few for FAT32. */
	uint8_t per = len < 260 * MIB ? 1 : len < 8 * GIB ? 8 : 32, sector[SECTOR] = {};
	struct boot b = {
		.jump = {0xeb, 0x58, 0x90},
		.oem = "MSWIN4.1",
		.sector = htole16(SECTOR),
		.cluster_sectors = per,
		.reserved = htole16(RESERVED),
		.tables = 2,
		.media = 0xf8,
		.track = htole16(63),
		.heads = htole16(255),
		.hidden = htole32((uint32_t)(start / SECTOR)),
		.sectors = htole32(sectors),
		.root = htole32(2),
		.info = htole16(INFO_SECTOR),
		.copy = htole16(COPY_SECTOR),
		.drive = 0x80,
		.mark = 0x29,
		.id = htole32(id),
		.label = "GLINT      ",
		.type = "FAT32   ",
	};
	struct entry label;

	if (sectors < RESERVED + CLUSTERS_LEAST + 2048)
		return error_new(EINVAL, "%s: an ESP of %llu bytes is too small for FAT32", m->name,
				 (unsigned long long)len);
	b.table_sectors = htole32(table_size(sectors, per));
	cleanup_fat struct fat *fat = new_fat(m, start, &b, sectors, when);
	if (!fat)
		return error_new(ENOMEM, "make %s", m->name);
	fat->table[0] = htole32(0x0ffffff8);
	fat->table[1] = htole32(END);
	memset(fat->changed, 1, fat->table_sectors);
	fat_set(fat, 2, END);
	fat->next = 3;
	TRY(fat_write_table(fat));
	fat_fill_entry(fat, &label, "GLINT      ", LABEL, 0, 0);
	memcpy(sector, &label, sizeof(label));
	TRY(blocks_write(m, sector, SECTOR, fat_place(fat, 2)));
	TRY(write_boot(fat, &b));
	TRY(fat_write_info(fat));
	*out = steal_ptr(&fat);
	return NULL;
}
