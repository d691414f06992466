/*
 * Clocks of the guest: kvmclock, which is the VM's, and the frequency of the time stamp counter.
 *
 * A pause is to the guest as if its processors had been taken away for a while: its clocks run on, and it is told so
 * that it does not take the gap for a lockup. A machine that was saved goes on where it stood: kvmclock and the counter
 * do not jump, however long the state lay about, so its time of day is late by that long and is the guest's to set.
 *
 * Touches the descriptors of the VM and its vCPUs.
 */
#include "vmm/cpu/vcpu.h"

#include "base/util.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

/* Frequencies this near are one: NTP corrects up to 500 parts in a million, and KVM itself lets 250 pass. */
#define TSC_TOLERANCE_PPM 250

void vcpus_tell_stopped(struct vcpus *group)
{
	/* Fails for a vCPU whose guest uses no kvmclock. */
	for (unsigned i = 0; i < group->count; i++)
		(void)ioctl(group->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
}

static bool near(uint64_t a, uint64_t b)
{
	uint64_t apart = a > b ? a - b : b - a;

	return apart * 1000000 <= MAX(a, b) * TSC_TOLERANCE_PPM;
}

static void load_frequency(struct vcpus *group, struct saved *s, uint32_t khz)
{
	int here = ioctl(group->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);

	if (khz == 0 || here <= 0 || near(khz, (uint64_t)here))
		return;
	if (ioctl(group->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) <= 0) {
		saved_fail(s,
			   "the saved VM's time stamp counter runs at %u kHz, this machine's processor at %d kHz and "
			   "cannot scale it",
			   khz, here);
		return;
	}
	for (unsigned i = 0; i < group->count; i++)
		if (ioctl(group->vcpu[i].fd, KVM_SET_TSC_KHZ, (unsigned long)khz) < 0) {
			saved_fail(s, "scale the time stamp counter from %d to %u kHz (KVM_SET_TSC_KHZ): %s", here, khz,
				   strerror(errno));
			return;
		}
}

void vcpus_clock_state(void *self, struct saved *s)
{
	struct vcpus *group = self;
	struct kvm_clock_data clock = {0};
	uint64_t ns = 0;
	uint32_t khz = 0;

	if (!saved_loading(s)) {
		if (ioctl(group->vm_fd, KVM_GET_CLOCK, &clock) < 0)
			saved_fail(s, "KVM_GET_CLOCK: %s", strerror(errno));
		ns = clock.clock;
		int here = ioctl(group->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
		khz = here > 0 ? (uint32_t)here : 0;
	}
	saved_require(s);
	saved_u64(s, "kvmclock-ns", &ns);
	saved_u32(s, "tsc-khz", &khz); /* absent or 0: not known */
	if (!saved_loading(s))
		return;
	clock = (struct kvm_clock_data){.clock = ns};
	if (ioctl(group->vm_fd, KVM_SET_CLOCK, &clock) < 0)
		saved_fail(s, "KVM_SET_CLOCK: %s", strerror(errno));
	/* Before the vCPUs load their counters. */
	load_frequency(group, s, khz);
}
