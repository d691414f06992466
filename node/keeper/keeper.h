/*
 * The keeper: carries what ovsdb-server commits to the sticks, and brings it back when the host starts. This is what
 * glint-keeper does between its command line (main.c) and the parts beside it.
 *
 * The truth is the database's file in memory. At start there is none: it is made from the stick, or new. A keeper that
 * is started again finds it there, and goes on.
 *
 * Its control socket (SOCK_SEQPACKET, JSON-RPC 2.0, as glint-vmm's) has three methods:
 *     sync            waits until all that was committed is kept; {durability: "stick" or "memory", change, why}
 *     status          what health.json in the folder says (health.h)
 *     adopt {path}    a person's word: what is on this stick is not wanted, it gets the present state
 */
#ifndef GLINT_KEEPER_KEEPER_H
#define GLINT_KEEPER_KEEPER_H

#include "base/loop.h"

struct keeper;

struct keeper_options {
	const char *const *sticks; /* partitions, or folders to choose one from (choose.h) */
	unsigned stick_count;
	const char *booted;   /* the folder that names the disk the host was booted from, or NULL */
	unsigned wait_s;      /* how long the start waits for a stick that is not there yet */
	const char *folder;   /* absolute; a tmpfs: database/, identity/, keeper.sock come to lie in it */
	const char *schema;   /* a file; an older database is converted to it */
	const char *hardware; /* what the host runs on; "" where that is not known */
	const char *server;   /* the control socket of ovsdb-server; NULL: is not asked to compact */
	bool adopt_empty;     /* a host without a stick formats an empty one */
	unsigned patience_s;  /* how long sync waits for a stick that does not answer */
};

/* Restores; when it returns the database's file is there for the server, and calls are answered. */
[[nodiscard]] struct error *keeper_new(struct keeper **out, struct loop *loop, const struct keeper_options *options);
void keeper_free(struct keeper *keeper);

#endif
