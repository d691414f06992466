"""`glint disk check`: each structure damaged, named and repaired or not; what a repair changed can be taken back."""

import json
import random
import struct
import subprocess
from pathlib import Path

import pytest

from beside import GLINT, MIB, Model, engine, glint, qemu_img, refused

KIB = 1024


def check(path: Path, *options: object) -> tuple[int, dict]:
    result = subprocess.run([GLINT, "disk", "check", path, "--json", *map(str, options)], capture_output=True, text=True)
    # Of a qcow2's damage the engine tells by itself where it is.
    assert result.returncode in (0, 2, 3) and (not result.stderr or path.suffix == ".qcow2"), result
    return result.returncode, json.loads(result.stdout)


def structures(found: dict, which: str = "findings") -> list[str]:
    return [finding["structure"] for finding in found[which] if finding["kind"] != "note"]


def made(tmp_path: Path, form: str, rng: random.Random, size: int = 24 * MIB) -> tuple[Path, Model]:
    model = Model(tmp_path / f"{form}.model", size)
    path = tmp_path / f"a.{form}"
    glint("disk", "create", path, "--size", size, "--block", "1M")
    engine("do", path, form, model.path, input=model.change(rng, 60))
    return path, model


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def clean(path: Path) -> None:
    status, found = check(path)
    assert status == 0 and structures(found) == [], found


def holds(path: Path, model: Model) -> None:
    engine("dump", path, path.suffix[1:], path.with_suffix(".dump"))
    assert path.with_suffix(".dump").read_bytes() == model.path.read_bytes()


def put_right(path: Path, model: Model, names: list[str], damage: bool = True) -> None:
    """It is found, repaired, taken back, found again, repaired again; then it is as it was before the damage."""
    damaged = path.read_bytes()
    status, found = check(path)
    assert status == (2 if damage else 3) and structures(found) == names, found
    assert path.read_bytes() == damaged
    for number in (1, 2):
        status, found = check(path, "--repair")
        assert status == 0 and structures(found) == [] and structures(found, "repaired")[: len(names)] == names, found
        kept = Path(found["kept"])
        assert kept.name == f"{path.name}.repair-{number}"
        clean(path)
        if number == 1:
            glint("disk", "check", path, "--undo", kept)
            assert path.read_bytes() == damaged
    holds(path, model)


# Where, in a file made here, and what is to be found. None: it can only be reported.
VHDX_DAMAGE = [
    (0, "file identifier", True),
    (64 * KIB + 8, "header", True),
    (128 * KIB + 100, "header", True),
    (192 * KIB + 20, "region table", True),
    (256 * KIB + 20, "region table", True),
    (2 * MIB, "image", False),
    (2 * MIB + 32 + 16, "image", False),
    (2 * MIB + 64 * KIB, "image", False),
]


@pytest.mark.parametrize("at, name, mends", VHDX_DAMAGE)
def test_vhdx_structures(at: int, name: str, mends: bool, tmp_path: Path, rng: random.Random) -> None:
    path, model = made(tmp_path, "vhdx", rng)
    clean(path)
    put(path, at, rng.randbytes(16) if mends else b"\xff" * 8)
    if mends:
        put_right(path, model, [name])
        qemu_img("check", "-f", "vhdx", path)
        qemu_img("compare", "-f", "vhdx", "-F", "raw", path, model.path)
        return
    before = path.read_bytes()
    status, found = check(path, "--repair")
    assert status == 2 and structures(found) == [name] and "kept" not in {k for k, v in found.items() if v}
    assert path.read_bytes() == before


def test_vhdx_both_headers(tmp_path: Path, rng: random.Random) -> None:
    path, _ = made(tmp_path, "vhdx", rng)
    put(path, 64 * KIB, bytes(16))
    put(path, 128 * KIB, bytes(16))
    status, found = check(path, "--repair")
    assert status == 2 and "neither header" in found["findings"][0]["text"], found


def test_vhdx_table(tmp_path: Path, rng: random.Random) -> None:
    """Entries that cannot be are named by number and offset, and left as they are."""
    path, _ = made(tmp_path, "vhdx", rng)
    table = path.read_bytes()[3 * MIB : 3 * MIB + 24 * 8]
    present = [n for n in range(24) if table[n * 8] & 7 == 6]
    first, second = present[:2]
    for entry, words in [
        (struct.pack("<Q", 1 << 40 | 6), "outside the file"),
        (table[second * 8 : second * 8 + 8], "something else"),
        (struct.pack("<Q", 2 * MIB | 6), "something else"),
        (struct.pack("<Q", 5 * MIB | 5), "cannot have"),
        (struct.pack("<Q", 5 * MIB | 7), "cannot have"),
    ]:
        put(path, 3 * MIB + first * 8, entry)
        before = path.read_bytes()
        status, found = check(path, "--repair")
        assert status == 2 and structures(found) == ["block allocation table"], found
        assert words in found["findings"][0]["text"] and path.read_bytes() == before
        assert found["findings"][0]["offset"] in (3 * MIB + first * 8, 3 * MIB + second * 8)
    # Of a disk that a block was taken from its space is what is left over.
    put(path, 3 * MIB + first * 8, bytes(8))
    status, found = check(path)
    assert status == 3 and structures(found) == ["space"], found
    assert check(path, "--repair")[0] == 0
    qemu_img("check", "-f", "vhdx", path)


def test_vhdx_log(tmp_path: Path, rng: random.Random) -> None:
    """A file that was not closed: said, and replayed by a repair only."""
    path, model = made(tmp_path, "vhdx", rng, 200 * MIB)
    commands = model.change(rng, 30).replace("reopen", "flush")
    engine("do", path, "vhdx", model.path, input=commands + "flush\ncrash\n")
    put_right(path, model, ["log"])
    qemu_img("check", "-f", "vhdx", path)


def test_vhd_crashed(tmp_path: Path, rng: random.Random) -> None:
    """What a crash leaves of a VHD is whole, or lacks its footer and has some space too many."""
    path, model = made(tmp_path, "vhd", rng, 200 * MIB)
    commands = model.change(rng, 30).replace("reopen", "flush")
    engine("do", path, "vhd", model.path, input=commands + "flush\ncrash\n")
    status, found = check(path)
    assert status in (0, 2, 3) and set(structures(found)) <= {"footer", "space"}, found
    assert check(path, "--repair")[0] == 0
    clean(path)
    holds(path, model)


def test_differencing(tmp_path: Path, rng: random.Random) -> None:
    """Children are checked by themselves; a bitmap that lacks is named; repaired parents stay their children's."""
    for form in ("vhd", "vhdx"):
        path, model = made(tmp_path, form, rng)
        child = tmp_path / f"b.{form}"
        glint("disk", "snapshot", path, child)
        engine("do", child, form, model.path, input=model.change(rng, 40))
        clean(child)
        put(path, 0 if form == "vhd" else 64 * KIB, bytes(16))
        assert check(path, "--repair")[0] == 0
        holds(child, model)
    table = 3 * MIB
    entry = next(n for n in range(12) if child.read_bytes()[table + n * 8] & 7 == 7)
    put(child, table + 2048 * 8, bytes(8))
    status, found = check(child, "--repair")
    assert status == 2 and "no sector bitmap" in found["findings"][0]["text"], (entry, found)


def test_vhd_footers(tmp_path: Path, rng: random.Random) -> None:
    path, model = made(tmp_path, "vhd", rng)
    clean(path)
    whole = path.read_bytes()
    for at, name in [(0, "footer's copy"), (len(whole) - 512, "footer"), (len(whole) - 400, "footer")]:
        path.write_bytes(whole)
        for old in tmp_path.glob("*.repair-*"):
            old.unlink()
        put(path, at, rng.randbytes(8))
        put_right(path, model, [name])
    # A file that was cut short by its footer.
    path.write_bytes(whole[:-512])
    for old in tmp_path.glob("*.repair-*"):
        old.unlink()
    put_right(path, model, ["footer"])
    assert path.read_bytes() == whole


def test_vhd_structures(tmp_path: Path, rng: random.Random) -> None:
    path, _ = made(tmp_path, "vhd", rng)
    whole = path.read_bytes()
    table = list(struct.unpack(">24I", whole[4096 : 4096 + 96]))
    first, *others = [n for n in range(24) if table[n] != 0xFFFFFFFF]
    second = min(others, key=lambda n: table[n])
    for at, data, words in [
        (512, b"x", "no VHD dynamic header at offset 512"),
        (600, b"x", "wrong checksum"),
        (4096 + first * 4, struct.pack(">I", 1 << 30), "is not in the file"),
        (4096 + first * 4, struct.pack(">I", 4), "lies over"),
        (4096 + first * 4, struct.pack(">I", table[second] + 1), "lies over"),
    ]:
        path.write_bytes(whole)
        put(path, at, data)
        before = path.read_bytes()
        status, found = check(path, "--repair")
        assert status == 2 and words in found["findings"][0]["text"], found
        assert path.read_bytes() == before
    path.write_bytes(whole)
    put(path, 4096 + first * 4, b"\xff" * 4)
    status, found = check(path)
    assert status == 3 and structures(found) == ["space"], found
    assert check(path, "--repair")[0] == 0
    # Both footers gone: no VHD is left to be seen, but its name says that it is to be one.
    put(path, 0, bytes(512))
    put(path, len(whole) - 512, bytes(512))
    assert check(path)[0] == 2


def test_raw_qcow2(tmp_path: Path, rng: random.Random) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(rng.randbytes(MIB))
    clean(raw)
    raw.write_bytes(rng.randbytes(1000))
    assert check(raw)[0] == 2
    raw.write_bytes(rng.randbytes(MIB))
    path = tmp_path / "a.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    clean(path)
    l1 = struct.unpack(">Q", path.read_bytes()[40:48])[0]
    put(path, l1, struct.pack(">Q", 1 << 63 | 1 << 40))
    status, found = check(path, "--repair")
    assert status == 2 and set(structures(found)) <= {"cluster", "tables"}, found


def test_refuses(tmp_path: Path, rng: random.Random) -> None:
    path, model = made(tmp_path, "vhdx", rng)
    assert "No such file" in refused("disk", "check", tmp_path / "none")
    assert "does not hold" in refused("disk", "check", path, "--undo", model.path)
    assert "nothing is wrong" in glint("disk", "check", path)
    path.with_suffix(".repair").write_bytes(b"glint repair 1\n\0" + struct.pack("<QQQ", 1 << 60, 0, 0))
    before = path.read_bytes()
    assert "shorter" in refused("disk", "check", path, "--undo", path.with_suffix(".repair"))
    assert path.read_bytes() == before
