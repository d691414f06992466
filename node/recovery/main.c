/*
 * glint-recovery: a shell of the host, for a person at the machine's own keyboard (docs/stick.md, "The recovery
 *shell").
 *
 *     glint-recovery SHELL    waits for the word on the terminal that it has, and runs "SHELL sh" there
 *
 * It waits on tty2, which Alt-F2 brings to the front: the kernel's keyboard driver does that. So no program of the host
 * asks for the shell, nothing of it lies on a terminal that a guest or another program writes to or reads from, and a
 * serial line has no part in it: what is no virtual terminal of the kernel's is refused here, too.
 *
 *	the word? -> shell -> its end, no key for a while, or its time is over -> this program ends, and systemd starts
 *	it anew
 *
 * What it has to say about itself goes to standard error, the journal; standard input and output are that terminal.
 * It touches that terminal, and the shell it starts.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <linux/vt.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define WORD      "RECOVER"
#define IDLE_S    600
#define LONGEST_S 3600
#define LOOK_S    10 /* how often the terminal is asked when a key was last pressed */
#define TTY_MAJOR 4  /* of tty1 to tty63, minors 1 to 63: the kernel's admin-guide, devices.txt */

static bool is_virtual_terminal(int fd)
{
	struct stat file;
	struct vt_stat vt;

	return fstat(fd, &file) == 0 && S_ISCHR(file.st_mode) && major(file.st_rdev) == TTY_MAJOR &&
	       minor(file.st_rdev) >= 1 && minor(file.st_rdev) <= 63 && ioctl(fd, VT_GETSTATE, &vt) == 0;
}

static void tell(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		log_warn("cannot write to the terminal: %m");
}

/* The terminal hands out a line at a time, a long one in pieces. An error is a terminal that was hung up. */
static struct error *wait_for_word(void)
{
	char text[256];
	bool begins = true, word = false;

	tell("\r\nThis gives a shell of the host, with all rights. Its guests run on; nothing that is done is asked "
	     "about twice.\r\n"
	     "Type " WORD " and Enter. Alt-F1 goes back to the first screen.\r\n\r\n> ");
	while (!word) {
		ssize_t n = read(STDIN_FILENO, text, sizeof(text) - 1);
		if (n < 0 && errno != EINTR)
			return error_new(errno, "read what is typed");
		text[MAX(n, 0)] = '\0';
		bool ends = n > 0 && text[n - 1] == '\n';
		word = begins && strcmp(text, WORD "\n") == 0;
		if (ends && !word && !(begins && n == 1))
			log_warn("no recovery shell: another word was typed at the host's keyboard");
		if (n == 0)
			sleep(1); /* Ctrl-D */
		if (ends && !word)
			tell("> ");
		begins = ends || n <= 0;
	}
	return NULL;
}

/* In the child: the shell's errors are for the person, too. */
[[noreturn]] static void become_shell(const char *shell)
{
	static const char *const environment[] = {
		"PATH=/usr/bin:/usr/sbin:/usr/lib/glint",
		"HOME=/root",
		"TERM=linux",
		"PS1=recovery# ",
		"SYSTEMD_PAGER=",
		NULL,
	};

	if (dup2(STDOUT_FILENO, STDERR_FILENO) >= 0 && chdir("/root") == 0)
		execle(shell, "sh", (char *)NULL, environment);
	dprintf(STDOUT_FILENO, "cannot run %s: %s\r\n", shell, strerror(errno));
	_exit(127);
}

/*
 * Until the shell ends; returns how. The kernel stamps a terminal, in steps of 8 s, when something typed is read from
 * it; by the clock, which may be set meanwhile: only that the stamp changes counts.
 */
static const char *watch(int shell)
{
	struct pollfd set = {.fd = shell, .events = POLLIN};
	struct stat terminal;
	time_t stamp = 0;

	for (int total_s = 0, idle_s = 0; poll(&set, 1, LOOK_S * 1000) <= 0; total_s += LOOK_S, idle_s += LOOK_S) {
		if (fstat(STDIN_FILENO, &terminal) < 0)
			return "was closed: its terminal is gone";
		if (terminal.st_atime != stamp)
			idle_s = 0;
		stamp = terminal.st_atime;
		if (idle_s >= IDLE_S)
			return "was closed: no key was pressed for 10 min";
		if (total_s >= LONGEST_S)
			return "was closed: an hour is over";
	}
	return "was left";
}

static struct error *run_shell(const char *shell)
{
	tell("\r\nexit ends it; so does the host after 10 min without a key, and after an hour.\r\n");
	pid_t child = fork();
	if (child < 0)
		return error_new(errno, "start the recovery shell");
	if (child == 0)
		become_shell(shell);
	log_warn("a recovery shell was opened at the host's keyboard");
	cleanup_fd int ended = (int)syscall(SYS_pidfd_open, child, 0);
	if (ended < 0)
		return error_new(errno, "watch the recovery shell");
	/* What still runs when this program ends is ended by systemd. */
	log_warn("the recovery shell %s", watch(ended));
	return NULL;
}

static struct error *run(const char *shell)
{
	TRY(wait_for_word());
	return run_shell(shell);
}

int main(int argc, char **argv)
{
	log_init("glint-recovery", LOG_LEVEL_INFO);
	if (argc != 2) {
		log_err("usage: glint-recovery SHELL");
		return 2;
	}
	if (!is_virtual_terminal(STDIN_FILENO)) {
		log_err("no recovery shell here: it is given on the machine's own screen only (Alt-F2 at its "
			"keyboard)");
		return 1;
	}
	struct error *err = run(argv[1]);
	bool failed = err;
	log_error(err);
	return failed;
}
