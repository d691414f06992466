/*
 * A driver for virtio-vsock (virtio 1.2, section 5.10), and a guest that talks: as a client of port 1024 of the host,
 * which echoes, and as an echoing server on its own port 52.
 */
#include "tests.h"

#define HOST      2
#define HEADER    44u
#define RX_COUNT  16u
#define RX_DATA   4096u
#define PACKET    (RX_DATA + 64)
#define CHUNK     4096u
#define WINDOW    8192u /* how much may be under way to us: little, so that the host runs into it */
#define CONNS_MAX 256u
#define PATTERN   16384u

enum { INVALID, REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

struct [[gnu::packed]] header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
};
static_assert(sizeof(struct header) == HEADER);

struct conn {
	bool open;
	uint32_t port, host_port;
	uint32_t sent, peer_buffer, peer_forwarded;
	uint32_t got, told;
};

static struct virtio v;
static uint64_t cid;
static uint8_t *tx, *pattern;
static uint32_t event_buffer;
static struct conn conns[CONNS_MAX];
static unsigned packets_in, resets_in;
static uint32_t first_port = 1000; /* of ours; others after a reset, for answers to the old ones may be on their way */

static void post(uint8_t *packet)
{
	const struct segment seg = {packet, HEADER + RX_DATA, true};

	CHECK(virtq_add(&v.queue[0], &seg, 1, packet, false), "the receive queue is full");
	virtq_kick(&v.queue[0]);
}

static void post_event(void)
{
	CHECK(virtq_add(&v.queue[2], &(struct segment){&event_buffer, 4, true}, 1, &event_buffer, false),
	      "event queue");
	virtq_kick(&v.queue[2]);
}

static void vsock_open(void)
{
	memset(&v, 0, sizeof(v));
	CHECK(virtio_find(&v, 19, 0), "no vsock device");
	virtio_setup(&v, 1ull << VIRTIO_F_EVENT_IDX, 3, false, 0);
	CHECK(v.queues == 3, "%u queues", v.queues);
	cid = mmio_read64(v.config);
	CHECK(cid == option_number("cid", 3), "CID %lu", cid);
	tx = alloc(PACKET, PAGE);
	for (unsigned i = 0; i < RX_COUNT; i++)
		post(alloc(PACKET, 64));
	post_event();
	pattern = alloc(2 * PATTERN, PAGE);
	for (uint32_t i = 0; i < PATTERN; i += 8)
		*(uint64_t *)(pattern + i) = random_next();
	memcpy(pattern + PATTERN, pattern, PATTERN);
}

/* What stream @port holds from @offset on, up to PATTERN bytes. */
static const uint8_t *stream(uint32_t port, uint32_t offset)
{
	return pattern + (offset + port * 977) % PATTERN;
}

/* Sends what lies in tx, in two buffers, and waits until it was taken. */
static void send_tx(uint32_t len)
{
	const struct segment segs[] = {{tx, HEADER, false}, {tx + HEADER, len, false}};
	uint32_t written;

	CHECK(virtq_add(&v.queue[1], segs, len ? 2 : 1, tx, false), "the transmit queue is full");
	virtq_kick(&v.queue[1]);
	CHECK(virtq_wait(&v.queue[1], &written, 20000000) == tx, "a packet is never taken");
}

static void send_op(struct conn *c, unsigned op, uint32_t flags, const void *data, uint32_t len)
{
	struct header *h = (struct header *)tx;

	*h = (struct header){cid, HOST, c->port, c->host_port, len, 1, (uint16_t)op, flags, WINDOW, c->got};
	if (len)
		memcpy(tx + HEADER, data, len);
	c->sent += len;
	c->told = c->got;
	send_tx(len);
}

static struct conn *find(uint32_t port, uint32_t host_port)
{
	for (unsigned i = 0; i < CONNS_MAX; i++)
		if (conns[i].port == port && conns[i].host_port == host_port)
			return &conns[i];
	return NULL;
}

static uint32_t room(const struct conn *c)
{
	return c->peer_buffer - (c->sent - c->peer_forwarded);
}

static void serve_data(struct conn *c, const uint8_t *data, uint32_t len);

/* Takes one packet if there is one. Returns its op, or 0; *@conn: whose it is. */
static unsigned receive(struct conn **conn)
{
	uint32_t written;
	uint8_t *packet = virtq_get(&v.queue[0], &written);

	if (!packet)
		return 0;
	const struct header *h = (const struct header *)packet;
	CHECK(written == HEADER + h->len, "%u bytes written, the header says %u", written, h->len);
	CHECK(h->src_cid == HOST && h->dst_cid == cid, "a packet from %lu to %lu", h->src_cid, h->dst_cid);
	packets_in++;
	unsigned op = h->op;
	struct conn *c = find(h->dst_port, h->src_port);
	if (op == REQUEST) {
		c = find(0, 0);
		CHECK(c && h->dst_port == 52, "a request to port %u", h->dst_port);
		*c = (struct conn){.open = true, .port = 52, .host_port = h->src_port};
	}
	if (c && op != RST) {
		c->peer_buffer = h->buf_alloc;
		c->peer_forwarded = h->fwd_cnt;
		CHECK(room(c) <= h->buf_alloc, "credit of %u", room(c));
	}
	if (op == RESPONSE && c)
		c->open = true;
	if (op == RW && c)
		serve_data(c, packet + HEADER, h->len);
	post(packet);
	*conn = c;
	return op;
}

static void serve_data(struct conn *c, const uint8_t *data, uint32_t len)
{
	if (c->port != 52) {
		CHECK(memcmp(data, stream(c->port, c->got), len) == 0, "port %u: wrong bytes at %u", c->port, c->got);
		c->got += len;
		CHECK(c->got - c->told <= WINDOW, "more came than there was credit for");
		if (c->got - c->told >= WINDOW / 2)
			send_op(c, CREDIT_UPDATE, 0, NULL, 0);
		return;
	}
	static uint8_t copy[RX_DATA];
	memcpy(copy, data, len);
	c->got += len;
	/* The server echoes at once: its client reads. */
	struct conn *other;
	while (room(c) < len)
		receive(&other);
	send_op(c, RW, 0, copy, len);
}

/* True when the machine moved, so that what was under way is void and nothing will answer it. */
static bool transport_reset(void)
{
	if (!virtq_get(&v.queue[2], NULL))
		return false;
	CHECK(event_buffer == 0, "event %u", event_buffer);
	post_event();
	return true;
}

/* Waits for a packet of @c. Its op, or 0 when the transport was reset meanwhile. */
static unsigned answer(struct conn *c, const char *to)
{
	struct conn *of = NULL;
	unsigned op = 0;
	bool reset = false;

	CHECK(WAIT_FOR(20000000, ((op = receive(&of)) != 0 && of == c) || (reset = transport_reset())),
	      "no answer to a %s", to);
	return reset ? 0 : op;
}

/* False when the transport was reset meanwhile. */
static bool open_conn(unsigned i)
{
	struct conn *c = &conns[i];

	*c = (struct conn){.port = first_port + i, .host_port = 1024};
	send_op(c, REQUEST, 0, NULL, 0);
	unsigned op = answer(c, "request");
	CHECK(op == RESPONSE || op == 0, "the answer to a request is %u", op);
	return op == RESPONSE;
}

/* Sends and receives @bytes on each of @count connections, in turn. False when the transport was reset meanwhile. */
static bool exchange(unsigned count, uint32_t bytes)
{
	struct deadline patience = deadline_in(60000000);

	for (unsigned done = 0; done < count;) {
		struct conn *of;
		done = 0;
		for (unsigned i = 0; i < count; i++) {
			struct conn *c = &conns[i];
			uint32_t n = bytes - c->sent < CHUNK ? bytes - c->sent : CHUNK;
			if (n && room(c) >= n)
				send_op(c, RW, 0, stream(c->port, c->sent), n);
			done += c->got == bytes;
		}
		/* A reset: the machine moved, and the event that says so is on its way. */
		unsigned op = 0;
		while (op != RST && (op = receive(&of))) {
			if (!of) {
				op = 0;
				continue;
			}
			CHECK(op == RW || op == CREDIT_UPDATE || op == RST, "op %u", op);
		}
		bool event = op == RST ? WAIT_FOR(20000000, transport_reset()) : transport_reset();
		CHECK(op != RST || event, "a connection is reset out of the blue");
		if (event)
			return false;
		CHECK(!deadline_over(&patience), "%u of %u streams came back", done, count);
	}
	return true;
}

/* False when the transport was reset meanwhile. */
static bool close_conns(unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		send_op(&conns[i], SHUTDOWN, 3, NULL, 0);
		unsigned op = answer(&conns[i], "close");
		CHECK(op == RST || op == 0, "port %u: a close is answered by %u", conns[i].port, op);
		if (op == 0)
			return false;
		conns[i] = (struct conn){0};
	}
	return true;
}

/* Options: conns, kib a connection. */
void test_vsock_echo(void)
{
	unsigned count = (unsigned)option_number("conns", 1);
	uint32_t bytes = (uint32_t)option_number("kib", 64) << 10;

	vsock_open();
	for (unsigned i = 0; i < count; i++)
		CHECK(open_conn(i), "a transport reset");
	CHECK(exchange(count, bytes), "a transport reset out of the blue");
	CHECK(close_conns(count), "a transport reset");
	print("VSOCK %u streams of %u bytes\n", count, bytes);
	virtio_reset(&v);
}

/* Nobody listens there. */
void test_vsock_refused(void)
{
	struct conn *of = NULL;
	unsigned op = 0;

	vsock_open();
	conns[0] = (struct conn){.port = 1000, .host_port = 1025};
	send_op(&conns[0], REQUEST, 0, NULL, 0);
	CHECK(WAIT_FOR(20000000, (op = receive(&of)) != 0) && op == RST, "the answer is %u", op);
	virtio_reset(&v);
}

/* Serves port 52 until a key comes in on the serial port. */
void test_vsock_serve(void)
{
	unsigned served = 0;

	vsock_open();
	print("VSOCK ready\n");
	while (serial_get() < 0) {
		struct conn *of = NULL;
		unsigned op = receive(&of);
		if (op == REQUEST) {
			send_op(of, RESPONSE, 0, NULL, 0);
		} else if (op == SHUTDOWN && of) {
			send_op(of, RST, 0, NULL, 0);
			*of = (struct conn){0};
			served++;
		}
	}
	print("VSOCK served %u\n", served);
	virtio_reset(&v);
}

/* Echoes for ever, over machines that come and go, until a key comes in; says how often. */
void test_vsock_load(void)
{
	unsigned rounds = 0;

	vsock_open();
	while (serial_get() < 0) {
		if (open_conn(0) && exchange(1, 64u << 10) && close_conns(1)) {
			print("VSOCK round %u\n", ++rounds);
		} else {
			conns[0] = (struct conn){0};
			first_port += CONNS_MAX;
			print("VSOCK transport reset %u\n", ++resets_in);
		}
	}
	virtio_reset(&v);
}

/* Packets of all kinds; then the device must still be good for a decent talk. */
void test_vsock_garbage(void)
{
	struct conn *of;

	vsock_open();
	for (unsigned n = 0; n < option_number("packets", 300); n++) {
		struct header *h = (struct header *)tx;
		uint64_t r = random_next();
		*h = (struct header){r % 5 ? cid : r,
				     (r >> 8) % 5 ? HOST : r,
				     (uint32_t)(r >> 16) % 4,
				     1024 + (uint32_t)(r >> 20) % 2,
				     (r >> 24) % 8 ? (uint32_t)(r >> 28) % 64 : (uint32_t)r,
				     (r >> 32) % 6 ? 1 : (uint16_t)r,
				     (uint16_t)((r >> 36) % 9),
				     (uint32_t)(r >> 40),
				     (uint32_t)(r >> 44),
				     (uint32_t)(r >> 48)};
		send_tx((uint32_t)(r >> 50) % 64);
		while (receive(&of))
			;
	}
	CHECK(!(virtio_status(&v) & VIRTIO_NEEDS_RESET), "a bad packet broke the device");
	wait_us(100000);
	while (receive(&of))
		;
	print("VSOCK garbage answered by %u\n", packets_in);
	memset(conns, 0, sizeof(conns));
	CHECK(open_conn(10), "a transport reset");
	conns[0] = conns[10];
	CHECK(exchange(1, 32u << 10), "a transport reset");
	/* A packet that is shorter than its header is no packet: the device needs a reset, and is good again after it.
	 */
	CHECK(virtq_add(&v.queue[1], &(struct segment){tx, 20, false}, 1, tx, false), "full");
	virtq_kick(&v.queue[1]);
	CHECK(WAIT_FOR(5000000, virtio_status(&v) & VIRTIO_NEEDS_RESET), "a short packet does not break the queue");
	memset(conns, 0, sizeof(conns));
	vsock_open();
	CHECK(open_conn(0), "a transport reset");
	CHECK(exchange(1, 32u << 10), "a transport reset");
	virtio_reset(&v);
}
