/* Fuzzing of VHD images; see image_fuzz.h. */
#include "image_fuzz.h"
#include "image_seal.h"

static const struct image_fuzz fuzz = {
	.format = "vhd",
	.reseal = seal_vhd,
	.seeds = {{"fixed", "fixed", 0, false},
		  {"dynamic", "dynamic", 512 * KIB, false},
		  {"child", "differencing", 512 * KIB, false}},
};

IMAGE_FUZZ(fuzz)
