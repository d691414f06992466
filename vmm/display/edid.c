/*
 * EDID: what a monitor says of itself, as VESA E-EDID 1.4 lays it out (section 3; the offsets are its table 3.1). One
 * block of 128 bytes: a digital monitor with sRGB colours at 96 dots an inch, whose preferred mode is the first
 * detailed timing. Blanking is that of CVT with reduced blanking, near enough for a monitor that is none. Touches
 * nothing.
 */
#include "vmm/display/display.h"

#include <string.h>

#define H_BLANK    160u
#define H_FRONT    48u
#define H_SYNC     32u
#define V_BLANK    40u
#define V_FRONT    3u
#define V_SYNC     5u
#define REFRESH_HZ 60u

static unsigned millimetres(unsigned pixels)
{
	return pixels * 254 / 960;
}

/* 3.10.2: a detailed timing descriptor. */
static void put_timing(uint8_t d[18], unsigned width, unsigned height)
{
	unsigned clock = (width + H_BLANK) * (height + V_BLANK) / 100 * REFRESH_HZ / 100; /* units of 10 kHz */
	unsigned mm_x = millimetres(width), mm_y = millimetres(height);

	d[0] = (uint8_t)clock;
	d[1] = (uint8_t)(clock >> 8);
	d[2] = (uint8_t)width;
	d[3] = (uint8_t)H_BLANK;
	d[4] = (uint8_t)(width >> 8 << 4 | H_BLANK >> 8);
	d[5] = (uint8_t)height;
	d[6] = (uint8_t)V_BLANK;
	d[7] = (uint8_t)(height >> 8 << 4 | V_BLANK >> 8);
	d[8] = H_FRONT;
	d[9] = H_SYNC;
	d[10] = V_FRONT << 4 | V_SYNC;
	d[12] = (uint8_t)mm_x;
	d[13] = (uint8_t)mm_y;
	d[14] = (uint8_t)(mm_x >> 8 << 4 | mm_y >> 8);
	d[17] = 0x1a; /* digital separate sync, horizontal positive */
}

void display_make_edid(uint8_t edid[DISPLAY_EDID_BYTES], unsigned width, unsigned height)
{
	static const uint8_t magic[8] = {0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00};
	static const uint8_t srgb[10] = {0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54};
	static const char name[13] = "Glint\n       ";
	unsigned sum = 0;

	memset(edid, 0, DISPLAY_EDID_BYTES);
	memcpy(edid, magic, sizeof(magic));
	edid[0x08] = ('G' - '@') << 2 | ('L' - '@') >> 3; /* three letters of 5 bits: GLN */
	edid[0x09] = (uint8_t)(('L' - '@') << 5 | ('N' - '@'));
	edid[0x0a] = 1; /* product */
	edid[0x10] = 0xff;
	edid[0x11] = 2025 - 1990; /* 0xff above: a model year, no week */
	edid[0x12] = 1;
	edid[0x13] = 4;
	edid[0x14] = 0xa5; /* digital, 8 bits a colour, DisplayPort */
	edid[0x15] = (uint8_t)(millimetres(width) / 10);
	edid[0x16] = (uint8_t)(millimetres(height) / 10);
	edid[0x17] = 220 - 100; /* gamma 2.2 */
	edid[0x18] = 0x06;      /* sRGB is the default; the first timing is the native mode */
	memcpy(edid + 0x19, srgb, sizeof(srgb));
	edid[0x23] = 0x21;             /* established: 640x480 and 800x600 at 60 Hz */
	edid[0x24] = 0x08;             /* 1024x768 at 60 Hz */
	memset(edid + 0x26, 0x01, 16); /* standard timings: none */
	put_timing(edid + 0x36, width, height);
	edid[0x48 + 3] = 0xfc; /* display product name */
	memcpy(edid + 0x48 + 5, name, sizeof(name));
	edid[0x5a + 3] = 0x10; /* dummy descriptors */
	edid[0x6c + 3] = 0x10;
	for (unsigned i = 0; i < DISPLAY_EDID_BYTES - 1; i++)
		sum += edid[i];
	edid[DISPLAY_EDID_BYTES - 1] = (uint8_t)-sum;
}
