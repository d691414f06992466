"""A whole Debian 13 on a disk, as its installer leaves it: shim, GRUB, kernel, systemd, a login on the serial port. It is
moved again and again with all that a machine can have in use: its disk, TCP, vsock, a console port, its agent, and its
display with a viewer.
"""

import time
from collections.abc import Callable, Iterator

import pytest

import test_net as net
from display import Viewer
from host import CLONE, Host
from uefi import ESP_START, Machine, debian_disk
from vm import Guest

TALK = CLONE / "build/release/tests/guests/talk"
TAP = "debian0"
VSOCK, PORT = "/tmp/debian.vsock", "/tmp/debian.port"
STATE = "/tmp/debian.state"
DEVICES = [
    *("--rng", "--agent", "on", "--display", "800x600", "--net", f"tap={TAP},mac={net.MAC},vhost=on"),
    *("--vsock", f"path={VSOCK},cid=42", "--console-port", f"name=org.glint.test,path={PORT}"),
]
MOVES, MANY_MOVES = 3, 20
TOP = range(64)  # rows of the display

# The guest's load, until /tmp/stop. The disk: what is written is read back past the page cache and compared.
LOAD = rf"""
dd if=/dev/urandom of=/var/tmp/random bs=1M count=8 2>/dev/null
while [ ! -e /tmp/stop ]; do
    cp /var/tmp/random /var/tmp/copy && sync /var/tmp/copy
    dd if=/var/tmp/copy bs=1M iflag=direct 2>/dev/null | cmp - /var/tmp/random || touch /tmp/bad
    echo >>/tmp/rounds
done &
disk=$!
while :; do cat 0<>/dev/virtio-ports/org.glint.test >&0; sleep 0.1; done 2>/dev/null &
/boot/efi/talk echo vsock:-1:52 >/tmp/echo &
exec 3<>/dev/tcp/{net.HOST_IP}/7
echo send >&3
sha256sum <&3 >/tmp/got
touch /tmp/got.done
wait $disk
touch /tmp/stopped
"""


def log_in(guest: Guest) -> Guest:
    """Root's shell on the guest's serial port, for Guest.sh()."""
    process = guest.process
    process.read_until("guest login: ", timeout=600)
    process.write(b"root\n")
    process.read_until("Password: ", timeout=120)
    process.write(b"glint\n")
    process.read_until(r"root@guest:~# ", timeout=120)
    process.write(b"stty -echo; bind 'set enable-bracketed-paste off'; PS1= PS2=\n")
    guest.sh("true")
    return guest


@pytest.fixture
def peer(host: Host) -> Iterator[net.Peer]:
    """On the host's side of a tap."""
    with net.tap(host, TAP):
        peer = net.Peer(host, net.HOST_IP, TAP)
        yield peer
        peer.process.kill()


def check_boot(guest: Guest) -> None:
    """It came up whole, by what shim writes into the variables at its first start."""
    assert guest.sh("systemctl is-system-running --wait", timeout=300) == "running"
    assert guest.sh("findmnt -no SOURCE /") == "/dev/vda2"
    assert "shimx64.efi" in guest.sh("cat /sys/firmware/efi/efivars/Boot0*-8be4df61-* | tr -d '\\000'")


def wait_for_agent(guest: Guest) -> None:
    deadline = time.monotonic() + 120
    while not guest.call("status")["result"]["agent"]["open"]:
        assert time.monotonic() < deadline, "qemu-guest-agent does not open its port"
        time.sleep(0.5)
    assert guest.call("agent-ping")["result"] == {}


def check_agent(guest: Guest) -> None:
    """systemd started it; it knows the machine, and holds the disk's load back."""
    assert guest.sh("systemctl is-active qemu-guest-agent") == "active"
    info = guest.call("agent-info")["result"]
    assert info["host-name"] == "guest" and info["os"]["id"] == "debian" and info["os"]["version"] == "13"
    assert net.GUEST_IP in str(info["interfaces"])
    assert guest.call("agent-freeze", seconds=600)["result"]["file-systems"] >= 1
    rounds = guest.sh("sleep 1; wc -l </tmp/rounds")
    assert guest.sh("sleep 2; wc -l </tmp/rounds") == rounds
    assert guest.call("agent-thaw")["result"]["file-systems"] >= 1


def begin_load(guest: Guest) -> None:
    guest.sh("echo 0 >/sys/class/graphics/fbcon/cursor_blink")  # of what is compared below
    guest.sh(f"nic=$(ls -d /sys/class/net/e*); ip addr add {net.GUEST_IP}/24 dev ${{nic##*/}}; ip link set ${{nic##*/}} up")
    begun = "grep -q LISTENING /tmp/echo && [ -s /tmp/rounds ]"
    guest.sh(f"bash /boot/efi/load >/tmp/load 2>&1 </dev/null & until {begun}; do sleep 0.2; done", timeout=300)


def check_load(guest: Guest, viewer: Viewer, mark: str) -> None:
    """Everything goes on."""
    before = "r=$(wc -l </tmp/rounds); rx=/sys/class/net/e*/statistics/rx_bytes; b=$(cat $rx)"
    grown = "[ $(wc -l </tmp/rounds) -gt $r ] && [ $(cat $rx) -gt $((b + 262144)) ]"
    guest.sh(f"{before}; until {grown}; do sleep 0.2; done")
    guest.sh("[ ! -e /tmp/bad ]")
    for talk in (["send", PORT, "128"], ["send", VSOCK, "128", "CONNECT 52"]):
        assert "TALKED 128 KiB" in guest.host.run([TALK, *talk], timeout=120).text
    wait_for_agent(guest)
    # A word at the top of its text console.
    above = viewer.sees("debian-before", TOP)
    guest.sh(f"printf '\\033c{mark}' >/dev/tty1")
    assert viewer.sees("debian", TOP) != above


def run_debian(host: Host, peer: net.Peer, enough: Callable[[int], bool]) -> None:
    machine = Machine(host, debian_disk())
    host.write("/tmp/load", LOAD.encode())
    host.run(["mcopy", "-i", f"{machine.disk}@@{ESP_START}", TALK, "/tmp/load", "::/"])
    args = [*machine.args, *DEVICES]
    guest = Guest(host, *args, direct=False)
    moves = 0
    try:
        log_in(guest)
        check_boot(guest)
        begin_load(guest)
        viewer = Viewer(host, guest)
        check_load(guest, viewer, "booted")
        check_agent(guest)
        while not enough(moves):
            guest.call("save", STATE)
            guest.call("quit")
            assert guest.wait() == 0 and viewer.ended()
            guest = Guest(host, *args, restore=STATE)
            assert peer.said("announced") == [["announced", net.GUEST_IP, net.MAC]]
            moves += 1
            viewer = Viewer(host, guest)
            check_load(guest, viewer, f"moved {moves}")
        host.run(["touch", net.STOP])
        guest.sh("touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.2; done", timeout=300)
        assert guest.sh("cut -d' ' -f1 /tmp/got") == peer.said("send")[0][2]
        guest.sh("cmp /var/tmp/random /var/tmp/copy; [ ! -e /tmp/bad ]")
        assert guest.sh("systemctl is-system-running") == "running"
        clocks = [int(text) for text in (host.run(["date", "+%s"]).text, guest.sh("date +%s"))]
        assert abs(clocks[0] - clocks[1]) < 10
        guest.call("power-button")
        assert guest.wait(timeout=300) == 0
    finally:
        guest.__exit__()


def test_debian(host: Host, peer: net.Peer) -> None:
    run_debian(host, peer, lambda moves: moves == MOVES)


@pytest.mark.soak
def test_moved_often(host: Host, peer: net.Peer, soak_seconds: float) -> None:
    end = time.monotonic() + soak_seconds
    run_debian(host, peer, lambda moves: moves >= MANY_MOVES and time.monotonic() > end)
