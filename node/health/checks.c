/*
 * What a host needs to do its job; see health.h. Touches: the keeper's file, the database's socket, glint-vmm, which is
 * asked for its version, and /dev/kvm, by which a virtual machine is made and thrown away.
 *
 * What is not looked at is what another slot would not make better: that there is a network, what the guests do, that
 * the stick can be written to (the keeper says so, and alerts).
 */
#include "node/health/health.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/kvm.h>
#include <poll.h>
#include <spawn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

#define ANSWER_MAX  ((size_t)65536)
#define PATIENCE_S  5
#define CPUINFO_MAX ((size_t)4 << 20)

static void json_done(json_t **json)
{
	json_decref(*json);
}
#define cleanup_json __attribute__((cleanup(json_done)))

/* The host's state was found, or is said to be in memory. */
static struct error *check_keeper(const char *path)
{
	cleanup_free char *text = NULL;
	cleanup_json json_t *health = NULL;
	size_t len;

	TRY(error_wrap(read_file(path, ANSWER_MAX, &text, &len), "the keeper has not got the host's state"));
	if (json_nesting(text, len) < 16)
		health = json_loadb(text, len, 0, NULL);
	const char *how = json_string_value(json_object_get(health, "durability"));
	if (!how || (strcmp(how, "stick") != 0 && strcmp(how, "memory") != 0))
		return error_new(0, "the keeper does not say how the host's state is kept (%s)", path);
	return NULL;
}

/* It answers, and has the database. */
static struct error *check_database(const char *path)
{
	static const char call[] = "{\"method\":\"list_dbs\",\"params\":[],\"id\":0}";
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const struct timeval patience = {.tv_sec = PATIENCE_S};
	char answer[4096];
	size_t len = 0;

	if (strlen(path) >= sizeof(address.sun_path))
		return error_new(ENAMETOOLONG, "ask the host's database");
	strcpy(address.sun_path, path);
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_new(errno, "the host's database cannot be reached (%s)", path);
	TRY(write_all(fd, call, sizeof(call) - 1, "the host's database"));
	while (len < sizeof(answer)) {
		ssize_t n = recv(fd, answer + len, sizeof(answer) - len, 0);
		if (n <= 0)
			return error_new(n < 0 ? errno : ECONNRESET, "the host's database does not answer");
		len += (size_t)n;
		if (json_nesting(answer, len) > 8)
			break;
		cleanup_json json_t *json = json_loadb(answer, len, JSON_DISABLE_EOF_CHECK, NULL);
		json_t *name;
		size_t i;
		json_array_foreach(json_object_get(json, "result"), i,
				   name) if (json_string_value(name) &&
					     strcmp(json_string_value(name), "Glint") == 0) return NULL;
		if (json)
			break;
	}
	return error_new(0, "the host's database server has no database Glint");
}

/* Its program starts, and ends as it should. */
static struct error *check_monitor(const char *path)
{
	char *const arguments[] = {(char *)(uintptr_t)path, (char[]){"--version"}, NULL};
	posix_spawn_file_actions_t actions;
	siginfo_t info = {};
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	int err = posix_spawn(&pid, path, &actions, NULL, arguments, NULL);
	posix_spawn_file_actions_destroy(&actions);
	if (err)
		return error_new(err, "the monitor cannot be started (%s)", path);
	cleanup_fd int fd = pidfd_open(pid, 0);
	struct pollfd ended = {.fd = fd, .events = POLLIN};
	if (fd < 0 || poll(&ended, 1, PATIENCE_S * 1000) != 1)
		kill(pid, SIGKILL);
	waitid(P_PID, (id_t)pid, &info, WEXITED);
	if (info.si_code != CLD_EXITED || info.si_status != 0)
		return error_new(0, "the monitor does not run (%s --version)", path);
	return NULL;
}

/* Whether the processor says that it can run virtual machines. */
static bool cpu_can(const char *cpuinfo)
{
	cleanup_free char *text = NULL;
	size_t len;

	struct error *err = read_file(cpuinfo, CPUINFO_MAX, &text, &len);
	error_free(err);
	const char *flags = text ? strstr(text, "\nflags") : NULL;
	if (!flags)
		return false;
	const char *end = strchrnul(flags + 1, '\n');
	cleanup_free char *line = strndup(flags, (size_t)(end - flags));
	return line && (strstr(line, " svm ") || strstr(line, " vmx "));
}

/* A box that has no such processor is a host of nothing, whatever slot it runs: that is no fault of this one. */
static struct error *check_kvm(const char *path, const char *cpuinfo)
{
	cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return cpu_can(cpuinfo)
			       ? error_new(errno, "open %s, though the processor can run virtual machines", path)
			       : NULL;
	cleanup_fd int vm = ioctl(fd, KVM_CREATE_VM, 0);
	if (ioctl(fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION || vm < 0)
		return error_new(errno, "make a virtual machine by %s", path);
	return NULL;
}

struct error *checks_run(const struct checks *c)
{
	TRY(check_keeper(c->keeper));
	TRY(check_database(c->database));
	TRY(check_monitor(c->monitor));
	return check_kvm(c->kvm, c->cpuinfo);
}
