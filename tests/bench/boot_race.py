# Boots of one guest by several monitors, timed from exec until the guest's init writes MARK. Runs alternate, so that a
# machine whose speed drifts is fair to all; the first round warms the caches and does not count.

import re

from common import Bench
from host import Host

MARK = "GUEST-INIT"
INIT = f"""#!/bin/busybox sh
echo {MARK}
/bin/busybox poweroff -f
"""
CMDLINE = "console=ttyS0 quiet reboot=t panic=-1"

# Run inside the host, so that the way between here and there is not in the figure: prints the milliseconds until MARK.
TIMER = r"""
import subprocess, sys, time
began = time.monotonic()
p = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
seen = b""
while sys.argv[1].encode() not in seen:
    data = p.stdout.read1(65536)
    if not data:
        sys.exit("no mark; the end of what came: " + seen[-600:].decode(errors="replace"))
    seen += data
print("took", (time.monotonic() - began) * 1000)
p.kill()
p.wait()
"""


def race(bench: Bench, host: Host, argvs: dict[str, list[str]], runs: int) -> dict[str, float]:
    """The median seconds of each that came that far. The first one is ours: its command line is not a peer's."""
    samples: dict[str, list[float]] = {name: [] for name in argvs}
    for run in range(runs + 1):
        for name, argv in argvs.items():
            result = host.run(["python3", "-c", TIMER, MARK, *argv], timeout=360, check=False)
            took = re.search(rb"took ([0-9.]+)", result.stdout)
            if not took:
                print(f"  {name}: {result.stderr.decode(errors='replace')[-800:]}")
            elif run > 0:
                samples[name].append(float(took[1]) / 1000)
    for argv in list(argvs.values())[1:]:
        bench.command(argv)
    return {name: bench.row(f"{name}, exec to guest init", "s", s) for name, s in samples.items() if s}
