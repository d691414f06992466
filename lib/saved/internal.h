/*
 * What the files of lib/saved share: stream.c moves bytes and keeps the checksum, unit.c makes units of them, fields.c
 * the fields inside a unit, bulk.c the memory between units.
 */
#ifndef GLINT_SAVED_INTERNAL_H
#define GLINT_SAVED_INTERNAL_H

#include "saved/format.h"
#include "saved/saved.h"

#include <sys/uio.h>

/* A unit or a group that a body is working in. Positions are offsets in the unit's bytes. */
struct saved_frame {
	const char *name; /* of the field that holds the group; NULL in the unit itself */
	size_t index;     /* the element, for groups of a list */
	bool is_element;
	size_t start;
	size_t end;    /* loading only */
	size_t cursor; /* loading: where to look first, since fields mostly come in the order they are asked for */
};

enum saved_phase { SAVED_READY, SAVED_IN_BODY, SAVED_FINISHED, SAVED_FAILED };

struct saved {
	int fd;
	bool loading;
	enum saved_phase phase;
	uint64_t offset;  /* bytes of the stream behind us */
	uint32_t sum;     /* CRC-32C of them, check fields left out */
	uint32_t records; /* units and bulk sections behind us */

	/* the unit at hand */
	uint32_t version;
	struct error *err; /* the first, sticky */
	bool require;
	uint8_t *buf;
	size_t len; /* bytes of the unit in buf */
	size_t capacity;
	unsigned depth;
	struct saved_frame frames[SAVED_DEPTH_MAX + 1];
};

struct saved_head {
	char tag[SAVED_TAG_BYTES + 1];
	uint64_t length;
	char name[SAVED_NAME_MAX + 1];
	uint32_t value;
};

/* True for a name of 1 to SAVED_NAME_MAX printable ASCII characters: one that can be shown to a person as it is. */
bool saved_name_ok(const char *name, size_t len);

/*
 * Write or read all bytes of @iov, which they use up, and count them in the offset (the checksum is their callers').
 * @what names what is being moved in errors.
 */
[[nodiscard]] struct error *saved_write(struct saved *s, struct iovec *iov, unsigned count, const char *what);
[[nodiscard]] struct error *saved_read(struct saved *s, struct iovec *iov, unsigned count, const char *what);

/* Counts @len bytes in the checksum. */
void saved_sum(struct saved *s, const void *data, size_t len);

/* True when the check field at @at holds the checksum of everything before it. */
bool saved_check(const struct saved *s, const void *at);

/* An error about damage: a checksum of @what is wrong. */
[[nodiscard]] struct error *saved_damaged(const struct saved *s, const char *what);

/* Makes the bytes of a head, its check included, and counts them in the checksum. */
void saved_head_make(struct saved *s, const char *tag, const char *name, uint64_t length, uint32_t value,
		     uint8_t bytes[SAVED_HEAD_BYTES]);

/* Reads the next head and proves it (at the front of the stream, the header: its magic first). */
[[nodiscard]] struct error *saved_head_read(struct saved *s, struct saved_head *head);

/* The same for a head that must have @tag and @name. */
[[nodiscard]] struct error *saved_head_expect(struct saved *s, const char *tag, const char *name,
					      struct saved_head *head);

/*
 * Opens and ends each call about a record. The first refuses a stream that has failed or ended, or one whose body is
 * still running; the second remembers a failure: after it nothing more can be done with the stream.
 */
[[nodiscard]] struct error *saved_begin(struct saved *s, const char *name);
[[nodiscard]] struct error *saved_end(struct saved *s, struct error *err);

/* Runs @body over the fields of the unit in s->buf. The error, if any, is in s->err. */
void saved_run_body(struct saved *s, saved_body_fn *body, void *self);

/* Makes room for @len bytes in s->buf, keeping s->len bytes of it. */
[[nodiscard]] struct error *saved_reserve(struct saved *s, size_t len);

#endif
