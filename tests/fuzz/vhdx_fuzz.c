/* Fuzzing of VHDX images; see image_fuzz.h. */
#include "image_fuzz.h"
#include "image_seal.h"

static const struct image_fuzz fuzz = {
	.format = "vhdx",
	.reseal = seal_vhdx,
	.seeds = {{"fixed", "fixed", 0, false},
		  {"dynamic", "dynamic", MIB, false},
		  {"log", "dynamic", MIB, true},
		  {"child", "differencing", MIB, false}},
};

IMAGE_FUZZ(fuzz)
