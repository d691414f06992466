/*
 * Updates; see update.h. Touches the ESP, by lib/stick.
 */
#include "update/update.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "stick/version.h"
#include "update/signature.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct error *update_check(struct update *u, const char *certificate, size_t certificate_len)
{
	TRY(signature_check(u->data, u->len, u->what, certificate, certificate_len));
	return uki_release(u->data, u->len, u->what, &u->release);
}

/* The slot that stays, whatever happens: what runs, or what would be booted. */
static struct error *choose_kept(struct update *u, const struct slots *slots)
{
	const struct slot *kept = u->running ? slots_named(slots, u->image) : slots_best(slots);

	if (!kept && u->running)
		return error_hint(error_new(ENOENT, "what runs (%s) is no slot of this stick", u->image),
				  "boot from the stick that is to be updated");
	if (!kept)
		return error_hint(error_new(ENOENT, "there is no host on this stick"), "glint image create makes one");
	if (u->running && kept->trial)
		return error_hint(error_new(EBUSY,
					    "version %s is on trial itself, and needs the slot of the one before",
					    u->running->version),
				  "wait until the host has said that it is healthy");
	u->kept = *kept;
	return NULL;
}

/* What is the least that may be installed. */
static struct error *read_least(const struct update *u, struct fat *fat, struct release *least)
{
	char path[FAT_NAME_MAX + sizeof(SLOTS_PATH) + 1];
	cleanup_free char *data = NULL;
	size_t len;

	if (u->running) {
		*least = *u->running;
		return NULL;
	}
	snprintf(path, sizeof(path), SLOTS_PATH "/%s", u->kept.file);
	TRY(fat_read(fat, path, UPDATE_BYTES_MAX, &data, &len));
	return uki_release(data, len, path, least);
}

static struct error *check_order(const struct update *u, const struct release *least)
{
	if (u->release.security < least->security)
		return error_hint(error_new(EPERM, "%s has the security level %u, and this host has %u", u->what,
					    u->release.security, least->security),
				  "it has faults that are mended since: take a newer release");
	int order = version_compare(u->release.version, least->version);
	if (order == 0)
		return error_new(EPERM, "%s is version %s, which this host has", u->what, least->version);
	if (order < 0)
		return error_hint(error_new(EPERM, "%s is version %s, older than %s, which this host has", u->what,
					    u->release.version, least->version),
				  "the boot loader takes the newest: take a newer release");
	return NULL;
}

static bool is_kept(const struct update *u, const struct slot *slot)
{
	return strcmp(slot->file, u->kept.file) == 0;
}

static struct error *check_room(const struct update *u, const struct fat *fat, const struct slots *slots)
{
	uint64_t room = fat_free(fat), needed = fat_room(fat, u->len);

	for (unsigned i = 0; i < slots->count; i++)
		room += is_kept(u, &slots->list[i]) ? 0 : fat_room(fat, slots->list[i].size);
	if (room >= needed)
		return NULL;
	return error_hint(error_new(ENOSPC, "its ESP has room for %llu MiB beside version %s, and %llu MiB are needed",
				    (unsigned long long)(room / MIB), u->kept.version,
				    (unsigned long long)(align_up(needed, MIB) / MIB)),
			  "remove files that are not the host's from it");
}

static void step(const struct update *u, const char *what)
{
	if (u->step)
		u->step(u->arg, what);
}

static struct error *remove_others(struct update *u, struct fat *fat, const struct slots *slots)
{
	for (unsigned i = 0; i < slots->count; i++) {
		if (is_kept(u, &slots->list[i]))
			continue;
		TRY(slots_remove(fat, &slots->list[i]));
		memcpy(u->removed, slots->list[i].file, sizeof(u->removed));
	}
	return NULL;
}

struct error *update_write(struct update *u, struct fat *fat)
{
	char path[FAT_NAME_MAX + sizeof(SLOTS_PATH) + 1];
	struct fat_chain chain;
	struct release least;
	struct slots slots;

	TRY(slots_list(fat, &slots));
	TRY(choose_kept(u, &slots));
	TRY(read_least(u, fat, &least));
	TRY(check_order(u, &least));
	TRY(check_room(u, fat, &slots));

	TRY(remove_others(u, fat, &slots));
	step(u, "write");
	TRY(fat_write(fat, u->data, u->len, &chain));
	if (u->forget)
		u->forget(u->arg);
	step(u, "read back");
	TRY(fat_compare(fat, &chain));
	snprintf(u->written, sizeof(u->written), "glint_%s+%u-0.efi", u->release.version, UPDATE_TRIES);
	snprintf(path, sizeof(path), SLOTS_PATH "/%s", u->written);
	return fat_name(fat, path, &chain);
}
