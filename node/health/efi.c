/*
 * The firmware's variables; see health.h. Touches efivarfs, and of it three variables.
 *
 * systemd-boot ends when the firmware refuses a slot (Secure Boot), and tries no other. The firmware then goes on to
 * its next entry, and that is the slot known to be good.
 */
#include "node/health/health.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define GLOBAL_GUID "8be4df61-93ca-11d2-aa0d-00e098032b8c" /* EFI_GLOBAL_VARIABLE */

#define ATTRIBUTES     7u /* kept, for boot services and the running system */
#define LOAD_ACTIVE    1u
#define VARIABLE_MAX   4096u
#define OUR_NAME       "Glint"
#define ENTRY_LOADER   0x20
#define ENTRY_GOOD     0x21
#define MEDIA_DEVICE   4 /* device path nodes (UEFI 2.10, 10.3.5) */
#define HARD_DRIVE     1
#define HARD_DRIVE_LEN 42u
#define FILE_PATH      4

/* Reads a variable; its bytes behind the attributes, or -1. */
static ssize_t read_variable(const char *folder, const char *name, uint8_t data[VARIABLE_MAX])
{
	uint8_t all[4 + VARIABLE_MAX];
	char path[512];

	if (snprintf(path, sizeof(path), "%s/%s-%s", folder, name, GLOBAL_GUID) >= (int)sizeof(path))
		return -1;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, all, sizeof(all));
	if (n < 4)
		return -1;
	memcpy(data, all + 4, (size_t)n - 4);
	return n - 4;
}

/* efivarfs takes a variable in one write, attributes first. */
static struct error *write_variable(const char *folder, const char *name, const uint8_t *data, size_t len)
{
	uint8_t all[4 + VARIABLE_MAX] = {ATTRIBUTES}, now[VARIABLE_MAX];
	char path[512];

	if (read_variable(folder, name, now) == (ssize_t)len && memcmp(now, data, len) == 0)
		return NULL;
	if (len > VARIABLE_MAX ||
	    snprintf(path, sizeof(path), "%s/%s-%s", folder, name, GLOBAL_GUID) >= (int)sizeof(path))
		return error_new(ENAMETOOLONG, "write the firmware's variable %s", name);
	memcpy(all + 4, data, len);
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, all, 4 + len) != (ssize_t)(4 + len))
		return error_new(errno, "write the firmware's variable %s", name);
	return NULL;
}

/* --- load options --- */

struct out {
	uint8_t *at;
	size_t left;
};

static void put(struct out *to, const void *data, size_t len)
{
	if (to->left >= len) {
		memcpy(to->at, data, len);
		to->at += len;
		to->left -= len;
	} else {
		to->left = 0;
	}
}

static void put_number(struct out *to, uint64_t value, size_t len)
{
	value = htole64(value);
	put(to, &value, len);
}

/* UCS-2, with its end. */
static void put_text(struct out *to, const char *text)
{
	for (size_t i = 0; i <= strlen(text); i++)
		put_number(to, (uint8_t)text[i], 2);
}

/* The first three numbers of a GUID are little-endian. */
static bool put_guid(struct out *to, const char *text)
{
	static const uint8_t places[] = {6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34};
	unsigned value;

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		if (strlen(text) != 36 || sscanf(text + places[i], "%2x", &value) != 1)
			return false;
		put_number(to, value, 1);
	}
	return true;
}

size_t efi_load_option(uint8_t option[EFI_ENTRY_MAX], const char *description, const struct efi_file *file)
{
	struct out to = {option, EFI_ENTRY_MAX};
	size_t file_len = 4 + 2 * (strlen(file->path) + 1);

	if (strlen(file->path) > 255 || file->path[0] != '\\' || strlen(description) > 64)
		return 0;
	put_number(&to, LOAD_ACTIVE, 4);
	put_number(&to, HARD_DRIVE_LEN + file_len + 4, 2);
	put_text(&to, description);
	/* Hard drive: the short form, which firmware finds on whatever port the stick is. */
	put_number(&to, MEDIA_DEVICE, 1);
	put_number(&to, HARD_DRIVE, 1);
	put_number(&to, HARD_DRIVE_LEN, 2);
	put_number(&to, file->partition, 4);
	put_number(&to, file->start, 8);
	put_number(&to, file->count, 8);
	if (!put_guid(&to, file->uuid))
		return 0;
	put_number(&to, 2, 1); /* GPT */
	put_number(&to, 2, 1); /* known by a GUID */
	put_number(&to, MEDIA_DEVICE, 1);
	put_number(&to, FILE_PATH, 1);
	put_number(&to, file_len, 2);
	put_text(&to, file->path);
	put_number(&to, 0x0004ff7f, 4); /* end of the whole path */
	return (size_t)(to.at - option);
}

unsigned efi_boot_order(uint16_t order[EFI_ORDER_MAX], unsigned count, const uint16_t *first, unsigned first_count)
{
	uint16_t made[EFI_ORDER_MAX];
	unsigned n = 0;

	for (; n < first_count; n++)
		made[n] = first[n];
	for (unsigned i = 0; i < count && n < EFI_ORDER_MAX; i++) {
		bool ours = false;
		for (unsigned j = 0; j < first_count; j++)
			ours |= order[i] == first[j];
		if (!ours)
			made[n++] = order[i];
	}
	memcpy(order, made, n * sizeof(*order));
	return n;
}

/* Whether the entry is ours, or nobody's: by its description. */
static bool is_ours(const char *folder, const char *name)
{
	uint8_t data[VARIABLE_MAX], ours[2 * sizeof(OUR_NAME)];
	struct out to = {ours, sizeof(ours)};
	ssize_t n = read_variable(folder, name, data);

	put_text(&to, OUR_NAME);
	size_t len = sizeof(ours) - 2;
	return n < 0 || ((size_t)n >= 6 + len && memcmp(data + 6, ours, len) == 0);
}

static struct error *keep_entry(const char *folder, uint16_t number, const char *description,
				const struct efi_file *file)
{
	uint8_t option[EFI_ENTRY_MAX];
	char name[16];

	snprintf(name, sizeof(name), "Boot%04X", number);
	if (!is_ours(folder, name))
		return error_hint(error_new(EEXIST, "the firmware's entry %s is not Glint's", name),
				  "remove it in the firmware's menu; until then the firmware does not go back to the "
				  "old slot by itself when it refuses a new one");
	size_t len = efi_load_option(option, description, file);
	return len ? write_variable(folder, name, option, len)
		   : error_new(EINVAL, "make the firmware's entry for %s", file->path);
}

struct error *efi_keep_entries(const char *folder, const struct efi_file *loader, const struct efi_file *good)
{
	static const uint16_t first[] = {ENTRY_LOADER, ENTRY_GOOD};
	uint8_t data[VARIABLE_MAX];
	uint16_t order[EFI_ORDER_MAX];

	TRY(keep_entry(folder, ENTRY_LOADER, OUR_NAME, loader));
	TRY(keep_entry(folder, ENTRY_GOOD, OUR_NAME " (known to be good)", good));
	ssize_t n = read_variable(folder, "BootOrder", data);
	unsigned count = (unsigned)MIN(MAX(n, (ssize_t)0) / 2, (ssize_t)EFI_ORDER_MAX);
	for (unsigned i = 0; i < count; i++)
		order[i] = (uint16_t)(data[2 * i] | data[2 * i + 1] << 8);
	count = efi_boot_order(order, count, first, ARRAY_SIZE(first));
	for (unsigned i = 0; i < count; i++) {
		data[2 * i] = (uint8_t)order[i];
		data[2 * i + 1] = (uint8_t)(order[i] >> 8);
	}
	return write_variable(folder, "BootOrder", data, 2 * (size_t)count);
}
