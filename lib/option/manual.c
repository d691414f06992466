/*
 * Manual pages and completion from a table of options; see manual.h. Touches standard output.
 */
#include "option/manual.h"

#include <stdio.h>

/* roff takes a line's leading dot or quote for a request, and a dash for a hyphen. */
void manual_text(const char *text)
{
	for (const char *p = text; *p; p++) {
		if (*p == '\\' || *p == '-')
			putchar('\\');
		if (p == text && (*p == '.' || *p == '\''))
			fputs("\\&", stdout);
		putchar(*p == '\\' ? 'e' : *p);
	}
}

static void put_option(const struct option *option, const char *before, const char *between)
{
	char buf[256];
	const char *value = option_value_words(option, buf, sizeof(buf));

	printf(".TP\n\\fB");
	manual_text(before);
	manual_text(option->name);
	printf("\\fR");
	if (*value) {
		printf("%s\\fI", between);
		manual_text(value);
		printf("\\fR");
	}
	putchar('\n');
	manual_text(option->help);
	puts(".");
}

void manual_options(const struct option *table)
{
	for (const struct option *option = table; option->name; option++) {
		put_option(option, "--", " ");
		if (option->kind != OPTION_GROUP)
			continue;
		puts(".RS");
		for (const struct option *field = option->group->fields; field->name; field++)
			put_option(field, "", "=");
		puts(".RE");
	}
}

void completion_names(const struct option *table, const char *dashes, const char *end)
{
	for (const struct option *option = table; option->name; option++)
		printf("%s%s%s ", dashes, option->name, option->kind == OPTION_FLAG && !*dashes ? "" : end);
}

void completion_value(const char *pattern, const struct option *option)
{
	char buf[256];

	if (option->kind == OPTION_FILE)
		printf("\t%s) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$value\")) ;;\n", pattern);
	else if (option->kind == OPTION_SWITCH || option->kind == OPTION_CHOICE) {
		const char *words = option_value_words(option, buf, sizeof(buf));
		printf("\t%s) COMPREPLY=($(compgen -W \"", pattern);
		for (; *words; words++)
			putchar(*words == '|' ? ' ' : *words);
		puts("\" -- \"$value\")) ;;");
	}
}

void completion_values(const struct option *table)
{
	char pattern[128];

	for (const struct option *option = table; option->name; option++) {
		snprintf(pattern, sizeof(pattern), "--%s", option->name);
		if (option->kind == OPTION_GROUP) {
			printf("\t%s) compopt -o nospace; COMPREPLY=($(compgen -W \"", pattern);
			completion_names(option->group->fields, "", "=");
			puts("\" -- \"$value\")) ;;");
		} else {
			completion_value(pattern, option);
		}
	}
}
