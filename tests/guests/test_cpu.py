"""Processors as a stock kernel sees them: models, topology, memory nodes, Hyper-V's interface; and taken elsewhere."""

import os
import re
from pathlib import Path

import pytest

from host import CLONE, Host
from vm import VMM, Guest

# What Linux calls otherwise, and what it does not print.
RENAMED = {"sse3": "pni"}
UNSEEN = re.compile(r"kvm_|xstate_|hypervisor$")
# What Linux finds out or makes up itself, and what follows from maker and topology.
OWN = set(
    "ht nopl cpuid rep_good xtopology extd_apicid tsc_known_freq cmp_legacy topoext pti vmmcall up constant_tsc "
    "3dnowprefetch lfence_rdtsc nonstop_tsc fxsr_opt cpuid_fault retpoline ibrs_enhanced tsc_reliable hypervisor rapl".split()
)


def contract(model: str) -> set[str]:
    page = (CLONE / "docs/processors.md").read_text()
    rows = re.findall(r"^\| `(x86-64-v\d)` \| (.*) \|$", page, re.M)
    words = {word for name, words in rows if name <= model for word in words.split()}
    return {RENAMED.get(word, word) for word in words if not UNSEEN.match(word)}


def check_flags(guest: Guest, model: str) -> None:
    flags = set(guest.sh("grep -m1 ^flags /proc/cpuinfo").split(":")[1].split())
    assert contract(model) <= flags, f"missing: {contract(model) - flags}"
    assert flags - contract(model) <= OWN, f"beyond the contract: {flags - contract(model) - OWN}"
    assert f"Glint {model} virtual processor" in guest.sh("grep -m1 'model name' /proc/cpuinfo")


def kvm_offers(native: Host) -> str:
    """What a host's KVM is told to lack when it is asked for v2; nothing where it lacks nothing."""
    result = native.run([str(VMM), "--kernel", "/dev/null", "--cpu-model", "x86-64-v2"], check=False, timeout=60)
    return "" if "lacks" in result.text + result.stderr.decode() else "ssse3"


def restored(host: Host, guest: Guest, state: str, args: list[str]) -> Guest:
    guest.call("save", state)
    guest.call("quit")
    assert guest.wait() == 0
    return Guest(host, *args, restore=state)


def test_topology_nodes_and_model(host: Host, native: Host) -> None:
    """8 vCPUs of a named model on two nodes; saved, restored, and refused by a host that has not the model."""
    state = str(Path(os.environ["GLINT_CACHE"]) / f"cpu-{os.getpid()}.state")
    args = [*"--cpus 8,sockets=2,cores=2,threads=2 --memory 256M --cpu-model x86-64-v2".split()]
    args += ["--numa", "cpus=0-3,memory=160M", "--numa", "cpus=4-7,memory=96M"]
    guest = Guest(host, *args)
    try:
        guest.ready()
        assert guest.sh("nproc") == "8"
        check_flags(guest, "x86-64-v2")
        cpu = "/sys/devices/system/cpu/cpu"
        assert guest.sh(f"cat {cpu}7/topology/thread_siblings_list {cpu}7/topology/core_siblings_list") == "6-7\n4-7"
        assert guest.sh(f"cat {cpu}7/topology/physical_package_id {cpu}7/topology/core_id") == "1\n1"
        assert guest.sh(f"cat {cpu}7/cache/index[0-3]/shared_cpu_list").split() == ["6-7"] * 3 + ["4-7"]
        assert guest.sh(f"cat {cpu}7/cache/index[0-3]/size").split() == ["32K", "32K", "1024K", "16384K"]
        node = "/sys/devices/system/node/node"
        assert guest.sh(f"cat {node}[0-9]/cpulist {node}[0-9]/distance").split("\n") == ["0-3", "4-7", "10 20", "20 10"]
        sizes = [int(n) for n in re.findall(r"MemTotal: +(\d+) kB", guest.sh(f"cat {node}[0-9]/meminfo"))]
        assert sizes[0] < 160 * 1024 and 48 * 1024 < sizes[1] <= 96 * 1024
        assert guest.sh("dmesg | grep -iE 'firmware bug|mismatch|WARNING|apic id' || true") == ""
        again = [*args[: args.index("--cpu-model")], *args[args.index("--cpu-model") + 2 :]]  # the state brings its own
        guest = restored(host, guest, state, again)
        for cpu_ in (0, 5, 7):
            assert guest.sh(f"taskset {1 << cpu_:x} grep -c . /proc/cpuinfo").isdigit()
        assert guest.sh("dmesg | grep -iE 'lockup|stall' || true") == ""
        # A host whose KVM lacks what the model has: this machine's own where it is a lesser one.
        if "ssse3" not in kvm_offers(native):
            result = native.run([str(VMM), "--restore", state, *again], check=False, timeout=60)
            text = result.text + result.stderr.decode()
            assert result.rc == 1
            assert "CPU model x86-64-v2 needs what this machine's processor or its KVM lacks: sse3, ssse3" in text, text
        guest.send("poweroff -f")
        assert guest.wait() == 0
    finally:
        guest.__exit__()
        host.run(["rm", "-f", state], check=False)


def test_hyperv(host: Host) -> None:
    """A kernel takes the machine for Hyper-V, keeps time by it, and goes on so in another process."""
    args = [*"--cpus 2 --memory 256M --cpu-model x86-64-v3 --hyperv on,kvm=off".split()]
    guest = Guest(host, *args)
    try:
        guest.ready()
        check_flags(guest, "x86-64-v3")
        assert "Hypervisor detected: Microsoft Hyper-V" in guest.sh("dmesg | grep Hypervisor")
        source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert guest.sh(f"cat {source}") == "hyperv_clocksource_tsc_page"
        # It starts again, and finds all registers as they were at power-on.
        guest.send("reboot -f")
        guest.ready()
        assert guest.sh(f"cat {source}") == "hyperv_clocksource_tsc_page"
        timers = "grep -iE 'hyper-v stimer0' /proc/interrupts"

        def ticks() -> list[int]:
            return [int(n) for n in guest.sh(timers).split()[1:3]]

        before, uptime = ticks(), float(guest.sh("cut -d' ' -f1 /proc/uptime"))
        for round_ in range(2):
            guest = restored(host, guest, "/tmp/hyperv.state", args)
            guest.sh("sleep 2")
            after, now = ticks(), float(guest.sh("cut -d' ' -f1 /proc/uptime"))
            assert all(new > old for new, old in zip(after, before)), (before, after)
            assert 1.5 < now - uptime < 60, (uptime, now)
            assert guest.sh(f"cat {source}") == "hyperv_clocksource_tsc_page"
            before, uptime = after, now
        with Guest(host, "--cpus", "2", "--memory", "256M", restore="/tmp/hyperv.state") as wrong:
            assert wrong.wait() == 1
            assert "(--hyperv)" in wrong.process.stderr.decode()
        guest.send("poweroff -f")
        assert guest.wait() == 0
    finally:
        guest.__exit__()


def test_v4_is_refused_by_name(host: Host) -> None:
    """The emulated host has no AVX-512; one that has it runs the model."""
    with Guest(host, "--cpu-model", "x86-64-v4") as guest:
        if "avx512f" in host.run(["grep", "-m1", "^flags", "/proc/cpuinfo"]).text:
            pytest.skip("this host has AVX-512")
        assert guest.wait() == 1
        assert "avx512f" in guest.process.stderr.decode()
