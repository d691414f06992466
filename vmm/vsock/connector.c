/*
 * The connector: a process that connects to UNIX sockets for a monitor that may open and connect nothing (the sandbox
 * refuses connect(2), and its root directory is empty). It is forked before the guest is there, and waits on one
 * socket of packets for the numbers of ports; for each it makes a socket, connects it to PREFIX_PORT in one directory,
 * and passes it back.
 *
 * So what a guest can reach is decided here, by a number that becomes part of a name: no path of a guest's or the
 * monitor's making is ever resolved. A monitor that a guest took over can connect to the sockets named PREFIX_PORT and
 * still to no others. A process of its own, and not a thread: seccomp cannot tell one path from another, and threads
 * share their descriptors.
 *
 * It may touch: that socket, and that directory, which it keeps as its working directory while its root is empty. The
 * sandbox's layers hold for it too, and a filter of its own (SANDBOX_CONNECTOR). It ends when the monitor does.
 */
#include "vmm/vsock/internal.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/sandbox/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Where the two descriptors of the process are; everything from TALK + 1 on is closed. */
#define DIRECTORY 3
#define TALK      4

/* A socket connected to @prefix_@port, or -1 and errno. Never waits: a listener whose queue is full is as good as none.
 */
static int connect_to(const char *prefix, uint32_t port)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int len = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s_%u", prefix, port);

	if (len < 0 || (size_t)len >= sizeof(addr.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -1;
	return steal_fd(&fd);
}

/* False when nobody is there any more. */
static bool send_answer(const struct connector_answer *answer, int fd)
{
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {(void *)(uintptr_t)answer, sizeof(*answer)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (fd >= 0) {
		msg.msg_control = ancillary;
		msg.msg_controllen = sizeof(ancillary);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	do
		n = sendmsg(TALK, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)sizeof(*answer);
}

static void serve(const char *prefix)
{
	struct connector_request ask;
	bool there = true;

	while (there) {
		ssize_t n = read(TALK, &ask, sizeof(ask));
		if (n < 0 && errno == EINTR)
			continue;
		if (n != (ssize_t)sizeof(ask))
			return;
		cleanup_fd int fd = connect_to(prefix, ask.port);
		const struct connector_answer answer = {
			.place = ask.place, .generation = ask.generation, .errnum = fd < 0 ? errno : 0};
		there = send_answer(&answer, fd);
	}
}

/* Standard error stays for the log; of all the rest, the two descriptors of the process. */
static struct error *settle(int dir_fd, int talk_fd)
{
	/* Out of the way of the places they go to. */
	int dir = fcntl(dir_fd, F_DUPFD, TALK + 1), talk = fcntl(talk_fd, F_DUPFD, TALK + 1);

	if (dir < 0 || talk < 0 || dup2(dir, DIRECTORY) < 0 || dup2(talk, TALK) < 0)
		return error_new(errno, "arrange its descriptors");
	(void)close(STDIN_FILENO);
	(void)close(STDOUT_FILENO);
	if (close_range(TALK + 1, ~0u, 0) < 0)
		return error_new(errno, "close what is not its own");
	return NULL;
}

static struct error *lock_in(bool sandbox)
{
	/* Signals of a terminal are for the monitor, and its end is ours. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	(void)prctl(PR_SET_NAME, "vsock-connector");
	if (sandbox)
		TRY(sandbox_process());
	if (fchdir(DIRECTORY) < 0)
		return error_new(errno, "enter the directory of its sockets");
	(void)close(DIRECTORY);
	return sandbox ? sandbox_thread(SANDBOX_CONNECTOR) : NULL;
}

[[noreturn]] static void run(int dir_fd, int talk_fd, const char *prefix, bool sandbox)
{
	char ready = 1;
	struct error *err = settle(dir_fd, talk_fd);

	if (!err)
		err = lock_in(sandbox);
	if (err) {
		log_error(error_wrap(err, "vsock connector"));
		_exit(1);
	}
	if (write(TALK, &ready, 1) == 1)
		serve(prefix);
	_exit(0);
}

struct error *vsock_connector_start(int dir_fd, const char *prefix, bool sandbox, int *fd)
{
	int pair[2];
	char ready;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_new(errno, "make the socket of the vsock connector");
	cleanup_fd int ours = pair[0];
	pid_t pid = fork();
	if (pid == 0)
		run(dir_fd, pair[1], prefix, sandbox);
	close(pair[1]);
	if (pid < 0)
		return error_new(errno, "start the vsock connector");
	/* It says that it is locked in; at its end, the socket's end says that it could not be. */
	if (read(ours, &ready, 1) != 1)
		return error_new(0, "start the vsock connector: it ended at once, and said why above");
	if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0)
		return error_new(errno, "start the vsock connector");
	*fd = steal_fd(&ours);
	return NULL;
}
