"""What a guest's display shows, by its content: pictures, the text of the firmware's console on them, and what a viewer
gets over VNC.

No font is known here. The firmware writes the same words to the serial port, and by them an Alphabet learns the glyphs
that are on the picture; with it later pictures are read, of programs too that write to the display only.

Every picture that is looked at is kept as a PPM in build/screens/.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from host import BUILD, Host
from rfb import Rfb, bridge_command, receiver
from vm import Guest

SCREEN = BUILD / "screen/glint-screen"
PICTURES = BUILD.parent / "screens"

Pixel = tuple[int, int, int]

CELL_WIDTH, CELL_HEIGHT = 8, 19  # a character of EDK II's console
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
LONG = 16  # characters that are not where they are by chance


class Line(NamedTuple):
    """A line of text as it is drawn."""

    glyphs: tuple[bytes, ...]  # of each cell: which of its pixels are not of its background's colour
    grounds: tuple[bytes, ...]  # of each cell: that colour


class Picture:
    def __init__(self, data: bytes) -> None:
        """@data: a PPM."""
        magic, size, most, self.pixels = data.split(b"\n", 3)
        assert (magic, most) == (b"P6", b"255")
        self.width, self.height = map(int, size.split())

    def at(self, x: int, y: int) -> Pixel:
        r, g, b = self.pixels[3 * (y * self.width + x) :][:3]
        return r, g, b

    def runs(self, x: int, colour: Pixel) -> list[range]:
        """Where column @x has about this colour (a theme shades it), as runs of rows."""
        runs: list[range] = []
        for y in range(self.height):
            if all(abs(a - b) < 16 for a, b in zip(self.at(x, y), colour)):
                runs[-1:] = [range(runs[-1].start, y + 1)] if runs and runs[-1].stop == y else [*runs[-1:], range(y, y + 1)]
        return runs

    def lines(self) -> list[Line]:
        """All lines of text: the console lies in the middle of the display."""
        top, left = self.height % CELL_HEIGHT // 2, self.width % CELL_WIDTH // 2
        columns = range(left, self.width - CELL_WIDTH + 1, CELL_WIDTH)
        return [
            Line(*zip(*(self._cell(x, y) for x in columns)))
            for y in range(top, self.height - CELL_HEIGHT + 1, CELL_HEIGHT)
        ]

    def _cell(self, x: int, y: int) -> tuple[bytes, bytes]:
        starts = (3 * (row * self.width + x) for row in range(y, y + CELL_HEIGHT))
        data = b"".join(self.pixels[start : start + 3 * CELL_WIDTH] for start in starts)
        if data == data[:3] * (CELL_WIDTH * CELL_HEIGHT):
            return b"", data[:3]
        pixels = [data[at : at + 3] for at in range(0, len(data), 3)]
        ground = Counter(pixels).most_common(1)[0][0]
        return bytes(pixel != ground for pixel in pixels), ground


class Alphabet:
    """Which character a glyph is."""

    def __init__(self, picture: Picture, text: str) -> None:
        """Finds lines of @text on @picture and takes their glyphs.

        A line is found where equal characters have equal glyphs and other ones other glyphs, all the same in all lines.
        Long lines are found by that alone, short ones when most of them is known by then."""
        self._characters = {b"": " "}
        drawn = [line.glyphs for line in picture.lines()]
        for words in sorted({line.rstrip() for line in text.split("\n")}, key=len, reverse=True):
            if len(words) >= LONG or sum(c in self._characters.values() for c in words) > len(words) // 2:
                for glyphs in drawn:
                    self._take(glyphs, words)

    def _take(self, glyphs: tuple[bytes, ...], words: str) -> None:
        pairs = list(zip(glyphs, words))
        found = self._characters | dict(pairs)
        cursor = sum(map(bool, glyphs[len(words) :])) <= 1
        right = all(found[glyph] == character for glyph, character in [*pairs, *self._characters.items()])
        if cursor and right and len(set(found.values())) == len(found):
            self._characters = found

    def read(self, line: Line) -> str:
        """Without what stands around the words: frames, the cursor."""
        return "".join(self._characters.get(glyph, UNKNOWN) for glyph in line.glyphs).strip(" " + UNKNOWN)

    def text(self, picture: Picture) -> list[str]:
        """The lines that have words."""
        return list(filter(None, (self.read(line) for line in picture.lines())))

    def highlighted(self, picture: Picture) -> str:
        """The line whose words stand on another background than most of the picture."""
        lines = picture.lines()
        common = Counter(ground for line in lines for ground in line.grounds).most_common(1)[0][0]
        marked = [line for line in lines if sum(ground != common for ground in line.grounds) > len(line.grounds) // 2]
        return self.read(marked[0]) if len(marked) == 1 else ""


def take(host: Host, guest: Guest, name: str) -> Picture | None:
    """A screenshot; None while the guest shows nothing."""
    path = f"/tmp/{secrets.token_hex(4)}.ppm"
    answer = guest.call("screenshot", path, check=False)
    data = host.run(["sh", "-c", f"cat {path}; rm {path}"]).stdout
    if "result" not in answer:
        assert not answer or "no picture" in answer["error"]["message"], answer  # empty: it does not listen yet
        return None
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.ppm").write_bytes(data)
    return Picture(data)


def wait_for(
    host: Host, guest: Guest, name: str, right: Callable[[Picture], object], patience: float, pause: float = 1
) -> Picture:
    deadline = time.monotonic() + patience
    while True:
        picture = take(host, guest, name)
        if picture and right(picture):
            return picture
        assert time.monotonic() < deadline, f"{name}: this never came; build/screens/{name}.ppm is what did"
        time.sleep(pause)


class Viewer:
    """glint-screen on a guest's display, and a VNC client of it."""

    def __init__(self, host: Host, guest: Guest) -> None:
        self._host, self._guest = host, guest
        vnc = f"/tmp/vnc-{secrets.token_hex(4)}"
        self._screen = host.spawn([SCREEN, "--vnc", vnc, "--monitor", guest.socket])
        while host.run(["test", "-S", vnc], check=False).rc:
            assert self._screen.running, self._screen.stderr
            time.sleep(0.1)
        bridge = host.spawn(bridge_command(vnc))
        self.rfb = Rfb(bridge.write, receiver(bridge))

    def sees(self, name: str, rows: range, unlike: bytes = b"", patience: float = 60) -> bytes:
        """What it is sent of some rows is what is there, once the guest has drawn it, and is not what was there."""
        deadline = time.monotonic() + patience
        while True:
            width, height = self.rfb.width, self.rfb.height
            self.rfb.ask(False, 0, rows.start, width, len(rows))
            self.rfb.update()
            shown = take(self._host, self._guest, name)
            part = slice(3 * width * rows.start, 3 * width * rows.stop)
            if shown and (shown.width, shown.height) == (width, height):
                if self.rfb.rgb()[part] == shown.pixels[part] != unlike:
                    return shown.pixels[part]
            assert time.monotonic() < deadline, f"{name}: the viewer does not get what build/screens/{name}.ppm shows"
            time.sleep(1)

    def ended(self) -> bool:
        """As it does when the machine has ended."""
        return self._screen.wait() == 0
