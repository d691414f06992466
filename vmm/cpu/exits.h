/* Inside vmm/cpu only: one function that answers the exit KVM_RUN just reported. */
#ifndef GLINT_VMM_CPU_EXITS_H
#define GLINT_VMM_CPU_EXITS_H

#include "vmm/cpu/vcpu.h"

/* What the thread does next. */
enum exit_next { EXIT_GO_ON, EXIT_STAND_STILL };

enum exit_next vcpu_handle_exit(struct vcpu *vcpu);

#endif
