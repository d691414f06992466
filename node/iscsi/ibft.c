/* Checking and reading the table; see ibft.h. It touches nothing but the bytes it is given. */
#include "node/iscsi/ibft.h"

#include "base/util.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* What a part says it is. */
enum { CONTROL = 1, INITIATOR, NIC, TARGET };

/* Bytes of the table's head, of each part with its own head, and of that head. */
#define TABLE_HEAD    48u
#define CONTROL_LEN   18u
#define INITIATOR_LEN 74u
#define NIC_LEN       102u
#define TARGET_LEN    54u

/* Where the control part points to the others; then come those that nobody uses. */
#define TO_INITIATOR 8u
#define TO_NIC_0     10u
#define TO_TARGET_0  12u
#define TO_NIC_1     14u
#define TO_TARGET_1  16u

#define IN_USE   1u /* of a part's flags: it is valid; or: booted from */
#define BOOTED   2u
#define TEXT_MAX 255u /* for names and secrets of CHAP, as open-iscsi has room for */

struct table {
	const uint8_t *bytes;
	size_t len;
};

static uint16_t get_16(const uint8_t *at)
{
	return (uint16_t)(at[0] | at[1] << 8);
}

/* --- parts --- */

/* The part that the control part's field @pointer points to. NULL where it points nowhere. */
static struct error *find_part(const struct table *t, const uint8_t *control, unsigned pointer, uint8_t id, size_t len,
			       const uint8_t **part)
{
	uint16_t at = get_16(control + pointer);

	*part = NULL;
	if (at == 0)
		return NULL;
	if (at < TABLE_HEAD || !range_inside(at, len, t->len))
		return error_new(EBADMSG, "part %u lies outside (at %u)", id, at);
	if (t->bytes[at] != id || get_16(t->bytes + at + 2) != len)
		return error_new(EBADMSG, "part %u is none (it says %u, of %u bytes)", id, t->bytes[at],
				 get_16(t->bytes + at + 2));
	*part = t->bytes + at;
	return NULL;
}

/* The text whose length and offset are at @field. Not ended by NUL. */
static struct error *find_text(const struct table *t, const uint8_t *field, const char *what, size_t most,
			       const char **text, size_t *len)
{
	uint16_t at = get_16(field + 2);

	*len = get_16(field);
	*text = "";
	if (*len == 0)
		return NULL;
	if (*len > most || at < TABLE_HEAD || !range_inside(at, *len, t->len))
		return error_new(EBADMSG, "%s is too long or lies outside (%zu bytes at %u)", what, *len, at);
	*text = (const char *)t->bytes + at;
	for (size_t i = 0; i < *len; i++)
		if (!isprint((unsigned char)(*text)[i]))
			return error_new(EBADMSG, "%s is no text", what);
	return NULL;
}

static struct error *check_text(const struct table *t, const uint8_t *field, const char *what)
{
	const char *text;
	size_t len;

	return find_text(t, field, what, TEXT_MAX, &text, &len);
}

/* iqn., eui. or naa., and what RFC 3722 leaves of ASCII. */
static struct error *read_name(const struct table *t, const uint8_t *field, const char *what,
			       char name[ISCSI_NAME_MAX + 1])
{
	static const char *const kinds[] = {"iqn.", "eui.", "naa."};
	const char *text;
	bool good = false;
	size_t len;

	TRY(find_text(t, field, what, ISCSI_NAME_MAX, &text, &len));
	memcpy(name, text, len);
	name[len] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		good |= strncmp(name, kinds[i], 4) == 0;
	for (size_t i = 0; i < len; i++)
		good &= isalnum((unsigned char)name[i]) || strchr(".:-_", name[i]);
	return good ? NULL : error_new(EBADMSG, "%s '%s' is no iSCSI name", what, name);
}

/* IPv4 comes as ::ffff:a.b.c.d. */
static struct error *read_address(const uint8_t bytes[16], char text[INET6_ADDRSTRLEN])
{
	struct in6_addr in6;

	memcpy(&in6, bytes, sizeof(in6));
	bool mapped = IN6_IS_ADDR_V4MAPPED(&in6);
	uint8_t first = mapped ? bytes[12] : 1;
	/* Nobody, this network, the host itself, or many. */
	if (IN6_IS_ADDR_UNSPECIFIED(&in6) || IN6_IS_ADDR_LOOPBACK(&in6) || IN6_IS_ADDR_MULTICAST(&in6) || first == 0 ||
	    first == 127 || first >= 224)
		return error_new(EBADMSG, "the target's address is no host's");
	inet_ntop(mapped ? AF_INET : AF_INET6, mapped ? bytes + 12 : bytes, text, INET6_ADDRSTRLEN);
	return NULL;
}

/* --- each kind --- */

static struct error *check_nic(const struct table *t, const uint8_t *nic)
{
	return nic ? check_text(t, nic + 98, "the host's name") : NULL;
}

static struct error *check_target(const struct table *t, const uint8_t *target)
{
	static const char *const texts[] = {"the CHAP name", "the CHAP secret", "the reverse CHAP name",
					    "the reverse CHAP secret"};
	char name[ISCSI_NAME_MAX + 1];

	if (!target)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		TRY(check_text(t, target + 38 + 4 * i, texts[i]));
	return target[5] & (IN_USE | BOOTED) ? read_name(t, target + 34, "the target", name)
					     : check_text(t, target + 34, "the target");
}

static struct error *read_target(const struct table *t, const uint8_t *target, const uint8_t *const nics[2],
				 struct ibft *ibft)
{
	static const uint8_t no_mac[6];

	TRY(read_name(t, target + 34, "the target", ibft->target));
	TRY(read_address(target + 6, ibft->address));
	ibft->port = get_16(target + 22);
	if (ibft->port == 0)
		return error_new(EBADMSG, "the target has no port");
	for (unsigned i = 0; i < 2; i++) {
		const uint8_t *mac = nics[i] ? nics[i] + 90 : no_mac;
		if (!nics[i] || nics[i][4] != target[33] || memcmp(mac, no_mac, 6) == 0 || mac[0] & 1)
			continue;
		snprintf(ibft->mac, sizeof(ibft->mac), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
			 mac[4], mac[5]);
		return NULL;
	}
	return error_new(EBADMSG, "the target's network device %u is not there", target[33]);
}

static struct error *read_parts(const struct table *t, const uint8_t *control, struct ibft *ibft)
{
	const uint8_t *initiator, *nics[2], *targets[2], *booted = NULL;

	TRY(find_part(t, control, TO_INITIATOR, INITIATOR, INITIATOR_LEN, &initiator));
	TRY(find_part(t, control, TO_NIC_0, NIC, NIC_LEN, &nics[0]));
	TRY(find_part(t, control, TO_NIC_1, NIC, NIC_LEN, &nics[1]));
	TRY(find_part(t, control, TO_TARGET_0, TARGET, TARGET_LEN, &targets[0]));
	TRY(find_part(t, control, TO_TARGET_1, TARGET, TARGET_LEN, &targets[1]));
	if (!initiator)
		return error_new(EBADMSG, "no initiator is there");
	TRY(read_name(t, initiator + 70, "the initiator", ibft->initiator));
	for (unsigned i = 0; i < 2; i++) {
		TRY(check_nic(t, nics[i]));
		TRY(check_target(t, targets[i]));
		if (!booted && targets[i] && targets[i][5] & BOOTED)
			booted = targets[i];
	}
	return booted ? read_target(t, booted, nics, ibft) : error_new(EBADMSG, "no target was booted from");
}

struct error *ibft_read(const uint8_t *table, size_t len, struct ibft *ibft)
{
	const struct table t = {table, len};
	uint8_t sum = 0;

	*ibft = (struct ibft){};
	if (len < TABLE_HEAD + CONTROL_LEN || len > IBFT_BYTES_MAX || memcmp(table, "iBFT", 4) != 0)
		return error_new(EBADMSG, "it is no iBFT (%zu bytes)", len);
	if ((get_16(table + 4) | (uint32_t)get_16(table + 6) << 16) != len)
		return error_new(EBADMSG, "it is cut off");
	for (size_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + table[i]);
	if (sum != 0)
		return error_new(EBADMSG, "its checksum is wrong");
	const uint8_t *control = table + TABLE_HEAD;
	uint16_t control_len = get_16(control + 2);
	/* The driver goes by this length; pointers behind those that are known here would lead it to what was not
	 * looked at. */
	if (control[0] != CONTROL || control_len != CONTROL_LEN)
		return error_new(EBADMSG, "its control part is of another form (%u bytes)", control_len);
	return read_parts(&t, control, ibft);
}
