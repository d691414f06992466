"""Tiny guests drive the machine from inside: what is not there, clocks, power, processors, serial port, PCI, entropy."""

import os
import random
import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tiny import GUEST, GUEST_PVH, HELLO, SANITIZED_VMM, VMM, Tiny

Start = Callable[..., Tiny]


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("kernel", [HELLO, HELLO.with_name("hello.elf")], ids=["bzImage", "PVH"])
def test_hello(tiny: Start, kernel: Path, cpus: int) -> None:
    vm = tiny(kernel=kernel, cpus=cpus)
    assert vm.finish() == "> hello\n"


@pytest.mark.parametrize("kernel", [GUEST, GUEST_PVH], ids=["bzImage", "PVH"])
def test_memory_map(tiny: Start, kernel: Path) -> None:
    """The guest is told of the memory it has, below and above the hole."""
    for memory, low, high in [("3M", 3, 0), ("2G", 2048, 0), ("2049M", 2048, 1), ("5G", 2048, 3072)]:
        vm = tiny("poweroff", kernel=kernel, memory=memory)
        vm.expect(rf"ram {low} MiB \+ {high} MiB")
        assert vm.wait() == 0


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_smp(tiny: Start, cpus: int) -> None:
    assert f"SMP {cpus}\n" in tiny(f"smp cpus={cpus}", cpus=cpus).finish()


def test_unmapped(tiny: Start) -> None:
    tiny("unmapped").finish()


def test_rtc(tiny: Start) -> None:
    began = datetime.now(timezone.utc)
    output = tiny("rtc").finish()
    ended = datetime.now(timezone.utc)
    for text in re.findall(r"RTC (.*)", output):
        seen = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
        assert -1 <= (seen - began).total_seconds() and (ended - seen).total_seconds() >= -1


def test_pm_timer(tiny: Start) -> None:
    vm = tiny("pm-timer seconds=6")
    vm.expect("PM-TIMER begin")
    began = time.monotonic()
    vm.expect("PM-TIMER end")
    assert 5.7 < time.monotonic() - began < 8
    vm.finish()


def test_power_button(tiny: Start) -> None:
    vm = tiny("button")
    vm.expect("BUTTON waiting")
    vm.call("power-button")
    vm.finish()


@pytest.mark.parametrize("by", ["cf9", "port64", "port92", "triple"])
def test_reset_by_guest(tiny: Start, by: str) -> None:
    output = tiny(f"reset by={by} boots=4").finish()
    assert re.findall(r"BOOT (\d)", output) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("cpus", [1, 3])
def test_reset_from_outside(tiny: Start, cpus: int) -> None:
    """Also while the other processors work: they wait for SIPI again afterwards."""
    vm = tiny("smp,idle cpus=" + str(cpus), cpus=cpus)
    for _ in range(3):
        vm.expect("TEST smp ok\nIDLE")
        vm.call("reset")
    vm.expect("TEST smp ok\nIDLE")
    vm.send("x")
    vm.finish()


def test_reset_that_fails(tiny: Start, tmp_path: Path) -> None:
    """The kernel's file went bad meanwhile: the machine does not run on half reset, and is mended by another reset."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(GUEST.read_bytes())
    vm = tiny("idle", kernel=kernel)
    vm.expect("IDLE")
    os.truncate(kernel, 100)
    assert "start the kernel again" in vm.try_call("reset")["error"]["message"]
    assert vm.state() == "paused"
    assert "reset failed" in vm.try_call("resume")["error"]["message"]
    kernel.write_bytes(GUEST.read_bytes())
    vm.call("reset")
    vm.call("resume")
    vm.expect("IDLE")
    vm.send("x")
    vm.finish()


def test_pause(tiny: Start) -> None:
    """A paused guest does nothing, and time spent so is not lost on the way."""
    vm = tiny("dirty", cpus=2)
    vm.expect(r"DIRTY \d+")
    for _ in range(5):
        vm.call("pause")
        assert vm.state() == "paused"
        time.sleep(0.1)  # what it wrote before may still be on its way to us
        seen = vm.output
        time.sleep(0.3)
        assert vm.output == seen
        vm.call("resume")
        assert vm.state() == "running"
        vm.expect(r"DIRTY \d+")
    vm.send("x")
    vm.finish()


def test_quit(tiny: Start) -> None:
    vm = tiny("dirty smp=1", cpus=2)
    vm.expect(r"DIRTY \d+")
    vm.call("quit")
    assert vm.wait() == 0


def test_exits_are_counted(tiny: Start) -> None:
    vm = tiny("idle")
    vm.expect("IDLE")
    (vcpu,) = vm.call("stats")["vcpus"]
    assert sum(vcpu["exits"].values()) > 10
    vm.send("x")
    vm.finish()


# --- serial port ---


def test_serial_echo(tiny: Start, rng: random.Random) -> None:
    vm = tiny("serial-echo")
    vm.expect("ECHO ready")
    for length in [1, 2, 15, 16, 17, 100, 200]:
        line = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789 .", k=length))
        vm.send(line + "\n")
        vm.expect(re.escape(f"ECHO {length} {line}\n"))
    # More at once than the port's FIFO, the pipe and the guest's line can hold waits, and nothing is lost.
    lines = [f"{n} " + "x" * rng.randrange(200) for n in range(40)]
    vm.send("\n".join(lines) + "\nend\n")
    for line in lines:
        vm.expect(re.escape(f"ECHO {len(line)} {line}\n"))
    vm.finish()


def test_serial_loopback(tiny: Start) -> None:
    tiny("serial-loopback").finish()


def test_serial_interrupts(tiny: Start) -> None:
    vm = tiny("serial-irq")
    vm.expect("IRQ ready")
    vm.send("by interrupts alone\n")
    vm.expect("IRQ 20 by interrupts alone\n")
    vm.finish()


# --- PCI ---


def test_pci_scan(tiny: Start, disk: Callable[..., Path]) -> None:
    output = tiny("pci-scan", "--rng", "--disk", f"path={disk()}").finish()
    assert "PCI 0 8086:29c0 class 060000\nPCI 2 1af4:1044" in output and "PCI 14 1af4:1042 class 010000" in output


def test_pci_bars(tiny: Start, disk: Callable[..., Path]) -> None:
    tiny("pci-bars", "--disk", f"path={disk()}").finish()


def test_interrupts(tiny: Start, disk: Callable[..., Path]) -> None:
    """MSI-X with its masks and pending bits; the INTx line; and both again after one another."""
    tiny("pci-msix,pci-intx", "--disk", f"path={disk()}").finish()


def test_entropy(tiny: Start) -> None:
    assert int(re.search(r"RNG (\d+)", tiny("rng", "--rng").finish())[1]) > 64


@pytest.mark.parametrize("vmm", [VMM, SANITIZED_VMM], ids=["release", "sanitized"])
def test_pci_garbage(tiny: Start, disk: Callable[..., Path], rng: random.Random, vmm: Path) -> None:
    """Garbage in ECAM and configuration ports: the machine lives, and resets into a working one."""
    seed = rng.randrange(1, 2**31)
    vm = tiny(f"pci-garbage,idle seed={seed}", "--rng", "--disk", f"path={disk()}", vmm=vmm)
    vm.expect("TEST pci-garbage ok\nIDLE")
    assert vm.state() == "running"
    vm.call("reset")
    vm.expect("TEST pci-garbage ok\nIDLE")
    vm.send("x")
    vm.finish()
