"""A host that crashes: its last words are in the firmware's memory, it starts again, says so, and takes them out."""

import re
import subprocess
import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "image"))

from boot import StickMachine  # noqa: E402

BOOT_SECONDS = 300
DUMP = "dump-type0-".encode("utf-16-le")  # as efi_pstore names its variables
TOLD = rb"glint: the host crashed at (20\d\d-\d\d-\d\d \d\d:\d\d:\d\d) UTC"


def test_crash_is_told(tmp_path: Path) -> None:
    stick = CLONE / "build/stick.img"
    subprocess.run([CLONE / "image/build", "-o", stick], check=True)
    with StickMachine(stick, folder=tmp_path, reboots=True) as machine:
        machine.wait_for(rb"the host's state is kept on its stick", BOOT_SECONDS)
        assert not re.search(TOLD, machine.output) and DUMP not in (tmp_path / "vars.fd").read_bytes()
        machine.qmp("inject-nmi")  # as the button on a board, or IPMI, does
        machine.wait_for(rb"Kernel panic - not syncing: NMI", 60)
        machine.wait_for(rb"BdsDxe: starting Boot", 60)
        assert DUMP in (tmp_path / "vars.fd").read_bytes()
        machine.wait_for(TOLD, BOOT_SECONDS)
