/*
 * Fuzzing of what a stick is made of: a table of partitions, an ESP, a guest's definition, a UKI, all hostile.
 *
 * An input changes a good stick: pieces, each of a little-endian 32-bit offset, a 16-bit length, and the bytes. Each is
 * tried as it is and with the table's and the definition's checksums made right. It is read as inspect reads it and
 * written as edit writes it; what is read of the stick must lie on it. Afterwards the stick is as it was.
 */
#include "stick/fat.h"
#include "stick/gpt.h"
#include "stick/guest.h"
#include "stick/slots.h"
#include "stick/uki.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "saved/crc32c.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>

#define ESP   (34 * MIB)
#define BYTES (40 * MIB)
#define GUEST (BYTES - 2 * MIB)

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a write covered, to be taken back; the newest first. */
struct undo {
	struct undo *next;
	uint64_t offset;
	size_t len;
	uint8_t before[];
};

static uint8_t *bytes;
static struct undo *undos;

static int stick_read(const struct blocks *b, void *data, size_t len, uint64_t offset)
{
	if (!range_inside(offset, len, BYTES))
		abort();
	memcpy(data, bytes + offset, len);
	return 0;
}

static int stick_write(const struct blocks *b, const void *data, size_t len, uint64_t offset)
{
	if (!range_inside(offset, len, BYTES))
		abort();
	struct undo *u = malloc(sizeof(*u) + len);
	if (!u)
		abort();
	*u = (struct undo){undos, offset, len};
	memcpy(u->before, bytes + offset, len);
	undos = u;
	memcpy(bytes + offset, data, len);
	return 0;
}

static int stick_flush(const struct blocks *b)
{
	return 0;
}

static const struct blocks stick = {stick_read, stick_write, stick_flush, BYTES, "stick"};

static void take_back(void)
{
	while (undos) {
		struct undo *u = undos;
		memcpy(bytes + u->offset, u->before, u->len);
		undos = u->next;
		free(u);
	}
}

static void must(struct error *err)
{
	if (!err)
		return;
	fprintf(stderr, "%s\n", error_text(err));
	abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct gpt gpt = {.count = 3,
			  .partitions = {{.type = gpt_esp, .start = MIB, .len = ESP, .name = "ESP"},
					 {.type = gpt_state, .start = MIB + ESP, .len = MIB, .name = "STATE"},
					 {.type = gpt_guest, .start = GUEST, .len = MIB, .name = "web"}}};
	struct guest guest = {.name = "web", .memory = GIB, .cpus = 1, .image = 4096};
	struct fat *fat;

	bytes = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (bytes == MAP_FAILED)
		abort();
	must(gpt_write(&stick, &gpt));
	must(fat_format(&fat, &stick, MIB, ESP, 1, 0));
	must(fat_make_folder(fat, "EFI"));
	must(fat_make_folder(fat, "EFI/Linux"));
	must(fat_make_folder(fat, "glint"));
	must(fat_put(fat, "EFI/Linux/glint_1.0+3-0.efi", "kernel", 6));
	must(fat_put(fat, "glint/host.toml", "# nothing", 9));
	fat_close(fat);
	guest_write(&guest, bytes + GUEST + MIB - GUEST_TAIL);
	while (undos) {
		struct undo *u = undos;
		undos = u->next;
		free(u);
	}
	return 0;
}

/* Makes right what no mutation gets past by itself. */
static void seal(void)
{
	uint8_t header[SECTOR], tail[GUEST_TAIL];
	uint64_t at, end = GUEST + MIB - GUEST_TAIL;
	uint32_t sum;

	memcpy(header, bytes + SECTOR, SECTOR);
	memcpy(&at, header + 72, sizeof(at));
	if (at < BYTES / SECTOR - 32) {
		sum = (uint32_t)crc32(0, bytes + at * SECTOR, 32 * SECTOR);
		memcpy(header + 88, &sum, sizeof(sum));
	}
	memset(header + 16, 0, 4);
	sum = (uint32_t)crc32(0, header, 92);
	memcpy(header + 16, &sum, sizeof(sum));
	stick_write(&stick, header, SECTOR, SECTOR);
	memcpy(tail, bytes + end, GUEST_TAIL);
	sum = crc32c(0, tail + 20, GUEST_TAIL - 20);
	memcpy(tail + 16, &sum, sizeof(sum));
	stick_write(&stick, tail, GUEST_TAIL, end);
}

static struct error *each(void *arg, const struct fat_entry *e)
{
	/* Every name ends. */
	if (strlen(e->name) > FAT_NAME_MAX)
		abort();
	return NULL;
}

static void look(void)
{
	struct gpt gpt;
	struct fat *fat = NULL;
	struct guest guest;
	char *text;
	size_t len;

	struct error *err = gpt_read(&stick, &gpt);
	error_free(err);
	if (err)
		return;
	for (unsigned i = 0; i < gpt.count; i++) {
		const struct gpt_partition *p = &gpt.partitions[i];
		if (!range_inside(p->start, p->len, BYTES))
			abort();
		if (guid_equal(&p->type, &gpt_guest) && p->len >= GUEST_TAIL) {
			err = guest_read(&guest, bytes + p->start + p->len - GUEST_TAIL, p->len, "guest");
			if (!err && (guest.image > p->len || !guest_name_good(guest.name)))
				abort();
			error_free(err);
		}
	}
	const struct gpt_partition *esp = gpt_find(&gpt, &gpt_esp);
	err = esp ? fat_open(&fat, &stick, esp->start, esp->len, 0) : NULL;
	error_free(err);
	if (!esp || err)
		return;
	error_free(fat_list(fat, "EFI/Linux", each, NULL));
	err = fat_read(fat, "glint/host.toml", 65536, &text, &len);
	if (!err)
		free(text);
	error_free(err);
	error_free(fat_make_folder(fat, "glint"));
	err = fat_put(fat, "glint/host.toml", "changed", 7);
	if (!err) {
		/* What was put there is there: unless the same clusters are the folder's own. */
		err = fat_read(fat, "glint/host.toml", 65536, &text, &len);
		if (!err)
			free(text);
	}
	error_free(err);
	struct slots slots;
	err = slots_list(fat, &slots);
	for (unsigned i = 0; !err && i < slots.count; i++) {
		error_free(slots_bless(fat, &slots.list[i]));
		error_free(slots_remove(fat, &slots.list[i]));
	}
	error_free(err);
	fat_close(fat);
	error_free(gpt_write(&stick, &gpt));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char version[UKI_VERSION_MAX + 1];

	error_free(uki_version(data, size, "it", version));
	for (unsigned sealed = 0; sealed < 2; sealed++) {
		for (size_t at = 0; at + 6 <= size;) {
			uint32_t offset;
			uint16_t len;
			memcpy(&offset, data + at, sizeof(offset));
			memcpy(&len, data + at + 4, sizeof(len));
			at += 6;
			size_t n = MIN((size_t)len, size - at);
			if (range_inside(offset, n, BYTES))
				stick_write(&stick, data + at, n, offset);
			at += n;
		}
		if (sealed)
			seal();
		look();
		take_back();
	}
	return 0;
}
