/*
 * Exits: a const table from KVM_EXIT_* to the function that answers it. Runs on vCPU threads, at once for several;
 * takes no lock of its own. Touches the vCPU's kvm_run page and the buses.
 */
#include "vmm/cpu/exits.h"

#include "base/log.h"
#include "base/util.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

static enum exit_next fail(struct vcpu *vcpu, const char *what)
{
	struct vcpu_events *events = &vcpu->group->events;
	struct kvm_regs regs = {0};

	(void)ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	log_err("vCPU %u cannot go on: %s (rip 0x%llx rsp 0x%llx)", vcpu->index, what, (unsigned long long)regs.rip,
		(unsigned long long)regs.rsp);
	events->failed(events->arg, what);
	return EXIT_STAND_STILL;
}

/* IN, OUT and their string forms: `count` accesses of one width to one port. */
static enum exit_next on_io(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct bus *pio = vcpu->group->pio;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	unsigned size = run->io.size;

	for (unsigned i = 0; i < run->io.count; i++, data += size) {
		uint64_t value = 0;
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, data, size);
			bus_write(pio, run->io.port, value, size);
		} else {
			value = bus_read(pio, run->io.port, size);
			memcpy(data, &value, size);
		}
	}
	return EXIT_GO_ON;
}

static enum exit_next on_mmio(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct bus *mmio = vcpu->group->mmio[MEMORY_SPACE_NORMAL];
	unsigned size = MIN(run->mmio.len, (uint32_t)sizeof(run->mmio.data));
	uint64_t value = 0;

	if (run->mmio.is_write) {
		memcpy(&value, run->mmio.data, size);
		bus_write(mmio, run->mmio.phys_addr, value, size);
	} else {
		value = bus_read(mmio, run->mmio.phys_addr, size);
		memcpy(run->mmio.data, &value, size);
	}
	return EXIT_GO_ON;
}

static enum exit_next on_shutdown(struct vcpu *vcpu)
{
	struct vcpu_events *events = &vcpu->group->events;

	/* Once: a guest can do it as often as it likes. The count of exits tells how often it was. */
	static atomic_flag said = ATOMIC_FLAG_INIT;
	if (!atomic_flag_test_and_set(&said))
		log_warn("vCPU %u: triple fault; the machine resets, now and whenever it happens again", vcpu->index);
	events->reset(events->arg);
	return EXIT_STAND_STILL;
}

static enum exit_next on_fail_entry(struct vcpu *vcpu)
{
	char what[96];

	snprintf(what, sizeof(what), "the processor refused to enter the guest (reason 0x%llx)",
		 (unsigned long long)vcpu->run->fail_entry.hardware_entry_failure_reason);
	return fail(vcpu, what);
}

static enum exit_next on_internal_error(struct vcpu *vcpu)
{
	static const char *const words[] = {[KVM_INTERNAL_ERROR_EMULATION] = "an instruction could not be emulated",
					    [KVM_INTERNAL_ERROR_SIMUL_EX] = "exceptions met each other",
					    [KVM_INTERNAL_ERROR_DELIVERY_EV] = "an event could not be delivered"};
	uint32_t kind = vcpu->run->internal.suberror;

	return fail(vcpu, kind < ARRAY_SIZE(words) && words[kind] ? words[kind] : "an internal error of KVM");
}

static enum exit_next on_system_event(struct vcpu *vcpu)
{
	struct vcpu_events *events = &vcpu->group->events;

	if (vcpu->run->system_event.type == KVM_SYSTEM_EVENT_CRASH)
		return fail(vcpu, "the guest reported a crash");
	events->reset(events->arg);
	return EXIT_STAND_STILL;
}

/*
 * Hyper-V's: a register of its interrupt controller was written, which KVM has done; or a hypercall that KVM left to
 * us, and none is known here: HV_STATUS_INVALID_HYPERCALL_CODE.
 */
static enum exit_next on_hyperv(struct vcpu *vcpu)
{
	if (vcpu->run->hyperv.type == KVM_EXIT_HYPERV_HCALL)
		vcpu->run->hyperv.u.hcall.result = 2;
	return EXIT_GO_ON;
}

/* Interrupt windows and the like: KVM wanted us to look, there is nothing to do. */
static enum exit_next on_nothing(struct vcpu *vcpu)
{
	(void)vcpu;
	return EXIT_GO_ON;
}

static const struct {
	const char *name;
	enum exit_next (*handle)(struct vcpu *vcpu);
} exits[VCPU_EXIT_KINDS] = {
	[KVM_EXIT_IO] = {"io", on_io},
	[KVM_EXIT_MMIO] = {"mmio", on_mmio},
	[KVM_EXIT_INTR] = {"interrupted", on_nothing},
	[KVM_EXIT_IRQ_WINDOW_OPEN] = {"irq-window", on_nothing},
	[KVM_EXIT_SHUTDOWN] = {"shutdown", on_shutdown},
	[KVM_EXIT_FAIL_ENTRY] = {"fail-entry", on_fail_entry},
	[KVM_EXIT_INTERNAL_ERROR] = {"internal-error", on_internal_error},
	[KVM_EXIT_SYSTEM_EVENT] = {"system-event", on_system_event},
	[KVM_EXIT_HYPERV] = {"hyperv", on_hyperv},
};

enum exit_next vcpu_handle_exit(struct vcpu *vcpu)
{
	uint32_t reason = vcpu->run->exit_reason;
	char what[64];

	if (reason < VCPU_EXIT_KINDS && exits[reason].handle) {
		vcpu->exits[reason]++;
		return exits[reason].handle(vcpu);
	}
	snprintf(what, sizeof(what), "an exit nobody answers (KVM_EXIT %u)", reason);
	return fail(vcpu, what);
}

const char *vcpu_exit_name(unsigned kind)
{
	return kind < VCPU_EXIT_KINDS ? exits[kind].name : NULL;
}
