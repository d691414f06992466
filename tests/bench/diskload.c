/*
 * Load on a disk through the engine, for ./bench disk: what `qemu-img bench` does, request for request.
 *
 *     diskload FILE FORMAT read|write BYTES STEP DEPTH COUNT [direct]
 *
 * COUNT requests of BYTES each, DEPTH at a time, each STEP bytes behind the one before, modulo the disk's size less
 * BYTES. A step that has no divisor in common with that visits every place once before it comes to one again. Prints
 * the seconds from the first request until all are done. Parents are reached in FILE's folder.
 */
#include "disk/disk.h"
#include "disk/ring.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 256u

struct load {
	struct disk_queue queue;
	unsigned files[DISK_CHAIN_MAX];
	enum disk_request_type type;
	uint64_t bytes, step, modulus, offset;
	uint64_t left, busy; /* requests to begin, and under way */
	int worst;
};

struct one {
	struct disk_request r;
	struct iovec iov;
	struct load *load;
};

static void begin(struct one *one)
{
	struct load *l = one->load;

	one->r.type = l->type;
	one->r.offset = l->offset;
	one->r.len = l->bytes;
	one->r.iov = &one->iov;
	one->r.iov_count = 1;
	l->offset = (l->offset + l->step) % l->modulus;
	l->left--;
	l->busy++;
	disk_submit(&l->queue, &one->r);
}

static void done(struct disk_request *r, int res)
{
	struct one *one = (struct one *)r;
	struct load *l = one->load;

	l->busy--;
	if (res < 0)
		l->worst = res;
	else if (l->left > 0)
		begin(one);
}

static struct error *open_disk(struct disk **disk, char **arg, struct opener *opener, bool direct)
{
	bool readonly = strcmp(arg[2], "read") == 0;
	struct disk_options options = {.name = arg[0], .format = arg[1], .readonly = readonly, .opener = opener};
	cleanup_fd int fd = open(arg[0], (readonly ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0) | O_CLOEXEC);

	if (fd < 0)
		return error_new(errno, "open %s", arg[0]);
	TRY(disk_open(disk, fd, &options));
	steal_fd(&fd);
	return disk_activate(*disk);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct error *run(struct load *l, struct disk *disk, unsigned depth)
{
	static struct one ones[DEPTH_MAX];
	struct disk_ring *ring;
	struct disk_info info;

	disk_info(disk, 0, &info);
	if (info.size <= l->bytes)
		return error_new(EINVAL, "the disk is not larger than one request");
	l->modulus = info.size - l->bytes;
	TRY(disk_ring_new(&ring));
	for (unsigned i = 0; i < disk_depth(disk); i++)
		l->files[i] = (unsigned)disk_fd(disk, i);
	l->queue = (struct disk_queue){disk, disk_ring_io(ring), l->files};
	uint8_t *buffers = aligned_alloc(4096, align_up(l->bytes * depth, 4096));
	if (!buffers)
		return error_new(ENOMEM, "buffers");
	memset(buffers, 1, l->bytes * depth);
	for (unsigned i = 0; i < depth; i++) {
		ones[i] = (struct one){.r.done = done, .load = l};
		ones[i].iov = (struct iovec){buffers + i * l->bytes, l->bytes};
	}
	double from = now();
	for (unsigned i = 0; i < depth && l->left > 0; i++)
		begin(&ones[i]);
	while (l->busy > 0)
		disk_ring_serve(ring);
	printf("%.6f\n", now() - from);
	return l->worst ? error_new(-l->worst, "a request") : NULL;
}

static struct error *load(char **arg, int count)
{
	struct load l = {.type = strcmp(arg[2], "read") == 0 ? DISK_READ : DISK_WRITE};
	struct opener_dir opener;
	struct disk *disk;
	uint64_t depth;
	char folder[4096];

	TRY(parse_size(arg[3], "bytes", &l.bytes));
	TRY(parse_size(arg[4], "step", &l.step));
	TRY(parse_number(arg[5], "depth", 1, DEPTH_MAX, &depth));
	TRY(parse_number(arg[6], "count", 1, UINT32_MAX, &l.left));
	snprintf(folder, sizeof(folder), "%s", arg[0]);
	opener_dir_init(&opener, open(dirname(folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	TRY(open_disk(&disk, arg, &opener.opener, count > 7));
	TRY(run(&l, disk, (unsigned)depth));
	TRY(disk_deactivate(disk));
	disk_close(disk);
	return NULL;
}

/* Ends the process on an error, leaks and all. */
int main(int argc, char **argv)
{
	log_init("diskload", LOG_LEVEL_INFO);
	if (argc < 8) {
		fprintf(stderr, "usage: diskload FILE FORMAT read|write BYTES STEP DEPTH COUNT [direct]\n");
		return 2;
	}
	struct error *err = load(argv + 1, argc - 1);
	log_error(err);
	return err != NULL;
}
