/*
 * The agent of the nested test host: process 1 of that machine, it runs commands for tests/host/host.py.
 *
 * It listens on TCP. One connection is one process: the client sends what to run, then bytes go both ways until the
 * process has ended, and the agent closes. Each connection has a handler process of its own, so nothing one command
 * does can stop another. When a client goes away its process group is killed.
 *
 * Both ways travel frames: one byte type, four bytes length (little endian), the payload.
 *
 * From the client first, in this order:
 *	T	the token, once
 *	A	an argument of the command, once for each
 *	E	NAME=VALUE of its environment, any number
 *	D	its working directory
 *	Y	rows and columns (two uint16): give it a terminal instead of pipes
 *	G	go
 * then, while it runs:
 *	I	input
 *	C	end of input
 *	S	send it a signal (int32)
 * From the agent:
 *	P	process id (int32)
 *	O	output
 *	R	error output
 *	X	its wait status (int32), last
 *	F	why it could not be started, last
 *
 * It is for tests, its only client is the test driver, which holds the token; still every length is bounded.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of the nested host, where nothing else listens; the client comes in by QEMU's forwarding. */
#define PORT 1

#define FRAME_MAX     (1U << 20)
#define STRINGS_BYTES (4 << 20)
#define STRINGS_MAX   4096
#define READ_BYTES    65536

struct frame {
	char type;
	uint32_t len;
	char *payload; /* NUL behind it; valid until the next frame is read */
};

struct command {
	char *argv[STRINGS_MAX + 1];
	size_t argc;
	char *env[STRINGS_MAX + 1];
	size_t envc;
	char *cwd;
	bool terminal;
	struct winsize size;
};

/* A running process as its handler sees it: the near ends of its streams, and input it has not taken yet. */
struct process {
	pid_t pid;
	int in, out, err, ended;
	char *pending;
	size_t pending_len;
	bool end_of_input;
};

static int client;

/* The handler's way out when its client is gone or talks nonsense. */
[[noreturn]] static void give_up(void)
{
	_exit(1);
}

static void write_client(const void *buf, size_t len)
{
	for (const char *p = buf; len > 0;) {
		ssize_t n = send(client, p, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			give_up();
		p += n;
		len -= (size_t)n;
	}
}

static void send_frame(char type, const void *payload, size_t len)
{
	char head[5] = {type, (char)len, (char)(len >> 8), (char)(len >> 16), (char)(len >> 24)};

	write_client(head, sizeof(head));
	write_client(payload, len);
}

[[noreturn, gnu::format(printf, 1, 2)]] static void send_failure(const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	send_frame('F', text, strlen(text));
	_exit(1);
}

/* False when the client has closed between two frames. */
static bool read_client(void *buf, size_t len)
{
	size_t have = 0;

	while (have < len) {
		ssize_t n = read(client, (char *)buf + have, len - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		have += (size_t)n;
	}
	return true;
}

static bool read_frame(struct frame *frame)
{
	static char payload[FRAME_MAX + 1];
	uint8_t head[5];

	if (!read_client(head, sizeof(head)))
		return false;
	frame->type = (char)head[0];
	frame->len = head[1] | (uint32_t)head[2] << 8 | (uint32_t)head[3] << 16 | (uint32_t)head[4] << 24;
	if (frame->len > FRAME_MAX || !read_client(payload, frame->len))
		return false;
	payload[frame->len] = '\0';
	frame->payload = payload;
	return true;
}

static char *keep_string(const struct frame *frame)
{
	static char kept[STRINGS_BYTES];
	static size_t used;

	if (frame->len + 1 > sizeof(kept) - used)
		send_failure("more than %d bytes of arguments and variables", STRINGS_BYTES);
	char *string = memcpy(kept + used, frame->payload, frame->len + 1);
	used += frame->len + 1;
	return string;
}

static void add_string(char **list, size_t *count, const struct frame *frame)
{
	if (*count == STRINGS_MAX)
		send_failure("more than %d arguments or variables", STRINGS_MAX);
	list[(*count)++] = keep_string(frame);
}

static void read_command(struct command *command, const char *token)
{
	struct frame frame;
	uint16_t size[2];

	if (!read_frame(&frame) || frame.type != 'T' || strcmp(frame.payload, token) != 0)
		give_up();
	while (read_frame(&frame)) {
		switch (frame.type) {
		case 'A':
			add_string(command->argv, &command->argc, &frame);
			break;
		case 'E':
			add_string(command->env, &command->envc, &frame);
			break;
		case 'D':
			command->cwd = keep_string(&frame);
			break;
		case 'Y':
			if (frame.len != sizeof(size))
				give_up();
			memcpy(size, frame.payload, sizeof(size));
			command->terminal = true;
			command->size = (struct winsize){.ws_row = size[0], .ws_col = size[1]};
			break;
		case 'G':
			if (command->argc == 0)
				send_failure("no command given");
			return;
		default:
			give_up();
		}
	}
	give_up();
}

/* In the new process. @report: closed by a successful exec, else takes the words of the failure. */
[[noreturn]] static void run_command(const struct command *command, int report)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (size_t i = 0; i < command->envc; i++)
		putenv(command->env[i]);
	if (command->cwd && chdir(command->cwd) < 0) {
		dprintf(report, "cannot enter %s: %s", command->cwd, strerror(errno));
		_exit(127);
	}
	execvp(command->argv[0], command->argv);
	dprintf(report, "cannot run %s: %s", command->argv[0], strerror(errno));
	_exit(127);
}

static void start_on_pipes(const struct command *command, struct process *process, int report)
{
	int in[2], out[2], err[2];

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		send_failure("cannot make pipes: %s", strerror(errno));
	process->pid = fork();
	if (process->pid < 0)
		send_failure("cannot fork: %s", strerror(errno));
	if (process->pid == 0) {
		setsid();
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		run_command(command, report);
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	process->in = in[1];
	process->out = out[0];
	process->err = err[0];
}

static void start_on_terminal(const struct command *command, struct process *process, int report)
{
	process->pid = forkpty(&process->out, NULL, NULL, &command->size);
	if (process->pid < 0)
		send_failure("cannot make a terminal: %s", strerror(errno));
	if (process->pid == 0)
		run_command(command, report);
	fcntl(process->out, F_SETFD, FD_CLOEXEC);
	process->in = dup(process->out);
	process->err = -1;
}

static void start(const struct command *command, struct process *process)
{
	int report[2];
	char text[512];
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	process->ended = signalfd(-1, &child, SFD_CLOEXEC);
	if (process->ended < 0 || pipe2(report, O_CLOEXEC) < 0)
		send_failure("cannot watch the process: %s", strerror(errno));
	if (command->terminal)
		start_on_terminal(command, process, report[1]);
	else
		start_on_pipes(command, process, report[1]);
	close(report[1]);
	ssize_t n = read(report[0], text, sizeof(text) - 1);
	if (n > 0) {
		text[n] = '\0';
		send_failure("%s", text);
	}
	close(report[0]);
	fcntl(process->in, F_SETFL, fcntl(process->in, F_GETFL) | O_NONBLOCK);
	send_frame('P', &process->pid, sizeof(process->pid));
}

/* The client may be ahead of a process that does not read: what it sent waits here, so that signals still get by. */
static void keep_input(struct process *process, const struct frame *frame)
{
	char *pending = realloc(process->pending, process->pending_len + frame->len + 1);

	if (!pending)
		give_up();
	process->pending = pending;
	memcpy(process->pending + process->pending_len, frame->payload, frame->len);
	process->pending_len += frame->len;
}

static void close_stream(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void pass_input(struct process *process)
{
	if (process->in >= 0 && process->pending_len > 0) {
		ssize_t n = write(process->in, process->pending, process->pending_len);
		if (n > 0) {
			process->pending_len -= (size_t)n;
			memmove(process->pending, process->pending + n, process->pending_len);
		} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
			close_stream(&process->in);
		}
	}
	if (process->in < 0)
		process->pending_len = 0;
	if (process->end_of_input && process->pending_len == 0)
		close_stream(&process->in);
}

/* Passes on what a stream holds now; true when there may be more. */
static bool pass_output(int *fd, char type)
{
	static char buf[READ_BYTES];
	ssize_t n = read(*fd, buf, sizeof(buf));

	if (n < 0 && errno == EINTR)
		return true;
	if (n <= 0) { /* a terminal whose last process went away says EIO */
		close_stream(fd);
		return false;
	}
	send_frame(type, buf, (size_t)n);
	return true;
}

static void drain_output(int *fd, char type)
{
	while (*fd >= 0) {
		struct pollfd ready = {.fd = *fd, .events = POLLIN};
		if (poll(&ready, 1, 0) <= 0 || !pass_output(fd, type))
			return;
	}
}

static void obey_client(struct process *process)
{
	struct frame frame;
	int32_t number;

	if (!read_frame(&frame)) {
		kill(-process->pid, SIGKILL);
		give_up();
	}
	switch (frame.type) {
	case 'I':
		keep_input(process, &frame);
		break;
	case 'C':
		process->end_of_input = true;
		break;
	case 'S':
		if (frame.len != sizeof(number))
			give_up();
		memcpy(&number, frame.payload, sizeof(number));
		kill(process->pid, number);
		break;
	default:
		give_up();
	}
	pass_input(process);
}

/* Serves one connection: from the token to the wait status. What a process leaves running behind it stays. */
static void serve(const char *token)
{
	static struct command command;
	struct process process = {};
	int status;

	read_command(&command, token);
	start(&command, &process);
	for (;;) {
		struct pollfd fds[] = {
			{.fd = client, .events = POLLIN},
			{.fd = process.ended, .events = POLLIN},
			{.fd = process.out, .events = POLLIN},
			{.fd = process.err, .events = POLLIN},
			{.fd = process.pending_len > 0 ? process.in : -1, .events = POLLOUT},
		};
		if (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0 && errno != EINTR)
			give_up();
		if (fds[2].revents)
			pass_output(&process.out, 'O');
		if (fds[3].revents)
			pass_output(&process.err, 'R');
		if (fds[4].revents)
			pass_input(&process);
		if (fds[0].revents)
			obey_client(&process);
		if (fds[1].revents && waitpid(process.pid, &status, WNOHANG) == process.pid)
			break;
	}
	drain_output(&process.out, 'O');
	drain_output(&process.err, 'R');
	free(process.pending);
	send_frame('X', &status, sizeof(status));
	/* The client closes first: closing with its input unread would make TCP drop the last frames. */
	shutdown(client, SHUT_WR);
	for (char rest[4096]; read(client, rest, sizeof(rest)) > 0;)
		;
}

static int listen_for_clients(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(PORT),
		.sin_addr.s_addr = htonl(INADDR_ANY),
	};

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 128) < 0) {
		fprintf(stderr, "agent: cannot listen on port %d: %s\n", PORT, strerror(errno));
		exit(1);
	}
	return fd;
}

int main(void)
{
	const char *from_kernel = getenv("glint_token");
	int one = 1;

	if (!from_kernel) {
		fprintf(stderr, "agent: no glint_token in the environment: it is started by tests/host only\n");
		return 2;
	}
	char *token = strdup(from_kernel);
	unsetenv("glint_token");
	int listener = listen_for_clients();

	/* As process 1 it inherits every orphan: ignoring the signal makes the kernel reap them. */
	signal(SIGCHLD, SIG_IGN);
	printf("agent: ready\n");
	fflush(stdout);
	for (;;) {
		client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0)
			continue;
		setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (fork() == 0) {
			close(listener);
			signal(SIGCHLD, SIG_DFL);
			serve(token);
			_exit(0);
		}
		close(client);
	}
}
