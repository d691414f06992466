/*
 * What the controller says of itself and its namespace: Identify (NVM Express 1.4, section 5.15) and log pages (5.14).
 * Structures are pages of zeros with fields put in by their offsets, as the specification's figures have them.
 *
 * Touches the guest's buffer of the command.
 */
#include "vmm/nvme/internal.h"

#include <stdio.h>
#include <string.h>

#define PHYSICAL_BYTES 4096u /* what guests align to, whatever the disk below has: as virtio-blk says */

struct page {
	uint8_t bytes[PAGE_BYTES];
};

static void put(struct page *p, unsigned at, uint64_t value, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		p->bytes[at + i] = (uint8_t)(value >> (8 * i));
}

/* ASCII, filled up with spaces. */
static void put_text(struct page *p, unsigned at, unsigned size, const char *text)
{
	size_t len = strnlen(text, size);

	memset(p->bytes + at, ' ', size);
	memcpy(p->bytes + at, text, len);
}

/* --- ids --- */

static uint64_t hash(uint64_t h, const void *data, size_t len)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 0x100000001b3; /* FNV-1a */
	return h;
}

/* FNV leaves the upper bits of short texts alike. */
static uint64_t mix(uint64_t h)
{
	h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
	h = (h ^ h >> 27) * 0x94d049bb133111eb;
	return h ^ h >> 31;
}

void nvme_make_uuid(uint8_t uuid[16], const uint8_t machine[16], const char *id)
{
	uint64_t half[2] = {0xcbf29ce484222325, 0x84222325cbf29ce4};

	for (unsigned i = 0; i < 2; i++)
		half[i] = mix(hash(hash(half[i], machine, 16), id, strlen(id)));
	memcpy(uuid, half, 16);
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x80);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

/*
 * 7.9: sixteen bytes, of which bytes 8 to 10 are the OUI: nobody's, locally administered. There is no EUI-64: OVMF
 * would have it in its boot order.
 */
static void put_nguid(const struct nvme *n, uint8_t *to)
{
	memcpy(to, n->config.uuid, 16);
	to[8] = (uint8_t)((to[8] | 0x02) & ~0x01);
}

/* --- identify --- */

static unsigned block_shift(const struct nvme *n)
{
	return (unsigned)__builtin_ctz(drive_sector(n->config.drive));
}

/* 5.15.2.1, figure 247. */
static void identify_controller(const struct nvme *n, struct page *p)
{
	const uint8_t *u = n->config.uuid;
	char name[80];

	put(p, 0, NVME_VENDOR, 2);
	put(p, 2, NVME_VENDOR, 2);
	put_text(p, 4, 20, n->config.serial);
	put_text(p, 24, 40, "Glint NVMe disk");
	put_text(p, 64, 8, "1");
	put(p, 77, NVME_MDTS, 1);
	put(p, 80, NVME_VERSION, 4);
	put(p, 92, NVME_EVENTS_NAMESPACE, 4); /* OAES */
	put(p, 111, 1, 1);                    /* an I/O controller */
	put(p, 256, 0x100, 2);                /* OACS: doorbell buffer config */
	put(p, 258, 3, 1);                    /* ACL */
	put(p, 259, NVME_EVENTS_MAX - 1, 1);  /* AERL */
	put(p, 260, 0x03, 1);                 /* FRMW: one slot, read only */
	put(p, 261, 0x04, 1);                 /* LPA: offsets and long lengths of log pages */
	put(p, 266, 343, 2);                  /* WCTEMP, CCTEMP: kelvins */
	put(p, 268, 373, 2);
	put(p, 512, 0x66, 1); /* entries of 64 and 16 bytes */
	put(p, 513, 0x44, 1);
	put(p, 516, 1, 4);     /* namespaces */
	put(p, 520, 0x1c, 2);  /* ONCS: dataset management, write zeroes, features' select */
	put(p, 525, 0x07, 1);  /* VWC: there is one; a flush may speak of all namespaces */
	put(p, 2048, 2500, 2); /* power state 0: 25 W */
	snprintf(name, sizeof(name),
		 "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
	memcpy(p->bytes + 768, name, strlen(name));
}

/* 5.15.2.2, figure 245. */
static void identify_namespace(const struct nvme *n, struct page *p)
{
	uint32_t sector = drive_sector(n->config.drive);
	uint64_t blocks = drive_size(n->config.drive) / sector;
	unsigned physical = PHYSICAL_BYTES / sector - 1; /* 0's based, as all of these */

	put(p, 0, blocks, 8); /* size, capacity, use */
	put(p, 8, blocks, 8);
	put(p, 16, blocks, 8);
	put(p, 24, 0x10, 1); /* NSFEAT: the five preferences below */
	put(p, 33, 0x09, 1); /* DLFEAT: deallocated reads as zeroes; write zeroes deallocates */
	put(p, 64, physical, 2);
	put(p, 66, physical, 2);
	put(p, 68, physical, 2);
	put(p, 70, physical, 2);
	put(p, 72, 0, 2);
	put(p, 99, drive_readonly(n->config.drive), 1);
	put_nguid(n, p->bytes + 104);
	put(p, 130, block_shift(n), 1);
}

/* 5.15.2.4: type, length, two zeros, the id. */
static unsigned put_descriptor(struct page *p, unsigned at, uint8_t type, const uint8_t *id, uint8_t len)
{
	p->bytes[at] = type;
	p->bytes[at + 1] = len;
	memcpy(p->bytes + at + 4, id, len);
	return at + 4 + len;
}

static void identify_descriptors(const struct nvme *n, struct page *p)
{
	uint8_t id[16];
	unsigned at = 0;

	put_nguid(n, id);
	at = put_descriptor(p, at, 2, id, 16);
	put_descriptor(p, at, 3, n->config.uuid, 16);
}

uint16_t nvme_identify(struct nvme *n, const struct nvme_command *c)
{
	struct page page = {};

	switch (c->cdw10 & 0xff) {
	case 0x00:
		if (c->nsid != 1)
			return NVME_INVALID_NAMESPACE;
		identify_namespace(n, &page);
		break;
	case 0x01:
		identify_controller(n, &page);
		break;
	case 0x02: /* active namespaces above the one given */
		if (c->nsid >= 0xfffffffe)
			return NVME_INVALID_NAMESPACE;
		put(&page, 0, c->nsid == 0, 4);
		break;
	case 0x03:
		if (c->nsid != 1)
			return NVME_INVALID_NAMESPACE;
		identify_descriptors(n, &page);
		break;
	default:
		return NVME_INVALID_FIELD;
	}
	return nvme_prp_copy(n->memory, c, &page, sizeof(page), true);
}

/* --- log pages --- */

/* 5.14.1.2: a healthy disk, and what was done for the guest by this process. */
static void log_health(const struct nvme *n, struct page *p)
{
	struct drive_stats s;

	drive_stats(n->config.drive, &s);
	put(p, 0, nvme_critical_warning(n), 1);
	put(p, 1, NVME_TEMPERATURE, 2);
	put(p, 3, 100, 1); /* available spare and its threshold, per cent */
	put(p, 4, 10, 1);
	put(p, 32, (s.read_bytes + 511999) / 512000, 8); /* thousands of 512 bytes, rounded up */
	put(p, 48, (s.written_bytes + 511999) / 512000, 8);
	put(p, 64, s.reads, 8);
	put(p, 80, s.writes, 8);
}

/* Fills the page and says of which kind of events it tells; -1: of none. False when there is no such page. */
static bool fill_log(const struct nvme *n, unsigned id, struct page *p, int *kind)
{
	*kind = -1;
	switch (id) {
	case NVME_LOG_ERRORS: /* what was wrong is in the completions: no entry is kept */
		*kind = 0;
		return true;
	case NVME_LOG_HEALTH:
		*kind = 1;
		log_health(n, p);
		return true;
	case NVME_LOG_FIRMWARE:
		put(p, 0, 1, 1); /* slot 1 runs */
		put_text(p, 8, 8, "1");
		return true;
	case NVME_LOG_NAMESPACES:
		*kind = 2;
		put(p, 0, n->namespace_changed, 4);
		return true;
	default:
		return false;
	}
}

uint16_t nvme_get_log(struct nvme *n, const struct nvme_command *c)
{
	uint64_t bytes = ((uint64_t)(c->cdw11 & 0xffff) << 16 | c->cdw10 >> 16) * 4 + 4;
	uint64_t offset = (uint64_t)c->cdw13 << 32 | c->cdw12;
	struct page page = {};
	int kind;

	if (!fill_log(n, c->cdw10 & 0xff, &page, &kind))
		return NVME_INVALID_LOG;
	if (bytes > NVME_TRANSFER_MAX || !is_aligned(offset, 4) || offset > sizeof(page) ||
	    (c->nsid != 0 && c->nsid != NVME_NSID_ALL))
		return NVME_INVALID_FIELD;
	/* What lies behind a page's end is nothing, and is not written. */
	uint16_t status = nvme_prp_copy(n->memory, c, page.bytes + offset, MIN(bytes, sizeof(page) - offset), true);
	if (status != NVME_SUCCESS || kind < 0 || c->cdw10 & 0x8000)
		return status;
	/* Read, and not asked to keep it: the next event may come. */
	n->event_masked[kind] = false;
	if (kind == 2)
		n->namespace_changed = false;
	return NVME_SUCCESS;
}
