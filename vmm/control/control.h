/*
 * The control socket: JSON-RPC 2.0, one message a packet, over an AF_UNIX SOCK_SEQPACKET socket; descriptors ride
 * along by SCM_RIGHTS. The server knows nothing of machines: it has a table of methods. All of it runs on the main
 * loop's thread. The peer is trusted no further than its packets: size, nesting, and descriptors are bounded, unknown
 * members are refused. Batches are refused too: each call is a packet.
 */
#ifndef GLINT_VMM_CONTROL_CONTROL_H
#define GLINT_VMM_CONTROL_CONTROL_H

#include "base/error.h"
#include "base/loop.h"

#include <jansson.h>
#include <stddef.h>

#define CONTROL_PACKET_MAX  ((size_t)64 << 10)
#define CONTROL_FDS_MAX     16
#define CONTROL_CLIENTS_MAX 8
#define CONTROL_LATER_MAX   16 /* calls of all clients whose answers are put off */

/* JSON-RPC error codes; the server's own failures are CONTROL_FAILED with errno's name in data.errno. */
enum {
	CONTROL_PARSE = -32700,
	CONTROL_INVALID = -32600,
	CONTROL_NO_METHOD = -32601,
	CONTROL_BAD_PARAMS = -32602,
	CONTROL_FAILED = -32000
};

struct control;
struct control_client;
struct control_later;

/* A call at hand. Descriptors not taken (steal_fd) are closed when the method returns. */
struct control_call {
	json_t *params; /* an object; empty when the client gave none. Borrowed */
	int fds[CONTROL_FDS_MAX];
	unsigned fd_count;

	/* The server's. */
	struct control_client *client;
	const char *method;
	json_t *id;    /* borrowed; NULL: no answer is wanted */
	bool deferred; /* there is none yet */
};

struct control_method {
	const char *name;
	/*
	 * Does it and sets *result (owned by the server afterwards, also beside an error; NULL means {}). An error
	 * becomes CONTROL_FAILED, or CONTROL_BAD_PARAMS when its errno is EINVAL. May call control_notify(), not
	 * control_free(). What a method that called control_defer() returns is NULL.
	 */
	struct error *(*call)(void *self, struct control_call *call, json_t **result);
};

/*
 * Serves @methods (ended by a NULL name) to whoever connects to @listen_fd, a listening SOCK_SEQPACKET socket, and to
 * the one peer of @peer_fd, a connected one; -1 is none. The descriptors become the server's, also when it fails.
 * Before the sandbox: it reads /dev/urandom.
 */
[[nodiscard]] struct error *control_new(struct control **out, struct loop *loop, int listen_fd, int peer_fd,
					const struct control_method *methods, void *self);
void control_free(struct control *control);

/*
 * Sends a notification to every client; one whose socket is full loses its connection. Consumes @params (an object, or
 * NULL).
 */
void control_notify(struct control *control, const char *method, json_t *params);

/*
 * Puts off the answer of the call at hand: the client's other calls are answered meanwhile. Every *later must be given
 * to control_answer() once, before control_free(); also when the client is gone. Fails with EBUSY when too many are put
 * off already.
 */
[[nodiscard]] struct error *control_defer(struct control_call *call, struct control_later **later);

/* Answers a call that was put off, as if its method had now returned @err and *result. Consumes all three. */
void control_answer(struct control_later *later, struct error *err, json_t *result);

/* Unpacks params strictly: like json_unpack_ex with JSON_STRICT, whose words become the error (EINVAL). */
[[nodiscard]] struct error *control_params(const struct control_call *call, const char *fmt, ...);

#endif
