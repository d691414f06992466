/*
 * glint-console COMMAND [ARGUMENT]...: shows a program on several terminals at once.
 *
 * The guest carried in the image has one serial port, and the person in front of the host sits at its screen or at
 * the other end of its serial cable. systemd opens those terminals (OpenFile=, so this needs no right to open them)
 * and passes them from descriptor 3 on; the command gets a socket as its standard input and output. What it writes
 * goes to every terminal, what is typed at any of them goes to it. Its standard error goes to the terminals and to
 * the journal.
 *
 *	tty1  <--+                +--> socket --> stdin  \
 *	ttyS0 <--+-- this process +<-- socket <-- stdout  } COMMAND
 *	         +                +<-- pipe   <-- stderr /
 *
 * A terminal never holds the guest up: what it does not take at once waits in a backlog (a serial line takes 11 KB/s,
 * a guest's boot messages come faster), what the backlog does not hold is dropped for that terminal; one that fails (a
 * serial port that is not there answers EIO) is left out from then on. Input the command does not take is dropped.
 * Nothing grows.
 *
 * A line of its own says how the host's state is kept, and again whenever that changes (the keeper's health.json).
 *
 * It may touch: the descriptors it is given, /proc/meminfo and the health file; it runs as the VM's user.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define FIRST_FD      3 /* sd_listen_fds(3): SD_LISTEN_FDS_START */
#define MAX_TERMINALS 8
#define BACKLOG_BYTES 262144 /* a guest's boot messages, twice over */
#define DRAIN_MS      2000   /* how long the last words may take after the command has ended */
#define HEALTH_FOLDER "/run/glint"
#define HEALTH_FILE   HEALTH_FOLDER "/health.json" /* docs/state-on-flash.md */

struct terminal {
	int fd; /* -1: left out */
	struct termios before;
	/* A ring of what it has not taken yet: @waiting bytes from @first on. */
	size_t first, waiting;
	char backlog[BACKLOG_BYTES];
};

static struct terminal terminals[MAX_TERMINALS];
static int n_terminals;

/* Raw: every key goes to the guest, Ctrl-C too; the guest's own terminal driver makes the line ends. */
static void take_terminal(int fd)
{
	struct terminal *t = &terminals[n_terminals];
	struct termios raw;

	if (tcgetattr(fd, &t->before) < 0)
		return;
	raw = t->before;
	cfmakeraw(&raw);
	if (tcsetattr(fd, TCSANOW, &raw) < 0 || fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
		return;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	t->fd = fd;
	n_terminals++;
}

static void give_back_terminals(void)
{
	for (int i = 0; i < n_terminals; i++)
		if (terminals[i].fd >= 0)
			tcsetattr(terminals[i].fd, TCSANOW, &terminals[i].before);
}

/* Writes as much of the backlog as the terminal takes now. */
static void flush(struct terminal *t)
{
	while (t->fd >= 0 && t->waiting) {
		size_t piece = t->first + t->waiting > BACKLOG_BYTES ? BACKLOG_BYTES - t->first : t->waiting;
		ssize_t n = write(t->fd, t->backlog + t->first, piece);

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			t->fd = -1;
		if (n <= 0)
			return;
		t->first = (t->first + (size_t)n) % BACKLOG_BYTES;
		t->waiting -= (size_t)n;
	}
}

static void show(const char *text, size_t length)
{
	for (int i = 0; i < n_terminals; i++) {
		struct terminal *t = &terminals[i];

		for (size_t done = 0; done < length && t->waiting < BACKLOG_BYTES; done++)
			t->backlog[(t->first + t->waiting++) % BACKLOG_BYTES] = text[done];
		flush(t);
	}
}

/* Gives slow terminals some time for what the command said last. */
static void drain(void)
{
	struct timespec until, now;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += DRAIN_MS / 1000;
	for (int i = 0; i < n_terminals; i++) {
		struct terminal *t = &terminals[i];
		struct pollfd set = {.fd = t->fd, .events = POLLOUT};
		long long left = 1;

		while (t->fd >= 0 && t->waiting && left > 0) {
			clock_gettime(CLOCK_MONOTONIC, &now);
			left = (until.tv_sec - now.tv_sec) * 1000LL + (until.tv_nsec - now.tv_nsec) / 1000000;
			if (left > 0 && poll(&set, 1, (int)left) > 0)
				flush(t);
		}
	}
}

/*
 * Words that no terminal driver has been through, whole lines: to the journal as they are, to the terminals with full
 * line ends and without the log level "<N>" that a line for the journal begins with (sd-daemon(3)).
 */
static void report(const char *text, size_t length)
{
	for (size_t from = 0, to; from < length; from = to + 1) {
		const char *end = memchr(text + from, '\n', length - from);

		to = end ? (size_t)(end - text) : length;
		if (to - from >= 3 && text[from] == '<' && text[from + 2] == '>')
			from += 3;
		show(text + from, to - from);
		if (end)
			show("\r\n", 2);
	}
	if (write(STDERR_FILENO, text, length) < 0)
		return;
}

/* Kibibytes of a field of /proc/meminfo, 0 when it is not there. */
static unsigned long meminfo(const char *text, const char *field)
{
	const char *at = strstr(text, field);

	return at ? strtoul(at + strlen(field), NULL, 10) : 0;
}

/* One line that says how far the host is and what it costs, before the guest speaks. */
static void announce(void)
{
	char text[4096], line[200];
	int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	unsigned long total, available;
	struct timespec up;
	int length;

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = '\0';
	total = meminfo(text, "MemTotal:");
	available = meminfo(text, "MemAvailable:");
	clock_gettime(CLOCK_BOOTTIME, &up);
	length = snprintf(line, sizeof(line),
			  "glint: host up %lld.%03ld s after its kernel started, memory in use %lu of %lu MiB\n",
			  (long long)up.tv_sec, up.tv_nsec / 1000000, (total - available) / 1024, total / 1024);
	report(line, (size_t)length);
}

/* Where the host's state is kept, in words; empty when nobody says. */
static void health_line(char *line, size_t size)
{
	json_t *health = json_load_file(HEALTH_FILE, 0, NULL);
	const char *durability = json_string_value(json_object_get(health, "durability"));
	const char *why = json_string_value(json_object_get(health, "why"));

	line[0] = '\0';
	if (durability && strcmp(durability, "stick") == 0)
		snprintf(line, size, "glint: the host's state is kept on its stick\n");
	else if (durability)
		snprintf(line, size, "glint: the host's state is in memory only: %.200s\n", why ? why : "");
	json_decref(health);
	/* Words from a stick are no business of the terminal's. */
	for (char *at = line; *at && *at != '\n'; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			*at = '?';
}

static void show_health(void)
{
	static char last[300];
	char line[sizeof(last)];

	health_line(line, sizeof(line));
	if (line[0] && strcmp(line, last) != 0)
		report(line, strlen(line));
	memcpy(last, line, sizeof(last));
}

static void health_changed(int watch)
{
	char events[4096];

	while (read(watch, events, sizeof(events)) > 0)
		;
	show_health();
}

/* Runs the command; returns its process id and leaves our ends of its console and of its standard error. */
static pid_t start(char **command, int *console, int *errors)
{
	int io[2], err[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, io) < 0 || pipe2(err, O_CLOEXEC) < 0)
		return -1;
	child = fork();
	if (child == 0) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		/* The guest must not outlive its console: systemd would start a second one beside it. */
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		dup2(io[1], STDIN_FILENO);
		dup2(io[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		execvp(command[0], command);
		dprintf(STDERR_FILENO, "glint-console: cannot run %s: %s\n", command[0], strerror(errno));
		_exit(127);
	}
	close(io[1]);
	close(err[1]);
	fcntl(io[0], F_SETFL, O_RDWR | O_NONBLOCK);
	*console = io[0];
	*errors = err[0];
	return child;
}

/* Whatever @fd has goes through @sink. Returns false at its end. */
static bool pass(int fd, void (*sink)(const char *text, size_t length))
{
	char text[4096];
	ssize_t n = read(fd, text, sizeof(text));

	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR);
	sink(text, (size_t)n);
	return true;
}

static void typed(struct terminal *t, int console)
{
	char text[256];
	ssize_t n = read(t->fd, text, sizeof(text));

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		t->fd = -1;
	else if (n > 0 && console >= 0 && send(console, text, (size_t)n, MSG_NOSIGNAL) < 0)
		return; /* the command takes no more, or has ended: its wait status tells */
}

/* Passes bytes until both of the command's outputs have ended; a signal is handed on to it. */
static void serve(pid_t child, int console, int errors, int signals, int health)
{
	struct pollfd set[MAX_TERMINALS + 4];

	while (console >= 0 || errors >= 0) {
		struct signalfd_siginfo got;

		set[0] = (struct pollfd){.fd = console, .events = POLLIN};
		set[1] = (struct pollfd){.fd = errors, .events = POLLIN};
		set[2] = (struct pollfd){.fd = signals, .events = POLLIN};
		set[3] = (struct pollfd){.fd = health, .events = POLLIN};
		for (int i = 0; i < n_terminals; i++)
			set[4 + i] = (struct pollfd){.fd = terminals[i].fd,
						     .events = POLLIN | (terminals[i].waiting ? POLLOUT : 0)};
		if (poll(set, (nfds_t)n_terminals + 4, -1) < 0)
			continue;
		if (set[2].revents && read(signals, &got, sizeof(got)) == sizeof(got))
			kill(child, (int)got.ssi_signo);
		if (set[0].revents && !pass(console, show))
			console = -1;
		if (set[1].revents && !pass(errors, report))
			errors = -1;
		if (set[3].revents)
			health_changed(health);
		for (int i = 0; i < n_terminals; i++) {
			if (set[4 + i].revents & POLLOUT)
				flush(&terminals[i]);
			if (set[4 + i].revents & ~POLLOUT)
				typed(&terminals[i], console);
		}
	}
}

int main(int argc, char **argv)
{
	static const char ended[] = "glint: the guest has ended; the host runs on (Ctrl-Alt-Del restarts it)\n";
	const char *count = getenv("LISTEN_FDS");
	int console, errors, signals, health, status;
	sigset_t handled;
	pid_t child;

	if (argc < 2) {
		fprintf(stderr, "usage: glint-console COMMAND [ARGUMENT]... (terminals from descriptor 3 on, "
				"LISTEN_FDS of them)\n");
		return 2;
	}
	for (int i = 0; i < (count ? strtol(count, NULL, 10) : 0) && i < MAX_TERMINALS; i++)
		take_terminal(FIRST_FD + i);
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	unsetenv("LISTEN_PID");
	sigemptyset(&handled);
	sigaddset(&handled, SIGTERM);
	sigaddset(&handled, SIGINT);
	sigprocmask(SIG_BLOCK, &handled, NULL);
	signals = signalfd(-1, &handled, SFD_CLOEXEC);

	announce();
	health = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	inotify_add_watch(health, HEALTH_FOLDER, IN_MOVED_TO | IN_DELETE);
	show_health();
	child = start(argv + 1, &console, &errors);
	if (child < 0) {
		fprintf(stderr, "glint-console: cannot start %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	serve(child, console, errors, signals, health);
	if (waitpid(child, &status, 0) < 0)
		return 1;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		report(ended, sizeof(ended) - 1);
	drain();
	give_back_terminals();
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
