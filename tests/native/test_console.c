/* A driver for virtio-console with ports (virtio 1.2, section 5.3), and tests that talk over one. */
#include "tests.h"

#define MULTIPORT 1
#define CONTROL   8u
#define BUFFER    4096u
#define RX_COUNT  8u
#define STREAM    16384u

enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };

struct [[gnu::packed]] control {
	uint32_t id;
	uint16_t event, value;
};

static struct virtio v;
static uint8_t *tx;
static bool host_open;
static char name[64];

static struct virtq *rx(unsigned port)
{
	return &v.queue[port ? 2 + 2 * port : 0];
}

static struct virtq *txq(unsigned port)
{
	return rx(port) + 1;
}

static void give(struct virtq *q, uint8_t *buffer)
{
	CHECK(virtq_add(q, &(struct segment){buffer, BUFFER, true}, 1, buffer, false), "queue %u is full", q->index);
	virtq_kick(q);
}

static void send_on(struct virtq *q, const void *data, uint32_t len)
{
	uint32_t written;

	memcpy(tx, data, len);
	CHECK(virtq_add(q, &(struct segment){tx, len, false}, 1, tx, false), "queue %u is full", q->index);
	virtq_kick(q);
	CHECK(virtq_wait(q, &written, 30000000) == tx, "queue %u: bytes are never taken", q->index);
}

static void control(uint32_t id, uint16_t event, uint16_t value)
{
	const struct control m = {id, event, value};

	send_on(&v.queue[3], &m, sizeof(m));
}

void console_listen(void)
{
	uint32_t written;
	uint8_t *buffer;

	while ((buffer = virtq_get(&v.queue[2], &written))) {
		struct control m;
		memcpy(&m, buffer, sizeof(m));
		if (m.id == 1 && m.event == PORT_ADD)
			control(1, PORT_READY, 1);
		if (m.id == 1 && m.event == PORT_OPEN) {
			host_open = m.value;
			print("CONSOLE host %s\n", host_open ? "open" : "closed");
		}
		if (m.id == 1 && m.event == PORT_NAME) {
			memcpy(name, buffer + sizeof(m), written - sizeof(m));
			print("CONSOLE name %s\n", name);
		}
		give(&v.queue[2], buffer);
	}
}

void console_open(void)
{
	memset(&v, 0, sizeof(v));
	CHECK(virtio_find(&v, 3, 0), "no console device");
	virtio_setup(&v, 1ull << MULTIPORT | 1ull << VIRTIO_F_EVENT_IDX, VIRTIO_QUEUES, false, 0);
	tx = alloc(STREAM, PAGE);
	for (unsigned i = 0; i < RX_COUNT; i++) {
		give(&v.queue[2], alloc(BUFFER, PAGE));
		give(rx(1), alloc(BUFFER, PAGE));
	}
	control(~0u, DEVICE_READY, 1);
	CHECK(WAIT_FOR(10000000, (console_listen(), name[0])), "port 1 has no name");
	control(1, PORT_OPEN, 1);
}

uint8_t *console_get(uint32_t *len)
{
	return virtq_get(rx(1), len);
}

void console_give_back(uint8_t *buffer)
{
	give(rx(1), buffer);
}

bool console_send(const void *data, uint32_t len)
{
	uint32_t written;

	memcpy(tx, data, len);
	CHECK(virtq_add(txq(1), &(struct segment){tx, len, false}, 1, tx, false), "queue %u is full", txq(1)->index);
	virtq_kick(txq(1));
	while (!virtq_get(txq(1), &written)) {
		if (serial_get() >= 0)
			return false;
		relax();
	}
	return true;
}

void console_close(void)
{
	virtio_reset(&v);
}

/* Echoes what comes on port 1 until a key comes in on the serial port; over moves too. */
void test_console_echo(void)
{
	uint32_t written, total = 0;
	uint8_t *buffer;

	console_open();
	print("CONSOLE ready\n");
	while (serial_get() < 0) {
		console_listen();
		if (!(buffer = virtq_get(rx(1), &written)))
			continue;
		send_on(txq(1), buffer, written);
		total += written;
		give(rx(1), buffer);
	}
	print("CONSOLE echoed %u\n", total);
	virtio_reset(&v);
}

/* Numbers without end on port 1, as fast as they are taken: the host sees whether one is missing. */
void test_console_load(void)
{
	uint32_t *block = alloc(BUFFER, PAGE), n = 0;

	console_open();
	print("CONSOLE ready\n");
	while (serial_get() < 0) {
		console_listen();
		for (unsigned i = 0; i < 256; i++)
			block[i] = n++;
		send_on(txq(1), block, 1024);
		if (n % 16384 == 0)
			print("CONSOLE sent %u\n", n);
	}
	virtio_reset(&v);
}
