/*
 * Tests of virtio-net's frames on passt's stream socket: both ways, in any shape the guest or the host gives them.
 */
#include "vmm/net/net_test.h"

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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
