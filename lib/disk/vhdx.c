/*
 * VHDX images: opening, taking, leaving; see vhdx.h for the other parts, and docs/disks.md for the order of writes.
 */
#include "disk/vhdx.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>

static const uint8_t no_id[16];

static bool vhdx_probe(const uint8_t *head, size_t len, const uint8_t *tail)
{
	(void)tail;
	return len >= 8 && memcmp(head, "vhdxfile", 8) == 0;
}

static struct error *vhdx_open(struct image *image)
{
	struct vhdx *v = image->state;
	uint8_t head[4096] __attribute__((aligned(4096)));

	if (!v) {
		v = calloc(1, sizeof(*v));
		if (!v)
			return error_new(ENOMEM, "%s: open it", image->name);
		v->image = image;
		pthread_mutex_init(&v->lock, NULL);
		image->state = v;
	}
	TRY(error_wrap(io_read(image->disk->io, image->file.fd, head, sizeof(head), 0, "the file identifier"), "%s",
		       image->name));
	if (!vhdx_probe(head, sizeof(head), NULL))
		return error_new(EINVAL, "%s: it is no VHDX file: there is no file identifier at offset 0",
				 image->name);
	return vhdx_read(v);
}

static void vhdx_close(struct image *image)
{
	struct vhdx *v = image->state;

	if (!v)
		return;
	vhdx_map_free(v);
	pthread_mutex_destroy(&v->lock);
	free(v->locator);
	free(v);
	image->state = NULL;
}

static struct error *vhdx_activate(struct image *image)
{
	struct vhdx *v = image->state;

	if (memcmp(v->header.log_id, no_id, sizeof(no_id)) != 0) {
		if (image->readonly)
			return error_hint(error_new(EUCLEAN,
						    "%s: it was not closed, and its log cannot be replayed "
						    "where it is only read",
						    image->name),
					  "open this disk once by itself for writing, which replays its log");
		TRY(vhdx_replay(v));
		TRY(disk_file_bytes(&image->file, image->name));
		TRY(vhdx_read(v));
	}
	if (!image->readonly)
		TRY(vhdx_mend_regions(v));
	v->unclosed = false;
	atomic_store(&v->begun, false);
	atomic_store(&v->changed, false);
	v->allocating = v->waiting = v->flushes = NULL;
	v->dirty = 0;
	v->crowded = false;
	v->commit = (struct vhdx_commit){0};
	struct error *err = vhdx_map_load(v);
	if (err)
		vhdx_map_free(v);
	return err;
}

static struct error *settle(struct image *image)
{
	return vhdx_settle(image->state);
}

static void vhdx_deactivate(struct image *image)
{
	vhdx_map_free(image->state);
}

/* A locator as other systems write it, for our openers: no drive, no leading ".\", "/" between names. */
static void to_path(char *locator)
{
	char *from = locator;

	for (char *p = locator; *p; p++)
		if (*p == '\\')
			*p = '/';
	while (strncmp(from, "./", 2) == 0)
		from += 2;
	memmove(locator, from, strlen(from) + 1);
}

static struct error *vhdx_parent(struct image *image, disk_try_fn *try, void *arg)
{
	/* In the order the specification asks for [2.6.2.6.3]. */
	static const char *const keys[] = {"relative_path", "volume_path", "absolute_win32_path"};
	struct error *first = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		cleanup_free char *locator = vhdx_locator_value(image->state, keys[i]);
		if (!locator || !*locator)
			continue;
		to_path(locator);
		struct error *err = try(arg, locator, NULL);
		if (!err) {
			error_free(first);
			return NULL;
		}
		if (first)
			error_free(err);
		else
			first = err;
	}
	return first ? first : error_new(ENOENT, "its parent locator names no path");
}

const struct disk_format disk_vhdx = {
	.name = "vhdx",
	.probe = vhdx_probe,
	.open = vhdx_open,
	.activate = vhdx_activate,
	.settle = settle,
	.deactivate = vhdx_deactivate,
	.close = vhdx_close,
	.parent = vhdx_parent,
	.map = vhdx_map,
	.slow = vhdx_slow,
	.flush = vhdx_flush,
	.create = vhdx_create,
	.resize = vhdx_resize,
	.renew = vhdx_renew,
	.check = vhdx_check,
	.mend = vhdx_mend,
};
