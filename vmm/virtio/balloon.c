/*
 * virtio-balloon; see balloon.h. Runs on its I/O thread; touches its rings, and makes holes in the memfd of guest RAM.
 *
 * Holes are punched by the ring (IORING_OP_FALLOCATE), whose workers do it while the thread serves disks: freeing 2 MiB
 * takes some 100 us. A queue has one chain in work and one hole in flight; chains are returned when their last hole is
 * there, so the guest's own pace bounds it all. Draining finishes the chain at hand.
 *
 * Page numbers are taken in windows, sorted, and neighbours become one hole: fewer calls, and a huge page of the memfd
 * goes as a whole, or is split once. A number that is no RAM (a hole, ROM, beyond the end) is passed over: the guest
 * keeps what it has.
 */
#include "vmm/virtio/balloon.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/virtio/iov.h"
#include "vmm/virtio/virtio_pci.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <time.h>

#define QUEUES      5
#define QUEUE_SIZE  128
#define WINDOW      256u /* page numbers at a time: what Linux sends in a chain */
#define CHAIN_PFNS  (16 * WINDOW)
#define CHAINS_A_GO 16
#define STATS_MAX   64 /* records that are looked at */
#define NO_RAM      UINT64_MAX

enum { INFLATE, DEFLATE, STATS };

/* What one queue does. */
struct worker {
	struct disk_op op;
	struct balloon *balloon;
	struct virtio_queue *queue;
	unsigned busy; /* 1 while a chain is in work */
	struct virtqueue_chain chain;
	struct iov left;      /* of the chain: page numbers, or free pages */
	bool pages;           /* they are free pages */
	unsigned pfns_left;   /* how many more the chain may name */
	uint32_t pfn[WINDOW]; /* sorted */
	unsigned pfns, next;
	bool held; /* a chain with statistics waits to be asked for */
	uint16_t held_head;
};

struct balloon {
	struct virtio_device device;
	struct balloon_config config;
	struct iothread *thread;
	unsigned memory_slot; /* of the memfd in the thread's ring */
	bool has_slot;
	bool complained;
	bool asked;         /* for statistics that have not come yet */
	atomic_uint target; /* pages that belong into the balloon: num_pages */
	atomic_uint actual; /* pages that the guest says are there */
	atomic_uint poison; /* what free pages hold in the guest: poison_val */
	pthread_mutex_t lock;
	struct balloon_stats stats;
	struct worker worker[QUEUES];
};

static struct balloon *balloon_of(struct virtio_device *dev)
{
	return (struct balloon *)dev; /* its first member */
}

static struct worker *worker_of(const struct virtio_queue *queue)
{
	return &balloon_of(queue->device)->worker[queue->index];
}

/* --- holes --- */

static void sort(uint32_t *pfn, unsigned count)
{
	for (unsigned i = 1; i < count; i++) {
		uint32_t value = pfn[i];
		unsigned at = i;
		for (; at > 0 && pfn[at - 1] > value; at--)
			pfn[at] = pfn[at - 1];
		pfn[at] = value;
	}
}

static uint64_t page_offset(const struct memory *memory, uint32_t pfn)
{
	const uint8_t *host = memory_at(memory, (uint64_t)pfn * BALLOON_PAGE, BALLOON_PAGE);

	return host ? (uint64_t)(host - memory->host) : NO_RAM;
}

static bool next_window(struct worker *w)
{
	unsigned most = MIN(WINDOW, w->pfns_left);

	w->pfns = (unsigned)(iov_copy(&w->left, w->pfn, most * sizeof(*w->pfn), IOV_FROM_GUEST) / sizeof(*w->pfn));
	iov_skip(&w->left, w->pfns * sizeof(*w->pfn));
	w->pfns_left -= w->pfns;
	w->next = 0;
	sort(w->pfn, w->pfns);
	return w->pfns > 0;
}

/* The next run of neighbouring pages of the window; numbers given twice count once. */
static bool next_run(struct worker *w, uint64_t *offset, uint64_t *len)
{
	uint64_t start = 0, bytes = 0;

	for (; w->next < w->pfns; w->next++) {
		uint64_t at = page_offset(w->balloon->device.memory, w->pfn[w->next]);
		if (at == NO_RAM || (bytes && at + BALLOON_PAGE == start + bytes))
			continue;
		if (bytes == 0)
			start = at;
		else if (at != start + bytes)
			break;
		bytes += BALLOON_PAGE;
	}
	*offset = start;
	*len = bytes;
	return bytes > 0;
}

/* The whole pages of the next buffer. */
static bool next_buffer(struct worker *w, uint64_t *offset, uint64_t *len)
{
	for (; w->left.count > 0; w->left.v++, w->left.count--) {
		uint64_t start = (uint64_t)((uint8_t *)w->left.v->iov_base - w->balloon->device.memory->host);
		uint64_t end = align_down(start + w->left.v->iov_len, BALLOON_PAGE);
		*offset = align_up(start, BALLOON_PAGE);
		if (end <= *offset)
			continue;
		*len = end - *offset;
		w->left.v++;
		w->left.count--;
		return true;
	}
	return false;
}

static bool next_hole(struct worker *w, uint64_t *offset, uint64_t *len)
{
	if (w->pages)
		return next_buffer(w, offset, len);
	do {
		if (next_run(w, offset, len))
			return true;
	} while (next_window(w));
	return false;
}

/* --- chains --- */

static void keep_stats(struct balloon *b, struct iov records)
{
	struct [[gnu::packed]] {
		uint16_t tag;
		uint64_t value;
	} record;
	struct balloon_stats stats = {};
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	stats.when = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	for (unsigned i = 0; i < STATS_MAX && iov_take(&records, &record, sizeof(record)); i++) {
		if (record.tag >= BALLOON_STATS)
			continue;
		stats.known |= 1u << record.tag;
		stats.value[record.tag] = record.value;
	}
	pthread_mutex_lock(&b->lock);
	b->stats = stats;
	pthread_mutex_unlock(&b->lock);
	/* Only what was asked for: a guest may send them at will. */
	if (b->asked && b->config.stats_changed)
		b->config.stats_changed(b->config.arg);
	b->asked = false;
}

/* Keeps the chain until someone asks; there is one at a time, another takes its place. */
static void hold(struct worker *w, struct iov records)
{
	if (w->held)
		virtqueue_push(&w->queue->ring, w->held_head, 0);
	w->held = true;
	w->held_head = w->chain.head;
	w->busy = 0;
	keep_stats(w->balloon, records);
}

/* Says what is to be done for the chain that was taken. */
static void begin(struct worker *w)
{
	struct balloon *b = w->balloon;
	unsigned index = w->queue->index;
	struct iov readable = {w->chain.iov, w->chain.readable};

	w->busy = 1;
	w->left = (struct iov){};
	w->pfns = w->next = w->pfns_left = 0;
	w->pages = index >= STATS;
	if (index == INFLATE) {
		w->left = readable;
		w->pfns_left = CHAIN_PFNS;
	} else if (index >= STATS && w->chain.writable > 0) {
		/* Poisoned pages are to be found as they were (5.5.6.7): a hole is zeros. */
		if (virtio_has(&b->device, VIRTIO_BALLOON_F_REPORTING) &&
		    !(virtio_has(&b->device, VIRTIO_BALLOON_F_PAGE_POISON) && atomic_load(&b->poison)))
			w->left = (struct iov){w->chain.iov + w->chain.readable, w->chain.writable};
	} else if (index == STATS && virtio_has(&b->device, VIRTIO_BALLOON_F_STATS_VQ)) {
		hold(w, readable);
	}
}

/* Takes the next chain. False when there is none to take. */
static bool take(struct worker *w)
{
	struct virtio_queue *queue = w->queue;
	enum virtqueue_result result;

	if (!virtio_may_take(queue))
		return false;
	result = virtqueue_pop(&queue->ring, &w->chain);
	if (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring))
		result = virtqueue_pop(&queue->ring, &w->chain);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	if (result == VIRTQUEUE_CHAIN)
		begin(w);
	return result == VIRTQUEUE_CHAIN;
}

/* Works until a hole is in flight, which goes on here when it is there, or nothing is left to do. */
static void work(struct virtio_queue *queue)
{
	struct worker *w = worker_of(queue);
	uint64_t offset = 0, len = 0;
	unsigned taken = 0;

	for (; taken < CHAINS_A_GO && (w->busy || take(w)); taken++) {
		if (w->busy && next_hole(w, &offset, &len)) {
			struct disk_io *io = iothread_io(w->balloon->thread);
			io->fallocate(io, &w->op, w->balloon->memory_slot, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				      offset, len);
			break;
		}
		if (w->busy)
			virtqueue_push(&queue->ring, w->chain.head, 0);
		w->busy = 0;
	}
	virtio_publish(queue);
	if (taken == CHAINS_A_GO)
		virtio_again(queue);
}

static void punched(struct disk_op *op, int res)
{
	struct worker *w = (struct worker *)op; /* its first member */

	if (res < 0 && !w->balloon->complained) {
		w->balloon->complained = true;
		log_warn("balloon: give memory back: %s; the host does without", strerror(-res));
	}
	work(w->queue);
}

static void kick(struct virtio_queue *queue)
{
	if (!worker_of(queue)->busy)
		work(queue);
}

static void drain(struct virtio_queue *queue)
{
	struct worker *w = worker_of(queue);

	iothread_drain(w->balloon->thread, &w->busy);
}

static void forget(struct virtio_queue *queue)
{
	worker_of(queue)->held = false;
}

/* --- the device --- */

static void config_read(struct virtio_device *dev, uint8_t *config)
{
	struct balloon *b = balloon_of(dev);
	struct virtio_balloon_config c = {
		.num_pages = atomic_load(&b->target),
		.actual = atomic_load(&b->actual),
		.poison_val = atomic_load(&b->poison),
	};

	memcpy(config, &c, sizeof(c));
}

static void config_write(struct virtio_device *dev, const uint8_t *config, size_t offset, size_t len)
{
	struct balloon *b = balloon_of(dev);
	struct virtio_balloon_config c;

	memcpy(&c, config, sizeof(c));
	atomic_store(&b->actual, c.actual);
	atomic_store(&b->poison, c.poison_val);
}

/* What the host wishes stays; the guest begins with an empty balloon. */
static void reset(struct virtio_device *dev)
{
	struct balloon *b = balloon_of(dev);

	atomic_store(&b->actual, 0);
	atomic_store(&b->poison, 0);
}

static void state(void *self, struct saved *s)
{
	struct balloon *b = self;
	struct worker *w = &b->worker[STATS];
	uint32_t target = atomic_load(&b->target), actual = atomic_load(&b->actual), poison = atomic_load(&b->poison);

	saved_u32(s, "target", &target);
	saved_u32(s, "actual", &actual);
	saved_u32(s, "poison", &poison);
	saved_bool(s, "stats-held", &w->held);
	saved_u16(s, "stats-head", &w->held_head);
	if (!saved_loading(s))
		return;
	if (target > b->device.memory->size / BALLOON_PAGE)
		saved_fail(s, "a balloon of %u pages is more than the machine has", target);
	if (w->held && w->held_head >= w->queue->ring.size)
		saved_fail(s, "statistics are in descriptor %u of %u", w->held_head, w->queue->ring.size);
	atomic_store(&b->target, target);
	atomic_store(&b->actual, actual);
	atomic_store(&b->poison, poison);
}

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_BALLOON,
	.class_code = 0x00ff00, /* unclassified */
	.config_size = sizeof(struct virtio_balloon_config),
	.config_read = config_read,
	.config_write = config_write,
	.start = work,
	.kick = kick,
	.drain = drain,
	.forget = forget,
	.reset = reset,
	.state = state,
};

static struct error *init(struct balloon *b, const struct memory *memory, struct iothread *thread)
{
	uint64_t features = 1ull << VIRTIO_BALLOON_F_STATS_VQ;

	if (b->config.deflate_on_oom)
		features |= 1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
	if (b->config.reporting)
		features |= 1ull << VIRTIO_BALLOON_F_REPORTING | 1ull << VIRTIO_BALLOON_F_PAGE_POISON;
	TRY(virtio_init(&b->device, &ops, "balloon", memory, features, QUEUES, QUEUE_SIZE, &thread, 1));
	TRY(iothread_add_file(thread, memory->fd, &b->memory_slot));
	b->has_slot = true;
	for (unsigned i = 0; i < QUEUES; i++) {
		b->worker[i].balloon = b;
		b->worker[i].queue = &b->device.queue[i];
		b->worker[i].op.done = punched;
	}
	return NULL;
}

struct error *balloon_new(struct balloon **out, const struct memory *memory, struct iothread *thread,
			  const struct balloon_config *config)
{
	struct balloon *b = calloc(1, sizeof(*b));

	if (!b)
		return error_new(ENOMEM, "make the balloon");
	b->config = *config;
	b->thread = thread;
	pthread_mutex_init(&b->lock, NULL);
	struct error *err = init(b, memory, thread);
	if (err) {
		balloon_free(b);
		return error_wrap(err, "make the balloon");
	}
	*out = b;
	return NULL;
}

void balloon_free(struct balloon *b)
{
	if (!b)
		return;
	virtio_destroy(&b->device);
	if (b->has_slot)
		iothread_remove_file(b->thread, b->memory_slot);
	pthread_mutex_destroy(&b->lock);
	free(b);
}

struct virtio_device *balloon_device(struct balloon *b)
{
	return &b->device;
}

/* --- for the machine --- */

struct error *balloon_set_target(struct balloon *b, uint64_t bytes)
{
	uint64_t memory = b->device.memory->size;

	if (bytes > memory)
		return error_hint(error_new(EINVAL, "a target of %llu bytes: the machine has %llu",
					    (unsigned long long)bytes, (unsigned long long)memory),
				  "give at most what it was started with (--memory)");
	atomic_store(&b->target, (uint32_t)((memory - bytes) / BALLOON_PAGE));
	virtio_config_changed(&b->device);
	return NULL;
}

uint64_t balloon_target(const struct balloon *b)
{
	return b->device.memory->size - (uint64_t)atomic_load(&b->target) * BALLOON_PAGE;
}

uint64_t balloon_actual(const struct balloon *b)
{
	uint64_t inside = (uint64_t)atomic_load(&b->actual) * BALLOON_PAGE;

	return b->device.memory->size - MIN(inside, b->device.memory->size);
}

struct request {
	struct balloon *balloon;
	bool asked;
};

static void ask(void *arg)
{
	struct request *request = arg;
	struct worker *w = &request->balloon->worker[STATS];

	if (!w->held || !virtio_may_take(w->queue))
		return;
	w->held = false;
	virtqueue_push(&w->queue->ring, w->held_head, 0);
	virtio_publish(w->queue);
	request->asked = request->balloon->asked = true;
}

bool balloon_ask_stats(struct balloon *b)
{
	struct request request = {.balloon = b};

	iothread_call(b->thread, ask, &request);
	return request.asked;
}

void balloon_get_stats(struct balloon *b, struct balloon_stats *stats)
{
	pthread_mutex_lock(&b->lock);
	*stats = b->stats;
	pthread_mutex_unlock(&b->lock);
}

const char *balloon_stat_name(unsigned i)
{
	static const char *const names[BALLOON_STATS] = {
		"swap-in",        "swap-out",     "major-faults", "minor-faults",          "free-memory",
		"total-memory",   "available",    "disk-caches",  "huge-page-allocations", "huge-page-failures",
		"oom-kills",      "alloc-stalls", "async-scans",  "direct-scans",          "async-reclaims",
		"direct-reclaims"};

	return names[i];
}
