/*
 * Saved state as an attacker, a bad cable and a full pipe see it: every cut and every flipped bit of a stream, streams
 * made to lie with their checksums right, bulk memory through pipes, and the checksum itself.
 */
#include "saved/crc32c.h"
#include "saved/format.h"
#include "saved/internal.h"
#include "saved/test_stream.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

/* --- a small machine --- */

#define RAM_BYTES (2 * 4096 + 100)

struct machine {
	uint32_t number;
	bool flag;
	char text[16];
	uint8_t list[4];
	size_t list_count;
	uint8_t ram[RAM_BYTES];
};

static void element_state(void *self, struct saved *s)
{
	saved_u8(s, "value", self);
}

static void sub_state(void *self, struct saved *s)
{
	struct machine *m = self;

	saved_list(s, "list", m->list, &m->list_count, ARRAY_SIZE(m->list), 1, element_state);
}

static void machine_state(void *self, struct saved *s)
{
	struct machine *m = self;

	saved_u32(s, "number", &m->number);
	saved_bool(s, "flag", &m->flag);
	saved_string(s, "text", m->text, sizeof(m->text));
	saved_subsection(s, "sub", true, sub_state, m);
}

static struct error *save_machine(int fd, struct machine *m)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, MACHINE, &s));
	TRY(saved_unit(s, "unit", 1, machine_state, m));
	TRY(saved_bulk(s, "ram", m->ram, sizeof(m->ram)));
	return saved_finish(s);
}

static struct error *load_machine(int fd, struct machine *m)
{
	cleanup_saved struct saved *s = NULL;

	memset(m, 0, sizeof(*m));
	TRY(saved_open(fd, MACHINE, &s));
	TRY(saved_unit(s, "unit", 1, machine_state, m));
	TRY(saved_bulk(s, "ram", m->ram, sizeof(m->ram)));
	return saved_finish(s);
}

/* Only the end of its memory is not zero, so that the stream is small. */
static struct machine small_machine(void)
{
	struct machine m = {.number = 12345, .flag = true, .text = "text", .list = {1, 2, 3}, .list_count = 3};

	memset(m.ram + RAM_BYTES - 60, 0x5a, 60);
	return m;
}

static uint8_t *small_stream(size_t *len)
{
	struct machine m = small_machine();
	cleanup_fd int fd = memory_stream("", 0);

	assert_ok(save_machine(fd, &m));
	return stream_bytes(fd, len);
}

static void whole_stream_loads(void **state)
{
	size_t len;
	cleanup_free uint8_t *bytes = small_stream(&len);
	cleanup_fd int fd = memory_stream(bytes, len);
	struct machine want = small_machine(), m;

	assert_ok(load_machine(fd, &m));
	assert_int_equal(m.number, want.number);
	assert_int_equal(m.list_count, 3);
	assert_memory_equal(m.ram, want.ram, RAM_BYTES);
	assert_in_range(len, 400, 1000);
}

static void every_truncation_fails(void **state)
{
	size_t len;
	cleanup_free uint8_t *bytes = small_stream(&len);
	struct machine m;

	for (size_t cut = 0; cut < len; cut++) {
		cleanup_fd int fd = memory_stream(bytes, cut);
		char words[64];
		snprintf(words, sizeof(words), "the stream ends at byte %zu", cut);
		assert_error(load_machine(fd, &m), words);
	}
}

static void every_flipped_bit_fails(void **state)
{
	size_t len;
	cleanup_free uint8_t *bytes = small_stream(&len);
	struct machine m;

	for (size_t bit = 0; bit < len * 8; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
		cleanup_fd int fd = memory_stream(bytes, len);
		struct error *err = load_machine(fd, &m);
		if (!err)
			fail_msg("bit %zu of byte %zu flipped and nobody saw it", bit % 8, bit / 8);
		if (bit / 8 >= SAVED_TAG_BYTES && !strstr(error_text(err), "checksum"))
			fail_msg("byte %zu: %s", bit / 8, error_text(err));
		error_free(err);
		bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

/* Each unit is good by itself; taken from another stream or left out, it is not. */
static void a_moved_unit_fails(void **state)
{
	cleanup_fd int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;
	struct machine m = small_machine();
	size_t len;

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "unit", 1, machine_state, &m));
	size_t unit_end = (size_t)lseek(fd, 0, SEEK_CUR);
	m.number++;
	assert_ok(saved_unit(s, "unit", 1, machine_state, &m));
	saved_close(steal_ptr(&s));
	cleanup_free uint8_t *bytes = stream_bytes(fd, &len);
	size_t unit_len = unit_end - SAVED_HEAD_BYTES;
	memmove(bytes + SAVED_HEAD_BYTES, bytes + unit_end, unit_len);
	cleanup_fd int moved = memory_stream(bytes, unit_end);
	assert_ok(saved_open(moved, MACHINE, &s));
	assert_error(saved_unit(s, "unit", 1, machine_state, &m), "the checksum of the head of a record is wrong");
}

static void not_a_stream(void **state)
{
	static const char text[200] = "#!/bin/sh\n";
	cleanup_fd int fd = memory_stream(text, sizeof(text));
	struct machine m;

	assert_error(load_machine(fd, &m), "it does not begin like the saved state of a machine");
}

/* --- streams that lie, with their checksums right --- */

struct forge {
	struct saved s; /* for its checksum */
	uint8_t bytes[1024];
	size_t len;
};

static void forge_bytes(struct forge *f, const void *bytes, size_t len)
{
	memcpy(f->bytes + f->len, bytes, len);
	saved_sum(&f->s, bytes, len);
	f->len += len;
}

static void forge_check(struct forge *f)
{
	put_le32(f->bytes + f->len, f->s.sum);
	f->len += SAVED_CHECK_BYTES;
}

static void forge_head(struct forge *f, const char *tag, const char *name, uint64_t length, uint32_t value)
{
	saved_head_make(&f->s, tag, name, length, value, f->bytes + f->len);
	f->len += SAVED_HEAD_BYTES;
}

static void forge_run(struct forge *f, uint64_t offset, uint64_t len)
{
	uint8_t head[SAVED_RUN_CHECK];

	put_le64(head + SAVED_RUN_OFFSET, offset);
	put_le64(head + SAVED_RUN_LENGTH, len);
	forge_bytes(f, head, sizeof(head));
	forge_check(f);
}

static struct forge forged_header(void)
{
	struct forge f = {0};

	forge_head(&f, SAVED_TAG_HEADER, MACHINE, 0, SAVED_FORMAT);
	return f;
}

static struct error *load_forged_unit(const void *body, size_t len)
{
	struct forge f = forged_header();
	struct machine m = {0};
	cleanup_saved struct saved *s = NULL;

	forge_head(&f, SAVED_TAG_UNIT, "unit", len, 1);
	forge_bytes(&f, body, len);
	forge_check(&f);
	cleanup_fd int fd = memory_stream(f.bytes, f.len);
	TRY(saved_open(fd, MACHINE, &s));
	return saved_unit(s, "unit", 1, machine_state, &m);
}

#define BODY(bytes) bytes, sizeof(bytes) - 1

static void forged_fields(void **state)
{
	assert_ok(load_forged_unit("", 0));
	assert_ok(load_forged_unit(BODY("\x04\x06\x04\0\0\0number\x01\0\0\0")));
	assert_ok(load_forged_unit(BODY("\x01\x04\x01\0\0\0flag\x01")));
	assert_error(load_forged_unit(BODY("\x01\x04\x01\0\0\0flag\x02")), "2 is neither true nor false");
	assert_error(load_forged_unit(BODY("\x01\x04\x02\0\0\0flag\x01\0")), "it has 2 bytes where 1 are expected");
	assert_error(load_forged_unit(BODY("\x04\x06\x03\0\0\0number\x01\0\0")), "it has 3 bytes where 4");
	assert_error(load_forged_unit(BODY("\x07\x04\x03\0\0\0texta\0b")), "it has a NUL byte inside");
	assert_error(load_forged_unit(BODY("\x07\x04\x10\0\0\0text0123456789abcdef")), "there can be at most 15");
	assert_error(load_forged_unit(BODY("\x01\x04\x01\0\0\0flag\x01\x01\x04\x01\0\0\0flag\x01")),
		     "field 'flag': this program does not know it");
	/* No such type, no name, a name that is no name, and what reaches past the end. */
	assert_error(load_forged_unit(BODY("\0\x04\x01\0\0\0flag\x01")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x0a\x04\x01\0\0\0flag\x01")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x81\x04\x01\0\0\0flag\x01")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x01\0\x01\0\0\0\x01")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x01\x04\x01\0\0\0fl\ng\x01")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x01\x04\x02\0\0\0flag\x01")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x01\x04\xff\xff\xff\xff"
					   "flag\x01")),
		     "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x01\x05\0\0\0\0flag")), "its fields are not whole");
	assert_error(load_forged_unit(BODY("\x01\x04\x01\0\0")), "its fields are not whole");
}

static void forged_groups(void **state)
{
#define SUB(len)  "\x08\x03" len "\0\0\0sub"
#define LIST(len) "\x09\x04" len "\0\0\0list"
#define VALUE     "\x02\x05\x01\0\0\0value\x07"
	assert_ok(load_forged_unit(BODY(SUB("\0"))));
	assert_ok(load_forged_unit(BODY(SUB("\x0e") LIST("\x04") "\0\0\0\0")));
	assert_ok(load_forged_unit(BODY(SUB("\x1e") LIST("\x14") "\x01\0\0\0\x0c\0\0\0" VALUE)));
	assert_ok(load_forged_unit(BODY(SUB("\x12") LIST("\x08") "\x01\0\0\0\0\0\0\0")));
	assert_error(load_forged_unit(BODY(SUB("\x0b") LIST("\x01") "\0")), "it has 0 elements where");
	assert_error(load_forged_unit(BODY(SUB("\x0e") LIST("\x04") "\xff\xff\xff\xff")), "has 4294967295 elements");
	assert_error(load_forged_unit(BODY(SUB("\x0e") LIST("\x04") "\x01\0\0\0")), "element 0 is not whole");
	assert_error(load_forged_unit(BODY(SUB("\x12") LIST("\x08") "\x01\0\0\0\x01\0\0\0")), "0 is not whole");
	assert_error(load_forged_unit(BODY(SUB("\x12") LIST("\x08") "\x01\0\0\0\xff\xff\xff\xff")), "0 is not whole");
	assert_error(load_forged_unit(BODY(SUB("\x0f") LIST("\x05") "\0\0\0\0x")), "bytes behind its last element");
	assert_error(load_forged_unit(BODY(SUB("\x0f") LIST("\x06") "\0\0\0\0xx")), "its fields are not whole");
	assert_error(load_forged_unit(BODY(SUB("\x0c") VALUE)), "field 'sub.value': this program does not know it");
	assert_error(load_forged_unit(BODY(SUB("\x1e") LIST("\x14") "\x01\0\0\0\x0c\0\0\0"
								    "\x02\x05\x02\0\0\0value\x07")),
		     "field 'sub.list[0]': its fields are not");
}

static struct error *load_forged_run(uint64_t total, uint64_t offset, uint64_t len)
{
	static uint8_t ram[RAM_BYTES];
	struct forge f = forged_header();
	cleanup_saved struct saved *s = NULL;

	forge_head(&f, SAVED_TAG_BULK, "ram", total, 0);
	forge_run(&f, offset, len);
	cleanup_fd int fd = memory_stream(f.bytes, f.len);
	TRY(saved_open(fd, MACHINE, &s));
	return saved_bulk(s, "ram", ram, total);
}

static void forged_runs(void **state)
{
	static const char outside[] = "is outside of it, or out of order";

	assert_ok(load_forged_run(RAM_BYTES, RAM_BYTES, 0));
	assert_ok(load_forged_run(0, 0, 0));
	assert_error(load_forged_run(RAM_BYTES, 0, 4096), "the stream ends at byte");
	assert_error(load_forged_run(RAM_BYTES, 8192, 100), "the stream ends at byte");
	assert_error(load_forged_run(RAM_BYTES, 0, 0), outside);
	assert_error(load_forged_run(RAM_BYTES, 8192, 101), outside);
	assert_error(load_forged_run(RAM_BYTES, 4096, 8192), outside);
	assert_error(load_forged_run(RAM_BYTES, 0, 100), outside);
	assert_error(load_forged_run(RAM_BYTES, 100, 4096), outside);
	assert_error(load_forged_run(RAM_BYTES, 12288, 4096), outside);
	assert_error(load_forged_run(RAM_BYTES, UINT64_MAX - 4095, 4096), outside);
	assert_error(load_forged_run(RAM_BYTES, 0, UINT64_MAX), outside);
	/* Nothing of this memory is there: a load that goes on would crash. */
	assert_error(load_forged_run(4 * GIB, 0, SAVED_RUN_MAX + 4096), outside);
}

static void forged_order_of_runs(void **state)
{
	static const uint8_t page[128];
	uint8_t ram[128];
	struct forge f = forged_header();
	cleanup_saved struct saved *s = NULL;

	forge_head(&f, SAVED_TAG_BULK, "ram", sizeof(ram), 0);
	for (int i = 0; i < 2; i++) {
		forge_run(&f, 0, sizeof(ram));
		forge_bytes(&f, page, sizeof(page));
	}
	forge_run(&f, sizeof(ram), 0);
	cleanup_fd int fd = memory_stream(f.bytes, f.len);
	assert_ok(saved_open(fd, MACHINE, &s));
	assert_error(saved_bulk(s, "ram", ram, sizeof(ram)), "out of order");
}

static struct error *load_forged_head(const char *tag, const char *name, uint64_t length, uint32_t value)
{
	struct forge f = forged_header();
	struct machine m = {0};
	cleanup_saved struct saved *s = NULL;

	forge_head(&f, tag, name, length, value);
	cleanup_fd int fd = memory_stream(f.bytes, f.len);
	TRY(saved_open(fd, MACHINE, &s));
	return memcmp(tag, SAVED_TAG_END, SAVED_TAG_BYTES) == 0 ? saved_finish(s)
								: saved_unit(s, "unit", 1, machine_state, &m);
}

static void forged_heads(void **state)
{
	uint8_t head[SAVED_HEAD_BYTES];
	struct forge f = {0};
	struct machine m;

	assert_ok(load_forged_head(SAVED_TAG_END, "", SAVED_HEAD_BYTES, 0));
	assert_error(load_forged_head(SAVED_TAG_END, "", SAVED_HEAD_BYTES + 1, 0), "the end mark makes no sense");
	assert_error(load_forged_head(SAVED_TAG_END, "x", SAVED_HEAD_BYTES, 0), "makes no sense");
	assert_error(load_forged_head(SAVED_TAG_UNIT, "", 0, 1), "makes no sense");
	assert_error(load_forged_head(SAVED_TAG_UNIT, "esc\033[2J", 0, 1), "makes no sense");
	assert_error(load_forged_head("bell\a\a\a\a", "unit", 0, 1), "makes no sense");
	assert_error(load_forged_head("novelty ", "unit", 0, 1), "has novelty 'unit' where this machine has unit");
	assert_error(load_forged_head(SAVED_TAG_UNIT, "unit", SAVED_UNIT_MAX + 1, 1), "a unit has at most");
	assert_error(load_forged_head(SAVED_TAG_UNIT, "unit", UINT64_MAX, 1), "a unit has at most");
	/* A name with something behind its end. */
	saved_head_make(&(struct saved){0}, SAVED_TAG_HEADER, MACHINE, 0, SAVED_FORMAT, head);
	head[SAVED_HEAD_VALUE - 1] = 'x';
	forge_bytes(&f, head, SAVED_HEAD_CHECK);
	forge_check(&f);
	cleanup_fd int unpadded = memory_stream(f.bytes, f.len);
	assert_error(load_machine(unpadded, &m), "makes no sense");
	f = (struct forge){0};
	forge_head(&f, SAVED_TAG_HEADER, MACHINE, 0, SAVED_FORMAT + 1);
	cleanup_fd int fd = memory_stream(f.bytes, f.len);
	assert_error(load_machine(fd, &m), "it has format version 2, this program reads up to 1");
}

/* --- memory through pipes --- */

struct transfer {
	int fd;
	uint8_t *data;
	size_t len;
	bool dribble;
};

static void *sender(void *arg)
{
	struct transfer *t = arg;
	cleanup_saved struct saved *s = NULL;

	assert_ok(saved_create(t->fd, MACHINE, &s));
	assert_ok(saved_bulk(s, "ram", t->data, t->len));
	assert_ok(saved_finish(s));
	assert_int_equal(write(t->fd, "tail", 4), 4);
	close(t->fd);
	return NULL;
}

/* Passes a stream on in pieces of 1 to 97 bytes, so that every read is a short one. */
static void *dribbler(void *arg)
{
	int *fds = arg;
	uint8_t bytes[97];
	unsigned turn = 0;

	for (;;) {
		ssize_t n = read(fds[0], bytes, turn++ % sizeof(bytes) + 1);
		if (n <= 0)
			break;
		assert_ok(write_all(fds[1], bytes, (size_t)n, "pipe"));
	}
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

static void pair(bool sockets, int fds[2])
{
	int both[2];

	if (sockets) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both), 0);
		fds[0] = both[0];
		fds[1] = both[1];
	} else {
		assert_int_equal(pipe(fds), 0);
	}
}

/* What is saved at one end is loaded at the other, and not a byte behind the end mark is touched. */
static void transfer(uint8_t *data, size_t len, bool sockets, bool dribble)
{
	int fds[2], more[2] = {-1, -1}, between[2];
	pthread_t thread, second;
	cleanup_saved struct saved *s = NULL;
	char tail[5] = "";

	pair(sockets, fds);
	struct transfer t = {.fd = fds[1], .data = data, .len = len};
	cleanup_fd int in = fds[0];
	if (dribble) {
		pair(sockets, more);
		between[0] = in;
		between[1] = more[1];
		in = more[0];
		assert_int_equal(pthread_create(&second, NULL, dribbler, between), 0);
	}
	assert_int_equal(pthread_create(&thread, NULL, sender, &t), 0);
	uint8_t *loaded = mmap(NULL, len + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(loaded != MAP_FAILED);
	assert_ok(saved_open(in, MACHINE, &s));
	assert_ok(saved_bulk(s, "ram", loaded, len));
	assert_ok(saved_finish(s));
	assert_ok(read_all(in, tail, 4, "tail"));
	assert_string_equal(tail, "tail");
	assert_memory_equal(loaded, data, len);
	munmap(loaded, len + 1);
	pthread_join(thread, NULL);
	if (dribble)
		pthread_join(second, NULL);
}

static uint64_t random_state;

static uint64_t random_u64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Pages are zero, full, or zero but for one byte; in stretches, so that runs come in all lengths. */
static void fill(uint8_t *data, size_t len)
{
	size_t page = 0;

	while (page * 4096 < len) {
		unsigned kind = (unsigned)(random_u64() % 3);
		size_t stretch = random_u64() % (random_u64() % 8 == 0 ? 700 : 4) + 1;
		for (; stretch > 0 && page * 4096 < len; stretch--, page++) {
			size_t size = MIN((size_t)4096, len - page * 4096);
			memset(data + page * 4096, 0, size);
			for (size_t i = 0; kind == 1 && i < size; i++)
				data[page * 4096 + i] = (uint8_t)random_u64();
			if (kind == 2)
				data[page * 4096 + random_u64() % size] = 1;
		}
	}
}

static void bulk_through_pipes(void **state)
{
	static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 64 << 10, (256 << 10) + 8, (9 << 20) + 4095};
	const char *seed = getenv("GLINT_SEED");
	cleanup_free uint8_t *data = malloc(16 << 20);

	random_state = (seed && *seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL)) | 1;
	print_message("seed: GLINT_SEED=%llu\n", (unsigned long long)random_state);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		fill(data, sizes[i]);
		transfer(data, sizes[i], false, false);
		transfer(data, sizes[i], true, false);
		if (sizes[i] < MIB)
			transfer(data, sizes[i], i % 2 == 0, true);
	}
	memset(data, 0, 16 << 20);
	transfer(data, 16 << 20, false, false);
	memset(data, 0xff, 16 << 20);
	transfer(data, 16 << 20, false, false);
}

/* Zero pages cost nothing in the stream; others cost themselves and a head. */
static void zero_pages_are_skipped(void **state)
{
	cleanup_fd int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;
	size_t len = 16 << 20;
	cleanup_free uint8_t *data = calloc(1, len);

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(saved_bulk(s, "zero", data, len));
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 2 * SAVED_HEAD_BYTES + SAVED_RUN_BYTES);
	off_t before = lseek(fd, 0, SEEK_CUR);
	data[len - 1] = data[5000] = 1;
	assert_ok(saved_bulk(s, "two", data, len));
	assert_int_equal(lseek(fd, 0, SEEK_CUR) - before, SAVED_HEAD_BYTES + 3 * SAVED_RUN_BYTES + 2 * 4096);
}

/* Saving a memfd reads what was touched and takes no memory for what was not; the stream is the same. */
static void holes_stay_holes(void **state)
{
	static const size_t touched[] = {0, 4096, 40 << 12, (9 << 20) + 17, (16 << 20) - 1};
	cleanup_fd int ram_fd = memfd_create("ram", MFD_CLOEXEC);
	cleanup_fd int sparse = memory_stream("", 0), plain = memory_stream("", 0);
	size_t before = 4096, len = 16 << 20;
	struct stat st;

	assert_int_equal(ftruncate(ram_fd, (off_t)(before + len)), 0);
	uint8_t *map = mmap(NULL, before + len, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	for (size_t i = 0; i < ARRAY_SIZE(touched); i++)
		map[before + touched[i]] = (uint8_t)(i + 1);
	for (unsigned i = 0; i < 2; i++) {
		cleanup_saved struct saved *s = NULL;
		assert_ok(saved_create(i == 0 ? sparse : plain, MACHINE, &s));
		assert_ok(i == 0 ? saved_bulk_file(s, "ram", map + before, len, ram_fd, before)
				 : saved_bulk(s, "ram", map + before, len));
		assert_ok(saved_finish(s));
		if (i == 0) {
			assert_int_equal(fstat(ram_fd, &st), 0);
			assert_int_equal(st.st_blocks, ARRAY_SIZE(touched) * 8);
		}
	}
	off_t size = lseek(sparse, 0, SEEK_CUR);
	assert_int_equal(lseek(plain, 0, SEEK_CUR), size);
	cleanup_free uint8_t *a = malloc((size_t)size), *b = malloc((size_t)size);
	assert_int_equal(pread(sparse, a, (size_t)size, 0), size);
	assert_int_equal(pread(plain, b, (size_t)size, 0), size);
	assert_memory_equal(a, b, (size_t)size);
	munmap(map, before + len);
}

static void a_closed_pipe_is_an_error(void **state)
{
	int fds[2];
	cleanup_saved struct saved *s = NULL;

	signal(SIGPIPE, SIG_IGN);
	pair(false, fds);
	close(fds[0]);
	assert_error(saved_create(fds[1], MACHINE, &s), "Broken pipe");
	close(fds[1]);
	assert_error(saved_open(-1, MACHINE, &s), "Bad file descriptor");
	assert_null(s);
}

static void a_full_disk_is_an_error(void **state)
{
	struct rlimit old, small;
	struct machine m = small_machine();
	cleanup_fd int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	memset(m.ram, 1, sizeof(m.ram));
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = (struct rlimit){.rlim_cur = 6000, .rlim_max = old.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	struct error *err = save_machine(fd, &m);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_non_null(err);
	assert_int_equal(error_errno(err), EFBIG);
	assert_error(err, "save bulk section 'ram'");
}

/* --- the checksum --- */

static void checksum_vectors(void **state)
{
	uint8_t bytes[32] = {0};

	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
	assert_int_equal(crc32c(0, bytes, 32), 0x8a9136aa); /* RFC 3720, B.4: zeros, then ones, then ascending */
	memset(bytes, 0xff, 32);
	assert_int_equal(crc32c(0, bytes, 32), 0x62a8ab43);
	for (uint8_t i = 0; i < 32; i++)
		bytes[i] = i;
	assert_int_equal(crc32c(0, bytes, 32), 0x46dd794e);
	assert_int_equal(crc32c_portable(0, bytes, 32), 0x46dd794e);
}

/* Both ways agree at all lengths and alignments, in one piece and in two. */
static void checksum_both_ways(void **state)
{
	cleanup_free uint8_t *bytes = malloc(20000);

	for (size_t i = 0; i < 20000; i++)
		bytes[i] = (uint8_t)random_u64();
	for (size_t len = 0; len < 19990; len += len < 300 ? 1 : 1 + random_u64() % 97) {
		size_t at = random_u64() % 9;
		size_t half = len > 0 ? random_u64() % len : 0;
		uint32_t want = crc32c_portable(7, bytes + at, len);
		assert_int_equal(crc32c(7, bytes + at, len), want);
		assert_int_equal(crc32c(crc32c(7, bytes + at, half), bytes + at + half, len - half), want);
	}
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void print_speed(void **state)
{
	size_t len = 64 << 20;
	cleanup_free uint8_t *data = malloc(len);
	volatile uint32_t sink;

	memset(data, 0x77, len);
	double start = seconds();
	sink = crc32c(0, data, len);
	double whole = seconds();
	for (size_t i = 0; i < 256; i++)
		sink = crc32c(sink, data, 256 << 10);
	double cached = seconds();
	sink = crc32c_portable(0, data, 1 << 20);
	double portable = seconds();
	print_message("crc32c: %.1f GiB/s from memory, %.1f from cache; portable %.2f\n", 0.0625 / (whole - start),
		      0.0625 / (cached - whole), 1.0 / 1024 / (portable - cached));
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	cleanup_saved struct saved *s = NULL;
	assert_ok(saved_create(fd, MACHINE, &s));
	start = seconds();
	assert_ok(saved_bulk(s, "full", data, len));
	double full = seconds();
	memset(data, 0, len);
	double mid = seconds();
	assert_ok(saved_bulk(s, "zero", data, len));
	print_message("bulk to nowhere: %.1f GiB/s full pages, %.1f zero pages\n", 0.0625 / (full - start),
		      0.0625 / (seconds() - mid));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whole_stream_loads),
		cmocka_unit_test(every_truncation_fails),
		cmocka_unit_test(every_flipped_bit_fails),
		cmocka_unit_test(a_moved_unit_fails),
		cmocka_unit_test(not_a_stream),
		cmocka_unit_test(forged_fields),
		cmocka_unit_test(forged_groups),
		cmocka_unit_test(forged_runs),
		cmocka_unit_test(forged_order_of_runs),
		cmocka_unit_test(forged_heads),
		cmocka_unit_test(bulk_through_pipes),
		cmocka_unit_test(holes_stay_holes),
		cmocka_unit_test(zero_pages_are_skipped),
		cmocka_unit_test(a_closed_pipe_is_an_error),
		cmocka_unit_test(a_full_disk_is_an_error),
		cmocka_unit_test(checksum_vectors),
		cmocka_unit_test(checksum_both_ways),
		cmocka_unit_test(print_speed),
	};

	return cmocka_run_group_tests_name("saved_stream", tests, NULL, NULL);
}
