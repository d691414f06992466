/*
 * What the tests of virtio-net share: a machine with one interface through its PCI function, rings in plain memory, and
 * the host's end, which is what it is in life: a stream socket that speaks passt's framing, or a tap in a network
 * namespace of the test's own with a packet socket on it.
 */
#ifndef GLINT_VMM_NET_NET_TEST_H
#define GLINT_VMM_NET_NET_TEST_H

#include "base/cleanup.h"
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
	int tap;    /* its queue, held while the device moves; -1 */
	uint16_t ring_size;
	atomic_uint lost;
};

static struct fixture f;

static inline struct test_ring *control(void)
{
	return &f.ring[2 * f.pairs];
}

static inline void count_lost(void *arg)
{
	(void)arg;
	f.lost++;
}

static inline void make(enum net_kind kind, unsigned pairs, const int *fds, uint64_t features,
			const struct memory *memory)
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
		test_ring_init(&f.ring[i], &f.driver, i, f.ring_size);
	test_driver_ok(&f.driver);
}

static inline int new_pair(void)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
	f.host = pair[1];
	return pair[0];
}

static inline void passt_with(uint64_t features)
{
	int fd = new_pair();

	make(NET_PASST, 1, &fd, features, NULL);
}

static inline int setup(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN); /* as the monitor does */
	f = (struct fixture){.host = -1, .tap = -1, .ring_size = RING};
	return 0;
}

static inline void end(bool keep_memory)
{
	virtio_pci_free(f.vp);
	net_free(f.net);
	test_machine_destroy(&f.machine, keep_memory);
	if (f.host >= 0)
		close(f.host);
	f.host = -1;
}

static inline int teardown(void **state)
{
	(void)state;
	if (f.net)
		end(false);
	close_fd(&f.tap);
	return 0;
}

/* --- frames --- */

/* A frame of @len bytes from @from to @to; @seed makes its content its own. */
static inline void fill(uint8_t *frame, size_t len, const uint8_t *to, const uint8_t *from, uint8_t seed)
{
	memcpy(frame, to, 6);
	memcpy(frame + 6, from, 6);
	frame[12] = TYPE >> 8;
	frame[13] = TYPE & 0xff;
	for (size_t i = 14; i < len; i++)
		frame[i] = (uint8_t)(seed + i * 7 + i / 251);
}

static inline void assert_frame(const uint8_t *frame, size_t len, const uint8_t *to, const uint8_t *from, uint8_t seed)
{
	static uint8_t expected[FRAME_MAX];

	fill(expected, len, to, from, seed);
	assert_memory_equal(frame, expected, len);
}

/* passt's end: sends and takes a frame behind its length. */
static inline void host_send(size_t len, uint8_t seed)
{
	static uint8_t buf[4 + FRAME_MAX];
	uint32_t prefix = htonl((uint32_t)len);

	memcpy(buf, &prefix, 4);
	fill(buf + 4, len, mac, other, seed);
	test_no_error(write_all(f.host, buf, 4 + len, "send a frame"));
}

static inline size_t host_take(uint8_t *frame)
{
	uint32_t len;

	test_no_error(read_all(f.host, &len, sizeof(len), "take a length"));
	len = ntohl(len);
	assert_true(len <= FRAME_MAX);
	test_no_error(read_all(f.host, frame, len, "take a frame"));
	return len;
}

static inline bool host_empty(void)
{
	struct pollfd p = {.fd = f.host, .events = POLLIN};
	return poll(&p, 1, 0) == 0;
}

/* The guest's end. Buffer i of a ring lies at TEST_DATA + i * 128 KiB, transmission 8 MiB above. */
static inline uint64_t place(unsigned i)
{
	return TEST_DATA + i * 128 * KIB;
}

static inline void offer(unsigned i, uint32_t len)
{
	memset(test_at(&f.machine, place(i)), 0xee, len);
	test_ring_add(&f.ring[RX], &(struct test_buffer){place(i), len, true}, 1, false);
}

/* Transmits a frame from place @i, cut in two behind @cut bytes of header and frame together. */
static inline void transmit(unsigned i, size_t len, uint8_t seed, uint32_t cut)
{
	uint64_t at = place(i) + 8 * MIB;
	uint32_t total = (uint32_t)(HEADER + len);
	struct test_buffer b[2] = {{at, cut ? cut : total, false}, {at + cut, total - cut, false}};

	memset(test_at(&f.machine, at), 0, HEADER);
	fill(test_at(&f.machine, at + HEADER), len, other, mac, seed);
	test_ring_add(&f.ring[TX], b, cut ? 2 : 1, false);
}

static inline uint32_t wait_for(unsigned ring)
{
	uint16_t head;
	uint32_t len;

	test_ring_wait(&f.ring[ring], &head, &len);
	return len;
}

static inline struct virtio_net_hdr_v1 *header(unsigned i)
{
	return test_at(&f.machine, place(i));
}

static inline void assert_received(unsigned i, size_t len, uint8_t seed)
{
	assert_int_equal(wait_for(RX), HEADER + len);
	assert_int_equal(header(i)->num_buffers, 1);
	assert_int_equal(header(i)->flags, 0);
	assert_frame((uint8_t *)header(i) + HEADER, len, mac, other, seed);
}

/* One command; the answer. */
static inline uint8_t command(uint8_t class, uint8_t cmd, const void *data, uint32_t len)
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

static inline unsigned status(void)
{
	return (unsigned)test_read(&f.driver, VIRTIO_BAR_DEVICE + 6, 2);
}

static inline unsigned generation(void)
{
	return (unsigned)test_read(&f.driver, VIRTIO_PCI_COMMON_CFGGENERATION, 1);
}

/* --- saving --- */

static inline void save(int fd)
{
	struct saved *s;

	f.unit.ops->pause(f.unit.self);
	test_no_error(saved_create(fd, "test", &s));
	test_no_error(saved_unit(s, f.unit.name, f.unit.ops->version, f.unit.ops->state, f.unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
}

static inline void load(int fd)
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

/* --- a tap --- */

static inline void tap_run(const char *format, const char *name)
{
	char line[128];

	snprintf(line, sizeof(line), format, name); // NOLINT(clang-diagnostic-format-nonliteral)
	assert_int_equal(system(line), 0);          // NOLINT(cert-env33-c)
}

/* A tap in a namespace of its own, with a packet socket as its host. False where that cannot be. */
static inline bool tap_with(unsigned pairs, uint64_t features)
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
	f.tap = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
	assert_true(f.tap >= 0);
	make(NET_TAP, pairs, fds, features, NULL);
	return true;
}

#endif
