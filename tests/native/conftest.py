"""Fixtures of the native tests: tiny guests, and disks for them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiny import Tiny


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tiny]]:
    """Starts tiny guests (see Tiny) and leaves none of them behind."""
    if not os.path.exists("/dev/kvm"):
        pytest.skip("this machine has no /dev/kvm")
    started: list[Tiny] = []

    def start(*args: object, **options: object) -> Tiny:
        machine = Tiny(*args, **options)  # type: ignore[arg-type]
        started.append(machine)
        return machine

    yield start
    for machine in started:
        machine.close()


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., Path]:
    """Makes an empty raw disk."""

    def make(mib: int = 16, name: str = "disk.raw") -> Path:
        path = tmp_path / name
        path.touch()
        os.truncate(path, mib << 20)
        return path

    return make
