/*
 * glint disk info, map: what an image says about itself, and where its contents are. Opens images for reading.
 */
#include "cli/cli.h"
#include "cli/disk.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct query {
	const char *file, *pool, *format;
	bool chain, json;
};

/* --- info --- */

/* Bytes that the file takes of its file system. */
static uint64_t bytes_used(const struct disk *disk, unsigned level)
{
	struct stat st;

	return fstat(disk_fd(disk, level), &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

/* Whether another has locked it for writing. */
static bool in_use(const struct disk *disk)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};

	return fcntl(disk_fd(disk, 0), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static json_t *image_json(const struct disk *disk, unsigned level)
{
	struct disk_info i;
	char text[40];

	disk_info(disk, level, &i);
	json_t *json = json_pack("{s:s, s:s, s:I, s:I, s:I, s:i, s:i}", "file", i.name, "format", i.format, "size",
				 (json_int_t)i.size, "file-size", (json_int_t)i.file_size, "allocated",
				 (json_int_t)bytes_used(disk, level), "sector", (int)i.sector, "physical-sector",
				 (int)i.physical);
	bool good = json != NULL;
	if (i.subformat)
		good = good && json_object_set_new(json, "subformat", json_string(i.subformat)) == 0;
	if (i.block)
		good = good && json_object_set_new(json, "block", json_integer(i.block)) == 0;
	if (*id_text(&i, i.id, text))
		good = good && json_object_set_new(json, "id", json_string(text)) == 0;
	if (*id_text(&i, i.data_id, text))
		good = good && json_object_set_new(json, "data-id", json_string(text)) == 0;
	if (level == 0)
		good = good && json_object_set_new(json, "in-use", json_boolean(in_use(disk))) == 0;
	if (good)
		return json;
	json_decref(json);
	return NULL;
}

/* @missing: why its parents are not known, or NULL. */
static struct error *show_json(const struct disk *disk, const struct error *missing)
{
	json_t *json = image_json(disk, 0), *parents = json_array();
	bool good = json && parents;

	for (unsigned level = 1; good && level < disk_depth(disk); level++)
		good = json_array_append_new(parents, image_json(disk, level)) == 0;
	if (good && missing)
		good = json_object_set_new(json, "parents-missing", json_string(error_text(missing))) == 0;
	if (json_object_set_new(json, "parents", parents) == 0 && good)
		return print_json(json);
	json_decref(json);
	return error_new(ENOMEM, "tell about it");
}

static void show_image(const struct disk *disk, unsigned level)
{
	struct disk_info i;
	char text[40], size[32], file_size[32], used[32];

	disk_info(disk, level, &i);
	printf("file:       %s\nformat:     %s%s%s\n", i.name, i.format, i.subformat ? ", " : "",
	       i.subformat ? i.subformat : "");
	printf("size:       %s (%llu bytes)\n", bytes_text(i.size, size), (unsigned long long)i.size);
	printf("file size:  %s, of which %s are there\n", bytes_text(i.file_size, file_size),
	       bytes_text(bytes_used(disk, level), used));
	printf("sector:     %u bytes, physical %u\n", i.sector, i.physical);
	if (i.block)
		printf("block:      %s\n", bytes_text(i.block, size));
	if (*id_text(&i, i.id, text))
		printf("id:         %s\n", text);
	if (*id_text(&i, i.data_id, text))
		printf("contents:   %s\n", text);
}

static void show(const struct disk *disk, const struct error *missing, bool chain)
{
	struct disk_info i;

	show_image(disk, 0);
	if (in_use(disk))
		puts("in use:     yes, what is told here may be changing");
	if (missing)
		printf("parent:     not found: %s\n", error_text(missing));
	for (unsigned level = 1; level < disk_depth(disk); level++) {
		disk_info(disk, level, &i);
		if (chain) {
			printf("\nparent %u:\n", level);
			show_image(disk, level);
		} else {
			printf("parent:     %s\n", i.name);
		}
	}
}

/* Nothing is locked: a disk in use can be looked at too. Where the parents cannot be had, the image is told of alone.
 */
static struct error *info(void *args, int *status)
{
	const struct query *q = args;
	struct open_how how = {.format = q->format, .pool = q->pool, .readonly = true, .idle = true};
	cleanup_opened struct opened o = {};
	cleanup_error struct error *missing = opened_open(&o, q->file, &how);

	(void)status;
	if (missing) {
		how.alone = true;
		struct error *err = opened_open(&o, q->file, &how);
		if (err || q->chain || !o.info.parent) {
			error_free(err);
			return steal_ptr(&missing);
		}
	}
	if (q->json)
		return show_json(o.disk, missing);
	show(o.disk, missing, q->chain);
	return NULL;
}

#define FILE_OPTION {"file", OPTION_TEXT, offsetof(struct query, file), .value = "FILE", .min = 1, .help = "the image"}
#define FORMAT_OPTION                                                                                                  \
	{"format",          OPTION_TEXT, offsetof(struct query, format),                                               \
	 .value = "FORMAT", .min = 1,    .help = "what it is (default: what its contents say)"}
#define POOL_OPTION                                                                                                    \
	{                                                                                                              \
		"pool",                                                                                                \
		OPTION_TEXT,                                                                                           \
		offsetof(struct query, pool),                                                                          \
		.value = "DIR",                                                                                        \
		.min = 1,                                                                                              \
		.help = "the folder that the image and its parents lie in (default: the image's)"}
#define JSON_OPTION {"json", OPTION_FLAG, offsetof(struct query, json), .help = "for programs"}

static const struct option info_options[] = {
	FILE_OPTION,
	{"chain", OPTION_FLAG, offsetof(struct query, chain), .help = "tell of all its parents, which must be there"},
	JSON_OPTION,
	FORMAT_OPTION,
	POOL_OPTION,
	{NULL},
};

const struct command disk_info_command = {
	.group = "disk",
	.name = "info",
	.summary = "Tells the format, the sizes, the ids and the parents of an image",
	.more = "Nothing is locked and nothing changed: it also tells about a disk in use.",
	.options = info_options,
	.words = 1,
	.bytes = sizeof(struct query),
	.run = info,
};

/* --- map --- */

static bool same(const struct disk_range *a, const struct disk_range *b)
{
	return a->kind == b->kind && a->level == b->level &&
	       (a->kind != DISK_DATA || (a->at == DISK_NO_PLACE ? b->at == a->at : a->at + a->len == b->at));
}

static struct error *add_range(json_t *list, uint64_t start, const struct disk_range *range)
{
	bool data = range->kind == DISK_DATA;
	json_t *json = json_pack("{s:I, s:I, s:s, s:i}", "start", (json_int_t)start, "length", (json_int_t)range->len,
				 "kind", data ? "data" : "zero", "level", (int)range->level);

	if (json && data && range->at != DISK_NO_PLACE)
		json_object_set_new(json, "offset", json_integer((json_int_t)range->at));
	return json_array_append_new(list, json) == 0 ? NULL : error_new(ENOMEM, "tell about it");
}

static void print_range(uint64_t start, const struct disk_range *range)
{
	printf("%16llu %16llu  %-4s  %5u", (unsigned long long)start, (unsigned long long)range->len,
	       range->kind == DISK_DATA ? "data" : "zero", range->level);
	if (range->kind == DISK_DATA && range->at != DISK_NO_PLACE)
		printf(" %16llu", (unsigned long long)range->at);
	putchar('\n');
}

/* One range after the other; what is of one kind and lies together is one. */
static struct error *each_range(struct disk *disk, uint64_t size, json_t *list)
{
	struct disk_range whole = {}, next;
	uint64_t start = 0;

	for (uint64_t at = 0; at < size; at += next.len) {
		TRY(disk_map(disk, at, &next));
		if (at > 0 && same(&whole, &next)) {
			whole.len += next.len;
			continue;
		}
		if (at > 0 && list)
			TRY(add_range(list, start, &whole));
		else if (at > 0)
			print_range(start, &whole);
		whole = next;
		start = at;
	}
	if (list)
		return add_range(list, start, &whole);
	print_range(start, &whole);
	return NULL;
}

static struct error *map(void *args, int *status)
{
	const struct query *q = args;
	cleanup_opened struct opened o = {};

	(void)status;
	TRY(opened_open(&o, q->file, &(struct open_how){.format = q->format, .pool = q->pool, .readonly = true}));
	if (!q->json) {
		printf("%16s %16s  %-4s  %5s %16s\n", "start", "length", "kind", "level", "in its file at");
		return each_range(o.disk, o.info.size, NULL);
	}
	json_t *list = json_array();
	struct error *err = list ? each_range(o.disk, o.info.size, list) : error_new(ENOMEM, "tell about it");
	if (!err)
		return print_json(list);
	json_decref(list);
	return err;
}

static const struct option map_options[] = {FILE_OPTION, JSON_OPTION, FORMAT_OPTION, POOL_OPTION, {NULL}};

const struct command disk_map_command = {
	.group = "disk",
	.name = "map",
	.summary = "Lists the ranges of a disk: data or zeroes, and which image of the chain has them",
	.more = "Level 0 is the image itself, 1 its parent, and so on.",
	.options = map_options,
	.words = 1,
	.bytes = sizeof(struct query),
	.run = map,
};
