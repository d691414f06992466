/*
 * Streams and units: the functions that a machine calls, one per record.
 *
 * A unit is gathered in memory, at most SAVED_UNIT_MAX bytes, and written at once; it is read whole and its checksum
 * proven before a body sees any of it.
 */
#include "saved/internal.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <stdlib.h>

/* What a body's groups and fields take at first; doubled as needed. */
#define BUFFER_MIN 4096u

struct error *saved_reserve(struct saved *s, size_t len)
{
	if (len > SAVED_UNIT_MAX)
		return error_new(0, "it has more than %u bytes, the most a unit can hold", SAVED_UNIT_MAX);
	if (len <= s->capacity)
		return NULL;
	/* Loading knows what it needs, and with no byte to spare a sanitizer sees any access past the end. */
	size_t capacity = s->loading ? len : MAX(s->capacity, (size_t)BUFFER_MIN);
	while (capacity < len)
		capacity *= 2;
	uint8_t *buf = realloc(s->buf, capacity);
	if (!buf)
		return error_new(ENOMEM, "hold a unit of %zu bytes", len);
	s->buf = buf;
	s->capacity = capacity;
	return NULL;
}

static struct error *expect_ready(const struct saved *s)
{
	static const char *const why[] = {
		[SAVED_IN_BODY] = "the body of another unit is still running",
		[SAVED_FINISHED] = "the stream has ended already",
		[SAVED_FAILED] = "the stream failed before",
	};

	return s->phase == SAVED_READY ? NULL : error_new(0, "%s", why[s->phase]);
}

struct error *saved_begin(struct saved *s, const char *name)
{
	TRY(expect_ready(s));
	if (!saved_name_ok(name, strlen(name)))
		return error_new(0, "a name has 1 to %d printable ASCII characters", SAVED_NAME_MAX);
	if (s->records++ >= SAVED_UNITS_MAX)
		return error_new(0, "a stream has at most %d units and bulk sections", SAVED_UNITS_MAX);
	return NULL;
}

struct error *saved_end(struct saved *s, struct error *err)
{
	if (err)
		s->phase = SAVED_FAILED;
	return err;
}

static struct error *save_header(struct saved *s, const char *machine_type)
{
	uint8_t head[SAVED_HEAD_BYTES];
	struct iovec iov = {head, sizeof(head)};

	if (!saved_name_ok(machine_type, strlen(machine_type)))
		return error_new(0, "a machine type has 1 to %d printable ASCII characters", SAVED_NAME_MAX);
	saved_head_make(s, SAVED_TAG_HEADER, machine_type, 0, SAVED_FORMAT, head);
	return saved_write(s, &iov, 1, "the header");
}

static struct error *load_header(struct saved *s, const char *machine_type)
{
	struct saved_head head;

	TRY(saved_head_read(s, &head));
	if (head.value == 0 || head.value > SAVED_FORMAT)
		return error_hint(
			error_new(0, "it has format version %u, this program reads up to %u", head.value, SAVED_FORMAT),
			"load it with a Glint at least as new as the one that saved it");
	if (strcmp(head.name, machine_type) != 0)
		return error_hint(
			error_new(0, "it is of a machine of type '%s', this one is '%s'", head.name, machine_type),
			"load it into a machine of type '%s'", head.name);
	return NULL;
}

static struct error *start(int fd, const char *machine_type, bool loading, struct saved **out)
{
	struct saved *s = calloc(1, sizeof(*s));

	if (!s)
		return error_new(ENOMEM, "begin a stream");
	s->fd = fd;
	s->loading = loading;
	struct error *err = loading ? load_header(s, machine_type) : save_header(s, machine_type);
	if (err)
		saved_close(s);
	else
		*out = s;
	return err;
}

struct error *saved_create(int fd, const char *machine_type, struct saved **s)
{
	return error_wrap(start(fd, machine_type, false, s), "save the machine's state");
}

struct error *saved_open(int fd, const char *machine_type, struct saved **s)
{
	return error_wrap(start(fd, machine_type, true, s), "load the machine's state");
}

void saved_close(struct saved *s)
{
	if (!s)
		return;
	error_free(s->err);
	free(s->buf);
	free(s);
}

static struct error *run_body(struct saved *s, uint32_t version, saved_body_fn *body, void *self)
{
	s->version = version;
	s->phase = SAVED_IN_BODY;
	saved_run_body(s, body, self);
	if (s->phase == SAVED_IN_BODY) /* and not failed by a call that has no place in a body */
		s->phase = SAVED_READY;
	return steal_ptr(&s->err);
}

static struct error *save_unit(struct saved *s, const char *name, uint32_t version, saved_body_fn *body, void *self)
{
	uint8_t head[SAVED_HEAD_BYTES], check[SAVED_CHECK_BYTES];

	s->len = 0;
	TRY(run_body(s, version, body, self));
	saved_head_make(s, SAVED_TAG_UNIT, name, s->len, version, head);
	saved_sum(s, s->buf, s->len);
	put_le32(check, s->sum);
	struct iovec iov[] = {{head, sizeof(head)}, {s->buf, s->len}, {check, sizeof(check)}};
	return saved_write(s, iov, ARRAY_SIZE(iov), "it");
}

static struct error *load_unit(struct saved *s, const char *name, uint32_t version, saved_body_fn *body, void *self)
{
	struct saved_head head;
	uint8_t check[SAVED_CHECK_BYTES];

	TRY(saved_head_expect(s, SAVED_TAG_UNIT, name, &head));
	if (head.value == 0 || head.value > version)
		return error_hint(error_new(0, "it has version %u, this program knows 1 to %u", head.value, version),
				  "load it with a Glint at least as new as the one that saved it");
	if (head.length > SAVED_UNIT_MAX)
		return error_new(0, "it claims %llu bytes, a unit has at most %u", (unsigned long long)head.length,
				 SAVED_UNIT_MAX);
	TRY(saved_reserve(s, (size_t)head.length));
	s->len = (size_t)head.length;
	struct iovec iov[] = {{s->buf, s->len}, {check, sizeof(check)}};
	TRY(saved_read(s, iov, ARRAY_SIZE(iov), "it"));
	saved_sum(s, s->buf, s->len);
	if (!saved_check(s, check))
		return saved_damaged(s, "it");
	return run_body(s, head.value, body, self);
}

static struct error *unit(struct saved *s, const char *name, uint32_t version, saved_body_fn *body, void *self)
{
	TRY(saved_begin(s, name));
	return s->loading ? load_unit(s, name, version, body, self) : save_unit(s, name, version, body, self);
}

struct error *saved_unit(struct saved *s, const char *name, uint32_t version, saved_body_fn *body, void *self)
{
	return error_wrap(saved_end(s, unit(s, name, version, body, self)), "%s unit '%s'",
			  s->loading ? "load" : "save", name);
}

/* The end mark tells how many bytes come before it: with the checksum, all there is to know about a whole stream. */
static struct error *finish(struct saved *s)
{
	uint64_t before = s->offset;

	TRY(expect_ready(s));
	if (s->loading) {
		struct saved_head head;
		TRY(saved_head_expect(s, SAVED_TAG_END, "", &head));
		if (head.length != before || head.value != 0)
			return error_new(0, "the end mark makes no sense: it counts %llu bytes, there were %llu",
					 (unsigned long long)head.length, (unsigned long long)before);
	} else {
		uint8_t head[SAVED_HEAD_BYTES];
		struct iovec iov = {head, sizeof(head)};
		saved_head_make(s, SAVED_TAG_END, "", before, 0, head);
		TRY(saved_write(s, &iov, 1, "the end mark"));
	}
	s->phase = SAVED_FINISHED;
	return NULL;
}

struct error *saved_finish(struct saved *s)
{
	return error_wrap(saved_end(s, finish(s)), "%s the machine's state", s->loading ? "load" : "save");
}
