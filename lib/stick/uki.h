/*
 * A unified kernel image: a PE file with sections (Boot Loader Specification, type 2; PE/COFF).
 */
#ifndef GLINT_STICK_UKI_H
#define GLINT_STICK_UKI_H

#include "base/error.h"

#include <stddef.h>

#define UKI_VERSION_MAX 32

/* The version that its .osrel says (VERSION_ID), of characters that file names may have. @what names it in errors. */
[[nodiscard]] struct error *uki_version(const void *data, size_t len, const char *what,
					char version[UKI_VERSION_MAX + 1]);

#endif
