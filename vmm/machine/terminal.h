/*
 * The terminal a person started the monitor on, when the serial port leads there: raw while the guest runs, so that
 * every key is the guest's, with one way out: Ctrl-A x ends the monitor (Ctrl-A Ctrl-A is one Ctrl-A for the guest).
 */
#ifndef GLINT_VMM_MACHINE_TERMINAL_H
#define GLINT_VMM_MACHINE_TERMINAL_H

#include <stdint.h>
#include <termios.h>

struct terminal {
	int fd; /* -1: not a terminal */
	struct termios before;
	bool escaped; /* Ctrl-A was typed */
};

enum terminal_key { TERMINAL_FOR_GUEST, TERMINAL_SWALLOWED, TERMINAL_QUIT };

/* Makes @fd raw if it is a terminal whose foreground we are in; remembers how it was. @fd -1 is allowed. */
void terminal_take(struct terminal *terminal, int fd);

/* As it was before. */
void terminal_give_back(struct terminal *terminal);

/* What becomes of a byte that was typed. */
enum terminal_key terminal_key(struct terminal *terminal, uint8_t byte);

#endif
