/*
 * Logging to standard error; see log.h. Touches descriptor 2 only.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* A longer line is cut: a log line is for reading. */
#define LINE_MAX_BYTES 2048

static const char *program_name = "glint";
static enum log_level most_level = LOG_LEVEL_INFO;
static bool to_journal;

void log_init(const char *program, enum log_level most)
{
	program_name = program;
	most_level = most;
	to_journal = getenv("JOURNAL_STREAM") != NULL;
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char line[LINE_MAX_BYTES];
	va_list args;

	if (level > most_level)
		return;
	int head = to_journal ? snprintf(line, sizeof(line), "<%d>", level)
			      : snprintf(line, sizeof(line), "%s: ", program_name);
	va_start(args, fmt);
	int body = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, fmt, args);
	va_end(args);
	if (body < 0)
		return;
	size_t len = (size_t)head + (size_t)body;
	if (len > sizeof(line) - 2)
		len = sizeof(line) - 2;
	line[len++] = '\n';
	/* Nobody can be told that telling failed. */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}

void log_error(struct error *e)
{
	if (!e)
		return;
	log_err("%s", error_text(e));
	if (error_hint_text(e))
		log_err("hint: %s", error_hint_text(e));
	error_free(e);
}

struct error *error_first(struct error *first, struct error *later)
{
	if (!first)
		return later;
	log_error(later);
	return first;
}
