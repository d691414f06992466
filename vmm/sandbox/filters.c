/*
 * Build tool: writes the seccomp filters of glint-vmm as a C header of BPF programs, one for each kind of thread.
 *
 * The tables below are the sandbox's allow-list, and the only place to change it. libseccomp compiles them when Glint
 * is built (it checks the architecture, and refuses the x32 calls), so at start-up the VMM only hands a finished
 * program to the kernel. Rules for adding a line:
 *  - nothing that opens, connects, makes a process or a ring, or reaches another process: what is needed comes in as a
 *    descriptor;
 *  - arguments that decide what a call does (ioctl requests, protections, commands) are compared here;
 *  - a call that takes a pointer to its meaning (sendmsg's address, prctl's structures) is only as safe as the other
 *    layers: see docs/threat-model.md.
 * What is missing ends the VMM with the number of the call in its log; what is too much is noticed by nobody.
 *
 * It may touch: its own standard output and error.
 */
#include <asm/kvm.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/vhost.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

#include "vmm/sandbox/filters.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/*
 * CONNECTOR: the process that connects to sockets for the monitor; it may next to nothing else. SCREEN:
 * glint-screen, a program of its own: it has no VM, but viewers from afar.
 */
enum { MAIN = 1, VCPU = 2, IO = 4, ALL = MAIN | VCPU | IO, CONNECTOR = 8, SCREEN = 16, EVERY = ALL | SCREEN };

struct rule {
	int call;
	unsigned threads;
	unsigned conditions;
	struct scmp_arg_cmp condition[2]; /* all must hold */
};

#define CALL(name, to) {.call = SCMP_SYS(name), .threads = (to)}
#define WHEN(name, to, ...)                                                                                            \
	{                                                                                                              \
		.call = SCMP_SYS(name), .threads = (to), .conditions = COUNT(((struct scmp_arg_cmp[]){__VA_ARGS__})),  \
		.condition = {                                                                                         \
			__VA_ARGS__                                                                                    \
		}                                                                                                      \
	}
#define IS(arg, value)               SCMP_CMP64(arg, SCMP_CMP_EQ, (value))
#define IS_BUT_FOR(arg, bits, value) SCMP_CMP64(arg, SCMP_CMP_MASKED_EQ, ~(uint64_t)(bits), (value))
#define LACKS(arg, bits)             SCMP_CMP64(arg, SCMP_CMP_MASKED_EQ, (bits), 0)

static const struct rule rules[] = {
	/* Descriptors that are open already. */
	CALL(read, EVERY | CONNECTOR),
	CALL(write, EVERY | CONNECTOR),
	CALL(close, EVERY | CONNECTOR),
	CALL(readv, EVERY),
	CALL(writev, EVERY),
	CALL(preadv2, MAIN | VCPU),
	CALL(pwritev2, MAIN | VCPU),
	CALL(poll, EVERY),
	CALL(ppoll, EVERY),
	CALL(lseek, MAIN),
	CALL(pread64, MAIN | VCPU),  /* a kernel's file, which firmware reads through fw_cfg */
	CALL(pwrite64, MAIN | VCPU), /* UEFI variables, durable before the guest goes on */
	CALL(preadv, MAIN),
	CALL(pwritev, MAIN),
	CALL(fsync, MAIN),
	CALL(fdatasync, MAIN | VCPU),
	CALL(fallocate, MAIN),
	CALL(ftruncate, MAIN),
	CALL(fstat, MAIN),
	WHEN(newfstatat, MAIN, IS(3, AT_EMPTY_PATH)), /* what glibc may make of fstat() */
	WHEN(statx, MAIN, IS(2, AT_EMPTY_PATH)),      /* what direct I/O asks of a disk that comes later */
	/* Locks and flags of disks and consoles; never F_SETOWN, F_SETSIG, F_NOTIFY or O_ASYNC, which send signals. */
	WHEN(fcntl, MAIN, IS(1, F_GETFD)),
	WHEN(fcntl, MAIN, IS(1, F_SETFD)),
	WHEN(fcntl, MAIN | SCREEN, IS(1, F_GETFL)),
	WHEN(fcntl, MAIN | SCREEN, IS(1, F_SETFL), LACKS(2, O_ASYNC)),
	WHEN(fcntl, MAIN, IS(1, F_DUPFD_CLOEXEC)),
	WHEN(fcntl, MAIN, IS(1, F_OFD_SETLK)),
	WHEN(fcntl, MAIN, IS(1, F_OFD_GETLK)),

	/* The control socket and the event loop; the sockets of vsock and console ports. */
	CALL(accept4, MAIN | IO | SCREEN),
	CALL(recvmsg, MAIN | IO | SCREEN),
	CALL(sendmsg, MAIN | CONNECTOR | SCREEN),
	CALL(getsockopt, MAIN | SCREEN),
	CALL(shutdown, MAIN | IO | SCREEN),
	WHEN(recvfrom, MAIN | IO | SCREEN, IS(4, 0)),
	WHEN(sendto, MAIN | SCREEN, IS(4, 0)), /* to the connected peer: no address */
	WHEN(socket, CONNECTOR, IS(0, AF_UNIX)),
	CALL(connect, CONNECTOR),
	CALL(epoll_wait, MAIN | IO),
	CALL(epoll_pwait, MAIN | IO),
	CALL(epoll_ctl, MAIN | IO),
	CALL(eventfd2, MAIN),
	CALL(timerfd_create, MAIN),
	CALL(timerfd_settime, ALL),
	CALL(timerfd_gettime, MAIN | VCPU),

	/* The ring, which is restricted itself: registered files only. */
	CALL(io_uring_enter, IO),
	WHEN(io_uring_register, IO, IS_BUT_FOR(1, IORING_REGISTER_USE_REGISTERED_RING, IORING_REGISTER_FILES_UPDATE)),
	WHEN(io_uring_register, MAIN,
	     IS_BUT_FOR(1, IORING_REGISTER_USE_REGISTERED_RING,
			IORING_UNREGISTER_RING_FDS)), /* io_uring_queue_exit() */

	/* Memory, never to be executed. */
	WHEN(mmap, EVERY, LACKS(2, PROT_EXEC)),
	WHEN(mprotect, EVERY, LACKS(2, PROT_EXEC)),
	CALL(munmap, EVERY),
	CALL(mremap, EVERY),
	CALL(madvise, EVERY),
	CALL(brk, EVERY),

	/* Threads as they live and end; kicks go to threads of this process alone (sandbox.c puts in its number). */
	CALL(futex, EVERY),
	WHEN(tgkill, EVERY, IS(0, SANDBOX_OWN_PID)),
	CALL(getpid, EVERY),
	CALL(gettid, EVERY),
	CALL(sched_yield, ALL),
	WHEN(sched_getaffinity, ALL, IS(0, 0)), /* malloc counts processors */
	CALL(rt_sigprocmask, EVERY),
	CALL(rt_sigreturn, EVERY | CONNECTOR),
	WHEN(prctl, ALL, IS(0, PR_SET_NAME)),
	CALL(restart_syscall, EVERY),
	CALL(exit, EVERY),
	CALL(exit_group, EVERY | CONNECTOR),

	/* libvncserver and its viewers' sockets. */
	CALL(select, SCREEN),
	CALL(pselect6, SCREEN),
	CALL(getpeername, SCREEN),
	CALL(uname, SCREEN),
	WHEN(setsockopt, SCREEN, IS(1, IPPROTO_TCP), IS(2, TCP_NODELAY)),
	WHEN(prlimit64, SCREEN, IS(0, 0), IS(2, 0)), /* looks at its own limits */

	/* Time and random numbers. */
	CALL(clock_gettime, EVERY),
	CALL(clock_nanosleep, EVERY),
	CALL(gettimeofday, EVERY),
	CALL(getrandom, EVERY),

#if __has_feature(address_sanitizer)
	/* The sanitizers' run-time library; never in a program that ships. */
	CALL(sigaltstack, EVERY),
	CALL(readlink, EVERY),
	CALL(getrusage, EVERY),
	CALL(rt_sigaction, EVERY),
#endif
};

static const struct {
	unsigned long request;
	unsigned threads;
} ioctls[] = {
	/* The VM: interrupts, doorbells and their routes change whenever a guest moves a BAR or writes MSI-X. */
	{KVM_IRQ_LINE, ALL}, /* I/O threads: the pin of a device whose guest does without MSI-X */
	{KVM_IRQ_LINE_STATUS, MAIN | VCPU},
	{KVM_IRQFD, MAIN | VCPU},
	{KVM_IOEVENTFD, MAIN | VCPU},
	{KVM_SET_GSI_ROUTING, MAIN | VCPU},
	{KVM_SIGNAL_MSI, MAIN | VCPU},
	/* The VM's memory slots (this process's own memory, whatever is asked) and what the guest wrote. */
	{KVM_SET_USER_MEMORY_REGION, MAIN | VCPU},
	{KVM_SET_USER_MEMORY_REGION2, MAIN | VCPU},
	{KVM_GET_DIRTY_LOG, MAIN},
	{KVM_CLEAR_DIRTY_LOG, MAIN},
	{KVM_RESET_DIRTY_RINGS, MAIN},
	/* State of the VM's chips and clocks. */
	{KVM_GET_IRQCHIP, MAIN},
	{KVM_SET_IRQCHIP, MAIN},
	{KVM_GET_PIT2, MAIN},
	{KVM_SET_PIT2, MAIN},
	{KVM_GET_CLOCK, MAIN},
	{KVM_SET_CLOCK, MAIN},
	{KVM_CHECK_EXTENSION, MAIN | VCPU},
	/* State of a vCPU, whichever thread collects it. */
	{KVM_GET_REGS, MAIN | VCPU},
	{KVM_SET_REGS, MAIN | VCPU},
	{KVM_GET_SREGS, MAIN | VCPU},
	{KVM_SET_SREGS, MAIN | VCPU},
	{KVM_GET_SREGS2, MAIN | VCPU},
	{KVM_SET_SREGS2, MAIN | VCPU},
	{KVM_GET_FPU, MAIN | VCPU},
	{KVM_SET_FPU, MAIN | VCPU},
	{KVM_GET_XSAVE, MAIN | VCPU},
	{KVM_GET_XSAVE2, MAIN | VCPU},
	{KVM_SET_XSAVE, MAIN | VCPU},
	{KVM_GET_XCRS, MAIN | VCPU},
	{KVM_SET_XCRS, MAIN | VCPU},
	{KVM_GET_MSRS, MAIN | VCPU},
	{KVM_SET_MSRS, MAIN | VCPU},
	{KVM_GET_LAPIC, MAIN | VCPU},
	{KVM_SET_LAPIC, MAIN | VCPU},
	{KVM_GET_MP_STATE, MAIN | VCPU},
	{KVM_SET_MP_STATE, MAIN | VCPU},
	{KVM_GET_VCPU_EVENTS, MAIN | VCPU},
	{KVM_SET_VCPU_EVENTS, MAIN | VCPU},
	{KVM_GET_DEBUGREGS, MAIN | VCPU},
	{KVM_SET_DEBUGREGS, MAIN | VCPU},
	{KVM_GET_NESTED_STATE, MAIN | VCPU},
	{KVM_SET_NESTED_STATE, MAIN | VCPU},
	{KVM_GET_TSC_KHZ, MAIN | VCPU},
	{KVM_SET_TSC_KHZ, MAIN | VCPU},
	{KVM_GET_SUPPORTED_CPUID, MAIN}, /* a saved model is checked against it */
	{KVM_SET_CPUID2, MAIN | VCPU},
	{KVM_GET_CPUID2, MAIN | VCPU},
	{KVM_KVMCLOCK_CTRL, MAIN | VCPU},
	{KVM_NMI, MAIN | VCPU},
	{KVM_TRANSLATE, VCPU},
	/* vhost-net and the tap: rings start and stop on I/O threads, whatever asked for it. All of it is about this
	 * process's own memory and descriptors it holds. */
	{VHOST_SET_OWNER, IO},
	{VHOST_SET_MEM_TABLE, IO},
	{VHOST_SET_FEATURES, IO},
	{VHOST_SET_VRING_NUM, IO},
	{VHOST_SET_VRING_BASE, IO},
	{VHOST_SET_VRING_ADDR, IO},
	{VHOST_SET_VRING_KICK, IO},
	{VHOST_SET_VRING_CALL, IO},
	{VHOST_SET_VRING_ERR, IO},
	{VHOST_GET_VRING_BASE, IO},
	{VHOST_NET_SET_BACKEND, IO},
	{TUNSETOFFLOAD, IO},
	{TUNSETQUEUE, IO},
	/* An interface that comes later is looked at. */
	{TUNGETIFF, MAIN},
	{TUNSETVNETHDRSZ, MAIN},
	{VHOST_GET_FEATURES, MAIN},
	/* A terminal's mode is put back at the end; a disk that comes later is measured. */
	{TCGETS, MAIN},
	{TCSETS, MAIN},
	{TCSETSW, MAIN},
	{TCSETSF, MAIN},
	{FIONREAD, MAIN},
	{BLKGETSIZE64, MAIN},
	{BLKSSZGET, MAIN},
	{BLKPBSZGET, MAIN},
	{BLKIOMIN, MAIN},
	{BLKIOOPT, MAIN},
};

[[noreturn]] static void fail(const char *what, int rc)
{
	fprintf(stderr, "seccomp filters: %s: %s\n", what, strerror(-rc));
	exit(1);
}

static void allow(scmp_filter_ctx ctx, int call, unsigned conditions, const struct scmp_arg_cmp *condition)
{
	int rc = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, call, conditions, condition);

	if (rc < 0)
		fail("add a rule", rc);
}

static void add_rules(scmp_filter_ctx ctx, unsigned thread)
{
	for (size_t i = 0; i < COUNT(rules); i++)
		if (rules[i].threads & thread)
			allow(ctx, rules[i].call, rules[i].conditions, rules[i].condition);
	for (size_t i = 0; i < COUNT(ioctls); i++)
		if (ioctls[i].threads & thread)
			allow(ctx, SCMP_SYS(ioctl), 1, &IS(1, ioctls[i].request));
	if (thread == VCPU)
		allow(ctx, SCMP_SYS(ioctl), 1, &IS(1, KVM_RUN));
}

static void set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	int rc = seccomp_attr_set(ctx, attr, value);

	if (rc < 0)
		fail("set an attribute", rc);
}

static void write_program(const char *name, unsigned thread)
{
	struct {
		uint16_t code;
		uint8_t jt, jf;
		uint32_t k;
	} program[4096];
	size_t bytes = sizeof(program);
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);

	if (!ctx)
		fail("begin", -ENOMEM);
	add_rules(ctx, thread);
	set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/*
	 * A binary tree: the kernel runs a new filter once for every system call there is, to learn which it always
	 * allows, so a list costs time at start-up (measured: 100 to 170 us a thread, against 65 to 100).
	 */
	set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	int rc = seccomp_export_bpf_mem(ctx, program, &bytes);
	if (rc < 0)
		fail("compile", rc);
	printf("static const struct sock_filter %s[] = {\n", name);
	for (size_t i = 0; i < bytes / sizeof(program[0]); i++)
		printf("\t{0x%02x, %u, %u, 0x%08x},\n", program[i].code, program[i].jt, program[i].jf, program[i].k);
	printf("};\n\n");
	seccomp_release(ctx);
}

int main(void)
{
	printf("/* Made by vmm/sandbox/filters.c. */\n#include <linux/filter.h>\n\n");
	write_program("main_filter", MAIN);
	write_program("vcpu_filter", VCPU);
	write_program("io_filter", IO);
	write_program("connector_filter", CONNECTOR);
	write_program("screen_filter", SCREEN);
	return ferror(stdout) || fflush(stdout) != 0;
}
