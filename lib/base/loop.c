/*
 * The event loop: epoll_wait, then handlers in the order the kernel reports them.
 *
 * A source removed by a handler may still stand in the batch being worked on, so removal marks it dead and the memory
 * goes after the batch. Posts from other threads lie in a fixed ring guarded by a mutex and announced by an eventfd:
 * a post is an edge ("look at your flags"), so the same (fn, arg) waiting already is not queued twice, which bounds the
 * ring by the number of different posts a program has. A full ring is a programming error and ends the program.
 *
 * Touches: the descriptors handed to it, one epoll, one eventfd, a timerfd per timer.
 */
#include "base/loop.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BATCH 32
#define POSTS 64

struct loop_source {
	struct loop *loop;
	struct loop_source *next; /* all sources of the loop */
	int fd;
	bool is_timer;
	bool resting; /* not in the epoll set: epoll reports hang-ups even to who asks for nothing */
	bool dead;
	loop_fd_fn *fd_fn;
	loop_fn *timer_fn;
	void *arg;
};

struct loop {
	int epoll_fd;
	int post_fd;
	bool quit;
	bool has_dead;
	struct loop_source *sources;
	pthread_mutex_t post_lock;
	unsigned posts;
	struct {
		loop_fn *fn;
		void *arg;
	} post[POSTS];
};

static void run_posts(void *arg, int fd, uint32_t events)
{
	struct loop *loop = arg;
	uint64_t count;

	(void)events;
	if (read(fd, &count, sizeof(count)) < 0)
		return;
	for (;;) {
		pthread_mutex_lock(&loop->post_lock);
		if (loop->posts == 0) {
			pthread_mutex_unlock(&loop->post_lock);
			return;
		}
		loop_fn *fn = loop->post[0].fn;
		void *fn_arg = loop->post[0].arg;
		loop->posts--;
		for (unsigned i = 0; i < loop->posts; i++)
			loop->post[i] = loop->post[i + 1];
		pthread_mutex_unlock(&loop->post_lock);
		fn(fn_arg);
	}
}

struct error *loop_new(struct loop **out)
{
	struct loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return error_new(ENOMEM, "make an event loop");
	pthread_mutex_init(&loop->post_lock, NULL);
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	loop->post_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct error *err = NULL;
	if (loop->epoll_fd < 0 || loop->post_fd < 0)
		err = error_new(errno, "make an event loop");
	else
		err = loop_add_fd(loop, loop->post_fd, EPOLLIN, run_posts, loop, NULL);
	if (err) {
		loop_free(loop);
		return err;
	}
	*out = loop;
	return NULL;
}

static void free_source(struct loop_source *s)
{
	if (s->is_timer)
		close(s->fd);
	free(s);
}

static void sweep(struct loop *loop)
{
	struct loop_source **link = &loop->sources;

	while (*link) {
		struct loop_source *s = *link;
		if (s->dead) {
			*link = s->next;
			free_source(s);
		} else {
			link = &s->next;
		}
	}
	loop->has_dead = false;
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	for (struct loop_source *s = loop->sources; s; s = s->next)
		s->dead = true;
	sweep(loop);
	close_fd(&loop->epoll_fd);
	close_fd(&loop->post_fd);
	pthread_mutex_destroy(&loop->post_lock);
	free(loop);
}

static struct error *add_source(struct loop *loop, int fd, uint32_t events, const struct loop_source *proto,
				struct loop_source **out)
{
	struct loop_source *s = malloc(sizeof(*s));

	if (!s)
		return error_new(ENOMEM, "watch descriptor %d", fd);
	*s = *proto;
	s->loop = loop;
	s->fd = fd;
	struct epoll_event ev = {.events = events, .data.ptr = s};
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0) {
		free(s);
		return error_new(errno, "watch descriptor %d", fd);
	}
	s->next = loop->sources;
	loop->sources = s;
	if (out)
		*out = s;
	return NULL;
}

struct error *loop_add_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn *fn, void *arg,
			  struct loop_source **source)
{
	return add_source(loop, fd, events, &(struct loop_source){.fd_fn = fn, .arg = arg}, source);
}

struct error *loop_set_events(struct loop_source *source, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = source};
	int op = source->resting ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	if (source->resting && events == 0)
		return NULL;
	if (epoll_ctl(source->loop->epoll_fd, op, source->fd, &ev) < 0)
		return error_new(errno, "watch descriptor %d", source->fd);
	source->resting = events == 0;
	return NULL;
}

struct error *loop_add_timer(struct loop *loop, loop_fn *fn, void *arg, struct loop_source **source)
{
	cleanup_fd int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	if (fd < 0)
		return error_new(errno, "make a timer");
	TRY(add_source(loop, fd, EPOLLIN, &(struct loop_source){.is_timer = true, .timer_fn = fn, .arg = arg}, source));
	(void)steal_fd(&fd);
	return NULL;
}

void loop_timer_set(struct loop_source *source, uint64_t ns)
{
	struct itimerspec when = {
		.it_value = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)}};

	timerfd_settime(source->fd, 0, &when, NULL);
}

void loop_remove(struct loop_source *source)
{
	if (!source || source->dead)
		return;
	if (!source->resting)
		epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	source->dead = true;
	source->loop->has_dead = true;
}

void loop_post(struct loop *loop, loop_fn *fn, void *arg)
{
	uint64_t one = 1;
	bool known = false;

	pthread_mutex_lock(&loop->post_lock);
	for (unsigned i = 0; i < loop->posts; i++)
		known = known || (loop->post[i].fn == fn && loop->post[i].arg == arg);
	if (!known && loop->posts == POSTS) {
		log_err("event loop: more than %d different posts are waiting", POSTS);
		abort();
	}
	if (!known) {
		loop->post[loop->posts].fn = fn;
		loop->post[loop->posts].arg = arg;
		loop->posts++;
	}
	pthread_mutex_unlock(&loop->post_lock);
	/* Fails only when the counter is full, and then the loop is being woken anyway. */
	if (write(loop->post_fd, &one, sizeof(one)) < 0)
		return;
}

static void dispatch(struct loop_source *s, uint32_t events)
{
	uint64_t expirations;

	if (s->dead || s->resting)
		return;
	if (!s->is_timer)
		s->fd_fn(s->arg, s->fd, events);
	else if (read(s->fd, &expirations, sizeof(expirations)) == sizeof(expirations))
		s->timer_fn(s->arg);
}

struct error *loop_run(struct loop *loop)
{
	struct epoll_event events[BATCH];

	loop->quit = false;
	while (!loop->quit) {
		int n = epoll_wait(loop->epoll_fd, events, BATCH, -1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "wait for events");
		for (int i = 0; i < n && !loop->quit; i++)
			dispatch(events[i].data.ptr, events[i].events);
		if (loop->has_dead)
			sweep(loop);
	}
	return NULL;
}

void loop_quit(struct loop *loop)
{
	loop->quit = true;
}
