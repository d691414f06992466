"""VHDX beside tools that are not ours: what we write they read, what they write we read, and both find it clean.

qemu-img knows fixed and dynamic files, and replays logs; libvhdi's tools know differencing ones too."""

import os
import random
import subprocess
from pathlib import Path

import pytest

BUILD = Path(os.environ["GLINT_CLONE"]) / "build/release"
SEED = int(os.environ.get("GLINT_SEED") or 1)
MIB = 1 << 20


class Disks:
    """A folder with disk images and the raw files that they must equal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = random.Random(SEED)

    def run(self, *command: object) -> str:
        result = subprocess.run([str(word) for word in command], cwd=self.folder, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}: {result.stdout} {result.stderr}"
        return result.stdout

    def tool(self, *command: object) -> str:
        return self.run(BUILD / "tests/disk/disk_tool", *command)

    def model(self, size: int) -> None:
        (self.folder / "model").touch()
        os.truncate(self.folder / "model", size)

    def write(self, name: str, count: int, *crash: str) -> None:
        self.tool("write", name, "model", self.random.randrange(1 << 31), count, *crash)

    def compare_qemu(self, name: str) -> None:
        self.run("qemu-img", "check", "-f", "vhdx", name)
        self.run("qemu-img", "compare", "-f", "vhdx", "-F", "raw", name, "model")

    def write_qemu(self, name: str, size: int, count: int) -> None:
        """The same random writes by qemu-io to both."""
        commands = []
        for _ in range(count):
            length = self.random.randrange(1, 512) * 512
            offset = self.random.randrange((size - length) // 512) * 512
            commands += ["-c", f"write -P {self.random.randrange(1, 255)} {offset} {length}"]
        self.run("qemu-io", "-f", "vhdx", *commands, name)
        self.run("qemu-io", "-f", "raw", *commands, "model")


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


@pytest.mark.parametrize("subformat, block", [("dynamic", 1), ("dynamic", 256), ("fixed", 8)])
def test_qemu_reads_ours(disks: Disks, subformat: str, block: int) -> None:
    size = 50 * MIB + 512
    disks.model(size)
    disks.tool("make", "disk.vhdx", size, subformat, f"{block}M", 512)
    disks.compare_qemu("disk.vhdx")
    for _ in range(2):
        disks.write("disk.vhdx", 40)
        disks.compare_qemu("disk.vhdx")
    disks.tool("compare", "disk.vhdx", "model")


def test_qemu_replays_our_log(disks: Disks) -> None:
    disks.model(64 * MIB)
    disks.tool("make", "disk.vhdx", 64 * MIB, "dynamic", "1M", 512)
    for count in (1, 40):
        disks.write("disk.vhdx", count, "crash")
        (disks.folder / "copy.vhdx").write_bytes((disks.folder / "disk.vhdx").read_bytes())
        disks.run("qemu-img", "check", "-r", "all", "-f", "vhdx", "copy.vhdx")
        disks.run("qemu-img", "compare", "-f", "vhdx", "-F", "raw", "copy.vhdx", "model")
        disks.write("disk.vhdx", 1)  # replays it too
        disks.compare_qemu("disk.vhdx")


@pytest.mark.parametrize("subformat, block", [("dynamic", 1), ("fixed", 32)])
def test_we_read_qemus(disks: Disks, subformat: str, block: int) -> None:
    size = 60 * MIB
    disks.model(size)
    options = f"subformat={subformat},block_size={block * MIB}"
    disks.run("qemu-img", "create", "-f", "vhdx", "-o", options, "disk.vhdx", size)
    disks.tool("compare", "disk.vhdx", "model")
    for _ in range(2):
        disks.write_qemu("disk.vhdx", size, 20)
        disks.tool("compare", "disk.vhdx", "model")
        disks.write("disk.vhdx", 40)
        disks.compare_qemu("disk.vhdx")


def test_we_read_qemus_largest(disks: Disks) -> None:
    disks.model(4 * MIB)
    disks.run("qemu-img", "create", "-f", "vhdx", "disk.vhdx", "64T")
    disks.run("qemu-io", "-f", "vhdx", "-c", f"write -P 7 {(64 << 40) - 4096} 4096", "disk.vhdx")
    disks.tool("grow", "disk.vhdx", 64 << 40)


def test_qemu_reads_grown(disks: Disks) -> None:
    disks.model(20 * MIB)
    disks.tool("make", "disk.vhdx", 20 * MIB, "dynamic", "1M", 512)
    disks.write("disk.vhdx", 30)
    for size in (70 * MIB, 129 * 1024 * MIB):  # the second needs a longer table
        disks.tool("grow", "disk.vhdx", size)
        os.truncate(disks.folder / "model", size)
        disks.write("disk.vhdx", 30)
        disks.compare_qemu("disk.vhdx")


@pytest.mark.parametrize("sector", [512, 4096])
def test_libvhdi_reads_chains(disks: Disks, sector: int) -> None:
    """vhdiinfo understands each of a chain; to read one by it would take FUSE, which the build root has not."""
    size = 40 * MIB
    disks.model(size)
    disks.tool("make", "a.vhdx", size, "dynamic", "2M", sector)
    disks.write("a.vhdx", 30)
    for child, parent, block in (("b.vhdx", "a.vhdx", 2), ("c.vhdx", "b.vhdx", 1)):
        disks.tool("make", child, size, "differencing", f"{block}M", sector, parent)
        disks.tool("compare", child, "model")
        disks.write(child, 40)
        disks.tool("compare", child, "model")
    info = disks.run("vhdiinfo", "c.vhdx")
    assert "Differential" in info, info
    assert f"{size} bytes" in info, info
