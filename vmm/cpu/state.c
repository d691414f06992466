/*
 * The state of a vCPU: saved, loaded, reset, and set to a boot entry.
 *
 * Order on load matters (KVM checks one against another): CPUID is there already; then system registers, extended
 * state, MSRs, LAPIC, the deadline timer (which needs the LAPIC's mode), events, run state, general registers.
 * KVM's structures are kernel ABI and are saved as their bytes; MSRs are saved as number and value, so that a machine
 * with other MSRs can still load those it has.
 *
 * Touches the vCPUs' KVM descriptors only; all of it on the main thread while the vCPUs are parked.
 */
#include "vmm/cpu/vcpu.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/cpu/hyperv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define MSR_MAX             1024
#define MSR_TSC             0x10
#define MSR_TSC_DEADLINE    0x6e0
#define MSR_MISC_ENABLE     0x1a0
#define MISC_ENABLE_STRINGS 1ull
#define EFER_LME            (1ull << 8)
#define EFER_LMA            (1ull << 10)
#define APIC_BASE_X2APIC    (1ull << 10)
#define CR0_PE              1ull
#define CR0_ET              (1ull << 4)
#define CR0_PG              (1ull << 31)
#define CR4_PAE             (1ull << 5)
#define SELECTOR_CODE       0x10
#define SELECTOR_DATA       0x18

/* A KVM structure by name: fetched, saved as bytes, and set again. */
struct kvm_part {
	const char *name;
	unsigned long get, set;
	size_t size;
};

static const struct kvm_part early_parts[] = {
	{"sregs", KVM_GET_SREGS, KVM_SET_SREGS, sizeof(struct kvm_sregs)},
	{"debugregs", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs)},
	{"xcrs", KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs)},
};

static const struct kvm_part late_parts[] = {
	{"events", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events)},
	{"mp-state", KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state)},
	{"regs", KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs)},
};

static void part_state(struct vcpu *vcpu, struct saved *s, const struct kvm_part *part)
{
	union {
		struct kvm_sregs sregs;
		struct kvm_regs regs;
		struct kvm_debugregs debugregs;
		struct kvm_xcrs xcrs;
		struct kvm_vcpu_events events;
		struct kvm_mp_state mp;
		struct kvm_lapic_state lapic;
	} buf = {0};

	if (!saved_loading(s) && ioctl(vcpu->fd, part->get, &buf) < 0)
		saved_fail(s, "read %s from KVM: %s", part->name, strerror(errno));
	saved_require(s);
	saved_bytes(s, part->name, &buf, part->size);
	if (saved_loading(s) && ioctl(vcpu->fd, part->set, &buf) < 0)
		saved_fail(s, "KVM refuses the saved %s: %s", part->name, strerror(errno));
}

static void xsave_state(struct vcpu *vcpu, struct saved *s)
{
	size_t max = vcpu->group->xsave_bytes, len = max;
	bool large = max > sizeof(struct kvm_xsave);
	cleanup_free void *buf = calloc(1, max);

	if (!buf) {
		saved_fail(s, "no memory for the extended state");
		return;
	}
	if (!saved_loading(s) && ioctl(vcpu->fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, buf) < 0)
		saved_fail(s, "read the extended state from KVM: %s", strerror(errno));
	saved_require(s);
	saved_blob(s, "xsave", buf, &len, max);
	if (saved_loading(s) && ioctl(vcpu->fd, KVM_SET_XSAVE, buf) < 0)
		saved_fail(s, "KVM refuses the saved extended state: %s", strerror(errno));
}

/* A list of MSRs in the shape KVM_GET_MSRS takes. */
struct msr_list {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[MSR_MAX];
};

/* Reads what can be read: KVM stops at the first it refuses, so that one is left out and the rest asked again. */
static size_t read_msrs(struct vcpu *vcpu, struct msr_list *list)
{
	const struct kvm_msr_list *all = vcpu->group->msrs;
	size_t good = 0;

	for (uint32_t i = 0; i < all->nmsrs && good < MSR_MAX;) {
		struct msr_list *chunk = list;
		uint32_t count = (uint32_t)MIN((size_t)(all->nmsrs - i), MSR_MAX - good);
		struct kvm_msr_entry *dst = &list->entry[good];
		for (uint32_t j = 0; j < count; j++)
			dst[j] = (struct kvm_msr_entry){.index = all->indices[i + j]};
		/* KVM wants its entries right behind the head: read the whole list from its beginning each time. */
		chunk->head.nmsrs = (uint32_t)(good + count);
		int n = ioctl(vcpu->fd, KVM_GET_MSRS, chunk);
		if (n < 0 || (size_t)n < good)
			return good;
		uint32_t got = (uint32_t)((size_t)n - good);
		good += got;
		i += got + (got < count);
	}
	return good;
}

/* Sets one. A value the register already has needs no setting, which forgives read-only registers. */
static void write_msr(struct vcpu *vcpu, struct saved *s, const struct kvm_msr_entry *entry)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = {.head.nmsrs = 1, .entry = *entry};

	if (ioctl(vcpu->fd, KVM_SET_MSRS, &one) == 1)
		return;
	if (ioctl(vcpu->fd, KVM_GET_MSRS, &one) == 1 && one.entry.data == entry->data)
		return;
	saved_fail(s, "KVM refuses 0x%llx for MSR 0x%x", (unsigned long long)entry->data, entry->index);
}

static void msr_state(void *self, struct saved *s)
{
	struct kvm_msr_entry *e = self;

	saved_u32(s, "index", &e->index);
	saved_u64(s, "data", (uint64_t *)&e->data);
}

static void msrs_state(struct vcpu *vcpu, struct saved *s, struct msr_list *list)
{
	size_t count = saved_loading(s) ? 0 : read_msrs(vcpu, list);

	saved_require(s);
	saved_list(s, "msrs", list->entry, &count, MSR_MAX, sizeof(list->entry[0]), msr_state);
	list->head.nmsrs = (uint32_t)count;
	if (!saved_loading(s))
		return;
	for (size_t i = 0; i < count; i++)
		if (list->entry[i].index != MSR_TSC_DEADLINE)
			write_msr(vcpu, s, &list->entry[i]);
}

static void load_deadline(struct vcpu *vcpu, struct saved *s, const struct msr_list *list)
{
	for (uint32_t i = 0; i < list->head.nmsrs; i++)
		if (list->entry[i].index == MSR_TSC_DEADLINE && list->entry[i].data != 0)
			write_msr(vcpu, s, &list->entry[i]);
}

void vcpu_state(void *self, struct saved *s)
{
	static const struct kvm_part lapic = {"lapic", KVM_GET_LAPIC, KVM_SET_LAPIC, sizeof(struct kvm_lapic_state)};
	struct vcpu *vcpu = self;
	cleanup_free struct msr_list *list = calloc(1, sizeof(*list));

	if (!list) {
		saved_fail(s, "no memory for the processor's registers");
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(early_parts); i++)
		part_state(vcpu, s, &early_parts[i]);
	xsave_state(vcpu, s);
	msrs_state(vcpu, s, list);
	part_state(vcpu, s, &lapic);
	if (saved_loading(s))
		load_deadline(vcpu, s, list);
	for (size_t i = 0; i < ARRAY_SIZE(late_parts); i++)
		part_state(vcpu, s, &late_parts[i]);
}

/* --- reset and boot --- */

static struct kvm_segment segment(uint16_t selector, uint8_t type, bool code, bool long_mode)
{
	return (struct kvm_segment){.limit = 0xffffffff,
				    .selector = selector,
				    .type = type,
				    .present = 1,
				    .db = !(code && long_mode),
				    .s = 1,
				    .l = code && long_mode,
				    .g = 1};
}

/*
 * Turns x2APIC mode on, as firmware does on a machine that has an APIC id of 255: in the old mode that id addresses all
 * (Intel SDM volume 3, 11.12.5.1), so a kernel's INIT to that one processor would hit those it has started before.
 */
static struct error *all_to_x2apic(struct vcpus *group)
{
	struct kvm_sregs sregs;

	for (unsigned i = 0; i < group->count; i++) {
		int fd = group->vcpu[i].fd;
		if (ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
			return error_new(errno, "turn on x2APIC mode of vCPU %u (KVM_GET_SREGS)", i);
		sregs.apic_base |= APIC_BASE_X2APIC;
		if (ioctl(fd, KVM_SET_SREGS, &sregs) < 0)
			return error_new(errno, "turn on x2APIC mode of vCPU %u (KVM_SET_SREGS)", i);
	}
	return NULL;
}

struct error *vcpus_boot(struct vcpus *group, const struct boot_entry *entry)
{
	struct vcpu *vcpu = &group->vcpu[0];
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rip = entry->rip, .rsp = entry->rsp, .rsi = entry->rsi, .rbx = entry->rbx, .rflags = 2};

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
		return error_new(errno, "prepare the first vCPU (KVM_GET_SREGS)");
	sregs.cs = segment(SELECTOR_CODE, 0xb, true, entry->long_mode);
	sregs.ds = segment(SELECTOR_DATA, 0x3, false, entry->long_mode);
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	sregs.gdt.base = entry->gdt_base;
	sregs.gdt.limit = entry->gdt_limit;
	sregs.tr.type = 0xb; /* a busy TSS, as both protocols and VMX want */
	sregs.cr0 = CR0_PE | CR0_ET;
	sregs.cr4 = 0;
	sregs.efer = 0;
	if (entry->long_mode) {
		sregs.cr0 |= CR0_PG;
		sregs.cr3 = entry->cr3;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
	}
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0)
		return error_new(errno, "prepare the first vCPU (KVM_SET_SREGS)");
	if (ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0)
		return error_new(errno, "prepare the first vCPU (KVM_SET_REGS)");
	return vcpus_have_broadcast_id(group) ? all_to_x2apic(group) : NULL;
}

/* Code and data segments, tables and control registers as after RESET# (APM volume 2, table 14-1). */
static void power_on_sregs(struct kvm_sregs *sregs)
{
	struct kvm_segment data = {.limit = 0xffff, .type = 3, .present = 1, .s = 1};
	uint64_t apic_base = sregs->apic_base;

	*sregs = (struct kvm_sregs){.cr0 = 0x60000010, .apic_base = apic_base & ~0xc00ull};
	/* The APIC is on, not in x2APIC mode. */
	sregs->apic_base |= 1 << 11;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->cs = data;
	sregs->cs.type = 0xb;
	sregs->cs.selector = 0xf000;
	sregs->cs.base = 0xffff0000;
	sregs->ldt = (struct kvm_segment){.limit = 0xffff, .type = 2, .present = 1};
	sregs->tr = (struct kvm_segment){.limit = 0xffff, .type = 0xb, .present = 1};
	sregs->gdt.limit = sregs->idt.limit = 0xffff;
}

static void set_msr(struct vcpu *vcpu, uint32_t index, uint64_t data)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = {.head.nmsrs = 1, .entry = {.index = index, .data = data}};

	/* A register this machine does not have needs no reset. */
	(void)ioctl(vcpu->fd, KVM_SET_MSRS, &one);
}

/*
 * MSRs that a running kernel sets and that must not be there for the next one: paging, system calls, paravirtual.
 * The TSC is among them for a reason of its own: after a triple fault KVM on AMD makes the VMCB anew without the
 * guest's TSC offset, so that guest and KVM disagree on the time and the deadline timer never fires. Writing 0 has KVM
 * set the offset that all vCPUs share.
 */
static void power_on_msrs(struct vcpu *vcpu)
{
	static const uint32_t zeroed[] = {
		MSR_TSC_DEADLINE,
		0xc0000081,
		0xc0000082,
		0xc0000083,
		0xc0000084,
		0xc0000102,
		0xc0000103,
		0x174,
		0x175,
		0x176,
		0x4b564d00 /* wall clock */,
		0x4b564d01 /* system time */,
		0x4b564d02 /* async page faults */,
		0x4b564d03 /* steal time */,
		0x4b564d04 /* PV EOI */,
		0x4b564d06 /* async page fault vector */,
	};

	for (size_t i = 0; i < ARRAY_SIZE(zeroed); i++)
		set_msr(vcpu, zeroed[i], 0);
	set_msr(vcpu, MSR_MISC_ENABLE, MISC_ENABLE_STRINGS);
	set_msr(vcpu, MSR_TSC, 0);
}

static void power_on_hyperv(struct vcpu *vcpu)
{
	uint32_t msr[HYPERV_RESET_MSRS];
	uint64_t value[HYPERV_RESET_MSRS];
	size_t count = hyperv_reset_msrs(msr, value);

	for (size_t i = 0; i < count; i++)
		set_msr(vcpu, msr[i], value[i]);
}

static void power_on_lapic(struct kvm_lapic_state *lapic, unsigned id)
{
	static const unsigned local_vectors[] = {0x320, 0x330, 0x340, 0x350, 0x360, 0x370};
	uint32_t masked = 1u << 16, version, value;

	memcpy(&version, lapic->regs + 0x30, sizeof(version));
	memset(lapic, 0, sizeof(*lapic));
	memcpy(lapic->regs + 0x30, &version, sizeof(version));
	value = id << 24;
	memcpy(lapic->regs + 0x20, &value, sizeof(value));
	value = 0xffffffff;
	memcpy(lapic->regs + 0xe0, &value, sizeof(value)); /* destination format: flat */
	value = 0xff;
	memcpy(lapic->regs + 0xf0, &value, sizeof(value)); /* spurious vector, APIC off by software */
	for (size_t i = 0; i < ARRAY_SIZE(local_vectors); i++)
		memcpy(lapic->regs + local_vectors[i], &masked, sizeof(masked));
	if (id == 0) { /* the first processor's LINT0 passes the PIC through, as firmware would set it */
		value = 0x700;
		memcpy(lapic->regs + 0x350, &value, sizeof(value));
		value = 0x400;
		memcpy(lapic->regs + 0x360, &value, sizeof(value));
	}
}

static struct error *reset_one(struct vcpu *vcpu)
{
	struct kvm_mp_state mp = {.mp_state = vcpu->index == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED};
	struct kvm_regs regs = {.rip = 0xfff0, .rflags = 2};
	struct kvm_vcpu_events events = {0};
	struct kvm_lapic_state lapic;
	struct kvm_sregs sregs;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0 || ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic) < 0)
		return error_new(errno, "reset vCPU %u: read its state", vcpu->index);
	power_on_sregs(&sregs);
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0)
		return error_new(errno, "reset vCPU %u (KVM_SET_SREGS)", vcpu->index);
	power_on_msrs(vcpu);
	if (vcpu->group->model.hyperv)
		power_on_hyperv(vcpu);
	power_on_lapic(&lapic, vcpu->apic_id);
	if (ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic) < 0)
		return error_new(errno, "reset vCPU %u (KVM_SET_LAPIC)", vcpu->index);
	if (ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0 || ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0 ||
	    ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp) < 0)
		return error_new(errno, "reset vCPU %u", vcpu->index);
	return NULL;
}

struct error *vcpus_reset(struct vcpus *group)
{
	for (unsigned i = 0; i < group->count; i++)
		TRY(reset_one(&group->vcpu[i]));
	return NULL;
}
