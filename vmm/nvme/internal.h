/*
 * Inside the NVMe controller: what its files share. controller.c has the registers, the function and its life; queue.c
 * queues on I/O threads; io.c the commands of the disk; admin.c, features.c and identify.c those of the admin queue;
 * prp.c the guest's buffers; state.c the saved form.
 *
 * Who may touch what:
 *
 *     struct nvme, queue 0       under the lock: vCPUs, the main thread
 *     I/O queues, while live     their thread; made and taken apart on it, by iothread_call() under the lock
 *     atomic                     any
 *
 * Locks: PCI's > the controller's > the pin's. I/O threads take the pin's alone.
 */
#ifndef GLINT_VMM_NVME_INTERNAL_H
#define GLINT_VMM_NVME_INTERNAL_H

#include "base/util.h"
#include "vmm/nvme/nvme.h"
#include "vmm/nvme/spec.h"

#include <pthread.h>
#include <stdatomic.h>

#define NVME_ENTRIES_MAX  1024u /* of a queue */
#define NVME_COMMANDS_MAX 256u  /* under way at once, for each completion queue */
#define NVME_MDTS         7     /* log2 of the pages of one transfer */
#define NVME_TRANSFER_MAX (PAGE_BYTES << NVME_MDTS)
#define NVME_IOV_MAX      (NVME_TRANSFER_MAX / PAGE_BYTES + 1)
#define NVME_EVENTS_MAX   4 /* asynchronous event requests that wait */
#define NVME_NO_COMMAND   0xffff
#define NVME_TEMPERATURE  300u   /* kelvins, always */
#define NVME_VENDOR       0x474c /* PCI, see controller.c */

struct nvme;
struct nvme_cq;

struct nvme_sq {
	uint16_t id, cq_id;
	atomic_bool live;
	uint64_t base;
	const uint8_t *entries; /* @size of them in guest memory */
	_Atomic uint32_t size;
	uint32_t head;
	_Atomic uint32_t tail; /* as the doorbell said; perhaps beyond the queue */
	unsigned busy;         /* commands under way */
	struct nvme_sq *next;  /* of the same completion queue */
};

/* A command between fetch and completion. */
struct nvme_request {
	struct drive_request drive;
	struct nvme_cq *cq;
	struct nvme_sq *sq;
	struct nvme_command command;
	unsigned range;      /* dataset management: the next */
	bool looping, again; /* ranges that end at once are taken one by one */
	bool flushing;       /* a read with FUA: the flush before it */
	uint16_t next;       /* in the list of those not in use */
	struct iovec iov[NVME_IOV_MAX];
};

struct nvme_held {
	uint16_t sq_id;
	struct nvme_command command;
};

struct nvme_cq {
	struct nvme *nvme;
	uint16_t id, vector;
	bool interrupts;
	atomic_bool live;
	uint64_t base;
	uint32_t *entries; /* four words each */
	_Atomic uint32_t size;
	_Atomic uint32_t head; /* as the doorbell said; perhaps beyond the queue */
	_Atomic uint32_t tail;
	bool phase;  /* of what is written next */
	bool posted; /* since the last interrupt */

	/* Not of queue 0. */
	struct iothread *thread;
	struct drive_port *port;
	int doorbell; /* eventfd */
	struct io_watch watch;
	struct io_batch batch;
	atomic_bool asleep;  /* a doorbell of a submission queue has to wake the thread */
	atomic_bool starved; /* so has this queue's */
	bool running;
	struct nvme_sq *first; /* the submission queues that lead here */
	unsigned busy, owed;   /* commands under way; and those that have a place in this queue, held ones too */
	uint16_t free;         /* the first request that was used and is not */
	unsigned fresh;        /* requests from here on never were */
	struct nvme_request *request;
	size_t held_count;
	struct nvme_held *held; /* wait for the machine to resume */
};

/* 5.21.1; what a feature's 32 bits are is what the guest set. */
struct nvme_features {
	uint32_t arbitration, error_recovery, coalescing, atomicity, events;
	uint32_t over, under; /* temperature thresholds */
	bool write_cache;
	bool uncoalesced[NVME_QUEUES_MAX + 1]; /* vectors */
};

/* The kinds of asynchronous events, by type: errors, health, notices. */
#define NVME_EVENT_TYPES 3

struct nvme {
	struct nvme_config config;
	const struct memory *memory;
	struct pci_device pci;
	pthread_mutex_t lock;
	pthread_mutex_t pin_lock;
	bool paused;

	uint32_t cc, aqa;
	uint64_t asq, acq;
	_Atomic uint32_t csts;
	_Atomic uint32_t masked; /* vectors, by INTMS; of the pin */
	_Atomic bool write_through;
	struct nvme_features features;
	bool queues_set; /* the number of queues may no longer change */

	size_t event_count; /* requests that wait for an event */
	uint16_t event_cid[NVME_EVENTS_MAX];
	uint32_t event[NVME_EVENT_TYPES]; /* to be told, 0: none */
	bool event_masked[NVME_EVENT_TYPES];
	bool namespace_changed; /* for the log page */

	struct nvme_sq sq[NVME_QUEUES_MAX + 1];
	struct nvme_cq cq[NVME_QUEUES_MAX + 1];

	/* The flush of a shutdown: threads[0]'s. */
	struct drive_request flush;
	unsigned flush_busy;
	bool flush_allowed;

	/* Doorbells in memory; NULL: none. */
	uint64_t shadow_base, shadow_event_base;
	_Atomic(_Atomic uint32_t *) shadow, shadow_event;
	uint64_t bar;   /* where ioeventfds are bound, 0: nowhere */
	uint64_t bound; /* submission queues with one, a bit each */
	atomic_flag complained;
};

/* --- controller.c --- */

/* Sets or clears the pin as queues, masks and MSI-X say. Any thread. */
void nvme_update_pin(struct nvme *n);
/* Interrupts for a queue that was posted to. */
void nvme_interrupt(struct nvme_cq *cq);
/* Begins or goes on with a shutdown's flush. threads[0]'s. */
void nvme_flush_for_shutdown(void *nvme);
/* The lock is held: as CC.EN going to 0; queues stop, are forgotten, features return to what they were. */
void nvme_reset_controller(struct nvme *n);

/* --- queue.c --- */

[[nodiscard]] struct error *nvme_cq_init(struct nvme *n, uint16_t id);
void nvme_cq_destroy(struct nvme_cq *cq);

/* Whether the guest has not read it all. */
bool nvme_cq_pending(const struct nvme_cq *cq);
/* Places in the queue that may be written now. */
uint32_t nvme_cq_room(const struct nvme_cq *cq);
/* Writes a completion; there is room. */
void nvme_cq_post(struct nvme_cq *cq, const struct nvme_sq *sq, uint16_t cid, uint16_t status, uint32_t result);

/* Whether a command waits; takes it, with a copy that the guest cannot change. */
bool nvme_sq_ready(const struct nvme_sq *sq);
void nvme_sq_fetch(struct nvme_sq *sq, struct nvme_command *command);

/* The memory of a queue, or NULL when it is not RAM. */
void *nvme_queue_memory(const struct nvme *n, uint64_t base, uint32_t entries, unsigned entry_bytes);

/* Each from under the lock, runs on the queue's thread: from and to the world; pause and resume; a sleeper looks. */
void nvme_cq_attach(struct nvme_cq *cq);
void nvme_cq_detach(struct nvme_cq *cq);
void nvme_sq_attach(struct nvme_sq *sq, struct nvme_cq *cq);
void nvme_sq_detach(struct nvme_sq *sq, struct nvme_cq *cq);
void nvme_cq_start(struct nvme_cq *cq);
void nvme_cq_stop(struct nvme_cq *cq);

/* Any thread: the queue looks again, soon. */
void nvme_cq_wake(struct nvme_cq *cq);
/* A doorbell of an I/O queue; any thread. False: its value is none, or it is none's. */
enum nvme_doorbell { NVME_DOORBELL_GOOD, NVME_DOORBELL_NO_QUEUE, NVME_DOORBELL_BAD_VALUE };
enum nvme_doorbell nvme_ring(struct nvme *n, unsigned queue, bool completion, uint32_t value);

/* The end of a request: the guest is told, or it is held until the machine resumes. */
void nvme_finish(struct nvme_request *r, uint16_t status);
void nvme_hold(struct nvme_request *r);

/* --- io.c --- */

/* Sets a fetched command off. */
void nvme_io_begin(struct nvme_request *r);

/* --- admin.c: the lock is held --- */

/* Does what the admin queue holds, and tells what events there are. */
void nvme_admin_run(struct nvme *n);
/* Something happened that the guest may have asked to be told. */
void nvme_event(struct nvme *n, uint32_t event);

/* --- features.c --- */

void nvme_features_reset(struct nvme *n);
uint16_t nvme_set_features(struct nvme *n, const struct nvme_command *c, uint32_t *result);
uint16_t nvme_get_features(struct nvme *n, const struct nvme_command *c, uint32_t *result);
/* Bits of SMART's critical warning. */
uint8_t nvme_critical_warning(const struct nvme *n);

/* --- identify.c --- */

uint16_t nvme_identify(struct nvme *n, const struct nvme_command *c);
uint16_t nvme_get_log(struct nvme *n, const struct nvme_command *c);

/* --- shadow.c: doorbells in memory --- */

uint16_t nvme_set_shadow(struct nvme *n, const struct nvme_command *c);
void nvme_shadow_forget(struct nvme *n);
/* After load: the pages, by their addresses. */
void nvme_shadow_find(struct nvme *n);
/* Gives a submission queue its ioeventfd, or takes it away, where doorbells are in memory. */
void nvme_bind_doorbell(struct nvme *n, unsigned queue, bool on);
/* BAR 0 came to @address, or left (0). */
void nvme_bind_doorbells(struct nvme *n, uint64_t address);

/* --- prp.c --- */

/*
 * The guest memory that a transfer of @len bytes (at most NVME_TRANSFER_MAX) is about: PRP entry 1, and what entry 2
 * says there is to it. Fills at most NVME_IOV_MAX of @iov. NVME_SUCCESS or a status.
 */
uint16_t nvme_prp_map(const struct memory *memory, uint64_t prp1, uint64_t prp2, uint64_t len, struct iovec *iov,
		      unsigned *count);
/* To (or from) the guest's buffer of command @c, @len bytes, at most two pages. */
uint16_t nvme_prp_copy(const struct memory *memory, const struct nvme_command *c, void *data, size_t len,
		       bool to_guest);

/* --- state.c --- */

void nvme_state(void *nvme, struct saved *s);
/* After load: queues find their memory. */
[[nodiscard]] struct error *nvme_find_queues(struct nvme *n);

#endif
