/*
 * Guests that work for as long as they are let, and notice when anything is lost: for saving and restoring, killing,
 * and moving machines. What a sector or page must hold is kept in memory that moves along.
 */
#include "tests.h"

#define BLOCK         4096u
#define BLOCK_SECTORS (BLOCK / SECTOR)
#define DEPTH         32
#define BLOCKS_MAX    65536u

/* --- load: random reads and writes over all queues, each block's version counted --- */

static struct blk_request request[DEPTH];
static uint32_t *version; /* of each block: how often it was written; 0: never */
static bool *busy;

/* False when the queue whose turn it is has no room. */
static bool begin(struct virtio *v, struct blk_request *r, uint32_t blocks, uint64_t turn)
{
	uint64_t random = random_next();
	uint32_t block = (uint32_t)(random % blocks);

	while (busy[block])
		block = (block + 1) % blocks;
	bool write = !version[block] || random >> 40 & 1;
	r->tag = block;
	r->header.type = write ? BLK_OUT : BLK_IN;
	r->header.sector = (uint64_t)block * BLOCK_SECTORS;
	r->len = BLOCK;
	if (write)
		pattern_fill(r->data, r->header.sector, BLOCK_SECTORS, version[block] + 1);
	else
		pattern_spoil(r->data, BLOCK_SECTORS);
	if (!blk_submit(v, (unsigned)(turn % v->queues), r, 1 + (random >> 41 & 3), random >> 43 & 1)) {
		r->done = true;
		return false;
	}
	version[block] += write;
	return busy[block] = true;
}

static void end(struct blk_request *r, uint32_t written)
{
	bool in = r->header.type == BLK_IN;

	CHECK(r->status == BLK_OK, "type %u, block %lu: status %u", r->header.type, r->tag, r->status);
	CHECK(written == (in ? BLOCK + 1 : 1), "used length %u", written);
	if (in) {
		uint32_t bad = pattern_check(r->data, r->header.sector, BLOCK_SECTORS, version[r->tag]);
		CHECK(bad == BLOCK_SECTORS, "block %lu sector %u does not hold version %u", r->tag, bad,
		      version[r->tag]);
	}
	busy[r->tag] = false;
	r->done = true;
}

static unsigned reap(struct virtio *v)
{
	struct blk_request *r;
	uint32_t written;
	unsigned n = 0;

	for (unsigned q = 0; q < v->queues; q++)
		for (; (r = virtq_get(&v->queue[q], &written)); n++)
			end(r, written);
	if (!n)
		irq_sleep();
	return n;
}

/* All blocks, one behind the other, hold what they should. */
static void verify_all(struct virtio *v, uint32_t blocks)
{
	for (uint32_t block = 0; block < blocks; block++) {
		uint64_t sector = (uint64_t)block * BLOCK_SECTORS;
		if (!version[block])
			continue;
		CHECK(blk_do(v, block % v->queues, BLK_IN, sector, request[0].data, BLOCK) == BLK_OK, "read fails");
		CHECK(pattern_check(request[0].data, sector, BLOCK_SECTORS, version[block]) == BLOCK_SECTORS,
		      "at the end block %u does not hold version %u", block, version[block]);
	}
}

/* Options: ops=N in all, or without end until a character comes; mib=N of the disk; every=N: how often it reports. */
void test_load(void)
{
	static struct virtio v;
	uint64_t disk = blk_open(&v, 0, true), ops = option_number("ops", 0), every = option_number("every", 500);
	uint32_t blocks = (uint32_t)option_number("mib", 2) * 256, flying = 0;
	uint64_t begun = 0, done = 0, reported = 0;

	CHECK(blocks <= BLOCKS_MAX && (uint64_t)blocks * BLOCK_SECTORS <= disk && blocks > 2 * DEPTH, "%u blocks",
	      blocks);
	version = memset(alloc(blocks * sizeof(*version), PAGE), 0, blocks * sizeof(*version));
	busy = memset(alloc(blocks, PAGE), 0, blocks);
	for (unsigned i = 0; i < DEPTH; i++) {
		request[i].data = alloc(BLOCK, PAGE);
		request[i].done = true;
	}
	print("LOAD begin\n");
	for (bool stop = false; !stop || flying;) {
		for (unsigned i = 0; i < DEPTH && !stop; i++) {
			if (!request[i].done)
				continue;
			if (!begin(&v, &request[i], blocks, begun))
				break;
			begun++;
			flying++;
		}
		for (unsigned q = 0; q < v.queues; q++)
			virtq_kick(&v.queue[q]);
		unsigned n = reap(&v);
		flying -= n;
		done += n;
		if (done / every > reported) {
			reported = done / every;
			print("LOAD %lu\n", done);
			stop |= serial_get() >= 0;
		}
		stop |= ops && begun >= ops;
	}
	verify_all(&v, blocks);
	print("LOAD verified %lu\n", done);
	virtio_reset(&v);
}

/*
 * Writes the whole region again and again, each time with the next version, flushes, and says which one is durable:
 * whoever kills the machine then must find that version or the next in every sector.
 */
void test_generations(void)
{
	static struct virtio v;
	const uint32_t chunk = 128;
	uint64_t disk = blk_open(&v, 0, false), sectors = option_number("mib", 1) * 2048;
	uint64_t last = option_number("generations", 0);

	CHECK(sectors <= disk, "the disk is too small");
	uint8_t *data = alloc(chunk * SECTOR, PAGE);
	for (uint64_t g = 1; !last || g <= last; g++) {
		for (uint64_t s = 0; s < sectors; s += chunk) {
			pattern_fill(data, s, chunk, g);
			uint8_t status = blk_do(&v, (unsigned)(s / chunk % v.queues), BLK_OUT, s, data, chunk * SECTOR);
			CHECK(status == BLK_OK, "generation %lu sector %lu: status %u", g, s, status);
		}
		uint8_t status = blk_do(&v, (unsigned)(g % v.queues), BLK_FLUSH, 0, NULL, 0);
		CHECK(status == BLK_OK, "generation %lu: flush: status %u", g, status);
		print("GENERATION %lu\n", g);
	}
	virtio_reset(&v);
}

/* --- dirty: memory that changes all the time, by all processors --- */

static uint64_t pages_count;
static volatile uint64_t passes[CPUS_MAX];
static volatile bool stop_dirty;
static unsigned cpus;

/* A word of page @p. They are the last of the memory below 4 GiB, odd ones the last of all where there is more. */
static uint64_t *word_of(uint64_t p)
{
	uint64_t end = p % 2 && ram_high_end ? ram_high_end : ram_low_end;

	return (uint64_t *)(end - (p + 1) * PAGE) + p % 512;
}

/* Processor i has every page of which the number is i modulo their count; each pass adds one to a word of each page. */
static void dirty_pass(unsigned cpu)
{
	uint64_t pass = passes[cpu];

	for (uint64_t p = cpu; p < pages_count; p += cpus) {
		volatile uint64_t *word = word_of(p);
		CHECK(*word == pass * 2 + p, "page %lu holds %lx, expected %lx (pass %lu)", p, *word, pass * 2 + p,
		      pass);
		*word += 2;
	}
	passes[cpu] = pass + 1;
}

static void dirty_loop(unsigned cpu)
{
	while (!stop_dirty)
		dirty_pass(cpu);
}

/* Options: mib=N of memory, smp=1 for all processors. Ends when a character comes over the serial port. */
void test_dirty(void)
{
	uint64_t mib = option_number("mib", 4), reported = 0;

	pages_count = mib * 256;
	CHECK(mib << 20 < ram_low_end / 2, "%lu MiB are too much", mib);
	if (ram_high_end)
		map(ram_high_end - (mib << 20), mib << 20);
	cpus = option_number("smp", 0) ? smp_start() : 1;
	for (uint64_t p = 0; p < pages_count; p++)
		*word_of(p) = p;
	print("DIRTY begin\n");
	if (cpus > 1)
		smp_kick(dirty_loop);
	while (!stop_dirty) {
		dirty_pass(0);
		if (passes[0] >= reported + option_number("every", 10)) {
			reported = passes[0];
			print("DIRTY %lu\n", reported);
			stop_dirty = serial_get() >= 0;
		}
	}
	if (cpus > 1)
		smp_wait();
	for (unsigned i = 0; i < cpus; i++)
		dirty_pass(i);
	print("DIRTY verified %lu\n", passes[0]);
}
