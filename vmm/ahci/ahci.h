/*
 * An AHCI controller (Serial ATA AHCI 1.3) with a CD drive (ATAPI: ATA/ATAPI-8 and MMC-5) on each of its ports: what
 * stock firmware and the installers of every system boot from without drivers of ours. A medium is a drive
 * (vmm/block/drive.h) that is only ever read, in blocks of 2048 bytes.
 *
 * A port belongs to one I/O thread. Registers are the vCPUs', under one lock; a command that was issued wakes the
 * thread, which begins it under the same lock, reads the medium into a buffer of its own without it, and copies to the
 * guest under it again. So whoever stops or resets a port is done when the register is written: what is still being
 * read is thrown away.
 *
 * A pause waits for what is being read, no longer: a command that is not done then begins again when the machine goes
 * on. So there is nothing of it in a saved state but that it was issued.
 *
 * What is not offered: hard disks, queued commands, port multipliers, writing, audio.
 */
#ifndef GLINT_VMM_AHCI_AHCI_H
#define GLINT_VMM_AHCI_AHCI_H

#include "vmm/block/drive.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/memory.h"
#include "vmm/pci/pci.h"

#define AHCI_PORTS_MAX 4

struct ahci_config {
	unsigned ports;                       /* CD drives, 1 to AHCI_PORTS_MAX */
	const char *id[AHCI_PORTS_MAX];       /* their serial numbers, and for the log; borrowed until ahci_free() */
	struct drive *medium[AHCI_PORTS_MAX]; /* NULL: none; borrowed until it is changed, or ahci_free() */
	struct iothread *const *threads;      /* the media's */
	unsigned thread_count;
	void (*changed)(void *arg); /* a guest opened, closed, locked or unlocked a tray. Any thread; must not block */
	void *arg;
};

struct ahci;

/* Makes the controller as a PCI function, 8086:2922. */
[[nodiscard]] struct error *ahci_new(struct ahci **out, const struct ahci_config *config, const struct memory *memory,
				     struct pci_bus *bus, unsigned slot, unsigned function);
/* Finishes what is under way. NULL is allowed. */
void ahci_free(struct ahci *ahci);

/* Its unit, PCI function included. */
struct unit ahci_unit(struct ahci *ahci, const char *name);

/* --- trays: the main thread --- */

struct ahci_tray {
	bool medium; /* there is one */
	bool open;
	bool locked; /* the guest does not want it to be taken */
};
void ahci_tray(struct ahci *ahci, unsigned port, struct ahci_tray *tray);

/*
 * Takes the medium out and puts @medium (active; NULL: none) in; the guest is told, and the former is the caller's
 * again. EBUSY when the guest has locked the tray: then it is asked to let the medium go. @force: all the same.
 */
[[nodiscard]] struct error *ahci_change(struct ahci *ahci, unsigned port, struct drive *medium, bool force);

/* Whether @medium can be one: it has a block. */
[[nodiscard]] struct error *ahci_check_medium(const struct drive *medium);

#endif
