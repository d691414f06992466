/*
 * One stick, kept by a thread of its own: whatever the device does, the keeper goes on. What is handed to a stick while
 * it is busy becomes one record, and shares one flush.
 *
 * A stick is looked at once when it comes (choose.h); one that fails is tried again ever more seldom. It is written to
 * again only when it is the same one and nobody else has changed it meanwhile, or when a person says so (stick_adopt).
 * Then it needs a snapshot. To a host that has no stick yet, one that comes is offered (stick_offer).
 *
 * All functions belong to the loop's thread; @changed is called there.
 */
#ifndef GLINT_KEEPER_STICK_H
#define GLINT_KEEPER_STICK_H

#include "base/loop.h"
#include "node/keeper/choose.h"
#include "node/keeper/database.h"
#include "node/keeper/journal.h"

enum stick_state {
	STICK_OPENING, /* nothing is known yet */
	STICK_ABSENT,  /* it is not there */
	STICK_KEPT,    /* what it is given it keeps */
	STICK_REFUSED, /* there is something on it that a person has to decide about */
	STICK_FAILED,  /* it was told to keep something and could not */
};

/*
 * By what a stick is known again: what stood on it when it was opened, or that we wrote last. @our_writer is drawn once
 * a boot, so that a keeper that was started again knows its own records.
 */
struct stick_mark {
	uint8_t stick[16], seen_writer[16], our_writer[16];
	uint64_t seen_sequence;
};

struct stick_options {
	const char *path;   /* the partition, or the folder to choose it from */
	const char *booted; /* the folder that has what the host was booted from, or NULL; see choose.h */
	unsigned wait_s;    /* how long the start waits for a stick that is not there yet */
	struct stick_mark mark;
	bool live;        /* the host's state is in memory already: only the stick of the mark is its own */
	bool adopt_empty; /* the first time, an empty medium is taken */
	void (*changed)(void *arg);
	void *arg;
};

/* What the stick held when it was opened first. The buffers are the taker's. */
struct stick_contents {
	struct buffer database, identity;
	struct journal_info info;
};

struct stick_status {
	enum stick_state state;
	bool wants_snapshot;          /* what it was given was too much for it: a snapshot is due */
	bool offers;                  /* to a host that has none: see stick_offer() */
	char device[CHOOSE_PATH_MAX]; /* what was opened; empty while nothing is */
	uint64_t durable;             /* the last change that is on it */
	char why[256];                /* words for a person; empty where all is well */
	struct journal_info info;
};

struct stick;

[[nodiscard]] struct error *stick_new(struct stick **out, struct loop *loop, const struct stick_options *options);
/* Waits for what is under way, but not for ever. */
void stick_free(struct stick *stick);

const char *stick_path(const struct stick *stick);

void stick_contents_free(struct stick_contents *contents);

/* Waits until it is known what is on the stick, @seconds at most; hands over what it held (zeroes for nothing). */
void stick_contents(struct stick *stick, unsigned seconds, struct stick_contents *contents);

void stick_status(struct stick *stick, struct stick_status *status);
/* By what this stick is known again, for a keeper to come. */
void stick_mark(struct stick *stick, struct stick_mark *mark);

/* Says that the stick holds all that there is, and that this is change @number. */
void stick_is_current(struct stick *stick, uint64_t number);

/* Has more of the database appended; then change @number is durable. Dropped where the stick keeps nothing. */
[[nodiscard]] struct error *stick_append(struct stick *stick, const struct buffer *database, unsigned changes,
					 uint64_t number);

/* Has the whole state written instead of what was not appended yet. */
[[nodiscard]] struct error *stick_snapshot(struct stick *stick, const struct buffer *database,
					   const struct buffer *identity, uint64_t number);

/*
 * What a stick holds that came to a host which has none of its own yet; NULL where none did. It is the stick's, and
 * stays until stick_take() or stick_refuse().
 */
const struct stick_contents *stick_offer(struct stick *stick);

/*
 * Takes what was offered for the host's own, and hands over what it holds. It is to be given what it lacks; of an empty
 * one it says itself that it wants a snapshot.
 */
void stick_take(struct stick *stick, struct stick_contents *contents);

/* Leaves a stick alone whose state is not the host's, until a person says otherwise. */
void stick_refuse(struct stick *stick, const char *why);

/* Looks whether a stick that is kept is still there. To be called now and then. */
void stick_look(struct stick *stick);

/* A person's word: what is on it is not wanted. @device: one of the folder, or NULL for the one there is. */
void stick_adopt(struct stick *stick, const char *device);

/* Whether @path is this stick's, or in its folder. */
bool stick_has_path(const struct stick *stick, const char *path);

#endif
