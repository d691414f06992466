/*
 * Facts about the host; see facts.h. It reads the host's name, its addresses, os-release, /proc/meminfo, what
 * glint-health and the keeper say in their files, and the names of what systemd-pstore took from the firmware.
 */
#include "node/console/facts.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <jansson.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OS_RELEASE  "/usr/lib/os-release"
#define MEMINFO     "/proc/meminfo"
#define CRASHES     "/var/lib/systemd/pstore"       /* a folder each, named by its time: systemd-pstore(8) */
#define STATE_FILE  "/run/glint/health.json"        /* docs/state-on-flash.md */
#define HEALTH_FILE "/run/glint-health/health.json" /* docs/update.md */

/* What follows @field in the file at @path, up to the end of the line, without quotes. (A file of /proc has no size.)
 */
static void value_of(const char *path, const char *field, char value[64])
{
	char text[4096];
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	text[MAX(n, 0)] = '\0';
	const char *at = strstr(text, field);
	if (at)
		at += strlen(field) + strspn(at + strlen(field), "\"");
	snprintf(value, 64, "%.*s", at ? (int)strcspn(at, "\"\n") : 0, at ? at : "");
}

/* What came from a stick or a neighbour is no business of the terminal's. */
static void make_printable(char *line)
{
	for (; *line; line++)
		if ((unsigned char)*line < 0x20 || *line == 0x7f)
			*line = '?';
}

static void read_name(char line[FACT_BYTES])
{
	char name[65] = "", version[64];

	gethostname(name, sizeof(name) - 1);
	value_of(OS_RELEASE, "\nVERSION_ID=", version);
	snprintf(line, FACT_BYTES, "this is %s, Glint %s", name, version);
}

static unsigned prefix_of(const struct sockaddr *mask)
{
	const uint8_t *bytes = mask->sa_family == AF_INET
				       ? (const void *)&((const struct sockaddr_in *)mask)->sin_addr
				       : (const void *)&((const struct sockaddr_in6 *)mask)->sin6_addr;
	unsigned bits = 0;

	for (unsigned i = 0; i < (mask->sa_family == AF_INET ? 4u : 16u); i++)
		bits += (unsigned)__builtin_popcount(bytes[i]);
	return bits;
}

/* One that a person could use from elsewhere. */
static bool is_useful(const struct ifaddrs *a)
{
	if (!a->ifa_addr || !a->ifa_netmask || (a->ifa_flags & IFF_LOOPBACK) || !(a->ifa_flags & IFF_RUNNING))
		return false;
	if (a->ifa_addr->sa_family == AF_INET6)
		return !IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)a->ifa_addr)->sin6_addr);
	return a->ifa_addr->sa_family == AF_INET;
}

static void read_addresses(char line[FACT_BYTES])
{
	struct ifaddrs *all = NULL;
	size_t n = 0;

	if (getifaddrs(&all) < 0)
		all = NULL;
	for (const struct ifaddrs *a = all; a && n < FACT_BYTES; a = a->ifa_next) {
		char text[INET6_ADDRSTRLEN];

		if (!is_useful(a))
			continue;
		inet_ntop(a->ifa_addr->sa_family,
			  a->ifa_addr->sa_family == AF_INET
				  ? (const void *)&((const struct sockaddr_in *)a->ifa_addr)->sin_addr
				  : (const void *)&((const struct sockaddr_in6 *)a->ifa_addr)->sin6_addr,
			  text, sizeof(text));
		n += (size_t)snprintf(line + n, FACT_BYTES - n, "%s %s %s/%u", n ? "," : "its addresses are",
				      a->ifa_name, text, prefix_of(a->ifa_netmask));
	}
	freeifaddrs(all);
	if (!n)
		snprintf(line, FACT_BYTES, "it has no address");
}

/* Nothing, until it is known. */
static void read_health(char line[FACT_BYTES])
{
	json_t *found = json_load_file(HEALTH_FILE, 0, NULL);
	const json_t *healthy = json_object_get(found, "healthy");
	const char *why = json_string_value(json_object_get(found, "why"));

	line[0] = '\0';
	if (json_is_true(healthy))
		snprintf(line, FACT_BYTES, "it is healthy");
	else if (json_is_false(healthy))
		snprintf(line, FACT_BYTES, "it is NOT healthy: %.200s", why ? why : "");
	json_decref(found);
}

static void read_state(char line[FACT_BYTES])
{
	json_t *health = json_load_file(STATE_FILE, 0, NULL);
	const char *durability = json_string_value(json_object_get(health, "durability"));
	const char *why = json_string_value(json_object_get(health, "why"));

	line[0] = '\0';
	if (durability && strcmp(durability, "stick") == 0)
		snprintf(line, FACT_BYTES, "the host's state is kept on its stick");
	else if (durability)
		snprintf(line, FACT_BYTES, "the host's state is in memory only: %.200s", why ? why : "");
	json_decref(health);
}

/* Whether there is something that the firmware kept over the restart. */
static void read_crash(char line[FACT_BYTES])
{
	cleanup_dir DIR *dir = opendir(CRASHES);
	const struct dirent *entry;
	struct tm when;
	char text[32];
	time_t last = 0;

	while (dir && (entry = readdir(dir)))
		last = MAX(last, (time_t)strtoll(entry->d_name, NULL, 10));
	line[0] = '\0';
	if (last > 0 && gmtime_r(&last, &when) && strftime(text, sizeof(text), "%F %T", &when))
		snprintf(line, FACT_BYTES, "the host crashed at %s UTC, by its clock", text);
}

void facts_read(char facts[FACTS][FACT_BYTES])
{
	read_name(facts[FACT_NAME]);
	read_addresses(facts[FACT_ADDRESSES]);
	read_health(facts[FACT_HEALTH]);
	read_state(facts[FACT_STATE]);
	read_crash(facts[FACT_CRASH]);
	for (unsigned i = 0; i < FACTS; i++)
		make_printable(facts[i]);
}

void facts_use(char line[FACT_BYTES])
{
	char total[64], available[64];
	struct timespec up;

	value_of(MEMINFO, "MemTotal:", total);
	value_of(MEMINFO, "MemAvailable:", available);
	unsigned long all = strtoul(total, NULL, 10), left = strtoul(available, NULL, 10);
	clock_gettime(CLOCK_BOOTTIME, &up);
	snprintf(line, FACT_BYTES, "host up %lld.%03ld s after its kernel started, memory in use %lu of %lu MiB",
		 (long long)up.tv_sec, up.tv_nsec / 1000000, (all - left) / 1024, all / 1024);
}
