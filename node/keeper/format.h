/*
 * The journal's bytes on a stick: what stands where. docs/state-on-flash.md has the same as a promise, with the why.
 *
 *     0           header of odd and even generations (1 MiB apart: one broken erase block harms one of them)
 *     1 MiB
 *     2 MiB       area 0
 *     2 MiB + A   area 1     A: half of what is left, in whole MiB
 *
 * An area begins with a snapshot, records that hold the whole state, and goes on with a record for each write.
 * Everything is little-endian, begins and ends at multiples of 4096, and is padded with zeroes.
 */
#ifndef GLINT_KEEPER_FORMAT_H
#define GLINT_KEEPER_FORMAT_H

#include "base/util.h"

#include <stdint.h>

#define JOURNAL_BLOCK   4096u
#define JOURNAL_VERSION 1u
#define JOURNAL_SLOTS   2u
#define JOURNAL_AREAS   2u
#define JOURNAL_SLOT(i) ((uint64_t)(i) * MIB)
#define JOURNAL_AREA_0  (2 * MIB)
#define JOURNAL_MIN     (4 * MIB)

/* The most that one record carries; what is larger goes into a snapshot, which is many records. */
#define JOURNAL_PAYLOAD_MAX ((uint32_t)MIB)

/* The log behind a snapshot of S bytes is at most the larger of these two, and ends with the area. */
#define JOURNAL_LOG_MIN   (4 * MIB)
#define JOURNAL_LOG_TIMES 4u

/* Not UTF-8: no text that a record carries can look like one. */
#define JOURNAL_HEADER_MAGIC "\xffGLNTHDR"
#define JOURNAL_RECORD_MAGIC "\xffGLNTREC"

struct journal_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t checksum; /* CRC-32C of the 4096 bytes, this field taken as 0 */
	uint64_t generation;
	uint8_t stick[16];  /* the stick's id, drawn when it was formatted */
	uint8_t writer[16]; /* who wrote the snapshot: drawn anew by each process */
	uint64_t medium_size;
	uint64_t area_size;
	uint32_t active;  /* the area */
	uint32_t sealing; /* 0: the payloads are clear. Others: sealed by the key in @sealed (none is defined yet) */
	uint64_t epoch;   /* drawn for each snapshot; every record of the area has it */
	uint64_t first_sequence;
	uint8_t sealed[2048];
	uint8_t reserved[1952];
};
static_assert(sizeof(struct journal_header) == JOURNAL_BLOCK);

enum { JOURNAL_SNAPSHOT = 1, JOURNAL_SNAPSHOT_END = 2 };

struct journal_record {
	uint8_t magic[8];
	uint32_t checksum; /* CRC-32C of this header, this field taken as 0, and the payload */
	uint32_t length;   /* of the payload, which follows */
	uint64_t sequence; /* one more than that of the record before, snapshots included */
	uint64_t generation;
	uint64_t epoch;
	uint8_t writer[16];
	uint32_t flags;
	uint32_t changes; /* transactions in it */
};
static_assert(sizeof(struct journal_record) == 64);

/* A payload is items, each this and its bytes, padded to 8. */
struct journal_item_head {
	uint32_t kind, length;
};
static_assert(sizeof(struct journal_item_head) == 8);

static inline uint64_t journal_area_size(uint64_t medium_size)
{
	return align_down((medium_size - JOURNAL_AREA_0) / JOURNAL_AREAS, MIB);
}

static inline uint64_t journal_area(uint64_t medium_size, unsigned area)
{
	return JOURNAL_AREA_0 + area * journal_area_size(medium_size);
}

/* Where the log behind a snapshot that ends at @snapshot (within the area) must end. */
static inline uint64_t journal_log_end(uint64_t area_size, uint64_t snapshot)
{
	return MIN(area_size, snapshot + MAX(JOURNAL_LOG_MIN, JOURNAL_LOG_TIMES * snapshot));
}

#endif
