"""F11 to F14: the stick's way to its first screen, the host's memory, the image's room, bytes written to the stick."""

# Boots build/stick.img as ./run does, several times: phases and memory by what the console says. Then once more with
# a longer kernel command line (systemd-stub takes it from the machine's SMBIOS while Secure Boot is off): systemd's
# units tell when they start and end, and the kernel's memory report is asked for by its key (Alt-SysRq-F), which
# kills a process, too: that boot is good for nothing else. Room is what erofs says of each file. The bytes of a
# change are counted by the real keeper beside a real ovsdb-server, those of an idle host by QEMU.

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from common import CLONE, Bench, arguments

sys.path[:0] = [str(CLONE / "image"), str(CLONE / "tests/faults")]

from boot import STEPS, StickMachine, kvm_usable  # noqa: E402
from test_keeper import Host  # noqa: E402

MIB = 1 << 20
STICK = CLONE / "build/stick.img"
BOOT_SECONDS = 300
SETTLE_SECONDS = 30  # a host's first boot writes its state, and its first configuration
IDLE_SECONDS = 60
CHANGES = 200
TOLD = ["loglevel=7", "printk.devkmsg=on", "systemd.log_target=kmsg", "systemd.log_level=info", "sysrq_always_enabled"]

# What is seen, in this order, and the phase that ends with it.
PHASES = [
    (STEPS[0][0], "firmware"),
    (STEPS[1][0], "boot loader, the UKI read"),
    (STEPS[2][0], "stub, kernel unpacked"),
    (STEPS[3][0], "kernel, initramfs"),
    (rb"this is [^\r\n]*, Glint [^\r\n]*\r", "systemd to the first screen"),
]
LARGEST = 12  # rows of each kind


def largest(sizes: dict[str, float]) -> list[tuple[str, float]]:
    """The largest ones by size, and all others in one."""
    rows = sorted(sizes.items(), key=lambda row: -row[1])
    rest = sum(size for _, size in rows[LARGEST:])
    return rows[:LARGEST] + ([(f"{len(rows) - LARGEST} others", rest)] if rest else [])


def time_boots(bench: Bench, runs: int) -> None:
    phases: dict[str, list[float]] = {what: [] for _, what in PHASES}
    total, memory = [], []
    for _ in range(runs):
        with StickMachine(STICK) as machine:
            ends = []
            for pattern, _ in PHASES:
                machine.wait_for(pattern, BOOT_SECONDS)
                ends.append(machine.seconds())
            for (_, what), end, begin in zip(PHASES, ends, [0, *ends]):
                phases[what].append(end - begin)
            total.append(ends[-1] - ends[0])
            memory.append(float(machine.wait_for(rb"memory in use (\d+) of", BOOT_SECONDS)[1]))
    for what, samples in phases.items():
        bench.row(what, "s", samples)
    first = bench.row("firmware's hand-off to first screen", "s", total)
    bench.ratio("F11 first screen, s", first, 3 if kvm_usable() else 12, "lower")
    bench.row("memory in use at the first screen", "MiB", memory)


def unit_times(text: str) -> dict[str, float]:
    """Seconds from a unit's start until it was up, by the kernel's clock."""
    began: dict[str, float] = {}
    took: dict[str, float] = {}
    for stamp, what, unit in re.findall(r"\[ *(\d+\.\d+)\] systemd\[1\]: (Starting|Started|Finished) (\S+)", text):
        if what == "Starting":
            began[unit] = float(stamp)
        elif unit in began:
            took.setdefault(unit, float(stamp) - began[unit])
    return took


def memory_by_owner(text: str) -> dict[str, float]:
    """MiB by what the kernel's report says of its pages, and of each process."""
    report = text[text.index("Mem-Info:"):]
    pages = {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", report[:report.index("Node 0")])}
    owners = {
        "the root's image and the initramfs": pages["unevictable"],
        "tmpfs: journal, database, /run": pages["shmem"],
        "kernel: slab that stays": pages["slab_unreclaimable"],
        "kernel: slab that can be given back": pages["slab_reclaimable"],
        "kernel: page tables": pages["pagetables"],
        "page cache that can be given back": pages["active_file"] + pages["inactive_file"],
    }
    by_name: dict[str, int] = defaultdict(int)
    # pid uid tgid total_vm rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
    for anon, name in re.findall(r"\[ *\d+\] +\d+ +\d+ +\d+ +\d+ +(\d+) +\d+ +\d+ +\d+ +\d+ +-?\d+ (\S+)", report):
        by_name[f"program: {name}"] += int(anon)
    return {name: count * 4096 / MIB for name, count in (owners | by_name).items()}


def wait(machine: StickMachine, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        machine.read(1)


def look_closer(bench: Bench) -> None:
    extra = ["-smbios", f"type=11,value=io.systemd.stub.kernel-cmdline-extra={' '.join(TOLD)}"]
    with StickMachine(STICK, extra=extra) as machine:
        machine.wait_for(rb"healthy after", BOOT_SECONDS)
        wait(machine, SETTLE_SECONDS)
        before = machine.stick_counters()
        wait(machine, IDLE_SECONDS)
        after = machine.stick_counters()
        machine.write(b"\r")
        used = float(machine.wait_for(rb"memory in use (\d+) of", 60)[1])
        machine.qmp("send-key", keys=[{"type": "qcode", "data": key} for key in ("alt", "sysrq", "f")])
        machine.wait_for(rb"Out of memory: Killed|oom-kill:", 60)
        machine.read(3)
        text = re.sub(r"\x1b\[[0-9;:]*m", "", machine.output.decode(errors="replace"))
    for unit, seconds in largest(unit_times(text)):
        bench.row(f"unit: {unit}", "s", [seconds])
    bench.row("memory in use, settled", "MiB", [used])
    bench.ratio("F12 memory, MiB", used, 160, "lower")
    for owner, mib in largest(memory_by_owner(text)):
        bench.row(f"memory: {owner}", "MiB", [mib])
    written = sum(after[name] - before[name] for name in ("wr_bytes", "rd_bytes"))
    bench.row(f"bytes to and from the stick, idle {IDLE_SECONDS} s", "B", [written])
    bench.ratio("F14 idle, bytes", written, 0, "lower")


def share(path: str, packages: dict[str, str]) -> str:
    """Whose a file is, in a line of the table."""
    found = re.match(r"usr/lib/modules/[^/]+/kernel/((?:drivers/)?[^/]+)(/ethernet)?", path)
    return f"modules: {found[1]}{found[2] or ''}" if found else f"package: {packages.get(path, 'the layout')}"


def bytes_of(image: Path, path: str) -> int:
    """Its room in the image: what is compressed, as it is."""
    words = subprocess.run(["dump.erofs", f"--path=/{path}", image], check=True, capture_output=True, text=True).stdout
    found = re.search(r"On-disk size: (\d+)", words)
    return int(found[1]) if found else 0


def measure_room(bench: Bench, folder: Path) -> None:
    uki = Path(f"{STICK}.efi")
    manifest = json.loads(Path(f"{STICK}.manifest.json").read_text())
    packages = {row["path"]: row["package"] for row in manifest["files"]}
    for section in (".linux", ".initrd"):
        subprocess.run(["objcopy", "-O", "binary", "-j", section, uki, folder / section], check=True)
        bench.row(f"UKI: {section}", "MiB", [(folder / section).stat().st_size / MIB])
    with (folder / ".initrd").open("rb") as initrd:
        subprocess.run(["cpio", "--quiet", "-i", "root.img"], stdin=initrd, cwd=folder, check=True)
    sizes: dict[str, float] = defaultdict(float)
    for path in packages:
        sizes[share(path, packages)] += bytes_of(folder / "root.img", path) / MIB
    for name, mib in largest(sizes):
        bench.row(name, "MiB", [mib])
    bench.ratio("F13 UKI, MiB", uki.stat().st_size / MIB, 64, "lower")


def count_changes(bench: Bench, folder: Path) -> None:
    stick = folder / "stick"
    with stick.open("wb") as file:
        file.truncate(64 * MIB)
    with Host(folder / "host", stick) as host:
        host.start()
        host.call("sync")
        written = [host.status()["written"]]
        for i in range(CHANGES):
            assert host.change(name=f"change {i}", hardware="x" * (i * 13 % 1500)) == "stick"
            written.append(host.status()["written"])
    costs = [after - before for before, after in zip(written, written[1:])]
    bench.row("bytes to the stick, a change", "B", costs)
    bench.row(f"bytes to the stick, a day of {CHANGES} changes", "B", [sum(costs)])
    bench.ratio("F14 a change, snapshots included, KiB", sum(costs) / CHANGES / 1024, 16, "lower")


def main() -> None:
    args = arguments(__doc__, 3)
    subprocess.run([CLONE / "image/build", "-o", STICK], check=True)
    bench = Bench("stick", "KVM" if kvm_usable() else "emulated")
    time_boots(bench, args.runs)
    look_closer(bench)
    with tempfile.TemporaryDirectory() as folder:
        measure_room(bench, Path(folder))
        count_changes(bench, Path(folder))
    bench.finish(args.json)


main()
