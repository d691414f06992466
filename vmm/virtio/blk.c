/*
 * virtio-blk, the device: its configuration, its life, its state; see blk.h. Requests are blk_request.c's. Touches the
 * disk's descriptor.
 */
#include "vmm/virtio/blk_internal.h"

#include "base/cleanup.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The part of the configuration that the offered features speak of; secure erase and zones follow (5.2.4). */
#define CONFIG_BYTES offsetof(struct virtio_blk_config, max_secure_erase_sectors)

/*
 * What guests align partitions and file systems to: 4 KiB, whatever the disk below has. It is part of what a VM is, so
 * it does not follow the host.
 */
#define PHYSICAL_BYTES 4096u

static void config_read(struct virtio_device *dev, uint8_t *config)
{
	struct blk *blk = blk_of(dev);
	uint32_t block = blk->file.block_size;
	const struct virtio_blk_config c = {
		.capacity = blk->file.size / SECTOR_BYTES,
		.seg_max = BLK_SEG_MAX,
		.blk_size = block,
		.physical_block_exp = (uint8_t)__builtin_ctz(PHYSICAL_BYTES / block),
		.min_io_size = (uint16_t)(PHYSICAL_BYTES / block),
		.wce = atomic_load_explicit(&blk->writeback, memory_order_relaxed),
		.num_queues = (uint16_t)dev->queue_count,
		.max_discard_sectors = BLK_RANGE_SECTORS,
		.max_discard_seg = 1,
		.discard_sector_alignment = PHYSICAL_BYTES / SECTOR_BYTES,
		.max_write_zeroes_sectors = BLK_RANGE_SECTORS,
		.max_write_zeroes_seg = 1,
		.write_zeroes_may_unmap = 1,
	};

	memcpy(config, &c, CONFIG_BYTES);
}

/* The cache mode is the one thing a driver may write (5.2.5.1). */
static void config_write(struct virtio_device *dev, const uint8_t *config, size_t offset, size_t len)
{
	struct blk *blk = blk_of(dev);
	size_t wce = offsetof(struct virtio_blk_config, wce);

	if (offset > wce || offset + len <= wce || !virtio_has(dev, VIRTIO_BLK_F_CONFIG_WCE))
		return;
	atomic_store(&blk->writeback, config[wce] & 1);
}

static void reset(struct virtio_device *dev)
{
	struct blk *blk = blk_of(dev);

	atomic_store(&blk->writeback, true);
	atomic_store(&blk->halted, false);
}

static void held_state(void *self, struct saved *s)
{
	saved_require(s);
	saved_u16(s, "head", self);
}

static void queue_state(void *self, struct saved *s)
{
	struct blk_queue *q = self;

	saved_require(s);
	saved_list(s, "held", q->held, &q->held_count, BLK_QUEUE_SIZE, sizeof(q->held[0]), held_state);
}

static void state(void *self, struct saved *s)
{
	struct blk *blk = blk_of(self);
	bool writeback = atomic_load(&blk->writeback);

	/* Compared by blk_activate(): while this loads, the disk may still be its last owner's. */
	saved_require(s);
	saved_u64(s, "bytes", &blk->known_bytes);
	saved_require(s);
	saved_u32(s, "block-size", &blk->known_block);
	saved_bool(s, "writeback", &writeback);
	saved_require(s);
	saved_array(s, "queues", blk->queue, blk->device.queue_count, sizeof(*blk->queue), queue_state);
	atomic_store(&blk->writeback, writeback);
}

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_BLOCK,
	.class_code = 0x010000, /* mass storage, SCSI: what drivers and firmware expect of virtio-blk */
	.config_size = CONFIG_BYTES,
	.config_read = config_read,
	.config_write = config_write,
	.start = blk_start,
	.kick = blk_kick,
	.drain = blk_drain,
	.forget = blk_forget,
	.reset = reset,
	.state = state,
};

static uint64_t features(const struct blk_config *config)
{
	uint64_t common = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_TOPOLOGY |
			  1ull << VIRTIO_BLK_F_MQ;

	if (config->readonly)
		return common | 1ull << VIRTIO_BLK_F_RO;
	return common | 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_CONFIG_WCE | 1ull << VIRTIO_BLK_F_DISCARD |
	       1ull << VIRTIO_BLK_F_WRITE_ZEROES;
}

/* Registers the disk with each thread. */
static struct error *add_files(struct blk *blk)
{
	const struct blk_config *config = &blk->config;

	for (unsigned i = 0; i < config->thread_count; i++)
		blk->files[i] = IOTHREAD_FILES_MAX;
	for (unsigned i = 0; i < config->thread_count; i++)
		TRY(iothread_add_file(config->threads[i], config->fd, &blk->files[i]));
	return NULL;
}

/* One buffer for direct I/O; its pages exist once a guest needs them. */
static struct error *add_bounce(struct blk *blk, struct blk_queue *q)
{
	if (blk->file.memory_align == 1)
		return NULL;
	void *p = mmap(NULL, BOUNCE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return error_new(errno, "%s: make a buffer for direct I/O", blk->config.name);
	q->bounce = p;
	return NULL;
}

static struct error *make(struct blk *blk, const struct memory *memory)
{
	const struct blk_config *config = &blk->config;

	TRY(disk_file_probe(&blk->file, config->name, config->fd, config->readonly));
	TRY(disk_file_size(&blk->file, config->name));
	TRY(virtio_init(&blk->device, &ops, config->name, memory, features(config), config->queues, BLK_QUEUE_SIZE,
			config->threads, config->thread_count));
	blk->queue = calloc(config->queues, sizeof(*blk->queue));
	blk->files = calloc(config->thread_count, sizeof(*blk->files));
	if (!blk->queue || !blk->files)
		return error_new(ENOMEM, "%s: make %u queues", config->name, config->queues);
	TRY(add_files(blk));
	for (unsigned i = 0; i < config->queues; i++) {
		struct blk_queue *q = &blk->queue[i];
		q->blk = blk;
		q->queue = &blk->device.queue[i];
		q->file = blk->files[i % config->thread_count];
		blk_queue_init(q);
		TRY(add_bounce(blk, q));
	}
	return NULL;
}

struct error *blk_new(struct blk **out, const struct memory *memory, const struct blk_config *config)
{
	struct blk *blk = calloc(1, sizeof(*blk));

	if (!blk)
		return error_new(ENOMEM, "%s: make the device", config->name);
	blk->config = *config;
	atomic_init(&blk->writeback, true);
	struct error *err = make(blk, memory);
	if (err) {
		blk->config.fd = -1; /* stays the caller's */
		blk_free(blk);
		return err;
	}
	*out = blk;
	return NULL;
}

void blk_free(struct blk *blk)
{
	if (!blk)
		return;
	virtio_destroy(&blk->device);
	for (unsigned i = 0; blk->files && i < blk->config.thread_count; i++)
		if (blk->files[i] < IOTHREAD_FILES_MAX)
			iothread_remove_file(blk->config.threads[i], blk->files[i]);
	for (unsigned i = 0; blk->queue && i < blk->config.queues; i++)
		if (blk->queue[i].bounce)
			munmap(blk->queue[i].bounce, BOUNCE_BYTES);
	close_fd(&blk->config.fd);
	free(blk->files);
	free(blk->queue);
	free(blk);
}

struct virtio_device *blk_device(struct blk *blk)
{
	return &blk->device;
}

static struct error *take_size(struct blk *blk)
{
	struct disk_file *file = &blk->file;

	TRY(disk_file_size(file, blk->config.name));
	if (blk->known_bytes && (file->size != blk->known_bytes || file->block_size != blk->known_block))
		return error_new(EINVAL,
				 "%s: it is not the disk the guest knows: %llu bytes in blocks of %u, not %llu in %u",
				 blk->config.name, (unsigned long long)file->size, file->block_size,
				 (unsigned long long)blk->known_bytes, blk->known_block);
	blk->known_bytes = file->size;
	blk->known_block = file->block_size;
	return NULL;
}

struct error *blk_activate(struct blk *blk)
{
	if (atomic_load(&blk->active))
		return NULL;
	TRY(disk_file_lock(&blk->file, blk->config.name));
	struct error *err = take_size(blk);
	if (err) {
		disk_file_unlock(&blk->file);
		return err;
	}
	atomic_store(&blk->active, true);
	return NULL;
}

struct error *blk_deactivate(struct blk *blk)
{
	if (!atomic_load(&blk->active))
		return NULL;
	if (!blk->file.readonly && fdatasync(blk->file.fd) < 0)
		return error_new(errno, "%s: make it durable", blk->config.name);
	atomic_store(&blk->active, false);
	disk_file_unlock(&blk->file);
	return NULL;
}

void blk_stats(const struct blk *blk, struct blk_stats *stats)
{
	*stats = (struct blk_stats){0};
	for (unsigned i = 0; i < blk->device.queue_count; i++) {
		const uint64_t *from = &blk->queue[i].stats.reads;
		uint64_t *to = &stats->reads;
		for (unsigned n = 0; n < sizeof(*stats) / sizeof(*to); n++)
			to[n] += __atomic_load_n(&from[n], __ATOMIC_RELAXED);
	}
}
