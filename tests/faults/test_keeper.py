"""The keeper beside the real ovsdb-server: what a client was told is on the stick comes back, whatever is killed.

A host here is the two processes and a folder on a tmpfs; its stick is a sparse file of 64 MiB. A power cut of the host
kills both and empties the folder: only the stick is left. (What a cut leaves on the stick is test_journal_cuts.py's.)"""

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host import BUILD, CLONE

KEEPER = BUILD / "node/keeper/glint-keeper"
SCHEMA = CLONE / "node/keeper/glint.ovsschema"
MIB = 1 << 20


class Calls:
    """JSON-RPC over a UNIX socket: packets to the keeper, a stream to ovsdb-server."""

    def __init__(self, path: Path, kind: int):
        self.socket = socket.socket(socket.AF_UNIX, kind)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.text = ""

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, method: str, params: object) -> dict:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        if self.socket.type == socket.SOCK_STREAM:
            del call["jsonrpc"]
        self.socket.sendall(json.dumps(call).encode())
        while True:
            more = self.socket.recv(65536).decode()
            if not more:
                raise ConnectionError("gone")
            self.text += more
            try:
                answer, end = json.JSONDecoder().raw_decode(self.text)
            except ValueError:
                continue
            self.text = self.text[end:].lstrip()
            if answer.get("id") == 1:
                return answer


class Host:
    schema = SCHEMA

    def __init__(self, folder: Path, stick: Path | None, *args: str):
        self.folder, self.stick, self.args = folder, stick, args
        self.keeper = self.server = None
        folder.mkdir(exist_ok=True)

    def start(self, *args: str) -> "Host":
        self.start_keeper(*args)
        self.start_server()
        return self

    def start_keeper(self, *args: str) -> None:
        stick = ["--stick", str(self.stick)] if self.stick else []
        log = (self.folder.parent / "keeper.log").open("a")
        (self.folder / "keeper.sock").unlink(missing_ok=True)
        self.keeper = subprocess.Popen([KEEPER, *stick, "--folder", self.folder, "--schema", self.schema, "--adopt-empty", "on", "--server",
                                        self.folder / "ctl", *self.args, *args], stderr=log)
        self.wait(lambda: (self.folder / "keeper.sock").exists() and self.call("status"), "the keeper")

    def start_server(self) -> None:
        for name in ("db.sock", "ctl"):
            (self.folder / name).unlink(missing_ok=True)
        self.server = subprocess.Popen(["ovsdb-server", self.folder / "database/glint.db", f"--remote=punix:{self.folder}/db.sock",
                                        f"--unixctl={self.folder}/ctl", "--no-chdir", "-vconsole:off", "-vsyslog:off", "-vfile:off"])
        self.wait(lambda: Calls(self.folder / "db.sock", socket.SOCK_STREAM).socket.close() is None, "ovsdb-server")

    def wait(self, what: Callable[[], object], words: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                if what():
                    return
            except OSError:
                pass
            assert time.monotonic() < until, f"{words} did not come; {(self.folder.parent / 'keeper.log').read_text()[-3000:]}"
            time.sleep(0.02)

    def cut_power(self) -> None:
        for process in (self.keeper, self.server):
            if process:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.cut_power()

    def call(self, method: str, **params: str) -> dict:
        with Calls(self.folder / "keeper.sock", socket.SOCK_SEQPACKET) as calls:
            answer = calls.call(method, params)
        assert "result" in answer, answer
        return answer["result"]

    def status(self) -> dict:
        return self.call("status")["sticks"][0]

    def transact(self, *operations: dict) -> list:
        with Calls(self.folder / "db.sock", socket.SOCK_STREAM) as calls:
            return calls.call("transact", ["Glint", *operations])["result"]

    def update(self, **columns: object) -> None:
        assert self.transact({"op": "update", "table": "Host", "where": [], "row": columns}) == [{"count": 1}]

    def change(self, **columns: object) -> str:
        """Changes the host's row; says where that is kept."""
        self.update(**columns)
        return self.call("sync")["durability"]

    def row(self) -> dict:
        return self.transact({"op": "select", "table": "Host", "where": []})[0]["rows"][0]

    def add(self, name: str) -> None:
        """A row more: each has a name of its own."""
        answer = self.transact({"op": "insert", "table": "Host", "row": {"name": name}})
        assert "uuid" in answer[0], answer

    def names(self) -> set[str]:
        return {row["name"] for row in self.transact({"op": "select", "table": "Host", "where": [], "columns": ["name"]})[0]["rows"]}


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    path = tmp_path / "stick"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(64 * MIB)
    return path


@pytest.fixture
def host(tmp_path: Path, stick: Path) -> Iterator[Host]:
    machine = Host(tmp_path / "run", stick)
    yield machine
    machine.close()


def inspect(stick: Path, *args: object) -> dict:
    return json.loads(subprocess.run([KEEPER, "--inspect", stick, *args], check=True, capture_output=True, text=True).stdout)


def test_first_boot_and_the_next(host: Host, stick: Path, tmp_path: Path) -> None:
    host.start("--hardware", "board one")
    assert host.call("sync")["durability"] == "stick"
    identity = (host.folder / "identity/id").read_text()
    key = (host.folder / "identity/key.pem").read_text()
    row = host.row()
    assert row["_uuid"][1] == identity and row["name"] == f"glint-{identity[:6]}" and row["hardware"] == "board one"
    assert key.startswith("-----BEGIN PRIVATE KEY-----") and row["public_key"].startswith("-----BEGIN PUBLIC KEY-----")
    assert (host.folder / "identity/key.pem").stat().st_mode & 0o777 == 0o600
    public = subprocess.run(["openssl", "pkey", "-pubout"], input=key, capture_output=True, text=True)
    assert public.returncode != 0 or public.stdout == row["public_key"]
    assert "PRIVATE" not in (host.folder / "database/glint.db").read_text()
    assert host.change(name="somebody") == "stick"

    host.cut_power()
    found = inspect(stick, "--out", tmp_path / "copy.db")
    assert found["state"] == "whole" and found["host"] == identity and not found["damage"]
    subprocess.run(["ovsdb-tool", "-m", "show-log", tmp_path / "copy.db"], check=True, capture_output=True)
    written = found["sequence"]
    host.start("--hardware", "board one")
    assert (host.folder / "identity/id").read_text() == identity and (host.folder / "identity/key.pem").read_text() == key
    assert host.row()["name"] == "somebody" and host.call("sync")["durability"] == "stick"
    assert host.status()["sequence"] == written and host.status()["written"] == 0, "a start without a change writes nothing"

    # The stick in another box: the same host, and what it runs on is noted.
    host.cut_power()
    host.start("--hardware", "board two")
    assert host.row()["hardware"] == "board two" and host.row()["name"] == "somebody"
    assert host.call("sync")["durability"] == "stick"
    host.cut_power()
    host.start("--hardware", "board two")
    assert host.row()["hardware"] == "board two" and host.status()["written"] == 0
    assert (host.folder / "identity/id").read_text() == identity


def test_a_day(host: Host) -> None:
    """200 changes, each waited for; what they cost the stick, and what it costs when nothing changes."""
    host.start()
    host.call("sync")
    before = host.status()
    for i in range(200):
        assert host.change(name=f"change {i}", hardware="x" * (i * 13 % 1500)) == "stick"
    after = host.status()
    written, flushes = after["written"] - before["written"], after["flushes"] - before["flushes"]
    print(f"a day of 200 changes: {written} bytes written, {written / 200:.0f} a change, {flushes} flushes")
    assert written <= 200 * 16384 and flushes == 200
    time.sleep(3)
    assert host.status()["written"] == after["written"]


def test_changes_share_a_flush(host: Host) -> None:
    host.start()
    host.call("sync")
    before = host.status()
    for i in range(40):
        host.add(f"vm {i}")
    assert host.call("sync")["durability"] == "stick"
    after = host.status()
    assert after["flushes"] - before["flushes"] <= 40
    host.cut_power()
    host.start()
    assert {f"vm {i}" for i in range(40)} < host.names()


def test_the_end_in_order(host: Host, stick: Path, tmp_path: Path) -> None:
    """What nobody waited for is on the stick too."""
    host.start()
    host.call("sync")
    host.keeper.send_signal(signal.SIGSTOP)
    host.add("last")
    host.keeper.send_signal(signal.SIGCONT)
    host.keeper.terminate()
    assert host.keeper.wait(20) == 0
    inspect(stick, "--out", tmp_path / "copy.db")
    assert '"last"' in (tmp_path / "copy.db").read_text()


class Held:
    """A thread that stands still, as one does in the kernel whose device does not answer."""

    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, thread: int):
        self.thread = thread

    def ptrace(self, request: int) -> None:
        assert ctypes.CDLL(None).ptrace(request, self.thread, None, None) == 0

    def __enter__(self) -> None:
        self.ptrace(self.SEIZE)
        self.ptrace(self.INTERRUPT)
        os.waitpid(self.thread, self.WALL)

    def __exit__(self, *_: object) -> None:
        self.ptrace(self.DETACH)


def test_a_stick_that_does_not_answer(host: Host) -> None:
    host.start("--patience", "2")
    host.call("sync")
    thread = next(int(task.name) for task in Path(f"/proc/{host.keeper.pid}/task").iterdir() if int(task.name) != host.keeper.pid)
    with Held(thread):
        for i in range(3):
            host.add(f"while {i}")
        answer = host.call("sync")
        assert answer["durability"] == "memory" and "does not answer" in answer["why"]
        assert host.status()["state"] == "kept" and host.status()["durable"] < answer["change"]
    assert host.call("sync")["durability"] == "stick"
    host.cut_power()
    host.start()
    assert {f"while {i}" for i in range(3)} < host.names()


def test_the_server_compacts(host: Host) -> None:
    """A file that the server has put in place of its own is gone on with; the second time without writing a byte."""
    host.start()
    for turn in range(3):
        for i in range(5):
            host.add(f"{turn} {i}")
        host.call("sync")
        before = host.status()["written"]
        subprocess.run(["ovs-appctl", "-t", host.folder / "ctl", "ovsdb-server/compact", "Glint"], check=True, capture_output=True)
        time.sleep(0.2)
        host.call("sync")
        if turn:
            assert host.status()["written"] == before
        host.add(f"{turn} last")
        assert host.call("sync")["durability"] == "stick"
    # Two at once: what was missed is made good by a snapshot.
    generation = host.status()["generation"]
    host.keeper.send_signal(signal.SIGSTOP)
    for i in range(2):
        host.add(f"missed {i}")
        subprocess.run(["ovs-appctl", "-t", host.folder / "ctl", "ovsdb-server/compact", "Glint"], check=True, capture_output=True)
    host.keeper.send_signal(signal.SIGCONT)
    assert host.call("sync")["durability"] == "stick" and host.status()["generation"] == generation + 1
    host.cut_power()
    host.start()
    assert {f"{turn} {i}" for turn in range(3) for i in (0, 1, 2, 3, 4, "last")} | {"missed 0", "missed 1"} < host.names()


def test_a_full_log_becomes_a_snapshot(host: Host) -> None:
    host.start()
    host.call("sync")
    generation = host.status()["generation"]
    for i in range(90):
        assert host.change(hardware=f"{i} " + "y" * 60000) == "stick"
    assert host.status()["generation"] > generation
    host.cut_power()
    host.start()
    assert host.row()["hardware"].startswith("89 ")


class Client(threading.Thread):
    """Makes changes one after another, and remembers which of them it was told are on the stick."""

    def __init__(self, host: Host, name: str):
        super().__init__()
        self.host, self.name_ = host, name
        self.kept: set[str] = set()
        self.done = False

    def run(self) -> None:
        count = 0
        while not self.done:
            count += 1
            name = f"{self.name_} {count}"
            try:
                self.host.add(name)
                if self.host.call("sync")["durability"] == "stick":
                    self.kept.add(name)
            except (OSError, AssertionError, KeyError):
                time.sleep(0.01)


def test_kill_at_random(host: Host, rng: random.Random) -> None:
    host.start()
    kept: set[str] = set()
    kills = {"keeper": 0, "server": 0, "both": 0, "power": 0}
    for turn in range(20):
        clients = [Client(host, f"{turn}{name}") for name in "ab"]
        for client in clients:
            client.start()
        time.sleep(rng.uniform(0.05, 0.5))
        what = rng.choice(list(kills))
        kills[what] += 1
        if what == "keeper" or what == "both":
            host.keeper.kill()
        if what == "server" or what == "both":
            host.server.kill()
        if what == "power":
            host.keeper.kill()
            host.server.kill()
        time.sleep(0.05)
        for client in clients:
            client.done = True
        for client in clients:
            client.join()
            kept |= client.kept
        if what == "power":
            host.cut_power()
            host.start()
        if what in ("keeper", "both"):
            host.keeper.wait()
            host.start_keeper()
        if what in ("server", "both"):
            host.server.wait()
            host.start_server()
        assert kept <= host.names(), f"after {what}: {sorted(kept - host.names())}"
        assert host.call("sync")["durability"] == "stick", host.status()
    host.cut_power()
    host.start()
    print(f"{kills}, {len(kept)} changes acknowledged")
    assert kept <= host.names() and len(kept) > 100


def test_without_a_stick(tmp_path: Path) -> None:
    with Host(tmp_path / "run", tmp_path / "not there") as host:
        host.start()
        answer = host.call("sync")
        assert answer["durability"] == "memory" and "No such file" in answer["why"]
        assert host.change(name="in memory") == "memory" and host.status()["state"] == "absent"
        # An empty one that comes later is taken: there is nothing else to keep the state on.
        with (tmp_path / "not there").open("wb") as file:
            file.truncate(64 * MIB)
        host.wait(lambda: host.call("sync")["durability"] == "stick", "the empty stick")
        assert host.change(name="still") == "stick"
        host.cut_power()
        host.start()
        assert host.row()["name"] == "still"


def test_a_stick_that_is_pulled_and_put_back(tmp_path: Path, stick: Path) -> None:
    """Its name goes away, as udev takes it away, and comes back; another stick's comes in between."""
    name, other = tmp_path / "name", tmp_path / "other"
    name.symlink_to(stick)
    subprocess.run(["cp", "--sparse=always", stick, other], check=True)
    with Host(tmp_path / "run", name) as host:
        host.start()
        assert host.change(name="before") == "stick"
        name.unlink()
        host.wait(lambda: host.status()["state"] == "absent", "the missing stick")
        assert host.change(name="while") == "memory"
        name.symlink_to(other)
        host.wait(lambda: host.status()["state"] == "refused", "the other stick")
        assert host.change(name="later") == "memory" and not other.read_bytes().strip(b"\0")
        name.unlink()
        name.symlink_to(stick)
        host.wait(lambda: host.call("sync")["durability"] == "stick", "the stick", 60)
        host.cut_power()
        host.start()
        assert host.row()["name"] == "later"


def test_another_hosts_stick_is_not_touched(host: Host, stick: Path, tmp_path: Path) -> None:
    host.start()
    assert host.change(name="its owner") == "stick"
    host.cut_power()
    away = stick.rename(tmp_path / "away")
    before = away.read_bytes()
    host.start()
    assert host.change(name="another host") == "memory"
    away.rename(stick)
    host.wait(lambda: host.status()["state"] == "refused", "the other stick")
    assert "started without it" in host.status()["why"] and host.change(name="still another") == "memory"
    # Also by a keeper that is started again.
    host.keeper.kill()
    host.keeper.wait()
    host.start_keeper()
    assert host.change(name="and again") == "memory" and host.status()["state"] == "refused"
    assert stick.read_bytes() == before
    # It is its host's still.
    host.cut_power()
    host.start()
    assert host.row()["name"] == "its owner" and host.change(name="back") == "stick"


def test_two_sticks(tmp_path: Path, stick: Path) -> None:
    """Both hold the state; one that holds another state is left alone."""
    second = tmp_path / "second"
    subprocess.run(["cp", "--sparse=always", stick, second], check=True)
    with Host(tmp_path / "run", stick, "--stick", str(second)) as host:
        host.start()
        assert host.change(name="on both") == "stick"
        host.wait(lambda: all(s["durable"] == host.call("status")["change"] for s in host.call("status")["sticks"]), "both sticks")
        host.cut_power()
        assert inspect(stick)["host"] == inspect(second)["host"] != ""
        alone = Host(tmp_path / "alone", stick)
        alone.start()
        assert alone.change(name="on one") == "stick"
        alone.cut_power()
        host.start()
        assert host.row()["name"] == "on one" and host.change(name="more") == "stick"
        host.wait(lambda: all(s["durable"] == host.call("status")["change"] for s in host.call("status")["sticks"]), "both sticks")
        host.cut_power()
        # The second by itself goes another way.
        for path, name in ((stick, "here"), (second, "there")):
            alone = Host(tmp_path / "alone", path)
            alone.start()
            assert alone.change(name=name) == "stick"
            alone.cut_power()
        before = second.read_bytes()
        host.start()
        assert host.row()["name"] == "here" and host.change(name="on") == "stick"
        assert [s["state"] for s in host.call("status")["sticks"]] == ["kept", "refused"]
        time.sleep(3)
        assert second.read_bytes() == before


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system on which a stick can be made to fail: its room is taken."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", folder], check=True)
    with (folder / "stick").open("wb") as file:
        file.truncate(64 * MIB)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def take_room(folder: Path) -> None:
    with (folder / "room").open("wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass


def test_a_stick_that_fails_and_comes_back(tmp_path: Path, small: Path) -> None:
    with Host(tmp_path / "run", small / "stick") as host:
        host.start()
        assert host.change(name="before") == "stick"
        take_room(small)
        assert host.change(name="while") == "memory"
        answer = host.call("sync")
        assert answer["durability"] == "memory" and "No space left" in answer["why"]
        (small / "room").unlink()
        host.wait(lambda: host.call("sync")["durability"] == "stick", "the stick")
        host.cut_power()
        host.start()
        assert host.row()["name"] == "while"


def test_a_stick_changed_elsewhere_is_not_touched(tmp_path: Path, small: Path) -> None:
    with Host(tmp_path / "run", small / "stick") as host, Host(tmp_path / "other", small / "copy") as other:
        host.start()
        assert host.change(name="before") == "stick"
        take_room(small)
        assert host.change(name="while") == "memory"
        # Meanwhile another box starts from it.
        (small / "stick").rename(small / "away")
        (small / "room").unlink()
        shutil.copy(small / "away", tmp_path / "elsewhere")
        subprocess.run(["cp", "--sparse=always", small / "away", small / "copy"], check=True)
        other.start()
        assert other.change(name="elsewhere") == "stick"
        other.cut_power()
        before = (small / "copy").read_bytes()
        (small / "copy").rename(small / "stick")
        host.wait(lambda: "changed elsewhere" in host.status()["why"], "the changed stick", 60)
        assert host.change(name="more") == "memory"
        assert (small / "stick").read_bytes() == before
        host.call("adopt", path=str(host.stick))
        host.wait(lambda: host.call("sync")["durability"] == "stick", "the adopted stick")
        host.cut_power()
        host.start()
        assert host.row()["name"] == "more"


def test_a_damaged_stick(host: Host, stick: Path) -> None:
    host.start()
    for i in range(4):
        assert host.change(name=f"change {i}") == "stick"
    host.cut_power()
    text = stick.read_bytes()
    at = text.index(b'"change 1"')
    with stick.open("r+b") as file:
        file.seek(at + 1)
        file.write(b"C")
    damaged = stick.read_bytes()
    host.start()
    assert host.row()["name"] == "change 0" and host.status()["state"] == "refused" and "is broken" in host.status()["why"]
    assert host.change(name="on") == "memory" and stick.read_bytes() == damaged
    host.call("adopt", path=str(stick))
    host.wait(lambda: host.call("sync")["durability"] == "stick", "the adopted stick")
    host.cut_power()
    host.start()
    assert host.row()["name"] == "on"


def test_a_foreign_stick_is_not_touched(host: Host, stick: Path) -> None:
    with stick.open("r+b") as file:
        file.write(b"somebody's data" * 1000)
    before = stick.read_bytes()
    host.start()
    assert host.change(name="x") == "memory" and "no journal of Glint" in host.status()["why"]
    assert stick.read_bytes() == before


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "--folder"),
        (["--folder", "here", "--schema", SCHEMA], "absolute"),
        (["--folder", "/no/such/folder", "--schema", SCHEMA], "/no/such/folder"),
        (["--inspect", "/no/such/stick"], "open /no/such/stick"),
        (["--inspect", "/dev/null"], "neither a block device nor a file"),
        (["--inspect", SCHEMA], "too few"),
    ],
)
def test_bad_arguments(args: list, words: str) -> None:
    done = subprocess.run([KEEPER, *map(str, args)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and words in done.stderr
