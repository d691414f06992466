/*
 * One end of a measurement of a network: static, for guests and hosts that have nothing else.
 *
 *     netload tcp-sink PORT                   takes one connection until its end
 *     netload tcp-source ADDRESS PORT MS      connects and sends for so long
 *     netload udp-sink PORT                   takes datagrams until one that is empty
 *     netload udp-source ADDRESS PORT MS SIZE sends datagrams of SIZE bytes for so long, then empty ones
 *
 * A sink writes "ready" when it can be sent to, and at the end: bytes (TCP) or datagrams (UDP), and the microseconds
 * from the first to the last. What counts is what arrives, so only sinks measure.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 131072
#define BATCH 32

static char block[BLOCK];

static int fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int open_socket(int type, const char *address, const char *port,
		       int (*attach)(int, const struct sockaddr *, socklen_t))
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	int one = 1, fd = socket(AF_INET, type, 0);

	if (!inet_aton(address, &in.sin_addr) || fd < 0)
		fail(address);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (attach(fd, (struct sockaddr *)&in, sizeof(in)) < 0)
		fail(address);
	return fd;
}

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

static void report(uint64_t amount, uint64_t first, uint64_t last)
{
	printf("took %llu %llu\n", (unsigned long long)amount, (unsigned long long)(last - first));
}

static void tcp_sink(const char *port)
{
	int listener = open_socket(SOCK_STREAM, "0.0.0.0", port, bind);
	uint64_t bytes = 0;
	ssize_t n;

	if (listen(listener, 1) < 0)
		fail("listen");
	ready();
	int fd = accept(listener, NULL, NULL);
	uint64_t first = now_us();
	while ((n = read(fd, block, sizeof(block))) > 0)
		bytes += (uint64_t)n;
	if (n < 0)
		fail("read");
	report(bytes, first, now_us());
}

static void tcp_source(const char *address, const char *port, uint64_t us)
{
	int fd = open_socket(SOCK_STREAM, address, port, connect);

	for (uint64_t end = now_us() + us; now_us() < end;)
		if (write(fd, block, sizeof(block)) < 0)
			fail("write");
}

/* Datagrams by the batch, so that system calls are not what is measured. */
static unsigned prepare(struct mmsghdr *message, struct iovec *iov, size_t size)
{
	for (unsigned i = 0; i < BATCH; i++) {
		iov[i] = (struct iovec){block + i * 2048, size};
		message[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov[i], .msg_iovlen = 1}};
	}
	return BATCH;
}

static void udp_sink(const char *port)
{
	int fd = open_socket(SOCK_DGRAM, "0.0.0.0", port, bind), room = 4 << 20;
	uint64_t count = 0, first = 0, last = 0;
	struct mmsghdr message[BATCH];
	struct iovec iov[BATCH];

	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	prepare(message, iov, 2048);
	ready();
	for (;;) {
		int n = recvmmsg(fd, message, BATCH, MSG_WAITFORONE, NULL);
		if (n <= 0)
			fail("recvmmsg");
		uint64_t now = now_us();
		for (int i = 0; i < n; i++) {
			if (message[i].msg_len == 0) {
				report(count, first, last);
				return;
			}
			first = count++ ? first : now;
			last = now;
		}
	}
}

static void udp_source(const char *address, const char *port, uint64_t us, size_t size)
{
	int fd = open_socket(SOCK_DGRAM, address, port, connect);
	struct mmsghdr message[BATCH];
	struct iovec iov[BATCH];
	unsigned batch = prepare(message, iov, size);

	for (uint64_t end = now_us() + us; now_us() < end;)
		(void)sendmmsg(fd, message, batch, 0); /* a full queue is part of the measurement */
	/* The last one through ends it; one alone could be lost, and one may come when nobody is there any more. */
	for (unsigned i = 0; i < 50; i++) {
		usleep(20000);
		if (send(fd, block, 0, 0) < 0)
			return;
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";

	if (strcmp(what, "tcp-sink") == 0)
		tcp_sink(argv[2]);
	else if (strcmp(what, "udp-sink") == 0)
		udp_sink(argv[2]);
	else if (strcmp(what, "tcp-source") == 0 && argc > 4)
		tcp_source(argv[2], argv[3], strtoull(argv[4], NULL, 10) * 1000);
	else if (strcmp(what, "udp-source") == 0 && argc > 5 && strtoul(argv[5], NULL, 10) <= 2048)
		udp_source(argv[2], argv[3], strtoull(argv[4], NULL, 10) * 1000, strtoul(argv[5], NULL, 10));
	else
		return 2;
	return 0;
}
