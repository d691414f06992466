/*
 * CRC-32C; see crc32c.h. Touches nothing but memory.
 *
 * SSE4.2's crc32 takes a new word each cycle but has its result after three, so long inputs are cut into three lanes
 * that run side by side. A lane's checksum is then moved over the lanes behind it: appending n zero bytes to a message
 * multiplies its checksum by x^(8n) modulo the polynomial, and a carry-less multiplication by a constant does just
 * that. The product is 32 bits too long (and, the representation being bit-reflected, one more bit out of place);
 * crc32 of it with a zero seed reduces it, which multiplies by x^32: hence constants x^(8n - 33).
 *
 * CPUs without these instructions stopped being made years before the ones Glint runs on: the portable way is short.
 */
#include "saved/crc32c.h"

#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len)
{
	/* The checksum of each four-bit value, by the reflected polynomial 0x82F63B78. */
	static const uint32_t nibble[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
					    0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
					    0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
	const uint8_t *p = data;

	crc = ~crc;
	for (; len > 0; len--) {
		crc ^= *p++;
		crc = (crc >> 4) ^ nibble[crc & 15];
		crc = (crc >> 4) ^ nibble[crc & 15];
	}
	return ~crc;
}

#ifdef __x86_64__

#define LANE 1360u /* bytes: a page of memory is one round and two words */

/* x^(8 * LANE - 33) and x^(16 * LANE - 33) modulo the polynomial, reflected. saved_test.c proves them. */
#define MOVE_1_LANE  0x3f70cc6fu
#define MOVE_2_LANES 0x5aa1f3cfu

static inline uint64_t word(const uint8_t *p)
{
	uint64_t value;

	memcpy(&value, p, sizeof(value));
	return value;
}

[[gnu::target("sse4.2,pclmul")]] static uint64_t move(uint64_t crc, uint32_t constant)
{
	__m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi32_si128((int)constant), 0);

	return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

[[gnu::target("sse4.2,pclmul")]] static uint32_t crc32c_lanes(uint32_t crc, const uint8_t *p, size_t len)
{
	uint64_t a = ~crc;

	for (; len >= 3 * (size_t)LANE; p += 3 * (size_t)LANE, len -= 3 * (size_t)LANE) {
		uint64_t b = 0, c = 0;
		for (size_t i = 0; i < LANE; i += 8) {
			a = _mm_crc32_u64(a, word(p + i));
			b = _mm_crc32_u64(b, word(p + LANE + i));
			c = _mm_crc32_u64(c, word(p + 2 * (size_t)LANE + i));
		}
		a = move(a, MOVE_2_LANES) ^ move(b, MOVE_1_LANE) ^ c;
	}
	for (; len >= 8; p += 8, len -= 8)
		a = _mm_crc32_u64(a, word(p));
	for (; len > 0; p++, len--)
		a = _mm_crc32_u8((uint32_t)a, *p);
	return ~(uint32_t)a;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
		return crc32c_lanes(crc, data, len);
	return crc32c_portable(crc, data, len);
}

#else

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	return crc32c_portable(crc, data, len);
}

#endif
