"""Processors: 256 of them, topology, models, clocks; what another machine cannot provide is refused by name."""

import fcntl
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from host import CLONE
from stream import Stream
from tiny import Tiny

Start = Callable[..., Tiny]

KVM_CHECK_EXTENSION, CAP_TSC_CONTROL, CAP_HYPERV_SYNIC2 = 0xAE03, 60, 148


def kvm_has(capability: int) -> bool:
    fd = os.open("/dev/kvm", os.O_RDWR)
    try:
        return fcntl.ioctl(fd, KVM_CHECK_EXTENSION, capability) > 0
    finally:
        os.close(fd)


def leaves(output: str) -> dict[tuple[int, int], tuple[int, ...]]:
    rows = [[int(word, 16) for word in row.split()] for row in re.findall(r"^LEAF (.*)$", output, re.M)]
    return {(row[0], row[1]): tuple(row[2:]) for row in rows}


def refusal(vm: Tiny) -> str:
    assert vm.wait() == 1, f"it was not refused: {vm.output}"
    assert not vm.output
    return vm.errors


# --- many ---


def test_256_processors(tiny: Start, tmp_path: Path) -> None:
    """All start by INIT and SIPI, answer, are reached by devices, and go on in another process."""
    vm = tiny("smp,far-irq,idle,smp cpus=256", "--rng", cpus=256)
    vm.expect("SMP 256\n", timeout=180)
    vm.expect("TEST far-irq ok")
    vm.expect("IDLE")
    vm.save(tmp_path / "state")
    vm.call("quit")
    assert vm.wait() == 0
    vm = tiny("", "--rng", cpus=256, restore=tmp_path / "state")
    vm.send("x")
    vm.expect("SMP 256\nTEST smp ok", timeout=180)
    assert vm.wait() == 0


def test_255_processors(tiny: Start) -> None:
    """The most there can be without an APIC id that in xAPIC mode means all."""
    tiny("smp,far-irq cpus=255", "--rng", cpus=255).finish(timeout=180)


# --- topology ---


def test_topology(tiny: Start) -> None:
    """APIC ids are bit fields; CPUID tells the topology, and the MADT names the same ids (or no processor starts)."""
    output = tiny("smp,cpuid,far-irq cpus=12", "--rng", cpus="12,sockets=2,cores=3,threads=2").finish()
    ids = [int(id_, 16) for id_ in re.findall(r"^CPU (\S+)", output, re.M)]
    assert sorted(ids) == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    seen = leaves(output)
    assert [level[:3] for level in (seen[0xB, 0], seen[0xB, 1])] == [(1, 2, 0x100), (3, 6, 0x201)]
    assert seen[1, 0][3] >> 28 & 1
    if seen[0, 0][1] == 0x68747541:
        assert seen[1, 0][1] >> 16 & 0xFF == 6
        assert seen[0x80000008, 0][2] & 0xF0FF == 3 << 12 | 5
        pairs = re.findall(r"^CPU (\S+) (\S+) (\S+)", output, re.M)
        for apic, ebx, ecx in [[int(word, 16) for word in pair] for pair in pairs]:
            assert (ebx, ecx) == (0x100 | apic >> 1 & 3, apic >> 3)


@pytest.mark.parametrize(
    "cpus, words",
    [
        ("4,sockets=3", "their product must be the number of vCPUs"),
        ("240,sockets=80,cores=3", "APIC ids up to 318"),
        ("4,dies=2", "known are count, sockets, cores and threads"),
        ("257", "out of range"),
    ],
)
def test_topology_that_cannot_be(tiny: Start, cpus: str, words: str) -> None:
    assert words in refusal(tiny("smp", cpus=cpus))


# --- models ---


def contracts() -> dict[str, set[str]]:
    """The features of each model, as the program has them."""
    text = (CLONE / "vmm/cpu/features.c").read_text()
    found = re.findall(r'\.name = "(x86-64-v\d)".*?\.adds = ((?:\s*"[^"]*")+)', text, re.S)
    return {name: set(" ".join(re.findall(r'"([^"]*)"', words)).split()) for name, words in found}


def test_contracts_are_documented() -> None:
    """docs/processors.md says of each model what the program says."""
    page = (CLONE / "docs/processors.md").read_text()
    rows = re.findall(r"^\| `(x86-64-v\d)` \| (.*) \|$", page, re.M)
    assert len(rows) == 4
    assert {name: set(words.split()) for name, words in rows} == contracts()


def test_named_model(tiny: Start) -> None:
    """The least model runs on every machine. (A paravirtual KVM shows features of the processor beside it.)"""
    vm = tiny("cpuid", "--cpu-model", "x86-64-v1,phys-bits=38", cpus=2)
    seen = leaves(vm.finish())
    assert seen[1, 0][2] & 0x81200000 == 0x81200000 and seen[1, 0][3] & 0x078BFBFD == 0x078BFBFD
    assert seen[1, 0][0] in (0x100F42, 0x106A5)
    assert (0x80000007, 0) not in seen and (0x80000021, 0) not in seen
    assert seen[0x80000008, 0][0] == 48 << 8 | 38
    assert seen[0x40000001, 0][0] == 0x01007EFB
    brand = b"".join(r.to_bytes(4, "little") for leaf in range(0x80000002, 0x80000005) for r in seen.get((leaf, 0), []))
    assert brand.rstrip(b"\0") == b"Glint x86-64-v1 virtual processor"


def test_model_that_the_machine_lacks(tiny: Start) -> None:
    """What is missing is named; a machine that has all of v4 runs it."""
    vm = tiny("cpuid", "--cpu", "x86-64-v4")
    if vm.wait() == 0:
        assert leaves(vm.output)[7, 0][1] == 0xD19F07A9
    else:
        missing = re.search(r"lacks: ([\w, ]+)", vm.errors)
        assert missing and set(missing[1].split(", ")) < set.union(*contracts().values())
    assert "there is no CPU model 'epyc'" in refusal(tiny("cpuid", "--cpu", "epyc"))
    assert "out of range" in refusal(tiny("cpuid", "--cpu", "host,phys-bits=53"))
    assert "52-bit physical addresses" in refusal(tiny("cpuid", "--cpu", "host,phys-bits=52"))
    assert "addresses only 36 bits" in refusal(tiny("cpuid", "--cpu", "host,phys-bits=36"))


def saved(tiny: Start, path: Path, *args: object, cpus: int | str = 1) -> Stream:
    vm = tiny("idle", *args, cpus=cpus, memory="8M")
    vm.expect("IDLE")
    vm.save(path)
    vm.call("quit")
    assert vm.wait() == 0
    return Stream(path)


def leaf_index(stream: Stream, function: int) -> int:
    for i in range(stream.count("cpu-model", "cpuid")):
        if stream.number("cpu-model", "cpuid", i, "function") == function:
            return i
    raise AssertionError(f"leaf {function:x} was not saved")


def test_saved_model_is_checked(tiny: Start, tmp_path: Path) -> None:
    """A state from a machine with other features, another maker, more address bits or another model."""
    state, other = tmp_path / "state", tmp_path / "other"

    def changed(value: int, *path: str | int) -> str:
        stream = saved_state()
        stream.set(value, *path)
        stream.write(other)
        return refusal(tiny("", restore=other, memory="8M"))

    def saved_state() -> Stream:
        return Stream(state)

    stream = saved(tiny, state)
    stream.write(other)
    assert other.read_bytes() == state.read_bytes()  # so it is the change that is refused below, and not a check
    leaf = leaf_index(stream, 7)
    # Two bits that no processor has together with the others, and one of Linux's software.
    error = changed(1 << 27 | 1 << 26 | 1 << 22, "cpu-model", "cpuid", leaf, "ebx")
    assert "lacks: pcommit, avx512pf, avx512er" in error
    assert "maker" in changed(0x41414141, "cpu-model", "cpuid", leaf_index(stream, 0), "ebx")
    assert "52-bit physical addresses" in changed(52, "cpu-model", "physical-bits")
    words = refusal(tiny("", "--cpu-model", "x86-64-v1", restore=state, memory="8M"))
    assert "the CPU model host, this one was given x86-64-v1" in words
    assert "--cpus" in refusal(tiny("", restore=state, memory="8M", cpus=2))


def test_saved_kind_is_compared(tiny: Start, tmp_path: Path) -> None:
    """A named model comes with the state; topology must be the same."""
    state = tmp_path / "state"
    saved(tiny, state, "--cpu-model", "x86-64-v1", cpus="4,threads=2")
    for cpus in [4, "4,sockets=2", "4,sockets=2,threads=2"]:
        assert "(--cpus)" in refusal(tiny("", restore=state, memory="8M", cpus=cpus))
    vm = tiny("", restore=state, memory="8M", cpus="4,threads=2")
    vm.send("x")
    vm.expect("TEST idle ok")
    assert vm.wait() == 0
    saved(tiny, state, cpus=4)
    assert "(--cpus)" in refusal(tiny("", restore=state, memory="8M", cpus="4,sockets=2"))


def test_hyperv_is_refused_without(tiny: Start, tmp_path: Path) -> None:
    if kvm_has(CAP_HYPERV_SYNIC2):
        pytest.skip("this machine's KVM has Hyper-V's interface: tests/guests/test_cpu.py tries it")
    assert "show Hyper-V's interface: this machine's KVM has none" in refusal(tiny("idle", "--hyperv", "on"))


# --- clocks ---


def times(vm: Tiny) -> list[int]:
    return [int(us) for us in re.findall(r"CLOCK (\d+) us", vm.output)]


def test_kvmclock(tiny: Start, tmp_path: Path) -> None:
    """A pause is announced to the guest, once; a saved machine's clock goes on where it stood."""
    state = tmp_path / "state"
    vm = tiny("kvmclock", memory="8M")
    vm.expect(r"CLOCK \d+ us\n(.*\n)*CLOCK")
    assert "STOPPED" not in vm.output.split("CLOCK", 3)[-1]
    before = vm.output.count("STOPPED")
    vm.call("pause")
    time.sleep(1)
    vm.call("resume")
    vm.expect("STOPPED")
    vm.expect(r"CLOCK \d+ us\n(.*\n)*CLOCK")
    assert vm.output.count("STOPPED") == before + 1
    assert max(b - a for a, b in zip(times(vm), times(vm)[1:])) > 900_000
    vm.save(state)
    vm.call("quit")
    assert vm.wait() == 0
    last = times(vm)[-1]
    time.sleep(3)
    vm = tiny("", restore=state, memory="8M")
    vm.expect("STOPPED")
    vm.expect(r"CLOCK \d+ us\n(.*\n)*CLOCK")
    assert 0 <= times(vm)[0] - last < 2_000_000, (last, times(vm))
    vm.send("x")
    vm.expect("TEST kvmclock ok")
    assert vm.wait() == 0


def test_tsc_frequency(tiny: Start, tmp_path: Path) -> None:
    """A state from a machine whose counter runs at another frequency: scaled, or refused where that cannot be."""
    state = tmp_path / "state"
    stream = saved(tiny, state)
    khz = stream.number("clock", "tsc-khz")
    assert khz > 100_000

    def restored(value: int) -> Tiny:
        stream.set(value, "clock", "tsc-khz")
        stream.write(state)
        return tiny("", restore=state, memory="8M")

    for near in (khz + khz // 10000, 0):
        vm = restored(near)
        vm.send("x")
        vm.expect("TEST idle ok")
        assert vm.wait() == 0
    vm = restored(khz * 9 // 10)
    if kvm_has(CAP_TSC_CONTROL):
        vm.send("x")
        vm.expect("TEST idle ok")
    else:
        assert re.search(rf"runs at {khz * 9 // 10} kHz, this machine's processor at \d+ kHz", refusal(vm))


# --- memory ---


def test_numa(tiny: Start, tmp_path: Path) -> None:
    """Nodes are part of what is saved; tests/guests/test_cpu.py looks at what a guest makes of them."""
    nodes = ["--numa", "cpus=0-1,memory=4M,host-node=0", "--numa", "cpus=2+3,memory=4M"]
    state = tmp_path / "state"
    saved(tiny, state, *nodes, cpus=4)
    for wrong in [[], nodes[:1] + ["cpus=0-2,memory=4M"] + nodes[2:3] + ["cpus=3,memory=4M"]]:
        assert "(--numa)" in refusal(tiny("", *wrong, restore=state, memory="8M", cpus=4)) or not wrong
    assert "numa" in refusal(tiny("", restore=state, memory="8M", cpus=4))
    vm = tiny("", *nodes, restore=state, memory="8M", cpus=4)
    vm.send("x")
    vm.expect("TEST idle ok")
    assert vm.wait() == 0
    for wrong, words in [
        (["--numa", "cpus=0-3,memory=4M"], "the memory of the NUMA nodes is 4 MiB, of the machine 8 MiB"),
        (["--numa", "cpus=0-1,memory=8M"], "vCPU 2 is in 0 NUMA nodes"),
        (["--numa", "cpus=3-0,memory=8M"], "are no vCPUs"),
        (["--numa", "cpus=0-3,memory=8M,host-node=99"], "put NUMA node 0 on the host's node 99"),
    ]:
        assert words in refusal(tiny("idle", *wrong, memory="8M", cpus=4))


def pool(size: str, name: str) -> Path:
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{size}/{name}")


def test_huge_pages(tiny: Start, tmp_path: Path) -> None:
    """From the host's pool: an error that tells what there is and how to get more; then a machine made of them."""
    number, state = pool("2048kB", "nr_hugepages"), tmp_path / "state"
    if not number.exists():
        pytest.skip("the kernel has no huge pages of 2 MiB")
    had = int(number.read_text())
    free = int(pool("2048kB", "free_hugepages").read_text())
    words = refusal(tiny("idle", "--huge-pages", "2M", memory=f"{(free + 1) * 2}M"))
    assert f"need {free + 1} huge pages of 2M; {free} of the host's {had} are free" in words
    assert f"echo {had + 1} >{number}" in words
    assert "no whole huge pages of 2M" in refusal(tiny("idle", "--huge-pages", "2M", memory="9M"))
    assert "1G" in refusal(tiny("idle", "--huge-pages", "1G", memory="9M"))
    tiny("poweroff", "--huge-pages", "off", memory="8M").wait()
    try:
        number.write_text(str(had + 4))
    except OSError as error:
        pytest.skip(f"no huge pages can be added here: {error}")
    try:
        if int(number.read_text()) < had + 4:
            pytest.skip("this machine's memory has no room for 4 huge pages")
        vm = tiny("idle", "--huge-pages", "2M", memory="8M")
        vm.expect("IDLE")
        maps = Path(f"/proc/{vm.process.pid}/smaps").read_text()
        assert re.search(r"Shared_Hugetlb: +[1-9]|Private_Hugetlb: +[1-9]", maps), maps
        vm.save(state)
        vm.call("quit")
        assert vm.wait() == 0
        for pages in ["2M", "auto"]:
            vm = tiny("", "--huge-pages", pages, restore=state, memory="8M")
            vm.send("x")
            vm.expect("TEST idle ok")
            assert vm.wait() == 0
    finally:
        number.write_text(str(had))
