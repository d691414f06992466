/*
 * The CPU model; see model.h. Leaves are those of the Intel SDM volume 2, CPUID, and the AMD APM volume 3, appendix E;
 * KVM's own are Linux's Documentation/virt/kvm/x86/cpuid.rst. Touches /dev/kvm's descriptor only to ask.
 *
 * The maker stays the host's in every model: what system calls of 32-bit programs do, and which registers there are,
 * differs in silicon, and an operating system chooses by the maker. Family and model of a named one are fixed, so that
 * it does not tie itself to the model it happened to start on. Topology and caches are the machine's, not the host's.
 */
#include "vmm/cpu/model.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define INDEXED KVM_CPUID_FLAG_SIGNIFCANT_INDEX

enum maker { INTEL, AMD, OTHER_MAKER };

static enum maker maker_of(const struct kvm_cpuid_entry2 *entry, size_t count)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(entry, count, 0, 0);

	switch (e ? e->ebx : 0) {
	case 0x756e6547: /* GenuineIntel */
		return INTEL;
	case 0x68747541: /* AuthenticAMD */
	case 0x6f677948: /* HygonGenuine, AMD's design */
		return AMD;
	default:
		return OTHER_MAKER;
	}
}

static unsigned address_bits(const struct kvm_cpuid_entry2 *entry, size_t count)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(entry, count, 0x80000008, 0);

	return e && (e->eax & 0xff) ? e->eax & 0xff : CPU_BITS_MIN;
}

/* --- the offer --- */

/* No nested virtualisation, no MONITOR (it would need its own exits), no performance counters. */
static void limit(struct kvm_cpuid_entry2 *e, bool deadline)
{
	switch (e->function) {
	case 0x1:
		e->ecx &= ~(uint32_t)(F1_ECX_MONITOR | F1_ECX_VMX);
		/* The APIC is KVM's, and so is that there is a hypervisor. */
		e->ecx |= F1_ECX_HYPERVISOR | F1_ECX_X2APIC | (deadline ? F1_ECX_TSC_DEADLINE : 0);
		break;
	case 0xa:
	case 0x8000000a:
	case 0x80000022:
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0x80000001:
		e->ecx &= ~(uint32_t)(FEXT1_ECX_SVM | FEXT1_ECX_PERFCTR);
		break;
	default:
		break;
	}
}

void cpu_offer_limit(struct cpu_offer *offer, bool deadline)
{
	for (size_t i = 0; i < offer->entries; i++)
		limit(&offer->entry[i], deadline);
}

static struct error *ask(int kvm_fd, unsigned long request, const char *name, struct kvm_cpuid_entry2 *entry,
			 size_t max, size_t *count)
{
	cleanup_free struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + max * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return error_new(ENOMEM, "ask KVM what processor it offers");
	cpuid->nent = (uint32_t)max;
	if (ioctl(kvm_fd, request, cpuid) < 0)
		return error_new(errno, "ask KVM what processor it offers (%s)", name);
	*count = MIN((size_t)cpuid->nent, max);
	memcpy(entry, cpuid->entries, *count * sizeof(*entry));
	return NULL;
}

struct error *cpu_offer_get(int kvm_fd, struct cpu_offer *offer)
{
	offer->hv_entries = 0;
	TRY(ask(kvm_fd, KVM_GET_SUPPORTED_CPUID, "KVM_GET_SUPPORTED_CPUID", offer->entry, ARRAY_SIZE(offer->entry),
		&offer->entries));
	bool deadline = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	cpu_offer_limit(offer, deadline);
	if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SYS_HYPERV_CPUID) > 0)
		TRY(ask(kvm_fd, KVM_GET_SUPPORTED_HV_CPUID, "KVM_GET_SUPPORTED_HV_CPUID", offer->hv_entry,
			ARRAY_SIZE(offer->hv_entry), &offer->hv_entries));
	return NULL;
}

/* --- building --- */

static void add(struct cpu_model *model, const struct kvm_cpuid_entry2 *e)
{
	/* A leaf that is not there reads as zeros anyhow. */
	if ((e->eax || e->ebx || e->ecx || e->edx) && model->entries < CPUID_ENTRIES_MAX)
		model->entry[model->entries++] = *e;
}

static bool made_by_topology(uint32_t function)
{
	return function == 0xb || function == 0x1f || function == 0x8000001e;
}

/* How many logical processors share a cache of @level: a core's threads, or all of the socket. */
static unsigned sharing(const struct cpu_topology *t, unsigned level)
{
	return level >= 3 ? t->cores * t->threads : t->threads;
}

/* The same as Intel counts it: ids that there could be. */
static unsigned sharing_ids(const struct cpu_topology *t, unsigned level)
{
	return 1u << (topology_thread_bits(t) + (level >= 3 ? topology_core_bits(t) : 0));
}

/* The fields of a leaf that tell topology. */
static void fit(struct kvm_cpuid_entry2 *e, const struct cpu_topology *t, enum maker maker)
{
	unsigned threads = t->cores * t->threads, bits = topology_thread_bits(t) + topology_core_bits(t);
	unsigned level = e->eax >> 5 & 7;

	switch (e->function) {
	case 0x1: /* EBX 23:16 logical processors in the socket; the APIC id in 31:24 is put in per vCPU */
		e->ebx = (e->ebx & 0xffff) | MIN(maker == AMD ? threads : 1u << bits, 255u) << 16;
		e->edx = threads > 1 ? e->edx | F1_EDX_HTT : e->edx & ~(uint32_t)F1_EDX_HTT;
		break;
	case 0x4: /* Intel's caches; cores in the socket */
		if (e->eax & 0x1f)
			e->eax = (e->eax & 0x3fff) | (MIN(1u << topology_core_bits(t), 64u) - 1) << 26 |
				 (sharing_ids(t, level) - 1) << 14;
		break;
	case 0x80000001:
		e->ecx &= ~(uint32_t)FEXT1_ECX_CMP_LEGACY;
		if (maker == AMD)
			e->ecx |= FEXT1_ECX_TOPOEXT | (threads > 1 ? FEXT1_ECX_CMP_LEGACY : 0);
		break;
	case 0x80000008: /* ECX: logical processors, and how many bits of an APIC id number them */
		if (maker == AMD)
			e->ecx = (e->ecx & ~0xf0ffu) | bits << 12 | (MIN(threads, 256u) - 1);
		break;
	case 0x8000001d: /* AMD's caches */
		if (e->eax & 0x1f)
			e->eax = (e->eax & 0x3fff) | (sharing(t, level) - 1) << 14;
		break;
	default:
		break;
	}
}

/* Leaf 0xB and its like: threads of a core, threads of a socket. EDX, the x2APIC id, is put in per vCPU. */
static void add_levels(struct cpu_model *model, uint32_t function)
{
	const struct cpu_topology *t = &model->topology;
	unsigned thread_bits = topology_thread_bits(t);
	const struct kvm_cpuid_entry2 level[] = {
		{.function = function,
		 .index = 0,
		 .flags = INDEXED,
		 .eax = thread_bits,
		 .ebx = t->threads,
		 .ecx = 1 << 8},
		{.function = function,
		 .index = 1,
		 .flags = INDEXED,
		 .eax = thread_bits + topology_core_bits(t),
		 .ebx = t->cores * t->threads,
		 .ecx = 2 << 8 | 1},
		{.function = function, .index = 2, .flags = INDEXED, .ecx = 2},
	};

	for (size_t i = 0; i < ARRAY_SIZE(level); i++)
		add(model, &level[i]);
}

static uint32_t last_leaf(const struct cpu_model *model, uint32_t first)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(model->entry, model->entries, first, 0);

	return e ? e->eax : 0;
}

static void add_topology(struct cpu_model *model, enum maker maker)
{
	add_levels(model, 0xb);
	if (maker == INTEL && last_leaf(model, 0) >= 0x1f)
		add_levels(model, 0x1f);
	if (maker == AMD && last_leaf(model, 0x80000000) >= 0x8000001e) {
		/* EAX, EBX and ECX are put in per vCPU; this keeps the place. */
		struct kvm_cpuid_entry2 e = {.function = 0x8000001e, .ebx = 1};
		add(model, &e);
	}
}

static void set_address_bits(struct cpu_model *model, unsigned bits)
{
	model->physical_bits = bits;
	for (size_t i = 0; i < model->entries; i++)
		if (model->entry[i].function == 0x80000008)
			model->entry[i].eax = (model->entry[i].eax & ~0xff00ffu) | bits;
}

static void make_host(const struct cpu_offer *offer, enum maker maker, struct cpu_model *model)
{
	for (size_t i = 0; i < offer->entries; i++) {
		struct kvm_cpuid_entry2 e = offer->entry[i];
		if (made_by_topology(e.function))
			continue;
		fit(&e, &model->topology, maker);
		add(model, &e);
	}
}

/* Leaf 0xD: components and where each lies, which is the host's to say; how large all are together. */
static void add_xsave(const struct cpu_offer *offer, const struct cpu_features *f, struct cpu_model *model)
{
	struct kvm_cpuid_entry2 main = {.function = 0xd, .flags = INDEXED, .ebx = 576, .ecx = 576};
	struct kvm_cpuid_entry2 more = {.function = 0xd, .index = 1, .flags = INDEXED};

	if (!f->word[WORD_D_EAX])
		return;
	features_put(f, &main);
	features_put(f, &more);
	for (unsigned i = 2; i < 32; i++) {
		const struct kvm_cpuid_entry2 *e = cpuid_find(offer->entry, offer->entries, 0xd, i);
		if (e && main.eax >> i & 1)
			main.ecx = MAX(main.ecx, e->ebx + e->eax);
	}
	add(model, &main);
	add(model, &more);
	for (unsigned i = 2; i < 32; i++) {
		const struct kvm_cpuid_entry2 *e = cpuid_find(offer->entry, offer->entries, 0xd, i);
		if (e && main.eax >> i & 1)
			add(model, e);
	}
}

/* The caches of a named model: 32 KiB for data and code, 1 MiB, and 16 MiB for the socket; lines of 64 bytes. */
static void add_caches(struct cpu_model *model, enum maker maker)
{
	static const struct {
		uint32_t type, level, ways, sets;
	} cache[] = {{1, 1, 8, 64}, {2, 1, 8, 64}, {3, 2, 16, 1024}, {3, 3, 16, 16384}};
	struct kvm_cpuid_entry2 descriptors = {.function = 0x2, .eax = 0x00ff01}; /* see leaf 4 */
	struct kvm_cpuid_entry2 l1 = {.function = 0x80000005, .ecx = 32u << 24 | 8 << 16 | 1 << 8 | 64};
	struct kvm_cpuid_entry2 l2 = {.function = 0x80000006, .ecx = 1024u << 16 | 8 << 12 | 1 << 8 | 64};

	for (uint32_t i = 0; i < ARRAY_SIZE(cache); i++) {
		struct kvm_cpuid_entry2 e = {.function = maker == AMD ? 0x8000001d : 0x4,
					     .index = i,
					     .flags = INDEXED,
					     .eax = cache[i].type | cache[i].level << 5 | 1 << 8,
					     .ebx = (cache[i].ways - 1) << 22 | 63,
					     .ecx = cache[i].sets - 1};
		fit(&e, &model->topology, maker);
		add(model, &e);
	}
	if (maker == AMD) {
		l1.edx = l1.ecx;
		l2.edx = 32u << 18 | 8 << 12 | 1 << 8 | 64; /* in units of 512 KiB */
		add(model, &l1);
	} else {
		add(model, &descriptors);
	}
	add(model, &l2);
}

static void add_brand(struct cpu_model *model)
{
	char text[48] = {0};

	snprintf(text, sizeof(text), "Glint %.20s virtual processor", model->name);
	for (uint32_t i = 0; i < 3; i++) {
		uint32_t r[4];
		memcpy(r, text + i * sizeof(r), sizeof(r));
		add(model, &(struct kvm_cpuid_entry2){
				   .function = 0x80000002 + i, .eax = r[0], .ebx = r[1], .ecx = r[2], .edx = r[3]});
	}
}

/* Address bits that every machine with the features has: client processors have 39. */
#define CONTRACT_BITS 39

static void make_named(const struct cpu_offer *offer, const struct cpu_contract *contract, enum maker maker,
		       struct cpu_model *model)
{
	const struct kvm_cpuid_entry2 *vendor = cpuid_find(offer->entry, offer->entries, 0, 0);
	const uint32_t signature = maker == AMD ? contract->amd : contract->intel;
	struct kvm_cpuid_entry2 leaf[] = {
		{.function = 0, .eax = 0xd, .ebx = vendor->ebx, .ecx = vendor->ecx, .edx = vendor->edx},
		{.function = 1, .eax = signature, .ebx = 64 / 8 << 8},
		{.function = 6},
		{.function = 7, .flags = INDEXED},
		{.function = 0x80000000,
		 .eax = maker == AMD ? 0x8000001e : 0x80000008,
		 .ebx = maker == AMD ? vendor->ebx : 0,
		 .ecx = maker == AMD ? vendor->ecx : 0,
		 .edx = maker == AMD ? vendor->edx : 0},
		{.function = 0x80000001, .eax = maker == AMD ? signature : 0},
		{.function = 0x80000008, .eax = 48 << 8 | CONTRACT_BITS},
		{.function = KVM_CPUID_SIGNATURE,
		 .eax = KVM_CPUID_FEATURES,
		 .ebx = 0x4b4d564b,
		 .ecx = 0x564b4d56,
		 .edx = 0x4d},
		{.function = KVM_CPUID_FEATURES},
	};
	struct cpu_features f;

	cpu_contract_features(contract, &f);
	if (maker == AMD)
		f.word[WORD_EXT_1_EDX] |= f.word[WORD_1_EDX] & FEXT1_EDX_AS_LEAF_1;
	for (size_t i = 0; i < ARRAY_SIZE(leaf); i++) {
		features_put(&f, &leaf[i]);
		fit(&leaf[i], &model->topology, maker);
		add(model, &leaf[i]);
	}
	add_brand(model);
	add_caches(model, maker);
	add_xsave(offer, &f, model);
}

struct error *cpu_model_make(const struct cpu_offer *offer, const struct cpu_config *config, struct cpu_model *model)
{
	enum maker maker = maker_of(offer->entry, offer->entries);
	unsigned bits = address_bits(offer->entry, offer->entries);
	const struct cpu_contract *contract = cpu_contract_find(config->model);

	*model = (struct cpu_model){
		.vcpus = config->vcpus, .topology = config->topology, .physical_bits = bits, .hyperv = config->hyperv};
	snprintf(model->name, sizeof(model->name), "%s", config->model);
	if (contract && maker == OTHER_MAKER)
		return error_new(ENOTSUP, "CPU model %s: neither Intel nor AMD made this machine's processor",
				 model->name);
	if (contract)
		make_named(offer, contract, maker, model);
	else
		make_host(offer, maker, model);
	add_topology(model, maker);
	if (contract || config->physical_bits)
		set_address_bits(model, config->physical_bits ? config->physical_bits : CONTRACT_BITS);
	if (config->hyperv)
		TRY(hyperv_add_leaves(offer, config->hide_kvm, model));
	return contract || config->physical_bits ? cpu_model_check(offer, model) : NULL;
}

/* --- checking --- */

static struct error *check_maker(const struct cpu_offer *offer, const struct cpu_model *model)
{
	const struct kvm_cpuid_entry2 *want = cpuid_find(model->entry, model->entries, 0, 0);
	const struct kvm_cpuid_entry2 *has = cpuid_find(offer->entry, offer->entries, 0, 0);
	char words[2][13] = {"?", "?"};
	const struct kvm_cpuid_entry2 *both[2] = {want, has};

	for (unsigned i = 0; i < 2; i++) {
		if (!both[i])
			continue;
		memcpy(words[i], &both[i]->ebx, 4);
		memcpy(words[i] + 4, &both[i]->edx, 4);
		memcpy(words[i] + 8, &both[i]->ecx, 4);
	}
	if (memcmp(words[0], words[1], 12) == 0)
		return NULL;
	for (unsigned i = 0; i < 12; i++) /* the stream's are any bytes */
		if (words[0][i] < ' ' || words[0][i] > '~')
			words[0][i] = '?';
	return error_hint(error_new(ENOTSUP, "CPU model %s was made on a processor of %s; this machine's is of %s",
				    model->name, words[0], words[1]),
			  "a machine moves between processors of one maker");
}

/* Components of extended state that the guest may use must lie where they lay. */
static struct error *check_xsave(const struct cpu_offer *offer, const struct cpu_model *model)
{
	static const struct kvm_cpuid_entry2 none;

	for (size_t i = 0; i < model->entries; i++) {
		const struct kvm_cpuid_entry2 *want = &model->entry[i];
		if (want->function != 0xd || want->index < 2)
			continue;
		const struct kvm_cpuid_entry2 *has = cpuid_find(offer->entry, offer->entries, 0xd, want->index);
		if (!has)
			has = &none;
		if (want->eax != has->eax || want->ebx != has->ebx)
			return error_new(ENOTSUP,
					 "CPU model %s: component %u of the extended state is %u bytes at %u, on this "
					 "machine %u at %u",
					 model->name, want->index, want->eax, want->ebx, has->eax, has->ebx);
	}
	return NULL;
}

struct error *cpu_model_check(const struct cpu_offer *offer, const struct cpu_model *model)
{
	unsigned bits = address_bits(offer->entry, offer->entries);
	struct cpu_features wanted, has;
	char names[2048];

	TRY(check_maker(offer, model));
	features_of(model->entry, model->entries, &wanted);
	features_of(offer->entry, offer->entries, &has);
	/* What follows from topology or from what the guest's system does is not KVM's to offer. */
	has.word[WORD_1_ECX] |= F1_ECX_OSXSAVE;
	has.word[WORD_1_EDX] |= F1_EDX_HTT;
	has.word[WORD_7_ECX] |= F7_ECX_OSPKE;
	has.word[WORD_EXT_1_ECX] |= FEXT1_ECX_CMP_LEGACY | FEXT1_ECX_TOPOEXT;
	if (features_missing(&wanted, &has, names, sizeof(names)))
		return error_hint(error_new(ENOTSUP,
					    "CPU model %s needs what this machine's processor or its KVM lacks: %s",
					    model->name, names),
				  "choose a host whose processor has it, or start the machine with a lesser model");
	if (model->physical_bits > bits)
		return error_hint(
			error_new(ENOTSUP,
				  "CPU model %s has %u-bit physical addresses, this machine's processor only %u "
				  "bits",
				  model->name, model->physical_bits, bits),
			"start the machine with phys-bits=%u", bits);
	TRY(check_xsave(offer, model));
	return hyperv_check(offer, model);
}

void cpu_model_of_vcpu(const struct cpu_model *model, unsigned index, struct kvm_cpuid_entry2 *entry)
{
	const struct cpu_topology *t = &model->topology;
	uint32_t id = topology_apic_id(t, index);

	memcpy(entry, model->entry, model->entries * sizeof(*entry));
	for (size_t i = 0; i < model->entries; i++) {
		struct kvm_cpuid_entry2 *e = &entry[i];
		if (e->function == 0x1)
			e->ebx = (e->ebx & 0x00ffffff) | (id & 0xff) << 24;
		if (e->function == 0xb || e->function == 0x1f)
			e->edx = id;
		if (e->function == 0x8000001e) { /* the id; core, and threads in it; socket, as the one node of it */
			e->eax = id;
			e->ebx = (t->threads - 1) << 8 | (index / t->threads % t->cores & 0xff);
			e->ecx = index / t->threads / t->cores & 0xff;
		}
	}
}

/* --- saving --- */

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

static void topology_state(void *self, struct saved *s)
{
	struct cpu_topology *t = self;
	struct cpu_topology saved = *t;

	saved_u32(s, "sockets", &saved.sockets);
	saved_u32(s, "cores", &saved.cores);
	saved_u32(s, "threads", &saved.threads);
	if (saved_loading(s) && memcmp(&saved, t, sizeof(saved)) != 0)
		saved_fail(s, "the saved VM has %u sockets of %u cores of %u threads, this one %u, %u and %u (--cpus)",
			   saved.sockets, saved.cores, saved.threads, t->sockets, t->cores, t->threads);
}

/* What is not the model `host`. */
static void kind_state(void *self, struct saved *s)
{
	struct cpu_model *model = self;
	bool hyperv = model->hyperv;

	saved_string(s, "name", model->name, sizeof(model->name));
	saved_bool(s, "hyperv", &hyperv);
	for (const char *c = model->name; *c && saved_loading(s); c++)
		if (*c <= ' ' || *c > '~')
			saved_fail(s, "the name of the CPU model is garbage");
	if (saved_loading(s) && hyperv != model->hyperv)
		saved_fail(s, "the saved VM was started %s Hyper-V's interface, this one %s (--hyperv)",
			   hyperv ? "with" : "without", model->hyperv ? "with" : "without");
}

void cpu_model_state(void *self, struct saved *s)
{
	struct cpu_model *model = self;
	uint32_t vcpus = model->vcpus, bits = model->physical_bits;
	struct cpu_topology flat = {1, model->vcpus, 1};
	bool shaped = memcmp(&model->topology, &flat, sizeof(flat)) != 0;
	bool special = strcmp(model->name, "host") != 0 || model->hyperv;

	if (saved_loading(s))
		snprintf(model->name, sizeof(model->name), "host");
	if (!saved_subsection(s, "kind", special, kind_state, model) && saved_loading(s) && model->hyperv)
		saved_fail(s, "the saved VM was started without Hyper-V's interface, this one with it (--hyperv)");
	saved_require(s);
	saved_u32(s, "vcpus", &vcpus);
	saved_require(s);
	saved_u32(s, "physical-bits", &bits);
	if (!saved_subsection(s, "topology", shaped, topology_state, &model->topology) && saved_loading(s) && shaped)
		saved_fail(s, "the saved VM has one socket of %u cores, this one another topology (--cpus)", vcpus);
	saved_require(s);
	saved_list(s, "cpuid", model->entry, &model->entries, CPUID_ENTRIES_MAX, sizeof(model->entry[0]), entry_state);
	if (!saved_loading(s))
		return;
	if (vcpus != model->vcpus)
		saved_fail(s, "the saved VM has %u vCPUs, this one was given %u", vcpus, model->vcpus);
	if (bits < 32 || bits > CPU_BITS_MAX)
		saved_fail(s, "%u-bit physical addresses", bits);
	model->physical_bits = bits;
}
