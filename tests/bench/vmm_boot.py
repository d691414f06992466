"""F2: from exec to the guest's init, stock Debian kernel by direct boot, beside QEMU microvm, q35 and kvmtool."""

# Same kernel file, initrd, memory, vCPUs and command line for all; runs alternate, so that a machine whose speed drifts
# is fair to all. LKVM names a kvmtool binary; without it kvmtool is left out. The guest's init writes a line and the
# clock stops when it is read. Under emulation only the ratios mean anything.

import os
import re

from common import VMM, Bench, arguments
from host import start_host
from initrd import CLOUD_KERNEL, busybox_initrd

MARK = "GUEST-INIT"
INIT = f"""#!/bin/busybox sh
echo {MARK}
/bin/busybox poweroff -f
"""
CMDLINE = "console=ttyS0 quiet reboot=t panic=-1"
KERNEL = CLOUD_KERNEL / "vmlinuz"


def machines(initrd: str) -> dict[str, list]:
    boot = ["-kernel", KERNEL, "-initrd", initrd, "-append", CMDLINE]
    lean = ["-m", "256M", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    found = {
        "glint-vmm": [VMM, "--kernel", KERNEL, "--initrd", initrd, "--cmdline", CMDLINE, "--memory", "256M"],
        # ACPI is on: without it the kernel finds no devices unless told on the command line.
        "QEMU microvm": ["qemu-system-x86_64", "-M", "microvm,accel=kvm,acpi=on,rtc=on,pcie=off", "-cpu", "host", *lean, *boot],
        "QEMU q35": ["qemu-system-x86_64", "-M", "q35,accel=kvm", "-cpu", "host", *lean, *boot],
    }
    if os.environ.get("LKVM"):
        found["kvmtool"] = [
            os.environ["LKVM"], "run", "--kernel", KERNEL, "--initrd", initrd, "--params", CMDLINE, "--mem", "256",
            "--cpus", "1", "--console", "serial", "--network", "mode=none",
        ]  # fmt: skip
    return {name: [str(a) for a in argv] for name, argv in found.items()}


# Run inside the host, so that the way between here and there is not in the figure: prints the milliseconds until MARK.
TIMER = r"""
import subprocess, sys, time
began = time.monotonic()
p = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
seen = b""
while sys.argv[1].encode() not in seen:
    data = p.stdout.read1(65536)
    if not data:
        sys.exit("no mark; the end of what came: " + seen[-600:].decode(errors="replace"))
    seen += data
print("took", (time.monotonic() - began) * 1000)
p.kill()
p.wait()
"""


def main() -> None:
    args = arguments(__doc__, 3)
    initrd = busybox_initrd(INIT)
    host = start_host()
    try:
        bench = Bench("vmm-boot", host.where)
        argvs = machines(str(initrd))
        samples: dict[str, list[float]] = {name: [] for name in argvs}
        for run in range(args.runs + 1):
            for name, argv in argvs.items():
                result = host.run(["python3", "-c", TIMER, MARK, *argv], timeout=240, check=False)
                took = re.search(rb"took ([0-9.]+)", result.stdout)
                if not took:
                    print(f"  {name}: {result.stderr.decode(errors='replace')[-800:]}")
                elif run > 0:  # the first run warms the caches
                    samples[name].append(float(took[1]) / 1000)
        medians = {name: bench.row(f"{name}, exec to guest init", "s", s) for name, s in samples.items() if s}
        for name, argv in argvs.items():
            if name != "glint-vmm":
                bench.command(argv)
        ours = medians["glint-vmm"]
        if "kvmtool" in medians:
            bench.ratio("F2 beside kvmtool", ours / medians["kvmtool"], 1.0, "lower")
        else:
            print("  kvmtool: left out; LKVM=/path/to/lkvm names one")
        if "QEMU microvm" in medians:
            bench.ratio("F2 beside QEMU microvm", ours / medians["QEMU microvm"], 0.55, "lower")
        bench.finish(args.json)
    finally:
        host.close()


main()
