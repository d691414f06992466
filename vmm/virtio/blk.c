/*
 * virtio-blk, the device: its configuration, its life, its state; see blk.h. Requests are blk_request.c's. Touches its
 * memory.
 */
#include "vmm/virtio/blk_internal.h"

#include "base/cleanup.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

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
	uint32_t block = drive_sector(blk->drive);
	const struct virtio_blk_config c = {
		.capacity = drive_size(blk->drive) / SECTOR_BYTES,
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
	drive_forget(blk->drive);
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

	drive_state(blk->drive, s);
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

static uint64_t features(const struct drive *drive)
{
	uint64_t common = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_TOPOLOGY |
			  1ull << VIRTIO_BLK_F_MQ;

	if (drive_readonly(drive))
		return common | 1ull << VIRTIO_BLK_F_RO;
	return common | 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_CONFIG_WCE | 1ull << VIRTIO_BLK_F_DISCARD |
	       1ull << VIRTIO_BLK_F_WRITE_ZEROES;
}

/* The disk has another size. */
static void resized(void *arg)
{
	struct blk *blk = arg;

	virtio_config_changed(&blk->device);
}

static struct error *make(struct blk *blk, const struct memory *memory)
{
	const struct blk_config *config = &blk->config;
	const char *name = drive_name(blk->drive);

	TRY(virtio_init(&blk->device, &ops, name, memory, features(blk->drive), config->queues, BLK_QUEUE_SIZE,
			config->threads, config->thread_count));
	blk->queue = calloc(config->queues, sizeof(*blk->queue));
	if (!blk->queue)
		return error_new(ENOMEM, "%s: make %u queues", name, config->queues);
	for (unsigned i = 0; i < config->queues; i++) {
		struct blk_queue *q = &blk->queue[i];
		q->blk = blk;
		q->queue = &blk->device.queue[i];
		q->port = drive_port(blk->drive, i % config->thread_count);
		q->many = calloc(BLK_QUEUE_SIZE, sizeof(*q->many));
		if (!q->many)
			return error_new(ENOMEM, "%s: make %u queues", name, config->queues);
		blk_queue_init(q);
	}
	drive_on_resize(blk->drive, resized, blk);
	return NULL;
}

struct error *blk_new(struct blk **out, const struct memory *memory, const struct blk_config *config)
{
	struct blk *blk = calloc(1, sizeof(*blk));

	if (!blk)
		return error_new(ENOMEM, "%s: make the device", drive_name(config->drive));
	blk->config = *config;
	blk->drive = config->drive;
	atomic_init(&blk->writeback, true);
	struct error *err = make(blk, memory);
	if (err) {
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
	drive_on_resize(blk->drive, NULL, NULL);
	virtio_destroy(&blk->device);
	for (unsigned i = 0; blk->queue && i < blk->config.queues; i++)
		free(blk->queue[i].many);
	free(blk->queue);
	free(blk);
}

struct virtio_device *blk_device(struct blk *blk)
{
	return &blk->device;
}
