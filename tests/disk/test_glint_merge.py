"""`glint disk merge` and `compact`: the same contents before, amid (killed at many points) and after; ids and children."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from beside import GLINT, MIB, Model, engine, glint, glint_json, qemu_img, refused

QEMU = {"vhd": "vpc", "vhdx": "vhdx"}


def holds(path: Path, model: Model) -> None:
    engine("dump", path, path.suffix[1:], path.with_suffix(".dump"))
    assert path.with_suffix(".dump").read_bytes() == model.path.read_bytes()
    path.with_suffix(".dump").unlink()


def chain(folder: Path, form: str, rng: random.Random, depth: int, size: int = 24 * MIB, changes: int = 50) -> tuple[list[Path], Model]:
    """Images, the child last, of different blocks."""
    model, paths = Model(folder / "model", size), []
    for level in range(depth):
        path = folder / f"{level}.{form}"
        if paths:
            glint("disk", "snapshot", paths[-1], path, "--block", "2M" if level % 2 else "1M")
        else:
            glint("disk", "create", path, "--size", size, "--block", "1M")
        engine("do", path, form, model.path, input=model.change(rng, changes))
        paths.append(path)
    return paths, model


def killed_after(command: list[object], seconds: float) -> bool:
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


# --- merge ---


@pytest.mark.parametrize("form", ["vhd", "vhdx"])
def test_merge(form: str, tmp_path: Path, rng: random.Random) -> None:
    """One after the other; zeroes of the child hide what the parent had; the child may be larger."""
    (top, middle, last), model = chain(tmp_path, form, rng, 3)
    engine("do", last, form, model.path, input=model.grow(40 * MIB) + model.change(rng, 20))
    holds(last, model)
    told = glint_json("disk", "merge", last)
    assert told["parent"] == str(middle) and told["size"] == model.size and not last.exists()
    assert glint("disk", "check", middle)
    holds(middle, model)
    assert "is the disk from now on" in glint("disk", "merge", middle)
    assert glint("disk", "check", top) and not middle.exists()
    holds(top, model)
    qemu_img("compare", "-f", QEMU[form], "-F", "raw", top, model.path)
    assert "with a parent" in refused("disk", "merge", top)


def test_merge_other_children(tmp_path: Path, rng: random.Random) -> None:
    """Another child of the parent is refused from then on (vhdx)."""
    (parent, child), model = chain(tmp_path, "vhdx", rng, 2)
    other = tmp_path / "other.vhdx"
    glint("disk", "snapshot", parent, other)
    glint("disk", "merge", child)
    holds(parent, model)
    assert "has changed since" in refused("disk", "map", other)


@pytest.mark.parametrize("form", ["vhd", "vhdx"])
def test_merge_killed(form: str, tmp_path: Path, rng: random.Random) -> None:
    """After each of many kills the child reads as before, or the parent holds all."""
    (parent, child), model = chain(tmp_path, form, rng, 2, 96 * MIB, 300)
    saved = [(path, path.rename(path.with_suffix(".saved"))) for path in (parent, child)]
    kills, cut = 0, 0
    for number in range(24):
        if not child.exists():
            for path, copy in saved:
                subprocess.run(["cp", "--sparse=always", copy, path], check=True)
        kills += killed_after([GLINT, "disk", "merge", child], 0.001 * (1 + number % 12))
        # A log of the parent's is replayed by whoever writes to it next; a check with a repair does.
        subprocess.run([GLINT, "disk", "check", parent, "--repair"], check=False, capture_output=True)
        cut += child.exists() and parent.stat().st_blocks > saved[0][1].stat().st_blocks
        holds(child if child.exists() else parent, model)
    assert kills > 0 and cut > 0, (kills, cut)
    if child.exists():
        glint("disk", "merge", child)
    glint("disk", "check", parent, "--repair")
    holds(parent, model)


# --- compact ---


@pytest.mark.parametrize("form, options", [("raw", []), ("vhd", []), ("vhd", ["--subformat", "fixed"]), ("vhdx", ["--block", "1M"]), ("vhdx", ["--subformat", "fixed"])])
def test_compact(form: str, options: list[str], tmp_path: Path, rng: random.Random) -> None:
    path, model = tmp_path / f"a.{form}", Model(tmp_path / "model", 32 * MIB)
    glint("disk", "create", path, "--size", model.size, *options)
    model.path.write_bytes(rng.randbytes(16 * MIB) + bytes(16 * MIB))
    # Written as data, zeroes and all; then half of the rest is trimmed.
    engine("do", path, form, model.path, input="".join(f"write {n * MIB} {MIB}\n" for n in range(32)) + f"discard 0 {4 * MIB}\n")
    with model.path.open("r+b") as file:
        file.write(bytes(4 * MIB))
    path.chmod(0o640)
    before, size = glint_json("disk", "info", path), path.stat().st_size
    (tmp_path / f"a.{form}.compact").write_bytes(b"left by a cut")
    told = glint_json("disk", "compact", path)
    after = glint_json("disk", "info", path)
    assert told["allocated"] == path.stat().st_blocks * 512 < told["allocated-before"] - 15 * MIB
    assert path.stat().st_size < size or form == "raw" or "fixed" in options
    for key in ("id", "data-id", "format", "subformat", "size", "block", "sector", "physical-sector"):
        assert before.get(key) == after.get(key), key
    assert path.stat().st_mode & 0o777 == 0o640
    glint("disk", "check", path)
    holds(path, model)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, "model"])


@pytest.mark.parametrize("form", ["vhd", "vhdx"])
def test_compact_chain(form: str, tmp_path: Path, rng: random.Random) -> None:
    """A parent and a child each stay what they were to one another."""
    paths, model = chain(tmp_path, form, rng, 3)
    for path in paths:
        glint("disk", "compact", path)
        glint("disk", "check", path)
        holds(paths[-1], model)


@pytest.mark.parametrize("form", ["vhd", "vhdx"])
def test_compact_killed(form: str, tmp_path: Path, rng: random.Random) -> None:
    (path,), model = chain(tmp_path, form, rng, 1, 96 * MIB, 300)
    kills = 0
    for _ in range(20):
        kills += killed_after([GLINT, "disk", "compact", path], rng.uniform(0.001, 0.1))
        # Nothing of the image was changed: it needs no repair.
        holds(path, model)
    assert kills > 0
    glint("disk", "compact", path)
    holds(path, model)
    glint("disk", "check", path)


def test_compact_refuses(tmp_path: Path, rng: random.Random) -> None:
    (path,), model = chain(tmp_path, "vhdx", rng, 1)
    (tmp_path / "link.vhdx").hardlink_to(path)
    assert "other names" in refused("disk", "compact", path)
    (tmp_path / "link.vhdx").unlink()
    full = tmp_path / "full"
    full.mkdir()
    room = path.stat().st_blocks * 512 // 1024 + 1024
    script = f"mount -t tmpfs -o size={room}k tmpfs {full} && cp --sparse=always {path} {full}/a.vhdx && {GLINT} disk compact {full}/a.vhdx; echo $?; ls {full}"
    result = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["1", "a.vhdx"] and "are needed beside it, there are" in result.stderr, result
    (tmp_path / "soft.vhdx").symlink_to(path)
    glint("disk", "compact", tmp_path / "soft.vhdx")
    assert (tmp_path / "soft.vhdx").is_symlink()
    holds(path, model)
