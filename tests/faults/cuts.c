/*
 * Power cuts: one world (world.h), cut at every flush of the medium and at random points, each cut in several ways.
 *
 *     cuts [--format F] [--subformat S] [--size BYTES] [--block BYTES] [--depth N] --dir FOLDER
 *          [--seed N] [--steps N] [--cuts N] [--seconds N] [--proof]
 *
 * --cuts: so many random ones besides those at flushes. --seconds: goes on with more worlds, the next seeds, for so
 * long. --proof: takes each flush of the medium away in turn instead, the world running as before, and tells for which
 * of them a failure was found. The last line printed is JSON. Exits with 1 when a cut lost something.
 */
#include "world.h"

#include "base/util.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KINDS_MAX 8u

struct job {
	struct world_options options;
	unsigned cuts, seconds;
	bool proof;
	uint64_t random;
};

/* Of the flushes that are the @which-th of @of within one flush of the guest. */
struct kind {
	unsigned which, of, count, found, needed, needed_found;
};

static unsigned checked, worlds, events, flushes;

static char *check(struct world *w, unsigned cut, uint64_t seed)
{
	checked++;
	return world_check(w, medium_rebuild(world_medium(w), cut, seed), cut, seed);
}

/* Cuts and tells; false when something was lost. */
static bool good(const struct job *job, struct world *w, unsigned cut, uint64_t seed)
{
	char *what = check(w, cut, seed);

	if (!what)
		return true;
	printf("cut at event %u of %u, luck %llu, world %llu: %s\n", cut, medium_now(world_medium(w)),
	       (unsigned long long)seed, (unsigned long long)job->options.seed, what);
	free(what);
	return false;
}

static unsigned cut_world(struct job *job)
{
	struct world *w = world_run(&job->options);
	const struct medium *m = world_medium(w);
	unsigned bad = 0;

	for (unsigned i = 0; i < medium_flushes(m) && bad < 5; i++) {
		unsigned at = medium_flush_event(m, i);
		/* Just before, under way, and just after: with nothing, with all, and with some of what is not flushed.
		 */
		for (unsigned cut = at; cut <= MIN(at + 2, medium_now(m)); cut++) {
			bad += !good(job, w, cut, 0) + !good(job, w, cut, 1);
			bad += !good(job, w, cut, random_next(&job->random));
		}
	}
	for (unsigned i = 0; i < job->cuts && bad < 5; i++)
		bad += !good(job, w, (unsigned)random_below(&job->random, medium_now(m) + 1),
			     random_next(&job->random));
	worlds++;
	events += medium_now(m);
	flushes += medium_flushes(m);
	world_free(w);
	return bad;
}

/* Whether a cut is found that loses something with flush @index taken away. */
static bool proof_of(struct job *job, unsigned index, unsigned acknowledged)
{
	job->options.swallow = index + 1;
	struct world *w = world_run(&job->options);
	const struct medium *m = world_medium(w);
	unsigned at = medium_flush_event(m, index);
	unsigned last = MIN(MAX(at + 12, acknowledged == UINT32_MAX ? 0 : acknowledged + 1), medium_now(m));
	char *what = NULL;

	for (unsigned cut = at + 1; cut <= last && !what; cut++) {
		what = check(w, cut, 0);
		for (unsigned i = 0; i < 10 && !what; i++)
			/* Without a second cut: the first is what is looked at. */
			what = check(w, cut, random_next(&job->random) | 1);
	}
	world_free(w);
	free(what);
	return what != NULL;
}

static struct kind *kind_of(struct kind *kinds, const struct world_flush *f)
{
	for (unsigned i = 0;; i++) {
		if (kinds[i].count && (kinds[i].which != f->which || kinds[i].of != f->of) && i + 1 < KINDS_MAX)
			continue;
		kinds[i].which = f->which;
		kinds[i].of = f->of;
		return &kinds[i];
	}
}

static void prove(struct job *job)
{
	struct kind kinds[KINDS_MAX] = {};

	job->options.one_flush = true;
	job->options.swallow = 0;
	struct world *w = world_run(&job->options);
	for (unsigned i = 0; i < medium_flushes(world_medium(w)); i++) {
		struct world_flush f = world_flush(w, i);
		struct kind *kind = kind_of(kinds, &f);
		/* A guest was told that something is durable: it is the last flush that makes it so. */
		bool needed = f.covers && f.which == f.of, found = proof_of(job, i, f.acknowledged);
		kind->count++;
		kind->found += found;
		kind->needed += needed;
		kind->needed_found += needed && found;
	}
	world_free(w);
	printf("{\"kinds\": [");
	for (unsigned i = 0; i < KINDS_MAX && kinds[i].count; i++)
		printf("%s{\"which\": %u, \"of\": %u, \"flushes\": %u, \"found\": %u, \"needed\": %u, "
		       "\"needed_found\": %u}",
		       i ? ", " : "", kinds[i].which, kinds[i].of, kinds[i].count, kinds[i].found, kinds[i].needed,
		       kinds[i].needed_found);
	printf("], \"checked\": %u}\n", checked);
}

static uint64_t number(const char *text)
{
	uint64_t value;
	struct error *err = parse_size(text, "number", &value);

	if (err) {
		fprintf(stderr, "%s\n", error_text(err));
		exit(2);
	}
	return value;
}

static struct job parse(int argc, char **argv)
{
	enum { FORMAT = 1, SUBFORMAT, SIZE, BLOCK, CHAIN, DIR, SEED, STEPS, CUTS, SECONDS, PROOF };
	static const struct option options[] = {
		{"format", 1, NULL, FORMAT},   {"subformat", 1, NULL, SUBFORMAT}, {"size", 1, NULL, SIZE},
		{"block", 1, NULL, BLOCK},     {"depth", 1, NULL, CHAIN},         {"dir", 1, NULL, DIR},
		{"seed", 1, NULL, SEED},       {"steps", 1, NULL, STEPS},         {"cuts", 1, NULL, CUTS},
		{"seconds", 1, NULL, SECONDS}, {"proof", 0, NULL, PROOF},         {}};
	struct job job = {.options = {.format = "raw", .size = 12 * MIB, .depth = 1, .steps = 300}};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) > 0) {
		switch (option) {
		case FORMAT:
			job.options.format = optarg;
			break;
		case SUBFORMAT:
			job.options.subformat = optarg;
			break;
		case SIZE:
			job.options.size = number(optarg);
			break;
		case BLOCK:
			job.options.block = (uint32_t)number(optarg);
			break;
		case CHAIN:
			job.options.depth = (unsigned)number(optarg);
			break;
		case DIR:
			job.options.dir = optarg;
			break;
		case SEED:
			job.options.seed = number(optarg);
			break;
		case STEPS:
			job.options.steps = (unsigned)number(optarg);
			break;
		case CUTS:
			job.cuts = (unsigned)number(optarg);
			break;
		case SECONDS:
			job.seconds = (unsigned)number(optarg);
			break;
		case PROOF:
			job.proof = true;
			break;
		default:
			exit(2);
		}
	}
	if (!job.options.dir || optind < argc)
		exit(2);
	job.random = ~job.options.seed;
	return job;
}

int main(int argc, char **argv)
{
	struct job job = parse(argc, argv);
	time_t began = time(NULL);
	unsigned bad = 0;

	if (job.proof) {
		prove(&job);
		return 0;
	}
	do {
		bad = cut_world(&job);
		job.options.seed++;
	} while (!bad && time(NULL) - began < (time_t)job.seconds);
	printf("{\"worlds\": %u, \"events\": %u, \"flushes\": %u, \"cuts\": %u, \"bad\": %u}\n", worlds, events,
	       flushes, checked, bad);
	return bad ? 1 : 0;
}
