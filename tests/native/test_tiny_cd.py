"""Tiny guests with CD drives: what is on the medium is read, also while media are changed and the machine is moved."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pattern import sector_of
from test_tiny_save import move
from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
BLOCKS = 300
MSI = pytest.mark.parametrize("msi", [0, 1], ids=["pin", "message"])


@pytest.fixture
def medium(tmp_path: Path) -> Callable[..., Path]:
    """A medium that holds one version."""

    def make(version: int, blocks: int = BLOCKS) -> Path:
        path = tmp_path / f"{version}.iso"
        path.write_bytes(b"".join(sector_of(n, version) for n in range(4 * blocks)))
        path.chmod(0o400)
        return path

    return make


def change(vm: Tiny, path: Path | None = None, **params: object) -> dict:
    if not path:
        return vm.try_call("cd-change", cd="cd0", **params)
    with path.open("rb") as file:
        return vm.try_call("cd-change", file.fileno(), cd="cd0", **params)


def tray(vm: Tiny) -> tuple[bool, bool, bool]:
    (cd,) = vm.call("status")["cds"]
    assert cd["cd"] == "cd0"
    return cd["medium"], cd["open"], cd["locked"]


@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])
@MSI
@pytest.mark.parametrize("direct", ["off", "on"])
def test_verify(
    tiny: Start, medium: Callable[..., Path], rng: random.Random, vmm: Path, msi: int, direct: str
) -> None:
    version = rng.randrange(1, 1000)
    options = f"version={version} msi={msi} seed={rng.randrange(1, 2**31)}"
    vm = tiny(f"cd-verify,idle {options}", "--cdrom", f"{medium(version)},direct={direct}", vmm=vmm)
    vm.expect("IDLE")
    (stats,) = vm.call("stats")["disks"]
    assert stats["disk"] == "cd0" and stats["read-bytes"] == BLOCKS * 2048 and stats["writes"] == stats["errors"] == 0
    vm.send("x")
    assert f"CD {BLOCKS} blocks verified" in vm.finish()


@MSI
def test_move_under_load(
    tiny: Start, medium: Callable[..., Path], tmp_path: Path, rng: random.Random, msi: int
) -> None:
    args = ["--cdrom", medium(7), "--io-threads", 2]
    vm = tiny(f"cd-load msi={msi} seed={rng.randrange(1, 2**31)}", *args)
    vm.expect(r"LOAD \d+\n")
    for turn in range(4):
        vm = move(tiny, vm, tmp_path / f"state{turn}", *args)
        vm.expect(r"LOAD \d+\n")
    vm.send("x")
    vm.expect(r"LOAD verified \d+\nTEST cd-load ok")
    assert vm.wait() == 0


def test_change_under_load(tiny: Start, medium: Callable[..., Path], tmp_path: Path, rng: random.Random) -> None:
    """Media of other sizes, with a while of none in between, also while the machine is paused; then it is moved. Other
    states and other media are refused by name."""
    vm = tiny(f"cd-load seed={rng.randrange(1, 2**31)}", "--cdrom", medium(1))
    vm.expect(rf"CD version 1 blocks {BLOCKS}\n")
    for version in range(2, 8):
        if version % 2:
            assert "result" in change(vm)
            assert tray(vm) == (False, True, False)
        if version == 4:
            vm.call("pause")
        assert "result" in change(vm, medium(version, BLOCKS + version))
        if version == 4:
            vm.call("resume")
        vm.expect(rf"CD version {version} blocks {BLOCKS + version}\n")
        vm.expect(r"LOAD \d+\n")
    assert any(event["method"] == "cd" for event in vm.events)
    small = tmp_path / "small"
    small.write_bytes(bytes(512))
    assert "no image of a CD" in change(vm, small)["error"]["message"]
    assert "no CD drive 'other'" in vm.try_call("cd-change", cd="other")["error"]["message"]
    vm.save(tmp_path / "state")
    assert "saved" in change(vm)["error"]["message"]
    vm.call("quit")
    assert vm.wait() == 0
    for args in (["--cdrom", "id=cd0"], ["--cdrom", tmp_path / "6.iso"], []):
        other = tiny("", *args, restore=tmp_path / "state")
        assert other.wait() == 1 and ("cd0" in other.errors or "6.iso" in other.errors or "ahci" in other.errors)
    vm = tiny("", "--cdrom", tmp_path / "7.iso", restore=tmp_path / "state")
    vm.expect(r"LOAD \d+\n")
    vm.send("x")
    vm.expect(r"LOAD verified \d+\nTEST cd-load ok")
    assert vm.wait() == 0


def test_locked(tiny: Start, medium: Callable[..., Path]) -> None:
    """The host asks, the guest opens; by force it goes at once."""
    vm = tiny("cd-tray", "--cdrom", medium(1))
    vm.expect("LOCKED")
    assert tray(vm) == (True, False, True)
    assert "locked the tray of cd0" in change(vm)["error"]["message"]
    vm.expect("OPENED")
    assert tray(vm) == (True, True, False)
    assert "result" in change(vm, medium(2, 9))
    vm.finish()
    assert "CD blocks 9" in vm.output
    vm = tiny("cd-tray", "--cdrom", medium(3))
    vm.expect("LOCKED")
    assert "result" in change(vm, force=True)
    assert tray(vm) == (False, True, True)


def test_refused(tiny: Start, medium: Callable[..., Path], tmp_path: Path) -> None:
    """What cannot be is said before the guest runs."""
    empty = tmp_path / "empty"
    empty.touch()
    one = medium(1)
    for args, words in (
        (["--cdrom", empty], "0 bytes, is not a number"),
        (["--cdrom", tmp_path / "none"], "none"),
        (["--cdrom", one, "--cdrom", f"{one},id=cd0"], "two have the id 'cd0'"),
        (["--cdrom", f"{one},bootindex=3", "--disk", f"path={one},readonly=on,bootindex=3"], "bootindex 3"),
        (["--cdrom", one] * 5, "4"),
    ):
        vm = tiny("cd-verify", *args)
        assert vm.wait() == 1 and words in vm.errors, vm.errors
    # The same medium in two drives.
    vm = tiny("cd-verify", "--cdrom", one, "--cdrom", f"{one},id=other")
    vm.finish()
    assert os.access(one, os.R_OK)
