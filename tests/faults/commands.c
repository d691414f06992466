/*
 * Power cuts during `glint disk merge` and `compact`: the command runs on a recorder (record.h) over a chain of two
 * images; then every cut's folder is looked at as a person would find it, and the same command is begun anew there.
 *
 *     commands --command merge|compact --format vhd|vhdx [--child] --dir FOLDER [--seed N] [--cuts N] [--seconds N]
 *              [--proof]
 *
 * Cut are: just before, at, and behind each flush, and --cuts random points. --child: compact the child, not the
 * parent. --seconds: more worlds, the next seeds, for so long. --proof: takes all flushes away, then all but the first,
 * and so on, and tells how often a loss was found. The last line printed is JSON. Exits with 1 when something was lost.
 */
#include "medium.h"
#include "record.h"

#include "cli/cli.h"
#include "cli/disk.h"

#include "base/cleanup.h"
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
#include <time.h>
#include <unistd.h>

#define SIZE   (5 * MIB + 512)
#define LARGER (7 * MIB) /* that some children are */

struct job {
	const char *command, *format, *dir;
	bool child, proof;
	unsigned seed, cuts, seconds;
};

struct world {
	const struct job *job;
	char live[PATH_MAX], cut[PATH_MAX];
	char parent[16], image[16]; /* names */
	uint8_t *model;             /* what the child shows */
	uint8_t *below;             /* what the parent does */
	uint64_t random, size;
};

static unsigned checked, worlds;

static char *path_of(const char *folder, const char *name, char path[PATH_MAX])
{
	must(snprintf(path, PATH_MAX, "%s/%s", folder, name) < PATH_MAX, name);
	return path;
}

/* --- images --- */

struct at_once {
	struct disk_request r;
	int res;
};

static void at_once_done(struct disk_request *r, int res)
{
	((struct at_once *)r)->res = res;
}

static int at_once(const struct opened *o, enum disk_request_type type, uint64_t offset, void *data, uint64_t len)
{
	struct disk_queue queue = {.disk = o->disk, .io = disk_blocking_io(), .files = o->files};
	struct iovec iov = {data, len};
	struct at_once a = {
		.r = {.type = type, .offset = offset, .len = len, .iov = &iov, .iov_count = 1, .done = at_once_done},
		.res = -EINPROGRESS};

	disk_submit(&queue, &a.r);
	return a.res;
}

/* Writes here and there, zeroes too, into the image and into @model. */
static void scribble(struct world *w, const char *name, uint8_t *model)
{
	char path[PATH_MAX];
	struct opened o;

	must_be(opened_open(&o, path_of(w->live, name, path), &(struct open_how){}));
	if (model == w->model && w->size > o.info.size)
		must_be(disk_resize(o.disk, w->size));
	disk_info(o.disk, 0, &o.info);
	for (unsigned i = 0; i < 30; i++) {
		uint64_t sectors = o.info.size / 512, at = random_below(&w->random, sectors);
		uint64_t count = MIN(1 + random_below(&w->random, i % 3 ? 16 : 900), sectors - at);
		uint8_t *data = model + at * 512;
		if (i % 5 == 4) {
			memset(data, 0, count * 512);
			must(at_once(&o, DISK_WRITE_ZEROES, at * 512, NULL, count * 512) == 0, "zero");
			continue;
		}
		for (uint64_t b = 0; b < count * 512; b += 8)
			memcpy(data + b, &(uint64_t){random_next(&w->random)}, 8);
		must(at_once(&o, DISK_WRITE, at * 512, data, count * 512) == 0, "write");
	}
	must_be(opened_finish(&o));
}

static void make_image(struct world *w, const char *name, struct disk *parent)
{
	char path[PATH_MAX];
	cleanup_fd int fd = open(path_of(w->live, name, path), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	struct disk_create create = {.name = name,
				     .format = w->job->format,
				     .size = parent ? 0 : SIZE,
				     .block = strcmp(w->job->format, "vhd") == 0 ? 512 * KIB : MIB,
				     .parent = parent,
				     .parent_locator = w->parent};

	must(fd >= 0, path);
	must_be(disk_create(fd, &create));
}

static void make_chain(struct world *w)
{
	char path[PATH_MAX];
	struct opened parent;

	make_image(w, w->parent, NULL);
	scribble(w, w->parent, w->below);
	memcpy(w->model, w->below, LARGER);
	must_be(opened_open(&parent, path_of(w->live, w->parent, path),
			    &(struct open_how){.readonly = true, .idle = true}));
	make_image(w, "child", parent.disk);
	opened_close(&parent);
	scribble(w, "child", w->model);
}

/* --- the command --- */

static struct error *run_command(const struct job *job, char *path)
{
	FILE *told = stdout;
	const struct command *const *c = commands;
	char *argv[] = {(char[]){"glint"}, NULL, path, (char[]){"--quiet"}};
	char word[32];
	int status = 0;

	while (strcmp((*c)->name, job->command) != 0)
		c++;
	snprintf(word, sizeof(word), "--%s", (*c)->options[0].name);
	argv[1] = word;
	cleanup_free void *args = calloc(1, (*c)->bytes);
	must(args != NULL, "memory");
	TRY(option_arguments((*c)->options, (int)ARRAY_SIZE(argv), argv, args));
	stdout = fopen("/dev/null", "w");
	must(stdout != NULL, "/dev/null");
	struct error *err = (*c)->run(args, &status);
	fclose(stdout);
	stdout = told;
	return err;
}

static void remove_all(const char *folder)
{
	DIR *dir = opendir(folder);

	must(dir != NULL, folder);
	for (struct dirent *entry; (entry = readdir(dir));)
		unlinkat(dirfd(dir), entry->d_name, 0);
	closedir(dir);
}

static void world_begin(struct world *w, const struct job *job, unsigned swallow)
{
	char path[PATH_MAX];

	*w = (struct world){.job = job, .random = job->seed, .parent = "parent"};
	strcpy(w->image, job->child || strcmp(job->command, "merge") == 0 ? "child" : "parent");
	path_of(job->dir, "live", w->live);
	path_of(job->dir, "cut", w->cut);
	must((mkdir(w->live, 0700) == 0 || errno == EEXIST) && (mkdir(w->cut, 0700) == 0 || errno == EEXIST), job->dir);
	remove_all(w->live);
	w->size = random_below(&w->random, 2) ? LARGER : SIZE;
	w->model = calloc(2, LARGER);
	must(w->model != NULL, "memory");
	w->below = w->model + LARGER;
	make_chain(w);
	record_begin(w->live, job->seed, swallow);
	must_be(run_command(job, path_of(w->live, w->image, path)));
	record_end();
}

static void world_end(struct world *w)
{
	free(w->model);
	worlds++;
}

/* --- after the cut --- */

static char *words_of(struct error *err)
{
	char *text = err ? strdup(error_text(err)) : NULL;

	error_free(err);
	return text;
}

/* What is wrong with the image's contents. */
static char *compare(struct world *w, const char *name, const uint8_t *model, uint64_t size)
{
	static uint8_t data[LARGER];
	char path[PATH_MAX], *text = NULL;
	struct opened o;
	struct error *err = opened_open(&o, path_of(w->cut, name, path), &(struct open_how){.readonly = true});

	if (err)
		return words_of(err);
	int res = o.info.size == size ? at_once(&o, DISK_READ, 0, data, size) : -ERANGE;
	if (res < 0 || memcmp(data, model, size) != 0)
		must(asprintf(&text, "%s %s", name, res < 0 ? strerror(-res) : "does not hold what it held") > 0, name);
	opened_close(&o);
	return text;
}

/* As whoever writes to it next: its log is replayed. */
static char *recover(struct world *w, const char *name)
{
	char path[PATH_MAX];
	struct opened o;
	struct error *err =
		opened_open(&o, path_of(w->cut, name, path), &(struct open_how){.alone = true, .keep_data_id = true});

	return words_of(err ? err : opened_finish(&o));
}

static char *check_merge(struct world *w)
{
	char path[PATH_MAX], *what = recover(w, "parent");

	if (!what && access(path_of(w->cut, "child", path), F_OK) == 0) {
		what = compare(w, "child", w->model, w->size);
		if (!what)
			what = words_of(run_command(w->job, path));
	}
	return what ? what : compare(w, "parent", w->model, w->size);
}

static char *check_compact(struct world *w)
{
	const uint8_t *model = w->job->child ? w->model : w->below;
	uint64_t size = w->job->child ? w->size : SIZE;
	char path[PATH_MAX], part[32], *what = compare(w, w->image, model, size);

	if (!what)
		what = words_of(run_command(w->job, path_of(w->cut, w->image, path)));
	if (!what)
		what = compare(w, w->image, model, size);
	snprintf(part, sizeof(part), "%s.compact", w->image);
	if (!what && access(path_of(w->cut, part, path), F_OK) == 0)
		what = strdup("what a cut left is still there");
	/* The parent that a child was made of is still it. */
	return what || w->job->child ? what : compare(w, "child", w->model, w->size);
}

static char *check(struct world *w, unsigned cut, uint64_t luck)
{
	checked++;
	record_rebuild(cut, luck, w->cut);
	return strcmp(w->job->command, "merge") == 0 ? check_merge(w) : check_compact(w);
}

static bool good(struct world *w, unsigned cut, uint64_t luck)
{
	char *what = check(w, cut, luck);

	if (what)
		printf("cut at event %u of %u, luck %llu, world %u: %s\n", cut, record_now(), (unsigned long long)luck,
		       w->job->seed, what);
	free(what);
	return !what;
}

/* --- many cuts --- */

static unsigned cut_world(const struct job *job)
{
	struct world w;
	unsigned bad = 0;

	world_begin(&w, job, 0);
	for (unsigned i = 0; i < record_flushes() && bad < 5; i++)
		for (unsigned cut = record_flush_at(i); cut <= MIN(record_flush_at(i) + 2, record_now()); cut++)
			for (uint64_t luck = 0; luck < 4; luck++)
				bad += !good(&w, cut, luck < 3 ? luck : random_next(&w.random) | 4);
	for (unsigned i = 0; i < job->cuts && bad < 5; i++)
		bad += !good(&w, (unsigned)random_below(&w.random, record_now() + 1), random_next(&w.random) | 4);
	world_end(&w);
	return bad;
}

/* For how many flushes a loss is found when it and all behind it are taken away. */
static void prove(const struct job *job)
{
	unsigned flushes = 1, found = 0;

	for (unsigned n = 1; n <= flushes; n++) {
		struct world w;
		char *what = NULL;
		world_begin(&w, job, n);
		flushes = record_flushes();
		/* A file that was written in vain shows when something else was removed or replaced for it. */
		for (unsigned at = 0; (at = record_next_name(at)) < record_now() && !what; at++)
			for (uint64_t luck = 0; luck < 8 && !what; luck++)
				what = check(&w, MIN(at + 1 + (unsigned)luck % 2, record_now()),
					     luck < 3 ? luck : random_next(&w.random) | 4);
		if (what)
			printf("without flush %u of %u: %s\n", n, flushes, what);
		found += what != NULL;
		free(what);
		world_end(&w);
	}
	printf("{\"flushes\": %u, \"found\": %u, \"cuts\": %u}\n", flushes, found, checked);
}

static const struct option options[] = {
	{"command", OPTION_TEXT, offsetof(struct job, command), .min = 1},
	{"format", OPTION_TEXT, offsetof(struct job, format), .min = 1},
	{"dir", OPTION_TEXT, offsetof(struct job, dir), .min = 1},
	{"child", OPTION_FLAG, offsetof(struct job, child)},
	{"proof", OPTION_FLAG, offsetof(struct job, proof)},
	{"seed", OPTION_NUMBER, offsetof(struct job, seed), .max = UINT32_MAX},
	{"cuts", OPTION_NUMBER, offsetof(struct job, cuts), .max = 1000000},
	{"seconds", OPTION_NUMBER, offsetof(struct job, seconds), .max = 1000000},
	{NULL},
};

int main(int argc, char **argv)
{
	struct job job = {.command = "merge", .format = "vhdx"};
	time_t began = time(NULL);
	unsigned bad;

	must_be(option_arguments(options, argc, argv, &job));
	must(job.dir != NULL, "--dir");
	if (job.proof) {
		prove(&job);
		return 0;
	}
	do {
		bad = cut_world(&job);
		job.seed++;
	} while (!bad && time(NULL) - began < (time_t)job.seconds);
	printf("{\"worlds\": %u, \"cuts\": %u, \"bad\": %u}\n", worlds, checked, bad);
	return bad ? 1 : 0;
}
