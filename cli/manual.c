/*
 * Build tool: prints what the package carries for people beside glint, from the program's own tables.
 *
 *     manual man     glint(1)
 *     manual bash    completion for bash
 *
 * It may touch: its standard output.
 */
#include "option/manual.h"
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

static void put_command(const struct command *c)
{
	char words[256];

	cli_words(c, words, sizeof(words));
	printf(".SS glint %s %s", c->group, c->name);
	manual_text(words);
	puts(" [OPTION]...");
	manual_text(c->summary);
	puts(".");
	if (c->more) {
		manual_text(c->more);
		putchar('\n');
	}
	for (unsigned i = 0; i < c->words; i++) {
		printf(".TP\n\\fI");
		manual_text(option_value_words(&c->options[i], words, sizeof(words)));
		puts("\\fR");
		manual_text(c->options[i].help);
		puts(".");
	}
	manual_options(c->options + c->words);
}

static void put_manual(void)
{
	puts(".TH GLINT 1 \"\" \"Glint " GLINT_VERSION "\" \"Glint\"\n"
	     ".SH NAME\n"
	     "glint \\- work on disks and hosts of Glint\n"
	     ".SH SYNOPSIS\n"
	     ".B glint\n"
	     "\\fIGROUP COMMAND\\fR [\\fIWORD\\fR]... [\\fIOPTION\\fR]...\n"
	     ".SH DESCRIPTION\n"
	     "A \\fISIZE\\fR is bytes, or has one of the suffixes K, M, G and T. Options may stand before, between and "
	     "behind\n"
	     "words; behind \\-\\- everything is a word.\n"
	     ".PP\n"
	     "The format of a disk image is found by its contents, and raw is what is left; a new image's is that of "
	     "its\n"
	     "name's end. Parents of an image are looked for in its own folder and below, and nowhere else unless "
	     "\\-\\-pool\n"
	     "names the folder that they all lie in. A disk that a machine uses is not changed, nor copied.\n"
	     ".SH COMMANDS");
	for (size_t i = 0; commands[i]; i++)
		put_command(commands[i]);
	puts(".SH EXIT STATUS\n"
	     "0 when it was done, 1 when not, 2 when there is no such command. glint disk check: 0 nothing is wrong, 1 "
	     "what\n"
	     "was wrong is mended or is lost space only, 2 something is wrong, 3 it could not be looked at. glint "
	     "image inspect: 2 something on it is damaged.\n"
	     ".SH EXAMPLES\n"
	     ".EX\n"
	     "glint disk create web.vhdx \\-\\-size 40G\n"
	     "glint disk convert old.qcow2 web.vhdx \\-\\-verify\n"
	     "glint disk snapshot web.vhdx web\\-today.vhdx\n"
	     "glint image create \\-o /dev/sdX \\-\\-guest web=web.vhdx,memory=2G,autostart\n"
	     ".EE");
}

/* In the completion, "group name" of each command has its own function of options. */
static void put_completion(void)
{
	puts("# Completion of glint for bash.\n"
	     "_glint()\n{\n"
	     "\tlocal option=${COMP_WORDS[COMP_CWORD - 1]} value=${COMP_WORDS[COMP_CWORD]}\n"
	     "\tif ((COMP_CWORD == 1)); then");
	printf("\t\tCOMPREPLY=($(compgen -W \"");
	for (size_t i = 0; commands[i]; i++)
		if (i == 0 || strcmp(commands[i]->group, commands[i - 1]->group) != 0)
			printf("%s ", commands[i]->group);
	puts("\" -- \"$value\"))\n\t\treturn\n\tfi\n\tif ((COMP_CWORD == 2)); then\n\t\tcase ${COMP_WORDS[1]} in");
	for (size_t i = 0; commands[i]; i++) {
		if (i == 0 || strcmp(commands[i]->group, commands[i - 1]->group) != 0)
			printf("\t\t%s) COMPREPLY=($(compgen -W \"", commands[i]->group);
		printf("%s ", commands[i]->name);
		if (!commands[i + 1] || strcmp(commands[i]->group, commands[i + 1]->group) != 0)
			puts("\" -- \"$value\")) ;;");
	}
	puts("\t\tesac\n\t\treturn\n\tfi\n\tcase \"${COMP_WORDS[1]} ${COMP_WORDS[2]}\" in");
	for (size_t i = 0; commands[i]; i++) {
		const struct option *options = commands[i]->options + commands[i]->words;
		printf("\t\"%s %s\") case $option in\n", commands[i]->group, commands[i]->name);
		completion_values(options);
		printf("\t*) if [[ $value == -* ]]; then COMPREPLY=($(compgen -W \"");
		completion_names(options, "--", "");
		puts("\" -- \"$value\"))\n\t\telse compopt -o filenames; COMPREPLY=($(compgen -f -- \"$value\")); "
		     "fi\n\tesac ;;");
	}
	puts("\tesac\n}\ncomplete -F _glint glint");
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "man") == 0)
		put_manual();
	else if (argc == 2 && strcmp(argv[1], "bash") == 0)
		put_completion();
	else
		return 2;
	return ferror(stdout) || fflush(stdout) != 0;
}
