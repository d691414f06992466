/*
 * The recorder: a medium below the disk engine that remembers every write and every flush in the order in which they
 * were asked for, and rebuilds what a power cut at any point could have left.
 *
 * A write that had ended before a flush was begun is there for sure once that flush has ended. Of every other write
 * made before the cut, each sector of 512 bytes may be there or not, whatever happened to its neighbours and whatever
 * was written later: so writes go missing, arrive in any order, and are torn. A file that only such writes have made
 * longer ends where the last sector that arrived does.
 *
 * Time is counted in events (writes, zeroings and flushes begun): a cut at K is after the K-th event was begun and
 * before the next one. Nothing here fails but by abort(): it is a test's tool.
 */
#ifndef GLINT_TESTS_FAULTS_MEDIUM_H
#define GLINT_TESTS_FAULTS_MEDIUM_H

#include <stdint.h>
#include <sys/uio.h>

#define MEDIUM_SECTOR 512u

struct medium;

/* A medium that holds what the file @fd does; @fd stays the caller's and is not changed. */
struct medium *medium_new(int fd);
void medium_free(struct medium *medium);

/* What has been written so far, flushed or not: a file to read from and to ask for its size. The medium's. */
int medium_fd(const struct medium *medium);

/*
 * Begins a write, or a zeroing that does (@extend) or does not make the file longer. Returns the event, to be given to
 * medium_done() when its caller is told that it ended.
 */
unsigned medium_write(struct medium *medium, const struct iovec *iov, unsigned count, uint64_t offset);
unsigned medium_zero(struct medium *medium, uint64_t offset, uint64_t len, bool extend);
void medium_done(struct medium *medium, unsigned event);

/* Begins a flush, and ends one. */
unsigned medium_flush(struct medium *medium);
void medium_flushed(struct medium *medium, unsigned event);

/*
 * The switch by which the recorder proves itself: the @nth flush from now (1 is the next) is said to have happened and
 * has not. 0 turns it off.
 */
void medium_swallow(struct medium *medium, unsigned nth);

/* How many events have been begun; and how many of them were flushes. */
unsigned medium_now(const struct medium *medium);
unsigned medium_flushes(const struct medium *medium);

/* The event of the @index-th flush. */
unsigned medium_flush_event(const struct medium *medium, unsigned index);

/*
 * Makes a file (the caller's) of what a cut at @cut could have left. @seed decides about everything that was not
 * flushed; seeds 0 and 1 are special: all of it is missing, all of it is there.
 */
int medium_rebuild(const struct medium *medium, unsigned cut, uint64_t seed);
/* The same, as a file at @path, with holes where nothing was written. */
void medium_keep(const struct medium *medium, unsigned cut, uint64_t seed, const char *path);

/* The random numbers of these tests (splitmix64): the next of a sequence, and one below @bound. */
uint64_t random_next(uint64_t *state);
uint64_t random_below(uint64_t *state, uint64_t bound);

#endif
