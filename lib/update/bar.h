/*
 * A bar for people while an update is written: on standard error, if that is a terminal. It is a medium that passes on
 * what it is asked for, and counts.
 */
#ifndef GLINT_UPDATE_BAR_H
#define GLINT_UPDATE_BAR_H

#include "stick/blocks.h"

struct bar {
	struct blocks blocks; /* first */
	const struct blocks *below;
	const char *what; /* NULL: nothing is shown */
	uint64_t done, total;
	unsigned shown; /* per cent */
	bool on;
};

void bar_init(struct bar *bar, const struct blocks *below, bool quiet);
/* A new one, of @total bytes; the one before is taken away. @what NULL: none. */
void bar_step(struct bar *bar, const char *what, uint64_t total);

#endif
