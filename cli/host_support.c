/*
 * glint host support-bundle: what support needs to know of the host that it runs on (node/support), as a file, or on
 * the host's own stick, where a person finds it who has no other way to the host. It touches that file or the stick's
 * ESP.
 */
#include "cli/cli.h"
#include "cli/disk.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "node/support/support.h"
#include "stick/esp.h"
#include "stick/fat.h"
#include "stick/loader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>

#define ON_STICK "glint/support.tar.zst"

struct support_args {
	const char *output, *root;
	bool stick, json;
};

static struct error *put_on_stick(const void *data, size_t len)
{
	cleanup_esp struct esp esp = {.fd = -1};
	char uuid[LOADER_UUID + 1], path[ESP_PATH_MAX];
	struct fat *fat;

	if (!loader_partition(LOADER_PARTITION, uuid))
		return error_hint(error_new(ENODEV, "this host was not started from a stick"),
				  "name a file by --output");
	TRY(esp_find(ESP_FOLDER, uuid, 0, path));
	TRY(esp_open(&esp, path, true));
	TRY(fat_open(&fat, &esp.medium, 0, esp.medium.size, time(NULL)));
	struct error *err = fat_put(fat, ON_STICK, data, len);
	fat_close(fat);
	return err;
}

static struct error *put(const struct support_args *a, const void *data, size_t len)
{
	if (a->stick)
		return put_on_stick(data, len);
	if (access(a->output, F_OK) == 0)
		return error_hint(error_new(EEXIST, "write %s", a->output), "name a file that is not there yet");
	return put_file(AT_FDCWD, a->output, data, len, 0600);
}

static struct error *tell(const struct support_args *a, const struct support *s)
{
	const char *where = a->stick ? ON_STICK : a->output;

	if (a->json)
		return print_json(json_pack("{s:s, s:b, s:i, s:I}", "file", where, "stick", a->stick, "parts",
					    (int)s->parts, "bytes", (json_int_t)s->bytes));
	printf("%s%s: what support needs, %u parts in %llu KiB; it holds no keys. Look into it by tar --zstd -tf.\n",
	       where, a->stick ? " of the host's stick" : "", s->parts, (unsigned long long)s->bytes / 1024);
	return NULL;
}

static struct error *run(void *args, int *status)
{
	const struct support_args *a = args;
	struct support s = {.root = a->root ? a->root : ""};
	cleanup_fd int fd = -1;

	(void)status;
	if (a->stick == (a->output != NULL))
		return error_hint(error_new(EINVAL, "where the bundle goes is not said"),
				  "give --output with a file, or --stick");
	TRY(support_gather(&s, &fd));
	void *data = mmap(NULL, s.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		return error_new(errno, "read the bundle");
	struct error *err = put(a, data, s.bytes);
	munmap(data, s.bytes);
	return err ? err : tell(a, &s);
}

static const struct option support_options[] = {
	{"output", OPTION_TEXT, offsetof(struct support_args, output), .aka = "o", .value = "FILE", .min = 1,
	 .help = "where to write it"},
	{"stick", OPTION_FLAG, offsetof(struct support_args, stick),
	 .help = "put it on the stick of this host, as " ON_STICK},
	{"root", OPTION_TEXT, offsetof(struct support_args, root), .value = "FOLDER", .min = 1,
	 .help = "take files from below it (default: /)"},
	{"json", OPTION_FLAG, offsetof(struct support_args, json), .help = "say what was done as JSON"},
	{NULL},
};

const struct command host_support_command = {
	.group = "host",
	.name = "support-bundle",
	.summary = "Gathers what support needs to know of this host",
	.more = "Versions, hardware, configuration, the journal, units, processes, counters of disks and network, the "
		"state's "
		"health, and what a crash left, as a tar archive compressed by zstd. Keys, passwords and the database "
		"are "
		"not in it; names, addresses and serial numbers are. What could not be had is named in its "
		"bundle.json. "
		"At the host's own screen the word support does the same, with --stick.",
	.options = support_options,
	.bytes = sizeof(struct support_args),
	.run = run,
};
