/*
 * Calls one method of glint-vmm's control socket and prints the answer, a line of JSON: for tests on a host where
 * starting Python takes seconds.
 *
 *     ctl SOCKET METHOD [PATH [PARAMS]]   PATH is created and its descriptor passed along ("": none); PARAMS is JSON
 *
 * +PATH is there, and is opened for reading and writing; =PATH is a listening stream socket, and is connected to; %NAME
 * is a tap of one queue.
 *
 * Exit status: 0 a result, 1 an error came back, 2 no answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int complain(const char *what)
{
	perror(what);
	return 2;
}

static ssize_t send_call(int sock, const char *method, int passed, const char *params)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	char text[4096];
	int len = snprintf(text, sizeof(text), "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\",\"params\":%s}", method,
			   params);
	struct iovec iov = {text, (size_t)len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (passed >= 0) {
		msg.msg_control = control.room;
		msg.msg_controllen = sizeof(control.room);
		control.head = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.head), &passed, sizeof(passed));
	}
	return sendmsg(sock, &msg, 0);
}

static int connect_to(const char *path, int type)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(addr.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(addr.sun_path, path);
	return sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? -1 : sock;
}

static int open_tap(const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	return fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0 ? -1 : fd;
}

static int open_path(const char *path)
{
	if (*path == '%')
		return open_tap(path + 1);
	if (*path == '=')
		return connect_to(path + 1, SOCK_STREAM);
	if (*path == '+')
		return open(path + 1, O_RDWR | O_CLOEXEC);
	return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

int main(int argc, char **argv)
{
	char answer[65536];
	int passed = -1;

	if (argc < 3) {
		fprintf(stderr, "usage: ctl SOCKET METHOD [PATH [PARAMS]]\n");
		return 2;
	}
	int sock = connect_to(argv[1], SOCK_SEQPACKET);
	if (sock < 0)
		return complain(argv[1]);
	if (argc > 3 && argv[3][0] && (passed = open_path(argv[3])) < 0)
		return complain(argv[3]);
	if (send_call(sock, argv[2], passed, argc > 4 ? argv[4] : "{}") < 0)
		return complain("send");
	for (;;) {
		ssize_t n = recv(sock, answer, sizeof(answer) - 1, 0);
		if (n <= 0)
			return complain("answer");
		answer[n] = '\0';
		if (strstr(answer, "\"method\"")) /* a notification; its parameters may have an id */
			continue;
		puts(answer);
		return strstr(answer, "\"error\"") ? 1 : 0;
	}
}
