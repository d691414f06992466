/*
 * The features of CPUID by name: which bit of which register of which leaf each is, and the named models, which are
 * lists of them.
 *
 * A set of features is a word for each register that holds some. Names are those of Linux's /proc/cpuinfo where it has
 * one, for that is what a person can look up. Pure; touches nothing.
 */
#ifndef GLINT_VMM_CPU_FEATURES_H
#define GLINT_VMM_CPU_FEATURES_H

#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stddef.h>
#include <stdint.h>

enum feature_word {
	WORD_1_ECX,
	WORD_1_EDX,
	WORD_6_EAX,
	WORD_7_EBX,
	WORD_7_ECX,
	WORD_7_EDX,
	WORD_7_1_EAX,
	WORD_7_1_EDX,
	WORD_7_2_EDX,
	WORD_D_EAX, /* components of extended state */
	WORD_D_1_EAX,
	WORD_D_1_ECX, /* components that only the supervisor sees */
	WORD_EXT_1_ECX,
	WORD_EXT_1_EDX,
	WORD_EXT_7_EDX,
	WORD_EXT_8_EBX,
	WORD_EXT_21_EAX,
	WORD_KVM_EAX,
	FEATURE_WORDS
};

struct cpu_features {
	uint32_t word[FEATURE_WORDS];
};

/* Bits that this program's own code looks at. */
enum {
	F1_ECX_MONITOR = 1 << 3,
	F1_ECX_VMX = 1 << 5,
	F1_ECX_X2APIC = 1 << 21,
	F1_ECX_TSC_DEADLINE = 1 << 24,
	F1_ECX_XSAVE = 1 << 26,
	F1_ECX_OSXSAVE = 1 << 27,
	F1_EDX_HTT = 1 << 28,
	F7_ECX_OSPKE = 1 << 4,
	FEXT1_ECX_CMP_LEGACY = 1 << 1,
	FEXT1_ECX_SVM = 1 << 2,
	FEXT1_ECX_TOPOEXT = 1 << 22,
	FEXT1_ECX_PERFCTR = 3 << 23 | 1 << 28,
};
#define F1_ECX_HYPERVISOR   (1u << 31)
#define F7_EDX_ARCH_CAPS    (1u << 29)
#define FEXT1_EDX_AS_LEAF_1 0x0183f3ffu /* AMD repeats these bits of leaf 1 in 0x80000001 */

/* The entry of a leaf; NULL when there is none. */
const struct kvm_cpuid_entry2 *cpuid_find(const struct kvm_cpuid_entry2 *entry, size_t count, uint32_t function,
					  uint32_t index);

/* Where KVM's leaves are when Hyper-V's are at the usual place: this much higher. */
#define CPUID_KVM_MOVED 0x100

/* Whether the leaf 0x40000000 @e (or NULL) has Hyper-V's signature. */
bool cpuid_is_hyperv(const struct kvm_cpuid_entry2 *e);

/* The features that a CPUID table shows; KVM's own leaf is looked for where Hyper-V's leaves move it to as well. */
void features_of(const struct kvm_cpuid_entry2 *entry, size_t count, struct cpu_features *f);

/* The words of leaf @function, index @index, put into @e: its other registers stay. */
void features_put(const struct cpu_features *f, struct kvm_cpuid_entry2 *e);

/* The names of all bits of @wanted that @has lacks, ", " between them, cut to @size. Returns how many there are. */
unsigned features_missing(const struct cpu_features *wanted, const struct cpu_features *has, char *names, size_t size);

/* A named model: what every processor of its level has. */
struct cpu_contract {
	const char *name;
	const char *adds;    /* features beside those of the models before it */
	uint32_t intel, amd; /* family, model and stepping as leaf 1 shows them, by the maker of the host's processor */
};
#define CPU_CONTRACTS 4
extern const struct cpu_contract cpu_contracts[CPU_CONTRACTS];

/* The model @name; NULL when there is none. */
const struct cpu_contract *cpu_contract_find(const char *name);
/* All features of @contract. */
void cpu_contract_features(const struct cpu_contract *contract, struct cpu_features *f);

#endif
