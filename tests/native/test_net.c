/*
 * A driver for virtio-net (virtio 1.2, section 5.1) and the tests of the device. A frame of the tests (net.py on the
 * other side makes the same): addresses, type, two bytes of nothing, its number, then at SUM_AT the sum of the 64-bit
 * words that fill the rest.
 */
#include "tests.h"

#define HEADER     12u
#define BUFFERS    32u
#define BUFFER     2048u
#define FRAME_TYPE 0xb588 /* 0x88b5 as it lies in memory */
#define SEQ_AT     16u
#define SUM_AT     24u
#define DATA_AT    32u
#define FRAME_MAX  10000u
enum { NET_F_MAC = 5, NET_F_MRG = 15, NET_F_STATUS = 16, NET_F_CTRL = 17, NET_F_ANNOUNCE = 21, NET_F_MQ = 22 };
#define NET_WANTED                                                                                                     \
	(1ull << NET_F_MAC | 1ull << NET_F_MRG | 1ull << NET_F_STATUS | 1ull << NET_F_CTRL | 1ull << NET_F_ANNOUNCE |  \
	 1ull << NET_F_MQ | 1ull << VIRTIO_F_INDIRECT | 1ull << VIRTIO_F_EVENT_IDX)

struct buffer {
	uint8_t bytes[BUFFER];
	struct buffer *next; /* of the same frame */
	uint32_t used;
};

static struct buffer *buffers;

static void offer(struct virtio *v, struct buffer *b)
{
	struct segment seg = {b->bytes, BUFFER, true};

	b->next = NULL;
	CHECK(virtq_add(&v->queue[0], &seg, 1, b, false), "the receive queue is full");
}

static void net_setup(struct virtio *v, bool use_msix)
{
	if (!v->common)
		CHECK(virtio_find(v, 1, (unsigned)option_number("net", 0)), "no network device");
	virtio_setup(v, NET_WANTED, VIRTIO_QUEUES, use_msix, lapic_id());
	if (!buffers)
		buffers = alloc(BUFFERS * sizeof(*buffers), PAGE);
	for (unsigned i = 0; i < BUFFERS; i++)
		offer(v, &buffers[i]);
	virtq_kick(&v->queue[0]);
}

/* The next whole frame: its first buffer, or NULL. */
static struct buffer *receive(struct virtio *v)
{
	uint32_t used;
	struct buffer *first = virtq_get(&v->queue[0], &used), *last = first;

	if (!first)
		return NULL;
	first->used = used;
	uint16_t count = *(uint16_t *)(first->bytes + 10);
	CHECK(used >= HEADER && used <= BUFFER && count >= 1 && count <= BUFFERS, "%u bytes in %u buffers", used,
	      count);
	for (unsigned i = 1; i < count; i++) {
		struct buffer *b = virtq_wait(&v->queue[0], &used, 1000000);
		CHECK(b && used > 0 && used <= BUFFER, "buffer %u of %u does not come", i, count);
		b->used = used;
		last = last->next = b;
	}
	return first;
}

/* The frame as one piece. */
static const uint8_t *whole(const struct buffer *b, uint32_t *len)
{
	static uint8_t *space;

	*len = b->used - HEADER;
	if (!b->next)
		return b->bytes + HEADER;
	if (!space)
		space = alloc(BUFFERS * BUFFER, PAGE);
	memcpy(space, b->bytes + HEADER, *len);
	for (b = b->next; b; b = b->next) {
		memcpy(space + *len, b->bytes, b->used);
		*len += b->used;
	}
	return space;
}

static uint64_t check_frame(const uint8_t *frame, uint32_t len)
{
	const uint64_t *word = (const uint64_t *)(frame + DATA_AT);
	uint64_t sum = 0;

	CHECK(len >= DATA_AT && len <= FRAME_MAX && len % 8 == 0, "a frame of %u bytes", len);
	for (uint32_t i = 0; i < (len - DATA_AT) / 8; i++)
		sum += word[i];
	CHECK(sum == *(const uint64_t *)(frame + SUM_AT), "frame %lu is not what was sent",
	      *(const uint64_t *)(frame + SEQ_AT));
	return *(const uint64_t *)(frame + SEQ_AT);
}

/* Back to where it came from, out of the very buffers. */
static void send_back(struct virtio *v, struct buffer *first)
{
	struct segment segs[16];
	unsigned n = 0;
	uint8_t mac[6], *frame = first->bytes + HEADER;

	memset(first->bytes, 0, HEADER);
	memcpy(mac, frame, 6);
	memcpy(frame, frame + 6, 6);
	memcpy(frame + 6, mac, 6);
	for (struct buffer *b = first; b; b = b->next)
		segs[n++] = (struct segment){b->bytes, b->used, false};
	CHECK(virtq_add(&v->queue[1], segs, n, first, n > 1 && virtio_has(v, VIRTIO_F_INDIRECT)),
	      "the transmit queue is full");
	virtq_kick(&v->queue[1]);
}

static void take_back(struct virtio *v)
{
	struct buffer *b;

	while ((b = virtq_get(&v->queue[1], NULL))) {
		while (b) {
			struct buffer *next = b->next;
			offer(v, b);
			b = next;
		}
		virtq_kick(&v->queue[0]);
	}
}

static void acknowledge(struct virtio *v)
{
	static struct {
		uint8_t class, command;
		volatile uint8_t ack;
	} command;
	struct virtq *q = &v->queue[v->queues - 1];
	struct segment segs[2] = {{&command, 2, false}, {(void *)(uintptr_t)&command.ack, 1, true}};

	command.class = 3; /* ANNOUNCE */
	command.command = 0;
	command.ack = 0xff;
	CHECK(virtq_add(q, segs, 2, &command, false), "the control queue is full");
	virtq_kick(q);
	CHECK(virtq_wait(q, NULL, 10000000) && command.ack == 0, "the announcement is not taken: %u", command.ack);
	print("NET announced\n");
}

/* Says what the configuration says when the device told of a change. */
static void look_at_config(struct virtio *v, uint32_t *seen)
{
	uint32_t now = interrupts[VECTOR_MSI + v->queues];

	if (now == *seen)
		return;
	*seen = now;
	uint16_t status = mmio_read16(v->config + 6);
	print("NET link %u\n", status & 1);
	if (status & 2)
		acknowledge(v);
}

/* Sends every frame back, until a character comes over the serial port. Options: every=N, how often it reports. */
void test_net_echo(void)
{
	static struct virtio v;
	uint64_t every = option_number("every", 50), n = 0, next = 0, lost = 0;
	uint32_t seen;

	irq_on();
	net_setup(&v, true);
	seen = interrupts[VECTOR_MSI + v.queues];
	print("NET ready queues %u features %lx mac", v.queues, v.features);
	for (unsigned i = 0; i < 6; i++)
		print(":%02x", mmio_read8(v.config + i));
	print("\n");
	while (serial_get() < 0) {
		struct buffer *b = receive(&v);
		look_at_config(&v, &seen);
		take_back(&v);
		if (!b)
			continue;
		uint32_t len;
		const uint8_t *frame = whole(b, &len);
		if (*(const uint16_t *)(frame + 12) != FRAME_TYPE) {
			while (b) {
				struct buffer *after = b->next;
				offer(&v, b);
				b = after;
			}
			continue;
		}
		uint64_t seq = check_frame(frame, len);
		CHECK(seq >= next, "frame %lu comes behind %lu", seq, next);
		lost += seq - next;
		next = seq + 1;
		send_back(&v, b);
		if (++n % every == 0)
			print("NET %lu\n", n);
	}
	irq_off();
	CHECK(interrupts[VECTOR_MSI] > 0 && interrupts[VECTOR_MSI + 1] > 0, "a queue never interrupted");
	print("NET echoed %lu lost %lu\n", n, lost);
	virtio_reset(&v);
}

/* --- malformed chains --- */

static bool spoil(struct virtq *q, unsigned n, uint16_t *head, uint16_t *by)
{
	struct virtq_desc *d = q->desc;

	switch (n) {
	case 0:
		*head = q->size;
		break;
	case 1:
		d[0].addr = 1ull << 45;
		break;
	case 2:
		d[0].addr = ram_low_end - 5;
		break;
	case 3:
		d[0].len = 0;
		break;
	case 4: /* a loop */
		d[0].flags |= VIRTIO_DESC_NEXT;
		d[0].next = 0;
		break;
	case 5:
		*by = (uint16_t)(q->size + 1);
		break;
	case 6:
		d[0] = (struct virtq_desc){1ull << 40, 32, VIRTIO_DESC_INDIRECT, 0};
		break;
	case 7: /* one to read behind one to write */
		d[0].flags = VIRTIO_DESC_WRITE | VIRTIO_DESC_NEXT;
		d[0].next = 1;
		d[1] = (struct virtq_desc){d[0].addr, 16, 0, 0};
		break;
	default:
		return false;
	}
	return true;
}

/* The other side sends frames all the while: the device meets each way of spoiling on each of its queues. */
void test_net_malformed(void)
{
	static struct virtio v;
	unsigned cases = 0;

	irq_on();
	for (unsigned n = 0;; n++) {
		uint16_t head = 0, by = 1;
		bool good = true;
		for (unsigned which = 0; which < 3; which++, cases++) {
			net_setup(&v, true);
			struct virtq *q = &v.queue[which == 2 ? v.queues - 1 : which];
			/* The receive queue is set up anew with nothing in it but what is spoiled. */
			if (which == 0)
				virtio_setup(&v, NET_WANTED, VIRTIO_QUEUES, true, lapic_id());
			q->desc[0] = (struct virtq_desc){(uint64_t)buffers[0].bytes, 60,
							 which == 0 ? VIRTIO_DESC_WRITE : 0, 0};
			head = 0;
			by = 1;
			good = spoil(q, n, &head, &by);
			if (!good)
				break;
			q->avail[2 + q->avail[1] % q->size] = head;
			barrier();
			q->avail[1] += by;
			virtq_ring(q);
			CHECK(WAIT_FOR(10000000, virtio_status(&v) & VIRTIO_NEEDS_RESET),
			      "case %u of queue %u went unnoticed", n, which);
		}
		if (!good)
			break;
	}
	/* And it works. */
	net_setup(&v, true);
	struct buffer *b = NULL;
	CHECK(WAIT_FOR(10000000, (b = receive(&v))), "nothing is received any more");
	print("NET survived %u\n", cases);
	virtio_reset(&v);
	irq_off();
}
