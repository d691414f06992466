/*
 * Errors: a message built from the inside out. See error.h for how they are used. Touches nothing but memory.
 */
#include "base/error.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct error {
	int errnum;
	char *text;
	char *hint;
};

/* What is returned when there is no memory to describe an error with; never freed. */
static char out_of_memory_text[] = "out of memory";
static struct error out_of_memory = {.errnum = ENOMEM, .text = out_of_memory_text};

static struct error *build(int errnum, const char *fmt, va_list args)
{
	cleanup_free char *words = NULL;
	cleanup_free char *text = NULL;

	if (vasprintf(&words, fmt, args) < 0) {
		words = NULL;
		return &out_of_memory;
	}
	if (errnum != 0 && asprintf(&text, "%s: %s", words, strerror(errnum)) < 0) {
		text = NULL;
		return &out_of_memory;
	}
	struct error *e = calloc(1, sizeof(*e));
	if (!e)
		return &out_of_memory;
	e->errnum = errnum;
	e->text = text ? steal_ptr(&text) : steal_ptr(&words);
	return e;
}

struct error *error_new(int errnum, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	struct error *e = build(errnum, fmt, args);
	va_end(args);
	return e;
}

struct error *error_wrap(struct error *e, const char *fmt, ...)
{
	cleanup_free char *context = NULL;
	char *text = NULL;
	va_list args;

	if (!e || e == &out_of_memory)
		return e;
	va_start(args, fmt);
	int n = vasprintf(&context, fmt, args);
	va_end(args);
	if (n < 0) {
		context = NULL;
		return e;
	}
	if (asprintf(&text, "%s: %s", context, e->text) < 0)
		return e;
	free(e->text);
	e->text = text;
	return e;
}

struct error *error_hint(struct error *e, const char *fmt, ...)
{
	va_list args;

	if (!e || e == &out_of_memory || e->hint)
		return e;
	va_start(args, fmt);
	if (vasprintf(&e->hint, fmt, args) < 0)
		e->hint = NULL;
	va_end(args);
	return e;
}

const char *error_text(const struct error *e)
{
	return e->text;
}

const char *error_hint_text(const struct error *e)
{
	return e->hint;
}

int error_errno(const struct error *e)
{
	return e->errnum;
}

void error_free(struct error *e)
{
	if (!e || e == &out_of_memory)
		return;
	free(e->text);
	free(e->hint);
	free(e);
}
