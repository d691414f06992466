/* A driver for virtio-blk (virtio 1.2, section 5.2) and the tests of the device. */
#include "tests.h"

#define CHUNK_MAX (64u << 10)
#define DEPTH     48

/* --- driver --- */

uint64_t blk_open(struct virtio *v, unsigned nth, bool use_msix)
{
	memset(v, 0, sizeof(*v));
	CHECK(virtio_find(v, 2, nth + (unsigned)option_number("disk", 0)), "no block device %u", nth);
	virtio_setup(v, BLK_WANTED, VIRTIO_QUEUES, use_msix, lapic_id());
	return mmio_read32(v->config) | (uint64_t)mmio_read32(v->config + 4) << 32;
}

bool blk_submit(struct virtio *v, unsigned queue, struct blk_request *r, unsigned segments, bool indirect)
{
	struct segment segs[16];
	unsigned n = 0;
	bool to_guest = r->header.type == BLK_IN || r->header.type == BLK_GET_ID;

	r->status = 0xff;
	r->done = false;
	segs[n++] = (struct segment){&r->header, 16, false};
	for (uint32_t at = 0; at < r->len;) {
		uint32_t piece = segments > 1 ? (r->len / segments + SECTOR - 1) & ~(SECTOR - 1) : r->len;
		if (piece == 0 || piece > r->len - at || n == 14)
			piece = r->len - at;
		segs[n++] = (struct segment){r->data + at, piece, to_guest};
		at += piece;
	}
	segs[n++] = (struct segment){(void *)(uintptr_t)&r->status, 1, true};
	return virtq_add(&v->queue[queue], segs, n, r, indirect && virtio_has(v, VIRTIO_F_INDIRECT));
}

static uint8_t wait_for(struct virtio *v, unsigned queue, struct blk_request *r)
{
	virtq_kick(&v->queue[queue]);
	CHECK(virtq_wait(&v->queue[queue], &r->written, 10000000) == r, "a request of type %u never completes",
	      r->header.type);
	return r->status;
}

uint8_t blk_do(struct virtio *v, unsigned queue, uint32_t type, uint64_t sector, void *to, uint32_t len)
{
	static struct blk_request r;

	r = (struct blk_request){.header = {.type = type, .sector = sector}, .data = to, .len = len};
	CHECK(blk_submit(v, queue, &r, 1, false), "queue %u is full", queue);
	return wait_for(v, queue, &r);
}

#define WORDS (SECTOR / 8)

static const uint64_t *sequence(uint64_t sector, uint64_t version)
{
	static uint64_t random[2 * WORDS];
	uint64_t x = 0x9e3779b97f4a7c15;

	if (!random[0]) {
		for (unsigned i = 0; i < COUNT(random); i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			random[i] = x;
		}
	}
	return &random[(sector * 7 + version * 13) % WORDS];
}

void pattern_fill(void *data, uint64_t sector, uint32_t sectors, uint64_t version)
{
	uint64_t *word = data;

	for (uint32_t s = 0; s < sectors; s++, word += WORDS) {
		word[0] = sector + s;
		word[1] = version;
		memcpy(word + 2, sequence(sector + s, version), (WORDS - 2) * 8);
	}
}

void pattern_spoil(void *data, uint32_t sectors)
{
	uint64_t *word = data;

	for (uint32_t s = 0; s < sectors; s++)
		word[s * WORDS] = word[(s + 1) * WORDS - 1] = 0;
}

uint32_t pattern_check(const void *data, uint64_t sector, uint32_t sectors, uint64_t version)
{
	const uint64_t *word = data;

	for (uint32_t s = 0; s < sectors; s++, word += WORDS) {
		const uint64_t *a = word + 2, *b = sequence(sector + s, version);
		uint64_t n = WORDS - 2;
		bool same;
		__asm__ volatile("repe cmpsq" : "=@ccz"(same), "+S"(a), "+D"(b), "+c"(n) : : "memory");
		if (!same || word[0] != sector + s || word[1] != version)
			return s;
	}
	return sectors;
}

/* --- what the device says of itself --- */

void test_blk_id(void)
{
	struct virtio v;
	uint64_t sectors = blk_open(&v, 0, false);
	char id[21] = {0};

	CHECK(blk_do(&v, 0, BLK_GET_ID, 0, id, 20) == BLK_OK, "GET_ID fails");
	print("BLK id '%s' sectors %lu queues %u features %lx\n", id, sectors, v.queues, v.features);
	CHECK(v.queues == option_number("queues", v.queues), "%u queues", v.queues);
	if (virtio_has(&v, BLK_F_MQ))
		CHECK(mmio_read16(v.config + 34) == v.queues, "num_queues %u", mmio_read16(v.config + 34));
	virtio_reset(&v);
}

/* --- everything written, flushed, read back over all queues --- */

static struct blk_request request[DEPTH];

static void get_buffers(void)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		if (request[i].data)
			continue;
		/* Every other one above 4 GiB where there is memory. */
		request[i].data = i % 2 ? alloc_high(CHUNK_MAX, PAGE) : NULL;
		if (!request[i].data)
			request[i].data = alloc(CHUNK_MAX, PAGE);
	}
}

/* Takes completions off all queues; sleeps until the next interrupt when there are none. Returns how many. */
static unsigned reap(struct virtio *v, uint64_t version, bool sleep)
{
	unsigned n = 0;

	for (unsigned q = 0; q < v->queues; q++) {
		struct blk_request *r;
		uint32_t written;
		while ((r = virtq_get(&v->queue[q], &written))) {
			bool in = r->header.type == BLK_IN;
			CHECK(r->status == BLK_OK, "type %u, sector %lu: status %u", r->header.type, r->header.sector,
			      r->status);
			CHECK(written == (in ? r->len + 1 : 1), "used length %u, expected %u", written,
			      in ? r->len + 1 : 1);
			uint32_t sectors = r->len / SECTOR;
			if (in) {
				uint32_t bad = pattern_check(r->data, r->header.sector, sectors, version);
				CHECK(bad == sectors, "sector %lu is not what was written", r->header.sector + bad);
			}
			r->done = true;
			n++;
		}
	}
	if (!n && sleep)
		irq_sleep();
	return n;
}

static void transfer(struct virtio *v, uint32_t type, uint64_t sectors, uint64_t version)
{
	uint64_t next = 0, turn = 0;
	unsigned busy = 0;

	for (unsigned i = 0; i < DEPTH; i++)
		request[i].done = true;
	while (next < sectors || busy) {
		for (unsigned i = 0; i < DEPTH && next < sectors; i++) {
			struct blk_request *r = &request[i];
			if (!r->done)
				continue;
			uint64_t random = random_next(), count = 1 + random % (CHUNK_MAX / SECTOR);
			if (random >> 20 & 1)
				count = 1 + count % 8;
			if (count > sectors - next)
				count = sectors - next;
			r->header.type = type;
			r->header.sector = next;
			r->len = (uint32_t)count * SECTOR;
			if (type == BLK_OUT)
				pattern_fill(r->data, next, (uint32_t)count, version);
			else
				pattern_spoil(r->data, (uint32_t)count);
			unsigned q = (unsigned)(turn++ % v->queues);
			if (!blk_submit(v, q, r, 1 + (unsigned)(random >> 24) % 8, random >> 32 & 1)) {
				r->done = true;
				break;
			}
			if (random >> 33 & 1)
				virtq_kick(&v->queue[q]);
			next += count;
			busy++;
		}
		for (unsigned q = 0; q < v->queues; q++)
			virtq_kick(&v->queue[q]);
		busy -= reap(v, version, busy > 0);
	}
}

void test_blk_verify(void)
{
	static struct virtio v;
	uint64_t version = option_number("version", 1), disk = blk_open(&v, 0, true);
	uint64_t sectors = option_number("mib", 4) * 2048;

	if (sectors > disk)
		sectors = disk;
	get_buffers();
	if (option_number("write", 1))
		transfer(&v, BLK_OUT, sectors, version);
	if (virtio_has(&v, BLK_F_FLUSH))
		for (unsigned q = 0; q < v.queues; q++)
			CHECK(blk_do(&v, q, BLK_FLUSH, 0, NULL, 0) == BLK_OK, "flush fails on queue %u", q);
	transfer(&v, BLK_IN, sectors, version);
	irq_on(); /* whoever never had to wait has them all to come */
	for (unsigned q = 0; q < v.queues; q++)
		CHECK(WAIT_FOR(1000000, interrupts[VECTOR_MSI + q] > 0), "queue %u never interrupted", q);
	irq_off();
	print("BLK verified %lu sectors on %u queues%s\n", sectors, v.queues, ram_high_end ? ", high memory too" : "");
	virtio_reset(&v);
}

/* --- discard and write zeroes --- */

struct range {
	uint64_t sector;
	uint32_t sectors, flags;
};

static bool all_zero(const void *data, size_t n)
{
	const uint64_t *p = data;

	for (size_t i = 0; i < n / 8; i++)
		if (p[i])
			return false;
	return true;
}

void test_blk_ranges(void)
{
	struct virtio v;
	uint64_t sectors = blk_open(&v, 0, false);
	const uint32_t n = 256;
	uint8_t *buf = alloc(n * SECTOR, PAGE);
	struct range *range = alloc(2 * sizeof(*range), 16);

	CHECK(virtio_has(&v, BLK_F_DISCARD) && virtio_has(&v, BLK_F_ZEROES), "discard or write zeroes is not offered");
	CHECK(sectors >= n, "the disk is too small");
	pattern_fill(buf, 0, n, 7);
	CHECK(blk_do(&v, 0, BLK_OUT, 0, buf, n * SECTOR) == BLK_OK, "write fails");
	*range = (struct range){16, 48, 0};
	CHECK(blk_do(&v, 0, BLK_DISCARD, 0, range, 16) == BLK_OK, "discard fails");
	*range = (struct range){101, 9, 0};
	CHECK(blk_do(&v, 0, BLK_ZEROES, 0, range, 16) == BLK_OK, "write zeroes fails");
	*range = (struct range){128, 64, 1};
	CHECK(blk_do(&v, 0, BLK_ZEROES, 0, range, 16) == BLK_OK, "write zeroes with unmap fails");
	pattern_spoil(buf, n);
	CHECK(blk_do(&v, 0, BLK_IN, 0, buf, n * SECTOR) == BLK_OK, "read fails");
	for (unsigned s = 0; s < n; s++) {
		bool same = pattern_check(buf + s * SECTOR, s, 1, 7) == 1, zero = all_zero(buf + s * SECTOR, SECTOR);
		if (s >= 16 && s < 64)
			CHECK(same || zero, "sector %u is neither old nor zero after its discard", s);
		else if ((s >= 101 && s < 110) || (s >= 128 && s < 192))
			CHECK(zero, "sector %u is not zero", s);
		else
			CHECK(same, "sector %u was hit by what was meant for others", s);
	}
	/* Ranges past the end, or around it, or with unknown flags, or not of whole ranges. */
	const struct {
		struct range range;
		uint32_t type, len;
		uint8_t status;
	} bad[] = {
		{{sectors, 1, 0}, BLK_DISCARD, 16, BLK_IOERR},
		{{sectors - 1, 2, 0}, BLK_DISCARD, 16, BLK_IOERR},
		{{~0ull, 2, 0}, BLK_ZEROES, 16, BLK_IOERR},
		{{sectors - 1, ALL_ONES32, 0}, BLK_ZEROES, 16, BLK_IOERR},
		{{0, 1, 1}, BLK_DISCARD, 16, BLK_UNSUPP},
		{{0, 1, 2}, BLK_ZEROES, 16, BLK_UNSUPP},
		{{0, 1, 0}, BLK_ZEROES, 15, BLK_IOERR},
	};
	for (unsigned i = 0; i < COUNT(bad); i++) {
		*range = bad[i].range;
		uint8_t status = blk_do(&v, 0, bad[i].type, 0, range, bad[i].len);
		CHECK(status == bad[i].status, "bad range %u: status %u", i, status);
	}
	CHECK(blk_do(&v, 0, BLK_IN, 0, buf, SECTOR) == BLK_OK && pattern_check(buf, 0, 1, 7) == 1,
	      "sector 0 was hit by a bad range");
	virtio_reset(&v);
}

/* --- limits --- */

void test_blk_limits(void)
{
	struct virtio v;
	uint64_t sectors = blk_open(&v, 0, false);
	uint8_t *buf = alloc(4 * SECTOR, PAGE);
	const struct {
		uint64_t sector;
		uint32_t type, len;
		uint8_t status;
	} cases[] = {
		{sectors - 1, BLK_IN, SECTOR, BLK_OK},
		{sectors, BLK_IN, SECTOR, BLK_IOERR},
		{sectors - 1, BLK_IN, 2 * SECTOR, BLK_IOERR},
		{1ull << 63, BLK_IN, SECTOR, BLK_IOERR},
		{~0ull, BLK_IN, SECTOR, BLK_IOERR},
		{(1ull << 55) - 1, BLK_OUT, SECTOR, BLK_IOERR},
		{0, BLK_IN, 100, BLK_IOERR},
		{0, 77, SECTOR, BLK_UNSUPP},
		{0, ALL_ONES32, SECTOR, BLK_UNSUPP},
	};

	for (unsigned i = 0; i < COUNT(cases); i++) {
		uint8_t status = blk_do(&v, 0, cases[i].type, cases[i].sector, buf, cases[i].len);
		CHECK(status == cases[i].status, "case %u: status %u, expected %u", i, status, cases[i].status);
	}
	bool readonly = virtio_has(&v, BLK_F_RO);
	CHECK(readonly == option_number("ro", 0), "read-only is %u", readonly);
	uint8_t status = blk_do(&v, 0, BLK_OUT, 0, buf, SECTOR);
	CHECK(status == (readonly ? BLK_IOERR : BLK_OK), "write: status %u, read-only %u", status, readonly);
	virtio_reset(&v);
}

/* --- malformed chains --- */

static struct blk_request bad_request;
static uint8_t *bad_data;

/* A good read as three descriptors, 0 to 2, for a case to spoil. */
static void put_read(struct virtq *q)
{
	bad_request = (struct blk_request){.header = {.type = BLK_IN}, .data = bad_data, .len = SECTOR};
	q->desc[0] = (struct virtq_desc){(uint64_t)&bad_request.header, 16, VIRTIO_DESC_NEXT, 1};
	q->desc[1] = (struct virtq_desc){(uint64_t)bad_data, SECTOR, VIRTIO_DESC_NEXT | VIRTIO_DESC_WRITE, 2};
	q->desc[2] = (struct virtq_desc){(uint64_t)&bad_request.status, 1, VIRTIO_DESC_WRITE, 0};
}

/* Spoils the chain in way @n; false when there is no such way. The head is *head, the index moves by *by. */
static bool spoil(struct virtq *q, unsigned n, uint16_t *head, uint16_t *by)
{
	struct virtq_desc *d = q->desc, *t = q->indirect;

	switch (n) {
	case 0:
		*head = q->size;
		break;
	case 1:
		*head = 0xffff;
		break;
	case 2:
		d[1].next = q->size;
		break;
	case 3: /* loops */
		d[2].flags |= VIRTIO_DESC_NEXT;
		d[2].next = 1;
		break;
	case 4:
		d[0].next = 0;
		break;
	case 5: /* buffers that are no memory */
		d[1].addr = 1ull << 45;
		break;
	case 6:
		d[1].addr = ~0ull - 10;
		break;
	case 7:
		d[1].addr = 0xe0000000;
		break;
	case 8:
		d[1].addr = ram_low_end - 1;
		break;
	case 9:
		d[1].len = ALL_ONES32;
		break;
	case 10:
		d[0].addr = 0xfee00000;
		break;
	case 11:
		d[2].addr = 0xfec00000;
		break;
	case 12:
		d[1].len = 0;
		break;
	case 13: /* to read behind to write */
		d[2].flags = 0;
		break;
	case 14:
		*by = (uint16_t)(q->size + 1);
		break;
	case 15:
		*by = 0x8000;
		break;
	case 16: /* no header, no status */
		d[0].flags = 0;
		break;
	case 17:
		*head = 1;
		break;
	case 18:
		d[0].len = 15;
		break;
	case 19: /* indirect tables: of odd length, of none, elsewhere, in a table, with more behind it */
		d[0] = (struct virtq_desc){(uint64_t)t, 47, VIRTIO_DESC_INDIRECT, 0};
		break;
	case 20:
		d[0] = (struct virtq_desc){(uint64_t)t, 0, VIRTIO_DESC_INDIRECT, 0};
		break;
	case 21:
		d[0] = (struct virtq_desc){1ull << 40, 48, VIRTIO_DESC_INDIRECT, 0};
		break;
	case 22:
		t[0] = (struct virtq_desc){(uint64_t)t, 16, VIRTIO_DESC_INDIRECT, 0};
		d[0] = (struct virtq_desc){(uint64_t)t, 16, VIRTIO_DESC_INDIRECT, 0};
		break;
	case 23:
		memcpy(t, d, 48);
		d[0] = (struct virtq_desc){(uint64_t)t, 48, VIRTIO_DESC_INDIRECT | VIRTIO_DESC_NEXT, 1};
		break;
	case 24:
		memcpy(t, d, 48);
		t[1].next = 3;
		d[0] = (struct virtq_desc){(uint64_t)t, 48, VIRTIO_DESC_INDIRECT, 0};
		break;
	case 25:
		d[0] = (struct virtq_desc){ram_low_end - 16, 48, VIRTIO_DESC_INDIRECT, 0};
		break;
	default:
		return false;
	}
	return true;
}

/* From reset to a read over every queue. */
static void check_works(struct virtio *v, unsigned n)
{
	if (n == 0)
		blk_open(v, 0, true);
	else
		virtio_setup(v, BLK_WANTED, VIRTIO_QUEUES, true, lapic_id());
	for (unsigned q = 0; q < v->queues; q++)
		CHECK(blk_do(v, q, BLK_IN, 0, bad_data, SECTOR) == BLK_OK, "after case %u queue %u does not work", n,
		      q);
}

void test_blk_malformed(void)
{
	static struct virtio v;
	unsigned n = 0;

	bad_data = alloc(PAGE, PAGE);
	irq_on();
	for (;; n++) {
		check_works(&v, n);
		struct virtq *q = &v.queue[n % v.queues];
		uint16_t head = 0, by = 1;
		uint32_t before = interrupts[VECTOR_MSI + v.queues];
		put_read(q);
		if (!spoil(q, n, &head, &by))
			break;
		q->avail[2 + q->avail[1] % q->size] = head;
		barrier();
		q->avail[1] += by;
		virtq_ring(q);
		CHECK(WAIT_FOR(3000000, virtio_status(&v) & VIRTIO_NEEDS_RESET),
		      "case %u: the device does not need a reset", n);
		CHECK(WAIT_FOR(1000000, interrupts[VECTOR_MSI + v.queues] > before), "case %u: the driver is not told",
		      n);
	}
	/* Rings that lie nowhere: the queue cannot work; the device must. */
	for (unsigned i = 0; i < 3; i++) {
		virtio_reset(&v);
		mmio_write8(v.common + 20, 1);
		mmio_write8(v.common + 20, 3);
		mmio_write32(v.common + 8, 1);
		mmio_write32(v.common + 12, 1);
		mmio_write8(v.common + 20, 11);
		mmio_write16(v.common + 22, 0);
		for (unsigned ring = 0; ring < 3; ring++)
			mmio_write64(v.common + 32 + ring * 8, ring == i ? ~0ull << 12 : (uint64_t)bad_data);
		mmio_write16(v.common + 28, 1);
		mmio_write8(v.common + 20, 15);
		virtq_ring(&v.queue[0]);
		wait_us(2000);
	}
	check_works(&v, n);
	irq_off();
	virtio_reset(&v);
	print("BLK malformed %u\n", n);
}

/* A descriptor and an available entry that may be almost right. Chains point into two pages of their own. */
static void put_garbage(struct virtq *q, unsigned i)
{
	uint64_t r = random_next();
	uint64_t addr = r & 1   ? (uint64_t)bad_data + (r >> 8 & 0x7ff)
			: r & 2 ? random_next()
				: (uint64_t)bad_data + PAGE;
	uint32_t len = r & 4 ? (uint32_t)(r >> 40 & 0x3ff) : r & 8 ? (uint32_t)random_next() : 16;

	q->desc[i] = (struct virtq_desc){addr, len, (uint16_t)(r >> 16 & 7),
					 (uint16_t)(random_next() % (VIRTIO_QUEUE_MAX + (r & 16 ? 1u : 0u)))};
	q->avail[2 + i] = (uint16_t)(random_next() % (VIRTIO_QUEUE_MAX + (r & 32 ? 1u : 0u)));
}

/* Garbage in rings, descriptors and registers, from a seed; in between, the disk must work. */
void test_blk_fuzz(void)
{
	static struct virtio v;
	uint64_t rounds = option_number("rounds", 100);
	unsigned resets = 0;

	bad_data = alloc(2 * PAGE, PAGE);
	for (uint64_t round = 0; round < rounds; round++) {
		check_works(&v, (unsigned)round);
		struct virtq *q = &v.queue[round % v.queues];
		for (unsigned i = 0; i < q->size; i++)
			put_garbage(q, i);
		memset(bad_data + PAGE, 0, 16); /* a header: read sector 0 */
		q->avail[1] += (uint16_t)(random_next() % VIRTIO_QUEUE_MAX);
		virtq_ring(q);
		if (random_next() & 1)
			wait_us(random_next() % 500);
		for (unsigned i = random_next() % 8; i; i--)
			mmio_write16(v.common + 22 + (random_next() % 4) * 2, (uint16_t)random_next());
		resets += (virtio_status(&v) & VIRTIO_NEEDS_RESET) != 0;
	}
	check_works(&v, (unsigned)rounds);
	virtio_reset(&v);
	print("BLK fuzz %u of %lu needed a reset\n", resets, rounds);
}
