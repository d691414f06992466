/*
 * virtio-net on passt itself, in a network namespace of the test's own: passt's answers come through the rings, and
 * another passt takes the place of one that ended.
 */
#include "vmm/net/net_test.h"

#include <linux/if_arp.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define GATEWAY {198, 51, 100, 1}

struct arp {
	struct ethhdr eth;
	struct arphdr head;
	uint8_t sender_mac[6], sender[4], target_mac[6], target[4];
} __attribute__((packed));

static pid_t passt_pid;
static char folder[] = "/tmp/passt-XXXXXX";

static void socket_path(char *path, size_t size, unsigned n)
{
	snprintf(path, size, "%s/%u", folder, n);
}

/* Starts the @n-th passt and returns a connection to it. */
static int start_passt(unsigned n)
{
	char path[64];
	int fd = -1;

	socket_path(path, sizeof(path), n);
	passt_pid = fork();
	if (passt_pid == 0) {
		execlp("passt", "passt", "--foreground", "--quiet", "--runas", "0", "--interface", "up0", "--socket",
		       path, NULL);
		_exit(127);
	}
	assert_true(test_until(access(path, F_OK) == 0));
	/* It is there before it is listened on. */
	assert_true(test_until(({
		struct error *err = net_passt_connect(path, &fd);
		error_free(err);
		fd >= 0;
	})));
	return fd;
}

static void end_passt(unsigned n)
{
	char path[64];

	if (passt_pid > 0) {
		kill(passt_pid, SIGKILL);
		waitpid(passt_pid, NULL, 0);
	}
	socket_path(path, sizeof(path), n);
	unlink(path);
	passt_pid = 0;
}

static int end_all(void **state)
{
	if (passt_pid > 0) {
		end_passt(1);
		end_passt(2);
	}
	return teardown(state);
}

/* The guest asks who has the gateway's address, and passt says that it does. */
static void ask(void)
{
	const struct arp question = {.eth = {.h_dest = {255, 255, 255, 255, 255, 255}, .h_proto = htons(ETH_P_ARP)},
				     .head = {.ar_hrd = htons(ARPHRD_ETHER),
					      .ar_pro = htons(ETH_P_IP),
					      .ar_hln = 6,
					      .ar_pln = 4,
					      .ar_op = htons(ARPOP_REQUEST)},
				     .sender = {198, 51, 100, 7},
				     .target = GATEWAY};
	uint64_t at = place(0) + 8 * MIB;
	struct arp *frame = test_at(&f.machine, at + HEADER);
	struct arp answer = {0};
	static const uint8_t gateway[4] = GATEWAY;

	memset(test_at(&f.machine, at), 0, HEADER);
	memcpy(frame, &question, sizeof(question));
	memcpy(frame->eth.h_source, mac, sizeof(mac));
	memcpy(frame->sender_mac, mac, sizeof(mac));
	test_ring_add(&f.ring[TX], &(struct test_buffer){at, HEADER + sizeof(*frame), false}, 1, false);
	test_ring_send(&f.ring[TX]);
	wait_for(TX);
	/* It may have something to say by itself. */
	while (answer.head.ar_op != htons(ARPOP_REPLY)) {
		offer(0, 2048);
		test_ring_send(&f.ring[RX]);
		assert_true(wait_for(RX) >= HEADER + ETH_HLEN);
		memcpy(&answer, (uint8_t *)header(0) + HEADER, sizeof(answer));
	}
	assert_memory_equal(answer.eth.h_dest, mac, sizeof(mac));
	assert_memory_equal(answer.target_mac, mac, sizeof(mac));
	assert_memory_equal(answer.sender, gateway, sizeof(gateway));
}

static void test_passt(void **state)
{
	(void)state;
	if (unshare(CLONE_NEWNET) < 0)
		skip();
	/* An address and a route for passt to take over, as any machine on a network has. */
	tap_run("ip link add %s type veth peer name up1", "up0");
	tap_run("ip addr add 198.51.100.7/24 dev %s", "up0");
	tap_run("ip link set %s up && ip link set up1 up && ip link set lo up", "up0");
	tap_run("ip route add default via 198.51.100.1 dev %s", "up0");
	assert_non_null(mkdtemp(folder));
	int fd = start_passt(1);
	make(NET_PASST, 1, &fd, ~0ull, NULL);
	ask();
	end_passt(1);
	assert_true(test_until(f.lost == 1));
	assert_false(net_link(f.net));
	test_no_error(net_attach(f.net, start_passt(2)));
	assert_true(net_link(f.net));
	ask();
	end_passt(2);
	rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_passt, setup, end_all)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
