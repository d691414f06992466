/*
 * Putting a new host onto a stick: into the slot that is not needed, so that something good boots at every moment.
 *
 * What is refused is refused before anything is written. The order of writes, and what a cut leaves: docs/update.md.
 */
#ifndef GLINT_UPDATE_UPDATE_H
#define GLINT_UPDATE_UPDATE_H

#include "stick/slots.h"

#define UPDATE_BYTES_MAX ((size_t)256 << 20) /* of a UKI */
#define UPDATE_TRIES     1u                  /* of a new slot; why one: docs/update.md */

struct update {
	/* What is new: signature and release are checked by update_check(). */
	const void *data;
	size_t len;
	const char *what; /* its name, in errors */
	struct release release;

	/* The host that does it: what it is, and what its stub said it was booted from. NULL: a stick that is not
	 * booted. */
	const struct release *running;
	const char *image;

	/* What is written and read back passes here; may be NULL. */
	void (*forget)(void *arg); /* has what is read next come from the medium */
	void (*step)(void *arg, const char *what);
	void *arg;

	/* What was done. */
	struct slot kept;
	char removed[FAT_NAME_MAX + 1]; /* "": none */
	char written[FAT_NAME_MAX + 1];
};

/* Whether it is a whole release signed by the maker; fills in the release. @certificate: PEM. */
[[nodiscard]] struct error *update_check(struct update *u, const char *certificate, size_t certificate_len);

/*
 * Writes it to @fat. Refused: it is not newer, or of a lower security level, than what is kept (EPERM); what runs is on
 * trial itself (EBUSY), or not on this stick; no room (ENOSPC). An error behind that leaves the slot that is kept.
 */
[[nodiscard]] struct error *update_write(struct update *u, struct fat *fat);

#endif
