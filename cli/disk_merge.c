/*
 * glint disk merge: what a child holds goes into its parent, and the child is removed. Touches both files.
 *
 * While it is copied the child hides everything that is written to its parent, which keeps its contents' id: so the
 * child is what it was at every moment, and after a cut the same command begins anew. Only when the parent holds all of
 * it, durably, is the child removed; then the parent's contents get a new id, so that another child of what they were
 * is refused and does not show a mixture.
 */
#include "cli/cli.h"
#include "cli/copy.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct merge_args {
	const char *child, *pool;
	bool json, quiet;
};

/* Finds the child's parent, which must be the one it remembers: where it is. */
static struct error *find_parent(const struct merge_args *a, char path[PATH_MAX])
{
	cleanup_opened struct opened chain = {};
	char self[64];
	struct stat st, named;

	TRY(opened_open(&chain, a->child, &(struct open_how){.pool = a->pool, .readonly = true, .idle = true}));
	if (disk_depth(chain.disk) < 2 || strcmp(chain.info.format, "qcow2") == 0)
		return error_hint(error_new(EINVAL, "%s: it is no vhd or vhdx with a parent", a->child),
				  "glint disk info tells what it is");
	snprintf(self, sizeof(self), "/proc/self/fd/%d", disk_fd(chain.disk, 1));
	ssize_t len = readlink(self, path, PATH_MAX - 1);
	if (len < 0)
		return error_new(errno, "find the parent of %s", a->child);
	path[len] = '\0';
	if (fstat(disk_fd(chain.disk, 1), &st) < 0 || stat(path, &named) < 0 || st.st_dev != named.st_dev ||
	    st.st_ino != named.st_ino)
		return error_new(ESTALE, "%s: its parent, %s, is being replaced", a->child, path);
	return NULL;
}

static struct error *copy(const struct merge_args *a, const struct opened *child, struct opened *parent)
{
	struct progress progress;

	if (child->info.size > parent->info.size)
		TRY(disk_resize(parent->disk, child->info.size));
	disk_info(parent->disk, 0, &parent->info);
	progress_begin(&progress, "merge", child->info.size);
	struct error *err = copy_disk(
		&(struct copy){.from = child, .to = parent, .over = true, .progress = a->quiet ? NULL : &progress});
	progress_end(&progress);
	/* All of it durable, in its place: what is deactivated has an empty log. */
	if (!err)
		err = disk_deactivate(parent->disk);
	return error_hint(err, "%s is what it was; the same command begins anew", a->child);
}

static struct error *tell(const struct merge_args *a, const char *path, const struct opened *parent)
{
	if (a->json)
		return print_json(json_pack("{s:s, s:s, s:I}", "child", a->child, "parent", path, "size",
					    (json_int_t)parent->info.size));
	printf("%s holds all of %s, which is removed: it is the disk from now on.\n", path, a->child);
	return NULL;
}

static struct error *merge(void *args, int *status)
{
	const struct merge_args *a = args;
	cleanup_opened struct opened child = {}, parent = {};
	char path[PATH_MAX];

	(void)status;
	TRY(find_parent(a, path));
	/* Each by itself: neither the other nor what is below matters. */
	TRY(opened_open(&child, a->child, &(struct open_how){.alone = true, .keep_data_id = true}));
	TRY(opened_open(&parent, path, &(struct open_how){.alone = true, .keep_data_id = true}));
	TRY(copy(a, &child, &parent));
	if (unlink(a->child) < 0)
		return error_hint(error_new(errno, "remove %s", a->child), "%s holds all of it", path);
	TRY(sync_folder(a->child));
	TRY(disk_activate(parent.disk));
	TRY(disk_renew(parent.disk));
	TRY(disk_deactivate(parent.disk));
	return tell(a, path, &parent);
}

static const struct option merge_options[] = {
	{"child", OPTION_TEXT, offsetof(struct merge_args, child), .value = "CHILD", .min = 1,
	 .help = "the image, vhd or vhdx, whose contents go into its parent; it must have no children"},
	{"json", OPTION_FLAG, offsetof(struct merge_args, json), .help = "for programs"},
	{"quiet", OPTION_FLAG, offsetof(struct merge_args, quiet), .help = "no progress on a terminal"},
	{"pool", OPTION_TEXT, offsetof(struct merge_args, pool), .value = "DIR", .min = 1,
	 .help = "the folder that the image and its parents lie in (default: the image's)"},
	{NULL},
};

const struct command disk_merge_command = {
	.group = "disk",
	.name = "merge",
	.summary = "Puts what an image holds into its parent, and removes the image",
	.more = "The machine is then to be given the parent. Other children of that parent, and children of the image, "
		"are "
		"lost by it; nothing tells here whether there are any. A cut leaves the image as it was, or the parent "
		"whole; the same command begins anew.",
	.options = merge_options,
	.words = 1,
	.bytes = sizeof(struct merge_args),
	.run = merge,
};
