/*
 * A driver for NVMe (NVM Express 1.4) and the tests of the controller: one completion queue for each submission queue,
 * MSI-X, lists of pages, doorbells in registers or, with the option shadow=1, in memory: then registers are rung only
 * when the controller asked for it.
 */
#include "pci.h"
#include "tests.h"

#define QUEUES     4
#define ENTRIES    16
#define DEPTH      24
#define BLOCK      4096u
#define BUFFER     (8 * PAGE)
#define BLOCKS_MAX 65536u

/* Registers (3.1), opcodes (5, 6). */
enum { CAP = 0x00, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum {
	CREATE_SQ = 1,
	CREATE_CQ = 5,
	IDENTIFY = 6,
	SET_FEATURES = 9,
	DOORBELL_BUFFER = 0x7c,
	FLUSH = 0,
	WRITE = 1,
	READ = 2,
	DATASET = 9
};

struct entry {
	uint8_t opcode, flags;
	uint16_t cid;
	uint32_t nsid, reserved[4];
	uint64_t prp1, prp2;
	uint32_t cdw[6]; /* command dwords 10 to 15 */
};

struct completion {
	uint32_t result, reserved;
	uint16_t head, queue, cid, status;
};

struct queue {
	struct entry *sq;
	volatile struct completion *cq;
	uint32_t tail, head;
	uint16_t phase;
};

/* A command under way: a range of the disk and its buffer. */
struct request {
	uint8_t opcode;
	uint64_t sector;
	uint8_t *data;
	uint32_t len;
	uint64_t *list;
	uint32_t block; /* of the load */
	bool done;
};

static struct queue queue[QUEUES + 1];
static unsigned queues, cq_entries = ENTRIES; /* of those for I/O */
static uint64_t bar, disk_sectors;
static volatile uint32_t *shadow, *event;
static struct request request[DEPTH];

static void ring(unsigned q, bool completion, uint32_t value)
{
	barrier();
	if (q && shadow) {
		uint16_t old = (uint16_t)shadow[2 * q + completion];
		shadow[2 * q + completion] = value;
		barrier();
		uint16_t asked = (uint16_t)event[2 * q + completion];
		if ((uint16_t)(value - asked - 1) >= (uint16_t)(value - old))
			return;
	}
	mmio_write32(bar + DOORBELLS + 8 * q + 4 * completion, value);
}

static void add(unsigned q, struct entry e)
{
	queue[q].sq[queue[q].tail] = e;
	queue[q].tail = (queue[q].tail + 1) % ENTRIES;
}

static bool take(unsigned q, struct completion *c)
{
	struct queue *from = &queue[q];
	const volatile struct completion *at = &from->cq[from->head];

	if ((at->status & 1) != from->phase)
		return false;
	barrier();
	*c = (struct completion){at->result, 0, at->head, at->queue, at->cid, (uint16_t)(at->status >> 1)};
	if (++from->head == (q ? cq_entries : ENTRIES)) {
		from->head = 0;
		from->phase ^= 1;
	}
	return true;
}

/* One command from start to end; its result. */
static uint32_t command(unsigned q, struct entry e)
{
	struct completion c = {};

	add(q, e);
	ring(q, false, queue[q].tail);
	CHECK(WAIT_FOR(10000000, take(q, &c)), "command %x of queue %u never completes", e.opcode, q);
	ring(q, true, queue[q].head);
	CHECK(c.status == 0, "command %x of queue %u: status %x", e.opcode, q, c.status);
	return c.result;
}

static void make_queue(unsigned q)
{
	queue[q].sq = memset(alloc(ENTRIES * sizeof(struct entry), PAGE), 0, ENTRIES * sizeof(struct entry));
	queue[q].cq = memset(alloc(ENTRIES * sizeof(struct completion), PAGE), 0, ENTRIES * sizeof(struct completion));
	queue[q].phase = 1;
	if (q == 0)
		return;
	uint32_t size = (ENTRIES - 1) << 16, cq_size = (cq_entries - 1) << 16;
	command(0, (struct entry){CREATE_CQ, .prp1 = (uint64_t)queue[q].cq, .cdw = {cq_size | q, q << 16 | 3}});
	command(0, (struct entry){CREATE_SQ, .prp1 = (uint64_t)queue[q].sq, .cdw = {size | q, q << 16 | 1}});
}

/* Opens the way to a controller in hot-plug port @number, from 1, as firmware would. */
static void open_port(uint64_t number)
{
	const uint64_t window = 0xd0000000, port = pci_ecam() + 30 * 0x8000 + (number - 1) * 0x1000;
	const unsigned card = 32; /* bus 1 */

	mmio_write32(port + 0x18, 1 << 8 | 1 << 16);
	mmio_write16(port + 0x20, (uint16_t)(window >> 16));
	mmio_write16(port + 0x22, (uint16_t)(window >> 16));
	mmio_write16(port + 4, PCI_COMMAND_MEM | PCI_COMMAND_BM);
	pci_set_bar(card, 0, window);
	pci_set_bar(card, 4, window + 0x10000);
}

static void open(void)
{
	uint8_t *page = alloc(PAGE, PAGE);
	struct msix msix;
	int slot = -1;
	char serial[21];

	if (option_number("port", 0))
		open_port(option_number("port", 0));
	for (unsigned s = 1; s <= PCI_BUSES * 32 && slot < 0; s += s < 32 ? 1 : 32)
		if (pci_read(s, 0, 4) != ALL_ONES32 && pci_read(s, 8, 4) >> 8 == 0x010802)
			slot = (int)s;
	CHECK(slot >= 0, "no NVMe controller");
	pci_enable((unsigned)slot);
	bar = pci_bar((unsigned)slot, 0);
	CHECK(msix_find((unsigned)slot, &msix), "no MSI-X");
	msix_enable(&msix, true, false);
	for (unsigned i = 0; i < msix.vectors && i <= QUEUES; i++)
		msix_route(&msix, i, (uint8_t)(VECTOR_MSI + i), lapic_id());
	mmio_write32(bar + CC, 0);
	CHECK(WAIT_FOR(1000000, mmio_read32(bar + CSTS) == 0), "CSTS %x", mmio_read32(bar + CSTS));
	make_queue(0);
	mmio_write32(bar + AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	mmio_write64(bar + ASQ, (uint64_t)queue[0].sq);
	mmio_write64(bar + ACQ, (uint64_t)queue[0].cq);
	mmio_write32(bar + CC, 0x00460001);
	CHECK(WAIT_FOR(1000000, mmio_read32(bar + CSTS) == 1), "CSTS %x", mmio_read32(bar + CSTS));
	command(0, (struct entry){IDENTIFY, .prp1 = (uint64_t)page, .cdw = {1}});
	memcpy(serial, page + 4, 20);
	serial[20] = '\0';
	command(0, (struct entry){IDENTIFY, .nsid = 1, .prp1 = (uint64_t)page, .cdw = {0}});
	disk_sectors = *(uint64_t *)page;
	CHECK(page[130] == 9, "sectors of 2^%u bytes", page[130]);
	queues = (command(0, (struct entry){SET_FEATURES, .cdw = {7, (QUEUES - 1) << 16 | (QUEUES - 1)}}) & 0xffff) + 1;
	if (queues > QUEUES)
		queues = QUEUES;
	for (unsigned q = 1; q <= queues; q++)
		make_queue(q);
	print("NVME '%s' sectors %lu queues %u\n", serial, disk_sectors, queues);
	if (!option_number("shadow", 0))
		return;
	uint8_t *pages = memset(alloc(2 * PAGE, PAGE), 0, 2 * PAGE);
	command(0, (struct entry){DOORBELL_BUFFER, .prp1 = (uint64_t)pages, .prp2 = (uint64_t)pages + PAGE});
	shadow = (volatile uint32_t *)pages;
	event = (volatile uint32_t *)(pages + PAGE);
}

/* Shuts down as a driver does: what was written is durable. */
static void shut_down(void)
{
	mmio_write32(bar + CC, 0x00464001);
	CHECK(WAIT_FOR(10000000, (mmio_read32(bar + CSTS) & 0xc) == 8), "CSTS %x", mmio_read32(bar + CSTS));
	mmio_write32(bar + CC, 0);
	shadow = NULL;
}

static void get_buffers(void)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		/* Every other one above 4 GiB where there is memory; with room for a beginning amid a page. */
		request[i].data = i % 2 ? alloc_high(BUFFER + PAGE, PAGE) : NULL;
		if (!request[i].data)
			request[i].data = alloc(BUFFER + PAGE, PAGE);
		request[i].data += i % 3 * 516;
		request[i].list = alloc(PAGE, PAGE);
		request[i].done = true;
	}
}

static bool has_room(unsigned q)
{
	unsigned flying = 0;

	for (unsigned i = 0; i < DEPTH; i++)
		flying += !request[i].done && i % queues + 1 == q;
	return flying < ENTRIES - 1;
}

/* Sends request @i over its queue: the doorbell is rung apart. */
static void send(unsigned i)
{
	struct request *r = &request[i];
	uint64_t first = (uint64_t)r->data, page = (first & ~(uint64_t)(PAGE - 1)) + PAGE, end = first + r->len;
	struct entry e = {.opcode = r->opcode, .cid = (uint16_t)i, .nsid = 1, .prp1 = first};

	if (end > page + PAGE) {
		for (unsigned n = 0; page < end; n++, page += PAGE)
			r->list[n] = page;
		e.prp2 = (uint64_t)r->list;
	} else if (end > page) {
		e.prp2 = page;
	}
	e.cdw[0] = (uint32_t)r->sector;
	e.cdw[1] = (uint32_t)(r->sector >> 32);
	e.cdw[2] = r->len / SECTOR - 1;
	r->done = false;
	add(i % queues + 1, e);
}

/* Takes completions off all queues, and calls @end for each; sleeps until the next interrupt when there are none. */
static unsigned reap(void (*end)(struct request *r))
{
	struct completion c;
	unsigned n = 0;

	for (unsigned q = 1; q <= queues; q++) {
		unsigned before = n;
		for (; take(q, &c); n++) {
			CHECK(c.cid < DEPTH && !request[c.cid].done && c.queue == q, "queue %u: command %u completes",
			      q, c.cid);
			CHECK(c.status == 0, "sector %lu: status %x", request[c.cid].sector, c.status);
			request[c.cid].done = true;
			end(&request[c.cid]);
		}
		if (n > before)
			ring(q, true, queue[q].head);
	}
	if (!n)
		irq_sleep();
	return n;
}

static void ring_all(void)
{
	for (unsigned q = 1; q <= queues; q++)
		ring(q, false, queue[q].tail);
}

/* --- everything written, flushed, read back over all queues --- */

static uint64_t verify_version;

static void verify_end(struct request *r)
{
	if (r->opcode != READ)
		return;
	uint32_t bad = pattern_check(r->data, r->sector, r->len / SECTOR, verify_version);
	CHECK(bad == r->len / SECTOR, "sector %lu is not what was written", r->sector + bad);
}

static void transfer(uint8_t opcode, uint64_t sectors)
{
	uint64_t next = 0;
	unsigned flying = 0;

	while (next < sectors || flying) {
		for (unsigned i = 0; i < DEPTH && next < sectors; i++) {
			struct request *r = &request[i];
			if (!r->done || !has_room(i % queues + 1))
				continue;
			uint64_t count = 1 + random_next() % (BUFFER / SECTOR);
			if (count > sectors - next)
				count = sectors - next;
			r->opcode = opcode;
			r->sector = next;
			r->len = (uint32_t)count * SECTOR;
			if (opcode == WRITE)
				pattern_fill(r->data, next, (uint32_t)count, verify_version);
			else
				pattern_spoil(r->data, (uint32_t)count);
			send(i);
			next += count;
			flying++;
		}
		ring_all();
		flying -= reap(verify_end);
	}
}

void test_nvme_verify(void)
{
	uint64_t sectors = option_number("mib", 1) * 2048;

	verify_version = option_number("version", 1);
	open();
	CHECK(sectors <= disk_sectors, "the disk is too small");
	get_buffers();
	transfer(WRITE, sectors);
	for (unsigned q = 1; q <= queues; q++)
		command(q, (struct entry){FLUSH, .nsid = 1});
	transfer(READ, sectors);
	irq_on();
	for (unsigned q = 0; q <= queues; q++)
		CHECK(WAIT_FOR(1000000, interrupts[VECTOR_MSI + q] > 0), "queue %u never interrupted", q);
	irq_off();
	/* Discarded: every other 4 KiB of the first 128. */
	struct {
		uint32_t attributes, blocks;
		uint64_t block;
	} *range = alloc(PAGE, PAGE);
	for (unsigned i = 0; i < 16; i++) {
		range[i].attributes = 0;
		range[i].blocks = 8;
		range[i].block = i * 16;
	}
	command(1, (struct entry){DATASET, .nsid = 1, .prp1 = (uint64_t)range, .cdw = {15, 4}});
	shut_down();
	print("NVME verified %lu sectors on %u queues%s\n", sectors, queues, ram_high_end ? ", high memory too" : "");
}

/* --- load: random reads and writes over all queues, each block's version counted --- */

static uint32_t *version; /* of each block: how often it was written; 0: never */
static bool *busy;

static void load_end(struct request *r)
{
	if (r->opcode == READ) {
		uint32_t bad = pattern_check(r->data, r->sector, BLOCK / SECTOR, version[r->block]);
		CHECK(bad == BLOCK / SECTOR, "block %u sector %u does not hold version %u", r->block, bad,
		      version[r->block]);
	}
	busy[r->block] = false;
}

static void load_begin(unsigned i, uint32_t blocks)
{
	uint64_t random = random_next();
	uint32_t block = (uint32_t)(random % blocks);
	struct request *r = &request[i];

	while (busy[block])
		block = (block + 1) % blocks;
	r->opcode = !version[block] || random >> 40 & 1 ? WRITE : READ;
	r->block = block;
	r->sector = (uint64_t)block * (BLOCK / SECTOR);
	r->len = BLOCK;
	if (r->opcode == WRITE)
		pattern_fill(r->data, r->sector, BLOCK / SECTOR, ++version[block]);
	else
		pattern_spoil(r->data, BLOCK / SECTOR);
	busy[block] = true;
	send(i);
}

/* All blocks, one behind the other, hold what they should. */
static void verify_all(uint32_t blocks)
{
	for (uint32_t block = 0; block < blocks; block++) {
		if (!version[block])
			continue;
		request[0].opcode = READ;
		request[0].block = block;
		request[0].sector = (uint64_t)block * (BLOCK / SECTOR);
		request[0].len = BLOCK;
		pattern_spoil(request[0].data, BLOCK / SECTOR);
		send(0);
		ring_all();
		while (!reap(load_end))
			;
	}
}

/* Works until a character comes. Options: mib=N of the disk; every=N: how often it reports. */
void test_nvme_load(void)
{
	uint64_t done = 0, reported = 0, every = option_number("every", 50);
	uint32_t blocks = (uint32_t)option_number("mib", 1) * 256;
	unsigned flying = 0;

	open();
	CHECK(blocks <= BLOCKS_MAX && (uint64_t)blocks * (BLOCK / SECTOR) <= disk_sectors && blocks > 2 * DEPTH,
	      "%u blocks", blocks);
	version = memset(alloc(blocks * sizeof(*version), PAGE), 0, blocks * sizeof(*version));
	busy = memset(alloc(blocks, PAGE), 0, blocks);
	get_buffers();
	print("LOAD begin\n");
	for (bool stop = false; !stop || flying;) {
		for (unsigned i = 0; i < DEPTH && !stop; i++) {
			if (!request[i].done || !has_room(i % queues + 1))
				continue;
			load_begin(i, blocks);
			flying++;
		}
		ring_all();
		unsigned n = reap(load_end);
		flying -= n;
		done += n;
		if (done / every > reported) {
			reported = done / every;
			print("LOAD %lu\n", done);
			stop |= serial_get() >= 0;
		}
	}
	verify_all(blocks);
	print("LOAD verified %lu\n", done);
	shut_down();
}

/*
 * A completion queue with fewer places than there are commands: the controller waits for the driver to take
 * completions off, and goes on, wherever the doorbells are.
 */
void test_nvme_small(void)
{
	const unsigned commands = 9;
	struct completion c;

	cq_entries = 4;
	open();
	for (unsigned round = 0; round < 8; round++) {
		/* One at a time: there is always room, so the controller need not hear of the head. */
		for (unsigned i = 0; i < 1 + round % 3; i++)
			command(1, (struct entry){FLUSH, .nsid = 1});
		for (unsigned i = 0; i < commands; i++)
			add(1, (struct entry){FLUSH, .nsid = 1, .cid = (uint16_t)i});
		ring(1, false, queue[1].tail);
		wait_us(20000); /* the controller sleeps, for its queue is full */
		for (unsigned i = 0; i < commands; i++) {
			CHECK(WAIT_FOR(10000000, take(1, &c)), "round %u: command %u never completes", round, i);
			CHECK(c.cid == i && c.status == 0, "round %u: command %u, status %x", round, c.cid, c.status);
			ring(1, true, queue[1].head);
		}
	}
	shut_down();
	print("NVME %u commands at a time in %u places\n", commands, cq_entries - 1);
}
