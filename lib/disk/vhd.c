/*
 * VHD: opening, activating, making and growing disks; see vhd.h. Touches the image's file, by the disk's I/O at once.
 */
#include "disk/vhd.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

/* Where a new disk's parts are. The table begins at a page, so that its sectors never straddle two. */
#define NEW_HEADER_AT   512u
#define NEW_RELATIVE_AT 1536u
#define NEW_ABSOLUTE_AT 2048u
#define NEW_TABLE_AT    4096u

/* Data in blocks of which a whole disk fits under 2 TiB of sector numbers with it. */
#define GOOD_ALIGN 4096u
#define FILE_MAX   ((uint64_t)VHD_UNUSED * VHD_SECTOR)

#define EPOCH_2000 946684800 /* 2000-01-01 UTC in seconds of time(2) */

static struct disk_io *io_of(const struct image *image)
{
	return image->disk->io;
}

static struct error *read_part(const struct image *image, void *buf, size_t len, uint64_t offset, const char *what)
{
	return error_wrap(io_read(io_of(image), image->file.fd, buf, len, offset, what), "%s", image->name);
}

static struct error *write_part(const struct image *image, const void *buf, size_t len, uint64_t offset,
				const char *what)
{
	return error_wrap(io_write(io_of(image), image->file.fd, buf, len, offset, what), "%s", image->name);
}

static struct error *sync_parts(const struct image *image, const char *what)
{
	return error_wrap(io_sync(io_of(image), image->file.fd, what), "%s", image->name);
}

static struct error *write_durably(const struct image *image, const void *buf, size_t len, uint64_t offset,
				   const char *what)
{
	TRY(write_part(image, buf, len, offset, what));
	return sync_parts(image, what);
}

/* --- opening --- */

static bool probe(const uint8_t *head, size_t len, const uint8_t *tail)
{
	return (len >= VHD_FOOTER_BYTES && vhd_is_footer(head)) || (tail && vhd_is_footer(tail));
}

/*
 * Finds the footer: the file's last sector, or its copy at the beginning.
 *
 * A fixed disk begins with what its guest wrote, which may look like a copy; a dynamic one whose footer was lost in a
 * crash ends with what its guest wrote, which may look like a footer. Guests do not see the disk's id. So where both
 * ends have a footer, the ids must be the same; else the file is refused, since either may be made up. Of two with one
 * id the copy counts: growing a disk changes it last.
 */
static struct error *open_footer(struct image *image, struct vhd *v)
{
	uint8_t tail[VHD_FOOTER_BYTES];
	uint64_t tail_at = image->file.size - VHD_FOOTER_BYTES;
	struct vhd_footer at_end;

	if (image->file.size < VHD_FOOTER_BYTES)
		return error_new(EINVAL, "%s: its %llu bytes are less than a VHD footer", image->name,
				 (unsigned long long)image->file.size);
	TRY(read_part(image, v->footer, VHD_FOOTER_BYTES, 0, "the footer's copy"));
	TRY(read_part(image, tail, VHD_FOOTER_BYTES, tail_at, "the footer"));
	struct error *copy_error = vhd_parse_footer(v->footer, image->name, 0, &v->foot);
	struct error *end_error = vhd_parse_footer(tail, image->name, tail_at, &at_end);
	v->copy_good = !copy_error && v->foot.type != VHD_FIXED;
	v->end_good = !end_error &&
		      (at_end.type == VHD_FIXED || !v->copy_good || memcmp(tail, v->footer, VHD_FOOTER_BYTES) == 0);
	bool conflict = v->copy_good && !end_error &&
			(at_end.type == VHD_FIXED || memcmp(at_end.id, v->foot.id, VHD_ID_BYTES) != 0);
	struct error *err = NULL;
	if (conflict) {
		err = error_hint(error_new(EINVAL, "%s: the VHD footers at offsets 0 and %llu are of different disks",
					   image->name, (unsigned long long)tail_at),
				 "one of them is what a guest wrote: restore the file, or repair it by hand");
	} else if (!v->copy_good && end_error) {
		/* Which of the two says more depends on which was there. */
		err = vhd_is_footer(tail) || !copy_error ? steal_ptr(&end_error) : steal_ptr(&copy_error);
	} else if (!v->copy_good) {
		v->foot = at_end;
		memcpy(v->footer, tail, VHD_FOOTER_BYTES);
	}
	error_free(copy_error);
	error_free(end_error);
	return err;
}

static struct error *open_header(struct image *image, struct vhd *v)
{
	const struct vhd_header *head = &v->head;
	uint64_t at = v->foot.header_offset, size = image->file.size;

	if (at < VHD_FOOTER_BYTES || !is_aligned(at, VHD_SECTOR) || !range_inside(at, VHD_HEADER_BYTES, size))
		return error_new(EINVAL, "%s: the VHD footer says that the dynamic header is at offset %llu",
				 image->name, (unsigned long long)at);
	TRY(read_part(image, v->header, VHD_HEADER_BYTES, at, "the dynamic header"));
	TRY(vhd_parse_header(v->header, image->name, at, v->foot.size, &v->head));
	uint64_t bytes = align_up(head->entries * sizeof(uint32_t), VHD_SECTOR);
	if (head->table_offset < VHD_FOOTER_BYTES || !is_aligned(head->table_offset, VHD_SECTOR) ||
	    !range_inside(head->table_offset, bytes, size) ||
	    (head->table_offset < at + VHD_HEADER_BYTES && at < head->table_offset + bytes))
		return error_new(EINVAL,
				 "%s: the VHD dynamic header at offset %llu says that the table is at offset %llu",
				 image->name, (unsigned long long)at, (unsigned long long)head->table_offset);
	return NULL;
}

static struct error *no_direct_io(const struct image *image)
{
	if (image->file.memory_align == 1)
		return NULL;
	return error_hint(error_new(ENOTSUP, "%s: a VHD cannot be used with direct I/O", image->name),
			  "its parts are not aligned: open it without direct I/O");
}

static struct error *open_image(struct image *image)
{
	static const char *const subformats[] = {
		[VHD_FIXED] = "fixed", [VHD_DYNAMIC] = "dynamic", [VHD_DIFFERENCING] = "differencing"};
	struct vhd *v = image->state;

	TRY(no_direct_io(image));
	if (!v) {
		v = calloc(1, sizeof(*v));
		if (!v)
			return error_new(ENOMEM, "%s: open it", image->name);
		pthread_mutex_init(&v->lock, NULL);
		image->state = v;
	}
	TRY(open_footer(image, v));
	v->head = (struct vhd_header){};
	if (vhd_has_blocks(v))
		TRY(open_header(image, v));
	else if (v->foot.size > image->file.size - VHD_FOOTER_BYTES)
		return error_new(EINVAL, "%s: the VHD footer says the disk has %llu bytes, the file has %llu before it",
				 image->name, (unsigned long long)v->foot.size,
				 (unsigned long long)(image->file.size - VHD_FOOTER_BYTES));
	image->size = v->foot.size;
	image->sector = VHD_SECTOR;
	image->physical = 4096;
	image->block = v->head.block_bytes;
	image->subformat = subformats[v->foot.type];
	image->has_parent = v->foot.type == VHD_DIFFERENCING;
	memcpy(image->id, v->foot.id, sizeof(image->id));
	memcpy(image->data_id, v->foot.id, sizeof(image->data_id));
	memcpy(image->parent_id, v->head.parent_id, sizeof(image->parent_id));
	return NULL;
}

/* --- activating --- */

static void drop_tables(struct vhd *v)
{
	/* Each was allocated without its qualifiers. */
	void *const all[] = {(void *)(uintptr_t)v->table,
			     v->stored,
			     v->stored_dirty,
			     (void *)(uintptr_t)v->full,
			     v->frames,
			     (void *)(uintptr_t)v->bits,
			     v->captured,
			     v->changes,
			     v->changed};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(all[i]);
	v->table = NULL;
	v->stored = NULL;
	v->stored_dirty = v->changed = NULL;
	v->full = NULL;
	v->frames = NULL;
	v->bits = NULL;
	v->captured = NULL;
	v->changes = NULL;
}

static void close_image(struct image *image)
{
	struct vhd *v = image->state;

	if (!v)
		return;
	drop_tables(v);
	pthread_mutex_destroy(&v->lock);
	free(v);
	image->state = NULL;
}

static uint32_t count_frames(const struct vhd *v)
{
	uint32_t most = VHD_FRAMES_BYTES / v->bitmap_bytes, count = 1;

	while (count < most && count < v->head.entries)
		count *= 2;
	return count;
}

static struct error *make_tables(struct image *image, struct vhd *v)
{
	size_t entries = v->head.entries, words = entries / 64 + 1;
	size_t sectors = align_up(entries * sizeof(uint32_t), VHD_SECTOR) / VHD_SECTOR;

	v->shift = (unsigned)__builtin_ctz(v->head.block_bytes);
	v->bitmap_bytes = vhd_bitmap_bytes(v->head.block_bytes);
	v->align = entries * ((uint64_t)v->head.block_bytes + v->bitmap_bytes + GOOD_ALIGN) + 64 * MIB < FILE_MAX
			   ? GOOD_ALIGN
			   : VHD_SECTOR;
	v->frame_count = count_frames(v);
	v->table = calloc(entries, sizeof(*v->table));
	v->stored = calloc(sectors, VHD_SECTOR);
	v->stored_dirty = calloc(sectors / 64 + 1, sizeof(*v->stored_dirty));
	v->full = calloc(words, sizeof(*v->full));
	v->frames = calloc(v->frame_count, sizeof(*v->frames));
	v->bits = calloc(v->frame_count, v->bitmap_bytes);
	v->captured = calloc(v->frame_count, v->bitmap_bytes);
	v->changes = calloc(VHD_CHANGES_MAX, sizeof(*v->changes));
	v->changed = calloc(words, sizeof(*v->changed));
	if (!v->table || !v->stored || !v->stored_dirty || !v->full || !v->frames || !v->bits || !v->captured ||
	    !v->changes || !v->changed)
		return error_new(ENOMEM, "%s: hold its table of %zu blocks", image->name, entries);
	for (uint32_t i = 0; i < v->frame_count; i++)
		atomic_init(&v->frames[i].tag, VHD_FRAME_EMPTY);
	v->change_count = v->reserved = v->taken = 0;
	return NULL;
}

/* Checks one block, of the file's first @sector. */
static struct error *check_block(const struct image *image, const struct vhd *v, uint32_t sector)
{
	uint64_t at = (uint64_t)sector * VHD_SECTOR, room = vhd_block_room(v);
	uint64_t table_end = v->head.table_offset + v->head.entries * sizeof(uint32_t);
	uint64_t header_end = v->foot.header_offset + VHD_HEADER_BYTES;

	uint64_t limit = image->file.size - (v->end_good ? VHD_FOOTER_BYTES : 0);

	if (!range_inside(at, room, limit))
		return error_new(EINVAL,
				 "%s: a block at offset %llu, said by the VHD table at offset %llu, is not in the file",
				 image->name, (unsigned long long)at, (unsigned long long)v->head.table_offset);
	if (at < VHD_FOOTER_BYTES || (at < table_end && v->head.table_offset < at + room) ||
	    (at < header_end && v->foot.header_offset < at + room))
		return error_new(EINVAL,
				 "%s: a block at offset %llu, said by the VHD table at offset %llu, lies over headers",
				 image->name, (unsigned long long)at, (unsigned long long)v->head.table_offset);
	return NULL;
}

static int by_number(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* Checks the blocks by themselves and against each other; finds where they end. */
static struct error *check_blocks(const struct image *image, struct vhd *v)
{
	cleanup_free uint32_t *used = calloc(v->head.entries, sizeof(*used));
	uint64_t room = vhd_block_room(v);
	uint32_t count = 0;
	bool sorted = true;

	if (!used)
		return error_new(ENOMEM, "%s: check its table", image->name);
	for (uint32_t i = 0; i < v->head.entries; i++) {
		uint32_t sector = atomic_load_explicit(&v->table[i], memory_order_relaxed);
		if (sector == VHD_UNUSED)
			continue;
		TRY(check_block(image, v, sector));
		sorted = sorted && (count == 0 || used[count - 1] < sector);
		used[count++] = sector;
	}
	if (!sorted)
		qsort(used, count, sizeof(*used), by_number);
	for (uint32_t i = 1; i < count; i++)
		if ((uint64_t)(used[i] - used[i - 1]) * VHD_SECTOR < room)
			return error_new(EINVAL,
					 "%s: two blocks of the VHD table at offset %llu overlap at offset %llu",
					 image->name, (unsigned long long)v->head.table_offset,
					 (unsigned long long)used[i] * VHD_SECTOR);
	uint64_t table_end = v->head.table_offset + v->head.entries * sizeof(uint32_t);
	v->end = MAX(align_up(table_end, VHD_SECTOR), v->foot.header_offset + VHD_HEADER_BYTES);
	const struct vhd_locator *names[] = {&v->head.relative, &v->head.absolute};
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (range_inside(names[i]->offset, names[i]->length, image->file.size))
			v->end = MAX(v->end, align_up(names[i]->offset + names[i]->length, VHD_SECTOR));
	if (count > 0)
		v->end = MAX(v->end, used[count - 1] * (uint64_t)VHD_SECTOR + room);
	return NULL;
}

static struct error *load_table(struct image *image, struct vhd *v)
{
	size_t bytes = align_up(v->head.entries * sizeof(uint32_t), VHD_SECTOR);

	TRY(read_part(image, v->stored, bytes, v->head.table_offset, "the table"));
	for (uint32_t i = 0; i < v->head.entries; i++)
		atomic_init(&v->table[i], be32toh(v->stored[i]));
	return check_blocks(image, v);
}

/* Zeroes what lies between the blocks and the footer, or has new blocks come behind it where that cannot be done. */
static void clear_slack(struct image *image, struct vhd *v)
{
	if (v->end < v->footer_at &&
	    io_fallocate(io_of(image), image->file.fd, FALLOC_FL_PUNCH_HOLE, v->end, v->footer_at - v->end) < 0)
		v->end = v->footer_at;
}

/* Makes whole what a crash may have left: the footers at both ends, and space for new blocks that holds old data. */
static struct error *mend(struct image *image, struct vhd *v)
{
	uint64_t size = image->file.size;

	v->footer_at = size - VHD_FOOTER_BYTES;
	if (!v->end_good || v->footer_at < v->end || !is_aligned(v->footer_at, VHD_SECTOR))
		v->footer_at = MAX(v->end, align_up(size, VHD_SECTOR));
	clear_slack(image, v);
	if (!v->end_good || v->footer_at + VHD_FOOTER_BYTES != size)
		TRY(write_part(image, v->footer, VHD_FOOTER_BYTES, v->footer_at, "the footer"));
	if (!v->copy_good)
		TRY(write_part(image, v->footer, VHD_FOOTER_BYTES, 0, "the footer's copy"));
	v->copy_good = v->end_good = true;
	return sync_parts(image, "what was mended");
}

static struct error *activate(struct image *image)
{
	struct vhd *v = image->state;

	if (!vhd_has_blocks(v))
		return NULL;
	TRY(make_tables(image, v));
	TRY(load_table(image, v));
	return image->readonly ? NULL : mend(image, v);
}

/* --- what is done at once by requests --- */

struct flush {
	struct disk_request r;
	int res;
};

static void flush_done(struct disk_request *r, int res)
{
	((struct flush *)r)->res = res;
}

/* A flush as a guest's, by the disk's own I/O, which is done when it returns. */
static struct error *flush_now(struct image *image)
{
	const unsigned file = (unsigned)image->file.fd;
	struct disk_queue queue = {.disk = image->disk, .io = io_of(image), .files = &file};
	struct flush f = {.r = {.type = DISK_FLUSH, .done = flush_done}, .res = -EIO};

	disk_submit(&queue, &f.r);
	return f.res < 0 ? error_new(-f.res, "%s: make it durable", image->name) : NULL;
}

static void deactivate(struct image *image)
{
	drop_tables(image->state);
}

/* --- parents --- */

/* Adds one more reason why there is no parent, the last one being the one to be told. */
static bool try_name(const char *name, disk_try_fn *try, void *arg, struct error **err)
{
	error_free(*err);
	*err = try(arg, name, NULL);
	return *err == NULL;
}

static struct error *read_name(struct image *image, const struct vhd_locator *locator, char name[VHD_NAME_BYTES])
{
	uint8_t utf16[VHD_LOCATOR_MAX];

	name[0] = '\0';
	if (locator->length == 0)
		return NULL;
	if (!range_inside(locator->offset, locator->length, image->file.size))
		return error_new(EINVAL, "%s: the VHD dynamic header says that the parent's name is at offset %llu",
				 image->name, (unsigned long long)locator->offset);
	TRY(read_part(image, utf16, locator->length, locator->offset, "the parent's name"));
	if (!vhd_get_name(utf16, locator->length, false, name))
		name[0] = '\0';
	return NULL;
}

/* By the relative path, the plain name, and the absolute path, which an opener that is confined will refuse. */
static struct error *parent(struct image *image, disk_try_fn *try, void *arg)
{
	const struct vhd *v = image->state;
	char relative[VHD_NAME_BYTES], absolute[VHD_NAME_BYTES];
	struct error *err = error_new(EINVAL, "%s: the VHD dynamic header at offset %llu names no parent", image->name,
				      (unsigned long long)v->foot.header_offset);
	const char *const names[] = {relative, v->head.parent_name, absolute};
	struct error *read_error = read_name(image, &v->head.relative, relative);

	if (!read_error)
		read_error = read_name(image, &v->head.absolute, absolute);
	if (read_error) {
		error_free(err);
		return read_error;
	}
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i][0] && try_name(names[i], try, arg, &err))
			return NULL;
	return err;
}

/* --- making --- */

static uint32_t since_2000(time_t t)
{
	return t > EPOCH_2000 ? (uint32_t)(t - EPOCH_2000) : 0;
}

/* What the new disk's subformat is; @type is set from it. */
static struct error *check_create(const struct disk_create *c, enum vhd_type *type)
{
	const char *subformat = c->subformat ? c->subformat : c->parent ? "differencing" : "dynamic";
	uint32_t block = c->block ? c->block : VHD_BLOCK_DEFAULT;
	struct disk_info parent = {};

	*type = strcmp(subformat, "fixed") == 0 ? VHD_FIXED : c->parent ? VHD_DIFFERENCING : VHD_DYNAMIC;
	if (strcmp(subformat, "fixed") != 0 && strcmp(subformat, "dynamic") != 0 &&
	    strcmp(subformat, "differencing") != 0)
		return error_hint(error_new(EINVAL, "\"%s\" is no subformat of VHD", subformat),
				  "use fixed, dynamic or differencing");
	if ((strcmp(subformat, "differencing") == 0) != !!c->parent)
		return error_new(EINVAL, "a %s VHD %s", subformat, c->parent ? "has no parent" : "needs a parent");
	if (c->size > VHD_SIZE_MAX)
		return error_hint(error_new(EFBIG, "%llu bytes are too many for a VHD", (unsigned long long)c->size),
				  "a VHD holds at most 2040 GiB: use VHDX");
	if (c->sector != VHD_SECTOR)
		return error_hint(error_new(EINVAL, "a VHD has sectors of 512 bytes, not %u", c->sector), "use VHDX");
	if (*type == VHD_FIXED ? c->block != 0
			       : block < VHD_BLOCK_MIN || block > VHD_BLOCK_MAX || (block & (block - 1)))
		return error_hint(error_new(EINVAL, "a %s VHD cannot have blocks of %u bytes", subformat, c->block),
				  "fixed has none; else use 512 KiB, 2 MiB or another power of two up to 16 MiB");
	if (c->parent) {
		disk_info(c->parent, 0, &parent);
		if (strcmp(parent.format, "vhd") != 0)
			return error_hint(error_new(EINVAL, "the parent of a VHD must be a VHD, %s is %s", parent.name,
						    parent.format),
					  "use VHDX, or convert the parent");
	}
	return NULL;
}

/* Fills in the header's parent and writes its names. */
static struct error *create_parent(int fd, const struct disk_create *c, struct vhd_header *head)
{
	uint8_t utf16[VHD_LOCATOR_MAX];
	struct disk_info parent;
	struct stat st;
	struct {
		const char *name;
		uint32_t at;
		struct vhd_locator *locator;
	} names[] = {{c->parent_locator, NEW_RELATIVE_AT, &head->relative},
		     {c->parent_path, NEW_ABSOLUTE_AT, &head->absolute}};

	if (!c->parent_locator || strlen(c->parent_locator) >= sizeof(head->parent_name))
		return error_new(EINVAL, "a differencing VHD needs its parent's path");
	disk_info(c->parent, 0, &parent);
	memcpy(head->parent_id, parent.data_id, VHD_ID_BYTES);
	if (fstat(disk_fd(c->parent, 0), &st) < 0)
		return error_new(errno, "look at the parent %s", parent.name);
	head->parent_timestamp = since_2000(st.st_mtime);
	strcpy(head->parent_name, c->parent_locator);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		memset(utf16, 0, sizeof(utf16));
		if (!names[i].name)
			continue;
		*names[i].locator = (struct vhd_locator){
			.offset = names[i].at,
			.length = (uint32_t)vhd_put_name(names[i].name, false, utf16, sizeof(utf16)),
		};
		if (names[i].locator->length == 0)
			return error_hint(error_new(ENAMETOOLONG, "a VHD cannot name its parent '%s'", names[i].name),
					  "names are UTF-8, of at most 255 characters");
		TRY(io_write(c->io, fd, utf16, sizeof(utf16), names[i].at, "the parent's name"));
	}
	return NULL;
}

/* Writes @bytes of a table without blocks. */
static struct error *write_empty_table(struct disk_io *io, int fd, uint64_t at, uint64_t bytes)
{
	cleanup_free uint8_t *unused = malloc(MIN(bytes, MIB));

	if (!unused)
		return error_new(ENOMEM, "make the table");
	memset(unused, 0xff, MIN(bytes, MIB));
	for (uint64_t done = 0; done < bytes; done += MIB)
		TRY(io_write(io, fd, unused, MIN(bytes - done, MIB), at + done, "the table"));
	return NULL;
}

static struct error *create_blocks(int fd, const struct disk_create *c, const uint8_t *footer)
{
	struct vhd_header head = {.table_offset = NEW_TABLE_AT, .block_bytes = c->block ? c->block : VHD_BLOCK_DEFAULT};
	uint8_t raw[VHD_HEADER_BYTES];

	head.entries = (uint32_t)((c->size + head.block_bytes - 1) / head.block_bytes);
	uint64_t bytes = align_up(head.entries * sizeof(uint32_t), VHD_SECTOR);
	if (c->parent)
		TRY(create_parent(fd, c, &head));
	TRY(vhd_make_header(&head, raw));
	TRY(io_write(c->io, fd, raw, sizeof(raw), NEW_HEADER_AT, "the dynamic header"));
	TRY(write_empty_table(c->io, fd, NEW_TABLE_AT, bytes));
	TRY(io_write(c->io, fd, footer, VHD_FOOTER_BYTES, NEW_TABLE_AT + bytes, "the footer"));
	return io_write(c->io, fd, footer, VHD_FOOTER_BYTES, 0, "the footer's copy");
}

static struct error *create(int fd, const struct disk_create *c)
{
	struct vhd_footer foot = {.header_offset = NEW_HEADER_AT, .size = c->size, .timestamp = since_2000(time(NULL))};
	uint8_t raw[VHD_FOOTER_BYTES];

	TRY(check_create(c, &foot.type));
	if (getrandom(foot.id, sizeof(foot.id), 0) != (ssize_t)sizeof(foot.id))
		return error_new(errno, "make an id");
	/* The one id is the disk's and its contents'. */
	if (c->id)
		memcpy(foot.id, c->id, sizeof(foot.id));
	vhd_make_footer(&foot, raw);
	if (foot.type == VHD_FIXED)
		TRY(io_write(c->io, fd, raw, sizeof(raw), c->size, "the footer"));
	else
		TRY(create_blocks(fd, c, raw));
	return io_sync(c->io, fd, "the new disk");
}

/* --- growing --- */

/*
 * A fixed disk: its footer once more at the end that it will have; then zeroes over the old one, which will be among
 * the data; then the new size.
 */
static struct error *grow_fixed(struct image *image, struct vhd *v, uint64_t size)
{
	uint64_t old = image->file.size - VHD_FOOTER_BYTES, at = MAX(size, old);
	uint8_t footer[VHD_FOOTER_BYTES];

	if (at > old && at < old + VHD_FOOTER_BYTES)
		return error_new(EINVAL, "%s: its footer at offset %llu is in the way", image->name,
				 (unsigned long long)old);
	memcpy(footer, v->footer, VHD_FOOTER_BYTES);
	if (at > old)
		TRY(write_durably(image, footer, VHD_FOOTER_BYTES, at, "the new footer"));
	TRY(io_zero(io_of(image), image->file.fd, v->foot.size,
		    (at > old ? old + VHD_FOOTER_BYTES : old) - v->foot.size, "zeroes over the old footer"));
	TRY(sync_parts(image, "zeroes over the old footer"));
	vhd_resize_footer(footer, size);
	return half_way(image, write_durably(image, footer, VHD_FOOTER_BYTES, at, "the footer"));
}

/* A larger table, of @bytes, behind everything, and the footer once more behind it. */
static struct error *copy_table(struct image *image, struct vhd *v, uint64_t at, uint64_t bytes)
{
	uint64_t old_bytes = align_up(v->head.entries * sizeof(uint32_t), VHD_SECTOR);

	/* What the old table has behind the disk's own entries means nothing. */
	memset(v->stored + v->head.entries, 0xff, old_bytes - v->head.entries * sizeof(uint32_t));
	TRY(write_part(image, v->stored, old_bytes, at, "the new table"));
	TRY(write_empty_table(io_of(image), image->file.fd, at + old_bytes, bytes - old_bytes));
	TRY(write_part(image, v->footer, VHD_FOOTER_BYTES, at + bytes, "the footer"));
	TRY(sync_parts(image, "the new table"));
	v->footer_at = at + bytes;
	return NULL;
}

/* The header's first sector names the new table: from then on it is the one that counts. */
static struct error *take_table(struct image *image, struct vhd *v, uint64_t at, uint64_t entries)
{
	vhd_move_table(v->header, at, (uint32_t)entries);
	return half_way(image,
			write_durably(image, v->header, VHD_SECTOR, v->foot.header_offset, "the dynamic header"));
}

/* A disk with blocks: a larger table, if need be; then the new size in the footer, and at last in its copy. */
static struct error *grow_blocks(struct image *image, struct vhd *v, uint64_t size)
{
	uint64_t entries = (size + v->head.block_bytes - 1) / v->head.block_bytes;
	uint64_t at = align_up(MAX(v->end, v->footer_at + VHD_FOOTER_BYTES), GOOD_ALIGN);
	uint8_t footer[VHD_FOOTER_BYTES];

	if (entries > v->head.entries) {
		TRY(copy_table(image, v, at, align_up(entries * sizeof(uint32_t), VHD_SECTOR)));
		TRY(take_table(image, v, at, entries));
	}
	memcpy(footer, v->footer, VHD_FOOTER_BYTES);
	vhd_resize_footer(footer, size);
	TRY(write_durably(image, footer, VHD_FOOTER_BYTES, v->footer_at, "the footer"));
	return half_way(image, write_durably(image, footer, VHD_FOOTER_BYTES, 0, "the footer's copy"));
}

static struct error *resize(struct image *image, uint64_t size)
{
	struct vhd *v = image->state;

	if (size > VHD_SIZE_MAX)
		return error_hint(error_new(EFBIG, "%s: %llu bytes are too many for a VHD", image->name,
					    (unsigned long long)size),
				  "a VHD holds at most 2040 GiB: convert it to VHDX");
	return vhd_has_blocks(v) ? grow_blocks(image, v, size) : grow_fixed(image, v, size);
}

const struct disk_format disk_vhd = {
	.name = "vhd",
	.probe = probe,
	.open = open_image,
	.activate = activate,
	.settle = flush_now,
	.deactivate = deactivate,
	.close = close_image,
	.parent = parent,
	.map = vhd_map,
	.slow = vhd_slow,
	.flush = vhd_flush,
	.create = create,
	.resize = resize,
	.check = vhd_check,
	.mend = vhd_mend,
};
