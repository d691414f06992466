/*
 * Fuzzes the control socket's dispatcher: the input is one packet. The methods read their params as real ones do.
 * Whatever comes in, an answer is one JSON-RPC object that fits a packet, and has exactly one of result and error.
 */
#include "base/cleanup.h"
#include "vmm/control/dispatch.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct error *do_echo(void *self, struct control_call *call, json_t **result)
{
	*result = json_incref(call->params);
	return NULL;
}

static struct error *do_params(void *self, struct control_call *call, json_t **result)
{
	const char *path, *policy = "report";
	json_int_t size;
	int on = 0;

	TRY(control_params(call, "{s:s, s:I, s?b, s?{s:s}}", "path", &path, "size", &size, "on", &on, "on-error",
			   "policy", &policy));
	*result = json_pack("{s:s, s:I, s:b, s:s}", "path", path, "size", size, "on", on, "policy", policy);
	return NULL;
}

static struct error *do_fail(void *self, struct control_call *call, json_t **result)
{
	const char *path;

	TRY(control_params(call, "{s:s}", "path", &path));
	return error_hint(error_new(ENOENT, "open %s", path), "look for %s", path);
}

static const struct control_method methods[] = {{"echo", do_echo}, {"params", do_params}, {"fail", do_fail}, {}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct control_call call = {};

	if (size > CONTROL_PACKET_MAX)
		return 0;
	cleanup_free char *answer = control_dispatch(methods, NULL, (const char *)data, size, &call);
	if (!answer)
		return 0;
	json_t *json = json_loads(answer, JSON_REJECT_DUPLICATES, NULL);
	if (strlen(answer) > CONTROL_PACKET_MAX || !json_is_object(json) || json_object_size(json) != 3 ||
	    !json_object_get(json, "id") || !json_object_get(json, "result") == !json_object_get(json, "error"))
		abort();
	json_decref(json);
	return 0;
}
