/*
 * What the commands of `glint disk` share; see disk.h. Touches the files that the command names, and the parents that
 * images name below one folder.
 */
#include "cli/disk.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* --- parents --- */

/* Resolves "." and ".." of a relative path in place, by its words alone. False when it leads out. */
static bool normalize(char *path)
{
	char *to = path;

	for (char *part = path, *next; part; part = next) {
		next = strchr(part, '/');
		size_t len = next ? (size_t)(next++ - part) : strlen(part);
		if (len == 0 || (len == 1 && part[0] == '.'))
			continue;
		if (len == 2 && part[0] == '.' && part[1] == '.') {
			if (to == path)
				return false;
			char *slash = memrchr(path, '/', (size_t)(to - path));
			to = slash ? slash : path;
			continue;
		}
		if (to > path)
			*to++ = '/';
		memmove(to, part, len);
		to += len;
	}
	*to = '\0';
	return true;
}

/* In a pool: a relative locator is of the image's folder, an absolute one must lie in the pool. Else as it is. */
static struct error *open_parent(struct opener *self, const char *locator, int flags, int *fd)
{
	struct pool *pool = (struct pool *)self;
	struct opener *below = &pool->below.opener;
	char path[PATH_MAX];

	if (!pool->root)
		return below->open(below, locator, flags, fd);
	size_t root = strlen(pool->root);
	if (locator[0] == '/' && strncmp(locator, pool->root, root) == 0 && locator[root] == '/')
		return below->open(below, locator + root + 1, flags, fd);
	int len = snprintf(path, sizeof(path), "%s/%s", pool->folder, locator);
	if (locator[0] != '/' && len < (int)sizeof(path) && normalize(path)) {
		struct error *err = below->open(below, path, flags, fd);
		if (!err || error_errno(err) != ENOENT)
			return err;
		error_free(err);
	}
	return below->open(below, locator, flags, fd);
}

/* The folder of @path as people write it. */
static char *folder_of(const char *path)
{
	char *copy = strdup(path), *folder = copy ? strdup(dirname(copy)) : NULL;

	free(copy);
	return folder;
}

static struct error *pool_open(struct pool *pool, const char *path, const char *root)
{
	cleanup_free char *folder = folder_of(path), *real = folder ? realpath(folder, NULL) : NULL;

	*pool = (struct pool){.opener.open = open_parent, .dir_fd = -1};
	if (!real)
		return error_new(errno, "look at the folder of %s", path);
	if (root) {
		pool->root = realpath(root, NULL);
		if (!pool->root)
			return error_new(errno, "look at the pool %s", root);
		size_t len = strlen(pool->root);
		if (strncmp(real, pool->root, len) != 0 || (real[len] && real[len] != '/' && len > 1))
			return error_hint(error_new(EXDEV, "%s does not lie in the pool %s", path, root),
					  "name a folder that holds the image and its parents");
		pool->folder = strdup(real + len);
		if (!pool->folder)
			return error_new(ENOMEM, "look at %s", path);
	}
	pool->dir_fd = open(root ? root : folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (pool->dir_fd < 0)
		return error_new(errno, "open the folder %s", root ? root : folder);
	opener_dir_init(&pool->below, pool->dir_fd);
	return NULL;
}

static void pool_close(struct pool *pool)
{
	if (pool->opener.open)
		close_fd(&pool->dir_fd);
	free(pool->root);
	free(pool->folder);
	*pool = (struct pool){};
}

/* --- disks --- */

static struct error *open_disk(struct opened *o, const char *path, const struct open_how *how)
{
	struct disk_options options = {
		.name = path,
		.format = how->format,
		.readonly = how->readonly,
		.opener = &o->pool.opener,
		.alone = how->alone,
		.keep_data_id = how->keep_data_id,
	};

	TRY(pool_open(&o->pool, path, how->pool));
	int flags = (how->readonly ? O_RDONLY : O_RDWR) | (how->direct ? O_DIRECT : 0);
	cleanup_fd int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_new(errno, "open %s", path);
	TRY(disk_open(&o->disk, fd, &options));
	steal_fd(&fd);
	if (!how->idle)
		TRY(disk_activate(o->disk));
	disk_info(o->disk, 0, &o->info);
	for (unsigned i = 0; i < disk_depth(o->disk); i++)
		o->files[i] = (unsigned)disk_fd(o->disk, i);
	return NULL;
}

struct error *opened_open(struct opened *o, const char *path, const struct open_how *how)
{
	*o = (struct opened){};
	struct error *err = open_disk(o, path, how);
	if (!err)
		return NULL;
	opened_close(o);
	if (!how->direct)
		return err;
	/* Not of this format, or not on this file system. */
	error_free(err);
	struct open_how buffered = *how;
	buffered.direct = false;
	return opened_open(o, path, &buffered);
}

struct error *opened_finish(struct opened *o)
{
	struct error *err = disk_deactivate(o->disk);

	opened_close(o);
	return err;
}

void opened_close(struct opened *o)
{
	disk_close(o->disk);
	pool_close(&o->pool);
	o->disk = NULL;
}

/* --- new files --- */

static struct error *exists(const char *path)
{
	return error_hint(error_new(EEXIST, "make %s", path),
			  "nothing is overwritten: remove it, or take another name");
}

struct error *must_be_new(const char *path)
{
	struct stat st;

	if (lstat(path, &st) == 0)
		return exists(path);
	return errno == ENOENT ? NULL : error_new(errno, "make %s", path);
}

struct error *new_file_begin(struct new_file *file, const char *path)
{
	cleanup_free char *folder = folder_of(path);

	*file = (struct new_file){.path = path, .fd = -1};
	TRY(must_be_new(path));
	file->fd = folder ? open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
	if (file->fd >= 0)
		return NULL;
	file->fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	if (file->fd < 0)
		return errno == EEXIST ? exists(path) : error_new(errno, "make %s", path);
	file->named = true;
	return NULL;
}

struct error *new_file_commit(struct new_file *file)
{
	char self[64];

	if (!file->named) {
		snprintf(self, sizeof(self), "/proc/self/fd/%d", file->fd);
		if (linkat(AT_FDCWD, self, AT_FDCWD, file->path, AT_SYMLINK_FOLLOW) < 0)
			return errno == EEXIST ? exists(file->path) : error_new(errno, "make %s", file->path);
	}
	file->named = false;
	return sync_folder(file->path);
}

void new_file_close(struct new_file *file)
{
	if (file->fd >= 0 && file->named)
		unlink(file->path);
	close_fd(&file->fd);
}

struct error *sync_folder(const char *path)
{
	cleanup_free char *folder = folder_of(path);
	cleanup_fd int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	/* A file system that cannot do this for folders has nothing to be asked for. */
	if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
		return error_new(errno, "make the folder of %s durable", path);
	return NULL;
}

char *path_with(const char *path, const char *end)
{
	char *whole;

	return asprintf(&whole, "%s%s", path, end) < 0 ? NULL : whole;
}

/* --- formats --- */

const struct option_choice format_choices[] = {
	{"raw", FORMAT_RAW}, {"vhd", FORMAT_VHD}, {"vhdx", FORMAT_VHDX}, {NULL, 0}};
const struct option_choice subformat_choices[] = {
	{"fixed", SUBFORMAT_FIXED}, {"dynamic", SUBFORMAT_DYNAMIC}, {NULL, 0}};

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n > m && strcasecmp(text + n - m, end) == 0;
}

struct error *format_name(int choice, const char *path, const char **name)
{
	static const struct {
		const char *end;
		int format;
	} ends[] = {{".raw", FORMAT_RAW},   {".img", FORMAT_RAW},  {".vhd", FORMAT_VHD},   {".vpc", FORMAT_VHD},
		    {".vhdx", FORMAT_VHDX}, {".avhd", FORMAT_VHD}, {".avhdx", FORMAT_VHDX}};

	for (size_t i = 0; choice == FORMAT_GUESS && i < ARRAY_SIZE(ends); i++)
		if (ends_with(path, ends[i].end))
			choice = ends[i].format;
	if (choice == FORMAT_GUESS)
		return error_hint(error_new(EINVAL, "%s: its name does not say which format it is to have", path),
				  "give --format raw, vhd or vhdx, or a name that ends in .raw, .vhd or .vhdx");
	for (size_t i = 0; format_choices[i].name; i++)
		if (format_choices[i].value == choice)
			*name = format_choices[i].name;
	return NULL;
}

const char *subformat_name(int choice)
{
	return choice == SUBFORMAT_FIXED ? "fixed" : choice == SUBFORMAT_DYNAMIC ? "dynamic" : NULL;
}

/* --- people --- */

const char *id_text(const struct disk_info *info, const uint8_t id[16], char text[40])
{
	static const uint8_t mixed[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}, none[16];
	bool little = strcmp(info->format, "vhdx") == 0;
	size_t at = 0;

	text[0] = '\0';
	for (unsigned i = 0; i < 16 && memcmp(id, none, 16) != 0; i++)
		at += (size_t)snprintf(text + at, 40 - at, "%02x%s", id[little ? mixed[i] : i],
				       i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
	return text;
}

const char *bytes_text(uint64_t bytes, char text[32])
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
	unsigned unit = 0;
	double value = (double)bytes;

	for (; value >= 1024 && unit < ARRAY_SIZE(units) - 1; unit++)
		value /= 1024;
	snprintf(text, 32, "%.*f %s", unit && value != (double)(uint64_t)value ? 1 : 0, value, units[unit]);
	return text;
}

struct error *print_json(json_t *json)
{
	bool good = json && json_dumpf(json, stdout, JSON_INDENT(1)) == 0 && putchar('\n') != EOF;

	json_decref(json);
	return good ? NULL : error_new(json ? EIO : ENOMEM, "print JSON");
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

#define BAR           40
#define SHOW_EVERY_NS 200000000ull

void progress_begin(struct progress *p, const char *what, uint64_t total)
{
	*p = (struct progress){.what = what, .total = MAX(total, (uint64_t)1), .on = isatty(STDERR_FILENO)};
}

void progress_at(struct progress *p, uint64_t done)
{
	static const char bar[] = "========================================";

	p->done = done;
	if (!p->on || now_ns() - p->shown_ns < SHOW_EVERY_NS)
		return;
	p->shown_ns = now_ns();
	p->shown = true;
	int filled = (int)((double)done / (double)p->total * BAR);
	fprintf(stderr, "\r%s [%-*.*s] %3d%%", p->what, BAR, filled, bar, (int)((double)done / (double)p->total * 100));
}

void progress_end(struct progress *p)
{
	if (p->shown)
		fprintf(stderr, "\r%*s\r", (int)strlen(p->what) + BAR + 10, "");
	p->shown = false;
}
