/*
 * FAT32 in a part of a medium: what the ESP of a stick is (Microsoft FAT specification 1.03). Made new, read, and files
 * put into it, renamed and removed.
 *
 * A file system that is read may be hostile. What cannot be meant is refused, no chain is followed further than a file
 * can be long.
 *
 * Names are ASCII; case does not matter when looking for them. Paths have '/' between names and none at the ends.
 */
#ifndef GLINT_STICK_FAT_H
#define GLINT_STICK_FAT_H

#include "stick/blocks.h"

#include <time.h>

#define FAT_NAME_MAX 255u

struct fat;

struct fat_entry {
	char name[FAT_NAME_MAX + 1];
	bool folder;
	uint32_t size; /* bytes */

	/* The engine's. */
	uint32_t cluster;
	uint64_t at; /* of its entry, bytes of the medium */
};

/* Makes an empty one in the @len bytes at @start, which read as zeroes. @id: the volume's serial number; @when is in
 * everything that is made. */
[[nodiscard]] struct error *fat_format(struct fat **out, const struct blocks *m, uint64_t start, uint64_t len,
				       uint32_t id, time_t when);
/* Opens what is there. Writes nothing. */
[[nodiscard]] struct error *fat_open(struct fat **out, const struct blocks *m, uint64_t start, uint64_t len,
				     time_t when);
void fat_close(struct fat *fat);

/* Bytes of files that it still takes. */
uint64_t fat_free(const struct fat *fat);
/* Bytes that a file of @len bytes takes of that. */
uint64_t fat_room(const struct fat *fat, uint64_t len);

/* Hands each entry of the folder @path ("" is the topmost) to @each. ENOENT: there is no such folder. */
[[nodiscard]] struct error *fat_list(struct fat *fat, const char *path,
				     struct error *(*each)(void *arg, const struct fat_entry *entry), void *arg);

/* Reads a file of at most @max bytes, malloc'ed; a NUL stands behind it. ENOENT: there is none. */
[[nodiscard]] struct error *fat_read(struct fat *fat, const char *path, size_t max, char **data, size_t *len);

[[nodiscard]] struct error *fat_make_folder(struct fat *fat, const char *path);

/*
 * Puts a file there, in the place of one of that name. A cut leaves the old file or the new one, whole, and at most
 * clusters that nobody uses. Durable when it returns.
 */
[[nodiscard]] struct error *fat_put(struct fat *fat, const char *path, const void *data, size_t len);

/*
 * The same in halves. fat_write() puts the contents into free clusters, durably, and nobody knows of them yet: a file
 * system that is closed now is as it was. fat_compare() reads them back (EIO: they are others). fat_name() gives them
 * their name. @data must live as long as the chain is used.
 */
struct fat_chain {
	const uint8_t *data;
	size_t len;
	uint32_t first; /* the engine's */
};
[[nodiscard]] struct error *fat_write(struct fat *fat, const void *data, size_t len, struct fat_chain *chain);
[[nodiscard]] struct error *fat_compare(struct fat *fat, const struct fat_chain *chain);
[[nodiscard]] struct error *fat_name(struct fat *fat, const char *path, const struct fat_chain *chain);

/*
 * Gives the file @path the name @to in the same folder, which may need no more parts of 13 characters than the old one
 * (ENAMETOOLONG). Names that lie in one sector change at once; of others a cut leaves the old name, the new one, or the
 * file's short one ("GLINT_~1.EFI"): always one, and the contents are not touched. Durable when it returns.
 */
[[nodiscard]] struct error *fat_rename(struct fat *fat, const char *path, const char *to);

/* Removes a file; not a folder. A cut leaves it whole or gone, and at most clusters that nobody uses. Durable. */
[[nodiscard]] struct error *fat_remove(struct fat *fat, const char *path);

#endif
