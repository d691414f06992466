"""Tiny guests on VHD and VHDX disks and on chains of them, whose blocks come into being while they are used."""

import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from images import KINDS, Image, tool
from pattern import versions
from test_tiny_disk import small  # noqa: F401
from test_tiny_save import move
from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
MIB = 1 << 20
EACH = pytest.mark.parametrize("kind", KINDS)
CHAINS = pytest.mark.parametrize("kind", ["vhdx-chain", "vhd-chain"])


@EACH
@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])
def test_verify(tiny: Start, tmp_path: Path, rng: random.Random, kind: str, vmm: Path) -> None:
    """Written over all queues, read back over others; the image holds just that and what its parents do."""
    image = Image(tmp_path, kind, rng)
    seed, version = rng.randrange(1, 2**31), rng.randrange(1, 1000)
    vm = tiny(
        f"blk-verify,idle queues=4 mib=4 version={version} seed={seed}",
        *("--disk", f"{image.option},queues=4,id=here", "--io-threads", 2),
        vmm=vmm,
    )
    vm.expect("IDLE")
    (stats,) = vm.call("stats")["disks"]
    assert (stats["format"], stats["images"], stats["size"]) == (image.format, len(image.chain), 16 * MIB)
    assert stats["written-bytes"] == 4 * MIB and stats["errors"] == 0
    vm.send("x")
    vm.finish()
    data = image.read()
    assert set(versions(data[: 4 * MIB])) == {version}
    image.check_rest(data, 4 * MIB)


@EACH
def test_ranges(tiny: Start, tmp_path: Path, rng: random.Random, kind: str) -> None:
    tiny("blk-ranges,blk-limits", "--disk", f"{Image(tmp_path, kind, rng).option},queues=2").finish()


@EACH
def test_moves_under_load(tiny: Start, tmp_path: Path, rng: random.Random, kind: str) -> None:
    """Saved again and again while requests that make new blocks are in flight; every block's version is right."""
    image, state = Image(tmp_path, kind, rng), tmp_path / "state"
    args = ["--disk", f"{image.option},queues=4", "--io-threads", 2]
    vm = tiny(f"load every=50 mib=12 seed={rng.randrange(1, 2**31)}", *args, cpus=2)
    for turn in range(3):
        vm.expect(r"LOAD \d+\n")
        vm = move(tiny, vm, state, *args, cpus=2)
        if turn == 1:
            # Saved, it has no owner: another program may take it before the next machine does.
            vm.expect(r"LOAD \d+\n")
            vm.save(state)
            image.read()
            vm.call("quit")
            assert vm.wait() == 0
            vm = tiny("", *args, restore=state, cpus=2)
    vm.send("x")
    vm.expect(r"LOAD verified \d+\nTEST load ok")
    assert vm.wait() == 0
    image.check_rest(image.read(), 12 * MIB)


@pytest.mark.parametrize("kind", ["vhdx", "vhd", "vhdx-chain", "vhd-chain"])
def test_kill(tiny: Start, tmp_path: Path, rng: random.Random, kind: str) -> None:
    """kill -9 at any moment: each sector holds what was flushed last, or the next version, whole."""
    image = Image(tmp_path, kind, rng)
    for _ in range(2):
        vm = tiny("generations mib=2", "--disk", f"{image.option},queues=4", "--io-threads", 2)
        vm.expect("GENERATION 1\n")
        time.sleep(rng.random())
        vm.kill()
        durable = int(re.findall(r"GENERATION (\d+)\n", vm.output)[-1])
        # The copy is made where the killed one's locks may be held for a moment still: it waits for them.
        data = image.read()
        found = set(versions(data[: 2 * MIB]))
        assert found <= {durable, durable + 1}, f"generation {durable} was flushed, found {found}"
        image.check_rest(data, 2 * MIB)


@pytest.mark.parametrize("kind", ["vhdx", "vhd", "vhdx-chain"])
def test_full(tiny: Start, small: Path, rng: random.Random, kind: str) -> None:  # noqa: F811
    """A new block without space pauses the machine; with space it goes on, and nothing is missing."""
    subprocess.run(["mount", "-o", "remount,size=80m", small], check=True)
    image = Image(small, kind, rng)
    used = sum(os.stat(small / name).st_blocks for name in os.listdir(small)) * 512
    subprocess.run(["mount", "-o", f"remount,size={used + 2 * MIB}", small], check=True)
    vm = tiny("generations mib=8 generations=2", "--disk", f"{image.option},queues=2")
    assert "No space" in vm.wait_for_state("paused")["why"]
    vm.call("resume")
    vm.wait_for_state("paused")
    subprocess.run(["mount", "-o", "remount,size=120m", small], check=True)
    vm.call("resume")
    vm.finish()
    data = image.read()
    assert set(versions(data[: 8 * MIB])) == {2}
    image.check_rest(data, 8 * MIB)


def test_full_reports(tiny: Start, small: Path, rng: random.Random) -> None:  # noqa: F811
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    image = Image(small, "vhdx", rng)
    vm = tiny("generations mib=8", "--disk", f"{image.option},on-error=report")
    vm.expect(r"TEST generations FAIL generation 1 sector \d+: status 1")
    vm.wait()  # it may be unable to end well: what the disk is at its end needs space too
    subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
    image.read()


@CHAINS
def test_parents_are_shared(tiny: Start, tmp_path: Path, rng: random.Random, kind: str) -> None:
    """Two children of one parent run at once; the parent cannot be written meanwhile, nor a child twice."""
    image = Image(tmp_path, kind, rng)
    other = f"other.{image.format}"
    tool(tmp_path, "make", other, "16M", "differencing", "1M", 512, image.chain[1])
    machines = [tiny("idle", "--disk", f"path={tmp_path / name},format={image.format}") for name in (image.chain[0], other)]
    for vm in machines:
        vm.expect("IDLE")
    for name in (image.chain[0], image.chain[1]):
        second = tiny("idle", "--disk", f"path={tmp_path / name},format={image.format}")
        assert second.wait() == 1 and "another process uses it" in second.errors
    for vm in machines:
        vm.send("x")
        vm.finish()


@CHAINS
@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])
def test_by_descriptors(tiny: Start, tmp_path: Path, rng: random.Random, kind: str, vmm: Path) -> None:
    """A machine that may open nothing gets a chain by descriptors: at its start, and while it runs."""
    image = Image(tmp_path, kind, rng)
    fds = image.open()
    option = f"path=fd={fds[0]},format={image.format},parents={':'.join(f'fd={fd}' for fd in fds[1:])}"
    tiny("blk-verify mib=1", "--disk", option, fds=tuple(fds), vmm=vmm).finish()
    short = tiny("idle", "--disk", option.rsplit(":", 1)[0], fds=tuple(fds))
    assert short.wait() == 1 and "no descriptor came" in short.errors
    for fd in fds:
        os.close(fd)

    vm = tiny("hotplug rounds=1", vmm=vmm)
    vm.expect("HOTPLUG ready")
    fds = image.open()
    hot = {"kind": "disk", "id": "hot", "format": image.format}
    assert "no descriptor came" in str(vm.try_call("device-add", *fds[:-1], **hot)["error"])
    assert "its chain has 2" in str(vm.try_call("device-add", *fds, fds[1], **hot)["error"])
    assert "the chain of parents comes back" in str(vm.try_call("device-add", fds[0], fds[0], **hot)["error"])
    assert vm.call("device-add", *fds, **hot)["id"] == "hot"
    for fd in fds:
        os.close(fd)
    vm.expect("HOTPLUG works")
    (stats,) = vm.call("stats")["disks"]
    assert stats["images"] == 3
    vm.call("device-remove", id="hot")
    vm.finish()
    image.read()


@pytest.mark.parametrize("kind", ["raw", *KINDS])
def test_grow(tiny: Start, disk: Callable[..., Path], tmp_path: Path, rng: random.Random, kind: str) -> None:
    """A disk grows under a guest that uses it; what is there stays, and the next machine knows the new size."""
    image = None if kind == "raw" else Image(tmp_path, kind, rng)
    option = (image.option if image else f"path={disk()}") + ",id=grows"
    vm = tiny(f"load every=50 mib=1 seed={rng.randrange(1, 2**31)}", "--disk", option)
    vm.expect(r"LOAD \d+\n")
    assert "smaller" in str(vm.try_call("disk-resize", disk="grows", size=MIB)["error"])
    assert "no disk 'other'" in str(vm.try_call("disk-resize", disk="other", size=MIB)["error"])
    vm.call("disk-resize", disk="grows", size=24 * MIB)
    assert vm.state() == "running" and vm.call("stats")["disks"][0]["size"] == 24 * MIB
    vm.expect(r"LOAD \d+\n")
    vm = move(tiny, vm, tmp_path / "state", "--disk", option)
    vm.expect(r"LOAD \d+\n")
    vm.send("x")
    vm.expect(r"LOAD verified \d+\nTEST load ok")
    assert vm.wait() == 0


def test_direct(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    """Direct I/O on a VHDX, by path and by a descriptor that comes while the sandbox is on."""
    folder = Path(os.environ["GLINT_CACHE"]) / f"direct-{os.getpid()}"
    folder.mkdir()
    try:
        image = Image(folder, "vhdx", rng)
        tiny("blk-verify queues=2 mib=4", "--disk", f"{image.option},direct=on,queues=2").finish()
        vm = tiny("hotplug rounds=1")
        vm.expect("HOTPLUG ready")
        fd = os.open(image.path, os.O_RDWR | os.O_DIRECT)
        vm.call("device-add", fd, kind="disk", id="hot", format="vhdx")
        os.close(fd)
        vm.expect("HOTPLUG works")
        vm.call("device-remove", id="hot")
        vm.finish()
    finally:
        subprocess.run(["rm", "-r", folder], check=True)


def test_refusals(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    """What is wrong with a disk or its chain is said whole: which disk, which file, why."""
    image = Image(tmp_path, "vhdx-chain", rng)
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(MIB))

    def refused(option: str) -> str:
        vm = tiny("idle", "--disk", option)
        assert vm.wait() == 1
        return vm.errors

    assert "vhd" in refused(f"path={raw},format=qcow2") and "qcow2" in refused(f"path={raw},format=qcow2")
    for format_ in ("vhd", "vhdx"):
        said = refused(f"path={raw},format={format_}")
        assert "disk disk0" in said and str(raw) in said
    assert "fd=N" in refused(f"{image.option},parents=fd=7")
    middle = tmp_path / image.chain[1]
    middle.rename(tmp_path / "elsewhere")
    said = refused(image.option)
    assert str(image.path) in said and image.chain[1] in said and "No such file" in said
    # A link out of the folder is not followed.
    middle.symlink_to(tmp_path / "elsewhere")
    assert image.chain[1] in refused(image.option)
    middle.unlink()
    (tmp_path / "elsewhere").rename(middle)
    tool(tmp_path, "write", image.chain[1], image.model.name, 1, 5)
    assert "has changed since it was made" in refused(image.option)


def test_raw_stays_raw(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    """A header of another format in a raw disk is data, as a guest could have written it."""
    image = Image(tmp_path, "vhdx", rng)
    before = image.path.read_bytes()
    os.truncate(image.path, len(before) + 8 * MIB)
    vm = tiny("idle", "--disk", f"path={image.path}")
    vm.expect("IDLE")
    (stats,) = vm.call("stats")["disks"]
    assert (stats["format"], stats["size"]) == ("raw", len(before) + 8 * MIB)
    vm.send("x")
    vm.finish()
