/*
 * ACPI fixed hardware as the ICH9 of a Q35 has it (ACPI 6.5, section 4.8.3): power button, soft off, the power
 * management timer, and a block of general purpose events, with the system control interrupt on GSI 9.
 *
 *     base + 0x00  PM1a_EVT: status, enable      base + 0x08  PM_TMR: 24 bits of 3.579545 MHz
 *     base + 0x04  PM1a_CNT                      base + 0x20  GPE0: 8 bytes of status, 8 of enable
 *
 * There is no system management mode: SCI_EN is set from the start, the FADT's SMI_CMD is 0, and nothing answers for
 * the rest of the chipset's block.
 */
#ifndef GLINT_VMM_DEVICES_PM_H
#define GLINT_VMM_DEVICES_PM_H

#include "base/loop.h"
#include "vmm/cpu/irq.h"
#include "vmm/devices/events.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"

#define PM_BASE       0x600
#define PM_EVENT      0x00 /* offsets from the base */
#define PM_CONTROL    0x04
#define PM_TIMER      0x08
#define PM_GPE0       0x20
#define PM_GPE0_BYTES 16
#define PM_SCI_GSI    9
#define PM_SLEEP_S5   0 /* SLP_TYP of soft off, as _S5 says: OVMF writes it without looking */
#define PM_TIMER_HZ   3579545

struct pm {
	pthread_mutex_t lock;
	struct irqs *irqs;
	struct loop *loop;
	struct machine_events events;
	uint64_t (*now)(void); /* nanoseconds of a monotonic clock; tests put their own here after pm_init() */
	struct loop_source *carry_timer;
	uint16_t status, enable, control;
	uint8_t gpe[PM_GPE0_BYTES];
	uint64_t epoch; /* now() at which the timer stood at epoch_ticks */
	uint64_t epoch_ticks;
	uint64_t seen_ticks; /* carries up to here are in TMR_STS */
	bool paused;
};

[[nodiscard]] struct error *pm_init(struct pm *pm, struct bus *pio, struct irqs *irqs, struct loop *loop,
				    const struct machine_events *events);
void pm_destroy(struct pm *pm);

/* Someone presses the power button: the guest shuts down if it listens. Any thread. */
void pm_power_button(struct pm *pm);

extern const struct unit_ops pm_unit;

#endif
