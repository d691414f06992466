/*
 * virtio-rng (virtio 1.2, section 5.4): random bytes from the host's getrandom(2).
 */
#ifndef GLINT_VMM_VIRTIO_RNG_H
#define GLINT_VMM_VIRTIO_RNG_H

#include "vmm/virtio/virtio.h"

struct rng;

/* @thread serves its one queue. */
[[nodiscard]] struct error *rng_new(struct rng **out, const struct memory *memory, struct iothread *thread);
/* Its queue is stopped (virtio_pci_free()). NULL is allowed. */
void rng_free(struct rng *rng);

/* For the transport. Borrowed. */
struct virtio_device *rng_device(struct rng *rng);

#endif
