/*
 * The engine of options; see option.h. Every value ends as a text that one function sets (set_text), whether it came
 * from the command line or from JSON, so that both have the same limits and the same errors.
 */
#include "option/option.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define WHAT_BYTES 160

/* Which options of a table were given: one bit each. */
struct given {
	uint64_t bits;
};

static void *member(void *object, size_t offset)
{
	return (char *)object + offset;
}

static void *place(const struct option *option, void *object)
{
	return member(object, option->offset);
}

/* --- finding --- */

static bool is_word_of(const char *words, const char *name, size_t len)
{
	for (const char *at = words; at && *at;) {
		size_t n = strcspn(at, " ");
		if (n == len && memcmp(at, name, len) == 0)
			return true;
		at += n + strspn(at + n, " ");
	}
	return false;
}

static const struct option *find(const struct option *table, const char *name, size_t len)
{
	for (const struct option *option = table; option->name; option++)
		if ((strlen(option->name) == len && memcmp(option->name, name, len) == 0) ||
		    is_word_of(option->aka, name, len))
			return option;
	return NULL;
}

static struct error *unknown(const struct option *table, const char *what, const char *name)
{
	char known[512] = "";
	size_t at = 0;

	for (const struct option *option = table; option->name && at < sizeof(known); option++)
		at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s",
				       option == table  ? ""
				       : option[1].name ? ", "
							: " and ",
				       option->name);
	return error_hint(error_new(EINVAL, "%s: '%s' is not known", what, name), "known are %s", known);
}

static struct error *mark(const struct option *table, const struct option *option, const char *what,
			  struct given *given)
{
	uint64_t bit = 1ull << (option - table);
	bool list = option->kind == OPTION_GROUP && option->group->most;

	if (given->bits & bit && !list)
		return error_new(EINVAL, "%s was given twice", what);
	given->bits |= bit;
	return NULL;
}

/* --- values --- */

static struct error *set_switch(const char *what, const char *text, bool *on)
{
	if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
		return error_new(EINVAL, "%s: '%s' is neither 'on' nor 'off'", what, text);
	*on = strcmp(text, "on") == 0;
	return NULL;
}

static struct error *set_choice(const struct option *option, const char *what, const char *text, int *value)
{
	char words[256];

	for (const struct option_choice *choice = option->choices; choice->name; choice++) {
		if (strcmp(text, choice->name) != 0)
			continue;
		*value = choice->value;
		return NULL;
	}
	return error_hint(error_new(EINVAL, "%s: there is no '%s'", what, text), "choose one of %s",
			  option_value_words(option, words, sizeof(words)));
}

/* As people write it. */
static const char *size_words(uint64_t bytes, char buf[static 32])
{
	static const char units[] = "\0KMGT";
	unsigned unit = 0;

	while (unit < 4 && bytes && bytes % 1024 == 0) {
		bytes /= 1024;
		unit++;
	}
	snprintf(buf, 32, "%llu%.1s", (unsigned long long)bytes, &units[unit]);
	return buf;
}

static struct error *set_size(const struct option *option, const char *what, const char *text, uint64_t *bytes)
{
	char least[32], most[32];
	uint64_t n;

	TRY(parse_size(text, what, &n));
	if (n < option->min || n > option->max)
		return error_hint(error_new(ERANGE, "%s: %s is out of range", what, text), "from %s to %s",
				  size_words(option->min, least), size_words(option->max, most));
	*bytes = n;
	return NULL;
}

static struct error *set_words(const struct option *option, const char *what, const char *text, const char **words)
{
	size_t len = strlen(text), max = option->max ? option->max : OPTION_TEXT_MAX;

	if (len < option->min || len > max)
		return error_new(E2BIG, "%s: %zu bytes, of %zu to %zu", what, len, (size_t)option->min, max);
	*words = text;
	return NULL;
}

/* @text is borrowed by what keeps texts (OPTION_TEXT, OPTION_FILE, OPTION_OWN). */
static struct error *set_text(const struct option *option, const char *what, const char *text, void *object)
{
	uint64_t n;

	switch (option->kind) {
	case OPTION_SWITCH:
	case OPTION_FLAG:
		return set_switch(what, text, place(option, object));
	case OPTION_NUMBER:
		TRY(parse_number(text, what, option->min, option->max, &n));
		*(unsigned *)place(option, object) = (unsigned)n;
		return NULL;
	case OPTION_SIZE:
		return set_size(option, what, text, place(option, object));
	case OPTION_TEXT:
		return set_words(option, what, text, place(option, object));
	case OPTION_CHOICE:
		return set_choice(option, what, text, place(option, object));
	case OPTION_FILE:
		if (*text == '\0')
			return error_new(EINVAL, "%s: no file is named", what);
		((struct option_file *)place(option, object))->name = text;
		return NULL;
	case OPTION_OWN:
		return option->own(what, text, object);
	case OPTION_GROUP:
		break;
	}
	return error_new(EINVAL, "%s: a value where options are expected", what);
}

/* --- groups --- */

struct element {
	void *at;
	unsigned index;
	unsigned *count; /* NULL: not an array */
};

static struct error *begin_element(const struct option *option, const char *what, void *object, struct element *element)
{
	const struct option_group *group = option->group;

	*element = (struct element){.at = place(option, object)};
	if (group->most) {
		element->count = member(object, group->count_offset);
		element->index = *element->count;
		if (element->index == group->most)
			return error_new(E2BIG, "%s: a machine has at most %u", what, group->most);
		element->at = member(element->at, element->index * group->bytes);
		memset(element->at, 0, group->bytes);
	}
	if (group->begin)
		group->begin(object, element->at, element->index);
	return NULL;
}

static struct error *end_element(const struct option *option, const char *what, const void *object,
				 const struct element *element)
{
	if (option->group->check)
		TRY(option->group->check(what, object, element->at, element->index));
	if (element->count)
		*element->count = element->index + 1;
	return NULL;
}

/* --- the command line --- */

/* Ends the word at @text at its comma (two commas are one that belongs to it), and returns what follows, or NULL. */
static char *split(char *text)
{
	char *to = text;

	for (char *from = text;; from++) {
		if (*from == ',') {
			if (from[1] != ',') {
				*to = '\0';
				return from + 1;
			}
			from++;
		}
		*to++ = *from;
		if (*from == '\0')
			return NULL;
	}
}

static struct error *set_word(const struct option *fields, const char *what, char *word, bool first, void *element,
			      struct given *given)
{
	char field_what[WHAT_BYTES];
	size_t len = strcspn(word, "=");
	const struct option *option = find(fields, word, len);
	const char *value = word[len] ? word + len + 1 : NULL;

	/* The first one's value may stand alone; a file's may be fd=N, and some have a '=' of their own. */
	bool pair = !option && ((fields[0].kind == OPTION_FILE && option_is_descriptor(word)) ||
				(fields[0].value && strchr(fields[0].value, '=')));
	if (first && (!value || pair) && !(option && option->kind == OPTION_FLAG)) {
		option = &fields[0];
		value = word;
	}
	if (!option) {
		word[len] = '\0';
		return unknown(fields, what, word);
	}
	snprintf(field_what, sizeof(field_what), "%.100s: %.40s", what, option->name);
	TRY(mark(fields, option, field_what, given));
	if (!value && option->kind == OPTION_FLAG)
		value = "on";
	if (!value)
		return error_hint(error_new(EINVAL, "%s: '%s' has no value", what, word), "write %s=VALUE", word);
	return set_text(option, field_what, value, element);
}

static struct error *set_group(const struct option *option, const char *what, char *text, void *object)
{
	struct given given = {0};
	struct element element;

	TRY(begin_element(option, what, object, &element));
	for (char *word = text, *next; word; word = next) {
		next = split(word);
		TRY(set_word(option->group->fields, what, word, word == text, element.at, &given));
	}
	return end_element(option, what, object, &element);
}

/* "--name", "-name" or "--name=value": the option, and where its value begins (NULL: in the next word). */
static const struct option *named(const struct option *table, char *word, char **value)
{
	if (word[0] != '-' || word[1] == '\0')
		return NULL;
	char *name = word + (word[1] == '-' ? 2 : 1);
	size_t len = strcspn(name, "=");
	*value = name[len] ? name + len + 1 : NULL;
	return find(table, name, len);
}

const char *option_argument(const struct option *table, int argc, char **argv, const char *name)
{
	for (int i = 1; i < argc; i++) {
		char *value;
		const struct option *option = named(table, argv[i], &value);
		if (!option)
			return NULL;
		if (!value && option->kind != OPTION_FLAG && i + 1 < argc)
			value = argv[++i];
		if (strcmp(option->name, name) == 0)
			return value;
	}
	return NULL;
}

bool option_takes_next(const struct option *table, char *word)
{
	char *value;
	const struct option *option = named(table, word, &value);

	return option && !value && option->kind != OPTION_FLAG;
}

static struct error *bad_word(const char *word)
{
	return error_hint(error_new(EINVAL, "command line: '%s' is not an option", word), "--help lists the options");
}

struct error *option_arguments(const struct option *table, int argc, char **argv, void *object)
{
	struct given given = {0};

	for (int i = 1; i < argc; i++) {
		char what[WHAT_BYTES], *value;
		const struct option *option = named(table, argv[i], &value);
		if (!option)
			return bad_word(argv[i]);
		snprintf(what, sizeof(what), "--%s", option->name);
		TRY(mark(table, option, what, &given));
		if (!value && option->kind == OPTION_FLAG) {
			TRY(set_text(option, what, "on", object));
			continue;
		}
		if (!value && ++i == argc)
			return error_hint(error_new(EINVAL, "command line: %s lacks its value", what),
					  "--help lists the options");
		value = value ? value : argv[i];
		TRY(option->kind == OPTION_GROUP ? set_group(option, what, value, object)
						 : set_text(option, what, value, object));
	}
	return NULL;
}

/* --- JSON --- */

static struct error *set_json(const struct option *option, const char *what, const json_t *json, void *object);

struct error *option_json(const struct option *table, const char *what, const json_t *json, void *object)
{
	struct given given = {0};
	const char *key;
	json_t *value;

	if (!json_is_object(json))
		return error_new(EINVAL, "%s is not a JSON object", what);
	json_object_foreach((json_t *)(uintptr_t)json, key, value)
	{
		char field_what[WHAT_BYTES];
		const struct option *option = find(table, key, strlen(key));
		if (!option)
			return unknown(table, what, key);
		snprintf(field_what, sizeof(field_what), "%.100s: %.40s", what, option->name);
		TRY(mark(table, option, field_what, &given));
		TRY(set_json(option, field_what, value, object));
	}
	return NULL;
}

static struct error *set_json_element(const struct option *option, const char *what, const json_t *json, void *object)
{
	struct element element;

	TRY(begin_element(option, what, object, &element));
	if (json_is_object(json))
		TRY(option_json(option->group->fields, what, json, element.at));
	else /* the first field's value alone, as on the command line */
		TRY(set_json(&option->group->fields[0], what, json, element.at));
	return end_element(option, what, object, &element);
}

static struct error *set_json_list(const struct option *option, const char *what, const json_t *json, void *object)
{
	char part[WHAT_BYTES];

	for (size_t i = 0; i < json_array_size(json); i++) {
		snprintf(part, sizeof(part), "%.120s[%zu]", what, i);
		TRY(set_json_element(option, part, json_array_get(json, i), object));
	}
	return NULL;
}

static struct error *set_json(const struct option *option, const char *what, const json_t *json, void *object)
{
	char number[32];

	if (option->kind == OPTION_GROUP)
		return json_is_array(json) && option->group->most ? set_json_list(option, what, json, object)
								  : set_json_element(option, what, json, object);
	if (json_is_string(json))
		return set_text(option, what, json_string_value(json), object);
	bool on_or_off = option->kind == OPTION_SWITCH || option->kind == OPTION_FLAG;
	if (json_is_boolean(json) && on_or_off)
		return set_text(option, what, json_is_true(json) ? "on" : "off", object);
	if (json_is_integer(json) && (option->kind == OPTION_NUMBER || option->kind == OPTION_SIZE)) {
		snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(json));
		return set_text(option, what, number, object);
	}
	return error_hint(error_new(EINVAL, "%s: a JSON value of the wrong kind", what), "%s",
			  on_or_off ? "write true or false" : "write a string, or a number where one is meant");
}

/* --- files --- */

/* "fd=N": the number; -1 for other words, -2 for a number that is none. */
static int descriptor_named(const char *text)
{
	char *end;

	if (strncmp(text, "fd=", 3) != 0)
		return -1;
	long fd = strtol(text + 3, &end, 10);
	return *end == '\0' && end != text + 3 && fd >= 0 && fd <= 1 << 20 ? (int)fd : -2;
}

bool option_is_descriptor(const char *text)
{
	return descriptor_named(text) != -1;
}

struct error *option_descriptor(const char *text, const char *what, int *fd)
{
	int n = descriptor_named(text);

	if (n < 0)
		return error_hint(error_new(EINVAL, "%s: '%s' is not a descriptor", what, text), "write fd=N");
	if (fcntl(n, F_SETFD, FD_CLOEXEC) < 0)
		return error_hint(error_new(errno, "%s: descriptor %d", what, n),
				  "the caller must leave it open for this process");
	*fd = n;
	return NULL;
}

struct error *option_open(struct option_file *file, const char *what, int flags)
{
	struct stat st;

	if (!file->name)
		return NULL;
	if (option_is_descriptor(file->name))
		return option_descriptor(file->name, what, &file->fd);
	/* O_NONBLOCK: a FIFO must not make us wait; it has no effect on files and block devices. */
	cleanup_fd int fd = open(file->name, flags | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_new(errno, "%s: open %s", what, file->name);
	if (fstat(fd, &st) < 0)
		return error_new(errno, "%s: stat %s", what, file->name);
	if (S_ISDIR(st.st_mode))
		return error_new(EISDIR, "%s: open %s", what, file->name);
	file->fd = steal_fd(&fd);
	return NULL;
}
