/*
 * glint image update: a new host in the other slot of a stick that nothing runs from, or of the image of one. Touches
 * the stick; the new host and the maker's certificate, to read.
 *
 * The slot that would be booted stays as it is (docs/update.md has the order of writes).
 */
#include "cli/cli.h"
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "update/bar.h"
#include "update/update.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct update_args {
	const char *file, *uki, *certificate, *format;
	bool json, quiet;
};

struct updating {
	struct opened disk;
	struct disk_medium m;
	struct update update;
	struct bar bar;
};

static void forget(void *arg)
{
	struct updating *u = arg;

	forget_cache(&u->disk);
}

static void show(void *arg, const char *what)
{
	struct updating *u = arg;

	bar_step(&u->bar, what, u->update.len);
}

static struct error *update(struct updating *u, const struct update_args *a)
{
	struct gpt gpt;
	struct fat *fat;

	TRY(opened_open(&u->disk, a->file, &(struct open_how){.format = a->format}));
	TRY(disk_medium_init(&u->m, &u->disk));
	TRY(gpt_read(&u->m.medium, &gpt));
	const struct gpt_partition *esp = gpt_find(&gpt, &gpt_esp);
	if (!esp || !gpt_find(&gpt, &gpt_state))
		return error_hint(error_new(0, "%s is not a stick of Glint", a->file),
				  "name a stick, or the image of one");
	bar_init(&u->bar, &u->m.medium, a->quiet);
	TRY(fat_open(&fat, &u->bar.blocks, esp->start, esp->len, time(NULL)));
	u->update.forget = forget;
	u->update.step = show;
	u->update.arg = u;
	struct error *err = update_write(&u->update, fat);
	bar_step(&u->bar, NULL, 0);
	fat_close(fat);
	TRY(err);
	disk_medium_free(&u->m);
	return opened_finish(&u->disk);
}

static struct error *tell(const struct update *u, const struct update_args *a)
{
	if (a->json)
		return print_json(json_pack("{s:s, s:i, s:s, s:s, s:s}", "version", u->release.version, "security",
					    (int)u->release.security, "written", u->written, "kept", u->kept.file,
					    "removed", u->removed));
	printf("%s: version %s is in slot %s, read back and the same%s%s. %s stays.\n", a->file, u->release.version,
	       u->written, *u->removed ? ", in place of " : "", u->removed, u->kept.file);
	return NULL;
}

static struct error *run(void *args, int *status)
{
	const struct update_args *a = args;
	struct device_how how = {.edit = true};
	cleanup_free char *data = NULL, *certificate = NULL;
	struct updating u = {};
	cleanup_fd int fd = -1;
	size_t len, certificate_len;
	uint64_t size;

	(void)status;
	if (!a->certificate)
		return error_hint(error_new(EINVAL, "whose signature the new host must have is not said"),
				  "give --cert with the maker's certificate (image/build keeps it as maker.crt)");
	TRY(read_file(a->certificate, MIB, &certificate, &certificate_len));
	TRY(read_file(a->uki, UPDATE_BYTES_MAX, &data, &len));
	u.update = (struct update){.data = data, .len = len, .what = a->uki};
	TRY(update_check(&u.update, certificate, certificate_len));
	if (is_device(a->file))
		TRY(device_take(a->file, &how, &fd, &size));
	struct error *err = update(&u, a);
	disk_medium_free(&u.m);
	opened_close(&u.disk);
	return err ? err : tell(&u.update, a);
}

static const struct option update_options[] = {
	{"file", OPTION_TEXT, offsetof(struct update_args, file), .value = "FILE|DEVICE", .min = 1,
	 .help = "the stick, or the image of one"},
	{"uki", OPTION_TEXT, offsetof(struct update_args, uki), .value = "UKI", .min = 1,
	 .help = "the new host, a UKI of the maker"},
	{"cert", OPTION_TEXT, offsetof(struct update_args, certificate), .value = "FILE", .min = 1,
	 .help = "the maker's certificate (PEM), by which it must be signed"},
	{"format", OPTION_TEXT, offsetof(struct update_args, format), .value = "FORMAT", .min = 1,
	 .help = "what the image is (default: what its contents say)"},
	{"json", OPTION_FLAG, offsetof(struct update_args, json), .help = "say what was done as JSON"},
	{"quiet", OPTION_FLAG, offsetof(struct update_args, quiet), .help = "no progress on a terminal"},
	{NULL},
};

const struct command image_update_command = {
	.group = "image",
	.name = "update",
	.summary = "Puts a new host into the other slot of a stick",
	.more = "The slot that would be booted stays: the newest that is known to be good, else the newest with tries "
		"left. "
		"The new host must be whole, signed by the maker, newer, and of no lower security level; what is "
		"refused "
		"changes nothing. It is read back before it gets its name. Nothing may run from the stick: a running "
		"host "
		"is updated by glint-update, or by a file glint/update.efi on its stick.",
	.options = update_options,
	.words = 2,
	.bytes = sizeof(struct update_args),
	.run = run,
};
