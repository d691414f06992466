/*
 * Names of keys; see keys.h. A letter or digit is the key with it on a US keyboard. Touches nothing.
 */
#include "vmm/display/keys.h"

#include "base/util.h"

#include <errno.h>
#include <linux/input-event-codes.h>
#include <string.h>

static const struct {
	const char *name;
	unsigned code;
} keys[] = {
	{"a", KEY_A},
	{"b", KEY_B},
	{"c", KEY_C},
	{"d", KEY_D},
	{"e", KEY_E},
	{"f", KEY_F},
	{"g", KEY_G},
	{"h", KEY_H},
	{"i", KEY_I},
	{"j", KEY_J},
	{"k", KEY_K},
	{"l", KEY_L},
	{"m", KEY_M},
	{"n", KEY_N},
	{"o", KEY_O},
	{"p", KEY_P},
	{"q", KEY_Q},
	{"r", KEY_R},
	{"s", KEY_S},
	{"t", KEY_T},
	{"u", KEY_U},
	{"v", KEY_V},
	{"w", KEY_W},
	{"x", KEY_X},
	{"y", KEY_Y},
	{"z", KEY_Z},
	{"0", KEY_0},
	{"1", KEY_1},
	{"2", KEY_2},
	{"3", KEY_3},
	{"4", KEY_4},
	{"5", KEY_5},
	{"6", KEY_6},
	{"7", KEY_7},
	{"8", KEY_8},
	{"9", KEY_9},
	{"f1", KEY_F1},
	{"f2", KEY_F2},
	{"f3", KEY_F3},
	{"f4", KEY_F4},
	{"f5", KEY_F5},
	{"f6", KEY_F6},
	{"f7", KEY_F7},
	{"f8", KEY_F8},
	{"f9", KEY_F9},
	{"f10", KEY_F10},
	{"f11", KEY_F11},
	{"f12", KEY_F12},
	{"ctrl", KEY_LEFTCTRL},
	{"alt", KEY_LEFTALT},
	{"altgr", KEY_RIGHTALT},
	{"shift", KEY_LEFTSHIFT},
	{"meta", KEY_LEFTMETA},
	{"menu", KEY_COMPOSE},
	{"enter", KEY_ENTER},
	{"esc", KEY_ESC},
	{"tab", KEY_TAB},
	{"space", KEY_SPACE},
	{"backspace", KEY_BACKSPACE},
	{"delete", KEY_DELETE},
	{"insert", KEY_INSERT},
	{"home", KEY_HOME},
	{"end", KEY_END},
	{"pageup", KEY_PAGEUP},
	{"pagedown", KEY_PAGEDOWN},
	{"up", KEY_UP},
	{"down", KEY_DOWN},
	{"left", KEY_LEFT},
	{"right", KEY_RIGHT},
	{"capslock", KEY_CAPSLOCK},
	{"print", KEY_SYSRQ},
	{"pause", KEY_PAUSE},
	{"minus", KEY_MINUS},
	{"dot", KEY_DOT},
	{"comma", KEY_COMMA},
	{"slash", KEY_SLASH},
	{"backslash", KEY_BACKSLASH},
	{"semicolon", KEY_SEMICOLON},
};

static unsigned find(const char *name, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (strlen(keys[i].name) == len && memcmp(keys[i].name, name, len) == 0)
			return keys[i].code;
	return 0;
}

struct error *keys_parse(const char *text, unsigned code[KEYS_AT_ONCE], unsigned *count)
{
	*count = 0;
	for (const char *at = text;; at++) {
		size_t len = strcspn(at, "-");
		unsigned found = find(at, len);
		if (!found)
			return error_hint(error_new(EINVAL, "'%.*s' is no key", (int)MIN(len, (size_t)32), at),
					  "keys have names like ctrl, alt, delete, a, 1, f1, enter, esc, up");
		if (*count == KEYS_AT_ONCE)
			return error_new(EINVAL, "more than %d keys at once", KEYS_AT_ONCE);
		code[(*count)++] = found;
		at += len;
		if (*at == '\0')
			return NULL;
	}
}
