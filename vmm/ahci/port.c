/*
 * A port: its registers (AHCI 1.3, section 3.3), the commands that stand in the guest's list (chapter 4), the frames
 * that it receives (chapter 4.2.1), and the drive behind it (ATA8-ACS) but for its packets (packet.c).
 *
 *     PxCI -> [wakes the thread] -> work(): begin() -> answer() or read -> read_ended() ... -> finish() -> interrupt
 *
 * One command is served at a time. A command that failed halts the port with its bit of PxCI set until the guest stops
 * it (6.2.2). One that cannot be fetched does, too.
 *
 * Touches guest memory: the command list, the commands' tables and buffers, the received frames. All by memory_at(),
 * which knows RAM alone. The doorbell's eventfd; the medium by its drive.
 */
#include "vmm/ahci/internal.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

/* Frames: Serial ATA 3.0, section 10.3; where they are received: AHCI 1.3, figure 6. */
enum { FIS_TO_DEVICE = 0x27, FIS_TO_HOST = 0x34, FIS_PIO = 0x5f };
enum { RECEIVED_PIO = 0x20, RECEIVED_TO_HOST = 0x40 };

/* ATA commands (ATA8-ACS, chapter 7). */
enum {
	DEVICE_RESET = 0x08,
	READ_SECTORS = 0x20,
	PACKET = 0xa0,
	IDENTIFY_PACKET = 0xa1,
	STANDBY_IMMEDIATE = 0xe0,
	IDLE_IMMEDIATE = 0xe1,
	CHECK_POWER = 0xe5,
	SLEEP = 0xe6,
	IDENTIFY = 0xec,
	SET_FEATURES = 0xef,
};

/* A command in the guest's list (4.2.2), and a buffer in the command's table (4.2.3). */
struct header {
	uint16_t flags, buffers;
	uint32_t moved;
	uint64_t table;
	uint32_t reserved[4];
};

struct buffer {
	uint64_t address;
	uint32_t reserved, size; /* less one, in 22 bits */
};

#define HEADER_ATAPI 0x20u
#define TABLE_PACKET 0x40u
#define TABLE_BYTES  0x80u

/* --- what the guest receives --- */

static void receive(struct ahci_port *p, unsigned at, const uint8_t *fis, size_t len)
{
	uint8_t *to = p->cmd & AHCI_CMD_RECEIVE ? memory_at(p->ahci->memory, p->fb + at, len) : NULL;

	if (to)
		memcpy(to, fis, len);
}

/* The device's status and error come with it. The sector count says why it interrupts: all was transferred (3). */
static void receive_status(struct ahci_port *p, bool signature, bool interrupt)
{
	uint8_t fis[20] = {FIS_TO_HOST, interrupt ? 0x40 : 0, (uint8_t)p->tfd, (uint8_t)(p->tfd >> 8)};

	fis[12] = 3;
	if (signature) {
		fis[4] = fis[12] = 1;
		fis[5] = 0x14;
		fis[6] = 0xeb;
	}
	receive(p, RECEIVED_TO_HOST, fis, sizeof(fis));
}

static void receive_pio(struct ahci_port *p, uint32_t len)
{
	uint8_t fis[20] = {FIS_PIO, 0x60, AHCI_READY | AHCI_DATA};

	fis[12] = 2;
	fis[15] = AHCI_READY;
	fis[16] = (uint8_t)len;
	fis[17] = (uint8_t)(len >> 8);
	receive(p, RECEIVED_PIO, fis, sizeof(fis));
	p->is |= AHCI_IS_PIO;
}

/* --- links and resets --- */

static unsigned detection(const struct ahci_port *p)
{
	return p->sctl & 0xf;
}

/* A device that was reset says what it is, once somebody listens (10.4). */
static void greet(struct ahci_port *p)
{
	if (!p->greeting || detection(p) != 0 || !(p->cmd & AHCI_CMD_RECEIVE))
		return;
	p->greeting = false;
	p->tfd = 0x0100; /* it passed its diagnostics */
	p->sig = AHCI_SIGNATURE;
	receive_status(p, true, false);
}

/* What is at hand is no longer wanted. */
static void abandon(struct ahci_port *p)
{
	p->active = false;
	p->abandoned = p->reading;
}

static void reset_device(struct ahci_port *p)
{
	p->sense = (struct ahci_sense){};
	p->attention = (struct ahci_sense){6, 0x29, 0x00};
	p->locked = p->soft_reset = false;
	p->greeting = true;
	p->tfd = AHCI_NOTHING;
}

void ahci_port_reset(struct ahci_port *p)
{
	abandon(p);
	p->is = p->ie = p->sctl = p->serr = p->ci = 0;
	p->cmd = AHCI_CMD_SPUN_UP;
	p->sig = ~0u;
	p->current = 0;
	p->halted = false;
	reset_device(p);
}

static void write_sctl(struct ahci_port *p, uint32_t value)
{
	unsigned old = detection(p);

	p->sctl = value & 0xfff;
	if (detection(p) != 0) {
		abandon(p);
		p->tfd = AHCI_NOTHING;
	} else if (old != 0) {
		reset_device(p);
		greet(p);
	}
}

static void write_cmd(struct ahci_port *p, uint32_t value)
{
	uint32_t old = p->cmd;

	p->cmd = (value & AHCI_CMD_WRITABLE) | AHCI_CMD_SPUN_UP;
	if (value & AHCI_CMD_CLO)
		p->tfd &= ~(AHCI_BUSY | AHCI_DATA);
	if (old & AHCI_CMD_START && !(p->cmd & AHCI_CMD_START)) {
		abandon(p);
		p->ci = 0;
		p->current = 0;
		p->halted = false;
	}
	greet(p);
}

/* --- registers --- */

uint32_t ahci_port_read(const struct ahci_port *p, unsigned offset)
{
	switch (offset) {
	case AHCI_PX_CLB:
		return (uint32_t)p->clb;
	case AHCI_PX_CLBU:
		return (uint32_t)(p->clb >> 32);
	case AHCI_PX_FB:
		return (uint32_t)p->fb;
	case AHCI_PX_FBU:
		return (uint32_t)(p->fb >> 32);
	case AHCI_PX_IS:
		return p->is;
	case AHCI_PX_IE:
		return p->ie;
	case AHCI_PX_CMD: /* what is asked to run and to receive does */
		return p->cmd | (p->cmd & AHCI_CMD_START) << 15 | (p->cmd & AHCI_CMD_RECEIVE) << 10 |
		       (uint32_t)p->current << 8;
	case AHCI_PX_TFD:
		return p->tfd;
	case AHCI_PX_SIG:
		return p->sig;
	case AHCI_PX_SSTS:
		return detection(p) == 0 ? 0x113 : detection(p) == 4 ? 4 : 0;
	case AHCI_PX_SCTL:
		return p->sctl;
	case AHCI_PX_SERR:
		return p->serr;
	case AHCI_PX_CI:
		return p->ci;
	default:
		return 0;
	}
}

static void set_half(uint64_t *reg, bool upper, uint32_t value)
{
	*reg = upper ? (*reg & 0xffffffff) | (uint64_t)value << 32 : (*reg & ~0xffffffffull) | value;
}

bool ahci_port_write(struct ahci_port *p, unsigned offset, uint32_t value)
{
	switch (offset) {
	case AHCI_PX_CLB:
	case AHCI_PX_CLBU:
		set_half(&p->clb, offset == AHCI_PX_CLBU, offset == AHCI_PX_CLB ? value & ~0x3ffu : value);
		break;
	case AHCI_PX_FB:
	case AHCI_PX_FBU:
		set_half(&p->fb, offset == AHCI_PX_FBU, offset == AHCI_PX_FB ? value & ~0xffu : value);
		break;
	case AHCI_PX_IS:
		p->is &= ~value;
		break;
	case AHCI_PX_IE:
		p->ie = value & AHCI_IS_ALL;
		ahci_interrupt(p->ahci, true);
		break;
	case AHCI_PX_CMD:
		write_cmd(p, value);
		break;
	case AHCI_PX_SCTL:
		write_sctl(p, value);
		break;
	case AHCI_PX_SERR:
		p->serr &= ~value;
		break;
	case AHCI_PX_CI:
		if (p->cmd & AHCI_CMD_START)
			p->ci |= value;
		break;
	default:
		break;
	}
	return p->ci != 0 && offset >= AHCI_PX_CMD;
}

/* --- the end of a command --- */

/* It cannot go on: a frame that is none, or what is not memory. */
static void halt(struct ahci_port *p, uint32_t why)
{
	p->active = false;
	p->halted = true;
	p->is |= why;
	ahci_interrupt(p->ahci, true);
}

static void taken(struct ahci_port *p)
{
	p->active = false;
	p->ci &= ~(1u << p->command.slot);
}

static void finish(struct ahci_port *p, uint8_t status, uint8_t error, bool signature)
{
	struct header *h = memory_at(p->ahci->memory, p->command.header, sizeof(*h));

	if (h)
		h->moved = p->command.moved;
	p->tfd = status | (uint32_t)error << 8;
	receive_status(p, signature, true);
	p->is |= AHCI_IS_D2H;
	if (status & AHCI_CHECK) {
		halt(p, AHCI_IS_TASK_FILE);
		return;
	}
	taken(p);
	ahci_interrupt(p->ahci, true);
}

/* The port's sense says why. */
static void check(struct ahci_port *p)
{
	finish(p, AHCI_READY | AHCI_CHECK, (uint8_t)(p->sense.key << 4), false);
}

static void aborted(struct ahci_port *p, bool signature)
{
	finish(p, AHCI_READY | AHCI_CHECK, AHCI_ABORTED, signature);
}

/* --- data --- */

/* Goes on filling the command's buffers. What has no place there is left out. False: one is not memory. */
static bool to_guest(struct ahci_port *p, const uint8_t *data, uint32_t len)
{
	struct ahci_command *c = &p->command;

	while (len > 0 && c->at < c->buffers) {
		struct buffer b;
		const void *from = memory_at(p->ahci->memory, c->table + (uint64_t)c->at * sizeof(b), sizeof(b));
		if (!from)
			return false;
		memcpy(&b, from, sizeof(b));
		uint32_t size = (b.size & 0x3fffff) + 1;
		if (c->skip >= size) {
			c->skip = 0;
			c->at++;
			continue;
		}
		uint32_t n = MIN(len, size - c->skip);
		void *to = memory_at(p->ahci->memory, b.address + c->skip, n);
		if (!to)
			return false;
		memcpy(to, data, n);
		data += n;
		len -= n;
		c->skip += n;
		c->moved += n;
	}
	return true;
}

/* The whole of what a command has to say, in the port's buffer. */
static void answer(struct ahci_port *p, uint32_t len)
{
	if (!to_guest(p, p->buffer, len)) {
		halt(p, AHCI_IS_MEMORY);
		return;
	}
	if (p->command.pio && len > 0)
		receive_pio(p, len);
	finish(p, AHCI_READY, 0, false);
}

/* --- reading the medium --- */

static void read_done(struct drive_request *r, int res)
{
	struct ahci_port *p = (struct ahci_port *)((char *)r - offsetof(struct ahci_port, request));

	p->busy--;
	p->ended = true;
	p->result = res;
	iothread_at_end(p->thread, &p->batch);
}

static void begin_read(struct ahci_port *p)
{
	uint64_t len = MIN((uint64_t)p->command.left * AHCI_BLOCK, (uint64_t)AHCI_BUFFER);

	p->iov = (struct iovec){p->buffer, len};
	p->request = (struct drive_request){.type = DISK_READ,
					    .offset = (uint64_t)p->command.block * AHCI_BLOCK,
					    .len = len,
					    .iov = &p->iov,
					    .iov_count = 1,
					    .done = read_done};
	p->reading = true;
	p->busy++;
}

static void read_failed(struct ahci_port *p)
{
	if (drive_holds(&p->request, -p->result)) {
		p->active = false; /* it begins again when the machine goes on */
		return;
	}
	drive_count_error(p->request.port);
	p->sense = (struct ahci_sense){3 /* medium error */, 0x11, 0x00};
	check(p);
}

static void read_ended(struct ahci_port *p)
{
	struct ahci_command *c = &p->command;
	uint32_t blocks = (uint32_t)(p->request.len / AHCI_BLOCK);

	p->ended = p->reading = false;
	if (p->abandoned) {
		p->abandoned = false;
		return;
	}
	if (p->result < 0) {
		read_failed(p);
		return;
	}
	drive_count(p->request.port, DISK_READ, p->request.len);
	if (!to_guest(p, p->buffer, (uint32_t)p->request.len)) {
		halt(p, AHCI_IS_MEMORY);
		return;
	}
	c->block += blocks;
	c->left -= blocks;
	if (c->left > 0) {
		p->active = p->running;
		return;
	}
	if (c->pio)
		receive_pio(p, c->moved);
	finish(p, AHCI_READY, 0, false);
}

/* --- the beginning of a command --- */

static void begin_packet(struct ahci_port *p, const uint8_t *cdb)
{
	struct ahci_packet k = {.port = p, .cdb = cdb, .answer = p->buffer};

	if (!ahci_packet(&k)) {
		check(p);
	} else if (k.count > 0) {
		p->command.block = k.block;
		p->command.left = k.count;
	} else {
		answer(p, k.len);
	}
}

static void begin_ata(struct ahci_port *p, const uint8_t *fis, const uint8_t *cdb)
{
	switch (fis[2]) {
	case PACKET:
		if (cdb)
			begin_packet(p, cdb);
		else
			aborted(p, false);
		break;
	case IDENTIFY_PACKET:
		p->command.pio = true;
		ahci_identify(p, p->buffer);
		answer(p, 512);
		break;
	case DEVICE_RESET:
		reset_device(p);
		p->greeting = false;
		finish(p, 0, 1, true);
		break;
	case SET_FEATURES: /* transfer modes, and what makes no difference */
	case STANDBY_IMMEDIATE:
	case IDLE_IMMEDIATE:
	case CHECK_POWER:
	case SLEEP:
		finish(p, AHCI_READY, 0, false);
		break;
	case IDENTIFY:
	case READ_SECTORS: /* tell what it is (ACS: 7.12.7) */
		aborted(p, true);
		break;
	default:
		aborted(p, false);
	}
}

/* A frame that is no command writes the control register; bit 2 held, then let go, is a reset. */
static void begin_control(struct ahci_port *p, uint8_t control)
{
	bool reset = control & 4;

	taken(p);
	if (p->soft_reset && !reset) {
		reset_device(p);
		greet(p);
	}
	p->soft_reset = reset;
}

static void begin(struct ahci_port *p)
{
	const struct memory *memory = p->ahci->memory;
	uint8_t table[TABLE_BYTES];
	struct header h;

	while (!(p->ci >> p->current & 1))
		p->current = (p->current + 1) % AHCI_SLOTS;
	p->active = true;
	p->command = (struct ahci_command){.slot = p->current, .header = p->clb + p->current * sizeof(h)};
	const void *from = memory_at(memory, p->command.header, sizeof(h));
	if (from)
		memcpy(&h, from, sizeof(h));
	const void *at = from ? memory_at(memory, h.table & ~0x7full, TABLE_BYTES) : NULL;
	if (!at) {
		halt(p, AHCI_IS_MEMORY);
		return;
	}
	memcpy(table, at, TABLE_BYTES);
	if (table[0] != FIS_TO_DEVICE) {
		halt(p, AHCI_IS_INTERFACE);
		return;
	}
	if (!(table[1] & 0x80)) {
		begin_control(p, table[15]);
		return;
	}
	p->tfd = AHCI_BUSY;
	p->command.table = (h.table & ~0x7full) + TABLE_BYTES;
	p->command.buffers = h.buffers;
	p->command.pio = !(table[3] & 1);
	begin_ata(p, table, h.flags & HEADER_ATAPI ? table + TABLE_PACKET : NULL);
}

static bool may_begin(const struct ahci_port *p)
{
	return p->running && p->cmd & AHCI_CMD_START && !p->halted && p->ci && detection(p) == 0 &&
	       pci_bus_master(&p->ahci->pci) && (!p->medium || drive_may_take(p->medium));
}

/*
 * Does what there is to do until the medium is to be read. The bound is for a guest that issues as fast as this takes:
 * it is not to keep the thread from its other work.
 */
static void work(struct ahci_port *p)
{
	bool submit = false;
	unsigned n = 0;

	pthread_mutex_lock(&p->ahci->lock);
	if (p->ended)
		read_ended(p);
	for (; n < AHCI_SLOTS && !p->reading && (p->active || may_begin(p)); n++) {
		submit = p->active;
		if (submit)
			begin_read(p);
		else
			begin(p);
	}
	pthread_mutex_unlock(&p->ahci->lock);
	if (n == AHCI_SLOTS)
		iothread_at_end(p->thread, &p->batch);
	if (submit)
		drive_submit(drive_port(p->medium, p->thread_index), &p->request);
}

/* --- the thread --- */

static void batch_ended(struct io_batch *batch)
{
	work((struct ahci_port *)((char *)batch - offsetof(struct ahci_port, batch)));
}

static void rung(struct io_watch *watch)
{
	work((struct ahci_port *)((char *)watch - offsetof(struct ahci_port, watch)));
}

void ahci_port_wake(struct ahci_port *p)
{
	uint64_t one = 1;

	if (write(p->doorbell, &one, sizeof(one)) < 0)
		log_warn("%s: wake its thread: it will wait for the guest", p->id);
}

static void stop(void *arg)
{
	struct ahci_port *p = arg;

	p->running = false;
	iothread_drain(p->thread, &p->busy);
	/* What is not done begins again. */
	pthread_mutex_lock(&p->ahci->lock);
	if (p->ended)
		read_ended(p);
	p->active = false;
	pthread_mutex_unlock(&p->ahci->lock);
}

void ahci_port_stop(struct ahci_port *p)
{
	iothread_call(p->thread, stop, p);
}

static void start(void *arg)
{
	struct ahci_port *p = arg;

	if (p->running || (p->medium && !drive_go_on(p->medium)))
		return;
	p->running = true;
	work(p);
}

void ahci_port_start(struct ahci_port *p)
{
	iothread_call(p->thread, start, p);
}

struct error *ahci_port_init(struct ahci *a, unsigned index)
{
	struct ahci_port *p = &a->port[index];

	p->ahci = a;
	p->index = index;
	p->id = a->config.id[index];
	p->medium = a->config.medium[index];
	p->thread_index = index % a->config.thread_count;
	p->thread = a->config.threads[p->thread_index];
	p->batch.end = batch_ended;
	p->watch.ready = rung;
	p->running = true;
	ahci_port_reset(p);
	/* Its pages exist once a guest needs them. */
	void *buffer = mmap(NULL, AHCI_BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		return error_new(errno, "%s: make its buffer", p->id);
	p->buffer = buffer;
	cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return error_new(errno, "%s: make its doorbell", p->id);
	TRY(iothread_add_file(p->thread, fd, &p->watch.slot));
	p->doorbell = steal_fd(&fd);
	iothread_watch(p->thread, &p->watch);
	return NULL;
}

void ahci_port_destroy(struct ahci_port *p)
{
	if (p->doorbell >= 0) {
		ahci_port_stop(p);
		iothread_unwatch(p->thread, &p->watch);
		iothread_remove_file(p->thread, p->watch.slot);
		close_fd(&p->doorbell);
	}
	if (p->buffer)
		munmap(p->buffer, AHCI_BUFFER);
}
