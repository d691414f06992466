#!/usr/bin/env python3
"""Says what an image consists of: Debian's packages with versions, licences and sources, and every file with its hash.

How: each file of the staged root is looked up in the package database of the Debian root that it was taken from; what
no package has must be ours (built here, or from image/files) or made from what packages have. The kernel, the UKI's
stub and the libraries linked into our programs come from the build root's packages, firmware and microcode from those
of a root of its own, if there is any.
Licences are those that a package's copyright file names (DEP 5); where it names none, the file is to be read.

It may touch: the file it writes, and the manifest in the staged root.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import sys
from pathlib import Path

# Made here from files of packages, by depmod(8).
MADE = re.compile(r"usr/lib/modules/[^/]+/modules\.[a-z.]+")
# From the build root: the stub of the UKI and the boot loader, what the built-in guest runs, firmware of guests.
PARTS = ["systemd-boot-efi", "ovmf"]
# Of the UKI's archive of microcode: whose each file is.
MICROCODE = {
    "kernel/x86/microcode/AuthenticAMD.bin": "amd64-microcode",
    "kernel/x86/microcode/GenuineIntel.bin": "intel-microcode",
}
INSIDE = "usr/lib/glint/manifest.json"
LIBC = "/usr/lib/x86_64-linux-gnu/libc.a"


def fields(text: str) -> dict[str, str]:
    """Of a paragraph of a Debian control file; of folded ones the first line."""
    return dict(re.findall(r"^([\w-]+): *(.*)$", text, re.MULTILINE))


def licences(copyright: Path) -> list[str]:
    """The short names in a machine-readable copyright file."""
    if not copyright.exists() and copyright.with_suffix(".gz").exists():
        text = gzip.decompress(copyright.with_suffix(".gz").read_bytes()).decode(errors="replace")
    elif copyright.exists():
        text = copyright.read_text(errors="replace")
    else:
        return []
    if not re.match(r"\s*(#.*\s*)*Format(-Specification)?:", text):
        return []
    names = re.findall(r"^License: *(\S.*?) *$", text, re.MULTILINE | re.IGNORECASE)
    return sorted(set(names), key=str.lower)


class Packages:
    """The package database of a Debian root."""

    def __init__(self, root: Path):
        self.root = root
        paragraphs = (fields(text) for text in (root / "var/lib/dpkg/status").read_text().split("\n\n"))
        self.status = {p["Package"]: p for p in paragraphs if "installed" in p.get("Status", "")}
        self.owner: dict[str, str] = {}
        for listing in (root / "var/lib/dpkg/info").glob("*.list"):
            name = listing.stem.split(":")[0]
            for line in listing.read_text().splitlines():
                self.owner[self._merged(line)] = name

    @staticmethod
    def _merged(path: str) -> str:
        """The database may know a file by the name it had before /bin and /lib were links."""
        path = path.lstrip("/")
        return "usr/" + path if re.match(r"(bin|sbin|lib|lib64)/", path) else path

    def of(self, path: str) -> str | None:
        found = self.owner.get(path)
        if not found and (self.root / path).is_file():
            found = self.owner.get(os.path.relpath((self.root / path).resolve(), self.root.resolve()))
        return found

    def row(self, name: str) -> dict:
        return package_row(self.status[name], licences(self.root / f"usr/share/doc/{name}/copyright"))


def package_row(p: dict[str, str], licences: list[str]) -> dict:
    source, _, version = p.get("Source", p["Package"]).partition(" ")
    return {
        "name": p["Package"],
        "version": p["Version"],
        "architecture": p["Architecture"],
        "source": source,
        "source-version": version.strip("()") or p["Version"],
        "licences": licences,
    }


def kernel_row(kernel: Path) -> dict:
    p = fields((kernel / "control").read_text())
    return package_row(p, licences(kernel / f"usr/share/doc/{p['Package']}/copyright"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_row(path: Path, name: str, owner: str | None) -> dict:
    return {"path": name, "package": owner, "bytes": path.stat().st_size, "sha256": sha256(path)}


def read_files(root: Path, packages: Packages, build: Packages, firmware: Packages | None, kernel: dict, ours: set[str]) -> list[dict]:
    """Every file of the staged root; ends the build where nobody knows whose one is."""
    rows, unknown = [], []
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        name = str(path.relative_to(root))
        if name in ours:
            owner = "glint"
        elif MADE.fullmatch(name) or name.startswith("usr/lib/modules/"):
            owner = kernel["name"]
        elif firmware and name.startswith("usr/lib/firmware/"):
            owner = firmware.of(name.removesuffix(".xz"))
        else:
            owner = packages.of(name) or (build.of(name) if build.of(name) in PARTS else None)
        if not owner:
            unknown.append(name)
        rows.append(file_row(path, name, owner))
    if unknown:
        sys.exit(f"image: no package and no recipe has {', '.join(unknown)}: what is in an image must be known")
    return rows


def linked(ninja: Path, programs: list[str], packages: Packages) -> list[str]:
    """The packages whose static libraries are in our programs."""
    found = set()
    text = ninja.read_text()
    for program in programs:
        rule = re.search(rf"^build {re.escape(program)}: c_LINKER .*\n LINK_ARGS = (.*)$", text, re.MULTILINE)
        if not rule:
            sys.exit(f"image: {ninja} does not say how {program} is linked")
        words = rule[1].split()
        libraries = [word for word in words if word.startswith("/") and word.endswith(".a")]
        for library in libraries + [LIBC] * any(word.startswith("-static") for word in words):
            if not (owner := packages.of(library.lstrip("/"))):
                sys.exit(f"image: no package has {library}, which {program} is linked with")
            found.add(owner)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("root", "source", "build-root", "files", "ninja", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--firmware", type=Path, help="the root that firmware and microcode were taken from")
    parser.add_argument("--microcode", type=Path, help="the folder of what is in the UKI's archive of microcode")
    parser.add_argument("--ours", action="append", default=[], metavar="PATH=FILE", help="a built file and its place")
    parser.add_argument("--program", action="append", default=[], help="a built program, as ninja knows it")
    given = parser.parse_args()

    host, build = Packages(given.source), Packages(given.build_root)
    firmware = Packages(given.firmware) if given.firmware else None
    kernel = kernel_row(given.kernel)
    ours = {pair.partition("=")[0] for pair in given.ours} | {str(p.relative_to(given.files)) for p in given.files.rglob("*")}
    files = read_files(given.root, host, build, firmware, kernel, ours)
    used = sorted({row["package"] for row in files} - {"glint", kernel["name"], *PARTS})
    manifest = {
        "name": "glint",
        "version": given.version,
        "packages": [(host if name in host.status else firmware).row(name) for name in used] + [kernel],
        "linked": [build.row(name) for name in linked(given.ninja, given.program, build)],
        "parts": [build.row(name) for name in PARTS] + [firmware.row(name) for name in MICROCODE.values() if firmware],
        "firmware": bool(firmware),
        "microcode": [file_row(given.microcode / name, name, owner) for name, owner in MICROCODE.items() if firmware],
    }
    # The host itself has what one asks it for; the hashes of its files are beside the image.
    (given.root / INSIDE).write_text(json.dumps(manifest) + "\n")
    given.output.write_text(json.dumps(manifest | {"files": files}, indent=1) + "\n")


if __name__ == "__main__":
    main()
