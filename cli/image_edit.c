/*
 * glint image edit: another host configuration, other guests on a stick that is there. STATE is not touched. Touches
 * the stick, the disks of new guests, and files without a name.
 *
 * Guests are written where nothing is; then host.toml changes, by one sector of its folder; then the table of
 * partitions changes, by one sector. A cut before either leaves what was, and a cut between them the new host.toml with
 * the old guests.
 */
#include "cli/cli.h"
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMPARE_BYTES ((size_t)MIB)

struct removed {
	const char *name;
};

struct edit_args {
	unsigned guest_count; /* first: guest_group counts there */
	struct guest_args guests[IMAGE_GUESTS_MAX];
	unsigned removed_count;
	struct removed removed[IMAGE_GUESTS_MAX];
	const char *file, *format, *host_config;
	bool quiet;
};

struct edit {
	const struct edit_args *args;
	struct opened disk;
	struct disk_medium m;
	struct gpt gpt;
	char *config;
	size_t config_len;
	struct ready_guest guests[IMAGE_GUESTS_MAX];
	uint64_t places[IMAGE_GUESTS_MAX];
	struct progress progress;
};

static struct error *remove_guests(struct edit *e)
{
	for (unsigned i = 0; i < e->args->removed_count; i++) {
		struct gpt_partition *p = guest_partition(&e->gpt, e->args->removed[i].name);
		if (!p)
			return error_hint(error_new(ENOENT, "%s: there is no guest %s on it", e->args->file,
						    e->args->removed[i].name),
					  "glint image inspect lists them");
		size_t behind = (size_t)(e->gpt.partitions + e->gpt.count - (p + 1));
		memmove(p, p + 1, behind * sizeof(*p));
		e->gpt.partitions[--e->gpt.count] = (struct gpt_partition){};
	}
	return NULL;
}

/* A place for the guest, which may make an image larger; @old: the table that holds until the new one does. */
static struct error *find_place(struct edit *e, const struct gpt *old, unsigned i)
{
	const struct ready_guest *g = &e->guests[i];
	struct gpt both = *old;

	if (guest_partition(&e->gpt, g->guest.name))
		return error_hint(error_new(EEXIST, "%s: it has a guest %s", e->args->file, g->guest.name),
				  "--remove-guest %s makes room for another", g->guest.name);
	/* The room of guests that are removed is theirs until the table is written. */
	for (unsigned k = 0; k < i && both.count < GPT_PARTITIONS_MAX; k++)
		TRY(guest_add(&both, &e->guests[k], e->places[k]));
	e->places[i] = gpt_room(&both, e->m.medium.size, g->bytes);
	uint64_t needed = gpt_size_for(&both, g->bytes);
	if (!e->places[i] && is_device(e->args->file))
		return error_hint(error_new(ENOSPC, "%s has %llu bytes, and %llu are needed for guest %s",
					    e->args->file, (unsigned long long)e->m.medium.size,
					    (unsigned long long)needed, g->guest.name),
				  "take a larger stick, or remove guests first");
	if (!e->places[i]) {
		TRY(disk_resize(e->disk.disk, needed));
		disk_info(e->disk.disk, 0, &e->disk.info);
		e->m.medium.size = e->disk.info.size;
		e->places[i] = gpt_room(&both, e->m.medium.size, g->bytes);
	}
	return guest_add(&e->gpt, g, e->places[i]);
}

/* What was written comes back from the medium. */
static struct error *compare_guest(struct edit *e, unsigned i)
{
	cleanup_free uint8_t *a = malloc(COMPARE_BYTES), *b = malloc(COMPARE_BYTES);
	const struct ready_guest *g = &e->guests[i];

	if (!a || !b)
		return error_new(ENOMEM, "read guest %s back", g->guest.name);
	for (uint64_t at = 0; at < g->guest.image; at += COMPARE_BYTES) {
		size_t n = MIN(COMPARE_BYTES, g->guest.image - at);
		TRY(pread_all(g->image.fd, a, n, (off_t)at, g->guest.name));
		TRY(blocks_read(&e->m.medium, b, n, e->places[i] + at));
		if (memcmp(a, b, n) != 0)
			return error_hint(error_new(EIO, "guest %s reads otherwise than it was written", g->guest.name),
					  "the medium is failing, or smaller than it says");
	}
	return NULL;
}

static struct error *write_guests(struct edit *e)
{
	for (unsigned i = 0; i < e->args->guest_count; i++) {
		progress_begin(&e->progress, e->guests[i].guest.name, e->guests[i].guest.image);
		struct error *err = guest_put(&e->guests[i], &e->m.medium, e->places[i], true,
					      e->args->quiet ? NULL : &e->progress);
		progress_end(&e->progress);
		TRY(err);
	}
	forget_cache(&e->disk);
	for (unsigned i = 0; i < e->args->guest_count; i++)
		TRY(compare_guest(e, i));
	return NULL;
}

static struct error *write_config(struct edit *e)
{
	const struct gpt_partition *esp = gpt_find(&e->gpt, &gpt_esp);
	cleanup_free char *back = NULL;
	struct fat *fat;
	size_t len = 0;

	if (!e->config)
		return NULL;
	if (!esp)
		return error_new(ENOENT, "%s: it has no ESP", e->args->file);
	TRY(fat_open(&fat, &e->m.medium, esp->start, esp->len, time(NULL)));
	struct error *err = fat_make_folder(fat, "glint");
	if (!err)
		err = fat_put(fat, HOST_CONFIG_PATH, e->config, e->config_len);
	forget_cache(&e->disk);
	if (!err)
		err = fat_read(fat, HOST_CONFIG_PATH, HOST_CONFIG_MAX, &back, &len);
	fat_close(fat);
	if (!err && (len != e->config_len || memcmp(back, e->config, len) != 0))
		err = error_new(EIO, "host.toml reads otherwise than it was written");
	return err;
}

static struct error *edit(struct edit *e)
{
	const struct edit_args *a = e->args;

	TRY(gpt_read(&e->m.medium, &e->gpt));
	struct gpt old = e->gpt;
	if (!gpt_find(&old, &gpt_state))
		return error_hint(error_new(0, "%s is not a stick of Glint: it has no partition STATE", a->file),
				  "name a stick, or the image of one");
	TRY(remove_guests(e));
	for (unsigned i = 0; i < a->guest_count; i++) {
		TRY(guest_prepare(&e->guests[i], &a->guests[i], scratch_folder(), a->quiet));
		TRY(find_place(e, &old, i));
	}
	TRY(write_guests(e));
	TRY(write_config(e));
	if (a->guest_count || a->removed_count || old.from_backup)
		TRY(gpt_write(&e->m.medium, &e->gpt));
	disk_medium_free(&e->m);
	return opened_finish(&e->disk);
}

static struct error *run(void *args, int *status)
{
	const struct edit_args *a = args;
	struct device_how how = {.edit = true};
	cleanup_fd int fd = -1;
	uint64_t size;

	(void)status;
	if (!a->guest_count && !a->removed_count && !a->host_config)
		return error_hint(error_new(EINVAL, "%s: what is to change is not said", a->file),
				  "give --host-config, --guest or --remove-guest");
	if (is_device(a->file))
		TRY(device_take(a->file, &how, &fd, &size));
	struct edit *e = calloc(1, sizeof(*e));
	if (!e)
		return error_new(ENOMEM, "start");
	e->args = a;
	struct error *err = a->host_config ? host_config_read(a->host_config, &e->config, &e->config_len) : NULL;
	if (!err)
		err = opened_open(&e->disk, a->file, &(struct open_how){.format = a->format});
	if (!err)
		err = disk_medium_init(&e->m, &e->disk);
	if (!err)
		err = edit(e);
	for (unsigned i = 0; i < a->guest_count; i++)
		guest_free(&e->guests[i]);
	disk_medium_free(&e->m);
	opened_close(&e->disk);
	if (!err && fd >= 0)
		device_reread(fd);
	free(e->config);
	free(e);
	return err;
}

static const struct option removed_fields[] = {
	{"name", OPTION_TEXT, offsetof(struct removed, name), .value = "NAME", .min = 1, .help = "the guest"}, {NULL}};
static const struct option_group removed_group = {
	.fields = removed_fields,
	.bytes = sizeof(struct removed),
	.count_offset = offsetof(struct edit_args, removed_count),
	.most = IMAGE_GUESTS_MAX,
};

static const struct option edit_options[] = {
	{"file", OPTION_TEXT, offsetof(struct edit_args, file), .value = "FILE|DEVICE", .min = 1,
	 .help = "the stick, or the image of one"},
	{"host-config", OPTION_TEXT, offsetof(struct edit_args, host_config), .value = "FILE", .min = 1,
	 .help = "becomes glint/host.toml on the stick"},
	{"guest", OPTION_GROUP, offsetof(struct edit_args, guests), .group = &guest_group,
	 .help = "a guest more that the stick carries; may be given again"},
	{"remove-guest", OPTION_GROUP, offsetof(struct edit_args, removed), .group = &removed_group,
	 .help = "a guest that it carries no more; may be given again"},
	{"format", OPTION_TEXT, offsetof(struct edit_args, format), .value = "FORMAT", .min = 1,
	 .help = "what the image is (default: what its contents say)"},
	{"quiet", OPTION_FLAG, offsetof(struct edit_args, quiet), .help = "no progress on a terminal"},
	{NULL},
};

const struct command image_edit_command = {
	.group = "image",
	.name = "edit",
	.summary = "Gives a stick another host configuration, and adds and removes guests",
	.more = "The host's state is not touched. A cut leaves the stick as it was or as it is to be; between the two "
		"a new "
		"host.toml may be there before the guests. An image becomes larger where a guest asks for it; a device "
		"must have the room.",
	.options = edit_options,
	.words = 1,
	.bytes = sizeof(struct edit_args),
	.run = run,
};
