/*
 * Power cuts while a stick is updated: a stick in memory gets one update after the other, each as a host does it (the
 * other slot removed, contents, read back, name; glint/update.efi removed; blessed), on a recorded medium (medium.h)
 * that is then cut at every flush and at random points, each in several ways. What is left must have, at every moment:
 *
 *   - the slot that was good before, bit for bit, under its name;
 *   - no slot that is not whole;
 *   - host.toml, and update.efi whole or gone;
 *   - the use as before: the update is made again, and goes through.
 *
 *     update_cuts [--seed N] [--updates N] [--cuts N] [--seconds N] [--keep FOLDER] [--proof]
 *
 * --cuts: so many random ones besides those at flushes. --seconds: goes on with more worlds, the next seeds. --keep:
 * puts some of what was left there, for other programs to look at. --proof: takes each flush away in turn instead, and
 * tells for how many of them a failure was found. The last line printed is JSON. Exits with 1 when a cut lost
 * something.
 */
#include "medium.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "update/update.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ESP_BYTES  (40 * MIB)
#define SLOT_LEAST (100 * KIB)
#define SLOT_MORE  (900 * KIB)
#define STAGES_MAX 64u
#define KEPT_MAX   40u
#define DROPPED    "glint/update.efi"
#define CONFIG     "# a host\n"

enum kind { UPDATE, REMOVE_DROPPED, BLESS, COPY, KINDS };

/* What was under way from the event @from to the event @to: the slot @good had to stay, with its counter when @trial.
 */
struct stage {
	enum kind kind;
	unsigned from, to, version, good;
	bool trial;
};

struct file {
	struct blocks blocks; /* first */
	int fd;
	struct medium *medium; /* NULL: not recorded */
};

struct world {
	struct file stick;
	uint64_t seed, random;
	unsigned count;
	struct stage stages[STAGES_MAX];
};

static const struct job {
	uint64_t seed;
	unsigned updates, cuts, seconds;
	const char *keep;
	bool proof;
} defaults = {.updates = 3};

static unsigned kept, checked;

static void must(struct error *err)
{
	if (!err)
		return;
	fprintf(stderr, "%s\n", error_text(err));
	abort();
}

/* --- media --- */

static int file_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	return pread(((const struct file *)m)->fd, data, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
}

static int file_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	const struct file *f = (const struct file *)m;
	struct iovec iov = {(void *)(uintptr_t)data, len};

	if (!f->medium)
		return pwrite(f->fd, data, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
	medium_done(f->medium, medium_write(f->medium, &iov, 1, offset));
	return 0;
}

static int file_flush(const struct blocks *m)
{
	const struct file *f = (const struct file *)m;

	if (f->medium)
		medium_flushed(f->medium, medium_flush(f->medium));
	return 0;
}

static struct file file_on(int fd, struct medium *medium)
{
	return (struct file){{file_read, file_write, file_flush, ESP_BYTES, "the stick"}, fd, medium};
}

/* --- contents --- */

static size_t slot_len(const struct world *w, unsigned version)
{
	uint64_t state = w->seed * 1000 + version;

	return SLOT_LEAST + random_below(&state, SLOT_MORE);
}

/* Those of version 1.@version; the caller's. */
static uint8_t *slot_data(const struct world *w, unsigned version)
{
	size_t len = slot_len(w, version);
	uint8_t *data = malloc(len + 8);
	uint64_t state = w->seed * 77 + version;

	if (!data)
		abort();
	for (size_t at = 0; at < len; at += 8) {
		uint64_t word = random_next(&state);
		memcpy(data + at, &word, 8);
	}
	return data;
}

static bool is_version(const struct world *w, unsigned version, const void *data, size_t len)
{
	cleanup_free uint8_t *wanted = slot_data(w, version);

	return len == slot_len(w, version) && memcmp(data, wanted, len) == 0;
}

/* --- the world --- */

static struct stage *begin(struct world *w, enum kind kind, unsigned version, unsigned good, bool trial)
{
	struct stage *s = &w->stages[w->count++];

	if (w->count > STAGES_MAX)
		abort();
	*s = (struct stage){kind, medium_now(w->stick.medium), 0, version, good, trial};
	return s;
}

static void end(struct world *w, struct stage *s)
{
	s->to = medium_now(w->stick.medium);
}

/* As glint-update does it. */
static struct error *update(const struct world *w, struct fat *fat, unsigned version)
{
	cleanup_free uint8_t *data = slot_data(w, version);
	struct release running = {};
	char image[64];

	snprintf(running.version, sizeof(running.version), "1.%u", version - 1);
	snprintf(image, sizeof(image), "\\EFI\\Linux\\glint_1.%u+1-0.efi", version - 1);
	struct update u = {
		.data = data, .len = slot_len(w, version), .what = "it", .running = &running, .image = image};
	snprintf(u.release.version, sizeof(u.release.version), "1.%u", version);
	return update_write(&u, fat);
}

static void bless(struct fat *fat, unsigned version)
{
	struct slots slots;
	char image[64];

	snprintf(image, sizeof(image), "glint_1.%u.efi", version);
	must(slots_list(fat, &slots));
	must(slots_bless(fat, slots_named(&slots, image)));
}

/* Of a new stick: slot 1.1, good; and 1.0, which another system wrote beside it. */
static void make(struct world *w)
{
	int fd = memfd_create("stick", MFD_CLOEXEC);
	struct file f = file_on(fd, NULL);
	struct fat *fat;

	if (fd < 0 || ftruncate(fd, ESP_BYTES) < 0)
		abort();
	must(fat_format(&fat, &f.blocks, 0, ESP_BYTES, 1, 0));
	must(fat_make_folder(fat, "EFI"));
	must(fat_make_folder(fat, SLOTS_PATH));
	must(fat_make_folder(fat, "glint"));
	must(fat_put(fat, "glint/host.toml", CONFIG, strlen(CONFIG)));
	for (unsigned version = 0; version < 2; version++) {
		cleanup_free uint8_t *data = slot_data(w, version);
		char path[64];
		snprintf(path, sizeof(path), SLOTS_PATH "/glint_1.%u.efi", version);
		must(fat_put(fat, path, data, slot_len(w, version)));
	}
	fat_close(fat);
	w->stick = file_on(-1, medium_new(fd));
	w->stick.fd = medium_fd(w->stick.medium);
	close(fd);
}

static void step(struct world *w, unsigned version)
{
	cleanup_free uint8_t *data = slot_data(w, version);
	struct fat *fat;

	/* Each by a host that was started anew. */
	must(fat_open(&fat, &w->stick.blocks, 0, ESP_BYTES, 0));
	struct stage *s = begin(w, COPY, version, version - 1, false);
	must(fat_put(fat, DROPPED, data, slot_len(w, version)));
	end(w, s);
	fat_close(fat);
	must(fat_open(&fat, &w->stick.blocks, 0, ESP_BYTES, 0));
	s = begin(w, UPDATE, version, version - 1, false);
	must(update(w, fat, version));
	end(w, s);
	s = begin(w, REMOVE_DROPPED, version, version - 1, false);
	must(fat_remove(fat, DROPPED));
	end(w, s);
	fat_close(fat);
	must(fat_open(&fat, &w->stick.blocks, 0, ESP_BYTES, 0));
	s = begin(w, BLESS, version, version - 1, false);
	bless(fat, version);
	end(w, s);
	fat_close(fat);
}

static void run(struct world *w, uint64_t seed, unsigned updates, unsigned swallow)
{
	*w = (struct world){.seed = seed, .random = ~seed};
	make(w);
	medium_swallow(w->stick.medium, swallow);
	for (unsigned version = 2; version < 2 + updates; version++)
		step(w, version);
}

/* --- looking at what is left --- */

struct left {
	const struct world *w;
	struct fat *fat;
	uint64_t versions; /* whole: a bit for each */
	unsigned slots;
	bool named_good, named_new; /* both without a counter */
	const struct stage *stage;
	char what[200];
};

static void complain(struct left *l, const char *what, const char *name)
{
	if (!l->what[0])
		snprintf(l->what, sizeof(l->what), "%s: %.100s", what, name);
}

static struct error *each(void *arg, const struct fat_entry *e)
{
	struct left *l = arg;
	cleanup_free char *data = NULL;
	char path[300], good[64];
	unsigned found = 0;
	size_t len = 0;

	snprintf(path, sizeof(path), SLOTS_PATH "/%s", e->name);
	struct error *err = fat_read(l->fat, path, 4 * MIB, &data, &len);
	if (err) {
		complain(l, "a slot cannot be read", e->name);
		error_free(err);
		return NULL;
	}
	for (unsigned version = 0; version < 2 + STAGES_MAX; version++)
		if (len == slot_len(l->w, version) && is_version(l->w, version, data, len)) {
			if (l->versions & (uint64_t)1 << version % 64)
				complain(l, "a slot is there twice", e->name);
			l->versions |= (uint64_t)1 << version % 64;
			found++;
		}
	if (!found)
		complain(l, "a slot is not whole", e->name);
	snprintf(good, sizeof(good), "glint_1.%u.efi", l->stage->good);
	l->named_good = l->named_good || strcmp(e->name, good) == 0;
	snprintf(good, sizeof(good), "glint_1.%u.efi", l->stage->version);
	l->named_new = l->named_new || strcmp(e->name, good) == 0;
	l->slots++;
	return NULL;
}

static void look_at_files(struct left *l)
{
	cleanup_free char *config = NULL, *dropped = NULL;
	size_t len = 0;

	struct error *err = fat_read(l->fat, "glint/host.toml", 4096, &config, &len);
	if (err || strcmp(config, CONFIG) != 0)
		complain(l, "host.toml is lost", "");
	error_free(err);
	err = fat_read(l->fat, DROPPED, 4 * MIB, &dropped, &len);
	if (err && error_errno(err) != ENOENT)
		complain(l, "update.efi cannot be read", error_text(err));
	if (!err && !is_version(l->w, l->stage->version, dropped, len))
		complain(l, "update.efi is not whole", "");
	error_free(err);
}

static bool has(const struct left *l, unsigned version)
{
	return l->versions & (uint64_t)1 << version % 64;
}

/* The host starts from the good slot, and takes the update again. */
static void go_on(struct left *l)
{
	const struct stage *s = l->stage;

	if (s->kind == BLESS || has(l, s->version))
		return;
	struct error *err = update(l->w, l->fat, s->version);
	if (err)
		complain(l, "the update cannot be made again", error_text(err));
	error_free(err);
	*l = (struct left){.w = l->w, .fat = l->fat, .stage = s, .what = ""};
	must(fat_list(l->fat, SLOTS_PATH, each, l));
	if (!l->what[0] && !(has(l, s->version) && has(l, s->good) && l->slots == 2))
		complain(l, "the update was made again, and something is missing", "");
}

/* What is wrong with a stick cut at @cut; NULL: nothing. To be freed. */
static char *check(const struct world *w, unsigned cut, uint64_t luck)
{
	int fd = medium_rebuild(w->stick.medium, cut, luck);
	struct file f = file_on(fd, NULL);
	struct left l = {.w = w, .stage = w->stages};
	bool over = false;

	checked++;
	for (unsigned i = 1; i < w->count && w->stages[i].from < cut; i++)
		l.stage = &w->stages[i];
	over = cut >= l.stage->to;
	struct error *err = fat_open(&l.fat, &f.blocks, 0, ESP_BYTES, 0);
	if (err) {
		complain(&l, "the file system cannot be opened", error_text(err));
	} else {
		err = fat_list(l.fat, SLOTS_PATH, each, &l);
		if (err)
			complain(&l, "the slots cannot be listed", error_text(err));
		const struct stage *s = l.stage;
		if (!l.named_good || !has(&l, s->good))
			complain(&l, "the slot that was good is lost", "");
		if ((s->kind > UPDATE && s->kind != COPY && !has(&l, s->version)) ||
		    (s->kind == UPDATE && over && !has(&l, s->version)))
			complain(&l, "the new slot is lost", "");
		if (s->kind == BLESS && over && !l.named_new)
			complain(&l, "the new slot is not blessed", "");
		look_at_files(&l);
		if (!l.what[0])
			go_on(&l);
		fat_close(l.fat);
	}
	error_free(err);
	close(fd);
	return l.what[0] ? strdup(l.what) : NULL;
}

/* --- cuts --- */

static void keep(const struct job *job, const struct world *w, unsigned cut, uint64_t luck)
{
	char path[4096];

	if (!job->keep || kept >= KEPT_MAX)
		return;
	snprintf(path, sizeof(path), "%s/%u.img", job->keep, kept++);
	medium_keep(w->stick.medium, cut, luck, path);
}

static bool good(const struct job *job, const struct world *w, unsigned cut, uint64_t luck)
{
	char *what = check(w, cut, luck);

	if (checked % 7 == 0)
		keep(job, w, cut, luck);
	if (!what)
		return true;
	printf("cut at event %u of %u, luck %llu, world %llu: %s\n", cut, medium_now(w->stick.medium),
	       (unsigned long long)luck, (unsigned long long)w->seed, what);
	free(what);
	return false;
}

static unsigned cut_world(const struct job *job, uint64_t seed, unsigned *events, unsigned *flushes)
{
	unsigned bad = 0;
	struct world w;

	run(&w, seed, job->updates, 0);
	const struct medium *m = w.stick.medium;
	for (unsigned i = 0; i < medium_flushes(m) && bad < 5; i++) {
		unsigned at = medium_flush_event(m, i);
		for (unsigned cut = at; cut <= MIN(at + 2, medium_now(m)); cut++) {
			bad += !good(job, &w, cut, 0) + !good(job, &w, cut, 1);
			bad += !good(job, &w, cut, random_next(&w.random));
		}
	}
	for (unsigned i = 0; i < job->cuts && bad < 5; i++)
		bad += !good(job, &w, (unsigned)random_below(&w.random, medium_now(m) + 1), random_next(&w.random));
	*events += medium_now(m);
	*flushes += medium_flushes(m);
	medium_free(w.stick.medium);
	return bad;
}

/* Whether a cut is found that loses something with flush @index taken away. */
static bool proof_of(const struct job *job, unsigned index)
{
	struct world w;
	char *what = NULL;

	run(&w, job->seed, 1, index + 1);
	const struct medium *m = w.stick.medium;
	unsigned at = medium_flush_event(m, index), last = MIN(at + 4, medium_now(m));

	/* Soon after it: the next one makes up for it. */
	for (unsigned cut = at + 1; cut <= last && !what; cut++)
		for (unsigned i = 0; i < 40 && !what; i++)
			what = check(&w, cut, i < 2 ? i : random_next(&w.random));
	medium_free(w.stick.medium);
	free(what);
	return what != NULL;
}

static void prove(const struct job *job)
{
	unsigned found[KINDS] = {}, flushes[KINDS] = {};
	struct world w;

	run(&w, job->seed, 1, 0);
	for (unsigned i = 0; i < medium_flushes(w.stick.medium); i++) {
		unsigned stage = 0, at = medium_flush_event(w.stick.medium, i);
		while (stage + 1 < w.count && w.stages[stage + 1].from <= at)
			stage++;
		if (w.stages[stage].kind == COPY)
			continue;
		flushes[w.stages[stage].kind]++;
		found[w.stages[stage].kind] += proof_of(job, i);
	}
	medium_free(w.stick.medium);
	printf("{\"update\": {\"flushes\": %u, \"found\": %u}, \"remove\": {\"flushes\": %u, \"found\": %u}, "
	       "\"bless\": {\"flushes\": %u, \"found\": %u}, \"checked\": %u}\n",
	       flushes[UPDATE], found[UPDATE], flushes[REMOVE_DROPPED], found[REMOVE_DROPPED], flushes[BLESS],
	       found[BLESS], checked);
}

static struct job parse(int argc, char **argv)
{
	static const struct option options[] = {{"seed", 1, NULL, 's'},
						{"updates", 1, NULL, 'u'},
						{"cuts", 1, NULL, 'c'},
						{"seconds", 1, NULL, 't'},
						{"keep", 1, NULL, 'k'},
						{"proof", 0, NULL, 'p'},
						{}};
	struct job job = defaults;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) > 0) {
		uint64_t value = 0;
		if (option == '?' ||
		    (strchr("suct", option) && (error_free(parse_size(optarg, "number", &value)), false)))
			exit(2);
		job.seed = option == 's' ? value : job.seed;
		job.updates = option == 'u' ? (unsigned)value : job.updates;
		job.cuts = option == 'c' ? (unsigned)value : job.cuts;
		job.seconds = option == 't' ? (unsigned)value : job.seconds;
		job.keep = option == 'k' ? optarg : job.keep;
		job.proof = job.proof || option == 'p';
	}
	return job;
}

int main(int argc, char **argv)
{
	struct job job = parse(argc, argv);
	unsigned bad = 0, events = 0, flushes = 0, worlds = 0;
	time_t began = time(NULL);

	if (job.proof) {
		prove(&job);
		return 0;
	}
	do {
		bad = cut_world(&job, job.seed + worlds++, &events, &flushes);
	} while (!bad && time(NULL) - began < (time_t)job.seconds);
	printf("{\"worlds\": %u, \"events\": %u, \"flushes\": %u, \"cuts\": %u, \"kept\": %u, \"bad\": %u}\n", worlds,
	       events, flushes, checked, kept, bad);
	return bad ? 1 : 0;
}
