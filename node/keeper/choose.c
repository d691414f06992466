/*
 * Choosing the stick; see choose.h. It touches the names, and reads two blocks of each stick where there are several.
 */
#include "node/keeper/choose.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "node/keeper/journal.h"
#include "stick/loader.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* More sticks than that in one box: the first ones count. */
#define CANDIDATES_MAX 16

struct candidates {
	char devices[CANDIDATES_MAX][CHOOSE_PATH_MAX];
	unsigned count, others; /* others: not those that the host was booted from */
};

static const uint8_t no_id[16];

bool choose_is_folder(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool has_name(const char *folder, const char *name)
{
	char path[2 * CHOOSE_PATH_MAX];

	return snprintf(path, sizeof(path), "%s/%s", folder, name) < (int)sizeof(path) && access(path, F_OK) == 0;
}

/* Those that may be the host's. A host that knows its stick looks at all. */
static void list(const char *path, const char *booted, const uint8_t id[16], struct candidates *c)
{
	bool any = !booted || memcmp(id, no_id, sizeof(no_id)) != 0;
	DIR *folder = opendir(path);
	struct dirent *entry;

	c->count = c->others = 0;
	while (folder && (entry = readdir(folder)) && c->count < CANDIDATES_MAX) {
		if (entry->d_name[0] == '.')
			continue;
		if (!any && !has_name(booted, entry->d_name))
			c->others++;
		else if (snprintf(c->devices[c->count], CHOOSE_PATH_MAX, "%s/%s", path, entry->d_name) <
			 CHOOSE_PATH_MAX)
			c->count++;
	}
	if (folder)
		closedir(folder);
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15;
	return hash ^ hash >> 29;
}

uint64_t choose_arrival(const char *device)
{
	struct stat st;

	if (stat(device, &st) < 0)
		return 0;
	/* What is plugged in gets a node of its own each time. Of a file in its place the size counts too. */
	uint64_t hash = mix(mix(mix(1, st.st_dev), st.st_ino), st.st_rdev);
	return mix(hash, S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0) | 1;
}

uint64_t choose_arrivals(const char *path, const char *booted, const uint8_t id[16])
{
	struct candidates c;
	uint64_t sum = 0;

	if (!choose_is_folder(path))
		return choose_arrival(path);
	list(path, booted, id, &c);
	/* In whatever order they are listed. */
	for (unsigned i = 0; i < c.count; i++) {
		uint64_t hash = choose_arrival(c.devices[i]);
		for (const char *at = c.devices[i]; *at; at++)
			hash = mix(hash, (uint8_t)*at);
		sum += hash;
	}
	return sum;
}

static bool has_id(const char *device, const uint8_t id[16])
{
	struct journal_file file;
	uint8_t found[16];
	cleanup_fd int fd = open(device, O_RDONLY | O_CLOEXEC | O_DIRECT);

	if (fd < 0 && errno == EINVAL)
		fd = open(device, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	struct error *err = journal_file_init(&file, fd, device);
	bool same = !err && journal_stick(&file.io, found) && memcmp(found, id, sizeof(found)) == 0;
	error_free(err);
	return same;
}

static const char *name_of(const char *device)
{
	return strrchr(device, '/') + 1;
}

/* "sda, sdb": the last names of the candidates. */
static void join(const struct candidates *c, char words[128])
{
	size_t len = 0;

	words[0] = '\0';
	for (unsigned i = 0; i < c->count && len < 127; i++)
		len += (size_t)snprintf(words + len, 128 - len, "%s%s", i ? ", " : "", name_of(c->devices[i]));
}

static struct error *none_there(const char *path, const struct candidates *c)
{
	if (c->others)
		return error_new(ENOENT, "find the stick that the host was booted from, with %u other%s there",
				 c->others, c->others == 1 ? "" : "s");
	return error_new(ENOENT, "find a stick in %s", path);
}

struct error *choose_stick(const char *path, const char *booted, const uint8_t id[16], char device[CHOOSE_PATH_MAX])
{
	bool known = memcmp(id, no_id, sizeof(no_id)) != 0;
	unsigned chosen = 0, own = 0;
	struct candidates c;
	char names[128];

	/* udev takes the folder away with the last stick. */
	if (access(path, F_OK) < 0)
		return error_new(ENOENT, "find a stick at %s", path);
	if (!choose_is_folder(path)) {
		snprintf(device, CHOOSE_PATH_MAX, "%s", path);
		return NULL;
	}
	list(path, booted, id, &c);
	if (c.count == 0)
		return none_there(path, &c);
	for (unsigned i = 0; i < c.count && known && c.count > 1; i++)
		if (has_id(c.devices[i], id)) {
			chosen = i;
			own++;
		}
	join(&c, names);
	if (c.count > 1 && own > 1)
		return error_new(0, "copies of the host's stick are there (%s): pull all but one", names);
	if (c.count > 1 && own == 0)
		return error_new(0, "%s (%s): %s",
				 known ? "several sticks are there, none is the host's"
				       : "several sticks may be the host's",
				 names, known ? "put the host's stick back, or adopt one" : "pull all but one");
	strcpy(device, c.devices[chosen]);
	return NULL;
}

void choose_booted(const char *variable, const char *folder, char booted[CHOOSE_PATH_MAX])
{
	char uuid[LOADER_UUID + 1];

	booted[0] = '\0';
	if (!loader_partition(variable, uuid)) {
		log_info("what the host was booted from is not known (%s)", variable);
		return;
	}
	if (snprintf(booted, CHOOSE_PATH_MAX, "%s/%s", folder, uuid) >= CHOOSE_PATH_MAX)
		booted[0] = '\0';
}
