/*
 * The journal's inside, shared by journal.c (writing) and recover.c (reading) alone.
 */
#ifndef GLINT_KEEPER_INTERNAL_H
#define GLINT_KEEPER_INTERNAL_H

#include "node/keeper/format.h"
#include "node/keeper/journal.h"

struct journal {
	const struct journal_io *io;
	struct journal_info info;
	uint8_t writer[16];
	uint64_t area_size;
	unsigned area;    /* the active one */
	uint64_t epoch;   /* of what is in it */
	uint64_t end;     /* of the log, within the area */
	uint64_t log_end; /* where it must end */
	uint64_t first_sequence;
	bool header_due; /* a flip was cut short: the snapshot is whole, its header is not there yet */
	bool failed;     /* nothing more is taken */
	bool accepted_loss;
};

/* Finds the newest state and hands it to @take; fills in all of @journal but io and writer. Writes nothing. */
[[nodiscard]] struct error *journal_recover(struct journal *journal, journal_take_fn *take, void *arg);

/* The checksums of what stands at @header, and at @record with its payload behind it. */
uint32_t journal_header_sum(const struct journal_header *header);
uint32_t journal_record_sum(const struct journal_record *record);

#endif
