/*
 * Whether this host can do its job, and what becomes of the slot that it was started from. For this folder.
 */
#ifndef GLINT_NODE_HEALTH_H
#define GLINT_NODE_HEALTH_H

#include "base/error.h"
#include "stick/esp.h"
#include "stick/loader.h"
#include "stick/slots.h"

/* --- checks.c: can it do its job? --- */

struct checks {
	const char *keeper;   /* what the keeper says of itself: health.json */
	const char *database; /* socket of the host's database */
	const char *monitor;  /* glint-vmm */
	const char *kvm;      /* /dev/kvm */
	const char *cpuinfo;  /* /proc/cpuinfo */
};

/* Looks at all of it; the first thing that is not as it has to be is the error. Waits a few seconds at most. */
[[nodiscard]] struct error *checks_run(const struct checks *checks);

/* --- efi.c: the firmware's variables --- */

#define EFI_ENTRY_MAX 1024u /* bytes of a load option that we make */
#define EFI_ORDER_MAX 256u  /* entries */

/* Where a program lies: a file of a partition of a GPT. */
struct efi_file {
	unsigned partition;    /* its number, from 1 */
	uint64_t start, count; /* sectors of 512 bytes */
	char uuid[LOADER_UUID + 1];
	const char *path; /* "\EFI\BOOT\BOOTX64.EFI"; ASCII */
};

/* Makes an EFI_LOAD_OPTION (UEFI 2.10, 3.1.3) of at most EFI_ENTRY_MAX bytes; 0: the UUID or path is none. */
size_t efi_load_option(uint8_t option[EFI_ENTRY_MAX], const char *description, const struct efi_file *file);

/* Puts @first, in that order, before the others of the @count in @order; their new number. */
unsigned efi_boot_order(uint16_t order[EFI_ORDER_MAX], unsigned count, const uint16_t *first, unsigned first_count);

/*
 * Keeps the firmware's entries: Boot0020 starts @loader, Boot0021 starts @good, and both are tried first, in that
 * order. Only what differs is written. An entry of that number that is somebody else's is left alone, and is an error.
 * @folder: efivarfs.
 */
[[nodiscard]] struct error *efi_keep_entries(const char *folder, const struct efi_file *loader,
					     const struct efi_file *good);

/* --- running.c: the slot that runs --- */

struct running {
	char device[ESP_PATH_MAX];
	struct efi_file esp; /* without a path */
	struct slot slot;
	bool another;                     /* there is another slot that would be tried */
	char failed[UKI_VERSION_MAX + 1]; /* the newest that is newer and has no tries left; "": there is none */
};

struct places {
	const char *partition, *image, *entries; /* variables: LOADER_PARTITION, LOADER_STUB_IMAGE, LOADER_ENTRIES */
	const char *efivars, *esps, *sys;        /* folders: efivarfs, ESP_FOLDER, block devices by their number */
};

/* ENOENT: this host was not started from a stick (PXE). Where the stick is not seen, or not known for it, the slot is
 * what the boot loader said of it, with the error. Writes nothing. */
[[nodiscard]] struct error *running_find(const struct places *places, struct running *running);

/* Takes the counter out of its name, if there is one. */
[[nodiscard]] struct error *running_bless(struct running *running);

/* The entries of the firmware for it. */
[[nodiscard]] struct error *running_keep_entries(const struct places *places, const struct running *running);

#endif
