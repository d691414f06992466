/*
 * Admin commands (NVM Express 1.4, section 5): queues are made and deleted, features and log pages read, and the guest
 * asks to be told of events. All of it runs under the controller's lock, on the thread that rang.
 *
 * An asynchronous event request is a command that is not completed until something happens; one kind of event is told
 * once until the guest has read the log page that goes with it.
 */
#include "vmm/nvme/internal.h"

#include <string.h>

/* --- asynchronous events (5.2) --- */

/* The kind of an event: what its type in 2:0 counts, from 0. */
static unsigned kind_of(uint32_t event)
{
	return event & 7;
}

void nvme_event(struct nvme *n, uint32_t event)
{
	static const uint32_t wanted_by[] = {[1] = NVME_EVENTS_HEALTH_TEMPERATURE, [2] = NVME_EVENTS_NAMESPACE};
	unsigned kind = kind_of(event);

	/* Errors are always told. */
	if (kind > 0 && !(n->features.events & wanted_by[kind]))
		return;
	if (!n->event_masked[kind])
		n->event[kind] = event;
}

/* Tells what there is, as far as the guest asked. */
static void tell_events(struct nvme *n)
{
	for (unsigned kind = 0; kind < NVME_EVENT_TYPES; kind++) {
		if (!n->event[kind] || n->event_count == 0 || nvme_cq_room(&n->cq[0]) == 0)
			continue;
		nvme_cq_post(&n->cq[0], &n->sq[0], n->event_cid[0], NVME_SUCCESS, n->event[kind]);
		memmove(n->event_cid, n->event_cid + 1, --n->event_count * sizeof(n->event_cid[0]));
		n->event[kind] = 0;
		n->event_masked[kind] = true;
	}
}

static uint16_t ask_event(struct nvme *n, const struct nvme_command *c)
{
	if (n->event_count == NVME_EVENTS_MAX)
		return NVME_TOO_MANY_EVENTS;
	n->event_cid[n->event_count++] = c->cid;
	return NVME_PENDING;
}

/* 5.1: the command may have been completed already; only one that waits for an event can be taken back. */
static uint16_t abort_command(struct nvme *n, const struct nvme_command *c, uint32_t *result)
{
	*result = 1; /* not aborted */
	if ((c->cdw10 & 0xffff) != 0 || nvme_cq_room(&n->cq[0]) < 2)
		return NVME_SUCCESS;
	for (size_t i = 0; i < n->event_count; i++) {
		if (n->event_cid[i] != c->cdw10 >> 16)
			continue;
		nvme_cq_post(&n->cq[0], &n->sq[0], n->event_cid[i], NVME_ABORT_REQUESTED, 0);
		memmove(n->event_cid + i, n->event_cid + i + 1, (--n->event_count - i) * sizeof(n->event_cid[0]));
		*result = 0;
		break;
	}
	return NVME_SUCCESS;
}

/* --- queues (5.3 to 5.6) --- */

static bool valid_id(const struct nvme *n, unsigned id)
{
	return id > 0 && id <= n->config.queues;
}

/* What both kinds have in common: a free id, a size, memory that is there in one piece. */
static uint16_t check_queue(const struct nvme *n, const struct nvme_command *c, bool live, unsigned entry_bytes)
{
	uint32_t entries = (c->cdw10 >> 16) + 1;

	if (live)
		return NVME_INVALID_QUEUE_ID;
	if (entries < 2 || entries > NVME_ENTRIES_MAX)
		return NVME_INVALID_QUEUE_SIZE;
	if (!(c->cdw11 & 1) || (n->cc & NVME_CC_ENTRY_SIZES) != NVME_CC_ENTRIES_64_16)
		return NVME_INVALID_FIELD;
	if (!is_aligned(c->prp1, PAGE_BYTES))
		return NVME_INVALID_PRP_OFFSET;
	return nvme_queue_memory(n, c->prp1, entries, entry_bytes) ? NVME_SUCCESS : NVME_TRANSFER_ERROR;
}

static uint16_t create_cq(struct nvme *n, const struct nvme_command *c)
{
	unsigned id = c->cdw10 & 0xffff, vector = c->cdw11 >> 16;

	if (!valid_id(n, id))
		return NVME_INVALID_QUEUE_ID;
	struct nvme_cq *cq = &n->cq[id];
	uint16_t status = check_queue(n, c, atomic_load(&cq->live), sizeof(struct nvme_completion));
	if (status != NVME_SUCCESS)
		return status;
	if (vector >= n->pci.msix.vectors)
		return NVME_INVALID_VECTOR;
	uint32_t entries = (c->cdw10 >> 16) + 1;
	cq->base = c->prp1;
	cq->entries = nvme_queue_memory(n, c->prp1, entries, sizeof(struct nvme_completion));
	atomic_store(&cq->size, entries);
	atomic_store(&cq->head, 0);
	atomic_store(&cq->tail, 0);
	cq->phase = true;
	cq->interrupts = c->cdw11 & 2;
	cq->vector = (uint16_t)vector;
	n->queues_set = true;
	nvme_cq_attach(cq);
	return NVME_SUCCESS;
}

static uint16_t create_sq(struct nvme *n, const struct nvme_command *c)
{
	unsigned id = c->cdw10 & 0xffff, cq_id = c->cdw11 >> 16;

	if (!valid_id(n, id))
		return NVME_INVALID_QUEUE_ID;
	struct nvme_sq *sq = &n->sq[id];
	uint16_t status = check_queue(n, c, atomic_load(&sq->live), sizeof(struct nvme_command));
	if (status != NVME_SUCCESS)
		return status;
	if (!valid_id(n, cq_id) || !atomic_load(&n->cq[cq_id].live))
		return NVME_INVALID_CQ;
	uint32_t entries = (c->cdw10 >> 16) + 1;
	sq->base = c->prp1;
	sq->entries = nvme_queue_memory(n, c->prp1, entries, sizeof(struct nvme_command));
	atomic_store(&sq->size, entries);
	sq->head = 0;
	atomic_store(&sq->tail, 0);
	sq->cq_id = (uint16_t)cq_id;
	nvme_sq_attach(sq, &n->cq[cq_id]);
	nvme_bind_doorbell(n, id, true);
	return NVME_SUCCESS;
}

static uint16_t delete_sq(struct nvme *n, const struct nvme_command *c)
{
	unsigned id = c->cdw10 & 0xffff;

	if (!valid_id(n, id) || !atomic_load(&n->sq[id].live))
		return NVME_INVALID_QUEUE_ID;
	nvme_bind_doorbell(n, id, false);
	nvme_sq_detach(&n->sq[id], &n->cq[n->sq[id].cq_id]);
	return NVME_SUCCESS;
}

static uint16_t delete_cq(struct nvme *n, const struct nvme_command *c)
{
	unsigned id = c->cdw10 & 0xffff;

	if (!valid_id(n, id) || !atomic_load(&n->cq[id].live))
		return NVME_INVALID_QUEUE_ID;
	for (unsigned i = 1; i <= n->config.queues; i++)
		if (atomic_load(&n->sq[i].live) && n->sq[i].cq_id == id)
			return NVME_INVALID_QUEUE_DELETION;
	nvme_cq_detach(&n->cq[id]);
	nvme_update_pin(n);
	return NVME_SUCCESS;
}

/* --- all --- */

static uint16_t execute(struct nvme *n, const struct nvme_command *c, uint32_t *result)
{
	if (c->flags != 0)
		return NVME_INVALID_FIELD;
	switch (c->opcode) {
	case NVME_DELETE_SQ:
		return delete_sq(n, c);
	case NVME_CREATE_SQ:
		return create_sq(n, c);
	case NVME_GET_LOG:
		return nvme_get_log(n, c);
	case NVME_DELETE_CQ:
		return delete_cq(n, c);
	case NVME_CREATE_CQ:
		return create_cq(n, c);
	case NVME_IDENTIFY:
		return nvme_identify(n, c);
	case NVME_ABORT:
		return abort_command(n, c, result);
	case NVME_SET_FEATURES:
		return nvme_set_features(n, c, result);
	case NVME_GET_FEATURES:
		return nvme_get_features(n, c, result);
	case NVME_ASYNC_EVENT:
		return ask_event(n, c);
	case NVME_DOORBELL_BUFFER:
		return nvme_set_shadow(n, c);
	default:
		return NVME_INVALID_OPCODE;
	}
}

void nvme_admin_run(struct nvme *n)
{
	struct nvme_sq *sq = &n->sq[0];
	struct nvme_cq *cq = &n->cq[0];
	struct nvme_command c;

	if (n->paused || !(atomic_load(&n->csts) & NVME_CSTS_READY) || !pci_bus_master(&n->pci))
		return;
	/* An abort of an event request completes two. */
	while (nvme_sq_ready(sq) && nvme_cq_room(cq) > 0) {
		uint32_t result = 0;
		nvme_sq_fetch(sq, &c);
		uint16_t status = execute(n, &c, &result);
		if (status != NVME_PENDING)
			nvme_cq_post(cq, sq, c.cid, status, result);
	}
	tell_events(n);
	if (cq->posted)
		nvme_interrupt(cq);
}
