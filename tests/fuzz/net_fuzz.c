/*
 * Fuzzes virtio-net through its rings and from the host's side: the input is a program of a hostile guest, which writes
 * descriptors, commands and raw bytes into memory and makes entries available, and of a hostile network, which sends
 * frames or what is none. One device is on passt's stream socket. The other is on a tap with two pairs of queues; a
 * datagram socket stands for the tap, for it has a tap's way with frames and needs no privileges. Whatever happened,
 * after a reset a frame must pass each way.
 *
 * The machine stands paused; a go is a resume, which looks at all queues, and a pause: so a run does the same each
 * time.
 */
#include "base/log.h"
#include "tests/fuzz/program.h"
#include "vmm/net/net.h"
#include "vmm/virtio/test_driver.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/virtio_net.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define RING_SIZE 16
#define QUEUES    5
#define PAGES     16ull
#define HEADER    sizeof(struct virtio_net_hdr_v1)

static struct subject {
	struct test_machine machine;
	struct net *net;
	struct virtio_pci *vp;
	struct unit unit;
	struct test_driver driver;
	enum net_kind kind;
	unsigned queues;
	int host[2]; /* the other ends; a tap has one for each pair */
} subjects[2];
static int saved_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static int new_pair(int type, int *host)
{
	int pair[2];

	assert(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, pair) == 0);
	*host = pair[1];
	return pair[0];
}

static void make(struct subject *s, enum net_kind kind, unsigned pairs)
{
	struct net_config config = {
		.name = "fuzz", .kind = kind, .pairs = pairs, .mac = {2}, .mtu = 1500, .thread_count = TEST_THREADS};

	test_machine_adopt(&s->machine);
	s->kind = kind;
	s->queues = 2 * pairs + 1;
	config.threads = s->machine.threads;
	memset(config.vhost_fd, 0xff, sizeof(config.vhost_fd));
	for (unsigned i = 0; i < pairs; i++)
		config.fd[i] = new_pair(kind == NET_TAP ? SOCK_DGRAM : SOCK_STREAM, &s->host[i]);
	test_no_error(net_new(&s->net, &s->machine.memory, &config));
	test_no_error(virtio_pci_new(&s->vp, net_device(s->net), &s->machine.pci, TEST_SLOT));
	s->unit = virtio_pci_unit(s->vp, "fuzz");
	s->unit.ops->pause(s->unit.self);
	atomic_flag_test_and_set(&s->vp->complained);
}

int LLVMFuzzerInitialize(int *, char ***)
{
	log_init("fuzz", LOG_LEVEL_ERROR); /* what a guest breaks is not news here, and no socket is a tap */
	signal(SIGPIPE, SIG_IGN);          /* as the monitor does */
	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	make(&subjects[0], NET_PASST, 1);
	make(&subjects[1], NET_TAP, 2);
	return 0;
}

/* Most lie in the pages in use, some at the end of memory, some anywhere. */
static uint64_t take_address(struct program *p)
{
	uint64_t kind = take(p, 1);

	switch (kind) {
	case 0xff:
		return take(p, 8);
	case 0xfe:
		return TEST_MEMORY - take(p, 1);
	default:
		return TEST_DATA + (kind % PAGES << 12 | take(p, 1) << 4);
	}
}

static uint8_t *ring(struct subject *s, unsigned queue, unsigned offset)
{
	return test_at(&s->machine, TEST_RINGS + queue * TEST_RING_STEP + offset);
}

static void put_descriptor(struct subject *s, struct program *p)
{
	unsigned queue = (unsigned)take(p, 1), i = (unsigned)take(p, 1) % RING_SIZE;
	struct vring_desc d = {.addr = take_address(p)};

	d.len = (uint32_t)take(p, 2);
	d.flags = (uint16_t)take(p, 1) & 7;
	d.next = (uint16_t)take(p, 1);
	if (d.len == 0xffff)
		d.len = (uint32_t)take(p, 4);
	/* High bit: into an indirect table, not the ring's own. */
	uint8_t *table = queue & 0x80 ? test_at(&s->machine, TEST_DATA) : ring(s, queue % s->queues, 0);
	memcpy(table + i * sizeof(d), &d, sizeof(d));
}

static void make_available(struct subject *s, struct program *p)
{
	unsigned queue = (unsigned)take(p, 1) % s->queues;
	struct vring_avail *avail = (struct vring_avail *)ring(s, queue, 0x2000);

	avail->ring[avail->idx % RING_SIZE] = (uint16_t)take(p, 1);
	avail->idx++;
}

static void put_bytes(struct subject *s, struct program *p)
{
	uint64_t at = take_address(p);
	size_t len = MIN(take(p, 1) % 64, p->left);

	if (at >= TEST_MEMORY - len)
		return;
	memcpy(test_at(&s->machine, at), p->data, len);
	p->data += len;
	p->left -= len;
}

/* As many bytes as asked for, those of the program over and over; passt's stream gets a right length, or not. */
static void host_sends(struct subject *s, struct program *p)
{
	static uint8_t buf[4 + 70000];
	unsigned what = (unsigned)take(p, 1);
	size_t len = what & 1 ? take(p, 2) % 300 : take(p, 2);
	uint32_t prefix = htonl((uint32_t)(what & 2 ? take(p, 4) : len));

	memcpy(buf, &prefix, 4);
	memset(buf + 4, (int)take(p, 1), len);
	size_t skip = s->kind == NET_TAP || what & 4 ? 4 : 0;
	if (write(s->host[s->kind == NET_TAP && what & 8 ? 1 : 0], buf + skip, 4 - skip + len) < 0)
		return; /* it is full, or has gone */
}

static void empty_host(struct subject *s)
{
	static uint8_t buf[70000];

	for (unsigned i = 0; i < s->queues / 2; i++)
		while (read(s->host[i], buf, sizeof(buf)) > 0)
			;
}

static void save_and_load(struct subject *u)
{
	struct saved *s;

	assert(ftruncate(saved_fd, 0) == 0 && lseek(saved_fd, 0, SEEK_SET) == 0);
	test_no_error(saved_create(saved_fd, "test", &s));
	test_no_error(saved_unit(s, u->unit.name, u->unit.ops->version, u->unit.ops->state, u->unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	assert(lseek(saved_fd, 0, SEEK_SET) == 0);
	test_no_error(saved_open(saved_fd, "test", &s));
	test_no_error(saved_unit(s, u->unit.name, u->unit.ops->version, u->unit.ops->state, u->unit.self));
	test_no_error(saved_finish(s));
	saved_close(s);
	test_no_error(u->unit.ops->restored(u->unit.self));
}

static void go(struct subject *s)
{
	s->unit.ops->resume(s->unit.self);
	s->unit.ops->pause(s->unit.self);
}

static void begin(struct subject *s, uint64_t features, struct test_ring *rings)
{
	s->unit.ops->reset(s->unit.self);
	test_driver_find(&s->driver, &s->machine, s->vp);
	test_driver_negotiate(&s->driver, features);
	for (unsigned i = 0; i < s->queues; i++)
		test_ring_init(&rings[i], &s->driver, i, RING_SIZE);
	test_driver_ok(&s->driver);
}

static void step(struct subject *s, struct program *p)
{
	switch (take(p, 1) & 7) {
	case 0:
	case 1:
		put_descriptor(s, p);
		break;
	case 2:
		make_available(s, p);
		break;
	case 3:
		put_bytes(s, p);
		break;
	case 4:
		host_sends(s, p);
		break;
	case 5:
		go(s);
		if (take(p, 1) & 1)
			empty_host(s);
		break;
	case 6:
		net_set_link(s->net, take(p, 1) & 3);
		break;
	default:
		save_and_load(s);
	}
}

/* A frame each way. */
static void check(struct subject *s)
{
	struct test_ring rings[QUEUES];
	uint8_t frame[4 + HEADER + 60] = {0}, got[4 + HEADER + 60];
	const uint32_t prefix = htonl(60);

	net_set_link(s->net, true);
	if (s->kind == NET_PASST) {
		close(s->host[0]);
		test_no_error(net_attach(s->net, new_pair(SOCK_STREAM, &s->host[0])));
	} else {
		net_set_link(s->net, false); /* what lies in the tap's queue goes */
		begin(s, ~0ull, rings);
		for (unsigned i = 0; i < 8; i++)
			go(s);
		net_set_link(s->net, true);
	}
	empty_host(s);
	begin(s, ~0ull, rings);
	test_ring_add(&rings[0], &(struct test_buffer){TEST_DATA, 2048, true}, 1, false);
	test_ring_publish(&rings[0]);
	uint8_t *out = test_at(&s->machine, TEST_DATA + 4096);
	memset(out, 0, HEADER);
	memset(out + HEADER, 0x55, 60);
	test_ring_add(&rings[1], &(struct test_buffer){TEST_DATA + 4096, HEADER + 60, false}, 1, false);
	test_ring_publish(&rings[1]);
	memset(frame + 4, 0, HEADER);
	size_t skip = s->kind == NET_TAP ? 4 : HEADER;
	memcpy(frame + HEADER, &prefix, s->kind == NET_TAP ? 0 : 4);
	memset(frame + 4 + HEADER, 0x66, 60);
	assert(write(s->host[0], frame + skip, sizeof(frame) - skip) == (ssize_t)(sizeof(frame) - skip));
	go(s);
	assert(rings[0].used->idx == 1 && rings[0].used->ring[0].len == HEADER + 60);
	assert(((uint8_t *)test_at(&s->machine, TEST_DATA))[HEADER + 59] == 0x66);
	assert(rings[1].used->idx == 1);
	assert(read(s->host[0], got, sizeof(got)) == (s->kind == NET_TAP ? (ssize_t)HEADER + 60 : 64));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct test_ring rings[QUEUES];
	struct program p = {data, size};
	uint64_t what = take(&p, 1);
	struct subject *s = &subjects[what & 1];

	begin(s, what & 2 ? ~(1ull << VIRTIO_NET_F_MRG_RXBUF) : ~0ull, rings);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(s, &p);
	check(s);
	return 0;
}
