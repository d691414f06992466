/*
 * Tests of virtio-vsock: a guest's driver on rings in plain memory on one side, real UNIX sockets on the other, and the
 * real connector process between them.
 */
#include "vmm/vsock/internal.h"

#include "vmm/virtio/test_driver.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

#define CID      7
#define RX_BYTES 4096u
#define RX_COUNT 32u
#define TX_DATA  (TEST_DATA + 4 * MIB)

struct packet {
	struct virtio_vsock_hdr hdr;
	uint8_t data[RX_BYTES];
};

struct fixture {
	char dir[32];
	int dir_fd;
	struct test_machine machine;
	struct vsock *vsock;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring rx, tx, events;
};

static struct fixture f;

/* --- sockets of the host --- */

static struct sockaddr_un address(const char *name)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", f.dir, name);
	return addr;
}

static int host_listen(const char *name)
{
	struct sockaddr_un addr = address(name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert(fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 2000) == 0);
	return fd;
}

static int host_connect(void)
{
	struct sockaddr_un addr = address("v");
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert(fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return fd;
}

static int host_accept(int fd)
{
	int client = -1;

	assert(test_until((client = accept4(fd, NULL, NULL, SOCK_CLOEXEC)) >= 0));
	return client;
}

static void host_read(int fd, void *buf, size_t len)
{
	test_no_error(read_all(fd, buf, len, "the host's socket"));
}

/* --- the guest --- */

static void post_rx(void)
{
	while (f.rx.free_count > VIRTQUEUE_SIZE_MAX - RX_COUNT || f.rx.free_count > f.rx.size - RX_COUNT) {
		unsigned at = f.rx.free[f.rx.free_count - 1];
		test_ring_add(&f.rx, &(struct test_buffer){TEST_DATA + at * 8192ull, sizeof(struct packet), true}, 1,
			      false);
	}
	test_ring_send(&f.rx);
}

static void start_driver(void)
{
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.rx, &f.driver, 0, 64);
	test_ring_init(&f.tx, &f.driver, 1, 128);
	test_ring_init(&f.events, &f.driver, 2, 8);
	test_driver_ok(&f.driver);
	post_rx();
	test_ring_add(&f.events, &(struct test_buffer){TEST_DATA - 64, 4, true}, 1, false);
	test_ring_send(&f.events);
}

static void guest_take(struct packet *p)
{
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.rx, &head, &len);
	assert(len >= sizeof(p->hdr) && len <= sizeof(*p));
	memcpy(p, test_at(&f.machine, f.rx.desc[head].addr), len);
	assert_int_equal(len, sizeof(p->hdr) + p->hdr.len);
	assert_int_equal(p->hdr.src_cid, HOST_CID);
	assert_int_equal(p->hdr.dst_cid, CID);
	post_rx();
}

/* The next packet, which must be this. */
static void guest_expect(unsigned op, uint32_t host_port, uint32_t guest_port, struct packet *p)
{
	struct packet mine;

	p = p ? p : &mine;
	guest_take(p);
	assert_int_equal(p->hdr.op, op);
	assert_int_equal(p->hdr.type, VIRTIO_VSOCK_TYPE_STREAM);
	if (host_port)
		assert_int_equal(p->hdr.src_port, host_port);
	assert_int_equal(p->hdr.dst_port, guest_port);
}

static bool guest_has_packet(void)
{
	return __atomic_load_n(&f.rx.used->idx, __ATOMIC_ACQUIRE) != f.rx.used_seen;
}

/* Sends @hdr and @len bytes, in @pieces buffers behind the header's, and waits until the device took them. */
static void guest_send_raw(const struct virtio_vsock_hdr *hdr, const void *data, uint32_t len, bool split)
{
	struct test_buffer b[3] = {{TX_DATA, sizeof(*hdr), false}};
	unsigned n = 1;
	uint16_t head;
	uint32_t used;

	memcpy(test_at(&f.machine, TX_DATA), hdr, sizeof(*hdr));
	if (len)
		memcpy(test_at(&f.machine, TX_DATA + 64), data, len);
	if (len && split)
		b[n++] = (struct test_buffer){TX_DATA + 64, len / 2 + 1, false};
	if (len && split && len > len / 2 + 1)
		b[n++] = (struct test_buffer){TX_DATA + 64 + len / 2 + 1, len - len / 2 - 1, false};
	if (len && !split)
		b[n++] = (struct test_buffer){TX_DATA + 64, len, false};
	test_ring_add(&f.tx, b, n, false);
	test_ring_send(&f.tx);
	test_ring_wait(&f.tx, &head, &used);
	assert_int_equal(used, 0);
}

static struct virtio_vsock_hdr header(unsigned op, uint32_t guest_port, uint32_t host_port)
{
	return (struct virtio_vsock_hdr){.src_cid = CID,
					 .dst_cid = HOST_CID,
					 .src_port = guest_port,
					 .dst_port = host_port,
					 .type = VIRTIO_VSOCK_TYPE_STREAM,
					 .op = (uint16_t)op,
					 .buf_alloc = 256 * KIB};
}

static void guest_send(unsigned op, uint32_t guest_port, uint32_t host_port, const void *data, uint32_t len)
{
	struct virtio_vsock_hdr hdr = header(op, guest_port, host_port);

	hdr.len = len;
	guest_send_raw(&hdr, data, len, len > 1);
}

static void guest_shutdown(uint32_t guest_port, uint32_t host_port, uint32_t flags)
{
	struct virtio_vsock_hdr hdr = header(VIRTIO_VSOCK_OP_SHUTDOWN, guest_port, host_port);

	hdr.flags = flags;
	guest_send_raw(&hdr, NULL, 0, false);
}

/* Connects guest port @guest_port to the listener @fd of port @host_port. Returns the host's end. */
static int guest_connect(int fd, uint32_t guest_port, uint32_t host_port)
{
	struct packet p;

	guest_send(VIRTIO_VSOCK_OP_REQUEST, guest_port, host_port, NULL, 0);
	guest_expect(VIRTIO_VSOCK_OP_RESPONSE, host_port, guest_port, &p);
	assert_int_equal(p.hdr.buf_alloc, VSOCK_BUFFER_BYTES);
	assert_int_equal(p.hdr.fwd_cnt, 0);
	return host_accept(fd);
}

/* --- set-up --- */

static void make_device(const struct memory *memory)
{
	struct vsock_config config = {.cid = CID, .name = "test", .listen_fd = host_listen("v")};

	/* As the monitor does: before there are threads. */
	test_no_error(vsock_connector_start(f.dir_fd, "v", false, &config.connector_fd));
	test_machine_init(&f.machine, memory);
	config.thread = f.machine.threads[0];
	test_no_error(vsock_new(&f.vsock, &f.machine.memory, &config));
	test_no_error(virtio_pci_new(&f.vp, vsock_device(f.vsock), &f.machine.pci, TEST_SLOT));
}

static void free_device(bool keep_memory)
{
	virtio_pci_free(f.vp);
	vsock_free(f.vsock);
	test_machine_destroy(&f.machine, keep_memory);
	assert(unlinkat(f.dir_fd, "v", 0) == 0);
}

static int setup(void **state)
{
	(void)state;
	memset(&f, 0, sizeof(f));
	strcpy(f.dir, "/tmp/vsock-XXXXXX");
	assert(mkdtemp(f.dir));
	f.dir_fd = open(f.dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	make_device(NULL);
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	start_driver();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free_device(false);
	(void)unlinkat(f.dir_fd, "v_80", 0);
	close(f.dir_fd);
	assert(rmdir(f.dir) == 0);
	return 0;
}

static void fill_random(uint8_t *p, size_t len)
{
	uint32_t x = 0x2545f491;

	for (size_t i = 0; i < len; i++) {
		x = x * 1664525u + 1013904223u;
		p[i] = (uint8_t)(x >> 24);
	}
}

/* --- tests --- */

static void test_identity(void **state)
{
	(void)state;
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10531af4);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE, 4), CID);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 4, 4), 0);
}

/* A guest connects, both talk, the host leaves. */
static void test_guest_connects(void **state)
{
	int fd = host_listen("v_80");
	char buf[64];
	struct packet p;

	(void)state;
	int host = guest_connect(fd, 1000, 80);
	guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, "hello, host", 11);
	host_read(host, buf, 11);
	assert_memory_equal(buf, "hello, host", 11);
	assert_int_equal(write(host, "hello, guest", 12), 12);
	guest_expect(VIRTIO_VSOCK_OP_RW, 80, 1000, &p);
	assert_int_equal(p.hdr.len, 12);
	assert_int_equal(p.hdr.fwd_cnt, 11);
	assert_memory_equal(p.data, "hello, guest", 12);

	assert_int_equal(write(host, "last", 4), 4);
	close(host);
	guest_expect(VIRTIO_VSOCK_OP_RW, 80, 1000, &p);
	assert_memory_equal(p.data, "last", 4);
	do
		guest_take(&p);
	while (p.hdr.op == VIRTIO_VSOCK_OP_SHUTDOWN && p.hdr.flags != 3);
	assert_int_equal(p.hdr.op, VIRTIO_VSOCK_OP_SHUTDOWN);
	guest_send(VIRTIO_VSOCK_OP_RST, 1000, 80, NULL, 0);
	/* It is gone: who speaks to it is told so. */
	guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, "x", 1);
	guest_expect(VIRTIO_VSOCK_OP_RST, 80, 1000, NULL);
	assert_int_equal(f.vsock->used, 0);
	close(fd);
}

static void test_nobody_listens(void **state)
{
	(void)state;
	guest_send(VIRTIO_VSOCK_OP_REQUEST, 1000, 81, NULL, 0);
	guest_expect(VIRTIO_VSOCK_OP_RST, 81, 1000, NULL);
	assert_int_equal(f.vsock->used, 0);
}

static int greet(const char *words, struct packet *p)
{
	int host = host_connect();

	assert(write(host, words, strlen(words)) == (ssize_t)strlen(words));
	guest_expect(VIRTIO_VSOCK_OP_REQUEST, 0, 52, p);
	assert_true(p->hdr.src_port > 1u << 30);
	return host;
}

static void test_host_connects(void **state)
{
	struct packet p;
	char line[64] = {0}, expected[64];

	(void)state;
	/* What comes behind the line already is the guest's. */
	int host = greet("CONNECT 52\nearly", &p);
	uint32_t port = p.hdr.src_port;
	guest_send(VIRTIO_VSOCK_OP_RESPONSE, 52, port, NULL, 0);
	int len = snprintf(expected, sizeof(expected), "OK %u\n", port);
	host_read(host, line, (size_t)len);
	assert_string_equal(line, expected);
	guest_expect(VIRTIO_VSOCK_OP_RW, port, 52, &p);
	assert_memory_equal(p.data, "early", 5);

	/* A second one to the same port has another port of its own. */
	int second = greet("CONNECT 52\r\n", &p);
	assert_int_not_equal(p.hdr.src_port, port);
	guest_send(VIRTIO_VSOCK_OP_RST, 52, p.hdr.src_port, NULL, 0);
	assert_int_equal(read(second, line, 1), 0);
	close(second);

	/* The guest closes: SHUTDOWN both ways; the host reads to the end; the guest is told it is over. */
	guest_send(VIRTIO_VSOCK_OP_RW, 52, port, "bye", 3);
	guest_shutdown(52, port, 3);
	guest_expect(VIRTIO_VSOCK_OP_RST, port, 52, NULL);
	host_read(host, line, 3);
	assert_memory_equal(line, "bye", 3);
	assert_int_equal(read(host, line, 1), 0);
	close(host);
	assert_int_equal(f.vsock->used, 0);
}

static void test_bad_greetings(void **state)
{
	static const char *const bad[] = {"GET / HTTP/1.1\n",
					  "CONNECT \n",
					  "CONNECT -1\n",
					  "CONNECT 4294967295\n",
					  "CONNECT 99999999999999999999999999999999999",
					  "CONNECT 5 6\n"};
	char c;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int host = host_connect();
		assert(write(host, bad[i], strlen(bad[i])) > 0);
		assert_true(read(host, &c, 1) <= 0);
		close(host);
	}
	assert_false(guest_has_packet());
	assert_true(test_until(f.vsock->used == 0));
}

/* Half of a connection ends; the other goes on. */
static void test_half_close(void **state)
{
	int fd = host_listen("v_80");
	char buf[8];
	struct packet p;

	(void)state;
	int host = guest_connect(fd, 1000, 80);
	shutdown(host, SHUT_WR);
	guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN, 80, 1000, &p);
	assert_int_equal(p.hdr.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
	guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, "more", 4);
	host_read(host, buf, 4);
	guest_shutdown(1000, 80, VIRTIO_VSOCK_SHUTDOWN_SEND);
	assert_int_equal(read(host, buf, 1), 0);
	close(host);
	close(fd);
}

/* The guest overruns the socket: its credit bounds what is kept, nothing is lost, and it learns what was taken. */
static void test_guest_credit(void **state)
{
	static uint8_t all[4 * MIB], got[4 * MIB];
	int fd = host_listen("v_80");
	uint32_t sent = 0, forwarded = 0, taken = 0, fullest = 0;
	struct packet p;

	(void)state;
	fill_random(all, sizeof(all));
	int host = guest_connect(fd, 1000, 80);
	assert(fcntl(host, F_SETFL, O_NONBLOCK) == 0);
	/* The host reads only when the guest is out of credit. */
	while (taken < sizeof(all)) {
		uint32_t room = VSOCK_BUFFER_BYTES - (sent - forwarded);
		uint32_t left = MIN((uint32_t)sizeof(all) - sent, 8000u), n = MIN(room, left);
		fullest = MAX(fullest, sent - forwarded);
		if (n) {
			guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, all + sent, n);
			sent += n;
		}
		while (guest_has_packet()) {
			guest_expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 80, 1000, &p);
			assert_true(p.hdr.fwd_cnt - forwarded <= sent - forwarded);
			forwarded = p.hdr.fwd_cnt;
		}
		ssize_t r = n ? 0 : read(host, got + taken, sizeof(got) - taken);
		taken += r > 0 ? (uint32_t)r : 0;
	}
	assert_int_equal(fullest, VSOCK_BUFFER_BYTES);
	assert_memory_equal(all, got, sizeof(all));

	/* One that sends more than that is cut off. */
	while (guest_has_packet())
		guest_take(&p);
	for (unsigned i = 0; i < 64; i++)
		guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, all, 8000);
	do
		guest_take(&p);
	while (p.hdr.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(p.hdr.op, VIRTIO_VSOCK_OP_RST);
	close(host);
	close(fd);
}

/* The host overruns the guest: never more in flight than the guest said, and nothing is lost. */
static void test_host_credit(void **state)
{
	static uint8_t all[MIB];
	int fd = host_listen("v_80");
	uint32_t taken = 0, written = 0;
	struct packet p;
	const uint32_t buffer = 10000;

	(void)state;
	fill_random(all, sizeof(all));
	int host = guest_connect(fd, 1000, 80);
	assert(fcntl(host, F_SETFL, O_NONBLOCK) == 0);
	struct virtio_vsock_hdr hdr = header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 80);
	hdr.buf_alloc = buffer;
	guest_send_raw(&hdr, NULL, 0, false);
	while (taken < sizeof(all)) {
		ssize_t n = write(host, all + written, sizeof(all) - written);
		written += n > 0 ? (uint32_t)n : 0;
		/* All that may come without more credit. */
		uint32_t before = taken, may = MIN(buffer, (uint32_t)sizeof(all) - taken);
		while (taken < before + may) {
			guest_expect(VIRTIO_VSOCK_OP_RW, 80, 1000, &p);
			assert_memory_equal(p.data, all + taken, p.hdr.len);
			taken += p.hdr.len;
			assert_true(taken <= before + may);
			n = write(host, all + written, sizeof(all) - written);
			written += n > 0 ? (uint32_t)n : 0;
		}
		usleep(1000);
		assert_false(guest_has_packet());
		hdr.fwd_cnt = taken;
		guest_send_raw(&hdr, NULL, 0, false);
	}
	close(host);
	close(fd);
}

static void test_many(void **state)
{
	int fd = host_listen("v_80");
	static int host[VSOCK_CONNECTIONS_MAX];
	uint32_t number;

	(void)state;
	for (uint32_t i = 0; i < VSOCK_CONNECTIONS_MAX; i++)
		host[i] = guest_connect(fd, 1000 + i, 80);
	assert_int_equal(f.vsock->used, VSOCK_CONNECTIONS_MAX);
	guest_send(VIRTIO_VSOCK_OP_REQUEST, 5, 80, NULL, 0);
	guest_expect(VIRTIO_VSOCK_OP_RST, 80, 5, NULL);
	for (uint32_t i = 0; i < VSOCK_CONNECTIONS_MAX; i++)
		guest_send(VIRTIO_VSOCK_OP_RW, 1000 + i, 80, &i, sizeof(i));
	for (uint32_t i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
		host_read(host[i], &number, sizeof(number));
		assert_int_equal(number, i);
	}
	/* A client of the host waits for a place, and gets the first. */
	int client = host_connect();
	assert(write(client, "CONNECT 52\n", 11) == 11);
	usleep(2000);
	assert_false(guest_has_packet());
	guest_send(VIRTIO_VSOCK_OP_RST, 1000, 80, NULL, 0);
	guest_expect(VIRTIO_VSOCK_OP_REQUEST, 0, 52, NULL);
	close(client);
	for (uint32_t i = 0; i < VSOCK_CONNECTIONS_MAX; i++)
		close(host[i]);
	close(fd);
}

/* Packets that a decent driver does not send: answered by a reset, or not at all; the device goes on. */
static void test_garbage(void **state)
{
	int fd = host_listen("v_80");
	char c;

	(void)state;
	for (unsigned op = 0; op < 12; op++) {
		if (op == VIRTIO_VSOCK_OP_REQUEST)
			continue;
		guest_send(op, 9, 80, NULL, 0); /* no such connection */
		if (op != VIRTIO_VSOCK_OP_RST)
			guest_expect(VIRTIO_VSOCK_OP_RST, 80, 9, NULL);
	}
	struct virtio_vsock_hdr hdr = header(VIRTIO_VSOCK_OP_REQUEST, 9, 80);
	hdr.type = 77;
	guest_send_raw(&hdr, NULL, 0, false);
	struct packet p;
	guest_take(&p);
	assert_int_equal(p.hdr.op, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(p.hdr.type, 77);
	hdr = header(VIRTIO_VSOCK_OP_REQUEST, 9, 80);
	hdr.src_cid = 8;
	guest_send_raw(&hdr, NULL, 0, false);
	hdr = header(VIRTIO_VSOCK_OP_REQUEST, 9, 80);
	hdr.dst_cid = 3;
	guest_send_raw(&hdr, NULL, 0, false);
	hdr = header(VIRTIO_VSOCK_OP_REQUEST, 9, 80);
	hdr.len = ~0u;
	guest_send_raw(&hdr, "abc", 3, false);
	guest_expect(VIRTIO_VSOCK_OP_RST, 80, 9, NULL);

	static const unsigned wrong[] = {0, VIRTIO_VSOCK_OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE, 8, 0xffff};
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		int host = guest_connect(fd, 1000, 80);
		guest_send(wrong[i], 1000, 80, NULL, 0);
		guest_expect(VIRTIO_VSOCK_OP_RST, 80, 1000, NULL);
		assert_int_equal(read(host, &c, 1), 0);
		close(host);
	}
	/* Credit that cannot be: nothing is sent, nothing breaks. */
	int host = guest_connect(fd, 1000, 80);
	hdr = header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 80);
	hdr.fwd_cnt = 0x80000000u;
	guest_send_raw(&hdr, NULL, 0, false);
	assert(write(host, "x", 1) == 1);
	usleep(2000);
	assert_false(guest_has_packet());
	hdr.fwd_cnt = 0;
	guest_send_raw(&hdr, NULL, 0, false);
	guest_expect(VIRTIO_VSOCK_OP_RW, 80, 1000, NULL);
	assert_int_equal(test_status(&f.driver), 15);
	close(host);
	close(fd);
}

/* A packet shorter than its header, and a buffer too short for one, break their queues; a reset mends them. */
static void test_broken(void **state)
{
	(void)state;
	test_ring_add(&f.tx, &(struct test_buffer){TX_DATA, 43, false}, 1, false);
	test_ring_send(&f.tx);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.rx, &f.driver, 0, 64);
	test_ring_init(&f.tx, &f.driver, 1, 128);
	test_driver_ok(&f.driver);
	test_ring_add(&f.rx, &(struct test_buffer){TEST_DATA, 44, true}, 1, false);
	test_ring_send(&f.rx);
	guest_send(VIRTIO_VSOCK_OP_RW, 9, 80, "x", 1);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	start_driver();
	guest_send(VIRTIO_VSOCK_OP_RW, 9, 80, "x", 1);
	guest_expect(VIRTIO_VSOCK_OP_RST, 80, 9, NULL);
}

/* A guest that gives no buffers cannot make the device collect answers: it stops taking packets, and then goes on. */
static void test_held_answers(void **state)
{
	const unsigned packets = RESETS + 100;
	struct virtio_vsock_hdr hdr = header(VIRTIO_VSOCK_OP_RW, 9, 80);
	unsigned sent = 0, answered = 0;
	uint16_t head;
	uint32_t len;

	(void)state;
	test_driver_negotiate(&f.driver, ~0ull);
	test_ring_init(&f.rx, &f.driver, 0, 64);
	test_ring_init(&f.tx, &f.driver, 1, 128);
	test_driver_ok(&f.driver);
	memcpy(test_at(&f.machine, TX_DATA), &hdr, sizeof(hdr));
	while (sent < packets) {
		if (!f.tx.free_count) {
			if (!test_until(__atomic_load_n(&f.tx.used->idx, __ATOMIC_ACQUIRE) != f.tx.used_seen))
				break;
			while (test_ring_take(&f.tx, &head, &len))
				;
		}
		test_ring_add(&f.tx, &(struct test_buffer){TX_DATA, sizeof(hdr), false}, 1, false);
		test_ring_send(&f.tx);
		sent++;
	}
	usleep(5000);
	assert_int_equal(f.vsock->reset_count, RESETS);
	post_rx();
	for (; answered < packets; answered++)
		guest_expect(VIRTIO_VSOCK_OP_RST, 80, 9, NULL);
	assert_int_equal(sent, packets);
}

/* The guest's driver goes: so do its connections, and clients wait for the next one. */
static void test_driver_reset(void **state)
{
	int fd = host_listen("v_80");
	char c;

	(void)state;
	int host = guest_connect(fd, 1000, 80);
	test_write(&f.driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	assert_int_equal(read(host, &c, 1), 0);
	int client = host_connect();
	assert(write(client, "CONNECT 52\n", 11) == 11);
	start_driver();
	guest_expect(VIRTIO_VSOCK_OP_REQUEST, 0, 52, NULL);
	close(client);
	close(host);
	close(fd);
}

static void save(int fd)
{
	struct unit unit = virtio_pci_unit(f.vp, "vsock");
	cleanup_saved struct saved *s = NULL;

	unit.ops->pause(unit.self);
	test_no_error(saved_create(fd, "test", &s));
	test_no_error(saved_unit(s, unit.name, unit.ops->version, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
}

static struct error *load(int fd)
{
	struct unit unit = virtio_pci_unit(f.vp, "vsock");
	cleanup_saved struct saved *s = NULL;

	assert(lseek(fd, 0, SEEK_SET) == 0);
	test_no_error(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit.name, unit.ops->version, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
	return unit.ops->restored(unit.self);
}

/* A machine that moves while both sides talk: connections end, the guest hears of it, new ones work on the old rings.
 */
static void test_move(void **state)
{
	int fd = host_listen("v_80"), state_fd = memfd_create("saved", MFD_CLOEXEC);
	char c;

	(void)state;
	int host = guest_connect(fd, 1000, 80);
	guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, "a", 1);
	/* More than the guest has buffers for is on its way. */
	static const uint8_t much[150000];
	assert(write(host, much, sizeof(much)) == sizeof(much));
	save(state_fd);
	struct memory memory = f.machine.memory;
	struct test_driver driver = f.driver;
	free_device(true);
	host_read(host, &c, 1);
	assert_true(read(host, &c, 1) <= 0); /* an end, or an error for what was not read */
	close(host);

	make_device(&memory);
	f.driver = driver;
	f.driver.machine = &f.machine;
	f.driver.vp = f.vp;
	test_no_error(load(state_fd));
	struct unit unit = virtio_pci_unit(f.vp, "vsock");
	unit.ops->resume(unit.self);
	/* What had arrived is still there, in order; then the event. */
	uint16_t head;
	uint32_t len;
	test_ring_wait(&f.events, &head, &len);
	assert_int_equal(len, 4);
	assert_int_equal(*(uint32_t *)test_at(&f.machine, TEST_DATA - 64), VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
	while (guest_has_packet())
		guest_expect(VIRTIO_VSOCK_OP_RW, 80, 1000, NULL);
	host = guest_connect(fd, 1001, 80);
	guest_send(VIRTIO_VSOCK_OP_RW, 1001, 80, "b", 1);
	host_read(host, &c, 1);
	assert_int_equal(c, 'b');
	/* The old one is unknown. */
	guest_send(VIRTIO_VSOCK_OP_RW, 1000, 80, "x", 1);
	guest_expect(VIRTIO_VSOCK_OP_RST, 80, 1000, NULL);
	/* Another CID is another machine. */
	save(state_fd);
	f.vsock->cid = 8;
	cleanup_error struct error *err = load(state_fd);
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "CID 7"));
	f.vsock->cid = CID;
	close(host);
	close(state_fd);
	close(fd);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity),      TEST(test_guest_connects), TEST(test_nobody_listens),
		TEST(test_host_connects), TEST(test_bad_greetings),  TEST(test_half_close),
		TEST(test_guest_credit),  TEST(test_host_credit),    TEST(test_many),
		TEST(test_garbage),       TEST(test_broken),         TEST(test_held_answers),
		TEST(test_driver_reset),  TEST(test_move),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
