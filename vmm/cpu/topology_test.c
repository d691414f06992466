/*
 * Unit tests of topology: APIC ids as hardware packs them, what is left out, and what is refused.
 */
#include "base/util.h"
#include "vmm/cpu/topology.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static struct cpu_topology complete(unsigned vcpus, unsigned sockets, unsigned cores, unsigned threads)
{
	struct cpu_topology t = {sockets, cores, threads};

	assert_null(topology_complete(&t, vcpus));
	assert_int_equal(t.sockets * t.cores * t.threads, vcpus);
	return t;
}

static void what_is_not_said_is_cores(void **state)
{
	static const struct {
		unsigned vcpus;
		struct cpu_topology said, means;
	} cases[] = {
		{1, {0, 0, 0}, {1, 1, 1}},  {7, {0, 0, 0}, {1, 7, 1}}, {8, {2, 0, 0}, {2, 4, 1}},
		{8, {0, 0, 2}, {1, 4, 2}},  {8, {0, 2, 0}, {4, 2, 1}}, {8, {0, 2, 2}, {2, 2, 2}},
		{8, {2, 2, 0}, {2, 2, 2}},  {8, {2, 0, 2}, {2, 2, 2}}, {256, {0, 0, 0}, {1, 256, 1}},
		{12, {2, 3, 2}, {2, 3, 2}},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct cpu_topology t =
			complete(cases[i].vcpus, cases[i].said.sockets, cases[i].said.cores, cases[i].said.threads);
		assert_memory_equal(&t, &cases[i].means, sizeof(t));
	}
}

static void ids_are_bit_fields(void **state)
{
	/* 2 sockets of 3 cores of 2 threads: a bit for threads, two for cores. */
	static const uint32_t ids[] = {0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13};
	struct cpu_topology t = complete(12, 2, 3, 2);

	(void)state;
	assert_int_equal(topology_thread_bits(&t), 1);
	assert_int_equal(topology_core_bits(&t), 2);
	for (unsigned i = 0; i < ARRAY_SIZE(ids); i++)
		assert_int_equal(topology_apic_id(&t, i), ids[i]);
	struct cpu_topology zeros = {0};
	assert_int_equal(topology_apic_id(&zeros, 200), 200);
}

/* Every topology there is: ids are apart, rise, and never pass the highest. */
static void ids_are_unique(void **state)
{
	(void)state;
	for (unsigned n = 1; n <= 256; n++)
		for (unsigned threads = 1; threads <= n; threads++)
			for (unsigned cores = 1; n % threads == 0 && cores <= n / threads; cores++) {
				struct cpu_topology t = {n / threads / cores, cores, threads};
				if (t.sockets * cores * threads != n)
					continue;
				struct error *err = topology_complete(&t, n);
				uint32_t last = topology_apic_id(&t, n - 1);
				assert_int_equal(err != NULL, last > APIC_ID_MAX);
				error_free(err);
				for (unsigned i = 1; i < n; i++)
					assert_true(topology_apic_id(&t, i) > topology_apic_id(&t, i - 1));
			}
}

static void what_does_not_fit_is_refused(void **state)
{
	static const struct {
		unsigned vcpus;
		struct cpu_topology t;
	} bad[] = {{4, {3, 0, 0}},
		   {4, {2, 4, 2}},
		   {6, {0, 4, 0}},
		   {5, {0, 0, 2}},
		   {240, {80, 3, 1}},
		   {1, {2, 0, 0}},
		   {256, {UINT32_MAX, UINT32_MAX, UINT32_MAX}}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct cpu_topology t = bad[i].t;
		struct error *err = topology_complete(&t, bad[i].vcpus);
		assert_non_null(err);
		assert_non_null(error_hint_text(err));
		error_free(err);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_not_said_is_cores),
		cmocka_unit_test(ids_are_bit_fields),
		cmocka_unit_test(ids_are_unique),
		cmocka_unit_test(what_does_not_fit_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
