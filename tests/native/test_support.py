"""glint host support-bundle: what is in it, what is not, and how large it may become. (On a host: test_crash.py.)"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from host import BUILD

GLINT = BUILD / "cli/glint"
MIB = 1 << 20


def bundle(*args: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([GLINT, "host", "support-bundle", *args], capture_output=True, text=True, timeout=120)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in {
        "run/glint/health.json": "{}", "run/glint/identity/id": "an id", "run/glint/identity/key.pem": "PRIVATE KEY",
        "run/glint/database/glint.db": "stored", "proc/meminfo": "MemTotal: 1 kB", f"run/glint-config/{'long' * 20}.toml": "name",
        "sys/firmware/efi/efivars/Boot0020-x": "entry", "sys/firmware/efi/efivars/LoaderSystemToken-x": "secret",
        "sys/firmware/ibft/target0/chap-secret": "secret", "sys/firmware/ibft/target0/rev-chap-secret": "secret", "sys/firmware/ibft/target0/target-name": "iqn",
    }.items():  # fmt: skip
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_text(text)
    return tmp_path / "root"


def unpack(file: Path, to: Path) -> dict[str, bytes]:
    to.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", file, "-C", to], check=True)
    return {str(path.relative_to(to / "glint-support")): path.read_bytes() for path in to.rglob("*") if path.is_file()}


def test_what_is_in_it(root: Path, tmp_path: Path) -> None:
    os.symlink("/etc/passwd", root / "run/glint-config/link")
    os.mkfifo(root / "run/glint-config/pipe")
    done = bundle("-o", tmp_path / "b", "--root", root, "--json")
    assert done.returncode == 0, done.stderr
    inside = unpack(tmp_path / "b", tmp_path / "out")
    summary = json.loads(inside.pop("bundle.json"))
    assert {name: text for name, text in inside.items() if not name.endswith(".txt")} == {
        "run/glint/health.json": b"{}", "run/glint/identity/id": b"an id", "proc/meminfo": b"MemTotal: 1 kB",
        f"run/glint-config/{'long' * 20}.toml": b"name", "sys/firmware/efi/efivars/Boot0020-x": b"entry",
        "sys/firmware/ibft/target0/target-name": b"iqn",
    }  # fmt: skip
    assert summary["version"] == 1 and summary["parts"] == len(inside) == json.loads(done.stdout)["parts"]
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "b").stat().st_size
    # Programs of a host that are not here are named.
    assert {row["name"] for row in summary["missing"]} == {"journal.txt", "units.txt", "jobs.txt", "udev.txt"} - set(inside)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_it_is_bounded(root: Path, tmp_path: Path) -> None:
    """Of a long file there is the end; what is too much is left out, and named."""
    (root / "proc/vmstat").write_bytes(b"begin" + bytes(40 * MIB) + b"end")
    assert bundle("-o", tmp_path / "a", "--root", root).returncode == 0
    told = unpack(tmp_path / "a", tmp_path / "first")["proc/vmstat"]
    assert 8 * MIB <= len(told) < 16 * MIB and told.endswith(b"end")
    for i in range(5):
        (root / f"run/glint-config/random{i}").write_bytes(os.urandom(15 * MIB))
    assert bundle("-o", tmp_path / "b", "--root", root).returncode == 0
    assert 16 * MIB < (tmp_path / "b").stat().st_size < 33 * MIB
    inside = unpack(tmp_path / "b", tmp_path / "out")
    missing = {row["name"]: row["why"] for row in json.loads(inside["bundle.json"])["missing"]}
    assert "16 MiB" in missing["/run/glint-config/random4"] and "run/glint-config/random0" in inside


def test_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("dear")
    for args, words in ((["-o", tmp_path / "there"], "not there yet"), ([], "--output"), (["-o", tmp_path / "b", "--stick"], "--output"),
                        (["-o", tmp_path / "none/b"], "No such file"), (["--stick"], "not started from a stick")):
        done = bundle("--root", root, *args)
        assert done.returncode == 1 and words in done.stderr, done.stderr
    assert (tmp_path / "there").read_text() == "dear" and not (tmp_path / "b").exists()
