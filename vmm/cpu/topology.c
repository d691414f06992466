/*
 * Processor topology; see topology.h.
 */
#include "vmm/cpu/topology.h"

#include "base/util.h"

#include <errno.h>

/* How many bits number @count things. */
static unsigned bits_for(unsigned count)
{
	unsigned bits = 0;

	while ((1u << bits) < count)
		bits++;
	return bits;
}

unsigned topology_thread_bits(const struct cpu_topology *t)
{
	return bits_for(t->threads);
}

unsigned topology_core_bits(const struct cpu_topology *t)
{
	return bits_for(t->cores);
}

uint32_t topology_apic_id(const struct cpu_topology *t, unsigned index)
{
	if (t->sockets == 0)
		return index;
	unsigned thread = index % t->threads;
	unsigned core = index / t->threads % t->cores;
	unsigned socket = index / t->threads / t->cores;

	return (socket << topology_core_bits(t) | core) << topology_thread_bits(t) | thread;
}

struct error *topology_complete(struct cpu_topology *t, unsigned vcpus)
{
	struct cpu_topology whole = *t;
	unsigned sockets = MAX(t->sockets, 1u), threads = MAX(t->threads, 1u);

	/* What was not said is cores; sockets where cores were; threads where both were. */
	if (whole.cores == 0)
		whole.cores = MAX(vcpus / sockets / threads, 1u);
	if (whole.sockets == 0)
		whole.sockets = MAX(vcpus / whole.cores / threads, 1u);
	if (whole.threads == 0)
		whole.threads = MAX(vcpus / whole.cores / whole.sockets, 1u);
	if ((uint64_t)whole.sockets * whole.cores * whole.threads != vcpus)
		return error_hint(error_new(EINVAL, "%u vCPUs are not %u sockets of %u cores of %u threads", vcpus,
					    whole.sockets, whole.cores, whole.threads),
				  "their product must be the number of vCPUs");
	uint32_t last = topology_apic_id(&whole, vcpus - 1);
	if (last > APIC_ID_MAX)
		return error_hint(
			error_new(ERANGE,
				  "%u sockets of %u cores of %u threads need APIC ids up to %u; interrupts of "
				  "devices reach %u",
				  whole.sockets, whole.cores, whole.threads, last, APIC_ID_MAX),
			"make cores and threads powers of two: then no ids are left out");
	*t = whole;
	return NULL;
}
