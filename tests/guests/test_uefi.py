"""Stock UEFI firmware, Debian's OVMF unmodified: it boots from a disk and by fw_cfg, its variables last, it comes back
after reset, and a machine is saved and restored under it."""

import random
import re
import time

import test_hotplug as hot
from host import Host
from uefi import OVMF_CODE, OVMF_VARS, Machine, boot_disk
from vm import CMDLINE, VMLINUZ, VMM, Guest, initrd

GUID = "5f6d2a61-7f4c-4c52-9a60-6c1f0e8f2b11"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def path_of(name: str) -> str:
    return f"/sys/firmware/efi/efivars/{name}-{GUID}"


def set_variable(guest: Guest, name: str) -> None:
    """The value is the name."""
    # Four bytes of attributes: non-volatile, for boot services and at run time. One write() is one SetVariable().
    guest.sh(f"printf '\\007\\000\\000\\000{name}' >/tmp/variable; dd if=/tmp/variable of={path_of(name)} bs=4096")


def has_variable(guest: Guest, name: str) -> bool:
    return guest.sh(f"dd if={path_of(name)} bs=1 skip=4 2>/dev/null || true") == name


def test_disk_variables_move_power(host: Host) -> None:
    """From the first boot to the power button, by way of a reboot, another process, and a reset there. The restored
    machine goes on with its own firmware, whatever image of that size it is given."""
    machine = Machine(host, boot_disk())
    other, state = "/tmp/uefi-other.fd", "/tmp/uefi.state"
    host.run(["sh", "-c", f"head -c $(stat -c %s {OVMF_CODE}) /dev/zero >{other}"])
    with Guest(host, *machine.args, "--uuid", UUID, "--name", "uefi-one", direct=False) as guest:
        guest.ready()
        assert b"BdsDxe: starting" in guest.process.stdout
        assert guest.sh("nproc") == "2"
        assert guest.sh("cat /sys/class/dmi/id/product_name") == "glint-q35-1"
        assert guest.sh("cat /sys/class/dmi/id/product_serial") == "uefi-one"
        assert guest.sh("cat /sys/class/dmi/id/product_uuid") == UUID
        check_resources(guest)
        set_variable(guest, "First")
        boot_id = guest.sh("cat /proc/sys/kernel/random/boot_id")

        guest.send("reboot -f")
        guest.process.read_until("BdsDxe: starting", timeout=240)
        guest.ready()
        assert guest.sh("cat /proc/sys/kernel/random/boot_id") != boot_id
        assert has_variable(guest, "First")
        set_variable(guest, "Second")
        guest.sh("echo kept >/tmp/file")
        guest.call("save", state)
        assert guest.state() == "saved"
        args = [other if arg == OVMF_CODE else arg for arg in machine.args]
        with Guest(host, *args, restore=state) as restored:
            assert restored.sh("cat /tmp/file") == "kept"
            assert has_variable(restored, "Second")
            set_variable(restored, "Third")
            restored.call("reset")
            restored.process.read_until("BdsDxe: starting", timeout=240)
            restored.ready()
            assert has_variable(restored, "Third")
            restored.sh("(dd if=/dev/input/event0 bs=24 count=1 >/dev/null 2>&1; poweroff -f) & sleep 1")
            restored.call("power-button")
            assert restored.wait() == 0


def check_resources(guest: Guest) -> None:
    """ACPI says what firmware did: no BAR had to move, and ECAM is where MCFG says."""
    iomem = guest.sh("grep -e 'PCI ECAM' -e 0000:00:0e.0 /proc/iomem")
    assert re.search(r"^ *e0000000-e0ffffff : PCI ECAM", iomem, re.M), iomem
    assert re.search(r"^ *([0-9a-f]+)-[0-9a-f]+ : 0000:00:0e\.0", iomem, re.M), iomem
    complaints = "no compatible bridge window|can't claim|not reserved|bogus|ACPI.*Error"
    assert guest.sh(f'dmesg | grep -E "{complaints}" || true') == ""


def test_kernel_by_fw_cfg(host: Host) -> None:
    """--kernel beside --firmware: the firmware starts it, as it does on QEMU. And what firmware set up has room behind
    the ports: disks come and go, also one that is mounted."""
    machine = Machine(host)
    kernel = ["--kernel", VMLINUZ, "--initrd", initrd(("ext4",)), "--cmdline", CMDLINE]
    with Guest(host, *machine.args, *kernel, direct=False) as guest:
        guest.ready()
        assert guest.sh("cat /proc/cmdline").startswith(CMDLINE)  # the firmware adds initrd=
        assert guest.sh("ls /sys/firmware/efi/systab") == "/sys/firmware/efi/systab"
        host.run(["truncate", "-s", "16M", "/tmp/hot.raw"])
        for port in (1, 4):
            hot.add(guest, "/tmp/hot.raw", port=port)
            guest.sh(f"[ {port} != 1 ] || busybox mke2fs /dev/vda; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt")
            guest.sh(f"[ {port} = 1 ] || grep 'by port 1' /mnt/file; echo by port {port} >/mnt/file; sync")
            hot.remove(guest)
            guest.sh("umount /mnt")
        guest.send("poweroff -f")
        assert guest.wait() == 0


def test_killed_while_it_writes(host: Host, rng: random.Random) -> None:
    """kill -9 at any moment of a first boot: firmware finds a variable store it can go on with. It boots from a VHD
    on NVMe, which it tries before a disk in a slot below."""
    machine = Machine(host, boot_disk(), ",bus=nvme,bootindex=3", "vhd")
    host.run(["truncate", "-s", "1M", "/tmp/below.raw"])
    machine.args[-2:-2] = ["--disk", "path=/tmp/below.raw,id=below"]
    for _ in range(3):
        with Guest(host, *machine.args, direct=False) as guest:
            time.sleep(rng.uniform(2, 14))
            guest.process.kill()
            assert guest.wait() == -9
    with Guest(host, *machine.args, direct=False) as guest:
        guest.ready()
        assert "/NVMe(0x1," in guest.process.stdout.decode(errors="replace").split("BdsDxe: loading", 1)[1].split("\n")[0]
        set_variable(guest, "Alive")
        assert has_variable(guest, "Alive")


def test_what_is_refused(native: Host, tmp_path) -> None:
    """Wrong files, by name; and two machines on one variable store."""
    short, odd = tmp_path / "short.fd", tmp_path / "odd.fd"
    short.write_bytes(b"")
    odd.write_bytes(bytes(5000))
    store = tmp_path / "vars.fd"
    store.write_bytes(OVMF_VARS.read_bytes())

    def refusal(*args: object) -> str:
        result = native.run([VMM, "--paused", "--serial", "none", *map(str, args)], check=False)
        assert result.rc == 1
        return result.stderr.decode()

    assert "are no flash image" in refusal("--firmware", short)
    assert "are no flash image" in refusal("--firmware", OVMF_CODE, "--vars", odd)
    assert "No such file" in refusal("--firmware", "/no/such.fd")
    assert "--vars without --firmware" in refusal("--kernel", VMLINUZ, "--vars", store)
    assert "is no bzImage" in refusal("--firmware", OVMF_CODE, "--kernel", OVMF_CODE)
    assert "is not a UUID" in refusal("--firmware", OVMF_CODE, "--uuid", "0123")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    twice = [f"path={disk},id={name},bootindex=1" for name in "ab"]
    assert "two disks have the bootindex 1" in refusal("--firmware", OVMF_CODE, "--disk", twice[0], "--disk", twice[1])
    machine = ["--firmware", OVMF_CODE, "--vars", store]
    with Guest(native, *machine, "--paused", "--serial", "none", direct=False) as first:
        while not native.run(["test", "-e", first.socket], check=False).rc == 0:
            time.sleep(0.05)
        assert first.state() == "created"
        assert "another process uses it" in refusal(*machine)
    assert store.read_bytes() == OVMF_VARS.read_bytes()
