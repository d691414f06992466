/*
 * What the commands of `glint image` share: a stick on any disk that lib/disk opens, guests made ready to be carried,
 * devices that are not to be destroyed by accident.
 */
#ifndef GLINT_CLI_IMAGE_H
#define GLINT_CLI_IMAGE_H

#include "cli/disk.h"

#include "disk/ring.h"
#include "stick/fat.h"
#include "stick/gpt.h"
#include "stick/guest.h"
#include "stick/slots.h"

#define IMAGE_GUESTS_MAX 64u
#define STATE_BYTES      ((uint64_t)64 << 20)
#define HOST_CONFIG_MAX  ((size_t)64 << 10) /* as HOSTCONFIG_TEXT_MAX */
#define HOST_CONFIG_PATH "glint/host.toml"

/* --- image.c: media --- */

/* The medium that an active disk is. Lives as long as the disk is open. */
struct disk_medium {
	struct blocks medium; /* first */
	struct disk_ring *ring;
	struct disk_queue queue;
};
[[nodiscard]] struct error *disk_medium_init(struct disk_medium *m, const struct opened *o);
void disk_medium_free(struct disk_medium *m);
#define cleanup_disk_medium __attribute__((cleanup(disk_medium_free)))

/* A file without a name, in @folder: sparse, and gone with its descriptor. */
struct scratch {
	struct blocks medium; /* first */
	int fd;
	char path[40]; /* under which this process opens it */
};
[[nodiscard]] struct error *scratch_init(struct scratch *s, const char *folder);
[[nodiscard]] struct error *scratch_resize(struct scratch *s, uint64_t size);
void scratch_free(struct scratch *s);
#define cleanup_scratch __attribute__((cleanup(scratch_free)))

/* Copies all of the file @from to @to at @offset; holes too when @zeroes. @progress may be NULL. */
[[nodiscard]] struct error *copy_file_to(int from, const char *what, const struct blocks *to, uint64_t offset,
					 bool zeroes, struct progress *progress);

/* Checks every structure of the disk image in @fd, which @name is the name of: an error says what is damaged first.
 * @format: NULL to look. */
[[nodiscard]] struct error *check_whole(int fd, const char *name, const char *format);

/* Has what is read next come from the medium, not from memory. */
void forget_cache(const struct opened *o);

/* The folder for what is large and gone when the command ends. */
const char *scratch_folder(void);

/* Reads a host configuration and checks it. *text is malloc'ed. */
[[nodiscard]] struct error *host_config_read(const char *path, char **text, size_t *len);
/* Why it is no host configuration; NULL: it is one. */
[[nodiscard]] struct error *host_config_check(const char *what, const char *text, size_t len);

/* --- image_guest.c --- */

struct guest_args {
	const char *name, *disk;
	uint64_t memory;
	unsigned cpus;
	bool autostart, console;
	int persist;
};
extern const struct option_group guest_group;

/* A guest whose disk is a VHDX image in a file of its own. */
struct ready_guest {
	struct guest guest;
	struct scratch image;
	uint64_t bytes; /* that its partition needs */
};

/* Checks the disk and makes the image. Free it in any case. */
[[nodiscard]] struct error *guest_prepare(struct ready_guest *g, const struct guest_args *args, const char *folder,
					  bool quiet);
void guest_free(struct ready_guest *g);
/* Writes image and definition into a partition of g->bytes at @start. */
[[nodiscard]] struct error *guest_put(const struct ready_guest *g, const struct blocks *m, uint64_t start, bool zeroes,
				      struct progress *progress);
/* Adds the partition, where it lies; ids follow from the disk's id and its name. */
[[nodiscard]] struct error *guest_add(struct gpt *gpt, const struct ready_guest *g, uint64_t start);
/* The partition of the guest @name, or NULL. */
struct gpt_partition *guest_partition(struct gpt *gpt, const char *name);

/* An id that follows from others. */
struct guid guid_from(const struct guid *seed, const void *data, size_t len);

/* --- image_device.c --- */

/*
 * Takes a device for this process: refuses one that something uses, and, unless told (@force: it holds data, @fixed: it
 * is not a removable one), what is not meant. Says on standard error what will be lost. *fd keeps it taken.
 */
struct device_how {
	bool edit; /* its contents stay */
	bool force, fixed;
};
bool is_device(const char *path);
[[nodiscard]] struct error *device_take(const char *path, const struct device_how *how, int *fd, uint64_t *size);
/* Makes it nothing: no table of partitions, at neither end. Durable. */
[[nodiscard]] struct error *device_blank(int fd, const char *path, uint64_t size);
/* Has the kernel look at its partitions anew. */
void device_reread(int fd);

#endif
