/*
 * The 16550A; see serial.h for what it promises.
 *
 * The transmitter is infinitely fast: a byte written is gone, so THRE is set again at once and the THRE interrupt fires
 * per write, unless the buffer for a slow reader has less room than the 16 bytes that a driver may write on one THRE.
 * The receiver's character timeout comes at once, too: when less than the trigger level is there, nothing more is on
 * the way. Line rates, breaks and parity have no effect.
 *
 * Interrupts leave the chip only with OUT2 set, the gate on every PC's board, and so not in loopback, where the chip
 * holds that pin inactive.
 *
 * Threads: vCPUs take the lock for register accesses. Loop sources are made and ended by the loop's thread alone; a
 * vCPU that wants one asks by a post. A source exists only while there is something to wait for, for epoll would
 * otherwise report a hang-up for ever.
 *
 * Touches: its line and the two descriptors.
 */
#include "vmm/devices/serial.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

enum { DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCRATCH };

#define IER_RX            0x01
#define IER_THRE          0x02
#define IER_LINE          0x04
#define IER_MODEM         0x08
#define IER_BITS          0x0f
#define IIR_NONE          0x01
#define IIR_MODEM         0x00
#define IIR_THRE          0x02
#define IIR_RX            0x04
#define IIR_LINE          0x06
#define IIR_TIMEOUT       0x0c
#define IIR_FIFOS         0xc0
#define FCR_ENABLE        0x01
#define FCR_CLEAR_RX      0x02
#define FCR_HOLDS         0xc9
#define FCR_TRIGGER_SHIFT 6
#define LCR_DLAB          0x80
#define MCR_DTR           0x01
#define MCR_RTS           0x02
#define MCR_OUT1          0x04
#define MCR_OUT2          0x08
#define MCR_LOOP          0x10
#define MCR_BITS          0x1f
#define LSR_DR            0x01
#define LSR_OE            0x02
#define LSR_THRE          0x20
#define LSR_TEMT          0x40
#define MSR_DELTAS        0x0f
#define MSR_TERI          0x04
#define MSR_CTS           0x10
#define MSR_DSR           0x20
#define MSR_RI            0x40
#define MSR_DCD           0x80
#define DIVISOR_9600      12

/* What follows runs with the lock held, unless it says otherwise. */

static size_t rx_depth(const struct serial *serial)
{
	return serial->fcr & FCR_ENABLE ? SERIAL_FIFO : 1;
}

static size_t rx_trigger(const struct serial *serial)
{
	static const uint8_t levels[] = {1, 4, 8, 14};

	return serial->fcr & FCR_ENABLE ? levels[serial->fcr >> FCR_TRIGGER_SHIFT] : 1;
}

static bool transmitter_ready(const struct serial *serial)
{
	return SERIAL_OUT_BYTES - serial->unsent_count >= SERIAL_FIFO;
}

/* The pins of a line whose other end is there, or what loopback puts in their place. */
static uint8_t modem_pins(const struct serial *serial)
{
	uint8_t mcr = serial->mcr;

	if (!(mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (uint8_t)((mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) | (mcr & MCR_OUT1 ? MSR_RI : 0) |
			 (mcr & MCR_OUT2 ? MSR_DCD : 0));
}

/* The interrupt of the highest priority: data sheet, table IV. */
static uint8_t interrupt(const struct serial *serial)
{
	if ((serial->ier & IER_LINE) && serial->lsr_errors)
		return IIR_LINE;
	if ((serial->ier & IER_RX) && serial->rx_count >= rx_trigger(serial))
		return IIR_RX;
	if ((serial->ier & IER_RX) && serial->rx_count > 0)
		return IIR_TIMEOUT;
	if ((serial->ier & IER_THRE) && serial->thr_empty_pending)
		return IIR_THRE;
	if ((serial->ier & IER_MODEM) && serial->msr_deltas)
		return IIR_MODEM;
	return IIR_NONE;
}

static void update_line(struct serial *serial)
{
	bool gate = (serial->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

	if (!serial->paused)
		irq_line(serial->irqs, serial->gsi, serial->source, gate && interrupt(serial) != IIR_NONE);
}

static void receive(struct serial *serial, uint8_t byte)
{
	if (serial->rx_count == rx_depth(serial))
		serial->lsr_errors |= LSR_OE; /* only loopback comes here: input is read when there is room */
	else
		serial->rx[serial->rx_count++] = byte;
}

/* Bytes that may be taken from the input now. */
static size_t rx_room(const struct serial *serial)
{
	if (serial->paused || (serial->mcr & MCR_LOOP))
		return 0;
	return rx_depth(serial) - serial->rx_count;
}

/* --- output --- */

static void out_gone(struct serial *serial, int errnum)
{
	/* One who hangs up is no surprise. */
	if (serial->peer_fd < 0)
		log_warn(
			"serial port on GSI %u: its output has gone (%s): what the guest writes from now on is dropped",
			serial->gsi, strerror(errnum));
	serial->out.fd = -1;
	serial->unsent_count = 0;
}

/* Writes as much of the buffer as the descriptor takes. */
static void drain(struct serial *serial)
{
	while (serial->unsent_count > 0 && serial->out.fd >= 0 && !serial->paused) {
		size_t run = MIN(serial->unsent_count, (size_t)SERIAL_OUT_BYTES - serial->unsent_start);
		ssize_t n = stream_write(&serial->out, serial->unsent + serial->unsent_start, run);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			out_gone(serial, errno);
			return;
		}
		serial->unsent_start = (serial->unsent_start + (size_t)n) % SERIAL_OUT_BYTES;
		serial->unsent_count -= (size_t)n;
	}
	if (serial->unsent_count == 0)
		serial->unsent_start = 0; /* the next wait takes the same pages again */
}

static void pump_out(void *self);

static void out_event(void *self, int fd, uint32_t events)
{
	pump_out(self);
}

/* On the loop's thread, without the lock: empties the buffer, and waits for room if that did not do. */
static void pump_out(void *self)
{
	struct serial *serial = self;

	pthread_mutex_lock(&serial->lock);
	bool was_ready = transmitter_ready(serial);
	drain(serial);
	if (!was_ready && transmitter_ready(serial)) {
		serial->thr_empty_pending = true;
		update_line(serial);
	}
	bool wait = serial->unsent_count > 0 && serial->out.fd >= 0 && !serial->paused;
	if (!wait) {
		loop_remove(serial->out_source);
		serial->out_source = NULL;
	} else if (!serial->out_source) {
		cleanup_error struct error *err =
			loop_add_fd(serial->loop, serial->out.fd, EPOLLOUT, out_event, serial, &serial->out_source);
		if (err)
			out_gone(serial, error_errno(err));
	}
	pthread_mutex_unlock(&serial->lock);
}

/* Returns true when the loop's thread has to go on with it. */
static bool transmit(struct serial *serial, uint8_t byte)
{
	if (serial->mcr & MCR_LOOP) {
		receive(serial, byte);
		serial->thr_empty_pending = true;
		return false;
	}
	bool was_empty = serial->unsent_count == 0;
	/* A guest that writes to a busy transmitter overwrites: that byte is lost, as on the chip. */
	if (serial->out.fd >= 0 && serial->unsent_count < SERIAL_OUT_BYTES) {
		serial->unsent[(serial->unsent_start + serial->unsent_count) % SERIAL_OUT_BYTES] = byte;
		serial->unsent_count++;
	}
	if (was_empty)
		drain(serial);
	serial->thr_empty_pending = transmitter_ready(serial);
	return was_empty && serial->unsent_count > 0;
}

/* --- input --- */

static void pump_in(void *self);

static void in_event(void *self, int fd, uint32_t events)
{
	pump_in(self);
}

/* From what was read ahead into the FIFO. */
static void take_typed(struct serial *serial)
{
	size_t n = MIN(serial->typed_count, rx_room(serial));

	for (size_t i = 0; i < n; i++)
		receive(serial, serial->typed[i]);
	serial->typed_count -= n;
	memmove(serial->typed, serial->typed + n, serial->typed_count);
}

/* Reads all there is: the filter sees it at once, the guest when it has room. Returns false when the input has ended.
 */
static bool read_ahead(struct serial *serial)
{
	uint8_t bytes[SERIAL_FIFO];
	ssize_t n;

	while ((n = stream_read(&serial->in, bytes, sizeof(bytes))) > 0)
		for (ssize_t i = 0; i < n; i++)
			if (!serial->filter(serial->filter_arg, bytes[i]) && serial->typed_count < SERIAL_TYPED)
				serial->typed[serial->typed_count++] = bytes[i];
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

/* Whether more input is wanted now. */
static bool may_read(const struct serial *serial)
{
	return serial->in.fd >= 0 && (serial->filter || rx_room(serial) > 0);
}

/*
 * Takes what there is room for, until a read gives less than that: for files, which always give all they have, that is
 * the end. Returns false when the input has ended.
 */
static bool take_input(struct serial *serial)
{
	uint8_t bytes[SERIAL_FIFO];

	if (serial->filter)
		return serial->in.fd < 0 || read_ahead(serial);
	for (size_t room = rx_room(serial); room > 0 && serial->in.fd >= 0; room = rx_room(serial)) {
		ssize_t n = stream_read(&serial->in, bytes, room);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		for (ssize_t i = 0; i < n; i++)
			receive(serial, bytes[i]);
		if ((size_t)n < room)
			return n > 0 && !serial->in.is_file;
	}
	return true;
}

/* On the loop's thread, without the lock: fills the FIFO, then waits for more, or rests when there is no room. */
static void pump_in(void *self)
{
	struct serial *serial = self;
	struct error *err = NULL;

	pthread_mutex_lock(&serial->lock);
	if (!take_input(serial))
		serial->in.fd = -1;
	take_typed(serial);
	update_line(serial);
	if (!may_read(serial)) {
		loop_remove(serial->in_source);
		serial->in_source = NULL;
	} else if (!serial->in_source) {
		err = loop_add_fd(serial->loop, serial->in.fd, EPOLLIN, in_event, serial, &serial->in_source);
		if (err)
			serial->in.fd = -1;
	}
	pthread_mutex_unlock(&serial->lock);
	if (err)
		log_warn("serial port on GSI %u: its input is ignored: %s", serial->gsi, error_text(err));
	error_free(err);
}

/* --- registers --- */

static uint8_t read_data(struct serial *serial)
{
	if (serial->rx_count == 0)
		return 0;
	uint8_t byte = serial->rx[0];
	serial->rx_count--;
	memmove(serial->rx, serial->rx + 1, serial->rx_count);
	return byte;
}

static uint8_t read_iir(struct serial *serial)
{
	uint8_t iir = interrupt(serial);

	if (iir == IIR_THRE)
		serial->thr_empty_pending = false; /* reading it is the answer */
	return iir | (serial->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

static uint8_t read_lsr(struct serial *serial)
{
	uint8_t lsr = serial->lsr_errors;

	serial->lsr_errors = 0;
	lsr |= serial->rx_count > 0 ? LSR_DR : 0;
	lsr |= transmitter_ready(serial) ? LSR_THRE : 0;
	lsr |= serial->unsent_count == 0 ? LSR_TEMT : 0;
	return lsr;
}

static uint8_t read_register(struct serial *serial, uint64_t reg)
{
	bool dlab = serial->lcr & LCR_DLAB;
	uint8_t value;

	switch (reg) {
	case DATA:
		return dlab ? serial->divisor & 0xff : read_data(serial);
	case IER:
		return dlab ? serial->divisor >> 8 : serial->ier;
	case IIR_FCR:
		return read_iir(serial);
	case LCR:
		return serial->lcr;
	case MCR:
		return serial->mcr;
	case LSR:
		return read_lsr(serial);
	case MSR:
		value = modem_pins(serial) | serial->msr_deltas;
		serial->msr_deltas = 0;
		return value;
	default:
		return serial->scratch;
	}
}

static void write_ier(struct serial *serial, uint8_t value)
{
	/* Enabling it while the transmitter is empty fires it: drivers start sending that way. */
	if (!(serial->ier & IER_THRE) && (value & IER_THRE))
		serial->thr_empty_pending = transmitter_ready(serial);
	serial->ier = value & IER_BITS;
}

static void write_fcr(struct serial *serial, uint8_t value)
{
	if ((value & FCR_CLEAR_RX) || ((serial->fcr ^ value) & FCR_ENABLE))
		serial->rx_count = 0;
	/* Clearing the transmit FIFO finds it empty: what is in our buffer has left the chip. */
	serial->fcr = value & FCR_ENABLE ? value & FCR_HOLDS : 0;
}

static void write_mcr(struct serial *serial, uint8_t value)
{
	uint8_t before = modem_pins(serial);

	serial->mcr = value & MCR_BITS;
	uint8_t changed = before ^ modem_pins(serial);
	/* The ring indicator counts only when it ends. */
	uint8_t trailing = (before & MSR_RI) && (changed & MSR_RI) ? MSR_TERI : 0;
	serial->msr_deltas |= ((changed >> 4) & (MSR_DELTAS & ~MSR_TERI)) | trailing;
}

/* Returns true when the loop's thread has output to go on with. */
static bool write_register(struct serial *serial, uint64_t reg, uint8_t value)
{
	bool dlab = serial->lcr & LCR_DLAB;

	switch (reg) {
	case DATA:
		if (!dlab)
			return transmit(serial, value);
		serial->divisor = (serial->divisor & 0xff00) | value;
		break;
	case IER:
		if (dlab)
			serial->divisor = (uint16_t)(value << 8 | (serial->divisor & 0xff));
		else
			write_ier(serial, value);
		break;
	case IIR_FCR:
		write_fcr(serial, value);
		break;
	case LCR:
		serial->lcr = value;
		break;
	case MCR:
		write_mcr(serial, value);
		break;
	case SCRATCH:
		serial->scratch = value;
		break;
	default: /* LSR and MSR are for the factory's tests */
		break;
	}
	return false;
}

/* Room enough came up to wake a resting input: not at every byte, for a wake-up costs more than a byte. */
static bool wants_input(const struct serial *serial, size_t room_before)
{
	size_t enough = (rx_depth(serial) + 1) / 2, room = rx_room(serial);

	return room_before < enough && room >= enough;
}

static uint64_t port_read(void *self, uint64_t offset, unsigned size)
{
	struct serial *serial = self;
	uint64_t value = 0;

	pthread_mutex_lock(&serial->lock);
	size_t room = rx_room(serial);
	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)read_register(serial, offset + i) << (8 * i);
	update_line(serial);
	bool in = wants_input(serial, room);
	pthread_mutex_unlock(&serial->lock);
	if (in)
		loop_post(serial->loop, pump_in, serial);
	return value;
}

static void port_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct serial *serial = self;
	bool out = false;

	pthread_mutex_lock(&serial->lock);
	size_t room = rx_room(serial);
	for (unsigned i = 0; i < size; i++)
		out = write_register(serial, offset + i, (uint8_t)(value >> (8 * i))) || out;
	update_line(serial);
	bool in = wants_input(serial, room);
	pthread_mutex_unlock(&serial->lock);
	if (in)
		loop_post(serial->loop, pump_in, serial);
	if (out)
		loop_post(serial->loop, pump_out, serial);
}

static const struct bus_ops ops = {.read = port_read, .write = port_write};

/* --- life --- */

static void registers_at_power_on(struct serial *serial)
{
	serial->ier = serial->lcr = serial->mcr = serial->scratch = serial->fcr = 0;
	serial->lsr_errors = serial->msr_deltas = 0;
	serial->divisor = DIVISOR_9600;
	serial->thr_empty_pending = false;
	serial->rx_count = 0;
	serial->typed_count = 0;
}

struct error *serial_init(struct serial *serial, struct bus *pio, struct irqs *irqs, uint16_t base, unsigned gsi,
			  struct loop *loop, int in_fd, int out_fd)
{
	memset(serial, 0, sizeof(*serial));
	pthread_mutex_init(&serial->lock, NULL);
	serial->irqs = irqs;
	serial->loop = loop;
	serial->gsi = gsi;
	/* Ports that share a line (COM1 and COM3) differ in this. */
	serial->source = base / SERIAL_PORTS % 32;
	serial->paused = true;
	serial->own_fd = serial->peer_fd = -1;
	/* Mapped, not embedded: nobody's memset() then takes pages that hardly any machine needs. */
	serial->unsent = mmap(NULL, SERIAL_OUT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (serial->unsent == MAP_FAILED)
		return error_new(errno, "serial port at 0x%x: its buffer", base);
	/* epoll knows a descriptor once; the two directions are two sources. */
	if (out_fd >= 0 && out_fd == in_fd) {
		out_fd = serial->own_fd = fcntl(out_fd, F_DUPFD_CLOEXEC, 0);
		if (out_fd < 0)
			return error_new(errno, "serial port at 0x%x", base);
	}
	serial->in = stream_on(in_fd);
	serial->out = stream_on(out_fd);
	registers_at_power_on(serial);
	return bus_add(pio, base, SERIAL_PORTS, &ops, serial);
}

void serial_filter(struct serial *serial, bool (*filter)(void *arg, uint8_t byte), void *arg)
{
	serial->filter = filter;
	serial->filter_arg = arg;
	pump_in(serial);
}

/* Whether somebody who could read or write is at the other side. */
static bool is_connected(const struct serial *serial)
{
	struct pollfd p = {.fd = serial->peer_fd};

	if (serial->peer_fd < 0)
		return serial->in.fd >= 0 || serial->out.fd >= 0;
	return poll(&p, 1, 0) == 0;
}

static void disconnect(struct serial *serial)
{
	loop_remove(serial->in_source);
	loop_remove(serial->out_source);
	serial->in_source = serial->out_source = NULL;
	serial->unsent_count = serial->unsent_start = 0;
	close_fd(&serial->own_fd);
	close_fd(&serial->peer_fd);
}

struct error *serial_connect(struct serial *serial, int fd)
{
	cleanup_fd int peer = fd;

	if (is_connected(serial))
		return error_new(EBUSY, "serial port on GSI %u: somebody is connected", serial->gsi);
	/* epoll knows a descriptor once; the two directions are two sources. */
	cleanup_fd int own = fcntl(peer, F_DUPFD_CLOEXEC, 0);
	if (own < 0)
		return error_new(errno, "serial port on GSI %u: connect", serial->gsi);
	pthread_mutex_lock(&serial->lock);
	disconnect(serial);
	serial->peer_fd = steal_fd(&peer);
	serial->own_fd = steal_fd(&own);
	serial->in = stream_on(serial->peer_fd);
	serial->out = stream_on(serial->own_fd);
	pthread_mutex_unlock(&serial->lock);
	pump_in(serial);
	return NULL;
}

void serial_destroy(struct serial *serial)
{
	loop_remove(serial->in_source);
	loop_remove(serial->out_source);
	close_fd(&serial->own_fd);
	close_fd(&serial->peer_fd);
	munmap(serial->unsent, SERIAL_OUT_BYTES);
	pthread_mutex_destroy(&serial->lock);
}

static void reverse(uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count / 2; i++) {
		uint8_t byte = bytes[i];
		bytes[i] = bytes[count - 1 - i];
		bytes[count - 1 - i] = byte;
	}
}

/* Turns the ring, where it lies, so that what is unsent starts at 0 and is one blob. While paused nobody else uses it.
 */
static void straighten(struct serial *serial)
{
	if (serial->unsent_start == 0)
		return;
	reverse(serial->unsent, serial->unsent_start);
	reverse(serial->unsent + serial->unsent_start, SERIAL_OUT_BYTES - serial->unsent_start);
	reverse(serial->unsent, SERIAL_OUT_BYTES);
	serial->unsent_start = 0;
}

static void state(void *self, struct saved *s)
{
	struct serial *serial = self;

	saved_u8(s, "ier", &serial->ier);
	saved_u8(s, "fcr", &serial->fcr);
	saved_u8(s, "lcr", &serial->lcr);
	saved_u8(s, "mcr", &serial->mcr);
	saved_u8(s, "scratch", &serial->scratch);
	saved_u8(s, "lsr-errors", &serial->lsr_errors);
	saved_u8(s, "msr-deltas", &serial->msr_deltas);
	saved_u16(s, "divisor", &serial->divisor);
	saved_bool(s, "thr-empty-pending", &serial->thr_empty_pending);
	saved_blob(s, "received", serial->rx, &serial->rx_count, SERIAL_FIFO);
	saved_blob(s, "typed", serial->typed, &serial->typed_count, SERIAL_TYPED);
	straighten(serial);
	saved_blob(s, "unsent", serial->unsent, &serial->unsent_count, SERIAL_OUT_BYTES);
	if (!saved_loading(s))
		return;
	serial->ier &= IER_BITS;
	serial->fcr &= serial->fcr & FCR_ENABLE ? FCR_HOLDS : 0;
	serial->mcr &= MCR_BITS;
	serial->lsr_errors &= LSR_OE;
	serial->msr_deltas &= MSR_DELTAS;
	if (serial->rx_count > rx_depth(serial))
		saved_fail(s, "%zu bytes received, but no FIFO", serial->rx_count);
}

/* Without the lock, on the loop's thread, as are the rest. */
static void set_paused(struct serial *serial, bool paused)
{
	pthread_mutex_lock(&serial->lock);
	serial->paused = paused;
	update_line(serial);
	pthread_mutex_unlock(&serial->lock);
	pump_in(serial);
	pump_out(serial);
}

static void pause_unit(void *self)
{
	set_paused(self, true);
}

static void resume(void *self)
{
	set_paused(self, false);
}

static struct error *restored(void *self)
{
	struct serial *serial = self;

	set_paused(serial, serial->paused);
	return NULL;
}

/* The UART's reset pin. What the guest had sent is on its way and arrives. */
static void power_on(void *self)
{
	struct serial *serial = self;

	pthread_mutex_lock(&serial->lock);
	registers_at_power_on(serial);
	irq_line(serial->irqs, serial->gsi, serial->source, false);
	pthread_mutex_unlock(&serial->lock);
	pump_in(serial);
}

const struct unit_ops serial_unit = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};
