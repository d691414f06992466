/*
 * Tests of what virtio-net is beside its frames: link, configuration, control queue, a host that leaves, moving.
 */
#include "vmm/net/net_test.h"

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

/*
 * A driver that reads part of an old configuration and part of a new one is told by the generation (4.1.4.3.1): also
 * of a change that the device has not told of, or not yet.
 */
static void test_generation(void **state)
{
	(void)state;
	passt_with(~0ull);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE, 1), mac[0]);
	unsigned before = generation();
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
	assert_int_equal(generation(), before);
	assert_int_equal(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 6), VIRTIO_NET_OK);
	assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + 1, 1), other[1]);
	assert_int_not_equal(generation(), before);
	/* Shown nothing of it, it may still be told. */
	before = generation();
	net_set_link(f.net, false);
	assert_int_not_equal(generation(), before);
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
	unsigned before = generation();
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
	assert_int_not_equal(generation(), before);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(test_read(&f.driver, VIRTIO_BAR_DEVICE + i, 1), other[i]);
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
	assert_true(test_interrupts(&f.driver, 0) > 0);
	assert_int_equal(command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0), VIRTIO_NET_OK);
	assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_host_leaves), TEST(test_bad_length), TEST(test_link),
		TEST(test_generation),  TEST(test_control),    TEST(test_move),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
