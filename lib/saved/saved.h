/*
 * Saved state: what a machine is, in typed, named, versioned fields.
 *
 * A stream is a header (magic, format version, machine type), then units, then an end mark with a checksum over all of
 * it. A unit is one device, vCPU or other part under a unique name, with a version; it holds fields. A field has a
 * name, a type and a value; a group is a named list of fields, for arrays of structures and optional subsections.
 * docs/saved-state.md has the byte layout.
 *
 * One function body serves both directions: it names each field and gives the place where its value lives.
 *
 *     static void rtc_state(void *self, struct saved *s)
 *     {
 *             struct rtc *rtc = self;
 *             saved_u8(s, "index", &rtc->index);
 *             saved_bytes(s, "cmos", rtc->cmos, sizeof(rtc->cmos));
 *             if (saved_loading(s) && rtc->index >= sizeof(rtc->cmos))
 *                     saved_fail(s, "index %u is past the end", rtc->index);
 *     }
 *
 * Saving writes fields in the order named. Loading finds each by name: order is free, an absent field keeps the value
 * the place already has (saved_require makes its absence an error), a field of another type or size is an error, and
 * so is one that nobody asked for once the body is done. Errors are sticky: after the first, every call is a no-op and
 * the error comes out of saved_unit(). A stream is hostile: all sizes are bounded before use. State is loaded into a
 * machine that has not run; one whose load failed is thrown away, so a half-loaded unit hurts nobody.
 *
 * Save what the device is, not how this code holds it: names and meanings are kept for as long as streams are.
 */
#ifndef GLINT_SAVED_SAVED_H
#define GLINT_SAVED_SAVED_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Limits on a stream: enough for 256 vCPUs and their MSRs, small enough to bound memory on hostile input. */
#define SAVED_NAME_MAX  63         /* bytes in the name of a unit, group or field */
#define SAVED_UNIT_MAX  (4u << 20) /* bytes in one unit */
#define SAVED_UNITS_MAX 8192       /* units in a stream */
#define SAVED_DEPTH_MAX 8          /* groups inside groups */

struct saved;

typedef void saved_body_fn(void *self, struct saved *s);

/*
 * Starts writing a stream to @fd (a file, pipe or socket; only ever written forward). @machine_type: "glint-q35-1".
 * *s is the caller's, ended by saved_close.
 */
[[nodiscard]] struct error *saved_create(int fd, const char *machine_type, struct saved **s);

/* Starts reading a stream from @fd, forward only. Checks magic, version and machine type (named in the error). */
[[nodiscard]] struct error *saved_open(int fd, const char *machine_type, struct saved **s);

/*
 * Saving: writes the unit @name by running @body. Loading: the stream's next unit must be @name (units travel in the
 * order in which the machine was built), with a version in [1, @version]; runs @body over its fields.
 * Any error names the unit and the field.
 */
[[nodiscard]] struct error *saved_unit(struct saved *s, const char *name, uint32_t version, saved_body_fn *body,
				       void *self);

/*
 * A bulk section between units: @len bytes at @data written or read as they are (guest memory). Zero pages are not
 * written and read back as zero: @data of a loading machine must be fresh zero memory. Counted in the checksum.
 */
[[nodiscard]] struct error *saved_bulk(struct saved *s, const char *name, void *data, uint64_t len);

/*
 * The same for @data that maps the memfd @fd from @offset on: what was never touched is neither read nor allocated.
 */
[[nodiscard]] struct error *saved_bulk_file(struct saved *s, const char *name, void *data, uint64_t len, int fd,
					    uint64_t offset);

/* Saving: writes the end mark. Loading: requires it, and that the checksum over the whole stream is right. */
[[nodiscard]] struct error *saved_finish(struct saved *s);

/* Frees @s (the descriptor stays the caller's). NULL is allowed. */
void saved_close(struct saved *s);

static inline void cleanup_saved_fn(struct saved **s)
{
	saved_close(*s);
}
#define cleanup_saved __attribute__((cleanup(cleanup_saved_fn)))

/* --- inside a body --- */

/* True while a body loads, false while it saves. */
bool saved_loading(const struct saved *s);

/* The version of the unit at hand: the present one while saving, the stream's while loading. */
uint32_t saved_version(const struct saved *s);

void saved_bool(struct saved *s, const char *name, bool *value);
void saved_u8(struct saved *s, const char *name, uint8_t *value);
void saved_u16(struct saved *s, const char *name, uint16_t *value);
void saved_u32(struct saved *s, const char *name, uint32_t *value);
void saved_u64(struct saved *s, const char *name, uint64_t *value);

/* Exactly @len bytes. */
void saved_bytes(struct saved *s, const char *name, void *data, size_t len);

/* At most @max bytes, *len of them used: for contents whose length varies. */
void saved_blob(struct saved *s, const char *name, void *data, size_t *len, size_t max);

/* A NUL-terminated string in a buffer of @size bytes. */
void saved_string(struct saved *s, const char *name, char *buf, size_t size);

/*
 * @count elements of an array, each a group written by @body, which gets the element (@base + i * @stride) as self.
 * Loading requires just as many elements.
 */
void saved_array(struct saved *s, const char *name, void *base, size_t count, size_t stride, saved_body_fn *body);

/*
 * An array whose length varies: at most @max elements, *count of them used; loading sets *count (bounded by @max).
 */
void saved_list(struct saved *s, const char *name, void *base, size_t *count, size_t max, size_t stride,
		saved_body_fn *body);

/*
 * An optional subsection: saving writes it when @needed, loading runs @body when it is there. Returns whether it ran.
 */
bool saved_subsection(struct saved *s, const char *name, bool needed, saved_body_fn *body, void *self);

/* Loading: makes the absence of the next field named an error. No-op while saving. */
void saved_require(struct saved *s);

/* Ends the body with an error about the unit at hand: for values that fit their type but not the device. */
[[gnu::format(printf, 2, 3)]] void saved_fail(struct saved *s, const char *fmt, ...);

#endif
