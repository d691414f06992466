/*
 * What a CD drive says of itself and its medium: MMC-5, SPC-3 and, for IDENTIFY PACKET DEVICE, ATA8-ACS. A medium that
 * no CD is large enough for is a DVD. Touches the answer only.
 */
#include "vmm/ahci/internal.h"

#include <stdio.h>
#include <string.h>

#define CD_BLOCKS   (90u * 60 * 75) /* 90 minutes */
#define PROFILE_CD  0x0008
#define PROFILE_DVD 0x0010
#define DATA_TRACK  0x14 /* ADR 1, control 4 */
#define LEAD_OUT    0xaa

/* Text as SCSI and ATA have it: as long as its place, filled with spaces. */
static void put_text(uint8_t *to, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		to[i] = *text ? (uint8_t)*text++ : ' ';
}

/* --- INQUIRY --- */

static bool vital_data(struct ahci_packet *k)
{
	const char *id = k->port->id;

	k->answer[0] = 0x05;
	k->answer[1] = k->cdb[2];
	switch (k->cdb[2]) {
	case 0x00: /* the pages there are */
		k->answer[3] = 2;
		k->answer[5] = 0x80;
		k->len = 6;
		return true;
	case 0x80: /* serial number */
		k->answer[3] = (uint8_t)MIN(strlen(id), (size_t)64);
		put_text(k->answer + 4, id, k->answer[3]);
		k->len = 4u + k->answer[3];
		return true;
	default:
		return ahci_bad_field(k);
	}
}

bool ahci_inquiry(struct ahci_packet *k)
{
	if (k->cdb[1] & 1)
		return vital_data(k);
	if (k->cdb[2])
		return ahci_bad_field(k);
	k->answer[0] = 0x05; /* CD or DVD */
	k->answer[1] = 0x80; /* removable */
	k->answer[3] = 0x21; /* ATAPI */
	k->answer[4] = 31;
	put_text(k->answer + 8, "Glint", 8);
	put_text(k->answer + 16, "DVD-ROM", 16);
	put_text(k->answer + 32, "1", 4);
	k->len = 36;
	return true;
}

/* --- MODE SENSE(10) --- */

static uint8_t *add_page(struct ahci_packet *k, uint8_t code, uint8_t len)
{
	uint8_t *page = k->answer + k->len;

	page[0] = code;
	page[1] = len;
	k->len += 2u + len;
	return page;
}

static void add_recovery(struct ahci_packet *k)
{
	add_page(k, 0x01, 10)[3] = 5; /* tries */
}

static void add_capabilities(struct ahci_packet *k)
{
	uint8_t *page = add_page(k, 0x2a, 18);

	page[2] = 0x08; /* reads DVD-ROM */
	page[4] = 0x70; /* mode 2, forms 1 and 2; sessions */
	page[6] = (uint8_t)(0x29 /* a tray that opens and can be locked */ | k->port->locked << 1);
	ahci_put_be(page + 8, 7056, 2); /* KB/s */
	ahci_put_be(page + 12, AHCI_BUFFER / 1024, 2);
	ahci_put_be(page + 14, 7056, 2);
}

/* Values that are and that can be are the same, but that none can be changed. */
bool ahci_mode_sense(struct ahci_packet *k)
{
	uint8_t page = k->cdb[2] & 0x3f, control = k->cdb[2] >> 6;

	if (control == 3)
		return ahci_refuse(k, 5, 0x39, 0x00);
	k->len = 8;
	if (page == 0x01 || page == 0x3f)
		add_recovery(k);
	if (page == 0x2a || page == 0x3f)
		add_capabilities(k);
	if (k->len == 8)
		return ahci_bad_field(k);
	if (control == 1)
		memset(k->answer + 10, 0, k->len - 10);
	ahci_put_be(k->answer, k->len - 2, 2);
	k->answer[2] = k->port->tray_open ? 0x71 : k->port->medium ? 0x01 : 0x70;
	return true;
}

/* --- READ TOC: one track --- */

static void add_track(struct ahci_packet *k, uint8_t track, uint32_t block)
{
	uint8_t *entry = k->answer + k->len;

	entry[1] = DATA_TRACK;
	entry[2] = track;
	if (k->cdb[1] & 2) { /* minutes, seconds, frames */
		block += 150;
		entry[5] = (uint8_t)(block / 75 / 60);
		entry[6] = (uint8_t)(block / 75 % 60);
		entry[7] = (uint8_t)(block % 75);
	} else {
		ahci_put_be(entry + 4, block, 4);
	}
	k->len += 8;
}

bool ahci_read_toc(struct ahci_packet *k)
{
	uint8_t format = k->cdb[2] & 0xf ? k->cdb[2] & 0xf : k->cdb[9] >> 6, first = k->cdb[6];

	k->answer[2] = k->answer[3] = 1; /* first and last, track or session */
	k->len = 4;
	if (format > 1 || (format == 0 && first > 1 && first != LEAD_OUT))
		return ahci_bad_field(k);
	if (format == 1 || first <= 1)
		add_track(k, 1, 0);
	if (format == 0)
		add_track(k, LEAD_OUT, ahci_blocks(k->port));
	ahci_put_be(k->answer, k->len - 2, 2);
	return true;
}

bool ahci_disc_information(struct ahci_packet *k)
{
	if (k->cdb[1] & 7)
		return ahci_bad_field(k);
	ahci_put_be(k->answer, 32, 2);
	k->answer[2] = 0x0e; /* complete */
	k->answer[3] = k->answer[4] = k->answer[5] = k->answer[6] = 1;
	k->len = 34;
	return true;
}

/* --- GET CONFIGURATION --- */

struct feature {
	uint16_t code;
	uint8_t flags; /* version, persistent, current */
	uint8_t len, data[12];
};

static bool wanted(const struct ahci_packet *k, const struct feature *f)
{
	uint32_t from = ahci_get_be(k->cdb + 2, 2);

	switch (k->cdb[1] & 3) {
	case 0:
		return f->code >= from;
	case 1:
		return f->code >= from && f->flags & 1;
	default:
		return f->code == from;
	}
}

bool ahci_configuration(struct ahci_packet *k)
{
	uint32_t blocks = ahci_blocks(k->port);
	uint16_t profile = blocks == 0 ? 0 : blocks > CD_BLOCKS ? PROFILE_DVD : PROFILE_CD;
	bool cd = profile == PROFILE_CD, dvd = profile == PROFILE_DVD;
	const struct feature features[] = {
		{0x0000, 0x03, 8, {0, PROFILE_DVD, dvd, 0, 0, PROFILE_CD, cd, 0}},
		{0x0001, 0x0b, 8, {0, 0, 0, 2 /* ATAPI */, 0x01}},               /* core */
		{0x0002, 0x07, 4, {0}},                                          /* morphing: events are polled */
		{0x0003, 0x03, 4, {0x29}},                                       /* removable medium */
		{0x0010, blocks > 0, 8, {0, 0, AHCI_BLOCK >> 8, 0, 0, 1, 0, 0}}, /* random readable */
		{0x001e, (uint8_t)(0x08 | cd), 4, {}},                           /* CD read */
		{0x001f, dvd, 0, {}},                                            /* DVD read */
	};

	if ((k->cdb[1] & 3) == 3)
		return ahci_bad_field(k);
	k->len = 8;
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature *f = &features[i];
		uint8_t *to = k->answer + k->len;
		if (!wanted(k, f))
			continue;
		ahci_put_be(to, f->code, 2);
		to[2] = f->flags;
		to[3] = f->len;
		memcpy(to + 4, f->data, f->len);
		k->len += 4u + f->len;
	}
	ahci_put_be(k->answer, k->len - 4, 4);
	ahci_put_be(k->answer + 6, profile, 2);
	return true;
}

/* --- IDENTIFY PACKET DEVICE --- */

/* ATA's text: the two bytes of a word the other way round. */
static void put_words(uint8_t *answer, unsigned word, const char *text, size_t len)
{
	uint8_t *to = answer + 2 * (size_t)word;

	put_text(to, text, len);
	for (size_t i = 0; i < len; i += 2) {
		uint8_t first = to[i];
		to[i] = to[i + 1];
		to[i + 1] = first;
	}
}

void ahci_identify(const struct ahci_port *p, uint8_t *answer)
{
	static const struct {
		uint8_t word;
		uint16_t value;
	} words[] = {
		{0, 0x85c0},  /* an ATAPI CD drive, removable, packets of 12 bytes */
		{49, 0x0f00}, /* DMA, LBA, IORDY */
		{50, 0x4000}, /* */
		{53, 0x0006}, /* words 64 to 70 and 88 mean something */
		{63, 0x0007}, /* multiword DMA */
		{64, 0x0003}, /* PIO modes 3 and 4 */
		{65, 120},    {66, 120},    {67, 120},    {68, 120},                  /* and their cycles, ns */
		{76, 0x0002},                                                         /* SATA, 1.5 Gb/s */
		{80, 0x01f0},                                                         /* ATA/ATAPI-4 to 8 */
		{82, 0x4210},                                                         /* NOP, DEVICE RESET, PACKET */
		{83, 0x4000}, {84, 0x4000}, {85, 0x4210}, {87, 0x4000}, {88, 0x203f}, /* Ultra DMA, mode 5 chosen */
	};

	memset(answer, 0, 512);
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		answer[2 * words[i].word] = (uint8_t)words[i].value;
		answer[2 * words[i].word + 1] = (uint8_t)(words[i].value >> 8);
	}
	put_words(answer, 10, p->id, 20);
	put_words(answer, 23, "1", 8);
	put_words(answer, 27, "Glint DVD-ROM", 40);
}
