/*
 * The world of a power-cut test; see world.h. Touches memory, and the parents' files in the folder it is given.
 */
#include "world.h"

#include "base/util.h"
#include "tests/faults/must.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR      512u
#define DEPTH       8u /* requests at once */
#define LENGTH_MAX  (96u * 1024)
#define NEVER       UINT32_MAX
#define GROWTHS_MAX 16u

/* A request of the guest, and what became of it. */
struct deed {
	enum disk_request_type type;
	uint64_t offset, len;
	unsigned submitted; /* the medium's time: its events come no earlier */
	bool done;
	unsigned durable; /* the first cut that must show it */
};

/* The deeds that changed a sector, in their order. */
struct sector {
	unsigned *deeds;
	unsigned count;
};

enum operation_kind { READV, WRITEV, SYNC, RANGE, POST };

struct operation {
	struct disk_op *op;
	enum operation_kind kind;
	bool recorded, begun;
	int file, mode, res;
	unsigned event;
	struct iovec iov[DISK_IOV_MAX];
	unsigned count;
	uint64_t offset, len;
	struct operation *next;
};

/* Two ways to do operations on one medium. */
struct io {
	struct disk_io io;
	struct world *world;
};

struct slot {
	struct disk_request r;
	struct world *world;
	struct iovec iov[4];
	uint8_t *buffer;
	unsigned deed, first_flush;
	unsigned *covers; /* of a flush: the deeds that were done when it was submitted */
	unsigned covered;
	bool busy;
};

struct world {
	struct world_options options;
	uint64_t random;
	struct medium *medium;
	struct opener_dir opener;
	int dir;
	struct disk *disk;
	int disk_fd;
	struct io now, later;
	struct operation *operations;
	struct disk_queue queue;
	unsigned files[DISK_CHAIN_MAX];
	struct slot slots[DEPTH];
	unsigned busy;

	uint64_t size;    /* of the disk as it runs */
	uint64_t most;    /* that it can grow to */
	uint8_t *initial; /* what the chain held at the beginning */
	struct deed *deeds;
	unsigned deed_count;
	struct sector *sectors;
	struct {
		uint64_t size;
		unsigned asked, done;
	} growths[GROWTHS_MAX];
	unsigned growth_count;
	struct world_flush *flushes; /* of the medium */
	unsigned flush_count;
};

static void *grown(void *array, size_t count, size_t size)
{
	void *p = reallocarray(array, count, size);

	must(p != NULL, "memory");
	return p;
}

/* What the deed @id writes into @sector. */
static void fill(uint8_t data[SECTOR], uint64_t id, uint64_t sector)
{
	uint64_t state = (id + 1) << 32 | sector;

	for (unsigned i = 0; i < SECTOR; i += 8) {
		uint64_t word = random_next(&state);
		memcpy(data + i, &word, 8);
	}
}

/* --- operations --- */

static void begin(struct world *w, struct operation *o)
{
	o->begun = true;
	o->res = (int)o->len;
	switch (o->kind) {
	case READV:
		o->res = (int)preadv(o->file, o->iov, (int)o->count, (off_t)o->offset);
		break;
	case WRITEV:
		must(o->recorded, "a parent is written to");
		o->event = medium_write(w->medium, o->iov, o->count, o->offset);
		break;
	case RANGE:
		must(o->recorded, "a parent is written to");
		o->res = 0;
		o->event = medium_zero(w->medium, o->offset, o->len, !(o->mode & FALLOC_FL_KEEP_SIZE));
		break;
	case SYNC:
		must(o->recorded, "a parent is flushed");
		w->flushes = grown(w->flushes, w->flush_count + 1, sizeof(*w->flushes));
		w->flushes[w->flush_count++] = (struct world_flush){.acknowledged = NEVER};
		o->res = 0;
		o->event = medium_flush(w->medium);
		break;
	case POST:
		o->res = 0;
		break;
	}
}

static void end(struct world *w, struct operation *o)
{
	struct disk_op *op = o->op;
	int res = o->res;

	if (o->kind == SYNC)
		medium_flushed(w->medium, o->event);
	else if (o->kind == WRITEV || o->kind == RANGE)
		medium_done(w->medium, o->event);
	free(o);
	op->done(op, res);
}

static struct operation *operation(struct io *io, struct disk_op *op, enum operation_kind kind, unsigned file)
{
	struct operation *o = calloc(1, sizeof(*o));

	must(o != NULL, "memory");
	o->op = op;
	o->kind = kind;
	o->file = (int)file;
	o->recorded = (int)file == io->world->disk_fd;
	return o;
}

static void go(struct io *io, struct operation *o)
{
	struct world *w = io->world;

	if (io == &w->now) {
		begin(w, o);
		end(w, o);
		return;
	}
	o->next = w->operations;
	w->operations = o;
}

static struct operation *transfer(struct io *io, struct disk_op *op, enum operation_kind kind, unsigned file,
				  const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct operation *o = operation(io, op, kind, file);

	memcpy(o->iov, iov, count * sizeof(*iov));
	o->count = count;
	o->offset = offset;
	for (unsigned i = 0; i < count; i++)
		o->len += iov[i].iov_len;
	return o;
}

static void io_readv(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		     uint64_t offset)
{
	go((struct io *)io, transfer((struct io *)io, op, READV, file, iov, count, offset));
}

static void io_writev(struct disk_io *io, struct disk_op *op, unsigned file, const struct iovec *iov, unsigned count,
		      uint64_t offset)
{
	go((struct io *)io, transfer((struct io *)io, op, WRITEV, file, iov, count, offset));
}

static void io_fdatasync(struct disk_io *io, struct disk_op *op, unsigned file)
{
	go((struct io *)io, operation((struct io *)io, op, SYNC, file));
}

static void io_fallocate(struct disk_io *io, struct disk_op *op, unsigned file, int mode, uint64_t offset, uint64_t len)
{
	struct operation *o = operation((struct io *)io, op, RANGE, file);

	o->mode = mode;
	o->offset = offset;
	o->len = len;
	go((struct io *)io, o);
}

static void io_post(struct disk_io *io, struct disk_op *op)
{
	go((struct io *)io, operation((struct io *)io, op, POST, 0));
}

static struct io make_io(struct world *w)
{
	return (struct io){.io = {io_readv, io_writev, io_fdatasync, io_fallocate, io_post}, .world = w};
}

/* Takes a random operation one step on. */
static void turn(struct world *w)
{
	unsigned count = 0;
	struct operation **at = &w->operations;

	for (const struct operation *o = w->operations; o; o = o->next)
		count++;
	must(count > 0, "requests wait, and no operation is under way");
	for (uint64_t n = random_below(&w->random, count); n > 0; n--)
		at = &(*at)->next;
	struct operation *o = *at;
	if (!o->begun) {
		begin(w, o);
		return;
	}
	*at = o->next;
	end(w, o);
}

static void drain(struct world *w)
{
	while (w->busy > 0)
		turn(w);
}

/* --- the guest --- */

static bool changes(enum disk_request_type type)
{
	return type == DISK_WRITE || type == DISK_DISCARD || type == DISK_WRITE_ZEROES;
}

static void remember(struct world *w, unsigned id)
{
	const struct deed *d = &w->deeds[id];

	for (uint64_t s = d->offset / SECTOR; s < (d->offset + d->len) / SECTOR; s++) {
		struct sector *sector = &w->sectors[s];
		if (sector->count % 8 == 0)
			sector->deeds = grown(sector->deeds, sector->count + 8, sizeof(*sector->deeds));
		sector->deeds[sector->count++] = id;
	}
}

static bool is_zero(const uint8_t *data)
{
	return data[0] == 0 && memcmp(data, data + 1, SECTOR - 1) == 0;
}

/* Whether @data can be in a sector after a cut; a cut at NEVER is none: the disk as it runs. */
static bool possible(const struct world *w, uint64_t number, const uint8_t *data, unsigned cut)
{
	const struct sector *sector = &w->sectors[number];

	for (unsigned i = sector->count; i-- > 0;) {
		unsigned id = sector->deeds[i];
		const struct deed *d = &w->deeds[id];
		uint8_t wrote[SECTOR] = {};
		if (d->submitted >= cut)
			continue;
		if (d->type == DISK_WRITE)
			fill(wrote, id, number);
		if (memcmp(data, wrote, SECTOR) == 0)
			return true;
		if (d->type != DISK_DISCARD && (cut == NEVER || d->durable <= cut))
			return false;
	}
	return memcmp(data, w->initial + number * SECTOR, SECTOR) == 0;
}

static void flush_done(struct world *w, const struct slot *slot)
{
	unsigned now = medium_now(w->medium), all = medium_flushes(w->medium);
	bool covers = false;

	for (unsigned i = 0; i < slot->covered; i++) {
		struct deed *d = &w->deeds[slot->covers[i]];
		covers |= d->type == DISK_WRITE && d->durable == NEVER;
		d->durable = MIN(d->durable, now);
	}
	for (unsigned i = slot->first_flush; i < all && w->options.one_flush; i++)
		w->flushes[i] = (struct world_flush){i - slot->first_flush + 1, all - slot->first_flush, covers, now};
}

static void request_done(struct disk_request *r, int res)
{
	struct slot *slot = (struct slot *)r;
	struct world *w = slot->world;
	struct deed *d = &w->deeds[slot->deed];

	if (res < 0) {
		fprintf(stderr, "a request failed: %s\n", strerror(-res));
		abort();
	}
	for (uint64_t at = 0; r->type == DISK_READ && at < r->len; at += SECTOR) {
		if (!possible(w, (r->offset + at) / SECTOR, slot->buffer + at, NEVER)) {
			fprintf(stderr, "sector %llu reads wrong as the disk runs\n",
				(unsigned long long)(r->offset + at) / SECTOR);
			abort();
		}
	}
	if (r->type == DISK_FLUSH)
		flush_done(w, slot);
	d->done = true;
	slot->busy = false;
	w->busy--;
}

/* Whether nothing that is under way touches the range: a guest that races with itself can expect nothing. */
static bool is_free(const struct world *w, uint64_t offset, uint64_t len)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		const struct disk_request *r = &w->slots[i].r;
		if (w->slots[i].busy && offset < r->offset + r->len && r->offset < offset + len)
			return false;
	}
	return true;
}

static enum disk_request_type any_type(struct world *w)
{
	uint64_t n = random_below(&w->random, 100);

	return n < 62   ? DISK_WRITE
	       : n < 74 ? DISK_FLUSH
	       : n < 86 ? DISK_READ
	       : n < 94 ? DISK_WRITE_ZEROES
			: DISK_DISCARD;
}

/* Sets a random range: mostly in a few hot places, so that it meets what is there; sometimes over a block's end. */
static bool any_range(struct world *w, uint64_t *offset, uint64_t *len)
{
	uint64_t *random = &w->random, sectors = w->size / SECTOR;
	uint64_t place =
		random_below(random, 4) ? random_below(random, 6) * (sectors / 6) : random_below(random, sectors);
	uint64_t at = MIN(place + random_below(random, 300), sectors - 1);
	uint64_t most = random_below(random, 3) ? 16 : LENGTH_MAX / SECTOR;
	uint64_t count = MIN(1 + random_below(random, most), sectors - at);

	*offset = at * SECTOR;
	*len = count * SECTOR;
	return is_free(w, *offset, *len);
}

/* Cuts the buffer in up to four parts. */
static void set_buffers(struct world *w, struct slot *slot)
{
	struct disk_request *r = &slot->r;
	uint64_t at = 0;

	r->iov = slot->iov;
	for (r->iov_count = 0; at < r->len; r->iov_count++) {
		uint64_t part = r->iov_count == 3 ? r->len - at : 1 + random_below(&w->random, r->len - at);
		slot->iov[r->iov_count] = (struct iovec){slot->buffer + at, part};
		at += part;
	}
}

static void submit(struct world *w)
{
	struct slot *slot = w->slots;
	enum disk_request_type type = any_type(w);
	uint64_t offset = 0, len = 0;

	while (slot->busy)
		slot++;
	for (unsigned i = 0; i < DEPTH; i++)
		if (type == DISK_FLUSH && w->options.one_flush && w->slots[i].busy && w->slots[i].r.type == DISK_FLUSH)
			return;
	if (type != DISK_FLUSH && !any_range(w, &offset, &len))
		return;
	slot->deed = w->deed_count;
	slot->first_flush = medium_flushes(w->medium);
	slot->r = (struct disk_request){
		.type = type, .unmap = random_below(&w->random, 2), .offset = offset, .len = len, .done = request_done};
	w->deeds = grown(w->deeds, w->deed_count + 1, sizeof(*w->deeds));
	w->deeds[w->deed_count++] = (struct deed){
		.type = type, .offset = offset, .len = len, .submitted = medium_now(w->medium), .durable = NEVER};
	if (changes(type))
		remember(w, slot->deed);
	for (uint64_t at = 0; type == DISK_WRITE && at < len; at += SECTOR)
		fill(slot->buffer + at, slot->deed, (offset + at) / SECTOR);
	if (type == DISK_READ || type == DISK_WRITE)
		set_buffers(w, slot);
	slot->covered = 0;
	slot->covers = grown(slot->covers, slot->deed + 1, sizeof(*slot->covers));
	for (unsigned i = 0; type == DISK_FLUSH && i < slot->deed; i++)
		if (changes(w->deeds[i].type) && w->deeds[i].done && w->deeds[i].durable == NEVER)
			slot->covers[slot->covered++] = i;
	slot->busy = true;
	w->busy++;
	disk_submit(&w->queue, &slot->r);
}

static void grow(struct world *w)
{
	uint64_t left = (w->most - w->size) / SECTOR;

	if (left == 0 || w->growth_count == GROWTHS_MAX)
		return;
	uint64_t size = w->size + (1 + random_below(&w->random, left)) * SECTOR;
	w->growths[w->growth_count].size = size;
	w->growths[w->growth_count].asked = medium_now(w->medium);
	must_be(disk_resize(w->disk, size));
	w->growths[w->growth_count++].done = medium_now(w->medium);
	w->size = size;
}

/* --- the disk --- */

static void open_disk(struct world *w)
{
	struct disk_options options = {
		.name = "disk", .format = w->options.format, .opener = &w->opener.opener, .io = &w->now.io};

	w->disk_fd = dup(medium_fd(w->medium));
	must_be(disk_open(&w->disk, w->disk_fd, &options));
	must_be(disk_activate(w->disk));
	for (unsigned i = 0; i < disk_depth(w->disk); i++)
		w->files[i] = (unsigned)disk_fd(w->disk, i);
	w->queue = (struct disk_queue){.disk = w->disk, .io = &w->later.io, .files = w->files};
}

static void close_disk(struct world *w)
{
	unsigned now;

	must_be(disk_deactivate(w->disk));
	/* Deactivating is a flush. */
	now = medium_now(w->medium);
	for (unsigned i = 0; i < w->deed_count; i++)
		w->deeds[i].durable = MIN(w->deeds[i].durable, now);
	disk_close(w->disk);
}

/* One image of the chain, written to here and there. The child is not: it is what is tested. */
static int make_image(struct world *w, unsigned level, const char *name, struct disk *parent, const char *parent_name)
{
	int fd = openat(w->dir, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool child = level == 0;
	struct disk_create create = {.name = name,
				     .format = w->options.format,
				     .subformat = parent  ? "differencing"
						  : child ? w->options.subformat
							  : NULL,
				     .size = parent ? 0 : w->options.size,
				     .block = child || parent ? w->options.block : 0,
				     .parent = parent,
				     .parent_locator = parent_name};

	must(fd >= 0, name);
	must_be(disk_create(fd, &create));
	return fd;
}

struct at_once {
	struct disk_request r;
	int res;
};

static void at_once_done(struct disk_request *r, int res)
{
	((struct at_once *)r)->res = res;
}

/* A request by blocking I/O. */
static int at_once(struct disk *disk, enum disk_request_type type, uint64_t offset, void *data, uint64_t len)
{
	unsigned files[DISK_CHAIN_MAX];
	struct disk_queue queue = {.disk = disk, .io = disk_blocking_io(), .files = files};
	struct iovec iov = {data, len};
	struct at_once a = {
		.r = {.type = type, .offset = offset, .len = len, .iov = &iov, .iov_count = 1, .done = at_once_done},
		.res = -EINPROGRESS};

	for (unsigned i = 0; i < disk_depth(disk); i++)
		files[i] = (unsigned)disk_fd(disk, i);
	disk_submit(&queue, &a.r);
	return a.res;
}

static struct disk *open_named(struct world *w, const char *name)
{
	struct disk_options options = {.name = name, .format = w->options.format, .opener = &w->opener.opener};
	struct disk *disk;

	must_be(disk_open(&disk, openat(w->dir, name, O_RDWR | O_CLOEXEC), &options));
	return disk;
}

static void write_parent(struct world *w, const char *name, unsigned level)
{
	struct disk *disk = open_named(w, name);

	must_be(disk_activate(disk));
	for (unsigned i = 0; i < 24; i++) {
		uint64_t sectors = w->size / SECTOR, at = random_below(&w->random, sectors);
		uint64_t count = MIN(1 + random_below(&w->random, 400), sectors - at);
		for (uint64_t s = at; s < at + count; s++)
			fill(w->initial + s * SECTOR, 1000000 + level, s);
		must(at_once(disk, DISK_WRITE, at * SECTOR, w->initial + at * SECTOR, count * SECTOR) == 0, name);
	}
	must_be(disk_deactivate(disk));
	disk_close(disk);
}

static void make_chain(struct world *w)
{
	char name[32], parent_name[32];
	struct disk *parent = NULL;
	int fd = -1;

	for (unsigned level = w->options.depth; level-- > 0;) {
		snprintf(name, sizeof(name), "level%u", level);
		fd = make_image(w, level, name, parent, parent_name);
		disk_close(parent);
		parent = NULL;
		strcpy(parent_name, name);
		if (level == 0)
			break;
		close(fd);
		write_parent(w, name, level);
		parent = open_named(w, name);
	}
	w->medium = medium_new(fd);
	close(fd);
}

struct world *world_run(const struct world_options *options)
{
	struct world *w = calloc(1, sizeof(*w));

	must(w != NULL, "memory");
	w->options = *options;
	w->random = options->seed;
	w->size = options->size;
	w->most = options->size + options->size / 2 / SECTOR * SECTOR;
	w->initial = calloc(1, w->most);
	w->sectors = calloc(w->most / SECTOR, sizeof(*w->sectors));
	w->now = make_io(w);
	w->later = make_io(w);
	w->dir = open(options->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(w->initial && w->sectors && w->dir >= 0, options->dir);
	opener_dir_init(&w->opener, w->dir);
	for (unsigned i = 0; i < DEPTH; i++) {
		w->slots[i].world = w;
		w->slots[i].buffer = grown(NULL, LENGTH_MAX, 1);
	}
	make_chain(w);
	medium_swallow(w->medium, options->swallow);
	open_disk(w);
	while (w->deed_count < options->steps) {
		if (w->busy < DEPTH && random_below(&w->random, 3) == 0)
			submit(w);
		else if (w->busy > 0)
			turn(w);
		uint64_t rare = random_below(&w->random, 2000);
		if (rare < 8)
			drain(w);
		if (rare == 0) {
			close_disk(w);
			open_disk(w);
		} else if (rare < 3) {
			drain(w);
			grow(w);
		}
	}
	drain(w);
	close_disk(w);
	w->disk = NULL;
	w->disk_fd = -1;
	return w;
}

void world_free(struct world *w)
{
	for (uint64_t i = 0; i < w->most / SECTOR; i++)
		free(w->sectors[i].deeds);
	for (unsigned i = 0; i < DEPTH; i++) {
		free(w->slots[i].buffer);
		free(w->slots[i].covers);
	}
	free(w->sectors);
	free(w->deeds);
	free(w->initial);
	free(w->flushes);
	medium_free(w->medium);
	close(w->dir);
	free(w);
}

const struct medium *world_medium(const struct world *w)
{
	return w->medium;
}

struct world_flush world_flush(const struct world *w, unsigned index)
{
	return w->flushes[index];
}

/* --- after the cut --- */

[[gnu::format(printf, 1, 2)]] static char *words(const char *format, ...)
{
	char *text = NULL;
	va_list args;

	va_start(args, format);
	must(vasprintf(&text, format, args) >= 0, "memory");
	va_end(args);
	return text;
}

static char *words_of(struct error *err)
{
	char *text = err ? words("%s", error_text(err)) : NULL;

	error_free(err);
	return text;
}

/* The disk must be as large as it was once said to be, or as it had been asked to become. */
static char *check_size(const struct world *w, uint64_t size, unsigned cut)
{
	uint64_t least = w->options.size;
	bool known = size == least;

	for (unsigned i = 0; i < w->growth_count && w->growths[i].asked < cut; i++) {
		known |= size == w->growths[i].size;
		if (w->growths[i].done <= cut)
			least = w->growths[i].size;
	}
	return known && size >= least
		       ? NULL
		       : words("it has %llu bytes, not %llu", (unsigned long long)size, (unsigned long long)least);
}

/* Reads what was ever written to, and a little more. @but: a sector that was changed since, and the 7 behind it. */
static char *check_contents(const struct world *w, struct disk *disk, uint64_t size, unsigned cut, uint64_t but)
{
	static uint8_t data[128 * SECTOR];
	uint64_t sectors = size / SECTOR;

	for (uint64_t s = 0; s < sectors; s += 128) {
		uint64_t count = MIN(sectors - s, 128ul);
		bool touched = s % 4096 == 0;
		for (uint64_t i = s; i < s + count && !touched; i++)
			touched = w->sectors[i].count > 0 || !is_zero(w->initial + i * SECTOR);
		if (!touched)
			continue;
		int res = at_once(disk, DISK_READ, s * SECTOR, data, count * SECTOR);
		if (res < 0)
			return words("sector %llu cannot be read: %s", (unsigned long long)s, strerror(-res));
		for (uint64_t i = s; i < s + count; i++)
			if ((i < but || i >= but + 8) && !possible(w, i, data + (i - s) * SECTOR, cut))
				return words("sector %llu has lost what was flushed", (unsigned long long)i);
	}
	return NULL;
}

/* Activating it writes: that is cut too, and what is left then must be no worse. */
static char *check_recovery(struct world *w, int fd, unsigned cut, uint64_t seed)
{
	struct medium *real = w->medium;
	struct disk_options options = {
		.name = "disk", .format = w->options.format, .opener = &w->opener.opener, .io = &w->now.io};
	struct disk *disk = NULL;

	w->medium = medium_new(fd);
	w->disk_fd = dup(medium_fd(w->medium));
	struct error *err = disk_open(&disk, w->disk_fd, &options);
	if (!err)
		err = disk_activate(disk);
	char *what = words_of(err);
	if (disk)
		disk_close(disk);
	else
		close(w->disk_fd);
	struct medium *recovered = w->medium;
	unsigned count = medium_now(recovered);
	w->medium = real;
	w->disk_fd = -1;
	close(fd);
	if (!what)
		what = world_check(
			w, medium_rebuild(recovered, (unsigned)random_below(&seed, count + 1), random_next(&seed)), cut,
			1);
	medium_free(recovered);
	return what;
}

char *world_check(struct world *w, int fd, unsigned cut, uint64_t seed)
{
	struct disk_options options = {.name = "disk", .format = w->options.format, .opener = &w->opener.opener};
	struct disk *disk = NULL;
	uint64_t but = NEVER;

	if (seed % 4 == 0)
		return check_recovery(w, fd, cut, seed);
	struct error *err = disk_open(&disk, fd, &options);
	if (err) {
		close(fd);
		return words_of(err);
	}
	char *what = words_of(disk_activate(disk));
	struct disk_info info;
	disk_info(disk, 0, &info);
	if (!what)
		what = check_size(w, info.size, cut);
	if (!what)
		what = check_contents(w, disk, info.size, cut, but);
	if (!what && seed % 4 == 2) {
		uint8_t data[8 * SECTOR] = {1};
		but = random_below(&seed, info.size / SECTOR - 8);
		if (at_once(disk, DISK_WRITE, but * SECTOR, data, sizeof(data)) < 0)
			what = words("it cannot be written to");
		else
			what = check_contents(w, disk, info.size, cut, but);
	}
	if (!what)
		what = words_of(disk_deactivate(disk));
	disk_close(disk);
	return what;
}
