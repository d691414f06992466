/*
 * The control socket from its clients' side: a server on a thread of its own, with a handful of methods, and clients
 * that behave and that do not.
 */
#include "vmm/control/control.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

#define WAIT_MS 5000

struct server {
	struct loop *loop;
	struct control *control;
	pthread_t thread;
	int peer; /* the client's end of the connected pair */
	struct sockaddr_un address;
	socklen_t address_len;
	unsigned calls;
	struct control_later *later[CONTROL_LATER_MAX];
	unsigned laters;
};

/* --- methods --- */

static struct error *do_echo(void *self, struct control_call *call, json_t **result)
{
	((struct server *)self)->calls++;
	*result = json_incref(call->params);
	return NULL;
}

static struct error *do_nothing(void *self, struct control_call *call, json_t **result)
{
	((struct server *)self)->calls++;
	return NULL;
}

static struct error *do_add(void *self, struct control_call *call, json_t **result)
{
	int a, b = 1;

	TRY(control_params(call, "{s:i, s?i}", "a", &a, "b", &b));
	*result = json_pack("{s:i}", "sum", a + b);
	return NULL;
}

static struct error *do_fail(void *self, struct control_call *call, json_t **result)
{
	*result = json_object();
	return error_hint(error_new(ENOSPC, "write the \xc3\xa4 file"), "make room");
}

/* Fails with words as long as the client wants them, and not UTF-8 if it wants that. */
static struct error *do_long_error(void *self, struct control_call *call, json_t **result)
{
	const char *text;

	TRY(control_params(call, "{s:s}", "text", &text));
	return error_new(0, "%s%s", text, text[0] == 'b' ? "\xff" : "");
}

static struct error *do_long_result(void *self, struct control_call *call, json_t **result)
{
	static char text[CONTROL_PACKET_MAX];

	memset(text, 'x', sizeof(text));
	*result = json_pack("{s:s#}", "text", text, sizeof(text));
	return NULL;
}

/* Takes the first descriptor and tells what can be read from it, and how many others there were. */
static struct error *do_take(void *self, struct control_call *call, json_t **result)
{
	char text[16] = "";
	cleanup_fd int fd = call->fd_count ? steal_fd(&call->fds[0]) : -1;

	if (fd >= 0 && read(fd, text, sizeof(text) - 1) < 0)
		return error_new(errno, "read the descriptor");
	*result = json_pack("{s:s, s:i, s:b}", "text", text, "count", (int)call->fd_count, "cloexec",
			    fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	return NULL;
}

static struct error *do_announce(void *self, struct control_call *call, json_t **result)
{
	struct server *server = self;
	int times;

	TRY(control_params(call, "{s:i}", "times", &times));
	for (int i = 0; i < times; i++)
		control_notify(server->control, "event", json_pack("{s:i}", "number", i));
	return NULL;
}

static struct error *do_later(void *self, struct control_call *call, json_t **result)
{
	struct server *server = self;
	struct control_later *later;

	TRY(control_defer(call, &later));
	server->later[server->laters++] = later;
	return NULL;
}

/* Answers what was put off last, with a result or an error. */
static struct error *do_release(void *self, struct control_call *call, json_t **result)
{
	struct server *server = self;
	int fails = 0;

	TRY(control_params(call, "{s?b}", "fail", &fails));
	if (!server->laters)
		return error_new(ENOENT, "nothing waits");
	struct control_later *later = server->later[--server->laters];
	if (fails)
		control_answer(later, error_new(ETIMEDOUT, "too late"), NULL);
	else
		control_answer(later, NULL, json_pack("{s:i}", "left", (int)server->laters));
	return NULL;
}

/* Puts off, and answers at once. */
static struct error *do_at_once(void *self, struct control_call *call, json_t **result)
{
	struct control_later *later;

	TRY(control_defer(call, &later));
	control_answer(later, NULL, json_pack("{s:b}", "now", true));
	return NULL;
}

static const struct control_method methods[] = {
	{"echo", do_echo},       {"nothing", do_nothing},       {"add", do_add},
	{"fail", do_fail},       {"long-error", do_long_error}, {"long-result", do_long_result},
	{"take", do_take},       {"announce", do_announce},     {"later", do_later},
	{"release", do_release}, {"at-once", do_at_once},       {},
};

/* --- server and clients --- */

static void *serve(void *arg)
{
	struct server *server = arg;

	assert_null(loop_run(server->loop));
	return NULL;
}

static void quit(void *arg)
{
	loop_quit(arg);
}

static int new_socket(int flags)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);

	if (fd < 0)
		abort();
	return fd;
}

static int start_server(void **state)
{
	struct server *server = calloc(1, sizeof(*server));
	int listen_fd = new_socket(SOCK_NONBLOCK);
	int pair[2];

	log_init("control_test", LOG_LEVEL_ERROR);
	server->address.sun_family = AF_UNIX;
	server->address_len = sizeof(server->address);
	/* An abstract address that the kernel chooses. */
	assert_int_equal(bind(listen_fd, (void *)&server->address, sizeof(sa_family_t)), 0);
	assert_int_equal(getsockname(listen_fd, (void *)&server->address, &server->address_len), 0);
	assert_int_equal(listen(listen_fd, 64), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	server->peer = pair[0];
	assert_null(loop_new(&server->loop));
	assert_null(control_new(&server->control, server->loop, listen_fd, pair[1], methods, server));
	assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
	*state = server;
	return 0;
}

static int stop_server(void **state)
{
	struct server *server = *state;

	loop_post(server->loop, quit, server->loop);
	pthread_join(server->thread, NULL);
	control_free(server->control);
	loop_free(server->loop);
	close_fd(&server->peer);
	free(server);
	return 0;
}

static int connect_client(const struct server *server)
{
	int fd = new_socket(0);

	assert_int_equal(connect(fd, (const void *)&server->address, server->address_len), 0);
	return fd;
}

/* The next packet as JSON, or NULL at the end of the connection. */
static json_t *receive(int fd)
{
	static char packet[2 * CONTROL_PACKET_MAX];
	struct pollfd waiting = {.fd = fd, .events = POLLIN};

	assert_int_equal(poll(&waiting, 1, WAIT_MS), 1);
	ssize_t len = recv(fd, packet, sizeof(packet), 0);
	if (len <= 0)
		return NULL;
	assert_true((size_t)len <= CONTROL_PACKET_MAX);
	json_t *json = json_loadb(packet, (size_t)len, 0, NULL);
	assert_non_null(json);
	return json;
}

static void send_bytes(int fd, const void *bytes, size_t len)
{
	assert_int_equal(send(fd, bytes, len, MSG_NOSIGNAL), len);
}

static void tell(int fd, const char *text)
{
	send_bytes(fd, text, strlen(text));
}

static json_t *ask_bytes(int fd, const void *bytes, size_t len)
{
	send_bytes(fd, bytes, len);
	json_t *answer = receive(fd);
	assert_non_null(answer);
	assert_string_equal(json_string_value(json_object_get(answer, "jsonrpc")), "2.0");
	return answer;
}

static json_t *ask(int fd, const char *text)
{
	return ask_bytes(fd, text, strlen(text));
}

/* The server is there and has done what was asked before. */
static void check_serves(int fd)
{
	json_t *answer = ask(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":4711}");

	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 4711);
	assert_non_null(json_object_get(answer, "result"));
	json_decref(answer);
}

/* Checks that @answer, which it consumes, is an error with @code whose message contains @words. */
static void check_error(json_t *answer, int code, const char *words)
{
	const json_t *error = json_object_get(answer, "error");
	const json_t *message = json_object_get(error, "message");
	const char *text = json_is_string(message) ? json_string_value(message) : "";

	assert_non_null(error);
	assert_null(json_object_get(answer, "result"));
	assert_non_null(json_object_get(answer, "id"));
	assert_int_equal(json_integer_value(json_object_get(error, "code")), code);
	if (!strstr(text, words))
		fail_msg("'%s' is not in '%s'", words, text);
	json_decref(answer);
}

static void check_same(json_t *got, const char *want_text)
{
	json_t *want = json_loads(want_text, 0, NULL);

	assert_non_null(want);
	if (!json_equal(got, want))
		fail_msg("%s is not %s", json_dumps(got, 0), want_text);
	json_decref(want);
	json_decref(got);
}

static unsigned open_descriptors(void)
{
	cleanup_dir DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	while (dir && readdir(dir))
		count++;
	return count;
}

/* --- tests --- */

static void answers_calls(void **state)
{
	struct server *server = *state;
	cleanup_fd int client = connect_client(server);
	const int clients[] = {server->peer, client};

	for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
		int fd = clients[i];
		check_same(
			ask(fd,
			    "{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":{\"a\":[1,{\"b\":null}]},\"id\":1}"),
			"{\"jsonrpc\":\"2.0\",\"result\":{\"a\":[1,{\"b\":null}]},\"id\":1}");
		check_same(ask(fd, "{\"method\":\"nothing\",\"id\":\"x\",\"jsonrpc\":\"2.0\"}"),
			   "{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":\"x\"}");
		check_same(ask(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":null}"),
			   "{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":null}");
		check_same(ask(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"params\":{\"a\":2,\"b\":3},\"id\":2}"),
			   "{\"jsonrpc\":\"2.0\",\"result\":{\"sum\":5},\"id\":2}");
		check_same(ask(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"params\":{\"a\":2},\"id\":2}"),
			   "{\"jsonrpc\":\"2.0\",\"result\":{\"sum\":3},\"id\":2}");
	}
}

/* @head and @tail with as many of @byte between them as @size takes. */
static void fill(char *packet, size_t size, const char *head, char byte, const char *tail)
{
	for (size_t i = 0, left = size; i < size; i++, left--)
		packet[i] = *head ? *head++ : left > strlen(tail) ? byte : *tail++;
}

static void tells_failures(void **state)
{
	struct server *server = *state;
	char call[8192];

	check_same(ask(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"fail\",\"id\":7}"),
		   "{\"jsonrpc\":\"2.0\",\"id\":7,\"error\":{\"code\":-32000,"
		   "\"message\":\"fail: write the \xc3\xa4 file: No space left on device\","
		   "\"data\":{\"errno\":\"ENOSPC\",\"hint\":\"make room\"}}}");
	check_error(ask(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"long-result\",\"id\":7}"), CONTROL_FAILED,
		    "too long for a packet");
	check_error(ask(server->peer,
			"{\"jsonrpc\":\"2.0\",\"method\":\"long-error\",\"params\":{\"text\":\"b\"},\"id\":7}"),
		    CONTROL_FAILED, "not UTF-8");
	fill(call, sizeof(call), "{\"jsonrpc\":\"2.0\",\"method\":\"long-error\",\"id\":7,\"params\":{\"text\":\"", 'a',
	     "\"}}");
	check_error(ask_bytes(server->peer, call, sizeof(call)), CONTROL_FAILED, "long-error: aaaa");
	check_serves(server->peer);
}

static void checks_params(void **state)
{
	static const struct {
		const char *params, *words;
	} bad[] = {
		{"{\"a\":1,\"c\":2}", "c"},     {"{}", "a"},
		{"{\"a\":\"1\"}", "integer"},   {"{\"a\":1,\"b\":null}", "integer"},
		{"{\"a\":1.5}", "integer"},     {"[1]", "must be an object"},
		{"null", "must be an object"},  {"1", "must be an object"},
		{"\"a\"", "must be an object"},
	};
	struct server *server = *state;
	char call[256];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		snprintf(call, sizeof(call), "{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"params\":%s,\"id\":1}",
			 bad[i].params);
		check_error(ask(server->peer, call), CONTROL_BAD_PARAMS, bad[i].words);
	}
	check_error(ask(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"id\":1}"), CONTROL_BAD_PARAMS, "a");
}

static void refuses_what_is_not_a_call(void **state)
{
	static const struct {
		const char *text;
		int code;
		const char *words;
	} bad[] = {
		{"x", CONTROL_PARSE, "not JSON"},
		{"{", CONTROL_PARSE, "not JSON"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1} {}", CONTROL_PARSE, "not JSON"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"method\":\"fail\",\"id\":1}", CONTROL_PARSE,
		 "duplicate"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":{\"a\":1,\"a\":2},\"id\":1}", CONTROL_PARSE,
		 "duplicate"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\",\"id\":1}", CONTROL_PARSE, "not JSON"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"no\\u0000thing\",\"id\":1}", CONTROL_PARSE, "not JSON"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":99999999999999999999}", CONTROL_PARSE, "not JSON"},
		{"[]", CONTROL_INVALID, "batch"},
		{"[{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1}]", CONTROL_INVALID, "batch"},
		{"{}", CONTROL_INVALID, "jsonrpc"},
		{"{\"method\":\"nothing\",\"id\":1}", CONTROL_INVALID, "jsonrpc"},
		{"{\"jsonrpc\":\"1.0\",\"method\":\"nothing\",\"id\":1}", CONTROL_INVALID, "jsonrpc"},
		{"{\"jsonrpc\":2.0,\"method\":\"nothing\",\"id\":1}", CONTROL_INVALID, "jsonrpc"},
		{"{\"jsonrpc\":\"2.0\",\"id\":1}", CONTROL_INVALID, "method"},
		{"{\"jsonrpc\":\"2.0\",\"method\":5,\"id\":1}", CONTROL_INVALID, "method"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1.5}", CONTROL_INVALID, "id"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":[1]}", CONTROL_INVALID, "id"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":true}", CONTROL_INVALID, "id"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1,\"more\":1}", CONTROL_INVALID, "members"},
		{"{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":1}", CONTROL_INVALID, "members"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"\",\"id\":1}", CONTROL_NO_METHOD, "no such method"},
		{"{\"jsonrpc\":\"2.0\",\"method\":\"Echo\",\"id\":1}", CONTROL_NO_METHOD, "no such method"},
	};
	struct server *server = *state;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		check_error(ask(server->peer, bad[i].text), bad[i].code, bad[i].words);
	assert_int_equal(server->calls, 0);
	check_serves(server->peer);
}

static void bounds_packets(void **state)
{
	static char big[CONTROL_PACKET_MAX + 1];
	struct server *server = *state;
	const char *call = "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1}";

	/* One byte more than fits; then exactly what fits, which is a good call with blanks behind it. */
	fill(big, sizeof(big), call, ' ', "");
	check_error(ask_bytes(server->peer, big, sizeof(big)), CONTROL_INVALID, "too long");
	check_same(ask_bytes(server->peer, big, CONTROL_PACKET_MAX), "{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":1}");

	/* An id that could fill the answer. */
	fill(big, CONTROL_PACKET_MAX, "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":\"", 'i', "\"}");
	check_error(ask_bytes(server->peer, big, CONTROL_PACKET_MAX), CONTROL_INVALID, "id is too long");

	/* Nested a thousandfold, and brackets that are no nesting. */
	memset(big, '[', CONTROL_PACKET_MAX);
	check_error(ask_bytes(server->peer, big, CONTROL_PACKET_MAX), CONTROL_PARSE, "too deeply");
	check_same(ask(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":1,"
				     "\"params\":{\"a\":\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[{{{{{{{{{{{\"}}"),
		   "{\"jsonrpc\":\"2.0\",\"result\":{\"a\":\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[{{{{{{{{{{{\"},\"id\":1}");
}

static void notifications_have_no_answer(void **state)
{
	struct server *server = *state;

	for (int i = 0; i < 3; i++)
		tell(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\"}");
	tell(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"fail\"}");
	tell(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"absent\"}");
	tell(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"params\":[]}");
	check_serves(server->peer); /* the first packet that comes back is its answer */
	assert_int_equal(server->calls, 4);
}

/* Sends @text with @count copies of a descriptor to a file that says "inside". */
static void send_descriptors(int client, const char *text, unsigned count)
{
	enum : size_t { MOST = 253 }; /* SCM_MAX_FD */
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * MOST)] = {};
	struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = ancillary,
			     .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	cleanup_fd int file = memfd_create("inside", MFD_CLOEXEC);

	assert_int_equal(pwrite(file, "inside", 6, 0), 6);
	*c = (struct cmsghdr){
		.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int) * count)};
	for (unsigned i = 0; i < count; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &file, sizeof(int));
	assert_true(sendmsg(client, &msg, MSG_NOSIGNAL) >= 0);
}

static void descriptors_come_along(void **state)
{
	static const char take[] = "{\"jsonrpc\":\"2.0\",\"method\":\"take\",\"id\":1}";
	struct server *server = *state;

	check_serves(server->peer);
	unsigned before = open_descriptors();
	for (unsigned count = 1; count <= CONTROL_FDS_MAX; count++) {
		send_descriptors(server->peer, take, count);
		json_t *answer = receive(server->peer);
		const json_t *result = json_object_get(answer, "result");
		assert_string_equal(json_string_value(json_object_get(result, "text")), "inside");
		assert_int_equal(json_integer_value(json_object_get(result, "count")), count);
		assert_true(json_is_true(json_object_get(result, "cloexec")));
		json_decref(answer);
	}
	check_serves(server->peer);
	assert_int_equal(open_descriptors(), before);
}

static void unwanted_descriptors_are_closed(void **state)
{
	static const char *const calls[] = {
		"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1}",
		"{\"jsonrpc\":\"2.0\",\"method\":\"fail\",\"id\":1}",
		"{\"jsonrpc\":\"2.0\",\"method\":\"absent\",\"id\":1}",
		"rubbish",
	};
	struct server *server = *state;

	check_serves(server->peer);
	unsigned before = open_descriptors();
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		send_descriptors(server->peer, calls[i], 3);
		json_decref(receive(server->peer));
	}
	/* More than fit: refused, whatever was asked, and none stays open. */
	static const unsigned too_many[] = {CONTROL_FDS_MAX + 1, CONTROL_FDS_MAX + 2, 253};
	for (size_t i = 0; i < ARRAY_SIZE(too_many); i++) {
		send_descriptors(server->peer, calls[0], too_many[i]);
		check_error(receive(server->peer), CONTROL_INVALID, "too many descriptors");
	}
	check_serves(server->peer);
	assert_int_equal(open_descriptors(), before);

	/* A packet of nothing but descriptors is the end of the connection. */
	cleanup_fd int client = connect_client(server);
	check_serves(client);
	send_descriptors(client, "", 2);
	assert_null(receive(client));
	check_serves(server->peer);
	close_fd(&client);
	assert_int_equal(open_descriptors(), before);
}

static void every_client_hears_events(void **state)
{
	struct server *server = *state;
	cleanup_fd int client = connect_client(server);

	check_serves(client);
	tell(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"announce\",\"params\":{\"times\":2}}");
	for (int i = 0; i < 2; i++) {
		const int clients[] = {server->peer, client};
		for (size_t c = 0; c < ARRAY_SIZE(clients); c++) {
			json_t *event = receive(clients[c]);
			assert_string_equal(json_string_value(json_object_get(event, "method")), "event");
			assert_int_equal(
				json_integer_value(json_object_get(json_object_get(event, "params"), "number")), i);
			assert_null(json_object_get(event, "id"));
			json_decref(event);
		}
	}
}

/* It loses its connection when its socket is full; the others and the server go on. */
static void client_that_never_reads(void **state)
{
	struct server *server = *state;
	cleanup_fd int deaf = connect_client(server);
	int sent = 0;
	static const char call[] = "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1}";

	check_serves(deaf);
	while (sent < 100000 && send(deaf, call, strlen(call), MSG_NOSIGNAL) > 0)
		sent++;
	assert_true(sent < 100000);
	assert_true(errno == EPIPE || errno == ECONNRESET);
	check_serves(server->peer);

	/* The same by events alone, caused by itself: it is gone before its answer is sent. */
	cleanup_fd int loud = connect_client(server);
	check_serves(loud);
	close_fd(&server->peer); /* it would be lost as well */
	tell(loud, "{\"jsonrpc\":\"2.0\",\"method\":\"announce\",\"params\":{\"times\":5000},\"id\":1}");
	/* This one is accepted when all that is over. */
	cleanup_fd int client = connect_client(server);
	check_serves(client);
	json_t *event;
	int heard = 0;
	while ((event = receive(loud))) {
		heard++;
		json_decref(event);
	}
	assert_true(heard < 5000);
}

static void too_many_clients(void **state)
{
	struct server *server = *state;
	int clients[CONTROL_CLIENTS_MAX - 1];

	check_serves(server->peer);
	for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
		clients[i] = connect_client(server);
		check_serves(clients[i]);
	}
	for (int again = 0; again < 20; again++) {
		cleanup_fd int refused = connect_client(server);
		check_error(receive(refused), CONTROL_FAILED, "too many clients");
		assert_null(receive(refused));
	}
	/* One goes, one comes. */
	close_fd(&clients[0]);
	check_serves(server->peer);
	clients[0] = connect_client(server);
	check_serves(clients[0]);
	for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
		close_fd(&clients[i]);
}

static void clients_that_leave_early(void **state)
{
	struct server *server = *state;

	check_serves(server->peer);
	unsigned before = open_descriptors();
	for (int i = 0; i < 200; i++) {
		cleanup_fd int client = connect_client(server);
		if (i % 3 > 0)
			tell(client, "{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":1}");
		if (i % 3 > 1)
			shutdown(client, SHUT_RD);
	}
	for (int tries = 0; tries < 100 && open_descriptors() != before; tries++)
		check_serves(server->peer);
	assert_int_equal(open_descriptors(), before);
}

#define LATER   "{\"jsonrpc\":\"2.0\",\"method\":\"later\",\"id\":%d}"
#define RELEASE "{\"jsonrpc\":\"2.0\",\"method\":\"release\"}"
#define FAIL    "{\"jsonrpc\":\"2.0\",\"method\":\"release\",\"params\":{\"fail\":true}}"

static void call_later(int fd, int id)
{
	char text[128];

	snprintf(text, sizeof(text), LATER, id);
	tell(fd, text);
}

/* Others are answered meanwhile, also the same client's; each answer goes to who asked. */
static void answers_later(void **state)
{
	struct server *server = *state;
	cleanup_fd int client = connect_client(server);

	call_later(client, 1);
	call_later(client, 2);
	check_serves(client);
	call_later(server->peer, 3);
	check_serves(server->peer);
	tell(client, RELEASE);
	check_same(receive(server->peer), "{\"jsonrpc\":\"2.0\",\"result\":{\"left\":2},\"id\":3}");
	tell(server->peer, FAIL);
	json_t *answer = receive(client);
	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 2);
	check_error(answer, CONTROL_FAILED, "later: too late");
	tell(server->peer, RELEASE);
	check_same(receive(client), "{\"jsonrpc\":\"2.0\",\"result\":{\"left\":0},\"id\":1}");
	check_same(ask(client, "{\"jsonrpc\":\"2.0\",\"method\":\"at-once\",\"id\":4}"),
		   "{\"jsonrpc\":\"2.0\",\"result\":{\"now\":true},\"id\":4}");
	/* A notification's answer is nobody's. */
	tell(client, "{\"jsonrpc\":\"2.0\",\"method\":\"later\"}");
	tell(client, RELEASE);
	check_serves(client);
}

/* Who asked has gone: his answer goes to nobody, and not to who has his place. */
static void answers_nobody(void **state)
{
	struct server *server = *state;

	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		cleanup_fd int client = connect_client(server);
		call_later(client, (int)i);
		check_serves(client);
	}
	check_serves(server->peer);
	cleanup_fd int heir = connect_client(server);
	check_serves(heir);
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		tell(server->peer, i % 2 ? RELEASE : FAIL);
	check_serves(server->peer);
	check_serves(heir);
}

static void bounds_what_is_put_off(void **state)
{
	struct server *server = *state;

	for (int i = 0; i < CONTROL_LATER_MAX; i++)
		call_later(server->peer, i);
	check_serves(server->peer);
	check_error(ask(server->peer, "{\"jsonrpc\":\"2.0\",\"method\":\"later\",\"id\":99}"), CONTROL_FAILED,
		    "wait for their answers");
	check_serves(server->peer);
	for (int i = CONTROL_LATER_MAX; i-- > 0;) {
		tell(server->peer, RELEASE);
		json_t *answer = receive(server->peer);
		assert_int_equal(json_integer_value(json_object_get(answer, "id")), i);
		json_decref(answer);
	}
}

/* Out of descriptors, accepting rests and comes back by itself. */
static void out_of_descriptors(void **state)
{
	struct server *server = *state;
	struct rlimit before, tight;

	check_serves(server->peer);
	cleanup_fd int client = new_socket(0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	tight = (struct rlimit){(rlim_t)client + 1, before.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
	assert_int_equal(connect(client, (const void *)&server->address, server->address_len), 0);
	check_serves(server->peer);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	check_serves(client);
}

static void refuses_other_sockets(void **state)
{
	struct loop *loop;
	struct control *control;
	int pair[2];

	assert_null(loop_new(&loop));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	unsigned before = open_descriptors();
	const struct {
		int listen_fd, peer_fd;
	} bad[] = {{dup(pair[0]), -1},
		   {-1, dup(pair[0])},
		   {socket(AF_UNIX, SOCK_SEQPACKET, 0), -1},
		   {open("/dev/null", O_RDWR), -1},
		   {-1, memfd_create("x", 0)},
		   {-1, socket(AF_INET, SOCK_STREAM, 0)}};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct error *err = control_new(&control, loop, bad[i].listen_fd, bad[i].peer_fd, methods, NULL);
		assert_non_null(err);
		assert_non_null(strstr(error_text(err), "control: descriptor"));
		error_free(err);
	}
	assert_int_equal(open_descriptors(), before);
	loop_free(loop);
	close(pair[0]);
	close(pair[1]);
}

int main(void)
{
#define WITH_SERVER(name) cmocka_unit_test_setup_teardown(name, start_server, stop_server)
	const struct CMUnitTest tests[] = {
		WITH_SERVER(answers_calls),
		WITH_SERVER(tells_failures),
		WITH_SERVER(checks_params),
		WITH_SERVER(refuses_what_is_not_a_call),
		WITH_SERVER(bounds_packets),
		WITH_SERVER(notifications_have_no_answer),
		WITH_SERVER(descriptors_come_along),
		WITH_SERVER(unwanted_descriptors_are_closed),
		WITH_SERVER(every_client_hears_events),
		WITH_SERVER(client_that_never_reads),
		WITH_SERVER(too_many_clients),
		WITH_SERVER(clients_that_leave_early),
		WITH_SERVER(answers_later),
		WITH_SERVER(answers_nobody),
		WITH_SERVER(bounds_what_is_put_off),
		WITH_SERVER(out_of_descriptors),
		cmocka_unit_test(refuses_other_sockets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
