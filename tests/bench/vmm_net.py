"""F6: TCP both ways and 64-byte packets through a tap and vhost-net, beside QEMU with the same guest."""

# Same kernel, initrd, memory, one vCPU, the same tap (one after another), one pair of queues, vhost-net in both; QEMU's
# device as its documentation has it. What arrives counts: netload at the receiving end measures. Under emulation only
# the ratios mean anything.

import re
from pathlib import Path

from common import CLONE, VMM, Bench, arguments
from host import Host, start_host
from initrd import CLOUD_KERNEL, busybox_initrd
from shell import INIT, Shell

KERNEL = CLOUD_KERNEL / "vmlinuz"
CMDLINE = "console=ttyS0 quiet panic=-1 reboot=t"
LOAD = CLONE / "build/release/tests/bench/netload"
TAP, HOST_IP, GUEST_IP = "tap0", "192.0.2.1", "192.0.2.2"
PORT, MILLISECONDS = 9, 3000
# An Ethernet frame of 64 bytes: 14 and 4 of its own, 20 of IP, 8 of UDP.
PAYLOAD = 64 - 14 - 4 - 20 - 8


def machines(initrd: Path) -> dict[str, list[str]]:
    guest = ["-kernel", KERNEL, "-initrd", initrd, "-append", CMDLINE]
    found = {
        "glint-vmm": [
            VMM, "--kernel", KERNEL, "--initrd", initrd, "--cmdline", CMDLINE, "--memory", "256M", "--cpus", "1",
            "--net", f"tap={TAP},vhost=on",
        ],
        "QEMU": [
            "qemu-system-x86_64", "-M", "q35,accel=kvm", "-cpu", "host", "-m", "256M", "-smp", "1", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no,vhost=on",
            "-device", "virtio-net-pci,netdev=net,mq=off", *guest,
        ],
    }  # fmt: skip
    return {name: [str(a) for a in argv] for name, argv in found.items()}


class Guest(Shell):
    def __init__(self, host: Host, argv: list[str]) -> None:
        self.host = host
        self.process = host.spawn(argv)
        self.await_shell(240)
        self.sh(f"ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up; ping -c 2 {HOST_IP}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def to_host(self, kind: str, more: str = "") -> float:
        """What arrives on the host, per second."""
        sink = self.host.spawn([LOAD, f"{kind}-sink", PORT])
        sink.read_until("ready")
        self.sh(f"netload {kind}-source {HOST_IP} {PORT} {MILLISECONDS}{more}")
        return rate(sink.read_until(r"took \d+ \d+\n").decode())

    def to_guest(self, kind: str, more: str = "") -> float:
        self.send(f"netload {kind}-sink {PORT}; echo over")
        self.process.read_until("ready")
        self.host.run([LOAD, f"{kind}-source", GUEST_IP, PORT, MILLISECONDS, *more.split()])
        return rate(self.process.read_until("over").decode())


def rate(text: str) -> float:
    took = re.search(r"took (\d+) (\d+)", text)
    if not took:
        raise SystemExit(f"no figure: {text[-800:]}")
    return int(took[1]) / int(took[2]) * 1e6


def measure(host: Host, argv: list[str]) -> dict[str, float]:
    guest = Guest(host, argv)
    try:
        return {
            "TCP from the guest, MB/s": guest.to_host("tcp") / 1e6,
            "TCP to the guest, MB/s": guest.to_guest("tcp") / 1e6,
            "64-byte packets from the guest, k/s": guest.to_host("udp", f" {PAYLOAD}") / 1e3,
            "64-byte packets to the guest, k/s": guest.to_guest("udp", f" {PAYLOAD}") / 1e3,
        }
    finally:
        guest.close()


def main() -> None:
    args = arguments(__doc__, 3)
    initrd = busybox_initrd(INIT, modules=["virtio_net"], files={"bin/netload": LOAD.read_bytes()})
    host = start_host()
    try:
        host.run(["modprobe", "-a", "tun", "vhost_net"])
        host.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])
        host.run(["ip", "addr", "add", f"{HOST_IP}/24", "dev", TAP])
        host.run(["ip", "link", "set", TAP, "up"])
        bench = Bench("vmm-net", host.where)
        argvs = machines(initrd)
        samples: dict[str, dict[str, list[float]]] = {name: {} for name in argvs}
        for _ in range(args.runs):
            for name, argv in argvs.items():
                for what, value in measure(host, argv).items():
                    samples[name].setdefault(what, []).append(value)
        bench.command(argvs["QEMU"])
        medians = {
            name: {what: bench.row(f"{name}, {what}", what.rsplit(", ")[1], s) for what, s in rows.items()}
            for name, rows in samples.items()
        }
        for what, ours in medians["glint-vmm"].items():
            bench.ratio(f"F6 {what.rsplit(', ')[0]}", ours / medians["QEMU"][what], 1.0, "higher")
        bench.finish(args.json)
    finally:
        host.close()


main()
