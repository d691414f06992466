"""Hot-plug with Linux's pciehp: a disk comes, is used, goes by consent, again and again; saved and restored; so does an
interface that carries traffic."""

import time
from collections.abc import Iterator

import pytest

import test_net as net
from host import CLONE, Host
from vm import Guest

TAP = "hot0"


def ports(guest: Guest) -> list[dict]:
    return guest.call("status")["result"]["ports"]


def add(guest: Guest, disk: str, nic: bool = False, **params: object) -> None:
    """A disk, and with @nic an interface beside it, which gets an address."""
    guest.call("device-add", f"+{disk}", kind="disk", id="hot", **params)
    if nic:
        guest.call("device-add", f"%{TAP}", kind="net", id="nic", mac=net.MAC)
        guest.sh("until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done", timeout=60)
        assert guest.sh("cat /sys/class/net/eth0/address") == net.MAC
        guest.sh(f"ip addr add {net.GUEST_IP}/24 dev eth0; ip link set eth0 up")
    guest.sh("n=0; while [ ! -b /dev/vda ] && [ $n -lt 300 ]; do sleep 0.2; n=$((n + 1)); done; [ -b /dev/vda ]")


def remove(guest: Guest, *names: str) -> None:
    """All that is plugged in; the disk when nothing is named."""
    for name in names or ["hot"]:
        guest.call("device-remove", id=name)
    end = time.monotonic() + 60
    while ports(guest):
        assert time.monotonic() < end, "the guest does not let it go"
        time.sleep(0.5)
    guest.sh("[ ! -b /dev/vda ] && [ ! -e /sys/class/net/eth0 ]")


@pytest.fixture
def disk(host: Host) -> str:
    host.run(["truncate", "-s", "8M", "/tmp/hot.raw"])
    return "/tmp/hot.raw"


@pytest.fixture
def peer(host: Host) -> Iterator[net.Peer]:
    """On the host's side of a tap."""
    with net.tap(host, TAP):
        peer = net.Peer(host, net.HOST_IP)
        yield peer
        peer.process.kill()


def use(guest: Guest, round_: int) -> None:
    guest.sh(f"echo round {round_} >/tmp/in; dd if=/tmp/in of=/dev/vda bs=512 seek={round_} conv=sync,fsync 2>/dev/null")
    assert guest.sh(f"dd if=/dev/vda bs=512 skip={round_} count=1 iflag=direct 2>/dev/null | head -n 1") == f"round {round_}"


def test_let_go(host: Host) -> None:
    """The unit tests of I/O threads on the host's kernel: what a removed device used is free again at once."""
    result = host.run([CLONE / "build/release/vmm/iothread_test"], timeout=120, check=False)
    assert result.rc == 0, (result.stdout + result.stderr).decode()


def test_again_and_again(host: Host, disk: str) -> None:
    with Guest(host, "--cpus", "2") as guest:
        guest.ready()
        for round_ in range(5):  # Linux waits 5 s after each press of a port's button
            add(guest, disk, port=1 + round_ % 4)
            use(guest, round_)
            remove(guest)
        guest.send("poweroff -f")
        assert guest.wait() == 0


def test_moves(host: Host, disk: str, peer: net.Peer) -> None:
    """The plugged disk and interface go along with a saved machine, a TCP stream goes on, and both can be removed and
    plugged again where they arrive."""
    state = "/tmp/hot.state"
    with Guest(host, modules=("virtio_net",)) as guest:
        guest.ready()
        add(guest, disk, nic=True, port=2)
        use(guest, 1)
        net.give(guest, peer, net.HOST_IP, 1 << 20)
        guest.sh(f"(echo send | nc {net.HOST_IP} 7 | sha256sum >/tmp/got; touch /tmp/got.done) & sleep 1")
        before = net.counters(guest)
        guest.call("save", state)
        guest.call("quit")
        assert guest.wait() == 0
    plugged = ["--disk", f"path={disk},id=hot,port=2", "--net", f"tap={TAP},vhost=off,id=nic,port=1"]
    with Guest(host, *plugged, restore=state) as guest:
        use(guest, 2)
        more = before[0] + (1 << 18)
        guest.sh(f"until [ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt {more} ]; do sleep 0.2; done")
        host.run(["touch", net.STOP])
        guest.sh("until [ -e /tmp/got.done ]; do sleep 0.2; done")
        assert guest.sh("cut -d' ' -f1 /tmp/got") == peer.said("send")[0][2]
        remove(guest, "hot", "nic")
        add(guest, disk, nic=True)
        use(guest, 3)
        net.take(guest, peer, net.HOST_IP, 1 << 20)
        remove(guest, "nic", "hot")


def test_there_at_boot_and_busy(host: Host, disk: str, peer: net.Peer) -> None:
    """A disk and an interface in ports from the start; Linux lets go of a disk that is open, and of an interface that
    carries traffic."""
    plugged = ["--disk", f"path={disk},id=hot,port=3", "--net", f"tap={TAP},vhost=off,id=nic,port=4,mac={net.MAC}"]
    with Guest(host, *plugged, modules=("virtio_net",)) as guest:
        guest.ready()
        use(guest, 1)
        guest.sh(f"ip addr add {net.GUEST_IP}/24 dev eth0; ip link set eth0 up; exec 9<>/dev/vda")
        guest.sh(f"ping -i 0.1 {net.HOST_IP} >/tmp/ping 2>&1 & until grep -q seq=3 /tmp/ping; do sleep 0.1; done")
        remove(guest, "hot", "nic")
        guest.sh("killall ping || true")  # it may have ended by itself
