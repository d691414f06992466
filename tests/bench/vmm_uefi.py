"""F3: from exec to the guest's init by stock UEFI firmware, beside QEMU q35 with the same firmware."""

# Same OVMF, kernel, initrd, memory, vCPUs and command line; the firmware loads the kernel by fw_cfg in both. QEMU gets
# what its own documentation asks for (pflash for code and variables) and nothing it could do without; its SMM is off,
# as ours has none. Under emulation only the ratio means anything.

from boot_race import CMDLINE, INIT, race
from common import VMM, Bench, arguments
from host import start_host
from initrd import CLOUD_KERNEL, busybox_initrd

KERNEL = CLOUD_KERNEL / "vmlinuz"
CODE, VARS = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"


def machines(initrd: str) -> dict[str, list]:
    found = {
        "glint-vmm": [
            VMM, "--firmware", CODE, "--vars", "/tmp/ours.vars", "--kernel", KERNEL, "--initrd", initrd, "--cmdline", CMDLINE,
            "--memory", "256M",
        ],
        "QEMU q35": [
            "qemu-system-x86_64", "-M", "q35,accel=kvm,smm=off", "-cpu", "host", "-m", "256M", "-smp", "1", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-drive", f"if=pflash,format=raw,readonly=on,file={CODE}", "-drive", "if=pflash,format=raw,file=/tmp/qemu.vars",
            "-kernel", KERNEL, "-initrd", initrd, "-append", CMDLINE,
        ],
    }  # fmt: skip
    return {name: [str(a) for a in argv] for name, argv in found.items()}


def main() -> None:
    args = arguments(__doc__, 2)
    initrd = busybox_initrd(INIT)
    host = start_host()
    try:
        for copy in ("/tmp/ours.vars", "/tmp/qemu.vars"):
            host.run(["cp", VARS, copy])
        bench = Bench("vmm-uefi", host.where)
        medians = race(bench, host, machines(str(initrd)), args.runs)
        bench.ratio("F3 beside QEMU q35", medians["glint-vmm"] / medians["QEMU q35"], 0.7, "lower")
        bench.finish(args.json)
    finally:
        host.close()


main()
