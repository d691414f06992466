/*
 * glint-config: a host's configuration from host.toml, in steps; systemd runs each with as few rights as it needs.
 *
 *     fetch   copies host.toml from the stick into the folder; the one step that mounts, and as root
 *     apply   reads the copy, which nobody vouches for, and writes what the daemons of the network and the time read.
 *             What is broken changes nothing: every mistake is told, the last good configuration is used
 *     name    gives the host its name, as root
 *     keep    puts a new good configuration into the host's database, so that it is the last good one
 *     look    says whether the devices are there, and when the network is
 *     check   says what is wrong with a file; for people
 *
 * Between steps there are files in the folder: host.toml (from the stick), accepted.toml (the same, found good),
 * in-use.toml, hostname, host.json (for the host's daemons). No step but check fails for what is in the file: a host
 * starts, whatever a person wrote.
 */
#include "node/config/config.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "option/option.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

struct config {
	const char *step, *file, *folder, *networkd, *timesyncd, *database, *id, *ibft, *screen;
	unsigned patience;
	bool help, version;
};

/* How long a network device may take to be there at all. */
#define DEVICES_S 10

/* How long name servers may take to be known once there are addresses. */
#define NAMES_S 3

#define AT(member) offsetof(struct config, member)

static const struct option options[] = {
	{"step", OPTION_TEXT, AT(step), .min = 1, .value = "fetch|apply|name|keep|look", .help = "what to do"},
	{"check", OPTION_TEXT, AT(file), .min = 1, .value = "FILE", .help = "say what is wrong with a host.toml"},
	{"folder", OPTION_TEXT, AT(folder), .min = 1, .value = "PATH",
	 .help = "where the steps put what they know (default: /run/glint-config)"},
	{"networkd", OPTION_TEXT, AT(networkd), .min = 1, .value = "PATH",
	 .help = "for systemd-networkd (default: /run/systemd/network)"},
	{"timesyncd", OPTION_TEXT, AT(timesyncd), .min = 1, .value = "PATH",
	 .help = "for systemd-timesyncd (default: /run/systemd/timesyncd.conf.d)"},
	{"database", OPTION_TEXT, AT(database), .min = 1, .value = "PATH",
	 .help = "socket of the host's database (default: /run/glint-database/db.sock)"},
	{"id", OPTION_TEXT, AT(id), .min = 1, .value = "FILE",
	 .help = "the host's id (default: /run/glint/identity/id)"},
	{"ibft", OPTION_TEXT, AT(ibft), .min = 1, .value = "PATH",
	 .help = "what the firmware says of a disk over iSCSI (default: /sys/firmware/ibft)"},
	{"screen", OPTION_TEXT, AT(screen), .value = "fd=N", .help = "a terminal that is told, too"},
	{"patience", OPTION_NUMBER, AT(patience), .min = 0, .max = 600, .value = "SECONDS",
	 .help = "how long to wait for what is not there yet (default: 60)"},
	{"version", OPTION_FLAG, AT(version), .help = "print the version"},
	{"help", OPTION_FLAG, AT(help), .aka = "h", .help = "print this"},
	{NULL},
};

/* --- telling --- */

static int screen_fd = -1;

/* To the log and the console by standard error, and to the host's screen. */
static void say(const char *line)
{
	log_warn("%s", line);
	if (screen_fd >= 0)
		dprintf(screen_fd, "glint: %s\r\n", line);
}

static void say_problems(const char *file, const struct hostconfig_problems *problems)
{
	char line[600];

	for (const struct hostconfig_problem *p = problems->list; p < problems->list + problems->count; p++) {
		char at[48] = "";
		if (p->line && p->column)
			snprintf(at, sizeof(at), ", line %u, column %u", p->line, p->column);
		else if (p->line)
			snprintf(at, sizeof(at), ", line %u", p->line);
		snprintf(line, sizeof(line), "%s%s: %s%s%s%s", file, at, p->message, *p->hint ? " (" : "", p->hint,
			 *p->hint ? ")" : "");
		say(line);
	}
	snprintf(line, sizeof(line), "%s: %zu mistakes more", file, problems->more);
	if (problems->more)
		say(line);
}

static void say_error(struct error *err)
{
	if (err)
		say(error_text(err));
	error_free(err);
}

/* --- apply --- */

static void config_done(struct hostconfig **config)
{
	hostconfig_free(*config);
}
#define cleanup_config __attribute__((cleanup(config_done)))

/* Reads the folder's file @name; *text is NULL where there is none. */
static struct error *read_in(const struct config *o, const char *name, char **text, size_t *len)
{
	char path[PATH_MAX];

	*text = NULL;
	if (snprintf(path, sizeof(path), "%s/%s", o->folder, name) >= (int)sizeof(path))
		return error_new(ENAMETOOLONG, "read %s", name);
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return NULL;
	return read_file(path, HOSTCONFIG_TEXT_MAX + 1, text, len);
}

static struct error *open_folder(const char *path, int *fd)
{
	*fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *fd < 0 ? error_new(errno, "open %s", path) : NULL;
}

/* Takes @text if it is good. */
static struct error *try_text(const char *file, const char *text, size_t len, struct hostconfig **config)
{
	struct hostconfig_problems problems;

	TRY(hostconfig_read(text, len, config, &problems));
	say_problems(file, &problems);
	return NULL;
}

static struct error *read_id(const struct config *o, char **id)
{
	size_t len;

	TRY(read_file(o->id, 128, id, &len));
	(*id)[strcspn(*id, "\n")] = '\0';
	return NULL;
}

/* The keeper makes the id when it has the host's state. */
static struct error *wait_for_id(const struct config *o, char **id)
{
	const struct timespec pause = {.tv_nsec = 100 * 1000000};

	for (unsigned i = 0; i < o->patience * 10 && access(o->id, F_OK) < 0; i++)
		nanosleep(&pause, NULL);
	return read_id(o, id);
}

static struct error *take_last_good(const struct config *o, char **text, struct hostconfig **config)
{
	cleanup_free char *id = NULL;

	TRY(wait_for_id(o, &id));
	TRY(last_good(o->database, id, o->patience, text));
	return **text ? try_text("the last good host.toml", *text, strlen(*text), config) : NULL;
}

/* What the host goes by: the file from the stick, or the last good one, or nothing, which is good too. */
static struct error *choose(const struct config *o, char **text, struct hostconfig **config, bool *fresh)
{
	size_t len = 0;

	TRY(read_in(o, "host.toml", text, &len));
	bool there = *text;
	if (there)
		TRY(try_text("host.toml", *text, len, config));
	*fresh = *config;
	if (*fresh)
		return NULL;
	free(steal_ptr(text));
	struct error *err = take_last_good(o, text, config);
	if (err)
		log_warn("%s", error_text(err));
	error_free(err);
	if (there || *config)
		say(*config ? "host.toml of the stick is not used: the last good one is"
			    : "host.toml of the stick is not used, and there was none before: DHCP on every device");
	if (*config)
		return NULL;
	free(*text);
	*text = strdup("");
	return *text ? try_text("", *text, 0, config) : error_new(ENOMEM, "configure the host");
}

static json_t *texts(const struct hostconfig_texts *list)
{
	json_t *array = json_array();

	for (size_t i = 0; i < list->count; i++)
		json_array_append_new(array, json_string(list->list[i]));
	return array;
}

/* What the host's daemons want to know of it. */
static struct error *write_json(const struct hostconfig *c, int folder)
{
	json_t *networks = json_array(), *admins = json_array(), *pools = json_array();

	for (size_t i = 0; i < c->network_count; i++)
		json_array_append_new(networks, json_pack("{s:s, s:b}", "name", c->networks[i].name, "bridge",
							  c->networks[i].bridge));
	for (size_t i = 0; i < c->admin_count; i++)
		json_array_append_new(
			admins, json_pack("{s:s, s:o}", "name", c->admins[i].name, "keys", texts(&c->admins[i].keys)));
	for (size_t i = 0; i < c->pool_count; i++)
		json_array_append_new(pools, json_pack("{s:s, s:s, s:s}", "name", c->pools[i].name, "kind",
						       c->pools[i].kind, "source", c->pools[i].source));
	json_t *json = json_pack("{s:s?, s:o, s:o, s:o}", "name", c->name, "networks", networks, "administrators",
				 admins, "pools", pools);
	cleanup_free char *text = json_dumps(json, JSON_INDENT(1));
	json_decref(json);
	return text ? put_file(folder, "host.json", text, strlen(text), 0644) : error_new(ENOMEM, "write host.json");
}

static struct error *write_time(const struct hostconfig *c, const char *path)
{
	char text[32 + HOSTCONFIG_LIST_MAX * 256] = "[Time]\nNTP=";
	size_t n = strlen(text);
	cleanup_fd int folder = -1;

	TRY(open_folder(path, &folder));
	remove_file(folder, "10-glint.conf");
	if (c->time_servers.count == 0)
		return NULL;
	for (size_t i = 0; i < c->time_servers.count && n < sizeof(text); i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", i ? " " : "", c->time_servers.list[i]);
	n += n < sizeof(text) ? (size_t)snprintf(text + n, sizeof(text) - n, "\n") : 0;
	return n < sizeof(text) ? put_file(folder, "10-glint.conf", text, n, 0644)
				: error_new(E2BIG, "write the time servers");
}

static void say_time(const char *format)
{
	char line[160];
	time_t now = time(NULL);

	strftime(line, sizeof(line), format, gmtime(&now));
	say(line);
}

/* systemd starts no clock before /usr/lib/clock-epoch: a host whose clock says that moment has lost the time. */
static bool clock_is_lost(void)
{
	struct stat epoch;

	return stat("/usr/lib/clock-epoch", &epoch) == 0 && time(NULL) <= epoch.st_mtime + 600;
}

static struct error *apply(const struct config *o)
{
	cleanup_free char *text = NULL;
	cleanup_config struct hostconfig *c = NULL;
	cleanup_fd int folder = -1, networkd = -1;
	unsigned booted_over;
	bool fresh;

	if (clock_is_lost())
		say_time("the clock is not set (it says %F %T UTC): a time server will set it");
	TRY(open_folder(o->folder, &folder));
	TRY(choose(o, &text, &c, &fresh));
	TRY(open_folder(o->networkd, &networkd));
	TRY(networkd_write(c, networkd));
	TRY(ibft_write(o->ibft, networkd, &booted_over));
	if (booted_over && c->network_count)
		say("this host's disk is reached over iSCSI: the device to it keeps the address it was booted with, "
		    "and is in no network of host.toml");
	TRY(write_time(c, o->timesyncd));
	remove_file(folder, "hostname");
	remove_file(folder, "accepted.toml");
	if (c->name)
		TRY(put_file(folder, "hostname", c->name, strlen(c->name), 0644));
	TRY(put_file(folder, "in-use.toml", text, strlen(text), 0644));
	if (fresh)
		TRY(put_file(folder, "accepted.toml", text, strlen(text), 0644));
	TRY(write_json(c, folder));
	log_info("configured%s%s: %zu networks", c->name ? " as " : "", c->name ? c->name : "", c->network_count);
	return NULL;
}

/* --- the other steps --- */

static struct error *fetch(const struct config *o)
{
	cleanup_fd int folder = -1;
	bool found;

	TRY(open_folder(o->folder, &folder));
	remove_file(folder, "host.toml");
	struct error *err = esp_fetch(folder, o->patience, &found);
	if (err)
		say_error(err);
	else if (!found)
		log_info("no host.toml was found: the host keeps the configuration it had");
	return NULL;
}

static struct error *name(const struct config *o)
{
	cleanup_free char *text = NULL;
	size_t len;

	TRY(read_in(o, "hostname", &text, &len));
	if (!text)
		return NULL;
	if (!hostconfig_is_host_name(text) || sethostname(text, len) < 0)
		return error_new(errno, "name this host");
	return NULL;
}

static struct error *keep(const struct config *o)
{
	cleanup_free char *text = NULL, *id = NULL;
	cleanup_config struct hostconfig *c = NULL;
	size_t len;

	TRY(read_in(o, "accepted.toml", &text, &len));
	if (!text)
		return NULL;
	TRY(try_text("host.toml", text, len, &c));
	struct error *err = wait_for_id(o, &id);
	if (!err)
		err = keep_good(o->database, id, o->patience, text, c ? c->name : NULL);
	say_error(error_wrap(err, "keep host.toml as the last good one"));
	return NULL;
}

/* systemd-timesyncd(8) makes the file when a server has answered. */
static void look_for_time(unsigned patience)
{
	const struct timespec pause = {.tv_sec = 1};
	bool set = false;

	for (unsigned i = 0; i <= patience && !(set = access("/run/systemd/timesync/synchronized", F_OK) == 0); i++)
		if (i < patience)
			nanosleep(&pause, NULL);
	if (set)
		say_time("the time is from a time server: %F %T UTC");
	else if (clock_is_lost())
		say_time("no time server has answered: the clock says %F %T UTC");
}

static struct error *look(const struct config *o)
{
	const struct timespec pause = {.tv_sec = 1};
	cleanup_free char *text = NULL;
	cleanup_config struct hostconfig *c = NULL;
	char words[512], names[256], line[900], host[65] = "";
	bool all = false;
	size_t len = 0;

	TRY(read_in(o, "in-use.toml", &text, &len));
	if (text)
		TRY(try_text("host.toml", text, len, &c));
	if (!c)
		return error_new(ENOENT, "look for the network: nothing is configured");
	/* A device may be slow to come; where none has come nothing is to be waited for. */
	for (unsigned i = 0; i <= o->patience && !all && (i < DEVICES_S || look_for_hardware(false)); i++) {
		if (i > 0)
			nanosleep(&pause, NULL);
		all = look_for_addresses(c, words, sizeof(words));
	}
	look_for_devices(c, say);
	gethostname(host, sizeof(host) - 1);
	/* systemd-resolved hears of its servers a little later. */
	look_for_names(names, sizeof(names));
	for (unsigned i = 0; i < NAMES_S && i < o->patience && all && !*names; i++) {
		nanosleep(&pause, NULL);
		look_for_names(names, sizeof(names));
	}
	snprintf(line, sizeof(line), "%s: %s: %s%s%s", host, all ? "network" : "the network is not as it should be",
		 *words ? words : "none asked for", *names ? "; names by " : "", names);
	say(line);
	look_for_time(all ? o->patience : 0);
	return NULL;
}

static struct error *check(const struct config *o)
{
	cleanup_free char *text = NULL;
	cleanup_config struct hostconfig *c = NULL;
	size_t len;

	TRY(read_file(o->file, HOSTCONFIG_TEXT_MAX + 1, &text, &len));
	TRY(try_text(o->file, text, len, &c));
	return c ? NULL : error_new(EINVAL, "%s is not good", o->file);
}

static struct error *run(const struct config *o)
{
	static const struct {
		const char *name;
		struct error *(*run)(const struct config *o);
	} steps[] = {{"fetch", fetch}, {"apply", apply}, {"name", name}, {"keep", keep}, {"look", look}};

	if (o->file)
		return check(o);
	if (o->screen && *o->screen) {
		struct error *err = option_descriptor(o->screen, "--screen", &screen_fd);
		/* A board without a screen is configured all the same. */
		error_free(err);
	}
	for (size_t i = 0; o->step && i < ARRAY_SIZE(steps); i++)
		if (strcmp(o->step, steps[i].name) == 0)
			return steps[i].run(o);
	return error_hint(error_new(EINVAL, "a --step or a --check is needed"), "glint-config --check host.toml");
}

int main(int argc, char **argv)
{
	struct config o = {.folder = "/run/glint-config",
			   .networkd = "/run/systemd/network",
			   .timesyncd = "/run/systemd/timesyncd.conf.d",
			   .database = "/run/glint-database/db.sock",
			   .id = "/run/glint/identity/id",
			   .ibft = "/sys/firmware/ibft",
			   .patience = 60};

	log_init("glint-config", LOG_LEVEL_INFO);
	struct error *err = option_arguments(options, argc, argv, &o);
	if (!err && o.help) {
		puts("Usage: glint-config --step STEP\n"
		     "       glint-config --check FILE\n"
		     "Configures the host from host.toml.\n");
		option_help(options, stdout);
		return 0;
	}
	if (!err && o.version) {
		puts("glint-config " GLINT_VERSION);
		return 0;
	}
	if (!err)
		err = run(&o);
	if (!err)
		return 0;
	log_error(err);
	return 1;
}
