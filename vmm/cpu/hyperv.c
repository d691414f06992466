/*
 * Hyper-V's interface; see hyperv.h. Section numbers are those of the Hypervisor Top Level Functional Specification
 * 6.0b. Touches the descriptors of the VM and its vCPUs.
 *
 * What is shown is fixed: 1 reference counter and TSC page (12.7), SynIC and synthetic timers (11, 12.3), also by
 * direct interrupt, virtual APIC registers and assist page (10.3), VP index and run time (7.8), frequencies, relaxed
 * timing, and a hint how long to spin. No hypercall is: KVM has those of other features, and the rest come to this
 * program, which knows none (exits.c). Left out: what a guest has no use for without nested virtualisation or VMBus.
 */
#include "vmm/cpu/hyperv.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/cpu/model.h"
#include "vmm/cpu/vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

/* 2.4: leaves */
enum {
	LEAF_VENDOR = 0x40000000,
	LEAF_INTERFACE,
	LEAF_VERSION,
	LEAF_FEATURES,
	LEAF_HINTS,
	LEAF_LIMITS,
	LEAF_HARDWARE,
};

/* 2.4.4: EAX privileges, EDX features of LEAF_FEATURES; 2.4.5: EAX of LEAF_HINTS */
enum {
	PRIVILEGE_VP_RUNTIME = 1 << 0,
	PRIVILEGE_REFERENCE_COUNTER = 1 << 1,
	PRIVILEGE_SYNIC = 1 << 2,
	PRIVILEGE_TIMERS = 1 << 3,
	PRIVILEGE_APIC = 1 << 4,
	PRIVILEGE_HYPERCALL = 1 << 5,
	PRIVILEGE_VP_INDEX = 1 << 6,
	PRIVILEGE_REFERENCE_TSC = 1 << 9,
	PRIVILEGE_FREQUENCIES = 1 << 11,
	FEATURE_FREQUENCIES = 1 << 8,
	FEATURE_DIRECT_TIMERS = 1 << 19,
	HINT_APIC_BY_MSR = 1 << 3,
	HINT_RELAXED_TIMING = 1 << 5,
	SPIN_RETRIES = 0x1fff,
};

#define PRIVILEGES                                                                                                     \
	((uint32_t)PRIVILEGE_VP_RUNTIME | PRIVILEGE_REFERENCE_COUNTER | PRIVILEGE_SYNIC | PRIVILEGE_TIMERS |           \
	 PRIVILEGE_APIC | PRIVILEGE_HYPERCALL | PRIVILEGE_VP_INDEX | PRIVILEGE_REFERENCE_TSC | PRIVILEGE_FREQUENCIES)

#define MSR_GUEST_OS_ID   0x40000000
#define MSR_HYPERCALL     0x40000001
#define MSR_REFERENCE_TSC 0x40000021
#define MSR_ASSIST_PAGE   0x40000073
#define MSR_SCONTROL      0x40000080
#define MSR_SIEFP         0x40000082
#define MSR_SIMP          0x40000083
#define MSR_SINT0         0x40000090
#define MSR_STIMER0       0x400000b0 /* configuration, count; four timers */
#define SINTS             16
#define TIMERS            4
#define SINT_MASKED       0x10000

static const struct kvm_cpuid_entry2 *hv_leaf(const struct cpu_offer *offer, uint32_t function)
{
	return cpuid_find(offer->hv_entry, offer->hv_entries, function, 0);
}

struct error *hyperv_add_leaves(const struct cpu_offer *offer, bool hide_kvm, struct cpu_model *model)
{
	/* The version is that of Windows Server 2016, the first with all of these. */
	static const struct kvm_cpuid_entry2 leaf[] = {
		{.function = LEAF_VENDOR,
		 .eax = LEAF_HARDWARE,
		 .ebx = 0x7263694d,
		 .ecx = 0x666f736f,
		 .edx = 0x76482074},
		{.function = LEAF_INTERFACE, .eax = 0x31237648}, /* "Hv#1" */
		{.function = LEAF_VERSION, .eax = 14393, .ebx = 10 << 16},
		{.function = LEAF_FEATURES, .eax = PRIVILEGES, .edx = FEATURE_FREQUENCIES | FEATURE_DIRECT_TIMERS},
		{.function = LEAF_HINTS, .eax = HINT_APIC_BY_MSR | HINT_RELAXED_TIMING, .ebx = SPIN_RETRIES},
		{.function = LEAF_LIMITS, .eax = VCPUS_MAX, .ebx = VCPUS_MAX},
	};
	size_t kept = 0;

	for (size_t i = 0; i < model->entries; i++) {
		struct kvm_cpuid_entry2 e = model->entry[i];
		bool kvm = e.function == KVM_CPUID_SIGNATURE || e.function == KVM_CPUID_FEATURES;
		if (kvm && hide_kvm)
			continue;
		if (kvm)
			e.function += CPUID_KVM_MOVED;
		if (e.function == KVM_CPUID_SIGNATURE + CPUID_KVM_MOVED)
			e.eax = KVM_CPUID_FEATURES + CPUID_KVM_MOVED;
		model->entry[kept++] = e;
	}
	if (kept + ARRAY_SIZE(leaf) > CPUID_ENTRIES_MAX)
		return error_new(E2BIG, "show Hyper-V's interface: KVM offers too many CPUID leaves");
	memcpy(model->entry + kept, leaf, sizeof(leaf));
	model->entries = kept + ARRAY_SIZE(leaf);
	return hyperv_check(offer, model);
}

/* What of Hyper-V's features a KVM may lack, by name. */
static const struct {
	uint32_t leaf, eax, edx;
	const char *name;
} parts[] = {
	{LEAF_FEATURES, PRIVILEGE_VP_RUNTIME, 0, "VP run time"},
	{LEAF_FEATURES, PRIVILEGE_REFERENCE_COUNTER, 0, "reference counter"},
	{LEAF_FEATURES, PRIVILEGE_SYNIC, 0, "SynIC"},
	{LEAF_FEATURES, PRIVILEGE_TIMERS, 0, "synthetic timers"},
	{LEAF_FEATURES, PRIVILEGE_APIC, 0, "APIC registers"},
	{LEAF_FEATURES, PRIVILEGE_HYPERCALL, 0, "hypercalls"},
	{LEAF_FEATURES, PRIVILEGE_VP_INDEX, 0, "VP index"},
	{LEAF_FEATURES, PRIVILEGE_REFERENCE_TSC, 0, "TSC page"},
	{LEAF_FEATURES, PRIVILEGE_FREQUENCIES, 0, "frequencies"},
	{LEAF_FEATURES, 0, FEATURE_FREQUENCIES, "frequency registers"},
	{LEAF_FEATURES, 0, FEATURE_DIRECT_TIMERS, "direct timers"},
};

struct error *hyperv_check(const struct cpu_offer *offer, const struct cpu_model *model)
{
	char missing[256] = "";
	size_t at = 0;

	if (!model->hyperv)
		return NULL;
	if (offer->hv_entries == 0)
		return error_hint(error_new(ENOTSUP, "show Hyper-V's interface: this machine's KVM has none"),
				  "leave out --hyperv, or choose a host whose KVM has it");
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		const struct kvm_cpuid_entry2 *want = cpuid_find(model->entry, model->entries, parts[i].leaf, 0);
		const struct kvm_cpuid_entry2 *has = hv_leaf(offer, parts[i].leaf);
		if (!want || !(want->eax & parts[i].eax || want->edx & parts[i].edx))
			continue;
		if (has && (has->eax & parts[i].eax) == parts[i].eax && (has->edx & parts[i].edx) == parts[i].edx)
			continue;
		if (at < sizeof(missing))
			at += (size_t)snprintf(missing + at, sizeof(missing) - at, "%s%s", at ? ", " : "",
					       parts[i].name);
	}
	if (!at)
		return NULL;
	return error_hint(error_new(ENOTSUP, "show Hyper-V's interface: this machine's KVM lacks %s", missing),
			  "choose a host with a newer kernel");
}

struct error *hyperv_enable(int vm_fd, int vcpu_fd)
{
	struct kvm_enable_cap synic = {.cap = KVM_CAP_HYPERV_SYNIC2};
	struct kvm_enable_cap enforce = {.cap = KVM_CAP_HYPERV_ENFORCE_CPUID, .args = {1}};

	if (ioctl(vcpu_fd, KVM_ENABLE_CAP, &synic) < 0)
		return error_new(errno, "turn on Hyper-V's interrupt controller (KVM_CAP_HYPERV_SYNIC2)");
	/* What is not shown is then not there either; older kernels do without. */
	if (ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_ENFORCE_CPUID) > 0 &&
	    ioctl(vcpu_fd, KVM_ENABLE_CAP, &enforce) < 0)
		return error_new(errno, "keep the guest to what of Hyper-V it is shown (KVM_CAP_HYPERV_ENFORCE_CPUID)");
	return NULL;
}

void hyperv_msrs(uint32_t msr[HYPERV_MSRS])
{
	unsigned n = 0;

	msr[n++] = MSR_ASSIST_PAGE;
	msr[n++] = MSR_SCONTROL;
	msr[n++] = MSR_SIEFP;
	msr[n++] = MSR_SIMP;
	for (unsigned i = 0; i < SINTS; i++)
		msr[n++] = MSR_SINT0 + i;
	/* A timer starts when its count is there, so what it needs is there before. */
	for (unsigned i = 0; i < 2 * TIMERS; i++)
		msr[n++] = MSR_STIMER0 + i;
}

size_t hyperv_reset_msrs(uint32_t msr[HYPERV_RESET_MSRS], uint64_t value[HYPERV_RESET_MSRS])
{
	size_t n = 0;

	hyperv_msrs(msr);
	/* Timers stop first: the list backwards. */
	for (unsigned i = 0; i < HYPERV_MSRS / 2; i++) {
		uint32_t other = msr[i];
		msr[i] = msr[HYPERV_MSRS - 1 - i];
		msr[HYPERV_MSRS - 1 - i] = other;
	}
	n = HYPERV_MSRS;
	msr[n++] = MSR_REFERENCE_TSC;
	msr[n++] = MSR_HYPERCALL;
	msr[n++] = MSR_GUEST_OS_ID;
	for (size_t i = 0; i < n; i++)
		value[i] = msr[i] >= MSR_SINT0 && msr[i] < MSR_SINT0 + SINTS ? SINT_MASKED : 0;
	return n;
}
