/*
 * Guests that a stick carries: their disks are checked, and become VHDX images without parents. Touches the disks, and
 * files without a name.
 */
#include "cli/copy.h"
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ON_MEMORY, ON_STICK };

static struct error *set_name(const char *what, const char *text, void *object)
{
	struct guest_args *g = object;
	char name[GUEST_NAME_MAX + 1];
	const char *equals = strchr(text, '=');
	size_t len = equals ? (size_t)(equals - text) : 0;

	if (!equals || !equals[1])
		return error_hint(error_new(EINVAL, "%s: '%s' does not name a guest and its disk", what, text),
				  "write NAME=DISK, then for instance ,memory=2G,autostart");
	snprintf(name, sizeof(name), "%.*s", (int)MIN(len, (size_t)GUEST_NAME_MAX), text);
	if (len > GUEST_NAME_MAX || !guest_name_good(name))
		return error_hint(
			error_new(EINVAL, "%s: '%.*s' cannot be a guest's name", what, (int)MIN(len, (size_t)64), text),
			"letters, digits, '-' and '_', at most %u, the first one a letter or a digit", GUEST_NAME_MAX);
	g->name = text;
	g->disk = equals + 1;
	return NULL;
}

static void begin(const void *object, void *element, unsigned index)
{
	*(struct guest_args *)element = (struct guest_args){.memory = GIB, .cpus = 1};
}

static struct error *check(const char *what, const void *object, const void *element, unsigned index)
{
	const struct guest_args *g = element, *first = g - index;

	if (!g->name)
		return error_hint(error_new(EINVAL, "%s names no guest", what), "write NAME=DISK first");
	if (!is_aligned(g->memory, MIB))
		return error_new(EINVAL, "%s: its memory is not whole MiB", what);
	for (unsigned i = 0; i < index; i++) {
		if (strcspn(first[i].name, "=") == strcspn(g->name, "=") &&
		    strncasecmp(first[i].name, g->name, strcspn(g->name, "=")) == 0)
			return error_new(EEXIST, "%s: two guests of one name", what);
		if (first[i].console && g->console)
			return error_new(EEXIST, "%s: the host has one console, for one guest", what);
	}
	return NULL;
}

static const struct option_choice persist_choices[] = {{"memory", ON_MEMORY}, {"stick", ON_STICK}, {NULL, 0}};

static const struct option guest_fields[] = {
	{"guest", OPTION_OWN, .own = set_name, .value = "NAME=DISK",
	 .help = "its name, and any image, with its parents"},
	{"memory", OPTION_SIZE, offsetof(struct guest_args, memory), .min = 16 << 20, .max = (uint64_t)4 << 40,
	 .help = "(default: 1G)"},
	{"cpus", OPTION_NUMBER, offsetof(struct guest_args, cpus), .min = 1, .max = GUEST_CPUS_MAX,
	 .help = "(default: 1)"},
	{"autostart", OPTION_FLAG, offsetof(struct guest_args, autostart), .help = "the host starts it when it is up"},
	{"console", OPTION_FLAG, offsetof(struct guest_args, console),
	 .help = "its serial port is at the host's screen and serial port"},
	{"persist", OPTION_CHOICE, offsetof(struct guest_args, persist), .choices = persist_choices,
	 .help = "where what it writes goes: to memory, and is gone with the host, or to the stick (default: memory)"},
	{NULL},
};

const struct option_group guest_group = {
	.fields = guest_fields,
	.bytes = sizeof(struct guest_args),
	.most = IMAGE_GUESTS_MAX,
	.begin = begin,
	.check = check,
};

/* --- the image --- */

static struct error *check_disk(const char *name, const char *path)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return error_new(errno, "guest %s: open %s", name, path);
	return error_hint(error_wrap(check_whole(fd, path, NULL), "guest %s", name),
			  "glint disk check %s tells more, and may mend it", path);
}

static struct error *convert(struct ready_guest *g, const struct guest_args *args, bool quiet)
{
	cleanup_opened struct opened from = {}, to = {};
	struct progress progress;
	char what[GUEST_NAME_MAX + 16];

	TRY(opened_open(&from, args->disk, &(struct open_how){.readonly = true}));
	struct disk_create create = {
		.name = g->guest.name,
		.format = "vhdx",
		/* What writes to the stick must not need room that the stick has not. */
		.subformat = args->persist == ON_STICK ? "fixed" : "dynamic",
		.block = args->persist == ON_STICK ? 0 : 2 << 20,
		.size = from.info.size,
		.sector = from.info.sector,
	};
	TRY(disk_create(g->image.fd, &create));
	TRY(opened_open(&to, g->image.path, &(struct open_how){.format = "vhdx"}));
	snprintf(what, sizeof(what), "guest %s", g->guest.name);
	progress_begin(&progress, what, from.info.size);
	struct error *err = copy_disk(&(struct copy){.from = &from, .to = &to, .progress = quiet ? NULL : &progress});
	progress_end(&progress);
	TRY(err);
	return opened_finish(&to);
}

struct error *guest_prepare(struct ready_guest *g, const struct guest_args *args, const char *folder, bool quiet)
{
	*g = (struct ready_guest){.guest = {.memory = args->memory,
					    .cpus = args->cpus,
					    .autostart = args->autostart,
					    .console = args->console,
					    .persist = args->persist == ON_STICK}};
	snprintf(g->guest.name, sizeof(g->guest.name), "%.*s", (int)strcspn(args->name, "="), args->name);
	TRY(check_disk(g->guest.name, args->disk));
	TRY(scratch_init(&g->image, folder));
	TRY(error_wrap(convert(g, args, quiet), "guest %s", g->guest.name));
	off_t end = lseek(g->image.fd, 0, SEEK_END);
	if (end < 0)
		return error_new(errno, "guest %s: look at its image", g->guest.name);
	g->guest.image = align_up((uint64_t)end, SECTOR);
	g->bytes = align_up(g->guest.image + GUEST_TAIL, GPT_ALIGN);
	return NULL;
}

void guest_free(struct ready_guest *g)
{
	scratch_free(&g->image);
}

struct error *guest_put(const struct ready_guest *g, const struct blocks *m, uint64_t start, bool zeroes,
			struct progress *progress)
{
	uint8_t tail[GUEST_TAIL];

	TRY(copy_file_to(g->image.fd, g->guest.name, m, start, zeroes, progress));
	guest_write(&g->guest, tail);
	TRY(blocks_write(m, tail, GUEST_TAIL, start + g->bytes - GUEST_TAIL));
	return blocks_flush(m);
}

/* --- its partition --- */

/* Two sums of 64 bits (FNV-1a), made a version 4 GUID. Not a secret, and not a seal: a name that follows from what it
 * names. */
struct guid guid_from(const struct guid *seed, const void *data, size_t len)
{
	uint64_t sums[2] = {0xcbf29ce484222325, 0x9ae16a3b2f90404f};
	const uint8_t *p = data;
	struct guid id;

	for (unsigned k = 0; k < 2; k++) {
		for (unsigned i = 0; seed && i < sizeof(seed->bytes); i++)
			sums[k] = (sums[k] ^ seed->bytes[i]) * 0x100000001b3;
		for (size_t i = 0; i < len; i++)
			sums[k] = (sums[k] ^ p[i]) * 0x100000001b3;
	}
	memcpy(id.bytes, sums, sizeof(id.bytes));
	id.bytes[7] = (uint8_t)((id.bytes[7] & 0x0f) | 0x40);
	id.bytes[8] = (uint8_t)((id.bytes[8] & 0x3f) | 0x80);
	return id;
}

struct gpt_partition *guest_partition(struct gpt *gpt, const char *name)
{
	for (unsigned i = 0; i < gpt->count; i++)
		if (guid_equal(&gpt->partitions[i].type, &gpt_guest) && strcasecmp(gpt->partitions[i].name, name) == 0)
			return &gpt->partitions[i];
	return NULL;
}

struct error *guest_add(struct gpt *gpt, const struct ready_guest *g, uint64_t start)
{
	if (gpt->count == GPT_PARTITIONS_MAX)
		return error_new(ENOSPC, "guest %s: there are %u partitions already", g->guest.name, gpt->count);
	struct gpt_partition *p = &gpt->partitions[gpt->count++];
	*p = (struct gpt_partition){.type = gpt_guest, .start = start, .len = g->bytes};
	snprintf(p->name, sizeof(p->name), "%s", g->guest.name);
	p->id = guid_from(&gpt->disk, g->guest.name, strlen(g->guest.name));
	return NULL;
}
