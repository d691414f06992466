/*
 * The table of options for people: --help. A group's fields stand below it.
 */
#include "option/option.h"

#include <string.h>

#define COLUMN 26
#define WIDTH  110

const char *option_value_words(const struct option *option, char *buf, size_t len)
{
	static const char *const by_kind[] = {
		[OPTION_SWITCH] = "on|off", [OPTION_FLAG] = "",     [OPTION_NUMBER] = "N",  [OPTION_SIZE] = "SIZE",
		[OPTION_TEXT] = "STRING",   [OPTION_FILE] = "FILE", [OPTION_OWN] = "VALUE", [OPTION_GROUP] = "...",
	};
	size_t at = 0;

	if (option->value)
		return option->value;
	if (option->kind != OPTION_CHOICE)
		return by_kind[option->kind];
	buf[0] = '\0';
	for (const struct option_choice *choice = option->choices; choice->name && at < len; choice++)
		at += (size_t)snprintf(buf + at, len - at, "%s%s", choice == option->choices ? "" : "|", choice->name);
	return buf;
}

/* Words of @help from column COLUMN on, where the cursor is at @at. */
static void put_help(const char *help, size_t at, FILE *to)
{
	if (at + 1 > COLUMN)
		fprintf(to, "\n%*s", COLUMN, "");
	else
		fprintf(to, "%*s", (int)(COLUMN - at), "");
	at = COLUMN;
	while (*help) {
		size_t n = strcspn(help, " ");
		if (at + n > WIDTH && at > COLUMN) {
			fprintf(to, "\n%*s", COLUMN, "");
			at = COLUMN;
		}
		fprintf(to, "%s%.*s", at > COLUMN ? " " : "", (int)n, help);
		at += n + (at > COLUMN);
		help += n + strspn(help + n, " ");
	}
	fputc('\n', to);
}

void option_help(const struct option *table, FILE *to)
{
	char buf[256];

	for (const struct option *option = table; option->name; option++) {
		const char *value = option_value_words(option, buf, sizeof(buf));
		int at = fprintf(to, "  --%s%s%s", option->name, *value ? " " : "", value);
		put_help(option->help, (size_t)at, to);
		if (option->kind != OPTION_GROUP)
			continue;
		for (const struct option *field = option->group->fields; field->name; field++) {
			value = option_value_words(field, buf, sizeof(buf));
			at = fprintf(to, "      %s%s%s", field->name, *value ? "=" : "", value);
			put_help(field->help, (size_t)at, to);
		}
	}
}
