/*
 * A drive: a VM's disk, as the controllers that show it to a guest (virtio-blk, NVMe) share it.
 *
 * It is a struct disk (lib/disk) and what a machine adds: a port for each I/O thread, through which that thread's
 * queues do their requests; what becomes of failures; what the guest knows of the disk; counters.
 *
 *     controller's queue -> drive_submit() -> [disk_submit() -> the thread's io_uring] -> done()
 *                                                       done(): drive_holds()? held by the controller : told the guest
 *
 * A controller takes a request off its ring only while drive_may_take(); what it holds because drive_holds() said so it
 * keeps in its own saved state, as it came from the guest, and does again in its start(). It pauses by counting its own
 * requests and iothread_drain(): all I/O threads go on serving meanwhile, for a request may wait for another thread's.
 *
 * What the guest may rely on: a write is done when the host has taken it, a flush when all that was done before it was
 * submitted is durable, a @durable request when it is itself.
 *
 * The path of a request takes no lock and allocates nothing where the block is there; see lib/disk/disk.h.
 *
 * Direct I/O (the descriptor has O_DIRECT): buffers whose address or length is not what the host asks for go through
 * one small buffer a port, one request at a time: right, not fast (drivers of operating systems align, firmware
 * sometimes does not).
 */
#ifndef GLINT_VMM_BLOCK_DRIVE_H
#define GLINT_VMM_BLOCK_DRIVE_H

#include "base/error.h"
#include "disk/disk.h"
#include "saved/saved.h"
#include "vmm/machine/iothread.h"

#include <stdint.h>

struct drive;

/* --- life: the main thread --- */

enum drive_policy { DRIVE_REPORT, DRIVE_PAUSE };

struct drive_config {
	const char *name;   /* what messages call it, as its path; borrowed until drive_free() */
	const char *format; /* "raw", "vhd", "vhdx"; never looked for: a guest can write any header into a raw disk */
	int fd;             /* with the access mode that @readonly asks for */
	bool readonly;
	/*
	 * Where its parents come from. Descriptors, nearest first; or, without any, an opener, which is used by
	 * drive_new() alone; or neither (NULL): it may have none.
	 */
	const int *parents;
	unsigned parent_count;
	struct opener *opener;

	/* What to do when the host's storage is full (ENOSPC, EDQUOT), and on other errors. QEMU's usual: DRIVE_PAUSE,
	 * DRIVE_REPORT. */
	enum drive_policy on_full, on_error;
	/* A request is held for @errnum: pause the VM, soon. Any I/O thread, possibly more than once; must not block.
	 */
	void (*paused)(void *arg, int errnum);
	void *paused_arg;

	struct iothread *const *threads; /* must outlive the drive; each gets a port */
	unsigned thread_count;
};

/* Opens the disk: looks at it, changes nothing, locks nothing. @fd and @parents are the drive's, after an error too. */
[[nodiscard]] struct error *drive_new(struct drive **out, const struct drive_config *config);
/* No request is under way. Does not flush: see drive_deactivate(). Closes the disk. NULL is allowed. */
void drive_free(struct drive *drive);

/*
 * Takes the disk: locks it, reads it anew, makes whole what a crash left (disk_activate()). EBUSY when another process
 * has it. A disk that a guest knows (drive_state()) must be as it was: its size and sector. No effect when it is
 * active.
 */
[[nodiscard]] struct error *drive_activate(struct drive *drive);

/*
 * No request is under way (held ones are the controller's, and no hindrance): makes everything durable and gives the
 * disk up. After an error it is still active.
 */
[[nodiscard]] struct error *drive_deactivate(struct drive *drive);

/* Makes an active disk larger, and tells its controller. No request is under way: the machine is stopped. */
[[nodiscard]] struct error *drive_resize(struct drive *drive, uint64_t size);
/* Has @resized called, on the thread of drive_resize(): the controller tells its guest. One at most. */
void drive_on_resize(struct drive *drive, void (*resized)(void *arg), void *arg);

/* Names what the guest knows of the disk in the controller's saved body: "bytes", "block-size". The disk itself may
 * still be its last owner's then, so drive_activate() compares. */
void drive_state(struct drive *drive, struct saved *s);

/* --- what it is: any thread --- */

uint64_t drive_size(const struct drive *drive);   /* bytes; whole sectors */
uint32_t drive_sector(const struct drive *drive); /* the unit of requests, 512 to 4096; never changes */
bool drive_readonly(const struct drive *drive);
const char *drive_name(const struct drive *drive);
/* The disk, for what it is: disk_info(), disk_depth(). */
const struct disk *drive_disk(const struct drive *drive);

/* True when these bytes are whole sectors on the disk; a guest's numbers may be anything. */
bool drive_has(const struct drive *drive, uint64_t offset, uint64_t len);

/* --- requests: the port's I/O thread --- */

struct drive_port;

/* The port of threads[@thread]. */
struct drive_port *drive_port(struct drive *drive, unsigned thread);

struct drive_request {
	/* Set by the caller, who keeps them until done(). */
	enum disk_request_type type;
	bool unmap;         /* DISK_WRITE_ZEROES: the space may be given back */
	bool durable;       /* what it changes is durable when it is done (write-through, FUA) */
	uint64_t offset;    /* bytes; drive_has() said yes */
	uint64_t len;       /* bytes, more than 0; nothing for DISK_FLUSH */
	struct iovec *iov;  /* @len bytes of guest memory, translated; changed for moments meanwhile */
	unsigned iov_count; /* at most DISK_IOV_MAX */
	/* @res: 0 or -errno. Part of what failed may be done. May submit others, this one too. */
	void (*done)(struct drive_request *r, int res);

	/* The drive's. */
	struct drive_port *port;
	struct disk_request disk;
	struct drive_request *next; /* for the bounce buffer */
	struct iovec piece;         /* of the bounce buffer */
	uint64_t finished;          /* of what goes through it */
	bool bounced, moving, syncing;
};

/* done() may be called before it returns. */
void drive_submit(struct drive_port *port, struct drive_request *r);

/* How many bytes of a read that failed are in its buffers, from their start on. */
uint64_t drive_read(const struct drive_request *r);

/*
 * What is to become of @r, which failed with @errnum (positive). True: the controller holds it, takes nothing more
 * and does it again in its start(); the VM was asked to pause. False: the guest is told. Logs the first failure.
 */
[[nodiscard]] bool drive_holds(const struct drive_request *r, int errnum);

/* False while the disk is not active or a request is held: then requests stay in the ring. Any thread. */
bool drive_may_take(const struct drive *drive);

/* A queue starts (again): from here on nothing is held. False when the disk is not active: it will be started again. */
[[nodiscard]] bool drive_go_on(struct drive *drive);
/* The guest reset the controller: what was held is void. Any thread. */
void drive_forget(struct drive *drive);

/* --- counters --- */

/* What was done for the guest since the drive was made: requests that it was told the end of. */
struct drive_stats {
	uint64_t reads, read_bytes;
	uint64_t writes, written_bytes;
	uint64_t flushes;
	uint64_t discards; /* and zeroed ranges */
	uint64_t errors;   /* told to the guest; in none of the others */
};

/* The guest is being told the end of a request: of @bytes, or with an error. The port's thread. */
void drive_count(struct drive_port *port, enum disk_request_type type, uint64_t bytes);
void drive_count_error(struct drive_port *port);
/* Any thread. */
void drive_stats(const struct drive *drive, struct drive_stats *stats);

#endif
