/*
 * NUMA nodes; see numa.h. Touches the policy of guest memory.
 */
#include "vmm/memory/numa.h"

#include "base/util.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

unsigned numa_node_of(const struct numa *numa, unsigned cpu)
{
	for (unsigned i = 0; i < numa->nodes; i++)
		if (numa_has_cpu(&numa->node[i], cpu))
			return i;
	return 0;
}

struct error *numa_check(const struct numa *numa, unsigned vcpus, uint64_t memory)
{
	uint64_t sum = 0;

	if (numa->nodes == 0)
		return NULL;
	for (unsigned i = 0; i < numa->nodes; i++) {
		if (numa->node[i].memory == 0 || !is_aligned(numa->node[i].memory, MIB))
			return error_new(EINVAL, "NUMA node %u: its memory is not whole MiB", i);
		sum += numa->node[i].memory; /* 16 of 4 TiB at most */
	}
	if (sum != memory)
		return error_hint(error_new(EINVAL, "the memory of the NUMA nodes is %llu MiB, of the machine %llu MiB",
					    (unsigned long long)(sum / MIB), (unsigned long long)(memory / MIB)),
				  "each --numa says memory=SIZE, and together they are --memory");
	for (unsigned cpu = 0; cpu < NUMA_CPUS_MAX; cpu++) {
		unsigned owners = 0;
		for (unsigned i = 0; i < numa->nodes; i++)
			owners += numa_has_cpu(&numa->node[i], cpu);
		if (owners != (cpu < vcpus))
			return error_hint(error_new(EINVAL, "vCPU %u is in %u NUMA nodes, and the machine has %u vCPUs",
						    cpu, owners, vcpus),
					  "each --numa says cpus=FIRST-LAST, and together they are all vCPUs once");
	}
	return NULL;
}

unsigned numa_pieces(const struct numa *numa, const struct memory *mem, struct numa_piece piece[NUMA_PIECES_MAX])
{
	unsigned node = 0, pieces = 0;
	uint64_t left = numa->node[0].memory;

	for (unsigned r = 0; r < mem->regions; r++) {
		uint64_t gpa = mem->region[r].gpa, end = gpa + mem->region[r].size;
		while (gpa < end && node < numa->nodes && pieces < NUMA_PIECES_MAX) {
			uint64_t size = MIN(left, end - gpa);
			piece[pieces++] = (struct numa_piece){.node = node, .gpa = gpa, .size = size};
			gpa += size;
			left -= size;
			if (left == 0 && ++node < numa->nodes)
				left = numa->node[node].memory;
		}
	}
	return pieces;
}

struct error *numa_bind(const struct numa *numa, const struct memory *mem)
{
	uint8_t *host = mem->host;

	for (unsigned i = 0; i < numa->nodes; i++) {
		const struct numa_node *node = &numa->node[i];
		unsigned long mask[(NUMA_HOST_MAX + 1) / (8 * sizeof(unsigned long))] = {0};
		if (node->host_node != NUMA_HOST_ANY) {
			mask[node->host_node / (8 * sizeof(mask[0]))] = 1ul << node->host_node % (8 * sizeof(mask[0]));
			/* The kernel takes one bit less than it is told. */
			if (syscall(SYS_mbind, host, node->memory, MPOL_BIND, mask, NUMA_HOST_MAX + 2, 0) < 0)
				return error_hint(
					error_new(errno, "put NUMA node %u on the host's node %u", i, node->host_node),
					"the host's nodes are in /sys/devices/system/node");
		}
		host += node->memory;
	}
	return NULL;
}

static void node_state(void *self, struct saved *s)
{
	struct numa_node *mine = self, node = *mine;

	saved_require(s);
	saved_u64(s, "memory", &node.memory);
	saved_require(s);
	saved_bytes(s, "cpus", node.cpus, sizeof(node.cpus));
	if (saved_loading(s) && (node.memory != mine->memory || memcmp(node.cpus, mine->cpus, sizeof(node.cpus)) != 0))
		saved_fail(s, "the saved machine has its memory and vCPUs on other NUMA nodes than this one (--numa)");
}

void numa_state(void *self, struct saved *s)
{
	struct numa *numa = self;
	uint32_t nodes = numa->nodes;

	saved_require(s);
	saved_u32(s, "nodes", &nodes);
	if (saved_loading(s) && nodes != numa->nodes) {
		saved_fail(s, "the saved machine has %u NUMA nodes, this one %u (--numa)", nodes, numa->nodes);
		return;
	}
	saved_array(s, "node", numa->node, numa->nodes, sizeof(numa->node[0]), node_state);
}
