"""An update without a login: a person puts glint/update.efi on the stick; the host takes it at the next boot.

One stick, two boots. The new host is the old one with another version in its .osrel, signed by the same maker."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "image"))

from boot import StickMachine  # noqa: E402

CACHE = Path(os.environ["GLINT_CACHE"])
KEY = os.environ.get("GLINT_MAKER_KEY", CACHE / "maker/maker.key")
CERTIFICATE = os.environ.get("GLINT_MAKER_CERT", CACHE / "maker/maker.crt")


@pytest.fixture(scope="module")
def stick() -> Path:
    path = CLONE / "build/stick.img"
    subprocess.run([CLONE / "image/build", "-o", path], check=True)
    return path


def call(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def sections(data: bytes) -> dict[str, bytes]:
    at = struct.unpack_from("<I", data, 60)[0]
    count, optional = struct.unpack_from("<H12xH", data, at + 6)
    rows = (struct.unpack_from("<8sIIII", data, at + 24 + optional + 40 * i) for i in range(count))
    return {name.rstrip(b"\0").decode(): data[place : place + min(size, raw)] for name, size, _, raw, place in rows}


def newer(uki: Path, version: str, folder: Path) -> Path:
    parts = sections(uki.read_bytes())
    for name in ("linux", "initrd", "cmdline", "uname"):
        (folder / name).write_bytes(parts[f".{name}"])
    release = re.sub(r'VERSION_ID="[^"]*"', f'VERSION_ID="{version}"', parts[".osrel"].decode())
    (folder / "osrel").write_text(release)
    call("ukify", "build", f"--linux={folder}/linux", f"--initrd={folder}/initrd", f"--cmdline=@{folder}/cmdline", f"--os-release=@{folder}/osrel",
         f"--uname={parts['.uname'].decode()}", "--stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub", f"--output={folder}/unsigned.efi")
    call("sbsign", "--key", KEY, "--cert", CERTIFICATE, "--output", folder / "new.efi", folder / "unsigned.efi")
    return folder / "new.efi"


def slots(image: str) -> list[str]:
    return sorted(line.removeprefix("::/EFI/Linux/") for line in call("mdir", "-b", "-i", image, "::/EFI/Linux").splitlines())


def test_dropped(stick: Path, tmp_path: Path) -> None:
    old = Path(f"{stick}.efi")
    version = re.search(rb'VERSION_ID="([^"]+)"', sections(old.read_bytes())[".osrel"])[1].decode()
    new = newer(old, "99.1", tmp_path)
    base, flat = tmp_path / "base.img", tmp_path / "flat.img"
    call("cp", "--sparse=always", stick, base)
    esp = f"{base}@@1M"
    call("mren", "-i", esp, f"::/EFI/Linux/glint_{version}+3-0.efi", f"glint_{version}.efi")
    call("mcopy", "-i", esp, new, "::/glint/update.efi")
    folder = tmp_path / "machine"
    folder.mkdir()
    with StickMachine(base, folder=folder) as machine:
        machine.wait_for(rb"glint/update.efi: version 99.1 is in slot glint_99.1\+1-0.efi", 400)
        machine.process.wait(120)  # it is told not to begin anew
        print(f"updated and restarted after {machine.seconds():.0f} s")
        # No guest was started on what was to end.
        assert b"Guest " not in machine.output
    call("qemu-img", "convert", "-O", "raw", folder / "stick.qcow2", flat)
    assert slots(f"{flat}@@1M") == [f"glint_{version}.efi", "glint_99.1+1-0.efi"]
    assert "update.efi" not in call("mdir", "-b", "-i", f"{flat}@@1M", "::/glint")
    back = tmp_path / "back.efi"
    call("mcopy", "-n", "-i", f"{flat}@@1M", "::/EFI/Linux/glint_99.1+1-0.efi", back)
    assert back.read_bytes() == new.read_bytes()
    with StickMachine(base, folder=folder) as machine:
        machine.wait_for(rb"glint-init: root of ", 200)
    call("qemu-img", "convert", "-O", "raw", folder / "stick.qcow2", flat)
    assert slots(f"{flat}@@1M") == [f"glint_{version}.efi", "glint_99.1+0-1.efi"]
