/*
 * What the control socket offers for CD drives; see commands.c. Runs on the main thread. Touches the descriptors that
 * come with cd-change, which become the media's.
 */
#include "vmm/machine/machine.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

json_t *machine_cd_status(const struct machine *m)
{
	json_t *cds = json_array();

	for (unsigned i = 0; i < m->config->cds; i++) {
		struct ahci_tray tray;
		ahci_tray(m->ahci, i, &tray);
		json_array_append_new(cds, json_pack("{s:s, s:b, s:b, s:b}", "cd", m->config->cd[i].id, "medium",
						     tray.medium, "open", tray.open, "locked", tray.locked));
	}
	return cds;
}

static void tell(void *arg)
{
	struct machine *m = arg;

	if (m->control)
		control_notify(m->control, "cd", json_pack("{s:o}", "cds", machine_cd_status(m)));
}

void machine_post_cd(void *arg)
{
	struct machine *m = arg;

	loop_post(m->loop, tell, m);
}

static struct error *find(const struct machine *m, const char *id, unsigned *index)
{
	for (*index = 0; *index < m->config->cds; ++*index)
		if (strcmp(m->config->cd[*index].id, id) == 0)
			return NULL;
	return error_hint(error_new(ENOENT, "there is no CD drive '%s'", id), "start the machine with --cdrom id=%s",
			  id);
}

/* The medium whose descriptor came along, taken from its file, as an active drive. */
static struct error *make_medium(struct machine *m, unsigned index, int fd, struct drive **medium)
{
	struct disk_config *cd = &m->config->cd[index];

	cd->drive.fd = fd;
	cd->drive.name = cd->id; /* what it was opened by is not known here */
	TRY(machine_make_drive(m, cd, medium));
	struct error *err = ahci_check_medium(*medium);
	if (!err)
		err = drive_activate(*medium);
	if (err)
		drive_free(steal_ptr(medium));
	return err;
}

static void release(struct drive *medium)
{
	if (medium)
		log_error(drive_deactivate(medium));
	drive_free(medium);
}

/* {"cd": ID}, with the descriptor of a medium or without. */
struct error *machine_cd_change(void *self, struct control_call *call, json_t **result)
{
	struct machine *m = self;
	struct drive *medium = NULL;
	unsigned index = 0;
	const char *id;
	int force = 0;

	(void)result;
	TRY(control_params(call, "{s:s, s?:b}", "cd", &id, "force", &force));
	TRY(find(m, id, &index));
	if (call->fd_count > 1)
		return error_hint(error_new(EINVAL, "%u descriptors came along", call->fd_count),
				  "pass that of the new medium, or none to take the old one out");
	if (m->state > MACHINE_PAUSED)
		return error_new(EBUSY, "%s is %s", m->config->name, machine_state_name(m));
	if (call->fd_count == 1)
		TRY(make_medium(m, index, steal_fd(&call->fds[0]), &medium));
	struct error *err = ahci_change(m->ahci, index, medium, force);
	if (err) {
		release(medium);
		return error_wrap(err, "change the medium");
	}
	release(m->cd[index]);
	m->cd[index] = medium;
	tell(m);
	return NULL;
}
