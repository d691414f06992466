/*
 * Replies of a guest agent, which are hostile: a door for agent.c, its tests and the fuzzer.
 */
#ifndef GLINT_VMM_AGENT_REPLY_H
#define GLINT_VMM_AGENT_REPLY_H

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>

/* Arrays and objects inside each other in a reply. The deepest that is known needs 5. */
#define REPLY_DEPTH_MAX 16

/* What the line says: *value is the caller's. An error is the agent's own, or says what is wrong with the line. */
[[nodiscard]] struct error *reply_parse(const char *line, size_t len, json_t **value);

/* Copies of what is known in the replies to guest-get-osinfo, guest-get-host-name, guest-network-get-interfaces. */
json_t *reply_os(const json_t *value);
json_t *reply_host_name(const json_t *value);
json_t *reply_interfaces(const json_t *value);

/* How many file systems guest-fsfreeze-freeze and -thaw say they changed. */
json_t *reply_count(const json_t *value);

#endif
