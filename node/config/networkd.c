/*
 * A configuration as files of systemd-networkd; see config.h. A network N becomes, from the wire upwards:
 *
 *     its devices -> bond N-bond (several devices, or a bond asked for) -> bridge N (asked for) -> VLAN N.ID (asked
 * for)
 *
 * and the last of them has the addresses. A network on another one is only a VLAN on top of that one's last but VLAN.
 * The bridge is VLAN-aware: its uplink carries every VLAN, 1 untagged; a virtual machine's port chooses.
 *
 * A host has no machine id: everything that networkd would derive from it is taken from the MAC address instead, so
 * that addresses stay the same from boot to boot.
 */
#include "node/config/config.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PREFIX "10-glint-"

void remove_file(int folder, const char *name)
{
	unlinkat(folder, name, 0);
}

static struct error *remove_old(int folder)
{
	int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir)
		return error_new(errno, "look through the folder of systemd-networkd");
	for (struct dirent *entry; (entry = readdir(dir));)
		if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) == 0)
			unlinkat(folder, entry->d_name, 0);
	return NULL;
}

/* A file being written: text in memory, put in its place by file_done(). */
struct file {
	char name[64];
	char *text;
	size_t len;
	FILE *out;
};

static struct error *file_new(struct file *f, const char *device, const char *kind)
{
	*f = (struct file){};
	snprintf(f->name, sizeof(f->name), PREFIX "%s.%s", device, kind);
	f->out = open_memstream(&f->text, &f->len);
	return f->out ? NULL : error_new(ENOMEM, "write %s", f->name);
}

static struct error *file_done(struct file *f, int folder)
{
	bool failed = ferror(f->out) != 0;
	bool good = fclose(f->out) == 0 && !failed;
	struct error *err =
		good ? put_file(folder, f->name, f->text, f->len, 0644) : error_new(ENOMEM, "write %s", f->name);

	free(f->text);
	return err;
}

/* --- parts of a .network file --- */

static void write_match(FILE *out, const struct hostconfig_network *n)
{
	bool pattern = n->first;

	fputs("[Match]\n", out);
	if (n->first)
		fputs("Type=ether\n", out);
	for (size_t i = 0; i < n->devices.count && !n->first; i++) {
		const char *device = n->devices.list[i];
		/* A device in a bond goes by the bond's address; its own stays the permanent one. */
		fprintf(out, "%s=%s\n", hostconfig_is_mac(device) ? "PermanentMACAddress" : "Name", device);
		pattern |= strpbrk(device, "*?") != NULL;
	}
	/* Not the bridges, taps and bonds of this host. */
	if (pattern)
		fputs("Kind=!*\n", out);
}

static void write_ip(FILE *out, const struct hostconfig_ip *ip)
{
	for (size_t i = 0; i < ip->addresses.count; i++)
		fprintf(out, "Address=%s/%u\n", ip->addresses.list[i].text, ip->addresses.list[i].prefix);
}

/* Whether routers are listened to: a static address with a gateway needs none. */
static bool takes_routers(const struct hostconfig_network *n)
{
	bool gateway = false;

	for (size_t i = 0; i < n->gateways.count; i++)
		gateway |= n->gateways.list[i].family == AF_INET6;
	return n->ipv6.method == HOSTCONFIG_AUTOMATIC || (n->ipv6.method == HOSTCONFIG_STATIC && !gateway);
}

/* [Network] is open; this closes it. */
static void write_addresses(FILE *out, const struct hostconfig_network *n, bool own_time)
{
	bool dhcp = n->ipv4.method == HOSTCONFIG_AUTOMATIC;
	const char *yes[] = {"no", "yes"};

	fprintf(out, "DHCP=%s\nIPv6AcceptRA=%s\nLinkLocalAddressing=%s\nLLMNR=no\nMulticastDNS=no\n",
		dhcp ? "ipv4" : "no", yes[takes_routers(n)], n->ipv6.method == HOSTCONFIG_NONE ? "no" : "ipv6");
	write_ip(out, &n->ipv4);
	write_ip(out, &n->ipv6);
	for (size_t i = 0; i < n->gateways.count; i++)
		fprintf(out, "Gateway=%s\n", n->gateways.list[i].text);
	for (size_t i = 0; i < n->dns.count; i++)
		fprintf(out, "DNS=%s\n", n->dns.list[i].text);
	for (size_t i = 0; i < n->search.count; i++)
		fprintf(out, "Domains=%s\n", n->search.list[i]);
	const char *dns = yes[n->dns.count == 0], *time = yes[!own_time];
	fprintf(out, "\n[DHCPv4]\nClientIdentifier=mac\nUseDNS=%s\nUseNTP=%s\nUseHostname=no\nUseDomains=%s\n", dns,
		time, yes[n->search.count == 0]);
	fprintf(out, "\n[DHCPv6]\nDUIDType=link-layer\nUseDNS=%s\nUseNTP=%s\nUseHostname=no\n", dns, time);
	fprintf(out, "\n[IPv6AcceptRA]\nUseDNS=%s\n", dns);
}

/* --- a network --- */

struct writer {
	const struct hostconfig *config;
	int folder;
};

static void vlan_name(const struct hostconfig_network *n, char name[16])
{
	snprintf(name, 16, "%s.%u", n->name, n->vlan);
}

/* [Network]: the VLANs on top of @n, its own and those of networks on it; and, where it has none, its addresses. */
static void write_top(const struct writer *w, FILE *out, const struct hostconfig_network *n)
{
	char name[16];

	for (size_t i = 0; i < w->config->network_count; i++) {
		const struct hostconfig_network *other = &w->config->networks[i];
		if ((other != n && other->base != n) || !other->vlan)
			continue;
		vlan_name(other, name);
		fprintf(out, "VLAN=%s\n", name);
	}
	if (n->vlan)
		fputs("LinkLocalAddressing=no\nIPv6AcceptRA=no\n", out);
	else
		write_addresses(out, n, w->config->time_servers.count > 0);
}

static struct error *write_vlan(const struct writer *w, const struct hostconfig_network *n)
{
	struct file f;
	char name[16];

	vlan_name(n, name);
	TRY(file_new(&f, name, "netdev"));
	fprintf(f.out, "[NetDev]\nName=%s\nKind=vlan\n\n[VLAN]\nId=%u\n", name, n->vlan);
	TRY(file_done(&f, w->folder));
	TRY(file_new(&f, name, "network"));
	fprintf(f.out, "[Match]\nName=%s\n\n[Network]\n", name);
	write_addresses(f.out, n, w->config->time_servers.count > 0);
	return file_done(&f, w->folder);
}

/* The uplink's way to the bridge; its own tables below. */
static void write_port(FILE *out, const struct hostconfig_network *n)
{
	fprintf(out,
		"Bridge=%s\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\n[BridgeVLAN]\nVLAN=1-4094\nPVID="
		"1\nEgressUntagged=1\n",
		n->name);
}

static struct error *write_bridge(const struct writer *w, const struct hostconfig_network *n)
{
	struct file f;

	TRY(file_new(&f, n->name, "netdev"));
	fprintf(f.out, "[NetDev]\nName=%s\nKind=bridge\nMACAddress=none\n", n->name);
	if (n->mtu)
		fprintf(f.out, "MTUBytes=%u\n", n->mtu);
	fputs("\n[Bridge]\nVLANFiltering=yes\nDefaultPVID=1\nSTP=no\nForwardDelaySec=0\n", f.out);
	TRY(file_done(&f, w->folder));
	TRY(file_new(&f, n->name, "network"));
	fprintf(f.out, "[Match]\nName=%s\n\n[Network]\n", n->name);
	write_top(w, f.out, n);
	/* The bridge itself is a port, too: it has the VLANs that the host has addresses in. */
	fputs("\n[BridgeVLAN]\nVLAN=1\nPVID=1\nEgressUntagged=1\n", f.out);
	for (size_t i = 0; i < w->config->network_count; i++) {
		const struct hostconfig_network *other = &w->config->networks[i];
		if ((other == n || other->base == n) && other->vlan)
			fprintf(f.out, "\n[BridgeVLAN]\nVLAN=%u\n", other->vlan);
	}
	return file_done(&f, w->folder);
}

static struct error *write_bond(const struct writer *w, const struct hostconfig_network *n, const char *name)
{
	struct file f;

	TRY(file_new(&f, name, "netdev"));
	fprintf(f.out, "[NetDev]\nName=%s\nKind=bond\nMACAddress=none\n", name);
	if (n->mtu)
		fprintf(f.out, "MTUBytes=%u\n", n->mtu);
	fprintf(f.out, "\n[Bond]\nMode=%s\nMIIMonitorSec=100ms\n", n->bond);
	if (strcmp(n->bond, "802.3ad") == 0 || strcmp(n->bond, "balance-xor") == 0)
		fputs("TransmitHashPolicy=layer3+4\n", f.out);
	TRY(file_done(&f, w->folder));
	TRY(file_new(&f, name, "network"));
	fprintf(f.out, "[Match]\nName=%s\n\n[Network]\n", name);
	if (n->bridge)
		write_port(f.out, n);
	else
		write_top(w, f.out, n);
	return file_done(&f, w->folder);
}

static struct error *write_devices(const struct writer *w, const struct hostconfig_network *n, const char *bond)
{
	char name[32];
	struct file f;

	snprintf(name, sizeof(name), "%s-devices", n->name);
	TRY(file_new(&f, name, "network"));
	write_match(f.out, n);
	if (n->mtu)
		fprintf(f.out, "\n[Link]\nMTUBytes=%u\n", n->mtu);
	fputs("\n[Network]\n", f.out);
	if (n->bond)
		fprintf(f.out, "Bond=%s\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n", bond);
	else if (n->bridge)
		write_port(f.out, n);
	else
		write_top(w, f.out, n);
	return file_done(&f, w->folder);
}

static struct error *write_network(const struct writer *w, const struct hostconfig_network *n)
{
	char bond[16];

	snprintf(bond, sizeof(bond), "%s-bond", n->name);
	if (!n->on)
		TRY(write_devices(w, n, bond));
	if (n->bond)
		TRY(write_bond(w, n, bond));
	if (n->bridge)
		TRY(write_bridge(w, n));
	return n->vlan ? write_vlan(w, n) : NULL;
}

/* Nothing was asked for: every device by itself. */
static struct error *write_default(const struct writer *w)
{
	static const struct hostconfig_network each;
	struct file f;

	TRY(file_new(&f, "each", "network"));
	fputs("[Match]\nType=ether\nKind=!*\n\n[Network]\n", f.out);
	write_addresses(f.out, &each, w->config->time_servers.count > 0);
	return file_done(&f, w->folder);
}

struct error *networkd_write(const struct hostconfig *config, int folder)
{
	struct writer w = {.config = config, .folder = folder};

	TRY(remove_old(folder));
	for (size_t i = 0; i < config->network_count; i++)
		TRY(write_network(&w, &config->networks[i]));
	return config->network_count ? NULL : write_default(&w);
}
