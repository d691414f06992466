/* Telling systemd that a daemon is ready: sd_notify(3), without its library. */
#ifndef GLINT_BASE_NOTIFY_H
#define GLINT_BASE_NOTIFY_H

#include "base/error.h"

/* Where nobody wants to know (no NOTIFY_SOCKET), nothing is told. */
[[nodiscard]] struct error *notify_ready(void);

#endif
