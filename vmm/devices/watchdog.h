/*
 * The watchdog timer of an Intel 6300ESB (8086:25ab; its datasheet, section "Watchdog Timer"): two stages that count
 * down one after the other, each from a preload of its own, in units of 2^15 (about 1 ms) or 2^5 (about 1 us) cycles of
 * a 33 MHz clock.
 *
 *     config 60h  kind of interrupt after stage 1, unit, output off         BAR 0 + 00h, 04h  preloads of 20 bits
 *     config 68h  enable, free run, lock (until reset)                      BAR 0 + 08h       stage 1 ended: write 1
 *                                                                           BAR 0 + 0Ch       reload, "timed out"
 *
 * A write to the preloads or the reload register takes effect after 80h and 86h were written to the latter, once. After
 * stage 1 comes the interrupt, on INTA when its kind is IRQ; after stage 2 the machine's event. "Timed out" survives
 * the machine's reset, so that the next kernel knows.
 *
 * The clock is the guest's running time: a paused or saved machine does not expire.
 */
#ifndef GLINT_VMM_DEVICES_WATCHDOG_H
#define GLINT_VMM_DEVICES_WATCHDOG_H

#include "base/loop.h"
#include "vmm/devices/events.h"
#include "vmm/machine/unit.h"
#include "vmm/pci/pci.h"

#define WATCHDOG_BAR_BYTES 4096 /* a page, of which 16 bytes are registers */

struct watchdog {
	pthread_mutex_t lock; /* of what follows; below the PCI bus's */
	struct loop *loop;
	struct machine_events events;
	uint64_t (*now)(void); /* nanoseconds of a monotonic clock; tests put their own here */
	struct loop_source *timer;
	struct pci_device pci;
	uint32_t preload[2];
	uint16_t kind;     /* config 60h */
	uint8_t mode;      /* config 68h */
	unsigned unlock;   /* how far the sequence has come: 2 is open */
	unsigned stage;    /* 0: stopped, 1 or 2 */
	uint64_t deadline; /* while it runs: end of the stage, by now() */
	uint64_t left;     /* while paused: ns until then */
	bool interrupt, timed_out;
	bool paused;
};

/* Puts it into @slot. */
[[nodiscard]] struct error *watchdog_init(struct watchdog *dog, struct pci_bus *bus, unsigned slot, struct loop *loop,
					  const struct machine_events *events);
/* For one that was never made, too, if it is all zeros. */
void watchdog_destroy(struct watchdog *dog);

extern const struct unit_ops watchdog_unit;

#endif
