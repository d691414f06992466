/*
 * Checking qcow2 images, which are only read here: header and tables, by looking where every cluster is. Reference
 * counts, which readers do not need, are not checked. Reads the image's file by the disk's I/O at once.
 */
#include "disk/internal.h"
#include "disk/qcow2.h"

/* Damage of a whole table is that of each of its clusters: so many are told of one by one. */
#define TOLD_MAX 100

struct error *qcow2_check(struct image *image, struct disk_check *check)
{
	struct disk *disk = image->disk;
	struct disk_range range;
	struct error *err;

	if (!check_open(image, check, &err))
		return err;
	check_found(check, DISK_NOTE, false, "reference counts", 0,
		    "reference counts are not checked here: qemu-img check does, and repairs");
	if (image->remark)
		check_found(check, DISK_NOTE, false, "header", 0, "%s", image->remark);
	err = check_damage(check, "tables", 0, image->format->activate(image));
	if (err || check->errors > 0)
		return err;
	disk->active = true;
	for (uint64_t at = 0; at < image->size && check->errors < TOLD_MAX; at += range.len) {
		struct error *bad = disk_map(disk, at, &range);
		if (!bad)
			continue;
		check_found(check, DISK_ERROR, false, "cluster", at, "%s", error_text(bad));
		error_free(bad);
		range.len = image->block - at % image->block;
	}
	disk->active = false;
	return NULL;
}
