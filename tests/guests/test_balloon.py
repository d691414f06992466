"""The balloon with Linux: to half and back, the host's memory following; free pages reported; a guest short of memory."""

import time

import pytest

from host import Host
from vm import Guest

MIB = 1 << 20
MEMORY = 256 * MIB
FILE_MIB = 90  # what the guest fills with a file and frees again: its file system takes no more than half


def taken(guest: Guest) -> int:
    """Bytes of the host's that guest memory takes."""
    look = "find /proc/[0-9]*/fd -lname '*guest-ram*' -exec stat -Lc %b {} + 2>/dev/null"
    found = guest.host.run(["sh", "-c", look], check=False).text.split()
    assert len(found) == 1, found
    return int(found[0]) * 512


def settle(guest: Guest, good, what: str, seconds: float = 90) -> int:
    end = time.monotonic() + seconds
    while not good(now := taken(guest)):
        assert time.monotonic() < end, f"{what}: {now / MIB:.0f} MiB, {guest.call('status')['result']['balloon']}"
        time.sleep(1)
    return now


def fill_and_free(guest: Guest) -> None:
    guest.sh(f"dd if=/dev/zero bs=1M count={FILE_MIB} of=/tmp/file; sync; rm /tmp/file")


def test_to_half_and_back(host: Host) -> None:
    with Guest(host, "--balloon", "reporting=off") as guest:
        guest.ready()
        fill_and_free(guest)
        full = taken(guest)
        assert full > MEMORY // 2 + 16 * MIB
        guest.call("balloon", target=MEMORY // 2)
        settle(guest, lambda now: now <= MEMORY // 2 + 4 * MIB, "half")
        settle(guest, lambda _: guest.call("status")["result"]["balloon"]["actual"] == MEMORY // 2, "actual")
        half = taken(guest)
        # Saved and restored with the balloon in it: what was given back is neither in the file nor there again.
        guest.call("save", "/tmp/balloon.state")
        saved = int(host.run(["stat", "-c", "%b", "/tmp/balloon.state"]).text) * 512
        assert saved <= MEMORY // 2 + 4 * MIB, (saved, half)
        guest.call("quit")
        assert guest.wait() == 0
    with Guest(host, "--balloon", "reporting=off", restore="/tmp/balloon.state") as guest:
        # It runs already: of its own half it may have touched more, but not of what it gave.
        assert taken(guest) <= MEMORY // 2 + 4 * MIB
        guest.call("balloon", target=MEMORY)
        settle(guest, lambda _: guest.call("status")["result"]["balloon"]["actual"] == MEMORY, "back")
        guest.sh(f"dd if=/dev/urandom bs=1M count={FILE_MIB} of=/tmp/file && sha256sum /tmp/file >/tmp/sum")
        assert taken(guest) > MEMORY // 2 + 16 * MIB
        guest.sh("sha256sum -c /tmp/sum")
        stats = guest.call("balloon-stats")["result"]
        assert stats["asked"]
        end = time.monotonic() + 30
        while "free-memory" not in (stats := guest.call("balloon-stats")["result"])["stats"]:
            assert time.monotonic() < end, stats
            time.sleep(0.5)
        assert 0 < stats["stats"]["free-memory"] < stats["stats"]["total-memory"] <= MEMORY
        print(f"full {full / MIB:.0f} MiB, half {half / MIB:.0f} MiB, saved {saved / MIB:.0f} MiB")


def test_reporting(host: Host) -> None:
    """What the guest frees comes back to the host without anybody asking."""
    with Guest(host, "--balloon", "on") as guest:
        guest.ready()
        guest.sh(f"dd if=/dev/zero bs=1M count={FILE_MIB} of=/tmp/file")
        used = taken(guest)
        guest.sh("rm /tmp/file")
        after = settle(guest, lambda now: now < used - FILE_MIB * MIB * 3 // 4, "reporting")
        print(f"with the file {used / MIB:.0f} MiB, without {after / MIB:.0f} MiB")


@pytest.mark.parametrize("saved", ["on", "off"])
def test_deflate_on_oom(host: Host, saved: str) -> None:
    """A guest that needs what it gave takes it back by itself; without the feature its process is killed."""
    with Guest(host, "--balloon", f"deflate-on-oom={saved}") as guest:
        guest.ready()
        guest.call("balloon", target=MEMORY * 3 // 8)
        settle(guest, lambda _: guest.call("status")["result"]["balloon"]["actual"] < MEMORY // 2, "inflated")
        time.sleep(5)
        answer = guest.sh("dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; echo status $?", timeout=240)
        assert ("status 0" in answer) == (saved == "on"), answer
