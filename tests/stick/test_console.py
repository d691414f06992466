"""glint-console: the host's first screen, and the console of a guest. Pseudo-terminals stand for the host's screen and
serial port, a socket for the guest's; the name and the network it shows are those of namespaces made for it."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONSOLE = Path(__file__).resolve().parents[2] / "build/release/node/console/glint-console"
STATE = Path("/run/glint/health.json")
HEALTHY = Path("/run/glint-health/health.json")
GUEST = Path("/run/glint-guest/console")


class Host:
    """glint-console with two terminals; `screen` and `serial` are the ends a person sits at."""

    def __init__(self) -> None:
        self.screen, screen_end = pty.openpty()
        self.serial, serial_end = pty.openpty()
        read_end, self.never_written = os.pipe()  # no terminal at all: what a missing device looks like
        # LISTEN_FDS=3 as systemd does it; the shell moves the descriptors to 3, 4 and 5.
        moves = f"exec 13<&{screen_end} 14<&{serial_end} 15<&{read_end}; exec 3<>/dev/fd/13 4<>/dev/fd/14 5<&15"
        self.process = subprocess.Popen(
            ["unshare", "--uts", "--net", "bash", "-c", f"{moves}; hostname first; LISTEN_FDS=3 exec {CONSOLE}"],
            pass_fds=(screen_end, serial_end, read_end), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for end in (screen_end, serial_end, read_end):
            os.close(end)

    def run(self, *command: str) -> None:
        """On that host: its name and its network."""
        subprocess.run(["nsenter", "-t", str(self.process.pid), "--uts", "--net", *command], check=True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Guest:
    """What glint-vmm is to it: somebody who listens where the guest's serial port is."""

    def __init__(self) -> None:
        GUEST.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(GUEST))
        time.sleep(0.3)  # the name is there before anybody listens
        self.listener.listen()
        self.listener.settimeout(10)
        self.port, _ = self.listener.accept()
        self.port.settimeout(10)

    def poweroff(self) -> None:
        GUEST.unlink()
        self.listener.close()
        self.port.close()


@pytest.fixture
def host() -> Iterator[Host]:
    for file in (STATE, HEALTHY, GUEST):
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
    started = Host()
    yield started
    started.close()


def put(file: Path, **words: str | bool) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(words))
    new.rename(file)


def expect(terminal: int, pattern: bytes, timeout: float = 10) -> bytes:
    seen, until = b"", time.monotonic() + timeout
    while not re.search(pattern, seen):
        ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
        assert ready, f"{pattern!r} did not come, but {seen!r}"
        seen += os.read(terminal, 4096)
    return seen


def test_facts_are_said_as_they_change(host: Host) -> None:
    for terminal in (host.screen, host.serial):
        expect(terminal, rb"glint: host up \d+\.\d{3} s .*memory in use [1-9]\d* of [1-9]\d* MiB\r\n"
                         rb"glint: this is first, Glint [^\r]*\r\nglint: it has no address\r\n")
    put(STATE, durability="memory", why="it was pulled \x1b[2J")
    expect(host.serial, rb"glint: the host's state is in memory only: it was pulled \?\[2J\r\n")
    put(STATE, durability="stick", why="")
    expect(host.serial, rb"glint: the host's state is kept on its stick\r\n")
    put(HEALTHY, healthy=False, why="the database is away")
    expect(host.serial, rb"glint: it is NOT healthy: the database is away\r\n")
    put(HEALTHY, healthy=True, why="")
    expect(host.serial, rb"glint: it is healthy\r\n")
    host.run("hostname", "branch-7")
    expect(host.serial, rb"glint: this is branch-7, Glint")
    host.run("sh", "-c", "ip link add lan type veth peer name far && ip link set far up && ip link set lan up && ip addr add 192.0.2.7/24 dev lan"
                         " && ip addr add 2001:db8::7/64 dev lan nodad")
    expect(host.serial, rb"glint: its addresses are lan 192\.0\.2\.7/24, lan 2001:db8::7/64\r\n")
    host.run("ip", "link", "del", "lan")
    expect(host.serial, rb"glint: it has no address\r\n")
    # All of it, after some quiet, and when a person asks.
    for ask in (b"", b"\r"):
        os.write(host.screen, ask)
        expect(host.serial, rb"\r\n  this is branch-7, [^\r]*\r\n  it has no address\r\n  it is healthy\r\n  the host's state is kept on its stick\r\n"
                            rb"  host up [^\r]*\r\n  Enter shows this", 20)
    assert b"branch-7" in stop(host)


def stop(host: Host) -> bytes:
    host.process.send_signal(signal.SIGTERM)
    _, journal = host.process.communicate(timeout=10)
    assert host.process.returncode == 0
    return journal


def test_a_guest_has_the_terminals(host: Host) -> None:
    """Its bytes pass unchanged both ways, Ctrl-C too; one key is the host's; the next guest has them after it."""
    expect(host.serial, rb"glint: host up")
    for word in (b"one", b"two"):
        guest = Guest()
        guest.port.sendall(b"a\nb\r\n" + word)
        for terminal in (host.screen, host.serial):
            assert b"a\nb\r\n" + word in expect(terminal, word)
        os.write(host.screen, b"\x03\x1c\r")
        assert guest.port.recv(16) == b"\x03\x1c\r"
        os.write(host.serial, b"\x1d")
        expect(host.screen, rb"(?s)  this is first, .*\r\n  Here is a guest's console")
        os.write(host.serial, b"typed")
        assert guest.port.recv(16) == b"typed"
        guest.poweroff()
        for terminal in (host.screen, host.serial):
            expect(terminal, rb"glint: the guest has ended")
    expect(host.serial, rb"  this is first", 20)


def test_a_burst_is_not_lost(host: Host) -> None:
    expect(host.serial, rb"glint: host up")
    guest = Guest()
    guest.port.sendall(b"x" * 100000 + b"the end")
    time.sleep(1)  # nobody reads meanwhile
    for terminal in (host.screen, host.serial):
        assert expect(terminal, rb"the end").count(b"x") >= 100000


def test_a_terminal_nobody_reads_holds_nothing_up(host: Host) -> None:
    guest = Guest()
    guest.port.sendall(b"x" * 1000000)  # the serial end is full all the while
    expect(host.screen, rb"x{1000}")
    while select.select([host.screen], [], [], 0.5)[0]:
        os.read(host.screen, 65536)
    os.write(host.screen, b"word")
    assert guest.port.recv(16) == b"word"
    guest.port.sendall(b"got it")
    expect(host.screen, rb"got it")


def test_a_terminal_that_goes_away_is_left_out(host: Host) -> None:
    expect(host.serial, rb"glint: host up .*\n")
    os.close(host.serial)
    guest = Guest()
    for word in (b"one", b"two"):
        guest.port.sendall(word)
        expect(host.screen, word)


def test_nobody_behind_the_name(host: Host) -> None:
    """What a monitor that was killed leaves: a socket that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(GUEST))
    time.sleep(0.5)
    os.write(host.screen, b"\r")
    expect(host.screen, rb"Enter shows this")
    stop(host)
