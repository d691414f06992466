/*
 * What must not fail in a recorder of power cuts: says what it was, and ends the run.
 */
#ifndef GLINT_TESTS_FAULTS_MUST_H
#define GLINT_TESTS_FAULTS_MUST_H

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	abort();
}

static inline void must_be(struct error *err)
{
	if (!err)
		return;
	fprintf(stderr, "%s\n", error_text(err));
	abort();
}

#endif
