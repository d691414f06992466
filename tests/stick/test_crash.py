"""A host that crashes: its last words are in the firmware's memory, it starts again, says so, and takes them out.
A person at its screen then puts what support needs on the stick, and finds it there."""

import json
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
        machine.wait_for(rb"BdsDxe: starting Boot", 120)
        assert DUMP in (tmp_path / "vars.fd").read_bytes()
        machine.wait_for(TOLD, BOOT_SECONDS)
        machine.wait_for(rb"glint: it is healthy", BOOT_SECONDS)
        machine.wait_for(rb"the word support and Enter", 60)
        bundle_is_on_the_stick(machine, tmp_path)


def bundle_is_on_the_stick(machine: StickMachine, folder: Path) -> None:
    machine.write(b"suppost\x7f\x7frt\r")
    machine.wait_for(rb"what support needs is gathered", 10)
    machine.wait_for(rb"glint/support\.tar\.zst of the host's stick: what support needs, \d+ parts", 60)
    machine.write(b"support\r")
    machine.wait_for(rb"one support bundle a minute is enough", 10)
    machine.close()
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / "stick.qcow2", folder / "taken.img"], check=True)
    subprocess.run(["mcopy", "-i", f"{folder}/taken.img@@1M", "::glint/support.tar.zst", folder / "bundle.tar.zst"], check=True)
    subprocess.run(["tar", "--zstd", "-xf", folder / "bundle.tar.zst", "-C", folder], check=True)
    bundle = folder / "glint-support"
    assert json.loads((bundle / "bundle.json").read_text())["missing"] is not None
    assert json.loads((bundle / "run/glint/health.json").read_text())["durability"] == "stick"
    journal = (bundle / "journal.txt").read_text()
    assert "restored from /dev/glint/state" in journal and "kernel: Linux version" in journal
    assert re.search(r"glint-keeper\.service +loaded +active +running", (bundle / "units.txt").read_text())
    assert "E: DEVNAME=/dev/sda" in (bundle / "udev.txt").read_text()
    assert any(b"Kernel panic - not syncing: NMI" in path.read_bytes() for path in bundle.glob("var/lib/systemd/pstore/**/*") if path.is_file())
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in bundle.rglob("*") if path.is_file())
