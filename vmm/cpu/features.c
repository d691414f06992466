/*
 * CPUID's features by name; see features.h. Bits are those of the Intel SDM volume 2, CPUID, and the AMD APM volume 3,
 * appendix E; KVM's are Linux's Documentation/virt/kvm/x86/cpuid.rst.
 *
 * The levels of the named models are those of the x86-64 psABI (v1 to v4), with what an operating system needs of every
 * such processor. From v3 on they also hold what all processors of the level have had since the first: v3 is Haswell,
 * Excavator and later, v4 Skylake-SP, Zen 4 and later. Left out are features that microcode gives and takes (IBRS and
 * its kind), and those that only one maker has.
 */
#include "vmm/cpu/features.h"

#include "base/util.h"

#include <stdio.h>
#include <string.h>

enum { EAX, EBX, ECX, EDX };

/* clang-format off */
static const struct {
	uint32_t function, index;
	unsigned reg;
	const char *name[32]; /* of each bit, from 0 on */
} words[FEATURE_WORDS] = {
	[WORD_1_ECX] = {0x1, 0, ECX, {"sse3", "pclmulqdq", "dtes64", "monitor", "ds_cpl", "vmx", "smx", "est",
		"tm2", "ssse3", "cid", "sdbg", "fma", "cx16", "xtpr", "pdcm",
		NULL, "pcid", "dca", "sse4_1", "sse4_2", "x2apic", "movbe", "popcnt",
		"tsc_deadline_timer", "aes", "xsave", "osxsave", "avx", "f16c", "rdrand", "hypervisor"}},
	[WORD_1_EDX] = {0x1, 0, EDX, {"fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce",
		"cx8", "apic", NULL, "sep", "mtrr", "pge", "mca", "cmov",
		"pat", "pse36", "pn", "clflush", NULL, "dts", "acpi", "mmx",
		"fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe"}},
	[WORD_6_EAX] = {0x6, 0, EAX, {[2] = "arat"}},
	[WORD_7_EBX] = {0x7, 0, EBX, {"fsgsbase", "tsc_adjust", "sgx", "bmi1", "hle", "avx2", "fdp_excptn_only", "smep",
		"bmi2", "erms", "invpcid", "rtm", "cqm", "zero_fcs_fds", "mpx", "rdt_a",
		"avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma", "pcommit", "clflushopt",
		"clwb", "intel_pt", "avx512pf", "avx512er", "avx512cd", "sha_ni", "avx512bw", "avx512vl"}},
	[WORD_7_ECX] = {0x7, 0, ECX, {"prefetchwt1", "avx512vbmi", "umip", "pku", "ospke", "waitpkg", "avx512_vbmi2", "shstk",
		"gfni", "vaes", "vpclmulqdq", "avx512_vnni", "avx512_bitalg", "tme", "avx512_vpopcntdq", NULL,
		"la57", NULL, NULL, NULL, NULL, NULL, "rdpid", NULL,
		"bus_lock_detect", "cldemote", NULL, "movdiri", "movdir64b", "enqcmd", "sgx_lc", "pks"}},
	[WORD_7_EDX] = {0x7, 0, EDX, {NULL, NULL, "avx512_4vnniw", "avx512_4fmaps", "fsrm", "uintr", NULL, NULL,
		"avx512_vp2intersect", "srbds_ctrl", "md_clear", "rtm_always_abort", NULL, "tsx_force_abort", "serialize", "hybrid",
		"tsxldtrk", NULL, "pconfig", "arch_lbr", "ibt", NULL, "amx_bf16", "avx512_fp16",
		"amx_tile", "amx_int8", "spec_ctrl", "intel_stibp", "flush_l1d", "arch_capabilities", "core_capabilities", "spec_ctrl_ssbd"}},
	[WORD_7_1_EAX] = {0x7, 1, EAX, {"sha512", "sm3", "sm4", NULL, "avx_vnni", "avx512_bf16", "lass", "cmpccxadd",
		NULL, NULL, "fzrm", "fsrs", "fsrc", [17] = "fred", [18] = "lkgs", [19] = "wrmsrns",
		[21] = "amx_fp16", [22] = "hreset", [23] = "avx_ifma", [26] = "lam"}},
	[WORD_7_1_EDX] = {0x7, 1, EDX, {[4] = "avx_vnni_int8", [5] = "avx_ne_convert", [8] = "amx_complex", [10] = "avx_vnni_int16",
		[14] = "prefetchiti", [19] = "avx10"}},
	[WORD_7_2_EDX] = {0x7, 2, EDX, {"intel_psfd", "ipred_ctrl", "rrsba_ctrl", "ddpd_u", "bhi_ctrl", "mcdt_no"}},
	[WORD_D_EAX] = {0xd, 0, EAX, {"xstate_x87", "xstate_sse", "xstate_avx", "xstate_bndregs", "xstate_bndcsr", "xstate_opmask",
		"xstate_zmm_hi256", "xstate_hi16_zmm", [9] = "xstate_pkru", [17] = "xstate_tilecfg", [18] = "xstate_tiledata"}},
	[WORD_D_1_EAX] = {0xd, 1, EAX, {"xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd"}},
	[WORD_D_1_ECX] = {0xd, 1, ECX, {[8] = "xstate_pt", [11] = "xstate_cet_u", [12] = "xstate_cet_s"}},
	[WORD_EXT_1_ECX] = {0x80000001, 0, ECX, {"lahf_lm", "cmp_legacy", "svm", "extapic", "cr8_legacy", "abm", "sse4a", "misalignsse",
		"3dnowprefetch", "osvw", "ibs", "xop", "skinit", "wdt", NULL, "lwp",
		"fma4", "tce", NULL, "nodeid_msr", NULL, "tbm", "topoext", "perfctr_core",
		"perfctr_nb", NULL, "bpext", "ptsc", "perfctr_llc", "mwaitx"}},
	[WORD_EXT_1_EDX] = {0x80000001, 0, EDX, {"amd_fpu", "amd_vme", "amd_de", "amd_pse", "amd_tsc", "amd_msr", "amd_pae", "amd_mce",
		"amd_cx8", "amd_apic", NULL, "syscall", "amd_mtrr", "amd_pge", "amd_mca", "amd_cmov",
		"amd_pat", "amd_pse36", NULL, "mp", "nx", NULL, "mmxext", "amd_mmx",
		"amd_fxsr", "fxsr_opt", "pdpe1gb", "rdtscp", NULL, "lm", "3dnowext", "3dnow"}},
	[WORD_EXT_7_EDX] = {0x80000007, 0, EDX, {[8] = "constant_tsc"}},
	[WORD_EXT_8_EBX] = {0x80000008, 0, EBX, {"clzero", "irperf", "xsaveerptr", NULL, "rdpru", NULL, NULL, NULL,
		NULL, "wbnoinvd", NULL, NULL, "amd_ibpb", NULL, "amd_ibrs", "amd_stibp",
		"ibrs_always_on", "stibp_always_on", "ibrs_preferred", "ibrs_same_mode", "no_efer_lmsle", [24] = "amd_ssbd",
		[25] = "virt_ssbd", [26] = "amd_ssb_no", [27] = "cppc", [28] = "amd_psfd", [29] = "btc_no", [30] = "ibpb_ret"}},
	[WORD_EXT_21_EAX] = {0x80000021, 0, EAX, {"no_nested_data_bp", [2] = "lfence_rdtsc", [6] = "null_sel_clr_base",
		[8] = "auto_ibrs", [9] = "no_smm_ctl_msr", [17] = "prefetchi", [27] = "sbpb", [28] = "ibpb_brtype", [29] = "srso_no",
		[30] = "srso_user_kernel_no"}},
	[WORD_KVM_EAX] = {KVM_CPUID_FEATURES, 0, EAX, {"kvm_clock", "kvm_nopiodelay", "kvm_mmu", "kvm_clock2", "kvm_async_pf", "kvm_steal_time",
		"kvm_pv_eoi", "kvm_pv_unhalt", NULL, "kvm_pv_tlb_flush", "kvm_async_pf_vmexit", "kvm_pv_ipi",
		"kvm_poll_control", "kvm_pv_sched_yield", "kvm_async_pf_int", "kvm_msi_ext_dest_id",
		"kvm_hc_map_gpa_range", "kvm_migration_control", [24] = "kvm_clock_stable"}},
};

const struct cpu_contract cpu_contracts[CPU_CONTRACTS] = {
	{.name = "x86-64-v1", .intel = 0x106a5, .amd = 0x100f42,
	 .adds = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 "
		 "syscall nx lm x2apic tsc_deadline_timer hypervisor arat kvm_clock kvm_nopiodelay kvm_clock2 kvm_async_pf "
		 "kvm_steal_time kvm_pv_eoi kvm_pv_unhalt kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_ipi kvm_poll_control "
		 "kvm_pv_sched_yield kvm_async_pf_int kvm_clock_stable"},
	{.name = "x86-64-v2", .intel = 0x106a5, .amd = 0x100f42, .adds = "sse3 ssse3 sse4_1 sse4_2 cx16 popcnt lahf_lm"},
	{.name = "x86-64-v3", .intel = 0x306f2, .amd = 0x830f10,
	 .adds = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave xsaveopt xstate_x87 xstate_sse xstate_avx aes pclmulqdq "
		 "rdrand fsgsbase smep rdtscp pdpe1gb"},
	{.name = "x86-64-v4", .intel = 0x50654, .amd = 0xa10f11,
	 .adds = "avx512f avx512bw avx512cd avx512dq avx512vl xstate_opmask xstate_zmm_hi256 xstate_hi16_zmm xsavec xgetbv1 "
		 "rdseed adx smap clflushopt clwb pcid invpcid erms"},
};
/* clang-format on */

const struct kvm_cpuid_entry2 *cpuid_find(const struct kvm_cpuid_entry2 *entry, size_t count, uint32_t function,
					  uint32_t index)
{
	for (size_t i = 0; i < count; i++)
		if (entry[i].function == function &&
		    (entry[i].index == index || !(entry[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return &entry[i];
	return NULL;
}

bool cpuid_is_hyperv(const struct kvm_cpuid_entry2 *e)
{
	return e && e->ebx == 0x7263694d && e->ecx == 0x666f736f && e->edx == 0x76482074; /* "Microsoft Hv" */
}

static const uint32_t *register_of(const struct kvm_cpuid_entry2 *e, unsigned reg)
{
	const uint32_t *const place[] = {[EAX] = &e->eax, [EBX] = &e->ebx, [ECX] = &e->ecx, [EDX] = &e->edx};

	return place[reg];
}

void features_of(const struct kvm_cpuid_entry2 *entry, size_t count, struct cpu_features *f)
{
	bool moved = cpuid_find(entry, count, KVM_CPUID_SIGNATURE + CPUID_KVM_MOVED, 0) != NULL;
	bool hidden = !moved && cpuid_is_hyperv(cpuid_find(entry, count, KVM_CPUID_SIGNATURE, 0));

	for (unsigned w = 0; w < FEATURE_WORDS; w++) {
		bool kvm = words[w].function == KVM_CPUID_FEATURES;
		uint32_t function = words[w].function + (kvm && moved ? CPUID_KVM_MOVED : 0);
		const struct kvm_cpuid_entry2 *e = NULL;
		if (!kvm || !hidden)
			e = cpuid_find(entry, count, function, words[w].index);
		f->word[w] = e ? *register_of(e, words[w].reg) : 0;
	}
}

void features_put(const struct cpu_features *f, struct kvm_cpuid_entry2 *e)
{
	uint32_t *const place[] = {[EAX] = &e->eax, [EBX] = &e->ebx, [ECX] = &e->ecx, [EDX] = &e->edx};

	for (unsigned w = 0; w < FEATURE_WORDS; w++)
		if (words[w].function == e->function && words[w].index == e->index)
			*place[words[w].reg] = f->word[w];
}

unsigned features_missing(const struct cpu_features *wanted, const struct cpu_features *has, char *names, size_t size)
{
	static const char reg[][4] = {[EAX] = "EAX", [EBX] = "EBX", [ECX] = "ECX", [EDX] = "EDX"};
	unsigned missing = 0;
	size_t at = 0;

	names[0] = '\0';
	for (unsigned i = 0; i < FEATURE_WORDS * 32; i++) {
		unsigned w = i / 32, bit = i % 32;
		if (!((wanted->word[w] & ~has->word[w]) >> bit & 1))
			continue;
		const char *comma = missing++ ? ", " : "";
		if (at >= size)
			continue;
		int n = words[w].name[bit] ? snprintf(names + at, size - at, "%s%s", comma, words[w].name[bit])
					   : snprintf(names + at, size - at, "%sCPUID 0x%x/%u %s bit %u", comma,
						      words[w].function, words[w].index, reg[words[w].reg], bit);
		at += (size_t)n;
	}
	return missing;
}

const struct cpu_contract *cpu_contract_find(const char *name)
{
	for (size_t i = 0; i < CPU_CONTRACTS; i++)
		if (strcmp(cpu_contracts[i].name, name) == 0)
			return &cpu_contracts[i];
	return NULL;
}

/* Sets the bit whose name the @len bytes at @name are. */
static void set_named(struct cpu_features *f, const char *name, size_t len)
{
	for (unsigned i = 0; i < FEATURE_WORDS * 32; i++) {
		const char *known = words[i / 32].name[i % 32];
		if (known && strlen(known) == len && memcmp(known, name, len) == 0)
			f->word[i / 32] |= 1u << i % 32;
	}
}

void cpu_contract_features(const struct cpu_contract *contract, struct cpu_features *f)
{
	*f = (struct cpu_features){0};
	for (const struct cpu_contract *c = cpu_contracts; c <= contract; c++)
		for (const char *word = c->adds; *word; word += strspn(word, " ")) {
			size_t len = strcspn(word, " ");
			set_named(f, word, len);
			word += len;
		}
}
