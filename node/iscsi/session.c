/* Sessions and network devices; see session.h. It touches sysfs, and looks at what udev has noted. */
#include "node/iscsi/session.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SESSIONS "/sys/class/iscsi_session"
#define DEVICES  "/sys/class/net"
#define VALUE    256

/* A value of a folder of sysfs; "" where there is none. */
static void read_value(const char *folder, const char *entry, const char *name, char value[VALUE])
{
	char path[PATH_MAX];
	ssize_t n = 0;

	if (snprintf(path, sizeof(path), "%s/%s/%s", folder, entry, name) < (int)sizeof(path)) {
		cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? 0 : read(fd, value, VALUE - 1);
	}
	value[MAX(n, 0)] = '\0';
	value[strcspn(value, "\n")] = '\0';
}

static struct error *write_value(const char *path, const char *value)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return error_new(errno, "open %s", path);
	return write_all(fd, value, strlen(value), path);
}

/* --- sessions --- */

/* Its device is .../hostN/sessionM. */
static bool find_place(const char *entry, struct session *s)
{
	char link[PATH_MAX];
	const char *at;

	if (snprintf(link, sizeof(link), SESSIONS "/%s/device", entry) >= (int)sizeof(link) || !realpath(link, s->path))
		return false;
	at = strstr(s->path, "/host");
	return at && sscanf(at, "/host%u/", &s->host) == 1;
}

void session_find(const char *target, struct session *s)
{
	cleanup_dir DIR *dir = opendir(SESSIONS);
	char name[VALUE], state[VALUE];

	s->state = SESSION_NONE;
	for (const struct dirent *entry; dir && (entry = readdir(dir));) {
		if (entry->d_name[0] == '.')
			continue;
		read_value(SESSIONS, entry->d_name, "targetname", name);
		if (strcmp(name, target) != 0 || !find_place(entry->d_name, s))
			continue;
		read_value(SESSIONS, entry->d_name, "state", state);
		s->state = strcmp(state, "LOGGED_IN") == 0 ? SESSION_UP
			   : strcmp(state, "FREE") == 0    ? SESSION_GIVEN_UP
							   : SESSION_LOST;
		return;
	}
}

void session_remove_disks(const struct session *s)
{
	char pattern[PATH_MAX + 32];
	glob_t found = {};

	snprintf(pattern, sizeof(pattern), "%s/target*/*:*/delete", s->path);
	if (glob(pattern, 0, NULL, &found) == 0)
		for (size_t i = 0; i < found.gl_pathc; i++)
			/* One that goes by itself meanwhile is gone, too. */
			error_free(write_value(found.gl_pathv[i], "1"));
	globfree(&found);
}

struct error *session_scan(const struct session *s)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/class/scsi_host/host%u/scan", s->host);
	return write_value(path, "- - -");
}

/* --- network devices --- */

bool device_find(const char *mac, bool carrier)
{
	cleanup_dir DIR *dir = opendir(DEVICES);
	char value[VALUE], path[PATH_MAX];

	for (const struct dirent *entry; dir && (entry = readdir(dir));) {
		read_value(DEVICES, entry->d_name, "address", value);
		snprintf(path, sizeof(path), DEVICES "/%s/device", entry->d_name);
		if (strcmp(value, mac) != 0 || access(path, F_OK) < 0)
			continue;
		read_value(DEVICES, entry->d_name, "ifindex", value);
		snprintf(path, sizeof(path), "/run/udev/data/n%.16s", value);
		if (access(path, F_OK) < 0)
			continue;
		read_value(DEVICES, entry->d_name, "carrier", value);
		if (!carrier || value[0] == '1')
			return true;
	}
	return false;
}
