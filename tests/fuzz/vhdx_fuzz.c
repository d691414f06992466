/*
 * Fuzzing of VHDX images; see image_fuzz.h. Resealing makes the checksums of both headers and both region tables right
 * ([MS-VHDX] 2.2.2 and 2.2.3).
 */
#include "image_fuzz.h"

#include "saved/crc32c.h"

static void seal(uint8_t *raw, size_t len)
{
	memset(raw + 4, 0, 4);
	uint32_t sum = crc32c(0, raw, len);
	memcpy(raw + 4, &sum, 4);
}

static void reseal(uint8_t *image, size_t size)
{
	if (size < MIB)
		return;
	seal(image + 64 * KIB, 4 * KIB);
	seal(image + 128 * KIB, 4 * KIB);
	seal(image + 192 * KIB, 64 * KIB);
	seal(image + 256 * KIB, 64 * KIB);
}

static const struct image_fuzz fuzz = {
	.format = "vhdx",
	.reseal = reseal,
	.seeds = {{"fixed", "fixed", 0}, {"dynamic", "dynamic", MIB}, {"child", "differencing", MIB}},
};

IMAGE_FUZZ(fuzz)
