/*
 * Fuzzing of VHD images; see image_fuzz.h. Resealing makes the checksums of both footers and of the header right.
 */
#include "image_fuzz.h"

static void seal(uint8_t *raw, size_t len, size_t at)
{
	uint32_t sum = 0;

	memset(raw + at, 0, 4);
	for (size_t i = 0; i < len; i++)
		sum += raw[i];
	for (int i = 0; i < 4; i++)
		raw[at + (size_t)i] = (uint8_t)(~sum >> (24 - 8 * i));
}

static void reseal(uint8_t *image, size_t size)
{
	if (size < 2048)
		return;
	seal(image, 512, 64);
	seal(image + size - 512, 512, 64);
	seal(image + 512, 1024, 36);
}

static const struct image_fuzz fuzz = {
	.format = "vhd",
	.reseal = reseal,
	.seeds = {{"fixed", "fixed", 0}, {"dynamic", "dynamic", 512 * KIB}, {"child", "differencing", 512 * KIB}},
};

IMAGE_FUZZ(fuzz)
