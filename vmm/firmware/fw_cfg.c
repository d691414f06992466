/*
 * The firmware configuration device; see fw_cfg.h. Touches its items, the files of some, and guest memory where the
 * guest's descriptors say.
 */
#include "vmm/firmware/fw_cfg.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORT_SELECT 0x510
#define PORT_DMA    0x514
#define ALL_KEYS    0x3fff /* the top bits said "write" and "architecture" once */

/* What ID tells: the ports, and DMA. */
#define ID_FEATURES 3

/* FWCfgDmaAccess, big-endian, and the bits of its first word. */
struct dma {
	uint32_t control, length;
	uint64_t address;
};
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };

/*
 * Behind the end of an item there are zeros. Firmware may read a few of them; nobody needs more, and nobody may keep a
 * vCPU thread here filling gigabytes.
 */
#define ZEROS_MAX (64 * KIB)

struct [[gnu::packed]] directory_entry {
	uint32_t size;
	uint16_t key, reserved;
	char name[FW_CFG_NAME_MAX + 1];
};

static struct fw_cfg_item *find(struct fw_cfg *cfg, uint16_t key)
{
	for (unsigned i = 0; i < cfg->items; i++)
		if (cfg->item[i].key == key)
			return &cfg->item[i];
	return NULL;
}

static struct fw_cfg_item *find_name(struct fw_cfg *cfg, const char *name)
{
	for (unsigned i = 0; i < cfg->items; i++)
		if (strcmp(cfg->item[i].name, name) == 0)
			return &cfg->item[i];
	return NULL;
}

static void select_item(struct fw_cfg *cfg, uint16_t key)
{
	struct fw_cfg_item *item;

	cfg->selected = key & ALL_KEYS;
	cfg->offset = 0;
	item = find(cfg, cfg->selected);
	if (item && item->fresh_on_read && !cfg->refreshed) {
		cfg->refreshed = true;
		cfg->refresh(cfg->refresh_arg);
	}
}

/* The next @len bytes, which the item has. Returns false when its file fails. */
static bool take(struct fw_cfg *cfg, const struct fw_cfg_item *item, void *to, uint64_t len)
{
	if (item->data) {
		memcpy(to, item->data + cfg->offset, len);
	} else {
		cleanup_error struct error *err =
			pread_all(item->fd, to, len, (off_t)(item->offset + cfg->offset), "fw_cfg");
		if (err)
			return false;
	}
	cfg->offset += len;
	return true;
}

static uint64_t left(const struct fw_cfg *cfg, const struct fw_cfg_item *item)
{
	return item && cfg->offset < item->size ? item->size - cfg->offset : 0;
}

static uint8_t next_byte(struct fw_cfg *cfg)
{
	struct fw_cfg_item *item = find(cfg, cfg->selected);
	uint8_t byte = 0;

	if (left(cfg, item) > 0 && !take(cfg, item, &byte, 1))
		byte = 0;
	return byte;
}

/* --- DMA --- */

static bool dma_read(struct fw_cfg *cfg, uint64_t address, uint64_t length)
{
	struct fw_cfg_item *item = find(cfg, cfg->selected);
	uint64_t there = MIN(length, left(cfg, item));

	if (length - there > ZEROS_MAX)
		return false;
	uint8_t *to = memory_at(cfg->mem, address, length);
	if (!to || (there > 0 && !take(cfg, item, to, there)))
		return false;
	memset(to + there, 0, length - there);
	return true;
}

/* One descriptor. Nothing can be written to, so that is the one kind of transfer that always fails. */
static bool dma_transfer(struct fw_cfg *cfg, const struct dma *dma)
{
	uint32_t control = be32toh(dma->control), length = be32toh(dma->length);

	if (control & DMA_SELECT)
		select_item(cfg, (uint16_t)(control >> 16));
	if (control & DMA_READ)
		return length == 0 || dma_read(cfg, be64toh(dma->address), length);
	if (control & DMA_WRITE)
		return false;
	if (control & DMA_SKIP)
		cfg->offset += MIN((uint64_t)length, left(cfg, find(cfg, cfg->selected)));
	return true;
}

static void dma_start(struct fw_cfg *cfg, uint64_t address)
{
	struct dma dma;
	/* The descriptor is read once: the guest may change it meanwhile. Outside memory it cannot even be told so. */
	uint8_t *at = memory_at(cfg->mem, address, sizeof(dma));

	if (!at)
		return;
	memcpy(&dma, at, sizeof(dma));
	uint32_t answer = htobe32(dma_transfer(cfg, &dma) ? 0 : DMA_ERROR);
	memcpy(at, &answer, sizeof(answer));
}

/* --- ports --- */

static uint64_t port_read(void *self, uint64_t offset, unsigned size)
{
	struct fw_cfg *cfg = self;

	if (offset != 1 || size != 1)
		return bus_all_ones(size);
	pthread_mutex_lock(&cfg->lock);
	uint8_t byte = next_byte(cfg);
	pthread_mutex_unlock(&cfg->lock);
	return byte;
}

static void port_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct fw_cfg *cfg = self;

	if (offset != 0 || size != 2)
		return;
	pthread_mutex_lock(&cfg->lock);
	select_item(cfg, (uint16_t)value);
	pthread_mutex_unlock(&cfg->lock);
}

static uint64_t dma_port_read(void *self, uint64_t offset, unsigned size)
{
	static const uint8_t signature[8] = "QEMU CFG";
	uint64_t value = 0;

	(void)self;
	memcpy(&value, signature + offset, size); /* big-endian, so byte by byte as it is written */
	return value;
}

static void dma_port_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct fw_cfg *cfg = self;
	uint64_t address;

	if (size < 4 || offset % size)
		return;
	pthread_mutex_lock(&cfg->lock);
	if (size == 4 && offset == 0) {
		cfg->dma_high = be32toh((uint32_t)value);
	} else {
		address = size == 8 ? be64toh(value) : (uint64_t)cfg->dma_high << 32 | be32toh((uint32_t)value);
		cfg->dma_high = 0;
		dma_start(cfg, address);
	}
	pthread_mutex_unlock(&cfg->lock);
}

static const struct bus_ops port_ops = {.read = port_read, .write = port_write};
static const struct bus_ops dma_ops = {.read = dma_port_read, .write = dma_port_write};

/* --- items --- */

static struct error *add(struct fw_cfg *cfg, const struct fw_cfg_item *item)
{
	if (cfg->items == FW_CFG_ITEMS_MAX)
		return error_new(ENOSPC, "tell the firmware more than %d things", FW_CFG_ITEMS_MAX);
	cfg->item[cfg->items++] = *item;
	return NULL;
}

static struct error *add_copy(struct fw_cfg *cfg, struct fw_cfg_item *item, const void *data)
{
	if (item->size > FW_CFG_BYTES_MAX)
		return error_new(E2BIG, "tell the firmware %s: %llu bytes", item->name, (unsigned long long)item->size);
	item->data = malloc(MAX(item->size, (uint64_t)1));
	if (!item->data)
		return error_new(ENOMEM, "tell the firmware %s", item->name);
	memcpy(item->data, data, item->size);
	struct error *err = add(cfg, item);
	if (err)
		free(item->data);
	return err;
}

struct error *fw_cfg_add(struct fw_cfg *cfg, uint16_t key, const void *data, uint64_t size)
{
	struct fw_cfg_item item = {.key = key, .size = size, .fd = -1};

	return add_copy(cfg, &item, data);
}

struct error *fw_cfg_add_number(struct fw_cfg *cfg, uint16_t key, uint64_t number, unsigned size)
{
	number = htole64(number);
	return fw_cfg_add(cfg, key, &number, size);
}

struct error *fw_cfg_add_part(struct fw_cfg *cfg, uint16_t key, int fd, uint64_t offset, uint64_t size)
{
	struct fw_cfg_item item = {.key = key, .fd = fd, .offset = offset, .size = size};

	return add(cfg, &item);
}

struct error *fw_cfg_add_file(struct fw_cfg *cfg, const char *name, const void *data, uint64_t size)
{
	struct fw_cfg_item item = {.key = cfg->next_file, .size = size, .fd = -1};

	snprintf(item.name, sizeof(item.name), "%s", name);
	TRY(add_copy(cfg, &item, data));
	cfg->next_file++;
	return NULL;
}

struct error *fw_cfg_finish(struct fw_cfg *cfg)
{
	struct [[gnu::packed]] {
		uint32_t count;
		struct directory_entry entry[FW_CFG_ITEMS_MAX];
	} directory = {};
	unsigned files = 0;

	for (unsigned i = 0; i < cfg->items; i++) {
		const struct fw_cfg_item *item = &cfg->item[i];
		if (item->key < FW_CFG_FILES)
			continue;
		struct directory_entry *entry = &directory.entry[files++];
		entry->size = htobe32((uint32_t)item->size);
		entry->key = htobe16(item->key);
		memcpy(entry->name, item->name, sizeof(entry->name));
	}
	directory.count = htobe32(files);
	return fw_cfg_add(cfg, FW_CFG_DIRECTORY, &directory,
			  sizeof(directory.count) + files * sizeof(directory.entry[0]));
}

void fw_cfg_refresh(struct fw_cfg *cfg, const char *name, void (*refresh)(void *arg), void *arg)
{
	find_name(cfg, name)->fresh_on_read = true;
	cfg->refresh = refresh;
	cfg->refresh_arg = arg;
}

void fw_cfg_replace(struct fw_cfg *cfg, const char *name, const void *data, uint64_t size)
{
	struct fw_cfg_item *item = find_name(cfg, name);

	if (item && item->size == size) /* a restored machine keeps what it came with */
		memcpy(item->data, data, size);
}

struct error *fw_cfg_init(struct fw_cfg *cfg, struct bus *pio, struct memory *mem)
{
	*cfg = (struct fw_cfg){.mem = mem, .next_file = FW_CFG_FILES};
	pthread_mutex_init(&cfg->lock, NULL);
	TRY(fw_cfg_add(cfg, FW_CFG_SIGNATURE, "QEMU", 4));
	TRY(fw_cfg_add_number(cfg, FW_CFG_ID, ID_FEATURES, 4));
	TRY(bus_add(pio, PORT_SELECT, 2, &port_ops, cfg));
	return bus_add(pio, PORT_DMA, 8, &dma_ops, cfg);
}

void fw_cfg_destroy(struct fw_cfg *cfg)
{
	for (unsigned i = 0; i < cfg->items; i++)
		free(cfg->item[i].data);
	cfg->items = 0;
	pthread_mutex_destroy(&cfg->lock);
}

/* --- unit --- */

/* What the machine was told when it was first started stays true when it is restored by a newer monitor. */
static void item_state(void *self, struct saved *s)
{
	struct fw_cfg_item *item = self;
	uint16_t key = item->key;
	char name[sizeof(item->name)];
	size_t len = item->size;

	memcpy(name, item->name, sizeof(name));
	saved_require(s);
	saved_u16(s, "key", &key);
	saved_require(s);
	saved_string(s, "name", name, sizeof(name));
	if (!saved_loading(s)) {
		saved_blob(s, "data", item->data, &len, FW_CFG_BYTES_MAX);
		return;
	}
	uint8_t *data = malloc(FW_CFG_BYTES_MAX);
	len = 0;
	saved_require(s);
	if (data)
		saved_blob(s, "data", data, &len, FW_CFG_BYTES_MAX);
	else
		saved_fail(s, "no memory for item 0x%02x", key);
	*item = (struct fw_cfg_item){.key = key, .fd = -1, .size = len};
	memcpy(item->name, name, sizeof(name));
	item->data = data ? realloc(data, MAX(len, (size_t)1)) : NULL;
}

/*
 * Items of the stream take the place of this machine's own. A kernel given beside the firmware does not travel: it was
 * started long ago.
 */
static void items_state(struct fw_cfg *cfg, struct saved *s)
{
	struct fw_cfg_item item[FW_CFG_ITEMS_MAX] = {};
	size_t count = 0;

	for (unsigned i = 0; !saved_loading(s) && i < cfg->items; i++)
		if (cfg->item[i].data)
			item[count++] = cfg->item[i];
	saved_require(s);
	saved_list(s, "items", item, &count, FW_CFG_ITEMS_MAX, sizeof(item[0]), item_state);
	if (!saved_loading(s))
		return;
	for (unsigned i = 0; i < cfg->items; i++) {
		const struct fw_cfg_item *old = &cfg->item[i];
		for (size_t j = 0; j < FW_CFG_ITEMS_MAX; j++)
			if (old->key == item[j].key && strcmp(old->name, item[j].name) == 0)
				item[j].fresh_on_read = old->fresh_on_read;
		free(old->data);
	}
	/* After an error, too: what was loaded until then has an owner. */
	cfg->items = 0;
	for (size_t j = 0; j < FW_CFG_ITEMS_MAX; j++)
		if (item[j].data)
			cfg->item[cfg->items++] = item[j];
}

static void state(void *self, struct saved *s)
{
	struct fw_cfg *cfg = self;

	saved_u16(s, "selected", &cfg->selected);
	saved_u64(s, "offset", &cfg->offset);
	saved_u32(s, "dma-high", &cfg->dma_high);
	saved_bool(s, "refreshed", &cfg->refreshed);
	items_state(cfg, s);
}

static void power_on(void *self)
{
	struct fw_cfg *cfg = self;

	cfg->refreshed = false;
	cfg->selected = 0;
	cfg->offset = 0;
	cfg->dma_high = 0;
}

const struct unit_ops fw_cfg_unit = {.version = 1, .state = state, .reset = power_on};
