/*
 * The recorder; see medium.h. The live file, the file it began as and every file rebuilt are memory (memfd).
 */
#include "medium.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEVER UINT32_MAX

enum kind { WRITE, ZERO, FLUSH };

struct event {
	enum kind kind;
	bool ended, extend, swallowed;
	uint64_t offset, len;
	uint8_t *data;    /* of a write */
	unsigned *covers; /* of a flush: what had ended when it began, as far as it was not durable yet */
	unsigned covered;
	unsigned durable_at; /* the first cut that cannot undo it */
};

struct medium {
	int fd, base;
	struct event *events;
	unsigned count, room;
	unsigned *flushes;
	unsigned flush_count, swallow;
};

static void must(bool good)
{
	if (!good)
		abort();
}

static void *grown(void *array, size_t count, size_t size)
{
	void *p = reallocarray(array, count, size);

	must(p != NULL);
	return p;
}

uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

uint64_t random_below(uint64_t *state, uint64_t bound)
{
	return random_next(state) % bound;
}

static uint64_t file_size(int fd)
{
	struct stat st;

	must(fstat(fd, &st) == 0);
	return (uint64_t)st.st_size;
}

static void write_fully(int fd, const uint8_t *data, uint64_t len, uint64_t offset)
{
	must(pwrite(fd, data, len, (off_t)offset) == (ssize_t)len);
}

/* A copy in the empty file @to that leaves holes where the file has them. */
static int copy_to(int from, int to)
{
	static uint8_t buffer[1 << 20];
	off_t end = (off_t)file_size(from), at = 0;

	must(to >= 0 && ftruncate(to, end) == 0);
	while (at < end && (at = lseek(from, at, SEEK_DATA)) >= 0) {
		off_t hole = lseek(from, at, SEEK_HOLE);
		must(hole > at);
		for (; at < hole;) {
			ssize_t n = pread(from, buffer, MIN((size_t)(hole - at), sizeof(buffer)), at);
			must(n > 0);
			write_fully(to, buffer, (uint64_t)n, (uint64_t)at);
			at += n;
		}
	}
	return to;
}

/* The same, in memory. */
static int copy_file(int from)
{
	return copy_to(from, memfd_create("medium", MFD_CLOEXEC));
}

struct medium *medium_new(int fd)
{
	struct medium *m = calloc(1, sizeof(*m));

	must(m != NULL);
	m->fd = copy_file(fd);
	m->base = copy_file(fd);
	return m;
}

void medium_free(struct medium *m)
{
	for (unsigned i = 0; i < m->count; i++) {
		free(m->events[i].data);
		free(m->events[i].covers);
	}
	free(m->events);
	free(m->flushes);
	close(m->fd);
	close(m->base);
	free(m);
}

int medium_fd(const struct medium *m)
{
	return m->fd;
}

unsigned medium_now(const struct medium *m)
{
	return m->count;
}

unsigned medium_flushes(const struct medium *m)
{
	return m->flush_count;
}

unsigned medium_flush_event(const struct medium *m, unsigned index)
{
	return m->flushes[index];
}

void medium_swallow(struct medium *m, unsigned nth)
{
	m->swallow = nth ? m->flush_count + nth : 0;
}

static struct event *add(struct medium *m, enum kind kind)
{
	if (m->count == m->room) {
		m->room = m->room ? 2 * m->room : 256;
		m->events = grown(m->events, m->room, sizeof(*m->events));
	}
	struct event *e = &m->events[m->count++];
	*e = (struct event){.kind = kind, .durable_at = NEVER};
	return e;
}

static void zero_range(int fd, uint64_t offset, uint64_t len)
{
	uint64_t size = file_size(fd);

	/* Punching is zeroing, in memory; beyond the end there is nothing to punch. */
	if (offset < size)
		must(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			       (off_t)MIN(len, size - offset)) == 0);
}

unsigned medium_write(struct medium *m, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct event *e = add(m, WRITE);
	uint64_t at = 0;

	e->offset = offset;
	for (unsigned i = 0; i < count; i++)
		e->len += iov[i].iov_len;
	e->data = grown(NULL, e->len ? e->len : 1, 1);
	for (unsigned i = 0; i < count; at += iov[i++].iov_len)
		memcpy(e->data + at, iov[i].iov_base, iov[i].iov_len);
	write_fully(m->fd, e->data, e->len, offset);
	return m->count - 1;
}

unsigned medium_zero(struct medium *m, uint64_t offset, uint64_t len, bool extend)
{
	struct event *e = add(m, ZERO);

	e->offset = offset;
	e->len = len;
	e->extend = extend;
	zero_range(m->fd, offset, len);
	if (extend && offset + len > file_size(m->fd))
		must(ftruncate(m->fd, (off_t)(offset + len)) == 0);
	return m->count - 1;
}

void medium_done(struct medium *m, unsigned event)
{
	m->events[event].ended = true;
}

unsigned medium_flush(struct medium *m)
{
	struct event *e = add(m, FLUSH);

	m->flushes = grown(m->flushes, m->flush_count + 1, sizeof(*m->flushes));
	m->flushes[m->flush_count++] = m->count - 1;
	e->swallowed = m->flush_count == m->swallow;
	e->covers = grown(NULL, m->count, sizeof(*e->covers));
	for (unsigned i = 0; i < m->count - 1; i++) {
		const struct event *old = &m->events[i];
		if (old->kind != FLUSH && old->ended && old->durable_at == NEVER)
			e->covers[e->covered++] = i;
	}
	return m->count - 1;
}

void medium_flushed(struct medium *m, unsigned event)
{
	struct event *e = &m->events[event];

	for (unsigned i = 0; i < e->covered && !e->swallowed; i++) {
		struct event *old = &m->events[e->covers[i]];
		old->durable_at = MIN(old->durable_at, m->count);
	}
	e->ended = true;
}

/* How much of what was not flushed arrives. */
enum fate { NOTHING, EVERYTHING, SOME_WRITES, SOME_SECTORS, ALL_BUT_ONE, ONLY_ONE, FATES };

struct luck {
	enum fate fate;
	uint64_t state, one, of_256;
};

static struct luck luck_of(uint64_t seed, unsigned cut, unsigned open)
{
	struct luck luck = {.state = seed * 0x100000001b3 + cut};

	random_next(&luck.state);
	luck.fate = seed < 2 ? (enum fate)seed : (enum fate)random_below(&luck.state, FATES);
	luck.one = open ? random_below(&luck.state, open) : 0;
	luck.of_256 = (uint64_t[]){16, 128, 240}[random_below(&luck.state, 3)];
	return luck;
}

/* Whether the @nth write that was not flushed arrives as a whole. */
static bool arrives(struct luck *luck, unsigned nth)
{
	switch (luck->fate) {
	case NOTHING:
		return false;
	case SOME_WRITES:
		return random_below(&luck->state, 256) < luck->of_256;
	case ALL_BUT_ONE:
		return nth != luck->one;
	case ONLY_ONE:
		return nth == luck->one;
	case EVERYTHING:
	case SOME_SECTORS:
	case FATES:
		break;
	}
	return true;
}

static void apply(int fd, const struct event *e, struct luck *torn)
{
	uint64_t next;

	if (e->kind == ZERO && e->extend && e->offset + e->len > file_size(fd))
		must(ftruncate(fd, (off_t)(e->offset + e->len)) == 0);
	for (uint64_t at = e->offset, end = e->offset + e->len; at < end; at = next) {
		next = torn ? MIN(align_down(at, MEDIUM_SECTOR) + MEDIUM_SECTOR, end) : end;
		if (torn && random_below(&torn->state, 256) >= torn->of_256)
			continue;
		if (e->kind == WRITE)
			write_fully(fd, e->data + (at - e->offset), next - at, at);
		else
			zero_range(fd, at, next - at);
	}
}

int medium_rebuild(const struct medium *m, unsigned cut, uint64_t seed)
{
	int fd = copy_file(m->base);
	unsigned open = 0, nth = 0;

	for (unsigned i = 0; i < cut; i++)
		open += m->events[i].kind != FLUSH && m->events[i].durable_at > cut;
	struct luck luck = luck_of(seed, cut, open);
	for (unsigned i = 0; i < cut; i++) {
		const struct event *e = &m->events[i];
		if (e->kind == FLUSH)
			continue;
		if (e->durable_at <= cut)
			apply(fd, e, NULL);
		else if (arrives(&luck, nth++))
			apply(fd, e, luck.fate == SOME_SECTORS ? &luck : NULL);
	}
	return fd;
}

void medium_keep(const struct medium *m, unsigned cut, uint64_t seed, const char *path)
{
	int from = medium_rebuild(m, cut, seed);
	int to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	close(copy_to(from, to));
	close(from);
}
