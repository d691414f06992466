/*
 * Tests of virtio-net on a tap: by the I/O thread, and by vhost-net where there is one (tests/guests/test_net.py runs
 * this there).
 */
#include "vmm/net/net_test.h"

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

/* --- moving while frames fly --- */

#define STREAM_RING  VIRTQUEUE_SIZE_MAX
#define STREAM_TURNS 12
#define IN_SLOT      0x2000u
#define OUT_HEAD     64u    /* of a frame from the guest: what is its own; the rest is one for all */
#define OUT_BYTES    60000u /* vhost looks up from its work after 512 KiB: many times in a ring of these */

/* Frames on their way, by number: a lost, doubled or overtaken one is seen at the other end. */
struct stream {
	uint32_t sent, seen;
};

static uint8_t out_frame[OUT_BYTES];

static uint64_t in_slot(unsigned i)
{
	return TEST_DATA + i * IN_SLOT;
}

static uint64_t out_slot(unsigned i)
{
	return TEST_DATA + 8 * MIB + i * 256ull;
}

static const uint64_t out_rest = TEST_DATA + 16 * MIB;

static void number(uint8_t *frame, uint32_t number)
{
	memcpy(frame + ETH_HLEN, &number, sizeof(number));
}

static void assert_number(const uint8_t *frame, uint32_t number)
{
	uint32_t is;

	memcpy(&is, frame + ETH_HLEN, sizeof(is));
	assert_int_equal(is, number);
}

static void guest_sends(struct stream *s, bool more)
{
	struct test_ring *r = &f.ring[TX];
	uint16_t head;
	uint32_t len;

	while (test_ring_take(r, &head, &len))
		;
	for (; more && r->free_count > 1; s->sent++) {
		uint64_t at = out_slot(r->free[r->free_count - 1]);
		struct test_buffer b[2] = {{at, HEADER + OUT_HEAD, false}, {out_rest, OUT_BYTES - OUT_HEAD, false}};
		uint8_t *frame = test_at(&f.machine, at + HEADER);
		memset(test_at(&f.machine, at), 0, HEADER);
		memcpy(frame, out_frame, OUT_HEAD);
		number(frame, s->sent);
		test_ring_add(r, b, 2, false);
	}
	test_ring_send(r);
}

static size_t in_frame(uint8_t *frame, uint32_t n)
{
	size_t len = n % 2 ? 100 : 8000;

	fill(frame, len, mac, other, (uint8_t)n);
	number(frame, n);
	return len;
}

static void guest_takes(struct stream *s)
{
	struct test_ring *r = &f.ring[RX];
	static uint8_t expected[IN_SLOT];
	uint16_t head;
	uint32_t len;

	while (test_ring_take(r, &head, &len)) {
		const struct virtio_net_hdr_v1 *h = test_at(&f.machine, in_slot(head));
		const uint8_t *frame = (const uint8_t *)h + HEADER;
		assert_int_equal(h->num_buffers, 1);
		assert_number(frame, s->seen);
		assert_int_equal(len, HEADER + in_frame(expected, s->seen++));
		assert_memory_equal(frame, expected, len - HEADER);
	}
	while (r->free_count) {
		uint64_t at = in_slot(r->free[r->free_count - 1]);
		test_ring_add(r, &(struct test_buffer){at, IN_SLOT, true}, 1, false);
	}
	test_ring_send(r);
}

static void host_sends(struct stream *s)
{
	static uint8_t frame[IN_SLOT];

	/* Never more than the tap's queue holds. */
	for (; s->sent - s->seen < 400; s->sent++) {
		size_t len = in_frame(frame, s->sent);
		assert_int_equal(send(f.host, frame, len, 0), len);
	}
}

static void host_takes(struct stream *s)
{
	static uint8_t frame[FRAME_MAX];
	const size_t own = ETH_HLEN + sizeof(uint32_t);
	ssize_t n;

	while ((n = recv(f.host, frame, sizeof(frame), MSG_DONTWAIT)) >= 0) {
		assert_number(frame, s->seen++);
		assert_int_equal(n, OUT_BYTES);
		assert_memory_equal(frame, out_frame, ETH_HLEN);
		assert_memory_equal(frame + own, out_frame + own, OUT_BYTES - own);
	}
}

/* To a new device on the same tap. */
static void move(bool vhost)
{
	int fd = memfd_create("state", MFD_CLOEXEC), host = f.host, tap = fcntl(f.tap, F_DUPFD_CLOEXEC, 0);

	save(fd);
	struct memory memory = f.machine.memory;
	f.host = -1;
	end(true);
	f.vhost = vhost;
	make(NET_TAP, 1, &tap, 0, &memory);
	load(fd);
	f.unit.ops->resume(f.unit.self);
	f.host = host;
	close(fd);
	assert_int_equal(served_by_vhost(), vhost);
}

/*
 * Saved while rings are full and who serves them is amid them. A position that vhost gave while it still worked would
 * show as frames that come twice or never.
 */
static void moves(bool vhost)
{
	struct stream out = {0}, in = {0};
	const int room = 64 * MIB;

	f.ring_size = STREAM_RING;
	if (!(vhost ? vhost_with(1, ~0ull) : tap_with(1, ~0ull)))
		skip();
	tap_run("ip link set %s mtu 9000", "tap0");
	assert_int_equal(setsockopt(f.host, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)), 0);
	fill(out_frame, OUT_BYTES, other, mac, 1);
	memcpy(test_at(&f.machine, out_rest), out_frame + OUT_HEAD, OUT_BYTES - OUT_HEAD);
	for (unsigned turn = 0; turn < STREAM_TURNS; turn++) {
		host_sends(&in);
		guest_takes(&in);
		guest_sends(&out, true);
		usleep(turn * 389 % 3000);
		move(vhost && turn % 4 != 3);
		host_takes(&out);
	}
	assert_true(test_until(({
		guest_takes(&in);
		guest_sends(&out, false);
		host_takes(&out);
		in.seen == in.sent &&out.seen == out.sent;
	})));
	assert_true(in.seen > STREAM_TURNS && out.seen > STREAM_TURNS);
}

static void test_moves(void **state)
{
	(void)state;
	moves(false);
}

static void test_vhost_moves(void **state)
{
	(void)state;
	moves(true);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_tap),
		TEST(test_two_pairs),
		TEST(test_vhost),
		TEST(test_vhost_and_back),
		TEST(test_vhost_two_pairs),
		TEST(test_vhost_interrupts),
		TEST(test_vhost_broken),
		TEST(test_moves),
		TEST(test_vhost_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
