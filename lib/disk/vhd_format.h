/*
 * The VHD format as bytes: footer, dynamic header, parent locators, geometry. Pure: no file is touched here.
 *
 * "Virtual Hard Disk Image Format Specification", Microsoft, version 1.0 (2006), called [VHD] below. All numbers are
 * big-endian, all offsets count from the file's beginning. A sector is always 512 bytes.
 *
 *     fixed:                  data, footer
 *     dynamic, differencing:  footer's copy, header, table, blocks ..., footer
 *
 * The table (BAT) holds the sector at which each block begins. A block is a bitmap with one bit for each of its
 * sectors, the first sector in the highest bit, padded to a sector, and the data.
 */
#ifndef GLINT_DISK_VHD_FORMAT_H
#define GLINT_DISK_VHD_FORMAT_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define VHD_SECTOR       512u
#define VHD_FOOTER_BYTES 512u
#define VHD_HEADER_BYTES 1024u
#define VHD_UNUSED       0xffffffffu /* an entry of the table without a block */
#define VHD_ID_BYTES     16u
#define VHD_LOCATORS     8u
#define VHD_NAME_BYTES                                                                                                 \
	1024u                /* a parent's name as UTF-8, with its end; 255 UTF-16 units and more never need as much   \
			      */
#define VHD_LOCATOR_MAX 512u /* bytes of a parent's name as UTF-16 that are read */

/* 2040 GiB: what Hyper-V takes, and what 32-bit sector numbers leave room for bitmaps in. */
#define VHD_SIZE_MAX (2040ull << 30)

/* Hyper-V makes blocks of 512 KiB and 2 MiB. Smaller ones would make the table unbounded, larger ones the bitmap. */
#define VHD_BLOCK_MIN     (512u << 10)
#define VHD_BLOCK_MAX     (16u << 20)
#define VHD_BLOCK_DEFAULT (2u << 20)

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

/* What of a footer ([VHD] "Hard Disk Footer Format") has a meaning here. */
struct vhd_footer {
	uint64_t header_offset; /* of the dynamic header; all ones in a fixed disk */
	uint64_t size;          /* bytes that a guest sees, whole sectors; see vhd_parse_footer() */
	enum vhd_type type;
	uint8_t id[VHD_ID_BYTES];
	uint32_t timestamp; /* seconds since 2000-01-01 UTC */
};

/* [VHD] "Dynamic Disk Header Format". */
struct vhd_header {
	uint64_t table_offset;
	uint32_t entries, block_bytes;
	uint8_t parent_id[VHD_ID_BYTES];
	uint32_t parent_timestamp;
	char parent_name[VHD_NAME_BYTES]; /* UTF-8; empty when it is none that can be read */
	/* Where the parent's name stands as UTF-16LE; length 0 when there is none. */
	struct vhd_locator {
		uint64_t offset;
		uint32_t length;
	} relative, absolute;
};

struct vhd_geometry {
	uint16_t cylinders;
	uint8_t heads, sectors;
};

/* True when @raw begins as a footer does. */
bool vhd_is_footer(const uint8_t raw[VHD_FOOTER_BYTES]);

/*
 * Reads a footer, which must have its checksum right and a type and sizes that can be. @name and @offset are of the
 * file, for errors.
 *
 * The size is the footer's current size, but for disks that Virtual PC and old QEMUs made: these rely on the geometry,
 * unless it is the largest there is. QEMU tells them apart in the same way, by the creator's name.
 */
[[nodiscard]] struct error *vhd_parse_footer(const uint8_t raw[VHD_FOOTER_BYTES], const char *name, uint64_t offset,
					     struct vhd_footer *footer);

/*
 * Makes the footer of a new disk: @footer as given, of @footer->size bytes, a size that is not rounded to a geometry.
 */
void vhd_make_footer(const struct vhd_footer *footer, uint8_t raw[VHD_FOOTER_BYTES]);

/* Changes the size of a footer, keeping what else it holds. */
void vhd_resize_footer(uint8_t raw[VHD_FOOTER_BYTES], uint64_t size);

/*
 * Reads the dynamic header of a disk of @size bytes, found in the file @name at @offset. The table must cover the disk
 * and the block size be in bounds; where the table lies in the file is the caller's to check.
 */
[[nodiscard]] struct error *vhd_parse_header(const uint8_t raw[VHD_HEADER_BYTES], const char *name, uint64_t offset,
					     uint64_t size, struct vhd_header *header);

/* Makes a header. The names of the parent go where @header->relative and ->absolute say; see vhd_put_name(). */
[[nodiscard]] struct error *vhd_make_header(const struct vhd_header *header, uint8_t raw[VHD_HEADER_BYTES]);

/*
 * Changes a header's table, keeping what else it holds. All that changes lies in the header's first sector, so one
 * sector's write takes a disk from one table to another.
 */
void vhd_move_table(uint8_t raw[VHD_HEADER_BYTES], uint64_t table_offset, uint32_t entries);

/* The bytes of a block's bitmap. */
static inline uint32_t vhd_bitmap_bytes(uint32_t block_bytes)
{
	uint32_t bytes = block_bytes / VHD_SECTOR / 8;

	return (bytes + VHD_SECTOR - 1) / VHD_SECTOR * VHD_SECTOR;
}

/* The geometry that [VHD] "CHS Calculation" gives a disk of so many bytes. */
struct vhd_geometry vhd_geometry(uint64_t size);

/*
 * A parent's name of @length bytes of UTF-16 (@big_endian or little-endian), ended by its length or by a zero, as a
 * path in UTF-8: backslashes become slashes, and a leading "./" goes. False when it is empty, not UTF-16, or too long.
 */
bool vhd_get_name(const uint8_t *utf16, size_t length, bool big_endian, char name[VHD_NAME_BYTES]);

/* The other way, without an end; @room is in bytes. Returns the bytes, or 0 when it is not UTF-8 or does not fit. */
size_t vhd_put_name(const char *name, bool big_endian, uint8_t *utf16, size_t room);

#endif
