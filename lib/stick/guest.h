/*
 * A guest carried on a stick: a partition of its own. It begins with the guest's disk, a VHDX image; its last
 * GUEST_TAIL bytes are the definition, which a guest that writes to its disk cannot reach.
 */
#ifndef GLINT_STICK_GUEST_H
#define GLINT_STICK_GUEST_H

#include "stick/blocks.h"

#define GUEST_TAIL     4096u
#define GUEST_NAME_MAX 32u
#define GUEST_CPUS_MAX 256u

struct guest {
	char name[GUEST_NAME_MAX + 1];
	uint64_t memory; /* bytes, whole MiB */
	unsigned cpus;
	bool autostart;
	bool persist;   /* what it writes goes to the stick, not to memory */
	bool console;   /* its serial port is at the host's screen and serial port */
	uint64_t image; /* bytes of the image */
};

/* Whether it can be a guest's name: letters, digits, '-', '_', the first one a letter or a digit. */
bool guest_name_good(const char *name);

/* Makes the definition's bytes. */
void guest_write(const struct guest *guest, uint8_t tail[GUEST_TAIL]);
/* Reads them. @len: bytes of the partition; @what names it in errors. */
[[nodiscard]] struct error *guest_read(struct guest *guest, const uint8_t tail[GUEST_TAIL], uint64_t len,
				       const char *what);

#endif
