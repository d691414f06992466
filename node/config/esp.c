/*
 * host.toml from the ESP; see config.h. systemd-boot says in an EFI variable which partition it was loaded from (Boot
 * Loader Interface). It touches: that variable, that partition, read-only, and the folder it is given.
 */
#include "node/config/config.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "stick/loader.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>

#define MOUNT_POINT "/run/glint-esp"

/* udev makes the link when it has looked at the stick. */
static bool wait_for(const char *path, unsigned wait_s)
{
	const struct timespec pause = {.tv_nsec = 100 * 1000000};

	for (unsigned i = 0; i < wait_s * 10; i++) {
		if (access(path, F_OK) == 0)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

static struct error *copy(const char *path, int folder, bool *found)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	cleanup_free char *text = malloc(HOSTCONFIG_TEXT_MAX + 1);
	size_t len = 0;
	ssize_t n;

	*found = fd >= 0;
	if (fd < 0)
		return errno == ENOENT ? NULL : error_new(errno, "open glint/host.toml of the stick");
	if (!text)
		return error_new(ENOMEM, "read glint/host.toml of the stick");
	/* One byte more than there may be: who reads the copy sees that it is too large. */
	while (len <= HOSTCONFIG_TEXT_MAX && (n = read(fd, text + len, HOSTCONFIG_TEXT_MAX + 1 - len)) > 0)
		len += (size_t)n;
	if (len <= HOSTCONFIG_TEXT_MAX && n < 0)
		return error_new(errno, "read glint/host.toml of the stick");
	return put_file(folder, "host.toml", text, len, 0644);
}

struct error *esp_fetch(int folder, unsigned wait_s, bool *found)
{
	char uuid[LOADER_UUID + 1], device[80];

	*found = false;
	if (!loader_partition(LOADER_PARTITION, uuid)) {
		log_info("this host was not started from a stick: there is no host.toml");
		return NULL;
	}
	snprintf(device, sizeof(device), "/dev/disk/by-partuuid/%s", uuid);
	if (!wait_for(device, wait_s))
		return error_new(ENODEV, "find the stick this host was started from (%s)", device);
	/* Gone with this process, whatever becomes of it. */
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return error_new(errno, "make a mount namespace");
	if (mkdir(MOUNT_POINT, 0700) < 0 && errno != EEXIST)
		return error_new(errno, "make %s", MOUNT_POINT);
	if (mount(device, MOUNT_POINT, "vfat", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "umask=022") < 0)
		return error_new(errno, "mount the stick's ESP (%s)", device);
	struct error *err = copy(MOUNT_POINT "/glint/host.toml", folder, found);
	umount2(MOUNT_POINT, MNT_DETACH);
	return err;
}
