/*
 * What goes into the bundle, and how it is had; see support.h. It reads the files of the table, runs the programs of
 * the table, each for a bounded time and amount, and writes nothing.
 */
#include "node/support/support.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Nothing here may hold a key, a password, or what people or guests stored. */
static const char *const files[] = {
	/* which Glint this is, and how it says it is */
	"/usr/lib/os-release",
	"/usr/lib/glint/manifest.json",
	"/run/glint/health.json",
	"/run/glint-health/health.json",
	"/run/glint/identity/id",
	/* how it is configured */
	"/run/glint-config/*",
	"/run/systemd/network/*",
	"/run/systemd/timesyncd.conf.d/*",
	"/run/systemd/netif/links/*",
	"/run/systemd/netif/leases/*",
	"/run/systemd/resolve/resolv.conf",
	"/etc/hostname",
	/* the machine */
	"/sys/class/dmi/id/*",
	"/proc/cpuinfo",
	"/proc/iomem",
	"/proc/ioports",
	"/sys/bus/pci/devices/*/uevent",
	"/sys/bus/usb/devices/*/uevent",
	"/sys/devices/system/cpu/vulnerabilities/*",
	"/sys/class/thermal/*/temp",
	"/sys/class/hwmon/*/*_input",
	"/sys/devices/system/edac/mc/mc*/*_count",
	/* its kernel */
	"/proc/version",
	"/proc/cmdline",
	"/proc/uptime",
	"/proc/loadavg",
	"/proc/meminfo",
	"/proc/vmstat",
	"/proc/buddyinfo",
	"/proc/slabinfo",
	"/proc/modules",
	"/proc/interrupts",
	"/proc/softirqs",
	"/proc/stat",
	"/proc/pressure/*",
	"/proc/sys/kernel/tainted",
	"/sys/kernel/security/lockdown",
	"/sys/module/kvm*/parameters/*",
	"/proc/[0-9]*/stat",
	"/proc/[0-9]*/status",
	"/sys/fs/cgroup/glint.slice/*/memory.*",
	"/sys/fs/cgroup/glint.slice/*/cpu.*",
	/* disks and network */
	"/proc/partitions",
	"/proc/diskstats",
	"/proc/self/mountinfo",
	"/sys/class/block/*/uevent",
	"/sys/class/block/*/size",
	"/sys/block/*/device/vendor",
	"/sys/block/*/device/model",
	"/sys/block/*/device/rev",
	"/sys/block/*/device/ioerr_cnt",
	"/proc/net/dev",
	"/proc/net/route",
	"/proc/net/ipv6_route",
	"/proc/net/if_inet6",
	"/proc/net/fib_trie",
	"/proc/net/arp",
	"/proc/net/bonding/*",
	"/proc/net/vlan/*",
	"/proc/net/snmp",
	"/proc/net/netstat",
	"/sys/class/net/*/uevent",
	"/sys/class/net/*/operstate",
	"/sys/class/net/*/address",
	"/sys/class/net/*/speed",
	"/sys/class/net/*/statistics/*",
	/* how it was started, and how it ended before */
	"/sys/firmware/efi/efivars/Boot*",
	"/sys/firmware/efi/efivars/LoaderInfo-*",
	"/sys/firmware/efi/efivars/LoaderEntry*",
	"/sys/firmware/efi/efivars/LoaderFirmware*",
	"/sys/firmware/efi/efivars/LoaderDevicePartUUID-*",
	"/sys/firmware/efi/efivars/Stub*",
	"/sys/firmware/efi/efivars/SecureBoot-*",
	"/sys/firmware/ibft/target*/[!cr]*", /* not the CHAP names and secrets */
	"/sys/firmware/ibft/ethernet*/*",
	"/var/lib/systemd/pstore/*",
	"/var/lib/systemd/pstore/*/*",
	"/var/lib/systemd/pstore/*/*/*",
};

struct program {
	const char *name; /* of its words in the bundle */
	const char *argv[8];
};

static const struct program programs[] = {
	{"journal.txt", {"/usr/bin/journalctl", "--no-pager", "--output=short-iso-precise", "--lines=100000"}},
	{"units.txt", {"/usr/bin/systemctl", "list-units", "--all", "--full", "--no-pager", "--plain"}},
	{"jobs.txt", {"/usr/bin/systemctl", "list-jobs", "--full", "--no-pager"}},
	{"udev.txt", {"/usr/bin/udevadm", "info", "--export-db"}},
};

struct gathering {
	struct support *s;
	struct bundle *bundle;
	json_t *missing; /* {"name", "why"} each */
	char *part;      /* BUNDLE_PART_MAX bytes */
};

static void note_missing(struct gathering *g, const char *name, struct error *err)
{
	json_array_append_new(g->missing, json_pack("{s:s, s:s}", "name", name, "why", error_text(err)));
	error_free(err);
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * Reads to the end, for BUNDLE_PROGRAM_MS at most. Of what is longer than a part may be its last half or more is kept:
 * the end of a log says most. (Files of /proc and /sys do not know their size.)
 */
static struct error *read_end(int fd, const char *what, char *part, size_t *len)
{
	const int64_t until = now_ms() + BUNDLE_PROGRAM_MS;
	struct pollfd source = {.fd = fd, .events = POLLIN};
	size_t at = 0;
	ssize_t n;

	do {
		int64_t left = until - now_ms();
		if (left <= 0 || poll(&source, 1, (int)left) == 0)
			return error_new(ETIMEDOUT, "read %s", what);
		/* Some files of /proc take memory for as much as is asked for. */
		n = read(fd, part + at, MIN(BUNDLE_PART_MAX - at, (size_t)1 << 16));
		if (n < 0 && errno != EINTR)
			return error_new(errno, "read %s", what);
		at += n > 0 ? (size_t)n : 0;
		if (at == BUNDLE_PART_MAX) {
			at = BUNDLE_PART_MAX / 2;
			memcpy(part, part + at, at);
		}
	} while (n != 0);
	*len = at;
	return NULL;
}

static struct error *add(struct gathering *g, const char *name, size_t len)
{
	if (bundle_is_full(g->bundle))
		return error_new(E2BIG, "add %s: the bundle has %u MiB without it", name, BUNDLE_BYTES_MAX >> 20);
	TRY(bundle_add(g->bundle, name, g->part, len));
	g->s->parts++;
	return NULL;
}

/* --- files --- */

static struct error *add_file(struct gathering *g, const char *path)
{
	const char *name = path + strlen(g->s->root) + 1;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	struct stat st;
	size_t len = 0;

	if (fd < 0)
		return error_new(errno, "open /%s", name);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_new(EINVAL, "read /%s: it is not a regular file", name);
	TRY(read_end(fd, name, g->part, &len));
	return add(g, name, len);
}

/* What is not there is nothing to tell: many of these belong to hardware that a host may not have. */
static void add_files(struct gathering *g, const char *pattern)
{
	cleanup_free char *full = NULL;
	glob_t found = {};

	if (asprintf(&full, "%s%s", g->s->root, pattern) < 0 || glob(full, 0, NULL, &found) != 0)
		return;
	for (size_t i = 0; i < found.gl_pathc && g->s->parts < BUNDLE_PARTS_MAX; i++) {
		struct stat st;
		if (lstat(found.gl_pathv[i], &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		struct error *err = add_file(g, found.gl_pathv[i]);
		if (err)
			note_missing(g, found.gl_pathv[i] + strlen(g->s->root), err);
	}
	globfree(&found);
}

/* --- programs --- */

/* Its words, the complaints among them, come through *fd. */
static struct error *start(const struct program *p, pid_t *pid, int *fd)
{
	posix_spawn_file_actions_t actions;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_new(errno, "start %s", p->argv[0]);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
	char *const environment[] = {(char[]){"LC_ALL=C"}, (char[]){"SYSTEMD_COLORS=0"}, NULL};
	int e = posix_spawn(pid, p->argv[0], &actions, NULL, (char *const *)(uintptr_t)p->argv, environment);
	posix_spawn_file_actions_destroy(&actions);
	close(ends[1]);
	if (e) {
		close(ends[0]);
		return error_new(e, "start %s", p->argv[0]);
	}
	*fd = ends[0];
	return NULL;
}

static struct error *add_program(struct gathering *g, const struct program *p)
{
	cleanup_fd int fd = -1;
	size_t len = 0;
	pid_t pid = 0;

	TRY(start(p, &pid, &fd));
	struct error *err = read_end(fd, p->argv[0], g->part, &len);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	TRY(err);
	return add(g, p->name, len);
}

/* --- all of it --- */

static struct error *add_summary(struct gathering *g)
{
	char when[32], host[65] = "";
	const time_t now = time(NULL);
	struct tm utc;

	strftime(when, sizeof(when), "%FT%TZ", gmtime_r(&now, &utc));
	gethostname(host, sizeof(host) - 1);
	json_t *json = json_pack("{s:i, s:s, s:s, s:s, s:I, s:O}", "version", 1, "glint", GLINT_VERSION, "host", host,
				 "made", when, "parts", (json_int_t)g->s->parts, "missing", g->missing);
	cleanup_free char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;

	json_decref(json);
	return text ? bundle_add(g->bundle, "bundle.json", text, strlen(text)) : error_new(ENOMEM, "write bundle.json");
}

static struct error *gather(struct gathering *g)
{
	/* What says most comes first, should there be too much. */
	for (unsigned i = 0; i < ARRAY_SIZE(programs); i++) {
		struct error *err = add_program(g, &programs[i]);
		if (err)
			note_missing(g, programs[i].name, err);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
		add_files(g, files[i]);
	TRY(add_summary(g));
	return bundle_finish(g->bundle);
}

struct error *support_gather(struct support *s, int *fd)
{
	cleanup_free char *part = malloc(BUNDLE_PART_MAX);
	struct gathering g = {.s = s, .part = part};
	cleanup_fd int memory = -1;

	s->parts = 0;
	if (!part)
		return error_new(ENOMEM, "gather what support needs");
	g.missing = json_array();
	struct error *err = bundle_new(&g.bundle, &memory);
	if (!err)
		err = gather(&g);
	bundle_free(g.bundle);
	json_decref(g.missing);
	TRY(err);
	s->bytes = (uint64_t)lseek(memory, 0, SEEK_END);
	*fd = steal_fd(&memory);
	return NULL;
}
