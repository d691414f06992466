"""Images of CDs: ISO 9660 (ECMA-119) with one folder, and on request a FAT image that UEFI boots (El Torito, UEFI
2.10 section 13.3.2)."""

import struct
from pathlib import Path

from uefi import run

BLOCK = 2048
VOLUME, BOOT_RECORD, END, TABLE_L, TABLE_M, FOLDER, CATALOG, FIRST = range(16, 24)
DATE = bytes([126, 1, 1, 0, 0, 0, 0])  # 2026-01-01


def both(value: int, size: str) -> bytes:
    """A number in both orders of bytes."""
    return struct.pack("<" + size, value) + struct.pack(">" + size, value)


def record(name: bytes, block: int, size: int, folder: bool = False) -> bytes:
    """An entry of a folder (9.1)."""
    body = both(block, "I") + both(size, "I") + DATE + bytes([2 * folder, 0, 0]) + both(1, "H") + bytes([len(name)]) + name
    body += b"\0" * (len(body) % 2)
    return bytes([len(body) + 2, 0]) + body


def volume(blocks: int) -> bytes:
    """The primary volume descriptor (8.4)."""
    text = lambda words, size: words.encode().ljust(size)  # noqa: E731
    head = b"\x01CD001\x01\0" + text("", 32) + text("GLINT", 32) + bytes(8) + both(blocks, "I") + bytes(32)
    head += both(1, "H") + both(1, "H") + both(BLOCK, "H") + both(10, "I")
    head += struct.pack("<II", TABLE_L, 0) + struct.pack(">II", TABLE_M, 0)
    head += record(b"\0", FOLDER, BLOCK, folder=True)
    head += text("", 128 * 4 + 37 * 3) + (b"0" * 16 + b"\0") * 4 + b"\x01\0"
    return head.ljust(BLOCK, b"\0")


def catalog(block: int) -> bytes:
    """El Torito's: checked, for EFI; not emulated, as long as the medium is."""
    check = struct.pack("<BBH24sHBB", 1, 0xEF, 0, b"", 0, 0x55, 0xAA)
    total = -sum(struct.unpack("<16H", check)) & 0xFFFF
    check = struct.pack("<BBH24sHBB", 1, 0xEF, 0, b"", total, 0x55, 0xAA)
    return check + struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, 0, block)


# A FAT file system with few clusters is FAT16 (UEFI refuses a FAT32 of fewer than 65525).
def make(path: Path, files: dict[str, bytes], boot: Path | None = None) -> None:
    """files: by upper-case name; boot: an EFI program."""
    blocks, entries, place = b"", b"", FIRST
    for name, data in sorted(files.items()):
        entries += record(name.encode() + b";1", place, len(data))
        blocks += data + bytes(-len(data) % BLOCK)
        place = FIRST + len(blocks) // BLOCK
    if boot:
        fat = path.with_suffix(".fat")
        sectors = (boot.stat().st_size + (2 << 20)) // BLOCK * (BLOCK // 512)
        run("mformat", "-C", "-i", fat, "-c", "4", "-v", "CD", "-T", str(sectors), "-h", "64", "-s", "32", "::")
        run("mmd", "-i", fat, "::/EFI", "::/EFI/BOOT")
        run("mcopy", "-i", fat, boot, "::/EFI/BOOT/BOOTX64.EFI")
        data = fat.read_bytes()
        blocks += data + bytes(-len(data) % BLOCK)
        fat.unlink()
    folder = record(b"\0", FOLDER, BLOCK, folder=True) + record(b"\1", FOLDER, BLOCK, folder=True) + entries
    assert len(folder) <= BLOCK
    system = {
        VOLUME: volume(FIRST + len(blocks) // BLOCK),
        BOOT_RECORD: (b"\0CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", CATALOG)),
        END: b"\xffCD001\x01",
        TABLE_L: struct.pack("<BBIH", 1, 0, FOLDER, 1) + bytes(2),
        TABLE_M: struct.pack(">BBIH", 1, 0, FOLDER, 1) + bytes(2),
        FOLDER: folder,
        CATALOG: catalog(place),
    }
    if not boot:
        system[BOOT_RECORD] = system.pop(END)
    with path.open("wb") as file:
        for block, data in system.items():
            file.seek(block * BLOCK)
            file.write(data)
        file.seek(FIRST * BLOCK)
        file.write(blocks)
        file.truncate(max(FIRST * BLOCK + len(blocks), FIRST * BLOCK))
