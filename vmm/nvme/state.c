/*
 * What is saved of a controller: its registers, features, the events it owes, and its queues by what the guest knows of
 * them. Requests in flight were finished; held ones are their commands. What comes from a stream is checked here, and
 * against memory by nvme_find_queues() once that is there.
 */
#include "vmm/nvme/internal.h"

#include <errno.h>

static void features_state(void *self, struct saved *s)
{
	struct nvme_features *f = self;

	saved_u32(s, "arbitration", &f->arbitration);
	saved_u32(s, "error-recovery", &f->error_recovery);
	saved_u32(s, "coalescing", &f->coalescing);
	saved_u32(s, "atomicity", &f->atomicity);
	saved_u32(s, "events", &f->events);
	saved_u32(s, "over", &f->over);
	saved_u32(s, "under", &f->under);
	saved_bool(s, "write-cache", &f->write_cache);
}

static void vector_state(void *self, struct saved *s)
{
	saved_bool(s, "uncoalesced", self);
}

static void event_state(void *self, struct saved *s)
{
	saved_require(s);
	saved_u16(s, "command", self);
}

static void kind_state(void *self, struct saved *s)
{
	saved_u32(s, "event", self);
}

static void masked_state(void *self, struct saved *s)
{
	saved_bool(s, "masked", self);
}

static void held_state(void *self, struct saved *s)
{
	struct nvme_held *held = self;

	saved_require(s);
	saved_u16(s, "queue", &held->sq_id);
	saved_require(s);
	saved_bytes(s, "command", &held->command, sizeof(held->command));
}

/* A number that other threads read, in both directions. */
static void saved_atomic(struct saved *s, const char *name, _Atomic uint32_t *value)
{
	uint32_t plain = atomic_load(value);

	saved_require(s);
	saved_u32(s, name, &plain);
	atomic_store(value, plain);
}

static void saved_live(struct saved *s, atomic_bool *live)
{
	bool plain = atomic_load(live);

	saved_require(s);
	saved_bool(s, "live", &plain);
	atomic_store(live, plain);
}

static void cq_state(void *self, struct saved *s)
{
	struct nvme_cq *cq = self;

	saved_live(s, &cq->live);
	saved_require(s);
	saved_u64(s, "base", &cq->base);
	saved_atomic(s, "size", &cq->size);
	saved_atomic(s, "head", &cq->head);
	saved_atomic(s, "tail", &cq->tail);
	saved_require(s);
	saved_bool(s, "phase", &cq->phase);
	saved_bool(s, "interrupts", &cq->interrupts);
	saved_u16(s, "vector", &cq->vector);
	if (cq->id == 0)
		return;
	saved_require(s);
	saved_list(s, "held", cq->held, &cq->held_count, NVME_COMMANDS_MAX, sizeof(*cq->held), held_state);
}

static void sq_state(void *self, struct saved *s)
{
	struct nvme_sq *sq = self;

	saved_live(s, &sq->live);
	saved_require(s);
	saved_u64(s, "base", &sq->base);
	saved_atomic(s, "size", &sq->size);
	saved_require(s);
	saved_u32(s, "head", &sq->head);
	saved_atomic(s, "tail", &sq->tail);
	saved_require(s);
	saved_u16(s, "completion-queue", &sq->cq_id);
}

/* --- what a stream says --- */

static bool size_good(unsigned id, uint32_t size)
{
	return size >= 2 && size <= (id == 0 ? 4096u : NVME_ENTRIES_MAX);
}

/* Doorbells may be beyond their queue, where the guest put them; what this side counts may not. */
static const char *wrong(const struct nvme *n, unsigned id)
{
	const struct nvme_cq *cq = &n->cq[id];
	const struct nvme_sq *sq = &n->sq[id];

	if (atomic_load(&cq->live)) {
		if (!size_good(id, atomic_load(&cq->size)) || atomic_load(&cq->tail) >= atomic_load(&cq->size))
			return "completion queue beyond its bounds";
		if (cq->vector >= n->pci.msix.vectors)
			return "completion queue with a vector that is not there";
	} else if (cq->held_count) {
		return "requests held for no queue";
	}
	for (size_t i = 0; i < cq->held_count; i++) {
		unsigned of = cq->held[i].sq_id;
		if (of == 0 || of > n->config.queues || !atomic_load(&n->sq[of].live) || n->sq[of].cq_id != id)
			return "request held for a queue that is not there";
	}
	if (sq->cq_id > n->config.queues)
		return "submission queue without a completion queue";
	if (!atomic_load(&sq->live))
		return NULL;
	if (!size_good(id, atomic_load(&sq->size)) || sq->head >= atomic_load(&sq->size))
		return "submission queue beyond its bounds";
	if ((sq->cq_id == 0) != (id == 0) || !atomic_load(&n->cq[sq->cq_id].live))
		return "submission queue without a completion queue";
	return NULL;
}

static void check_loaded(struct nvme *n, struct saved *s)
{
	uint32_t csts = atomic_load(&n->csts);
	bool ready = csts & NVME_CSTS_READY;

	if (csts & ~(NVME_CSTS_READY | NVME_CSTS_FATAL | NVME_CSTS_SHUTDOWN) || n->cc & ~NVME_CC_BITS ||
	    n->aqa & ~0x0fff0fffu || (ready && !(n->cc & NVME_CC_ENABLE)))
		saved_fail(s, "registers CC %#x, CSTS %#x and AQA %#x do not belong together", n->cc, csts, n->aqa);
	for (unsigned i = 0; i <= n->config.queues; i++) {
		const char *what = wrong(n, i);
		if (!what && !ready && (atomic_load(&n->cq[i].live) || atomic_load(&n->sq[i].live)))
			what = "queue of a controller that is not ready";
		if (what)
			saved_fail(s, "queue %u: a %s", i, what);
	}
	if (ready && (!atomic_load(&n->cq[0].live) || !atomic_load(&n->sq[0].live)))
		saved_fail(s, "a controller that is ready has no admin queue");
}

void nvme_state(void *self, struct saved *s)
{
	struct nvme *n = self;
	size_t queues = n->config.queues + 1;

	saved_require(s);
	saved_subsection(s, "pci", true, (saved_body_fn *)pci_device_state, &n->pci);
	drive_state(n->config.drive, s);
	saved_require(s);
	saved_u32(s, "cc", &n->cc);
	saved_atomic(s, "csts", &n->csts);
	saved_u32(s, "aqa", &n->aqa);
	saved_u64(s, "asq", &n->asq);
	saved_u64(s, "acq", &n->acq);
	saved_atomic(s, "masked-vectors", &n->masked);
	saved_bool(s, "queues-set", &n->queues_set);
	saved_bool(s, "namespace-changed", &n->namespace_changed);
	saved_u64(s, "shadow", &n->shadow_base);
	saved_u64(s, "shadow-event", &n->shadow_event_base);
	saved_require(s);
	saved_subsection(s, "features", true, features_state, &n->features);
	saved_require(s);
	saved_array(s, "vectors", n->features.uncoalesced, queues, sizeof(bool), vector_state);
	saved_require(s);
	saved_list(s, "event-requests", n->event_cid, &n->event_count, NVME_EVENTS_MAX, sizeof(n->event_cid[0]),
		   event_state);
	saved_require(s);
	saved_array(s, "events", n->event, NVME_EVENT_TYPES, sizeof(n->event[0]), kind_state);
	saved_require(s);
	saved_array(s, "events-masked", n->event_masked, NVME_EVENT_TYPES, sizeof(bool), masked_state);
	saved_require(s);
	saved_array(s, "completion-queues", n->cq, queues, sizeof(n->cq[0]), cq_state);
	saved_require(s);
	saved_array(s, "submission-queues", n->sq, queues, sizeof(n->sq[0]), sq_state);
	if (!saved_loading(s))
		return;
	atomic_store(&n->write_through, !n->features.write_cache);
	check_loaded(n, s);
}

/* --- after it --- */

static struct error *find_queue(struct nvme *n, unsigned id)
{
	struct nvme_cq *cq = &n->cq[id];
	struct nvme_sq *sq = &n->sq[id];

	cq->running = false;
	cq->owed = (unsigned)cq->held_count;
	cq->first = NULL;
	if (atomic_load(&cq->live))
		cq->entries = nvme_queue_memory(n, cq->base, atomic_load(&cq->size), sizeof(struct nvme_completion));
	if (atomic_load(&sq->live))
		sq->entries = nvme_queue_memory(n, sq->base, atomic_load(&sq->size), sizeof(struct nvme_command));
	if ((atomic_load(&cq->live) && !cq->entries) || (atomic_load(&sq->live) && !sq->entries))
		return error_new(EINVAL, "%s: queue %u does not lie in memory", n->config.name, id);
	return NULL;
}

struct error *nvme_find_queues(struct nvme *n)
{
	for (unsigned i = 0; i <= n->config.queues; i++)
		TRY(find_queue(n, i));
	/* Backwards, so that they stand in their order. */
	for (unsigned i = n->config.queues; i > 0; i--) {
		struct nvme_sq *sq = &n->sq[i];
		if (!atomic_load(&sq->live))
			continue;
		sq->busy = 0;
		sq->next = n->cq[sq->cq_id].first;
		n->cq[sq->cq_id].first = sq;
	}
	if (!n->shadow_base)
		return NULL;
	nvme_shadow_find(n);
	if (!atomic_load(&n->shadow) || !atomic_load(&n->shadow_event) ||
	    !is_aligned(n->shadow_base | n->shadow_event_base, PAGE_BYTES))
		return error_new(EINVAL, "%s: its doorbells do not lie in memory", n->config.name);
	return NULL;
}
