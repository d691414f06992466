"""F5: 4 KiB random and 1 MiB sequential reads and writes of disks, natively, beside qemu-img bench on the same file."""

# Ours is tests/bench/diskload.c: the engine on one io_uring, which does request for request what `qemu-img bench` does.
# "Random" are steps of 0.618 of the disk, which come to every place before they come to one twice: the only disorder
# that qemu-img bench knows. Files are in the page cache unless a row says direct (O_DIRECT, cache=none). Ours and
# theirs take turns. Of QEMU's ways of doing I/O the one with the better median is the peer; all are rows.
#
# A file is made and filled by the engine, and is the same for both. What allocates gets a new file for each run. QEMU
# has no differencing VHDX: beside the chain of three stands its own format's, filled alike, which no goal speaks of.
#
# CPU is the process's, user and system, less that of a run of one request, by request.

import argparse
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import CLONE, Bench

MIB = 1 << 20
LOAD = CLONE / "build/release/tests/bench/diskload"
ENGINE = CLONE / "build/release/tests/disk/engine"
FOLDER = CLONE / "build/bench-disk"
QEMU_FORMATS = {"vhd": "vpc"}
GOALS = {"raw": 1.0, "vhd": 1.2, "vhdx": 2.0}


@dataclass
class Pattern:
    name: str
    size: int
    depth: int

    def step(self, disk: int) -> int:
        """In bytes: of all places nearest to 0.618 of the disk that has no divisor in common with their number."""
        if self.size == MIB:
            return self.size
        places = (disk - self.size) // self.size
        step = int(places * 0.618)
        while math.gcd(step, places) != 1:
            step += 1
        return step * self.size


RANDOM, SEQUENTIAL = Pattern("4 KiB random", 4096, 32), Pattern("1 MiB sequential", MIB, 8)


@dataclass
class Case:
    """Requests on one file; @peer_count where QEMU would take minutes for as many."""

    format: str
    kind: str
    op: str
    pattern: Pattern
    count: int
    peer_count: int = 0
    direct: bool = False
    fresh: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.pattern.name} {self.op}{', direct' if self.direct else ''}"


def call(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


class Runner:
    def __init__(self, size: int, wrapper: list[str]) -> None:
        self.size, self.wrapper = size, wrapper
        self.idle: dict[str, float] = {}

    def measure(self, command: list) -> tuple[float, float]:
        """The seconds that it prints, the CPU seconds that it takes."""
        words = [*self.wrapper, *(str(word) for word in command)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{shlex.join(words)}: exit {process.returncode}")
        seconds = text.split()[-2] if text.startswith("Sending") else text
        return float(seconds), usage.ru_utime + usage.ru_stime

    def ours(self, case: Case, path: Path, count: int) -> list:
        step = case.pattern.step(self.size)
        words = [LOAD, path, case.format, case.op, case.pattern.size, step, case.pattern.depth, count]
        return [*words, "direct"] if case.direct else words

    def theirs(self, case: Case, path: Path, count: int, aio: str) -> list:
        step = case.pattern.step(self.size)
        words = ["qemu-img", "bench", "-f", QEMU_FORMATS.get(case.format, case.format), "-c", count]
        words += ["-d", case.pattern.depth, "-s", case.pattern.size, "-S", step]
        words += ["-t", "none" if case.direct else "writeback", "-i", aio, *(["-n"] if aio == "native" else [])]
        return [*words, *(["-w"] if case.op == "write" else []), path]

    def sample(self, make: object, case: Case, path: Path, count: int, what: str) -> tuple[float, float]:
        """Requests a second, microseconds of CPU a request."""
        if case.fresh:
            new_file(path, case.format, self.size)
        with path.open("rb") as file:
            os.fdatasync(file.fileno())  # what others wrote is no longer on its way
        key = f"{what} {case.format} {case.pattern.name} {case.direct}"
        if key not in self.idle:
            # An allocating run's file must stay new.
            self.idle[key] = min(self.measure(make(1))[1] for _ in range(3))
            if case.fresh:
                new_file(path, case.format, self.size)
        seconds, cpu = self.measure(make(count))
        return count / seconds, max(0.0, cpu - self.idle[key]) / count * 1e6


def new_file(path: Path, format: str, size: int) -> None:
    path.unlink(missing_ok=True)
    if format == "raw":
        path.touch()
        os.truncate(path, size)
    else:
        call(ENGINE, "create", path, format, "dynamic", size, 0)


def fill(path: Path, format: str, size: int) -> None:
    new_file(path, format, size)
    call(LOAD, path, format, "write", MIB, MIB, 8, size // MIB + 1)


def fill_chain(folder: Path, size: int) -> tuple[Path, Path]:
    """Three deep: all is in the first, every ninth 64 KiB in the second, every seventh in the third."""
    ours, theirs = [folder / f"{n}.vhdx" for n in range(3)], [folder / f"{n}.qcow2" for n in range(3)]
    fill(ours[0], "vhdx", size)
    call("qemu-img", "convert", "-f", "vhdx", "-O", "qcow2", ours[0], theirs[0])
    for n in (1, 2):
        call(ENGINE, "create", ours[n], "vhdx", "differencing", 0, 0, ours[n - 1])
        call("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", theirs[n - 1], theirs[n])
        stride = (9 if n == 1 else 7) * 65536
        count = size // stride
        call(LOAD, ours[n], "vhdx", "write", 65536, stride, 8, count)
        call("qemu-img", "bench", "-f", "qcow2", "-w", "-c", count, "-d", 8, "-s", 65536, "-S", stride, theirs[n])
    return ours[2], theirs[2]


def compare(bench: Bench, runner: Runner, case: Case, paths: tuple[Path, Path], runs: int) -> None:
    ways = ["io_uring", "native" if case.direct else "threads"]
    peer_count = case.peer_count or case.count
    peer = case if paths[0] == paths[1] else Case("qcow2", case.kind, case.op, case.pattern, case.count)
    makers = {"glint": (lambda n: runner.ours(case, paths[0], n), case, paths[0], case.count)}
    for aio in ways:
        makers[f"QEMU {aio}"] = (
            lambda n, aio=aio: runner.theirs(peer, paths[1], n, aio), peer, paths[1], peer_count,
        )  # fmt: skip
    samples: dict[str, list[tuple[float, float]]] = {who: [] for who in makers}
    for _ in range(runs):
        for who, (make, of, path, count) in makers.items():
            samples[who].append(runner.sample(make, of, path, count, who))
    for aio in ways:
        bench.command(runner.theirs(peer, paths[1], peer_count, aio))
    unit, scale = ("k/s", 1e-3) if case.pattern is RANDOM else ("MiB/s", 1.0)
    speed = {who: bench.row(f"{case.name}: {who}", unit, [s[0] * scale for s in samples[who]]) for who in makers}
    cpu = {who: bench.row("  CPU a request", "us", [s[1] for s in samples[who]]) for who in makers}
    best = max((who for who in makers if who != "glint"), key=lambda who: speed[who])
    label = f"F5 {case.name}"
    if peer is case:
        bench.ratio(label, speed["glint"] / speed[best], GOALS[case.format], "higher")
    else:
        print(f"  {'beside QEMU with a chain of qcow2':<44} {speed['glint'] / speed[best]:>10.3f}")
    if cpu[best] > 0:
        print(f"  {'  CPU a request, beside it':<44} {cpu['glint'] / cpu[best]:>10.3f}")


def cases(format: str) -> list[Case]:
    """Counts are such that none takes longer than seconds."""
    kind = {"raw": "raw", "vhd": "VHD dynamic", "vhdx": "VHDX dynamic"}[format]
    slow = 300 if format == "vhd" else 0  # QEMU flushes the file for each write to another block than the last
    found = [
        Case(format, kind, "read", RANDOM, 100_000),
        Case(format, kind, "read", SEQUENTIAL, 2000),
        Case(format, kind, "write", RANDOM, 20_000, slow),
        Case(format, kind, "write", SEQUENTIAL, 1000),
    ]
    if format != "vhd":
        found += [
            Case(format, kind, op, pattern, count, direct=True)
            for op in ("read", "write")
            for pattern, count in ((RANDOM, 20_000), (SEQUENTIAL, 500))
        ]
    if format != "raw":
        new = kind + ", new"
        found += [
            Case(format, new, "write", RANDOM, 2000, slow, fresh=True),
            Case(format, new, "write", SEQUENTIAL, 500, fresh=True),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of each disk (default 1024)")
    parser.add_argument("--only", help="raw, vhd, vhdx or chain")
    parser.add_argument("--with", dest="wrapper", default="", help="a command that runs each measured one: 'nice -n -10'")
    args = parser.parse_args()
    size = args.size * MIB
    bench, runner = Bench("disk", "native"), Runner(size, shlex.split(args.wrapper))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for format in ("raw", "vhd", "vhdx"):
        if args.only not in (None, format):
            continue
        path = FOLDER / f"disk.{format}"
        fill(path, format, size)
        for case in cases(format):
            if case.fresh:
                path = FOLDER / f"new.{format}"
            compare(bench, runner, case, (path, path), args.runs)
    if args.only in (None, "chain"):
        chain = fill_chain(FOLDER, size)
        for pattern, count in ((RANDOM, 100_000), (SEQUENTIAL, 1000)):
            compare(bench, runner, Case("vhdx", "VHDX chain of three", "read", pattern, count), chain, args.runs)
    shutil.rmtree(FOLDER)
    bench.finish(args.json)


main()
