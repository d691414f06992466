"""A small RFB client (RFC 6143): raw pictures, keys, pointer. @send and @receive move bytes, wherever the server is."""

import socket
import struct
from collections.abc import Callable
from pathlib import Path

RAW, DESKTOP_SIZE = 0, -223
RETURN, ESCAPE, UP, DOWN, TAB = 0xFF0D, 0xFF1B, 0xFF52, 0xFF54, 0xFF09

# Standard input and output joined to a UNIX socket, for a server on another host.
BRIDGE = """
import os, select, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
while True:
    for f in select.select([0, s.fileno()], [], [])[0]:
        data = os.read(f, 65536)
        if not data:
            sys.exit()
        s.sendall(data) if f == 0 else os.write(1, data)
"""


class Rfb:
    def __init__(self, send: Callable[[bytes], object], receive: Callable[[int], bytes]) -> None:
        self._send, self._receive = send, receive
        assert receive(12) == b"RFB 003.008\n"
        send(b"RFB 003.008\n")
        types = receive(receive(1)[0])
        assert 1 in types  # no authentication: the socket's owner is who may
        send(b"\x01")
        assert receive(4) == bytes(4)
        send(b"\x01")  # shared
        self.width, self.height = struct.unpack(">HH", receive(4))
        bits, _, big_endian, true_colour, *colours = struct.unpack(">BBBBHHHBBB3x", receive(16))
        assert bits == 32 and not big_endian and true_colour and colours == [255, 255, 255, 16, 8, 0]
        self.name = receive(struct.unpack(">I", receive(4))[0]).decode()
        send(struct.pack(">BxHii", 2, 2, RAW, DESKTOP_SIZE))
        self.pixels = bytearray(4 * self.width * self.height)

    @classmethod
    def connect(cls, path: Path | str) -> "Rfb":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(str(path))

        def receive(count: int) -> bytes:
            data = b""
            while len(data) < count:
                more = sock.recv(min(1 << 20, count - len(data)))
                assert more, "the server closed the connection"
                data += more
            return data

        rfb = cls(sock.sendall, receive)
        rfb.close = sock.close  # type: ignore[attr-defined]
        return rfb

    def ask(self, incremental: bool, x: int = 0, y: int = 0, width: int = 0, height: int = 0) -> None:
        size = (width or self.width, height or self.height)
        self._send(struct.pack(">BBHHHH", 3, incremental, x, y, *size))

    def update(self) -> list[tuple[int, int, int, int]]:
        """Waits for the next update, applies it, and returns its rectangles; a new size has none."""
        while (kind := self._receive(1)[0]) != 0:
            assert kind == 2, f"message {kind}"  # a bell is the only other one that is welcome
        rectangles = []
        for _ in range(struct.unpack(">xH", self._receive(3))[0]):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self._receive(12))
            if encoding == DESKTOP_SIZE:
                self.width, self.height = width, height
                self.pixels = bytearray(4 * width * height)
                continue
            assert encoding == RAW
            for row in range(y, y + height):
                at = 4 * (row * self.width + x)
                self.pixels[at : at + 4 * width] = self._receive(4 * width)
            rectangles.append((x, y, width, height))
        return rectangles

    def rgb(self) -> bytes:
        """Three bytes a pixel, as a pixmap has them."""
        out = bytearray(3 * self.width * self.height)
        for channel in range(3):
            out[channel::3] = self.pixels[2 - channel :: 4]
        return bytes(out)

    def key(self, keysym: int) -> None:
        for down in (1, 0):
            self._send(struct.pack(">BBxxI", 4, down, keysym))

    def pointer(self, x: int, y: int, buttons: int = 0) -> None:
        self._send(struct.pack(">BBHH", 5, buttons, x, y))

    def click(self, x: int, y: int) -> None:
        self.pointer(x, y)
        self.pointer(x, y, 1)
        self.pointer(x, y)


def bridge_command(path: str) -> list[str]:
    return ["python3", "-B", "-S", "-E", "-c", BRIDGE, path]


def receiver(process) -> Callable[[int], bytes]:
    """Reads what a Process of host.py prints."""
    return lambda count: process.read_until(b"(?s).{%d}" % count, timeout=120)
