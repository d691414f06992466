/*
 * Network devices that the host's own disk is reached over, by the firmware's iSCSI Boot Firmware Table; see config.h.
 * The kernel shows it in /sys/firmware/ibft, one folder for each device (Documentation/ABI/testing/sysfs-ibft). It
 * reads that, and writes into the folder of systemd-networkd.
 */
#include "node/config/config.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define DEVICES_MAX 4u

/* A value of device @i, "" where the firmware says nothing. */
static void read_value(const char *ibft, unsigned i, const char *name, char value[64])
{
	char path[300];

	value[0] = '\0';
	if (snprintf(path, sizeof(path), "%s/ethernet%u/%s", ibft, i, name) >= (int)sizeof(path))
		return;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, value, 63);
	value[MAX(n, 0)] = '\0';
	value[strcspn(value, "\n")] = '\0';
}

static bool is_address(const char *text)
{
	uint8_t bytes[16];

	return inet_pton(AF_INET, text, bytes) == 1 || inet_pton(AF_INET6, text, bytes) == 1;
}

static struct error *write_device(const char *ibft, unsigned i, const char *mac, int folder)
{
	static const char *const servers[] = {"primary-dns", "secondary-dns"};
	char name[48], text[768], value[64];

	/* The address comes from iscsistart, and stays whatever happens; a lease must be renewed. */
	read_value(ibft, i, "dhcp", value);
	bool dhcp = is_address(value);
	size_t n = (size_t)snprintf(text, sizeof(text),
				    "[Match]\nPermanentMACAddress=%.17s\nKind=!*\n\n[Network]\nDHCP=%s\n"
				    "KeepConfiguration=yes\nLLMNR=no\nMulticastDNS=no\n",
				    mac, dhcp ? "ipv4" : "no");
	for (size_t j = 0; j < ARRAY_SIZE(servers) && !dhcp; j++) {
		read_value(ibft, i, servers[j], value);
		if (is_address(value))
			n += (size_t)snprintf(text + n, sizeof(text) - n, "DNS=%s\n", value);
	}
	n += (size_t)snprintf(text + n, sizeof(text) - n, "\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\n");
	/* Before those of host.toml: the first that matches a device is its. */
	snprintf(name, sizeof(name), "05-glint-iscsi%u.network", i);
	return put_file(folder, name, text, n, 0644);
}

struct error *ibft_write(const char *ibft, int folder, unsigned *count)
{
	char mac[64];

	*count = 0;
	for (unsigned i = 0; i < DEVICES_MAX; i++) {
		read_value(ibft, i, "mac", mac);
		if (!hostconfig_is_mac(mac))
			continue;
		TRY(write_device(ibft, i, mac, folder));
		(*count)++;
	}
	return NULL;
}
