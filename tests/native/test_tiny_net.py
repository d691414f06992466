"""Tiny guests on virtio-net: every frame there and back over a tap and over passt's framing, also while they move."""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taps import HOST, MAC, Tap, frame, tap
from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
BOTH = pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])
ADDRESS = MAC.hex(":")


def on_tap(t: Tap, *more: str) -> list[str]:
    return ["--net", ",".join([f"tap={t.option},vhost=off,mac={ADDRESS},queues={len(t.fds)}", *more])]


def wait_for_stats(vm: Tiny, condition: Callable[[dict], bool]) -> None:
    """A frame is counted a moment after it can be seen."""
    deadline = time.monotonic() + 20
    while not condition(net := vm.call("stats")["nets"][0]):
        assert time.monotonic() < deadline, net
        time.sleep(0.01)


class Passt:
    """The host's side of passt's stream socket, with a packet socket's manners."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)

    def send(self, data: bytes) -> None:
        self.socket.sendall(struct.pack(">I", len(data)) + data)

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, "the monitor closed the stream"
            data += part
        return data

    def recv(self, size: int) -> bytes:
        (n,) = struct.unpack(">I", self._take(4))
        assert n <= size
        return self._take(n)


def echo(wire: socket.socket | Passt, rng: random.Random, first: int, count: int, largest: int, window: int = 8) -> None:
    """Sends frames and sees each come back as it was; at most @window are on their way."""
    sent: list[bytes] = []
    number = first
    while number < first + count or sent:
        while number < first + count and len(sent) < window:
            size = rng.choice([32, 64, 512, largest]) // 8 * 8
            wire.send(frame(number, size))
            sent.append(frame(number, size, to=HOST, source=MAC))
            number += 1
        assert wire.recv(65536) == sent.pop(0)


@BOTH
@pytest.mark.parametrize("queues, mtu", [(1, 1500), (2, 1500), (1, 9000)])
def test_tap(tiny: Start, rng: random.Random, queues: int, mtu: int, vmm: Path) -> None:
    """Frames both ways, whole, in order; large ones over several of the guest's buffers."""
    with tap(queues, mtu) as t:
        vm = tiny("net-echo", *on_tap(t), vmm=vmm, fds=t.fds)
        vm.expect(rf"NET ready queues {2 * queues + 1} .*mac:{ADDRESS}")
        echo(t.socket, rng, 0, 120, mtu - 64)
        wait_for_stats(vm, lambda net: net["rx"]["frames"] == 120 and net["tx"]["frames"] == 120 and not net["vhost"])
        vm.send("x")
        vm.expect("NET echoed 120 lost 0")
        vm.finish()


@BOTH
def test_passt(tiny: Start, rng: random.Random, vmm: Path) -> None:
    """The same by passt's framing; a new connection comes over the control socket when the old one broke."""
    wire = Passt()
    vm = tiny("net-echo", "--net", f"passt=fd={wire.theirs.fileno()},mac={ADDRESS},id=user", vmm=vmm, fds=(wire.theirs.fileno(),))
    wire.theirs.close()
    vm.expect("NET ready queues 3 ")
    echo(wire, rng, 0, 60, 8000)
    wire.socket.close()
    vm.expect("NET link 0")
    wire = Passt()
    vm.call("link", wire.theirs.fileno(), id="user")
    assert {"id": "user", "up": False} in [event["params"] for event in vm.events if event["method"] == "link"]
    wire.theirs.close()
    vm.expect("NET link 1")
    echo(wire, rng, 60, 60, 8000)
    vm.send("x")
    vm.expect("NET echoed 120 lost 0")
    vm.finish()


def test_link(tiny: Start, rng: random.Random) -> None:
    """The cable is pulled: the guest sees it, what comes meanwhile is lost; plugged in again frames flow."""
    with tap() as t:
        vm = tiny("net-echo", *on_tap(t, "link=down"), fds=t.fds)
        vm.expect("NET ready")
        t.socket.send(frame(0, 64))
        vm.call("link", id="net0", up=True)
        vm.expect("NET link 1")
        echo(t.socket, rng, 1, 20, 1400)
        vm.call("link", id="net0", up=False)
        vm.expect("NET link 0")
        for number in range(21, 25):
            t.socket.send(frame(number, 64))
        wait_for_stats(vm, lambda net: net["rx"]["dropped"] == 5)
        vm.call("link", id="net0", up=True)
        vm.expect("NET link 1")
        echo(t.socket, rng, 25, 20, 1400)
        vm.send("x")
        vm.expect("NET echoed 40 lost 5")
        vm.finish()
        assert vm.errors == ""


@pytest.mark.parametrize("queues, threads", [(1, 1), (2, 2)])
def test_move_under_traffic(tiny: Start, tmp_path: Path, rng: random.Random, queues: int, threads: int) -> None:
    """Saved and restored while frames fly: none is lost, none comes twice, and the guest is told to announce itself."""
    state = tmp_path / "state"
    with tap(queues) as t:
        args = [*on_tap(t), "--io-threads", threads]
        vm = tiny("net-echo every=20", *args, fds=t.fds)
        vm.expect("NET ready")
        failed: list[BaseException] = []

        def run() -> None:
            try:
                echo(t.socket, rng, 0, 400, 1400)
            except BaseException as error:
                failed.append(error)

        traffic = threading.Thread(target=run)
        traffic.start()
        for _ in range(3):
            vm.expect(r"NET \d+\n")
            vm.save(state)
            vm.call("quit")
            assert vm.wait() == 0
            vm = tiny("", *args, restore=state, fds=t.fds)
            vm.expect("NET announced")
        traffic.join(120)
        assert not failed and not traffic.is_alive(), (failed, vm.output)
        vm.send("x")
        vm.expect("NET echoed 400 lost 0")
        vm.finish()


@BOTH
def test_malformed(tiny: Start, vmm: Path) -> None:
    """Broken rings on every queue: the device needs a reset, nothing more, and then works."""
    with tap() as t:
        vm = tiny("net-malformed", *on_tap(t), vmm=vmm, fds=t.fds)
        over = threading.Event()

        def send() -> None:
            number = 0
            while not over.wait(0.002):
                t.socket.send(frame(number, 64))
                number += 1

        sender = threading.Thread(target=send)
        sender.start()
        try:
            vm.expect("NET survived 24")
            vm.finish()
        finally:
            over.set()
            sender.join()


@pytest.mark.parametrize("value, words", [
    ("", "--net"), ("mac=02:00:00:00:00:01", "no host's end"), ("tap=t,passt=p", "both tap and passt"),
    ("tap=t,mac=01:00:00:00:00:01", "not the address of one interface"), ("tap=t,mac=1:2:3", "not an Ethernet address"),
    ("tap=t,queues=9", "out of range"), ("passt=p,queues=2", "are for taps"), ("tap=t,mtu=10", "out of range"),
    ("tap=fd=0,vhost=off", "is no queue of a tap"), ("tap=t,vhost=maybe", "vhost=maybe"),
    ("passt=/no/such/socket", "connect to passt at /no/such/socket"), ("passt=fd=0", "is no stream socket"),
    ("tap=a-name-that-is-too-long", "is no name of an interface"),
])  # fmt: skip
def test_refused(tiny: Start, value: str, words: str) -> None:
    vm = tiny("net-echo", "--net", value)
    assert vm.wait() == 1
    assert words in vm.errors, vm.errors
