/*
 * FAT32's folders and files; see fat.h, and fat.c for the order of writes. Touches its part of the medium.
 */
#include "stick/fat_internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER_MAX ((size_t)1 << 20)
#define LONG_PARTS 20u
#define LONG_CHARS 13u

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

/* --- folders --- */

static struct error *load_folder(struct fat *fat, uint32_t cluster, struct folder *f)
{
	size_t most = MAX(FOLDER_MAX / fat->cluster, (size_t)1);

	*f = (struct folder){};
	f->bytes = malloc(most * fat->cluster);
	f->clusters = calloc(most, sizeof(*f->clusters));
	if (!f->bytes || !f->clusters)
		return fat_no_memory(fat);
	for (; cluster < END_LEAST; cluster = fat_get(fat, cluster)) {
		if (!fat_is_cluster(fat, cluster) || f->count == most)
			return fat_damaged(fat, "a folder has no end");
		TRY(blocks_read(fat->m, f->bytes + f->len, fat->cluster, fat_place(fat, cluster)));
		f->clusters[f->count++] = cluster;
		f->len += fat->cluster;
	}
	return NULL;
}

static uint64_t entry_place(const struct fat *fat, const struct folder *f, size_t at)
{
	return fat_place(fat, f->clusters[at / fat->cluster]) + at % fat->cluster;
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

/* How many clusters of a chain, from @cluster on, lie together in at most @bytes, rounded up, and in one MiB. */
static uint32_t run_at(const struct fat *fat, uint32_t cluster, size_t bytes)
{
	uint32_t run = 1;

	while (run * (size_t)fat->cluster < MIN(bytes, (size_t)MIB) &&
	       fat_get(fat, cluster + run - 1) == cluster + run && fat_is_cluster(fat, cluster + run))
		run++;
	return run;
}

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
		return fat_no_memory(fat);
	for (size_t at = 0, n; at < room; at += n) {
		if (!fat_is_cluster(fat, e.cluster))
			return fat_damaged(fat, "a file is shorter than it says");
		uint32_t run = run_at(fat, e.cluster, room - at);
		n = (size_t)run * fat->cluster;
		TRY(blocks_read(fat->m, buf + at, n, fat_place(fat, e.cluster)));
		e.cluster = fat_get(fat, e.cluster + run - 1);
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
		return fat_no_memory(fat);
	while (len > 0) {
		/* What lies together goes together; a last cluster that is not full by itself. */
		uint32_t run = run_at(fat, cluster, len);
		size_t n = (size_t)run * fat->cluster;
		if (n > len && run > 1)
			n -= fat->cluster;
		if (n > len)
			memcpy(last, data, len);
		TRY(blocks_write(fat->m, n > len ? last : data, n, fat_place(fat, cluster)));
		cluster = fat_get(fat, cluster + (uint32_t)(n / fat->cluster) - 1);
		data += MIN(n, len);
		len -= MIN(n, len);
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

/* A cluster more for the folder. */
static struct error *grow_folder(struct fat *fat, struct folder *f)
{
	uint32_t added;

	if (f->len >= FOLDER_MAX)
		return fat_no_memory(fat);
	uint8_t *bytes = realloc(f->bytes, f->len + fat->cluster);
	if (bytes)
		f->bytes = bytes;
	uint32_t *clusters = bytes ? reallocarray(f->clusters, f->count + 1, sizeof(*clusters)) : NULL;
	if (!clusters)
		return fat_no_memory(fat);
	f->clusters = clusters;
	TRY(fat_allocate(fat, 1, &added));
	memset(f->bytes + f->len, 0, fat->cluster);
	TRY(blocks_write(fat->m, f->bytes + f->len, fat->cluster, fat_place(fat, added)));
	/* Its own word is durable before another points at it: a chain has an end at every moment. */
	TRY(fat_write_table(fat));
	fat_set(fat, f->clusters[f->count - 1], added);
	TRY(fat_write_table(fat));
	f->clusters[f->count++] = added;
	f->len += fat->cluster;
	return NULL;
}

/* Where @count entries have room together in one sector. */
static struct error *find_slots(struct fat *fat, struct folder *f, size_t count, size_t *where)
{
	for (;;) {
		size_t run = 0;
		bool end = false;
		for (size_t at = 0; at + ENTRY <= f->len; at += ENTRY) {
			/* Behind the end there may be anything: it is free. */
			end = end || f->bytes[at] == 0;
			run = is_aligned(at, SECTOR) ? 0 : run;
			run = end || f->bytes[at] == 0xe5 ? run + 1 : 0;
			*where = at + ENTRY - run * ENTRY;
			if (run == count)
				return NULL;
		}
		TRY(grow_folder(fat, f));
	}
}

/* Writes the folder's sectors from the one of @from up to that of @last, the last one first, each durable before the
 * next. */
static struct error *write_sectors(struct fat *fat, const struct folder *f, size_t from, size_t last)
{
	for (size_t at = align_down(last, SECTOR) + SECTOR; at > align_down(from, SECTOR);) {
		at -= SECTOR;
		TRY(blocks_write(fat->m, f->bytes + at, SECTOR, entry_place(fat, f, at)));
		TRY(blocks_flush(fat->m));
	}
	return NULL;
}

/*
 * Writes the entries at [@at, @at + @len), which lie in one sector: they are there at once or not at all. @end: where
 * the folder ended. What lies between its end and them is marked as removed; that is written last, so that what is
 * behind the end stays unseen until all of it is right.
 */
static struct error *write_slots(struct fat *fat, struct folder *f, size_t at, size_t len, size_t end)
{
	size_t last = at + len - ENTRY;

	for (size_t gap = end; gap < at; gap += ENTRY)
		f->bytes[gap] = 0xe5;
	if (end < at + len && at + len < f->len) {
		f->bytes[at + len] = 0;
		last += ENTRY;
	}
	return write_sectors(fat, f, MIN(at, end), last);
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
	if ((parts + 1) * ENTRY > SECTOR || has_short(f, alias))
		return error_new(EINVAL, "%s: its ESP cannot have a file %s", fat->m->name, name);
	TRY(find_slots(fat, f, parts + 1, &at));
	while (end < f->len && f->bytes[end] != 0)
		end += ENTRY;
	for (unsigned i = 0; i < parts; i++)
		fill_long(f->bytes + at + (size_t)i * ENTRY, name, parts - i, parts, name_sum(alias));
	fat_fill_entry(fat, &e, alias, attributes, cluster, size);
	memcpy(f->bytes + at + (size_t)parts * ENTRY, &e, sizeof(e));
	size_t len = ((size_t)parts + 1) * ENTRY;
	return write_slots(fat, f, at, len, end);
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
		return fat_no_memory(fat);
	TRY(open_parent(fat, path, &f, &name));
	if (find_in(fat, &f, name, strlen(name), &existing))
		return existing.folder ? NULL : error_new(ENOTDIR, "%s: %s in its ESP", fat->m->name, path);
	TRY(fat_allocate(fat, 1, &cluster));
	uint32_t parent = f.clusters[0] == fat->root ? 0 : f.clusters[0];
	fat_fill_entry(fat, &dots[0], ".          ", FOLDER, cluster, 0);
	fat_fill_entry(fat, &dots[1], "..         ", FOLDER, parent, 0);
	memcpy(bytes, dots, sizeof(dots));
	TRY(blocks_write(fat->m, bytes, fat->cluster, fat_place(fat, cluster)));
	TRY(fat_write_table(fat));
	TRY(add_entry(fat, &f, name, FOLDER, cluster, 0));
	return fat_write_info(fat);
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

/* --- files, in halves --- */

struct error *fat_write(struct fat *fat, const void *data, size_t len, struct fat_chain *chain)
{
	*chain = (struct fat_chain){.data = data, .len = len};
	if (len > UINT32_MAX)
		return error_new(EFBIG, "%s: its ESP has no files of %zu bytes", fat->m->name, len);
	if (len > 0)
		TRY(fat_allocate(fat, (uint32_t)((len + fat->cluster - 1) / fat->cluster), &chain->first));
	struct error *err = write_chain(fat, chain->first, data, len);
	if (!err)
		err = blocks_flush(fat->m);
	if (err)
		fat_give_back(fat, chain->first);
	return err;
}

struct error *fat_compare(struct fat *fat, const struct fat_chain *chain)
{
	cleanup_free uint8_t *buf = malloc(MAX((size_t)MIB, (size_t)fat->cluster));
	uint32_t cluster = chain->first;

	if (!buf)
		return fat_no_memory(fat);
	for (size_t at = 0, n; at < chain->len; at += n) {
		uint32_t run = run_at(fat, cluster, chain->len - at);
		n = (size_t)run * fat->cluster;
		TRY(blocks_read(fat->m, buf, n, fat_place(fat, cluster)));
		if (memcmp(buf, chain->data + at, MIN(n, chain->len - at)) != 0)
			return error_hint(error_new(EIO, "%s: what was written reads otherwise", fat->m->name),
					  "the medium is failing, or smaller than it says");
		cluster = fat_get(fat, cluster + run - 1);
	}
	return NULL;
}

struct error *fat_name(struct fat *fat, const char *path, const struct fat_chain *chain)
{
	cleanup_folder struct folder f = {};
	uint32_t len = (uint32_t)chain->len;
	struct fat_entry old = {};
	const char *name;

	struct error *err = open_parent(fat, path, &f, &name);
	bool exists = !err && find_in(fat, &f, name, strlen(name), &old);
	if (exists && old.folder)
		err = error_new(EISDIR, "%s: %s in its ESP", fat->m->name, path);
	if (err) {
		fat_give_back(fat, chain->first);
		return err;
	}
	TRY(fat_write_table(fat));
	if (exists) {
		TRY(change_entry(fat, &old, chain->first, len));
		fat_give_back(fat, old.cluster);
		TRY(fat_write_table(fat));
	} else {
		TRY(add_entry(fat, &f, name, ARCHIVE, chain->first, len));
	}
	return fat_write_info(fat);
}

struct error *fat_put(struct fat *fat, const char *path, const void *data, size_t len)
{
	struct fat_chain chain;

	TRY(fat_write(fat, data, len, &chain));
	return fat_name(fat, path, &chain);
}

/* --- other names, and none --- */

/* The entries of the file @name: from the first part of its long name to the short one. */
static struct error *find_set(struct fat *fat, const struct folder *f, const char *name, size_t *from, size_t *shortly,
			      struct fat_entry *e)
{
	for (size_t at = 0; next_entry(fat, f, &at, e);) {
		if (strcasecmp(e->name, name) != 0 || e->folder)
			continue;
		*shortly = *from = at - ENTRY;
		while (*from >= ENTRY && f->bytes[*from - ENTRY] != 0xe5 &&
		       (f->bytes[*from - ENTRY + 11] & 0x3f) == LONG) {
			*from -= ENTRY;
			if (f->bytes[*from] & 0x40)
				break;
		}
		return NULL;
	}
	return error_new(ENOENT, "%s: its ESP has no file %s", fat->m->name, name);
}

struct error *fat_rename(struct fat *fat, const char *path, const char *to)
{
	cleanup_folder struct folder f = {};
	size_t from = 0, shortly = 0, parts = (strlen(to) + LONG_CHARS - 1) / LONG_CHARS;
	struct fat_entry e = {};
	const char *name;

	TRY(open_parent(fat, path, &f, &name));
	TRY(find_set(fat, &f, name, &from, &shortly, &e));
	if (find_in(fat, &f, to, strlen(to), &e))
		return error_new(EEXIST, "%s: its ESP has a file %s", fat->m->name, to);
	if (parts == 0 || parts * ENTRY > shortly - from)
		return error_new(ENAMETOOLONG, "%s: the name %s needs more room than %s has", fat->m->name, to, name);
	size_t last = align_down(shortly - ENTRY, SECTOR), first = shortly - parts * ENTRY;
	uint8_t sum = name_sum((const char *)f.bytes + shortly);
	if (from < last) {
		/* The old name goes at once: until the new one is whole the file has its short one. */
		for (size_t at = last; at < shortly; at += ENTRY)
			f.bytes[at] = 0xe5;
		TRY(write_sectors(fat, &f, last, last));
	}
	for (size_t at = from; at < first; at += ENTRY)
		f.bytes[at] = 0xe5;
	for (size_t i = 0; i < parts; i++)
		fill_long(f.bytes + first + i * ENTRY, to, (unsigned)(parts - i), (unsigned)parts, sum);
	if (from < last)
		TRY(write_sectors(fat, &f, from, last - ENTRY));
	return write_sectors(fat, &f, last, last);
}

struct error *fat_remove(struct fat *fat, const char *path)
{
	cleanup_folder struct folder f = {};
	size_t from = 0, shortly = 0;
	struct fat_entry e = {};
	const char *name;

	TRY(open_parent(fat, path, &f, &name));
	TRY(find_set(fat, &f, name, &from, &shortly, &e));
	for (size_t at = from; at <= shortly; at += ENTRY)
		f.bytes[at] = 0xe5;
	/* The short one, which is the file, is in the last sector, and goes first. */
	TRY(write_sectors(fat, &f, from, shortly));
	fat_give_back(fat, e.cluster);
	TRY(fat_write_table(fat));
	return fat_write_info(fat);
}
