/*
 * glint-keeper's beginning: options, signals, telling systemd that the host's state is there; and looking into a stick.
 */
#include "node/keeper/choose.h"
#include "node/keeper/identity.h"
#include "node/keeper/journal.h"
#include "node/keeper/keeper.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/util.h"
#include "option/option.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#define STICKS_MAX 4u

/* A host that was not booted from a stick (PXE, HTTP) may have one all the same; it is not waited for as long. */
#define WAIT_UNKNOWN_S 10u

struct stick_option {
	const char *path;
};

struct config {
	struct stick_option sticks[STICKS_MAX];
	size_t stick_count;
	const char *esps, *loader, *folder, *schema, *hardware, *server, *inspect, *out;
	unsigned wait, patience;
	bool adopt_empty, help, version;
};

#define AT(member) offsetof(struct config, member)

static const struct option stick_fields[] = {
	{"path", OPTION_TEXT, offsetof(struct stick_option, path), .min = 1, .max = 200,
	 .help = "the partition, or the folder"},
	{NULL},
};

static const struct option_group stick_group = {.fields = stick_fields,
						.bytes = sizeof(struct stick_option),
						.count_offset = AT(stick_count),
						.most = STICKS_MAX};

static const struct option options[] = {
	{"stick", OPTION_GROUP, AT(sticks), .group = &stick_group,
	 .help = "where the state is kept: a partition, or a folder to choose it from; may be given again"},
	{"loader", OPTION_TEXT, AT(loader), .min = 1, .value = "FILE",
	 .help = "the variable LoaderDevicePartUUID: which ESP the host was booted from"},
	{"esps", OPTION_TEXT, AT(esps), .min = 1, .value = "PATH",
	 .help = "with --loader: a folder of folders; in the one of that UUID each disk that has it has a name"},
	{"wait", OPTION_NUMBER, AT(wait), .max = 600, .value = "SECONDS",
	 .help = "how long the start waits for a stick that is not there yet, at most 10 where --loader says nothing "
		 "(default: 0)"},
	{"folder", OPTION_TEXT, AT(folder), .min = 1, .value = "PATH",
	 .help = "where the state is while the host runs: absolute, on a tmpfs"},
	{"schema", OPTION_TEXT, AT(schema), .min = 1, .value = "FILE", .help = "of a new database"},
	{"hardware", OPTION_TEXT, AT(hardware), .value = "TEXT|fd=N", .help = "what the host runs on"},
	{"server", OPTION_TEXT, AT(server), .min = 1, .value = "PATH",
	 .help = "control socket of ovsdb-server, to have the database compacted"},
	{"patience", OPTION_NUMBER, AT(patience), .min = 1, .max = 600, .value = "SECONDS",
	 .help = "how long a change waits for a stick that does not answer (default: 20)"},
	{"adopt-empty", OPTION_SWITCH, AT(adopt_empty),
	 .help = "a host without a stick formats an empty one (default: off)"},
	{"inspect", OPTION_TEXT, AT(inspect), .min = 1, .value = "PATH", .help = "say what is on a stick, and end"},
	{"out", OPTION_TEXT, AT(out), .min = 1, .value = "FILE", .help = "with --inspect: write its database there"},
	{"version", OPTION_FLAG, AT(version), .help = "print the version"},
	{"help", OPTION_FLAG, AT(help), .aka = "h", .help = "print this"},
	{NULL},
};

/* --- looking into a stick --- */

struct found {
	struct buffer database, identity;
};

static struct error *take(void *arg, const struct journal_item *item)
{
	struct found *f = arg;

	if (item->kind == JOURNAL_DATABASE)
		return buffer_add(&f->database, item->data, item->len);
	f->identity.len = 0;
	return buffer_add(&f->identity, item->data, item->len);
}

static struct error *print_found(const struct journal_info *info, const struct found *f)
{
	static const char *const states[] = {"empty", "whole", "damaged"};
	cleanup_free char *id = NULL;
	unsigned records = 0;
	char stick[33];

	for (unsigned i = 0; i < 16; i++)
		snprintf(stick + 2 * i, 3, "%02x", info->stick[i]);
	if (f->identity.len)
		TRY(identity_id(&f->identity, &id));
	database_records(f->database.data, f->database.len, &records);
	json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "state", states[info->state],
				 "stick", stick, "damage", info->damage, "host", id ? id : "", "generation",
				 (json_int_t)info->generation, "sequence", (json_int_t)info->sequence, "changes",
				 (json_int_t)info->changes, "torn", (json_int_t)info->torn, "records",
				 (json_int_t)records, "bytes", (json_int_t)f->database.len);
	cleanup_free char *text = json_dumps(json, JSON_COMPACT);
	json_decref(json);
	if (!text)
		return error_new(ENOMEM, "say what is on the stick");
	puts(text);
	return NULL;
}

static struct error *look_into(const struct config *config, struct found *f)
{
	static const uint8_t nobody[16];
	struct journal_file file;
	struct journal_info info;
	struct journal *journal;
	cleanup_fd int fd = open(config->inspect, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_new(errno, "open %s", config->inspect);
	TRY(journal_file_init(&file, fd, config->inspect));
	TRY(journal_open(&journal, &file.io, nobody, take, f));
	journal_info(journal, &info);
	journal_close(journal);
	TRY(print_found(&info, f));
	if (!config->out)
		return NULL;
	cleanup_fd int out = open(config->out, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (out < 0)
		return error_new(errno, "make %s", config->out);
	return write_all(out, f->database.data, f->database.len, config->out);
}

static struct error *inspect(const struct config *config)
{
	struct found f = {};
	struct error *err = look_into(config, &f);

	buffer_free(&f.database);
	buffer_free(&f.identity);
	return err;
}

/* --- the daemon --- */

static void on_signal(void *arg, int fd, uint32_t events)
{
	loop_quit(arg);
}

static struct error *watch_signals(struct loop *loop, int *fd)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	*fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (*fd < 0)
		return error_new(errno, "watch for signals");
	return loop_add_fd(loop, *fd, EPOLLIN, on_signal, loop, NULL);
}

/* What the firmware calls the board is for root's eyes: systemd hands it over as a descriptor. */
static struct error *read_hardware(const char *given, char hardware[128])
{
	hardware[0] = '\0';
	if (!given)
		return NULL;
	if (!option_is_descriptor(given)) {
		snprintf(hardware, 128, "%s", given);
		return NULL;
	}
	cleanup_fd int fd = -1;
	struct error *err = option_descriptor(given, "--hardware", &fd);
	if (err) {
		/* A board without a name, as some are, is no reason to forget its state. */
		log_info("the firmware does not say which board this is (%s)", error_text(err));
		error_free(err);
		return NULL;
	}
	ssize_t n = read(fd, hardware, 127);
	if (n < 0)
		return error_new(errno, "read --hardware");
	hardware[n] = '\0';
	hardware[strcspn(hardware, "\n")] = '\0';
	return NULL;
}

static void loop_done(struct loop **loop)
{
	loop_free(*loop);
}

static struct error *run(const struct config *config)
{
	__attribute__((cleanup(loop_done))) struct loop *loop = NULL;
	const char *sticks[STICKS_MAX];
	struct keeper *keeper;
	char hardware[128], booted[CHOOSE_PATH_MAX] = "";
	cleanup_fd int signals = -1;

	if (!config->folder || config->folder[0] != '/' || !config->schema)
		return error_hint(error_new(EINVAL, "--folder, absolute, and --schema are needed"),
				  "glint-keeper --stick PATH --folder PATH --schema FILE");
	for (size_t i = 0; i < config->stick_count; i++)
		sticks[i] = config->sticks[i].path;
	TRY(read_hardware(config->hardware, hardware));
	if (config->loader && config->esps)
		choose_booted(config->loader, config->esps, booted);
	TRY(loop_new(&loop));
	TRY(watch_signals(loop, &signals));
	struct keeper_options wanted = {.sticks = sticks,
					.stick_count = (unsigned)config->stick_count,
					.booted = booted[0] ? booted : NULL,
					.wait_s = config->loader && !booted[0] ? MIN(config->wait, WAIT_UNKNOWN_S)
									       : config->wait,
					.folder = config->folder,
					.schema = config->schema,
					.hardware = hardware,
					.server = config->server,
					.adopt_empty = config->adopt_empty,
					.patience_s = config->patience};
	TRY(keeper_new(&keeper, loop, &wanted));
	struct error *err = notify_ready();
	if (!err)
		err = loop_run(loop);
	keeper_free(keeper);
	return err;
}

int main(int argc, char **argv)
{
	struct config config = {.patience = 20};

	log_init("glint-keeper", LOG_LEVEL_INFO);
	/* What is made is for the group of the host's daemons, at most. */
	umask(0007);
	struct error *err = option_arguments(options, argc, argv, &config);
	if (!err && config.help) {
		puts("Usage: glint-keeper --stick PATH --folder PATH --schema FILE\n"
		     "       glint-keeper --inspect PATH [--out FILE]\n"
		     "Keeps the host's state on a stick, and brings it back when the host starts.\n");
		option_help(options, stdout);
		return 0;
	}
	if (!err && config.version) {
		puts("glint-keeper " GLINT_VERSION);
		return 0;
	}
	if (!err)
		err = config.inspect ? inspect(&config) : run(&config);
	if (!err)
		return 0;
	log_error(err);
	return 1;
}
