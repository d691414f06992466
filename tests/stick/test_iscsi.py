"""The same host from a LUN: stock OVMF, iPXE, dnsmasq and tgt, with what docs/netboot.md has as examples, literally, in a
network of their own (tests/stick/site_network.py).

Its state is on the LUN. The target is cut off and comes back while the host runs; then the power goes, and the host that
starts again is the same."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/host"), str(CLONE / "tests/faults"), str(CLONE / "tests/stick")]

from boot import StickMachine  # noqa: E402
from site_network import Site  # noqa: E402
from test_netboot import Server, say, without_stick  # noqa: E402
from test_pull import IN_MEMORY, KEPT  # noqa: E402
from test_state import BOOT_SECONDS  # noqa: E402

TARGET = rb"iqn\.2026-01\.example\.site:glint at 192\.0\.2\.1"


class Target:
    """tgtd in the site's network, with the example's target."""

    def __init__(self, site: Site, folder: Path, config: str):
        self.site, self.config = site, folder / "targets.conf"
        self.config.write_text(config)
        self.start()

    def start(self) -> None:
        self.daemon = self.site.start("tgtd", "--foreground", stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while self.site.run("tgtadm", "--mode", "sys", "--op", "show").returncode:
            assert time.monotonic() < until and self.daemon.poll() is None, "tgtd does not answer"
            time.sleep(0.1)
        assert self.site.run("tgt-admin", "--conf", self.config, "--execute").returncode == 0

    def cut(self) -> None:
        self.daemon.kill()
        self.daemon.wait()


@pytest.fixture
def srv(tmp_path: Path) -> Server:
    subprocess.run([CLONE / "image/build", "-o", CLONE / "build/stick.img"], check=True)
    folder = tmp_path / "srv"
    folder.mkdir()
    (folder / "ipxe.efi").symlink_to("/usr/lib/ipxe/ipxe.efi")
    subprocess.run(["cp", "--sparse=always", CLONE / "build/stick.img", folder / "host.img"], check=True)
    return Server(folder)


@pytest.fixture
def site(srv: Server, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site", srv.example("dnsmasq.conf: iSCSI")) as site:
        yield site


def boot(site: Site, folder: Path) -> StickMachine:
    return without_stick(site, folder)


def boot_to_state(machine: StickMachine) -> str:
    """The host's id, when its state is on the LUN."""
    say(machine, rb"Root path: iscsi:192\.0\.2\.1[^\r\n]*\r")
    say(machine, rb"glint-init: root of [^\r\n]*\r")
    say(machine, KEPT)
    return say(machine, rb"this host is ([0-9a-f-]{36})", 10)[1].decode()


def test_state_on_a_lun(srv: Server, site: Site, tmp_path: Path) -> None:
    target = Target(site, tmp_path, srv.example("targets.conf: iSCSI"))
    with boot(site, tmp_path / "first") as machine:
        host = boot_to_state(machine)
        found = say(machine, rb"glint: network: \w+ (\d[0-9.]*); names by 192\.0\.2\.1\b", 60)
        assert found[1].decode() == site.lease()
        assert b"FAILED" not in machine.output and b"Failed to" not in machine.output, machine.tail()

        # Requests wait, then the disk is taken for pulled. The host goes on: it answers at its console.
        machine.position = len(machine.output)
        target.cut()
        machine.wait_for(rb"the disk that this host was booted from does not answer: " + TARGET, 30)
        machine.wait_for(IN_MEMORY + b"it was pulled", 90)
        machine.write(b"\r")
        machine.wait_for(rb"in memory only: [^\r]*\r\n[^\r]*memory in use", 20)

        target.start()
        machine.wait_for_all([rb"the disk that this host was booted from is back: " + TARGET, KEPT, rb"holds the host's state \(generation 2\)"], 60)
        print(f"[{machine.seconds():.1f} s] lost and found")

    with boot(site, tmp_path / "second") as machine:
        assert boot_to_state(machine) == host
        assert re.search(rb"restored from /dev/glint/state/sd", machine.output), machine.tail()
