/*
 * Replies of a guest agent; see reply.h. Touches memory only. Nothing of a reply is passed on but short strings without
 * control characters (somebody's terminal may show them), addresses that are some, and numbers in range: so what a
 * client of the control socket gets has our shape and, with everything at its bound, fits a packet.
 */
#include "vmm/agent/reply.h"

#include "base/util.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

/* Bytes of strings that are passed on. A name of a host is bounded by DNS. */
#define WORDS_MAX  200
#define HOST_MAX   253
#define NAME_BYTES 64 /* of an interface */
#define MAC_BYTES  17

#define INTERFACES_MAX 32
#define ADDRESSES_MAX  8 /* of an interface */

/* The agent's own words, of which only ASCII goes on: they are for our errors and our log. */
static struct error *complaint(const json_t *error)
{
	const char *words = json_string_value(json_object_get(error, "desc"));
	char clean[WORDS_MAX + 1];
	size_t n = 0;

	for (; words && words[n] && n < WORDS_MAX; n++)
		clean[n] = words[n] >= ' ' && words[n] <= '~' ? words[n] : '?';
	clean[n] = '\0';
	return error_new(0, "the agent in the guest says: %s", n ? clean : "error");
}

struct error *reply_parse(const char *line, size_t len, json_t **value)
{
	struct error *err = NULL;
	json_error_t why;

	if (json_nesting(line, len) > REPLY_DEPTH_MAX)
		return error_new(0, "the agent's answer is nested too deeply");
	json_t *reply = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
	if (!reply)
		return error_new(0, "the agent's answer is not JSON");
	const json_t *error = json_object_get(reply, "error");
	json_t *result = json_object_get(reply, "return");
	if (error)
		err = complaint(error);
	else if (!result)
		err = error_new(0, "the agent's answer has neither a result nor an error");
	else
		*value = json_incref(result);
	json_decref(reply);
	return err;
}

/* The string @key of @from, if it is one that may be passed on. */
static const char *words(const json_t *from, const char *key, size_t max)
{
	const json_t *value = json_object_get(from, key);
	const char *text = json_string_value(value);
	size_t len = json_string_length(value);

	if (!text || len > max)
		return NULL;
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
			return NULL;
	return text;
}

/* Copies the string @key of @from to @as of @to, if it may be passed on. */
static void copy_words(json_t *to, const char *as, const json_t *from, const char *key, size_t max)
{
	const char *text = words(from, key, max);

	if (text)
		json_object_set_new(to, as, json_string(text));
}

json_t *reply_os(const json_t *value)
{
	json_t *os = json_object();

	copy_words(os, "id", value, "id", WORDS_MAX);
	copy_words(os, "name", value, "pretty-name", WORDS_MAX);
	copy_words(os, "version", value, "version-id", WORDS_MAX);
	copy_words(os, "kernel", value, "kernel-release", WORDS_MAX);
	return os;
}

json_t *reply_host_name(const json_t *value)
{
	const char *name = words(value, "host-name", HOST_MAX);

	return json_string(name ? name : "");
}

static bool is_address(const char *text)
{
	struct in6_addr any;

	return inet_pton(AF_INET, text, &any) == 1 || inet_pton(AF_INET6, text, &any) == 1;
}

static json_t *addresses(const json_t *list)
{
	json_t *copies = json_array();

	for (size_t i = 0; i < json_array_size(list) && json_array_size(copies) < ADDRESSES_MAX; i++) {
		const json_t *from = json_array_get(list, i), *prefix = json_object_get(from, "prefix");
		const char *address = words(from, "ip-address", INET6_ADDRSTRLEN);
		if (!address || !is_address(address))
			continue;
		json_t *copy = json_pack("{s:s}", "address", address);
		if (json_is_integer(prefix) && json_integer_value(prefix) >= 0 && json_integer_value(prefix) <= 128)
			json_object_set_new(copy, "prefix", json_integer(json_integer_value(prefix)));
		json_array_append_new(copies, copy);
	}
	return copies;
}

json_t *reply_interfaces(const json_t *value)
{
	json_t *copies = json_array();

	for (size_t i = 0; i < json_array_size(value) && json_array_size(copies) < INTERFACES_MAX; i++) {
		const json_t *from = json_array_get(value, i);
		json_t *copy = json_object();
		copy_words(copy, "name", from, "name", NAME_BYTES);
		copy_words(copy, "mac", from, "hardware-address", MAC_BYTES);
		json_object_set_new(copy, "addresses", addresses(json_object_get(from, "ip-addresses")));
		json_array_append_new(copies, copy);
	}
	return copies;
}

json_t *reply_count(const json_t *value)
{
	json_int_t count = json_integer_value(value);

	return json_integer(count >= 0 && count <= INT32_MAX ? count : 0);
}
