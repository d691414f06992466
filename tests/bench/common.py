# What every benchmark shares: rows, ratios, the table for people and the JSON for programs.
#
# A row is a measured thing with its unit and all its samples; a ratio sets two rows of the same run against a goal of
# the design. `commands` are the peers' exact command lines.

import argparse
import json
import os
import shlex
import statistics
import sys
from pathlib import Path

CLONE = Path(os.environ["GLINT_CLONE"])
CACHE = Path(os.environ["GLINT_CACHE"])
VMM = CLONE / "build/release/vmm/glint-vmm"


class Bench:
    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where
        self.rows: list[dict] = []
        self.ratios: list[dict] = []
        self.commands: list[str] = []
        print(f"{name}, {where}:{'':<34} {'min':>10} {'median':>10} {'max':>10}", flush=True)

    def command(self, argv: list) -> None:
        line = shlex.join(str(a) for a in argv)
        if line not in self.commands:
            self.commands.append(line)

    def row(self, name: str, unit: str, samples: list[float]) -> float:
        """Adds a row; returns its median."""
        low, median, high = min(samples), statistics.median(samples), max(samples)
        self.rows.append({"name": name, "unit": unit, "min": low, "median": median, "max": high, "n": len(samples)})
        print(f"  {name:<44} {low:>10.3f} {median:>10.3f} {high:>10.3f} {unit} (n={len(samples)})", flush=True)
        return median

    def ratio(self, name: str, value: float, goal: float, better: str) -> None:
        met = value <= goal if better == "lower" else value >= goal
        self.ratios.append({"name": name, "value": round(value, 4), "goal": goal, "better": better})
        sign = "<=" if better == "lower" else ">="
        print(f"  {name:<44} {value:>10.3f}  goal {sign} {goal}: {'met' if met else 'MISSED'}", flush=True)

    def finish(self, path: str | None) -> None:
        if self.commands:
            print("peers, as they were run:")
        for line in self.commands:
            print("  " + line)
        if path:
            data = {"bench": self.name, "where": self.where}
            data |= {"rows": self.rows, "ratios": self.ratios, "commands": self.commands}
            Path(path).write_text(json.dumps(data, indent=1) + "\n")


def arguments(description: str, runs: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--runs", type=int, default=runs, help=f"counted runs of each (default {runs})")
    args = parser.parse_args()
    if args.runs < 1:
        sys.exit("--runs: at least 1")
    return args
