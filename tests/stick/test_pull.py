"""The stick pulled, swapped and put back while the host runs, and power cut while it is written to again.

Each boot is a machine; sticks are plugged and pulled by QEMU's control socket. The host's words on its console tell
where its state is kept; what the sticks hold in the end is looked into from here."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/faults"), str(CLONE / "tests/stick")]

from boot import StickMachine  # noqa: E402
from test_state import BOARDS, BOOT_SECONDS, Stick, boot_to_state, wait_for_network  # noqa: E402

KEPT = rb"glint: the host's state is kept on its stick"
IN_MEMORY = rb"glint: the host's state is in memory only: "


@pytest.fixture
def stick(tmp_path: Path) -> Stick:
    return Stick(tmp_path)


def pull(machine: StickMachine, name: str = "stick") -> None:
    machine.qmp("device_del", id=name)


def plug(machine: StickMachine, drive: str = "stick") -> None:
    """The name of what was pulled is free once the host has let go of it."""
    machine.qmp("device_add", driver="usb-storage", id=drive, drive=drive, removable=True, bus="usb.0")


def another_stick(machine: StickMachine, image: Path) -> Path:
    """A stick of the same image, as it comes from the shop: its partitions have the same ids."""
    overlay = machine.folder / "another.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.resolve(), overlay], check=True)
    machine.qmp("blockdev-add", **{"driver": "qcow2", "node-name": "another", "file": {"driver": "file", "filename": str(overlay)}})
    return overlay


def test_pulled_swapped_and_put_back(stick: Stick, tmp_path: Path) -> None:
    new = stick.image
    with stick.boot(BOARDS[0]) as machine:
        host = boot_to_state(machine)
        machine.wait_for(KEPT, BOOT_SECONDS)
        wait_for_network(machine)
        pull(machine)
        machine.wait_for(IN_MEMORY + b"it was pulled", 60)
        plug(machine)
        machine.wait_for_all([KEPT, rb"holds the host's state \(generation 2\)"], 60)

        pull(machine)
        machine.wait_for(IN_MEMORY + b"it was pulled", 60)
        overlay = another_stick(machine, new)
        plug(machine, "another")
        machine.wait_for(IN_MEMORY + b"it is empty: adopt it", 60)
        pull(machine, "another")
        machine.wait_for(IN_MEMORY + b"find a stick", 60)

        # The power goes while the stick gets what it missed.
        plug(machine)
        machine.wait_for(rb"is the host's, gets what it lacks", 60)
        stick.pull(machine)
        untouched = tmp_path / "another.img"
        subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, untouched], check=True)
    found, row = stick.inspect()
    assert found["state"] == "whole" and found["generation"] in (2, 3) and found["host"] == host == row["_uuid"][1]
    with untouched.open("rb") as file:
        file.seek(stick.start)
        assert not file.read(stick.size).strip(b"\0")

    # Pulled a second after the host's first words: it comes up whole, in memory. Put back, it is the host it was.
    with stick.boot(BOARDS[0]) as machine:
        machine.wait_for(rb"glint-init: root of [^\r\n]*\r", BOOT_SECONDS)
        time.sleep(1)
        pull(machine)
        machine.wait_for(rb"glint: host up", BOOT_SECONDS)
        machine.position = 0
        alone = boot_to_state(machine)
        assert alone != host
        machine.position = 0
        machine.wait_for(IN_MEMORY + b"find a stick", 60)
        machine.write(b"\r")
        machine.wait_for(rb"in memory only: [^\r]*\r\n[^\r]*memory in use", 20)
        plug(machine)
        machine.wait_for_all([rb"restored from /dev/glint/state/sd.", KEPT, rb"this host is " + host.encode()], 60)
        time.sleep(3)
        before = machine.stick_counters()
        assert before["wr_bytes"] == 0, "it has all there is"
        time.sleep(20)
        assert machine.stick_counters() == before
        stick.pull(machine)
    found, row = stick.inspect()
    assert found["state"] == "whole" and found["host"] == host == row["_uuid"][1]
