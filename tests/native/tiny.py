"""Tiny guests on glint-vmm, on this machine's own /dev/kvm: one Tiny is one run of the monitor.

What the guest prints is read as it comes; its control socket is a connected one, whose other end is here.
"""

import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from host import BUILD

VMM = BUILD / "vmm/glint-vmm"
SANITIZED_VMM = BUILD.parent / "sanitize/vmm/glint-vmm"
GUEST = BUILD / "tests/native/guest"
GUEST_PVH = BUILD / "tests/native/guest.elf"
HELLO = BUILD / "tests/native/hello"
PATIENCE = 60.0  # seconds, on a busy machine


class Tiny:
    def __init__(
        self,
        test: str = "",
        *args: object,
        vmm: Path = VMM,
        kernel: Path = GUEST,
        restore: Path | None = None,
        cpus: int | str = 1,
        memory: str = "64M",
        fds: tuple[int, ...] = (),
    ) -> None:
        """@test: the guest's command line behind "test=": names of tests, then options."""
        self.tests = test.split(" ")[0].split(",") if test else []
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [vmm, "--memory", memory, "--cpus", cpus, "--control", f"fd={theirs.fileno()}"]
        argv += ["--restore", restore] if restore else ["--kernel", kernel, "--cmdline", f"test={test}"]
        if vmm == SANITIZED_VMM:
            argv += ["--sandbox", "off"]  # the search for leaks at the end needs what the sandbox forbids
        self.argv = [str(word) for word in [*argv, *args]]
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=(theirs.fileno(), *fds),
        )
        theirs.close()
        self._text = ""
        self._at = 0
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._id = 0
        self.events: list[dict] = []

    def _read(self) -> None:
        assert self.process.stdout
        while data := os.read(self.process.stdout.fileno(), 65536):
            with self._changed:
                self._text += data.decode(errors="replace")
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        with self._changed:
            return self._text

    @property
    def errors(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode(errors="replace")

    def _told(self) -> str:
        return f"\n{' '.join(self.argv)}\n--- the guest:\n{self._text[-2000:]}\n--- the monitor:\n{self.errors[-2000:]}"

    def expect(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Waits for the guest to print this, behind what was waited for before."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if found := re.search(pattern, self._text[self._at :]):
                    self._at += found.end()
                    return found
                left = deadline - time.monotonic()
                assert left > 0 and not self._ended, f"'{pattern}' did not come{self._told()}"
                self._changed.wait(left)

    def send(self, text: str) -> None:
        assert self.process.stdin
        os.write(self.process.stdin.fileno(), text.encode())

    def call(self, method: str, *fds: int, **params: object) -> dict:
        """A call over the control socket; its result, or an AssertionError with its error."""
        answer = self.try_call(method, *fds, **params)
        assert "result" in answer, f"{method}: {answer}{self._told()}"
        return answer["result"]

    def try_call(self, method: str, *fds: int, **params: object) -> dict:
        self._id += 1
        packet = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        self.control.settimeout(PATIENCE)
        socket.send_fds(self.control, [json.dumps(packet).encode()], list(fds))
        while True:
            data = self.control.recv(1 << 17)
            assert data, f"{method}: the monitor closed its socket{self._told()}"
            answer = json.loads(data)
            if answer.get("id") == self._id:
                return answer
            self.events.append(answer)

    def state(self) -> str:
        return self.call("status")["state"]

    def wait_for_state(self, state: str, timeout: float = PATIENCE) -> dict:
        deadline = time.monotonic() + timeout
        while (status := self.call("status"))["state"] != state:
            assert time.monotonic() < deadline, f"still {status['state']}, not {state}{self._told()}"
            time.sleep(0.02)
        return status

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            self.call("save", file.fileno())

    def wait(self, timeout: float = PATIENCE) -> int:
        try:
            rc = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs{self._told()}") from None
        self._reader.join(timeout)
        return rc

    def finish(self, timeout: float = PATIENCE) -> str:
        """Waits for the guest to power off, all its tests passed; what it printed."""
        rc = self.wait(timeout)
        assert rc == 0, f"exit status {rc}{self._told()}"
        assert " FAIL " not in self.output, self._told()
        for name in self.tests:
            assert re.search(rf"^TEST {name} ok$", self.output, re.M), f"{name} did not end well{self._told()}"
        return self.output

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for end in (self.process.stdin, self.process.stdout):
            if end:
                end.close()
        self.control.close()
        self._errors.close()
