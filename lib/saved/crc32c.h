/*
 * CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected; RFC 3720 appendix B.4 has its test vectors): the checksum of
 * saved state. Gigabytes of guest memory flow through it, so it uses the CPU's own instruction where there is one.
 */
#ifndef GLINT_SAVED_CRC32C_H
#define GLINT_SAVED_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from @crc, the checksum of what came before (0 at the beginning), over @len more bytes. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

/* The same without any special instruction: what crc32c() falls back on, and what the tests hold it against. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len);

#endif
