/*
 * What the boot loader said about where it was started from (systemd's Boot Loader Interface).
 */
#ifndef GLINT_STICK_LOADER_H
#define GLINT_STICK_LOADER_H

#include <stddef.h>

#define LOADER_UUID 36 /* characters */

/* Where the kernel shows them (efivarfs). */
#define LOADER_VARIABLE(name) "/sys/firmware/efi/efivars/" name "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
#define LOADER_PARTITION      LOADER_VARIABLE("LoaderDevicePartUUID")
#define LOADER_STUB_IMAGE     LOADER_VARIABLE("StubImageIdentifier") /* the path of the UKI that runs, in its ESP */

#define LOADER_ENTRIES LOADER_VARIABLE("LoaderEntries") /* all that the boot loader could have started */

/*
 * Reads the UUID of the ESP, in small letters, from LoaderDevicePartUUID (@variable: its file in efivarfs). False: it
 * says none, as on a host that was not started from a stick.
 */
bool loader_partition(const char *variable, char uuid[LOADER_UUID + 1]);

/* Reads a text, of at most @room - 1 characters; what is not ASCII becomes '?'. False: it says none, or more. */
bool loader_text(const char *variable, char *text, size_t room);

/* How many entries of a list have names that begin with @prefix, large and small letters alike; 0 where it says none.
 */
unsigned loader_entries(const char *variable, const char *prefix);

#endif
