/*
 * Keys and pointer to the devices that the guest listens to; see input.h. Touches those devices.
 */
#include "vmm/display/input.h"

bool input_key(struct input *input, unsigned code, bool down)
{
	return input->running(input->arg) && i8042_key(input->i8042, code, down);
}

/* The mouse tells how far the pointer went on the picture as it is now. */
static void move_mouse(struct input *input, const struct tablet_point *point)
{
	struct display_mode mode = display_mode(input->display);
	int x = (int)(point->x * (uint64_t)mode.width / (TABLET_MAX + 1));
	int y = (int)(point->y * (uint64_t)mode.height / (TABLET_MAX + 1));
	int dx = input->known ? x - input->x : 0, dy = input->known ? y - input->y : 0;

	i8042_mouse(input->i8042, dx, dy, -point->wheel, point->buttons);
	input->x = x;
	input->y = y;
	input->known = true;
}

void input_pointer(struct input *input, const struct tablet_point *point)
{
	if (!input->running(input->arg))
		return;
	if (input->tablet && tablet_in_use(input->tablet))
		tablet_move(input->tablet, point);
	else
		move_mouse(input, point);
}
