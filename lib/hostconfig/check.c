/*
 * What single values must look like; see check.h. Pure functions.
 */
#include "hostconfig/check.h"

#include "base/util.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>

/* --- names --- */

/* The length of the label at @c, 0 where there is none that RFC 1123 allows. */
static size_t label_length(const char *c)
{
	size_t n = 0;

	while (isalnum((unsigned char)c[n]) || c[n] == '-')
		n++;
	return n > 63 || n == 0 || c[0] == '-' || c[n - 1] == '-' ? 0 : n;
}

bool hostconfig_is_host_name(const char *name)
{
	size_t n = label_length(name);

	return n > 0 && name[n] == '\0';
}

const char *check_host_name(const char *text)
{
	if (strchr(text, '.'))
		return "is more than the host's own name: leave its domain out";
	return hostconfig_is_host_name(text)
		       ? NULL
		       : "is no name of a host: up to 63 letters, digits and hyphens, none at an end";
}

const char *check_domain(const char *text)
{
	static const char wrong[] = "is no name: letters, digits and hyphens, with dots between";
	size_t n = 0;

	if (strlen(text) > 253)
		return wrong;
	for (const char *c = text;; c += n + 1) {
		n = label_length(c);
		if (n == 0)
			return wrong;
		if (c[n] == '\0')
			return NULL;
		if (c[n] != '.')
			return wrong;
	}
}

const char *check_name(const char *text)
{
	static const char *const kernel[] = {"eth", "eno", "ens", "enp", "enx",  "wl",
					     "ww",  "usb", "tap", "tun", "veth", "vnet"};
	size_t n = 0;

	while (islower((unsigned char)text[n]) || (n > 0 && (isdigit((unsigned char)text[n]) || text[n] == '-')))
		n++;
	if (n == 0 || n > 10 || text[n])
		return "is no name: up to 10 lower-case letters, digits and hyphens, a letter first";
	if (strcmp(text, "lo") == 0)
		return "is the name of a device of the kernel: choose another";
	for (size_t i = 0; i < ARRAY_SIZE(kernel); i++) {
		size_t len = strlen(kernel[i]);
		if (strncmp(text, kernel[i], len) == 0 && isdigit((unsigned char)text[len]))
			return "looks like the name of a device: choose another";
	}
	return NULL;
}

const char *check_person(const char *text)
{
	size_t n = strlen(text);

	for (const char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return "has characters that cannot be printed";
	return n == 0 || n > 64 ? "must have 1 to 64 characters" : NULL;
}

/* --- devices --- */

bool hostconfig_is_mac(const char *device)
{
	for (unsigned i = 0; i < 17; i++)
		if (i % 3 == 2 ? device[i] != ':' : !isxdigit((unsigned char)device[i]))
			return false;
	return device[17] == '\0';
}

const char *check_device(const char *text)
{
	size_t n = strlen(text);

	if (hostconfig_is_mac(text))
		return strchr("13579bdfBDF", text[1]) ? "is a multicast address, no device's" : NULL;
	if (n == 17 && text[2] == '-')
		return "must be written with colons, as in 52:54:00:12:34:56";
	if (n == 0 || n > 15 ||
	    strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-*?") != n)
		return "is neither a MAC address (52:54:00:12:34:56) nor a device's name (eno1, enp*), nor \"first\"";
	return NULL;
}

const char *check_bond(const char *text)
{
	static const char *const modes[] = {"active-backup", "802.3ad",     "balance-xor", "balance-rr",
					    "balance-tlb",   "balance-alb", "broadcast"};

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		if (strcmp(text, modes[i]) == 0)
			return NULL;
	return "is no mode of a bond: active-backup, 802.3ad, balance-xor, balance-rr, balance-tlb, balance-alb, "
	       "broadcast";
}

/* --- addresses --- */

bool same_network(const struct hostconfig_address *a, const struct hostconfig_address *b, unsigned bits)
{
	if (a->family != b->family || memcmp(a->bytes, b->bytes, bits / 8) != 0)
		return false;
	return bits % 8 == 0 || ((a->bytes[bits / 8] ^ b->bytes[bits / 8]) >> (8 - bits % 8)) == 0;
}

/* Whether every bit behind the prefix is @bit. */
static bool host_part_is(const struct hostconfig_address *address, bool bit)
{
	for (unsigned i = address->prefix; i < (address->family == AF_INET ? 32 : 128); i++)
		if (((address->bytes[i / 8] >> (7 - i % 8)) & 1) != bit)
			return false;
	return true;
}

/* Addresses that no host, router or server has. */
static const char *check_kind(const struct hostconfig_address *address)
{
	static const uint8_t none[16], loopback[16] = {[15] = 1};
	const uint8_t *b = address->bytes;

	if (address->family == AF_INET)
		return b[0] == 0 || b[0] == 127 || b[0] >= 224 ? "is an address that no host can have" : NULL;
	return memcmp(b, none, 16) == 0 || memcmp(b, loopback, 16) == 0 || b[0] == 0xff
		       ? "is an address that no host can have"
		       : NULL;
}

const char *check_address(const char *text, bool with_prefix, struct hostconfig_address *address)
{
	char copy[INET6_ADDRSTRLEN];
	size_t n = strcspn(text, "/");

	*address = (struct hostconfig_address){.family = memchr(text, ':', n) ? AF_INET6 : AF_INET};
	unsigned most = address->family == AF_INET ? 32 : 128;
	address->prefix = most;
	if (n >= sizeof(copy))
		return "is no IP address";
	memcpy(copy, text, n);
	copy[n] = '\0';
	if (inet_pton(address->family, copy, address->bytes) != 1)
		return "is no IP address";
	inet_ntop(address->family, address->bytes, address->text, sizeof(address->text));
	if (!with_prefix)
		return text[n] ? "has a prefix: write the address alone" : check_kind(address);
	if (!text[n])
		return address->family == AF_INET ? "lacks the length of its network's prefix, as in 192.0.2.10/24"
						  : "lacks the length of its network's prefix, as in 2001:db8::10/64";
	uint64_t prefix;
	struct error *err = parse_number(text + n + 1, "prefix", 1, most, &prefix);
	error_free(err);
	if (err)
		return address->family == AF_INET ? "has a prefix that is not between 1 and 32"
						  : "has a prefix that is not between 1 and 128";
	address->prefix = (unsigned)prefix;
	if (prefix + 2 <= most && host_part_is(address, false))
		return "is the network itself, no host in it";
	if (prefix + 2 <= most && address->family == AF_INET && host_part_is(address, true))
		return "is the broadcast address of its network";
	return check_kind(address);
}

/* --- keys of people --- */

static int base64_digit(char c)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *found = c ? strchr(digits, c) : NULL;

	return found ? (int)(found - digits) : -1;
}

/* Decodes @len characters into at most @room bytes; the number there are, or -1. */
static ssize_t base64(const char *text, size_t len, uint8_t *out, size_t room)
{
	size_t bytes = 0;
	unsigned bits = 0, have = 0;

	if (len == 0 || len % 4)
		return -1;
	while (len > 0 && text[len - 1] == '=' && have++ < 2)
		len--;
	have = 0;
	for (size_t i = 0; i < len; i++) {
		int digit = base64_digit(text[i]);
		if (digit < 0)
			return -1;
		bits = (bits << 6 | (unsigned)digit) & 0xffff;
		have += 6;
		if (have < 8)
			continue;
		have -= 8;
		if (bytes < room)
			out[bytes] = (uint8_t)(bits >> have);
		bytes++;
	}
	return (ssize_t)bytes;
}

/* "TYPE BASE64 [comment]": the type stands inside the base64, too (RFC 4253, 6.6). */
const char *check_public_key(const char *text)
{
	static const char *const types[] = {"ssh-ed25519",
					    "ecdsa-sha2-nistp256",
					    "ecdsa-sha2-nistp384",
					    "ecdsa-sha2-nistp521",
					    "ssh-rsa",
					    "sk-ssh-ed25519@openssh.com",
					    "sk-ecdsa-sha2-nistp256@openssh.com"};
	uint8_t start[64];
	size_t type = strcspn(text, " "), i = 0;

	if (strstr(text, "PRIVATE KEY"))
		return "is a private key, which belongs on no stick: give the public one, the line of a .pub file";
	if (strlen(text) > 4096 || strpbrk(text, "\n\r\t"))
		return "is no public key: one line of a .pub file, of at most 4096 characters";
	while (i < ARRAY_SIZE(types) && (strlen(types[i]) != type || strncmp(text, types[i], type) != 0))
		i++;
	if (i == ARRAY_SIZE(types) || !text[type])
		return "is no public key as OpenSSH writes them: ssh-ed25519 AAAA... name";
	const char *data = text + type + 1;
	ssize_t n = base64(data, strcspn(data, " "), start, sizeof(start));
	if (n < (ssize_t)(type + 4 + 32) || start[0] || start[1] || start[2] || start[3] != type ||
	    memcmp(start + 4, text, type) != 0)
		return "is cut short or damaged: copy the whole line of the .pub file";
	return NULL;
}

/* --- pools --- */

const char *check_pool_kind(const char *text)
{
	static const char *const kinds[] = {"folder", "disk", "nfs", "smb", "iscsi"};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strcmp(text, kinds[i]) == 0)
			return NULL;
	return "is no kind of pool: folder, disk, nfs, smb, iscsi";
}

const char *check_source(const char *text)
{
	size_t n = strlen(text);

	for (const char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return "has characters that cannot be printed";
	return n == 0 || n > 1024 ? "must have 1 to 1024 characters" : NULL;
}
