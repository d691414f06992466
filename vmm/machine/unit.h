/*
 * A unit: one part of a machine that has state. Every device is one (DESIGN 2: born migratable), and so are the vCPUs
 * and the interrupt chips. The machine calls units in the order they were added; names are unique and stable, for they
 * are what a saved stream calls them: "serial0", "rtc", "pci", "disk:ID".
 */
#ifndef GLINT_VMM_MACHINE_UNIT_H
#define GLINT_VMM_MACHINE_UNIT_H

#include "base/error.h"
#include "saved/saved.h"

#include <stdint.h>

struct unit_ops {
	uint32_t version; /* of the saved form; starts at 1 */

	/* Names every field, in both directions. Runs only while the machine is paused. */
	saved_body_fn *state;

	/*
	 * After every unit is loaded: re-establish what lives in the host (bus regions of BARs, MSI routes,
	 * ioeventfds). NULL when there is nothing.
	 */
	struct error *(*restored)(void *self);

	/*
	 * The vCPUs have stopped. Finish or hold what is in flight; when it returns, this unit no longer touches guest
	 * memory or raises interrupts. NULL when the unit does nothing by itself.
	 */
	void (*pause)(void *self);
	void (*resume)(void *self);

	/* Back to the state at power-on (the machine is paused). NULL when there is none. */
	void (*reset)(void *self);
};

struct unit {
	char name[SAVED_NAME_MAX + 1];
	const struct unit_ops *ops;
	void *self;
};

#endif
