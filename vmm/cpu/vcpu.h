/*
 * vCPUs: one thread each around KVM_RUN, exits dispatched by a table and counted by kind.
 *
 * A vCPU thread is parked or running. vcpus_pause() raises a flag, marks each vCPU's immediate_exit and signals its
 * thread; a thread parks only when KVM_RUN returned EINTR, because only then has KVM completed the last port or MMIO
 * access: a parked vCPU's registers are its whole state. Everything but vcpus_kick() runs on the main thread.
 */
#ifndef GLINT_VMM_CPU_VCPU_H
#define GLINT_VMM_CPU_VCPU_H

#include "base/error.h"
#include "saved/saved.h"
#include "vmm/boot/boot.h"
#include "vmm/cpu/model.h"
#include "vmm/memory/bus.h"
#include "vmm/memory/memory.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>

#define VCPUS_MAX       256 /* DESIGN 8 */
#define VCPU_EXIT_KINDS 48

/* What a vCPU thread tells the machine; called on the vCPU's thread, so they only post. */
struct vcpu_events {
	/* Triple fault: a PC resets. */
	void (*reset)(void *arg);
	/* The vCPU cannot go on: @what says why. It stays parked; the machine stops. */
	void (*failed)(void *arg, const char *what);
	void *arg;
};

struct vcpus;

struct vcpu {
	struct vcpus *group;
	unsigned index;
	uint32_t apic_id; /* also KVM's name for it */
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started, ready;
	struct error *(*enter)(void);
	struct error *err;               /* why its thread could not start */
	uint64_t exits[VCPU_EXIT_KINDS]; /* by KVM_EXIT_*; written by its own thread only */
};

struct vcpus {
	int kvm_fd, vm_fd;
	struct bus *pio;
	struct bus *mmio[MEMORY_SPACES];
	struct vcpu_events events;
	struct cpu_offer offer;
	struct cpu_model model;
	size_t run_bytes;   /* of kvm_run */
	size_t xsave_bytes; /* of the extended state */
	struct kvm_msr_list *msrs;
	unsigned count;
	struct vcpu *vcpu;
	/* Pausing: `pause` is wanted, `parked` is how many stand still. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool pause, quit;
	unsigned parked;
};

/*
 * Makes @config->vcpus vCPUs of that model (after the interrupt chips, before threads). The first one is left to
 * vcpus_boot.
 */
[[nodiscard]] struct error *vcpus_create(struct vcpus *group, int kvm_fd, int vm_fd, struct bus *pio,
					 struct bus *mmio[MEMORY_SPACES], const struct vcpu_events *events,
					 const struct cpu_config *config);
/* Ends the threads (they are parked) and frees everything. */
void vcpus_destroy(struct vcpus *group);

/* Whether a vCPU has the APIC id that in xAPIC mode means all of them. */
static inline bool vcpus_have_broadcast_id(const struct vcpus *group)
{
	return group->vcpu[group->count - 1].apic_id >= APIC_ID_MAX;
}

/* All vCPUs to their state at power-on. */
[[nodiscard]] struct error *vcpus_reset(struct vcpus *group);

/* Puts the first vCPU at the entry of what was loaded. */
[[nodiscard]] struct error *vcpus_boot(struct vcpus *group, const struct boot_entry *entry);

/* Starts the threads, parked. @enter runs first on each (the sandbox). */
[[nodiscard]] struct error *vcpus_start(struct vcpus *group, struct error *(*enter)(void));

void vcpus_resume(struct vcpus *group);
/* Returns when every vCPU stands still. */
void vcpus_pause(struct vcpus *group);

/* The name of an exit kind ("mmio"), or NULL for a kind that is never counted. */
const char *vcpu_exit_name(unsigned kind);

/* Unit body of one vCPU; the model is loaded and given to it before. */
void vcpu_state(void *self, struct saved *s);

/* Gives the group's model to its vCPUs. */
[[nodiscard]] struct error *vcpus_apply_model(struct vcpus *group);

/* --- clock.c --- */

/* Before the guest goes on: it was stopped, which is no lockup. */
void vcpus_tell_stopped(struct vcpus *group);

/* The clocks, a unit body; self is the group. It comes before those of the vCPUs. */
void vcpus_clock_state(void *self, struct saved *s);

#endif
