#!/usr/bin/env python3
"""A virtual machine that boots a Glint stick: stock OVMF, the stick on an emulated USB port, a serial port, a screen.

How: class StickMachine starts QEMU with a QMP socket and the guest's first serial port on its standard input and
output, stamps what arrives with the seconds since power-on, and waits for patterns in it. By KVM where this machine
can run a stock kernel on it, else emulated (TCG, which offers nested SVM, so that the host inside has a /dev/kvm).
The stick's image file is never written: QEMU keeps what the machine writes in an overlay in the machine's folder; a
machine with the same folder goes on with it. An image of another form than raw is a disk (SATA), not a stick; without
an image there is none. QEMU is started by the command `inside`, if there is one (a network namespace's). A
restart ends the machine, unless it is said to be one that restarts.

Run as a program (./run does) it takes a stick to the shell of the guest it carries, says what took how long, and,
on a terminal, hands the console over.

It may touch: a temporary folder of its own, the process it starts.
"""

import argparse
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import tty
from pathlib import Path

OVMF = Path("/usr/share/OVMF")
QUIT = 1  # Ctrl-A, then x

# What is seen on the console in this order, and what it means that it is there.
STEPS = [
    (rb"BdsDxe: starting Boot[^\r\n]*\r", "firmware up, hands off to the stick"),
    (rb"EFI stub: [^\r\n]*\r", "systemd-boot has loaded the UKI"),
    (rb"\[ *\d+\.\d+\] Linux version [^\r\n]*\r", "host kernel runs (its log so far appears)"),
    (rb"glint-init: root of [^\r\n]*\r", "root in memory, systemd starts"),
    (rb"glint: host up [^\r\n]*\r", "systemd has the host up"),
    (rb"guest demo starts: [^\r\n]*\r?\n", "the guest's monitor starts"),
    (rb"Guest [^\r\n]*\r", "guest: firmware, boot loader and kernel done, its init runs"),
    (rb"guest# ", "guest shell"),
]


class BootError(Exception):
    """The stick did not get where it was wanted; the message has the console's last lines."""


def kvm_usable() -> bool:
    """Whether /dev/kvm can run a stock kernel: hardware virtualisation, not a paravirtual KVM."""
    flags = re.search(r"^flags\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return bool(flags and re.search(r"\b(vmx|svm)\b", flags[0])) and os.access("/dev/kvm", os.R_OK | os.W_OK)


class StickMachine:
    """One virtual machine with a stick in it. Use as a context manager; leaving it ends the process."""

    def __init__(self, stick: Path | None, memory_mib: int = 2048, cpus: int = 2, folder: Path | None = None, extra: list[str] = [],
                 form: str = "raw", inside: list[str] = [],
                 reboots: bool = False, secure: bool = False):
        self.kvm = kvm_usable()
        self.output = bytearray()  # everything the console showed
        self.position = 0  # how far wait_for has looked
        self.commands = 0  # run by shell()
        self.folder = Path(folder or tempfile.mkdtemp(prefix="glint-machine."))
        self._remove = folder is None
        self.secure = secure  # firmware that knows Secure Boot, which needs system management mode
        # Firmware variables: new ones, unless the machine restarts itself, and then they are those of its folder.
        if not (reboots and (self.folder / "vars.fd").exists()):
            shutil.copy(OVMF / "OVMF_VARS_4M.fd", self.folder / "vars.fd")
        overlay = self.folder / "stick.qcow2"
        if stick and not overlay.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", stick.resolve(), overlay], check=True)
        self.reboots = reboots
        self.command = inside + self._preload() + self._command(memory_mib, cpus) + (self._stick(form) if stick else []) + extra
        self.command += [] if reboots else ["-no-reboot"]
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.qmp = Qmp(self.folder / "qmp", self.process)

    def _stick(self, form: str) -> list[str]:
        device = "usb-storage,id=stick,drive=stick,removable=on,bus=usb.0" if form == "raw" else "ide-hd,drive=stick"
        # Told what to boot first, the firmware puts its entries into an order of its own at each start.
        device += "" if self.reboots else ",bootindex=0"
        return ["-blockdev", f"driver=qcow2,node-name=stick,file.driver=file,file.filename={self.folder}/stick.qcow2", "-device", device]

    def _command(self, memory_mib: int, cpus: int) -> list[str]:
        cpu = ["-accel", "kvm", "-cpu", "host"] if self.kvm else ["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"]
        firmware = OVMF / ("OVMF_CODE_4M.secboot.fd" if self.secure else "OVMF_CODE_4M.fd")
        board = ["q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"] if self.secure else ["q35"]
        return ["qemu-system-x86_64", "-M", *board, *cpu, "-m", str(memory_mib), "-smp", str(cpus), "-nodefaults", "-no-user-config",
                "-drive", f"if=pflash,format=raw,readonly=on,file={firmware}",
                "-drive", f"if=pflash,format=raw,file={self.folder}/vars.fd",
                "-device", "qemu-xhci,id=usb",
                "-display", "none", "-vga", "std", "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
                "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off"]

    def _preload(self) -> list[str]:
        """Emulated, QEMU needs a check of its own stepped round for UEFI guests inside (see docs/testing.md)."""
        cr8 = Path(__file__).resolve().parent.parent / "build/release/tests/host/libcr8.so"
        return ["env", f"LD_PRELOAD={cr8}"] if not self.kvm and cr8.exists() else []

    def __enter__(self) -> "StickMachine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.qmp.close()
        if self._remove:
            shutil.rmtree(self.folder, ignore_errors=True)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def write(self, text: bytes) -> None:
        """Types on the serial console."""
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def read(self, timeout: float) -> bytes:
        """What the console shows next, at most @timeout seconds from now; empty when nothing came."""
        ready, _, _ = select.select([self.process.stdout], [], [], max(0, timeout))
        text = (self.process.stdout.read() or b"") if ready else b""
        self.output += text
        return text

    def wait_for(self, pattern: bytes, timeout: float) -> re.Match[bytes]:
        """Waits until @pattern appears after what was waited for before; raises BootError when it does not."""
        until = time.monotonic() + timeout
        while True:
            if found := re.compile(pattern).search(self.output, self.position):
                self.position = found.end()
                return found
            left = until - time.monotonic()
            if left <= 0 or (self.process.poll() is not None and not self.read(0)):
                why = "after %.0f s" % timeout if left <= 0 else f"QEMU ended with status {self.process.returncode}"
                raise BootError(f"'{pattern.decode()}' did not appear on the console ({why}); its end:\n{self.tail()}")
            self.read(min(left, 1))

    def wait_for_all(self, patterns: list[bytes], timeout: float) -> None:
        """The same for several, in whatever order they come: different programs say them."""
        start, ends = self.position, []
        for pattern in patterns:
            self.position = start
            self.wait_for(pattern, timeout)
            ends.append(self.position)
        self.position = max(ends)

    def tail(self, lines: int = 30) -> str:
        text = re.sub(rb"\x1b\[[0-9;?=]*[A-Za-z]", b"", bytes(self.output)).decode(errors="replace").replace("\r", "")
        return "\n".join(text.splitlines()[-lines:])

    def boot(self, timeout: float = 120, show=lambda seconds, what, line: None) -> dict[str, float]:
        """Takes the stick to the guest's shell; returns when each step was reached, in seconds from power-on."""
        times = {}
        until = time.monotonic() + timeout
        for pattern, what in STEPS:
            found = self.wait_for(pattern, until - time.monotonic())
            times[what] = self.seconds()
            show(times[what], what, found[0].decode(errors="replace").strip())
        return times

    def shell(self, command: str, timeout: float = 60) -> str:
        """Runs a command in the guest's shell and returns what it printed.

        The marks around its output are computed by the shell, so that the echo of what is typed is not taken for them.
        """
        self.commands += 1
        self.write(b"echo begin-$((%d)); %s; echo end-$((%d))\r" % (self.commands, command.encode(), self.commands))
        self.wait_for(rb"begin-%d\r?\n" % self.commands, timeout)
        start = self.position
        end = self.wait_for(rb"end-%d\r?\n" % self.commands, timeout)
        self.wait_for(rb"guest# ", timeout)
        return bytes(self.output[start:end.start()]).decode(errors="replace").replace("\r", "").strip()

    def stick_counters(self) -> dict[str, int]:
        """Bytes and operations on the stick since power-on, as QEMU counts them."""
        for device in self.qmp("query-blockstats"):
            if device.get("qdev", "").split("/")[-1] in ("stick", "stick.0") or "/stick/" in device.get("qdev", ""):
                return {name: device["stats"][name] for name in ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations")}
        raise BootError("the stick is not in the machine")

    def unplug_stick(self, timeout: float = 60) -> None:
        """Pulls the stick out, and waits until the host's kernel has noticed."""
        self.qmp("device_del", id="stick")
        self.wait_for(rb"Synchronizing SCSI cache", timeout)


class Qmp:
    """QEMU's control socket: one command at a time, events are passed over."""

    def __init__(self, path: Path, process: subprocess.Popen):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if process.poll() is not None:
                    raise BootError("QEMU did not start: " + (process.stdout.read() or b"").decode(errors="replace").strip())
                time.sleep(0.05)
        self.file = self.socket.makefile("rwb")
        self.file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.file.flush()
        while line := self.file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise BootError(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise BootError(f"QEMU ended during {command}")

    def close(self) -> None:
        self.socket.close()


def hand_over(machine: StickMachine) -> None:
    """Connects the terminal to the machine's console until Ctrl-A x, or until the machine is off."""
    print("This is the console of the guest inside; Ctrl-A x ends it all.", file=sys.stderr)
    machine.write(b"\r")
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    armed = False
    try:
        while machine.process.poll() is None:
            ready, _, _ = select.select([stdin, machine.process.stdout], [], [], 1)
            if machine.process.stdout in ready:
                os.write(1, machine.read(0))
            if stdin in ready:
                for byte in os.read(stdin, 256):
                    if armed and byte in b"xX":
                        return
                    armed = byte == QUIT
                    if not armed:
                        machine.write(bytes([byte]))
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def main() -> int:
    parser = argparse.ArgumentParser(description="Boots a Glint stick in a virtual machine.")
    parser.add_argument("stick", type=Path)
    parser.add_argument("--stop", action="store_true", help="end after the guest's shell answered, also on a terminal")
    parser.add_argument("--keep", action="store_true", help="keep the machine's folder: console log, stick overlay, firmware variables")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    given = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="run.", dir=given.stick.resolve().parent)) if given.keep else None
    show = lambda seconds, what, line: print(f"[{seconds:6.2f} s] {what:58} {line[:110]}", flush=True)
    with StickMachine(given.stick, given.memory, folder=folder) as machine:
        how = "KVM" if machine.kvm else "emulated (TCG: this machine's KVM cannot run a stock kernel)"
        show(0, "power on", f"{given.memory} MiB, 2 CPUs, {how}")
        try:
            machine.boot(600 if not machine.kvm else 120, show)
            for command in ("uname -a", "cat /proc/meminfo | head -n 2"):
                print(f"guest# {command}\n{machine.shell(command)}")
            show(machine.seconds(), "guest answered", "")
            if sys.stdin.isatty() and not given.stop:
                hand_over(machine)
        except BootError as error:
            print(f"run: {error}", file=sys.stderr)
            return 1
        finally:
            if folder:
                (folder / "console.log").write_bytes(machine.output)
                print(f"kept: {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
