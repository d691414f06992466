/*
 * Fuzzing of qcow2 images; see image_fuzz.h. What the corpus begins with was made by qemu-img: both versions, both ways
 * of compression, subclusters, a backing file, snapshots, clusters of several sizes.
 */
#include "image_fuzz.h"

static const struct image_fuzz fuzz = {.format = "qcow2", .readonly = true};

IMAGE_FUZZ(fuzz)
