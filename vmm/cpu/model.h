/*
 * The CPU model: what CPUID says to a guest. Part of the machine contract: made once, when the machine is first
 * started, saved with it, and never rebuilt on arrival; there it is only checked against what that machine offers.
 *
 * `host` is all that KVM offers on the machine it is made on; the named ones (features.h) are the same everywhere but
 * for the maker of the processor. Either has no nested virtualisation, performance counters or MONITOR.
 */
#ifndef GLINT_VMM_CPU_MODEL_H
#define GLINT_VMM_CPU_MODEL_H

#include "base/error.h"
#include "saved/saved.h"
#include "vmm/cpu/features.h"
#include "vmm/cpu/topology.h"

#include <linux/kvm.h>
#include <stdint.h>

#define CPUID_ENTRIES_MAX 256
#define CPU_NAME_BYTES    31
#define CPU_BITS_MIN      36
#define CPU_BITS_MAX      52

/* What this machine offers: what KVM says it supports, what it emulates besides, less what no model has. */
struct cpu_offer {
	size_t entries;
	struct kvm_cpuid_entry2 entry[CPUID_ENTRIES_MAX];
	/* Hyper-V's leaves as KVM would fill them; 0 where it has none. */
	size_t hv_entries;
	struct kvm_cpuid_entry2 hv_entry[16];
};

/* What is asked for. */
struct cpu_config {
	const char *model;      /* "host" or a name of features.h */
	unsigned physical_bits; /* of addresses; 0: the model's own */
	unsigned vcpus;
	struct cpu_topology topology; /* complete */
	bool hyperv;                  /* show Hyper-V's interface */
	bool hide_kvm;                /* and not KVM's behind it */
};

struct cpu_model {
	char name[CPU_NAME_BYTES + 1];
	unsigned vcpus;
	unsigned physical_bits;
	struct cpu_topology topology;
	bool hyperv;
	size_t entries;
	struct kvm_cpuid_entry2 entry[CPUID_ENTRIES_MAX];
};

/* Asks KVM. */
[[nodiscard]] struct error *cpu_offer_get(int kvm_fd, struct cpu_offer *offer);

/* Takes from KVM's answer what no model has, and adds what KVM emulates unasked; @deadline: its APIC has that timer. */
void cpu_offer_limit(struct cpu_offer *offer, bool deadline);

/* Makes the model; an error names every feature that is missing here. */
[[nodiscard]] struct error *cpu_model_make(const struct cpu_offer *offer, const struct cpu_config *config,
					   struct cpu_model *model);

/* Refuses a model that asks for more than @offer has, or for another maker's processor: all that is missing, by name.
 */
[[nodiscard]] struct error *cpu_model_check(const struct cpu_offer *offer, const struct cpu_model *model);

/* The leaves of @model as vCPU @index sees them: copied to @entry, as many as the model has. */
void cpu_model_of_vcpu(const struct cpu_model *model, unsigned index, struct kvm_cpuid_entry2 *entry);

/* Unit body. On load it replaces the present model, whose topology and kind it must have. */
void cpu_model_state(void *self, struct saved *s);

/* --- hyperv.c --- */

/* Puts Hyper-V's leaves into @model, KVM's behind them or nowhere. */
[[nodiscard]] struct error *hyperv_add_leaves(const struct cpu_offer *offer, bool hide_kvm, struct cpu_model *model);

/* Refuses Hyper-V leaves that ask for more than this machine's KVM has. */
[[nodiscard]] struct error *hyperv_check(const struct cpu_offer *offer, const struct cpu_model *model);

#endif
