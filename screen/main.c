/*
 * glint-screen's beginning: options, the call to the monitor, the door for viewers, and locking itself in. What it is
 * stands in screen.h.
 *
 * Touches: the monitor's control socket (one call), the socket it makes at --vnc, then nothing but descriptors.
 */
#include "screen/screen.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "option/option.h"
#include "vmm/sandbox/sandbox.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MAX 65536
#define BACKLOG    8

struct config {
	const char *vnc, *monitor, *name;
	bool sandbox, help, version;
};

#define AT(member) offsetof(struct config, member)

static const struct option options[] = {
	{"vnc", OPTION_TEXT, AT(vnc), .min = 1, .value = "PATH|fd=N",
	 .help = "where viewers connect: a UNIX socket made at PATH, or one that listens already"},
	{"monitor", OPTION_TEXT, AT(monitor), .min = 1, .value = "PATH|fd=N",
	 .help = "the machine's control socket, or a connection to it"},
	{"name", OPTION_TEXT, AT(name), .min = 1, .max = 64, .value = "NAME",
	 .help = "what viewers call the machine (default: Glint)"},
	{"sandbox", OPTION_SWITCH, AT(sandbox), .help = "lock the process in (default: on)"},
	{"version", OPTION_FLAG, AT(version), .help = "print the version"},
	{"help", OPTION_FLAG, AT(help), .aka = "h", .help = "print this"},
	{NULL},
};

static struct error *address_of(const char *path, struct sockaddr_un *address)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(address->sun_path))
		return error_new(ENAMETOOLONG, "%s", path);
	memcpy(address->sun_path, path, strlen(path) + 1);
	return NULL;
}

/* For its owner only; one that is left from before is replaced. */
static struct error *open_door(const char *where, int *fd)
{
	struct sockaddr_un address;

	if (option_is_descriptor(where))
		return option_descriptor(where, "--vnc", fd);
	TRY(address_of(where, &address));
	cleanup_fd int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (door < 0)
		return error_new(errno, "make a socket");
	unlink(where);
	mode_t mask = umask(0077);
	int ret = bind(door, (struct sockaddr *)&address, sizeof(address));
	umask(mask);
	if (ret < 0 || listen(door, BACKLOG) < 0)
		return error_new(errno, "listen at %s", where);
	*fd = steal_fd(&door);
	return NULL;
}

static struct error *reach_monitor(const char *where, int *fd)
{
	struct sockaddr_un address;

	if (option_is_descriptor(where))
		return option_descriptor(where, "--monitor", fd);
	TRY(address_of(where, &address));
	cleanup_fd int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_new(errno, "reach the monitor at %s", where);
	*fd = steal_fd(&sock);
	return NULL;
}

static struct error *call_attach(int control, int theirs)
{
	static const char call[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"display-attach\"}";
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))] = {};
	struct iovec iov = {(void *)(uintptr_t)call, sizeof(call) - 1};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof(ancillary)};
	struct cmsghdr *head = (struct cmsghdr *)ancillary;

	*head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(head), &theirs, sizeof(theirs));
	return sendmsg(control, &msg, MSG_NOSIGNAL) < 0 ? error_new(errno, "ask the monitor") : NULL;
}

/* Notifications may come before the answer. */
static struct error *await_answer(int control)
{
	char packet[ANSWER_MAX];

	for (;;) {
		ssize_t len = recv(control, packet, sizeof(packet), 0);
		if (len <= 0)
			return error_new(len < 0 ? errno : 0, "the monitor does not answer");
		json_t *answer = json_loadb(packet, (size_t)len, 0, NULL);
		bool is_answer = json_object_get(answer, "id") != NULL;
		const char *words = json_string_value(json_object_get(json_object_get(answer, "error"), "message"));
		struct error *err = words ? error_new(0, "the monitor refuses: %s", words) : NULL;
		json_decref(answer);
		if (is_answer || !answer)
			return err;
	}
}

/* The socket over which the display is seen. */
static struct error *attach(int control, int *link)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_new(errno, "make a link");
	cleanup_fd int ours = pair[0], theirs = pair[1];
	TRY(call_attach(control, theirs));
	TRY(await_answer(control));
	*link = steal_fd(&ours);
	return NULL;
}

static struct error *lock_in(void)
{
	TRY(sandbox_process());
	return sandbox_thread(SANDBOX_SCREEN);
}

static struct error *run(const struct config *config)
{
	cleanup_fd int door = -1, control = -1, link = -1;

	if (!config->vnc || !config->monitor)
		return error_hint(error_new(EINVAL, "--vnc and --monitor are needed"),
				  "glint-screen --vnc PATH --monitor CONTROL");
	signal(SIGPIPE, SIG_IGN);
	TRY(reach_monitor(config->monitor, &control));
	TRY(attach(control, &link));
	close_fd(&control);
	TRY(open_door(config->vnc, &door));
	log_info("viewers of %s may come", config->name);
	return screen_serve(config->name, door, link, config->sandbox ? lock_in : NULL);
}

int main(int argc, char **argv)
{
	struct config config = {.name = "Glint", .sandbox = true};

	log_init("glint-screen", LOG_LEVEL_INFO);
	struct error *err = option_arguments(options, argc, argv, &config);

	if (!err && config.help) {
		puts("Usage: glint-screen --vnc PATH --monitor CONTROL\n"
		     "Shows the display of a machine to VNC viewers until the machine ends.\n");
		option_help(options, stdout);
		return 0;
	}
	if (!err && config.version) {
		puts("glint-screen " GLINT_VERSION);
		return 0;
	}
	if (!err)
		err = run(&config);
	if (!err)
		return 0;
	fprintf(stderr, "glint-screen: %s\n", error_text(err));
	if (error_hint_text(err))
		fprintf(stderr, "  %s\n", error_hint_text(err));
	error_free(err);
	return 1;
}
