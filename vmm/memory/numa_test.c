/*
 * Unit tests of NUMA nodes: how they share memory around the hole, what is refused, where memory is put.
 */
#include "base/util.h"
#include "vmm/memory/numa.h"

#include <linux/mempolicy.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static struct numa two(uint64_t first, uint64_t second)
{
	return (struct numa){.nodes = 2,
			     .node = {{.memory = first, .cpus = {0x3}, .host_node = NUMA_HOST_ANY},
				      {.memory = second, .cpus = {0xc}, .host_node = NUMA_HOST_ANY}}};
}

static void pieces_are(uint64_t first, uint64_t second, const struct numa_piece *want, unsigned count)
{
	struct numa numa = two(first, second);
	struct numa_piece piece[NUMA_PIECES_MAX];
	struct memory mem;

	assert_null(memory_create(&mem, first + second));
	assert_null(numa_check(&numa, 4, first + second));
	assert_int_equal(numa_pieces(&numa, &mem, piece), count);
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(piece[i].node, want[i].node);
		assert_int_equal(piece[i].gpa, want[i].gpa);
		assert_int_equal(piece[i].size, want[i].size);
	}
	memory_destroy(&mem);
}

static void nodes_lie_around_the_hole(void **state)
{
	(void)state;
	pieces_are(64 * MIB, 64 * MIB, (struct numa_piece[]){{0, 0, 64 * MIB}, {1, 64 * MIB, 64 * MIB}}, 2);
	pieces_are(2 * GIB, GIB, (struct numa_piece[]){{0, 0, 2 * GIB}, {1, MEMORY_HIGH_BASE, GIB}}, 2);
	pieces_are(3 * GIB, GIB,
		   (struct numa_piece[]){{0, 0, 2 * GIB}, {0, MEMORY_HIGH_BASE, GIB}, {1, MEMORY_HIGH_BASE + GIB, GIB}},
		   3);
	pieces_are(GIB, 3 * GIB, (struct numa_piece[]){{0, 0, GIB}, {1, GIB, GIB}, {1, MEMORY_HIGH_BASE, 2 * GIB}}, 3);
}

static void nodes_are_the_whole_machine(void **state)
{
	struct numa numa = two(64 * MIB, 64 * MIB);

	(void)state;
	assert_null(numa_check(&numa, 4, 128 * MIB));
	assert_int_equal(numa_node_of(&numa, 1), 0);
	assert_int_equal(numa_node_of(&numa, 2), 1);
	struct error *err[] = {
		numa_check(&numa, 4, 129 * MIB),                               /* memory that is nowhere */
		numa_check(&numa, 5, 128 * MIB),                               /* a vCPU that is nowhere */
		numa_check(&numa, 3, 128 * MIB),                               /* one that there is not */
		(numa.node[1].cpus[0] = 0xe, numa_check(&numa, 4, 128 * MIB)), /* one that is twice */
		(numa.node[1].memory = 0, numa_check(&numa, 4, 64 * MIB)),
	};
	for (size_t i = 0; i < ARRAY_SIZE(err); i++) {
		assert_non_null(err[i]);
		error_free(err[i]);
	}
	struct numa none = {0};
	assert_null(numa_check(&none, 4, 128 * MIB));
}

/* What the kernel says about an address afterwards. */
static void memory_is_put_on_the_host_node(void **state)
{
	struct numa numa = two(2 * MIB, 2 * MIB);
	unsigned long mask[16] = {0};
	struct memory mem;
	int mode = -1;

	(void)state;
	assert_null(memory_create(&mem, 4 * MIB));
	numa.node[1].host_node = 0;
	assert_null(numa_bind(&numa, &mem));
	if (syscall(SYS_get_mempolicy, &mode, mask, 1024, mem.host, MPOL_F_ADDR) == 0)
		assert_int_equal(mode, MPOL_DEFAULT);
	assert_int_equal(syscall(SYS_get_mempolicy, &mode, mask, 1024, mem.host + 2 * MIB, MPOL_F_ADDR), 0);
	assert_int_equal(mode, MPOL_BIND);
	assert_int_equal(mask[0], 1);
	numa.node[0].host_node = NUMA_HOST_MAX; /* there is no such node */
	cleanup_error struct error *err = numa_bind(&numa, &mem);
	assert_non_null(err);
	memory_destroy(&mem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nodes_lie_around_the_hole),
		cmocka_unit_test(nodes_are_the_whole_machine),
		cmocka_unit_test(memory_is_put_on_the_host_node),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
