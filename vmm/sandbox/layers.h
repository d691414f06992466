/*
 * The layers that sandbox_process() is made of, in their order. A door for tests, which apply one at a time to prove
 * that each holds without the others; everything else uses sandbox.h.
 */
#ifndef GLINT_VMM_SANDBOX_LAYERS_H
#define GLINT_VMM_SANDBOX_LAYERS_H

#include "base/error.h"

struct sandbox_layer {
	const char *name;
	struct error *(*apply)(void);
};

enum { SANDBOX_LAYERS = 4 };
extern const struct sandbox_layer sandbox_layers[SANDBOX_LAYERS];

#endif
