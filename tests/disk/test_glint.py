"""`glint disk` on real images, beside qemu-img: what it makes, tells, copies; what it refuses; what a kill leaves."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from beside import ENGINE, GLINT, Model, engine, glint, glint_json, qemu_img, refused

MIB = 1 << 20
FORMS = [("raw", []), ("vhd", []), ("vhd", ["--subformat", "fixed"]), ("vhdx", ["--block", "1M"]), ("vhdx", ["--subformat", "fixed"])]
QEMU_NAMES = {"raw": "raw", "vhd": "vpc", "vhdx": "vhdx"}


def qemu_compare(a: Path, b: Path) -> None:
    forms = [QEMU_NAMES.get(path.suffix[1:], "raw") for path in (a, b)]
    qemu_img("compare", "-f", forms[0], "-F", forms[1], a, b)


def filled(path: Path, rng: random.Random, size: int, count: int = 40) -> Path:
    """A sparse raw disk with random data."""
    Model(path, size).change(rng, count)
    return path


def in_full_file_system(tmp_path: Path, size: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in a mount namespace where the folder tmp_path/full is a file system of @size."""
    (tmp_path / "full").mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o size={size} tmpfs {tmp_path}/full && \"$@\"; rc=$?; ls -A {tmp_path}/full; exit $rc"
    return subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)], capture_output=True, text=True)


# --- create, info, map ---


@pytest.mark.parametrize("form, options", FORMS)
def test_create(form: str, options: list[str], tmp_path: Path) -> None:
    path, size = tmp_path / f"a.{form}", 70 * MIB
    glint("disk", "create", path, "--size", "70M", *options)
    told = json.loads(qemu_img("info", "-f", QEMU_NAMES[form], "--output=json", path))
    assert told["virtual-size"] == size
    ours = glint_json("disk", "info", path)
    assert (ours["format"], ours["size"], ours["parents"], ours["in-use"]) == (form, size, [], False)
    assert ours["file-size"] == path.stat().st_size
    assert "--subformat" not in options or ours["subformat"] == "fixed"
    assert str(size) in glint("disk", "info", path)
    whole = glint_json("disk", "map", path)
    assert sum(part["length"] for part in whole) == size
    before = path.read_bytes()
    assert "File exists" in refused("disk", "create", path, "--size", "1M")
    assert path.read_bytes() == before


def test_create_refuses(tmp_path: Path) -> None:
    for args, words in [
        (["a.vhd"], "give --size"),
        (["a", "--size", "1M"], "--format"),
        (["a.vhdx", "--size", "1M", "--block", "3M"], "power of two"),
        (["a.vhd", "--size", "3T"], "use VHDX"),
        (["a.vhd", "--size", "1M", "--sector", "4096"], "use VHDX"),
        (["none/a.vhd", "--size", "1M"], "No such file"),
        (["a.raw", "--size", "1M", "--parent", "a.vhd"], "a.vhd"),
        (["a.raw", "b.raw", "--size", "1M"], "one word too many"),
        ([], "FILE is missing"),
    ]:
        assert words in refused("disk", "create", *args, cwd=tmp_path), args
    assert list(tmp_path.iterdir()) == []


def test_full_file_system(tmp_path: Path, rng: random.Random) -> None:
    """Nothing half-made stays; what could be gone on with says so."""
    result = in_full_file_system(tmp_path, "1M", GLINT, "disk", "create", tmp_path / "full/a.vhd", "--size", "2000G")
    assert result.returncode == 1 and "No space left" in result.stderr and result.stdout == "", result
    source = filled(tmp_path / "a.raw", rng, 40 * MIB, 200)
    for form in ("raw", "vhd", "vhdx"):
        result = in_full_file_system(tmp_path, "4M", GLINT, "disk", "convert", source, tmp_path / f"full/b.{form}")
        assert result.returncode == 1 and "No space left" in result.stderr and result.stdout == "", result


def test_map(tmp_path: Path) -> None:
    """Data where it was written, of the image that has it; what a file system does not hold is zeroes."""
    path = tmp_path / "a.vhdx"
    glint("disk", "create", path, "--size", "16M", "--block", "1M")
    model = Model(tmp_path / "model", 16 * MIB)
    with model.path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"x" * MIB)
    engine("do", path, "vhdx", model.path, input=f"write {2 * MIB} {MIB}\n")
    child = tmp_path / "b.vhdx"
    glint("disk", "snapshot", path, child)
    with model.path.open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"y" * 65536)
    engine("do", child, "vhdx", model.path, input=f"write {8 * MIB} 65536\n")
    parts = [(part["start"], part["length"], part["level"]) for part in glint_json("disk", "map", child) if part["kind"] == "data"]
    assert parts == [(2 * MIB, MIB, 1), (8 * MIB, 65536, 0)]
    at = {part["level"]: part["offset"] for part in glint_json("disk", "map", child) if part["kind"] == "data"}
    assert path.read_bytes()[at[1] : at[1] + MIB] == b"x" * MIB
    assert child.read_bytes()[at[0] : at[0] + 65536] == b"y" * 65536
    assert [parent["file"] for parent in glint_json("disk", "info", child)["parents"]] == ["a.vhdx"]
    assert "parent 1:" in glint("disk", "info", child, "--chain")
    # Without its parent it can still be told about, but not looked into.
    path.rename(tmp_path / "elsewhere.vhdx")
    assert "not found" in glint("disk", "info", child) and "parents-missing" in glint_json("disk", "info", child)
    for args in (["info", child, "--chain"], ["map", child]):
        assert "a.vhdx" in refused("disk", *args)


def test_pool(tmp_path: Path) -> None:
    """A parent outside the child's folder is reached in a pool that is named, and never outside of it."""
    for name in ("base", "vm"):
        (tmp_path / name).mkdir()
    for form in ("vhd", "vhdx"):
        base, child = tmp_path / f"base/a.{form}", tmp_path / f"vm/b.{form}"
        glint("disk", "create", base, "--size", "8M")
        assert "--pool" in refused("disk", "create", child, "--parent", base)
        glint("disk", "create", child, "--parent", base, "--pool", tmp_path)
        assert refused("disk", "map", child)
        assert refused("disk", "map", child, "--pool", tmp_path / "vm")
        assert glint_json("disk", "map", child, "--pool", tmp_path)[0]["length"] == 8 * MIB
        assert "does not lie in" in refused("disk", "map", child, "--pool", tmp_path / "base")


# --- convert ---


@pytest.mark.parametrize("form, options", FORMS)
def test_convert(form: str, options: list[str], tmp_path: Path, rng: random.Random) -> None:
    source = filled(tmp_path / "a.raw", rng, 50 * MIB + 512 * 5)
    path = tmp_path / f"b.{form}"
    glint("disk", "convert", source, path, "--verify", *options)
    qemu_compare(path, source)
    back = tmp_path / "back.raw"
    glint("disk", "convert", path, back)
    assert back.read_bytes() == source.read_bytes()
    # Zeroes take no room.
    if "fixed" not in options:
        assert path.stat().st_blocks <= source.stat().st_blocks * 1.2 + 4096
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["a.raw", path.name, "back.raw"])


def test_convert_zeroes_in_data(tmp_path: Path) -> None:
    """A source without holes whose data is zeroes becomes a small image."""
    source = tmp_path / "a.raw"
    source.write_bytes(bytes(16 * MIB) + b"x" * 4096 + bytes(MIB - 4096))
    glint("disk", "convert", source, tmp_path / "b.raw")
    assert (tmp_path / "b.raw").read_bytes() == source.read_bytes()
    assert (tmp_path / "b.raw").stat().st_blocks * 512 <= MIB


@pytest.mark.parametrize("form, subformat", [("vpc", "dynamic"), ("vpc", "fixed"), ("vhdx", "dynamic"), ("vhdx", "fixed")])
def test_convert_from_qemus(form: str, subformat: str, tmp_path: Path, rng: random.Random) -> None:
    source, path = filled(tmp_path / "a.raw", rng, 34 * MIB), tmp_path / "b"
    options = f"subformat={subformat}" + (",force_size=on" if form == "vpc" else "")
    qemu_img("convert", "-f", "raw", "-O", form, "-o", options, source, path)
    glint("disk", "convert", path, tmp_path / "c.raw", "--verify")
    qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "c.raw", source)


def test_convert_chain(tmp_path: Path, rng: random.Random) -> None:
    """What comes out has all of the chain, also where zeroes of a child hide its parent's data."""
    for form in ("vhd", "vhdx"):
        model = Model(tmp_path / f"{form}.raw", 20 * MIB)
        path = tmp_path / f"0.{form}"
        glint("disk", "create", path, "--size", model.size, "--block", "1M")
        engine("do", path, form, model.path, input=model.change(rng, 30))
        for depth in (1, 2):
            child = tmp_path / f"{depth}.{form}"
            glint("disk", "snapshot", path, child, "--block", "2M")
            path = child
            engine("do", path, form, model.path, input=model.change(rng, 30))
        glint("disk", "convert", path, tmp_path / f"{form}-whole.vhdx", "--verify")
        qemu_compare(tmp_path / f"{form}-whole.vhdx", model.path)


@pytest.mark.parametrize("compressed", [[], ["-c"]])
def test_convert_from_qcow2(compressed: list[str], tmp_path: Path, rng: random.Random) -> None:
    source, path = filled(tmp_path / "a.raw", rng, 20 * MIB), tmp_path / "b.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *compressed, source, path)
    glint("disk", "convert", path, tmp_path / "c.vhdx", "--verify")
    qemu_compare(tmp_path / "c.vhdx", source)
    assert sum(part["length"] for part in glint_json("disk", "map", path)) == 20 * MIB
    assert glint_json("disk", "info", path)["format"] == "qcow2"


def test_convert_refuses(tmp_path: Path, rng: random.Random) -> None:
    source = filled(tmp_path / "a.raw", rng, 4 * MIB)
    (tmp_path / "b.raw").write_bytes(b"mine")
    (tmp_path / "hollow.vhdx").write_bytes(b"vhdxfile" + bytes(MIB))
    for args, words in [
        (["a.raw", "b.raw"], "File exists"),
        (["a.raw", "a.raw"], "File exists"),
        (["none.raw", "c.raw"], "No such file"),
        (["hollow.vhdx", "c.raw"], "header"),
        (["a.raw", "c.vhd", "--sector", "4096"], "use VHDX"),
        ([".", "c.raw"], "neither a regular file"),
    ]:
        assert words in refused("disk", "convert", *args, cwd=tmp_path), args
    assert (tmp_path / "b.raw").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 3
    # A disk that somebody writes to.
    path = tmp_path / "used.vhdx"
    glint("disk", "convert", source, path)
    with subprocess.Popen([ENGINE, "do", path, "vhdx", source], stdin=subprocess.PIPE) as user:
        assert user.stdin
        while not glint_json("disk", "info", path)["in-use"]:
            time.sleep(0.01)
        assert "another process uses it" in refused("disk", "convert", path, tmp_path / "c.raw")
        assert "another process uses it" in refused("disk", "resize", path, "8M")
        assert "in use:" in glint("disk", "info", path)
        user.stdin.close()


def kill_midway(command: list[object], ready: object) -> bool:
    """Kills a command as soon as @ready() says so. False: it had ended before."""
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if ready():  # type: ignore[operator]
                process.send_signal(signal.SIGKILL)
                return process.wait() == -signal.SIGKILL
            time.sleep(0.0005)
        return False


@pytest.mark.parametrize("form", ["raw", "vhd", "vhdx"])
def test_convert_killed(form: str, tmp_path: Path, rng: random.Random) -> None:
    """What a kill leaves has another name; --resume makes the whole of it, whatever there is."""
    source = tmp_path / "a.raw"
    with source.open("wb") as file:
        for _ in range(24):
            file.write(rng.randbytes(16 * MIB))
            file.seek(16 * MIB, os.SEEK_CUR)
        file.truncate(24 * 32 * MIB)
    path, part, state = (tmp_path / f"b.{form}{end}" for end in ("", ".part", ".resume"))
    command = [GLINT, "disk", "convert", source, path]
    killed = kill_midway(command, lambda: state.exists())
    assert killed and not path.exists() and part.exists(), "it was too fast to be killed"
    done = json.loads(state.read_text())["done"]
    assert 0 < done < source.stat().st_size
    assert "--resume" in refused(*command[1:])
    # Of another source it is not gone on with.
    os.utime(source, ns=(1, 1))
    assert "source has changed" in refused(*command[1:], "--resume")
    os.remove(state)
    glint(*command[1:], "--resume", "--verify")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.raw", path.name]
    qemu_compare(path, source)


def test_convert_resumes_where_it_was(tmp_path: Path, rng: random.Random) -> None:
    """It does not begin anew: what is said to be done is not written again."""
    source = filled(tmp_path / "a.raw", rng, 64 * MIB, 200)
    glint("disk", "convert", source, tmp_path / "b.raw")
    stat = source.stat()
    what = {
        "source": [[stat.st_dev, stat.st_ino, stat.st_size, *divmod(stat.st_mtime_ns, 10**9)]],
        "format": "raw", "subformat": "", "size": stat.st_size, "block": 0, "sector": 512,
    }  # fmt: skip
    whole = (tmp_path / "b.raw").read_bytes()
    (tmp_path / "c.raw.part").write_bytes(bytes(32 * MIB) + b"?" * (32 * MIB))
    # The second half is not known to be right; of this test's making, it is also not empty where it should be.
    os.truncate(tmp_path / "c.raw.part", 32 * MIB)
    os.truncate(tmp_path / "c.raw.part", 64 * MIB)
    (tmp_path / "c.raw.resume").write_text(json.dumps({"what": what, "done": 32 * MIB}))
    glint("disk", "convert", source, tmp_path / "c.raw", "--resume")
    assert (tmp_path / "c.raw").read_bytes() == bytes(32 * MIB) + whole[32 * MIB :]


def test_convert_state_left_alone(tmp_path: Path, rng: random.Random) -> None:
    """A state whose image was removed speaks of no other: a new image begins at its beginning."""
    source = tmp_path / "a.raw"
    with source.open("wb") as file:
        for _ in range(24):
            file.write(rng.randbytes(16 * MIB))
            file.seek(16 * MIB, os.SEEK_CUR)
        file.truncate(24 * 32 * MIB)
    path, part, state = (tmp_path / f"b.vhdx{end}" for end in ("", ".part", ".resume"))
    command = [GLINT, "disk", "convert", source, path]
    assert kill_midway(command, lambda: state.exists()), "it was too fast to be killed"
    assert state.name in refused(*command[1:])
    part.unlink()
    assert kill_midway(command, lambda: part.exists() and part.stat().st_blocks > 8192), "it was too fast to be killed"
    glint(*command[1:], "--resume")
    qemu_compare(path, source)


def test_resize(tmp_path: Path, rng: random.Random) -> None:
    for form in ("raw", "vhd", "vhdx"):
        source, path = filled(tmp_path / f"{form}-model", rng, 10 * MIB), tmp_path / f"a.{form}"
        glint("disk", "convert", source, path, "--source-format", "raw")
        glint("disk", "resize", path, "3G")
        os.truncate(source, 3 << 30)
        qemu_compare(path, source)
        assert "--shrink" in refused("disk", "resize", path, "5M")
        if form == "raw":
            glint("disk", "resize", path, "5M", "--shrink")
            assert path.read_bytes() == source.read_bytes()[: 5 * MIB]
        else:
            assert "cannot be made smaller" in refused("disk", "resize", path, "5M", "--shrink")


def test_snapshot_refuses(tmp_path: Path) -> None:
    glint("disk", "create", tmp_path / "a.raw", "--size", "1M")
    assert "convert it" in refused("disk", "snapshot", tmp_path / "a.raw", tmp_path / "b.raw")
    glint("disk", "create", tmp_path / "a.vhdx", "--size", "1M")
    glint("disk", "create", tmp_path / "b.vhdx", "--size", "1M")
    assert "File exists" in refused("disk", "snapshot", tmp_path / "a.vhdx", tmp_path / "b.vhdx")


# --- help ---


def test_help_manual_completion() -> None:
    """Each knows every command and every option of it."""
    folder = GLINT.parent
    page, script = (folder / "glint.1").read_text(), (folder / "glint.bash").read_text()
    names = re.findall(r"^  glint disk ([a-z]+)", glint("--help"), re.M)
    assert len(names) >= 6
    for name in names:
        options = re.findall(r"^  --([a-z-]+)", glint("disk", name, "--help"), re.M)
        assert f".SS glint disk {name}" in page
        assert options and all("\\fB\\-\\-" + option.replace("-", "\\-") + "\\fR" in page for option in options)
        words = f"COMP_WORDS=(glint disk {name} --); COMP_CWORD=3; _glint; echo \"${{COMPREPLY[@]}}\""
        shown = subprocess.run(["bash", "-c", f"compopt() {{ :; }}\n{script}\n{words}"], capture_output=True, text=True)
        assert shown.stdout.split() == [f"--{option}" for option in options], shown
