/*
 * Inside the VHDX format: what its files share. Numbers are from [MS-VHDX] (section in brackets); all of the file is
 * little-endian.
 *
 *     vhdx_format.c  structures of the file: headers, regions, metadata, parent locators; reading and checking them
 *     vhdx_log.c     the log: entries, replay
 *     vhdx_map.c     the block map in memory: a cache of its pages, look-up without locks
 *     vhdx_write.c   requests that change the map: allocation, marks
 *     vhdx_commit.c  what makes its changes durable: flushes, commits
 *     vhdx_create.c  making and growing
 *     vhdx_check.c   checking and repairing
 *     vhdx.c         life: opening, activating, leaving
 */
#ifndef GLINT_DISK_VHDX_H
#define GLINT_DISK_VHDX_H

#include "disk/internal.h"

#include "base/util.h"

#include <endian.h>
#include <pthread.h>
#include <string.h>

#define VHDX_HEADER_BYTES   4096u                  /* [2.2.2] */
#define VHDX_HEADER_AT(n)   ((1 + (n)) * 64 * KIB) /* n: 0, 1 */
#define VHDX_REGIONS_BYTES  (64u << 10)            /* [2.2.3] */
#define VHDX_REGIONS_AT(n)  ((3 + (n)) * 64 * KIB)
#define VHDX_METADATA_TABLE (64u << 10) /* [2.6.1.1] */
#define VHDX_LOG_SECTOR     4096u
#define VHDX_UNIT           MIB /* everything in the file begins at a multiple */
/* No file of a disk of 64 TiB needs to be larger; what lies beyond is taken for damage. */
#define VHDX_FILE_MAX (130 * TIB)
#define VHDX_LOG_MAX  (64 * MIB) /* of logs that we replay; Hyper-V, QEMU and we make them of 1 MiB */

/* Entries of the block allocation table [2.5.1]: a state, and an offset in units of 1 MiB. */
#define VHDX_STATE(entry) ((entry) & 7)
#define VHDX_PLACE(entry) ((entry) & ~(VHDX_UNIT - 1))
enum {
	VHDX_NOT_PRESENT = 0,
	VHDX_UNDEFINED = 1,
	VHDX_ZERO = 2,
	VHDX_UNMAPPED = 3,
	VHDX_PRESENT = 6,
	VHDX_PARTIAL = 7,
};

/* Pages of the map: first those of the table, then those of the sector bitmaps, in the disk's order. */
#define VHDX_PAGE         4096u
#define VHDX_PAGE_ENTRIES (VHDX_PAGE / 8) /* of the table */
#define VHDX_PAGE_SECTORS (VHDX_PAGE * 8) /* that a bitmap's page speaks of */
#define VHDX_CHUNK_PAGES  256u            /* of one sector bitmap block: 1 MiB, 2^23 sectors */

/* Pages of one log entry, and so of one step of a commit: header and descriptors are one sector, two fit in half a log.
 */
#define VHDX_BATCH_MAX 62u

struct vhdx_header {
	uint64_t sequence;
	uint8_t file_id[16], data_id[16], log_id[16];
	uint32_t log_bytes;
	uint64_t log_at;
};

/* A place for one page. Readers use it without a lock and look at the tag again afterwards; the rest is the lock's. */
struct vhdx_frame {
	_Atomic uint64_t tag; /* the page, and above bit 40 a number that grows with each change; VHDX_NO_PAGE */
	uint64_t page;
	uint64_t at; /* in the file; 0: of a bitmap that is not there yet, and zeroes */
	bool loading;
	bool dirty;  /* differs from what the last commit took */
	bool taken;  /* by the commit under way */
	bool logged; /* its shadow is durable in the log, not yet in its place */
};
#define VHDX_NO_PAGE       UINT64_MAX
#define VHDX_TAG_PAGE(tag) ((tag) & (((uint64_t)1 << 40) - 1))

enum vhdx_commit_step {
	COMMIT_START,
	COMMIT_BEGIN_HEADER, /* twice, each made durable */
	COMMIT_BEGIN_SYNC,
	COMMIT_DATA_SYNC,
	COMMIT_PLACE, /* pages to their places */
	COMMIT_PLACE_SYNC,
	COMMIT_LOG,
	COMMIT_LOG_SYNC,
	COMMIT_END_HEADER,
	COMMIT_END_SYNC,
};

/* One at a time, on whichever queue's thread began it. */
struct vhdx_commit {
	struct disk_task task;
	bool running;
	bool closing; /* leave the log empty */
	int result;   /* of the last one */
	enum vhdx_commit_step step;
	struct disk_io *io;
	unsigned file;
	unsigned retries;
	/* The write under way. */
	uint8_t *buf;
	size_t len;
	uint64_t at;

	unsigned headers;       /* written so far */
	uint32_t *pages;        /* frames taken */
	unsigned count, logged; /* of them, and how many are in the log */
	unsigned batch;
	unsigned place; /* the next frame to look at when pages go to their places */
	bool fresh;     /* the entry starts the other half of the log */
	uint64_t flushed;
	struct disk_request *flushes;  /* that it will have done */
	struct disk_request *beginner; /* that began it for want of a frame, and must not end before it */
};

struct vhdx {
	struct image *image;
	struct vhdx_header header;
	unsigned current; /* which of the two it is: written over only once the other is durable */
	bool differencing, leave_allocated;
	uint64_t table_at, table_bytes;       /* the region */
	uint64_t metadata_at, metadata_bytes; /* the region */
	uint64_t size_at;                     /* of the virtual disk's size, in the file */
	uint64_t blocks, entries;
	uint32_t ratio; /* blocks of a chunk */
	unsigned shift; /* of the block's size */
	uint8_t *locator;
	size_t locator_len;

	/* While it is active. */
	uint64_t pages, table_pages;
	_Atomic uint32_t *where; /* by page: 1 + its frame, or 0 */
	uint32_t frame_count, frames_used, hand;
	struct vhdx_frame *frame;
	uint64_t *memory;    /* of frames */
	uint8_t *shadows;    /* of frames: contents as committed */
	uint8_t *entry;      /* a log entry */
	atomic_bool begun;   /* the headers name the log and say that the file is being written */
	bool unclosed;       /* one of them may: to be closed */
	atomic_bool changed; /* pages are dirty, or being committed */

	pthread_mutex_t lock; /* guards what follows, frames, and changes of pages */
	uint64_t end;         /* where new blocks go */
	uint64_t file_end;    /* the file is this long */
	struct disk_request *allocating;
	struct disk_request *waiting; /* for pages, or the end of a commit */
	struct disk_request *flushes; /* for the next commit */
	unsigned dirty;
	bool crowded; /* somebody waits for a frame: the next commit is to take pages to their places */
	uint64_t log_sequence, log_head; /* the next entry's; offset in its half */
	unsigned log_half;
	struct vhdx_commit commit;
};

/* --- vhdx_format.c --- */

extern const uint8_t vhdx_region_table[16], vhdx_region_metadata[16];

/* GUIDs of metadata items, in the order of vhdx_item. */
enum vhdx_item { ITEM_PARAMETERS, ITEM_SIZE, ITEM_ID, ITEM_SECTOR, ITEM_PHYSICAL, ITEM_LOCATOR, ITEM_COUNT };
extern const uint8_t vhdx_items[ITEM_COUNT][16];
extern const uint8_t vhdx_locator_type[16];

void vhdx_new_id(uint8_t id[16]);
/* The checksum of @len bytes with the field at offset 4 taken for zero. */
uint32_t vhdx_checksum(const uint8_t *p, size_t len);
/* @page: VHDX_HEADER_BYTES. */
void vhdx_header_encode(const struct vhdx_header *header, uint8_t *page);
/* False when the page is no whole header. */
bool vhdx_header_decode(const uint8_t *page, struct vhdx_header *header);
/* Whether the 64 KiB are a whole region table. */
bool vhdx_regions_whole(const uint8_t *table);
/* Writes the region table that counts over the other, where they differ: a cut while the table moved leaves one that
 * still names its old place. */
[[nodiscard]] struct error *vhdx_mend_regions(struct vhdx *v);
/* Reads headers, regions, metadata into @v. */
[[nodiscard]] struct error *vhdx_read(struct vhdx *v);
/* Computes blocks, entries, ratio from the image's size. */
void vhdx_geometry(struct vhdx *v);
/* The parent locator's value of @key as UTF-8, malloc'ed, or NULL. */
char *vhdx_locator_value(const struct vhdx *v, const char *key);
/* Encodes one: @len gets its length; malloc'ed. */
uint8_t *vhdx_locator_encode(const char *const pairs[][2], unsigned count, size_t *len);
/* The contents change. */
static inline void vhdx_new_data_id(struct vhdx *v)
{
	if (!v->image->disk->keep_data_id)
		vhdx_new_id(v->header.data_id);
}
void vhdx_id_text(const uint8_t id[16], char text[39]);
bool vhdx_id_parse(const char *text, uint8_t id[16]);

static inline uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t get32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}
static inline uint64_t get64(const uint8_t *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}
static inline void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}
static inline void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}
static inline void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

/* Four letters. */
static inline void put_letters(uint8_t *p, const char *letters)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = (uint8_t)letters[i];
}

/* --- vhdx_log.c --- */

/* Applies the log of an image that is locked for writing, and empties it. */
[[nodiscard]] struct error *vhdx_replay(struct vhdx *v);
/* Writes both headers as @v->header has it, which it gives new sequence numbers. At once. */
[[nodiscard]] struct error *vhdx_write_headers(struct vhdx *v);
/* Begins an entry of @count pages in @entry: VHDX_LOG_SECTOR * (1 + count) bytes; then its pages; then its end. */
void vhdx_entry_begin(struct vhdx *v, uint8_t *entry, unsigned count, uint32_t tail, uint64_t flushed, uint64_t last);
void vhdx_entry_page(struct vhdx *v, uint8_t *entry, unsigned n, uint64_t at, const uint8_t *page);
void vhdx_entry_end(uint8_t *entry, unsigned count);

/* --- vhdx_map.c --- */

/* The table's entry of a block, and of a chunk's bitmap. */
static inline uint64_t vhdx_block_entry(const struct vhdx *v, uint64_t block)
{
	return block + block / v->ratio;
}
static inline uint64_t vhdx_chunk_entry(const struct vhdx *v, uint64_t chunk)
{
	return (chunk + 1) * v->ratio + chunk;
}
/* The page that has the bit of a sector. */
static inline uint64_t vhdx_bitmap_page(const struct vhdx *v, uint64_t sector)
{
	return v->table_pages + sector / VHDX_PAGE_SECTORS;
}

[[nodiscard]] struct error *vhdx_map_load(struct vhdx *v);
void vhdx_map_free(struct vhdx *v);
/* False when its page is not in memory. No lock. */
bool vhdx_map_entry(struct vhdx *v, uint64_t entry, uint64_t *value);
/* The frame of a page, or NULL. Under the lock. */
struct vhdx_frame *vhdx_map_frame(struct vhdx *v, uint64_t page);
static inline uint8_t *vhdx_frame_bytes(const struct vhdx *v, const struct vhdx_frame *f)
{
	return (uint8_t *)(v->memory + (size_t)(f - v->frame) * VHDX_PAGE_ENTRIES);
}
static inline uint64_t *vhdx_frame_words(const struct vhdx *v, const struct vhdx_frame *f)
{
	return v->memory + (size_t)(f - v->frame) * VHDX_PAGE_ENTRIES;
}
static inline uint8_t *vhdx_frame_shadow(const struct vhdx *v, const struct vhdx_frame *f)
{
	return v->shadows + (size_t)(f - v->frame) * VHDX_PAGE;
}
/* A frame for a page that is not in memory, marked as loading; NULL when none can be had now. Under the lock. The entry
 * of a bitmap's chunk must be in memory. */
struct vhdx_frame *vhdx_map_claim(struct vhdx *v, uint64_t page);
/* Publishes it, or (!good) gives it back. Under the lock. */
void vhdx_map_loaded(struct vhdx *v, struct vhdx_frame *f, bool good);
/* True when it is neither in memory nor free to be claimed: being loaded. Under the lock. */
static inline bool vhdx_map_loading(const struct vhdx *v, uint64_t page)
{
	return atomic_load_explicit(&v->where[page], memory_order_relaxed) != 0;
}
/* A chunk got its bitmap: pages of it in memory have a place now. Under the lock. */
void vhdx_map_bitmap_made(struct vhdx *v, uint64_t chunk);
void vhdx_map(struct image *image, enum disk_request_type type, uint64_t offset, struct extent *e);
/* Changes an entry whose page is in memory. Under the lock. */
void vhdx_map_set(struct vhdx *v, uint64_t entry, uint64_t value);
/* Sets or clears the bits of [from, to) sectors in one page in memory. Under the lock. */
void vhdx_map_mark(struct vhdx *v, uint64_t from, uint64_t to, bool present);

/* --- vhdx_write.c --- */

/* disk_request.stage: what the operation under way, or the wait, was for. */
enum vhdx_stage { STAGE_WAIT, STAGE_WAIT_COMMIT, STAGE_FAILED, STAGE_LOAD, STAGE_EXTEND, STAGE_DATA, STAGE_UNDO };

bool vhdx_slow(struct image *image, struct disk_request *r, const struct extent *e);
/* Resumes all of a list, each on its own thread. @res < 0: those that wait for a commit are to fail. */
void vhdx_resume_all(struct disk_request *list, int res);

/* --- vhdx_commit.c --- */

bool vhdx_flush(struct image *image, struct disk_request *r);
/* Under the lock: has the caller begin a commit, by task_run(&v->commit.task, 0) once it has released the lock, if it
 * gets true. */
bool vhdx_commit_wanted(struct vhdx *v, const struct disk_queue *queue);
/* Commits everything and empties the log, at once. */
[[nodiscard]] struct error *vhdx_settle(struct vhdx *v);

/* --- vhdx_create.c --- */

[[nodiscard]] struct error *vhdx_create(int fd, const struct disk_create *create);
[[nodiscard]] struct error *vhdx_resize(struct image *image, uint64_t size);
[[nodiscard]] struct error *vhdx_renew(struct image *image);

/* --- vhdx_check.c --- */

[[nodiscard]] struct error *vhdx_check(struct image *image, struct disk_check *check);
[[nodiscard]] struct error *vhdx_mend(struct image *image, struct disk_check *check);

#endif
