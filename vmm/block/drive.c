/*
 * Drives; see drive.h. Touches the descriptors of its disk: through the threads' rings while the machine runs, by
 * system calls of the main thread when it opens, takes, grows or leaves the disk.
 */
#include "vmm/block/drive.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/virtio/iov.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The detour of requests that direct I/O refuses: one a port. */
#define BOUNCE_BYTES (64u << 10)

/* The thread's own, but for its counters, which others read. */
struct drive_port {
	struct drive *drive;
	struct disk_queue queue;
	unsigned files[DISK_CHAIN_MAX]; /* slots in the thread's ring, by level */
	unsigned file_count;
	uint8_t *bounce;                              /* NULL without direct I/O */
	struct drive_request *bounced, *bounced_last; /* the first has the bounce buffer */
	bool pumping;
	struct drive_stats stats;
} __attribute__((aligned(64)));

struct drive {
	struct drive_config config;
	struct disk *disk;
	uint64_t known_size; /* the disk as the guest knows it; 0 when no guest saw it yet */
	uint32_t known_sector;
	_Atomic uint64_t size;
	uint32_t sector, memory_align;
	atomic_bool active;
	atomic_bool halted; /* a request is held: nothing new is taken until the machine resumes */
	atomic_flag complained;
	void (*resized)(void *arg);
	void *resized_arg;
	struct drive_port *port; /* by thread */
};

/* --- life --- */

/* What the disk is now. */
static void look(struct drive *drive)
{
	struct disk_info info;

	disk_info(drive->disk, 0, &info);
	atomic_store(&drive->size, info.size);
	drive->sector = info.sector;
	drive->memory_align = 1;
	for (unsigned level = 0; level < disk_depth(drive->disk); level++) {
		disk_info(drive->disk, level, &info);
		drive->memory_align = MAX(drive->memory_align, info.memory_align);
	}
}

static struct error *open_disk(struct drive *drive)
{
	const struct drive_config *config = &drive->config;
	const struct disk_options options = {
		.name = config->name,
		.format = config->format,
		.readonly = config->readonly,
		.opener = config->opener,
		.parents = config->parents,
		.parent_count = config->parent_count,
	};

	TRY(disk_open(&drive->disk, config->fd, &options));
	look(drive);
	return NULL;
}

/* One buffer for direct I/O; its pages exist once a guest needs them. */
static struct error *add_bounce(struct drive_port *port)
{
	if (port->drive->memory_align == 1)
		return NULL;
	void *p = mmap(NULL, BOUNCE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return error_new(errno, "%s: make a buffer for direct I/O", port->drive->config.name);
	port->bounce = p;
	return NULL;
}

/* Registers the disk's files with the thread. */
static struct error *make_port(struct drive *drive, unsigned thread)
{
	struct drive_port *port = &drive->port[thread];
	struct iothread *t = drive->config.threads[thread];

	port->drive = drive;
	port->queue = (struct disk_queue){.disk = drive->disk, .io = iothread_io(t), .files = port->files};
	for (unsigned level = 0; level < disk_depth(drive->disk); level++) {
		TRY(error_wrap(iothread_add_file(t, disk_fd(drive->disk, level), &port->files[level]), "%s",
			       drive->config.name));
		port->file_count++;
	}
	return add_bounce(port);
}

static struct error *make_ports(struct drive *drive)
{
	size_t bytes = drive->config.thread_count * sizeof(*drive->port);

	drive->port = aligned_alloc(alignof(struct drive_port), bytes);
	if (!drive->port)
		return error_new(ENOMEM, "%s: make its ports", drive->config.name);
	memset(drive->port, 0, bytes);
	for (unsigned i = 0; i < drive->config.thread_count; i++)
		TRY(make_port(drive, i));
	return NULL;
}

static void close_files(const struct drive_config *config)
{
	int fd = config->fd;

	close_fd(&fd);
	for (unsigned i = 0; config->parents && i < config->parent_count; i++) {
		fd = config->parents[i];
		close_fd(&fd);
	}
}

struct error *drive_new(struct drive **out, const struct drive_config *config)
{
	struct drive *drive = calloc(1, sizeof(*drive));
	if (!drive) {
		close_files(config);
		return error_new(ENOMEM, "%s: make the drive", config->name);
	}
	drive->config = *config;
	struct error *err = open_disk(drive);
	if (err) {
		close_files(config);
		free(drive);
		return err;
	}
	drive->config.opener = NULL; /* used for opening alone */
	drive->config.parents = NULL;
	err = make_ports(drive);
	if (err) {
		drive_free(drive);
		return err;
	}
	*out = drive;
	return NULL;
}

void drive_free(struct drive *drive)
{
	if (!drive)
		return;
	for (unsigned i = 0; drive->port && i < drive->config.thread_count; i++) {
		struct drive_port *port = &drive->port[i];
		for (unsigned level = 0; level < port->file_count; level++)
			iothread_remove_file(drive->config.threads[i], port->files[level]);
		if (port->bounce)
			munmap(port->bounce, BOUNCE_BYTES);
	}
	disk_close(drive->disk);
	free(drive->port);
	free(drive);
}

static struct error *check_known(struct drive *drive)
{
	uint64_t size = drive_size(drive);

	if (drive->known_size && (size != drive->known_size || drive->sector != drive->known_sector))
		return error_new(EINVAL,
				 "%s: it is not the disk the guest knows: %llu bytes in blocks of %u, not %llu in %u",
				 drive->config.name, (unsigned long long)size, drive->sector,
				 (unsigned long long)drive->known_size, drive->known_sector);
	drive->known_size = size;
	drive->known_sector = drive->sector;
	return NULL;
}

struct error *drive_activate(struct drive *drive)
{
	if (atomic_load(&drive->active))
		return NULL;
	TRY(disk_activate(drive->disk));
	look(drive);
	struct error *err = check_known(drive);
	if (err) {
		log_error(disk_deactivate(drive->disk));
		return err;
	}
	atomic_store(&drive->active, true);
	return NULL;
}

struct error *drive_deactivate(struct drive *drive)
{
	if (!atomic_load(&drive->active))
		return NULL;
	TRY(disk_deactivate(drive->disk));
	atomic_store(&drive->active, false);
	return NULL;
}

struct error *drive_resize(struct drive *drive, uint64_t size)
{
	struct error *err = disk_resize(drive->disk, size);

	/* It may have grown by the time it failed. */
	look(drive);
	drive->known_size = drive_size(drive);
	if (!err && drive->resized)
		drive->resized(drive->resized_arg);
	return err;
}

void drive_on_resize(struct drive *drive, void (*resized)(void *arg), void *arg)
{
	drive->resized = resized;
	drive->resized_arg = arg;
}

void drive_state(struct drive *drive, struct saved *s)
{
	saved_require(s);
	saved_u64(s, "bytes", &drive->known_size);
	saved_require(s);
	saved_u32(s, "block-size", &drive->known_sector);
}

/* --- what it is --- */

uint64_t drive_size(const struct drive *drive)
{
	return atomic_load_explicit(&drive->size, memory_order_relaxed);
}

uint32_t drive_sector(const struct drive *drive)
{
	return drive->sector;
}

bool drive_readonly(const struct drive *drive)
{
	return drive->config.readonly;
}

const char *drive_name(const struct drive *drive)
{
	return drive->config.name;
}

const struct disk *drive_disk(const struct drive *drive)
{
	return drive->disk;
}

bool drive_has(const struct drive *drive, uint64_t offset, uint64_t len)
{
	return range_inside(offset, len, drive_size(drive)) && is_aligned(offset | len, drive->sector);
}

/* --- requests --- */

struct drive_port *drive_port(struct drive *drive, unsigned thread)
{
	return &drive->port[thread];
}

/* Does the whole request, or its flush, at once. */
static void submit(struct drive_request *r, enum disk_request_type type)
{
	r->disk.type = type;
	r->disk.unmap = r->unmap;
	r->disk.offset = r->offset;
	r->disk.len = r->len;
	r->disk.iov = r->iov;
	r->disk.iov_count = r->iov_count;
	disk_submit(&r->port->queue, &r->disk);
}

/* Between the bounce buffer and the part of the guest's that the piece is. */
static void copy_piece(struct drive_request *r, enum iov_direction direction)
{
	uint64_t skip = r->finished, len = r->piece.iov_len;
	uint8_t *p = r->piece.iov_base;

	for (unsigned i = 0; i < r->iov_count && len > 0; i++) {
		if (skip >= r->iov[i].iov_len) {
			skip -= r->iov[i].iov_len;
			continue;
		}
		const struct iovec part = {(uint8_t *)r->iov[i].iov_base + skip, r->iov[i].iov_len - skip};
		size_t n = iov_copy(&(struct iov){(struct iovec *)(uintptr_t)&part, 1}, p, len, direction);
		p += n;
		len -= n;
		skip = 0;
	}
}

/* Transfers what comes next through the bounce buffer. */
static void next_piece(struct drive_request *r)
{
	r->piece = (struct iovec){r->port->bounce, (size_t)MIN(r->len - r->finished, (uint64_t)BOUNCE_BYTES)};
	if (r->type == DISK_WRITE)
		copy_piece(r, IOV_FROM_GUEST);
	r->disk.type = r->type;
	r->disk.unmap = false;
	r->disk.offset = r->offset + r->finished;
	r->disk.len = r->piece.iov_len;
	r->disk.iov = &r->piece;
	r->disk.iov_count = 1;
	disk_submit(&r->port->queue, &r->disk);
}

/* Sets off what is not under way. What ends at once goes on in this loop: a guest decides how much that is. */
static void pump(struct drive_port *port)
{
	if (port->pumping)
		return;
	port->pumping = true;
	while (port->bounced && !port->bounced->moving) {
		port->bounced->moving = true;
		next_piece(port->bounced);
	}
	port->pumping = false;
}

static void enter_bounce(struct drive_request *r)
{
	struct drive_port *port = r->port;

	r->bounced = true;
	r->moving = false;
	r->next = NULL;
	if (port->bounced)
		port->bounced_last->next = r;
	else
		port->bounced = r;
	port->bounced_last = r;
	pump(port);
}

/* A piece of the first of those that need the bounce buffer is done. True when it was the last. */
static bool piece_done(struct drive_request *r, int res)
{
	r->moving = false;
	if (res == 0) {
		if (r->type == DISK_READ)
			copy_piece(r, IOV_TO_GUEST);
		r->finished += r->piece.iov_len;
		if (r->finished < r->len)
			return false;
	}
	r->bounced = false;
	r->port->bounced = r->next;
	return true;
}

static void done(struct disk_request *disk, int res)
{
	struct drive_request *r = (struct drive_request *)((char *)disk - offsetof(struct drive_request, disk));
	struct drive_port *port = r->port;

	if (r->bounced && !piece_done(r, res)) {
		/* Its next piece is pump()'s. */
	} else if (res == 0 && r->durable && !r->syncing && r->type != DISK_READ && r->type != DISK_FLUSH) {
		r->syncing = true;
		submit(r, DISK_FLUSH);
	} else {
		r->done(r, res);
	}
	pump(port);
}

/* True when direct I/O takes the buffers as they are. */
static bool aligned(const struct drive *drive, const struct drive_request *r)
{
	if (drive->memory_align == 1 || (r->type != DISK_READ && r->type != DISK_WRITE))
		return true;
	for (unsigned i = 0; i < r->iov_count; i++)
		if (!is_aligned((uintptr_t)r->iov[i].iov_base, drive->memory_align) ||
		    !is_aligned(r->iov[i].iov_len, drive->sector))
			return false;
	return true;
}

void drive_submit(struct drive_port *port, struct drive_request *r)
{
	r->port = port;
	r->disk.done = done;
	r->finished = 0;
	r->bounced = r->syncing = false;
	if (aligned(port->drive, r))
		submit(r, r->type);
	else
		enter_bounce(r);
}

/* --- failures --- */

uint64_t drive_read(const struct drive_request *r)
{
	return r->finished ? r->finished : r->disk.iov == r->iov ? r->disk.finished : 0;
}

bool drive_holds(const struct drive_request *r, int errnum)
{
	static const char *const names[] = {
		[DISK_READ] = "read",       [DISK_WRITE] = "write",         [DISK_FLUSH] = "flush",
		[DISK_DISCARD] = "discard", [DISK_WRITE_ZEROES] = "zeroes",
	};
	struct drive *drive = r->port->drive;
	const struct drive_config *config = &drive->config;
	bool full = errnum == ENOSPC || errnum == EDQUOT;
	bool hold = (full ? config->on_full : config->on_error) == DRIVE_PAUSE;

	/* Once: the guest, or the pause, tells the rest. */
	if (!atomic_flag_test_and_set(&drive->complained))
		log_warn("%s: %s at byte %llu: %s; %s", config->name, names[r->type], (unsigned long long)r->offset,
			 strerror(errnum), hold ? "held until the VM resumes" : "the guest is told");
	if (hold && !atomic_exchange(&drive->halted, true) && config->paused)
		config->paused(config->paused_arg, errnum);
	return hold;
}

bool drive_may_take(const struct drive *drive)
{
	return atomic_load_explicit(&drive->active, memory_order_relaxed) &&
	       !atomic_load_explicit(&drive->halted, memory_order_relaxed);
}

bool drive_go_on(struct drive *drive)
{
	if (!atomic_load_explicit(&drive->active, memory_order_relaxed))
		return false;
	atomic_store(&drive->halted, false);
	return true;
}

void drive_forget(struct drive *drive)
{
	atomic_store(&drive->halted, false);
}

/* --- counters --- */

/* One writer, so no atomic addition is needed: only that a reader sees whole numbers. */
static void add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

void drive_count(struct drive_port *port, enum disk_request_type type, uint64_t bytes)
{
	struct drive_stats *stats = &port->stats;

	switch (type) {
	case DISK_READ:
		add(&stats->reads, 1);
		add(&stats->read_bytes, bytes);
		break;
	case DISK_WRITE:
		add(&stats->writes, 1);
		add(&stats->written_bytes, bytes);
		break;
	case DISK_FLUSH:
		add(&stats->flushes, 1);
		break;
	case DISK_DISCARD:
	case DISK_WRITE_ZEROES:
		add(&stats->discards, 1);
		break;
	}
}

void drive_count_error(struct drive_port *port)
{
	add(&port->stats.errors, 1);
}

void drive_stats(const struct drive *drive, struct drive_stats *stats)
{
	*stats = (struct drive_stats){0};
	for (unsigned i = 0; i < drive->config.thread_count; i++) {
		const uint64_t *from = &drive->port[i].stats.reads;
		uint64_t *to = &stats->reads;
		for (unsigned n = 0; n < sizeof(*stats) / sizeof(*to); n++)
			to[n] += __atomic_load_n(&from[n], __ATOMIC_RELAXED);
	}
}
