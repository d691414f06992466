/*
 * The sandbox: what glint-vmm takes from itself before the guest's first instruction.
 *
 * The process: no new privileges; no capabilities; not dumpable; namespaces of its own (mount with an empty root,
 * network without a device, IPC, UTS; in a user namespace when it is not root) ; Landlock with no right to any file,
 * port, abstract socket or signal to the outside. Each thread: a seccomp filter for its kind, an allow-list with
 * arguments checked (ioctl numbers above all). docs/threat-model.md says which attack each layer stops.
 *
 * What is needed later comes in by descriptor over the control socket.
 */
#ifndef GLINT_VMM_SANDBOX_SANDBOX_H
#define GLINT_VMM_SANDBOX_SANDBOX_H

#include "base/error.h"

/*
 * SANDBOX_CONNECTOR is the one thread of the process that connects to sockets (vmm/vsock), SANDBOX_SCREEN that of
 * glint-screen.
 */
enum sandbox_thread { SANDBOX_MAIN, SANDBOX_VCPU, SANDBOX_IO, SANDBOX_CONNECTOR, SANDBOX_SCREEN, SANDBOX_THREADS };

/*
 * Locks the process in, except for system calls. Call once, before threads are started, after everything is open.
 * A layer the machine's kernel lacks is an error that names it; sandbox_thread() is the other half.
 */
[[nodiscard]] struct error *sandbox_process(void);

/* Puts the seccomp filter of @kind on the calling thread, for good. A violation ends the process (SIGSYS) with a line
 * in the log. */
[[nodiscard]] struct error *sandbox_thread(enum sandbox_thread kind);

#endif
