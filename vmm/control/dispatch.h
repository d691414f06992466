/*
 * JSON-RPC 2.0 without the socket: from the bytes of one packet to the bytes of the answer. A door for control.c and
 * for the fuzzer; everything else uses control.h.
 */
#ifndef GLINT_VMM_CONTROL_DISPATCH_H
#define GLINT_VMM_CONTROL_DISPATCH_H

#include "vmm/control/control.h"

/* Arrays and objects inside each other in one packet. Ours need four. */
#define CONTROL_DEPTH_MAX 16

/*
 * Carries out the call in @packet with the descriptors in @call (whose params it sets meanwhile), and returns the
 * answer, malloc'ed and the caller's, or NULL for none (a notification, or call->deferred). The answer is at most
 * CONTROL_PACKET_MAX bytes. What is left in call->fds stays the caller's.
 */
char *control_dispatch(const struct control_method *methods, void *self, const char *packet, size_t len,
		       struct control_call *call);

/*
 * The answer to the call @id (borrowed) of @method, which made @err or @result; consumes these. NULL when memory is
 * out.
 */
char *control_answer_text(json_t *id, const char *method, struct error *err, json_t *result);

/* An answer to no call in particular; the caller frees it. NULL when memory is out. */
char *control_refusal(int code, const char *message);

/* A notification; consumes @params (NULL: none). NULL when memory is out or it is too long. */
char *control_notification(const char *method, json_t *params);

#endif
