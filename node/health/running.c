/*
 * The slot that runs; see health.h. Touches the ESP that the host was started from, and, of it, one name.
 */
#include "node/health/health.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "stick/version.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#define LOADER_PATH "\\EFI\\BOOT\\BOOTX64.EFI"
#define SLOTS_EFI   "\\EFI\\Linux\\"

static void fat_done(struct fat **fat)
{
	if (*fat)
		fat_close(*fat);
}

static struct error *read_number_of(const char *sys, dev_t device, const char *name, uint64_t *value)
{
	char path[256], text[32];

	snprintf(path, sizeof(path), "%s/%u:%u/%s", sys, major(device), minor(device), name);
	/* A file of sysfs says nothing true about its size. */
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return error_new(errno, "read %s", path);
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return parse_number(text, path, 0, UINT64_MAX, value);
}

/* Where the partition lies, for the firmware. */
static struct error *locate(const char *sys, struct running *r)
{
	uint64_t number;
	struct stat st;

	if (stat(r->device, &st) < 0)
		return error_new(errno, "find %s", r->device);
	TRY(read_number_of(sys, st.st_rdev, "partition", &number));
	TRY(read_number_of(sys, st.st_rdev, "start", &r->esp.start));
	TRY(read_number_of(sys, st.st_rdev, "size", &r->esp.count));
	r->esp.partition = (unsigned)number;
	return NULL;
}

static struct error *read_slots(struct running *r, const char *image)
{
	cleanup_esp struct esp esp = {.fd = -1};
	__attribute__((cleanup(fat_done))) struct fat *fat = NULL;
	struct slots slots;

	TRY(esp_open(&esp, r->device, false));
	TRY(fat_open(&fat, &esp.medium, 0, esp.medium.size, time(NULL)));
	TRY(slots_list(fat, &slots));
	const struct slot *slot = slots_named(&slots, image);
	if (!slot)
		return error_new(ESTALE, "the slot that runs (%s) is not on the stick any more", image);
	r->slot = *slot;
	r->another = false;
	for (unsigned i = 0; i < slots.count; i++) {
		const struct slot *other = &slots.list[i];
		bool spent = other->trial && other->left == 0;
		r->another |= other != slot && !spent;
		if (spent && version_compare(other->version, *r->failed ? r->failed : slot->version) > 0)
			memcpy(r->failed, other->version, sizeof(r->failed));
	}
	return NULL;
}

struct error *running_find(const struct places *places, struct running *r)
{
	char image[300];

	*r = (struct running){};
	if (!loader_partition(places->partition, r->esp.uuid))
		return error_new(ENOENT, "this host was not started from a stick (%s)", places->partition);
	if (!loader_text(places->image, image, sizeof(image)))
		return error_new(EINVAL, "which slot runs is not said (%s)", places->image);
	const char *name = strrchr(image, '\\');
	if (slot_parse(name ? name + 1 : image, &r->slot))
		r->another = loader_entries(places->entries, SLOT_PREFIX) > 1;
	TRY(esp_find(places->esps, r->esp.uuid, 0, r->device));
	TRY(locate(places->sys, r));
	return read_slots(r, image);
}

struct error *running_bless(struct running *r)
{
	cleanup_esp struct esp esp = {.fd = -1};
	__attribute__((cleanup(fat_done))) struct fat *fat = NULL;

	if (!r->slot.trial)
		return NULL;
	TRY(esp_open(&esp, r->device, true));
	TRY(fat_open(&fat, &esp.medium, 0, esp.medium.size, time(NULL)));
	TRY(slots_bless(fat, &r->slot));
	r->slot.trial = false;
	snprintf(r->slot.file, sizeof(r->slot.file), "glint_%s.efi", r->slot.version);
	return NULL;
}

struct error *running_keep_entries(const struct places *places, const struct running *r)
{
	struct efi_file loader = r->esp, good = r->esp;
	char path[300];

	snprintf(path, sizeof(path), SLOTS_EFI "%s", r->slot.file);
	loader.path = LOADER_PATH;
	good.path = path;
	return efi_keep_entries(places->efivars, &loader, &good);
}
