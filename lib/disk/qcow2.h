/*
 * Inside the qcow2 format: what its files share. Numbers are from QEMU's docs/interop/qcow2 (section in brackets); all
 * of the file is big-endian.
 *
 *     qcow2.c          opening: header, extensions, the backing file's name; activating
 *     qcow2_map.c      requests: pages of the L2 tables in memory, look-up without locks
 *     qcow2_cluster.c  clusters that cannot be read in place: compressed ones, and the one that the file's end cuts
 *
 * Images are read, never written. A disk's offset leads through the L1 table (all of it in memory) and an L2 table
 * (pages of them in memory) to a cluster of the file. What is wrong in a table is found when a read comes to it: that
 * read fails, others go on.
 */
#ifndef GLINT_DISK_QCOW2_H
#define GLINT_DISK_QCOW2_H

#include "disk/internal.h"

#include "base/util.h"

#include <pthread.h>

/* Clusters are of 512 bytes to 2 MiB; with subclusters, which are at least sectors, of 16 KiB and more. */
#define QCOW2_BITS_MIN          9u
#define QCOW2_BITS_MIN_EXTENDED 14u
#define QCOW2_BITS_MAX          21u
#define QCOW2_SUBCLUSTERS       32u

/* Of the L1 table, as QEMU has it. */
#define QCOW2_L1_BYTES_MAX (32 * MIB)

/* Entries of tables [L1 table, L2 table]. */
#define QCOW2_OFFSET     0x00fffffffffffe00ull
#define QCOW2_COMPRESSED (1ull << 62)
#define QCOW2_ZERO       1ull /* without subclusters */

/* Pages of L2 tables in memory: at most 16 MiB, which with clusters of 64 KiB speak of 128 GiB. */
#define QCOW2_PAGE       4096u
#define QCOW2_FRAMES_MAX 4096u

/* Clusters in memory that were read whole. */
#define QCOW2_SLOTS 4u

/* A place for one page, found by the page's number. Readers use it without a lock and look at the tag again afterwards;
 * the rest is the lock's. */
struct qcow2_frame {
	_Atomic uint64_t tag; /* the page, and above bit 40 a number that grows with each change; QCOW2_NO_PAGE */
	bool loading;
};
#define QCOW2_NO_PAGE UINT64_MAX

/* A place for one cluster's contents. The lock's, but for the bytes: they are its filler's or, later, its readers'. */
struct qcow2_slot {
	uint64_t cluster; /* of the disk; QCOW2_NO_CLUSTER */
	bool filling;
	unsigned readers;
	uint64_t used;   /* when: the oldest is given up */
	uint8_t *packed; /* what the file has, compressed */
	size_t length;   /* of it */
	uint8_t *bytes;  /* the cluster */
	void *unpacker;  /* a z_stream or ZSTD_DCtx */
};
#define QCOW2_NO_CLUSTER UINT64_MAX

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

struct qcow2 {
	uint32_t version;
	unsigned bits;       /* of the cluster's size */
	bool extended;       /* L2 entries have bits for subclusters */
	uint8_t compression; /* enum qcow2_compression */
	uint64_t l1_at;
	uint32_t l1_entries; /* that the disk's size needs */
	char *backing;       /* the backing file's name, or NULL */
	char backing_format[16];
	bool dirty, corrupt;

	/* What follows from that: bytes and powers of two. */
	unsigned l2_bits;      /* of the number of entries of an L2 table */
	uint64_t unit;         /* of allocation: a cluster, or a subcluster */
	uint32_t page_bytes;   /* a page, or a smaller cluster */
	uint32_t page_entries; /* clusters that a page speaks of */

	/* While it is active. */
	uint64_t *l1;
	struct qcow2_frame *frames;
	uint32_t frame_count; /* a power of two */
	uint64_t *pages;      /* page_bytes for each frame, in the file's byte order */
	struct qcow2_slot slots[QCOW2_SLOTS];
	atomic_flag told; /* damage is logged once */

	pthread_mutex_t lock;         /* short: never held across I/O */
	uint64_t generation;          /* of tags */
	uint64_t clock;               /* of slots' use */
	struct disk_request *waiting; /* for a frame or a slot; all are resumed when anything has ended */
};

static inline struct image *qcow2_image(const struct disk_request *r)
{
	return r->queue->disk->image[r->level];
}

static inline struct qcow2 *qcow2_of(const struct disk_request *r)
{
	return qcow2_image(r)->state;
}

/* --- qcow2_map.c --- */

[[nodiscard]] struct error *qcow2_map_load(struct image *image, struct qcow2 *q);
void qcow2_map_free(struct qcow2 *q);
void qcow2_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e);
bool qcow2_slow(struct image *image, struct disk_request *r, const struct extent *e);

/* The request cannot have the lock's thing now: it looks again when anything has ended. Drops the lock. */
bool qcow2_wait(struct qcow2 *q, struct disk_request *r);
/* Drops the lock, and has everybody look again. */
void qcow2_unlock_and_wake(struct qcow2 *q);
/* Ends the request with EIO, and logs once what is wrong with the image: @what at @offset of the file. */
bool qcow2_damaged(struct disk_request *r, const char *what, uint64_t offset);
/* Reads @len bytes at @offset of the request's image into @to, then goes on with @step, which must hand the result to
 * qcow2_fetched(). As a step returns. */
bool qcow2_fetch(struct disk_request *r, void *to, uint64_t offset, size_t len,
		 bool (*step)(struct disk_task *task, int res));
enum transferred qcow2_fetched(struct disk_request *r, int *res);

/* --- qcow2_check.c --- */

[[nodiscard]] struct error *qcow2_check(struct image *image, struct disk_check *check);

/* --- qcow2_cluster.c --- */

[[nodiscard]] struct error *qcow2_slots_make(struct image *image, struct qcow2 *q);
void qcow2_slots_free(struct qcow2 *q);
/* Under the lock, which it drops: answers the read of @r->from bytes in the cluster that @entry is of through a slot.
 */
bool qcow2_cluster(struct disk_request *r, uint64_t entry);

#endif
