"""What glint-vmm says to a wrong command line: what was being done, to what, why not; and it leaves nothing behind."""

import json
import os
import pty
import re
import select
import socket
import subprocess
import time
from pathlib import Path

import pytest

from host import BUILD

VMM = BUILD / "vmm/glint-vmm"
HELLO = BUILD / "tests/native/hello"
GUEST = BUILD / "tests/native/guest"


def vmm(*args: object, **kwargs) -> subprocess.CompletedProcess:
    argv = [VMM, *map(str, args)]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, **kwargs)


def test_help_and_version() -> None:
    shown = vmm("--help")
    assert shown.returncode == 0 and not shown.stderr
    for option in ("--memory", "--cpus", "--kernel", "--disk", "--control", "--restore", "--sandbox"):
        assert option in shown.stdout
    assert re.fullmatch(r"glint-vmm \d+\.\d+\.\d+\n", vmm("--version").stdout)


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "nothing to run"),
        (["--kernel"], "--kernel"),
        (["--no-such-option"], "--no-such-option"),
        (["--kernel", HELLO, "left-over"], "left-over"),
        (["--kernel", "/no/such/file"], "/no/such/file: No such file"),
        (["--kernel", "/"], "Is a directory"),
        (["--kernel", "/dev/null"], "/dev/null"),
        (["--kernel", "/etc/passwd"], "/etc/passwd"),
        (["--kernel", HELLO, "--kernel", HELLO], "twice"),
        (["--config", "/no/such/file"], "/no/such/file"),
        (["--config", "/dev/zero"], "not a file"),
        (["--kernel", HELLO, "--initrd", "/no/such/file"], "--initrd"),
        (["--kernel", HELLO, "--memory", "0"], "--memory"),
        (["--kernel", HELLO, "--memory", "17"], "--memory"),
        (["--kernel", HELLO, "--memory", "-1"], "not a size"),
        (["--kernel", HELLO, "--memory", "5T"], "--memory"),
        (["--kernel", HELLO, "--memory", "99999999999999999999"], "more than can be counted"),
        (["--kernel", HELLO, "--memory", "12X"], "not a size"),
        (["--kernel", HELLO, "--cpus", "0"], "out of range"),
        (["--kernel", HELLO, "--cpus", "257"], "out of range"),
        (["--kernel", HELLO, "--cpus", "two"], "not a whole number"),
        (["--kernel", HELLO, "--disk", "queues=2"], "names no file"),
        (["--kernel", HELLO, "--disk", "path=/no/such/disk"], "/no/such/disk"),
        (["--kernel", HELLO, "--disk", "/dev/null"], "/dev/null"),
        (["--kernel", HELLO, "--disk", "/etc/passwd,queues=99"], "queues"),
        (["--kernel", HELLO, "--disk", "/etc/passwd,speed=9"], "'speed' is not known"),
        (["--kernel", HELLO, "--disk", "/etc/passwd,readonly=maybe"], "neither 'on' nor 'off'"),
        (["--kernel", HELLO, "--disk", "/etc/passwd,id=a/b"], "'a/b' is not an id"),
        (["--kernel", HELLO, "--disk", "/etc/passwd,on-error=cry"], "on-error"),
        (["--kernel", HELLO, "--kvm", "fd=77"], "descriptor 77"),
        (["--kernel", HELLO, "--kvm", "/no/kvm"], "/no/kvm"),
        (["--kernel", "fd=99"], "descriptor 99"),
        (["--kernel", "fd=x"], "fd=x"),
        (["--kernel", HELLO, "--control", "/no/such/folder/socket"], "/no/such/folder/socket"),
        (["--kernel", HELLO, "--control", "/" + "x" * 200], "File name too long"),
        (["--kernel", HELLO, "--serial", "loud"], "--serial"),
        (["--kernel", HELLO, "--restore", HELLO], "exclude each other"),
        (["--restore", "/etc/passwd"], "/etc/passwd"),
        (["--restore", "/dev/null"], "/dev/null"),
        (["--kernel", HELLO, "--log-level", "shout"], "shout"),
    ],
)
def test_bad_words(args: list, words: str) -> None:
    result = vmm(*args)
    assert result.returncode == 1, result
    assert words in result.stderr and result.stdout == ""
    assert all(line.startswith("glint-vmm: ") for line in result.stderr.splitlines())


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    script = f"""source {BUILD}/vmm/glint-vmm.bash; compopt() {{ :; }}
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _glint_vmm; printf '%s\\n' "${{COMPREPLY[@]}}" """
    ran = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_manual_and_completion(tmp_path: Path) -> None:
    """Both know every option that --help knows."""
    names = re.findall(r"^  --([a-z-]+)", vmm("--help").stdout, re.M)
    page = (BUILD / "vmm/glint-vmm.1").read_text()
    assert len(names) > 15 and all("\\fB\\-\\-" + name.replace("-", "\\-") + "\\fR" in page for name in names)
    assert complete("glint-vmm", "--") == [f"--{name}" for name in names]
    assert complete("glint-vmm", "--log-level", "w") == ["warning"]
    assert "queues=" in complete("glint-vmm", "--disk", "")
    assert complete("glint-vmm", "--disk", "a.raw,readonly", "=", "o") == ["on", "off"]
    (tmp_path / "kernel").touch()
    assert complete("glint-vmm", "--kernel", f"{tmp_path}/k") == [f"{tmp_path}/kernel"]


def run_with(tmp_path: Path, options: object, *args: object) -> subprocess.CompletedProcess:
    (tmp_path / "vm.json").write_text(options if isinstance(options, str) else json.dumps(options))
    return vmm("--config", tmp_path / "vm.json", *args)


def test_config_file(tmp_path: Path) -> None:
    """A JSON file says what the command line can say, which goes before it; a comma in a path is written twice."""
    (tmp_path / "a,b").write_bytes(bytes(4096))
    words = {"kernel": str(GUEST), "cmdline": "test=pci-scan", "memory": "64M", "rng": True, "cpus": 1}
    disks = [{"path": str(tmp_path / "a,b"), "readonly": True}]
    ran = run_with(tmp_path, words | {"disk": disks}, "--memory", "65M")
    assert ran.returncode == 0, ran
    assert "ram 65 MiB" in ran.stdout and "1af4:1044" in ran.stdout and ran.stdout.count("1af4:1042") == 1
    (tmp_path / "c").write_bytes(bytes(4096))
    path = str(tmp_path / "a,b").replace(",", ",,")
    ran = run_with(tmp_path, words | {"disk": str(tmp_path / "c")}, "-drive", f"file={path},readonly=on")
    assert ran.returncode == 0 and ran.stdout.count("1af4:1042") == 2, ran


@pytest.mark.parametrize(
    "options, words",
    [
        ("", "line 1, column 0"),
        ("[]", "not a JSON object"),
        ('{"cpus": 1, "cpus": 2}', "duplicate"),
        ({"no-such": 1}, "'no-such' is not known"),
        ({"cpus": "many"}, "cpus: 'many'"),
        ({"cpus": 0}, "out of range"),
        ({"cpus": 1.5}, "wrong kind"),
        ({"rng": "maybe"}, "neither 'on' nor 'off'"),
        ({"rng": 1}, "true or false"),
        ({"disk": [{"path": "a"}, {"path": "b", "queues": 99}]}, "disk[1]: queues"),
        ({"disk": [{"id": "a"}]}, "names no file"),
        ({"disk": [["a"]]}, "disk[0]"),
        ({"config": "/etc/passwd"}, "another file"),
        ({"memory": 17 << 20, "m": "5M"}, "twice"),
    ],
)
def test_bad_config_file(tmp_path: Path, options: object, words: str) -> None:
    result = run_with(tmp_path, options, "--kernel", HELLO)
    assert result.returncode == 1 and words in result.stderr and "vm.json" in result.stderr, result


def test_no_kvm() -> None:
    """Neither a missing /dev/kvm nor one that is not KVM is taken for one."""
    with open("/dev/null") as null:
        result = vmm("--kernel", HELLO, "--kvm", f"fd={null.fileno()}", pass_fds=[null.fileno()])
    assert result.returncode == 1 and "not KVM" in result.stderr
    hide = 'mount -t tmpfs tmpfs /dev && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", hide, "sh", str(VMM), "--kernel", str(HELLO)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert result.returncode == 1 and "open /dev/kvm: No such file" in result.stderr and "hint:" in result.stderr


def answers(path: Path) -> bool:
    """Whether somebody listens at @path within 20 seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            if client.connect_ex(str(path)) == 0:
                return True
        time.sleep(0.01)
    return False


def test_nothing_is_left(tmp_path: Path) -> None:
    """A monitor that could not start made no file; one that ended leaves a socket that the next one takes over."""
    assert vmm("--kernel", "/etc/passwd", "--disk", "/no/disk", "--control", tmp_path / "s").returncode == 1
    for _ in range(2):
        assert vmm("--kernel", HELLO, "--control", tmp_path / "s").returncode == 0
    busy = subprocess.Popen(
        [VMM, "--kernel", GUEST, "--cmdline", "test=idle", "--control", tmp_path / "s", "--serial", "none"],
        stderr=subprocess.PIPE,
    )
    try:
        assert answers(tmp_path / "s"), "it does not listen"
        second = vmm("--kernel", HELLO, "--control", tmp_path / "s")
        assert second.returncode == 1 and "another process answers" in second.stderr
    finally:
        busy.terminate()
        assert busy.wait(10) == 0
    (tmp_path / "file").write_text("precious")
    assert vmm("--kernel", HELLO, "--control", tmp_path / "file").returncode == 1
    assert (tmp_path / "file").read_text() == "precious"


def test_terminal() -> None:
    """On a terminal every key is the guest's, but Ctrl-A x; the terminal is as before when the monitor ends."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", f'"{VMM}" --kernel "{GUEST}" --cmdline test=serial-echo; echo "rc $?"; stty -a'])
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while words not in seen and select.select([master], [], [], max(0, deadline - time.monotonic()))[0]:
            seen += os.read(master, 4096)
        assert words in seen, seen

    until(b"ECHO ready")
    os.write(master, b"a\x03b\x01\x01c\n")
    until(b"ECHO 5 a\x03b\x01c")
    os.write(master, b"\x01x")
    until(b"rc 0")
    until(b" echo")
    assert b"-icanon" not in seen and b"\nisig icanon" in seen
    os.waitpid(pid, 0)
    os.close(master)
