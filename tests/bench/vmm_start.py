"""F1: from exec to the guest's first instruction, on this machine's own /dev/kvm, beside QEMU."""

# The guest is tests/native/hello: its first instructions write a byte to the serial port, which comes out of a pipe.
# The clock runs from just before fork until the byte arrives, so process start, KVM set-up, sandbox and boot are all
# in it. QEMU is microvm, its leanest machine, told to make nothing it is not asked for. Where KVM cannot run QEMU's
# firmware (see PVH below) only the time is compared, not the guest: both run the same file.

import os
import select
import subprocess
import time

from common import CLONE, VMM, Bench, arguments

HELLO = CLONE / "build/release/tests/native/hello"
HELLO_ELF = CLONE / "build/release/tests/native/hello.elf"

OURS = [VMM, "--kernel", HELLO, "--memory", "128M"]
OURS_OPEN = [*OURS, "--sandbox", "off"]
# microvm without its legacy devices; PVH entry needs no firmware but qboot, which QEMU always runs.
QEMU = [
    "qemu-system-x86_64", "-M", "microvm,accel=kvm,pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off",
    "-cpu", "max", "-m", "128M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    "-serial", "stdio", "-kernel", HELLO_ELF,
]  # fmt: skip


def first_byte(argv: list, patience: float) -> float | None:
    """Milliseconds from fork to the first byte; None when none came."""
    reader, writer = os.pipe()
    began = time.perf_counter()
    process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    # Waiting, not polling: a polling clock would take one of the processors that the monitor's threads start on.
    data = os.read(reader, 1) if select.select([reader], [], [], patience)[0] else b""
    took = (time.perf_counter() - began) * 1000 if data else None
    process.kill()
    process.wait()
    os.close(reader)
    return took


def samples(argv: list, runs: int, patience: float = 10) -> list[float]:
    first_byte(argv, patience)  # warms the page cache
    return [t for t in (first_byte(argv, patience) for _ in range(runs)) if t is not None]


def main() -> None:
    args = arguments(__doc__, 20)
    bench = Bench("vmm-start", "native")
    ours = bench.row("glint-vmm, exec to first byte", "ms", samples(OURS, args.runs))
    bench.row("glint-vmm, the same without sandbox", "ms", samples(OURS_OPEN, args.runs))
    bench.ratio("F1 exec to first instruction, ms", ours, 5, "lower")
    bench.command(QEMU)
    peer = samples(QEMU, min(args.runs, 10))
    if peer:
        theirs = bench.row("QEMU microvm, exec to first byte", "ms", peer)
        bench.ratio("F1 beside QEMU microvm", ours / theirs, 0.1, "lower")
    else:
        print("  QEMU microvm: no byte came within 10 s: this machine's KVM cannot run its firmware")
    bench.finish(args.json)


main()
