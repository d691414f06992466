"""Sticks that come, go, are swapped, fail and lie: the keeper beside the real ovsdb-server, and which stick is its own.

Sticks are sparse files; what is plugged in is a name in a folder, as udev makes it in /dev/glint/state. A stick that
fails or loses writes is the keeper's own thread, whose writes a tracer turns into that (ptrace(2))."""

import ctypes
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_keeper import MIB, SCHEMA, Host, inspect, small, take_room  # noqa: F401

ESP = "0a1b2c3d-1111-4222-8333-444455556666"


class Rack:
    """Where sticks are plugged in: names of disks in a folder, and those of the ESP the host was booted from."""

    def __init__(self, folder: Path):
        self.folder, self.state, self.esps, self.loader = folder, folder / "state", folder / "esps", folder / "loader"
        self.state.mkdir()
        (self.esps / ESP).mkdir(parents=True)
        self.loader.write_bytes(b"\x06\0\0\0" + ESP.upper().encode("utf-16-le") + b"\0\0")

    def blank(self, name: str) -> Path:
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(64 * MIB)
        return path

    def plug(self, disk: str, stick: Path, booted: bool = False) -> None:
        (self.state / disk).symlink_to(stick)
        if booted:
            (self.esps / ESP / disk).symlink_to(stick)

    def pull(self, disk: str) -> None:
        (self.state / disk).unlink()
        (self.esps / ESP / disk).unlink(missing_ok=True)


@pytest.fixture
def rack(tmp_path: Path) -> Rack:
    return Rack(tmp_path)


@pytest.fixture
def host(tmp_path: Path, rack: Rack) -> Iterator[Host]:
    with Host(tmp_path / "run", rack.state) as machine:
        yield machine


def host_id(host: Host) -> str:
    return (host.folder / "identity/id").read_text()


def names_on(stick: Path) -> set[str]:
    """The rows in the database that a stick holds."""
    with tempfile.TemporaryDirectory() as folder:
        if inspect(stick, "--out", f"{folder}/copy.db")["state"] == "empty":
            return set()
        query = json.dumps(["Glint", {"op": "select", "table": "Host", "where": []}])
        rows = subprocess.run(["ovsdb-tool", "query", f"{folder}/copy.db", query], check=True, capture_output=True, text=True)
    return {row["name"] for row in json.loads(rows.stdout)[0]["rows"]}


def keep(host: Host, *names: str) -> None:
    for name in names:
        host.add(name)
    assert host.call("sync")["durability"] == "stick", host.status()


def wait_for(host: Host, state: str, words: str = "") -> None:
    host.wait(lambda: (s := host.status())["state"] == state and words in s["why"], f"{state} {words}: {host.status()}", 20)


class Tampered:
    """The stick's thread of a keeper, whose writes fail (EIO), or are said to be done and are not."""

    SEIZE, INTERRUPT, SYSCALL, DETACH, POKE_USER, SYSCALL_INFO, WALL = 0x4206, 0x4207, 24, 17, 6, 0x420E, 0x40000000
    ORIG_RAX, RAX = 15 * 8, 10 * 8
    PWRITE = 18

    def __init__(self, host: Host, how: str):
        self.how, self.done, self.ready = how, False, threading.Event()
        self.task = next(int(t.name) for t in Path(f"/proc/{host.keeper.pid}/task").iterdir() if int(t.name) != host.keeper.pid)
        self.tracer = threading.Thread(target=self.trace, daemon=True)
        self.count = 0
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.restype = ctypes.c_long
        self.libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(self, request: int, address: int = 0, data: object = 0) -> int:
        return self.libc.ptrace(request, self.task, address, data)

    def syscall(self) -> tuple[int, int, int]:
        """At a stop: 1 for the entry of a system call or 2 for its end, its number, the third argument."""
        info = ctypes.create_string_buffer(88)
        self.ptrace(self.SYSCALL_INFO, len(info), ctypes.addressof(info))
        return info.raw[0], int.from_bytes(info.raw[24:32], "little"), int.from_bytes(info.raw[48:56], "little")

    def trace(self) -> None:
        assert self.ptrace(self.SEIZE, 0, 1) == 0  # PTRACE_O_TRACESYSGOOD
        self.ptrace(self.INTERRUPT)
        self.ready.set()
        skipped = 0
        asked = False
        while True:
            if self.done and not asked:
                self.ptrace(self.INTERRUPT)
                asked = True
            try:
                pid, status = os.waitpid(self.task, self.WALL | os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(0.0005)
                continue
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                return
            what, number, length = self.syscall() if os.WSTOPSIG(status) == 0x85 else (0, 0, 0)
            if what == 1 and number == self.PWRITE:
                skipped = length
                self.ptrace(self.POKE_USER, self.ORIG_RAX, -1)
                self.count += 1
            elif what == 2 and skipped:
                self.ptrace(self.POKE_USER, self.RAX, skipped if self.how == "lose" else -5)
                skipped = 0
            if self.done and not skipped:
                self.ptrace(self.DETACH)
                return
            self.ptrace(self.SYSCALL)

    def __enter__(self) -> "Tampered":
        self.tracer.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.done = True
        self.tracer.join(20)
        assert not self.tracer.is_alive()


def test_the_stick_that_was_booted_from(host: Host, rack: Rack) -> None:
    """Of two sticks the host takes the one whose ESP it was booted from, in whatever order they came."""
    loader = ("--loader", str(rack.loader), "--esps", str(rack.esps))
    ours, other = rack.blank("ours"), rack.blank("other")
    rack.plug("sda", other)
    rack.plug("sdb", ours, booted=True)
    host.start(*loader)
    keep(host, "kept")
    assert host.status()["device"].endswith("/sdb") and "kept" in names_on(ours)
    assert not other.read_bytes().strip(b"\0")
    ident = host_id(host)
    host.cut_power()
    # Only the other one is there: it is not the host's, though it is the only one.
    rack.pull("sdb")
    host.start(*loader)
    assert host.change(name="memory") == "memory" and "booted from, with 1 other there" in host.status()["why"]
    assert host_id(host) != ident and not other.read_bytes().strip(b"\0")
    # Plugged in elsewhere later, it is known by its journal, not by its name.
    host.cut_power()
    rack.plug("sdc", ours, booted=True)
    host.start(*loader)
    assert host_id(host) == ident
    rack.pull("sdc")
    wait_for(host, "refused", "it is empty")
    rack.plug("sdd", ours)
    wait_for(host, "kept")
    keep(host, "moved")
    assert host.status()["device"].endswith("/sdd") and not other.read_bytes().strip(b"\0")


def test_several_sticks_and_nothing_to_tell_them(host: Host, rack: Rack) -> None:
    """No boot loader said anything (PXE): one stick is taken, of two none is, and both are named."""
    first, second = rack.blank("first"), rack.blank("second")
    rack.plug("sda", first)
    host.start("--loader", str(rack.folder / "no such variable"), "--esps", str(rack.esps))
    keep(host, "kept")
    ident = host_id(host)
    host.cut_power()
    rack.plug("sdb", second)
    host.start()
    assert host.call("sync")["durability"] == "memory"
    assert "several sticks may be the host's" in host.status()["why"] and "sda" in host.status()["why"] and "sdb" in host.status()["why"]
    assert host_id(host) != ident and not second.read_bytes().strip(b"\0")
    # A person pulls one: the other is taken, with what it holds, for nothing was changed meanwhile.
    rack.pull("sdb")
    host.wait(lambda: host.call("sync")["durability"] == "stick", "the one that is left")
    assert host_id(host) == ident and "kept" in host.names()
    # A copy of it: neither is written to when both come, until one is pulled.
    rack.pull("sda")
    wait_for(host, "absent")
    copy = rack.folder / "copy"
    subprocess.run(["cp", "--sparse=always", first, copy], check=True)
    rack.plug("sdc", first)
    rack.plug("sdd", copy)
    # (The first may have been seen alone.)
    time.sleep(2.5)
    if host.status()["state"] != "kept":
        assert "copies of the host's stick" in host.status()["why"]
        rack.pull("sdd")
    wait_for(host, "kept")


def test_the_start_waits_for_a_slow_stick(host: Host, rack: Rack) -> None:
    stick = rack.blank("slow")
    rack.plug("sda", stick)
    host.start()
    keep(host, "kept")
    ident = host_id(host)
    host.cut_power()
    rack.pull("sda")
    late = threading.Timer(3, lambda: rack.plug("sda", stick))
    late.start()
    host.start("--wait", "60")
    assert host_id(host) == ident and "kept" in host.names()
    assert host.status()["written"] == 0


def test_a_stick_that_nobody_promised_is_not_waited_for(host: Host, rack: Rack) -> None:
    """No boot loader said anything (PXE): the host is up long before --wait is over (start() gives it 30 s), in memory."""
    host.start("--loader", str(rack.folder / "no such variable"), "--esps", str(rack.esps), "--wait", "90")
    assert host.change(name="memory") == "memory" and host.status()["state"] == "absent"


def test_a_stick_that_comes_late_with_the_state(host: Host, rack: Rack) -> None:
    """Nothing was changed since the host started: it becomes the host of the stick, and the server serves its database."""
    stick = rack.blank("late")
    rack.plug("sda", stick)
    host.start()
    keep(host, "kept")
    ident, before = host_id(host), stick.read_bytes()
    host.cut_power()
    rack.pull("sda")
    # Before the server runs, and with it.
    for server_first in (False, True):
        host.start_keeper()
        if server_first:
            host.start_server()
        assert host_id(host) != ident and host.status()["state"] == "absent"
        rack.plug("sda", stick)
        host.wait(lambda: host.status()["state"] in ("opening", "kept"), "the late stick")
        if not server_first:
            time.sleep(1.5)
            assert host_id(host) != ident, "as long as the server may just be opening the file, it is not replaced"
            host.start_server()
        wait_for(host, "kept")
        assert host_id(host) == ident and "kept" in host.names()
        assert (host.folder / "identity/key.pem").read_text() and stick.read_bytes() == before
        host.cut_power()
        rack.pull("sda")
    host.start()
    rack.plug("sda", stick)
    wait_for(host, "kept")
    keep(host, "after")
    host.cut_power()
    host.start()
    assert host_id(host) == ident and {"kept", "after"} < host.names()


def test_a_stick_that_comes_too_late(host: Host, rack: Rack) -> None:
    """The host was changed without it: both states are whole, and a person chooses."""
    stick = rack.blank("late")
    rack.plug("sda", stick)
    host.start()
    keep(host, "there")
    ident, before = host_id(host), stick.read_bytes()
    host.cut_power()
    rack.pull("sda")
    host.start()
    host.add("here")
    assert host.call("sync")["durability"] == "memory"
    rack.plug("sda", stick)
    wait_for(host, "refused", "started without it, and may have been changed since: adopt it")
    host.add("here too")
    assert host.call("sync")["durability"] == "memory" and "there" not in host.names() and stick.read_bytes() == before
    # The one choice: a restart. (What was in memory only was said to be.)
    host.cut_power()
    host.start()
    assert host_id(host) == ident and "there" in host.names() and "here" not in host.names()
    # The other one, by the stick's own name.
    host.cut_power()
    rack.pull("sda")
    host.start()
    host.add("new")
    rack.plug("sda", stick)
    wait_for(host, "refused")
    host.call("adopt", path=str(rack.state / "sda"))
    wait_for(host, "kept")
    host.wait(lambda: host.call("sync")["durability"] == "stick", "the adopted stick")
    assert "new" in names_on(stick) and "there" not in names_on(stick)


def own_and_another(host: Host, rack: Rack) -> tuple[Path, Path]:
    """The stick of the host that runs, plugged in as sda, and one that is another host's."""
    own, other = rack.blank("own"), rack.blank("other")
    rack.plug("sda", other)
    host.start()
    keep(host, "another host's")
    host.cut_power()
    rack.pull("sda")
    rack.plug("sda", own)
    host.start()
    keep(host, "own")
    return own, other


def test_swapped_at_once(host: Host, rack: Rack) -> None:
    """Another stick has the name before anybody looked: it is seen by its node, and not written to."""
    own, other = own_and_another(host, rack)
    before = other.read_bytes()
    (rack.state / "new").symlink_to(other)
    (rack.state / "new").rename(rack.state / "sda")
    wait_for(host, "refused", "another stick")
    host.add("meanwhile")
    assert host.call("sync")["durability"] == "memory" and other.read_bytes() == before
    (rack.state / "new").symlink_to(own)
    (rack.state / "new").rename(rack.state / "sda")
    wait_for(host, "kept")
    host.wait(lambda: host.call("sync")["durability"] == "stick", "the own stick")
    assert {"own", "meanwhile"} < names_on(own) and other.read_bytes() == before


def read_by(host: Host) -> int:
    return int(Path(f"/proc/{host.keeper.pid}/io").read_text().split()[1])


def test_a_refused_stick_is_looked_at_once(host: Host, rack: Rack) -> None:
    own, other = own_and_another(host, rack)
    rack.pull("sda")
    wait_for(host, "absent")
    before = read_by(host)
    rack.plug("sda", other)
    wait_for(host, "refused")
    looked = read_by(host)
    assert looked - before > 4096, "what is on it was read"
    time.sleep(5)
    assert read_by(host) - looked < 4096
    rack.pull("sda")
    wait_for(host, "absent")
    rack.plug("sda", other)
    wait_for(host, "refused")
    assert read_by(host) - looked > 4096, "once more when it came again"


@pytest.mark.parametrize("how, words", [("fail", "Input/output error"), ("lose", "loses what is written to it")])
def test_a_dying_stick(host: Host, rack: Rack, how: str, words: str) -> None:
    """It fails, or says that it wrote and did not: a stick that was pulled, and is there still."""
    stick = rack.blank("dying")
    rack.plug("sda", stick)
    host.start()
    keep(host, "before")
    with Tampered(host, how) as tampered:
        host.add("while")
        answer = host.call("sync")
        assert answer["durability"] == "memory" and words in answer["why"]
        assert "before" in names_on(stick) and "while" not in names_on(stick)
        began = time.monotonic()
        time.sleep(8)
        # Ever more seldom, and nobody waits for it meanwhile.
        assert 2 <= tampered.count <= 8, tampered.count
        host.add("on")
        assert host.call("sync")["durability"] == "memory" and time.monotonic() - began < 12
        assert json.loads((host.folder / "health.json").read_text())["durability"] == "memory"
    host.wait(lambda: host.call("sync")["durability"] == "stick", "the stick", 40)
    assert {"before", "while"} < names_on(stick)


def test_health(host: Host, rack: Rack) -> None:
    stick, empty = rack.blank("own"), rack.blank("empty")
    health = lambda: json.loads((host.folder / "health.json").read_text())
    rack.plug("sda", stick)
    host.start()
    keep(host, "kept")
    host.wait(lambda: health()["sticks"][0]["durable"] == host.call("status")["change"], "the figures")
    found = health()
    assert found == host.call("status")
    assert found["version"] == 1 and found["host"] == host_id(host) and found["durability"] == "stick" and not found["why"]
    assert found["alerts"] == [] and found["sticks"][0]["state"] == "kept" and found["sticks"][0]["device"] == str(rack.state / "sda")
    assert (host.folder / "health.json").stat().st_mode & 0o777 == 0o644
    rack.pull("sda")
    host.wait(lambda: health()["durability"] == "memory", "the alert", 5)
    assert [alert["alert"] for alert in health()["alerts"]] == ["state-in-memory", "stick-absent"]
    assert health()["since"] >= found["since"]
    rack.plug("sdb", empty)
    host.wait(lambda: "empty" in health()["why"], "the empty stick", 5)
    assert health()["alerts"][1] == {"alert": "stick-refused", "about": str(rack.state / "sdb"), "words": health()["why"]}
    rack.pull("sdb")
    rack.plug("sda", stick)
    host.wait(lambda: health()["durability"] == "stick", "the stick", 5)
    assert health()["alerts"] == []
    # Nothing changes: the file is left alone.
    time.sleep(1.5)
    inode = (host.folder / "health.json").stat().st_ino
    time.sleep(2.5)
    assert (host.folder / "health.json").stat().st_ino == inode
    # Who keeps nothing says nothing.
    host.keeper.terminate()
    host.keeper.wait(20)
    assert not (host.folder / "health.json").exists()


# --- schemas ---


def schema_with(path: Path, version: str, **columns: dict) -> Path:
    schema = json.loads(SCHEMA.read_text())
    schema["version"] = version
    schema["tables"]["Host"]["columns"] |= columns
    path.write_text(json.dumps(schema))
    return path


def test_a_newer_schema(tmp_path: Path, rack: Rack, small: Path) -> None:
    """An older database is converted; the stick has the old one until the new one is wholly on it."""
    stick = small / "stick"
    rack.plug("sda", stick)
    newer = schema_with(tmp_path / "newer.ovsschema", "0.9.0", place={"type": "string"})
    with Host(tmp_path / "run", rack.state) as host:
        host.start()
        keep(host, "kept")
        ident = host_id(host)
        host.cut_power()
        old = stick.read_bytes()
        host.schema = newer
        # The stick takes no writes at first: it is the older release's still.
        take_room(small)
        host.start()
        assert host.call("sync")["durability"] == "memory" and inspect(stick)["generation"] == 1 and "kept" in names_on(stick)
        (small / "room").unlink()
        assert host_id(host) == ident and "kept" in host.names()
        host.wait(lambda: host.call("sync")["durability"] == "stick", "the converted state")
        place = {"op": "update", "table": "Host", "where": [["name", "==", "kept"]], "row": {"place": "the cellar"}}
        assert host.transact(place) == [{"count": 1}] and host.call("sync")["durability"] == "stick"
        found = inspect(stick)
        assert found["state"] == "whole" and found["generation"] == 2
        assert stick.read_bytes() != old and not (host.folder / "convert").exists()
        host.cut_power()
        host.start()
        found = host.transact({"op": "select", "table": "Host", "where": [["name", "==", "kept"]]})[0]["rows"]
        assert found[0]["place"] == "the cellar" and host.status()["written"] == 0
        # The older release: its words, and not a byte.
        host.cut_power()
        newest = stick.read_bytes()
        host.schema = SCHEMA
        host.start()
        assert host_id(host) != ident and host.change(name="x") == "memory"
        assert "its database is Glint 0.9.0, this Glint's is Glint" in host.status()["why"]
        # Nor when it comes again.
        rack.pull("sda")
        wait_for(host, "absent")
        rack.plug("sda", stick)
        wait_for(host, "refused")
        host.add("y")
        assert host.call("sync")["durability"] == "memory" and stick.read_bytes() == newest


def test_a_schema_that_the_state_does_not_fit(tmp_path: Path, rack: Rack) -> None:
    """A conversion that fails is said, and leaves the stick as it is, for the release that wrote it."""
    stick = rack.blank("stick")
    rack.plug("sda", stick)
    with Host(tmp_path / "run", rack.state) as host:
        host.start()
        keep(host, "kept")
        host.cut_power()
        before = stick.read_bytes()
        host.schema = schema_with(tmp_path / "bad.ovsschema", "0.9.0", name={"type": {"key": {"type": "string", "maxLength": 3}}})
        host.start_keeper()
        assert host.call("sync")["durability"] == "memory"
        assert "convert its database from Glint" in host.status()["why"] and "ovsdb-tool" in host.status()["why"]
        assert stick.read_bytes() == before
        host.cut_power()
        host.schema = SCHEMA
        host.start()
        assert "kept" in host.names()


# --- every order ---


class Model:
    """A host, its stick, another host's and an empty one; and what must be on each of them."""

    def __init__(self, host: Host, rack: Rack, rng: random.Random):
        self.host, self.rack, self.rng = host, rack, rng
        self.sticks = {name: rack.blank(name) for name in ("own", "other", "spare")}
        self.held: dict[str, set[str]] = {name: set() for name in self.sticks}  # what was acknowledged
        self.maybe: dict[str, set[str]] = {name: set() for name in self.sticks}  # what may have got there too
        self.empty = set(self.sticks)
        self.lineage = dict.fromkeys(self.sticks, 0)  # who wrote it last: another number when somebody else did
        self.plugged: str | None = None
        self.mine: str | None = None  # the host's stick
        self.seen = 0  # its lineage
        self.written: dict[str, int] = {}  # the lineage of what this boot has written to a stick
        self.names: set[str] = set()  # in memory
        self.untouched = False  # since the host started without a stick
        self.kept = False
        self.count = self.clock = 0
        self.log: list[str] = []

    def new_name(self, what: str) -> str:
        self.count += 1
        return f"{what} {self.count}"

    def mine_on(self, stick: str, wrote: bool = True) -> None:
        """The stick has all there is in memory."""
        self.mine, self.kept, self.untouched = stick, True, False
        self.held[stick], self.maybe[stick] = set(self.names), set()
        self.empty.discard(stick)
        if wrote:
            self.clock += 1
            self.lineage[stick] = self.written[stick] = self.clock
        self.seen = self.lineage[stick]

    def boot(self) -> None:
        self.host.cut_power()
        self.host.start()
        stick = self.plugged
        rows = {name for name in self.host.names() if not name.startswith("glint-")}
        if stick is None or stick in self.empty:
            assert rows == set()
        else:
            assert self.held[stick] <= rows <= self.held[stick] | self.maybe[stick], (self.held[stick] ^ rows, self.log)
        self.names, self.mine, self.kept, self.untouched, self.written = rows, None, False, stick is None, {}
        if stick:
            assert self.host.call("sync")["durability"] == "stick"
            self.mine_on(stick, stick in self.empty)

    def start_without(self) -> None:
        """The host starts before its stick is there, which comes next."""
        self.pull()
        self.boot()
        if self.rng.random() < 0.5:
            self.change()
        self.plug()
        if self.rng.random() < 0.5:
            self.keeper_dies()

    def change(self) -> None:
        self.host.add(name := self.new_name("here"))
        self.names.add(name)
        self.untouched = False
        answer = self.host.call("sync")
        assert (answer["durability"] == "stick") == self.kept, (answer, self.log)
        if self.kept:
            self.mine_on(self.mine)

    def change_unheard(self) -> None:
        self.host.add(name := self.new_name("unheard"))
        self.names.add(name)
        self.untouched = False
        if self.kept:
            self.maybe[self.mine].add(name)
            self.written[self.mine] = self.lineage[self.mine]

    def pull(self) -> None:
        if self.plugged is None:
            return
        self.rack.pull("sda")
        self.plugged, self.kept = None, False
        wait_for(self.host, "absent")

    def plug(self, stick: str | None = None) -> None:
        self.pull()
        stick = stick or self.rng.choice(list(self.sticks))
        before = None
        takes_up = self.mine is None and self.untouched and stick not in self.empty
        # What it wrote itself, in this boot, is the same state, or an older one of it.
        unchanged = (stick == self.mine and self.lineage[stick] == self.seen) or self.written.get(stick) == self.lineage[stick]
        taken = takes_up or (self.mine is None if stick in self.empty else unchanged)
        if not taken:
            before = self.sticks[stick].read_bytes()
        self.rack.plug("sda", self.sticks[stick])
        self.plugged = stick
        wait_for(self.host, "kept" if taken else "refused")
        if taken:
            assert self.host.call("sync")["durability"] == "stick"
        rows = {name for name in self.host.names() if not name.startswith("glint-")}
        if takes_up:
            assert self.held[stick] <= rows <= self.held[stick] | self.maybe[stick]
            self.names = rows
        assert rows == self.names, (rows ^ self.names, self.log)
        if taken:
            self.mine_on(stick, not takes_up)
        else:
            assert self.sticks[stick].read_bytes() == before

    def put_back(self) -> None:
        self.plug(self.mine)

    def elsewhere(self) -> None:
        """Another box starts from a stick and changes it."""
        self.pull()
        stick = self.mine if self.mine and self.rng.random() < 0.5 else self.rng.choice(list(self.sticks))
        with Host(self.rack.folder / "elsewhere", self.sticks[stick]) as other:
            other.start()
            rows = {name for name in other.names() if not name.startswith("glint-")}
            assert self.held[stick] <= rows <= self.held[stick] | self.maybe[stick], self.log
            keep(other, name := self.new_name("elsewhere"))
        self.held[stick], self.maybe[stick] = rows | {name}, set()
        self.empty.discard(stick)
        self.clock += 1
        self.lineage[stick] = self.clock

    def wipe(self) -> None:
        self.pull()
        stick = self.rng.choice(list(self.sticks))
        self.rack.blank(stick)
        self.held[stick], self.maybe[stick] = set(), set()
        self.empty.add(stick)
        self.clock += 1
        self.lineage[stick] = self.clock

    def adopt(self) -> None:
        """A person says that what is on it is not wanted."""
        if self.plugged is None or self.kept:
            return
        self.host.call("adopt", path=str(self.rack.state))
        wait_for(self.host, "kept")
        assert self.host.call("sync")["durability"] == "stick"
        self.mine_on(self.plugged)

    def tamper(self, how: str) -> None:
        if not self.kept:
            return
        with Tampered(self.host, how):
            self.kept = False
            for _ in range(self.rng.randint(1, 3)):
                self.change()
            self.check()
        if self.rng.random() < 0.5:
            return self.boot()
        self.host.wait(lambda: self.host.call("sync")["durability"] == "stick", "the stick that failed")
        self.mine_on(self.plugged)

    def fail(self) -> None:
        self.tamper("fail")

    def lose(self) -> None:
        self.tamper("lose")

    def keeper_dies(self) -> None:
        self.host.keeper.kill()
        self.host.keeper.wait()
        self.host.start_keeper()
        self.untouched = False  # nobody knows
        if self.kept:
            assert self.host.call("sync")["durability"] == "stick", self.log
            self.mine_on(self.plugged, self.held[self.plugged] != self.names)

    def check(self) -> None:
        """Each stick has what was acknowledged, and nothing of two states that went apart."""
        for stick, path in self.sticks.items():
            rows = {name for name in names_on(path) if not name.startswith("glint-")}
            assert self.held[stick] <= rows <= self.held[stick] | self.maybe[stick], (stick, self.held[stick] ^ rows, self.log)

    def step(self) -> None:
        operations = [self.change] * 3 + [self.start_without] + [self.change_unheard, self.pull, self.plug, self.plug, self.put_back, self.put_back, self.elsewhere,
                                          self.wipe, self.adopt, self.fail, self.lose, self.boot, self.keeper_dies]
        operation = self.rng.choice(operations)
        if operation == self.put_back and self.mine is None:
            operation = self.change
        self.log.append(operation.__name__)
        operation()
        self.check()


def walk(model: Model, until: float) -> None:
    model.rack.plug("sda", model.sticks["own"])
    model.plugged = "own"
    model.boot()
    while time.monotonic() < until:
        model.step()
    counts = {what: model.log.count(what) for what in sorted(set(model.log))}
    print(f"{len(model.log)} steps, {model.count} changes: {counts}")


def test_every_order(host: Host, rack: Rack, rng: random.Random) -> None:
    walk(Model(host, rack, rng), time.monotonic() + 100)


@pytest.mark.soak
def test_every_order_for_long(host: Host, rack: Rack, rng: random.Random, soak_seconds: float) -> None:
    walk(Model(host, rack, rng), time.monotonic() + soak_seconds)
