/*
 * What the sandbox's probe (sandbox_probe.c) and its attempts (sandbox_attempts.c) share.
 */
#ifndef GLINT_TESTS_NATIVE_SANDBOX_PROBE_H
#define GLINT_TESTS_NATIVE_SANDBOX_PROBE_H

#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { DONE = 0, REFUSED = 1, BROKEN = 2, ABSENT = 3 };

/* What is held from before. */
struct held {
	int directory, file, net_namespace;
	int tcp, udp, ring_fd; /* sockets not connected; the ring of the I/O thread */
	int kvm, vm, vcpu;
	int pidfd;
	pid_t victim;
	char *victim_memory;
	struct sockaddr_in tcp_address, udp_address;
	struct sockaddr_un path_address, abstract_address;
	socklen_t abstract_len;
	struct io_uring open_ring;
	struct iothread *iothread;
	bool restricted_ring;
};
extern struct held held;

static inline int or_errno(long ret)
{
	return ret < 0 ? -errno : 0;
}

[[noreturn]] static inline void broken(const char *what)
{
	fprintf(stderr, "sandbox_probe: %s: %s\n", what, strerror(errno));
	_exit(BROKEN);
}

static inline int must(int ret, const char *what)
{
	if (ret < 0)
		broken(what);
	return ret;
}

/* An attempt returns 0 or -errno; the list ends with a NULL name. */
struct attempt {
	const char *name;
	int (*make)(void);
};
extern const struct attempt attempts[];

#endif
