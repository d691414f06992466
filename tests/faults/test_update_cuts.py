"""Power cuts while a stick is updated: something good boots whatever is lost, torn or out of order.

The recorder is that of test_cuts.py. It proves itself: with a flush taken away, a cut is found that loses something.
What is left is looked at by our own reader, and some of it by fsck.vfat."""

import json
import random
import re
import subprocess
from pathlib import Path

import pytest

from host import BUILD

CUTS = BUILD / "tests/faults/update_cuts"
# What fsck.vfat may find: room that nobody uses, names that nobody has, a table whose two copies a cut came between.
HARMLESS = [
    r"fsck\.fat .*", r"Reclaimed \d+ unused clusters? .*", r"Free cluster summary wrong .*", r"  Auto-correcting\.",
    r"\d+: .*", r"Orphaned long file name part .*", r".*Auto-deleting\.", r"FATs differ .*", r"  Using first FAT\.", r"Leaving filesystem unchanged\.",
    r".*: \d+ files, \d+/\d+ clusters", r"",
]


def run(*args: str) -> dict:
    command = [str(CUTS), *args]
    result = subprocess.run(command, capture_output=True, text=True)
    print(" ".join(command), result.stdout, result.stderr, sep="\n")
    assert result.returncode == 0
    return json.loads(result.stdout.splitlines()[-1])


def test_cuts(rng: random.Random, tmp_path: Path) -> None:
    found = run("--seed", str(rng.randrange(2**32)), "--updates", "3", "--cuts", "200", "--keep", str(tmp_path))
    assert found["cuts"] > 500 and found["flushes"] > 40 and found["kept"] == 40
    said = set()
    for image in tmp_path.glob("*.img"):
        fsck = subprocess.run(["fsck.vfat", "-n", image], capture_output=True, text=True)
        assert fsck.returncode in (0, 1), fsck
        for line in fsck.stdout.splitlines():
            assert any(re.fullmatch(pattern, line) for pattern in HARMLESS), (image.name, fsck.stdout)
            said.add(re.sub(r"\d+|/.*", "", line))
    print(*sorted(said), sep="\n")


def test_proof(rng: random.Random) -> None:
    """Flushes that another one follows at once are not missed alone."""
    kinds = run("--seed", str(rng.randrange(2**32)), "--proof")
    assert kinds["update"]["found"] > 0 and kinds["bless"]["found"] == kinds["bless"]["flushes"] > 0, kinds


@pytest.mark.soak
def test_cuts_soak(rng: random.Random, soak_seconds: float) -> None:
    run("--seed", str(rng.randrange(2**32)), "--cuts", "500", "--seconds", str(round(soak_seconds)))
