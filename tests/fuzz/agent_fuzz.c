/*
 * Fuzzes the guest agent's client: the input is a program of a hostile agent and of what the machine does meanwhile.
 * Talks begin, the guest answers syncs or says any bytes, pauses, resumes, resets; the client is saved and loaded.
 * Whatever was done, each talk is over once and with exactly one of result and error, a result fits a packet of the
 * control socket, and a decent agent is understood afterwards.
 */
#include "base/log.h"
#include "base/util.h"
#include "vmm/agent/agent.h"
#include "vmm/control/control.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static struct loop *loop;
static struct loop_source *moment;
static struct agent *agent;
static int guest, saved_fd;
static unsigned asked, over;
static bool understood, unreachable;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static bool reachable(void *)
{
	return !unreachable;
}

static void begin(void)
{
	int pair[2];

	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
	guest = pair[1];
	const struct agent_config config = {
		.loop = loop, .fd = pair[0], .set_time = true, .patience_s = 60, .reachable = reachable};
	assert(!agent_new(&agent, &config));
}

static void end(void)
{
	agent_free(agent);
	close(guest);
}

static void quit(void *)
{
	loop_quit(loop);
}

int LLVMFuzzerInitialize(int *, char ***)
{
	log_init("fuzz", LOG_LEVEL_ERROR);
	assert(!loop_new(&loop) && !loop_add_timer(loop, quit, NULL, &moment));
	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	return 0;
}

static void done(void *, struct error *err, json_t *result)
{
	char *text = result ? json_dumps(result, JSON_COMPACT) : NULL;

	assert(!err == !!result);
	assert(!text || strlen(text) < CONTROL_PACKET_MAX - 1024);
	understood = !err;
	over++;
	free(text);
	error_free(err);
	json_decref(result);
}

/* Serves what is there, or most of it. */
static void serve(void)
{
	loop_timer_set(moment, 50000);
	assert(!loop_run(loop));
}

/* What the client said since; the number of its last sync, or 0. */
static uint32_t hear(void)
{
	char text[4096];
	ssize_t n = recv(guest, text, sizeof(text) - 1, MSG_DONTWAIT);
	const char *last = NULL;
	unsigned id = 0;

	text[n > 0 ? n : 0] = '\0';
	for (const char *at = text; (at = strstr(at, "\"id\":")); at++)
		last = at;
	return last && sscanf(last, "\"id\":%u", &id) == 1 ? id : 0;
}

static void say(const void *bytes, size_t len)
{
	(void)!send(guest, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	serve();
}

static void answer_sync(void)
{
	char text[64];

	say(text, (size_t)snprintf(text, sizeof(text), "\xff{\"return\": %u}\n", hear()));
}

static void talk(enum agent_task task)
{
	asked++;
	agent_talk(agent, task, 1, done, NULL);
	serve();
}

static void move(void)
{
	cleanup_saved struct saved *out = NULL, *in = NULL;

	agent_unit.pause(agent);
	assert(over == asked);
	assert(ftruncate(saved_fd, 0) == 0 && lseek(saved_fd, 0, SEEK_SET) == 0);
	assert(!saved_create(saved_fd, "fuzz", &out));
	assert(!saved_unit(out, "agent", agent_unit.version, agent_unit.state, agent));
	assert(!saved_finish(out));
	end();
	begin();
	assert(lseek(saved_fd, 0, SEEK_SET) == 0 && !saved_open(saved_fd, "fuzz", &in));
	assert(!saved_unit(in, "agent", agent_unit.version, agent_unit.state, agent));
	assert(!saved_finish(in));
	assert(!agent_unit.restored(agent));
	agent_unit.resume(agent);
}

static void step(unsigned what, const uint8_t *bytes, size_t len)
{
	switch (what) {
	case 0 ... 4:
		talk((enum agent_task)what);
		break;
	case 5:
		answer_sync();
		break;
	case 6:
		say(bytes, len);
		break;
	case 7: /* an answer, whatever it holds */
		say(bytes, len);
		say("\n", 1);
		break;
	case 8:
		agent_unit.pause(agent);
		assert(over == asked);
		agent_unit.resume(agent);
		break;
	case 9:
		agent_unit.pause(agent);
		agent_unit.reset(agent);
		agent_unit.resume(agent);
		break;
	case 10:
		move();
		break;
	case 11:
		unreachable = !unreachable;
		break;
	default:
		(void)hear();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	asked = over = 0;
	unreachable = false;
	begin();
	while (size) {
		/* One step: what, how many bytes behind it. */
		unsigned what = data[0] % 16;
		size_t len = size > 1 ? MIN(data[1] * (data[0] & 16 ? 64u : 1u), size - 2) : 0;
		step(what, data + MIN(size, (size_t)2), len);
		data += MIN(size, len + 2);
		size -= MIN(size, len + 2);
	}
	agent_unit.pause(agent);
	assert(over == asked);
	unreachable = false;
	(void)hear();
	/* Behind what was said before, and a thaw that the client may have begun by itself. */
	talk(AGENT_PING);
	for (unsigned i = 0; i < 1000 && over < asked; i++) {
		answer_sync();
		say("{\"return\": {}}\n", 15);
	}
	assert(over == asked && understood);
	end();
	return 0;
}
