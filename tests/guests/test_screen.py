"""Stock programs on the display, driven by the keyboard: OVMF's shell.

Every picture that is looked at is kept as a PPM in build/screens/.
"""

import secrets
import time
from collections.abc import Callable

from host import BUILD, Host
from uefi import Machine
from vm import Guest

PICTURES = BUILD.parent / "screens"
WIDTH, HEIGHT = 800, 600


class Picture:
    def __init__(self, data: bytes) -> None:
        magic, size, most, self.pixels = data.split(b"\n", 3)
        assert (magic, most) == (b"P6", b"255")
        self.width, self.height = map(int, size.split())

    def row(self, y: int) -> bytes:
        return self.pixels[3 * y * self.width : 3 * (y + 1) * self.width]

    def lit(self) -> list[int]:
        """The rows that are not all black."""
        return [y for y in range(self.height) if any(self.row(y))]


def take(host: Host, guest: Guest, name: str) -> Picture | None:
    """None while the guest shows nothing."""
    path = f"/tmp/{secrets.token_hex(4)}.ppm"
    answer = guest.call("screenshot", path, check=False)
    if "result" not in answer:
        assert not answer or "no picture" in answer["error"]["message"], answer  # empty: it does not listen yet
        return None
    data = host.read(path)
    host.run(["rm", path])
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.ppm").write_bytes(data)
    return Picture(data)


def wait_for(
    host: Host, guest: Guest, name: str, right: Callable[[Picture], bool], patience: float, pause: float = 1
) -> Picture:
    deadline = time.monotonic() + patience
    while True:
        picture = take(host, guest, name)
        if picture and right(picture):
            return picture
        assert time.monotonic() < deadline, f"{name}: this never came; build/screens/{name}.ppm is what did"
        time.sleep(pause)


def test_firmware(host: Host) -> None:
    """OVMF's shell is on the display, in the mode that was asked for, and its keyboard is the PS/2 one."""
    machine = Machine(host)
    with Guest(host, *machine.args, "--display", f"{WIDTH}x{HEIGHT}", direct=False) as guest:
        guest.process.read_until("seconds to skip", timeout=240)
        guest.call("send-keys", keys="esc")
        guest.process.read_until("Shell> ", timeout=60)
        before = wait_for(host, guest, "shell", lambda p: len(p.lit()) > 60, 60)
        assert (before.width, before.height) == (WIDTH, HEIGHT)
        assert b"\xff\xff\x00" in before.pixels  # the prompt is yellow
        for key in ["v", "e", "r", "enter"]:
            guest.call("send-keys", keys=key)
            time.sleep(0.3)
        # "ver" says three lines and prompts again: below what was there, which stays.
        after = wait_for(host, guest, "shell-ver", lambda p: p.lit()[-1] >= before.lit()[-1] + 3 * 19, 60)
        last = before.lit()[-1] - 20
        assert all(after.row(y) == before.row(y) for y in range(last))
        assert guest.process.stdout.count(b"UEFI Interactive Shell v") == 2
