/*
 * Looks into a UKI; see uki.h. Touches nothing.
 */
#include "stick/uki.h"

#include "base/util.h"

#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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

/* The value of "KEY=value" or "KEY=\"value\"" on a line of its own, the last one counts; false: there is none, or it is
 * longer than that. */
static bool find_value(const char *text, size_t len, const char *key, char value[UKI_VERSION_MAX + 1])
{
	size_t key_len = strlen(key);
	bool found = false;

	for (const char *line = text, *end = text + len; line < end;) {
		const char *next = memchr(line, '\n', (size_t)(end - line)), *at = line + key_len;
		size_t n = (size_t)((next ? next : end) - line);
		if (n > key_len && memcmp(line, key, key_len) == 0) {
			n -= key_len;
			if (n >= 2 && at[0] == '"' && at[n - 1] == '"') {
				at++;
				n -= 2;
			}
			found = n > 0 && n <= UKI_VERSION_MAX && !memchr(at, '\0', n);
			snprintf(value, UKI_VERSION_MAX + 1, "%.*s", found ? (int)n : 0, at);
		}
		line = next ? next + 1 : end;
	}
	return found;
}

struct error *release_read(const char *text, size_t len, const char *what, struct release *release)
{
	char level[UKI_VERSION_MAX + 1] = "";

	*release = (struct release){};
	if (!find_value(text, len, "VERSION_ID=", release->version) ||
	    strspn(release->version, UKI_VERSION_CHARACTERS) != strlen(release->version))
		return error_new(0, "%s: its .osrel says no version that a file's name can have", what);
	if (!find_value(text, len, "GLINT_SECURITY=", level))
		return NULL;
	if (strlen(level) > 9 || strspn(level, "0123456789") != strlen(level))
		return error_new(0, "%s: its .osrel says no number for GLINT_SECURITY", what);
	release->security = (unsigned)strtoul(level, NULL, 10);
	return NULL;
}

struct error *uki_release(const void *data, size_t len, const char *what, struct release *release)
{
	size_t bytes = 0, kernel;
	const char *text = section(data, len, ".osrel\0", &bytes);

	if (!text || !section(data, len, ".linux\0", &kernel))
		return error_hint(error_new(0, "%s is not a unified kernel image", what),
				  "name the UKI of a Glint release: it ends in .efi");
	return release_read(text, bytes, what, release);
}

struct error *uki_version(const void *data, size_t len, const char *what, char version[UKI_VERSION_MAX + 1])
{
	struct release release;

	TRY(uki_release(data, len, what, &release));
	memcpy(version, release.version, sizeof(release.version));
	return NULL;
}
