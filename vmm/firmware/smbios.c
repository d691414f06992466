/*
 * SMBIOS tables (DMTF DSP0134 3.6; section numbers are its): what dmidecode prints and inventories read. Firmware gets
 * the entry point and the tables by fw_cfg and places them. The same machine gives the same bytes. Touches fw_cfg's
 * items only.
 */
#include "vmm/firmware/internal.h"

#include "base/util.h"

#include <errno.h>
#include <string.h>

#define MAKER   "Glint"
#define PRODUCT "glint-q35-1" /* the machine type: what the guest may rely on */

/* 5.2.2: the 64-bit entry point */
struct [[gnu::packed]] anchor {
	char signature[5];
	uint8_t checksum, length, major, minor, docrev, revision, reserved;
	uint32_t tables_bytes;
	uint64_t tables;
};
static_assert(sizeof(struct anchor) == 24);

/* 6.1.2 */
struct [[gnu::packed]] header {
	uint8_t type, length;
	uint16_t handle;
};
enum {
	TYPE_BIOS = 0,
	TYPE_SYSTEM = 1,
	TYPE_CHASSIS = 3,
	TYPE_PROCESSOR = 4,
	TYPE_MEMORY_ARRAY = 16,
	TYPE_MEMORY_DEVICE = 17,
	TYPE_MEMORY_MAP = 19,
	TYPE_BOOT = 32,
	TYPE_END = 127,
};

struct [[gnu::packed]] bios {
	struct header h;
	uint8_t vendor, version;
	uint16_t segment;
	uint8_t date, rom_size;
	uint64_t characteristics;
	uint8_t extended[2], major, minor, ec_major, ec_minor;
	uint16_t extended_rom_size;
};
static_assert(sizeof(struct bios) == 0x1a);

struct [[gnu::packed]] system {
	struct header h;
	uint8_t maker, product, version, serial;
	uint8_t uuid[16];
	uint8_t wake_up, sku, family;
};
static_assert(sizeof(struct system) == 0x1b);

struct [[gnu::packed]] chassis {
	struct header h;
	uint8_t maker, kind, version, serial, asset, boot_state, power_state, thermal_state, security;
	uint32_t oem;
	uint8_t height, cords, contained, contained_bytes, sku;
};
static_assert(sizeof(struct chassis) == 0x16);

struct [[gnu::packed]] processor {
	struct header h;
	uint8_t socket, kind, family, maker;
	uint64_t id;
	uint8_t version, voltage;
	uint16_t clock, max_speed, speed;
	uint8_t status, upgrade;
	uint16_t l1, l2, l3;
	uint8_t serial, asset, part, cores, cores_enabled, threads;
	uint16_t characteristics, family2, cores2, cores_enabled2, threads2;
};
static_assert(sizeof(struct processor) == 0x30);

struct [[gnu::packed]] memory_array {
	struct header h;
	uint8_t location, use, correction;
	uint32_t capacity; /* KiB; 0x80000000: see the next but one */
	uint16_t error, devices;
	uint64_t capacity_bytes;
};
static_assert(sizeof(struct memory_array) == 0x17);

struct [[gnu::packed]] memory_device {
	struct header h;
	uint16_t array, error, total_width, data_width, size; /* MiB; 0x7fff: see extended_size */
	uint8_t form, set, locator, bank, kind;
	uint16_t detail, speed;
	uint8_t maker, serial, asset, part, attributes;
	uint32_t extended_size; /* MiB */
	uint16_t configured_speed;
	uint16_t min_voltage, max_voltage, voltage;
};
static_assert(sizeof(struct memory_device) == 0x28);

struct [[gnu::packed]] memory_map {
	struct header h;
	uint32_t start, end; /* KiB; 0xffffffff: see below */
	uint16_t array;
	uint8_t width;
	uint64_t start_bytes, end_bytes;
};
static_assert(sizeof(struct memory_map) == 0x1f);

struct [[gnu::packed]] boot_status {
	struct header h;
	uint8_t reserved[6], status;
};

enum {
	UNKNOWN = 2, /* in every enumeration used here */
	OTHER = 1,
	HANDLE_MEMORY = 0x1000,
	NO_ERROR_HANDLE = 0xfffe,
	BIOS_NOT_SUPPORTED = 1 << 3, /* characteristics are not */
	BIOS_EXT2_UEFI = 1 << 3,
	BIOS_EXT2_VIRTUAL = 1 << 4,
};

struct tables {
	uint8_t bytes[4096];
	size_t used;
};

/* A structure and its strings, which end with an empty one (6.1.3). Callers' names are cut to 64 bytes by add_system.
 */
static void put(struct tables *t, const void *structure, size_t size, const char *const *strings)
{
	memcpy(t->bytes + t->used, structure, size);
	t->used += size;
	for (unsigned i = 0; strings && strings[i]; i++) {
		size_t len = strlen(strings[i]) + 1;
		memcpy(t->bytes + t->used, strings[i], len);
		t->used += len;
	}
	t->used += strings && strings[0] ? 1 : 2; /* zeros are there */
}

#define HEADER(number, structure, id) {.type = (number), .length = sizeof(structure), .handle = (id)}

static void put_bios(struct tables *t)
{
	struct bios b = {
		.h = HEADER(TYPE_BIOS, b, 0),
		.vendor = 1,
		.version = 2,
		.date = 3,
		.characteristics = BIOS_NOT_SUPPORTED,
		.extended = {0, BIOS_EXT2_UEFI | BIOS_EXT2_VIRTUAL},
		.major = 0xff, /* none of them: 7.1 */
		.minor = 0xff,
		.ec_major = 0xff,
		.ec_minor = 0xff,
	};

	put(t, &b, sizeof(b), (const char *const[]){MAKER, "1", "01/01/2025", NULL});
}

static void put_system(struct tables *t, const struct firmware_config *config)
{
	char name[65];
	struct system s = {
		.h = HEADER(TYPE_SYSTEM, s, 0x100),
		.maker = 1,
		.product = 2,
		.version = 3,
		.serial = 4,
		.wake_up = 6, /* power switch */
		.family = 5,
	};

	strncpy(name, config->name, sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	/* 7.2.1: the first three fields are little-endian, where people write them the other way round. */
	static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	for (unsigned i = 0; i < sizeof(order); i++)
		s.uuid[i] = config->uuid[order[i]];
	put(t, &s, sizeof(s),
	    (const char *const[]){MAKER, PRODUCT, "1", name[0] ? name : "vm", "Virtual Machine", NULL});
}

static void put_chassis(struct tables *t)
{
	struct chassis c = {
		.h = HEADER(TYPE_CHASSIS, c, 0x300),
		.maker = 1,
		.kind = OTHER,
		.boot_state = 3, /* safe */
		.power_state = 3,
		.thermal_state = 3,
		.security = UNKNOWN,
	};

	put(t, &c, sizeof(c), (const char *const[]){MAKER, NULL});
}

static void put_processor(struct tables *t, unsigned vcpus)
{
	struct processor p = {
		.h = HEADER(TYPE_PROCESSOR, p, 0x400),
		.socket = 1,
		.kind = 3, /* central */
		.family = OTHER,
		.maker = 2,
		.status = 0x41, /* there is one, and it is on */
		.upgrade = OTHER,
		.l1 = 0xffff, /* not described */
		.l2 = 0xffff,
		.l3 = 0xffff,
		.cores = (uint8_t)MIN(vcpus, 255u),
		.cores_enabled = (uint8_t)MIN(vcpus, 255u),
		.threads = (uint8_t)MIN(vcpus, 255u),
		.characteristics = 1 << 2, /* 64 bits */
		.family2 = OTHER,
		.cores2 = (uint16_t)vcpus,
		.cores_enabled2 = (uint16_t)vcpus,
		.threads2 = (uint16_t)vcpus,
	};

	put(t, &p, sizeof(p), (const char *const[]){"CPU 0", MAKER, NULL});
}

static void put_memory_array(struct tables *t, uint64_t bytes)
{
	bool large = bytes / KIB >= 0x80000000u;
	struct memory_array a = {
		.h = HEADER(TYPE_MEMORY_ARRAY, a, HANDLE_MEMORY),
		.location = OTHER,
		.use = 3,        /* system memory */
		.correction = 3, /* none */
		.capacity = large ? 0x80000000u : (uint32_t)(bytes / KIB),
		.error = NO_ERROR_HANDLE,
		.devices = 1,
		.capacity_bytes = large ? bytes : 0,
	};

	put(t, &a, sizeof(a), NULL);
}

static void put_memory_device(struct tables *t, uint64_t bytes)
{
	bool large = bytes / MIB >= 0x7fff;
	struct memory_device d = {
		.h = HEADER(TYPE_MEMORY_DEVICE, d, HANDLE_MEMORY + 1),
		.array = HANDLE_MEMORY,
		.error = NO_ERROR_HANDLE,
		.total_width = 0xffff,
		.data_width = 0xffff,
		.size = large ? 0x7fff : (uint16_t)(bytes / MIB),
		.form = OTHER,
		.locator = 1,
		.kind = OTHER,
		.detail = 1 << 1, /* other */
		.maker = 2,
		.extended_size = large ? (uint32_t)(bytes / MIB) : 0,
	};

	put(t, &d, sizeof(d), (const char *const[]){"DIMM 0", MAKER, NULL});
}

static void put_memory_maps(struct tables *t, const struct memory *mem)
{
	for (unsigned i = 0; i < mem->regions; i++) {
		uint64_t start = mem->region[i].gpa, last = start + mem->region[i].size - 1;
		bool large = last / KIB >= UINT32_MAX;
		struct memory_map m = {
			.h = HEADER(TYPE_MEMORY_MAP, m, (uint16_t)(HANDLE_MEMORY + 16 + i)),
			.start = large ? UINT32_MAX : (uint32_t)(start / KIB),
			.end = large ? UINT32_MAX : (uint32_t)(last / KIB),
			.array = HANDLE_MEMORY,
			.width = 1,
			.start_bytes = large ? start : 0,
			.end_bytes = large ? last : 0,
		};
		put(t, &m, sizeof(m), NULL);
	}
}

struct error *firmware_add_smbios(struct firmware *fw, const struct memory *mem, const struct firmware_config *config)
{
	struct tables t = {};
	struct boot_status boot = {.h = HEADER(TYPE_BOOT, boot, 0x2000)};
	struct header end = HEADER(TYPE_END, end, 0x7f00);
	uint8_t sum = 0;

	put_bios(&t);
	put_system(&t, config);
	put_chassis(&t);
	put_processor(&t, config->vcpus);
	put_memory_array(&t, mem->size);
	put_memory_device(&t, mem->size);
	put_memory_maps(&t, mem);
	put(&t, &boot, sizeof(boot), NULL);
	put(&t, &end, sizeof(end), NULL);
	struct anchor a = {
		.signature = {'_', 'S', 'M', '3', '_'},
		.length = sizeof(a),
		.major = 3,
		.minor = 6,
		.revision = 1,
		.tables_bytes = (uint32_t)t.used,
	};
	for (unsigned i = 0; i < sizeof(a); i++)
		sum += ((const uint8_t *)&a)[i];
	a.checksum = (uint8_t)-sum;
	TRY(fw_cfg_add_file(&fw->fw_cfg, "etc/smbios/smbios-anchor", &a, sizeof(a)));
	return fw_cfg_add_file(&fw->fw_cfg, "etc/smbios/smbios-tables", t.bytes, t.used);
}
