/*
 * Fuzzing of the keeper's journal: a hostile medium is opened, read, written to and opened again.
 *
 * An input is the medium with its zeroes left out: pieces, each of a little-endian 16-bit sector, a 16-bit length in
 * bytes, and the bytes. Each input is tried as it is and resealed: with the checksums of headers and records made
 * right, which no mutation gets past by itself. What must not happen is what sanitizers see, that opening writes, that
 * a damaged journal is written to untold, and that what was then written does not come back.
 *
 *     journal --seeds=DIR    writes the seeds (tests/fuzz/corpus/journal) and ends
 */
#include "node/keeper/format.h"
#include "node/keeper/journal.h"

#include "base/cleanup.h"
#include "saved/crc32c.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MEDIUM_BYTES JOURNAL_MIN
#define INPUT_MAX    (256u << 10)

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t writer[16] = "fuzz";

struct medium {
	struct journal_io io;
	uint8_t *bytes;
	unsigned writes;
};

static int medium_read(const struct journal_io *io, void *data, size_t len, uint64_t offset)
{
	if (!range_inside(offset, len, io->size))
		abort();
	memcpy(data, ((const struct medium *)io)->bytes + offset, len);
	return 0;
}

static int medium_write(const struct journal_io *io, const void *data, size_t len, uint64_t offset)
{
	struct medium *m = (struct medium *)(uintptr_t)io;

	if (!range_inside(offset, len, io->size))
		abort();
	m->writes++;
	memcpy(m->bytes + offset, data, len);
	return 0;
}

static int medium_flush(const struct journal_io *io)
{
	return 0;
}

static struct medium medium_new(void)
{
	uint8_t *bytes = mmap(NULL, MEDIUM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (bytes == MAP_FAILED)
		abort();
	return (struct medium){{medium_read, medium_write, medium_flush, MEDIUM_BYTES, "medium"}, bytes, 0};
}

struct taken {
	uint64_t bytes;
	uint8_t last;
};

static struct error *take(void *arg, const struct journal_item *item)
{
	struct taken *t = arg;

	/* Every byte is looked at. */
	for (size_t i = 0; i < item->len; i++)
		t->last = ((const uint8_t *)item->data)[i];
	t->bytes += item->len;
	return NULL;
}

static void check(bool good)
{
	if (!good)
		abort();
}

static void use(struct medium *m)
{
	struct journal_item item = {JOURNAL_DATABASE, "written", 7};
	struct taken taken = {};
	struct journal_info info;
	struct journal *j;

	struct error *err = journal_open(&j, &m->io, writer, take, &taken);
	check(m->writes == 0);
	if (err) {
		error_free(err);
		return;
	}
	journal_info(j, &info);
	if (info.state == JOURNAL_DAMAGED) {
		err = journal_snapshot(j, &item, 1);
		check(err && m->writes == 0);
		error_free(err);
		journal_accept_loss(j);
	}
	uint64_t expected = taken.bytes + 7;
	if (journal_fits(j, 7, 1)) {
		err = journal_append(j, &item, 1, 1);
	} else {
		err = journal_snapshot(j, &item, 1);
		expected = 7;
	}
	check(!err);
	journal_close(j);
	taken = (struct taken){};
	check(!journal_open(&j, &m->io, writer, take, &taken));
	journal_info(j, &info);
	/* A medium made up may hold records of sequences to come; an honest one does not. */
	check(taken.bytes == expected && taken.last == 'n');
	journal_close(j);
}

static void reseal(uint8_t *bytes)
{
	for (unsigned i = 0; i < JOURNAL_SLOTS; i++) {
		struct journal_header *h = (struct journal_header *)(bytes + JOURNAL_SLOT(i));
		h->checksum = 0;
		h->checksum = crc32c(0, h, sizeof(*h));
	}
	for (uint64_t at = JOURNAL_AREA_0; at < MEDIUM_BYTES; at += JOURNAL_BLOCK) {
		struct journal_record *r = (struct journal_record *)(bytes + at);
		if (memcmp(r->magic, JOURNAL_RECORD_MAGIC, 8) != 0 || r->length > MEDIUM_BYTES - at - sizeof(*r))
			continue;
		r->checksum = 0;
		r->checksum = crc32c(crc32c(0, r, sizeof(*r)), r + 1, r->length);
	}
}

static bool expand(uint8_t *bytes, const uint8_t *data, size_t size)
{
	uint16_t sector, len;

	for (size_t at = 0; size - at >= 4; at += len) {
		memcpy(&sector, data + at, 2);
		memcpy(&len, data + at + 2, 2);
		at += 4;
		if (len > size - at || !range_inside(sector * 512u, len, MEDIUM_BYTES))
			return false;
		memcpy(bytes + sector * 512u, data + at, len);
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > INPUT_MAX)
		return 0;
	for (unsigned sealed = 0; sealed < 2; sealed++) {
		struct medium m = medium_new();
		if (expand(m.bytes, data, size)) {
			if (sealed)
				reseal(m.bytes);
			use(&m);
		}
		munmap(m.bytes, MEDIUM_BYTES);
	}
	return 0;
}

/* --- seeds --- */

static void write_seed(const struct medium *m, const char *folder, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	cleanup_file FILE *to = fopen(path, "w");
	check(to != NULL);
	for (uint32_t sector = 0; sector < MEDIUM_BYTES / 512; sector++) {
		const uint8_t *from = m->bytes + sector * 512;
		uint16_t len = 512, number = (uint16_t)sector;
		while (len > 0 && from[len - 1] == 0)
			len--;
		if (len == 0)
			continue;
		fwrite(&number, 2, 1, to);
		fwrite(&len, 2, 1, to);
		fwrite(from, len, 1, to);
	}
}

static int write_seeds(const char *folder)
{
	struct medium m = medium_new();
	struct journal_item items[] = {{JOURNAL_DATABASE, "OVSDB JSON", 10}, {JOURNAL_IDENTITY, "{}", 2}};
	struct taken taken;
	struct journal *j;

	write_seed(&m, folder, "empty");
	check(!journal_open(&j, &m.io, writer, take, &taken) && !journal_snapshot(j, items, 2));
	write_seed(&m, folder, "formatted");
	for (unsigned i = 0; i < 3; i++)
		check(!journal_append(j, items, 2, 1));
	write_seed(&m, folder, "appended");
	check(!journal_snapshot(j, items, 2) && !journal_append(j, items, 1, 1));
	write_seed(&m, folder, "second");
	memset(m.bytes + JOURNAL_SLOT(0), 7, 100);
	write_seed(&m, folder, "flip-cut-short");
	journal_close(j);
	munmap(m.bytes, MEDIUM_BYTES);
	return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const char option[] = "--seeds=";

	for (int i = 1; i < *argc; i++)
		if (strncmp((*argv)[i], option, strlen(option)) == 0)
			exit(write_seeds((*argv)[i] + strlen(option)));
	return 0;
}
