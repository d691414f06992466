/*
 * Inside lib/disk: what the engine (disk.c, request.c) and the formats share.
 *
 * A format maps ranges of an image to its file (map), without locks. Where a request needs more than operations on such
 * a range - a block to be allocated, a page of the map to be read - the format takes the request over: it sets
 * r->task.step to a procedure of its own, and hands the request back by request_again() or request_end().
 */
#ifndef GLINT_DISK_INTERNAL_H
#define GLINT_DISK_INTERNAL_H

#include "disk/disk.h"
#include "disk/file.h"

#include <stdatomic.h>
#include <stddef.h>

#define RETRIES_MAX 16 /* EAGAIN and EINTR of one operation: a file system that insists is failing */

enum extent_kind {
	EXTENT_FILE,   /* at @offset of the image's file; may be overwritten there */
	EXTENT_ZERO,   /* reads as zeroes */
	EXTENT_PARENT, /* is the parent's */
	EXTENT_SLOW,   /* the format must take the request over (format->slow) */
};

struct extent {
	enum extent_kind kind;
	uint64_t offset;
	uint64_t len; /* bytes of it; set by the caller to the most it wants */
};

struct image {
	struct disk *disk;
	const struct disk_format *format;
	unsigned level;
	char *name; /* the disk's, or the locator it was found by */
	struct disk_file file;
	bool readonly;
	/* Set by format->open(). */
	uint64_t size;
	uint32_t sector, physical, block;
	const char *subformat;
	char *remark; /* see struct disk_info; freed with the image */
	uint8_t id[16], data_id[16];
	/* The parent that open() found named; zero when there is none. */
	bool has_parent;
	uint8_t parent_id[16]; /* what its data_id must be, */
	bool parent_unknown;   /* unless the format does not remember */
	void *state;           /* the format's; freed by format->close() */
};

struct disk {
	char *name;
	bool readonly, active, alone, keep_data_id;
	bool broken;        /* a change of the file failed half-way (half_way()): nothing is read or written any more */
	struct disk_io *io; /* for what is done at once */
	unsigned depth;
	struct image *image[DISK_CHAIN_MAX];
	_Atomic(struct disk_tracker *) tracker;
};

/* Tries a parent's locator; @format: what it must be, or NULL to look. */
typedef struct error *disk_try_fn(void *arg, const char *locator, const char *format);

struct disk_format {
	const char *name;
	/* True when the first @len bytes of a file (up to 4096), or its last 512 (@tail, NULL when it is shorter), are
	 * this format's. NULL: never found by looking. */
	bool (*probe)(const uint8_t *head, size_t len, const uint8_t *tail);
	/* Reads what the image is; again too, when it was read before. Changes nothing. */
	struct error *(*open)(struct image *image);
	/* The image is locked and was opened anew: makes it ready for requests. NULL: nothing to do. After an error too
	 * deactivate() is called, before it is tried again. */
	struct error *(*activate)(struct image *image);
	/* Makes all of an active image durable and puts it in its place: then nothing is in memory only. NULL:
	 * fdatasync does it. After an error it goes on as it was. */
	struct error *(*settle)(struct image *image);
	/* Frees what activate() made, if it did. NULL: there is nothing. */
	void (*deactivate)(struct image *image);
	/* Frees @image->state, of an active image too. NULL: there is none. */
	void (*close)(struct image *image);
	/*
	 * Tries locators of the parent, in their order: @try answers whether it was the one (NULL) or why not. The
	 * last error is returned. NULL: the format has no parents.
	 */
	struct error *(*parent)(struct image *image, disk_try_fn *try, void *arg);

	/* Where [offset, offset + e->len) of the image is, for a request of @type. Any thread, no lock. */
	void (*map)(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e);
	/* Takes over a request for the EXTENT_SLOW that map() gave; as a step returns. NULL: map() never gives one. */
	bool (*slow)(struct image *image, struct disk_request *r, const struct extent *e);
	/* Takes over a flush. NULL: fdatasync does it. */
	bool (*flush)(struct image *image, struct disk_request *r);

	struct error *(*create)(int fd, const struct disk_create *create);
	/* The image is settled, and is activated anew afterwards, whether it succeeded or not; see half_way(). */
	struct error *(*resize)(struct image *image, uint64_t size);
	/* disk_renew(). NULL: contents have no id of their own. */
	struct error *(*renew)(struct image *image);

	/* disk_check(): the image was not opened; open() is for check() to call. Reports what is wrong. */
	struct error *(*check)(struct image *image, struct disk_check *check);
	/* Repairs what check() reported as mendable; open as check() left it. NULL: nothing ever is. */
	struct error *(*mend)(struct image *image, struct disk_check *check);
};

extern const struct disk_format disk_raw, disk_vhd, disk_vhdx, disk_qcow2;

/* "format": the one of that name, or NULL. */
const struct disk_format *disk_format_named(const char *name);

/* Finds out which format @image is of. */
[[nodiscard]] struct error *disk_find_format(struct image *image);

/*
 * @err is that of a step which cannot be taken back: once it has failed nobody knows which of two states the medium is
 * in. So nothing more may be written, and the disk be closed as by a crash: each of the two is a whole disk by itself.
 */
[[nodiscard]] static inline struct error *half_way(struct image *image, struct error *err)
{
	if (err)
		image->disk->broken = true;
	return err;
}

/* Why @what cannot be done with a disk that is broken; NULL when it is not. */
[[nodiscard]] struct error *disk_usable(const struct disk *disk, const char *what);

/* --- checking (check.c) --- */

[[gnu::format(printf, 6, 7)]] void check_found(struct disk_check *check, enum disk_finding_kind kind, bool mendable,
					       const char *structure, uint64_t offset, const char *fmt, ...);
/* Opens the image. True: it did. Else *@err is why it cannot be checked, or NULL when what is wrong was reported. */
bool check_open(struct image *image, struct disk_check *check, struct error **err);
/* What is wrong with the image's @structure by @err, which it ends; one that is not about damage is returned. */
[[nodiscard]] struct error *check_damage(struct disk_check *check, const char *structure, uint64_t offset,
					 struct error *err);
/* Nothing speaks of [from, to): reports it if the file system has data there; with @give_back makes a hole instead. */
void check_unused(struct image *image, struct disk_check *check, uint64_t from, uint64_t to, bool give_back);

/* --- tasks (task.c) --- */

/* Runs @task on the thread it belongs to: its step gets @res. */
void task_run(struct disk_task *task, int res);
/* For op.done of a task. */
void task_done(struct disk_op *op, int res);
/* Before @task is put where another can find and resume it: after that the step must return false at once. */
static inline void task_park(struct disk_task *task)
{
	task->running = false;
}

static inline struct disk_request *request_of(struct disk_task *task)
{
	return (struct disk_request *)((char *)task - offsetof(struct disk_request, task));
}

/* --- requests (request.c) --- */

/* Gives a request that was taken over back: it looks for the rest of its range anew. To be returned by a step. */
bool request_again(struct disk_request *r);
/* Ends it. To be returned by a step. */
bool request_end(struct disk_request *r, int res);
/* Resumes a parked request on its own thread: its step gets 0. */
void request_resume(struct disk_request *r);
/* Starts the transfer of the request's next @len bytes from or to @offset of the file of @level; of zeroes when it is
 * plain or has no buffers. Its step must hand the result to request_transferred(). */
void request_transfer(struct disk_request *r, unsigned level, uint64_t offset, uint64_t len);
/* Answers the next @len bytes of a read, which are then done, with @data. */
void request_copy(struct disk_request *r, const uint8_t *data, uint64_t len);

enum transferred {
	TRANSFERRED,     /* all of it */
	TRANSFERRING,    /* the rest was started: return true from the step */
	TRANSFER_FAILED, /* *res says why */
};
enum transferred request_transferred(struct disk_request *r, int *res);

/* --- at once (blocking.c): by disk->io or create->io --- */

/* Exactly @len bytes. The errors name @what: "the header", and the offset. */
[[nodiscard]] struct error *io_read(struct disk_io *io, int fd, void *buf, size_t len, uint64_t offset,
				    const char *what);
[[nodiscard]] struct error *io_write(struct disk_io *io, int fd, const void *buf, size_t len, uint64_t offset,
				     const char *what);
[[nodiscard]] struct error *io_sync(struct disk_io *io, int fd, const char *what);
/* Makes a file at least @size bytes long, by zeroes at its end. */
[[nodiscard]] struct error *io_extend(struct disk_io *io, int fd, uint64_t size, const char *what);
/* fallocate(2) with @mode and KEEP_SIZE: 0 or -errno. */
[[nodiscard]] int io_fallocate(struct disk_io *io, int fd, int mode, uint64_t offset, uint64_t len);
/* Zeroes [offset, offset + len), which is inside the file: by the file system, or by writing where that cannot. */
[[nodiscard]] struct error *io_zero(struct disk_io *io, int fd, uint64_t offset, uint64_t len, const char *what);

#endif
