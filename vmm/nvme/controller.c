/*
 * The controller's registers (NVM Express 1.4, section 3), its PCI function and its life; see nvme.h.
 *
 * Registers are 32 or 64 bits wide and so are accesses of them (3.1); the others read what is there and write nothing.
 * Touches the function, the pin, and its queues through internal.h.
 */
#include "vmm/nvme/internal.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BAR_BYTES 0x4000u

/* --- interrupts --- */

static bool wants_pin(const struct nvme *n, const struct nvme_cq *cq)
{
	return atomic_load(&cq->live) && cq->interrupts && cq->vector < 32 &&
	       !(atomic_load(&n->masked) >> cq->vector & 1) && nvme_cq_pending(cq);
}

void nvme_update_pin(struct nvme *n)
{
	bool high = false;

	pthread_mutex_lock(&n->pin_lock);
	for (unsigned i = 0; i <= n->config.queues && !high; i++)
		high = wants_pin(n, &n->cq[i]);
	pci_intx(&n->pci, high);
	pthread_mutex_unlock(&n->pin_lock);
}

void nvme_interrupt(struct nvme_cq *cq)
{
	cq->posted = false;
	if (!cq->interrupts)
		return;
	if (pci_msix_enabled(&cq->nvme->pci))
		pci_msix_signal(&cq->nvme->pci, cq->vector);
	else
		nvme_update_pin(cq->nvme);
}

/* --- shutdown (7.6.2): what was written is made durable --- */

static void flushed(struct drive_request *r, int res)
{
	struct nvme *n = (struct nvme *)((char *)r - offsetof(struct nvme, flush));

	n->flush_busy--;
	if (res < 0) {
		if (drive_holds(r, -res))
			return; /* until the machine resumes */
		drive_count_error(drive_port(n->config.drive, 0));
	} else {
		drive_count(drive_port(n->config.drive, 0), DISK_FLUSH, 0);
	}
	/* Unless it was reset meanwhile. */
	uint32_t csts = atomic_load(&n->csts);
	while (csts & NVME_CSTS_SHUTTING_DOWN &&
	       !atomic_compare_exchange_weak(&n->csts, &csts, (csts & ~NVME_CSTS_SHUTDOWN) | NVME_CSTS_SHUT_DOWN))
		;
}

void nvme_flush_for_shutdown(void *self)
{
	struct nvme *n = self;

	if (!n->flush_allowed || n->flush_busy || !(atomic_load(&n->csts) & NVME_CSTS_SHUTTING_DOWN) ||
	    !drive_may_take(n->config.drive))
		return;
	n->flush_busy++;
	n->flush = (struct drive_request){.type = DISK_FLUSH, .done = flushed};
	drive_submit(drive_port(n->config.drive, 0), &n->flush);
}

static void drain_flush(void *self)
{
	struct nvme *n = self;

	n->flush_allowed = false;
	iothread_drain(n->config.threads[0], &n->flush_busy);
}

static void allow_flush(void *self)
{
	struct nvme *n = self;

	n->flush_allowed = true;
	if (drive_go_on(n->config.drive))
		nvme_flush_for_shutdown(n);
}

/* --- enabling and resetting (7.3) --- */

void nvme_reset_controller(struct nvme *n)
{
	for (unsigned i = 1; i <= n->config.queues; i++)
		if (atomic_load(&n->cq[i].live))
			nvme_cq_detach(&n->cq[i]);
	iothread_call(n->config.threads[0], drain_flush, n);
	drive_forget(n->config.drive);
	nvme_shadow_forget(n);
	atomic_store(&n->sq[0].live, false);
	atomic_store(&n->cq[0].live, false);
	atomic_store(&n->csts, 0);
	n->event_count = 0;
	memset(n->event, 0, sizeof(n->event));
	memset(n->event_masked, 0, sizeof(n->event_masked));
	n->namespace_changed = false;
	n->queues_set = false;
	nvme_features_reset(n);
	n->flush_allowed = !n->paused;
	nvme_update_pin(n);
}

/* The admin queues as the registers have them. */
static bool start_admin(struct nvme *n)
{
	uint32_t sq_size = (n->aqa & 0xfff) + 1, cq_size = (n->aqa >> 16) + 1;
	struct nvme_sq *sq = &n->sq[0];
	struct nvme_cq *cq = &n->cq[0];

	sq->entries = nvme_queue_memory(n, n->asq, sq_size, sizeof(struct nvme_command));
	cq->entries = nvme_queue_memory(n, n->acq, cq_size, sizeof(struct nvme_completion));
	if (n->cc & NVME_CC_SETTINGS || sq_size < 2 || cq_size < 2 || !sq->entries || !cq->entries)
		return false;
	sq->base = n->asq;
	cq->base = n->acq;
	atomic_store(&sq->size, sq_size);
	atomic_store(&cq->size, cq_size);
	sq->head = 0;
	atomic_store(&sq->tail, 0);
	atomic_store(&cq->head, 0);
	atomic_store(&cq->tail, 0);
	cq->phase = cq->interrupts = true;
	cq->vector = 0;
	atomic_store(&sq->live, true);
	atomic_store(&cq->live, true);
	return true;
}

static void enable(struct nvme *n)
{
	if (start_admin(n)) {
		atomic_fetch_or(&n->csts, NVME_CSTS_READY);
		return;
	}
	atomic_fetch_or(&n->csts, NVME_CSTS_FATAL);
	if (!atomic_flag_test_and_set(&n->complained))
		log_warn("%s: the guest set up no admin queue: CC %#x, AQA %#x, ASQ %#llx, ACQ %#llx", n->config.name,
			 n->cc, n->aqa, (unsigned long long)n->asq, (unsigned long long)n->acq);
}

static void write_cc(struct nvme *n, uint32_t value)
{
	uint32_t old = n->cc;

	n->cc = value & NVME_CC_BITS;
	if (n->cc & NVME_CC_SHUTDOWN && !(old & NVME_CC_SHUTDOWN)) {
		uint32_t csts = atomic_load(&n->csts) & ~NVME_CSTS_SHUTDOWN;
		atomic_store(&n->csts, csts | NVME_CSTS_SHUTTING_DOWN);
		iothread_call(n->config.threads[0], nvme_flush_for_shutdown, n);
	}
	if (old & NVME_CC_ENABLE && !(n->cc & NVME_CC_ENABLE))
		nvme_reset_controller(n);
	else if (!(old & NVME_CC_ENABLE) && n->cc & NVME_CC_ENABLE)
		enable(n);
}

/* --- BAR 0 --- */

static uint64_t capabilities(void)
{
	return (NVME_ENTRIES_MAX - 1) | NVME_CAP_CONTIGUOUS | NVME_CAP_TIMEOUT | NVME_CAP_NVM;
}

/* The 32 bits at a multiple of 4. Doorbells read as zero. */
static uint32_t read_word(const struct nvme *n, uint64_t offset)
{
	switch (offset) {
	case NVME_CAP:
		return (uint32_t)capabilities();
	case NVME_CAP + 4:
		return (uint32_t)(capabilities() >> 32);
	case NVME_VS:
		return NVME_VERSION;
	case NVME_INTMS:
	case NVME_INTMC:
		return atomic_load(&n->masked);
	case NVME_CC:
		return n->cc;
	case NVME_CSTS:
		return atomic_load(&n->csts);
	case NVME_AQA:
		return n->aqa;
	case NVME_ASQ:
		return (uint32_t)n->asq;
	case NVME_ASQ + 4:
		return (uint32_t)(n->asq >> 32);
	case NVME_ACQ:
		return (uint32_t)n->acq;
	case NVME_ACQ + 4:
		return (uint32_t)(n->acq >> 32);
	default:
		return 0;
	}
}

static uint64_t bar_read(void *self, uint64_t offset, unsigned size)
{
	struct nvme *n = self;
	uint64_t value, at = align_down(offset, 4);

	pthread_mutex_lock(&n->lock);
	value = read_word(n, at) | (uint64_t)read_word(n, at + 4) << 32;
	value >>= 8 * (offset & 3);
	pthread_mutex_unlock(&n->lock);
	return value & bus_all_ones(size);
}

static void set_half(uint64_t *reg, bool upper, uint32_t value)
{
	*reg = upper ? (*reg & 0xffffffff) | (uint64_t)value << 32 : (*reg & ~0xffffffffull) | (value & ~0xfffu);
}

static void write_word(struct nvme *n, uint64_t offset, uint32_t value)
{
	switch (offset) {
	case NVME_INTMS:
		atomic_fetch_or(&n->masked, value);
		nvme_update_pin(n);
		break;
	case NVME_INTMC:
		atomic_fetch_and(&n->masked, ~value);
		nvme_update_pin(n);
		break;
	case NVME_CC:
		write_cc(n, value);
		break;
	case NVME_AQA:
		n->aqa = value & 0x0fff0fff;
		break;
	case NVME_ASQ:
	case NVME_ASQ + 4:
		set_half(&n->asq, offset & 4, value);
		break;
	case NVME_ACQ:
	case NVME_ACQ + 4:
		set_half(&n->acq, offset & 4, value);
		break;
	default:
		break;
	}
}

static void ring(struct nvme *n, uint64_t index, uint32_t value)
{
	bool io = index >= 2;
	enum nvme_doorbell how;

	if (!(atomic_load(&n->csts) & NVME_CSTS_READY))
		return;
	how = nvme_ring(n, (unsigned)MIN(index / 2, (uint64_t)UINT16_MAX), index & 1, value);
	if (io && how == NVME_DOORBELL_GOOD)
		return;
	pthread_mutex_lock(&n->lock);
	if (how == NVME_DOORBELL_NO_QUEUE)
		nvme_event(n, NVME_EVENT_BAD_REGISTER);
	else if (how == NVME_DOORBELL_BAD_VALUE)
		nvme_event(n, NVME_EVENT_BAD_VALUE);
	nvme_admin_run(n);
	pthread_mutex_unlock(&n->lock);
}

static void bar_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct nvme *n = self;

	if (size < 4 || !is_aligned(offset, size))
		return;
	if (offset >= NVME_DOORBELLS) {
		if (size == 4)
			ring(n, (offset - NVME_DOORBELLS) / 4, (uint32_t)value & 0xffff);
		return;
	}
	pthread_mutex_lock(&n->lock);
	write_word(n, offset, (uint32_t)value);
	if (size == 8)
		write_word(n, offset + 4, (uint32_t)(value >> 32));
	pthread_mutex_unlock(&n->lock);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

/* --- the function --- */

static void bar_mapped(void *self, unsigned bar, uint64_t address, bool mapped)
{
	struct nvme *n = self;

	if (bar != NVME_BAR)
		return;
	pthread_mutex_lock(&n->lock);
	nvme_bind_doorbells(n, mapped ? address : 0);
	pthread_mutex_unlock(&n->lock);
}

/* The guest changed who may reach memory, or how interrupts go: those who serve queues look again. */
static void function_changed(void *self)
{
	struct nvme *n = self;

	pthread_mutex_lock(&n->lock);
	for (unsigned i = 1; i <= n->config.queues; i++)
		nvme_cq_wake(&n->cq[i]);
	nvme_admin_run(n);
	nvme_update_pin(n);
	pthread_mutex_unlock(&n->lock);
}

static const struct pci_ops pci_ops = {.bar_mapped = bar_mapped, .function_changed = function_changed};

static void resized(void *self)
{
	struct nvme *n = self;

	pthread_mutex_lock(&n->lock);
	n->namespace_changed = true;
	nvme_event(n, NVME_EVENT_NAMESPACE);
	nvme_admin_run(n);
	pthread_mutex_unlock(&n->lock);
}

/* PCI power management (2.3): the states are there, and change nothing. */
static struct error *add_power_management(struct nvme *n)
{
	static const uint8_t body[6] = {[0] = 0x03, /* version 1.2 */[2] = 0x08 /* no soft reset */};
	unsigned at = pci_device_capability(&n->pci, 0x01, body, sizeof(body) + 2);

	if (at == 0)
		return error_new(ENOSPC, "%s: no room for its PCI capabilities", n->config.name);
	n->pci.writable[at + 4] = 0x03;
	return NULL;
}

static struct error *make(struct nvme *n, struct pci_bus *bus, unsigned slot, struct pci_port *port)
{
	/*
	 * Drivers go by the class. No vendor's number is Glint's; Red Hat's 1b36:0010, QEMU's controller, would have
	 * Linux switch write zeroes off and disregard the namespace's ids.
	 */
	static const struct pci_id id = {.vendor = NVME_VENDOR,
					 .device = 0x0001,
					 .subsystem_vendor = NVME_VENDOR,
					 .subsystem = 0x0001,
					 .class_code = 0x010802,
					 .revision = 1};

	pci_device_init(&n->pci, n->config.name, &id, &pci_ops, n);
	for (unsigned i = 0; i <= n->config.queues; i++)
		TRY(nvme_cq_init(n, (uint16_t)i));
	TRY(pci_device_bar(&n->pci, NVME_BAR, PCI_BAR_MEM64, BAR_BYTES, &bar_ops, n));
	TRY(pci_device_msix(&n->pci, NVME_MSIX_BAR, n->config.queues + 1, bus->irqs));
	TRY(add_power_management(n));
	return port ? pci_add_behind(port, &n->pci) : pci_add(bus, slot, &n->pci);
}

struct error *nvme_new(struct nvme **out, const struct nvme_config *config, const struct memory *memory,
		       struct pci_bus *bus, unsigned slot, struct pci_port *port)
{
	if (config->queues == 0 || config->queues > NVME_QUEUES_MAX || config->thread_count == 0)
		return error_new(EINVAL, "%s: %u queues on %u I/O threads: 1 to %d queues are possible", config->name,
				 config->queues, config->thread_count, NVME_QUEUES_MAX);
	struct nvme *n = calloc(1, sizeof(*n));
	if (!n)
		return error_new(ENOMEM, "%s: make the controller", config->name);
	n->config = *config;
	n->memory = memory;
	n->flush_allowed = true;
	for (unsigned i = 0; i <= NVME_QUEUES_MAX; i++)
		n->cq[i].doorbell = -1;
	pthread_mutex_init(&n->lock, NULL);
	pthread_mutex_init(&n->pin_lock, NULL);
	nvme_features_reset(n);
	struct error *err = make(n, port ? port->pci.bus : bus, slot, port);
	if (err) {
		nvme_free(n);
		return error_wrap(err, "make the NVMe controller of %s", config->name);
	}
	drive_on_resize(config->drive, resized, n);
	*out = n;
	return NULL;
}

void nvme_free(struct nvme *n)
{
	if (!n)
		return;
	drive_on_resize(n->config.drive, NULL, NULL);
	for (unsigned i = 1; i <= n->config.queues; i++)
		if (atomic_load(&n->cq[i].live))
			nvme_cq_detach(&n->cq[i]);
	iothread_call(n->config.threads[0], drain_flush, n);
	nvme_shadow_forget(n);
	pci_device_destroy(&n->pci);
	for (unsigned i = 0; i <= n->config.queues; i++)
		nvme_cq_destroy(&n->cq[i]);
	pthread_mutex_destroy(&n->pin_lock);
	pthread_mutex_destroy(&n->lock);
	free(n);
}

/* --- the unit --- */

static struct error *restored(void *self)
{
	struct nvme *n = self;

	n->paused = true;
	n->flush_allowed = false;
	TRY(nvme_find_queues(n));
	return pci_device_restored(&n->pci);
}

static void pause_unit(void *self)
{
	struct nvme *n = self;

	pthread_mutex_lock(&n->lock);
	n->paused = true;
	for (unsigned i = 1; i <= n->config.queues; i++)
		nvme_cq_stop(&n->cq[i]);
	iothread_call(n->config.threads[0], drain_flush, n);
	pthread_mutex_unlock(&n->lock);
}

static void resume(void *self)
{
	struct nvme *n = self;

	pthread_mutex_lock(&n->lock);
	n->paused = false;
	iothread_call(n->config.threads[0], allow_flush, n);
	for (unsigned i = 1; i <= n->config.queues; i++)
		if (atomic_load(&n->cq[i].live))
			nvme_cq_start(&n->cq[i]);
	nvme_admin_run(n);
	nvme_update_pin(n);
	pthread_mutex_unlock(&n->lock);
}

static void power_on(void *self)
{
	struct nvme *n = self;

	pthread_mutex_lock(&n->lock);
	nvme_reset_controller(n);
	n->cc = n->aqa = 0;
	n->asq = n->acq = 0;
	atomic_store(&n->masked, 0);
	pthread_mutex_unlock(&n->lock);
	pci_device_reset(&n->pci);
}

static const struct unit_ops unit_ops = {
	.version = 1,
	.state = nvme_state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};

struct unit nvme_unit(struct nvme *n, const char *name)
{
	struct unit unit = {.ops = &unit_ops, .self = n};

	snprintf(unit.name, sizeof(unit.name), "%s", name);
	return unit;
}
