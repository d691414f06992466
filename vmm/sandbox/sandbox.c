/*
 * The sandbox; see sandbox.h for what it promises and docs/threat-model.md for why each layer is there.
 *
 * Order matters: namespaces need capabilities (of the starter, or of the user namespace made on the way), dropping
 * capabilities comes after them, Landlock forbids mounting and so comes after both, seccomp forbids all of this and
 * comes last, on each thread by itself. Namespaces and Landlock hold for the calling thread and for those it starts:
 * hence the rule that there are no others yet.
 *
 * It touches: the calling process; it opens one descriptor at a time and closes it again.
 */
#include "vmm/sandbox/sandbox.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/sandbox/filters.h"
#include "vmm/sandbox/layers.h"
#include "vmm/sandbox/sandbox_filters.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* Exit status of a VMM that its filter stopped: 128 + SIGSYS, as a shell would say it. */
#define EXIT_VIOLATION (128 + SIGSYS)

/* --- privileges --- */

/*
 * No new privileges; no core (the guest's memory would land on a disk); not dumpable (nobody of the same user traces
 * or reads it); memory that was ever writable is never executed.
 */
static struct error *apply_privileges(void)
{
	struct rlimit none = {0, 0};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_new(errno, "give up gaining privileges");
	if (setrlimit(RLIMIT_CORE, &none) < 0)
		return error_new(errno, "forbid core dumps");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return error_new(errno, "become undumpable");
	if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) < 0)
		return error_new(errno, "forbid executing written memory");
	return NULL;
}

/* --- namespaces --- */

static struct error *get_capabilities(struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3])
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

	if (syscall(SYS_capget, &header, caps) < 0)
		return error_new(errno, "read the own capabilities");
	return NULL;
}

/* Whoever may not administrate the system may do so in a user namespace of his own. */
static struct error *unshare_namespaces(void)
{
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = {};
	int flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;

	TRY(get_capabilities(caps));
	bool admin = caps[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN);
	if (unshare(admin ? flags : flags | CLONE_NEWUSER) == 0)
		return NULL;
	if (admin)
		return error_new(errno, "make namespaces");
	return error_hint(
		error_new(errno, "make namespaces in a user namespace"),
		"this system does not let an ordinary user make one (user.max_user_namespaces, AppArmor, or a "
		"chroot): start the VMM with CAP_SYS_ADMIN, which it gives up");
}

/*
 * The root directory becomes an empty read-only file system that is mounted nowhere. Nothing is put into the mount
 * tree, so nothing can leak from here into another namespace, and it works in a chroot too; being in one, the process
 * can make no user namespace ever after.
 */
static struct error *empty_root(void)
{
	cleanup_fd int fs = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);

	if (fs < 0)
		return error_new(errno, "open tmpfs");
	if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "mode", "0555", 0) < 0 ||
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return error_new(errno, "make a tmpfs");
	cleanup_fd int root =
		(int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC,
			     MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
	if (root < 0)
		return error_new(errno, "mount a tmpfs");
	if (fchdir(root) < 0 || chroot(".") < 0)
		return error_new(errno, "enter the tmpfs");
	return NULL;
}

static struct error *apply_namespaces(void)
{
	TRY(unshare_namespaces());
	return error_wrap(empty_root(), "empty the root directory");
}

/* --- capabilities --- */

/* Out of every set, and locked so that user id 0 means nothing any more. */
static struct error *apply_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = {};
	const unsigned long locked = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
				     SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
				     SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

	TRY(get_capabilities(caps));
	/* The bounding set and the lock are for execve(), which a process without CAP_SETPCAP cannot gain by either. */
	if (caps[CAP_TO_INDEX(CAP_SETPCAP)].effective & CAP_TO_MASK(CAP_SETPCAP)) {
		unsigned long cap = 0;
		while (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0)
			cap++;
		if (errno != EINVAL || cap <= CAP_LAST_CAP)
			return error_new(errno, "drop capability %lu from the bounding set", cap);
		if (prctl(PR_SET_SECUREBITS, locked, 0, 0, 0) < 0)
			return error_new(errno, "lock the security bits");
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return error_new(errno, "clear the ambient capabilities");
	memset(caps, 0, sizeof(caps));
	if (syscall(SYS_capset, &header, caps) < 0)
		return error_new(errno, "drop all capabilities");
	return NULL;
}

/* --- Landlock --- */

/* Everything that Landlock of Linux 6.12 (ABI 6) can refuse; no rule allows any of it. */
static struct error *apply_landlock(void)
{
	const struct landlock_ruleset_attr all = {
		.handled_access_fs = (LANDLOCK_ACCESS_FS_IOCTL_DEV << 1) - 1,
		.handled_access_net = LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP,
		.scoped = LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL,
	};
	cleanup_fd int fd = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof(all), 0);

	if (fd < 0)
		return error_hint(error_new(errno, "make a Landlock ruleset"),
				  "the kernel must have Landlock turned on (lsm=) and be Linux 6.12 or newer");
	if (syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		return error_new(errno, "enter the Landlock ruleset");
	return NULL;
}

const struct sandbox_layer sandbox_layers[SANDBOX_LAYERS] = {
	{"privileges", apply_privileges},
	{"namespaces", apply_namespaces},
	{"capabilities", apply_capabilities},
	{"landlock", apply_landlock},
};

struct error *sandbox_process(void)
{
	for (unsigned i = 0; i < SANDBOX_LAYERS; i++)
		TRY(error_wrap(sandbox_layers[i].apply(), "sandbox: %s", sandbox_layers[i].name));
	return NULL;
}

/* --- seccomp --- */

static const struct {
	const char *name;
	const struct sock_filter *filter;
	unsigned short len;
} kinds[SANDBOX_THREADS] = {
	[SANDBOX_MAIN] = {"main", main_filter, ARRAY_SIZE(main_filter)},
	[SANDBOX_VCPU] = {"vCPU", vcpu_filter, ARRAY_SIZE(vcpu_filter)},
	[SANDBOX_IO] = {"I/O", io_filter, ARRAY_SIZE(io_filter)},
	[SANDBOX_CONNECTOR] = {"connector", connector_filter, ARRAY_SIZE(connector_filter)},
	[SANDBOX_SCREEN] = {"screen", screen_filter, ARRAY_SIZE(screen_filter)},
};

#define FILTER_MAX 512 /* instructions */
static_assert(ARRAY_SIZE(main_filter) <= FILTER_MAX && ARRAY_SIZE(vcpu_filter) <= FILTER_MAX &&
	      ARRAY_SIZE(io_filter) <= FILTER_MAX && ARRAY_SIZE(screen_filter) <= FILTER_MAX);

static _Thread_local const char *thread_kind = "unknown";

/* Uses only what every filter allows: write and exit_group. */
static void violated(int sig, siginfo_t *info, void *context)
{
	const greg_t *regs = ((const ucontext_t *)context)->uc_mcontext.gregs;

	log_err("sandbox: the %s thread made system call %d (0x%llx, 0x%llx, 0x%llx), which it may not; stopping at "
		"once",
		thread_kind, info->si_syscall, regs[REG_RDI], regs[REG_RSI], regs[REG_RDX]);
	_exit(EXIT_VIOLATION);
}

/* The filters are made when Glint is built, when the number of this process is not known. */
static void put_in_pid(struct sock_filter *filter, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		if (BPF_CLASS(filter[i].code) == BPF_JMP && filter[i].k == SANDBOX_OWN_PID)
			filter[i].k = (uint32_t)getpid();
}

struct error *sandbox_thread(enum sandbox_thread kind)
{
	struct sigaction on_violation = {.sa_sigaction = violated, .sa_flags = SA_SIGINFO};
	struct sock_filter filter[FILTER_MAX];
	struct sock_fprog program = {.len = kinds[kind].len, .filter = filter};

	if (sigaction(SIGSYS, &on_violation, NULL) < 0)
		return error_new(errno, "sandbox: catch violations");
	memcpy(filter, kinds[kind].filter, program.len * sizeof(filter[0]));
	put_in_pid(filter, program.len);
	thread_kind = kinds[kind].name;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		return error_hint(error_new(errno, "sandbox: filter the system calls of the %s thread", thread_kind),
				  "the kernel must have seccomp filters, and sandbox_process() must have run");
	return NULL;
}
