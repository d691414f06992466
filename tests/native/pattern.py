"""What the tiny guests write into sectors: see pattern_fill() in test_blk.c. A sector tells its number and version."""

import struct

SECTOR = 512
WORDS = SECTOR // 8
_MASK = 2**64 - 1


def _sequence() -> list[int]:
    words, x = [], 0x9E3779B97F4A7C15
    for _ in range(2 * WORDS):
        x = (x ^ (x << 13)) & _MASK
        x ^= x >> 7
        x = (x ^ (x << 17)) & _MASK
        words.append(x)
    return words


_SEQUENCES = [struct.pack(f"<{WORDS - 2}Q", *_sequence()[at : at + WORDS - 2]) for at in range(WORDS)]


def sector_of(number: int, version: int) -> bytes:
    return struct.pack("<QQ", number, version) + _SEQUENCES[(number * 7 + version * 13) % WORDS]


def versions(data: bytes, first: int = 0) -> list[int]:
    """The version each sector holds; fails on one that holds no version whole."""
    found = []
    for at in range(0, len(data), SECTOR):
        number = first + at // SECTOR
        version = struct.unpack_from("<Q", data, at + 8)[0]
        assert data[at : at + SECTOR] == sector_of(number, version), f"sector {number} is torn or another's"
        found.append(version)
    return found
