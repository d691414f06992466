/*
 * Interrupts; see irq.h. Touches the VM's KVM descriptor and one eventfd per MSI.
 *
 * KVM takes the whole routing table at once, so a change of one route writes all of them: the fixed routes of the 24
 * lines, then each bound MSI. That is slow (KVM waits for a grace period) and rare (a guest sets up its vectors once).
 */
#include "vmm/cpu/irq.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "saved/saved.h"

#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PIC_PINS 8

/* The address the identity map page and the TSS of the VM have on Intel: below the firmware, as KVM suggests. */
#define IDENTITY_MAP_ADDRESS 0xfeffc000ull
#define TSS_ADDRESS          0xfeffd000ull

struct error *irqs_init(struct irqs *irqs, int vm_fd)
{
	memset(irqs, 0, sizeof(*irqs));
	irqs->vm_fd = vm_fd;
	pthread_mutex_init(&irqs->lock, NULL);
	if (vm_fd < 0)
		return NULL;
	uint64_t identity = IDENTITY_MAP_ADDRESS;
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
	/* Both addresses matter on Intel without unrestricted guest only; elsewhere KVM takes or refuses them
	 * harmlessly. */
	(void)ioctl(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	(void)ioctl(vm_fd, KVM_SET_TSS_ADDR, TSS_ADDRESS);
	if (ioctl(vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return error_new(errno, "make the interrupt controllers (KVM_CREATE_IRQCHIP)");
	if (ioctl(vm_fd, KVM_CREATE_PIT2, &pit) < 0)
		return error_new(errno, "make the interval timer (KVM_CREATE_PIT2)");
	for (uint32_t i = 0; i < ARRAY_SIZE(irqs->power_on_chip); i++) {
		irqs->power_on_chip[i].chip_id = i;
		if (ioctl(vm_fd, KVM_GET_IRQCHIP, &irqs->power_on_chip[i]) < 0)
			return error_new(errno, "read the interrupt controllers (KVM_GET_IRQCHIP)");
	}
	if (ioctl(vm_fd, KVM_GET_PIT2, &irqs->power_on_pit) < 0)
		return error_new(errno, "read the interval timer (KVM_GET_PIT2)");
	return NULL;
}

struct error *irqs_reset(struct irqs *irqs)
{
	if (irqs->vm_fd < 0)
		return NULL;
	for (uint32_t i = 0; i < ARRAY_SIZE(irqs->power_on_chip); i++)
		if (ioctl(irqs->vm_fd, KVM_SET_IRQCHIP, &irqs->power_on_chip[i]) < 0)
			return error_new(errno, "reset the interrupt controllers (KVM_SET_IRQCHIP)");
	if (ioctl(irqs->vm_fd, KVM_SET_PIT2, &irqs->power_on_pit) < 0)
		return error_new(errno, "reset the interval timer (KVM_SET_PIT2)");
	/* The chips forgot the levels of their lines. */
	for (unsigned gsi = 0; gsi < IRQ_LINES; gsi++) {
		struct kvm_irq_level level = {.irq = gsi, .level = 1};
		if (irqs->sources[gsi])
			(void)ioctl(irqs->vm_fd, KVM_IRQ_LINE, &level);
	}
	return NULL;
}

void irqs_destroy(struct irqs *irqs)
{
	pthread_mutex_destroy(&irqs->lock);
}

void irq_line(struct irqs *irqs, unsigned gsi, unsigned source, bool high)
{
	if (gsi >= IRQ_LINES || source >= 32)
		return;
	pthread_mutex_lock(&irqs->lock);
	uint32_t before = irqs->sources[gsi];
	uint32_t after = high ? before | 1u << source : before & ~(1u << source);
	irqs->sources[gsi] = after;
	if ((before != 0) != (after != 0) && irqs->vm_fd >= 0) {
		struct kvm_irq_level level = {.irq = gsi, .level = after != 0};
		/* Fails only for a VM that is going away. */
		(void)ioctl(irqs->vm_fd, KVM_IRQ_LINE, &level);
	}
	pthread_mutex_unlock(&irqs->lock);
}

/* The table of KVM's routes, built anew from the books. The lock is held. */
struct routing {
	struct kvm_irq_routing head;
	struct kvm_irq_routing_entry entry[2 * PIC_PINS + IRQ_LINES + IRQ_MSI_MAX];
};

static void route_line(struct routing *table, unsigned gsi, unsigned chip, unsigned pin)
{
	table->entry[table->head.nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = chip, .pin = pin}};
}

static struct error *write_routes(struct irqs *irqs)
{
	/* One table for the process, under the lock of the VM: 100 KiB that need not stand on a stack. */
	static struct routing table;

	table.head = (struct kvm_irq_routing){0};
	for (unsigned gsi = 0; gsi < IRQ_LINES; gsi++) {
		if (gsi < PIC_PINS)
			route_line(&table, gsi, KVM_IRQCHIP_PIC_MASTER, gsi);
		else if (gsi < 2 * PIC_PINS)
			route_line(&table, gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS);
		/* The timer's IRQ 0 is wired to pin 2, as on every PC (MADT says the same). */
		if (gsi != 2)
			route_line(&table, gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi);
	}
	for (unsigned i = 0; i < IRQ_MSI_MAX; i++) {
		const struct msi *msi = irqs->msi[i];
		if (!msi || !msi->bound)
			continue;
		table.entry[table.head.nr++] =
			(struct kvm_irq_routing_entry){.gsi = msi->gsi,
						       .type = KVM_IRQ_ROUTING_MSI,
						       .u.msi = {.address_lo = (uint32_t)msi->address,
								 .address_hi = (uint32_t)(msi->address >> 32),
								 .data = msi->data}};
	}
	if (irqs->vm_fd >= 0 && ioctl(irqs->vm_fd, KVM_SET_GSI_ROUTING, &table) < 0)
		return error_new(errno, "route %u interrupts (KVM_SET_GSI_ROUTING)", table.head.nr);
	return NULL;
}

struct error *msi_init(struct msi *msi, struct irqs *irqs)
{
	*msi = (struct msi){.irqs = irqs, .event_fd = -1};
	cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return error_new(errno, "make an interrupt's eventfd");
	pthread_mutex_lock(&irqs->lock);
	unsigned i = 0;
	while (i < IRQ_MSI_MAX && irqs->msi[i])
		i++;
	if (i < IRQ_MSI_MAX) {
		irqs->msi[i] = msi;
		msi->gsi = IRQ_LINES + i;
		msi->event_fd = steal_fd(&fd);
	}
	pthread_mutex_unlock(&irqs->lock);
	return i < IRQ_MSI_MAX ? NULL : error_new(ENOSPC, "make an interrupt: %d are in use", IRQ_MSI_MAX);
}

static struct error *set_irqfd(struct msi *msi, bool on)
{
	struct kvm_irqfd irqfd = {
		.fd = (uint32_t)msi->event_fd, .gsi = msi->gsi, .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN};

	if (msi->irqs->vm_fd >= 0 && ioctl(msi->irqs->vm_fd, KVM_IRQFD, &irqfd) < 0)
		return error_new(errno, "%s interrupt %u (KVM_IRQFD)", on ? "bind" : "unbind", msi->gsi);
	return NULL;
}

static void unbind_locked(struct msi *msi)
{
	if (!msi->bound)
		return;
	msi->bound = false;
	error_free(set_irqfd(msi, false));
}

static struct error *bind_locked(struct msi *msi, uint64_t address, uint32_t data)
{
	bool same = msi->address == address && msi->data == data;

	if (msi->bound && same)
		return NULL;
	bool was_bound = msi->bound;
	msi->address = address;
	msi->data = data;
	msi->bound = true;
	struct error *err = write_routes(msi->irqs);
	if (!err && !was_bound)
		err = set_irqfd(msi, true);
	if (err) {
		if (was_bound)
			error_free(set_irqfd(msi, false));
		msi->bound = false;
	}
	return err;
}

void msi_destroy(struct msi *msi)
{
	if (!msi->irqs || msi->event_fd < 0)
		return;
	pthread_mutex_lock(&msi->irqs->lock);
	unbind_locked(msi);
	msi->irqs->msi[msi->gsi - IRQ_LINES] = NULL;
	pthread_mutex_unlock(&msi->irqs->lock);
	close_fd(&msi->event_fd);
}

struct error *msi_bind(struct msi *msi, uint64_t address, uint32_t data)
{
	pthread_mutex_lock(&msi->irqs->lock);
	struct error *err = bind_locked(msi, address, data);
	pthread_mutex_unlock(&msi->irqs->lock);
	return err;
}

void msi_unbind(struct msi *msi)
{
	pthread_mutex_lock(&msi->irqs->lock);
	unbind_locked(msi);
	pthread_mutex_unlock(&msi->irqs->lock);
}

bool msi_pending(const struct msi *msi)
{
	struct pollfd p = {.fd = msi->event_fd, .events = POLLIN};

	return !msi->bound && poll(&p, 1, 0) == 1;
}

void msi_clear(struct msi *msi)
{
	uint64_t count;

	/* EAGAIN: nothing was pending. */
	if (read(msi->event_fd, &count, sizeof(count)) < 0)
		return;
}

void msi_signal(const struct msi *msi)
{
	uint64_t one = 1;

	/* EAGAIN would mean 2^64 - 2 undelivered signals. */
	if (write(msi->event_fd, &one, sizeof(one)) < 0)
		return;
}

/* One in-kernel chip, as the bytes of its KVM structure: that structure is a kernel ABI and never changes. */
struct chip {
	int vm_fd;
	uint32_t id;
	struct kvm_irqchip chip;
};

static void chip_state(void *self, struct saved *s)
{
	struct chip *c = self;

	c->chip.chip_id = c->id;
	if (!saved_loading(s) && ioctl(c->vm_fd, KVM_GET_IRQCHIP, &c->chip) < 0)
		saved_fail(s, "KVM_GET_IRQCHIP: %s", strerror(errno));
	saved_require(s);
	saved_bytes(s, "kvm", &c->chip.chip,
		    c->id == KVM_IRQCHIP_IOAPIC ? sizeof(c->chip.chip.ioapic) : sizeof(c->chip.chip.pic));
	if (saved_loading(s) && ioctl(c->vm_fd, KVM_SET_IRQCHIP, &c->chip) < 0)
		saved_fail(s, "KVM_SET_IRQCHIP: %s", strerror(errno));
}

static void pit_state(void *self, struct saved *s)
{
	struct irqs *irqs = self;
	struct kvm_pit_state2 pit = {0};

	if (!saved_loading(s) && ioctl(irqs->vm_fd, KVM_GET_PIT2, &pit) < 0)
		saved_fail(s, "KVM_GET_PIT2: %s", strerror(errno));
	saved_require(s);
	saved_bytes(s, "kvm", &pit, sizeof(pit));
	if (saved_loading(s) && ioctl(irqs->vm_fd, KVM_SET_PIT2, &pit) < 0)
		saved_fail(s, "KVM_SET_PIT2: %s", strerror(errno));
}

static void source_state(void *self, struct saved *s)
{
	saved_u32(s, "sources", self);
}

void irqs_state(void *self, struct saved *s)
{
	static const struct {
		const char *name;
		uint32_t id;
	} chips[] = {{"pic-master", KVM_IRQCHIP_PIC_MASTER},
		     {"pic-slave", KVM_IRQCHIP_PIC_SLAVE},
		     {"ioapic", KVM_IRQCHIP_IOAPIC}};
	struct irqs *irqs = self;

	saved_array(s, "lines", irqs->sources, IRQ_LINES, sizeof(irqs->sources[0]), source_state);
	if (irqs->vm_fd < 0)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(chips); i++) {
		struct chip chip = {.vm_fd = irqs->vm_fd, .id = chips[i].id};
		saved_require(s);
		saved_subsection(s, chips[i].name, true, chip_state, &chip);
	}
	saved_require(s);
	saved_subsection(s, "pit", true, pit_state, irqs);
}
