/* Which stick is the host's: names that come and go, and what a boot loader may have said. */
#include "node/keeper/choose.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];
static const uint8_t nobody[16], somebody[16] = {1};

static int make_folder(void **state)
{
	strcpy(folder, "/tmp/choose.XXXXXX");
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r %s", folder);
	return system(command);
}

static const char *in_folder(const char *name)
{
	static char paths[4][128];
	static unsigned next;
	char *path = paths[next++ % 4];

	snprintf(path, 128, "%s/%s", folder, name);
	return path;
}

static void put(const char *name, const void *data, size_t len)
{
	cleanup_fd int fd = open(in_folder(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_null(write_all(fd, data, len, name));
}

static void expect_error(struct error *err, int errnum, const char *words)
{
	assert_non_null(err);
	assert_int_equal(error_errno(err), errnum);
	assert_non_null(strstr(error_text(err), words));
	error_free(err);
}

static void test_one_of_a_folder(void **state)
{
	const char *sticks = in_folder("state"), *booted = in_folder("booted");
	char device[CHOOSE_PATH_MAX];

	assert_int_equal(mkdir(sticks, 0700), 0);
	assert_int_equal(mkdir(booted, 0700), 0);
	sticks = strdup(sticks);
	booted = strdup(booted);
	expect_error(choose_stick(sticks, booted, nobody, device), ENOENT, "find a stick in");
	assert_int_equal(choose_arrivals(sticks, booted, nobody), 0);
	put("state/sda", "", 0);
	put("state/sdb", "", 0);
	/* Neither is what was booted from; nobody knows what was. */
	expect_error(choose_stick(sticks, booted, nobody, device), ENOENT, "2 others there");
	expect_error(choose_stick(sticks, NULL, nobody, device), 0, "several sticks may be the host's");
	expect_error(choose_stick(sticks, booted, somebody, device), 0, "none is the host's");
	assert_int_equal(choose_arrivals(sticks, booted, nobody), 0);
	put("booted/sdb", "", 0);
	assert_null(choose_stick(sticks, booted, nobody, device));
	assert_string_equal(device, in_folder("state/sdb"));
	uint64_t one = choose_arrivals(sticks, booted, nobody), both = choose_arrivals(sticks, NULL, nobody);
	assert_true(one != 0 && one != both && both == choose_arrivals(sticks, booted, somebody));
	/* The same name, another stick. */
	uint64_t before = choose_arrival(device);
	put("new", "", 0);
	assert_int_equal(rename(in_folder("new"), device), 0);
	assert_true(choose_arrival(device) != before && choose_arrivals(sticks, booted, nobody) != one);
	assert_int_equal(unlink(in_folder("state/sda")), 0);
	/* The only one is looked into, whoever's it is. */
	assert_null(choose_stick(sticks, booted, somebody, device));
	assert_int_equal(choose_arrival(in_folder("state/sda")), 0);
	free((char *)(uintptr_t)sticks);
	free((char *)(uintptr_t)booted);
}

static void test_one_partition(void **state)
{
	char device[CHOOSE_PATH_MAX];

	expect_error(choose_stick(in_folder("nothing"), NULL, nobody, device), ENOENT, "find a stick at");
	assert_int_equal(choose_arrivals(in_folder("nothing"), NULL, nobody), 0);
	put("nothing", "", 0);
	assert_null(choose_stick(in_folder("nothing"), NULL, nobody, device));
	assert_string_equal(device, in_folder("nothing"));
	uint64_t empty = choose_arrivals(device, NULL, nobody);
	put("nothing", "x", 1);
	assert_true(empty && choose_arrivals(device, NULL, nobody) != empty);
}

/* The variable's file: four bytes, then @text in UCS-2. */
static void put_variable(const char *text, size_t cut)
{
	uint8_t data[256] = {6};
	size_t len = strlen(text);

	for (size_t i = 0; i < len; i++)
		data[4 + 2 * i] = (uint8_t)text[i];
	put("variable", data, MIN(4 + 2 * len + 2, sizeof(data)) - cut);
}

static void test_what_the_boot_loader_said(void **state)
{
	static const char uuid[] = "0A1B2C3D-1111-4222-8333-444455556666";
	char booted[CHOOSE_PATH_MAX];

	put_variable(uuid, 0);
	choose_booted(in_folder("variable"), "/esp", booted);
	assert_string_equal(booted, "/esp/0a1b2c3d-1111-4222-8333-444455556666");
	/* Without the end, it is whole still; shorter, or with other characters, it says nothing. */
	put_variable(uuid, 2);
	choose_booted(in_folder("variable"), "/esp", booted);
	assert_string_not_equal(booted, "");
	for (size_t cut = 3; cut < 78; cut++) {
		put_variable(uuid, cut);
		choose_booted(in_folder("variable"), "/esp", booted);
		assert_string_equal(booted, "");
	}
	put_variable("../../../../../etc/../../../../../..", 0);
	choose_booted(in_folder("variable"), "/esp", booted);
	assert_string_equal(booted, "");
	put_variable("00000000000000000000000000000000000000000000000000000000000000000000000000", 0);
	choose_booted(in_folder("variable"), "/esp", booted);
	assert_string_equal(booted, "/esp/000000000000000000000000000000000000");
	choose_booted(in_folder("no such"), "/esp", booted);
	assert_string_equal(booted, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_of_a_folder, make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(test_one_partition, make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(test_what_the_boot_loader_said, make_folder, remove_folder),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
