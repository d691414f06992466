/*
 * Hyper-V's interface to its guests (Hypervisor Top Level Functional Specification 6.0b), as KVM implements it: its
 * CPUID leaves (model.h), its registers, and the capabilities that turn it on. For Windows, which keeps time and waits
 * by it; any guest that knows it may use it.
 */
#ifndef GLINT_VMM_CPU_HYPERV_H
#define GLINT_VMM_CPU_HYPERV_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Turns the interface on for a vCPU that was just made. */
[[nodiscard]] struct error *hyperv_enable(int vm_fd, int vcpu_fd);

/* The registers of a vCPU that KVM's own list leaves out, in the order in which they are to be loaded. */
#define HYPERV_MSRS 28
void hyperv_msrs(uint32_t msr[HYPERV_MSRS]);

/* The registers to be set at reset, in order: msr[i] becomes value[i]. Returns how many. */
#define HYPERV_RESET_MSRS (HYPERV_MSRS + 4)
size_t hyperv_reset_msrs(uint32_t msr[HYPERV_RESET_MSRS], uint64_t value[HYPERV_RESET_MSRS]);

#endif
