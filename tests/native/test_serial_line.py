"""Where the serial port may lead: a socket, a pseudo-terminal, a file, a terminal whose guest does not listen."""

import os
import pty
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import GUEST, VMM, Tiny


def until(read: Callable[[], bytes], words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        data = read()
        assert data, seen
        seen += data
    return seen


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(20)
    deadline = time.monotonic() + 20
    while client.connect_ex(str(path)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return client


@pytest.fixture
def monitor():
    """Starts a monitor that a test talks to by other ways than its standard input and output."""
    started = []

    def start(*args: object) -> subprocess.Popen:
        argv = [VMM, "--kernel", GUEST, *map(str, args)]
        started.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_socket(monitor, tmp_path: Path) -> None:
    """One client after another; the guest runs on without any, and one more is turned away."""
    path = tmp_path / "serial"
    process = monitor("--cmdline", "test=serial-echo", "--serial", f"socket={path}", "--paused", "--control", tmp_path / "c")
    first = connect(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(str(tmp_path / "c"))
    control.send(b'{"jsonrpc": "2.0", "id": 1, "method": "resume"}')
    until(lambda: first.recv(4096), b"ECHO ready")
    second = connect(path)
    assert second.recv(1) == b"", "it was not turned away"
    first.sendall(b"one\n")
    until(lambda: first.recv(4096), b"ECHO 3 one")
    first.close()
    third = connect(path)
    third.sendall(b"three\n")
    third.shutdown(socket.SHUT_WR)  # as `echo three | socat - UNIX:...` does
    until(lambda: third.recv(4096), b"ECHO 5 three")
    third.close()
    fourth = connect(path)
    fourth.sendall(b"x" * 200 + b"\n")
    until(lambda: fourth.recv(4096), b"ECHO 200 xxx")
    fourth.sendall(b"end\n")
    assert process.wait(20) == 0


def test_pty(tiny: Callable[..., Tiny]) -> None:
    vm = tiny("serial-echo", "--serial", "pty", "--paused")
    name = vm.call("status")["serial"]
    line = os.open(name, os.O_RDWR | os.O_NOCTTY)
    vm.call("resume")
    until(lambda: os.read(line, 4096), b"ECHO ready")
    os.write(line, b"hello\n")
    until(lambda: os.read(line, 4096), b"ECHO 5 hello")
    os.write(line, b"end\n")
    os.close(line)
    assert vm.process.wait(20) == 0


def test_file(monitor, tmp_path: Path) -> None:
    """What was in the file stays."""
    (tmp_path / "log").write_text("before\n")
    assert monitor("--cmdline", "test=rtc", "--serial", f"file={tmp_path}/log").wait(30) == 0
    text = (tmp_path / "log").read_text()
    assert text.startswith("before\nGUEST") and "TEST rtc ok" in text


def test_escape_from_a_deaf_guest() -> None:
    """Ctrl-A x ends the monitor though the guest takes no input and keys were typed before."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(VMM, [str(VMM), "--kernel", str(GUEST), "--cmdline", "test=pm-timer seconds=600"])
    until(lambda: os.read(master, 4096), b"PM-TIMER begin")
    os.write(master, b"is anybody there? " * 5)
    time.sleep(0.2)
    os.write(master, b"\x01x")
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.close(master)
    assert ended != (0, 0) and os.waitstatus_to_exitcode(ended[1]) == 0


@pytest.mark.parametrize("words", ["pipe", "file=/no/such/folder/log", "socket=/no/such/folder/s", "socket=" + "x" * 200, "fd=x"])
def test_bad_lines(monitor, words: str) -> None:
    process = monitor("--serial", words)
    assert process.wait(20) == 1 and b"--serial" in process.communicate()[1]
