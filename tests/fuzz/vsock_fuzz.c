/*
 * Fuzzes virtio-vsock: the input is a program of a hostile guest and of clients of the host, who send packets of all
 * kinds, give buffers of any size, connect, write, read and leave in any order; the machine pauses and is saved in
 * between. The sockets are real ones; the connector's part is played here. Whatever was done, what the device keeps of
 * the guest stays within its bounds, and after a reset it must carry a decent talk.
 */
#include "base/log.h"
#include "tests/fuzz/program.h"
#include "vmm/virtio/test_driver.h"
#include "vmm/vsock/internal.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CID       5
#define RING_SIZE 32
#define ENDS      16

static struct test_machine machine;
static struct vsock *vsock;
static struct virtio_pci *vp;
static struct unit unit;
static struct test_ring rx, tx;
static int listen_fd, talk_fd, saved_fd;
static int end[ENDS]; /* the host's ends of connections */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	const struct sockaddr_un nameless = {.sun_family = AF_UNIX};
	int pair[2];

	test_machine_adopt(&machine);
	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	/* An abstract name that the kernel chooses. */
	assert(bind(listen_fd, (const struct sockaddr *)&nameless, sizeof(sa_family_t)) == 0 &&
	       listen(listen_fd, ENDS) == 0);
	assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
	talk_fd = pair[0];
	const struct vsock_config config = {.cid = CID,
					    .name = "fuzz",
					    .listen_fd = dup(listen_fd),
					    .connector_fd = pair[1],
					    .thread = machine.threads[0]};
	test_no_error(vsock_new(&vsock, &machine.memory, &config));
	test_no_error(virtio_pci_new(&vp, vsock_device(vsock), &machine.pci, TEST_SLOT));
	unit = virtio_pci_unit(vp, "fuzz");
	unit.ops->pause(unit.self);
	atomic_flag_test_and_set(&vp->complained);
	for (unsigned i = 0; i < ENDS; i++)
		end[i] = -1;
	log_init("fuzz", LOG_LEVEL_ERROR);
	signal(SIGPIPE, SIG_IGN); /* as the monitor does */
	return 0;
}

/* The machine runs for a moment: all that is there is served. */
static void kick(void)
{
	const unsigned nothing = 0;

	unit.ops->resume(unit.self);
	for (unsigned i = 0; i < 4; i++) {
		sockets_poll(&vsock->sockets);
		iothread_drain(machine.threads[0], &nothing);
	}
	unit.ops->pause(unit.self);
	for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX && vsock->used; i++) {
		const struct connection *c = &vsock->connection[i];
		assert(c->received - c->forwarded <= VSOCK_BUFFER_BYTES);
		assert(c->state != OPEN || c->socket.fd >= 0);
	}
	assert(vsock->active_count <= VSOCK_CONNECTIONS_MAX && vsock->reset_count <= RESETS);
}

static int *free_end(void)
{
	for (unsigned i = 0; i < ENDS; i++)
		if (end[i] < 0)
			return &end[i];
	return NULL;
}

/* Answers one request of the connector's, rightly when @good. */
static bool answer(uint64_t good)
{
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))] = {0};
	struct connector_request ask;
	int pair[2] = {-1, -1}, *mine = free_end();

	if (read(talk_fd, &ask, sizeof(ask)) != sizeof(ask))
		return false;
	struct connector_answer words = {.place = ask.place, .generation = ask.generation + (good == 2)};
	struct iovec iov = {&words, sizeof(words)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	if (good && mine && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0) {
		msg.msg_control = ancillary;
		msg.msg_controllen = sizeof(ancillary);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		*c = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
		memcpy(CMSG_DATA(c), &pair[1], sizeof(int));
		*mine = pair[0];
	}
	assert(sendmsg(talk_fd, &msg, MSG_NOSIGNAL) == sizeof(words));
	close(pair[1]);
	return true;
}

/* A client of the host arrives and says something. */
static void arrive(struct program *p)
{
	static const char *const words[] = {"CONNECT 1\n", "CONNECT 2\r\nx", "CONNECT 3", "CONN", "CONNECT x\n"};
	struct sockaddr_un addr;
	socklen_t len = sizeof(addr);
	int *mine = free_end();

	if (!mine)
		return;
	assert(getsockname(listen_fd, (struct sockaddr *)&addr, &len) == 0);
	*mine = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (connect(*mine, (struct sockaddr *)&addr, len) < 0)
		return;
	const char *text = words[take(p, 1) % ARRAY_SIZE(words)];
	(void)!write(*mine, text, strlen(text));
}

static void send_packet(const struct virtio_vsock_hdr *hdr, uint32_t len, bool split)
{
	uint64_t at = TEST_DATA + (tx.avail_idx % RING_SIZE) * 0x20000ull;
	struct test_buffer b[2] = {{at, split ? 20 : len, false}, {at + 20, len - 20, false}};
	uint16_t head;
	uint32_t used;

	while (test_ring_take(&tx, &head, &used))
		;
	if (tx.free_count < 2)
		return;
	memcpy(test_at(&machine, at), hdr, sizeof(*hdr));
	test_ring_add(&tx, b, split ? 2 : 1, false);
	(void)test_ring_publish(&tx);
}

static void send_some(struct program *p)
{
	uint64_t kind = take(p, 1), ports = take(p, 1), len = take(p, 1);
	struct virtio_vsock_hdr hdr = {.src_cid = CID,
				       .dst_cid = HOST_CID,
				       .src_port = ports % 4,
				       .dst_port = ports >> 2 & 3,
				       .type = VIRTIO_VSOCK_TYPE_STREAM,
				       .op = kind % 9,
				       .buf_alloc = 0x10000,
				       .len = (uint32_t)(len * 300)};

	if (ports & 0x40) /* the port of a client of the host */
		hdr.dst_port = vsock->next_port - (ports >> 4 & 1);
	if (hdr.op == VIRTIO_VSOCK_OP_SHUTDOWN)
		hdr.flags = (uint32_t)len & 3;
	if (hdr.op != VIRTIO_VSOCK_OP_RW)
		hdr.len = 0;
	uint32_t bytes = hdr.len;
	if (kind & 0x80) { /* one field is something else */
		uint64_t at = take(p, 1) % sizeof(hdr);
		for (uint64_t n = take(p, 1) % 8 + 1; n && at < sizeof(hdr); n--)
			((uint8_t *)&hdr)[at++] = (uint8_t)take(p, 1);
	}
	uint32_t total = (uint32_t)sizeof(hdr) + bytes;
	if (kind & 0x40)
		total = (uint32_t)take(p, 1) + 1;
	send_packet(&hdr, total, (kind & 0x20) && total > 20);
}

static void give_buffer(uint32_t len)
{
	uint16_t head;
	uint32_t used;

	while (test_ring_take(&rx, &head, &used))
		assert(used >= sizeof(struct virtio_vsock_hdr));
	if (rx.free_count)
		test_ring_add(&rx, &(struct test_buffer){TEST_DATA + 8 * MIB, len ? len : 1, true}, 1, false);
	(void)test_ring_publish(&rx);
}

static void save_and_load(void)
{
	test_no_error(test_save(&unit, saved_fd));
	test_no_error(test_load(&unit, saved_fd));
}

static void step(struct program *p)
{
	static uint8_t some[0x10000];
	uint64_t what = take(p, 1);
	int *mine = &end[what >> 4];

	switch (what & 15) {
	case 0:
	case 1:
	case 2:
		send_some(p);
		break;
	case 3:
		give_buffer(sizeof(struct virtio_vsock_hdr) + 4096);
		break;
	case 4:
		give_buffer((uint32_t)take(p, 1));
		break;
	case 5:
		arrive(p);
		break;
	case 6:
		(void)answer(take(p, 1) % 4);
		break;
	case 7:
		(void)!write(*mine, some, take(p, 1) * 256);
		break;
	case 8:
		(void)!read(*mine, some, take(p, 1) * 256);
		break;
	case 9:
		if (*mine >= 0)
			close(*mine);
		*mine = -1;
		break;
	case 10:
		(void)shutdown(*mine, (int)take(p, 1) % 3);
		break;
	case 11:
		if (what & 0x80)
			save_and_load();
		break;
	default:
		kick();
	}
}

static void start_driver(struct test_driver *d, uint64_t without)
{
	test_driver_negotiate(d, ~without);
	test_ring_init(&rx, d, 0, RING_SIZE);
	test_ring_init(&tx, d, 1, RING_SIZE);
	test_driver_ok(d);
}

static void clean_up(void)
{
	while (answer(0))
		;
	for (unsigned i = 0; i < ENDS; i++) {
		if (end[i] >= 0)
			close(end[i]);
		end[i] = -1;
	}
}

/* The device lives: a guest connects and is heard. */
static void check(struct test_driver *d)
{
	struct virtio_vsock_hdr hdr = {.src_cid = CID,
				       .dst_cid = HOST_CID,
				       .src_port = 9,
				       .dst_port = 9,
				       .type = VIRTIO_VSOCK_TYPE_STREAM,
				       .op = VIRTIO_VSOCK_OP_REQUEST};
	char got[8];

	start_driver(d, 0);
	kick(); /* what waited at the listener comes and goes */
	give_buffer(4096);
	send_packet(&hdr, sizeof(hdr), false);
	kick();
	assert(answer(1));
	kick();
	hdr.op = VIRTIO_VSOCK_OP_RW;
	hdr.len = 5;
	memcpy(test_at(&machine, TEST_DATA + (tx.avail_idx % RING_SIZE) * 0x20000ull + sizeof(hdr)), "hello", 5);
	send_packet(&hdr, sizeof(hdr) + 5, false);
	kick();
	assert(rx.used->idx == 1 && read(end[0], got, sizeof(got)) == 5 && memcmp(got, "hello", 5) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};
	struct test_driver d;

	test_driver_find(&d, &machine, vp);
	start_driver(&d, (take(&p, 1) & 1) << VIRTIO_RING_F_EVENT_IDX);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p);
	kick();
	clean_up();
	test_write(&d, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	check(&d);
	clean_up();
	test_write(&d, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	kick();
	assert(vsock->used == 0);
	return 0;
}
