/*
 * Terminals; see terminals.h. One never holds up the others: what it does not take at once waits in a backlog of its
 * own (a serial line takes 11 KB/s, a guest's boot messages come faster), what the backlog does not hold is dropped for
 * that terminal. Nothing grows. A serial port that is not there answers EIO, and is left out.
 *
 * It touches the descriptors it is given.
 */
#include "node/console/terminals.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kd.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_TERMINALS 8
#define BACKLOG_BYTES 262144 /* a guest's boot messages, twice over */
#define DRAIN_MS      2000

struct terminal {
	int fd; /* -1: left out */
	bool screen;
	struct loop_source *source;
	struct termios before;
	/* A ring of what it has not taken yet: @waiting bytes from @first on. */
	size_t first, waiting;
	char backlog[BACKLOG_BYTES];
};

static struct terminal terminals[MAX_TERMINALS];
static int n_terminals;
static terminals_typed_fn *on_typed;

static void leave_out(struct terminal *t)
{
	loop_remove(t->source);
	t->source = NULL;
	t->fd = -1;
}

/* Writes as much of the backlog as the terminal takes now, and is told when it takes more. */
static void flush(struct terminal *t)
{
	while (t->fd >= 0 && t->waiting) {
		size_t piece = t->first + t->waiting > BACKLOG_BYTES ? BACKLOG_BYTES - t->first : t->waiting;
		ssize_t n = write(t->fd, t->backlog + t->first, piece);

		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0 && errno != EINTR)
			leave_out(t);
		if (n > 0) {
			t->first = (t->first + (size_t)n) % BACKLOG_BYTES;
			t->waiting -= (size_t)n;
		}
	}
	if (t->fd >= 0 && loop_set_events(t->source, EPOLLIN | (t->waiting ? EPOLLOUT : 0)))
		leave_out(t);
}

static void put(struct terminal *t, const char *text, size_t length)
{
	for (size_t done = 0; done < length && t->waiting < BACKLOG_BYTES; done++)
		t->backlog[(t->first + t->waiting++) % BACKLOG_BYTES] = text[done];
	flush(t);
}

static void happened(void *arg, int fd, uint32_t events)
{
	struct terminal *t = arg;
	char text[256];

	if (events & EPOLLOUT)
		flush(t);
	if (t->fd < 0 || !(events & ~EPOLLOUT))
		return;
	ssize_t n = read(fd, text, sizeof(text));
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		leave_out(t);
	else if (n > 0)
		on_typed(text, (size_t)n);
}

/* Raw: every key counts, Ctrl-C too, and a guest's own terminal driver makes its line ends. */
static struct error *take(struct loop *loop, int fd)
{
	struct terminal *t = &terminals[n_terminals];
	struct termios raw;
	char keyboard;

	if (tcgetattr(fd, &t->before) < 0)
		return NULL;
	raw = t->before;
	cfmakeraw(&raw);
	if (tcsetattr(fd, TCSANOW, &raw) < 0 || fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
		return NULL;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	t->fd = fd;
	t->screen = ioctl(fd, KDGKBTYPE, &keyboard) == 0;
	n_terminals++;
	return loop_add_fd(loop, fd, EPOLLIN, happened, t, &t->source);
}

struct error *terminals_take(struct loop *loop, int first, int count, terminals_typed_fn *typed)
{
	on_typed = typed;
	for (int i = 0; i < count && n_terminals < MAX_TERMINALS; i++)
		TRY(take(loop, first + i));
	return NULL;
}

void terminals_show(const char *text, size_t length)
{
	for (int i = 0; i < n_terminals; i++)
		if (terminals[i].fd >= 0)
			put(&terminals[i], text, length);
}

void terminals_clear_screens(void)
{
	static const char clear[] = "\033[2J\033[H";

	for (int i = 0; i < n_terminals; i++)
		if (terminals[i].fd >= 0 && terminals[i].screen)
			put(&terminals[i], clear, sizeof(clear) - 1);
}

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

void terminals_give_back(void)
{
	long long until = now_ms() + DRAIN_MS, left;

	for (int i = 0; i < n_terminals; i++) {
		struct terminal *t = &terminals[i];
		struct pollfd set = {.fd = t->fd, .events = POLLOUT};

		while (t->fd >= 0 && t->waiting && (left = until - now_ms()) > 0)
			if (poll(&set, 1, (int)left) > 0)
				flush(t);
		if (t->fd >= 0)
			tcsetattr(t->fd, TCSANOW, &t->before);
	}
}
