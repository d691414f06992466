/*
 * The command line `glint`: commands in groups ("glint disk info"). A command is a row here, a table of options and a
 * function; help, the manual page and the completion are made from the same rows.
 */
#ifndef GLINT_CLI_CLI_H
#define GLINT_CLI_CLI_H

#include "base/error.h"
#include "option/option.h"

#include <stddef.h>

#define CLI_WORDS_MAX 4

struct command {
	const char *group, *name;
	const char *summary; /* for help and the manual page: a clause, without a full stop */
	const char *more;    /* for the manual page: sentences; may be NULL */
	const struct option *options;
	unsigned words; /* the first so many options are not options: words, all of them, in this order */
	size_t bytes;   /* of the structure that the table is about; zeroes before it is filled */
	/* @status: what the process ends with when there is no error, 0 if nothing is said. */
	struct error *(*run)(void *args, int *status);
	int failure; /* what it ends with after an error; 0 for 1 */
};

/* All of them, a NULL at the end; in the order of help. */
extern const struct command *const commands[];

/* "FILE SIZE": the words of a command, each after a space. */
void cli_words(const struct command *command, char *buf, size_t len);

/* cli/disk_*.c */
extern const struct command disk_create_command, disk_info_command, disk_map_command, disk_convert_command,
	disk_resize_command, disk_snapshot_command, disk_merge_command, disk_compact_command, disk_check_command;

/* cli/image_*.c */
extern const struct command image_create_command, image_inspect_command, image_edit_command, image_update_command;

/* cli/host_*.c */
extern const struct command host_support_command;

#endif
