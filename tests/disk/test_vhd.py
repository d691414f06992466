"""VHD beside qemu-img and libvhdi, both ways: what one writes the other reads."""

import random
import re
import shutil
from pathlib import Path

import pytest

from beside import MIB, Model, call, engine, engine_info, qemu_img, vhdi_contents



def run(path: Path, model: Model, commands: str) -> None:
    engine("do", path, "vhd", model.path, input=commands)


def compare(path: Path, model: Model) -> None:
    qemu_img("compare", "-f", "vpc", "-F", "raw", path, model.path)


@pytest.mark.parametrize("size", [17 * MIB, 40 * MIB + 512 * 13, 4 * 1024 * MIB + 512])
@pytest.mark.parametrize("subformat, block", [("fixed", 0), ("dynamic", 0), ("dynamic", 512 << 10)])
def test_ours_read_by_qemu(subformat: str, block: int, size: int, tmp_path: Path, rng: random.Random) -> None:
    path, model = tmp_path / "a.vhd", Model(tmp_path / "model", size)
    engine("create", path, "vhd", subformat, size, block)
    run(path, model, model.change(rng, 60))
    compare(path, model)
    assert engine_info(path)[0]["size"] == size
    # It goes on after QEMU wrote to it.
    qemu_img("bench", "-f", "vpc", "-w", "-c", "40", "-s", "65536", "-S", "1048576", "--pattern", "165", path)
    engine("dump", path, "any", tmp_path / "dump")
    compare(path, Model(tmp_path / "dump"))


@pytest.mark.parametrize("options", ["subformat=fixed", "subformat=dynamic", "subformat=dynamic,force_size=on"])
def test_qemus_read_by_us(options: str, tmp_path: Path, rng: random.Random) -> None:
    path, model = tmp_path / "a.vhd", Model(tmp_path / "model", 33 * MIB + 1024)
    model.change(rng, 40)
    qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", options, model.path, path)
    engine("dump", path, "any", tmp_path / "dump")
    # Without force_size QEMU rounds a disk up to a geometry.
    dumped = (tmp_path / "dump").read_bytes()
    want = model.path.read_bytes()
    assert dumped[: len(want)] == want and not any(dumped[len(want) :])
    shown = re.search(r"virtual size: .*\((\d+) bytes\)", qemu_img("info", "-f", "vpc", path))
    assert shown and int(shown[1]) == len(dumped)
    # Ours to go on with.
    shutil.copy(tmp_path / "dump", model.path)
    model.size = len(dumped)
    run(path, model, model.change(rng, 40))
    compare(path, model)


def test_grown_read_by_qemu(tmp_path: Path, rng: random.Random) -> None:
    for subformat in ("fixed", "dynamic"):
        path, model = tmp_path / f"{subformat}.vhd", Model(tmp_path / f"{subformat}.raw", 20 * MIB)
        engine("create", path, "vhd", subformat, model.size, 0)
        for size in (20 * MIB + 512, 90 * MIB, 3000 * MIB):
            run(path, model, model.change(rng, 10))
            run(path, model, model.grow(size))
            run(path, model, model.change(rng, 10))
        compare(path, model)


def test_limit(tmp_path: Path, rng: random.Random) -> None:
    """2040 GiB, with data at both ends and in the middle."""
    size = 2040 << 30
    path, model = tmp_path / "a.vhd", Model(tmp_path / "model", size)
    engine("create", path, "vhd", "dynamic", size, 0)
    run(path, model, model.change(rng, 60))
    assert path.stat().st_size < 1 << 30
    compare(path, model)


@pytest.mark.parametrize("block", [0, 512 << 10])
def test_read_by_libvhdi(block: int, tmp_path: Path, rng: random.Random) -> None:
    size = 9 * MIB + 512 * 7
    path, model = tmp_path / "a.vhd", Model(tmp_path / "model", size)
    engine("create", path, "vhd", "dynamic", size, block)
    run(path, model, model.change(rng, 60))
    shown = call("vhdiinfo", path)
    assert re.search(r"Disk type\s*:\s*Dynamic", shown) and f"({size} bytes)" in shown
    assert vhdi_contents(path) == model.path.read_bytes()
    # A child, and a child of the child, in libvhdi's eyes.
    for name, parent in (("b.vhd", path), ("c.vhd", tmp_path / "b.vhd")):
        engine("create", tmp_path / name, "vhd", "differencing", 0, 512 << 10, parent)
        run(tmp_path / name, model, model.change(rng, 30))
    engine("dump", tmp_path / "c.vhd", "any", tmp_path / "dump")
    assert (tmp_path / "dump").read_bytes() == model.path.read_bytes()
    assert [image["subformat"] for image in engine_info(tmp_path / "c.vhd")] == ["differencing", "differencing", "dynamic"]
    shown = call("vhdiinfo", tmp_path / "c.vhd")
    assert re.search(r"Disk type\s*:\s*Differential", shown) and "b.vhd" in shown
