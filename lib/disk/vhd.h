/*
 * Inside the VHD format: what vhd.c (life: opening, activating, making, growing) and vhd_map.c (requests) share.
 *
 * There is no log in a VHD, so order does it all. In memory a block exists from the moment a write needs it; on the
 * medium it exists once a commit is over, which every flush of a guest begins with:
 *
 *     1  fdatasync: the data of new blocks, the footer behind them
 *     2  write the bitmaps that changed, and the sectors of the table
 *     3  fdatasync
 *
 * Each of the writes of step 2 is a sector that may be there or not, whatever the others do: a table's entry speaks of
 * a block that step 1 made durable, and zeroes where a bitmap was not written say "not here", as it was before.
 *
 * New blocks come behind all others, and a new footer behind the new block; an old footer is never written over by
 * one (it ends up in a gap). A file whose footer did not survive is found by the footer's copy at its beginning, and
 * gets a new one when it is activated. Space behind the last block is zeroed then, so a new block is zeroes until it is
 * written to. Blocks are never moved or given up: what is discarded becomes a hole in the file.
 */
#ifndef GLINT_DISK_VHD_H
#define GLINT_DISK_VHD_H

#include "disk/internal.h"
#include "disk/vhd_format.h"

#include "base/util.h"

#include <pthread.h>

/* Blocks that may wait for a commit: with more, a write does it itself. */
#define VHD_CHANGES_MAX 1024u
/* Bytes of bitmaps in memory, at most. */
#define VHD_FRAMES_BYTES (16u << 20)

/*
 * A place for the bitmap of one block, found by its number: a cache. Readers use it without a lock, and look at the tag
 * again afterwards. All but the tag belongs to the lock.
 */
struct vhd_frame {
	_Atomic uint64_t tag; /* VHD_FRAME_EMPTY, or the block and, above it, a number that grows with each change */
	uint32_t writers;     /* requests that will set bits here */
	bool loading;
	bool dirty; /* the block is among the changes */
};
#define VHD_FRAME_EMPTY UINT64_MAX

struct vhd {
	/* What the file says, as bytes and understood. */
	uint8_t footer[VHD_FOOTER_BYTES], header[VHD_HEADER_BYTES];
	struct vhd_footer foot;
	struct vhd_header head;
	bool copy_good, end_good; /* the footers at both ends are alike and right */

	/* While it is active, and has blocks. */
	unsigned shift;          /* of the block's size */
	uint32_t bitmap_bytes;   /* in the file */
	uint32_t align;          /* of the data in new blocks */
	_Atomic uint32_t *table; /* each block's first sector, or VHD_UNUSED */
	uint32_t *stored;        /* the table as it is on the medium, in its byte order */
	uint64_t *stored_dirty;  /* a bit for each of its sectors: to be written by this commit */
	_Atomic uint64_t *full;  /* a bit for each block: known to have its whole bitmap set */
	struct vhd_frame *frames;
	uint32_t frame_count;  /* a power of two */
	_Atomic uint8_t *bits; /* bitmap_bytes for each frame */
	uint8_t *captured;     /* the same: what this commit writes */
	uint64_t generation;   /* of tags */

	pthread_mutex_t lock; /* short: never held across I/O */
	uint64_t end;         /* where the next block may begin */
	uint64_t footer_at;   /* where the file's footer is */
	bool growing, committing;
	uint32_t *changes; /* blocks whose bitmap or table entry is to be written; the first @taken by this commit */
	uint64_t *changed; /* a bit for each block: among the changes that no commit took */
	uint32_t change_count, reserved, taken, next_change;
	struct disk_request *waiting; /* for anything to end; all are resumed then */
};

static inline bool vhd_has_blocks(const struct vhd *v)
{
	return v->foot.type != VHD_FIXED;
}

static inline uint64_t vhd_block_room(const struct vhd *v)
{
	return v->bitmap_bytes + (uint64_t)v->head.block_bytes;
}

/* Where a block whose bitmap begins at or behind @at would begin. */
static inline uint64_t vhd_place(const struct vhd *v, uint64_t at)
{
	return align_up(at + v->bitmap_bytes, v->align) - v->bitmap_bytes;
}

/* disk_format's, of vhd_map.c. */
void vhd_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e);
bool vhd_slow(struct image *image, struct disk_request *r, const struct extent *e);
bool vhd_flush(struct image *image, struct disk_request *r);

/* disk_format's, of vhd_check.c. */
[[nodiscard]] struct error *vhd_check(struct image *image, struct disk_check *check);
[[nodiscard]] struct error *vhd_mend(struct image *image, struct disk_check *check);

#endif
