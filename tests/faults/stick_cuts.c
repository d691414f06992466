/*
 * Power cuts of a stick that a machine is to boot from: an update of a whole host on its ESP, and changes that a keeper
 * and a database made in its STATE, each by the code that hosts run, on recorded media (medium.h) that are cut. What is
 * left goes into files.
 *
 *     stick_cuts --esp FILE --update FILE --certificate FILE --state FILE --folder FOLDER [--seed N] [--stage N]
 *
 * --esp: an ESP with a slot that is good. --stage: where its update is cut: 0 the other slot is removed, 1 contents are
 * written, 2 the chain and the name, 3 after its end, 4 it is blessed. --state: the partition of a keeper that has been
 * stopped; what its journal says is written again, with a snapshot in between, and cut anywhere behind the first
 * one. Neither is changed. FOLDER gets esp.img and state.img. Prints as JSON what must be there: whether the new slot
 * ("updated") and how many pieces of the database's file ("acknowledged", of "pieces"). Nothing fails but by abort().
 */
#include "medium.h"
#include "must.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "node/keeper/journal.h"
#include "option/option.h"
#include "update/update.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ITEMS_MAX 4096u

enum stage { REMOVE, CONTENTS, NAME, OVER, BLESS, STAGES };
static const char *const stage_names[STAGES] = {"removal", "contents", "name", "over", "bless"};

struct job {
	const char *esp, *update, *certificate, *state, *folder;
	unsigned seed, stage;
};

#define AT(member) offsetof(struct job, member)

static const struct option options[] = {
	{"esp", OPTION_TEXT, AT(esp), .min = 1},
	{"update", OPTION_TEXT, AT(update), .min = 1},
	{"certificate", OPTION_TEXT, AT(certificate), .min = 1},
	{"state", OPTION_TEXT, AT(state), .min = 1},
	{"folder", OPTION_TEXT, AT(folder), .min = 1},
	{"seed", OPTION_NUMBER, AT(seed), .max = UINT32_MAX},
	{"stage", OPTION_NUMBER, AT(stage), .max = STAGES - 1},
	{NULL},
};

static struct medium *medium_of(const char *path)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

	must(fd >= 0, path);
	return medium_new(fd);
}

static void put(const struct job *job, const char *name, const struct medium *medium, unsigned cut, uint64_t luck)
{
	char path[4096];

	must(snprintf(path, sizeof(path), "%s/%s", job->folder, name) < (int)sizeof(path), name);
	medium_keep(medium, cut, luck, path);
}

/* --- the ESP --- */

struct esp {
	struct blocks blocks; /* first */
	struct medium *medium;
	unsigned begun[STAGES + 1]; /* when each stage was, and when the last one was over */
};

static int esp_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	const struct esp *e = (const struct esp *)m;

	return pread(medium_fd(e->medium), data, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
}

static int esp_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	const struct esp *e = (const struct esp *)m;
	struct iovec iov = {(void *)(uintptr_t)data, len};

	medium_done(e->medium, medium_write(e->medium, &iov, 1, offset));
	return 0;
}

static int esp_flush(const struct blocks *m)
{
	const struct esp *e = (const struct esp *)m;

	medium_flushed(e->medium, medium_flush(e->medium));
	return 0;
}

static void step(void *arg, const char *what)
{
	struct esp *e = arg;

	e->begun[strcmp(what, "write") == 0 ? CONTENTS : NAME] = medium_now(e->medium);
}

static void bless(struct fat *fat, const char *written)
{
	struct slots slots;

	must_be(slots_list(fat, &slots));
	const struct slot *slot = slots_named(&slots, written);
	must(slot != NULL, written);
	must_be(slots_bless(fat, slot));
}

static void record_update(const struct job *job, struct esp *e)
{
	cleanup_free char *data = NULL, *certificate = NULL;
	struct update u = {.what = job->update, .step = step, .arg = e};
	size_t certificate_len;
	struct fat *fat;

	e->medium = medium_of(job->esp);
	off_t size = lseek(medium_fd(e->medium), 0, SEEK_END);
	must(size > 0, job->esp);
	e->blocks = (struct blocks){esp_read, esp_write, esp_flush, (uint64_t)size, job->esp};
	must_be(read_file(job->update, UPDATE_BYTES_MAX, &data, &u.len));
	must_be(read_file(job->certificate, MIB, &certificate, &certificate_len));
	u.data = data;
	must_be(update_check(&u, certificate, certificate_len));
	must_be(fat_open(&fat, &e->blocks, 0, e->blocks.size, 0));
	must_be(update_write(&u, fat));
	must(u.removed[0], "there was no other slot to be removed");
	e->begun[OVER] = e->begun[BLESS] = medium_now(e->medium);
	bless(fat, u.written);
	e->begun[STAGES] = medium_now(e->medium);
	fat_close(fat);
}

/* Says so much of its JSON. */
static void cut_esp(const struct job *job, uint64_t *random)
{
	struct esp e = {};

	record_update(job, &e);
	unsigned from = e.begun[job->stage], to = e.begun[job->stage + 1];
	unsigned cut = from < to ? from + 1 + (unsigned)random_below(random, to - from) : to;
	put(job, "esp.img", e.medium, cut, random_next(random));
	printf("{\"stage\": \"%s\", \"cut\": %u, \"events\": %u, \"updated\": %s, ", stage_names[job->stage], cut,
	       medium_now(e.medium), cut >= e.begun[OVER] ? "true" : "false");
	medium_free(e.medium);
}

/* --- the STATE --- */

/* What the journal that is given says, oldest first. */
struct history {
	struct journal_item items[ITEMS_MAX];
	unsigned count, pieces; /* pieces: those of the database */
};

struct state {
	struct journal_io io; /* first */
	struct medium *medium;
	struct journal *journal;
	unsigned events[ITEMS_MAX]; /* when each item was acknowledged */
};

static struct error *remember(void *arg, const struct journal_item *item)
{
	struct history *h = arg;

	must(h->count < ITEMS_MAX, "the history is longer than this program has room for");
	void *data = malloc(item->len + 1);
	must(data != NULL, "memory");
	memcpy(data, item->data, item->len);
	h->items[h->count++] = (struct journal_item){item->kind, data, item->len};
	h->pieces += item->kind == JOURNAL_DATABASE;
	return NULL;
}

static struct error *pass(void *arg, const struct journal_item *item)
{
	(void)arg;
	(void)item;
	return NULL;
}

static void read_history(const struct job *job, struct history *h, uint8_t writer[16], uint64_t *size)
{
	cleanup_fd int fd = open(job->state, O_RDONLY | O_CLOEXEC);
	struct journal_file file;
	struct journal *journal;
	struct journal_info info;

	must(fd >= 0, job->state);
	must_be(journal_file_init(&file, fd, job->state));
	must_be(journal_open(&journal, &file.io, writer, remember, h));
	journal_info(journal, &info);
	must(info.state == JOURNAL_WHOLE && h->pieces > 1, "the state that is given is no whole one");
	memcpy(writer, info.writer, sizeof(info.writer));
	*size = file.io.size;
	journal_close(journal);
}

static int state_read(const struct journal_io *io, void *data, size_t len, uint64_t offset)
{
	const struct state *s = (const struct state *)io;

	return pread(medium_fd(s->medium), data, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
}

static int state_write(const struct journal_io *io, const void *data, size_t len, uint64_t offset)
{
	const struct state *s = (const struct state *)io;
	struct iovec iov = {(void *)(uintptr_t)data, len};

	medium_done(s->medium, medium_write(s->medium, &iov, 1, offset));
	return 0;
}

static int state_flush(const struct journal_io *io)
{
	const struct state *s = (const struct state *)io;

	medium_flushed(s->medium, medium_flush(s->medium));
	return 0;
}

/* The first @count items, as one state: the pieces in a row, and the last identity. */
static void snapshot(struct state *s, const struct history *h, unsigned count)
{
	struct journal_item items[2] = {{.kind = JOURNAL_DATABASE}, {.kind = JOURNAL_IDENTITY}};
	cleanup_free uint8_t *database = NULL;
	size_t len = 0;

	for (unsigned i = 0; i < count; i++) {
		if (h->items[i].kind == JOURNAL_IDENTITY) {
			items[1] = h->items[i];
			continue;
		}
		uint8_t *more = realloc(database, len + h->items[i].len + 1);
		must(more != NULL, "memory");
		database = more;
		memcpy(database + len, h->items[i].data, h->items[i].len);
		len += h->items[i].len;
	}
	items[0].data = database;
	items[0].len = len;
	must_be(journal_snapshot(s->journal, items, items[1].data ? 2 : 1));
}

/* Up to @first as one snapshot, then change by change, with another snapshot in the place of the @again-th. */
static void record_changes(struct state *s, const struct history *h, unsigned first, unsigned again)
{
	for (unsigned i = first - 1; i < h->count; i++) {
		const struct journal_item *item = &h->items[i];
		if (i + 1 == first || i == again || !journal_fits(s->journal, item->len, 1))
			snapshot(s, h, i + 1);
		else
			must_be(journal_append(s->journal, item, 1, 1));
		s->events[i] = medium_now(s->medium);
	}
	for (unsigned i = 0; i + 1 < first; i++)
		s->events[i] = s->events[first - 1];
}

static void cut_state(const struct job *job, uint64_t *random)
{
	static struct history h;
	static struct state s;
	uint8_t writer[16] = "recorded";
	uint64_t size;
	unsigned first = 0, acknowledged = 0;

	read_history(job, &h, writer, &size);
	cleanup_fd int blank = memfd_create("blank", MFD_CLOEXEC);
	must(blank >= 0 && ftruncate(blank, (off_t)size) == 0, "memory");
	s.medium = medium_new(blank);
	s.io = (struct journal_io){state_read, state_write, state_flush, size, "the recorded state"};
	must_be(journal_open(&s.journal, &s.io, writer, pass, NULL));
	/* The first snapshot ends where both kinds are there. */
	for (bool database = false, identity = false; !(database && identity); first++) {
		must(first < h.count, "the state that is given has no identity");
		database |= h.items[first].kind == JOURNAL_DATABASE;
		identity |= h.items[first].kind == JOURNAL_IDENTITY;
	}
	record_changes(&s, &h, first, first + (unsigned)random_below(random, h.count - first));
	journal_close(s.journal);
	unsigned from = s.events[0], to = medium_now(s.medium);
	unsigned cut = from + (unsigned)random_below(random, to - from + 1);
	for (unsigned i = 0; i < h.count; i++)
		acknowledged += h.items[i].kind == JOURNAL_DATABASE && s.events[i] <= cut;
	put(job, "state.img", s.medium, cut, random_next(random));
	printf("\"state-cut\": %u, \"state-events\": %u, \"acknowledged\": %u, \"pieces\": %u}\n", cut, to,
	       acknowledged, h.pieces);
	medium_free(s.medium);
	for (unsigned i = 0; i < h.count; i++)
		free((void *)(uintptr_t)h.items[i].data);
}

int main(int argc, char **argv)
{
	struct job job = {};

	must_be(option_arguments(options, argc, argv, &job));
	must(job.esp && job.update && job.certificate && job.state && job.folder, "an option is missing");
	uint64_t random = (uint64_t)job.seed * STAGES + job.stage;
	cut_esp(&job, &random);
	cut_state(&job, &random);
	return fflush(stdout) == 0 ? 0 : 1;
}
