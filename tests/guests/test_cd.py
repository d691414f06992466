"""CD drives under stock firmware and a stock kernel: OVMF boots from one by El Torito, Linux mounts it, media come and
go, a machine is moved amid reading. The same boot is for what the NVMe disks beside it are asked."""

import hashlib
import random
from pathlib import Path

import iso
import pytest
from host import CLONE, Host
from initrd import CLOUD_KERNEL, busybox_initrd, kernel_version
from uefi import CMDLINE, OVMF_CODE, OVMF_VARS, STUB, kept, run
from vm import INIT, VMLINUZ, Guest

GLINT = CLONE / "build/release/cli/glint"
LOADED = ["ahci", "sr_mod", "isofs", "nvme", "ext4"]
DATA_MIB = 3
READ = f"dd if=/dev/sr0 bs=64k count={DATA_MIB * 16} iflag=direct 2>/dev/null"
OTHER = b"another medium\n"


@pytest.fixture
def media(host: Host) -> tuple[str, str, bytes]:
    """One to boot from with DATA on it, and another; what DATA holds."""
    data = random.Random(1).randbytes(DATA_MIB << 20)
    initrd = busybox_initrd(INIT, modules=LOADED)
    with kept("cd", initrd, kernel_version(CLOUD_KERNEL), Path(iso.__file__).read_text(), DATA_MIB) as (first, new):
        if new:
            uki = new.with_suffix(".efi")
            run(
                *("ukify", "build", f"--linux={VMLINUZ}", f"--initrd={initrd}", f"--cmdline={CMDLINE}"),
                *(f"--stub={STUB}", f"--uname={kernel_version(CLOUD_KERNEL)}", f"--output={uki}"),
            )
            iso.make(new, {"DATA": data, "README.TXT": b"hello\n"}, boot=uki)
            uki.unlink()
    with kept("cd-other", Path(iso.__file__).read_text(), OTHER) as (other, new):
        if new:
            iso.make(new, {"OTHER.TXT": OTHER})
    host.run(["cp", OVMF_VARS, "/tmp/cd.vars"])
    host.run(["cp", first, "/tmp/first.iso"], timeout=120)
    host.run(["cp", other, "/tmp/other.iso"])
    return "/tmp/first.iso", "/tmp/other.iso", data


def tray(guest: Guest, cd: str) -> dict:
    (found,) = [t for t in guest.call("status")["result"]["cds"] if t["cd"] == cd]
    return found


def wait_in(guest: Guest, condition: str) -> None:
    guest.sh(f"n=0; until {condition}; do sleep 0.2; n=$((n + 1)); [ $n -lt 300 ] || exit 1; done")


def test_cd(host: Host, media: tuple[str, str, bytes]) -> None:
    first, other, data = media
    big, plug = "/tmp/big.vhdx", "/tmp/plug.vhdx"
    for path, words in ((big, ["--sector", "4096"]), (plug, [])):
        host.run([GLINT, "disk", "create", path, "--size", "64M", "--block", "1M", *words])
    machine: list[str | Path] = ["--firmware", OVMF_CODE, "--vars", "/tmp/cd.vars", "--memory", "512M", "--cpus", "2"]
    machine += ["--disk", f"path={big},format=vhdx,bus=nvme,id=big"]
    drives = ["--cdrom", f"{first},id=one,bootindex=0", "--cdrom", "id=two"]
    with Guest(host, *machine, *drives, direct=False) as guest:
        guest.ready()
        mount_and_read(guest, data)
        empty_drive(guest, first, other, data)
        nvme(guest, plug)
        # Moved amid reading.
        guest.sh(f"while true; do {READ} | sha256sum; done >/tmp/sums & sleep 1")
        guest.call("save", "/tmp/cd.state")
        guest.call("quit")
        assert guest.wait() == 0
    refused = Guest(host, *machine, *drives, restore="/tmp/cd.state")
    assert refused.wait() == 1
    drives = ["--cdrom", f"{first},id=one,bootindex=0", "--cdrom", f"{other},id=two"]
    drives += ["--disk", f"path={plug},format=vhdx,bus=nvme,id=plug,port=1"]
    with Guest(host, *machine, *drives, restore="/tmp/cd.state") as guest:
        wait_in(guest, "[ $(wc -l </tmp/sums) -gt 3 ]")
        expected = host.run(["sh", "-c", f"head -c {DATA_MIB << 20} {first} | sha256sum"]).text.split()[0]
        assert set(guest.sh("cut -d' ' -f1 /tmp/sums").split()) == {expected}
        assert guest.sh("dmesg | grep -iE 'ata[0-9].*(timeout|failed|frozen)|nvme.*(timeout|abort)' || true") == ""
        guest.send("poweroff -f")
        assert guest.wait() == 0


def mount_and_read(guest: Guest, data: bytes) -> None:
    assert b"DVD-ROM" in guest.process.stdout  # what firmware calls it
    assert guest.sh("cat /sys/block/sr0/device/vendor").strip() == "Glint"
    guest.sh("mkdir -p /mnt; mount -t iso9660 /dev/sr0 /mnt")
    assert hashlib.sha256(data).hexdigest() in guest.sh("sha256sum /mnt/data")
    assert guest.sh("cat /mnt/readme.txt") == "hello"
    assert int(guest.sh("grep -c ahci /proc/interrupts")) >= 1
    guest.sh("! dd if=/dev/zero of=/dev/sr0 bs=2048 count=1")
    guest.sh("umount /mnt")


def empty_drive(guest: Guest, first: str, other: str, data: bytes) -> None:
    """A medium comes into the empty drive, goes, another comes."""
    guest.sh("! mount -t iso9660 /dev/sr1 /mnt")
    guest.call("cd-change", f"+{first}", cd="two")
    guest.sh("mount -t iso9660 /dev/sr1 /mnt")
    assert hashlib.sha256(data).hexdigest() in guest.sh("sha256sum /mnt/data")
    guest.sh("umount /mnt")
    guest.call("cd-change", cd="two")
    assert tray(guest, "two")["medium"] is False
    guest.sh("! mount -t iso9660 /dev/sr1 /mnt")
    guest.call("cd-change", f"+{other}", cd="two")
    guest.sh("mount -t iso9660 /dev/sr1 /mnt")
    assert guest.sh("cat /mnt/other.txt") == OTHER.decode().strip()
    guest.sh("umount /mnt")


def nvme(guest: Guest, plug: str) -> None:
    """Sectors of 4096 bytes and VHDX under NVMe; a controller that is plugged in; a file system's trim reaches the
    image."""
    assert guest.sh("cat /sys/block/nvme0n1/queue/logical_block_size") == "4096"
    guest.sh("mke2fs -b 4096 /dev/nvme0n1 >/dev/null 2>&1; mount -t ext4 /dev/nvme0n1 /mnt")
    guest.sh("dd if=/dev/urandom of=/mnt/f bs=1M count=16; sync; sha256sum /mnt/f >/tmp/f.sum")
    guest.sh("echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /tmp/f.sum")
    full = discards(guest, "big")
    guest.sh("rm /mnt/f; sync; fstrim /mnt")
    assert discards(guest, "big") > full
    guest.sh("umount /mnt")
    guest.call("device-add", f"+{plug}", kind="disk", id="plug", bus="nvme", format="vhdx", port=1)
    wait_in(guest, "[ -b /dev/nvme1n1 ]")
    guest.sh("dd if=/dev/urandom of=/tmp/p bs=64k count=1; dd if=/tmp/p of=/dev/nvme1n1 bs=64k conv=fsync")
    guest.sh("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/nvme1n1 bs=64k count=1 | cmp - /tmp/p")


def discards(guest: Guest, disk: str) -> int:
    (stats,) = [d for d in guest.call("stats")["result"]["disks"] if d["disk"] == disk]
    assert stats["errors"] == 0
    return stats["discards"]
