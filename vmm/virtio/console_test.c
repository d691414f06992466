/*
 * Tests of virtio-console: a guest's driver on rings in plain memory on one side, real UNIX sockets on the other.
 */
#include "vmm/virtio/console.h"

#include "vmm/virtio/test_driver.h"

#include <fcntl.h>
#include <linux/virtio_console.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

/* Port 0: the console; 1: "port.1"; 2: "agent", whose client is there for good. */
#define PORTS  3
#define RX(p)  ((p) ? 2 + 2 * (p) : 0)
#define TX(p)  (RX(p) + 1)
#define QUEUES (2 + 2 * PORTS)
#define CHUNK  4096u

struct fixture {
	char dir[32];
	struct test_machine machine;
	struct console *console;
	struct virtio_pci *vp;
	struct test_driver driver;
	struct test_ring ring[QUEUES];
	int agent; /* our end of it */
};

static struct fixture f;

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

	unlink(addr.sun_path);
	assert(fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 8) == 0);
	return fd;
}

static int host_connect(const char *name)
{
	struct sockaddr_un addr = address(name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert(fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return fd;
}

/* --- the guest --- */

/* Where queue @q's buffer @i lies. */
static uint64_t buffer(unsigned q, unsigned i)
{
	return TEST_DATA + (q * 64ull + i) * 8192;
}

static void give(unsigned q, unsigned count, uint32_t len)
{
	struct test_ring *r = &f.ring[q];

	while (count--) {
		unsigned at = r->free[r->free_count - 1];
		test_ring_add(r, &(struct test_buffer){buffer(q, at), len, true}, 1, false);
	}
	test_ring_send(r);
}

static void send_control(uint32_t id, uint16_t event, uint16_t value)
{
	const struct virtio_console_control m = {id, event, value};
	struct test_ring *r = &f.ring[3];
	uint16_t head;
	uint32_t len;

	memcpy(test_at(&f.machine, buffer(3, 0)), &m, sizeof(m));
	test_ring_add(r, &(struct test_buffer){buffer(3, 0), sizeof(m), false}, 1, false);
	test_ring_send(r);
	test_ring_wait(r, &head, &len);
}

/* The next message of the device, which must be this; @name: what follows it. */
static void expect(uint32_t id, uint16_t event, uint16_t value, const char *name)
{
	struct virtio_console_control m;
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.ring[2], &head, &len);
	const uint8_t *at = test_at(&f.machine, f.ring[2].desc[head].addr);
	memcpy(&m, at, sizeof(m));
	assert_int_equal(len, sizeof(m) + (name ? strlen(name) : 0));
	assert_int_equal(m.id, id);
	assert_int_equal(m.event, event);
	assert_int_equal(m.value, value);
	if (name)
		assert_memory_equal(at + sizeof(m), name, strlen(name));
	give(2, 1, 128);
}

static bool completed(unsigned q)
{
	return __atomic_load_n(&f.ring[q].used->idx, __ATOMIC_ACQUIRE) != f.ring[q].used_seen;
}

static void start_driver(uint64_t features)
{
	test_driver_negotiate(&f.driver, features);
	for (unsigned q = 0; q < QUEUES; q++)
		test_ring_init(&f.ring[q], &f.driver, q, 32);
	test_driver_ok(&f.driver);
	give(2, 16, 128);
}

/* The driver is up, knows all ports, and has opened those with a name. */
static void handshake(void)
{
	send_control(~0u, VIRTIO_CONSOLE_DEVICE_READY, 1);
	for (uint32_t id = 0; id < PORTS; id++)
		expect(id, VIRTIO_CONSOLE_PORT_ADD, 1, NULL);
	send_control(0, VIRTIO_CONSOLE_PORT_READY, 1);
	expect(0, VIRTIO_CONSOLE_CONSOLE_PORT, 1, NULL);
	send_control(1, VIRTIO_CONSOLE_PORT_READY, 1);
	expect(1, VIRTIO_CONSOLE_PORT_NAME, 1, "port.1");
	send_control(2, VIRTIO_CONSOLE_PORT_READY, 1);
	expect(2, VIRTIO_CONSOLE_PORT_NAME, 1, "agent");
	expect(2, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	send_control(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	send_control(2, VIRTIO_CONSOLE_PORT_OPEN, 1);
}

static void send_bytes(unsigned port, const void *data, uint32_t len)
{
	struct test_ring *r = &f.ring[TX(port)];
	unsigned at = r->free[r->free_count - 1];

	memcpy(test_at(&f.machine, buffer(TX(port), at)), data, len);
	test_ring_add(r, &(struct test_buffer){buffer(TX(port), at), len, false}, 1, false);
	test_ring_send(r);
}

static void wait_sent(unsigned port)
{
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.ring[TX(port)], &head, &len);
	assert_int_equal(len, 0);
}

/* Takes one chain of bytes from the host. */
static uint32_t take_bytes(unsigned port, void *buf)
{
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.ring[RX(port)], &head, &len);
	assert(len <= CHUNK);
	memcpy(buf, test_at(&f.machine, f.ring[RX(port)].desc[head].addr), len);
	return len;
}

static void host_read(int fd, void *buf, size_t len)
{
	test_no_error(read_all(fd, buf, len, "the host's socket"));
}

/* --- set-up --- */

static void make_device(const struct memory *memory, const char *second)
{
	struct console_config config = {
		.ports = PORTS,
		.port = {{"port.1", host_listen("p"), -1}, {NULL, host_listen("c"), -1}, {second, -1, -1}}};
	int pair[2];

	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	assert(fcntl(pair[0], F_SETFL, 0) == 0);
	f.agent = pair[0];
	config.port[2].peer_fd = pair[1];
	test_machine_init(&f.machine, memory);
	config.thread = f.machine.threads[0];
	test_no_error(console_new(&f.console, &f.machine.memory, &config));
	test_no_error(virtio_pci_new(&f.vp, console_device(f.console), &f.machine.pci, TEST_SLOT));
}

static void free_device(bool keep_memory)
{
	virtio_pci_free(f.vp);
	console_free(f.console);
	test_machine_destroy(&f.machine, keep_memory);
	close(f.agent);
}

static int setup(void **state)
{
	(void)state;
	memset(&f, 0, sizeof(f));
	strcpy(f.dir, "/tmp/console-XXXXXX");
	assert(mkdtemp(f.dir));
	make_device(NULL, "agent");
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	start_driver(~0ull);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free_device(false);
	unlink(address("p").sun_path);
	unlink(address("c").sun_path);
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
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10431af4);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 4, 4), PORTS);
}

/* Clients come and go, one at a time, and the guest is told. */
static void test_open(void **state)
{
	char c;

	(void)state;
	handshake();
	int first = host_connect("p");
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	int second = host_connect("p");
	assert(write(second, "2", 1) == 1);
	usleep(2000);
	assert_false(completed(2));
	close(first);
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 0, NULL);
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	give(RX(1), 1, CHUNK);
	assert_int_equal(take_bytes(1, &c), 1);
	assert_int_equal(c, '2');
	close(second);
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 0, NULL);
	/* A client that came before the guest's driver knew the port. */
	start_driver(~0ull);
	first = host_connect("p");
	usleep(2000);
	assert_false(completed(2));
	send_control(1, VIRTIO_CONSOLE_PORT_READY, 1);
	expect(1, VIRTIO_CONSOLE_PORT_NAME, 1, "port.1");
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	close(first);
}

/* Every byte, both ways, past what sockets and rings hold. */
static void test_bytes(void **state)
{
	static uint8_t all[MIB], got[MIB];
	size_t sent = 0, arrived = 0, written = 0;

	(void)state;
	fill_random(all, sizeof(all));
	handshake();
	int host = host_connect("p");
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	assert(fcntl(host, F_SETFL, O_NONBLOCK) == 0);
	give(RX(1), 8, CHUNK);
	unsigned in_ring = 0, most = 0;
	while (arrived < sizeof(all) || sent < sizeof(all) || in_ring) {
		uint16_t head;
		uint32_t len;
		/* The guest sends until its ring is full; the host reads when it is, or when there is no more. */
		while (sent < sizeof(all) && in_ring < 32) {
			uint32_t n = (uint32_t)MIN(sizeof(all) - sent, (size_t)3000);
			send_bytes(1, all + sent, n);
			sent += n;
			in_ring++;
		}
		while (test_ring_take(&f.ring[TX(1)], &head, &len))
			in_ring--;
		most = MAX(most, in_ring);
		ssize_t n = in_ring == 32 || sent == sizeof(all)
				    ? read(host, got + arrived, MIN(sizeof(got) - arrived, (size_t)7777))
				    : 0;
		arrived += n > 0 ? (size_t)n : 0;
	}
	assert_int_equal(most, 32);
	assert_memory_equal(all, got, sizeof(all));

	for (size_t taken = 0; taken < sizeof(all);) {
		ssize_t n = write(host, all + written, sizeof(all) - written);
		written += n > 0 ? (size_t)n : 0;
		taken += take_bytes(1, got + taken);
		give(RX(1), 1, CHUNK);
	}
	assert_memory_equal(all, got, sizeof(all));
	close(host);
}

/* Nobody is there: the guest is not held up. The console's client that does not read does not either. */
static void test_discard(void **state)
{
	static const uint8_t some[CHUNK];

	(void)state;
	handshake();
	for (unsigned i = 0; i < 200; i++) {
		send_bytes(1, some, sizeof(some));
		wait_sent(1);
		send_bytes(0, some, sizeof(some));
		wait_sent(0);
	}
	int host = host_connect("c");
	expect(0, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	for (unsigned i = 0; i < 400; i++) {
		send_bytes(0, some, sizeof(some));
		wait_sent(0);
	}
	close(host);
	/* A client that leaves with the ring full frees it. */
	host = host_connect("p");
	expect(0, VIRTIO_CONSOLE_PORT_OPEN, 0, NULL);
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	for (unsigned i = 0; i < 30; i++)
		send_bytes(1, some, CHUNK);
	close(host);
	for (unsigned i = 0; i < 30; i++)
		wait_sent(1);
}

/* Bytes wait for a guest that has not opened the port; the console is always open. */
static void test_guest_closed(void **state)
{
	char buf[CHUNK];

	(void)state;
	handshake();
	send_control(1, VIRTIO_CONSOLE_PORT_OPEN, 0);
	assert_false(console_guest_open(f.console, "port.1"));
	assert_true(console_guest_open(f.console, "agent"));
	int host = host_connect("p");
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	give(RX(1), 2, CHUNK);
	assert(write(host, "wait", 4) == 4);
	usleep(2000);
	assert_false(completed(RX(1)));
	send_control(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	assert_int_equal(take_bytes(1, buf), 4);
	assert_memory_equal(buf, "wait", 4);
	/* One that leaves while the guest has it closed is gone. */
	send_control(1, VIRTIO_CONSOLE_PORT_OPEN, 0);
	close(host);
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 0, NULL);

	host = host_connect("c");
	expect(0, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	give(RX(0), 1, CHUNK);
	assert(write(host, "key", 3) == 3);
	assert_int_equal(take_bytes(0, buf), 3);
	close(host);
}

static void test_agent(void **state)
{
	char buf[CHUNK];

	(void)state;
	handshake();
	assert(write(f.agent, "ask", 3) == 3);
	give(RX(2), 1, CHUNK);
	assert_int_equal(take_bytes(2, buf), 3);
	send_bytes(2, "answer", 6);
	wait_sent(2);
	host_read(f.agent, buf, 6);
	assert_memory_equal(buf, "answer", 6);
}

/* A driver without ports has the console. */
static void test_single(void **state)
{
	char buf[CHUNK];

	(void)state;
	start_driver(~(1ull << VIRTIO_CONSOLE_F_MULTIPORT));
	int host = host_connect("c");
	give(RX(0), 1, CHUNK);
	assert(write(host, "in", 2) == 2);
	assert_int_equal(take_bytes(0, buf), 2);
	send_bytes(0, "out", 3);
	wait_sent(0);
	host_read(host, buf, 3);
	assert_memory_equal(buf, "out", 3);
	close(host);
}

static void test_garbage(void **state)
{
	uint16_t head;
	uint32_t len;

	(void)state;
	handshake();
	for (uint16_t event = 0; event < 20; event++)
		for (uint32_t id = 3; id < 6; id++)
			if (event != VIRTIO_CONSOLE_DEVICE_READY)
				send_control(id * 0x10000003u, event, 1);
	send_control(1, VIRTIO_CONSOLE_PORT_NAME, 1);
	send_control(1, 0xffff, 0xffff);
	/* Too short to be a message, and one without any byte to read. */
	test_ring_add(&f.ring[3], &(struct test_buffer){buffer(3, 0), 7, false}, 1, false);
	test_ring_add(&f.ring[3], &(struct test_buffer){buffer(3, 0), 7, true}, 1, false);
	test_ring_send(&f.ring[3]);
	test_ring_wait(&f.ring[3], &head, &len);
	test_ring_wait(&f.ring[3], &head, &len);
	/* Chains of the wrong direction carry nothing. */
	int host = host_connect("p");
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	test_ring_add(&f.ring[RX(1)], &(struct test_buffer){buffer(0, 0), 7, false}, 1, false);
	test_ring_send(&f.ring[RX(1)]);
	give(RX(1), 1, CHUNK);
	assert(write(host, "x", 1) == 1);
	test_ring_wait(&f.ring[RX(1)], &head, &len);
	assert_int_equal(len, 0);
	test_ring_wait(&f.ring[RX(1)], &head, &len);
	assert_int_equal(len, 1);
	test_ring_add(&f.ring[TX(1)], &(struct test_buffer){buffer(0, 0), 7, true}, 1, false);
	test_ring_send(&f.ring[TX(1)]);
	wait_sent(1);
	assert_false(completed(2));
	assert_int_equal(test_status(&f.driver), 15);
	/* A chain outside of memory breaks its queue. */
	test_ring_add(&f.ring[TX(1)], &(struct test_buffer){~0ull, 7, false}, 1, false);
	test_ring_send(&f.ring[TX(1)]);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	start_driver(~0ull);
	send_control(~0u, VIRTIO_CONSOLE_DEVICE_READY, 1);
	expect(0, VIRTIO_CONSOLE_PORT_ADD, 1, NULL);
	close(host);
}

/* --- moving --- */

static void save(int fd)
{
	struct unit unit = virtio_pci_unit(f.vp, "console");
	cleanup_saved struct saved *s = NULL;

	assert(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
	unit.ops->pause(unit.self);
	test_no_error(saved_create(fd, "test", &s));
	test_no_error(saved_unit(s, unit.name, unit.ops->version, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
}

static struct error *load(int fd)
{
	struct unit unit = virtio_pci_unit(f.vp, "console");
	cleanup_saved struct saved *s = NULL;

	assert(lseek(fd, 0, SEEK_SET) == 0);
	test_no_error(saved_open(fd, "test", &s));
	TRY(saved_unit(s, unit.name, unit.ops->version, unit.ops->state, unit.self));
	test_no_error(saved_finish(s));
	return unit.ops->restored(unit.self);
}

/* Saves to @fd, ends the device, and goes on with another; what it returns is the error of loading. */
static struct error *move(int fd, const char *second)
{
	struct memory memory;
	struct test_driver driver = f.driver;

	save(fd);
	memory = f.machine.memory;
	free_device(true);
	make_device(&memory, second);
	f.driver = driver;
	f.driver.machine = &f.machine;
	f.driver.vp = f.vp;
	return load(fd);
}

/*
 * A client that does not read, and a guest that fills its ring: a chain is half taken. After the move its bytes wait
 * until the client is back, who gets all the rest and nothing twice.
 */
static void test_move(void **state)
{
	/* Chains of which a socket takes a part. */
	static uint8_t all[8 * MIB], got[8 * MIB];
	const uint32_t chain = 120000;
	int state_fd = memfd_create("saved", MFD_CLOEXEC);
	uint32_t sent = 0, arrived = 0;
	uint16_t head;
	uint32_t len;

	(void)state;
	fill_random(all, sizeof(all));
	handshake();
	int host = host_connect("p");
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 1, NULL);
	while (sent < sizeof(all) && f.ring[TX(1)].free_count) {
		struct test_ring *r = &f.ring[TX(1)];
		uint64_t at = TEST_DATA + 8 * MIB + r->free[r->free_count - 1] * 0x20000ull;
		memcpy(test_at(&f.machine, at), all + sent, chain);
		test_ring_add(r, &(struct test_buffer){at, chain, false}, 1, false);
		test_ring_send(r);
		sent += chain;
		usleep(300);
		while (test_ring_take(&f.ring[TX(1)], &head, &len))
			;
	}
	assert_true(sent < sizeof(all) - chain);
	give(RX(1), 4, CHUNK);
	test_no_error(move(state_fd, "agent"));
	for (ssize_t n; (n = read(host, got + arrived, sizeof(got) - arrived)) > 0;)
		arrived += (uint32_t)n;
	assert_true(arrived < sent && arrived % chain != 0);
	close(host);
	struct unit unit = virtio_pci_unit(f.vp, "console");
	unit.ops->resume(unit.self);
	usleep(5000);
	while (test_ring_take(&f.ring[TX(1)], &head, &len))
		assert_int_equal(len, 0); /* done before the move */
	assert_int_equal(f.ring[TX(1)].free_count, 0);
	/* The agent's client came along and is not news. */
	assert_false(completed(2));
	host = host_connect("p");
	host_read(host, got + arrived, sent - arrived);
	assert_memory_equal(got, all, sent);
	assert_false(completed(2));
	assert_true(test_until(completed(TX(1))));
	while (test_ring_take(&f.ring[TX(1)], &head, &len))
		;
	send_bytes(1, "after", 5);
	host_read(host, got, 5);
	assert_memory_equal(got, "after", 5);
	close(host);
	expect(1, VIRTIO_CONSOLE_PORT_OPEN, 0, NULL);

	/* Other ports are another machine. */
	cleanup_error struct error *err = move(state_fd, "other");
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "'agent'"));
	close(state_fd);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity), TEST(test_open),   TEST(test_bytes),   TEST(test_discard), TEST(test_guest_closed),
		TEST(test_agent),    TEST(test_single), TEST(test_garbage), TEST(test_move),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
