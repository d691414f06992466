/*
 * FAT32; see fat.h. Touches its part of the medium.
 *
 * The table of clusters is in memory while it is open. What is changed goes to the medium in an order that has the old
 * file or the new one at any moment: contents into free clusters; their chain into both tables; one sector of the
 * folder, in which the file's entry changes its chain and size; then the old chain is given back.
 */
#include "stick/fat.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTERS_LEAST 65525u /* fewer would be FAT16 */
#define CLUSTERS_MOST  (16u << 20)
#define RESERVED       32u
#define INFO_SECTOR    1u
#define COPY_SECTOR    6u
#define END            0x0fffffffu
#define END_LEAST      0x0ffffff8u
#define VALUE          0x0fffffffu
#define ENTRY          32u
#define FOLDER_MAX     ((size_t)1 << 20)
#define LONG_PARTS     20u
#define LONG_CHARS     13u

enum { READ_ONLY = 1, LABEL = 8, FOLDER = 0x10, ARCHIVE = 0x20, LONG = 0x0f };

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

struct entry {
	char name[11];
	uint8_t attributes, zero, tenths;
	uint16_t made_time, made_date, read_date, cluster_high, time, date, cluster_low;
	uint32_t size;
} __attribute__((packed));
static_assert(sizeof(struct entry) == ENTRY);

struct fat {
	const struct blocks *m;
	uint64_t start, data; /* bytes of the medium: where it begins, where cluster 2 is */
	uint32_t cluster;     /* bytes */
	uint32_t table_sectors, tables, reserved, root;
	uint32_t end; /* the first number that no cluster has */
	uint32_t *table;
	uint8_t *changed; /* by sector of the table */
	uint32_t next;    /* where to look for a free cluster */
	uint16_t time, date;
};

/* A folder in memory. */
struct folder {
	uint8_t *bytes;
	uint32_t *clusters;
	size_t len, count;
};

static void folder_free(struct folder *f)
{
	free(f->bytes);
	free(f->clusters);
}
#define cleanup_folder __attribute__((cleanup(folder_free)))

static struct error *damaged(const struct fat *fat, const char *why)
{
	return error_new(0, "%s: the file system of its ESP is damaged: %s", fat->m->name, why);
}

static struct error *no_memory(const struct fat *fat)
{
	return error_new(ENOMEM, "work on %s", fat->m->name);
}

/* --- clusters --- */

static uint64_t place(const struct fat *fat, uint32_t cluster)
{
	return fat->data + (uint64_t)(cluster - 2) * fat->cluster;
}

static bool is_cluster(const struct fat *fat, uint32_t cluster)
{
	return cluster >= 2 && cluster < fat->end;
}

static uint32_t get(const struct fat *fat, uint32_t cluster)
{
	return le32toh(fat->table[cluster]) & VALUE;
}

static void set(struct fat *fat, uint32_t cluster, uint32_t value)
{
	uint32_t kept = le32toh(fat->table[cluster]) & ~VALUE;

	fat->table[cluster] = htole32(kept | value);
	fat->changed[cluster / (SECTOR / 4)] = 1;
}

static uint32_t count_free(const struct fat *fat)
{
	uint32_t n = 0;

	for (uint32_t c = 2; c < fat->end; c++)
		n += get(fat, c) == 0;
	return n;
}

uint64_t fat_free(const struct fat *fat)
{
	return (uint64_t)count_free(fat) * fat->cluster;
}

/* Takes @count clusters as one chain, its first in *first; 0 for none. */
static struct error *allocate(struct fat *fat, uint32_t count, uint32_t *first)
{
	uint32_t last = 0;

	*first = 0;
	if (count > count_free(fat))
		return error_hint(error_new(ENOSPC, "%s: its ESP has room for %llu bytes more, and %llu are needed",
					    fat->m->name, (unsigned long long)fat_free(fat),
					    (unsigned long long)count * fat->cluster),
				  "a larger ESP has it (--esp)");
	for (uint32_t c = fat->next; count > 0; c = c + 1 < fat->end ? c + 1 : 2) {
		if (get(fat, c) != 0)
			continue;
		set(fat, c, END);
		if (last)
			set(fat, last, c);
		else
			*first = c;
		last = c;
		count--;
	}
	fat->next = last + 1 < fat->end ? last + 1 : 2;
	return NULL;
}

static void give_back(struct fat *fat, uint32_t cluster)
{
	/* What is given back reads as free: a loop ends where it closes. */
	while (is_cluster(fat, cluster) && get(fat, cluster) != 0) {
		uint32_t next = get(fat, cluster);
		set(fat, cluster, 0);
		cluster = next;
	}
}

/* Writes what has changed of the table, to all copies, the first one last: a reader takes the first. */
static struct error *write_table(struct fat *fat)
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
static struct error *write_info(struct fat *fat)
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

static void fill_entry(const struct fat *fat, struct entry *e, const char name[11], uint8_t attributes,
		       uint32_t cluster, uint32_t size)
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
	set(fat, 2, END);
	fat->next = 3;
	TRY(write_table(fat));
	fill_entry(fat, &label, "GLINT      ", LABEL, 0, 0);
	memcpy(sector, &label, sizeof(label));
	TRY(blocks_write(m, sector, SECTOR, place(fat, 2)));
	TRY(write_boot(fat, &b));
	TRY(write_info(fat));
	*out = steal_ptr(&fat);
	return NULL;
}

/* --- folders --- */

static struct error *load_folder(struct fat *fat, uint32_t cluster, struct folder *f)
{
	size_t most = MAX(FOLDER_MAX / fat->cluster, (size_t)1);

	*f = (struct folder){};
	f->bytes = malloc(most * fat->cluster);
	f->clusters = calloc(most, sizeof(*f->clusters));
	if (!f->bytes || !f->clusters)
		return no_memory(fat);
	for (; cluster < END_LEAST; cluster = get(fat, cluster)) {
		if (!is_cluster(fat, cluster) || f->count == most)
			return damaged(fat, "a folder has no end");
		TRY(blocks_read(fat->m, f->bytes + f->len, fat->cluster, place(fat, cluster)));
		f->clusters[f->count++] = cluster;
		f->len += fat->cluster;
	}
	return NULL;
}

static uint64_t entry_place(const struct fat *fat, const struct folder *f, size_t at)
{
	return place(fat, f->clusters[at / fat->cluster]) + at % fat->cluster;
}

static uint8_t name_sum(const char name[11])
{
	uint8_t sum = 0;

	for (unsigned i = 0; i < 11; i++)
		sum = (uint8_t)((sum & 1 ? 0x80 : 0) + (sum >> 1) + (uint8_t)name[i]);
	return sum;
}

/* Where the 13 characters of a part of a long name are in its entry. */
static const uint8_t long_at[LONG_CHARS] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};

struct long_name {
	char text[LONG_PARTS * LONG_CHARS + 1];
	unsigned expected; /* the next part; 0 when it is whole */
	uint8_t sum;
	bool any;
};

static void read_long(struct long_name *l, const uint8_t *e)
{
	unsigned part = e[0] & 0x3f;

	if (e[0] & 0x40 && part >= 1 && part <= LONG_PARTS)
		*l = (struct long_name){.expected = part, .sum = e[13], .any = true};
	if (!l->any || part != l->expected || part == 0 || e[13] != l->sum) {
		l->any = false;
		return;
	}
	for (unsigned i = 0; i < LONG_CHARS; i++) {
		unsigned c = e[long_at[i]] | (unsigned)e[long_at[i] + 1] << 8;
		char *to = &l->text[(part - 1) * LONG_CHARS + i];
		*to = c == 0 || c == 0xffff ? '\0' : c < 0x20 || c > 0x7e ? '?' : (char)c;
	}
	l->expected--;
}

static void short_name(const char name[11], char *text)
{
	size_t at = 0;

	for (unsigned i = 0; i < 11; i++) {
		if (i == 8 && name[8] != ' ')
			text[at++] = '.';
		if (name[i] != ' ')
			text[at++] = name[i] < 0x20 || name[i] > 0x7e ? '?' : name[i];
	}
	text[at] = '\0';
}

/* The entry of @f behind @at; false: there is none. */
static bool next_entry(const struct fat *fat, const struct folder *f, size_t *at, struct fat_entry *out)
{
	struct long_name l = {};
	struct entry e;

	for (; *at + ENTRY <= f->len && f->bytes[*at] != 0; *at += ENTRY) {
		memcpy(&e, f->bytes + *at, sizeof(e));
		if (f->bytes[*at] == 0xe5) {
			l.any = false;
			continue;
		}
		if ((e.attributes & 0x3f) == LONG) {
			read_long(&l, f->bytes + *at);
			continue;
		}
		bool is_long = l.any && l.expected == 0 && l.sum == name_sum(e.name) && l.text[0];
		l.any = false;
		if (e.attributes & LABEL)
			continue;
		*out = (struct fat_entry){
			.folder = e.attributes & FOLDER,
			.size = le32toh(e.size),
			.cluster = (uint32_t)le16toh(e.cluster_high) << 16 | le16toh(e.cluster_low),
			.at = entry_place(fat, f, *at),
		};
		if (is_long)
			snprintf(out->name, sizeof(out->name), "%.255s", l.text);
		else
			short_name(e.name, out->name);
		*at += ENTRY;
		return true;
	}
	return false;
}

static bool find_in(const struct fat *fat, const struct folder *f, const char *name, size_t len, struct fat_entry *e)
{
	for (size_t at = 0; next_entry(fat, f, &at, e);)
		if (strlen(e->name) == len && strncasecmp(e->name, name, len) == 0)
			return true;
	return false;
}

/* The folder at @path's first @len characters. */
static struct error *open_folder(struct fat *fat, const char *path, size_t len, struct folder *f)
{
	const char *end = path + len;
	struct fat_entry e;

	TRY(load_folder(fat, fat->root, f));
	while (path < end) {
		const char *slash = memchr(path, '/', (size_t)(end - path));
		size_t n = (size_t)((slash ? slash : end) - path);
		if (!find_in(fat, f, path, n, &e) || !e.folder)
			return error_new(ENOENT, "%s: its ESP has no folder %.*s", fat->m->name, (int)n, path);
		folder_free(f);
		TRY(load_folder(fat, e.cluster, f));
		path += slash ? n + 1 : n;
	}
	return NULL;
}

struct error *fat_list(struct fat *fat, const char *path, struct error *(*each)(void *arg, const struct fat_entry *e),
		       void *arg)
{
	cleanup_folder struct folder f = {};
	struct fat_entry e;

	TRY(open_folder(fat, path, strlen(path), &f));
	for (size_t at = 0; next_entry(fat, &f, &at, &e);)
		if (e.name[0] != '.')
			TRY(each(arg, &e));
	return NULL;
}

/* The folder of @path, and the name in it. */
static struct error *open_parent(struct fat *fat, const char *path, struct folder *f, const char **name)
{
	const char *slash = strrchr(path, '/');

	*name = slash ? slash + 1 : path;
	return open_folder(fat, path, slash ? (size_t)(slash - path) : 0, f);
}

/* --- files --- */

struct error *fat_read(struct fat *fat, const char *path, size_t max, char **data, size_t *len)
{
	cleanup_folder struct folder f = {};
	const char *name;
	struct fat_entry e;

	TRY(open_parent(fat, path, &f, &name));
	if (!find_in(fat, &f, name, strlen(name), &e) || e.folder)
		return error_new(ENOENT, "%s: its ESP has no file %s", fat->m->name, path);
	if (e.size > max)
		return error_new(EFBIG, "%s: %s in its ESP has %u bytes, and %zu are the most", fat->m->name, path,
				 e.size, max);
	size_t room = align_up(e.size, fat->cluster);
	cleanup_free char *buf = malloc(room + 1);
	if (!buf)
		return no_memory(fat);
	for (size_t at = 0; at < room; at += fat->cluster) {
		if (!is_cluster(fat, e.cluster))
			return damaged(fat, "a file is shorter than it says");
		TRY(blocks_read(fat->m, buf + at, fat->cluster, place(fat, e.cluster)));
		e.cluster = get(fat, e.cluster);
	}
	buf[e.size] = '\0';
	*len = e.size;
	*data = steal_ptr(&buf);
	return NULL;
}

/* Writes @len bytes into the chain at @first; the last cluster's rest is zeroes. */
static struct error *write_chain(struct fat *fat, uint32_t first, const uint8_t *data, size_t len)
{
	cleanup_free uint8_t *last = calloc(1, fat->cluster);
	uint32_t cluster = first;

	if (!last)
		return no_memory(fat);
	while (len > 0) {
		uint32_t run = 1, end = cluster;
		/* What lies together goes together. */
		for (; run * (size_t)fat->cluster < MIN(len, (size_t)MIB) && get(fat, end) == end + 1; end++)
			run++;
		size_t n = (size_t)run * fat->cluster;
		if (n > len && run > 1) {
			run--;
			end--;
			n -= fat->cluster;
		}
		if (n > len)
			memcpy(last, data, len);
		TRY(blocks_write(fat->m, n > len ? last : data, n, place(fat, cluster)));
		data += MIN(n, len);
		len -= MIN(n, len);
		cluster = get(fat, end);
	}
	return NULL;
}

/* --- new entries --- */

static bool fits_short(const char *name)
{
	const char *dot = strchr(name, '.');
	size_t base = dot ? (size_t)(dot - name) : strlen(name), end = dot ? strlen(dot + 1) : 0;

	if (base < 1 || base > 8 || end > 3 || (dot && end == 0))
		return false;
	for (const char *c = name; *c; c++)
		if (c != dot && !isalnum((unsigned char)*c) && *c != '_' && *c != '-')
			return false;
	return true;
}

/* The name of 11 characters that stands for @name: itself in capitals, or its beginning with a number. */
static void make_short(const char *name, unsigned number, char to[11])
{
	const char *dot = strrchr(name, '.');
	char tail[8] = "";
	size_t at = 0;

	memset(to, ' ', 11);
	if (number)
		snprintf(tail, sizeof(tail), "~%u", number);
	for (const char *c = name; *c && c != dot && at < 8 - strlen(tail); c++)
		if (isalnum((unsigned char)*c) || *c == '_' || *c == '-')
			to[at++] = (char)toupper((unsigned char)*c);
	for (const char *c = tail; *c && at < 8; c++)
		to[at++] = *c;
	at = 8;
	for (const char *c = dot ? dot + 1 : ""; *c && at < 11; c++)
		if (isalnum((unsigned char)*c))
			to[at++] = (char)toupper((unsigned char)*c);
}

static bool has_short(const struct folder *f, const char name[11])
{
	for (size_t at = 0; at + ENTRY <= f->len && f->bytes[at] != 0; at += ENTRY)
		if (f->bytes[at] != 0xe5 && (f->bytes[at + 11] & 0x3f) != LONG && memcmp(f->bytes + at, name, 11) == 0)
			return true;
	return false;
}

static bool is_short(const char *name)
{
	for (const char *c = name; *c; c++)
		if (islower((unsigned char)*c))
			return false;
	return fits_short(name);
}

static void fill_long(uint8_t *e, const char *name, unsigned part, unsigned parts, uint8_t sum)
{
	size_t len = strlen(name), at = (size_t)(part - 1) * LONG_CHARS;

	memset(e, 0, ENTRY);
	e[0] = (uint8_t)(part | (part == parts ? 0x40 : 0));
	e[11] = LONG;
	e[13] = sum;
	for (unsigned i = 0; i < LONG_CHARS; i++, at++) {
		e[long_at[i]] = at < len ? (uint8_t)name[at] : at == len ? 0 : 0xff;
		e[long_at[i] + 1] = at > len ? 0xff : 0;
	}
}

/* Makes room for @count entries together: where. The folder may get a cluster more. */
static struct error *find_slots(struct fat *fat, struct folder *f, size_t count, size_t *where)
{
	size_t run = 0, at = 0;
	bool end = false;
	uint32_t added;

	for (; at + ENTRY <= f->len && run < count; at += ENTRY) {
		/* Behind the end there may be anything: it is free. */
		end = end || f->bytes[at] == 0;
		run = end || f->bytes[at] == 0xe5 ? run + 1 : 0;
	}
	*where = at - run * ENTRY;
	if (run == count)
		return NULL;
	uint8_t *bytes = realloc(f->bytes, f->len + fat->cluster);
	if (bytes)
		f->bytes = bytes;
	uint32_t *clusters = bytes ? reallocarray(f->clusters, f->count + 1, sizeof(*clusters)) : NULL;
	if (!clusters || f->len >= FOLDER_MAX)
		return no_memory(fat);
	f->clusters = clusters;
	TRY(allocate(fat, 1, &added));
	memset(f->bytes + f->len, 0, fat->cluster);
	TRY(blocks_write(fat->m, f->bytes + f->len, fat->cluster, place(fat, added)));
	set(fat, f->clusters[f->count - 1], added);
	TRY(write_table(fat));
	f->clusters[f->count++] = added;
	f->len += fat->cluster;
	return find_slots(fat, f, count, where);
}

/* Writes the entries at [@at, @at + @len), and the end behind them: in order, so that the short one comes last. */
static struct error *write_slots(struct fat *fat, struct folder *f, size_t at, size_t len, bool was_end)
{
	size_t to = at + len;

	if (was_end && to < f->len) {
		f->bytes[to] = 0;
		to += ENTRY;
	}
	for (size_t sector = align_down(at, SECTOR); sector < to; sector += SECTOR) {
		TRY(blocks_write(fat->m, f->bytes + sector, SECTOR, entry_place(fat, f, sector)));
		TRY(blocks_flush(fat->m));
	}
	return NULL;
}

static struct error *add_entry(struct fat *fat, struct folder *f, const char *name, uint8_t attributes,
			       uint32_t cluster, uint32_t size)
{
	unsigned parts = is_short(name) ? 0 : (unsigned)(strlen(name) + LONG_CHARS - 1) / LONG_CHARS, number = 0;
	size_t at, end = 0;
	struct entry e;
	char alias[11];

	make_short(name, fits_short(name) ? 0 : ++number, alias);
	while (has_short(f, alias) && number < 9999)
		make_short(name, ++number, alias);
	if (strlen(name) > FAT_NAME_MAX || has_short(f, alias))
		return error_new(EINVAL, "%s: its ESP cannot have a file %s", fat->m->name, name);
	TRY(find_slots(fat, f, parts + 1, &at));
	while (end < f->len && f->bytes[end] != 0)
		end += ENTRY;
	for (unsigned i = 0; i < parts; i++)
		fill_long(f->bytes + at + (size_t)i * ENTRY, name, parts - i, parts, name_sum(alias));
	fill_entry(fat, &e, alias, attributes, cluster, size);
	memcpy(f->bytes + at + (size_t)parts * ENTRY, &e, sizeof(e));
	size_t len = ((size_t)parts + 1) * ENTRY;
	return write_slots(fat, f, at, len, end < at + len);
}

struct error *fat_make_folder(struct fat *fat, const char *path)
{
	cleanup_folder struct folder f = {};
	cleanup_free uint8_t *bytes = calloc(1, fat->cluster);
	struct fat_entry existing;
	struct entry dots[2];
	const char *name;
	uint32_t cluster;

	if (!bytes)
		return no_memory(fat);
	TRY(open_parent(fat, path, &f, &name));
	if (find_in(fat, &f, name, strlen(name), &existing))
		return existing.folder ? NULL : error_new(ENOTDIR, "%s: %s in its ESP", fat->m->name, path);
	TRY(allocate(fat, 1, &cluster));
	uint32_t parent = f.clusters[0] == fat->root ? 0 : f.clusters[0];
	fill_entry(fat, &dots[0], ".          ", FOLDER, cluster, 0);
	fill_entry(fat, &dots[1], "..         ", FOLDER, parent, 0);
	memcpy(bytes, dots, sizeof(dots));
	TRY(blocks_write(fat->m, bytes, fat->cluster, place(fat, cluster)));
	TRY(write_table(fat));
	TRY(add_entry(fat, &f, name, FOLDER, cluster, 0));
	return write_info(fat);
}

/* Has the entry @e say that the file is the chain at @cluster: in one sector. */
static struct error *change_entry(struct fat *fat, const struct fat_entry *e, uint32_t cluster, uint32_t size)
{
	uint64_t sector_at = align_down(e->at, SECTOR);
	uint8_t sector[SECTOR];
	struct entry entry;

	TRY(blocks_read(fat->m, sector, SECTOR, sector_at));
	memcpy(&entry, sector + (e->at - sector_at), sizeof(entry));
	entry.cluster_high = htole16((uint16_t)(cluster >> 16));
	entry.cluster_low = htole16((uint16_t)cluster);
	entry.size = htole32(size);
	entry.time = htole16(fat->time);
	entry.date = htole16(fat->date);
	memcpy(sector + (e->at - sector_at), &entry, sizeof(entry));
	TRY(blocks_write(fat->m, sector, SECTOR, sector_at));
	return blocks_flush(fat->m);
}

struct error *fat_put(struct fat *fat, const char *path, const void *data, size_t len)
{
	cleanup_folder struct folder f = {};
	struct fat_entry old;
	const char *name;
	uint32_t cluster = 0;

	if (len > UINT32_MAX)
		return error_new(EFBIG, "%s: its ESP has no files of %zu bytes", fat->m->name, len);
	TRY(open_parent(fat, path, &f, &name));
	bool exists = find_in(fat, &f, name, strlen(name), &old);
	if (exists && old.folder)
		return error_new(EISDIR, "%s: %s in its ESP", fat->m->name, path);
	if (len > 0)
		TRY(allocate(fat, (uint32_t)((len + fat->cluster - 1) / fat->cluster), &cluster));
	TRY(write_chain(fat, cluster, data, len));
	TRY(write_table(fat));
	if (exists) {
		TRY(change_entry(fat, &old, cluster, (uint32_t)len));
		give_back(fat, old.cluster);
		TRY(write_table(fat));
	} else {
		TRY(add_entry(fat, &f, name, ARCHIVE, cluster, (uint32_t)len));
	}
	return write_info(fat);
}
