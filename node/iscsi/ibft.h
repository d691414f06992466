/*
 * The firmware's iSCSI Boot Firmware Table: over which device, as whom and at which target the host's disk is reached
 * (ACPI signature "iBFT"; the layout is that of Linux' drivers/firmware/iscsi_ibft.c). Its text may come from whoever
 * answered the firmware on the network. So it is checked as a whole before the kernel's driver and open-iscsi believe
 * it: they go by its offsets and lengths as they are.
 */
#ifndef GLINT_ISCSI_IBFT_H
#define GLINT_ISCSI_IBFT_H

#include "base/error.h"

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#define IBFT_BYTES_MAX ((size_t)65536) /* its offsets have 16 bits */
#define ISCSI_NAME_MAX 223             /* RFC 7143 */

struct ibft {
	char initiator[ISCSI_NAME_MAX + 1], target[ISCSI_NAME_MAX + 1];
	char address[INET6_ADDRSTRLEN]; /* of the target */
	uint16_t port;
	char mac[18]; /* of the device that it is reached over */
};

/* Fails with EBADMSG, and says what is wrong, where anything that a part of it points to is not as it should be. */
[[nodiscard]] struct error *ibft_read(const uint8_t *table, size_t len, struct ibft *ibft);

#endif
