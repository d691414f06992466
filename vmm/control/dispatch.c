/*
 * JSON-RPC 2.0; see dispatch.h. A packet is checked in this order, and the first thing wrong is the answer: nesting (by
 * a scan, before the parser recurses), JSON (no duplicate keys, nothing behind it), shape (known members only), method,
 * params. Batches are refused: a packet is the unit already, and a client that wants several calls sends several.
 *
 * It touches memory only; what a call does is its method's business.
 */
#include "vmm/control/dispatch.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the id that a client may choose, and of an error's words: an answer about them always fits a packet. */
#define ID_MAX    256
#define WORDS_MAX 2048

static inline void cleanup_json_fn(json_t **json)
{
	json_decref(*json);
}
#define cleanup_json __attribute__((cleanup(cleanup_json_fn)))

/* --- answers --- */

/* Text of @message, which it consumes; NULL when it is too long for a packet or memory is out. */
static char *to_text(json_t *message)
{
	cleanup_json json_t *owned = message;
	cleanup_free char *text = owned ? json_dumps(owned, JSON_COMPACT) : NULL;

	return text && strlen(text) <= CONTROL_PACKET_MAX ? steal_ptr(&text) : NULL;
}

/* Words of an error, which may quote what the client sent: cut to WORDS_MAX, and replaced if they are not UTF-8. */
static json_t *words(const char *text)
{
	json_t *json = json_stringn(text, strnlen(text, WORDS_MAX));

	return json ? json : json_string("(text that is not UTF-8)");
}

/* @id is borrowed; @data is consumed and may be NULL. */
static char *error_answer(json_t *id, int code, const char *message, json_t *data)
{
	json_t *error = json_pack("{s:i, s:o}", "code", code, "message", words(message));

	if (error && data)
		json_object_set(error, "data", data);
	json_decref(data);
	return to_text(json_pack("{s:s, s:o, s:O}", "jsonrpc", "2.0", "error", error, "id", id));
}

char *control_refusal(int code, const char *message)
{
	cleanup_json json_t *id = json_null();

	return error_answer(id, code, message, NULL);
}

/* The failure of a method; consumes @err. */
static char *failure_answer(json_t *id, struct error *err)
{
	cleanup_error struct error *owned = err;
	json_t *data = json_object();
	const char *name = strerrorname_np(error_errno(err));

	if (error_errno(err) != 0 && name)
		json_object_set_new(data, "errno", json_string(name));
	if (error_hint_text(err))
		json_object_set_new(data, "hint", words(error_hint_text(err)));
	int code = error_errno(err) == EINVAL ? CONTROL_BAD_PARAMS : CONTROL_FAILED;
	return error_answer(id, code, error_text(err), data);
}

static char *result_answer(json_t *id, json_t *result)
{
	char *text = to_text(
		json_pack("{s:s, s:o, s:O}", "jsonrpc", "2.0", "result", result ? result : json_object(), "id", id));
	return text ? text : error_answer(id, CONTROL_FAILED, "the result is too long for a packet", NULL);
}

char *control_answer_text(json_t *id, const char *method, struct error *err, json_t *result)
{
	if (!err)
		return result_answer(id, result);
	json_decref(result);
	return failure_answer(id, error_wrap(err, "%s", method));
}

char *control_notification(const char *method, json_t *params)
{
	if (!params)
		params = json_object();
	return to_text(json_pack("{s:s, s:s, s:o}", "jsonrpc", "2.0", "method", method, "params", params));
}

/* --- calls --- */

/* What is wrong with the shape of @message, or NULL. */
static const char *wrong_shape(const json_t *message)
{
	static const char *const members[] = {"jsonrpc", "method", "params", "id"};
	const json_t *version = json_object_get(message, "jsonrpc");
	const json_t *id = json_object_get(message, "id");
	size_t known = 0;

	if (json_is_array(message))
		return "a batch: send each call in a packet of its own";
	if (!json_is_object(message))
		return "the packet is not an object";
	for (size_t i = 0; i < ARRAY_SIZE(members); i++)
		known += json_object_get(message, members[i]) != NULL;
	if (known != json_object_size(message))
		return "there are members besides jsonrpc, method, params and id";
	if (!json_is_string(version) || strcmp(json_string_value(version), "2.0") != 0)
		return "jsonrpc must be \"2.0\"";
	if (!json_is_string(json_object_get(message, "method")))
		return "method must be a string";
	if (id && !json_is_string(id) && !json_is_integer(id) && !json_is_null(id))
		return "id must be a string, a whole number or null";
	if (json_string_length(id) > ID_MAX)
		return "id is too long";
	return NULL;
}

static const struct control_method *find_method(const struct control_method *methods, const char *name)
{
	while (methods->name && strcmp(methods->name, name) != 0)
		methods++;
	return methods->name ? methods : NULL;
}

static struct error *carry_out(const struct control_method *method, void *self, json_t *params,
			       struct control_call *call, json_t **result)
{
	cleanup_json json_t *none = params ? NULL : json_object();

	call->params = params ? params : none;
	if (!call->params)
		return error_new(ENOMEM, "read its params");
	struct error *err = method->call(self, call, result);
	call->params = NULL;
	return err;
}

static char *answer_call(const struct control_method *methods, void *self, const json_t *message,
			 struct control_call *call)
{
	json_t *params = json_object_get(message, "params");
	cleanup_json json_t *id =
		json_object_get(message, "id") ? json_incref(json_object_get(message, "id")) : json_null();
	const char *name = json_string_value(json_object_get(message, "method"));
	const struct control_method *method = find_method(methods, name);
	json_t *result = NULL;

	if (!method)
		return error_answer(id, CONTROL_NO_METHOD, "there is no such method", NULL);
	if (params && !json_is_object(params))
		return error_answer(id, CONTROL_BAD_PARAMS, "params must be an object", NULL);
	call->method = method->name;
	call->id = json_object_get(message, "id");
	struct error *err = carry_out(method, self, params, call, &result);
	call->id = NULL;
	return call->deferred ? NULL : control_answer_text(id, method->name, err, result);
}

char *control_dispatch(const struct control_method *methods, void *self, const char *packet, size_t len,
		       struct control_call *call)
{
	json_error_t where;
	char wrong_json[JSON_ERROR_TEXT_LENGTH + 64];

	if (json_nesting(packet, len) > CONTROL_DEPTH_MAX)
		return control_refusal(CONTROL_PARSE, "the packet is nested too deeply");
	cleanup_json json_t *message = json_loadb(packet, len, JSON_REJECT_DUPLICATES, &where);
	if (!message) {
		snprintf(wrong_json, sizeof(wrong_json), "the packet is not JSON: %s at byte %d", where.text,
			 where.position);
		return control_refusal(CONTROL_PARSE, wrong_json);
	}
	const char *wrong = wrong_shape(message);
	if (wrong)
		return control_refusal(CONTROL_INVALID, wrong);
	cleanup_free char *answer = answer_call(methods, self, message, call);
	return json_object_get(message, "id") ? steal_ptr(&answer) : NULL;
}

struct error *control_params(const struct control_call *call, const char *fmt, ...)
{
	json_error_t what;
	va_list args;

	va_start(args, fmt);
	int ret = json_vunpack_ex(call->params, &what, JSON_STRICT, fmt, args);
	va_end(args);
	return ret == 0 ? NULL : error_new(EINVAL, "params: %s", what.text);
}
