"""The host the other tests run on is one: it has KVM, and a stock kernel and stock firmware run on it."""

import shutil
from pathlib import Path

import pytest

from host import Host
from initrd import CLOUD_KERNEL, busybox_initrd

INIT = """
echo "guest: cpus $(grep -c ^processor /proc/cpuinfo) kernel $(uname -r)"
read line
echo "guest: read $line"
poweroff -f
"""


@pytest.fixture
def initrd() -> Path:
    return busybox_initrd(INIT)


def qemu(initrd: Path, *more: str) -> list[str]:
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M", "-smp", "2"]
    command += ["-kernel", str(CLOUD_KERNEL / "vmlinuz"), "-initrd", str(initrd)]
    return [*command, "-append", "console=ttyS0 quiet panic=-1", *more]


def converse(host: Host, command: list[str]) -> None:
    guest = host.spawn(command)
    guest.read_until("guest: cpus 2 kernel 6", timeout=120)
    guest.write(b"hello\n")
    guest.read_until("guest: read hello")
    assert guest.wait() == 0


def test_stock_firmware_and_kernel(host: Host, initrd: Path) -> None:
    """And a stock kernel. OVMF's interrupt returns are what QEMU's emulation stumbles over without tests/host/cr8.c."""
    code, variables = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
    flash = [f"if=pflash,format=raw,readonly=on,file={code}", f"if=pflash,format=raw,snapshot=on,file={variables}"]
    converse(host, qemu(initrd, "-drive", flash[0], "-drive", flash[1]))


def test_commands(host: Host, native: Host, tmp_path: Path) -> None:
    """Both kinds of machine run commands alike: streams, status, signals, environment, files."""
    for machine in (host, native):
        result = machine.run(["sh", "-c", 'cat; echo "$WORD" >&2; exit 3'], b"in\0put", check=False, env={"WORD": "w"})
        assert result == (3, b"in\0put", b"w\n")
        assert machine.run(["pwd"], cwd="/usr").text == "/usr\n"
        with pytest.raises(RuntimeError, match="no-such-command"):
            machine.run(["no-such-command"])
        with pytest.raises(RuntimeError, match="its errors ---\nwhy"):
            machine.run(["sh", "-c", "echo why >&2; false"])
        with pytest.raises(RuntimeError, match="still runs"):
            machine.run(["sleep", "60"], timeout=0.5)

        stopped = machine.spawn(["sh", "-c", 'trap "echo caught" TERM; echo pid $$; while :; do sleep 0.1; done'])
        assert stopped.read_until(r"pid \d+\n") == b"pid %d\n" % stopped.pid
        stopped.kill(15)
        stopped.read_until("caught")
        stopped.kill(9)
        assert stopped.wait() == -9

        data = bytes(range(256)) * 20000
        machine.write("/tmp/glint-test-file", data)
        assert machine.read("/tmp/glint-test-file") == data
        machine.run(["rm", "/tmp/glint-test-file"])


def test_a_clone_is_shared(host: Host) -> None:
    """What changes outside while the host runs is seen inside, and the other way round."""
    folder = Path(__file__).resolve().parents[2] / "build" / "shared-with-host"
    folder.mkdir(parents=True, exist_ok=True)
    for round_ in range(3):
        (folder / "out").write_text(f"outside {round_} {'x' * round_}")
        assert host.run(["cat", folder / "out"]).text == (folder / "out").read_text()
        host.run(["sh", "-c", f"echo inside {round_} >{folder}/in"])
        assert (folder / "in").read_text() == f"inside {round_}\n"
    shutil.rmtree(folder)


def test_lock_check_workaround_refuses(native: Host) -> None:
    """Where QEMU's code does not look as expected, tests/host/cr8.c ends the process and says so."""
    library = Path(__file__).resolve().parents[2] / "build/release/tests/host/libcr8.so"
    result = native.run(["/bin/true"], check=False, env={"LD_PRELOAD": str(library)})
    assert result.rc == 125
    assert b"cannot switch off the lock check" in result.stderr
