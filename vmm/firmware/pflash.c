/*
 * Flash with the Intel command set; see pflash.h. Touches one file, one memfd and its mappings.
 */
#include "vmm/firmware/pflash.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "disk/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* First cycles of commands (JESD68.01's command set 0001). Anything else means READ_ARRAY, as on QEMU's chip. */
enum {
	CMD_NONE = 0x00,
	CMD_PROGRAM = 0x10,
	CMD_PROGRAM_ALT = 0x40,
	CMD_ERASE = 0x20,
	CMD_CLEAR_STATUS = 0x50,
	CMD_READ_STATUS = 0x70,
	CMD_READ_ID = 0x90,
	CMD_READ_QUERY = 0x98,
	CMD_CONFIRM = 0xD0,
};

/* The status register. Clearing it clears SR_READY too: OVMF tells flash from RAM and ROM by that zero. */
enum {
	SR_READY = 0x80,
	SR_ERASE_FAILED = 0x20,
	SR_PROGRAM_FAILED = 0x10,
};

#define MANUFACTURER 0x89 /* Intel */
#define DEVICE       0x18

/* Longer than any of the images: each repeats itself. */
#define IMAGE_BYTES 65536u

/* The CFI query, JESD68.01 table 1 on, for a chip of one region of equal blocks that programs byte by byte. */
static void make_query(const struct pflash *flash, uint8_t *image)
{
	unsigned exponent = 0;

	while (1ull << exponent < flash->size)
		exponent++;
	const uint8_t query[] = {
		'Q',
		'R',
		'Y',
		0x01,
		0x00,
		0x31,
		0x00,
		0x00,
		0x00,
		0x00,
		0x00, /* 10h: set 0001, extension at 31h */
		0x45,
		0x55,
		0x00,
		0x00, /* 1Bh: volts, decimal */
		0x07,
		0x00,
		0x0a,
		0x00,
		0x04,
		0x00,
		0x04,
		0x00, /* 1Fh: 128 us, 1 s; at most 16 times */
		(uint8_t)exponent,
		0x00,
		0x00,
		0x00,
		0x00, /* 27h: 2^n bytes, x8, no buffer */
		0x01,
		(uint8_t)(flash->blocks - 1),
		(uint8_t)((flash->blocks - 1) >> 8), /* 2Ch: a region */
		PFLASH_BLOCK >> 8 & 0xff,
		PFLASH_BLOCK >> 16,
		'P',
		'R',
		'I',
		'1',
		'0',
		0x00,
		0x00,
		0x00,
		0x00,
		0x00, /* 31h: nothing optional */
	};

	memset(image, 0, IMAGE_BYTES);
	memcpy(image + 0x10, query, sizeof(query));
}

/* Fills the image for the present mode unless it is there. */
static void make_image(struct pflash *flash)
{
	if (flash->imaged == flash->mode && (flash->mode != PFLASH_STATUS || flash->imaged_status == flash->status))
		return;
	flash->imaged = flash->mode;
	flash->imaged_status = flash->status;
	if (flash->mode == PFLASH_STATUS) {
		memset(flash->image, flash->status, IMAGE_BYTES);
	} else if (flash->mode == PFLASH_QUERY) {
		make_query(flash, flash->image);
	} else {
		for (unsigned at = 0; at < IMAGE_BYTES; at += 2) {
			flash->image[at] = MANUFACTURER;
			flash->image[at + 1] = DEVICE;
		}
	}
}

/* Maps @bytes of the memfd from @from on, at @at of the view. Each piece changes in one step, and KVM follows. */
static bool map_view(struct pflash *flash, uint64_t at, uint64_t bytes, uint64_t from)
{
	if (mmap(flash->view + at, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, flash->memory_fd, (off_t)from) !=
	    MAP_FAILED)
		return true;
	log_err("%s: show the flash in another mode: %s", flash->name, strerror(errno));
	return false;
}

/* Puts behind the guest's view what the mode says. */
static void show(struct pflash *flash)
{
	bool array = flash->mode == PFLASH_ARRAY, was_array = flash->shown == PFLASH_ARRAY, done = true;

	if (!array)
		make_image(flash);
	if (array && !was_array)
		done = map_view(flash, 0, flash->size, 0);
	for (uint64_t at = 0; !array && was_array && at < flash->size && done; at += IMAGE_BYTES)
		done = map_view(flash, at, MIN((uint64_t)IMAGE_BYTES, flash->size - at), flash->size);
	if (done)
		flash->shown = flash->mode;
}

/* --- the file --- */

static void set_dirty(struct pflash *flash, unsigned block)
{
	bool none = flash->first_dirty == flash->end_dirty;

	flash->dirty[block] = 1;
	flash->first_dirty = none ? block : MIN(flash->first_dirty, block);
	flash->end_dirty = none ? block + 1 : MAX(flash->end_dirty, block + 1);
}

/* Runs of dirty blocks go out in ascending order, then one sync. Marks stay: only its success is one. */
static struct error *write_dirty(struct pflash *flash)
{
	for (unsigned i = flash->first_dirty, end; i < flash->end_dirty; i = end) {
		for (end = i; end < flash->end_dirty && flash->dirty[end]; end++)
			;
		if (end == i) {
			end++;
			continue;
		}
		off_t offset = (off_t)i * PFLASH_BLOCK;
		TRY(pwrite_all(flash->fd, flash->array + offset, (size_t)(end - i) * PFLASH_BLOCK, offset,
			       flash->name));
	}
	if (fdatasync(flash->fd) < 0)
		return error_new(errno, "%s: make it durable", flash->name);
	return NULL;
}

static struct error *flush(struct pflash *flash)
{
	if (flash->first_dirty == flash->end_dirty)
		return NULL;
	TRY(write_dirty(flash));
	memset(flash->dirty + flash->first_dirty, 0, flash->end_dirty - flash->first_dirty);
	flash->first_dirty = flash->end_dirty = 0;
	return NULL;
}

/* The run of programs or the erase is over: it is durable before the guest goes on, or the machine pauses. */
static void commit(struct pflash *flash)
{
	if (flash->errnum)
		return;
	cleanup_error struct error *err = flush(flash);
	if (!err)
		return;
	flash->errnum = error_errno(err) ? error_errno(err) : EIO;
	log_err("UEFI variables: %s", error_text(err));
	flash->failed(flash->failed_arg, flash->errnum);
}

/* --- commands --- */

static void program(struct pflash *flash, uint64_t offset, uint64_t value, unsigned size)
{
	for (unsigned i = 0; i < size; i++) {
		/* Cells only ever go from 1 to 0; an erase brings them back. */
		flash->array[offset + i] &= (uint8_t)(value >> (8 * i));
		set_dirty(flash, (unsigned)((offset + i) / PFLASH_BLOCK));
	}
	flash->status |= SR_READY;
}

static void erase(struct pflash *flash, uint64_t offset, uint8_t confirmation)
{
	unsigned block = (unsigned)(offset / PFLASH_BLOCK);

	flash->status |= SR_READY;
	if (confirmation != CMD_CONFIRM) { /* a command sequence error is both bits */
		flash->status |= SR_ERASE_FAILED | SR_PROGRAM_FAILED;
		return;
	}
	memset(flash->array + (size_t)block * PFLASH_BLOCK, 0xff, PFLASH_BLOCK);
	set_dirty(flash, block);
	commit(flash);
}

static void first_cycle(struct pflash *flash, uint8_t command)
{
	switch (command) {
	case CMD_PROGRAM:
	case CMD_PROGRAM_ALT:
	case CMD_ERASE:
		if (command == CMD_ERASE)
			commit(flash);
		flash->command = command;
		flash->mode = PFLASH_STATUS;
		return;
	case CMD_READ_STATUS:
		flash->mode = PFLASH_STATUS;
		break;
	case CMD_READ_ID:
		flash->mode = PFLASH_ID;
		break;
	case CMD_READ_QUERY:
		flash->mode = PFLASH_QUERY;
		break;
	case CMD_CLEAR_STATUS:
		flash->status = 0;
		[[fallthrough]];
	default:
		flash->mode = PFLASH_ARRAY;
		break;
	}
	commit(flash);
}

static void write_cycle(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct pflash *flash = self;
	uint8_t command;

	pthread_mutex_lock(&flash->lock);
	command = flash->command;
	flash->command = CMD_NONE;
	if (command == CMD_NONE)
		first_cycle(flash, (uint8_t)value);
	else if (command == CMD_ERASE)
		erase(flash, offset, (uint8_t)value);
	else
		program(flash, offset, value, size);
	show(flash);
	pthread_mutex_unlock(&flash->lock);
}

/* Reads come here only from a guest that has no slot (unit tests and fuzzers): the view is what they show. */
static uint64_t read_cycle(void *self, uint64_t offset, unsigned size)
{
	struct pflash *flash = self;
	uint64_t value = 0;

	pthread_mutex_lock(&flash->lock);
	memcpy(&value, flash->view + offset, size);
	pthread_mutex_unlock(&flash->lock);
	return value;
}

static const struct bus_ops ops = {.read = read_cycle, .write = write_cycle};

/* --- its life --- */

struct error *pflash_file_size(int fd, const char *name, uint64_t *size)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_new(errno, "%s: look at it", name);
	if (!S_ISREG(st.st_mode))
		return error_new(EINVAL, "%s is not a regular file", name);
	if (st.st_size <= 0 || st.st_size > PFLASH_BYTES_MAX || st.st_size % PFLASH_BLOCK)
		return error_hint(error_new(EINVAL, "%s: %lld bytes are no flash image", name, (long long)st.st_size),
				  "an image has whole blocks of 4 KiB, at most 8 MiB");
	*size = (uint64_t)st.st_size;
	return NULL;
}

static struct error *map(struct pflash *flash)
{
	flash->memory_fd = memfd_create("uefi-variables", MFD_CLOEXEC);
	if (flash->memory_fd < 0 || ftruncate(flash->memory_fd, (off_t)(flash->size + IMAGE_BYTES)) < 0)
		return error_new(errno, "make memory for the flash");
	flash->array = mmap(NULL, flash->size + IMAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, flash->memory_fd, 0);
	if (flash->array == MAP_FAILED) {
		flash->array = NULL;
		return error_new(errno, "map the flash");
	}
	flash->image = flash->array + flash->size;
	flash->view = mmap(NULL, flash->size, PROT_READ, MAP_SHARED, flash->memory_fd, 0);
	if (flash->view == MAP_FAILED) {
		flash->view = NULL;
		return error_new(errno, "map the flash");
	}
	return NULL;
}

struct error *pflash_init(struct pflash *flash, struct bus *mmio, uint64_t gpa, int fd, const char *name)
{
	*flash = (struct pflash){.fd = fd, .name = name, .memory_fd = -1};
	pthread_mutex_init(&flash->lock, NULL);
	TRY(pflash_file_size(fd, name, &flash->size));
	flash->blocks = (unsigned)(flash->size / PFLASH_BLOCK);
	flash->dirty = calloc(flash->blocks, 1);
	if (!flash->dirty)
		return error_new(ENOMEM, "make the flash");
	TRY(map(flash));
	return bus_add(mmio, gpa, flash->size, &ops, flash);
}

void pflash_destroy(struct pflash *flash)
{
	if (flash->array)
		munmap(flash->array, flash->size + IMAGE_BYTES);
	if (flash->view)
		munmap(flash->view, flash->size);
	free(flash->dirty);
	close_fd(&flash->memory_fd);
	close_fd(&flash->fd);
	pthread_mutex_destroy(&flash->lock);
}

struct error *pflash_activate(struct pflash *flash)
{
	struct disk_file file;
	uint64_t size = 0;

	if (flash->active)
		return NULL;
	TRY(disk_file_probe(&file, flash->name, flash->fd, false));
	TRY(disk_file_lock(&file, flash->name));
	struct error *err = pflash_file_size(flash->fd, flash->name, &size);
	if (!err && size != flash->size)
		err = error_new(EINVAL, "%s has changed its size", flash->name);
	if (!err)
		err = pread_all(flash->fd, flash->array, flash->size, 0, flash->name);
	if (err) {
		disk_file_unlock(&file);
		return err;
	}
	flash->errnum = 0;
	flash->active = true;
	return NULL;
}

struct error *pflash_deactivate(struct pflash *flash)
{
	struct disk_file file = {.fd = flash->fd};

	if (!flash->active)
		return NULL;
	TRY(flush(flash));
	disk_file_unlock(&file);
	flash->active = false;
	return NULL;
}

/* Bytes of a run that has not ended: the guest may never come back to end it. */
static void pause_unit(void *self)
{
	struct pflash *flash = self;

	if (flash->active)
		commit(flash);
}

static void resume(void *self)
{
	struct pflash *flash = self;

	flash->errnum = 0;
	if (flash->active)
		commit(flash);
}

static void power_on(void *self)
{
	struct pflash *flash = self;

	flash->command = CMD_NONE;
	flash->status = 0;
	flash->mode = PFLASH_ARRAY;
	show(flash);
}

/* The contents do not travel: like a disk's they are in the file, which is released when the machine is saved. */
static void state(void *self, struct saved *s)
{
	struct pflash *flash = self;
	uint64_t size = flash->size;
	uint8_t mode = (uint8_t)flash->mode;

	saved_require(s);
	saved_u64(s, "size", &size);
	saved_u8(s, "mode", &mode);
	saved_u8(s, "command", &flash->command);
	saved_u8(s, "status", &flash->status);
	if (!saved_loading(s))
		return;
	if (size != flash->size)
		saved_fail(s, "the saved machine's flash has %llu KiB, this one's %llu (--vars)",
			   (unsigned long long)(size / KIB), (unsigned long long)(flash->size / KIB));
	bool known = flash->command == CMD_NONE || flash->command == CMD_PROGRAM || flash->command == CMD_PROGRAM_ALT ||
		     flash->command == CMD_ERASE;
	if (mode >= PFLASH_MODES || !known) {
		saved_fail(s, "mode %u with command 0x%02x is none", mode, flash->command);
		flash->command = CMD_NONE;
		return;
	}
	flash->mode = mode;
}

static struct error *restored(void *self)
{
	show(self);
	return NULL;
}

const struct unit_ops pflash_unit = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};
