/*
 * Sockets on an I/O thread; see sockets.h. Touches: one epoll, the sockets it is given.
 *
 * The ring's poll of the epoll set reports that something became ready, not that something still is: so all events are
 * taken each time. After a bounded number the rest is left to the end of the batch, so that other devices of the thread
 * have their turn.
 */
#include "vmm/machine/sockets.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#define EVENTS (EPOLLIN | EPOLLRDHUP | EPOLLET)

/* Takes one batch; false when there may be more. */
static bool take_batch(struct sockets *s)
{
	int n = epoll_wait(s->epoll_fd, s->event, SOCKETS_BATCH, 0);

	s->count = n > 0 ? (unsigned)n : 0;
	for (s->at = 0; s->at < s->count; s->at++) {
		struct socket_watch *watch = s->event[s->at].data.ptr;
		if (watch)
			watch->ready(watch, s->event[s->at].events);
	}
	s->count = 0;
	return n < SOCKETS_BATCH;
}

static void more(struct io_batch *batch)
{
	struct sockets *s = (struct sockets *)((char *)batch - offsetof(struct sockets, again));

	if (s->epoll_fd >= 0 && !take_batch(s))
		iothread_at_end(s->thread, &s->again);
}

static void ready(struct io_watch *watch)
{
	more(&((struct sockets *)((char *)watch - offsetof(struct sockets, watch)))->again);
}

void sockets_poll(struct sockets *s)
{
	while (!take_batch(s))
		;
}

struct error *sockets_init(struct sockets *s, struct iothread *thread)
{
	*s = (struct sockets){.thread = thread, .epoll_fd = epoll_create1(EPOLL_CLOEXEC)};
	s->watch.ready = ready;
	s->again.end = more;
	if (s->epoll_fd < 0)
		return error_new(errno, "make an epoll set");
	struct error *err = iothread_add_file(thread, s->epoll_fd, &s->watch.slot);
	if (err) {
		close_fd(&s->epoll_fd);
		return err;
	}
	iothread_watch(thread, &s->watch);
	return NULL;
}

/* Between two batches; one that was put off is ended, for it lies in what will be freed. */
static void end(void *arg)
{
	struct sockets *s = arg;
	const unsigned nothing = 0;

	close_fd(&s->epoll_fd);
	iothread_drain(s->thread, &nothing);
}

void sockets_destroy(struct sockets *s)
{
	if (!s->thread || s->epoll_fd < 0)
		return;
	iothread_unwatch(s->thread, &s->watch);
	iothread_remove_file(s->thread, s->watch.slot);
	iothread_call(s->thread, end, s);
}

bool sockets_add(struct sockets *s, struct socket_watch *watch)
{
	struct epoll_event ev = {.events = EVENTS, .data.ptr = watch};

	watch->wants_room = false;
	return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, watch->fd, &ev) == 0;
}

void sockets_close(struct sockets *s, struct socket_watch *watch)
{
	if (watch->fd < 0)
		return;
	(void)epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	for (unsigned i = s->at; i < s->count; i++)
		if (s->event[i].data.ptr == watch)
			s->event[i].data.ptr = NULL;
	close_fd(&watch->fd);
}

void sockets_want_room(struct sockets *s, struct socket_watch *watch, bool on)
{
	struct epoll_event ev = {.events = EVENTS | (on ? EPOLLOUT : 0u), .data.ptr = watch};

	if (watch->wants_room == on || watch->fd < 0)
		return;
	watch->wants_room = on;
	/* Cannot fail: the entry is there. What is ready already is reported anew. */
	(void)epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, watch->fd, &ev);
}

int sockets_accept(int fd)
{
	int client;

	do
		client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	while (client < 0 && (errno == EINTR || errno == ECONNABORTED));
	return client;
}
