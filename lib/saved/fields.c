/*
 * Fields: what bodies see of a unit.
 *
 * Saving appends each field to the unit's buffer; the length of a group or list is filled in when it ends. Loading
 * works in that buffer too. On entering a group all its fields are walked once and bounded, so that finding one later
 * can trust them; a field that was taken gets a mark in its type byte, and one left without it at the end of the body
 * is one that this program does not know. Nothing is allocated, and the depth of groups is that of the bodies, not of
 * the stream.
 *
 * Touches the unit's buffer and the places that bodies give.
 */
#include "saved/internal.h"

#include "base/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define TAKEN 0x80 /* in the type byte of a loaded field */

/* Values are copied as they lie in memory. */
static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "the stream is little endian, and so is every CPU that Glint runs on");

/* A field as it lies in the buffer; positions are offsets. */
struct field {
	uint8_t *type;
	const char *name;
	size_t name_len;
	size_t value;
	size_t len;
	size_t next;
};

static const char *type_name(unsigned type)
{
	static const char *const names[] = {
		[SAVED_BOOL] = "bool",     [SAVED_U8] = "u8",       [SAVED_U16] = "u16",
		[SAVED_U32] = "u32",       [SAVED_U64] = "u64",     [SAVED_BYTES] = "bytes",
		[SAVED_STRING] = "string", [SAVED_GROUP] = "group", [SAVED_LIST] = "list",
	};

	return names[type];
}

/* --- errors --- */

/* Writes where a body is: "msrs[3].", with a dot or nothing at the end. */
static void write_path(const struct saved *s, char *path, size_t size, const char *field)
{
	size_t used = 0;

	path[0] = '\0';
	for (unsigned i = 1; i <= s->depth && used < size; i++) {
		const struct saved_frame *f = &s->frames[i];
		const char *dot = i < s->depth || field ? "." : "";
		used += (size_t)(f->is_element ? snprintf(path + used, size - used, "%s[%zu]%s", f->name, f->index, dot)
					       : snprintf(path + used, size - used, "%s%s", f->name, dot));
	}
	if (field && used < size)
		snprintf(path + used, size - used, "%s", field);
}

static void fail_words(struct saved *s, const char *field, const char *fmt, va_list args)
{
	char path[(SAVED_DEPTH_MAX + 1) * (SAVED_NAME_MAX + 24)];
	char *words;

	if (s->err)
		return;
	if (vasprintf(&words, fmt, args) < 0) {
		s->err = error_new(ENOMEM, "describe an error");
		return;
	}
	write_path(s, path, sizeof(path), field);
	s->err = path[0] ? error_new(0, "field '%s': %s", path, words) : error_new(0, "%s", words);
	free(words);
}

[[gnu::format(printf, 3, 4)]] static void fail_field(struct saved *s, const char *field, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	fail_words(s, field, fmt, args);
	va_end(args);
}

void saved_fail(struct saved *s, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	fail_words(s, NULL, fmt, args);
	va_end(args);
}

/* --- the buffer --- */

/* The field at @at, where there is a whole one. */
static struct field field_at(const struct saved *s, size_t at)
{
	uint8_t *p = s->buf + at;
	struct field f = {
		.type = p + SAVED_FIELD_TYPE,
		.name = (const char *)p + SAVED_FIELD_BYTES,
		.name_len = p[SAVED_FIELD_NAME_LEN],
		.len = get_le32(p + SAVED_FIELD_LENGTH),
	};

	f.value = at + SAVED_FIELD_BYTES + f.name_len;
	f.next = f.value + f.len;
	return f;
}

static bool has_name(const struct field *f, const char *name, size_t name_len)
{
	return f->name_len == name_len && memcmp(f->name, name, name_len) == 0;
}

/* Bounds all fields of the group in [start, end). */
static bool fields_ok(const struct saved *s, size_t start, size_t end)
{
	for (size_t at = start; at < end;) {
		if (end - at < SAVED_FIELD_BYTES)
			return false;
		size_t rest = end - at - SAVED_FIELD_BYTES;
		struct field f = field_at(s, at);
		if (f.name_len > rest || f.len > rest - f.name_len)
			return false;
		if (*f.type < SAVED_BOOL || *f.type > SAVED_TYPE_MAX || !saved_name_ok(f.name, f.name_len))
			return false;
		at = f.next;
	}
	return true;
}

/*
 * Loading: finds the field @name of @type in the group at hand and marks it as taken. False, with or without an
 * error, when there is nothing to load.
 */
static bool take(struct saved *s, const char *name, enum saved_type type, struct field *found)
{
	struct saved_frame *g = &s->frames[s->depth];
	size_t name_len = strlen(name);
	bool required = s->require;
	size_t at = g->cursor;

	s->require = false;
	for (bool wrapped = false;;) {
		if (at == g->end && !wrapped) {
			wrapped = true;
			at = g->start;
		}
		if (at == g->end || (wrapped && at >= g->cursor))
			break;
		struct field f = field_at(s, at);
		at = f.next;
		if ((*f.type & TAKEN) || !has_name(&f, name, name_len))
			continue;
		if (*f.type != type) {
			fail_field(s, name, "it is of type %s where %s is expected", type_name(*f.type),
				   type_name(type));
			return false;
		}
		*f.type |= TAKEN;
		g->cursor = f.next;
		*found = f;
		return true;
	}
	if (required)
		fail_field(s, name, "it is missing");
	return false;
}

/* The same for a value of exactly @len bytes. */
static bool take_sized(struct saved *s, const char *name, enum saved_type type, size_t len, struct field *f)
{
	if (!take(s, name, type, f))
		return false;
	if (f->len != len)
		fail_field(s, name, "it has %zu bytes where %zu are expected", f->len, len);
	return f->len == len;
}

/* A second field of one name would be lost: a mistake of the body. */
static bool name_is_new(struct saved *s, const char *name)
{
	size_t name_len = strlen(name);

	if (!saved_name_ok(name, name_len)) {
		saved_fail(s, "a field's name has 1 to %d printable ASCII characters", SAVED_NAME_MAX);
		return false;
	}
	for (size_t at = s->frames[s->depth].start; at < s->len;) {
		struct field f = field_at(s, at);
		if (has_name(&f, name, name_len)) {
			fail_field(s, name, "it is saved twice");
			return false;
		}
		at = f.next;
	}
	return true;
}

/* Makes the unit @len bytes longer. False, with an error, when that is too much. */
static bool append(struct saved *s, size_t len)
{
	s->err = saved_reserve(s, len > SAVED_UNIT_MAX ? len : s->len + len);
	if (s->err)
		return false;
	s->len += len;
	return true;
}

/* Saving: appends a field with @len bytes of room for its value, the last ones of the unit. */
static bool put(struct saved *s, const char *name, enum saved_type type, size_t len)
{
	size_t name_len = strnlen(name, SAVED_NAME_MAX);

	if (!name_is_new(s, name) || !append(s, SAVED_FIELD_BYTES + name_len))
		return false;
	uint8_t *p = s->buf + s->len - SAVED_FIELD_BYTES - name_len;
	p[SAVED_FIELD_TYPE] = (uint8_t)type;
	p[SAVED_FIELD_NAME_LEN] = (uint8_t)name_len;
	put_le32(p + SAVED_FIELD_LENGTH, (uint32_t)len);
	memcpy(p + SAVED_FIELD_BYTES, name, name_len);
	return append(s, len);
}

/* Fills in the length of the field at @at, which ends here. */
static void end_field(struct saved *s, size_t at)
{
	if (s->err)
		return;
	put_le32(s->buf + at + SAVED_FIELD_LENGTH, (uint32_t)(s->len - field_at(s, at).value));
}

/* --- values --- */

bool saved_loading(const struct saved *s)
{
	return s->loading;
}

uint32_t saved_version(const struct saved *s)
{
	return s->version;
}

void saved_require(struct saved *s)
{
	s->require = s->loading;
}

/* A value of a fixed size. */
static void fixed(struct saved *s, const char *name, enum saved_type type, void *value, size_t len)
{
	struct field f;

	if (s->err)
		return;
	if (s->loading) {
		if (take_sized(s, name, type, len, &f))
			memcpy(value, s->buf + f.value, len);
		return;
	}
	if (put(s, name, type, len))
		memcpy(s->buf + s->len - len, value, len);
}

void saved_bool(struct saved *s, const char *name, bool *value)
{
	uint8_t byte = *value;

	fixed(s, name, SAVED_BOOL, &byte, sizeof(byte));
	if (byte > 1)
		fail_field(s, name, "%u is neither true nor false", byte);
	else
		*value = byte;
}

void saved_u8(struct saved *s, const char *name, uint8_t *value)
{
	fixed(s, name, SAVED_U8, value, sizeof(*value));
}

void saved_u16(struct saved *s, const char *name, uint16_t *value)
{
	fixed(s, name, SAVED_U16, value, sizeof(*value));
}

void saved_u32(struct saved *s, const char *name, uint32_t *value)
{
	fixed(s, name, SAVED_U32, value, sizeof(*value));
}

void saved_u64(struct saved *s, const char *name, uint64_t *value)
{
	fixed(s, name, SAVED_U64, value, sizeof(*value));
}

void saved_bytes(struct saved *s, const char *name, void *data, size_t len)
{
	fixed(s, name, SAVED_BYTES, data, len);
}

void saved_blob(struct saved *s, const char *name, void *data, size_t *len, size_t max)
{
	struct field f;

	if (s->err)
		return;
	if (!s->loading && *len > max) {
		fail_field(s, name, "it has %zu bytes, there can be at most %zu", *len, max);
	} else if (!s->loading) {
		fixed(s, name, SAVED_BYTES, data, *len);
	} else if (take(s, name, SAVED_BYTES, &f)) {
		if (f.len > max) {
			fail_field(s, name, "it has %zu bytes, there can be at most %zu", f.len, max);
			return;
		}
		memcpy(data, s->buf + f.value, f.len);
		*len = f.len;
	}
}

void saved_string(struct saved *s, const char *name, char *buf, size_t size)
{
	struct field f;

	if (s->err)
		return;
	if (!s->loading) {
		size_t len = strnlen(buf, size);
		if (len == size)
			fail_field(s, name, "it has no end");
		else
			fixed(s, name, SAVED_STRING, buf, len);
	} else if (take(s, name, SAVED_STRING, &f)) {
		if (f.len >= size) {
			fail_field(s, name, "it has %zu bytes, there can be at most %zu", f.len, size - 1);
		} else if (memchr(s->buf + f.value, '\0', f.len)) {
			fail_field(s, name, "it has a NUL byte inside");
		} else {
			memcpy(buf, s->buf + f.value, f.len);
			buf[f.len] = '\0';
		}
	}
}

/* --- groups --- */

static bool enter(struct saved *s, const struct saved_frame *frame)
{
	if (s->depth == SAVED_DEPTH_MAX) {
		fail_field(s, frame->name, "groups are more than %d deep", SAVED_DEPTH_MAX);
		return false;
	}
	s->frames[++s->depth] = *frame;
	return true;
}

/* Runs @body in the frame on top. Loading: over fields that are there and whole, all of which it must take. */
static void run_in_frame(struct saved *s, saved_body_fn *body, void *self)
{
	struct saved_frame *g = &s->frames[s->depth];

	if (s->loading && !fields_ok(s, g->start, g->end)) {
		saved_fail(s, "its fields are not whole");
		return;
	}
	g->cursor = g->start;
	body(self, s);
	s->require = false;
	for (size_t at = g->start; s->loading && !s->err && at < g->end;) {
		struct field f = field_at(s, at);
		if (!(*f.type & TAKEN)) {
			char name[SAVED_NAME_MAX + 1] = "";
			memcpy(name, f.name, f.name_len);
			fail_field(s, name, "this program does not know it");
		}
		at = f.next;
	}
}

static void run_group(struct saved *s, const struct saved_frame *frame, saved_body_fn *body, void *self)
{
	if (!enter(s, frame))
		return;
	run_in_frame(s, body, self);
	s->depth--;
}

void saved_run_body(struct saved *s, saved_body_fn *body, void *self)
{
	s->depth = 0;
	s->require = false;
	s->frames[0] = (struct saved_frame){.start = 0, .end = s->len};
	run_in_frame(s, body, self);
}

bool saved_subsection(struct saved *s, const char *name, bool needed, saved_body_fn *body, void *self)
{
	struct saved_frame frame = {.name = name};
	struct field f;

	if (s->err)
		return false;
	if (s->loading) {
		if (!take(s, name, SAVED_GROUP, &f))
			return false;
		frame.start = f.value;
		frame.end = f.next;
		run_group(s, &frame, body, self);
		return true;
	}
	size_t at = s->len;
	if (!needed || !put(s, name, SAVED_GROUP, 0))
		return false;
	frame.start = s->len;
	run_group(s, &frame, body, self);
	end_field(s, at);
	return true;
}

/* A list's value is the number of elements and, for each, the length of its group and the group. */
static void save_list(struct saved *s, const char *name, uint8_t *base, size_t count, size_t stride,
		      saved_body_fn *body)
{
	size_t at = s->len;

	if (!put(s, name, SAVED_LIST, sizeof(uint32_t)))
		return;
	put_le32(s->buf + s->len - sizeof(uint32_t), (uint32_t)count);
	for (size_t i = 0; i < count && append(s, sizeof(uint32_t)); i++) {
		struct saved_frame frame = {.name = name, .index = i, .is_element = true, .start = s->len};
		run_group(s, &frame, body, base + i * stride);
		if (s->err)
			return;
		put_le32(s->buf + frame.start - sizeof(uint32_t), (uint32_t)(s->len - frame.start));
	}
	end_field(s, at);
}

/* Loads from min to max elements; *count becomes their number. */
static void load_list(struct saved *s, const char *name, uint8_t *base, size_t *count, size_t min, size_t max,
		      size_t stride, saved_body_fn *body)
{
	struct field f;

	if (!take(s, name, SAVED_LIST, &f))
		return;
	size_t n = f.len < sizeof(uint32_t) ? 0 : get_le32(s->buf + f.value);
	if (f.len < sizeof(uint32_t) || n < min || n > max) {
		fail_field(s, name, "it has %zu elements where %zu to %zu are expected", n, min, max);
		return;
	}
	*count = n;
	size_t at = f.value + sizeof(uint32_t);
	for (size_t i = 0; i < n && !s->err; i++) {
		size_t rest = f.next - at;
		size_t len = rest < sizeof(uint32_t) ? 0 : get_le32(s->buf + at);
		if (rest < sizeof(uint32_t) || len > rest - sizeof(uint32_t)) {
			fail_field(s, name, "element %zu is not whole", i);
			return;
		}
		at += sizeof(uint32_t) + len;
		struct saved_frame frame = {.name = name, .index = i, .is_element = true, .start = at - len, .end = at};
		run_group(s, &frame, body, base + i * stride);
	}
	if (at != f.next)
		fail_field(s, name, "there are bytes behind its last element");
}

void saved_list(struct saved *s, const char *name, void *base, size_t *count, size_t max, size_t stride,
		saved_body_fn *body)
{
	if (s->err)
		return;
	if (s->loading)
		load_list(s, name, base, count, 0, max, stride, body);
	else if (*count > max)
		fail_field(s, name, "it has %zu elements, there can be at most %zu", *count, max);
	else
		save_list(s, name, base, *count, stride, body);
}

void saved_array(struct saved *s, const char *name, void *base, size_t count, size_t stride, saved_body_fn *body)
{
	if (s->err)
		return;
	if (s->loading)
		load_list(s, name, base, &count, count, count, stride, body);
	else
		save_list(s, name, base, count, stride, body);
}
