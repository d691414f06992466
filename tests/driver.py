"""Runs the parts of the tests and says which failed and where the time went. Started by ./test inside the build root.

A part is a way of testing (format, tidy, unit, fuzz) or a folder of pytest files; one whose folder is empty is not
listed. All pytest parts run in one pytest, with a worker per CPU that takes file after file: a worker's nested host
serves all its files, and keeps not much more than one CPU busy. Random parts take one seed.

Soak runs (--soak HOURS) give half their time to the fuzz targets, whose corpora grow in the cache from run to run, and
half to the tests marked soak. What each has got in all is kept in the cache (soak.json), written as it goes, so a soak
that was cut short is gone on with by starting another.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLONE = Path(os.environ["GLINT_CLONE"])
CACHE = Path(os.environ["GLINT_CACHE"])
BUILD = CLONE / "build"
SANITIZERS = {"ASAN_OPTIONS": "abort_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
FUZZ_SECONDS = 10
SOAK_SLICE_SECONDS = 600
CPUS = len(os.sched_getaffinity(0))


def run(*command: str | Path, env: dict[str, str] = {}) -> bool:
    return subprocess.run(command, cwd=CLONE, env=os.environ | env).returncode == 0


def in_parallel(work: Callable[[Path], bool], things: Iterable[Path]) -> bool:
    """Does the work for all of them, as many at a time as there are CPUs; true when all of it went well."""
    with ThreadPoolExecutor(CPUS) as pool:
        return all(list(pool.map(work, things)))


def sources() -> list[Path]:
    return sorted(
        path for top in ("lib", "vmm", "screen", "node", "cli", "tests", "image") for path in (CLONE / top).rglob("*.[ch]")
    )


def compile_all() -> bool:
    return all([run(CLONE / "tools/compile", kind) for kind in ("release", "sanitize")])


def check_format() -> bool:
    command = ["clang-format-19", "--dry-run", "-Werror", *sources()]
    words = subprocess.run(command, capture_output=True, text=True).stderr
    files = sorted({Path(path).relative_to(CLONE) for path in re.findall(r"^(.+?):\d+:\d+: error:", words, re.M)})
    if files:
        print("not formatted; mend by: clang-format-19 -i", *files, flush=True)
    elif words:
        print(words, flush=True)
    return not words


def headers_of(folder: Path) -> dict[str, list[Path]]:
    """The headers of ours that each object was compiled with, as ninja noted them."""
    headers: dict[str, list[Path]] = {}
    text = subprocess.run(["ninja", "-C", folder, "-t", "deps"], capture_output=True, text=True, check=True).stdout
    for block in text.split("\n\n"):
        target, _, rest = block.strip().partition(": ")
        paths = [(folder / line.strip()).resolve() for line in rest.splitlines()[1:]]
        headers[target] = sorted(path for path in paths if path.suffix == ".h" and CLONE in path.parents)
    return headers


def compiled() -> dict[Path, tuple[Path, list[Path]]]:
    """Each C file that is compiled but the tests', with the build folder whose command clang-tidy takes for it, and
    its headers.

    Tests are left out: the analyzer does not know that cmocka's assertions do not return."""
    files: dict[Path, tuple[Path, list[Path]]] = {}
    for folder in (BUILD / "sanitize", BUILD / "release"):
        headers = headers_of(folder)
        for entry in json.loads((folder / "compile_commands.json").read_text()):
            file = (folder / entry["file"]).resolve()
            is_test = file.stem.endswith("_test") or CLONE / "tests" in file.parents
            if file.suffix == ".c" and BUILD not in file.parents and not is_test:
                files[file] = folder, headers.get(entry["output"], [])
    return files


def check_tidy() -> bool:
    """clang-tidy takes seconds a file: what was clean is not looked at again until it or a header of its changes."""
    files = compiled()
    clean = CACHE / "tidy"
    clean.mkdir(parents=True, exist_ok=True)
    rules = (CLONE / ".clang-tidy").read_bytes()

    def check(file: Path) -> bool:
        folder, headers = files[file]
        seen = hashlib.sha256(rules)
        for path in (file, *headers):
            seen.update(bytes(path.relative_to(CLONE)) + path.read_bytes())
        mark = clean / seen.hexdigest()
        command = ["clang-tidy-19", "--quiet", "--extra-arg=-Wno-unknown-warning-option", "-p", folder, file]
        if not mark.exists():
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                print(result.stdout or result.stderr, end="", flush=True)
                return False
            mark.touch()
        return True

    return in_parallel(check, sorted(files))


def run_unit() -> bool:
    test = ("meson", "test", "--no-rebuild", "--print-errorlogs", "--num-processes", str(CPUS), "-C")
    return all([run(*test, BUILD / folder) for folder in ("sanitize", "release")])


def fuzz_targets() -> list[Path]:
    folder = BUILD / "sanitize/tests/fuzz"
    return sorted(path for path in folder.glob("*") if path.is_file() and os.access(path, os.X_OK))


def last_number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def fuzz(target: Path, seconds: float, seed: int, corpus: Path) -> int:
    """Fuzzes one target, adding to a corpus. Prints one line; returns the executions, 0 when it failed."""
    kept = CLONE / "tests/fuzz/corpus" / target.name
    artifacts = BUILD / "fuzz"
    for folder in (corpus, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [target, corpus, *([kept] if kept.exists() else [])]
    command += [f"-max_total_time={seconds:.0f}", f"-seed={max(1, seed)}", "-timeout=10", "-rss_limit_mb=4096"]
    command += ["-print_final_stats=1", f"-artifact_prefix={artifacts}/{target.name}-"]
    result = subprocess.run(command, cwd=CLONE, env=os.environ | SANITIZERS, stderr=subprocess.PIPE)
    words = result.stderr.decode(errors="replace")
    executions = last_number(r"stat::number_of_executed_units: (\d+)", words)
    if result.returncode or not executions:
        print(f"{target.name}: FAILED\n{words[-6000:]}", flush=True)
        print(f"again: {shlex.join(str(word) for word in command)}", flush=True)
        return 0
    covered, edges = last_number(r"cov: (\d+)", words), last_number(r"\((\d+) inline 8-bit counters\)", words)
    inputs = last_number(r"corp: (\d+)", words)
    print(f"{target.name}: {executions} executions, {covered} of {edges} edges, {inputs} inputs", flush=True)
    return executions


def run_fuzz(seed: int) -> bool:
    """A short run begins from the corpus in the clone alone, so that a seed means the same everywhere."""
    shutil.rmtree(BUILD / "corpus", ignore_errors=True)
    return in_parallel(
        lambda target: fuzz(target, FUZZ_SECONDS, seed, BUILD / "corpus" / target.name) > 0, fuzz_targets()
    )


def print_report(part_seconds: dict[str, float], failed: list[str]) -> None:
    print("\nseconds by part:", ", ".join(f"{part} {seconds:.0f}" for part, seconds in part_seconds.items()))
    print(f"FAILED: {', '.join(failed)}" if failed else "all parts passed", flush=True)


def read_pytest(report: Path) -> tuple[dict[str, float], set[str]]:
    """The seconds of each pytest part, by the folder its tests lie in, and the parts in which a test failed."""
    seconds: dict[str, float] = {}
    failed = set()
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        words = case.get("classname", "").split(".")  # tests.PART.FILE; a file that cannot be read has none
        part = words[1] if len(words) > 1 else "pytest"
        seconds[part] = seconds.get(part, 0) + float(case.get("time", 0))
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(part)
    return seconds, failed


class Totals:
    """What soak runs have done in all, kept in the cache."""

    def __init__(self) -> None:
        self._path = CACHE / "soak.json"
        self._lock = threading.Lock()
        self._totals = json.loads(self._path.read_text()) if self._path.exists() else {}

    def add(self, name: str, **amounts: float) -> None:
        with self._lock:
            total = self._totals.setdefault(name, {})
            for unit, amount in amounts.items():
                total[unit] = round(total.get(unit, 0) + amount)
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(self._totals, indent=1, sort_keys=True) + "\n")
            new.rename(self._path)

    def print(self) -> None:
        print("\nsoaked in all (kept in the cache):")
        for name, total in self._totals.items():
            print(f"  {name}: " + ", ".join(f"{amount} {unit}" for unit, amount in total.items()))


class Tests:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def part(self, name: str, work: Callable[[], bool]) -> bool:
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        good = work()
        self.seconds[name] = time.monotonic() - began
        if not good:
            self.failed.append(name)
        return good

    def pytest(self, paths: list[str], env: dict[str, str] = {}) -> None:
        print(f"\n== {' '.join(paths)}", flush=True)
        report = BUILD / "pytest.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={CLONE}", "-ra"]
        command += ["--tb=short", "--durations=15", "-o", "faulthandler_timeout=900", f"--junitxml={report}", *paths]
        # /tmp is in memory, and a stick's test leaves hundreds of MiB.
        command += ["-o", "tmp_path_retention_policy=failed"]
        if not env and any((CLONE / path).is_dir() for path in paths):
            command += ["--numprocesses", str(CPUS), "--dist", "loadfile"]
        rc = subprocess.run(command, cwd=CLONE, env=os.environ | env).returncode
        seconds, failed = read_pytest(report) if report.exists() else ({}, set())
        self.seconds |= seconds
        no_tests = 5
        if rc and not (rc == no_tests and "GLINT_SOAK_SECONDS" in env):
            self.failed += sorted(failed) or ["pytest"]

    def soak(self, totals: Totals) -> None:
        targets, half = fuzz_targets(), self.args.soak * 1800
        # Each target gets its share in slices, and what a slice did is recorded at its end.
        share = half * CPUS / max(1, len(targets))
        slices = max(1, round(share / SOAK_SLICE_SECONDS))

        def fuzz_slice(turn: int) -> Callable[[Path], bool]:
            def work(target: Path) -> bool:
                executions = fuzz(target, share / slices, self.args.seed + turn, CACHE / "corpus" / target.name)
                totals.add(f"fuzz {target.name}", seconds=share / slices, executions=executions)
                return executions > 0

            return work

        if targets:
            self.part("fuzz", lambda: all([in_parallel(fuzz_slice(turn), targets) for turn in range(slices)]))
        folders = [f"tests/{part}" for part in FOLDERS if part in parts()]
        self.pytest(folders, {"GLINT_SOAK_SECONDS": str(half)})
        for part, seconds in self.seconds.items():
            if part in FOLDERS:
                totals.add(f"tests {part}", seconds=seconds)
        totals.print()

    def run(self) -> int:
        print(f"seed: {self.args.seed}", flush=True)
        os.environ["GLINT_SEED"] = str(self.args.seed)
        if not self.part("compile", compile_all):
            print_report(self.seconds, self.failed)
            return 1
        if self.args.soak:
            self.soak(Totals())
        else:
            self.run_parts(self.args.names or list(parts()))
        print_report(self.seconds, self.failed)
        return 1 if self.failed else 0

    def run_parts(self, names: list[str]) -> None:
        for name, (_, work) in WAYS.items():
            if name in names:
                self.part(name, lambda: work(self.args.seed))
        paths = [f"tests/{name}" if name in FOLDERS else name for name in names if name not in WAYS]
        if paths:
            self.pytest(paths)


WAYS: dict[str, tuple[str, Callable[[int], bool]]] = {
    "format": ("clang-format on every C file", lambda seed: check_format()),
    "tidy": ("clang-tidy on every C file", lambda seed: check_tidy()),
    "unit": ("unit tests beside the code, sanitized and as shipped", lambda seed: run_unit()),
    "fuzz": (f"each fuzz target for {FUZZ_SECONDS} s", run_fuzz),
}
FOLDERS = {
    "disk": "disk images, beside tools not ours",
    "native": "tiny guests on this machine's own /dev/kvm",
    "guests": "stock guests on a host that can run them",
    "stick": "the stick, booted",
    "faults": "what breaks: kills, full disks, power cuts",
}


def parts() -> dict[str, str]:
    """The parts there are, in the order in which they run."""
    there = {name: words for name, (words, _) in WAYS.items() if name != "fuzz"}
    if any((CLONE / "tests/fuzz").glob("*.c")):
        there["fuzz"] = WAYS["fuzz"][0]
    return there | {name: words for name, words in FOLDERS.items() if any((CLONE / "tests" / name).glob("test_*.py"))}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./test")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part, or a test file; all parts when none is given")
    parser.add_argument("--list", action="store_true", help="the parts there are")
    seed = os.environ.get("GLINT_SEED") or random.SystemRandom().randrange(2**31)
    parser.add_argument("--seed", type=int, default=seed, help="of the random parts; printed by each run")
    parser.add_argument("--soak", type=float, metavar="HOURS", default=0, help="long tests and fuzzing, for so long")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:8} {words}" for name, words in parts().items()))
        return 0
    for name in args.names:
        if name not in parts() and not (CLONE / name.split("::")[0]).is_file():
            parser.error(f"there is no part or test file '{name}'; ./test --list lists the parts")
    return Tests(args).run()


if __name__ == "__main__":
    sys.exit(main())
