/*
 * The table of commands. Touches nothing.
 */
#include "cli/cli.h"

#include <stdio.h>

const struct command *const commands[] = {
	&disk_create_command, /* one a line */
	&disk_info_command,     &disk_map_command,
	&disk_convert_command,  &disk_resize_command,
	&disk_snapshot_command, &disk_merge_command,
	&disk_compact_command,  &disk_check_command,
	&image_create_command,  &image_inspect_command,
	&image_edit_command,    &image_update_command,
	&host_support_command,  NULL, /* the end */
};

void cli_words(const struct command *command, char *buf, size_t len)
{
	char words[256];
	size_t at = 0;

	buf[0] = '\0';
	for (unsigned i = 0; i < command->words && at < len; i++)
		at += (size_t)snprintf(buf + at, len - at, " %s",
				       option_value_words(&command->options[i], words, sizeof(words)));
}
