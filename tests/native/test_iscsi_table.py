"""glint-iscsi and a firmware's table that it does not use: it says why, touches nothing, and leaves the host to go on."""

import subprocess
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
GOOD = (CLONE / "tests/fuzz/corpus/ibft/ipxe").read_bytes()


def sealed(table: bytes) -> bytes:
    return table[:9] + bytes([-sum(table[:9] + table[10:]) & 0xFF]) + table[10:]


TABLES = {
    "it is cut off": GOOD[:-1],
    "its checksum is wrong": GOOD[:320] + b"x" + GOOD[321:],
    "the initiator 'iqn.2010-04.org.ipxe:ho;t' is no iSCSI name": sealed(GOOD.replace(b"ipxe:host", b"ipxe:ho;t")),
    "the CHAP secret is too long or lies outside (65535 bytes": sealed(GOOD[:298] + b"\xff\xff" + GOOD[300:]),
}


@pytest.mark.parametrize("why", TABLES)
def test_refused(why: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "table").write_bytes(TABLES[why])
    done = subprocess.run([CLONE / "build/release/node/iscsi/glint-iscsi", "--table", tmp_path / "table", "--folder", folder],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert f"the firmware's table of a disk over iSCSI is not used: {why}" in done.stderr and "DHCP server" in done.stderr
    assert not list(folder.iterdir())
