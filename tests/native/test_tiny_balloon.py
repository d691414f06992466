"""The balloon: what a guest gives back leaves its memory file, stays away over save and restore, and is usable again."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
MIB = 1 << 20
GIVEN = 16 * MIB
SLACK = 128 << 10  # what the guest touches meanwhile: rings, lists


def taken(vm: Tiny) -> int:
    """Bytes that guest memory takes of the host."""
    fds = Path(f"/proc/{vm.process.pid}/fd")
    found = [os.stat(fd).st_blocks * 512 for fd in fds.iterdir() if "guest-ram" in os.readlink(fd)]
    assert len(found) == 1, f"{len(found)} memory files"
    return found[0]


@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM])
def test_give_and_take(tiny: Start, tmp_path: Path, vmm: Path) -> None:
    vm = tiny("balloon mib=16", "--balloon", "on", vmm=vmm)
    vm.expect("BALLOON touched")
    full = taken(vm)
    memory = vm.call("status")["memory"]
    assert vm.call("balloon", target=memory - GIVEN) == {"target": memory - GIVEN, "actual": memory}
    vm.expect("BALLOON inflated")
    assert taken(vm) <= full - GIVEN + SLACK
    assert vm.call("status")["balloon"] == {"target": memory - GIVEN, "actual": memory - GIVEN}

    state = tmp_path / "state"
    vm.save(state)
    assert state.stat().st_blocks * 512 < full - GIVEN + MIB
    vm.call("quit")
    assert vm.wait() == 0
    vm = tiny("", "--balloon", "on", restore=state, vmm=vmm)
    assert vm.call("status")["balloon"] == {"target": memory - GIVEN, "actual": memory - GIVEN}
    assert taken(vm) <= full - GIVEN + SLACK
    vm.send("x")
    vm.expect("BALLOON deflated")
    assert vm.call("status")["balloon"]["actual"] == memory
    usual = taken(vm)
    assert usual >= GIVEN
    vm.send("x")
    vm.expect("BALLOON reported")
    assert taken(vm) <= usual - GIVEN + SLACK
    vm.send("x")
    vm.expect("TEST balloon ok")
    assert vm.wait() == 0


def test_memory_is_taken_once(tiny: Start) -> None:
    """What the guest touched stands in its memory file, and no second time in the monitor's own memory."""
    vm = tiny("balloon mib=16", "--balloon", "on")
    vm.expect("BALLOON touched")
    assert taken(vm) >= GIVEN
    rollup = Path(f"/proc/{vm.process.pid}/smaps_rollup").read_text()
    anonymous = int(re.search(r"^Anonymous: +(\d+) kB", rollup, re.M).group(1)) << 10
    assert anonymous < 4 * MIB


def test_calls(tiny: Start) -> None:
    vm = tiny("idle", "--balloon", "on")
    vm.expect("IDLE")
    memory = vm.call("status")["memory"]
    assert "has" in vm.try_call("balloon", target=memory + 1)["error"]["message"]
    assert "error" in vm.try_call("balloon", target=-1)
    assert "error" in vm.try_call("balloon")
    # No driver: nobody can be asked, and nothing is known.
    assert vm.call("balloon-stats") == {"stats": {}, "asked": False}
    bare = tiny("idle")
    bare.expect("IDLE")
    assert "--balloon" in str(bare.try_call("balloon", target=memory))
    assert "balloon" not in bare.call("status")


def test_reset_empties_it(tiny: Start) -> None:
    """After a reset the guest has all its memory, and the wish is still there."""
    vm = tiny("balloon mib=16", "--balloon", "on")
    vm.expect("BALLOON touched")
    memory = vm.call("status")["memory"]
    vm.call("balloon", target=memory - GIVEN)
    vm.expect("BALLOON inflated")
    vm.call("reset")
    vm.expect("BALLOON inflated")
    assert vm.call("status")["balloon"] == {"target": memory - GIVEN, "actual": memory - GIVEN}
