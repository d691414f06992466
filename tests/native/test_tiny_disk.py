"""Tiny guests on virtio-blk: what was written is there, what was malformed hurts nobody, and what is killed is whole."""

import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pattern import SECTOR, versions
from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
Disk = Callable[..., Path]
BOTH = pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])


@pytest.mark.parametrize("direct", ["off", "on"])
@pytest.mark.parametrize("queues, threads", [(1, 1), (4, 1), (4, 2), (7, 3)])
def test_verify(tiny: Start, tmp_path: Path, rng: random.Random, queues: int, threads: int, direct: str) -> None:
    """Written over all queues, flushed, read back over others; the file holds just that, and a later guest finds it."""
    # Direct I/O needs a file system that has it: the clone's, not /tmp.
    folder = Path(os.environ["GLINT_CACHE"]) if direct == "on" else tmp_path
    path = folder / f"verify-{os.getpid()}.raw"
    path.touch()
    os.truncate(path, 8 << 20)
    seed, version = rng.randrange(1, 2**31), rng.randrange(1, 1000)
    args = ["--disk", f"path={path},queues={queues},direct={direct}", "--io-threads", threads]
    options = f"queues={queues} mib=1 version={version} seed={seed}"
    try:
        tiny(f"blk-id,blk-verify {options}", *args).finish()
        data = path.read_bytes()
        assert set(versions(data[: 1 << 20])) == {version}
        assert not any(data[1 << 20 :])
        tiny(f"blk-verify {options} write=0", *args, cpus=2).finish()
    finally:
        path.unlink()


def test_stats(tiny: Start, disk: Disk) -> None:
    """What was done for the guest is counted, over all queues."""
    vm = tiny("blk-verify,idle queues=4 mib=1", "--disk", f"path={disk()},queues=4,id=here")
    vm.expect("IDLE")
    (stats,) = vm.call("stats")["disks"]
    assert stats["disk"] == "here" and stats["errors"] == 0
    assert stats["written-bytes"] == 1 << 20 and stats["read-bytes"] >= 1 << 20
    assert stats["writes"] > 1 and stats["reads"] > 1 and stats["flushes"] >= 1
    vm.send("x")
    vm.finish()


def test_high_memory(tiny: Start, disk: Disk) -> None:
    """Buffers above 4 GiB."""
    assert "high memory too" in tiny("blk-verify mib=1", "--disk", f"path={disk()}", memory="3G").finish()


def test_more_disks(tiny: Start, disk: Disk) -> None:
    args = []
    for n in range(3):
        args += ["--disk", f"path={disk(name=f'{n}.raw')},id=number-{n}"]
    for n in range(3):
        assert f"BLK id 'number-{n}'" in tiny(f"blk-id,blk-verify disk={n} mib=1", *args).finish()


@BOTH
def test_ranges_and_limits(tiny: Start, disk: Disk, vmm: Path) -> None:
    path = disk()
    tiny("blk-ranges,blk-limits", "--disk", f"path={path},queues=2", vmm=vmm).finish()
    # Discard and unmap gave the space back: less is taken than was written.
    assert os.stat(path).st_blocks * 512 < 256 * SECTOR + 4096


def test_readonly(tiny: Start, disk: Disk) -> None:
    path = disk()
    before = path.read_bytes()
    tiny("blk-limits ro=1", "--disk", f"path={path},readonly=on").finish()
    assert path.read_bytes() == before


@BOTH
def test_malformed(tiny: Start, disk: Disk, vmm: Path) -> None:
    """Every kind of malformed chain: the device needs a reset, says so, and works after it."""
    output = tiny("blk-malformed", "--disk", f"path={disk()},queues=3", vmm=vmm).finish(120)
    assert int(re.search(r"BLK malformed (\d+)", output)[1]) >= 26


@BOTH
def test_garbage_in_rings(tiny: Start, disk: Disk, rng: random.Random, vmm: Path) -> None:
    seed = rng.randrange(1, 2**31)
    vm = tiny(f"blk-fuzz seed={seed} rounds=100", "--disk", f"path={disk()},queues=2", vmm=vmm)
    vm.finish(120)
    assert "ERROR" not in vm.errors


def test_one_owner(tiny: Start, disk: Disk) -> None:
    """A disk that another VM writes is refused, by name; one that both only read is not."""
    path = disk()
    first = tiny("idle", "--disk", f"path={path}")
    first.expect("IDLE")
    for access in ("", ",readonly=on"):
        second = tiny("idle", "--disk", f"path={path}{access}")
        assert second.wait() == 1
        assert str(path) in second.errors and not second.output
    first.send("x")
    first.finish()
    readers = [tiny("idle", "--disk", f"path={path},readonly=on") for _ in range(2)]
    for reader in readers:
        reader.expect("IDLE")
    writer = tiny("idle", "--disk", f"path={path}")
    assert writer.wait() == 1
    for reader in readers:
        reader.send("x")
        reader.finish()


def test_kill(tiny: Start, disk: Disk, rng: random.Random) -> None:
    """kill -9 at any moment: each sector holds what was flushed last, or the next version, whole; and no lock stays."""
    path = disk(4)
    for _ in range(6):
        vm = tiny("generations mib=1", "--disk", f"path={path},queues=4")
        vm.expect("GENERATION 1\n")
        time.sleep(rng.random() * 1.5)
        vm.kill()
        durable = int(re.findall(r"GENERATION (\d+)\n", vm.output)[-1])
        found = set(versions(path.read_bytes()[: 1 << 20]))
        assert found <= {durable, durable + 1}, f"generation {durable} was flushed, found {found}"


# --- a full disk below the file ---


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_reports(tiny: Start, small: Path) -> None:
    path = small / "disk.raw"
    path.touch()
    os.truncate(path, 8 << 20)
    vm = tiny("generations mib=4", "--disk", f"path={path},on-error=report")
    vm.expect(r"TEST generations FAIL generation 1 sector \d+: status 1")
    assert vm.wait() == 0


def test_full_pauses(tiny: Start, small: Path) -> None:
    """The guest waits until there is room again, and misses nothing."""
    path = small / "disk.raw"
    path.touch()
    os.truncate(path, 8 << 20)
    vm = tiny("generations mib=4 generations=2", "--disk", f"path={path},on-error=pause")
    assert "No space" in vm.wait_for_state("paused")["why"]
    # Resumed without room it pauses again.
    vm.call("resume")
    vm.wait_for_state("paused")
    subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
    vm.call("resume")
    vm.finish()
    assert set(versions(path.read_bytes()[: 4 << 20])) == {2}
