/*
 * Unit tests of the serial port: registers and interrupts as a driver sees them, and what happens when the outside is
 * slow, gone, a file, or has more to say than the FIFO holds.
 */
#include "base/util.h"
#include "vmm/devices/serial.h"
#include "vmm/devices/test_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define COM1 0x3f8
#define GSI  4

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };

struct port {
	struct bench bench;
	struct serial serial;
	int in, out; /* the test's ends of the pipes */
	int device_in, device_out;
};

static void start(struct port *p, int in_fd, int out_fd)
{
	assert_ok(serial_init(&p->serial, &p->bench.pio, &p->bench.irqs, COM1, GSI, p->bench.loop, in_fd, out_fd));
	serial_unit.resume(&p->serial);
}

static int setup(void **state)
{
	static struct port port;
	int in[2], out[2];

	signal(SIGPIPE, SIG_IGN);
	memset(&port, 0, sizeof(port));
	bench_init(&port.bench);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	port.device_in = in[0];
	port.in = in[1];
	port.out = out[0];
	port.device_out = out[1];
	start(&port, in[0], out[1]);
	*state = &port;
	return 0;
}

static int teardown(void **state)
{
	struct port *p = *state;

	serial_destroy(&p->serial);
	bench_destroy(&p->bench);
	close_fd(&p->in);
	close_fd(&p->out);
	close_fd(&p->device_in);
	close_fd(&p->device_out);
	return 0;
}

static uint8_t get(struct port *p, unsigned reg)
{
	return in8(&p->bench, COM1 + reg);
}

static void set(struct port *p, unsigned reg, uint8_t value)
{
	out8(&p->bench, COM1 + reg, value);
}

static bool line(const struct port *p)
{
	return p->bench.irqs.sources[GSI] != 0;
}

/* As a driver opens it: FIFOs with @fcr, RX, THRE, line and modem interrupts by @ier, DTR, RTS, OUT2. */
static void open_port(struct port *p, uint8_t fcr, uint8_t ier)
{
	set(p, IIR, fcr);
	set(p, MCR, 0x0b);
	set(p, IER, ier);
}

static void type(struct port *p, const char *text)
{
	assert_int_equal(write(p->in, text, strlen(text)), strlen(text));
	bench_run(&p->bench, 5);
}

static void registers_hold(void **state)
{
	struct port *p = *state;

	set(p, SCR, 0x5a);
	assert_int_equal(get(p, SCR), 0x5a);
	set(p, LCR, 0x83);
	set(p, DATA, 0x01);
	set(p, IER, 0x02);
	assert_int_equal(get(p, DATA), 0x01);
	assert_int_equal(get(p, IER), 0x02);
	assert_int_equal(bus_read(&p->bench.pio, COM1, 2), 0x0201);
	set(p, LCR, 0x03);
	assert_int_equal(get(p, IER), 0);
	set(p, IER, 0xff);
	assert_int_equal(get(p, IER), 0x0f); /* what tells it from a 16750 */
	set(p, IIR, 0x01);
	assert_int_equal(get(p, IIR) & 0xc0, 0xc0); /* and from a 16450 */
	set(p, IIR, 0);
	assert_int_equal(get(p, IIR) & 0xc0, 0);
	assert_int_equal(get(p, MSR), 0xb0);
	assert_int_equal(get(p, LSR), 0x60);
}

static void output_goes_straight_through(void **state)
{
	struct port *p = *state;
	char text[8] = "";

	set(p, DATA, 'h');
	set(p, DATA, 'i');
	assert_int_equal(read(p->out, text, sizeof(text)), 2); /* without the loop's help */
	assert_string_equal(text, "hi");
}

static void thre_interrupt_comes_goes_and_comes(void **state)
{
	struct port *p = *state;

	open_port(p, 0x01, 0x00);
	assert_false(line(p));
	set(p, IER, 0x02);
	assert_true(line(p));
	assert_int_equal(get(p, IIR), 0xc2);
	assert_false(line(p)); /* reading IIR was the answer */
	assert_int_equal(get(p, IIR), 0xc1);
	set(p, DATA, 'x');
	assert_true(line(p));
	set(p, IER, 0x00);
	assert_false(line(p));
	set(p, IER, 0x02);
	assert_true(line(p));
	set(p, MCR, 0x03); /* OUT2 is the gate to the bus */
	assert_false(line(p));
	assert_int_equal(get(p, IIR), 0xc2); /* but not to the register */
}

static void input_interrupts_by_trigger_and_by_timeout(void **state)
{
	struct port *p = *state;

	open_port(p, 0x41, 0x01); /* trigger at 4 */
	type(p, "abc");
	assert_int_equal(get(p, IIR), 0xcc);
	assert_true(line(p));
	type(p, "d");
	assert_int_equal(get(p, IIR), 0xc4);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(get(p, LSR) & 1, 1);
		assert_int_equal(get(p, DATA), 'a' + i);
	}
	assert_int_equal(get(p, LSR) & 1, 0);
	assert_int_equal(get(p, IIR), 0xc1);
	assert_false(line(p));
}

static void priorities_are_the_data_sheets(void **state)
{
	struct port *p = *state;

	open_port(p, 0x01, 0x0f);
	type(p, "a");
	set(p, MCR, 0x18);
	for (unsigned i = 0; i < 17; i++)
		set(p, DATA, 'b'); /* overruns the FIFO in loopback */
	set(p, MCR, 0x0b);
	assert_int_equal(get(p, IIR), 0xc6);
	assert_int_equal(get(p, LSR) & 0x02, 0x02);
	assert_int_equal(get(p, LSR) & 0x02, 0);
	assert_int_equal(get(p, IIR), 0xc4);
	set(p, IIR, 0x03); /* clears the FIFO */
	assert_int_equal(get(p, IIR), 0xc2);
	set(p, IER, 0x0d);
	assert_int_equal(get(p, IIR), 0xc0); /* the modem's pins changed with loopback */
	get(p, MSR);
	assert_int_equal(get(p, IIR), 0xc1);
}

static void loopback_is_a_world_of_its_own(void **state)
{
	struct port *p = *state;
	char byte;

	set(p, IIR, 0x01);
	set(p, MCR, 0x1f);
	get(p, MSR);
	assert_int_equal(get(p, MSR), 0xf0);
	set(p, MCR, 0x12);
	assert_int_equal(get(p, MSR), 0x1e); /* only RTS is left; DSR and DCD changed, RI ended */
	type(p, "z");                        /* stays outside */
	set(p, DATA, 'q');
	assert_int_equal(get(p, DATA), 'q');
	assert_int_equal(get(p, LSR) & 1, 0);
	assert_int_equal(fcntl(p->out, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(read(p->out, &byte, 1), -1);
	set(p, MCR, 0x0b);
	bench_run(&p->bench, 5);
	assert_int_equal(get(p, DATA), 'z');
}

/* A guest that polls reads @count bytes of the pattern. */
static void expect_pattern(struct port *p, size_t from, size_t count)
{
	for (size_t i = from; i < from + count; i++) {
		for (unsigned turn = 0; !(get(p, LSR) & 1); turn++) {
			assert_true(turn < 1000);
			bench_run(&p->bench, 1);
		}
		assert_int_equal(get(p, DATA), i * 131 % 251);
	}
}

static void fill_pattern(uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		bytes[i] = (uint8_t)(i * 131 % 251);
}

static void input_waits_outside_until_there_is_room(void **state)
{
	struct port *p = *state;
	uint8_t bytes[3000];
	int waiting;

	open_port(p, 0x01, 0x00);
	fill_pattern(bytes, sizeof(bytes));
	assert_int_equal(write(p->in, bytes, sizeof(bytes)), sizeof(bytes));
	bench_run(&p->bench, 20);
	assert_int_equal(p->serial.rx_count, SERIAL_FIFO);
	assert_null(p->serial.in_source); /* rests: a hang-up would otherwise spin */
	assert_int_equal(ioctl(p->device_in, FIONREAD, &waiting), 0);
	assert_int_equal(waiting, sizeof(bytes) - SERIAL_FIFO);
	close_fd(&p->in);
	expect_pattern(p, 0, sizeof(bytes));
	bench_run(&p->bench, 5);
	assert_int_equal(get(p, LSR) & 1, 0);
	assert_int_equal(p->serial.in.fd, -1);
}

static void input_may_be_a_file(void **state)
{
	struct port *p = *state;
	uint8_t bytes[500];

	fill_pattern(bytes, sizeof(bytes));
	cleanup_fd int fd = memory_stream(bytes, sizeof(bytes));
	rewind_stream(fd);
	serial_destroy(&p->serial);
	bus_remove(&p->bench.pio, COM1);
	start(p, fd, -1);
	open_port(p, 0x01, 0x00);
	/* Clearing the FIFO cost what was in it, as with a line that talks before it is opened. */
	expect_pattern(p, 1, sizeof(bytes) - 1);
	bench_run(&p->bench, 5);
	assert_int_equal(p->serial.in.fd, -1);
}

/* Fills the pipe to the reader, then the port's buffer, until the transmitter says it is busy. Returns bytes taken. */
static size_t send_until_busy(struct port *p)
{
	size_t sent = 0;

	assert_true(fcntl(p->device_out, F_SETPIPE_SZ, 4096) >= 4096);
	while (get(p, LSR) & 0x20) {
		set(p, DATA, (uint8_t)(sent * 131 % 251));
		assert_true(++sent < 4 * SERIAL_OUT_BYTES);
	}
	return sent;
}

static void receive_pattern(struct port *p, size_t from, size_t count)
{
	uint8_t bytes[1000];

	for (size_t at = from; at < from + count;) {
		struct pollfd ready = {.fd = p->out, .events = POLLIN};
		for (unsigned turn = 0; poll(&ready, 1, 0) == 0; turn++) {
			assert_true(turn < 1000);
			bench_run(&p->bench, 1);
		}
		ssize_t n = read(p->out, bytes, MIN(sizeof(bytes), from + count - at));
		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++, at++)
			assert_int_equal(bytes[i], at * 131 % 251);
	}
}

static void a_slow_reader_slows_the_guest_and_loses_nothing(void **state)
{
	struct port *p = *state;

	open_port(p, 0x01, 0x02);
	get(p, IIR);
	size_t sent = send_until_busy(p);
	assert_true(sent > SERIAL_OUT_BYTES - SERIAL_FIFO);
	assert_int_equal(fcntl(p->device_out, F_GETFL) & O_NONBLOCK, 0); /* nobody's flags were touched */
	assert_int_equal(get(p, LSR) & 0x60, 0);
	assert_int_equal(get(p, IIR), 0xc1);
	receive_pattern(p, 0, sent);
	assert_int_equal(get(p, LSR) & 0x60, 0x60);
	assert_int_equal(get(p, IIR), 0xc2); /* there is room again */
	assert_null(p->serial.out_source);
	set(p, DATA, (uint8_t)(sent * 131 % 251));
	receive_pattern(p, sent, 1);
}

static void a_gone_reader_is_no_reader(void **state)
{
	struct port *p = *state;

	open_port(p, 0x01, 0x00);
	size_t sent = send_until_busy(p);
	close_fd(&p->out);
	bench_run(&p->bench, 10);
	assert_int_equal(p->serial.out.fd, -1);
	assert_int_equal(get(p, LSR) & 0x60, 0x60);
	for (size_t i = 0; i < sent; i++)
		set(p, DATA, 'x');
	assert_int_equal(get(p, LSR) & 0x60, 0x60);
	assert_null(p->serial.out_source);
}

static void output_may_be_a_file(void **state)
{
	struct port *p = *state;
	cleanup_fd int fd = memory_stream("", 0);
	char text[4];

	serial_destroy(&p->serial);
	bus_remove(&p->bench.pio, COM1);
	start(p, -1, fd);
	set(p, DATA, 'o');
	set(p, DATA, 'k');
	assert_int_equal(pread(fd, text, sizeof(text), 0), 2);
	assert_memory_equal(text, "ok", 2);
}

static void one_socket_serves_both_ways(void **state)
{
	struct port *p = *state;
	int pair[2];
	char byte;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	serial_destroy(&p->serial);
	bus_remove(&p->bench.pio, COM1);
	start(p, pair[0], pair[0]);
	open_port(p, 0x01, 0x00);
	assert_int_equal(write(pair[1], "i", 1), 1);
	bench_run(&p->bench, 5);
	assert_int_equal(get(p, DATA), 'i');
	size_t sent = 0;
	for (; get(p, LSR) & 0x20; sent++) {
		assert_true(sent < 100 * SERIAL_OUT_BYTES);
		set(p, DATA, 'o');
	}
	for (size_t got = 0; got < sent; got++) {
		struct pollfd ready = {.fd = pair[1], .events = POLLIN};
		while (poll(&ready, 1, 0) == 0)
			bench_run(&p->bench, 1);
		assert_int_equal(read(pair[1], &byte, 1), 1);
		assert_int_equal(byte, 'o');
	}
	serial_destroy(&p->serial);
	bus_remove(&p->bench.pio, COM1);
	close(pair[0]);
	close(pair[1]);
	start(p, -1, -1);
	set(p, DATA, 'x'); /* no descriptors at all */
	assert_int_equal(get(p, LSR), 0x60);
}

#define TAKEN 10000 /* bytes that the reader takes before the port moves: more than a pipe holds */

static void state_moves_with_what_is_in_flight(void **state)
{
	struct port *p = *state;
	static struct port other;
	int out[2];

	open_port(p, 0x81, 0x0f);
	type(p, "abc");
	size_t sent = send_until_busy(p);
	receive_pattern(p, 0, TAKEN);
	bench_run(&p->bench, 5);
	while (get(p, LSR) & 0x20)
		set(p, DATA, (uint8_t)(sent++ * 131 % 251));
	set(p, SCR, 0x77);
	assert_true(p->serial.unsent_start > 0); /* the ring has turned */
	serial_unit.pause(&p->serial);
	assert_int_equal(write(p->in, "late", 4), 4);
	bench_run(&p->bench, 5); /* while paused nothing moves in or out */
	assert_int_equal(p->serial.rx_count, 3);
	size_t unsent = p->serial.unsent_count, outside = sent - TAKEN - unsent;
	cleanup_fd int fd = bench_save(&serial_unit, &p->serial);

	memset(&other, 0, sizeof(other));
	bench_init(&other.bench);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	other.out = out[0];
	assert_ok(serial_init(&other.serial, &other.bench.pio, &other.bench.irqs, COM1, GSI, other.bench.loop,
			      p->device_in, out[1]));
	assert_ok(bench_load(&serial_unit, &other.serial, fd));
	bench_run(&other.bench, 5);
	assert_int_equal(other.serial.unsent_count, unsent);
	serial_unit.resume(&other.serial);
	assert_int_equal(get(&other, SCR), 0x77);
	assert_true(line(&other));
	bench_run(&other.bench, 5);
	for (const char *c = "abclate"; *c; c++)
		assert_int_equal(get(&other, DATA), *c);
	receive_pattern(p, TAKEN, outside); /* what had left is here, the rest there */
	receive_pattern(&other, sent - unsent, unsent);
	serial_destroy(&other.serial);
	bench_destroy(&other.bench);
	close(out[0]);
	close(out[1]);
}

static void reset_keeps_what_was_sent(void **state)
{
	struct port *p = *state;

	open_port(p, 0x01, 0x03);
	size_t sent = send_until_busy(p);
	serial_unit.pause(&p->serial);
	serial_unit.reset(&p->serial);
	serial_unit.resume(&p->serial);
	assert_int_equal(get(p, IER), 0);
	assert_int_equal(get(p, MCR), 0);
	assert_false(line(p));
	receive_pattern(p, 0, sent);
}

struct writers {
	struct port *port;
	atomic_bool done;
};

/* A vCPU that sends on THRE alone, beside the loop's thread that empties the buffer. */
static void *vcpu(void *arg)
{
	struct writers *w = arg;

	for (size_t sent = 0; sent < 300000; sent++) {
		while (!(get(w->port, LSR) & 0x20))
			sched_yield();
		set(w->port, DATA, (uint8_t)(sent * 131 % 251));
	}
	w->done = true;
	return NULL;
}

static void vcpu_and_loop_work_at_once(void **state)
{
	struct port *p = *state;
	struct writers w = {.port = p};
	pthread_t thread;

	open_port(p, 0x01, 0x00);
	assert_int_equal(pthread_create(&thread, NULL, vcpu, &w), 0);
	receive_pattern(p, 0, 300000);
	pthread_join(thread, NULL);
	assert_true(w.done);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(registers_hold),
		TEST(output_goes_straight_through),
		TEST(thre_interrupt_comes_goes_and_comes),
		TEST(input_interrupts_by_trigger_and_by_timeout),
		TEST(priorities_are_the_data_sheets),
		TEST(loopback_is_a_world_of_its_own),
		TEST(input_waits_outside_until_there_is_room),
		TEST(input_may_be_a_file),
		TEST(a_slow_reader_slows_the_guest_and_loses_nothing),
		TEST(a_gone_reader_is_no_reader),
		TEST(output_may_be_a_file),
		TEST(one_socket_serves_both_ways),
		TEST(state_moves_with_what_is_in_flight),
		TEST(reset_keeps_what_was_sent),
		TEST(vcpu_and_loop_work_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
