/*
 * Options: one table says what there is, and what it says is true of the command line, of a JSON file, and of a
 * device that is added to a running machine:
 *
 *     --memory 2G --disk path=a.raw,readonly=on
 *     {"memory": "2G", "disk": [{"path": "a.raw", "readonly": true}]}
 *
 * An option is a place in a structure and how to fill it. A group is an option whose value has options of its own: a
 * disk with its path. Values are checked here; files are only named here, and opened (option_open()) when everything
 * that was asked for is known to make sense.
 */
#ifndef GLINT_OPTION_OPTION_H
#define GLINT_OPTION_OPTION_H

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define OPTION_TEXT_MAX 65536 /* bytes of a text that says no limit of its own */

enum option_kind {
	OPTION_SWITCH, /* bool: on or off */
	OPTION_FLAG,   /* bool: the same, but its name alone means on */
	OPTION_NUMBER, /* unsigned, between min and max */
	OPTION_SIZE,   /* uint64_t, bytes between min and max */
	OPTION_TEXT,   /* const char *, of min to max bytes (max 0: OPTION_TEXT_MAX); borrowed */
	OPTION_CHOICE, /* an enum of int's size, by choices */
	OPTION_FILE,   /* struct option_file, its name */
	OPTION_OWN,    /* what own() makes of the text */
	OPTION_GROUP,
};

/* A file given by path or as fd=N, with the words it was given by for errors. */
struct option_file {
	const char *name; /* borrowed; NULL: not given */
	int fd;           /* -1: not opened */
};

struct option_choice {
	const char *name; /* NULL ends the list */
	int value;
};

struct option_group;

struct option {
	const char *name; /* NULL ends a table */
	enum option_kind kind;
	size_t offset;     /* of its place in the structure the table is about */
	const char *value; /* what help calls the value; NULL: by its kind */
	const char *help;
	const char *aka; /* words of other monitors for it, with spaces between; may be NULL */
	uint64_t min, max;
	const struct option_choice *choices;
	struct error *(*own)(const char *what, const char *text, void *object); /* @object: what the table is about */
	const struct option_group *group;
};

/* A group's place is an array of structures when it has a count, else one structure. */
struct option_group {
	const struct option *fields; /* the first may be given without its name */
	size_t bytes, count_offset;
	unsigned most; /* of the array; 0: not an array */
	/* Fills a new element with what holds when nothing is said. May be NULL. */
	void (*begin)(const void *object, void *element, unsigned index);
	/* Looks at a filled element, for instance beside the @index elements before it. May be NULL. */
	struct error *(*check)(const char *what, const void *object, const void *element, unsigned index);
};

/*
 * Fills @object from the command line. Everything is an option: words left over are refused, as is one option twice.
 * argv's strings are changed (split at commas) and borrowed.
 */
[[nodiscard]] struct error *option_arguments(const struct option *table, int argc, char **argv, void *object);

/* What the command line gives the option @name as value; NULL: it is not there. Changes nothing. */
const char *option_argument(const struct option *table, int argc, char **argv, const char *name);

/* Whether @word of a command line is an option whose value is the next word. */
bool option_takes_next(const struct option *table, char *word);

/*
 * Fills @object from a JSON object; strings are borrowed from it. An array's place takes one object or a list of them.
 * @what names it in errors ("machine.json").
 */
[[nodiscard]] struct error *option_json(const struct option *table, const char *what, const json_t *json, void *object);

/* Opens the file that was named, or takes the descriptor; does nothing when none was. @flags: as open(2). */
[[nodiscard]] struct error *option_open(struct option_file *file, const char *what, int flags);

/* Whether @text is the fd=N form, and the descriptor that it names, made close-on-exec. */
bool option_is_descriptor(const char *text);
[[nodiscard]] struct error *option_descriptor(const char *text, const char *what, int *fd);

/* The table for people (--help). */
void option_help(const struct option *table, FILE *to);

/* The words help uses for an option's value ("SIZE", "on|off"); "" when it has none. */
const char *option_value_words(const struct option *option, char *buf, size_t len);

#endif
