"""glint-config beside the real keeper and ovsdb-server: what a host goes by, when, and what it says.

The step that takes host.toml from the stick needs a stick that was booted from: tests/stick/test_host_toml.py."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "tests/host"), str(CLONE / "tests/faults")]

from test_keeper import MIB, Host  # noqa: E402

CONFIG = CLONE / "build/release/node/config/glint-config"

GOOD = """
[host]
name = "branch-7"
[time]
servers = ["ntp.example.org", "192.0.2.123"]
[[network]]
name = "lan"
device = ["52:54:00:12:34:56", "en*"]
bond = "802.3ad"
bridge = true
vlan = 10
mtu = 9000
ipv4 = "192.0.2.10/24"
ipv6 = "none"
gateway = "192.0.2.1"
dns = "192.0.2.53"
search = "example.org"
[[network]]
name = "store"
on = "lan"
vlan = 20
[[network]]
name = "plain"
device = "eth9"
[[administrator]]
name = "ada"
keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"]
[[pool]]
name = "vms"
kind = "nfs"
source = "nas:/vms"
"""
BROKEN = '[host]\nname = my host\n[[network]]\nname = "lan"\ndevise = "eno1"\nipv4 = "192.0.2.10"\n'


class Configured:
    """A host's folders, and the steps on them."""

    def __init__(self, folder: Path):
        self.folder, self.networkd, self.timesyncd = folder / "config", folder / "network", folder / "timesyncd"
        self.host = Host(folder / "run", folder / "stick")
        for path in (self.folder, self.networkd, self.timesyncd):
            path.mkdir()
        (folder / "stick").touch()
        os.truncate(folder / "stick", 64 * MIB)

    def step(self, name: str, patience: int = 0) -> str:
        """What the step said; it has not failed."""
        done = subprocess.run([CONFIG, "--step", name, "--folder", self.folder, "--networkd", self.networkd, "--timesyncd", self.timesyncd,
                               "--database", self.host.folder / "db.sock", "--id", self.host.folder / "identity/id",
                               "--ibft", self.folder.parent / "ibft",
                               "--patience", str(patience)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def apply(self, text: str | None) -> str:
        """As at a boot with this file on the stick: what was said."""
        (self.folder / "host.toml").unlink(missing_ok=True)
        if text is not None:
            (self.folder / "host.toml").write_text(text)
        return self.step("apply") + self.step("keep")

    def files(self) -> dict[str, str]:
        return {path.name.removeprefix("10-glint-"): path.read_text() for path in self.networkd.iterdir()}


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configured]:
    one = Configured(tmp_path)
    with one.host:
        yield one


def test_a_good_file(configured: Configured) -> None:
    configured.host.start()
    words = configured.apply(GOOD)
    assert "configured as branch-7: 3 networks" in words and "line" not in words
    files = configured.files()
    assert set(files) == {"lan-devices.network", "lan-bond.netdev", "lan-bond.network", "lan.netdev", "lan.network", "lan.10.netdev",
                          "lan.10.network", "store.20.netdev", "store.20.network", "plain-devices.network"}
    assert re.search(r"\[Match\]\nPermanentMACAddress=52:54:00:12:34:56\nName=en\*\nKind=!\*\n.*Bond=lan-bond", files["lan-devices.network"], re.S)
    assert re.search(r"Kind=bond\nMACAddress=none\nMTUBytes=9000\n.*Mode=802.3ad", files["lan-bond.netdev"], re.S)
    assert re.search(r"Bridge=lan\n.*\[BridgeVLAN\]\nVLAN=1-4094\nPVID=1", files["lan-bond.network"], re.S)
    assert "VLANFiltering=yes" in files["lan.netdev"]
    assert re.search(r"VLAN=lan.10\nVLAN=store.20\n.*\[BridgeVLAN\]\nVLAN=10\n.*\[BridgeVLAN\]\nVLAN=20\n", files["lan.network"], re.S)
    assert "Address=" not in files["lan.network"]
    for line in ("Address=192.0.2.10/24", "Gateway=192.0.2.1", "DNS=192.0.2.53", "Domains=example.org", "DHCP=no", "IPv6AcceptRA=no"):
        assert f"{line}\n" in files["lan.10.network"]
    assert "DHCP=ipv4\n" in files["store.20.network"] and "ClientIdentifier=mac\n" in files["store.20.network"]
    assert "UseNTP=no\n" in files["store.20.network"]
    assert (configured.timesyncd / "10-glint.conf").read_text() == "[Time]\nNTP=ntp.example.org 192.0.2.123\n"
    assert (configured.folder / "hostname").read_text() == "branch-7"
    handed_on = json.loads((configured.folder / "host.json").read_text())
    assert handed_on["pools"] == [{"name": "vms", "kind": "nfs", "source": "nas:/vms"}]
    assert handed_on["administrators"][0]["name"] == "ada"
    row = configured.host.row()
    assert row["host_toml"] == GOOD and row["name"] == "branch-7"


def test_kept_once(configured: Configured) -> None:
    """A file that is as it was writes nothing to the stick."""
    configured.host.start()
    configured.apply(GOOD)
    change = configured.host.call("sync")["change"]
    configured.apply(GOOD)
    assert configured.host.call("sync")["change"] == change
    configured.apply(GOOD.replace("branch-7", "branch-8"))
    assert configured.host.call("sync")["change"] > change and configured.host.row()["name"] == "branch-8"


def test_a_broken_file_leaves_the_last_good_one(configured: Configured) -> None:
    configured.host.start()
    configured.apply(GOOD)
    before = configured.files()
    configured.host.cut_power()
    configured.host.start()
    words = configured.apply(BROKEN)
    for said in ("host.toml, line 2, column 8: 'my'", "line 5, column 1: a [[network]] has no key 'devise' (did you mean 'device'?)",
                 "line 6, column 8: '192.0.2.10' lacks", "host.toml of the stick is not used: the last good one is"):
        assert said in words
    assert configured.files() == before and (configured.folder / "hostname").read_text() == "branch-7"
    assert configured.host.row()["host_toml"] == GOOD
    # Mended, it is taken, and what the old one had made is gone.
    assert "configured as branch-9: 1 networks" in configured.apply('[host]\nname = "branch-9"\n[[network]]\nname = "n"\ndevice = "eno1"\n')
    assert set(configured.files()) == {"n-devices.network"} and not (configured.timesyncd / "10-glint.conf").exists()


def test_no_file_and_no_state(configured: Configured) -> None:
    """Neither a stick nor a database: DHCP on every device. A broken file and no good one before: the same, and said."""
    configured.apply(None)
    default = configured.files()
    assert set(default) == {"each.network"}
    assert "Type=ether\nKind=!*\n" in default["each.network"] and "DHCP=ipv4\n" in default["each.network"]
    words = configured.apply(BROKEN)
    assert "there was none before: DHCP on every device" in words and configured.files() == default
    assert configured.apply("x" * (64 << 10) + "\n").count("larger than 64 KiB") == 1


def test_what_is_missing_is_said(configured: Configured) -> None:
    configured.apply('[[network]]\nname = "lan"\ndevice = [\n "52:54:00:99:99:99",\n "lo" ]\n')
    words = configured.step("look")
    assert "host.toml, line 4: there is no network device '52:54:00:99:99:99'; there are: " in words and "line 5" not in words
    assert "the network is not as it should be: lan: no device of it has a carrier\n" in words


# A network namespace and the host's own systemd-networkd in it, with a cable that ends beside it.
IN_NAMESPACE = """
root=$1 made=$2
mount -t proc proc $root/proc; mount -t sysfs -o ro sysfs $root/sys; mount -t tmpfs tmpfs $root/run; mount -t tmpfs tmpfs $root/dev
mknod -m 666 $root/dev/null c 1 3; mknod -m 666 $root/dev/urandom c 1 9
mkdir -p $root/run/systemd/netif/links $root/run/systemd/netif/leases; cp -r $made $root/run/systemd/network
chroot $root chown -R systemd-network: /run/systemd/netif
ip link set lo up; ip link add uplink0 type veth peer name far; ip link set far up
SYSTEMD_LOG_LEVEL=info SYSTEMD_LOG_TARGET=console chroot $root /usr/lib/systemd/systemd-networkd &
for i in $(seq 100); do ip -6 addr show uplink0 | grep -q 2001:db8::7 && ip route | grep -q default && break; sleep 0.1; done
ip addr show uplink0; ip route; ip -6 route
mount -t sysfs -o ro sysfs /sys; "$3" --step look --folder "$4" --patience 0; ip link set far down; "$3" --step look --folder "$4" --patience 0
"""


def run_networkd(configured: Configured) -> str:
    """What it, the kernel and glint-config say; networkd has understood every line."""
    root = subprocess.run([CLONE / "tools/debroot", CLONE / "image/root"], check=True, capture_output=True, text=True).stdout.strip()
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", IN_NAMESPACE, "sh", root, configured.networkd,
                           CONFIG, configured.folder], capture_output=True, text=True, timeout=60)
    words = done.stdout + done.stderr
    assert not re.search(r"Unknown|[Ff]ailed to parse|Invalid|ignoring assignment", words), words
    return words


def test_networkd_takes_it(configured: Configured) -> None:
    """What is written is what systemd-networkd understands; addresses and routes are there. (Bonds and bridges this
    machine's kernel may not have: tests/stick/test_host_toml.py.)"""
    plain = 'device = "uplink0"\nipv4 = "192.0.2.77/24"\nipv6 = "2001:db8::7/64"\ngateway = ["192.0.2.1", "fe80::1"]\nmtu = 1400'
    configured.apply(GOOD.replace('device = "eth9"', plain))
    words = run_networkd(configured)
    for seen in ("mtu 1400", "inet 192.0.2.77/24", "inet6 2001:db8::7/64", "default via 192.0.2.1 dev uplink0", "default via fe80::1 dev uplink0",
                 ", plain: uplink0 192.0.2.77\n", ", plain: no device of it has a carrier\n"):
        assert seen in words, words


def test_booted_over_iscsi(configured: Configured) -> None:
    """The device to the host's disk is in no network of host.toml, and networkd takes what is said of it."""
    for number, values in enumerate(({"mac": "02:00:00:00:00:07", "dhcp": "192.0.2.1", "primary-dns": "192.0.2.53"},
                                     {"mac": "02:00:00:00:00:08", "primary-dns": "192.0.2.53", "secondary-dns": "x\nDHCP=yes"},
                                     {"mac": "none"})):
        device = configured.folder.parent / f"ibft/ethernet{number}"
        device.mkdir(parents=True)
        for name, value in values.items():
            (device / name).write_text(value + "\n")
    plain = 'device = "uplink0"\nipv4 = "192.0.2.77/24"\nipv6 = "2001:db8::7/64"\ngateway = ["192.0.2.1", "fe80::1"]'
    words = configured.apply(GOOD.replace('device = "eth9"', plain))
    assert "this host's disk is reached over iSCSI" in words
    files = {path.name: path.read_text() for path in configured.networkd.iterdir() if path.name.startswith("05-")}
    assert set(files) == {"05-glint-iscsi0.network", "05-glint-iscsi1.network"} and sorted(configured.networkd.iterdir())[0].name in files
    assert re.search(r"PermanentMACAddress=02:00:00:00:00:07\n.*DHCP=ipv4\nKeepConfiguration=yes\n", files["05-glint-iscsi0.network"], re.S)
    assert "DNS=" not in re.sub("MulticastDNS=", "", files["05-glint-iscsi0.network"])
    assert re.search(r"02:00:00:00:00:08\n.*DHCP=no\n.*\nDNS=192.0.2.53\n\n", files["05-glint-iscsi1.network"], re.S)
    run_networkd(configured)


def test_check(tmp_path: Path) -> None:
    for text, status in ((GOOD, 0), (BROKEN, 1)):
        (tmp_path / "host.toml").write_text(text)
        done = subprocess.run([CONFIG, "--check", tmp_path / "host.toml"], capture_output=True, text=True)
        assert done.returncode == status and ("line 6, column 8" in done.stderr) == (status == 1)
