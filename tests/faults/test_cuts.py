"""Power cuts below the disk engine: what was flushed is there whatever else is lost, torn or arrives out of order.

The recorder (tests/faults/medium.h) is below everything: requests of a random guest, growing, closing, recovering from
the cut before. It proves itself: with one flush taken away, what that flush was for must be seen to be lost."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from host import BUILD

CUTS = BUILD / "tests/faults/cuts"
RECORDED = BUILD / "tests/faults/commands"

# Every way to lay out a disk; a chain is named by its depth.
DISKS = {
    "raw": ["--format", "raw"],
    "vhd-fixed": ["--format", "vhd", "--subformat", "fixed"],
    "vhd-dynamic": ["--format", "vhd"],
    "vhd-small-blocks": ["--format", "vhd", "--block", "512K"],
    "vhd-chain": ["--format", "vhd", "--block", "512K", "--depth", "3"],
    "vhdx-fixed": ["--format", "vhdx", "--subformat", "fixed", "--block", "1M"],
    "vhdx-dynamic": ["--format", "vhdx", "--block", "1M"],
    "vhdx-chain": ["--format", "vhdx", "--block", "1M", "--depth", "3"],
}
PROOFS = {
    "raw": ["--format", "raw"],
    "vhd-dynamic": ["--format", "vhd", "--block", "512K"],
    "vhd-chain": ["--format", "vhd", "--block", "512K", "--depth", "2"],
}


COMMANDS = {
    "merge-vhd": ["--command", "merge", "--format", "vhd"],
    "merge-vhdx": ["--command", "merge", "--format", "vhdx"],
    "compact-vhd": ["--command", "compact", "--format", "vhd"],
    "compact-vhdx": ["--command", "compact", "--format", "vhdx"],
    "compact-vhd-child": ["--command", "compact", "--format", "vhd", "--child"],
    "compact-vhdx-child": ["--command", "compact", "--format", "vhdx", "--child"],
}


def run(folder: Path, *args: str, program: Path = CUTS) -> dict:
    command = [str(program), "--dir", str(folder), *args]
    result = subprocess.run(command, capture_output=True, text=True)
    print(" ".join(command), result.stdout, result.stderr, sep="\n")
    assert result.returncode == 0
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("disk", DISKS)
def test_cuts(disk: str, tmp_path: Path, rng: random.Random) -> None:
    found = run(tmp_path, *DISKS[disk], "--seed", str(rng.randrange(2**32)), "--steps", "250", "--cuts", "300")
    assert found["cuts"] > 300 and found["flushes"] > 10


def proven(kinds: list[dict]) -> bool:
    needed, found = (sum(kind[key] for kind in kinds) for key in ("needed", "needed_found"))
    # What a guest was told is durable may have been made so by chance, by a flush that was begun earlier.
    if needed < 2 or found < 0.6 * needed:
        return False
    # Of the flushes that order writes, some must be seen to matter; what is outside a guest's flush may not.
    seen: dict[tuple[int, int], int] = {}
    for kind in kinds:
        if kind["of"] > 1:
            seen[kind["which"], kind["of"]] = seen.get((kind["which"], kind["of"]), 0) + kind["found"]
    return all(seen.values())


@pytest.mark.parametrize("disk", PROOFS)
def test_proof(disk: str, tmp_path: Path, rng: random.Random) -> None:
    """In one world in twenty luck hides what a kind of flush is for; in four together, it does not."""
    kinds: list[dict] = []
    for world in range(4):
        folder = tmp_path / str(world)
        folder.mkdir()
        kinds += run(folder, *PROOFS[disk], "--seed", str(rng.randrange(2**32)), "--steps", "200", "--proof")["kinds"]
        if proven(kinds):
            return
    raise AssertionError(f"flushes are taken away, and nothing is lost: {kinds}")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, tmp_path: Path, rng: random.Random) -> None:
    """glint disk merge and compact, cut anywhere: nothing is lost, and the same command goes on."""
    found = run(tmp_path, *COMMANDS[command], "--seed", str(rng.randrange(2**32)), "--cuts", "40", program=RECORDED)
    assert found["cuts"] > 80


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_proof(command: str, tmp_path: Path, rng: random.Random) -> None:
    """Without the flushes that come before a name changes, it is seen that something is lost."""
    found = run(tmp_path, *COMMANDS[command], "--seed", str(rng.randrange(2**32)), "--proof", program=RECORDED)
    assert found["found"] > 0


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_soak(command: str, tmp_path: Path, rng: random.Random, soak_seconds: float) -> None:
    seconds = str(round(soak_seconds))
    run(tmp_path, *COMMANDS[command], "--seed", str(rng.randrange(2**31)), "--cuts", "400", "--seconds", seconds, program=RECORDED)


@pytest.mark.soak
@pytest.mark.parametrize("disk", DISKS)
def test_cuts_soak(disk: str, tmp_path: Path, rng: random.Random, soak_seconds: float) -> None:
    seconds = str(round(soak_seconds))
    run(tmp_path, *DISKS[disk], "--seed", str(rng.randrange(2**32)), "--cuts", "1000", "--seconds", seconds)
