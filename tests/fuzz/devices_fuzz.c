/*
 * Fuzzing of the legacy devices: a guest that reads and writes the ports of serial, clock, power management, pvpanic,
 * reset and keyboard controller and the registers of the watchdog at will, beside typed input, keys and a mouse, a
 * power button, and pauses with a round trip
 * through saved state.
 *
 * The input is a list of 8-byte operations. Whatever the guest does, the devices stay within their bounds, and what it
 * did must load again.
 */
#include "base/cleanup.h"
#include "base/loop.h"
#include "base/util.h"
#include "saved/saved.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/pm.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/reset.h"
#include "vmm/devices/rtc.h"
#include "vmm/devices/serial.h"
#include "vmm/devices/watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OP_BYTES 8
#define OPS_MAX  512
#define COM1     0x3f8
#define DOG_SLOT 7

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct board {
	struct bus pio, mmio;
	struct irqs irqs;
	struct loop *loop;
	struct loop_source *end;
	struct pci_bus pci;
	struct serial serial;
	struct rtc rtc;
	struct pm pm;
	struct reset reset;
	struct i8042 i8042;
	struct pvpanic pvpanic;
	struct watchdog dog;
};

static struct board board;
static int in[2], out[2]; /* pipes: [0] read, [1] write */
static int64_t clock_us;

static void need(bool what)
{
	if (!what)
		abort();
}

static void need_ok(struct error *err)
{
	need(err == NULL);
}

static int64_t now_us(void)
{
	return clock_us;
}

static uint64_t now_ns(void)
{
	return (uint64_t)clock_us * 1000;
}

static void nothing(void *arg)
{
}

static void quit(void *arg)
{
	loop_quit(arg);
}

static const struct machine_events events = {
	.reset = nothing, .power_off = nothing, .panicked = nothing, .crash_loaded = nothing, .watchdog = nothing};

static void make(void)
{
	struct board *b = &board;

	memset(b, 0, sizeof(*b));
	bus_init(&b->pio, "port");
	bus_init(&b->mmio, "MMIO");
	need_ok(irqs_init(&b->irqs, -1));
	need_ok(loop_new(&b->loop));
	need_ok(pci_bus_init(&b->pci, &b->pio, &b->mmio, &b->irqs, 4 * GIB));
	need_ok(serial_init(&b->serial, &b->pio, &b->irqs, COM1, 4, b->loop, in[0], out[1]));
	need_ok(rtc_init(&b->rtc, &b->pio, &b->irqs, b->loop, 2 * GIB, GIB));
	need_ok(pm_init(&b->pm, &b->pio, &b->irqs, b->loop, &events));
	need_ok(reset_init(&b->reset, &b->pio, &b->pci, &events));
	need_ok(i8042_init(&b->i8042, &b->pio, &b->irqs, &events, true));
	need_ok(pvpanic_init(&b->pvpanic, &b->pio, &events));
	need_ok(watchdog_init(&b->dog, &b->pci, DOG_SLOT, b->loop, &events));
	b->dog.now = now_ns;
	b->rtc.now = now_us;
	b->rtc.seen = clock_us;
	b->pm.now = now_ns;
	b->pm.epoch = now_ns();
}

static void unmake(void)
{
	struct board *b = &board;

	serial_destroy(&b->serial);
	rtc_destroy(&b->rtc);
	pm_destroy(&b->pm);
	watchdog_destroy(&b->dog);
	pci_bus_destroy(&b->pci);
	loop_free(b->loop);
	irqs_destroy(&b->irqs);
}

static const struct {
	const char *name;
	const struct unit_ops *ops;
	void *self;
} units[] = {
	{"serial", &serial_unit, &board.serial},
	{"rtc", &rtc_unit, &board.rtc},
	{"pm", &pm_unit, &board.pm},
	{"reset", &reset_unit, &board.reset},
	{"i8042", &i8042_unit, &board.i8042},
	{"watchdog", &watchdog_unit, &board.dog},
};

static void resume(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (units[i].ops->resume)
			units[i].ops->resume(units[i].self);
	}
}

static void pause_all(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (units[i].ops->pause)
			units[i].ops->pause(units[i].self);
	}
}

static void reset_all(void)
{
	pause_all();
	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		units[i].ops->reset(units[i].self);
	resume();
}

static void transfer(struct saved *s)
{
	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		need_ok(saved_unit(s, units[i].name, units[i].ops->version, units[i].ops->state, units[i].self));
	need_ok(saved_finish(s));
}

static void move(void)
{
	cleanup_fd int fd = memfd_create("state", MFD_CLOEXEC);
	cleanup_saved struct saved *to = NULL, *from = NULL;

	need(fd >= 0);
	pause_all();
	need_ok(saved_create(fd, "fuzz-1", &to));
	transfer(to);
	unmake();
	make();
	need(lseek(fd, 0, SEEK_SET) == 0);
	need_ok(saved_open(fd, "fuzz-1", &from));
	transfer(from);
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (units[i].ops->restored)
			need_ok(units[i].ops->restored(units[i].self));
	}
	resume();
}

/* The loop's thread gets its turn: everything posted, and one look at the descriptors. */
static void turn(void)
{
	loop_post(board.loop, quit, board.loop);
	need_ok(loop_run(board.loop));
}

/* The reader outside takes all there is. */
static void take_output(void)
{
	uint8_t bytes[4096];

	while (read(out[0], bytes, sizeof(bytes)) > 0)
		;
}

static void check(void)
{
	need(board.serial.rx_count <= SERIAL_FIFO && board.serial.unsent_count <= SERIAL_OUT_BYTES);
	need(board.serial.unsent_start < SERIAL_OUT_BYTES);
	need(board.rtc.index < RTC_BYTES && board.rtc.cmos[0x0d] == 0x80);
	/* A line is high only when its device has a reason that the guest can read. */
	need(!board.irqs.sources[RTC_GSI] || (board.rtc.cmos[0x0c] & 0x80));
	need(board.i8042.keyboard.out.count <= PS2_QUEUE_BYTES && board.i8042.mouse.out.count <= PS2_QUEUE_BYTES);
	need(!(board.irqs.sources[1] || board.irqs.sources[12]) || board.i8042.full);
	need(!(board.irqs.sources[1] && board.irqs.sources[12]) && board.i8042.own_count <= I8042_OWN_BYTES);
	need(board.dog.stage <= 2 && board.dog.unlock <= 2);
	need(board.dog.preload[0] <= 0xfffff && board.dog.preload[1] <= 0xfffff);
	need(!board.irqs.sources[4] || (board.serial.mcr & 0x18) == 0x08);
}

static void access_port(const uint8_t *op)
{
	static const struct {
		uint16_t base, count;
	} ranges[] = {{COM1, 8}, {0x70, 2}, {PM_BASE, 16}, {PM_BASE + PM_GPE0, 16}, {0xcf8, 4},
		      {0x64, 1}, {0x92, 1}, {0x60, 1},     {PVPANIC_PORT, 1}};
	unsigned which = op[1] % ARRAY_SIZE(ranges), size = 1u << (op[2] % 4);
	uint64_t port = ranges[which].base + op[3] % ranges[which].count, value = 0;

	memcpy(&value, op + 4, 4);
	value |= value << 32;
	if (op[0] & 1) {
		bus_read(&board.pio, port, size);
		return;
	}
	if (which == 5 && (op[0] & 2)) { /* a command with its parameter, perhaps to the mouse */
		bus_write(&board.pio, 0x64, op[4], 1);
		bus_write(&board.pio, 0x60, op[5], 1);
		return;
	}
	if (which == 1 && size == 1) { /* index and data in one go, or little happens */
		bus_write(&board.pio, 0x70, op[4], 1);
		bus_write(&board.pio, 0x71, op[5], 1);
		return;
	}
	bus_write(&board.pio, port, value, size);
}

/* The watchdog's registers, in configuration space and in its BAR; sometimes opened before. */
static void access_watchdog(const uint8_t *op)
{
	unsigned size = 1u << (op[2] % 3), offset = (op[3] & 15) & ~(size - 1);
	uint64_t bar = bus_read(&board.mmio, PCI_ECAM_BASE + DOG_SLOT * 0x8000ull + 0x10, 4) & ~15ull;
	uint64_t at = op[1] & 1 ? PCI_ECAM_BASE + DOG_SLOT * 0x8000ull + (op[1] & 2 ? 0x60 : 0) + offset : bar + offset;
	uint32_t value;

	memcpy(&value, op + 4, 4);
	if (op[1] & 4) {
		(void)bus_read(&board.mmio, at, size);
		return;
	}
	if (op[1] & 8) {
		bus_write(&board.mmio, bar + 12, 0x80, 2);
		bus_write(&board.mmio, bar + 12, 0x86, 2);
	}
	bus_write(&board.mmio, at, value, size);
}

/* A driver that obeys THRE. */
static void send(unsigned count)
{
	if ((board.serial.lcr & 0x80) || (board.serial.mcr & 0x10))
		return;
	for (unsigned i = 0; i < count && (bus_read(&board.pio, COM1 + 5, 1) & 0x20); i++)
		bus_write(&board.pio, COM1, i, 1);
}

static void step(const uint8_t *op)
{
	uint64_t later = 0;

	switch (op[0] >> 4) {
	case 8:
		send(op[1] * 64u);
		break;
	case 9:
		if (write(in[1], op + 1, 7) < 0)
			need(errno == EAGAIN);
		break;
	case 10:
		take_output();
		break;
	case 11:
		turn();
		break;
	case 12:
		memcpy(&later, op + 1, 5);
		clock_us += (int64_t)(later >> (op[6] & 31));
		break;
	case 13:
		pm_power_button(&board.pm);
		break;
	case 15:
		if (op[1] & 1)
			i8042_key(&board.i8042, op[2], op[1] & 2);
		else
			i8042_mouse(&board.i8042, (int)op[2] << (op[1] >> 4), -(int)op[3], (int8_t)op[4], op[5]);
		break;
	case 14:
		if (op[1] % 8 == 0)
			move();
		else if (op[1] % 8 == 1)
			reset_all();
		break;
	case 7:
		access_watchdog(op);
		break;
	default:
		access_port(op);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	clock_us = 1795384739ll * 1000000;
	need(pipe2(in, O_CLOEXEC | O_NONBLOCK) == 0);
	need(pipe2(out, O_CLOEXEC) == 0);
	need(fcntl(out[1], F_SETPIPE_SZ, 4096) >= 0);
	need(fcntl(out[0], F_SETFL, O_NONBLOCK) == 0);
	make();
	resume();
	for (size_t i = 0; i < size / OP_BYTES && i < OPS_MAX; i++) {
		step(data + i * OP_BYTES);
		check();
	}
	unmake();
	for (unsigned i = 0; i < 2; i++) {
		close(in[i]);
		close(out[i]);
	}
	return 0;
}
