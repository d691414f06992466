/*
 * The real-time clock and CMOS memory of a PC: a Motorola MC146818A at ports 0x70 (index) and 0x71 (data), with the
 * century at 0x32 and the memory sizes where PC firmware looks for them. Register names and bits are the data sheet's.
 *
 * The guest's clock is the host's (UTC) plus an offset that the guest's writes set. Alarm, periodic and update
 * interrupts are raised on IRQ 8.
 */
#ifndef GLINT_VMM_DEVICES_RTC_H
#define GLINT_VMM_DEVICES_RTC_H

#include "base/loop.h"
#include "vmm/cpu/irq.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"

#define RTC_PORT  0x70
#define RTC_GSI   8
#define RTC_BYTES 128

struct rtc {
	pthread_mutex_t lock;
	struct irqs *irqs;
	struct loop *loop;
	int64_t (*now)(void); /* microseconds since 1970, UTC; tests put their own here after rtc_init() */
	struct loop_source *timer;
	uint8_t index;
	uint8_t cmos[RTC_BYTES]; /* time registers are brought up to date when they are looked at */
	int64_t offset;          /* microseconds, guest's clock less host's */
	int64_t seen;            /* host time up to which events are in register C */
	bool paused;
};

/* @low, @high: bytes of RAM below and above 4 GiB. */
[[nodiscard]] struct error *rtc_init(struct rtc *rtc, struct bus *pio, struct irqs *irqs, struct loop *loop,
				     uint64_t low, uint64_t high);
void rtc_destroy(struct rtc *rtc);

extern const struct unit_ops rtc_unit;

#endif
