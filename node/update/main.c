/*
 * glint-update: puts a new host into the other slot of the stick that this one was booted from (docs/update.md).
 *
 *     glint-update FILE            checks FILE and writes it; a restart takes it
 *     glint-update --check FILE    checks only
 *     glint-update --from-stick    the same with glint/update.efi of the stick, where there is one: at boot, before
 *                                  guests start; removes the file, and restarts the host. What is refused is said and
 *                                  left where it is
 *
 * What is new is read into memory once, checked there, and written from there. It touches: the ESP of that stick; what
 * boot loader and stub said, os-release, and the maker's certificate, to read.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "option/option.h"
#include "stick/esp.h"
#include "stick/loader.h"
#include "stick/version.h"
#include "update/bar.h"
#include "update/update.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DROPPED "glint/update.efi"

/* How long the stick may take to be there at boot: guests wait for it. One that comes later is looked at next time. */
#define PATIENCE_S 30

struct config {
	const char *file, *certificate, *release, *esp, *image;
	bool check, from_stick, json, quiet, help, version;
};

#define AT(member) offsetof(struct config, member)

static const struct option options[] = {
	{"file", OPTION_TEXT, AT(file), .min = 1, .value = "FILE", .help = "the new host, a UKI of the maker"},
	{"check", OPTION_FLAG, AT(check), .help = "say whether it is good, and write nothing"},
	{"from-stick", OPTION_FLAG, AT(from_stick),
	 .help = "take " DROPPED " of the stick, if it is there, and restart the host"},
	{"json", OPTION_FLAG, AT(json), .help = "say what was done as JSON"},
	{"quiet", OPTION_FLAG, AT(quiet), .help = "no progress on a terminal"},
	{"certificate", OPTION_TEXT, AT(certificate), .min = 1, .value = "FILE",
	 .help = "the maker's (default: /usr/lib/glint/maker.crt)"},
	{"release", OPTION_TEXT, AT(release), .min = 1, .value = "FILE",
	 .help = "what runs (default: /usr/lib/os-release)"},
	{"esp", OPTION_TEXT, AT(esp), .min = 1, .value = "FILE",
	 .help = "the ESP (default: that of the stick this host was booted from)"},
	{"image", OPTION_TEXT, AT(image), .min = 1, .value = "PATH",
	 .help = "which slot runs (default: what the stub said)"},
	{"help", OPTION_FLAG, AT(help), .help = "say this"},
	{"version", OPTION_FLAG, AT(version), .help = "say the version"},
	{NULL},
};

/* All that an update is made with. */
struct host {
	const struct config *config;
	struct release running;
	char image[512], path[ESP_PATH_MAX];
	char *certificate, *data;
	size_t certificate_len;
	struct update update;
	struct bar bar;
};

/* --- what this host is --- */

static struct error *read_release(const char *path, struct release *release)
{
	cleanup_free char *text = NULL;
	size_t len;

	TRY(read_file(path, 65536, &text, &len));
	return release_read(text, len, path, release);
}

/* *found: false where this host was not booted from a stick. */
static struct error *find_stick(struct host *h, unsigned wait_s, bool *found)
{
	const struct config *c = h->config;
	char uuid[LOADER_UUID + 1] = "";

	*found = c->esp || loader_partition(LOADER_PARTITION, uuid);
	if (!*found)
		return NULL;
	if (!c->esp)
		return esp_find(ESP_FOLDER, uuid, wait_s, h->path);
	snprintf(h->path, sizeof(h->path), "%s", c->esp);
	return NULL;
}

static struct error *what_runs(struct host *h)
{
	const struct config *c = h->config;

	if (c->image)
		snprintf(h->image, sizeof(h->image), "%s", c->image);
	else if (!loader_text(LOADER_STUB_IMAGE, h->image, sizeof(h->image)))
		return error_new(ENOENT, "find out which slot this host was booted from (%s)", LOADER_STUB_IMAGE);
	return read_release(c->release, &h->running);
}

static struct error *check(struct host *h, const char *what, size_t len)
{
	const struct config *c = h->config;

	h->update =
		(struct update){.data = h->data, .len = len, .what = what, .running = &h->running, .image = h->image};
	TRY(read_file(c->certificate, MIB, &h->certificate, &h->certificate_len));
	return update_check(&h->update, h->certificate, h->certificate_len);
}

/* --- writing --- */

static void show(void *arg, const char *what)
{
	struct host *h = arg;

	bar_step(&h->bar, what, h->update.len);
}

/* @remove: a file that goes when the rest is done, or alone, where @done. */
static struct error *write_stick(struct host *h, const char *remove, bool done)
{
	cleanup_esp struct esp esp = {};
	struct fat *fat;

	TRY(esp_open(&esp, h->path, true));
	bar_init(&h->bar, &esp.medium, h->config->quiet);
	TRY(fat_open(&fat, &h->bar.blocks, 0, esp.medium.size, time(NULL)));
	h->update.step = show;
	h->update.arg = h;
	struct error *err = done ? NULL : update_write(&h->update, fat);
	bar_step(&h->bar, NULL, 0);
	if (!err && remove)
		err = fat_remove(fat, remove);
	fat_close(fat);
	return err;
}

static struct error *tell(const struct host *h)
{
	const struct update *u = &h->update;
	cleanup_free char *text = NULL;

	if (!h->config->json) {
		printf("%s: version %s is in slot %s, read back and the same%s%s. The next start of this host takes "
		       "it; version %s stays.\n",
		       u->what, u->release.version, u->written, *u->removed ? ", in place of " : "", u->removed,
		       u->kept.version);
		return NULL;
	}
	json_t *json =
		json_pack("{s:s, s:i, s:s, s:s, s:s}", "version", u->release.version, "security",
			  (int)u->release.security, "written", u->written, "kept", u->kept.file, "removed", u->removed);
	text = json ? json_dumps(json, 0) : NULL;
	json_decref(json);
	if (!text)
		return error_new(ENOMEM, "say what was done");
	puts(text);
	return NULL;
}

static struct error *from_file(struct host *h)
{
	const struct config *c = h->config;
	bool found;
	size_t len;

	if (!c->file)
		return error_hint(error_new(EINVAL, "no file is named"), "glint-update --help");
	TRY(read_file(c->file, UPDATE_BYTES_MAX, &h->data, &len));
	if (c->check) {
		TRY(check(h, c->file, len));
		printf("%s: version %s, security level %u, signed by the maker of this host.\n", c->file,
		       h->update.release.version, h->update.release.security);
		return NULL;
	}
	TRY(find_stick(h, 0, &found));
	if (!found)
		return error_hint(error_new(ENODEV, "this host was not booted from a stick"),
				  "give it a new image where it boots from");
	TRY(what_runs(h));
	TRY(check(h, c->file, len));
	TRY(write_stick(h, NULL, false));
	return tell(h);
}

/* --- at boot --- */

static struct error *read_dropped(struct host *h, size_t *len)
{
	cleanup_esp struct esp esp = {};
	struct fat *fat;

	TRY(esp_open(&esp, h->path, false));
	TRY(fat_open(&fat, &esp.medium, 0, esp.medium.size, 0));
	struct error *err = fat_read(fat, DROPPED, UPDATE_BYTES_MAX, &h->data, len);
	fat_close(fat);
	if (!err || error_errno(err) != ENOENT)
		return err;
	error_free(err);
	return NULL;
}

/* By the init system (systemd(1), signals). Until it ends this process, what waits for it does not start. */
static void restart_host(void)
{
	if (kill(1, SIGRTMIN + 5) < 0) {
		log_warn("this host cannot be restarted from here: restart it by hand");
		return;
	}
	for (;;)
		pause();
}

static struct error *from_stick(struct host *h)
{
	size_t len = 0;
	bool found;

	TRY(find_stick(h, PATIENCE_S, &found));
	if (found)
		TRY(read_dropped(h, &len));
	if (!h->data)
		return NULL;
	TRY(what_runs(h));
	TRY(check(h, DROPPED, len));
	/* Where a cut came between its slot and its end, it is what runs. */
	bool done = version_compare(h->update.release.version, h->running.version) == 0;
	if (!done)
		log_info("%s: version %s goes to the stick", DROPPED, h->update.release.version);
	TRY(write_stick(h, DROPPED, done));
	if (done) {
		log_info("%s: version %s, which runs: removed", DROPPED, h->running.version);
		return NULL;
	}
	log_info("%s: version %s is in slot %s; the host starts anew with it, and version %s stays", DROPPED,
		 h->update.release.version, h->update.written, h->update.kept.version);
	if (!h->config->esp)
		restart_host();
	return NULL;
}

/* --- the command line --- */

/* The one word that is no option is the file. @to has room for twice the words. */
static int name_word(int argc, char **argv, char **to)
{
	static char file[] = "--file";
	int count = 0;

	for (int i = 0; i < argc; i++) {
		bool word = i > 0 && argv[i][0] != '-';
		if (word)
			to[count++] = file;
		to[count++] = argv[i];
		if (i > 0 && !word && option_takes_next(options, argv[i]) && i + 1 < argc)
			to[count++] = argv[++i];
	}
	return count;
}

static struct error *run(const struct config *c)
{
	struct host *h = calloc(1, sizeof(*h));

	if (!h)
		return error_new(ENOMEM, "start");
	h->config = c;
	struct error *err = error_wrap(c->from_stick ? from_stick(h) : from_file(h), "update");
	free(h->data);
	free(h->certificate);
	free(h);
	return err;
}

int main(int argc, char **argv)
{
	struct config c = {.certificate = "/usr/lib/glint/maker.crt", .release = "/usr/lib/os-release"};
	cleanup_free char **words = calloc((size_t)argc * 2 + 1, sizeof(*words));

	log_init("glint-update", LOG_LEVEL_INFO);
	if (!words)
		return 1;
	struct error *err = option_arguments(options, name_word(argc, argv, words), words, &c);
	if (!err && c.help) {
		puts("Usage: glint-update [--check] FILE\n"
		     "       glint-update --from-stick\n"
		     "Puts a new host into the other slot of the stick that this one was booted from.\n");
		option_help(options, stdout);
		return 0;
	}
	if (!err && c.version) {
		puts("glint-update " GLINT_VERSION);
		return 0;
	}
	if (!err)
		err = run(&c);
	if (!err)
		return fflush(stdout) == 0 ? 0 : 1;
	log_error(err);
	return 1;
}
