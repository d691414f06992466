#!/usr/bin/env python3
"""Lays out the host's root in a folder: the files image/contents names, the modules image/modules names.

How: both lists are globs, `!` takes away again. Files are taken from a Debian root together with what their links
point to; the shared libraries that programs name (DT_NEEDED) follow until none is missing. Modules are taken from
the unpacked kernel together with what they depend on (modules.dep), compressed as they are; the firmware that they
name comes from a root that has it, if there is one. image/files is laid over the whole, with @VERSION@ filled in, and every unit's programs must then be there.

It may touch: the folder it makes, nothing else.
"""

import argparse
import fnmatch
import glob
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

LIBRARY_DIRS = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd", "usr/lib64")


def fail(words: str) -> None:
    sys.exit(f"image: {words}")


def read_list(path: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


class Root:
    """A root being filled from another one. Paths are relative to both, links stay inside."""

    def __init__(self, source: Path, target: Path):
        self.source, self.target = source, target
        for directory in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys", "run", "var", "root"):
            (target / directory).mkdir(parents=True)
        for link in ("bin", "sbin", "lib", "lib64"):
            (target / link).symlink_to(f"usr/{link}")
        (target / "var/run").symlink_to("/run")

    def real(self, path: str) -> str:
        """The path with the links of its folders resolved inside the source (usr-merge, absolute links)."""
        folder = os.path.dirname(path)
        resolved = subprocess.run(["chroot", self.source, "readlink", "-f", "/" + folder], capture_output=True, text=True)
        return os.path.join(resolved.stdout.strip().lstrip("/"), os.path.basename(path))

    def take(self, path: str) -> None:
        source, target = self.source / path, self.target / path
        if target.exists() or target.is_symlink():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
        if source.is_symlink():
            link = os.readlink(source)
            self.take(self.real(os.path.normpath(link.lstrip("/") if link[0] == "/" else os.path.join(os.path.dirname(path), link))))

    def take_list(self, lines: list[str]) -> None:
        chosen: dict[str, str] = {}  # and the mode, if not Debian's
        for line in lines:
            if line.startswith("!"):
                chosen = {path: mode for path, mode in chosen.items() if not fnmatch.fnmatch(path, line[1:])}
                continue
            pattern, _, mode = line.partition(" ")
            found = [path for path in sorted(glob.glob(pattern, root_dir=self.source)) if not (self.source / path).is_dir()]
            if not found:
                fail(f"contents: nothing matches '{pattern}' in {self.source}: has Debian renamed or moved it?")
            chosen.update(dict.fromkeys(found, mode))
        for path, mode in chosen.items():
            self.take(path)
            if mode:
                (self.target / path).chmod(int(mode, 8))

    def take_libraries(self) -> None:
        """Adds the libraries that what is there names, until nothing is missing."""
        looked: set[Path] = set()
        while fresh := [p for p in self.target.rglob("*") if p not in looked and p.is_file() and not p.is_symlink() and is_elf(p)]:
            looked.update(fresh)
            for program in fresh:
                for library in needed(program):
                    self.take_library(library, program)

    def take_library(self, library: str, program: Path) -> None:
        for folder in LIBRARY_DIRS:
            if (self.source / folder / library).exists():
                self.take(f"{folder}/{library}")
                return
        fail(f"{program.relative_to(self.target)} needs {library}, which {self.source} does not have")


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def needed(program: Path) -> list[str]:
    """Names of the libraries and of the dynamic loader a program names."""
    words = subprocess.run(["readelf", "-ld", program], capture_output=True, text=True, check=True).stdout
    loader = re.findall(r"interpreter: [^\]]*/([^/\]]+)\]", words)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", words) + loader


def take_modules(kernel: Path, target: Path, lines: list[str]) -> None:
    version = (kernel / "version").read_text().strip()
    tree = kernel / "usr/lib/modules" / version
    depends = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        module, _, after = line.partition(":")
        depends[module] = after.split()
    builtin = (tree / "modules.builtin").read_text().split()
    chosen: set[str] = set()
    for line in lines:
        pattern = "kernel/" + line.removeprefix("!")
        found = {module for module in depends if PurePosixPath(module).full_match(pattern)}
        if line.startswith("!"):
            chosen -= found
        elif not found and not any(PurePosixPath(m).full_match(pattern) for m in builtin):
            fail(f"modules: nothing matches '{line}' in Debian's kernel {version}")
        else:
            chosen |= found
    chosen |= {dependence for module in chosen for dependence in depends[module]}
    out = target / "usr/lib/modules" / version
    for module in sorted(chosen):
        (out / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree / module, out / module)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy2(tree / name, out / name)
    subprocess.run(["depmod", "-b", target, version], check=True)
    # What only older tools read: the .bin files say the same.
    for name in ("modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (out / name).unlink()
    print(f"{len(chosen)} modules", file=sys.stderr)


def take_firmware(source: Path, target: Path) -> None:
    """What the modules taken name of firmware (a name may be a glob), as far as @source has it."""
    modules = sorted((target / "usr/lib/modules").rglob("*.ko*"))
    named = set(subprocess.run(["modinfo", "-F", "firmware", *modules], capture_output=True, text=True, check=True).stdout.split())
    folder = source / "usr/lib/firmware"
    found = {str(path.relative_to(folder)) for name in named for path in folder.glob(name) if not path.is_dir()}
    for name in sorted(found):
        take_compressed(folder, target / "usr/lib/firmware", name)
    print(f"{len(found)} files of firmware, of {len(named)} named", file=sys.stderr)


def take_compressed(folder: Path, target: Path, name: str) -> None:
    """As the kernel looks for it (NAME.xz), with the one checksum of xz that it knows; a link with what it points to."""
    source, out = folder / name, target / f"{name}.xz"
    if out.exists() or out.is_symlink():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        link = os.readlink(source)
        out.symlink_to(f"{link}.xz")
        take_compressed(folder, target, os.path.normpath(os.path.join(os.path.dirname(name), link)))
    else:
        out.write_bytes(lzma.compress(source.read_bytes(), check=lzma.CHECK_CRC32, preset=9))


def lay_over(files: Path, target: Path, version: str) -> None:
    """Copies our own files, owned by root and with plain modes, whatever the clone's are."""
    for source in sorted(files.rglob("*")):
        path = target / source.relative_to(files)
        if source.is_symlink():
            path.symlink_to(os.readlink(source))
        elif source.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.unlink(missing_ok=True)
            path.write_bytes(source.read_bytes().replace(b"@VERSION@", version.encode()))
            path.chmod(0o755 if os.access(source, os.X_OK) and source.stat().st_mode & 0o100 else 0o644)


def check_units(target: Path) -> None:
    """A unit whose program was not taken along would only fail on the running host."""
    for unit in (target / "usr/lib/systemd/system").glob("*.service"):
        if unit.is_symlink():
            continue
        for program in re.findall(r"^Exec\w+=[-@:+!]*(\S+)", unit.read_text(), re.MULTILINE):
            names = [program] if program.startswith("/") else [f"usr/bin/{program}", f"usr/sbin/{program}"]
            if not any((target / name.lstrip("/")).exists() for name in names):
                fail(f"{unit.name} runs {program}, which the image does not contain: add it to image/contents")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("source", "kernel", "recipe", "target"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--firmware", type=Path, help="a Debian root that has firmware (default: none is taken)")
    parser.add_argument("--add", action="append", default=[], metavar="PATH=FILE", help="a built file and its place")
    given = parser.parse_args()

    root = Root(given.source, given.target)
    root.take_list(read_list(given.recipe / "contents"))
    for pair in given.add:
        path, _, file = pair.partition("=")
        (given.target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, given.target / path)
        (given.target / path).chmod(0o755 if is_elf(Path(file)) else 0o644)
    root.take_libraries()
    take_modules(given.kernel, given.target, read_list(given.recipe / "modules"))
    if given.firmware:
        take_firmware(given.firmware, given.target)
    lay_over(given.recipe / "files", given.target, given.version)
    check_units(given.target)


if __name__ == "__main__":
    main()
