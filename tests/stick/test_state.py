"""The host's state on its stick: what it said it holds is there after the power was cut, in another box too.

Each boot is a machine whose QEMU is killed, so that what was written and not flushed is lost with it. Its stick goes
into the next machine. Between two of them the state is changed, by the keeper and ovsdb-server on this machine."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/faults")]

from boot import StickMachine  # noqa: E402
from test_keeper import KEEPER, Host  # noqa: E402

BOARDS = ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b811-9dad-11d1-80b4-00c04fd430c8")
BOOT_SECONDS = 300


class Stick:
    """A stick that goes from machine to machine, as a raw file."""

    def __init__(self, folder: Path):
        self.folder, self.image, self.count = folder, CLONE / "build/stick.img", 0
        subprocess.run([CLONE / "image/build", "-o", self.image], check=True)
        table = json.loads(subprocess.run(["sfdisk", "--json", self.image], check=True, capture_output=True, text=True).stdout)
        state = next(p for p in table["partitiontable"]["partitions"] if p["name"] == "STATE")
        self.start, self.size = state["start"] * 512, state["size"] * 512

    def boot(self, board: str) -> StickMachine:
        self.count += 1
        folder = self.folder / f"machine{self.count}"
        folder.mkdir()
        return StickMachine(self.image, folder=folder, extra=["-uuid", board])

    def pull(self, machine: StickMachine) -> None:
        """Cuts the machine's power and takes the stick out."""
        machine.close()
        image = self.folder / f"stick{self.count}.img"
        subprocess.run(["qemu-img", "convert", "-O", "raw", machine.folder / "stick.qcow2", image], check=True)
        self.image = image

    def state(self) -> bytes:
        with self.image.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def put_state(self, state: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(self.start)
            file.write(state)

    def inspect(self) -> tuple[dict, dict]:
        """What the keeper says of the partition, and the host's row in the database on it."""
        partition, database = self.folder / "partition", self.folder / "copy.db"
        partition.write_bytes(self.state())
        database.unlink(missing_ok=True)
        found = subprocess.run([KEEPER, "--inspect", partition, "--out", database], check=True, capture_output=True, text=True)
        query = json.dumps(["Glint", {"op": "select", "table": "Host", "where": []}])
        rows = subprocess.run(["ovsdb-tool", "query", database, query], check=True, capture_output=True, text=True)
        return json.loads(found.stdout), json.loads(rows.stdout)[0]["rows"][0]


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Stick]:
    yield Stick(tmp_path)


def wait_for_network(machine: StickMachine) -> None:
    """Until the host says that it has none, 10 s after its host.toml was put into its state."""
    machine.position = 0
    machine.wait_for(rb"the network is not as it should be: no device has a carrier", 120)


def boot_to_state(machine: StickMachine) -> str:
    """Waits until the host has its state; its id."""
    found = machine.wait_for(rb"this host is ([0-9a-f-]{36})", BOOT_SECONDS)
    print(f"[{machine.seconds():.1f} s] the host has its state")
    return found[1].decode()


def test_state_survives_a_power_cut(stick: Stick, tmp_path: Path) -> None:
    assert not stick.state().strip(b"\0"), "a new stick holds no state"
    with stick.boot(BOARDS[0]) as machine:
        host = boot_to_state(machine)
        machine.wait_for(rb"/dev/glint/state/sd.: holds the host's state", 60)
        wait_for_network(machine)
        stick.pull(machine)
    found, row = stick.inspect()
    assert found["state"] == "whole" and found["host"] == host == row["_uuid"][1]
    assert row["hardware"] == BOARDS[0] and row["name"] == f"glint-{host[:6]}"

    partition = tmp_path / "changed"
    partition.write_bytes(stick.state())
    with Host(tmp_path / "run", partition) as changing:
        changing.start("--hardware", BOARDS[0])
        assert changing.change(name="kept-by-the-stick") == "stick"
    stick.put_state(partition.read_bytes())

    # The stick in another box: the host is the same, has its changes, and notes what it runs on.
    with stick.boot(BOARDS[1]) as machine:
        machine.wait_for(rb"restored from /dev/glint/state", BOOT_SECONDS)
        assert boot_to_state(machine) == host
        machine.wait_for(rb"/dev/glint/state/sd.: holds the host's state", 60)
        wait_for_network(machine)
        stick.pull(machine)
    found, row = stick.inspect()
    assert found["state"] == "whole" and found["generation"] == 2
    assert row["name"] == "kept-by-the-stick" and row["hardware"] == BOARDS[1] and row["_uuid"][1] == host

    # Once more in that box: nothing is new, and nothing is written.
    before = stick.state()
    with stick.boot(BOARDS[1]) as machine:
        for words in ("restored from /dev/glint/state", f"this host is {host}", "glint: host up", "kept on its stick"):
            machine.position = 0  # the keeper and the first screen start side by side: either may be first
            machine.wait_for(re.escape(words.encode()), BOOT_SECONDS)
        wait_for_network(machine)
        assert b"FAILED" not in machine.output and b"Failed to" not in machine.output, machine.tail()
        stick.pull(machine)
    assert stick.state() == before
