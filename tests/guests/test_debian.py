"""A whole Debian 13 on a disk, as its installer leaves it: shim, GRUB, kernel, systemd, a login on the serial port. It
boots from VHDX and VHD, from NVMe and virtio-blk, and is moved again and again with all that a machine can have in use:
its disk, a chain three deep under fio, TCP, vsock, a console port, its agent, and its display with a viewer.
"""

import time
from collections.abc import Callable, Iterator

import pytest

import test_net as net
from display import Viewer
from host import BUILD, Host
from uefi import GLINT, Machine, debian_disk
from vm import Guest

DISK_TOOL, TALK = BUILD / "tests/disk/disk_tool", BUILD / "tests/guests/talk"
TAP = "debian0"
VSOCK, PORT = "/tmp/debian.vsock", "/tmp/debian.port"
STATE = "/tmp/debian.state"
FOLDER = "/tmp/debian"  # of the chain and the tools
CHAIN = ["base.vhdx", "middle.vhdx", "top.vhdx"]
CHAIN_MIB, FIO_MIB, FIO_END_MIB = 32, 7, 25  # its size; fio writes from here to there, both in the middle of a block
DEVICES = [
    *("--disk", f"path={FOLDER}/{CHAIN[-1]},format=vhdx,id=chain"),
    *("--disk", f"path={FOLDER}/tools.tar,readonly=on,id=tools"),
    *("--rng", "--agent", "on", "--display", "800x600", "--net", f"tap={TAP},mac={net.MAC},vhost=on"),
    *("--vsock", f"path={VSOCK},cid=42", "--console-port", f"name=org.glint.test,path={PORT}"),
]
MOVES, MANY_MOVES = 2, 20
TOP = range(64)  # rows of the display
ROOT = {"nvme": "/dev/nvme0n1p2", "virtio": "/dev/vda2"}

# The guest's load, until /tmp/stop. What is written to a disk is read back past the page cache and compared; the files
# /tmp/*.rounds grow by a line each time. fio writes other places with other bytes each time, and reads while it writes.
LOAD = rf"""
dd if=/dev/urandom of=/var/tmp/random bs=1M count=4 2>/dev/null
while [ ! -e /tmp/stop ]; do
    cp /var/tmp/random /var/tmp/copy && sync /var/tmp/copy
    dd if=/var/tmp/copy bs=1M iflag=direct 2>/dev/null | cmp - /var/tmp/random || touch /tmp/bad
    echo >>/tmp/disk.rounds
    sleep 0.5
done &
disk=$!
while [ ! -e /tmp/stop ]; do
    fio --name=chain --filename=/dev/disk/by-id/virtio-chain --offset={FIO_MIB}M --size={FIO_END_MIB - FIO_MIB}M \
        --io_size=4M --rw=randwrite --bsrange=512-64k --direct=1 --ioengine=libaio --iodepth=8 --randrepeat=0 \
        --verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 >/tmp/fio 2>&1 || touch /tmp/bad
    echo >>/tmp/fio.rounds
done &
chain=$!
while :; do cat 0<>/dev/virtio-ports/org.glint.test >&0; sleep 0.1; done 2>/dev/null &
/root/talk echo vsock:-1:52 >/tmp/echo &
exec 3<>/dev/tcp/{net.HOST_IP}/7
echo send >&3
sha256sum <&3 >/tmp/got
touch /tmp/got.done
wait $disk $chain
touch /tmp/stopped
"""


def log_in(guest: Guest) -> Guest:
    """Root's shell on the guest's serial port, for Guest.sh()."""
    process = guest.process
    said = process.read_until(r"guest login: |Shell> ", timeout=600)
    assert b"Shell>" not in said, "the firmware boots nothing"
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


@pytest.fixture
def folder(host: Host, rng) -> Iterator[str]:
    """With the guest's tools and a chain of three, whose parents hold something and the model beside them the same."""

    def run(*words: object) -> None:
        host.run([str(word) for word in words], cwd=FOLDER)

    base, middle, top = CHAIN
    host.run(["mkdir", FOLDER])
    host.write(f"{FOLDER}/load", LOAD.encode())
    run("tar", "-cf", "tools.tar", "load", "-C", TALK.parent, TALK.name)
    run("truncate", "-s", f"{CHAIN_MIB}M", "model")
    run(GLINT, "disk", "create", base, "--size", f"{CHAIN_MIB}M", "--block", "2M")
    run(DISK_TOOL, "write", base, "model", rng.randrange(2**31), 20)
    run(GLINT, "disk", "snapshot", base, middle)
    run(DISK_TOOL, "write", middle, "model", rng.randrange(2**31), 20)
    run(GLINT, "disk", "snapshot", middle, top)
    yield FOLDER
    host.run(["rm", "-r", FOLDER])


def check_boot(guest: Guest, bus: str) -> None:
    """It came up whole, by what shim writes into the variables at its first start."""
    assert guest.sh("systemctl is-system-running --wait", timeout=300) == "running"
    assert guest.sh("findmnt -no SOURCE /") == ROOT[bus]
    assert "shimx64.efi" in guest.sh("cat /sys/firmware/efi/efivars/Boot0*-8be4df61-* | tr -d '\\000'")


def check_disk(host: Host, disk: str) -> None:
    """Nobody has it: it is whole, also to another tool. That has no check for VHD, but reads what we do."""
    host.run([GLINT, "disk", "check", disk])
    if disk.endswith(".vhdx"):
        host.run(["qemu-img", "check", "-q", "-f", "vhdx", disk])
    else:
        host.run([GLINT, "disk", "convert", disk, f"{disk}.raw", "--quiet"], timeout=300)
        host.run(["qemu-img", "compare", "-q", "-f", "vpc", "-F", "raw", disk, f"{disk}.raw"], timeout=300)
        host.run(["rm", f"{disk}.raw"])


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
    rounds = guest.sh("sleep 1; wc -l </tmp/disk.rounds")
    assert guest.sh("sleep 2; wc -l </tmp/disk.rounds") == rounds
    assert guest.call("agent-thaw")["result"]["file-systems"] >= 1


def begin_load(guest: Guest) -> None:
    guest.sh("echo 0 >/sys/class/graphics/fbcon/cursor_blink")  # of what is compared below
    guest.sh(f"nic=$(ls /sys/class/net | grep ^e); ip addr add {net.GUEST_IP}/24 dev $nic; ip link set $nic up")
    guest.sh("tar -xf /dev/disk/by-id/virtio-tools -C /root")
    begun = "grep -q LISTENING /tmp/echo && [ -s /tmp/disk.rounds ] && [ -s /tmp/fio.rounds ]"
    guest.sh(f"(bash /root/load >/tmp/load 2>&1 </dev/null &); until {begun}; do sleep 0.2; done", timeout=300)


def check_load(guest: Guest, viewer: Viewer, mark: str) -> None:
    """Everything goes on."""
    rounds = "wc -l </tmp/disk.rounds; wc -l </tmp/fio.rounds; cat /sys/class/net/e*/statistics/rx_bytes"
    before = guest.sh(rounds).split()
    grown = " && ".join(f"[ $({count}) -gt {old} ]" for count, old in zip(rounds.split("; "), before))
    guest.sh(f"until {grown}; do sleep 0.2; done", timeout=300)
    guest.sh("[ ! -e /tmp/bad ] || { cat /tmp/load /tmp/fio; false; }")
    for talk in (["send", PORT, "128"], ["send", VSOCK, "128", "CONNECT 52"]):
        assert "TALKED 128 KiB" in guest.host.run([TALK, *talk], timeout=120).text
    wait_for_agent(guest)
    # A word at the top of its text console.
    above = viewer.sees("debian-before", TOP)
    guest.sh(f"printf '\\033c{mark}' >/dev/tty1")
    viewer.sees("debian", TOP, unlike=above)


def check_chain(host: Host, guest: Guest) -> None:
    """Where fio does not write, the guest reads what the parents hold."""
    for begin, end in ((0, FIO_MIB), (FIO_END_MIB, CHAIN_MIB)):
        read = f"dd bs=1M skip={begin} count={end - begin} status=none"
        held = host.run(["sh", "-c", f"{read} if={FOLDER}/model | sha256sum"]).text.split()
        assert guest.sh(f"{read} if=/dev/disk/by-id/virtio-chain iflag=direct | sha256sum").split() == held


def end_load(host: Host, peer: net.Peer, guest: Guest) -> None:
    host.run(["touch", net.STOP])
    guest.sh("touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.2; done", timeout=300)
    assert guest.sh("cut -d' ' -f1 /tmp/got") == peer.said("send")[0][2]
    guest.sh("cmp /var/tmp/random /var/tmp/copy; [ ! -e /tmp/bad ]")
    check_chain(host, guest)
    assert all(disk["errors"] == 0 for disk in guest.call("stats")["result"]["disks"])
    assert guest.sh("systemctl is-system-running") == "running"
    clocks = [int(text) for text in (host.run(["date", "+%s"]).text, guest.sh("date +%s"))]
    assert abs(clocks[0] - clocks[1]) < 10


def run_loaded(host: Host, peer: net.Peer, format: str, bus: str, enough: Callable[[int], bool]) -> None:
    machine = Machine(host, debian_disk(), f",bus={bus},bootindex=0", format)
    args = [*machine.args, *DEVICES]
    guest = Guest(host, *args, direct=False)
    moves = 0
    try:
        log_in(guest)
        check_boot(guest, bus)
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
        end_load(host, peer, guest)
        guest.call("power-button")
        assert guest.wait(timeout=300) == 0
    finally:
        guest.__exit__()
    check_disk(host, machine.disk)
    for name in CHAIN:
        host.run([GLINT, "disk", "check", f"{FOLDER}/{name}"])
    host.run(["rm", machine.disk, STATE])


def test_loaded(host: Host, peer: net.Peer, folder: str) -> None:
    """A few moves, on a VHDX as an NVMe disk."""
    run_loaded(host, peer, "vhdx", "nvme", lambda moves: moves == MOVES)


@pytest.mark.soak
def test_moved_often(host: Host, peer: net.Peer, folder: str, soak_seconds: float) -> None:
    """Many, on a VHD as a virtio-blk disk."""
    end = time.monotonic() + soak_seconds
    run_loaded(host, peer, "vhd", "virtio", lambda moves: moves >= MANY_MOVES and time.monotonic() > end)


@pytest.mark.soak
@pytest.mark.parametrize("format, bus", [("vhd", "nvme"), ("vhdx", "virtio")])
def test_formats(host: Host, format: str, bus: str) -> None:
    """The combinations that are not above. What it wrote is there after a move and a reboot; the image is whole."""
    machine = Machine(host, debian_disk(), f",bus={bus}", format)
    args = [*machine.args, "--rng"]
    with Guest(host, *args, direct=False) as guest:
        log_in(guest)
        check_boot(guest, bus)
        guest.sh("cd /root; for i in $(seq 8); do dd if=/dev/urandom of=file$i bs=1M count=$i conv=fsync; done")
        guest.sh("sha256sum file* >sums; sync")
        guest.send("(while [ ! -e /tmp/stop ]; do cp file8 copy; sync; done; touch /tmp/stopped) &")
        guest.call("save", STATE)
        guest.call("quit")
        assert guest.wait() == 0
    with Guest(host, *args, restore=STATE) as guest:
        guest.sh("sleep 2; touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.2; done; cmp file8 copy", timeout=300)
        guest.send("reboot")
        log_in(guest)
        check_boot(guest, bus)
        guest.sh("cd /root; sha256sum --check --quiet sums && cmp file8 copy && rm file[1-4] && fstrim / || false")
        guest.call("power-button")
        assert guest.wait(timeout=300) == 0
    check_disk(host, machine.disk)
    host.run(["rm", machine.disk, STATE])
