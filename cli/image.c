/*
 * What the commands of `glint image` share; see image.h. Touches the files that the commands name, and files without a
 * name.
 */
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "hostconfig/hostconfig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COPY_BYTES ((size_t)MIB)

/* --- disks --- */

struct one_request {
	struct disk_request r; /* first */
	int res;
	bool over;
};

static void one_done(struct disk_request *r, int res)
{
	struct one_request *one = (struct one_request *)r;

	one->res = res;
	one->over = true;
}

static int do_request(const struct blocks *medium, enum disk_request_type type, void *data, size_t len, uint64_t offset)
{
	struct disk_medium *m = (struct disk_medium *)(uintptr_t)medium;
	struct iovec iov = {data, len};
	struct one_request one = {.r = {.type = type, .offset = offset, .len = len, .iov = &iov, .done = one_done}};

	one.r.iov_count = data ? 1 : 0;
	disk_submit(&m->queue, &one.r);
	while (!one.over)
		disk_ring_serve(m->ring);
	return one.res;
}

static int disk_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	return do_request(m, DISK_READ, data, len, offset);
}

static int disk_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	return do_request(m, DISK_WRITE, (void *)(uintptr_t)data, len, offset);
}

static int disk_flush(const struct blocks *m)
{
	return do_request(m, DISK_FLUSH, NULL, 0, 0);
}

struct error *disk_medium_init(struct disk_medium *m, const struct opened *o)
{
	*m = (struct disk_medium){};
	if (o->info.sector != SECTOR)
		return error_new(ENOTSUP, "%s: its sectors have %u bytes, and a stick's %u", o->info.name,
				 o->info.sector, SECTOR);
	TRY(disk_ring_new(&m->ring));
	m->queue = (struct disk_queue){o->disk, disk_ring_io(m->ring), o->files};
	m->medium = (struct blocks){disk_read, disk_write, disk_flush, o->info.size, o->info.name};
	return NULL;
}

void disk_medium_free(struct disk_medium *m)
{
	disk_ring_free(m->ring);
	m->ring = NULL;
}

void forget_cache(const struct opened *o)
{
	(void)posix_fadvise(disk_fd(o->disk, 0), 0, 0, POSIX_FADV_DONTNEED);
}

/* --- files without a name --- */

static int scratch_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	ssize_t n = pread(((const struct scratch *)m)->fd, data, len, (off_t)offset);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EIO;
}

static int scratch_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	ssize_t n = pwrite(((const struct scratch *)m)->fd, data, len, (off_t)offset);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EIO;
}

/* It does not outlive the process: nothing has to be durable. */
static int scratch_flush(const struct blocks *m)
{
	return 0;
}

const char *scratch_folder(void)
{
	const char *folder = getenv("TMPDIR");

	return folder && *folder ? folder : "/var/tmp";
}

struct error *scratch_init(struct scratch *s, const char *folder)
{
	*s = (struct scratch){.medium = {scratch_read, scratch_write, scratch_flush, 0, "the contents to be"}};
	s->fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (s->fd < 0)
		return error_hint(error_new(errno, "make a temporary file in %s", folder),
				  "name with TMPDIR a folder that has room");
	snprintf(s->path, sizeof(s->path), "/proc/self/fd/%d", s->fd);
	return NULL;
}

struct error *scratch_resize(struct scratch *s, uint64_t size)
{
	if (ftruncate(s->fd, (off_t)size) < 0)
		return error_new(errno, "make a temporary file of %llu bytes", (unsigned long long)size);
	s->medium.size = size;
	return NULL;
}

void scratch_free(struct scratch *s)
{
	if (s->medium.read)
		close_fd(&s->fd);
	s->medium.read = NULL;
}

/* --- copying --- */

/* Where in @fd the next piece to copy begins. */
static struct error *next_piece(int fd, const char *what, bool zeroes, uint64_t size, uint64_t *at)
{
	if (zeroes || *at == size)
		return NULL;
	off_t data = lseek(fd, (off_t)*at, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		return error_new(errno, "look for data in %s", what);
	*at = data < 0 ? size : align_down((uint64_t)data, PAGE_BYTES);
	return NULL;
}

struct error *copy_file_to(int from, const char *what, const struct blocks *to, uint64_t offset, bool zeroes,
			   struct progress *progress)
{
	cleanup_free uint8_t *buf = malloc(COPY_BYTES);
	off_t end = lseek(from, 0, SEEK_END);
	uint64_t at = 0, size = end < 0 ? 0 : (uint64_t)end;

	if (!buf || end < 0)
		return error_new(buf ? errno : ENOMEM, "copy %s", what);
	for (;;) {
		TRY(next_piece(from, what, zeroes, size, &at));
		if (at == size)
			return NULL;
		size_t n = MIN(COPY_BYTES - at % COPY_BYTES, size - at), whole = align_up(n, SECTOR);
		TRY(pread_all(from, buf, n, (off_t)at, what));
		memset(buf + n, 0, whole - n);
		TRY(blocks_write(to, buf, whole, offset + at));
		at += n;
		if (progress)
			progress_at(progress, at);
	}
}

/* --- checking --- */

struct checking {
	struct disk_check check; /* first */
	char first[160];
};

static void note_first(struct disk_check *check, const struct disk_finding *finding)
{
	struct checking *c = (struct checking *)check;

	if (finding->kind == DISK_ERROR && !c->first[0])
		snprintf(c->first, sizeof(c->first), "%s", finding->text);
}

struct error *check_whole(int fd, const char *name, const char *format)
{
	struct checking c = {.check = {.name = name, .format = format, .report = note_first}};

	TRY(error_wrap(disk_check(fd, &c.check), "%s is damaged", name));
	return c.check.errors ? error_new(0, "%s is damaged: %s", name, c.first) : NULL;
}

/* --- host.toml --- */

struct error *host_config_check(const char *what, const char *text, size_t len)
{
	struct hostconfig *config = NULL;
	struct hostconfig_problems problems = {};
	char more[64] = "";

	TRY(hostconfig_read(text, len, &config, &problems));
	hostconfig_free(config);
	if (problems.count == 0)
		return NULL;
	const struct hostconfig_problem *first = &problems.list[0];
	if (problems.count + problems.more > 1)
		snprintf(more, sizeof(more), " (and %zu mistakes more)", problems.count + problems.more - 1);
	struct error *err = error_new(0, "%s, line %u: %s%s", what, first->line, first->message, more);
	return first->hint[0] ? error_hint(err, "%s", first->hint) : err;
}

struct error *host_config_read(const char *path, char **text, size_t *len)
{
	TRY(read_file(path, HOST_CONFIG_MAX, text, len));
	struct error *err = host_config_check(path, *text, *len);
	if (err) {
		free(*text);
		*text = NULL;
	}
	return err;
}
