/*
 * The world of one power-cut test: a disk of the engine on a recorded medium, and a guest that remembers what it wrote,
 * what was done and what was flushed.
 *
 * It is one thread and decided by one seed. Operations of the engine wait in a list; each turn either submits another
 * request or takes a random operation one step on: it is begun (and recorded), later it ends (and the engine is told).
 * So operations end in any order, and overtake each other as far as the engine lets them.
 *
 * What may be in a sector after a cut: what the last write that was flushed wrote, or anything that was submitted
 * later and before the cut; for a discard that also is what was there before.
 */
#ifndef GLINT_TESTS_FAULTS_WORLD_H
#define GLINT_TESTS_FAULTS_WORLD_H

#include "medium.h"

#include "disk/disk.h"

struct world_options {
	const char *format, *subformat;
	uint64_t size;
	uint32_t block;
	unsigned depth; /* images of the chain */
	uint64_t seed;
	unsigned steps;   /* requests, about */
	unsigned swallow; /* the flush that is only said to happen; 0 for none */
	bool one_flush;   /* the guest waits for a flush before it asks for another */
	const char *dir;  /* an empty folder for the parents; stays the caller's */
};

struct world;

/* Makes the disk, and runs the guest to its end. Aborts, with words, where the running disk already reads wrong. */
struct world *world_run(const struct world_options *options);
void world_free(struct world *world);

const struct medium *world_medium(const struct world *world);

/*
 * Checks the file @fd, which it closes, as what a cut at @cut left: it is opened, activated, read, written to and
 * closed as any disk. Returns NULL, or what is wrong. @seed decides what else is tried: writing to it; a second cut,
 * while it recovers from the first.
 */
char *world_check(struct world *world, int fd, unsigned cut, uint64_t seed);

/* A flush of the medium: which of how many it was among those of one flush of the guest (0 of 0: of none). */
struct world_flush {
	unsigned which, of;
	bool covers;           /* it made something durable that the guest wrote */
	unsigned acknowledged; /* when the guest was told */
};
struct world_flush world_flush(const struct world *world, unsigned index);

#endif
