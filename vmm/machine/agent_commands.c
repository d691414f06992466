/*
 * What the control socket offers of the guest's agent (vmm/agent/agent.h). Answers come when the agent's have:
 * meanwhile the client may make other calls, or go. Runs on the main thread.
 */
#include "vmm/machine/machine.h"

#include <errno.h>

bool machine_agent_reachable(void *arg)
{
	const struct machine *m = arg;

	return m->state == MACHINE_RUNNING && console_guest_open(m->console, AGENT_PORT);
}

void machine_agent_thawed(void *arg)
{
	struct machine *m = arg;

	log_info("%s: the guest is thawed, for its time was over", m->config->name);
	if (m->control)
		control_notify(m->control, "agent-thawed", json_object());
}

json_t *machine_agent_status(const struct machine *m)
{
	return json_pack("{s:b, s:b}", "open", console_guest_open(m->console, AGENT_PORT), "frozen",
			 agent_frozen(m->agent));
}

static void answer(void *arg, struct error *err, json_t *result)
{
	control_answer(arg, err, result);
}

static struct error *talk(struct machine *m, struct control_call *call, enum agent_task task, unsigned seconds)
{
	struct control_later *later;

	if (!m->agent)
		return error_hint(error_new(ENODEV, "%s has no port for an agent", m->config->name),
				  "start it with --agent on");
	TRY(control_defer(call, &later));
	agent_talk(m->agent, task, seconds, answer, later);
	return NULL;
}

static struct error *plain_talk(struct machine *m, struct control_call *call, enum agent_task task)
{
	TRY(control_params(call, "{}"));
	return talk(m, call, task, 0);
}

struct error *machine_agent_ping(void *m, struct control_call *call, json_t **)
{
	return plain_talk(m, call, AGENT_PING);
}

struct error *machine_agent_info(void *m, struct control_call *call, json_t **)
{
	return plain_talk(m, call, AGENT_INFO);
}

struct error *machine_agent_set_time(void *m, struct control_call *call, json_t **)
{
	return plain_talk(m, call, AGENT_SET_TIME);
}

struct error *machine_agent_thaw(void *m, struct control_call *call, json_t **)
{
	return plain_talk(m, call, AGENT_THAW);
}

struct error *machine_agent_freeze(void *m, struct control_call *call, json_t **)
{
	json_int_t seconds = AGENT_FREEZE_S;

	TRY(control_params(call, "{s?I}", "seconds", &seconds));
	if (seconds < 1 || seconds > AGENT_FREEZE_MAX)
		return error_hint(error_new(EINVAL, "freeze the guest for %lld seconds", (long long)seconds),
				  "it may be for 1 to %d seconds", AGENT_FREEZE_MAX);
	return talk(m, call, AGENT_FREEZE, (unsigned)seconds);
}
