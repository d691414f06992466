/*
 * ACPI fixed hardware; see pm.h.
 *
 * The timer is arithmetic on the host's monotonic clock. Its carry (bit 23 changes, ACPI 6.5 section 4.8.3.3) is found
 * when somebody looks, and waited for by a host timer only while the guest has enabled its interrupt, which hardly any
 * does. The block is bytes to the guest: each access is taken apart.
 *
 * The timer goes on from its saved value after a restore, as the guest's TSC does, so that a guest comparing the two
 * finds them in step; it runs on during a pause in this process, again as the TSC does.
 *
 * Touches: its line, the machine's events, one host timer.
 */
#include "vmm/devices/pm.h"

#include "base/util.h"

#include <string.h>
#include <time.h>

#define TMR_STS       0x0001
#define PWRBTN_STS    0x0100
#define STATUS_BITS   0xc731 /* TMR, BM, GBL, PWRBTN, SLPBTN, RTC, PCIEXP_WAKE, WAK */
#define ENABLE_BITS   0x0721
#define SCI_EN        0x0001
#define CONTROL_BITS  0x1c02 /* BM_RLD, SLP_TYP; GBL_RLS and SLP_EN read as zero */
#define SLP_TYP_SHIFT 10
#define SLP_EN        0x2000
#define CARRY         (1u << 23)
#define TIMER_MASK    0xffffffu
#define NS            1000000000ull
#define SCI_SOURCE    0
#define GPE0_ENABLE   (PM_GPE0_BYTES / 2)
#define FIXED_BYTES   12

static uint64_t monotonic(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* What follows runs with the lock held, unless it says otherwise. */

static uint64_t ticks(const struct pm *pm)
{
	uint64_t ns = pm->now() - pm->epoch;

	return pm->epoch_ticks + ns / NS * PM_TIMER_HZ + ns % NS * PM_TIMER_HZ / NS;
}

static void update_sci(struct pm *pm)
{
	bool high = pm->status & pm->enable;

	for (unsigned i = 0; i < GPE0_ENABLE; i++)
		high = high || (pm->gpe[i] & pm->gpe[GPE0_ENABLE + i]);
	irq_line(pm->irqs, PM_SCI_GSI, SCI_SOURCE, high);
}

static void arm(void *self);

/* Brings TMR_STS up to date. */
static void catch_up(struct pm *pm)
{
	uint64_t now = ticks(pm);

	if ((now ^ pm->seen_ticks) & ~(uint64_t)(CARRY - 1))
		pm->status |= TMR_STS;
	pm->seen_ticks = now;
}

static void carry(void *self)
{
	struct pm *pm = self;

	pthread_mutex_lock(&pm->lock);
	if (!pm->paused) {
		catch_up(pm);
		update_sci(pm);
	}
	pthread_mutex_unlock(&pm->lock);
	arm(pm);
}

/* Has the host wake us at the next carry if the guest waits for one. On the loop's thread, without the lock. */
static void arm(void *self)
{
	struct pm *pm = self;

	pthread_mutex_lock(&pm->lock);
	bool waits = (pm->enable & TMR_STS) && !(pm->status & TMR_STS) && !pm->paused;
	uint64_t left = CARRY - ticks(pm) % CARRY;
	loop_timer_set(pm->carry_timer, waits ? left * NS / PM_TIMER_HZ + 1 : 0);
	pthread_mutex_unlock(&pm->lock);
}

static uint64_t fixed_read(void *self, uint64_t offset, unsigned size)
{
	struct pm *pm = self;
	uint64_t value = 0;

	pthread_mutex_lock(&pm->lock);
	catch_up(pm);
	update_sci(pm);
	uint32_t words[3] = {pm->status | (uint32_t)pm->enable << 16, pm->control | SCI_EN,
			     (uint32_t)(pm->seen_ticks & TIMER_MASK)};
	pthread_mutex_unlock(&pm->lock);
	for (unsigned i = 0; i < size; i++) {
		uint64_t at = offset + i;
		value |= (uint64_t)(words[at / 4] >> (8 * (at % 4)) & 0xff) << (8 * i);
	}
	return value;
}

static void set_byte(uint16_t *reg, unsigned byte, uint8_t value, uint16_t writable)
{
	uint16_t mask = (uint16_t)(0xff << (8 * byte)) & writable;

	*reg = (uint16_t)((*reg & ~mask) | ((value << (8 * byte)) & mask));
}

/* One byte of the fixed block. Returns true when it asks for soft off. */
static bool write_byte(struct pm *pm, uint64_t offset, uint8_t value)
{
	unsigned high = offset & 1;

	switch (offset & ~1ull) {
	case PM_EVENT:
		pm->status &= (uint16_t)~(value << (8 * high));
		break;
	case PM_EVENT + 2:
		set_byte(&pm->enable, high, value, ENABLE_BITS);
		break;
	case PM_CONTROL:
		set_byte(&pm->control, high, value, CONTROL_BITS);
		return high && ((unsigned)value << 8 & SLP_EN) && pm->control >> SLP_TYP_SHIFT == PM_SLEEP_S5;
	default: /* the upper half of PM1a_CNT is reserved, the timer read-only */
		break;
	}
	return false;
}

static void fixed_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct pm *pm = self;
	bool off = false;

	pthread_mutex_lock(&pm->lock);
	catch_up(pm);
	for (unsigned i = 0; i < size; i++)
		off = write_byte(pm, offset + i, (uint8_t)(value >> (8 * i))) || off;
	update_sci(pm);
	bool waits = pm->enable & TMR_STS;
	pthread_mutex_unlock(&pm->lock);
	if (waits)
		loop_post(pm->loop, arm, pm);
	if (off)
		pm->events.power_off(pm->events.arg);
}

static uint64_t gpe_read(void *self, uint64_t offset, unsigned size)
{
	struct pm *pm = self;
	uint64_t value = 0;

	pthread_mutex_lock(&pm->lock);
	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)pm->gpe[offset + i] << (8 * i);
	pthread_mutex_unlock(&pm->lock);
	return value;
}

static void gpe_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct pm *pm = self;

	pthread_mutex_lock(&pm->lock);
	for (unsigned i = 0; i < size; i++) {
		uint8_t byte = (uint8_t)(value >> (8 * i));
		if (offset + i < GPE0_ENABLE)
			pm->gpe[offset + i] &= (uint8_t)~byte;
		else
			pm->gpe[offset + i] = byte;
	}
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

static const struct bus_ops fixed_ops = {.read = fixed_read, .write = fixed_write};
static const struct bus_ops gpe_ops = {.read = gpe_read, .write = gpe_write};

struct error *pm_init(struct pm *pm, struct bus *pio, struct irqs *irqs, struct loop *loop,
		      const struct machine_events *events)
{
	*pm = (struct pm){.irqs = irqs, .loop = loop, .events = *events, .now = monotonic, .paused = true};
	pthread_mutex_init(&pm->lock, NULL);
	pm->epoch = pm->now();
	TRY(loop_add_timer(loop, carry, pm, &pm->carry_timer));
	TRY(bus_add(pio, PM_BASE, FIXED_BYTES, &fixed_ops, pm));
	return bus_add(pio, PM_BASE + PM_GPE0, PM_GPE0_BYTES, &gpe_ops, pm);
}

void pm_destroy(struct pm *pm)
{
	loop_remove(pm->carry_timer);
	pthread_mutex_destroy(&pm->lock);
}

void pm_power_button(struct pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	pm->status |= PWRBTN_STS;
	if (!pm->paused) /* else resume() raises it */
		update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

static void state(void *self, struct saved *s)
{
	struct pm *pm = self;
	uint32_t timer;

	catch_up(pm);
	timer = (uint32_t)(pm->seen_ticks & TIMER_MASK);
	saved_u16(s, "status", &pm->status);
	saved_u16(s, "enable", &pm->enable);
	saved_u16(s, "control", &pm->control);
	saved_bytes(s, "gpe0", pm->gpe, sizeof(pm->gpe));
	saved_require(s);
	saved_u32(s, "timer", &timer);
	if (!saved_loading(s))
		return;
	pm->status &= STATUS_BITS;
	pm->enable &= ENABLE_BITS;
	pm->control &= CONTROL_BITS;
	pm->epoch = pm->now();
	pm->epoch_ticks = pm->seen_ticks = timer & TIMER_MASK;
}

static void set_paused(struct pm *pm, bool paused)
{
	pthread_mutex_lock(&pm->lock);
	pm->paused = paused;
	if (!paused)
		update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
	arm(pm);
}

static struct error *restored(void *self)
{
	struct pm *pm = self;

	set_paused(pm, pm->paused);
	return NULL;
}

static void resume(void *self)
{
	set_paused(self, false);
}

static void pause_unit(void *self)
{
	set_paused(self, true);
}

static void power_on(void *self)
{
	struct pm *pm = self;

	pthread_mutex_lock(&pm->lock);
	pm->status = pm->enable = pm->control = 0;
	memset(pm->gpe, 0, sizeof(pm->gpe));
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
	arm(pm);
}

const struct unit_ops pm_unit = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};
