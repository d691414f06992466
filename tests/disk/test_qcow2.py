"""qcow2 beside qemu-img: what it writes we read, by every option that changes how, alone and in chains."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from beside import ENGINE, MIB, Model, call, engine, engine_info, qemu_img

# 13 sectors more than whole clusters, whatever their size.
SIZE = 9 * MIB + 512 * 13

OPTIONS = [
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "compat=1.1",
    "compat=1.1,cluster_size=512",
    "compat=1.1,cluster_size=4k",
    "compat=1.1,cluster_size=2M",
    "lazy_refcounts=on",
    "refcount_bits=1",
    "preallocation=metadata",
    "preallocation=falloc",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M,compression_type=zstd",
    "compression_type=zstd,cluster_size=4k",
]


def write(path: Path, model: Model, rng: random.Random, count: int, *options: str) -> None:
    """The same random writes, zeroes and discards by qemu-io to an image and to its model."""
    both, image = [], []
    for _ in range(count):
        offset, length = model.some_range(rng, 1 << 18)
        kind = rng.choice([f"write -P {rng.randrange(1, 255)}"] * 4 + ["write -z", "write -z -u"])
        both += ["-c", f"{kind} {offset} {length}"]
        # Flushing in between spreads tables over the file.
        image += [*both[-2:], *(["-c", "flush"] if rng.random() < 0.1 else [])]
    call("qemu-io", "-f", "qcow2", *options, *image, path)
    call("qemu-io", "-f", "raw", *both, model.path)


def compare(path: Path, model: Model) -> None:
    engine("dump", path, "any", path.with_suffix(".dump"))
    # By name, not by bytes: the failure then says where.
    call("cmp", path.with_suffix(".dump"), model.path)


def refused(*command: object) -> str:
    result = subprocess.run([str(word) for word in (ENGINE, *command)], capture_output=True, text=True)
    assert result.returncode == 1, result
    return result.stderr


@pytest.mark.parametrize("options", OPTIONS)
def test_read(options: str, tmp_path: Path, rng: random.Random) -> None:
    path, model = tmp_path / "a.qcow2", Model(tmp_path / "model", SIZE)
    qemu_img("create", "-f", "qcow2", "-o", options, path, SIZE)
    compare(path, model)
    for _ in range(2):
        write(path, model, rng, 30)
        compare(path, model)
    # 2 MiB of noise in one place: runs of clusters that lie behind one another.
    with model.path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(rng.randbytes(2 * MIB))
    call("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", model.path, path)
    compare(path, model)
    info = engine_info(path)[0]
    assert (info["format"], info["size"], info["remark"]) == ("qcow2", SIZE, "")


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", ["512", "4k", "64k", "2M"])
def test_compressed(kind: str, cluster: str, tmp_path: Path, rng: random.Random) -> None:
    path, model = tmp_path / "a.qcow2", Model(tmp_path / "model", SIZE)
    model.change(rng, 20)
    # What can be compressed, by a little and by a lot, beside noise that cannot.
    with model.path.open("r+b") as file:
        for at in range(0, 4 * MIB, 100_000):
            file.seek(at)
            file.write(rng.randbytes(rng.choice([10, 500, 2000])) * rng.choice([2, 20]))
    options = f"cluster_size={cluster},compression_type={kind}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, model.path, path)
    compare(path, model)
    assert sum(part["compressed"] for part in json.loads(qemu_img("map", "--output=json", path)))
    # Written over in part, which makes plain clusters of some.
    write(path, model, rng, 15)
    compare(path, model)
    # Requests that begin and end within clusters, many at a time: more of them than clusters are kept.
    call(ENGINE.parent / "disk_tool", "reads", path.name, model.path.name, rng.randrange(1 << 31), 300, cwd=tmp_path)


def test_compressed_subclusters(tmp_path: Path, rng: random.Random) -> None:
    path, model = tmp_path / "a.qcow2", Model(tmp_path / "model", SIZE)
    model.change(rng, 40)
    options = "extended_l2=on,cluster_size=32k,compression_type=zstd"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, model.path, path)
    compare(path, model)
    write(path, model, rng, 15)
    compare(path, model)


@pytest.mark.parametrize("bottom", ["raw", "qcow2", "vhdx", "vpc"])
def test_chain(bottom: str, tmp_path: Path, rng: random.Random) -> None:
    """Five deep, the bottom smaller than the rest, of clusters that differ."""
    model = Model(tmp_path / "model", 5 * MIB)
    model.change(rng, 20)
    base = tmp_path / f"base.{bottom}"
    qemu_img("convert", "-f", "raw", "-O", bottom, *(["-o", "force_size=on"] if bottom == "vpc" else []), model.path, base)
    model.grow(SIZE)
    formats, backing = [bottom.replace("vpc", "vhd")], base
    for level, options in enumerate(["compat=0.10,cluster_size=4k", "cluster_size=64k", "extended_l2=on", "cluster_size=512"]):
        path = tmp_path / f"{level}.qcow2"
        name = bottom if backing == base else "qcow2"
        qemu_img("create", "-f", "qcow2", "-F", name, "-b", backing.name, "-o", options, path, SIZE)
        compare(path, model)
        write(path, model, rng, 15)
        compare(path, model)
        formats.insert(0, "qcow2")
        backing = path
    assert [image["format"] for image in engine_info(backing)] == formats
    assert {image["subformat"] for image in engine_info(backing)[:-1]} == {"differencing"}


def test_snapshots_and_marks(tmp_path: Path, rng: random.Random) -> None:
    """Snapshots share clusters with the disk, which goes on; what was not closed is read as it is."""
    path, model = tmp_path / "a.qcow2", Model(tmp_path / "model", SIZE)
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", path, SIZE)
    for count in (1, 2):
        write(path, model, rng, 15)
        qemu_img("snapshot", "-c", f"snapshot{count}", path)
        write(path, model, rng, 15)
        compare(path, model)
        assert engine_info(path)[0]["remark"] == f"{count} internal snapshots, which are not read"
    # As a crash leaves it: the process ends amid its work, which is copying all that a snapshot has too.
    qemu_img("snapshot", "-c", "snapshot3", path)
    crash = ["-c", "write -P 77 0 64k", "-c", "flush", "-c", "sigraise 9"]
    subprocess.run(["qemu-io", "-f", "qcow2", *crash, path], capture_output=True)
    call("qemu-io", "-f", "raw", "-c", "write -P 77 0 64k", model.path)
    compare(path, model)
    assert engine_info(path)[0]["remark"].startswith("was not closed; ")


def test_large(tmp_path: Path, rng: random.Random) -> None:
    """Tables larger than what is kept of them: pages come and go."""
    path, model = tmp_path / "a.qcow2", Model(tmp_path / "model", 64 * 1024 * MIB)
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", path, model.size)
    write(path, model, rng, 200)
    call(ENGINE.parent / "disk_tool", "reads", path.name, model.path.name, 1, 400, cwd=tmp_path)
    qemu_img("create", "-f", "qcow2", path, 64 << 40)
    call("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {(64 << 40) - 4096} 4096", path)
    assert engine_info(path)[0]["size"] == 64 << 40


def test_refused(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.qcow2", tmp_path / "folder"
    raw = Model(tmp_path / "base", MIB)
    qemu_img("create", "-f", "qcow2", path, MIB)
    words = refused("do", path, "any", raw.path)
    assert "a qcow2 image can only be read" in words and "glint disk convert" in words
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, MIB)
    assert "its data are in another file" in refused("info", path)
    secret = ["--object", "secret,id=s,data=secret"]
    qemu_img("create", "-f", "qcow2", *secret, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, MIB)
    assert "it is encrypted (LUKS)" in refused("info", path)
    # Without a format nothing is looked for in the backing file, which a guest may have written.
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "base", path)
    assert engine_info(path)[1]["format"] == "raw"
    contents = path.read_bytes()
    at = contents.index(0xE2792ACA.to_bytes(4))
    path.write_bytes(contents[:at] + bytes(16) + contents[at + 16 :])
    words = refused("info", path)
    assert 'does not say what format its backing file, "base", has' in words and "qemu-img rebase -u" in words
    # A raw backing file is raw, whatever it looks like.
    qemu_img("create", "-f", "qcow2", raw.path, MIB)
    os.truncate(raw.path, MIB)
    path.write_bytes(contents)
    assert [image["format"] for image in engine_info(path)] == ["qcow2", "raw"]
    # Others than what is in the folder are not reached; nor is itself.
    folder.mkdir()
    for name, words in (
        (str(raw.path), "absolute"),
        ("folder/../base", ".."),
        ("nbd://host/base", "is not a file's name"),
        ("json:{}", "is not a file's name"),
        ("a.qcow2", "the chain of parents comes back to it"),
    ):
        qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", name, "-u", path, MIB)
        text = refused("info", path)
        assert "open its parent" in text and (words in text or words in ("absolute", ".."))
