/*
 * Those who look at the display; see viewers.h. Touches their sockets, the display's dirty log, and the machine's
 * input.
 *
 * KVM's log is emptied by whoever reads it, so what it says is added to what each viewer has not seen. Keys that a
 * viewer holds down when its link ends are released for it.
 */
#include "vmm/display/viewers.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/display/link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct viewer {
	struct viewers *all;
	int fd; /* -1: an empty place */
	struct loop_source *source;
	bool looking;
	uint64_t unseen[MEMORY_WINDOW_WORDS];
	uint64_t down[LINK_KEYS / 64];
};

struct viewers {
	struct loop *loop;
	struct display *display;
	struct input *input;
	struct viewer viewer[VIEWERS_MAX];
};

/* Somebody looks or nobody does: the log is on or off. */
static void follow(struct viewers *v)
{
	bool looking = false;

	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		looking |= v->viewer[i].looking;
	memory_window_track(&v->display->window, looking);
}

static void drop(struct viewer *viewer)
{
	struct viewers *v = viewer->all;

	for (unsigned code = 0; code < LINK_KEYS; code++)
		if (viewer->down[code / 64] >> code % 64 & 1)
			input_key(v->input, code, false);
	memset(viewer->down, 0, sizeof(viewer->down));
	loop_remove(viewer->source);
	viewer->source = NULL;
	viewer->looking = false;
	close_fd(&viewer->fd);
	follow(v);
}

/* False when it was not sent at once. @passed: a descriptor to go along, or -1. */
static bool send_view(struct viewer *viewer, const struct link_view *view, int passed)
{
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))] = {};
	struct iovec iov = {(void *)(uintptr_t)view, sizeof(*view)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (passed >= 0) {
		msg.msg_control = ancillary;
		msg.msg_controllen = sizeof(ancillary);
		struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
		*head = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(head), &passed, sizeof(passed));
	}
	return sendmsg(viewer->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(*view);
}

static struct link_view make_view(const struct viewers *v)
{
	return (struct link_view){.mode = display_mode(v->display), .leds = i8042_leds(v->input->i8042)};
}

/* --- what a viewer says; each returns whether it made sense --- */

static bool look(struct viewer *viewer)
{
	struct viewers *v = viewer->all;
	uint64_t written[MEMORY_WINDOW_WORDS] = {};
	struct link_view view = make_view(v);

	if (!viewer->looking) {
		viewer->looking = true;
		memset(viewer->unseen, 0xff, sizeof(viewer->unseen));
		follow(v);
	}
	memory_window_collect(&v->display->window, written);
	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		for (unsigned word = 0; word < MEMORY_WINDOW_WORDS; word++)
			v->viewer[i].unseen[word] |= written[word];
	memcpy(view.dirty, viewer->unseen, sizeof(view.dirty));
	memset(viewer->unseen, 0, sizeof(viewer->unseen));
	return send_view(viewer, &view, -1);
}

static bool rest(struct viewer *viewer)
{
	viewer->looking = false;
	follow(viewer->all);
	return true;
}

static bool key(struct viewer *viewer, const struct link_event *e)
{
	uint32_t code = e->key.code;

	if (code >= LINK_KEYS || e->key.down > 1)
		return false;
	uint64_t bit = 1ull << code % 64;
	if (!e->key.down)
		viewer->down[code / 64] &= ~bit;
	else
		viewer->down[code / 64] |= bit;
	input_key(viewer->all->input, code, e->key.down);
	return true;
}

static bool pointer(struct viewer *viewer, const struct link_event *e)
{
	if (e->pointer.x > TABLET_MAX || e->pointer.y > TABLET_MAX || e->pointer.buttons > PS2_BUTTONS ||
	    e->pointer.wheel < -8 || e->pointer.wheel > 7)
		return false;
	const struct tablet_point point = {.x = (uint16_t)e->pointer.x,
					   .y = (uint16_t)e->pointer.y,
					   .buttons = (uint8_t)e->pointer.buttons,
					   .wheel = (int8_t)e->pointer.wheel};
	input_pointer(viewer->all->input, &point);
	return true;
}

static bool obey(struct viewer *viewer, const struct link_event *e)
{
	switch (e->kind) {
	case LINK_LOOK:
		return look(viewer);
	case LINK_REST:
		return rest(viewer);
	case LINK_KEY:
		return key(viewer, e);
	case LINK_POINTER:
		return pointer(viewer, e);
	default:
		return false;
	}
}

/* One packet a turn: others of the loop come in between. No room for descriptors: the kernel closes what comes along.
 */
static void viewer_ready(void *arg, int fd, uint32_t events)
{
	struct viewer *viewer = arg;
	struct link_event e;
	ssize_t len = recv(fd, &e, sizeof(e), MSG_DONTWAIT | MSG_TRUNC);

	(void)events;
	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (len == (ssize_t)sizeof(e) && obey(viewer, &e))
		return;
	if (len > 0)
		log_warn("display: a viewer is disconnected: it sends what is no message, or does not read");
	drop(viewer);
}

/* --- coming and going --- */

static struct error *check_socket(int fd)
{
	int domain = 0, type = 0, accepts = 1;
	socklen_t len = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) < 0 || domain != AF_UNIX ||
	    type != SOCK_SEQPACKET || accepts)
		return error_hint(error_new(EINVAL, "the descriptor is not a connected UNIX socket"),
				  "pass one end of a socket pair of type SOCK_SEQPACKET");
	return NULL;
}

struct error *viewers_attach(struct viewers *v, int fd)
{
	struct viewer *place = NULL;

	TRY(check_socket(fd));
	for (unsigned i = 0; i < VIEWERS_MAX && !place; i++)
		if (v->viewer[i].fd < 0)
			place = &v->viewer[i];
	if (!place)
		return error_new(EBUSY, "%d viewers look already", VIEWERS_MAX);
	*place = (struct viewer){.all = v, .fd = fd};
	const struct link_view hello = make_view(v);
	struct error *err = NULL;
	if (!send_view(place, &hello, v->display->fd))
		err = error_new(errno, "send the frame buffer");
	if (!err)
		err = loop_add_fd(v->loop, fd, EPOLLIN, viewer_ready, place, &place->source);
	if (err)
		place->fd = -1;
	return err;
}

unsigned viewers_count(const struct viewers *v)
{
	unsigned count = 0;

	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		count += v->viewer[i].fd >= 0;
	return count;
}

struct error *viewers_new(struct viewers **out, struct loop *loop, struct display *display, struct input *input)
{
	struct viewers *v = calloc(1, sizeof(*v));

	if (!v)
		return error_new(ENOMEM, "make room for viewers");
	*v = (struct viewers){.loop = loop, .display = display, .input = input};
	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		v->viewer[i] = (struct viewer){.all = v, .fd = -1};
	*out = v;
	return NULL;
}

void viewers_free(struct viewers *v)
{
	if (!v)
		return;
	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		if (v->viewer[i].fd >= 0)
			drop(&v->viewer[i]);
	free(v);
}
