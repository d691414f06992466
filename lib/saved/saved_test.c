/*
 * Saved state as its users see it: round trips, and the rules of compatibility, unit by unit.
 */
#include "saved/format.h"
#include "saved/test_stream.h"

#include "base/util.h"

#include <stdio.h>

struct point {
	uint32_t x;
	uint64_t y;
	uint8_t tags[3];
	size_t tag_count;
};

struct device {
	bool on, off;
	uint8_t u8;
	uint16_t u16;
	uint32_t u32;
	uint64_t u64;
	uint8_t cmos[128];
	uint8_t blob[64];
	size_t blob_len;
	char serial[20];
	struct point array[3];
	struct point list[8];
	size_t list_count;
	bool has_extra;
	uint64_t extra;
	struct point deep;
};

static void tag_state(void *self, struct saved *s)
{
	saved_u8(s, "value", self);
}

static void point_state(void *self, struct saved *s)
{
	struct point *p = self;

	saved_u32(s, "x", &p->x);
	saved_u64(s, "y", &p->y);
	saved_list(s, "tags", p->tags, &p->tag_count, ARRAY_SIZE(p->tags), sizeof(p->tags[0]), tag_state);
}

static void deep_state(void *self, struct saved *s)
{
	struct device *d = self;

	saved_subsection(s, "point", true, point_state, &d->deep);
}

static void extra_state(void *self, struct saved *s)
{
	struct device *d = self;

	saved_u64(s, "extra", &d->extra);
	saved_subsection(s, "deep", true, deep_state, d);
}

static void device_state(void *self, struct saved *s)
{
	struct device *d = self;

	saved_bool(s, "on", &d->on);
	saved_bool(s, "off", &d->off);
	saved_u8(s, "u8", &d->u8);
	saved_u16(s, "u16", &d->u16);
	saved_u32(s, "u32", &d->u32);
	saved_u64(s, "u64", &d->u64);
	saved_bytes(s, "cmos", d->cmos, sizeof(d->cmos));
	saved_blob(s, "blob", d->blob, &d->blob_len, sizeof(d->blob));
	saved_string(s, "serial", d->serial, sizeof(d->serial));
	saved_array(s, "array", d->array, ARRAY_SIZE(d->array), sizeof(d->array[0]), point_state);
	saved_list(s, "list", d->list, &d->list_count, ARRAY_SIZE(d->list), sizeof(d->list[0]), point_state);
	if (saved_subsection(s, "extra", d->has_extra, extra_state, d) && saved_loading(s))
		d->has_extra = true;
}

/* A device with a value of its own in every field. */
static struct device sample(void)
{
	struct device d = {
		.on = true,
		.u8 = 0xa5,
		.u16 = 0xbeef,
		.u32 = 0xdeadbeef,
		.u64 = 0x0123456789abcdef,
		.blob = {9, 8, 7, 0, 6},
		.blob_len = 5,
		.serial = "GLINT-0001",
		.list_count = 2,
		.has_extra = true,
		.extra = UINT64_MAX,
		.deep = {.x = 77, .y = 78, .tags = {1, 2, 3}, .tag_count = 3},
	};

	for (size_t i = 0; i < sizeof(d.cmos); i++)
		d.cmos[i] = (uint8_t)(i * 7);
	for (uint32_t i = 0; i < 3; i++)
		d.array[i] = (struct point){.x = i, .y = UINT64_C(1000) * i, .tags = {(uint8_t)i}, .tag_count = i > 0};
	for (uint32_t i = 0; i < 2; i++)
		d.list[i] = (struct point){.x = 100 + i, .y = UINT64_MAX - i, .tags = {4, 5}, .tag_count = 2};
	return d;
}

/* Saves one unit as a whole stream. */
static int save_one(uint32_t version, saved_body_fn *body, void *self)
{
	int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "unit", version, body, self));
	assert_ok(saved_finish(s));
	rewind_stream(fd);
	return fd;
}

/* Loads that unit, and hands up what came of it. */
static struct error *load_one(int fd, uint32_t version, saved_body_fn *body, void *self)
{
	cleanup_saved struct saved *s = NULL;

	rewind_stream(fd);
	assert_ok(saved_open(fd, MACHINE, &s));
	TRY(saved_unit(s, "unit", version, body, self));
	return saved_finish(s);
}

static void assert_point(const struct point *a, const struct point *b)
{
	assert_int_equal(a->x, b->x);
	assert_int_equal(a->y, b->y);
	assert_int_equal(a->tag_count, b->tag_count);
	assert_memory_equal(a->tags, b->tags, a->tag_count);
}

static void round_trip(void **state)
{
	struct device saved = sample(), loaded = {.list_count = 8, .off = true};
	cleanup_fd int fd = save_one(1, device_state, &saved);

	assert_ok(load_one(fd, 1, device_state, &loaded));
	assert_true(loaded.on);
	assert_false(loaded.off);
	assert_int_equal(loaded.u8, 0xa5);
	assert_int_equal(loaded.u16, 0xbeef);
	assert_int_equal(loaded.u32, 0xdeadbeef);
	assert_int_equal(loaded.u64, 0x0123456789abcdef);
	assert_memory_equal(loaded.cmos, saved.cmos, sizeof(saved.cmos));
	assert_int_equal(loaded.blob_len, 5);
	assert_memory_equal(loaded.blob, saved.blob, sizeof(saved.blob));
	assert_string_equal(loaded.serial, "GLINT-0001");
	for (size_t i = 0; i < 3; i++)
		assert_point(&loaded.array[i], &saved.array[i]);
	assert_int_equal(loaded.list_count, 2);
	for (size_t i = 0; i < 2; i++)
		assert_point(&loaded.list[i], &saved.list[i]);
	assert_true(loaded.has_extra);
	assert_int_equal(loaded.extra, UINT64_MAX);
	assert_point(&loaded.deep, &saved.deep);
}

static void round_trip_empty(void **state)
{
	struct device saved = {0}, loaded = sample();
	cleanup_fd int fd = save_one(1, device_state, &saved);

	loaded.has_extra = false;
	assert_ok(load_one(fd, 1, device_state, &loaded));
	assert_int_equal(loaded.list_count, 0);
	assert_int_equal(loaded.blob_len, 0);
	assert_string_equal(loaded.serial, "");
	assert_false(loaded.has_extra);
	assert_memory_equal(saved.cmos, loaded.cmos, sizeof(saved.cmos));
	assert_point(&loaded.array[2], &saved.array[2]);
}

/* --- small bodies, each with one difference --- */

static bool require_u32;

static void body_u32(void *self, struct saved *s)
{
	saved_u32(s, "first", self);
}

static void body_nothing(void *self, struct saved *s)
{
}

static void body_two(void *self, struct saved *s)
{
	uint32_t *v = self;

	saved_u32(s, "first", &v[0]);
	if (require_u32)
		saved_require(s);
	saved_u32(s, "second", &v[1]);
}

static void body_two_swapped(void *self, struct saved *s)
{
	uint32_t *v = self;

	saved_u32(s, "second", &v[1]);
	saved_u32(s, "first", &v[0]);
}

static void order_is_free(void **state)
{
	uint32_t saved[2] = {1, 2}, loaded[2] = {0};
	cleanup_fd int fd = save_one(1, body_two, saved);

	assert_ok(load_one(fd, 1, body_two_swapped, loaded));
	assert_memory_equal(saved, loaded, sizeof(saved));
}

static void absent_field_keeps_its_value(void **state)
{
	uint32_t saved = 1, loaded[2] = {0, 42};
	cleanup_fd int fd = save_one(1, body_u32, &saved);

	require_u32 = false;
	assert_ok(load_one(fd, 1, body_two, loaded));
	assert_int_equal(loaded[0], 1);
	assert_int_equal(loaded[1], 42);
	require_u32 = true;
	assert_error(load_one(fd, 1, body_two, loaded), "load unit 'unit': field 'second': it is missing");
	cleanup_fd int whole = save_one(1, body_two, (uint32_t[]){5, 6});
	assert_ok(load_one(whole, 1, body_two, loaded));
	assert_int_equal(loaded[1], 6);
	require_u32 = false;
}

static void unknown_field_fails(void **state)
{
	uint32_t saved[2] = {1, 2}, loaded = 0;
	cleanup_fd int fd = save_one(1, body_two, saved);

	assert_error(load_one(fd, 1, body_u32, &loaded), "field 'second': this program does not know it");
	assert_error(load_one(fd, 1, body_nothing, NULL), "field 'first': this program does not know it");
}

static void unknown_field_in_a_group_fails(void **state)
{
	struct device saved = sample();
	cleanup_fd int fd = save_one(1, deep_state, &saved);
	struct device loaded = {0};

	assert_ok(load_one(fd, 1, deep_state, &loaded));
	assert_int_equal(loaded.deep.y, 78);
	assert_error(load_one(fd, 1, body_nothing, NULL), "field 'point'");
}

static void body_u64(void *self, struct saved *s)
{
	saved_u64(s, "first", self);
}

static void body_bytes(void *self, struct saved *s)
{
	saved_bytes(s, "first", self, 4);
}

static void body_bytes_longer(void *self, struct saved *s)
{
	saved_bytes(s, "first", self, 5);
}

static void body_bool(void *self, struct saved *s)
{
	saved_bool(s, "first", self);
}

static void wrong_type_fails(void **state)
{
	static saved_body_fn *const bodies[] = {body_u32, body_u64, body_bytes, body_bool};

	for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
		uint64_t value = 1;
		cleanup_fd int fd = save_one(1, bodies[i], &value);
		for (size_t j = 0; j < ARRAY_SIZE(bodies); j++) {
			if (i == j)
				assert_ok(load_one(fd, 1, bodies[j], &value));
			else
				assert_error(load_one(fd, 1, bodies[j], &value), "field 'first': it is of type ");
		}
	}
}

static void wrong_size_fails(void **state)
{
	uint8_t value[8] = {1, 2, 3, 4, 5, 6};
	cleanup_fd int fd = save_one(1, body_bytes, value);

	memset(value, 9, sizeof(value));
	assert_error(load_one(fd, 1, body_bytes_longer, value), "field 'first': it has 4 bytes where 5 are expected");
	assert_int_equal(value[0], 9);
}

struct buffer {
	char text[16];
	size_t len;
};

static size_t buffer_max;

static void body_string(void *self, struct saved *s)
{
	struct buffer *b = self;

	saved_string(s, "text", b->text, buffer_max);
}

static void body_blob(void *self, struct saved *s)
{
	struct buffer *b = self;

	saved_blob(s, "text", b->text, &b->len, buffer_max);
}

static void limits_of_values(void **state)
{
	struct buffer b = {"fifteen letters", 15};

	buffer_max = 16;
	cleanup_fd int text = save_one(1, body_string, &b);
	cleanup_fd int blob = save_one(1, body_blob, &b);
	assert_ok(load_one(text, 1, body_string, &b));
	assert_ok(load_one(blob, 1, body_blob, &b));
	buffer_max = 15;
	assert_ok(load_one(blob, 1, body_blob, &b));
	assert_error(load_one(text, 1, body_string, &b), "it has 15 bytes, there can be at most 14");
	buffer_max = 14;
	b.len = 3;
	assert_error(load_one(blob, 1, body_blob, &b), "it has 15 bytes, there can be at most 14");
	assert_int_equal(b.len, 3);
}

static size_t list_max;

static void body_list(void *self, struct saved *s)
{
	struct device *d = self;

	saved_list(s, "list", d->list, &d->list_count, list_max, sizeof(d->list[0]), point_state);
}

static void body_array(void *self, struct saved *s)
{
	struct device *d = self;

	saved_array(s, "list", d->list, list_max, sizeof(d->list[0]), point_state);
}

static void limits_of_lists(void **state)
{
	struct device saved = sample(), loaded = {0};

	list_max = 8;
	saved.list_count = 3;
	cleanup_fd int fd = save_one(1, body_list, &saved);
	list_max = 3;
	assert_ok(load_one(fd, 1, body_list, &loaded));
	assert_int_equal(loaded.list_count, 3);
	assert_ok(load_one(fd, 1, body_array, &loaded));
	list_max = 2;
	loaded = (struct device){0};
	assert_error(load_one(fd, 1, body_list, &loaded), "field 'list': it has 3 elements where 0 to 2 are expected");
	assert_int_equal(loaded.list_count, 0);
	assert_error(load_one(fd, 1, body_array, &loaded), "3 elements where 2 to 2");
	list_max = 4;
	assert_error(load_one(fd, 1, body_array, &loaded), "3 elements where 4 to 4");
}

static void body_fails(void *self, struct saved *s)
{
	uint32_t *v = self;

	saved_u32(s, "first", &v[0]);
	if (saved_loading(s) && v[0] > 5)
		saved_fail(s, "index %u is past the end", v[0]);
	saved_u32(s, "second", &v[1]);
}

static void failing_element(void *self, struct saved *s)
{
	saved_u32(s, "value", self);
	if (saved_loading(s) && *(uint32_t *)self == 3)
		saved_fail(s, "three is too much");
}

static void body_failing_list(void *self, struct saved *s)
{
	saved_array(s, "numbers", self, 4, sizeof(uint32_t), failing_element);
}

/* The first error stays, and nothing is loaded after it. */
static void errors_are_sticky(void **state)
{
	uint32_t saved[4] = {6, 2, 3, 4}, loaded[4] = {0};
	cleanup_fd int fd = save_one(1, body_two, saved);
	cleanup_fd int list = save_one(1, body_failing_list, saved);

	assert_error(load_one(fd, 1, body_fails, loaded), "load unit 'unit': index 6 is past the end");
	assert_int_equal(loaded[1], 0);
	memset(loaded, 0, sizeof(loaded));
	assert_error(load_one(list, 1, body_failing_list, loaded), "field 'numbers[2]': three is too much");
	assert_int_equal(loaded[3], 0);
}

static uint32_t seen_version;

static void body_version(void *self, struct saved *s)
{
	uint32_t *v = self;

	seen_version = saved_version(s);
	saved_u32(s, "first", &v[0]);
	if (saved_version(s) >= 2)
		saved_u32(s, "second", &v[1]);
}

static void version_window(void **state)
{
	uint32_t saved[2] = {7, 8}, loaded[2] = {0};
	cleanup_fd int fd1 = save_one(1, body_version, saved);
	cleanup_fd int fd2 = save_one(2, body_version, saved);

	assert_int_equal(seen_version, 2);
	assert_ok(load_one(fd1, 2, body_version, loaded));
	assert_int_equal(seen_version, 1);
	assert_int_equal(loaded[1], 0);
	assert_ok(load_one(fd2, 2, body_version, loaded));
	assert_int_equal(loaded[1], 8);
	assert_error(load_one(fd2, 1, body_version, loaded), "it has version 2, this program knows 1 to 1");
	cleanup_fd int fd0 = save_one(0, body_version, saved);
	assert_error(load_one(fd0, 1, body_version, loaded), "it has version 0");
}

/* --- mistakes and limits while saving --- */

static struct error *try_save(const char *name, saved_body_fn *body, void *self)
{
	cleanup_fd int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, MACHINE, &s));
	struct error *err = saved_unit(s, name, 1, body, self);
	/* A failed stream stays failed. */
	if (err) {
		assert_error(saved_unit(s, "next", 1, body_nothing, NULL), "the stream failed before");
		assert_error(saved_finish(s), "the stream failed before");
	}
	return err;
}

static void body_twice(void *self, struct saved *s)
{
	saved_u32(s, "first", self);
	saved_u32(s, "first", self);
}

static void body_huge(void *self, struct saved *s)
{
	saved_bytes(s, "huge", self, SAVED_UNIT_MAX);
}

static void body_largest(void *self, struct saved *s)
{
	saved_bytes(s, "huge", self, SAVED_UNIT_MAX - SAVED_FIELD_BYTES - strlen("huge"));
}

static void body_depth(void *self, struct saved *s)
{
	unsigned *depth = self;

	if (*depth == 0)
		return;
	(*depth)--;
	saved_subsection(s, "deeper", true, body_depth, depth);
}

static void body_long_name(void *self, struct saved *s)
{
	saved_u32(s, "a name that is longer than any name of a field may be, by one byte", self);
}

static void limits_of_saving(void **state)
{
	cleanup_free uint8_t *huge = calloc(1, SAVED_UNIT_MAX);
	char name[SAVED_NAME_MAX + 2];
	struct buffer b = {"0123456789abcdef", 15};
	uint32_t value = 1;

	memset(name, 'n', sizeof(name));
	name[SAVED_NAME_MAX + 1] = '\0';
	assert_error(try_save(name, body_u32, &value), "a name has 1 to 63 printable ASCII characters");
	assert_error(try_save("", body_u32, &value), "a name has 1 to 63");
	assert_error(try_save("line\nbreak", body_u32, &value), "a name has 1 to 63");
	name[SAVED_NAME_MAX] = '\0';
	assert_ok(try_save(name, body_u32, &value));
	assert_error(try_save("unit", body_twice, &value), "field 'first': it is saved twice");
	assert_error(try_save("unit", body_long_name, &value), "a field's name has 1 to 63");
	assert_error(try_save("unit", body_huge, huge), "the most a unit can hold");
	assert_ok(try_save("unit", body_largest, huge));
	assert_ok(try_save("unit", body_depth, &(unsigned){SAVED_DEPTH_MAX}));
	assert_error(try_save("unit", body_depth, &(unsigned){SAVED_DEPTH_MAX + 1}), "more than 8 deep");
	buffer_max = 16;
	assert_error(try_save("unit", body_string, &b), "field 'text': it has no end");
	buffer_max = 14;
	assert_error(try_save("unit", body_blob, &b), "there can be at most 14");
	list_max = 2;
	assert_error(try_save("unit", body_list, &(struct device){.list_count = 3}), "there can be at most 2");
}

/* Units, types of machines, and the order of records. */
static void records(void **state)
{
	cleanup_fd int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;
	uint32_t a = 1, b = 2;
	char memory[16] = "memory";

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "a", 1, body_u32, &a));
	assert_ok(saved_bulk(s, "ram", memory, sizeof(memory)));
	assert_ok(saved_unit(s, "b", 1, body_u32, &b));
	assert_ok(saved_finish(s));
	assert_error(saved_unit(s, "c", 1, body_u32, &a), "the stream has ended already");
	saved_close(steal_ptr(&s));

	rewind_stream(fd);
	assert_error(saved_open(fd, "glint-q35-1", &s), "it is of a machine of type 'test-machine-1', this one is");
	assert_null(s);
	rewind_stream(fd);
	assert_ok(saved_open(fd, MACHINE, &s));
	assert_error(saved_unit(s, "b", 1, body_u32, &a), "the stream has unit 'a' where this machine has unit 'b'");
	assert_error(saved_unit(s, "a", 1, body_u32, &a), "the stream failed before");
	saved_close(steal_ptr(&s));

	rewind_stream(fd);
	assert_ok(saved_open(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "a", 1, body_u32, &a));
	assert_error(saved_bulk(s, "ram", memory, 15), "the stream has 16 bytes of it, this machine 15");
	saved_close(steal_ptr(&s));

	rewind_stream(fd);
	assert_ok(saved_open(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "a", 1, body_u32, &a));
	assert_error(saved_finish(s), "the stream has bulk 'ram' where this machine has end ''");
}

static void limit_of_records(void **state)
{
	cleanup_fd int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;

	assert_ok(saved_create(fd, MACHINE, &s));
	for (unsigned i = 0; i < SAVED_UNITS_MAX; i++)
		assert_ok(saved_unit(s, "unit", 1, body_nothing, NULL));
	assert_error(saved_unit(s, "unit", 1, body_nothing, NULL), "a stream has at most 8192 units");
}

static void body_calls_unit(void *self, struct saved *s)
{
	struct error *err = saved_unit(s, "inner", 1, body_nothing, NULL);

	*(bool *)self = err != NULL;
	error_free(err);
}

static void no_unit_inside_a_body(void **state)
{
	cleanup_fd int fd = memory_stream("", 0);
	cleanup_saved struct saved *s = NULL;
	bool refused = false;

	assert_ok(saved_create(fd, MACHINE, &s));
	error_free(saved_unit(s, "outer", 1, body_calls_unit, &refused));
	assert_true(refused);
	assert_error(saved_finish(s), "the stream failed before");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),          cmocka_unit_test(round_trip_empty),
		cmocka_unit_test(order_is_free),       cmocka_unit_test(absent_field_keeps_its_value),
		cmocka_unit_test(unknown_field_fails), cmocka_unit_test(unknown_field_in_a_group_fails),
		cmocka_unit_test(wrong_type_fails),    cmocka_unit_test(wrong_size_fails),
		cmocka_unit_test(limits_of_values),    cmocka_unit_test(limits_of_lists),
		cmocka_unit_test(errors_are_sticky),   cmocka_unit_test(version_window),
		cmocka_unit_test(limits_of_saving),    cmocka_unit_test(records),
		cmocka_unit_test(limit_of_records),    cmocka_unit_test(no_unit_inside_a_body),
	};

	return cmocka_run_group_tests_name("saved", tests, NULL, NULL);
}
