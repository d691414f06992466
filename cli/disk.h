/*
 * What the commands of `glint disk` share: opening images with their parents, making files that are there whole or not
 * at all, talking to the person.
 */
#ifndef GLINT_CLI_DISK_H
#define GLINT_CLI_DISK_H

#include "base/opener.h"
#include "disk/disk.h"
#include "option/option.h"

#include <jansson.h>

/* Finds parents below one folder: the image's, or the pool's. */
struct pool {
	struct opener opener; /* first */
	struct opener_dir below;
	int dir_fd;
	char *root, *folder; /* with --pool: the pool's path; the image's folder in it. Else NULL */
};

/* A disk under work. Zeroes are none. */
struct opened {
	struct pool pool;
	struct disk *disk;
	struct disk_info info; /* of the disk itself */
	unsigned files[DISK_CHAIN_MAX];
};

struct open_how {
	const char *format; /* NULL: look */
	const char *pool;   /* NULL: the image's folder */
	bool readonly, alone, keep_data_id;
	bool direct; /* past the page cache, where that can be had */
	bool idle;   /* not activated: nothing is locked, and nothing but the disk's description can be had */
};

/* Opens the disk in the file @path, and activates it unless it is to be idle. After an error there is nothing to close.
 */
[[nodiscard]] struct error *opened_open(struct opened *o, const char *path, const struct open_how *how);
/* Deactivates and closes it. Closed in any case. */
[[nodiscard]] struct error *opened_finish(struct opened *o);
/* Closes it as it is. */
void opened_close(struct opened *o);
#define cleanup_opened __attribute__((cleanup(opened_close)))

/* --- new files --- */

/* A file that gets its name when it is whole. */
struct new_file {
	const char *path;
	int fd;
	bool named; /* already: where files without a name cannot be made, it is removed by new_file_close() */
};

/* Refuses a @path that exists. */
[[nodiscard]] struct error *new_file_begin(struct new_file *file, const char *path);
/* Gives it its name, durably. */
[[nodiscard]] struct error *new_file_commit(struct new_file *file);
void new_file_close(struct new_file *file);
#define cleanup_new_file __attribute__((cleanup(new_file_close)))

/* EEXIST when there is something at @path. */
[[nodiscard]] struct error *must_be_new(const char *path);
/* Makes what happened to names in @path's folder durable. */
[[nodiscard]] struct error *sync_folder(const char *path);
/* @path with @end behind; NULL: no memory. To be freed. */
char *path_with(const char *path, const char *end);

/* --- formats --- */

extern const struct option_choice format_choices[], subformat_choices[];
enum { FORMAT_GUESS, FORMAT_RAW, FORMAT_VHD, FORMAT_VHDX };
enum { SUBFORMAT_DEFAULT, SUBFORMAT_FIXED, SUBFORMAT_DYNAMIC };

/* The name of a new disk's format: as chosen, or by the end of its file's name. */
[[nodiscard]] struct error *format_name(int choice, const char *path, const char **name);
/* NULL for the default. */
const char *subformat_name(int choice);

/* --- people --- */

/* "{12345678-...}", an id as its format writes it; "" for none. */
const char *id_text(const struct disk_info *info, const uint8_t id[16], char text[40]);
/* "1.5 GiB". */
const char *bytes_text(uint64_t bytes, char text[32]);
/* Prints, and frees. */
[[nodiscard]] struct error *print_json(json_t *json);

/* A bar on standard error, if that is a terminal. */
struct progress {
	const char *what;
	uint64_t done, total;
	uint64_t shown_ns;
	bool on, shown;
};
void progress_begin(struct progress *p, const char *what, uint64_t total);
void progress_at(struct progress *p, uint64_t done);
void progress_end(struct progress *p);

/* Nanoseconds of a clock that only goes forward. */
uint64_t now_ns(void);

#endif
