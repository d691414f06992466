/*
 * Checksums of disk images made right, which no mutation gets past by itself.
 */
#ifndef GLINT_TESTS_FUZZ_IMAGE_SEAL_H
#define GLINT_TESTS_FUZZ_IMAGE_SEAL_H

#include "base/util.h"
#include "saved/crc32c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* --- VHD: the sum of all bytes, inverted, big-endian --- */

static void seal_vhd_part(uint8_t *raw, size_t len, size_t at)
{
	uint32_t sum = 0;

	memset(raw + at, 0, 4);
	for (size_t i = 0; i < len; i++)
		sum += raw[i];
	for (int i = 0; i < 4; i++)
		raw[at + (size_t)i] = (uint8_t)(~sum >> (24 - 8 * i));
}

/* Both footers, and the header where the engine puts it. */
static inline void seal_vhd(uint8_t *image, size_t size)
{
	if (size < 2048)
		return;
	seal_vhd_part(image, 512, 64);
	seal_vhd_part(image + size - 512, 512, 64);
	seal_vhd_part(image + 512, 1024, 36);
}

/* --- VHDX: CRC-32C, little-endian, at offset 4 --- */

static void seal_vhdx_part(uint8_t *raw, size_t len)
{
	memset(raw + 4, 0, 4);
	uint32_t sum = crc32c(0, raw, len);
	memcpy(raw + 4, &sum, 4);
}

static uint32_t seal_get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* Each entry of the log that @header names and that does not wrap ([MS-VHDX] 2.3.1). */
static void seal_vhdx_log(uint8_t *image, size_t size, const uint8_t *header)
{
	uint64_t at, len = seal_get32(header + 68);

	memcpy(&at, header + 72, sizeof(at));
	if (!range_inside(at, len, size) || len > MIB)
		return;
	for (uint64_t end = at + len; at + 4096 <= end; at += 4096) {
		uint32_t bytes = seal_get32(image + at + 8);
		if (memcmp(image + at, "loge", 4) == 0 && bytes >= 4096 && bytes <= end - at)
			seal_vhdx_part(image + at, bytes);
	}
}

/* Both headers and both region tables (2.2.2 and 2.2.3), and the log. */
static inline void seal_vhdx(uint8_t *image, size_t size)
{
	if (size < MIB)
		return;
	for (size_t at = 64 * KIB; at <= 128 * KIB; at += 64 * KIB) {
		seal_vhdx_part(image + at, 4 * KIB);
		seal_vhdx_log(image, size, image + at);
	}
	seal_vhdx_part(image + 192 * KIB, 64 * KIB);
	seal_vhdx_part(image + 256 * KIB, 64 * KIB);
}

#endif
