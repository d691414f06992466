"""Slots on trial: one that is good is kept, one that is bad is left by itself, and the old one is back without help.

Bad slots are made of the good one's kernel: with an init that dies (the kernel panics), one that waits for ever before
the host's root is there, a program that stops in systemd's place, or a host whose database never starts. Each is newer
than the good slot and has one try, as updates have, so systemd-boot takes it first, once."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "image"))

from boot import StickMachine  # noqa: E402

KERNEL = Path("/opt/kernel-amd64")
STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
KEY = Path(os.environ["GLINT_CACHE"]) / "maker/maker.key"
BOOT_SECONDS = 300
GOOD = "glint_0.1.0.efi"
STOPPED = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


def run(*command: str | Path, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs)


class Stick:
    """A stick whose slots a test lays out, and which goes from machine to machine."""

    def __init__(self, folder: Path):
        self.folder, self.image, self.made = folder, folder / "stick.img", 0
        built = CLONE / "build/stick.img"
        subprocess.run([CLONE / "image/build", "-o", built], check=True)
        run("cp", "--sparse=always", built, self.image)
        self.uki, self.parts = Path(f"{built}.efi"), folder / "parts"
        self.parts.mkdir()
        run("objcopy", "-O", "binary", "-j", ".initrd", self.uki, folder / "initrd")
        run("objcopy", "-O", "binary", "-j", ".cmdline", self.uki, folder / "cmdline")
        run("objcopy", "-O", "binary", "-j", ".osrel", self.uki, folder / "osrel")
        self.release = (folder / "osrel").read_text().strip("\0")
        self.command_line = (folder / "cmdline").read_text().strip("\0\n ")
        with (folder / "initrd").open("rb") as initrd:
            run("cpio", "--quiet", "-i", "-d", cwd=self.parts, stdin=initrd)
        self.certificate = folder / "maker.crt"
        run("mcopy", "-n", *self.at(), "::glint/maker.cer", folder / "maker.cer")
        run("openssl", "x509", "-inform", "DER", "-in", folder / "maker.cer", "-out", self.certificate)

    def at(self) -> list[str]:
        return ["-i", f"{self.image}@@1M"]

    def slots(self) -> list[str]:
        return sorted(line.split("/")[-1] for line in run("mdir", "-b", *self.at(), "::EFI/Linux").stdout.split())

    def bless(self) -> None:
        """As a host that was healthy did before."""
        run("mren", *self.at(), f"::EFI/Linux/{self.slots()[0]}", GOOD)

    def show_menu(self, seconds: int) -> None:
        """systemd-boot shows its menu for so long, without a key at the right moment."""
        config = self.folder / "loader.conf"
        config.unlink(missing_ok=True)
        run("mcopy", *self.at(), "::loader/loader.conf", config)
        lines = [line for line in config.read_text().splitlines() if not line.startswith("timeout")]
        config.write_text("\n".join([*lines, f"timeout {seconds}", ""]))
        run("mcopy", "-o", *self.at(), config, "::loader/loader.conf")

    def put(self, version: str, tries: str, uki: Path) -> None:
        run("mcopy", *self.at(), uki, f"::EFI/Linux/glint_{version}+{tries}.efi")

    def drop(self, update: bytes) -> None:
        """As a person copies a new host to it."""
        (self.folder / "update.efi").write_bytes(update)
        run("mcopy", *self.at(), self.folder / "update.efi", "::glint/update.efi")

    def dropped(self) -> bytes:
        run("mcopy", "-n", "-o", *self.at(), "::glint/update.efi", self.folder / "dropped.efi")
        return (self.folder / "dropped.efi").read_bytes()

    def take_from(self, machine: StickMachine) -> None:
        """In order: firmware writes and never flushes, and what is not flushed is lost where QEMU is killed."""
        machine.qmp("quit")
        machine.process.wait(30)
        machine.close()
        run("qemu-img", "convert", "-O", "raw", machine.folder / "stick.qcow2", self.folder / "taken.img")
        (machine.folder / "stick.qcow2").unlink()
        (self.folder / "taken.img").rename(self.image)

    def make(self, version: str, initrd: Path, words: str = "", signer: list[Path] | None = None) -> Path:
        """A UKI; what it says in its command line is how it is known on the console. @signer: key and certificate; None: the maker's."""
        self.made += 1
        made, release = self.folder / f"slot{self.made}.efi", self.folder / "os-release"
        release.write_text(self.release.replace("0.1.0", version))
        keys = dict(zip(("private-key", "certificate"), [KEY, self.certificate] if signer is None else signer))
        sign = [f"--secureboot-{name}={path}" for name, path in keys.items()]
        run("ukify", "build", f"--linux={KERNEL}/vmlinuz", f"--initrd={initrd}", f"--os-release=@{release}", f"--stub={STUB}",
            f"--uname={(KERNEL / 'version').read_text().strip()}", f"--cmdline={self.command_line} slot={version} {words}", f"--output={made}", *(["--signtool=sbsign", *sign] if sign else []))
        return made

    def pack(self, name: str, tree: Path) -> Path:
        archive = self.folder / f"{name}.initrd"
        with archive.open("wb") as to:
            found = run("find", ".", "-mindepth", "1", cwd=tree).stdout
            subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=found.encode(), stdout=to, cwd=tree, check=True)
        return archive

    def init_that_dies(self) -> Path:
        tree = self.folder / "dies"
        tree.mkdir(exist_ok=True)
        shutil.copy("/usr/bin/true", tree / "init")  # without its libraries it does not even start
        return self.pack("dies", tree)

    def init_that_waits(self) -> Path:
        """Opening a pipe that nobody writes to takes for ever."""
        tree = self.folder / "waits"
        shutil.copytree(self.parts, tree, ignore=shutil.ignore_patterns("modules"))
        (tree / "modules").mkdir()
        os.mkfifo(tree / "modules/10-pipe")
        (tree / "root.img").write_bytes(b"none")
        return self.pack("waits", tree)

    def systemd_that_stops(self) -> Path:
        tree, root = self.folder / "stops", self.folder / "root"
        shutil.copytree(self.parts, tree, ignore=shutil.ignore_patterns("root.img"))
        (root / "usr/lib/systemd").mkdir(parents=True)
        (root / "dev").mkdir()
        (self.folder / "stops.c").write_text(STOPPED)
        run("gcc", "-static", "-o", root / "usr/lib/systemd/systemd", self.folder / "stops.c")
        run("mkfs.erofs", "--quiet", tree / "root.img", root)
        return self.pack("stops", tree)

    def host(self) -> Path:
        return self.folder / "initrd"


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Stick]:
    yield Stick(tmp_path)


def slot_starts(machine: StickMachine, version: str) -> float:
    machine.wait_for(rb"command line: .* slot=" + re.escape(version.encode()), BOOT_SECONDS)
    print(f"[{machine.seconds():6.1f} s] slot {version} starts")
    return machine.seconds()


def good_is_back(machine: StickMachine, since: float) -> None:
    machine.wait_for(rb"command line: (?!.*slot=)[^\r\n]*[\r\n]", BOOT_SECONDS)
    machine.wait_for(rb"glint-health\[\d+\]: [^\r\n]*(?<!not )healthy after", BOOT_SECONDS)
    print(f"[{machine.seconds():6.1f} s] the old slot is back and healthy, {machine.seconds() - since:.1f} s after the bad one started")
    machine.wait_for(rb"Glint 0\.2\.0 was tried and did not become good: 0\.1\.0 runs again", 10)


def test_new_stick_is_kept_and_bad_slots_are_left(stick: Stick, tmp_path: Path) -> None:
    """One after another: a panic, a hang before there is a root, a hang after. The slot that all come back to is as new,
    and refuses an update that was not copied whole."""
    short = stick.uki.read_bytes()[: 20 << 20]
    stick.drop(short)
    stick.put("0.4.0", "1-0", stick.make("0.4.0", stick.init_that_dies()))
    stick.put("0.3.0", "1-0", stick.make("0.3.0", stick.init_that_waits()))
    stick.put("0.2.0", "1-0", stick.make("0.2.0", stick.systemd_that_stops()))
    with StickMachine(stick.image, folder=tmp_path, reboots=True) as machine:
        slot_starts(machine, "0.4.0")
        machine.wait_for(rb"Kernel panic", BOOT_SECONDS)
        slot_starts(machine, "0.3.0")
        since = slot_starts(machine, "0.2.0")
        machine.wait_for(rb"command line: (?!.*slot=)[^\r\n]*[\r\n]", BOOT_SECONDS)
        machine.wait_for_all([rb"update: glint/update\.efi is not whole", rb"Glint 0\.1\.0 is good now",
                              rb"Glint 0\.4\.0 was tried and did not become good"], BOOT_SECONDS)
        print(f"[{machine.seconds():6.1f} s] the good slot is healthy, {machine.seconds() - since:.1f} s after the last bad one started")
        stick.take_from(machine)
    assert stick.slots() == sorted([GOOD, "glint_0.2.0+0-1.efi", "glint_0.3.0+0-1.efi", "glint_0.4.0+0-1.efi"])
    assert stick.dropped() == short
    run("dd", f"if={stick.image}", f"of={tmp_path}/esp", "bs=1M", "skip=1", "count=512", "conv=sparse")
    run("fsck.vfat", "-n", tmp_path / "esp")


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["init_that_dies", "init_that_waits", "systemd_that_stops"])
def test_old_slot_is_back(stick: Stick, tmp_path: Path, kind: str) -> None:
    stick.bless()
    stick.put("0.2.0", "1-0", stick.make("0.2.0", getattr(stick, kind)()))
    with StickMachine(stick.image, folder=tmp_path, reboots=True) as machine:
        since = slot_starts(machine, "0.2.0")
        good_is_back(machine, since)
        stick.take_from(machine)
    assert stick.slots() == sorted([GOOD, "glint_0.2.0+0-1.efi"])


@pytest.mark.soak
@pytest.mark.parametrize("words", ["", "module_blacklist=usb_storage,uas"], ids=["sees the stick", "blind"])
def test_slot_that_is_never_healthy(stick: Stick, tmp_path: Path, words: str) -> None:
    """Its database never starts; or that, and it has no driver for the stick."""
    stick.bless()
    stick.put("0.2.0", "1-0", stick.make("0.2.0", stick.host(), f"systemd.mask=glint-database.service {words}"))
    with StickMachine(stick.image, folder=tmp_path, reboots=True) as machine:
        since = slot_starts(machine, "0.2.0")
        machine.wait_for(rb"not healthy after \d+ s: ", BOOT_SECONDS)
        machine.wait_for(rb"Glint 0\.2\.0 is on trial \(tries left: 0\): the host restarts, into the other slot", 10)
        good_is_back(machine, since)
        stick.take_from(machine)
    assert stick.slots() == sorted([GOOD, "glint_0.2.0+0-1.efi"])


def has_keys(stick: Stick, machine: StickMachine) -> bool:
    """Whether the maker's certificate is among the firmware's variables."""
    return (stick.folder / "maker.cer").read_bytes() in (machine.folder / "vars.fd").read_bytes()


def enrol(stick: Stick, machine: StickMachine) -> None:
    """As a person does: a key for systemd-boot's menu, the entry below that of the slot. Nothing is enrolled before that."""
    machine.wait_for(rb"Enroll Secure Boot keys: glint", 60)
    assert not has_keys(stick, machine)
    machine.write(b"j")
    time.sleep(2)  # two keys at once may be taken for one
    machine.write(b"\r")
    machine.wait_for(rb"successfully enrolled", 60)
    assert has_keys(stick, machine)
    print(f"[{machine.seconds():6.1f} s] the maker's keys are enrolled")


def stranger(folder: Path) -> list[Path]:
    """Somebody else's key and certificate."""
    key, certificate = folder / "stranger.key", folder / "stranger.crt"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=stranger", "-keyout", key, "-out", certificate)
    return [key, certificate]


def test_secure_boot(stick: Stick, tmp_path: Path) -> None:
    """The kit, chosen in the menu, makes the firmware start the maker's images only. A slot with a flipped bit, one that
    somebody else signed, and one that nobody did, are refused: each time the old one starts in the same breath."""
    stick.show_menu(10)
    with StickMachine(stick.image, folder=tmp_path, reboots=True, secure=True) as machine:
        enrol(stick, machine)
        machine.wait_for(rb"locked down from EFI Secure Boot", BOOT_SECONDS)
        machine.wait_for(rb"Glint 0\.1\.0 is good now", BOOT_SECONDS)
        print(f"[{machine.seconds():6.1f} s] the signed slot runs, locked down, and is healthy")
        assert b"Loading of unsigned module" not in machine.output and b"cannot load the module" not in machine.output, machine.tail()
        stick.take_from(machine)
    assert stick.slots() == [GOOD]
    stick.show_menu(0)
    dies = stick.init_that_dies()
    flipped = bytearray(stick.make("0.4.0", dies).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.efi").write_bytes(flipped)
    stick.put("0.4.0", "1-0", tmp_path / "flipped.efi")
    stick.put("0.3.0", "1-0", stick.make("0.3.0", dies, signer=stranger(tmp_path)))
    stick.put("0.2.0", "1-0", stick.make("0.2.0", dies, signer=[]))
    with StickMachine(stick.image, folder=tmp_path, reboots=True, secure=True) as machine:
        for version in ("0.4.0", "0.3.0", "0.2.0"):
            machine.wait_for(rb"glint_%s[^\r\n]*Access denied" % version.encode(), BOOT_SECONDS)
            since = machine.seconds()
            machine.wait_for(rb"locked down from EFI Secure Boot", BOOT_SECONDS)
            print(f"[{machine.seconds():6.1f} s] {version} was refused; the old slot's kernel runs {machine.seconds() - since:.1f} s after")
            machine.qmp("system_reset")
        assert b"slot=" not in machine.output
        stick.take_from(machine)
    assert stick.slots() == sorted([GOOD, *(f"glint_0.{minor}.0+0-1.efi" for minor in (2, 3, 4))])
