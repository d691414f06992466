"""Tiny guests on NVMe: what was written over every queue is there, also when the machine is moved amid it; ports; buses."""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pattern import SECTOR, versions
from test_tiny_save import move
from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
Disk = Callable[..., Path]
BOTH = pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])
SHADOW = pytest.mark.parametrize("shadow", [0, 1], ids=["registers", "memory"])


@BOTH
@SHADOW
@pytest.mark.parametrize("queues, threads", [(1, 1), (4, 2)])
def test_verify(tiny: Start, disk: Disk, rng: random.Random, vmm: Path, shadow: int, queues: int, threads: int) -> None:
    path = disk()
    version = rng.randrange(1, 1000)
    vm = tiny(
        f"nvme-verify mib=1 version={version} shadow={shadow} seed={rng.randrange(1, 2**31)}",
        *("--disk", f"path={path},bus=nvme,queues={queues},id=my-nvme", "--io-threads", threads),
        vmm=vmm,
        memory="3G",
    )
    output = vm.finish()
    assert f"NVME 'my-nvme{' ' * 13}' sectors 32768 queues {queues}" in output and "high memory too" in output
    data = path.read_bytes()
    for first in range(0, 256, 16):  # discarded, and what lies between
        assert not any(data[first * SECTOR : (first + 8) * SECTOR])
        assert set(versions(data[(first + 8) * SECTOR : (first + 16) * SECTOR], first + 8)) == {version}
    assert set(versions(data[256 * SECTOR : 1 << 20], 256)) == {version}
    assert not any(data[1 << 20 :])


@SHADOW
def test_full_completion_queue(tiny: Start, disk: Disk, shadow: int) -> None:
    vm = tiny(f"nvme-small shadow={shadow}", "--disk", f"path={disk()},bus=nvme,queues=1")
    assert "NVME 9 commands at a time in 3 places" in vm.finish()


@SHADOW
@pytest.mark.parametrize("port", [0, 2], ids=["slot", "port"])
def test_move_under_load(tiny: Start, disk: Disk, tmp_path: Path, rng: random.Random, shadow: int, port: int) -> None:
    """The guest keeps account of every block it wrote; commands are in flight at each save."""
    image = disk()
    args = ["--disk", f"path={image},bus=nvme,queues=4{f',port={port}' * bool(port)}", "--io-threads", 2]
    seed = rng.randrange(1, 2**31)
    vm = tiny(f"nvme-load every=50 mib=1 shadow={shadow} port={port} seed={seed}", *args)
    vm.expect(r"LOAD \d+\n")
    for turn in range(4):
        vm = move(tiny, vm, tmp_path / f"state{turn}", *args)
        vm.expect(r"LOAD \d+\n")
    vm.send("x")
    vm.expect(r"LOAD verified \d+\nTEST nvme-load ok")
    assert vm.wait() == 0
    data = image.read_bytes()[: 1 << 20]
    written = [at for at in range(0, len(data), 4096) if any(data[at : at + 4096])]
    for at in written:
        assert len(set(versions(data[at : at + 4096], at // 512))) == 1
    assert len(written) > 20


def test_stats_and_other_buses(tiny: Start, disk: Disk, tmp_path: Path) -> None:
    """What was done is counted; a machine saved with the one does not go on with the other, and says so."""
    image = disk()
    vm = tiny("nvme-verify,idle mib=1", "--disk", f"path={image},bus=nvme,id=here")
    vm.expect("IDLE")
    (stats,) = vm.call("stats")["disks"]
    assert stats["disk"] == "here" and stats["errors"] == 0
    assert stats["written-bytes"] == 1 << 20 and stats["read-bytes"] == 1 << 20
    assert stats["writes"] > 1 and stats["reads"] > 1 and stats["flushes"] >= 2 and stats["discards"] == 1
    vm.save(tmp_path / "state")
    vm.call("quit")
    assert vm.wait() == 0
    other = tiny("", "--disk", f"path={image},id=here", restore=tmp_path / "state")
    assert other.wait() == 1 and "nvme:here" in other.errors
    back = tiny("", "--disk", f"path={image},bus=nvme,id=here", restore=tmp_path / "state")
    back.send("x")
    back.expect("TEST idle ok")
    assert back.wait() == 0


def test_full_pauses(tiny: Start, tmp_path: Path) -> None:
    """The guest waits until there is room again, and misses nothing."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        path = folder / "disk.raw"
        path.touch()
        os.truncate(path, 8 << 20)
        vm = tiny("nvme-verify mib=4 version=3", "--disk", f"path={path},bus=nvme,on-error=pause")
        assert "No space" in vm.wait_for_state("paused")["why"]
        vm.call("resume")  # without room it pauses again
        vm.wait_for_state("paused")
        subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
        vm.call("resume")
        vm.finish()
        assert set(versions(path.read_bytes()[256 * SECTOR : 4 << 20], 256)) == {3}
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
