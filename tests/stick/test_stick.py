"""The stick: its layout, and one boot of it that goes all the way to the shell of a guest that it carries.

The boot is the real one: stock OVMF, the stick on an emulated USB port, systemd-boot, the UKI, systemd in memory,
glint-vmm on the host's /dev/kvm. The tests of the booted stick run in the order they stand here: the last ones pull
the stick and restart the host.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "image"))

from boot import StickMachine  # noqa: E402

MIB = 1 << 20
UKI_MAX_MIB = 64  # F13
QUIET_SECONDS = 30
LONG_QUIET_SECONDS = 600


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def stick() -> Path:
    path = CLONE / "build/stick.img"
    subprocess.run([CLONE / "image/build", "-o", path], check=True)
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def host_root(stick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's root, unpacked from the UKI."""
    folder = tmp_path_factory.mktemp("root")
    subprocess.run(["objcopy", "-O", "binary", "-j", ".initrd", f"{stick}.efi", folder / "initrd"], check=True)
    with (folder / "initrd").open("rb") as initrd:
        subprocess.run(["cpio", "--quiet", "-i", "root.img"], stdin=initrd, cwd=folder, check=True)
    subprocess.run(["fsck.erofs", f"--extract={folder / 'root'}", folder / "root.img"], check=True, stdout=subprocess.DEVNULL)
    return folder / "root"


@pytest.fixture(scope="module")
def machine() -> Iterator[StickMachine]:
    stick = CLONE / "build/guest.img"
    subprocess.run([CLONE / "image/guest/build", "-o", stick], check=True)
    with StickMachine(stick) as booting:
        booting.boot(300, lambda seconds, what, line: print(f"[{seconds:6.2f} s] {what}: {line}"))
        # The keeper speaks while the guest starts, it has no network card, and it is healthy, which is said too: in whatever order.
        booting.position = 0
        booting.wait_for_all([rb"glint: the host's state is kept on its stick", rb"the network is not as it should be: no device has a carrier",
                              rb"healthy after [^\r\n]* is good now", rb"glint: it is healthy"], 120)
        yield booting


@pytest.fixture(scope="module")
def partitions(stick: Path) -> dict[str, dict]:
    table = json.loads(output_of("sfdisk", "--json", stick))["partitiontable"]
    assert table["label"] == "gpt"
    return {partition["name"]: partition for partition in table["partitions"]}


@pytest.fixture(scope="module")
def esp(stick: Path, partitions: dict[str, dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ESP's FAT as a file of its own."""
    path = tmp_path_factory.mktemp("esp") / "esp.img"
    start = partitions["ESP"]["start"] * 512 // MIB
    size = partitions["ESP"]["size"] * 512 // MIB
    subprocess.run(["dd", f"if={stick}", f"of={path}", "bs=1M", f"skip={start}", f"count={size}", "conv=sparse", "status=none"], check=True)
    return path


def test_partition_table(stick: Path, partitions: dict[str, dict]) -> None:
    assert "No errors detected" in output_of("sfdisk", "--verify", stick)
    assert list(partitions) == ["ESP", "STATE"]
    assert partitions["ESP"]["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert partitions["ESP"]["size"] * 512 == 512 * MIB
    assert partitions["STATE"]["size"] * 512 == 64 * MIB


def test_esp_is_sound(esp: Path) -> None:
    subprocess.run(["fsck.vfat", "-n", esp], check=True)
    listed = output_of("mdir", "-/", "-b", "-i", esp, "::").split()
    files = {name.removeprefix("::/") for name in listed if not name.endswith("/")}
    slots = [name for name in files if name.startswith("EFI/Linux/")]
    kit = {f"loader/keys/glint/{name}.auth" for name in ("PK", "KEK", "db")} | {"glint/maker.cer"}
    assert files - set(slots) == {"EFI/BOOT/BOOTX64.EFI", "loader/loader.conf", "glint/host.toml"} | kit
    assert len(slots) == 1 and re.fullmatch(r"EFI/Linux/glint_[0-9.]+\+3-0\.efi", slots[0])


def test_signed_by_the_maker(stick: Path, esp: Path, host_root: Path, tmp_path: Path) -> None:
    """UKI and boot loader are, by the certificate that the host has; a flipped bit, or another's certificate, is seen."""
    certificate = host_root / "usr/lib/glint/maker.crt"
    slot = output_of("mdir", "-b", "-i", esp, "::EFI/Linux").strip()
    for name in (slot, "::EFI/BOOT/BOOTX64.EFI"):
        program = tmp_path / "program.efi"
        subprocess.run(["mcopy", "-n", "-o", "-i", esp, name, program], check=True)
        assert "Signature verification OK" in output_of("sbverify", "--cert", certificate, program)
    other = tmp_path / "other.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=other", "-keyout", tmp_path / "other.key",
                    "-out", other], check=True, capture_output=True)
    assert subprocess.run(["sbverify", "--cert", other, program], capture_output=True).returncode == 1
    bytes_ = bytearray(program.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    program.write_bytes(bytes_)
    assert subprocess.run(["sbverify", "--cert", certificate, program], capture_output=True).returncode == 1


def test_uki_is_small(stick: Path) -> None:
    """F13 is without firmware and microcode: what an image has of them lies in its UKI as it is, compressed before."""
    manifest = json.loads(Path(f"{stick}.manifest.json").read_text())
    extra = sum(row["bytes"] for row in manifest["files"] + manifest["microcode"] if re.match("usr/lib/firmware/|kernel/x86/microcode/", row["path"])) / MIB
    size = Path(f"{stick}.efi").stat().st_size / MIB - extra
    what = f"and {extra:.1f} MiB of firmware and CPU microcode" if manifest["firmware"] else "no firmware, no CPU microcode in it"
    print(f"UKI {size:.1f} MiB of {UKI_MAX_MIB} ({what})")
    assert size <= UKI_MAX_MIB


def test_same_inputs_give_the_same_stick(stick: Path, tmp_path: Path) -> None:
    """Nothing kept is used but the programs, which the compiler makes."""
    again = tmp_path / "again.img"
    subprocess.run([CLONE / "image/build", "-o", again, "--fresh"], check=True)
    for suffix in ("", ".efi", ".manifest.json"):
        assert sha256(Path(f"{stick}{suffix}")) == sha256(Path(f"{again}{suffix}")), suffix


def test_manifest(stick: Path, host_root: Path) -> None:
    """Every file in the image is in its manifest with its hash and whose it is, and no other; so says the host too."""
    manifest = json.loads(Path(f"{stick}.manifest.json").read_text())
    rows = {row["path"]: row for row in manifest["files"]}
    inside = json.loads((host_root / "usr/lib/glint/manifest.json").read_text())
    assert inside == {key: value for key, value in manifest.items() if key != "files"}
    found = {str(p.relative_to(host_root)): p for p in host_root.rglob("*") if p.is_file() and not p.is_symlink()}
    assert set(found) - set(rows) == {"usr/lib/glint/manifest.json"} and set(rows) <= set(found)
    assert all(row["sha256"] == sha256(found[path]) and row["bytes"] == found[path].stat().st_size for path, row in rows.items())
    # What is ours does not know where it was built.
    ours = [found[path] for path, row in rows.items() if row["package"] == "glint" and found[path].read_bytes()[:4] == b"\x7fELF"]
    assert len(ours) >= 4 and all(str(CLONE).encode() not in program.read_bytes() for program in ours)
    assert not any("Build ID" in output_of("readelf", "-n", program) for program in ours)
    # The shell is for recovery alone: nothing but root runs it, and no program finds one by the usual name.
    assert found["usr/bin/busybox"].stat().st_mode & 0o777 == 0o700 and not {"usr/bin/sh", "usr/bin/bash", "usr/bin/dash"} & set(found)
    packages = {row["name"]: row for key in ("packages", "linked", "parts") for row in manifest[key]}
    assert {row["package"] for row in rows.values()} <= set(packages) | {"glint"}
    assert all(row["version"] and row["source"] and row["source-version"] for row in packages.values())
    assert rows["usr/sbin/ovsdb-server"]["package"] == "openvswitch-common"
    assert "Apache-2.0" in packages["openvswitch-common"]["licences"] and "Expat" in packages["libjansson-dev"]["licences"]
    # By the version that the kernel tells of itself.
    kernel = next(row for row in manifest["packages"] if row["source"].startswith("linux"))
    assert kernel["version"] in output_of("strings", "-n", "20", f"{stick}.efi") and kernel["version"].startswith("6.12.")


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for arguments in (["--esp-mib", "64"], ["--esp-mib", "many"], ["--what"]):
        done = subprocess.run([CLONE / "image/build", "-o", tmp_path / "no.img", *arguments], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("glint: ")
    assert not list(tmp_path.iterdir())


def test_guest_answers(machine: StickMachine) -> None:
    assert machine.shell("echo $((6 * 7))") == "42"
    assert "cloud-amd64" in machine.shell("uname -r")


def test_guest_has_its_disk_and_entropy(machine: StickMachine) -> None:
    assert machine.shell("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    machine.shell("head -c 1048576 /dev/urandom >/tmp/written; dd if=/tmp/written of=/dev/vda bs=1M seek=100 conv=fsync 2>/dev/null")
    machine.shell("echo 3 >/proc/sys/vm/drop_caches")
    assert machine.shell("dd if=/dev/vda bs=1M skip=100 count=1 2>/dev/null | cmp - /tmp/written && echo same") == "same"


def test_every_unit_started(machine: StickMachine) -> None:
    """systemd shows nothing but failures (systemd.show_status=error)."""
    text = machine.output.decode(errors="replace")
    assert not re.search(r"FAILED|DEPEND|TIME|Failed to|emergency", re.sub(r"\x1b\[[0-9;]*m", "", text)), machine.tail()


def test_memory_in_use(machine: StickMachine) -> None:
    used, total = map(int, re.search(rb"memory in use (\d+) of (\d+) MiB", machine.output).groups())
    print(f"host memory in use before the guest: {used} MiB of {total}")
    assert 0 < used < total


def test_screen_and_keyboard(machine: StickMachine, tmp_path: Path) -> None:
    """What a person types at the host's keyboard reaches the guest, whose answer is on screen and serial port."""
    before = screen(machine, tmp_path / "before.ppm")
    press(machine, *"echo", "spc", *"typed", "ret")
    machine.wait_for(rb"echo typed\r\ntyped\r\n.*guest# ", 20)
    time.sleep(1)
    assert screen(machine, tmp_path / "after.ppm") != before


def press(machine: StickMachine, *keys: str) -> None:
    """Keys of the host's keyboard, one after the other; those joined by + together."""
    for key in keys:
        machine.qmp("send-key", keys=[{"type": "qcode", "data": part} for part in key.split("+")])
        time.sleep(0.1)


def test_recovery_shell(machine: StickMachine, tmp_path: Path) -> None:
    """Alt-F2 at the keyboard and the word open a shell of root; nothing else, and nothing on the serial line, which is the
    guest's as before. What the person did is on the console."""
    word = [f"shift+{key}" for key in "recover"]
    machine.write(b"\r\rRECOVER\r")
    machine.wait_for(rb"RECOVER: not found", 20)
    assert machine.shell("echo on") == "on"
    before = screen(machine, tmp_path / "before.ppm")
    press(machine, "alt+f2")
    time.sleep(2)
    assert screen(machine, tmp_path / "asks.ppm") != before
    press(machine, *word[:-1], "ret")
    machine.wait_for(rb"no recovery shell: another word was typed at the host's keyboard", 20)
    # The guest goes on, out of sight; its serial line is no way in.
    assert machine.shell("echo RECOVER") == "RECOVER" and b"a recovery shell was opened" not in machine.output
    press(machine, *word, "ret")
    machine.wait_for(rb"a recovery shell was opened at the host's keyboard", 20)
    time.sleep(2)
    press(machine, *"id", "spc", "shift+dot", *["slash", *"dev", "slash", *"tty", "shift+s", "0"], "ret")
    machine.wait_for(rb"uid=0\(root\) gid=0", 20)
    press(machine, *"exit", "ret")
    machine.wait_for(rb"the recovery shell was left", 20)
    # The first screen is there as before; and on the other one the word is asked for again.
    press(machine, "alt+f1", "ret", *"echo", "spc", *"back", "ret")
    machine.wait_for(rb"echo back\r\nback\r\n.*guest# ", 20)
    press(machine, "alt+f2", *"exit", "ret")
    machine.wait_for(rb"no recovery shell: another word was typed", 20)
    press(machine, "alt+f1")


def screen(machine: StickMachine, path: Path) -> bytes:
    machine.qmp("screendump", filename=str(path))
    return path.read_bytes()


def test_stick_is_left_alone(machine: StickMachine) -> None:
    """Once up, the host neither reads from the stick nor writes to it. (The firmware reads the UKI, systemd-boot
    renames it to count the boot, the kernel and udev look at the partition table: all before.)"""
    leave_alone(machine, QUIET_SECONDS)


@pytest.mark.soak
def test_stick_is_left_alone_for_long(machine: StickMachine) -> None:
    leave_alone(machine, LONG_QUIET_SECONDS)


def leave_alone(machine: StickMachine, seconds: float) -> None:
    before = machine.stick_counters()
    print(f"stick, from power-on to the guest's shell: {before}")
    assert before["rd_bytes"] > 0
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        assert machine.shell("dd if=/dev/vda of=/dev/null bs=64k skip=1600 count=4 2>/dev/null; echo on") == "on"
        machine.read(min(left, 3))
    assert machine.stick_counters() == before


def test_host_works_on_without_the_stick(machine: StickMachine) -> None:
    before = machine.position
    machine.unplug_stick()
    # Kernel, keeper and console say so, in whatever order: not in the middle of what the guest says.
    machine.position = before
    machine.wait_for_all([rb"Synchronizing SCSI cache", rb"glint: the host's state is in memory only", rb"it was pulled; changes"], 20)
    assert machine.shell("echo still $((40 + 2)); sync") == "still 42"
    # The host starts programs it has not run yet: the guest ends, then Ctrl-Alt-Del takes the host down in order.
    machine.write(b"poweroff -f\r")
    machine.wait_for(rb"glint: the guest has ended", 30)
    machine.qmp("send-key", keys=[{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")])
    machine.wait_for(rb"reboot: Restarting system", 60)
    machine.process.wait(30)
