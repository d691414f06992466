/*
 * A session of the kernel's iSCSI initiator, as sysfs shows it, and the disks behind it. A session that was lost and
 * not found again in time (its recovery_tmo) lets requests fail and keeps its disks for ever: here they are taken away,
 * as if they were pulled, and come back with the session.
 */
#ifndef GLINT_ISCSI_SESSION_H
#define GLINT_ISCSI_SESSION_H

#include "base/error.h"

#include <limits.h>

/* SESSION_LOST: requests wait. SESSION_GIVEN_UP: they fail; iscsid goes on trying all the same. */
enum session_state { SESSION_NONE, SESSION_UP, SESSION_LOST, SESSION_GIVEN_UP };

struct session {
	enum session_state state;
	char path[PATH_MAX]; /* of its device */
	unsigned host;       /* SCSI's number */
};

/* Looks for the session with the target of that name. */
void session_find(const char *target, struct session *session);

/* Takes the disks of a session away, or looks for them. */
void session_remove_disks(const struct session *session);
[[nodiscard]] struct error *session_scan(const struct session *session);

/*
 * Finds the network device of the address @mac, once udev is done with it and its name stays. @carrier: also once it
 * has a carrier.
 */
bool device_find(const char *mac, bool carrier);

#endif
