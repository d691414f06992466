/*
 * The journal: a host's state on a stick, written so that power may fail, and the stick be pulled, at any instant.
 *
 * A journal is a snapshot and the changes since, in one of two areas; the other is where the next snapshot goes
 * (format.h). What journal_append() or journal_snapshot() returned success for is on the medium, flushed, and has been
 * read back. journal_open() gives back that, or that and what was under way. Damage is told from a torn end: behind a
 * torn end there is nothing. A damaged journal is read as far as it is proven good and is not written to until told.
 *
 * A journal belongs to one thread. It touches its medium, nothing else. All errors name the medium.
 */
#ifndef GLINT_KEEPER_JOURNAL_H
#define GLINT_KEEPER_JOURNAL_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/*
 * What is below: a file or block device, or a test's recorder. Offsets, lengths and memory are multiples of 4096.
 * Returns 0 or a negative errno; all of it is done or it fails.
 */
struct journal_io {
	int (*read)(const struct journal_io *io, void *data, size_t len, uint64_t offset);
	int (*write)(const struct journal_io *io, const void *data, size_t len, uint64_t offset);
	int (*flush)(const struct journal_io *io);
	uint64_t size;
	const char *name; /* in errors */
};

/* A medium that is a file or a device; @fd stays the caller's, and is O_DIRECT where what was written is read back. */
struct journal_file {
	struct journal_io io;
	int fd;
};
[[nodiscard]] struct error *journal_file_init(struct journal_file *file, int fd, const char *name);

enum journal_kind {
	JOURNAL_DATABASE = 1, /* more of the database's file: the bytes of all of them, in order, are the file */
	JOURNAL_IDENTITY = 2, /* the host's identity: the last one counts */
};

struct journal_item {
	enum journal_kind kind;
	const void *data;
	size_t len;
};

enum journal_state {
	JOURNAL_EMPTY,   /* nothing was ever finished on it: the first snapshot formats it */
	JOURNAL_WHOLE,   /* everything that was acknowledged is there */
	JOURNAL_DAMAGED, /* something that was acknowledged may be missing */
};

struct journal_info {
	enum journal_state state;
	uint8_t stick[16], writer[16]; /* of the last record */
	uint64_t generation, sequence; /* of the last record */
	uint64_t changes;              /* replayed since the snapshot, or written */
	uint64_t torn;                 /* bytes at the end that were dropped: never acknowledged */
	uint64_t written, flushes;     /* bytes since it was opened */
	char damage[160];              /* what is wrong, where; empty when nothing is */
};

struct journal;

/* Takes the state item by item; the data is only lent. */
typedef struct error *journal_take_fn(void *arg, const struct journal_item *item);

/*
 * Opens the journal on @io, which must outlive it, and hands what is proven good to @take, oldest first. Writes
 * nothing. @writer: the mark that records get. Fails when the medium cannot be read, is not a journal, or was written
 * by a newer Glint; damage is no failure, see journal_info().
 */
[[nodiscard]] struct error *journal_open(struct journal **out, const struct journal_io *io, const uint8_t writer[16],
					 journal_take_fn *take, void *arg);
void journal_close(struct journal *journal);

void journal_info(const struct journal *journal, struct journal_info *info);

/* Whether a change of @len bytes in @count items can be appended; if not, a snapshot is due instead. */
bool journal_fits(const struct journal *journal, size_t len, size_t count);

/*
 * Makes the items durable as one record, all or nothing: one write, one flush. @changes: how many transactions that
 * is. After a failure the journal takes nothing more: it must be opened anew to know what is on the medium.
 */
[[nodiscard]] struct error *journal_append(struct journal *journal, const struct journal_item *items, size_t count,
					   unsigned changes);

/*
 * Makes the items the whole state. The old state stays valid until the new one is. Formats an empty medium. Fails with
 * EFBIG, and the journal goes on, when it is more than half an area.
 */
[[nodiscard]] struct error *journal_snapshot(struct journal *journal, const struct journal_item *items, size_t count);

/* Reads no more than the headers: the id of the stick; false where there is none. */
bool journal_stick(const struct journal_io *io, uint8_t stick[16]);

/* What a person says to a damaged journal: what could be read of it is all that is wanted. */
void journal_accept_loss(struct journal *journal);

#endif
