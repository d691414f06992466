/*
 * glint-iscsi: connects the disk that this host was booted from over iSCSI, and watches over it. systemd starts it only
 * where the firmware has the table that names the disk (iBFT).
 *
 *     1. the table is checked as a whole; only then the kernel's driver for it is loaded
 *     2. the network device that it names is waited for, and gets the address that the firmware had (iscsistart -N)
 *     3. iscsistart -b logs in; from here on systemd goes on: the disk is a disk
 *     4. iscsid holds the session: it answers the target, and logs in again when the session is lost. It has no
 *        database: what it needs to know it finds in the kernel
 *     5. once a second the session is looked at. Lost for longer than its timeout (etc/iscsi/iscsid.conf), its disks
 * are taken away, as if they were pulled; when it is back they are looked for, as if they were plugged in again. So the
 * keeper, and whoever else uses them, knows how to go on
 *
 * What fails is said, and the host goes on: it runs from memory. A login that failed is tried again.
 *
 * It may touch: the table, sysfs, its folder, the programs it starts. The network only by them.
 */
#include "node/iscsi/ibft.h"
#include "node/iscsi/session.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/util.h"
#include "option/option.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEVICE_S  30 /* for its driver to come */
#define CARRIER_S 15
#define MODULES_S 30
#define LOGIN_S   45 /* a try; then it is given up */
#define AGAIN_S   10 /* until the next one */
#define LOST_S    3  /* a session is lost when it is so for that long: iscsid takes one over by logging in anew */

struct iscsi {
	const char *table, *folder, *screen;
	bool help, version;

	struct ibft ibft;
	char where[ISCSI_NAME_MAX + INET6_ADDRSTRLEN + 16]; /* the target, for people */
	char initiator[PATH_MAX];                           /* file with its name */
	pid_t daemon;
	unsigned lost_s, again_s;
	bool ready, said, removed;
};

#define AT(member) offsetof(struct iscsi, member)

static const struct option options[] = {
	{"table", OPTION_TEXT, AT(table), .min = 1, .value = "FILE",
	 .help = "the firmware's table (default: /sys/firmware/acpi/tables/iBFT)"},
	{"folder", OPTION_TEXT, AT(folder), .min = 1, .max = 200, .value = "PATH",
	 .help = "for what iscsid has to know (default: /run/glint-iscsi)"},
	{"screen", OPTION_TEXT, AT(screen), .value = "fd=N", .help = "a terminal that is told, too"},
	{"version", OPTION_FLAG, AT(version), .help = "print the version"},
	{"help", OPTION_FLAG, AT(help), .aka = "h", .help = "print this"},
	{NULL},
};

static int screen_fd = -1;

/* To the log and the console by standard error, and to the host's screen. */
static void say(const char *line)
{
	log_warn("%s", line);
	if (screen_fd >= 0)
		dprintf(screen_fd, "glint: %s\r\n", line);
}

/* ... about the disk. */
static void say_of(const struct iscsi *o, const char *what)
{
	char line[600];

	snprintf(line, sizeof(line), "the disk that this host was booted from %s: %s", what, o->where);
	say(line);
}

static void say_error(struct error *err)
{
	const char *hint = err ? error_hint_text(err) : NULL;

	if (err)
		say(error_text(err));
	if (hint)
		say(hint);
	error_free(err);
}

static void wait_s(unsigned seconds)
{
	const struct timespec pause = {.tv_sec = seconds};

	nanosleep(&pause, NULL);
}

/* --- other programs --- */

/* Starts one in a process group of its own. All it says goes to standard output: the journal. */
static struct error *start(const char *const *arguments, pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
	int err = posix_spawn(pid, arguments[0], &actions, &attributes, (char *const *)(uintptr_t)arguments, environ);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return err ? error_new(err, "start %s", arguments[0]) : NULL;
}

/* Runs one to its end, or to the end of its time. */
static struct error *run(const char *const *arguments, int seconds)
{
	siginfo_t info = {};
	pid_t pid;

	TRY(start(arguments, &pid));
	cleanup_fd int fd = pidfd_open(pid, 0);
	struct pollfd ended = {.fd = fd, .events = POLLIN};
	bool late = fd < 0 || poll(&ended, 1, seconds * 1000) != 1;
	if (late)
		kill(-pid, SIGKILL);
	waitid(P_PID, (id_t)pid, &info, WEXITED);
	if (late)
		return error_new(ETIMEDOUT, "%s", arguments[0]);
	if (info.si_code != CLD_EXITED || info.si_status != 0)
		return error_new(0, "%s ended with status %d", arguments[0], info.si_status);
	return NULL;
}

/* --- connecting --- */

static struct error *read_table(struct iscsi *o)
{
	cleanup_free char *bytes = NULL;
	size_t len;

	TRY(read_file(o->table, IBFT_BYTES_MAX, &bytes, &len));
	return error_hint(ibft_read((const uint8_t *)bytes, len, &o->ibft),
			  "look at what the firmware, or the DHCP server, says of the disk (docs/netboot.md)");
}

static struct error *load_modules(void)
{
	static const char *const modprobe[] = {"/usr/sbin/modprobe", "-a", "iscsi_ibft", "iscsi_tcp", NULL};

	return run(modprobe, MODULES_S);
}

static struct error *write_initiator(struct iscsi *o)
{
	char text[ISCSI_NAME_MAX + 32];

	snprintf(o->initiator, sizeof(o->initiator), "%s/initiatorname", o->folder);
	int len = snprintf(text, sizeof(text), "InitiatorName=%s\n", o->ibft.initiator);
	cleanup_fd int fd = open(o->initiator, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	return fd < 0 ? error_new(errno, "make %s", o->initiator) : write_all(fd, text, (size_t)len, o->initiator);
}

static bool wait_for_device(const char *mac, bool carrier, unsigned seconds)
{
	const struct timespec pause = {.tv_nsec = 100 * 1000000};
	bool there = false;

	for (unsigned i = 0; i <= seconds * 10 && !(there = device_find(mac, carrier)); i++)
		nanosleep(&pause, NULL);
	return there;
}

static struct error *bring_up(const struct iscsi *o)
{
	static const char *const network[] = {"/usr/sbin/iscsistart", "-N", NULL};

	if (!wait_for_device(o->ibft.mac, false, DEVICE_S))
		return error_new(ENODEV, "no network device has the address %s", o->ibft.mac);
	TRY(run(network, MODULES_S));
	if (!wait_for_device(o->ibft.mac, true, CARRIER_S))
		return error_new(ENETDOWN, "the network device %s has no carrier", o->ibft.mac);
	return NULL;
}

static struct error *prepare(struct iscsi *o)
{
	TRY(error_wrap(read_table(o), "the firmware's table of a disk over iSCSI is not used"));
	snprintf(o->where, sizeof(o->where), "%s at %s", o->ibft.target, o->ibft.address);
	TRY(load_modules());
	return write_initiator(o);
}

static struct error *connect_disk(const struct iscsi *o)
{
	static const char *const login[] = {"/usr/sbin/iscsistart", "-b", "-P",
					    "node.session.initial_login_retry_max=2", NULL};

	TRY(bring_up(o));
	return run(login, LOGIN_S);
}

static void tell_ready(struct iscsi *o)
{
	if (o->ready)
		return;
	o->ready = true;
	say_error(notify_ready());
	/* It is this program's, and not iscsid's. */
	unsetenv("NOTIFY_SOCKET");
}

/* --- watching --- */

static void try_again(struct iscsi *o)
{
	if (o->again_s > 0) {
		o->again_s--;
		return;
	}
	o->again_s = AGAIN_S;
	struct error *err = connect_disk(o);
	if (err && !o->said) {
		o->said = true;
		say_error(error_wrap(err, "connect the disk that this host was booted from, %s", o->where));
		say("the host goes on without it, and goes on trying");
	} else {
		error_free(err);
	}
}

/* iscsid, as long as there is a session for it to take over. */
static void keep_daemon(struct iscsi *o)
{
	const char *const iscsid[] = {"/usr/sbin/iscsid", "--foreground", "--no-pid-file",
				      "--initiatorname",  o->initiator,   NULL};

	if (o->daemon && waitpid(o->daemon, NULL, WNOHANG) != 0)
		o->daemon = 0;
	if (o->daemon)
		return;
	struct error *err = start(iscsid, &o->daemon);
	if (err)
		o->daemon = 0;
	say_error(err);
}

static void is_up(struct iscsi *o, const struct session *s)
{
	if (o->removed)
		say_error(session_scan(s));
	if (o->said)
		say_of(o, "is back");
	else if (!o->ready)
		log_info("connected with %s", o->where);
	o->said = o->removed = false;
	o->lost_s = 0;
}

static void is_lost(struct iscsi *o, const struct session *s)
{
	if (++o->lost_s > LOST_S && !o->said) {
		o->said = true;
		say_of(o, "does not answer");
	}
	if (s->state != SESSION_GIVEN_UP || o->removed)
		return;
	o->removed = true;
	say("it is taken for pulled until it answers: the host goes on");
	session_remove_disks(s);
}

static void look(struct iscsi *o)
{
	struct session s;

	session_find(o->ibft.target, &s);
	if (s.state == SESSION_NONE)
		try_again(o);
	else
		keep_daemon(o);
	if (s.state == SESSION_UP)
		is_up(o, &s);
	else if (s.state != SESSION_NONE)
		is_lost(o, &s);
	/* However the first try ended: what waits for the disk has a time of its own. */
	if (s.state != SESSION_NONE || o->said)
		tell_ready(o);
}

int main(int argc, char **argv)
{
	struct iscsi o = {.table = "/sys/firmware/acpi/tables/iBFT", .folder = "/run/glint-iscsi"};

	log_init("glint-iscsi", LOG_LEVEL_INFO);
	struct error *err = option_arguments(options, argc, argv, &o);
	if (!err && o.help) {
		puts("Usage: glint-iscsi [OPTION]...\n"
		     "Connects the disk that this host was booted from over iSCSI, and watches over it.\n");
		option_help(options, stdout);
		return 0;
	}
	if (!err && o.version) {
		puts("glint-iscsi " GLINT_VERSION);
		return 0;
	}
	if (!err && o.screen)
		error_free(option_descriptor(o.screen, "--screen", &screen_fd));
	if (!err)
		err = prepare(&o);
	if (err) {
		/* Said, and done: the host is up without its disk. */
		say_error(err);
		tell_ready(&o);
		return 0;
	}
	for (;; wait_s(1))
		look(&o);
}
