/*
 * Unit tests of CPU models: made from what KVM answers on an Intel and an AMD machine (cpuid_examples.h), looked at as
 * a guest does.
 */
#include "base/util.h"
#include "vmm/cpu/cpuid_examples.h"
#include "vmm/cpu/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct cpu_offer intel, amd;
static struct cpu_model model;

static void fill(struct cpu_offer *offer, const struct kvm_cpuid_entry2 *entry, size_t count)
{
	*offer = (struct cpu_offer){.entries = count};
	memcpy(offer->entry, entry, count * sizeof(*entry));
	cpu_offer_limit(offer, true);
}

static int setup(void **state)
{
	fill(&intel, example_intel, ARRAY_SIZE(example_intel));
	fill(&amd, example_amd, ARRAY_SIZE(example_amd));
	return 0;
}

static struct cpu_config config(const char *name, unsigned sockets, unsigned cores, unsigned threads)
{
	return (struct cpu_config){
		.model = name, .vcpus = sockets * cores * threads, .topology = {sockets, cores, threads}};
}

static void make(const struct cpu_offer *offer, struct cpu_config c)
{
	assert_null(cpu_model_make(offer, &c, &model));
}

/* What vCPU @cpu reads; zeros where nothing is. */
static struct kvm_cpuid_entry2 leaf(unsigned cpu, uint32_t function, uint32_t index)
{
	static struct kvm_cpuid_entry2 entry[CPUID_ENTRIES_MAX];

	cpu_model_of_vcpu(&model, cpu, entry);
	const struct kvm_cpuid_entry2 *e = cpuid_find(entry, model.entries, function, index);
	return e ? *e : (struct kvm_cpuid_entry2){0};
}

static void is_refused(struct error *err, const char *words)
{
	assert_non_null(err);
	if (!strstr(error_text(err), words))
		fail_msg("'%s' does not say '%s'", error_text(err), words);
	error_free(err);
}

static void host_is_what_kvm_offers(void **state)
{
	(void)state;
	make(&intel, config("host", 1, 1, 1));
	struct kvm_cpuid_entry2 e = leaf(0, 1, 0);
	assert_int_equal(e.eax, 0x50654);
	/* No VMX, no MONITOR, no HTT for a single one; all else is there. */
	assert_int_equal(e.ecx, 0xfffa322b & ~0x28u);
	assert_int_equal(e.edx, 0x0f8bfbff);
	assert_int_equal(leaf(0, 0xa, 0).eax, 0);
	assert_int_equal(leaf(0, 7, 0).ebx, 0xd19f07ab);
	assert_int_equal(model.physical_bits, 46);
	make(&amd, config("host", 1, 1, 1));
	assert_int_equal(leaf(0, 0x80000021, 0).eax, 0x18000265);
	assert_int_equal(model.physical_bits, 48);
	assert_null(cpu_model_check(&amd, &model));
}

static void intel_sees_its_topology(void **state)
{
	(void)state;
	/* 2 sockets of 6 cores of 2 threads: APIC ids of 1 + 3 bits and the socket's. */
	make(&intel, config("host", 2, 6, 2));
	unsigned last = 23;
	uint32_t id = 1 << 4 | 5 << 1 | 1;
	assert_int_equal(leaf(last, 1, 0).ebx >> 24, id);
	assert_int_equal(leaf(last, 1, 0).ebx >> 16 & 0xff, 16);
	assert_true(leaf(last, 1, 0).edx & F1_EDX_HTT);
	assert_int_equal(leaf(last, 4, 0).eax >> 14 & 0xfff, 1);  /* L1: both threads */
	assert_int_equal(leaf(last, 4, 2).eax >> 14 & 0xfff, 1);  /* L2 */
	assert_int_equal(leaf(last, 4, 3).eax >> 14 & 0xfff, 15); /* L3: the socket */
	assert_int_equal(leaf(last, 4, 3).eax >> 26, 7);
	for (uint32_t function = 0xb; function <= 0x1f; function += 0x14) {
		assert_int_equal(leaf(last, function, 0).eax, 1);
		assert_int_equal(leaf(last, function, 0).ebx, 2);
		assert_int_equal(leaf(last, function, 0).ecx, 0x100);
		assert_int_equal(leaf(last, function, 1).eax, 4);
		assert_int_equal(leaf(last, function, 1).ebx, 12);
		assert_int_equal(leaf(last, function, 1).ecx, 0x201);
		assert_int_equal(leaf(last, function, 2).ebx, 0);
		for (unsigned index = 0; index < 3; index++)
			assert_int_equal(leaf(last, function, index).edx, id);
	}
	assert_int_equal(leaf(last, 0x80000001, 0).ecx & FEXT1_ECX_CMP_LEGACY, 0);
	assert_int_equal(leaf(last, 0x8000001e, 0).eax, 0);
}

static void amd_sees_its_topology(void **state)
{
	(void)state;
	make(&amd, config("host", 2, 3, 2));
	unsigned last = 11;
	uint32_t id = 1 << 3 | 2 << 1 | 1;
	assert_int_equal(leaf(last, 1, 0).ebx >> 16, id << 8 | 6);
	assert_int_equal(leaf(last, 0x80000008, 0).ecx & 0xf0ff, 3 << 12 | 5);
	assert_int_equal(leaf(last, 0x80000008, 0).eax, 0x3030);
	assert_int_equal(leaf(last, 0x80000001, 0).ecx & (FEXT1_ECX_CMP_LEGACY | FEXT1_ECX_TOPOEXT),
			 FEXT1_ECX_CMP_LEGACY | FEXT1_ECX_TOPOEXT);
	assert_int_equal(leaf(last, 0x8000001d, 0).eax >> 14 & 0xfff, 1);
	assert_int_equal(leaf(last, 0x8000001d, 3).eax >> 14 & 0xfff, 5);
	struct kvm_cpuid_entry2 e = leaf(last, 0x8000001e, 0);
	assert_int_equal(e.eax, id);
	assert_int_equal(e.ebx, 1 << 8 | 2);
	assert_int_equal(e.ecx, 1);
	assert_int_equal(leaf(last, 0xb, 1).ebx, 6);
	assert_int_equal(leaf(last, 0x1f, 1).ebx, 0);
	/* 256 of them: what has no room is cut, not wrapped. */
	make(&amd, config("host", 1, 256, 1));
	assert_int_equal(leaf(255, 1, 0).ebx >> 16, 0xffff);
	assert_int_equal(leaf(255, 0x80000008, 0).ecx & 0xf0ff, 0x80ff);
	assert_int_equal(leaf(255, 0x8000001d, 3).eax >> 14 & 0xfff, 255);
}

/* The contract of each model, bit by bit: what a machine was once started with must never change. */
static void named_models_are_fixed(void **state)
{
	static const struct {
		const char *name;
		uint32_t ecx1, edx1, ebx7, ext_ecx, ext_edx, xcr0, xsave, xsave_bytes;
	} contract[CPU_CONTRACTS] = {
		{"x86-64-v1", 0x81200000, 0x078bfbfd, 0, 0, 0x20100800, 0, 0, 0},
		{"x86-64-v2", 0x81b82201, 0x078bfbfd, 0, 0x1, 0x20100800, 0, 0, 0},
		{"x86-64-v3", 0xf7f83203, 0x078bfbfd, 0x1a9, 0x21, 0x2c100800, 0x7, 0x1, 0x340},
		{"x86-64-v4", 0xf7fa3203, 0x078bfbfd, 0xd19f07a9, 0x21, 0x2c100800, 0xe7, 0x7, 0xa80},
	};

	(void)state;
	for (size_t i = 0; i < CPU_CONTRACTS; i++) {
		make(&intel, config(contract[i].name, 1, 1, 1));
		assert_int_equal(leaf(0, 1, 0).ecx, contract[i].ecx1);
		assert_int_equal(leaf(0, 1, 0).edx, contract[i].edx1);
		assert_int_equal(leaf(0, 7, 0).ebx, contract[i].ebx7);
		assert_int_equal(leaf(0, 7, 0).ecx, 0);
		assert_int_equal(leaf(0, 7, 0).edx, 0);
		assert_int_equal(leaf(0, 0x80000001, 0).ecx, contract[i].ext_ecx);
		assert_int_equal(leaf(0, 0x80000001, 0).edx, contract[i].ext_edx);
		assert_int_equal(leaf(0, 0x80000007, 0).edx, 0);
		assert_int_equal(leaf(0, 0x80000008, 0).eax, 0x3027);
		assert_int_equal(leaf(0, 0xd, 0).eax, contract[i].xcr0);
		assert_int_equal(leaf(0, 0xd, 0).ecx, contract[i].xsave_bytes);
		assert_int_equal(leaf(0, 0xd, 1).eax, contract[i].xsave);
		assert_int_equal(leaf(0, 0x40000001, 0).eax, 0x01007efb);
		assert_int_equal(leaf(0, 0, 0).eax, 0xd);
		assert_int_equal(leaf(0, 0, 0).ebx, 0x756e6547);
		assert_int_equal(model.physical_bits, 39);
	}
}

static void a_named_model_has_its_makers_leaves(void **state)
{
	struct cpu_features on_intel, on_amd;

	(void)state;
	make(&intel, config("x86-64-v1", 1, 4, 2));
	features_of(model.entry, model.entries, &on_intel);
	assert_int_equal(leaf(0, 1, 0).eax, 0x106a5);
	assert_int_equal(leaf(0, 4, 3).eax >> 14 & 0xfff, 7);
	assert_int_equal(leaf(0, 4, 4).eax, 0);
	assert_int_equal(leaf(0, 0x80000000, 0).eax, 0x80000008);
	make(&amd, config("x86-64-v1", 1, 4, 2));
	features_of(model.entry, model.entries, &on_amd);
	assert_int_equal(leaf(0, 1, 0).eax, 0x100f42);
	assert_int_equal(leaf(0, 0x80000001, 0).eax, 0x100f42);
	assert_int_equal(leaf(0, 0x8000001d, 3).eax >> 14 & 0xfff, 7);
	assert_int_equal(leaf(5, 0x8000001e, 0).ebx, 1 << 8 | 2);
	assert_int_equal(leaf(0, 0x80000000, 0).eax, 0x8000001e);
	assert_int_equal(leaf(0, 0x80000002, 0).eax, 0x6e696c47); /* "Glin" */
	/* Features are the same but for what AMD repeats and says of topology. */
	on_amd.word[WORD_EXT_1_EDX] &= ~FEXT1_EDX_AS_LEAF_1;
	on_amd.word[WORD_EXT_1_ECX] &= ~(uint32_t)(FEXT1_ECX_TOPOEXT | FEXT1_ECX_CMP_LEGACY);
	assert_memory_equal(&on_intel, &on_amd, sizeof(on_intel));
}

static void what_is_missing_is_named(void **state)
{
	struct cpu_config v2 = config("x86-64-v2", 1, 1, 1), v3 = config("x86-64-v3", 1, 1, 1);

	(void)state;
	is_refused(cpu_model_make(&amd, &v2, &model), ": sse3, ssse3, sse4_1, sse4_2, popcnt");
	is_refused(cpu_model_make(&amd, &v3, &model), "avx2, smep, bmi2");
	struct cpu_offer other = intel;
	other.entry[8].ebx &= ~(1u << 5 | 1u << 8); /* leaf 7: no AVX2, no BMI2 */
	is_refused(cpu_model_make(&other, &v3, &model), "lacks: avx2, bmi2");
	/* What a v2 machine was saved with runs there; what all of the first host offered does not. */
	make(&intel, v2);
	assert_null(cpu_model_check(&other, &model));
	make(&intel, config("host", 1, 1, 1));
	is_refused(cpu_model_check(&other, &model),
		   "CPU model host needs what this machine's processor or its KVM lacks: "
		   "avx2, bmi2");
	/* A bit that has no name is told by its place. */
	make(&intel, config("host", 1, 1, 1));
	for (size_t i = 0; i < model.entries; i++)
		if (model.entry[i].function == 0x80000008)
			model.entry[i].ebx |= 1u << 31;
	is_refused(cpu_model_check(&intel, &model), "CPUID 0x80000008/0 EBX bit 31");
}

static void addresses_maker_and_layout_count(void **state)
{
	struct cpu_config wide = config("x86-64-v2", 1, 1, 1);

	(void)state;
	wide.physical_bits = 46;
	make(&intel, wide);
	assert_int_equal(leaf(0, 0x80000008, 0).eax, 0x302e);
	wide.physical_bits = 47;
	is_refused(cpu_model_make(&intel, &wide, &model),
		   "47-bit physical addresses, this machine's processor only 46");
	make(&intel, config("x86-64-v1", 1, 1, 1));
	is_refused(cpu_model_check(&amd, &model),
		   "made on a processor of GenuineIntel; this machine's is of AuthenticAMD");
	make(&intel, config("x86-64-v4", 1, 1, 1));
	struct cpu_offer other = intel;
	for (size_t i = 0; i < other.entries; i++)
		if (other.entry[i].function == 0xd && other.entry[i].index == 6)
			other.entry[i].ebx = 896; /* as AMD has it */
	is_refused(cpu_model_check(&other, &model), "component 6 of the extended state is 512 bytes at 1152, on this "
						    "machine 512 at 896");
}

static void hyperv_goes_before_kvm(void **state)
{
	struct cpu_config c = config("host", 1, 2, 1);
	struct cpu_features f;

	(void)state;
	c.hyperv = true;
	is_refused(cpu_model_make(&intel, &c, &model), "this machine's KVM has none");
	struct cpu_offer offer = intel;
	offer.hv_entries = 1;
	offer.hv_entry[0] = (struct kvm_cpuid_entry2){.function = 0x40000003, .eax = 0x0a7f, .edx = 0x80100};
	make(&offer, c);
	assert_int_equal(leaf(0, 0x40000000, 0).ebx, 0x7263694d);
	assert_int_equal(leaf(0, 0x40000000, 0).eax, 0x40000006);
	assert_int_equal(leaf(0, 0x40000003, 0).eax, 0x0a7f);
	assert_int_equal(leaf(0, 0x40000100, 0).eax, 0x40000101);
	assert_int_equal(leaf(0, 0x40000100, 0).ebx, 0x4b4d564b);
	assert_int_equal(leaf(0, 0x40000101, 0).eax, 0x01007efb);
	features_of(model.entry, model.entries, &f);
	assert_int_equal(f.word[WORD_KVM_EAX], 0x01007efb);
	assert_null(cpu_model_check(&offer, &model));
	offer.hv_entry[0].eax &= ~0x208u;
	is_refused(cpu_model_check(&offer, &model), "KVM lacks synthetic timers, TSC page");
	offer.hv_entry[0].eax |= 0x208u;
	c.hide_kvm = true;
	make(&offer, c);
	assert_int_equal(leaf(0, 0x40000100, 0).ebx, 0);
	features_of(model.entry, model.entries, &f);
	assert_int_equal(f.word[WORD_KVM_EAX], 0);
	assert_null(cpu_model_check(&offer, &model));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(host_is_what_kvm_offers),
		cmocka_unit_test(intel_sees_its_topology),
		cmocka_unit_test(amd_sees_its_topology),
		cmocka_unit_test(named_models_are_fixed),
		cmocka_unit_test(a_named_model_has_its_makers_leaves),
		cmocka_unit_test(what_is_missing_is_named),
		cmocka_unit_test(addresses_maker_and_layout_count),
		cmocka_unit_test(hyperv_goes_before_kvm),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
