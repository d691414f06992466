"""A stock Debian kernel by direct boot: both protocols, several vCPUs, a disk over all its queues, reset, power."""

import hashlib

import pytest

from host import Host
from vm import VMLINUZ, Guest, vmlinux

DISK_MIB = 32
PIECE_MIB = 2


def sha256_of_piece(host: Host, disk: str, piece: int) -> str:
    skip = f"skip={piece * PIECE_MIB}"
    words = host.run(["dd", f"if={disk}", "bs=1M", skip, f"count={PIECE_MIB}", "status=none"]).stdout
    return hashlib.sha256(words).hexdigest()


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("protocol", ["bzImage", "PVH"])
def test_stock_kernel(host: Host, protocol: str, cpus: int) -> None:
    """Each vCPU writes random data through its own queue; the guest reads it back, and so does the host."""
    disk = f"/tmp/boot-{protocol}-{cpus}.raw"
    host.run(["truncate", "-s", f"{DISK_MIB}M", disk])
    kernel = VMLINUZ if protocol == "bzImage" else vmlinux()
    args = ["--cpus", str(cpus), "--disk", f"path={disk},queues={cpus},id=d0", "--rng"]
    with Guest(host, *args, kernel=kernel) as guest:
        guest.ready()
        assert guest.sh("nproc") == str(cpus)
        assert guest.sh("ls /sys/block/vda/mq").split() == [str(n) for n in range(cpus)]
        assert guest.sh("cat /sys/block/vda/serial") == "d0"
        sums = {}
        for cpu in range(cpus):
            place = f"seek={cpu * PIECE_MIB}"
            guest.sh(f"dd if=/dev/urandom of=/tmp/piece bs=1M count={PIECE_MIB}")
            guest.sh(f"taskset -c {cpu} dd if=/tmp/piece of=/dev/vda bs=1M {place} conv=notrunc,fsync")
            sums[cpu] = guest.sh("sha256sum /tmp/piece").split()[0]
        guest.sh("sync; echo 3 >/proc/sys/vm/drop_caches")
        for cpu, expected in sums.items():
            skip = f"skip={cpu * PIECE_MIB}"
            command = f"taskset -c {cpu} dd if=/dev/vda bs=1M {skip} count={PIECE_MIB} | sha256sum"
            assert expected in guest.sh(command)
            assert sha256_of_piece(host, disk, cpu) == expected
        assert len(guest.sh("dd if=/dev/hwrng bs=64 count=1 | hexdump -v").splitlines()) > 4
        exits = guest.call("stats")["result"]["vcpus"]
        assert len(exits) == cpus and all(vcpu["exits"] for vcpu in exits)
        guest.send("poweroff -f")
        assert guest.wait() == 0


def test_reboot_and_power_button(host: Host) -> None:
    with Guest(host, "--cpus", "2") as guest:
        guest.ready()
        boot_id = guest.sh("cat /proc/sys/kernel/random/boot_id")
        guest.send("reboot -f")
        guest.ready()
        assert guest.sh("cat /proc/sys/kernel/random/boot_id") != boot_id
        assert guest.sh("nproc") == "2"
        # The button is an input device; KEY_POWER is 116 (0x74) of type EV_KEY (1), pressed (1).
        guest.sh("(dd if=/dev/input/event0 bs=24 count=1 >/tmp/key 2>/dev/null; touch /tmp/pressed) & sleep 1")
        guest.call("power-button")
        guest.sh("while [ ! -e /tmp/pressed ]; do sleep 0.1; done")
        assert "01 00 74 00 01 00 00 00" in guest.sh("hexdump -v -e '24/1 \"%02x \"' /tmp/key")
        guest.send("poweroff -f")
        assert guest.wait() == 0
