/*
 * Following the file of ovsdb-server; see database.h. inotify tells when to look, and how often the file was replaced:
 * a replacement that was missed would be changes that were missed.
 */
#include "node/keeper/database.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* What a database may grow to: more than any stick keeps. */
#define FILE_MAX_BYTES (256 * MIB)

#define MAGIC          "OVSDB JSON "
#define LINE_MAX_BYTES 80u

struct database {
	char path[PATH_MAX];
	const char *name; /* in path */
	int watch, fd;
	ino_t inode;
	uint64_t at;
	uint8_t schema[SHA_DIGEST_LENGTH]; /* of the first record */
};

struct error *buffer_add(struct buffer *b, const void *data, size_t len)
{
	if (b->room - b->len < len) {
		size_t room = MAX(2 * b->room, b->len + len);
		uint8_t *grown = realloc(b->data, room);
		if (!grown)
			return error_new(ENOMEM, "hold %zu bytes", room);
		b->data = grown;
		b->room = room;
	}
	if (len)
		memcpy(b->data + b->len, data, len);
	b->len += len;
	return NULL;
}

void buffer_free(struct buffer *b)
{
	free(b->data);
	*b = (struct buffer){};
}

/* --- records --- */

static void hex_of(const uint8_t *data, size_t len, char hex[2 * SHA_DIGEST_LENGTH + 1])
{
	uint8_t digest[SHA_DIGEST_LENGTH];

	SHA1(data, len, digest);
	for (size_t i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

struct error *database_record(struct buffer *to, const char *json)
{
	cleanup_free char *text = NULL;
	char line[LINE_MAX_BYTES + 32], hex[2 * SHA_DIGEST_LENGTH + 1];
	int len = asprintf(&text, "%s\n", json);

	if (len < 0)
		return error_new(ENOMEM, "make a record of the database");
	hex_of((const uint8_t *)text, (size_t)len, hex);
	snprintf(line, sizeof(line), MAGIC "%d %s\n", len, hex);
	TRY(buffer_add(to, line, strlen(line)));
	return buffer_add(to, text, (size_t)len);
}

size_t database_record_len(const uint8_t *data, size_t len)
{
	char line[LINE_MAX_BYTES + 1], hex[2 * SHA_DIGEST_LENGTH + 1];
	const uint8_t *newline = data ? memchr(data, '\n', MIN(len, (size_t)LINE_MAX_BYTES)) : NULL;
	size_t json, head;
	char *end;

	if (!newline || memcmp(data, MAGIC, MIN(strlen(MAGIC), len)) != 0)
		return 0;
	head = (size_t)(newline - data) + 1;
	memcpy(line, data, head - 1);
	line[head - 1] = '\0';
	if (head < strlen(MAGIC) + 2)
		return 0;
	json = strtoul(line + strlen(MAGIC), &end, 10);
	if (*end != ' ' || json > FILE_MAX_BYTES || json > len - head)
		return 0;
	hex_of(data + head, json, hex);
	return strcmp(end + 1, hex) == 0 ? head + json : 0;
}

size_t database_records(const uint8_t *data, size_t len, unsigned *count)
{
	size_t at = 0, n;

	for (; at < len && (n = database_record_len(data + at, len - at)) > 0; at += n)
		if (count)
			++*count;
	return at;
}

/* --- following --- */

static struct error *read_from(const struct database *d, int fd, uint64_t at, struct buffer *to)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_new(errno, "look at %s", d->path);
	if ((uint64_t)st.st_size > FILE_MAX_BYTES)
		return error_new(EFBIG, "read %s: it has %lld bytes", d->path, (long long)st.st_size);
	if ((uint64_t)st.st_size <= at)
		return NULL;
	size_t len = (size_t)st.st_size - at;
	cleanup_free uint8_t *data = malloc(len);
	if (!data)
		return error_new(ENOMEM, "read %s", d->path);
	/* A server that was killed in the middle of a record cuts it off when it is back. */
	ssize_t n = pread(fd, data, len, (off_t)at);
	if (n < 0)
		return error_new(errno, "read %s", d->path);
	return buffer_add(to, data, (size_t)n);
}

/* The file that has the name now; -1 and errno. */
static int open_file(const struct database *d, ino_t *inode)
{
	cleanup_fd int fd = open(d->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -1;
	if (!S_ISREG(st.st_mode)) {
		errno = EINVAL;
		return -1;
	}
	*inode = st.st_ino;
	return steal_fd(&fd);
}

static struct error *note_schema(const struct database *d, int fd, uint8_t schema[SHA_DIGEST_LENGTH])
{
	cleanup_buffer struct buffer b = {};

	TRY(read_from(d, fd, 0, &b));
	SHA1(b.data, database_record_len(b.data, b.len), schema);
	return NULL;
}

static struct error *begin(struct database *d, const char *path, uint64_t at)
{
	cleanup_free char *folder = strdup(path);
	char *slash = folder ? strrchr(folder, '/') : NULL;

	if (!slash || (size_t)snprintf(d->path, sizeof(d->path), "%s", path) >= sizeof(d->path))
		return error_new(EINVAL, "follow %s: it is no absolute path", path);
	*slash = '\0';
	d->name = strrchr(d->path, '/') + 1;
	d->at = at;
	d->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (d->watch < 0 || inotify_add_watch(d->watch, folder, IN_MODIFY | IN_MOVED_TO) < 0)
		return error_new(errno, "watch %s", folder);
	d->fd = open_file(d, &d->inode);
	if (d->fd < 0)
		return error_new(errno, "open %s", d->path);
	return note_schema(d, d->fd, d->schema);
}

struct error *database_open(struct database **out, const char *path, uint64_t at)
{
	struct database *d = calloc(1, sizeof(*d));

	if (!d)
		return error_new(ENOMEM, "follow %s", path);
	d->fd = d->watch = -1;
	struct error *err = begin(d, path, at);
	if (err) {
		database_free(d);
		return err;
	}
	*out = d;
	return NULL;
}

void database_free(struct database *d)
{
	if (!d)
		return;
	close_fd(&d->fd);
	close_fd(&d->watch);
	free(d);
}

int database_fd(const struct database *d)
{
	return d->watch;
}

/* How often the file was replaced since last asked; more than was counted: UINT_MAX. */
static unsigned replacements(struct database *d)
{
	alignas(struct inotify_event) char events[4096];
	unsigned count = 0;
	ssize_t n;

	while ((n = read(d->watch, events, sizeof(events))) > 0) {
		for (ssize_t at = 0; at < n;) {
			const struct inotify_event *e = (const struct inotify_event *)(events + at);
			if (e->mask & IN_Q_OVERFLOW)
				return UINT_MAX;
			if (e->mask & IN_MOVED_TO && e->len && strcmp(e->name, d->name) == 0)
				count++;
			at += (ssize_t)sizeof(*e) + e->len;
		}
	}
	return count;
}

static struct error *take_new(struct database *d, struct buffer *to, unsigned *changes)
{
	cleanup_buffer struct buffer b = {};

	TRY(read_from(d, d->fd, d->at, &b));
	size_t len = database_records(b.data, b.len, changes);
	TRY(buffer_add(to, b.data, len));
	d->at += len;
	return NULL;
}

/* Goes over to the file that took the old one's place. */
static struct error *go_over(struct database *d, unsigned replaced, bool *lost)
{
	cleanup_buffer struct buffer b = {};
	uint8_t schema[SHA_DIGEST_LENGTH];
	ino_t inode;

	cleanup_fd int fd = open_file(d, &inode);
	if (fd < 0)
		return error_new(errno, "open %s", d->path);
	TRY(read_from(d, fd, 0, &b));
	size_t first = database_record_len(b.data, b.len);
	size_t second = first ? database_record_len(b.data + first, b.len - first) : 0;
	SHA1(b.data, first, schema);
	if (replaced != 1 || inode == d->inode || !second || memcmp(schema, d->schema, sizeof(schema)) != 0)
		*lost = true;
	memcpy(d->schema, schema, sizeof(schema));
	d->at = first + second;
	d->inode = inode;
	close(d->fd);
	d->fd = steal_fd(&fd);
	return NULL;
}

struct error *database_follow(struct database *d, struct buffer *to, unsigned *changes, bool *lost)
{
	unsigned replaced = replacements(d);

	*lost = false;
	/* What the old file got before it was replaced: nobody writes to it afterwards. */
	TRY(take_new(d, to, changes));
	if (replaced == 0)
		return NULL;
	TRY(go_over(d, replaced, lost));
	return take_new(d, to, changes);
}

struct error *database_whole(struct database *d, struct buffer *to)
{
	size_t before = to->len;

	TRY(read_from(d, d->fd, 0, to));
	if (to->len - before < d->at)
		return error_new(EIO, "read %s: it became shorter", d->path);
	to->len = before + d->at;
	return NULL;
}

struct error *database_ask(const char *control, const char *method, const char *parameter)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 2};
	char text[PATH_MAX + 256];
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if ((size_t)snprintf(address.sun_path, sizeof(address.sun_path), "%s", control) >= sizeof(address.sun_path))
		return error_new(ENAMETOOLONG, "reach %s", control);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_new(errno, "reach %s", control);
	snprintf(text, sizeof(text), "{\"id\":0,\"method\":\"%s\",\"params\":[\"%s\"]}", method, parameter);
	TRY(write_all(fd, text, strlen(text), control));
	ssize_t n = recv(fd, text, sizeof(text) - 1, 0);
	if (n <= 0)
		return error_new(n < 0 ? errno : EPIPE, "ask %s for %s", control, method);
	text[n] = '\0';
	return strstr(text, "\"error\":null") ? NULL : error_new(EBADMSG, "ask for %s: %s", method, text);
}
