/*
 * An NVMe controller (NVM Express 1.4) with one namespace: a drive (vmm/block/drive.h) that stock drivers of every
 * system, and firmware, know without a driver of ours.
 *
 * The admin queue is served by whichever vCPU rings its doorbell, under one lock: its commands are few, and move no
 * data of the disk. A completion queue belongs to one I/O thread, and so do the submission queues that lead to it: the
 * path of a command takes no lock and allocates nothing. A doorbell of an I/O queue is a register with a value, which
 * an ioeventfd would drop: it is an exit that stores the value and wakes the thread if it sleeps. A driver that keeps
 * its doorbells in memory (5.7, Doorbell Buffer Config; Linux does) rings much less often, and then by ioeventfd.
 *
 * What the guest may rely on: a command is completed when the host has taken what it writes; a flush, a command with
 * FUA, and every write while the guest has its cache off, when it is durable. A shutdown (CC.SHN) flushes.
 *
 * A guest's mistakes are answered by the status that the specification has for them; what leaves no way to answer (the
 * admin queue is nowhere) is CSTS.CFS. Nothing of it reaches beyond guest memory: every address is translated first.
 *
 * What is not offered: SGLs, metadata, fused commands, namespace management, firmware update.
 */
#ifndef GLINT_VMM_NVME_NVME_H
#define GLINT_VMM_NVME_NVME_H

#include "vmm/block/drive.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/memory.h"
#include "vmm/pci/port.h"

#define NVME_QUEUES_MAX   16 /* I/O queues of either kind */
#define NVME_SERIAL_BYTES 20
#define NVME_BAR          0
#define NVME_MSIX_BAR     4

struct nvme_config {
	const char *name;    /* for the log; borrowed until nvme_free() */
	struct drive *drive; /* borrowed until nvme_free() */
	char serial[NVME_SERIAL_BYTES + 1];
	uint8_t uuid[16];                /* of the namespace, see nvme_make_uuid() */
	unsigned queues;                 /* I/O queues of either kind, 1 to NVME_QUEUES_MAX */
	struct iothread *const *threads; /* the drive's */
	unsigned thread_count;
};

struct nvme;

/* Makes the controller as a function in @slot of @bus, or behind @port (then they are not looked at). */
[[nodiscard]] struct error *nvme_new(struct nvme **out, const struct nvme_config *config, const struct memory *memory,
				     struct pci_bus *bus, unsigned slot, struct pci_port *port);
/* Finishes what is under way. NULL is allowed. */
void nvme_free(struct nvme *nvme);

/* Its unit, PCI function included. */
struct unit nvme_unit(struct nvme *nvme, const char *name);

/* The namespace's UUID: the same for a machine and a disk's id wherever it runs; version 8 of RFC 9562. */
void nvme_make_uuid(uint8_t uuid[16], const uint8_t machine[16], const char *id);

#endif
