/*
 * Doorbells in memory (NVM Express 1.4, sections 5.7 and 7.13): the guest writes the values of I/O queues' doorbells
 * into a page of its own, and rings only when they pass a value that the controller has put into a second page. What is
 * rung then needs no value, so it is an ioeventfd: no exit to this process.
 *
 * Both pages have the layout of the doorbells. What is read there is bounded each time. Touches the VM's KVM
 * descriptor.
 */
#include "vmm/nvme/internal.h"

#include "base/log.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

static bool set_ioeventfd(struct nvme *n, unsigned queue, bool on)
{
	struct kvm_ioeventfd io = {
		.addr = n->bar + NVME_DOORBELLS + 8ull * queue,
		.len = 0, /* any width, which is also the fast path */
		.fd = n->cq[n->sq[queue].cq_id].doorbell,
		.flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
	};

	return ioctl(n->pci.bus->irqs->vm_fd, KVM_IOEVENTFD, &io) == 0;
}

/* One that cannot be bound still works, by an exit. */
void nvme_bind_doorbell(struct nvme *n, unsigned queue, bool on)
{
	uint64_t bit = 1ull << queue;

	if (!on) {
		if (n->bound & bit)
			(void)set_ioeventfd(n, queue, false);
		n->bound &= ~bit;
		return;
	}
	if (n->bound & bit || !n->bar || !atomic_load(&n->shadow) || n->pci.bus->irqs->vm_fd < 0)
		return;
	if (set_ioeventfd(n, queue, true))
		n->bound |= bit;
	else if (!atomic_flag_test_and_set(&n->complained))
		log_warn("%s: bind the doorbell of queue %u: %s; it will be slow", n->config.name, queue,
			 strerror(errno));
}

static void unbind_all(struct nvme *n)
{
	for (unsigned i = 1; i <= n->config.queues; i++)
		nvme_bind_doorbell(n, i, false);
}

static void bind_all(struct nvme *n)
{
	for (unsigned i = 1; i <= n->config.queues; i++)
		if (atomic_load(&n->sq[i].live))
			nvme_bind_doorbell(n, i, true);
}

void nvme_bind_doorbells(struct nvme *n, uint64_t address)
{
	unbind_all(n);
	n->bar = address;
	bind_all(n);
}

void nvme_shadow_forget(struct nvme *n)
{
	unbind_all(n);
	atomic_store(&n->shadow, NULL);
	atomic_store(&n->shadow_event, NULL);
	n->shadow_base = n->shadow_event_base = 0;
}

void nvme_shadow_find(struct nvme *n)
{
	atomic_store(&n->shadow_event, memory_at(n->memory, n->shadow_event_base, PAGE_BYTES));
	atomic_store(&n->shadow, memory_at(n->memory, n->shadow_base, PAGE_BYTES));
}

/* Queues that are there go on from what was rung. */
uint16_t nvme_set_shadow(struct nvme *n, const struct nvme_command *c)
{
	_Atomic uint32_t *shadow = memory_at(n->memory, c->prp1, PAGE_BYTES);
	_Atomic uint32_t *event = memory_at(n->memory, c->prp2, PAGE_BYTES);

	if (!is_aligned(c->prp1 | c->prp2, PAGE_BYTES) || !shadow || !event)
		return NVME_INVALID_FIELD;
	nvme_shadow_forget(n);
	for (unsigned i = 1; i <= n->config.queues; i++) {
		atomic_store(&shadow[2 * i], atomic_load(&n->sq[i].tail));
		atomic_store(&shadow[2 * i + 1], atomic_load(&n->cq[i].head));
		atomic_store(&event[2 * i], atomic_load(&n->sq[i].tail));
		atomic_store(&event[2 * i + 1], atomic_load(&n->cq[i].head));
	}
	n->shadow_base = c->prp1;
	n->shadow_event_base = c->prp2;
	nvme_shadow_find(n);
	bind_all(n);
	for (unsigned i = 1; i <= n->config.queues; i++)
		nvme_cq_wake(&n->cq[i]);
	return NVME_SUCCESS;
}
