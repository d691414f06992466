"""Machines saved under load and restored in a new process: nothing is lost, and what does not fit is refused by name."""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pattern import versions
from tiny import Tiny

Start = Callable[..., Tiny]
Disk = Callable[..., Path]


def move(tiny: Start, vm: Tiny, path: Path, *args: object, **options: object) -> Tiny:
    """Saves a running machine, ends it, and goes on in a new process."""
    vm.save(path)
    assert vm.state() == "saved" and vm.events[-1]["params"]["state"] == "saved"
    vm.call("quit")
    assert vm.wait() == 0
    return tiny("", *args, restore=path, **options)


def move_under_load(
    tiny: Start, image: Path, state: Path, seed: int, turns: Iterator[int], cpus: int, queues: int, threads: int
) -> None:
    """The guest keeps account of every block it wrote; requests are in flight at each save."""
    args = ["--disk", f"path={image},queues={queues}", "--io-threads", threads, "--rng"]
    vm = tiny(f"load every=50 mib=1 seed={seed}", *args, cpus=cpus)
    vm.expect(r"LOAD \d+\n")
    for _ in turns:
        vm = move(tiny, vm, state, *args, cpus=cpus)
        vm.expect(r"LOAD \d+\n")
    vm.send("x")
    vm.expect(r"LOAD verified \d+\nTEST load ok")
    assert vm.wait() == 0
    data = image.read_bytes()[: 1 << 20]
    written = [at for at in range(0, len(data), 4096) if any(data[at : at + 4096])]
    for at in written:
        assert len(set(versions(data[at : at + 4096], at // 512))) == 1
    assert len(written) > 20


@pytest.mark.parametrize("cpus, queues, threads", [(1, 1, 1), (1, 4, 1), (2, 4, 2)])
def test_disk_load(
    tiny: Start, disk: Disk, tmp_path: Path, rng: random.Random, cpus: int, queues: int, threads: int
) -> None:
    seed = rng.randrange(1, 2**31)
    move_under_load(tiny, disk(), tmp_path / "state", seed, iter(range(4)), cpus, queues, threads)


@pytest.mark.soak
def test_disk_load_for_long(
    tiny: Start, disk: Disk, tmp_path: Path, rng: random.Random, soak_seconds: float
) -> None:
    end = time.monotonic() + soak_seconds
    turns = iter(lambda: time.monotonic() < end, False)
    move_under_load(tiny, disk(), tmp_path / "state", rng.randrange(1, 2**31), turns, 2, 4, 2)


@pytest.mark.parametrize("cpus, memory", [(1, "64M"), (2, "64M"), (4, "64M"), (2, "3G")])
def test_memory_and_processors(tiny: Start, tmp_path: Path, cpus: int, memory: str) -> None:
    """All processors change memory all the time and would notice any page that is older than their registers."""
    vm = tiny("dirty smp=1 mib=2", cpus=cpus, memory=memory)
    vm.expect(r"DIRTY \d+\n")
    for turn in range(3):
        vm = move(tiny, vm, tmp_path / f"state{turn}", cpus=cpus, memory=memory)
        vm.expect(r"DIRTY \d+\n")
    vm.send("x")
    vm.expect("TEST dirty ok")
    assert vm.wait() == 0


@pytest.mark.parametrize("test, send, then", [
    ("serial-irq", "over\n", "IRQ 5 over\n"),
    ("serial-echo", "line\nend\n", "ECHO 4 line\n"),
    ("idle", "x", ""),
])  # fmt: skip
def test_waiting_for_input(tiny: Start, tmp_path: Path, test: str, send: str, then: str) -> None:
    """A halted processor, a routed interrupt, a UART with its interrupts on: all of it comes along."""
    vm = tiny(test)
    vm.expect("ready|IDLE")
    vm = move(tiny, vm, tmp_path / "state")
    vm.send(send)
    vm.expect(re.escape(then))
    vm.expect(f"TEST {test} ok")
    assert vm.wait() == 0


def test_clocks_and_button(tiny: Start, tmp_path: Path) -> None:
    """The power management timer runs on, the real-time clock is right, the button's interrupt is still led."""
    vm = tiny("pm-timer,rtc,button seconds=6")
    vm.expect("PM-TIMER begin")
    vm = move(tiny, vm, tmp_path / "state0")
    vm.expect("TEST pm-timer ok\nRTC")
    vm = move(tiny, vm, tmp_path / "state1")
    vm.expect("TEST rtc ok")
    vm.expect("BUTTON waiting")
    vm = move(tiny, vm, tmp_path / "state2")
    vm.call("power-button")
    vm.expect("TEST button ok")
    assert vm.wait() == 0


def test_go_on_after_save(tiny: Start, disk: Disk, tmp_path: Path) -> None:
    """A machine that was saved may go on where it is, as long as nobody else took its disk."""
    image = disk()
    args = ["--disk", f"path={image},queues=2"]
    vm = tiny("load every=50 mib=1", *args)
    vm.expect(r"LOAD \d+\n")
    vm.save(tmp_path / "state")
    vm.call("resume")
    vm.expect(r"LOAD \d+\n")
    # The disk is this machine's again: the saved one cannot have it.
    other = tiny("", *args, restore=tmp_path / "state")
    assert other.wait() == 1 and str(image) in other.errors
    # And the other way round.
    vm.save(tmp_path / "later")
    other = tiny("", *args, restore=tmp_path / "later")
    other.expect(r"LOAD \d+\n")
    assert "error" in vm.try_call("resume")
    assert vm.state() == "saved"
    other.send("x")
    other.expect("TEST load ok")
    assert other.wait() == 0


def test_all_disks_or_none(tiny: Start, disk: Disk, tmp_path: Path) -> None:
    """A saved machine that cannot have all its disks again holds none of them."""
    free, taken = disk(name="free.raw"), disk(name="taken.raw")
    vm = tiny("idle", "--disk", f"path={free}", "--disk", f"path={taken}")
    vm.expect("IDLE")
    vm.save(tmp_path / "state")
    owner = tiny("idle", "--disk", f"path={taken}")
    owner.expect("IDLE")
    answer = vm.try_call("resume")
    assert str(taken) in answer["error"]["message"] and vm.state() == "saved"
    second = tiny("idle", "--disk", f"path={free}")
    second.expect("IDLE")
    for other in (owner, second):
        other.send("x")
        other.finish()
    vm.call("resume")
    vm.send("x")
    vm.finish()


def test_save_to_nowhere(tiny: Start, disk: Disk) -> None:
    """A stream that cannot be written costs the guest nothing."""
    vm = tiny("load every=50 mib=1", "--disk", f"path={disk()}")
    vm.expect(r"LOAD \d+\n")
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    for fd in (full, writer):
        assert "error" in vm.try_call("save", fd)
        assert vm.state() == "running"
        vm.expect(r"LOAD \d+\n")
        os.close(fd)
    vm.send("x")
    vm.finish()


def test_what_does_not_fit(tiny: Start, disk: Disk, tmp_path: Path) -> None:
    image, state = disk(), tmp_path / "state"
    vm = tiny("idle", "--disk", f"path={image},id=here,queues=2", cpus=2)
    vm.expect("IDLE")
    vm.save(state)
    vm.call("quit")
    vm.wait()
    fits = ["--disk", f"path={image},id=here,queues=2"]
    for args, options, words in [
        (fits, {"memory": "65M", "cpus": 2}, "--memory"),
        (fits, {"cpus": 1}, "--cpus"),
        ([], {"cpus": 2}, "the saved machine has 'disk:here', this one has not"),
        ([*fits, "--rng"], {"cpus": 2}, "this machine has 'rng', the saved one has not"),
        (["--disk", f"path={image},id=there,queues=2"], {"cpus": 2}, "the saved machine has 'disk:here'"),
        (["--disk", f"path={image},id=here,queues=3"], {"cpus": 2}, "here"),
        (["--disk", f"path={disk(8, 'small.raw')},id=here,queues=2"], {"cpus": 2}, "not the disk the guest knows"),
    ]:
        other = tiny("", *args, restore=state, **options)
        assert other.wait() == 1 and words in other.errors, f"{args} {options}: {other.errors}"
        assert not other.output
    vm = tiny("", *fits, restore=state, cpus=2)
    vm.send("x")
    vm.expect("TEST idle ok")
    assert vm.wait() == 0


def test_damaged_streams(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    """Cut short, or a bit flipped: an error, never a machine that runs on something else than was saved."""
    state, bad = tmp_path / "state", tmp_path / "bad"
    vm = tiny("idle", "--rng", memory="4M")
    vm.expect("IDLE")
    vm.save(state)
    vm.call("quit")
    vm.wait()
    good = state.read_bytes()
    for n in range(40):
        data = bytearray(good)
        if n % 2:
            del data[rng.randrange(len(data)) :]
        else:
            # Half of them in the first bytes, where the devices are; the rest is mostly memory.
            at = rng.randrange(min(len(data), 20000) if n % 4 else len(data))
            data[at] ^= 1 << rng.randrange(8)
        bad.write_bytes(data)
        other = tiny("", "--rng", restore=bad, memory="4M")
        assert other.wait() == 1, f"damage {n} went unseen"
        assert other.errors.startswith("glint-vmm: ") and not other.output
        other.close()
