/*
 * Recording what a command of `glint disk` does to the files of one folder and to their names, and rebuilding what a
 * power cut at any point could have left of it.
 *
 * The program is linked so that the command's I/O, its ring, and its unlink(), rename() and sync_folder() come here
 * (tests/faults/meson.build). Operations of the ring are begun and end in random order. What they do is done to the
 * files themselves, and each file has a medium (medium.h) that remembers it. Of names a cut keeps what happened before
 * the folder was last made durable, and of what happened later as much as luck has it, in its order.
 *
 * Time is counted in events of all files and of names. One recording at a time; nothing fails but by abort().
 */
#ifndef GLINT_TESTS_FAULTS_RECORD_H
#define GLINT_TESTS_FAULTS_RECORD_H

#include <stdint.h>

/* Begins: @folder's files are as they are at time 0. @seed: the order in which the ring's operations end. @swallow: of
 * all flushes, of files and of the folder, this one and all behind it only seem to happen; 0 for none. */
void record_begin(const char *folder, uint64_t seed, unsigned swallow);
/* From here on nothing is recorded, but what was can be rebuilt, until the next record_begin(). */
void record_end(void);

unsigned record_now(void);
unsigned record_flushes(void);
/* When the @index-th flush was begun. */
unsigned record_flush_at(unsigned index);
/* The first event at or behind @at that is of names, the folder's flush too; record_now() when there is none. */
unsigned record_next_name(unsigned at);

/* Makes in @folder, which it empties first, what a cut at @cut could have left. @luck 0: nothing that was not made
 * durable; 1: all of it; 2: names, but no data. */
void record_rebuild(unsigned cut, uint64_t luck, const char *folder);

#endif
