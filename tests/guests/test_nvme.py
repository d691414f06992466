"""A stock kernel's own NVMe driver: every queue, flushes, discards, a disk that grows, and moves in mid-load."""

import hashlib

from host import Host
from test_boot import PIECE_MIB, sha256_of_piece
from test_save import CPUS, LOAD, counts
from vm import Guest

DISK = "/tmp/nvme.raw"
MIB = 32


def test_nvme(host: Host) -> None:
    host.run(["truncate", "-s", f"{MIB}M", DISK])
    args = ["--cpus", str(CPUS), "--disk", f"path={DISK},bus=nvme,queues={CPUS},id=fast", "--io-threads", "2"]
    guest = Guest(host, *args)
    try:
        guest.ready()
        look_around(guest)
        data_and_discards(host, guest)
        # The driver is told that the disk grew, by an event that it asked for.
        guest.call("disk-resize", disk="fast", size=(MIB + 16) << 20)
        guest.sh(f"while [ $(cat /sys/block/nvme0n1/size) != {(MIB + 16) * 2048} ]; do sleep 0.2; done")
        guest.sh(LOAD.replace("/dev/vda", "/dev/nvme0n1"))
        for cpu in range(CPUS):
            guest.sh(f"(load {cpu}) & sleep 1")
        for round_ in range(2):
            before = counts(guest)
            state = f"/tmp/nvme-{round_}.state"
            guest.call("save", state)
            guest.call("quit")
            assert guest.wait() == 0
            assert b"BAD" not in guest.process.stdout
            guest = Guest(host, *args, restore=state)
            guest.sh("sleep 2")
            assert all(new > old for new, old in zip(counts(guest), before))
        guest.sh("touch /tmp/stop; while [ ! -e /tmp/done0 ] || [ ! -e /tmp/done1 ]; do sleep 0.2; done")
        assert b"BAD" not in guest.process.stdout
        assert guest.sh("dmesg | grep -iE 'nvme.*(timeout|abort|reset|error|fail)' || true") == ""
        (stats,) = guest.call("stats")["result"]["disks"]
        assert stats["errors"] == 0 and stats["writes"] > 0
        guest.send("poweroff -f")
        assert guest.wait() == 0
    finally:
        guest.__exit__()


def look_around(guest: Guest) -> None:
    """What the driver made of what the controller says of itself."""
    assert guest.sh("ls /sys/block/nvme0n1/mq").split() == [str(n) for n in range(CPUS)]
    assert guest.sh("cat /sys/block/nvme0n1/device/serial").strip() == "fast"
    assert guest.sh("cat /sys/block/nvme0n1/device/model").strip() == "Glint NVMe disk"
    assert guest.sh("cat /sys/block/nvme0n1/uuid").count("-") == 4
    queue = "/sys/block/nvme0n1/queue"
    assert guest.sh(f"cd {queue}; cat logical_block_size minimum_io_size write_cache fua").split("\n") == [
        "512", "4096", "write back", "1",
    ]  # fmt: skip
    assert int(guest.sh(f"cat {queue}/discard_max_bytes")) > 0
    assert int(guest.sh(f"cat {queue}/write_zeroes_max_bytes")) > 0
    # An interrupt for each queue, and one for the controller.
    assert len(guest.sh("grep nvme0q /proc/interrupts").splitlines()) == CPUS + 1


def data_and_discards(host: Host, guest: Guest) -> None:
    sums = {}
    for cpu in range(CPUS):
        guest.sh(f"dd if=/dev/urandom of=/tmp/piece bs=1M count={PIECE_MIB}")
        place = f"seek={cpu * PIECE_MIB} conv=notrunc,fsync"
        guest.sh(f"taskset -c {cpu} dd if=/tmp/piece of=/dev/nvme0n1 bs=1M {place}")
        sums[cpu] = guest.sh("sha256sum /tmp/piece").split()[0]
    guest.sh("sync; echo 3 >/proc/sys/vm/drop_caches")
    for cpu, expected in sums.items():
        read = f"taskset -c {cpu} dd if=/dev/nvme0n1 bs=1M skip={cpu * PIECE_MIB} count={PIECE_MIB} | sha256sum"
        assert expected in guest.sh(read)
        assert sha256_of_piece(host, DISK, cpu) == expected
    guest.sh(f"blkdiscard -o 0 -l {PIECE_MIB << 20} /dev/nvme0n1")
    assert sha256_of_piece(host, DISK, 0) == hashlib.sha256(bytes(PIECE_MIB << 20)).hexdigest()
    assert sha256_of_piece(host, DISK, 1) == sums[1]
    assert int(host.run(["stat", "-c", "%b", DISK]).text) * 512 < (PIECE_MIB + 1) << 20
    (stats,) = guest.call("stats")["result"]["disks"]
    assert stats["errors"] == 0 and stats["flushes"] >= CPUS and stats["discards"] > 0
