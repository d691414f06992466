"""glint-console: one program on several terminals. Pseudo-terminals stand for the host's screen and serial port."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONSOLE = Path(__file__).resolve().parents[2] / "build/release/image/glint-console"


class Terminals:
    """glint-console with a command and two terminals; `screen` and `serial` are the ends a person sits at."""

    def __init__(self, *command: str):
        self.screen, screen_end = pty.openpty()
        self.serial, serial_end = pty.openpty()
        read_end, self.never_written = os.pipe()  # no terminal at all: what a missing device looks like
        # LISTEN_FDS=3 as systemd does it; the shell moves the descriptors to 3, 4 and 5.
        moves = f"exec 13<&{screen_end} 14<&{serial_end} 15<&{read_end}; exec 3<>/dev/fd/13 4<>/dev/fd/14 5<&15"
        self.process = subprocess.Popen(
            ["bash", "-c", f"{moves}; LISTEN_FDS=3 exec \"$@\"", "bash", CONSOLE, *command],
            pass_fds=(screen_end, serial_end, read_end), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for end in (screen_end, serial_end, read_end):
            os.close(end)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminals() -> Iterator[type]:
    started: list[Terminals] = []

    def start(*command: str) -> Terminals:
        started.append(Terminals(*command))
        return started[-1]

    yield start
    for one in started:
        one.close()


def expect(terminal: int, pattern: bytes, timeout: float = 10) -> bytes:
    seen, until = b"", time.monotonic() + timeout
    while not re.search(pattern, seen):
        ready, _, _ = select.select([terminal], [], [], until - time.monotonic())
        assert ready, f"{pattern!r} did not come, but {seen!r}"
        seen += os.read(terminal, 4096)
    return seen


def test_output_reaches_all_and_input_comes_from_any(terminals) -> None:
    both = terminals("sh", "-c", "while read -r line; do echo got $line; done")
    for terminal in (both.screen, both.serial):
        expect(terminal, rb"glint: host up \d+\.\d{3} s .*memory in use \d+ of \d+ MiB\r\n")
    for typed_at, word in ((both.screen, b"one"), (both.serial, b"two")):
        os.write(typed_at, word + b"\n")
        for terminal in (both.screen, both.serial):
            expect(terminal, b"got " + word)


def test_guest_bytes_pass_unchanged_and_ctrl_c_is_the_guests(terminals) -> None:
    both = terminals("sh", "-c", r"printf 'a\nb\r\n'; cat")
    assert b"a\nb\r\n" in expect(both.screen, rb"b\r\n")
    os.write(both.screen, b"\x03\x1c")
    expect(both.serial, rb"\x03\x1c")
    assert both.process.poll() is None


def test_words_of_the_monitor_reach_terminals_and_journal(terminals) -> None:
    both = terminals("sh", "-c", "printf '<3>no disk\\nplain\\n' >&2; exit 7")
    assert b"\r\nno disk\r\nplain\r\n" in expect(both.serial, rb"plain\r\n")
    _, journal = both.process.communicate(timeout=10)
    assert b"<3>no disk\nplain\n" in journal
    assert both.process.returncode == 7


def test_a_burst_is_not_lost(terminals) -> None:
    both = terminals("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo the end; sleep 60")
    time.sleep(1)  # nobody reads meanwhile
    for terminal in (both.screen, both.serial):
        assert expect(terminal, rb"the end").count(b"x") == 100000


def test_a_terminal_nobody_reads_holds_nothing_up(terminals) -> None:
    both = terminals("sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; read -r line; echo got $line; sleep 60")
    expect(both.screen, rb"x{1000}")  # the serial end is full all the while
    while select.select([both.screen], [], [], 0.5)[0]:
        os.read(both.screen, 65536)
    os.write(both.screen, b"word\n")
    expect(both.screen, rb"got word")


def test_a_terminal_that_goes_away_is_left_out(terminals) -> None:
    both = terminals("sh", "-c", "while read -r line; do echo got $line; done")
    expect(both.serial, rb"glint: host up .*\n")
    os.close(both.serial)
    for word in (b"one", b"two"):
        os.write(both.screen, word + b"\n")
        expect(both.screen, b"got " + word)


def test_end_and_signals(terminals) -> None:
    both = terminals("true")
    expect(both.screen, rb"glint: the guest has ended")
    assert both.process.wait(10) == 0
    told = terminals("sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done")
    expect(told.screen, b"ready")
    told.process.send_signal(signal.SIGTERM)
    assert told.process.wait(10) == 5
    missing = terminals("/nonexistent/program")
    expect(missing.screen, rb"cannot run /nonexistent/program")
    assert missing.process.wait(10) == 127
