"""Disks beside tools not ours: the engine as a program, a model of what a disk holds, qemu-img and libvhdi."""

import ctypes
import json
import os
import random
import subprocess
from pathlib import Path

from host import BUILD

MIB = 1 << 20
ENGINE = BUILD / "tests/disk/engine"
GLINT = BUILD / "cli/glint"


def call(*command: object, **options) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def engine(*args: object, **options) -> str:
    return call(ENGINE, *args, **options)


def engine_info(path: Path) -> list[dict]:
    return json.loads(engine("info", path))


def qemu_img(*args: object) -> str:
    return call("qemu-img", *args)


def vhdi_contents(*chain: Path) -> bytes:
    """What libvhdi reads from a chain, whose child comes last. Debian's vhdimount cannot mount, so its library is asked."""
    vhdi = ctypes.CDLL("libvhdi.so.1")
    vhdi.libvhdi_file_read_buffer_at_offset.restype = ctypes.c_ssize_t
    read_only, files = 1, []
    for path in chain:
        file = ctypes.c_void_p()
        assert vhdi.libvhdi_file_initialize(ctypes.byref(file), None) == 1
        assert vhdi.libvhdi_file_open(file, bytes(path), read_only, None) == 1, path
        assert not files or vhdi.libvhdi_file_set_parent_file(file, files[-1], None) == 1, path
        files.append(file)
    size = ctypes.c_uint64()
    assert vhdi.libvhdi_file_get_media_size(files[-1], ctypes.byref(size), None) == 1
    contents = ctypes.create_string_buffer(size.value)
    step = 1 << 20
    for at in range(0, size.value, step):
        part = ctypes.byref(contents, at)
        length = min(step, size.value - at)
        got = vhdi.libvhdi_file_read_buffer_at_offset(
            files[-1], part, ctypes.c_size_t(length), ctypes.c_int64(at), None
        )
        assert got == length, f"offset {at}"
    for file in reversed(files):
        vhdi.libvhdi_file_free(ctypes.byref(file), None)
    return contents.raw


class Model:
    """What a disk ought to hold: a sparse raw file, new or as it is (size 0)."""

    def __init__(self, path: Path, size: int = 0, sector: int = 512) -> None:
        path.touch()
        self.path, self.size, self.sector = path, size or path.stat().st_size, sector
        os.truncate(path, self.size)

    def some_range(self, rng: random.Random, most: int) -> tuple[int, int]:
        sectors = self.size // self.sector
        # Both ends are as likely as all that lies between.
        at = rng.choice([rng.randrange(sectors), rng.randrange(min(sectors, 64)), sectors - 1 - rng.randrange(min(sectors, 64))])
        count = min(rng.randint(1, most // self.sector), sectors - at)
        return at * self.sector, count * self.sector

    def change(self, rng: random.Random, count: int, most: int = 1 << 18) -> str:
        """Random changes to the model; the commands by which the engine comes to hold the same at their end."""
        commands = []
        with self.path.open("r+b") as model:
            for _ in range(count):
                offset, length = self.some_range(rng, most)
                kind = rng.choice(["write"] * 6 + ["zero", "flush", "reopen"])
                model.seek(offset)
                if kind in ("flush", "reopen"):
                    commands.append(kind)
                    continue
                model.write(rng.randbytes(length) if kind == "write" else bytes(length))
                commands.append(f"{kind} {offset} {length}")
        return "\n".join(commands) + "\n"

    def grow(self, size: int) -> str:
        self.size = size
        os.truncate(self.path, size)
        return f"grow {size}\n"


def glint(*args: object, **options) -> str:
    return call(GLINT, *args, **options)


def glint_json(*args: object):
    return json.loads(glint(*args, "--json"))


def refused(*args: object, status: int = 1, **options) -> str:
    """What glint says when it does not do something: one error, in words."""
    result = subprocess.run([str(word) for word in (GLINT, *args)], capture_output=True, text=True, **options)
    assert result.returncode == status and result.stderr.startswith("glint: "), result
    return result.stderr
