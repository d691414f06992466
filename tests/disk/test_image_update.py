"""Updates of sticks, by `glint image update` and glint-update: signed by sbsign, looked at by mtools and fsck.vfat.

What is refused leaves every byte of the stick as it was."""

import hashlib
import json
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from beside import GLINT, call, glint, glint_json, refused
from host import BUILD
from test_image import MIB, esp_files, part, program

UPDATE = BUILD / "node/update/glint-update"
HEAD = 1024


def pe(sections: dict[bytes, bytes]) -> bytes:
    """A program for UEFI, as far as signing needs it."""
    table, data = b"", b""
    for i, (name, contents) in enumerate(sections.items()):
        raw = contents.ljust(-len(contents) % 512 + len(contents), b"\0")
        table += struct.pack("<8sIIII12xI", name, len(contents), 4096 + i * MIB, len(raw), HEAD + len(data), 0x40000040)
        data += raw
    end = 4096 + len(sections) * MIB
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 0, 0, 0, 4096, 4096)
    optional += struct.pack("<QIIHHHHHHIIIIHHQQQQII", 0x400000, 4096, 512, 0, 0, 0, 0, 0, 0, 0, end, HEAD, 0, 10, 0, 0, 0, 0, 0, 0, 16)
    optional += bytes(128)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22E)
    return (struct.pack("<2s58xI", b"MZ", 64) + coff + optional + table).ljust(HEAD, b"\0") + data


class Maker:
    """A key, and what is signed with it."""

    def __init__(self, folder: Path, name: str):
        self.key, self.cert, self.folder = folder / f"{name}.key", folder / f"{name}.crt", folder
        self.made: dict[tuple, Path] = {}
        call("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-keyout", self.key, "-out", self.cert, "-subj", f"/CN={name}", "-days", 3650)

    def uki(self, version: str, security: int | None = None, size: int = MIB, signed: bool = True) -> Path:
        """Made once: a signature says when it was made."""
        path = self.made.setdefault((version, security, size, signed), self.folder / f"{self.cert.stem}-{len(self.made)}.efi")
        if path.exists():
            return path
        level = "" if security is None else f"GLINT_SECURITY={security}\n"
        linux = random.Random(f"{version}{size}").randbytes(size)
        path.write_bytes(pe({b".osrel": f'ID=glint\nVERSION_ID="{version}"\n{level}'.encode(), b".linux": linux}))
        if signed:
            call("sbsign", "--key", self.key, "--cert", self.cert, "--output", path, path)
        return path


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("maker"), "maker")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture
def stick(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stick with version 1.2, security level 1, never booted."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    loader = program(tmp_path / "boot.efi", None, 100_000)
    glint("image", "create", "-o", tmp_path / "stick.img", "--uki", maker.uki("1.2", 1), "--loader", loader, "--esp", "64M")
    return tmp_path / "stick.img"


def update(stick: Path, uki: Path, maker: Maker) -> dict:
    return json.loads(glint("image", "update", stick, uki, "--cert", maker.cert, "--json"))


def slots(stick: Path, tmp_path: Path) -> dict[str, bytes]:
    files = esp_files(stick, tmp_path)
    return {name.removeprefix("EFI/Linux/"): data for name, data in files.items() if name.startswith("EFI/Linux/")}


def test_update(stick: Path, maker: Maker, tmp_path: Path) -> None:
    first, second, third = maker.uki("1.2", 1), maker.uki("1.3", 1, 5 * MIB), maker.uki("1.10~rc1", 2, 3 * MIB)
    told = update(stick, second, maker)
    assert told == {"version": "1.3", "security": 1, "written": "glint_1.3+1-0.efi", "kept": "glint_1.2+3-0.efi", "removed": ""}
    assert slots(stick, tmp_path) == {"glint_1.2+3-0.efi": first.read_bytes(), "glint_1.3+1-0.efi": second.read_bytes()}
    # None is known to be good: the newest, which would be booted, stays.
    told = update(stick, third, maker)
    assert told["kept"] == "glint_1.3+1-0.efi" and told["removed"] == "glint_1.2+3-0.efi"
    assert slots(stick, tmp_path) == {"glint_1.3+1-0.efi": second.read_bytes(), "glint_1.10~rc1+1-0.efi": third.read_bytes()}
    assert {slot["version"] for slot in glint_json("image", "inspect", stick)["slots"]} == {"1.3", "1.10~rc1"}
    words = subprocess.run([GLINT, "image", "update", stick, maker.uki("2"), "--cert", maker.cert], capture_output=True, text=True)
    assert words.returncode == 1 and "security level 0, and this host has 2" in words.stderr


def test_a_good_slot_stays(stick: Path, maker: Maker, tmp_path: Path) -> None:
    """Known to be good before newer, and on a disk image of another format."""
    esp, offset = part(stick, "ESP", tmp_path), MIB
    call("mren", "-i", esp, "::EFI/Linux/glint_1.2+3-0.efi", "glint_1.2.efi")
    call("mcopy", "-i", esp, maker.uki("1.4", 1), "::EFI/Linux/glint_1.4+0-1.efi")
    call("mcopy", "-i", esp, maker.uki("9", 1), "::EFI/Linux/other.efi")
    call("dd", f"if={esp}", f"of={stick}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc", "status=none")
    vhdx = tmp_path / "stick.vhdx"
    glint("disk", "convert", stick, vhdx)
    told = update(vhdx, maker.uki("1.3", 1), maker)
    assert told["kept"] == "glint_1.2.efi" and told["removed"] == "glint_1.4+0-1.efi"
    glint("disk", "convert", vhdx, tmp_path / "flat.img")
    assert set(slots(tmp_path / "flat.img", tmp_path)) == {"glint_1.2.efi", "glint_1.3+1-0.efi", "other.efi"}


def flipped(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    bad = path.with_name(f"flipped-{at}.bad")
    bad.write_bytes(data)
    return bad


def cut(path: Path, size: int) -> Path:
    bad = path.with_name(f"cut-{size}.bad")
    bad.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    return bad


BAD: dict[str, tuple[Callable[[Maker, Maker], Path], str]] = {
    "cut in the kernel": (lambda m, s: cut(m.uki("1.3", 1), MIB // 2), "is not whole"),
    "cut in the signature": (lambda m, s: cut(m.uki("1.3", 1), MIB + 3000), "is not whole"),
    "longer": (lambda m, s: cut(m.uki("1.3", 1), 2 * MIB), "is not whole"),
    "empty": (lambda m, s: cut(m.uki("1.3", 1), 0), "is not a program for UEFI"),
    "flipped in the headers": (lambda m, s: flipped(m.uki("1.3", 1), 300), ""),
    "flipped in the release": (lambda m, s: flipped(m.uki("1.3", 1), HEAD + 5), "was changed after it was signed"),
    "flipped in the kernel": (lambda m, s: flipped(m.uki("1.3", 1), HEAD + 400_000), "was changed after it was signed"),
    "flipped in the signature": (lambda m, s: flipped(m.uki("1.3", 1), -200), ""),
    "not signed": (lambda m, s: m.uki("1.3", 1, signed=False), "is not signed"),
    "signed by another": (lambda m, s: s.uki("1.3", 1), "is not signed by the maker of this host (maker)"),
    "the same": (lambda m, s: m.uki("1.2", 1), "which this host has"),
    "older": (lambda m, s: m.uki("1.2~rc1", 1), "older than 1.2"),
    "with old faults": (lambda m, s: m.uki("1.3", 0), "has the security level 0, and this host has 1"),
    "a name that leads elsewhere": (lambda m, s: m.uki("../3", 1), "no version that a file's name can have"),
    "no room": (lambda m, s: m.uki("1.3", 1, 80 * MIB), "has room for"),
    "no image": (lambda m, s: m.cert, "is not a program for UEFI"),
    "huge": (lambda m, s: cut(m.uki("1.3", 1), 300 * MIB), "the limit is"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str, stick: Path, maker: Maker, stranger: Maker, tmp_path: Path) -> None:
    make, words = BAD[name]
    bad = make(maker, stranger)
    before = hashlib.sha256(stick.read_bytes()).digest()
    said = refused("image", "update", stick, bad, "--cert", maker.cert)
    assert words in said and len(said.splitlines()) >= 1, said
    assert hashlib.sha256(stick.read_bytes()).digest() == before
    # A host says the same of it.
    esp = part(stick, "ESP", tmp_path)
    call("mren", "-i", esp, "::EFI/Linux/glint_1.2+3-0.efi", "glint_1.2.efi")
    before = hashlib.sha256(esp.read_bytes()).digest()
    result = host(esp, maker, tmp_path, bad)
    assert result.returncode == 1 and words in result.stderr, result.stderr
    assert hashlib.sha256(esp.read_bytes()).digest() == before


def test_no_stick(maker: Maker, stick: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(MIB))
    assert "partition" in refused("image", "update", empty, maker.uki("1.3", 1), "--cert", maker.cert)
    assert "give --cert" in refused("image", "update", stick, maker.uki("1.3", 1))


# --- on a host ---


def host(esp: Path, maker: Maker, tmp_path: Path, *args: object, version: str = "1.2", image: str = "glint_1.2+2-1.efi") -> subprocess.CompletedProcess:
    release = tmp_path / "os-release"
    release.write_text(f'ID=glint\nVERSION_ID="{version}"\nGLINT_SECURITY=1\n')
    command = [UPDATE, "--esp", esp, "--image", f"\\EFI\\Linux\\{image}", "--certificate", maker.cert, "--release", release, *args]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.fixture
def esp(stick: Path, tmp_path: Path) -> Path:
    """That of a host whose slot is known to be good."""
    path = part(stick, "ESP", tmp_path)
    call("mren", "-i", path, "::EFI/Linux/glint_1.2+3-0.efi", "glint_1.2.efi")
    return path


def names(esp: Path) -> list[str]:
    call("fsck.vfat", "-n", esp)
    return sorted(line.removeprefix("::/") for line in call("mdir", "-/", "-b", "-i", esp, "::").splitlines() if line.endswith(".efi"))


def test_host(esp: Path, maker: Maker, tmp_path: Path) -> None:
    new = maker.uki("1.3", 1, 2 * MIB)
    result = host(esp, maker, tmp_path, new, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["written"] == "glint_1.3+1-0.efi" and told["kept"] == "glint_1.2.efi"
    assert names(esp) == ["EFI/Linux/glint_1.2.efi", "EFI/Linux/glint_1.3+1-0.efi"]
    call("mcopy", "-n", "-o", "-i", esp, "::EFI/Linux/glint_1.3+1-0.efi", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == new.read_bytes()
    # Once more: the slot that runs is never the one that goes.
    result = host(esp, maker, tmp_path, maker.uki("1.4", 1))
    assert result.returncode == 0 and "version 1.2 stays" in result.stdout, result.stderr
    assert names(esp) == ["EFI/Linux/glint_1.2.efi", "EFI/Linux/glint_1.4+1-0.efi"]


def test_host_on_trial(esp: Path, maker: Maker, tmp_path: Path) -> None:
    """The slot before it is the last one known to be good."""
    assert host(esp, maker, tmp_path, maker.uki("1.3", 1)).returncode == 0
    before = esp.read_bytes()
    result = host(esp, maker, tmp_path, maker.uki("1.4", 1), version="1.3", image="glint_1.3+0-1.efi")
    assert result.returncode == 1 and "version 1.3 is on trial itself" in result.stderr and "hint: wait" in result.stderr
    result = host(esp, maker, tmp_path, maker.uki("1.4", 1), image="glint_1.1.efi")
    assert result.returncode == 1 and "is no slot of this stick" in result.stderr
    assert esp.read_bytes() == before


def test_host_check(esp: Path, maker: Maker, stranger: Maker, tmp_path: Path) -> None:
    before = esp.read_bytes()
    result = host(esp, maker, tmp_path, "--check", maker.uki("0.1", 7))
    assert result.returncode == 0 and "version 0.1, security level 7" in result.stdout
    assert host(esp, maker, tmp_path, "--check", stranger.uki("1.3")).returncode == 1
    assert esp.read_bytes() == before
    help = subprocess.run([UPDATE, "--help"], capture_output=True, text=True)
    assert help.returncode == 0 and "--from-stick" in help.stdout


def drop(esp: Path, uki: Path) -> None:
    call("mcopy", "-o", "-i", esp, uki, "::glint/update.efi")


def test_from_stick(esp: Path, maker: Maker, stranger: Maker, tmp_path: Path) -> None:
    before = esp.read_bytes()
    result = host(esp, maker, tmp_path, "--from-stick")
    assert result.returncode == 0 and result.stderr == "" and esp.read_bytes() == before
    # A bad one is said, and left where it is.
    drop(esp, stranger.uki("1.3", 1))
    before = esp.read_bytes()
    result = host(esp, maker, tmp_path, "--from-stick")
    assert result.returncode == 1 and "update: glint/update.efi is not signed by the maker" in result.stderr
    assert esp.read_bytes() == before
    drop(esp, maker.uki("1.3", 1))
    result = host(esp, maker, tmp_path, "--from-stick")
    assert result.returncode == 0 and "version 1.3 is in slot glint_1.3+1-0.efi" in result.stderr
    assert names(esp) == ["EFI/Linux/glint_1.2.efi", "EFI/Linux/glint_1.3+1-0.efi"]
    # A cut before the end of the last one left it there: what it is runs.
    drop(esp, maker.uki("1.3", 1))
    result = host(esp, maker, tmp_path, "--from-stick", version="1.3", image="glint_1.3+0-1.efi")
    assert result.returncode == 0 and "which runs: removed" in result.stderr, result.stderr
    assert names(esp) == ["EFI/Linux/glint_1.2.efi", "EFI/Linux/glint_1.3+1-0.efi"]
