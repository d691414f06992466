/*
 * The bytes of a saved-state stream: what docs/saved-state.md says, as constants. Shared by the parts of lib/saved and
 * by its tests; not for its users.
 */
#ifndef GLINT_SAVED_FORMAT_H
#define GLINT_SAVED_FORMAT_H

#include "saved/saved.h"

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define SAVED_FORMAT 1 /* the format version this code writes, and the newest it reads */

/* Every record (the header, a unit, a bulk section, the end mark) begins with a head of these fields. */
#define SAVED_TAG_BYTES  8
#define SAVED_TAG_HEADER "GLINTSAV"
#define SAVED_TAG_UNIT   "unit    "
#define SAVED_TAG_BULK   "bulk    "
#define SAVED_TAG_END    "end     "

#define SAVED_HEAD_LENGTH 8  /* u64 */
#define SAVED_HEAD_NAME   16 /* padded with NUL bytes */
#define SAVED_HEAD_VALUE  80 /* u32 */
#define SAVED_HEAD_CHECK  84 /* u32 */
#define SAVED_HEAD_BYTES  88

#define SAVED_CHECK_BYTES 4

/* A run of a bulk section. */
#define SAVED_RUN_OFFSET 0  /* u64 */
#define SAVED_RUN_LENGTH 8  /* u64 */
#define SAVED_RUN_CHECK  16 /* u32 */
#define SAVED_RUN_BYTES  20
#define SAVED_RUN_MAX    (1u << 20) /* bytes of memory in one run */

/* A field of a unit or group: type, length of the name, length of the value, name, value. */
#define SAVED_FIELD_TYPE     0 /* u8 */
#define SAVED_FIELD_NAME_LEN 1 /* u8 */
#define SAVED_FIELD_LENGTH   2 /* u32 */
#define SAVED_FIELD_BYTES    6

enum saved_type {
	SAVED_BOOL = 1,
	SAVED_U8,
	SAVED_U16,
	SAVED_U32,
	SAVED_U64,
	SAVED_BYTES,
	SAVED_STRING,
	SAVED_GROUP,
	SAVED_LIST,
};
#define SAVED_TYPE_MAX SAVED_LIST

static inline void put_le32(void *at, uint32_t value)
{
	value = htole32(value);
	memcpy(at, &value, sizeof(value));
}

static inline void put_le64(void *at, uint64_t value)
{
	value = htole64(value);
	memcpy(at, &value, sizeof(value));
}

static inline uint32_t get_le32(const void *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}

static inline uint64_t get_le64(const void *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}

#endif
