/*
 * Connections of the vsock device; see vsock.h and internal.h. Touches the UNIX sockets of its connections.
 *
 * How one lives, seen from the host's end of it:
 *
 *     client of the host: GREETING --"CONNECT P"--> REQUESTED --RESPONSE--> OPEN
 *     guest:              REQUEST --> CONNECTING --the connector's descriptor--> OPEN (RESPONSE is owed)
 *     OPEN --the socket ends both ways--> CLOSING (SHUTDOWN is owed) --RST or SHUTDOWN of the guest--> FREE
 *     OPEN --SHUTDOWN both ways by the guest--> FLUSHING --the host has read all--> FREE (RST is owed first)
 *
 * A reset of the guest ends a connection at once, but for what it sent before, which is flushed. What a connection owes
 * the guest are bits, not packets, so there is no queue that a guest could fill.
 *
 * Places are bounded. When all are taken, those in CLOSING and FLUSHING are given up, for they wait for the good will
 * of somebody; then the guest is refused and clients of the host wait.
 */
#include "vmm/vsock/internal.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

/* The guest is told of forwarded bytes, if nothing else tells it, when there are so many. */
#define CREDIT_STEP (VSOCK_BUFFER_BYTES / 4)

static unsigned index_of(const struct connection *c)
{
	return (unsigned)(c - c->vsock->connection);
}

static uint8_t *buffer_of(const struct connection *c)
{
	return c->vsock->buffers + (size_t)index_of(c) * VSOCK_BUFFER_BYTES;
}

static uint32_t buffered(const struct connection *c)
{
	return c->received - c->forwarded;
}

/* How many bytes the guest has room for, by its own account (5.10.6.3), which may be any numbers. */
static uint32_t credit(const struct connection *c)
{
	uint32_t in_flight = c->sent - c->guest_forwarded;

	return in_flight < c->guest_buffer ? c->guest_buffer - in_flight : 0;
}

/* --- the table --- */

static uint16_t *bucket(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	uint32_t hash = (host_port * 0x9e3779b1u) ^ (guest_port * 0x85ebca6bu);

	return &v->bucket[(hash ^ hash >> 16) % BUCKETS];
}

static struct connection *find(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	for (uint16_t i = *bucket(v, host_port, guest_port); i != NONE; i = v->connection[i].next)
		if (v->connection[i].host_port == host_port && v->connection[i].guest_port == guest_port)
			return &v->connection[i];
	return NULL;
}

static void hash(struct connection *c, uint32_t host_port, uint32_t guest_port)
{
	uint16_t *first = bucket(c->vsock, host_port, guest_port);

	c->host_port = host_port;
	c->guest_port = guest_port;
	c->next = *first;
	c->hashed = true;
	*first = (uint16_t)index_of(c);
}

static void unhash(struct connection *c)
{
	if (!c->hashed)
		return;
	uint16_t *link = bucket(c->vsock, c->host_port, c->guest_port);
	while (*link != index_of(c))
		link = &c->vsock->connection[*link].next;
	*link = c->next;
	c->hashed = false;
}

static void release(struct connection *c)
{
	struct vsock *v = c->vsock;

	sockets_close(&v->sockets, &c->socket);
	unhash(c);
	if (c->received)
		(void)madvise(buffer_of(c), VSOCK_BUFFER_BYTES, MADV_DONTNEED);
	c->state = FREE;
	c->owes = 0;
	c->generation++;
	v->used--;
	if (v->waiting)
		vsock_wake(v);
}

/* Places of connections that only wait for somebody's good will. */
static void reclaim(struct vsock *v)
{
	for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++)
		if (v->connection[i].state == CLOSING || v->connection[i].state == FLUSHING)
			release(&v->connection[i]);
}

static void socket_ready(struct socket_watch *watch, uint32_t events);

/* A place in @state, or NULL. */
static struct connection *new_connection(struct vsock *v, enum connection_state state)
{
	struct connection *c = v->connection;

	if (v->used == VSOCK_CONNECTIONS_MAX)
		reclaim(v);
	if (v->used == VSOCK_CONNECTIONS_MAX)
		return NULL;
	while (c->state != FREE)
		c++;
	/* It may still stand in the ring of active ones, from an earlier life. */
	*c = (struct connection){.vsock = v,
				 .socket = {socket_ready, -1, false},
				 .state = state,
				 .generation = c->generation,
				 .queued = c->queued};
	v->used++;
	return c;
}

/* --- the ring of those with something for the guest --- */

static bool is_active(const struct connection *c)
{
	return c->owes || (c->state == OPEN && c->readable && !c->ended && !c->guest_deaf && credit(c));
}

static void activate(struct connection *c)
{
	struct vsock *v = c->vsock;

	if (!is_active(c))
		return;
	if (!c->queued) {
		c->queued = true;
		v->active[(v->active_first + v->active_count++) % VSOCK_CONNECTIONS_MAX] = (uint16_t)index_of(c);
	}
	vsock_wake(v);
}

static struct connection *take_first(struct vsock *v)
{
	struct connection *c = &v->connection[v->active[v->active_first]];

	v->active_first = (v->active_first + 1) % VSOCK_CONNECTIONS_MAX;
	v->active_count--;
	c->queued = false;
	return c;
}

struct connection *connections_next(struct vsock *v)
{
	while (v->active_count) {
		struct connection *c = &v->connection[v->active[v->active_first]];
		if (is_active(c))
			return c;
		(void)take_first(v);
	}
	return NULL;
}

static void owe(struct connection *c, unsigned what)
{
	c->owes |= (uint8_t)what;
	activate(c);
}

/* --- ends --- */

/* The guest hears a reset; then the place is free. */
static void reset(struct connection *c)
{
	sockets_close(&c->vsock->sockets, &c->socket);
	c->state = CLOSING;
	c->owes = 0;
	owe(c, OWE_RESET);
}

/* The host's end is gone, as far as @ended and @deaf say. */
static void tell_end(struct connection *c)
{
	if (c->ended && c->deaf) {
		sockets_close(&c->vsock->sockets, &c->socket);
		c->state = CLOSING;
	}
	owe(c, OWE_SHUTDOWN);
}

/* --- bytes of the guest --- */

static void took(struct connection *c, size_t n)
{
	c->forwarded += (uint32_t)n;
	if (c->forwarded - c->told >= CREDIT_STEP && c->state == OPEN)
		owe(c, OWE_CREDIT);
}

/* Writes as much of @v as the socket takes; less than all of it when it is full. An end that is gone takes all. */
static size_t write_some(struct connection *c, const struct iovec *v, unsigned count, size_t len)
{
	ssize_t n = -1;

	if (!c->deaf)
		n = writev(c->socket.fd, v, (int)count);
	if (n >= 0 && (size_t)n == len)
		return len;
	if (!c->deaf && (n >= 0 || errno == EAGAIN || errno == EINTR)) {
		sockets_want_room(&c->vsock->sockets, &c->socket, true);
		return n >= 0 ? (size_t)n : 0;
	}
	c->deaf = true;
	return len;
}

/* The guest sends nothing more and all of it was taken. */
static void finish_sending(struct connection *c)
{
	if (c->state == FLUSHING && !c->hashed)
		release(c); /* it has reset it, and expects nothing */
	else if (c->state == FLUSHING)
		reset(c);
	else
		(void)shutdown(c->socket.fd, SHUT_WR);
}

/* Moves what is buffered to the socket. */
static void flush(struct connection *c)
{
	bool was_deaf = c->deaf;

	while (buffered(c)) {
		uint32_t at = c->forwarded % VSOCK_BUFFER_BYTES;
		struct iovec v = {buffer_of(c) + at, MIN(buffered(c), VSOCK_BUFFER_BYTES - at)};
		size_t n = write_some(c, &v, 1, v.iov_len);
		took(c, n);
		if (n < v.iov_len)
			return;
	}
	sockets_want_room(&c->vsock->sockets, &c->socket, false);
	if (c->guest_ended)
		finish_sending(c);
	else if (c->deaf && !was_deaf)
		tell_end(c);
}

static void keep(struct connection *c, struct iov *payload, size_t len)
{
	while (len) {
		uint32_t at = c->received % VSOCK_BUFFER_BYTES;
		size_t n = MIN(len, (size_t)(VSOCK_BUFFER_BYTES - at));
		iov_take(payload, buffer_of(c) + at, n);
		c->received += (uint32_t)n;
		len -= n;
	}
}

static void receive_data(struct connection *c, struct iov *payload, uint32_t len)
{
	bool was_deaf = c->deaf;

	if (c->guest_ended || len > VSOCK_BUFFER_BYTES - buffered(c)) {
		reset(c); /* it said it would not send, or has no credit to */
		return;
	}
	if (!buffered(c) && len) {
		size_t n = write_some(c, payload->v, payload->count, len);
		iov_skip(payload, n);
		c->received += (uint32_t)n;
		took(c, n);
		len -= (uint32_t)n;
	}
	keep(c, payload, len);
	if (c->deaf && !was_deaf)
		tell_end(c);
}

/* --- packets of the guest --- */

static void request(struct vsock *v, const struct virtio_vsock_hdr *hdr)
{
	uint32_t port = le32toh(hdr->dst_port);
	struct connection *c = v->connector.fd >= 0 ? new_connection(v, CONNECTING) : NULL;

	if (!c) {
		vsock_refuse(v, hdr);
		return;
	}
	hash(c, port, le32toh(hdr->src_port));
	c->guest_buffer = le32toh(hdr->buf_alloc);
	c->guest_forwarded = le32toh(hdr->fwd_cnt);
	const struct connector_request ask = {.port = port, .place = index_of(c), .generation = c->generation};
	if (write(v->connector.fd, &ask, sizeof(ask)) != sizeof(ask))
		reset(c); /* it has more to do than fits its socket, or is gone */
}

/* The guest accepted a client of the host, who is told; nothing was written to him yet, so it fits. */
static void accepted(struct connection *c)
{
	char words[32];
	int len = snprintf(words, sizeof(words), "OK %u\n", c->host_port);

	if (write(c->socket.fd, words, (size_t)len) != len) {
		reset(c);
		return;
	}
	c->state = OPEN;
	activate(c);
}

static void shut_down(struct connection *c, uint32_t flags)
{
	if (c->state == CLOSING) { /* both ends at once */
		reset(c);
		return;
	}
	if (c->state != OPEN)
		return;
	bool had_ended = c->guest_ended;
	c->guest_deaf = c->guest_deaf || flags & VIRTIO_VSOCK_SHUTDOWN_RCV;
	c->guest_ended = c->guest_ended || flags & VIRTIO_VSOCK_SHUTDOWN_SEND;
	if (c->guest_deaf && c->guest_ended) {
		c->state = FLUSHING;
		c->owes = 0;
	}
	if (!buffered(c) && (c->state == FLUSHING || (c->guest_ended && !had_ended)))
		finish_sending(c);
}

/* The guest dropped it. What it had sent before is not lost. */
static void dropped(struct connection *c)
{
	bool flushes = (c->state == OPEN || c->state == FLUSHING) && buffered(c);

	if (!flushes) {
		release(c);
		return;
	}
	unhash(c);
	c->state = FLUSHING;
	c->guest_ended = c->guest_deaf = true;
	c->owes = 0;
}

void connections_receive(struct vsock *v, const struct virtio_vsock_hdr *hdr, struct iov *payload)
{
	unsigned op = le16toh(hdr->op);
	uint32_t len = le32toh(hdr->len);
	struct connection *c = find(v, le32toh(hdr->dst_port), le32toh(hdr->src_port));

	if (!c && op == VIRTIO_VSOCK_OP_REQUEST) {
		request(v, hdr);
		return;
	}
	if (!c) {
		vsock_refuse(v, hdr);
		return;
	}
	c->guest_buffer = le32toh(hdr->buf_alloc);
	c->guest_forwarded = le32toh(hdr->fwd_cnt);
	if (op == VIRTIO_VSOCK_OP_RST)
		dropped(c);
	else if (op == VIRTIO_VSOCK_OP_SHUTDOWN)
		shut_down(c, le32toh(hdr->flags));
	else if (op == VIRTIO_VSOCK_OP_RESPONSE && c->state == REQUESTED && !(c->owes & OWE_REQUEST))
		accepted(c);
	else if (op == VIRTIO_VSOCK_OP_RW && c->state == OPEN)
		receive_data(c, payload, len);
	else if (op == VIRTIO_VSOCK_OP_CREDIT_REQUEST)
		c->owes |= c->state == OPEN ? OWE_CREDIT : 0;
	else if (op != VIRTIO_VSOCK_OP_CREDIT_UPDATE && c->state != CLOSING) /* CLOSING: it may not know yet */
		reset(c);
	activate(c); /* it may have more credit */
}

/* --- packets to the guest --- */

static void fill_header(struct connection *c, struct virtio_vsock_hdr *hdr, unsigned op)
{
	hdr->op = htole16((uint16_t)op);
	hdr->type = htole16(VIRTIO_VSOCK_TYPE_STREAM);
	hdr->src_port = htole32(c->host_port);
	hdr->dst_port = htole32(c->guest_port);
	hdr->buf_alloc = htole32(VSOCK_BUFFER_BYTES);
	hdr->fwd_cnt = htole32(c->forwarded);
	c->told = c->forwarded;
	c->owes &= (uint8_t)~OWE_CREDIT; /* every packet tells it */
}

static void fill_owed(struct connection *c, struct virtio_vsock_hdr *hdr)
{
	static const struct {
		unsigned owed, op;
	} order[] = {{OWE_RESET, VIRTIO_VSOCK_OP_RST},
		     {OWE_REQUEST, VIRTIO_VSOCK_OP_REQUEST},
		     {OWE_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE},
		     {OWE_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN},
		     {OWE_CREDIT, VIRTIO_VSOCK_OP_CREDIT_UPDATE}};
	unsigned i = 0;

	while (!(c->owes & order[i].owed))
		i++;
	if (order[i].owed == OWE_SHUTDOWN)
		hdr->flags = htole32((c->deaf ? VIRTIO_VSOCK_SHUTDOWN_RCV : 0) |
				     (c->ended ? VIRTIO_VSOCK_SHUTDOWN_SEND : 0));
	c->owes &= (uint8_t)~order[i].owed;
	fill_header(c, hdr, order[i].op);
	if (order[i].owed == OWE_RESET)
		release(c);
}

/* Reads from the host into the guest's buffer. False when nothing came: then what is to be said is owed. */
static bool fill_data(struct connection *c, struct virtio_vsock_hdr *hdr, const struct iov *room)
{
	struct iovec copy[VIRTQUEUE_SIZE_MAX];
	struct iov limited = {copy, room->count};
	ssize_t n;

	memcpy(copy, room->v, room->count * sizeof(copy[0]));
	iov_limit(&limited, credit(c));
	do
		n = readv(c->socket.fd, limited.v, (int)limited.count);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		c->sent += (uint32_t)n;
		hdr->len = htole32((uint32_t)n);
		fill_header(c, hdr, VIRTIO_VSOCK_OP_RW);
		return true;
	}
	c->readable = false;
	if (n < 0 && errno == EAGAIN)
		return false;
	c->ended = true;
	if (n < 0) /* the peer went and left bytes unread: it will read no others */
		c->deaf = true;
	tell_end(c);
	return false;
}

bool connection_packet(struct connection *c, struct virtio_vsock_hdr *hdr, const struct iov *room)
{
	bool some = true;

	(void)take_first(c->vsock);
	if (c->owes)
		fill_owed(c, hdr);
	else
		some = fill_data(c, hdr, room);
	activate(c);
	return some;
}

/* --- clients of the host --- */

static bool parse_greeting(const char *line, uint32_t *port)
{
	static const char word[] = "CONNECT ";
	char *end;

	if (strncmp(line, word, sizeof(word) - 1) != 0 || line[sizeof(word) - 1] < '0' || line[sizeof(word) - 1] > '9')
		return false;
	unsigned long long n = strtoull(line + sizeof(word) - 1, &end, 10);
	*port = (uint32_t)n;
	return (*end == '\0' || strcmp(end, "\r") == 0) && n < UINT32_MAX;
}

/* A port of the host that is not in use towards @guest_port. There are more ports than connections. */
static uint32_t choose_port(struct vsock *v, uint32_t guest_port)
{
	do
		v->next_port = v->next_port == UINT32_MAX - 1 ? 1u << 30 : v->next_port + 1;
	while (find(v, v->next_port, guest_port));
	return v->next_port;
}

/* Reads the line byte by byte: what comes behind it is the guest's. */
static void read_greeting(struct connection *c)
{
	uint32_t port;

	for (;;) {
		ssize_t n = read(c->socket.fd, &c->greeting[c->greeted], 1);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0 || c->greeted == GREET_MAX - 1) {
			release(c);
			return;
		}
		if (c->greeting[c->greeted] == '\n')
			break;
		c->greeted++;
	}
	c->greeting[c->greeted] = '\0';
	if (!parse_greeting(c->greeting, &port)) {
		log_warn("vsock: %s: a client did not say CONNECT PORT", c->vsock->name);
		release(c);
		return;
	}
	hash(c, choose_port(c->vsock, port), port);
	c->state = REQUESTED;
	c->readable = true; /* more may have come already */
	owe(c, OWE_REQUEST);
}

void connections_accept(struct vsock *v)
{
	/* Before its driver is up, a guest would lose the connection when it resets the device. */
	while (virtio_may_take(&v->device.queue[0])) {
		struct connection *c = new_connection(v, GREETING);
		if (!c)
			break; /* @waiting stays: release() wakes us */
		v->waiting = false;
		c->socket.fd = sockets_accept(v->listener.fd);
		if (c->socket.fd < 0 || !sockets_add(&v->sockets, &c->socket)) {
			bool nobody = c->socket.fd < 0 && errno == EAGAIN;
			release(c);
			v->waiting = !nobody; /* out of descriptors: looked at again with the next packet */
			return;
		}
	}
	v->waiting = true;
}

static void socket_ready(struct socket_watch *watch, uint32_t events)
{
	struct connection *c = (struct connection *)((char *)watch - offsetof(struct connection, socket));

	if (c->state == GREETING) {
		read_greeting(c);
		return;
	}
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR) && buffered(c))
		flush(c);
	if (c->state != OPEN && c->state != REQUESTED)
		return;
	c->readable = true;
	if (events & (EPOLLHUP | EPOLLERR) && c->state == REQUESTED) {
		reset(c); /* the client left before the guest answered */
		return;
	}
	if (events & (EPOLLHUP | EPOLLERR) && !c->deaf) {
		/* Nobody reads any more. What he wrote before he went is still to be read, up to its end. */
		c->deaf = true;
		c->forwarded = c->received;
		if (c->ended || c->guest_deaf) {
			c->ended = true;
			tell_end(c);
		}
	}
	activate(c);
}

/* --- the connector's answers --- */

static ssize_t receive_answer(int fd, struct connector_answer *answer, int *passed)
{
	alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {answer, sizeof(*answer)};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof(ancillary)};
	ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	*passed = -1;
	for (struct cmsghdr *m = n < 0 ? NULL : CMSG_FIRSTHDR(&msg); m; m = CMSG_NXTHDR(&msg, m))
		if (m->cmsg_level == SOL_SOCKET && m->cmsg_type == SCM_RIGHTS)
			memcpy(passed, CMSG_DATA(m), sizeof(*passed));
	return n;
}

static void connected(struct vsock *v, const struct connector_answer *answer, int *fd)
{
	struct connection *c = answer->place < VSOCK_CONNECTIONS_MAX ? &v->connection[answer->place] : NULL;

	/* It may be gone, and another in its place. */
	if (!c || c->state != CONNECTING || c->generation != answer->generation)
		return;
	c->socket.fd = steal_fd(fd);
	if (c->socket.fd < 0 || !sockets_add(&v->sockets, &c->socket)) {
		reset(c);
		return;
	}
	c->state = OPEN;
	owe(c, OWE_RESPONSE);
}

void connections_connected(struct socket_watch *watch, uint32_t events)
{
	struct vsock *v = (struct vsock *)((char *)watch - offsetof(struct vsock, connector));
	struct connector_answer answer;

	(void)events;
	for (;;) {
		cleanup_fd int fd = -1;
		ssize_t n = receive_answer(watch->fd, &answer, &fd);
		if (n == (ssize_t)sizeof(answer))
			connected(v, &answer, &fd);
		else if (n >= 0 || errno != EINTR)
			break;
	}
}

void connections_drop(struct vsock *v)
{
	for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++)
		if (v->connection[i].state != FREE)
			release(&v->connection[i]);
}
