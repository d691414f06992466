"""F4: memory a monitor takes beside its guest's RAM (PSS), the guest idle, beside QEMU microvm and q35."""

# PSS of the process less that of the guest RAM mapping, once the guest's init has run and slept for two seconds.
# Measured inside the host where stock guests run; on the native machine too, with the tiny guest.

import os
import re

from common import VMM, Bench, arguments
from host import start_host
from initrd import CLOUD_KERNEL, busybox_initrd

MARK = "GUEST-IDLE"
INIT = f"""#!/bin/busybox sh
echo {MARK}
while :; do /bin/busybox sleep 1000; done
"""
CMDLINE = "console=ttyS0 quiet reboot=t"
KERNEL = CLOUD_KERNEL / "vmlinuz"
GUEST_MIB = 256

# Run inside the host. Guest RAM is the one mapping of exactly the guest's size.
METER = r"""
import re, subprocess, sys, time
mark, ram_kib, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
seen = b""
while mark.encode() not in seen:
    data = p.stdout.read1(65536)
    if not data:
        sys.exit("no mark; the end of what came: " + seen[-600:].decode(errors="replace"))
    seen += data
time.sleep(2)
beside = ram = 0
for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", open(f"/proc/{p.pid}/smaps").read()):
    size = int(re.search(r"^Size: +(\d+)", part, re.M)[1])
    pss = int(re.search(r"^Pss: +(\d+)", part, re.M)[1])
    if size == ram_kib:
        ram += pss
    else:
        beside += pss
assert ram > 0, "no mapping of the guest's size"
print("beside", beside, "ram", ram)
p.kill()
p.wait()
"""


def machines(initrd: str, disk: str) -> dict[str, list]:
    boot = ["-kernel", KERNEL, "-initrd", initrd, "-append", CMDLINE]
    lean = ["-m", f"{GUEST_MIB}M", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    block = ["-drive", f"file={disk},format=raw,if=none,id=d,aio=io_uring"]
    ours = [VMM, "--kernel", KERNEL, "--initrd", initrd, "--cmdline", CMDLINE, "--memory", f"{GUEST_MIB}M"]
    found = {
        "glint-vmm": ours,
        "glint-vmm, a disk, rng": [*ours, "--disk", f"path={disk}", "--rng"],
        "QEMU microvm": ["qemu-system-x86_64", "-M", "microvm,accel=kvm,acpi=on,rtc=on,pcie=off", "-cpu", "host", *lean, *boot],
        "QEMU q35, a disk, rng": [
            "qemu-system-x86_64", "-M", "q35,accel=kvm", "-cpu", "host", *lean, *boot, *block,
            "-device", "virtio-blk-pci,drive=d", "-device", "virtio-rng-pci",
        ],  # fmt: skip
    }
    if os.environ.get("LKVM"):
        found["kvmtool"] = [
            os.environ["LKVM"], "run", "--kernel", KERNEL, "--initrd", initrd, "--params", CMDLINE, "--mem", str(GUEST_MIB),
            "--cpus", "1", "--console", "serial", "--network", "mode=none",
        ]  # fmt: skip
    return {name: [str(a) for a in argv] for name, argv in found.items()}


def main() -> None:
    args = arguments(__doc__, 3)
    initrd = busybox_initrd(INIT, modules=["virtio_pci", "virtio_blk", "virtio_rng"])
    host = start_host()
    try:
        bench = Bench("vmm-memory", host.where)
        disk = "/tmp/bench-memory.raw"
        host.run(["truncate", "-s", "64M", disk])
        argvs = machines(str(initrd), disk)
        medians = {}
        for name, argv in argvs.items():
            kib = []
            for _ in range(args.runs):
                result = host.run(["python3", "-c", METER, MARK, str(GUEST_MIB * 1024), *argv], timeout=240, check=False)
                found = re.search(rb"beside (\d+)", result.stdout)
                if found:
                    kib.append(int(found[1]) / 1024)
                else:
                    print(f"  {name}: {result.stderr.decode(errors='replace')[-800:]}")
            if kib:
                medians[name] = bench.row(f"{name}, PSS beside guest RAM", "MiB", kib)
        for name in ("glint-vmm", "glint-vmm, a disk, rng"):
            bench.ratio(f"F4 {name}, MiB", medians[name], 1.5, "lower")
        for name, argv in argvs.items():
            if not name.startswith("glint-vmm"):
                bench.command(argv)
        bench.finish(args.json)
    finally:
        host.close()


main()
