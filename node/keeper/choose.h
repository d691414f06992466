/*
 * Which of the sticks that are plugged in is the host's. Their partitions STATE have names in one folder, each that of
 * its disk (/dev/glint/state/sda). Nothing of a device is touched to find out whether one came or went.
 *
 * A host that has no stick yet takes the one it was booted from: its disk has a name in the folder @booted too
 * (/dev/glint/esp/UUID/sda, UUID of the ESP). Where nobody knows what it was booted from (PXE), any is. Later its own
 * is the one with the id of the journal on it, wherever it is plugged in. Where more than one is left, none is taken.
 */
#ifndef GLINT_KEEPER_CHOOSE_H
#define GLINT_KEEPER_CHOOSE_H

#include "base/error.h"

#include <stdint.h>

#define CHOOSE_PATH_MAX 256

/*
 * Finds the stick. @path: the folder, or the one partition that there is to choose from. @booted may be NULL. @id: of
 * the host's own journal, or zeroes. Fails with ENOENT where there is none, with 0 where a person has to choose.
 */
[[nodiscard]] struct error *choose_stick(const char *path, const char *booted, const uint8_t id[16],
					 char device[CHOOSE_PATH_MAX]);

/* A number for what there is to choose from: another one when a stick came or went, 0 when there is none. */
uint64_t choose_arrivals(const char *path, const char *booted, const uint8_t id[16]);

/* The same for one partition. */
uint64_t choose_arrival(const char *device);

/* Whether there is a folder to choose from, at this moment. */
bool choose_is_folder(const char *path);

/*
 * Reads what the boot loader said it was started from (LoaderDevicePartUUID, Boot Loader Interface; @variable: its
 * file in efivarfs) and makes @booted the folder of it in @folder; "" where it said nothing.
 */
void choose_booted(const char *variable, const char *folder, char booted[CHOOSE_PATH_MAX]);

#endif
