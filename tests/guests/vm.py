"""Stock guests on glint-vmm for tests: a Debian kernel with a busybox shell on its serial port.

A Guest is one run of glint-vmm on a Host. Its shell is spoken to over the serial port: sh() runs a command there and
returns what it printed. Paths a Guest is given (disks, sockets) are paths on the host.
"""

import hashlib
import json
import os
import secrets
import struct
import subprocess
import time
from pathlib import Path

from host import CLONE, Host, Result
from initrd import CLOUD_KERNEL, busybox_initrd
from shell import INIT, Shell

VMM = CLONE / "build/release/vmm/glint-vmm"
CTL = CLONE / "build/release/tests/guests/ctl"
VMLINUZ = CLOUD_KERNEL / "vmlinuz"
CMDLINE = "console=ttyS0 quiet panic=-1 reboot=t"
MODULES = ["virtio_blk", "virtio_rng", "button", "evdev", "virtio_balloon", "pvpanic-mmio", "i6300esb"]
BOOT_SECONDS = 240  # nested, on a busy machine


def initrd(modules: tuple[str, ...] = ()) -> Path:
    return busybox_initrd(INIT, modules=[*MODULES, *modules])


def vmlinux() -> Path:
    """The ELF kernel inside the stock bzImage, which boots by PVH; kept in the cache."""
    data = VMLINUZ.read_bytes()
    path = Path(os.environ["GLINT_CACHE"]) / "vmlinux" / hashlib.sha256(data).hexdigest()[:16]
    if not path.exists():
        # Linux boot protocol: setup_sects at 0x1f1, payload_offset and payload_length at 0x248.
        offset, length = struct.unpack_from("<II", data, 0x248)
        start = (data[0x1F1] + 1) * 512 + offset
        # The last four bytes are the unpacked size.
        elf = subprocess.run(["zstd", "-dc"], input=data[start : start + length - 4], capture_output=True).stdout
        assert elf.startswith(b"\x7fELF"), "the stock kernel is packed in a way this test does not know"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(elf)
        new.rename(path)
    return path


class Guest(Shell):
    def __init__(
        self,
        host: Host,
        *args: str | Path,
        kernel: Path | None = None,
        restore: str | None = None,
        direct: bool = True,
        modules: tuple[str, ...] = (),
    ) -> None:
        """direct: give it a kernel; without, @args must say what it boots. modules: what it loads beside the usual."""
        self.host = host
        self.socket = f"/tmp/vm-{secrets.token_hex(4)}.sock"
        argv: list[str | Path] = [VMM, "--control", self.socket]
        if restore:
            argv += ["--restore", restore]
        elif direct:
            argv += ["--kernel", kernel or VMLINUZ, "--initrd", initrd(modules), "--cmdline", CMDLINE]
        self.process = host.spawn([*map(str, argv), *map(str, args)])
        if restore:
            self._wait_for_arrival()

    def _wait_for_arrival(self) -> None:
        """Until the saved machine is there, or its monitor has ended: then the file is read, its memory taken."""
        deadline = time.monotonic() + 120
        while self.process.running and time.monotonic() < deadline:
            if self.call("status", check=False).get("result", {}).get("state") in ("running", "paused"):
                return
            time.sleep(0.1)

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.running:
            self.process.kill()
            self.process.wait()

    def ready(self) -> "Guest":
        self.await_shell(BOOT_SECONDS)
        return self

    def call(self, method: str, path: str | None = None, check: bool = True, **params: object) -> dict:
        """Calls the control socket; @path is created on the host and passed along."""
        result: Result = self.host.run(
            [CTL, self.socket, method, path or "", json.dumps(params)], check=False, timeout=120
        )
        if check:
            assert result.rc == 0, f"{method}: {result.text}{result.stderr.decode()}"
        return json.loads(result.text) if result.text else {}

    def state(self) -> str:
        return self.call("status")["result"]["state"]

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)
