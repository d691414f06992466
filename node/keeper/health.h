/*
 * How the host's state is kept, for people and programs: a file that is replaced as a whole when what it says changed.
 * `glint-keeper status` over the socket is the same object. docs/state-on-flash.md has its members.
 */
#ifndef GLINT_KEEPER_HEALTH_H
#define GLINT_KEEPER_HEALTH_H

#include "node/keeper/stick.h"

#include <jansson.h>

#define HEALTH_VERSION 1

struct health {
	const char *host; /* its id */
	uint64_t change;  /* the newest */
	bool kept;        /* it is on a stick, or will be in a moment */
	const char *why;  /* where not */
	uint64_t since_s; /* seconds from the kernel's start to when @kept or @why became that */
	struct stick *const *sticks;
	unsigned stick_count;
};

/* NULL: no memory. */
json_t *health_json(const struct health *health);

#endif
