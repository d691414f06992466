/*
 * VHD as bytes; see vhd_format.h. Touches nothing but what it is given.
 */
#include "disk/vhd_format.h"

#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <uchar.h>

/* Offsets in a footer. */
enum {
	FOOTER_FEATURES = 8,
	FOOTER_VERSION = 12,
	FOOTER_HEADER_OFFSET = 16,
	FOOTER_TIMESTAMP = 24,
	FOOTER_CREATOR = 28,
	FOOTER_CREATOR_VERSION = 32,
	FOOTER_CREATOR_HOST = 36,
	FOOTER_ORIGINAL_SIZE = 40,
	FOOTER_CURRENT_SIZE = 48,
	FOOTER_GEOMETRY = 56,
	FOOTER_TYPE = 60,
	FOOTER_CHECKSUM = 64,
	FOOTER_ID = 68,
};

/* Offsets in a dynamic header, and in each parent locator. */
enum {
	HEADER_NEXT = 8,
	HEADER_TABLE_OFFSET = 16,
	HEADER_VERSION = 24,
	HEADER_ENTRIES = 28,
	HEADER_BLOCK_BYTES = 32,
	HEADER_CHECKSUM = 36,
	HEADER_PARENT_ID = 40,
	HEADER_PARENT_TIMESTAMP = 56,
	HEADER_PARENT_NAME = 64,
	HEADER_PARENT_NAME_BYTES = 512,
	HEADER_LOCATORS = 576,
	LOCATOR_BYTES = 24,
	LOCATOR_SPACE = 4,
	LOCATOR_LENGTH = 8,
	LOCATOR_OFFSET = 16,
};

#define FOOTER_COOKIE "conectix"
#define HEADER_COOKIE "cxsparse"
#define COOKIE_BYTES  8u
#define VERSION_MAJOR 1u /* of both structures: 1.x */
#define VERSION       (VERSION_MAJOR << 16)
#define FEATURES      2u /* a reserved bit that is always set */
#define NO_OFFSET     UINT64_MAX

/*
 * Readers choose by the creator which size of a disk they believe. Only a name they know makes all of them, old QEMUs
 * too, believe the current size; so the creator is Hyper-V's.
 */
#define CREATOR         "win "
#define CREATOR_VERSION 0x000a0000u
#define CREATOR_HOST    "Wi2k"

/* The most that a geometry can say ([VHD] "CHS Calculation"). */
#define CYLINDERS_MAX 65535u
#define HEADS_MAX     16u
#define SECTORS_MAX   255u

#define LOCATOR_RELATIVE 0x57327275u /* "W2ru" */
#define LOCATOR_ABSOLUTE 0x57326b75u /* "W2ku" */

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static uint64_t get64(const uint8_t *p)
{
	return (uint64_t)get32(p) << 32 | get32(p + 4);
}

static void put16(uint8_t *p, uint16_t value)
{
	memcpy(p, &(uint16_t){htobe16(value)}, sizeof(value));
}

static void put32(uint8_t *p, uint32_t value)
{
	memcpy(p, &(uint32_t){htobe32(value)}, sizeof(value));
}

static void put64(uint8_t *p, uint64_t value)
{
	memcpy(p, &(uint64_t){htobe64(value)}, sizeof(value));
}

/* A name of so many bytes, without an end. */
static void put_name(uint8_t *p, const char *name, size_t len)
{
	memcpy(p, name, len);
}

/* The complement of the sum of all bytes but the checksum's own four. */
static uint32_t checksum(const uint8_t *raw, size_t len, size_t at)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += i >= at && i < at + 4 ? 0 : raw[i];
	return ~sum;
}

struct vhd_geometry vhd_geometry(uint64_t size)
{
	uint64_t total = MIN(size / VHD_SECTOR, (uint64_t)CYLINDERS_MAX * HEADS_MAX * SECTORS_MAX);
	uint32_t sectors = 17, heads, per_head;

	if (total >= (uint64_t)CYLINDERS_MAX * HEADS_MAX * 63) {
		sectors = SECTORS_MAX;
		heads = HEADS_MAX;
		per_head = (uint32_t)(total / sectors);
	} else {
		per_head = (uint32_t)(total / sectors);
		heads = MAX((per_head + 1023) / 1024, 4u);
		if (per_head >= heads * 1024 || heads > HEADS_MAX) {
			sectors = 31;
			heads = HEADS_MAX;
			per_head = (uint32_t)(total / sectors);
		}
		if (per_head >= heads * 1024) {
			sectors = 63;
			heads = HEADS_MAX;
			per_head = (uint32_t)(total / sectors);
		}
	}
	return (struct vhd_geometry){
		.cylinders = (uint16_t)(per_head / heads),
		.heads = (uint8_t)heads,
		.sectors = (uint8_t)sectors,
	};
}

bool vhd_is_footer(const uint8_t raw[VHD_FOOTER_BYTES])
{
	return memcmp(raw, FOOTER_COOKIE, COOKIE_BYTES) == 0;
}

/* Bytes by the geometry, where that is what the disk's creator relies on; else the current size. */
static uint64_t believed_size(const uint8_t *raw)
{
	const uint8_t *creator = raw + FOOTER_CREATOR, *geometry = raw + FOOTER_GEOMETRY;
	uint64_t sectors = (uint64_t)get16(geometry) * geometry[2] * geometry[3];
	bool by_geometry = memcmp(creator, "vpc ", 4) == 0 || memcmp(creator, "qemu", 4) == 0;

	if (by_geometry && sectors > 0 && sectors != (uint64_t)CYLINDERS_MAX * HEADS_MAX * SECTORS_MAX)
		return sectors * VHD_SECTOR;
	return get64(raw + FOOTER_CURRENT_SIZE);
}

struct error *vhd_parse_footer(const uint8_t raw[VHD_FOOTER_BYTES], const char *name, uint64_t offset,
			       struct vhd_footer *footer)
{
	const unsigned long long at = offset;
	uint32_t type = get32(raw + FOOTER_TYPE);

	if (!vhd_is_footer(raw))
		return error_new(EINVAL, "%s: no VHD footer at offset %llu", name, at);
	if (get32(raw + FOOTER_CHECKSUM) != checksum(raw, VHD_FOOTER_BYTES, FOOTER_CHECKSUM))
		return error_new(EINVAL, "%s: the VHD footer at offset %llu has a wrong checksum", name, at);
	if (get16(raw + FOOTER_VERSION) != VERSION_MAJOR)
		return error_new(ENOTSUP, "%s: the VHD footer at offset %llu is of version %u", name, at,
				 get16(raw + FOOTER_VERSION));
	if (type < VHD_FIXED || type > VHD_DIFFERENCING)
		return error_new(ENOTSUP, "%s: the VHD footer at offset %llu is of disk type %u", name, at, type);
	*footer = (struct vhd_footer){
		.header_offset = get64(raw + FOOTER_HEADER_OFFSET),
		.size = align_down(believed_size(raw), VHD_SECTOR),
		.type = (enum vhd_type)type,
		.timestamp = get32(raw + FOOTER_TIMESTAMP),
	};
	memcpy(footer->id, raw + FOOTER_ID, VHD_ID_BYTES);
	if (footer->size == 0 || footer->size > VHD_SIZE_MAX)
		return error_new(EINVAL, "%s: the VHD footer at offset %llu says the disk has %llu bytes", name, at,
				 (unsigned long long)footer->size);
	return NULL;
}

void vhd_resize_footer(uint8_t raw[VHD_FOOTER_BYTES], uint64_t size)
{
	struct vhd_geometry geometry = vhd_geometry(size);

	put64(raw + FOOTER_CURRENT_SIZE, size);
	put16(raw + FOOTER_GEOMETRY, geometry.cylinders);
	raw[FOOTER_GEOMETRY + 2] = geometry.heads;
	raw[FOOTER_GEOMETRY + 3] = geometry.sectors;
	put_name(raw + FOOTER_CREATOR, CREATOR, 4);
	put32(raw + FOOTER_CHECKSUM, checksum(raw, VHD_FOOTER_BYTES, FOOTER_CHECKSUM));
}

void vhd_make_footer(const struct vhd_footer *footer, uint8_t raw[VHD_FOOTER_BYTES])
{
	memset(raw, 0, VHD_FOOTER_BYTES);
	put_name(raw, FOOTER_COOKIE, COOKIE_BYTES);
	put32(raw + FOOTER_FEATURES, FEATURES);
	put32(raw + FOOTER_VERSION, VERSION);
	put64(raw + FOOTER_HEADER_OFFSET, footer->type == VHD_FIXED ? NO_OFFSET : footer->header_offset);
	put32(raw + FOOTER_TIMESTAMP, footer->timestamp);
	put32(raw + FOOTER_CREATOR_VERSION, CREATOR_VERSION);
	put_name(raw + FOOTER_CREATOR_HOST, CREATOR_HOST, 4);
	put64(raw + FOOTER_ORIGINAL_SIZE, footer->size);
	put32(raw + FOOTER_TYPE, footer->type);
	memcpy(raw + FOOTER_ID, footer->id, VHD_ID_BYTES);
	vhd_resize_footer(raw, footer->size);
}

/* Takes the parent locators that are understood. Their offsets are bounded by whoever reads there. */
static void parse_locators(const uint8_t *raw, struct vhd_header *header)
{
	for (size_t i = 0; i < VHD_LOCATORS; i++) {
		const uint8_t *p = raw + HEADER_LOCATORS + i * LOCATOR_BYTES;
		struct vhd_locator found = {.offset = get64(p + LOCATOR_OFFSET), .length = get32(p + LOCATOR_LENGTH)};

		if (found.length > VHD_LOCATOR_MAX)
			continue;
		if (get32(p) == LOCATOR_RELATIVE)
			header->relative = found;
		else if (get32(p) == LOCATOR_ABSOLUTE)
			header->absolute = found;
	}
}

struct error *vhd_parse_header(const uint8_t raw[VHD_HEADER_BYTES], const char *name, uint64_t offset, uint64_t size,
			       struct vhd_header *header)
{
	const unsigned long long at = offset;
	uint32_t block = get32(raw + HEADER_BLOCK_BYTES), entries = get32(raw + HEADER_ENTRIES);

	if (memcmp(raw, HEADER_COOKIE, COOKIE_BYTES) != 0)
		return error_new(EINVAL, "%s: no VHD dynamic header at offset %llu", name, at);
	if (get32(raw + HEADER_CHECKSUM) != checksum(raw, VHD_HEADER_BYTES, HEADER_CHECKSUM))
		return error_new(EINVAL, "%s: the VHD dynamic header at offset %llu has a wrong checksum", name, at);
	if (get16(raw + HEADER_VERSION) != VERSION_MAJOR)
		return error_new(ENOTSUP, "%s: the VHD dynamic header at offset %llu is of version %u", name, at,
				 get16(raw + HEADER_VERSION));
	if (block < VHD_BLOCK_MIN || block > VHD_BLOCK_MAX || (block & (block - 1)))
		return error_new(ENOTSUP, "%s: the VHD dynamic header at offset %llu says blocks have %u bytes", name,
				 at, block);
	/* A table may have more entries than the disk needs; these are never looked at. */
	uint64_t blocks = (size + block - 1) / block;
	if (entries < blocks)
		return error_new(EINVAL, "%s: the VHD table has %u entries, the disk of %llu bytes needs %llu", name,
				 entries, (unsigned long long)size, (unsigned long long)blocks);
	*header = (struct vhd_header){
		.table_offset = get64(raw + HEADER_TABLE_OFFSET),
		.entries = (uint32_t)blocks,
		.block_bytes = block,
		.parent_timestamp = get32(raw + HEADER_PARENT_TIMESTAMP),
	};
	memcpy(header->parent_id, raw + HEADER_PARENT_ID, VHD_ID_BYTES);
	if (!vhd_get_name(raw + HEADER_PARENT_NAME, HEADER_PARENT_NAME_BYTES, true, header->parent_name))
		header->parent_name[0] = '\0';
	parse_locators(raw, header);
	return NULL;
}

void vhd_move_table(uint8_t raw[VHD_HEADER_BYTES], uint64_t table_offset, uint32_t entries)
{
	put64(raw + HEADER_TABLE_OFFSET, table_offset);
	put32(raw + HEADER_ENTRIES, entries);
	put32(raw + HEADER_CHECKSUM, checksum(raw, VHD_HEADER_BYTES, HEADER_CHECKSUM));
}

static void put_locator(uint8_t *p, uint32_t code, const struct vhd_locator *locator)
{
	if (locator->length == 0)
		return;
	put32(p, code);
	put32(p + LOCATOR_SPACE, VHD_LOCATOR_MAX);
	put32(p + LOCATOR_LENGTH, locator->length);
	put64(p + LOCATOR_OFFSET, locator->offset);
}

struct error *vhd_make_header(const struct vhd_header *header, uint8_t raw[VHD_HEADER_BYTES])
{
	uint8_t *parent_name = raw + HEADER_PARENT_NAME;

	memset(raw, 0, VHD_HEADER_BYTES);
	put_name(raw, HEADER_COOKIE, COOKIE_BYTES);
	put64(raw + HEADER_NEXT, NO_OFFSET);
	put32(raw + HEADER_VERSION, VERSION);
	put32(raw + HEADER_BLOCK_BYTES, header->block_bytes);
	memcpy(raw + HEADER_PARENT_ID, header->parent_id, VHD_ID_BYTES);
	put32(raw + HEADER_PARENT_TIMESTAMP, header->parent_timestamp);
	if (header->parent_name[0] && !vhd_put_name(header->parent_name, true, parent_name, HEADER_PARENT_NAME_BYTES))
		return error_new(ENAMETOOLONG, "a VHD cannot name its parent '%s'", header->parent_name);
	put_locator(raw + HEADER_LOCATORS, LOCATOR_RELATIVE, &header->relative);
	put_locator(raw + HEADER_LOCATORS + LOCATOR_BYTES, LOCATOR_ABSOLUTE, &header->absolute);
	vhd_move_table(raw, header->table_offset, header->entries);
	return NULL;
}

#define NO_CHARACTER UINT32_MAX

/* Takes one character from UTF-16: its value, or NO_CHARACTER. */
static char32_t next_utf16(const uint8_t *utf16, size_t length, bool big_endian, size_t *at)
{
	char32_t unit[2] = {};

	for (int i = 0; i < 2 && length - *at >= 2; i++) {
		const uint8_t *p = utf16 + *at;
		unit[i] = big_endian ? get16(p) : (char32_t)(p[1] << 8 | p[0]);
		*at += 2;
		if (i == 0 && (unit[0] & 0xf800) != 0xd800)
			return unit[0];
	}
	if ((unit[0] & 0xfc00) != 0xd800 || (unit[1] & 0xfc00) != 0xdc00)
		return NO_CHARACTER;
	return 0x10000 + ((unit[0] & 0x3ff) << 10) + (unit[1] & 0x3ff);
}

static size_t put_utf8(char *out, char32_t c)
{
	static const uint8_t lead[] = {0, 0x00, 0xc0, 0xe0, 0xf0};
	size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

	for (size_t i = n; i-- > 1; c >>= 6)
		out[i] = (char)(0x80 | (c & 0x3f));
	out[0] = (char)(lead[n] | c);
	return n;
}

bool vhd_get_name(const uint8_t *utf16, size_t length, bool big_endian, char name[VHD_NAME_BYTES])
{
	size_t at = 0, len = 0;

	while (at < length) {
		char32_t c = next_utf16(utf16, length, big_endian, &at);
		if (c == 0)
			break;
		if (c == NO_CHARACTER || len + 4 >= VHD_NAME_BYTES)
			return false;
		len += put_utf8(name + len, c == '\\' ? '/' : c);
		if (len == 2 && memcmp(name, "./", 2) == 0)
			len = 0;
	}
	name[len] = '\0';
	return len > 0;
}

/* Takes one character from UTF-8: its value, or 0 where it is none. */
static char32_t next_utf8(const char **text)
{
	const uint8_t *p = (const uint8_t *)*text;
	size_t more = p[0] < 0x80 ? 0 : (p[0] & 0xe0) == 0xc0 ? 1 : (p[0] & 0xf0) == 0xe0 ? 2 : 3;
	char32_t c = more ? p[0] & (0x3fu >> more) : p[0];
	static const char32_t least[] = {0, 0x80, 0x800, 0x10000};

	if (p[0] >= 0xf8 || (p[0] & 0xc0) == 0x80)
		return 0;
	for (size_t i = 1; i <= more; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	*text += 1 + more;
	return c < least[more] || c > 0x10ffff || (c & 0xfffff800) == 0xd800 ? 0 : c;
}

static void put_unit(uint8_t *p, char32_t unit, bool big_endian)
{
	p[big_endian] = (uint8_t)unit;
	p[!big_endian] = (uint8_t)(unit >> 8);
}

size_t vhd_put_name(const char *name, bool big_endian, uint8_t *utf16, size_t room)
{
	size_t len = 0;

	while (*name) {
		char32_t c = next_utf8(&name);
		size_t need = c < 0x10000 ? 2 : 4;
		if (c == 0 || room - len < need)
			return 0;
		if (c == '/')
			c = '\\';
		if (need == 4) {
			put_unit(utf16 + len, 0xd800 + ((c - 0x10000) >> 10), big_endian);
			put_unit(utf16 + len + 2, 0xdc00 + ((c - 0x10000) & 0x3ff), big_endian);
		} else {
			put_unit(utf16 + len, c, big_endian);
		}
		len += need;
	}
	return len;
}
