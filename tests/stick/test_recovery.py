"""glint-recovery on a virtual terminal of this machine's kernel that nobody uses; what is typed comes by TIOCSTI. Keys of
a real keyboard are test_stick.py's."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RECOVERY = Path(__file__).resolve().parents[2] / "build/release/node/recovery/glint-recovery"
VT_OPENQRY, VT_DISALLOCATE = 0x5600, 0x5608


class Terminal:
    """A free virtual terminal, and glint-recovery on it as systemd starts it."""

    def __init__(self) -> None:
        with open("/dev/tty0", "rb", buffering=0) as console:
            self.number = struct.unpack("i", fcntl.ioctl(console, VT_OPENQRY, bytes(4)))[0]
        self.fd = os.open(f"/dev/tty{self.number}", os.O_RDWR | os.O_NOCTTY)
        self.process = subprocess.Popen([RECOVERY, "/usr/bin/busybox"], stdin=self.fd, stdout=self.fd, stderr=subprocess.PIPE, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        self.log = b""

    def type(self, text: bytes) -> None:
        for byte in text:
            fcntl.ioctl(self.fd, termios.TIOCSTI, bytes([byte]))

    def screen(self) -> str:
        with open(f"/dev/vcs{self.number}", "rb") as cells:
            return cells.read().decode("cp437")

    def expect(self, pattern: str, what, seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not re.search(pattern, seen := what()):
            assert time.monotonic() < until, f"'{pattern}' did not come, but: {seen}"
            time.sleep(0.05)

    def said(self) -> str:
        while select.select([self.process.stderr], [], [], 0)[0] and (text := os.read(self.process.stderr.fileno(), 4096)):
            self.log += text
        return self.log.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        with open("/dev/tty0", "rb", buffering=0) as console:
            fcntl.ioctl(console, VT_DISALLOCATE, self.number)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    if not Path("/dev/tty0").exists():
        pytest.skip("this machine's kernel has no virtual terminals")
    made = Terminal()
    yield made
    made.close()


def test_only_the_word_opens_it(terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect("Type RECOVER and Enter", terminal.screen)
    for wrong in (b"RECOVE\n", b"recover\n", b" RECOVER\n", b"RECOVER RECOVER\n", b"x" * 255 + b"RECOVER\n", b"x" * 5000 + b"RECOVER\n", b"\n", b"\x1b[?6c\x1b[0nRECOVER\n"):
        terminal.type(wrong)
        time.sleep(0.2)
    assert terminal.said().count("another word was typed") >= 7 and "was opened" not in terminal.said()
    terminal.type(b"RECOVER\n")
    terminal.expect("a recovery shell was opened", terminal.said)
    terminal.expect("recovery# ", terminal.screen)
    terminal.type(b"id >%s/who; nosuch\n" % str(tmp_path).encode())
    terminal.expect("nosuch: not found", terminal.screen)
    assert (tmp_path / "who").read_text().startswith("uid=0(root)")
    terminal.type(b"exit\n")
    terminal.expect("the recovery shell was left", terminal.said)
    assert terminal.process.wait(10) == 0


@pytest.mark.parametrize("kind", ["pty", "pipe", "null"])
def test_refused_elsewhere(kind: str) -> None:
    """Serial lines and all else that is no screen of the machine's."""
    if kind == "pty":
        person, terminal = pty.openpty()
    elif kind == "pipe":
        terminal, person = os.pipe()
    else:
        person, terminal = os.open("/dev/null", os.O_RDWR), os.open("/dev/null", os.O_RDWR)
    os.write(person, b"RECOVER\n")
    done = subprocess.run([RECOVERY, "/bin/echo"], stdin=terminal, capture_output=True, timeout=10)
    assert done.returncode == 1 and done.stdout == b"" and b"no recovery shell here" in done.stderr
