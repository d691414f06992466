/*
 * Tests of the guest agent's client against a guest agent that is played here, line by line: decent, silent, hostile.
 */
#include "vmm/agent/agent.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/agent/reply.h"
#include "vmm/control/control.h"

#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

#define ANSWER_SYNC 1
#define ANSWER_REST 2

struct fixture {
	struct loop *loop;
	struct agent *agent;
	int guest; /* the guest's end */
	bool unreachable;
	unsigned deaf; /* what the guest does not answer */
	unsigned done, thawed;
	const char *before; /* what the guest says before it answers a sync */
	const char *answer; /* to what is not known below */
	char said[4096];    /* all commands but the sync */
	char line[4096];
	size_t len;
	unsigned syncs;
	char owed[4096]; /* what the guest could not say yet */
	size_t owed_len;
	struct loop_source *retry, *quit;
	struct error *err; /* of the last talk */
	json_t *result;
	struct loop_source *pause; /* in the middle of the next talk */
};

static struct fixture f;

static bool reachable(void *)
{
	return !f.unreachable;
}

static void thawed(void *)
{
	f.thawed++;
	loop_quit(f.loop);
}

static void done(void *arg, struct error *err, json_t *result)
{
	unsigned *count = arg;

	(*count)++;
	error_free(f.err);
	json_decref(f.result);
	f.err = err;
	f.result = result;
	loop_quit(f.loop);
}

/* Says what it owes, as far as there is room. */
static void speak(void *)
{
	ssize_t n = write(f.guest, f.owed, f.owed_len);

	if (n > 0) {
		f.owed_len -= (size_t)n;
		memmove(f.owed, f.owed + n, f.owed_len);
	}
	if (f.owed_len)
		loop_timer_set(f.retry, 1000000);
}

static void say(const char *text, size_t len)
{
	assert(len <= sizeof(f.owed) - f.owed_len);
	memcpy(f.owed + f.owed_len, text, len);
	f.owed_len += len;
	speak(NULL);
}

static const char *answer_to(const char *command)
{
	if (strstr(command, "osinfo"))
		return "{\"return\": {\"id\": \"debian\", \"pretty-name\": \"Debian\", \"evil\": [1]}}\n";
	if (strstr(command, "host-name"))
		return "{\"return\": {\"host-name\": \"guest\"}}\n";
	if (strstr(command, "interfaces"))
		return "{\"return\": [{\"name\": \"eth0\", \"hardware-address\": \"02:00:00:00:00:01\", "
		       "\"ip-addresses\": [{\"ip-address\": \"192.0.2.1\", \"prefix\": 24}, "
		       "{\"ip-address\": \"no\"}, {\"ip-address\": \"2001:db8::1\", \"prefix\": 1000}]}]}\n";
	return f.answer;
}

static void guest_hears(const char *line)
{
	const char *sync = strstr(line, "\"id\":");
	char answer[64];
	unsigned id;

	if (sync && sscanf(sync, "\"id\":%u", &id) == 1) {
		assert((unsigned char)line[0] == 0xff);
		f.syncs++;
		if (f.before)
			say(f.before, strlen(f.before));
		if (!(f.deaf & ANSWER_SYNC))
			say(answer, (size_t)snprintf(answer, sizeof(answer), "\xff{\"return\": %u}\n", id));
		return;
	}
	assert(strlen(f.said) + strlen(line) + 2 < sizeof(f.said));
	strcat(strcat(f.said, line), "\n");
	if (!(f.deaf & ANSWER_REST))
		say(answer_to(line), strlen(answer_to(line)));
}

static void guest_reads(void *, int fd, uint32_t)
{
	ssize_t n = recv(fd, f.line + f.len, sizeof(f.line) - f.len - 1, MSG_DONTWAIT);
	char *end;

	f.len += n > 0 ? (size_t)n : 0;
	f.line[f.len] = '\0';
	while ((end = strchr(f.line, '\n'))) {
		*end = '\0';
		guest_hears(f.line);
		f.len -= (size_t)(end + 1 - f.line);
		memmove(f.line, end + 1, f.len + 1);
	}
}

static void quit(void *)
{
	loop_quit(f.loop);
}

/* An agent's client on the loop, and the guest that it talks to. */
static void begin(void)
{
	int pair[2];

	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
	f.guest = pair[1];
	const struct agent_config config = {.loop = f.loop,
					    .fd = pair[0],
					    .set_time = true,
					    .patience_s = 1,
					    .reachable = reachable,
					    .thawed = thawed};
	assert(!agent_new(&f.agent, &config));
	assert(!loop_add_fd(f.loop, f.guest, EPOLLIN, guest_reads, NULL, NULL));
}

static void pause_machine(void *)
{
	agent_unit.pause(f.agent);
}

static int setup(void **)
{
	memset(&f, 0, sizeof(f));
	f.answer = "{\"return\": {}}\n";
	log_init("agent_test", LOG_LEVEL_ERROR);
	assert(!loop_new(&f.loop));
	assert(!loop_add_timer(f.loop, pause_machine, NULL, &f.pause));
	assert(!loop_add_timer(f.loop, speak, NULL, &f.retry));
	assert(!loop_add_timer(f.loop, quit, NULL, &f.quit));
	begin();
	return 0;
}

static int teardown(void **)
{
	agent_free(f.agent);
	loop_free(f.loop);
	close(f.guest);
	error_free(f.err);
	json_decref(f.result);
	return 0;
}

/* Runs the loop for a moment. Not by a post: that could be served before all else, for ever. */
static void turn_loop(void)
{
	loop_timer_set(f.quit, 1000000);
	assert_null(loop_run(f.loop));
}

static void run_until(const unsigned *count, unsigned value)
{
	while (*count < value)
		assert_null(loop_run(f.loop));
	assert_int_equal(*count, value);
}

static void talk(enum agent_task task, unsigned seconds)
{
	f.done = 0;
	agent_talk(f.agent, task, seconds, done, &f.done);
	run_until(&f.done, 1);
}

static void check_failed(int errnum, const char *words)
{
	assert_non_null(f.err);
	if (!strstr(error_text(f.err), words))
		fail_msg("'%s' is not in '%s'", words, error_text(f.err));
	assert_int_equal(error_errno(f.err), errnum);
	assert_null(f.result);
}

static void test_ping(void **)
{
	/* What an older talk left behind is no answer. */
	f.before = "{\"return\": {}}\n\xff{\"return\": 1}\n\xff{\"ret\xff\n\xff{nonsense}\n\xff{\"error\": {}}\n";
	talk(AGENT_PING, 0);
	assert_null(f.err);
	assert_string_equal(f.said, "{\"execute\":\"guest-ping\"}\n");
	say("{\"return\": {}}\n", 15); /* nor is what it says when nobody asked */
	f.answer = "{\"error\": {\"desc\": \"no\"}}\n";
	talk(AGENT_PING, 0);
	check_failed(0, "says: no");
}

static void test_info(void **)
{
	talk(AGENT_INFO, 0);
	assert_null(f.err);
	cleanup_free char *text = json_dumps(f.result, JSON_COMPACT | JSON_SORT_KEYS);
	assert_string_equal(text, "{\"host-name\":\"guest\",\"interfaces\":[{\"addresses\":[{\"address\":\"192.0.2.1\","
				  "\"prefix\":24},{\"address\":\"2001:db8::1\"}],\"mac\":\"02:00:00:00:00:01\","
				  "\"name\":\"eth0\"}],\"os\":{\"id\":\"debian\",\"name\":\"Debian\"}}");
}

static void test_set_time(void **)
{
	unsigned long long set;

	talk(AGENT_SET_TIME, 0);
	assert_null(f.err);
	assert_int_equal(sscanf(f.said, "{\"execute\":\"guest-set-time\",\"arguments\":{\"time\":%llu}}", &set), 1);
	assert_true(set / 1000000000 >= (unsigned long long)time(NULL) - 30 &&
		    set / 1000000000 <= (unsigned long long)time(NULL));
}

static void test_errors(void **)
{
	f.answer = "{\"error\": {\"class\": \"X\", \"desc\": \"no such\\tcommand\xc3\xa4\"}}\n";
	talk(AGENT_SET_TIME, 0);
	check_failed(0, "says: no such?command??");
	f.answer = "[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]\n";
	talk(AGENT_PING, 0);
	check_failed(0, "too deeply");
	f.answer = "{}\n";
	talk(AGENT_PING, 0);
	check_failed(0, "neither");
	f.unreachable = true;
	f.syncs = 0;
	talk(AGENT_PING, 0);
	check_failed(ENOTCONN, "no agent");
	assert_int_equal(f.syncs, 0);
}

/* An agent that does not answer at all, and one that answers syncs only. Those that wait are over with the first. */
static void test_silence(void **)
{
	unsigned count = 0;

	f.deaf = ANSWER_SYNC;
	agent_talk(f.agent, AGENT_PING, 0, done, &count);
	agent_talk(f.agent, AGENT_FREEZE, 0, done, &count);
	agent_talk(f.agent, AGENT_INFO, 0, done, &count);
	run_until(&count, 3);
	check_failed(ETIMEDOUT, "does not answer");
	assert_int_equal(f.syncs, 1);
	assert_string_equal(f.said, ""); /* no freeze that could come true later */
	f.deaf = ANSWER_REST;
	count = 0;
	agent_talk(f.agent, AGENT_PING, 0, done, &count);
	agent_talk(f.agent, AGENT_PING, 0, done, &count);
	run_until(&count, 1);
	check_failed(ETIMEDOUT, "does not answer");
	f.deaf = 0;
	run_until(&count, 2);
	assert_null(f.err);
}

static void test_queue(void **)
{
	unsigned count = 0, refused = 0;

	for (unsigned i = 0; i < AGENT_TALKS_MAX; i++)
		agent_talk(f.agent, AGENT_PING, 0, done, &count);
	agent_talk(f.agent, AGENT_PING, 0, done, &refused);
	assert_int_equal(refused, 1);
	check_failed(EBUSY, "wait already");
	run_until(&count, AGENT_TALKS_MAX);
	assert_null(f.err);
	assert_int_equal(f.syncs, AGENT_TALKS_MAX);
	/* An agent's client that ends ends them all. */
	count = 0;
	for (unsigned i = 0; i < 3; i++)
		agent_talk(f.agent, AGENT_PING, 0, done, &count);
	agent_free(steal_ptr(&f.agent));
	assert_int_equal(count, 3);
	check_failed(ECANCELED, "ends");
}

/* A guest that writes without end, before and after the sync; then one that does not read. */
static void test_flood(void **)
{
	static char flood[AGENT_LINE_MAX + 100];
	unsigned count = 0;

	memset(flood, 'x', sizeof(flood));
	for (unsigned turn = 0; turn < 2; turn++) {
		f.deaf = ANSWER_REST | (turn ? 0 : ANSWER_SYNC);
		size_t at = 0;
		count = 0;
		f.syncs = 0;
		f.said[0] = '\0';
		agent_talk(f.agent, AGENT_PING, 0, done, &count);
		while (turn ? f.said[0] == '\0' : f.syncs == 0)
			turn_loop();
		flood[0] = '\xff';
		while (count == 0) {
			ssize_t n = write(f.guest, flood + at % sizeof(flood), sizeof(flood) - at % sizeof(flood));
			at += n > 0 ? (size_t)n : 0;
			turn_loop();
		}
		check_failed(turn ? EMSGSIZE : ETIMEDOUT, turn ? "more than" : "does not answer");
	}
	/* When nobody asks, nobody reads: the guest is held up. */
	while (write(f.guest, flood, sizeof(flood)) > 0)
		;
	assert_int_equal(errno, EAGAIN);
	turn_loop();
	assert_true(write(f.guest, flood, 1) < 0);
	f.deaf = 0;
	talk(AGENT_PING, 0); /* and all of it is skipped */
	assert_null(f.err);
}

static void test_freeze_ends(void **)
{
	f.answer = "{\"return\": 2}\n";
	talk(AGENT_FREEZE, 1);
	assert_null(f.err);
	assert_int_equal(json_integer_value(json_object_get(f.result, "file-systems")), 2);
	assert_true(agent_frozen(f.agent));
	talk(AGENT_FREEZE, 1);
	check_failed(EALREADY, "frozen");
	run_until(&f.thawed, 1); /* its time is over */
	assert_false(agent_frozen(f.agent));
	assert_non_null(strstr(f.said, "guest-fsfreeze-thaw"));
	/* Thawed by hand, it stays thawed. */
	talk(AGENT_FREEZE, 1);
	talk(AGENT_THAW, 0);
	assert_null(f.err);
	assert_false(agent_frozen(f.agent));
	f.deaf = ANSWER_SYNC;
	talk(AGENT_PING, 0); /* takes longer than a second */
	assert_int_equal(f.thawed, 1);
}

/* The machine pauses before the freeze is answered: it may have come true, and is undone. */
static void test_freeze_paused(void **)
{
	f.deaf = ANSWER_REST;
	loop_timer_set(f.pause, 300000000);
	talk(AGENT_FREEZE, 600);
	check_failed(ECANCELED, "paused");
	assert_true(agent_frozen(f.agent));
	f.deaf = 0;
	run_until(&f.thawed, 1);
	assert_false(agent_frozen(f.agent));
}

static void move(void)
{
	cleanup_fd int fd = memfd_create("saved", MFD_CLOEXEC);
	cleanup_saved struct saved *out = NULL, *in = NULL;

	agent_unit.pause(f.agent);
	assert_null(saved_create(fd, "test", &out));
	assert_null(saved_unit(out, "agent", agent_unit.version, agent_unit.state, f.agent));
	assert_null(saved_finish(out));
	agent_free(f.agent);
	close(f.guest);
	begin();
	assert(lseek(fd, 0, SEEK_SET) == 0);
	assert_null(saved_open(fd, "test", &in));
	assert_null(saved_unit(in, "agent", agent_unit.version, agent_unit.state, f.agent));
	assert_null(saved_finish(in));
}

/* A talk at hand fails by a move. A guest saved while frozen is thawed on arrival; its clock is set when it is late. */
static void test_move(void **)
{
	unsigned count = 0;

	f.answer = "{\"return\": 2}\n";
	talk(AGENT_FREEZE, 600);
	agent_talk(f.agent, AGENT_PING, 0, done, &count);
	agent_talk(f.agent, AGENT_PING, 0, done, &count);
	move();
	assert_int_equal(count, 2);
	check_failed(ECANCELED, "paused");
	assert_true(agent_frozen(f.agent));
	assert_null(agent_unit.restored(f.agent));
	agent_unit.resume(f.agent);
	run_until(&f.thawed, 1);
	assert_null(strstr(f.said, "guest-set-time"));
	f.deaf = ANSWER_SYNC;
	talk(AGENT_PING, 0);
	assert_null(strstr(f.said, "guest-set-time")); /* no later either: it stood still for a moment only */

	f.deaf = 0;
	move();
	usleep(1100000);
	assert_null(agent_unit.restored(f.agent));
	agent_unit.resume(f.agent);
	f.deaf = ANSWER_SYNC;
	talk(AGENT_PING, 0);
	assert_null(strstr(f.said, "guest-set-time")); /* deaf, so far */
	f.deaf = 0;
	while (!strstr(f.said, "guest-set-time"))
		turn_loop();
	assert_int_equal(f.thawed, 1);
}

/* Everything at its bound fits a packet. */
static void test_bounds(void **)
{
	json_t *interfaces = json_array(), *os = json_object();
	char name[300];

	memset(name, '"', sizeof(name)); /* the most expensive that may be passed on */
	for (unsigned i = 0; i < 100; i++) {
		json_t *addresses = json_array();
		for (unsigned k = 0; k < 100; k++)
			json_array_append_new(addresses,
					      json_pack("{s:s, s:i}", "ip-address",
							"2001:db8:1111:2222:3333:4444:255.255.255.255", "prefix", 128));
		json_array_append_new(interfaces, json_pack("{s:s#, s:s#, s:o}", "name", name, 64, "hardware-address",
							    name, 17, "ip-addresses", addresses));
	}
	static const char *const keys[] = {"id", "pretty-name", "version-id", "kernel-release"};
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		json_object_set_new(os, keys[i], json_stringn(name, 200));
	json_t *host = json_pack("{s:s#}", "host-name", name, 253);
	json_t *all = json_pack("{s:o, s:o, s:o}", "os", reply_os(os), "host-name", reply_host_name(host), "interfaces",
				reply_interfaces(interfaces));
	cleanup_free char *text = json_dumps(all, JSON_COMPACT);
	assert_true(strlen(text) > CONTROL_PACKET_MAX / 4 && strlen(text) < CONTROL_PACKET_MAX - 1024);
	json_decref(all);
	/* What may not be passed on is left out. */
	json_object_set_new(os, "id", json_stringn(name, 201));
	json_object_set_new(os, "pretty-name", json_string("\x1b[2J"));
	json_object_set_new(os, "version-id", json_integer(1));
	json_object_del(os, "kernel-release");
	all = reply_os(os);
	assert_int_equal(json_object_size(all), 0);
	json_decref(all);
	json_decref(os);
	json_decref(host);
	json_decref(interfaces);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_ping),          TEST(test_info),  TEST(test_set_time), TEST(test_errors),
		TEST(test_silence),       TEST(test_queue), TEST(test_flood),    TEST(test_freeze_ends),
		TEST(test_freeze_paused), TEST(test_move),  TEST(test_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
