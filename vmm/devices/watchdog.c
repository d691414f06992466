/*
 * The i6300ESB watchdog; see watchdog.h. Registers are written on vCPU threads, stages end on the main loop: whoever
 * changes the deadline has the loop set its timer, and the timer looks whether the deadline it finds is over.
 *
 * Touches: one host timer, its pin, the machine's events.
 */
#include "vmm/devices/watchdog.h"

#include "base/util.h"

#include <time.h>

#define CONFIG_REG   0x60
#define CONFIG_BITS  0x0027
#define KIND_MASK    0x03 /* of the interrupt: 0 IRQ, 2 SMI, 3 none */
#define KIND_IRQ     0x00
#define FINE_UNIT    0x04
#define OUTPUT_OFF   0x20
#define LOCK_REG     0x68
#define LOCKED       0x01
#define ENABLED      0x02
#define FREE_RUN     0x04 /* stage 1 over and over, for use as a timer */
#define LOCK_BITS    (LOCKED | ENABLED | FREE_RUN)
#define PRELOAD1     0x00
#define PRELOAD2     0x04
#define PRELOAD_BITS 0xfffffu
#define STATUS       0x08 /* general interrupt status: stage 1 ended */
#define RELOAD       0x0c
#define RELOAD_NOW   0x100
#define TIMED_OUT    0x200
#define UNLOCK_1     0x80
#define UNLOCK_2     0x86
#define CLOCK_HZ     33000000ull
#define NS           1000000000ull
#define LEAST_NS     1000000ull /* of a stage: a guest may ask for less, but not make the host's timer spin */

static uint64_t monotonic(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* What follows runs with the lock held, unless it says otherwise. */

static uint64_t cycles_ns(uint64_t cycles)
{
	return cycles / CLOCK_HZ * NS + cycles % CLOCK_HZ * NS / CLOCK_HZ;
}

static uint64_t stage_ns(const struct watchdog *dog)
{
	uint64_t cycles = (uint64_t)dog->preload[dog->stage == 2] << (dog->kind & FINE_UNIT ? 5 : 15);

	return MAX(cycles_ns(cycles), LEAST_NS);
}

static void begin_stage(struct watchdog *dog, unsigned stage)
{
	dog->stage = stage;
	if (stage == 0)
		return;
	dog->left = stage_ns(dog);
	dog->deadline = dog->now() + dog->left;
}

static void update_pin(struct watchdog *dog)
{
	pci_intx(&dog->pci, dog->interrupt && (dog->kind & KIND_MASK) == KIND_IRQ);
}

/* The stage is over. True when the machine's event is due. */
static bool end_stage(struct watchdog *dog)
{
	if (dog->stage == 1) {
		dog->interrupt = true;
		update_pin(dog);
		begin_stage(dog, dog->mode & FREE_RUN ? 1 : 2);
		return false;
	}
	dog->timed_out = true;
	begin_stage(dog, 0);
	return !(dog->kind & OUTPUT_OFF);
}

/* On the loop's thread, without the lock: sets the timer for the deadline there is, or ends what is over. */
static void tick(void *self)
{
	struct watchdog *dog = self;
	bool bark = false;

	pthread_mutex_lock(&dog->lock);
	uint64_t now = dog->now();
	if (dog->stage && !dog->paused && now >= dog->deadline)
		bark = end_stage(dog);
	bool runs = dog->stage && !dog->paused;
	loop_timer_set(dog->timer, runs ? MAX(dog->deadline, now + 1) - now : 0);
	pthread_mutex_unlock(&dog->lock);
	if (bark)
		dog->events.watchdog(dog->events.arg);
}

/* --- registers --- */

static uint32_t reg_value(const struct watchdog *dog, uint64_t reg)
{
	switch (reg) {
	case PRELOAD1:
		return dog->preload[0];
	case PRELOAD2:
		return dog->preload[1];
	case STATUS:
		return dog->interrupt;
	case RELOAD:
		return dog->timed_out ? TIMED_OUT : 0;
	default:
		return 0;
	}
}

static uint64_t bar_read(void *self, uint64_t offset, unsigned size)
{
	struct watchdog *dog = self;
	uint64_t value = 0;

	pthread_mutex_lock(&dog->lock);
	for (unsigned i = 0; i < size; i++) {
		uint64_t at = offset + i;
		value |= (uint64_t)(reg_value(dog, align_down(at, 4)) >> (8 * (at % 4)) & 0xff) << (8 * i);
	}
	pthread_mutex_unlock(&dog->lock);
	return value;
}

/* A write to an opened register. True when the timer is to be set anew. */
static bool open_write(struct watchdog *dog, uint64_t offset, uint32_t value)
{
	if (offset == PRELOAD1 || offset == PRELOAD2) {
		dog->preload[offset == PRELOAD2] = value & PRELOAD_BITS;
		return false;
	}
	if (value & TIMED_OUT)
		dog->timed_out = false;
	if (!(value & RELOAD_NOW) || !(dog->mode & ENABLED))
		return false;
	begin_stage(dog, 1);
	return true;
}

static bool reg_write(struct watchdog *dog, uint64_t offset, uint32_t value)
{
	if (offset == STATUS) {
		if (value & 1)
			dog->interrupt = false;
		update_pin(dog);
		return false;
	}
	if (offset == RELOAD && dog->unlock < 2 && value == (dog->unlock == 0 ? UNLOCK_1 : UNLOCK_2)) {
		dog->unlock++;
		return false;
	}
	bool open = dog->unlock == 2;
	dog->unlock = offset == RELOAD && value == UNLOCK_1 && !open ? 1 : 0;
	return open && (offset == PRELOAD1 || offset == PRELOAD2 || offset == RELOAD) && open_write(dog, offset, value);
}

static void bar_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct watchdog *dog = self;

	pthread_mutex_lock(&dog->lock);
	bool set = reg_write(dog, offset, (uint32_t)value);
	pthread_mutex_unlock(&dog->lock);
	if (set)
		loop_post(dog->loop, tick, dog);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

/* Takes over what the two registers in configuration space say now. True when the timer is to be set anew. */
static bool config_changed(struct watchdog *dog, uint16_t kind, uint8_t mode)
{
	bool was = dog->mode & ENABLED, is = mode & ENABLED;

	dog->kind = kind & CONFIG_BITS;
	dog->mode = mode & LOCK_BITS;
	update_pin(dog);
	if (was == is)
		return false;
	begin_stage(dog, is ? 1 : 0);
	return true;
}

/* The bus's lock is held. These two registers have this part of the configuration space to themselves. */
static bool config_write(void *self, unsigned offset, unsigned size, uint32_t value)
{
	struct watchdog *dog = self;
	uint8_t *config = dog->pci.config;

	if (offset + size <= CONFIG_REG || offset > LOCK_REG)
		return false;
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = dog->pci.writable[offset + i];
		if (offset + i == LOCK_REG && (config[LOCK_REG] & LOCKED))
			mask = 0;
		config[offset + i] = (uint8_t)((config[offset + i] & ~mask) | ((value >> (8 * i)) & mask));
	}
	pthread_mutex_lock(&dog->lock);
	bool set = config_changed(dog, (uint16_t)(config[CONFIG_REG] | config[CONFIG_REG + 1] << 8), config[LOCK_REG]);
	pthread_mutex_unlock(&dog->lock);
	if (set)
		loop_post(dog->loop, tick, dog);
	return true;
}

static const struct pci_ops pci_ops = {.config_write = config_write};

struct error *watchdog_init(struct watchdog *dog, struct pci_bus *bus, unsigned slot, struct loop *loop,
			    const struct machine_events *events)
{
	static const struct pci_id id = {.vendor = 0x8086, .device = 0x25ab, .class_code = 0x088000};

	*dog = (struct watchdog){.loop = loop,
				 .events = *events,
				 .now = monotonic,
				 .preload = {PRELOAD_BITS, PRELOAD_BITS},
				 .paused = true};
	pthread_mutex_init(&dog->lock, NULL);
	TRY(loop_add_timer(loop, tick, dog, &dog->timer));
	pci_device_init(&dog->pci, "watchdog", &id, &pci_ops, dog);
	TRY(pci_device_bar(&dog->pci, 0, PCI_BAR_MEM32, WATCHDOG_BAR_BYTES, &bar_ops, dog));
	dog->pci.writable[CONFIG_REG] = CONFIG_BITS;
	dog->pci.writable[LOCK_REG] = LOCK_BITS;
	return pci_add(bus, slot, &dog->pci);
}

void watchdog_destroy(struct watchdog *dog)
{
	if (!dog->loop)
		return;
	loop_remove(dog->timer);
	pci_device_destroy(&dog->pci);
	pthread_mutex_destroy(&dog->lock);
}

/* --- the unit --- */

static void state(void *self, struct saved *s)
{
	struct watchdog *dog = self;
	uint8_t stage = (uint8_t)dog->stage, unlock = (uint8_t)dog->unlock;

	saved_require(s);
	saved_subsection(s, "pci", true, pci_device_state, &dog->pci);
	saved_u32(s, "preload1", &dog->preload[0]);
	saved_u32(s, "preload2", &dog->preload[1]);
	saved_u8(s, "unlock", &unlock);
	saved_u8(s, "stage", &stage);
	saved_u64(s, "left-ns", &dog->left);
	saved_bool(s, "interrupt", &dog->interrupt);
	saved_bool(s, "timed-out", &dog->timed_out);
	if (!saved_loading(s))
		return;
	if (stage > 2 || unlock > 2)
		saved_fail(s, "stage %u, unlock %u: there are two of each", stage, unlock);
	dog->stage = stage;
	dog->unlock = unlock;
	dog->preload[0] &= PRELOAD_BITS;
	dog->preload[1] &= PRELOAD_BITS;
	const uint8_t *config = dog->pci.config;
	dog->kind = (uint16_t)(config[CONFIG_REG] | config[CONFIG_REG + 1] << 8);
	dog->mode = config[LOCK_REG];
	/* No stage is longer than this. */
	dog->left = MIN(dog->left, cycles_ns((uint64_t)PRELOAD_BITS << 15));
}

static struct error *restored(void *self)
{
	struct watchdog *dog = self;

	return pci_device_restored(&dog->pci);
}

static void pause_unit(void *self)
{
	struct watchdog *dog = self;

	pthread_mutex_lock(&dog->lock);
	if (!dog->paused) {
		uint64_t now = dog->now();
		dog->left = dog->deadline > now ? dog->deadline - now : 0;
		dog->paused = true;
	}
	pthread_mutex_unlock(&dog->lock);
	tick(dog);
}

static void resume(void *self)
{
	struct watchdog *dog = self;

	pthread_mutex_lock(&dog->lock);
	if (dog->paused)
		dog->deadline = dog->now() + dog->left;
	dog->paused = false;
	pthread_mutex_unlock(&dog->lock);
	tick(dog);
}

static void power_on(void *self)
{
	struct watchdog *dog = self;

	pthread_mutex_lock(&dog->lock);
	begin_stage(dog, 0);
	dog->preload[0] = dog->preload[1] = PRELOAD_BITS;
	dog->kind = 0;
	dog->mode = 0;
	dog->unlock = 0;
	dog->interrupt = false;
	pthread_mutex_unlock(&dog->lock);
	pci_device_reset(&dog->pci);
	tick(dog);
}

const struct unit_ops watchdog_unit = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};
