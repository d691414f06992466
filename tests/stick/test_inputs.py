"""What an image is made from: firmware and microcode, of a Debian root that stands for the one with Debian's packages, which a
building machine's apt may not offer; and versions that are given. Nothing is booted; docs/SPECIFICATION.md tells of the real packages."""

import json
import lzma
import os
import subprocess
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
FILES = {
    "firmware-nics": {"bnx2/bnx2-mips-09-6.2.1b.fw": b"bnx2" * 1000, "rtl_nic/rtl8125b-2.fw": b"realtek" * 9,
                      "netronome/nic_AMDA0081-0001_1x40.nffw": b"no driver", "iwlwifi-7265-17.ucode": b"no driver"},
    "amd64-microcode": {"amd-ucode/microcode_amd.bin": b"first ", "amd-ucode/microcode_amd_fam17h.bin": b"second"},
    "intel-microcode": {"intel-ucode/06-3f-02": b"one ", "intel-ucode/06-3f-04": b"two"},
}


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian root with these packages; one file is a link, as Debian has many."""
    root = tmp_path_factory.mktemp("offered")
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    status = [f"Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 2025-{len(files)}\nSource: made-up\n"
              for name, files in FILES.items()]
    (root / "var/lib/dpkg/status").write_text("\n".join(status))
    (root / ".versions").write_text("".join(f"{name} 2025-{len(files)}\n" for name, files in sorted(FILES.items())))
    for name, files in FILES.items():
        for path, content in files.items():
            (root / "usr/lib/firmware" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "usr/lib/firmware" / path).write_bytes(content)
        (root / f"var/lib/dpkg/info/{name}.list").write_text("".join(f"/usr/lib/firmware/{path}\n" for path in files))
        (root / f"usr/share/doc/{name}").mkdir(parents=True)
        (root / f"usr/share/doc/{name}/copyright").write_text("Format: x\n\nLicense: redistributable\n")
    os.symlink("bnx2-mips-09-6.2.1b.fw", root / "usr/lib/firmware/bnx2/bnx2-mips-06-6.2.3.fw")
    with (root / "var/lib/dpkg/info/firmware-nics.list").open("a") as listing:
        listing.write("/usr/lib/firmware/bnx2/bnx2-mips-06-6.2.3.fw\n")
    return root


def section(uki: Path, name: str, to: Path) -> list[str]:
    """A section of the UKI, unpacked into a folder; the files in it."""
    to.mkdir()
    subprocess.run(["objcopy", "-O", "binary", "-j", name, uki, to / "section"], check=True)
    subprocess.run(["cpio", "--quiet", "-id"], stdin=(to / "section").open("rb"), cwd=to, check=True)
    return sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file() and path.name != "section")


def test_what_the_drivers_name_is_taken(offered: Path, tmp_path: Path) -> None:
    image = tmp_path / "with.img"
    subprocess.run([CLONE / "image/build", "-o", image, "--firmware", offered], check=True)
    uki = Path(f"{image}.efi")
    # Microcode: uncompressed, a file a vendor, where the kernel looks for it.
    early = tmp_path / "early"
    assert section(uki, ".ucode", early) == ["kernel/x86/microcode/AuthenticAMD.bin", "kernel/x86/microcode/GenuineIntel.bin"]
    assert (early / "kernel/x86/microcode/AuthenticAMD.bin").read_bytes() == b"first second"
    assert (early / "kernel/x86/microcode/GenuineIntel.bin").read_bytes() == b"one two"
    # Firmware of the drivers that are in the image, and no other; as the kernel unpacks it.
    section(uki, ".initrd", tmp_path / "initrd")
    subprocess.run(["fsck.erofs", f"--extract={tmp_path / 'root'}", tmp_path / "initrd/root.img"], check=True, stdout=subprocess.DEVNULL)
    firmware = tmp_path / "root/usr/lib/firmware"
    found = {str(path.relative_to(firmware)): path for path in firmware.rglob("*") if not path.is_dir()}
    assert set(found) == {"bnx2/bnx2-mips-09-6.2.1b.fw.xz", "bnx2/bnx2-mips-06-6.2.3.fw.xz", "rtl_nic/rtl8125b-2.fw.xz"}
    assert os.readlink(found["bnx2/bnx2-mips-06-6.2.3.fw.xz"]) == "bnx2-mips-09-6.2.1b.fw.xz"
    for path, file in found.items():
        content = file.read_bytes()
        assert lzma.decompress(content) == FILES["firmware-nics"][path.removesuffix(".xz").replace("06-6.2.3", "09-6.2.1b")]
        assert content[7] == lzma.CHECK_CRC32  # the stream's header: the only one that the kernel knows
    manifest = json.loads(Path(f"{image}.manifest.json").read_text())
    owners = {row["path"]: row["package"] for row in manifest["files"] + manifest["microcode"]}
    assert owners["usr/lib/firmware/rtl_nic/rtl8125b-2.fw.xz"] == "firmware-nics"
    assert owners["kernel/x86/microcode/GenuineIntel.bin"] == "intel-microcode"
    packages = {row["name"]: row for row in manifest["packages"] + manifest["parts"]}
    assert all(packages[name]["version"] and packages[name]["licences"] == ["redistributable"] for name in FILES)
    assert manifest["firmware"] and "firmware firmware-nics 2025-4\n" in Path(f"{image}.versions").read_text()


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image by the default, auto, on a machine whose apt does not list the component."""
    image = tmp_path_factory.mktemp("without") / "stick.img"
    done = subprocess.run([CLONE / "image/build", "-o", image], env=os.environ | {"GLINT_COMPONENTS": "main"}, text=True, capture_output=True, check=True)
    assert "does not list Debian's component non-free-firmware" in done.stderr
    return image


def test_none_where_it_is_not_offered(without: Path) -> None:
    manifest = json.loads(Path(f"{without}.manifest.json").read_text())
    assert not manifest["firmware"] and not manifest["microcode"]
    assert not any(row["path"].startswith("usr/lib/firmware/") or "firmware" in str(row["package"]) for row in manifest["files"])
    assert ".ucode" not in subprocess.check_output(["objdump", "-h", f"{without}.efi"], text=True)


def test_other_versions_are_refused(without: Path, tmp_path: Path) -> None:
    """The versions that a build wrote give the same bytes, whatever the machine offers now; another one is refused by
    name, before anything is made."""
    again, versions = tmp_path / "again.img", Path(f"{without}.versions")
    offering = os.environ | {"GLINT_COMPONENTS": "main non-free-firmware"}
    subprocess.run([CLONE / "image/build", "-o", again, "--pinned", versions], env=offering, check=True)
    for suffix in ("", ".efi", ".manifest.json", ".versions"):
        assert subprocess.run(["cmp", f"{without}{suffix}", f"{again}{suffix}"]).returncode == 0
    lines = versions.read_text()
    for root, package in (("buildroot", "gcc"), ("root", "kmod")):
        before = next(line for line in lines.splitlines() if line.startswith(f"{root} {package} "))
        other = tmp_path / f"{root}.versions"
        other.write_text(lines.replace(before + "\n", f"{root} {package} 0.1-1\n"))
        done = subprocess.run([CLONE / "image/build", "-o", tmp_path / "no.img", "--pinned", other], text=True, capture_output=True)
        assert done.returncode == 1 and f"< {package} 0.1-1\n" in done.stderr and f"> {before.split(' ', 1)[1]}\n" in done.stderr
        assert "compiling" not in done.stderr and not list(tmp_path.glob("no.img*"))
    done = subprocess.run([CLONE / "image/build", "--pinned", versions, "--firmware", "none"], text=True, capture_output=True)
    assert done.returncode == 1 and "whether there is any stands in" in done.stderr
