"""glint disk convert of a 4 GiB half-empty raw image, beside qemu-img convert: until the new image is durable."""

# Each program is run as its own documentation recommends for speed, in every way that might be the faster one; the best
# of the peer's counts. A run ends when the copy is on its medium, for which both are asked in their own way: glint always
# does that, qemu-img with cache mode writeback (a flush at its end) or none (direct). The source is in the page cache.

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

from common import CACHE, CLONE, Bench, arguments

GLINT = CLONE / "build/release/cli/glint"
FOLDER = CACHE / "bench-disk-convert"
MIB = 1 << 20
SIZE = 4096 * MIB


def make_source(path: Path) -> None:
    """Data and holes in turns, of 64 KiB to 16 MiB."""
    rng = random.Random(1)
    block = rng.randbytes(16 * MIB)
    with path.open("wb") as file:
        at = 0
        while at < SIZE:
            length = rng.randrange(1, 256) * 65536
            file.seek(at)
            file.write(block[: min(length, SIZE - at)])
            at += 2 * length
        file.truncate(SIZE)
        os.fsync(file.fileno())


def run(argv: list, target: Path) -> float:
    target.unlink(missing_ok=True)
    os.sync()
    began = time.monotonic()
    subprocess.run([str(a) for a in argv], check=True)
    seconds = time.monotonic() - began
    target.unlink()
    return seconds


def main() -> None:
    args = arguments(__doc__, 3)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        source = FOLDER / "source.raw"
        make_source(source)
        bench = Bench("disk-convert", "native")
        for form, peers_form, options in (("raw", "raw", []), ("vhdx", "vhdx", []), ("vhd", "vpc", ["-o", "force_size=on"])):
            target = FOLDER / f"copy.{form}"
            ways = {
                "glint": [GLINT, "disk", "convert", source, target],
                "qemu-img writeback": ["-t", "writeback", "-W", "-m", "16"],
                "qemu-img none": ["-t", "none", "-T", "writeback", "-W", "-m", "16"],
            }
            for name in list(ways)[1:]:
                ways[name] = ["qemu-img", "convert", *ways[name], "-f", "raw", "-O", peers_form, *options, source, target]
                bench.command(ways[name])
            samples: dict[str, list[float]] = {name: [] for name in ways}
            # In turns, so that the machine's moods meet all of them.
            for _ in range(args.runs):
                for name, argv in ways.items():
                    samples[name].append(run(argv, target))
            medians = {name: bench.row(f"{name}, to {form}", "s", times) for name, times in samples.items()}
            best = min(seconds for name, seconds in medians.items() if name != "glint")
            bench.ratio(f"speed to {form}, of the best qemu-img", best / medians["glint"], 1.5, "higher")
        bench.finish(args.json)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


main()
