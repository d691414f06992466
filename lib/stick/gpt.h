/*
 * The partition table of a stick: GPT (UEFI specification 2.10, chapter 5), of sectors of 512 bytes.
 *
 * A table is written so that the old one or the new one is there at every moment: the list of partitions has two
 * places before the first partition, and one sector, the header, says which of them counts. The sector that says that
 * there is a GPT at all is written last; what was cut before is no stick.
 */
#ifndef GLINT_STICK_GPT_H
#define GLINT_STICK_GPT_H

#include "stick/blocks.h"

#define GPT_PARTITIONS_MAX 128u
#define GPT_ALIGN          ((uint64_t)1 << 20) /* where partitions begin; before the first one there is room for tables */
#define GPT_END_BYTES      ((uint64_t)33 * SECTOR)

/* As they stand on the medium: the first three numbers little-endian. */
struct guid {
	uint8_t bytes[16];
};

extern const struct guid gpt_esp, gpt_state, gpt_guest;

struct gpt_partition {
	struct guid type, id;
	uint64_t start, len; /* bytes */
	char name[36 * 3 + 1];
};

struct gpt {
	struct guid disk;
	unsigned count;
	struct gpt_partition partitions[GPT_PARTITIONS_MAX];
	uint64_t entries_at; /* of the list that counts, in sectors; 0: there is no table yet */
	bool from_backup;    /* the first header is no good */
};

/* Partitions lie inside the medium and not over each other, or it is refused. */
[[nodiscard]] struct error *gpt_read(const struct blocks *m, struct gpt *gpt);

/* Writes it, durably, and notes the new place of the list. The medium may have become larger since it was read. */
[[nodiscard]] struct error *gpt_write(const struct blocks *m, struct gpt *gpt);

/* A place for @len bytes (whole GPT_ALIGN) on a medium of @size bytes; 0: there is none. */
uint64_t gpt_room(const struct gpt *gpt, uint64_t size, uint64_t len);
/* The medium's size that a partition of @len bytes behind the others asks for. */
uint64_t gpt_size_for(const struct gpt *gpt, uint64_t len);

/* The first of this type, or NULL. */
const struct gpt_partition *gpt_find(const struct gpt *gpt, const struct guid *type);

/* Whether both say the same of the same partitions, in the same order. */
bool gpt_same(const struct gpt *a, const struct gpt *b);

bool guid_equal(const struct guid *a, const struct guid *b);
const char *guid_text(const struct guid *guid, char text[37]);

#endif
