/*
 * The init of the initramfs: starts the hardware's watchdog, puts the host's root in place and becomes systemd.
 *
 * The watchdog comes first: whatever hangs from here on, the hardware restarts the host, and boot counting comes to the
 * other slot. It runs on after it was closed here, for WATCHDOG_S, until systemd opens it and takes over
 * (RuntimeWatchdogSec=). A board without one gets the kernel's own, which at least sees that systemd has stopped.
 *
 * The initramfs holds this program, a few modules and /root.img, the compressed root. The image is mounted where it
 * lies (in the RAM of the initramfs), under an overlay whose upper layer is a bounded tmpfs; then the initramfs is
 * emptied, the overlay becomes / and systemd is executed. Nothing here touches a disk: whatever the firmware loaded
 * the kernel from - a stick, PXE, HTTP - may be gone before this runs.
 *
 *   /            overlay
 *     lower      /root.img, erofs, read-only; its pages are decompressed on use and can be dropped again
 *     upper      tmpfs of UPPER_SIZE: /etc/machine-id and the like; a full one is an error of the writer
 *
 * erofs mounts a regular file directly (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE) if its file system has
 * read_folio: ramfs has it, tmpfs has not. The kernel makes the initramfs a ramfs when `root=` is on its command
 * line, which is why it is there; its value names nothing. Without a loop device between, compressed pages are not
 * held a second time by that device's page cache.
 *
 * It may touch: its own initramfs, /dev/kmsg, /dev/watchdog0, the kernel's module loader. Any failure is fatal: it says
 * why and the kernel panics (the command line's panic= restarts the host, and boot counting takes the other slot).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define UPPER_SIZE "64m"
#define IMAGE      "/root.img"
#define MICROCODE  "/kernel/x86/microcode"
#define SYSTEMD    "/usr/lib/systemd/systemd"

#define WATCHDOG   "/dev/watchdog0"
#define WATCHDOG_S 30

/* finit_module(2): the kernel decompresses the module itself (linux/module.h). */
#define MODULE_COMPRESSED 4

static int kmsg = -1;

/* One line to the kernel's log, and with it to every console. "<5>" is the level notice, "<2>" critical. */
[[gnu::format(printf, 2, 3)]] static void say(int level, const char *fmt, ...)
{
	char line[512];
	int n = snprintf(line, sizeof(line), "<%d>glint-init: ", level);
	va_list ap;

	va_start(ap, fmt);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
	va_end(ap);
	if (n >= (int)sizeof(line))
		n = sizeof(line) - 1;
	if (write(kmsg >= 0 ? kmsg : STDERR_FILENO, line, (size_t)n) < 0)
		return;
}

[[noreturn]] static void fail(const char *doing, const char *what)
{
	say(2, "cannot %s %s: %s", doing, what, strerror(errno));
	sleep(1);
	_exit(1);
}

static void mount_at(const char *source, const char *dir, const char *type, unsigned long flags, const char *options)
{
	if (mkdir(dir, 0755) < 0 && errno != EEXIST)
		fail("make", dir);
	if (mount(source, dir, type, flags, options) < 0)
		fail("mount", dir);
}

/*
 * Loads what lies in @folder, in the order of the file names (the build numbers them by their dependences). @needed:
 * the host does not work without; a driver of hardware that is not there need not load.
 */
static void load_modules(const char *folder, bool needed)
{
	struct dirent **list;
	int n = scandir(folder, &list, NULL, alphasort);

	if (n < 0)
		fail("list", folder);
	for (int i = 0; i < n; i++) {
		char path[300];
		int fd;

		if (list[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, list[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if ((fd < 0 || (syscall(SYS_finit_module, fd, "", MODULE_COMPRESSED) < 0 && errno != EEXIST)) && needed)
			fail("load the module", path);
		if (fd >= 0)
			close(fd);
		unlink(path);
	}
	rmdir(folder);
}

/* Starts the watchdog, if there is one, and says which. */
static bool start_watchdog(void)
{
	struct watchdog_info info = {};
	int seconds = WATCHDOG_S, fd = open(WATCHDOG, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	ioctl(fd, WDIOC_SETTIMEOUT, &seconds);
	ioctl(fd, WDIOC_GETSUPPORT, &info);
	say(5, "%.32s watchdog: %d s", (const char *)info.identity, seconds);
	/* Closed without the word that would stop it (the kernel's watchdog-api): it calls that critical. */
	close(fd);
	return true;
}

/* Some drivers find their hardware a moment after they were loaded: it is asked for twice. */
static void load_all(void)
{
	load_modules("/watchdogs", false);
	bool watched = start_watchdog();
	load_modules("/modules", true);
	if (watched || start_watchdog())
		return;
	load_modules("/softdog", false);
	if (!start_watchdog())
		say(4, "no watchdog: should this host hang, a person has to restart it");
}

/* The overlay at /sysroot. The layers are not reachable by name once it is the root. */
static void mount_root(void)
{
	mount_at(IMAGE, "/lower", "erofs", MS_RDONLY | MS_NODEV, NULL);
	mount_at("tmpfs", "/upper", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=" UPPER_SIZE);
	if (mkdir("/upper/data", 0755) < 0 || mkdir("/upper/work", 0755) < 0)
		fail("make a folder in", "/upper");
	mount_at("overlay", "/sysroot", "overlay", 0, "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work");
}

/*
 * Gives the initramfs' memory back and makes /sysroot the root. A ramfs that is the kernel's first root cannot be
 * unmounted, so its files are removed; the image itself loses its name only: erofs holds it open.
 */
static void switch_root(void)
{
	if (mount("/dev", "/sysroot/dev", NULL, MS_MOVE, NULL) < 0)
		fail("move", "/dev");
	unlink(IMAGE);
	unlink("/init");
	/* Read by the kernel before there was a file system, and unpacked with the rest, where an image has them. */
	unlink(MICROCODE "/AuthenticAMD.bin");
	unlink(MICROCODE "/GenuineIntel.bin");
	if (chdir("/sysroot") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fail("switch to", "/sysroot");
}

int main(int argc, char **argv)
{
	struct timespec up;
	struct stat image;

	mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (stat(IMAGE, &image) < 0)
		fail("find", IMAGE);
	load_all();
	mount_root();
	switch_root();
	clock_gettime(CLOCK_BOOTTIME, &up);
	say(5, "root of %lld KiB in memory, kernel up %lld.%03ld s, starting systemd", (long long)image.st_size / 1024,
	    (long long)up.tv_sec, up.tv_nsec / 1000000);
	execv(SYSTEMD, argv);
	fail("execute", SYSTEMD);
}
