/*
 * glint-health: says whether the host can do its job, and what becomes of the slot it was started from.
 *
 *     healthy                    the slot is blessed (its counter goes), the firmware's entries are kept; it ends
 *     not by the deadline
 *       a slot on trial          the host is restarted: systemd-boot takes one try away, or the other slot
 *       one known to be good,    the host stays up, and says what is wrong: a restart would not make it better. It is
 *       or the only one there    looked at again until it is healthy
 *
 * Healthy is who was so twice in a row: a daemon that dies at once is not taken for one that works. What was found last
 * is in a file for others (the first screen): {"version": 1, "healthy": BOOL, "why": "..."}.
 *
 * It may touch: what health.h says, and systemd, which it asks for the restart.
 */
#include "node/health/health.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "option/option.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_S    2  /* between looks */
#define RESTART_S 60 /* for the restart in order; then it is done at once */

struct health {
	struct checks checks;
	struct places places;
	const char *restart, *said;
	unsigned deadline;
	bool help, version;
};

#define AT(member) offsetof(struct health, member)

static const struct option options[] = {
	{"deadline", OPTION_NUMBER, AT(deadline), .min = 1, .max = 3600, .value = "SECONDS",
	 .help = "from the kernel's start: a slot on trial has until then (default: 100)"},
	{"keeper", OPTION_TEXT, AT(checks.keeper), .min = 1, .value = "FILE", .help = "what the keeper says of itself"},
	{"database", OPTION_TEXT, AT(checks.database), .min = 1, .value = "PATH",
	 .help = "socket of the host's database"},
	{"monitor", OPTION_TEXT, AT(checks.monitor), .min = 1, .value = "FILE", .help = "glint-vmm"},
	{"kvm", OPTION_TEXT, AT(checks.kvm), .min = 1, .value = "FILE", .help = "/dev/kvm"},
	{"cpuinfo", OPTION_TEXT, AT(checks.cpuinfo), .min = 1, .value = "FILE", .help = "/proc/cpuinfo"},
	{"partition", OPTION_TEXT, AT(places.partition), .min = 1, .value = "FILE",
	 .help = "variable with the id of the ESP that the host was started from"},
	{"image", OPTION_TEXT, AT(places.image), .min = 1, .value = "FILE",
	 .help = "variable with the name of the slot"},
	{"entries", OPTION_TEXT, AT(places.entries), .min = 1, .value = "FILE",
	 .help = "variable with what the boot loader could have started"},
	{"efivars", OPTION_TEXT, AT(places.efivars), .min = 1, .value = "PATH", .help = "the firmware's variables"},
	{"esps", OPTION_TEXT, AT(places.esps), .min = 1, .value = "PATH", .help = "ESPs, in folders of their ids"},
	{"sys", OPTION_TEXT, AT(places.sys), .min = 1, .value = "PATH", .help = "block devices by number"},
	{"restart", OPTION_TEXT, AT(restart), .min = 1, .value = "FILE", .help = "systemctl, which restarts the host"},
	{"said", OPTION_TEXT, AT(said), .min = 1, .value = "FILE", .help = "gets what was found"},
	{"version", OPTION_FLAG, AT(version), .help = "print the version"},
	{"help", OPTION_FLAG, AT(help), .aka = "h", .help = "print this"},
	{NULL},
};

static unsigned up_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (unsigned)now.tv_sec;
}

/* Not to be woken by anything: what would there be to do? */
static void wait_s(unsigned seconds)
{
	const struct timespec pause = {.tv_sec = seconds};

	nanosleep(&pause, NULL);
}

/* Blesses the slot, and keeps the firmware's entries. What cannot be done is said: the host is healthy all the same. */
static void healthy(const struct health *h, struct running *running, const struct error *no_slot)
{
	bool trial = running->slot.trial;

	if (no_slot) {
		if (error_errno(no_slot) == ENOENT)
			log_info("healthy after %u s; %s", up_s(), error_text(no_slot));
		else
			log_warn("healthy after %u s, and its slot stays on trial: %s", up_s(), error_text(no_slot));
		return;
	}
	struct error *err = running_bless(running);
	if (!err)
		err = error_wrap(running_keep_entries(&h->places, running), "the firmware's boot entries");
	/* Said last: who hears it may cut the power. */
	if (!err && trial)
		log_warn("healthy after %u s: Glint %s is good now, and not on trial any more", up_s(),
			 running->slot.version);
	else if (!err)
		log_info("healthy after %u s", up_s());
	log_error(err);
	if (running->failed[0])
		log_warn("Glint %s was tried and did not become good: %s runs again. If only the power was cut "
			 "meanwhile, update to it once more",
			 running->failed, running->slot.version);
}

/* In order; should that hang, at once. */
static void restart(const struct health *h)
{
	char *const in_order[] = {(char *)(uintptr_t)h->restart, (char[]){"reboot"}, NULL};
	char *const at_once[] = {in_order[0], in_order[1], (char[]){"--force"}, (char[]){"--force"}, NULL};
	pid_t pid;

	if (posix_spawn(&pid, h->restart, NULL, NULL, in_order, NULL) == 0)
		wait_s(RESTART_S);
	execv(h->restart, at_once);
	log_err("cannot restart the host by %s: %s", h->restart, strerror(errno));
}

/*
 * Says why, and restarts the host where that may help: also where the stick is not seen, for that may be what is wrong
 * with the slot.
 */
static void not_healthy(const struct health *h, const struct running *running, struct error *why)
{
	const struct slot *slot = &running->slot;
	bool again = slot->trial && (slot->left > 0 || running->another);

	log_err("this host is not healthy after %u s: %s", up_s(), error_text(why));
	if (again)
		log_err("Glint %s is on trial (tries left: %u): the host restarts%s", slot->version, slot->left,
			slot->left ? "" : ", into the other slot");
	else
		log_err("it stays up: %s", !slot->version[0] ? "which slot it runs is not known"
					   : !slot->trial    ? "this slot was good before"
							     : "there is no other slot");
	if (again)
		restart(h);
}

/* @why: of what is not healthy, else NULL. */
static void tell(const struct health *h, const struct error *why)
{
	json_t *json = json_pack("{s:i, s:b, s:s}", "version", 1, "healthy", !why, "why", why ? error_text(why) : "");
	cleanup_free char *text = json ? json_dumps(json, 0) : NULL;

	json_decref(json);
	log_error(text ? put_file(AT_FDCWD, h->said, text, strlen(text), 0644)
		       : error_new(ENOMEM, "write %s", h->said));
}

static void watch(const struct health *h)
{
	struct running running = {};
	unsigned good = 0;
	bool said = false;

	for (;;) {
		struct error *why = checks_run(&h->checks);
		good = why ? 0 : good + 1;
		/* The stick may come, and udev may name it, late. */
		struct error *no_slot = good == 2 || up_s() >= h->deadline ? running_find(&h->places, &running) : NULL;
		if (good == 2) {
			healthy(h, &running, no_slot);
			tell(h, NULL);
			error_free(no_slot);
			return;
		}
		if (why && up_s() >= h->deadline && !said) {
			said = true;
			tell(h, why);
			not_healthy(h, &running, why);
		}
		error_free(no_slot);
		error_free(why);
		wait_s(LOOK_S);
	}
}

int main(int argc, char **argv)
{
	struct health h = {.checks = {.keeper = "/run/glint/health.json",
				      .database = "/run/glint-database/db.sock",
				      .monitor = "/usr/bin/glint-vmm",
				      .kvm = "/dev/kvm",
				      .cpuinfo = "/proc/cpuinfo"},
			   .places = {.partition = LOADER_PARTITION,
				      .image = LOADER_STUB_IMAGE,
				      .entries = LOADER_ENTRIES,
				      .efivars = "/sys/firmware/efi/efivars",
				      .esps = ESP_FOLDER,
				      .sys = "/sys/dev/block"},
			   .restart = "/usr/bin/systemctl",
			   .said = "/run/glint-health/health.json",
			   .deadline = 100};

	log_init("glint-health", LOG_LEVEL_INFO);
	struct error *err = option_arguments(options, argc, argv, &h);
	if (!err && h.help) {
		puts("Usage: glint-health [OPTION]...\n"
		     "Says whether the host is healthy, and keeps or leaves the slot it was started from.\n");
		option_help(options, stdout);
		return 0;
	}
	if (!err && h.version) {
		puts("glint-health " GLINT_VERSION);
		return 0;
	}
	if (!err)
		watch(&h);
	log_error(err);
	return err ? 1 : 0;
}
