/*
 * Sockets that an I/O thread waits for: any number of them in an epoll set, which is one file of the thread's ring.
 *
 * Waiting is edge-triggered: a watch is told once that something came, or that there is room again, and remembers it
 * until a read or write would have waited. So whoever cannot use what came (no buffer of the guest, no credit) just
 * does not read, and nothing spins.
 *
 * Every function belongs to the I/O thread once it runs (iothread_call()), but for init and destroy.
 */
#ifndef GLINT_VMM_MACHINE_SOCKETS_H
#define GLINT_VMM_MACHINE_SOCKETS_H

#include "vmm/machine/iothread.h"

#include <sys/epoll.h>

#define SOCKETS_BATCH 32

/* Embedded in its owner, who sets @ready and @fd (not blocking; -1: none). @events: as epoll(7) reports them. */
struct socket_watch {
	void (*ready)(struct socket_watch *watch, uint32_t events);
	int fd;
	bool wants_room;
};

struct sockets {
	struct iothread *thread;
	int epoll_fd;
	struct io_watch watch;
	struct io_batch again;
	/* The events being handled: a watch that goes meanwhile is taken out. */
	struct epoll_event event[SOCKETS_BATCH];
	unsigned at, count;
};

[[nodiscard]] struct error *sockets_init(struct sockets *sockets, struct iothread *thread);
/* On any thread but the I/O thread. Nothing is added any more. Also after a failed init, and when all is zero. */
void sockets_destroy(struct sockets *sockets);

/* Begins to wait for what comes in on @watch->fd, and for its end. False when the kernel is out of memory. */
[[nodiscard]] bool sockets_add(struct sockets *sockets, struct socket_watch *watch);
/* Ends it and closes the descriptor; @watch may be freed then. No-op when there is none. */
void sockets_close(struct sockets *sockets, struct socket_watch *watch);
/* Whether to wait for room to write too. */
void sockets_want_room(struct sockets *sockets, struct socket_watch *watch, bool on);

/* Handles what is there now, without waiting: for fuzz targets, whose thread does not wait. */
void sockets_poll(struct sockets *sockets);

/* Accepts a connection on the listening socket @fd: a descriptor that does not block, or -1 when nobody waits. */
int sockets_accept(int fd);

#endif
