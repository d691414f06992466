/*
 * glint image create: a stick on a device, or as a disk image. Touches the files it is made from, the new file or the
 * device, and files without a name.
 *
 * The contents are made in a file without a name, then copied, then read back past the page cache and compared. The
 * table of partitions comes last: a device that was half written is no stick, and a file gets its name when it is
 * whole.
 */
#include "cli/cli.h"
#include "cli/copy.h"
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "stick/uki.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX ((size_t)1 << 30)

struct create_args {
	unsigned guest_count; /* first: guest_group counts there */
	struct guest_args guests[IMAGE_GUESTS_MAX];
	const char *output, *uki, *loader, *host_config;
	uint64_t size, esp;
	int format;
	bool force, fixed, quiet;
};

/* The enrolment kit for Secure Boot: what lies beside the UKI by its name, and where it goes on the ESP. */
static const struct key_file {
	const char *suffix, *path;
} key_files[] = {
	{".PK.auth", "loader/keys/glint/PK.auth"},
	{".KEK.auth", "loader/keys/glint/KEK.auth"},
	{".db.auth", "loader/keys/glint/db.auth"},
	{".maker.cer", "glint/maker.cer"},
};

/* All that goes on the stick. */
struct create {
	const struct create_args *args;
	char *uki, *loader, *config, *keys[ARRAY_SIZE(key_files)];
	size_t uki_len, loader_len, config_len, keys_len[ARRAY_SIZE(key_files)];
	char version[UKI_VERSION_MAX + 1];
	time_t when;
	uint64_t esp;
	struct gpt gpt;
	struct ready_guest guests[IMAGE_GUESTS_MAX];
	struct scratch contents; /* up to the last partition's end */
	uint64_t least;          /* bytes that it needs in all */
	struct progress progress;
};

static const char loader_config[] =
	"# systemd-boot: straight into the newest UKI with tries left. Hold a key at power-on for the menu.\n"
	"timeout 0\n"
	"editor no\n"
	"auto-entries no\n"
	"auto-firmware no\n"
	"# Keys for Secure Boot (loader/keys/glint) are enrolled by a person, in the menu, and never by themselves.\n"
	"secure-boot-enroll manual\n";

static const char no_config[] = "# Glint host configuration (docs/stick.md). Edit it on any computer.\n";

/* --- what it is made from --- */

/* The file beside the program, or in the folder of what belongs to it. */
static struct error *default_file(const char *name, char path[PATH_MAX])
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	self[MAX(n, (ssize_t)0)] = '\0';
	const char *folders[] = {dirname(self), "/usr/share/glint", "/usr/lib/systemd/boot/efi"};
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		int len = snprintf(path, PATH_MAX, "%s/%s", folders[i], name);
		if (len > 0 && len < PATH_MAX && access(path, R_OK) == 0)
			return NULL;
	}
	return error_hint(error_new(ENOENT, "there is no %s beside this program, nor in %s", name, folders[1]),
			  "name it with --uki or --loader");
}

static struct error *load(const char *given, const char *name, char **data, size_t *len)
{
	char path[PATH_MAX];

	if (!given)
		TRY(default_file(name, path));
	return read_file(given ? given : path, FILE_MAX, data, len);
}

/* The times of files inside: SOURCE_DATE_EPOCH, or those of the UKI, so that the same inputs give the same bytes. */
static time_t time_of(const char *uki)
{
	const char *epoch = getenv("SOURCE_DATE_EPOCH");
	struct stat st;

	if (epoch && *epoch)
		return (time_t)strtoll(epoch, NULL, 10);
	return uki && stat(uki, &st) == 0 ? st.st_mtim.tv_sec : 0;
}

/* The file that lies beside the UKI NAME.efi as NAME@suffix; *data stays NULL where there is none. */
static struct error *load_beside(const char *uki, const char *suffix, char **data, size_t *len)
{
	size_t stem = strlen(uki);
	char path[PATH_MAX];

	if (stem > 4 && strcmp(uki + stem - 4, ".efi") == 0)
		stem -= 4;
	if (snprintf(path, sizeof(path), "%.*s%s", (int)stem, uki, suffix) >= (int)sizeof(path) ||
	    access(path, F_OK) < 0)
		return NULL;
	return read_file(path, FILE_MAX, data, len);
}

static struct error *load_all(struct create *c)
{
	const struct create_args *a = c->args;
	char path[PATH_MAX];

	if (a->uki)
		snprintf(path, sizeof(path), "%s", a->uki);
	else
		TRY(default_file("glint.efi", path));
	TRY(read_file(path, FILE_MAX, &c->uki, &c->uki_len));
	TRY(uki_version(c->uki, c->uki_len, path, c->version));
	for (size_t i = 0; i < ARRAY_SIZE(key_files); i++)
		TRY(load_beside(path, key_files[i].suffix, &c->keys[i], &c->keys_len[i]));
	if (!a->loader)
		TRY(load_beside(path, ".loader.efi", &c->loader, &c->loader_len));
	if (!c->loader)
		TRY(load(a->loader, "systemd-bootx64.efi", &c->loader, &c->loader_len));
	if (c->loader_len < 2 || memcmp(c->loader, "MZ", 2) != 0)
		return error_hint(error_new(0, "%s is not a program for UEFI", a->loader), "name systemd-bootx64.efi");
	if (a->host_config)
		return host_config_read(a->host_config, &c->config, &c->config_len);
	c->config = strdup(no_config);
	c->config_len = strlen(no_config);
	return c->config ? NULL : error_new(ENOMEM, "start");
}

/* --- the contents --- */

static struct guid id_of(const struct create *c, const char *what)
{
	return guid_from(&c->gpt.disk, what, strlen(what));
}

static void add(struct create *c, const char *name, const struct guid *type, uint64_t len)
{
	struct gpt_partition *p = &c->gpt.partitions[c->gpt.count];

	*p = (struct gpt_partition){
		.type = *type, .id = id_of(c, name), .start = gpt_room(&c->gpt, UINT64_MAX, len), .len = len};
	snprintf(p->name, sizeof(p->name), "%s", name);
	c->gpt.count++;
}

static struct error *plan(struct create *c)
{
	const struct create_args *a = c->args;
	char needs[32], has[32];

	c->esp = a->esp ? align_up(a->esp, GPT_ALIGN) : 512 * MIB;
	if (c->uki_len * 2 + c->loader_len + 8 * MIB > c->esp)
		return error_hint(error_new(ENOSPC, "an ESP of %s is too small for two of this UKI, of %s each",
					    bytes_text(c->esp, has), bytes_text(c->uki_len, needs)),
				  "give --esp %lluM or more",
				  (unsigned long long)((c->uki_len * 2 + c->loader_len + 9 * MIB - 1) / MIB));
	c->gpt.disk = guid_from(NULL, c->uki, c->uki_len);
	c->gpt.disk = guid_from(&c->gpt.disk, c->config, c->config_len);
	add(c, "ESP", &gpt_esp, c->esp);
	add(c, "STATE", &gpt_state, STATE_BYTES);
	for (unsigned i = 0; i < a->guest_count; i++)
		TRY(guest_add(&c->gpt, &c->guests[i], gpt_room(&c->gpt, UINT64_MAX, c->guests[i].bytes)));
	c->least = gpt_size_for(&c->gpt, 0);
	return NULL;
}

static struct error *fill_esp(struct create *c, struct fat *fat)
{
	static const char *const folders[] = {"EFI", "EFI/BOOT", SLOTS_PATH, "loader", "glint"},
				 *const key_folders[] = {"loader/keys", "loader/keys/glint"};
	char slot[96];

	for (size_t i = 0; i < ARRAY_SIZE(folders); i++)
		TRY(fat_make_folder(fat, folders[i]));
	TRY(fat_put(fat, "EFI/BOOT/BOOTX64.EFI", c->loader, c->loader_len));
	/* +3-0: three tries left, none failed (systemd's Automatic Boot Assessment). This is slot A; slot B is an
	 * update's. */
	snprintf(slot, sizeof(slot), SLOTS_PATH "/glint_%s+3-0.efi", c->version);
	TRY(fat_put(fat, slot, c->uki, c->uki_len));
	TRY(fat_put(fat, "loader/loader.conf", loader_config, strlen(loader_config)));
	for (size_t i = 0; i < ARRAY_SIZE(key_folders) && c->keys[0]; i++)
		TRY(fat_make_folder(fat, key_folders[i]));
	for (size_t i = 0; i < ARRAY_SIZE(key_files) && c->keys[0]; i++)
		if (c->keys[i])
			TRY(fat_put(fat, key_files[i].path, c->keys[i], c->keys_len[i]));
	return fat_put(fat, HOST_CONFIG_PATH, c->config, c->config_len);
}

static struct error *make_contents(struct create *c)
{
	const struct gpt_partition *esp = &c->gpt.partitions[0], *last = &c->gpt.partitions[c->gpt.count - 1];
	struct guid id = id_of(c, "volume");
	uint32_t volume;
	struct fat *fat;

	memcpy(&volume, id.bytes, sizeof(volume));
	TRY(scratch_resize(&c->contents, last->start + last->len));
	TRY(fat_format(&fat, &c->contents.medium, esp->start, esp->len, volume, c->when));
	struct error *err = fill_esp(c, fat);
	fat_close(fat);
	TRY(err);
	for (unsigned i = 0; i < c->args->guest_count; i++) {
		const struct gpt_partition *p = guest_partition(&c->gpt, c->guests[i].guest.name);
		TRY(guest_put(&c->guests[i], &c->contents.medium, p->start, false, NULL));
	}
	return NULL;
}

/* --- writing it --- */

static struct error *too_small(const struct create *c, const char *what, uint64_t size)
{
	return error_hint(error_new(ENOSPC, "%s has %llu bytes, and %llu are needed", what, (unsigned long long)size,
				    (unsigned long long)c->least),
			  "take a larger one, or give a smaller --esp%s",
			  c->args->guest_count ? ", or fewer guests" : "");
}

static struct error *copy_contents(struct create *c, const struct opened *from, const char *path, const char *format,
				   bool over)
{
	cleanup_opened struct opened to = {};

	TRY(opened_open(&to, path, &(struct open_how){.format = format, .direct = true}));
	progress_begin(&c->progress, "write", from->info.size);
	struct error *err = copy_disk(&(struct copy){
		.from = from, .to = &to, .over = over, .progress = c->args->quiet ? NULL : &c->progress});
	progress_end(&c->progress);
	TRY(err);
	return opened_finish(&to);
}

static struct error *compare_contents(struct create *c, const struct opened *from, const char *path, const char *format)
{
	cleanup_opened struct opened to = {};

	TRY(opened_open(&to, path, &(struct open_how){.format = format, .readonly = true, .direct = true}));
	forget_cache(&to);
	progress_begin(&c->progress, "read back", from->info.size);
	struct error *err =
		copy_compare(&(struct copy){.from = from, .to = &to, .progress = c->args->quiet ? NULL : &c->progress});
	progress_end(&c->progress);
	return err;
}

static struct error *write_table(struct create *c, const char *path, const char *format)
{
	cleanup_opened struct opened to = {};
	cleanup_disk_medium struct disk_medium m = {};
	struct gpt back;

	TRY(opened_open(&to, path, &(struct open_how){.format = format}));
	TRY(disk_medium_init(&m, &to));
	TRY(gpt_write(&m.medium, &c->gpt));
	forget_cache(&to);
	TRY(gpt_read(&m.medium, &back));
	if (back.from_backup || !gpt_same(&back, &c->gpt))
		return error_new(EIO, "its partition table reads otherwise than it was written");
	return opened_finish(&to);
}

/* @path: the file or device, of @format. @over: it held something. */
static struct error *write_stick(struct create *c, const char *path, const char *format, bool over)
{
	cleanup_opened struct opened from = {};

	TRY(opened_open(&from, c->contents.path, &(struct open_how){.format = "raw", .readonly = true}));
	TRY(copy_contents(c, &from, path, format, over));
	TRY(error_hint(compare_contents(c, &from, path, format),
		       "what was written does not come back: it is failing, or "
		       "smaller than it says"));
	return write_table(c, path, format);
}

static struct error *to_device(struct create *c, const char *path, int fd, uint64_t size)
{
	if (size < c->least)
		return too_small(c, path, size);
	TRY(device_blank(fd, path, size));
	TRY(error_hint(write_stick(c, path, "raw", true), "it is no stick now: what was on it is lost"));
	device_reread(fd);
	return NULL;
}

static struct error *to_file(struct create *c, const char *path, const char *format)
{
	cleanup_new_file struct new_file file = {.fd = -1};
	struct disk_create create = {.name = path,
				     .format = format,
				     .size = MAX(align_up(c->args->size, MIB), c->least),
				     .sector = SECTOR,
				     .block = strcmp(format, "vhdx") == 0 ? 2 << 20 : 0};
	char self[40];

	TRY(new_file_begin(&file, path));
	TRY(disk_create(file.fd, &create));
	snprintf(self, sizeof(self), "/proc/self/fd/%d", file.fd);
	TRY(write_stick(c, self, format, false));
	if (fsync(file.fd) < 0)
		return error_new(errno, "make it durable");
	return new_file_commit(&file);
}

/* What can be refused is refused before anything large is made. */
static struct error *make(struct create *c)
{
	const struct create_args *a = c->args;
	struct device_how how = {.force = a->force, .fixed = a->fixed};
	bool device = is_device(a->output);
	cleanup_fd int fd = -1;
	const char *format = "raw";
	uint64_t size = 0;

	if (device && (a->size || a->format > FORMAT_RAW))
		return error_new(EINVAL, "%s is a device: it is of no other format and size", a->output);
	if (!device) {
		TRY(must_be_new(a->output));
		TRY(format_name(a->format, a->output, &format));
	}
	TRY(load_all(c));
	if (device)
		TRY(device_take(a->output, &how, &fd, &size));
	const char *folder = scratch_folder();
	for (unsigned i = 0; i < a->guest_count; i++)
		TRY(guest_prepare(&c->guests[i], &a->guests[i], folder, a->quiet));
	TRY(plan(c));
	if (!device && a->size && a->size < c->least)
		return too_small(c, "--size", a->size);
	if (device && size < c->least)
		return too_small(c, a->output, size);
	TRY(scratch_init(&c->contents, folder));
	TRY(make_contents(c));
	return error_wrap(device ? to_device(c, a->output, fd, size) : to_file(c, a->output, format), "%s", a->output);
}

static struct error *run(void *args, int *status)
{
	const struct create_args *a = args;
	struct create *c = calloc(1, sizeof(*c));
	char needs[32];

	(void)status;
	if (!c)
		return error_new(ENOMEM, "start");
	c->args = a;
	c->when = time_of(a->uki);
	struct error *err = a->output ? make(c)
				      : error_hint(error_new(EINVAL, "where the stick is to be is not said"),
						   "give -o with a file or a device");
	if (!err)
		printf("%s: Glint %s, %s, read back and the same.\n", a->output, c->version,
		       bytes_text(c->least, needs));
	for (unsigned i = 0; i < IMAGE_GUESTS_MAX; i++)
		guest_free(&c->guests[i]);
	scratch_free(&c->contents);
	free(c->uki);
	free(c->loader);
	free(c->config);
	for (size_t i = 0; i < ARRAY_SIZE(key_files); i++)
		free(c->keys[i]);
	free(c);
	return err;
}

static const struct option create_options[] = {
	{"output", OPTION_TEXT, offsetof(struct create_args, output), .value = "FILE|DEVICE", .min = 1, .aka = "o",
	 .help = "the new image, or the device that becomes the stick (also -o)"},
	{"uki", OPTION_TEXT, offsetof(struct create_args, uki), .value = "FILE", .min = 1,
	 .help = "the host: a UKI of Glint (default: glint.efi beside this program, or in /usr/share/glint)"},
	{"loader", OPTION_TEXT, offsetof(struct create_args, loader), .value = "FILE", .min = 1,
	 .help = "systemd-boot (default: the signed one beside the UKI NAME.efi, NAME.loader.efi; else "
		 "systemd-bootx64.efi beside this program, or where Debian has it)"},
	{"host-config", OPTION_TEXT, offsetof(struct create_args, host_config), .value = "FILE", .min = 1,
	 .help = "becomes glint/host.toml on the stick"},
	{"guest", OPTION_GROUP, offsetof(struct create_args, guests), .group = &guest_group,
	 .help = "a guest that the stick carries; may be given again"},
	{"size", OPTION_SIZE, offsetof(struct create_args, size), .min = 1 << 20, .max = DISK_BYTES_MAX,
	 .help = "of the image, or the disk in it (default: what is needed)"},
	{"esp", OPTION_SIZE, offsetof(struct create_args, esp), .min = 64 << 20, .max = (uint64_t)32 << 30,
	 .help = "of the ESP, in which two UKIs must fit (default: 512M)"},
	{"format", OPTION_CHOICE, offsetof(struct create_args, format), .choices = format_choices,
	 .help = "of the image (default: by the end of its name)"},
	{"force", OPTION_FLAG, offsetof(struct create_args, force), .help = "what is on the device may be lost"},
	{"not-removable", OPTION_FLAG, offsetof(struct create_args, fixed),
	 .help = "the device is meant although it is not a removable one"},
	{"quiet", OPTION_FLAG, offsetof(struct create_args, quiet), .help = "no progress on a terminal"},
	{NULL},
};

const struct command image_create_command = {
	.group = "image",
	.name = "create",
	.summary = "Makes a stick that hosts boot from, on a device or as a disk image",
	.more = "The name of an image says its format: .img, .raw, .vhd or .vhdx. Everything is read back and "
		"compared. A "
		"device is refused while something uses it, when it is not removable, and when there is data on it; "
		"one "
		"that was not finished does not boot. A guest runs on memory, and is as new when the host starts "
		"again, "
		"unless persist=stick.",
	.options = create_options,
	.bytes = sizeof(struct create_args),
	.run = run,
};
