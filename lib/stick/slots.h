/*
 * The slots of a stick: the UKIs in EFI/Linux of its ESP that are Glint's. A slot's name says its version and, while it
 * is on trial, how often it may still be tried and how often it was (systemd's Automatic Boot Assessment):
 *
 *     glint_1.3+2-1.efi   on trial: two tries left, one made. systemd-boot counts, by renaming, before it boots it
 *     glint_1.2.efi       known to be good: blessed
 *
 * systemd-boot boots the newest one that is not out of tries. Names are hostile: what is no slot's is left alone.
 */
#ifndef GLINT_STICK_SLOTS_H
#define GLINT_STICK_SLOTS_H

#include "stick/fat.h"
#include "stick/uki.h"

#define SLOTS_PATH  "EFI/Linux"
#define SLOT_PREFIX "glint_" /* of their names */
#define SLOTS_MAX   16u      /* that are looked at */

struct slot {
	char file[FAT_NAME_MAX + 1];
	char version[UKI_VERSION_MAX + 1];
	bool trial;          /* it has a counter */
	unsigned left, done; /* tries, on trial */
	uint32_t size;       /* bytes */
};

struct slots {
	unsigned count;
	struct slot list[SLOTS_MAX];
};

/* What the name of a file says; false: it is no slot's. The size is left alone. */
bool slot_parse(const char *file, struct slot *slot);

[[nodiscard]] struct error *slots_list(struct fat *fat, struct slots *slots);

/*
 * The slot that @image names, or NULL: a path or an identifier as boot loader and stub say it in EFI variables
 * ("\EFI\Linux\glint_1.3+2-1.efi", LOADER_STUB_IMAGE), whatever its counter was then.
 */
const struct slot *slots_named(const struct slots *slots, const char *image);

/*
 * The one to keep where none is running: the newest that is known to be good; else the newest that has tries left; else
 * the newest. NULL: there is none.
 */
const struct slot *slots_best(const struct slots *slots);

/*
 * Takes the counter out of a slot's name: it is good. Durable; a cut leaves one name or the other (or, where the name
 * lies in two sectors, for a moment the short one, which boots, too). Nothing is written for one that has none.
 */
[[nodiscard]] struct error *slots_bless(struct fat *fat, const struct slot *slot);

[[nodiscard]] struct error *slots_remove(struct fat *fat, const struct slot *slot);

#endif
