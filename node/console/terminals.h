/*
 * The terminals that a person may sit at: the host's screen and its serial port. All show the same; what is typed at
 * any of them goes one way.
 */
#ifndef GLINT_CONSOLE_TERMINALS_H
#define GLINT_CONSOLE_TERMINALS_H

#include "base/loop.h"

#include <stddef.h>

typedef void terminals_typed_fn(const char *text, size_t length);

/*
 * Takes the descriptors from @first on, @count of them, as terminals: raw, until terminals_give_back. What is none is
 * left out, and so is one that fails later. They stay open; they must stay the caller's for as long.
 */
[[nodiscard]] struct error *terminals_take(struct loop *loop, int first, int count, terminals_typed_fn *typed);
/* Shows it on all: at once, or as soon as each one takes it. Never waits; what a slow one's backlog does not hold is
 * lost. */
void terminals_show(const char *text, size_t length);
/* Empties those that are screens, not lines, so that what is shown next stands at the top. */
void terminals_clear_screens(void);
/* Gives slow ones some time for the last words, and all back as they were. */
void terminals_give_back(void);

#endif
