"""The sandbox holds: what a device taken over by its guest might try is refused, by every layer that claims to.

sandbox_probe locks itself in as glint-vmm does and makes one attempt (its head tells how). Each attempt runs with no
sandbox, where it must succeed, or else the test would pass without one; with the whole sandbox, on every kind of
thread; and with single layers, for each should hold without the others.
"""
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

RELEASE = Path(__file__).resolve().parents[2] / "build/release"
PROBE = RELEASE / "tests/native/sandbox_probe"
NOBODY = 65534
THREADS = {"main": "main", "vcpu": "vCPU", "io": "I/O"}
VIOLATION = 128 + signal.SIGSYS
REFUSED, ABSENT = 1, 3
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000

# Attempt: the layers that refuse it alone, besides the system call filter, and with what. For root.
ATTEMPTS: dict[str, dict[str, str]] = {
    "open": {"namespaces": "ENOENT", "landlock": "EACCES"},
    "openat2": {"namespaces": "ENOENT"},
    "open-descriptor": {"namespaces": "ENOENT"},
    "open-below": {"landlock": "EACCES"},
    "create": {"namespaces": "ENOENT", "landlock": "EACCES"},
    "list": {},
    "enter-directory": {},
    "socket": {},
    "tcp": {"namespaces": "ENETUNREACH", "landlock": "EACCES"},
    "tcp-held": {"landlock": "EACCES"},
    "udp": {"namespaces": "ENETUNREACH"},
    "udp-held": {},
    "listen": {"landlock": "EACCES"},
    "unix-path": {"namespaces": "ENOENT"},
    "unix-abstract": {"namespaces": "ECONNREFUSED", "landlock": "EPERM"},
    "ptrace": {"capabilities": "EPERM", "landlock": "EPERM"},
    "kill": {"landlock": "EPERM"},
    "tgkill": {"landlock": "EPERM"},
    "sigqueue": {"landlock": "EPERM"},
    "pidfd-open": {},
    "pidfd-signal": {"landlock": "EPERM"},
    "pidfd-getfd": {"capabilities": "EPERM", "landlock": "EPERM"},
    "async-signal": {},
    "read-proc": {"namespaces": "ENOENT", "landlock": "EACCES"},
    "read-memory": {"capabilities": "EPERM", "landlock": "EPERM"},
    "write-memory": {"capabilities": "EPERM", "landlock": "EPERM"},
    "priority": {"capabilities": "EPERM"},
    "fsopen": {"capabilities": "EPERM"},
    "unshare": {"capabilities": "EPERM"},
    "user-namespace": {"namespaces": "EPERM"},
    "setns": {"capabilities": "EPERM"},
    "chroot": {"capabilities": "EPERM"},
    "hostname": {"capabilities": "EPERM"},
    "keyctl": {},
    "bpf": {"capabilities": "EPERM"},
    "perf": {},
    "userfaultfd": {},
    "raise-dumpable": {},
    "personality": {},
    "uname": {},
    "execve": {"namespaces": "ENOENT", "landlock": "EACCES"},
    "exec-memfd": {},
    "fork": {},
    "thread": {},
    "mmap-exec": {"privileges": "EACCES"},
    "mprotect-exec": {"privileges": "EACCES"},
    "map-file-exec": {},
    "handler": {},
    "compat": {},
    "x32": {},
    "kvm-new-vm": {},
    "kvm-new-vcpu": {},
    "ioctl": {},
    "ring-setup": {},
    "ring-register": {"ring": "EACCES"},
}
# The same through an I/O thread's ring, which system call filters do not see.
RING_ATTEMPTS: dict[str, dict[str, str]] = {
    "ring-openat": {"ring": "EACCES", "namespaces": "ENOENT", "landlock": "EACCES"},
    "ring-open-below": {"ring": "EACCES", "landlock": "EACCES"},
    "ring-socket": {"ring": "EACCES"},
    "ring-connect": {"ring": "EACCES", "landlock": "EACCES"},
    "ring-send": {"ring": "EACCES"},
    "ring-command": {"ring": "EACCES"},
    "ring-unlink": {"ring": "EACCES", "namespaces": "ENOENT", "landlock": "EACCES"},
    "ring-plain-descriptor": {"ring": "EACCES"},
}
# What this machine's kernel may lack, and what only root may do to begin with.
OPTIONAL = {"x32", "compat", "bpf", "keyctl", "perf", "userfaultfd", "kvm-new-vm", "kvm-new-vcpu"}
ROOT_ONLY = {"fsopen", "unshare", "setns", "chroot", "hostname", "bpf"}
CHROOTED = {"user-namespace"}
# Killed by the kernel without a word: calls of another ABI, and those that glibc makes with all signals blocked.
WORDLESS = {"compat", "x32", "fork", "thread"}


@pytest.fixture(scope="module")
def probe():
    """A copy that any user can run: the build folder may lie in somebody's home."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        os.chmod(folder, 0o755)
        yield shutil.copy(PROBE, folder)


@pytest.fixture(scope="module", params=["root", "nobody"])
def user(request) -> dict:
    if request.param == "root":
        return {}
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    if subprocess.run(["unshare", "--user", "true"], **as_nobody, capture_output=True).returncode:
        pytest.skip("this system lets no ordinary user make a user namespace (in a chroot none may)")
    return as_nobody


def run(probe: str, user: dict, layers: str, thread: str, attempt: str) -> subprocess.CompletedProcess:
    return subprocess.run([probe, layers, thread, attempt], **user, cwd="/", capture_output=True, text=True, timeout=20)


def may_be_absent(attempt: str) -> bool:
    chrooted = attempt in CHROOTED and subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode
    return attempt in OPTIONAL or bool(chrooted)


@pytest.mark.parametrize("attempt", [*ATTEMPTS, *RING_ATTEMPTS])
def test_succeeds_without_a_sandbox(probe, user, attempt):
    if user and attempt in ROOT_ONLY:
        pytest.skip("refused to ordinary users anyway")
    result = run(probe, user, "none", "io" if attempt in RING_ATTEMPTS else "main", attempt)
    if may_be_absent(attempt) and result.returncode in (REFUSED, ABSENT):
        pytest.skip(f"this machine has it not: {result.stdout.strip()}")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_ends_the_process(probe, user, thread, attempt):
    result = run(probe, user, "all", thread, attempt)
    if result.returncode == ABSENT and attempt.startswith("kvm"):
        pytest.skip("no /dev/kvm for this user")
    if result.returncode == -signal.SIGSYS and attempt in WORDLESS:
        return
    assert result.returncode == VIOLATION, result.stdout + result.stderr
    assert f"the {THREADS[thread]} thread made system call " in result.stderr


@pytest.mark.parametrize("attempt", RING_ATTEMPTS)
def test_ring_refuses(probe, user, attempt):
    result = run(probe, user, "all", "io", attempt)
    assert (result.returncode, result.stdout) == (REFUSED, "EACCES\n"), result.stderr


@pytest.mark.parametrize("attempt,layer,answer", [(attempt, layer, answer)
                                                  for attempt, layers in {**ATTEMPTS, **RING_ATTEMPTS}.items()
                                                  for layer, answer in layers.items()])
def test_layer_holds_alone(probe, attempt, layer, answer):
    result = run(probe, {}, layer, "io" if layer == "ring" or attempt in RING_ATTEMPTS else "main", attempt)
    if result.returncode == ABSENT and attempt in OPTIONAL:
        pytest.skip(f"this machine has it not: {result.stdout.strip()}")
    assert (result.returncode, result.stdout) == (REFUSED, answer + "\n"), result.stderr


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_filter_holds_alone(probe, thread, attempt):
    result = run(probe, {}, "seccomp", thread, attempt)
    if result.returncode == ABSENT and attempt.startswith("kvm"):
        pytest.skip("no /dev/kvm")
    assert result.returncode in (VIOLATION, -signal.SIGSYS), result.stdout + result.stderr


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("work", ["nothing", "own-kick", "heap"])
def test_leaves_what_is_needed(probe, user, thread, work):
    result = run(probe, user, "all", thread, work)
    assert result.returncode == 0, result.stdout + result.stderr


def status_of(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def check_locked_in(task: Path) -> None:
    status = status_of(task)
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, capabilities
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert os.listdir(task / "root") == []
    for namespace in ("mnt", "net", "ipc", "uts"):
        assert os.readlink(task / "ns" / namespace) != os.readlink(f"/proc/self/ns/{namespace}"), namespace


def test_seen_from_outside(probe, user):
    locked = subprocess.Popen([probe, "all", "main", "staying"], **user, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)
    try:
        assert locked.stdout.readline() == b"staying\n"
        proc = Path(f"/proc/{locked.pid}")
        check_locked_in(proc)
        assert os.stat(proc / "fd").st_uid == 0, "it can be dumped"
        core = next(line for line in (proc / "limits").read_text().splitlines() if "core" in line)
        assert core.split()[4:6] == ["0", "0"], core
    finally:
        locked.communicate(timeout=10)


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="no /dev/kvm")
def test_monitor_is_locked_in():
    """Not the probe but glint-vmm itself, on each of its threads, before its guest runs; and it goes on working."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    with tempfile.NamedTemporaryFile() as disk, ours:
        disk.truncate(1 << 20)
        vmm = subprocess.Popen(
            [RELEASE / "vmm/glint-vmm", "--name", "locked", "--memory", "64M", "--cpus", "2", "--paused", "--rng",
             "--kernel", RELEASE / "tests/native/guest", "--cmdline", "test=idle", "--serial", "none",
             "--disk", f"path={disk.name}", "--control", f"fd={theirs.fileno()}"],
            pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        theirs.close()
        try:
            for method in ("status", "resume", "status"):
                ours.send(json.dumps({"jsonrpc": "2.0", "method": method, "id": method}).encode())
                while (answer := json.loads(ours.recv(65536))).get("id") != method:
                    pass
                assert "result" in answer, answer
                tasks = list(Path(f"/proc/{vmm.pid}/task").iterdir())
                assert len(tasks) >= 4  # main, two vCPUs, one I/O thread
                for task in tasks:
                    check_locked_in(task)
            assert answer["result"]["state"] == "running"
            for fd in Path(f"/proc/{vmm.pid}/fd").iterdir():
                assert not fd.is_dir(), f"a directory is open: {os.readlink(fd)}"
            ours.send(b'{"jsonrpc":"2.0","method":"quit"}')
            assert vmm.wait(10) == 0, vmm.stderr.read()
        finally:
            vmm.kill()
            vmm.communicate()


def enter_chroot(folder: str) -> None:
    """In the child: this very root again, but by chroot, and in a mount namespace that dies with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.unshare(os.CLONE_NEWNS)
    libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None)  # refused in a chroot, where nothing is shared anyway
    if libc.mount(b"/", folder.encode(), None, MS_BIND | MS_REC, None):
        raise OSError(ctypes.get_errno(), "bind the root")
    os.chroot(folder)
    os.chdir("/")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def test_unprivileged_without_user_namespaces_says_so(probe):
    """In a chroot no user may make a user namespace: the error names that, and nothing runs half locked in."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        result = subprocess.run([probe, "all", "main", "nothing"], preexec_fn=lambda: enter_chroot(folder),
                                capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert "namespaces in a user namespace" in result.stderr
    assert "hint:" in result.stderr and "CAP_SYS_ADMIN" in result.stderr
