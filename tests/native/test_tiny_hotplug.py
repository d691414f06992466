"""Disks that come and go behind hot-plug ports, from both sides; saved and restored in between."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
Disk = Callable[..., Path]


def add(vm: Tiny, path: Path, **params: object) -> dict:
    fd = os.open(path, os.O_RDWR)
    try:
        return vm.call("device-add", fd, kind="disk", id="hot", **params)
    finally:
        os.close(fd)


def refusal(vm: Tiny, method: str, *fds: int, **params: object) -> str:
    return str(vm.try_call(method, *fds, **params)["error"])


def wait_gone(vm: Tiny) -> None:
    vm.expect("HOTPLUG gone")
    assert vm.call("status")["ports"] == []
    removed = [event["params"] for event in vm.events if event["method"] == "device-removed"]
    assert removed and removed[-1]["id"] == "hot"
    vm.events.clear()


@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM])
def test_come_and_go(tiny: Start, disk: Disk, vmm: Path) -> None:
    image = disk()
    vm = tiny("hotplug rounds=5", "--hotplug", vmm=vmm)
    for _ in range(4):
        vm.expect("HOTPLUG ready")
        assert add(vm, image) == {"id": "hot", "port": 1}
        vm.expect("HOTPLUG works")
        assert vm.call("status")["ports"] == [{"port": 1, "id": "hot", "removing": False}]
        vm.call("device-remove", id="hot")
        vm.expect("HOTPLUG asked")
        wait_gone(vm)
    vm.expect("HOTPLUG ready")
    for round_ in range(1, 5):
        assert image.read_bytes()[round_ * 512 : round_ * 512 + 512] == bytes([round_]) * 512


def test_moves(tiny: Start, disk: Disk, tmp_path: Path) -> None:
    """A machine with a plugged disk is restored with the same disk in the same port, and that one can go."""
    image, state = disk(), tmp_path / "state"
    vm = tiny("hotplug rounds=2 port=2", "--hotplug")
    vm.expect("HOTPLUG ready")
    assert add(vm, image, port=2)["port"] == 2
    vm.expect("HOTPLUG works")
    vm.save(state)
    vm.call("quit")
    assert vm.wait() == 0

    for args, words in [
        ([], "port2"),
        (["--disk", f"path={image},id=hot"], "disk:hot"),
        (["--disk", f"path={image},id=hot,port=1"], "port1"),
    ]:
        wrong = tiny("", "--hotplug", *args, restore=state)
        assert wrong.wait() == 1
        assert words in wrong.errors
    vm = tiny("", "--hotplug", "--disk", f"path={image},id=hot,port=2", restore=state)
    vm.call("device-remove", id="hot")
    wait_gone(vm)
    vm.expect("HOTPLUG ready")
    add(vm, image, port=2)
    vm.expect("HOTPLUG works")
    vm.call("device-remove", id="hot")
    vm.expect("TEST hotplug ok")
    assert vm.wait() == 0


def test_there_from_the_start(tiny: Start, disk: Disk) -> None:
    """Its port is on and the link up; a reset finds it the same; one in the middle of a removal is gone after it."""
    image = disk()
    vm = tiny("hotplug rounds=1 cold=1 deaf=1", "--hotplug", "--disk", f"path={image},id=hot,port=1")
    vm.expect("HOTPLUG works")
    vm.call("reset")
    vm.expect("HOTPLUG works")
    vm.call("pause")
    vm.call("resume")
    vm.call("device-remove", id="hot")
    vm.expect("HOTPLUG asked")
    assert "already" in refusal(vm, "device-remove", id="hot")
    assert vm.call("status")["ports"] == [{"port": 1, "id": "hot", "removing": True}]
    vm.call("reset")
    vm.expect("FAIL the slot's status")
    assert vm.wait() == 0


def test_refusals(tiny: Start, disk: Disk) -> None:
    image, other = disk(), disk(name="other.raw")
    vm = tiny("idle", "--hotplug", "--disk", f"path={other},id=cold")
    vm.expect("IDLE")
    fd = os.open(image, os.O_RDWR)
    assert "kind" in refusal(vm, "device-add", fd, kind="toaster")
    assert "kind" in refusal(vm, "device-add", fd)
    assert "descriptor" in refusal(vm, "device-add", kind="disk", id="a")
    assert "id" in refusal(vm, "device-add", fd, kind="disk")
    assert "path" in refusal(vm, "device-add", fd, kind="disk", id="a", path="/etc/passwd")
    assert "cold" in refusal(vm, "device-add", fd, kind="disk", id="cold")
    assert "error" in vm.try_call("device-add", fd, kind="disk", id="a", port=9)
    assert "port" in refusal(vm, "device-remove", id="cold")
    busy = os.open(other, os.O_RDWR)
    assert "use" in refusal(vm, "device-add", busy, kind="disk", id="a")  # it has an owner
    os.close(busy)
    assert vm.call("status")["ports"] == []
    for port in range(1, 5):
        name = disk(name=f"{port}.raw")
        fd2 = os.open(name, os.O_RDWR)
        assert vm.call("device-add", fd2, kind="disk", id=f"hot{port}")["port"] == port
        os.close(fd2)
    assert "no port" in refusal(vm, "device-add", fd, kind="disk", id="a")
    # What the guest never switched on can go without it.
    vm.call("device-remove", id="hot1")
    while len(ports := vm.call("status")["ports"]) == 4:
        time.sleep(0.05)
    assert [port["id"] for port in ports] == ["hot2", "hot3", "hot4"]
    vm.call("pause")
    assert "paused" in refusal(vm, "device-remove", id="hot2")
    os.close(fd)
