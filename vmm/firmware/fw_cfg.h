/*
 * fw_cfg: how a virtual machine tells its firmware what it is (QEMU's docs/specs/fw_cfg.rst). A list of items, each
 * bytes under a 16-bit key; the ones from FW_CFG_FILES on have names, and item 0x19 is their directory.
 *
 *     0x510  selector, 2 bytes          0x514  DMA address, 8 bytes, big-endian, or "QEMU CFG" when read;
 *     0x511  data, a byte at a time            its lower half, written, starts a transfer
 *
 * Nothing can be written by the guest. An item lies in memory or in a file; a transfer ends where guest memory or the
 * item does, so its length is bounded whatever a descriptor says.
 */
#ifndef GLINT_VMM_FIRMWARE_FW_CFG_H
#define GLINT_VMM_FIRMWARE_FW_CFG_H

#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"
#include "vmm/memory/memory.h"

#include <pthread.h>
#include <stdint.h>

#define FW_CFG_ITEMS_MAX 40
#define FW_CFG_NAME_MAX  55
#define FW_CFG_BYTES_MAX (256u << 10) /* of an item in memory */

/* Keys of items without a name. */
enum {
	FW_CFG_SIGNATURE = 0x00,
	FW_CFG_ID = 0x01,
	FW_CFG_UUID = 0x02,
	FW_CFG_CPUS = 0x05,
	FW_CFG_KERNEL_SIZE = 0x08,
	FW_CFG_INITRD_SIZE = 0x0b,
	FW_CFG_BOOT_MENU = 0x0e,
	FW_CFG_MAX_CPUS = 0x0f,
	FW_CFG_KERNEL_DATA = 0x11,
	FW_CFG_INITRD_DATA = 0x12,
	FW_CFG_CMDLINE_SIZE = 0x14,
	FW_CFG_CMDLINE_DATA = 0x15,
	FW_CFG_SETUP_SIZE = 0x17,
	FW_CFG_SETUP_DATA = 0x18,
	FW_CFG_DIRECTORY = 0x19,
	FW_CFG_FILES = 0x20,
};

struct fw_cfg_item {
	uint16_t key;
	char name[FW_CFG_NAME_MAX + 1]; /* "" for items of the list above */
	uint8_t *data;                  /* owned; NULL when it lies in a file */
	int fd;                         /* not owned */
	uint64_t offset;                /* in the file */
	uint64_t size;
	bool fresh_on_read; /* made anew when it is first selected after a reset */
};

struct fw_cfg {
	pthread_mutex_t lock;
	struct memory *mem;
	unsigned items;
	struct fw_cfg_item item[FW_CFG_ITEMS_MAX];
	uint16_t next_file;
	/* Makes the items anew that are said to be; by fw_cfg_replace(). */
	void (*refresh)(void *arg);
	void *refresh_arg;
	/* What the guest sees of the device. */
	bool refreshed;
	uint16_t selected;
	uint64_t offset; /* the next byte of the selected item */
	uint32_t dma_high;
};

[[nodiscard]] struct error *fw_cfg_init(struct fw_cfg *cfg, struct bus *pio, struct memory *mem);
void fw_cfg_destroy(struct fw_cfg *cfg);

/* Adds an item; @data is copied. Before the guest runs. */
[[nodiscard]] struct error *fw_cfg_add(struct fw_cfg *cfg, uint16_t key, const void *data, uint64_t size);
/* The same for a number of @size bytes, little-endian. */
[[nodiscard]] struct error *fw_cfg_add_number(struct fw_cfg *cfg, uint16_t key, uint64_t number, unsigned size);
/* Adds an item that is @size bytes of the file @fd, which stays the caller's, from @offset on. */
[[nodiscard]] struct error *fw_cfg_add_part(struct fw_cfg *cfg, uint16_t key, int fd, uint64_t offset, uint64_t size);
/* Adds a named item. */
[[nodiscard]] struct error *fw_cfg_add_file(struct fw_cfg *cfg, const char *name, const void *data, uint64_t size);
/* Makes the directory; call it once, after the last item. */
[[nodiscard]] struct error *fw_cfg_finish(struct fw_cfg *cfg);

/* Has @refresh called before the guest first reads the named file after a reset. */
void fw_cfg_refresh(struct fw_cfg *cfg, const char *name, void (*refresh)(void *arg), void *arg);
/* New contents, of the same size, for a named file. In @refresh only. */
void fw_cfg_replace(struct fw_cfg *cfg, const char *name, const void *data, uint64_t size);

extern const struct unit_ops fw_cfg_unit;

#endif
