/*
 * --net: the options of a network interface, and the opening of what they name.
 *
 * Touches: before the guest runs /dev/net/tun, /dev/vhost-net, passt's socket; later the descriptors of an interface
 * that is added.
 */
#include "vmm/machine/config.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define AT(member) offsetof(struct net_options, member)

/* "02:00:00:12:34:56"; that of one interface, so its lowest bit is clear, and not all zeros. */
static struct error *set_mac(const char *what, const char *text, void *object)
{
	struct net_options *net = object;
	const char *p = text;

	for (unsigned i = 0; i < NET_MAC_BYTES; i++) {
		char *end;
		unsigned long byte = isxdigit((unsigned char)*p) ? strtoul(p, &end, 16) : 256;
		if (byte > 255 || end - p > 2 || *end != (i + 1 < NET_MAC_BYTES ? ':' : '\0'))
			return error_hint(error_new(EINVAL, "%s: '%s' is not an Ethernet address", what, text),
					  "write six bytes: 02:00:00:12:34:56");
		net->device.mac[i] = (uint8_t)byte;
		p = end + 1;
	}
	static const uint8_t none[NET_MAC_BYTES];
	if (net->device.mac[0] & 1 || memcmp(net->device.mac, none, sizeof(none)) == 0)
		return error_hint(error_new(EINVAL, "%s: %s is not the address of one interface", what, text),
				  "the first byte is even; 02 stands for addresses that nobody sells");
	return NULL;
}

static bool is_descriptors(const char *text)
{
	return strncmp(text, "fd=", 3) == 0;
}

static struct error *set_id(const char *what, const char *text, void *object)
{
	struct net_options *net = object;

	return config_set_id(what, text, net->id);
}

static const struct option_choice up_or_down[] = {{"up", 0}, {"down", 1}, {NULL}};

static const struct option fields[] = {
	{"tap", OPTION_TEXT, AT(tap), .aka = "ifname", .min = 1, .value = "NAME|fd=N[:fd=N...]",
	 .help = "a tap: the interface of this name, made if it is not there; or descriptors of its queues"},
	{"passt", OPTION_TEXT, AT(passt), .aka = "stream socket", .min = 1, .value = "PATH|fd=N",
	 .help = "networking without privileges by passt, which listens at PATH; or a connected socket"},
	{"vhost", OPTION_TEXT, AT(vhost), .aka = "vhostfd", .min = 1, .value = "on|off|fd=N[:fd=N...]",
	 .help = "the kernel carries a tap's frames (default: where /dev/vhost-net can be opened)"},
	{"mac", OPTION_OWN, .own = set_mac, .value = "ADDRESS",
	 .help = "what the guest's interface is called (default: a new one, kept in saved states)"},
	{"queues", OPTION_NUMBER, AT(device.pairs), .min = 1, .max = NET_PAIRS_MAX,
	 .help = "pairs of queues of a tap, 1 to 8 (default: 1)"},
	{"id", OPTION_OWN, .own = set_id, .value = "NAME", .help = "its name (default: netN)"},
	{"mtu", OPTION_NUMBER, AT(mtu), .aka = "host_mtu", .min = NET_MTU_MIN, .max = NET_MTU_MAX,
	 .help = "the largest packet, as the guest is told (default: it decides)"},
	{"link", OPTION_CHOICE, AT(down), .choices = up_or_down, .help = "whether the cable is in (default: up)"},
	{"port", OPTION_NUMBER, AT(port), .min = 1, .max = PCI_PORTS,
	 .help = "the hot-plug port that it is in (default: a slot of its own)"},
	{NULL},
};

static void begin(const void *object, void *element, unsigned index)
{
	struct net_options *net = element;

	(void)object;
	*net = (struct net_options){.device.pairs = 1};
	memset(net->device.fd, 0xff, sizeof(net->device.fd));
	memset(net->device.vhost_fd, 0xff, sizeof(net->device.vhost_fd));
	snprintf(net->id, sizeof(net->id), "net%u", index);
	/* Locally administered, of one interface. Fails only before the host's pool is seeded. */
	if (getrandom(net->device.mac, NET_MAC_BYTES, 0) != NET_MAC_BYTES)
		net->device.mac[NET_MAC_BYTES - 1] = (uint8_t)index;
	net->device.mac[0] = 0x02;
}

static struct error *check(const char *what, const void *object, const void *element, unsigned index)
{
	const struct vm_config *config = object;
	const struct net_options *net = element;

	if (!net->tap == !net->passt)
		return error_hint(error_new(EINVAL, "%s: %s", what, net->tap ? "both tap and passt" : "no host's end"),
				  "write %s tap=NAME or %s passt=PATH", what, what);
	if (net->passt && (net->vhost || net->device.pairs > 1))
		return error_new(EINVAL, "%s: vhost and queues are for taps", what);
	if (net->vhost && strcmp(net->vhost, "on") != 0 && strcmp(net->vhost, "off") != 0 &&
	    !is_descriptors(net->vhost))
		return error_hint(error_new(EINVAL, "%s: vhost=%s", what, net->vhost), "write on, off or fd=N");
	for (unsigned i = 0; i < index; i++)
		if (strcmp(config->net[i].id, net->id) == 0)
			return error_hint(error_new(EEXIST, "%s: two interfaces have the id '%s'", what, net->id),
					  "give each an id=NAME of its own");
	return NULL;
}

const struct option_group net_group = {
	.fields = fields,
	.bytes = sizeof(struct net_options),
	.count_offset = offsetof(struct vm_config, nets),
	.most = MACHINE_NETS_MAX,
	.begin = begin,
	.check = check,
};

/* --- opening --- */

/* "fd=3:fd=4": as many as there are pairs. */
static struct error *take_descriptors(const char *text, const char *what, unsigned pairs, int *fds)
{
	char word[32];

	for (unsigned i = 0; i < pairs; i++) {
		size_t len = strcspn(text, ":");
		if (len == 0 || len >= sizeof(word))
			return error_hint(error_new(EINVAL, "%s: %u descriptors, not %u", what, i, pairs),
					  "there is one for each pair of queues: fd=N:fd=N");
		memcpy(word, text, len);
		word[len] = '\0';
		TRY(option_descriptor(word, what, &fds[i]));
		text += len + (text[len] == ':');
	}
	return *text ? error_new(EINVAL, "%s: more than %u descriptors", what, pairs) : NULL;
}

static struct error *open_tap(struct net_options *net)
{
	struct net_config *device = &net->device;

	if (!is_descriptors(net->tap))
		return net_tap_open(net->tap, device->pairs, device->fd);
	TRY(take_descriptors(net->tap, "tap", device->pairs, device->fd));
	for (unsigned i = 0; i < device->pairs; i++)
		TRY(net_tap_check(device->fd[i]));
	return NULL;
}

static struct error *open_vhost(struct net_options *net)
{
	struct net_config *device = &net->device;

	if (!net->vhost)
		return access("/dev/vhost-net", R_OK | W_OK) == 0 ? net_vhost_open(device->pairs, device->vhost_fd)
								  : NULL;
	if (strcmp(net->vhost, "off") == 0)
		return NULL;
	if (is_descriptors(net->vhost))
		return take_descriptors(net->vhost, "vhost", device->pairs, device->vhost_fd);
	return net_vhost_open(device->pairs, device->vhost_fd);
}

static struct error *open_net(struct net_options *net)
{
	struct net_config *device = &net->device;

	device->name = net->id;
	device->mtu = (uint16_t)net->mtu;
	device->link_down = net->down;
	if (net->tap) {
		device->kind = NET_TAP;
		TRY(open_tap(net));
		return open_vhost(net);
	}
	device->kind = NET_PASST;
	if (is_descriptors(net->passt)) {
		TRY(option_descriptor(net->passt, "passt", &device->fd[0]));
		return net_passt_check(device->fd[0]);
	}
	return net_passt_connect(net->passt, &device->fd[0]);
}

struct error *config_open_nets(struct vm_config *config)
{
	for (unsigned i = 0; i < config->nets; i++)
		TRY(error_wrap(open_net(&config->net[i]), "--net: %s", config->net[i].id));
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (config->plugged[i].kind == CARD_NET)
			TRY(error_wrap(open_net(&config->plugged[i].net), "--net: %s", config->plugged[i].net.id));
	return NULL;
}

void config_close_net(struct net_options *net)
{
	for (unsigned pair = 0; pair < NET_PAIRS_MAX; pair++) {
		close_fd(&net->device.fd[pair]);
		close_fd(&net->device.vhost_fd[pair]);
	}
}

void config_release_nets(struct vm_config *config)
{
	for (unsigned i = 0; i < config->nets; i++)
		config_close_net(&config->net[i]);
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (config->plugged[i].kind == CARD_NET)
			config_close_net(&config->plugged[i].net);
}

/* --- one that is added --- */

static struct error *check_added(const int *fds, unsigned count, struct net_options *net)
{
	struct net_config *device = &net->device;
	struct stat st;

	if (count > 0 && fstat(fds[0], &st) == 0 && S_ISSOCK(st.st_mode)) {
		device->kind = NET_PASST;
		if (count != 1 || device->pairs != 1)
			return error_new(EINVAL, "passt has one socket and one pair of queues");
		return net_passt_check(fds[0]);
	}
	device->kind = NET_TAP;
	if (count != device->pairs && count != 2 * device->pairs)
		return error_hint(error_new(EINVAL, "%u descriptors came along", count),
				  "pass a tap's %u queues (and /dev/vhost-net as often), or passt's socket",
				  device->pairs);
	for (unsigned i = 0; i < device->pairs; i++)
		TRY(net_tap_check(fds[i])); /* the others are checked by net_new() */
	return NULL;
}

struct error *config_net(const json_t *json, const int *fds, unsigned count, struct net_options *net)
{
	begin(NULL, net, 0);
	net->id[0] = '\0';
	TRY(option_json(fields, "net", json, net));
	if (net->tap || net->passt || net->vhost)
		return error_hint(error_new(EINVAL, "tap, passt and vhost are not for an interface that is added"),
				  "pass its descriptors");
	if (net->id[0] == '\0')
		return error_new(EINVAL, "the interface needs an id");
	TRY(check_added(fds, count, net));
	net->device.mtu = (uint16_t)net->mtu;
	net->device.link_down = net->down;
	return NULL;
}
