/*
 * The definition of a carried guest; see guest.h. Touches nothing.
 */
#include "stick/guest.h"

#include "base/util.h"
#include "saved/crc32c.h"

#include <endian.h>
#include <stddef.h>
#include <string.h>

#define AUTOSTART 1u
#define PERSIST   2u
#define CONSOLE   4u

struct tail {
	char signature[16];
	uint32_t crc; /* of what follows */
	uint32_t cpus;
	uint64_t memory, image;
	uint32_t flags;
	char name[GUEST_NAME_MAX];
} __attribute__((packed));

#define CRC_FROM offsetof(struct tail, cpus)

static const char signature[16] = "glint-guest-1";

static uint32_t crc_of(const uint8_t *bytes)
{
	return crc32c(0, bytes + CRC_FROM, GUEST_TAIL - CRC_FROM);
}

bool guest_name_good(const char *name)
{
	size_t len = strlen(name);
	static const char inner[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

	return len > 0 && len <= GUEST_NAME_MAX && strspn(name, inner) == len && name[0] != '-' && name[0] != '_';
}

void guest_write(const struct guest *guest, uint8_t bytes[GUEST_TAIL])
{
	struct tail t = {
		.cpus = htole32(guest->cpus),
		.memory = htole64(guest->memory),
		.image = htole64(guest->image),
		.flags = htole32((guest->autostart ? AUTOSTART : 0) | (guest->persist ? PERSIST : 0) |
				 (guest->console ? CONSOLE : 0)),
	};

	memcpy(t.signature, signature, sizeof(signature));
	memcpy(t.name, guest->name, strlen(guest->name));
	memset(bytes, 0, GUEST_TAIL);
	memcpy(bytes, &t, sizeof(t));
	t.crc = htole32(crc_of(bytes));
	memcpy(bytes, &t, sizeof(t));
}

struct error *guest_read(struct guest *guest, const uint8_t bytes[GUEST_TAIL], uint64_t len, const char *what)
{
	struct tail t;

	memcpy(&t, bytes, sizeof(t));
	if (memcmp(t.signature, signature, sizeof(signature)) != 0 || le32toh(t.crc) != crc_of(bytes))
		return error_new(0, "%s: the guest's definition is damaged", what);
	*guest = (struct guest){
		.memory = le64toh(t.memory),
		.cpus = le32toh(t.cpus),
		.autostart = le32toh(t.flags) & AUTOSTART,
		.persist = le32toh(t.flags) & PERSIST,
		.console = le32toh(t.flags) & CONSOLE,
		.image = le64toh(t.image),
	};
	memcpy(guest->name, t.name, GUEST_NAME_MAX);
	/* The checksum is no seal: anybody can make a right one. */
	if (!guest_name_good(guest->name) || guest->cpus < 1 || guest->cpus > GUEST_CPUS_MAX ||
	    !is_aligned(guest->memory, MIB) || guest->memory < MIB || guest->memory > 4 * TIB || len < GUEST_TAIL ||
	    guest->image > len - GUEST_TAIL)
		return error_new(0, "%s: the guest's definition makes no sense", what);
	return NULL;
}
