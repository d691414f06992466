/*
 * The controller's registers (AHCI 1.3, section 3.1), its PCI function, its trays, its life and its saved form; see
 * ahci.h.
 *
 * Registers are 32 bits wide: narrower writes are nobody's, wider ones are two. Touches the function, the interrupt,
 * and its ports through internal.h.
 */
#include "vmm/ahci/internal.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define BAR_BYTES 0x1000u

/* --- interrupts (10.7) --- */

void ahci_interrupt(struct ahci *a, bool event)
{
	for (unsigned i = 0; i < a->config.ports; i++)
		if (a->port[i].is & a->port[i].ie)
			a->is |= 1u << i;
	bool high = a->ghc & AHCI_GHC_INTERRUPTS && a->is;
	if (high != a->high)
		pci_intx(&a->pci, high);
	a->high = high;
	if (high && event)
		pci_msi_signal(&a->pci);
}

/* --- registers --- */

static void reset_controller(struct ahci *a)
{
	a->ghc = a->is = 0;
	for (unsigned i = 0; i < a->config.ports; i++)
		ahci_port_reset(&a->port[i]);
	ahci_interrupt(a, false);
}

static struct ahci_port *port_at(struct ahci *a, uint64_t offset)
{
	uint64_t i = (offset - AHCI_PORTS) / AHCI_PORT_BYTES;

	return offset >= AHCI_PORTS && i < a->config.ports ? &a->port[i] : NULL;
}

/* The 32 bits at a multiple of 4. */
static uint32_t read_word(struct ahci *a, uint64_t offset)
{
	const struct ahci_port *p = port_at(a, offset);

	if (p)
		return ahci_port_read(p, offset % AHCI_PORT_BYTES);
	switch (offset) {
	case AHCI_CAP:
		return AHCI_CAP_VALUE | (AHCI_SLOTS - 1) << 8 | (a->config.ports - 1);
	case AHCI_GHC:
		return a->ghc | AHCI_GHC_ENABLE;
	case AHCI_IS:
		return a->is;
	case AHCI_PI:
		return (1u << a->config.ports) - 1;
	case AHCI_VS:
		return 0x00010300;
	default:
		return 0;
	}
}

static uint64_t bar_read(void *self, uint64_t offset, unsigned size)
{
	struct ahci *a = self;
	uint64_t at = align_down(offset, 4);

	pthread_mutex_lock(&a->lock);
	uint64_t value = read_word(a, at) | (uint64_t)read_word(a, at + 4) << 32;
	pthread_mutex_unlock(&a->lock);
	return value >> 8 * (offset & 3) & bus_all_ones(size);
}

static void write_word(struct ahci *a, uint64_t offset, uint32_t value)
{
	struct ahci_port *p = port_at(a, offset);

	if (p) {
		if (ahci_port_write(p, offset % AHCI_PORT_BYTES, value))
			ahci_port_wake(p);
	} else if (offset == AHCI_GHC) {
		a->ghc = value & AHCI_GHC_INTERRUPTS;
		if (value & AHCI_GHC_RESET)
			reset_controller(a);
		ahci_interrupt(a, true);
	} else if (offset == AHCI_IS) {
		a->is &= ~value;
		ahci_interrupt(a, true); /* for what is not settled yet */
	}
}

static void bar_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct ahci *a = self;

	if (size < 4 || !is_aligned(offset, 4))
		return;
	pthread_mutex_lock(&a->lock);
	write_word(a, offset, (uint32_t)value);
	if (size == 8)
		write_word(a, offset + 4, (uint32_t)(value >> 32));
	pthread_mutex_unlock(&a->lock);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

/* --- trays --- */

void ahci_tray(struct ahci *a, unsigned port, struct ahci_tray *tray)
{
	const struct ahci_port *p = &a->port[port];

	pthread_mutex_lock(&a->lock);
	*tray = (struct ahci_tray){p->medium != NULL, p->tray_open, p->locked};
	pthread_mutex_unlock(&a->lock);
}

struct error *ahci_check_medium(const struct drive *medium)
{
	if (drive_size(medium) >= AHCI_BLOCK)
		return NULL;
	return error_new(EINVAL, "%s: %llu bytes are no image of a CD", drive_name(medium),
			 (unsigned long long)drive_size(medium));
}

/* The lock is held: whether the guest lets the medium go. */
static bool gives(struct ahci_port *p, bool force)
{
	if (!p->medium || !p->locked || force)
		return true;
	p->event = AHCI_EVENT_EJECT;
	return false;
}

struct error *ahci_change(struct ahci *a, unsigned port, struct drive *medium, bool force)
{
	struct ahci_port *p = &a->port[port];

	if (medium)
		TRY(ahci_check_medium(medium));
	ahci_port_stop(p);
	pthread_mutex_lock(&a->lock);
	bool given = gives(p, force);
	if (given) {
		p->medium = medium;
		p->tray_open = !medium;
		p->event = medium ? AHCI_EVENT_NEW : AHCI_EVENT_REMOVED;
		p->attention = medium ? (struct ahci_sense){6, 0x28, 0x00} : (struct ahci_sense){};
	}
	pthread_mutex_unlock(&a->lock);
	if (!a->paused)
		ahci_port_start(p);
	if (given)
		return NULL;
	return error_hint(error_new(EBUSY, "the guest has locked the tray of %s", p->id),
			  "it was asked to let the medium go: try again, or use force");
}

/* --- the function --- */

/* The guest changed who may reach memory, or how interrupts go. */
static void function_changed(void *self)
{
	struct ahci *a = self;

	pthread_mutex_lock(&a->lock);
	ahci_interrupt(a, true);
	for (unsigned i = 0; i < a->config.ports; i++)
		ahci_port_wake(&a->port[i]);
	pthread_mutex_unlock(&a->lock);
}

static const struct pci_ops pci_ops = {.function_changed = function_changed};

static struct error *make(struct ahci *a, struct pci_bus *bus, unsigned slot, unsigned function)
{
	static const struct pci_id ich9 = {.vendor = 0x8086, .device = 0x2922, .class_code = 0x010601, .revision = 2};

	pci_device_init(&a->pci, "AHCI", &ich9, &pci_ops, a);
	a->pci.config[0x90] = 0x40; /* MAP: in AHCI mode (ICH9 datasheet, section 15.1.29) */
	for (unsigned i = 0; i < a->config.ports; i++)
		TRY(ahci_port_init(a, i));
	a->pci.capabilities_end = 0xa0; /* behind MAP and its neighbours */
	TRY(pci_device_bar(&a->pci, AHCI_BAR, PCI_BAR_MEM32, BAR_BYTES, &bar_ops, a));
	TRY(pci_device_msi(&a->pci, bus->irqs));
	return pci_add_function(bus, slot, function, &a->pci);
}

struct error *ahci_new(struct ahci **out, const struct ahci_config *config, const struct memory *memory,
		       struct pci_bus *bus, unsigned slot, unsigned function)
{
	if (config->ports == 0 || config->ports > AHCI_PORTS_MAX || config->thread_count == 0)
		return error_new(EINVAL, "%u CD drives: 1 to %d are possible", config->ports, AHCI_PORTS_MAX);
	for (unsigned i = 0; i < config->ports; i++)
		if (config->medium[i])
			TRY(ahci_check_medium(config->medium[i]));
	struct ahci *a = calloc(1, sizeof(*a));
	if (!a)
		return error_new(ENOMEM, "make the CD drives' controller");
	a->config = *config;
	a->memory = memory;
	for (unsigned i = 0; i < AHCI_PORTS_MAX; i++)
		a->port[i].doorbell = -1;
	pthread_mutex_init(&a->lock, NULL);
	struct error *err = make(a, bus, slot, function);
	if (err) {
		ahci_free(a);
		return error_wrap(err, "make the CD drives' controller");
	}
	*out = a;
	return NULL;
}

void ahci_free(struct ahci *a)
{
	if (!a)
		return;
	pci_device_destroy(&a->pci);
	for (unsigned i = 0; i < a->config.ports; i++)
		ahci_port_destroy(&a->port[i]);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

/* --- the unit --- */

static void sense_state(void *self, struct saved *s)
{
	struct ahci_sense *sense = self;

	saved_u8(s, "key", &sense->key);
	saved_u8(s, "asc", &sense->asc);
	saved_u8(s, "ascq", &sense->ascq);
	sense->key &= 0xf;
}

static void medium_state(void *self, struct saved *s)
{
	drive_state(self, s);
}

/* Both machines have a medium in the tray, or neither. */
static void tray_state(struct ahci_port *p, struct saved *s)
{
	bool medium = p->medium;

	saved_require(s);
	saved_bool(s, "medium", &medium);
	if (medium != (p->medium != NULL))
		saved_fail(s,
			   medium ? "the saved machine has a medium in %s, this one none"
				  : "the saved machine has no medium in %s, this one does (--cdrom id=%s)",
			   p->id, p->id);
	else if (medium)
		saved_subsection(s, "image", true, medium_state, p->medium);
	saved_bool(s, "tray-open", &p->tray_open);
	saved_bool(s, "locked", &p->locked);
	saved_u8(s, "event", &p->event);
	saved_subsection(s, "sense", true, sense_state, &p->sense);
	saved_subsection(s, "attention", true, sense_state, &p->attention);
}

static void port_state(void *self, struct saved *s)
{
	struct ahci_port *p = self;

	saved_require(s);
	saved_u64(s, "clb", &p->clb);
	saved_require(s);
	saved_u64(s, "fb", &p->fb);
	saved_u32(s, "is", &p->is);
	saved_u32(s, "ie", &p->ie);
	saved_require(s);
	saved_u32(s, "cmd", &p->cmd);
	saved_u32(s, "tfd", &p->tfd);
	saved_u32(s, "sig", &p->sig);
	saved_u32(s, "sctl", &p->sctl);
	saved_u32(s, "serr", &p->serr);
	saved_require(s);
	saved_u32(s, "ci", &p->ci);
	saved_u8(s, "current", &p->current);
	saved_bool(s, "halted", &p->halted);
	saved_bool(s, "soft-reset", &p->soft_reset);
	saved_bool(s, "greeting", &p->greeting);
	tray_state(p, s);
	if (p->current >= AHCI_SLOTS || p->event > AHCI_EVENT_REMOVED ||
	    p->cmd & ~(AHCI_CMD_WRITABLE | AHCI_CMD_SPUN_UP))
		saved_fail(s, "port %u: command %u, event %u, PxCMD %#x cannot be", p->index, p->current, p->event,
			   p->cmd);
}

static void state(void *self, struct saved *s)
{
	struct ahci *a = self;

	saved_require(s);
	saved_subsection(s, "pci", true, (saved_body_fn *)pci_device_state, &a->pci);
	saved_require(s);
	saved_u32(s, "ghc", &a->ghc);
	saved_u32(s, "is", &a->is);
	a->ghc &= AHCI_GHC_INTERRUPTS;
	saved_require(s);
	saved_array(s, "ports", a->port, a->config.ports, sizeof(a->port[0]), port_state);
}

static struct error *restored(void *self)
{
	struct ahci *a = self;

	a->paused = true;
	for (unsigned i = 0; i < a->config.ports; i++)
		ahci_port_stop(&a->port[i]);
	TRY(pci_device_restored(&a->pci));
	pthread_mutex_lock(&a->lock);
	a->high = a->pci.intx;
	ahci_interrupt(a, true);
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

static void pause_unit(void *self)
{
	struct ahci *a = self;

	a->paused = true;
	for (unsigned i = 0; i < a->config.ports; i++)
		ahci_port_stop(&a->port[i]);
}

static void resume(void *self)
{
	struct ahci *a = self;

	a->paused = false;
	for (unsigned i = 0; i < a->config.ports; i++)
		ahci_port_start(&a->port[i]);
}

static void power_on(void *self)
{
	struct ahci *a = self;

	pthread_mutex_lock(&a->lock);
	reset_controller(a);
	for (unsigned i = 0; i < a->config.ports; i++) {
		a->port[i].clb = a->port[i].fb = 0;
		if (a->port[i].medium)
			drive_forget(a->port[i].medium);
	}
	pthread_mutex_unlock(&a->lock);
	pci_device_reset(&a->pci);
}

static const struct unit_ops unit_ops = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};

struct unit ahci_unit(struct ahci *a, const char *name)
{
	struct unit unit = {.ops = &unit_ops, .self = a};

	snprintf(unit.name, sizeof(unit.name), "%s", name);
	return unit;
}
