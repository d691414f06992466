"""The guest agent's methods with a tiny guest, which plays the agent by hand or has none: every way to go wrong."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]
METHODS = ["ping", "info", "set-time", "freeze", "thaw"]


def error_of(answer: dict) -> str:
    assert "error" in answer, answer
    return answer["error"]["message"]


def put(vm: Tiny, call_id: int, method: str, **params: object) -> None:
    """Calls without waiting for the answer."""
    vm.control.send(json.dumps({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}).encode())


def receive(vm: Tiny, call_id: int) -> dict:
    vm.control.settimeout(60)
    while (answer := json.loads(vm.control.recv(1 << 17))).get("id") != call_id:
        vm.events.append(answer)
    return answer


def came(vm: Tiny, call_id: int) -> dict:
    """The answer to an earlier call that came while a later one was waited for."""
    answers = [event for event in vm.events if event.get("id") == call_id]
    assert len(answers) == 1, vm.events
    return answers[0]


def test_nobody_there(tiny: Start) -> None:
    vm = tiny("idle", "--agent", "on")
    vm.expect("IDLE")
    assert vm.call("status")["agent"] == {"open": False, "frozen": False}
    for method in METHODS:
        assert "no agent in the guest" in error_of(vm.try_call(f"agent-{method}"))
    for seconds in (0, -1, 601, 1 << 40):
        answer = vm.try_call("agent-freeze", seconds=seconds)
        assert "seconds" in error_of(answer) and answer["error"]["code"] == -32602
    assert "error" in vm.try_call("agent-ping", more=1)
    bare = tiny("idle")
    bare.expect("IDLE")
    for method in METHODS:
        assert "--agent" in str(bare.try_call(f"agent-{method}"))
    assert "agent" not in bare.call("status")


@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM])
def test_agent(tiny: Start, tmp_path: Path, vmm: Path) -> None:
    """A guest that answers as an agent does, over a move; freezes end by themselves."""
    vm = tiny("agent", "--agent", "on", vmm=vmm)
    vm.expect("AGENT ready")
    assert vm.call("status")["agent"] == {"open": True, "frozen": False}
    assert vm.call("agent-ping") == {}
    info = vm.call("agent-info")
    assert info["host-name"] == "tiny" and info["os"] == {"id": "none"}
    assert info["interfaces"] == [{"name": "lo", "addresses": [{"address": "127.0.0.1", "prefix": 8}]}]
    assert "says: unknown" in error_of(vm.try_call("agent-set-time"))
    assert vm.call("agent-freeze", seconds=600) == {"file-systems": 1}
    vm.expect("AGENT frozen")
    assert "is frozen" in error_of(vm.try_call("agent-freeze"))
    assert vm.call("status")["agent"]["frozen"]
    # A restored guest that was frozen is thawed by itself.
    vm.save(tmp_path / "state")
    vm.call("quit")
    assert vm.wait() == 0
    vm = tiny("", "--agent", "on,set-time=off", restore=tmp_path / "state", vmm=vmm)
    vm.expect("AGENT thawed")
    assert vm.call("agent-ping") == {}
    assert not vm.call("status")["agent"]["frozen"]
    assert vm.call("agent-freeze", seconds=1) == {"file-systems": 1}
    vm.expect("AGENT frozen")
    vm.expect("AGENT thawed")
    assert vm.call("agent-ping") == {}
    assert "agent-thawed" in [event.get("method") for event in vm.events]
    assert vm.call("agent-thaw") == {"file-systems": 0}
    vm.send("x")
    vm.expect("TEST agent ok")
    assert vm.wait() == 0


def test_mute(tiny: Start, tmp_path: Path) -> None:
    """An agent that reads and says nothing: other calls are answered meanwhile; a pause and a save end the wait."""
    vm = tiny("agent mute=1", "--agent", "on")
    vm.expect("AGENT ready")
    put(vm, 1000, "agent-ping")
    vm.expect("AGENT heard guest-sync-delimited")
    assert vm.state() == "running"
    vm.call("pause")
    assert "paused" in error_of(came(vm, 1000))
    assert "no agent in the guest" in error_of(vm.try_call("agent-ping"))
    vm.call("resume")
    put(vm, 1001, "agent-freeze")
    put(vm, 1002, "agent-info")
    vm.save(tmp_path / "state")
    for call_id in (1001, 1002):
        assert "paused" in error_of(came(vm, call_id))
    vm.call("resume")
    # Silence ends by itself.
    start = time.monotonic()
    answer = vm.try_call("agent-ping")
    assert "does not answer" in error_of(answer) and answer["error"]["data"]["errno"] == "ETIMEDOUT"
    assert time.monotonic() - start >= 10
    # What waits when the monitor ends is answered, too.
    put(vm, 1003, "agent-ping")
    put(vm, 1004, "quit")
    assert "ended" in error_of(receive(vm, 1003))
    assert vm.wait() == 0


def test_client_goes(tiny: Start) -> None:
    """Who asked has gone before the answer comes."""
    vm = tiny("agent mute=1", "--agent", "on")
    vm.expect("AGENT ready")
    put(vm, 1, "agent-ping")
    vm.expect("AGENT heard guest-sync-delimited")
    vm.control.shutdown(socket.SHUT_RDWR)
    vm.send("x")
    vm.finish()


def test_flood(tiny: Start) -> None:
    """A guest that floods the port: clear errors, and the monitor serves on."""
    vm = tiny("agent flood=1", "--agent", "on")
    vm.expect("AGENT ready")
    answer = vm.try_call("agent-ping")
    assert "does not answer" in error_of(answer)
    assert vm.state() == "running"
    vm.send("x")
    vm.finish()


def test_options(tiny: Start, tmp_path: Path) -> None:
    ports = [f"name=p{i},path={tmp_path}/p{i}" for i in range(8)]
    port = f"name=org.qemu.guest_agent.0,path={tmp_path}/a"
    for args, words in [
        (["--agent", "maybe"], "neither 'on' nor 'off'"),
        (["--agent", "on", "--console-port", port], "leave out either"),
        (["--agent", "on", *(word for name in ports for word in ("--console-port", name))], "at most 8 ports"),
    ]:
        vm = tiny("idle", *args)
        assert vm.wait() != 0 and words in vm.errors
    vm = tiny("idle", "--agent", "off", "--console-port", port)
    vm.expect("IDLE")
    assert "agent" not in vm.call("status")
