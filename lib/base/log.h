/*
 * Logging: one line to standard error per call, written with one write() so that lines of several threads never mix.
 * When standard error is the journal (JOURNAL_STREAM is set) each line carries the <N> priority prefix of
 * sd-daemon(3); on a terminal it carries the program's name. Thread safe; allocates nothing.
 */
#ifndef GLINT_BASE_LOG_H
#define GLINT_BASE_LOG_H

#include "base/error.h"

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* Names the program and sets the least important level still written. Call once, before threads start. */
void log_init(const char *program, enum log_level most);

[[gnu::format(printf, 2, 3)]] void log_line(enum log_level level, const char *fmt, ...);

#define log_err(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)  log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* Writes the message of @e, and its hint on a line of its own, and frees it. NULL is allowed and writes nothing. */
void log_error(struct error *e);

/* Of two errors of one piece of work the one to hand up: @first, and @later is logged; or @later when it is the only.
 */
[[nodiscard]] struct error *error_first(struct error *first, struct error *later);

#endif
