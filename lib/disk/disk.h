/*
 * Disks: raw files and disk images behind one door.
 *
 * A struct disk is a chain of images, the child (level 0) first; what a child does not hold is its parent's. Opening is
 * not activating (DESIGN 2, "a disk has one owner"): disk_open() looks and changes nothing, so that a VM can arrive
 * while its last owner still runs; disk_activate() locks the chain, reads it anew and, for writing, replays its log.
 * Only an active disk takes requests. disk_deactivate() leaves the file durable, its log empty, and unlocked.
 *
 * Requests are asynchronous. A struct disk_request is its caller's memory until it is done, and belongs to one
 * disk_queue; each queue is used by one thread, the one its disk_io does operations for; as many queues as one likes
 * work at once. A request for blocks that are there takes no lock, allocates nothing and copies nothing.
 *
 * What is durable: a write is when a flush that was submitted after the write was done is done. Until then it may be
 * lost whole or in parts, and may not, whatever else was written. docs/disks.md says for each format why.
 *
 * Where nothing is said, a function may be called by any thread, but not by two at once for one disk.
 */
#ifndef GLINT_DISK_DISK_H
#define GLINT_DISK_DISK_H

#include "base/error.h"
#include "base/opener.h"
#include "disk/io.h"

#include <stdint.h>

#define DISK_CHAIN_MAX 64   /* images of one chain */
#define DISK_IOV_MAX   1024 /* buffers of one request */
#define DISK_BYTES_MAX ((uint64_t)64 << 40)

struct disk;

/* --- life --- */

struct disk_options {
	const char *name; /* for errors: what people know the disk by; copied */
	/*
	 * "raw", "vhd", "vhdx" or "qcow2", which can only be read; NULL to look. Where a guest writes a raw disk, say
	 * so: a guest can write anything into its raw disk, the header of another format too, and would be believed the
	 * next time.
	 */
	const char *format;
	bool readonly;
	/*
	 * Where parents come from. @opener opens those that images name, and decides thereby what can be reached:
	 * locators come from the image. Or, whatever is named, @parent_count descriptors, the nearest first, which must
	 * be those of the whole chain and are the disk's on success. Neither: images with parents are refused. Used by
	 * disk_open() alone.
	 */
	struct opener *opener;
	const int *parents;
	unsigned parent_count;
	/* The image by itself, without its parents: what it does not hold reads as zeroes. For tools: what such a disk
	 * is written makes no difference to what it hides of its parents. */
	bool alone;
	/* Contents may change without a new data_id: they are copied so that the image's children see what they saw. */
	bool keep_data_id;
	/* For what is done at once (opening, activating...); its files are descriptors and it is done when it returns.
	 * NULL: system calls. */
	struct disk_io *io;
};

/*
 * Opens the disk in the file @fd, which must be open for reading, and writing unless readonly. On success @fd is the
 * disk's. Writes nothing.
 */
[[nodiscard]] struct error *disk_open(struct disk **out, int fd, const struct disk_options *options);

/*
 * Takes the disk: locks it (exclusively, unless readonly) and its parents (shared); EBUSY when somebody else has one of
 * them. Reads again what disk_open() read, checks that parents are what their children remember, and makes whole what a
 * crash left. No effect on an active disk. After an error it is not active, and nothing is locked.
 */
[[nodiscard]] struct error *disk_activate(struct disk *disk);

/*
 * Makes everything durable, empties the log and unlocks. No request may be under way. After an error it is still
 * active: try again, or disk_close() (which leaves what a crash would).
 */
[[nodiscard]] struct error *disk_deactivate(struct disk *disk);

/* Closes it, and its descriptors. An active disk is left as by a crash. NULL is allowed. */
void disk_close(struct disk *disk);

/* --- what it is --- */

struct disk_info {
	const char *format;    /* "raw", "vhdx"... */
	const char *subformat; /* "fixed", "dynamic", "differencing"; NULL for formats with none */
	const char *name;      /* the disk's, or the parent's locator */
	const char *remark;    /* what people had better know of it, or NULL */
	uint64_t size;         /* bytes a guest sees */
	uint64_t file_size;    /* bytes of the file */
	uint32_t sector;       /* logical sector: the unit of requests */
	uint32_t physical;     /* physical sector: what requests had better be aligned to */
	uint32_t block;        /* the unit of allocation; 0 for none */
	uint32_t memory_align; /* what direct I/O asks of buffers; 1 without it */
	uint8_t id[16];        /* of the virtual disk, as stored; zero where the format has none */
	uint8_t data_id[16];   /* of its contents: changes when they do; children remember it */
	bool parent;           /* it has one, opened or not */
};

/* @level: 0 the child, up to disk_depth() - 1. Valid until the disk is closed, activated or resized. */
void disk_info(const struct disk *disk, unsigned level, struct disk_info *info);

/* The number of images in the chain. */
unsigned disk_depth(const struct disk *disk);

/* The descriptor of an image, still the disk's: for registering it with a ring. */
int disk_fd(const struct disk *disk, unsigned level);

/* --- requests --- */

/*
 * A caller's door: all set by the caller, who keeps it as long as requests are under way. As long as any queue of the
 * disk has some, all their @io must be served: a request may wait for what goes on in another queue's.
 */
struct disk_queue {
	struct disk *disk;
	struct disk_io *io;
	const unsigned *files; /* by level: what @io knows disk_fd(disk, level) by */
};

enum disk_request_type { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_WRITE_ZEROES };

/* A procedure of several operations: the engine's own. */
struct disk_task {
	struct disk_op op;
	/* Goes on after an operation with result @res. True when it has started another, false when it is over or
	 * waits; then the task may already be somebody else's. */
	bool (*step)(struct disk_task *task, int res);
	int res;
	bool running, ready;
};

struct disk_request {
	/* Set by the caller. */
	enum disk_request_type type;
	bool unmap;      /* DISK_WRITE_ZEROES: the space may be given back */
	uint64_t offset; /* bytes; whole sectors */
	uint64_t len;    /* bytes; whole sectors; of the buffers together for reads and writes */
	/* Used, and changed for moments, until the request is done. At most DISK_IOV_MAX. */
	struct iovec *iov;
	unsigned iov_count;
	/* @res: 0 or -errno. Part of a request that failed may be done. May submit others, this one too. */
	void (*done)(struct disk_request *r, int res);

	/* The engine's. */
	struct disk_queue *queue;
	struct disk_task task;
	uint64_t finished; /* bytes done */
	uint64_t piece;    /* bytes under way, */
	uint64_t at;       /* here in the file */
	/* A format's, while it has the request: which block, where in the file it is to be, where the piece began,
	 * a page of its map, what comes after that. */
	uint64_t block, place, from;
	uint32_t frame;
	uint8_t then;
	struct disk_request *next, *next_block, *waiters;
	uint8_t level; /* of the image that @at is in */
	uint8_t stage, retries;
	bool plain; /* zeroes are written as data */
};

/* The queue's thread. done() may be called before it returns. */
void disk_submit(struct disk_queue *queue, struct disk_request *r);

/* --- where things are --- */

enum disk_range_kind {
	DISK_DATA,
	DISK_ZERO,   /* reads as zeroes: nothing is there, or a hole */
	DISK_ABSENT, /* a parent's, which was not opened (disk_options.alone) */
};

struct disk_range {
	enum disk_range_kind kind;
	unsigned level; /* of the image that says so */
	uint64_t len;   /* bytes; what follows may be of the same kind */
	uint64_t at;    /* of data: where it is in that image's file; DISK_NO_PLACE: compressed */
};
#define DISK_NO_PLACE UINT64_MAX

/*
 * Tells where the contents of an active disk from @offset on are, which must lie in it. No request may be under way;
 * what has to be read for it is read at once.
 */
[[nodiscard]] struct error *disk_map(struct disk *disk, uint64_t offset, struct disk_range *range);

/* --- changed blocks --- */

/*
 * Told of each range before it is changed (written, zeroed, discarded), by the thread whose request it is: the contents
 * there may or may not change. A request may be told of in pieces.
 */
struct disk_tracker {
	void (*changing)(struct disk_tracker *tracker, uint64_t offset, uint64_t len);
};

/* Sets the one tracker, or none (NULL). It must live until no request submitted before the change is under way. */
void disk_track(struct disk *disk, struct disk_tracker *tracker);

/* --- making and changing --- */

struct disk_create {
	const char *name;      /* for errors */
	const char *format;    /* "raw", "vhdx"... */
	const char *subformat; /* "dynamic" when NULL; raw has none */
	uint64_t size;         /* bytes; 0 with a parent: the parent's */
	uint32_t block;        /* bytes; 0: the format's default */
	uint32_t sector;       /* logical; 0: 512, or the parent's */
	uint32_t physical;     /* 0: 4096 */
	struct disk *parent;   /* differencing: open; may be active */
	/* How the child finds it: a path relative to the child's folder, as the disk's opener takes it. */
	const char *parent_locator;
	const char *parent_path; /* an absolute path, for other tools, or NULL */
	/* A disk that is to take the place of another: its ids (disk_info), so that its children know it. NULL: new. */
	const uint8_t *id, *data_id;
	struct disk_io *io; /* as in disk_options */
};

/* Makes a new disk in the empty regular file @fd, which stays the caller's, and makes it durable. */
[[nodiscard]] struct error *disk_create(int fd, const struct disk_create *create);

/* Gives an active disk's contents a new data_id, where its format has one apart from the disk's own: children of what
 * it held before are to notice. No request may be under way. Durable when it returns. */
[[nodiscard]] struct error *disk_renew(struct disk *disk);

/*
 * Makes an active disk larger: it reads as zeroes there. No request may be under way. Durable when it returns. After an
 * error the disk goes on as it was; or, where what failed could not be taken back, requests fail with EIO and it can
 * only be closed: opened anew it is whole, of the one size or the other.
 */
[[nodiscard]] struct error *disk_resize(struct disk *disk, uint64_t size);

/* --- checking --- */

enum disk_finding_kind {
	DISK_NOTE,  /* nothing is wrong, but people had better know */
	DISK_LEAK,  /* space of the file that nothing in it speaks of */
	DISK_ERROR, /* the image is damaged, or was not closed */
};

struct disk_finding {
	enum disk_finding_kind kind;
	bool mendable; /* a repair can put it right without guessing */
	const char *structure;
	uint64_t offset;  /* of it in the file, bytes */
	const char *text; /* valid during the call */
};

struct disk_check {
	/* Set by the caller. */
	const char *name;   /* for errors */
	const char *format; /* as in disk_options */
	bool repair;        /* what is mendable; the file must be open for writing */
	void (*report)(struct disk_check *check, const struct disk_finding *finding);
	/* With @repair: @len bytes at @offset, which a repair will change, are @before; none where
	 * the file only becomes longer. Must make them durable. Returns
	 * 0, or -errno, which ends the repair before the change. */
	int (*keep)(struct disk_check *check, uint64_t offset, const void *before, size_t len);

	/* The engine's answers. With @repair the image is checked anew after it: what the last round found is what is
	 * left. */
	unsigned round;                   /* of this report, from 0 on; at the end: of the last one */
	uint64_t errors, leaks, mendable; /* found in this round */
};

/*
 * Checks every structure of the image in @fd, which stays the caller's, and not its parents. Locks it: exclusively for
 * a repair, else shared. What is wrong with it is reported; an error is returned when it could not be checked or
 * repaired.
 */
[[nodiscard]] struct error *disk_check(int fd, struct disk_check *check);

#endif
