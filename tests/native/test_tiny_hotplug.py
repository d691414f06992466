"""Disks that come and go behind hot-plug ports, from both sides; saved and restored in between."""

import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taps import MAC, tap
from test_tiny_net import echo
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
    vm = tiny("hotplug rounds=5", vmm=vmm)
    for _ in range(4):
        vm.expect("HOTPLUG ready")
        assert add(vm, image) == {"port": 1, "kind": "disk", "id": "hot"}
        vm.expect("HOTPLUG works")
        assert vm.call("status")["ports"] == [{"port": 1, "kind": "disk", "id": "hot", "removing": False}]
        vm.call("device-remove", id="hot")
        vm.expect("HOTPLUG asked")
        wait_gone(vm)
    vm.expect("HOTPLUG ready")
    for round_ in range(1, 5):
        assert image.read_bytes()[round_ * 512 : round_ * 512 + 512] == bytes([round_]) * 512


def test_moves(tiny: Start, disk: Disk, tmp_path: Path) -> None:
    """A machine with a plugged disk is restored with the same disk in the same port, and that one can go."""
    image, state = disk(), tmp_path / "state"
    vm = tiny("hotplug rounds=2 port=2")
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
        wrong = tiny("", *args, restore=state)
        assert wrong.wait() == 1
        assert words in wrong.errors
    vm = tiny("", "--disk", f"path={image},id=hot,port=2", restore=state)
    vm.call("device-remove", id="hot")
    wait_gone(vm)
    vm.expect("HOTPLUG ready")
    add(vm, image, port=2)
    vm.expect("HOTPLUG works")
    vm.call("device-remove", id="hot")
    vm.expect("TEST hotplug ok")
    assert vm.wait() == 0


def test_interface(tiny: Start, rng: random.Random, tmp_path: Path) -> None:
    """An interface comes, carries frames, goes; the next one is in a saved machine, and the same must be there again."""
    state = tmp_path / "state"
    with tap() as t, tap() as second:
        vm = tiny("hotplug rounds=2 nic=1")
        vm.expect("HOTPLUG ready")
        added = vm.call("device-add", *t.fds, kind="net", id="nic", mac=MAC.hex(":"))
        assert added == {"port": 1, "kind": "net", "id": "nic"}
        vm.expect(f"NET ready queues 3 .*mac:{MAC.hex(':')}")
        echo(t.socket, rng, 0, 40, 1400)
        assert [net["net"] for net in vm.call("stats")["nets"]] == ["nic"]
        vm.call("link", id="nic", up=False)
        vm.call("link", id="nic", up=True)
        vm.send("x")
        vm.expect("HOTPLUG works")
        vm.call("device-remove", id="nic")
        vm.expect("HOTPLUG gone")
        while vm.call("status")["ports"]:
            time.sleep(0.05)
        assert vm.call("stats")["nets"] == []

        vm.expect("HOTPLUG ready")
        vm.call("device-add", *second.fds, kind="net", id="nic", mac=MAC.hex(":"))
        vm.expect("NET ready")
        echo(second.socket, rng, 0, 20, 1400)
        vm.save(state)
        vm.call("quit")
        assert vm.wait() == 0
        wrong = tiny("", restore=state)
        assert wrong.wait() == 1
        assert "'net:nic' in port 1" in wrong.errors
        net = f"tap={second.option},vhost=off,id=nic,port=1"
        vm = tiny("", "--net", net, restore=state, fds=second.fds)
        echo(second.socket, rng, 20, 20, 1400)
        vm.send("x")
        vm.expect("HOTPLUG works")
        vm.call("device-remove", id="nic")
        vm.expect("TEST hotplug ok")
        assert vm.wait() == 0


def test_there_from_the_start(tiny: Start, disk: Disk) -> None:
    """Its port is on and the link up; a reset finds it the same; one in the middle of a removal is gone after it."""
    image = disk()
    vm = tiny("hotplug rounds=1 cold=1 deaf=1", "--disk", f"path={image},id=hot,port=1")
    vm.expect("HOTPLUG works")
    vm.call("reset")
    vm.expect("HOTPLUG works")
    vm.call("pause")
    vm.call("resume")
    vm.call("device-remove", id="hot")
    vm.expect("HOTPLUG asked")
    assert "already" in refusal(vm, "device-remove", id="hot")
    assert vm.call("status")["ports"] == [{"port": 1, "kind": "disk", "id": "hot", "removing": True}]
    vm.call("reset")
    vm.expect("FAIL the slot's status")
    assert vm.wait() == 0


def test_refusals(tiny: Start, disk: Disk) -> None:
    image, other = disk(), disk(name="other.raw")
    vm = tiny("idle", "--disk", f"path={other},id=cold")
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
    assert "descriptors came along" in refusal(vm, "device-add", kind="net", id="a")
    assert "no queue of a tap" in refusal(vm, "device-add", fd, kind="net", id="a")
    assert "tap" in refusal(vm, "device-add", fd, kind="net", id="a", tap="eth0")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    assert "stream" in refusal(vm, "device-add", ours.fileno(), kind="net", id="a")
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
