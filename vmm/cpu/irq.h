/*
 * Interrupts: the in-kernel PIC, IOAPIC and LAPICs of KVM, their lines, and message-signalled interrupts by irqfd.
 *
 * A line (GSI 0..23) may have several sources (a shared PCI pin): it is high while any source holds it. An MSI is an
 * eventfd bound to a route; a masked one is unbound, and its eventfd's counter is then the pending bit: a signal while
 * masked is delivered by KVM at the moment the irqfd is bound again.
 *
 * A `struct irqs` with vm_fd -1 (unit tests, fuzzers) keeps the same books and injects nothing.
 */
#ifndef GLINT_VMM_CPU_IRQ_H
#define GLINT_VMM_CPU_IRQ_H

#include "base/error.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>

#define IRQ_LINES   24   /* pins of the IOAPIC */
#define IRQ_MSI_MAX 2048 /* message routes of one VM */

struct irqs {
	int vm_fd;
	pthread_mutex_t lock;
	uint32_t sources[IRQ_LINES]; /* who holds each line, a bit each */
	struct msi *msi[IRQ_MSI_MAX];
	/* What KVM made: the state at power-on. */
	struct kvm_irqchip power_on_chip[3];
	struct kvm_pit_state2 power_on_pit;
};

struct msi {
	struct irqs *irqs;
	int event_fd; /* signalled by writing 1: by this process, vhost, or an iothread */
	unsigned gsi;
	bool bound;
	uint64_t address;
	uint32_t data;
};

/* Makes the in-kernel interrupt controllers and the timer of the VM (before any vCPU). vm_fd -1: books only. */
[[nodiscard]] struct error *irqs_init(struct irqs *irqs, int vm_fd);
void irqs_destroy(struct irqs *irqs);

/*
 * The chips and the timer as at power-on, for a machine whose vCPUs stand still; lines stay as their sources hold them.
 */
[[nodiscard]] struct error *irqs_reset(struct irqs *irqs);

/* Sets whether @source (0..31) holds line @gsi. Level as the guest sees it: any source holds it. Thread safe. */
void irq_line(struct irqs *irqs, unsigned gsi, unsigned source, bool high);

/* Makes an unbound MSI. */
[[nodiscard]] struct error *msi_init(struct msi *msi, struct irqs *irqs);
void msi_destroy(struct msi *msi);

/* Binds to @address and @data as the guest wrote them; rebinding changes the route. A pending signal is delivered. */
[[nodiscard]] struct error *msi_bind(struct msi *msi, uint64_t address, uint32_t data);
void msi_unbind(struct msi *msi);

/* True when a signal waits for an unbound MSI. */
bool msi_pending(const struct msi *msi);

/* Drops what is pending. */
void msi_clear(struct msi *msi);

/* Raises it. Hot: one write to an eventfd, any thread. */
void msi_signal(const struct msi *msi);

/*
 * The state of the in-kernel chips (PIC, IOAPIC, PIT) as a unit body; the LAPICs belong to their vCPUs. MSIs are
 * saved by the PCI devices that own them.
 */
struct saved;
void irqs_state(void *self, struct saved *s);

#endif
