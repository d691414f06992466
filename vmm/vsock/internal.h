/*
 * Inside vsock: what the device (vsock.c), its connections (connection.c) and the connector (connector.c) share.
 *
 * Everything here belongs to the device's I/O thread.
 */
#ifndef GLINT_VMM_VSOCK_INTERNAL_H
#define GLINT_VMM_VSOCK_INTERNAL_H

#include "vmm/machine/sockets.h"
#include "vmm/virtio/iov.h"
#include "vmm/vsock/vsock.h"

#include <linux/virtio_vsock.h>

#define HOST_CID  2u
#define BUCKETS   1024u /* of the hash of connections; a power of two */
#define NONE      0xffffu
#define RESETS    256u /* answers to packets of no connection that wait for the guest's buffers */
#define GREET_MAX 32u  /* "CONNECT 4294967295\n" and some */

enum connection_state {
	FREE,
	GREETING,   /* a client of the host has not yet said where to */
	REQUESTED,  /* it has, and the guest has not answered */
	CONNECTING, /* the guest asked, and the connector has not answered */
	OPEN,
	CLOSING,  /* the host's end is gone and the guest was told; it has not agreed */
	FLUSHING, /* the guest is done; the host has not read all of it */
};

/* Packets that a connection owes the guest, a bit each. */
enum { OWE_REQUEST = 1, OWE_RESPONSE = 2, OWE_CREDIT = 4, OWE_SHUTDOWN = 8, OWE_RESET = 16 };

struct connection {
	struct vsock *vsock;
	struct socket_watch socket;
	enum connection_state state;
	uint32_t host_port, guest_port;
	uint32_t generation; /* of this place: an answer of the connector to an earlier one is known by it */
	uint16_t next;       /* in its bucket */
	bool hashed;
	bool queued; /* in vsock->active */
	uint8_t owes;

	bool readable;    /* the host may have sent something */
	bool ended;       /* the host sends nothing more, and the guest was or will be told */
	bool deaf;        /* the host reads nothing more */
	bool guest_ended; /* the guest sends nothing more */
	bool guest_deaf;  /* the guest reads nothing more */

	/* Credit (5.10.6.3); free-running modulo 2^32. */
	uint32_t received, forwarded,
		told;  /* bytes of the guest: that came, that the host took, that the guest knows of */
	uint32_t sent; /* bytes to the guest */
	uint32_t guest_buffer, guest_forwarded;

	char greeting[GREET_MAX];
	unsigned greeted;
};

/* An answer to a packet of no connection. */
struct reset {
	uint32_t host_port, guest_port;
	uint16_t type;
};

struct vsock {
	struct virtio_device device;
	struct iothread *thread;
	uint64_t cid;
	const char *name;
	struct sockets sockets;
	struct socket_watch listener, connector;
	bool waiting;          /* somebody may wait at the listener */
	bool transport_reset;  /* the guest is to be told that all connections are gone */
	bool tx_held;          /* the transmit queue waits until there is room for resets */
	struct io_batch batch; /* serving the receive queue, once a batch of events */

	struct connection connection[VSOCK_CONNECTIONS_MAX];
	uint16_t bucket[BUCKETS];
	unsigned used; /* places that are not FREE */
	uint32_t next_port;
	uint8_t *buffers; /* VSOCK_BUFFER_BYTES a place */

	/* Connections with something for the guest, each at most once: a ring. */
	uint16_t active[VSOCK_CONNECTIONS_MAX];
	unsigned active_first, active_count;

	struct reset reset[RESETS];
	unsigned reset_first, reset_count;
};

/* --- connection.c --- */

/* Accepts clients of the host while there is room and the guest's driver is up. */
void connections_accept(struct vsock *v);

/* The connector's socket has an answer. */
void connections_connected(struct socket_watch *watch, uint32_t events);

/* Ends all of them without a word to the guest. */
void connections_drop(struct vsock *v);

/* A packet of the guest, whose CIDs are right, with @payload behind it (hdr->len bytes). */
void connections_receive(struct vsock *v, const struct virtio_vsock_hdr *hdr, struct iov *payload);

/* The next connection with something for the guest, or NULL. */
struct connection *connections_next(struct vsock *v);

/*
 * Makes the next packet of @c: its header, and behind it at most @room's bytes of the host, which are counted in
 * hdr->len. False when there was nothing after all.
 */
bool connection_packet(struct connection *c, struct virtio_vsock_hdr *hdr, const struct iov *room);

/* --- vsock.c --- */

/* Something is there for the guest: the receive queue is served before the thread waits again. */
void vsock_wake(struct vsock *v);

/* Answers a packet of no connection. There is room: see tx_held. */
void vsock_refuse(struct vsock *v, const struct virtio_vsock_hdr *hdr);

/* --- connector.c --- */

/* What the monitor and the connector say to each other, a packet each. A good answer comes with a descriptor. */
struct connector_request {
	uint32_t port, place, generation;
};

struct connector_answer {
	uint32_t place, generation;
	int32_t errnum;
};

#endif
