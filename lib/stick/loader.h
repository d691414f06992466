/*
 * What the boot loader said about where it was started from (systemd's Boot Loader Interface).
 */
#ifndef GLINT_STICK_LOADER_H
#define GLINT_STICK_LOADER_H

#define LOADER_UUID 36 /* characters */

/*
 * Reads the UUID of the ESP, in small letters, from LoaderDevicePartUUID (@variable: its file in efivarfs). False: it
 * says none, as on a host that was not started from a stick.
 */
bool loader_partition(const char *variable, char uuid[LOADER_UUID + 1]);

#endif
