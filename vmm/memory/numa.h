/*
 * NUMA nodes: which vCPUs and which part of memory lie together, as ACPI tells the guest (SRAT, SLIT), and on which
 * node of the host that memory is to be. Nodes take memory in their order, so that one may lie on both sides of the
 * hole below 4 GiB. Part of the machine contract but for the host's node.
 */
#ifndef GLINT_VMM_MEMORY_NUMA_H
#define GLINT_VMM_MEMORY_NUMA_H

#include "base/error.h"
#include "saved/saved.h"
#include "vmm/memory/memory.h"

#include <stdint.h>

#define NUMA_NODES_MAX    16
#define NUMA_CPUS_MAX     256
#define NUMA_HOST_ANY     UINT32_MAX
#define NUMA_HOST_MAX     1023
#define NUMA_PIECES_MAX   (NUMA_NODES_MAX + MEMORY_REGIONS)
#define NUMA_DISTANCE     20 /* to another node; 10 is a node's to itself (ACPI 6.5, 5.2.17) */
#define NUMA_DISTANCE_OWN 10

struct numa_node {
	uint64_t memory;                   /* bytes */
	uint64_t cpus[NUMA_CPUS_MAX / 64]; /* a bit each */
	unsigned host_node;                /* NUMA_HOST_ANY: wherever */
};

struct numa {
	unsigned nodes; /* 0: nothing is said of nodes */
	struct numa_node node[NUMA_NODES_MAX];
};

/* A stretch of guest memory on one node. */
struct numa_piece {
	unsigned node;
	uint64_t gpa, size;
};

static inline bool numa_has_cpu(const struct numa_node *node, unsigned cpu)
{
	return node->cpus[cpu / 64] >> cpu % 64 & 1;
}

/* The node of vCPU @cpu; 0 where there are none. */
unsigned numa_node_of(const struct numa *numa, unsigned cpu);

/* Refuses nodes that are not all of @vcpus and @memory, each once. */
[[nodiscard]] struct error *numa_check(const struct numa *numa, unsigned vcpus, uint64_t memory);

/* Fills @piece, sorted by address; returns how many. */
unsigned numa_pieces(const struct numa *numa, const struct memory *mem, struct numa_piece piece[NUMA_PIECES_MAX]);

/* Asks the host's kernel for the host nodes that were named. Before memory is touched. */
[[nodiscard]] struct error *numa_bind(const struct numa *numa, const struct memory *mem);

/* A body: compares, as all of the contract is compared. */
void numa_state(void *self, struct saved *s);

#endif
