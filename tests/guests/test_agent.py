"""Debian's qemu-guest-agent in a stock kernel, asked over the control socket: information, the clock, a file system that
is frozen, a move. Taken out of the full Debian (tests/guests/debian) with its libraries: a boot of that takes minutes.
"""

import subprocess
import time
from pathlib import Path

from host import CLONE, Host
from initrd import busybox_initrd
from vm import CMDLINE, INIT, MODULES, VMLINUZ, Guest

DISK = "/tmp/agent.raw"
PORT = "org.qemu.guest_agent.0"
LOADER = "ld-linux-x86-64.so.2"
# The agent wants hwclock where Debian has it. It is started again should it end.
START = f"""
mkdir -p /etc /sbin /run /mnt
cp /root/os-release /etc/
ln -s /bin/busybox /sbin/hwclock
ln -s /proc/self/mounts /etc/mtab
hostname guest
ip link set lo up
mke2fs -F /dev/vda >/dev/null
mount -t ext4 /dev/vda /mnt
port=$(grep -lx {PORT} /sys/class/virtio-ports/*/name | cut -d/ -f5)
(while :; do
    /root/{LOADER} --library-path /root /root/qemu-ga -m virtio-serial -p /dev/$port -t /run &
    echo $! >/run/qga.pid
    wait
    sleep 1
done) >/run/qga.log 2>&1 &
"""


def agent_files() -> dict[str, bytes]:
    """The agent and what it is linked with, by their places in the guest: all in /root."""
    root = Path(subprocess.check_output([CLONE / "tools/debroot", CLONE / "tests/guests/debian"], text=True).strip())
    linked = subprocess.check_output(["chroot", root, "ldd", "/usr/sbin/qemu-ga"], text=True)
    paths = [word for word in linked.split() if word.startswith("/")]
    files = {f"root/{Path(path).name}": (root / path.lstrip("/")).read_bytes() for path in paths}
    files["root/qemu-ga"] = (root / "usr/sbin/qemu-ga").read_bytes()
    files["root/os-release"] = (root / "usr/lib/os-release").read_bytes()
    return files


def wait_for_agent(guest: Guest) -> None:
    deadline = time.monotonic() + 120
    while not guest.call("status")["result"]["agent"]["open"]:
        assert time.monotonic() < deadline, guest.sh("cat /run/qga.log")
        time.sleep(1)
    assert guest.call("agent-ping")["result"] == {}


def check_info(guest: Guest) -> None:
    guest.sh("ip addr add 192.0.2.7/24 dev lo")
    info = guest.call("agent-info")["result"]
    assert info["host-name"] == "guest" and info["os"]["id"] == "debian" and info["os"]["version"] == "13"
    assert info["os"]["kernel"] == guest.sh("uname -r")
    (loopback,) = [interface for interface in info["interfaces"] if interface["name"] == "lo"]
    assert {"address": "192.0.2.7", "prefix": 24} in loopback["addresses"]


def late(host: Host, guest: Guest) -> int:
    """Seconds that the guest's clock is behind the host's."""
    before = int(host.run(["date", "+%s"]).text)
    return before - int(guest.sh("date +%s"))


def check_freeze(guest: Guest) -> None:
    """A frozen guest writes nothing, until it is thawed, or its time is over."""
    guest.send("(while [ ! -e /run/enough ]; do date >/mnt/now; echo >>/run/written; sleep 0.2; done) &")
    count = "wc -l </run/written"
    guest.sh("while [ ! -e /run/written ]; do sleep 0.2; done")
    for seconds, thaw in ((600, True), (12, False)):
        assert guest.call("agent-freeze", seconds=seconds)["result"] == {"file-systems": 1}
        written = guest.sh(f"sleep 1; {count}")
        assert guest.sh(f"sleep 3; {count}") == written
        assert guest.call("status")["result"]["agent"]["frozen"]
        if thaw:
            assert guest.call("agent-thaw")["result"] == {"file-systems": 1}
        guest.sh(f"while [ $({count}) = {written} ]; do sleep 0.2; done")
        assert not guest.call("status")["result"]["agent"]["frozen"]
    guest.sh("touch /run/enough")


def test_agent(host: Host) -> None:
    initrd = busybox_initrd(START + INIT, modules=[*MODULES, "virtio_console"], files=agent_files())
    args = ["--agent", "on", "--disk", f"path={DISK}"]
    host.run(["rm", "-f", DISK])
    host.run(["truncate", "-s", "64M", DISK])
    guest = Guest(host, "--kernel", VMLINUZ, "--initrd", initrd, "--cmdline", CMDLINE, *args, direct=False)
    try:
        guest.ready()
        wait_for_agent(guest)
        check_info(guest)
        check_freeze(guest)
        guest.sh("date -s @1000000000")
        assert late(host, guest) > 100_000_000
        guest.call("agent-set-time")
        assert abs(late(host, guest)) < 10
        # A guest that was saved while frozen is thawed when it runs again, and its clock, which stood still, is set.
        guest.call("agent-freeze", seconds=600)
        guest.call("save", "/tmp/agent.state")
        guest.call("quit")
        assert guest.wait() == 0
        host.run(["sleep", "12"])
        guest = Guest(host, *args, restore="/tmp/agent.state")
        guest.sh("echo on >/mnt/on; sync")
        deadline = time.monotonic() + 60
        while late(host, guest) > 10:
            assert time.monotonic() < deadline, "the restored guest's clock stays late"
        wait_for_agent(guest)
        # An agent that ends and comes back.
        guest.sh("kill $(cat /run/qga.pid)")
        deadline = time.monotonic() + 60
        while "result" not in guest.call("agent-ping", check=False):
            assert time.monotonic() < deadline, "the agent does not come back"
        guest.send("poweroff -f")
        assert guest.wait() == 0
    finally:
        guest.__exit__()
