"""glint-health beside the real keeper, database and monitor: what it takes for healthy, and what becomes of the slot.

A host's firmware variables, block devices and ESP are files in a folder; a restart is a program that notes it."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import BUILD
from test_keeper import Host

HEALTH = BUILD / "node/health/glint-health"
UUID = "00112233-4455-6677-8899-aabbccddeeff"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"


class Box:
    """A host that was started from a slot of a stick."""

    def __init__(self, folder: Path, *slots: str):
        self.folder, self.esp = folder, folder / "esps" / UUID / "sda"
        for made in (self.esp.parent, folder / "efivars", folder / "sys/0:0"):
            made.mkdir(parents=True)
        with self.esp.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.vfat", "-F", "32", self.esp], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mmd", "-i", self.esp, "::EFI", "::EFI/Linux"], check=True)
        (folder / "slot").write_bytes(b"a slot" * 1000)
        for slot in slots:
            subprocess.run(["mcopy", "-i", self.esp, folder / "slot", f"::EFI/Linux/{slot}"], check=True)
        for name, value in (("partition", 1), ("start", 2048), ("size", 131072)):
            (folder / "sys/0:0" / name).write_text(f"{value}\n")
        self.say("LoaderDevicePartUUID", UUID.upper())
        if slots:
            self.say("StubImageIdentifier", f"\\EFI\\Linux\\{slots[0]}")
            self.say("LoaderEntries", "\0".join(["other", *slots]))
        (folder / "efivars" / f"BootOrder-{GLOBAL}").write_bytes(b"\7\0\0\0\1\0\2\0")
        restart = folder / "restart"
        restart.write_text(f"#!/bin/sh\necho $* >>{folder}/restarted\n")
        restart.chmod(0o755)
        self.host = Host(folder / "run", None)

    def say(self, name: str, value: str) -> None:
        (self.folder / "efivars" / f"{name}-{LOADER}").write_bytes(b"\6\0\0\0" + (value + "\0").encode("utf-16-le"))

    def slots(self) -> list[str]:
        listed = subprocess.run(["mdir", "-b", "-i", self.esp, "::EFI/Linux"], check=True, capture_output=True, text=True).stdout
        return sorted(line.split("/")[-1] for line in listed.split())

    def variables(self) -> dict[str, bytes]:
        return {path.name.split("-")[0]: path.read_bytes()[4:] for path in (self.folder / "efivars").glob("Boot*")}

    def start(self, *args: str | Path) -> subprocess.Popen:
        """The kernel's start is long past: what is not healthy now has missed the deadline."""
        where = {"keeper": "run/health.json", "database": "run/db.sock", "partition": f"efivars/LoaderDevicePartUUID-{LOADER}",
                 "image": f"efivars/StubImageIdentifier-{LOADER}", "entries": f"efivars/LoaderEntries-{LOADER}", "efivars": "efivars",
                 "esps": "esps", "sys": "sys", "restart": "restart", "said": "found.json"}
        options = {f"--{name}": self.folder / path for name, path in where.items()} | {"--monitor": BUILD / "vmm/glint-vmm", "--deadline": "1"}
        options |= dict(zip(args[::2], args[1::2], strict=True))
        words = [str(word) for pair in options.items() for word in pair]
        return subprocess.Popen([HEALTH, *words], stderr=subprocess.PIPE, text=True)

    def run(self, *args: str | Path) -> str:
        """To its end; what it said."""
        process = self.start(*args)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        return said

    def judge(self, *args: str | Path) -> str:
        """Until it has said what becomes of a host that is not healthy; what it said."""
        said = ""
        with self.start(*args) as process:
            while not re.search("it stays up|the host restarts", said):
                assert (line := process.stderr.readline()), said
                said += line
            time.sleep(1)
            process.kill()
        return said

    def found(self) -> dict:
        return json.loads((self.folder / "found.json").read_text())

    def restarts(self) -> str:
        noted = self.folder / "restarted"
        return noted.read_text() if noted.exists() else ""


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    made = Box(tmp_path, *request.param)
    yield made
    made.host.close()


ON_TRIAL, LAST_TRY, GOOD = "glint_0.2.0+2-1.efi", "glint_0.2.0+0-3.efi", "glint_0.2.0.efi"
OLD, SPENT = "glint_0.1.0.efi", "glint_0.1.0+0-3.efi"


@pytest.mark.parametrize("box", [(ON_TRIAL, OLD)], indirect=True)
def test_healthy_slot_is_kept(box: Box) -> None:
    box.host.start()
    assert "Glint 0.2.0 is good now" in box.run()
    assert box.slots() == [OLD, GOOD] and not box.restarts() and box.found() == {"version": 1, "healthy": True, "why": ""}
    subprocess.run(["fsck.vfat", "-n", box.esp], check=True, stdout=subprocess.DEVNULL)
    variables = box.variables()
    assert variables["BootOrder"] == bytes([0x20, 0, 0x21, 0, 1, 0, 2, 0])
    assert "\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le") in variables["Boot0020"]
    assert f"\\EFI\\Linux\\{GOOD}".encode("utf-16-le") in variables["Boot0021"]
    # From then on, nothing is written: neither to the stick nor to the firmware.
    times = {path: path.stat().st_mtime_ns for path in [box.esp, *(box.folder / "efivars").iterdir()]}
    assert "is good now" not in box.run()
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("box,again", [((LAST_TRY, OLD), True), ((ON_TRIAL,), True), ((LAST_TRY,), False), ((GOOD, OLD), False)], indirect=["box"])
def test_stick_that_is_not_seen(box: Box, again: bool) -> None:
    """It may be the slot that does not see it: what the boot loader said of it counts."""
    box.esp.rename(box.folder / "pulled")
    box.host.start_keeper()
    said = box.judge()
    assert (box.restarts() == "reboot\n") == again and ("on trial" in said) == again, said


@pytest.mark.parametrize("box,failed", [((OLD, LAST_TRY), True), ((OLD, ON_TRIAL), False), ((GOOD, SPENT), False)], indirect=["box"])
def test_tried_in_vain_is_said(box: Box, failed: bool) -> None:
    """By the one that runs again; an older one that is out of tries is of no interest."""
    before = box.slots()
    box.host.start()
    said = box.run()
    assert ("Glint 0.2.0 was tried and did not become good: 0.1.0 runs again" in said) == failed, said
    assert box.slots() == before and not box.restarts()


@pytest.mark.parametrize("box", [(ON_TRIAL, OLD), (ON_TRIAL,), (LAST_TRY, OLD)], indirect=True)
def test_slot_on_trial_restarts(box: Box) -> None:
    before = box.slots()
    box.host.start_keeper()
    said = box.judge()
    assert "the host's database cannot be reached" in said and "is on trial" in said
    assert not box.found()["healthy"] and "the host's database cannot be reached" in box.found()["why"]
    assert box.restarts() == "reboot\n" and box.slots() == before and list(box.variables()) == ["BootOrder"]


@pytest.mark.parametrize("box,why", [((GOOD, OLD), "was good before"), ((LAST_TRY,), "no other slot"), ((LAST_TRY, SPENT), "no other slot")],
                         indirect=["box"])
def test_host_stays_up_where_a_restart_does_not_help(box: Box, why: str) -> None:
    box.host.start_keeper()
    process = box.start()
    said = process.stderr.readline() + process.stderr.readline()
    assert "it stays up" in said and why in said
    # It gets well later.
    box.host.start_server()
    assert "healthy after" in process.communicate(timeout=60)[1]
    assert not box.restarts() and GOOD in box.slots()


@pytest.mark.parametrize("box", [(ON_TRIAL,)], indirect=True)
def test_what_is_not_healthy(box: Box, tmp_path: Path) -> None:
    assert "the keeper has not got the host's state" in box.judge()
    box.host.start()
    assert "the monitor does not run" in box.judge("--monitor", "/bin/false")
    assert "the monitor cannot be started" in box.judge("--monitor", tmp_path / "none")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu svm npt\n")
    assert "though the processor can" in box.judge("--kvm", tmp_path / "none", "--cpuinfo", cpuinfo)
    assert box.slots() == [ON_TRIAL]
    # A processor that cannot run machines is no fault of the slot.
    cpuinfo.write_text("processor : 0\nflags : fpu npt\n")
    assert "is good now" in box.run("--kvm", tmp_path / "none", "--cpuinfo", cpuinfo)


@pytest.mark.parametrize("box", [()], indirect=True)
def test_host_without_a_stick(box: Box) -> None:
    (box.folder / "efivars" / f"LoaderDevicePartUUID-{LOADER}").unlink()
    box.host.start()
    assert "not started from a stick" in box.run() and list(box.variables()) == ["BootOrder"]


@pytest.mark.parametrize("box", [(ON_TRIAL, OLD)], indirect=True)
def test_copies_of_the_stick(box: Box) -> None:
    """Which of them it was started from nobody knows: neither is written to."""
    (box.esp.parent / "sdb").write_bytes(box.esp.read_bytes())
    box.host.start()
    said = box.run()
    assert "stays on trial: copies of the stick" in said and box.slots() == [OLD, ON_TRIAL]
