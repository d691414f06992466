/*
 * What the tests of devices share: buses, interrupt books, an event loop that runs for a moment, and units that are
 * moved through a stream.
 */
#ifndef GLINT_VMM_DEVICES_TEST_BENCH_H
#define GLINT_VMM_DEVICES_TEST_BENCH_H

#include "base/loop.h"
#include "saved/test_stream.h"
#include "vmm/cpu/irq.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"

struct bench {
	struct bus pio;
	struct irqs irqs;
	struct loop *loop;
	struct loop_source *end;
};

static void bench_end(void *arg)
{
	loop_quit(arg);
}

static inline void bench_init(struct bench *bench)
{
	bus_init(&bench->pio, "port");
	assert_ok(irqs_init(&bench->irqs, -1));
	assert_ok(loop_new(&bench->loop));
	assert_ok(loop_add_timer(bench->loop, bench_end, bench->loop, &bench->end));
}

static inline void bench_destroy(struct bench *bench)
{
	loop_free(bench->loop);
	irqs_destroy(&bench->irqs);
}

/* Lets the loop's thread (this one) do its work for @ms. */
static inline void bench_run(struct bench *bench, unsigned ms)
{
	loop_timer_set(bench->end, ms * 1000000ull);
	assert_ok(loop_run(bench->loop));
}

static inline uint8_t in8(struct bench *bench, uint64_t port)
{
	return (uint8_t)bus_read(&bench->pio, port, 1);
}

static inline void out8(struct bench *bench, uint64_t port, uint8_t value)
{
	bus_write(&bench->pio, port, value, 1);
}

/* Saves one unit to a stream in memory, ready to be loaded. */
static inline int bench_save(const struct unit_ops *ops, void *self)
{
	cleanup_saved struct saved *s = NULL;
	int fd = memory_stream("", 0);

	assert_ok(saved_create(fd, MACHINE, &s));
	assert_ok(saved_unit(s, "unit", ops->version, ops->state, self));
	assert_ok(saved_finish(s));
	rewind_stream(fd);
	return fd;
}

static inline struct error *bench_load(const struct unit_ops *ops, void *self, int fd)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_open(fd, MACHINE, &s));
	TRY(saved_unit(s, "unit", ops->version, ops->state, self));
	TRY(saved_finish(s));
	return ops->restored ? ops->restored(self) : NULL;
}

#endif
