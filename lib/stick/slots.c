/*
 * Slots; see slots.h. Touches the ESP, by lib/stick/fat.
 */
#include "stick/slots.h"

#include "stick/version.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUFFIX ".efi"

/* A number of up to three digits; behind it, or NULL. */
static const char *read_tries(const char *text, unsigned *value)
{
	size_t n = strspn(text, "0123456789");

	*value = (unsigned)strtoul(text, NULL, 10);
	return n >= 1 && n <= 3 ? text + n : NULL;
}

bool slot_parse(const char *file, struct slot *slot)
{
	size_t len = strlen(file), prefix = strlen(SLOT_PREFIX), suffix = strlen(SUFFIX);
	uint32_t size = slot->size;

	*slot = (struct slot){.size = size};
	if (len <= prefix + suffix || len > FAT_NAME_MAX || strncasecmp(file, SLOT_PREFIX, prefix) != 0 ||
	    strcasecmp(file + len - suffix, SUFFIX) != 0)
		return false;
	const char *version = file + prefix, *plus = strchr(version, '+'), *end = file + len - suffix;
	size_t n = (size_t)((plus ? plus : end) - version);
	if (n == 0 || n > UKI_VERSION_MAX || strspn(version, UKI_VERSION_CHARACTERS) < n)
		return false;
	if (plus) {
		const char *at = read_tries(plus + 1, &slot->left);
		if (at && *at == '-')
			at = read_tries(at + 1, &slot->done);
		if (at != end)
			return false;
		slot->trial = true;
	}
	memcpy(slot->file, file, len + 1);
	memcpy(slot->version, version, n);
	return true;
}

static struct error *each(void *arg, const struct fat_entry *e)
{
	struct slots *s = arg;

	if (!e->folder && s->count < SLOTS_MAX && slot_parse(e->name, &s->list[s->count]))
		s->list[s->count++].size = e->size;
	return NULL;
}

struct error *slots_list(struct fat *fat, struct slots *slots)
{
	*slots = (struct slots){};
	return fat_list(fat, SLOTS_PATH, each, slots);
}

const struct slot *slots_named(const struct slots *slots, const char *image)
{
	struct slot wanted = {};

	for (const char *c = image; *c; c++)
		if (*c == '\\' || *c == '/')
			image = c + 1;
	if (!slot_parse(image, &wanted))
		return NULL;
	for (unsigned i = 0; i < slots->count; i++)
		if (strcasecmp(slots->list[i].version, wanted.version) == 0)
			return &slots->list[i];
	return NULL;
}

/* Whether @a is to be kept rather than @b. */
static bool better(const struct slot *a, const struct slot *b)
{
	unsigned rank_a = !a->trial ? 2 : a->left > 0, rank_b = !b->trial ? 2 : b->left > 0;

	return rank_a != rank_b ? rank_a > rank_b : version_compare(a->version, b->version) > 0;
}

const struct slot *slots_best(const struct slots *slots)
{
	const struct slot *best = NULL;

	for (unsigned i = 0; i < slots->count; i++)
		if (!best || better(&slots->list[i], best))
			best = &slots->list[i];
	return best;
}

struct error *slots_bless(struct fat *fat, const struct slot *slot)
{
	char path[FAT_NAME_MAX + sizeof(SLOTS_PATH) + 1], name[FAT_NAME_MAX + 1];

	if (!slot->trial)
		return NULL;
	snprintf(path, sizeof(path), SLOTS_PATH "/%s", slot->file);
	snprintf(name, sizeof(name), SLOT_PREFIX "%s" SUFFIX, slot->version);
	return fat_rename(fat, path, name);
}

struct error *slots_remove(struct fat *fat, const struct slot *slot)
{
	char path[FAT_NAME_MAX + sizeof(SLOTS_PATH) + 1];

	snprintf(path, sizeof(path), SLOTS_PATH "/%s", slot->file);
	return fat_remove(fat, path);
}
