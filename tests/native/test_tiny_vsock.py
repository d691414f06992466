"""Tiny guests that talk by vsock: both ways, many at once, out of credit, with garbage, and over a move."""

import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]


class Echo:
    """Listens where guests arrive that connect to port 1024, and sends back what comes; @slow: reads in small bites."""

    def __init__(self, path: Path, slow: bool = False) -> None:
        self.path = path
        self.slow = slow
        self.connections = 0
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(f"{path}_1024")
        self.listener.listen(300)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.slow:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            try:
                while data := client.recv(1500 if self.slow else 65536):
                    client.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Callable[..., Echo]]:
    made: list[Echo] = []

    def make(slow: bool = False) -> Echo:
        made.append(Echo(tmp_path / "vsock", slow))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("conns, kib, slow", [(1, 256, False), (1, 128, True), (100, 2, False)])
def test_guest_to_host(tiny: Start, echo: Callable[..., Echo], conns: int, kib: int, slow: bool) -> None:
    server = echo(slow)
    vm = tiny(f"vsock-echo conns={conns} kib={kib} cid=77", "--vsock", f"path={server.path},cid=77")
    assert f"VSOCK {conns} streams of {kib << 10} bytes" in vm.finish()
    assert server.connections == conns


def test_refused(tiny: Start, echo: Callable[..., Echo]) -> None:
    tiny("vsock-refused", "--vsock", echo().path).finish()


def connect(path: Path, port: int) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(str(path))
    client.sendall(f"CONNECT {port}\n".encode())
    line = b""
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        assert byte, f"the connection ended after {line!r}"
        line += byte
    assert line.startswith(b"OK ")
    return client


def talk(client: socket.socket, data: bytes) -> None:
    """Sends all and reads it back, at the same time."""
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    digest, left = hashlib.sha256(), len(data)
    while left:
        part = client.recv(min(left, 65536))
        assert part, f"the connection ended {left} bytes early"
        digest.update(part)
        left -= len(part)
    sender.join()
    assert digest.digest() == hashlib.sha256(data).digest()


def finish(client: socket.socket) -> None:
    """Ends it from this side, and waits for the guest to agree."""
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.close()


def test_host_to_guest(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "vsock"
    vm = tiny("vsock-serve", "--vsock", path)
    vm.expect("VSOCK ready")
    clients = [connect(path, 52) for _ in range(8)]
    for client in clients:
        talk(client, rng.randbytes(20000))
    for client in clients:
        finish(client)
    with connect(path, 52) as client:
        talk(client, rng.randbytes(200000))
        finish(client)
    vm.send("x")
    vm.expect("VSOCK served 9")
    vm.finish()


@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM])
def test_garbage(tiny: Start, echo: Callable[..., Echo], rng: random.Random, vmm: Path) -> None:
    vm = tiny(f"vsock-garbage seed={rng.randrange(1, 2**31)}", "--vsock", echo().path, vmm=vmm)
    vm.finish()


def test_move_under_load(tiny: Start, echo: Callable[..., Echo], tmp_path: Path) -> None:
    """Connections end with the machine that moves, the guest is told, and connects again to the same listener."""
    server = echo()
    vm = tiny("vsock-load", "--vsock", server.path)
    for turn in range(3):
        vm.expect(r"VSOCK round \d+\n")
        vm.save(tmp_path / "state")
        vm.call("quit")
        assert vm.wait() == 0
        vm = tiny("", "--vsock", server.path, restore=tmp_path / "state")
        vm.expect(f"VSOCK transport reset {turn + 1}\n")
    vm.expect(r"VSOCK round \d+\n")
    vm.send("x")
    vm.expect("TEST vsock-load ok")
    assert vm.wait() == 0
    # Another CID, or none, is another machine.
    for args in (["--vsock", f"path={server.path},cid=9"], []):
        other = tiny("", *args, restore=tmp_path / "state")
        assert other.wait() == 1 and ("CID" in other.errors or "contract" in other.errors)


def test_go_on_after_save(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    """A machine that was saved and stays keeps its connections."""
    path = tmp_path / "vsock"
    vm = tiny("vsock-serve", "--vsock", path)
    vm.expect("VSOCK ready")
    with connect(path, 52) as client:
        talk(client, rng.randbytes(10000))
        vm.save(tmp_path / "state")
        client.sendall(b"while it stands still")
        vm.call("resume")
        assert client.recv(21, socket.MSG_WAITALL) == b"while it stands still"
    vm.send("x")
    vm.finish()


def test_connector_is_locked_in(tiny: Start, tmp_path: Path) -> None:
    """The process that connects for the monitor holds one socket and its log, may nothing, and ends with the monitor."""
    vm = tiny("vsock-serve", "--vsock", tmp_path / "vsock")
    vm.expect("VSOCK ready")
    tasks = Path(f"/proc/{vm.process.pid}/task/{vm.process.pid}/children")
    (child,) = tasks.read_text().split()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
    assert status["Name"] == "vsock-connector" and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0
    if os.geteuid() == 0:
        held = {fd.name: os.readlink(fd) for fd in Path(f"/proc/{child}/fd").iterdir()}
        assert sorted(held) == ["2", "4"] and held["4"].startswith("socket:")
    vm.kill()
    for _ in range(200):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the connector outlives its monitor")
