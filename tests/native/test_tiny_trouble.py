"""A guest in trouble: its panic and its watchdog are told to the clients, and what was asked for is done."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import Tiny

Start = Callable[..., Tiny]


def told(vm: Tiny, method: str) -> list[dict]:
    vm.call("status")
    return [event["params"] for event in vm.events if event["method"] == method]


@pytest.mark.parametrize("action", ["run", "pause", "reset", "stop"])
def test_panic(tiny: Start, action: str) -> None:
    vm = tiny("panic", "--on-panic", action)
    vm.expect("PANIC ready")
    vm.send("x")
    if action == "stop":
        assert vm.wait() == 0
        return
    if action == "pause":
        vm.wait_for_state("paused")
        assert vm.call("status")["why"] == "the guest panicked"
        vm.call("resume")
    if action == "reset":
        vm.expect("PANIC ready")
        assert vm.call("status")["why"] == ""
    else:
        vm.expect("PANIC told")
    assert told(vm, "guest-panic") == [{"why": "the guest panicked", "action": action}]
    if action == "run":
        assert vm.call("status")["why"] == "the guest panicked"
        vm.send("x")
        vm.finish()


def test_crash_kernel(tiny: Start) -> None:
    """A guest whose crash kernel is at work is left alone."""
    vm = tiny("panic events=3", "--on-panic", "stop")
    vm.expect("PANIC ready")
    vm.send("x")
    vm.expect("PANIC told")
    assert [event["action"] for event in told(vm, "guest-panic")] == ["run"]
    vm.send("x")
    vm.finish()


def test_watchdog_resets(tiny: Start) -> None:
    vm = tiny("watchdog ms=800", "--watchdog", "reset")
    vm.expect("WATCHDOG fed")
    vm.send("x")
    vm.expect("WATCHDOG stage 2")
    vm.expect("WATCHDOG reset")
    vm.expect("TEST watchdog ok")
    assert vm.wait() == 0


@pytest.mark.parametrize("action", ["run", "pause", "stop"])
def test_watchdog_action(tiny: Start, action: str) -> None:
    vm = tiny("watchdog ms=800", "--watchdog", action)
    vm.expect("WATCHDOG fed")
    vm.send("x")
    vm.expect("WATCHDOG stage 2")
    if action == "stop":
        assert vm.wait() == 0
        return
    while not told(vm, "watchdog"):
        time.sleep(0.05)
    if action == "pause":
        assert vm.call("status")["why"] == "the watchdog expired"
        vm.call("resume")
    vm.send("x")
    vm.finish()


def test_watchdog_counts_running_time(tiny: Start, tmp_path: Path) -> None:
    """Neither a pause nor a save and a restore makes it expire; what was left is left."""
    vm = tiny("watchdog ms=1000", "--watchdog", "pause")
    vm.expect("WATCHDOG fed")
    vm.call("pause")
    time.sleep(3)
    vm.call("resume")
    vm.save(tmp_path / "state")
    vm.call("quit")
    assert vm.wait() == 0
    time.sleep(3)
    vm = tiny("", "--watchdog", "pause", restore=tmp_path / "state")
    time.sleep(1)
    assert vm.state() == "running" and not told(vm, "watchdog")
    vm.send("x")
    vm.expect("WATCHDOG stage 2")
    assert vm.wait_for_state("paused")["why"] == "the watchdog expired"
