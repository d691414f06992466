/*
 * Tests of viewers over real sockets: what they are shown, what they have not seen, input, and those that misbehave.
 */
#include "base/util.h"
#include "vmm/devices/test_bench.h"
#include "vmm/display/link.h"
#include "vmm/display/viewers.h"

#include <errno.h>
#include <linux/input-event-codes.h>
#include <sys/socket.h>

struct board {
	struct bench bench;
	struct bus mmio;
	struct pci_bus pci;
	struct memory memory;
	struct display *display;
	struct i8042 i8042;
	struct input input;
	struct viewers *viewers;
	bool running;
};

static bool running(void *arg)
{
	return ((struct board *)arg)->running;
}

static void no_reset(void *arg)
{
	(void)arg;
}

static int setup(void **state)
{
	static struct board board;
	struct board *b = &board;
	const struct machine_events events = {.reset = no_reset};
	const struct display_config config = {.width = 1024, .height = 768};

	memset(b, 0, sizeof(*b));
	b->running = true;
	bench_init(&b->bench);
	bus_init(&b->mmio, "MMIO");
	assert_ok(pci_bus_init(&b->pci, &b->bench.pio, &b->mmio, &b->bench.irqs, 4 * GIB));
	assert_ok(display_new(&b->display, &b->memory, -1, &b->pci, 1, &config));
	assert_ok(i8042_init(&b->i8042, &b->bench.pio, &b->bench.irqs, &events, true));
	b->input = (struct input){.i8042 = &b->i8042, .display = b->display, .running = running, .arg = b};
	assert_ok(viewers_new(&b->viewers, b->bench.loop, b->display, &b->input));
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct board *b = *state;

	viewers_free(b->viewers);
	display_free(b->display);
	i8042_destroy(&b->i8042);
	pci_bus_destroy(&b->pci);
	bench_destroy(&b->bench);
	return 0;
}

/* The viewer's end of a new link. */
static int attach(struct board *b)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_ok(viewers_attach(b->viewers, pair[1]));
	return pair[0];
}

static void say(struct board *b, int fd, const struct link_event *e)
{
	assert_int_equal(send(fd, e, sizeof(*e), 0), sizeof(*e));
	bench_run(&b->bench, 5);
}

static struct link_view answer(int fd)
{
	struct link_view view;

	assert_int_equal(recv(fd, &view, sizeof(view), MSG_DONTWAIT), sizeof(view));
	return view;
}

static struct link_view look(struct board *b, int fd)
{
	say(b, fd, &(struct link_event){.kind = LINK_LOOK});
	return answer(fd);
}

static unsigned pages(const struct link_view *view)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MEMORY_WINDOW_WORDS; i++)
		n += (unsigned)__builtin_popcountll(view->dirty[i]);
	return n;
}

static bool gone(int fd)
{
	struct link_view view;
	ssize_t len;

	do
		len = recv(fd, &view, sizeof(view), MSG_DONTWAIT);
	while (len > 0);
	return len == 0 || errno != EAGAIN;
}

static void draw(struct board *b, uint64_t page)
{
	b->display->frame[page * PAGE_BYTES] ^= 1;
	memory_window_touched(&b->display->window, page * PAGE_BYTES, 1);
}

static void set_mode(struct board *b)
{
	b->display->vbe[VBE_BPP] = 32;
	b->display->vbe[VBE_XRES] = 800;
	b->display->vbe[VBE_YRES] = 600;
	b->display->vbe[VBE_ENABLE] = VBE_ENABLED;
}

/* The first packet brings the frame buffer, to read and not to write. */
static void frame_comes_along(void **state)
{
	struct board *b = *state;
	int fd = attach(b), frame;
	alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(int))];
	struct link_view view;
	struct iovec iov = {&view, sizeof(view)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};

	assert_int_equal(recvmsg(fd, &msg, 0), sizeof(view));
	assert_int_equal(view.mode.width, 0);
	const struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
	if (!head)
		fail();
	memcpy(&frame, CMSG_DATA(head), sizeof(frame));
	b->display->frame[12345] = 0x42;
	uint8_t *seen = mmap(NULL, DISPLAY_BYTES, PROT_READ, MAP_SHARED, frame, 0);
	assert_ptr_not_equal(seen, MAP_FAILED);
	assert_int_equal(seen[12345], 0x42);
	assert_ptr_equal(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, frame, 0), MAP_FAILED);
	munmap(seen, DISPLAY_BYTES);
	close(frame);
	close(fd);
}

static void each_sees_everything(void **state)
{
	struct board *b = *state;
	int one = attach(b), two = attach(b);

	answer(one);
	answer(two);
	assert_false(b->display->window.tracked);
	set_mode(b);
	struct link_view view = look(b, one);
	assert_int_equal(view.mode.width, 800);
	assert_int_equal(view.mode.stride, 3200);
	assert_int_equal(pages(&view), 4096);
	assert_true(b->display->window.tracked);
	view = look(b, two);
	assert_int_equal(pages(&view), 4096);
	view = look(b, one);
	assert_int_equal(pages(&view), 0);
	draw(b, 7);
	view = look(b, one);
	assert_int_equal(pages(&view), 1);
	draw(b, 8);
	view = look(b, two);
	assert_int_equal(view.dirty[0], 3 << 7);
	view = look(b, one);
	assert_int_equal(view.dirty[0], 1 << 8);
	/* Who rests costs nothing, and sees everything anew. */
	say(b, one, &(struct link_event){.kind = LINK_REST});
	assert_true(b->display->window.tracked);
	close(two);
	bench_run(&b->bench, 5);
	assert_false(b->display->window.tracked);
	assert_int_equal(viewers_count(b->viewers), 1);
	view = look(b, one);
	assert_int_equal(pages(&view), 4096);
	close(one);
}

static void input(void **state)
{
	struct board *b = *state;
	int fd = attach(b);

	say(b, fd, &(struct link_event){.kind = LINK_KEY, .key = {KEY_A, 1}});
	assert_int_equal(in8(&b->bench, I8042_DATA), 0x1e);
	b->running = false;
	say(b, fd, &(struct link_event){.kind = LINK_KEY, .key = {KEY_B, 1}});
	assert_int_equal(in8(&b->bench, I8042_COMMAND) & 1, 0);
	b->running = true;
	/* Without a driver for the tablet the mouse moves: by pixels of the picture. */
	set_mode(b);
	out8(&b->bench, I8042_COMMAND, 0xd4);
	out8(&b->bench, I8042_DATA, 0xf4);
	assert_int_equal(in8(&b->bench, I8042_DATA), 0xfa);
	say(b, fd, &(struct link_event){.kind = LINK_POINTER, .pointer = {16384, 16384, 0, 0}});
	say(b, fd, &(struct link_event){.kind = LINK_POINTER, .pointer = {16384 + 41 * 10, 16384, PS2_BUTTON_LEFT, 0}});
	assert_int_equal(in8(&b->bench, I8042_DATA), 0x09);
	assert_int_equal(in8(&b->bench, I8042_DATA), 10);
	assert_int_equal(in8(&b->bench, I8042_DATA), 0);
	/* A viewer that goes lets go of its keys. */
	close(fd);
	bench_run(&b->bench, 5);
	assert_int_equal(in8(&b->bench, I8042_DATA), 0x9e);
}

static void misbehaviour(void **state)
{
	struct board *b = *state;
	static const struct link_event bad[] = {
		{.kind = 0},
		{.kind = 5},
		{.kind = LINK_KEY, .key = {LINK_KEYS, 1}},
		{.kind = LINK_KEY, .key = {KEY_A, 2}},
		{.kind = LINK_POINTER, .pointer = {TABLET_MAX + 1, 0, 0, 0}},
		{.kind = LINK_POINTER, .pointer = {0, 0, 8, 0}},
		{.kind = LINK_POINTER, .pointer = {0, 0, 0, -9}},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = attach(b);
		say(b, fd, &bad[i]);
		assert_true(gone(fd));
		assert_int_equal(viewers_count(b->viewers), 0);
		close(fd);
	}
	int fd = attach(b);
	assert_int_equal(send(fd, "short", 5, 0), 5);
	bench_run(&b->bench, 5);
	assert_true(gone(fd));
	close(fd);
	/* One that asks and does not read. */
	fd = attach(b);
	for (unsigned i = 0; i < 1000 && viewers_count(b->viewers); i++) {
		const struct link_event e = {.kind = LINK_LOOK};
		if (send(fd, &e, sizeof(e), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 || i % 10 == 9)
			bench_run(&b->bench, 2);
	}
	assert_int_equal(viewers_count(b->viewers), 0);
	close(fd);
}

static void who_may_come(void **state)
{
	struct board *b = *state;
	int fds[VIEWERS_MAX], pair[2];

	assert_error(viewers_attach(b->viewers, b->display->fd), "not a connected UNIX socket");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_error(viewers_attach(b->viewers, pair[0]), "not a connected UNIX socket");
	close(pair[0]);
	close(pair[1]);
	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		fds[i] = attach(b);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_error(viewers_attach(b->viewers, pair[0]), "look already");
	close(pair[0]);
	close(pair[1]);
	for (unsigned i = 0; i < VIEWERS_MAX; i++)
		close(fds[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(frame_comes_along, setup, teardown),
		cmocka_unit_test_setup_teardown(each_sees_everything, setup, teardown),
		cmocka_unit_test_setup_teardown(input, setup, teardown),
		cmocka_unit_test_setup_teardown(misbehaviour, setup, teardown),
		cmocka_unit_test_setup_teardown(who_may_come, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
