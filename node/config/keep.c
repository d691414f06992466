/*
 * The last good configuration: column host_toml of the host's row in table Host, which the keeper carries to the stick
 * like every other. By RFC 7047 over the socket of ovsdb-server, one connection a call.
 */
#include "node/config/config.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#define ANSWER_MAX ((size_t)1 << 20)

static void json_done(json_t **json)
{
	json_decref(*json);
}
#define cleanup_json __attribute__((cleanup(json_done)))

static struct error *connect_to(const char *path, unsigned wait_s, int *out)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const struct timespec pause = {.tv_nsec = 100 * 1000000};
	const struct timeval patience = {.tv_sec = 10};

	if (strlen(path) >= sizeof(address.sun_path))
		return error_new(ENAMETOOLONG, "connect to %s", path);
	strcpy(address.sun_path, path);
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0)
		return error_new(errno, "connect to %s", path);
	for (unsigned i = 0; connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0; i++) {
		if (i >= wait_s * 10)
			return error_new(errno, "connect to the host's database (%s)", path);
		nanosleep(&pause, NULL);
	}
	*out = steal_fd(&fd);
	return NULL;
}

/* Reads until what came is one JSON value. */
static struct error *read_answer(int fd, json_t **answer)
{
	cleanup_free char *text = malloc(ANSWER_MAX);
	size_t len = 0;

	while (text && len < ANSWER_MAX) {
		ssize_t n = recv(fd, text + len, ANSWER_MAX - len, 0);
		if (n <= 0)
			return error_new(n < 0 ? errno : ECONNRESET, "hear from the host's database");
		len += (size_t)n;
		if (json_nesting(text, len) > 32)
			break;
		*answer = json_loadb(text, len, JSON_DISABLE_EOF_CHECK, NULL);
		if (*answer)
			return NULL;
	}
	return error_new(text ? EMSGSIZE : ENOMEM, "hear from the host's database");
}

/* Runs @operation, which it consumes, on the host's row; *result is what the server says of it. */
static struct error *transact(const char *path, unsigned wait_s, json_t *operation, json_t **result)
{
	cleanup_json json_t *call =
		json_pack("{s:s, s:[s, o], s:i}", "method", "transact", "params", "Glint", operation, "id", 1);
	cleanup_json json_t *answer = NULL;
	cleanup_free char *text = call ? json_dumps(call, JSON_COMPACT) : NULL;
	cleanup_fd int fd = -1;

	if (!text)
		return error_new(ENOMEM, "ask the host's database");
	struct error *err = connect_to(path, wait_s, &fd);
	if (err || fd < 0)
		return err;
	TRY(write_all(fd, text, strlen(text), "the host's database"));
	TRY(read_answer(fd, &answer));
	*result = json_incref(json_array_get(json_object_get(answer, "result"), 0));
	const char *wrong = json_string_value(json_object_get(*result, "error"));
	const char *details = json_string_value(json_object_get(*result, "details"));
	if (!*result || wrong)
		return error_new(EIO, "ask the host's database: %s", details ? details : wrong ? wrong : "no result");
	return NULL;
}

static json_t *where(const char *id)
{
	return json_pack("[[s, s, [s, s]]]", "_uuid", "==", "uuid", id);
}

static struct error *find_row(const char *socket, const char *id, unsigned wait_s, json_t **row)
{
	cleanup_json json_t *result = NULL;

	TRY(transact(socket, wait_s,
		     json_pack("{s:s, s:s, s:o, s:[s, s]}", "op", "select", "table", "Host", "where", where(id),
			       "columns", "name", "host_toml"),
		     &result));
	*row = json_incref(json_array_get(json_object_get(result, "rows"), 0));
	return *row ? NULL : error_new(ENOENT, "find this host (%s) in its database", id);
}

static const char *column(const json_t *row, const char *name)
{
	const char *text = json_string_value(json_object_get(row, name));

	return text ? text : "";
}

struct error *last_good(const char *socket, const char *id, unsigned wait_s, char **text)
{
	cleanup_json json_t *row = NULL;

	TRY(find_row(socket, id, wait_s, &row));
	*text = strdup(column(row, "host_toml"));
	return *text ? NULL : error_new(ENOMEM, "read the last good configuration");
}

struct error *keep_good(const char *socket, const char *id, unsigned wait_s, const char *text, const char *name)
{
	cleanup_json json_t *row = NULL, *result = NULL;

	TRY(find_row(socket, id, wait_s, &row));
	if (strcmp(column(row, "host_toml"), text) == 0 && (!name || strcmp(column(row, "name"), name) == 0))
		return NULL;
	json_t *columns = json_pack("{s:s}", "host_toml", text);
	if (name)
		json_object_set_new(columns, "name", json_string(name));
	TRY(transact(
		socket, wait_s,
		json_pack("{s:s, s:s, s:o, s:o}", "op", "update", "table", "Host", "where", where(id), "row", columns),
		&result));
	return NULL;
}
