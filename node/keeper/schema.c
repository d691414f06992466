/*
 * Converting a database; see schema.h. It touches its files in the folder it is given, and runs ovsdb-tool.
 */
#include "node/keeper/schema.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SCHEMA_MAX   (256 * KIB)
#define DATABASE_MAX (256 * MIB)
#define WORDS_MAX    200

/* @name and @version are malloc'ed, the caller's. */
static struct error *read_schema(const char *text, size_t len, const char *whose, char **name, char **version)
{
	json_t *json = json_loadb(text, len, 0, NULL);
	const char *n = json_string_value(json_object_get(json, "name"));
	const char *v = json_string_value(json_object_get(json, "version"));
	struct error *err =
		n && v ? NULL : error_new(EINVAL, "read the schema of %s: it has no name and version", whose);

	*name = n ? strdup(n) : NULL;
	*version = v ? strdup(v) : NULL;
	if (!err && (!*name || !*version))
		err = error_new(ENOMEM, "read the schema of %s", whose);
	json_decref(json);
	return err;
}

/* Below, equal or above 0, as version @a is older, the same or newer: "1.2.3", ovsdb(7). */
static int compare(const char *a, const char *b)
{
	unsigned x[3] = {}, y[3] = {};

	sscanf(a, "%u.%u.%u", &x[0], &x[1], &x[2]);
	sscanf(b, "%u.%u.%u", &y[0], &y[1], &y[2]);
	for (unsigned i = 0; i < 3; i++)
		if (x[i] != y[i])
			return x[i] < y[i] ? -1 : 1;
	return 0;
}

static struct error *file_in(const char *folder, const char *name, char path[PATH_MAX])
{
	return snprintf(path, PATH_MAX, "%s/%s", folder, name) < PATH_MAX ? NULL
									  : error_new(ENAMETOOLONG, "use %s", folder);
}

static struct error *run_tool(char *from, char *schema, char *to, const char *log)
{
	char tool[] = "ovsdb-tool", verb[] = "convert";
	char *const arguments[] = {tool, verb, from, schema, to, NULL};
	posix_spawn_file_actions_t actions;
	cleanup_free char *words = NULL;
	int status = 0;
	size_t len;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);
	int res = posix_spawnp(&pid, tool, &actions, NULL, arguments, (char *[]){NULL});
	posix_spawn_file_actions_destroy(&actions);
	if (res)
		return error_new(res, "run %s", tool);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return NULL;
	TRY(read_file(log, DATABASE_MAX, &words, &len));
	words[MIN(len, (size_t)WORDS_MAX)] = '\0';
	words[strcspn(words, "\n")] = '\0';
	return error_new(0, "%s: %s", tool, words);
}

static struct error *convert(struct buffer *database, const char *schema, const char *folder)
{
	char from[PATH_MAX], to[PATH_MAX], log[PATH_MAX], target[PATH_MAX];
	cleanup_free char *text = NULL;
	size_t len;

	TRY(file_in(folder, "from.db", from));
	TRY(file_in(folder, "to.db", to));
	TRY(file_in(folder, "log", log));
	if (snprintf(target, sizeof(target), "%s", schema) >= PATH_MAX)
		return error_new(ENAMETOOLONG, "use %s", schema);
	cleanup_fd int fd = open(from, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_new(errno, "make %s", from);
	TRY(write_all(fd, database->data, database->len, from));
	TRY(run_tool(from, target, to, log));
	TRY(read_file(to, DATABASE_MAX, &text, &len));
	if (len == 0 || database_records((uint8_t *)text, len, NULL) != len)
		return error_new(EBADMSG, "ovsdb-tool made no whole database");
	database->len = 0;
	return buffer_add(database, text, len);
}

static void remove_files(const char *folder)
{
	cleanup_dir DIR *dir = opendir(folder);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			unlinkat(dirfd(dir), entry->d_name, 0);
	rmdir(folder);
}

struct error *schema_convert(struct buffer *database, const char *schema, const char *folder, char **from)
{
	cleanup_free char *text = NULL, *name = NULL, *version = NULL, *our_name = NULL, *our_version = NULL;
	char place[PATH_MAX];
	size_t len;

	*from = NULL;
	size_t record = database_record_len(database->data, database->len);
	const uint8_t *line = record ? memchr(database->data, '\n', record) : NULL;
	if (!line)
		return error_new(EBADMSG, "read the schema of the stick's database: it has none");
	size_t head = (size_t)(line + 1 - database->data);
	TRY(read_schema((const char *)line + 1, record - head, "the stick's database", &name, &version));
	TRY(read_file(schema, SCHEMA_MAX, &text, &len));
	TRY(read_schema(text, len, schema, &our_name, &our_version));
	int order = compare(version, our_version);
	if (strcmp(name, our_name) != 0 || order > 0)
		return error_new(0, "its database is %s %s, this Glint's is %s %s: use the Glint that wrote it", name,
				 version, our_name, our_version);
	if (order == 0)
		return NULL;
	TRY(file_in(folder, "convert", place));
	if (mkdir(place, 0700) < 0 && errno != EEXIST)
		return error_new(errno, "make %s", place);
	struct error *err = convert(database, schema, place);
	remove_files(place);
	if (err)
		return error_wrap(err, "convert its database from %s %s to %s", name, version, our_version);
	*from = steal_ptr(&version);
	return NULL;
}
