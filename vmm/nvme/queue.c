/*
 * Queues (NVM Express 1.4, section 4.1), and those of I/O on their threads.
 *
 * A completion queue is the owner of its submission queues: all are one thread's, so nothing is shared but what a
 * doorbell writes. A command is taken only when its completion has a place in the queue, which it keeps until then
 * ("owed"): so a completion never waits, whatever the guest does with its doorbells, and draining always ends.
 *
 *     doorbell -> [wakes the thread, if it sleeps] -> take() -> nvme_io_begin() ... nvme_finish() -> one interrupt a
 * batch
 *
 * A queue says that it sleeps, then looks once more; a doorbell stores its value, then asks whether to wake it. So no
 * command is missed, and a busy queue costs its vCPU no system call.
 *
 * Touches guest memory: the entries of queues. The doorbell's eventfd.
 */
#include "vmm/nvme/internal.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/* --- entries --- */

void *nvme_queue_memory(const struct nvme *n, uint64_t base, uint32_t entries, unsigned entry_bytes)
{
	return memory_at(n->memory, base, (uint64_t)entries * entry_bytes);
}

/* The value of a doorbell that is kept in memory, where the guest has set that up. */
static uint32_t doorbell_value(const struct nvme *n, unsigned id, bool completion, const _Atomic uint32_t *written)
{
	_Atomic uint32_t *shadow = atomic_load_explicit(&n->shadow, memory_order_acquire);

	return atomic_load(id && shadow ? &shadow[2 * id + completion] : written);
}

/* Tells a guest that keeps its doorbells in memory from which value on it is to ring. */
static void ask_to_ring(const struct nvme *n, unsigned id, bool completion, uint32_t value)
{
	_Atomic uint32_t *event = atomic_load_explicit(&n->shadow_event, memory_order_acquire);

	if (id && event)
		atomic_store(&event[2 * id + completion], value);
}

/* From where the head really is: in memory it may have passed what was rung last. */
static void ask_for_head(const struct nvme_cq *cq)
{
	ask_to_ring(cq->nvme, cq->id, true, doorbell_value(cq->nvme, cq->id, true, &cq->head));
}

bool nvme_cq_pending(const struct nvme_cq *cq)
{
	return doorbell_value(cq->nvme, cq->id, true, &cq->head) != atomic_load(&cq->tail);
}

uint32_t nvme_cq_room(const struct nvme_cq *cq)
{
	uint32_t size = atomic_load_explicit(&cq->size, memory_order_relaxed);
	uint32_t tail = atomic_load_explicit(&cq->tail, memory_order_relaxed);
	uint32_t head = doorbell_value(cq->nvme, cq->id, true, &cq->head);

	return head < size ? (head + size - tail - 1) % size : 0;
}

void nvme_cq_post(struct nvme_cq *cq, const struct nvme_sq *sq, uint16_t cid, uint16_t status, uint32_t result)
{
	uint32_t tail = atomic_load_explicit(&cq->tail, memory_order_relaxed);
	uint32_t *to = cq->entries + 4ull * tail;

	to[0] = result;
	to[1] = 0;
	to[2] = sq->head | (uint32_t)sq->id << 16;
	/* The phase tag says that the entry is whole. */
	__atomic_store_n(&to[3], cid | (uint32_t)(uint16_t)(status << 1 | cq->phase) << 16, __ATOMIC_RELEASE);
	if (++tail == atomic_load_explicit(&cq->size, memory_order_relaxed)) {
		tail = 0;
		cq->phase = !cq->phase;
	}
	atomic_store(&cq->tail, tail);
	cq->posted = true;
}

static uint32_t sq_tail(const struct nvme_cq *cq, const struct nvme_sq *sq)
{
	return doorbell_value(cq->nvme, sq->id, false, &sq->tail);
}

static bool waits(const struct nvme_sq *sq, uint32_t tail)
{
	return tail != sq->head && tail < atomic_load_explicit(&sq->size, memory_order_relaxed);
}

bool nvme_sq_ready(const struct nvme_sq *sq)
{
	return waits(sq, atomic_load(&sq->tail));
}

void nvme_sq_fetch(struct nvme_sq *sq, struct nvme_command *command)
{
	memcpy(command, sq->entries + (size_t)sq->head * sizeof(*command), sizeof(*command));
	sq->head = (sq->head + 1) % atomic_load_explicit(&sq->size, memory_order_relaxed);
}

/* --- requests --- */

static struct nvme_request *get_request(struct nvme_cq *cq)
{
	struct nvme_request *r;

	if (cq->free != NVME_NO_COMMAND) {
		r = &cq->request[cq->free];
		cq->free = r->next;
	} else {
		r = &cq->request[cq->fresh++];
		r->cq = cq;
	}
	r->range = 0;
	r->looping = r->again = r->flushing = false;
	return r;
}

static void put_request(struct nvme_request *r)
{
	struct nvme_cq *cq = r->cq;

	r->next = cq->free;
	cq->free = (uint16_t)(r - cq->request);
	r->sq->busy--;
	cq->busy--;
	/* There is a place again: the batch's end looks for who waits for it. */
	iothread_at_end(cq->thread, &cq->batch);
}

void nvme_finish(struct nvme_request *r, uint16_t status)
{
	r->cq->owed--;
	nvme_cq_post(r->cq, r->sq, r->command.cid, status, 0);
	put_request(r);
}

void nvme_hold(struct nvme_request *r)
{
	r->cq->held[r->cq->held_count++] = (struct nvme_held){r->sq->id, r->command};
	put_request(r);
}

static void begin(struct nvme_cq *cq, struct nvme_sq *sq, const struct nvme_command *command)
{
	struct nvme_request *r = get_request(cq);

	r->sq = sq;
	r->command = *command;
	sq->busy++;
	cq->busy++;
	nvme_io_begin(r);
}

/* --- taking --- */

static bool has_slot(const struct nvme_cq *cq)
{
	return cq->free != NVME_NO_COMMAND || cq->fresh < NVME_COMMANDS_MAX;
}

static bool has_room(const struct nvme_cq *cq)
{
	return nvme_cq_room(cq) > cq->owed;
}

/* What is held is older than what waits, and is tried first: when the queue starts again. */
static bool may_take(const struct nvme_cq *cq)
{
	return cq->running && cq->held_count == 0 && drive_may_take(cq->nvme->config.drive) &&
	       pci_bus_master(&cq->nvme->pci);
}

static bool take_one(struct nvme_cq *cq, struct nvme_sq *sq)
{
	struct nvme_command command;

	if (!has_slot(cq) || !may_take(cq) || !waits(sq, sq_tail(cq, sq)) || !has_room(cq))
		return false;
	nvme_sq_fetch(sq, &command);
	cq->owed++;
	begin(cq, sq, &command);
	return true;
}

/* Nothing is to be done. False when something came meanwhile. */
static bool fall_asleep(struct nvme_cq *cq)
{
	bool room = has_room(cq);

	atomic_store(&cq->starved, !room);
	atomic_store(&cq->asleep, true);
	if (!room)
		ask_for_head(cq);
	for (struct nvme_sq *sq = cq->first; sq; sq = sq->next)
		ask_to_ring(cq->nvme, sq->id, false, sq->head);
	atomic_thread_fence(memory_order_seq_cst);
	if (!has_slot(cq) || !may_take(cq) || !has_room(cq))
		return true;
	for (struct nvme_sq *sq = cq->first; sq; sq = sq->next)
		if (waits(sq, sq_tail(cq, sq)))
			return false;
	return true;
}

/*
 * Begins what waits, one command of each submission queue in turn (4.13.1). The bound on one go is for commands that
 * end at once: a guest could keep the thread from its other queues.
 */
static void take(struct nvme_cq *cq)
{
	unsigned taken = 0;

	do {
		bool any;
		atomic_store(&cq->asleep, false);
		atomic_store(&cq->starved, false);
		do {
			any = false;
			for (struct nvme_sq *sq = cq->first; sq; sq = sq->next)
				any |= take_one(cq, sq) && ++taken;
		} while (any && taken < NVME_COMMANDS_MAX);
		if (taken >= NVME_COMMANDS_MAX) {
			iothread_at_end(cq->thread, &cq->batch);
			return;
		}
	} while (!fall_asleep(cq));
}

/* The pin follows what the guest has read, so without MSI-X it has to tell. */
static void publish(struct nvme_cq *cq)
{
	if (!pci_msix_enabled(&cq->nvme->pci))
		ask_for_head(cq);
	nvme_interrupt(cq);
}

static void batch_ended(struct io_batch *batch)
{
	struct nvme_cq *cq = (struct nvme_cq *)((char *)batch - offsetof(struct nvme_cq, batch));

	if (cq->posted)
		publish(cq);
	if (cq->running)
		take(cq);
}

/* --- doorbells --- */

static void rung(struct io_watch *watch)
{
	struct nvme_cq *cq = (struct nvme_cq *)((char *)watch - offsetof(struct nvme_cq, watch));

	if (cq->running)
		take(cq);
}

void nvme_cq_wake(struct nvme_cq *cq)
{
	uint64_t one = 1;

	if (write(cq->doorbell, &one, sizeof(one)) < 0)
		log_warn("%s: ring queue %u: it will wait for the guest", cq->nvme->config.name, cq->id);
}

static enum nvme_doorbell ring_cq(struct nvme_cq *cq, uint32_t value)
{
	if (!atomic_load(&cq->live))
		return NVME_DOORBELL_NO_QUEUE;
	if (value >= atomic_load_explicit(&cq->size, memory_order_relaxed))
		return NVME_DOORBELL_BAD_VALUE;
	atomic_store(&cq->head, value);
	if (cq->id && atomic_load(&cq->starved) && atomic_exchange(&cq->starved, false))
		nvme_cq_wake(cq);
	if (!pci_msix_enabled(&cq->nvme->pci)) {
		ask_for_head(cq);
		nvme_update_pin(cq->nvme);
	}
	return NVME_DOORBELL_GOOD;
}

enum nvme_doorbell nvme_ring(struct nvme *n, unsigned queue, bool completion, uint32_t value)
{
	if (queue > n->config.queues)
		return NVME_DOORBELL_NO_QUEUE;
	if (completion)
		return ring_cq(&n->cq[queue], value);
	struct nvme_sq *sq = &n->sq[queue];
	if (!atomic_load(&sq->live))
		return NVME_DOORBELL_NO_QUEUE;
	struct nvme_cq *cq = &n->cq[sq->cq_id];
	if (value >= atomic_load_explicit(&sq->size, memory_order_relaxed))
		return NVME_DOORBELL_BAD_VALUE;
	atomic_store(&sq->tail, value);
	if (queue && atomic_load(&cq->asleep) && atomic_exchange(&cq->asleep, false))
		nvme_cq_wake(cq);
	return NVME_DOORBELL_GOOD;
}

/* --- making them --- */

struct error *nvme_cq_init(struct nvme *n, uint16_t id)
{
	struct nvme_cq *cq = &n->cq[id];
	unsigned thread = id == 0 ? 0 : (id - 1) % n->config.thread_count;

	cq->nvme = n;
	cq->id = id;
	cq->doorbell = -1;
	cq->free = NVME_NO_COMMAND;
	n->sq[id].id = id;
	if (id == 0)
		return NULL;
	cq->thread = n->config.threads[thread];
	cq->port = drive_port(n->config.drive, thread);
	cq->batch.end = batch_ended;
	cq->watch.ready = rung;
	/* Pages of it exist once a guest needs them. */
	cq->request = calloc(NVME_COMMANDS_MAX, sizeof(*cq->request));
	cq->held = calloc(NVME_COMMANDS_MAX, sizeof(*cq->held));
	if (!cq->request || !cq->held)
		return error_new(ENOMEM, "%s: make queue %u", n->config.name, id);
	cq->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (cq->doorbell < 0)
		return error_new(errno, "%s: make the doorbell of queue %u", n->config.name, id);
	struct error *err = iothread_add_file(cq->thread, cq->doorbell, &cq->watch.slot);
	if (err) {
		close_fd(&cq->doorbell);
		return err;
	}
	iothread_watch(cq->thread, &cq->watch);
	return NULL;
}

void nvme_cq_destroy(struct nvme_cq *cq)
{
	if (cq->doorbell >= 0) {
		iothread_unwatch(cq->thread, &cq->watch);
		iothread_remove_file(cq->thread, cq->watch.slot);
		close_fd(&cq->doorbell);
	}
	free(steal_ptr(&cq->request));
	free(steal_ptr(&cq->held));
}

/* --- on the thread --- */

struct sq_call {
	struct nvme_sq *sq;
	struct nvme_cq *cq;
};

static void attach_cq(void *arg)
{
	struct nvme_cq *cq = arg;

	cq->owed = 0;
	cq->held_count = 0;
	cq->posted = false;
	cq->first = NULL;
	cq->running = !cq->nvme->paused;
	atomic_store(&cq->starved, false);
	atomic_store(&cq->asleep, true);
	atomic_store(&cq->live, true);
}

void nvme_cq_attach(struct nvme_cq *cq)
{
	iothread_call(cq->thread, attach_cq, cq);
}

static void detach_cq(void *arg)
{
	struct nvme_cq *cq = arg;

	cq->running = false;
	iothread_drain(cq->thread, &cq->busy);
	for (struct nvme_sq *sq = cq->first; sq; sq = sq->next)
		atomic_store(&sq->live, false);
	cq->first = NULL;
	cq->owed = 0;
	cq->held_count = 0;
	atomic_store(&cq->live, false);
}

void nvme_cq_detach(struct nvme_cq *cq)
{
	iothread_call(cq->thread, detach_cq, cq);
}

static void attach_sq(void *arg)
{
	const struct sq_call *call = arg;
	struct nvme_sq **end = &call->cq->first;

	while (*end)
		end = &(*end)->next;
	*end = call->sq;
	call->sq->next = NULL;
	call->sq->busy = 0;
	atomic_store(&call->sq->live, true);
	if (call->cq->running)
		take(call->cq);
}

void nvme_sq_attach(struct nvme_sq *sq, struct nvme_cq *cq)
{
	iothread_call(cq->thread, attach_sq, &(struct sq_call){sq, cq});
}

/* 5.6: what was taken from the queue is completed before its deletion is; what is held, as aborted. */
static void detach_sq(void *arg)
{
	const struct sq_call *call = arg;
	struct nvme_cq *cq = call->cq;
	struct nvme_sq **link = &cq->first;
	size_t kept = 0;

	atomic_store(&call->sq->live, false);
	while (*link && *link != call->sq)
		link = &(*link)->next;
	if (*link)
		*link = call->sq->next;
	iothread_drain(cq->thread, &call->sq->busy);
	for (size_t i = 0; i < cq->held_count; i++) {
		if (cq->held[i].sq_id != call->sq->id) {
			cq->held[kept++] = cq->held[i];
			continue;
		}
		cq->owed--;
		nvme_cq_post(cq, call->sq, cq->held[i].command.cid, NVME_ABORTED_BY_DELETION, 0);
	}
	cq->held_count = kept;
	iothread_at_end(cq->thread, &cq->batch);
}

void nvme_sq_detach(struct nvme_sq *sq, struct nvme_cq *cq)
{
	iothread_call(cq->thread, detach_sq, &(struct sq_call){sq, cq});
}

/* What was held is done again before anything new. */
static void start(void *arg)
{
	struct nvme_cq *cq = arg;
	size_t count = cq->held_count;

	if (cq->running || !drive_go_on(cq->nvme->config.drive))
		return;
	cq->running = true;
	cq->held_count = 0;
	for (size_t i = 0; i < count; i++) {
		/* What is held anew is written behind what was read. */
		struct nvme_held held = cq->held[i];
		begin(cq, &cq->nvme->sq[held.sq_id], &held.command);
	}
	take(cq);
}

void nvme_cq_start(struct nvme_cq *cq)
{
	iothread_call(cq->thread, start, cq);
}

static void stop(void *arg)
{
	struct nvme_cq *cq = arg;

	cq->running = false;
	iothread_drain(cq->thread, &cq->busy);
	if (cq->posted)
		publish(cq);
}

void nvme_cq_stop(struct nvme_cq *cq)
{
	iothread_call(cq->thread, stop, cq);
}
