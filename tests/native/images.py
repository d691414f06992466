"""Disk images of each format for tiny guests: made, filled and read by lib/disk itself (tests/disk/disk_tool)."""

import os
import random
import subprocess
from pathlib import Path

from host import BUILD

DISK_TOOL = BUILD / "tests/disk/disk_tool"
KINDS = ["vhdx", "vhd", "vhdx-fixed", "vhdx-chain", "vhd-chain"]
BLOCK = {"vhdx": "1M", "vhd": "512K"}


def tool(folder: Path, *args: object) -> None:
    done = subprocess.run([DISK_TOOL, *map(str, args)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stderr}"


class Image:
    """A disk of @mib MiB; a chain has two parents below it, in which there is something already."""

    def __init__(self, folder: Path, kind: str, rng: random.Random, mib: int = 16, name: str = "disk") -> None:
        self.folder, self.mib = folder, mib
        self.format = kind.split("-")[0]
        self.path = folder / f"{name}.{self.format}"
        self.model = folder / f"{name}.model"  # what the parents hold
        self.model.touch()
        os.truncate(self.model, mib << 20)
        size, block = f"{mib}M", BLOCK[self.format]
        self.chain = [self.path.name]
        if kind.endswith("-chain"):
            parents = [f"{name}-base.{self.format}", f"{name}-middle.{self.format}"]
            tool(folder, "make", parents[0], size, "dynamic", block, 512)
            tool(folder, "write", parents[0], self.model.name, rng.randrange(2**31), 40)
            tool(folder, "make", parents[1], size, "differencing", block, 512, parents[0])
            tool(folder, "write", parents[1], self.model.name, rng.randrange(2**31), 40)
            tool(folder, "make", self.path.name, size, "differencing", block, 512, parents[1])
            self.chain += reversed(parents)
        else:
            tool(folder, "make", self.path.name, size, "fixed" if kind.endswith("-fixed") else "dynamic", block, 512)

    @property
    def option(self) -> str:
        return f"path={self.path},format={self.format}"

    def read(self) -> bytes:
        """All of it, as its next owner finds it; nobody has it."""
        raw = self.folder / "copy.raw"
        raw.write_bytes(b"")
        os.truncate(raw, self.mib << 20)
        tool(self.folder, "copy", self.path.name, raw.name)
        return raw.read_bytes()

    def check_rest(self, data: bytes, end: int) -> None:
        """Behind @end it holds what its parents do."""
        assert data[end:] == self.model.read_bytes()[end:]

    def open(self) -> list[int]:
        """Its descriptors, as device-add wants them."""
        return [os.open(self.folder / name, os.O_RDONLY if n else os.O_RDWR) for n, name in enumerate(self.chain)]
