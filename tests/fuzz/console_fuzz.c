/*
 * Fuzzes virtio-console: the input is a program of a hostile guest and of clients of the host. The guest sends control
 * messages and bytes, gives buffers, in chains of any shape; clients come, write, read and leave; the machine pauses
 * and is saved in between. Whatever was done, after a reset the device must introduce its port and carry bytes.
 */
#include "tests/fuzz/program.h"
#include "vmm/virtio/console.h"
#include "vmm/virtio/test_driver.h"

#include <linux/virtio_console.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PORTS     3 /* the console, one with clients, one whose client is there for good */
#define QUEUES    (2 + 2 * PORTS)
#define RING_SIZE 16
#define ENDS      4

static struct test_machine machine;
static struct console *console;
static struct virtio_pci *vp;
static struct unit unit;
static struct test_ring ring[QUEUES];
static int listen_fd[2], peer, saved_fd;
static int end[ENDS]; /* clients */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static int make_listener(void)
{
	const struct sockaddr_un nameless = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	/* An abstract name that the kernel chooses. */
	assert(bind(fd, (const struct sockaddr *)&nameless, sizeof(sa_family_t)) == 0 && listen(fd, ENDS) == 0);
	return fd;
}

int LLVMFuzzerInitialize(int *, char ***)
{
	int pair[2];

	signal(SIGPIPE, SIG_IGN); /* as the monitor does */
	test_machine_adopt(&machine);
	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	listen_fd[0] = make_listener();
	listen_fd[1] = make_listener();
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
	peer = pair[0];
	const struct console_config config = {
		.ports = PORTS,
		.port = {{NULL, dup(listen_fd[0]), -1}, {"clients", dup(listen_fd[1]), -1}, {"peer", -1, pair[1]}},
		.thread = machine.threads[0]};
	test_no_error(console_new(&console, &machine.memory, &config));
	test_no_error(virtio_pci_new(&vp, console_device(console), &machine.pci, TEST_SLOT));
	unit = virtio_pci_unit(vp, "fuzz");
	unit.ops->pause(unit.self);
	atomic_flag_test_and_set(&vp->complained);
	for (unsigned i = 0; i < ENDS; i++)
		end[i] = -1;
	return 0;
}

/* The machine runs for a moment: all that is there is served. */
static void kick(void)
{
	unit.ops->resume(unit.self);
	for (unsigned i = 0; i < 4; i++) {
		const unsigned nothing = 0;
		console_poll(console);
		iothread_drain(machine.threads[0], &nothing);
	}
	unit.ops->pause(unit.self);
}

static void add(unsigned q, uint64_t address, uint32_t len, bool writable, bool split)
{
	struct test_ring *r = &ring[q];
	uint32_t first = split ? len / 2 + 1 : len;
	struct test_buffer b[2] = {{address, first, writable}, {address + first, len - first, writable}};
	uint16_t head;
	uint32_t used;

	while (test_ring_take(r, &head, &used))
		;
	if (len == 0 || r->free_count < 2)
		return;
	test_ring_add(r, b, split && len > first ? 2 : 1, false);
	(void)test_ring_publish(r);
}

static void control(struct program *p)
{
	uint64_t at = TEST_DATA + (ring[3].avail_idx % RING_SIZE) * 64ull, what = take(p, 1);
	const struct virtio_console_control m = {(uint32_t)(what >> 4 & 3) * (what & 0x80 ? 0x40000001u : 1u),
						 (uint16_t)(what & 15), (uint16_t)take(p, 1)};

	memcpy(test_at(&machine, at), &m, sizeof(m));
	add(3, at, what & 0x40 ? (uint32_t)take(p, 1) % 16 : sizeof(m), false, what & 1);
}

static void arrive(unsigned which, int *mine)
{
	struct sockaddr_un addr;
	socklen_t len = sizeof(addr);

	if (*mine >= 0)
		return;
	assert(getsockname(listen_fd[which], (struct sockaddr *)&addr, &len) == 0);
	*mine = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	(void)!connect(*mine, (struct sockaddr *)&addr, len);
}

static void save_and_load(void)
{
	test_no_error(test_save(&unit, saved_fd));
	test_no_error(test_load(&unit, saved_fd));
}

static void step(struct program *p)
{
	static uint8_t some[0x20000];
	uint64_t what = take(p, 1);
	unsigned q = what >> 4 & 7;
	int *mine = what & 0x80 ? &peer : &end[q % ENDS];

	switch (what & 15) {
	case 0:
	case 1:
		control(p);
		break;
	case 2:
	case 3:
		add(q, TEST_DATA + MIB, (uint32_t)take(p, 1) * 512, !(q & 1), what & 0x80);
		break;
	case 4: /* the wrong way round, or nowhere */
		add(q, what & 0x80 ? ~0ull - take(p, 2) : TEST_DATA + MIB, (uint32_t)take(p, 2), q & 1, false);
		break;
	case 5:
		arrive(q & 1, mine);
		break;
	case 6:
		(void)!write(*mine, some, take(p, 1) * 512);
		break;
	case 7:
		(void)!read(*mine, some, take(p, 1) * 512);
		break;
	case 8:
		if (mine != &peer && *mine >= 0) {
			close(*mine);
			*mine = -1;
		}
		break;
	case 9:
		if (what & 0x80)
			save_and_load();
		break;
	case 10:
		(void)console_guest_open(console, "clients");
		break;
	default:
		kick();
	}
}

static void start_driver(struct test_driver *d, uint64_t without)
{
	test_driver_negotiate(d, ~without);
	for (unsigned q = 0; q < QUEUES; q++)
		test_ring_init(&ring[q], d, q, RING_SIZE);
	test_driver_ok(d);
}

static void clean_up(void)
{
	static uint8_t some[0x20000];

	for (unsigned i = 0; i < ENDS; i++) {
		if (end[i] >= 0)
			close(end[i]);
		end[i] = -1;
	}
	while (read(peer, some, sizeof(some)) > 0)
		;
}

/* The device lives: a port is introduced, and its client hears the guest. */
static void check(struct test_driver *d)
{
	struct virtio_console_control m = {1, VIRTIO_CONSOLE_PORT_READY, 1};
	char got[8];

	start_driver(d, 0);
	kick(); /* what waited at the listeners comes and goes */
	kick();
	arrive(1, &end[0]);
	for (unsigned i = 0; i < 2; i++)
		add(2, TEST_DATA + 4096 + i * 128, 128, true, false);
	memcpy(test_at(&machine, TEST_DATA), &m, sizeof(m));
	add(3, TEST_DATA, sizeof(m), false, false);
	kick();
	kick();
	assert(__atomic_load_n(&ring[2].used->idx, __ATOMIC_ACQUIRE) == 2);
	assert(memcmp((char *)test_at(&machine, TEST_DATA + 4096) + sizeof(m), "clients", 7) == 0);
	memcpy(test_at(&machine, TEST_DATA + MIB), "hello", 5);
	add(5, TEST_DATA + MIB, 5, false, true);
	kick();
	assert(read(end[0], got, sizeof(got)) == 5 && memcmp(got, "hello", 5) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};
	struct test_driver d;
	uint64_t flags = take(&p, 1);

	test_driver_find(&d, &machine, vp);
	start_driver(&d, (flags & 1) << VIRTIO_RING_F_EVENT_IDX | (flags >> 1 & 1) << VIRTIO_CONSOLE_F_MULTIPORT);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p);
	kick();
	clean_up();
	kick();
	test_write(&d, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	check(&d);
	clean_up();
	return 0;
}
