"""The same host without a stick, by PXE and by HTTP: stock OVMF, and the servers that
docs/netboot.md has as examples, literally, in a network of their own (tests/stick/site_network.py).

The firmware, the network card's boot and the transfer are emulated, too; how long each takes is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/host"), str(CLONE / "tests/faults"), str(CLONE / "tests/stick")]

from boot import StickMachine  # noqa: E402
from site_network import Site  # noqa: E402
from test_state import BOOT_SECONDS  # noqa: E402

IN_MEMORY = rb"glint: the host's state is in memory only: find a stick"


class Server:
    """The folder that is /srv/glint in the examples of docs/netboot.md."""

    def __init__(self, folder: Path):
        self.folder = folder

    def example(self, title: str) -> str:
        """The indented lines from "# TITLE" on."""
        text = (CLONE / "docs/netboot.md").read_text()
        found = re.search(rf"^    # {re.escape(title)}\n((?:    .*\n)+)", text, re.MULTILINE)
        assert found, title
        return re.sub("^    ", "", found[1], flags=re.MULTILINE).replace("/srv/glint", str(self.folder))


@pytest.fixture(scope="module")
def srv(tmp_path_factory: pytest.TempPathFactory) -> Server:
    subprocess.run([CLONE / "image/build", "-o", CLONE / "build/stick.img"], check=True)
    folder = tmp_path_factory.mktemp("srv")
    (folder / "stick.img.efi").symlink_to(CLONE / "build/stick.img.efi")
    return Server(folder)


def without_stick(site: Site, folder: Path, *extra: str) -> StickMachine:
    """A box with a network card and nothing else. (The firmware's network wants random numbers.)"""
    folder.mkdir()
    return StickMachine(None, folder=folder, inside=site.inside, extra=["-device", "virtio-rng-pci", *site.card(boot=True), *extra])


def say(machine: StickMachine, words: bytes, seconds: float = BOOT_SECONDS) -> re.Match[bytes]:
    machine.position = 0
    found = machine.wait_for(words, seconds)
    print(f"[{machine.seconds():.1f} s] {found[0].decode(errors='replace').strip()}")
    return found


def test_http(srv: Server, tmp_path: Path) -> None:
    """To a host that is up, with an address, and says that it has no state."""
    with Site(tmp_path / "site", srv.example("dnsmasq.conf: HTTP")) as site:
        site.start("python3", "-m", "http.server", "--bind", "192.0.2.1", "--directory", srv.folder, "80", stderr=subprocess.DEVNULL)
        no_pxe = [word for version in (4, 6) for word in ("-fw_cfg", f"name=opt/org.tianocore/IPv{version}PXESupport,string=no")]
        with without_stick(site, tmp_path / "machine", *no_pxe) as machine:
            say(machine, rb"BdsDxe: starting Boot[^\r\n]*HTTPv4[^\r\n]*\r")
            say(machine, rb"glint-init: root of [^\r\n]*\r")
            root = machine.seconds()
            say(machine, IN_MEMORY, 60)
            waited = machine.seconds() - root
            assert waited < 75, "a stick that nobody promised is not waited for"
            found = say(machine, rb"glint: network: \w+ (\d[0-9.]*); names by 192\.0\.2\.1\b", 60)
            assert found[1].decode() == site.lease()
            say(machine, rb"this host is [0-9a-f-]{36}")
            assert b"FAILED" not in machine.output and b"Failed to" not in machine.output, machine.tail()


@pytest.mark.soak  # TFTP is slow; test_iscsi.py takes PXE as far as iPXE
def test_pxe(srv: Server, tmp_path: Path) -> None:
    """The file is the same: to its systemd."""
    with Site(tmp_path / "site", srv.example("dnsmasq.conf: PXE")) as site, without_stick(site, tmp_path / "machine") as machine:
        say(machine, rb"BdsDxe: starting Boot[^\r\n]*PXEv4[^\r\n]*\r")
        say(machine, rb"glint-init: root of [^\r\n]*\r")
