/*
 * glint: finds the command, fills its options from the command line, runs it. What a command may touch is said in its
 * file; this one touches standard output and standard error.
 */
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_help(const char *word)
{
	return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0;
}

static void help(const char *group)
{
	char words[256];

	printf("Usage: glint %s COMMAND [OPTION]...\n\n", group ? group : "GROUP");
	for (size_t i = 0; commands[i]; i++) {
		const struct command *c = commands[i];
		if (group && strcmp(c->group, group) != 0)
			continue;
		cli_words(c, words, sizeof(words));
		printf("  glint %s %s%s%s\n      %s\n", c->group, c->name, words,
		       c->options[c->words].name ? " [OPTION]..." : "", c->summary);
	}
	puts("\nglint GROUP COMMAND --help tells a command's options; glint(1) tells more.");
}

static void help_command(const struct command *c)
{
	char words[256];

	cli_words(c, words, sizeof(words));
	printf("Usage: glint %s %s%s [OPTION]...\n%s.\n", c->group, c->name, words, c->summary);
	for (unsigned i = 0; i < c->words; i++)
		printf("  %-22s  %s\n", option_value_words(&c->options[i], words, sizeof(words)), c->options[i].help);
	option_help(c->options + c->words, stdout);
}

static const struct command *find(const char *group, const char *name, bool *group_known)
{
	for (size_t i = 0; commands[i]; i++) {
		if (strcmp(commands[i]->group, group) != 0)
			continue;
		*group_known = true;
		if (name && strcmp(commands[i]->name, name) == 0)
			return commands[i];
	}
	return NULL;
}

/*
 * Makes options of words, "a.vhd" the first of them "--file a.vhd", so that one parser has one say about all. @to has
 * room for twice the words and one more.
 */
static struct error *name_words(const struct command *c, int argc, char **argv, char **to, int *count,
				char names[CLI_WORDS_MAX][32])
{
	unsigned words = 0;
	bool options = true;
	char usage[256];

	*count = 1;
	to[0] = argv[0];
	cli_words(c, usage, sizeof(usage));
	for (int i = 0; i < argc; i++) {
		if (options && strcmp(argv[i], "--") == 0) {
			options = false;
		} else if (options && argv[i][0] == '-' && argv[i][1]) {
			to[(*count)++] = argv[i];
			if (option_takes_next(c->options, argv[i]) && i + 1 < argc)
				to[(*count)++] = argv[++i];
		} else if (words == c->words) {
			return error_hint(error_new(EINVAL, "'%s' is one word too many", argv[i]),
					  "write glint %s %s%s", c->group, c->name, usage);
		} else {
			snprintf(names[words], sizeof(names[words]), "--%s", c->options[words].name);
			to[(*count)++] = names[words++];
			to[(*count)++] = argv[i];
		}
	}
	if (words == c->words)
		return NULL;
	return error_hint(
		error_new(EINVAL, "%s is missing", option_value_words(&c->options[words], usage, sizeof(usage))),
		"glint %s %s --help tells what it takes", c->group, c->name);
}

static struct error *run(const struct command *c, int argc, char **argv, int *status)
{
	cleanup_free char **words = calloc((size_t)argc * 2 + 2, sizeof(*words));
	cleanup_free void *args = calloc(1, c->bytes);
	char names[CLI_WORDS_MAX][32];
	int count;

	if (!words || !args)
		return error_new(ENOMEM, "start");
	TRY(name_words(c, argc, argv, words, &count, names));
	TRY(option_arguments(c->options, count, words, args));
	return c->run(args, status);
}

/* What was printed must have arrived: a full disk below it is an error. */
static struct error *finish_output(void)
{
	return fflush(stdout) != 0 || ferror(stdout) ? error_new(errno, "write to standard output") : NULL;
}

static int run_command(const struct command *c, int argc, char **argv)
{
	int status = 0;

	for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "--help") != 0 && strcmp(argv[i], "-h") != 0)
			continue;
		help_command(c);
		return 0;
	}
	struct error *err = error_first(run(c, argc, argv, &status), finish_output());
	if (!err)
		return status;
	log_error(error_wrap(err, "%s %s", c->group, c->name));
	return c->failure ? c->failure : 1;
}

int main(int argc, char **argv)
{
	bool group_known = false;

	log_init("glint", LOG_LEVEL_INFO);
	if (argc > 1 && strcmp(argv[1], "--version") == 0) {
		puts("glint " GLINT_VERSION);
		return 0;
	}
	if (argc > 1 && is_help(argv[1])) {
		help(NULL);
		return 0;
	}
	const struct command *c = argc > 1 ? find(argv[1], argc > 2 ? argv[2] : NULL, &group_known) : NULL;
	if (c)
		return run_command(c, argc - 3, argv + 3);
	if (group_known && argc > 2 && is_help(argv[2])) {
		help(argv[1]);
		return 0;
	}
	if (argc > 1)
		log_err("there is no command '%s%s%s'", argv[1], argc > 2 ? " " : "", argc > 2 ? argv[2] : "");
	log_err("hint: glint --help lists the commands");
	return 2;
}
