/*
 * TOML 1.0, as far as host.toml needs it, with the place of everything: tables, arrays of tables, dotted keys, text,
 * whole numbers, true and false, arrays, inline tables. Not text over several lines, fractions, dates: no key takes
 * one, and they are refused by name.
 *
 * The parser goes on after what it could not read: all that is wrong is told at once. Inside lib/hostconfig only.
 */
#ifndef GLINT_HOSTCONFIG_TOML_H
#define GLINT_HOSTCONFIG_TOML_H

#include "hostconfig/hostconfig.h"

enum toml_kind { TOML_TEXT, TOML_NUMBER, TOML_BOOL, TOML_ARRAY, TOML_TABLE };

/* How a table or array came to be: what may still be added to it follows from that. */
enum toml_origin { TOML_VALUE, TOML_IMPLIED, TOML_DOTTED, TOML_HEADER, TOML_HEADERS };

struct toml {
	enum toml_kind kind;
	enum toml_origin origin;
	unsigned line, column; /* of the value */
	const char *key;       /* of a member of a table */
	unsigned key_line, key_column;
	const char *text;
	int64_t number; /* a bool's value, too */
	struct toml *first, *last, *next;
};

struct toml_document;

/* Parses. *out is there even where @problems grew: it has what could be read. Errors: only ENOMEM. */
[[nodiscard]] struct error *toml_parse(const char *text, size_t len, struct toml_document **out,
				       struct hostconfig_problems *problems);
void toml_free(struct toml_document *document);
const struct toml *toml_root(const struct toml_document *document);
const struct toml *toml_member(const struct toml *table, const char *key);

/* Adds a problem; what is not printable becomes a question mark. @hint may be NULL. */
[[gnu::format(printf, 5, 6)]] void problem_add(struct hostconfig_problems *problems, unsigned line, unsigned column,
					       const char *hint, const char *fmt, ...);

#endif
