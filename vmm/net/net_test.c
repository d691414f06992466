/*
 * Tests of virtio-net through its PCI function and rings in plain memory. The host's end is what it is in life: a
 * stream socket that speaks passt's framing, and a tap in a network namespace of this test's own, with vhost-net where
 * there is one (tests/guests/test_net.py runs this there).
 */
#include "vmm/net/net.h"
#include "vmm/virtio/test_driver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cmocka.h>

#define HEADER     sizeof(struct virtio_net_hdr_v1)
#define RX         0
#define TX         1
#define RING       64
#define TYPE       0x88b5 /* an Ethernet type for experiments (IEEE 802) */
#define FRAME_MAX  70000
#define FEATURE(f) (1ull << (f))

static const uint8_t mac[6] = {0x02, 1, 2, 3, 4, 5}, other[6] = {0x02, 9, 8, 7, 6, 5};

struct fixture {
	struct test_machine machine;
	struct net *net;
	struct virtio_pci *vp;
	struct unit unit;
	struct test_driver driver;
	struct test_ring ring[5]; /* of pair 0, then the control queue; or of two pairs, then it */
	unsigned pairs;
	bool vhost; /* the next one has it */
	int host;   /* the other end */
	atomic_uint lost;
};

static struct fixture f;

static struct test_ring *control(void)
{
	return &f.ring[2 * f.pairs];
}

static void count_lost(void *arg)
{
	(void)arg;
	f.lost++;
}

static void make(enum net_kind kind, unsigned pairs, const int *fds, uint64_t features, const struct memory *memory)
{
	struct net_config config = {.name = "net0",
				    .kind = kind,
				    .pairs = pairs,
				    .mtu = 1400,
				    .lost = count_lost,
				    .thread_count = TEST_THREADS};

	test_machine_init(&f.machine, memory);
	config.threads = f.machine.threads;
	memset(config.vhost_fd, 0xff, sizeof(config.vhost_fd));
	if (f.vhost)
		test_no_error(net_vhost_open(pairs, config.vhost_fd));
	memcpy(config.fd, fds, pairs * sizeof(*fds));
	memcpy(config.mac, mac, sizeof(mac));
	test_no_error(net_new(&f.net, &f.machine.memory, &config));
	test_no_error(virtio_pci_new(&f.vp, net_device(f.net), &f.machine.pci, TEST_SLOT));
	f.unit = virtio_pci_unit(f.vp, "net:net0");
	f.pairs = pairs;
	if (memory)
		return;
	test_driver_find(&f.driver, &f.machine, f.vp);
	test_msix_enable(&f.machine);
	test_driver_negotiate(&f.driver, features);
	for (unsigned i = 0; i < 2 * pairs + 1; i++)
		test_ring_init(&f.ring[i], &f.driver, i, RING);
	test_driver_ok(&f.driver);
}

static int new_pair(void)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
	f.host = pair[1];
	return pair[0];
}

static void passt_with(uint64_t features)
{
	int fd = new_pair();

	make(NET_PASST, 1, &fd, features, NULL);
}

static int setup(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN); /* as the monitor does */
	f = (struct fixture){.host = -1};
	return 0;
}

static void end(bool keep_memory)
{
	virtio_pci_free(f.vp);
	net_free(f.net);
	test_machine_destroy(&f.machine, keep_memory);
	if (f.host >= 0)
		close(f.host);
	f.host = -1;
}

static int teardown(void **state)
{
	(void)state;
	if (f.net)
		end(false);
	return 0;
}

/* --- frames --- */

/* A frame of @len bytes from @from to @to; @seed makes its content its own. */
static void fill(uint8_t *frame, size_t len, const uint8_t *to, const uint8_t *from, uint8_t seed)
{
	memcpy(frame, to, 6);
	memcpy(frame + 6, from, 6);
	frame[12] = TYPE >> 8;
	frame[13] = TYPE & 0xff;
	for (size_t i = 14; i < len; i++)
		frame[i] = (uint8_t)(seed + i * 7 + i / 251);
}

static void assert_frame(const uint8_t *frame, size_t len, const uint8_t *to, const uint8_t *from, uint8_t seed)
{
	static uint8_t expected[FRAME_MAX];

	fill(expected, len, to, from, seed);
	assert_memory_equal(frame, expected, len);
}

/* passt's end: sends and takes a frame behind its length. */
static void host_send(size_t len, uint8_t seed)
{
	static uint8_t buf[4 + FRAME_MAX];
	uint32_t prefix = htonl((uint32_t)len);

	memcpy(buf, &prefix, 4);
	fill(buf + 4, len, mac, other, seed);
	test_no_error(write_all(f.host, buf, 4 + len, "send a frame"));
}

static size_t host_take(uint8_t *frame)
{
	uint32_t len;

	test_no_error(read_all(f.host, &len, sizeof(len), "take a length"));
	len = ntohl(len);
	assert_true(len <= FRAME_MAX);
	test_no_error(read_all(f.host, frame, len, "take a frame"));
	return len;
}

static bool host_empty(void)
{
	struct pollfd p = {.fd = f.host, .events = POLLIN};
	return poll(&p, 1, 0) == 0;
}

/* The guest's end. Buffer i of a ring lies at TEST_DATA + i * 128 KiB, transmission 8 MiB above. */
static uint64_t place(unsigned i)
{
	return TEST_DATA + i * 128 * KIB;
}

static void offer(unsigned i, uint32_t len)
{
	memset(test_at(&f.machine, place(i)), 0xee, len);
	test_ring_add(&f.ring[RX], &(struct test_buffer){place(i), len, true}, 1, false);
}

/* Transmits a frame from place @i, cut in two behind @cut bytes of header and frame together. */
static void transmit(unsigned i, size_t len, uint8_t seed, uint32_t cut)
{
	uint64_t at = place(i) + 8 * MIB;
	uint32_t total = (uint32_t)(HEADER + len);
	struct test_buffer b[2] = {{at, cut ? cut : total, false}, {at + cut, total - cut, false}};

	memset(test_at(&f.machine, at), 0, HEADER);
	fill(test_at(&f.machine, at + HEADER), len, other, mac, seed);
	test_ring_add(&f.ring[TX], b, cut ? 2 : 1, false);
}

static uint32_t wait_for(unsigned ring)
{
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.ring[ring], &head, &len);
	return len;
}

static struct virtio_net_hdr_v1 *header(unsigned i)
{
	return test_at(&f.machine, place(i));
}

static void assert_received(unsigned i, size_t len, uint8_t seed)
{
	assert_int_equal(wait_for(RX), HEADER + len);
	assert_int_equal(header(i)->num_buffers, 1);
	assert_int_equal(header(i)->flags, 0);
	assert_frame((uint8_t *)header(i) + HEADER, len, mac, other, seed);
}

/* One command; the answer. */
static uint8_t command(uint8_t class, uint8_t cmd, const void *data, uint32_t len)
{
	uint64_t at = place(0) + 16 * MIB;
	uint8_t *host = test_at(&f.machine, at);
	struct test_buffer b[3] = {{at, 2, false}, {at + 0x1000, len, false}, {at + 0x800, 1, true}};
	uint16_t head;
	uint32_t used;

	host[0] = class;
	host[1] = cmd;
	host[0x800] = 0xee;
	if (len)
		memcpy(host + 0x1000, data, len);
	else
		b[1] = b[2];
	test_ring_add(control(), b, len ? 3 : 2, false);
	test_ring_send(control());
	test_ring_wait(control(), &head, &used);
	assert_int_equal(used, 1);
	return host[0x800];
}

static unsigned status(void)
{
	return (unsigned)test_read(&f.driver, VIRTIO_BAR_DEVICE + 6, 2);
}

/* --- on passt --- */

static void test_identity(void **state)
{
	(void)state;
	passt_with(~0ull);
	assert_int_equal(test_config_read(&f.machine, 0, 4), 0x10411af4);
	assert_int_equal(test_config_read(&f.machine, 8, 4) >> 8, 0x020000);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + i, 1), mac[i]);
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 8, 2), 1);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 10, 2), 1400);
	/* passt takes neither half-made checksums nor segments, and has one pair of queues. */
	assert_int_equal(f.driver.features & (FEATURE(VIRTIO_NET_F_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_CSUM) |
					      FEATURE(VIRTIO_NET_F_HOST_TSO4) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
					      FEATURE(VIRTIO_NET_F_MQ)),
			 0);
}

static void test_transmit(void **state)
{
	static uint8_t frame[FRAME_MAX];
	static const uint32_t cuts[] = {0, 5, HEADER, HEADER + 3};
	struct net_stats stats;

	(void)state;
	passt_with(~0ull);
	for (unsigned i = 0; i < ARRAY_SIZE(cuts); i++)
		transmit(i, 60 + i * 400, (uint8_t)i, cuts[i]);
	test_ring_send(&f.ring[TX]);
	for (unsigned i = 0; i < ARRAY_SIZE(cuts); i++) {
		assert_int_equal(host_take(frame), 60 + i * 400);
		assert_frame(frame, 60 + i * 400, other, mac, (uint8_t)i);
		assert_int_equal(wait_for(TX), 0);
	}
	net_stats(f.net, &stats);
	assert_int_equal(stats.tx_frames, 4);
	assert_int_equal(stats.tx_bytes, 4 * 60 + 6 * 400);
}

static void test_receive(void **state)
{
	(void)state;
	passt_with(~0ull);
	for (unsigned i = 0; i < 4; i++)
		offer(i, 2048);
	test_ring_send(&f.ring[RX]);
	for (unsigned i = 0; i < 4; i++)
		host_send(60 + i * 300, (uint8_t)i);
	for (unsigned i = 0; i < 4; i++)
		assert_received(i, 60 + i * 300, (uint8_t)i);
}

/* A header that the guest cut into single bytes. */
static void test_header_in_pieces(void **state)
{
	struct test_buffer b[14];

	(void)state;
	passt_with(~0ull);
	for (unsigned i = 0; i < 13; i++)
		b[i] = (struct test_buffer){place(0) + i * 2ull, 1, true};
	b[13] = (struct test_buffer){place(1), 2000, true};
	test_ring_add(&f.ring[RX], b, 14, true);
	test_ring_send(&f.ring[RX]);
	host_send(200, 5);
	assert_int_equal(wait_for(RX), HEADER + 200);
	const uint8_t *pieces = test_at(&f.machine, place(0));
	assert_int_equal(pieces[20], 1);
	assert_int_equal(pieces[22], 0);
	assert_int_equal(pieces[24], mac[0]);
	uint8_t whole[200] = {mac[0]};
	memcpy(whole + 1, test_at(&f.machine, place(1)), 199);
	assert_frame(whole, 200, mac, other, 5);
}

/* A large frame fills as many buffers as it needs, and waits until there are so many. */
static void test_merged(void **state)
{
	static uint8_t whole[FRAME_MAX];
	const size_t len = 5000, room = 1500;

	(void)state;
	passt_with(~0ull);
	offer(0, (uint32_t)room);
	offer(1, (uint32_t)room);
	test_ring_send(&f.ring[RX]);
	host_send(len, 9);
	host_send(100, 10);
	usleep(20000);
	assert_int_equal(f.ring[RX].used->idx, 0);
	for (unsigned i = 2; i < 5; i++) {
		offer(i, (uint32_t)room);
		test_ring_send(&f.ring[RX]); /* only when the device asked to be told */
	}
	size_t at = 0;
	for (unsigned i = 0; i < 4; i++) {
		size_t skip = i ? 0 : HEADER, n = wait_for(RX) - skip;
		memcpy(whole + at, (uint8_t *)header(i) + skip, n);
		at += n;
	}
	assert_int_equal(header(0)->num_buffers, 4);
	assert_int_equal(at, len);
	assert_frame(whole, len, mac, other, 9);
	assert_received(4, 100, 10);
}

/* Without merging a frame that is too large is lost, and nothing else. */
static void test_too_large(void **state)
{
	struct net_stats stats;

	(void)state;
	passt_with(~FEATURE(VIRTIO_NET_F_MRG_RXBUF));
	offer(0, 1526);
	test_ring_send(&f.ring[RX]);
	host_send(5000, 1);
	host_send(1514, 2);
	assert_received(0, 1514, 2);
	net_stats(f.net, &stats);
	assert_int_equal(stats.rx_dropped, 1);
	assert_int_equal(stats.rx_frames, 1);
}

/* More than one go takes, and frames that come before there is any buffer. */
static void test_many(void **state)
{
	static uint8_t frame[FRAME_MAX];

	(void)state;
	passt_with(~0ull);
	for (unsigned i = 0; i < 200; i++)
		host_send(60, (uint8_t)i);
	for (unsigned i = 0; i < 200; i++) {
		offer(i % 16, 256);
		test_ring_send(&f.ring[RX]);
		assert_received(i % 16, 60, (uint8_t)i);
	}
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < 60; i++)
			transmit(i % 32, 60, (uint8_t)(i % 32), 0);
		test_ring_send(&f.ring[TX]);
		for (unsigned i = 0; i < 60; i++) {
			assert_int_equal(host_take(frame), 60);
			assert_frame(frame, 60, other, mac, (uint8_t)(i % 32));
			wait_for(TX);
		}
	}
}

/* passt does not read: frames wait, whole and in order. */
static void test_slow_host(void **state)
{
	static uint8_t frame[FRAME_MAX];
	unsigned sent = 0;
	uint16_t head;
	uint32_t len;

	(void)state;
	passt_with(~0ull);
	while (sent < 30) {
		transmit(sent % 16, 60000, (uint8_t)(sent % 16), 0);
		sent++;
	}
	test_ring_send(&f.ring[TX]);
	usleep(50000);
	unsigned before = f.ring[TX].used->idx;
	assert_true(before > 0 && before < 30);
	for (unsigned i = 0; i < sent; i++) {
		assert_int_equal(host_take(frame), 60000);
		assert_frame(frame, 60000, other, mac, (uint8_t)(i % 16));
	}
	for (unsigned i = 0; i < sent; i++)
		test_ring_wait(&f.ring[TX], &head, &len);
	assert_true(host_empty());
}

/* What is no frame is dropped; the device goes on. */
static void test_odd_transmissions(void **state)
{
	static uint8_t frame[FRAME_MAX];
	const struct test_buffer odd[] = {{place(0), 5, false},
					  {place(0), HEADER, false},
					  {place(0), HEADER + 13, false},
					  {place(0), 200000, false},
					  {place(0), 2000, true}};
	struct net_stats stats;

	(void)state;
	passt_with(~0ull);
	for (unsigned i = 0; i < ARRAY_SIZE(odd); i++)
		test_ring_add(&f.ring[TX], &odd[i], 1, false);
	transmit(1, 80, 3, 0);
	test_ring_send(&f.ring[TX]);
	for (unsigned i = 0; i < ARRAY_SIZE(odd) + 1; i++)
		assert_int_equal(wait_for(TX), 0);
	assert_int_equal(host_take(frame), 80);
	assert_true(host_empty());
	net_stats(f.net, &stats);
	assert_int_equal(stats.tx_dropped, ARRAY_SIZE(odd));
	assert_int_equal(test_status(&f.driver), 15);
}

static void test_broken(void **state)
{
	(void)state;
	passt_with(~0ull);
	offer(0, HEADER - 1);
	test_ring_send(&f.ring[RX]);
	host_send(60, 1);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	test_driver_negotiate(&f.driver, ~0ull);
	for (unsigned i = 0; i < 3; i++)
		test_ring_init(&f.ring[i], &f.driver, i, RING);
	test_driver_ok(&f.driver);
	offer(1, 2048);
	test_ring_send(&f.ring[RX]);
	host_send(60, 2);
	assert_received(1, 60, 2);
}

static void assert_down_then_attach(void)
{
	static uint8_t frame[FRAME_MAX];

	assert_true(test_until(!(status() & VIRTIO_NET_S_LINK_UP)));
	assert_true(test_until(f.lost == 1));
	assert_true(test_until(test_interrupts(&f.driver, 0) > 0));
	/* What the guest sends meanwhile is lost. */
	transmit(0, 60, 1, 0);
	test_ring_send(&f.ring[TX]);
	wait_for(TX);
	close(f.host);
	test_no_error(net_attach(f.net, new_pair()));
	assert_true(status() & VIRTIO_NET_S_LINK_UP);
	assert_true(test_interrupts(&f.driver, 0) > 0);
	transmit(0, 60, 2, 0);
	test_ring_send(&f.ring[TX]);
	wait_for(TX);
	assert_int_equal(host_take(frame), 60);
	assert_frame(frame, 60, other, mac, 2);
	offer(0, 2048);
	test_ring_send(&f.ring[RX]);
	host_send(70, 3);
	assert_received(0, 70, 3);
}

static void test_host_leaves(void **state)
{
	(void)state;
	passt_with(~0ull);
	shutdown(f.host, SHUT_RDWR);
	assert_down_then_attach();
}

/* A length that no frame has: the stream cannot be trusted any more. */
static void test_bad_length(void **state)
{
	const uint32_t prefix = htonl(1u << 20);

	(void)state;
	passt_with(~0ull);
	offer(5, 2048);
	test_ring_send(&f.ring[RX]);
	host_send(60, 7);
	assert_received(5, 60, 7);
	test_no_error(write_all(f.host, &prefix, sizeof(prefix), "send nonsense"));
	assert_down_then_attach();
}

static void test_link(void **state)
{
	(void)state;
	passt_with(~0ull);
	offer(0, 2048);
	test_ring_send(&f.ring[RX]);
	net_set_link(f.net, false);
	assert_false(net_link(f.net));
	assert_int_equal(status(), 0);
	assert_true(test_interrupts(&f.driver, 0) > 0);
	host_send(60, 1);
	assert_true(test_until(({
		struct net_stats stats;
		net_stats(f.net, &stats);
		stats.rx_dropped == 1;
	})));
	transmit(0, 60, 1, 0);
	test_ring_send(&f.ring[TX]);
	wait_for(TX);
	assert_true(host_empty());
	net_set_link(f.net, false);
	assert_int_equal(test_interrupts(&f.driver, 0), 0); /* nothing changed */
	net_set_link(f.net, true);
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
	assert_true(test_interrupts(&f.driver, 0) > 0);
	host_send(60, 2);
	assert_received(0, 60, 2);
}

static void test_control(void **state)
{
	static const uint8_t table[] = {1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0};
	static const uint8_t long_table[] = {0xff, 0xff, 0xff, 0xff, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0};
	const uint8_t on = 1, two = 2;
	const uint16_t vlan = 7, no_vlan = 4096;
	const uint64_t none = 0;

	(void)state;
	passt_with(~0ull);
	assert_int_equal(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &on, 1), VIRTIO_NET_OK);
	assert_int_equal(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &on, 1), VIRTIO_NET_OK);
	assert_int_equal(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &two, 1), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST, &on, 1), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_RX, 200, &on, 1), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_RX, 0, NULL, 0), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, sizeof(table)),
			 VIRTIO_NET_OK);
	for (uint32_t len = 1; len < sizeof(table); len++)
		assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, len),
				 VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, long_table, sizeof(long_table)),
			 VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 5), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 6), VIRTIO_NET_OK);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 1, 1), 9);
	assert_int_equal(command(VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, &vlan, 2), VIRTIO_NET_OK);
	assert_int_equal(command(VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL, &no_vlan, 2), VIRTIO_NET_ERR);
	/* Not offered on passt. */
	assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &vlan, 2), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &none, 8), VIRTIO_NET_ERR);
	assert_int_equal(command(99, 0, &on, 1), VIRTIO_NET_ERR);
	/* An address set by the guest ends with a reset. */
	test_driver_negotiate(&f.driver, ~0ull);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 1, 1), mac[1]);
}

/* --- saving --- */

static void save(int fd)
{
	struct saved *s;

	f.unit.ops->pause(f.unit.self);
	test_no_error(saved_create(fd, "test", &s));
	test_no_error(saved_unit(s, f.unit.name, f.unit.ops->version, f.unit.ops->state, f.unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
}

static void load(int fd)
{
	struct saved *s;

	test_no_error(saved_open(fd, "test", &s));
	test_no_error(saved_unit(s, f.unit.name, f.unit.ops->version, f.unit.ops->state, f.unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	test_no_error(f.unit.ops->restored(f.unit.self));
	f.driver.machine = &f.machine;
	f.driver.vp = f.vp;
}

/* The device moves while frames wait on both sides; the guest is told to announce itself. */
static void test_move(void **state)
{
	static uint8_t frame[FRAME_MAX];
	int fd = memfd_create("state", MFD_CLOEXEC);

	(void)state;
	passt_with(~0ull);
	assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 6), VIRTIO_NET_OK);
	offer(0, 2048);
	offer(1, 2048);
	test_ring_send(&f.ring[RX]);
	host_send(60, 1);
	assert_received(0, 60, 1);
	save(fd);
	/* Behind the pause: the new one finds it. */
	transmit(2, 90, 4, 0);
	test_ring_publish(&f.ring[TX]);
	struct memory memory = f.machine.memory;
	end(true);
	int peer = new_pair();
	make(NET_PASST, 1, &peer, 0, &memory);
	load(fd);
	close(fd);
	assert_int_equal(f.ring[TX].used->idx, 0);
	f.unit.ops->resume(f.unit.self);
	assert_int_equal(host_take(frame), 90);
	assert_frame(frame, 90, other, mac, 4);
	assert_int_equal(wait_for(TX), 0);
	host_send(100, 5);
	assert_received(1, 100, 5);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + i, 1), other[i]);
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
	assert_true(test_interrupts(&f.driver, 0) > 0);
	assert_int_equal(command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0), VIRTIO_NET_OK);
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
}

/* --- on a tap --- */

static void tap_run(const char *format, const char *name)
{
	char line[128];

	snprintf(line, sizeof(line), format, name); // NOLINT(clang-diagnostic-format-nonliteral)
	assert_int_equal(system(line), 0);          // NOLINT(cert-env33-c)
}

/* A tap in a namespace of its own, with a packet socket as its host. False where that cannot be. */
static bool tap_with(unsigned pairs, uint64_t features)
{
	int fds[2];

	if (unshare(CLONE_NEWNET) < 0 || access("/dev/net/tun", R_OK | W_OK) < 0)
		return false;
	test_no_error(net_tap_open("tap0", pairs, fds));
	/* No greetings of its own. */
	tap_run("echo 1 >/proc/sys/net/ipv6/conf/%s/disable_ipv6 && ip link set tap0 up", "tap0");
	f.host = socket(AF_PACKET, SOCK_RAW, htons(TYPE));
	struct sockaddr_ll addr = {
		.sll_family = AF_PACKET, .sll_protocol = htons(TYPE), .sll_ifindex = (int)if_nametoindex("tap0")};
	assert_int_equal(bind(f.host, (struct sockaddr *)&addr, sizeof(addr)), 0);
	make(NET_TAP, pairs, fds, features, NULL);
	return true;
}

static void test_tap(void **state)
{
	static uint8_t frame[FRAME_MAX];

	(void)state;
	if (!tap_with(1, ~0ull))
		skip();
	assert_true(f.driver.features & FEATURE(VIRTIO_NET_F_HOST_TSO4));
	assert_int_equal(f.driver.features & FEATURE(VIRTIO_NET_F_MQ), 0);
	for (unsigned i = 0; i < 4; i++)
		offer(i, 2048);
	test_ring_send(&f.ring[RX]);
	for (unsigned i = 0; i < 4; i++) {
		fill(frame, 400 + i, mac, other, (uint8_t)i);
		assert_int_equal(send(f.host, frame, 400 + i, 0), 400 + i);
	}
	for (unsigned i = 0; i < 4; i++)
		assert_received(i, 400 + i, (uint8_t)i);
	for (unsigned i = 0; i < 4; i++)
		transmit(i, 500 + i, (uint8_t)i, i * 7);
	test_ring_send(&f.ring[TX]);
	for (unsigned i = 0; i < 4; i++) {
		wait_for(TX);
		assert_int_equal(recv(f.host, frame, sizeof(frame), 0), 500 + i);
		assert_frame(frame, 500 + i, other, mac, (uint8_t)i);
	}
	/* Offloads as negotiated, then as asked for; what was not negotiated is refused. */
	const uint64_t csum = FEATURE(VIRTIO_NET_F_GUEST_CSUM), none = 0, ufo = FEATURE(VIRTIO_NET_F_GUEST_UFO);
	assert_int_equal(command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &csum, 8), VIRTIO_NET_OK);
	assert_int_equal(command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &none, 8), VIRTIO_NET_OK);
	assert_int_equal(command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &ufo, 8), VIRTIO_NET_ERR);
}

/* Two pairs: the tap gives the second one frames only once the guest says it uses it. */
static void test_two_pairs(void **state)
{
	static uint8_t frame[FRAME_MAX];
	const uint16_t zero = 0, two = 2, three = 3, one = 1;

	(void)state;
	if (!tap_with(2, ~0ull))
		skip();
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 8, 2), 2);
	for (unsigned i = 0; i < 16; i++)
		offer(i, 2048);
	test_ring_send(&f.ring[RX]);
	for (unsigned i = 0; i < 8; i++) {
		fill(frame, 100, mac, other, (uint8_t)i);
		frame[5] = (uint8_t)i; /* flows are told apart by addresses, among others */
		assert_int_equal(send(f.host, frame, 100, 0), 100);
		assert_int_equal(wait_for(RX), HEADER + 100);
	}
	assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &zero, 2), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &three, 2), VIRTIO_NET_ERR);
	assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &two, 2), VIRTIO_NET_OK);
	for (unsigned i = 16; i < 32; i++)
		test_ring_add(&f.ring[2], &(struct test_buffer){place(i), 2048, true}, 1, false);
	test_ring_send(&f.ring[2]);
	/* The second pair transmits, and the tap answers a flow on the pair it came from. */
	uint64_t at = place(40);
	memset(test_at(&f.machine, at), 0, HEADER);
	fill(test_at(&f.machine, at + HEADER), 100, other, mac, 1);
	test_ring_add(&f.ring[3], &(struct test_buffer){at, HEADER + 100, false}, 1, false);
	test_ring_send(&f.ring[3]);
	wait_for(3);
	assert_int_equal(recv(f.host, frame, sizeof(frame), 0), 100);
	unsigned before = f.ring[RX].used->idx;
	for (unsigned i = 0; i < 8; i++) {
		fill(frame, 100, mac, other, (uint8_t)i);
		frame[5] = frame[11] = (uint8_t)(i * 37);
		assert_int_equal(send(f.host, frame, 100, 0), 100);
	}
	assert_true(test_until(f.ring[RX].used->idx - before + f.ring[2].used->idx == 8));
	assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &one, 2), VIRTIO_NET_OK);
	before = f.ring[2].used->idx;
	for (unsigned i = 0; i < 4; i++) {
		fill(frame, 100, mac, other, (uint8_t)i);
		frame[5] = (uint8_t)(i * 37);
		assert_int_equal(send(f.host, frame, 100, 0), 100);
	}
	usleep(20000);
	assert_int_equal(f.ring[2].used->idx, before);
}

/* --- the same by vhost-net, where there is one --- */

static bool served_by_vhost(void)
{
	struct net_stats stats;

	net_stats(f.net, &stats);
	return stats.vhost;
}

static bool vhost_with(unsigned pairs, uint64_t features)
{
	f.vhost = access("/dev/vhost-net", R_OK | W_OK) == 0;
	if (!f.vhost || !tap_with(pairs, features))
		return false;
	assert_true(served_by_vhost());
	return true;
}

/* A frame each way by pair 0; place @i of both rings. */
static void pass(unsigned i, uint8_t seed)
{
	static uint8_t frame[FRAME_MAX];

	offer(i, 2048);
	test_ring_send(&f.ring[RX]);
	fill(frame, 300, mac, other, seed);
	assert_int_equal(send(f.host, frame, 300, 0), 300);
	assert_received(i, 300, seed);
	transmit(i, 400, seed, 20);
	test_ring_send(&f.ring[TX]);
	wait_for(TX);
	assert_int_equal(recv(f.host, frame, sizeof(frame), 0), 400);
	assert_frame(frame, 400, other, mac, seed);
}

static void test_vhost(void **state)
{
	struct net_stats stats;

	(void)state;
	if (!vhost_with(1, ~0ull))
		skip();
	for (unsigned i = 0; i < 200; i++)
		pass(i % 16, (uint8_t)i);
	net_stats(f.net, &stats);
	assert_int_equal(stats.rx_frames + stats.tx_frames, 0); /* nothing came by here */
}

/* The ring changes hands again and again: by the cable, a pause, and the guest's hold on the bus. */
static void test_vhost_and_back(void **state)
{
	(void)state;
	if (!vhost_with(1, ~0ull))
		skip();
	for (unsigned i = 0; i < 8; i++) {
		pass(i, (uint8_t)i);
		net_set_link(f.net, false);
		assert_false(served_by_vhost());
		transmit(i, 60, 1, 0); /* lost */
		test_ring_send(&f.ring[TX]);
		wait_for(TX);
		net_set_link(f.net, true);
		pass(i, (uint8_t)(i + 50));
		f.unit.ops->pause(f.unit.self);
		assert_false(served_by_vhost());
		f.unit.ops->resume(f.unit.self);
		pass(i, (uint8_t)(i + 100));
		test_config_write(&f.machine, 0x04, 2, 2);
		assert_false(served_by_vhost());
		test_config_write(&f.machine, 0x04, 6, 2);
		assert_true(served_by_vhost());
	}
}

/* The second pair is the tap's and vhost's only while the guest uses it. */
static void test_vhost_two_pairs(void **state)
{
	static uint8_t frame[FRAME_MAX];
	const uint16_t one = 1, two = 2;
	uint64_t at = place(40);

	(void)state;
	if (!vhost_with(2, ~0ull))
		skip();
	for (unsigned i = 0; i < 4; i++) {
		pass(i, (uint8_t)i);
		assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &two, 2), VIRTIO_NET_OK);
		assert_true(served_by_vhost());
		memset(test_at(&f.machine, at), 0, HEADER);
		fill(test_at(&f.machine, at + HEADER), 100, other, mac, 1);
		test_ring_add(&f.ring[3], &(struct test_buffer){at, HEADER + 100, false}, 1, false);
		test_ring_send(&f.ring[3]);
		wait_for(3);
		assert_int_equal(recv(f.host, frame, sizeof(frame), 0), 100);
		assert_int_equal(command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &one, 2), VIRTIO_NET_OK);
		assert_true(served_by_vhost());
	}
}

/* The guest gives a queue another vector, none, and goes over to pins while it runs. */
static void test_vhost_interrupts(void **state)
{
	unsigned cap;

	(void)state;
	if (!vhost_with(1, ~0ull))
		skip();
	pass(0, 1);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_SELECT, TX, 2);
	test_write(&f.driver, VIRTIO_PCI_COMMON_Q_MSIX, 3, 2);
	(void)test_interrupts(&f.driver, 3);
	transmit(1, 60, 1, 0);
	test_ring_arm(&f.ring[TX]);
	test_ring_send(&f.ring[TX]);
	assert_true(test_until(test_interrupts(&f.driver, 3) > 0));
	wait_for(TX);
	cap = test_capability(&f.machine, 0x11, 0);
	test_config_write(&f.machine, cap + 2, 0, 2);
	(void)test_read(&f.driver, VIRTIO_BAR_ISR, 1);
	transmit(2, 60, 1, 0);
	test_ring_arm(&f.ring[TX]);
	test_ring_send(&f.ring[TX]);
	assert_true(test_until(test_read(&f.driver, VIRTIO_BAR_ISR, 1) & 1));
}

static void test_vhost_broken(void **state)
{
	(void)state;
	if (!vhost_with(1, ~0ull))
		skip();
	test_ring_add(&f.ring[TX], &(struct test_buffer){~0ull << 20, 64, false}, 1, false);
	test_ring_publish(&f.ring[TX]);
	test_ring_kick(&f.ring[TX]);
	assert_true(test_until(test_status(&f.driver) & VIRTIO_CONFIG_S_NEEDS_RESET));
	test_driver_negotiate(&f.driver, ~0ull);
	for (unsigned i = 0; i < 3; i++)
		test_ring_init(&f.ring[i], &f.driver, i, RING);
	test_driver_ok(&f.driver);
	assert_true(served_by_vhost());
	pass(3, 3);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity),
		TEST(test_transmit),
		TEST(test_receive),
		TEST(test_header_in_pieces),
		TEST(test_merged),
		TEST(test_too_large),
		TEST(test_many),
		TEST(test_slow_host),
		TEST(test_odd_transmissions),
		TEST(test_broken),
		TEST(test_host_leaves),
		TEST(test_bad_length),
		TEST(test_link),
		TEST(test_control),
		TEST(test_move),
		TEST(test_tap),
		TEST(test_two_pairs),
		TEST(test_vhost),
		TEST(test_vhost_and_back),
		TEST(test_vhost_two_pairs),
		TEST(test_vhost_interrupts),
		TEST(test_vhost_broken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
