"""Initial RAM disks for tests: a static busybox, kernel modules and an init script, as a cpio archive.

Used for the nested host itself and for the guests of tests. Archives are kept in the cache under the hash of what is in
them, so a test may ask for one whenever it needs it. Touches the cache (GLINT_CACHE) only; reads the build root.
"""

import hashlib
import lzma
import os
import stat
import subprocess
import tempfile
from pathlib import Path

KERNEL = Path("/opt/kernel-amd64")  # Debian's generic kernel: the nested host's
CLOUD_KERNEL = Path("/opt/kernel-cloud-amd64")  # Debian's cloud kernel: the stock guest of the tests


def kernel_version(kernel: Path) -> str:
    return (kernel / "version").read_text().strip()


def _modules(kernel: Path, names: list[str]) -> list[Path]:
    """The files of the modules and of all they depend on, in the order in which they load."""
    files: dict[Path, None] = {}
    for name in names:
        command = ["modprobe", "-d", str(kernel), "-S", kernel_version(kernel), "--show-depends", name]
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            word = line.split()
            if word[0] == "insmod":  # else "builtin"
                files[Path(word[1])] = None
    return list(files)


class _Archive:
    """A cpio archive in the form the kernel reads (newc): Documentation/driver-api/early-userspace/buffer-format."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (encoded, content):
            self._data += part
            self._data += bytes(-len(self._data) % 4)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._data)


def busybox_initrd(
    init: str, modules: list[str] = [], kernel: Path = CLOUD_KERNEL, files: dict[str, bytes] = {}
) -> Path:
    """Makes an initrd, or finds it in the cache, and returns its path.

    init: a shell script, run as process 1 after the modules are loaded, with busybox's commands, the console open and
          /dev, /proc and /sys mounted. It must not end.
    modules: what it needs of the kernel's modules, by name; their dependencies come along.
    files: further files, by path without the leading /; executable.
    """
    archive = _Archive()
    for folder in ("bin", "dev", "proc", "sys", "tmp", "root", "modules"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes())
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    load = []
    for file in _modules(kernel, modules):
        # Unpacked here, not by the guest: decompressing is slow under emulation.
        name = "modules/" + file.name.removesuffix(".xz")
        archive.add(name, stat.S_IFREG | 0o644, lzma.decompress(file.read_bytes()))
        load.append(f"insmod /{name} || echo 'initrd: cannot load {name}'\n")
    prepare = (
        "#!/bin/sh\n"
        "/bin/busybox --install -s /bin\n"
        "mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n"
    )
    archive.add("init", stat.S_IFREG | 0o755, (prepare + "".join(load) + init).encode())
    for path, content in files.items():
        archive.add(path, stat.S_IFREG | 0o755, content)
    return _keep(archive.finish())


def files_in(archive: bytes, ending: str) -> dict[str, bytes]:
    """The regular files of an unpacked initrd whose names end so, by path."""
    files, at, name = {}, 0, ""
    while name != "TRAILER!!!":
        field = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = field[1], field[6], field[11]
        name = archive[at + 110 : at + 109 + name_size].decode()
        at = (at + 110 + name_size + 3) & ~3
        if stat.S_ISREG(mode) and name.endswith(ending):
            files[name] = archive[at : at + size]
        at = (at + size + 3) & ~3
    return files


def overlay(files: dict[str, bytes]) -> bytes:
    """What, put behind an initrd, replaces these files of it."""
    archive = _Archive()
    for path, content in files.items():
        archive.add(path, stat.S_IFREG | 0o644, content)
    return archive.finish()


def _keep(data: bytes) -> Path:
    folder = Path(os.environ["GLINT_CACHE"]) / "initrd"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:32]
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(data)
        os.rename(file.name, path)
    return path
