"""Disks that UEFI firmware boots from: GPT and an EFI system partition, and on them a stock Debian kernel as one EFI
program (systemd's stub, kernel, initrd and command line), a whole Debian, or GRUB and Debian's installer. Made without
a mount; kept in the cache.
"""

import gzip
import hashlib
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from host import BUILD, CLONE, Host
from initrd import CLOUD_KERNEL, busybox_initrd, files_in, kernel_version, overlay
from vm import INIT, MODULES, VMLINUZ

OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
CMDLINE = "console=ttyS0 quiet panic=-1"
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
ESP_START = 1 << 20
DISK_MIB = 64
DEBIAN = CLONE / "tests/guests/debian"
DEBIAN_MIB = 1536
GLINT = BUILD / "cli/glint"
ESP_MIB = 64
INSTALLER = Path("/usr/lib/debian-installer/images/13/amd64/gtk/debian-installer/amd64")
INSTALLER_MIB = 256
# A field of a debconf template (debconf-devel(7)) in another language.
TRANSLATION = re.compile(rb"^\w+-[a-z]{2,3}(_[A-Z]+)?(@\w+)?\.UTF-8:.*\n( .*\n)*", re.M)
GRUB_CFG = """
set timeout=-1
menuentry "another" {
	true
}
menuentry "Debian installer" {
	linux /linux quiet
	initrd /initrd
}
"""


def run(*command: str | Path, stdin: str | None = None) -> None:
    result = subprocess.run([str(word) for word in command], input=stdin, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"


def fill_esp(disk: Path, size: int, files: dict[str, Path], fat: tuple[str, ...] = ("-F",)) -> None:
    """Makes a FAT file system of @size bytes at ESP_START of @disk and puts files into it, by path. fat: mformat's words
    for the kind."""
    image = f"{disk}@@{ESP_START}"
    run("mformat", "-i", image, *fat, "-v", "ESP", "-T", str(size // 512), "-h", "64", "-s", "32", "::")
    folders = {str(folder) for name in files for folder in Path(name).parents} - {"."}
    for folder in sorted(folders):
        run("mmd", "-i", image, f"::/{folder}")
    for name, source in files.items():
        run("mcopy", "-i", image, source, f"::/{name}")


@contextmanager
def kept(kind: str, *what: object) -> Iterator[tuple[Path, Path | None]]:
    """A disk in the cache, named by what it is made of: where it is, and where to make it (None: it is there)."""
    seed = "\n".join([Path(__file__).read_text(), *map(str, what)])
    folder = Path(os.environ["GLINT_CACHE"]) / "uefi"
    disk = folder / f"{kind}-{hashlib.sha256(seed.encode()).hexdigest()[:16]}.raw"
    new = None if disk.exists() else disk.with_suffix(f".{os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)
    yield disk, new
    if new:
        new.rename(disk)


def allocate(disk: Path, mib: int, table: str) -> None:
    with disk.open("wb") as file:
        file.truncate(mib << 20)
    run("sfdisk", "--quiet", disk, stdin=f"label: gpt\n{table}\n")


def boot_disk() -> Path:
    """A disk whose kernel comes up to the shell of vm.INIT, with UEFI variables mounted."""
    mount = "mount -t efivarfs efivarfs /sys/firmware/efi/efivars || echo NO EFIVARS\n"
    initrd = busybox_initrd(mount + INIT, modules=[*MODULES, "efivarfs"])
    with kept("kernel", initrd, kernel_version(CLOUD_KERNEL)) as (disk, new):
        if new:
            uki = new.with_suffix(".efi")
            run(
                *("ukify", "build", f"--linux={VMLINUZ}", f"--initrd={initrd}", f"--cmdline={CMDLINE}"),
                *(f"--stub={STUB}", f"--uname={kernel_version(CLOUD_KERNEL)}", f"--output={uki}"),
            )
            allocate(new, DISK_MIB, f"start={ESP_START // 512}, type=U")
            # The second GPT lies in the last 33 sectors.
            fill_esp(new, (DISK_MIB << 20) - ESP_START - 34 * 512, {"EFI/BOOT/BOOTX64.EFI": uki})
            uki.unlink()
    return disk


def debian_root() -> Path:
    return Path(subprocess.check_output([CLONE / "tools/debroot", DEBIAN], text=True).strip())


def installer_disk() -> Path:
    """A disk that firmware boots nothing of by itself: Debian's GRUB as grub.efi, whose menu has Debian's graphical
    installer. Two things that are slow under emulation are done here: its initrd is unpacked, and what it says is in
    English only (it reads all it can say, in 80 languages, a dozen times before it asks for the language)."""
    grub = debian_root() / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    initrd = INSTALLER / "initrd.gz"
    with kept("installer", debian_root(), initrd.stat().st_size, initrd.stat().st_mtime) as (disk, new):
        if new:
            unpacked, menu = new.with_suffix(".initrd"), new.with_suffix(".cfg")
            menu.write_text(GRUB_CFG)
            archive = gzip.decompress(initrd.read_bytes())
            texts = files_in(archive, ".templates")
            assert any(TRANSLATION.search(text) for text in texts.values())
            unpacked.write_bytes(archive + overlay({name: TRANSLATION.sub(b"", text) for name, text in texts.items()}))
            files = {"grub.efi": grub, "EFI/debian/grub.cfg": menu, "linux": INSTALLER / "linux", "initrd": unpacked}
            allocate(new, INSTALLER_MIB, f"start={ESP_START // 512}, type=U")
            # Few large clusters, thus FAT16: GRUB reads a cluster at a time.
            fill_esp(new, (INSTALLER_MIB << 20) - ESP_START - 34 * 512, files, ("-c", "32"))
            unpacked.unlink()
            menu.unlink()
    return disk


def debian_disk() -> Path:
    """A Debian 13 as its installer leaves it: shim and GRUB on an ESP, kernel and systemd on ext4. tests/guests/debian
    is its recipe. Root's password is "glint"."""
    root = debian_root()
    with kept("debian", root) as (disk, new):
        if new:
            files = {str(p.relative_to(root / "boot/efi")): p for p in (root / "boot/efi").rglob("*") if p.is_file()}
            esp = f"start={ESP_START // 512}, size={ESP_MIB}MiB, type=U"
            allocate(new, DEBIAN_MIB, f"{esp}\ntype=L")
            fill_esp(new, ESP_MIB << 20, files)
            # The root's own mke2fs: it fills the file system from a folder, owners and all, without mounting it.
            libraries = [str(root / "lib/x86_64-linux-gnu"), str(root / "usr/lib/x86_64-linux-gnu")]
            start, size = 1 + ESP_MIB, DEBIAN_MIB - ESP_MIB - 2
            run(
                *(root / "lib64/ld-linux-x86-64.so.2", "--library-path", ":".join(libraries), root / "usr/sbin/mke2fs"),
                *("-q", "-t", "ext4", "-L", "root", "-d", root, "-E", f"offset={start << 20}", new, f"{size}M"),
            )
    return disk


class Machine:
    """Copies on @host of what a machine with firmware needs, and the arguments that name them."""

    def __init__(self, host: Host, disk: Path | None = None, options: str = "", format: str = "raw") -> None:
        """options: more of the disk's; format: of the copy, which is dynamic where there is a choice."""
        name = f"uefi-{secrets.token_hex(4)}"
        self.vars = f"/tmp/{name}.vars"
        self.disk = f"/tmp/{name}.{format}"
        host.run(["cp", OVMF_VARS, self.vars])
        self.args: list[str | Path] = ["--firmware", OVMF_CODE, "--vars", self.vars, "--memory", "512M", "--cpus", "2"]
        if disk:
            with in_format(disk, f"{name}.{format}") as source:
                host.run(["cp", "--sparse=always", source, self.disk], timeout=300)
            self.args += ["--disk", f"path={self.disk},format={format},id=system{options}"]


@contextmanager
def in_format(disk: Path, name: str) -> Iterator[Path]:
    """A raw disk in the format that the end of @name says, for a while. Converted here: an emulated host is slow."""
    if name.endswith(".raw"):
        yield disk
        return
    image = BUILD.parent / "disks" / name
    image.parent.mkdir(exist_ok=True)
    run(GLINT, "disk", "convert", disk, image, "--quiet")
    yield image
    image.unlink()
