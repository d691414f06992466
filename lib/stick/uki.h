/*
 * A unified kernel image: a PE file with sections (Boot Loader Specification, type 2; PE/COFF).
 */
#ifndef GLINT_STICK_UKI_H
#define GLINT_STICK_UKI_H

#include "base/error.h"

#include <stddef.h>

#define UKI_VERSION_MAX        32
#define UKI_VERSION_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.~^-"

/* What an os-release says of a Glint. */
struct release {
	char version[UKI_VERSION_MAX + 1]; /* VERSION_ID, of characters that file names may have */
	unsigned security;                 /* GLINT_SECURITY, a number that only grows; 0 when it says none */
};

/* Reads the text of an os-release. @what names it in errors. */
[[nodiscard]] struct error *release_read(const char *text, size_t len, const char *what, struct release *release);

/* Reads that of a UKI, its section .osrel. */
[[nodiscard]] struct error *uki_release(const void *data, size_t len, const char *what, struct release *release);

/* Its version alone. */
[[nodiscard]] struct error *uki_version(const void *data, size_t len, const char *what,
					char version[UKI_VERSION_MAX + 1]);

#endif
