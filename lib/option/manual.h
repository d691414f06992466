/*
 * What the package carries for people beside a program, printed from the program's own table of options: parts of a
 * manual page and of a completion for bash. For build tools: everything goes to standard output.
 */
#ifndef GLINT_OPTION_MANUAL_H
#define GLINT_OPTION_MANUAL_H

#include "option/option.h"

/* Text, with what roff would take for its own escaped. */
void manual_text(const char *text);

/* Paragraphs of a table's options, a group's fields below it. */
void manual_options(const struct option *table);

/* The names of a table's options: each after @dashes ("--"), a field that takes a value with @end ("=") behind. */
void completion_names(const struct option *table, const char *dashes, const char *end);

/* Lines of a case statement: what completes an option's value ($value), where more can be said than that it is some.
 * @pattern: the case's. */
void completion_value(const char *pattern, const struct option *option);

/* The same for all options of a table, by their names with dashes. */
void completion_values(const struct option *table);

#endif
