/*
 * Processor topology: sockets of cores of threads, and the APIC ids that follow from it.
 *
 * An APIC id is bit fields, as hardware packs them: socket, core, thread, each as wide as the number below it needs
 * (Intel SDM volume 3, 10.9.1 "Hierarchical Mapping of Shared Resources"; AMD APM volume 3, E.5). Where a number is no
 * power of two, ids have gaps. They stay below 256: KVM's IOAPIC and PIC, and a message-signalled interrupt without
 * remapping, name a processor in 8 bits. Pure arithmetic; touches nothing.
 */
#ifndef GLINT_VMM_CPU_TOPOLOGY_H
#define GLINT_VMM_CPU_TOPOLOGY_H

#include "base/error.h"

#include <stdint.h>

/* The highest APIC id a vCPU may have. */
#define APIC_ID_MAX 255u

/* All 0: one socket, a core for each vCPU, a thread for each core. */
struct cpu_topology {
	unsigned sockets;
	unsigned cores;   /* in a socket */
	unsigned threads; /* in a core */
};

/* Bits of an APIC id that number threads in a core, and cores in a socket. */
unsigned topology_thread_bits(const struct cpu_topology *t);
unsigned topology_core_bits(const struct cpu_topology *t);

/* The APIC id of vCPU @index; all 0 in @t: just @index. */
uint32_t topology_apic_id(const struct cpu_topology *t, unsigned index);

/* Fills in what was left 0, and refuses what does not make @vcpus or has an APIC id above APIC_ID_MAX. */
[[nodiscard]] struct error *topology_complete(struct cpu_topology *t, unsigned vcpus);

#endif
