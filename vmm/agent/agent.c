/*
 * The guest agent's client; see agent.h. Touches its socket and its timers.
 *
 * A talk is a list of commands, of which the first is always guest-sync-delimited: its answer comes behind a byte 0xFF,
 * which JSON cannot hold, so whatever stands before it is skipped. Commands are sent one at a time. What was sent to an
 * agent that did not answer lies in the port until the next agent reads it: so nothing but a sync is sent before a sync
 * was answered, and no freeze of yesterday comes true tomorrow. Should one (its agent ended, or the machine was reset,
 * between the two), the guest is thawed: a freeze that went wrong is taken for one that may still come.
 *
 * The socket is read during a talk only, so a guest that floods the port keeps nobody busy and is held up itself.
 */
#include "vmm/agent/agent.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/agent/reply.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#define SECOND   1000000000ull
#define RETRY_NS (5 * SECOND) /* of what nobody waits for: a thaw that is due, a clock that is late */
#define TRIES    12

/* What is said behind the sync, in order; NULL ends. */
static const char *const commands[][4] = {
	[AGENT_PING] = {"guest-ping"},
	[AGENT_INFO] = {"guest-get-osinfo", "guest-get-host-name", "guest-network-get-interfaces"},
	[AGENT_SET_TIME] = {"guest-set-time"},
	[AGENT_FREEZE] = {"guest-fsfreeze-freeze"},
	[AGENT_THAW] = {"guest-fsfreeze-thaw"},
};

struct talk {
	enum agent_task task;
	unsigned seconds; /* of a freeze */
	agent_done_fn *done;
	void *arg;
};

struct agent {
	struct agent_config config;
	struct loop_source *socket, *patience, *thaw, *clock;
	bool frozen;          /* or may be: a freeze was sent */
	bool arrived;         /* restored, and has not run since */
	uint64_t saved_at;    /* when the machine was saved, ns of CLOCK_REALTIME */
	unsigned thaw_tries;  /* that are left for an agent that refuses */
	unsigned clock_tries; /* 0: the clock is right */

	/* The talk at hand is the first. */
	struct talk talk[AGENT_TALKS_MAX];
	unsigned talks;
	bool talking; /* something was said, and an answer is awaited */
	bool synced;
	unsigned step; /* of commands[task] */
	uint32_t id;   /* of the sync */
	json_t *result;

	char line[AGENT_LINE_MAX];
	size_t len;
	bool in_answer; /* a byte 0xFF was seen, or the sync is over */
};

static uint64_t wall_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* --- speaking --- */

static struct error *say(struct agent *a, const char *text, size_t len)
{
	ssize_t n;

	do
		n = send(a->config.fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n == (ssize_t)len)
		return NULL;
	return error_hint(error_new(EAGAIN, "the agent in the guest does not read"),
			  "restart qemu-guest-agent in the guest");
}

static struct error *say_sync(struct agent *a)
{
	char text[96];

	if (getrandom(&a->id, sizeof(a->id), 0) != sizeof(a->id))
		return error_new(errno, "choose a random number");
	int len = snprintf(text, sizeof(text), "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%u}}\n",
			   a->id);
	return say(a, text, (size_t)len);
}

/* The command that is next, and how long its answer may take. */
static struct error *say_next(struct agent *a)
{
	enum agent_task task = a->talk[0].task;
	unsigned patience = a->synced && task == AGENT_FREEZE ? AGENT_FREEZE_WAIT_S : a->config.patience_s;
	char text[128], arguments[64] = "";

	a->len = 0;
	a->in_answer = a->synced;
	loop_timer_set(a->patience, patience * SECOND);
	if (!a->synced)
		return say_sync(a);
	if (task == AGENT_SET_TIME)
		snprintf(arguments, sizeof(arguments), ",\"arguments\":{\"time\":%llu}",
			 (unsigned long long)wall_clock());
	if (task == AGENT_FREEZE) {
		a->frozen = true;
		a->thaw_tries = TRIES;
	}
	int len = snprintf(text, sizeof(text), "{\"execute\":\"%s\"%s}\n", commands[task][a->step], arguments);
	return say(a, text, (size_t)len);
}

/* --- talks --- */

static struct error *begin(struct agent *a)
{
	if (!a->config.reachable(a->config.arg))
		return error_hint(error_new(ENOTCONN, "no agent in the guest serves its port"),
				  "see that the machine runs, and qemu-guest-agent in the guest");
	if (a->frozen && a->talk[0].task == AGENT_FREEZE)
		return error_hint(error_new(EALREADY, "the guest is frozen"), "thaw it first");
	if (!a->socket)
		return error_new(EPIPE, "the agent's port is gone");
	TRY(loop_set_events(a->socket, EPOLLIN));
	a->synced = false;
	a->step = 0;
	a->result = json_object();
	a->talking = true;
	return say_next(a);
}

/* Ends the talk at hand. Consumes @err. */
static void end(struct agent *a, struct error *err)
{
	const struct talk talk = a->talk[0];
	json_t *result = steal_ptr(&a->result);

	if (talk.task == AGENT_FREEZE && a->frozen && a->synced && a->talking)
		loop_timer_set(a->thaw, err ? SECOND : talk.seconds * SECOND);
	loop_timer_set(a->patience, 0);
	a->talking = false;
	memmove(a->talk, a->talk + 1, --a->talks * sizeof(a->talk[0]));
	if (a->talks == 0 && a->socket)
		error_free(loop_set_events(a->socket, 0)); /* then it is read, and thrown away */
	if (err)
		json_decref(steal_ptr(&result));
	talk.done(talk.arg, err, result);
}

/* Begins the next one. */
static void go_on(struct agent *a)
{
	while (a->talks && !a->talking) {
		struct error *err = begin(a);
		if (err)
			end(a, err);
	}
}

/* Ends all of them, each with such an error. */
static void end_all(struct agent *a, int errnum, const char *why, const char *hint)
{
	/* Those that come meanwhile are not meant. */
	for (unsigned left = a->talks; left; left--)
		end(a, error_hint(error_new(errnum, "%s", why), "%s", hint));
}

void agent_talk(struct agent *a, enum agent_task task, unsigned seconds, agent_done_fn *done, void *arg)
{
	if (a->talks == AGENT_TALKS_MAX) {
		done(arg,
		     error_hint(error_new(EBUSY, "%d calls to the guest's agent wait already", AGENT_TALKS_MAX),
				"try again soon"),
		     NULL);
		return;
	}
	a->talk[a->talks++] = (struct talk){task, seconds ? seconds : AGENT_FREEZE_S, done, arg};
	go_on(a);
}

bool agent_frozen(const struct agent *a)
{
	return a->frozen;
}

/* --- listening --- */

static void keep(struct agent *a, const json_t *value)
{
	static const struct {
		const char *name;
		json_t *(*copy)(const json_t *);
	} info[] = {{"os", reply_os}, {"host-name", reply_host_name}, {"interfaces", reply_interfaces}};
	enum agent_task task = a->talk[0].task;

	if (task == AGENT_INFO)
		json_object_set_new(a->result, info[a->step].name, info[a->step].copy(value));
	else if (task == AGENT_FREEZE || task == AGENT_THAW)
		json_object_set_new(a->result, "file-systems", reply_count(value));
	if (task == AGENT_THAW) {
		a->frozen = false;
		loop_timer_set(a->thaw, 0);
	}
}

/* The talk goes on behind the answer @value, or is over. */
static struct error *answered(struct agent *a, const json_t *value, bool *over)
{
	if (!a->synced) {
		/* Another number answers an older sync: the one that was asked for is still to come. */
		a->in_answer = false;
		if (!json_is_integer(value) || json_integer_value(value) != a->id)
			return NULL;
		a->synced = true;
		return say_next(a);
	}
	keep(a, value);
	a->step++;
	*over = !commands[a->talk[0].task][a->step];
	return *over ? NULL : say_next(a);
}

/* A whole line of an answer. */
static void take_line(struct agent *a)
{
	size_t len = a->len;
	json_t *value = NULL;
	bool over = false;
	struct error *err = reply_parse(a->line, len, &value);

	a->len = 0;
	if (err && !a->synced) { /* not the answer to a sync: rubbish between */
		error_free(err);
		a->in_answer = false;
		return;
	}
	if (!err)
		err = answered(a, value, &over);
	json_decref(value);
	if (err || over)
		end(a, err);
}

static void take_byte(struct agent *a, unsigned char byte)
{
	if (byte == 0xff) {
		a->in_answer = true;
		a->len = 0;
	} else if (!a->in_answer) {
		return;
	} else if (byte == '\n') {
		if (a->len)
			take_line(a);
	} else if (a->len < sizeof(a->line)) {
		a->line[a->len++] = (char)byte;
	} else if (a->synced) {
		end(a, error_new(EMSGSIZE, "the agent's answer has more than %zu bytes", sizeof(a->line)));
	} else {
		a->in_answer = false;
	}
}

/* A bounded number of bytes a time, for the loop has others to serve. */
static void readable(void *arg, int fd, uint32_t)
{
	struct agent *a = arg;
	unsigned char bytes[4096];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	/* What is behind the end of a talk belongs to no other. */
	for (ssize_t i = 0; i < n && a->talking; i++)
		take_byte(a, bytes[i]);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) { /* the console device has ended */
		loop_remove(steal_ptr(&a->socket));
		end_all(a, EPIPE, "the agent's port is gone", "restart the machine");
	}
	go_on(a);
}

/* --- time --- */

/* An agent that does not even answer a sync will not answer the others. */
static void patience_ends(void *arg)
{
	static const char why[] = "the agent in the guest does not answer";
	static const char hint[] = "see that qemu-guest-agent runs in the guest";
	struct agent *a = arg;

	if (a->talking && a->synced)
		end(a, error_hint(error_new(ETIMEDOUT, "%s", why), "%s", hint));
	else
		end_all(a, ETIMEDOUT, why, hint);
	go_on(a);
}

static void thaw_done(void *arg, struct error *err, json_t *result)
{
	struct agent *a = arg;

	if (!err && a->config.thawed)
		a->config.thawed(a->config.arg);
	/* One that cannot be asked now has all the time; one that refuses has not. */
	if (err && (error_errno(err) != 0 || --a->thaw_tries)) {
		loop_timer_set(a->thaw, RETRY_NS);
	} else if (err) {
		log_warn("guest agent: thaw the guest: %s", error_text(err));
		a->frozen = false;
	}
	json_decref(result);
	error_free(err);
}

static void thaw_is_due(void *arg)
{
	struct agent *a = arg;

	if (a->frozen)
		agent_talk(a, AGENT_THAW, 0, thaw_done, a);
}

static void clock_done(void *arg, struct error *err, json_t *result)
{
	struct agent *a = arg;

	if (!err)
		log_info("guest agent: the guest's clock is set");
	else if (--a->clock_tries)
		loop_timer_set(a->clock, RETRY_NS);
	else
		log_warn("guest agent: set the guest's clock: %s", error_text(err));
	a->clock_tries = err ? a->clock_tries : 0;
	json_decref(result);
	error_free(err);
}

/* After a thaw: a frozen guest's agent does nothing else. */
static void clock_is_due(void *arg)
{
	struct agent *a = arg;

	if (a->clock_tries)
		agent_talk(a, AGENT_SET_TIME, 0, clock_done, a);
}

/* --- making it --- */

static struct error *start(struct agent *a)
{
	TRY(loop_add_timer(a->config.loop, patience_ends, a, &a->patience));
	TRY(loop_add_timer(a->config.loop, thaw_is_due, a, &a->thaw));
	TRY(loop_add_timer(a->config.loop, clock_is_due, a, &a->clock));
	TRY(loop_add_fd(a->config.loop, a->config.fd, EPOLLIN, readable, a, &a->socket));
	return loop_set_events(a->socket, 0);
}

struct error *agent_new(struct agent **out, const struct agent_config *config)
{
	struct agent *a = calloc(1, sizeof(*a));
	int fd = config->fd;

	if (!a) {
		close_fd(&fd);
		return error_new(ENOMEM, "make the guest agent's client");
	}
	a->config = *config;
	struct error *err = start(a);
	if (err) {
		agent_free(a);
		return error_wrap(err, "make the guest agent's client");
	}
	*out = a;
	return NULL;
}

void agent_free(struct agent *a)
{
	if (!a)
		return;
	if (a->talks)
		end_all(a, ECANCELED, "the machine ends", "start it again");
	loop_remove(a->socket);
	loop_remove(a->patience);
	loop_remove(a->thaw);
	loop_remove(a->clock);
	close_fd(&a->config.fd);
	free(a);
}

/* --- the unit --- */

static void state(void *self, struct saved *s)
{
	struct agent *a = self;

	if (!saved_loading(s))
		a->saved_at = wall_clock();
	saved_require(s);
	saved_bool(s, "frozen", &a->frozen);
	saved_require(s);
	saved_u64(s, "saved-at", &a->saved_at);
}

/* Kvmclock goes on where it stood, so the guest's time of day is late by what has passed. */
static struct error *restored(void *self)
{
	struct agent *a = self;
	uint64_t now = wall_clock();
	uint64_t apart = now > a->saved_at ? now - a->saved_at : a->saved_at - now;

	if (a->config.set_time && apart >= AGENT_CLOCK_LATE_NS)
		a->clock_tries = TRIES;
	a->thaw_tries = TRIES;
	a->arrived = true;
	return NULL;
}

static void pause_unit(void *self)
{
	end_all(self, ECANCELED, "the machine was paused, reset or ended before the agent in the guest answered",
		"ask again when it runs");
}

static void resume(void *self)
{
	struct agent *a = self;

	if (a->arrived && a->frozen)
		loop_timer_set(a->thaw, 1);
	if (a->clock_tries)
		loop_timer_set(a->clock, SECOND);
	a->arrived = false;
}

/* A guest that begins anew reads the clock. What was frozen is not cleared: see the head of this file. */
static void reset(void *self)
{
	struct agent *a = self;

	a->clock_tries = 0;
	loop_timer_set(a->clock, 0);
}

const struct unit_ops agent_unit = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = reset,
};
