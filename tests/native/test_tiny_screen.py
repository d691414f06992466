"""The display as a guest's program draws on it and as it is seen from outside, bit for bit."""

import mmap
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host import BUILD
from rfb import ESCAPE, Rfb
from tiny import Tiny

SCREEN = BUILD / "screen/glint-screen"

Start = Callable[..., Tiny]

WIDTH, HEIGHT = 640, 480


def screenshot(vm: Tiny) -> tuple[int, int, bytes]:
    """Width, height and three bytes a pixel."""
    fd = os.memfd_create("picture")
    try:
        vm.call("screenshot", fd)
        data = os.pread(fd, 1 << 26, 0)
    finally:
        os.close(fd)
    magic, size, most, pixels = data.split(b"\n", 3)
    assert (magic, most) == (b"P6", b"255")
    width, height = map(int, size.split())
    assert len(pixels) == 3 * width * height
    return width, height, pixels


def picture(rows: dict[int, int]) -> tuple[int, int, bytes]:
    """What test_display.c draws; @rows: those with another colour, without the line."""
    data = bytearray()
    for y in range(HEIGHT):
        colour = rows.get(y, y * 0x010203 & 0xFFFFFF)
        row = bytearray(colour.to_bytes(3) * WIDTH)
        if y not in rows:
            row[3 * y : 3 * y + 3] = b"\xff\xff\xff"
        data += row
    return WIDTH, HEIGHT, bytes(data)


def step(vm: Tiny, word: str) -> None:
    vm.expect(f"DISPLAY {word}\n")


@pytest.mark.parametrize("moving", [False, True])
def test_picture(tiny: Start, tmp_path: Path, moving: bool) -> None:
    """A mode, what is drawn, a frame buffer whose BAR moves; with moving, in a new process before each look."""
    count = 0

    def look(vm: Tiny) -> Tiny:
        nonlocal count
        if moving:
            count += 1
            path = tmp_path / f"state{count}"
            vm.save(path)
            vm.call("quit")
            assert vm.wait() == 0
            assert path.stat().st_size < 9 << 20  # of the frame buffer only what is drawn
            vm = tiny("", "--display", "1024x768", restore=path)
        return vm

    vm = tiny("display", "--display", "1024x768")
    step(vm, "dark")
    assert "no picture" in vm.try_call("screenshot", os.memfd_create("picture"))["error"]["message"]
    vm = look(vm)
    vm.send("x")
    step(vm, "drawn")
    vm = look(vm)
    rows: dict[int, int] = {}
    assert screenshot(vm) == picture(rows)
    for word, row, colour in [("row", 100, 0xFF0000), ("moved", 200, 0x00FF00), ("back", 300, 0x0000FF)]:
        vm.send("x")
        step(vm, word)
        rows[row] = colour
        vm = look(vm)
        assert screenshot(vm) == picture(rows)
    vm.send("x")
    step(vm, "off")
    assert "error" in vm.try_call("screenshot", os.memfd_create("picture"))
    vm.send("x")
    vm.expect("TEST display ok")
    assert vm.wait() == 0


def test_what_is_refused(tiny: Start, tmp_path: Path) -> None:
    vm = tiny("idle")
    assert "--display" in vm.try_call("screenshot", os.memfd_create("picture"))["error"]["data"]["hint"]
    vm.close()
    vm = tiny("display", "--display", "on")
    step(vm, "dark")
    assert "regular file" in vm.try_call("screenshot", vm.control.fileno())["error"]["message"]
    assert "descriptors" in vm.try_call("screenshot")["error"]["message"]
    vm.save(tmp_path / "state")
    vm.call("quit")
    vm.wait()
    vm = tiny("", restore=tmp_path / "state")
    assert vm.wait() == 1 and "contract" in vm.errors
    for word in ["1x1", "4096x4096", "1025x768", "1024x768x", "x", "", "99999999999x1", "-1024x768"]:
        vm = tiny("", "--display", word)
        assert vm.wait() == 1 and "--display" in vm.errors, word


def test_keyboard(tiny: Start, tmp_path: Path) -> None:
    """Keys arrive as scan codes by interrupt, before and after a move, and the controller's reset works."""
    vm = tiny("keyboard", "--display", "on")
    vm.expect("KEYBOARD ready\n")
    vm.call("send-keys", keys="ctrl-alt-delete")
    for code in ["1d", "38", "e0", "53", "e0", "d3", "b8", "9d"]:
        vm.expect(f"KEY 1 {code}\n")
    vm.save(tmp_path / "state")
    assert "error" in vm.try_call("send-keys", keys="a")  # it is not running
    vm.call("quit")
    vm.wait()
    vm = tiny("", "--display", "on", restore=tmp_path / "state")
    for word in ["a", "shift-b", "f12"]:
        vm.call("send-keys", keys=word)
    for code in ["1e", "9e", "2a", "30", "b0", "aa", "58", "d8"]:
        vm.expect(f"KEY 1 {code}\n")
    for words in ["", "a-", "-", "nokey", "a-b-c-d-e-f", "x" * 500]:
        assert "error" in vm.try_call("send-keys", keys=words), words
    vm.call("send-keys", keys="esc")
    vm.expect("TEST keyboard ok")
    assert vm.wait() == 0


class Viewer:
    """The other end of a link (vmm/display/link.h)."""

    VIEW = struct.Struct("=6I512s")
    LOOK, REST, KEY, POINTER = 1, 2, 3, 4

    def __init__(self, vm: Tiny) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        vm.call("display-attach", theirs.fileno())
        theirs.close()
        self.link.settimeout(20)
        data, fds, _, _ = socket.recv_fds(self.link, 4096, 1)
        self.frame = mmap.mmap(fds[0], 16 << 20, prot=mmap.PROT_READ)
        with pytest.raises(PermissionError):
            mmap.mmap(fds[0], 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(fds[0])
        self.mode = self.VIEW.unpack(data)[:4]

    def say(self, kind: int, *words: int) -> None:
        self.link.send(struct.pack("=5i", kind, *words, *[0] * (4 - len(words))))

    def look(self) -> set[int]:
        """The pages that were written since the last look."""
        self.say(self.LOOK)
        *self.mode, _, _, bits = self.VIEW.unpack(self.link.recv(4096))
        dirty = int.from_bytes(bits, "little")
        return {page for page in range(4096) if dirty >> page & 1}


def test_viewers(tiny: Start) -> None:
    """What a viewer is told was drawn is what was drawn; the memory it has got shows it."""
    vm = tiny("display", "--display", "1024x768")
    step(vm, "dark")
    one, two = Viewer(vm), Viewer(vm)
    assert one.look() == set(range(4096)) and one.mode[0] == 0
    vm.send("x")
    step(vm, "drawn")
    drawn = set(range(WIDTH * HEIGHT * 4 // 4096))
    assert one.look() == drawn and tuple(one.mode) == (WIDTH, HEIGHT, WIDTH * 4, 0)
    assert one.look() == set()
    vm.send("x")
    step(vm, "row")
    row = range(100 * WIDTH * 4 // 4096, (101 * WIDTH * 4 - 1) // 4096 + 1)
    assert one.look() == set(row)
    assert one.frame[100 * WIDTH * 4 : 101 * WIDTH * 4] == b"\0\0\xff\0" * WIDTH
    assert two.look() == set(range(4096))
    vm.send("x")
    step(vm, "moved")
    assert one.look() == set(range(4096))  # the frame buffer was moved: anything may be new
    vm.send("x")
    step(vm, "back")
    one.look()
    assert one.frame[300 * WIDTH * 4 : 301 * WIDTH * 4] == b"\xff\0\0\0" * WIDTH
    two.link.send(b"nonsense")
    assert two.link.recv(4096) == b""
    assert len(one.look()) == 0
    one.link.close()
    vm.send("xx")
    vm.expect("TEST display ok")
    assert vm.wait() == 0


def test_mouse_and_keys_of_a_viewer(tiny: Start) -> None:
    vm = tiny("keyboard", "--display", "on")
    vm.expect("KEYBOARD ready\n")
    viewer = Viewer(vm)
    viewer.say(Viewer.KEY, 30, 1)
    vm.expect("KEY 1 1e\n")
    viewer.say(Viewer.POINTER, 100, 100, 1)  # there is no picture: only the button says something
    for byte in ["09", "00", "00"]:
        vm.expect(f"KEY 12 {byte}\n")
    viewer.link.close()  # it lets go of its key
    vm.expect("KEY 1 9e\n")
    vm.call("send-keys", keys="esc")
    vm.expect("TEST keyboard ok")
    assert vm.wait() == 0


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Starts glint-screen for a tiny guest; the socket its viewers connect to."""
    started: list[subprocess.Popen] = []

    def start(vm: Tiny, *args: object) -> Path:
        path = tmp_path / f"vnc{len(started)}"
        argv = [SCREEN, "--vnc", path, "--monitor", f"fd={vm.control.fileno()}", *args]
        # The call goes over the test's own connection; nobody else uses it meanwhile.
        process = subprocess.Popen(list(map(str, argv)), pass_fds=[vm.control.fileno()])
        started.append(process)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.02)
        return path

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_picture(rfb: Rfb, wanted: tuple[int, int, bytes]) -> None:
    deadline = time.monotonic() + 30
    while (rfb.width, rfb.height, rfb.rgb()) != wanted:
        assert time.monotonic() < deadline, "the viewer never saw it"
        rfb.ask(True)
        rfb.update()


def test_vnc(tiny: Start, screen: Callable[..., Path]) -> None:
    """Two viewers see what the guest draws, whatever size it has, and only what changed; keys and pointer come back."""
    vm = tiny("display,keyboard", "--display", "1024x768")
    step(vm, "dark")
    path = screen(vm, "--name", "tiny")
    one = Rfb.connect(path)
    assert (one.name, one.width, one.height) == ("tiny", 640, 480)
    one.ask(False)
    one.update()
    assert not any(one.rgb())
    vm.send("x")
    step(vm, "drawn")
    rows: dict[int, int] = {}
    wait_for_picture(one, picture(rows))
    two = Rfb.connect(path)
    two.ask(False)
    two.update()
    wait_for_picture(two, picture(rows))
    vm.send("x")
    step(vm, "row")
    rows[100] = 0xFF0000
    one.ask(True)
    assert one.update() == [(0, 100, WIDTH, 1)]
    wait_for_picture(two, picture(rows))
    two.close()
    vm.send("x")
    step(vm, "moved")
    rows[200] = 0x00FF00
    wait_for_picture(one, picture(rows))
    one.close()
    # Nobody looks; who comes later sees it all.
    vm.send("x")
    step(vm, "back")
    rows[300] = 0x0000FF
    three = Rfb.connect(path)
    three.ask(False)
    three.update()
    wait_for_picture(three, picture(rows))
    vm.send("x")
    step(vm, "off")
    vm.send("x")
    vm.expect("KEYBOARD ready\n")
    three.key(ord("a"))
    for code in ["1e", "9e"]:
        vm.expect(f"KEY 1 {code}\n")
    three.pointer(10, 10, 4)
    vm.expect("KEY 12 0a\n")
    three.key(ESCAPE)
    vm.expect("TEST keyboard ok")
    assert vm.wait() == 0


def test_vnc_garbage(tiny: Start, screen: Callable[..., Path], rng: random.Random) -> None:
    """Viewers that send nonsense, or too many of them, do not end the others' view."""
    vm = tiny("display", "--display", "on")
    step(vm, "dark")
    vm.send("x")
    step(vm, "drawn")
    path = screen(vm)
    good = Rfb.connect(path)
    for n in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"RFB 003.008\n\x01\x01" * (n % 2) + rng.randbytes(200))
    good.ask(False)
    good.update()
    wait_for_picture(good, picture({}))
