/*
 * Signatures and releases: a file signed by sbsign (lib/update/signed, by a key that is no more) is good, and with any
 * bit of it changed, or cut anywhere, it is not. What happens to a stick is in tests/disk/test_image_update.py.
 */
#include "update/signature.h"
#include "update/update.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct inputs {
	char *file, *maker, *other;
	size_t len, maker_len, other_len;
};

static void must(struct error *err)
{
	if (err)
		print_error("%s\n", error_text(err));
	assert_null(err);
}

static int load(void **state)
{
	struct inputs *in = calloc(1, sizeof(*in));

	assert_non_null(in);
	must(read_file(SIGNED "/signed.efi", MIB, &in->file, &in->len));
	must(read_file(SIGNED "/maker.crt", MIB, &in->maker, &in->maker_len));
	must(read_file(SIGNED "/other.crt", MIB, &in->other, &in->other_len));
	*state = in;
	return 0;
}

static int unload(void **state)
{
	struct inputs *in = *state;

	free(in->file);
	free(in->maker);
	free(in->other);
	free(in);
	return 0;
}

/* What is said of it; "" when it is good. */
static const char *say(const void *data, size_t len, const char *certificate, size_t certificate_len)
{
	static char text[256];
	/* Of its own, and of its size: what is read beyond it is found. */
	cleanup_free void *copy = malloc(len ? len : 1);
	struct error *err;

	assert_non_null(copy);
	memcpy(copy, data, len);
	err = signature_check(copy, len, "it", certificate, certificate_len);
	snprintf(text, sizeof(text), "%s", err ? error_text(err) : "");
	assert_true(!err || error_hint_text(err));
	error_free(err);
	return text;
}

static void the_maker_is_known(void **state)
{
	const struct inputs *in = *state;
	struct update u = {.data = in->file, .len = in->len, .what = "it"};

	must(update_check(&u, in->maker, in->maker_len));
	assert_string_equal(u.release.version, "1.3");
	assert_int_equal(u.release.security, 2);
	assert_string_equal(say(in->file, in->len, in->other, in->other_len),
			    "it is not signed by the maker of this host (Maker of a test)");
	assert_string_equal(say(in->file, in->len, "nothing", 7), "the maker's certificate cannot be read");
	assert_string_equal(say("", 0, in->maker, in->maker_len), "it is not a program for UEFI");
}

static void any_bit_counts(void **state)
{
	const struct inputs *in = *state;
	unsigned changed = 0;

	for (size_t bit = 0; bit < in->len * 8; bit++) {
		in->file[bit / 8] ^= (char)(1 << bit % 8);
		if (!*say(in->file, in->len, in->maker, in->maker_len)) {
			print_error("bit %zu of byte %zu\n", bit % 8, bit / 8);
			changed++;
		}
		in->file[bit / 8] ^= (char)(1 << bit % 8);
	}
	assert_int_equal(changed, 0);
}

static void all_of_it_must_be_there(void **state)
{
	const struct inputs *in = *state;
	cleanup_free char *longer = calloc(1, in->len + 64);

	for (size_t len = 0; len < in->len; len++)
		assert_string_not_equal(say(in->file, len, in->maker, in->maker_len), "");
	assert_non_null(longer);
	memcpy(longer, in->file, in->len);
	for (size_t more = 1; more <= 64; more++)
		assert_string_not_equal(say(longer, in->len + more, in->maker, in->maker_len), "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_maker_is_known),
		cmocka_unit_test(any_bit_counts),
		cmocka_unit_test(all_of_it_must_be_there),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
