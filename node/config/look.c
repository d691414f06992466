/*
 * Whether the network is there that was asked for; see config.h. It reads /sys/class/net, the kernel's addresses and
 * what systemd-resolved says of name servers.
 */
#include "node/config/config.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define DEVICES      "/sys/class/net"
#define NAME_SERVERS "/run/systemd/resolve/resolv.conf"

/* A VLAN on a bridge on a bond on hardware. */
#define LAYERS 3

/* A line of the file @name of a device; "" where there is none. */
static void read_line(const char *device, const char *name, char line[32])
{
	char path[128];

	line[0] = '\0';
	if (snprintf(path, sizeof(path), DEVICES "/%s/%s", device, name) >= (int)sizeof(path))
		return;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, line, 31);
	line[MAX(n, 0)] = '\0';
	line[strcspn(line, "\n")] = '\0';
}

/* Of hardware: what the kernel made itself has no device below it. */
static bool is_hardware(const char *device)
{
	char path[128];

	return snprintf(path, sizeof(path), DEVICES "/%s/device", device) < (int)sizeof(path) &&
	       access(path, F_OK) == 0;
}

static const struct dirent *next_device(DIR *dir)
{
	const struct dirent *entry = NULL;

	while (dir && (entry = readdir(dir)) && entry->d_name[0] == '.')
		;
	return entry;
}

/* The device that @wanted, a MAC address or a name with wildcards, means. */
static bool find_device(const char *wanted, char name[16])
{
	cleanup_dir DIR *dir = opendir(DEVICES);

	for (const struct dirent *entry; (entry = next_device(dir));) {
		char mac[32];
		/* In a bond a device has the bond's address: its own is what it is known by there. */
		read_line(entry->d_name, "bonding_slave/perm_hwaddr", mac);
		if (!mac[0])
			read_line(entry->d_name, "address", mac);
		/* VLANs and bridges have the address of what they stand on. */
		if (hostconfig_is_mac(wanted) ? !is_hardware(entry->d_name) || strcasecmp(mac, wanted) != 0
					      : fnmatch(wanted, entry->d_name, 0) != 0)
			continue;
		snprintf(name, 16, "%.15s", entry->d_name);
		return true;
	}
	return false;
}

/* "enp0s2 (52:54:00:12:34:56), ...", or "none". */
static void list_devices(char *words, size_t room)
{
	cleanup_dir DIR *dir = opendir(DEVICES);
	size_t n = 0;

	snprintf(words, room, "none");
	for (const struct dirent *entry; (entry = next_device(dir)) && n < room;) {
		char mac[32];
		if (!is_hardware(entry->d_name))
			continue;
		read_line(entry->d_name, "address", mac);
		n += (size_t)snprintf(words + n, room - n, "%s%.15s (%s)", n ? ", " : "", entry->d_name, mac);
	}
}

void look_for_devices(const struct hostconfig *config, void (*say)(const char *line))
{
	char line[512], there[320], name[16];

	for (size_t i = 0; i < config->network_count; i++) {
		const struct hostconfig_texts *devices = &config->networks[i].devices;
		for (size_t j = 0; j < devices->count && !config->networks[i].first; j++) {
			if (find_device(devices->list[j], name))
				continue;
			list_devices(there, sizeof(there));
			snprintf(line, sizeof(line),
				 "host.toml, line %u: there is no network device '%s'; there are: %s",
				 devices->lines[j], devices->list[j], there);
			say(line);
		}
	}
}

/* The device that has the addresses of @n; "" for any, "-" for none. */
static void top_device(const struct hostconfig_network *n, char name[16])
{
	if (n->vlan)
		snprintf(name, 16, "%s.%u", n->name, n->vlan);
	else if (n->bridge)
		snprintf(name, 16, "%s", n->name);
	else if (n->bond)
		snprintf(name, 16, "%s-bond", n->name);
	else if (n->devices.count == 0)
		name[0] = '\0';
	else if (!find_device(n->devices.list[0], name))
		snprintf(name, 16, "-");
}

bool look_for_hardware(bool with_carrier)
{
	cleanup_dir DIR *dir = opendir(DEVICES);

	for (const struct dirent *entry; (entry = next_device(dir));) {
		char carrier[32];
		read_line(entry->d_name, "carrier", carrier);
		if (is_hardware(entry->d_name) && (!with_carrier || carrier[0] == '1'))
			return true;
	}
	return false;
}

/* Whether there is a carrier below @device: a bridge that never had a port says that it has one itself. */
static bool has_carrier(const char *device, unsigned depth)
{
	char path[128], carrier[32];
	bool below = false;

	read_line(device, "carrier", carrier);
	if (carrier[0] != '1' || snprintf(path, sizeof(path), DEVICES "/%s", device) >= (int)sizeof(path))
		return false;
	cleanup_dir DIR *dir = opendir(path);
	for (const struct dirent *entry; (entry = next_device(dir));) {
		if (strcmp(entry->d_name, "bridge") == 0)
			below = true;
		if (strncmp(entry->d_name, "lower_", 6) != 0 || depth == 0)
			continue;
		below = true;
		if (has_carrier(entry->d_name + 6, depth - 1))
			return true;
	}
	return !below;
}

/* An address that others can reach, of the device @name ("": of any). */
static bool find_address(const struct ifaddrs *all, const char *name, char text[96])
{
	for (const struct ifaddrs *a = all; a; a = a->ifa_next) {
		char address[INET6_ADDRSTRLEN];
		int family = a->ifa_addr ? a->ifa_addr->sa_family : AF_UNSPEC;
		if ((family != AF_INET && family != AF_INET6) || a->ifa_flags & IFF_LOOPBACK ||
		    (*name && strcmp(a->ifa_name, name) != 0) || !has_carrier(a->ifa_name, LAYERS))
			continue;
		const struct sockaddr_in6 *in6 = (const void *)a->ifa_addr;
		const struct sockaddr_in *in = (const void *)a->ifa_addr;
		if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr))
			continue;
		inet_ntop(family, family == AF_INET ? (const void *)&in->sin_addr : &in6->sin6_addr, address,
			  sizeof(address));
		snprintf(text, 96, "%s %s", a->ifa_name, address);
		return true;
	}
	return false;
}

bool look_for_addresses(const struct hostconfig *config, char *words, size_t room)
{
	static const struct hostconfig_network each;
	const struct hostconfig_network *networks = config->network_count ? config->networks : &each;
	struct ifaddrs *all = NULL;
	size_t n = 0;
	bool missing = false;

	words[0] = '\0';
	if (getifaddrs(&all) < 0)
		all = NULL;
	for (size_t i = 0; i < MAX(config->network_count, 1u) && n < room; i++) {
		const struct hostconfig_network *w = &networks[i];
		char name[16], text[96];
		if (w->ipv4.method == HOSTCONFIG_NONE && w->ipv6.method == HOSTCONFIG_NONE)
			continue;
		top_device(w, name);
		bool found = find_address(all, name, text);
		bool carrier = name[0] ? has_carrier(name, LAYERS) : look_for_hardware(true);
		missing |= !found;
		n += (size_t)snprintf(words + n, room - n, "%s%s%s%s", n ? ", " : "", w->name ? w->name : "",
				      w->name ? ": " : "",
				      found     ? text
				      : carrier ? "no address"
				      : name[0] ? "no device of it has a carrier"
						: "no device has a carrier");
	}
	freeifaddrs(all);
	return !missing;
}

void look_for_names(char *words, size_t room)
{
	cleanup_free char *text = NULL;
	size_t len, n = 0;
	struct error *err = read_file(NAME_SERVERS, 65536, &text, &len);

	words[0] = '\0';
	error_free(err);
	for (char *rest = text, *line; !err && n < room && (line = strsep(&rest, "\n"));)
		if (strncmp(line, "nameserver ", 11) == 0)
			n += (size_t)snprintf(words + n, room - n, "%s%s", n ? ", " : "", line + 11);
}
