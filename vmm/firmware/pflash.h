/*
 * The flash chip in which UEFI keeps its variables: parallel NOR flash of 4 KiB blocks, one byte wide, with the Intel
 * command set (CFI, JEDEC JESD68.01 and JEP137: command set 0001), as stock OVMF's driver and QEMU's cfi.pflash01 have
 * it.
 *
 * Reads never leave the guest: its contents are a read-only memory slot of KVM. So are the other things the chip can be
 * told to show (status register, identifier, CFI query): they repeat themselves, so one small image of them, mapped
 * over and over, takes the place of the contents behind the slot. Writes exit and arrive here.
 *
 * The contents live in a memfd, and behind it in a file. What is acknowledged is in the file, durably: see "Power cuts"
 * in docs/firmware.md. A run of programmed bytes is written and synced when the run ends (any command that is not
 * another program), an erased block when the erase is confirmed, each before the guest goes on; so the file sees what
 * the guest did in the guest's order, and firmware's own fault-tolerant writing is all that a cut needs.
 *
 * A file that cannot be written does not lose anything: the blocks stay dirty, the machine is asked to pause
 * (@failed), and to resume writes them again.
 */
#ifndef GLINT_VMM_FIRMWARE_PFLASH_H
#define GLINT_VMM_FIRMWARE_PFLASH_H

#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"

#include <pthread.h>
#include <stdint.h>

#define PFLASH_BLOCK     4096u
#define PFLASH_BYTES_MAX (8u << 20)

/* What reads show. */
enum pflash_mode { PFLASH_ARRAY, PFLASH_STATUS, PFLASH_ID, PFLASH_QUERY, PFLASH_MODES };

struct pflash {
	pthread_mutex_t lock;
	int fd;           /* the file; owned */
	const char *name; /* the file's, for errors */
	bool active;
	void (*failed)(void *arg, int errnum); /* the file could not be written; any thread */
	void *failed_arg;

	uint64_t size;
	int memory_fd;  /* the contents, and behind them the image of any other mode */
	uint8_t *view;  /* what the guest sees, mapped read-only; KVM's slot lies on it */
	uint8_t *array; /* the contents */
	uint8_t *image;
	enum pflash_mode shown;  /* what is behind @view */
	enum pflash_mode imaged; /* what @image holds; PFLASH_ARRAY: nothing yet */
	uint8_t imaged_status;

	/* The command in progress. */
	enum pflash_mode mode;
	uint8_t command; /* 0: none; else the first of two cycles, the second awaited */
	uint8_t status;
	int errnum; /* the file failed, and nothing is written until someone resumes */
	unsigned blocks;
	unsigned first_dirty, end_dirty; /* blocks outside this range are clean */
	uint8_t *dirty;                  /* a byte a block */
};

/*
 * Makes the chip for the file @fd (which becomes its own, also when it fails), and answers writes at @gpa on @mmio.
 * The file's size is the chip's: whole blocks, at most PFLASH_BYTES_MAX. Contents come with pflash_activate().
 */
[[nodiscard]] struct error *pflash_init(struct pflash *flash, struct bus *mmio, uint64_t gpa, int fd, const char *name);
void pflash_destroy(struct pflash *flash);

/* Locks the file against other machines and reads it. A lock held elsewhere is EBUSY. */
[[nodiscard]] struct error *pflash_activate(struct pflash *flash);
/* Writes what is not in the file yet and gives the file up. The machine is paused. */
[[nodiscard]] struct error *pflash_deactivate(struct pflash *flash);

/* The size of the chip for a file, checked. */
[[nodiscard]] struct error *pflash_file_size(int fd, const char *name, uint64_t *size);

extern const struct unit_ops pflash_unit;

#endif
