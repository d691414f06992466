/*
 * Fuzzing of saved state: a hostile stream is loaded into a small machine with a field of every kind.
 *
 * Each input is loaded twice: as it is, and resealed, that is with its checksums (and the count in the end mark) made
 * right, since no mutation gets past them by itself. What loads must be sound: saved, loaded and saved again it gives
 * the same bytes.
 *
 *     saved_fuzz --seeds=DIR    writes the seeds (tests/fuzz/corpus/saved) and ends
 *
 * Run with -malloc_limit_mb=8: a unit is the most that a stream may make the loader allocate.
 */
#include "saved/crc32c.h"
#include "saved/format.h"
#include "saved/saved.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MACHINE   "fuzz-1"
#define RAM_BYTES (3 * 4096 + 40)
#define INPUT_MAX (64u << 10)

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct element {
	uint16_t a;
	uint8_t tags[3];
	size_t tag_count;
};

struct machine {
	bool flag;
	uint8_t u8;
	uint16_t u16;
	uint32_t u32;
	uint64_t u64;
	uint8_t bytes[5];
	uint8_t blob[16];
	size_t blob_len;
	char text[12];
	struct element array[2];
	struct element list[4];
	size_t list_count;
	bool has_extra;
	uint64_t extra;
	uint32_t required;
	uint8_t ram[RAM_BYTES];
};

static void tag_state(void *self, struct saved *s)
{
	saved_u8(s, "tag", self);
}

static void element_state(void *self, struct saved *s)
{
	struct element *e = self;

	saved_u16(s, "a", &e->a);
	saved_list(s, "tags", e->tags, &e->tag_count, ARRAY_SIZE(e->tags), sizeof(e->tags[0]), tag_state);
}

static void extra_state(void *self, struct saved *s)
{
	struct machine *m = self;

	saved_u64(s, "extra", &m->extra);
	saved_list(s, "list", m->list, &m->list_count, ARRAY_SIZE(m->list), sizeof(m->list[0]), element_state);
}

static void device_state(void *self, struct saved *s)
{
	struct machine *m = self;

	saved_bool(s, "flag", &m->flag);
	saved_u8(s, "u8", &m->u8);
	saved_u16(s, "u16", &m->u16);
	saved_u32(s, "u32", &m->u32);
	if (saved_version(s) >= 2)
		saved_u64(s, "u64", &m->u64);
	saved_bytes(s, "bytes", m->bytes, sizeof(m->bytes));
	saved_blob(s, "blob", m->blob, &m->blob_len, sizeof(m->blob));
	saved_string(s, "text", m->text, sizeof(m->text));
	saved_array(s, "array", m->array, ARRAY_SIZE(m->array), sizeof(m->array[0]), element_state);
	if (saved_subsection(s, "extra", m->has_extra, extra_state, m) && saved_loading(s))
		m->has_extra = true;
}

static void tail_state(void *self, struct saved *s)
{
	struct machine *m = self;

	saved_require(s);
	saved_u32(s, "required", &m->required);
	if (saved_loading(s) && m->required > 1000000)
		saved_fail(s, "%u is too much", m->required);
}

/* The records of the machine, for either direction. */
static struct error *records(struct saved *s, struct machine *m)
{
	TRY(saved_unit(s, "device", 2, device_state, m));
	TRY(saved_bulk(s, "ram", m->ram, sizeof(m->ram)));
	TRY(saved_unit(s, "tail", 1, tail_state, m));
	return saved_finish(s);
}

static int stream_fd = -1;
static struct machine machine;

/* Loads @bytes into a new machine: true when that succeeds. */
static bool load(const uint8_t *bytes, size_t size)
{
	cleanup_error struct error *err = NULL;
	cleanup_saved struct saved *s = NULL;

	if (ftruncate(stream_fd, 0) < 0 || pwrite(stream_fd, bytes, size, 0) != (ssize_t)size)
		abort();
	lseek(stream_fd, 0, SEEK_SET);
	memset(&machine, 0, sizeof(machine));
	err = saved_open(stream_fd, MACHINE, &s);
	if (!err)
		err = records(s, &machine);
	return !err;
}

static size_t save(uint8_t bytes[INPUT_MAX])
{
	cleanup_saved struct saved *s = NULL;
	struct error *err;

	if (ftruncate(stream_fd, 0) < 0)
		abort();
	lseek(stream_fd, 0, SEEK_SET);
	err = saved_create(stream_fd, MACHINE, &s);
	if (!err)
		err = records(s, &machine);
	if (err) {
		log_error(err);
		abort();
	}
	ssize_t n = pread(stream_fd, bytes, INPUT_MAX, 0);
	if (n <= 0)
		abort();
	return (size_t)n;
}

struct seal {
	uint8_t *bytes;
	size_t size, at;
	uint32_t sum;
};

/* Counts the next @len bytes and makes the check field behind them right: false where there are not so many. */
static bool seal_next(struct seal *s, uint64_t len)
{
	size_t rest = s->size - s->at;

	if (rest < SAVED_CHECK_BYTES || len > rest - SAVED_CHECK_BYTES)
		return false;
	s->sum = crc32c(s->sum, s->bytes + s->at, (size_t)len);
	s->at += (size_t)len;
	put_le32(s->bytes + s->at, s->sum);
	s->at += SAVED_CHECK_BYTES;
	return true;
}

static bool seal_runs(struct seal *s)
{
	uint64_t data = 0;

	for (;;) {
		const uint8_t *run = s->bytes + s->at + data;
		if (!range_inside(s->at, data, s->size) || s->size - s->at - data < SAVED_RUN_BYTES)
			return false;
		uint64_t next = get_le64(run + SAVED_RUN_LENGTH);
		/* A check field is counted neither in this piece nor in the next one. */
		if (!seal_next(s, data + SAVED_RUN_CHECK))
			return false;
		if (next == 0)
			return true;
		if (next > s->size)
			return false;
		data = next;
	}
}

static void reseal(uint8_t *bytes, size_t size)
{
	struct seal s = {.bytes = bytes, .size = size};

	for (bool go_on = true; go_on;) {
		uint8_t *head = bytes + s.at;
		if (size - s.at < SAVED_HEAD_BYTES)
			return;
		if (memcmp(head, SAVED_TAG_END, SAVED_TAG_BYTES) == 0)
			put_le64(head + SAVED_HEAD_LENGTH, s.at);
		go_on = seal_next(&s, SAVED_HEAD_CHECK);
		if (go_on && memcmp(head, SAVED_TAG_UNIT, SAVED_TAG_BYTES) == 0)
			go_on = seal_next(&s, get_le64(head + SAVED_HEAD_LENGTH));
		else if (go_on && memcmp(head, SAVED_TAG_BULK, SAVED_TAG_BYTES) == 0)
			go_on = seal_runs(&s);
	}
}

static void check_sound(void)
{
	static uint8_t first[INPUT_MAX], second[INPUT_MAX];
	size_t len = save(first);

	if (!load(first, len) || save(second) != len || memcmp(first, second, len) != 0) {
		log_err("what was loaded does not survive being saved and loaded again");
		abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t bytes[INPUT_MAX];

	if (size > sizeof(bytes))
		return -1;
	if (load(data, size))
		check_sound();
	memcpy(bytes, data, size);
	reseal(bytes, size);
	if (load(bytes, size))
		check_sound();
	return 0;
}

static void write_seed(const char *dir, const char *name)
{
	uint8_t bytes[INPUT_MAX];
	char path[4096];
	size_t len = save(bytes);

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	struct error *err = fd < 0 ? error_new(errno, "open %s", path) : write_all(fd, bytes, len, path);
	if (err) {
		log_error(err);
		exit(1);
	}
}

static void write_seeds(const char *dir)
{
	write_seed(dir, "empty");
	machine = (struct machine){
		.flag = true,
		.u8 = 1,
		.u16 = 2,
		.u32 = 3,
		.u64 = 4,
		.bytes = {1, 2, 3, 4, 5},
		.blob = {6, 7},
		.blob_len = 2,
		.text = "text",
		.array = {{.a = 1, .tags = {1}, .tag_count = 1}, {.a = 2, .tags = {2, 3}, .tag_count = 2}},
		.list = {{.a = 3}, {.a = 4, .tags = {5, 6, 7}, .tag_count = 3}},
		.list_count = 2,
		.has_extra = true,
		.extra = 5,
		.required = 6,
	};
	memset(machine.ram + RAM_BYTES - 8, 9, 8);
	write_seed(dir, "full");
	machine.ram[4096] = 1;
	write_seed(dir, "two-runs");
	exit(0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	stream_fd = memfd_create("stream", MFD_CLOEXEC);
	if (stream_fd < 0)
		abort();
	for (int i = 1; i < *argc; i++) {
		if (strncmp((*argv)[i], "--seeds=", 8) == 0)
			write_seeds((*argv)[i] + 8);
	}
	return 0;
}
