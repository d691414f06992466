/*
 * The ATAPI commands that do something, and the order in which a drive speaks of what happened to it (MMC-5; SPC-3 for
 * sense and unit attention): first that the medium changed or that it was reset, once, to whoever asks for anything
 * else; then whether there is a medium; then the command.
 *
 * The CDB is a copy that the guest cannot change. Touches the port's buffer and state only: port.c moves the data.
 */
#include "vmm/ahci/internal.h"

#include <string.h>

enum { NOT_READY = 2, ILLEGAL_REQUEST = 5, UNIT_ATTENTION = 6 };

bool ahci_refuse(struct ahci_packet *k, uint8_t key, uint8_t asc, uint8_t ascq)
{
	k->port->sense = (struct ahci_sense){key, asc, ascq};
	return false;
}

bool ahci_bad_field(struct ahci_packet *k)
{
	return ahci_refuse(k, ILLEGAL_REQUEST, 0x24, 0x00);
}

uint32_t ahci_blocks(const struct ahci_port *p)
{
	if (!p->medium || p->tray_open)
		return 0;
	return (uint32_t)MIN(drive_size(p->medium) / AHCI_BLOCK, (uint64_t)UINT32_MAX);
}

static void tell(const struct ahci_port *p)
{
	if (p->ahci->config.changed)
		p->ahci->config.changed(p->ahci->config.arg);
}

/* --- the commands --- */

static bool nothing(struct ahci_packet *)
{
	return true;
}

/* What was owed is told here, too, if nobody was refused for it. */
static bool request_sense(struct ahci_packet *k)
{
	struct ahci_port *p = k->port;
	struct ahci_sense sense = p->sense;

	if (sense.key == 0 && p->attention.key) {
		sense = p->attention;
		p->attention = (struct ahci_sense){};
	}
	k->answer[0] = 0x70;
	k->answer[2] = sense.key;
	k->answer[7] = 10;
	k->answer[12] = sense.asc;
	k->answer[13] = sense.ascq;
	k->len = 18;
	return true;
}

static bool read_capacity(struct ahci_packet *k)
{
	ahci_put_be(k->answer, ahci_blocks(k->port) - 1, 4);
	ahci_put_be(k->answer + 4, AHCI_BLOCK, 4);
	k->len = 8;
	return true;
}

static bool set_range(struct ahci_packet *k, uint32_t block, uint32_t count)
{
	if (!range_inside(block, count, ahci_blocks(k->port)))
		return ahci_refuse(k, ILLEGAL_REQUEST, 0x21, 0x00);
	k->block = block;
	k->count = count;
	return true;
}

static bool seek(struct ahci_packet *k)
{
	bool good = set_range(k, ahci_get_be(k->cdb + 2, 4), 1);

	k->count = 0;
	return good;
}

static bool read_10(struct ahci_packet *k)
{
	return set_range(k, ahci_get_be(k->cdb + 2, 4), ahci_get_be(k->cdb + 7, 2));
}

static bool read_12(struct ahci_packet *k)
{
	return set_range(k, ahci_get_be(k->cdb + 2, 4), ahci_get_be(k->cdb + 6, 4));
}

/* Of a block's parts there is the data alone. */
static bool read_cd(struct ahci_packet *k)
{
	uint32_t count = ahci_get_be(k->cdb + 6, 3);

	if ((k->cdb[9] & 0xf8) == 0)
		count = 0;
	else if ((k->cdb[9] & 0xf8) != 0x10)
		return ahci_bad_field(k);
	return set_range(k, ahci_get_be(k->cdb + 2, 4), count);
}

static bool prevent_removal(struct ahci_packet *k)
{
	k->port->locked = k->cdb[4] & 1;
	tell(k->port);
	return true;
}

static void close_tray(struct ahci_port *p)
{
	if (!p->tray_open)
		return;
	p->tray_open = false;
	if (p->medium) {
		p->event = AHCI_EVENT_NEW;
		p->attention = (struct ahci_sense){UNIT_ATTENTION, 0x28, 0x00};
	}
}

static bool start_stop(struct ahci_packet *k)
{
	struct ahci_port *p = k->port;
	bool load_eject = k->cdb[4] & 2, start = k->cdb[4] & 1;

	if (!load_eject || k->cdb[4] >> 4)
		return true; /* spinning and power conditions: nothing spins */
	if (start) {
		close_tray(p);
	} else {
		if (p->locked)
			return ahci_refuse(k, ILLEGAL_REQUEST, 0x53, 0x02);
		if (!p->tray_open)
			p->event = AHCI_EVENT_REMOVED;
		p->tray_open = true;
	}
	tell(p);
	return true;
}

/* 6.6: polled, and of the classes there is the media's. */
static bool event_status(struct ahci_packet *k)
{
	struct ahci_port *p = k->port;

	if (!(k->cdb[1] & 1))
		return ahci_bad_field(k);
	k->answer[3] = 0x10;
	if (!(k->cdb[4] & 0x10)) {
		ahci_put_be(k->answer, 2, 2);
		k->answer[2] = 0x80;
		k->len = 4;
		return true;
	}
	ahci_put_be(k->answer, 6, 2);
	k->answer[2] = 4;
	k->answer[4] = p->event;
	k->answer[5] = (uint8_t)(p->tray_open | (p->medium != NULL) << 1);
	k->len = 8;
	p->event = AHCI_EVENT_NONE;
	return true;
}

static bool mechanism_status(struct ahci_packet *k)
{
	k->answer[1] = (uint8_t)(k->port->tray_open << 4);
	k->answer[5] = 1;
	k->len = 8;
	return true;
}

/* --- which is which --- */

enum { ANY_TIME = 1 /* also when something is owed */, MEDIUM = 2 /* not without */ };

static const struct packet_kind {
	uint8_t opcode, flags;
	uint8_t limit, limit_bytes; /* where the CDB says how long the answer may be */
	bool (*serve)(struct ahci_packet *k);
} kinds[] = {
	{0x00, MEDIUM, 0, 0, nothing}, /* TEST UNIT READY */
	{0x03, ANY_TIME, 4, 1, request_sense},
	{0x12, ANY_TIME, 3, 2, ahci_inquiry},
	{0x1b, 0, 0, 0, start_stop},
	{0x1e, 0, 0, 0, prevent_removal},
	{0x25, MEDIUM, 0, 0, read_capacity},
	{0x28, MEDIUM, 0, 0, read_10},
	{0x2b, MEDIUM, 0, 0, seek},
	{0x43, MEDIUM, 7, 2, ahci_read_toc},
	{0x46, ANY_TIME, 7, 2, ahci_configuration},
	{0x4a, ANY_TIME, 7, 2, event_status},
	{0x51, MEDIUM, 7, 2, ahci_disc_information},
	{0x5a, 0, 7, 2, ahci_mode_sense},
	{0xa8, MEDIUM, 0, 0, read_12},
	{0xbb, 0, 0, 0, nothing}, /* SET CD SPEED */
	{0xbd, 0, 8, 2, mechanism_status},
	{0xbe, MEDIUM, 0, 0, read_cd},
};

static const struct packet_kind *find(uint8_t opcode)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (kinds[i].opcode == opcode)
			return &kinds[i];
	return NULL;
}

bool ahci_packet(struct ahci_packet *k)
{
	struct ahci_port *p = k->port;
	const struct packet_kind *kind = find(k->cdb[0]);
	unsigned flags = kind ? kind->flags : 0;

	if (!kind || kind->serve != request_sense)
		p->sense = (struct ahci_sense){};
	if (p->attention.key && !(flags & ANY_TIME)) {
		p->sense = p->attention;
		p->attention = (struct ahci_sense){};
		return false;
	}
	if (!kind)
		return ahci_refuse(k, ILLEGAL_REQUEST, 0x20, 0x00);
	if (flags & MEDIUM && ahci_blocks(p) == 0)
		return ahci_refuse(k, NOT_READY, 0x3a, p->tray_open ? 0x02 : 0x01);
	memset(k->answer, 0, AHCI_ANSWER_MAX);
	if (!kind->serve(k))
		return false;
	if (kind->serve == request_sense)
		p->sense = (struct ahci_sense){};
	if (kind->limit)
		k->len = MIN(k->len, ahci_get_be(k->cdb + kind->limit, kind->limit_bytes));
	return true;
}
