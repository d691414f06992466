/*
 * The sandbox's probe: locks itself in as glint-vmm does, then tries one thing that a device taken over by its guest
 * might try, on the kind of thread where it would run.
 *
 *     sandbox_probe LAYERS THREAD ATTEMPT
 *
 * LAYERS: those of sandbox_process() by name, "seccomp" for the threads' filters, "ring" for an I/O thread's own
 * restricted ring in place of an open one, joined by commas; "all"; or "none". THREAD: main, vcpu or io. What a hostile
 * device might hold is made before the doors close: sockets, a directory, rings, KVM descriptors, a process to harm.
 *
 * Exit: 0 the attempt succeeded, 1 it was refused (the errno's name is printed), 2 the probe itself failed, 3 this
 * machine has no such thing. A filter's answer is the end of the process (see sandbox.c).
 */
#include "tests/native/sandbox_probe.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/machine/iothread.h"
#include "vmm/sandbox/layers.h"
#include "vmm/sandbox/sandbox.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#define ABSTRACT_NAME "glint-sandbox-probe"

struct held held;

/* --- before the doors close --- */

static int listen_on(int domain, int type, void *address, socklen_t *len)
{
	int fd = must(socket(domain, type, 0), "socket");

	must(bind(fd, address, *len), "bind");
	if (type == SOCK_STREAM)
		must(listen(fd, 8), "listen");
	must(getsockname(fd, address, len), "getsockname");
	return fd;
}

static void make_sockets(void)
{
	socklen_t len = sizeof(held.tcp_address);

	held.tcp_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	held.udp_address = held.tcp_address;
	listen_on(AF_INET, SOCK_STREAM, &held.tcp_address, &len);
	listen_on(AF_INET, SOCK_DGRAM, &held.udp_address, &len);
	held.path_address.sun_family = AF_UNIX;
	snprintf(held.path_address.sun_path, sizeof(held.path_address.sun_path), "/tmp/sandbox-probe-%d", getpid());
	len = sizeof(held.path_address);
	listen_on(AF_UNIX, SOCK_STREAM, &held.path_address, &len);
	held.abstract_address.sun_family = AF_UNIX;
	int name = snprintf(held.abstract_address.sun_path + 1, sizeof(held.abstract_address.sun_path) - 1, "%s-%d",
			    ABSTRACT_NAME, getpid());
	held.abstract_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1) + (socklen_t)name;
	listen_on(AF_UNIX, SOCK_STREAM, &held.abstract_address, &held.abstract_len);
	held.tcp = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
	held.udp = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
}

/* A process of the same user that waits to be harmed, and that removes the socket's name when the probe has ended. */
static void make_victim(void)
{
	int alive[2];

	held.victim_memory = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(pipe2(alive, O_CLOEXEC), "pipe");
	held.victim = must(fork(), "fork");
	if (held.victim == 0) {
		char byte;
		close(alive[1]);
		while (read(alive[0], &byte, 1) < 0 && errno == EINTR)
			continue;
		unlink(held.path_address.sun_path);
		_exit(0);
	}
	close(alive[0]);
	held.pidfd = must((int)syscall(SYS_pidfd_open, held.victim, 0), "pidfd_open");
}

static void make_kvm(void)
{
	held.vm = held.vcpu = -1;
	held.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (held.kvm < 0)
		return;
	held.vm = must(ioctl(held.kvm, KVM_CREATE_VM, 0), "make a VM");
	held.vcpu = must(ioctl(held.vm, KVM_CREATE_VCPU, 0), "make a vCPU");
}

/* The ring that appears when the I/O thread is made. */
static int find_ring(int first)
{
	for (int fd = first; fd < first + 16; fd++) {
		char link[64], target[64] = "";
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		if (readlink(link, target, sizeof(target) - 1) > 0 && strcmp(target, "anon_inode:[io_uring]") == 0)
			return fd;
	}
	errno = ENOENT;
	broken("find the ring of the I/O thread");
}

static void make_rings(void)
{
	int ret = io_uring_queue_init(8, &held.open_ring, 0);

	errno = -ret;
	must(ret, "make an open ring");
	struct error *err = iothread_new(&held.iothread, 0);
	if (err) {
		log_error(err);
		_exit(BROKEN);
	}
	held.ring_fd = find_ring(held.open_ring.ring_fd + 1);
}

static void make_held(void)
{
	held.directory = must(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open /");
	held.file = must(memfd_create("disk", MFD_CLOEXEC), "make a file");
	must(ftruncate(held.file, 1 << 20), "grow a file");
	held.net_namespace = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "open a namespace");
	make_sockets();
	make_victim();
	make_kvm();
	make_rings();
}

/* --- the attempt --- */

struct run {
	enum sandbox_thread kind;
	bool filtered;
	int (*attempt)(void);
};

static double microseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Ends the process: nothing else may come between the attempt and its answer. */
static void attempt_and_end(void *arg)
{
	const struct run *run = arg;
	int ret = run->attempt();
	char line[64];

	if (ret == 0)
		_exit(DONE);
	int len = snprintf(line, sizeof(line), "%s\n", strerrorname_np(-ret));
	if (write(STDOUT_FILENO, line, (size_t)len) < 0)
		_exit(BROKEN);
	_exit(ret == -ENOSYS || ret == -ENODEV ? ABSENT : REFUSED);
}

static struct error *enter_filter(void *arg)
{
	const struct run *run = arg;
	double before = microseconds();

	if (!run->filtered)
		return NULL;
	TRY(sandbox_thread(run->kind));
	log_info("seccomp: %.0f us", microseconds() - before);
	return NULL;
}

static void *vcpu_thread(void *arg)
{
	struct error *err = enter_filter(arg);

	if (err) {
		log_error(err);
		_exit(BROKEN);
	}
	attempt_and_end(arg);
	return NULL;
}

static struct error *run_attempt(struct run *run)
{
	pthread_t thread;

	if (run->kind == SANDBOX_IO) {
		TRY(iothread_start(held.iothread, enter_filter, run));
		iothread_call(held.iothread, attempt_and_end, run);
	} else if (run->kind == SANDBOX_VCPU) {
		if (pthread_create(&thread, NULL, vcpu_thread, run) == 0)
			pthread_join(thread, NULL);
	} else {
		TRY(enter_filter(run));
		attempt_and_end(run);
	}
	return error_new(0, "the attempt was not made");
}

static bool takes(const char *layers, const char *name)
{
	size_t len = strlen(name);

	if (strcmp(layers, "all") == 0)
		return true;
	for (const char *p = layers; (p = strstr(p, name)); p += len)
		if ((p == layers || p[-1] == ',') && (p[len] == ',' || p[len] == '\0'))
			return true;
	return false;
}

static struct error *lock_in(const char *layers)
{
	double begin = microseconds();

	/* What Landlock and the filters rely on another layer for, if the user is not root. */
	if (strcmp(layers, "none") != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_new(errno, "give up gaining privileges");
	for (unsigned i = 0; i < SANDBOX_LAYERS; i++) {
		double before = microseconds();
		if (!takes(layers, sandbox_layers[i].name))
			continue;
		TRY(sandbox_layers[i].apply());
		log_info("%s: %.0f us", sandbox_layers[i].name, microseconds() - before);
	}
	log_info("process: %.0f us", microseconds() - begin);
	return NULL;
}

int main(int argc, char **argv)
{
	static const char *const kinds[SANDBOX_THREADS] = {"main", "vcpu", "io", "connector", "screen"};
	struct run run = {.kind = SANDBOX_THREADS};

	log_init("sandbox_probe", LOG_LEVEL_INFO);
	for (unsigned i = 0; argc == 4 && i < SANDBOX_THREADS; i++)
		if (strcmp(argv[2], kinds[i]) == 0)
			run.kind = i;
	for (const struct attempt *a = attempts; argc == 4 && a->name; a++)
		if (strcmp(argv[3], a->name) == 0)
			run.attempt = a->make;
	if (run.kind == SANDBOX_THREADS || !run.attempt) {
		fprintf(stderr, "usage: sandbox_probe LAYERS main|vcpu|io ATTEMPT\n");
		return BROKEN;
	}
	make_held();
	held.restricted_ring = takes(argv[1], "ring");
	run.filtered = takes(argv[1], "seccomp");
	struct error *err = lock_in(argv[1]);
	if (!err)
		err = run_attempt(&run);
	log_error(err);
	return BROKEN;
}
