"""Stock guests on the network: a tap through vhost-net; TCP, a link pulled, the machine moved in mid-stream."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from host import CLONE, Host, Process
from vm import Guest

TAP = "tap0"
HOST_IP, GUEST_IP = "192.0.2.1", "192.0.2.2"
MAC = "02:00:00:00:00:01"
GATEWAY = "198.51.100.1"  # of a guest on passt: the host itself
STOP = "/tmp/net-stop"  # on the host and in the guest: ends streams that go on until then

# The host's part: python3 -c PEER ADDRESS [INTERFACE]. Each connection to port 7 says in its first line what it wants:
#   send N    N bytes; without N: a steady stream until STOP is there
#   take      everything until its end
# and what went by is printed: how many bytes, their SHA-256. Announcements of guests on INTERFACE (ARP of a sender for
# its own address) are printed too.
PEER = rf"""
import hashlib, os, random, socket, sys, threading, time

def serve(client):
    stream = client.makefile("rb")  # closed below too: it holds the connection open by itself
    words = stream.readline().split()
    digest, total, block = hashlib.sha256(), 0, random.randbytes(1 << 16)
    if words[0] == b"send":
        while total < int(words[1]) if words[1:] else not os.path.exists("{STOP}"):
            client.sendall(block)
            digest.update(block)
            total += len(block)
            time.sleep(0 if words[1:] else 0.1)
    else:
        while data := stream.read1(1 << 16):
            digest.update(data)
            total += len(data)
    stream.close()
    client.close()
    print(f"<{{words[0].decode()}} {{total}} {{digest.hexdigest()}}>", flush=True)

def watch(interface):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    wire.bind((interface, 0x0806))
    while True:
        frame = wire.recv(2048)
        if frame[28:32] == frame[38:42]:
            print(f"<announced {{socket.inet_ntoa(frame[28:32])}} {{frame[6:12].hex(':')}}>", flush=True)

if sys.argv[2:]:
    threading.Thread(target=watch, args=(sys.argv[2],), daemon=True).start()
listener = socket.create_server((sys.argv[1], 7))
print("<listening>", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class Peer:
    def __init__(self, host: Host, *args: str) -> None:
        self.process: Process = host.spawn(["python3", "-c", PEER, *args])
        self.process.read_until("<listening>")

    def said(self, what: str, count: int = 1, timeout: float = 120) -> list[list[str]]:
        """The words of the next @count lines about @what (a regular expression)."""
        lines = [self.process.read_until(rf"<{what} [^>]+>", timeout).decode() for _ in range(count)]
        return [line[line.rindex("<") + 1 : -1].split() for line in lines]


@contextmanager
def tap(host: Host, name: str, *flags: str) -> Iterator[None]:
    """The host's side: a tap with HOST_IP, and vhost-net."""
    host.run(["modprobe", "-a", "tun", "vhost_net"])
    host.run(["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr", *flags])
    host.run(["ip", "addr", "add", f"{HOST_IP}/24", "dev", name])
    host.run(["ip", "link", "set", name, "up"])
    yield
    host.run(["ip", "link", "del", name])
    host.run(["rm", "-f", STOP])


@pytest.fixture
def network(host: Host) -> Iterator[Host]:
    with tap(host, TAP, "multi_queue"):
        yield host


def take(guest: Guest, peer: Peer, address: str, size: int) -> None:
    """The guest takes @size bytes of TCP; both ends have the same."""
    got = guest.sh(f"echo send {size} | nc {address} 7 | sha256sum", timeout=300).split()[0]
    assert peer.said("send", timeout=20) == [["send", str(size), got]]


def give(guest: Guest, peer: Peer, address: str, size: int) -> None:
    """And the other way."""
    guest.sh(f"dd if=/dev/urandom of=/tmp/data bs=64k count={size >> 16} 2>/dev/null")
    digest = guest.sh("sha256sum </tmp/data").split()[0]
    guest.sh(f"(echo take; cat /tmp/data) | nc {address} 7", timeout=300)
    assert peer.said("take") == [["take", str(size), digest]]


def carrier(guest: Guest, up: bool) -> None:
    guest.sh(f"i=0; until [ $(cat /sys/class/net/eth0/carrier) = {int(up)} ]; do sleep 0.1; i=$((i+1)); [ $i -lt 300 ]; done")


def counters(guest: Guest) -> list[int]:
    return [int(n) for n in guest.sh("cat /sys/class/net/eth0/statistics/[rt]x_bytes").split()]


def test_device_on_vhost(network: Host) -> None:
    """The unit tests of the device, where there is a vhost-net."""
    result = network.run([CLONE / "build/release/vmm/net_tap_test"], timeout=120, check=False)
    text = (result.stdout + result.stderr).decode()
    assert result.rc == 0 and "SKIPPED" not in text, text


def test_tap_with_vhost(network: Host) -> None:
    """Two pairs of queues, TCP both ways, a cable pulled; then streams both ways go on while the machine moves to
    another monitor without vhost-net, and back to one with: nothing is lost, and the guest announces itself."""
    host = network
    peer = Peer(host, HOST_IP, TAP)

    def args(vhost: str) -> list[str]:
        net = f"tap={TAP},vhost={vhost},queues=2,mac={MAC},mtu=1450"
        return ["--cpus", "2", "--memory", "256M", "--net", net]

    guest = Guest(host, *args("on"), modules=("virtio_net",)).ready()
    try:
        assert guest.sh("cat /sys/class/net/eth0/address") == MAC
        assert guest.sh("cat /sys/class/net/eth0/mtu") == "1450"
        assert guest.sh("ls -d /sys/class/net/eth0/queues/rx-*").count("rx-") == 2
        guest.sh(f"ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up")
        # A CPU transmits on its own pair, and the tap answers there.
        for cpu in range(2):
            assert " 0% packet loss" in guest.sh(f"taskset {1 << cpu} ping -c 3 -i 0.2 {HOST_IP}")
        rows = guest.sh("grep -E 'virtio.*-(input|output)' /proc/interrupts").splitlines()
        assert len(rows) == 4 and all(sum(map(int, row.split()[1:3])) > 0 for row in rows), rows
        take(guest, peer, HOST_IP, 4 << 20)
        give(guest, peer, HOST_IP, 4 << 20)
        stats = guest.call("stats")["result"]["nets"][0]
        assert stats["vhost"] and stats["tx"]["frames"] == stats["rx"]["frames"] == 0

        guest.call("link", id="net0", up=False)
        carrier(guest, False)
        assert not guest.call("stats")["result"]["nets"][0]["vhost"]
        guest.call("link", id="net0", up=True)
        carrier(guest, True)
        assert " 0% packet loss" in guest.sh(f"ping -c 1 {HOST_IP}")

        guest.sh("dd if=/dev/urandom of=/tmp/block bs=64k count=1 2>/dev/null; mkfifo /tmp/sum")
        guest.sh(f"(echo send | nc {HOST_IP} 7 | sha256sum >/tmp/got; touch /tmp/got.done) & "
                 "(sha256sum </tmp/sum >/tmp/gave) & "
                 f"((until [ -e {STOP} ]; do cat /tmp/block; sleep 0.1; done) | tee /tmp/sum | (echo take; cat) | nc {HOST_IP} 7; "
                 "touch /tmp/gave.done) & sleep 1")  # fmt: skip
        for turn, vhost in enumerate(("off", "on")):
            before = counters(guest)
            assert min(before) > 0
            state = f"/tmp/net-{turn}.state"
            guest.call("save", state)
            guest.call("quit")
            assert guest.wait() == 0
            guest = Guest(host, *args(vhost), restore=state)
            assert peer.said("announced") == [["announced", GUEST_IP, MAC]]
            host.run(["rm", state])
            assert peer.process.stdout.count(b"<announced") == turn + 1
            assert guest.call("stats")["result"]["nets"][0]["vhost"] == (vhost == "on")
            # Both streams go on behind the silence.
            guest.sh(f"until [ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt {before[0] + (1 << 18)} ] && "
                     f"[ $(cat /sys/class/net/eth0/statistics/tx_bytes) -gt {before[1] + (1 << 18)} ]; do sleep 0.1; done")  # fmt: skip
        host.run(["touch", STOP])
        guest.sh(f"touch {STOP}; until [ -e /tmp/got.done ] && [ -e /tmp/gave.done ]; do sleep 0.2; done", timeout=300)
        sums = {line[0]: line[2] for line in peer.said("(send|take)", 2)}
        assert guest.sh("cut -d' ' -f1 /tmp/got") == sums["send"]
        assert guest.sh("cut -d' ' -f1 /tmp/gave") == sums["take"]
    finally:
        guest.__exit__()
        peer.process.kill()


@contextmanager
def passt(host: Host) -> Iterator[str]:
    """User-mode networking on a host with an address and a route for it to take over; its socket's path. What a guest
    sends to GATEWAY comes to the host's loopback."""
    path = "/tmp/passt.sock"
    host.run(["modprobe", "veth"])
    host.run(["sh", "-ec", "ip link add up0 type veth peer name up1; ip addr add 198.51.100.7/24 dev up0; "
              f"ip link set up0 up; ip link set up1 up; ip route add default via {GATEWAY} dev up0"])  # fmt: skip
    process = host.spawn(["passt", "--foreground", "--runas", "0", "--interface", "up0", "--socket", path])
    host.run(["sh", "-c", f"until [ -e {path} ]; do sleep 0.1; done"])
    yield path
    process.kill()
    host.run(["ip", "link", "del", "up0"])


def test_passt(host: Host) -> None:
    """User-mode networking: an address by DHCP, then TCP both ways."""
    peer = Peer(host, "127.0.0.1")
    lease = 'case $1 in bound) ip addr add $ip/$mask dev $interface; ip route add default via $router;; esac'
    with passt(host) as path, Guest(host, "--net", f"passt={path},mac={MAC}", modules=("virtio_net", "af_packet")) as guest:
        guest.ready()
        guest.sh(f"(echo '#!/bin/sh'; echo '{lease}') >/tmp/lease; chmod +x /tmp/lease; ip link set eth0 up")
        guest.sh("udhcpc -i eth0 -n -q -s /tmp/lease")
        assert "198.51.100.7/24" in guest.sh("ip addr show eth0")
        # What comes back on a connection that the guest has half closed is cut short, cause not known: it stays open here.
        guest.sh("mkfifo /tmp/asking; exec 9<>/tmp/asking")
        for _ in range(2):
            give(guest, peer, GATEWAY, 8 << 20)
            got = guest.sh(f"echo send {8 << 20} >&9; nc {GATEWAY} 7 <&9 | sha256sum", timeout=300).split()[0]
            assert peer.said("send") == [["send", str(8 << 20), got]]
        stats = guest.call("stats")["result"]["nets"][0]
        assert stats["rx"]["bytes"] > 16 << 20 and stats["tx"]["bytes"] > 16 << 20 and not stats["rx"]["dropped"]
    peer.process.kill()
