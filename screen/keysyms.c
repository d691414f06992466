/*
 * X11 keysyms, as RFB sends them, to keys; see screen.h. A viewer sends the shift key itself, so that "A" and "a" are
 * one key. The guest should have a US layout, or one where the same keys make the same letters. Touches nothing.
 */
#include "screen/screen.h"

#include "base/util.h"

#include <linux/input-event-codes.h>
#include <rfb/keysym.h>
#include <string.h>

/* Printable ASCII in rows of a keyboard: two characters for each key, in the order of the codes from @first. */
static const struct {
	unsigned first;
	const char *plain, *shifted;
} rows[] = {
	{KEY_1, "1234567890-=", "!@#$%^&*()_+"},
	{KEY_Q, "qwertyuiop[]", "QWERTYUIOP{}"},
	{KEY_A, "asdfghjkl;'`", "ASDFGHJKL:\"~"},
	{KEY_BACKSLASH, "\\zxcvbnm,./", "|ZXCVBNM<>?"},
	{KEY_SPACE, " ", " "},
};

static const struct {
	uint32_t keysym;
	unsigned code;
} others[] = {
	{XK_BackSpace, KEY_BACKSPACE},
	{XK_Tab, KEY_TAB},
	{XK_ISO_Left_Tab, KEY_TAB},
	{XK_Return, KEY_ENTER},
	{XK_Escape, KEY_ESC},
	{XK_Delete, KEY_DELETE},
	{XK_Home, KEY_HOME},
	{XK_Left, KEY_LEFT},
	{XK_Up, KEY_UP},
	{XK_Right, KEY_RIGHT},
	{XK_Down, KEY_DOWN},
	{XK_Page_Up, KEY_PAGEUP},
	{XK_Page_Down, KEY_PAGEDOWN},
	{XK_End, KEY_END},
	{XK_Insert, KEY_INSERT},
	{XK_Menu, KEY_COMPOSE},
	{XK_Pause, KEY_PAUSE},
	{XK_Break, KEY_PAUSE},
	{XK_Scroll_Lock, KEY_SCROLLLOCK},
	{XK_Num_Lock, KEY_NUMLOCK},
	{XK_Caps_Lock, KEY_CAPSLOCK},
	{XK_Print, KEY_SYSRQ},
	{XK_Sys_Req, KEY_SYSRQ},
	{XK_Shift_L, KEY_LEFTSHIFT},
	{XK_Shift_R, KEY_RIGHTSHIFT},
	{XK_Control_L, KEY_LEFTCTRL},
	{XK_Control_R, KEY_RIGHTCTRL},
	{XK_Alt_L, KEY_LEFTALT},
	{XK_Alt_R, KEY_RIGHTALT},
	{XK_Meta_L, KEY_LEFTALT},
	{XK_Meta_R, KEY_RIGHTALT},
	{XK_Mode_switch, KEY_RIGHTALT},
	{XK_ISO_Level3_Shift, KEY_RIGHTALT},
	{XK_Super_L, KEY_LEFTMETA},
	{XK_Super_R, KEY_RIGHTMETA},
	{XK_F11, KEY_F11},
	{XK_F12, KEY_F12},
	{XK_KP_Enter, KEY_KPENTER},
	{XK_KP_Home, KEY_KP7},
	{XK_KP_Up, KEY_KP8},
	{XK_KP_Page_Up, KEY_KP9},
	{XK_KP_Left, KEY_KP4},
	{XK_KP_Begin, KEY_KP5},
	{XK_KP_Right, KEY_KP6},
	{XK_KP_End, KEY_KP1},
	{XK_KP_Down, KEY_KP2},
	{XK_KP_Page_Down, KEY_KP3},
	{XK_KP_Insert, KEY_KP0},
	{XK_KP_Delete, KEY_KPDOT},
	{XK_KP_Multiply, KEY_KPASTERISK},
	{XK_KP_Add, KEY_KPPLUS},
	{XK_KP_Subtract, KEY_KPMINUS},
	{XK_KP_Decimal, KEY_KPDOT},
	{XK_KP_Divide, KEY_KPSLASH},
	{XK_KP_0, KEY_KP0},
	{XK_KP_1, KEY_KP1},
	{XK_KP_2, KEY_KP2},
	{XK_KP_3, KEY_KP3},
	{XK_KP_4, KEY_KP4},
	{XK_KP_5, KEY_KP5},
	{XK_KP_6, KEY_KP6},
	{XK_KP_7, KEY_KP7},
	{XK_KP_8, KEY_KP8},
	{XK_KP_9, KEY_KP9},
};

static unsigned printable(char c)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const char *at = strchr(rows[i].plain, c);
		if (at)
			return rows[i].first + (unsigned)(at - rows[i].plain);
		at = strchr(rows[i].shifted, c);
		if (at)
			return rows[i].first + (unsigned)(at - rows[i].shifted);
	}
	return 0;
}

unsigned screen_key(uint32_t keysym)
{
	if (keysym >= ' ' && keysym <= '~')
		return printable((char)keysym);
	if (keysym >= XK_F1 && keysym <= XK_F10)
		return KEY_F1 + (keysym - XK_F1);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		if (others[i].keysym == keysym)
			return others[i].code;
	return 0;
}
