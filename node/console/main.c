/*
 * glint-console: the host's first screen, and the console of a guest that has been given it.
 *
 * systemd opens the host's screen (tty1) and serial port (OpenFile=, so this needs no right to open them) and passes
 * them from descriptor 3 on. A line says each fact about the host when it becomes known and whenever it changes; all of
 * them together stand there when nothing has changed for a while, and on Enter.
 *
 * Who types the word "support" and Enter asks for a support bundle on the stick: a file says so, and systemd starts
 * what makes it (glint-support.path). A word, because serial lines without a cable are known to type by themselves.
 *
 * A carried guest that is given the console (docs/stick.md) has its serial port at the socket GUEST_SOCKET: as long as
 * something listens there, the terminals are the guest's, every key but one, which shows the host's facts.
 *
 *	tty1  <--+                   +--> facts: name, addresses, health, state
 *	ttyS0 <--+-- glint-console --+
 *	         +                   +--> /run/glint-guest/console, a guest's serial port
 *
 * It may touch: the descriptors it is given, that socket, that file, what facts.c reads; it runs as the VMs' user.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/util.h"
#include "node/console/facts.h"
#include "node/console/terminals.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#define FIRST_FD     3 /* sd_listen_fds(3): SD_LISTEN_FDS_START */
#define GUEST_FOLDER "/run/glint-guest"
#define GUEST_SOCKET GUEST_FOLDER "/console"
#define HOST_KEY     0x1d /* Ctrl-] */
#define SUPPORT_WORD "support"
#define SUPPORT_FILE "/run/glint-console/support" /* written to: a bundle is wanted */

#define MS           UINT64_C(1000000)
#define QUIET_NS     (5000 * MS) /* without a change, until all of it is shown */
#define TRY_AGAIN_NS (100 * MS)  /* a socket that has its name already, and does not listen yet */
#define TRIES        50
#define AGAIN_S      60 /* between two bundles: each is written to the stick */

struct console {
	struct loop *loop;
	char facts[FACTS][FACT_BYTES];
	struct loop_source *quiet, *again, *guest_source;
	int guest; /* -1: none */
	unsigned tries;
	char line[16]; /* typed so far */
	size_t line_len;
	time_t bundle; /* when the last one was asked for */
	int inotify, netlink, name, signals;
};

static struct console console = {.guest = -1, .inotify = -1, .netlink = -1, .name = -1, .signals = -1};

/* --- what the host says --- */

/* To the terminals, and to the journal. */
static void say(const char *line)
{
	char text[FACT_BYTES + 16];
	int n = snprintf(text, sizeof(text), "glint: %s\r\n", line);

	terminals_show(text, (size_t)n);
	log_info("%s", line);
}

static void show_line(const char *begin, const char *line)
{
	terminals_show(begin, strlen(begin));
	terminals_show(line, strlen(line));
	terminals_show("\r\n", 2);
}

/* All of it. */
static void show_all(void)
{
	char use[FACT_BYTES];

	if (console.guest < 0)
		terminals_clear_screens();
	show_line("", "");
	for (unsigned i = 0; i < FACTS; i++)
		if (console.facts[i][0])
			show_line("  ", console.facts[i]);
	facts_use(use);
	show_line("  ", use);
	if (console.guest >= 0) {
		show_line("  ", "Here is a guest's console; Ctrl-] shows this.");
	} else {
		show_line("  ", "Enter shows this; the word support and Enter put on the stick what support needs.");
		show_line("  ", "At the keyboard: Ctrl-Alt-Del restarts the host, Alt-F2 is for recovery.");
	}
	show_line("", "");
}

static void show_all_if_alone(void *arg)
{
	if (console.guest < 0)
		show_all();
}

static void look(void)
{
	char now[FACTS][FACT_BYTES] = {};

	facts_read(now);
	for (unsigned i = 0; i < FACTS; i++) {
		if (now[i][0] && strcmp(now[i], console.facts[i]) != 0) {
			say(now[i]);
			loop_timer_set(console.quiet, QUIET_NS);
		}
	}
	memcpy(console.facts, now, sizeof(now));
}

/* --- the guest --- */

static void guest_gone(void)
{
	loop_remove(console.guest_source);
	console.guest_source = NULL;
	close_fd(&console.guest);
	say("the guest has ended; the host runs on (Ctrl-Alt-Del restarts it)");
	loop_timer_set(console.quiet, QUIET_NS);
}

static void guest_spoke(void *arg, int fd, uint32_t events)
{
	char text[4096];
	ssize_t n = read(fd, text, sizeof(text));

	if (n > 0)
		terminals_show(text, (size_t)n);
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		guest_gone();
}

static int connect_guest(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = GUEST_SOCKET};
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 ? steal_fd(&fd) : -1;
}

/* The name is there before anybody listens: a few tries, then it is nobody's. */
static void try_guest(void *arg)
{
	if (console.guest >= 0 || access(GUEST_SOCKET, F_OK) < 0)
		return;
	console.guest = connect_guest();
	if (console.guest < 0 && console.tries-- > 0)
		loop_timer_set(console.again, TRY_AGAIN_NS);
	if (console.guest >= 0)
		log_error(loop_add_fd(console.loop, console.guest, EPOLLIN, guest_spoke, NULL, &console.guest_source));
}

static void look_for_guest(void)
{
	console.tries = TRIES;
	try_guest(NULL);
}

static void ask_for_bundle(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (console.bundle && now.tv_sec < console.bundle + AGAIN_S) {
		say("one support bundle a minute is enough");
		return;
	}
	cleanup_fd int fd = open(SUPPORT_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, "\n", 1) != 1) {
		say("a support bundle cannot be asked for");
		return;
	}
	console.bundle = now.tv_sec;
	say("what support needs is gathered");
}

/* For the host itself. What is typed is shown. */
static void typed_here(char key)
{
	const size_t len = console.line_len;

	if (key == '\r') {
		terminals_show("\r\n", 2);
		console.line_len = 0;
		if (len == strlen(SUPPORT_WORD) && memcmp(console.line, SUPPORT_WORD, len) == 0)
			ask_for_bundle();
		else
			show_all();
	} else if ((key == '\b' || key == 0x7f) && len > 0) {
		console.line_len--;
		terminals_show("\b \b", 3);
	} else if (key >= 'a' && key <= 'z' && len < sizeof(console.line)) {
		console.line[console.line_len++] = key;
		terminals_show(&key, 1);
	}
}

/* What a guest does not take at once is lost, as on any serial line. */
static void typed(const char *text, size_t length)
{
	if (memchr(text, HOST_KEY, length))
		show_all();
	else if (console.guest >= 0 && send(console.guest, text, length, MSG_NOSIGNAL) < 0)
		return;
	for (size_t i = 0; i < length && console.guest < 0; i++)
		typed_here(text[i]);
}

/* --- what may change --- */

static void drop(int fd)
{
	char events[8192];

	while (read(fd, events, sizeof(events)) > 0)
		;
}

static void file_changed(void *arg, int fd, uint32_t events)
{
	drop(fd);
	look();
	look_for_guest();
}

static void network_changed(void *arg, int fd, uint32_t events)
{
	drop(fd);
	look();
}

/* The kernel tells by EPOLLPRI; reading makes it tell the next time, too. */
static void name_changed(void *arg, int fd, uint32_t events)
{
	if (lseek(fd, 0, SEEK_SET) == 0)
		drop(fd);
	look();
}

static void stop(void *arg, int fd, uint32_t events)
{
	drop(fd);
	loop_quit(console.loop);
}

static struct error *watch_files(void)
{
	static const char *const folders[] = {"/run/glint", "/run/glint-health", GUEST_FOLDER};

	console.inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (console.inotify < 0)
		return error_new(errno, "watch files");
	for (unsigned i = 0; i < ARRAY_SIZE(folders); i++)
		if (inotify_add_watch(console.inotify, folders[i], IN_CREATE | IN_MOVED_TO | IN_DELETE) < 0)
			log_warn("%s is not there: its changes are not seen", folders[i]);
	return loop_add_fd(console.loop, console.inotify, EPOLLIN, file_changed, NULL, NULL);
}

static struct error *watch_network(void)
{
	struct sockaddr_nl addr = {.nl_family = AF_NETLINK,
				   .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};

	console.netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	if (console.netlink < 0 || bind(console.netlink, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_new(errno, "watch the network");
	TRY(loop_add_fd(console.loop, console.netlink, EPOLLIN, network_changed, NULL, NULL));
	console.name = open("/proc/sys/kernel/hostname", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	return console.name < 0 ? NULL : loop_add_fd(console.loop, console.name, EPOLLPRI, name_changed, NULL, NULL);
}

static struct error *watch_signals(void)
{
	sigset_t handled;

	sigemptyset(&handled);
	sigaddset(&handled, SIGTERM);
	sigaddset(&handled, SIGINT);
	sigprocmask(SIG_BLOCK, &handled, NULL);
	console.signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
	if (console.signals < 0)
		return error_new(errno, "watch for signals");
	return loop_add_fd(console.loop, console.signals, EPOLLIN, stop, NULL, NULL);
}

static struct error *run(int terminals)
{
	char use[FACT_BYTES];

	TRY(loop_new(&console.loop));
	TRY(watch_signals());
	TRY(loop_add_timer(console.loop, show_all_if_alone, NULL, &console.quiet));
	TRY(loop_add_timer(console.loop, try_guest, NULL, &console.again));
	TRY(terminals_take(console.loop, FIRST_FD, terminals, typed));
	facts_use(use);
	say(use);
	TRY(watch_files());
	TRY(watch_network());
	look();
	look_for_guest();
	return loop_run(console.loop);
}

int main(int argc, char **argv)
{
	const char *count = getenv("LISTEN_FDS");
	long terminals = count ? strtol(count, NULL, 10) : 0;

	log_init("glint-console", LOG_LEVEL_INFO);
	if (argc != 1 || terminals < 0 || terminals > 16) {
		log_err("usage: glint-console (terminals from descriptor 3 on, LISTEN_FDS of them)");
		return 2;
	}
	struct error *err = run((int)terminals);
	bool failed = err;

	log_error(err);
	terminals_give_back();
	return failed;
}
