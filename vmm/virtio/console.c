/*
 * virtio-console; see console.h. Runs on its I/O thread. Touches guest memory through its queues, and the sockets of
 * its ports.
 *
 * Nothing is buffered here. Towards the guest, its buffers are filled straight from the socket. Towards the host, they
 * are written straight to it; one of which the socket took a part stays in the ring, untaken, and only how much of it
 * went is remembered (port->taken). So a ring and a few numbers are all that a move has to carry.
 *
 * What the guest is to be told of a port (5.3.6.2) are bits of that port, not messages in a queue: however often a
 * client comes and goes, or a guest asks, there is nothing to fill up.
 *
 * Everything but the guest_open flags belongs to the I/O thread; while the queues stand still, events of sockets only
 * set flags that no saved state has.
 */
#include "vmm/virtio/console.h"

#include "base/cleanup.h"
#include "vmm/machine/sockets.h"
#include "vmm/virtio/iov.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#define QUEUE_SIZE  64
#define CONTROL_RX  2
#define CONTROL_TX  3
#define CHAINS_A_GO 32 /* of one queue, so that other devices of the thread have their turn */

/* What a guest is to be told of a port, in this order. */
enum { OWE_ADD = 1, OWE_NAME = 2, OWE_CONSOLE = 4, OWE_CLOSE = 8, OWE_OPEN = 16 };
#define OWE_ALL 31u

struct port {
	struct console *console;
	unsigned id;
	bool exists; /* port 0 has queues even when there is no console */
	bool is_console;
	char name[CONSOLE_NAME_MAX + 1];
	struct socket_watch listener, client;

	/* What sockets said. */
	bool waiting;  /* somebody may wait at the listener */
	bool readable; /* the client may have sent something */
	bool left;     /* the client is gone; what it wrote may not be read yet */
	bool full;     /* the client does not read: the transmit queue waits */

	/* What is saved. */
	bool ready;             /* the guest knows the port */
	bool told;              /* the guest was told that a client is there */
	bool awaited;           /* one was, before a move, and has not come back */
	atomic_bool guest_open; /* the guest has opened it */
	uint8_t owes;
	uint32_t taken; /* bytes of the next chain to the host that it has */
};

struct console {
	struct virtio_device device;
	struct iothread *thread;
	struct sockets sockets;
	struct socket_watch timer; /* of patience with clients that do not come back */
	struct io_batch batch;
	unsigned ports; /* 0 and those with a name */
	struct port port[CONSOLE_PORTS_MAX];
};

static struct console *of(const struct virtio_device *dev)
{
	return (struct console *)((char *)(uintptr_t)dev - offsetof(struct console, device));
}

static unsigned rx_of(const struct port *port)
{
	return port->id ? 2 + 2 * port->id : 0;
}

static unsigned tx_of(const struct port *port)
{
	return rx_of(port) + 1;
}

static bool runs(const struct console *c)
{
	return c->device.queue[0].running || c->device.queue[CONTROL_RX].running;
}

/* All ports are looked at before the thread waits again. */
static void wake(struct console *c)
{
	iothread_at_end(c->thread, &c->batch);
}

/* --- clients --- */

static void attached(struct port *port)
{
	port->readable = true;
	port->left = port->full = false;
	port->taken = port->awaited ? port->taken : 0;
	port->awaited = false;
	if (port->ready && !(port->told && !(port->owes & OWE_CLOSE)))
		port->owes |= OWE_OPEN;
}

static void detach(struct port *port)
{
	sockets_close(&port->console->sockets, &port->client);
	port->readable = port->left = port->full = false;
	if (port->taken)
		port->taken = UINT32_MAX; /* the rest of that chain is for nobody */
	if (port->owes & OWE_OPEN)
		port->owes &= (uint8_t)~OWE_OPEN;
	else if (port->told)
		port->owes |= OWE_CLOSE;
	port->waiting = true;
	wake(port->console);
}

static void look_for_client(struct port *port)
{
	struct console *c = port->console;

	if (!port->waiting || port->client.fd >= 0 || port->listener.fd < 0)
		return;
	port->waiting = false;
	port->client.fd = sockets_accept(port->listener.fd);
	if (port->client.fd < 0) {
		port->waiting = errno != EAGAIN; /* out of descriptors: looked at again */
		return;
	}
	if (sockets_add(&c->sockets, &port->client))
		attached(port);
	else
		close_fd(&port->client.fd);
}

static void listener_ready(struct socket_watch *watch, uint32_t)
{
	struct port *port = (struct port *)((char *)watch - offsetof(struct port, listener));

	port->waiting = true;
	wake(port->console);
}

static void client_ready(struct socket_watch *watch, uint32_t events)
{
	struct port *port = (struct port *)((char *)watch - offsetof(struct port, client));

	port->readable = true;
	port->left = port->left || events & (EPOLLHUP | EPOLLERR);
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		port->full = false;
	wake(port->console);
}

/* Nobody came back: what the guest was told is not true any more. */
static void patience_ends(struct socket_watch *watch, uint32_t)
{
	struct console *c = (struct console *)((char *)watch - offsetof(struct console, timer));
	uint64_t count;

	if (read(watch->fd, &count, sizeof(count)) < 0 || !runs(c))
		return;
	for (unsigned i = 0; i < c->ports; i++) {
		struct port *port = &c->port[i];
		if (!port->awaited)
			continue;
		port->awaited = false;
		port->taken = port->taken ? UINT32_MAX : 0;
		port->owes |= OWE_CLOSE;
	}
	wake(c);
}

/* --- bytes to the guest --- */

static bool guest_listens(const struct port *port)
{
	return port->is_console || atomic_load_explicit(&port->guest_open, memory_order_relaxed);
}

/* Whether a client that left wrote nothing that is still to be read: seen without a buffer of the guest. */
static bool drained(const struct port *port)
{
	char byte;

	return recv(port->client.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
}

/* Fills one chain from the client. False when there is nothing (more). */
static bool fill(struct port *port, struct virtqueue *ring, const struct virtqueue_chain *chain)
{
	ssize_t n;

	if (chain->writable == 0) {
		virtqueue_push(ring, chain->head, 0);
		return true;
	}
	do
		n = readv(port->client.fd, chain->iov + chain->readable, (int)chain->writable);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		virtqueue_push(ring, chain->head, (uint32_t)n);
		return true;
	}
	virtqueue_unpop(ring);
	port->readable = false;
	if (n == 0 || errno != EAGAIN)
		detach(port);
	return false;
}

static void serve_rx(struct port *port)
{
	struct virtio_queue *queue = &port->console->device.queue[rx_of(port)];
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtqueue_chain chain;
	unsigned n = 0;

	if (port->client.fd < 0)
		return;
	if (port->left && (!guest_listens(port) || drained(port)))
		detach(port);
	if (!virtio_may_take(queue) || port->client.fd < 0 || !port->readable || !guest_listens(port))
		return;
	virtqueue_quiet(&queue->ring);
	while (n < CHAINS_A_GO && port->readable) {
		result = virtqueue_pop(&queue->ring, &chain);
		if (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring))
			continue;
		if (result != VIRTQUEUE_CHAIN || !fill(port, &queue->ring, &chain))
			break;
		n++;
	}
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (n == CHAINS_A_GO)
		wake(port->console);
}

/* --- bytes to the host --- */

/* Hands one chain on. False when it must stay in the ring. */
static bool forward(struct port *port, struct virtqueue_chain *chain)
{
	struct iov rest = {chain->iov, chain->readable};
	ssize_t n;

	if (port->client.fd < 0)
		return !port->awaited;
	uint32_t left = chain->readable_bytes - MIN(port->taken, chain->readable_bytes);
	iov_skip(&rest, port->taken);
	if (left == 0)
		return true;
	do
		n = writev(port->client.fd, rest.v, (int)rest.count);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN) {
		detach(port);
		return true;
	}
	if (port->is_console || n == (ssize_t)left)
		return true;
	port->taken += n > 0 ? (uint32_t)n : 0;
	port->full = true;
	sockets_want_room(&port->console->sockets, &port->client, true);
	return false;
}

static void serve_tx(struct port *port)
{
	struct virtio_queue *queue = &port->console->device.queue[tx_of(port)];
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtqueue_chain chain;
	unsigned n = 0;

	if (!virtio_may_take(queue) || port->full)
		return;
	virtqueue_quiet(&queue->ring);
	while (n < CHAINS_A_GO && !port->full) {
		result = virtqueue_pop(&queue->ring, &chain);
		if (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring))
			continue;
		if (result != VIRTQUEUE_CHAIN)
			break;
		if (!forward(port, &chain)) {
			virtqueue_unpop(&queue->ring);
			break;
		}
		port->taken = 0;
		virtqueue_push(&queue->ring, chain.head, 0);
		n++;
	}
	if (!port->full)
		sockets_want_room(&port->console->sockets, &port->client, false);
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (n == CHAINS_A_GO)
		wake(port->console);
}

/* --- control messages (5.3.6.2) --- */

/* Makes the next message about @port in @buf; returns its length. */
static size_t next_message(struct port *port, void *buf)
{
	struct virtio_console_control m = {.id = htole32(port->id), .value = htole16(1)};
	unsigned what = port->owes & -port->owes;
	size_t more = 0;

	port->owes &= (uint8_t)~what;
	switch (what) {
	case OWE_ADD:
		m.event = htole16(VIRTIO_CONSOLE_PORT_ADD);
		break;
	case OWE_NAME:
		m.event = htole16(VIRTIO_CONSOLE_PORT_NAME);
		more = strlen(port->name);
		memcpy((uint8_t *)buf + sizeof(m), port->name, more);
		break;
	case OWE_CONSOLE:
		m.event = htole16(VIRTIO_CONSOLE_CONSOLE_PORT);
		break;
	default:
		port->told = what == OWE_OPEN;
		m.event = htole16(VIRTIO_CONSOLE_PORT_OPEN);
		m.value = htole16(port->told);
	}
	memcpy(buf, &m, sizeof(m));
	return sizeof(m) + more;
}

static struct port *next_owing(struct console *c)
{
	for (unsigned i = 0; i < c->ports; i++)
		if (c->port[i].owes)
			return &c->port[i];
	return NULL;
}

static void serve_control_rx(struct console *c)
{
	struct virtio_queue *queue = &c->device.queue[CONTROL_RX];
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	uint8_t message[sizeof(struct virtio_console_control) + CONSOLE_NAME_MAX];
	struct virtqueue_chain chain;
	struct port *port;

	if (!virtio_may_take(queue) || !virtio_has(&c->device, VIRTIO_CONSOLE_F_MULTIPORT))
		return;
	virtqueue_quiet(&queue->ring);
	while ((port = next_owing(c))) {
		result = virtqueue_pop(&queue->ring, &chain);
		if (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring))
			continue;
		if (result != VIRTQUEUE_CHAIN)
			break;
		struct iov room = {chain.iov + chain.readable, chain.writable};
		size_t len = next_message(port, message);
		virtqueue_push(&queue->ring, chain.head, (uint32_t)iov_copy(&room, message, len, IOV_TO_GUEST));
	}
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
}

static void told_by_guest(struct console *c, const struct virtio_console_control *m)
{
	uint32_t id = le32toh(m->id);
	struct port *port = id < c->ports && c->port[id].exists ? &c->port[id] : NULL;
	bool on = le16toh(m->value) != 0;

	switch (le16toh(m->event)) {
	case VIRTIO_CONSOLE_DEVICE_READY: /* the driver is there: which ports it has */
		for (unsigned i = 0; i < c->ports && on; i++)
			c->port[i].owes |= c->port[i].exists ? OWE_ADD : 0;
		break;
	case VIRTIO_CONSOLE_PORT_READY:
		if (!port || !on)
			break;
		port->ready = true;
		port->owes |= port->is_console ? OWE_CONSOLE : OWE_NAME;
		if (port->client.fd >= 0 || port->awaited)
			port->owes |= OWE_OPEN;
		break;
	case VIRTIO_CONSOLE_PORT_OPEN:
		if (port)
			atomic_store_explicit(&port->guest_open, on, memory_order_relaxed);
		break;
	}
}

static void serve_control_tx(struct console *c)
{
	struct virtio_queue *queue = &c->device.queue[CONTROL_TX];
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtio_console_control m;
	struct virtqueue_chain chain;
	unsigned n = 0;

	if (!virtio_may_take(queue))
		return;
	do {
		virtqueue_quiet(&queue->ring);
		while (n < CHAINS_A_GO && (result = virtqueue_pop(&queue->ring, &chain)) == VIRTQUEUE_CHAIN) {
			struct iov all = {chain.iov, chain.readable};
			if (iov_take(&all, &m, sizeof(m)))
				told_by_guest(c, &m);
			virtqueue_push(&queue->ring, chain.head, 0);
			n++;
		}
	} while (n < CHAINS_A_GO && result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring));
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (n == CHAINS_A_GO)
		virtio_again(queue);
	wake(c);
}

/* --- the device --- */

static void batch_ends(struct io_batch *batch)
{
	struct console *c = (struct console *)((char *)batch - offsetof(struct console, batch));

	if (!runs(c))
		return;
	for (unsigned i = 0; i < c->ports; i++) {
		struct port *port = &c->port[i];
		look_for_client(port);
		serve_rx(port);
		serve_tx(port);
	}
	serve_control_rx(c);
}

static void kick(struct virtio_queue *queue)
{
	struct console *c = of(queue->device);

	if (queue->index == CONTROL_TX)
		serve_control_tx(c);
	else
		wake(c);
}

static void start(struct virtio_queue *queue)
{
	struct console *c = of(queue->device);
	const struct itimerspec patience = {.it_value.tv_sec = CONSOLE_PATIENCE_S};

	for (unsigned i = 0; i < c->ports; i++) {
		c->port[i].waiting = true;
		if (c->port[i].awaited && queue->index == 0)
			(void)timerfd_settime(c->timer.fd, 0, &patience, NULL);
	}
	kick(queue);
}

static void forget(struct virtio_queue *queue)
{
	struct console *c = of(queue->device);

	for (unsigned i = 0; i < c->ports; i++)
		if (tx_of(&c->port[i]) == queue->index)
			c->port[i].taken = 0;
}

/* The guest knows nothing of its ports; clients stay. */
static void forget_all(void *arg)
{
	struct console *c = arg;

	for (unsigned i = 0; i < c->ports; i++) {
		struct port *port = &c->port[i];
		port->ready = port->told = port->awaited = false;
		atomic_store_explicit(&port->guest_open, false, memory_order_relaxed);
		port->owes = 0;
		port->taken = 0;
	}
}

static void reset(struct virtio_device *dev)
{
	struct console *c = of(dev);

	iothread_call(c->thread, forget_all, c);
}

static void config_read(struct virtio_device *dev, uint8_t *config)
{
	const struct virtio_console_config all = {.max_nr_ports = htole32(of(dev)->ports)};

	memcpy(config, &all, sizeof(all));
}

/* A machine arrived: what was promised to the guest is set against who is there. */
static void arrive(struct port *port)
{
	bool here = port->client.fd >= 0;

	if (port->owes & OWE_OPEN && !here)
		port->owes &= (uint8_t)~OWE_OPEN;
	bool thinks_so = port->told && !(port->owes & OWE_CLOSE);
	port->awaited = thinks_so && !here;
	if (port->ready && here && !thinks_so)
		port->owes |= OWE_OPEN;
	port->full = false;
	port->waiting = true;
	port->readable = here;
}

static void port_state(void *self, struct saved *s)
{
	struct port *port = self;
	char name[CONSOLE_NAME_MAX + 1];
	bool guest_open = atomic_load_explicit(&port->guest_open, memory_order_relaxed);

	memcpy(name, port->name, sizeof(name));
	saved_require(s);
	saved_string(s, "name", name, sizeof(name));
	saved_require(s);
	saved_bool(s, "ready", &port->ready);
	saved_require(s);
	saved_bool(s, "host-open", &port->told);
	saved_require(s);
	saved_bool(s, "guest-open", &guest_open);
	saved_require(s);
	saved_u8(s, "owes", &port->owes);
	saved_require(s);
	saved_u32(s, "taken", &port->taken);
	if (!saved_loading(s))
		return;
	if (strcmp(name, port->name) != 0)
		saved_fail(s, "the saved machine has a port '%s' where this one has '%s' (--console-port)", name,
			   port->name);
	else if (port->owes & ~OWE_ALL || (port->owes && !port->exists))
		saved_fail(s, "port %u owes what there is not", port->id);
	atomic_store_explicit(&port->guest_open, guest_open, memory_order_relaxed);
}

static void arrive_all(void *arg)
{
	struct console *c = arg;

	for (unsigned i = 0; i < c->ports; i++)
		arrive(&c->port[i]);
}

static void state(void *self, struct saved *s)
{
	struct console *c = of(self);

	saved_require(s);
	saved_array(s, "ports", c->port, c->ports, sizeof(c->port[0]), port_state);
	if (saved_loading(s))
		iothread_call(c->thread, arrive_all, c);
}

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_CONSOLE,
	.class_code = 0x078000, /* a communication controller */
	.config_size = sizeof(struct virtio_console_config),
	.config_read = config_read,
	.start = start,
	.kick = kick,
	.forget = forget,
	.reset = reset,
	.state = state,
};

/* --- making it --- */

static void init_port(struct console *c, unsigned id, struct console_port_config *config)
{
	struct port *port = &c->port[id];

	*port = (struct port){
		.console = c,
		.id = id,
		.listener = {listener_ready, config ? steal_fd(&config->listen_fd) : -1, false},
		.client = {client_ready, config ? steal_fd(&config->peer_fd) : -1, false},
		.exists = config != NULL,
		.is_console = config && !config->name,
	};
	if (config && config->name)
		snprintf(port->name, sizeof(port->name), "%s", config->name);
}

static void init_ports(struct console *c, struct console_config *config)
{
	init_port(c, 0, NULL);
	c->ports = 1;
	for (unsigned i = 0; i < config->ports; i++)
		init_port(c, config->port[i].name ? c->ports++ : 0, &config->port[i]);
}

static struct error *start_sockets(struct console *c)
{
	TRY(sockets_init(&c->sockets, c->thread));
	c->timer = (struct socket_watch){patience_ends, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
					 false};
	if (c->timer.fd < 0 || !sockets_add(&c->sockets, &c->timer))
		return error_new(errno, "make its timer");
	for (unsigned i = 0; i < c->ports; i++) {
		struct port *port = &c->port[i];
		if ((port->listener.fd >= 0 && !sockets_add(&c->sockets, &port->listener)) ||
		    (port->client.fd >= 0 && !sockets_add(&c->sockets, &port->client)))
			return error_new(errno, "watch the sockets of port %s", port->name);
		port->readable = port->client.fd >= 0;
	}
	return NULL;
}

struct error *console_new(struct console **out, const struct memory *memory, const struct console_config *config)
{
	struct console *c = calloc(1, sizeof(*c));
	struct console_config mine = *config;

	if (!c) {
		for (unsigned i = 0; i < mine.ports; i++) {
			close_fd(&mine.port[i].listen_fd);
			close_fd(&mine.port[i].peer_fd);
		}
		return error_new(ENOMEM, "make the console device");
	}
	c->thread = config->thread;
	c->batch.end = batch_ends;
	c->timer.fd = -1;
	init_ports(c, &mine);
	struct error *err = start_sockets(c);
	if (!err)
		err = virtio_init(&c->device, &ops, "console", memory, 1ull << VIRTIO_CONSOLE_F_MULTIPORT,
				  2 + 2 * c->ports, QUEUE_SIZE, &c->thread, 1);
	if (err) {
		console_free(c);
		return error_wrap(err, "make the console device");
	}
	*out = c;
	return NULL;
}

static void close_all(void *arg)
{
	struct console *c = arg;
	const unsigned nothing = 0;

	for (unsigned i = 0; i < c->ports; i++) {
		sockets_close(&c->sockets, &c->port[i].listener);
		sockets_close(&c->sockets, &c->port[i].client);
	}
	sockets_close(&c->sockets, &c->timer);
	/* What was put off to the end of a batch lies in what is freed next. */
	iothread_drain(c->thread, &nothing);
}

void console_free(struct console *c)
{
	if (!c)
		return;
	iothread_call(c->thread, close_all, c);
	sockets_destroy(&c->sockets);
	if (c->device.ops)
		virtio_destroy(&c->device);
	free(c);
}

struct virtio_device *console_device(struct console *c)
{
	return &c->device;
}

bool console_guest_open(const struct console *c, const char *name)
{
	for (unsigned i = 0; i < c->ports; i++)
		if (strcmp(c->port[i].name, name) == 0)
			return atomic_load_explicit(&c->port[i].guest_open, memory_order_relaxed);
	return false;
}

void console_poll(struct console *c)
{
	sockets_poll(&c->sockets);
}
