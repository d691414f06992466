/* Time by the ACPI power management timer, and the ways out: soft off and reset. */
#include "guest.h"

#define PM_BASE 0x600

uint32_t pm_timer(void)
{
	return inl(PM_BASE + 8) & 0xffffff;
}

struct deadline deadline_in(uint64_t us)
{
	return (struct deadline){us * PM_TIMER_HZ / 1000000, pm_timer()};
}

bool deadline_over(struct deadline *d)
{
	uint32_t now = pm_timer(), passed = (now - d->last) & 0xffffff;

	d->last = now;
	d->left = passed < d->left ? d->left - passed : 0;
	return d->left == 0;
}

void wait_us(uint64_t us)
{
	struct deadline d = deadline_in(us);

	while (!deadline_over(&d))
		relax();
}

void power_off(void)
{
	irq_off();
	outw(PM_BASE + 4, 0x2000);
	for (;;)
		__asm__ volatile("hlt");
}

void reset_machine(void)
{
	irq_off();
	outb(0xcf9, 6);
	for (;;)
		__asm__ volatile("hlt");
}
