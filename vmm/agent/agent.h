/*
 * The guest agent's client: speaks QEMU's guest agent protocol (JSON objects, a line each) to whoever serves the port
 * AGENT_PORT in the guest, and turns a few of its commands into calls of the control socket.
 *
 * What comes back is a hostile guest's: lines are bounded in length and nesting, and only what is known, of bounded
 * length and count, is copied out of them (reply.h). Every talk begins with a random number that must come back
 * (guest-sync-delimited), so that nothing older is taken for an answer, and every command of it has its time.
 *
 * Talks are had one after another; some wait. When the machine pauses, all of them are over with an error: what the
 * guest did of the one at hand is not known. A frozen guest is thawed after a time, whatever happens to who froze it; a
 * restored one at once, for nobody knows who that was. A restored guest's clock, which stood still, is set.
 *
 * All of it runs on the main loop.
 */
#ifndef GLINT_VMM_AGENT_AGENT_H
#define GLINT_VMM_AGENT_AGENT_H

#include "base/error.h"
#include "base/loop.h"
#include "vmm/machine/unit.h"

#include <jansson.h>
#include <stddef.h>

#define AGENT_PORT          "org.qemu.guest_agent.0"
#define AGENT_LINE_MAX      ((size_t)256 << 10) /* bytes of an answer */
#define AGENT_TALKS_MAX     8                   /* the one at hand and those that wait */
#define AGENT_PATIENCE_S    15                  /* for each command but for a freeze, which writes everything back */
#define AGENT_FREEZE_WAIT_S 60
#define AGENT_FREEZE_S      30            /* thawed after, when nothing is said */
#define AGENT_FREEZE_MAX    600           /* and at most */
#define AGENT_CLOCK_LATE_NS 1000000000ull /* less is not worth a jump of the guest's clock */

enum agent_task { AGENT_PING, AGENT_INFO, AGENT_SET_TIME, AGENT_FREEZE, AGENT_THAW };

struct agent;

/* Consumes @err and @result, of which one is NULL. */
typedef void agent_done_fn(void *arg, struct error *err, json_t *result);

struct agent_config {
	struct loop *loop;
	int fd;                       /* a stream socket that leads to the port and does not block. The agent's */
	bool set_time;                /* of a restored guest, by itself */
	unsigned patience_s;          /* AGENT_PATIENCE_S; less for tests */
	bool (*reachable)(void *arg); /* whether somebody in the guest has the port open, and the guest runs */
	void (*thawed)(void *arg);    /* the guest was thawed because its time was over. May be NULL */
	void *arg;
};

/* Consumes the descriptor, also when it fails. */
[[nodiscard]] struct error *agent_new(struct agent **out, const struct agent_config *config);
/* Talks are over with an error. NULL is allowed. */
void agent_free(struct agent *agent);

/*
 * Has a talk; @done is called once when it is over, which may be before this returns (nobody there, too many talks).
 * @seconds: of a freeze, 0 for AGENT_FREEZE_S.
 */
void agent_talk(struct agent *agent, enum agent_task task, unsigned seconds, agent_done_fn *done, void *arg);

/* Whether the guest is frozen, as far as is known here. */
bool agent_frozen(const struct agent *agent);

extern const struct unit_ops agent_unit;

#endif
