"""Saved states taken apart (docs/saved-state.md), changed in a field, and put together with checks that are right."""

import struct
from pathlib import Path

_HEAD, _RUN = 88, 20
_GROUP, _LIST = 8, 9


def _table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_CRC = _table()


class Stream:
    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())

    def _records(self) -> list[tuple[int, bytes, str, int]]:
        """Offset, tag, name and length of each record; a bulk section's length is that of its runs in the stream."""
        at, records = 0, []
        while True:
            tag, length = self.data[at : at + 8], struct.unpack_from("<Q", self.data, at + 8)[0]
            name = self.data[at + 16 : at + 80].rstrip(b"\0").decode()
            if tag == b"bulk    ":
                end = at + _HEAD
                while size := struct.unpack_from("<Q", self.data, end + 8)[0]:
                    end += _RUN + size
                length = end + _RUN - at - _HEAD
            elif tag == b"unit    ":
                length += 4
            else:
                length = 0
            records.append((at, bytes(tag), name, length))
            at += _HEAD + length
            if tag == b"end     ":
                assert at == len(self.data)
                return records

    def _fields(self, at: int, end: int) -> dict[str, tuple[int, int, int]]:
        fields = {}
        while at < end:
            kind, length = self.data[at], struct.unpack_from("<I", self.data, at + 2)[0]
            name = self.data[at + 6 : at + 6 + self.data[at + 1]].decode()
            at += 6 + self.data[at + 1]
            fields[name] = (kind, at, length)
            at += length
        return fields

    def place(self, unit: str, *path: str | int) -> tuple[int, int]:
        """Where the value of a field lies, and its length; a number in @path is the index in a list."""
        at, length = next((at + _HEAD, length - 4) for at, _, name, length in self._records() if name == unit)
        kind = _GROUP
        for step in path:
            if isinstance(step, str):
                assert kind == _GROUP
                kind, at, length = self._fields(at, at + length)[step]
            else:
                assert kind == _LIST
                at += 4
                for _ in range(step):
                    at += 4 + struct.unpack_from("<I", self.data, at)[0]
                length = struct.unpack_from("<I", self.data, at)[0]
                at, kind = at + 4, _GROUP
        return at, length

    def count(self, unit: str, *path: str | int) -> int:
        """The elements of a list."""
        return struct.unpack_from("<I", self.data, self.place(unit, *path)[0])[0]

    def number(self, unit: str, *path: str | int) -> int:
        at, length = self.place(unit, *path)
        return int.from_bytes(self.data[at : at + length], "little")

    def set(self, value: int, unit: str, *path: str | int) -> None:
        at, length = self.place(unit, *path)
        self.data[at : at + length] = value.to_bytes(length, "little")

    def write(self, path: Path) -> None:
        """With every check made anew: the running CRC-32C of all bytes but the checks."""
        crc, done = 0xFFFFFFFF, 0

        def check(at: int) -> None:
            nonlocal crc, done
            for byte in self.data[done:at]:
                crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
            struct.pack_into("<I", self.data, at, crc ^ 0xFFFFFFFF)
            done = at + 4

        for at, tag, _, length in self._records():
            check(at + _HEAD - 4)
            if tag == b"unit    ":
                check(at + _HEAD + length - 4)
            elif tag == b"bulk    ":
                run = at + _HEAD
                while run < at + _HEAD + length:
                    check(run + 16)
                    run += _RUN + struct.unpack_from("<Q", self.data, run + 8)[0]
        path.write_bytes(self.data)
