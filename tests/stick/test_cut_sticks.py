"""Whole sticks that power failed on, booted: something good comes up by itself, and every acknowledged change is there.

Each stick was cut in two places at once (tests/faults/stick_cuts.c): while its host was updated, and while its state was
changed. The state is that of a keeper and a database which ran here; the slots are whole hosts. A host that restarts
ends its machine: it has to be healthy at its first start."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/faults"), str(CLONE / "tests/stick")]

from boot import StickMachine  # noqa: E402
from test_keeper import BUILD, KEEPER, MIB, Host  # noqa: E402
from test_slots import BOOT_SECONDS, GOOD, Stick, run  # noqa: E402

CUTS = BUILD / "tests/faults/stick_cuts"
BOARD = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
NEW = "0.2.0"
SPENT = "glint_0.0.9+0-1.efi"
CHANGES = 60
STAGES = 5  # of an update: where each stick is cut


def inspect(partition: Path) -> tuple[dict, dict]:
    """What the keeper says of the partition, and the host's row in the database on it."""
    database = partition.with_suffix(".db")
    database.unlink(missing_ok=True)
    found = json.loads(run(KEEPER, "--inspect", partition, "--out", database).stdout)
    query = json.dumps(["Glint", {"op": "select", "table": "Host", "where": []}])
    return found, json.loads(run("ovsdb-tool", "query", database, query).stdout)[0]["rows"][0]


class Sticks:
    """What all of them are cut from."""

    def __init__(self, folder: Path):
        self.folder, self.stick = folder, Stick(folder)
        self.stick.bless()
        run("mcopy", *self.stick.at(), self.stick.make("0.0.9", self.stick.init_that_dies()), f"::EFI/Linux/{SPENT}")
        self.new = self.stick.make(NEW, self.stick.host())
        self.esp, self.state = folder / "esp", folder / "state"
        table = json.loads(run("sfdisk", "--json", self.stick.image).stdout)["partitiontable"]["partitions"]
        self.where = {part["name"]: (part["start"] * 512, part["size"] * 512) for part in table}
        self.take("ESP", self.esp)
        with self.state.open("wb") as file:
            file.truncate(self.where["STATE"][1])
        with Host(folder / "run", self.state) as host:
            host.start("--hardware", BOARD)
            for number in range(1, CHANGES + 1):
                assert host.change(name=f"change-{number}") == "stick"

    def take(self, name: str, to: Path) -> None:
        start, size = self.where[name]
        run("dd", f"if={self.stick.image}", f"of={to}", "bs=1M", f"skip={start // MIB}", f"count={size // MIB}", "conv=sparse")

    def put(self, name: str, source: Path) -> None:
        start, size = self.where[name]
        run("fallocate", "--punch-hole", "--offset", str(start), "--length", str(size), self.stick.image)
        run("dd", f"if={source}", f"of={self.stick.image}", "bs=1M", f"seek={start // MIB}", "conv=sparse,notrunc")

    def cut(self, seed: int, stage: int) -> dict:
        """Puts together a stick; what is to be there."""
        command = [CUTS, "--seed", str(seed), "--stage", str(stage), "--esp", self.esp, "--update", self.new, "--certificate",
                   self.stick.certificate, "--state", self.state, "--folder", self.folder]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"seed {seed}: {told}")
        self.put("ESP", self.folder / "esp.img")
        self.put("STATE", self.folder / "state.img")
        # The last pieces of the database's file are the changes of its name.
        told["least"] = CHANGES - (told["pieces"] - told["acknowledged"])
        return told

    def slot(self, name: str) -> bytes:
        copy = self.folder / "slot.efi"
        run("mcopy", "-n", "-o", *self.stick.at(), f"::EFI/Linux/{name}", copy)
        return copy.read_bytes()

    def has_new(self) -> bool:
        """Whether the new slot is on the stick, under a name of its own or the short one; what is there is whole."""
        names = set(self.stick.slots()) - {SPENT}
        assert GOOD in names and self.slot(GOOD) == self.stick.uki.read_bytes()
        others = names - {GOOD}
        assert len(others) <= 1 and all(self.slot(name) == self.new.read_bytes() for name in others), names
        return bool(others)


def boot(sticks: Sticks, folder: Path, told: dict) -> None:
    new = sticks.has_new()
    assert new or not told["updated"]
    cut, row = inspect(sticks.folder / "state.img")
    change = int(row["name"].removeprefix("change-"))
    assert cut["state"] == "whole" and told["least"] <= change <= CHANGES
    folder.mkdir()
    with StickMachine(sticks.stick.image, folder=folder, extra=["-uuid", BOARD]) as machine:
        runs = machine.wait_for(rb"command line: ([^\r\n]*)[\r\n]", BOOT_SECONDS)[1]
        assert (f"slot={NEW}".encode() in runs) == new, runs
        machine.wait_for_all([rb"state of %d changes since a snapshot restored from /dev/glint/state" % cut["changes"],
                              f"this host is {cut['host']}".encode(), rb"(?<!not )healthy after \d+ s"], BOOT_SECONDS)
        print(f"[{machine.seconds():6.1f} s] healthy, by the {'new' if new else 'old'} slot, with change {change}, "
              f"of {told['least']} that were acknowledged")
        sticks.stick.take_from(machine)
    assert sticks.has_new() == new
    sticks.take("STATE", sticks.folder / "after")
    after, row = inspect(sticks.folder / "after")
    assert after["state"] == "whole" and row["name"] == f"change-{change}"


@pytest.fixture(scope="module")
def sticks(tmp_path_factory: pytest.TempPathFactory) -> Sticks:
    return Sticks(tmp_path_factory.mktemp("sticks"))


@pytest.mark.soak
@pytest.mark.parametrize("stage", range(STAGES))
def test_stick_cut_at_each_stage_boots(sticks: Sticks, tmp_path: Path, rng: random.Random, stage: int) -> None:
    boot(sticks, tmp_path / "machine", sticks.cut(rng.randrange(2**32), stage))
