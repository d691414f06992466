"""What all tests share: the machines they run on, the seed of random ones, the marker of long ones.

`host` runs stock guests (this machine where it can, an emulated one where not); it is booted once, when the first test
asks for it. `native` is this machine within the build root, for tiny guests on its own /dev/kvm.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "host"))

from host import Host, LocalHost, describe, start_host  # noqa: E402

SEED = int(os.environ.get("GLINT_SEED") or random.SystemRandom().randrange(2**31))
SOAK_SECONDS = float(os.environ.get("GLINT_SOAK_SECONDS") or 0)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: runs for hours; only with ./test --soak HOURS")


def pytest_report_header() -> list[str]:
    return [f"host: {describe()}", f"seed: {SEED}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soak runs take the tests marked soak and no others, and share the time among them; other runs leave them out."""
    global SOAK_SECONDS
    soaked = [item for item in items if item.get_closest_marker("soak")]
    left_out = [item for item in items if bool(item.get_closest_marker("soak")) != bool(SOAK_SECONDS)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    SOAK_SECONDS /= max(1, len(soaked))


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    machine = start_host()
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def native() -> Iterator[Host]:
    machine = LocalHost("native")
    yield machine
    machine.close()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that come again with the same seed, whichever other tests run."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture
def soak_seconds() -> float:
    """How long a test marked soak runs."""
    return SOAK_SECONDS
