/*
 * Names of keys, for scripts: "ctrl-alt-delete" is three of them at once. Codes are those of Linux's
 * input-event-codes.h.
 */
#ifndef GLINT_VMM_DISPLAY_KEYS_H
#define GLINT_VMM_DISPLAY_KEYS_H

#include "base/error.h"

#define KEYS_AT_ONCE 5

/* Splits @text at its dashes; *count (1 to KEYS_AT_ONCE) codes. EINVAL names what is not a key. */
[[nodiscard]] struct error *keys_parse(const char *text, unsigned code[KEYS_AT_ONCE], unsigned *count);

#endif
