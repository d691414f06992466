/*
 * The recorder of commands; see record.h. Touches the files that the command opens, and those of the folder that it
 * rebuilds.
 */
#include "record.h"

#include "medium.h"

#include "cli/disk.h"
#include "disk/ring.h"

#include "base/util.h"
#include "tests/faults/must.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 16u

/* One event is of a file, or of names: a file without a name before (made), or without one afterwards (removed). */
enum event_kind { OF_FILE, MADE, REMOVED, RENAMED, FOLDER_FLUSH };

struct event {
	enum event_kind kind;
	unsigned file; /* that it is of; RENAMED: whose name this becomes */
	char name[64];
};

struct file {
	struct medium *medium;
	dev_t dev;
	ino_t ino; /* 0: it is gone, and its number may be another's */
	char name[64];
	bool at_first;
};

static struct {
	bool on;
	char folder[PATH_MAX];
	uint64_t random;
	unsigned swallow;
	struct file files[FILES_MAX];
	unsigned file_count;
	struct event *events;
	unsigned count;
	unsigned *flushes;
	unsigned flush_count;
} rec;

static void *grown(void *array, size_t count, size_t size)
{
	void *p = reallocarray(array, count, size);

	must(p != NULL, "memory");
	return p;
}

static const char *base_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static void copy_name(char to[64], const char *path)
{
	must((size_t)snprintf(to, 64, "%s", base_of(path)) < 64, path);
}

static void event(enum event_kind kind, unsigned file, const char *path)
{
	rec.events = grown(rec.events, rec.count + 1, sizeof(*rec.events));
	struct event *e = &rec.events[rec.count++];
	*e = (struct event){.kind = kind, .file = file};
	copy_name(e->name, path);
}

/* --- files --- */

static unsigned add_file(int fd, const struct stat *st, const char *path)
{
	struct file *f = &rec.files[rec.file_count];

	must(rec.file_count < FILES_MAX, "too many files");
	*f = (struct file){.medium = medium_new(fd), .dev = st->st_dev, .ino = st->st_ino};
	copy_name(f->name, path);
	return rec.file_count++;
}

static unsigned find(const struct stat *st)
{
	unsigned i = 0;

	while (i < rec.file_count && (rec.files[i].dev != st->st_dev || rec.files[i].ino != st->st_ino))
		i++;
	return i;
}

/* The file in @fd; one that is seen for the first time was made just now. */
static unsigned file_of(int fd)
{
	char self[64], path[PATH_MAX];
	struct stat st;

	must(fstat(fd, &st) == 0, "fstat");
	unsigned file = find(&st);
	if (file < rec.file_count)
		return file;
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	ssize_t len = readlink(self, path, sizeof(path) - 1);
	must(len > 0, self);
	path[len] = '\0';
	file = add_file(fd, &st, path);
	event(MADE, file, path);
	return file;
}

static unsigned file_named(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 ? find(&st) : rec.file_count;
}

/* False: it is to be swallowed. */
static bool count_flush(void)
{
	rec.flushes = grown(rec.flushes, rec.flush_count + 1, sizeof(*rec.flushes));
	rec.flushes[rec.flush_count++] = rec.count;
	return !rec.swallow || rec.flush_count < rec.swallow;
}

/* --- operations --- */

enum operation_kind { READV, WRITEV, SYNC, RANGE, POST };

struct operation {
	struct disk_op *op;
	enum operation_kind kind;
	bool begun, recorded;
	int fd, mode, res;
	unsigned file, event;
	struct iovec iov[DISK_IOV_MAX];
	unsigned count;
	uint64_t offset, len;
	struct operation *next;
};

static struct operation *pending; /* of the ring */
static struct disk_io now, later;

static void begin_range(struct operation *o)
{
	o->res = fallocate(o->fd, o->mode, (off_t)o->offset, (off_t)o->len) < 0 ? -errno : 0;
	o->recorded = rec.on && o->res == 0;
	if (!o->recorded)
		return;
	o->file = file_of(o->fd);
	event(OF_FILE, o->file, "");
	o->event = medium_zero(rec.files[o->file].medium, o->offset, o->len, !(o->mode & FALLOC_FL_KEEP_SIZE));
}

static void begin_sync(struct operation *o)
{
	o->res = 0;
	o->recorded = rec.on && count_flush();
	if (!o->recorded)
		return;
	o->file = file_of(o->fd);
	event(OF_FILE, o->file, "");
	o->event = medium_flush(rec.files[o->file].medium);
}

static void begin_write(struct operation *o)
{
	o->recorded = rec.on;
	if (rec.on) {
		o->file = file_of(o->fd);
		event(OF_FILE, o->file, "");
		o->event = medium_write(rec.files[o->file].medium, o->iov, o->count, o->offset);
	}
	o->res = (int)pwritev(o->fd, o->iov, (int)o->count, (off_t)o->offset);
	must(o->res == (int)o->len, "write");
}

static void begin(struct operation *o)
{
	o->begun = true;
	switch (o->kind) {
	case READV:
		o->res = (int)preadv(o->fd, o->iov, (int)o->count, (off_t)o->offset);
		must(o->res >= 0, "read");
		break;
	case WRITEV:
		begin_write(o);
		break;
	case SYNC:
		begin_sync(o);
		break;
	case RANGE:
		begin_range(o);
		break;
	case POST:
		break;
	}
}

static void end(struct operation *o)
{
	struct disk_op *op = o->op;
	int res = o->res;

	if (o->recorded && o->kind == SYNC)
		medium_flushed(rec.files[o->file].medium, o->event);
	else if (o->recorded)
		medium_done(rec.files[o->file].medium, o->event);
	free(o);
	op->done(op, res);
}

static void go(struct disk_io *io, struct operation *o)
{
	if (io == &later) {
		o->next = pending;
		pending = o;
		return;
	}
	begin(o);
	end(o);
}

static struct operation *operation(struct disk_op *op, enum operation_kind kind, unsigned file)
{
	struct operation *o = grown(NULL, 1, sizeof(*o));

	*o = (struct operation){.op = op, .kind = kind, .fd = (int)file};
	return o;
}

static void transfer(struct disk_io *io, struct disk_op *op, enum operation_kind kind, unsigned file,
		     const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct operation *o = operation(op, kind, file);

	must(count <= DISK_IOV_MAX, "buffers");
	memcpy(o->iov, iov, count * sizeof(*iov));
	o->count = count;
	o->offset = offset;
	for (unsigned i = 0; i < count; i++)
		o->len += iov[i].iov_len;
	go(io, o);
}

static void io_readv(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		     uint64_t offset)
{
	transfer(io, op, READV, file, iov, count, offset);
}

static void io_writev(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		      uint64_t offset)
{
	transfer(io, op, WRITEV, file, iov, count, offset);
}

static void io_fdatasync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	go(io, operation(op, SYNC, file));
}

static void io_fallocate(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset, uint64_t len)
{
	struct operation *o = operation(op, RANGE, file);

	o->mode = mode;
	o->offset = offset;
	o->len = len;
	go(io, o);
}

static void io_post(struct disk_io *io, struct disk_op *op)
{
	go(io, operation(op, POST, 0));
}

static struct disk_io now = {io_readv, io_writev, io_fdatasync, io_fallocate, io_post},
		      later = {io_readv, io_writev, io_fdatasync, io_fallocate, io_post};

/* --- in the place of what the command calls --- */

struct disk_io *__wrap_disk_blocking_io(void);
struct error *__wrap_disk_ring_new(struct disk_ring **out);
void __wrap_disk_ring_free(struct disk_ring *ring);
struct disk_io *__wrap_disk_ring_io(struct disk_ring *ring);
void __wrap_disk_ring_serve(struct disk_ring *ring);
int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
struct error *__wrap_sync_folder(const char *path);

struct disk_io *__wrap_disk_blocking_io(void)
{
	return &now;
}

struct error *__wrap_disk_ring_new(struct disk_ring **out)
{
	*out = (struct disk_ring *)&later;
	return NULL;
}

void __wrap_disk_ring_free(struct disk_ring *ring)
{
	must(ring == NULL || pending == NULL, "a ring is freed while operations are under way");
}

struct disk_io *__wrap_disk_ring_io(struct disk_ring *ring)
{
	return (struct disk_io *)ring;
}

/* Takes random operations a step on until one has ended. */
void __wrap_disk_ring_serve(struct disk_ring *ring)
{
	(void)ring;
	for (;;) {
		struct operation **at = &pending;
		unsigned count = 0;
		for (const struct operation *o = pending; o; o = o->next)
			count++;
		must(count > 0, "nothing is under way, and somebody waits");
		for (uint64_t n = random_below(&rec.random, count); n > 0; n--)
			at = &(*at)->next;
		struct operation *o = *at;
		if (!o->begun) {
			begin(o);
			continue;
		}
		*at = o->next;
		end(o);
		return;
	}
}

int __wrap_unlink(const char *path)
{
	unsigned file = rec.on ? file_named(path) : rec.file_count;

	if (__real_unlink(path) < 0)
		return -1;
	if (file < rec.file_count) {
		event(REMOVED, file, path);
		rec.files[file].ino = 0;
	}
	return 0;
}

int __wrap_rename(const char *from, const char *to)
{
	unsigned file = rec.on ? file_named(from) : rec.file_count;
	unsigned old = rec.on ? file_named(to) : rec.file_count;

	if (__real_rename(from, to) < 0)
		return -1;
	if (rec.on) {
		must(file < rec.file_count, "a file that was never written to is renamed");
		event(RENAMED, file, to);
	}
	if (old < rec.file_count)
		rec.files[old].ino = 0;
	return 0;
}

/* Real folders need not be made durable. */
struct error *__wrap_sync_folder(const char *path)
{
	if (rec.on && count_flush())
		event(FOLDER_FLUSH, FILES_MAX, path);
	return NULL;
}

/* --- recording --- */

static void forget(void)
{
	for (unsigned i = 0; i < rec.file_count; i++)
		medium_free(rec.files[i].medium);
	rec.file_count = rec.count = rec.flush_count = 0;
}

void record_begin(const char *folder, uint64_t seed, unsigned swallow)
{
	DIR *dir = opendir(folder);
	struct stat st;

	must(dir != NULL, folder);
	forget();
	for (struct dirent *entry; (entry = readdir(dir));) {
		int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
		must(fd >= 0 && fstat(fd, &st) == 0, entry->d_name);
		if (S_ISREG(st.st_mode))
			rec.files[add_file(fd, &st, entry->d_name)].at_first = true;
		close(fd);
	}
	closedir(dir);
	rec.random = seed;
	rec.swallow = swallow;
	rec.on = true;
}

void record_end(void)
{
	rec.on = false;
}

unsigned record_now(void)
{
	return rec.count;
}

unsigned record_flushes(void)
{
	return rec.flush_count;
}

unsigned record_flush_at(unsigned index)
{
	return rec.flushes[index];
}

unsigned record_next_name(unsigned at)
{
	while (at < rec.count && rec.events[at].kind == OF_FILE)
		at++;
	return at;
}

/* --- rebuilding --- */

static void empty(const char *folder)
{
	DIR *dir = opendir(folder);

	must(dir != NULL, folder);
	for (struct dirent *entry; (entry = readdir(dir));)
		unlinkat(dirfd(dir), entry->d_name, 0);
	closedir(dir);
}

static void save(int from, const char *folder, const char *name)
{
	static uint8_t buffer[1 << 20];
	char path[PATH_MAX + 64];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	must(to >= 0 && fstat(from, &st) == 0 && ftruncate(to, st.st_size) == 0, path);
	for (off_t at = 0; (at = lseek(from, at, SEEK_DATA)) >= 0;) {
		ssize_t n = pread(from, buffer, sizeof(buffer), at);
		must(n > 0 && pwrite(to, buffer, (size_t)n, at) == n, path);
		at += n;
	}
	close(to);
}

/* How many events of names a cut keeps, at least. */
static unsigned names_durable(unsigned cut)
{
	for (unsigned i = cut; i-- > 0;)
		/* Its event is its beginning, and it ends before any other: only a cut right behind it is too early. */
		if (rec.events[i].kind == FOLDER_FLUSH && i + 1 < cut)
			return i;
	return 0;
}

void record_rebuild(unsigned cut, uint64_t luck, const char *folder)
{
	const char *names[FILES_MAX];
	unsigned local[FILES_MAX] = {}, durable = names_durable(cut);
	uint64_t state = luck;
	unsigned kept = luck == 0   ? durable
			: luck <= 2 ? cut
				    : durable + (unsigned)random_below(&state, cut - durable + 1);

	empty(folder);
	for (unsigned i = 0; i < rec.file_count; i++)
		names[i] = rec.files[i].at_first ? rec.files[i].name : NULL;
	for (unsigned i = 0; i < cut; i++) {
		const struct event *e = &rec.events[i];
		if (e->kind == OF_FILE)
			local[e->file]++;
		if (i >= kept || e->kind == OF_FILE || e->kind == FOLDER_FLUSH)
			continue;
		for (unsigned f = 0; f < rec.file_count && e->kind == RENAMED; f++)
			if (names[f] && strcmp(names[f], e->name) == 0)
				names[f] = NULL;
		names[e->file] = e->kind == REMOVED ? NULL : e->name;
	}
	for (unsigned i = 0; i < rec.file_count; i++) {
		if (!names[i])
			continue;
		uint64_t data = luck == 2 ? 0 : luck < 2 ? luck : random_next(&state) | 2;
		int fd = medium_rebuild(rec.files[i].medium, local[i], data);
		save(fd, folder, names[i]);
		close(fd);
	}
}
