"""Guests that a stick carries: the host starts them; what one writes is gone after a restart, and what another does is not.

The guest's disk is made by `glint image create`, too: a disk with systemd-boot and a UKI, of Debian's cloud kernel and
busybox, boots on any machine with UEFI. So is the stick, as a VHDX image that QEMU attaches as a SATA disk: a host that boots from
a disk. Emulated, a guest takes a minute to its own init.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "image"))

from boot import StickMachine  # noqa: E402

GLINT = CLONE / "build/release/cli/glint"
KERNEL = Path("/opt/kernel-cloud-amd64")
MARK = 100 << 20  # where on its disk the guest looks and writes: in STATE, which nothing reads
GUEST_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in /modules/*; do insmod $module; done
found=$(dd if=/dev/vda bs=512 skip=@MARK@ count=1 2>/dev/null | tr -d '\\0')
echo "carried: found '$found', $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB, $(nproc) CPUs"
echo "mark" | dd of=/dev/vda bs=512 seek=@MARK@ count=1 conv=sync,fsync 2>/dev/null
echo "carried: wrote"
while :; do sleep 1000; done
"""


def run(*command: object, **options) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture(scope="module")
def guest_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guest")
    tree = folder / "tree"
    for directory in ("bin", "dev", "proc", "modules"):
        (tree / directory).mkdir(parents=True)
    run("cp", "/usr/bin/busybox", tree / "bin/busybox")
    (tree / "init").write_text(GUEST_INIT.replace("@MARK@", str(MARK // 512)))
    (tree / "init").chmod(0o755)
    version = (KERNEL / "version").read_text().strip()
    needed = run("modprobe", "-d", KERNEL, "-S", version, "--show-depends", "virtio_blk")
    for number, path in enumerate(dict.fromkeys(re.findall(r"insmod (\S+)", needed))):
        run("cp", path, tree / f"modules/{number}.ko.xz")
        run("unxz", tree / f"modules/{number}.ko.xz")
    run("sh", "-c", f"cd {tree} && find . | cpio --quiet -o -H newc >{folder}/initrd")
    (folder / "os-release").write_text("ID=guest\nVERSION_ID=1\n")
    run("ukify", "build", f"--linux={KERNEL}/vmlinuz", f"--initrd={folder}/initrd", "--cmdline=console=ttyS0 loglevel=4",
        f"--os-release=@{folder}/os-release", "--stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub", f"--output={folder}/guest.efi")
    run(GLINT, "image", "create", "-o", folder / "guest.vhdx", "--uki", folder / "guest.efi", "--esp", "64M")
    return folder / "guest.vhdx"


@pytest.fixture(scope="module")
def stick(guest_disk: Path) -> Path:
    run(CLONE / "image/build", "-o", CLONE / "build/stick.img")
    path = guest_disk.parent / "host.vhdx"
    run(GLINT, "image", "create", "-o", path, "--uki", CLONE / "build/stick.img.efi",
        "--guest", f"web={guest_disk},memory=256M,cpus=1,autostart",
        "--guest", f"db={guest_disk},memory=320M,autostart,persist=stick", "--guest", f"idle={guest_disk}")
    assert json.loads(run(GLINT, "image", "inspect", "--check", "--json", path))["problems"] == []
    return path


def boot(stick: Path, folder: Path) -> dict[str, str]:
    """What each guest found, by its memory, once it has written."""
    found: dict[str, str] = {}
    with StickMachine(stick, memory_mib=3072, folder=folder, form="vhdx") as machine:
        machine.wait_for(rb"guest web starts: 256 MiB, 1 CPUs, writes to memory|guest db starts: 320 MiB", 300)
        while len(found) < 2:
            words = machine.wait_for(rb"carried: found '([a-z]*)', (\d+) MiB, 1 CPUs", 400)
            found["web" if int(words[2]) < 256 else "db"] = words[1].decode()
        machine.position = 0
        for _ in range(2):
            machine.wait_for(rb"carried: wrote", 120)
        text = bytes(machine.output)
        assert b"guest db starts: 320 MiB, 1 CPUs, writes to the stick" in text
        assert b"guest idle starts" not in text
    return found


def test_guests_of_the_stick(stick: Path, tmp_path: Path) -> None:
    assert boot(stick, tmp_path) == {"web": "", "db": ""}
    assert boot(stick, tmp_path) == {"web": "", "db": "mark"}
