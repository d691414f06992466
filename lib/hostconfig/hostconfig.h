/*
 * host.toml: what a person asks of a host before it has a network (docs/host-config.md has every key).
 *
 * hostconfig_read() turns the text into a struct, or into all that is wrong with it, each with its place. The text is
 * not trusted. Nothing is touched: no file, no network; whether a device is there is for the host to say.
 */
#ifndef GLINT_HOSTCONFIG_HOSTCONFIG_H
#define GLINT_HOSTCONFIG_HOSTCONFIG_H

#include "base/error.h"

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#define HOSTCONFIG_TEXT_MAX     ((size_t)64 << 10) /* bytes of a file */
#define HOSTCONFIG_PROBLEMS_MAX 32
#define HOSTCONFIG_LIST_MAX     8 /* entries of a list, networks */
#define HOSTCONFIG_POOLS_MAX    32
#define HOSTCONFIG_ADMINS_MAX   32

struct hostconfig_problem {
	unsigned line, column; /* from 1; a column is a character; 0: the file as a whole */
	char message[200];     /* one printable line of UTF-8 */
	char hint[200];        /* what to do about it; may be empty */
};

struct hostconfig_problems {
	struct hostconfig_problem list[HOSTCONFIG_PROBLEMS_MAX];
	size_t count;
	size_t more; /* that had no room in the list */
};

/* Texts are NUL-terminated and belong to the configuration. */
struct hostconfig_texts {
	const char *list[HOSTCONFIG_LIST_MAX];
	unsigned lines[HOSTCONFIG_LIST_MAX];
	size_t count;
};

struct hostconfig_address {
	int family; /* AF_INET or AF_INET6 */
	uint8_t bytes[16];
	unsigned prefix; /* bits; of a gateway or a server all */
	char text[INET6_ADDRSTRLEN];
};

struct hostconfig_addresses {
	struct hostconfig_address list[HOSTCONFIG_LIST_MAX];
	size_t count;
};

/* How a network gets its addresses. AUTOMATIC: DHCP; for IPv6 what the router says, DHCPv6 included. */
enum hostconfig_method { HOSTCONFIG_AUTOMATIC, HOSTCONFIG_STATIC, HOSTCONFIG_NONE };

struct hostconfig_ip {
	enum hostconfig_method method;
	struct hostconfig_addresses addresses; /* with STATIC */
};

struct hostconfig_network {
	const char *name; /* also that of the bridge; at most 10 characters */
	unsigned line;
	struct hostconfig_texts devices; /* MAC addresses, or names with the wildcards of a shell; empty with .on */
	bool first;                      /* any device, the first that has a carrier */
	const char *on;                  /* another network whose devices it shares, by a VLAN; or NULL */
	const struct hostconfig_network *base; /* that network */
	const char *bond;                      /* mode, as Linux names it; NULL: one device, no bond */
	bool bridge;                           /* for virtual machines */
	unsigned vlan, mtu;                    /* 0: none, the device's own */
	struct hostconfig_ip ipv4, ipv6;
	struct hostconfig_addresses gateways, dns;
	struct hostconfig_texts search;
};

struct hostconfig_admin {
	const char *name;
	struct hostconfig_texts keys; /* public keys, a line each, as OpenSSH writes them */
};

/* A definition only: what it means is for who opens pools to say. */
struct hostconfig_pool {
	const char *name, *kind, *source;
};

struct hostconfig {
	const char *name; /* of the host, RFC 1123; NULL: not given */
	struct hostconfig_texts time_servers;
	struct hostconfig_network networks[HOSTCONFIG_LIST_MAX]; /* none: DHCP on every device */
	size_t network_count;
	struct hostconfig_admin admins[HOSTCONFIG_ADMINS_MAX];
	size_t admin_count;
	struct hostconfig_pool pools[HOSTCONFIG_POOLS_MAX];
	size_t pool_count;
	void *document; /* what the texts lie in */
};

/*
 * Reads @len bytes of @text. On success *out is the configuration, the caller's to free, or NULL where @problems, which
 * is emptied first, has any. Errors: only ENOMEM.
 */
[[nodiscard]] struct error *hostconfig_read(const char *text, size_t len, struct hostconfig **out,
					    struct hostconfig_problems *problems);
void hostconfig_free(struct hostconfig *config);

/* Whether @device is a MAC address; else it is a name. */
bool hostconfig_is_mac(const char *device);

/* A name of a host by RFC 1123: one label, letters, digits and hyphens. */
bool hostconfig_is_host_name(const char *name);

#endif
