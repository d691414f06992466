/*
 * Power cuts below the keeper's journal: a host makes changes, is started anew, and writes snapshots, on a recorded
 * medium (medium.h) that is then cut at every flush and at random points, each in several ways. What is left must open
 * undamaged and hold every change that was acknowledged, and none but the next few, in order, byte by byte; and it
 * must go on from there, through a second cut too.
 *
 *     journal_cuts [--seed N] [--steps N] [--cuts N] [--seconds N] [--proof]
 *
 * --cuts: so many random ones besides those at flushes. --seconds: goes on with more worlds, the next seeds. --proof:
 * takes each flush away in turn instead, and tells for which kinds of them a failure was found. The last line printed
 * is JSON. Exits with 1 when a cut lost something.
 */
#include "medium.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "node/keeper/journal.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MEDIUM_BYTES    (4 * MIB)
#define CHANGE_MAX      20000u
#define IDENTITY_EVERY  7u /* changes carry a new identity with them */
#define SNAPSHOT_MARK   UINT32_MAX
#define SNAPSHOT_FILLER 30000u

static const uint8_t writer[16] = "recorded";

enum flush_kind { APPEND, SNAPSHOT, HEADER, KINDS };
static const char *const kind_names[KINDS] = {"append", "snapshot", "header"};

/* How many changes had been asked for, and acknowledged, when the medium's event was the @event-th. */
struct mark {
	unsigned event, changes;
};

struct world {
	struct journal_io io;
	struct medium *medium;
	struct journal *journal;
	uint64_t random;
	unsigned changes; /* asked for */
	struct mark *asked, *acknowledged;
	unsigned asked_count, acknowledged_count;
	enum flush_kind *kinds;       /* of each flush of the medium */
	unsigned kind_count, flushed; /* flushes of the operation at hand */
	bool snapshotting;
};

static void must(bool good, const char *words)
{
	if (good)
		return;
	fprintf(stderr, "journal_cuts: %s\n", words);
	abort();
}

static void must_ok(struct error *err)
{
	if (err)
		must(false, error_text(err));
}

/* --- what is written --- */

/* A change is its number, its length and bytes that follow from it. */
static size_t change_len(uint32_t number)
{
	uint64_t state = number;
	uint64_t n = random_next(&state);

	return 8 + (n % 16 == 0 ? n / 16 % CHANGE_MAX : n / 16 % 900);
}

static void fill(uint8_t *to, size_t len, uint32_t seed)
{
	for (size_t i = 0; i < len; i++)
		to[i] = (uint8_t)((seed + i) * 2654435761u >> 11);
}

static uint8_t *make_change(uint32_t number, size_t *len)
{
	*len = change_len(number);
	uint8_t *data = malloc(*len);
	must(data != NULL, "out of memory");
	memcpy(data, &number, 4);
	memcpy(data + 4, &(uint32_t){(uint32_t)*len}, 4);
	fill(data + 8, *len - 8, number);
	return data;
}

static uint32_t identity_after(uint32_t changes)
{
	return changes / IDENTITY_EVERY * IDENTITY_EVERY;
}

/* --- the recorder below the journal --- */

static int recorded_read(const struct journal_io *io, void *data, size_t len, uint64_t offset)
{
	const struct world *w = (const struct world *)io;

	return pread(medium_fd(w->medium), data, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
}

static int recorded_write(const struct journal_io *io, const void *data, size_t len, uint64_t offset)
{
	const struct world *w = (const struct world *)io;
	struct iovec iov = {(void *)(uintptr_t)data, len};

	medium_done(w->medium, medium_write(w->medium, &iov, 1, offset));
	return 0;
}

static int recorded_flush(const struct journal_io *io)
{
	struct world *w = (struct world *)(uintptr_t)io;

	w->kinds = reallocarray(w->kinds, w->kind_count + 1, sizeof(*w->kinds));
	must(w->kinds != NULL, "out of memory");
	w->kinds[w->kind_count++] = !w->snapshotting ? APPEND : w->flushed++ == 0 ? SNAPSHOT : HEADER;
	medium_flushed(w->medium, medium_flush(w->medium));
	return 0;
}

static void note(struct mark **marks, unsigned *count, const struct world *w)
{
	*marks = reallocarray(*marks, *count + 1, sizeof(**marks));
	must(*marks != NULL, "out of memory");
	(*marks)[(*count)++] = (struct mark){medium_now(w->medium), w->changes};
}

static unsigned at_cut(const struct mark *marks, unsigned count, unsigned cut)
{
	unsigned changes = 0;

	for (unsigned i = 0; i < count && marks[i].event <= cut; i++)
		changes = marks[i].changes;
	return changes;
}

/* --- reading it back --- */

struct state {
	uint8_t *database;
	size_t len;
	uint32_t identity;
};

static struct error *take(void *arg, const struct journal_item *item)
{
	struct state *s = arg;

	if (item->kind == JOURNAL_IDENTITY) {
		if (item->len != 4)
			return error_new(EBADMSG, "an identity of %zu bytes", item->len);
		memcpy(&s->identity, item->data, 4);
		return NULL;
	}
	s->database = realloc(s->database, s->len + item->len + 1);
	must(s->database != NULL, "out of memory");
	memcpy(s->database + s->len, item->data, item->len);
	s->len += item->len;
	return NULL;
}

/* How many changes the state holds; -1 when it is no state that ever was. */
static int64_t count_changes(const struct state *s)
{
	uint8_t expected[CHANGE_MAX + SNAPSHOT_FILLER];
	uint32_t changes = 0, number, len;

	for (size_t at = 0; at < s->len; at += len) {
		if (s->len - at < 8)
			return -1;
		memcpy(&number, s->database + at, 4);
		memcpy(&len, s->database + at + 4, 4);
		if (at == 0) {
			if (number != SNAPSHOT_MARK || s->len < 8 + SNAPSHOT_FILLER)
				return -1;
			changes = len;
			len = 8 + SNAPSHOT_FILLER;
			fill(expected, SNAPSHOT_FILLER, changes);
		} else {
			if (number != ++changes || len != change_len(number) || len > s->len - at)
				return -1;
			fill(expected, len - 8, number);
		}
		if (memcmp(s->database + at + 8, expected, len - 8) != 0)
			return -1;
	}
	return s->identity == identity_after(changes) ? (int64_t)changes : -1;
}

/* --- the host --- */

static void snapshot(struct world *w)
{
	uint8_t data[8 + SNAPSHOT_FILLER];
	uint32_t identity = identity_after(w->changes);

	memcpy(data, &(uint32_t){SNAPSHOT_MARK}, 4);
	memcpy(data + 4, &(uint32_t){w->changes}, 4);
	fill(data + 8, SNAPSHOT_FILLER, w->changes);
	struct journal_item items[] = {{JOURNAL_DATABASE, data, sizeof(data)}, {JOURNAL_IDENTITY, &identity, 4}};
	note(&w->asked, &w->asked_count, w);
	w->snapshotting = true;
	w->flushed = 0;
	must_ok(journal_snapshot(w->journal, items, 2));
	w->snapshotting = false;
	note(&w->acknowledged, &w->acknowledged_count, w);
}

/* One to four changes that waited for each other, as one record; or a snapshot, where there is no room. */
static void change(struct world *w)
{
	struct journal_item items[8];
	unsigned changes = 1 + (unsigned)random_below(&w->random, 4), count = 0;
	uint32_t identity[4];
	size_t sum = 0;

	for (unsigned i = 0; i < changes; i++) {
		uint32_t number = ++w->changes;
		size_t len;
		uint8_t *data = make_change(number, &len);
		items[count++] = (struct journal_item){JOURNAL_DATABASE, data, len};
		sum += len;
		identity[i] = number;
		if (number % IDENTITY_EVERY == 0) {
			items[count++] = (struct journal_item){JOURNAL_IDENTITY, &identity[i], 4};
			sum += 4;
		}
	}
	if (journal_fits(w->journal, sum, count)) {
		note(&w->asked, &w->asked_count, w);
		must_ok(journal_append(w->journal, items, count, changes));
		note(&w->acknowledged, &w->acknowledged_count, w);
	} else {
		snapshot(w);
	}
	for (unsigned i = 0; i < count; i++)
		if (items[i].kind == JOURNAL_DATABASE)
			free((void *)(uintptr_t)items[i].data);
}

static void start(struct world *w)
{
	struct state s = {};

	must_ok(journal_open(&w->journal, &w->io, writer, take, &s));
	must(s.len == 0 || count_changes(&s) >= 0, "the running journal reads wrong");
	w->changes = s.len ? (unsigned)count_changes(&s) : 0;
	free(s.database);
}

static void stop(struct world *w)
{
	journal_close(w->journal);
	w->journal = NULL;
}

static void step(struct world *w)
{
	uint64_t dice = random_below(&w->random, 40);

	if (dice == 0) {
		stop(w);
		start(w);
	} else if (dice == 1) {
		snapshot(w);
	} else {
		change(w);
	}
}

static struct world *world_on(int fd, uint64_t seed, unsigned swallow)
{
	struct world *w = calloc(1, sizeof(*w));

	must(w != NULL, "out of memory");
	w->io = (struct journal_io){recorded_read, recorded_write, recorded_flush, MEDIUM_BYTES, "the medium"};
	w->medium = medium_new(fd);
	medium_swallow(w->medium, swallow);
	w->random = seed;
	start(w);
	return w;
}

static struct world *world_run(uint64_t seed, unsigned steps, unsigned swallow)
{
	cleanup_fd int fd = memfd_create("blank", MFD_CLOEXEC);

	must(fd >= 0 && ftruncate(fd, MEDIUM_BYTES) == 0, "no memory for a medium");
	struct world *w = world_on(fd, seed, swallow);
	snapshot(w);
	for (unsigned i = 0; i < steps; i++)
		step(w);
	stop(w);
	return w;
}

static void world_free(struct world *w)
{
	medium_free(w->medium);
	free(w->asked);
	free(w->acknowledged);
	free(w->kinds);
	free(w);
}

/* --- cuts --- */

static unsigned checked, worlds, events, flushes, most_changes;

[[gnu::format(printf, 1, 2)]] static char *words(const char *fmt, ...)
{
	va_list args;
	char *text;

	va_start(args, fmt);
	must(vasprintf(&text, fmt, args) >= 0, "out of memory");
	va_end(args);
	return text;
}

/* Opens what a cut left, and counts its changes: at least @least, at most @most. */
static char *check_state(int fd, unsigned least, unsigned most, bool formatted)
{
	struct journal_file file;
	struct journal_info info;
	struct journal *journal;
	struct state s = {};

	must_ok(journal_file_init(&file, fd, "what is left"));
	struct error *err = journal_open(&journal, &file.io, writer, take, &s);
	if (err) {
		char *text = words("%s", error_text(err));
		error_free(err);
		free(s.database);
		return text;
	}
	journal_info(journal, &info);
	int64_t changes = info.state == JOURNAL_EMPTY ? 0 : count_changes(&s);
	journal_close(journal);
	free(s.database);
	if (info.state == JOURNAL_DAMAGED)
		return words("damaged: %s", info.damage);
	if (info.state == JOURNAL_EMPTY && formatted)
		return words("empty");
	if (changes < (int64_t)least || changes > (int64_t)most)
		return words("%lld changes are there, %u were acknowledged, %u asked for", (long long)changes, least,
			     most);
	return NULL;
}

static char *check(const struct world *w, int fd, unsigned cut);

/* A host goes on with what is left, and power fails again. */
static char *go_on(int fd, uint64_t seed)
{
	struct world *again = world_on(fd, seed, 0);
	char *what = NULL;

	snapshot(again);
	unsigned steps = (unsigned)random_below(&again->random, 5);
	for (unsigned i = 0; i < steps; i++)
		step(again);
	stop(again);
	for (unsigned i = 0; i < 4 && !what; i++) {
		/* Before the first snapshot the first world's words count. */
		unsigned first = again->acknowledged[0].event, now = medium_now(again->medium);
		unsigned cut = first + (unsigned)random_below(&again->random, now - first + 1);
		cleanup_fd int left = medium_rebuild(again->medium, cut, random_next(&again->random));
		what = check(again, left, cut);
	}
	world_free(again);
	return what;
}

static char *check(const struct world *w, int fd, unsigned cut)
{
	checked++;
	return check_state(fd, at_cut(w->acknowledged, w->acknowledged_count, cut),
			   at_cut(w->asked, w->asked_count, cut), w->acknowledged[0].event <= cut);
}

static char *check_cut(const struct world *w, unsigned cut, uint64_t seed)
{
	cleanup_fd int fd = medium_rebuild(w->medium, cut, seed);
	char *what = check(w, fd, cut);

	return what || seed % 4 != 3 ? what : go_on(fd, seed);
}

static bool good(const struct world *w, uint64_t name, unsigned cut, uint64_t seed)
{
	char *what = check_cut(w, cut, seed);

	if (what)
		printf("cut at event %u of %u, luck %llu, world %llu: %s\n", cut, medium_now(w->medium),
		       (unsigned long long)seed, (unsigned long long)name, what);
	free(what);
	return !what;
}

static unsigned cut_world(uint64_t seed, unsigned steps, unsigned cuts, uint64_t *random)
{
	struct world *w = world_run(seed, steps, 0);
	const struct medium *m = w->medium;
	unsigned bad = 0;

	for (unsigned i = 0; i < medium_flushes(m) && bad < 5; i++) {
		unsigned at = medium_flush_event(m, i);
		for (unsigned cut = at; cut <= MIN(at + 2, medium_now(m)); cut++) {
			bad += !good(w, seed, cut, 0) + !good(w, seed, cut, 1);
			bad += !good(w, seed, cut, random_next(random));
		}
	}
	for (unsigned i = 0; i < cuts && bad < 5; i++)
		bad += !good(w, seed, (unsigned)random_below(random, medium_now(m) + 1), random_next(random));
	worlds++;
	events += medium_now(m);
	flushes += medium_flushes(m);
	most_changes = MAX(most_changes, w->changes);
	world_free(w);
	return bad;
}

/* Whether a cut is found that loses something with flush @index taken away. */
static bool proof_of(uint64_t seed, unsigned steps, unsigned index, uint64_t *random)
{
	struct world *w = world_run(seed, steps, index + 1);
	unsigned at = medium_flush_event(w->medium, index), last = MIN(at + 3, medium_now(w->medium));
	char *what = NULL;

	for (unsigned cut = at + 1; cut <= last && !what; cut++)
		for (unsigned i = 0; i < 12 && !what; i++) {
			cleanup_fd int fd = medium_rebuild(w->medium, cut, i ? random_next(random) : 0);
			what = check(w, fd, cut);
		}
	world_free(w);
	free(what);
	return what != NULL;
}

static void prove(uint64_t seed, unsigned steps, uint64_t *random)
{
	struct world *w = world_run(seed, steps, 0);
	unsigned count[KINDS] = {}, found[KINDS] = {};

	for (unsigned i = 0; i < w->kind_count; i++) {
		count[w->kinds[i]]++;
		found[w->kinds[i]] += proof_of(seed, steps, i, random);
	}
	world_free(w);
	printf("{");
	for (unsigned i = 0; i < KINDS; i++)
		printf("%s\"%s\": {\"flushes\": %u, \"found\": %u}", i ? ", " : "", kind_names[i], count[i], found[i]);
	printf("}\n");
}

int main(int argc, char **argv)
{
	enum { SEED = 1, STEPS, CUTS, SECONDS, PROOF };
	static const struct option options[] = {{"seed", 1, NULL, SEED},   {"steps", 1, NULL, STEPS},
						{"cuts", 1, NULL, CUTS},   {"seconds", 1, NULL, SECONDS},
						{"proof", 0, NULL, PROOF}, {}};
	uint64_t values[PROOF + 1] = {[STEPS] = 150};
	time_t began = time(NULL);
	unsigned bad;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) > 0) {
		if (option == '?')
			return 2;
		values[option] = option == PROOF ? 1 : strtoull(optarg, NULL, 10);
	}
	uint64_t seed = values[SEED], random = ~seed;
	if (values[PROOF]) {
		prove(seed, (unsigned)values[STEPS], &random);
		return 0;
	}
	do {
		bad = cut_world(seed++, (unsigned)values[STEPS], (unsigned)values[CUTS], &random);
	} while (!bad && time(NULL) - began < (time_t)values[SECONDS]);
	printf("{\"worlds\": %u, \"events\": %u, \"flushes\": %u, \"cuts\": %u, \"changes\": %u, \"bad\": %u}\n",
	       worlds, events, flushes, checked, most_changes, bad);
	return bad ? 1 : 0;
}
