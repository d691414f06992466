/*
 * Looks into a UKI; see uki.h. Touches nothing.
 */
#include "stick/uki.h"

#include "base/util.h"

#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define PE_AT         0x3cu
#define COFF_BYTES    24u
#define SECTION_BYTES 40u

static uint32_t le32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static uint16_t le16_at(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

/* The contents of the section @name; NULL: there is none. */
static const char *section(const uint8_t *data, size_t len, const char name[8], size_t *bytes)
{
	if (len < PE_AT + 4 || data[0] != 'M' || data[1] != 'Z')
		return NULL;
	uint64_t pe = le32_at(data + PE_AT);
	if (!range_inside(pe, COFF_BYTES, len) || memcmp(data + pe, "PE\0\0", 4) != 0)
		return NULL;
	uint64_t table = pe + COFF_BYTES + le16_at(data + pe + 20);
	for (unsigned i = 0, count = le16_at(data + pe + 6); i < count; i++) {
		uint64_t at = table + (uint64_t)i * SECTION_BYTES;
		if (!range_inside(at, SECTION_BYTES, len))
			return NULL;
		if (memcmp(data + at, name, 8) != 0)
			continue;
		uint32_t size = le32_at(data + at + 8), raw = le32_at(data + at + 16), place = le32_at(data + at + 20);
		*bytes = MIN(size, raw);
		return range_inside(place, *bytes, len) ? (const char *)data + place : NULL;
	}
	return NULL;
}

struct error *uki_version(const void *data, size_t len, const char *what, char version[UKI_VERSION_MAX + 1])
{
	static const char key[] = "VERSION_ID=",
			  good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.~^-";
	size_t bytes = 0, kernel;
	const char *text = section(data, len, ".osrel\0", &bytes);

	if (!text || !section(data, len, ".linux\0", &kernel))
		return error_hint(error_new(0, "%s is not a unified kernel image", what),
				  "name the UKI of a Glint release: it ends in .efi");
	for (const char *line = text, *end = text + bytes; line < end;) {
		const char *next = memchr(line, '\n', (size_t)(end - line));
		size_t n = (size_t)((next ? next : end) - line);
		if (n > sizeof(key) - 1 && memcmp(line, key, sizeof(key) - 1) == 0) {
			const char *value = line + sizeof(key) - 1;
			n -= sizeof(key) - 1;
			if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
				value++;
				n -= 2;
			}
			snprintf(version, UKI_VERSION_MAX + 1, "%.*s", (int)MIN(n, (size_t)UKI_VERSION_MAX), value);
			if (n > 0 && n <= UKI_VERSION_MAX && strspn(version, good) == n)
				return NULL;
		}
		line = next ? next + 1 : end;
	}
	return error_new(0, "%s: its .osrel says no version that a file's name can have", what);
}
