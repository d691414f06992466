/*
 * Unit tests of the way from keysyms to keys.
 */
#include "screen/screen.h"

#include <linux/input-event-codes.h>
#include <rfb/keysym.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* Every character that a keyboard can make has a key, and no two unshifted ones the same. */
static void printable(void **state)
{
	bool taken[KEY_CNT] = {};

	(void)state;
	for (uint32_t c = ' '; c <= '~'; c++)
		assert_in_range(screen_key(c), KEY_ESC, KEY_SPACE);
	for (const char *c = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./ "; *c; c++) {
		assert_false(taken[screen_key((uint32_t)*c)]);
		taken[screen_key((uint32_t)*c)] = true;
	}
}

static void pairs(void **state)
{
	static const struct {
		uint32_t keysym;
		unsigned code;
	} some[] = {
		{'a', KEY_A},           {'A', KEY_A},
		{'z', KEY_Z},           {'0', KEY_0},
		{')', KEY_0},           {'~', KEY_GRAVE},
		{'\\', KEY_BACKSLASH},  {'|', KEY_BACKSLASH},
		{'"', KEY_APOSTROPHE},  {'?', KEY_SLASH},
		{'_', KEY_MINUS},       {XK_F1, KEY_F1},
		{XK_F10, KEY_F10},      {XK_F11, KEY_F11},
		{XK_Return, KEY_ENTER}, {XK_Delete, KEY_DELETE},
		{XK_KP_7, KEY_KP7},     {XK_Alt_R, KEY_RIGHTALT},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++)
		assert_int_equal(screen_key(some[i].keysym), some[i].code);
	assert_int_equal(screen_key(0), 0);
	assert_int_equal(screen_key(0x7f), 0);
	assert_int_equal(screen_key(0xe4), 0);
	assert_int_equal(screen_key(UINT32_MAX), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(printable), cmocka_unit_test(pairs)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
