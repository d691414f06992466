"""Tiny guests and their console's ports: bytes both ways, clients that come and go, moves in the middle of it."""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tiny import Tiny

Start = Callable[..., Tiny]
PORT = "org.test.port"


def args(path: Path) -> list[str]:
    return ["--console-port", f"name={PORT},path={path}"]


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(60)
    deadline = time.monotonic() + 60
    while client.connect_ex(str(path)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return client


def read(client: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = client.recv(count - len(data))
        assert part, f"the port ended after {len(data)} bytes"
        data += part
    return bytes(data)


def test_echo(tiny: Start, tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "port"
    vm = tiny("console-echo", *args(path))
    vm.expect(f"CONSOLE name {PORT}")
    vm.expect("CONSOLE ready")
    for _ in range(3):
        with connect(path) as client:
            vm.expect("CONSOLE host open")
            data = rng.randbytes(100_000)
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            assert read(client, len(data)) == data
            sender.join()
        vm.expect("CONSOLE host closed")
    vm.send("x")
    vm.expect("CONSOLE echoed 300000")
    vm.finish()


def test_move_under_load(tiny: Start, tmp_path: Path) -> None:
    """What the guest sends is a sequence of numbers: none is missing and none comes twice, over three processes."""
    path = tmp_path / "port"
    vm = tiny("console-load", *args(path))
    vm.expect("CONSOLE ready")
    client = connect(path)
    data = bytearray(read(client, 200_000))
    for turn in range(3):
        vm.save(tmp_path / "state")
        vm.call("quit")
        assert vm.wait() == 0
        while part := client.recv(1 << 16):  # what the old process had handed on
            data += part
        client.close()
        vm = tiny("", *args(path), restore=tmp_path / "state")
        client = connect(path)
        data += read(client, 100_000)
    assert "host closed" not in vm.output
    first = struct.unpack_from("<I", data)[0]
    count = len(data) // 4
    # It begins where the client came: what was sent before was for nobody.
    assert struct.unpack_from(f"<{count}I", data) == tuple(range(first, first + count))
    client.close()
    vm.expect("CONSOLE host closed")
    vm.send("x")
    vm.expect("TEST console-load ok")
    assert vm.wait() == 0
    # Another name is another machine.
    other = tiny("", "--console-port", f"name=other,path={path}", restore=tmp_path / "state")
    assert other.wait() == 1 and PORT in other.errors


def test_nobody_reads(tiny: Start, tmp_path: Path) -> None:
    """Without a client the guest is not held up; with one that does not read it is, and goes on when he does."""
    path = tmp_path / "port"
    vm = tiny("console-load", *args(path))
    vm.expect(r"CONSOLE sent \d+")
    with connect(path) as client:
        vm.expect("CONSOLE host open")
        deadline, held = time.monotonic() + 60, ""
        while vm.output != held:
            assert time.monotonic() < deadline, "the guest goes on though nobody reads"
            held = vm.output
            time.sleep(3)
        read(client, 1_000_000)
        vm.expect(r"CONSOLE sent \d+")
    vm.expect(r"CONSOLE sent \d+")
    vm.send("x")
    vm.finish()
