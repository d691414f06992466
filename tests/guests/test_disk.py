"""What happens to a disk when something goes wrong around it: a killed monitor, a second owner, a full file system."""

import hashlib
import random

from host import Host
from vm import VMLINUZ, VMM, Guest

BLOCK = 65536
BLOCKS = 512


def block(number: int) -> bytes:
    """What the guest writes into a block: its number, over and over."""
    return f"{number:07d}\n".encode() * (BLOCK // 8)


WRITER = (
    "n=0; while :; do i=0; printf '%07d\\n' $n >/tmp/w; while [ $i -lt 13 ]; do cat /tmp/w /tmp/w >/tmp/x; mv /tmp/x /tmp/w; "
    "i=$((i + 1)); done; dd if=/tmp/w of=/dev/vda bs=64k seek=$n conv=notrunc,fsync 2>/dev/null && echo ACK $n; n=$((n + 1)); done"
)


def test_kill(host: Host, rng: random.Random) -> None:
    """What the guest was told is durable is in the file, whenever the monitor dies; the next machine gets the disk."""
    disk = "/tmp/kill.raw"
    host.run(["truncate", "-s", f"{BLOCK * BLOCKS}", disk])
    for _ in range(2):
        with Guest(host, "--cpus", "2", "--disk", disk) as guest:
            guest.ready()
            guest.send(WRITER)
            last = rng.randrange(3, 20)
            guest.process.read_until(rf"ACK {last}\r?\n", timeout=120)
            guest.process.kill()
            guest.process.wait()
            acknowledged = guest.process.stdout.count(b"ACK ")
        assert acknowledged > last
        sums = host.run(["sh", "-c", f"split -b {BLOCK} -a 4 -d {disk} /tmp/kill.part. && sha256sum /tmp/kill.part.*"])
        found = [line.split()[0] for line in sums.text.splitlines()]
        for number in range(acknowledged):
            assert found[number] == hashlib.sha256(block(number)).hexdigest(), f"block {number}"


def test_two_machines_on_one_disk(host: Host) -> None:
    disk = "/tmp/two.raw"
    host.run(["truncate", "-s", "1M", disk])
    first = host.spawn([VMM, "--kernel", VMLINUZ, "--paused", "--disk", disk, "--serial", "none"])
    try:
        for _ in range(100):
            second = host.run([VMM, "--kernel", VMLINUZ, "--paused", "--disk", disk, "--serial", "none"], check=False, timeout=5) if (
                "OFDLCK" in host.run(["cat", "/proc/locks"]).text
            ) else None
            if second:
                break
        assert second and second.rc == 1 and b"another" in second.stderr, second
        # Readers of one disk get along, but not with a writer.
        third = host.run([VMM, "--kernel", VMLINUZ, "--disk", f"{disk},readonly=on"], check=False, timeout=5)
        assert third.rc == 1 and b"another" in third.stderr
    finally:
        first.kill(15)
        assert first.wait() == 0


def full_disk(host: Host, name: str) -> str:
    host.run(["sh", "-c", f"mkdir -p /tmp/{name} && mount -t tmpfs -o size=2M tmpfs /tmp/{name}"])
    host.run(["truncate", "-s", "8M", f"/tmp/{name}/disk.raw"])
    return f"/tmp/{name}/disk.raw"


def test_full_reported(host: Host) -> None:
    disk = full_disk(host, "full-report")
    try:
        with Guest(host, "--disk", f"{disk},on-error=report") as guest:
            guest.ready()
            assert "error" in guest.sh("dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync || true").lower()
            assert guest.state() == "running"
            # What fits goes on working.
            guest.sh("dd if=/dev/urandom of=/dev/vda bs=4k count=4 conv=notrunc,fsync")
            guest.send("poweroff -f")
            assert guest.wait() == 0
    finally:
        host.run(["umount", "-l", "/tmp/full-report"])


def test_full_paused(host: Host) -> None:
    """The guest notices nothing but time: with room made and the machine resumed, every byte is there."""
    disk = full_disk(host, "full-pause")
    try:
        with Guest(host, "--disk", f"{disk},id=small") as guest:
            guest.ready()
            guest.sh("dd if=/dev/urandom of=/tmp/all bs=1M count=8")
            guest.send("dd if=/tmp/all of=/dev/vda bs=1M conv=fsync && echo WRITTEN; sha256sum /tmp/all")
            for _ in range(200):
                if guest.state() == "paused":
                    break
            status = guest.call("status")["result"]
            assert status["state"] == "paused" and "space" in status["why"], status
            # Without room it pauses again.
            guest.call("resume")
            for _ in range(200):
                if guest.state() == "paused":
                    break
            assert guest.state() == "paused"
            host.run(["mount", "-o", "remount,size=32M", "/tmp/full-pause"])
            guest.call("resume")
            text = guest.process.read_until(r"WRITTEN[\s\S]*?/tmp/all", timeout=120).decode()
            expected = text.split("WRITTEN")[1].split()[0]
            guest.send("poweroff -f")
            assert guest.wait() == 0
        assert host.run(["sha256sum", disk]).text.split()[0] == expected
    finally:
        host.run(["umount", "-l", "/tmp/full-pause"])
