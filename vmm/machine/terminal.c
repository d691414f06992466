/*
 * Raw mode and the way out of it; see terminal.h. Touches the terminal's settings only.
 */
#include "vmm/machine/terminal.h"

#include <unistd.h>

#define CTRL_A 0x01

void terminal_take(struct terminal *terminal, int fd)
{
	*terminal = (struct terminal){.fd = -1};
	/* In the background, changing the terminal would stop us (SIGTTOU). */
	if (fd < 0 || tcgetattr(fd, &terminal->before) < 0 || tcgetpgrp(fd) != getpgrp())
		return;
	terminal->fd = fd;
	struct termios raw = terminal->before;
	cfmakeraw(&raw);
	tcsetattr(fd, TCSANOW, &raw);
}

void terminal_give_back(struct terminal *terminal)
{
	if (terminal->fd >= 0)
		tcsetattr(terminal->fd, TCSANOW, &terminal->before);
	terminal->fd = -1;
}

enum terminal_key terminal_key(struct terminal *terminal, uint8_t byte)
{
	if (terminal->fd < 0)
		return TERMINAL_FOR_GUEST;
	if (!terminal->escaped) {
		terminal->escaped = byte == CTRL_A;
		return terminal->escaped ? TERMINAL_SWALLOWED : TERMINAL_FOR_GUEST;
	}
	terminal->escaped = false;
	if (byte == 'x' || byte == 'X')
		return TERMINAL_QUIT;
	return byte == CTRL_A ? TERMINAL_FOR_GUEST : TERMINAL_SWALLOWED;
}
