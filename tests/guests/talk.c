/*
 * Talks over stream sockets, for tests in guests and on hosts where there is nothing else: static, in C.
 *
 *     talk echo ADDRESS                 serves ADDRESS for ever: what comes goes back
 *     talk send ADDRESS KIB [GREETING]  connects, sends so many KiB of numbers, expects them back; with a greeting,
 * writes that line first and reads one line talk hold ADDRESS                 connects, and tells when the connection
 * ends
 *
 * ADDRESS is vsock:CID:PORT (CID -1: any) or the path of a UNIX socket.
 */
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 65536

static int fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_socket(const char *address, int (*attach)(int, const struct sockaddr *, socklen_t))
{
	struct sockaddr_vm vm = {.svm_family = AF_VSOCK};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int cid, is_vm = sscanf(address, "vsock:%d:%u", &cid, &vm.svm_port) == 2;

	vm.svm_cid = (unsigned)cid;
	if (!is_vm)
		snprintf(un.sun_path, sizeof(un.sun_path), "%s", address);
	int fd = socket(is_vm ? AF_VSOCK : AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	if (attach(fd, is_vm ? (void *)&vm : (void *)&un, is_vm ? sizeof(vm) : sizeof(un)) < 0)
		fail(address);
	return fd;
}

static void write_all(int fd, const char *p, size_t len)
{
	while (len) {
		ssize_t n = write(fd, p, len);
		if (n <= 0)
			fail("write");
		p += n;
		len -= (size_t)n;
	}
}

static int serve(const char *address)
{
	static char block[BLOCK];
	int fd = open_socket(address, bind);

	signal(SIGCHLD, SIG_IGN);
	if (listen(fd, 64) < 0)
		fail("listen");
	puts("LISTENING");
	fflush(stdout);
	for (;;) {
		int client = accept(fd, NULL, NULL);
		if (client < 0 || fork() != 0) {
			close(client);
			continue;
		}
		for (ssize_t n; (n = read(client, block, sizeof(block))) > 0;)
			write_all(client, block, (size_t)n);
		exit(0);
	}
}

static void fill(uint64_t *block, uint64_t seed)
{
	for (size_t i = 0; i < BLOCK / 8; i++)
		block[i] = (seed + i) * 0x9e3779b97f4a7c15;
}

static int send_and_check(const char *address, unsigned long kib, const char *greeting)
{
	static uint64_t expected[BLOCK / 8], got[BLOCK / 8];
	unsigned long blocks = (kib + 63) / 64;
	int fd = open_socket(address, connect);
	char c = 0;

	if (greeting) {
		write_all(fd, greeting, strlen(greeting));
		write_all(fd, "\n", 1);
		while (c != '\n')
			if (read(fd, &c, 1) != 1)
				fail("greeting");
	}
	pid_t sender = fork();
	if (sender == 0) {
		for (unsigned long b = 0; b < blocks; b++) {
			fill(expected, b);
			write_all(fd, (const char *)expected, BLOCK);
		}
		_exit(0);
	}
	for (unsigned long b = 0; b < blocks; b++) {
		for (size_t at = 0; at < BLOCK;) {
			ssize_t n = read(fd, (char *)got + at, BLOCK - at);
			if (n <= 0)
				fail("read");
			at += (size_t)n;
		}
		fill(expected, b);
		if (memcmp(got, expected, BLOCK) != 0) {
			fprintf(stderr, "block %lu came back wrong\n", b);
			return 1;
		}
	}
	waitpid(sender, NULL, 0);
	printf("TALKED %lu KiB\n", blocks * 64);
	return 0;
}

static int hold(const char *address)
{
	char c;
	int fd = open_socket(address, connect);

	puts("HOLDING");
	fflush(stdout);
	while (read(fd, &c, 1) > 0)
		;
	puts("ENDED");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "echo") == 0)
		return serve(argv[2]);
	if (argc >= 4 && strcmp(argv[1], "send") == 0)
		return send_and_check(argv[2], strtoul(argv[3], NULL, 10), argv[4]);
	if (argc == 3 && strcmp(argv[1], "hold") == 0)
		return hold(argv[2]);
	fprintf(stderr, "usage: talk echo|hold ADDRESS, talk send ADDRESS KIB [GREETING]\n");
	return 2;
}
