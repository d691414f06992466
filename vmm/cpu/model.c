/*
 * The CPU model: what CPUID says. It starts as what KVM supports on this machine, less what glint-q35-1 does not
 * have, plus the topology of one socket; it is saved with the VM and never rebuilt on arrival.
 *
 * Leaves and bits are those of the AMD64 APM volume 3 appendix E and the Intel SDM volume 2, CPUID. KVM's own leaves
 * (0x40000000...) are Linux's Documentation/virt/kvm/x86/cpuid.rst. Touches /dev/kvm's descriptor and the vCPUs'.
 */
#include "vmm/cpu/vcpu.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* CPUID.1 */
#define ECX_MONITOR      (1u << 3)
#define ECX_VMX          (1u << 5)
#define ECX_X2APIC       (1u << 21)
#define ECX_TSC_DEADLINE (1u << 24)
#define ECX_HYPERVISOR   (1u << 31)
#define EDX_HTT          (1u << 28)
/* CPUID.80000001 */
#define ECX_CMP_LEGACY (1u << 1)
#define ECX_SVM        (1u << 2)

/* How many bits number the cores of a socket with @vcpus of them. */
static unsigned core_bits(unsigned vcpus)
{
	unsigned bits = 0;

	while ((1u << bits) < vcpus)
		bits++;
	return bits;
}

/* Leaf 1: no nested virtualisation, no MONITOR (it would need its own exits); a hypervisor is there. */
static void set_features(struct kvm_cpuid_entry2 *e, unsigned vcpus, bool deadline)
{
	e->ecx &= ~(ECX_MONITOR | ECX_VMX);
	e->ecx |= ECX_HYPERVISOR | ECX_X2APIC | (deadline ? ECX_TSC_DEADLINE : 0);
	e->edx = vcpus > 1 ? e->edx | EDX_HTT : e->edx & ~EDX_HTT;
	/* EBX 23:16 counts logical processors; the APIC id in 31:24 is put in per vCPU. */
	e->ebx = (e->ebx & 0x0000ffff) | MIN(1u << core_bits(vcpus), 255u) << 16;
}

/* One leaf of the model, changed to suit the machine. Returns false for a leaf that is left out. */
static bool adapt(struct kvm_cpuid_entry2 *e, unsigned vcpus, bool deadline)
{
	unsigned bits = core_bits(vcpus);

	switch (e->function) {
	case 0x1:
		set_features(e, vcpus, deadline);
		return true;
	case 0x4: /* Intel's caches: who shares them; cores in the package */
		if ((e->eax & 0x1f) != 0)
			e->eax = (e->eax & 0x3fff) | ((1u << bits) - 1) << 26 |
				 (((e->eax >> 5 & 7) >= 3 ? (1u << bits) - 1 : 0) << 14);
		return true;
	case 0x8000001d: /* AMD's caches */
		if ((e->eax & 0x1f) != 0)
			e->eax = (e->eax & 0x3fff) | ((e->eax >> 5 & 7) >= 3 ? vcpus - 1 : 0) << 14;
		return true;
	case 0xa: /* no performance counters: they cannot be saved on every machine */
	case 0xb: /* the topology leaves are made below */
	case 0x1f:
		return false;
	case 0x80000001:
		e->ecx &= ~(ECX_SVM | ECX_CMP_LEGACY);
		e->ecx |= vcpus > 1 ? ECX_CMP_LEGACY : 0;
		return true;
	case 0x80000008: /* EAX: address widths, kept; ECX: cores and the width of their number */
		e->ecx = (e->ecx & ~0xf0ffu) | bits << 12 | MIN(vcpus - 1, 255u);
		return true;
	case 0x8000000a: /* SVM */
	case 0x8000001e: /* AMD's own ids: the topology leaf says all of it */
		return false;
	default:
		return true;
	}
}

static void add_entry(struct cpu_model *model, const struct kvm_cpuid_entry2 *e)
{
	if (model->entries < VCPU_CPUID_MAX)
		model->entry[model->entries++] = *e;
}

/* Leaf 0xB: a thread per core, @vcpus cores in the one socket. EDX, the x2APIC id, is put in per vCPU. */
static void add_topology(struct cpu_model *model)
{
	unsigned bits = core_bits(model->vcpus);
	struct kvm_cpuid_entry2 level = {.function = 0xb, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX};

	level.ebx = 1;
	level.ecx = 1 << 8; /* SMT */
	add_entry(model, &level);
	level.index = 1;
	level.eax = bits;
	level.ebx = model->vcpus;
	level.ecx = 2 << 8 | 1; /* core */
	add_entry(model, &level);
	level.index = 2;
	level.eax = level.ebx = 0;
	level.ecx = 2;
	add_entry(model, &level);
}

static struct error *supported(int kvm_fd, struct kvm_cpuid2 **out)
{
	cleanup_free struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + VCPU_CPUID_MAX * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return error_new(ENOMEM, "ask KVM what processor it offers");
	cpuid->nent = VCPU_CPUID_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		return error_new(errno, "ask KVM what processor it offers (KVM_GET_SUPPORTED_CPUID)");
	*out = steal_ptr(&cpuid);
	return NULL;
}

struct error *cpu_model_host(int kvm_fd, unsigned vcpus, struct cpu_model *model)
{
	cleanup_free struct kvm_cpuid2 *cpuid = NULL;

	*model = (struct cpu_model){.vcpus = vcpus, .physical_bits = 36};
	TRY(supported(kvm_fd, &cpuid));
	bool deadline = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	for (unsigned i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 e = cpuid->entries[i];
		if (e.function == 0x80000008)
			model->physical_bits = e.eax & 0xff;
		if (adapt(&e, vcpus, deadline))
			add_entry(model, &e);
	}
	add_topology(model);
	return NULL;
}

/* The feature words a model may ask of a machine: every set bit must be supported there. */
static const struct {
	uint32_t function, index;
	bool eax, ebx, ecx, edx;
} feature_words[] = {
	{0x1, 0, false, false, true, true},         {0x7, 0, false, true, true, true},
	{0x7, 1, true, false, false, true},         {0xd, 0, true, false, false, false},
	{0xd, 1, true, false, false, false},        {0x80000001, 0, false, false, true, true},
	{0x80000008, 0, false, true, false, false}, {0x40000001, 0, true, false, false, false},
};

static const struct kvm_cpuid_entry2 *lookup(const struct kvm_cpuid_entry2 *entry, size_t count, uint32_t function,
					     uint32_t index)
{
	for (size_t i = 0; i < count; i++)
		if (entry[i].function == function &&
		    (entry[i].index == index || !(entry[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return &entry[i];
	return NULL;
}

static struct error *check_word(uint32_t function, uint32_t index, const char *reg, uint32_t wanted, uint32_t has)
{
	uint32_t missing = wanted & ~has;

	if (!missing)
		return NULL;
	return error_hint(error_new(ENOTSUP,
				    "the machine's processor lacks CPUID 0x%x/%u %s bit %d, which the VM has seen",
				    function, index, reg, __builtin_ctz(missing)),
			  "restore it on a host whose processor has the feature");
}

/* Refuses a model that asks for more than KVM offers here. The bits this file sets itself are not asked of KVM. */
static struct error *check_model(int kvm_fd, const struct cpu_model *model)
{
	cleanup_free struct kvm_cpuid2 *cpuid = NULL;
	static const struct kvm_cpuid_entry2 none;

	TRY(supported(kvm_fd, &cpuid));
	for (size_t i = 0; i < ARRAY_SIZE(feature_words); i++) {
		uint32_t function = feature_words[i].function, index = feature_words[i].index;
		const struct kvm_cpuid_entry2 *want = lookup(model->entry, model->entries, function, index);
		const struct kvm_cpuid_entry2 *has = lookup(cpuid->entries, cpuid->nent, function, index);
		if (!want)
			continue;
		if (!has)
			has = &none;
		uint32_t own_ecx = function == 1            ? ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE
				   : function == 0x80000001 ? ECX_CMP_LEGACY
							    : 0;
		uint32_t own_edx = function == 1 ? EDX_HTT : 0;
		if (feature_words[i].eax)
			TRY(check_word(function, index, "EAX", want->eax, has->eax));
		if (feature_words[i].ebx)
			TRY(check_word(function, index, "EBX", want->ebx, has->ebx));
		if (feature_words[i].ecx)
			TRY(check_word(function, index, "ECX", want->ecx & ~own_ecx, has->ecx));
		if (feature_words[i].edx)
			TRY(check_word(function, index, "EDX", want->edx & ~own_edx, has->edx));
	}
	return NULL;
}

static struct error *apply_one(const struct vcpu *vcpu, const struct cpu_model *model)
{
	cleanup_free struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + model->entries * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return error_new(ENOMEM, "describe the processor to vCPU %u", vcpu->index);
	cpuid->nent = (uint32_t)model->entries;
	memcpy(cpuid->entries, model->entry, model->entries * sizeof(model->entry[0]));
	for (unsigned i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
		if (e->function == 0x1)
			e->ebx = (e->ebx & 0x00ffffff) | (vcpu->index & 0xff) << 24;
		if (e->function == 0xb)
			e->edx = vcpu->index;
	}
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0)
		return error_new(errno, "describe the processor to vCPU %u (KVM_SET_CPUID2)", vcpu->index);
	return NULL;
}

struct error *vcpus_apply_model(struct vcpus *group)
{
	TRY(check_model(group->kvm_fd, &group->model));
	for (unsigned i = 0; i < group->count; i++)
		TRY(apply_one(&group->vcpu[i], &group->model));
	return NULL;
}

static void entry_state(void *self, struct saved *s)
{
	struct kvm_cpuid_entry2 *e = self;

	saved_u32(s, "function", &e->function);
	saved_u32(s, "index", &e->index);
	saved_u32(s, "flags", &e->flags);
	saved_u32(s, "eax", &e->eax);
	saved_u32(s, "ebx", &e->ebx);
	saved_u32(s, "ecx", &e->ecx);
	saved_u32(s, "edx", &e->edx);
}

void cpu_model_state(void *self, struct saved *s)
{
	struct cpu_model *model = self;
	uint32_t vcpus = model->vcpus, bits = model->physical_bits;

	saved_require(s);
	saved_u32(s, "vcpus", &vcpus);
	saved_require(s);
	saved_u32(s, "physical-bits", &bits);
	saved_require(s);
	saved_list(s, "cpuid", model->entry, &model->entries, VCPU_CPUID_MAX, sizeof(model->entry[0]), entry_state);
	if (!saved_loading(s))
		return;
	if (vcpus != model->vcpus)
		saved_fail(s, "the saved VM has %u vCPUs, this one was given %u", vcpus, model->vcpus);
	if (bits > model->physical_bits)
		saved_fail(s, "the saved VM has %u-bit physical addresses, this machine's processor only %u bits", bits,
			   model->physical_bits);
	model->physical_bits = bits;
}
