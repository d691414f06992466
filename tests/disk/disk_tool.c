/*
 * Drives lib/disk from the command line, for the tests beside other tools.
 *
 *     disk_tool make FILE SIZE SUBFORMAT BLOCK SECTOR [PARENT]
 *     disk_tool write FILE MODEL SEED COUNT [crash]   random changes, to the disk and to a raw file beside it
 *     disk_tool compare FILE MODEL                    read-only
 *     disk_tool reads FILE MODEL SEED COUNT           random reads by two threads at once, many at a time, read-only
 *     disk_tool copy FILE RAW                         what the disk holds, its log replayed; as much as RAW is long
 *     disk_tool grow FILE SIZE
 *
 * FILE is vhdx (or what its contents say; made as vhd when it is called so), in the working folder, where its parents
 * lie too.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "disk/disk.h"
#include "disk/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DEPTH     8
#define BYTES_MAX (4 * MIB)

static struct opener_dir opener;

static struct error *open_disk(struct disk **disk, const char *path, bool readonly)
{
	struct disk_options options = {.name = path, .readonly = readonly, .opener = &opener.opener};
	cleanup_fd int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);

	if (fd < 0)
		return error_new(errno, "open %s", path);
	TRY(disk_open(disk, fd, &options));
	steal_fd(&fd);
	return NULL;
}

static struct error *make(char **arg, int count)
{
	struct disk_create create = {.name = arg[0], .format = "vhdx", .subformat = arg[2]};
	uint64_t block, sector;

	const char *suffix = strrchr(arg[0], '.');
	if (suffix && strcmp(suffix, ".vhd") == 0)
		create.format = "vhd";
	TRY(parse_size(arg[1], "size", &create.size));
	TRY(parse_size(arg[3], "block", &block));
	TRY(parse_size(arg[4], "sector", &sector));
	create.block = (uint32_t)block;
	create.sector = (uint32_t)sector;
	if (count > 5) {
		create.parent_locator = arg[5];
		TRY(open_disk(&create.parent, arg[5], true));
	}
	cleanup_fd int fd = open(arg[0], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_new(errno, "make %s", arg[0]);
	struct error *err = disk_create(fd, &create);
	disk_close(create.parent);
	return err;
}

/* --- random changes, many at a time --- */

struct change {
	struct disk_request r;
	struct iovec iov;
	uint8_t *data;
	bool busy;
};

static unsigned busy;
static int worst;

static void changed(struct disk_request *r, int res)
{
	((struct change *)r)->busy = false;
	busy--;
	if (res < 0)
		worst = res;
}

static uint64_t random_below(uint64_t n)
{
	return (((uint64_t)random() << 31) ^ (uint64_t)random()) % n;
}

static bool overlaps(const struct change *changes, const struct change *c)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		const struct change *o = &changes[i];
		if (o->busy && o != c && o->r.offset < c->r.offset + c->r.len && c->r.offset < o->r.offset + o->r.len)
			return true;
	}
	return false;
}

static struct error *start(struct disk_queue *queue, struct change *c, const struct disk_info *info, int model)
{
	c->r.len = MIN(info->sector * (1 + random_below(random_below(8) ? 64 : BYTES_MAX / info->sector)),
		       info->size - c->r.offset);
	c->r.type = random_below(5) ? DISK_WRITE : DISK_WRITE_ZEROES;
	c->r.unmap = random_below(2);
	for (uint64_t i = 0; i < c->r.len; i += 4)
		*(uint32_t *)(void *)(c->data + i) = c->r.type == DISK_WRITE ? (uint32_t)random() : 0;
	TRY(pwrite_all(model, c->data, c->r.len, (off_t)c->r.offset, "the model"));
	c->iov = (struct iovec){c->data, c->r.len};
	c->r.iov_count = c->r.type == DISK_WRITE;
	c->busy = true;
	busy++;
	disk_submit(queue, &c->r);
	return NULL;
}

/* While others are under way: of them it promises nothing. */
static void flush(struct disk_queue *queue, struct disk_ring *ring)
{
	struct change c = {.r.type = DISK_FLUSH, .r.done = changed};

	busy++;
	disk_submit(queue, &c.r);
	while (busy > 0)
		disk_ring_serve(ring);
}

static struct error *change_all(struct disk *disk, int model, unsigned count)
{
	struct change changes[DEPTH] = {0};
	unsigned files[DISK_CHAIN_MAX];
	struct disk_ring *ring;
	struct disk_info info;

	TRY(disk_ring_new(&ring));
	disk_info(disk, 0, &info);
	for (unsigned i = 0; i < disk_depth(disk); i++)
		files[i] = (unsigned)disk_fd(disk, i);
	struct disk_queue queue = {disk, disk_ring_io(ring), files};
	for (unsigned i = 0; i < DEPTH; i++) {
		changes[i].data = malloc(BYTES_MAX);
		changes[i].r.iov = &changes[i].iov;
		changes[i].r.done = changed;
	}
	for (unsigned i = 0; i < count && worst == 0; i++) {
		struct change *c = &changes[i % DEPTH];
		while (c->busy)
			disk_ring_serve(ring);
		c->r.offset = info.sector * random_below(info.size / info.sector);
		c->r.len = BYTES_MAX;
		while (overlaps(changes, c))
			disk_ring_serve(ring);
		TRY(start(&queue, c, &info, model));
		if (random_below(20) == 0)
			flush(&queue, ring);
	}
	while (busy > 0)
		disk_ring_serve(ring);
	flush(&queue, ring);
	return worst ? error_new(-worst, "change the disk") : NULL;
}

static struct error *write_random(char **arg, int count)
{
	struct disk *disk;
	cleanup_fd int model = open(arg[1], O_RDWR | O_CLOEXEC);

	if (model < 0)
		return error_new(errno, "open %s", arg[1]);
	srandom((unsigned)atoi(arg[2]));
	TRY(open_disk(&disk, arg[0], false));
	TRY(disk_activate(disk));
	TRY(change_all(disk, model, (unsigned)atoi(arg[3])));
	if (count > 4)
		_exit(0); /* the log is as it is */
	TRY(disk_deactivate(disk));
	disk_close(disk);
	return NULL;
}

/* --- reading --- */

static void piece_done(struct disk_request *r, int res)
{
	worst = res;
}

/* Hands the active disk's bytes, up to @end, to @each, piece by piece. */
static struct error *each_piece(struct disk *disk, uint64_t end,
				struct error *(*each)(int fd, uint8_t *p, size_t len, uint64_t at), int fd)
{
	cleanup_free uint8_t *p = malloc(BYTES_MAX);
	unsigned files[DISK_CHAIN_MAX];

	for (unsigned i = 0; i < disk_depth(disk); i++)
		files[i] = (unsigned)disk_fd(disk, i);
	struct disk_queue queue = {disk, disk_blocking_io(), files};
	for (uint64_t at = 0; at < end; at += BYTES_MAX) {
		size_t len = (size_t)MIN(BYTES_MAX, end - at);
		struct iovec iov = {p, len};
		struct disk_request r = {
			.type = DISK_READ, .offset = at, .len = len, .iov = &iov, .iov_count = 1, .done = piece_done};
		disk_submit(&queue, &r);
		if (worst < 0)
			return error_new(-worst, "read at %llu", (unsigned long long)at);
		TRY(each(fd, p, len, at));
	}
	return NULL;
}

static struct error *compare_piece(int model, uint8_t *p, size_t len, uint64_t at)
{
	cleanup_free uint8_t *want = malloc(len);

	if (!want)
		return error_new(ENOMEM, "compare");
	TRY(pread_all(model, want, len, (off_t)at, "the model"));
	for (size_t i = 0; i < len; i++)
		if (p[i] != want[i])
			return error_new(0, "they differ at %llu", (unsigned long long)(at + i));
	return NULL;
}

static struct error *copy_piece(int to, uint8_t *p, size_t len, uint64_t at)
{
	return pwrite_all(to, p, len, (off_t)at, "the copy");
}

static struct error *read_disk(char **arg, bool copy)
{
	cleanup_fd int other = open(arg[1], (copy ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	struct disk *disk;
	struct disk_info info;

	if (other < 0)
		return error_new(errno, "open %s", arg[1]);
	TRY(open_disk(&disk, arg[0], !copy));
	TRY(disk_activate(disk));
	disk_info(disk, 0, &info);
	if (copy)
		info.size = MIN(info.size, (uint64_t)lseek(other, 0, SEEK_END));
	TRY(each_piece(disk, info.size, copy ? copy_piece : compare_piece, other));
	TRY(disk_deactivate(disk));
	disk_close(disk);
	return NULL;
}

static struct error *compare(char **arg, int count)
{
	return read_disk(arg, false);
}

static struct error *copy(char **arg, int count)
{
	return read_disk(arg, true);
}

/* --- random reads --- */

struct reader {
	pthread_t thread;
	struct disk *disk;
	int model;
	unsigned seed, count;
	pthread_barrier_t *end;
	struct error *err;
	struct disk_ring *ring; /* its thread's */
	struct disk_queue queue;
	unsigned files[DISK_CHAIN_MAX];
	unsigned busy;
};

struct random_read {
	struct disk_request r;
	struct iovec iov;
	struct reader *reader;
	uint8_t *data;
	bool busy;
};

static void read_done(struct disk_request *r, int res)
{
	struct random_read *read = (struct random_read *)r;
	struct reader *reader = read->reader;
	cleanup_free uint8_t *want = malloc(r->len);

	read->busy = false;
	reader->busy--;
	struct error *err = res < 0 ? error_new(-res, "read at %llu", (unsigned long long)r->offset)
				    : pread_all(reader->model, want, r->len, (off_t)r->offset, "the model");
	if (!err && memcmp(want, read->data, r->len) != 0)
		err = error_new(0, "they differ within %llu bytes at %llu", (unsigned long long)r->len,
				(unsigned long long)r->offset);
	reader->err = error_first(reader->err, err);
}

static void start_read(struct reader *reader, struct random_read *read, const struct disk_info *info)
{
	uint64_t sectors = info->size / info->sector, first = ((uint64_t)rand_r(&reader->seed) << 16) % sectors;
	uint64_t count = 1 + (uint64_t)rand_r(&reader->seed) % (rand_r(&reader->seed) % 8 ? 64 : 2048);

	first = (first + (uint64_t)rand_r(&reader->seed)) % sectors;
	read->r.offset = first * info->sector;
	read->r.len = MIN(count, sectors - first) * info->sector;
	read->r.type = DISK_READ;
	read->r.done = read_done;
	read->iov = (struct iovec){read->data, read->r.len};
	read->r.iov = &read->iov;
	read->r.iov_count = 1;
	read->busy = true;
	reader->busy++;
	disk_submit(&reader->queue, &read->r);
}

static void read_many(struct reader *reader)
{
	struct random_read reads[DEPTH] = {0};
	struct disk_info info;

	reader->queue = (struct disk_queue){reader->disk, disk_ring_io(reader->ring), reader->files};
	disk_info(reader->disk, 0, &info);
	for (unsigned i = 0; i < DEPTH; i++) {
		reads[i].reader = reader;
		reads[i].data = malloc(2048 * 4096);
	}
	for (unsigned i = 0; i < reader->count && !reader->err; i++) {
		while (reads[i % DEPTH].busy)
			disk_ring_serve(reader->ring);
		start_read(reader, &reads[i % DEPTH], &info);
	}
	while (reader->busy > 0)
		disk_ring_serve(reader->ring);
	for (unsigned i = 0; i < DEPTH; i++)
		free(reads[i].data);
}

static void *run_reader(void *arg)
{
	struct reader *reader = arg;

	reader->err = disk_ring_new(&reader->ring);
	if (!reader->err)
		read_many(reader);
	/* Another's thread may post to this ring as long as it reads. */
	pthread_barrier_wait(reader->end);
	disk_ring_free(reader->ring);
	return NULL;
}

static struct error *read_random(char **arg, int count)
{
	struct reader readers[2] = {0};
	pthread_barrier_t end;
	struct disk *disk;
	struct error *err = NULL;
	cleanup_fd int model = open(arg[1], O_RDONLY | O_CLOEXEC);

	if (model < 0)
		return error_new(errno, "open %s", arg[1]);
	TRY(open_disk(&disk, arg[0], true));
	TRY(disk_activate(disk));
	pthread_barrier_init(&end, NULL, ARRAY_SIZE(readers));
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
		struct reader *r = &readers[i];
		r->disk = disk;
		r->model = model;
		r->seed = (unsigned)atoi(arg[2]) + i;
		r->count = (unsigned)atoi(arg[3]);
		r->end = &end;
		for (unsigned level = 0; level < disk_depth(disk); level++)
			r->files[level] = (unsigned)disk_fd(disk, level);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++)
		if (pthread_create(&readers[i].thread, NULL, run_reader, &readers[i]) != 0)
			return error_new(errno, "start a thread");
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++)
		pthread_join(readers[i].thread, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++)
		err = error_first(err, readers[i].err);
	pthread_barrier_destroy(&end);
	TRY(err);
	TRY(disk_deactivate(disk));
	disk_close(disk);
	return NULL;
}

static struct error *grow(char **arg, int count)
{
	struct disk *disk;
	uint64_t size;

	TRY(parse_size(arg[1], "size", &size));
	TRY(open_disk(&disk, arg[0], false));
	TRY(disk_activate(disk));
	TRY(disk_resize(disk, size));
	TRY(disk_deactivate(disk));
	disk_close(disk);
	return NULL;
}

/* Ends the process on an error, leaks and all. */
int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		struct error *(*run)(char **arg, int count);
	} commands[] = {{"make", 5, make},         {"write", 4, write_random}, {"compare", 2, compare},
			{"reads", 4, read_random}, {"copy", 2, copy},          {"grow", 2, grow}};
	int dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	log_init("disk_tool", LOG_LEVEL_INFO);
	opener_dir_init(&opener, dir);
	for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(commands); i++) {
		if (strcmp(argv[1], commands[i].name) != 0 || argc - 2 < commands[i].args)
			continue;
		struct error *err = commands[i].run(argv + 2, argc - 2);
		log_error(err);
		return err != NULL;
	}
	fprintf(stderr, "usage: disk_tool make|write|compare|copy|grow FILE ...\n");
	return 2;
}
