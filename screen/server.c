/*
 * The VNC server between viewers and a machine's display; see screen.h. One thread: libvncserver waits for its viewers
 * for a frame's time, then the link and the door are looked at. Nobody there: it sleeps until somebody comes.
 *
 * Touches: the listening socket and those accepted from it, the link, the frame buffer (read only).
 */
#include "screen/screen.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/devices/ps2.h"
#include "vmm/display/link.h"
#include "vmm/virtio/tablet.h"

#include <errno.h>
#include <poll.h>
#include <rfb/rfb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAME_US       33000 /* viewers are shown no more than 30 pictures a second */
#define SEND_PATIENCE  5000  /* milliseconds for a viewer that does not read; the others wait with it */
#define BYTES_A_PIXEL  4u
#define EMPTY_WIDTH    640u /* of the black picture while the guest shows none */
#define EMPTY_HEIGHT   480u
#define RFB_LEFT       1
#define RFB_MIDDLE     2
#define RFB_RIGHT      4
#define RFB_WHEEL_UP   8
#define RFB_WHEEL_DOWN 16

struct server {
	int listen_fd, link_fd;
	const uint8_t *frame; /* the guest's, DISPLAY_BYTES */
	struct display_mode mode;
	uint32_t leds;
	rfbScreenInfoPtr rfb;
	uint32_t *picture; /* ours, what viewers are sent */
	bool asked;        /* the monitor has a question of ours */
	unsigned viewers;
};

static struct server server;

/* --- the link --- */

static bool tell(const struct link_event *e)
{
	return send(server.link_fd, e, sizeof(*e), MSG_NOSIGNAL) == (ssize_t)sizeof(*e);
}

static void on_key(rfbBool down, rfbKeySym keysym, rfbClientPtr client)
{
	unsigned code = screen_key(keysym);

	(void)client;
	if (code)
		tell(&(struct link_event){.kind = LINK_KEY, .key = {code, down != 0}});
}

/* A viewer's pixel to the tablet's coordinates: the middle of the pixel. */
static uint32_t to_tablet(int at, int size)
{
	int bounded = at < 0 ? 0 : at >= size ? size - 1 : at;

	return (uint32_t)((2 * (uint64_t)bounded + 1) * (TABLET_MAX + 1) / (2 * (uint64_t)size));
}

static void on_pointer(int mask, int x, int y, rfbClientPtr client)
{
	intptr_t before = (intptr_t)client->clientData;
	int pressed = mask & ~(int)before;
	struct link_event e = {.kind = LINK_POINTER,
			       .pointer = {
				       .x = to_tablet(x, server.rfb->width),
				       .y = to_tablet(y, server.rfb->height),
				       .buttons = (mask & RFB_LEFT ? PS2_BUTTON_LEFT : 0) |
						  (mask & RFB_RIGHT ? PS2_BUTTON_RIGHT : 0) |
						  (mask & RFB_MIDDLE ? PS2_BUTTON_MIDDLE : 0),
				       .wheel = (pressed & RFB_WHEEL_UP ? 1 : 0) - (pressed & RFB_WHEEL_DOWN ? 1 : 0),
			       }};

	client->clientData = (void *)(intptr_t)mask;
	tell(&e);
}

static int on_leds(rfbScreenInfoPtr rfb)
{
	(void)rfb;
	return (server.leds & PS2_LED_CAPS ? rfbKeyboardMaskCapsLock : 0) |
	       (server.leds & PS2_LED_NUM ? rfbKeyboardMaskNumLock : 0) |
	       (server.leds & PS2_LED_SCROLL ? rfbKeyboardMaskScrollLock : 0);
}

/* Trusts the monitor, but not with this process: a picture lies inside the frame buffer. */
static bool believable(const struct display_mode *m)
{
	return m->width == 0 ||
	       (m->height > 0 && m->width <= DISPLAY_BYTES && m->stride >= m->width * (uint64_t)BYTES_A_PIXEL &&
		range_inside(m->offset, m->stride * (m->height - (uint64_t)1) + m->width * (uint64_t)BYTES_A_PIXEL,
			     DISPLAY_BYTES));
}

/* False at the end of the link. */
static bool receive(struct link_view *view, int flags, int *frame_fd)
{
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {view, sizeof(*view)};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof(ancillary)};
	ssize_t len = recvmsg(server.link_fd, &msg, flags | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *head = len > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && frame_fd)
		memcpy(frame_fd, CMSG_DATA(head), sizeof(*frame_fd));
	return len == (ssize_t)sizeof(*view) && believable(&view->mode);
}

/* --- the picture --- */

/* The shown size differs from the mode's while there is no picture. */
static uint32_t shown_width(void)
{
	return server.mode.width ? server.mode.width : EMPTY_WIDTH;
}

static uint32_t shown_height(void)
{
	return server.mode.width ? server.mode.height : EMPTY_HEIGHT;
}

/* Copies row @y. False when it was the same; else [*from, *to) are the pixels that changed. */
static bool copy_row(uint32_t y, uint32_t *from, uint32_t *to)
{
	uint32_t width = server.mode.width, *ours = server.picture + (size_t)y * width;
	const uint32_t *theirs = (const uint32_t *)(server.frame + server.mode.offset + (size_t)y * server.mode.stride);

	*from = width;
	*to = 0;
	for (uint32_t x = 0; x < width; x++) {
		uint32_t pixel = __atomic_load_n(&theirs[x], __ATOMIC_RELAXED);
		if (pixel == ours[x])
			continue;
		ours[x] = pixel;
		*from = MIN(*from, x);
		*to = x + 1;
	}
	return *to > 0;
}

/* Rows first..last of the picture may have changed: tells viewers of those that did, rows side by side together. */
static void update_rows(uint32_t first, uint32_t last)
{
	uint32_t left = UINT32_MAX, right = 0, top = 0;

	for (uint32_t y = first; y <= last + 1; y++) {
		uint32_t from, to;
		if (y <= last && copy_row(y, &from, &to)) {
			if (!right)
				top = y;
			left = MIN(left, from);
			right = MAX(right, to);
		} else if (right) {
			rfbMarkRectAsModified(server.rfb, (int)left, (int)top, (int)right, (int)y);
			left = UINT32_MAX;
			right = 0;
		}
	}
}

/* The rows that run of pages [first, end) touches. */
static void update_pages(unsigned first, unsigned end)
{
	const struct display_mode *m = &server.mode;
	uint64_t from = first * PAGE_BYTES, to = end * PAGE_BYTES;
	uint64_t picture_end = m->offset + m->stride * (uint64_t)m->height;

	if (to <= m->offset || from >= picture_end)
		return;
	from = MAX(from, (uint64_t)m->offset) - m->offset;
	to = MIN(to, picture_end) - m->offset;
	update_rows((uint32_t)(from / m->stride), (uint32_t)((to - 1) / m->stride));
}

static bool is_dirty(const struct link_view *view, unsigned page)
{
	return view->dirty[page / 64] >> page % 64 & 1;
}

static void update(const struct link_view *view)
{
	for (unsigned page = 0; page < MEMORY_WINDOW_PAGES; page++) {
		unsigned first = page;
		while (page < MEMORY_WINDOW_PAGES && is_dirty(view, page))
			page++;
		if (page > first && server.mode.width)
			update_pages(first, page);
	}
}

/* As the guest's pixels are; libvncserver begins with the colours the other way round, at each change of size too. */
static void set_format(rfbScreenInfoPtr rfb)
{
	rfb->serverFormat.redShift = 16;
	rfb->serverFormat.greenShift = 8;
	rfb->serverFormat.blueShift = 0;
	for (rfbClientPtr client = rfb->clientHead; client; client = client->next)
		rfb->setTranslateFunction(client);
}

static void show_picture(void)
{
	rfbNewFramebuffer(server.rfb, (char *)server.picture, (int)shown_width(), (int)shown_height(), 8, 3,
			  BYTES_A_PIXEL);
	set_format(server.rfb);
}

/* A picture of another size or place: a new copy, which viewers are sent whole. */
static struct error *change_mode(const struct display_mode *mode)
{
	server.mode = *mode;
	uint32_t *picture = calloc((size_t)shown_width() * shown_height(), BYTES_A_PIXEL);
	if (!picture)
		return error_new(ENOMEM, "make room for a picture of %ux%u", shown_width(), shown_height());
	uint32_t *old = server.picture;
	server.picture = picture;
	if (server.rfb)
		show_picture();
	free(old);
	if (server.rfb && mode->width)
		update_rows(0, mode->height - 1);
	return NULL;
}

/* --- viewers --- */

static void on_gone(rfbClientPtr client)
{
	(void)client;
	server.viewers--;
}

static enum rfbNewClientAction on_new(rfbClientPtr client)
{
	if (server.viewers >= SCREEN_VIEWERS_MAX)
		return RFB_CLIENT_REFUSE;
	server.viewers++;
	client->clientData = NULL;
	client->clientGoneHook = on_gone;
	return RFB_CLIENT_ACCEPT;
}

static void accept_viewer(void)
{
	int fd = accept4(server.listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd >= 0)
		rfbNewClient(server.rfb, fd); /* which becomes its own, also when it refuses */
}

/* What libvncserver has to say is about single viewers, and theirs to provoke. */
[[gnu::format(printf, 1, 2)]] static void on_words(const char *format, ...)
{
	char words[256];
	va_list args;

	va_start(args, format);
	vsnprintf(words, sizeof(words), format, args);
	va_end(args);
	words[strcspn(words, "\n")] = '\0';
	log_debug("vnc: %s", words);
}

static struct error *make_rfb(const char *name)
{
	int argc = 0;

	rfbLog = on_words;
	rfbErr = on_words;
	server.rfb = rfbGetScreen(&argc, NULL, (int)shown_width(), (int)shown_height(), 8, 3, BYTES_A_PIXEL);
	if (!server.rfb)
		return error_new(ENOMEM, "make a VNC server");
	rfbScreenInfoPtr rfb = server.rfb;
	rfb->frameBuffer = (char *)server.picture;
	set_format(rfb);
	rfb->desktopName = name;
	rfb->alwaysShared = TRUE;
	rfb->cursor = NULL; /* the guest draws its own */
	rfb->port = 0;      /* viewers come through our door only */
	rfb->ipv6port = 0;
	rfb->autoPort = FALSE;
	rfb->maxClientWait = SEND_PATIENCE;
	rfb->kbdAddEvent = on_key;
	rfb->ptrAddEvent = on_pointer;
	rfb->newClientHook = on_new;
	rfb->getKeyboardLedStateHook = on_leds;
	rfbInitServer(rfb);
	return NULL;
}

/* --- the loop --- */

/* Waits for an event on the door or the link; 0 looks only. False at the link's end. */
static struct error *attend(int timeout_ms, bool *over)
{
	struct pollfd p[] = {{.fd = server.listen_fd, .events = POLLIN}, {.fd = server.link_fd, .events = POLLIN}};
	struct link_view view;

	if (poll(p, 2, timeout_ms) < 0)
		return errno == EINTR ? NULL : error_new(errno, "wait for viewers");
	if (p[0].revents & POLLIN)
		accept_viewer();
	if (!p[1].revents)
		return NULL;
	*over = !receive(&view, MSG_DONTWAIT, NULL);
	if (*over)
		return NULL;
	server.asked = false;
	server.leds = view.leds;
	if (memcmp(&view.mode, &server.mode, sizeof(view.mode)) != 0)
		return change_mode(&view.mode);
	update(&view);
	return NULL;
}

static void ask(void)
{
	if (!server.asked)
		server.asked = tell(&(struct link_event){.kind = LINK_LOOK});
}

static struct error *loop(void)
{
	bool over = false;

	while (!over) {
		if (server.viewers == 0) {
			tell(&(struct link_event){.kind = LINK_REST});
			do
				TRY(attend(-1, &over));
			while (!over && server.viewers == 0);
			continue;
		}
		ask();
		rfbProcessEvents(server.rfb, FRAME_US);
		TRY(attend(0, &over));
	}
	log_info("the machine has ended");
	return NULL;
}

struct error *screen_serve(const char *name, int listen_fd, int link_fd, struct error *(*enter)(void))
{
	struct link_view view;
	int frame_fd = -1;

	server = (struct server){.listen_fd = listen_fd, .link_fd = link_fd};
	if (!receive(&view, 0, &frame_fd) || frame_fd < 0)
		return error_new(EPROTO, "the monitor does not send its frame buffer");
	void *frame = mmap(NULL, DISPLAY_BYTES, PROT_READ, MAP_SHARED, frame_fd, 0);
	int saved_errno = errno;
	close(frame_fd);
	if (frame == MAP_FAILED)
		return error_new(saved_errno, "map the frame buffer");
	server.frame = frame;
	TRY(change_mode(&view.mode));
	TRY(make_rfb(name));
	if (enter)
		TRY(enter());
	return loop();
}
