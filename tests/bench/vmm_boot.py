"""F2: from exec to the guest's init, stock Debian kernel by direct boot, beside QEMU microvm, q35 and kvmtool."""

# Same kernel file, initrd, memory, vCPUs and command line for all. LKVM names a kvmtool binary; without it kvmtool is
# left out. Under emulation only the ratios mean anything.

import os

from boot_race import CMDLINE, INIT, race
from common import VMM, Bench, arguments
from host import start_host
from initrd import CLOUD_KERNEL, busybox_initrd

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


def main() -> None:
    args = arguments(__doc__, 3)
    initrd = busybox_initrd(INIT)
    host = start_host()
    try:
        bench = Bench("vmm-boot", host.where)
        medians = race(bench, host, machines(str(initrd)), args.runs)
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
