"""Power cuts below the keeper's journal: what was acknowledged is there whatever else is lost, torn or out of order.

The recorder is that of test_cuts.py. It proves itself: with a flush taken away, a cut is found that loses something."""

import json
import random
import subprocess

import pytest

from host import BUILD

CUTS = BUILD / "tests/faults/journal_cuts"


def run(*args: str) -> dict:
    command = [str(CUTS), *args]
    result = subprocess.run(command, capture_output=True, text=True)
    print(" ".join(command), result.stdout, result.stderr, sep="\n")
    assert result.returncode == 0
    return json.loads(result.stdout.splitlines()[-1])


def test_cuts(rng: random.Random) -> None:
    found = run("--seed", str(rng.randrange(2**32)), "--steps", "150", "--cuts", "500")
    assert found["cuts"] > 1500 and found["flushes"] > 100 and found["changes"] > 200


def test_proof(rng: random.Random) -> None:
    """A header that is not flushed costs nothing: a whole snapshot counts without it, and the next flush is its own."""
    kinds = run("--seed", str(rng.randrange(2**32)), "--steps", "80", "--proof")
    assert kinds["append"]["found"] == kinds["append"]["flushes"] > 20, kinds
    assert kinds["snapshot"]["found"] > kinds["snapshot"]["flushes"] / 2 > 0, kinds


@pytest.mark.soak
def test_cuts_soak(rng: random.Random, soak_seconds: float) -> None:
    run("--seed", str(rng.randrange(2**32)), "--cuts", "2000", "--seconds", str(round(soak_seconds)))
