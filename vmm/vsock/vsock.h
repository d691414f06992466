/*
 * virtio-vsock (virtio 1.2, section 5.10): stream sockets between the guest and UNIX sockets of the host, as users of
 * Firecracker and cloud-hypervisor know it.
 *
 *  - A guest that connects to port P of the host (CID 2) reaches whoever listens on the UNIX socket PATH_P.
 *  - A client of the host connects to the UNIX socket PATH and writes "CONNECT P\n". When the guest accepts on its port
 *    P, the client reads "OK N\n", N being the port of its side, and the stream begins. When the guest does not, the
 *    client's connection ends.
 *
 * The CID is this machine's own name for itself and unknown to the host: machines do not share a name space, so that a
 * machine keeps its CID wherever it moves. Connections do not move: after a restore the guest is told so (a transport
 * reset event, 5.10.6.7) and all of them end; what listens goes on listening.
 */
#ifndef GLINT_VMM_VSOCK_VSOCK_H
#define GLINT_VMM_VSOCK_VSOCK_H

#include "vmm/virtio/virtio.h"

#define VSOCK_CID_MIN 3u          /* below are reserved ones (5.10.4) */
#define VSOCK_CID_MAX 0xfffffffeu /* all-ones is "any"; the upper 32 bits are reserved */

#define VSOCK_CONNECTIONS_MAX 1024u        /* of one machine, both ways together */
#define VSOCK_BUFFER_BYTES    (64u * 1024) /* of what the guest sent and the host did not read yet, a connection */

struct vsock_config {
	uint64_t cid;
	const char *name;        /* its path, for the log */
	int listen_fd;           /* listening UNIX stream socket that does not block. The device's */
	int connector_fd;        /* from vsock_connector_start(); -1: guests reach nobody. The device's */
	struct iothread *thread; /* serves its queues and sockets */
};

struct vsock;

/* Consumes the descriptors of @config, also when it fails. */
[[nodiscard]] struct error *vsock_new(struct vsock **out, const struct memory *memory,
				      const struct vsock_config *config);
/* Its queues are stopped (virtio_pci_free()). NULL is allowed. */
void vsock_free(struct vsock *vsock);

/* For the transport. Borrowed. */
struct virtio_device *vsock_device(struct vsock *vsock);

/*
 * Starts the process that connects to the UNIX sockets "@prefix_P" in the directory @dir_fd (borrowed), and nothing
 * else, for a monitor that may not. Call it before threads and guest memory are there. @sandbox: lock it in. *fd is the
 * caller's; closing it ends the process.
 */
[[nodiscard]] struct error *vsock_connector_start(int dir_fd, const char *prefix, bool sandbox, int *fd);

#endif
