/*
 * An event loop over epoll for the slow side of a program: control sockets, consoles, timers, signals. One thread
 * runs a loop; every function but loop_post() belongs to that thread.
 */
#ifndef GLINT_BASE_LOOP_H
#define GLINT_BASE_LOOP_H

#include "base/error.h"

#include <stdint.h>

struct loop;
struct loop_source;

/* @events: EPOLLIN, EPOLLOUT... as reported by epoll(7). The handler may remove its own or any other source. */
typedef void loop_fd_fn(void *arg, int fd, uint32_t events);
typedef void loop_fn(void *arg);

[[nodiscard]] struct error *loop_new(struct loop **loop);
/* Removes and frees every source (descriptors stay open: they are their owners') and the loop. NULL is allowed. */
void loop_free(struct loop *loop);

/* Watches @fd, which stays the caller's and must outlive the source. @source may be NULL when never removed. */
[[nodiscard]] struct error *loop_add_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn *fn, void *arg,
					struct loop_source **source);
/* Changes the events a source waits for; 0 rests it. */
[[nodiscard]] struct error *loop_set_events(struct loop_source *source, uint32_t events);

/* A timer; armed by loop_timer_set. @ns: from now, 0 disarms. */
[[nodiscard]] struct error *loop_add_timer(struct loop *loop, loop_fn *fn, void *arg, struct loop_source **source);
void loop_timer_set(struct loop_source *source, uint64_t ns);

/* Ends a source; safe inside its own handler. NULL is allowed. */
void loop_remove(struct loop_source *source);

/* Has @fn called by the loop's thread. The one call that any thread may make. Never blocks, never fails: see loop.c. */
void loop_post(struct loop *loop, loop_fn *fn, void *arg);

/* Runs until loop_quit(). Returns an error only when epoll itself fails. */
[[nodiscard]] struct error *loop_run(struct loop *loop);
void loop_quit(struct loop *loop);

#endif
