/*
 * What a device taken over by its guest might try: the attempts of sandbox_probe.c, by name in the table at the end.
 * Each does one thing, with what the probe holds from before, and says how it went. The last few are what must go on
 * working.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "tests/native/sandbox_probe.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* --- files --- */

static int try_open(void)
{
	return or_errno(open("/etc/passwd", O_RDONLY));
}

static int try_openat2(void)
{
	struct open_how how = {.flags = O_PATH};
	return or_errno(syscall(SYS_openat2, AT_FDCWD, "/etc", &how, sizeof(how)));
}

static int try_open_descriptor(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", held.file);
	return or_errno(open(path, O_RDWR));
}

static int try_open_below(void)
{
	return or_errno(openat(held.directory, "etc/passwd", O_RDONLY));
}

static int try_create(void)
{
	return or_errno(open("/tmp", O_TMPFILE | O_RDWR, 0600));
}

static int try_list(void)
{
	char entries[4096];
	return or_errno(syscall(SYS_getdents64, held.directory, entries, sizeof(entries)));
}

static int try_enter_directory(void)
{
	return or_errno(fchdir(held.directory));
}

/* --- sockets --- */

static int try_socket(void)
{
	return or_errno(socket(AF_UNIX, SOCK_STREAM, 0));
}

static int connect_new(int domain, const void *address, socklen_t len)
{
	int fd = socket(domain, SOCK_STREAM, 0);
	return fd < 0 ? -errno : or_errno(connect(fd, address, len));
}

static int try_tcp(void)
{
	return connect_new(AF_INET, &held.tcp_address, sizeof(held.tcp_address));
}

static int try_tcp_held(void)
{
	return or_errno(connect(held.tcp, (void *)&held.tcp_address, sizeof(held.tcp_address)));
}

static int try_udp(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	return fd < 0 ? -errno : or_errno(sendto(fd, "x", 1, 0, (void *)&held.udp_address, sizeof(held.udp_address)));
}

static int try_udp_held(void)
{
	return or_errno(sendto(held.udp, "x", 1, 0, (void *)&held.udp_address, sizeof(held.udp_address)));
}

static int try_listen(void)
{
	struct sockaddr_in any = {.sin_family = AF_INET};
	return or_errno(bind(held.tcp, (void *)&any, sizeof(any)));
}

static int try_unix_path(void)
{
	return connect_new(AF_UNIX, &held.path_address, sizeof(held.path_address));
}

static int try_unix_abstract(void)
{
	return connect_new(AF_UNIX, &held.abstract_address, held.abstract_len);
}

/* --- other processes --- */

static int try_ptrace(void)
{
	return or_errno(ptrace(PTRACE_SEIZE, held.victim, NULL, NULL));
}

static int try_kill(void)
{
	return or_errno(kill(held.victim, SIGWINCH));
}

static int try_tgkill(void)
{
	return or_errno(syscall(SYS_tgkill, held.victim, held.victim, SIGWINCH));
}

static int try_sigqueue(void)
{
	return or_errno(sigqueue(held.victim, SIGWINCH, (union sigval){}));
}

static int try_pidfd_open(void)
{
	return or_errno(syscall(SYS_pidfd_open, held.victim, 0));
}

static int try_pidfd_signal(void)
{
	return or_errno(syscall(SYS_pidfd_send_signal, held.pidfd, SIGWINCH, NULL, 0));
}

static int try_pidfd_getfd(void)
{
	return or_errno(syscall(SYS_pidfd_getfd, held.pidfd, held.file, 0));
}

static int try_async_signal(void)
{
	return or_errno(fcntl(held.udp, F_SETOWN, held.victim));
}

static int try_read_proc(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", held.victim);
	return or_errno(open(path, O_RDONLY));
}

static int try_read_memory(void)
{
	char byte;
	struct iovec here = {&byte, 1}, there = {held.victim_memory, 1};
	return or_errno(process_vm_readv(held.victim, &here, 1, &there, 1, 0));
}

static int try_write_memory(void)
{
	char byte = 1;
	struct iovec here = {&byte, 1}, there = {held.victim_memory, 1};
	return or_errno(process_vm_writev(held.victim, &here, 1, &there, 1, 0));
}

static int try_priority(void)
{
	return or_errno(syscall(SYS_setpriority, 0 /* PRIO_PROCESS */, held.victim, 19));
}

/* --- the system --- */

static int try_fsopen(void)
{
	return or_errno(syscall(SYS_fsopen, "tmpfs", 0));
}

static int try_unshare(void)
{
	return or_errno(unshare(CLONE_NEWUTS));
}

static int try_user_namespace(void)
{
	return or_errno(unshare(CLONE_NEWUSER));
}

static int try_setns(void)
{
	return or_errno(setns(held.net_namespace, CLONE_NEWNET));
}

static int try_chroot(void)
{
	if (fchdir(held.directory) < 0)
		return -errno;
	return or_errno(chroot("."));
}

static int try_hostname(void)
{
	return or_errno(sethostname("glint-sandbox-probe", 19));
}

static int try_keyctl(void)
{
	return or_errno(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1));
}

static int try_bpf(void)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 4, .max_entries = 1};
	return or_errno(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr)));
}

static int try_perf(void)
{
	struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE,
				       .size = sizeof(attr),
				       .config = PERF_COUNT_SW_TASK_CLOCK,
				       .exclude_kernel = 1};
	return or_errno(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int try_userfaultfd(void)
{
	return or_errno(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY));
}

static int try_raise_dumpable(void)
{
	return or_errno(prctl(PR_SET_DUMPABLE, 1));
}

static int try_personality(void)
{
	return or_errno(syscall(SYS_personality, 0x0400000 /* READ_IMPLIES_EXEC */));
}

static int try_uname(void)
{
	char names[6 * 65];
	return or_errno(syscall(SYS_uname, names));
}

/* --- code --- */

static int try_execve(void)
{
	char *argv[] = {(char[]){"true"}, NULL};

	execve("/bin/true", argv, (char *[]){NULL});
	return -errno;
}

/* A whole program: exit(0). */
static int try_exec_memfd(void)
{
	static const unsigned char code[] = {0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05};
	struct {
		Elf64_Ehdr head;
		Elf64_Phdr load;
		unsigned char code[sizeof(code)];
	} program = {
		.head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
			 .e_type = ET_EXEC,
			 .e_machine = EM_X86_64,
			 .e_version = EV_CURRENT,
			 .e_entry = 0x400000 + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
			 .e_phoff = sizeof(Elf64_Ehdr),
			 .e_ehsize = sizeof(Elf64_Ehdr),
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 1},
		.load = {.p_type = PT_LOAD,
			 .p_flags = PF_R | PF_X,
			 .p_vaddr = 0x400000,
			 .p_filesz = sizeof(program),
			 .p_memsz = sizeof(program),
			 .p_align = 0x1000},
	};
	memcpy(program.code, code, sizeof(code));
	int fd = memfd_create("probe", 0);
	if (fd < 0 || write(fd, &program, sizeof(program)) < 0)
		return -errno;
	syscall(SYS_execveat, fd, "", (char *[]){NULL}, (char *[]){NULL}, AT_EMPTY_PATH);
	return -errno;
}

static int try_fork(void)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	return or_errno(child);
}

static void *do_nothing(void *arg)
{
	return arg;
}

static int try_thread(void)
{
	pthread_t thread;
	return -pthread_create(&thread, NULL, do_nothing, NULL);
}

static int try_mmap_exec(void)
{
	void *p = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? -errno : 0;
}

static int try_mprotect_exec(void)
{
	void *p = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		broken("mmap");
	return or_errno(mprotect(p, PAGE_BYTES, PROT_READ | PROT_EXEC));
}

static int try_map_file_exec(void)
{
	void *p = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, held.file, 0);
	return p == MAP_FAILED ? -errno : 0;
}

static int try_handler(void)
{
	struct sigaction action = {.sa_handler = SIG_IGN};
	return or_errno(sigaction(SIGSYS, &action, NULL));
}

/* A system call of the 32-bit kind, whose numbers mean other calls: getpid(). */
static int try_compat(void)
{
	long ret = 20;

	__asm__ volatile("int $0x80" : "+a"(ret) : : "memory", "r8", "r9", "r10", "r11");
	return ret < 0 ? (int)ret : 0;
}

static int try_x32(void)
{
	return or_errno(syscall(0x40000000 | SYS_getpid));
}

/* --- devices --- */

static int on_kvm(int fd, unsigned long request, unsigned long arg)
{
	if (fd < 0)
		return -ENODEV;
	return or_errno(ioctl(fd, request, arg));
}

static int try_kvm_new_vm(void)
{
	return on_kvm(held.kvm, KVM_CREATE_VM, 0);
}

static int try_kvm_new_vcpu(void)
{
	return on_kvm(held.vm, KVM_CREATE_VCPU, 1);
}

static int try_ioctl(void)
{
	return or_errno(ioctl(held.file, FIOCLEX));
}

/* --- io_uring --- */

static int try_ring_setup(void)
{
	struct io_uring_params params = {};
	return or_errno(syscall(SYS_io_uring_setup, 4, &params));
}

static int try_ring_register(void)
{
	static char buffer[4096];
	struct iovec iov = {buffer, sizeof(buffer)};
	int fd = held.restricted_ring ? held.ring_fd : held.open_ring.ring_fd;

	return or_errno(syscall(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, &iov, 1));
}

static void *map_ring(size_t bytes, off_t what)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, held.ring_fd, what);

	if (p == MAP_FAILED)
		broken("map the ring");
	return p;
}

/*
 * Drives the I/O thread's ring past the code that owns it, as an attacker in this thread would: the rings are mapped
 * anew, an entry is put behind the last, the kernel is called, and the completion is looked for. The layout is the one
 * the kernel gave the other ring: the places of heads, tails and masks do not depend on sizes.
 */
static int through_restricted_ring(const struct io_uring_sqe *entry)
{
	const struct io_uring *like = &held.open_ring;
	ptrdiff_t sq_tail = (char *)like->sq.ktail - (char *)like->sq.ring_ptr;
	ptrdiff_t sq_mask = (char *)like->sq.kring_mask - (char *)like->sq.ring_ptr;
	ptrdiff_t cq_tail = (char *)like->cq.ktail - (char *)like->cq.ring_ptr;
	ptrdiff_t cq_mask = (char *)like->cq.kring_mask - (char *)like->cq.ring_ptr;
	ptrdiff_t cqes = (char *)like->cq.cqes - (char *)like->cq.ring_ptr;
	char *ring = map_ring(PAGE_BYTES * 4, IORING_OFF_SQ_RING);
	unsigned mask = *(unsigned *)(ring + sq_mask);
	struct io_uring_sqe *sqes = map_ring((mask + 1) * sizeof(*sqes), IORING_OFF_SQES);
	unsigned tail = *(unsigned *)(ring + sq_tail);

	sqes[tail & mask] = *entry;
	__atomic_store_n((unsigned *)(ring + sq_tail), tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, held.ring_fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	unsigned end = __atomic_load_n((unsigned *)(ring + cq_tail), __ATOMIC_ACQUIRE);
	for (unsigned i = end; i-- > 0;) {
		struct io_uring_cqe *cqe = (struct io_uring_cqe *)(ring + cqes) + (i & *(unsigned *)(ring + cq_mask));
		if (cqe->user_data == entry->user_data)
			return cqe->res < 0 ? cqe->res : 0;
	}
	errno = ENOMSG;
	broken("find the completion");
}

static int through_open_ring(const struct io_uring_sqe *entry)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&held.open_ring);

	*sqe = *entry;
	int ret = io_uring_submit_and_wait(&held.open_ring, 1);
	if (ret < 0)
		return ret;
	ret = io_uring_wait_cqe(&held.open_ring, &cqe);
	return ret < 0 ? ret : cqe->res < 0 ? cqe->res : 0;
}

static int through_ring(struct io_uring_sqe *entry)
{
	entry->user_data = 0x70726f6265;
	return held.restricted_ring ? through_restricted_ring(entry) : through_open_ring(entry);
}

static int try_ring_openat(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_openat(&sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
	return through_ring(&sqe);
}

static int try_ring_open_below(void)
{
	struct open_how how = {.flags = O_RDONLY};
	struct io_uring_sqe sqe = {};

	io_uring_prep_openat2(&sqe, held.directory, "etc/passwd", &how);
	return through_ring(&sqe);
}

static int try_ring_socket(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_socket(&sqe, AF_INET, SOCK_STREAM, 0, 0);
	return through_ring(&sqe);
}

static int try_ring_connect(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_connect(&sqe, held.tcp, (void *)&held.tcp_address, sizeof(held.tcp_address));
	return through_ring(&sqe);
}

static int try_ring_send(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_sendto(&sqe, held.udp, "x", 1, 0, (void *)&held.udp_address, sizeof(held.udp_address));
	return through_ring(&sqe);
}

static int try_ring_command(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_cmd_sock(&sqe, SOCKET_URING_OP_SIOCOUTQ, held.udp, 0, 0, NULL, 0);
	return through_ring(&sqe);
}

static int try_ring_unlink(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_unlink(&sqe, held.path_address.sun_path, 0);
	return through_ring(&sqe);
}

static int try_ring_plain_descriptor(void)
{
	struct io_uring_sqe sqe = {};

	io_uring_prep_write(&sqe, held.file, "x", 1, 0);
	return through_ring(&sqe);
}

/* --- what must go on working --- */

static int try_nothing(void)
{
	return 0;
}

static int try_own_kick(void)
{
	return pthread_kill(pthread_self(), SIGURG) ? -errno : 0;
}

static int try_heap(void)
{
	for (size_t size = 16; size <= 64 * MIB; size *= 2) {
		cleanup_free char *p = malloc(size);
		if (!p)
			return -ENOMEM;
		memset(p, 1, MIN(size, PAGE_BYTES));
	}
	return 0;
}

/* Stays until its standard input ends, so that it can be looked at from outside. */
static int try_staying(void)
{
	char byte;

	if (write(STDOUT_FILENO, "staying\n", 8) < 0)
		return -errno;
	return or_errno(read(STDIN_FILENO, &byte, 1));
}

const struct attempt attempts[] = {
	{"open", try_open},
	{"openat2", try_openat2},
	{"open-descriptor", try_open_descriptor},
	{"open-below", try_open_below},
	{"create", try_create},
	{"list", try_list},
	{"enter-directory", try_enter_directory},
	{"socket", try_socket},
	{"tcp", try_tcp},
	{"tcp-held", try_tcp_held},
	{"udp", try_udp},
	{"udp-held", try_udp_held},
	{"listen", try_listen},
	{"unix-path", try_unix_path},
	{"unix-abstract", try_unix_abstract},
	{"ptrace", try_ptrace},
	{"kill", try_kill},
	{"tgkill", try_tgkill},
	{"sigqueue", try_sigqueue},
	{"pidfd-open", try_pidfd_open},
	{"pidfd-signal", try_pidfd_signal},
	{"pidfd-getfd", try_pidfd_getfd},
	{"async-signal", try_async_signal},
	{"read-proc", try_read_proc},
	{"read-memory", try_read_memory},
	{"write-memory", try_write_memory},
	{"priority", try_priority},
	{"fsopen", try_fsopen},
	{"unshare", try_unshare},
	{"user-namespace", try_user_namespace},
	{"setns", try_setns},
	{"chroot", try_chroot},
	{"hostname", try_hostname},
	{"keyctl", try_keyctl},
	{"bpf", try_bpf},
	{"perf", try_perf},
	{"userfaultfd", try_userfaultfd},
	{"raise-dumpable", try_raise_dumpable},
	{"personality", try_personality},
	{"uname", try_uname},
	{"execve", try_execve},
	{"exec-memfd", try_exec_memfd},
	{"fork", try_fork},
	{"thread", try_thread},
	{"mmap-exec", try_mmap_exec},
	{"mprotect-exec", try_mprotect_exec},
	{"map-file-exec", try_map_file_exec},
	{"handler", try_handler},
	{"compat", try_compat},
	{"x32", try_x32},
	{"kvm-new-vm", try_kvm_new_vm},
	{"kvm-new-vcpu", try_kvm_new_vcpu},
	{"ioctl", try_ioctl},
	{"ring-setup", try_ring_setup},
	{"ring-register", try_ring_register},
	{"ring-openat", try_ring_openat},
	{"ring-open-below", try_ring_open_below},
	{"ring-socket", try_ring_socket},
	{"ring-connect", try_ring_connect},
	{"ring-send", try_ring_send},
	{"ring-command", try_ring_command},
	{"ring-unlink", try_ring_unlink},
	{"ring-plain-descriptor", try_ring_plain_descriptor},
	{"nothing", try_nothing},
	{"own-kick", try_own_kick},
	{"heap", try_heap},
	{"staying", try_staying},
	{},
};
