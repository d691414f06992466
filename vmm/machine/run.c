/*
 * The run state of the machine: pausing, going on, resetting, ending. All on the main thread but the machine_post_*
 * functions, which any thread calls: they set a flag and post one look at all the flags to the loop.
 *
 * Pausing stops the vCPUs first (so nothing new begins), then has each unit finish or hold what is in flight. Going on
 * is the reverse.
 */
#include "vmm/machine/machine.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const state_names[] = {
	[MACHINE_CREATED] = "created", [MACHINE_RUNNING] = "running", [MACHINE_PAUSED] = "paused",
	[MACHINE_SAVED] = "saved",     [MACHINE_STOPPED] = "stopped", [MACHINE_FAILED] = "failed",
};

const char *machine_state_name(const struct machine *machine)
{
	return state_names[machine->state];
}

void machine_set_state(struct machine *machine, enum machine_state state, const char *why)
{
	machine->state = state;
	snprintf(machine->why, sizeof(machine->why), "%s", why);
	if (machine->control)
		control_notify(machine->control, "state",
			       json_pack("{s:s, s:s}", "state", machine_state_name(machine), "why", machine->why));
}

static void stop_everything(struct machine *machine)
{
	vcpus_pause(&machine->vcpus);
	for (unsigned i = 0; i < machine->units; i++)
		if (machine->unit[i].ops->pause)
			machine->unit[i].ops->pause(machine->unit[i].self);
}

static void go_on(struct machine *machine)
{
	for (unsigned i = 0; i < machine->units; i++)
		if (machine->unit[i].ops->resume)
			machine->unit[i].ops->resume(machine->unit[i].self);
	vcpus_resume(&machine->vcpus);
}

struct error *machine_pause(struct machine *machine, const char *why)
{
	if (machine->state == MACHINE_PAUSED || machine->state == MACHINE_SAVED || machine->state == MACHINE_CREATED)
		return NULL;
	if (machine->state != MACHINE_RUNNING)
		return error_new(EBUSY, "pause %s: it is %s", machine->config->name, machine_state_name(machine));
	stop_everything(machine);
	machine_set_state(machine, MACHINE_PAUSED, why);
	return NULL;
}

struct error *machine_resume(struct machine *machine)
{
	if (machine->state == MACHINE_RUNNING)
		return NULL;
	if (machine->state == MACHINE_STOPPED || machine->state == MACHINE_FAILED)
		return error_new(EBUSY, "resume %s: it is %s", machine->config->name, machine_state_name(machine));
	if (machine->half_reset)
		return error_hint(error_new(EBUSY, "resume %s: its reset failed half-way", machine->config->name),
				  "mend what the reset complained of, and reset it again");
	/* Not only of a saved one: a save that failed may have given up disks that could not be taken again. */
	TRY(error_wrap(machine_activate(machine), "resume %s", machine->config->name));
	machine->disk_error = 0;
	go_on(machine);
	machine_set_state(machine, MACHINE_RUNNING, "");
	return NULL;
}

struct error *machine_reset(struct machine *machine)
{
	struct boot_entry entry;

	if (machine->state != MACHINE_RUNNING && machine->state != MACHINE_PAUSED)
		return error_new(EBUSY, "reset %s: it is %s", machine->config->name, machine_state_name(machine));
	if (machine->boot.kernel_fd < 0 && !machine->firmware.code)
		return error_hint(error_new(ENOTSUP, "reset %s: it was restored and has no kernel to start again",
					    machine->config->name),
				  "stop it and start it anew");
	bool was_running = machine->state == MACHINE_RUNNING;
	if (was_running)
		stop_everything(machine);
	machine->state = MACHINE_PAUSED; /* what it is, should anything below fail */
	machine->half_reset = true;
	for (unsigned i = 0; i < machine->units; i++)
		if (machine->unit[i].ops->reset)
			machine->unit[i].ops->reset(machine->unit[i].self);
	TRY(irqs_reset(&machine->irqs));
	TRY(vcpus_reset(&machine->vcpus));
	if (!machine->firmware.code) {
		TRY(error_wrap(boot_load(&machine->memory, &machine->boot, &entry), "start the kernel again"));
		TRY(vcpus_boot(&machine->vcpus, &entry));
	}
	machine->wants_reset = machine->half_reset = false;
	memset(machine->reported, 0, sizeof(machine->reported));
	if (was_running) {
		machine->why[0] = '\0';
		go_on(machine);
		machine->state = MACHINE_RUNNING;
	}
	if (machine->control)
		control_notify(machine->control, "reset", json_object());
	return NULL;
}

struct error *machine_end(struct machine *machine)
{
	if (machine->state == MACHINE_RUNNING) {
		stop_everything(machine);
		machine_set_state(machine, MACHINE_STOPPED, "told to end");
	}
	if (machine->state == MACHINE_SAVED)
		return NULL;
	return error_wrap(machine_deactivate(machine), "end %s", machine->config->name);
}

void machine_quit(struct machine *machine)
{
	loop_quit(machine->loop);
}

static void fail(struct machine *machine, const char *what)
{
	if (machine->state == MACHINE_RUNNING)
		stop_everything(machine);
	log_err("%s: the machine cannot go on: %s", machine->config->name, what);
	machine_set_state(machine, MACHINE_FAILED, what);
	machine_quit(machine);
}

static void pause_for_disk(struct machine *machine, int errnum)
{
	char why[96];

	snprintf(why, sizeof(why), "disk error: %s", strerror(errnum));
	log_warn("%s: paused: %s; it goes on when told to resume", machine->config->name, why);
	error_free(machine_pause(machine, why));
}

static void stop(struct machine *machine, const char *why)
{
	if (machine->state == MACHINE_RUNNING)
		stop_everything(machine);
	machine_set_state(machine, MACHINE_STOPPED, why);
	machine_quit(machine);
}

static void reset_or_fail(struct machine *machine)
{
	struct error *err = machine_reset(machine);

	if (err)
		fail(machine, error_text(err));
	error_free(err);
}

static const struct {
	const char *event, *why;
} troubles[MACHINE_TROUBLES] = {
	[MACHINE_PANICKED] = {"guest-panic", "the guest panicked"},
	[MACHINE_CRASHED] = {"guest-panic", "the guest panicked and runs its crash kernel"},
	[MACHINE_EXPIRED] = {"watchdog", "the watchdog expired"},
};

/* What was asked for then. A crash kernel is left at work: whatever else is done would end it. */
static enum guest_action action_for(const struct machine *machine, enum machine_trouble trouble)
{
	return trouble == MACHINE_PANICKED  ? machine->config->on_panic
	       : trouble == MACHINE_EXPIRED ? machine->config->watchdog.action
					    : GUEST_RUN;
}

/*
 * The guest is in trouble: tells the clients, and does what is to be done. A guest that is to run on is reported once
 * until it is reset, for it could fill the log and the clients' sockets.
 */
static void act(struct machine *machine, enum machine_trouble trouble)
{
	static const char *const names[] = {
		[GUEST_RUN] = "run", [GUEST_PAUSE] = "pause", [GUEST_RESET] = "reset", [GUEST_STOP] = "stop"};
	enum guest_action action = action_for(machine, trouble);
	const char *why = troubles[trouble].why;

	if (action == GUEST_RUN && machine->reported[trouble])
		return;
	machine->reported[trouble] = true;
	log_warn("%s: %s; action: %s", machine->config->name, why, names[action]);
	if (machine->control)
		control_notify(machine->control, troubles[trouble].event,
			       json_pack("{s:s, s:s}", "why", why, "action", names[action]));
	if (machine->state != MACHINE_RUNNING)
		return;
	switch (action) {
	case GUEST_RUN:
		machine_set_state(machine, MACHINE_RUNNING, why);
		break;
	case GUEST_PAUSE:
		error_free(machine_pause(machine, why));
		break;
	case GUEST_RESET:
		reset_or_fail(machine);
		break;
	case GUEST_STOP:
		stop(machine, why);
		break;
	}
}

/* Looks at everything that threads may have reported. Runs on the main thread. */
static void look(void *arg)
{
	struct machine *machine = arg;

	if (machine->has_failed) {
		fail(machine, machine->failure);
		return;
	}
	if (machine->wants_power_off) {
		stop(machine, "the guest powered off");
		return;
	}
	for (unsigned trouble = 0; trouble < MACHINE_TROUBLES; trouble++)
		if (atomic_exchange(&machine->trouble[trouble], false))
			act(machine, trouble);
	if (atomic_exchange(&machine->has_balloon_stats, false))
		machine_notify_balloon_stats(machine);
	int errnum = machine->disk_error;
	if (errnum && machine->state == MACHINE_RUNNING)
		pause_for_disk(machine, errnum);
	if (machine->wants_reset) {
		machine->wants_reset = false;
		reset_or_fail(machine);
	}
}

void machine_post_reset(void *arg)
{
	struct machine *machine = arg;

	machine->wants_reset = true;
	loop_post(machine->loop, look, machine);
}

void machine_post_power_off(void *arg)
{
	struct machine *machine = arg;

	machine->wants_power_off = true;
	loop_post(machine->loop, look, machine);
}

void machine_post_failed(void *arg, const char *what)
{
	struct machine *machine = arg;
	bool first = false;

	/* Several vCPUs may fail at once; the first one's words stay. */
	static atomic_flag said = ATOMIC_FLAG_INIT;
	first = !atomic_flag_test_and_set(&said);
	if (first) {
		snprintf(machine->failure, sizeof(machine->failure), "%s", what);
		machine->has_failed = true;
	}
	loop_post(machine->loop, look, machine);
}

void machine_post_disk_error(void *arg, int errnum)
{
	struct machine *machine = arg;

	machine->disk_error = errnum;
	loop_post(machine->loop, look, machine);
}

void machine_post_balloon_stats(void *arg)
{
	struct machine *machine = arg;

	machine->has_balloon_stats = true;
	loop_post(machine->loop, look, machine);
}

void machine_post_panicked(void *arg)
{
	struct machine *machine = arg;

	machine->trouble[MACHINE_PANICKED] = true;
	loop_post(machine->loop, look, machine);
}

void machine_post_crash_loaded(void *arg)
{
	struct machine *machine = arg;

	machine->trouble[MACHINE_CRASHED] = true;
	loop_post(machine->loop, look, machine);
}

void machine_post_watchdog(void *arg)
{
	struct machine *machine = arg;

	machine->trouble[MACHINE_EXPIRED] = true;
	loop_post(machine->loop, look, machine);
}
