"""host.toml on a booted stick: what a person writes on the ESP is how the host comes up, seen from the wire.

The host's network card ends in this test, which is its only neighbour: it sends ARP and ICMP, in a VLAN or not. As the
stick is made, without a word in its host.toml, the host is plugged into a site that has DHCP."""

import datetime
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/host"), str(CLONE / "tests/faults"), str(CLONE / "tests/stick")]

from boot import StickMachine  # noqa: E402
from site_network import ADDRESS, MAC, Site  # noqa: E402
from test_state import BOARDS, BOOT_SECONDS, Stick  # noqa: E402

GOOD = """[host]
name = "branch-7"
[[network]]
name = "lan"
device = "first"
bridge = true
vlan = 10
ipv4 = "192.0.2.10/24"
ipv6 = "none"
"""
BROKEN = GOOD.replace("branch-7", "branch 8").replace("vlan = 10", "vlan = 9999\naddress = 1")
ELSEWHERE = GOOD.replace('"first"', '"52:54:00:99:99:99"').replace("branch-7", "branch-9")


class Wire:
    """The far end of the host's network cable."""

    ADDRESS, OWN = bytes([192, 0, 2, 1]), bytes.fromhex("525400000001")

    def __init__(self, folder: Path):
        self.here, self.there = folder / "wire", folder / "card"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.here))
        self.socket.settimeout(0.2)

    def card(self) -> list[str]:
        netdev = f"dgram,id=net,local.type=unix,local.path={self.there},remote.type=unix,remote.path={self.here}"
        return ["-netdev", netdev, "-device", f"e1000e,netdev=net,mac={MAC}"]

    def ask(self, payload: bytes, kind: int, to: bytes, vlan: int, answer: bytes, seconds: float) -> bytes | None:
        """Sends a frame again and again, until one comes back that has @answer in it."""
        tag = struct.pack(">HH", 0x8100, vlan) if vlan else b""
        frame = to + self.OWN + tag + struct.pack(">H", kind) + payload
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.socket.sendto(frame.ljust(60, b"\0"), str(self.there))
            pause = time.monotonic() + 1
            while time.monotonic() < pause:
                try:
                    got = self.socket.recv(65536)
                except TimeoutError:
                    continue
                if got[:6] == self.OWN and answer in got and (got[12:16] == tag if tag else got[12:14] == struct.pack(">H", kind)):
                    return got
        return None

    def arp(self, address: str, vlan: int = 0, seconds: float = 20) -> bytes | None:
        """The MAC address that answers for @address."""
        who = socket.inet_aton(address)
        payload = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + self.OWN + self.ADDRESS + bytes(6) + who
        got = self.ask(payload, 0x0806, b"\xff" * 6, vlan, struct.pack(">H", 2), seconds)
        return got and got[6:12]

    def ping(self, address: str, to: bytes, vlan: int = 0, seconds: float = 20) -> bool:
        def checksum(data: bytes) -> int:
            total = sum(struct.unpack(f">{len(data) // 2}H", data))
            total = (total & 0xFFFF) + (total >> 16)
            return ~(total + (total >> 16)) & 0xFFFF

        word = b"from the wire..."
        echo = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + word
        echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(echo), 1, 0, 64, 1, 0, self.ADDRESS, socket.inet_aton(address))
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        return self.ask(head + echo, 0x0800, to, vlan, word, seconds) is not None


class ConfiguredStick(Stick):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.image = Path(shutil.copy(self.image, folder / "stick0.img"))

    def write(self, text: str) -> None:
        """As a person does, on any computer."""
        file = self.folder / "host.toml"
        file.write_text(text)
        subprocess.run(["mcopy", "-o", "-i", f"{self.image}@@1M", file, "::glint/host.toml"], check=True)

    def power_on(self, *extra: str, inside: list[str] = []) -> StickMachine:
        self.count += 1
        folder = self.folder / f"machine{self.count}"
        folder.mkdir()
        return StickMachine(self.image, folder=folder, extra=["-uuid", BOARDS[0], *extra], inside=inside)


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[ConfiguredStick]:
    yield ConfiguredStick(tmp_path)


def wait_anywhere(machine: StickMachine, words: bytes, seconds: float = 120) -> re.Match[bytes]:
    machine.position = 0
    found = machine.wait_for(words, seconds)
    print(f"[{machine.seconds():.1f} s] {found[0].decode()}")
    return found


def answers(wire: Wire) -> bool:
    """Whether the host is at its address, in its VLAN and not outside."""
    mac = wire.arp("192.0.2.10", vlan=10)
    return mac is not None and mac.hex(":") == MAC and wire.ping("192.0.2.10", mac, vlan=10) and wire.arp("192.0.2.10", seconds=2) is None


def test_host_toml_makes_the_host(stick: ConfiguredStick, tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    stick.write(GOOD.replace("\n", "\r\n"))  # as Notepad writes it
    with stick.power_on(*wire.card()) as machine:
        wait_anywhere(machine, rb"branch-7: network: lan: lan.10 192\.0\.2\.10", BOOT_SECONDS)
        assert answers(wire)
        wait_anywhere(machine, rb"/dev/glint/state/sd.: holds the host's state")
        time.sleep(5)  # the keeper flushes what was handed to it
        assert b"FAILED" not in machine.output and b"Failed to" not in machine.output, machine.tail()
        stick.pull(machine)
    _, row = stick.inspect()
    assert row["host_toml"] == GOOD.replace("\n", "\r\n") and row["name"] == "branch-7"

    # A broken file: every mistake is said, the host is what it was. Its clock has lost the time, too.
    stick.write(BROKEN)
    with stick.power_on(*wire.card(), "-rtc", "base=2001-01-01") as machine:
        wait_anywhere(machine, rb"host\.toml, line 2, column 8: 'branch 8' is no name", BOOT_SECONDS)
        wait_anywhere(machine, rb"host\.toml, line 7, column 8: a whole number from 1 to 4094")
        wait_anywhere(machine, rb"host\.toml, line 8, column 1: a \[\[network\]\] has no key 'address'")
        wait_anywhere(machine, rb"host\.toml of the stick is not used: the last good one is")
        wait_anywhere(machine, rb"the clock is not set")
        wait_anywhere(machine, rb"branch-7: network: lan: lan.10 192\.0\.2\.10")
        assert answers(wire)
        stick.pull(machine)
    assert stick.inspect()[1]["host_toml"] == GOOD.replace("\n", "\r\n")

    # A device that is not there: the host is up, and says what it has.
    stick.write(ELSEWHERE)
    with stick.power_on(*wire.card()) as machine:
        there = rb"host\.toml, line 5: there is no network device '52:54:00:99:99:99'; there are: \w+ \(" + MAC.encode()
        wait_anywhere(machine, there, BOOT_SECONDS)
        wait_anywhere(machine, rb"branch-9: the network is not as it should be: lan: no device of it has a carrier")


def test_dhcp(stick: ConfiguredStick, tmp_path: Path) -> None:
    """A stick as it is made, in a box that has lost the time: address, name servers and time come from DHCP."""
    options = f"dhcp-range=192.0.2.100,192.0.2.199,1h\ndhcp-option=option:ntp-server,{ADDRESS}\n"
    with Site(tmp_path / "site", options) as site:
        site.serve_time(datetime.datetime(2035, 5, 6, 7, 8, tzinfo=datetime.UTC).timestamp())
        with stick.power_on(*site.card(), "-rtc", "base=2001-01-01", inside=site.inside) as machine:
            found = wait_anywhere(machine, rb"glint: network: (\w+) (\d[0-9.]*); names by 192\.0\.2\.1\b", BOOT_SECONDS)
            assert found[2].decode() == site.lease()
            wait_anywhere(machine, rb"the clock is not set")
            wait_anywhere(machine, rb"the time is from a time server: 2035-05-06 07:")
