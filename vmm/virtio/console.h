/*
 * virtio-console (virtio 1.2, section 5.3) with named ports: each leads to one client of a UNIX socket at a time, for
 * instance a guest agent's port. A port without a name is the console (hvc0 in Linux).
 *
 * What happens to bytes:
 *  - To the host: while no client is there they are discarded, so that a guest is not held up by it (a named port's
 *    guest is told whether one is). A client that does not read holds the guest up; on the console, whose drivers
 *    wait with the processor, what it does not take is discarded instead.
 *  - To the guest: they stay in the socket until the guest has opened the port and given buffers. The console is open.
 *  - Over a move: nothing the guest sent to a client is lost. On arrival the guest's bytes wait for the client to come
 *    back, CONSOLE_PATIENCE_S at most; then it is told that the client is gone.
 */
#ifndef GLINT_VMM_VIRTIO_CONSOLE_H
#define GLINT_VMM_VIRTIO_CONSOLE_H

#include "vmm/virtio/virtio.h"

#define CONSOLE_PORTS_MAX  9 /* 8 with a name and the console */
#define CONSOLE_NAME_MAX   63
#define CONSOLE_PATIENCE_S 30

struct console_port_config {
	const char *name; /* NULL: the console */
	int listen_fd;    /* a listening UNIX stream socket that does not block, or -1 */
	int peer_fd;      /* or a connected stream socket that does not block: its client for good; or -1 */
};

struct console_config {
	unsigned ports;
	struct console_port_config port[CONSOLE_PORTS_MAX]; /* at most one without a name */
	struct iothread *thread;                            /* serves its queues and sockets */
};

struct console;

/* Consumes the descriptors of @config, also when it fails. Names are copied. */
[[nodiscard]] struct error *console_new(struct console **out, const struct memory *memory,
					const struct console_config *config);
/* Its queues are stopped (virtio_pci_free()). NULL is allowed. */
void console_free(struct console *console);

/* For the transport. Borrowed. */
struct virtio_device *console_device(struct console *console);

/* Whether the guest has the port @name open now: somebody is there to talk to. Any thread. */
bool console_guest_open(const struct console *console, const char *name);

/* Handles what its sockets have now, without waiting: for fuzz targets, whose thread does not wait. */
void console_poll(struct console *console);

#endif
