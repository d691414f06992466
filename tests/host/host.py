"""The machines tests run commands on.

LocalHost is this machine, within the build root. NestedHost is a machine emulated by QEMU, for where this machine's
/dev/kvm cannot run a stock kernel: it boots Debian's kernel, has nested paging of its own, sees the build root, the
clone and the cache at the same paths, and runs commands through tests/host/agent.c. Both are a Host; start_host()
chooses. /tmp and /run are each machine's own.

Every call has a timeout in seconds. Output is bytes; nothing is decoded unless asked for.
"""

import ctypes
import fcntl
import json
import os
import re
import secrets
import shlex
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from initrd import KERNEL, busybox_initrd, kernel_version

CLONE = Path(os.environ.get("GLINT_CLONE", Path(__file__).resolve().parents[2]))
BUILD = CLONE / "build" / "release"
KVM_GET_API_VERSION = 0xAE00
BOOT_SECONDS = 120
# AMD's virtualisation with nested paging is the one QEMU emulates. What it does not emulate of this model is taken
# away by name: it would only warn about it.
CPU = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec"


class HostError(RuntimeError):
    """A machine that does not do its part, or a command that failed."""


class Result(NamedTuple):
    rc: int  # the exit status, or minus the signal that ended it
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def _tail(data: bytes, size: int = 4000) -> str:
    return bytes(data[-size:]).decode(errors="replace")


class Process:
    """A running command. A subclass starts it, feeds what it writes, and says when it ended."""

    pid: int

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self._changed = threading.Condition()
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._taken = 0  # how much of _stdout read_until() has handed out
        self._rc: int | None = None

    def write(self, data: bytes) -> None:
        """Queues input. Never waits for the process to take it."""
        raise NotImplementedError

    def close_stdin(self) -> None:
        raise NotImplementedError

    def kill(self, number: int = signal.SIGKILL) -> None:
        raise NotImplementedError

    def read_until(self, pattern: bytes | str, timeout: float = 60) -> bytes:
        """Takes standard output up to and including the first match of the regular expression."""
        __tracebackhide__ = True
        expression = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                match = expression.search(self._stdout, self._taken)
                if match:
                    taken = bytes(self._stdout[self._taken : match.end()])
                    self._taken = match.end()
                    return taken
                if self._rc is not None:
                    raise HostError(f"{self} ended ({self._rc}) before writing {pattern!r}{self._words()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise HostError(f"{self} did not write {pattern!r} within {timeout} s{self._words()}")
                self._changed.wait(left)

    def wait(self, timeout: float = 60) -> int:
        """Waits for its end; returns the exit status, or minus the signal that ended it."""
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(lambda: self._rc is not None, timeout):
                raise HostError(f"{self} still runs after {timeout} s{self._words()}")
            assert self._rc is not None
            return self._rc

    @property
    def running(self) -> bool:
        return self._rc is None

    @property
    def stdout(self) -> bytes:
        """All it has written so far, also what read_until() took."""
        with self._changed:
            return bytes(self._stdout)

    @property
    def stderr(self) -> bytes:
        with self._changed:
            return bytes(self._stderr)

    def __str__(self) -> str:
        return shlex.join(self.argv)

    def _words(self) -> str:
        return f"\n--- its output ---\n{_tail(self._stdout)}\n--- its errors ---\n{_tail(self._stderr)}"

    def _feed(self, stream: bytearray, data: bytes) -> None:
        with self._changed:
            stream += data
            self._changed.notify_all()

    def _end(self, rc: int) -> None:
        with self._changed:
            self._rc = rc
            self._changed.notify_all()


class Host:
    where: str  # "kvm", "nested" or "native"

    def spawn(self, argv: list[str | Path], cwd: str | Path | None = None, env: dict[str, str] = {}) -> Process:
        """Starts a command with pipes for its streams. env is added to the machine's own."""
        raise NotImplementedError

    def run(
        self,
        argv: list[str | Path],
        input: bytes | None = None,
        timeout: float = 60,
        check: bool = True,
        cwd: str | Path | None = None,
        env: dict[str, str] = {},
    ) -> Result:
        """Runs a command to its end. With check, a status other than 0 is a HostError that shows the output."""
        __tracebackhide__ = True
        process = self.spawn(argv, cwd=cwd, env=env)
        if input:
            process.write(input)
        process.close_stdin()
        try:
            rc = process.wait(timeout)
        except HostError:
            process.kill()
            raise
        result = Result(rc, process.stdout, process.stderr)
        if check and rc != 0:
            raise HostError(f"{process} failed ({rc}) on the {self.where} host{process._words()}")
        return result

    def read(self, path: str | Path) -> bytes:
        return self.run(["cat", path]).stdout

    def write(self, path: str | Path, data: bytes) -> None:
        self.run(["sh", "-c", 'cat >"$1"', "sh", path], input=data)

    def close(self) -> None:
        """Ends every process that was started on it, and the machine if it was started for the tests."""


class _LocalProcess(Process):
    def __init__(self, argv: list[str], cwd: str | Path | None, env: dict[str, str]) -> None:
        super().__init__(argv)
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=os.environ | env, start_new_session=True
        )
        self.pid = self._popen.pid
        self._pending: list[bytes | None] = []  # input to be written; None ends it
        readers = [
            threading.Thread(target=self._pump, args=args, daemon=True)
            for args in ((self._popen.stdout, self._stdout), (self._popen.stderr, self._stderr))
        ]
        for thread in (*readers, threading.Thread(target=self._pump_input, daemon=True)):
            thread.start()
        threading.Thread(target=self._watch, args=(readers,), daemon=True).start()

    def _pump(self, pipe, stream: bytearray) -> None:
        while data := os.read(pipe.fileno(), 65536):
            self._feed(stream, data)

    def _pump_input(self) -> None:
        assert self._popen.stdin
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._rc is not None)
                data = self._pending.pop(0) if self._pending else None
            try:
                if data is None:
                    self._popen.stdin.close()
                    return
                self._popen.stdin.write(data)
                self._popen.stdin.flush()
            except BrokenPipeError:
                return

    def _watch(self, readers: list[threading.Thread]) -> None:
        rc = self._popen.wait()
        for thread in readers:
            thread.join(0.5)  # what it left running behind it may hold its output open
        self._end(rc)

    def _queue(self, data: bytes | None) -> None:
        with self._changed:
            self._pending.append(data)
            self._changed.notify_all()

    def write(self, data: bytes) -> None:
        self._queue(data)

    def close_stdin(self) -> None:
        self._queue(None)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._popen.send_signal(number)


class LocalHost(Host):
    """This machine, within the build root."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._started: list[_LocalProcess] = []

    def spawn(self, argv: list[str | Path], cwd: str | Path | None = None, env: dict[str, str] = {}) -> Process:
        words = [str(word) for word in argv]
        try:
            process = _LocalProcess(words, cwd, env)
        except OSError as error:
            raise HostError(f"cannot run {shlex.join(words)}: {error}") from error
        self._started = [old for old in self._started if old.running] + [process]
        return process

    def close(self) -> None:
        for process in self._started:
            if process.running:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class _NestedProcess(Process):
    """One connection to the agent: see tests/host/agent.c for the frames."""

    def __init__(self, host: "NestedHost", argv: list[str], cwd: str, env: dict[str, str], size=None) -> None:
        super().__init__(argv)
        self._socket = socket.create_connection(("127.0.0.1", host.port), timeout=BOOT_SECONDS)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outgoing: list[bytes | None] = []
        start = [(b"T", host.token.encode()), *((b"A", word.encode()) for word in argv), (b"D", cwd.encode())]
        start += [(b"E", f"{name}={value}".encode()) for name, value in env.items()]
        if size:
            start.append((b"Y", struct.pack("<HH", *size)))
        self._socket.sendall(b"".join(self._frame(*frame) for frame in [*start, (b"G", b"")]))
        kind, payload = self._receive()
        if kind != b"P":
            raise HostError(f"{self}: {payload.decode(errors='replace')}" if kind else host.lost(str(self)))
        (self.pid,) = struct.unpack("<i", payload)
        self._host = host
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    @staticmethod
    def _frame(kind: bytes, payload: bytes) -> bytes:
        return kind + struct.pack("<I", len(payload)) + payload

    def _receive(self) -> tuple[bytes, bytes]:
        """The next frame; an empty type when the agent is gone."""
        head = self._receive_exactly(5)
        if len(head) < 5:
            return b"", b""
        return head[:1], self._receive_exactly(struct.unpack("<I", head[1:])[0])

    def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        try:
            while len(data) < size and (part := self._socket.recv(size - len(data))):
                data += part
        except OSError:
            pass
        return bytes(data)

    def _read(self) -> None:
        while True:
            kind, payload = self._receive()
            if kind == b"O":
                self._feed(self._stdout, payload)
            elif kind == b"R":
                self._feed(self._stderr, payload)
            elif kind == b"X":
                status = os.waitstatus_to_exitcode(struct.unpack("<i", payload)[0])
                break
            else:
                self._feed(self._stderr, self._host.lost(str(self)).encode())
                status = 255
                break
        self._end(status)
        self._socket.close()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outgoing or self._rc is not None)
                if self._rc is not None:
                    return
                frames = b"".join(self._outgoing)
                self._outgoing.clear()
            try:
                self._socket.sendall(frames)
            except OSError:
                return

    def _send(self, kind: bytes, payload: bytes) -> None:
        with self._changed:
            self._outgoing.append(self._frame(kind, payload))
            self._changed.notify_all()

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            self._send(b"I", data[start : start + 65536])

    def close_stdin(self) -> None:
        self._send(b"C", b"")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._send(b"S", struct.pack("<i", number))


# Process 1 of the nested host until the agent takes over. Everything it needs comes by the kernel's command line, whose
# unknown words the kernel puts into its environment.
_INIT = r"""
share() { mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,noxattr,$2 "$1" "$3" || echo "host: no $1"; }
mkdir -p /lower /upper /new
share root ro,cache=loose /lower
mount -t tmpfs -o size=50% upper /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new
cd /new
mount -t devtmpfs dev dev; mount -t proc proc proc; mount -t sysfs sys sys
mkdir -p dev/pts dev/shm
echo advise >sys/kernel/mm/transparent_hugepage/shmem_enabled # as the image does
mount -t devpts -o ptmxmode=666 pts dev/pts; mount -t tmpfs shm dev/shm
mount -t tmpfs -o mode=1777,size=75% tmp tmp; mount -t tmpfs -o mode=755 run run
mount -t cgroup2 cgroup sys/fs/cgroup; mount -t debugfs debug sys/kernel/debug
mount -t tracefs trace sys/kernel/tracing; mount -t securityfs security sys/kernel/security
# Not cache=loose: what the tests change outside while the host runs must be seen inside.
for i in clone cache; do
    eval dir=\$glint_$i
    mkdir -p ".$dir"
    share $i cache=mmap ".$dir"
done
mkdir -p lib/modules
ln -sfn "/opt/kernel-amd64/lib/modules/$(uname -r)" "lib/modules/$(uname -r)"
chroot . modprobe -a virtio_net virtio_rng kvm-amd || echo "host: not every module is there"
chroot . modprobe -a tun tap bridge vhost_net loop 2>/dev/null || echo "host: not every module is there"
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
hostname glint-host
export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export GLINT_CLONE="$glint_clone" GLINT_CACHE="$glint_cache"
unset glint_clone glint_cache
umount /proc /sys
exec switch_root /new "$GLINT_CLONE/build/release/tests/host/agent" </dev/console >/dev/console 2>&1
"""


class NestedHost(Host):
    """A machine emulated by QEMU with nested virtualisation (AMD's, the one QEMU emulates)."""

    where = "nested"

    def __init__(self, cpus: int = 2, memory: str = "4G") -> None:
        """Boots it; returns when it takes commands. memory: in QEMU's words, used up only as the host touches it."""
        self.token = secrets.token_hex(16)
        self._folder = tempfile.TemporaryDirectory(prefix="glint-host-")
        self._log = bytearray()
        self._changed = threading.Condition()
        began = time.monotonic()
        # The parent-death signal is tied to the thread that starts QEMU: it must be one that lives on.
        self._qemu = subprocess.Popen(
            self._command(cpus, memory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LD_PRELOAD": str(BUILD / "tests/host/libcr8.so")},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        threading.Thread(target=self._keep_log, daemon=True).start()
        try:
            self._wait_ready(began + BOOT_SECONDS)
            self.port = self._forwarded_port()
            self.run(["true"])
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - began

    def _command(self, cpus: int, memory: str) -> list[str]:
        for needed in ("tests/host/agent", "tests/host/libcr8.so"):
            if not (BUILD / needed).exists():
                raise HostError(f"the nested host needs {BUILD / needed}: compile first (./test does)")
        cache = os.environ["GLINT_CACHE"]
        modules = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
        words = ["console=ttyS0", "earlyprintk=ttyS0", "quiet", "panic=-1", f"glint_token={self.token}"]
        words += [f"glint_clone={CLONE}", f"glint_cache={cache}"]
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU]
        command += ["-smp", str(cpus), "-m", memory, "-serial", "stdio"]
        command += ["-qmp", f"unix:{self._folder.name}/qmp,server=on,wait=off"]
        command += ["-kernel", str(KERNEL / "vmlinuz"), "-append", " ".join(words)]
        command += ["-initrd", str(busybox_initrd(_INIT, modules, KERNEL))]
        command += ["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:1", "-device", "virtio-net,netdev=net"]
        command += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng,rng=rng"]
        for tag, path, options in (("root", "/", ",readonly=on"), ("clone", CLONE, ""), ("cache", cache, "")):
            share = f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"
            command += ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return command

    def _keep_log(self) -> None:
        assert self._qemu.stdout
        while data := os.read(self._qemu.stdout.fileno(), 65536):
            with self._changed:
                self._log += data
                self._changed.notify_all()
        with self._changed:
            self._log += b"\n(QEMU ended)\n"
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """What its console and QEMU have written."""
        return _tail(self._log, 20000)

    def lost(self, what: str) -> str:
        return f"{what}: the nested host is gone; its console:\n{self.log}"

    def _wait_ready(self, deadline: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: b"agent: ready" in self._log or b"(QEMU ended)" in self._log, deadline - time.monotonic()
            )
            if b"(QEMU ended)" in self._log:
                raise HostError(f"the nested host ended while booting; its console:\n{self.log}")
            if b"agent: ready" not in self._log:
                raise HostError(f"the nested host did not boot within {BOOT_SECONDS} s; its console:\n{self.log}")

    def _forwarded_port(self) -> int:
        """The port QEMU chose for the agent on 127.0.0.1: it tells by its monitor only."""
        with socket.socket(socket.AF_UNIX) as monitor, monitor.makefile("rwb") as stream:
            monitor.connect(f"{self._folder.name}/qmp")
            answer = {}
            for command in ("qmp_capabilities", "human-monitor-command"):
                arguments = {"command-line": "info usernet"} if command.startswith("human") else {}
                stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    pass
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", answer["return"])
        if not match:
            raise HostError(f"QEMU does not tell where it forwards the agent's port: {answer['return']}")
        return int(match[1])

    def spawn(
        self,
        argv: list[str | Path],
        cwd: str | Path | None = None,
        env: dict[str, str] = {},
        size: tuple[int, int] | None = None,
    ) -> Process:
        """size: rows and columns, to run it on a terminal instead of pipes."""
        return _NestedProcess(self, [str(word) for word in argv], str(cwd or CLONE), env, size)

    def close(self) -> None:
        # Nothing of it is kept, so there is nothing to shut down in order.
        self._qemu.kill()
        self._qemu.wait()
        self._folder.cleanup()


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def kvm_runs_stock_kernels() -> bool:
    """Whether this machine's /dev/kvm is the hardware's: without vmx or svm it may open and yet interpret."""
    if not re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        return False
    try:
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            return fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12
    except OSError:
        return False


def describe() -> str:
    """One line: which machine start_host() gives."""
    if kvm_runs_stock_kernels():
        return "kvm (this machine's /dev/kvm)"
    return "nested (emulated by QEMU: this machine's /dev/kvm cannot run a stock kernel)"


def start_host() -> Host:
    """The machine that runs stock guests: this one where it can, an emulated one where not."""
    return LocalHost("kvm") if kvm_runs_stock_kernels() else NestedHost()
