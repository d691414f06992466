/*
 * A fuzz target's input as a program: numbers are taken off its front, little-endian, and zeroes when it has ended.
 */
#ifndef GLINT_TESTS_FUZZ_PROGRAM_H
#define GLINT_TESTS_FUZZ_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

struct program {
	const uint8_t *data;
	size_t left;
};

static inline uint64_t take(struct program *p, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes && p->left; i++, p->left--)
		value |= (uint64_t)*p->data++ << 8 * i;
	return value;
}

#endif
