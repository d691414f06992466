/*
 * The control socket; see control.h. One packet is one call, answered before the next is read, so a client is a
 * descriptor and nothing else: no buffers, no queue. Answers are sent without waiting. A client whose socket is full
 * has not read what it was sent, and loses its connection; it can come back and ask.
 *
 * An answer that is put off is a place in a table: who asked, and the id. When he goes, the place forgets him, and what
 * would have been the answer is thrown away.
 *
 * A client may go while one of its calls runs (a method that notifies may find its socket full): its place is then
 * empty, which is looked at again before the answer is sent. Places are filled only by accepting, never inside a call.
 *
 * It touches the sockets it was given and those it accepts. Descriptors that come along are closed unless a method took
 * them.
 */
#include "vmm/control/control.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/control/dispatch.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* How long accepting rests when it failed (out of descriptors): the waiting client would make the loop spin. */
#define REST_NS (1000ull * 1000 * 1000)

struct control_client {
	struct control *control;
	int fd; /* -1: an empty place */
	struct loop_source *source;
};

struct control_later {
	bool used;
	struct control_client *client; /* NULL: gone, or wants no answer */
	const char *method;
	json_t *id;
};

struct control {
	struct loop *loop;
	const struct control_method *methods;
	void *self;
	int listen_fd;
	struct loop_source *listening, *rest;
	struct control_client client[CONTROL_CLIENTS_MAX];
	struct control_later later[CONTROL_LATER_MAX];
	char packet[CONTROL_PACKET_MAX];
};

static void drop_client(struct control_client *client)
{
	for (unsigned i = 0; i < CONTROL_LATER_MAX; i++)
		if (client->control->later[i].client == client)
			client->control->later[i].client = NULL;
	loop_remove(client->source);
	client->source = NULL;
	close_fd(&client->fd);
}

/* False when it was not sent whole at once. */
static bool send_packet(int fd, const char *text)
{
	ssize_t sent;

	do
		sent = send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent >= 0;
}

/* Sends @text (consumed; NULL when it could not be made) to a client, or loses it. */
static void send_to(struct control_client *client, const char *text)
{
	if (client->fd < 0)
		return;
	if (text && send_packet(client->fd, text))
		return;
	if (!text || errno == EAGAIN)
		log_warn("control: a client is disconnected: %s", text ? "it does not read" : "out of memory");
	drop_client(client);
}

/* --- receiving --- */

/* Moves the descriptors of @msg into @call; what does not fit is closed. False when there were too many. */
static bool take_descriptors(struct msghdr *msg, struct control_call *call)
{
	bool all = !(msg->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (call->fd_count < CONTROL_FDS_MAX) {
				call->fds[call->fd_count++] = fd;
			} else {
				close(fd);
				all = false;
			}
		}
	}
	return all;
}

/*
 * Receives one packet into control->packet. Returns its length, 0 at the end of the connection, -1 when there is none,
 * and for a packet that is refused sets *refusal to its answer.
 */
static ssize_t receive(struct control_client *client, struct control_call *call, char **refusal)
{
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)];
	struct iovec iov = {client->control->packet, CONTROL_PACKET_MAX};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof(ancillary)};
	ssize_t len;

	do
		len = recvmsg(client->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (len < 0 && errno == EINTR);
	if (len < 0)
		return errno == EAGAIN ? -1 : 0;
	bool all = take_descriptors(&msg, call);
	if (msg.msg_flags & MSG_TRUNC)
		*refusal = control_refusal(CONTROL_INVALID, "the packet is too long");
	else if (!all)
		*refusal = control_refusal(CONTROL_INVALID, "too many descriptors came along");
	return len;
}

static void client_ready(void *arg, int fd, uint32_t events)
{
	struct control_client *client = arg;
	struct control *control = client->control;
	struct control_call call = {.client = client};
	cleanup_free char *answer = NULL;

	(void)fd, (void)events;
	ssize_t len = receive(client, &call, &answer);
	if (len > 0 && answer) {
		send_to(client, answer);
	} else if (len > 0) {
		answer = control_dispatch(control->methods, control->self, control->packet, (size_t)len, &call);
		if (answer)
			send_to(client, answer);
	} else if (len == 0) {
		drop_client(client);
	}
	for (unsigned i = 0; i < call.fd_count; i++)
		close_fd(&call.fds[i]);
}

/* --- connecting --- */

/* Takes @fd, whatever happens. */
static struct error *add_client(struct control *control, int fd)
{
	cleanup_fd int owned = fd;

	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *client = &control->client[i];
		if (client->fd >= 0)
			continue;
		TRY(loop_add_fd(control->loop, fd, EPOLLIN, client_ready, client, &client->source));
		client->fd = steal_fd(&owned);
		return NULL;
	}
	cleanup_free char *refusal = control_refusal(CONTROL_FAILED, "there are too many clients already");
	if (refusal)
		(void)send_packet(fd, refusal);
	return error_new(0, "a client is refused: there are %d already", CONTROL_CLIENTS_MAX);
}

static void accept_again(void *arg)
{
	struct control *control = arg;
	cleanup_error struct error *err = loop_set_events(control->listening, EPOLLIN);

	if (err)
		log_warn("control: %s", error_text(err));
}

static void peer_waits(void *arg, int fd, uint32_t events)
{
	struct control *control = arg;
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	cleanup_error struct error *err = NULL;
	if (client >= 0) {
		err = add_client(control, client);
	} else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
		log_warn("control: accept a client: %s; trying again in a second", strerror(errno));
		err = loop_set_events(control->listening, 0);
		loop_timer_set(control->rest, REST_NS);
	}
	if (err)
		log_warn("control: %s", error_text(err));
}

static struct error *check_socket(int fd, bool listening)
{
	int domain = 0, type = 0, accepts = 0;
	socklen_t len = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) < 0)
		return error_new(errno, "control: descriptor %d", fd);
	if (domain != AF_UNIX || type != SOCK_SEQPACKET || (accepts != 0) != listening)
		return error_new(EINVAL, "control: descriptor %d is not a %s UNIX socket of type SOCK_SEQPACKET", fd,
				 listening ? "listening" : "connected");
	return NULL;
}

static struct error *start(struct control *control, int listen_fd, int peer_fd)
{
	/* Jansson's hash seed comes from /dev/urandom when it is first used: now, while that can be opened. */
	json_object_seed(0);
	if (peer_fd >= 0) {
		cleanup_fd int owned = peer_fd;
		TRY(check_socket(peer_fd, false));
		TRY(add_client(control, steal_fd(&owned)));
	}
	if (listen_fd < 0)
		return NULL;
	TRY(check_socket(listen_fd, true));
	TRY(loop_add_timer(control->loop, accept_again, control, &control->rest));
	return loop_add_fd(control->loop, listen_fd, EPOLLIN, peer_waits, control, &control->listening);
}

struct error *control_new(struct control **out, struct loop *loop, int listen_fd, int peer_fd,
			  const struct control_method *methods, void *self)
{
	struct control *control = calloc(1, sizeof(*control));

	if (!control) {
		close_fd(&listen_fd);
		close_fd(&peer_fd);
		return error_new(ENOMEM, "make the control socket");
	}
	control->loop = loop;
	control->methods = methods;
	control->self = self;
	control->listen_fd = listen_fd;
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		control->client[i] = (struct control_client){.control = control, .fd = -1};
	struct error *err = start(control, listen_fd, peer_fd);
	if (err) {
		control_free(control);
		return err;
	}
	*out = control;
	return NULL;
}

void control_free(struct control *control)
{
	if (!control)
		return;
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		drop_client(&control->client[i]);
	loop_remove(control->listening);
	loop_remove(control->rest);
	close_fd(&control->listen_fd);
	free(control);
}

struct error *control_defer(struct control_call *call, struct control_later **out)
{
	struct control_later *later = call->client->control->later;

	for (unsigned i = 0; i < CONTROL_LATER_MAX; i++) {
		if (later[i].used)
			continue;
		later[i] = (struct control_later){.used = true, .method = call->method, .id = json_incref(call->id)};
		if (call->client->fd >= 0 && call->id)
			later[i].client = call->client;
		call->deferred = true;
		*out = &later[i];
		return NULL;
	}
	return error_hint(error_new(EBUSY, "%d calls wait for their answers already", CONTROL_LATER_MAX),
			  "try again soon");
}

void control_answer(struct control_later *later, struct error *err, json_t *result)
{
	const struct control_later mine = *later;

	*later = (struct control_later){};
	if (mine.client) {
		cleanup_free char *text = control_answer_text(mine.id, mine.method, err, result);
		send_to(mine.client, text);
	} else {
		error_free(err);
		json_decref(result);
	}
	json_decref(mine.id);
}

void control_notify(struct control *control, const char *method, json_t *params)
{
	cleanup_free char *text = control_notification(method, params);

	if (!text) {
		log_warn("control: notification %s is too long, or memory is out", method);
		return;
	}
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		send_to(&control->client[i], text);
}
