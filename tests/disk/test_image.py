"""`glint image`: sticks on files and devices, beside sfdisk, fsck.vfat, mtools and qemu-img; what is refused; what is hostile."""

import json
import os
import random
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beside import GLINT, call, glint, glint_json, qemu_img, refused

MIB = 1 << 20
ESP, STATE = 64 * MIB, 64 * MIB
LEAST = MIB + ESP + STATE + MIB


def program(path: Path, version: str | None, size: int = MIB) -> Path:
    """A PE file of @size bytes; with @version, one with the sections by which a UKI is known."""
    sections = {b".osrel": f'ID=glint\nVERSION_ID="{version}"\n'.encode(), b".linux": random.Random(size).randbytes(size - 4096)}
    table, data, at = b"", b"", 4096 - 1024
    for name, contents in sections.items() if version else []:
        table += struct.pack("<8sIIII12xI", name, len(contents), 0, len(contents), at + len(data), 0)
        data += contents
    head = struct.pack("<2s58xI4sHH12xHH", b"MZ", 64, b"PE\0\0", 0x8664, len(table) // 40, 0, 0) + table
    path.write_bytes((head.ljust(at, b"\0") + data).ljust(size, b"\0"))
    return path


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The options of a small stick."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    uki, loader = program(tmp_path / "glint.efi", "1.2"), program(tmp_path / "boot.efi", None, 100_000)
    return ["--uki", uki, "--loader", loader, "--esp", "64M"]


@pytest.fixture
def stick(inputs: list[object], tmp_path: Path) -> Path:
    glint("image", "create", "-o", tmp_path / "stick.img", *inputs)
    return tmp_path / "stick.img"


@pytest.fixture
def guest_disk(tmp_path: Path) -> Path:
    raw = tmp_path / "guest.raw"
    with raw.open("wb") as file:
        file.write(random.Random(1).randbytes(3 * MIB))
        file.truncate(20 * MIB)
    glint("disk", "convert", raw, tmp_path / "guest.vhdx")
    return tmp_path / "guest.vhdx"


def partitions(path: Path) -> dict[str, dict]:
    assert "No errors detected" in call("sfdisk", "--verify", path)
    return {p["name"]: p for p in json.loads(call("sfdisk", "--json", path))["partitiontable"]["partitions"]}


def part(stick: Path, name: str, tmp_path: Path) -> Path:
    found, to = partitions(stick)[name], tmp_path / f"{name}.part"
    with stick.open("rb") as file:
        file.seek(found["start"] * 512)
        to.write_bytes(file.read(found["size"] * 512))
    return to


def esp_files(stick: Path, tmp_path: Path) -> dict[str, bytes]:
    esp, files = part(stick, "ESP", tmp_path), {}
    call("fsck.vfat", "-n", esp)
    for line in call("mdir", "-/", "-b", "-i", esp, "::").splitlines():
        if not line.endswith("/"):
            call("mcopy", "-n", "-o", "-i", esp, line, tmp_path / "one")
            files[line.removeprefix("::/")] = (tmp_path / "one").read_bytes()
    return files


# --- create ---


@pytest.mark.parametrize("form", ["img", "vhd", "vhdx"])
def test_create(form: str, inputs: list[object], tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text('# Büro\n[host]\nname = "office-1"\n')
    stick = tmp_path / f"stick.{form}"
    glint("image", "create", "-o", stick, "--host-config", config, *inputs)
    assert glint_json("disk", "info", stick)["size"] == LEAST
    raw = tmp_path / "flat.img"
    qemu_img("convert", "-O", "raw", "-f", {"img": "raw", "vhd": "vpc"}.get(form, form), stick, raw)
    table = partitions(raw)
    assert [(name, p["start"] * 512, p["size"] * 512) for name, p in table.items()] == [("ESP", MIB, ESP), ("STATE", MIB + ESP, STATE)]
    assert table["ESP"]["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert table["STATE"]["type"] == "6D2F0C1E-5B7A-4C39-9F0E-676C696E7401"
    files = esp_files(raw, tmp_path)
    assert files["EFI/Linux/glint_1.2+3-0.efi"] == (tmp_path / "glint.efi").read_bytes()
    assert files["EFI/BOOT/BOOTX64.EFI"] == (tmp_path / "boot.efi").read_bytes()
    assert files["glint/host.toml"] == config.read_bytes()
    assert set(files) == {"EFI/Linux/glint_1.2+3-0.efi", "EFI/BOOT/BOOTX64.EFI", "glint/host.toml", "loader/loader.conf"}
    assert not any(part(raw, "STATE", tmp_path).read_bytes())
    told = glint_json("image", "inspect", stick)
    assert told["problems"] == [] and told["host-config"] == config.read_text() and told["state"]["state"] == "empty"
    assert told["slots"] == [{"file": "glint_1.2+3-0.efi", "size": MIB, "version": "1.2", "tries-left": 3, "tries-done": 0}]
    assert "3 tries left" in glint("image", "inspect", stick)


def test_same_inputs_give_the_same_bytes(inputs: list[object], tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        glint("image", "create", "-o", tmp_path / name, *inputs)
    assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes()
    program(tmp_path / "glint.efi", "1.3")
    glint("image", "create", "-o", tmp_path / "c.img", *inputs)
    ids = [glint_json("image", "inspect", tmp_path / name)["disk"] for name in ("a.img", "c.img")]
    assert ids[0] != ids[1]


def test_create_refuses(inputs: list[object], stick: Path, tmp_path: Path, guest_disk: Path) -> None:
    new, before = tmp_path / "new.img", set(tmp_path.iterdir())
    create = ["image", "create", "-o", new, *inputs]
    assert f"{LEAST} are needed" in refused(*create, "--size", "100M")
    assert "File exists" in refused("image", "create", "-o", stick, *inputs)
    assert "-o" in refused("image", "create", *inputs)
    assert "is not a unified kernel image" in refused("image", "create", "-o", new, "--uki", guest_disk, *inputs[2:])
    assert "too small for two of this UKI" in refused("image", "create", "-o", new, "--uki", program(tmp_path / "l.efi", "1", 40 * MIB), *inputs[2:])
    (tmp_path / "l.efi").unlink()
    assert "does not say which format" in refused("image", "create", "-o", tmp_path / "name", *inputs)
    config = tmp_path / "host.toml"
    for contents, words in ((b"\xff\xfe", "line 1"), (b"\na\0b", "line 2"), (b'[host]\nname = "a b"\n', "line 2"), (b"#" * 70_000, "65536")):
        config.write_bytes(contents)
        said = refused(*create, "--host-config", config)
        assert str(config) in said and words in said
    config.unlink()
    for guest, words in (
        ("web", "does not name a guest and its disk"),
        (f"../x={guest_disk}", "cannot be a guest's name"),
        (f"{'x' * 40}={guest_disk}", "cannot be a guest's name"),
        ("web=/no/such/disk", "/no/such/disk"),
        (f"web={guest_disk},cpus=0", "cpus"),
        (f"web={guest_disk},memory=100", "memory"),
        (f"web={guest_disk},persist=ram", "persist"),
        ("memory=1G", "names no guest"),
    ):
        assert words in refused(*create, "--guest", guest)
    assert "two guests of one name" in refused(*create, "--guest", f"web={guest_disk}", "--guest", f"WEB={guest_disk}")
    assert set(tmp_path.iterdir()) == before


def test_a_damaged_guest_is_refused_by_name(inputs: list[object], tmp_path: Path, guest_disk: Path) -> None:
    with guest_disk.open("r+b") as file:
        file.seek(192 << 10)
        file.write(b"gone" * 32768)
    words = refused("image", "create", "-o", tmp_path / "new.img", *inputs, "--guest", f"web={guest_disk}")
    assert "guest web" in words and str(guest_disk) in words
    assert not (tmp_path / "new.img").exists()


# --- guests, edit ---


def test_guests(inputs: list[object], tmp_path: Path, guest_disk: Path) -> None:
    """The disk that comes back from the stick is the guest's; --check sees damage that a look does not."""
    stick = tmp_path / "stick.img"
    glint("image", "create", "-o", stick, *inputs, "--guest", f"web={guest_disk},memory=2G,cpus=2,autostart", "--guest", f"db={guest_disk},persist=stick")
    told = glint_json("image", "inspect", "--check", stick)
    assert told["problems"] == []
    web, db = told["guests"]
    assert (web["name"], web["memory"], web["cpus"], web["autostart"], web["persist"]) == ("web", 2 << 30, 2, True, "memory")
    assert (db["name"], db["memory"], db["cpus"], db["autostart"], db["persist"]) == ("db", 1 << 30, 1, False, "stick")
    assert web["image"] < 16 * MIB < 20 * MIB < db["image"]
    for guest in told["guests"]:
        image = part(stick, guest["name"], tmp_path).rename(tmp_path / f"{guest['name']}.vhdx")
        os.truncate(image, guest["image"])
        qemu_img("compare", "-f", "vhdx", "-F", "vhdx", image, guest_disk)
        image.unlink()
    place = next(p for p in told["partitions"] if p["name"] == "web")["start"]
    with stick.open("r+b") as file:
        file.seek(place + (192 << 10))
        file.write(b"gone" * 32768)
    looked = subprocess.run([GLINT, "image", "inspect", "--check", stick], capture_output=True, text=True)
    assert looked.returncode == 2 and "guest web: its disk is damaged" in looked.stdout and "problem" in looked.stdout


@pytest.mark.parametrize("form", ["img", "vhdx"])
def test_edit(form: str, inputs: list[object], tmp_path: Path, guest_disk: Path) -> None:
    stick, flat, config = tmp_path / f"stick.{form}", tmp_path / "flat.img", tmp_path / "host.toml"
    glint("image", "create", "-o", stick, *inputs)
    for step in range(4):
        config.write_text(f"# {'x' * 5000 * step}\n")
        options = [["--guest", f"web={guest_disk},autostart"], ["--guest", f"db={guest_disk}"], ["--remove-guest", "web"], ["--guest", f"web={guest_disk},cpus=4"]]
        glint("image", "edit", stick, "--host-config", config, *options[step])
        told = glint_json("image", "inspect", "--check", stick)
        assert told["problems"] == [] and told["host-config"] == config.read_text()
        assert [g["name"] for g in told["guests"]] == [["web"], ["web", "db"], ["db"], ["db", "web"]][step]
        flat.unlink(missing_ok=True)
        qemu_img("convert", "-O", "raw", "-f", "raw" if form == "img" else form, stick, flat)
        assert esp_files(flat, tmp_path)["glint/host.toml"] == config.read_bytes()
    assert "it has a guest web" in refused("image", "edit", stick, "--guest", f"web={guest_disk}")
    assert "there is no guest ftp" in refused("image", "edit", stick, "--remove-guest", "ftp")
    assert "what is to change" in refused("image", "edit", stick)
    assert "no partition table" in refused("image", "edit", guest_disk, "--remove-guest", "x")


def test_edit_leaves_the_rest(stick: Path, tmp_path: Path, guest_disk: Path) -> None:
    with stick.open("r+b") as file:
        file.seek(MIB + ESP)
        file.write(random.Random(2).randbytes(STATE))
    before, files = part(stick, "STATE", tmp_path).read_bytes(), esp_files(stick, tmp_path)
    (tmp_path / "host.toml").write_text("# new\n")
    glint("image", "edit", stick, "--host-config", tmp_path / "host.toml", "--guest", f"web={guest_disk}")
    assert part(stick, "STATE", tmp_path).read_bytes() == before
    assert esp_files(stick, tmp_path) == files | {"glint/host.toml": b"# new\n"}


# --- hostile ---


def test_what_is_no_stick(tmp_path: Path, guest_disk: Path) -> None:
    rng, odd = random.Random(3), tmp_path / "odd"
    for contents in (b"", b"\0" * 512, b"\0" * 4 * MIB, rng.randbytes(3 * MIB), b"EFI PART" * 65536):
        odd.write_bytes(contents)
        refused("image", "inspect", odd)
    assert "no partition table" in refused("image", "inspect", guest_disk)
    refused("image", "inspect", tmp_path)
    refused("image", "inspect", "/dev/zero")
    call("truncate", "-s", "80M", odd)
    subprocess.run(["sfdisk", "--quiet", odd], input="label: gpt\nsize=70M\n", text=True, check=True)
    assert "not a stick of Glint" in refused("image", "inspect", odd)


def test_hostile_sticks_are_told_or_refused(stick: Path, tmp_path: Path, guest_disk: Path) -> None:
    """Wherever a stick is spoilt or cut off, inspect ends by itself and says something."""
    glint("image", "edit", stick, "--guest", f"web={guest_disk}")
    rng, size = random.Random(int(os.environ.get("GLINT_SEED") or 4)), stick.stat().st_size
    places = [*range(512, 2048, 8), *(MIB + i for i in range(0, 96, 3)), *(MIB + 16384 + i * 4 for i in range(24)), MIB + ESP, size - 4096, size - 512]
    with stick.open("r+b") as file:
        for round in range(120):
            at, length = rng.choice(places), rng.choice((1, 2, 4, 8, 512))
            at = min(at, size - length)
            kept = os.pread(file.fileno(), length, at)
            os.pwrite(file.fileno(), rng.choice((b"\xff" * length, b"\0" * length, rng.randbytes(length))), at)
            done = subprocess.run([GLINT, "image", "inspect", "--check", "--json", stick], capture_output=True, text=True, timeout=60)
            assert done.returncode in (0, 1, 2), f"{at}: {done}"
            assert done.returncode != 1 or done.stderr.startswith("glint: "), f"{at}: {done}"
            assert done.returncode != 2 or json.loads(done.stdout)["problems"]
            os.pwrite(file.fileno(), kept, at)
    for cut in (2 * MIB, MIB + ESP, MIB + ESP + STATE, size - 512):
        os.truncate(stick, cut)
        done = subprocess.run([GLINT, "image", "inspect", stick], capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 2), cut
        os.truncate(stick, size)


def test_counters(stick: Path, tmp_path: Path) -> None:
    """Names as systemd-boot leaves them."""
    esp = part(stick, "ESP", tmp_path)
    for name in ("glint_1.3.efi", "glint_1.4+0-3.efi", "glint_1.5+2.efi", "other+x.efi"):
        call("mcopy", "-i", esp, tmp_path / "boot.efi", f"::/EFI/Linux/{name}")
    with stick.open("r+b") as file:
        file.seek(MIB)
        file.write(esp.read_bytes())
    slots = {slot["file"]: slot for slot in glint_json("image", "inspect", stick)["slots"]}
    found = {name: (s.get("version"), s.get("tries-left"), s.get("tries-done")) for name, s in slots.items()}
    assert found == {
        "glint_1.2+3-0.efi": ("1.2", 3, 0), "glint_1.3.efi": ("1.3", None, None), "glint_1.4+0-3.efi": ("1.4", 0, 3),
        "glint_1.5+2.efi": ("1.5", 2, 0), "other+x.efi": (None, None, None)}
    words = glint("image", "inspect", stick)
    assert "no tries left: it counts as bad" in words and "proven good" in words


# --- devices ---


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device: a disk that is not removable, of 200 MiB."""
    call("truncate", "-s", "200M", tmp_path / "device.raw")
    made = subprocess.run(["losetup", "--find", "--show", "--partscan", tmp_path / "device.raw"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["partx", "--delete", made.stdout.strip()], capture_output=True)
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def partition_of(device: Path, number: int) -> Path:
    """The partition's own device, also where the kernel has not found it by itself."""
    call("partx", "--update", device)
    path = Path(f"{device}p{number}")
    assert path.is_block_device()
    return path


def test_device(device: Path, inputs: list[object], tmp_path: Path, guest_disk: Path) -> None:
    create = ["image", "create", "-o", device, *inputs]
    words = refused(*create)
    assert "not a removable device" in words and "200 MiB" in words and "--not-removable" in words
    glint(*create, "--not-removable")
    assert list(partitions(device)) == ["ESP", "STATE"]
    assert glint_json("image", "inspect", device)["problems"] == []
    # The copy of the table is at the device's own end.
    assert os.pread(os.open(device, os.O_RDONLY), 8, 200 * MIB - 512) == b"EFI PART"
    first = partition_of(device, 1)
    words = refused(*create, "--not-removable")
    assert "there is data on" in words and f"{device.name}p1, 64 MiB" in words and "--force" in words
    assert "is a partition" in refused("image", "create", "-o", first, *inputs, "--not-removable", "--force")
    told = subprocess.run([GLINT, *map(str, create), "--not-removable", "--force"], capture_output=True, text=True)
    assert told.returncode == 0 and re.search(f"will be lost: {device}.*{device.name}p2, 64 MiB", told.stderr)
    glint("image", "edit", device, "--guest", f"web={guest_disk}")
    assert [g["name"] for g in glint_json("image", "inspect", "--check", device)["guests"]] == ["web"]
    assert "are needed for guest big" in refused("image", "edit", device, "--guest", f"big={big(tmp_path)},persist=stick")
    assert glint_json("image", "inspect", device)["problems"] == []


def big(tmp_path: Path) -> Path:
    call("truncate", "-s", "150M", tmp_path / "big.raw")
    return tmp_path / "big.raw"


def test_device_too_small(device: Path, inputs: list[object], tmp_path: Path) -> None:
    words = refused("image", "create", "-o", device, *inputs, "--not-removable", "--guest", f"big={big(tmp_path)},persist=stick")
    assert re.search(r"has 209715200 bytes, and \d+ are needed", words)
    assert not any((tmp_path / "device.raw").read_bytes())


def test_device_in_use(device: Path, inputs: list[object], tmp_path: Path) -> None:
    """A mounted partition, whatever was said: the kernel is asked."""
    (tmp_path / "tree").mkdir()
    call("mkfs.erofs", "--quiet", tmp_path / "fs.img", tmp_path / "tree")
    subprocess.run(["sfdisk", "--quiet", device], input="label: gpt\nsize=10M\n", text=True, check=True)
    partition_of(device, 1).write_bytes((tmp_path / "fs.img").read_bytes())
    before = (tmp_path / "device.raw").read_bytes()
    (tmp_path / "mnt").mkdir()
    call("mount", "-t", "erofs", "-o", "ro", f"{device}p1", tmp_path / "mnt")
    try:
        for command in (["image", "create", "-o", device, *inputs], ["image", "edit", device, "--remove-guest", "x"]):
            extra = ["--force", "--not-removable"] if "create" in command else []
            words = refused(*command, *extra)
            assert f"{device.name}p1 is mounted at {tmp_path}/mnt" in words
    finally:
        call("umount", tmp_path / "mnt")
    assert (tmp_path / "device.raw").read_bytes() == before


def test_half_a_device_is_no_stick(device: Path, inputs: list[object]) -> None:
    """Killed wherever it is: what was a stick is none, until it is one again."""
    create = [GLINT, "image", "create", "-o", device, *inputs, "--not-removable", "--force"]
    glint(*create[1:])
    whole = []
    for calls in range(1, 200):
        kill = f"inject=io_uring_enter:signal=KILL:when={calls}"
        killed = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", kill, *map(str, create)], capture_output=True)
        whole.append(inspected(device))
        assert whole[-1] or "no partition table" in refused("image", "inspect", device)
        if killed.returncode == 0:
            break
    print(f"killed at {len(whole) - 1} places; at {whole.count(False)} it was no stick yet")
    assert whole[-1] and whole.count(False) > 5
    glint(*create[1:])


def inspected(device: Path) -> bool:
    return subprocess.run([GLINT, "image", "inspect", device], capture_output=True).returncode == 0
