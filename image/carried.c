/*
 * glint-carried NAME: starts a guest that the stick carries (docs/stick.md). systemd runs it as the VM's user, in a
 * unit of its own for each guest; it becomes glint-vmm, in the same process.
 *
 *	/dev/glint/guest/NAME   its partition: a VHDX image, and at the end the definition
 *
 * A guest whose writes go to the stick gets the image itself. Any other gets a differencing child of it, a file without
 * a name in /tmp, which is memory, of which it has at most half: what is written is gone with the machine, and the
 * stick is only read.
 *
 * Partition and definition are hostile: whoever had the stick in his hands may have written them. Guests of another
 * stick than the host's own, which somebody plugs in later, are not started.
 *
 * It may touch: the partition, /tmp, /sys/dev/block, the keeper's health file, and what it hands over.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "disk/disk.h"
#include "stick/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FIRMWARE "/usr/share/OVMF/OVMF_CODE_4M.fd"
#define MONITOR  "/usr/bin/glint-vmm"
#define HEALTH   "/run/glint/health.json" /* docs/state-on-flash.md */

#define PATIENCE_S 30

/* The disk that the partition @path is on, as /sys knows it. */
static struct error *disk_of(const char *path, char disk[PATH_MAX])
{
	struct stat st;
	char sys[64];

	if (stat(path, &st) < 0)
		return error_new(errno, "look at %s", path);
	snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u/..", major(st.st_rdev), minor(st.st_rdev));
	return realpath(sys, disk) ? NULL : error_new(errno, "find the disk of %s", path);
}

/* The device of the stick that the keeper has the host's state on; "" while there is none. */
static void host_stick(char device[PATH_MAX])
{
	json_t *health = json_load_file(HEALTH, 0, NULL), *stick;
	size_t i;

	device[0] = '\0';
	json_array_foreach(json_object_get(health, "sticks"), i, stick)
	{
		const char *state = json_string_value(json_object_get(stick, "state"));
		const char *name = json_string_value(json_object_get(stick, "device"));
		if (state && name && strcmp(state, "kept") == 0)
			snprintf(device, PATH_MAX, "%s", name);
	}
	json_decref(health);
}

/* Whether the partition is on the stick that the host's state is on. At its first boot that is not yet so. */
static struct error *check_stick(const char *path)
{
	char device[PATH_MAX], ours[PATH_MAX], its[PATH_MAX];

	host_stick(device);
	for (unsigned waited = 0; !device[0] && waited < PATIENCE_S; waited++) {
		sleep(1);
		host_stick(device);
	}
	if (!device[0])
		return error_hint(error_new(ENODEV, "find the host's own stick: its state is on none"), "%s says why",
				  HEALTH);
	TRY(disk_of(device, ours));
	TRY(disk_of(path, its));
	return strcmp(ours, its) == 0 ? NULL : error_new(EPERM, "%s is not on the host's own stick", path);
}

static struct error *open_guest(const char *name, struct guest *guest, int *fd)
{
	uint8_t tail[GUEST_TAIL];
	char path[64];
	uint64_t len;

	if (!guest_name_good(name))
		return error_new(EINVAL, "'%s' is no guest's name", name);
	snprintf(path, sizeof(path), "/dev/glint/guest/%s", name);
	TRY(check_stick(path));
	*fd = open(path, O_RDWR | O_CLOEXEC);
	if (*fd < 0)
		return error_new(errno, "open %s", path);
	if (ioctl(*fd, BLKGETSIZE64, &len) < 0)
		return error_new(errno, "look at %s", path);
	if (len < GUEST_TAIL)
		return error_new(0, "%s is too small to hold a guest", path);
	TRY(pread_all(*fd, tail, GUEST_TAIL, (off_t)(len - GUEST_TAIL), path));
	TRY(guest_read(guest, tail, len, path));
	return strcmp(guest->name, name) == 0 ? NULL : error_new(0, "%s holds guest %s", path, guest->name);
}

/* The child of the image in @parent, in memory. */
static struct error *make_overlay(const char *name, int parent, int *child)
{
	struct disk_options options = {.name = name, .format = "vhdx", .readonly = true};
	struct disk_create create = {.name = name, .format = "vhdx", .parent_locator = "stick.vhdx"};
	cleanup_fd int copy = fcntl(parent, F_DUPFD_CLOEXEC, 0);

	*child = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (*child < 0 || copy < 0)
		return error_new(errno, "make room for what the guest writes");
	TRY(disk_open(&create.parent, copy, &options));
	steal_fd(&copy);
	struct error *err = disk_create(*child, &create);
	disk_close(create.parent);
	return err;
}

/* Descriptors that glint-vmm is to have are kept open. */
static struct error *hand_over(int fd)
{
	return fcntl(fd, F_SETFD, 0) < 0 ? error_new(errno, "hand over a descriptor") : NULL;
}

static struct error *start(const char *name)
{
	char disk[96], memory[32], cpus[16], control[64];
	const char *serial;
	cleanup_fd int image = -1, overlay = -1;
	struct guest guest = {};

	TRY(open_guest(name, &guest, &image));
	if (!guest.autostart)
		exit(0);
	if (guest.persist) {
		snprintf(disk, sizeof(disk), "path=fd=%d,format=vhdx,on-error=pause,bootindex=1", image);
	} else {
		TRY(make_overlay(name, image, &overlay));
		TRY(hand_over(overlay));
		snprintf(disk, sizeof(disk), "path=fd=%d,format=vhdx,parents=fd=%d,on-error=pause,bootindex=1", overlay,
			 image);
	}
	TRY(hand_over(image));
	snprintf(memory, sizeof(memory), "%llu", (unsigned long long)guest.memory);
	snprintf(cpus, sizeof(cpus), "%u", guest.cpus);
	snprintf(control, sizeof(control), "/run/glint-guest/%s.control", name);
	serial = guest.console ? "socket=/run/glint-guest/console" : "stdio"; /* node/console */
	log_info("guest %s starts: %llu MiB, %u CPUs, writes to %s", name, (unsigned long long)(guest.memory / MIB),
		 guest.cpus, guest.persist ? "the stick" : "memory");
	execl(MONITOR, MONITOR, "--name", name, "--memory", memory, "--cpus", cpus, "--firmware", FIRMWARE, "--disk",
	      disk, "--rng", "--serial", serial, "--control", control, NULL);
	return error_new(errno, "execute %s", MONITOR);
}

int main(int argc, char **argv)
{
	log_init("glint-carried", LOG_LEVEL_INFO);
	if (argc != 2) {
		log_err("usage: glint-carried NAME");
		return 2;
	}
	log_error(error_wrap(start(argv[1]), "guest %s", argv[1]));
	return 1;
}
